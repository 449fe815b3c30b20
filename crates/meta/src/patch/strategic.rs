//! Strategic merge: a merge that knows which lists are merged by key, with directives for what a merge cannot say.
//!
//! `$patch: replace|delete` in a map or as an item of a merged list; `$retainKeys: [..]` drops all members not
//! listed; `$deleteFromPrimitiveList/F: [..]` takes items out of a merged list of scalars; `$setElementOrder/F:
//! [..]` says in which order the items of list `F` stand.

use super::PatchError;
use crate::schema::{Field, Node, TypeRef};
use crate::value::{Map, Str, Value};

const DIRECTIVE: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const DELETE_PREFIX: &str = "$deleteFromPrimitiveList/";
const ORDER_PREFIX: &str = "$setElementOrder/";

/// Merges `patch` into `value`, both of type `of`.
///
/// # Errors
/// [`PatchError::Malformed`] when a directive is not understood or stands where it cannot.
pub fn strategic(value: &Value, patch: &Value, of: TypeRef<'_>) -> Result<Value, PatchError> {
    let Value::Map(patch) = patch else {
        let kind = if matches!(patch, Value::List(_)) { "array" } else { "value" };
        let what = format!("json: cannot unmarshal {kind} into Go value of type map[string]interface {{}}");
        return Err(PatchError::Malformed(what));
    };
    let none = Map::new();
    map(value.as_map().unwrap_or(&none), patch, Some(of)).map(Value::Map)
}

fn malformed<T>(what: impl Into<String>) -> Result<T, PatchError> {
    Err(PatchError::Malformed(what.into()))
}

/// How a member is merged: its type and, for structs, its field.
struct Member<'a> {
    of: Option<TypeRef<'a>>,
    field: Option<&'a Field>,
}

fn member<'a>(of: Option<TypeRef<'a>>, name: &str) -> Member<'a> {
    let field = of.and_then(TypeRef::as_struct).and_then(|found| found.field(name));
    let inner = match (of, field) {
        (Some(of), Some(field)) => Some(of.with(field.of)),
        (Some(of), None) => of.member(name),
        _ => None,
    };
    Member { of: inner, field }
}

/// Merges two maps.
fn map(original: &Map, patch: &Map, of: Option<TypeRef<'_>>) -> Result<Map, PatchError> {
    match patch.get(DIRECTIVE).map(|directive| directive.as_str().unwrap_or("?")) {
        Some("replace") => {
            let kept = patch.iter().filter(|(key, _)| *key != DIRECTIVE);
            return Ok(kept.map(|(key, value)| (key, value.clone())).collect());
        }
        Some("delete") => return Ok(Map::new()),
        Some("merge") | None => {}
        Some(other) => return malformed(format!("invalid value for $patch: {other:?}")),
    }
    let mut result = original.clone();
    if let Some(retain) = patch.get(RETAIN) {
        retain_keys(&mut result, patch, retain)?;
    }
    for (key, change) in patch.iter() {
        if matches!(key, DIRECTIVE | RETAIN) {
            continue;
        }
        if let Some(name) = key.strip_prefix(DELETE_PREFIX) {
            if patch.contains(name) || !change.is_null() {
                delete_from_list(&mut result, name, change)?;
            }
            continue;
        }
        if let Some(name) = key.strip_prefix(ORDER_PREFIX) {
            // With the list itself in the patch it is ordered when that is merged.
            if !patch.contains(name)
                && let Some(Value::List(items)) = result.get(name)
            {
                let ordered = order(items, &[], change, &member(of, name))?;
                result.insert(name, ordered);
            }
            continue;
        }
        if change.is_null() {
            result.remove(key);
            continue;
        }
        let inner = member(of, key);
        // There is nothing that it could replace or delete.
        if result.get(key).is_none_or(Value::is_null) && change.entries().contains(DIRECTIVE) {
            continue;
        }
        let replaces = inner.field.is_some_and(|field| field.patch_replace);
        let merged = match (result.get(key), change) {
            (_, Value::Map(_)) if replaces => without_directives(change).unwrap_or_default(),
            (found, Value::Map(change)) => {
                let none = Map::new();
                let found = found.and_then(Value::as_map).unwrap_or(&none);
                Value::Map(map(found, change, inner.of)?)
            }
            (None | Some(Value::Null), Value::List(change)) => {
                let kept: Vec<Value> = change.iter().filter_map(without_directives).collect();
                match patch.get(&order_key(key)) {
                    Some(ordered) => order(&kept, &[], ordered, &inner)?,
                    None => Value::from(kept),
                }
            }
            (Some(found), Value::List(change)) => {
                let found = found.items();
                list(found, change, &inner, patch.get(&order_key(key)))?
            }
            (_, scalar) => scalar.clone(),
        };
        result.insert(key, merged);
    }
    Ok(result)
}

/// The value with nothing in it that only a patch can say; `None` when it is a directive itself.
fn without_directives(value: &Value) -> Option<Value> {
    match value {
        Value::Map(map) => {
            if map.contains(DIRECTIVE) {
                return None;
            }
            let plain = |key: &str| {
                !(matches!(key, DIRECTIVE | RETAIN) || key.starts_with(DELETE_PREFIX) || key.starts_with(ORDER_PREFIX))
            };
            let kept = map.iter().filter(|(key, value)| plain(key) && !value.is_null());
            let kept = kept.filter_map(|(key, value)| Some((key, without_directives(value)?)));
            Some(Value::Map(kept.collect()))
        }
        Value::List(items) => Some(Value::List(items.iter().filter_map(without_directives).collect())),
        other => Some(other.clone()),
    }
}

fn order_key(name: &str) -> Str {
    compact_str::format_compact!("{ORDER_PREFIX}{name}")
}

fn retain_keys(result: &mut Map, patch: &Map, retain: &Value) -> Result<(), PatchError> {
    let Value::List(keys) = retain else { return malformed("$retainKeys must be a list") };
    let listed = |name: &str| keys.iter().any(|key| key.as_str() == Some(name));
    for (key, value) in patch.iter() {
        if !key.starts_with('$') && !value.is_null() && !listed(key) {
            return malformed(format!("{key} is in the patch but not in its $retainKeys"));
        }
    }
    result.retain(|key, _| listed(key));
    Ok(())
}

fn delete_from_list(result: &mut Map, name: &str, change: &Value) -> Result<(), PatchError> {
    let Value::List(gone) = change else { return malformed(format!("{DELETE_PREFIX}{name} must be a list")) };
    if let Some(Value::List(items)) = result.get_mut(name) {
        items.retain(|item| !gone.contains(item));
    }
    Ok(())
}

/// Merges a list of the patch into the one there is.
fn list(original: &[Value], patch: &[Value], inner: &Member<'_>, ordered: Option<&Value>) -> Result<Value, PatchError> {
    let replaces = patch.iter().any(|item| item[DIRECTIVE].text() == "replace");
    let merges = inner.field.is_some_and(|field| field.patch_merge);
    if !merges || replaces {
        let kept = patch.iter().filter(|item| !item.entries().contains(DIRECTIVE));
        return Ok(Value::List(kept.cloned().collect()));
    }
    let key = inner.field.map_or("", |field| field.merge_key.as_str());
    let is_scalars =
        matches!(inner.of.and_then(TypeRef::item).map(TypeRef::kind), Some(Node::Scalar(_)) | None) || key.is_empty();
    let merged = if is_scalars {
        let mut merged: Vec<Value> = Vec::new();
        for item in original.iter().chain(patch) {
            if matches!(item, Value::Map(_)) {
                return malformed("a list of scalars cannot be merged with objects");
            }
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        merged
    } else {
        keyed(original, patch, inner, key)?
    };
    // Without an order of its own the patch's items stand in the patch's order, new ones before the others.
    match ordered {
        Some(ordered) => {
            check_order(patch, ordered, key)?;
            order(&merged, original, ordered, inner)
        }
        None => order(&merged, original, &Value::from(patch.to_vec()), inner),
    }
}

/// Whether two items have the same key; absent keys are alike.
fn same(a: &Value, b: &Value, key: &str) -> bool {
    if key.is_empty() { a == b } else { a[key] == b[key] }
}

fn keyed(original: &[Value], patch: &[Value], inner: &Member<'_>, key: &str) -> Result<Vec<Value>, PatchError> {
    let item_of = inner.of.and_then(TypeRef::item);
    let mut merged = original.to_vec();
    // Deletions first: an item may be deleted and put anew.
    for item in patch {
        let Value::Map(change) = item else { return malformed("an item of a merged list must be an object") };
        if change.get(DIRECTIVE).is_some_and(|directive| directive.text() == "delete") {
            if !change.contains(key) {
                return malformed(format!("delete patch type with no merge key defined: {key}"));
            }
            merged.retain(|found| !same(found, item, key));
        }
    }
    for item in patch {
        let change = item.entries();
        match change.get(DIRECTIVE).map(Value::text) {
            Some("delete") => continue,
            None | Some("merge") => {}
            Some(other) => return malformed(format!("invalid value for $patch: {other:?}")),
        }
        if !change.contains(key) {
            return malformed(format!("map: {} does not contain declared merge key: {key}", show(item)));
        }
        match merged.iter_mut().find(|found| same(found, item, key)) {
            Some(found) => {
                let none = Map::new();
                let joined = map(found.as_map().unwrap_or(&none), change, item_of)?;
                *found = Value::Map(joined);
            }
            None => merged.extend(without_directives(item)),
        }
    }
    Ok(merged)
}

fn show(value: &Value) -> String {
    String::from_utf8_lossy(&value.to_json()).into_owned()
}

/// Whether the items of the patch stand in the order that the patch itself asks for.
fn check_order(patch: &[Value], wanted: &Value, key: &str) -> Result<(), PatchError> {
    let mut last = None;
    for item in patch.iter().filter(|item| item[DIRECTIVE].is_null()) {
        let place = wanted.items().iter().position(|wanted| same(wanted, item, key));
        if place.is_none() || place < last {
            return malformed("the order in patch list doesn't match $setElementOrder list");
        }
        last = place;
    }
    Ok(())
}

/// Orders `items`: those that `wanted` lists in its order, the others where they stood relative to them.
fn order(items: &[Value], live: &[Value], wanted: &Value, inner: &Member<'_>) -> Result<Value, PatchError> {
    let Value::List(wanted) = wanted else { return malformed("$setElementOrder must be a list") };
    let key = inner.field.map_or("", |field| field.merge_key.as_str());
    let place = |item: &Value| wanted.iter().position(|wanted| same(wanted, item, key));
    let (mut listed, others): (Vec<&Value>, Vec<&Value>) = items.iter().partition(|item| place(item).is_some());
    listed.sort_by_key(|item| place(item));
    let before = |item: &Value| {
        let of = if live.is_empty() { items } else { live };
        of.iter().position(|live| same(live, item, key))
    };
    // Both are in order of their own: merge them by their places in the live list.
    let mut result = Vec::with_capacity(items.len());
    let (mut a, mut b) = (listed.into_iter().peekable(), others.into_iter().peekable());
    while let (Some(first), Some(other)) = (a.peek(), b.peek()) {
        let other_first = match (before(other), before(first)) {
            (Some(other), Some(first)) => other < first,
            (Some(_), None) => false,
            (None, _) => false,
        };
        result.extend(if other_first { b.next() } else { a.next() }.cloned());
    }
    result.extend(a.chain(b).cloned());
    Ok(Value::from(result))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Schema;

    const TABLE: &str = "package io.k8s.api.core.v1
A /v1
 env 1 []Env o k=name s=merge
 finalizers 2 []str o s=merge
 labels 3 {}str o
 strategy 4 Strategy o s=retainKeys
 volumes 5 []Volume o k=name s=merge,retainKeys
 args 6 []str o
 ports 7 []Port o k=port s=merge
Env
 name 1 str r
 value 2 str o
Port
 port 1 i32 r
 protocol 2 str o
Strategy
 type 1 str o
 rolling 2 *Env o
Volume
 name 1 str r
 dir 2 *Env o
 host 3 *Env o
";

    fn check(value: &str, patch: &str, result: &str) {
        let schema = Schema::parse(TABLE).unwrap();
        let parse = |text: &str| Value::parse(text.as_bytes()).unwrap();
        let of = schema.kind("", "v1", "A").unwrap();
        let text = match strategic(&parse(value), &parse(patch), of) {
            Ok(value) => String::from_utf8(value.to_json()).unwrap(),
            Err(error) => format!("{error:?}"),
        };
        assert!(text.starts_with(result), "{text}");
    }

    #[test]
    fn lists_are_merged_by_key() {
        let env = r#"{"env":[{"name":"a","value":"1"},{"name":"b","value":"2"}]}"#;
        check(
            env,
            r#"{"env":[{"name":"c","value":"3"},{"name":"b","value":"9"}]}"#,
            r#"{"env":[{"name":"c","value":"3"},{"name":"a","value":"1"},{"name":"b","value":"9"}]}"#,
        );
        check(env, r#"{"env":[{"$patch":"delete","name":"a"}]}"#, r#"{"env":[{"name":"b","value":"2"}]}"#);
        check(env, r#"{"env":[{"$patch":"replace"},{"name":"z"}]}"#, r#"{"env":[{"name":"z"}]}"#);
        check(env, r#"{"env":null}"#, "{}");
        check(env, r#"{"env":[{"value":"x"}]}"#, "Malformed");
        check(r#"{"args":["a"]}"#, r#"{"args":["b"]}"#, r#"{"args":["b"]}"#);
        check(
            "{}",
            r#"{"env":[{"name":"a","value":null},{"name":"b","$patch":"merge"}]}"#,
            r#"{"env":[{"name":"a"}]}"#,
        );
    }

    #[test]
    fn order_can_be_said() {
        check(
            r#"{"env":[{"name":"a"},{"name":"b"},{"name":"c"}]}"#,
            r#"{"$setElementOrder/env":[{"name":"c"},{"name":"a"}],"env":[{"name":"a","value":"x"}]}"#,
            r#"{"env":[{"name":"b"},{"name":"c"},{"name":"a","value":"x"}]}"#,
        );
        check(
            r#"{"finalizers":["a","b"]}"#,
            r#"{"$setElementOrder/finalizers":["b","a"]}"#,
            r#"{"finalizers":["b","a"]}"#,
        );
        check(r#"{"env":[{"name":"a"}]}"#, r#"{"$setElementOrder/env":[],"env":[{"name":"q"}]}"#, "Malformed");
    }

    #[test]
    fn scalars_and_maps_have_directives() {
        check(r#"{"finalizers":["a","b"]}"#, r#"{"finalizers":["c","a"]}"#, r#"{"finalizers":["c","a","b"]}"#);
        check(
            r#"{"finalizers":["a","b"]}"#,
            r#"{"$deleteFromPrimitiveList/finalizers":["a"]}"#,
            r#"{"finalizers":["b"]}"#,
        );
        check(
            r#"{"labels":{"a":"1","b":"2"}}"#,
            r#"{"labels":{"$patch":"replace","c":"3"}}"#,
            r#"{"labels":{"c":"3"}}"#,
        );
        check(r#"{"labels":{"a":"1"}}"#, r#"{"labels":{"$patch":"delete"}}"#, r#"{"labels":{}}"#);
        check(r#"{"labels":{"a":"1","b":"2"}}"#, r#"{"labels":{"a":null}}"#, r#"{"labels":{"b":"2"}}"#);
        check("{}", r#"{"labels":{"$patch":"replace","a":"1"}}"#, "{}");
        check(r#"{"labels":{}}"#, r#"{"labels":{"$patch":"x"}}"#, "Malformed");
    }

    #[test]
    fn unions_keep_only_what_is_said() {
        check(
            r#"{"strategy":{"rolling":{"name":"r"},"type":"Rolling"}}"#,
            r#"{"strategy":{"$retainKeys":["type"],"type":"Recreate"}}"#,
            r#"{"strategy":{"type":"Recreate"}}"#,
        );
        check(
            r#"{"volumes":[{"dir":{"name":"d"},"name":"v"}]}"#,
            r#"{"volumes":[{"$retainKeys":["name","host"],"host":{"name":"h"},"name":"v"}]}"#,
            r#"{"volumes":[{"host":{"name":"h"},"name":"v"}]}"#,
        );
        check(r#"{"strategy":{}}"#, r#"{"strategy":{"$retainKeys":["type"],"rolling":{}}}"#, "Malformed");
        check("{}", "[]", "Malformed(\"json: cannot unmarshal array into Go value of type map[string]interface {}");
    }
}
