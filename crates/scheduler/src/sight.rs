//! What pods of one class see of the nodes, kept current by what changed: as much of the checks and the score as rests on
//! the class, one node and the pods on that node. It says the same as a look at all nodes.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use crate::class::Class;
use crate::nodes::Nodes;
use crate::plugins::{GONE, Mask, PLUGINS, Snapshot, Window};
use crate::score;
use crate::terms::Terms;

/// Sights that are kept; each takes five bytes a node.
const SIGHTS_MAX: usize = 128;
/// Numbers compared at a time.
const LANES: usize = 16;

#[derive(Clone)]
pub struct Sight {
    class: Weak<Class>,
    /// How many changes of the nodes are in it.
    changes: u64,
    /// Why a node refuses the class; 0 where it does not.
    pub refusals: Mask,
    /// How good a node is that does not refuse it; the others are [`score::REFUSED`].
    pub scores: Vec<f32>,
}

/// The sights of the classes that were placed lately.
#[derive(Default)]
pub struct Sights {
    /// By the address of the class.
    of: BTreeMap<usize, Sight>,
}

impl Sights {
    /// What `class` sees now.
    pub fn of(&mut self, class: &Arc<Class>, nodes: &Nodes, terms: &Terms) -> &Sight {
        let identity = Arc::as_ptr(class) as usize;
        if !self.of.contains_key(&identity) && self.of.len() >= SIGHTS_MAX {
            self.of.retain(|_, sight| sight.class.strong_count() > 0);
            if self.of.len() >= SIGHTS_MAX {
                self.of.clear();
            }
        }
        let sight = self.of.entry(identity).or_insert_with(|| Sight::nothing(class));
        // Another class may have lived at this address.
        if !sight.class.upgrade().is_some_and(|of| Arc::ptr_eq(&of, class)) {
            *sight = Sight::nothing(class);
        }
        sight.look(class, &Snapshot { nodes, terms });
        sight
    }
}

impl Sight {
    fn nothing(class: &Arc<Class>) -> Sight {
        Sight { class: Arc::downgrade(class), changes: 0, refusals: Mask::new(), scores: Vec::new() }
    }

    fn look(&mut self, class: &Class, snapshot: &Snapshot<'_>) {
        let nodes = snapshot.nodes;
        match nodes.touched_since(self.changes) {
            Some(places) if self.refusals.len() == nodes.len() => {
                for at in places {
                    self.look_at(*at..*at + 1, class, snapshot);
                }
            }
            _ => {
                self.refusals.resize(nodes.len(), 0);
                self.scores.resize(nodes.len(), 0.0);
                self.look_at(0..nodes.len(), class, snapshot);
            }
        }
        self.changes = nodes.changes();
    }

    fn look_at(&mut self, places: std::ops::Range<usize>, class: &Class, snapshot: &Snapshot<'_>) {
        let nodes = snapshot.nodes;
        let refusals = &mut self.refusals[places.clone()];
        for (refusal, present) in refusals.iter_mut().zip(&nodes.present[places.clone()]) {
            *refusal = if *present { 0 } else { GONE };
        }
        for plugin in PLUGINS.iter().filter(|plugin| !plugin.looks_around()) {
            plugin.filter(class, snapshot, &mut Window { from: places.start, mask: refusals });
        }
        let scores = &mut self.scores[places.clone()];
        score::own(class, nodes, places.start, scores);
        for (score, refusal) in scores.iter_mut().zip(refusals) {
            *score = if *refusal == 0 { *score } else { score::REFUSED };
        }
    }
}

/// The place of the highest score; of equals the first from `start` on, around the end. `None` where all are refused.
pub fn best(scores: &[f32], start: usize) -> Option<usize> {
    let (parts, rest) = scores.as_chunks::<LANES>();
    let mut highest = [score::REFUSED; LANES];
    for part in parts {
        for (highest, score) in highest.iter_mut().zip(part) {
            *highest = if *score > *highest { *score } else { *highest };
        }
    }
    let highest = highest.iter().chain(rest).fold(score::REFUSED, |highest, score| score.max(highest));
    if highest == score::REFUSED {
        return None;
    }
    let (before, after) = scores.split_at(start.min(scores.len()));
    let place = after.iter().position(|score| *score == highest).map(|at| before.len() + at);
    place.or_else(|| before.iter().position(|score| *score == highest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_the_first_of_the_highest_from_the_start_on() {
        let mut scores = vec![1.0; 40];
        assert_eq!((best(&scores, 0), best(&scores, 39), best(&scores, 40)), (Some(0), Some(39), Some(0)));
        scores[17] = 2.0;
        assert_eq!((best(&scores, 0), best(&scores, 18)), (Some(17), Some(17)));
        scores[38] = 2.0;
        assert_eq!((best(&scores, 18), best(&scores, 39)), (Some(38), Some(17)));
        scores.fill(score::REFUSED);
        assert_eq!((best(&scores, 3), best(&[], 0)), (None, None));
    }
}
