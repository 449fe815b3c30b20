//! Runs worlds without the rest of the binary: `worlds PROFILE SEED COUNT [SCHEDULE | minimise]`. Prints what `gantry
//! sim` prints of each, so that builds can be compared.

use sim::fault::profile;
use sim::minimise::minimise;
use sim::schedule::Schedule;
use sim::world::{Report, Settings, run};

/// As in the binary, so that both take the same time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn tell(report: &Report) {
    let Report { seed, profile, events, digest, virtual_ms, .. } = report;
    match &report.finding {
        None => println!("seed {seed} ok, {events} events, digest {digest:016x}"),
        Some(why) => println!("seed {seed} of {profile} BROKEN after {virtual_ms} ms: {why}"),
    }
}

fn main() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let text = |at: usize, default: &str| arguments.get(at).cloned().unwrap_or_else(|| default.to_owned());
    let number = |at: usize| text(at, "1").parse::<u64>().map_err(|error| error.to_string());
    let name = text(0, "calm");
    let profile = profile(&name).ok_or_else(|| format!("{name} is no sort of world"))?;
    let smaller = text(3, "") == "minimise";
    let schedule = Schedule::parse(if smaller { "" } else { arguments.get(3).map_or("", String::as_str) })?;
    let (mut broken, mut virtual_ms, began) = (0, 0, std::time::Instant::now());
    for seed in number(1)?..number(1)? + number(2)? {
        let print = arguments.len() > 4;
        let settings = Settings { profile, schedule: schedule.clone(), print, ..Settings::quiet(seed) };
        let report = run(settings.clone());
        virtual_ms += report.virtual_ms;
        if report.finding.is_none() {
            if number(2)? == 1 {
                tell(&report);
            }
            continue;
        }
        broken += 1;
        tell(&report);
        if let Some((schedule, report)) = if smaller { minimise(&settings) } else { None } {
            println!("{schedule}");
            tell(&report);
        }
    }
    let real_ms = began.elapsed().as_millis();
    println!("{name}: {broken} broken, {} s in {real_ms} ms", virtual_ms / 1000);
    Ok(())
}
