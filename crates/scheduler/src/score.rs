//! How good a node is for a pod, among those that passed. The scores and weights are upstream's defaults: least
//! allocated 1, balanced 1, image locality 1, preferred node affinity 2, spread 2, preferred pod affinity 2, soft
//! taints 3; each from 0 to 100.

use crate::class::Class;
use crate::nodes::Nodes;
use crate::plugins::{Mask, Snapshot};
use crate::terms::{NOWHERE, TermId};

const FULL: f32 = 100.0;
/// Images smaller than this do not count, larger than the upper bound count as the bound, per container.
const IMAGE_MIN_BYTES: f32 = 23.0 * 1024.0 * 1024.0;
const IMAGE_MAX_BYTES: f32 = 1000.0 * 1024.0 * 1024.0;

/// No score is lower: the node is no choice.
pub const REFUSED: f32 = f32::NEG_INFINITY;

/// A part of the score that rests on other nodes, or on pods elsewhere.
struct Part {
    /// Whether it has anything to say of pods of this class now.
    concerns: fn(&Class, &Snapshot<'_>) -> bool,
    /// Adds to the totals of the nodes that the mask lets pass; what it adds to others has no meaning.
    add: fn(&Class, &Snapshot<'_>, &Mask, &mut [f32]),
}

const PARTS: &[Part] = &[
    Part { concerns: |_, snapshot| snapshot.nodes.softly_tainted > 0, add: soft_taints },
    Part { concerns: |class, _| !class.node_preferred.is_empty(), add: node_preferred },
    Part { concerns: |class, _| class.spread.iter().any(|constraint| !constraint.hard), add: spread },
    Part { concerns: leans, add: inter_pod },
    Part {
        concerns: |class, snapshot| class.images.iter().any(|image| snapshot.nodes.having.contains_key(image)),
        add: images,
    },
];

/// Adds to the nodes' own scores what rests on other nodes and on pods elsewhere.
pub fn around(class: &Class, snapshot: &Snapshot<'_>, mask: &Mask, total: &mut [f32]) {
    for part in PARTS.iter().filter(|part| (part.concerns)(class, snapshot)) {
        (part.add)(class, snapshot, mask, total);
    }
}

/// Whether [`around`] has anything to add for pods of this class.
pub fn looks_around(class: &Class, snapshot: &Snapshot<'_>) -> bool {
    PARTS.iter().any(|part| (part.concerns)(class, snapshot))
}

/// Least allocated and balanced allocation of the nodes from the place `from` on, in one pass over plain columns.
pub fn own(class: &Class, nodes: &Nodes, from: usize, scores: &mut [f32]) {
    let (cpu, memory) = (class.scored_cpu as f32, class.scored_memory as f32);
    let (asked_cpu, asked_memory) = (class.requests.cpu as f32, class.requests.memory as f32);
    for (at, score) in (from..).zip(scores) {
        let (has_cpu, has_memory) = ((nodes.cpu[at] as f32).max(1.0), (nodes.memory[at] as f32).max(1.0));
        let free_cpu = 1.0 - (nodes.scored_cpu[at] as f32 + cpu) / has_cpu;
        let free_memory = 1.0 - (nodes.scored_memory[at] as f32 + memory) / has_memory;
        let least = (free_cpu.max(0.0) + free_memory.max(0.0)) * 0.5 * FULL;
        let used_cpu = ((nodes.cpu_used[at] as f32 + asked_cpu) / has_cpu).min(1.0);
        let used_memory = ((nodes.memory_used[at] as f32 + asked_memory) / has_memory).min(1.0);
        let balanced = (1.0 - (used_cpu - used_memory).abs() * 0.5) * FULL;
        *score = least + balanced;
    }
}

fn soft_taints(class: &Class, snapshot: &Snapshot<'_>, mask: &Mask, total: &mut [f32]) {
    let raw = raw(mask, |at| {
        let soft = snapshot.nodes.taints[at].iter().filter(|taint| taint.effect == "PreferNoSchedule");
        -(soft.filter(|taint| !class.tolerates(taint)).count() as f32)
    });
    add_normalised(total, &raw, mask, 3.0);
}

fn node_preferred(class: &Class, snapshot: &Snapshot<'_>, mask: &Mask, total: &mut [f32]) {
    let nodes = snapshot.nodes;
    let raw = raw(mask, |at| {
        let held = class.node_preferred.iter().filter(|(_, term)| term.holds(&nodes.names[at], &nodes.labels[at]));
        held.map(|(weight, _)| *weight as f32).sum()
    });
    add_scaled(total, &raw, mask, 2.0);
}

fn raw(mask: &Mask, score: impl Fn(usize) -> f32) -> Vec<f32> {
    mask.iter().enumerate().map(|(at, reason)| if *reason == 0 { score(at) } else { 0.0 }).collect()
}

fn passing<'a>(raw: &'a [f32], mask: &'a Mask) -> impl Iterator<Item = f32> + 'a {
    raw.iter().zip(mask).filter(|(_, reason)| **reason == 0).map(|(score, _)| *score)
}

/// Maps the lowest to 0 and the highest to 100.
fn add_normalised(total: &mut [f32], raw: &[f32], mask: &Mask, weight: f32) {
    let (low, high) =
        passing(raw, mask).fold((f32::MAX, f32::MIN), |(low, high), score| (low.min(score), high.max(score)));
    if high <= low {
        return;
    }
    for (total, raw) in total.iter_mut().zip(raw) {
        *total += weight * FULL * (raw - low) / (high - low);
    }
}

/// Maps 0 to 0 and the highest to 100.
fn add_scaled(total: &mut [f32], raw: &[f32], mask: &Mask, weight: f32) {
    let high = passing(raw, mask).fold(0.0, f32::max);
    if high <= 0.0 {
        return;
    }
    for (total, raw) in total.iter_mut().zip(raw) {
        *total += weight * FULL * raw / high;
    }
}

fn spread(class: &Class, snapshot: &Snapshot<'_>, mask: &Mask, total: &mut [f32]) {
    let mut raw = vec![0f32; mask.len()];
    for constraint in class.spread.iter().filter(|constraint| !constraint.hard) {
        let topology = snapshot.terms.topology_of(constraint.term);
        let term = snapshot.terms.get(constraint.term);
        let sums = topology.staying(term, |at| crate::plugins::spread::counts(class, constraint, snapshot, at));
        // Rare domains weigh more, as upstream's logarithmic weight does it.
        let weight = (sums.len() as f32 + 2.0).ln();
        for (raw, domain) in raw.iter_mut().zip(&topology.domain) {
            let sum = if *domain == NOWHERE { f32::from(u8::MAX) } else { sums[*domain as usize] as f32 };
            *raw -= sum * weight + (constraint.max_skew - 1) as f32;
        }
    }
    add_normalised(total, &raw, mask, 2.0);
}

fn inter_pod(class: &Class, snapshot: &Snapshot<'_>, mask: &Mask, total: &mut [f32]) {
    let terms = snapshot.terms;
    let mut raw = vec![0f32; mask.len()];
    let mut lean = |id: TermId, sums: &[i64], weight: i64| {
        for (raw, domain) in raw.iter_mut().zip(&terms.topology_of(id).domain) {
            if *domain != NOWHERE {
                *raw += (sums[*domain as usize] * weight) as f32;
            }
        }
    };
    for preferred in &class.preferred {
        lean(preferred.term, &terms.get(preferred.term).matching.of_domain, i64::from(preferred.weight));
    }
    for (id, term) in terms.iter() {
        if term.leanings_total != 0 && terms.looks_for(id, class) {
            lean(id, &term.leanings.of_domain, 1);
        }
    }
    add_normalised(total, &raw, mask, 2.0);
}

/// Whether the class prefers company, or pods that run prefer its own.
fn leans(class: &Class, snapshot: &Snapshot<'_>) -> bool {
    let terms = snapshot.terms;
    !class.preferred.is_empty() || terms.iter().any(|(id, term)| term.leanings_total != 0 && terms.looks_for(id, class))
}

fn images(class: &Class, snapshot: &Snapshot<'_>, mask: &Mask, total: &mut [f32]) {
    let nodes = snapshot.nodes;
    let count = nodes.count().max(1) as f32;
    let known = class.images.iter().filter_map(|image| Some((image, *nodes.having.get(image)?)));
    let mut raw = vec![0f32; mask.len()];
    for (image, having) in known {
        for (raw, images) in raw.iter_mut().zip(&nodes.images) {
            if let Some(bytes) = images.get(image) {
                *raw += *bytes as f32 * having as f32 / count;
            }
        }
    }
    let high = IMAGE_MAX_BYTES * class.images.len().max(1) as f32;
    for (total, raw) in total.iter_mut().zip(&raw) {
        *total += (raw.clamp(IMAGE_MIN_BYTES, high) - IMAGE_MIN_BYTES) / (high - IMAGE_MIN_BYTES) * FULL;
    }
}
