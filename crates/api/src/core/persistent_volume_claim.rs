//! PersistentVolumeClaims: who wants storage.

use base::Time;
use meta::{At, Change, Column, Errors, Prepare, Quantity, Rules, Status, Value};

use super::claim::{self, modes_text};
use super::pod_update::same;
use super::volume_binding::asks_for_default;
use crate::check;
use crate::columns::{age, columns};

pub struct PersistentVolumeClaim {
    columns: Vec<Column>,
}

impl PersistentVolumeClaim {
    pub fn new() -> PersistentVolumeClaim {
        let names = ["Status", "Volume", "Capacity", "Access Modes", "StorageClass", "VolumeAttributesClass", "Age"];
        let mut all = columns(&names.map(|name| (name, "string", 0)));
        all.extend(columns(&[("VolumeMode", "string", 1)]));
        PersistentVolumeClaim { columns: all }
    }
}

impl Default for PersistentVolumeClaim {
    fn default() -> PersistentVolumeClaim {
        PersistentVolumeClaim::new()
    }
}

impl Rules for PersistentVolumeClaim {
    fn defaults(&self, object: &mut Value) {
        object.make(&["spec"]).default("volumeMode", "Filesystem");
        if object.at(&["status", "phase"]).text().is_empty() {
            object.set(&["status", "phase"], "Pending");
        }
    }

    fn prepare(&self, cx: &mut Prepare<'_>, object: &mut Value) -> Result<(), Status> {
        if cx.change.is_create() {
            object.set(&["status"], meta::json!({"phase": "Pending"}));
        }
        // Only claims and snapshots are sources in the older field.
        let known = |source: &Value| {
            matches!(
                (source["apiGroup"].text(), source["kind"].text()),
                ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot")
            )
        };
        if cx.change.is_create() && !known(object.at(&["spec", "dataSource"])) {
            object.take(&["spec", "dataSource"]);
        }
        // The two ways to name a source say the same.
        let spec = object.make(&["spec"]);
        if !spec["dataSource"].is_null() && spec["dataSourceRef"].is_null() {
            let source = spec["dataSource"].clone();
            spec.set(&["dataSourceRef"], source);
        } else if spec["dataSource"].is_null()
            && !spec["dataSourceRef"].is_null()
            && spec["dataSourceRef"]["namespace"].text().is_empty()
        {
            let mut source = spec["dataSourceRef"].clone();
            source.take(&["namespace"]);
            spec.set(&["dataSource"], source);
        }
        Ok(())
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let spec = at.field("spec");
        if change.is_status() {
            return;
        }
        claim::check_spec(&spec, errors);
        let (source, reference) = (spec.field("dataSource"), spec.field("dataSourceRef"));
        if source.is_set() && reference.is_set() && reference.field("namespace").is_empty() {
            let alike = ["apiGroup", "kind", "name"].iter().all(|key| source.value[*key] == reference.value[*key]);
            if !alike {
                errors.invalid(&spec, "must match dataSourceRef");
            }
        }
        let Some(old) = change.old else { return };
        let before = &old["spec"];
        let mut munged = spec.value.clone();
        if !before["volumeName"].text().is_empty() || old.at(&["status", "phase"]).text() == "Bound" {
            let requests = before["resources"]["requests"].clone();
            munged.set(&["resources", "requests"], requests);
        }
        if before["volumeName"].text().is_empty() {
            munged.take(&["volumeName"]);
        }
        // A claim that was made before there was a default class may get it.
        if asks_for_default(old) {
            munged.take(&["storageClassName"]);
        }
        match before.get("volumeAttributesClassName") {
            Some(class) => munged.set(&["volumeAttributesClassName"], class.clone()),
            None => {
                munged.take(&["volumeAttributesClassName"]);
            }
        }
        if !same(&munged, before) {
            errors.forbidden(&spec.path, "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims");
        }
        let wanted = spec.value.at(&["resources", "requests", "storage"]);
        let given = old.at(&["status", "capacity", "storage"]);
        let was = before.at(&["resources", "requests", "storage"]);
        if let (Ok(wanted), Ok(was), Ok(given)) = (Quantity::of(wanted), Quantity::of(was), Quantity::of(given))
            && wanted.compare(&was).is_lt()
            && wanted.compare(&given).is_le()
        {
            let (resources, requests) = ("resources", "requests");
            let path = spec.path.field(resources);
            let path = path.field(requests);
            errors.forbidden(&path.field("storage"), "field can not be less than status.capacity");
        }
        let mode = At { value: spec.field("volumeMode").value, path: at.path.field("volumeMode") };
        check::immutable(&mode, &before["volumeMode"], errors);
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let phase = match object.at(&["metadata", "deletionTimestamp"]) {
            Value::Null => status["phase"].text(),
            _ => "Terminating",
        };
        let bound = !spec["volumeName"].text().is_empty();
        let capacity = match (bound, status["capacity"]["storage"].text()) {
            (false, _) => "",
            (true, "") => "0",
            (true, capacity) => capacity,
        };
        let class = match spec["volumeAttributesClassName"].text() {
            "" => "<unset>",
            class => class,
        };
        vec![
            phase.into(),
            spec["volumeName"].text().into(),
            capacity.into(),
            if bound { modes_text(&status["accessModes"]) } else { "".into() },
            spec["storageClassName"].text().into(),
            class.into(),
            age(object, now),
            spec["volumeMode"].text().into(),
        ]
    }
}
