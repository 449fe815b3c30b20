//! Removes pods that nobody else will: bound to nodes that are gone, deleted before they were bound, on nodes out of
//! service, ended by a node that is cut off, and ended ones beyond a number.

use api::core::disruption_target::{Taker, disruption_target, is_disruption_target};
use api::core::leash::Leash;
use api::core::node_facts::NodeFacts;
use base::Time;
use cache::{Event, View};
use meta::{Object, Resource, Str, Value, json};
use reconcile::{Context, Effect, Outcome, Reconciler};

use crate::common::*;

const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// A pod this young that no node has taken up yet may be ahead of its node's registration.
const YOUNG_MS: u64 = 40_000;
/// A node whose object is gone and of which nothing was heard for so long is taken for lost with its pods: as long as a lease
/// of nodes lasts. One that lives renews it until its pods have ended, however long they take.
const LOST_MS: u64 = 40_000;
const TERMINATED: &str = "terminated";
/// How often it is looked whether a node that is cut off, or gone, renewed its lease after all; a time between two looks that is longer
/// than the second counts for nothing.
const LOOK_MS: u64 = 2_000;
const GAP_MS: u64 = 4_000;

pub struct PodGc {
    pub terminated_max: usize,
}

impl Reconciler for PodGc {
    fn name(&self) -> &'static str {
        "pod-garbage-collector"
    }

    fn watches(&self) -> &[Resource] {
        &[PODS, NODES]
    }

    fn keys(&self, resource: Resource, event: &Event, view: &View, out: &mut Vec<Str>) {
        if resource == NODES {
            let Some(node) = event.new.as_ref().or(event.old.as_ref()) else { return };
            let pods = view.by(PODS, "node", node.name());
            if event.new.as_ref().is_none_or(is_out_of_service) {
                out.extend(pods.map(key_of));
            } else if event.new.as_ref().is_some_and(is_cut_off) {
                out.extend(pods.filter(|pod| Leash::of(&pod.value()).is_some()).map(key_of));
            }
            return;
        }
        let Some(pod) = &event.new else { return };
        let facts = pod_facts(pod);
        if facts.phase.is_final() && event.old.as_ref().is_none_or(|old| !pod_facts(old).phase.is_final()) {
            out.push(TERMINATED.into());
        }
        let node = view.one(NODES, "", &facts.node);
        let unbound = facts.node.is_empty();
        let lost = if unbound { is_deleting(pod) } else { node.is_none() };
        let cut_off = || node.is_some_and(is_cut_off) && Leash::of(&pod.value()).is_some();
        if lost || (is_deleting(pod) && node.is_some_and(is_out_of_service)) || cut_off() {
            out.push(key_of(pod));
        }
    }

    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome {
        if key == TERMINATED {
            return self.thin_out(view, cx);
        }
        let (namespace, name) = split(key);
        let Some(pod) = view.one(PODS, namespace, name) else { return Outcome::Settled };
        let facts = pod_facts(pod);
        if facts.node.is_empty() {
            if is_deleting(pod) {
                force(pod, cx);
            }
            return Outcome::Settled;
        }
        let node = view.one(NODES, "", &facts.node);
        if node.is_some_and(|node| is_deleting(pod) && is_out_of_service(node)) {
            return take(pod, None, cx);
        }
        let leash = Leash::of(&pod.value());
        let stays = |node: &Object| !is_cut_off(node) || facts.phase.is_final() && !is_taken(pod);
        let taker = match node {
            None => Taker::LostNode,
            Some(node) if leash.is_some() && !stays(node) => Taker::CutOffNode,
            Some(_) => return Outcome::Settled,
        };
        // Where its node cannot be asked it has ended the pod by then, and not before.
        let silent_ms = leash.map_or(LOST_MS, |leash| leash.gone_ms());
        let ripe = unrenewed(&facts.node, view, cx).plus_ms(silent_ms);
        if ripe <= cx.now {
            return take(pod, Some(taker), cx);
        }
        if node.is_none() && !is_deleting(pod) && (has_begun(pod) || pod.facts().created.plus_ms(YOUNG_MS) <= cx.now) {
            ask_to_end(pod, cx);
        }
        Outcome::Again(ripe.min(cx.now.plus_ms(LOOK_MS)))
    }
}

impl PodGc {
    fn thin_out(&self, view: &View, cx: &mut Context) -> Outcome {
        if self.terminated_max == 0 {
            return Outcome::Settled;
        }
        // Each pod that ends brings a look at all: where pods are many, several that end together are seen by one.
        cx.reads = view.count(PODS);
        let mut ended: Vec<&Object> =
            view.list(PODS, "").filter(|pod| pod_facts(pod).phase.is_final() && !is_deleting(pod)).collect();
        let excess = ended.len().saturating_sub(self.terminated_max);
        ended.sort_by(|a, b| (a.facts().created, a.name()).cmp(&(b.facts().created, b.name())));
        ended.into_iter().take(excess.min(BATCH_MAX)).for_each(|pod| force(pod, cx));
        if excess > BATCH_MAX { Outcome::Again(cx.now) } else { Outcome::Settled }
    }
}

fn is_out_of_service(node: &Object) -> bool {
    node.value()["spec"]["taints"].items().iter().any(|taint| taint["key"].text() == OUT_OF_SERVICE)
}

/// Whether nothing is heard of a node.
fn is_cut_off(node: &Object) -> bool {
    NodeFacts::seen(node).ready == "Unknown"
}

/// Whether we have said that the pod goes: others that ended by themselves stay until somebody wants them gone.
fn is_taken(pod: &Object) -> bool {
    is_disruption_target(&pod.value()["status"])
}

/// Whether a node has taken the pod up.
fn has_begun(pod: &Object) -> bool {
    !pod.value().at(&["status", "startTime"]).is_null()
}

/// Since when a node's lease has not been renewed, as far as looks at this key have seen.
fn unrenewed(node: &str, view: &View, cx: &mut Context) -> Time {
    let lease = view.one(LEASES, LEASE_NAMESPACE, node);
    cx.since(lease.map_or(0, |lease| lease.revision().0), GAP_MS)
}

/// Has a pod ended whose node is gone, and says why before: the machine may live, and then its agent ends the pod and says so.
/// Nobody may take the pod's name earlier.
fn ask_to_end(pod: &Object, cx: &mut Context) {
    if pod_facts(pod).phase.is_final() || is_taken(pod) {
        delete(cx, pod, "");
    } else {
        let why = disruption_target(Taker::LostNode, pod, cx.now);
        amend_status(cx, pod, json!({"conditions": [why]}));
    }
}

/// Says that the pod failed, so that whoever counts it does; it is removed when that is seen.
fn take(pod: &Object, taker: Option<Taker<'_>>, cx: &mut Context) -> Outcome {
    if pod_facts(pod).phase.is_final() {
        force(pod, cx);
        return Outcome::Settled;
    }
    let conditions: Vec<Value> = taker.map(|taker| disruption_target(taker, pod, cx.now)).into_iter().collect();
    amend_status(cx, pod, json!({"phase": "Failed", "conditions": conditions}));
    Outcome::Again(cx.now)
}

fn force(pod: &Object, cx: &mut Context) {
    cx.push(Effect::Delete {
        resource: PODS,
        namespace: pod.namespace().into(),
        name: pod.name().into(),
        uid: pod.uid().into(),
        revision: None,
        propagation: "",
        grace_seconds: Some(0),
    });
}
