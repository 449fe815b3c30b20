//! What of a world happens, when not all of it shall: the smallest world that still breaks is the easiest to understand.
//!
//! Written `steps=0,4 faults=2 work=12000 without=lost,late`; what is not named is whole.

use std::collections::BTreeSet;
use std::fmt;

use crate::link::Weather;
use crate::machine::Ills;

/// Everything that goes wrong by chance: its name, and how it is taken out.
type Row = (&'static str, fn(&mut Weather, &mut Ills));

/// Sorts of trouble that have a rate instead of a moment.
pub const TROUBLES: &[Row] = &[
    ("lost", |weather, _| weather.lost = 0),
    ("doubled", |weather, _| weather.doubled = 0),
    ("late", |weather, _| weather.late = 0),
    ("answer-lost", |weather, _| weather.answer_lost = 0),
    ("watch-cut", |weather, _| weather.watch_cut = 0),
    ("latency", |weather, _| weather.latency_ms = 1),
    ("crash", |_, ills| ills.crash = 0),
    ("hang", |_, ills| ills.hang = 0),
    ("pull", |_, ills| ills.pull = 0),
    ("stall", |_, ills| ills.stall = 0),
    ("stubborn", |_, ills| ills.stubborn = 0),
    ("undead", |_, ills| ills.undead = 0),
];

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// Only these steps of the user.
    pub steps: Option<BTreeSet<u64>>,
    /// Only these faults, in the order in which they are planned.
    pub faults: Option<BTreeSet<u64>>,
    /// Work and faults end after so long.
    pub work_ms: Option<u64>,
    /// Rows of [`TROUBLES`] that are left out.
    pub without: BTreeSet<&'static str>,
}

impl Schedule {
    pub fn has_step(&self, number: u64) -> bool {
        self.steps.as_ref().is_none_or(|steps| steps.contains(&number))
    }

    pub fn has_fault(&self, number: u64) -> bool {
        self.faults.as_ref().is_none_or(|faults| faults.contains(&number))
    }

    pub fn calm(&self, weather: &mut Weather, ills: &mut Ills) {
        for (_, take_out) in TROUBLES.iter().filter(|(name, _)| self.without.contains(name)) {
            take_out(weather, ills);
        }
    }

    /// Reads what [`Schedule`] writes.
    ///
    /// # Errors
    /// A sentence about the first word that says nothing.
    pub fn parse(text: &str) -> Result<Schedule, String> {
        let mut schedule = Schedule::default();
        for word in text.split_whitespace() {
            let Some((name, list)) = word.split_once('=') else { return Err(format!("{word:?} is not NAME=LIST")) };
            let numbers = || -> Result<BTreeSet<u64>, String> {
                let words = list.split(',').filter(|word| !word.is_empty());
                words.map(|word| word.parse().map_err(|_| format!("{word:?} is no number"))).collect()
            };
            match name {
                "steps" => schedule.steps = Some(numbers()?),
                "faults" => schedule.faults = Some(numbers()?),
                "work" => schedule.work_ms = numbers()?.first().copied(),
                "without" => {
                    for word in list.split(',') {
                        let row = TROUBLES.iter().find(|(name, _)| *name == word);
                        schedule.without.insert(row.ok_or_else(|| format!("{word:?} is no sort of trouble"))?.0);
                    }
                }
                _ => return Err(format!("{name:?} is not steps, faults, work or without")),
            }
        }
        Ok(schedule)
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join = |numbers: &BTreeSet<u64>| numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        let mut words = Vec::new();
        words.extend(self.steps.as_ref().map(|steps| format!("steps={}", join(steps))));
        words.extend(self.faults.as_ref().map(|faults| format!("faults={}", join(faults))));
        words.extend(self.work_ms.map(|work_ms| format!("work={work_ms}")));
        if !self.without.is_empty() {
            words.push(format!("without={}", self.without.iter().copied().collect::<Vec<_>>().join(",")));
        }
        f.write_str(&words.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for text in ["", "steps=0,4 faults= work=12000 without=late,lost", "faults=7"] {
            assert_eq!(Schedule::parse(text).expect("it is sound").to_string(), text);
        }
        for text in ["steps", "steps=a", "without=rain", "stops=1"] {
            assert!(Schedule::parse(text).is_err(), "{text}");
        }
    }
}
