//! What really happened: every commit in order, with its author, as views that the checkers read; and the checkers.
//!
//! It stands beside the server: it is fed by the store's own feed and decodes by itself, so that it does not share the
//! mistakes of the server's cache.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use base::{Clock, Revision, Time};
use bytes::Bytes;
use cache::{Cache, Change, Index, View};
use meta::{Facts, Map, Object, Resource, Value};
use server::pack;
use store::{Event, Format, Range, Version, Visible};

use crate::check::{Checker, Seen};
use crate::exec::{Author, Exec, lock, sum64};

/// Past views that are kept, to judge what others see late: so many at most, and for so long. Nobody is that late: the
/// longest pause and the longest cut together are half of it.
const VIEWS_KEPT: usize = 20_000;
const VIEWS_KEPT_MS: u64 = 240_000;
const PODS: Resource = Resource("pods");
const PREFIX: &str = "/registry/";
/// Sealed in the store; nothing of the worlds depends on them.
const SECRETS: Resource = Resource("secrets");
/// Resources that change though nothing happens: heartbeats.
const HEARTBEATS: &[&str] = &["leases.coordination.k8s.io", "events"];

struct Inner {
    cache: Cache,
    past: VecDeque<(Revision, Time, View)>,
    acknowledged: Revision,
    /// When something other than a heartbeat was written last.
    stirred: Time,
    checkers: Vec<Box<dyn Checker>>,
    writes: u64,
}

pub struct Truth {
    exec: Exec,
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
    pub fn new(exec: &Exec, checkers: Vec<Box<dyn Checker>>) -> Arc<Truth> {
        // What was is kept by the views; a history of all changes would hold every text there ever was.
        let cache = Cache::new(by_node()).with_history(1);
        let past = VecDeque::from([(Revision::ZERO, exec.now(), cache.view())]);
        let (acknowledged, stirred) = (Revision::ZERO, exec.now());
        let inner = Inner { cache, past, acknowledged, stirred, checkers, writes: 0 };
        Arc::new(Truth { exec: exec.clone(), inner: Mutex::new(inner) })
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
            let objects: Vec<Object> =
                page.items.iter().filter_map(|(key, version)| object_of(key, version, None)).collect();
            let mut inner = lock(&self.inner);
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
        let known = self.view();
        let changes: Vec<Change> = events
            .iter()
            .filter_map(|event| {
                let old = place_of(&event.key)
                    .and_then(|(resource, namespace, name)| known.one(resource, namespace, name).cloned());
                let new = event.new.as_ref().and_then(|version| object_of(&event.key, version, old.as_ref()));
                (new.is_some() || old.is_some()).then_some(Change { revision, new, old })
            })
            .collect();
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
        if changes.iter().any(|change| !is_heartbeat(change)) {
            inner.stirred = self.exec.now();
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

/// Leases and events come and go; a node tells its status every minute.
fn is_heartbeat(change: &Change) -> bool {
    let Some(object) = change.new.as_ref().or(change.old.as_ref()) else { return true };
    if HEARTBEATS.contains(&object.resource().0) {
        return true;
    }
    let (Some(new), Some(old)) = (&change.new, &change.old) else { return false };
    object.resource().0 == "nodes" && is_beat(&new.text(), &old.text())
}

/// Whether two texts of a node differ in nothing but when it was heard, and in what follows from every write.
fn is_beat(new: &[u8], old: &[u8]) -> bool {
    let without = |text, left_out: &'static [&str]| Entries(text).filter(move |(key, _)| !left_out.contains(key));
    let same = |new, old, left_out| without(new, left_out).eq(without(old, left_out));
    let both = |key| (part(new, key), part(old, key));
    let ((new_metadata, old_metadata), (new_status, old_status)) = (both("metadata"), both("status"));
    same(new, old, &["metadata", "status"])
        && same(new_metadata, old_metadata, &["managedFields", "resourceVersion"])
        && same(new_status, old_status, &["conditions"])
        && conditions(new_status) == conditions(old_status)
}

/// The conditions of a status, without when the node was heard.
fn conditions(status: &[u8]) -> Value {
    let mut conditions = Value::parse(part(status, "conditions")).unwrap_or_default();
    conditions.items_mut().iter_mut().for_each(|condition| drop(condition.take(&["lastHeartbeatTime"])));
    conditions
}

/// The resource, namespace and name that a key of the store is for.
fn place_of(key: &[u8]) -> Option<(Resource, &str, &str)> {
    let rest = std::str::from_utf8(key).ok()?.strip_prefix(PREFIX)?;
    let (resource, place) = rest.split_once('/')?;
    let (namespace, name) = place.split_once('/').unwrap_or(("", place));
    Some((Resource::intern(resource), namespace, name))
}

/// The object of a stored value, with the one before it; `None` for what is no object, or sealed.
fn object_of(key: &[u8], version: &Version, before: Option<&Object>) -> Option<Object> {
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
    if let Some(before) = before.filter(|before| is_alike(&bytes, &before.text())) {
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

/// Entries of an object's parts, by the part.
type Gist = &'static [(&'static str, &'static [&'static str])];

/// What [`Facts::of`] reads.
const METADATA: &[&str] = &[
    "creationTimestamp",
    "deletionTimestamp",
    "finalizers",
    "generation",
    "labels",
    "name",
    "namespace",
    "ownerReferences",
    "uid",
];
const OF_ALL: Gist = &[("metadata", METADATA)];
/// And what the facts of pods are made of.
const OF_PODS: Gist = &[
    ("metadata", METADATA),
    ("spec", &["nodeName", "priority", "schedulerName", "schedulingGates", "tolerations"]),
    ("status", &["conditions", "containerStatuses", "phase", "podIPs"]),
];

/// Whether two texts say the same of what [`Facts::of`] reads.
fn is_alike(one: &[u8], other: &[u8]) -> bool {
    let read = |text| Entries(part(text, "metadata")).filter(|(key, _)| METADATA.contains(key));
    read(one).eq(read(other))
}

/// An object with these of its entries alone: the rest, which is most of it, is passed over.
fn gist(text: &[u8], wanted: Gist) -> Option<Value> {
    let (mut object, mut rest) = (Map::new(), text);
    while object.len() < wanted.len() {
        let Some((part, value)) = entry(rest) else { break };
        let Some((_, keys)) = wanted.iter().find(|(known, _)| *known == part) else {
            rest = value.get(value_bytes(value)?..)?;
            continue;
        };
        let (mut kept, mut entries) = (Map::new(), Entries(value));
        for (key, text) in entries.by_ref().filter(|(key, _)| keys.contains(key)) {
            kept.insert(key, Value::parse(text).ok()?);
        }
        object.insert(part, kept);
        // Behind the last entry; a part without any stands there whole.
        rest = match entries.0.first()? {
            b'}' => &entries.0[1..],
            _ => value.get(value_bytes(value)?..)?,
        };
    }
    Some(Value::Map(object))
}

/// What stands at a key of a pod's spec, without reading the rest of it.
pub fn spec_of(pod: &Object, key: &str) -> Value {
    Value::parse(part(part(&pod.text(), "spec"), key)).unwrap_or_default()
}

/// Whether the same stands at these places of two objects, each a key of a part.
pub fn has_same(one: &Object, other: &Object, places: &[[&str; 2]]) -> bool {
    let (one, other) = (one.text(), other.text());
    places.iter().all(|[of, key]| part(part(&one, of), key) == part(part(&other, of), key))
}

/// What stands at a key of a canonical object; nothing where there is none.
fn part<'a>(text: &'a [u8], key: &str) -> &'a [u8] {
    Entries(text).find(|(known, _)| *known == key).map_or(&[], |(_, text)| text)
}

/// The entries of a canonical object, as they stand in its text; what is left of it begins with what is in front of the
/// next.
struct Entries<'a>(&'a [u8]);

impl<'a> Iterator for Entries<'a> {
    type Item = (&'a str, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (key, value) = entry(self.0)?;
        let value_bytes = value_bytes(value)?;
        self.0 = value.get(value_bytes..)?;
        Some((key, &value[..value_bytes]))
    }
}

/// The key that stands behind the first byte, and the text that begins with its value.
fn entry(text: &[u8]) -> Option<(&str, &[u8])> {
    let rest = text.get(1..)?;
    let key_bytes = string_bytes(rest)?;
    Some((std::str::from_utf8(rest.get(1..key_bytes - 1)?).ok()?, rest.get(key_bytes + 1..)?))
}

/// How long the string is that a text begins with.
fn string_bytes(text: &[u8]) -> Option<usize> {
    if text.first() != Some(&b'"') {
        return None;
    }
    let mut at = 1;
    loop {
        match text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// How long the value is that a text begins with.
fn value_bytes(text: &[u8]) -> Option<usize> {
    let (mut depth, mut at) = (0u32, 0);
    loop {
        match text.get(at)? {
            b'"' => at += string_bytes(&text[at..])? - 1,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            _ if depth > 0 => {}
            // A number or a word ends where something else begins.
            _ => return text.iter().position(|byte| matches!(byte, b',' | b'}' | b']')),
        }
        at += 1;
        if depth == 0 {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beat_of_a_node_changes_nothing_but_its_times() {
        let node = |beat: &str, revision: &str, ready: &str, label: &str| {
            let condition = meta::json!({"type": "Ready", "status": ready, "lastHeartbeatTime": beat});
            let metadata = meta::json!({"name": "n", "resourceVersion": revision, "labels": {"a": label}});
            meta::json!({"metadata": metadata, "spec": {"a": "b"}, "status": {"a": "b", "conditions": [condition]}})
                .to_json()
        };
        let known = node("1", "1", "True", "x");
        assert!(is_alike(&node("2", "2", "False", "x"), &known) && !is_alike(&node("1", "1", "True", "y"), &known));
        assert!(is_beat(&node("2", "2", "True", "x"), &known));
        assert!(!is_beat(&node("2", "2", "False", "x"), &known) && !is_beat(&node("2", "2", "True", "y"), &known));
    }

    #[test]
    fn the_gist_of_a_text_is_the_objects_own() {
        let object = meta::json!({
            "data": {"metadata": {"name": "other"}, "text": "\\\"{\\", "list": [[{}], 1i64]}, "immutable": true,
            "metadata": {
                "creationTimestamp": "2027-01-01T00:00:00Z", "deletionTimestamp": "2027-01-02T00:00:00Z",
                "finalizers": ["f"], "generation": 3i64, "labels": {"a": "}\"metadata\":{"}, "name": "n",
                "namespace": "s", "uid": "u", "ownerReferences": [{"uid": "o", "kind": "K", "controller": true}],
                "managedFields": [{"manager": "x", "fieldsV1": {"f:a": {}}}],
            },
            "spec": {
                "metadata": {"name": "another"}, "none": null, "nodeName": "node", "priority": 7i64,
                "schedulerName": "who", "schedulingGates": [{"name": "g"}], "tolerations": [{"key": "k"}],
            },
            "status": {
                "phase": "Running", "podIPs": [{"ip": "10.0.0.1"}], "containerStatuses": [{"restartCount": 2i64}],
                "conditions": [
                    {"type": "Ready", "status": "True", "lastTransitionTime": "2027-01-01T00:00:01Z"},
                    {"type": "PodScheduled", "reason": "SchedulingGated"},
                ],
            },
        });
        let text = object.to_json();
        let gist = gist(&text, OF_PODS).unwrap();
        assert!(gist["metadata"].get("managedFields").is_none() && gist["spec"].get("metadata").is_none());
        let facts = |value: &Value| {
            let Facts {
                revision, namespace, name, uid, generation, created, deleting, labels, owners, finalizers, ..
            } = Facts::of(PODS, value);
            let pod = api::core::pod_facts::PodFacts::of(value);
            let own = (revision, namespace, name, uid, generation, created, deleting, owners, finalizers);
            format!("{own:?} {:?} {pod:?}", labels.get("a"))
        };
        assert_eq!(facts(&gist), facts(&object));
        let all: Vec<(&str, Option<Value>)> =
            Entries(&text).map(|(key, text)| (key, Value::parse(text).ok())).collect();
        let real: Vec<(&str, Option<Value>)> =
            object.entries().iter().map(|(key, value)| (key, Some(value.clone()))).collect();
        assert_eq!(all, real);
        for at in 0..text.len() {
            // What is cut off is not taken for whole, and nothing panics.
            Entries(&text[at..]).for_each(drop);
            let cut = Entries(&text[..at]).map(|(key, _)| key);
            assert!(cut.eq(real.iter().map(|(key, _)| *key).take(Entries(&text[..at]).count())));
        }
    }
}
