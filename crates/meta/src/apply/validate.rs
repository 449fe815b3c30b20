//! Whether an applied configuration fits its type, in upstream's words.

use super::set::Step;
use super::walk::item_step;
use crate::schema::{ListKind, Node, Scalar, TypeRef, Unknown};
use crate::value::Value;

/// Most faults that are listed.
const MAX_FAULTS: usize = 20;

/// Checks a configuration before it is applied.
///
/// # Errors
/// All that does not fit, each with its path: `.spec.x: field not declared in schema`.
pub fn validate(value: &Value, of: TypeRef<'_>) -> Result<(), String> {
    let mut faults = Vec::new();
    check(value, of, &mut String::new(), &mut faults);
    match faults.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        all => Err(format!("errors:\n  {}", all.join("\n  "))),
    }
}

fn check(value: &Value, of: TypeRef<'_>, path: &mut String, faults: &mut Vec<String>) {
    if value.is_null() || faults.len() >= MAX_FAULTS {
        return;
    }
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Int(_) | Value::Float(_) => "number",
        Value::Str(_) => "string",
        Value::List(_) => "list",
        Value::Map(_) => "map",
    };
    let expected = match (of.kind(), value) {
        (Node::Struct { .. }, Value::Map(map)) => {
            for (key, inner) in map.iter() {
                let step = Step::Field(key.into());
                match of.member(key) {
                    Some(inner_of) => below(&step, inner, inner_of, path, faults),
                    None if of.as_struct().is_some_and(|found| found.unknown == Unknown::Drop) => {
                        let at = format!("{}{step}", path);
                        faults.push(format!("{at}: field not declared in schema"));
                    }
                    None => {}
                }
            }
            return;
        }
        (Node::Map { value: inner, .. }, Value::Map(map)) => {
            for (key, found) in map.iter() {
                below(&Step::Field(key.into()), found, of.with(*inner), path, faults);
            }
            return;
        }
        (Node::List { item, kind, .. }, Value::List(items)) => {
            return list(items, of.with(*item), kind, path, faults);
        }
        (Node::Either(..), _) => return,
        (Node::Scalar(scalar), _) => match (scalar, value) {
            (Scalar::Raw | Scalar::Json | Scalar::FieldsV1 | Scalar::Any, _) => return,
            (Scalar::Bool, Value::Bool(_)) => return,
            (Scalar::Int32 | Scalar::Int64 | Scalar::Double, Value::Int(_) | Value::Float(_)) => return,
            (Scalar::Quantity | Scalar::IntOrString, Value::Int(_) | Value::Float(_) | Value::Str(_)) => return,
            (Scalar::String | Scalar::Bytes | Scalar::Time | Scalar::MicroTime | Scalar::Duration, Value::Str(_)) => {
                return;
            }
            (Scalar::Bool, _) => "boolean",
            (Scalar::Int32 | Scalar::Int64 | Scalar::Double, _) => "numeric (int or float)",
            (Scalar::Quantity | Scalar::IntOrString, _) => "scalar",
            _ => "string",
        },
        (Node::List { .. }, _) => "list",
        (Node::Struct { .. } | Node::Map { .. }, _) => "map",
    };
    faults.push(format!("{path}: expected {expected}, got {found}"));
}

fn list(items: &[Value], of: TypeRef<'_>, kind: &ListKind, path: &mut String, faults: &mut Vec<String>) {
    let mut seen = super::Set::new();
    for (at, item) in items.iter().enumerate() {
        let step = match kind {
            ListKind::Atomic => Step::Index(at as i64),
            _ => match item_step(of, kind, item) {
                Some(step) => step,
                None => {
                    faults.push(format!("{path}: element {at}: associative list has an element without key"));
                    continue;
                }
            },
        };
        if seen.get(&step).is_some() {
            faults.push(format!("{path}: duplicate entries for key {step}"));
        }
        seen.put(step.clone(), true, super::Set::new());
        below(&step, item, of, path, faults);
    }
}

fn below(step: &Step, value: &Value, of: TypeRef<'_>, path: &mut String, faults: &mut Vec<String>) {
    let length = path.len();
    path.push_str(&step.to_string());
    check(value, of, path, faults);
    path.truncate(length);
}
