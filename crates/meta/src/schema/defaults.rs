//! Fills what an object leaves out with what its schema says.

use super::{Node, TypeRef};
use crate::value::Value;

/// Fills absent members that have a default, in `value` and everything below it. A null that is not allowed counts as
/// absent where the field has a default.
pub fn defaults(value: &mut Value, of: TypeRef<'_>) {
    match of.kind() {
        Node::Struct { of: at, .. } => {
            let Value::Map(map) = value else { return };
            for field in of.schema.struct_at(*at).fields() {
                let inner = of.with(field.of);
                if let Some(default) = &field.default {
                    let nullable = inner.rules().is_some_and(|rules| rules.nullable);
                    let absent = map.get(&field.name).is_none_or(|found| found.is_null() && !nullable);
                    if absent {
                        map.insert(field.name.clone(), (**default).clone());
                    }
                }
                if let Some(found) = map.get_mut(&field.name) {
                    defaults(found, inner);
                }
            }
            // A custom resource's null that is neither allowed nor defaulted goes.
            let found = of.schema.struct_at(*at);
            if found.is_loose() {
                map.retain(|key, value| {
                    let allowed = |field: &super::Field| of.with(field.of).rules().is_some_and(|rules| rules.nullable);
                    !value.is_null() || found.field(key).is_none_or(allowed)
                });
            }
        }
        Node::List { item, .. } => {
            for found in value.items_mut() {
                fill(found, of.with(*item));
            }
        }
        Node::Map { value: inner, .. } => {
            let Value::Map(map) = value else { return };
            for (_, found) in map.iter_mut() {
                fill(found, of.with(*inner));
            }
        }
        Node::Scalar(_) | Node::Either(..) => {}
    }
}

/// An item or a map's value: a null is replaced by its type's default.
fn fill(value: &mut Value, of: TypeRef<'_>) {
    if value.is_null()
        && let Some(rules) = of.rules()
        && !rules.nullable
        && let Some(default) = &rules.default
    {
        *value = default.clone();
    }
    defaults(value, of);
}
