//! What happened while nobody was watching: stretches of history of which no watch told, what was asked for then of whose
//! fate or place nothing is known, and lists, which show what came of it.
//!
//! A stretch excuses nothing by itself. That a key is gone, or has a version of which nobody heard, is believed only where
//! somebody asked for it, at a time that fits.

use std::collections::BTreeMap;

use base::Revision;

use crate::{Broken, Judge};

/// When something that was asked for may have happened: after one revision, and before another where that is known.
#[derive(Clone, Copy, Debug)]
struct Window {
    after: Revision,
    before: Option<Revision>,
}

#[derive(Default)]
pub(crate) struct Unseen {
    /// Stretches that nobody watched: after the first revision, up to the second.
    gaps: BTreeMap<Revision, Revision>,
    deletions: BTreeMap<String, Vec<Window>>,
    writes: BTreeMap<String, Vec<Window>>,
}

impl Unseen {
    pub fn is_empty(&self) -> bool {
        self.gaps.is_empty()
    }

    /// The first moment after `since`, and before `next`, after which a key may have been deleted without anybody knowing.
    pub fn deletion(&self, key: &str, since: Revision, next: Option<Revision>) -> Option<Revision> {
        let windows = self.deletions.get(key)?;
        let fits = |(after, up_to): (&Revision, &Revision), window: &Window| {
            let low = since.max(*after).max(window.after);
            let ends = [window.before, next].into_iter().flatten().map(|end| Revision(end.0.saturating_sub(1)));
            (low < ends.fold(*up_to, Revision::min)).then_some(low)
        };
        // Hardly ever one of them: a key has thousands of windows.
        let between =
            |(after, up_to): &(&Revision, &Revision)| **up_to > since && next.is_none_or(|next| **after < next);
        let gaps = self.gaps.iter().filter(between);
        gaps.flat_map(|gap| windows.iter().filter_map(move |window| fits(gap, window))).min()
    }

    /// Whether a write of which nobody heard may be the version at `revision`.
    pub fn write(&self, key: &str, revision: Revision) -> bool {
        let unwatched = self.gaps.iter().any(|(after, up_to)| *after < revision && revision <= *up_to);
        let asked = |window: &Window| window.after < revision && window.before.is_none_or(|before| revision < before);
        unwatched && self.writes.get(key).is_some_and(|windows| windows.iter().any(asked))
    }
}

impl Judge {
    /// After one revision up to another, things may have happened of which no version is known: nobody was watching.
    pub fn gap(&mut self, after: Revision, up_to: Revision) {
        if after < up_to {
            let known = self.unseen.gaps.entry(after).or_insert(up_to);
            *known = up_to.max(*known);
        }
    }

    /// A deletion was asked for whose place is not known, or which may not have happened: after one revision, before
    /// another. (Answers to deletions do not tell their revision.)
    pub fn may_delete(&mut self, key: &str, after: Revision, before: Option<Revision>) {
        self.unseen.deletions.entry(key.to_owned()).or_default().push(Window { after, before });
    }

    /// A write was asked for, after a revision, of whose fate nothing is known.
    pub fn may_write(&mut self, key: &str, after: Revision) {
        self.unseen.writes.entry(key.to_owned()).or_default().push(Window { after, before: None });
    }

    /// Judges a list: everything there was at revision `at`. Versions that nobody had heard of are known from then on;
    /// lists are to be judged in the order of their revisions.
    ///
    /// # Errors
    /// All promises that it breaks.
    pub fn listed(&mut self, at: Revision, found: &BTreeMap<String, Revision>) -> Vec<Broken> {
        let last = |judge: &Judge, key: &str| {
            let versions = judge.of(key)?;
            versions.range(..=at).next_back().map(|(revision, present)| (*revision, *present))
        };
        let mut broken = Vec::new();
        for (key, revision) in found {
            match last(self, key) {
                Some((last, true)) if last == *revision => {}
                Some((last, _)) if last >= *revision => {
                    broken.push(Broken::Lost { key: key.clone(), revision: last, shown: Some(*revision), at });
                }
                _ if self.unseen.write(key, *revision) => broken.extend(self.version(key, *revision, true).err()),
                _ => broken.push(Broken::NeverWas { key: key.clone(), revision: *revision }),
            }
        }
        for key in self.versions.keys().filter(|key| !found.contains_key(&***key)) {
            if let Some((revision, true)) = last(self, key)
                && self.unseen.deletion(key, revision, Some(at.next())).is_none()
            {
                broken.push(Broken::Lost { key: key.to_string(), revision, shown: None, at });
            }
        }
        broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a list at 10 breaks, of a history with `a` at 3, and `b` at 4 and deleted at 5.
    fn check(prepare: impl Fn(&mut Judge), found: &[(&str, u64)]) -> Vec<String> {
        let mut judge = Judge::default();
        for (key, revision, present) in [("a", 3, true), ("b", 4, true), ("b", 5, false)] {
            judge.version(key, Revision(revision), present).expect("one version per revision");
        }
        prepare(&mut judge);
        let found = found.iter().map(|(key, revision)| ((*key).to_owned(), Revision(*revision))).collect();
        judge.listed(Revision(10), &found).iter().map(ToString::to_string).collect()
    }

    const LOST: &str = "a at revision 3 is missing in a list at 10";

    #[test]
    fn a_list_shows_what_was_written_last() {
        assert!(check(|_| {}, &[("a", 3)]).is_empty());
        assert_eq!(check(|_| {}, &[]), [LOST]);
        assert_eq!(check(|_| {}, &[("a", 2)]), ["a is at revision 2 in a list at 10, though it came to 3"]);
        assert_eq!(check(|_| {}, &[("a", 3), ("b", 4)]), ["b is at revision 4 in a list at 10, though it came to 5"]);
        assert_eq!(check(|_| {}, &[("a", 7)]), ["a was shown at revision 7, which never was"]);
    }

    #[test]
    fn a_loss_that_nobody_watched_is_a_loss() {
        let unwatched = |judge: &mut Judge| judge.gap(Revision(2), Revision(9));
        assert_eq!(check(unwatched, &[]), [LOST]);
        assert_eq!(check(unwatched, &[("a", 2)]).len(), 1);
        assert_eq!(check(unwatched, &[("a", 7)]).len(), 1, "nobody asked for such a write");
    }

    #[test]
    fn what_was_asked_for_at_a_fitting_time_may_have_happened() {
        let deleted = |after: u64, before: Option<u64>, gap: (u64, u64)| {
            let prepare = |judge: &mut Judge| {
                judge.gap(Revision(gap.0), Revision(gap.1));
                judge.may_delete("a", Revision(after), before.map(Revision));
            };
            check(prepare, &[])
        };
        assert!(deleted(0, None, (2, 9)).is_empty());
        assert!(deleted(5, Some(7), (2, 9)).is_empty());
        assert_eq!(deleted(0, Some(3), (2, 9)), [LOST], "it was deleted before it was written");
        assert_eq!(deleted(0, None, (0, 3)), [LOST], "somebody was watching from 3 on");
        assert_eq!(deleted(10, None, (2, 99)), [LOST], "it was asked for after the list");
        let written = |judge: &mut Judge| {
            judge.gap(Revision(2), Revision(9));
            judge.may_write("a", Revision(6));
        };
        assert!(check(written, &[("a", 7)]).is_empty());
        assert_eq!(check(written, &[("a", 6)]).len(), 1);
        // What one list has shown binds the next.
        let mut judge = Judge::default();
        written(&mut judge);
        let at = |revision: u64| BTreeMap::from([("a".to_owned(), Revision(revision))]);
        assert!(judge.listed(Revision(8), &at(8)).is_empty());
        assert_eq!(judge.listed(Revision(9), &at(7)).len(), 1);
    }
}
