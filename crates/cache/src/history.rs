//! The recent changes of one resource, for watches: one bounded queue that every watcher reads through its cursor.

use std::collections::VecDeque;

use base::Revision;
use meta::Object;

use crate::HISTORY_BYTES_MAX;

/// A change as a watcher sees it. Created: no `old`. Deleted: no `new`.
#[derive(Clone, Debug)]
pub struct Event {
    pub revision: Revision,
    pub old: Option<Object>,
    pub new: Option<Object>,
}

impl Event {
    /// Whether an object came or went, or changed in what its life hangs on: its owners, its finalizers, and whether it is
    /// being deleted.
    pub fn is_of_life(&self) -> bool {
        let (Some(old), Some(new)) = (&self.old, &self.new) else { return true };
        let (old, new) = (old.facts(), new.facts());
        old.uid != new.uid
            || old.deleting != new.deleting
            || old.owners != new.owners
            || old.finalizers != new.finalizers
    }
}

/// The cursor is older than the history that is kept; the oldest usable cursor is `at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compacted {
    pub at: Revision,
}

pub(crate) struct History {
    events: VecDeque<Event>,
    /// The place of the first event: places count all events that ever were.
    first: u64,
    /// The places of the events that are of life, ascending: mostly few.
    lives: VecDeque<u64>,
    /// The texts that the events brought.
    bytes: usize,
    /// Everything after this revision is in `events`.
    complete_after: Revision,
}

fn bytes_of(event: &Event) -> usize {
    event.new.as_ref().map_or(0, |object| object.text_len())
}

impl History {
    pub fn starting_after(revision: Revision) -> History {
        History { events: VecDeque::new(), first: 0, lives: VecDeque::new(), bytes: 0, complete_after: revision }
    }

    /// Appends, and forgets what is more than `max`; returns the event's place.
    pub fn push(&mut self, event: Event, max: usize) -> u64 {
        self.bytes += bytes_of(&event);
        if event.is_of_life() {
            self.lives.push_back(self.first + self.events.len() as u64);
        }
        self.events.push_back(event);
        while self.events.len() > max || self.bytes > HISTORY_BYTES_MAX && self.events.len() > 1 {
            if let Some(event) = self.events.pop_front() {
                self.first += 1;
                self.bytes -= bytes_of(&event);
                self.complete_after = event.revision;
            }
        }
        self.forget_lives();
        self.first + self.events.len() as u64 - 1
    }

    fn forget_lives(&mut self) {
        while self.lives.front().is_some_and(|place| *place < self.first) {
            self.lives.pop_front();
        }
    }

    /// The place of the oldest event that is kept.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// The event at a place, while it is kept.
    pub fn at(&self, place: u64) -> Option<&Event> {
        self.events.get(usize::try_from(place.checked_sub(self.first)?).ok()?)
    }

    pub fn complete_after(&self) -> Revision {
        self.complete_after
    }

    pub fn since(&self, since: Revision, max: usize) -> Result<Vec<Event>, Compacted> {
        if since < self.complete_after {
            return Err(Compacted { at: self.complete_after });
        }
        let start = self.first_after(since);
        let mut end = start.saturating_add(max).min(self.events.len());
        // All changes of one revision go together, so that a cursor can be a revision.
        while end > start && end < self.events.len() && self.events[end].revision == self.events[end - 1].revision {
            end += 1;
        }
        Ok(self.events.range(start..end).cloned().collect())
    }

    /// Where the events after `since` begin. Looked for from the end: most who ask have seen all but the last few, and what
    /// came earlier lies in memory that is cold.
    fn first_after(&self, since: Revision) -> usize {
        let is_past = |at: usize| self.events[at].revision <= since;
        let (len, mut back) = (self.events.len(), 1);
        while back <= len && !is_past(len - back) {
            back *= 2;
        }
        let (mut low, mut high) = (len.saturating_sub(back), len - back / 2);
        while low < high {
            let middle = low + (high - low) / 2;
            if is_past(middle) { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// The events after `since` that are of life.
    pub fn lives_since(&self, since: Revision) -> Result<impl Iterator<Item = &Event>, Compacted> {
        if since < self.complete_after {
            return Err(Compacted { at: self.complete_after });
        }
        let is_past = |place: &u64| self.at(*place).is_none_or(|event| event.revision <= since);
        // Most who ask have seen all of them.
        let start =
            if self.lives.back().is_none_or(is_past) { self.lives.len() } else { self.lives.partition_point(is_past) };
        Ok(self.lives.range(start..).filter_map(|place| self.at(*place)))
    }

    pub fn compact(&mut self, at: Revision) {
        while self.events.front().is_some_and(|event| event.revision <= at) {
            if let Some(event) = self.events.pop_front() {
                self.bytes -= bytes_of(&event);
            }
            self.first += 1;
        }
        self.forget_lives();
        self.complete_after = self.complete_after.max(at);
    }
}
