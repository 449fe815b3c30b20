//! Schemas: which fields an object may have, of which types, and how each is merged, owned and written.
//!
//! One [`Schema`] is a set of struct types. The built-in kinds share one, read from a table (`table`); a custom
//! resource has one of its own, made from its `openAPIV3Schema` (`custom`) with value rules beside it (`rules`).
//!
//! Invariants: a schema never changes after it was made; a struct's fields are sorted by name; every [`NodeId`] of a
//! schema is valid in it, so walking a type cannot fail.

mod custom;
mod defaults;
mod definition;
mod rules;
mod table;

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use crate::value::{Str, Value};

pub use custom::{CustomSchema, from_openapi, untyped};
pub use defaults::defaults;
pub use definition::check_definition;
pub use rules::{Clause, Rules, check};

/// A type in its schema's list of types.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u32);

/// Types that hold no fields of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scalar {
    Bool,
    Int32,
    Int64,
    Double,
    String,
    /// Base64 text.
    Bytes,
    /// RFC 3339 in whole seconds.
    Time,
    /// RFC 3339 with six decimals.
    MicroTime,
    /// `1h30m0s`.
    Duration,
    Quantity,
    IntOrString,
    /// Any object (`RawExtension`).
    Raw,
    /// Any JSON value as bytes (`apiextensions.JSON`).
    Json,
    /// A set of owned fields.
    FieldsV1,
    /// Any JSON value; there is no protobuf form.
    Any,
}

/// How the items of a list are told apart when two parties write it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ListKind {
    /// The list is one value.
    Atomic,
    /// Each item is its own key.
    Set,
    /// The members of each item that make its key.
    Map(Box<[Str]>),
}

/// A value that is one of two types in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Either {
    /// A boolean, or the type.
    Bool,
    /// The type, or a list of it.
    List,
    /// The type, or a list of strings.
    Strings,
}

/// What a type is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Node {
    Scalar(Scalar),
    /// A struct, by its place in the schema.
    Struct {
        of: u32,
        atomic: bool,
    },
    /// `wrapped`: in protobuf, a message that holds the list.
    List {
        item: NodeId,
        kind: ListKind,
        wrapped: bool,
    },
    /// String keys.
    Map {
        value: NodeId,
        atomic: bool,
    },
    Either(Either, NodeId),
}

/// What happens to members a struct does not name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unknown {
    /// They are reported or dropped.
    #[default]
    Drop,
    /// They are kept as they are.
    Keep,
}

/// One struct type.
#[derive(Clone, Debug, Default)]
pub struct Struct {
    /// The full name: `io.k8s.api.core.v1.Pod`; empty in custom schemas.
    pub name: Str,
    pub unknown: Unknown,
    /// A custom resource's: its members are kept as they are written.
    loose: bool,
    fields: Vec<Field>,
    /// The places of the fields that are written even when they are absent.
    written: Vec<u16>,
    /// The places of the fields that protobuf has, in the order of their numbers.
    numbered: Vec<u16>,
}

/// The number of a field in protobuf; up to three numbers where it lies in embedded messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Number(pub [u16; 3]);

/// One field.
#[derive(Clone, Debug)]
pub struct Field {
    pub name: Str,
    /// Zeros where protobuf does not have the field.
    pub number: Number,
    pub of: NodeId,
    /// Absent is not the same as zero.
    pub pointer: bool,
    /// Not written when it is empty (for a pointer: when it is absent).
    pub omit_empty: bool,
    /// Not written when it is the type's zero, which `omit_empty` does not say of structs and times.
    pub omit_zero: bool,
    /// The list type was said, not only assumed (atomic).
    pub list_said: bool,
    /// Must be given, as OpenAPI says it.
    pub required: bool,
    /// `x-kubernetes-patch-strategy: merge`.
    pub patch_merge: bool,
    /// `retainKeys`, alone or with `merge`.
    pub patch_retain_keys: bool,
    /// A patch replaces the map as a whole.
    pub patch_replace: bool,
    /// The member that tells the items of a merged list apart; empty for lists of scalars.
    pub merge_key: Str,
    /// What an absent field is filled with.
    pub default: Option<Box<Value>>,
}

/// A set of struct types.
#[derive(Debug, Default)]
pub struct Schema {
    structs: Vec<Struct>,
    nodes: Vec<Node>,
    /// The value rules of a node; custom schemas only.
    rules: HashMap<NodeId, Box<Rules>>,
    /// Structs by full name.
    names: HashMap<Str, u32>,
    /// Structs by `group/version/kind`.
    kinds: BTreeMap<Str, u32>,
    /// The types of a custom resource, whose values are kept as they are written.
    custom: bool,
    /// The first type of a custom schema that came from its definition; those before it are built in.
    loose_from: NodeId,
}

/// A type and the schema it belongs to.
#[derive(Clone, Copy)]
pub struct TypeRef<'a> {
    pub schema: &'a Schema,
    pub node: NodeId,
}

impl Number {
    /// Whether protobuf has the field.
    pub fn is_set(self) -> bool {
        self.0[0] != 0
    }
}

impl Struct {
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields
            .binary_search_by(|field| base::order(field.name.as_bytes(), name.as_bytes()))
            .ok()
            .map(|at| &self.fields[at])
    }

    /// The fields that protobuf has, in the order of their numbers.
    pub fn numbered(&self) -> impl ExactSizeIterator<Item = &Field> {
        self.numbered.iter().map(|at| &self.fields[usize::from(*at)])
    }

    /// The place of a field in [`Struct::numbered`].
    pub(crate) fn numbered_at(&self, at: usize) -> &Field {
        &self.fields[usize::from(self.numbered[at])]
    }

    /// The place in [`Struct::fields`] of the field at a place in [`Struct::numbered`].
    pub(crate) fn place(&self, at: usize) -> usize {
        usize::from(self.numbered[at])
    }

    /// Whether it is a custom resource's: its members are kept as they are written.
    pub(crate) fn is_loose(&self) -> bool {
        self.loose
    }

    /// The fields that may be written even when they are absent.
    pub(crate) fn written(&self) -> impl Iterator<Item = &Field> {
        self.written.iter().map(|at| &self.fields[usize::from(*at)])
    }

    fn new(name: Str, mut fields: Vec<Field>, unknown: Unknown) -> Struct {
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        fields.dedup_by(|a, b| a.name == b.name);
        let mut numbered: Vec<u16> = (0..u16::try_from(fields.len()).unwrap_or(u16::MAX))
            .filter(|at| fields[usize::from(*at)].number.is_set())
            .collect();
        numbered.sort_by_key(|at| fields[usize::from(*at)].number);
        Struct { name, unknown, loose: false, fields, written: Vec::new(), numbered }
    }

    /// The name without its package.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }
}

impl Field {
    /// A plain optional field.
    pub(crate) fn new(name: Str, of: NodeId) -> Field {
        Field {
            name,
            number: Number::default(),
            of,
            pointer: false,
            omit_empty: true,
            omit_zero: false,
            list_said: false,
            required: false,
            patch_merge: false,
            patch_retain_keys: false,
            patch_replace: false,
            merge_key: Str::default(),
            default: None,
        }
    }
}

impl Schema {
    /// Reads the table of the built-in kinds.
    ///
    /// # Errors
    /// The line that is not understood.
    pub fn parse(table: &str) -> Result<Schema, String> {
        table::parse(table)
    }

    /// The type of a kind's objects.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<TypeRef<'_>> {
        self.kinds.get(kind_key(group, version, kind).as_str()).map(|at| self.of_struct(*at))
    }

    /// The struct type of a full name.
    pub fn named(&self, name: &str) -> Option<TypeRef<'_>> {
        self.names.get(name).map(|at| self.of_struct(*at))
    }

    /// `(group, version, kind)` and type of every kind, in the order of these.
    pub fn kinds(&self) -> impl Iterator<Item = ([&str; 3], TypeRef<'_>)> {
        self.kinds.iter().map(|(key, at)| {
            let mut parts = key.splitn(3, '/');
            let mut part = || parts.next().unwrap_or_default();
            ([part(), part(), part()], self.of_struct(*at))
        })
    }

    pub fn structs(&self) -> &[Struct] {
        &self.structs
    }

    /// Whether values of the type are kept as they are written.
    fn is_loose(&self, id: NodeId) -> bool {
        self.custom
            && match self.node(id) {
                Node::Struct { of, .. } => self.struct_at(*of).loose,
                _ => self.loose_from <= id,
            }
    }

    /// Whether it is a custom resource's.
    pub fn is_custom(&self) -> bool {
        self.custom
    }

    /// The plain type of the struct at a place.
    fn of_struct(&self, at: u32) -> TypeRef<'_> {
        // The first nodes are the structs themselves, in their order.
        TypeRef { schema: self, node: NodeId(at) }
    }

    /// Finds out which fields are written when they are absent; after all types are known.
    fn settle(&mut self) {
        for at in 0..self.structs.len() {
            let found = &self.structs[at];
            let is_written = |place: &u16| {
                let field = &found.fields[usize::from(*place)];
                field.pointer && !field.omit_empty || !field.pointer && !found.loose && self.is_written(field)
            };
            let written = (0..found.fields.len() as u16).filter(is_written).collect();
            self.structs[at].written = written;
        }
    }

    fn is_written(&self, field: &Field) -> bool {
        match self.node(field.of) {
            Node::Scalar(Scalar::Bytes | Scalar::Any) | Node::List { .. } | Node::Map { .. } => !field.omit_empty,
            Node::Scalar(Scalar::Bool | Scalar::Int32 | Scalar::Int64 | Scalar::Double | Scalar::String) => {
                !field.omit_empty
            }
            _ => !field.omit_zero,
        }
    }

    /// What a type is.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    pub(crate) fn struct_at(&self, at: u32) -> &Struct {
        &self.structs[at as usize]
    }

    /// The value rules of a type; only custom resources have any.
    pub fn rules(&self, id: NodeId) -> Option<&Rules> {
        if self.rules.is_empty() { None } else { self.rules.get(&id).map(|rules| &**rules) }
    }

    /// Roughly the bytes it occupies.
    pub fn size_bytes(&self) -> usize {
        let fields: usize = self.structs.iter().map(|found| found.fields.capacity() * size_of::<Field>()).sum();
        fields
            + self.structs.capacity() * size_of::<Struct>()
            + self.nodes.capacity() * size_of::<Node>()
            + (self.names.capacity() + self.kinds.len()) * (size_of::<Str>() + 8)
    }
}

fn kind_key(group: &str, version: &str, kind: &str) -> Str {
    compact_str::format_compact!("{group}/{version}/{kind}")
}

impl<'a> TypeRef<'a> {
    pub fn kind(self) -> &'a Node {
        self.schema.node(self.node)
    }

    /// Another type of the same schema.
    pub fn with(self, node: NodeId) -> TypeRef<'a> {
        TypeRef { schema: self.schema, node }
    }

    /// The struct, if it is one.
    pub fn as_struct(self) -> Option<&'a Struct> {
        match self.kind() {
            Node::Struct { of, .. } => Some(self.schema.struct_at(*of)),
            _ => None,
        }
    }

    /// The type of a member: a struct's field, or a map's value.
    pub fn member(self, name: &str) -> Option<TypeRef<'a>> {
        match self.kind() {
            Node::Struct { of, .. } => self.schema.struct_at(*of).field(name).map(|field| self.with(field.of)),
            Node::Map { value, .. } => Some(self.with(*value)),
            Node::Either(_, of) => self.with(*of).member(name),
            _ => None,
        }
    }

    /// The type of a list's items.
    pub fn item(self) -> Option<TypeRef<'a>> {
        match self.kind() {
            Node::List { item, .. } => Some(self.with(*item)),
            _ => None,
        }
    }

    /// Whether values of the type are kept as they are written: a custom resource's own types.
    pub(crate) fn is_loose(self) -> bool {
        self.schema.is_loose(self.node)
    }

    pub fn rules(self) -> Option<&'a Rules> {
        self.schema.rules(self.node)
    }

    /// The Go-like name used in messages: `v1.PodSpec`, `[]v1.Container`, `map[string]string`.
    pub fn describe(self) -> String {
        match self.kind() {
            Node::Scalar(scalar) => scalar.describe().to_owned(),
            Node::Struct { of, .. } => {
                let name = &self.schema.struct_at(*of).name;
                let parts: Vec<&str> = name.rsplitn(3, '.').collect();
                match parts.as_slice() {
                    [name, version, _] => format!("{version}.{name}"),
                    _ => "object".to_owned(),
                }
            }
            Node::List { item, .. } => format!("[]{}", self.with(*item).describe()),
            Node::Map { value, .. } => format!("map[string]{}", self.with(*value).describe()),
            Node::Either(_, of) => self.with(*of).describe(),
        }
    }
}

impl fmt::Debug for TypeRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

impl Scalar {
    fn describe(self) -> &'static str {
        match self {
            Scalar::Bool => "bool",
            Scalar::Int32 => "int32",
            Scalar::Int64 => "int64",
            Scalar::Double => "float64",
            Scalar::String => "string",
            Scalar::Bytes => "[]uint8",
            Scalar::Time => "v1.Time",
            Scalar::MicroTime => "v1.MicroTime",
            Scalar::Duration => "v1.Duration",
            Scalar::Quantity => "resource.Quantity",
            Scalar::IntOrString => "intstr.IntOrString",
            Scalar::Raw => "runtime.RawExtension",
            Scalar::Json => "v1.JSON",
            Scalar::FieldsV1 => "v1.FieldsV1",
            Scalar::Any => "any",
        }
    }
}
