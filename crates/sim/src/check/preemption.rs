//! Preemption: who is pushed out mattered less than somebody who waits for just that room and has no other; and it breaks no
//! budget that another choice would have kept. That those who wait come to run at last is a matter of rest.
//!
//! A deletion is judged by the view that it rests on. For whom it is does not stand in it: it is sound when it is for some
//! pod that waits there. What the scheduler had decided before and did not see done yet counts where that speaks for it: so
//! it is judged some time later, when it is known where those came that waited. A binding that was asked for and never came
//! about counts, too: the scheduler may not have known yet that it failed.

use std::collections::{BTreeMap, VecDeque};

use base::{Revision, Time};
use cache::View;
use meta::{Object, Selector, Str};

use super::scheduler::{preempts, running, takes};
use super::{Checker, Seen};
use crate::desired::facts;
use crate::truth::Past;
use crate::user::{BUDGETS, NODES, PODS};

/// After so long every binding that was under way has arrived, or never will.
const UNDERWAY_MS: u64 = 40_000;

#[derive(Default)]
pub struct Preemption {
    cases: VecDeque<Case>,
    /// Where pods that wait were to be bound, and on what revision that was decided, by uid.
    asked: BTreeMap<Str, Vec<(Str, Revision)>>,
    /// Those who were pushed out and are not gone yet, by uid: and by which life of a scheduler.
    pushed: BTreeMap<Str, (Object, u64)>,
}

/// A deletion that is to be judged.
struct Case {
    at: Time,
    victim: Object,
    /// What it rests on.
    view: View,
    /// The nodes that pods which wait there had been given by then, by the pod's uid.
    given: BTreeMap<Str, Vec<Str>>,
    /// Budgets that were broken knowingly.
    broken: Vec<Object>,
}

fn selects(budget: &Object, pod: &Object) -> bool {
    budget.namespace() == pod.namespace() && Selector::of(&budget.value()["spec"]["selector"]).matches(pod.labels())
}

fn status_of(budget: &Object, field: &str) -> i64 {
    budget.value().at(&["status", field]).as_int().unwrap_or(0)
}

/// Pods that wait for a node in a view.
fn waiting(view: &View) -> Vec<&Object> {
    let waits = |pod: &&Object| {
        let facts = facts(pod);
        facts.node.is_empty() && !facts.phase.is_final() && pod.facts().deleting.is_none()
    };
    view.list(PODS, "").filter(waits).collect()
}

/// A pod that waited, and what became of it.
enum Fate {
    Waits,
    /// It came to this node.
    Placed(Str),
    /// It is gone, and may have been on its way anywhere.
    Gone,
}

fn fate(pod: &Object, now: &View) -> Fate {
    let now = now.one(PODS, pod.namespace(), pod.name()).filter(|now| now.uid() == pod.uid());
    match now.map(|now| facts(now).node) {
        None => Fate::Gone,
        Some(node) if node.is_empty() => Fate::Waits,
        Some(node) => Fate::Placed(node),
    }
}

impl Preemption {
    /// The budgets that a scheduler broke knowingly by this deletion.
    fn broken(&self, victim: &Object, before: &View, view: &View, life: u64) -> Vec<Object> {
        let healthy = |budget: &Object| {
            let pods = before
                .list(PODS, victim.namespace())
                .filter(|pod| facts(pod).ready && pod.facts().deleting.is_none() && selects(budget, pod));
            i64::try_from(pods.count()).unwrap_or(i64::MAX)
        };
        // Who does not serve is nothing that a budget counts on.
        let serves = |view: &View| {
            view.one(PODS, victim.namespace(), victim.name())
                .is_some_and(|pod| pod.uid() == victim.uid() && facts(pod).ready)
        };
        if !serves(before) || !serves(view) {
            return Vec::new();
        }
        let breaks = |budget: &&Object| {
            let pushed = self.pushed.values().filter(|(pod, by)| *by == life && selects(budget, pod)).count();
            let left = status_of(budget, "disruptionsAllowed") - i64::try_from(pushed).unwrap_or(0);
            selects(budget, victim) && left < 1 && healthy(budget) - 1 < status_of(budget, "desiredHealthy")
        };
        view.list(BUDGETS, victim.namespace()).filter(breaks).cloned().collect()
    }
}

impl Case {
    /// Whether `winner` has a place when these do not run any more, whatever had been placed there.
    fn has_place(&self, winner: &Object, waited: &[(&Object, Fate)], goes: impl Fn(&Object) -> bool) -> bool {
        self.view.list(NODES, "").any(|node| {
            let stay = running(&self.view, node.name()).filter(|pod| !goes(pod));
            let given = |pod: &Object| {
                self.given.get(pod.uid()).is_some_and(|nodes| nodes.iter().any(|given| given == node.name()))
            };
            // Room that was made for somebody is his.
            let promised = |pod: &Object| {
                facts(pod).priority >= facts(winner).priority
                    && pod.value().at(&["status", "nominatedNodeName"]).text() == node.name()
            };
            let may_come = |pod: &Object, fate: &Fate| match fate {
                Fate::Waits => given(pod) || promised(pod),
                Fate::Placed(at) => at == node.name() || given(pod) || promised(pod),
                Fate::Gone => true,
            };
            let come = waited.iter().filter(|(pod, fate)| may_come(pod, fate) && pod.uid() != winner.uid());
            takes(node, winner, stay.chain(come.map(|(pod, _)| *pod)))
        })
    }

    fn judge(&self, now: &View) -> Result<(), String> {
        let (victim, view) = (&self.victim, &self.view);
        let (name, node) = (format!("{}/{}", victim.namespace(), victim.name()), facts(victim).node);
        let seen = format!("at revision {}, which that rests on", view.at());
        let waited: Vec<(&Object, Fate)> = waiting(view).into_iter().map(|pod| (pod, fate(pod, now))).collect();
        let priority = facts(victim).priority;
        let mut winners: Vec<&Object> =
            waited.iter().map(|(pod, _)| *pod).filter(|pod| facts(pod).priority > priority && preempts(pod)).collect();
        if winners.is_empty() {
            return Err(format!("pod {name} was pushed out, and nobody waited who mattered more, {seen}"));
        }
        let Some(node) = view.one(NODES, "", &node) else { return Ok(()) };
        winners.retain(|winner| {
            let stays = |pod: &&Object| facts(pod).priority >= facts(winner).priority;
            takes(node, winner, running(view, node.name()).filter(stays))
        });
        if winners.is_empty() {
            return Err(format!("pod {name} was pushed out, and {} then had no room for anybody, {seen}", node.name()));
        }
        winners.retain(|winner| !self.has_place(winner, &waited, |_| false));
        if winners.is_empty() {
            return Err(format!("pod {name} was pushed out, and whoever waited had room elsewhere, {seen}"));
        }
        let Some(first) = self.broken.first() else { return Ok(()) };
        let budgets: Vec<&Object> = view.list(BUDGETS, "").collect();
        let is_free = |pod: &Object| !budgets.iter().any(|budget| selects(budget, pod));
        let had_choice = |winner: &&Object| {
            let lower = |pod: &Object| facts(pod).priority < facts(winner).priority;
            self.has_place(winner, &waited, |pod| lower(pod) && is_free(pod))
        };
        if winners.iter().all(had_choice) {
            let budget = first.name();
            return Err(format!(
                "pod {name} was pushed out against budget {budget}, which another choice kept, {seen}"
            ));
        }
        Ok(())
    }
}

impl Checker for Preemption {
    fn name(&self) -> &'static str {
        "preemption"
    }

    fn see(&mut self, seen: &Seen<'_>, past: &Past<'_>) -> Result<(), String> {
        if let Seen::Binds { uid, node, decided_on } = seen {
            self.asked.entry((*uid).into()).or_default().push(((*node).into(), *decided_on));
        }
        let Seen::Commit { changes, before, after, author, .. } = seen else { return Ok(()) };
        while let Some(case) = self.cases.pop_front_if(|case| past.now.ms_since(case.at) >= UNDERWAY_MS) {
            case.judge(after)?;
        }
        for change in *changes {
            let Some(old) = change.old.as_ref().filter(|old| old.resource() == PODS) else { continue };
            if change.new.is_none() {
                self.pushed.remove(old.uid());
                self.asked.remove(old.uid());
            }
            let going = change.new.as_ref().is_none_or(|new| new.facts().deleting.is_some());
            let begins = going && old.facts().deleting.is_none();
            if !begins || author.decided_on == Revision::ZERO || !author.who.ends_with("system:kube-scheduler") {
                continue;
            }
            if let Some(view) = past.at(author.decided_on) {
                let broken = self.broken(old, before, view, author.life);
                let given = |pod: &Object| {
                    let asked = self.asked.get(pod.uid())?.iter().filter(|(_, on)| *on <= author.decided_on);
                    Some((pod.uid().into(), asked.map(|(node, _)| node.clone()).collect()))
                };
                let given = waiting(view).into_iter().filter_map(given).collect();
                self.cases.push_back(Case { at: past.now, victim: old.clone(), view: view.clone(), given, broken });
            }
            if change.new.is_some() {
                self.pushed.insert(old.uid().into(), (old.clone(), author.life));
            }
        }
        Ok(())
    }
}
