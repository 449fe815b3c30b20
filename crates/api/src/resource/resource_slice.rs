//! ResourceSlice: devices that a driver offers.

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Value, names};

use crate::check;
use crate::columns::{age, columns};
use crate::storage::csi_driver::check_driver_name;

const DEVICES_MAX: usize = 128;
const ATTRIBUTES_MAX: usize = 32;
const ATTRIBUTE_MAX_BYTES: usize = 64;
const POOL_NAME_MAX_BYTES: usize = 253;
const DOMAIN_MAX_BYTES: usize = 63;
const ID_MAX_BYTES: usize = 32;

pub struct ResourceSlice {
    columns: Vec<Column>,
}

impl ResourceSlice {
    pub fn new() -> ResourceSlice {
        let shown = ["Node", "Driver", "Pool", "Age"];
        ResourceSlice { columns: columns(&shown.map(|name| (name, "string", 0))) }
    }
}

impl Default for ResourceSlice {
    fn default() -> ResourceSlice {
        ResourceSlice::new()
    }
}

impl Rules for ResourceSlice {
    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let spec = at.field("spec");
        let (driver, node) = (spec.field("driver"), spec.field("nodeName"));
        check_driver_name(&driver, errors);
        check_pool(&spec.field("pool"), errors);
        check_nodes(&spec, errors);
        check_devices(&spec.field("devices"), errors);
        if let Some(old) = change.old.map(|old| &old["spec"]) {
            check::immutable(&driver, &old["driver"], errors);
            check::immutable(&spec.field("pool").field("name"), old.at(&["pool", "name"]), errors);
            check::immutable(&node, &old["nodeName"], errors);
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let spec = &object["spec"];
        let node = match spec["nodeName"].text() {
            "" => "<unset>",
            node => node,
        };
        vec![node.into(), spec["driver"].text().into(), spec.at(&["pool", "name"]).text().into(), age(object, now)]
    }

    fn selectable(&self, object: &Value, field: &str) -> Option<meta::Str> {
        match field {
            "spec.nodeName" => Some(object.at(&["spec", "nodeName"]).text().into()),
            "spec.driver" => Some(object.at(&["spec", "driver"]).text().into()),
            _ => None,
        }
    }

    fn has_generation(&self) -> bool {
        true
    }
}

/// The name of a pool: names of domains with slashes between them.
pub fn check_pool_name(name: &At<'_>, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(&name.path, "");
        return;
    }
    if name.text().len() > POOL_NAME_MAX_BYTES {
        errors.too_long(&name.path, POOL_NAME_MAX_BYTES);
    }
    for part in name.text().split('/') {
        check::invalid(name, names::dns_subdomain(part), errors);
    }
}

fn check_pool(pool: &At<'_>, errors: &mut Errors) {
    check_pool_name(&pool.field("name"), errors);
    let count = pool.field("resourceSliceCount");
    if count.int().unwrap_or(0) <= 0 {
        errors.invalid(&count, "must be greater than zero");
    }
    check::non_negative(&pool.field("generation"), errors);
}

/// Exactly one way to say on which nodes the devices are.
fn check_nodes(spec: &At<'_>, errors: &mut Errors) {
    let (node, selector) = (spec.field("nodeName"), spec.field("nodeSelector"));
    let ways = [
        node.is_set() && !node.is_empty(),
        selector.is_set(),
        spec.value["allNodes"].is_true(),
        spec.value["perDeviceNodeSelection"].is_true(),
    ];
    match ways.iter().filter(|way| **way).count() {
        0 => errors.required(
            &spec.path,
            "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required",
        ),
        1 => {}
        _ => errors.invalid_value(
            &spec.path,
            Value::Null,
            "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required",
        ),
    }
    if node.is_set() {
        check::invalid(&node, names::dns_subdomain(node.text()), errors);
    }
    if selector.is_set() {
        check::node_selector(&selector, errors);
        let terms = selector.field("nodeSelectorTerms");
        if terms.value.items().len() > 1 {
            errors.invalid(&terms, "must have exactly one node selector term");
        }
    }
}

fn check_devices(devices: &At<'_>, errors: &mut Errors) {
    let list = devices.value.items();
    if list.len() > DEVICES_MAX {
        errors.too_many(&devices.path, list.len(), DEVICES_MAX);
    }
    for (index, device) in devices.items().enumerate() {
        let name = device.field("name");
        if list[..index].iter().any(|other| other["name"] == *name.value) {
            errors.duplicate_value(&device.path, name.value.clone());
        }
        check::invalid(&name, names::dns_label(name.text()), errors);
        let (attributes, capacity) = (device.field("attributes"), device.field("capacity"));
        let total = attributes.map().len() + capacity.map().len();
        if total > ATTRIBUTES_MAX {
            errors.invalid_value(
                &device.path,
                total as i64,
                format!("at most {ATTRIBUTES_MAX} attributes and capacities"),
            );
        }
        for (key, attribute) in attributes.members() {
            check_qualified(&attribute, key, false, errors);
            check_attribute(&attribute, errors);
        }
        for (key, one) in capacity.members() {
            check_qualified(&one, key, false, errors);
        }
    }
}

/// Attributes have exactly one value.
fn check_attribute(attribute: &At<'_>, errors: &mut Errors) {
    let set = ["bool", "int", "string", "version"].into_iter().filter(|key| attribute.field(key).is_set());
    match set.collect::<Vec<_>>().as_slice() {
        ["string"] => {
            let text = attribute.field("string");
            if text.text().len() > ATTRIBUTE_MAX_BYTES {
                errors.too_long(&text.path, ATTRIBUTE_MAX_BYTES);
            }
        }
        ["version"] => {
            let version = attribute.field("version");
            if !is_semver(version.text()) {
                errors.invalid(&version, "must be a string compatible with semver.org spec 2.0.0");
            }
            if version.text().len() > ATTRIBUTE_MAX_BYTES {
                errors.too_long(&version.path, ATTRIBUTE_MAX_BYTES);
            }
        }
        [_] => {}
        [] => errors.invalid_value(&attribute.path, Value::Null, "exactly one value must be specified"),
        _ => errors.invalid(attribute, "exactly one value must be specified"),
    }
}

fn is_semver(text: &str) -> bool {
    let (core, build) = text.split_once('+').map_or((text, None), |(core, build)| (core, Some(build)));
    let (core, before) = core.split_once('-').map_or((core, None), |(core, before)| (core, Some(before)));
    let number = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) && (part == "0" || !part.starts_with('0'))
    };
    let word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let parts: Vec<&str> = core.split('.').collect();
    parts.len() == 3
        && parts.iter().all(|part| number(part))
        && before.is_none_or(|before| {
            before.split('.').all(|part| word(part) && (number(part) || !part.bytes().all(|b| b.is_ascii_digit())))
        })
        && build.is_none_or(|build| build.split('.').all(word))
}

/// A C identifier with an optional domain before it (`needs_domain`: that must be there).
pub fn check_qualified(at: &At<'_>, name: &str, needs_domain: bool, errors: &mut Errors) {
    let (domain, id) = match name.split_once('/') {
        Some((domain, id)) => (Some(domain), id),
        None => (None, name),
    };
    match domain {
        Some(domain) => {
            if domain.len() > DOMAIN_MAX_BYTES {
                errors.too_long(&at.path, DOMAIN_MAX_BYTES);
            }
            for why in names::dns_subdomain(domain) {
                errors.invalid_value(&at.path, domain, why);
            }
        }
        None if needs_domain => errors.invalid_value(&at.path, name, "must include a domain"),
        None => {}
    }
    if id.len() > ID_MAX_BYTES {
        errors.too_long(&at.path, ID_MAX_BYTES);
    }
    if !crate::admissionregistration::match_resources::is_identifier(id) {
        errors.invalid_value(&at.path, id, "must be a C identifier");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::json;

    #[track_caller]
    fn check(device: Value, expected: &[&str]) {
        let slice = json!([device]);
        let mut errors = Errors::default();
        check_devices(&At::root(&slice), &mut errors);
        let found: Vec<String> =
            errors.0.iter().map(|error| format!("{} {}", error.field, error.fault.reason())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn devices() {
        check(json!({"name": "a", "attributes": {"x.io/y": {"version": "1.2.3-rc.1+b"}}}), &[]);
        check(
            json!({"name": "a", "attributes": {"y": {"version": "1.2"}}}),
            &["[0].attributes[y].version FieldValueInvalid"],
        );
        check(
            json!({"name": "a", "attributes": {"y": {"int": 1, "bool": true}}}),
            &["[0].attributes[y] FieldValueInvalid"],
        );
        check(
            json!({"name": "A", "capacity": {"1y": {"value": "1"}}}),
            &["[0].name FieldValueInvalid", "[0].capacity[1y] FieldValueInvalid"],
        );
    }
}
