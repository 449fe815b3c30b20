//! Values of expressions. Parts of an object are looked at where they are, not copied.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use meta::{Quantity, Str, Value};

use crate::functions::authorizer::Ask;
use crate::functions::format::Format;
use crate::functions::semver::Semver;
use crate::functions::url::Url;
use crate::types::{ANY, ObjectType, Type};

pub const NANOS: i128 = 1_000_000_000;

/// A key of a map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Bool(bool),
    /// Numbers of both kinds.
    Int(i128),
    Text(Arc<str>),
}

#[derive(Clone, Debug)]
pub enum Val<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Arc<str>),
    Bytes(Arc<[u8]>),
    List(Arc<Vec<Val<'a>>>),
    Map(Arc<BTreeMap<Key, Val<'a>>>),
    /// An object in JSON, seen as a type.
    Object(&'a Value, Arc<ObjectType>),
    /// An object that an expression made.
    Message(Arc<str>, Arc<BTreeMap<Str, Val<'a>>>),
    /// Nanoseconds.
    Duration(i64),
    /// Nanoseconds since 1970.
    Timestamp(i128),
    /// A type, by its name.
    Type(Arc<str>),
    Optional(Option<Arc<Val<'a>>>),
    Quantity(Arc<Quantity>),
    Url(Arc<Url>),
    Ip(IpAddr),
    Cidr(IpAddr, u8),
    Semver(Arc<Semver>),
    Format(&'static Format),
    Ask(Arc<Ask>),
}

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fail {
    /// It went wrong: `no such key: a`.
    Error(String),
    /// It costs more than may be spent.
    Budget,
}

impl std::fmt::Display for Fail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fail::Error(what) => f.write_str(what),
            Fail::Budget => f.write_str("operation cancelled: actual cost limit exceeded"),
        }
    }
}

impl std::error::Error for Fail {}

pub fn fail<T>(what: impl Into<String>) -> Result<T, Fail> {
    Err(Fail::Error(what.into()))
}

impl<'a> Val<'a> {
    pub fn text(text: impl AsRef<str>) -> Val<'a> {
        Val::Text(text.as_ref().into())
    }

    pub fn list(items: Vec<Val<'a>>) -> Val<'a> {
        Val::List(Arc::new(items))
    }

    pub fn some(value: Val<'a>) -> Val<'a> {
        Val::Optional(Some(Arc::new(value)))
    }

    /// A JSON value as its declared type.
    pub fn of(value: &'a Value, of: &Type) -> Val<'a> {
        match (value, of) {
            (Value::Null, _) => Val::Null,
            (Value::Bool(value), _) => Val::Bool(*value),
            (Value::Int(number), Type::Double) => Val::Double(*number as f64),
            (Value::Int(number), _) => Val::Int(*number),
            (Value::Float(number), Type::Int) if number.fract() == 0.0 => Val::Int(*number as i64),
            (Value::Float(number), _) => Val::Double(*number),
            (Value::Str(text), Type::Timestamp) => match timestamp(text) {
                Some(nanos) => Val::Timestamp(nanos),
                None => Val::text(text),
            },
            (Value::Str(text), Type::Duration) => match meta::normalise::duration_nanos(text) {
                Some(nanos) => Val::Duration(nanos),
                None => Val::text(text),
            },
            (Value::Str(text), Type::Bytes(_)) => Val::Bytes(text.as_bytes().into()),
            (Value::Str(text), Type::Opaque("quantity")) => match Quantity::parse(text) {
                Ok(quantity) => Val::Quantity(Arc::new(quantity)),
                Err(_) => Val::text(text),
            },
            (Value::Str(text), _) => Val::text(text),
            (Value::List(items), Type::List(item, _)) => {
                Val::list(items.iter().map(|value| Val::of(value, item)).collect())
            }
            (Value::List(items), _) => Val::list(items.iter().map(|value| Val::of(value, &Type::Dyn)).collect()),
            (Value::Map(map), Type::Map(_, of, _)) => {
                let entries = map.iter().map(|(key, value)| (Key::Text(key.into()), Val::of(value, of)));
                Val::Map(Arc::new(entries.collect()))
            }
            (Value::Map(_), Type::Object(of)) => Val::Object(value, of.clone()),
            (Value::Map(_), _) => Val::Object(value, ANY.clone()),
        }
    }

    pub fn key(&self) -> Option<Key> {
        Some(match self {
            Val::Bool(value) => Key::Bool(*value),
            Val::Int(number) => Key::Int((*number).into()),
            Val::Uint(number) => Key::Int((*number).into()),
            Val::Double(number) if number.fract() == 0.0 => Key::Int(*number as i128),
            Val::Text(text) => Key::Text(text.clone()),
            _ => return None,
        })
    }

    /// The entries, if this is a map or an object of which nothing is known.
    pub fn entries(&self) -> Option<BTreeMap<Key, Val<'a>>> {
        match self {
            Val::Map(map) => Some((**map).clone()),
            Val::Object(value, of) => {
                let entries = value.entries().iter();
                let typed =
                    |key: &str| of.fields.values().find(|field| field.name == key).map(|field| field.of.clone());
                Some(
                    entries
                        .map(|(key, value)| (Key::Text(key.into()), Val::of(value, &typed(key).unwrap_or(Type::Dyn))))
                        .collect(),
                )
            }
            Val::Message(_, fields) => {
                Some(fields.iter().map(|(key, value)| (Key::Text(key.as_str().into()), value.clone())).collect())
            }
            _ => None,
        }
    }

    /// The name of the value's type.
    pub fn type_name(&self) -> &str {
        match self {
            Val::Null => "null_type",
            Val::Bool(_) => "bool",
            Val::Int(_) => "int",
            Val::Uint(_) => "uint",
            Val::Double(_) => "double",
            Val::Text(_) => "string",
            Val::Bytes(_) => "bytes",
            Val::List(_) => "list",
            Val::Map(_) => "map",
            Val::Object(_, of) if of.open => "map",
            Val::Object(_, of) => &of.name,
            Val::Message(name, _) => name,
            Val::Duration(_) => "google.protobuf.Duration",
            Val::Timestamp(_) => "google.protobuf.Timestamp",
            Val::Type(_) => "type",
            Val::Optional(_) => "optional_type",
            Val::Quantity(_) => "kubernetes.Quantity",
            Val::Url(_) => "kubernetes.URL",
            Val::Ip(_) => "net.IP",
            Val::Cidr(..) => "net.CIDR",
            Val::Semver(_) => "kubernetes.Semver",
            Val::Format(_) => "kubernetes.NamedFormat",
            Val::Ask(_) => "kubernetes.authorization.Authorizer",
        }
    }

    /// Whether a parameter of this type takes the value; what is inside of lists and maps is not looked at.
    pub fn is(&self, wanted: &Type) -> bool {
        match (wanted, self) {
            (Type::Dyn | Type::Param(_), _)
            | (Type::Null, Val::Null)
            | (Type::Bool, Val::Bool(_))
            | (Type::Int, Val::Int(_))
            | (Type::Uint, Val::Uint(_))
            | (Type::Double, Val::Double(_))
            | (Type::String(_), Val::Text(_))
            | (Type::Bytes(_), Val::Bytes(_))
            | (Type::List(..), Val::List(_))
            | (Type::Map(..), Val::Map(_) | Val::Object(..) | Val::Message(..))
            | (Type::Object(_), Val::Object(..) | Val::Message(..))
            | (Type::Duration, Val::Duration(_))
            | (Type::Timestamp, Val::Timestamp(_))
            | (Type::Type, Val::Type(_))
            | (Type::Optional(_), Val::Optional(_))
            | (Type::Opaque("quantity"), Val::Quantity(_))
            | (Type::Opaque("url"), Val::Url(_))
            | (Type::Opaque("ip"), Val::Ip(_))
            | (Type::Opaque("cidr"), Val::Cidr(..))
            | (Type::Opaque("semver"), Val::Semver(_))
            | (Type::Opaque("format"), Val::Format(_)) => true,
            (Type::Opaque(name), Val::Ask(ask)) => *name == ask.kind(),
            _ => false,
        }
    }

    /// Whether two values are equal; numbers of different kinds are when they are the same number.
    pub fn equals(&self, other: &Val<'_>) -> bool {
        match (self, other) {
            (Val::List(a), Val::List(b)) => a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| a.equals(b)),
            (Val::Optional(a), Val::Optional(b)) => match (a, b) {
                (Some(a), Some(b)) => a.equals(b),
                (a, b) => a.is_none() && b.is_none(),
            },
            (Val::Type(a), Val::Type(b)) => a == b,
            (Val::Null, Val::Null) => true,
            (Val::Url(a), Val::Url(b)) => a == b,
            (Val::Ip(a), Val::Ip(b)) => a == b,
            (Val::Cidr(a, n), Val::Cidr(b, m)) => a == b && n == m,
            (Val::Format(a), Val::Format(b)) => a.name == b.name,
            (Val::Object(a, _), Val::Object(b, _)) => a == b,
            (Val::Map(_) | Val::Object(..) | Val::Message(..), Val::Map(_) | Val::Object(..) | Val::Message(..)) => {
                let (Some(a), Some(b)) = (self.entries(), other.entries()) else { return false };
                a.len() == b.len() && a.iter().all(|(key, value)| b.get(key).is_some_and(|other| value.equals(other)))
            }
            _ => self.compare(other) == Some(Ordering::Equal),
        }
    }

    /// Which is larger, of what has an order.
    pub fn compare(&self, other: &Val<'_>) -> Option<Ordering> {
        match (self, other) {
            (Val::Bool(a), Val::Bool(b)) => Some(a.cmp(b)),
            (Val::Int(a), Val::Int(b)) => Some(a.cmp(b)),
            (Val::Uint(a), Val::Uint(b)) => Some(a.cmp(b)),
            (Val::Int(a), Val::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Val::Uint(a), Val::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Val::Double(a), Val::Double(b)) => a.partial_cmp(b),
            (Val::Double(a), Val::Int(b)) => a.partial_cmp(&(*b as f64)),
            (Val::Double(a), Val::Uint(b)) => a.partial_cmp(&(*b as f64)),
            (Val::Int(a), Val::Double(b)) => (*a as f64).partial_cmp(b),
            (Val::Uint(a), Val::Double(b)) => (*a as f64).partial_cmp(b),
            (Val::Text(a), Val::Text(b)) => Some(a.cmp(b)),
            (Val::Bytes(a), Val::Bytes(b)) => Some(a.cmp(b)),
            (Val::Duration(a), Val::Duration(b)) => Some(a.cmp(b)),
            (Val::Timestamp(a), Val::Timestamp(b)) => Some(a.cmp(b)),
            (Val::Quantity(a), Val::Quantity(b)) => Some(a.compare(b)),
            (Val::Semver(a), Val::Semver(b)) => Some(a.compare(b)),
            _ => None,
        }
    }

    /// The value as JSON, for what policies make; `None` for what has no such form.
    pub fn to_json(&self) -> Option<Value> {
        Some(match self {
            Val::Null => Value::Null,
            Val::Bool(value) => Value::Bool(*value),
            Val::Int(number) => Value::Int(*number),
            Val::Uint(number) => i64::try_from(*number).map_or(Value::Float(*number as f64), Value::Int),
            Val::Double(number) => Value::Float(*number),
            Val::Text(text) => Value::Str((**text).into()),
            Val::List(items) => Value::List(items.iter().map(Val::to_json).collect::<Option<_>>()?),
            Val::Object(value, _) => (*value).clone(),
            Val::Map(_) | Val::Message(..) => {
                let entries = self.entries()?.into_iter().map(|(key, value)| {
                    let key: Str = match key {
                        Key::Text(text) => (*text).into(),
                        Key::Int(number) => number.to_string().into(),
                        Key::Bool(value) => value.to_string().into(),
                    };
                    Some((key, value.to_json()?))
                });
                Value::Map(entries.collect::<Option<Vec<_>>>()?.into_iter().collect())
            }
            Val::Timestamp(nanos) => crate::functions::times::show_timestamp(*nanos).into(),
            Val::Duration(nanos) => crate::functions::times::show_duration(*nanos).into(),
            Val::Quantity(quantity) => quantity.to_string().into(),
            _ => return None,
        })
    }
}

/// Nanoseconds since 1970 of an RFC 3339 text.
pub fn timestamp(text: &str) -> Option<i128> {
    let micros = base::Time::parse(text)?.0;
    // What is finer than microseconds stands in the text only.
    let fraction = text.split_once('.').map_or("", |(_, rest)| rest);
    let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
    let nanos: i128 = match fraction.get(6..digits.min(9)) {
        Some(rest) if !rest.is_empty() => format!("{rest:0<3}").parse().ok()?,
        _ => 0,
    };
    Some(i128::from(micros) * 1000 + nanos)
}
