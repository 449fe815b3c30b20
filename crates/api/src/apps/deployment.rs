//! Deployments: a template of pods, rolled out step by step.

use std::any::Any;
use std::sync::Arc;

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Value};

use super::{check_selector, check_template, is_zero, number, selector_text, template_defaults};
use crate::check;
use crate::columns::{age, column};
use crate::core::pod_cells::containers_and_images;

pub struct Deployment {
    columns: Vec<Column>,
}

impl Deployment {
    pub fn new() -> Deployment {
        Deployment {
            columns: vec![
                column("Ready", "string", 0),
                column("Up-to-date", "string", 0),
                column("Available", "string", 0),
                column("Age", "string", 0),
                column("Containers", "string", 1),
                column("Images", "string", 1),
                column("Selector", "string", 1),
            ],
        }
    }
}

impl Default for Deployment {
    fn default() -> Deployment {
        Deployment::new()
    }
}

impl Rules for Deployment {
    fn facts(&self, object: &Value) -> Option<Arc<dyn Any + Send + Sync>> {
        crate::core::selecting::by_terms(object)
    }

    fn defaults(&self, object: &mut Value) {
        let spec = object.make(&["spec"]);
        spec.default("replicas", 1i64);
        spec.default("revisionHistoryLimit", 10i64);
        spec.default("progressDeadlineSeconds", 600i64);
        let strategy = spec.make(&["strategy"]);
        if strategy["type"].text().is_empty() {
            strategy.set(&["type"], "RollingUpdate");
        }
        if strategy["type"].text() == "RollingUpdate" {
            let rolling = strategy.make(&["rollingUpdate"]);
            rolling.default("maxUnavailable", "25%");
            rolling.default("maxSurge", "25%");
        }
        template_defaults(spec.make(&["template"]));
    }

    fn first_status(&self) -> Option<Value> {
        Some(Value::map())
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        if change.is_status() {
            return check_status(at, errors);
        }
        let spec = at.field("spec");
        check::non_negative(&spec.field("replicas"), errors);
        check_selector(&spec.field("selector"), "deployment", errors);
        check_template(&spec, &spec.field("template"), errors);
        check_strategy(&spec.field("strategy"), errors);
        for key in ["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
            check::non_negative(&spec.field(key), errors);
        }
        let deadline = spec.field("progressDeadlineSeconds");
        let ready = spec.field("minReadySeconds").int().unwrap_or(0);
        if deadline.int().is_some_and(|deadline| deadline <= ready) {
            errors.invalid(&deadline, "must be greater than minReadySeconds");
        }
        if let Some(old) = change.old {
            check::immutable(&spec.field("selector"), old.at(&["spec", "selector"]), errors);
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let count = |value: &Value| value.as_int().unwrap_or(0);
        let [names, images] = containers_and_images(&spec["template"]["spec"]);
        vec![
            format!("{}/{}", count(&status["readyReplicas"]), count(&spec["replicas"])).into(),
            number(&status["updatedReplicas"]),
            number(&status["availableReplicas"]),
            age(object, now),
            names,
            images,
            selector_text(&spec["selector"]),
        ]
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn check_strategy(strategy: &At<'_>, errors: &mut Errors) {
    let rolling = strategy.field("rollingUpdate");
    match strategy.field("type").text() {
        "Recreate" => {
            if rolling.is_set() {
                errors.forbidden(&rolling.path, "may not be specified when strategy `type` is 'Recreate'");
            }
        }
        "RollingUpdate" if !rolling.is_set() => {
            errors.required(&rolling.path, "this should be defaulted and never be nil");
        }
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.field("maxUnavailable"), rolling.field("maxSurge"));
            check::int_or_percent(&unavailable, errors);
            check::int_or_percent(&surge, errors);
            if is_zero(unavailable.value) && is_zero(surge.value) {
                errors.invalid(&unavailable, "may not be 0 when `maxSurge` is 0");
            }
            check::at_most_all(&unavailable, errors);
        }
        _ => errors.not_supported(strategy, &["Recreate", "RollingUpdate"]),
    }
}

fn check_status(at: &At<'_>, errors: &mut Errors) {
    let status = at.field("status");
    let keys = [
        "observedGeneration",
        "replicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "unavailableReplicas",
        "terminatingReplicas",
    ];
    for key in keys {
        check::non_negative(&status.field(key), errors);
    }
    let count = |key: &str| status.field(key).int().unwrap_or(0);
    for key in ["updatedReplicas", "readyReplicas", "availableReplicas"] {
        if count(key) > count("replicas") {
            errors.invalid(&status.field(key), "cannot be greater than status.replicas");
        }
    }
    if count("availableReplicas") > count("readyReplicas") {
        errors.invalid(&status.field("availableReplicas"), "cannot be greater than readyReplicas");
    }
}
