//! Makes a world that breaks a promise smaller, as long as it still breaks the same one.
//!
//! Whatever can be left out of a [`Schedule`] is tried: halves of the faults and of the steps first, then quarters, down
//! to single ones; then sorts of trouble, then time.

use std::collections::BTreeSet;

use crate::fault::planned_faults;
use crate::schedule::{Schedule, TROUBLES};
use crate::world::{Report, Settings, run};

/// Worlds that are run to make one smaller.
pub const RUNS_MAX: u32 = 400;

/// The search: the smallest world so far, and what may still be spent.
struct Search {
    settings: Settings,
    report: Report,
    checker: String,
    runs: u32,
}

fn checker_of(report: &Report) -> Option<String> {
    report.finding.as_ref().and_then(|finding| finding.split_once(':')).map(|(checker, _)| checker.to_owned())
}

/// The smallest schedule found with which the world still breaks the promise of the same checker, and the report of its
/// run. `None` when the world breaks none.
pub fn minimise(settings: &Settings) -> Option<(Schedule, Report)> {
    let report = run(settings.clone());
    let checker = checker_of(&report)?;
    let mut search = Search { settings: settings.clone(), report, checker, runs: 1 };
    search.settings.schedule.steps.get_or_insert_with(|| (0..settings.profile.steps).collect());
    search.settings.schedule.faults.get_or_insert_with(|| (0..planned_faults(settings)).collect());
    search.shorten();
    search.shrink(|schedule| &mut schedule.faults);
    search.shrink(|schedule| &mut schedule.steps);
    for (name, _) in TROUBLES {
        search.attempt(|schedule| {
            schedule.without.insert(name);
        });
    }
    search.shrink(|schedule| &mut schedule.faults);
    search.shorten();
    Some((search.settings.schedule, search.report))
}

impl Search {
    /// Takes a change over if the world still breaks.
    fn attempt(&mut self, change: impl FnOnce(&mut Schedule)) -> bool {
        if self.runs >= RUNS_MAX {
            return false;
        }
        let mut settings = self.settings.clone();
        change(&mut settings.schedule);
        if settings.schedule == self.settings.schedule {
            return false;
        }
        self.runs += 1;
        let report = run(settings.clone());
        let breaks = checker_of(&report).as_ref() == Some(&self.checker);
        if breaks {
            (self.settings, self.report) = (settings, report);
        }
        breaks
    }

    /// Leaves parts of a set out: big ones first.
    fn shrink(&mut self, of: fn(&mut Schedule) -> &mut Option<BTreeSet<u64>>) {
        let count = |search: &mut Search| of(&mut search.settings.schedule).as_ref().map_or(0, BTreeSet::len);
        let mut part = count(self);
        while part > 0 {
            let mut at = 0;
            while at < count(self) {
                let gone: BTreeSet<u64> = match of(&mut self.settings.schedule) {
                    Some(all) => all.iter().skip(at).take(part).copied().collect(),
                    None => return,
                };
                let taken = self.attempt(|schedule| {
                    if let Some(all) = of(schedule) {
                        all.retain(|number| !gone.contains(number));
                    }
                });
                if !taken {
                    at += part;
                }
            }
            part /= 2;
        }
    }

    /// Ends work and faults sooner.
    fn shorten(&mut self) {
        let whole = self.settings.schedule.work_ms.unwrap_or(self.settings.profile.work_ms);
        for share in [1, 2, 4, 6] {
            if self.attempt(|schedule| schedule.work_ms = Some(whole * share / 8)) {
                break;
            }
        }
    }
}
