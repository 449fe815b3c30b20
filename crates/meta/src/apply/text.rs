//! `FieldsV1`: the JSON form of a set. `f:` starts a field, `k:` a key, `v:` a value, `i:` a place; `.` stands for
//! the path itself where something lies below it too.

use super::set::{Entry, Set, Step};
use crate::value::{Map, Str, Value};

/// A text that is no `FieldsV1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldsError(pub String);

impl std::fmt::Display for FieldsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for FieldsError {}

impl Set {
    /// Reads `FieldsV1`.
    ///
    /// # Errors
    /// When it is none.
    pub fn from_fields(fields: &Value) -> Result<Set, FieldsError> {
        let Value::Map(map) = fields else {
            return Err(FieldsError(format!("fieldsV1 must be an object, not {fields:?}")));
        };
        let mut set = Set::new();
        for (key, value) in map.iter() {
            if key == "." {
                continue;
            }
            let mut below = Set::from_fields(value)?;
            let member = is_member(value);
            let step = read_step(key)?;
            // Text order and step order differ only among keys and values.
            match set.0.last() {
                Some(last) if last.step.compare(&step).is_ge() => set.put(step, member, std::mem::take(&mut below)),
                _ => set.0.push(Entry { step, member, below }),
            }
        }
        Ok(set)
    }

    /// As `FieldsV1`.
    pub fn to_fields(&self) -> Value {
        let entries = self.0.iter().map(|entry| {
            let mut below = entry.below.to_fields();
            if entry.member && !entry.below.is_empty() {
                below.make_map().insert(".", Value::map());
            }
            (write_step(&entry.step), below)
        });
        Value::Map(entries.collect::<Map>())
    }
}

/// Whether the set that `fields` is the text of, as [`Set::to_fields`] writes it, has a path in common with `set`.
pub(super) fn touches(fields: &Value, set: &Set) -> bool {
    set.0.iter().any(|entry| {
        let below = fields.get(&write_step(&entry.step));
        below.is_some_and(|below| entry.member && is_member(below) || touches(below, &entry.below))
    })
}

/// Whether the set that `fields` is the text of has all paths of `set`.
pub(super) fn covers(fields: &Value, set: &Set) -> bool {
    set.0.iter().all(|entry| {
        let below = fields.get(&write_step(&entry.step));
        below.is_some_and(|below| (!entry.member || is_member(below)) && covers(below, &entry.below))
    })
}

/// Whether `fields` is a text that [`Set::to_fields`] writes.
pub(super) fn is_canonical(fields: &Value) -> bool {
    fn check(fields: &Value, below: bool) -> bool {
        let step = |key: &str| key.starts_with("f:") || read_step(key).is_ok_and(|step| write_step(&step) == key);
        let Value::Map(map) = fields else { return false };
        map.iter().all(|(key, value)| match key {
            // A dot says something only where something else lies below the step, too.
            "." => below && map.len() > 1 && *value == Value::map(),
            key => step(key) && check(value, true),
        })
    }
    check(fields, false)
}

/// Adds the paths of `set` to the set that `fields` is the text of.
pub(super) fn add(fields: &mut Value, set: &Set) {
    for entry in &set.0 {
        let key = write_step(&entry.step);
        let known = fields.get(&key);
        let member = entry.member || known.is_some_and(is_member);
        let place = fields.make_map().entry(&key);
        if place.is_null() {
            *place = Value::map();
        }
        add(place, &entry.below);
        say_member(place, member);
    }
}

/// Takes the paths of `set` out of the set that `fields` is the text of.
pub(super) fn remove(fields: &mut Value, set: &Set) {
    for entry in &set.0 {
        let key = write_step(&entry.step);
        let Some(place) = fields.get_mut(&key) else { continue };
        let member = is_member(place) && !entry.member;
        remove(place, &entry.below);
        if !say_member(place, member) && !member {
            fields.make_map().remove(&key);
        }
    }
}

/// Puts a dot where a step is a path itself and has others below it, and nowhere else. Returns whether it has others.
fn say_member(below: &mut Value, member: bool) -> bool {
    let map = below.make_map();
    map.remove(".");
    let has_others = !map.is_empty();
    if has_others && member {
        map.insert(".", Value::map());
    }
    has_others
}

/// Whether a step with this below it is a path of the set itself.
fn is_member(below: &Value) -> bool {
    below.entries().is_empty() || below.entries().contains(".")
}

fn read_step(text: &str) -> Result<Step, FieldsError> {
    let wrong = |why: &dyn std::fmt::Display| FieldsError(format!("{text:?} in fieldsV1: {why}"));
    match text.get(..2) {
        Some("f:") => Ok(Step::Field(text[2..].into())),
        Some("v:") => Value::parse(&text.as_bytes()[2..]).map(Step::Value).map_err(|error| wrong(&error)),
        Some("i:") => text[2..].parse().map(Step::Index).map_err(|error| wrong(&error)),
        Some("k:") => match Value::parse(&text.as_bytes()[2..]) {
            Ok(Value::Map(map)) => Ok(Step::Key(map.into_iter().collect())),
            Ok(_) => Err(wrong(&"a key must be an object")),
            Err(error) => Err(wrong(&error)),
        },
        _ => Err(wrong(&"unknown path element type")),
    }
}

fn write_step(step: &Step) -> Str {
    fn with(start: &str, rest: &[u8]) -> Str {
        let mut text = Str::with_capacity(start.len() + rest.len());
        text.push_str(start);
        text.push_str(&String::from_utf8_lossy(rest));
        text
    }
    match step {
        Step::Field(name) => with("f:", name.as_bytes()),
        Step::Key(keys) => {
            let mut text = Vec::with_capacity(64);
            text.push(b'{');
            for (at, (name, value)) in keys.iter().enumerate() {
                if at > 0 {
                    text.push(b',');
                }
                crate::value::write_str(&mut text, name);
                text.push(b':');
                value.write_json(&mut text);
            }
            text.push(b'}');
            with("k:", &text)
        }
        Step::Value(value) => with("v:", &value.to_json()),
        Step::Index(at) => compact_str::format_compact!("i:{at}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_survive_their_text() {
        let text = r#"{"f:metadata":{"f:labels":{".":{},"f:a":{}},"f:finalizers":{".":{},"v:\"x\"":{}}},"f:spec":{"f:ports":{"k:{\"containerPort\":80,\"protocol\":\"TCP\"}":{".":{},"f:containerPort":{}},"k:{\"containerPort\":443,\"protocol\":\"TCP\"}":{".":{}}},"f:x":{"i:1":{}}}}"#;
        let value = Value::parse(text.as_bytes()).unwrap();
        let set = Set::from_fields(&value).unwrap();
        assert_eq!(Set::from_fields(&set.to_fields()).unwrap(), set);
        assert_eq!(
            set.paths(),
            [
                ".metadata.finalizers",
                ".metadata.finalizers[=\"x\"]",
                ".metadata.labels",
                ".metadata.labels.a",
                ".spec.ports[containerPort=80,protocol=\"TCP\"]",
                ".spec.ports[containerPort=80,protocol=\"TCP\"].containerPort",
                ".spec.ports[containerPort=443,protocol=\"TCP\"]",
                ".spec.x[1]",
            ]
        );
    }

    #[test]
    fn sets_are_sets() {
        let set = |text: &str| Set::from_fields(&Value::parse(text.as_bytes()).unwrap()).unwrap();
        let a = set(r#"{"f:a":{".":{},"f:b":{}},"f:c":{}}"#);
        let b = set(r#"{"f:a":{}}"#);
        assert_eq!(a.clone().difference(&b), set(r#"{"f:a":{"f:b":{}},"f:c":{}}"#));
        assert_eq!(a.clone().without(&b), set(r#"{"f:c":{}}"#));
        assert_eq!(a.intersection(&b), b);
        assert_eq!(a.clone().union(set(r#"{"f:b":{}}"#)), set(r#"{"f:a":{".":{},"f:b":{}},"f:b":{},"f:c":{}}"#));
        assert!(a.clone().difference(&a).is_empty());
    }

    #[test]
    fn texts_are_compared_and_changed_as_the_sets_are() {
        let parts = ["f:a", "f:b", "k:{\"a\":1}", "k:{\"a\":\"x\",\"b\":2}", "v:1", "."];
        let mut rng = base::Rng::new(12);
        let mut random = || {
            let mut value = Value::map();
            for _ in 0..1 + rng.below(4) {
                let path: Vec<&str> = (0..1 + rng.below(3)).map(|_| parts[rng.below(6) as usize]).collect();
                value.set(&path, Value::map());
            }
            Set::from_fields(&value).unwrap()
        };
        let mut seen = [0; 4];
        for _ in 0..5_000 {
            let (a, b) = (random(), random());
            let (touched, covered) = (touches(&a.to_fields(), &b), covers(&a.to_fields(), &b));
            let (mut sum, mut rest) = (a.to_fields(), a.to_fields());
            assert!(is_canonical(&sum), "{a:?}");
            add(&mut sum, &b);
            assert_eq!(sum, a.clone().union(b.clone()).to_fields(), "{a:?} {b:?}");
            remove(&mut rest, &b);
            assert_eq!(rest, a.clone().difference(&b).to_fields(), "{a:?} {b:?}");
            assert_eq!(touched, !a.intersection(&b).is_empty(), "{a:?} {b:?}");
            assert_eq!(covered, b.clone().difference(&a).is_empty(), "{a:?} {b:?}");
            seen[usize::from(touched) * 2 + usize::from(covered)] += 1;
        }
        assert!(seen[0] > 0 && seen[2] > 0 && seen[3] > 0, "{seen:?}");
    }

    #[test]
    fn any_text_is_read_or_refused() {
        let mut rng = base::Rng::new(11);
        let parts = ["f:a", "k:{\"a\":1}", "v:1", "i:2", ".", "x", "k:[", "", "f:", "v:", "k:{}", "é"];
        for _ in 0..5_000 {
            let mut value = Value::map();
            for _ in 0..rng.below(6) {
                let path: Vec<&str> = (0..1 + rng.below(3)).map(|_| parts[rng.below(12) as usize]).collect();
                value.set(&path, Value::map());
            }
            if let Ok(set) = Set::from_fields(&value) {
                let text = set.to_fields();
                assert_eq!(is_canonical(&value), value == text, "{value:?}");
                assert_eq!(Set::from_fields(&text), Ok(set), "{text:?}");
            }
        }
    }
}
