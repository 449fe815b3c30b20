//! StatefulSets: pods with names and claims that stay.

use std::any::Any;
use std::sync::Arc;

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Value, names};

use super::{check_labels_match, check_runs_for_ever, check_selector, is_readable, template_defaults};
use crate::check;
use crate::columns::{age, column};
use crate::core::claim;
use crate::core::pod_cells::containers_and_images;
use crate::core::pod_update::same;

pub struct StatefulSet {
    columns: Vec<Column>,
}

impl StatefulSet {
    pub fn new() -> StatefulSet {
        StatefulSet {
            columns: vec![
                column("Ready", "string", 0),
                column("Age", "string", 0),
                column("Containers", "string", 1),
                column("Images", "string", 1),
            ],
        }
    }
}

impl Default for StatefulSet {
    fn default() -> StatefulSet {
        StatefulSet::new()
    }
}

/// What an update may change.
const MUTABLE: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

impl Rules for StatefulSet {
    fn facts(&self, object: &Value) -> Option<Arc<dyn Any + Send + Sync>> {
        crate::core::selecting::by_terms(object)
    }

    fn check_name(&self, name: &str) -> Vec<String> {
        names::dns_label(name)
    }

    fn defaults(&self, object: &mut Value) {
        let spec = object.make(&["spec"]);
        if spec["podManagementPolicy"].text().is_empty() {
            spec.set(&["podManagementPolicy"], "OrderedReady");
        }
        spec.default("replicas", 1i64);
        spec.default("revisionHistoryLimit", 10i64);
        let strategy = spec.make(&["updateStrategy"]);
        if strategy["type"].text().is_empty() {
            strategy.set(&["type"], "RollingUpdate");
            strategy.make(&["rollingUpdate"]);
        }
        if strategy["type"].text() == "RollingUpdate" && strategy.get("rollingUpdate").is_some() {
            strategy.make(&["rollingUpdate"]).default("partition", 0i64);
        }
        let retention = spec.make(&["persistentVolumeClaimRetentionPolicy"]);
        for key in ["whenDeleted", "whenScaled"] {
            if retention[key].text().is_empty() {
                retention.set(&[key], "Retain");
            }
        }
        template_defaults(spec.make(&["template"]));
        if let Some(claims) = spec.get_mut("volumeClaimTemplates") {
            for claim in claims.items_mut() {
                claim.set(&["apiVersion"], "v1");
                claim.set(&["kind"], "PersistentVolumeClaim");
                claim.make(&["spec"]).default("volumeMode", "Filesystem");
                claim.make(&["status"]).default("phase", "Pending");
            }
        }
    }

    fn first_status(&self) -> Option<Value> {
        Some(meta::json!({"availableReplicas": 0, "replicas": 0}))
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        if change.is_status() {
            let status = at.field("status");
            for key in ["replicas", "readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"] {
                check::non_negative(&status.field(key), errors);
            }
            return;
        }
        let spec = at.field("spec");
        check_spec(&spec, errors);
        if change.is_create() {
            for template in spec.field("volumeClaimTemplates").items() {
                claim::check_spec(&template.field("spec"), errors);
            }
        }
        let Some(old) = change.old else { return };
        let mut munged = spec.value.clone();
        for key in MUTABLE {
            match old["spec"].get(key) {
                Some(value) => munged.set(&[key], value.clone()),
                None => {
                    munged.take(&[key]);
                }
            }
        }
        if !same(&munged, &old["spec"]) {
            let detail = format!("updates to statefulset spec for fields other than {MUTABLE:?} are forbidden");
            errors.forbidden(&spec.path, detail);
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
            age(object, now),
            names,
            images,
        ]
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn check_spec(spec: &At<'_>, errors: &mut Errors) {
    let policy = spec.field("podManagementPolicy");
    if !matches!(policy.text(), "OrderedReady" | "Parallel") {
        errors.invalid(&policy, "must be 'OrderedReady' or 'Parallel'");
    }
    let strategy = spec.field("updateStrategy");
    let rolling = strategy.field("rollingUpdate");
    match strategy.field("type").text() {
        "OnDelete" => {
            if rolling.is_set() {
                errors.invalid(&rolling, "only allowed for updateStrategy 'RollingUpdate'");
            }
        }
        "RollingUpdate" => {
            check::non_negative(&rolling.field("partition"), errors);
            let unavailable = rolling.field("maxUnavailable");
            check::int_or_percent(&unavailable, errors);
            check::at_most_all(&unavailable, errors);
            if super::is_zero(unavailable.value) {
                errors.invalid(&unavailable, "cannot be 0");
            }
        }
        _ => errors.invalid(&strategy, "must be 'RollingUpdate' or 'OnDelete'"),
    }
    let retention = spec.field("persistentVolumeClaimRetentionPolicy");
    for key in ["whenDeleted", "whenScaled"] {
        check::supported(&retention.field(key), &["Delete", "Retain"], errors);
    }
    for key in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
        check::non_negative(&spec.field(key), errors);
    }
    check::non_negative(&spec.field("ordinals").field("start"), errors);
    check::optional(&spec.field("serviceName"), names::dns_label, errors);
    let selector = spec.field("selector");
    check_selector(&selector, "statefulset", errors);
    if !is_readable(&selector) {
        errors.invalid(&selector, "invalid label selector");
        return;
    }
    let template = spec.field("template");
    check_labels_match(&selector, &template, errors);
    super::check_template_with_claims(&template, spec.field("volumeClaimTemplates").value, errors);
    check_runs_for_ever(&template, errors);
}
