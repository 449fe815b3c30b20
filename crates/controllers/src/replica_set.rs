//! ReplicaSets and ReplicationControllers: as many pods of one template as asked for.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use api::core::pod_facts::{Phase, PodFacts};
use base::Time;
use cache::{Event, View};
use meta::{Object, Resource, Selector, Str, Value, json};
use reconcile::{Context, Effect, Outcome, Reconciler};

use crate::common::*;

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

pub struct ReplicaSets {
    name: &'static str,
    of: Gvk,
    watches: [Resource; 2],
}

impl ReplicaSets {
    pub fn new() -> ReplicaSets {
        let of = Gvk { api_version: "apps/v1", kind: "ReplicaSet" };
        ReplicaSets { name: "replicaset-controller", of, watches: [REPLICA_SETS, PODS] }
    }

    pub fn of_replication_controllers() -> ReplicaSets {
        let of = Gvk { api_version: "v1", kind: "ReplicationController" };
        ReplicaSets { name: "replication-controller", of, watches: [REPLICATION_CONTROLLERS, PODS] }
    }

    fn selector(&self, spec: &Value) -> Selector {
        if self.of.kind == "ReplicaSet" { Selector::of(&spec["selector"]) } else { Selector::of_map(&spec["selector"]) }
    }

    /// Makes or removes pods; says how many are still to come after this pass.
    fn manage(&self, set: &Object, spec: &Value, active: &[(Object, PodFacts)], view: &View, cx: &mut Context) -> bool {
        let wanted = usize::try_from(spec["replicas"].as_int().unwrap_or(1)).unwrap_or(0);
        if active.len() < wanted {
            if is_ending(set.namespace(), view) {
                return false;
            }
            let missing = wanted - active.len();
            let prefix = format!("{}-", set.name());
            let taken = |name: &str| view.one(PODS, set.namespace(), name).is_some();
            for _ in 0..missing.min(BATCH_MAX) {
                let pod = pod_of(&spec["template"], self.of, set, &prefix, taken, &mut cx.rng);
                let message = format!("Created pod: {}", pod.at(&["metadata", "name"]).text());
                cx.push(Effect::Create { resource: PODS, object: pod });
                record(cx, self.name, self.of, set, "Normal", "SuccessfulCreate", message);
            }
            return missing > BATCH_MAX;
        }
        let excess = active.len() - wanted;
        if excess == 0 {
            return false;
        }
        for pod in victims(set, active, excess.min(BATCH_MAX), view) {
            delete(cx, &pod, "");
            let message = format!("Deleted pod: {}", pod.name());
            record(cx, self.name, self.of, set, "Normal", "SuccessfulDelete", message);
        }
        excess > BATCH_MAX
    }
}

impl Reconciler for ReplicaSets {
    fn name(&self) -> &'static str {
        self.name
    }

    fn watches(&self) -> &[Resource] {
        &self.watches
    }

    fn keys(&self, resource: Resource, event: &Event, view: &View, out: &mut Vec<Str>) {
        if resource == self.watches[0] {
            out.extend(event.new.iter().map(key_of));
        } else if !counts_as_before(event) {
            owner_keys(event, self.of.kind, out);
            neighbours(view, self.watches[0], event, out);
        }
    }

    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome {
        let (namespace, name) = split(key);
        let Some(set) = view.one(self.watches[0], namespace, name) else { return Outcome::Settled };
        let value = set.value();
        let spec = &value["spec"];
        let selector = self.selector(spec);
        if selector.is_everything() {
            return Outcome::Settled;
        }
        let refused = cx.refused.first().map(|refusal| refusal.why.clone());
        let mine = claim(view, PODS, set, self.of, &|one| selector.matches(one.labels()), cx);
        if !cx.effects.is_empty() {
            // Taken or let go: the next view shows whose they are.
            return Outcome::Settled;
        }
        let facts = mine.into_iter().map(|pod| {
            let facts = pod_facts(&pod);
            (pod, facts)
        });
        let (mut active, mut terminating) = (Vec::new(), 0);
        for (pod, facts) in facts {
            match (facts.phase.is_final(), is_deleting(&pod)) {
                (false, true) => terminating += 1,
                (false, false) => active.push((pod, facts)),
                _ => {}
            }
        }
        let more = !is_deleting(set) && self.manage(set, spec, &active, view, cx);
        let mut again = more.then_some(cx.now);
        let wanted = spec["replicas"].as_int().unwrap_or(1);
        let failure = refused.filter(|_| count(active.len()) != wanted).map(|why| (count(active.len()) < wanted, why));
        let status = status_of(set, &value, &active, terminating, failure, cx.now, &mut again);
        write_status(cx, set, &value, status);
        outcome(again)
    }
}

fn count(len: usize) -> i64 {
    i64::try_from(len).unwrap_or(i64::MAX)
}

fn status_of(
    set: &Object,
    value: &Value,
    active: &[(Object, PodFacts)],
    terminating: i64,
    failure: Option<(bool, String)>,
    now: Time,
    again: &mut Option<Time>,
) -> Value {
    let spec = &value["spec"];
    let min_ready = spec["minReadySeconds"].as_int().unwrap_or(0);
    let labels = spec.at(&["template", "metadata", "labels"]).entries();
    let (mut ready, mut available, mut labelled) = (0, 0, 0);
    for (pod, facts) in active {
        ready += i64::from(facts.ready);
        available += i64::from(is_available(facts, min_ready, now, again));
        labelled += i64::from(labels.iter().all(|(key, value)| pod.labels().get(key) == value.as_str()));
    }
    let mut status = json!({"replicas": (count(active.len()))});
    put_count(&mut status, "fullyLabeledReplicas", labelled);
    put_count(&mut status, "readyReplicas", ready);
    put_count(&mut status, "availableReplicas", available);
    put_count(&mut status, "observedGeneration", set.facts().generation);
    if set.resource() == REPLICA_SETS {
        status.set(&["terminatingReplicas"], terminating);
    }
    let known = &value["status"];
    let mut conditions: Vec<Value> = known["conditions"].items().to_vec();
    let old = condition(known, "ReplicaFailure").clone();
    match failure {
        Some((creating, why)) if old.is_null() => {
            let reason = if creating { "FailedCreate" } else { "FailedDelete" };
            conditions.push(json!({
                "type": "ReplicaFailure", "status": "True", "reason": reason, "message": why,
                "lastTransitionTime": (now.rfc3339()),
            }));
        }
        Some(_) => {}
        None => conditions.retain(|one| one["type"].text() != "ReplicaFailure"),
    }
    if !conditions.is_empty() {
        status.set(&["conditions"], Value::from(conditions));
    }
    status
}

/// The pods that are missed least: not running before running, unready before ready, cheap before dear, crowded before
/// alone, young before old.
fn victims(set: &Object, active: &[(Object, PodFacts)], number: usize, view: &View) -> Vec<Object> {
    struct Candidate<'a> {
        pod: &'a Object,
        facts: &'a PodFacts,
        cost: i64,
        rank: usize,
    }
    if number >= active.len() {
        return active.iter().map(|(pod, _)| pod.clone()).collect();
    }
    let crowd = crowd_of(set, active, view);
    let mut candidates: Vec<Candidate> = active
        .iter()
        .map(|(pod, facts)| Candidate {
            pod,
            facts,
            cost: pod.value().at(&["metadata", "annotations", DELETION_COST]).text().parse().unwrap_or(0),
            rank: crowd.get(&facts.node).copied().unwrap_or(0),
        })
        .collect();
    let stage = |phase: Phase| match phase {
        Phase::Pending => 0,
        Phase::Unknown => 1,
        _ => 2,
    };
    candidates.sort_by(|a, b| {
        (!a.facts.node.is_empty())
            .cmp(&!b.facts.node.is_empty())
            .then(stage(a.facts.phase).cmp(&stage(b.facts.phase)))
            .then(a.facts.ready.cmp(&b.facts.ready))
            .then(a.cost.cmp(&b.cost))
            .then(b.rank.cmp(&a.rank))
            .then(if a.facts.ready { b.facts.ready_since.cmp(&a.facts.ready_since) } else { Ordering::Equal })
            .then(b.facts.restarts.cmp(&a.facts.restarts))
            .then(b.pod.facts().created.cmp(&a.pod.facts().created))
            .then(a.pod.name().cmp(b.pod.name()))
    });
    candidates.into_iter().take(number).map(|candidate| candidate.pod.clone()).collect()
}

/// How many running siblings each node has, those of the other sets of the same owner included.
fn crowd_of(set: &Object, active: &[(Object, PodFacts)], view: &View) -> BTreeMap<Str, usize> {
    let mut crowd: BTreeMap<Str, usize> = BTreeMap::new();
    let mut add = |facts: &PodFacts| *crowd.entry(facts.node.clone()).or_default() += 1;
    active.iter().for_each(|(_, facts)| add(facts));
    if let Some(owner) = set.facts().controller() {
        for sibling in view.owned(set.resource(), &owner.uid).filter(|sibling| sibling.uid() != set.uid()) {
            for pod in view.owned(PODS, sibling.uid()) {
                let facts = pod_facts(pod);
                if !facts.phase.is_final() && !is_deleting(pod) {
                    add(&facts);
                }
            }
        }
    }
    crowd
}
