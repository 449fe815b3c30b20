//! DaemonSets: a pod on every node that fits.

use std::any::Any;
use std::sync::Arc;

use base::Time;
use meta::{At, Change, Column, Errors, Prepare, Rules, Status, Value};

use super::{check_runs_for_ever, is_readable, is_zero, labels_text, number, selects_all, template_defaults};
use crate::check;
use crate::columns::{age, column};
use crate::core::pod_cells::containers_and_images;
use crate::core::pod_spec;

/// Where old clients read how often the template has changed.
const GENERATION: &str = "deprecated.daemonset.template.generation";

pub struct DaemonSet {
    columns: Vec<Column>,
}

impl DaemonSet {
    pub fn new() -> DaemonSet {
        let mut columns: Vec<Column> = ["Desired", "Current", "Ready", "Up-to-date", "Available"]
            .into_iter()
            .map(|name| column(name, "integer", 0))
            .collect();
        columns.extend([
            column("Node Selector", "string", 0),
            column("Age", "string", 0),
            column("Containers", "string", 1),
            column("Images", "string", 1),
            column("Selector", "string", 1),
        ]);
        DaemonSet { columns }
    }
}

impl Default for DaemonSet {
    fn default() -> DaemonSet {
        DaemonSet::new()
    }
}

impl Rules for DaemonSet {
    fn facts(&self, object: &Value) -> Option<Arc<dyn Any + Send + Sync>> {
        crate::core::selecting::by_terms(object)
    }

    fn defaults(&self, object: &mut Value) {
        let spec = object.make(&["spec"]);
        spec.default("revisionHistoryLimit", 10i64);
        let strategy = spec.make(&["updateStrategy"]);
        if strategy["type"].text().is_empty() {
            strategy.set(&["type"], "RollingUpdate");
        }
        if strategy["type"].text() == "RollingUpdate" {
            let rolling = strategy.make(&["rollingUpdate"]);
            rolling.default("maxUnavailable", 1i64);
            rolling.default("maxSurge", 0i64);
        }
        template_defaults(spec.make(&["template"]));
    }

    fn prepare(&self, cx: &mut Prepare<'_>, object: &mut Value) -> Result<(), Status> {
        let generation = match cx.change.old {
            None => {
                object.set(
                    &["status"],
                    meta::json!({"currentNumberScheduled": 0, "desiredNumberScheduled": 0,
                        "numberMisscheduled": 0, "numberReady": 0}),
                );
                1
            }
            Some(old) => {
                let before: i64 = old.at(&["metadata", "annotations", GENERATION]).text().parse().unwrap_or(0);
                let changed = old.at(&["spec", "template"]) != object.at(&["spec", "template"]);
                before + i64::from(changed && !cx.change.is_status())
            }
        };
        object.set(&["metadata", "annotations", GENERATION], generation.to_string());
        Ok(())
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let spec = at.field("spec");
        if change.is_status() {
            let status = at.field("status");
            for (_, value) in status.value.entries().iter() {
                if value.as_int().is_some_and(|number| number < 0) {
                    errors.invalid(&status, "must be greater than or equal to 0");
                }
            }
            return;
        }
        let (selector, template) = (spec.field("selector"), spec.field("template"));
        check::label_selector(&selector, errors);
        if is_readable(&selector) {
            let meta = template.field("metadata");
            let labels = meta.field("labels");
            if !selector.is_set() || !meta::Selector::of(selector.value).matches_value(labels.value) {
                errors.invalid(&labels, "`selector` does not match template `labels`");
            }
        }
        if selector.is_set() && selects_all(selector.value) {
            errors.invalid(&selector, "empty selector is invalid for daemonset");
        }
        pod_spec::check_template(&template, errors);
        check_runs_for_ever(&template, errors);
        for key in ["minReadySeconds", "revisionHistoryLimit"] {
            check::non_negative(&spec.field(key), errors);
        }
        check_strategy(&spec.field("updateStrategy"), errors);
        if let Some(old) = change.old {
            check::immutable(&selector, old.at(&["spec", "selector"]), errors);
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let pods = &spec["template"]["spec"];
        let [names, images] = containers_and_images(pods);
        vec![
            number(&status["desiredNumberScheduled"]),
            number(&status["currentNumberScheduled"]),
            number(&status["numberReady"]),
            number(&status["updatedNumberScheduled"]),
            number(&status["numberAvailable"]),
            labels_text(&pods["nodeSelector"]),
            age(object, now),
            names,
            images,
            super::selector_text(&spec["selector"]),
        ]
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn check_strategy(strategy: &At<'_>, errors: &mut Errors) {
    match strategy.field("type").text() {
        "OnDelete" => {}
        "RollingUpdate" => {
            let rolling = strategy.field("rollingUpdate");
            if !rolling.is_set() {
                errors.required(&rolling.path, "");
                return;
            }
            let (unavailable, surge) = (rolling.field("maxUnavailable"), rolling.field("maxSurge"));
            check::int_or_percent(&unavailable, errors);
            check::int_or_percent(&surge, errors);
            match (is_nothing(unavailable.value), is_nothing(surge.value)) {
                (true, true) => errors.required(&unavailable.path, "cannot be 0 when maxSurge is 0"),
                (false, false) => errors.invalid(&surge, "may not be set when maxUnavailable is non-zero"),
                _ => {}
            }
            check::at_most_all(&unavailable, errors);
            check::at_most_all(&surge, errors);
        }
        _ => errors.not_supported(strategy, &["OnDelete", "RollingUpdate"]),
    }
}

/// Zero, or no number at all.
fn is_nothing(value: &Value) -> bool {
    is_zero(value) || (value.as_int().is_none() && check::percent(value).is_none())
}
