//! Reads messages. Fields the schema does not know are skipped.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{MAGIC, MAX_DEPTH, ProtoError};
use crate::normalise::duration_text;
use crate::schema::{Either, Node, Scalar, Struct, TypeRef};
use crate::value::{List, Map, Str, Value};

/// Reads an enveloped object. It has the members that were in the message, and `apiVersion` and `kind` from the
/// envelope; [`crate::normalise`] makes it whole.
///
/// # Errors
/// When the bytes are no such object.
pub fn decode(bytes: &[u8], of: TypeRef<'_>) -> Result<Value, ProtoError> {
    let (api_version, kind, message) = split_envelope(bytes)?;
    let mut value = decode_message(message, of)?;
    for (key, text) in [("apiVersion", api_version), ("kind", kind)] {
        if !text.is_empty() {
            value.set(&[key], text);
        }
    }
    Ok(value)
}

/// Takes an envelope apart: `apiVersion`, `kind` and the message.
///
/// # Errors
/// When it is none.
pub fn split_envelope(bytes: &[u8]) -> Result<(Str, Str, &[u8]), ProtoError> {
    let mut reader = Reader { rest: bytes.strip_prefix(MAGIC).ok_or(ProtoError::NoMagic)? };
    let (mut api_version, mut kind, mut message) = (Str::default(), Str::default(), &[][..]);
    while let Some((number, field)) = reader.next()? {
        match number {
            1 => {
                let mut meta = Reader { rest: field.bytes(number)? };
                while let Some((number, field)) = meta.next()? {
                    match number {
                        1 => api_version = text(field.bytes(number)?),
                        2 => kind = text(field.bytes(number)?),
                        _ => {}
                    }
                }
            }
            2 => message = field.bytes(number)?,
            _ => {}
        }
    }
    Ok((api_version, kind, message))
}

/// Reads a message without envelope.
///
/// # Errors
/// When the bytes are no such message.
pub fn decode_message(bytes: &[u8], of: TypeRef<'_>) -> Result<Value, ProtoError> {
    match of.as_struct() {
        Some(found) if !of.schema.is_custom() => structure(bytes, found, of, 0),
        _ => Err(ProtoError::NoForm),
    }
}

fn text(bytes: &[u8]) -> Str {
    String::from_utf8_lossy(bytes).into()
}

struct Reader<'a> {
    rest: &'a [u8],
}

/// What stands behind a tag.
#[derive(Clone, Copy)]
enum Wire<'a> {
    Int(u64),
    Fixed(u64),
    Bytes(&'a [u8]),
}

impl<'a> Wire<'a> {
    fn bytes(self, number: u32) -> Result<&'a [u8], ProtoError> {
        match self {
            Wire::Bytes(bytes) => Ok(bytes),
            _ => Err(ProtoError::WireType(number)),
        }
    }

    fn int(self, number: u32) -> Result<i64, ProtoError> {
        match self {
            Wire::Int(int) => Ok(int as i64),
            _ => Err(ProtoError::WireType(number)),
        }
    }
}

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64, ProtoError> {
        let mut number = 0;
        for (at, byte) in self.rest.iter().take(10).enumerate() {
            number |= u64::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[at + 1..];
                return Ok(number);
            }
        }
        Err(ProtoError::Truncated)
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], ProtoError> {
        let length = usize::try_from(length).ok().filter(|length| *length <= self.rest.len());
        let (taken, rest) = self.rest.split_at(length.ok_or(ProtoError::Truncated)?);
        self.rest = rest;
        Ok(taken)
    }

    fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>, ProtoError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| ProtoError::Truncated)?;
        let wire = match tag & 7 {
            0 => Wire::Int(self.varint()?),
            1 => {
                let bytes = self.take(8)?;
                Wire::Fixed(bytes.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte)))
            }
            2 => {
                let length = self.varint()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                return self.next();
            }
            _ => return Err(ProtoError::WireType(number)),
        };
        Ok(Some((number, wire)))
    }
}

fn structure(bytes: &[u8], found: &Struct, of: TypeRef<'_>, deep: usize) -> Result<Value, ProtoError> {
    let mut map = Map::new();
    level(bytes, found, (0, found.numbered().len()), 0, of, deep, &mut map)?;
    Ok(Value::Map(map))
}

/// Reads the fields `range` (by number), which share all numbers above `depth`, into `map`.
fn level(
    bytes: &[u8],
    found: &Struct,
    range: (usize, usize),
    depth: usize,
    of: TypeRef<'_>,
    deep: usize,
    map: &mut Map,
) -> Result<(), ProtoError> {
    if deep > MAX_DEPTH {
        return Err(ProtoError::TooDeep);
    }
    let mut reader = Reader { rest: bytes };
    while let Some((number, wire)) = reader.next()? {
        let of_number = |at: &usize| u32::from(found.numbered_at(*at).number.0[depth]) == number;
        let Some(first) = (range.0..range.1).find(of_number) else { continue };
        let field = found.numbered_at(first);
        if field.number.0.get(depth + 1).is_some_and(|inner| *inner != 0) {
            let last = (first..range.1).take_while(of_number).count() + first;
            level(wire.bytes(number)?, found, (first, last), depth + 1, of, deep + 1, map)?;
            continue;
        }
        let inner = of.with(field.of);
        match inner.kind() {
            Node::List { item, wrapped: false, .. } => {
                let list = map.entry(&field.name).make_list();
                repeated(number, wire, inner.with(*item), deep, list)?;
            }
            Node::Map { value, .. } => {
                let (key, value) = entry(wire.bytes(number)?, inner.with(*value), deep)?;
                map.entry(&field.name).make_map().insert(key, value);
            }
            _ => {
                let value = read(number, wire, inner, deep)?;
                map.insert(field.name.clone(), value);
            }
        }
    }
    Ok(())
}

/// One item of a repeated field, or several numbers packed together.
fn repeated(number: u32, wire: Wire<'_>, of: TypeRef<'_>, deep: usize, list: &mut List) -> Result<(), ProtoError> {
    if let (Node::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Bool), Wire::Bytes(bytes)) = (of.kind(), wire) {
        let mut packed = Reader { rest: bytes };
        while !packed.rest.is_empty() {
            let int = packed.varint()?;
            list.push(read(number, Wire::Int(int), of, deep)?);
        }
        return Ok(());
    }
    list.push(read(number, wire, of, deep)?);
    Ok(())
}

fn entry(bytes: &[u8], of: TypeRef<'_>, deep: usize) -> Result<(Str, Value), ProtoError> {
    let (mut key, mut value) = (Str::default(), Value::Null);
    let mut reader = Reader { rest: bytes };
    while let Some((number, wire)) = reader.next()? {
        match number {
            1 => key = text(wire.bytes(number)?),
            2 => value = read(number, wire, of, deep)?,
            _ => {}
        }
    }
    Ok((key, value))
}

fn read(number: u32, wire: Wire<'_>, of: TypeRef<'_>, deep: usize) -> Result<Value, ProtoError> {
    match of.kind() {
        Node::Scalar(scalar) => scalar_value(number, wire, *scalar),
        Node::Struct { of: at, .. } => structure(wire.bytes(number)?, of.schema.struct_at(*at), of, deep + 1),
        Node::List { item, .. } => {
            let mut list = List::new();
            let mut reader = Reader { rest: wire.bytes(number)? };
            while let Some((number, wire)) = reader.next()? {
                if number == 1 {
                    repeated(number, wire, of.with(*item), deep + 1, &mut list)?;
                }
            }
            Ok(Value::List(list))
        }
        Node::Map { .. } => Ok(Value::Null),
        Node::Either(either, inner) => {
            if deep > MAX_DEPTH {
                return Err(ProtoError::TooDeep);
            }
            read_either(wire.bytes(number)?, *either, of.with(*inner), deep + 1)
        }
    }
}

fn read_either(bytes: &[u8], either: Either, of: TypeRef<'_>, deep: usize) -> Result<Value, ProtoError> {
    let mut value = match either {
        Either::Bool => Value::Bool(false),
        Either::List => Value::Null,
        Either::Strings => Value::List(List::new()),
    };
    let mut has_schema = false;
    let mut reader = Reader { rest: bytes };
    while let Some((number, wire)) = reader.next()? {
        match (either, number) {
            (Either::Bool, 1) if !has_schema => value = Value::Bool(wire.int(number)? != 0),
            (Either::Bool, 2) | (Either::List | Either::Strings, 1) => {
                value = read(number, wire, of, deep)?;
                has_schema = true;
            }
            (Either::List, 2) if !has_schema => value.make_list().push(read(number, wire, of, deep)?),
            (Either::Strings, 2) if !has_schema => value.make_list().push(Value::Str(text(wire.bytes(number)?))),
            _ => {}
        }
    }
    Ok(value)
}

fn scalar_value(number: u32, wire: Wire<'_>, scalar: Scalar) -> Result<Value, ProtoError> {
    Ok(match scalar {
        Scalar::Bool => Value::Bool(wire.int(number)? != 0),
        Scalar::Int32 => Value::Int(i64::from(wire.int(number)? as i32)),
        Scalar::Int64 => Value::Int(wire.int(number)?),
        Scalar::Double => match wire {
            Wire::Fixed(bits) => Value::Float(f64::from_bits(bits)),
            _ => return Err(ProtoError::WireType(number)),
        },
        Scalar::String => Value::Str(text(wire.bytes(number)?)),
        Scalar::Bytes => STANDARD.encode(wire.bytes(number)?).into(),
        Scalar::Time | Scalar::MicroTime => time(wire.bytes(number)?, scalar)?,
        Scalar::Duration => duration_text(ints(wire.bytes(number)?)?.0[0]).into(),
        Scalar::Quantity => {
            let (_, text) = ints(wire.bytes(number)?)?;
            if text.is_empty() { "0".into() } else { Value::Str(text) }
        }
        Scalar::IntOrString => {
            let ([kind, int, _], text) = ints(wire.bytes(number)?)?;
            if kind == 1 { Value::Str(text) } else { Value::Int(int) }
        }
        Scalar::Raw | Scalar::Json | Scalar::FieldsV1 | Scalar::Any => {
            let mut reader = Reader { rest: wire.bytes(number)? };
            let mut value = Value::Null;
            while let Some((number, wire)) = reader.next()? {
                if let (1, Wire::Bytes(bytes)) = (number, wire)
                    && !bytes.is_empty()
                {
                    value = Value::parse(bytes).map_err(|error| ProtoError::Json(error.to_string()))?;
                }
            }
            value
        }
    })
}

/// The integers with numbers 1 to 3 of a small message, and its last string.
fn ints(bytes: &[u8]) -> Result<([i64; 3], Str), ProtoError> {
    let mut found = ([0; 3], Str::default());
    let mut reader = Reader { rest: bytes };
    while let Some((number, wire)) = reader.next()? {
        match wire {
            Wire::Int(int) => {
                if let Some(place) = number.checked_sub(1).and_then(|at| found.0.get_mut(at as usize)) {
                    *place = int as i64;
                }
            }
            Wire::Bytes(bytes) => found.1 = text(bytes),
            Wire::Fixed(_) => return Err(ProtoError::WireType(number)),
        }
    }
    Ok(found)
}

fn time(bytes: &[u8], scalar: Scalar) -> Result<Value, ProtoError> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let ([seconds, nanos, _], _) = ints(bytes)?;
    let (first, last) = (crate::normalise::FIRST_SECOND, crate::normalise::LAST_SECOND);
    if !(first..=last).contains(&seconds) || !(0..1_000_000_000).contains(&nanos) {
        return Err(ProtoError::Time);
    }
    let time = base::Time(seconds * 1_000_000 + nanos / 1_000);
    Ok(match scalar {
        _ if time.0 == first * 1_000_000 => Value::Null,
        Scalar::Time => time.rfc3339().into(),
        _ => time.rfc3339_micro().into(),
    })
}
