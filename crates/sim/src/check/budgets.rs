//! Disruption budgets: who evicts a serving pod has taken from its budget first, and a budget allows no more than what
//! serves beyond the wanted.

use std::collections::BTreeSet;

use cache::View;
use meta::{Object, Selector};

use super::{Checker, Seen};
use crate::desired::facts;
use crate::exec::Author;
use crate::truth::Past;
use crate::user::{BUDGETS, PODS};

/// An eviction looks at pod and budget this long before it deletes, at most.
const LOOK_MS: u64 = 15_000;

#[derive(Default)]
pub struct Budgets {
    /// Uids of pods for which a budget has given leave: its name and the pod's.
    granted: BTreeSet<(String, String)>,
}

fn path(object: &Object) -> String {
    format!("{}/{}", object.namespace(), object.name())
}

fn selector(budget: &Object) -> Selector {
    Selector::of(&budget.value()["spec"]["selector"])
}

fn budget_of<'a>(pod: &Object, view: &'a View) -> Option<&'a Object> {
    let mut all = view.list(BUDGETS, pod.namespace()).filter(|budget| selector(budget).matches(pod.labels()));
    all.next()
}

/// What serves and is not on its way out.
fn healthy(budget: &Object, view: &View) -> i64 {
    let selector = selector(budget);
    let pods = view
        .list(PODS, budget.namespace())
        .filter(|pod| pod.facts().deleting.is_none() && facts(pod).ready && selector.matches(pod.labels()));
    pods.count() as i64
}

impl Budgets {
    fn eviction(&self, pod: &Object, past: &Past<'_>) -> Result<(), String> {
        let protected = |view: &View| {
            let now = view.one(PODS, pod.namespace(), pod.name()).filter(|one| one.uid() == pod.uid());
            now.filter(|now| facts(now).ready).and_then(|now| budget_of(now, view)).map(path)
        };
        let mut all = past.lately(LOOK_MS).map(protected);
        let Some(Some(budget)) = all.next() else { return Ok(()) };
        if all.any(|other| other.as_ref() != Some(&budget))
            || self.granted.contains(&(budget.clone(), pod.name().into()))
        {
            return Ok(());
        }
        Err(format!("pod {} was evicted without leave of its budget {budget}", path(pod)))
    }

    fn allowance(&self, budget: &Object, author: &Author, past: &Past<'_>) -> Result<(), String> {
        let value = budget.value();
        let number = |field: &str| value.at(&["status", field]).as_int().unwrap_or(0);
        let allowed = number("disruptionsAllowed");
        if allowed < 0 {
            return Err(format!("budget {} allows {allowed} disruptions", path(budget)));
        }
        if allowed == 0 {
            return Ok(());
        }
        // An eviction takes from what the controller allowed, and never adds.
        if !author.who.ends_with(":disruption-controller") {
            return Ok(());
        }
        let Some(view) = past.at(author.decided_on) else { return Ok(()) };
        let most = healthy(budget, view) - number("desiredHealthy");
        if allowed <= most {
            return Ok(());
        }
        Err(format!("budget {} allows {allowed} disruptions, where its controller saw {most}", path(budget)))
    }
}

impl Checker for Budgets {
    fn name(&self) -> &'static str {
        "budgets"
    }

    fn see(&mut self, seen: &Seen<'_>, past: &Past<'_>) -> Result<(), String> {
        let Seen::Commit { changes, author, .. } = seen else { return Ok(()) };
        for change in *changes {
            if let Some(new) = change.new.as_ref().filter(|new| new.resource() == BUDGETS) {
                for (pod, _) in new.value().at(&["status", "disruptedPods"]).entries().iter() {
                    self.granted.insert((path(new), pod.to_owned()));
                }
                self.allowance(new, author, past)?;
            }
            let Some(old) = change.old.as_ref().filter(|old| old.resource() == PODS) else { continue };
            let going = change.new.as_ref().is_none_or(|new| new.facts().deleting.is_some());
            if going && old.facts().deleting.is_none() && author.what.contains("pods/eviction") {
                self.eviction(old, past)?;
            }
        }
        Ok(())
    }
}
