//! CSINode: the storage drivers on one node.

use std::collections::BTreeSet;

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Str, Value, names};

use super::csi_driver::check_driver_name;
use crate::check;
use crate::columns::{age, columns};

const NODE_ID_MAX_BYTES: usize = 192;

pub struct CsiNode {
    columns: Vec<Column>,
}

impl CsiNode {
    pub fn new() -> CsiNode {
        CsiNode { columns: columns(&[("Drivers", "integer", 0), ("Age", "string", 0)]) }
    }
}

impl Default for CsiNode {
    fn default() -> CsiNode {
        CsiNode::new()
    }
}

impl Rules for CsiNode {
    /// An empty status goes before anybody comes to own it.
    fn defaults(&self, object: &mut Value) {
        if object["status"].entries().is_empty() {
            object.take(&["status"]);
        }
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let spec = at.field("spec");
        let drivers = spec.field("drivers");
        let mut known: BTreeSet<Str> = BTreeSet::new();
        for driver in drivers.items() {
            check_driver(&driver, &mut known, errors);
        }
        let Some(old) = change.old else { return };
        // A driver may come and go, but not change (besides what may be allocated).
        let without = |driver: &Value| {
            let mut driver = driver.clone();
            driver.take(&["allocatable"]);
            driver
        };
        for before in old["spec"]["drivers"].items() {
            for now in drivers.value.items().iter().filter(|now| now["name"] == before["name"]) {
                if without(now) != without(before) {
                    errors.invalid(&drivers, "field is immutable");
                }
            }
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        vec![Value::Int(object["spec"]["drivers"].items().len() as i64), age(object, now)]
    }
}

fn check_driver(driver: &At<'_>, known: &mut BTreeSet<Str>, errors: &mut Errors) {
    let (name, id) = (driver.field("name"), driver.field("nodeID"));
    check_driver_name(&name, errors);
    check::required(&id, errors);
    if id.text().len() > NODE_ID_MAX_BYTES {
        errors.invalid(&id, format!("must be {NODE_ID_MAX_BYTES} characters or less"));
    }
    let allocatable = driver.field("allocatable");
    if allocatable.is_set() && allocatable.field("count").int().is_some_and(|count| count < 0) {
        errors.invalid(&allocatable.field("count"), "must be greater than or equal to 0");
    }
    if !known.insert(name.text().into()) {
        errors.duplicate(&name);
    }
    let keys = driver.field("topologyKeys");
    for (index, key) in keys.value.items().iter().enumerate() {
        if key.text().is_empty() {
            errors.required(&driver.path, "");
        }
        if keys.value.items()[..index].contains(key) {
            errors.duplicate_value(&driver.path, key.clone());
        }
        for why in names::qualified_name(key.text()) {
            errors.invalid_value(&driver.path, keys.value.clone(), why);
        }
    }
}
