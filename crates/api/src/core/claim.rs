//! Claims of storage: checks that volumes and templates share.

use meta::{At, Errors, Quantity, Value, names};

use crate::check;

/// Ways to use a volume.
pub const ACCESS_MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

/// Access modes in short, in their usual order.
pub fn modes_text(modes: &Value) -> Value {
    const SHORT: [(&str, &str); 4] =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let has = |name: &str| modes.items().iter().any(|mode| mode.text() == name);
    let all: Vec<&str> = SHORT.iter().filter(|(name, _)| has(name)).map(|(_, short)| *short).collect();
    all.join(",").into()
}

/// `accessModes`: at least one, each known, one-pod access alone.
pub fn check_access_modes(modes: &At<'_>, errors: &mut Errors) {
    if modes.is_empty() {
        errors.required(&modes.path, "at least 1 access mode is required");
    }
    let mut single = false;
    for mode in modes.items() {
        single |= mode.text() == "ReadWriteOncePod";
        if !ACCESS_MODES.contains(&mode.text()) {
            errors.not_supported(&At { value: mode.value, path: modes.path }, ACCESS_MODES);
        }
    }
    if single && modes.value.items().len() > 1 {
        errors.forbidden(&modes.path, "may not use ReadWriteOncePod with other access modes");
    }
}

/// The spec of a claim.
pub fn check_spec(spec: &At<'_>, errors: &mut Errors) {
    check_access_modes(&spec.field("accessModes"), errors);
    check::label_selector(&spec.field("selector"), errors);
    let resources = spec.field("resources");
    let requests = resources.field("requests");
    match requests.value.get("storage") {
        None => {
            let path = spec.path.field("resources");
            errors.required(&path.key("storage"), "");
        }
        Some(amount) => {
            if Quantity::of(amount).is_ok_and(|amount| amount.sign() <= 0) {
                let path = spec.path.field("resources");
                errors.invalid_value(&path.key("storage"), amount.clone(), "must be greater than zero");
            }
        }
    }
    check::optional(&spec.field("storageClassName"), names::dns_subdomain, errors);
    check::set_word(&spec.field("volumeMode"), &["Block", "Filesystem"], errors);
    for key in ["dataSource", "dataSourceRef"] {
        let source = spec.field(key);
        if !source.is_set() {
            continue;
        }
        check::required(&source.field("name"), errors);
        check::required(&source.field("kind"), errors);
        let group = source.field("apiGroup");
        if group.is_empty() && source.field("kind").text() != "PersistentVolumeClaim" {
            errors.invalid(&source, "must be 'PersistentVolumeClaim' when referencing the default apiGroup");
        }
        check::optional(&group, names::dns_subdomain, errors);
    }
    check::optional(&spec.field("volumeAttributesClassName"), names::dns_subdomain, errors);
}
