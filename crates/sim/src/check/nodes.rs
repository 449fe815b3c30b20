//! Nodes: whoever renews is not doubted, whatever anybody's clock shows; and a node whose object was deleted comes anew only
//! when nothing runs there any more that was begun for that.

use std::collections::{BTreeMap, BTreeSet};

use meta::{Object, Resource, Str};

use super::{Checker, Seen};
use crate::truth::Past;
use crate::user::NODES;

const LEASES: Resource = Resource("leases.coordination.k8s.io");
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// A node is silent after this long without a renewal.
const GRACE_MS: u64 = 40_000;
/// A clock that drifts, or jumps by no more than this, counts so much less.
const DRIFT_MS: u64 = 12_000;

#[derive(Default)]
pub struct Nodes {
    /// What runs on each node: pod and container.
    running: BTreeMap<Str, BTreeSet<(Str, Str)>>,
}

fn is_doubted(node: &Object) -> bool {
    let value = node.value();
    let conditions = value.at(&["status", "conditions"]).items();
    conditions.iter().any(|one| one["type"].text() == "Ready" && one["status"].text() == "Unknown")
}

impl Checker for Nodes {
    fn name(&self) -> &'static str {
        "nodes"
    }

    fn see(&mut self, seen: &Seen<'_>, past: &Past<'_>) -> Result<(), String> {
        if let Seen::Container { node, uid, container, runs, .. } = seen {
            let (all, one) = (self.running.entry((*node).into()).or_default(), ((*uid).into(), (*container).into()));
            if *runs {
                all.insert(one)
            } else {
                all.remove(&one)
            };
        }
        let Seen::Commit { changes, author, .. } = seen else { return Ok(()) };
        for change in *changes {
            if let (Some(new), None) = (&change.new, &change.old)
                && new.resource() == NODES
                && let Some((pod, container)) = self.running.get(new.name()).and_then(BTreeSet::first)
            {
                let name = new.name();
                return Err(format!("node {name} comes anew and still runs {container} of pod {pod}"));
            }
            let (Some(new), Some(old)) = (&change.new, &change.old) else { continue };
            let may = new.resource() == NODES && author.who.ends_with(":node-controller");
            if !may || !is_doubted(new) || is_doubted(old) {
                continue;
            }
            let Some(view) = past.at(author.decided_on) else { continue };
            let lease = view.one(LEASES, LEASE_NAMESPACE, new.name());
            let Some(renewed) = lease.and_then(|lease| past.time_of(lease.revision())) else { continue };
            let silent_ms = past.now.ms_since(renewed);
            if silent_ms + DRIFT_MS < GRACE_MS {
                return Err(format!("node {} is doubted {silent_ms} ms after it renewed its lease", new.name()));
            }
        }
        Ok(())
    }
}
