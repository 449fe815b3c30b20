//! The one binary: arguments, configuration, the real clock and disk, and the wiring of all rooms.

/// Like `println!` for what stays: it does not end because what it says cannot be written, as on a full disk.
macro_rules! tell {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($words)*);
    }};
}

/// Like `println!` for what ends when it has said what there is: it ends at once when nobody reads that any more.
macro_rules! say {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        crate::printed(writeln!(std::io::stdout(), $($words)*))
    }};
}

mod agent;
mod allocator;
mod apply;
mod backend;
mod backup;
mod bench;
mod error;
mod flags;
mod folder;
mod footprint;
mod images;
mod join;
mod left;
mod machine;
mod parts;
mod server;
mod sim;
mod stores;
mod up;

use std::io::Write;
use std::process::ExitCode;

use error::Error;
use flags::Settings;

/// With what programs end that the kernel ends because nobody reads what they print, as shells tell it.
const READER_GONE: i32 = 128 + 13;

#[global_allocator]
static ALLOCATOR: allocator::Allocator = allocator::Allocator;

fn main() -> ExitCode {
    // The process that holds a pod must stay single-threaded, so it parts from everything else at once.
    let words: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    runtime::shim::main_if_meant(&words);
    if std::env::args_os().nth(1).is_some_and(|word| ["up", "agent", "server"].iter().any(|stays| word == *stays)) {
        footprint::small_pages();
    }
    let settings = flags::read(std::env::args_os(), &|name| std::env::var(name).ok());
    match settings.and_then(|settings| run(&settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Words(words)) => {
            // Nobody is left to be told when this cannot be written.
            let _ = words.print();
            ExitCode::from(Error::Words(words).code())
        }
        Err(error) => {
            // The code tells it, too, where this cannot be written.
            let _ = writeln!(std::io::stderr(), "gantry: {error}");
            ExitCode::from(error.code())
        }
    }
}

/// Ends the process when what it prints cannot be written: without a word when nobody reads it any more.
fn printed(written: std::io::Result<()>) {
    let Err(error) = written else { return };
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        std::process::exit(READER_GONE);
    }
    let _ = writeln!(std::io::stderr(), "gantry: cannot print: {error}");
    std::process::exit(1);
}

fn run(settings: &Settings) -> Result<(), Error> {
    if let Some(log) = settings.text("log") {
        let filter = tracing_subscriber::EnvFilter::try_new(log)
            .map_err(|error| settings.complain("log", format!("{log:?} is no filter of logs: {error}")))?;
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    match settings.command {
        "up" => up::run(settings),
        "down" => up::down(settings),
        "server" => server::run(settings),
        "agent" => agent::run(settings),
        "store check" => stores::check(settings),
        "store dump" => stores::dump(settings),
        "store restore" => stores::restore(settings),
        "store migrate" => backup::migrate(settings),
        "backup create" => backup::create(settings),
        "backup verify" => backup::verify(settings),
        "backup restore" => backup::restore(settings),
        "sim" => sim::run(settings),
        "bench" => bench::run(settings),
        "completion" => {
            printed(std::io::stdout().write_all(&flags::completion(settings.argument())));
            Ok(())
        }
        "version" => {
            say!("gantry {} (Kubernetes 1.37)", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        _ => images::run(settings),
    }
}
