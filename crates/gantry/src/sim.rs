//! `gantry sim`: runs worlds of the simulator and tells which promises broke.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use meta::json;
use sim::fault::profile;
use sim::minimise::minimise;
use sim::schedule::Schedule;
use sim::world::{Report, Settings as World, run as run_world};

use crate::error::Error;
use crate::flags::Settings;

/// How long the allocator waits until it gives back what is free, in milliseconds, as it is read when a process begins.
const GIVES_BACK: &str = "MIMALLOC_PURGE_DELAY";
/// Steps shown of a world that broke a promise.
const STEPS_SHOWN: usize = 20;

/// Begins the process anew with an allocator that gives nothing back, unless somebody said how it is to be. Worlds take at
/// once what the one before, or an instant before, gave up: a sixth of their time went into pages given back and taken anew.
fn keep_memory() {
    if std::env::var_os(GIVES_BACK).is_none() {
        // Where that cannot be, it takes longer.
        let _ = Command::new("/proc/self/exe").args(std::env::args_os().skip(1)).env(GIVES_BACK, "-1").exec();
    }
}

pub fn run(settings: &Settings) -> Result<(), Error> {
    keep_memory();
    let (seed, worlds): (u64, u64) = (settings.must("seed"), settings.must("worlds"));
    let name = settings.text("profile").unwrap_or_default();
    let known = || settings.complain("profile", format!("{name:?} is no sort of world"));
    let only = settings.text("only").unwrap_or_default();
    let schedule = Schedule::parse(only).map_err(|why| settings.complain("only", why))?;
    let (profile, print) = (profile(name).ok_or_else(known)?, settings.flag("steps"));
    let world = World { profile, print, schedule, ..World::quiet(seed) };
    let began = Instant::now();
    let json = settings.flag("json");
    let (reports, cpu_ms) = all(&world, worlds, |report| tell(report, json));
    let first = reports.values().find(|report| report.finding.is_some());
    if let Some(first) = first.filter(|_| settings.flag("minimise")) {
        smaller(&World { seed: first.seed, print: false, ..world });
    }
    let broken = reports.values().filter(|report| report.finding.is_some()).count();
    if !json {
        let virtual_ms: u64 = reports.values().map(|report| report.virtual_ms).sum();
        let real_ms = began.elapsed().as_millis().max(1);
        say!(
            "{worlds} worlds of {name} from seed {seed}: {} s of their time in {} s, {} writes, {broken} broke a promise",
            virtual_ms / 1000,
            real_ms / 1000,
            reports.values().map(|report| report.writes).sum::<u64>(),
        );
        say!("{} virtual seconds per CPU second", virtual_ms / cpu_ms.max(1));
    }
    if broken == 0 {
        return Ok(());
    }
    Err(Error::doing("keep every promise", format!("{broken} of {worlds} worlds broke one")))
}

/// Looks for the smallest world that breaks the same promise, and tells of it.
fn smaller(world: &World) {
    let Some((schedule, report)) = minimise(world) else { return };
    say!("the smallest schedule that still breaks it:");
    tell(&report, false);
    say!("  again: gantry sim --seed {} --profile {} --only '{schedule}' --steps", world.seed, world.profile.name);
}

/// Runs the worlds on all processors and tells of each as it ends; a world itself has one thread. Also says how many
/// milliseconds of processors they took together.
fn all(first: &World, worlds: u64, told: impl Fn(&Report) + Sync) -> (BTreeMap<u64, Report>, u64) {
    let threads = match first.print {
        true => 1,
        false => std::thread::available_parallelism().map_or(1, NonZero::get),
    };
    let (next, reports, cpu_us) = (AtomicU64::new(0), Mutex::new(BTreeMap::new()), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= worlds {
                        return;
                    }
                    let began_us = thread_cpu_us();
                    let report = run_world(World { seed: first.seed.wrapping_add(number), ..first.clone() });
                    cpu_us.fetch_add(thread_cpu_us() - began_us, Ordering::Relaxed);
                    told(&report);
                    reports.lock().unwrap_or_else(PoisonError::into_inner).insert(number, report);
                }
            });
        }
    });
    let reports = reports.into_inner().unwrap_or_else(PoisonError::into_inner);
    (reports, cpu_us.into_inner() / 1000)
}

/// What this thread has used of a processor.
fn thread_cpu_us() -> u64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    (used.tv_sec * 1_000_000 + used.tv_nsec / 1000).try_into().unwrap_or(0)
}

fn tell(report: &Report, as_json: bool) {
    if as_json {
        let line = json!({
            "seed": (report.seed.to_string()), "profile": (report.profile), "digest": (format!("{:016x}", report.digest)),
            "virtualMs": (i64::try_from(report.virtual_ms).unwrap_or(i64::MAX)),
            "events": (i64::try_from(report.events).unwrap_or(i64::MAX)),
            "writes": (i64::try_from(report.writes).unwrap_or(i64::MAX)),
            "finding": (report.finding.as_deref().unwrap_or_default()),
        });
        return say!("{}", String::from_utf8_lossy(&line.to_json()));
    }
    let Some(finding) = &report.finding else {
        return say!("seed {} ok, {} events, digest {:016x}", report.seed, report.events, report.digest);
    };
    let (seed, profile) = (report.seed, report.profile);
    say!("seed {seed} BROKEN after {:.3} s: {finding}", report.virtual_ms as f64 / 1000.0);
    let skipped = report.last_steps.len().saturating_sub(STEPS_SHOWN);
    for step in report.last_steps.iter().skip(skipped) {
        say!("  {step}");
    }
    say!("  again: gantry sim --seed {seed} --profile {profile} --steps");
}
