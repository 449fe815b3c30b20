//! Jobs: pods that run to their end.

use std::any::Any;
use std::sync::Arc;

use base::Time;
use meta::{At, Change, Column, Errors, Prepare, Rules, Selector, Status, Str, Value, names};

use super::job_policy;
use crate::apps::{is_readable, selector_text, template_defaults};
use crate::check;
use crate::columns::{age, column, human};
use crate::core::pod_cells::containers_and_images;
use crate::core::pod_spec;
use crate::core::pod_update::same;

pub const UID: &str = "batch.kubernetes.io/controller-uid";
pub const NAME: &str = "batch.kubernetes.io/job-name";
/// Older names of the same labels.
const OLD_UID: &str = "controller-uid";
const OLD_NAME: &str = "job-name";
/// Most pods at once, and most completions, of an indexed job.
const INDEXED_MAX: i64 = 100_000;

pub struct Job {
    columns: Vec<Column>,
}

impl Job {
    pub fn new() -> Job {
        Job {
            columns: vec![
                column("Status", "string", 0),
                column("Completions", "string", 0),
                column("Duration", "string", 0),
                column("Age", "string", 0),
                column("Containers", "string", 1),
                column("Images", "string", 1),
                column("Selector", "string", 1),
            ],
        }
    }
}

impl Default for Job {
    fn default() -> Job {
        Job::new()
    }
}

impl Rules for Job {
    fn facts(&self, object: &Value) -> Option<Arc<dyn Any + Send + Sync>> {
        crate::core::selecting::by_terms(object)
    }

    fn defaults(&self, object: &mut Value) {
        let spec = object.make(&["spec"]);
        if spec["completions"].is_null() && spec["parallelism"].is_null() {
            spec.set(&["completions"], 1i64);
        }
        spec.default("parallelism", 1i64);
        let per_index = !spec["backoffLimitPerIndex"].is_null();
        spec.default("backoffLimit", if per_index { i64::from(i32::MAX) } else { 6 });
        spec.default("completionMode", "NonIndexed");
        spec.default("suspend", false);
        spec.default("manualSelector", false);
        let failures = !spec["podFailurePolicy"].is_null();
        spec.default("podReplacementPolicy", if failures { "Failed" } else { "TerminatingOrFailed" });
        if let Some(rules) = spec.at_mut(&["podFailurePolicy", "rules"]) {
            for rule in rules.items_mut() {
                let Some(conditions) = rule.get_mut("onPodConditions") else { continue };
                for condition in conditions.items_mut() {
                    if condition["status"].text().is_empty() {
                        condition.set(&["status"], "True");
                    }
                }
            }
        }
        template_defaults(spec.make(&["template"]));
        let labels = spec["template"]["metadata"]["labels"].clone();
        if object.at(&["metadata", "labels"]).entries().is_empty() && !labels.entries().is_empty() {
            object.set(&["metadata", "labels"], labels);
        }
    }

    fn prepare(&self, cx: &mut Prepare<'_>, object: &mut Value) -> Result<(), Status> {
        if !cx.change.is_create() {
            return Ok(());
        }
        object.set(&["status"], Value::map());
        if object.at(&["spec", "manualSelector"]).is_true() {
            return Ok(());
        }
        let uid: Str = object.at(&["metadata", "uid"]).text().into();
        let name: Str = object.at(&["metadata", "name"]).text().into();
        let shared = object.at(&["metadata", "labels"]) == object.at(&["spec", "template", "metadata", "labels"]);
        object.set(&["spec", "selector", "matchLabels", UID], &uid);
        let labels = object.make(&["spec", "template", "metadata", "labels"]).make_map();
        for (key, value) in [(UID, &uid), (OLD_UID, &uid), (NAME, &name), (OLD_NAME, &name)] {
            if !labels.contains(key) {
                labels.insert(key, value);
            }
        }
        if shared {
            let labels = object.at(&["spec", "template", "metadata", "labels"]).clone();
            object.set(&["metadata", "labels"], labels);
        }
        Ok(())
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        if change.is_status() {
            return check_status(at, errors);
        }
        let spec = at.field("spec");
        let selector = spec.field("selector");
        if change.is_create() {
            check_generated(at, &spec, errors);
            check_host_names(at, &spec, errors);
        }
        check_spec(&spec, errors);
        if !selector.is_set() {
            errors.required(&selector.path, "");
        }
        check::label_selector(&selector, errors);
        if is_readable(&selector) {
            crate::apps::check_labels_match(&selector, &spec.field("template"), errors);
        }
        if let Some(old) = change.old {
            check_generated(at, &spec, errors);
            check_update(&spec, old, errors);
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let [names, images] = containers_and_images(&spec["template"]["spec"]);
        let succeeded = status["succeeded"].as_int().unwrap_or(0);
        let parallelism = spec["parallelism"].as_int().unwrap_or(0);
        let completions = match spec["completions"].as_int() {
            Some(completions) => format!("{succeeded}/{completions}"),
            None if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
            None => format!("{succeeded}/1"),
        };
        let (start, end) = (Time::parse(status["startTime"].text()), Time::parse(status["completionTime"].text()));
        let duration = match start {
            None => String::new(),
            Some(start) => human(end.unwrap_or(now).seconds() - start.seconds()),
        };
        vec![
            state(object).into(),
            completions.into(),
            duration.into(),
            age(object, now),
            names,
            images,
            selector_text(&spec["selector"]),
        ]
    }

    fn selectable(&self, object: &Value, field: &str) -> Option<Str> {
        match field {
            "status.successful" => Some(object.at(&["status", "succeeded"]).as_int().unwrap_or(0).to_string().into()),
            _ => None,
        }
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn orphans_by_default(&self) -> bool {
        true
    }
}

fn state(job: &Value) -> &'static str {
    let holds = |name: &str| {
        let conditions = job.at(&["status", "conditions"]).items();
        conditions.iter().any(|condition| condition["type"].text() == name && condition["status"].text() == "True")
    };
    if holds("Complete") {
        "Complete"
    } else if holds("Failed") {
        "Failed"
    } else if !job.at(&["metadata", "deletionTimestamp"]).is_null() {
        "Terminating"
    } else if holds("Suspended") {
        "Suspended"
    } else if holds("FailureTarget") {
        "FailureTarget"
    } else if holds("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

/// The labels and selector that the system gave must be there.
fn check_generated(at: &At<'_>, spec: &At<'_>, errors: &mut Errors) {
    let selector = spec.field("selector");
    if spec.field("manualSelector").value.is_true() || !selector.is_set() {
        return;
    }
    let uid = at.value.at(&["metadata", "uid"]).text();
    let name = at.value.at(&["metadata", "name"]).text();
    let template = spec.field("template");
    let meta = template.field("metadata");
    let labels = meta.field("labels");
    for (key, value) in [(OLD_UID, uid), (OLD_NAME, name), (UID, uid), (NAME, name)] {
        match labels.value.get(key) {
            None => errors.required(&labels.path.key(key), format!("must be '{value}'")),
            Some(found) if found.text() != value => {
                errors.invalid_value(&labels.path.key(key), labels.value.clone(), format!("must be '{value}'"));
            }
            Some(_) => {}
        }
    }
    let pairs = [(OLD_UID, uid), (UID, uid), (OLD_NAME, name), (NAME, name)];
    let expected = Value::Map(pairs.into_iter().collect());
    if is_readable(&selector) && !Selector::of(selector.value).matches_value(&expected) {
        errors.invalid(&selector, "`selector` not auto-generated");
    }
}

/// The pods of an indexed job have the job's name and their number as host names.
fn check_host_names(at: &At<'_>, spec: &At<'_>, errors: &mut Errors) {
    let completions = spec.field("completions").int().unwrap_or(0);
    if spec.field("completionMode").text() != "Indexed" || completions <= 0 {
        return;
    }
    let meta = at.field("metadata");
    let name = meta.field("name");
    let longest = format!("{}-{}", name.text(), completions - 1);
    if !names::dns_label(&longest).is_empty() {
        errors.invalid(&name, format!("will not able to create pod with invalid DNS label: {longest}"));
    }
}

/// The spec of a job or of a template of jobs.
pub fn check_spec(spec: &At<'_>, errors: &mut Errors) {
    for key in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        check::non_negative(&spec.field(key), errors);
    }
    check_indexes(spec, errors);
    job_policy::check(spec, errors);
    check::set_word(&spec.field("podReplacementPolicy"), replacements(spec), errors);
    let template = spec.field("template");
    pod_spec::check_template(&template, errors);
    let pods = template.field("spec");
    let policy = pods.field("restartPolicy");
    match policy.text() {
        "" | "Always" => errors.required(&policy.path, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" | "Never" => {}
        _ => errors.not_supported(&policy, &["Never", "OnFailure"]),
    }
    if policy.text() == "OnFailure" && spec.field("podFailurePolicy").is_set() {
        errors.invalid(&policy, "only \"Never\" is supported when podFailurePolicy is specified");
    }
}

fn replacements(spec: &At<'_>) -> &'static [&'static str] {
    if spec.field("podFailurePolicy").is_set() { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] }
}

fn check_indexes(spec: &At<'_>, errors: &mut Errors) {
    let (completions, mode) = (spec.field("completions"), spec.field("completionMode"));
    let (most, per_index) = (spec.field("maxFailedIndexes"), spec.field("backoffLimitPerIndex"));
    if let (Some(failed), Some(all)) = (most.int(), completions.int())
        && failed > all
    {
        errors.invalid(&most, "must be less than or equal to completions");
    }
    if most.is_set() && !per_index.is_set() {
        errors.required(&per_index.path, "when maxFailedIndexes is specified");
    }
    check::set_word(&mode, &["Indexed", "NonIndexed"], errors);
    if mode.text() == "Indexed" {
        if !completions.is_set() {
            errors.required(&completions.path, "when completion mode is Indexed");
        }
        let parallelism = spec.field("parallelism");
        if parallelism.int().is_some_and(|number| number > INDEXED_MAX) {
            errors.invalid(
                &parallelism,
                format!("must be less than or equal to {INDEXED_MAX} when completion mode is Indexed"),
            );
        }
        if per_index.is_set() && completions.int().is_some_and(|number| number > INDEXED_MAX) && !most.is_set() {
            errors.required(&most.path, "must be specified when completions is above 100000");
        }
    } else if mode.text() == "NonIndexed" {
        for field in [&per_index, &most] {
            if field.is_set() {
                errors.invalid(field, "requires indexed completion mode");
            }
        }
    }
}

fn check_update(spec: &At<'_>, old: &Value, errors: &mut Errors) {
    let before = &old["spec"];
    let fixed = |name: &str, errors: &mut Errors| {
        let field = spec.field(name);
        if !same(field.value, &before[name]) {
            errors.invalid(&field, "field is immutable");
        }
    };
    let elastic = spec.field("completionMode").text() == "Indexed"
        && spec.field("completions").int() == spec.field("parallelism").int();
    if !(elastic && spec.field("completions").is_set() && !before["completions"].is_null()) {
        fixed("completions", errors);
    }
    for name in ["selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"]
    {
        fixed(name, errors);
    }
    let template = spec.field("template");
    let mut munged = template.value.clone();
    let waiting = before["suspend"].is_true() && is_at_rest(&old["status"]);
    if waiting {
        // While none of its pods are there, a job may still be told where to run, and what they are to have.
        for key in ["containers", "initContainers"] {
            put_resources_back(munged.make(&["spec"]), &before["template"]["spec"], key);
        }
        for key in ["nodeSelector", "tolerations", "schedulingGates", "affinity"] {
            put_back(&mut munged, &before["template"], &["spec", key]);
        }
        for key in ["annotations", "labels"] {
            put_back(&mut munged, &before["template"], &["metadata", key]);
        }
    }
    if !same(&munged, &before["template"]) {
        let spec = template.field("spec");
        let place = if waiting && spec.is_set() { &spec } else { &template };
        errors.invalid(place, "field is immutable");
    }
}

/// Whether no pod of a suspended job is there: it has not begun, or is said to be suspended, and none is active.
fn is_at_rest(status: &Value) -> bool {
    let mut conditions = status["conditions"].items().iter();
    let suspended = conditions.any(|one| one["type"].text() == "Suspended" && one["status"].text() == "True");
    (status["startTime"].is_null() || suspended) && status["active"].as_int().unwrap_or(0) == 0
}

fn put_resources_back(spec: &mut Value, old: &Value, key: &str) {
    let known = old[key].items();
    let Some(containers) = spec.get_mut(key).filter(|containers| containers.items().len() == known.len()) else {
        return;
    };
    for (container, known) in containers.items_mut().iter_mut().zip(known) {
        if container["name"] == known["name"] {
            put_back(container, known, &["resources"]);
        }
    }
}

fn put_back(value: &mut Value, old: &Value, path: &[&str]) {
    match old.at(path) {
        Value::Null => {
            value.take(path);
        }
        found => value.set(path, found.clone()),
    }
}

fn check_status(at: &At<'_>, errors: &mut Errors) {
    let status = at.field("status");
    for key in ["active", "succeeded", "failed", "ready", "terminating"] {
        check::non_negative(&status.field(key), errors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::json;

    #[test]
    fn suspended_jobs_may_change_what_their_pods_are_to_have() {
        let template = |cpu: &str, image: &str| {
            let container = json!({"name": "c", "image": image, "resources": {"requests": {"cpu": cpu}}});
            json!({"metadata": {}, "spec": {"containers": [container]}})
        };
        let begun = json!({"startTime": "2026-01-01T00:00:00Z"});
        let mut resting = begun.clone();
        resting.set(&["conditions"], json!([{"type": "Suspended", "status": "True"}]));
        let mut ending = resting.clone();
        ending.set(&["active"], 1i64);
        for (suspend, status, cpu, image, wanted) in [
            (true, &Value::map(), "2", "i", None),
            (true, &resting, "2", "i", None),
            (true, &ending, "2", "i", Some("spec.template")),
            (true, &begun, "2", "i", Some("spec.template")),
            (false, &Value::map(), "2", "i", Some("spec.template")),
            (true, &resting, "1", "other", Some("spec.template.spec")),
        ] {
            let old =
                json!({"spec": {"suspend": suspend, "template": (template("1", "i"))}, "status": (status.clone())});
            let new = json!({"spec": {"suspend": suspend, "template": (template(cpu, image))}});
            let mut errors = Errors::default();
            check_update(&At::root(&new).field("spec"), &old, &mut errors);
            let fields: Vec<&str> = errors.0.iter().map(|error| error.field.as_str()).collect();
            assert_eq!(fields, wanted.into_iter().collect::<Vec<_>>(), "{suspend} {status:?} {cpu} {image}");
        }
    }
}
