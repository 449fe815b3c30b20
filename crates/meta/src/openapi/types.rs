//! The schemas of a document.

use std::collections::BTreeSet;

use super::{Describe, Form, META, Served, reachable};
use crate::Str;
use crate::json;
use crate::schema::{Field, ListKind, Node, Scalar, Schema, Struct, TypeRef};
use crate::value::{Map, Value};

/// Types that are no structs but have a name in documents.
const NAMED: [(Scalar, &str); 8] = [
    (Scalar::Time, "io.k8s.apimachinery.pkg.apis.meta.v1.Time"),
    (Scalar::MicroTime, "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime"),
    (Scalar::Duration, "io.k8s.apimachinery.pkg.apis.meta.v1.Duration"),
    (Scalar::Quantity, "io.k8s.apimachinery.pkg.api.resource.Quantity"),
    (Scalar::IntOrString, "io.k8s.apimachinery.pkg.util.intstr.IntOrString"),
    (Scalar::FieldsV1, "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1"),
    (Scalar::Raw, "io.k8s.apimachinery.pkg.runtime.RawExtension"),
    (Scalar::Json, "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON"),
];
/// A built-in kind whose common members are described.
const DESCRIBED: &str = "io.k8s.api.core.v1.ConfigMap";
const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";

/// The schemas that were asked for so far.
pub(super) struct Types<'a> {
    form: Form,
    builtin: &'a Schema,
    describe: Describe<'a>,
    wanted: BTreeSet<String>,
    done: Map,
}

fn preserves(schema: &Value) -> bool {
    schema["x-kubernetes-preserve-unknown-fields"].is_true()
}

/// Takes out of a definition's schema what v2 cannot say (`ToStructuralOpenAPIV2` of upstream's apiextensions server):
/// alternatives, values that may be null, and the members of what keeps unknown ones.
fn loosen(schema: &mut Value) {
    for key in ["allOf", "anyOf", "oneOf", "not"] {
        schema.take(&[key]);
    }
    if schema["nullable"].is_true() {
        for key in ["nullable", "type", "properties", "items", "additionalProperties"] {
            schema.take(&[key]);
        }
    }
    if preserves(schema) {
        for key in ["properties", "items"] {
            schema.take(&[key]);
        }
    }
    let nullable: Vec<Str> = schema["properties"]
        .entries()
        .iter()
        .filter(|(_, of)| of["nullable"].is_true())
        .map(|(name, _)| name.into())
        .collect();
    if !nullable.is_empty() {
        let required = schema["required"].items().iter().filter(|name| !nullable.iter().any(|one| *one == name.text()));
        let required: Vec<Value> = required.cloned().collect();
        match required.is_empty() {
            true => drop(schema.take(&["required"])),
            false => schema.set(&["required"], required),
        }
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get_mut(key).filter(|inner| inner.as_map().is_some()) {
            loosen(inner);
        }
    }
    let names: Vec<Str> = schema["properties"].entries().keys().map(Str::from).collect();
    for name in names {
        if let Some(inner) = schema.get_mut("properties").and_then(|all| all.get_mut(&name)) {
            loosen(inner);
        }
    }
}

impl<'a> Types<'a> {
    pub fn new(form: Form, builtin: &'a Schema, describe: Describe<'a>) -> Types<'a> {
        Types { form, builtin, describe, wanted: BTreeSet::new(), done: Map::new() }
    }

    /// A reference to a type of `meta/v1`.
    pub fn meta(&mut self, name: &str) -> Value {
        self.named(&format!("{META}.{name}"))
    }

    /// A reference to the type of all patches.
    pub fn patch(&mut self) -> Value {
        self.done.insert(PATCH, json!({"type": "object"}));
        self.form.reference(PATCH)
    }

    /// A reference to a built-in type.
    fn named(&mut self, name: &str) -> Value {
        if let Some(of) = self.builtin.named(name) {
            reachable(of, &mut self.wanted);
        }
        self.form.reference(name)
    }

    /// A reference to the built-in kind, if there is one.
    pub fn kind(&mut self, group: &str, version: &str, kind: &str) -> Option<Value> {
        let name = self.builtin.kind(group, version, kind)?.as_struct()?.name.to_string();
        Some(self.named(&name))
    }

    /// References to the type of a resource and of its lists.
    pub fn resource(&mut self, served: &Served<'_>) -> (Value, Value) {
        let names = served.names;
        let Some(openapi) = served.custom else {
            let object = self.kind(&names.group, &names.version, &names.kind).unwrap_or_default();
            let list = self.kind(&names.group, &names.version, &names.list_kind).unwrap_or_default();
            return (object, list);
        };
        let reversed: Vec<&str> = names.group.rsplit('.').collect();
        let package = format!("{}.{}", reversed.join("."), names.version);
        let (object, list) = (format!("{package}.{}", names.kind), format!("{package}.{}", names.list_kind));
        let gvk = |kind: &str| json!([{"group": (&names.group), "version": (&names.version), "kind": kind}]);
        let meta = self.meta("ObjectMeta");
        let mut schema = openapi.clone();
        schema.default("type", "object");
        if self.form == Form::V2 && preserves(&schema) {
            // Clients take members that v2 does not list for forbidden: so it lists none.
            schema = json!({"type": "object"});
        } else {
            if self.form == Form::V2 {
                loosen(&mut schema);
            }
            for (name, of) in self.typed(meta) {
                schema.set(&["properties", name], of);
            }
        }
        schema.set(&["x-kubernetes-group-version-kind"], gvk(&names.kind));
        self.done.insert(object.as_str(), schema);
        let list_meta = self.meta("ListMeta");
        let items = json!({"type": "array", "items": (self.form.reference(&object))});
        let mut list_schema = json!({
            "description": (format!("{} is a list of {}", names.list_kind, names.kind)),
            "type": "object", "required": ["items"], "properties": {"items": items},
            "x-kubernetes-group-version-kind": (gvk(&names.list_kind)),
        });
        for (name, of) in self.typed(list_meta) {
            list_schema.set(&["properties", name], of);
        }
        self.done.insert(list.as_str(), list_schema);
        (self.form.reference(&object), self.form.reference(&list))
    }

    /// The members that every object has, and lists, in the words of a built-in kind.
    fn typed(&self, meta: Value) -> [(&'static str, Value); 3] {
        let with = |name: &str, mut of: Value| {
            if let Some(words) = (self.describe)(DESCRIBED, name) {
                of.set(&["description"], words);
            }
            of
        };
        [
            ("apiVersion", with("apiVersion", json!({"type": "string"}))),
            ("kind", with("kind", json!({"type": "string"}))),
            ("metadata", with("metadata", self.holder(meta))),
        ]
    }

    /// A reference as a field has it: in v3 inside `allOf`, so that other keywords may stand beside it.
    fn holder(&self, reference: Value) -> Value {
        match self.form {
            Form::V2 => reference,
            Form::V3 => json!({"allOf": [reference]}),
        }
    }

    /// All schemas.
    pub fn finish(mut self) -> Map {
        let wanted = std::mem::take(&mut self.wanted);
        for name in &wanted {
            let Some(of) = self.builtin.named(name) else { continue };
            let Some(found) = of.as_struct() else { continue };
            let schema = self.structure(of, found);
            self.done.insert(name.as_str(), schema);
        }
        self.done
    }

    fn structure(&mut self, of: TypeRef<'_>, found: &Struct) -> Value {
        let mut properties = Map::new();
        for field in found.fields() {
            let mut schema = self.field(of.with(field.of), field);
            if let Some(words) = (self.describe)(&found.name, &field.name) {
                schema.set(&["description"], words);
            }
            properties.insert(field.name.clone(), schema);
        }
        let mut schema = json!({"type": "object"});
        if !properties.is_empty() {
            schema.set(&["properties"], properties);
        }
        let required: Vec<Value> =
            found.fields().iter().filter(|field| field.required).map(|field| Value::from(&field.name)).collect();
        if !required.is_empty() {
            schema.set(&["required"], required);
        }
        if let Some(words) = (self.describe)(&found.name, "") {
            schema.set(&["description"], words);
        }
        if matches!(of.kind(), Node::Struct { atomic: true, .. }) {
            schema.set(&["x-kubernetes-map-type"], "atomic");
        }
        let mut kinds: Vec<[&str; 3]> =
            self.builtin.kinds().filter(|(_, kind)| kind.node == of.node).map(|(names, _)| names).collect();
        kinds.sort_unstable();
        if !kinds.is_empty() {
            let kinds = kinds
                .iter()
                .map(|[group, version, kind]| json!({"group": (*group), "version": (*version), "kind": (*kind)}));
            schema.set(&["x-kubernetes-group-version-kind"], kinds.collect::<Vec<_>>());
        }
        schema
    }

    fn field(&mut self, of: TypeRef<'_>, field: &Field) -> Value {
        let mut schema = self.value(of, !field.pointer);
        if !field.list_said {
            schema.take(&["x-kubernetes-list-type"]);
        }
        if field.patch_replace {
            schema.set(&["x-kubernetes-patch-strategy"], "replace");
        }
        if field.patch_merge || field.patch_retain_keys {
            let strategy = match (field.patch_merge, field.patch_retain_keys) {
                (true, true) => "merge,retainKeys",
                (true, false) => "merge",
                _ => "retainKeys",
            };
            schema.set(&["x-kubernetes-patch-strategy"], strategy);
        }
        if !field.merge_key.is_empty() {
            schema.set(&["x-kubernetes-patch-merge-key"], &field.merge_key);
        }
        let is_plain = matches!(
            of.kind(),
            Node::Scalar(Scalar::Bool | Scalar::Int32 | Scalar::Int64 | Scalar::Double | Scalar::String)
        );
        match &field.default {
            Some(default) => schema.set(&["default"], (**default).clone()),
            None if is_plain && (field.pointer || field.omit_empty) => drop(schema.take(&["default"])),
            None => {}
        }
        schema
    }

    /// A type where it is used; `with_zero`: with what Go makes of its absence.
    fn value(&mut self, of: TypeRef<'_>, with_zero: bool) -> Value {
        let mut schema = match of.kind() {
            Node::Scalar(scalar) => return self.scalar(*scalar, with_zero),
            Node::Struct { .. } => {
                let name = of.as_struct().map(|found| found.name.to_string()).unwrap_or_default();
                let mut schema = self.holder(self.form.reference(&name));
                if with_zero {
                    schema.set(&["default"], Value::map());
                }
                schema
            }
            Node::List { item, kind, .. } => {
                let mut schema = json!({"type": "array", "items": (self.element(of.with(*item)))});
                match kind {
                    ListKind::Atomic => schema.set(&["x-kubernetes-list-type"], "atomic"),
                    ListKind::Set => schema.set(&["x-kubernetes-list-type"], "set"),
                    ListKind::Map(keys) => {
                        schema.set(&["x-kubernetes-list-type"], "map");
                        let keys: Vec<Value> = keys.iter().map(Value::from).collect();
                        schema.set(&["x-kubernetes-list-map-keys"], keys);
                    }
                }
                schema
            }
            Node::Map { value, .. } => {
                json!({"type": "object", "additionalProperties": (self.element(of.with(*value)))})
            }
            // One of several types: nothing can be said of it.
            Node::Either(..) => Value::map(),
        };
        if matches!(of.kind(), Node::Map { atomic: true, .. }) {
            schema.set(&["x-kubernetes-map-type"], "atomic");
        }
        schema
    }

    /// The type of a list's items or of a map's values: a bare reference, or a type without default.
    fn element(&mut self, of: TypeRef<'_>) -> Value {
        let mut schema = self.value(of, false);
        match schema["allOf"].items() {
            [reference] => reference.clone(),
            _ => {
                schema.take(&["default"]);
                schema
            }
        }
    }

    fn scalar(&mut self, scalar: Scalar, with_zero: bool) -> Value {
        if let Some((_, name)) = NAMED.iter().find(|(named, _)| *named == scalar) {
            let schema = self.scalar_type(scalar);
            self.done.insert(*name, schema);
            return self.holder(self.form.reference(name));
        }
        let mut schema = self.scalar_type(scalar);
        if with_zero {
            match scalar {
                Scalar::Bool => schema.set(&["default"], false),
                Scalar::Int32 | Scalar::Int64 | Scalar::Double => schema.set(&["default"], 0),
                Scalar::String => schema.set(&["default"], ""),
                _ => {}
            }
        }
        schema
    }

    fn scalar_type(&self, scalar: Scalar) -> Value {
        match (scalar, self.form) {
            (Scalar::Bool, _) => json!({"type": "boolean"}),
            (Scalar::Int32, _) => json!({"type": "integer", "format": "int32"}),
            (Scalar::Int64, _) => json!({"type": "integer", "format": "int64"}),
            (Scalar::Double, _) => json!({"type": "number", "format": "double"}),
            (Scalar::String | Scalar::Duration, _) => json!({"type": "string"}),
            (Scalar::Bytes, _) => json!({"type": "string", "format": "byte"}),
            (Scalar::Time | Scalar::MicroTime, _) => json!({"type": "string", "format": "date-time"}),
            (Scalar::Quantity, Form::V3) => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
            (Scalar::Quantity, Form::V2) => json!({"type": "string"}),
            (Scalar::IntOrString, Form::V3) => {
                json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
            }
            (Scalar::IntOrString, Form::V2) => json!({"type": "string", "format": "int-or-string"}),
            (Scalar::Raw | Scalar::FieldsV1, _) => json!({"type": "object"}),
            (Scalar::Json | Scalar::Any, _) => Value::map(),
        }
    }
}
