//! Types of custom resources, from the `openAPIV3Schema` of their definition.

use std::collections::BTreeMap;

use super::{Field, ListKind, Node, NodeId, Rules, Scalar, Schema, Struct, TypeRef, Unknown};
use crate::schema::rules::Clause;
use crate::value::{Str, Value};

/// What a custom resource's version looks like.
#[derive(Debug)]
pub struct CustomSchema {
    pub schema: Schema,
    /// The value rules of the whole object.
    pub clause: Clause,
    root: NodeId,
}

impl CustomSchema {
    /// The type of the objects.
    pub fn of(&self) -> TypeRef<'_> {
        TypeRef { schema: &self.schema, node: self.root }
    }
}

/// Makes the types of a structural schema. `object_meta` is the type of every object's metadata, which the definition
/// does not describe. What is not structural is taken as far as it goes; [`super::check_definition`] reports it.
pub fn from_openapi(openapi: &Value, object_meta: TypeRef<'_>) -> CustomSchema {
    let mut builder = Builder { schema: Schema { custom: true, ..Schema::default() }, meta: NodeId(0) };
    builder.meta = builder.import(object_meta);
    builder.schema.loose_from = NodeId(builder.schema.nodes.len() as u32);
    let root = builder.node(openapi, true);
    builder.schema.settle();
    CustomSchema { schema: builder.schema, clause: Clause::of(openapi), root }
}

/// Makes the type of custom resources without schema: anything but metadata is kept.
pub fn untyped(object_meta: TypeRef<'_>) -> CustomSchema {
    let any = crate::json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    from_openapi(&any, object_meta)
}

struct Builder {
    schema: Schema,
    /// The type of metadata in this schema.
    meta: NodeId,
}

impl Builder {
    fn push(&mut self, node: Node) -> NodeId {
        self.schema.nodes.push(node);
        NodeId((self.schema.nodes.len() - 1) as u32)
    }

    /// Copies a type and all it refers to from another schema.
    fn import(&mut self, of: TypeRef<'_>) -> NodeId {
        let mut done = BTreeMap::new();
        self.copy(of, &mut done)
    }

    fn copy(&mut self, of: TypeRef<'_>, done: &mut BTreeMap<NodeId, NodeId>) -> NodeId {
        if let Some(id) = done.get(&of.node) {
            return *id;
        }
        let id = self.push(Node::Scalar(Scalar::Any));
        done.insert(of.node, id);
        let node = match of.kind() {
            Node::Struct { of: at, atomic } => {
                let found = of.schema.struct_at(*at);
                let fields: Vec<Field> = found
                    .fields()
                    .iter()
                    .map(|field| Field { of: self.copy(of.with(field.of), done), ..field.clone() })
                    .collect();
                let place = self.schema.structs.len() as u32;
                self.schema.structs.push(Struct::new(found.name.clone(), fields, found.unknown));
                Node::Struct { of: place, atomic: *atomic }
            }
            Node::List { item, kind, wrapped } => {
                Node::List { item: self.copy(of.with(*item), done), kind: kind.clone(), wrapped: *wrapped }
            }
            Node::Map { value, atomic } => Node::Map { value: self.copy(of.with(*value), done), atomic: *atomic },
            Node::Either(either, inner) => Node::Either(*either, self.copy(of.with(*inner), done)),
            scalar @ Node::Scalar(_) => scalar.clone(),
        };
        self.schema.nodes[id.0 as usize] = node;
        id
    }

    /// The type of a schema. `object`: it is a whole object, with `apiVersion`, `kind` and `metadata`.
    fn node(&mut self, openapi: &Value, object: bool) -> NodeId {
        let rules = Rules { nullable: openapi["nullable"].is_true(), default: openapi.get("default").cloned() };
        let keep = openapi["x-kubernetes-preserve-unknown-fields"].is_true();
        let node = match openapi["type"].text() {
            _ if openapi["x-kubernetes-int-or-string"].is_true() => Node::Scalar(Scalar::Any),
            "array" => self.list(openapi),
            "object" | "" if openapi["additionalProperties"].as_map().is_some() => {
                let value = self.node(&openapi["additionalProperties"], false);
                Node::Map { value, atomic: openapi["x-kubernetes-map-type"].text() == "atomic" }
            }
            "object" if openapi["additionalProperties"].is_true() => {
                let value = self.push(Node::Scalar(Scalar::Any));
                Node::Map { value, atomic: openapi["x-kubernetes-map-type"].text() == "atomic" }
            }
            "object" => self.structure(openapi, object, keep),
            "" if !openapi["properties"].entries().is_empty() || object => self.structure(openapi, object, keep),
            "boolean" => Node::Scalar(Scalar::Bool),
            "integer" => Node::Scalar(Scalar::Int64),
            "number" => Node::Scalar(Scalar::Double),
            "string" => Node::Scalar(Scalar::String),
            _ => Node::Scalar(Scalar::Any),
        };
        let id = self.push(node);
        if rules.nullable || rules.default.is_some() {
            self.schema.rules.insert(id, Box::new(rules));
        }
        id
    }

    fn list(&mut self, openapi: &Value) -> Node {
        let item = self.node(&openapi["items"], false);
        let keys = openapi["x-kubernetes-list-map-keys"].items();
        let kind = match openapi["x-kubernetes-list-type"].text() {
            "set" => ListKind::Set,
            "map" => ListKind::Map(keys.iter().map(|key| Str::from(key.text())).collect()),
            _ => ListKind::Atomic,
        };
        Node::List { item, kind, wrapped: false }
    }

    fn structure(&mut self, openapi: &Value, object: bool, keep: bool) -> Node {
        let required = openapi["required"].items();
        let mut fields = Vec::new();
        if object || openapi["x-kubernetes-embedded-resource"].is_true() {
            let text = self.push(Node::Scalar(Scalar::String));
            fields.push(Field::new("apiVersion".into(), text));
            fields.push(Field::new("kind".into(), text));
            fields.push(Field::new("metadata".into(), self.meta));
        }
        for (name, inner) in openapi["properties"].entries().iter() {
            if fields.iter().any(|field: &Field| field.name == name) {
                continue;
            }
            let mut field = Field::new(name.into(), self.node(inner, false));
            field.default = inner.get("default").map(|default| Box::new(default.clone()));
            field.required = required.iter().any(|required| required.text() == name);
            fields.push(field);
        }
        let unknown = if keep { Unknown::Keep } else { Unknown::Drop };
        let mut found = Struct::new(Str::default(), fields, unknown);
        found.loose = true;
        let place = self.schema.structs.len() as u32;
        self.schema.structs.push(found);
        Node::Struct { of: place, atomic: openapi["x-kubernetes-map-type"].text() == "atomic" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{FieldValidation, Media, decode};
    use crate::field::{At, Errors};
    use crate::json;
    use crate::schema::{check, defaults};

    fn meta() -> Schema {
        Schema::parse("package m.v1\nMeta\n labels 1 {}str o\n name 2 str o\n creationTimestamp 3 time oz\n").unwrap()
    }

    fn widget() -> CustomSchema {
        let schema = json!({"type": "object", "required": ["spec"], "properties": {"spec": {
        "type": "object", "required": ["color"], "properties": {
            "color": {"type": "string", "enum": ["red", "blue"]},
            "size": {"type": "integer", "minimum": 1, "maximum": 100, "default": 3},
            "name": {"type": "string", "pattern": "^[a-z]+$", "minLength": 2, "maxLength": 4},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                "properties": {"known": {"type": "object"}}},
            "port": {"x-kubernetes-int-or-string": true},
            "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}, "maxItems": 3},
            "parts": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["id"],
                "items": {"type": "object", "properties": {"id": {"type": "string"},
                    "n": {"type": "number", "multipleOf": 0.5}}}},
            "map": {"type": "object", "additionalProperties": {"type": "string"}},
            "when": {"type": "string", "format": "date-time", "nullable": true},
            "either": {"type": "integer", "oneOf": [{"minimum": 10}, {"maximum": 5}]},
        }}}});
        let meta = meta();
        from_openapi(&schema, meta.named("m.v1.Meta").unwrap())
    }

    fn errors(spec: Value) -> Vec<String> {
        let custom = widget();
        let object = json!({"apiVersion": "x/v1", "kind": "Widget", "spec": spec});
        let mut found = Errors::default();
        check(&At::root(&object), None, custom.of(), &custom.clause, &mut found);
        found.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn unknown_members_go_and_defaults_come() {
        let custom = widget();
        let body = br#"{"apiVersion":"x/v1","kind":"Widget","metadata":{"name":"w","bogus":1,"creationTimestamp":null},
            "spec":{"color":"red","unknown":1,"free":{"any":[1],"known":{"x":1}},"parts":[{"id":"a","y":2}],"when":null,"tags":null}}"#;
        let (mut value, warnings) = decode(body, Media::Json, custom.of(), FieldValidation::Warn).unwrap();
        assert_eq!(
            warnings,
            [
                r#"unknown field "metadata.bogus""#,
                r#"unknown field "spec.free.known.x""#,
                r#"unknown field "spec.parts[0].y""#,
                r#"unknown field "spec.unknown""#,
            ]
        );
        defaults(&mut value, custom.of());
        assert_eq!(
            String::from_utf8(value["spec"].to_json()).unwrap(),
            r#"{"color":"red","free":{"any":[1],"known":{}},"parts":[{"id":"a"}],"size":3,"when":null}"#
        );
        assert!(decode(body, Media::Json, custom.of(), FieldValidation::Strict).is_err());
        assert!(decode(br#"{"metadata":[]}"#, Media::Json, custom.of(), FieldValidation::Ignore).is_err());
    }

    #[test]
    fn values_are_checked() {
        assert_eq!(errors(json!({"color": "red", "port": 1, "when": null, "map": {"k": "v"}, "size": 5})), [""; 0]);
        assert_eq!(errors(json!({})), ["spec.color: Required value"]);
        assert_eq!(
            errors(json!([])),
            [r#"spec: Invalid value: "array": spec in body must be of type object: "array""#]
        );
        assert_eq!(
            errors(json!({"color": "x", "size": 200, "name": "ABCDEF", "port": true})),
            [
                r#"spec.color: Unsupported value: "x": supported values: "red", "blue""#,
                "spec.name: Too long: may not be more than 4 bytes",
                r#"spec.name: Invalid value: "ABCDEF": spec.name in body should match '^[a-z]+$'"#,
                r#"spec.port: Invalid value: "boolean": spec.port in body must be of type integer,string: "boolean""#,
                "spec.size: Invalid value: 200: spec.size in body should be less than or equal to 100",
            ]
        );
        assert_eq!(
            errors(json!({"color": "red", "tags": ["a", "b", "c", "a"], "parts": [{"id": "p", "n": 0}, {"id": "p"}],
                "either": 7, "when": "x", "map": {"k": 1}})),
            [
                r#"spec.either: Invalid value: 7: "spec.either" must validate one and only one schema (oneOf). Found none valid"#,
                r#"spec.map.k: Invalid value: "integer": spec.map.k in body must be of type string: "integer""#,
                "spec.tags: Too many: 4: must have at most 3 items",
                r#"spec.when: Invalid value: "x": spec.when in body must be of type date-time: "x""#,
                r#"spec.parts[1]: Duplicate value: {"id":"p"}"#,
                r#"spec.tags[3]: Duplicate value: "a""#,
            ]
        );
    }
}
