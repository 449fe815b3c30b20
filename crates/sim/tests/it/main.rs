//! Worlds in every test run: short ones of every profile, planted defects, the museum, and exact repetition.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use sim::fault::profile;
use sim::museum::EXHIBITS;
use sim::mutation::DEFECTS;
use sim::world::{Report, Settings, run};

/// Without optimisation a world takes seconds; `gantry sim` of a release build runs the many.
const BRIEF: bool = cfg!(debug_assertions);
/// Worlds of each profile.
const WORLDS: u64 = if BRIEF { 1 } else { 50 };
/// Seeds tried to find a planted defect.
const TRIES: u64 = 40;
const PROFILES: [&str; 17] = [
    "calm",
    "lossy",
    "crashes",
    "disks",
    "nodes",
    "links",
    "pauses",
    "clocks",
    "all",
    "servers",
    "shared",
    "upgrade",
    "picky-all",
    "spread-all",
    "ranked-all",
    "guarded-all",
    "removals-all",
];

fn settings(seed: u64, name: &str) -> Settings {
    Settings { profile: profile(name).expect("a profile of the table"), ..Settings::quiet(seed) }
}

fn told(report: &Report) -> String {
    format!(
        "seed {} of {}: {}\n{}",
        report.seed,
        report.profile,
        report.finding.as_deref().unwrap_or_default(),
        report.last_steps.join("\n")
    )
}

/// Runs all of `worlds` on two threads; each world is a world of its own.
fn check(worlds: &[Settings]) {
    let (next, findings) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(world) = worlds.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let report = run(world.clone());
                    if report.finding.is_some() {
                        findings.lock().expect("no thread panics with it").push(told(&report));
                    }
                }
            });
        }
    });
    let findings = findings.into_inner().expect("no thread panics with it");
    assert!(findings.is_empty(), "{}", findings.join("\n\n"));
}

#[test]
fn worlds_keep_their_promises_and_come_to_rest() {
    let world = |seed, name| Settings { brief: BRIEF, ..settings(seed, name) };
    let seeds = 1000..1000 + WORLDS;
    let worlds: Vec<_> =
        PROFILES.into_iter().flat_map(|name| seeds.clone().map(move |seed| world(seed, name))).collect();
    check(&worlds);
}

#[test]
fn the_museum_stays_whole() {
    let worlds: Vec<_> = EXHIBITS.iter().map(|exhibit| exhibit.settings().expect("a row says what it means")).collect();
    check(&worlds);
}

#[test]
fn a_seed_repeats_itself_to_the_bit() {
    let world = |seed| run(Settings { brief: BRIEF, ..settings(seed, "all") });
    let (one, two) = (world(7), world(7));
    assert_eq!((one.digest, one.events, one.virtual_ms), (two.digest, two.events, two.virtual_ms));
    assert_eq!(one.last_steps, two.last_steps);
    assert_ne!(one.digest, world(8).digest);
}

#[test]
fn every_planted_defect_is_found_by_its_checker() {
    let (next, unseen) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((mutation, checker, name)) = DEFECTS.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let found = (0..TRIES).any(|seed| {
                        let planted =
                            Settings { mutation: Some(*mutation), only: Some(checker), ..settings(seed, name) };
                        run(planted).finding.is_some_and(|finding| finding.starts_with(checker))
                    });
                    if !found {
                        let told = format!("{mutation:?} is not found by {checker}");
                        unseen.lock().expect("no thread panics with it").push(told);
                    }
                }
            });
        }
    });
    let unseen = unseen.into_inner().expect("no thread panics with it");
    assert!(unseen.is_empty(), "{}", unseen.join("\n"));
}

#[test]
fn a_broken_world_is_made_smaller() {
    let broken = (0..TRIES).map(|seed| Settings {
        mutation: Some(sim::mutation::Mutation::TooMuchSurge),
        only: Some("replicas"),
        ..settings(seed, "calm")
    });
    let (schedule, report) = broken.into_iter().find_map(|world| sim::minimise::minimise(&world)).expect("one breaks");
    assert!(report.finding.is_some());
    let steps = schedule.steps.expect("the steps that are needed are named");
    assert_eq!(steps.len(), 1, "one deployment is enough to surge: {steps:?}");
}
