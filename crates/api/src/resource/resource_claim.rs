//! ResourceClaim: a wish for devices, and what was given.

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Value};

use super::requests;
use crate::check;
use crate::columns::{age, columns};

pub struct ResourceClaim {
    columns: Vec<Column>,
}

impl ResourceClaim {
    pub fn new() -> ResourceClaim {
        ResourceClaim { columns: columns(&[("State", "string", 0), ("Age", "string", 0)]) }
    }
}

impl Default for ResourceClaim {
    fn default() -> ResourceClaim {
        ResourceClaim::new()
    }
}

impl Rules for ResourceClaim {
    fn defaults(&self, object: &mut Value) {
        if let Some(spec) = object.get_mut("spec") {
            requests::defaults(spec);
        }
    }

    fn first_status(&self) -> Option<Value> {
        Some(Value::map())
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        if change.is_status() {
            return;
        }
        let spec = at.field("spec");
        requests::check_spec(&spec, errors);
        if let Some(old) = change.old {
            check::immutable(&spec, &old["spec"], errors);
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let deleted = object.at(&["metadata", "deletionTimestamp"]).as_str().is_some();
        let allocated = !object.at(&["status", "allocation"]).is_null();
        let reserved = !object.at(&["status", "reservedFor"]).items().is_empty();
        let states = [
            (deleted, "deleted"),
            (!allocated && !deleted, "pending"),
            (allocated, "allocated"),
            (allocated && reserved, "reserved"),
        ];
        let words: Vec<&str> = states.iter().filter(|(is, _)| *is).map(|(_, word)| *word).collect();
        vec![words.join(",").into(), age(object, now)]
    }
}
