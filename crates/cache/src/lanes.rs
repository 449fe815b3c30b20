//! Who is woken by what: a lane is a part of a resource that somebody reads.
//!
//! Without lanes every change would wake every watch, and every watch would look at every change: with thousands of
//! nodes, each with a watch on its own pods, that is the product of both. A change rings the bells of the lanes it
//! belongs to and no others, and a lane notes the places of its changes in the resource's history, so that its readers
//! look at those alone.
//!
//! A lane exists while somebody listens. Its places go back to when it was opened, or to where the history begins;
//! whoever is older reads the history itself.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use base::Revision;
use ecow::EcoString;
use meta::Str;

use crate::history::{Event, History};
use crate::{Index, Key};

/// A part of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    All,
    /// What comes and goes ([`Event::is_of_life`]).
    Lives,
    Namespace(Str),
    Named(Key),
    /// What an index files under a value: name of the index, value.
    Indexed(&'static str, Str),
    /// Whatever comes, goes, or is filed elsewhere by this index than before: what else changes of an object is passed over.
    Moved(&'static str),
}

/// Called after a change; must be quick and must not touch the cache.
pub type Bell = Arc<dyn Fn() + Send + Sync>;

/// Bells with their listeners' numbers, shared with whoever is about to ring them.
#[derive(Clone, Default)]
pub struct Bells(Arc<Vec<(u64, Bell)>>);

impl Bells {
    pub fn ring(&self) {
        self.0.iter().for_each(|(_, bell)| bell());
    }

    pub(crate) fn hang(&mut self, id: u64, bell: Bell) {
        Arc::make_mut(&mut self.0).push((id, bell));
    }

    pub(crate) fn take_down(&mut self, id: u64) {
        Arc::make_mut(&mut self.0).retain(|(known, _)| *known != id);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[derive(Default)]
struct Lane {
    bells: Bells,
    /// Where in the history the lane's changes are, ascending.
    places: VecDeque<u64>,
    /// All changes after this revision are noted.
    complete_after: Revision,
}

impl Lane {
    fn note(&mut self, place: u64, first: u64, rung: &mut Vec<Bells>) {
        // A change can belong to a lane twice, with its old and its new value.
        if self.places.back() == Some(&place) {
            return;
        }
        while self.places.front().is_some_and(|place| *place < first) {
            self.places.pop_front();
        }
        self.places.push_back(place);
        rung.push(self.bells.clone());
    }
}

/// The lanes of one resource.
#[derive(Default)]
pub(crate) struct Lanes {
    /// Whoever reads everything reads the history itself.
    all: Bells,
    /// The bells of `all` wait to be rung.
    all_rung: bool,
    /// Their places are noted by the history, too.
    lives: Bells,
    namespaces: HashMap<EcoString, Lane>,
    names: HashMap<EcoString, Lane>,
    indexed: Vec<(&'static str, HashMap<EcoString, Lane>)>,
    moved: Vec<(&'static str, Lane)>,
}

/// Whether an index files an object elsewhere than before.
fn is_moved(event: &Event, index: &Index) -> bool {
    let (Some(old), Some(new)) = (&event.old, &event.new) else { return true };
    let (mut before, mut after) = (Vec::new(), Vec::new());
    (index.of)(old, &mut before);
    (index.of)(new, &mut after);
    before != after
}

impl Lanes {
    /// Opens a lane, or joins it. `at`: what the cache shows now.
    pub fn listen(&mut self, part: &Part, id: u64, bell: Bell, at: Revision) {
        let (lanes, value) = match part {
            Part::All => return self.all.hang(id, bell),
            Part::Lives => return self.lives.hang(id, bell),
            Part::Namespace(namespace) => (&mut self.namespaces, namespace.as_str()),
            Part::Named(key) => (&mut self.names, key.0.as_str()),
            Part::Indexed(index, value) => {
                let known = self.indexed.iter().position(|(name, _)| name == index).unwrap_or_else(|| {
                    self.indexed.push((index, HashMap::new()));
                    self.indexed.len() - 1
                });
                (&mut self.indexed[known].1, value.as_str())
            }
            Part::Moved(index) => {
                let known = self.moved.iter().position(|(name, _)| name == index).unwrap_or_else(|| {
                    self.moved.push((index, Lane { complete_after: at, ..Lane::default() }));
                    self.moved.len() - 1
                });
                return self.moved[known].1.bells.hang(id, bell);
            }
        };
        let lane = lanes.entry(value.into()).or_insert_with(|| Lane { complete_after: at, ..Lane::default() });
        lane.bells.hang(id, bell);
    }

    /// Takes a listener out; the last one closes the lane.
    pub fn unlisten(&mut self, part: &Part, id: u64) {
        let (lanes, value) = match part {
            Part::All => return self.all.take_down(id),
            Part::Lives => return self.lives.take_down(id),
            Part::Namespace(namespace) => (&mut self.namespaces, namespace.as_str()),
            Part::Named(key) => (&mut self.names, key.0.as_str()),
            Part::Indexed(index, value) => match self.indexed.iter_mut().find(|(name, _)| name == index) {
                Some((_, lanes)) => (lanes, value.as_str()),
                None => return,
            },
            Part::Moved(index) => {
                let lanes = self.moved.iter_mut().filter(|(name, _)| name == index);
                lanes.for_each(|(_, lane)| lane.bells.take_down(id));
                return self.moved.retain(|(_, lane)| !lane.bells.is_empty());
            }
        };
        if let Some(lane) = lanes.get_mut(value) {
            lane.bells.take_down(id);
            if lane.bells.is_empty() {
                lanes.remove(value);
            }
        }
    }

    /// The history begins anew after `at`: the places in it are other ones.
    pub fn start_over(&mut self, at: Revision) {
        let indexed = self.indexed.iter_mut().flat_map(|(_, lanes)| lanes.values_mut());
        let moved = self.moved.iter_mut().map(|(_, lane)| lane);
        for lane in self.namespaces.values_mut().chain(self.names.values_mut()).chain(indexed).chain(moved) {
            lane.places.clear();
            lane.complete_after = at;
        }
    }

    /// Everything may have changed: all bells ring.
    pub fn ring_all(&self, rung: &mut Vec<Bells>) {
        let indexed = self.indexed.iter().flat_map(|(_, lanes)| lanes.values());
        let moved = self.moved.iter().map(|(_, lane)| lane);
        let lanes = self.namespaces.values().chain(self.names.values()).chain(indexed).chain(moved);
        rung.extend([&self.all, &self.lives].into_iter().chain(lanes.map(|lane| &lane.bells)).cloned());
    }

    /// What was noted is being rung: the next change rings anew.
    pub fn ring_again(&mut self) {
        self.all_rung = false;
    }

    /// Notes a change that stands at `place` of a history that begins at `first`.
    pub fn note(&mut self, event: &Event, place: u64, first: u64, indexes: &[Index], rung: &mut Vec<Bells>) {
        if !self.all_rung && !self.all.is_empty() {
            self.all_rung = true;
            rung.push(self.all.clone());
        }
        if !self.lives.is_empty() && event.is_of_life() {
            rung.push(self.lives.clone());
        }
        let Some(object) = event.new.as_ref().or(event.old.as_ref()) else { return };
        if !self.namespaces.is_empty()
            && let Some(lane) = self.namespaces.get_mut(object.namespace())
        {
            lane.note(place, first, rung);
        }
        if !self.names.is_empty()
            && let Some(lane) = self.names.get_mut(Key::of(object.namespace(), object.name()).0.as_str())
        {
            lane.note(place, first, rung);
        }
        for (name, lane) in &mut self.moved {
            let index = indexes.iter().find(|index| index.name == *name && index.resource == object.resource());
            if index.is_some_and(|index| is_moved(event, index)) {
                lane.note(place, first, rung);
            }
        }
        let mut values = Vec::new();
        for (name, lanes) in self.indexed.iter_mut().filter(|(_, lanes)| !lanes.is_empty()) {
            let index = indexes.iter().find(|index| index.name == *name && index.resource == object.resource());
            let Some(index) = index else { continue };
            values.clear();
            [&event.old, &event.new].into_iter().flatten().for_each(|object| (index.of)(object, &mut values));
            for value in &values {
                if let Some(lane) = lanes.get_mut(value.as_str()) {
                    lane.note(place, first, rung);
                }
            }
        }
    }

    /// Up to `max` changes of a part after `since`, oldest first, in whole revisions; `None` when the lane does not go
    /// back so far, or there is none.
    pub fn since(&self, part: &Part, since: Revision, max: usize, history: &History) -> Option<Vec<Event>> {
        let lane = match part {
            Part::All | Part::Lives => return None,
            Part::Namespace(namespace) => self.namespaces.get(namespace.as_str()),
            Part::Named(key) => self.names.get(&key.0),
            Part::Indexed(index, value) => {
                self.indexed.iter().find(|(name, _)| name == index).and_then(|(_, lanes)| lanes.get(value.as_str()))
            }
            Part::Moved(index) => self.moved.iter().find(|(name, _)| name == index).map(|(_, lane)| lane),
        }?;
        if since < lane.complete_after || since < history.complete_after() {
            return None;
        }
        let after = |place: &u64| history.at(*place).is_some_and(|event| event.revision > since);
        let start = lane.places.iter().rposition(|place| !after(place)).map_or(0, |last| last + 1);
        let mut events: Vec<Event> = Vec::new();
        for event in lane.places.range(start..).filter_map(|place| history.at(*place)) {
            if events.len() >= max && events.last().is_some_and(|last| last.revision != event.revision) {
                break;
            }
            events.push(event.clone());
        }
        Some(events)
    }
}
