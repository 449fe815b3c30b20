//! Enough cpu, memory, ephemeral storage, extended resources, and room for one more pod.

use std::collections::BTreeMap;

use meta::Str;

use super::{
    NO_CPU, NO_EPHEMERAL, NO_EXTENDED, NO_EXTENDED_LAST, NO_MEMORY, Plugin, Reason, Snapshot, TOO_MANY_PODS, Window,
};
use crate::class::{Amounts, Class};
use crate::nodes::Nodes;

pub struct NodeResourcesFit;

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn filter(&self, class: &Class, snapshot: &Snapshot<'_>, window: &mut Window<'_>) {
        let nodes = snapshot.nodes;
        let asked = &class.requests;
        column(window, &nodes.pods, &nodes.pods_used, 1, TOO_MANY_PODS);
        if asked.cpu > 0 {
            column(window, &nodes.cpu, &nodes.cpu_used, asked.cpu, NO_CPU);
        }
        if asked.memory > 0 {
            column(window, &nodes.memory, &nodes.memory_used, asked.memory, NO_MEMORY);
        }
        if asked.ephemeral > 0 {
            column(window, &nodes.ephemeral, &nodes.ephemeral_used, asked.ephemeral, NO_EPHEMERAL);
        }
        for ((name, amount), why) in asked.others.iter().zip(other_reasons()) {
            for (at, reason) in window.free() {
                let has = nodes.others[at].get(name).copied().unwrap_or(0);
                let used = nodes.others_used[at].get(name).copied().unwrap_or(0);
                if used + amount > has {
                    *reason = why;
                }
            }
        }
    }
}

/// Why one node lacks room for a pod of `class` when `promised` (of so many pods) is taken by others, if it does.
pub fn lacks(class: &Class, nodes: &Nodes, at: usize, promised: &Amounts, pods: i64) -> Option<Reason> {
    let asked = &class.requests;
    let over = |has: i64, used: i64, promised: i64, asked: i64| asked > 0 && used + promised + asked > has;
    let plain = [
        (over(nodes.pods[at], nodes.pods_used[at], pods, 1), TOO_MANY_PODS),
        (over(nodes.cpu[at], nodes.cpu_used[at], promised.cpu, asked.cpu), NO_CPU),
        (over(nodes.memory[at], nodes.memory_used[at], promised.memory, asked.memory), NO_MEMORY),
        (over(nodes.ephemeral[at], nodes.ephemeral_used[at], promised.ephemeral, asked.ephemeral), NO_EPHEMERAL),
    ];
    let of = |amounts: &BTreeMap<Str, i64>, name: &str| amounts.get(name).copied().unwrap_or(0);
    let mut others = asked.others.iter().zip(other_reasons());
    plain.into_iter().find_map(|(lacks, why)| lacks.then_some(why)).or_else(|| {
        others.find_map(|((name, amount), why)| {
            let (has, used) = (of(&nodes.others[at], name), of(&nodes.others_used[at], name));
            over(has, used, of(&promised.others, name), *amount).then_some(why)
        })
    })
}

/// A reason for each other resource of a class, in the order of their names.
fn other_reasons() -> impl Iterator<Item = Reason> {
    (NO_EXTENDED..=NO_EXTENDED_LAST).chain(std::iter::repeat(NO_EXTENDED_LAST))
}

/// One pass over three plain columns, without a branch that depends on the data.
fn column(window: &mut Window<'_>, has: &[i64], used: &[i64], asked: i64, why: Reason) {
    let used = &used[window.from.min(used.len())..];
    for ((reason, has), used) in window.with(has).zip(used) {
        let lacks = Reason::from(used + asked > *has);
        let free = Reason::from(*reason == 0);
        *reason += lacks * free * why;
    }
}
