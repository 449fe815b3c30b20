//! Throws bytes at every decoder of outside bytes: `fuzz [--target NAME] [--seconds N] [--seed S] [--input FILE]`.
//!
//! A target is a row of [`targets::TARGETS`]: a name, inputs to begin with, and a function that must not panic, must
//! not take long, and whose own assertions must hold. Inputs are mutations of those to begin with and of what grew from
//! them. There is no coverage to guide it: it finds what careless decoding does, in seconds, on a stable compiler.
//!
//! Invariant: target, seed and number of the input say exactly which bytes were thrown.

mod connections;
mod mutate;
mod objects;
mod pipeline;
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use base::Rng;
use clap::Arg;
use targets::{TARGETS, Target};

/// One input may take so much of a processor, also in a debug build, and so long when it waits.
const PATIENCE: Duration = Duration::from_secs(5);
const WAIT: Duration = Duration::from_secs(120);
/// Mutants that are kept to be mutated again, per target.
const POOL_MAX: usize = 256;

fn arguments() -> clap::Command {
    let number = |text: &str| text.parse::<u64>();
    clap::Command::new("fuzz")
        .about("Throws bytes at every decoder of outside bytes")
        .arg(Arg::new("target").long("target").help("Only this target"))
        .arg(Arg::new("seconds").long("seconds").value_parser(number).default_value("2").help("Seconds per target"))
        .arg(
            Arg::new("seed")
                .long("seed")
                .value_parser(number)
                .default_value("1")
                .help("Where the random stream begins"),
        )
        .arg(Arg::new("input").long("input").value_parser(clap::value_parser!(PathBuf)).help("Throw this file, once"))
}

fn main() -> ExitCode {
    let arguments = arguments().get_matches();
    let number = |name: &str| arguments.get_one::<u64>(name).copied().unwrap_or_default();
    let wanted = arguments.get_one::<String>("target");
    let chosen: Vec<&Target> = TARGETS.iter().filter(|target| wanted.is_none_or(|name| name == target.name)).collect();
    if chosen.is_empty() {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("there is no such target; there are {}", names.join(", "));
        return ExitCode::FAILURE;
    }
    let mut failed = false;
    for target in chosen {
        let result = match arguments.get_one::<PathBuf>("input") {
            Some(path) => std::fs::read(path).map_err(|error| error.to_string()).and_then(|input| one(target, &input)),
            None => run(target, number("seed"), Duration::from_secs(number("seconds"))),
        };
        if let Err(why) = result {
            eprintln!("{}: {why}", target.name);
            failed = true;
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Throws mutants at one target until the time is over.
fn run(target: &Target, seed: u64, time: Duration) -> Result<(), String> {
    let mut rng = Rng::new(seed).fork(target.name);
    let mut pool: Vec<Vec<u8>> = (target.seeds)();
    for input in &pool {
        one(target, input)?;
    }
    let (until, mut count) = (Instant::now() + time, 0u64);
    while Instant::now() < until {
        let input = mutate::mutate(&pool, &mut rng);
        count += 1;
        if let Err(why) = one(target, &input) {
            let file = std::env::temp_dir().join(format!("gantry-fuzz-{}-{seed}-{count}", target.name));
            std::fs::write(&file, &input).map_err(|error| format!("{why}; {}: {error}", file.display()))?;
            return Err(format!("seed {seed}, input {count}, kept as {}: {why}", file.display()));
        }
        // What was thrown is mutated again now and then, so that distances grow.
        if rng.chance(20) {
            if pool.len() < POOL_MAX {
                pool.push(input);
            } else {
                let first = (target.seeds)().len();
                let at = first + rng.below((POOL_MAX - first) as u64) as usize;
                pool[at] = input;
            }
        }
    }
    println!("{:24} {count:>9} inputs", target.name);
    Ok(())
}

/// What this process used of processors: a machine that is busy with others makes nothing slower by it.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Throws one input.
fn one(target: &Target, input: &[u8]) -> Result<(), String> {
    let (start, before) = (Instant::now(), processor_time());
    let result = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let (took, waited) = (processor_time().saturating_sub(before), start.elapsed());
    match result {
        Err(panic) => {
            let words = panic.downcast_ref::<String>().cloned();
            let words = words.or_else(|| panic.downcast_ref::<&str>().map(|words| (*words).to_owned()));
            Err(format!("panic: {}", words.unwrap_or_default()))
        }
        Ok(()) if took > PATIENCE => Err(format!("took {took:?} of a processor for {} bytes", input.len())),
        Ok(()) if waited > WAIT => Err(format!("took {waited:?} for {} bytes", input.len())),
        Ok(()) => Ok(()),
    }
}
