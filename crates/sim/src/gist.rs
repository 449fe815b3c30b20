//! What is read of the text of an object without reading all of it: of tens of thousands of writes in an hour, most change
//! a time in a text of a thousand bytes.
//!
//! It takes canonical text, as the server stores it, and finds its way without the server's reader.

use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;
use meta::{Map, Object, Value};

/// Entries of an object's parts, by the part.
pub type Gist = &'static [(&'static str, &'static [&'static str])];

/// What [`meta::Facts::of`] reads.
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
pub const OF_ALL: Gist = &[("metadata", METADATA)];
/// And what the facts of pods are made of.
pub const OF_PODS: Gist = &[
    ("metadata", METADATA),
    ("spec", &["nodeName", "priority", "schedulerName", "schedulingGates", "tolerations"]),
    ("status", &["conditions", "containerStatuses", "phase", "podIPs"]),
];
/// Bytes of two texts that are compared together.
const RUN: usize = 64;

/// Where [`METADATA`] stands in the newest text of each object, by the object's key in the store.
#[derive(Default)]
pub struct Places(HashMap<Bytes, Vec<Range<usize>>>);

impl Places {
    /// Whether the newest text of an object says the same of what [`meta::Facts::of`] reads as the one before, which was the
    /// newest when this was asked last.
    pub fn is_alike(&mut self, key: &Bytes, new: &[u8], old: &[u8]) -> bool {
        let known = self.0.get(key).and_then(|places| is_alike_but_for_digits(new, old, places));
        known.unwrap_or_else(|| {
            self.0.insert(key.clone(), places(new));
            is_alike(new, old)
        })
    }

    /// The object has no newest text any more.
    pub fn forget(&mut self, key: &Bytes) {
        self.0.remove(key);
    }
}

fn is_metadata(key: &[u8]) -> bool {
    METADATA.iter().any(|known| known.as_bytes() == key)
}

/// Whether two texts say the same of [`METADATA`].
fn is_alike(one: &[u8], other: &[u8]) -> bool {
    let read = |text| Entries(part(text, "metadata")).filter(|(key, _)| is_metadata(key));
    read(one).eq(read(other))
}

/// The same of texts that differ in digits alone, of which the one has at `places` what the other has there; `None` for
/// others. Such texts are built alike, whatever the digits are of.
fn is_alike_but_for_digits(one: &[u8], other: &[u8], places: &[Range<usize>]) -> Option<bool> {
    if one.len() != other.len() {
        return None;
    }
    let mut alike = true;
    for (run, (one, other)) in
        one.chunks(RUN).zip(other.chunks(RUN)).enumerate().filter(|(_, (one, other))| one != other)
    {
        for (at, (a, b)) in one.iter().zip(other).enumerate().filter(|(_, (a, b))| a != b) {
            if !a.is_ascii_digit() || !b.is_ascii_digit() {
                return None;
            }
            alike &= !places.iter().any(|place| place.contains(&(run * RUN + at)));
        }
    }
    Some(alike)
}

/// Where the values of [`METADATA`] are in a text; those that follow each other are one place.
fn places(text: &[u8]) -> Vec<Range<usize>> {
    let (mut places, mut adjoins) = (Vec::<Range<usize>>::new(), false);
    for (key, value) in Entries(part(text, "metadata")) {
        let start = value.as_ptr().addr() - text.as_ptr().addr();
        let place = start..start + value.len();
        match (is_metadata(key), places.last_mut().filter(|_| adjoins)) {
            (true, Some(last)) => last.end = place.end,
            (true, None) => places.push(place),
            (false, _) => {}
        }
        adjoins = is_metadata(key);
    }
    places
}

/// Whether two texts of a node differ in nothing but when it was heard, and in what follows from every write.
pub fn is_beat(new: &[u8], old: &[u8]) -> bool {
    let without = |text, left_out: &'static [&str]| {
        Entries(text).filter(move |(key, _)| !left_out.iter().any(|one| one.as_bytes() == *key))
    };
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

/// An object with these of its entries alone: the rest, which is most of it, is passed over.
pub fn gist(text: &[u8], wanted: Gist) -> Option<Value> {
    let (mut object, mut rest) = (Map::new(), text);
    while object.len() < wanted.len() {
        let Some((part, value)) = entry(rest) else { break };
        let Some((part, keys)) = wanted.iter().find(|(known, _)| known.as_bytes() == part) else {
            rest = value.get(value_bytes(value)?..)?;
            continue;
        };
        let (mut kept, mut entries) = (Map::new(), Entries(value));
        for (key, text) in entries.by_ref() {
            if let Some(key) = keys.iter().find(|known| known.as_bytes() == key) {
                kept.insert(*key, Value::parse(text).ok()?);
            }
        }
        object.insert(*part, kept);
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
    Entries(text).find(|(known, _)| *known == key.as_bytes()).map_or(&[], |(_, text)| text)
}

/// The entries of a canonical object, as they stand in its text, keys without their quotes; what is left of it begins with
/// what is in front of the next.
struct Entries<'a>(&'a [u8]);

impl<'a> Iterator for Entries<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (key, value) = entry(self.0)?;
        let value_bytes = value_bytes(value)?;
        self.0 = value.get(value_bytes..)?;
        Some((key, &value[..value_bytes]))
    }
}

/// The key that stands behind the first byte, and the text that begins with its value.
fn entry(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = text.get(1..)?;
    let key_bytes = string_bytes(rest)?;
    Some((rest.get(1..key_bytes - 1)?, rest.get(key_bytes + 1..)?))
}

/// How long the string is that a text begins with.
fn string_bytes(text: &[u8]) -> Option<usize> {
    if text.first() != Some(&b'"') {
        return None;
    }
    let mut at = 1;
    loop {
        at += memchr::memchr2(b'"', b'\\', text.get(at..)?)?;
        if text[at] == b'"' {
            return Some(at + 1);
        }
        at += 2;
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
    use meta::Facts;

    use super::*;
    use crate::user::PODS;

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
    fn texts_that_differ_in_digits_are_told_apart_by_where_they_are() {
        let text = |name: &str, label: &str, data: &str| {
            let managed = meta::json!([{"time": data}]);
            let labels = Value::Map([(label, "a")].into_iter().collect());
            let metadata = meta::json!({"labels": labels, "managedFields": managed, "name": name, "uid": "7"});
            meta::json!({"data": {"metadata": {"name": data}}, "metadata": metadata, "spec": {"uid": data}}).to_json()
        };
        let (key, mut known) = (Bytes::from_static(b"key"), Places::default());
        let mut old = text("n1", "l1", "1");
        let versions =
            [("n1", "l1", "2"), ("n2", "l1", "2"), ("n2", "l2", "2"), ("n2", "l2", "10"), ("n2", "l2", "11")];
        for (name, label, data) in
            versions.into_iter().chain([("n2", "l2", "x1"), ("n2", "l3", "x2"), ("n30", "l3", "2")])
        {
            let new = text(name, label, data);
            assert_eq!(known.is_alike(&key, &new, &old), is_alike(&new, &old), "{name} {label} {data}");
            old = new;
        }
        known.forget(&key);
        assert!(known.0.is_empty());
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
        let all: Vec<(&[u8], Option<Value>)> =
            Entries(&text).map(|(key, text)| (key, Value::parse(text).ok())).collect();
        let real: Vec<(&[u8], Option<Value>)> =
            object.entries().iter().map(|(key, value)| (key.as_bytes(), Some(value.clone()))).collect();
        assert_eq!(all, real);
        for at in 0..text.len() {
            // What is cut off is not taken for whole, and nothing panics.
            Entries(&text[at..]).for_each(drop);
            let cut = Entries(&text[..at]).map(|(key, _)| key);
            assert!(cut.eq(real.iter().map(|(key, _)| *key).take(Entries(&text[..at]).count())));
        }
    }
}
