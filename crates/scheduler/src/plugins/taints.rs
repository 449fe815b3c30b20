//! Taints that keep pods away, unless they tolerate them.

use super::{Mask, Plugin, Snapshot, TAINTED};
use crate::class::Class;

pub struct TaintToleration;

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn is_static(&self) -> bool {
        true
    }

    fn filter(&self, class: &Class, snapshot: &Snapshot<'_>, mask: &mut Mask) {
        for (reason, taints) in mask.iter_mut().zip(&snapshot.nodes.taints) {
            if *reason == 0 && taints.iter().any(|taint| taint.effect != "PreferNoSchedule" && !class.tolerates(taint))
            {
                *reason = TAINTED;
            }
        }
    }
}
