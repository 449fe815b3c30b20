//! Checks of environments, and of references to fields and resources.

use meta::{At, Errors, Quantity, Value, names};

use crate::check;

const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const VOLUME_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
/// Fields that a reference can name at all.
const KNOWN_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
    "spec.host",
];
const RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const BYTE_DIVISORS: &[&str] = &["1", "1E", "1Ei", "1G", "1Gi", "1k", "1Ki", "1M", "1Mi", "1P", "1Pi", "1T", "1Ti"];

pub fn check(container: &At<'_>, errors: &mut Errors) {
    for var in container.field("env").items() {
        check::named(&var.field("name"), names::env_var, errors);
        check_source(&var, errors);
    }
    let list = container.field("envFrom");
    for source in list.items() {
        check::optional(&source.field("prefix"), names::env_var, errors);
        let refs = [source.field("configMapRef"), source.field("secretRef")];
        let set = refs.iter().filter(|found| found.is_set()).count();
        for found in refs.iter().filter(|found| found.is_set()) {
            check::named(&found.field("name"), names::dns_subdomain, errors);
        }
        if set == 0 {
            errors.invalid_value(&list.path, "", "must specify one of: `configMapRef` or `secretRef`");
        } else if set > 1 {
            errors.invalid_value(&list.path, "", "may not have more than one field specified at a time");
        }
    }
}

fn check_source(var: &At<'_>, errors: &mut Errors) {
    let from = var.field("valueFrom");
    if !from.is_set() {
        return;
    }
    let mut set = 0;
    for key in ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"] {
        let reference = from.field(key);
        if !reference.is_set() {
            continue;
        }
        set += 1;
        match key {
            "fieldRef" => field_ref(&reference, false, errors),
            "resourceFieldRef" => resource_ref(&reference, false, errors),
            "fileKeyRef" => file_ref(&reference, errors),
            _ => {
                let name = reference.field("name");
                check::invalid(&name, names::dns_subdomain(name.text()), errors);
                check::named(&reference.field("key"), names::config_key, errors);
            }
        }
    }
    if set == 0 {
        let detail =
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
        errors.invalid_value(&from.path, "", detail);
    } else if !var.field("value").is_empty() {
        errors.invalid_value(&from.path, "", "may not be specified when `value` is not empty");
    } else if set > 1 {
        errors.invalid_value(&from.path, "", "may not have more than one field specified at a time");
    }
}

fn file_ref(reference: &At<'_>, errors: &mut Errors) {
    check::named(&reference.field("key"), names::env_var, errors);
    check::required(&reference.field("volumeName"), errors);
    let path = reference.field("path");
    check::required(&path, errors);
    if !path.is_empty() {
        check::descending_path(&path, errors);
    }
}

/// `fieldRef` of an environment or, with `volume`, of a file.
pub fn field_ref(reference: &At<'_>, volume: bool, errors: &mut Errors) {
    let (version, field) = (reference.field("apiVersion"), reference.field("fieldPath"));
    if version.is_empty() {
        errors.required(&version.path, "");
        return;
    }
    if field.is_empty() {
        errors.required(&field.path, "");
        return;
    }
    let path = field.text();
    if version.text() != "v1" {
        errors.invalid(&field, format!("error converting fieldPath: unsupported pod version: {}", version.text()));
        return;
    }
    let subscript = path.strip_suffix("']").and_then(|rest| rest.split_once("['"));
    match subscript {
        Some(("metadata.annotations", key)) => {
            for why in names::qualified_name(&key.to_lowercase()) {
                errors.invalid_value(&reference.path, key, why);
            }
        }
        Some(("metadata.labels", key)) => {
            for why in names::qualified_name(key) {
                errors.invalid_value(&reference.path, key, why);
            }
        }
        None if KNOWN_FIELDS.contains(&path) => {
            let supported = if volume { VOLUME_FIELDS } else { ENV_FIELDS };
            if path != "spec.host" {
                check::supported(&field, supported, errors);
            }
        }
        _ => errors.invalid(&field, format!("error converting fieldPath: field label not supported: {path}")),
    }
}

pub fn resource_ref(reference: &At<'_>, volume: bool, errors: &mut Errors) {
    let (container, resource) = (reference.field("containerName"), reference.field("resource"));
    if volume && container.is_empty() {
        errors.required(&container.path, "");
    } else if resource.is_empty() {
        errors.required(&resource.path, "");
    } else if !RESOURCES.contains(&resource.text())
        && !resource.text().starts_with("limits.hugepages-")
        && !resource.text().starts_with("requests.hugepages-")
    {
        errors.not_supported(&resource, RESOURCES);
    }
    let divisor = reference.field("divisor");
    let zero = Quantity::of(divisor.value).map_or(true, |quantity| quantity.is_zero());
    if !zero {
        let supported: &[&str] = if resource.text().ends_with(".cpu") { &["1", "1m"] } else { BYTE_DIVISORS };
        if RESOURCES.contains(&resource.text()) && !supported.contains(&text_of(divisor.value).as_str()) {
            errors.invalid(&divisor, format!("only divisor's values {supported:?} are supported"));
        }
    }
}

fn text_of(value: &Value) -> String {
    match value {
        Value::Int(number) => number.to_string(),
        value => value.text().to_owned(),
    }
}
