//! The scheduler: no node beyond its room, no pod bound twice, and no rule broken that a pod or a node states: a node that
//! takes no pods, its taints, a pod's affinity to nodes, ports of the host, and pods that do not want each other near.
//!
//! A binding is judged by the view that it rests on, and by what the same scheduler has bound before.

use std::collections::{BTreeMap, BTreeSet};

use api::core::pod_facts;
use base::Revision;
use cache::View;
use meta::{Object, Quantity, Selector, Str, Value};

use super::spread::is_spread;
use super::{Binding, Checker, Seen, bindings};
use crate::desired::facts;
use crate::gist::spec_of;
use crate::truth::Past;
use crate::user::{HOSTNAME, NODES, PODS, REQUIRED};

const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// What is counted of a node's room, beside the number of pods.
const COUNTED: [&str; 2] = ["cpu", "memory"];

#[derive(Default)]
pub struct Scheduler {
    /// What pods that are bound ask for, by uid, in thousandths, and the generation of their spec that says so.
    asks: BTreeMap<Str, (i64, [i64; COUNTED.len()])>,
    /// Which life of a scheduler bound each pod, by uid.
    binders: BTreeMap<Str, u64>,
}

fn milli(value: &Value) -> i64 {
    value.text().parse::<Quantity>().map_or(0, |quantity| quantity.milli())
}

/// What a pod asks for, in thousandths.
fn asks(pod: &Object) -> [i64; COUNTED.len()] {
    let containers = spec_of(pod, "containers");
    let requests = containers.items().iter().map(|one| one.at(&["resources", "requests"]));
    COUNTED.map(|resource| requests.clone().map(|requests| milli(&requests[resource])).sum())
}

impl Scheduler {
    fn check_room(&mut self, node: &Object, after: &View) -> Result<(), String> {
        let (value, mut count, mut sums) = (node.value(), 0, [0; COUNTED.len()]);
        for pod in after.by(PODS, "node", node.name()).filter(|pod| !pod_facts::of(pod).phase.is_final()) {
            let read = || (pod.facts().generation, asks(pod));
            let known = self.asks.entry(pod.uid().into()).or_insert_with(read);
            if known.0 != pod.facts().generation {
                *known = read();
            }
            sums.iter_mut().zip(known.1).for_each(|(sum, asked)| *sum += asked);
            count += 1000;
        }
        for (resource, used) in COUNTED.into_iter().zip(sums).chain([("pods", count)]) {
            let room = milli(value.at(&["status", "allocatable", resource]));
            if used > room {
                return Err(format!("node {} has {room} m of {resource}, its pods ask for {used} m", node.name()));
            }
        }
        Ok(())
    }
}

/// What of its node a pod does not want, or its node does not want of the pod.
pub fn refusal(pod: &Object, node: &Object) -> Option<String> {
    unborne(pod, node).or_else(|| unwanted(pod, node))
}

/// What of its node a pod does not bear.
pub fn unborne(pod: &Object, node: &Object) -> Option<String> {
    let tolerations = spec_of(pod, "tolerations");
    let bears = |key: &str, value: &str, effect: &str| {
        tolerations.items().iter().any(|one| {
            let (of_key, of_effect) = (one["key"].text(), one["effect"].text());
            let exists = one["operator"].text() == "Exists";
            (of_effect.is_empty() || of_effect == effect)
                && (of_key == key && (exists || one["value"].text() == value) || of_key.is_empty() && exists)
        })
    };
    let value = node.value();
    if value["spec"]["unschedulable"].is_true() && !bears(UNSCHEDULABLE, "", "NoSchedule") {
        return Some("took no pods".to_owned());
    }
    for taint in value["spec"]["taints"].items() {
        let (key, effect) = (taint["key"].text(), taint["effect"].text());
        if effect != "PreferNoSchedule" && !bears(key, taint["value"].text(), effect) {
            return Some(format!("had the taint {key}"));
        }
    }
    None
}

/// What a pod asks of its node that it has not.
pub fn unwanted(pod: &Object, node: &Object) -> Option<String> {
    let labels = node.labels();
    let selector = spec_of(pod, "nodeSelector");
    if let Some((key, _)) = selector.entries().iter().find(|(key, value)| labels.get(key) != value.as_str()) {
        return Some(format!("had not the label {key} that it selects"));
    }
    let affinity = spec_of(pod, "affinity");
    let terms = affinity.at(&["nodeAffinity", REQUIRED, "nodeSelectorTerms"]);
    let holds = |one: &Value, found: Option<&str>| {
        let listed = found.is_some_and(|found| one["values"].items().iter().any(|value| value.text() == found));
        match one["operator"].text() {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => found.is_some(),
            // The users of worlds ask for nothing else.
            _ => found.is_none(),
        }
    };
    let fits = |term: &Value| {
        term["matchExpressions"].items().iter().all(|one| holds(one, labels.get(one["key"].text())))
            && term["matchFields"].items().iter().all(|one| holds(one, Some(node.name())))
    };
    let wrong = !terms.items().is_empty() && !terms.items().iter().any(fits);
    wrong.then(|| "is none that its affinity asks for".to_owned())
}

/// The ports of its host that a pod takes.
fn host_ports(pod: &Object) -> BTreeSet<i64> {
    let containers = spec_of(pod, "containers");
    let ports = containers.items().iter().flat_map(|one| one["ports"].items());
    ports.filter_map(|port| port["hostPort"].as_int()).filter(|port| *port != 0).collect()
}

/// Whether a pod wants no host that runs a pod like the other one.
fn shuns(pod: &Object, other: &Object) -> bool {
    let affinity = spec_of(pod, "affinity");
    let terms = affinity.at(&["podAntiAffinity", REQUIRED]);
    let of_hosts = terms.items().iter().filter(|term| term["topologyKey"].text() == HOSTNAME);
    let selects = |term: &Value| Selector::of(&term["labelSelector"]).matches(other.labels());
    pod.namespace() == other.namespace() && of_hosts.into_iter().any(selects)
}

/// Why two pods cannot run on one host.
pub fn clash(pod: &Object, other: &Object) -> Option<String> {
    if let Some(port) = host_ports(other).intersection(&host_ports(pod)).next() {
        return Some(format!("both take port {port} of it"));
    }
    (shuns(pod, other) || shuns(other, pod)).then(|| "they do not want each other there".to_owned())
}

/// The pods on a node that have not ended.
pub fn running<'a>(view: &'a View, node: &'a str) -> impl Iterator<Item = &'a Object> {
    view.by(PODS, "node", node).filter(|pod| !pod_facts::of(pod).phase.is_final())
}

/// Whether others have to go when there is no room for a pod.
pub fn preempts(pod: &Object) -> bool {
    spec_of(pod, "preemptionPolicy").text() != "Never"
}

/// Whether a node takes a pod beside these.
pub fn takes<'a>(node: &Object, pod: &Object, others: impl Iterator<Item = &'a Object>) -> bool {
    let (mut sums, mut count) = (asks(pod), 1000);
    for other in others {
        if clash(pod, other).is_some() {
            return false;
        }
        sums.iter_mut().zip(asks(other)).for_each(|(sum, asked)| *sum += asked);
        count += 1000;
    }
    let value = node.value();
    let room = |resource: &str| milli(value.at(&["status", "allocatable", resource]));
    refusal(pod, node).is_none()
        && count <= room("pods")
        && COUNTED.into_iter().zip(sums).all(|(resource, used)| used <= room(resource))
}

/// Whether some node takes the pod: as it is, or when those went who matter less.
pub fn is_welcome(pod: &Object, view: &View) -> bool {
    let (priority, preempts) = (facts(pod).priority, preempts(pod));
    let stays = |other: &&Object| !preempts || facts(other).priority >= priority;
    view.list(NODES, "")
        .any(|node| takes(node, pod, running(view, node.name()).filter(stays)) && is_spread(pod, node.name(), view))
}

impl Scheduler {
    /// Whether the node took this pod in the view that the binding was decided on, beside those that were there then, or
    /// that this scheduler had sent there.
    fn check_rules(&mut self, pod: &Object, node: &str, view: &View, after: &View, life: u64) -> Result<(), String> {
        let named = |why: String| format!("pod {}/{} is bound to {node}, which {why}", pod.namespace(), pod.name());
        let seen = format!("at revision {}, which that rests on", view.at());
        let found = view.one(NODES, "", node);
        if let Some(why) = found.map_or_else(|| Some("was not there".to_owned()), |node| refusal(pod, node)) {
            return Err(named(format!("{why} {seen}")));
        }
        let is_known = |other: &Object| {
            self.binders.get(other.uid()) == Some(&life)
                || view.one(PODS, other.namespace(), other.name()).is_some_and(|known| {
                    known.uid() == other.uid() && facts(known).node == node && !pod_facts::of(known).phase.is_final()
                })
        };
        for other in running(after, node).filter(|other| other.uid() != pod.uid() && is_known(other)) {
            if let Some(why) = clash(pod, other) {
                return Err(named(format!("runs {}/{}, and {why}", other.namespace(), other.name())));
            }
        }
        Ok(())
    }
}

impl Checker for Scheduler {
    fn name(&self) -> &'static str {
        "scheduler"
    }

    fn see(&mut self, seen: &Seen<'_>, past: &Past<'_>) -> Result<(), String> {
        let Seen::Commit { changes, after, author, .. } = seen else { return Ok(()) };
        for change in *changes {
            if let (None, Some(old)) = (&change.new, &change.old) {
                self.asks.remove(old.uid());
                self.binders.remove(old.uid());
            }
        }
        for Binding { pod: new, before, node } in bindings(changes) {
            let name = format!("pod {}/{}", new.namespace(), new.name());
            if !before.is_empty() {
                return Err(format!("{name} was bound to {before} and is now bound to {node}"));
            }
            let view = past.at(author.decided_on).filter(|_| author.decided_on != Revision::ZERO);
            match (after.one(NODES, "", &node), view) {
                (Some(found), _) => self.check_room(found, after)?,
                (None, None) => return Err(format!("{name} is bound to {node}, which does not exist")),
                // That it was there then is judged with the rules.
                (None, Some(_)) => {}
            }
            if let Some(view) = view {
                self.check_rules(new, &node, view, after, author.life)?;
            }
            self.binders.insert(new.uid().into(), author.life);
        }
        Ok(())
    }
}
