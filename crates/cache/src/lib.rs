//! The one read model: objects by resource, indexes, immutable views at a revision, and watch cursors.
//!
//! The server, the controllers, the scheduler and the nodes all read through it. It is fed with changes in the order of
//! their revisions ([`Cache::apply`]), or by several feeds of which only each is ordered ([`Source`]); it does not know
//! where they come from, and it does no IO.
//!
//! Invariants: a [`View`] never changes and never goes back; an object in a view is never changed; a watch skips no
//! event silently: a cursor that is older than the kept history gets [`Compacted`].

mod history;
mod lanes;
mod source;
mod view;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use base::Revision;
use meta::{Object, Resource, Str};

use history::History;
pub use history::{Compacted, Event};
use lanes::Lanes;
pub use lanes::{Bell, Bells, Part};
pub use source::Source;
pub use view::{Entries, Key, Shown, View};

/// An index of one resource: adds the values under which an object is found.
pub type IndexFn = fn(&Object, &mut Vec<Str>);

/// An index that a cache keeps: `("pods", "node", of_node)`.
#[derive(Clone, Copy)]
pub struct Index {
    pub resource: Resource,
    pub name: &'static str,
    pub of: IndexFn,
}

/// Changes kept per resource for watches that resume.
pub const HISTORY_EVENTS_MAX: usize = 32_768;
/// Bytes of objects that those changes keep alive, about: what is newest is there anyway.
pub const HISTORY_BYTES_MAX: usize = 128 << 20;

/// Objects, their indexes and their recent history.
pub struct Cache {
    view: View,
    indexes: Arc<[Index]>,
    histories: BTreeMap<Resource, History>,
    lanes: HashMap<Resource, Lanes>,
    /// Listeners to all resources, and to what comes and goes of all.
    everything: Bells,
    lives: Bells,
    /// Something came or went since the bells were taken last.
    lives_moved: bool,
    /// Bells of changes whose feeder has not rung them yet.
    rung: Vec<Bells>,
    /// Where it is fed from, unless there is one feed for all.
    sources: BTreeMap<Source, source::Feed>,
    /// Where history begins for resources that have had no change yet.
    floor: Revision,
    history_events_max: usize,
}

/// One change to an object, as the feed brings it.
#[derive(Clone, Debug)]
pub struct Change {
    pub revision: Revision,
    /// `None`: gone.
    pub new: Option<Object>,
    /// What it was before, if it was.
    pub old: Option<Object>,
}

impl Cache {
    pub fn new(indexes: impl Into<Arc<[Index]>>) -> Cache {
        Cache {
            view: View::empty(),
            indexes: indexes.into(),
            histories: BTreeMap::new(),
            lanes: HashMap::new(),
            everything: Bells::default(),
            lives: Bells::default(),
            lives_moved: false,
            rung: Vec::new(),
            sources: BTreeMap::new(),
            floor: Revision::ZERO,
            history_events_max: HISTORY_EVENTS_MAX,
        }
    }

    /// The same cache with another bound on the history, for tests and small nodes.
    pub fn with_history(mut self, events_max: usize) -> Cache {
        self.history_events_max = events_max;
        self
    }

    /// The objects as they are now; later changes do not touch it.
    pub fn view(&self) -> View {
        self.view.clone()
    }

    pub fn revision(&self) -> Revision {
        self.view.at()
    }

    /// Up to where `resource` is known, without cloning the view.
    pub fn known(&self, resource: Resource) -> Revision {
        self.view.knows(resource)
    }

    /// The object at the latest revision, without cloning the view.
    pub fn one(&self, resource: Resource, namespace: &str, name: &str) -> Option<&Object> {
        self.view.one(resource, namespace, name)
    }

    /// Applies all changes of one revision, so that no view shows half of a commit. Revisions at or below the cache's
    /// are ignored: applying twice changes nothing.
    pub fn apply(&mut self, revision: Revision, changes: impl IntoIterator<Item = Change>) {
        if revision <= self.view.at() {
            return;
        }
        for change in changes {
            let Some(object) = change.new.as_ref().or(change.old.as_ref()) else { continue };
            let resource = object.resource();
            let old = self.view.put(resource, object.namespace(), object.name(), change.new.clone(), &self.indexes);
            if old.is_none() && change.new.is_none() {
                continue;
            }
            old.iter().for_each(Object::supersede);
            let floor = self.floor;
            let history = self.histories.entry(resource).or_insert_with(|| History::starting_after(floor));
            let place = history.push(Event { revision, old, new: change.new }, self.history_events_max);
            let Some(event) = history.at(place) else { continue };
            self.lives_moved |= !self.lives.is_empty() && event.is_of_life();
            if let Some(lanes) = self.lanes.get_mut(&resource) {
                lanes.note(event, place, history.first(), &self.indexes, &mut self.rung);
            }
        }
        self.view.advance(revision);
    }

    /// Has `bell` rung after every change of a part of `resource`, until [`Cache::unlisten`] with the same `id`.
    pub fn listen(&mut self, resource: Resource, part: &Part, id: u64, bell: Bell) {
        let at = self.view.at();
        self.lanes.entry(resource).or_default().listen(part, id, bell, at);
    }

    pub fn unlisten(&mut self, resource: Resource, part: &Part, id: u64) {
        if let Some(lanes) = self.lanes.get_mut(&resource) {
            lanes.unlisten(part, id);
        }
    }

    /// Has `bell` rung after every change of any resource.
    pub fn listen_to_everything(&mut self, id: u64, bell: Bell) {
        self.everything.hang(id, bell);
    }

    pub fn unlisten_to_everything(&mut self, id: u64) {
        self.everything.take_down(id);
    }

    /// Has `bell` rung after every change of any resource that is of life ([`Event::is_of_life`]).
    pub fn listen_to_lives(&mut self, id: u64, bell: Bell) {
        self.lives.hang(id, bell);
    }

    pub fn unlisten_to_lives(&mut self, id: u64) {
        self.lives.take_down(id);
    }

    /// The bells to be rung for the changes since the last call; one bell can stand several times.
    pub fn rung(&mut self) -> Vec<Bells> {
        if !self.everything.is_empty() {
            self.rung.push(self.everything.clone());
        }
        if std::mem::take(&mut self.lives_moved) && !self.lives.is_empty() {
            self.rung.push(self.lives.clone());
        }
        self.lanes.values_mut().for_each(Lanes::ring_again);
        std::mem::take(&mut self.rung)
    }

    /// Replaces a resource's objects by what a fresh list showed at `revision`. Differences become events, so that
    /// readers see one continuous history; what cannot be told in order is told as of `revision`.
    pub fn replace(&mut self, resource: Resource, revision: Revision, objects: Vec<Object>) {
        let mut gone: BTreeMap<Key, Object> = self
            .view
            .list(resource, "")
            .map(|object| (Key::of(object.namespace(), object.name()), object.clone()))
            .collect();
        let mut changes = Vec::new();
        for object in objects {
            let known = gone.remove(&Key::of(object.namespace(), object.name()));
            if known.as_ref().is_none_or(|known| known.revision() != object.revision()) {
                changes.push(Change { revision, old: known, new: Some(object) });
            }
        }
        changes.extend(gone.into_values().map(|old| Change { revision, old: Some(old), new: None }));
        if changes.is_empty() {
            self.view.advance(revision.max(self.view.at()));
        } else {
            let at = if revision > self.view.at() { revision } else { self.view.at().next() };
            self.apply(at, changes);
        }
    }

    /// Loads the state found at start, or after a history was lost: no events, history begins after `revision`, and all
    /// listeners are woken.
    pub fn load(&mut self, revision: Revision, objects: impl IntoIterator<Item = Object>) {
        for object in objects {
            let (resource, namespace, name) =
                (object.resource(), object.facts().namespace.clone(), object.facts().name.clone());
            self.view.put(resource, &namespace, &name, Some(object), &self.indexes);
        }
        self.view.advance(revision);
        self.floor = revision;
        self.lives_moved = true;
        self.lanes.values().for_each(|lanes| lanes.ring_all(&mut self.rung));
    }

    /// Forgets everything but its listeners, and loads anew: for a mirror whose history was lost.
    pub fn start_over(&mut self, revision: Revision, objects: impl IntoIterator<Item = Object>) {
        self.view = View::empty();
        self.histories.clear();
        self.sources.clear();
        self.lanes.values_mut().for_each(|lanes| lanes.start_over(revision));
        self.load(revision, objects);
    }

    /// Notes that nothing changed up to `revision` (a bookmark).
    pub fn advance(&mut self, revision: Revision) {
        if revision > self.view.at() {
            self.view.advance(revision);
        }
    }

    /// Up to `max` changes of `resource` after `since`, oldest first.
    pub fn since(&self, resource: Resource, since: Revision, max: usize) -> Result<Vec<Event>, Compacted> {
        match self.histories.get(&resource) {
            Some(history) => history.since(since, max),
            None if since < self.floor => Err(Compacted { at: self.floor }),
            None => Ok(Vec::new()),
        }
    }

    /// All changes of all resources after `since`, resource by resource.
    pub fn all_since(&self, since: Revision) -> Result<Vec<(Resource, Event)>, Compacted> {
        if since < self.floor {
            return Err(Compacted { at: self.floor });
        }
        let mut all = Vec::new();
        for (resource, history) in &self.histories {
            all.extend(history.since(since, usize::MAX)?.into_iter().map(|event| (*resource, event)));
        }
        Ok(all)
    }

    /// All changes of all resources after `since` that are of life, resource by resource.
    pub fn all_lives_since(&self, since: Revision) -> Result<Vec<(Resource, Event)>, Compacted> {
        if since < self.floor {
            return Err(Compacted { at: self.floor });
        }
        let mut all = Vec::new();
        for (resource, history) in &self.histories {
            all.extend(history.lives_since(since)?.map(|event| (*resource, event.clone())));
        }
        Ok(all)
    }

    /// Like [`Cache::since`] for a reader who wants a part only and listens to it: changes of other parts are mostly left
    /// out, but may be among them.
    pub fn since_in(
        &self,
        resource: Resource,
        part: &Part,
        since: Revision,
        max: usize,
    ) -> Result<Vec<Event>, Compacted> {
        if let (Part::Lives, Some(history)) = (part, self.histories.get(&resource)) {
            return Ok(history.lives_since(since)?.cloned().collect());
        }
        let lanes = self.lanes.get(&resource).zip(self.histories.get(&resource));
        match lanes.and_then(|(lanes, history)| lanes.since(part, since, max, history)) {
            Some(events) => Ok(events),
            None => self.since(resource, since, max),
        }
    }

    /// Forgets history up to `at`.
    pub fn compact(&mut self, at: Revision) {
        self.floor = self.floor.max(at.min(self.view.at()));
        for history in self.histories.values_mut() {
            history.compact(at);
        }
    }

    /// The oldest revision from which a watch of any resource can resume.
    pub fn floor(&self) -> Revision {
        self.floor
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::{Facts, json};

    const PODS: Resource = Resource("pods");

    fn pod(name: &str, revision: u64, node: &str) -> Object {
        let value = json!({"metadata": {"name": name, "namespace": "ns", "uid": name,
            "resourceVersion": (revision.to_string()), "labels": {"node": node},
            "ownerReferences": [{"uid": "owner", "controller": true}]}});
        Object::new(Facts::of(PODS, &value), value.to_json())
    }

    fn cache() -> Cache {
        let of: IndexFn = |object, out| out.extend(object.labels().get("node").map(Str::from));
        Cache::new([Index { resource: PODS, name: "node", of }]).with_history(4)
    }

    fn names<'a>(objects: impl Iterator<Item = &'a Object>) -> Vec<String> {
        objects.map(|object| object.name().to_owned()).collect()
    }

    fn put(cache: &mut Cache, object: Object) {
        let revision = object.revision();
        cache.apply(revision, [Change { revision, old: None, new: Some(object) }]);
    }

    #[test]
    fn views_stay_and_indexes_follow() {
        let mut cache = cache();
        put(&mut cache, pod("a", 1, "n1"));
        put(&mut cache, pod("b", 2, "n1"));
        let before = cache.view();
        put(&mut cache, pod("a", 3, "n2"));
        cache.apply(Revision(4), [Change { revision: Revision(4), old: Some(pod("b", 2, "n1")), new: None }]);
        assert_eq!(names(before.list(PODS, "ns")), ["a", "b"]);
        assert_eq!(names(before.by(PODS, "node", "n1")), ["a", "b"]);
        let now = cache.view();
        assert_eq!(now.at(), Revision(4));
        assert_eq!(names(now.list(PODS, "")), ["a"]);
        assert_eq!(names(now.by(PODS, "node", "n1")), Vec::<String>::new());
        assert_eq!(names(now.by(PODS, "node", "n2")), ["a"]);
        assert_eq!(names(now.owned_by("owner")), ["a"]);
        assert!(now.one(PODS, "other", "a").is_none());
    }

    #[test]
    fn a_cursor_gets_everything_or_compacted() {
        let mut cache = cache();
        for revision in 1..=6 {
            put(&mut cache, pod("a", revision, "n"));
        }
        assert!(cache.since(PODS, Revision(1), 10).is_err());
        let events = cache.since(PODS, Revision(2), 10).unwrap();
        assert_eq!(events.iter().map(|event| event.revision.0).collect::<Vec<_>>(), [3, 4, 5, 6]);
        assert_eq!(cache.since(PODS, Revision(4), 1).unwrap().len(), 1);
        assert!(cache.since(PODS, Revision(6), 1).unwrap().is_empty());
        cache.compact(Revision(5));
        assert!(cache.since(PODS, Revision(4), 1).is_err() && cache.all_since(Revision(4)).is_err());
        assert_eq!(cache.since(PODS, Revision(5), 9).unwrap().len(), 1);
        let all = cache.all_since(Revision(5)).unwrap();
        assert_eq!(all.iter().map(|(resource, event)| (*resource, event.revision.0)).collect::<Vec<_>>(), [(PODS, 6)]);
    }

    #[test]
    fn what_comes_and_goes_is_told_apart_from_what_changes() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let mut cache = cache();
        let rings = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
        let [of_pods, of_all] = rings.each_ref().map(|rings| -> Bell {
            let rings = rings.clone();
            Arc::new(move || {
                rings.fetch_add(1, Ordering::Relaxed);
            })
        });
        cache.listen(PODS, &Part::Lives, 0, of_pods);
        cache.listen_to_lives(1, of_all);
        let mut step = |object: Object, gone: bool| {
            let revision = cache.revision().next();
            let (new, old) = if gone { (None, Some(object)) } else { (Some(object), None) };
            cache.apply(revision, [Change { revision, old, new }]);
            cache.rung().iter().for_each(Bells::ring);
            let told = |events: Vec<Event>| events.iter().map(|event| event.revision.0).collect::<Vec<_>>();
            let all =
                cache.all_lives_since(Revision::ZERO).map(|all| all.into_iter().map(|(_, event)| event).collect());
            let part = cache.since_in(PODS, &Part::Lives, Revision::ZERO, 9);
            assert_eq!(all.clone().map(told), part.map(told));
            (rings.each_ref().map(|rings| rings.load(Ordering::Relaxed)), all.map(told))
        };
        assert_eq!(step(pod("a", 1, "n1"), false), ([1, 1], Ok(vec![1])));
        assert_eq!(step(pod("a", 2, "n2"), false), ([1, 1], Ok(vec![1])));
        let mut value = pod("a", 3, "n2").value();
        value.set(&["metadata", "deletionTimestamp"], "2027-01-01T00:00:00Z");
        let going = Object::new(Facts::of(PODS, &value), value.to_json());
        assert_eq!(step(going.clone(), false), ([2, 2], Ok(vec![1, 3])));
        assert_eq!(step(going, true), ([3, 3], Ok(vec![1, 3, 4])));
        // The history holds four events.
        assert_eq!(step(pod("b", 5, "n1"), false), ([4, 4], Err(Compacted { at: Revision(1) })));
        assert_eq!(cache.all_lives_since(Revision(3)).unwrap().len(), 2);
        cache.load(Revision(9), [pod("c", 9, "n1")]);
        cache.rung().iter().for_each(Bells::ring);
        assert_eq!(rings.each_ref().map(|rings| rings.load(Ordering::Relaxed)), [5, 5]);
    }

    #[test]
    fn a_lane_rings_for_its_own_and_reads_its_own() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let mut cache = cache();
        put(&mut cache, pod("a", 1, "n1"));
        let rings = [(); 5].map(|()| Arc::new(AtomicUsize::new(0)));
        let parts = [
            Part::Indexed("node", "n1".into()),
            Part::Named(Key::of("ns", "b")),
            Part::Namespace("ns".into()),
            Part::All,
            Part::Moved("node"),
        ];
        for (id, (part, rings)) in parts.iter().zip(&rings).enumerate() {
            let rings = rings.clone();
            let bell: Bell = Arc::new(move || {
                rings.fetch_add(1, Ordering::Relaxed);
            });
            cache.listen(PODS, part, id as u64, bell);
        }
        put(&mut cache, pod("b", 2, "n2"));
        put(&mut cache, pod("a", 3, "n2"));
        put(&mut cache, pod("c", 4, "n1"));
        cache.rung().iter().for_each(Bells::ring);
        assert_eq!(rings.each_ref().map(|rings| rings.load(Ordering::Relaxed)), [2, 1, 3, 1, 3]);
        let read = |cache: &Cache, part: &Part, since: u64, max| -> Vec<u64> {
            cache.since_in(PODS, part, Revision(since), max).unwrap().iter().map(|event| event.revision.0).collect()
        };
        assert_eq!(read(&cache, &parts[0], 1, 9), [3, 4]);
        assert_eq!(read(&cache, &parts[0], 3, 9), [4]);
        assert_eq!(read(&cache, &parts[0], 1, 1), [3]);
        assert_eq!(read(&cache, &parts[1], 1, 9), [2]);
        // Before the lane was opened there is the history itself.
        assert_eq!(read(&cache, &parts[0], 0, 9), [1, 2, 3, 4]);
        for revision in 5..9 {
            put(&mut cache, pod("d", revision, "n3"));
        }
        assert_eq!(read(&cache, &parts[4], 4, 9), [5], "it came, and stays where it is");
        assert!(cache.since_in(PODS, &parts[0], Revision(2), 9).is_err(), "forgotten with the history");
        assert_eq!(read(&cache, &parts[0], 4, 9), Vec::<u64>::new());
        assert_eq!(cache.since(PODS, Revision(4), 9).unwrap().len(), 4);
        cache.rung();
        cache.start_over(Revision(20), [pod("z", 20, "n9")]);
        cache.rung().iter().for_each(Bells::ring);
        let after = rings.each_ref().map(|rings| rings.load(Ordering::Relaxed));
        assert!(after[0] == 3 && after[1] == 2 && after[4] == 4, "all are woken by what was loaded: {after:?}");
        put(&mut cache, pod("b", 21, "n9"));
        assert_eq!(read(&cache, &parts[1], 20, 9), [21]);
        assert_eq!(read(&cache, &parts[0], 20, 9), Vec::<u64>::new());
        assert!(cache.since_in(PODS, &parts[1], Revision(19), 9).is_err());
        cache.unlisten(PODS, &parts[0], 0);
    }

    #[test]
    fn a_fresh_list_becomes_events() {
        let mut cache = cache();
        put(&mut cache, pod("a", 1, "n"));
        put(&mut cache, pod("b", 2, "n"));
        cache.replace(PODS, Revision(9), vec![pod("b", 2, "n"), pod("c", 8, "n")]);
        let events = cache.since(PODS, Revision(2), 9).unwrap();
        assert_eq!(events.len(), 2);
        assert_eq!(names(cache.view().list(PODS, "ns")), ["b", "c"]);
    }
}
