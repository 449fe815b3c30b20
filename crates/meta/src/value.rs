//! The tree that every generic step works on: parsed once at the door, written once into the store.
//!
//! Not `serde_json::Value`: keys and short strings are stored inline (no allocation), maps are sorted vectors, so that
//! two equal values have equal text and a pod parses in a fraction of the time. Maps and lists are one allocation each and
//! shared by their clones, so a change of an object copies only what changes.

mod read;
mod texts;

use std::ops::Index;

use ecow::EcoVec;
use serde::de::{DeserializeSeed, Deserializer};
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

/// A string of an object; up to 24 bytes are stored inline.
pub type Str = compact_str::CompactString;

/// The items of a list, shared by clones until one of them is changed.
pub type List = EcoVec<Value>;

/// A JSON value. Integers that fit `i64` are [`Value::Int`]; all other numbers are [`Value::Float`].
#[derive(Clone, Debug, Default)]
pub enum Value {
    #[default]
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Str),
    List(List),
    Map(Map),
}

type Row = (Str, Value);

/// String keys in ascending order. Clones share their entries until one of them is changed, so that a copy of a whole
/// object costs nothing, and a change of it only what lies on the way to the change.
#[derive(Clone, Default)]
pub struct Map(EcoVec<Row>);

/// An object is hundreds of values: their size is the time that it takes to make, compare and drop one.
const _: () = assert!(size_of::<Value>() == 24);

static NULL: Value = Value::Null;
static EMPTY: Map = Map::new();

impl Map {
    pub const fn new() -> Map {
        Map(EcoVec::new())
    }

    fn rows(&self) -> &[Row] {
        &self.0
    }

    pub fn len(&self) -> usize {
        self.rows().len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows().is_empty()
    }

    fn find(&self, key: &str) -> Result<usize, usize> {
        find(self.rows(), key)
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        place(self.rows(), key).map(|at| &self.rows()[at].1)
    }

    pub fn get_mut(&mut self, key: &str) -> Option<&mut Value> {
        place(self.rows(), key).map(|at| &mut self.0.make_mut()[at].1)
    }

    pub fn contains(&self, key: &str) -> bool {
        place(self.rows(), key).is_some()
    }

    /// Puts `value` at `key` and returns what was there.
    pub fn insert(&mut self, key: impl Into<Str>, value: impl Into<Value>) -> Option<Value> {
        insert(&mut self.0, key.into(), value.into())
    }

    pub fn remove(&mut self, key: &str) -> Option<Value> {
        place(self.rows(), key).map(|at| self.0.remove(at).1)
    }

    /// The value at `key`, put there as `Null` if it was absent.
    pub fn entry(&mut self, key: &str) -> &mut Value {
        let at = self.find(key).unwrap_or_else(|at| {
            self.0.insert(at, (key.into(), Value::Null));
            at
        });
        &mut self.0.make_mut()[at].1
    }

    /// The entry at a place in key order.
    pub fn nth(&self, at: usize) -> Option<(&str, &Value)> {
        self.rows().get(at).map(|(key, value)| (key.as_str(), value))
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> + DoubleEndedIterator {
        self.rows().iter().map(|(key, value)| (key.as_str(), value))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&str, &mut Value)> {
        self.0.make_mut().iter_mut().map(|(key, value)| (key.as_str(), value))
    }

    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.rows().iter().map(|(key, _)| key.as_str())
    }

    pub fn retain(&mut self, mut keep: impl FnMut(&str, &mut Value) -> bool) {
        self.0.retain(|(key, value)| keep(key, value));
    }

    /// Whether both are clones of one map that neither has changed since; then they are equal.
    pub fn is_shared_with(&self, other: &Map) -> bool {
        is_same(&self.0, &other.0)
    }
}

/// Whether both are the same allocation, whole.
fn is_same<T>(one: &EcoVec<T>, other: &EcoVec<T>) -> bool {
    !one.is_empty() && one.as_ptr() == other.as_ptr() && one.len() == other.len()
}

/// Where a key is. Among few, most differ in their length already, which costs less to see than their order.
fn place(rows: &[Row], key: &str) -> Option<usize> {
    const FEW: usize = 12;
    if rows.len() > FEW {
        return find(rows, key).ok();
    }
    rows.iter().position(|(known, _)| base::same(known.as_bytes(), key.as_bytes()))
}

/// Where a key is, or belongs.
fn find(rows: &[Row], key: &str) -> Result<usize, usize> {
    rows.binary_search_by(|(known, _)| base::order(known.as_bytes(), key.as_bytes()))
}

fn insert(rows: &mut EcoVec<Row>, key: Str, value: Value) -> Option<Value> {
    if rows.last().is_none_or(|(last, _)| base::order(last.as_bytes(), key.as_bytes()).is_lt()) {
        rows.push((key, value));
        return None;
    }
    match find(rows, &key) {
        Ok(at) => Some(std::mem::replace(&mut rows.make_mut()[at].1, value)),
        Err(at) => {
            rows.insert(at, (key, value));
            None
        }
    }
}

impl PartialEq for Map {
    fn eq(&self, other: &Map) -> bool {
        self.is_shared_with(other) || self.rows() == other.rows()
    }
}

impl std::fmt::Debug for Map {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl IntoIterator for Map {
    type Item = Row;
    type IntoIter = ecow::vec::IntoIter<Row>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<K: Into<Str>, V: Into<Value>> FromIterator<(K, V)> for Map {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Map {
        let entries = entries.into_iter();
        let mut rows = EcoVec::with_capacity(entries.size_hint().0);
        for (key, value) in entries {
            insert(&mut rows, key.into(), value.into());
        }
        Map(rows)
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Value) -> bool {
        match (self, other) {
            (Value::Null, Value::Null) => true,
            (Value::Bool(one), Value::Bool(other)) => one == other,
            (Value::Int(one), Value::Int(other)) => one == other,
            (Value::Float(one), Value::Float(other)) => one == other,
            (Value::Str(one), Value::Str(other)) => base::same(one.as_bytes(), other.as_bytes()),
            (Value::List(one), Value::List(other)) => is_same(one, other) || one == other,
            (Value::Map(one), Value::Map(other)) => one == other,
            _ => false,
        }
    }
}

impl Value {
    /// Reads JSON; trailing bytes are an error. Of a key that stands twice the last one counts.
    pub fn parse(text: &[u8]) -> Result<Value, serde_json::Error> {
        Self::parse_noting(text, &mut Vec::new())
    }

    /// Like [`Value::parse`]; the path of each key that stood twice is added to `duplicates` (`spec.a`, `items[0].b`).
    pub fn parse_noting(text: &[u8], duplicates: &mut Vec<String>) -> Result<Value, serde_json::Error> {
        Self::parse_like(text, &NULL, duplicates)
    }

    /// The same; what is equal in `like` and stands at the same place is shared with it instead of being made.
    pub fn parse_like(text: &[u8], like: &Value, duplicates: &mut Vec<String>) -> Result<Value, serde_json::Error> {
        let mut reader = serde_json::Deserializer::from_slice(text);
        let value = read::Seed::begin(like, &mut read::Heap::new(duplicates)).deserialize(&mut reader)?;
        reader.end()?;
        Ok(value.unwrap_or_else(|| like.clone()))
    }

    /// Reads a value from any serde format (the YAML reader comes in here).
    pub fn read<'de, D: Deserializer<'de>>(reader: D, duplicates: &mut Vec<String>) -> Result<Value, D::Error> {
        let value = read::Seed::begin(&NULL, &mut read::Heap::new(duplicates)).deserialize(reader)?;
        Ok(value.unwrap_or_default())
    }

    /// The value as compact JSON.
    pub fn to_json(&self) -> Vec<u8> {
        let mut text = Vec::with_capacity(1024);
        self.write_json(&mut text);
        text
    }

    /// Appends compact JSON to `text`. True where a number in it is a [`Value::Float`]: one that is whole is read back as an
    /// integer.
    pub fn write_json(&self, text: &mut Vec<u8>) -> bool {
        match self {
            Value::Null => text.extend_from_slice(b"null"),
            Value::Bool(true) => text.extend_from_slice(b"true"),
            Value::Bool(false) => text.extend_from_slice(b"false"),
            Value::Int(number) => text.extend_from_slice(itoa::Buffer::new().format(*number).as_bytes()),
            Value::Float(number) => write_float(text, *number),
            Value::Str(string) => write_str(text, string),
            Value::List(items) => return self.write_many(text, items.as_ptr().addr(), |text| write_items(text, items)),
            Value::Map(map) => return self.write_many(text, map.0.as_ptr().addr(), |text| write_members(text, map)),
        }
        matches!(self, Value::Float(_))
    }

    fn write_many(&self, text: &mut Vec<u8>, address: usize, write: impl FnOnce(&mut Vec<u8>) -> bool) -> bool {
        if let Some(floats) = texts::append(self, address, text) {
            return floats;
        }
        let start = text.len();
        let floats = write(text);
        texts::note(self, address, &text[start..], floats);
        floats
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
            Value::List(items) => items.make_mut(),
            _ => &mut [],
        }
    }

    pub fn as_map_mut(&mut self) -> Option<&mut Map> {
        match self {
            Value::Map(map) => Some(map),
            _ => None,
        }
    }

    /// Whether both are clones of one map or list that neither has changed since; then they are equal.
    pub fn is_shared_with(&self, other: &Value) -> bool {
        match (self, other) {
            (Value::Map(one), Value::Map(other)) => one.is_shared_with(other),
            (Value::List(one), Value::List(other)) => is_same(one, other),
            _ => false,
        }
    }

    /// Whether both are one word or number, or clones of one map or list: equal, as far as that is seen at a look.
    pub fn is_same_as(&self, other: &Value) -> bool {
        match (self, other) {
            (Value::Str(one), Value::Str(other)) => base::same(one.as_bytes(), other.as_bytes()),
            (Value::Int(one), Value::Int(other)) => one == other,
            (Value::Bool(one), Value::Bool(other)) => one == other,
            _ => self.is_shared_with(other),
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
    pub fn make_list(&mut self) -> &mut List {
        if !matches!(self, Value::List(_)) {
            *self = Value::List(List::new());
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

    /// Puts `value` at `path`, making maps on the way. Where it stands already nothing is touched, so that what was shared
    /// stays so.
    pub fn set(&mut self, path: &[&str], value: impl Into<Value>) {
        let value = value.into();
        let known = path.iter().try_fold(&*self, |place, key| place.get(key));
        if known != Some(&value) {
            *self.make(path) = value;
        }
    }

    /// Takes the value at `path` out; `None` when it was not there.
    pub fn take(&mut self, path: &[&str]) -> Option<Value> {
        let (last, parents) = path.split_last()?;
        self.at_mut(parents)?.as_map_mut()?.remove(last)
    }

    /// Puts `value` at `key` of this map if nothing (or null) is there.
    pub fn default(&mut self, key: &str, value: impl Into<Value>) {
        if self[key].is_null() {
            *self.make_map().entry(key) = value.into();
        }
    }

    /// Shares with `old` whatever is equal in both and stands at the same place; returns whether that is all. Who compares
    /// the two later sees at one look what has not changed, and both together take little more room than one.
    pub fn graft(&mut self, old: &Value) -> bool {
        if self.is_same_as(old) {
            return true;
        }
        let mut same;
        match (&mut *self, old) {
            (Value::Map(map), Value::Map(before)) => {
                same = map.len() == before.len();
                let mut known = before.iter().peekable();
                for (key, value) in map.iter_mut() {
                    let is_it = |(found, _): &(&str, &Value)| base::same(found.as_bytes(), key.as_bytes());
                    let mut old = known.next_if(is_it);
                    while old.is_none() && known.next_if(|(earlier, _)| *earlier < key).is_some() {
                        old = known.next_if(is_it);
                    }
                    same &= old.is_some_and(|(_, old)| value.graft(old));
                }
            }
            (Value::List(items), Value::List(before)) => {
                same = items.len() == before.len();
                for (item, old) in items.make_mut().iter_mut().zip(before) {
                    same &= item.graft(old);
                }
            }
            (new, old) => return new == old,
        }
        if same {
            self.clone_from(old);
        }
        same
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
    List => |value| Value::List(value),
    Vec<Value> => |value| Value::List(value.into()),
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

fn write_items(text: &mut Vec<u8>, items: &[Value]) -> bool {
    let mut floats = false;
    text.push(b'[');
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            text.push(b',');
        }
        floats |= item.write_json(text);
    }
    text.push(b']');
    floats
}

fn write_members(text: &mut Vec<u8>, map: &Map) -> bool {
    let mut floats = false;
    text.push(b'{');
    for (at, (key, value)) in map.iter().enumerate() {
        if at > 0 {
            text.push(b',');
        }
        write_str(text, key);
        text.push(b':');
        floats |= value.write_json(text);
    }
    text.push(b'}');
    floats
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
    let mut rest = string.as_bytes();
    text.reserve(rest.len() + 2);
    text.push(b'"');
    while let Some(at) = escaped(rest) {
        text.extend_from_slice(&rest[..at]);
        write_escape(text, rest[at]);
        rest = &rest[at + 1..];
    }
    text.extend_from_slice(rest);
    text.push(b'"');
}

#[cold]
fn write_escape(text: &mut Vec<u8>, byte: u8) {
    let escape: &[u8] = match byte {
        b'"' => b"\\\"",
        b'\\' => b"\\\\",
        b'\n' => b"\\n",
        b'\r' => b"\\r",
        b'\t' => b"\\t",
        0x08 => b"\\b",
        0x0c => b"\\f",
        _ => {
            const HEX: &[u8; 16] = b"0123456789abcdef";
            text.extend_from_slice(b"\\u00");
            &[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]
        }
    };
    text.extend_from_slice(escape);
}

/// The first place whose byte cannot stand in a JSON string as it is. Eight bytes are looked at together, the last ones
/// with some of those before them once more.
#[inline]
fn escaped(bytes: &[u8]) -> Option<usize> {
    const WORD: usize = size_of::<u64>();
    const ONES: u64 = u64::MAX / 255;
    const HIGHS: u64 = ONES << 7;
    // The high bit of each byte that is zero; a false one can only stand above a true one.
    let zeros = |word: u64| word.wrapping_sub(ONES) & !word & HIGHS;
    let first = |word: &[u8; WORD]| {
        let word = u64::from_le_bytes(*word);
        let low = word.wrapping_sub(ONES * 0x20) & !word & HIGHS;
        let found = low | zeros(word ^ (ONES * u64::from(b'"'))) | zeros(word ^ (ONES * u64::from(b'\\')));
        (found != 0).then(|| found.trailing_zeros() as usize / 8)
    };
    let must = |byte: &u8| *byte < 0x20 || *byte == b'"' || *byte == b'\\';
    let Some(last) = bytes.last_chunk() else { return bytes.iter().position(must) };
    let (words, rest) = bytes.as_chunks();
    if let Some((at, found)) = words.iter().enumerate().find_map(|(at, word)| Some((at, first(word)?))) {
        return Some(at * WORD + found);
    }
    let at = if rest.is_empty() { None } else { first(last) };
    at.map(|found| bytes.len() - WORD + found)
}

/// The value as JSON for people: two spaces of indentation.
pub fn pretty(value: &Value) -> Vec<u8> {
    serde_json::to_vec_pretty(value).expect("a value has string keys only, so it can be written")
}

/// Builds a [`Value`] from JSON-like syntax: `json!({"a": [1, "b", x]})`; `x` is any expression that converts.
#[macro_export]
macro_rules! json {
    (null) => { $crate::Value::Null };
    ([ $($item:tt),* $(,)? ]) => { $crate::Value::List($crate::List::from([ $($crate::json!($item)),* ])) };
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
    fn escapes_are_found_wherever_they_stand() {
        for byte in 0..128_u8 {
            for at in 0..20 {
                let mut string = "x\u{e9}".repeat(7);
                string.truncate(18);
                string.insert(if string.is_char_boundary(at.min(18)) { at.min(18) } else { 0 }, char::from(byte));
                let value = Value::from(string.clone());
                assert_eq!(Value::parse(&value.to_json()).unwrap(), value);
                assert_eq!(value.to_json(), serde_json::to_vec(&string).unwrap());
            }
        }
    }

    #[test]
    fn duplicates_are_noted_with_their_path() {
        let mut duplicates = Vec::new();
        Value::parse_noting(br#"{"a":{"b":1,"b":2},"l":[{"x":1},{"x":1,"x":2}]}"#, &mut duplicates).unwrap();
        assert_eq!(duplicates, ["a.b", "l[1].x"]);
    }

    #[test]
    fn what_is_read_again_is_shared() {
        let like =
            json!({"a": {"b": [{"c": 1}, {"d": "x"}], "e": {}}, "f": {"g": 1.5, "h": (Value::Null)}, "i": "y", "j": 2});
        for text in [
            r#"{"a":{"b":[{"c":1},{"d":"x"}],"e":{}},"f":{"g":1.5,"h":null},"i":"y","j":2}"#,
            r#"{"a":{"b":[{"c":1},{"d":"z"}],"e":{}},"i":"y"}"#,
            r#"{"j":2,"i":"y","f":{"h":null,"g":1.5},"a":{"e":{},"b":[{"c":1},{"d":"x"}]}}"#,
            r#"{"a":{"b":[{"c":1}],"b":[{"c":1},{"d":"x"},null]},"a":{"e":{}},"z":null}"#,
            r#"{"a":{"b":[{"c":1},{"d":"x"},{"c":1}]},"f":[],"i":{},"j":2.0}"#,
            r#"[{"c":1}]"#,
            "2",
            "null",
        ] {
            let (mut noted, mut duplicates) = (Vec::new(), Vec::new());
            let value = Value::parse_like(text.as_bytes(), &like, &mut noted).unwrap();
            let plain = Value::parse_noting(text.as_bytes(), &mut duplicates).unwrap();
            assert_eq!((format!("{value:?}"), noted), (format!("{plain:?}"), duplicates), "{text}");
        }
        let parsed = |text: &str| Value::parse_like(text.as_bytes(), &like, &mut Vec::new()).unwrap();
        let same = parsed(r#"{"a":{"b":[{"c":1},{"d":"x"}],"e":{}},"f":{"h":null,"g":1.5},"i":"y","j":2}"#);
        assert!(same["a"].is_shared_with(&like["a"]) && same == like);
        let other = parsed(r#"{"i":"n","a":{"e":{"f":1},"b":[{"c":1},{"d":"x"}]}}"#);
        assert!(other["a"]["b"].is_shared_with(&like["a"]["b"]));
        assert!(Value::parse_like(br#"{"a":{"b":[{"c":1},"#, &like, &mut Vec::new()).is_err());
    }

    #[test]
    fn bad_text_is_an_error() {
        for text in ["", "{", "{\"a\":}", "[1,]", "1 2", "nul", "{1:2}", &"[".repeat(100_000)] {
            assert!(Value::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn clones_share_until_one_is_changed() {
        let one = json!({"a": {"b": 1}, "c": {"d": 2}});
        let mut other = one.clone();
        assert!(other.is_shared_with(&one) && other == one);
        other.set(&["a", "b"], 3);
        assert_eq!((one.at(&["a", "b"]).as_int(), other.at(&["a", "b"]).as_int()), (Some(1), Some(3)));
        assert!(!other["a"].is_shared_with(&one["a"]) && other["c"].is_shared_with(&one["c"]));
        assert_ne!(other, one);
        let mut third = one.clone();
        assert_eq!(third.take(&["x", "y"]), None);
        assert!(third.is_shared_with(&one), "what is not there is taken without a copy");
        assert_eq!(Map::new().iter_mut().count() + third.entries().clone().into_iter().count(), 2);
    }

    #[test]
    fn what_is_equal_is_shared() {
        let old = json!({"a": {"b": [{"c": 1}, {"d": 2}]}, "e": {"f": "x"}, "g": {}});
        let parsed = |text: &str| Value::parse(text.as_bytes()).unwrap();
        let mut same = parsed(r#"{"a":{"b":[{"c":1},{"d":2}]},"e":{"f":"x"},"g":{}}"#);
        assert!(same.graft(&old) && same.is_shared_with(&old));
        let mut new = parsed(r#"{"0":{},"a":{"b":[{"c":1},{"d":3},{}]},"e":{"f":"x"},"g":[]}"#);
        let text = new.to_json();
        assert!(!new.graft(&old) && new.to_json() == text);
        assert!(new["e"].is_shared_with(&old["e"]) && new["a"]["b"][0].is_shared_with(&old["a"]["b"][0]));
        assert!(!new["a"]["b"][1].is_shared_with(&old["a"]["b"][1]));
        new.set(&["e", "f"], "x");
        new["e"].clone().default("f", "y");
        assert!(new["e"].is_shared_with(&old["e"]), "nothing was changed");
        new.set(&["z"], Value::Null);
        assert_eq!(new.get("z"), Some(&Value::Null));
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
