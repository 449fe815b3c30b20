//! RFC 7386.

use crate::value::Value;

/// Merges `patch` into `value`: maps member by member, null removes, everything else replaces.
pub fn merge_patch(value: &mut Value, patch: &Value) {
    let Value::Map(patch) = patch else {
        *value = patch.clone();
        return;
    };
    let map = value.make_map();
    for (key, change) in patch.iter() {
        if change.is_null() {
            map.remove(key);
        } else {
            merge_patch(map.entry(key), change);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_as_the_rfc_has_it() {
        for (value, patch, result) in [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, "{}"),
            (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
            (r#"{"a":[1]}"#, r#"{"a":[2,null]}"#, r#"{"a":[2,null]}"#),
            ("[1]", r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
            (r#"{"a":1}"#, "[3]", "[3]"),
        ] {
            let mut merged = Value::parse(value.as_bytes()).unwrap();
            merge_patch(&mut merged, &Value::parse(patch.as_bytes()).unwrap());
            assert_eq!(String::from_utf8(merged.to_json()).unwrap(), result);
        }
    }
}
