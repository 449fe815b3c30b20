//! A pod that names its node fits no other.

use super::{OTHER_NODE, Plugin, Snapshot, Window};
use crate::class::Class;

pub struct NodeName;

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn filter(&self, class: &Class, snapshot: &Snapshot<'_>, window: &mut Window<'_>) {
        if class.node_name.is_empty() {
            return;
        }
        for (reason, name) in window.with(&snapshot.nodes.names) {
            if *reason == 0 && *name != class.node_name {
                *reason = OTHER_NODE;
            }
        }
    }
}
