//! Removes pods that nobody else will: bound to nodes that are gone, deleted before they were bound, on nodes out of
//! service, and ended ones beyond a number.

use api::core::disruption_target::{Taker, disruption_target};
use cache::{Event, View};
use meta::{Object, Resource, Str, Value, json};
use reconcile::{Context, Effect, Outcome, Reconciler};

use crate::common::*;

const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// A pod this young may be ahead of its node's registration.
const YOUNG_MS: u64 = 40_000;
const TERMINATED: &str = "terminated";

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
            let doubtful = event.new.as_ref().is_none_or(is_out_of_service);
            if doubtful {
                out.extend(view.by(PODS, "node", node.name()).map(key_of));
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
        if lost || (is_deleting(pod) && node.is_some_and(is_out_of_service)) {
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
        match view.one(NODES, "", &facts.node) {
            None => {
                let ripe = pod.facts().created.plus_ms(YOUNG_MS);
                if ripe > cx.now {
                    return Outcome::Again(ripe);
                }
                if !facts.phase.is_final() {
                    let why = disruption_target(Taker::LostNode, pod, cx.now);
                    return fail(pod, vec![why], cx);
                }
                force(pod, cx);
            }
            Some(node) if is_deleting(pod) && is_out_of_service(node) => {
                if !facts.phase.is_final() {
                    return fail(pod, Vec::new(), cx);
                }
                force(pod, cx);
            }
            Some(_) => {}
        }
        Outcome::Settled
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

/// Says that the pod failed, so that whoever counts it does; it is removed when that is seen.
fn fail(pod: &Object, conditions: Vec<Value>, cx: &mut Context) -> Outcome {
    amend_status(cx, pod, json!({"phase": "Failed", "conditions": conditions}));
    Outcome::Again(cx.now)
}
