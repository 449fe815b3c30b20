//! Worlds in every test run: short ones of every profile, planted defects, the museum, and exact repetition.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use sim::fault::profile;
use sim::museum::EXHIBITS;
use sim::mutation::DEFECTS;
use sim::world::{Report, Settings, run};

/// Worlds of each profile.
const WORLDS: u64 = 24;
/// Seeds tried to find a planted defect.
const TRIES: u64 = 40;
const PROFILES: [&str; 6] = ["calm", "lossy", "crashes", "disks", "nodes", "all"];

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
fn check(worlds: &[(u64, &str)]) {
    let (next, findings) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((seed, name)) = worlds.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let report = run(settings(*seed, name));
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
    let worlds: Vec<_> =
        PROFILES.into_iter().flat_map(|name| (1000..1000 + WORLDS).map(move |seed| (seed, name))).collect();
    check(&worlds);
}

#[test]
fn the_museum_stays_whole() {
    let worlds: Vec<_> = EXHIBITS.iter().map(|exhibit| (exhibit.seed, exhibit.profile)).collect();
    check(&worlds);
}

#[test]
fn a_seed_repeats_itself_to_the_bit() {
    for name in ["calm", "all"] {
        let (one, two) = (run(settings(7, name)), run(settings(7, name)));
        assert_eq!((one.digest, one.events, one.virtual_ms), (two.digest, two.events, two.virtual_ms), "{name}");
        assert_eq!(one.last_steps, two.last_steps);
        assert_ne!(one.digest, run(settings(8, name)).digest);
    }
}

#[test]
fn every_planted_defect_is_found_by_its_checker() {
    for (mutation, checker, name) in DEFECTS {
        let found = (0..TRIES).find_map(|seed| {
            let planted = Settings { mutation: Some(*mutation), only: Some(checker), ..settings(seed, name) };
            run(planted).finding.filter(|finding| finding.starts_with(checker))
        });
        assert!(found.is_some(), "{mutation:?} is not found by {checker}");
    }
}
