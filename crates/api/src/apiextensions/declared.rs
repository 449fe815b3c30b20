//! The types that CEL sees in a custom resource's schema, with bounds on how large values may become.

use std::collections::BTreeMap;
use std::sync::Arc;

use cel::{Bound, FieldType, ObjectType, Type};
use meta::{Str, Value};

/// Bytes of a request, which bound what no limit of the schema does.
const REQUEST_MAX_BYTES: u64 = 3 * 1024 * 1024;
/// Bytes that one letter may take.
const LETTER_BYTES: u64 = 4;
/// `"":,` of an entry.
const ENTRY_BYTES: u64 = 6;

/// The type of the values of a schema; `None` where expressions cannot see them. `root`: of a whole object.
pub fn of(schema: &Value, root: bool) -> Option<Type> {
    if schema["x-kubernetes-int-or-string"].is_true() {
        return Some(Type::Dyn);
    }
    match schema["type"].text() {
        "array" => Some(Type::List(Arc::new(of(&schema["items"], false)?), Bound(most_items(schema)))),
        "object" if schema["additionalProperties"].as_map().is_some() => {
            let value = Arc::new(of(&schema["additionalProperties"], false)?);
            Some(Type::Map(Arc::new(Type::STRING), value, Bound(most_entries(schema))))
        }
        "object" if schema["additionalProperties"].is_true() => {
            Some(Type::Map(Arc::new(Type::STRING), Arc::new(Type::Dyn), Bound(most_entries(schema))))
        }
        "object" => Some(object(schema, root)),
        "string" => Some(text(schema)),
        "boolean" => Some(Type::Bool),
        "integer" => Some(Type::Int),
        "number" => Some(Type::Double),
        _ => None,
    }
}

fn object(schema: &Value, root: bool) -> Type {
    let mut fields: BTreeMap<Str, FieldType> = BTreeMap::new();
    for (name, property) in schema["properties"].entries().iter() {
        if let (Some(escaped), Some(of)) = (cel::escape(name), of(property, false)) {
            fields.insert(escaped.into(), FieldType { name: name.into(), of });
        }
    }
    if root || schema["x-kubernetes-embedded-resource"].is_true() {
        let text = || Type::String(Bound(REQUEST_MAX_BYTES));
        for name in ["apiVersion", "kind"] {
            fields.insert(name.into(), FieldType { name: name.into(), of: text() });
        }
        let metadata = Type::object("metadata", [("name", text()), ("generateName", text())]);
        fields.insert("metadata".into(), FieldType { name: "metadata".into(), of: metadata });
    }
    Type::Object(Arc::new(ObjectType { name: "object".to_owned(), fields, open: false }))
}

fn text(schema: &Value) -> Type {
    let limit = schema["maxLength"].as_int().and_then(|length| u64::try_from(length).ok());
    let most = limit.map_or(REQUEST_MAX_BYTES - 2, |limit| limit.saturating_mul(LETTER_BYTES));
    match schema["format"].text() {
        "byte" => Type::Bytes(Bound(limit.unwrap_or(REQUEST_MAX_BYTES - 2))),
        "duration" => Type::Duration,
        "date" | "date-time" => Type::Timestamp,
        _ => match (limit, schema["enum"].items()) {
            (None, words) if !words.is_empty() => {
                Type::String(Bound(words.iter().map(|word| word.text().len() as u64).max().unwrap_or(0)))
            }
            _ => Type::String(Bound(most)),
        },
    }
}

/// Items of a list, at most.
pub fn most_items(schema: &Value) -> u64 {
    match schema["maxItems"].as_int().and_then(|count| u64::try_from(count).ok()) {
        Some(count) => count,
        None => (REQUEST_MAX_BYTES - 2) / (least_bytes(&schema["items"]) + 1),
    }
}

/// Entries of a map, at most.
pub fn most_entries(schema: &Value) -> u64 {
    match schema["maxProperties"].as_int().and_then(|count| u64::try_from(count).ok()) {
        Some(count) => count,
        None => (REQUEST_MAX_BYTES - 2) / (least_bytes(&schema["additionalProperties"]) + ENTRY_BYTES),
    }
}

/// The fewest bytes that a value takes in JSON.
fn least_bytes(schema: &Value) -> u64 {
    if schema["x-kubernetes-int-or-string"].is_true() {
        return 1;
    }
    match schema["type"].text() {
        "boolean" => 4,
        "string" => match schema["format"].text() {
            "date" => 12,
            "date-time" => 22,
            _ => 2,
        },
        "array" => 2,
        "object" => {
            let required = schema["required"].items().iter().filter(|name| {
                // What has a default need not be written.
                schema["properties"][name.text()].get("default").is_none()
            });
            let bytes = required.map(|name| {
                name.text().len() as u64 + ENTRY_BYTES - 2 + least_bytes(&schema["properties"][name.text()])
            });
            2 + bytes.sum::<u64>()
        }
        _ => 1,
    }
}
