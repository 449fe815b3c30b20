//! The value rules of custom resources: what JSON schema can say of a value beyond its fields' names.
//!
//! Not here: rules written in CEL (`api::apiextensions::validations`).

mod check;
mod format;

use regex::Regex;

use crate::value::{Str, Value};

pub use check::check;

/// What a schema node says besides types and fields: kept by the type it stands at.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    pub nullable: bool,
    /// What an absent or null item or value is filled with.
    pub default: Option<Value>,
}

/// The value rules of one schema node and all below it.
#[derive(Clone, Debug, Default)]
pub struct Clause {
    /// `object`, `array`, `string` …; empty allows all.
    pub of_type: Str,
    pub format: Str,
    pub nullable: bool,
    pub int_or_string: bool,
    pub enumeration: Vec<Value>,
    pub minimum: Option<f64>,
    pub maximum: Option<f64>,
    pub exclusive_minimum: bool,
    pub exclusive_maximum: bool,
    pub multiple_of: Option<f64>,
    pub min_length: Option<u64>,
    pub max_length: Option<u64>,
    pub min_items: Option<u64>,
    pub max_items: Option<u64>,
    pub min_properties: Option<u64>,
    pub max_properties: Option<u64>,
    pub pattern: Option<Regex>,
    pub required: Vec<Str>,
    pub unique_items: bool,
    /// Members that tell the items of a list apart.
    pub keys: Vec<Str>,
    /// Sorted by name.
    pub properties: Vec<(Str, Clause)>,
    pub items: Option<Box<Clause>>,
    pub additional: Option<Box<Clause>>,
    pub all_of: Vec<Clause>,
    pub any_of: Vec<Clause>,
    pub one_of: Vec<Clause>,
    pub not: Option<Box<Clause>>,
}

impl Clause {
    /// Compiles a JSON schema; keywords that say nothing of values are skipped, patterns that do not compile too
    /// (`check_definition` reports them).
    pub fn of(schema: &Value) -> Clause {
        let number = |key: &str| match &schema[key] {
            Value::Int(number) => Some(*number as f64),
            Value::Float(number) => Some(*number),
            _ => None,
        };
        let count = |key: &str| schema[key].as_int().and_then(|count| u64::try_from(count).ok());
        let boxed = |value: &Value| value.as_map().map(|_| Box::new(Clause::of(value)));
        let all = |key: &str| schema[key].items().iter().map(Clause::of).collect();
        let properties = schema["properties"].entries().iter();
        Clause {
            of_type: schema["type"].text().into(),
            format: schema["format"].text().into(),
            nullable: schema["nullable"].is_true(),
            int_or_string: schema["x-kubernetes-int-or-string"].is_true(),
            enumeration: schema["enum"].items().to_vec(),
            minimum: number("minimum"),
            maximum: number("maximum"),
            exclusive_minimum: schema["exclusiveMinimum"].is_true(),
            exclusive_maximum: schema["exclusiveMaximum"].is_true(),
            multiple_of: number("multipleOf").filter(|number| *number != 0.0),
            min_length: count("minLength"),
            max_length: count("maxLength"),
            min_items: count("minItems"),
            max_items: count("maxItems"),
            min_properties: count("minProperties"),
            max_properties: count("maxProperties"),
            pattern: schema["pattern"].as_str().and_then(|pattern| Regex::new(pattern).ok()),
            required: schema["required"].items().iter().map(|name| name.text().into()).collect(),
            unique_items: schema["uniqueItems"].is_true(),
            keys: match schema["x-kubernetes-list-type"].text() {
                "map" => schema["x-kubernetes-list-map-keys"].items().iter().map(|key| key.text().into()).collect(),
                _ => Vec::new(),
            },
            properties: properties.map(|(name, inner)| (name.into(), Clause::of(inner))).collect(),
            items: boxed(&schema["items"]),
            additional: boxed(&schema["additionalProperties"]),
            all_of: all("allOf"),
            any_of: all("anyOf"),
            one_of: all("oneOf"),
            not: boxed(&schema["not"]),
        }
    }

    /// The item of an older list that is the same one, by its keys.
    fn before<'a>(&self, old: &'a Value, item: &Value) -> Option<&'a Value> {
        if self.keys.is_empty() {
            return None;
        }
        old.items().iter().find(|other| self.keys.iter().all(|key| other[key.as_str()] == item[key.as_str()]))
    }

    fn property(&self, name: &str) -> Option<&Clause> {
        let at = self.properties.binary_search_by(|(other, _)| other.as_str().cmp(name)).ok()?;
        Some(&self.properties[at].1)
    }
}
