//! The scheduler: which pod runs on which node. Pure: it is told what changed, and asked for a [`Plan`].
//!
//! Not here: writing the plan (a shell does), the clock, any IO.
//!
//! How it works: nodes lie in columns; pods of one template share a class, and what it sees of each node is kept current by
//! what changed ([`sight`]); for every pod all nodes are compared. Plugins pass over whole columns. A pod that was placed
//! counts at once ("assumed"), until the view shows it bound or the shell reports that it could not be.
//!
//! Invariants: same inputs, same plan; a pod is in the queue, or assumed, or resident, never in two of these; no plan
//! places a pod on a node that any plugin refuses at that moment.

pub mod class;
pub mod nodes;
pub mod nominated;
pub mod plugins;
pub mod preempt;
pub mod queue;
pub mod score;
pub mod sight;
pub mod terms;
pub mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::core::volume_binding::{self, CLAIMS, CLASSES, VOLUMES};
use base::Time;
use cache::{Event, View};
use meta::{Object, Resource, Str, Value};

use class::{Amounts, Class, Classes};
use nodes::{Nodes, Resident};
use nominated::Nominated;
use plugins::{Mask, NO_AFFINITY, PLUGINS, Reason, Snapshot, Window, resources, row, words};
use queue::{Queue, Wake};
use sight::{Sights, best};
use terms::Terms;
use volumes::{Choice, Needs};

pub const PODS: Resource = Resource("pods");
pub const NODES: Resource = Resource("nodes");
pub const NAMESPACES: Resource = Resource("namespaces");
/// What the scheduler must be told of.
pub const WATCHES: &[Resource] = &[NODES, NAMESPACES, CLASSES, VOLUMES, CLAIMS, PODS];
/// The name that pods ask for when they ask for nobody else.
pub const NAME: &str = "default-scheduler";

/// What shall happen, complete: the doer has nothing left to choose.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub placements: Vec<Placement>,
    pub refusals: Vec<Refusal>,
    /// For pods that are placed once their claims are bound.
    pub choices: Vec<Choice>,
}

/// A pod and its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// `namespace/name`.
    pub key: Str,
    pub namespace: Str,
    pub name: Str,
    pub uid: Str,
    pub node: Str,
}

/// A pod that fits nowhere now, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    pub key: Str,
    pub namespace: Str,
    pub name: Str,
    pub uid: Str,
    /// `Unschedulable` or `SchedulingGated`.
    pub reason: &'static str,
    /// For the condition and the event.
    pub message: String,
    /// Where it will go once those are gone who leave for it.
    pub nominated: Option<Str>,
    /// Pods that must be deleted first: keys and uids.
    pub victims: Vec<(Str, Str)>,
}

/// A pod that waits.
struct Pending {
    class: Arc<Class>,
    object: Object,
    /// The claims that it mounts.
    claims: Vec<Str>,
}

#[derive(Default)]
pub struct Scheduler {
    nodes: Nodes,
    terms: Terms,
    classes: Classes,
    queue: Queue,
    pending: BTreeMap<Str, Pending>,
    /// Where each counted pod is: place and uid, by key.
    residence: BTreeMap<Str, (Str, Str)>,
    /// Pods placed by us that the view does not show bound yet.
    assumed: BTreeSet<Str>,
    /// Pods on nodes that do not exist (yet), by node.
    homeless: BTreeMap<Str, BTreeMap<Str, Resident>>,
    nominated: Nominated,
    doomed: preempt::Doomed,
    /// Gated pods that are to be told of it.
    held: Vec<Object>,
    sights: Sights,
    /// Where the search for the best begins, so that equals share the load.
    turn: usize,
}

impl Scheduler {
    pub fn new() -> Scheduler {
        Scheduler::default()
    }

    /// Takes in everything that exists.
    pub fn start(&mut self, view: &View, now: Time) {
        for resource in WATCHES {
            for object in view.list(*resource, "") {
                let event = Event { revision: view.at(), old: None, new: Some(object.clone()) };
                self.observe(*resource, &event, now);
            }
        }
    }

    /// Takes in one change.
    pub fn observe(&mut self, resource: Resource, event: &Event, now: Time) {
        match resource {
            NODES => self.observe_node(event, now),
            NAMESPACES => self.observe_namespace(event),
            PODS => self.observe_pod(event, now),
            CLAIMS | VOLUMES | CLASSES => self.queue.wake(Wake::Volume, now),
            _ => {}
        }
    }

    fn observe_node(&mut self, event: &Event, now: Time) {
        match (&event.new, &event.old) {
            (Some(node), _) => {
                let (at, changed) = self.nodes.put(node);
                if let Some(residents) = self.homeless.remove(node.name()) {
                    self.terms.refresh(&self.nodes);
                    for (_, resident) in residents {
                        self.terms.count(at, &resident, 1);
                        self.nodes.admit(at, resident);
                    }
                }
                if changed {
                    self.terms.refresh(&self.nodes);
                    self.queue.wake(Wake::Node, now);
                }
            }
            (None, Some(old)) => {
                let place = self.nodes.place(old.name());
                if let Some(at) = place {
                    self.nominated.vacate(at);
                }
                for resident in self.nodes.remove(old.name()) {
                    if let Some(at) = place {
                        self.terms.count(at, &resident, -1);
                    }
                    self.homeless.entry(old.name().into()).or_default().insert(resident.uid.clone(), resident);
                }
                self.terms.refresh(&self.nodes);
            }
            (None, None) => {}
        }
    }

    fn observe_namespace(&mut self, event: &Event) {
        match (&event.new, &event.old) {
            (Some(namespace), _) => {
                self.terms.namespaces.insert(namespace.name().into(), namespace.labels().clone());
            }
            (None, Some(old)) => {
                self.terms.namespaces.remove(old.name());
            }
            (None, None) => {}
        }
    }

    fn observe_pod(&mut self, event: &Event, now: Time) {
        let Some(pod) = event.new.as_ref().or(event.old.as_ref()) else { return };
        let key = key_of(pod);
        let facts = api::core::pod_facts::of(pod);
        let gone = event.new.is_none() || facts.phase.is_final();
        if gone {
            self.doomed.remove(pod.uid());
        }
        // The same name, made anew: what is known belongs to the pod that is gone.
        if self.residence.get(&key).is_some_and(|(_, uid)| uid != pod.uid()) {
            self.forget(&key, now);
        }
        if gone {
            self.pending.remove(&key);
            self.queue.remove(&key);
            self.nominated.remove(&key);
            self.forget(&key, now);
            return;
        }
        if facts.node.is_empty() {
            if !self.assumed.contains(&key) {
                self.wait(key, pod, facts.gated);
            }
            return;
        }
        self.pending.remove(&key);
        self.queue.remove(&key);
        self.nominated.remove(&key);
        self.assumed.remove(&key);
        let known = self.residence.get(&key).is_some_and(|(node, _)| *node == facts.node);
        let relabelled = event.old.as_ref().is_some_and(|old| old.labels() != pod.labels());
        let resized = event.old.as_ref().is_some_and(|old| old.facts().generation != pod.facts().generation);
        let leaving = pod.facts().deleting.is_some();
        if known && !relabelled && !resized && !leaving {
            return;
        }
        if self.residence.contains_key(&key) {
            self.forget(&key, now);
        }
        let class = self.class_of(&pod.value());
        self.settle(&key, &facts.node.clone(), pod, class);
        self.queue.wake(Wake::PodCame, now);
    }

    fn wait(&mut self, key: Str, pod: &Object, gated: bool) {
        let facts = api::core::pod_facts::of(pod);
        if facts.scheduler != NAME || pod.facts().deleting.is_some() {
            self.pending.remove(&key);
            self.queue.remove(&key);
            self.nominated.remove(&key);
            return;
        }
        let changed = self.pending.get(&key).is_none_or(|known| {
            known.object.facts().generation != pod.facts().generation || known.object.labels() != pod.labels()
        });
        if changed {
            let value = pod.value();
            let class = self.class_of(&value);
            // Another scheduler may have made room for it before this one began.
            let nominated = value.at(&["status", "nominatedNodeName"]).text();
            if let Some(place) = self.nominated.place_of(&key).or_else(|| self.nodes.place(nominated)) {
                self.nominated.insert(&key, place, &class);
            }
            self.queue.remove(&key);
            let claims = volume_binding::claims_of(pod.name(), &value);
            self.pending.insert(key.clone(), Pending { class, object: pod.clone(), claims });
        } else if let Some(known) = self.pending.get_mut(&key) {
            known.object = pod.clone();
        }
        if gated {
            self.queue.remove(&key);
            if !facts.told_gated {
                self.held.push(pod.clone());
            }
        } else {
            self.queue.add(&key, facts.priority, pod.facts().created);
        }
    }

    fn class_of(&mut self, pod: &Value) -> Arc<Class> {
        let (terms, nodes) = (&mut self.terms, &self.nodes);
        self.classes.of(pod, || {
            Class::of(pod, &mut |term, namespace, labels, of| terms.intern(term, namespace, labels, of, nodes))
        })
    }

    /// Counts a pod on its node.
    fn settle(&mut self, key: &Str, node: &Str, pod: &Object, class: Arc<Class>) {
        let resident = Resident {
            key: key.clone(),
            uid: pod.uid().into(),
            class,
            leaving: pod.facts().deleting.is_some(),
            started: pod.facts().created.0,
        };
        self.residence.insert(key.clone(), (node.clone(), resident.uid.clone()));
        match self.nodes.place(node) {
            Some(at) => {
                self.terms.count(at, &resident, 1);
                self.nodes.admit(at, resident);
            }
            None => {
                self.homeless.entry(node.clone()).or_default().insert(resident.uid.clone(), resident);
            }
        }
    }

    /// No longer counts a pod anywhere.
    fn forget(&mut self, key: &Str, now: Time) {
        self.assumed.remove(key);
        let Some((node, uid)) = self.residence.remove(key) else { return };
        if let Some(at) = self.nodes.place(&node)
            && let Some(resident) = self.nodes.dismiss(at, &uid)
        {
            self.terms.count(at, &resident, -1);
        }
        if let Some(residents) = self.homeless.get_mut(&node) {
            residents.remove(&uid);
            if residents.is_empty() {
                self.homeless.remove(&node);
            }
        }
        self.queue.wake(Wake::PodGone, now);
    }

    /// From here on the pod counts on the node, though no view shows it there yet.
    fn place(&mut self, key: &Str, node: &Str, pod: &Object, class: Arc<Class>) {
        self.queue.remove(key);
        self.pending.remove(key);
        self.nominated.remove(key);
        self.settle(key, node, pod, class);
        self.assumed.insert(key.clone());
    }

    /// Takes in what an earlier scheduler of this process decided and whose fate is open: it counts where the pod still waits.
    pub fn assume(&mut self, placement: &Placement) {
        let waiting = self.pending.get(&placement.key).filter(|pending| pending.object.uid() == placement.uid);
        if let Some((class, pod)) = waiting.map(|pending| (pending.class.clone(), pending.object.clone())) {
            self.place(&placement.key, &placement.node, &pod, class);
        }
    }

    /// Places up to `max` waiting pods.
    pub fn plan(&mut self, view: &View, now: Time, max: usize) -> Plan {
        let mut plan = Plan::default();
        self.queue.flush(now);
        self.terms.refresh(&self.nodes);
        self.terms.sum_up();
        while plan.placements.len() + plan.refusals.len() < max {
            let Some(key) = self.queue.pop(now) else { break };
            let Some(pending) = self.pending.get(&key) else {
                self.queue.remove(&key);
                continue;
            };
            let (class, pod) = (pending.class.clone(), pending.object.clone());
            let (namespace, name, uid) =
                (pod.facts().namespace.clone(), pod.facts().name.clone(), pod.facts().uid.clone());
            let reason = "Unschedulable";
            let needs = match Needs::of(&pod, &pending.claims, view) {
                Ok(needs) => needs,
                Err(why) => {
                    let message = format!("0/{} nodes are available: {why}.", self.nodes.count());
                    self.nominated.remove(&key);
                    self.queue.park(&key, &BTreeSet::from([volumes::PLUGIN]), now);
                    let (nominated, victims) = (None, Vec::new());
                    plan.refusals.push(Refusal { key, namespace, name, uid, reason, message, nominated, victims });
                    continue;
                }
            };
            match self.choose(&key, &class, &needs) {
                Some(at) if needs.is_open() => plan.choices.extend(self.wait_for_claims(&key, &class, &needs, at, now)),
                Some(at) => {
                    self.turn = at + 1;
                    let node = self.nodes.names[at].clone();
                    self.place(&key, &node, &pod, class);
                    plan.placements.push(Placement { key, namespace, name, uid, node });
                }
                None => {
                    let mask = self.refusals(&key, &class, &needs);
                    let (message, plugins) = self.explain(&class, &mask);
                    let victims = self.preempt(&key, &class, &mask, view);
                    let nominated = self.nominated.place_of(&key).map(|place| self.nodes.names[place].clone());
                    self.queue.park(&key, &plugins, now);
                    plan.refusals.push(Refusal { key, namespace, name, uid, reason, message, nominated, victims });
                }
            }
        }
        plan
    }

    /// Promises the pod its room on a node, and says what its claims have to hear of that.
    fn wait_for_claims(&mut self, key: &Str, class: &Arc<Class>, needs: &Needs, at: usize, now: Time) -> Vec<Choice> {
        self.turn = at + 1;
        self.nominated.insert(key, at, class);
        let choices = needs.choices(&self.nodes.names[at], &self.nodes.labels[at]).unwrap_or_default();
        if choices.is_empty() {
            self.queue.park(key, &BTreeSet::from([volumes::PLUGIN]), now);
        } else {
            // What could not be written is decided anew.
            self.queue.delay(key, now);
        }
        choices
    }

    /// The best of the nodes that take the pod; among equals the next in turn.
    fn choose(&mut self, key: &Str, class: &Arc<Class>, needs: &Needs) -> Option<usize> {
        let start = self.turn % self.nodes.len().max(1);
        if let Some(named) = &class.named {
            let places = named.iter().filter_map(|name| self.nodes.place(name));
            let free = |place: &usize| {
                self.refusal(*place, key, class) == 0
                    && needs.refusal(&self.nodes.names[*place], &self.nodes.labels[*place]) == 0
            };
            let free: BTreeSet<usize> = places.filter(free).collect();
            // Seldom are there several to choose from.
            if free.len() < 2 {
                return free.first().copied();
            }
        }
        let snapshot = Snapshot { nodes: &self.nodes, terms: &self.terms };
        let sight = self.sights.of(class, snapshot.nodes, snapshot.terms);
        let is_checked = plugins::around(class, &snapshot).next().is_some();
        let looks_around = is_checked || score::looks_around(class, &snapshot);
        if !looks_around && self.nominated.is_empty() && needs.is_empty() {
            return best(&sight.scores, start);
        }
        let mut scores = sight.scores.clone();
        let mask = self.refusals(key, class, needs);
        score::around(class, &Snapshot { nodes: &self.nodes, terms: &self.terms }, &mask, &mut scores);
        for (score, refusal) in scores.iter_mut().zip(&mask) {
            *score = if *refusal == 0 { *score } else { score::REFUSED };
        }
        best(&scores, start)
    }

    /// Why each node refuses the pod; 0 where none does.
    fn refusals(&mut self, key: &Str, class: &Arc<Class>, needs: &Needs) -> Mask {
        let snapshot = Snapshot { nodes: &self.nodes, terms: &self.terms };
        if let Some(named) = &class.named {
            let mut mask = vec![NO_AFFINITY; self.nodes.len()];
            for place in named.iter().filter_map(|name| self.nodes.place(name)) {
                mask[place] = self.refusal(place, key, class);
            }
            needs.filter(&self.nodes, &mut mask);
            return mask;
        }
        let mut mask = self.sights.of(class, snapshot.nodes, snapshot.terms).refusals.clone();
        for plugin in plugins::around(class, &snapshot) {
            plugin.filter(class, &snapshot, &mut Window { from: 0, mask: &mut mask });
        }
        for place in self.nominated.places() {
            if let Some(refusal) = mask.get_mut(place).filter(|refusal| **refusal == 0) {
                *refusal = self.promised(place, key, class);
            }
        }
        needs.filter(&self.nodes, &mut mask);
        mask
    }

    /// Why one node refuses the pod; 0 if it does not.
    fn refusal(&self, place: usize, key: &Str, class: &Class) -> Reason {
        let snapshot = Snapshot { nodes: &self.nodes, terms: &self.terms };
        let mut refusal = 0;
        for plugin in PLUGINS {
            plugin.filter(class, &snapshot, &mut Window { from: place, mask: std::slice::from_mut(&mut refusal) });
        }
        if refusal == 0 { self.promised(place, key, class) } else { refusal }
    }

    /// Why a node that could take the pod does not: preemption made its room for others of the same or higher priority. 0 if
    /// enough is left.
    fn promised(&self, place: usize, key: &Str, class: &Class) -> Reason {
        let (mut promised, mut pods) = (Amounts::default(), 0);
        for (_, other) in self.nominated.before(place, class, key) {
            promised.add(&other.requests, 1);
            pods += 1;
        }
        resources::lacks(class, &self.nodes, place, &promised, pods).unwrap_or(0)
    }

    /// `0/3 nodes are available: 2 Insufficient cpu, 1 …`, what would help, and the plugins that refused.
    fn explain(&self, class: &Class, mask: &Mask) -> (String, BTreeSet<&'static str>) {
        let total = self.nodes.count();
        if total == 0 {
            return ("no nodes available to schedule pods".to_owned(), BTreeSet::new());
        }
        let mut counts = [0usize; 1 + Reason::MAX as usize];
        for (reason, _) in mask.iter().zip(&self.nodes.present).filter(|(_, present)| **present) {
            counts[usize::from(*reason)] += 1;
        }
        let given = || (0..=Reason::MAX).zip(counts).filter(|(_, count)| *count > 0);
        let mut parts: Vec<String> =
            given().map(|(reason, count)| format!("{count} {}", words(reason, class))).collect();
        parts.sort();
        let rows = || given().filter_map(|(reason, _)| row(reason));
        let help: BTreeSet<&str> = rows().map(|row| row.help).collect();
        let help: Vec<&str> = help.into_iter().collect();
        let message =
            format!("0/{total} nodes are available: {}. What would help: {}.", parts.join(", "), help.join("; "));
        (message, rows().map(|row| row.plugin).collect())
    }

    /// Makes room for a pod, where others may go for it: their keys and uids.
    fn preempt(&mut self, key: &Str, class: &Arc<Class>, mask: &Mask, view: &View) -> Vec<(Str, Str)> {
        // It already waits for room that is being made.
        if let Some(place) = self.nominated.place_of(key)
            && self.nodes.residents[place]
                .iter()
                .any(|resident| resident.leaving && resident.class.priority < class.priority)
        {
            return Vec::new();
        }
        let promised = |place: usize| self.nominated.before(place, class, key).cloned().collect::<Vec<_>>();
        let (nodes, terms) = (&mut self.nodes, &mut self.terms);
        let earlier = preempt::Earlier { promised: &promised, doomed: &self.doomed };
        let Some(eviction) = preempt::find(class, nodes, terms, mask, self.turn, &earlier, view) else {
            // Somebody who matters more took what was made for it. What is left there is for whom it is enough.
            self.nominated.remove(key);
            return Vec::new();
        };
        self.nominated.insert(key, eviction.place, class);
        self.turn = eviction.place + 1;
        let doom = |victim: Resident| {
            self.doomed.insert(victim.uid.clone(), victim.class);
            (victim.key, victim.uid)
        };
        eviction.victims.into_iter().map(doom).collect()
    }

    /// The placement could not be written. `pod` is the pod as it is now; if it still waits, it is tried again later.
    pub fn failed(&mut self, placement: &Placement, pod: Option<&Object>, now: Time) {
        if !self.assumed.contains(&placement.key) {
            return;
        }
        self.forget(&placement.key, now);
        let Some(pod) = pod.filter(|pod| pod.uid() == placement.uid) else { return };
        let facts = api::core::pod_facts::of(pod);
        if facts.node.is_empty() && !facts.phase.is_final() {
            self.wait(placement.key.clone(), pod, facts.gated);
            self.queue.delay(&placement.key, now);
        }
    }

    /// Whether [`Scheduler::plan`] has something to do now.
    pub fn is_ready(&self) -> bool {
        self.queue.is_ready()
    }

    pub fn wake_at(&self) -> Option<Time> {
        self.queue.wake_at()
    }

    /// Pods that wait for a node.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Pods that came since the last call, are held by their own gates and do not say so yet.
    pub fn held(&mut self) -> Vec<Object> {
        std::mem::take(&mut self.held)
    }
}

fn key_of(pod: &Object) -> Str {
    cache::Key::of(pod.namespace(), pod.name()).0.as_str().into()
}

#[cfg(test)]
mod tests;
