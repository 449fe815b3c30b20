//! PriorityClasses: which pods come first.

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Value};

use crate::check;
use crate::columns::{age, columns};

pub struct PriorityClass {
    columns: Vec<Column>,
}

impl PriorityClass {
    pub fn new() -> PriorityClass {
        PriorityClass {
            columns: columns(&[
                ("Value", "integer", 0),
                ("Global-Default", "boolean", 0),
                ("Age", "string", 0),
                ("PreemptionPolicy", "string", 0),
            ]),
        }
    }
}

impl Default for PriorityClass {
    fn default() -> PriorityClass {
        PriorityClass::new()
    }
}

impl Rules for PriorityClass {
    fn defaults(&self, object: &mut Value) {
        object.default("preemptionPolicy", "PreemptLowerPriority");
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let meta = at.field("metadata");
        let (name, value) = (meta.field("name"), at.field("value"));
        let policy = at.field("preemptionPolicy");
        match change.old {
            None => {
                check::word(&policy, &["Never", "PreemptLowerPriority"], errors);
                let system = matches!(name.text(), "system-node-critical" | "system-cluster-critical");
                if name.text().starts_with("system-") && !system {
                    errors.forbidden(
                        &name.path,
                        "priority class names with 'system-' prefix are reserved for system use only",
                    );
                } else if value.int().unwrap_or(0) > HIGHEST_USER && !system {
                    errors.forbidden(
                        &value.path,
                        format!("maximum allowed value of a user defined priority is {HIGHEST_USER}"),
                    );
                }
            }
            Some(old) => {
                if value.int().unwrap_or(0) != old["value"].as_int().unwrap_or(0) {
                    errors.forbidden(&value.path, "may not be changed in an update.");
                }
                check::immutable(&policy, &old["preemptionPolicy"], errors);
            }
        }
    }

    fn raises_generation(&self, _: &Value, _: &Value) -> bool {
        false
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        vec![
            Value::Int(object["value"].as_int().unwrap_or(0)),
            object["globalDefault"].is_true().into(),
            age(object, now),
            object["preemptionPolicy"].text().into(),
        ]
    }
}

/// The highest priority that users may give.
const HIGHEST_USER: i64 = 1_000_000_000;
