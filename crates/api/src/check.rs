//! Pieces that the checks of many kinds share. Each adds what is wrong to `errors` and has no answer.

use std::net::IpAddr;

use meta::{At, Errors, Path, Quantity, Value, names};

use crate::address::Cidr;

/// Every finding of `wrong` as an invalid value.
pub fn invalid(at: &At<'_>, wrong: Vec<String>, errors: &mut Errors) {
    wrong.into_iter().for_each(|why| errors.invalid(at, why));
}

/// A text that must be there.
pub fn required(at: &At<'_>, errors: &mut Errors) {
    if at.is_empty() {
        errors.required(&at.path, "");
    }
}

/// A text that must be there and pass `check`.
pub fn named(at: &At<'_>, check: fn(&str) -> Vec<String>, errors: &mut Errors) {
    match at.text() {
        "" => errors.required(&at.path, ""),
        text => invalid(at, check(text), errors),
    }
}

/// A text that, when it is there, must pass `check`.
pub fn optional(at: &At<'_>, check: fn(&str) -> Vec<String>, errors: &mut Errors) {
    if !at.text().is_empty() {
        invalid(at, check(at.text()), errors);
    }
}

/// One of some words; an absent one is missing.
pub fn word(at: &At<'_>, words: &[&str], errors: &mut Errors) {
    match at.text() {
        "" => errors.required(&at.path, ""),
        text if !words.contains(&text) => errors.not_supported(at, words),
        _ => {}
    }
}

/// One of some words; absent and empty ones are not supported either.
pub fn supported(at: &At<'_>, words: &[&str], errors: &mut Errors) {
    if !words.contains(&at.text()) {
        errors.not_supported(at, words);
    }
}

/// One of some words, if set.
pub fn set_word(at: &At<'_>, words: &[&str], errors: &mut Errors) {
    if at.is_set() {
        supported(at, words, errors);
    }
}

pub fn non_negative(at: &At<'_>, errors: &mut Errors) {
    if at.int().is_some_and(|number| number < 0) {
        errors.invalid(at, "must be greater than or equal to 0");
    }
}

pub fn positive(at: &At<'_>, errors: &mut Errors) {
    if at.int().is_some_and(|number| number <= 0) {
        errors.invalid(at, "must be greater than 0");
    }
}

/// A number, if set, within bounds, both inclusive.
pub fn within(at: &At<'_>, first: i64, last: i64, errors: &mut Errors) {
    if at.int().is_some_and(|number| !(first..=last).contains(&number)) {
        errors.invalid(at, format!("must be between {first} and {last}, inclusive"));
    }
}

/// A user's or group's number.
pub fn id(at: &At<'_>, errors: &mut Errors) {
    within(at, 0, i64::from(i32::MAX), errors);
}

pub fn port(at: &At<'_>, errors: &mut Errors) {
    invalid(at, names::port_number(at.int().unwrap_or(0)), errors);
}

/// A port's number or its name.
pub fn port_or_name(at: &At<'_>, errors: &mut Errors) {
    match at.value {
        Value::Str(name) => {
            let wrong = names::port_name(name);
            if name.is_empty() {
                errors.invalid(at, "must contain at least one letter or number (a-z, 0-9)");
            } else {
                invalid(at, wrong, errors);
            }
        }
        _ => port(at, errors),
    }
}

/// A part of an update that must be as it was.
pub fn immutable(at: &At<'_>, old: &Value, errors: &mut Errors) {
    if *at.value != *old {
        errors.invalid(at, "field is immutable");
    }
}

pub fn labels(at: &At<'_>, errors: &mut Errors) {
    for (key, value) in at.members() {
        label_name_at(&at.path, key, errors);
        for why in names::label_value(value.text()) {
            errors.invalid_value(&at.path, value.text(), why);
        }
    }
}

pub fn annotations(at: &At<'_>, errors: &mut Errors) {
    for (key, _) in at.members() {
        for why in names::qualified_name(&key.to_lowercase()) {
            errors.invalid_value(&at.path, key, why);
        }
    }
}

fn label_name_at(path: &Path<'_>, key: &str, errors: &mut Errors) {
    for why in names::qualified_name(key) {
        errors.invalid_value(path, key, why);
    }
}

/// The conditions of a status, each of its own type.
pub fn conditions(at: &At<'_>, errors: &mut Errors) {
    const REASON_MAX_BYTES: usize = 1 << 10;
    const MESSAGE_MAX_BYTES: usize = 32 << 10;
    let is_reason = |text: &str| {
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        text.bytes().next().is_some_and(|first| first.is_ascii_alphabetic())
            && text.bytes().last().is_some_and(letter)
            && text.bytes().all(|byte| letter(byte) || byte == b',' || byte == b':')
    };
    for (index, condition) in at.items().enumerate() {
        let (of_type, reason, message) =
            (condition.field("type"), condition.field("reason"), condition.field("message"));
        if at.value.items()[..index].iter().any(|other| other["type"] == *of_type.value) {
            errors.duplicate_value(&condition.path, of_type.text());
        }
        match of_type.text() {
            "" => errors.required(&of_type.path, "is required"),
            _ => label_name(&of_type, errors),
        }
        word(&condition.field("status"), &["False", "True", "Unknown"], errors);
        non_negative(&condition.field("observedGeneration"), errors);
        required(&condition.field("lastTransitionTime"), errors);
        match reason.text() {
            "" => errors.required(&reason.path, ""),
            text if !is_reason(text) => errors.invalid(
                &reason,
                "a condition reason must start with alphabetic character, optionally followed by a string of \
                 alphanumeric characters or '_,:', and must end with an alphanumeric character or '_'",
            ),
            _ => {}
        }
        if reason.text().len() > REASON_MAX_BYTES {
            errors.too_long(&reason.path, REASON_MAX_BYTES);
        }
        if message.text().len() > MESSAGE_MAX_BYTES {
            errors.too_long(&message.path, MESSAGE_MAX_BYTES);
        }
    }
}

/// A label's key.
pub fn label_name(at: &At<'_>, errors: &mut Errors) {
    label_name_at(&at.path, at.text(), errors);
}

/// `matchLabels` and `matchExpressions`, if set.
pub fn label_selector(at: &At<'_>, errors: &mut Errors) {
    labels(&at.field("matchLabels"), errors);
    for expression in at.field("matchExpressions").items() {
        let values = expression.field("values");
        match expression.field("operator").text() {
            "In" | "NotIn" if values.is_empty() => {
                errors.required(&values.path, "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "In" | "NotIn" => {}
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    errors.forbidden(&values.path, detail);
                }
            }
            _ => errors.invalid(&expression.field("operator"), "not a valid selector operator"),
        }
        label_name(&expression.field("key"), errors);
        for value in values.items() {
            invalid(&value, names::label_value(value.text()), errors);
        }
    }
}

/// `nodeSelectorTerms`.
pub fn node_selector(at: &At<'_>, errors: &mut Errors) {
    let terms = at.field("nodeSelectorTerms");
    if terms.is_empty() {
        errors.required(&terms.path, "must have at least one node selector term");
    }
    for term in terms.items() {
        node_selector_term(&term, errors);
    }
}

pub fn node_selector_term(term: &At<'_>, errors: &mut Errors) {
    for expression in term.field("matchExpressions").items() {
        let values = expression.field("values");
        match expression.field("operator").text() {
            "In" | "NotIn" if values.is_empty() => {
                errors.required(&values.path, "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "In" | "NotIn" => {}
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    errors.forbidden(&values.path, detail);
                }
            }
            "Gt" | "Lt" if values.value.items().len() != 1 => {
                errors.required(&values.path, "must be specified single value when `operator` is 'Lt' or 'Gt'");
            }
            "Gt" | "Lt" => {}
            _ => errors.invalid(&expression.field("operator"), "not a valid selector operator"),
        }
        label_name(&expression.field("key"), errors);
        for value in values.items() {
            invalid(&value, names::label_value(value.text()), errors);
        }
    }
    for field in term.field("matchFields").items() {
        let values = field.field("values");
        match field.field("operator").text() {
            "In" | "NotIn" if values.value.items().len() != 1 => {
                let detail = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                errors.required(&values.path, detail);
            }
            "In" | "NotIn" => {}
            _ => errors.invalid(&field.field("operator"), "not a valid selector operator"),
        }
        if field.field("key").text() == "metadata.name" {
            for value in values.items() {
                invalid(&value, names::dns_subdomain(value.text()), errors);
            }
        } else {
            errors.invalid(&field.field("key"), "not a valid field selector key");
        }
    }
}

/// Whether a text is an address as old fields take it: leading zeros in parts are tolerated.
pub fn is_address(text: &str) -> bool {
    if text.parse::<IpAddr>().is_ok() {
        return true;
    }
    let parts: Vec<&str> = text.split('.').collect();
    parts.len() == 4
        && parts.iter().all(|part| {
            !part.is_empty()
                && part.len() <= 4
                && part.bytes().all(|byte| byte.is_ascii_digit())
                && part.parse::<u32>().is_ok_and(|number| number <= 255)
        })
}

/// An address in an old field.
pub fn address(at: &At<'_>, errors: &mut Errors) {
    if !is_address(at.text()) {
        errors.invalid(at, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
    }
}

/// A range of addresses in an old field.
pub fn cidr(at: &At<'_>, errors: &mut Errors) {
    if Cidr::parse(at.text()).is_none() {
        errors.invalid(at, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
    }
}

/// A relative path that stays below its root.
pub fn descending_path(at: &At<'_>, errors: &mut Errors) {
    if at.text().starts_with('/') {
        errors.invalid(at, "must be a relative path");
    }
    no_backsteps(at, errors);
}

pub fn no_backsteps(at: &At<'_>, errors: &mut Errors) {
    if at.text().split('/').any(|part| part == "..") {
        errors.invalid(at, "must not contain '..'");
    }
}

/// A relative path whose first part is not kept for the system.
pub fn unreserved_path(at: &At<'_>, errors: &mut Errors) {
    descending_path(at, errors);
    if at.text().starts_with("..") && !at.text().starts_with("../") {
        errors.invalid(at, "must not start with '..'");
    }
}

/// Permissions of a file.
pub fn file_mode(at: &At<'_>, errors: &mut Errors) {
    if at.int().is_some_and(|mode| !(0..=0o777).contains(&mode)) {
        errors.invalid(at, "must be a number between 0 and 0777 (octal), both inclusive");
    }
}

/// A quantity that is not negative.
pub fn quantity(at: &At<'_>, errors: &mut Errors) {
    if Quantity::of(at.value).is_ok_and(|quantity| quantity.sign() < 0) {
        errors.invalid(at, "must be greater than or equal to 0");
    }
}

/// A number that is not negative, or a percentage.
pub fn int_or_percent(at: &At<'_>, errors: &mut Errors) {
    match at.value {
        Value::Str(text) => {
            let digits = text.strip_suffix('%').unwrap_or("");
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                errors.invalid(at, "a valid percent string must be a numeric string followed by an ending '%'");
            }
        }
        Value::Int(_) => non_negative(at, errors),
        _ => {}
    }
}

/// The percentage that a value says; `None` for numbers.
pub fn percent(value: &Value) -> Option<i64> {
    value.as_str()?.strip_suffix('%')?.parse().ok()
}

/// A percentage may not be above 100.
pub fn at_most_all(at: &At<'_>, errors: &mut Errors) {
    if percent(at.value).is_some_and(|percent| percent > 100) {
        errors.invalid(at, "must not be greater than 100%");
    }
}

/// A name that Prometheus-like identifiers and HTTP headers take.
pub fn header_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::json;

    fn faults(check: impl Fn(&At<'_>, &mut Errors), value: Value) -> Vec<String> {
        let mut errors = Errors::default();
        check(&At::root(&value), &mut errors);
        errors.0.into_iter().map(|error| format!("{} {}", error.field, error.fault.reason())).collect()
    }

    #[test]
    fn selectors() {
        assert!(faults(label_selector, json!({"matchLabels": {"a": "b"}})).is_empty());
        assert_eq!(
            faults(label_selector, json!({"matchExpressions": [{"key": "a", "operator": "In"}]})),
            ["matchExpressions[0].values FieldValueRequired"]
        );
        assert_eq!(faults(node_selector, json!({})), ["nodeSelectorTerms FieldValueRequired"]);
        assert_eq!(
            faults(node_selector_term, json!({"matchExpressions": [{"key": "a", "operator": "Gt"}]})),
            ["matchExpressions[0].values FieldValueRequired"]
        );
    }

    #[test]
    fn small_values() {
        for (good, bad, check) in [
            (json!("10%"), json!("x"), int_or_percent as fn(&At<'_>, &mut Errors)),
            (json!(0), json!(-1), int_or_percent),
            (json!("http"), json!("HTTP"), port_or_name),
            (json!(1), json!(0), port_or_name),
            (json!("010.1.1.1"), json!("1.1.1"), address),
            (json!("10.0.0.0/8"), json!("10.0.0.0"), cidr),
            (json!("a/b"), json!("/a"), descending_path),
            (json!("a..b"), json!("..b"), unreserved_path),
            (json!(511), json!(512), file_mode),
        ] {
            assert!(faults(check, good).is_empty());
            assert!(!faults(check, bad).is_empty());
        }
    }
}
