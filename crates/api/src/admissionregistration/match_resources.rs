//! What admission policies and their bindings share: which requests they are about, and under which conditions.

use meta::{At, Errors, Value, names};

use super::webhook_configuration::check_rule;
use crate::check;

/// Most conditions of one policy.
const CONDITIONS_MAX: usize = 64;

/// Fills what `matchConstraints` or `matchResources` leaves out.
pub fn defaults(found: &mut Value) {
    if found.is_null() {
        return;
    }
    found.default("matchPolicy", "Equivalent");
    found.default("namespaceSelector", Value::map());
    found.default("objectSelector", Value::map());
    for key in ["resourceRules", "excludeResourceRules"] {
        if let Some(rules) = found.get_mut(key) {
            rules.items_mut().iter_mut().for_each(|rule| rule.default("scope", "*"));
        }
    }
}

/// Checks `matchResources`, if it is there.
pub fn check(found: &At<'_>, errors: &mut Errors) {
    if !found.is_set() {
        return;
    }
    check::set_word(&found.field("matchPolicy"), &["Equivalent", "Exact"], errors);
    check::label_selector(&found.field("namespaceSelector"), errors);
    check::label_selector(&found.field("objectSelector"), errors);
    for key in ["resourceRules", "excludeResourceRules"] {
        for rule in found.field(key).items() {
            check_rule(&rule, errors);
            let wanted = rule.field("resourceNames");
            for (index, name) in wanted.items().enumerate() {
                check::invalid(&name, names::path_segment(name.text()), errors);
                if wanted.value.items()[..index].contains(name.value) {
                    errors.duplicate(&name);
                }
            }
        }
    }
}

/// Checks `matchConstraints`, which must be there and say something.
pub fn check_constraints(found: &At<'_>, errors: &mut Errors) {
    if !found.is_set() {
        errors.required(&found.path, "");
        return;
    }
    check(found, errors);
    if found.field("resourceRules").is_empty() {
        errors.required(&found.field("resourceRules").path, "");
    }
}

/// Checks `paramKind`, if it is there.
pub fn check_param_kind(found: &At<'_>, errors: &mut Errors) {
    if !found.is_set() {
        return;
    }
    let (version, kind) = (found.field("apiVersion"), found.field("kind"));
    match version.text().split('/').collect::<Vec<_>>().as_slice() {
        [""] => errors.required(&version.path, ""),
        [name] => check::invalid(&version, names::dns1035_label(name), errors),
        [group, name] => {
            check::invalid(&version, names::dns_subdomain(group), errors);
            check::invalid(&version, names::dns1035_label(name), errors);
        }
        _ => errors.invalid(&version, "unexpected GroupVersion string"),
    }
    check::named(&kind, |kind| names::dns1035_label(&kind.to_lowercase()), errors);
}

/// Checks `matchConditions`, but not what their expressions mean.
pub fn check_conditions(conditions: &At<'_>, errors: &mut Errors) {
    let list = conditions.value.items();
    if list.len() > CONDITIONS_MAX {
        errors.too_many(&conditions.path, list.len(), CONDITIONS_MAX);
    }
    for (index, condition) in conditions.items().enumerate() {
        let (name, expression) = (condition.field("name"), condition.field("expression"));
        if expression.text().trim().is_empty() {
            errors.required(&expression.path, "");
        }
        check::named(&name, names::qualified_name, errors);
        if !name.is_empty() && list[..index].iter().any(|other| other["name"] == *name.value) {
            errors.duplicate(&name);
        }
    }
}

/// Checks `variables`, but not what their expressions mean.
pub fn check_variables(variables: &At<'_>, errors: &mut Errors) {
    for variable in variables.items() {
        let (name, expression) = (variable.field("name"), variable.field("expression"));
        match name.text() {
            "" => errors.required(&name.path, "name is not specified"),
            text if !is_identifier(text) => errors.invalid(&name, "name is not a valid CEL identifier"),
            _ => {}
        }
        if expression.text().trim().is_empty() {
            errors.required(&expression.path, "expression is not specified");
        }
    }
}

/// A letter or underscore, then letters, digits and underscores.
pub fn is_identifier(text: &str) -> bool {
    let first = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    text.bytes().next().is_some_and(first) && text.bytes().all(|byte| first(byte) || byte.is_ascii_digit())
}

/// `paramKind` as a cell.
pub fn param_kind_text(kind: &Value) -> Value {
    if kind.is_null() {
        return "<unset>".into();
    }
    format!("{}/{}", kind["apiVersion"].text(), kind["kind"].text()).into()
}
