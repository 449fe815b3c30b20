//! Histories: what clients asked a store and heard from it, and the judge who says whether one store, that does one thing
//! after the other, can have answered so.
//!
//! Worlds and the torture of real processes use the same judge. It knows keys and revisions only. Since every write of
//! the store carries its place in the one order, nothing has to be searched: an operation happened somewhere between two
//! revisions, and it is impossible exactly when that stretch ends before something that was known when it began.
//!
//! Not here: how operations are carried out or written down; values; kinds.
//!
//! Invariants: a history that some store can have produced is never refused; operations are judged in the order in which
//! they ended.

mod unseen;
mod watch;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use base::Revision;

use unseen::Unseen;
pub use watch::{Heard, Watched};

/// How an operation ended for its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A write was acknowledged, and the object is at this revision.
    Wrote(Revision),
    /// A deletion was acknowledged.
    Deleted,
    /// A read showed this revision of the object, or that there is none.
    Saw(Option<Revision>),
    /// Nothing is known: no answer came, or one that says nothing.
    Unknown,
}

/// What was known when an operation began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Began {
    floor: Revision,
}

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The answer names a version that the store never had.
    NeverWas { key: String, revision: Revision },
    /// The answer is older than what had been seen, by anybody, before the question was asked.
    Stale { key: String, saw: Option<Revision>, superseded: Revision, known: Revision },
    /// A list does not show what had happened by its revision.
    Lost { key: String, revision: Revision, shown: Option<Revision>, at: Revision },
    /// The key was never deleted, though a deletion was acknowledged.
    NotDeleted { key: String },
    /// Two writes have the same place for the same key.
    Twice { key: String, revision: Revision },
    /// A watch brought something out of order, twice, or beyond what it had said to be complete.
    Disordered { key: String, revision: Revision, after: Revision },
    /// A watch left something out.
    Skipped { key: String, revision: Revision },
    /// A watch told of something that never happened.
    Invented { key: String, revision: Revision },
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::NeverWas { key, revision } => write!(f, "{key} was shown at revision {revision}, which never was"),
            Broken::Stale { key, saw, superseded, known } => {
                match saw {
                    Some(saw) => write!(f, "{key} was shown at revision {saw}")?,
                    None => write!(f, "{key} was shown as absent")?,
                }
                write!(f, ", which ended with {superseded}, though {known} was known before the question")
            }
            Broken::Lost { key, revision, shown: None, at } => {
                write!(f, "{key} at revision {revision} is missing in a list at {at}")
            }
            Broken::Lost { key, revision, shown: Some(shown), at } => {
                write!(f, "{key} is at revision {shown} in a list at {at}, though it came to {revision}")
            }
            Broken::NotDeleted { key } => write!(f, "the deletion of {key} was acknowledged and never happened"),
            Broken::Twice { key, revision } => write!(f, "{key} has two versions at revision {revision}"),
            Broken::Disordered { key, revision, after } => {
                write!(f, "a watch brought {key} at revision {revision} after it had come to {after}")
            }
            Broken::Skipped { key, revision } => write!(f, "a watch left {key} at revision {revision} out"),
            Broken::Invented { key, revision } => {
                write!(f, "a watch brought {key} at revision {revision}, where nothing happened")
            }
        }
    }
}

/// At which revisions a key changed, and whether it was there from then on.
type Versions = BTreeMap<Revision, bool>;

/// The order in which the store did things, and what is known of it by answers.
#[derive(Default)]
pub struct Judge {
    /// Of each key, with its own text for those who share it.
    versions: BTreeMap<Arc<str>, (Arc<str>, Versions)>,
    /// The same by revision.
    order: BTreeMap<Revision, Vec<(Arc<str>, bool)>>,
    unseen: Unseen,
    /// The newest revision that some operation that ended is known to rest on.
    floor: Revision,
    judged: u64,
}

impl Judge {
    /// The store had a new version of `key`; `present` is false for a deletion.
    ///
    /// # Errors
    /// [`Broken::Twice`] when the key had another one at this revision.
    pub fn version(&mut self, key: &str, revision: Revision, present: bool) -> Result<(), Broken> {
        let (name, known) = match self.versions.get_mut(key) {
            Some((name, versions)) => (name.clone(), versions.insert(revision, present)),
            None => {
                let name: Arc<str> = key.into();
                self.versions.insert(name.clone(), (name.clone(), BTreeMap::from([(revision, present)])));
                (name, None)
            }
        };
        match known {
            Some(known) if known != present => Err(Broken::Twice { key: key.to_owned(), revision }),
            Some(_) => Ok(()),
            None => {
                self.order.entry(revision).or_default().push((name, present));
                Ok(())
            }
        }
    }

    fn of(&self, key: &str) -> Option<&Versions> {
        self.versions.get(key).map(|(_, versions)| versions)
    }

    /// To be kept by an operation that begins now.
    pub fn begin(&self) -> Began {
        Began { floor: self.floor }
    }

    /// How many outcomes were judged that say something.
    pub fn judged(&self) -> u64 {
        self.judged
    }

    /// Judges an operation that ends now. All versions that it can have seen must be known, but for those of
    /// which [`Judge::may_write`] and [`Judge::may_delete`] told, within a [`Judge::gap`].
    ///
    /// # Errors
    /// The promise that its answer breaks.
    pub fn end(&mut self, key: &str, began: Began, outcome: Outcome) -> Result<(), Broken> {
        let low = match outcome {
            Outcome::Unknown => return Ok(()),
            Outcome::Wrote(revision) | Outcome::Saw(Some(revision)) => self.shown(key, revision, began.floor)?,
            Outcome::Saw(None) => self.absent(key, began.floor)?,
            Outcome::Deleted => {
                let gone = self.of(key).is_some_and(|versions| versions.values().any(|present| !present));
                if !gone && self.unseen.is_empty() {
                    return Err(Broken::NotDeleted { key: key.to_owned() });
                }
                Revision::ZERO
            }
        };
        self.judged += 1;
        self.floor = self.floor.max(low);
        Ok(())
    }

    /// A version was shown: it must have been, and have been the newest at some moment after `floor`.
    fn shown(&self, key: &str, revision: Revision, floor: Revision) -> Result<Revision, Broken> {
        let versions = self.of(key);
        let known = versions.and_then(|versions| versions.get(&revision));
        // A write whose answer got lost, while nobody was watching, is first seen by whoever reads it.
        if known != Some(&true) && !(known.is_none() && self.unseen.write(key, revision)) {
            return Err(Broken::NeverWas { key: key.to_owned(), revision });
        }
        let later = versions.and_then(|all| all.range((Bound::Excluded(revision), Bound::Unbounded)).next());
        match later {
            Some((next, _)) if *next <= floor => {
                Err(Broken::Stale { key: key.to_owned(), saw: Some(revision), superseded: *next, known: floor })
            }
            _ => Ok(revision),
        }
    }

    /// Nothing was shown: there must have been nothing at some moment after `floor`.
    fn absent(&self, key: &str, floor: Revision) -> Result<Revision, Broken> {
        let Some(versions) = self.of(key) else { return Ok(Revision::ZERO) };
        let (mut since, mut superseded) = (Some(Revision::ZERO), Revision::ZERO);
        // What was before the version that was there at `floor` does not matter any more.
        let there = versions.range(..=floor).rev().find(|(_, present)| **present);
        let mut versions = versions.range(there.map_or(Revision::ZERO, |(revision, _)| *revision)..).peekable();
        while let Some((revision, present)) = versions.next() {
            let unseen = self.unseen.deletion(key, *revision, versions.peek().map(|(next, _)| **next));
            match (since, present) {
                (Some(_), true) if *revision > floor => break,
                (_, true) => (since, superseded) = (unseen, *revision),
                (None, false) => since = Some(*revision),
                _ => {}
            }
        }
        since.ok_or(Broken::Stale { key: key.to_owned(), saw: None, superseded, known: floor })
    }

    /// The changes of keys with one of these prefixes, or of any, after one revision up to another, in order.
    pub(crate) fn changes(&self, prefixes: &[String], after: Revision, up_to: Revision) -> Vec<(Revision, &str, bool)> {
        if after >= up_to {
            return Vec::new();
        }
        let range = self.order.range((Bound::Excluded(after), Bound::Included(up_to)));
        let mut all: Vec<(Revision, &str, bool)> = range
            .flat_map(|(revision, changes)| changes.iter().map(|(key, present)| (*revision, &**key, *present)))
            .filter(|(_, key, _)| prefixes.is_empty() || prefixes.iter().any(|prefix| key.starts_with(prefix)))
            .collect();
        all.sort_unstable();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(versions: &[(&str, u64, bool)]) -> Judge {
        let mut judge = Judge::default();
        for (key, revision, present) in versions {
            judge.version(key, Revision(*revision), *present).expect("one version per revision");
        }
        judge
    }

    /// Steps: `b1` begins operation 1; `e1` ends it with its outcome.
    fn check(versions: &[(&str, u64, bool)], steps: &[(&str, Option<(&str, Outcome)>)]) -> Result<(), Broken> {
        let mut judge = judge(versions);
        let mut began = BTreeMap::new();
        for (name, end) in steps {
            match end {
                None => {
                    began.insert(*name, judge.begin());
                }
                Some((key, outcome)) => judge.end(key, began.get(name).copied().unwrap_or_default(), *outcome)?,
            }
        }
        Ok(())
    }

    const A: &[(&str, u64, bool)] = &[("a", 1, true), ("b", 2, true), ("a", 3, true), ("a", 5, false), ("a", 7, true)];

    fn saw(revision: u64) -> Outcome {
        Outcome::Saw((revision > 0).then_some(Revision(revision)))
    }

    #[test]
    fn whoever_asks_later_sees_no_less() {
        let w3 = Outcome::Wrote(Revision(3));
        // A read that overlaps the write may show either; one that begins after it may not show the old one.
        assert!(check(A, &[("r", None), ("w", None), ("w", Some(("a", w3))), ("r", Some(("a", saw(1))))]).is_ok());
        let late = check(A, &[("w", None), ("w", Some(("a", w3))), ("r", None), ("r", Some(("a", saw(1))))]);
        assert!(matches!(late, Err(Broken::Stale { .. })), "{late:?}");
        // What was seen of one key binds what is seen of another.
        let other = check(A, &[("w", None), ("w", Some(("a", w3))), ("r", None), ("r", Some(("b", saw(0))))]);
        assert!(matches!(other, Err(Broken::Stale { .. })), "{other:?}");
        assert!(matches!(check(A, &[("r", None), ("r", Some(("a", saw(4))))]), Err(Broken::NeverWas { .. })));
    }

    #[test]
    fn what_nobody_saw_may_have_been() {
        // A deletion at 4 of which nobody knows, then a new one, deleted at 9.
        let known = [("a", 3, true), ("a", 6, true), ("a", 9, false), ("b", 4, true)];
        let absent = |gap: Option<(u64, u64)>, floor: u64| {
            let mut judge = judge(&known);
            if let Some((after, up_to)) = gap {
                judge.gap(Revision(after), Revision(up_to));
                judge.may_delete("a", Revision::ZERO, None);
            }
            let began = Began { floor: Revision(floor) };
            judge.end("a", began, Outcome::Saw(None)).map(|()| judge.begin().floor.0)
        };
        assert_eq!(absent(None, 4), Ok(9), "without a gap it can only have been after the known deletion");
        assert_eq!(absent(Some((3, 5)), 4), Ok(3));
        assert_eq!(absent(Some((0, 5)), 4), Ok(3), "not before it was there");
        assert_eq!(absent(Some((3, 5)), 7), Ok(9), "it was made again before 7");
        assert_eq!(absent(Some((6, 8)), 7), Ok(6));
        assert_eq!(absent(Some((10, 12)), 7), Ok(9));
        let mut judge = judge(&known);
        let saw = |revision: u64| Outcome::Saw(Some(Revision(revision)));
        assert!(judge.end("a", Began::default(), saw(5)).is_err(), "somebody was watching");
        judge.gap(Revision(4), Revision(5));
        assert!(judge.end("a", Began::default(), saw(5)).is_err(), "nobody asked for it");
        judge.may_write("a", Revision(3));
        assert!(judge.end("a", Began::default(), saw(5)).is_ok() && judge.end("a", Began::default(), saw(4)).is_err());
        let late = Began { floor: Revision(6) };
        assert!(judge.end("a", late, saw(5)).is_err(), "whatever it was, it ended with 6");
        assert!(judge.end("b", Began::default(), Outcome::Deleted).is_ok());
    }

    #[test]
    fn absence_has_its_time() {
        let absent = |known: u64| {
            let first = (if known == 2 { "b" } else { "a" }, saw(known));
            let known = [("k", None), ("k", Some(first))];
            let all: Vec<_> = known.into_iter().chain([("r", None), ("r", Some(("a", saw(0))))]).collect();
            check(A, &all)
        };
        assert!(absent(3).is_ok(), "it was deleted after 3");
        assert!(absent(2).is_ok());
        assert!(matches!(absent(7), Err(Broken::Stale { .. })));
        let never = check(A, &[("d", None), ("d", Some(("b", Outcome::Deleted)))]);
        assert!(matches!(never, Err(Broken::NotDeleted { .. })));
    }
}
