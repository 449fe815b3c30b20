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

/// The cursor is older than the history that is kept; the oldest usable cursor is `at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compacted {
    pub at: Revision,
}

pub(crate) struct History {
    events: VecDeque<Event>,
    /// The place of the first event: places count all events that ever were.
    first: u64,
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
        History { events: VecDeque::new(), first: 0, bytes: 0, complete_after: revision }
    }

    /// Appends, and forgets what is more than `max`; returns the event's place.
    pub fn push(&mut self, event: Event, max: usize) -> u64 {
        self.bytes += bytes_of(&event);
        self.events.push_back(event);
        while self.events.len() > max || self.bytes > HISTORY_BYTES_MAX && self.events.len() > 1 {
            if let Some(event) = self.events.pop_front() {
                self.first += 1;
                self.bytes -= bytes_of(&event);
                self.complete_after = event.revision;
            }
        }
        self.first + self.events.len() as u64 - 1
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
        if self.events.back().is_none_or(|last| last.revision <= since) {
            return Ok(Vec::new());
        }
        let start = self.events.partition_point(|event| event.revision <= since);
        let mut end = start.saturating_add(max).min(self.events.len());
        // All changes of one revision go together, so that a cursor can be a revision.
        while end > start && end < self.events.len() && self.events[end].revision == self.events[end - 1].revision {
            end += 1;
        }
        Ok(self.events.range(start..end).cloned().collect())
    }

    pub fn compact(&mut self, at: Revision) {
        while self.events.front().is_some_and(|event| event.revision <= at) {
            if let Some(event) = self.events.pop_front() {
                self.bytes -= bytes_of(&event);
            }
            self.first += 1;
        }
        self.complete_after = self.complete_after.max(at);
    }
}
