//! Reading a [`Value`] from any serde format, with another at hand that it is likely to equal: what is the same is shared
//! with that one and not made.

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::{Map, NULL, Row, Str, Value, find, place};

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

/// Where members and items gather while their number is not known, so that each map and list is allocated once. Those of
/// what is not finished yet lie below those of what is in it.
pub(super) struct Heap<'a> {
    rows: Vec<Row>,
    items: Vec<Value>,
    duplicates: &'a mut Vec<String>,
}

impl<'a> Heap<'a> {
    pub(super) fn new(duplicates: &'a mut Vec<String>) -> Heap<'a> {
        Heap { rows: Vec::new(), items: Vec::new(), duplicates }
    }
}

/// Reads one value; `None` when it is the same as `like`.
pub(super) struct Seed<'a, 'h> {
    path: &'a Step<'a>,
    like: &'a Value,
    heap: &'a mut Heap<'h>,
}

impl<'a, 'h> Seed<'a, 'h> {
    pub(super) fn begin(like: &'a Value, heap: &'a mut Heap<'h>) -> Seed<'a, 'h> {
        Seed { path: &Step::Root, like, heap }
    }

    fn scalar(&self, value: Value) -> Option<Value> {
        (*self.like != value).then_some(value)
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_, '_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Option<Value>, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_, '_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Option<Value>, E> {
        Ok(self.scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Option<Value>, E> {
        Ok(self.scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, reader: D) -> Result<Option<Value>, D::Error> {
        reader.deserialize_any(self)
    }

    fn visit_bool<E>(self, bool: bool) -> Result<Option<Value>, E> {
        Ok(self.scalar(Value::Bool(bool)))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Option<Value>, E> {
        Ok(self.scalar(Value::Int(number)))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Option<Value>, E> {
        match i64::try_from(number) {
            Ok(number) => Ok(self.scalar(Value::Int(number))),
            Err(_) => Ok(Some(Value::Float(number as f64))),
        }
    }

    fn visit_f64<E>(self, number: f64) -> Result<Option<Value>, E> {
        // Two that are equal may be written differently (0 and -0).
        Ok(Some(Value::Float(number)))
    }

    fn visit_str<E>(self, string: &str) -> Result<Option<Value>, E> {
        Ok((self.like.as_str() != Some(string)).then(|| Value::Str(string.into())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Option<Value>, A::Error> {
        let Seed { path, like, heap } = self;
        let (start, known) = (heap.items.len(), like.items());
        // So many items are those of `known`; the first that is none makes a list of them.
        let (mut same, mut made) = (0, false);
        loop {
            let at = if made { heap.items.len() - start } else { same };
            let (path, old) = (Step::Item(path, at), known.get(at).unwrap_or(&NULL));
            match seq.next_element_seed(Seed { path: &path, like: old, heap })? {
                None => break,
                Some(None) if !made && at < known.len() => same += 1,
                Some(item) => {
                    if !made {
                        heap.items.extend_from_slice(&known[..same]);
                        made = true;
                    }
                    heap.items.push(item.unwrap_or_else(|| old.clone()));
                }
            }
        }
        Ok(match (made, like) {
            (false, Value::List(_)) if same == known.len() => None,
            (false, _) => Some(Value::List(known[..same].iter().cloned().collect())),
            (true, _) => Some(Value::List(heap.items.drain(start..).collect())),
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Option<Value>, A::Error> {
        let Seed { path, like, heap } = self;
        let (start, known) = (heap.rows.len(), like.entries().rows());
        // As with items. Members in another order are made, and shared one by one.
        let (mut same, mut made) = (0, false);
        loop {
            let expected = if made { None } else { known.get(same) };
            let Some(key) = entries.next_key_seed(Expected(expected.map(|(key, _)| key.as_str())))? else { break };
            let (key, old) = match (key, expected) {
                (None, Some((key, old))) => {
                    let path = Step::Key(path, key);
                    let value = entries.next_value_seed(Seed { path: &path, like: old, heap })?;
                    match value {
                        None => same += 1,
                        Some(value) => {
                            heap.rows.extend_from_slice(&known[..same]);
                            heap.rows.push((key.clone(), value));
                            made = true;
                        }
                    }
                    continue;
                }
                (key, _) => {
                    let key = key.unwrap_or_default();
                    let old = place(known, &key).map_or(&NULL, |at| &known[at].1);
                    (key, old)
                }
            };
            if !made {
                heap.rows.extend_from_slice(&known[..same]);
                made = true;
            }
            let path = Step::Key(path, &key);
            let value = entries.next_value_seed(Seed { path: &path, like: old, heap })?;
            let value = value.unwrap_or_else(|| old.clone());
            let rows = &mut heap.rows;
            let place = match rows[start..].last() {
                Some((last, _)) if *last >= key => find(&rows[start..], &key),
                _ => Err(rows.len() - start),
            };
            match place {
                Err(at) => rows.insert(start + at, (key, value)),
                Ok(at) => {
                    let mut text = String::new();
                    path.print(&mut text);
                    heap.duplicates.push(text);
                    let first = std::mem::replace(&mut rows[start + at].1, value);
                    merge_repeated(first, &mut rows[start + at].1);
                }
            }
        }
        Ok(match (made, like) {
            (false, Value::Map(_)) if same == known.len() => None,
            (false, _) => Some(Value::Map(Map(known[..same].into()))),
            (true, _) => Some(Value::Map(Map(heap.rows.drain(start..).collect()))),
        })
    }
}

/// A member that stands twice: the later one counts, but of two objects both do, as Go's decoder fills one struct twice.
fn merge_repeated(first: Value, second: &mut Value) {
    let (Value::Map(first), Value::Map(second)) = (first, second) else { return };
    for (key, value) in first {
        match second.get_mut(&key) {
            Some(later) => merge_repeated(value, later),
            None => {
                second.insert(key, value);
            }
        }
    }
}

/// A key as text, whatever scalar a YAML writer used for it; `None` when it is the one that was expected.
struct Expected<'a>(Option<&'a str>);

impl<'de> DeserializeSeed<'de> for Expected<'_> {
    type Value = Option<Str>;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Option<Str>, D::Error> {
        reader.deserialize_str(self)
    }
}

impl Visitor<'_> for Expected<'_> {
    type Value = Option<Str>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a string key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Option<Str>, E> {
        Ok((self.0 != Some(key)).then(|| key.into()))
    }
}
