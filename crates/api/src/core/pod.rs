//! Pods as objects: what the system sets, what may change, how they are shown.

use std::any::Any;
use std::sync::Arc;

use base::Time;
use meta::{At, Change, Column, Errors, Object, Prepare, Quantity, Rules, Status, Str, Value};

use super::pod_facts::PodFacts;
use super::pod_spec::{self, Context, defaults};
use super::{leash, pod_cells, pod_facts, pod_update};
use crate::columns::column;

pub struct Pod {
    columns: Vec<Column>,
}

impl Pod {
    pub fn new() -> Pod {
        Pod {
            columns: vec![
                column("Ready", "string", 0),
                column("Status", "string", 0),
                column("Restarts", "string", 0),
                column("Age", "string", 0),
                column("IP", "string", 1),
                column("Node", "string", 1),
                column("Nominated Node", "string", 1),
                column("Readiness Gates", "string", 1),
            ],
        }
    }
}

impl Default for Pod {
    fn default() -> Pod {
        Pod::new()
    }
}

/// Seconds that a pod has to end where it does not say.
pub const GRACE_SECONDS: i64 = 30;

impl Rules for Pod {
    fn defaults(&self, object: &mut Value) {
        let spec = object.make(&["spec"]);
        defaults::spec(spec);
        defaults::pod_only(spec);
    }

    fn prepare(&self, cx: &mut Prepare<'_>, object: &mut Value) -> Result<(), Status> {
        match (cx.change.old, cx.change.subresource) {
            (None, _) => {
                let labels = object.at(&["metadata", "labels"]).clone();
                pod_spec::affinity::merge_keys(object.make(&["spec"]), &labels);
                let class = qos_class(&object["spec"]);
                object.set(&["status"], meta::json!({"phase": "Pending", "qosClass": (class)}));
                if !object.at(&["spec", "schedulingGates"]).items().is_empty() {
                    let condition = meta::json!({
                        "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                        "message": "Scheduling is blocked due to non-empty scheduling gates",
                        "lastProbeTime": (Value::Null), "lastTransitionTime": (cx.change.now.rfc3339()),
                    });
                    object.set(&["status", "conditions"], vec![condition]);
                }
            }
            (Some(old), "status") => {
                for key in ["qosClass", "resourceClaimStatuses"] {
                    if object.at(&["status", key]).is_null() && !old.at(&["status", key]).is_null() {
                        object.set(&["status", key], old.at(&["status", key]).clone());
                    }
                }
            }
            (Some(old), "resize") => {
                let asked = object["spec"].clone();
                object.set(&["spec"], resized(&old["spec"], &asked));
            }
            (Some(old), "ephemeralcontainers") => {
                let added = object.at(&["spec", "ephemeralContainers"]).clone();
                object.set(&["spec"], old["spec"].clone());
                if !added.is_null() {
                    object.set(&["spec", "ephemeralContainers"], added);
                }
            }
            (Some(old), _) => {
                let priority = old.at(&["spec", "priority"]);
                if object.at(&["spec", "priority"]).is_null() && !priority.is_null() {
                    object.set(&["spec", "priority"], priority.clone());
                }
            }
        }
        Ok(())
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let spec = at.field("spec");
        let meta = at.field("metadata");
        let name = meta.field("name");
        leash::check(meta.value, &meta.path, change.old, errors);
        match (change.old, change.subresource) {
            (_, "status") => pod_update::check_status(at, errors),
            (_, "binding") => {}
            // What was stored was checked.
            (Some(old), _) if spec.value.is_shared_with(&old["spec"]) => {}
            (None, _) if change.sibling.is_some_and(|other| is_checked(spec.value, &other["spec"])) => {}
            (old, subresource) => {
                let cx = Context::pod(spec.value, name.text());
                pod_spec::check_spec(&spec, &cx, errors);
                match (old, subresource) {
                    (None, _) => check_new(&spec, errors),
                    (Some(old), "ephemeralcontainers") => pod_update::check_ephemeral(at, old, errors),
                    (Some(old), "resize") => pod_update::check_resize(at, old, errors),
                    (Some(old), _) => pod_update::check(at, old, errors),
                }
            }
        }
    }

    fn grace_seconds(&self, object: &Value, asked: Option<i64>) -> Option<i64> {
        let own = object.at(&["spec", "terminationGracePeriodSeconds"]).as_int();
        let seconds = asked.or(own).unwrap_or(GRACE_SECONDS);
        let finished = matches!(object.at(&["status", "phase"]).text(), "Succeeded" | "Failed");
        if object.at(&["spec", "nodeName"]).text().is_empty() || finished {
            return Some(0);
        }
        // A negative wish asks for the shortest grace there is.
        Some(if seconds < 0 { 1 } else { seconds })
    }

    fn answers_deletion_with_object(&self) -> bool {
        true
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        pod_cells::cells(object, now)
    }

    fn selectable(&self, object: &Value, field: &str) -> Option<Str> {
        let (spec, status) = (&object["spec"], &object["status"]);
        Some(match field {
            "spec.nodeName" => spec["nodeName"].text().into(),
            "spec.restartPolicy" => spec["restartPolicy"].text().into(),
            "spec.schedulerName" => spec["schedulerName"].text().into(),
            "spec.serviceAccountName" => spec["serviceAccountName"].text().into(),
            "spec.hostNetwork" => if spec["hostNetwork"].is_true() { "true" } else { "false" }.into(),
            "status.phase" => status["phase"].text().into(),
            "status.podIP" => match status["podIPs"].items() {
                [first, ..] => first["ip"].text().into(),
                [] => status["podIP"].text().into(),
            },
            "status.nominatedNodeName" => status["nominatedNodeName"].text().into(),
            _ => return None,
        })
    }

    fn projected(&self, object: &Object, field: &str) -> Option<Str> {
        let facts: &PodFacts = object.own()?;
        match field {
            "spec.nodeName" => Some(facts.node.clone()),
            "spec.schedulerName" => Some(facts.scheduler.clone()),
            _ => None,
        }
    }

    fn facts(&self, object: &Value) -> Option<Arc<dyn Any + Send + Sync>> {
        pod_facts::facts(object)
    }

    fn has_generation(&self) -> bool {
        true
    }
}

/// Whether what can be wrong with a new pod's spec would have been with another that was checked.
fn is_checked(spec: &Value, other: &Value) -> bool {
    // The claims of ephemeral volumes are named after the pod.
    let depends_on_name = |volume: &Value| volume.get("ephemeral").is_some();
    spec.is_shared_with(other) && !spec["volumes"].items().iter().any(depends_on_name)
}

/// The old spec with the resources of the new one; all else that was asked for is left out. A resize that adds or
/// removes containers stays as it is, to be refused.
fn resized(old: &Value, asked: &Value) -> Value {
    let mut spec = old.clone();
    for list in ["initContainers", "containers"] {
        let wanted = asked[list].items();
        if wanted.len() != old[list].items().len() {
            return asked.clone();
        }
        let Some(containers) = spec.get_mut(list) else { continue };
        for (container, wanted) in containers.items_mut().iter_mut().zip(wanted) {
            for key in ["resources", "resizePolicy"] {
                match wanted.get(key) {
                    Some(value) => container.set(&[key], value.clone()),
                    None => {
                        container.take(&[key]);
                    }
                }
            }
        }
    }
    spec
}

/// What only a new pod must keep to.
fn check_new(spec: &At<'_>, errors: &mut Errors) {
    let ephemeral = spec.field("ephemeralContainers");
    if !ephemeral.is_empty() {
        errors.forbidden(&ephemeral.path, "cannot be set on create");
    }
    let gated = !spec.field("schedulingGates").is_empty();
    if gated && !spec.field("nodeName").is_empty() {
        errors.forbidden(&spec.field("nodeName").path, "cannot be set until all schedulingGates have been cleared");
    }
}

/// `Guaranteed` when limits and requests of cpu and memory are there and equal, `BestEffort` without any, else
/// `Burstable`.
pub fn qos_class(spec: &Value) -> &'static str {
    const COMPUTE: [&str; 2] = ["cpu", "memory"];
    let positive = |value: &Value| Quantity::of(value).is_ok_and(|quantity| quantity.sign() > 0);
    let mut any = false;
    let mut guaranteed = true;
    let mut look = |resources: &Value| {
        for name in COMPUTE {
            let (request, limit) = (&resources["requests"][name], &resources["limits"][name]);
            any |= positive(request) || positive(limit);
            let equal = match (Quantity::of(request), Quantity::of(limit)) {
                (Ok(request), Ok(limit)) => request.compare(&limit).is_eq() && limit.sign() > 0,
                _ => false,
            };
            guaranteed &= equal;
        }
    };
    if spec["resources"].is_null() || spec["resources"].entries().is_empty() {
        pod_spec::containers(spec).for_each(|container| look(&container["resources"]));
    } else {
        look(&spec["resources"]);
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::json;

    #[test]
    fn classes_of_service() {
        for (resources, class) in [
            (json!({}), "BestEffort"),
            (json!({"requests": {"cpu": "1"}}), "Burstable"),
            (
                json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1000m", "memory": "1Gi"}}),
                "Guaranteed",
            ),
            (json!({"requests": {"cpu": "1"}, "limits": {"cpu": "1"}}), "Burstable"),
            (json!({"requests": {"example.com/gpu": "1"}}), "BestEffort"),
        ] {
            assert_eq!(qos_class(&json!({"containers": [{"resources": (resources)}]})), class);
        }
    }
}
