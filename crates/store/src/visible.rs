//! The reading half of the machine: the published state, and the history that leads to it.
//!
//! Invariants: everything here is durable or ephemeral by promise; events stand in order of revisions and a revision's
//! events are never parted; the history holds every event after `floor`, and none at or below it.

use crate::stage::{Keys, Publication};
use crate::types::{Error, Event, HistoryLimits, Range, Version};
use base::{Revision, Time};
use bytes::Bytes;
use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;

/// Events between two kept states of the past; a read of the past undoes at most this many.
const CHECKPOINT_EVENTS: usize = 65_536;
/// What an event weighs beside its key and its new value, roughly.
const EVENT_OVERHEAD_BYTES: usize = 200;

/// The state at one revision. Cloning is O(1); it stays as it is while the store goes on.
#[derive(Clone)]
pub struct State {
    pub revision: Revision,
    pub(crate) keys: Keys,
}

/// A part of a state, in ascending order of keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    pub revision: Revision,
    pub items: Vec<(Bytes, Arc<Version>)>,
    /// There are keys of the range after the last item.
    pub more: bool,
}

impl State {
    pub fn get(&self, key: &[u8]) -> Option<&Arc<Version>> {
        self.keys.get(key)
    }

    /// All keys of `range`, ascending, those after `start_after` if given.
    pub fn iter<'a>(
        &'a self,
        range: &'a Range,
        start_after: Option<&'a [u8]>,
    ) -> impl Iterator<Item = (&'a Bytes, &'a Arc<Version>)> {
        let start = match start_after {
            Some(after) if after >= &range.start[..] => Bound::Excluded(after),
            _ => Bound::Included(&range.start[..]),
        };
        self.keys.from(start).take_while(|(key, _)| range.end.as_ref().is_none_or(|end| key < &end))
    }

    /// At most `limit` keys (0: all).
    pub fn read(&self, range: &Range, start_after: Option<&[u8]>, limit: usize) -> Page {
        let mut rest = self.iter(range, start_after);
        let limit = if limit == 0 { usize::MAX } else { limit };
        let items = rest.by_ref().take(limit).map(|(key, version)| (key.clone(), version.clone())).collect();
        let more = rest.next().is_some();
        Page { revision: self.revision, items, more }
    }

    pub fn count(&self, range: &Range) -> usize {
        if *range == Range::all() { self.keys.len() } else { self.iter(range, None).count() }
    }

    fn undo(&mut self, event: &Event) {
        match &event.old {
            Some(old) => self.keys.insert(event.key.clone(), old.clone()),
            None => self.keys.remove(&event.key[..]),
        };
    }
}

/// A stretch of the feed.
#[derive(Clone, Debug, PartialEq)]
pub struct Events {
    pub events: Vec<Event>,
    /// The feed is complete up to here: the place to go on from.
    pub revision: Revision,
}

pub struct Visible {
    state: State,
    floor: Revision,
    history: VecDeque<(Time, Event)>,
    history_bytes: usize,
    limits: HistoryLimits,
    checkpoints: VecDeque<State>,
    since_checkpoint: usize,
}

impl Visible {
    pub(crate) fn new(keys: Keys, revision: Revision, floor: Revision, limits: HistoryLimits) -> Visible {
        Visible {
            state: State { revision, keys },
            floor,
            history: VecDeque::new(),
            history_bytes: 0,
            limits,
            checkpoints: VecDeque::new(),
            since_checkpoint: 0,
        }
    }

    /// The newest visible revision.
    pub fn revision(&self) -> Revision {
        self.state.revision
    }

    /// History up to and including this revision is gone.
    pub fn floor(&self) -> Revision {
        self.floor
    }

    pub fn newest(&self) -> &State {
        &self.state
    }

    /// Takes a publication over. What is dropped by it is returned, so that the caller can free it outside its lock.
    pub fn publish(&mut self, publication: &Publication) -> Vec<(Time, Event)> {
        for event in &publication.events {
            match &event.new {
                Some(new) => self.state.keys.insert(event.key.clone(), new.clone()),
                None => self.state.keys.remove(&event.key[..]),
            };
        }
        self.state.revision = publication.revision;
        self.remember(&publication.events, publication.time);
        let mut gone = self.trim(publication.time);
        if let Some(at) = publication.compact {
            gone.append(&mut self.compact(at));
        }
        gone
    }

    /// Ends a replay: `remember` was called for every event that led to this state.
    pub(crate) fn settle(&mut self, keys: Keys, revision: Revision, floor: Revision) {
        self.state = State { revision, keys };
        self.checkpoints.clear();
        self.since_checkpoint = 0;
        self.compact(floor);
    }

    /// When the oldest event leaves the window.
    pub fn next_trim(&self) -> Option<Time> {
        self.history.front().map(|(time, _)| time.plus_ms(self.limits.window_ms + 1))
    }

    pub(crate) fn remember(&mut self, events: &[Event], time: Time) {
        self.history.reserve(events.len());
        for event in events {
            self.history_bytes += weight(event);
            self.history.push_back((time, event.clone()));
        }
        self.since_checkpoint += events.len();
        if self.since_checkpoint >= CHECKPOINT_EVENTS {
            self.since_checkpoint = 0;
            self.checkpoints.push_back(self.state.clone());
        }
    }

    /// Drops what is outside the window at `now` and returns it.
    pub fn trim(&mut self, now: Time) -> Vec<(Time, Event)> {
        let (mut count, mut bytes, mut floor) = (0, self.history_bytes, self.floor);
        for (time, event) in &self.history {
            let over = self.history.len() - count > self.limits.max_events || bytes > self.limits.max_bytes;
            let old = now.ms_since(*time) > self.limits.window_ms;
            if !over && !old && event.revision != floor {
                break;
            }
            count += 1;
            bytes -= weight(event);
            floor = event.revision;
        }
        self.drop_first(count, floor)
    }

    /// Drops the history up to and including `at`.
    pub(crate) fn compact(&mut self, at: Revision) -> Vec<(Time, Event)> {
        let count = self.position_after(at);
        self.drop_first(count, self.floor.max(at.min(self.state.revision)))
    }

    fn drop_first(&mut self, count: usize, floor: Revision) -> Vec<(Time, Event)> {
        let gone: Vec<_> = self.history.drain(..count).collect();
        self.history_bytes -= gone.iter().map(|(_, event)| weight(event)).sum::<usize>();
        self.floor = floor;
        while self.checkpoints.front().is_some_and(|state| state.revision < floor) {
            self.checkpoints.pop_front();
        }
        if self.history.capacity() > 4096 && self.history.len() < self.history.capacity() / 4 {
            self.history.shrink_to(self.history.len() * 2);
        }
        gone
    }

    /// How many of the remembered events are at or below `revision`.
    fn position_after(&self, revision: Revision) -> usize {
        self.history.partition_point(|(_, event)| event.revision <= revision)
    }

    fn check(&self, revision: Revision) -> Result<(), Error> {
        match revision {
            revision if revision > self.state.revision => Err(Error::Ahead(self.state.revision)),
            revision if revision < self.floor => Err(Error::Compacted(self.floor)),
            _ => Ok(()),
        }
    }

    /// The events after revision `after`, whole revisions only: `max` may be exceeded to end one.
    ///
    /// # Errors
    /// [`Error::Compacted`] when some of them are gone, [`Error::Ahead`] when `after` has not been given yet.
    pub fn since(&self, after: Revision, max: usize) -> Result<Events, Error> {
        self.check(after)?;
        let mut events: Vec<Event> = Vec::new();
        for (_, event) in self.history.range(self.position_after(after)..) {
            if let Some(last) = events.last()
                && events.len() >= max
                && last.revision != event.revision
            {
                let revision = last.revision;
                return Ok(Events { events, revision });
            }
            events.push(event.clone());
        }
        Ok(Events { events, revision: self.state.revision })
    }

    /// The state at `at`, the newest when `None`.
    ///
    /// # Errors
    /// [`Error::Compacted`] and [`Error::Ahead`].
    pub fn state(&self, at: Option<Revision>) -> Result<State, Error> {
        let Some(at) = at else { return Ok(self.state.clone()) };
        self.check(at)?;
        let nearest = self.checkpoints.partition_point(|state| state.revision < at);
        let mut state = self.checkpoints.get(nearest).unwrap_or(&self.state).clone();
        let (from, to) = (self.position_after(at), self.position_after(state.revision));
        for (_, event) in self.history.range(from..to).rev() {
            state.undo(event);
        }
        state.revision = at;
        Ok(state)
    }
}

fn weight(event: &Event) -> usize {
    event.key.len() + event.new.as_ref().map_or(0, |new| new.value.len()) + EVENT_OVERHEAD_BYTES
}
