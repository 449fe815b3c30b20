//! The one binary: arguments, configuration, the real clock and disk, and the wiring of all rooms.

mod agent;
mod apply;
mod parts;
mod server;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A whole Kubernetes-compatible cluster in one program.
#[derive(Parser)]
#[command(name = "gantry", version, about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a whole cluster on this machine: a server and nodes in namespaces of their own.
    Up(up::UpArgs),
    /// Take away what a cluster left on this machine.
    Down(up::DownArgs),
    /// Run one node.
    Agent(agent::AgentArgs),
    /// Run the control plane: API server, controllers, scheduler.
    Server(server::ServerArgs),
    /// Print the version.
    Version,
}

fn main() -> ExitCode {
    // The process that holds a pod must stay single-threaded, so it parts from everything else at once.
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == "shim") {
        let rest: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
        runtime::shim::main(&rest);
    }
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("GANTRY_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .with_writer(std::io::stderr)
        .init();
    let result = match cli.command {
        Command::Up(args) => up::run(args),
        Command::Down(args) => up::down(args),
        Command::Agent(args) => agent::run(args),
        Command::Server(args) => server::run(args),
        Command::Version => {
            println!("gantry {} (Kubernetes 1.37)", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gantry: {error}");
            ExitCode::FAILURE
        }
    }
}
