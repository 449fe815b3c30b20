//! Writes messages from their end to their start, so that every length is known when it is written.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::tape::{ABSENT, At, Tape};
use super::{MAGIC, ProtoError};
use crate::normalise::duration_nanos;
use crate::schema::{Either, Field, Node, Scalar, Struct, TypeRef};
use crate::value::Value;

const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const BYTES: u32 = 2;

/// Writes objects from their canonical JSON, one after the other, in the same memory.
#[derive(Default)]
pub struct Encoder {
    tape: Tape,
    back: Back,
    /// Children that wait to be written, of all containers that are open.
    waiting: Vec<At>,
}

impl Encoder {
    /// The message of an object, without envelope.
    ///
    /// # Errors
    /// [`ProtoError::NoForm`] for types that protobuf lacks, [`ProtoError::Json`] for what is no JSON.
    pub fn message(&mut self, text: &[u8], of: TypeRef<'_>) -> Result<&[u8], ProtoError> {
        self.back.clear();
        self.write(text, of)?;
        Ok(self.back.as_slice())
    }

    /// The object in its envelope.
    ///
    /// # Errors
    /// As [`Encoder::message`].
    pub fn enveloped(&mut self, text: &[u8], of: TypeRef<'_>) -> Result<&[u8], ProtoError> {
        self.back.clear();
        self.back.bytes_field(4, b"");
        self.back.bytes_field(3, b"");
        let end = self.back.len();
        let root = self.write(text, of)?;
        self.back.close(2, end);
        let member = |name: &[u8]| {
            let key = self.tape.children(root).find(|key| *self.tape.text(*key, text) == *name);
            key.map_or(b"".into(), |key| self.tape.text(self.tape.value_of(key), text))
        };
        let (api_version, kind) = (member(b"apiVersion"), member(b"kind"));
        self.back.head(&api_version, &kind);
        Ok(self.back.as_slice())
    }

    fn write(&mut self, text: &[u8], of: TypeRef<'_>) -> Result<At, ProtoError> {
        let found = of.as_struct().filter(|_| !of.schema.is_custom()).ok_or(ProtoError::NoForm)?;
        let root = self.tape.read(text).ok_or_else(|| ProtoError::Json("no JSON".to_owned()))?;
        self.waiting.clear();
        let mut writer = Writer { tape: &self.tape, text, back: &mut self.back, waiting: &mut self.waiting };
        writer.structure(root, found, of);
        Ok(root)
    }
}

/// The object in its envelope.
///
/// # Errors
/// [`ProtoError::NoForm`] for types that protobuf lacks.
pub fn encode(value: &Value, of: TypeRef<'_>) -> Result<Vec<u8>, ProtoError> {
    Encoder::default().enveloped(&value.to_json(), of).map(<[u8]>::to_vec)
}

/// Puts a message into its envelope.
pub fn envelope(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
    let mut out = Back::default();
    out.bytes_field(4, b"");
    out.bytes_field(3, b"");
    out.bytes_field(2, message);
    out.head(api_version.as_bytes(), kind.as_bytes());
    out.into_vec()
}

/// What stands before the items of a list whose messages have these lengths: envelope and metadata (of type `meta_of`).
/// [`LIST_END`] stands after them.
///
/// # Errors
/// As [`encode`].
pub fn list_head(
    api_version: &str,
    kind: &str,
    metadata: &Value,
    meta_of: TypeRef<'_>,
    lengths: impl Iterator<Item = usize>,
) -> Result<Vec<u8>, ProtoError> {
    let mut encoder = Encoder::default();
    let metadata = encoder.message(&metadata.to_json(), meta_of)?;
    let items: usize = lengths.map(|length| item_head(length).1 + length).sum();
    let mut out = Back::default();
    out.bytes_field(1, metadata);
    out.varint((out.len() + items) as u64);
    out.tag(2, BYTES);
    out.head(api_version.as_bytes(), kind.as_bytes());
    Ok(out.into_vec())
}

/// What stands before an item of a list, and its length.
pub fn item_head(length: usize) -> ([u8; 11], usize) {
    let mut text = [0; 11];
    text[0] = (2 << 3 | BYTES) as u8;
    let (mut rest, mut at) = (length as u64, 1);
    while rest >= 0x80 {
        text[at] = rest as u8 | 0x80;
        rest >>= 7;
        at += 1;
    }
    text[at] = rest as u8;
    (text, at + 1)
}

/// Ends a list in its envelope: no encoding, no content type.
pub const LIST_END: &[u8] = &[3 << 3 | 2, 0, 4 << 3 | 2, 0];

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

    fn clear(&mut self) {
        self.start = self.bytes.len();
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
    fn head(&mut self, api_version: &[u8], kind: &[u8]) {
        let end = self.len();
        self.bytes_field(2, kind);
        self.bytes_field(1, api_version);
        self.close(1, end);
        self.put(MAGIC);
    }
}

/// Writes values of a tape into the front of a buffer.
struct Writer<'a> {
    tape: &'a Tape,
    text: &'a [u8],
    back: &'a mut Back,
    waiting: &'a mut Vec<At>,
}

impl Writer<'_> {
    fn structure(&mut self, map: At, found: &Struct, of: TypeRef<'_>) {
        let fields = found.fields();
        let mut places = [ABSENT; FIELDS_MAX];
        let mut next = 0;
        for key in self.tape.children(map) {
            let name = self.tape.text(key, self.text);
            while fields.get(next).is_some_and(|field| field.name.as_bytes() < &*name) {
                next += 1;
            }
            if let Some(field) = fields.get(next)
                && field.name.as_bytes() == &*name
                && let Some(place) = places.get_mut(next)
            {
                *place = self.tape.value_of(key);
            }
        }
        self.level(&Members { found, places }, 0, found.numbered().len(), 0, of);
    }

    /// The fields `from..to` (by number), which share all numbers above `depth`.
    fn level(&mut self, members: &Members<'_>, from: usize, to: usize, depth: usize, of: TypeRef<'_>) {
        let mut at = to;
        while at > from {
            at -= 1;
            let field = members.found.numbered_at(at);
            let number = field.number.0[depth];
            if field.number.0.get(depth + 1).is_none_or(|inner| *inner == 0) {
                self.field(u32::from(number), members.get(at), field, of.with(field.of));
                continue;
            }
            let last = at + 1;
            while at > from && members.found.numbered_at(at - 1).number.0[depth] == number {
                at -= 1;
            }
            let end = self.back.len();
            self.level(members, at, last, depth + 1, of);
            self.back.close(u32::from(number), end);
        }
    }

    /// Calls `each` with the children of a container from the last to the first.
    fn backwards(&mut self, container: At, mut each: impl FnMut(&mut Self, At)) {
        let first = self.waiting.len();
        self.waiting.extend(self.tape.children(container));
        let mut at = self.waiting.len();
        while at > first {
            at -= 1;
            let child = self.waiting[at];
            each(self, child);
        }
        self.waiting.truncate(first);
    }

    fn field(&mut self, number: u32, value: At, field: &Field, of: TypeRef<'_>) {
        let null = self.tape.is_null(value);
        match of.kind() {
            _ if null && field.pointer => {}
            Node::List { item, wrapped: false, .. } => {
                self.backwards(value, |own, found| own.value(number, found, of.with(*item)));
            }
            Node::List { .. } | Node::Either(..) if null => {}
            Node::Map { value: inner, .. } => {
                self.backwards(value, |own, key| {
                    let (end, found) = (own.back.len(), own.tape.value_of(key));
                    let skip = own.tape.is_null(found) && matches!(of.with(*inner).kind(), Node::Scalar(Scalar::Bytes));
                    if !skip {
                        own.value(2, found, of.with(*inner));
                    }
                    let key = own.tape.text(key, own.text);
                    own.back.bytes_field(1, &key);
                    own.back.close(number, end);
                });
            }
            Node::Scalar(Scalar::Bytes) if null => {}
            _ => self.value(number, value, of),
        }
    }

    /// One value that is there, zero or not.
    fn value(&mut self, number: u32, value: At, of: TypeRef<'_>) {
        let end = self.back.len();
        match of.kind() {
            Node::Scalar(scalar) => return self.scalar(number, value, *scalar),
            Node::Struct { of: at, .. } => self.structure(value, of.schema.struct_at(*at), of),
            Node::List { item, .. } => self.backwards(value, |own, found| own.value(1, found, of.with(*item))),
            // No kind has maps of maps.
            Node::Map { .. } => {}
            Node::Either(either, inner) => match either {
                Either::Bool if self.tape.is_bool(value) => {
                    self.back.int_field(1, i64::from(self.tape.is_true(value)));
                }
                Either::Bool => {
                    self.value(2, value, of.with(*inner));
                    self.back.int_field(1, 1);
                }
                Either::List if self.tape.is_list(value) => {
                    self.backwards(value, |own, item| own.value(2, item, of.with(*inner)));
                }
                Either::Strings if self.tape.is_list(value) => self.backwards(value, |own, item| {
                    let text = own.tape.text(item, own.text);
                    own.back.bytes_field(2, &text);
                }),
                _ => self.value(1, value, of.with(*inner)),
            },
        }
        self.back.close(number, end);
    }

    fn scalar(&mut self, number: u32, value: At, scalar: Scalar) {
        let (end, back) = (self.back.len(), &mut *self.back);
        let text = self.tape.text(value, self.text);
        let int = || self.tape.int(value, self.text).unwrap_or(0);
        match scalar {
            Scalar::Bool => return back.int_field(number, i64::from(self.tape.is_true(value))),
            Scalar::Int32 | Scalar::Int64 => return back.int_field(number, int()),
            Scalar::String => return back.bytes_field(number, &text),
            Scalar::Bytes => {
                return back.bytes_field(number, &STANDARD.decode(&text).unwrap_or_default());
            }
            Scalar::Double => {
                back.put(&self.tape.double(value, self.text).to_le_bytes());
                return back.tag(number, FIXED64);
            }
            Scalar::Time | Scalar::MicroTime => {
                if let Some(time) = std::str::from_utf8(&text).ok().and_then(base::Time::parse) {
                    let micros = if scalar == Scalar::Time { 0 } else { time.0.rem_euclid(1_000_000) };
                    back.int_field(2, micros * 1_000);
                    back.int_field(1, time.0.div_euclid(1_000_000));
                }
            }
            Scalar::Duration => {
                let nanos = std::str::from_utf8(&text).ok().and_then(duration_nanos);
                back.int_field(1, nanos.unwrap_or(0));
            }
            Scalar::Quantity => back.bytes_field(1, if self.tape.is_text(value) { &text } else { b"0" }),
            Scalar::IntOrString => {
                back.bytes_field(3, &text);
                back.int_field(2, int());
                back.int_field(1, i64::from(self.tape.is_text(value)));
            }
            Scalar::Raw | Scalar::Json | Scalar::FieldsV1 | Scalar::Any => {
                if !self.tape.is_null(value) {
                    back.bytes_field(1, self.tape.raw(value, self.text));
                }
            }
        }
        self.back.close(number, end);
    }
}

/// Fields of a struct that has a protobuf form; a test of the schema's table holds it.
pub const FIELDS_MAX: usize = 64;

/// A struct's members, by the place of their field.
struct Members<'a> {
    found: &'a Struct,
    places: [At; FIELDS_MAX],
}

impl Members<'_> {
    fn get(&self, numbered: usize) -> At {
        self.places.get(self.found.place(numbered)).copied().unwrap_or(ABSENT)
    }
}
