//! RFC 6902.

use super::{MAX_OPERATIONS, MAX_VALUES, PatchError};
use crate::value::Value;

/// Applies the operations of `patch` one after the other and returns the result.
///
/// # Errors
/// [`PatchError::Malformed`] when it is no list of operations; the others as they say.
pub fn json_patch(value: &Value, patch: &Value) -> Result<Value, PatchError> {
    let Value::List(operations) = patch else {
        return Err(PatchError::Malformed("a JSON patch must be a list of operations".to_owned()));
    };
    if operations.len() > MAX_OPERATIONS {
        let found = operations.len();
        return Err(PatchError::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {found}"
        )));
    }
    let mut result = value.clone();
    let mut size = count(&result);
    for operation in operations {
        if operation.as_map().is_none() {
            return Err(PatchError::Malformed("an operation of a JSON patch must be an object".to_owned()));
        }
        apply(&mut result, operation, &mut size)?;
    }
    Ok(result)
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::List(items) => items.iter().map(count).sum(),
        Value::Map(map) => map.iter().map(|(_, value)| count(value)).sum(),
        _ => 0,
    }
}

fn failed<T>(what: String) -> Result<T, PatchError> {
    Err(PatchError::Failed(what))
}

fn apply(value: &mut Value, operation: &Value, size: &mut usize) -> Result<(), PatchError> {
    let Some(path) = operation["path"].as_str() else { return failed("operation without path".to_owned()) };
    let path = pointer(path)?;
    let from = || match operation["from"].as_str() {
        Some(from) => pointer(from),
        None => failed("operation without from".to_owned()),
    };
    let given = operation.get("value");
    match (operation["op"].text(), given) {
        ("add", Some(given)) => {
            *size += count(given);
            add(value, &path, given.clone())?;
        }
        ("replace", Some(given)) => {
            *size += count(given);
            match path.split_last() {
                Some((last, parents)) => {
                    let parent = find(value, parents)?;
                    match parent {
                        Value::List(items) => {
                            let at = index(last, items.len())?;
                            items.make_mut()[at] = given.clone();
                        }
                        // A member that is not there is added, as upstream has it.
                        Value::Map(map) => drop(map.insert(last.as_str(), given.clone())),
                        _ => return failed(format!("there is nothing below a scalar: {last}")),
                    }
                }
                None => *value = given.clone(),
            }
        }
        ("remove", _) => drop(remove(value, &path)?),
        ("move", _) => {
            let from = from()?;
            if path.len() > from.len() && path.starts_with(&from) {
                return failed("a value cannot be moved into itself".to_owned());
            }
            let moved = remove(value, &from)?;
            add(value, &path, moved)?;
        }
        ("copy", _) => {
            let copied = find(value, &from()?)?.clone();
            *size += count(&copied);
            add(value, &path, copied)?;
        }
        ("test", given) => {
            let found = find(value, &path).map_or(Value::Null, |found| found.clone());
            if found != *given.unwrap_or(&Value::Null) {
                return failed(format!("testing value {} failed", operation["path"].text()));
            }
        }
        ("add" | "replace", None) => return failed("operation without value".to_owned()),
        (other, _) => return failed(format!("Unexpected kind: {other}")),
    }
    if *size > MAX_VALUES {
        return Err(PatchError::TooLarge(format!("the patched object would have more than {MAX_VALUES} values")));
    }
    Ok(())
}

/// The steps of a pointer.
fn pointer(text: &str) -> Result<Vec<String>, PatchError> {
    match text.strip_prefix('/') {
        None if text.is_empty() => Ok(Vec::new()),
        None => failed(format!("{text:?} is no JSON pointer")),
        Some(rest) => Ok(rest.split('/').map(|step| step.replace("~1", "/").replace("~0", "~")).collect()),
    }
}

/// The place `step` in a list; negative places count from the end, as upstream has it.
fn index(step: &str, length: usize) -> Result<usize, PatchError> {
    let number: i64 = match step.parse() {
        Ok(number) => number,
        Err(_) => return failed(format!("{step:?} is no place in a list")),
    };
    let at = if number < 0 { number + length as i64 } else { number };
    match usize::try_from(at) {
        Ok(at) if at < length => Ok(at),
        _ => failed(format!("Unable to access invalid index: {step}")),
    }
}

fn find<'a>(value: &'a mut Value, path: &[String]) -> Result<&'a mut Value, PatchError> {
    let mut at = value;
    for step in path {
        at = match at {
            Value::List(items) => {
                let place = index(step, items.len())?;
                &mut items.make_mut()[place]
            }
            Value::Map(map) => match map.get_mut(step) {
                Some(found) => found,
                None => return failed(format!("Unable to find key: {step}")),
            },
            _ => return failed(format!("there is nothing below a scalar: {step}")),
        };
    }
    Ok(at)
}

fn add(value: &mut Value, path: &[String], new: Value) -> Result<(), PatchError> {
    let Some((last, parents)) = path.split_last() else {
        *value = new;
        return Ok(());
    };
    match find(value, parents)? {
        Value::Map(map) => {
            map.insert(last.as_str(), new);
        }
        Value::List(items) if last == "-" => items.push(new),
        Value::List(items) => {
            let length = items.len();
            // One past the end appends.
            let at = if *last == length.to_string() { length } else { index(last, length)? };
            items.insert(at, new);
        }
        _ => return failed(format!("nothing can be added below a scalar: {last}")),
    }
    Ok(())
}

fn remove(value: &mut Value, path: &[String]) -> Result<Value, PatchError> {
    let Some((last, parents)) = path.split_last() else {
        return Ok(std::mem::take(value));
    };
    match find(value, parents)? {
        Value::Map(map) => match map.remove(last) {
            Some(removed) => Ok(removed),
            None => failed(format!("Unable to remove nonexistent key: {last}")),
        },
        Value::List(items) => {
            let at = index(last, items.len())?;
            Ok(items.remove(at))
        }
        _ => failed(format!("there is nothing below a scalar: {last}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(value: &str, patch: &str, result: &str) {
        let parse = |text: &str| Value::parse(text.as_bytes()).unwrap();
        let patched = json_patch(&parse(value), &parse(patch));
        let text = patched.map_or_else(|error| format!("{error:?}"), |v| String::from_utf8(v.to_json()).unwrap());
        assert!(text.starts_with(result), "{text}");
    }

    #[test]
    fn operations_do_what_the_rfc_says() {
        check(
            r#"{"a":[1,2]}"#,
            r#"[{"op":"add","path":"/a/1","value":9},{"op":"add","path":"/a/-","value":3}]"#,
            r#"{"a":[1,9,2,3]}"#,
        );
        check(r#"{"a":1}"#, r#"[{"op":"add","path":"/b~1c~0","value":null}]"#, r#"{"a":1,"b/c~":null}"#);
        check(r#"{"a":{"b":1}}"#, r#"[{"op":"move","from":"/a/b","path":"/c"}]"#, r#"{"a":{},"c":1}"#);
        check(r#"{"a":[{"b":1}]}"#, r#"[{"op":"copy","from":"/a/0","path":"/a/-"}]"#, r#"{"a":[{"b":1},{"b":1}]}"#);
        check(
            r#"{"a":1}"#,
            r#"[{"op":"replace","path":"/a","value":2},{"op":"test","path":"/a","value":2}]"#,
            r#"{"a":2}"#,
        );
        check(r#"{"a":[1,2]}"#, r#"[{"op":"remove","path":"/a/-1"}]"#, r#"{"a":[1]}"#);
        check(r#"{"a":1}"#, r#"[{"op":"test","path":"/b","value":null}]"#, r#"{"a":1}"#);
    }

    #[test]
    fn what_cannot_be_done_is_told() {
        for patch in [
            r#"[{"op":"test","path":"/a","value":2}]"#,
            r#"[{"op":"remove","path":"/x"}]"#,
            r#"[{"op":"replace","path":"/x/y","value":1}]"#,
            r#"[{"op":"bogus","path":"/a"}]"#,
            r#"[{"op":"add","path":"/a/b/c","value":1}]"#,
            r#"[{"op":"add","path":"a","value":1}]"#,
            r#"[{"op":"move","from":"/l","path":"/l/0"}]"#,
            r#"[{"op":"add","path":"/l/9","value":1}]"#,
        ] {
            check(r#"{"a":1,"l":[1]}"#, patch, "Failed");
        }
        check("{}", "{}", "Malformed");
        let double = |at: u32| format!(r#"{{"op":"copy","from":"","path":"/a{at}"}}"#);
        let doubles: Vec<String> = (0..40).map(double).collect();
        check(r#"{"a":[1,2,3]}"#, &format!("[{}]", doubles.join(",")), "TooLarge");
    }
}
