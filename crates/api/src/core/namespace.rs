//! Namespaces: a place for names, held until it is empty.

use base::Time;
use meta::{At, Change, Column, Errors, Prepare, Rules, Status, Str, Value, names};

use crate::columns::{age, column};

pub struct Namespace {
    columns: Vec<Column>,
}

impl Namespace {
    pub fn new() -> Namespace {
        Namespace { columns: vec![column("Status", "string", 0), column("Age", "string", 0)] }
    }
}

impl Default for Namespace {
    fn default() -> Namespace {
        Namespace::new()
    }
}

/// The finalizer of whoever empties namespaces.
pub const KUBERNETES: &str = "kubernetes";
/// The condition that tells how far what aggregated servers have in a namespace is deleted, and its reasons.
pub const CONTENT: &str = "gantry.dev/AggregatedContentDeleted";
pub const CONTENT_DELETED: &str = "ContentDeleted";
pub const CONTENT_REMAINS: &str = "SomeResourcesRemain";
pub const CONTENT_UNKNOWN: &str = "DiscoveryFailed";

impl Rules for Namespace {
    fn check_name(&self, name: &str) -> Vec<String> {
        names::dns_label(name)
    }

    fn defaults(&self, object: &mut Value) {
        let name = Str::from(object.at(&["metadata", "name"]).text());
        if !name.is_empty() {
            object.set(&["metadata", "labels", "kubernetes.io/metadata.name"], name);
        }
    }

    fn prepare(&self, cx: &mut Prepare<'_>, object: &mut Value) -> Result<(), Status> {
        match (cx.change.old, cx.change.subresource) {
            (None, _) => {
                let name = Str::from(object.at(&["metadata", "name"]).text());
                object.set(&["metadata", "labels", "kubernetes.io/metadata.name"], name);
                object.set(&["status"], meta::json!({"phase": "Active"}));
                let finalizers = object.make(&["spec", "finalizers"]).make_list();
                if !finalizers.iter().any(|finalizer| finalizer.text() == KUBERNETES) {
                    finalizers.push(KUBERNETES.into());
                }
            }
            // Only `finalize` changes the finalizers of the spec.
            (Some(old), subresource) if subresource != "finalize" => match old.at(&["spec", "finalizers"]) {
                Value::Null => {
                    object.take(&["spec", "finalizers"]);
                }
                finalizers => object.set(&["spec", "finalizers"], finalizers.clone()),
            },
            (Some(old), _) => {
                object.set(&["status"], old["status"].clone());
            }
        }
        Ok(())
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        if change.is_status() {
            let phase = at.field("status");
            let phase = phase.field("phase");
            let going = at.value.at(&["metadata", "deletionTimestamp"]).as_str().is_some();
            match (going, phase.text()) {
                (false, "Active") | (true, "Terminating") => {}
                (false, _) => errors.invalid(&phase, "may only be 'Active' if `deletionTimestamp` is empty"),
                (true, _) => errors.invalid(&phase, "may only be 'Terminating' if `deletionTimestamp` is not empty"),
            }
            return;
        }
        let spec = at.field("spec");
        for finalizer in spec.field("finalizers").items() {
            for why in names::qualified_name(finalizer.text()) {
                errors.invalid(&finalizer, why);
            }
        }
    }

    fn marked_deleted(&self, object: &mut Value) {
        object.set(&["status", "phase"], "Terminating");
    }

    fn holds(&self, object: &Value) -> bool {
        !object.at(&["spec", "finalizers"]).items().is_empty()
    }

    fn answers_deletion_with_object(&self) -> bool {
        true
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        vec![object.at(&["status", "phase"]).clone(), age(object, now)]
    }

    fn selectable(&self, object: &Value, field: &str) -> Option<Str> {
        match field {
            "status.phase" => Some(object.at(&["status", "phase"]).text().into()),
            "name" => Some(object.at(&["metadata", "name"]).text().into()),
            _ => None,
        }
    }
}
