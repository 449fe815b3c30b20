//! The group `apps`, and what all workloads share: a selector and a template of pods.

pub mod controller_revision;
pub mod daemon_set;
pub mod deployment;
pub mod replica_set;
pub mod stateful_set;

use meta::{At, Errors, Selector, Value};

use crate::check;
use crate::core::pod_spec::{self, Context, defaults};

/// Defaults of a template of pods.
pub fn template_defaults(template: &mut Value) {
    if template["spec"].is_null() && template.entries().is_empty() {
        return;
    }
    defaults::spec(template.make(&["spec"]));
}

/// A selector that must be there and select something.
pub fn check_selector(selector: &At<'_>, what: &str, errors: &mut Errors) {
    if !selector.is_set() {
        errors.required(&selector.path, "");
        return;
    }
    check::label_selector(selector, errors);
    if selects_all(selector.value) {
        errors.invalid(selector, format!("empty selector is invalid for {what}"));
    }
}

/// Whether a selector has no term.
pub fn selects_all(selector: &Value) -> bool {
    selector["matchLabels"].entries().is_empty() && selector["matchExpressions"].items().is_empty()
}

/// Whether a selector can be read: its operators, keys and values are right.
pub fn is_readable(selector: &At<'_>) -> bool {
    let mut errors = Errors::default();
    check::label_selector(selector, &mut errors);
    errors.is_empty()
}

/// The template of a workload whose pods run for ever. Without `volumes` of its own, claims may add some.
pub fn check_template(spec: &At<'_>, template: &At<'_>, errors: &mut Errors) {
    let selector = spec.field("selector");
    if !is_readable(&selector) {
        errors.invalid(&selector, "invalid label selector");
        return;
    }
    check_labels_match(&selector, template, errors);
    pod_spec::check_template(template, errors);
    check_runs_for_ever(template, errors);
}

/// The selector must match the template's labels.
pub fn check_labels_match(selector: &At<'_>, template: &At<'_>, errors: &mut Errors) {
    let meta = template.field("metadata");
    let labels = meta.field("labels");
    if !selector.is_set() || !Selector::of(selector.value).matches_value(labels.value) {
        errors.invalid(&labels, "`selector` does not match template `labels`");
    }
}

pub fn check_runs_for_ever(template: &At<'_>, errors: &mut Errors) {
    let spec = template.field("spec");
    let policy = spec.field("restartPolicy");
    if policy.text() != "Always" {
        errors.not_supported(&policy, &["Always"]);
    }
    let deadline = spec.field("activeDeadlineSeconds");
    if deadline.is_set() {
        errors.forbidden(&deadline.path, "activeDeadlineSeconds in a workload that runs for ever is not supported");
    }
}

/// A template whose pods get volumes from claims as well.
pub fn check_template_with_claims(template: &At<'_>, claims: &Value, errors: &mut Errors) {
    let mut spec = template.value["spec"].clone();
    let volumes = spec.make(&["volumes"]).make_list();
    for claim in claims.items() {
        let name = claim.at(&["metadata", "name"]);
        volumes.retain(|volume| volume["name"] != *name);
        volumes.push(meta::json!({"name": (name.clone()), "persistentVolumeClaim": {"claimName": (name.clone())}}));
    }
    pod_spec::check_template_meta(template, errors);
    let at = At { value: &spec, path: template.path.field("spec") };
    pod_spec::check_spec(&at, &Context::template(&spec), errors);
}

/// A selector in words, as columns show it.
pub fn selector_text(selector: &Value) -> Value {
    let mut terms: Vec<(String, String)> = Vec::new();
    for (key, value) in selector["matchLabels"].entries().iter() {
        terms.push((key.to_owned(), format!("{key}={}", value.text())));
    }
    for expression in selector["matchExpressions"].items() {
        let key = expression["key"].text();
        let mut values: Vec<&str> = expression["values"].items().iter().map(Value::text).collect();
        values.sort_unstable();
        let text = match expression["operator"].text() {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        };
        terms.push((key.to_owned(), text));
    }
    if terms.is_empty() {
        return "<none>".into();
    }
    terms.sort_by(|a, b| a.0.cmp(&b.0));
    terms.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(",").into()
}

/// Labels as `a=b,c=d`; `<none>` without any.
pub fn labels_text(labels: &Value) -> Value {
    let terms: Vec<String> = labels.entries().iter().map(|(key, value)| format!("{key}={}", value.text())).collect();
    if terms.is_empty() { "<none>".into() } else { terms.join(",").into() }
}

/// A number that may be absent, as a cell.
pub fn number(value: &Value) -> Value {
    Value::Int(value.as_int().unwrap_or(0))
}

/// `maxUnavailable` and `maxSurge` of a rolling update.
pub fn is_zero(value: &Value) -> bool {
    match value {
        Value::Int(number) => *number == 0,
        value => check::percent(value) == Some(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::json;

    #[test]
    fn selectors_in_words() {
        for (selector, text) in [
            (json!({}), "<none>"),
            (json!({"matchLabels": {"b": "1", "a": "2"}}), "a=2,b=1"),
            (
                json!({"matchLabels": {"b": "1"}, "matchExpressions": [
                    {"key": "a", "operator": "In", "values": ["y", "x"]}, {"key": "c", "operator": "DoesNotExist"}]}),
                "a in (x,y),b=1,!c",
            ),
        ] {
            assert_eq!(selector_text(&selector).text(), text);
        }
    }
}
