//! StorageVersionMigrations: the wish that all objects of a resource be stored in the form of today.

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Value, names};

use crate::check;
use crate::columns::columns;

pub struct StorageVersionMigration {
    columns: Vec<Column>,
}

impl StorageVersionMigration {
    pub fn new() -> StorageVersionMigration {
        let names = ["Name", "Resource", "Status"];
        StorageVersionMigration { columns: columns(&names.map(|name| (name, "string", 0))) }
    }
}

impl Default for StorageVersionMigration {
    fn default() -> StorageVersionMigration {
        StorageVersionMigration::new()
    }
}

/// Whether a condition of a migration holds.
pub fn holds(object: &Value, of_type: &str) -> bool {
    let conditions = object.at(&["status", "conditions"]).items();
    conditions.iter().any(|condition| condition["type"].text() == of_type && condition["status"].text() == "True")
}

impl Rules for StorageVersionMigration {
    fn first_status(&self) -> Option<Value> {
        Some(Value::map())
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        if let (Some(old), true) = (change.old, change.is_status()) {
            return check_status(old, at, errors);
        }
        let spec = at.field("spec");
        let wanted = spec.field("resource");
        let (group, resource) = (wanted.field("group"), wanted.field("resource"));
        match resource.text() {
            "" => errors.required(&resource.path, "resource is required to be set"),
            text => check::invalid(&resource, names::dns1035_label(text), errors),
        }
        check::optional(&group, names::dns_subdomain, errors);
        if let Some(old) = change.old {
            check::immutable(&spec, &old["spec"], errors);
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, _: Time) -> Vec<Value> {
        let wanted = object.at(&["spec", "resource"]);
        let resource = meta::status::qualified(wanted["group"].text(), wanted["resource"].text());
        let states = ["Succeeded", "Failed", "Running"];
        let state = states.into_iter().find(|state| holds(object, state)).unwrap_or("Unknown");
        vec![object.at(&["metadata", "name"]).text().into(), resource.into(), state.into()]
    }
}

fn check_status(old: &Value, at: &At<'_>, errors: &mut Errors) {
    let status = at.field("status");
    let (revision, conditions) = (status.field("resourceVersion"), status.field("conditions"));
    let is_number = revision.text().parse::<u64>().is_ok();
    if !revision.text().is_empty() && !is_number {
        errors.invalid(&revision, "must be a number");
    }
    check::conditions(&conditions, errors);
    let before = old.at(&["status", "resourceVersion"]).text();
    if !before.is_empty() && before != revision.text() {
        errors.invalid(&revision, "field is immutable");
    }
    if holds(at.value, "Succeeded") && holds(at.value, "Failed") {
        errors.invalid(&conditions, "Both success and failed conditions cannot be true at the same time");
    }
    for (of_type, word) in [("Succeeded", "Success"), ("Failed", "Failed")] {
        if holds(old, of_type) && !holds(at.value, of_type) {
            errors.invalid(&conditions, format!("{word} condition cannot be set to false once it is true"));
        }
    }
}
