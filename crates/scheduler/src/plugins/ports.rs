//! Host ports: one pod each per node, protocol and address.

use super::{NO_PORT, Plugin, Snapshot, Window};
use crate::class::Class;

pub struct NodePorts;

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn filter(&self, class: &Class, snapshot: &Snapshot<'_>, window: &mut Window<'_>) {
        if class.ports.is_empty() {
            return;
        }
        for (reason, taken) in window.with(&snapshot.nodes.ports) {
            if *reason == 0 && class.ports.iter().any(|port| taken.iter().any(|other| port.clashes(other))) {
                *reason = NO_PORT;
            }
        }
    }
}
