//! What a cluster at rest looks like: everything asked for is there, and nothing else.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::core::pod_facts::PodFacts;
use cache::View;
use meta::{Object, Resource, Selector, Str, Value};

use crate::check::scheduler::is_welcome;
use crate::fault::Profile;
use crate::machine::{Machine, running};
use crate::network;
use crate::user::*;

const SLICES: Resource = Resource("endpointslices.discovery.k8s.io");

type Rule = fn(&View) -> Option<String>;

/// Each says what is not yet as desired.
const RULES: &[Rule] = &[nodes, namespaces, deletions, owners, pods, services, budgets, passing];
/// The same of workloads, which have all their pods where there is room for all.
const WITH_ROOM: &[Rule] = &[deployments, stateful_sets, daemon_sets, jobs];
/// Where there is not, whoever waits for it says so.
const CROWDED: &[Rule] = &[given_up];

/// What is missing to rest, if anything.
pub fn missing(view: &View, machines: &[Arc<Machine>], profile: &Profile) -> Option<String> {
    let workloads = if profile.crowded { CROWDED } else { WITH_ROOM };
    let absent = || {
        let absent = machines.iter().find(|machine| view.one(NODES, "", &machine.name).is_none())?;
        Some(format!("{} is no node", absent.name))
    };
    let rules = || RULES.iter().chain(workloads).find_map(|rule| rule(view));
    let run = || machines.iter().find_map(|machine| containers(view, machine));
    absent().or_else(rules).or_else(run).or_else(|| network::missing(view, machines))
}

pub fn facts(pod: &Object) -> PodFacts {
    pod.own::<PodFacts>().cloned().unwrap_or_else(|| PodFacts::of(&pod.value()))
}

fn told(object: &Object, what: &str) -> Option<String> {
    Some(format!("{} {}/{} {what}", object.resource(), object.namespace(), object.name()))
}

fn number(value: &Value, path: &[&str]) -> i64 {
    value.at(path).as_int().unwrap_or(0)
}

/// The first number of the status that is not as expected.
fn counts(object: &Object, expected: &[(&str, i64)]) -> Option<String> {
    let value = object.value();
    if number(&value, &["status", "observedGeneration"]) < object.facts().generation {
        return told(object, "was not looked at since its last change");
    }
    let (field, wanted) = expected.iter().find(|(field, wanted)| number(&value, &["status", field]) != *wanted)?;
    told(object, &format!("has {field} {}, not {wanted}", number(&value, &["status", field])))
}

fn nodes(view: &View) -> Option<String> {
    view.list(NODES, "").find_map(|node| {
        let value = node.value();
        let ready = value
            .at(&["status", "conditions"])
            .items()
            .iter()
            .any(|condition| condition["type"].text() == "Ready" && condition["status"].text() == "True");
        if !ready {
            return told(node, "is not ready");
        }
        (!value.at(&["spec", "taints"]).items().is_empty()).then(|| told(node, "has taints")).flatten()
    })
}

fn namespaces(view: &View) -> Option<String> {
    let going = |one: &&Object| one.facts().deleting.is_some();
    view.list(NAMESPACES, "").find(going).and_then(|one| told(one, "is still going"))
}

fn deletions(view: &View) -> Option<String> {
    view.resources().find_map(|resource| {
        let going = |one: &&Object| one.facts().deleting.is_some();
        view.list(resource, "").find(going).and_then(|one| told(one, "is still being deleted"))
    })
}

fn owners(view: &View) -> Option<String> {
    let uids: BTreeSet<&str> = view.resources().flat_map(|resource| view.list(resource, "")).map(Object::uid).collect();
    view.resources().find_map(|resource| {
        let orphan = |one: &&Object| {
            let owners = &one.facts().owners;
            !owners.is_empty() && owners.iter().all(|owner| !uids.contains(owner.uid.as_str()))
        };
        view.list(resource, "").find(orphan).and_then(|one| told(one, "has lost all its owners"))
    })
}

fn pods(view: &View) -> Option<String> {
    view.list(PODS, "").find_map(|pod| {
        let facts = facts(pod);
        if facts.phase.is_final() {
            return None;
        }
        // Replica sets that are set free in the middle of a rollout may want more hosts than there are, and some users more room.
        if facts.node.is_empty() {
            return match (is_welcome(pod, view), is_unschedulable(pod)) {
                (true, _) => told(pod, "has no node"),
                (false, false) => told(pod, "has no node, and nobody says why"),
                (false, true) => None,
            };
        }
        (!facts.ready).then(|| told(pod, "is not ready")).flatten()
    })
}

fn is_unschedulable(pod: &Object) -> bool {
    let value = pod.value();
    let conditions = value.at(&["status", "conditions"]).items();
    conditions.iter().any(|one| one["type"].text() == "PodScheduled" && one["reason"].text() == "Unschedulable")
}

fn deployments(view: &View) -> Option<String> {
    view.list(DEPLOYMENTS, "").find_map(deployment)
}

fn deployment(one: &Object) -> Option<String> {
    let wanted = number(&one.value(), &["spec", "replicas"]);
    counts(one, &[("replicas", wanted), ("updatedReplicas", wanted), ("availableReplicas", wanted)])
}

/// A deployment that does not get on says so after its deadline; one whose rollout was complete before has none.
fn given_up(view: &View) -> Option<String> {
    view.list(DEPLOYMENTS, "").find_map(|one| {
        let (value, alone) = (one.value(), deployment(one));
        let conditions = value.at(&["status", "conditions"]).items();
        let is_over = |one: &Value| {
            one["type"].text() == "Progressing"
                && (one["status"].text() == "False" || one["reason"].text() == "NewReplicaSetAvailable")
        };
        alone.filter(|_| !conditions.iter().any(is_over))
    })
}

fn stateful_sets(view: &View) -> Option<String> {
    view.list(STATEFUL_SETS, "").find_map(|one| {
        let wanted = number(&one.value(), &["spec", "replicas"]);
        counts(one, &[("replicas", wanted), ("readyReplicas", wanted), ("updatedReplicas", wanted)])
    })
}

fn daemon_sets(view: &View) -> Option<String> {
    let wanted = view.count(NODES) as i64;
    view.list(DAEMON_SETS, "").find_map(|one| {
        let fields = ["desiredNumberScheduled", "currentNumberScheduled", "updatedNumberScheduled", "numberReady"];
        counts(one, &fields.map(|field| (field, wanted)))
    })
}

fn has_ended(job: &Value) -> bool {
    job.at(&["status", "conditions"]).items().iter().any(|condition| {
        matches!(condition["type"].text(), "Complete" | "Failed") && condition["status"].text() == "True"
    })
}

fn jobs(view: &View) -> Option<String> {
    view.list(JOBS, "").find_map(|one| (!has_ended(&one.value())).then(|| told(one, "has not ended")).flatten())
}

/// What goes by itself some time after it has ended: long after, where the clock was ahead when that was written.
fn passing(view: &View) -> Option<String> {
    view.list(JOBS, "").find_map(|one| {
        let value = one.value();
        let goes = has_ended(&value) && !value.at(&["spec", "ttlSecondsAfterFinished"]).is_null();
        goes.then(|| told(one, "has ended and is still there")).flatten()
    })
}

fn services(view: &View) -> Option<String> {
    view.list(SERVICES, "").find_map(|service| {
        let value = service.value();
        let selector = Selector::of_map(&value["spec"]["selector"]);
        if value["spec"]["selector"].entries().is_empty() {
            return None;
        }
        let wanted: BTreeSet<Str> = view
            .list(PODS, service.namespace())
            .filter(|pod| selector.matches(pod.labels()) && facts(pod).ready)
            .map(|pod| pod.uid().into())
            .collect();
        let slices = view
            .list(SLICES, service.namespace())
            .filter(|slice| slice.labels().get("kubernetes.io/service-name") == Some(service.name()));
        let mut served = BTreeSet::new();
        for slice in slices {
            for endpoint in slice.value()["endpoints"].items() {
                if endpoint.at(&["conditions", "ready"]).is_true() {
                    served.insert(Str::from(endpoint.at(&["targetRef", "uid"]).text()));
                }
            }
        }
        (wanted != served).then(|| told(service, "does not serve its ready pods")).flatten()
    })
}

fn budgets(view: &View) -> Option<String> {
    view.list(BUDGETS, "").find_map(|budget| {
        let selector = Selector::of(&budget.value()["spec"]["selector"]);
        let healthy = view.list(PODS, budget.namespace());
        let healthy = healthy.filter(|pod| selector.matches(pod.labels()) && facts(pod).ready).count();
        counts(budget, &[("currentHealthy", healthy as i64)])
    })
}

/// The machine runs the pods that are bound to it, and no others.
fn containers(view: &View, machine: &Machine) -> Option<String> {
    let wanted: BTreeSet<Str> = view
        .by(PODS, "node", &machine.name)
        .filter(|pod| !facts(pod).phase.is_final())
        .map(|pod| pod.uid().into())
        .collect();
    let runs = running(machine);
    let odd: Vec<&Str> = wanted.symmetric_difference(&runs).collect();
    (!odd.is_empty()).then(|| format!("{} does not run what it should: {odd:?}", machine.name))
}
