//! Nodes: without a heartbeat their conditions become unknown; conditions become taints; pods on nodes that are not
//! ready are not ready.

use api::core::node_facts::NodeFacts;
use base::Time;
use cache::{Event, View};
use meta::{Object, Resource, Str, Value, json};
use reconcile::{Context, Effect, Outcome, Reconciler};

use crate::common::*;
use crate::node_fit::{NO_EXECUTE, NO_SCHEDULE};

const REPORTER: &str = "node-controller";
const LEASE_NAMESPACE: &str = "kube-node-lease";
const NODE: Gvk = Gvk { api_version: "v1", kind: "Node" };
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Conditions that keep new pods away while they hold.
const PRESSURES: &[(&str, &str)] = &[
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];
/// Conditions that a silent node no longer vouches for.
const VOUCHED: &[&str] = &["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

pub struct NodeLifecycle {
    pub grace_ms: u64,
    /// No silence is older than this: nobody listened before.
    pub started: Time,
}

impl Reconciler for NodeLifecycle {
    fn name(&self) -> &'static str {
        "node-controller"
    }

    fn watches(&self) -> &[Resource] {
        &[NODES, LEASES, PODS]
    }

    fn keys(&self, resource: Resource, event: &Event, view: &View, out: &mut Vec<Str>) {
        let Some(object) = event.new.as_ref().or(event.old.as_ref()) else { return };
        match resource {
            NODES => {
                out.push(object.name().into());
                // Whether anything is evicted depends on whether any node is well.
                if event.old.is_none() || event.new.is_none() {
                    return;
                }
                let ready = |node: &Option<Object>| node.as_ref().is_some_and(is_ready);
                if ready(&event.old) != ready(&event.new) {
                    out.extend(view.list(NODES, "").map(key_of));
                }
            }
            LEASES if object.namespace() == LEASE_NAMESPACE => {
                // A node that is known to be well looks at its lease when its time has come.
                let node = view.one(NODES, "", object.name());
                if event.old.is_none() || node.is_some_and(|node| !is_ready(node)) {
                    out.push(object.name().into());
                }
            }
            PODS => {
                let placed = event.new.as_ref().filter(|pod| {
                    let facts = pod_facts(pod);
                    facts.ready && !facts.node.is_empty()
                });
                if let Some(pod) = placed {
                    let node = pod_facts(pod).node;
                    if view.one(NODES, "", &node).is_some_and(|node| NodeFacts::read(node).unwell) {
                        out.push(node);
                    }
                }
            }
            _ => {}
        }
    }

    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome {
        let Some(node) = view.one(NODES, "", key).filter(|node| !is_deleting(node)) else { return Outcome::Settled };
        let value = node.value();
        let heard = self.last_heard(node, &value, view);
        let due = heard.plus_ms(self.grace_ms);
        let silent = due <= cx.now;
        if silent && self.doubt(node, &value, cx) {
            return Outcome::Settled;
        }
        let any_ready = view.list(NODES, "").any(is_ready);
        taint(node, &value, any_ready, cx);
        let ready = readiness(&value);
        if ready != "True" && !condition(&value["status"], "Ready").is_null() {
            mark_pods(key, view, cx);
        }
        if silent { Outcome::Settled } else { Outcome::Again(due) }
    }
}

fn readiness(node: &Value) -> &str {
    condition(&node["status"], "Ready")["status"].text()
}

fn is_ready(node: &Object) -> bool {
    NodeFacts::read(node).ready == "True"
}

impl NodeLifecycle {
    fn last_heard(&self, node: &Object, value: &Value, view: &View) -> Time {
        let lease = view.one(LEASES, LEASE_NAMESPACE, node.name()).map(Object::value);
        let renewed = lease.and_then(|lease| Time::parse(lease["spec"]["renewTime"].text()));
        let posted = Time::parse(condition(&value["status"], "Ready")["lastHeartbeatTime"].text());
        [renewed, posted, Some(node.facts().created), Some(self.started)]
            .into_iter()
            .flatten()
            .max()
            .unwrap_or_default()
    }

    /// Marks what the node says of itself as unknown. Says whether something had to be written.
    fn doubt(&self, node: &Object, value: &Value, cx: &mut Context) -> bool {
        if readiness(value) == "Unknown" {
            return false;
        }
        let mut conditions = value["status"]["conditions"].items().to_vec();
        let now = cx.now.rfc3339();
        for of_type in VOUCHED {
            match conditions.iter_mut().find(|one| one["type"].text() == *of_type) {
                Some(known) => {
                    known.set(&["status"], "Unknown");
                    known.set(&["reason"], "NodeStatusUnknown");
                    known.set(&["message"], "The node stopped posting its status.");
                    known.set(&["lastTransitionTime"], &now);
                }
                None => conditions.push(json!({
                    "type": (*of_type), "status": "Unknown", "reason": "NodeStatusNeverUpdated",
                    "message": "The node never posted its status.",
                    "lastHeartbeatTime": (node.facts().created.rfc3339()), "lastTransitionTime": (&now),
                })),
            }
        }
        let mut status = value["status"].clone();
        status.set(&["conditions"], Value::List(conditions));
        let written = write_status(cx, node, value, status);
        let message = format!("Node {} status is now: NodeNotReady", node.name());
        record(cx, REPORTER, NODE, node, "Normal", "NodeNotReady", message);
        written
    }
}

/// Brings the taints in line with the conditions.
fn taint(node: &Object, value: &Value, any_ready: bool, cx: &mut Context) {
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    let ready = condition(&value["status"], "Ready");
    let key = match ready["status"].text() {
        "False" => Some(NOT_READY),
        "Unknown" => Some(UNREACHABLE),
        _ => None,
    };
    if let Some(key) = key {
        wanted.push((key, NO_SCHEDULE));
        // When no node is well, the network is more likely at fault than all nodes, and nothing is evicted.
        if any_ready {
            wanted.push((key, NO_EXECUTE));
        }
    }
    for (of_type, key) in PRESSURES {
        if condition(&value["status"], of_type)["status"].text() == "True" {
            wanted.push((key, NO_SCHEDULE));
        }
    }
    if value["spec"]["unschedulable"].is_true() {
        wanted.push((UNSCHEDULABLE, NO_SCHEDULE));
    }
    let ours = |taint: &Value| {
        let (key, effect) = (taint["key"].text(), taint["effect"].text());
        match key {
            // A node that has not spoken yet keeps the taint it was born with.
            NOT_READY | UNREACHABLE => !ready.is_null() && matches!(effect, NO_SCHEDULE | NO_EXECUTE),
            UNSCHEDULABLE => effect == NO_SCHEDULE,
            key => effect == NO_SCHEDULE && PRESSURES.iter().any(|(_, pressure)| *pressure == key),
        }
    };
    let known = value["spec"]["taints"].items();
    let mut taints: Vec<Value> = Vec::new();
    for taint in known {
        let kept = !ours(taint) || wanted.contains(&(taint["key"].text(), taint["effect"].text()));
        if kept {
            let mut taint = taint.clone();
            if taint["effect"].text() == NO_EXECUTE && taint["timeAdded"].is_null() {
                // From here on pods count the seconds that they bear it.
                taint.set(&["timeAdded"], cx.now.rfc3339());
            }
            taints.push(taint);
        }
    }
    for (key, effect) in wanted {
        if !known.iter().any(|taint| taint["key"].text() == key && taint["effect"].text() == effect) {
            taints.push(json!({"key": key, "effect": effect, "timeAdded": (cx.now.rfc3339())}));
        }
    }
    if taints.as_slice() != known {
        let mut object = value.clone();
        object.set(&["spec", "taints"], if taints.is_empty() { Value::Null } else { Value::List(taints) });
        cx.push(Effect::Update { resource: node.resource(), object });
    }
}

/// Pods on a node that is not ready do not serve.
fn mark_pods(node: &str, view: &View, cx: &mut Context) {
    for pod in view.by(PODS, "node", node).filter(|pod| pod_facts(pod).ready).take(BATCH_MAX) {
        let value = pod.value();
        let mut conditions = value["status"]["conditions"].items().to_vec();
        for one in conditions.iter_mut().filter(|one| one["type"].text() == "Ready") {
            one.set(&["status"], "False");
            one.set(&["lastTransitionTime"], cx.now.rfc3339());
        }
        cx.push(Effect::Patch {
            resource: PODS,
            subresource: "status",
            namespace: pod.namespace().into(),
            name: pod.name().into(),
            uid: pod.uid().into(),
            patch: json!({
                "metadata": {"resourceVersion": (pod.revision().to_string())}, "status": {"conditions": conditions},
            }),
        });
        record(cx, REPORTER, POD, pod, "Warning", "NodeNotReady", "Node is not ready".to_owned());
    }
}
