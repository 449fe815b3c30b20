//! PodDisruptionBudgets: how many of the selected pods may be evicted now.

use std::collections::BTreeMap;

use base::Time;
use cache::{Event, View};
use meta::quantity::int_or_percent;
use meta::{Map, Object, Resource, Selector, Str, Value, json};
use reconcile::{Context, Outcome, Reconciler};

use crate::common::*;

/// An eviction that was allowed and not seen for this long did not happen.
const FORGET_MS: u64 = 120_000;

pub struct Disruption;

impl Reconciler for Disruption {
    fn name(&self) -> &'static str {
        "disruption-controller"
    }

    fn watches(&self) -> &[Resource] {
        &[BUDGETS, PODS, REPLICA_SETS, DEPLOYMENTS, STATEFUL_SETS, REPLICATION_CONTROLLERS]
    }

    fn keys(&self, resource: Resource, event: &Event, view: &View, out: &mut Vec<Str>) {
        if resource == BUDGETS {
            out.extend(event.new.iter().map(key_of));
            return;
        }
        let Some(object) = event.new.as_ref().or(event.old.as_ref()) else { return };
        let scaled = match (&event.old, &event.new) {
            (Some(old), Some(new)) => old.facts().generation != new.facts().generation,
            _ => true,
        };
        for budget in view.list(BUDGETS, object.namespace()) {
            if resource != PODS {
                if scaled {
                    out.push(key_of(budget));
                }
                continue;
            }
            let selector = Selector::of(&budget.value()["spec"]["selector"]);
            if sides(event).any(|pod| selector.matches(pod.labels())) {
                out.push(key_of(budget));
            }
        }
    }

    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome {
        let (namespace, name) = split(key);
        let Some(budget) = view.one(BUDGETS, namespace, name) else { return Outcome::Settled };
        let value = budget.value();
        let selector = Selector::of(&value["spec"]["selector"]);
        let pods: Vec<&Object> = selected(view, namespace, &selector).collect();
        cx.reads = pods.len();
        let (expected, desired) = expectation(view, &value["spec"], &pods);
        let mut again = None;
        let disrupted = disrupted(&value["status"]["disruptedPods"], &pods, cx.now, &mut again);
        let healthy = pods.iter().filter(|pod| !is_deleting(pod) && pod_facts(pod).ready);
        let healthy = healthy.filter(|pod| !disrupted.contains(pod.name())).count() as i64;
        let allowed = if expected <= 0 { 0 } else { (healthy - desired).max(0) };
        let generation = budget.facts().generation;
        let (state, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
        let known = condition(&value["status"], "DisruptionAllowed");
        let since = match known["status"].text() == state {
            true => known["lastTransitionTime"].clone(),
            false => cx.now.rfc3339().into(),
        };
        let mut conditions = value["status"]["conditions"].items().to_vec();
        conditions.retain(|one| one["type"].text() != "DisruptionAllowed");
        conditions.push(json!({
            "type": "DisruptionAllowed", "status": state, "reason": reason, "message": "",
            "observedGeneration": generation, "lastTransitionTime": since,
        }));
        let mut status = json!({
            "currentHealthy": healthy, "desiredHealthy": desired, "disruptionsAllowed": allowed,
            "expectedPods": expected, "conditions": conditions,
        });
        put_count(&mut status, "observedGeneration", generation);
        if !disrupted.is_empty() {
            status.set(&["disruptedPods"], disrupted);
        }
        write_status(cx, budget, &value, status);
        outcome(again)
    }
}

/// Evictions that were allowed and may still show.
fn disrupted(known: &Value, pods: &[&Object], now: Time, again: &mut Option<Time>) -> Map {
    let mut kept = Map::new();
    for (name, at) in known.entries().iter() {
        let Some(pod) = pods.iter().find(|pod| pod.name() == name) else { continue };
        let until = Time::parse(at.text()).unwrap_or_default().plus_ms(FORGET_MS);
        if !is_deleting(pod) && until > now {
            kept.insert(name, at.clone());
            sooner(again, until);
        }
    }
    kept
}

/// How many pods there should be, and how many of them healthy.
fn expectation(view: &View, spec: &Value, pods: &[&Object]) -> (i64, i64) {
    let count = pods.len() as i64;
    match (&spec["maxUnavailable"], &spec["minAvailable"]) {
        (Value::Null, Value::Int(min)) => (count, *min),
        (Value::Null, min) => {
            let expected = scale(view, pods);
            (expected, int_or_percent(min, expected, true).unwrap_or(0))
        }
        (max, _) => {
            let expected = scale(view, pods);
            (expected, (expected - int_or_percent(max, expected, true).unwrap_or(0)).max(0))
        }
    }
}

/// The pods that the owners of `pods` want, summed up.
fn scale(view: &View, pods: &[&Object]) -> i64 {
    let mut wanted: BTreeMap<Str, i64> = BTreeMap::new();
    for pod in pods {
        let Some(owner) = pod.facts().controller() else { continue };
        let resource = match owner.kind.as_str() {
            "ReplicaSet" => REPLICA_SETS,
            "StatefulSet" => STATEFUL_SETS,
            "ReplicationController" => REPLICATION_CONTROLLERS,
            _ => continue,
        };
        if wanted.contains_key(&owner.uid) {
            continue;
        }
        let Some(set) = view.one(resource, pod.namespace(), &owner.name) else { continue };
        let above = set.facts().controller().filter(|above| above.kind == "Deployment");
        let above = above.and_then(|above| view.one(DEPLOYMENTS, pod.namespace(), &above.name));
        let object = above.unwrap_or(set);
        wanted.insert(object.uid().into(), object.value()["spec"]["replicas"].as_int().unwrap_or(1));
    }
    wanted.values().sum()
}
