//! The tree that every generic step works on: parsed once at the door, written once into the store.
//!
//! Not `serde_json::Value`: keys and short strings are stored inline (no allocation), maps are sorted vectors, so that
//! two equal values have equal text and a pod parses in a fraction of the time.

use std::ops::Index;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

/// A string of an object; up to 24 bytes are stored inline.
pub type Str = compact_str::CompactString;

/// A JSON value. Integers that fit `i64` are [`Value::Int`]; all other numbers are [`Value::Float`].
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Value {
    #[default]
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Str),
    List(Vec<Value>),
    Map(Map),
}

/// String keys in ascending order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Map(Vec<(Str, Value)>);

static NULL: Value = Value::Null;
static EMPTY: Map = Map(Vec::new());

impl Map {
    pub const fn new() -> Map {
        Map(Vec::new())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn find(&self, key: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(k, _)| k.as_str().cmp(key))
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.find(key).ok().map(|at| &self.0[at].1)
    }

    pub fn get_mut(&mut self, key: &str) -> Option<&mut Value> {
        self.find(key).ok().map(|at| &mut self.0[at].1)
    }

    pub fn contains(&self, key: &str) -> bool {
        self.find(key).is_ok()
    }

    /// Puts `value` at `key` and returns what was there.
    pub fn insert(&mut self, key: impl Into<Str>, value: impl Into<Value>) -> Option<Value> {
        let (key, value) = (key.into(), value.into());
        if self.0.last().is_none_or(|(last, _)| *last < key) {
            self.0.push((key, value));
            return None;
        }
        match self.find(&key) {
            Ok(at) => Some(std::mem::replace(&mut self.0[at].1, value)),
            Err(at) => {
                self.0.insert(at, (key, value));
                None
            }
        }
    }

    pub fn remove(&mut self, key: &str) -> Option<Value> {
        self.find(key).ok().map(|at| self.0.remove(at).1)
    }

    /// The value at `key`, put there as `Null` if it was absent.
    pub fn entry(&mut self, key: &str) -> &mut Value {
        let at = match self.find(key) {
            Ok(at) => at,
            Err(at) => {
                self.0.insert(at, (key.into(), Value::Null));
                at
            }
        };
        &mut self.0[at].1
    }

    /// The entry at a place in key order.
    pub fn nth(&self, at: usize) -> Option<(&str, &Value)> {
        self.0.get(at).map(|(key, value)| (key.as_str(), value))
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> + DoubleEndedIterator {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&str, &mut Value)> {
        self.0.iter_mut().map(|(key, value)| (key.as_str(), value))
    }

    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.iter().map(|(key, _)| key.as_str())
    }

    pub fn retain(&mut self, mut keep: impl FnMut(&str, &mut Value) -> bool) {
        self.0.retain_mut(|(key, value)| keep(key, value));
    }
}

impl IntoIterator for Map {
    type Item = (Str, Value);
    type IntoIter = std::vec::IntoIter<(Str, Value)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<K: Into<Str>, V: Into<Value>> FromIterator<(K, V)> for Map {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Map {
        let mut map = Map::new();
        for (key, value) in entries {
            map.insert(key, value);
        }
        map
    }
}

impl Value {
    /// Reads JSON; trailing bytes are an error. Of a key that stands twice the last one counts.
    pub fn parse(text: &[u8]) -> Result<Value, serde_json::Error> {
        Self::parse_noting(text, &mut Vec::new())
    }

    /// Like [`Value::parse`]; the path of each key that stood twice is added to `duplicates` (`spec.a`, `items[0].b`).
    pub fn parse_noting(text: &[u8], duplicates: &mut Vec<String>) -> Result<Value, serde_json::Error> {
        let mut reader = serde_json::Deserializer::from_slice(text);
        let value = Self::read(&mut reader, duplicates)?;
        reader.end()?;
        Ok(value)
    }

    /// Reads a value from any serde format (the YAML reader comes in here).
    pub fn read<'de, D: Deserializer<'de>>(reader: D, duplicates: &mut Vec<String>) -> Result<Value, D::Error> {
        Seed { path: &Step::Root, duplicates }.deserialize(reader)
    }

    /// The value as compact JSON.
    pub fn to_json(&self) -> Vec<u8> {
        let mut text = Vec::with_capacity(1024);
        self.write_json(&mut text);
        text
    }

    /// Appends compact JSON to `text`.
    pub fn write_json(&self, text: &mut Vec<u8>) {
        match self {
            Value::Null => text.extend_from_slice(b"null"),
            Value::Bool(true) => text.extend_from_slice(b"true"),
            Value::Bool(false) => text.extend_from_slice(b"false"),
            Value::Int(number) => write_int(text, *number),
            Value::Float(number) => write_float(text, *number),
            Value::Str(string) => write_str(text, string),
            Value::List(items) => {
                text.push(b'[');
                for (at, item) in items.iter().enumerate() {
                    if at > 0 {
                        text.push(b',');
                    }
                    item.write_json(text);
                }
                text.push(b']');
            }
            Value::Map(map) => {
                text.push(b'{');
                for (at, (key, value)) in map.0.iter().enumerate() {
                    if at > 0 {
                        text.push(b',');
                    }
                    write_str(text, key);
                    text.push(b':');
                    value.write_json(text);
                }
                text.push(b'}');
            }
        }
    }

    pub fn map() -> Value {
        Value::Map(Map::new())
    }

    pub fn is_null(&self) -> bool {
        matches!(self, Value::Null)
    }

    /// The string, or `None` for any other type.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(string) => Some(string),
            _ => None,
        }
    }

    /// The string, or `""` for any other type: absent and empty are one for most of Kubernetes' fields.
    pub fn text(&self) -> &str {
        self.as_str().unwrap_or_default()
    }

    pub fn as_int(&self) -> Option<i64> {
        match self {
            Value::Int(number) => Some(*number),
            _ => None,
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(bool) => Some(*bool),
            _ => None,
        }
    }

    pub fn is_true(&self) -> bool {
        matches!(self, Value::Bool(true))
    }

    pub fn as_map(&self) -> Option<&Map> {
        match self {
            Value::Map(map) => Some(map),
            _ => None,
        }
    }

    /// The map, or an empty one for any other type.
    pub fn entries(&self) -> &Map {
        self.as_map().unwrap_or(&EMPTY)
    }

    /// The list's items, or none for any other type.
    pub fn items(&self) -> &[Value] {
        match self {
            Value::List(items) => items,
            _ => &[],
        }
    }

    pub fn items_mut(&mut self) -> &mut [Value] {
        match self {
            Value::List(items) => items,
            _ => &mut [],
        }
    }

    pub fn as_map_mut(&mut self) -> Option<&mut Map> {
        match self {
            Value::Map(map) => Some(map),
            _ => None,
        }
    }

    /// The member `key`; `None` when absent or when this is no map.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.as_map().and_then(|map| map.get(key))
    }

    pub fn get_mut(&mut self, key: &str) -> Option<&mut Value> {
        self.as_map_mut().and_then(|map| map.get_mut(key))
    }

    /// The value at `path`; `Null` where anything on the way is absent.
    pub fn at(&self, path: &[&str]) -> &Value {
        path.iter().fold(self, |value, key| &value[*key])
    }

    pub fn at_mut(&mut self, path: &[&str]) -> Option<&mut Value> {
        path.iter().try_fold(self, |value, key| value.get_mut(key))
    }

    /// This as a map, made one if it was anything else.
    pub fn make_map(&mut self) -> &mut Map {
        if !matches!(self, Value::Map(_)) {
            *self = Value::map();
        }
        match self {
            Value::Map(map) => map,
            _ => unreachable!("made a map above"),
        }
    }

    /// This as a list, made one if it was anything else.
    pub fn make_list(&mut self) -> &mut Vec<Value> {
        if !matches!(self, Value::List(_)) {
            *self = Value::List(Vec::new());
        }
        match self {
            Value::List(list) => list,
            _ => unreachable!("made a list above"),
        }
    }

    /// The place at `path`, with maps made on the way.
    pub fn make(&mut self, path: &[&str]) -> &mut Value {
        path.iter().fold(self, |value, key| value.make_map().entry(key))
    }

    /// Puts `value` at `path`, making maps on the way.
    pub fn set(&mut self, path: &[&str], value: impl Into<Value>) {
        *self.make(path) = value.into();
    }

    /// Takes the value at `path` out; `None` when it was not there.
    pub fn take(&mut self, path: &[&str]) -> Option<Value> {
        let (last, parents) = path.split_last()?;
        self.at_mut(parents)?.as_map_mut()?.remove(last)
    }

    /// Puts `value` at `key` of this map if nothing (or null) is there.
    pub fn default(&mut self, key: &str, value: impl Into<Value>) {
        let place = self.make_map().entry(key);
        if place.is_null() {
            *place = value.into();
        }
    }
}

impl Index<&str> for Value {
    type Output = Value;

    /// The member `key`, or `Null`.
    fn index(&self, key: &str) -> &Value {
        self.get(key).unwrap_or(&NULL)
    }
}

impl Index<usize> for Value {
    type Output = Value;

    /// The item `at`, or `Null`.
    fn index(&self, at: usize) -> &Value {
        self.items().get(at).unwrap_or(&NULL)
    }
}

macro_rules! from {
    ($($from:ty => |$value:ident| $to:expr),* $(,)?) => {
        $(impl From<$from> for Value {
            fn from($value: $from) -> Value {
                $to
            }
        })*
    };
}

from! {
    bool => |value| Value::Bool(value),
    i64 => |value| Value::Int(value),
    i32 => |value| Value::Int(value.into()),
    u32 => |value| Value::Int(value.into()),
    f64 => |value| Value::Float(value),
    &str => |value| Value::Str(value.into()),
    &String => |value| Value::Str(value.as_str().into()),
    String => |value| Value::Str(value.into()),
    Str => |value| Value::Str(value),
    &Str => |value| Value::Str(value.clone()),
    Map => |value| Value::Map(value),
    Vec<Value> => |value| Value::List(value),
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, writer: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::Null => writer.serialize_unit(),
            Value::Bool(bool) => writer.serialize_bool(*bool),
            Value::Int(number) => writer.serialize_i64(*number),
            Value::Float(number) => writer.serialize_f64(*number),
            Value::Str(string) => writer.serialize_str(string),
            Value::List(items) => {
                let mut list = writer.serialize_seq(Some(items.len()))?;
                for item in items {
                    list.serialize_element(item)?;
                }
                list.end()
            }
            Value::Map(map) => {
                let mut writer = writer.serialize_map(Some(map.len()))?;
                for (key, value) in map.iter() {
                    writer.serialize_entry(key, value)?;
                }
                writer.end()
            }
        }
    }
}

impl<'de> serde::Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Value, D::Error> {
        Value::read(reader, &mut Vec::new())
    }
}

fn write_int(text: &mut Vec<u8>, number: i64) {
    use std::io::Write;
    write!(text, "{number}").expect("writing to memory does not fail");
}

/// As Go's encoding/json writes floats: whole numbers without a fraction, very large and small ones with an exponent.
fn write_float(text: &mut Vec<u8>, number: f64) {
    use std::io::Write;
    let size = number.abs();
    let written = if !number.is_finite() {
        write!(text, "null")
    } else if size != 0.0 && !(1e-6..1e21).contains(&size) {
        let exponent = format!("{number:e}");
        let (digits, power) = exponent.split_once('e').unwrap_or((&exponent, "0"));
        match power.strip_prefix('-') {
            Some(power) => write!(text, "{digits}e-{power:0>2}"),
            None => write!(text, "{digits}e+{power:0>2}"),
        }
    } else {
        write!(text, "{number}")
    };
    written.expect("writing to memory does not fail");
}

/// Appends `string` as a JSON string. Runs without escapes, nearly all, are copied at once.
pub fn write_str(text: &mut Vec<u8>, string: &str) {
    text.push(b'"');
    let bytes = string.as_bytes();
    let mut done = 0;
    for (at, byte) in bytes.iter().enumerate() {
        let escape: &[u8] = match byte {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            0..0x20 => b"",
            _ => continue,
        };
        text.extend_from_slice(&bytes[done..at]);
        done = at + 1;
        if escape.is_empty() {
            const HEX: &[u8; 16] = b"0123456789abcdef";
            text.extend_from_slice(b"\\u00");
            text.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        } else {
            text.extend_from_slice(escape);
        }
    }
    text.extend_from_slice(&bytes[done..]);
    text.push(b'"');
}

/// The value as JSON for people: two spaces of indentation.
pub fn pretty(value: &Value) -> Vec<u8> {
    serde_json::to_vec_pretty(value).expect("a value has string keys only, so it can be written")
}

/// Where the reader is, for the paths of duplicate keys; lives on the stack and costs nothing until it is printed.
enum Step<'a> {
    Root,
    Key(&'a Step<'a>, &'a str),
    Item(&'a Step<'a>, usize),
}

impl Step<'_> {
    fn print(&self, out: &mut String) {
        match self {
            Step::Root => {}
            Step::Key(parent, key) => {
                parent.print(out);
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(key);
            }
            Step::Item(parent, at) => {
                parent.print(out);
                out.push_str(&format!("[{at}]"));
            }
        }
    }
}

struct Seed<'a> {
    path: &'a Step<'a>,
    duplicates: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }

    fn visit_bool<E>(self, bool: bool) -> Result<Value, E> {
        Ok(Value::Bool(bool))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Int(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(i64::try_from(number).map_or(Value::Float(number as f64), Value::Int))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(Value::Float(number))
    }

    fn visit_str<E>(self, string: &str) -> Result<Value, E> {
        Ok(Value::Str(string.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            let path = Step::Item(self.path, items.len());
            match seq.next_element_seed(Seed { path: &path, duplicates: self.duplicates })? {
                Some(item) => items.push(item),
                None => return Ok(Value::List(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map(Vec::with_capacity(entries.size_hint().unwrap_or(0).min(64)));
        while let Some(key) = entries.next_key::<Key>()? {
            let Key(key) = key;
            let path = Step::Key(self.path, &key);
            let value = entries.next_value_seed(Seed { path: &path, duplicates: self.duplicates })?;
            if let Some(first) = map.insert(key.clone(), value) {
                if let Some(second) = map.get_mut(&key) {
                    merge_repeated(first, second);
                }
                let mut text = String::new();
                path.print(&mut text);
                self.duplicates.push(text);
            }
        }
        Ok(Value::Map(map))
    }
}

/// A member that stands twice: the later one counts, but of two objects both do, as Go's decoder fills one struct twice.
fn merge_repeated(first: Value, second: &mut Value) {
    let (Value::Map(first), Value::Map(second)) = (first, second) else { return };
    for (key, value) in first.0 {
        match second.get_mut(&key) {
            Some(later) => merge_repeated(value, later),
            None => {
                second.insert(key, value);
            }
        }
    }
}

/// A key as text, whatever scalar a YAML writer used for it.
struct Key(Str);

impl<'de> serde::Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Key, D::Error> {
        struct KeyVisitor;
        impl Visitor<'_> for KeyVisitor {
            type Value = Key;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string key")
            }

            fn visit_str<E>(self, key: &str) -> Result<Key, E> {
                Ok(Key(key.into()))
            }
        }
        reader.deserialize_str(KeyVisitor)
    }
}

/// Builds a [`Value`] from JSON-like syntax: `json!({"a": [1, "b", x]})`; `x` is any expression that converts.
#[macro_export]
macro_rules! json {
    (null) => { $crate::Value::Null };
    ([ $($item:tt),* $(,)? ]) => { $crate::Value::List(vec![ $($crate::json!($item)),* ]) };
    ({ $($key:literal : $value:tt),* $(,)? }) => {{
        #[allow(unused_mut)]
        let mut map = $crate::Map::new();
        $( map.insert($key, $crate::json!($value)); )*
        $crate::Value::Map(map)
    }};
    ($value:expr) => { $crate::Value::from($value) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(input: &str, output: &str) {
        let value = Value::parse(input.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(value.to_json()).unwrap(), output);
        assert_eq!(Value::parse(output.as_bytes()).unwrap().to_json(), output.as_bytes());
    }

    #[test]
    fn text_is_canonical() {
        check(r#"{"b":1,"a":[true,null,"x\n\u0001\"\\é"]}"#, r#"{"a":[true,null,"x\n\u0001\"\\é"],"b":1}"#);
        check("[1.0, 1.5, 1e3, -0.25, 1e30, 1e-9]", "[1,1.5,1000,-0.25,1e+30,1e-09]");
        check(r#"{"a":1,"a":2}"#, r#"{"a":2}"#);
    }

    #[test]
    fn duplicates_are_noted_with_their_path() {
        let mut duplicates = Vec::new();
        Value::parse_noting(br#"{"a":{"b":1,"b":2},"l":[{"x":1},{"x":1,"x":2}]}"#, &mut duplicates).unwrap();
        assert_eq!(duplicates, ["a.b", "l[1].x"]);
    }

    #[test]
    fn bad_text_is_an_error() {
        for text in ["", "{", "{\"a\":}", "[1,]", "1 2", "nul", "{1:2}", &"[".repeat(100_000)] {
            assert!(Value::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn paths_read_and_make() {
        let mut value = json!({"a": {"b": 1}});
        assert_eq!(value["a"]["b"].as_int(), Some(1));
        assert!(value["x"]["y"][3].is_null());
        value.set(&["c", "d"], "e");
        assert_eq!(value.at(&["c", "d"]).text(), "e");
        assert_eq!(value.take(&["a", "b"]), Some(Value::Int(1)));
        assert_eq!(value.take(&["a", "b"]), None);
    }
}
