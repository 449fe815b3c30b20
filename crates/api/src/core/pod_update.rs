//! What may change of a pod that exists: little.

use meta::{At, Errors, Value};

use super::pod_spec::CONTAINER_LISTS;
use crate::check;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";

/// An update of the pod itself.
pub fn check(at: &At<'_>, old: &Value, errors: &mut Errors) {
    let spec = at.field("spec");
    let before = &old["spec"];
    let mut stop = false;
    for list in ["containers", "initContainers"] {
        let now = spec.field(list);
        if now.value.items().len() != before[list].items().len() {
            errors.forbidden(&now.path, "pod updates may not add or remove containers");
            stop = true;
        }
    }
    if stop {
        return;
    }
    let mut munged = spec.value.clone();
    for list in ["containers", "initContainers"] {
        for (at, container) in munged.make(&[list]).items_mut().iter_mut().enumerate() {
            put_back(container, &before[list][at], "image");
        }
        if munged[list].is_null() {
            munged.take(&[list]);
        }
    }
    check_deadline(&spec.field("activeDeadlineSeconds"), &before["activeDeadlineSeconds"], errors);
    put_back(&mut munged, before, "activeDeadlineSeconds");
    check_gates(&spec.field("schedulingGates"), before, errors);
    put_back(&mut munged, before, "schedulingGates");
    check_tolerations(&spec.field("tolerations"), before, errors);
    put_back(&mut munged, before, "tolerations");
    // A negative grace was always taken as one second, so it may become that.
    let grace = "terminationGracePeriodSeconds";
    if before[grace].as_int().is_some_and(|seconds| seconds < 0) && munged[grace].as_int() == Some(1) {
        put_back(&mut munged, before, grace);
    }
    if !before["schedulingGates"].items().is_empty() {
        check_gated(&spec, before, &mut munged, errors);
    }
    if !same(&munged, before) {
        errors.forbidden(
            &spec.path,
            "pod updates may not change fields other than `spec.containers[*].image`, \
             `spec.initContainers[*].image`, `spec.activeDeadlineSeconds`, `spec.tolerations` (only additions to \
             existing tolerations), `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was \
             previously negative)",
        );
    }
}

fn put_back(value: &mut Value, old: &Value, key: &str) {
    match old.get(key) {
        Some(old) => value.set(&[key], old.clone()),
        None => {
            value.take(&[key]);
        }
    }
}

/// Equal, where an absent member and an empty one are the same.
pub fn same(a: &Value, b: &Value) -> bool {
    fn nothing(value: &Value) -> bool {
        match value {
            Value::Null => true,
            Value::List(items) => items.is_empty(),
            Value::Map(map) => map.is_empty(),
            _ => false,
        }
    }
    if a.is_shared_with(b) {
        return true;
    }
    match (a, b) {
        (Value::Map(a), Value::Map(b)) => {
            let missing = |key: &str, other: &meta::Map| other.get(key).is_none();
            a.iter().all(|(key, value)| match b.get(key) {
                Some(other) => same(value, other),
                None => matches!(value, Value::Null | Value::List(_)) && nothing(value),
            }) && b.iter().all(|(key, value)| {
                !missing(key, a) || (matches!(value, Value::Null | Value::List(_)) && nothing(value))
            })
        }
        (Value::List(a), Value::List(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (a, b) => {
            a == b
                || (nothing(a)
                    && nothing(b)
                    && !matches!((a, b), (Value::Null, Value::Map(_)) | (Value::Map(_), Value::Null)))
        }
    }
}

fn check_deadline(at: &At<'_>, before: &Value, errors: &mut Errors) {
    match (at.int(), before.as_int()) {
        (Some(now), _) if !(0..=i64::from(i32::MAX)).contains(&now) => {
            errors.invalid(at, format!("must be between 0 and {}, inclusive", i32::MAX));
        }
        (Some(now), Some(before)) if now > before => {
            errors.invalid(at, "must be less than or equal to previous value");
        }
        (None, Some(_)) => errors.invalid(at, "must not update from a positive integer to nil value"),
        _ => {}
    }
}

fn check_gates(gates: &At<'_>, before: &Value, errors: &mut Errors) {
    let old = before["schedulingGates"].items();
    for gate in gates.items() {
        let name = gate.field("name");
        if !old.iter().any(|old| old["name"] == *name.value) {
            errors.forbidden(
                &name.path,
                format!("only deletion is allowed, but found new scheduling gate '{}'", name.text()),
            );
        }
    }
}

fn check_tolerations(tolerations: &At<'_>, before: &Value, errors: &mut Errors) {
    let without = |toleration: &Value| {
        let mut rest = toleration.clone();
        rest.take(&["tolerationSeconds"]);
        rest
    };
    for old in before["tolerations"].items() {
        let kept = tolerations.value.items().iter().any(|new| without(new) == without(old));
        if !kept {
            errors.forbidden(&tolerations.path, "existing toleration can not be modified except its tolerationSeconds");
        }
    }
}

/// A gated pod may still become more particular about its node.
fn check_gated(spec: &At<'_>, before: &Value, munged: &mut Value, errors: &mut Errors) {
    let selector = spec.field("nodeSelector");
    let kept = before["nodeSelector"].entries().iter().all(|(key, value)| selector.value[key] == *value);
    if !kept {
        let detail = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        errors.invalid(&selector, detail);
    }
    put_back(munged, before, "nodeSelector");
    let old = &before["affinity"]["nodeAffinity"];
    let affinity = spec.field("affinity");
    let nodes = affinity.field("nodeAffinity");
    if nodes.value == old {
        return;
    }
    let required = nodes.field(REQUIRED);
    let terms = required.field("nodeSelectorTerms");
    let old_terms = old[REQUIRED]["nodeSelectorTerms"].items();
    if !old[REQUIRED].is_null() {
        if !old_terms.is_empty() && old_terms.len() != terms.value.items().len() {
            errors.invalid(&terms, "no additions/deletions to non-empty NodeSelectorTerms list are allowed");
        } else {
            for (term, old) in terms.items().zip(old_terms) {
                if !only_adds(term.value, old) {
                    errors.invalid(&term, "only additions are allowed (no mutations or deletions)");
                }
            }
        }
    }
    if old.is_null() {
        if let Some(affinity) = munged.get_mut("affinity") {
            affinity.take(&["nodeAffinity"]);
            if affinity.entries().is_empty() && before["affinity"].is_null() {
                munged.take(&["affinity"]);
            }
        }
    } else {
        munged.set(&["affinity", "nodeAffinity"], old.clone());
    }
}

fn only_adds(term: &Value, old: &Value) -> bool {
    const PARTS: [&str; 2] = ["matchExpressions", "matchFields"];
    let count = |term: &Value| PARTS.iter().map(|part| term[*part].items().len()).sum::<usize>();
    if count(old) == 0 && count(term) > 0 {
        return false;
    }
    PARTS.iter().all(|part| {
        let (now, old) = (term[*part].items(), old[*part].items());
        old.iter().all(|old| now.iter().any(|now| same(now, old)))
    })
}

/// Ephemeral containers are only ever added.
pub fn check_ephemeral(at: &At<'_>, old: &Value, errors: &mut Errors) {
    let spec = at.field("spec");
    let list = spec.field("ephemeralContainers");
    for before in old.at(&["spec", "ephemeralContainers"]).items() {
        let now = list.items().find(|now| now.value["name"] == before["name"]);
        match now {
            None => errors.forbidden(
                &list.path,
                format!("existing ephemeral containers {:?} may not be removed", before["name"].text()),
            ),
            Some(now) if !same(now.value, before) => errors.forbidden(
                &list.path,
                format!("existing ephemeral containers {:?} may not be changed", before["name"].text()),
            ),
            Some(_) => {}
        }
    }
}

/// A resize changes requests and limits of cpu and memory, and not the class of service.
pub fn check_resize(at: &At<'_>, old: &Value, errors: &mut Errors) {
    let spec = at.field("spec");
    let before = &old["spec"];
    let mut munged = spec.value.clone();
    let mut beyond = false;
    for list in CONTAINER_LISTS {
        if munged[list].items().len() != before[list].items().len() {
            beyond = true;
            continue;
        }
        let Some(containers) = munged.get_mut(list) else { continue };
        for (at, container) in containers.items_mut().iter_mut().enumerate() {
            for part in ["requests", "limits"] {
                let old = &before[list][at]["resources"][part];
                for name in ["cpu", "memory"] {
                    let was_set = !old[name].is_null();
                    let is_set = !container["resources"][part][name].is_null();
                    if was_set && !is_set {
                        let path = at_path(list, at);
                        errors.0.push(meta::FieldError {
                            fault: meta::Fault::Forbidden,
                            field: format!("{path}.resources.{part}"),
                            value: String::new(),
                            detail: "resource requests and limits cannot be removed".to_owned(),
                        });
                    }
                    match old.get(name) {
                        Some(amount) => container.set(&["resources", part, name], amount.clone()),
                        None => {
                            if let Some(map) = container.at_mut(&["resources", part]) {
                                map.take(&[name]);
                            }
                        }
                    }
                }
                let empty = container["resources"][part].entries().is_empty();
                if empty && before[list][at]["resources"][part].is_null() {
                    container.make(&["resources"]).take(&[part]);
                }
            }
            put_back(container, &before[list][at], "resizePolicy");
        }
    }
    if beyond || !same(&munged, before) {
        errors.forbidden(&spec.path, "only cpu and memory resources are mutable");
    }
    let class = super::pod::qos_class(spec.value);
    if class != super::pod::qos_class(before) {
        errors.invalid_value(&spec.path, class, "Pod QOS Class may not change as a result of resizing");
    }
}

fn at_path(list: &str, at: usize) -> String {
    format!("spec.{list}[{at}]")
}

/// The status subresource: what a node may say.
pub fn check_status(at: &At<'_>, errors: &mut Errors) {
    let status = at.field("status");
    check::optional(&status.field("nominatedNodeName"), meta::names::dns_subdomain, errors);
}
