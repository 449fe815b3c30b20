//! Node selectors and required node affinity.

use meta::Labels;

use super::{NO_AFFINITY, Plugin, Snapshot, Window};
use crate::class::Class;

pub struct NodeAffinity;

/// Whether a node is one that the pod asks for.
pub fn admits(class: &Class, name: &str, labels: &Labels) -> bool {
    class.node_selector.iter().all(|requirement| requirement.holds(labels.get(&requirement.key)))
        && class.node_required.as_ref().is_none_or(|terms| terms.iter().any(|term| term.holds(name, labels)))
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn filter(&self, class: &Class, snapshot: &Snapshot<'_>, window: &mut Window<'_>) {
        if class.node_selector.is_empty() && class.node_required.is_none() {
            return;
        }
        let nodes = snapshot.nodes;
        for (at, reason) in window.free() {
            if !admits(class, &nodes.names[at], &nodes.labels[at]) {
                *reason = NO_AFFINITY;
            }
        }
    }
}
