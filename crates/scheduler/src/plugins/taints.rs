//! Taints that keep pods away, unless they tolerate them.

use super::{Plugin, Snapshot, TAINTED, Window};
use crate::class::Class;

pub struct TaintToleration;

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn filter(&self, class: &Class, snapshot: &Snapshot<'_>, window: &mut Window<'_>) {
        for (reason, taints) in window.with(&snapshot.nodes.taints) {
            if *reason == 0 && taints.iter().any(|taint| taint.effect != "PreferNoSchedule" && !class.tolerates(taint))
            {
                *reason = TAINTED;
            }
        }
    }
}
