//! Watches: whatever a client's mirror shows at a revision is what the store had at that revision, no more, no less, and
//! it never goes back.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use base::{Revision, Time};
use cache::{Cache, Key, View};
use meta::{Object, Resource, Str};

use super::{Checker, Seen, pairs};
use crate::desired::facts;
use crate::truth::Past;

const PODS: Resource = Resource("pods");
/// Not told to the truth.
const SECRETS: Resource = Resource("secrets");
/// States of one node's pods that are kept, to judge agents that are late: so many at most, and for so long, which is later
/// than any agent.
const STATES_KEPT: usize = 4_096;
const STATES_KEPT_MS: u64 = 240_000;

/// Uids and revisions of pods by their key; clones share the texts.
type Pods = BTreeMap<Key, (Arc<str>, Revision)>;

/// The pods of a node after each of their changes.
#[derive(Default)]
struct States {
    all: VecDeque<(Revision, Time, Arc<Pods>)>,
    /// What was before the first of them is not known any more.
    forgot: bool,
}

/// A mirror and the store as they were when they were found to be equal last.
struct Equal {
    life: u64,
    mirror: View,
    truth: View,
}

#[derive(Default)]
pub struct Watch {
    equal: BTreeMap<String, Equal>,
    /// The pods of every node, by our own books.
    nodes: BTreeMap<Str, States>,
    begun: bool,
}

impl Checker for Watch {
    fn name(&self) -> &'static str {
        "watch"
    }

    fn see(&mut self, seen: &Seen<'_>, past: &Past<'_>) -> Result<(), String> {
        match seen {
            Seen::Commit { revision, changes, before, .. } => {
                if !std::mem::replace(&mut self.begun, true) {
                    before.list(PODS, "").for_each(|pod| self.note((before.at(), past.now), None, Some(pod)));
                }
                for change in changes.iter() {
                    let is_pod = |object: &&Object| object.resource() == PODS;
                    let (old, new) = (change.old.as_ref().filter(is_pod), change.new.as_ref().filter(is_pod));
                    self.note((*revision, past.now), old, new);
                }
                Ok(())
            }
            Seen::Mirror { client, cache, life, of: Some(of) } => self.check_whole(client, of, cache, *life, past),
            Seen::Mirror { client, cache, .. } => self.check_pods(client, cache),
            _ => Ok(()),
        }
    }
}

fn key(pod: &Object) -> Key {
    Key::of(pod.namespace(), pod.name())
}

fn state(object: &Object) -> (Arc<str>, Revision) {
    (object.uid().into(), object.revision())
}

/// What became of `resource` between two views: the present state of every object that changed, `None` when it is gone.
fn changes<'a>(now: &'a View, then: &'a View, resource: Resource) -> Vec<(&'a Key, Option<(&'a str, Revision)>)> {
    let (new, old) = now.unshared(then, resource);
    let told = |(key, made, gone): (&'a Key, Option<&'a Object>, Option<&'a Object>)| match (made, gone) {
        (Some(object), Some(known)) if object.revision() == known.revision() => None,
        (made, _) => Some((key, made.map(|object| (object.uid(), object.revision())))),
    };
    pairs(new, old).filter_map(told).collect()
}

fn all(view: &View, resource: Resource) -> impl Iterator<Item = (&str, &str, &str, Revision)> {
    view.list(resource, "").map(|object| (object.namespace(), object.name(), object.uid(), object.revision()))
}

impl Watch {
    /// Everything is compared once; from there on it is enough that the same has changed since.
    fn check_whole(
        &mut self,
        client: &str,
        of: &[Resource],
        cache: &Cache,
        life: u64,
        past: &Past<'_>,
    ) -> Result<(), String> {
        let Some(truth) = past.at(cache.revision()) else { return Ok(()) };
        let view = cache.view();
        let follows = |resource: &Resource| *resource != SECRETS && (of.is_empty() || of.contains(resource));
        let known = self.equal.get(client);
        let differs = |resource: Resource| {
            format!("{client}'s {resource} at revision {} are not those of the store", cache.revision())
        };
        match known {
            Some(known) => {
                if known.life == life && cache.revision() < known.mirror.at() {
                    return Err(format!(
                        "{client} was at {}, and goes back to {}",
                        known.mirror.at(),
                        cache.revision()
                    ));
                }
                let mut moved = view.moved(&known.mirror);
                moved.extend(truth.moved(&known.truth));
                moved.sort_unstable();
                moved.dedup();
                for resource in moved.into_iter().filter(follows) {
                    let (seen, real) =
                        (changes(&view, &known.mirror, resource), changes(truth, &known.truth, resource));
                    if seen != real {
                        return Err(format!("{}: {seen:?} changed, where {real:?} did", differs(resource)));
                    }
                }
            }
            None => {
                for resource in truth.resources().chain(view.resources()).filter(follows) {
                    if !all(truth, resource).eq(all(&view, resource)) {
                        return Err(differs(resource));
                    }
                }
            }
        }
        self.equal.insert(client.to_owned(), Equal { life, mirror: view, truth: truth.clone() });
        Ok(())
    }

    /// Books a pod under its node.
    fn note(&mut self, at: (Revision, Time), old: Option<&Object>, new: Option<&Object>) {
        let place = |pod: &Object| Some(facts(pod).node).filter(|node| !node.is_empty());
        let (from, to) = (old.and_then(place), new.and_then(place));
        if from != to
            && let (Some(node), Some(old)) = (from, old)
        {
            self.change(at, node, |pods| drop(pods.remove(&key(old))));
        }
        if let (Some(node), Some(new)) = (to, new) {
            self.change(at, node, |pods| drop(pods.insert(key(new), state(new))));
        }
    }

    fn change(&mut self, (revision, now): (Revision, Time), node: Str, change: impl FnOnce(&mut Pods)) {
        let States { all, forgot } = self.nodes.entry(node).or_default();
        let mut pods = all.back().map(|(_, _, pods)| Pods::clone(pods)).unwrap_or_default();
        change(&mut pods);
        // The last one before that time is what was seen when it came.
        while all.len() == STATES_KEPT || all.get(1).is_some_and(|state| now.ms_since(state.1) > STATES_KEPT_MS) {
            all.pop_front();
            *forgot = true;
        }
        all.push_back((revision, now, Arc::new(pods)));
    }

    /// An agent's pods are those of its node, as of where its watch is.
    fn check_pods(&self, client: &str, cache: &Cache) -> Result<(), String> {
        let Some(node) = client.strip_prefix("agent ") else { return Ok(()) };
        let (view, at, none) = (cache.view(), cache.known(PODS), States::default());
        let states = self.nodes.get(node).unwrap_or(&none);
        let index = states.all.partition_point(|(revision, ..)| *revision <= at);
        if index == 0 && states.forgot {
            // Too long ago.
            return Ok(());
        }
        let wanted = index.checked_sub(1).map(|at| states.all[at].2.clone()).unwrap_or_default();
        // Both stand in the order of their keys.
        let found = view.list(PODS, "").map(|pod| (pod.uid(), pod.revision()));
        if found.eq(wanted.values().map(|(uid, revision)| (&**uid, *revision))) {
            return Ok(());
        }
        let found: Pods = view.list(PODS, "").map(|pod| (key(pod), state(pod))).collect();
        Err(format!("{client} has pods {found:?} at revision {at}, the store has {wanted:?}"))
    }
}
