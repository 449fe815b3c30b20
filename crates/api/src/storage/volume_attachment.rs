//! VolumeAttachment: the wish that a volume be attached to a node.

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Value, json, names};

use super::csi_driver::check_driver_name;
use crate::check;
use crate::columns::{age, column, columns};

pub struct VolumeAttachment {
    columns: Vec<Column>,
}

impl VolumeAttachment {
    pub fn new() -> VolumeAttachment {
        let attacher = Column { format: "name".into(), ..column("Attacher", "string", 0) };
        let rest = [("PV", "string", 0), ("Node", "string", 0), ("Attached", "boolean", 0), ("Age", "string", 0)];
        VolumeAttachment { columns: [vec![attacher], columns(&rest)].concat() }
    }
}

impl Default for VolumeAttachment {
    fn default() -> VolumeAttachment {
        VolumeAttachment::new()
    }
}

impl Rules for VolumeAttachment {
    fn first_status(&self) -> Option<Value> {
        Some(json!({"attached": false}))
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let spec = at.field("spec");
        if change.is_status() {
            return;
        }
        check_driver_name(&spec.field("attacher"), errors);
        let source = spec.field("source");
        let (inline, volume) = (source.field("inlineVolumeSpec"), source.field("persistentVolumeName"));
        match (inline.is_set(), volume.is_set()) {
            (false, false) => {
                errors.required(&source.path, "must specify exactly one of inlineVolumeSpec and persistentVolumeName");
            }
            (true, true) => {
                errors.forbidden(&source.path, "must specify exactly one of inlineVolumeSpec and persistentVolumeName");
            }
            (false, true) => check::named(&volume, names::dns_subdomain, errors),
            (true, false) => {}
        }
        let node = spec.field("nodeName");
        check::invalid(&node, names::dns_subdomain(node.text()), errors);
        if let Some(old) = change.old {
            check::immutable(&spec, &old["spec"], errors);
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let spec = &object["spec"];
        vec![
            spec["attacher"].text().into(),
            spec.at(&["source", "persistentVolumeName"]).text().into(),
            spec["nodeName"].text().into(),
            object.at(&["status", "attached"]).is_true().into(),
            age(object, now),
        ]
    }
}
