//! Checks of where a pod may go: affinity, tolerations, spreading.

use meta::{At, Errors, Str, Value, names};

use crate::check;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub fn check(affinity: &At<'_>, errors: &mut Errors) {
    let nodes = affinity.field("nodeAffinity");
    let required = nodes.field(REQUIRED);
    if required.is_set() {
        check::node_selector(&required, errors);
    }
    for term in nodes.field(PREFERRED).items() {
        check_weight(&term, errors);
        check::node_selector_term(&term.field("preference"), errors);
    }
    for key in ["podAffinity", "podAntiAffinity"] {
        let pods = affinity.field(key);
        for term in pods.field(REQUIRED).items() {
            check_term(&term, errors);
        }
        for term in pods.field(PREFERRED).items() {
            check_weight(&term, errors);
            check_term(&term.field("podAffinityTerm"), errors);
        }
    }
}

fn check_weight(term: &At<'_>, errors: &mut Errors) {
    let weight = term.field("weight");
    if !(1..=100).contains(&weight.int().unwrap_or(0)) {
        errors.invalid(&weight, "must be in the range 1-100");
    }
}

fn check_term(term: &At<'_>, errors: &mut Errors) {
    let selector = term.field("labelSelector");
    check::label_selector(&selector, errors);
    check::label_selector(&term.field("namespaceSelector"), errors);
    for namespace in term.field("namespaces").items() {
        for why in names::dns_label(namespace.text()) {
            errors.invalid_value(&term.field("namespace").path, namespace.text(), why);
        }
    }
    for key in ["matchLabelKeys", "mismatchLabelKeys"] {
        let keys = term.field(key);
        if !keys.is_empty() && !selector.is_set() {
            errors.forbidden(&keys.path, "must not be specified when labelSelector is not set");
        }
        for key in keys.items() {
            check::label_name(&key, errors);
        }
    }
    let mismatched = term.field("mismatchLabelKeys");
    for key in term.field("matchLabelKeys").items() {
        if mismatched.value.items().contains(key.value) {
            errors.invalid(&key, "exists in both matchLabelKeys and mismatchLabelKeys");
        }
    }
    topology_key(&term.field("topologyKey"), errors);
}

fn topology_key(key: &At<'_>, errors: &mut Errors) {
    if key.is_empty() {
        errors.required(&key.path, "can not be empty");
    }
    check::label_name(key, errors);
}

pub fn check_tolerations(tolerations: &At<'_>, errors: &mut Errors) {
    for toleration in tolerations.items() {
        let (key, operator) = (toleration.field("key"), toleration.field("operator"));
        let (value, effect) = (toleration.field("value"), toleration.field("effect"));
        if !key.is_empty() {
            check::label_name(&key, errors);
        } else if operator.text() != "Exists" {
            errors.invalid(
                &operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        if toleration.field("tolerationSeconds").is_set() && effect.text() != "NoExecute" {
            errors.invalid(&effect, "effect must be 'NoExecute' when `tolerationSeconds` is set");
        }
        match operator.text() {
            "" | "Equal" => check::invalid(
                &At { value: value.value, path: operator.path },
                names::label_value(value.text()),
                errors,
            ),
            "Exists" => {
                if !value.is_empty() {
                    errors.invalid(&operator, "value must be empty when `operator` is 'Exists'");
                }
            }
            _ => errors.not_supported(&operator, &["Equal", "Exists"]),
        }
        if !effect.is_empty() {
            check::supported(&effect, &["NoExecute", "NoSchedule", "PreferNoSchedule"], errors);
        }
    }
}

pub fn check_spread(constraints: &At<'_>, errors: &mut Errors) {
    let pair = |value: &Value| (Str::from(value["topologyKey"].text()), Str::from(value["whenUnsatisfiable"].text()));
    for (index, constraint) in constraints.items().enumerate() {
        let (skew, action) = (constraint.field("maxSkew"), constraint.field("whenUnsatisfiable"));
        if skew.int().unwrap_or(0) <= 0 {
            errors.invalid(&skew, "must be greater than zero");
        }
        let key = constraint.field("topologyKey");
        if key.is_empty() {
            errors.required(&key.path, "can not be empty");
        }
        check::supported(&action, &["DoNotSchedule", "ScheduleAnyway"], errors);
        let own = pair(constraint.value);
        // The earlier one of two equal constraints is the one that is named.
        if constraints.value.items()[index + 1..].iter().any(|other| pair(other) == own) {
            let path = constraint.path.field("{topologyKey, whenUnsatisfiable}");
            errors.duplicate_value(&path, format!("{{{}, {}}}", own.0, own.1));
        }
        let domains = constraint.field("minDomains");
        if domains.is_set() {
            if domains.int().unwrap_or(0) <= 0 {
                errors.invalid(&domains, "must be greater than zero");
            }
            if action.text() != "DoNotSchedule" {
                errors.invalid(&domains, "can only use minDomains if whenUnsatisfiable=DoNotSchedule");
            }
        }
        for key in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            check::set_word(&constraint.field(key), &["Honor", "Ignore"], errors);
        }
        check_spread_keys(&constraint, errors);
        check::label_selector(&constraint.field("labelSelector"), errors);
    }
}

fn check_spread_keys(constraint: &At<'_>, errors: &mut Errors) {
    let (keys, selector) = (constraint.field("matchLabelKeys"), constraint.field("labelSelector"));
    if !keys.is_empty() && !selector.is_set() {
        errors.forbidden(&keys.path, "must not be specified when labelSelector is not set");
        return;
    }
    for key in keys.items() {
        check::label_name(&key, errors);
        // Expressions with the key may be the ones that were merged when the pod was made.
        let used = selector.value["matchLabels"].entries().contains(key.text());
        if used {
            errors.invalid(&key, "exists in both matchLabelKeys and labelSelector");
        }
    }
}

/// Adds the pod's own values of `matchLabelKeys` to the selectors that name them, as a new pod gets them.
pub fn merge_keys(spec: &mut Value, labels: &Value) {
    if let Some(constraints) = spec.get_mut("topologySpreadConstraints") {
        constraints.items_mut().iter_mut().for_each(|constraint| merge(constraint, labels));
    }
    for key in ["podAffinity", "podAntiAffinity"] {
        if let Some(terms) = spec.at_mut(&["affinity", key, REQUIRED]) {
            terms.items_mut().iter_mut().for_each(|term| merge(term, labels));
        }
        if let Some(terms) = spec.at_mut(&["affinity", key, PREFERRED]) {
            for term in terms.items_mut() {
                merge(term.make(&["podAffinityTerm"]), labels);
            }
        }
    }
}

fn merge(term: &mut Value, labels: &Value) {
    if term["labelSelector"].is_null() {
        return;
    }
    for (list, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        for key in term[list].items().to_vec() {
            if let Some(value) = labels.get(key.text()) {
                let expression =
                    meta::json!({"key": (key.clone()), "operator": (operator), "values": [(value.clone())]});
                term.make(&["labelSelector", "matchExpressions"]).make_list().push(expression);
            }
        }
    }
}
