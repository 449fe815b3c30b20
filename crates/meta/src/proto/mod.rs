//! Protobuf: the wire form of built-in kinds, generic over the schema. Bytes are those that Kubernetes itself writes:
//! value fields always, pointers when set, maps by key, every member in the order of its number.
//!
//! Not here: custom resources, which have no protobuf form.
//!
//! Invariants: any bytes give a value or an error; encoding what was decoded gives the same object.

mod read;
mod tape;
mod write;

use std::fmt;

use crate::schema::TypeRef;

pub use read::{decode, decode_message, split_envelope};
pub use write::{Encoder, FIELDS_MAX, LIST_END, encode, envelope, item_head, list_head, watch_frame};

/// Stands before every object.
pub const MAGIC: &[u8; 4] = b"k8s\0";
/// Deepest nesting of messages that is read.
const MAX_DEPTH: usize = 100;

/// Why bytes are no such message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProtoError {
    /// The first bytes are not [`MAGIC`].
    NoMagic,
    /// A length or number reaches beyond the end, or is too large.
    Truncated,
    /// A field with a wire type it cannot have.
    WireType(u32),
    TooDeep,
    /// The JSON in a free-form field.
    Json(String),
    /// A time outside years 1 to 9999.
    Time,
    /// The type has no protobuf form.
    NoForm,
}

impl fmt::Display for ProtoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProtoError::NoMagic => {
                f.write_str("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")
            }
            ProtoError::Truncated => f.write_str("protobuf: unexpected end of message"),
            ProtoError::WireType(number) => write!(f, "protobuf: wrong wire type for field {number}"),
            ProtoError::TooDeep => write!(f, "protobuf: more than {MAX_DEPTH} messages deep"),
            ProtoError::Json(error) => write!(f, "protobuf: embedded JSON: {error}"),
            ProtoError::Time => f.write_str("protobuf: time out of range"),
            ProtoError::NoForm => f.write_str("object does not implement the protobuf marshalling interface"),
        }
    }
}

impl std::error::Error for ProtoError {}

/// Whether a type can be written as protobuf at all.
pub fn has_form(of: TypeRef<'_>) -> bool {
    !of.schema.is_custom() && of.as_struct().is_some_and(|found| found.numbered().len() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::normalise::normalise;
    use crate::schema::Schema;
    use crate::value::Value;

    const TABLE: &str = "package io.k8s.api.core.v1
Pod /v1
 apiVersion - str o
 kind - str o
 name 1 str o
 host 2.2.3 *str o
 path 2.1 str o
 flags 3 []bool o
 labels 4 {}str o
 data 5 {}bytes o
 extra 6 {}w[]str o
 cpu 7 quantity o
 port 8 intstr o
 when 9 *time o
 micro 10 *microtime o
 ratio 11 *f64 o
 next 12 *Pod o
 all 13 []Pod o
 raw 14 raw o
 fields 15 *fieldsv1 o
 wait 16 *duration o
 count 17 i32 r
";

    fn round_trip(text: &str) {
        let schema = Schema::parse(TABLE).unwrap();
        let of = schema.kind("", "v1", "Pod").unwrap();
        let mut value = Value::parse(text.as_bytes()).unwrap();
        normalise(&mut value, of, &mut Vec::new()).unwrap();
        let bytes = encode(&value, of).unwrap();
        let mut back = decode(&bytes, of).unwrap();
        normalise(&mut back, of, &mut Vec::new()).unwrap();
        assert_eq!(back, value);
        assert_eq!(encode(&back, of).unwrap(), bytes);
    }

    #[test]
    fn every_shape_survives() {
        round_trip(r#"{"apiVersion":"v1","kind":"Pod"}"#);
        round_trip(
            r#"{"apiVersion":"v1","kind":"Pod","name":"a","host":"h","path":"/x","flags":[true,false],
            "labels":{"a":"","b":"c"},"data":{"k":"AAEC"},"extra":{"s":["1","2"],"t":[]},"cpu":"100m","port":"http",
            "when":"2026-11-22T18:20:22Z","micro":"2026-11-22T18:20:22.123456Z","ratio":-1.5,"count":-7,"wait":"1m0s",
            "next":{"name":"b","all":[{"name":"c"},{"cpu":"1Gi"}]},"raw":{"any":[1,2.5,null]},"fields":{"f:a":{}}}"#,
        );
    }

    #[test]
    fn bytes_are_the_known_ones() {
        let schema =
            Schema::parse("package io.k8s.api.core.v1\nA /v1\n a 1 str o\n b 2.1 *i32 o\n c 3 time o\n").unwrap();
        let of = schema.kind("", "v1", "A").unwrap();
        assert_eq!(Encoder::default().message(b"{}", of).unwrap(), [0x0a, 0, 0x12, 0, 0x1a, 0]);
        let value = crate::json!({"apiVersion": "v1", "kind": "A", "b": 300});
        assert_eq!(encode(&value, of).unwrap()[..6], [b'k', b'8', b's', 0, 0x0a, 7]);
    }

    #[test]
    fn lists_are_made_of_messages() {
        let table = "package io.k8s.api.core.v1\nA /v1\n a 1 str o\nAList /v1\n items 2 []A r\n metadata 1 M o\nM\n c 1 str o\n";
        let schema = Schema::parse(table).unwrap();
        let (of, list_of) = (schema.kind("", "v1", "A").unwrap(), schema.kind("", "v1", "AList").unwrap());
        let items = [crate::json!({"a": "x"}), crate::json!({"a": "y"})];
        let mut encoder = Encoder::default();
        let messages = items.each_ref().map(|item| encoder.message(&item.to_json(), of).unwrap().to_vec());
        let metadata = crate::json!({"c": "d"});
        let list = crate::json!({"apiVersion": "v1", "kind": "AList", "metadata": (metadata.clone()), "items": (items.to_vec())});
        let meta_of = list_of.member("metadata").unwrap();
        let mut made = list_head("v1", "AList", &metadata, meta_of, messages.iter().map(Vec::len)).unwrap();
        for message in &messages {
            let (head, length) = item_head(message.len());
            made.extend_from_slice(&head[..length]);
            made.extend_from_slice(message);
        }
        made.extend_from_slice(LIST_END);
        assert_eq!(made, encode(&list, list_of).unwrap());
    }

    #[test]
    fn hostile_text_is_refused_or_written() {
        let schema = Schema::parse(TABLE).unwrap();
        let of = schema.kind("", "v1", "Pod").unwrap();
        let start = br#"{"apiVersion":"v1","kind":"Pod","name":"a\u00e9\"b","labels":{"a":"b"},"next":{"all":[{"cpu":"1"}]},"count":1}"#;
        let (mut rng, mut encoder) = (base::Rng::new(5), Encoder::default());
        for _ in 0..20_000 {
            let mut text = start.to_vec();
            for _ in 0..1 + rng.below(6) {
                let at = rng.below(text.len() as u64) as usize;
                match rng.below(4) {
                    0 => text[at] = rng.next_u64() as u8,
                    1 => text.truncate(at.max(5)),
                    2 => text.insert(at, br#"{}[]",:\"#[rng.below(8) as usize]),
                    _ => drop(text.remove(at)),
                }
            }
            let _ = encoder.enveloped(&text, of);
        }
        assert!(encoder.message(&b"[".repeat(100_000), of).is_err());
    }

    #[test]
    fn hostile_bytes_are_refused_or_read() {
        let schema = Schema::parse(TABLE).unwrap();
        let of = schema.kind("", "v1", "Pod").unwrap();
        let mut start = crate::json!({"apiVersion": "v1", "kind": "Pod", "name": "a", "labels": {"a": "b"},
            "next": {"name": "x", "cpu": "1", "when": "2026-11-22T18:20:22Z", "raw": {"a": 1}, "extra": {"a": ["b"]}}});
        normalise(&mut start, of, &mut Vec::new()).unwrap();
        let start = encode(&start, of).unwrap();
        let mut rng = base::Rng::new(3);
        for _ in 0..20_000 {
            let mut bytes = start.clone();
            for _ in 0..1 + rng.below(6) {
                let at = rng.below(bytes.len() as u64) as usize;
                match rng.below(3) {
                    0 => bytes[at] = rng.next_u64() as u8,
                    1 => bytes.truncate(at.max(5)),
                    _ => bytes.insert(at, rng.next_u64() as u8),
                }
            }
            if let Ok(mut value) = decode(&bytes, of) {
                let _ = normalise(&mut value, of, &mut Vec::new());
                let _ = encode(&value, of);
            }
        }
        let mut deep = Vec::new();
        for _ in 0..2_000 {
            let mut outer = vec![0x62];
            let mut length = deep.len();
            while length >= 0x80 {
                outer.push(length as u8 | 0x80);
                length >>= 7;
            }
            outer.push(length as u8);
            outer.extend_from_slice(&deep);
            deep = outer;
        }
        assert_eq!(decode_message(&deep, of), Err(ProtoError::TooDeep));
    }
}
