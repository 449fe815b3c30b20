//! What claims ask for: requests of devices, alternatives, constraints and configurations.

use std::collections::BTreeSet;

use cel::Type;

use meta::{At, Errors, Str, Value, names};

use crate::check;
use crate::expressions;
use crate::storage::csi_driver::check_driver_name;

const REQUESTS_MAX: usize = 32;
const ALTERNATIVES_MAX: usize = 8;
const SELECTORS_MAX: usize = 32;
const CONSTRAINTS_MAX: usize = 32;
const CONFIGURATIONS_MAX: usize = 32;

/// Fills what the requests of a claim's spec leave out.
pub fn defaults(spec: &mut Value) {
    let Some(requests) = spec.at_mut(&["devices", "requests"]) else { return };
    for request in requests.items_mut() {
        if let Some(exactly) = request.get_mut("exactly").filter(|exactly| !exactly.is_null()) {
            one(exactly);
        }
        if let Some(alternatives) = request.get_mut("firstAvailable") {
            alternatives.items_mut().iter_mut().for_each(one);
        }
    }
}

fn one(request: &mut Value) {
    if request["allocationMode"].text().is_empty() {
        request.set(&["allocationMode"], "ExactCount");
    }
    if request["allocationMode"].text() == "ExactCount" && request["count"].as_int().unwrap_or(0) == 0 {
        request.set(&["count"], 1i64);
    }
    if let Some(tolerations) = request.get_mut("tolerations") {
        tolerations.items_mut().iter_mut().for_each(|toleration| toleration.default("operator", "Equal"));
    }
}

/// Checks a claim's spec.
pub fn check_spec(spec: &At<'_>, errors: &mut Errors) {
    let devices = spec.field("devices");
    let requests = devices.field("requests");
    let list = requests.value.items();
    if list.len() > REQUESTS_MAX {
        errors.too_many(&requests.path, list.len(), REQUESTS_MAX);
    }
    let mut known: BTreeSet<Str> = BTreeSet::new();
    for (index, request) in requests.items().enumerate() {
        if list[..index].iter().any(|other| other["name"] == request.value["name"]) {
            errors.duplicate_value(&request.path, request.value["name"].clone());
        }
        check_request(&request, &mut known, errors);
    }
    check_constraints(&devices.field("constraints"), &known, errors);
    check_configuration(&devices.field("config"), Some(&known), errors);
}

fn check_request(request: &At<'_>, known: &mut BTreeSet<Str>, errors: &mut Errors) {
    let name = request.field("name");
    check::invalid(&name, names::dns_label(name.text()), errors);
    known.insert(name.text().into());
    let (exactly, alternatives) = (request.field("exactly"), request.field("firstAvailable"));
    match (exactly.is_set(), !alternatives.is_empty()) {
        (false, false) => errors.required(&request.path, "exactly one of `exactly` or `firstAvailable` is required"),
        (true, true) => {
            errors.invalid_value(
                &request.path,
                Value::Null,
                "exactly one of `exactly` or `firstAvailable` is required",
            );
        }
        (true, false) => check_one(&exactly, errors),
        (false, true) => {
            let list = alternatives.value.items();
            if list.len() > ALTERNATIVES_MAX {
                errors.too_many(&alternatives.path, list.len(), ALTERNATIVES_MAX);
            }
            for (index, alternative) in alternatives.items().enumerate() {
                let inner = alternative.field("name");
                check::invalid(&inner, names::dns_label(inner.text()), errors);
                if list[..index].iter().any(|other| other["name"] == *inner.value) {
                    errors.duplicate_value(&alternative.path, inner.value.clone());
                }
                known.insert(format!("{}/{}", name.text(), inner.text()).into());
                check_one(&alternative, errors);
            }
        }
    }
}

fn check_one(request: &At<'_>, errors: &mut Errors) {
    check::named(&request.field("deviceClassName"), names::dns_subdomain, errors);
    check_selectors(&request.field("selectors"), errors);
    let (mode, count) = (request.field("allocationMode"), request.field("count"));
    match mode.text() {
        "All" if count.int().unwrap_or(0) != 0 => {
            errors.invalid(&count, "must not be specified when allocationMode is 'All'");
        }
        "All" => {}
        "ExactCount" => check::positive(&count, errors),
        _ => errors.not_supported(&mode, &["All", "ExactCount"]),
    }
    for toleration in request.field("tolerations").items() {
        check_toleration(&toleration, errors);
    }
}

fn check_toleration(toleration: &At<'_>, errors: &mut Errors) {
    let (key, value) = (toleration.field("key"), toleration.field("value"));
    check::optional(&key, names::qualified_name, errors);
    match toleration.field("operator").text() {
        "Exists" if !value.is_empty() => errors.invalid(&value, "must be empty for operator `Exists`"),
        "Exists" => {}
        "Equal" if key.is_empty() => errors.required(&key.path, "must be specified for operator `Equal`"),
        "Equal" => check::optional(&value, names::label_value, errors),
        "" => errors.required(&toleration.field("operator").path, ""),
        _ => errors.not_supported(&toleration.field("operator"), &["Equal", "Exists"]),
    }
    check::set_word(&toleration.field("effect"), &["", "NoExecute", "NoSchedule"], errors);
}

/// Selectors of devices.
pub fn check_selectors(selectors: &At<'_>, errors: &mut Errors) {
    let count = selectors.value.items().len();
    if count > SELECTORS_MAX {
        errors.too_many(&selectors.path, count, SELECTORS_MAX);
    }
    for selector in selectors.items() {
        let cel = selector.field("cel");
        if !cel.is_set() {
            errors.required(&cel.path, "");
            continue;
        }
        expressions::check(&cel.field("expression"), &expressions::device(), &[Type::Bool], errors);
    }
}

fn check_references(requests: &At<'_>, known: &BTreeSet<Str>, errors: &mut Errors) {
    let list = requests.value.items();
    if list.len() > REQUESTS_MAX {
        errors.too_many(&requests.path, list.len(), REQUESTS_MAX);
    }
    for (index, request) in requests.items().enumerate() {
        if list[..index].contains(request.value) {
            errors.duplicate(&request);
        }
        if !known.contains(request.text()) {
            errors.invalid(&request, "must be the name of a request in the claim or its subrequest");
        }
    }
}

fn check_constraints(constraints: &At<'_>, known: &BTreeSet<Str>, errors: &mut Errors) {
    let count = constraints.value.items().len();
    if count > CONSTRAINTS_MAX {
        errors.too_many(&constraints.path, count, CONSTRAINTS_MAX);
    }
    for constraint in constraints.items() {
        check_references(&constraint.field("requests"), known, errors);
        let (same, distinct) = (constraint.field("matchAttribute"), constraint.field("distinctAttribute"));
        match (same.is_set(), distinct.is_set()) {
            (true, true) => errors.invalid(&distinct, "must not be set together with matchAttribute"),
            (false, false) => errors.required(&same.path, ""),
            (true, false) => super::resource_slice::check_qualified(&same, same.text(), true, errors),
            (false, true) => super::resource_slice::check_qualified(&distinct, distinct.text(), true, errors),
        }
    }
}

/// Configurations for drivers; `known` are the requests that they may name.
pub fn check_configuration(configurations: &At<'_>, known: Option<&BTreeSet<Str>>, errors: &mut Errors) {
    let count = configurations.value.items().len();
    if count > CONFIGURATIONS_MAX {
        errors.too_many(&configurations.path, count, CONFIGURATIONS_MAX);
    }
    for configuration in configurations.items() {
        if let Some(known) = known {
            check_references(&configuration.field("requests"), known, errors);
        }
        let opaque = configuration.field("opaque");
        if !opaque.is_set() {
            errors.required(&opaque.path, "");
            continue;
        }
        check_driver_name(&opaque.field("driver"), errors);
        let parameters = opaque.field("parameters");
        match parameters.value {
            Value::Null => errors.required(&parameters.path, ""),
            Value::Map(_) => {}
            _ => errors.invalid(&parameters, "parameters must be a valid JSON object"),
        }
    }
}
