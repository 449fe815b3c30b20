//! Whether the schema in a definition is structural: every value has one known type, and no rule changes that.

use regex::Regex;

use super::rules::Clause;
use super::{TypeRef, check, from_openapi};
use crate::field::{At, Errors};
use crate::value::Value;

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

/// Adds all that is wrong with the schema at `at` (`spec.versions[0].schema.openAPIV3Schema`, say). CEL rules are only
/// looked at for being there. `object_meta` is the type of metadata.
pub fn check_definition(at: &At<'_>, object_meta: TypeRef<'_>, errors: &mut Errors) {
    match at.value["type"].text() {
        "" => errors.required(&at.path.field("type"), "must not be empty at the root"),
        "object" => {}
        _ => errors.invalid(&at.field("type"), "must be object at the root"),
    }
    if at.value["nullable"].is_true() {
        errors.forbidden(&at.path.field("nullable"), "nullable cannot be true at the root");
    }
    metadata(&at.field("properties").field("metadata"), errors);
    node(at, Place::Root, object_meta, errors);
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Root,
    /// A property or an additional property.
    Field,
    Item,
    /// Inside `allOf`, `anyOf`, `oneOf` or `not`: only rules, no structure.
    Rule,
}

fn metadata(at: &At<'_>, errors: &mut Errors) {
    for (name, _) in at.field("properties").members() {
        if !matches!(name, "name" | "generateName") {
            let properties = at.path.field("properties");
            errors.forbidden(&properties.key(name), "must not be specified: only name and generateName may be");
        }
    }
}

fn node(at: &At<'_>, place: Place, object_meta: TypeRef<'_>, errors: &mut Errors) {
    forbidden(at, errors);
    if place == Place::Rule {
        rule_only(at, errors);
    } else {
        types(at, place, errors);
        lists(at, errors);
        default(at, object_meta, errors);
    }
    if let Some(pattern) = at.value["pattern"].as_str()
        && let Err(error) = Regex::new(pattern)
    {
        errors.invalid(&at.field("pattern"), format!("must be a valid regular expression, but isn't: {error}"));
    }
    for (place, rule) in at.value["x-kubernetes-validations"].items().iter().enumerate() {
        if rule["rule"].text().trim().is_empty() {
            let rules = at.path.field("x-kubernetes-validations");
            errors.required(&rules.index(place).field("rule"), "rule is not specified");
        }
    }
    below(at, place, object_meta, errors);
}

fn below(at: &At<'_>, place: Place, object_meta: TypeRef<'_>, errors: &mut Errors) {
    let inner = |usual: Place| if place == Place::Rule { Place::Rule } else { usual };
    let properties = at.field("properties");
    for (name, property) in properties.members() {
        let is_metadata = place == Place::Root && matches!(name, "metadata" | "apiVersion" | "kind");
        if !is_metadata {
            node(&property, inner(Place::Field), object_meta, errors);
        }
    }
    for (key, usual) in [("items", Place::Item), ("additionalProperties", Place::Field)] {
        if at.value[key].as_map().is_some() {
            node(&at.field(key), inner(usual), object_meta, errors);
        }
    }
    if at.value["not"].as_map().is_some() {
        node(&at.field("not"), Place::Rule, object_meta, errors);
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        for clause in at.field(key).items() {
            node(&clause, Place::Rule, object_meta, errors);
        }
    }
}

/// Keywords that no schema may use.
fn forbidden(at: &At<'_>, errors: &mut Errors) {
    for key in ["$ref", "definitions", "dependencies", "patternProperties", "additionalItems", "deprecated", "id"] {
        let used = at.field(key);
        if used.is_set() && !used.is_empty() {
            errors.forbidden(&used.path, format!("{key} is not supported"));
        }
    }
    if at.value["uniqueItems"].is_true() {
        let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.forbidden(&at.path.field("uniqueItems"), why);
    }
    if at.value["additionalProperties"] == Value::Bool(false) {
        errors.forbidden(&at.path.field("additionalProperties"), "additionalProperties cannot be set to false");
    }
    if !at.value["properties"].entries().is_empty() && at.value["additionalProperties"].as_map().is_some() {
        let why = "additionalProperties and properties are mutual exclusive";
        errors.forbidden(&at.path.field("additionalProperties"), why);
    }
    if !at.value["items"].items().is_empty() {
        errors.forbidden(&at.path.field("items"), "items must be a schema object and not an array");
    }
    if at.value["x-kubernetes-preserve-unknown-fields"] == Value::Bool(false) {
        errors.invalid(&at.field("x-kubernetes-preserve-unknown-fields"), "must be true or undefined");
    }
}

/// Keywords that give structure have no place in rules.
fn rule_only(at: &At<'_>, errors: &mut Errors) {
    for key in [
        "type",
        "additionalProperties",
        "default",
        "nullable",
        "description",
        "title",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-embedded-resource",
        "x-kubernetes-int-or-string",
        "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-map-type",
        "x-kubernetes-validations",
    ] {
        let used = at.field(key);
        // `anyOf: [{type: integer}, {type: string}]` is how an int-or-string is written.
        let is_choice = key == "type" && matches!(used.text(), "integer" | "string") && at.map().len() == 1;
        if used.is_set() && !used.is_empty() && !is_choice {
            errors.forbidden(&used.path, "must be empty to be structural");
        }
    }
}

fn types(at: &At<'_>, place: Place, errors: &mut Errors) {
    let of_type = at.field("type");
    let int_or_string = at.value["x-kubernetes-int-or-string"].is_true();
    let keeps = at.value["x-kubernetes-preserve-unknown-fields"].is_true();
    match of_type.text() {
        "" if int_or_string || keeps || place == Place::Root => {}
        "" => {
            let what = if place == Place::Item { "array items" } else { "object fields" };
            errors.required(&of_type.path, format!("must not be empty for specified {what}"));
        }
        _ if int_or_string => errors.invalid(&of_type, "must be empty if x-kubernetes-int-or-string is true"),
        "array" if at.value["items"].as_map().is_none() => {
            errors.required(&at.path.field("items"), "must be specified")
        }
        known if TYPES.contains(&known) => {}
        _ => errors.not_supported(&of_type, &TYPES),
    }
    if at.value["x-kubernetes-embedded-resource"].is_true() {
        if of_type.text() != "object" {
            errors.invalid(&of_type, "must be object if x-kubernetes-embedded-resource is true");
        }
        if !keeps && at.value["properties"].entries().is_empty() {
            let why = "must not be empty if x-kubernetes-embedded-resource is true \
                without x-kubernetes-preserve-unknown-fields";
            errors.required(&at.path.field("properties"), why);
        }
    }
    let map_type = at.field("x-kubernetes-map-type");
    if map_type.is_set() {
        if !matches!(map_type.text(), "atomic" | "granular") {
            errors.not_supported(&map_type, &["atomic", "granular"]);
        }
        if of_type.text() != "object" {
            errors.invalid(&of_type, "must be object if x-kubernetes-map-type is specified");
        }
    }
}

fn lists(at: &At<'_>, errors: &mut Errors) {
    let list_type = at.field("x-kubernetes-list-type");
    let of_type = at.field("type");
    let keys = at.field("x-kubernetes-list-map-keys");
    if list_type.is_set() {
        match of_type.text() {
            "array" => {}
            "" => errors.required(&of_type.path, "must be array if x-kubernetes-list-type is specified"),
            _ => errors.invalid(&of_type, "must be array if x-kubernetes-list-type is specified"),
        }
        if !matches!(list_type.text(), "atomic" | "set" | "map") {
            errors.not_supported(&list_type, &["atomic", "set", "map"]);
        }
    }
    if !keys.value.items().is_empty() && list_type.text() != "map" {
        let why = "must be map if x-kubernetes-list-map-keys is non-empty";
        match list_type.is_set() {
            true => errors.invalid(&list_type, why),
            false => errors.required(&list_type.path, why),
        }
    }
    if list_type.text() == "map" {
        map_list(at, &keys, errors);
    }
    if list_type.text() == "set" {
        let items = at.field("items");
        let is_whole = |key: &str| items.value[key].text() == "atomic";
        let whole = match items.value["type"].text() {
            "object" => is_whole("x-kubernetes-map-type"),
            "array" => is_whole("x-kubernetes-list-type"),
            _ => true,
        };
        if !whole {
            errors.invalid(&items, "items of a set must be scalars, atomic lists or atomic maps");
        }
        if items.value["nullable"].is_true() {
            errors.forbidden(&items.path.field("nullable"), "cannot be nullable when x-kubernetes-list-type is set");
        }
    }
}

fn map_list(at: &At<'_>, keys: &At<'_>, errors: &mut Errors) {
    if keys.value.items().is_empty() {
        errors.required(&keys.path, "must not be empty if x-kubernetes-list-type is map");
    }
    let items = at.field("items");
    if items.is_set() && items.value["type"].text() != "object" {
        let of_type = items.field("type");
        let shown = of_type.text();
        errors.invalid_value(&of_type.path, shown, "must be object if parent array's x-kubernetes-list-type is map");
    }
    let properties = items.field("properties");
    let all_named = keys.value.items().iter().all(|key| properties.value.get(key.text()).is_some());
    if !all_named {
        errors.invalid(keys, "entries must all be names of item properties");
    }
    for (place, key) in keys.value.items().iter().enumerate() {
        if keys.value.items()[..place].contains(key) {
            errors.duplicate(&keys.index(place));
        }
        let Some(property) = properties.value.get(key.text()) else { continue };
        let path = properties.path.key(key.text());
        if matches!(property["type"].text(), "array" | "object") {
            let why = "must be a scalar type if parent array's x-kubernetes-list-type is map";
            errors.invalid_value(&path.field("type"), property["type"].text(), why);
        }
        let is_required = items.value["required"].items().contains(key);
        if !is_required && property.get("default").is_none() {
            let why =
                "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            errors.required(&path.field("default"), why);
        }
        if property["nullable"].is_true() {
            let why = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.forbidden(&path.field("nullable"), why);
        }
    }
}

/// A default must be a value that its schema takes, and hold nothing that would be dropped.
fn default(at: &At<'_>, object_meta: TypeRef<'_>, errors: &mut Errors) {
    let Some(value) = at.value.get("default") else { return };
    let path = at.path.field("default");
    let custom = from_openapi(&crate::json!({"type": "object", "properties": {"x": (at.value.clone())}}), object_meta);
    let Some(of) = custom.of().member("x") else { return };
    let mut pruned = value.clone();
    let mut unknown = Vec::new();
    if crate::normalise::normalise(&mut pruned, of, &mut unknown).is_err() || !unknown.is_empty() {
        errors.invalid_value(&path, value.clone(), "must not have unknown fields");
    }
    let mut found = Errors::default();
    check(&At::root(value), None, of, &Clause::of(at.value), &mut found);
    for error in found.0 {
        let field = match error.field.as_str() {
            "<nil>" => path.to_string(),
            below => format!("{path}.{below}"),
        };
        let detail = error.detail.replace("<nil> in body", " in body");
        errors.0.push(crate::field::FieldError { field, detail, ..error });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;
    use crate::schema::Schema;

    fn told(schema: Value) -> Vec<String> {
        let meta = Schema::parse("package m.v1\nMeta\n name 1 str o\n").unwrap();
        let mut errors = Errors::default();
        check_definition(&At::root(&schema), meta.named("m.v1.Meta").unwrap(), &mut errors);
        errors.0.iter().map(ToString::to_string).collect()
    }

    fn property(schema: Value) -> Vec<String> {
        told(json!({"type": "object", "properties": {"p": schema}}))
    }

    #[test]
    fn structural_schemas_pass() {
        assert_eq!(property(json!({"type": "object", "additionalProperties": {"type": "string"}})), [""; 0]);
        let choice = json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]});
        assert_eq!(property(choice), [""; 0]);
        assert_eq!(property(json!({"x-kubernetes-preserve-unknown-fields": true})), [""; 0]);
        assert_eq!(property(json!({"type": "integer", "default": 3, "minimum": 1})), [""; 0]);
    }

    #[test]
    fn what_is_not_structural_is_told() {
        for (schema, error) in [
            (json!({}), "properties[p].type: Required value: must not be empty for specified object fields"),
            (json!({"type": "array"}), "properties[p].items: Required value: must be specified"),
            (
                json!({"type": "integer", "default": 0, "minimum": 1}),
                "properties[p].default: Invalid value: 0:  in body should be greater than or equal to 1",
            ),
            (
                json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-map-keys": ["a"]}),
                "properties[p].x-kubernetes-list-type: Required value: must be map if x-kubernetes-list-map-keys is non-empty",
            ),
            (
                json!({"type": "string", "x-kubernetes-validations": [{"rule": " "}]}),
                "properties[p].x-kubernetes-validations[0].rule: Required value: rule is not specified",
            ),
            (
                json!({"type": "object", "allOf": [{"properties": {"a": {"type": "object"}}}]}),
                "properties[p].allOf[0].properties[a].type: Forbidden: must be empty to be structural",
            ),
            (json!({"type": "x"}), "properties[p].type: Unsupported value: \"x\": supported values"),
        ] {
            let found = property(schema);
            assert!(found.len() == 1 && found[0].starts_with(error), "{found:?}");
        }
        assert_eq!(told(json!({})), ["type: Required value: must not be empty at the root"]);
    }
}
