//! ReplicaSets and ReplicationControllers: a number of equal pods.

use std::any::Any;
use std::sync::Arc;

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Str, Value};

use super::{
    check_runs_for_ever, check_selector, check_template, labels_text, number, selector_text, template_defaults,
};
use crate::check;
use crate::columns::{age, column};
use crate::core::pod_cells::containers_and_images;
use crate::core::pod_spec;
use crate::core::selecting;

/// Both kinds; the older one has a plain map as selector.
pub struct ReplicaSet {
    pub columns: Vec<Column>,
    pub is_controller: bool,
}

impl ReplicaSet {
    fn of(is_controller: bool) -> ReplicaSet {
        ReplicaSet {
            is_controller,
            columns: vec![
                column("Desired", "integer", 0),
                column("Current", "integer", 0),
                column("Ready", "integer", 0),
                column("Age", "string", 0),
                column("Containers", "string", 1),
                column("Images", "string", 1),
                column("Selector", "string", 1),
            ],
        }
    }

    pub fn new() -> ReplicaSet {
        ReplicaSet::of(false)
    }

    pub fn controller() -> ReplicaSet {
        ReplicaSet::of(true)
    }

    fn check_controller(spec: &At<'_>, errors: &mut Errors) {
        let (selector, template) = (spec.field("selector"), spec.field("template"));
        if selector.is_empty() {
            errors.required(&selector.path, "");
        }
        if !template.is_set() {
            errors.required(&template.path, "");
            return;
        }
        let meta = template.field("metadata");
        let labels = meta.field("labels");
        let matches = selector.value.entries().iter().all(|(key, value)| labels.value.get(key) == Some(value));
        if !matches {
            errors.invalid(&labels, "`selector` does not match template `labels`");
        }
        pod_spec::check_template(&template, errors);
        check_runs_for_ever(&template, errors);
    }
}

impl Default for ReplicaSet {
    fn default() -> ReplicaSet {
        ReplicaSet::new()
    }
}

impl Rules for ReplicaSet {
    fn facts(&self, object: &Value) -> Option<Arc<dyn Any + Send + Sync>> {
        if self.is_controller { selecting::by_map(object) } else { selecting::by_terms(object) }
    }

    fn defaults(&self, object: &mut Value) {
        let spec = object.make(&["spec"]);
        spec.default("replicas", 1i64);
        if self.is_controller {
            if let Some(template) = spec.get_mut("template").filter(|template| !template.is_null()) {
                template_defaults(template);
                let labels = template["metadata"]["labels"].clone();
                if !labels.entries().is_empty() {
                    if spec["selector"].entries().is_empty() {
                        spec.set(&["selector"], labels.clone());
                    }
                    if object.at(&["metadata", "labels"]).entries().is_empty() {
                        object.set(&["metadata", "labels"], labels);
                    }
                }
            }
        } else {
            template_defaults(spec.make(&["template"]));
        }
    }

    fn first_status(&self) -> Option<Value> {
        Some(meta::json!({"replicas": 0}))
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        if change.is_status() {
            return check_status(at, errors);
        }
        let spec = at.field("spec");
        for key in ["replicas", "minReadySeconds"] {
            check::non_negative(&spec.field(key), errors);
        }
        if self.is_controller {
            return ReplicaSet::check_controller(&spec, errors);
        }
        check_selector(&spec.field("selector"), "replicaset", errors);
        check_template(&spec, &spec.field("template"), errors);
        if let Some(old) = change.old {
            check::immutable(&spec.field("selector"), old.at(&["spec", "selector"]), errors);
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let [names, images] = containers_and_images(&spec["template"]["spec"]);
        let selector =
            if self.is_controller { labels_text(&spec["selector"]) } else { selector_text(&spec["selector"]) };
        vec![
            number(&spec["replicas"]),
            number(&status["replicas"]),
            number(&status["readyReplicas"]),
            age(object, now),
            names,
            images,
            selector,
        ]
    }

    fn selectable(&self, object: &Value, field: &str) -> Option<Str> {
        match field {
            "status.replicas" => Some(object.at(&["status", "replicas"]).as_int().unwrap_or(0).to_string().into()),
            _ => None,
        }
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn orphans_by_default(&self) -> bool {
        self.is_controller
    }
}

fn check_status(at: &At<'_>, errors: &mut Errors) {
    let status = at.field("status");
    let keys = ["observedGeneration", "replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas"];
    for key in keys {
        check::non_negative(&status.field(key), errors);
    }
    let count = |key: &str| status.field(key).int().unwrap_or(0);
    for key in ["fullyLabeledReplicas", "readyReplicas", "availableReplicas"] {
        if count(key) > count("replicas") {
            errors.invalid(&status.field(key), "cannot be greater than status.replicas");
        }
    }
    if count("availableReplicas") > count("readyReplicas") {
        errors.invalid(&status.field("availableReplicas"), "cannot be greater than readyReplicas");
    }
}
