//! Topology spread constraints that must hold: no domain may have `maxSkew` more matching pods that stay
//! than the emptiest.

use super::{Plugin, SPREAD, SPREAD_LABEL, Snapshot, Window, node_affinity};
use crate::class::{Class, Spread};
use crate::terms::NOWHERE;

pub struct PodTopologySpread;

/// Whether a node's pods count for a constraint of this class.
pub fn counts(class: &Class, constraint: &Spread, snapshot: &Snapshot<'_>, at: usize) -> bool {
    let nodes = snapshot.nodes;
    nodes.present[at]
        && (!constraint.honors_affinity || node_affinity::admits(class, &nodes.names[at], &nodes.labels[at]))
        && (!constraint.honors_taints
            || nodes.taints[at].iter().all(|taint| taint.effect == "PreferNoSchedule" || class.tolerates(taint)))
        && class
            .spread
            .iter()
            .filter(|other| other.hard == constraint.hard)
            .all(|other| snapshot.terms.topology_of(other.term).domain[at] != NOWHERE)
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn looks_around(&self) -> bool {
        true
    }

    fn concerns(&self, class: &Class, _: &Snapshot<'_>) -> bool {
        class.spread.iter().any(|constraint| constraint.hard)
    }

    fn filter(&self, class: &Class, snapshot: &Snapshot<'_>, window: &mut Window<'_>) {
        for constraint in class.spread.iter().filter(|constraint| constraint.hard) {
            let topology = snapshot.terms.topology_of(constraint.term);
            let term = snapshot.terms.get(constraint.term);
            // Without selectors every node counts that has the label: those sums are kept.
            let plain = class.node_selector.is_empty() && class.node_required.is_none() && !constraint.honors_taints;
            let single = class.spread.iter().filter(|other| other.hard).count() == 1;
            let (sums, domains, least) = match plain && single {
                true => {
                    let sums = term.staying();
                    let (domains, least) = (sums.len() as i64, sums.iter().min().copied());
                    (sums, domains, least)
                }
                false => {
                    let eligible: Vec<bool> =
                        (0..snapshot.nodes.len()).map(|at| counts(class, constraint, snapshot, at)).collect();
                    let sums = topology.staying(term, |at| eligible[at]);
                    let mut exists = vec![false; sums.len()];
                    for (at, domain) in topology.domain.iter().enumerate() {
                        if *domain != NOWHERE && eligible[at] {
                            exists[*domain as usize] = true;
                        }
                    }
                    let domains = exists.iter().filter(|exists| **exists).count() as i64;
                    let least = sums.iter().zip(&exists).filter(|(_, exists)| **exists).map(|(sum, _)| *sum).min();
                    (sums, domains, least)
                }
            };
            let least = if domains < constraint.min_domains { 0 } else { least.unwrap_or(0) };
            let own = i64::from(constraint.counts_itself);
            for (at, reason) in window.free() {
                match topology.domain[at] {
                    NOWHERE => *reason = SPREAD_LABEL,
                    domain => {
                        if sums[domain as usize] + own - least > constraint.max_skew {
                            *reason = SPREAD;
                        }
                    }
                }
            }
        }
    }
}
