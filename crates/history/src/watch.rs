//! What a watch brought, judged against what happened: ordered, each change once, none left out, marks true.

use std::collections::BTreeSet;

use base::Revision;

use crate::{Broken, Judge};

/// One thing that a watch brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A change of a key; `present` is false for a deletion.
    Change { key: String, revision: Revision, present: bool },
    /// Everything up to here has come (a bookmark, or the revision of a list).
    Mark(Revision),
}

/// One stretch of a watch: from a list, or from where an earlier stretch ended, to its end.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    /// Keys begin with one of these; with any where none is named.
    pub prefixes: Vec<String>,
    /// It was asked for everything after this revision.
    pub since: Revision,
    pub heard: Vec<Heard>,
}

impl Watched {
    /// Up to where the watch came: a later one may go on from there.
    pub fn reached(&self) -> Revision {
        let last = self.heard.last().map(|heard| match heard {
            Heard::Change { revision, .. } | Heard::Mark(revision) => *revision,
        });
        last.unwrap_or(self.since).max(self.since)
    }
}

impl Judge {
    /// Judges a stretch of a watch. With `whole`, all changes of the last revision must have come, too: the caller knows
    /// that the stretch did not break off within one.
    ///
    /// # Errors
    /// The promise that it breaks.
    pub fn watched(&self, watched: &Watched, whole: bool) -> Result<(), Broken> {
        let (mut came, mut marked) = (watched.since, watched.since);
        let mut brought = BTreeSet::new();
        for heard in &watched.heard {
            match heard {
                Heard::Mark(revision) => (came, marked) = (came.max(*revision), marked.max(*revision)),
                Heard::Change { key, revision, present } => {
                    let row = (*revision, key.as_str(), *present);
                    if *revision < came || *revision <= marked || !brought.insert(row) {
                        return Err(Broken::Disordered { key: key.clone(), revision: *revision, after: came });
                    }
                    came = *revision;
                }
            }
        }
        let happened = self.changes(&watched.prefixes, watched.since, came);
        for row in &happened {
            let complete = whole || row.0 < came || row.0 <= marked;
            if !brought.remove(row) && complete {
                return Err(Broken::Skipped { key: row.1.to_owned(), revision: row.0 });
            }
        }
        match brought.first() {
            Some((revision, key, _)) => Err(Broken::Invented { key: (*key).to_owned(), revision: *revision }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(since: u64, heard: &[(&str, u64)]) -> Result<(), Broken> {
        let mut judge = Judge::default();
        for (key, revision, present) in
            [("a", 1, true), ("b", 2, true), ("a", 3, true), ("b", 3, false), ("a", 6, true)]
        {
            judge.version(key, Revision(revision), present)?;
        }
        let heard = heard.iter().map(|(key, revision)| match *key {
            "" => Heard::Mark(Revision(*revision)),
            key => Heard::Change {
                key: key.trim_start_matches('-').to_owned(),
                revision: Revision(*revision),
                present: !key.starts_with('-'),
            },
        });
        judge.watched(&Watched { prefixes: Vec::new(), since: Revision(since), heard: heard.collect() }, false)
    }

    #[test]
    fn a_watch_brings_everything_once_and_in_order() {
        assert_eq!(check(1, &[("b", 2), ("a", 3), ("-b", 3), ("", 5), ("a", 6)]), Ok(()));
        assert_eq!(check(1, &[("b", 2), ("a", 3)]), Ok(()), "it may break off within a revision");
        assert!(matches!(check(1, &[("a", 3), ("-b", 3)]), Err(Broken::Skipped { .. })));
        assert!(matches!(check(1, &[("b", 2), ("a", 3), ("", 3)]), Err(Broken::Skipped { .. })));
        assert!(matches!(check(0, &[("", 6)]), Err(Broken::Skipped { .. })));
        assert!(matches!(check(1, &[("b", 2), ("b", 2)]), Err(Broken::Disordered { .. })));
        assert!(matches!(check(1, &[("b", 2), ("", 4), ("a", 3)]), Err(Broken::Disordered { .. })));
        assert!(matches!(check(3, &[("c", 5)]), Err(Broken::Invented { .. })));
        assert!(matches!(check(3, &[("-a", 6)]), Err(Broken::Invented { .. } | Broken::Skipped { .. })));
    }
}
