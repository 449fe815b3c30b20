//! Removes pods from nodes whose `NoExecute` taints they do not bear, or no longer.

use api::core::disruption_target::{Taker, disruption_target, is_disruption_target};
use api::core::node_facts::NodeFacts;
use base::Time;
use cache::{Event, View};
use meta::{Object, Resource, Str, Value, json};
use reconcile::{Context, Outcome, Reconciler};

use crate::common::*;
use api::core::node_fit::{NO_EXECUTE, toleration_fits};

const REPORTER: &str = "taint-eviction-controller";

/// Before the key of a pod that is told that it may stay.
const CANCELLED: &str = "cancelled|";

pub struct TaintEviction;

impl Reconciler for TaintEviction {
    fn name(&self) -> &'static str {
        "node-controller"
    }

    fn watches(&self) -> &[Resource] {
        &[NODES, PODS]
    }

    fn keys(&self, resource: Resource, event: &Event, view: &View, out: &mut Vec<Str>) {
        let Some(object) = &event.new else { return };
        if resource == NODES {
            let now = NodeFacts::read(object);
            let before = event.old.as_ref().map(NodeFacts::read);
            let changed = before.as_ref().is_none_or(|before| before.taints != now.taints);
            if changed {
                out.extend(view.by(PODS, "node", object.name()).map(key_of));
            }
            // Only to tell of it: pods whose time was running are safe again.
            if before.is_some_and(|before| before.drives_away) && !now.drives_away {
                out.extend(
                    view.by(PODS, "node", object.name()).map(|pod| format!("{CANCELLED}{}", key_of(pod)).into()),
                );
            }
        } else if !pod_facts(object).node.is_empty() {
            let placed = event.old.as_ref().is_some_and(|old| !pod_facts(old).node.is_empty());
            let same_tolerations =
                event.old.as_ref().is_some_and(|old| pod_facts(old).tolerations == pod_facts(object).tolerations);
            if !placed || !same_tolerations {
                out.push(key_of(object));
            }
        }
    }

    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome {
        let (key, cancelled) = key.strip_prefix(CANCELLED).map_or((key, false), |key| (key, true));
        let (namespace, name) = split(key);
        let Some(pod) = view.one(PODS, namespace, name).filter(|pod| !is_deleting(pod)) else {
            return Outcome::Settled;
        };
        if cancelled {
            let message = format!("Cancelling deletion of Pod {key}");
            record(cx, REPORTER, POD, pod, "Normal", "TaintManagerEviction", message);
            return Outcome::Settled;
        }
        let facts = pod_facts(pod);
        let tainted = view.one(NODES, "", &facts.node).map(NodeFacts::read).filter(|node| node.drives_away);
        let Some(node) = tainted else { return Outcome::Settled };
        let value = pod.value();
        match borne_until(node.taints.items(), value["spec"]["tolerations"].items(), cx.now) {
            Borne::Forever => Outcome::Settled,
            Borne::Until(until) if until > cx.now => Outcome::Again(until),
            Borne::Until(_) => evict(pod, &value, node.ready == "True", cx),
        }
    }
}

pub enum Borne {
    Forever,
    Until(Time),
}

/// How long a pod with `tolerations` may stay where these taints are.
pub fn borne_until(taints: &[Value], tolerations: &[Value], now: Time) -> Borne {
    let mut until: Option<Time> = None;
    for taint in taints.iter().filter(|taint| taint["effect"].text() == NO_EXECUTE) {
        let fitting: Vec<&Value> = tolerations.iter().filter(|one| toleration_fits(one, taint)).collect();
        if fitting.is_empty() {
            return Borne::Until(now);
        }
        let since = Time::parse(taint["timeAdded"].text()).unwrap_or(now);
        if let Some(seconds) = fitting.iter().filter_map(|one| one["tolerationSeconds"].as_int()).min() {
            sooner(&mut until, since.plus_ms(seconds_ms(seconds)));
        }
    }
    until.map_or(Borne::Forever, Borne::Until)
}

/// Says first why the pod goes, and lets it go when that is seen: whoever watches it learns the reason in time. On a node
/// that is not ready it does not serve any more.
fn evict(pod: &Object, value: &Value, on_ready_node: bool, cx: &mut Context) -> Outcome {
    if !is_disruption_target(&value["status"]) {
        let why = disruption_target(Taker::Taint, pod, cx.now);
        let conditions = match pod_facts(pod).ready && !on_ready_node {
            true => vec![why, unready(cx.now)],
            false => vec![why],
        };
        amend_status(cx, pod, json!({"conditions": conditions}));
        return Outcome::Again(cx.now);
    }
    delete(cx, pod, "");
    let message = format!("Marking for deletion Pod {}", key_of(pod));
    record(cx, REPORTER, POD, pod, "Normal", "TaintManagerEviction", message);
    Outcome::Settled
}
