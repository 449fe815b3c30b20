//! Enough cpu, memory, ephemeral storage, extended resources, and room for one more pod.

use super::{Mask, NO_CPU, NO_EPHEMERAL, NO_EXTENDED, NO_MEMORY, Plugin, Reason, Snapshot, TOO_MANY_PODS};
use crate::class::Class;

pub struct NodeResourcesFit;

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn filter(&self, class: &Class, snapshot: &Snapshot<'_>, mask: &mut Mask) {
        let nodes = snapshot.nodes;
        let asked = &class.requests;
        column(mask, &nodes.pods, &nodes.pods_used, 1, TOO_MANY_PODS);
        if asked.cpu > 0 {
            column(mask, &nodes.cpu, &nodes.cpu_used, asked.cpu, NO_CPU);
        }
        if asked.memory > 0 {
            column(mask, &nodes.memory, &nodes.memory_used, asked.memory, NO_MEMORY);
        }
        if asked.ephemeral > 0 {
            column(mask, &nodes.ephemeral, &nodes.ephemeral_used, asked.ephemeral, NO_EPHEMERAL);
        }
        for (name, amount) in &asked.others {
            for (at, reason) in mask.iter_mut().enumerate() {
                let has = nodes.others[at].get(name).copied().unwrap_or(0);
                let used = nodes.others_used[at].get(name).copied().unwrap_or(0);
                if *reason == 0 && used + amount > has {
                    *reason = NO_EXTENDED;
                }
            }
        }
    }
}

/// One pass over three plain columns, without a branch that depends on the data.
fn column(mask: &mut Mask, has: &[i64], used: &[i64], asked: i64, why: Reason) {
    for ((reason, has), used) in mask.iter_mut().zip(has).zip(used) {
        let lacks = Reason::from(used + asked > *has);
        let free = Reason::from(*reason == 0);
        *reason += lacks * free * why;
    }
}
