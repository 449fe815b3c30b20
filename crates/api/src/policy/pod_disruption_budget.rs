//! PodDisruptionBudgets: how many pods of an application may be missing by intent.

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Value};

use crate::check;
use crate::columns::{age, columns};

pub struct PodDisruptionBudget {
    columns: Vec<Column>,
}

impl PodDisruptionBudget {
    pub fn new() -> PodDisruptionBudget {
        PodDisruptionBudget {
            columns: columns(&[
                ("Min Available", "string", 0),
                ("Max Unavailable", "string", 0),
                ("Allowed Disruptions", "integer", 0),
                ("Age", "string", 0),
            ]),
        }
    }
}

impl Default for PodDisruptionBudget {
    fn default() -> PodDisruptionBudget {
        PodDisruptionBudget::new()
    }
}

impl Rules for PodDisruptionBudget {
    fn check_name(&self, _: &str) -> Vec<String> {
        // Any name that a URL can carry was always taken.
        Vec::new()
    }

    fn first_status(&self) -> Option<Value> {
        Some(meta::json!({"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0}))
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        if change.is_status() {
            let status = at.field("status");
            for key in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
                check::non_negative(&status.field(key), errors);
            }
            return;
        }
        let spec = at.field("spec");
        let (least, most) = (spec.field("minAvailable"), spec.field("maxUnavailable"));
        if least.is_set() && most.is_set() {
            errors.invalid(&spec, "minAvailable and maxUnavailable cannot be both set");
        }
        for field in [&least, &most] {
            check::int_or_percent(field, errors);
            check::at_most_all(field, errors);
        }
        check::label_selector(&spec.field("selector"), errors);
        check::set_word(&spec.field("unhealthyPodEvictionPolicy"), &["AlwaysAllow", "IfHealthyBudget"], errors);
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let amount = |value: &Value| match value {
            Value::Null => Value::from("N/A"),
            Value::Int(number) => number.to_string().into(),
            other => other.clone(),
        };
        let spec = &object["spec"];
        let allowed = object.at(&["status", "disruptionsAllowed"]).as_int().unwrap_or(0);
        vec![amount(&spec["minAvailable"]), amount(&spec["maxUnavailable"]), Value::Int(allowed), age(object, now)]
    }
}
