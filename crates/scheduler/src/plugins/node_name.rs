//! A pod that names its node fits no other.

use super::{Mask, OTHER_NODE, Plugin, Snapshot};
use crate::class::Class;

pub struct NodeName;

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn is_static(&self) -> bool {
        true
    }

    fn filter(&self, class: &Class, snapshot: &Snapshot<'_>, mask: &mut Mask) {
        if class.node_name.is_empty() {
            return;
        }
        for (reason, name) in mask.iter_mut().zip(&snapshot.nodes.names) {
            if *reason == 0 && *name != class.node_name {
                *reason = OTHER_NODE;
            }
        }
    }
}
