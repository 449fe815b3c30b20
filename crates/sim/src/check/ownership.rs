//! Ownership: nothing is collected while one of its owners lives, as far as the collector could know, and no pod while its
//! node does.

use std::collections::BTreeMap;

use api::core::leash::Leash;
use base::Revision;
use cache::View;
use meta::{Object, Str};

use super::{Checker, Seen};
use crate::desired::facts;
use crate::truth::Past;
use crate::user::{NODES, PODS};

const FOREGROUND: &str = "foregroundDeletion";

#[derive(Default)]
pub struct Ownership {
    /// Every object by uid, and whether it waits for its dependents to go.
    waits: BTreeMap<Str, Wait>,
    begun: bool,
}

#[derive(Clone, Copy)]
enum Wait {
    Waits,
    /// Not since then; zero when it never did.
    Not(Revision),
}

fn waits(object: &Object) -> bool {
    object.facts().deleting.is_some() && object.facts().finalizers.iter().any(|one| one == FOREGROUND)
}

impl Ownership {
    fn note(&mut self, object: &Object, at: Revision) {
        let waited = matches!(self.waits.get(object.uid()), Some(Wait::Waits));
        let wait = match waits(object) {
            true => Wait::Waits,
            false if waited => Wait::Not(at),
            false => Wait::Not(Revision::ZERO),
        };
        self.waits.insert(object.uid().into(), wait);
    }

    /// Whoever decided while an owner waited could not know that somebody would ask to delete it in another way.
    fn collected(&self, object: &Object, decided_on: Revision) -> Result<(), String> {
        let lives = |uid: &Str| matches!(self.waits.get(uid), Some(Wait::Not(since)) if *since <= decided_on);
        let alive = object.facts().owners.iter().find(|owner| lives(&owner.uid));
        match alive {
            Some(owner) => Err(format!(
                "{} {}/{} was collected, though its owner {} {} lives",
                object.resource(),
                object.namespace(),
                object.name(),
                owner.kind,
                owner.name
            )),
            None => Ok(()),
        }
    }
}

/// The collector of pods takes those whose node is gone, unbound ones that are going, and those that a node ends which is cut
/// off. Whether it has by then is judged where they run again.
fn pod_collected(pod: &Object, before: &View, seen: Option<&View>) -> Result<(), String> {
    let node = facts(pod).node;
    // A node may come anew while the collector takes what ran there.
    let is_gone = |view: &View| view.one(NODES, "", &node).is_none();
    if node.is_empty() || is_gone(before) || seen.is_some_and(is_gone) || Leash::of(&pod.value()).is_some() {
        return Ok(());
    }
    Err(format!("pod {}/{} was collected, though its node {node} is there", pod.namespace(), pod.name()))
}

impl Checker for Ownership {
    fn name(&self) -> &'static str {
        "ownership"
    }

    fn see(&mut self, seen: &Seen<'_>, past: &Past<'_>) -> Result<(), String> {
        let Seen::Commit { revision, changes, author, before, .. } = seen else { return Ok(()) };
        if !std::mem::replace(&mut self.begun, true) {
            let resources: Vec<_> = before.resources().collect();
            resources
                .iter()
                .for_each(|resource| before.list(*resource, "").for_each(|object| self.note(object, Revision::ZERO)));
        }
        for change in *changes {
            if let Some(old) = &change.old {
                let going = change.new.as_ref().is_none_or(|new| new.facts().deleting.is_some());
                let begins = going && old.facts().deleting.is_none();
                if begins && author.who.ends_with(":generic-garbage-collector") {
                    self.collected(old, author.decided_on)?;
                }
                if old.resource() == PODS && begins && author.who.ends_with(":pod-garbage-collector") {
                    pod_collected(old, before, past.at(author.decided_on))?;
                }
            }
            match (&change.new, &change.old) {
                // Most changes change nothing of this.
                (Some(new), Some(old)) if new.uid() == old.uid() && waits(new) == waits(old) => {}
                (Some(new), _) => self.note(new, *revision),
                (None, Some(old)) => {
                    self.waits.remove(old.uid());
                }
                (None, None) => {}
            }
        }
        Ok(())
    }
}
