//! Preemption: which pods of lower priority must go so that a pod fits, and on which node that hurts least.

use std::sync::Arc;

use cache::View;
use meta::{Resource, Selector, Str};

use crate::class::Class;
use crate::nodes::{Nodes, Resident};
use crate::plugins::{Mask, PLUGINS, Snapshot, Window, row};
use crate::terms::Terms;

const BUDGETS: Resource = Resource("poddisruptionbudgets.policy");
/// Nodes that would do of which the cheapest wins; then the search ends.
const CANDIDATES_MAX: usize = 100;

/// A node and who must leave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction {
    pub place: usize,
    /// Keys and uids of those who do not leave already.
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

/// Finds the least harmful eviction that lets a pod of `class` onto a node, given why each node refused it. Nodes are
/// tried from the place `turn` on, so that pods that come together do not seek the same one; the room of pods that
/// already wait for a node is left to them (`promised`).
pub fn find(
    class: &Arc<Class>,
    nodes: &mut Nodes,
    terms: &mut Terms,
    refusals: &Mask,
    turn: usize,
    promised: &dyn Fn(usize) -> Vec<(Str, Arc<Class>)>,
    view: &View,
) -> Option<Eviction> {
    if !class.preempts {
        return None;
    }
    let budgets = budgets(view);
    let turn = turn % nodes.len().max(1);
    let places: Vec<usize> = (turn..nodes.len())
        .chain(0..turn)
        .filter(|at| nodes.present[*at])
        .filter(|at| row(refusals[*at]).is_some_and(|row| row.preemptible))
        .filter(|at| nodes.residents[*at].iter().any(|resident| resident.class.priority < class.priority))
        .collect();
    let (mut best, mut found): (Option<Candidate>, usize) = (None, 0);
    for place in places {
        let promised = promised(place);
        // They count as if they were there already.
        for (key, other) in &promised {
            nodes.admit(place, Resident::to_come(key, other));
            terms.count(place, &Resident::to_come(key, other), 1);
        }
        let candidate = victims_on(class, nodes, terms, place, &budgets);
        for (key, other) in &promised {
            nodes.dismiss(place, Resident::to_come(key, other).uid.as_str());
            terms.count(place, &Resident::to_come(key, other), -1);
        }
        let Some(candidate) = candidate else { continue };
        found += 1;
        if best.as_ref().is_none_or(|best| cost(&candidate) < cost(best)) {
            best = Some(candidate);
        }
        if found == CANDIDATES_MAX {
            break;
        }
    }
    let best = best?;
    let staying = best.victims.into_iter().filter(|victim| !victim.leaving);
    let victims = staying.map(|victim| (victim.key, victim.uid)).collect();
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
    let (mut reason, snapshot) = (0, Snapshot { nodes, terms });
    PLUGINS.iter().all(|plugin| {
        plugin.filter(class, &snapshot, &mut Window { from: place, mask: std::slice::from_mut(&mut reason) });
        reason == 0
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
        terms.count(place, resident, -1);
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
            terms.count(place, &resident, 1);
            if !fits(class, nodes, terms, place) {
                nodes.dismiss(place, &resident.uid);
                terms.count(place, &resident, -1);
                violations += usize::from(breaks);
                victims.push(resident);
            }
        }
        for victim in &victims {
            nodes.admit(place, victim.clone());
            terms.count(place, victim, 1);
        }
    } else {
        for resident in &lower {
            nodes.admit(place, resident.clone());
            terms.count(place, resident, 1);
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
