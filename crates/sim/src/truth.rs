//! What really happened: every commit in order, with its author, as views that the checkers read; and the checkers.
//!
//! It stands beside the server: it is fed by the store's own feed and decodes by itself, so that it does not share the
//! mistakes of the server's cache.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use base::{Clock, Revision, Time};
use bytes::Bytes;
use cache::{Cache, Change, Index, View};
use meta::{Facts, Object, Resource, Value};
use server::pack;
use store::{Event, Format, Range, Version, Visible};

use crate::check::{Checker, Seen};
use crate::exec::{Author, Exec, lock, sum64};
use crate::gist::{OF_ALL, OF_PODS, Places, gist, is_beat};

/// Past views that are kept, to judge what others see late: so many at most, and for so long. Nobody is that late: the
/// longest pause and the longest cut together are half of it.
const VIEWS_KEPT: usize = 20_000;
const VIEWS_KEPT_MS: u64 = 240_000;
const PODS: Resource = Resource("pods");
const PREFIX: &str = "/registry/";
/// Sealed in the store; nothing of the worlds depends on them.
const SECRETS: Resource = Resource("secrets");
const LEASES: Resource = Resource("leases.coordination.k8s.io");
const EVENTS: Resource = Resource("events");
/// Why an event tells of a pod for which there is no node: again as often as one is looked for.
const UNPLACED: &str = "FailedScheduling";
const NODES: Resource = Resource("nodes");

struct Inner {
    cache: Cache,
    places: Places,
    past: VecDeque<(Revision, Time, View)>,
    acknowledged: Revision,
    /// When something other than a heartbeat was written last.
    stirred: Time,
    /// How many commits were more than heartbeats, and the last of them.
    stirs: u64,
    last_stir: String,
    checkers: Vec<Box<dyn Checker>>,
    writes: u64,
}

pub struct Truth {
    exec: Exec,
    /// Somebody may wait for ever, and be told of it again and again.
    crowded: bool,
    inner: Mutex<Inner>,
}

/// What checkers may look at besides what they are shown.
pub struct Past<'a> {
    inner: &'a VecDeque<(Revision, Time, View)>,
    pub now: Time,
}

impl Past<'_> {
    /// The views that someone may have decided on within the last `ms`, oldest first.
    pub fn lately(&self, ms: u64) -> impl Iterator<Item = &View> {
        let from = Time(self.now.0 - i64::try_from(ms).unwrap_or(0) * 1000);
        let first = self.inner.partition_point(|(_, at, _)| *at < from).saturating_sub(1);
        self.inner.range(first..).map(|(_, _, view)| view)
    }

    /// When `revision` became visible; `None` when it is too long ago.
    pub fn time_of(&self, revision: Revision) -> Option<Time> {
        let index = self.inner.binary_search_by_key(&revision, |(at, _, _)| *at).ok()?;
        self.inner.get(index).map(|(_, at, _)| *at)
    }

    /// The state at `revision`; `None` when it is too long ago.
    pub fn at(&self, revision: Revision) -> Option<&View> {
        let after = self.inner.partition_point(|(at, _, _)| *at <= revision);
        after.checked_sub(1).map(|index| &self.inner[index].2)
    }
}

impl Truth {
    /// `crowded`: somebody may wait for ever, which is told of again and again.
    pub fn new(exec: &Exec, checkers: Vec<Box<dyn Checker>>, crowded: bool) -> Arc<Truth> {
        // What was is kept by the views; a history of all changes would hold every text there ever was.
        let cache = Cache::new(by_node()).with_history(1);
        let past = VecDeque::from([(Revision::ZERO, exec.now(), cache.view())]);
        let (acknowledged, stirred) = (Revision::ZERO, exec.now());
        let (stirs, last_stir) = (0, String::new());
        let inner = Inner {
            cache,
            places: Places::default(),
            past,
            acknowledged,
            stirred,
            stirs,
            last_stir,
            checkers,
            writes: 0,
        };
        Arc::new(Truth { exec: exec.clone(), crowded, inner: Mutex::new(inner) })
    }

    pub fn view(&self) -> View {
        lock(&self.inner).cache.view()
    }

    /// How long nothing but heartbeats was written, in milliseconds.
    pub fn quiet_ms(&self) -> u64 {
        self.exec.now().ms_since(lock(&self.inner).stirred)
    }

    pub fn writes(&self) -> u64 {
        lock(&self.inner).writes
    }

    /// How many commits were more than heartbeats.
    pub fn stirs(&self) -> u64 {
        lock(&self.inner).stirs
    }

    /// The last commit that was more than a heartbeat, in words.
    pub fn last_stir(&self) -> String {
        lock(&self.inner).last_stir.clone()
    }

    /// A write up to this revision was answered.
    pub fn acknowledged(&self, revision: Revision) {
        let mut inner = lock(&self.inner);
        inner.acknowledged = inner.acknowledged.max(revision);
    }

    /// The server opened its store anew; what it found beyond what was known was written without an answer.
    pub fn recovered(&self, visible: &Visible) {
        let found = visible.revision();
        let (known, acknowledged) = {
            let inner = lock(&self.inner);
            (inner.cache.revision(), inner.acknowledged)
        };
        if known == Revision::ZERO {
            let page = visible.newest().read(&Range::all(), None, 0);
            let mut inner = lock(&self.inner);
            let places = &mut inner.places;
            let objects: Vec<Object> =
                page.items.iter().filter_map(|(key, version)| object_of(key, version, None, places)).collect();
            inner.cache.load(found, objects);
            let view = inner.cache.view();
            inner.past.clear();
            inner.past.push_back((found, self.exec.now(), view));
            drop(inner);
            return;
        }
        if let Ok(more) = visible.since(known.min(found), usize::MAX) {
            let missed: Vec<Event> = more.events.into_iter().filter(|event| event.revision > known).collect();
            self.committed(&missed, &BTreeMap::new());
        }
        let stored = objects(visible);
        self.show(&Seen::Recovered { found, acknowledged, stored: &stored });
    }

    /// Takes in what a batch published.
    pub fn committed(&self, events: &[Event], authors: &BTreeMap<Revision, Arc<Author>>) {
        let nobody = Arc::new(Author { who: "server".into(), ..Author::default() });
        let mut rest = events;
        while let Some(first) = rest.first() {
            let revision = first.revision;
            let many = rest.iter().take_while(|event| event.revision == revision).count();
            let (now, later) = rest.split_at(many);
            rest = later;
            for event in now.iter().filter(|event| event.new.is_none() && !authors.contains_key(&revision)) {
                if let Some(lease) = event.old.as_ref().and_then(|old| old.lease) {
                    self.show(&Seen::Expired { lease, key: &event.key });
                }
            }
            let mut side: Vec<&Event> = now.iter().filter(|event| !event.key.starts_with(PREFIX.as_bytes())).collect();
            side.sort_unstable_by_key(|event| &event.key);
            for event in side {
                let value = event.new.as_ref().map(|version| version.value.bytes());
                let lease = event.new.as_ref().and_then(|version| version.lease);
                self.show(&Seen::Side { key: &event.key, revision, value: value.as_deref(), lease });
            }
            for event in now {
                let form = event.new.as_ref().map_or(Format::FIRST, |version| pack::form_of(&version.value.bytes()));
                if form > Format::FIRST {
                    self.show(&Seen::Stored { key: &event.key, revision, form });
                }
            }
            self.commit(revision, now, authors.get(&revision).unwrap_or(&nobody));
        }
    }

    fn commit(&self, revision: Revision, events: &[Event], author: &Author) {
        let mut inner = lock(&self.inner);
        let (known, places) = (inner.cache.view(), &mut inner.places);
        let changes: Vec<Change> = events
            .iter()
            .filter_map(|event| {
                let old = place_of(&event.key)
                    .and_then(|(resource, namespace, name)| known.one(resource, namespace, name).cloned());
                if event.new.is_none() {
                    places.forget(&event.key);
                }
                let new = event.new.as_ref().and_then(|version| object_of(&event.key, version, old.as_ref(), places));
                (new.is_some() || old.is_some()).then_some(Change { revision, new, old })
            })
            .collect();
        drop(inner);
        for change in &changes {
            let (sign, object) = match (&change.new, &change.old) {
                (Some(new), None) => ("+", new),
                (Some(new), Some(_)) => ("~", new),
                (None, Some(old)) => ("-", old),
                (None, None) => continue,
            };
            let sum = sum64(&object.text());
            let name = cache::Key::of(object.namespace(), object.name()).0;
            self.exec.note(format!("r{revision} {sign} {} {name} {sum:016x} by {author}", object.resource()));
        }
        let mut inner = lock(&self.inner);
        inner.writes += 1;
        let before = inner.cache.view();
        inner.cache.apply(revision, changes.iter().cloned());
        inner.cache.advance(revision);
        let after = inner.cache.view();
        if let Some(change) = changes.iter().find(|change| !is_heartbeat(change, self.crowded)) {
            let of = change.new.as_ref().or(change.old.as_ref());
            let of = of.map(|one| format!("{} {}/{}", one.resource(), one.namespace(), one.name())).unwrap_or_default();
            (inner.stirred, inner.stirs) = (self.exec.now(), inner.stirs + 1);
            inner.last_stir = format!("of {of} at revision {revision} by {author}");
        }
        let now = self.exec.now();
        inner.past.push_back((revision, now, after.clone()));
        // The last view before that time is what was seen when it came.
        while inner.past.len() > VIEWS_KEPT
            || inner.past.get(1).is_some_and(|past| now.ms_since(past.1) > VIEWS_KEPT_MS)
        {
            inner.past.pop_front();
        }
        drop(inner);
        self.show(&Seen::Commit { revision, changes: &changes, author, before: &before, after: &after });
    }

    /// Shows something to all checkers; a finding ends the world.
    pub fn show(&self, seen: &Seen<'_>) {
        let mut inner = lock(&self.inner);
        let Inner { checkers, past, .. } = &mut *inner;
        let past = Past { inner: past, now: self.exec.now() };
        for checker in checkers {
            if let Err(why) = checker.see(seen, &past) {
                self.exec.fail(format!("{}: {why}", checker.name()));
            }
        }
    }
}

/// The only index that is asked for here, and by users and schedulers: what is not asked for is not kept.
pub fn by_node() -> Vec<Index> {
    server::indexes().into_iter().filter(|index| index.name == "node").collect()
}

/// Every object that a store shows, with its revision.
pub fn objects(visible: &Visible) -> BTreeMap<Bytes, Revision> {
    let page = visible.newest().read(&Range::prefix(PREFIX.as_bytes().to_vec()), None, 0);
    page.items.into_iter().map(|(key, version)| (key, version.mod_revision)).collect()
}

/// Leases are renewed, events go when their time is over, and a node tells its status every minute. Of who waits without end the
/// same event tells again.
fn is_heartbeat(change: &Change, crowded: bool) -> bool {
    match (&change.new, &change.old) {
        (Some(new), Some(_)) if new.resource() == EVENTS => crowded || new.value()["reason"].text() == UNPLACED,
        (Some(new), _) if new.resource() == LEASES => true,
        (None, Some(old)) => old.resource() == LEASES || old.resource() == EVENTS,
        (Some(new), Some(old)) => new.resource() == NODES && is_beat(&new.text(), &old.text()),
        _ => false,
    }
}

/// The resource, namespace and name that a key of the store is for.
fn place_of(key: &[u8]) -> Option<(Resource, &str, &str)> {
    let rest = std::str::from_utf8(key).ok()?.strip_prefix(PREFIX)?;
    let (resource, place) = rest.split_once('/')?;
    let (namespace, name) = place.split_once('/').unwrap_or(("", place));
    Some((Resource::intern(resource), namespace, name))
}

/// The object of a stored value, with the one before it; `None` for what is no object, or sealed.
fn object_of(key: &Bytes, version: &Version, before: Option<&Object>, places: &mut Places) -> Option<Object> {
    let (resource, ..) = place_of(key)?;
    if resource == SECRETS {
        return None;
    }
    let stored = version.value.bytes();
    let mut bytes = stored.clone();
    if pack::form_of(&stored) > Format::FIRST {
        let mut value = Value::parse(&pack::unpack(&stored, pack::NEWEST).ok()?).ok()?;
        value.set(&["metadata", "resourceVersion"], version.mod_revision.to_string());
        bytes = value.to_json().into();
    }
    // The facts of most changes are those of before; those of pods lie in their spec and status, too.
    if let Some(before) = before.filter(|before| places.is_alike(key, &bytes, &before.text())) {
        let mut facts = Facts { revision: version.mod_revision, ..before.facts().clone() };
        if resource == PODS {
            facts.own = api::core::pod_facts::facts(&gist(&bytes, &OF_PODS[1..])?);
        }
        return Some(Object::new(facts, bytes));
    }
    let value = gist(&bytes, if resource == PODS { OF_PODS } else { OF_ALL })?;
    let mut facts = Facts::of(resource, &value);
    facts.revision = version.mod_revision;
    if resource == PODS {
        facts.own = api::core::pod_facts::facts(&value);
    }
    // Whoever asks for more than facts, which few do, has the text read once more.
    Some(Object::new(facts, bytes))
}
