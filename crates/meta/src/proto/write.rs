//! Writes messages from their end to their start, so that every length is known when it is written.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{MAGIC, ProtoError, type_meta};
use crate::normalise::duration_nanos;
use crate::schema::{Either, Field, Node, Scalar, Struct, TypeRef};
use crate::value::{Map, Value};

const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const BYTES: u32 = 2;

/// The object in its envelope.
///
/// # Errors
/// [`ProtoError::NoForm`] for types that protobuf lacks.
pub fn encode(value: &Value, of: TypeRef<'_>) -> Result<Vec<u8>, ProtoError> {
    let (api_version, kind) = type_meta(value);
    let mut out = Back::default();
    out.bytes_field(4, b"");
    out.bytes_field(3, b"");
    let end = out.len();
    out.message(value, of)?;
    out.close(2, end);
    out.head(api_version, kind);
    Ok(out.into_vec())
}

/// Appends the object's message, without envelope, to `out`.
///
/// # Errors
/// As [`encode`].
pub fn encode_message(value: &Value, of: TypeRef<'_>, out: &mut Vec<u8>) -> Result<(), ProtoError> {
    let mut back = Back::default();
    back.message(value, of)?;
    out.extend_from_slice(back.as_slice());
    Ok(())
}

/// Puts a message into its envelope.
pub fn envelope(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
    let mut out = Back::default();
    out.bytes_field(4, b"");
    out.bytes_field(3, b"");
    out.bytes_field(2, message);
    out.head(api_version, kind);
    out.into_vec()
}

/// A list in its envelope, from its metadata (of type `meta_of`) and the messages of its items.
///
/// # Errors
/// As [`encode`].
pub fn encode_list<'a>(
    api_version: &str,
    kind: &str,
    metadata: &Value,
    meta_of: TypeRef<'_>,
    items: impl DoubleEndedIterator<Item = &'a [u8]>,
) -> Result<Vec<u8>, ProtoError> {
    let mut out = Back::default();
    out.bytes_field(4, b"");
    out.bytes_field(3, b"");
    let end = out.len();
    for item in items.rev() {
        out.bytes_field(2, item);
    }
    let meta_end = out.len();
    out.message(metadata, meta_of)?;
    out.close(1, meta_end);
    out.close(2, end);
    out.head(api_version, kind);
    Ok(out.into_vec())
}

/// One event of a watch: its length (four bytes, big end first), its type and the enveloped object.
pub fn watch_frame(event: &str, object: &[u8]) -> Vec<u8> {
    let mut out = Back::default();
    let end = out.len();
    out.bytes_field(1, object);
    out.close(2, end);
    out.bytes_field(1, event.as_bytes());
    let length = u32::try_from(out.len()).unwrap_or(u32::MAX);
    out.put(&length.to_be_bytes());
    out.into_vec()
}

/// A buffer that grows at its front.
#[derive(Default)]
struct Back {
    bytes: Vec<u8>,
    /// Where the content starts.
    start: usize,
}

impl Back {
    fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    fn into_vec(mut self) -> Vec<u8> {
        self.bytes.drain(..self.start);
        self.bytes
    }

    #[cold]
    fn grow(&mut self, more: usize) {
        let len = self.len();
        let size = (len + more).next_power_of_two().max(1024);
        let mut bytes = vec![0; size];
        bytes[size - len..].copy_from_slice(self.as_slice());
        (self.bytes, self.start) = (bytes, size - len);
    }

    fn put(&mut self, bytes: &[u8]) {
        if self.start < bytes.len() {
            self.grow(bytes.len());
        }
        self.start -= bytes.len();
        self.bytes[self.start..self.start + bytes.len()].copy_from_slice(bytes);
    }

    fn varint(&mut self, mut number: u64) {
        let mut text = [0; 10];
        let mut length = 0;
        loop {
            text[length] = (number & 0x7f) as u8;
            number >>= 7;
            length += 1;
            if number == 0 {
                break;
            }
            text[length - 1] |= 0x80;
        }
        self.put(&text[..length]);
    }

    fn tag(&mut self, number: u32, wire: u32) {
        self.varint(u64::from(number << 3 | wire));
    }

    fn bytes_field(&mut self, number: u32, bytes: &[u8]) {
        self.put(bytes);
        self.varint(bytes.len() as u64);
        self.tag(number, BYTES);
    }

    fn int_field(&mut self, number: u32, value: i64) {
        // Negative numbers take ten bytes, also those of 32 bits.
        self.varint(value as u64);
        self.tag(number, VARINT);
    }

    /// Makes what was written since the content had `end` bytes a field.
    fn close(&mut self, number: u32, end: usize) {
        self.varint((self.len() - end) as u64);
        self.tag(number, BYTES);
    }

    /// The start of an envelope.
    fn head(&mut self, api_version: &str, kind: &str) {
        let end = self.len();
        self.bytes_field(2, kind.as_bytes());
        self.bytes_field(1, api_version.as_bytes());
        self.close(1, end);
        self.put(MAGIC);
    }

    fn message(&mut self, value: &Value, of: TypeRef<'_>) -> Result<(), ProtoError> {
        match of.as_struct() {
            Some(found) if !of.schema.is_custom() => {
                self.structure(value.entries(), found, of);
                Ok(())
            }
            _ => Err(ProtoError::NoForm),
        }
    }

    fn structure(&mut self, map: &Map, found: &Struct, of: TypeRef<'_>) {
        let fields = found.fields();
        let mut places = [u16::MAX; 128];
        let mut next = 0;
        for (at, key) in map.keys().enumerate() {
            while fields.get(next).is_some_and(|field| field.name.as_str() < key) {
                next += 1;
            }
            if let Some(field) = fields.get(next)
                && field.name == key
                && let Some(place) = places.get_mut(next)
            {
                *place = u16::try_from(at).unwrap_or(u16::MAX);
            }
        }
        let members = Members { map, found, places };
        self.level(&members, 0, found.numbered().len(), 0, of);
    }

    /// The fields `from..to` (by number), which share all numbers above `depth`.
    fn level(&mut self, members: &Members<'_>, from: usize, to: usize, depth: usize, of: TypeRef<'_>) {
        let mut at = to;
        while at > from {
            at -= 1;
            let field = members.found.numbered_at(at);
            let number = field.number.0[depth];
            if field.number.0.get(depth + 1).is_none_or(|inner| *inner == 0) {
                self.field(u32::from(number), members.get(at, field), field, of.with(field.of));
                continue;
            }
            let last = at + 1;
            while at > from && members.found.numbered_at(at - 1).number.0[depth] == number {
                at -= 1;
            }
            let end = self.len();
            self.level(members, at, last, depth + 1, of);
            self.close(u32::from(number), end);
        }
    }

    fn field(&mut self, number: u32, value: &Value, field: &Field, of: TypeRef<'_>) {
        match of.kind() {
            _ if value.is_null() && field.pointer => {}
            Node::List { item, wrapped: false, .. } => {
                for found in value.items().iter().rev() {
                    self.value(number, found, of.with(*item));
                }
            }
            Node::List { .. } | Node::Either(..) if value.is_null() => {}
            Node::Map { value: inner, .. } => {
                for (key, found) in value.entries().iter().rev() {
                    let end = self.len();
                    if !(found.is_null() && matches!(of.with(*inner).kind(), Node::Scalar(Scalar::Bytes))) {
                        self.value(2, found, of.with(*inner));
                    }
                    self.bytes_field(1, key.as_bytes());
                    self.close(number, end);
                }
            }
            Node::Scalar(Scalar::Bytes) if value.is_null() => {}
            _ => self.value(number, value, of),
        }
    }

    /// One value that is there, zero or not.
    fn value(&mut self, number: u32, value: &Value, of: TypeRef<'_>) {
        let end = self.len();
        match of.kind() {
            Node::Scalar(scalar) => return self.scalar(number, value, *scalar),
            Node::Struct { of: at, .. } => self.structure(value.entries(), of.schema.struct_at(*at), of),
            Node::List { item, .. } => {
                for found in value.items().iter().rev() {
                    self.value(1, found, of.with(*item));
                }
            }
            // No kind has maps of maps.
            Node::Map { .. } => {}
            Node::Either(either, inner) => match (either, value) {
                (Either::Bool, Value::Bool(bool)) => self.int_field(1, i64::from(*bool)),
                (Either::Bool, schema) => {
                    self.value(2, schema, of.with(*inner));
                    self.int_field(1, 1);
                }
                (Either::List, Value::List(items)) => {
                    for item in items.iter().rev() {
                        self.value(2, item, of.with(*inner));
                    }
                }
                (Either::Strings, Value::List(items)) => {
                    for item in items.iter().rev() {
                        self.bytes_field(2, item.text().as_bytes());
                    }
                }
                (_, schema) => self.value(1, schema, of.with(*inner)),
            },
        }
        self.close(number, end);
    }

    fn scalar(&mut self, number: u32, value: &Value, scalar: Scalar) {
        let end = self.len();
        match scalar {
            Scalar::Bool => return self.int_field(number, i64::from(value.is_true())),
            Scalar::Int32 | Scalar::Int64 => return self.int_field(number, value.as_int().unwrap_or(0)),
            Scalar::String => return self.bytes_field(number, value.text().as_bytes()),
            Scalar::Bytes => {
                return self.bytes_field(number, &STANDARD.decode(value.text()).unwrap_or_default());
            }
            Scalar::Double => {
                let double = match value {
                    Value::Int(whole) => *whole as f64,
                    Value::Float(double) => *double,
                    _ => 0.0,
                };
                self.put(&double.to_le_bytes());
                return self.tag(number, FIXED64);
            }
            Scalar::Time | Scalar::MicroTime => {
                if let Some(time) = base::Time::parse(value.text()) {
                    let micros = if scalar == Scalar::Time { 0 } else { time.0.rem_euclid(1_000_000) };
                    self.int_field(2, micros * 1_000);
                    self.int_field(1, time.0.div_euclid(1_000_000));
                }
            }
            Scalar::Duration => self.int_field(1, duration_nanos(value.text()).unwrap_or(0)),
            Scalar::Quantity => self.bytes_field(1, value.as_str().unwrap_or("0").as_bytes()),
            Scalar::IntOrString => {
                self.bytes_field(3, value.text().as_bytes());
                self.int_field(2, value.as_int().unwrap_or(0));
                self.int_field(1, i64::from(value.as_str().is_some()));
            }
            Scalar::Raw | Scalar::Json | Scalar::FieldsV1 | Scalar::Any => {
                if !value.is_null() {
                    self.bytes_field(1, &value.to_json());
                }
            }
        }
        self.close(number, end);
    }
}

/// A struct's members, found by the place of their field.
struct Members<'a> {
    map: &'a Map,
    found: &'a Struct,
    places: [u16; 128],
}

static NULL: Value = Value::Null;

impl Members<'_> {
    fn get(&self, numbered: usize, field: &Field) -> &Value {
        match self.places.get(self.found.place(numbered)) {
            Some(&u16::MAX) => &NULL,
            Some(at) => self.map.nth(usize::from(*at)).map_or(&NULL, |(_, value)| value),
            None => self.map.get(&field.name).unwrap_or(&NULL),
        }
    }
}
