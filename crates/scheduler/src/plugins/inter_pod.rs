//! Required affinity and anti-affinity between pods, in both directions.

use super::{AFFINITY, ANTI_AFFINITY, EXISTING_ANTI_AFFINITY, Plugin, Snapshot, Window};
use crate::class::Class;
use crate::terms::{NOWHERE, TermId};

pub struct InterPodAffinity;

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn looks_around(&self) -> bool {
        true
    }

    fn concerns(&self, class: &Class, snapshot: &Snapshot<'_>) -> bool {
        let terms = snapshot.terms;
        !class.affinity.is_empty()
            || !class.anti_affinity.is_empty()
            || terms.iter().any(|(id, term)| term.holders.total > 0 && terms.looks_for(id, class))
    }

    fn filter(&self, class: &Class, snapshot: &Snapshot<'_>, window: &mut Window<'_>) {
        let terms = snapshot.terms;
        require(class, snapshot, window);
        for id in &class.anti_affinity {
            let topology = terms.topology_of(*id);
            let sums = &terms.get(*id).matching.of_domain;
            for (reason, domain) in window.with(&topology.domain) {
                if *reason == 0 && *domain != NOWHERE && sums[*domain as usize] > 0 {
                    *reason = ANTI_AFFINITY;
                }
            }
        }
        for (id, term) in terms.iter() {
            if term.holders.total == 0 || !terms.looks_for(id, class) {
                continue;
            }
            let topology = terms.topology_of(id);
            let sums = &term.holders.of_domain;
            for (reason, domain) in window.with(&topology.domain) {
                if *reason == 0 && *domain != NOWHERE && sums[*domain as usize] > 0 {
                    *reason = EXISTING_ANTI_AFFINITY;
                }
            }
        }
    }
}

/// Every required term must be met in the node's domain; the first pod of a group that seeks itself may begin anywhere.
fn require(class: &Class, snapshot: &Snapshot<'_>, window: &mut Window<'_>) {
    if class.affinity.is_empty() {
        return;
    }
    let terms = snapshot.terms;
    let sums: Vec<(TermId, &[i64])> =
        class.affinity.iter().map(|id| (*id, terms.get(*id).matching.of_domain.as_slice())).collect();
    let nobody = sums.iter().all(|(_, sums)| sums.iter().all(|sum| *sum == 0));
    let may_begin = nobody && class.affinity.iter().all(|id| terms.looks_for(*id, class));
    for (id, sums) in &sums {
        for (reason, domain) in window.with(&terms.topology_of(*id).domain) {
            if *reason == 0 && (*domain == NOWHERE || (!may_begin && sums[*domain as usize] == 0)) {
                *reason = AFFINITY;
            }
        }
    }
}
