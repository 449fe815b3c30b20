//! Checks a value against its clause and reports in upstream's field errors.

use super::Clause;
use super::format::fits;
use crate::apply::item_key;
use crate::field::{At, Errors, Fault, Path};
use crate::schema::{ListKind, Node, TypeRef};
use crate::value::Value;

/// Adds all that is wrong with the value at `at`: its rules (`clause`), and items that stand twice in lists that are
/// sets or maps (`of`). What is as it was in `old` may be wrong, so that objects from before a rule can still be changed.
pub fn check(at: &At<'_>, old: Option<&Value>, of: TypeRef<'_>, clause: &Clause, errors: &mut Errors) {
    value(at, old, clause, errors);
    doubles(at, old, of, errors);
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Int(_) => "integer",
        Value::Float(number) if number.fract() == 0.0 => "integer",
        Value::Float(_) => "number",
        Value::Str(_) => "string",
        Value::List(_) => "array",
        Value::Map(_) => "object",
    }
}

fn invalid(at: &At<'_>, detail: &str, errors: &mut Errors) {
    errors.invalid(at, format!("{} in body {detail}", at.path));
}

/// A wrong type: the value shown is its kind.
fn wrong_type(at: &At<'_>, shown: &str, wanted: &str, errors: &mut Errors) {
    let detail = format!("{} in body must be of type {wanted}: {shown:?}", at.path);
    errors.push(Fault::TypeInvalid, &at.path, Some(&shown.into()), detail);
}

fn value(at: &At<'_>, old: Option<&Value>, clause: &Clause, errors: &mut Errors) {
    if at.value.is_null() && clause.nullable || old == Some(at.value) {
        return;
    }
    let found = kind(at.value);
    let fits_type = match clause.of_type.as_str() {
        _ if clause.int_or_string => matches!(found, "integer" | "string"),
        "" => true,
        "number" => matches!(found, "integer" | "number"),
        wanted => wanted == found,
    };
    if !fits_type {
        let wanted = if clause.int_or_string { "integer,string" } else { &clause.of_type };
        return wrong_type(at, found, wanted, errors);
    }
    if !clause.enumeration.is_empty() && !clause.enumeration.contains(at.value) {
        let shown = |value: &Value| String::from_utf8_lossy(&value.to_json()).into_owned();
        let supported: Vec<String> = clause.enumeration.iter().map(shown).collect();
        let detail = format!("supported values: {}", supported.join(", "));
        errors.push(Fault::NotSupported, &at.path, Some(at.value), detail);
    }
    match at.value {
        Value::Int(number) => numeric(at, *number as f64, clause, errors),
        Value::Float(number) => numeric(at, *number, clause, errors),
        Value::Str(text) => string(at, text, clause, errors),
        Value::List(items) => list(at, old, items.len(), clause, errors),
        Value::Map(_) => object(at, old, clause, errors),
        Value::Null | Value::Bool(_) => {}
    }
    combined(at, old, clause, errors);
}

fn numeric(at: &At<'_>, number: f64, clause: &Clause, errors: &mut Errors) {
    let range = match clause.format.as_str() {
        "int32" => Some((f64::from(i32::MIN), f64::from(i32::MAX))),
        _ => None,
    };
    if range.is_some_and(|(low, high)| !(low..=high).contains(&number)) {
        // Upstream tells this without the field.
        let detail = "Checked value must be of type";
        let detail = format!("{detail} {} with format {} in {}", clause.of_type, clause.format, at.path);
        errors.invalid_value(&Path::ROOT, "", detail);
    }
    if let Some(limit) = clause.maximum
        && (number > limit || clause.exclusive_maximum && number >= limit)
    {
        let or_equal = if clause.exclusive_maximum { "" } else { " or equal to" };
        invalid(at, &format!("should be less than{or_equal} {limit}"), errors);
    }
    if let Some(limit) = clause.minimum
        && (number < limit || clause.exclusive_minimum && number <= limit)
    {
        let or_equal = if clause.exclusive_minimum { "" } else { " or equal to" };
        invalid(at, &format!("should be greater than{or_equal} {limit}"), errors);
    }
    if let Some(unit) = clause.multiple_of {
        let count = number / unit;
        if (count - count.round()).abs() > 1e-9 * count.abs().max(1.0) {
            invalid(at, &format!("should be a multiple of {unit}"), errors);
        }
    }
}

fn string(at: &At<'_>, text: &str, clause: &Clause, errors: &mut Errors) {
    let length = text.chars().count() as u64;
    if let Some(limit) = clause.max_length
        && length > limit
    {
        errors.too_long(&at.path, usize::try_from(limit).unwrap_or(usize::MAX));
    }
    if let Some(limit) = clause.min_length
        && length < limit
    {
        invalid(at, &format!("should be at least {limit} chars long"), errors);
    }
    if let Some(pattern) = &clause.pattern
        && !pattern.is_match(text)
    {
        invalid(at, &format!("should match '{pattern}'"), errors);
    }
    if !clause.int_or_string && !fits(&clause.format, text) {
        wrong_type(at, text, &clause.format, errors);
    }
}

fn list(at: &At<'_>, old: Option<&Value>, length: usize, clause: &Clause, errors: &mut Errors) {
    if let Some(limit) = clause.max_items
        && length as u64 > limit
    {
        errors.too_many(&at.path, length, usize::try_from(limit).unwrap_or(usize::MAX));
    }
    if let Some(limit) = clause.min_items
        && (length as u64) < limit
    {
        invalid(at, &format!("should have at least {limit} items"), errors);
    }
    if clause.unique_items {
        let items = at.value.items();
        if (1..items.len()).any(|place| items[..place].contains(&items[place])) {
            invalid(at, "shouldn't contain duplicates", errors);
        }
    }
    if let Some(inner) = &clause.items {
        for item in at.items() {
            let before = old.and_then(|old| clause.before(old, item.value));
            value(&item, before, inner, errors);
        }
    }
}

fn object(at: &At<'_>, old: Option<&Value>, clause: &Clause, errors: &mut Errors) {
    let map = at.map();
    for name in &clause.required {
        if !map.contains(name) {
            errors.required(&at.path.field(name), "");
        }
    }
    let count = map.len() as u64;
    if let Some(limit) = clause.max_properties
        && count > limit
    {
        errors.too_many(&at.path, map.len(), usize::try_from(limit).unwrap_or(usize::MAX));
    }
    if let Some(limit) = clause.min_properties
        && count < limit
    {
        invalid(at, &format!("should have at least {limit} properties"), errors);
    }
    for name in map.keys() {
        let before = old.and_then(|old| old.get(name));
        match (clause.property(name), &clause.additional) {
            (Some(inner), _) => value(&at.field(name), before, inner, errors),
            (None, Some(inner)) => value(&at.field(name), before, inner, errors),
            (None, None) => {}
        }
    }
}

fn combined(at: &At<'_>, old: Option<&Value>, clause: &Clause, errors: &mut Errors) {
    let holds = |clause: &Clause| {
        let mut found = Errors::default();
        value(at, None, clause, &mut found);
        found.is_empty()
    };
    for inner in &clause.all_of {
        value(at, old, inner, errors);
    }
    let says = |what: &str| format!("{:?} {what}", at.path.to_string());
    if !clause.any_of.is_empty() && !clause.any_of.iter().any(holds) {
        errors.invalid(at, says("must validate at least one schema (anyOf)"));
    }
    if !clause.one_of.is_empty() {
        let count = clause.one_of.iter().filter(|clause| holds(clause)).count();
        if count != 1 {
            let found = if count == 0 { "Found none valid" } else { "Found more than one valid" };
            errors.invalid(at, says(&format!("must validate one and only one schema (oneOf). {found}")));
        }
    }
    if clause.not.as_ref().is_some_and(|clause| holds(clause)) {
        errors.invalid(at, says("must not validate the schema (not)"));
    }
}

/// Reports items with the key of an earlier one.
fn doubles(at: &At<'_>, old: Option<&Value>, of: TypeRef<'_>, errors: &mut Errors) {
    if old == Some(at.value) {
        return;
    }
    match of.kind() {
        Node::Struct { .. } | Node::Map { .. } => {
            for name in at.map().keys() {
                if let Some(inner) = of.member(name) {
                    doubles(&at.field(name), old.and_then(|old| old.get(name)), inner, errors);
                }
            }
        }
        Node::List { item, kind, .. } => {
            let mut seen = std::collections::BTreeSet::new();
            for found in at.items() {
                doubles(&found, None, of.with(*item), errors);
                if *kind == ListKind::Atomic {
                    continue;
                }
                let Some(key) = item_key(of.with(*item), kind, found.value) else { continue };
                if !seen.insert(key.clone()) {
                    let shown = Value::parse(key.as_bytes()).unwrap_or_default();
                    errors.duplicate_value(&found.path, shown);
                }
            }
        }
        Node::Scalar(_) | Node::Either(..) => {}
    }
}
