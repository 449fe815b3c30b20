//! Nodes: without a heartbeat their conditions become unknown; conditions become taints; pods on nodes that are not
//! ready are not ready.
//!
//! A heartbeat is a change, not a time: how long a node has been silent is counted by the clock of whoever listens, since
//! a node whose clock is wrong would otherwise be dead, or live for ever. Each node has two keys: its name, and its name
//! behind [`BEATS`] for the listening, which looks often and must cost next to nothing.
//!
//! Nodes that also send signs of life beside the store are doubted as soon as those stop ([`Context::silent`]), unless they
//! renewed their lease since: then it is only the signs that do not arrive, and the lease alone counts.

use api::core::node_facts::NodeFacts;
use base::Time;
use cache::{Event, View};
use meta::{Object, Resource, Str, Value, json};
use reconcile::{Context, Effect, Outcome, Reconciler};

use crate::common::*;
use crate::taint_eviction::{Borne, borne_until};
use api::core::node_fit::{NO_EXECUTE, NO_SCHEDULE};

const REPORTER: &str = "node-controller";
/// In front of a node's name: the key under which its heartbeats are counted. No name of an object begins so.
const BEATS: &str = "beats of ";
/// How often heartbeats are looked for; so much later than its grace a silent node is noticed.
const LISTEN_MS: u64 = 5_000;
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
}

impl Reconciler for NodeLifecycle {
    fn name(&self) -> &'static str {
        "node-controller"
    }

    fn watches(&self) -> &[Resource] {
        &[NODES, PODS]
    }

    // Renewals are looked for, not listened to.
    fn lives(&self) -> &[Resource] {
        &[LEASES]
    }

    fn keys(&self, resource: Resource, event: &Event, view: &View, out: &mut Vec<Str>) {
        let Some(object) = event.new.as_ref().or(event.old.as_ref()) else { return };
        match resource {
            NODES => {
                out.push(object.name().into());
                out.push(format!("{BEATS}{}", object.name()).into());
                // Whether anything is evicted depends on whether any node is well.
                if event.old.is_none() || event.new.is_none() {
                    return;
                }
                let ready = |node: &Option<Object>| node.as_ref().is_some_and(is_ready);
                let others_ready = || view.list(NODES, "").any(|node| node.name() != object.name() && is_ready(node));
                if ready(&event.old) != ready(&event.new) && !others_ready() {
                    out.extend(view.list(NODES, "").map(key_of));
                }
            }
            LEASES if object.namespace() == LEASE_NAMESPACE && event.old.is_none() => {
                out.push(format!("{BEATS}{}", object.name()).into());
            }
            PODS => {
                let placed = event.new.as_ref().filter(|pod| {
                    let facts = pod_facts(pod);
                    facts.ready && !facts.node.is_empty()
                });
                if let Some(pod) = placed {
                    let node = pod_facts(pod).node;
                    if view.one(NODES, "", &node).is_some_and(|node| NodeFacts::seen(node).unwell) {
                        out.push(node);
                    }
                }
            }
            _ => {}
        }
    }

    fn keys_of_silence(&self, node: &str, out: &mut Vec<Str>) {
        out.push(format!("{BEATS}{node}").into());
    }

    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome {
        if let Some(name) = key.strip_prefix(BEATS) {
            return self.listen(name, view, cx);
        }
        let Some(node) = view.one(NODES, "", key).filter(|node| !is_deleting(node)) else { return Outcome::Settled };
        let value = node.value();
        let any_ready = view.list(NODES, "").any(is_ready);
        let taints = taint(node, &value, any_ready, cx);
        if readiness(&value) != "True" && !condition(&value["status"], "Ready").is_null() {
            mark_pods(key, &taints, view, cx);
        }
        Outcome::Settled
    }
}

/// All nodes are listened to at the same moments, so that this takes one look at the clock and not one for each of them.
fn next_listen(now: Time) -> Time {
    let step_us = i64::try_from(LISTEN_MS * 1000).unwrap_or(i64::MAX);
    Time(now.0.div_euclid(step_us).saturating_add(1).saturating_mul(step_us))
}

fn readiness(node: &Value) -> &str {
    condition(&node["status"], "Ready")["status"].text()
}

fn is_ready(node: &Object) -> bool {
    NodeFacts::seen(node).ready == "True"
}

/// What changes with every sign of life: the lease, or what the node says of itself where it has none.
fn last_beat(node: &Object, view: &View) -> u64 {
    match view.one(LEASES, LEASE_NAMESPACE, node.name()) {
        Some(lease) => lease.revision().0,
        None => base::hash64(condition(&node.value()["status"], "Ready")["lastHeartbeatTime"].text().as_bytes()),
    }
}

/// Whether the node's signs of life stopped, and its lease was not renewed since that was noticed.
fn is_silent(name: &str, view: &View, cx: &Context) -> bool {
    cx.silent
        .get(name)
        .is_some_and(|noticed| view.one(LEASES, LEASE_NAMESPACE, name).is_none_or(|lease| lease.revision() <= *noticed))
}

impl NodeLifecycle {
    /// Doubts a node whose last sign of life has stayed the same for too long.
    fn listen(&self, name: &str, view: &View, cx: &mut Context) -> Outcome {
        let Some(node) = view.one(NODES, "", name).filter(|node| !is_deleting(node)) else { return Outcome::Settled };
        let heard = cx.since(last_beat(node, view), 2 * LISTEN_MS);
        let due = heard.plus_ms(self.grace_ms);
        if due > cx.now && !is_silent(name, view, cx) {
            return Outcome::Again(due.min(next_listen(cx.now)));
        }
        if NodeFacts::seen(node).ready != "Unknown" {
            self.doubt(node, &node.value(), cx);
        }
        // A sign of life comes with the node's own word, which brings us back here.
        Outcome::Again(next_listen(cx.now))
    }

    /// Marks what the node says of itself as unknown.
    fn doubt(&self, node: &Object, value: &Value, cx: &mut Context) {
        if readiness(value) == "Unknown" {
            return;
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
        status.set(&["conditions"], Value::from(conditions));
        write_status(cx, node, value, status);
        let message = format!("Node {} status is now: NodeNotReady", node.name());
        record(cx, REPORTER, NODE, node, "Normal", "NodeNotReady", message);
    }
}

/// Brings the taints in line with the conditions; returns them.
fn taint(node: &Object, value: &Value, any_ready: bool, cx: &mut Context) -> Vec<Value> {
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
        let taints = if taints.is_empty() { Value::Null } else { Value::from(taints.clone()) };
        object.set(&["spec", "taints"], taints);
        cx.push(Effect::Update { resource: node.resource(), object });
    }
    taints
}

/// Pods on a node that is not ready do not serve. Those that its taints drive away at once are told so when they go.
fn mark_pods(node: &str, taints: &[Value], view: &View, cx: &mut Context) {
    let now = cx.now;
    let stays = |pod: &&Object| {
        let value = pod.value();
        let until = borne_until(taints, value["spec"]["tolerations"].items(), now);
        is_deleting(pod) || !matches!(until, Borne::Until(until) if until <= now)
    };
    let ready = view.by(PODS, "node", node).filter(|pod| pod_facts(pod).ready);
    for pod in ready.filter(stays).take(BATCH_MAX) {
        amend_status(cx, pod, json!({"conditions": (vec![unready(now)])}));
        record(cx, REPORTER, POD, pod, "Warning", "NodeNotReady", "Node is not ready".to_owned());
    }
}
