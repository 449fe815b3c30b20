//! Preemption: which pods of lower priority must go so that a pod fits, and on which node that hurts least.

use std::sync::Arc;

use cache::View;
use meta::{Resource, Selector, Str};

use crate::class::Class;
use crate::nodes::{Nodes, Resident};
use crate::plugins::{Mask, PLUGINS, Snapshot, row};
use crate::terms::Terms;

const BUDGETS: Resource = Resource("poddisruptionbudgets.policy");
/// Nodes that are tried; the cheapest of them wins.
const CANDIDATES_MAX: usize = 100;

/// A node and who must leave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction {
    pub place: usize,
    /// Keys and uids.
    pub victims: Vec<(Str, Str)>,
}

struct Candidate {
    place: usize,
    victims: Vec<Resident>,
    budget_violations: usize,
}

/// The budgets of the cluster: selector, namespace, disruptions that are left.
fn budgets(view: &View) -> Vec<(Str, Selector, i64)> {
    view.list(BUDGETS, "")
        .map(|budget| {
            let value = budget.value();
            let allowed = value.at(&["status", "disruptionsAllowed"]).as_int().unwrap_or(0);
            (budget.namespace().into(), Selector::of(value.at(&["spec", "selector"])), allowed)
        })
        .collect()
}

/// Finds the least harmful eviction that lets a pod of `class` onto a node, given why each node refused it.
pub fn find(
    class: &Arc<Class>,
    nodes: &mut Nodes,
    terms: &mut Terms,
    refusals: &Mask,
    view: &View,
) -> Option<Eviction> {
    if !class.preempts {
        return None;
    }
    let budgets = budgets(view);
    let places: Vec<usize> = (0..nodes.len())
        .filter(|at| nodes.present[*at])
        .filter(|at| row(refusals[*at]).is_some_and(|row| row.preemptible))
        .filter(|at| nodes.residents[*at].iter().any(|resident| resident.class.priority < class.priority))
        .take(CANDIDATES_MAX)
        .collect();
    let mut best: Option<Candidate> = None;
    for place in places {
        let Some(candidate) = victims_on(class, nodes, terms, place, &budgets) else { continue };
        if best.as_ref().is_none_or(|best| cost(&candidate) < cost(best)) {
            best = Some(candidate);
        }
    }
    let best = best?;
    let victims = best.victims.into_iter().map(|victim| (victim.key, victim.uid)).collect();
    Some(Eviction { place: best.place, victims })
}

/// Fewest broken budgets, lowest highest priority, lowest sum of priorities, fewest pods, youngest eldest.
fn cost(candidate: &Candidate) -> (usize, i64, i64, usize, i64) {
    let priorities = || candidate.victims.iter().map(|victim| victim.class.priority);
    let highest = priorities().max().unwrap_or(i64::MIN);
    let sum = priorities().map(|priority| priority + (1 << 31)).sum();
    let eldest =
        candidate.victims.iter().filter(|victim| victim.class.priority == highest).map(|victim| victim.started).min();
    (candidate.budget_violations, highest, sum, candidate.victims.len(), -eldest.unwrap_or(0))
}

fn fits(class: &Class, nodes: &Nodes, terms: &Terms, place: usize) -> bool {
    // All others are masked out, so the plugins look at this node alone where they look at nodes one by one.
    let mut mask: Mask = vec![crate::plugins::GONE; nodes.len()];
    mask[place] = 0;
    let snapshot = Snapshot { nodes, terms };
    PLUGINS.iter().all(|plugin| {
        plugin.filter(class, &snapshot, &mut mask);
        mask[place] == 0
    })
}

/// Takes all lower pods away, and if that helps puts back as many as fit, the important ones first.
fn victims_on(
    class: &Arc<Class>,
    nodes: &mut Nodes,
    terms: &mut Terms,
    place: usize,
    budgets: &[(Str, Selector, i64)],
) -> Option<Candidate> {
    let lower: Vec<Resident> =
        nodes.residents[place].iter().filter(|resident| resident.class.priority < class.priority).cloned().collect();
    for resident in &lower {
        nodes.dismiss(place, &resident.uid);
        terms.count(place, &resident.class, -1);
    }
    let possible = fits(class, nodes, terms, place);
    let mut victims = Vec::new();
    let mut violations = 0;
    if possible {
        let mut left: Vec<i64> = budgets.iter().map(|(_, _, allowed)| *allowed).collect();
        let mut order: Vec<(bool, Resident)> =
            lower.iter().map(|resident| (breaks_budget(resident, budgets, &mut left), resident.clone())).collect();
        // Those whose loss breaks a budget are kept first, then the higher and older ones.
        order.sort_by_key(|(breaks, resident)| (!breaks, -resident.class.priority, resident.started));
        for (breaks, resident) in order {
            nodes.admit(place, resident.clone());
            terms.count(place, &resident.class, 1);
            if !fits(class, nodes, terms, place) {
                nodes.dismiss(place, &resident.uid);
                terms.count(place, &resident.class, -1);
                violations += usize::from(breaks);
                victims.push(resident);
            }
        }
        for victim in &victims {
            nodes.admit(place, victim.clone());
            terms.count(place, &victim.class, 1);
        }
    } else {
        for resident in &lower {
            nodes.admit(place, resident.clone());
            terms.count(place, &resident.class, 1);
        }
    }
    (possible && !victims.is_empty()).then_some(Candidate { place, victims, budget_violations: violations })
}

fn breaks_budget(resident: &Resident, budgets: &[(Str, Selector, i64)], left: &mut [i64]) -> bool {
    let mut breaks = false;
    for ((namespace, selector, _), left) in budgets.iter().zip(left) {
        if *namespace == resident.class.namespace && selector.matches(&resident.class.labels) {
            *left -= 1;
            breaks |= *left < 0;
        }
    }
    breaks
}
