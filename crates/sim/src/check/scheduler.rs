//! The scheduler: no node beyond its room, no pod bound twice, none on a node that took no pods.

use std::collections::BTreeMap;

use api::core::pod_facts;
use cache::View;
use meta::{Object, Quantity, Str, Value};

use super::{Checker, Seen};
use crate::desired::facts;
use crate::truth::{Past, spec_of};
use crate::user::{NODES, PODS};

const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// What is counted of a node's room, beside the number of pods.
const COUNTED: [&str; 2] = ["cpu", "memory"];

#[derive(Default)]
pub struct Scheduler {
    /// What pods that are bound ask for, by uid, in thousandths, and the generation of their spec that says so.
    asks: BTreeMap<Str, (i64, [i64; COUNTED.len()])>,
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

/// Whether the node took this pod in the view that the binding was decided on.
fn was_open(node: &str, pod: &Object, view: &View) -> bool {
    let bears = spec_of(pod, "tolerations").items().iter().any(|one| one["key"].text() == UNSCHEDULABLE);
    bears || view.one(NODES, "", node).is_some_and(|node| !node.value()["spec"]["unschedulable"].is_true())
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
            }
            let Some(new) = change.new.as_ref().filter(|new| new.resource() == PODS) else { continue };
            let node = facts(new).node;
            let before = change.old.as_ref().map(|old| facts(old).node).unwrap_or_default();
            if node == before {
                continue;
            }
            let name = format!("pod {}/{}", new.namespace(), new.name());
            if !before.is_empty() {
                return Err(format!("{name} was bound to {before} and is now bound to {node}"));
            }
            let Some(found) = after.one(NODES, "", &node) else {
                return Err(format!("{name} is bound to {node}, which does not exist"));
            };
            self.check_room(found, after)?;
            if past.at(author.decided_on).is_some_and(|view| !was_open(&node, new, view)) {
                return Err(format!(
                    "{name} is bound to {node}, which took no pods at revision {}, which that rests on",
                    author.decided_on
                ));
            }
        }
        Ok(())
    }
}
