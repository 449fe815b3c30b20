//! Preemption: which pods of lower priority must go so that a pod fits, and on which node that hurts least.

use std::collections::BTreeMap;
use std::sync::Arc;

use cache::View;
use meta::{Object, Resource, Selector, Str};

use crate::class::Class;
use crate::nodes::{Nodes, Resident};
use crate::plugins::{Mask, PLUGINS, Snapshot, Window, row};
use crate::terms::Terms;

const BUDGETS: Resource = Resource("poddisruptionbudgets.policy");
/// Nodes that would do of which the cheapest wins; then the search ends.
const CANDIDATES_MAX: usize = 100;

/// Who has to go by earlier decisions and is not gone yet, by uid.
pub type Doomed = BTreeMap<Str, Arc<Class>>;

/// What was decided before and is not done yet.
pub struct Earlier<'a> {
    /// Who waits for the room of a place.
    pub promised: &'a dyn Fn(usize) -> Vec<(Str, Arc<Class>)>,
    pub doomed: &'a Doomed,
}

/// A node and who must leave it.
#[derive(Clone, Debug)]
pub struct Eviction {
    pub place: usize,
    /// Those who do not leave already.
    pub victims: Vec<Resident>,
}

struct Candidate {
    place: usize,
    victims: Vec<Resident>,
    budget_violations: usize,
}

/// The budgets of the cluster, and who counts no more in them.
struct Budgets<'a> {
    all: Vec<Budget>,
    doomed: &'a Doomed,
}

struct Budget {
    namespace: Str,
    selector: Selector,
    /// Disruptions that are left.
    allowed: i64,
}

impl Budget {
    fn selects(&self, class: &Class) -> bool {
        self.namespace == class.namespace && self.selector.matches(&class.labels)
    }
}

impl Budgets<'_> {
    /// What is left of each budget: its status may not know yet of those who have to go.
    fn of<'a>(view: &View, doomed: &'a Doomed) -> Budgets<'a> {
        let read = |budget: &Object| {
            let value = budget.value();
            let allowed = value.at(&["status", "disruptionsAllowed"]).as_int().unwrap_or(0);
            let selector = Selector::of(value.at(&["spec", "selector"]));
            let mut budget = Budget { namespace: budget.namespace().into(), selector, allowed };
            let taken = doomed.values().filter(|class| budget.selects(class)).count();
            budget.allowed -= i64::try_from(taken).unwrap_or(i64::MAX);
            budget
        };
        Budgets { all: view.list(BUDGETS, "").map(read).collect(), doomed }
    }

    /// Whether the loss of each of these breaks a budget when those before it are lost, too.
    fn broken_by(&self, residents: &[Resident]) -> Vec<bool> {
        let mut left: Vec<i64> = self.all.iter().map(|budget| budget.allowed).collect();
        let breaks = |resident: &Resident| {
            let mut breaks = false;
            // Who goes anyway is no further loss.
            if resident.leaving || self.doomed.contains_key(&resident.uid) {
                return false;
            }
            for (budget, left) in self.all.iter().zip(&mut left) {
                if budget.selects(&resident.class) {
                    *left -= 1;
                    breaks |= *left < 0;
                }
            }
            breaks
        };
        residents.iter().map(breaks).collect()
    }
}

/// Finds the least harmful eviction that lets a pod of `class` onto a node, given why each node refused it. Nodes are
/// tried from the place `turn` on, so that pods that come together do not seek the same one; the room of pods that
/// already wait for a node is left to them, and who goes for others is known (`earlier`).
pub fn find(
    class: &Arc<Class>,
    nodes: &mut Nodes,
    terms: &mut Terms,
    refusals: &Mask,
    turn: usize,
    earlier: &Earlier<'_>,
    view: &View,
) -> Option<Eviction> {
    if !class.preempts {
        return None;
    }
    let budgets = Budgets::of(view, earlier.doomed);
    let turn = turn % nodes.len().max(1);
    let places: Vec<usize> = (turn..nodes.len())
        .chain(0..turn)
        .filter(|at| nodes.present[*at])
        .filter(|at| row(refusals[*at]).is_some_and(|row| row.preemptible))
        .filter(|at| nodes.residents[*at].iter().any(|resident| resident.class.priority < class.priority))
        .collect();
    let (mut best, mut found): (Option<Candidate>, usize) = (None, 0);
    for place in places {
        let promised = (earlier.promised)(place);
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
    let victims = best.victims.into_iter().filter(|victim| !victim.leaving).collect();
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
    budgets: &Budgets<'_>,
) -> Option<Candidate> {
    let mut lower: Vec<Resident> =
        nodes.residents[place].iter().filter(|resident| resident.class.priority < class.priority).cloned().collect();
    lower.sort_by_key(|resident| (-resident.class.priority, resident.started));
    for resident in &lower {
        nodes.dismiss(place, &resident.uid);
        terms.count(place, resident, -1);
    }
    let possible = fits(class, nodes, terms, place);
    let mut victims = Vec::new();
    if possible {
        let mut order: Vec<(bool, &Resident)> = budgets.broken_by(&lower).into_iter().zip(&lower).collect();
        // Those whose loss breaks a budget are kept first, then the higher and older ones.
        order.sort_by_key(|(breaks, _)| !breaks);
        for (_, resident) in order {
            nodes.admit(place, resident.clone());
            terms.count(place, resident, 1);
            if !fits(class, nodes, terms, place) {
                nodes.dismiss(place, &resident.uid);
                terms.count(place, resident, -1);
                victims.push(resident.clone());
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
    // Of those who might have gone, others stay now: what that breaks is counted anew.
    let budget_violations = budgets.broken_by(&victims).into_iter().filter(|breaks| *breaks).count();
    (possible && !victims.is_empty()).then_some(Candidate { place, victims, budget_violations })
}
