//! Checks of what makes a job succeed or fail early.

use std::collections::BTreeSet;

use meta::{At, Errors};

use crate::check;

const RULES_MAX: usize = 20;
const CODES_MAX: usize = 255;

/// `podFailurePolicy` and `successPolicy` of a job's spec.
pub fn check(spec: &At<'_>, errors: &mut Errors) {
    let failures = spec.field("podFailurePolicy");
    if failures.is_set() {
        let rules = failures.field("rules");
        if rules.value.items().len() > RULES_MAX {
            errors.too_many(&rules.path, rules.value.items().len(), RULES_MAX);
        }
        for rule in rules.items() {
            check_failure(&rule, spec, errors);
        }
    }
    let success = spec.field("successPolicy");
    if success.is_set() {
        if spec.field("completionMode").text() != "Indexed" {
            errors.invalid(&success, "requires indexed completion mode");
        } else {
            check_success(&success, spec, errors);
        }
    }
}

fn check_failure(rule: &At<'_>, spec: &At<'_>, errors: &mut Errors) {
    let action = rule.field("action");
    match action.text() {
        "FailIndex" if !spec.field("backoffLimitPerIndex").is_set() => {
            errors.invalid(&action, "requires the backoffLimitPerIndex to be set");
        }
        _ => check::word(&action, &["Count", "FailIndex", "FailJob", "Ignore"], errors),
    }
    let (codes, conditions) = (rule.field("onExitCodes"), rule.field("onPodConditions"));
    if codes.is_set() {
        check_codes(&codes, spec, errors);
    }
    if !conditions.is_empty() {
        for condition in conditions.items() {
            check::label_name(&condition.field("type"), errors);
            check::word(&condition.field("status"), &["False", "True", "Unknown"], errors);
        }
    }
    match (codes.is_set(), !conditions.is_empty()) {
        (true, true) => errors.invalid(rule, "specifying both OnExitCodes and OnPodConditions is not supported"),
        (false, false) => errors.invalid(rule, "specifying one of OnExitCodes and OnPodConditions is required"),
        _ => {}
    }
}

fn check_codes(codes: &At<'_>, spec: &At<'_>, errors: &mut Errors) {
    let (operator, values) = (codes.field("operator"), codes.field("values"));
    check::word(&operator, &["In", "NotIn"], errors);
    let container = codes.field("containerName");
    if container.is_set() {
        let template = spec.field("template");
        let pods = &template.value["spec"];
        if !crate::core::pod_spec::containers(pods).any(|other| other["name"] == *container.value) {
            errors.invalid(&container, "must be one of the container or initContainer names in the pod template");
        }
    }
    let numbers: Vec<i64> = values.value.items().iter().filter_map(|value| value.as_int()).collect();
    if numbers.is_empty() {
        errors.invalid(&values, "at least one value is required");
    } else if numbers.len() > CODES_MAX {
        errors.too_many(&values.path, numbers.len(), CODES_MAX);
    }
    if !numbers.is_sorted() {
        errors.invalid(&values, "must be ordered");
    }
    let mut seen = BTreeSet::new();
    for value in values.items() {
        if value.int() == Some(0) && operator.text() == "In" {
            errors.invalid(&value, "must not be 0 for the In operator");
        }
        if !seen.insert(value.int()) {
            errors.duplicate(&value);
        }
    }
}

fn check_success(policy: &At<'_>, spec: &At<'_>, errors: &mut Errors) {
    let rules = policy.field("rules");
    if rules.is_empty() {
        errors.required(&rules.path, "at least one rules must be specified when the successPolicy is specified");
    }
    if rules.value.items().len() > RULES_MAX {
        errors.too_many(&rules.path, rules.value.items().len(), RULES_MAX);
    }
    let completions = spec.field("completions").int().unwrap_or(0);
    for rule in rules.items() {
        let (count, indexes) = (rule.field("succeededCount"), rule.field("succeededIndexes"));
        if !count.is_set() && !indexes.is_set() {
            errors.required(&rule.path, "at least one of succeededCount or succeededIndexes must be specified");
        }
        let mut total = None;
        if indexes.is_set() {
            match count_indexes(indexes.text(), completions) {
                Some(found) => total = Some(found),
                None => {
                    errors.invalid(&indexes, "must be ascending numbers and ranges below completions");
                    total = Some(0);
                }
            }
        }
        let Some(number) = count.int() else { continue };
        check::non_negative(&count, errors);
        if number > completions {
            errors.invalid(&count, "must be less than or equal to completions");
        }
        if total.is_some_and(|total| number > total) {
            errors.invalid(&count, "must be less than or equal to the number of succeededIndexes");
        }
    }
}

/// How many indexes `1,3-5` names; `None` when it is none or not below `completions`.
fn count_indexes(text: &str, completions: i64) -> Option<i64> {
    if text.is_empty() {
        return Some(0);
    }
    let (mut last, mut total) = (-1i64, 0);
    for part in text.split(',') {
        let (first, end) = match part.split_once('-') {
            Some((first, end)) => (first.parse::<i64>().ok()?, end.parse::<i64>().ok()?),
            None => {
                let number = part.parse::<i64>().ok()?;
                (number, number)
            }
        };
        let range = part.contains('-');
        if first <= last || end < first || (range && end == first) || end >= completions {
            return None;
        }
        total += end - first + 1;
        last = end;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_counted() {
        for (text, count) in [
            ("0", Some(1)),
            ("0-1", Some(2)),
            ("0,2-4", Some(4)),
            ("5", None),
            ("1,0", None),
            ("", Some(0)),
            ("1-1", None),
        ] {
            assert_eq!(count_indexes(text, 5), count, "{text}");
        }
    }
}
