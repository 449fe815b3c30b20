//! The scheduler: no node beyond its room, no pod bound twice, none on a node that took no pods.

use cache::View;
use meta::{Object, Quantity, Value};

use super::{Checker, Seen};
use crate::desired::facts;
use crate::truth::Past;
use crate::user::{NODES, PODS};

const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

pub struct Scheduler;

fn milli(value: &Value) -> i64 {
    value.text().parse::<Quantity>().map_or(0, |quantity| quantity.milli())
}

/// What a pod asks for of one resource, in thousandths.
fn asks(pod: &Object, resource: &str) -> i64 {
    let value = pod.value();
    value
        .at(&["spec", "containers"])
        .items()
        .iter()
        .map(|one| milli(one.at(&["resources", "requests", resource])))
        .sum()
}

fn check_room(node: &Object, after: &View) -> Result<(), String> {
    let value = node.value();
    let residents: Vec<&Object> =
        after.by(PODS, "node", node.name()).filter(|pod| !facts(pod).phase.is_final()).collect();
    let count = residents.len() as i64 * 1000;
    let sums = ["cpu", "memory"].map(|resource| (resource, residents.iter().map(|pod| asks(pod, resource)).sum()));
    for (resource, used) in sums.into_iter().chain([("pods", count)]) {
        let room = milli(value.at(&["status", "allocatable", resource]));
        if used > room {
            return Err(format!("node {} has {room} m of {resource}, its pods ask for {used} m", node.name()));
        }
    }
    Ok(())
}

/// Whether the node took this pod in the view that the binding was decided on.
fn was_open(node: &str, pod: &Object, view: &View) -> bool {
    let value = pod.value();
    let bears = value.at(&["spec", "tolerations"]).items().iter().any(|one| one["key"].text() == UNSCHEDULABLE);
    bears || view.one(NODES, "", node).is_some_and(|node| !node.value()["spec"]["unschedulable"].is_true())
}

impl Checker for Scheduler {
    fn name(&self) -> &'static str {
        "scheduler"
    }

    fn see(&mut self, seen: &Seen<'_>, past: &Past<'_>) -> Result<(), String> {
        let Seen::Commit { changes, after, author, .. } = seen else { return Ok(()) };
        for change in *changes {
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
            check_room(found, after)?;
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
