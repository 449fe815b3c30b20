//! The recent changes of one resource, for watches: one bounded queue that every watcher reads through its cursor.

use std::collections::VecDeque;

use base::Revision;
use meta::Object;

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
    /// Everything after this revision is in `events`.
    complete_after: Revision,
}

impl History {
    pub fn starting_after(revision: Revision) -> History {
        History { events: VecDeque::new(), complete_after: revision }
    }

    pub fn push(&mut self, event: Event, max: usize) {
        self.events.push_back(event);
        while self.events.len() > max {
            if let Some(event) = self.events.pop_front() {
                self.complete_after = event.revision;
            }
        }
    }

    pub fn since(&self, since: Revision, max: usize) -> Result<Vec<Event>, Compacted> {
        if since < self.complete_after {
            return Err(Compacted { at: self.complete_after });
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
            self.events.pop_front();
        }
        self.complete_after = self.complete_after.max(at);
    }
}
