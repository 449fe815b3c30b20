//! Topology spread: no pod is bound into a domain that then has more pods of its sort than the emptiest by more than the
//! skew that it bears.
//!
//! A binding is judged by the view that it rests on. What the scheduler had decided before and did not see done yet is not
//! known here: whatever it may have placed meanwhile counts where that speaks for it.

use std::collections::{BTreeMap, BTreeSet};

use api::core::pod_facts;
use base::Revision;
use cache::View;
use meta::labels::{Op, Requirement};
use meta::{Object, Selector, Str};

use super::scheduler::{unborne, unwanted};
use super::{Binding, Checker, Seen, bindings};
use crate::desired::facts;
use crate::gist::spec_of;
use crate::truth::Past;
use crate::user::{NODES, PODS};

#[derive(Default)]
pub struct Spread;

/// What a pod says of its spread over one sort of domain.
struct Constraint {
    key: Str,
    selector: Selector,
    skew_max: i64,
    domains_min: usize,
    heeds_affinity: bool,
    heeds_taints: bool,
}

/// Those constraints of a pod that must hold.
fn constraints(pod: &Object) -> Vec<Constraint> {
    let all = spec_of(pod, "topologySpreadConstraints");
    let hard = all.items().iter().filter(|one| one["whenUnsatisfiable"].text() == "DoNotSchedule");
    hard.map(|one| {
        let mut selector = Selector::of(&one["labelSelector"]);
        for key in one["matchLabelKeys"].items() {
            if let Some(value) = pod.labels().get(key.text()) {
                selector.requirements.push(Requirement { key: key.text().into(), op: Op::In(vec![value.into()]) });
            }
        }
        let number = |field: &str| one[field].as_int().unwrap_or(1);
        Constraint {
            key: one["topologyKey"].text().into(),
            selector,
            skew_max: number("maxSkew"),
            domains_min: usize::try_from(number("minDomains")).unwrap_or(0),
            heeds_affinity: one["nodeAffinityPolicy"].text() != "Ignore",
            heeds_taints: one["nodeTaintsPolicy"].text() == "Honor",
        }
    })
    .collect()
}

/// A pod that may have been placed though the view does not show it: where it is bound to by now, if it is.
type Underway = (Object, Option<Str>);

/// What a pod on `node` breaks in a view, whatever became of those who were under way.
fn broken(pod: &Object, node: &str, view: &View, underway: &[Underway]) -> Option<String> {
    let all = constraints(pod);
    let keys: BTreeSet<&str> = all.iter().map(|one| one.key.as_str()).collect();
    all.iter().find_map(|one| {
        let counts = |node: &&Object| {
            keys.iter().all(|key| node.labels().get(key).is_some())
                && !(one.heeds_affinity && unwanted(pod, node).is_some())
                && !(one.heeds_taints && has_unborne_taints(pod, node))
        };
        let mut domains: BTreeMap<&str, i64> = BTreeMap::new();
        for node in view.list(NODES, "").filter(counts) {
            let is_alike = |other: &&Object| {
                other.uid() != pod.uid()
                    && other.namespace() == pod.namespace()
                    && one.selector.matches(other.labels())
                    && other.facts().deleting.is_none()
                    && !pod_facts::of(other).phase.is_final()
            };
            let found = view.by(PODS, "node", node.name()).filter(is_alike).count();
            let domain = node.labels().get(&one.key).unwrap_or_default();
            *domains.entry(domain).or_default() += i64::try_from(found).unwrap_or(i64::MAX);
        }
        let Some(domain) = view.one(NODES, "", node).and_then(|node| node.labels().get(&one.key)) else {
            return Some(format!("has no {}", one.key));
        };
        let own = i64::from(one.selector.matches(pod.labels()));
        let here = domains.get(domain).copied().unwrap_or(0) + own;
        let least = match domains.len() < one.domains_min {
            true => 0,
            false => filled(domains, view, one, pod, underway),
        };
        let skew = here - least;
        (skew > one.skew_max).then(|| {
            format!(
                "has {here} of its sort with it, {skew} more than the emptiest {}, and it bears {}",
                one.key, one.skew_max
            )
        })
    })
}

fn has_unborne_taints(pod: &Object, node: &Object) -> bool {
    // A node that takes no pods is told of by its taint only.
    !node.value()["spec"]["taints"].items().is_empty() && unborne(pod, node).is_some()
}

/// The most that the emptiest domain can have, with those that were under way.
fn filled(
    mut domains: BTreeMap<&str, i64>,
    view: &View,
    constraint: &Constraint,
    pod: &Object,
    underway: &[Underway],
) -> i64 {
    let is_alike = |other: &Object| other.namespace() == pod.namespace() && constraint.selector.matches(other.labels());
    let mut anywhere = 0;
    for (_, node) in underway.iter().filter(|(other, _)| is_alike(other)) {
        let known = node.as_ref().and_then(|node| view.one(NODES, "", node)?.labels().get(&constraint.key));
        match (node, known.and_then(|domain| domains.get_mut(domain))) {
            (None, _) => anywhere += 1,
            (Some(_), Some(count)) => *count += 1,
            (Some(_), None) => {}
        }
    }
    for _ in 0..anywhere {
        if let Some(least) = domains.values_mut().min() {
            *least += 1;
        }
    }
    domains.into_values().min().unwrap_or(0)
}

/// Whether a pod on a node keeps its spread, when nobody is under way.
pub fn is_spread(pod: &Object, node: &str, view: &View) -> bool {
    broken(pod, node, view, &[]).is_none()
}

impl Checker for Spread {
    fn name(&self) -> &'static str {
        "spread"
    }

    fn see(&mut self, seen: &Seen<'_>, past: &Past<'_>) -> Result<(), String> {
        let Seen::Commit { changes, after, author, .. } = seen else { return Ok(()) };
        for Binding { pod: new, node, .. } in bindings(changes) {
            if author.decided_on == Revision::ZERO || constraints(new).is_empty() {
                continue;
            }
            let Some(view) = past.at(author.decided_on) else { continue };
            let waits = |pod: &&Object| facts(pod).node.is_empty() && pod.uid() != new.uid();
            let underway: Vec<Underway> = view
                .list(PODS, new.namespace())
                .filter(waits)
                .map(|pod| {
                    let now = after.one(PODS, pod.namespace(), pod.name()).filter(|now| now.uid() == pod.uid());
                    let bound = now.map(|now| facts(now).node).filter(|node| !node.is_empty());
                    (pod.clone(), bound)
                })
                .collect();
            if let Some(why) = broken(new, &node, view, &underway) {
                let name = format!("{}/{}", new.namespace(), new.name());
                let seen = author.decided_on;
                return Err(format!("pod {name} is bound to {node}, whose domain {why}, at revision {seen}"));
            }
        }
        Ok(())
    }
}
