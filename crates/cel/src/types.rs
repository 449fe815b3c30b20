//! Types of expressions, and how large their values may be.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, LazyLock};

use meta::Str;

/// The most elements or bytes that a value has. Bounds do not tell types apart: all are equal.
#[derive(Clone, Copy, Debug)]
pub struct Bound(pub u64);

impl Bound {
    pub const NONE: Bound = Bound(u64::MAX);
}

impl PartialEq for Bound {
    fn eq(&self, _: &Bound) -> bool {
        true
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    /// Known only when it is evaluated.
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String(Bound),
    Bytes(Bound),
    Duration,
    Timestamp,
    List(Arc<Type>, Bound),
    Map(Arc<Type>, Arc<Type>, Bound),
    Object(Arc<ObjectType>),
    Optional(Arc<Type>),
    /// The type of types.
    Type,
    /// A type of the libraries: `quantity`, `url` …
    Opaque(&'static str),
    /// A parameter of a signature.
    Param(u8),
}

/// A type with named fields.
#[derive(Debug, Default)]
pub struct ObjectType {
    pub name: String,
    /// Fields by the name that expressions use.
    pub fields: BTreeMap<Str, FieldType>,
    /// Other fields are taken as they come.
    pub open: bool,
}

#[derive(Debug)]
pub struct FieldType {
    /// The name in JSON.
    pub name: Str,
    pub of: Type,
}

impl PartialEq for ObjectType {
    fn eq(&self, other: &ObjectType) -> bool {
        std::ptr::eq(self, other) || self.name == other.name && self.fields.keys().eq(other.fields.keys())
    }
}

/// Objects of which nothing is known.
pub static ANY: LazyLock<Arc<ObjectType>> =
    LazyLock::new(|| Arc::new(ObjectType { name: "object".to_owned(), open: true, ..ObjectType::default() }));

impl Type {
    pub const STRING: Type = Type::String(Bound::NONE);

    pub fn list(of: Type) -> Type {
        Type::List(Arc::new(of), Bound::NONE)
    }

    pub fn map(key: Type, value: Type) -> Type {
        Type::Map(Arc::new(key), Arc::new(value), Bound::NONE)
    }

    /// An object type of these fields, named as they are in JSON.
    pub fn object(name: &str, fields: impl IntoIterator<Item = (&'static str, Type)>) -> Type {
        let fields = fields.into_iter().map(|(name, of)| (name.into(), FieldType { name: name.into(), of }));
        Type::Object(Arc::new(ObjectType { name: name.to_owned(), fields: fields.collect(), open: false }))
    }

    /// The most elements or bytes; 1 for what has one size.
    pub fn bound(&self) -> u64 {
        match self {
            Type::String(bound) | Type::Bytes(bound) | Type::List(_, bound) | Type::Map(_, _, bound) => bound.0,
            Type::Dyn | Type::Param(_) => u64::MAX,
            _ => 1,
        }
    }

    /// The same type with another bound, where it has one.
    pub fn bounded(self, most: u64) -> Type {
        match self {
            Type::String(_) => Type::String(Bound(most)),
            Type::Bytes(_) => Type::Bytes(Bound(most)),
            Type::List(of, _) => Type::List(of, Bound(most)),
            Type::Map(key, value, _) => Type::Map(key, value, Bound(most)),
            other => other,
        }
    }

    pub fn is_dyn(&self) -> bool {
        matches!(self, Type::Dyn)
    }

    /// Whether a value of `self` may stand where `wanted` is asked for; binds the parameters of `wanted`.
    pub fn fits(&self, wanted: &Type, bound: &mut HashMap<u8, Type>) -> bool {
        match (wanted, self) {
            (Type::Param(id), _) => match bound.get(id).cloned() {
                None | Some(Type::Dyn) => {
                    bound.insert(*id, self.clone());
                    true
                }
                Some(known) => self.fits(&known, bound) || known.fits(self, bound),
            },
            (Type::Dyn, _) | (_, Type::Dyn) => true,
            (Type::List(wanted, _), Type::List(found, _)) | (Type::Optional(wanted), Type::Optional(found)) => {
                found.fits(wanted, bound)
            }
            (Type::Map(key, value, _), Type::Map(found_key, found_value, _)) => {
                found_key.fits(key, bound) && found_value.fits(value, bound)
            }
            (Type::Object(_) | Type::Duration | Type::Timestamp | Type::Opaque(_), Type::Null) => true,
            (wanted, found) => wanted == found,
        }
    }

    /// The type with its parameters replaced.
    pub fn resolve(&self, bound: &HashMap<u8, Type>) -> Type {
        match self {
            Type::Param(id) => bound.get(id).cloned().unwrap_or(Type::Dyn),
            Type::List(of, most) => Type::List(Arc::new(of.resolve(bound)), *most),
            Type::Map(key, value, most) => {
                Type::Map(Arc::new(key.resolve(bound)), Arc::new(value.resolve(bound)), *most)
            }
            Type::Optional(of) => Type::Optional(Arc::new(of.resolve(bound))),
            other => other.clone(),
        }
    }

    /// Reads the words of signatures: `list<A>`, `map<string,B>`, `quantity`.
    pub(crate) fn parse(text: &str) -> Type {
        let text = text.trim();
        if let Some((outer, inner)) = text.strip_suffix('>').and_then(|text| text.split_once('<')) {
            return match outer {
                "list" => Type::list(Type::parse(inner)),
                "optional" => Type::Optional(Arc::new(Type::parse(inner))),
                _ => {
                    let (key, value) = inner.split_once(',').unwrap_or(("dyn", inner));
                    Type::map(Type::parse(key), Type::parse(value))
                }
            };
        }
        match text {
            "dyn" => Type::Dyn,
            "null" => Type::Null,
            "bool" => Type::Bool,
            "int" => Type::Int,
            "uint" => Type::Uint,
            "double" => Type::Double,
            "string" => Type::STRING,
            "bytes" => Type::Bytes(Bound::NONE),
            "duration" => Type::Duration,
            "timestamp" => Type::Timestamp,
            "type" => Type::Type,
            "A" => Type::Param(0),
            "B" => Type::Param(1),
            other => {
                let known = OPAQUE.iter().find(|name| **name == other);
                known.map_or(Type::Dyn, |name| Type::Opaque(name))
            }
        }
    }
}

/// The types of the libraries.
pub const OPAQUE: &[&str] = &[
    "quantity",
    "url",
    "ip",
    "cidr",
    "semver",
    "format",
    "authorizer",
    "pathCheck",
    "groupCheck",
    "resourceCheck",
    "decision",
];

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Dyn => f.write_str("dyn"),
            Type::Null => f.write_str("null"),
            Type::Bool => f.write_str("bool"),
            Type::Int => f.write_str("int"),
            Type::Uint => f.write_str("uint"),
            Type::Double => f.write_str("double"),
            Type::String(_) => f.write_str("string"),
            Type::Bytes(_) => f.write_str("bytes"),
            Type::Duration => f.write_str("duration"),
            Type::Timestamp => f.write_str("timestamp"),
            Type::List(of, _) => write!(f, "list({of})"),
            Type::Map(key, value, _) => write!(f, "map({key}, {value})"),
            Type::Object(of) => f.write_str(&of.name),
            Type::Optional(of) => write!(f, "optional({of})"),
            Type::Type => f.write_str("type"),
            Type::Opaque(name) => f.write_str(name),
            Type::Param(id) => write!(f, "{}", char::from(b'A' + id)),
        }
    }
}
