//! Cordoned nodes take no pods but those that tolerate it.

use super::{Plugin, Snapshot, UNSCHEDULABLE, Window};
use crate::class::{Class, Taint};

pub struct NodeUnschedulable;

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn filter(&self, class: &Class, snapshot: &Snapshot<'_>, window: &mut Window<'_>) {
        let taint =
            Taint { key: "node.kubernetes.io/unschedulable".into(), value: "".into(), effect: "NoSchedule".into() };
        if class.tolerates(&taint) {
            return;
        }
        for (reason, unschedulable) in window.with(&snapshot.nodes.unschedulable) {
            if *reason == 0 && *unschedulable {
                *reason = UNSCHEDULABLE;
            }
        }
    }
}
