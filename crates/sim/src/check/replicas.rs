//! Replicas: every decision of a controller, judged on the very view that it rests on. It makes no more pods than that
//! view asks for and lacks, takes no more than are too many, keeps a deployment within its stated surge and minimum, rolls
//! sets no faster than they state, and its view shows what it wrote itself before.
//!
//! A write that was refused, or given up, may be done all the same, when its message comes a second time: whoever asked
//! cannot know. What he decides next need not show it, but must not make up for it: he asks for the same pods again.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use api::core::pod_facts;
use base::Revision;
use cache::View;
use meta::quantity::int_or_percent;
use meta::{Object, Owner, Str, Value};

use super::{Checker, Seen};
use crate::desired::facts;
use crate::exec::Author;
use crate::gist::spec_of;
use crate::truth::Past;
use crate::user::{DAEMON_SETS, DEPLOYMENTS, JOBS, NODES, PODS, REPLICA_SETS, REQUIRED, STATEFUL_SETS};

/// Names the template that a pod of a stateful set was made of.
const TEMPLATE: &str = "controller-revision-hash";

/// The taints of nodes that take no daemon for now.
const LOST: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// What one decision about one owner has written so far.
#[derive(Default)]
struct Decision {
    life: u64,
    on: Revision,
    made: BTreeSet<Str>,
    taken: BTreeSet<Str>,
    /// New sizes of sets, by name: a message that comes again makes no other set.
    sizes: BTreeMap<Str, i64>,
    /// The newest revision that it wrote, as far as its maker can know.
    last: Revision,
    /// Pods made of it, or of those before it, after their maker had heard otherwise; what it decides on lacks them.
    late: BTreeMap<Str, Object>,
    /// The most pods that the decisions asked for of which those are.
    late_most: i64,
}

#[derive(Default)]
pub struct Replicas {
    /// The latest decision about each owner, by uid.
    decisions: BTreeMap<Str, Decision>,
    /// Calls that were refused, and those that nobody waits for any more.
    over: BTreeSet<u64>,
}

/// So many calls back a message may come that nobody waits for any more.
const CALLS_KEPT: usize = 20_000;

/// What a pod of an owner is judged by: the pod, the owner and the view of the decision, and what it has made so far.
type Rule = fn(&Object, &Object, &View, &Decision) -> Result<(), String>;

/// Controller, its kind, and the rule for pods that it makes.
const MAKERS: &[(&str, &str, meta::Resource, Rule)] = &[
    (":replicaset-controller", "ReplicaSet", REPLICA_SETS, for_replica_set),
    (":job-controller", "Job", JOBS, for_job),
    (":daemon-set-controller", "DaemonSet", DAEMON_SETS, for_daemon_set),
    (":statefulset-controller", "StatefulSet", STATEFUL_SETS, for_stateful_set),
];

/// The same for pods that a controller takes away.
const TAKERS: &[(&str, &str, meta::Resource, Rule)] = &[
    (":replicaset-controller", "ReplicaSet", REPLICA_SETS, from_replica_set),
    (":daemon-set-controller", "DaemonSet", DAEMON_SETS, from_daemon_set),
    (":statefulset-controller", "StatefulSet", STATEFUL_SETS, from_stateful_set),
];

fn active<'a>(owner: &'a str, view: &'a View) -> impl Iterator<Item = &'a Object> {
    view.owned(PODS, owner).filter(move |pod| {
        pod.facts().controller().is_some_and(|one| one.uid == owner)
            && pod.facts().deleting.is_none()
            && !pod_facts::of(pod).phase.is_final()
    })
}

fn number(value: &Value, path: &[&str], default: i64) -> i64 {
    value.at(path).as_int().unwrap_or(default)
}

fn at_most(had: usize, decision: &Decision, most: i64) -> Result<(), String> {
    let late = decision.late.keys().filter(|name| !decision.made.contains(*name)).count() as i64;
    let (had, made) = (had as i64, decision.made.len() as i64);
    if had + made <= most && had + made + late <= most.max(decision.late_most) {
        return Ok(());
    }
    Err(format!(
        "{made} pods were made beside {had}, and {late} that were refused at first, where {most} were asked for"
    ))
}

fn for_replica_set(_: &Object, set: &Object, view: &View, decision: &Decision) -> Result<(), String> {
    at_most(active(set.uid(), view).count(), decision, number(&set.value(), &["spec", "replicas"], 1))
}

fn for_job(_: &Object, job: &Object, view: &View, decision: &Decision) -> Result<(), String> {
    at_most(active(job.uid(), view).count(), decision, number(&job.value(), &["spec", "parallelism"], 1))
}

/// The node that a daemon's pod is on, or is for, as its affinity says.
fn place(pod: &Object) -> Str {
    let node = facts(pod).node;
    if !node.is_empty() {
        return node;
    }
    let affinity = spec_of(pod, "affinity");
    let required = affinity.at(&["nodeAffinity", REQUIRED]);
    required["nodeSelectorTerms"][0]["matchFields"][0]["values"][0].text().into()
}

/// One pod for each node; a set of the user's states no surge.
fn for_daemon_set(pod: &Object, set: &Object, view: &View, decision: &Decision) -> Result<(), String> {
    let wanted = place(pod);
    let is_there = |other: &&Object| match &pod_facts::of(other).node {
        node if node.is_empty() => place(other) == wanted,
        node => *node == wanted,
    };
    let late = decision.late.values().filter(|late| !decision.made.contains(late.name())).filter(is_there);
    let there = active(set.uid(), view).filter(is_there).chain(late).count();
    if there == 0 || decision.made.is_empty() {
        return Ok(());
    }
    Err(format!("a pod was made for a node that has {there} of them"))
}

fn ordinal_of(name: &str) -> Option<i64> {
    name.rsplit_once('-').and_then(|(_, number)| number.parse().ok())
}

fn ordinal(pod: &Object) -> Option<i64> {
    ordinal_of(pod.name())
}

/// The ordinals that a stateful set asks for.
fn ordinals(set: &Value) -> Range<i64> {
    let start = number(set, &["spec", "ordinals", "start"], 0);
    start..start + number(set, &["spec", "replicas"], 1)
}

/// Ordinals below what is asked for; in order, each after all before it serve.
fn for_stateful_set(pod: &Object, set: &Object, view: &View, _: &Decision) -> Result<(), String> {
    let value = set.value();
    let Some(wanted) = ordinal(pod) else { return Err("its pod has no ordinal".to_owned()) };
    let Range { start, end } = ordinals(&value);
    if !(start..end).contains(&wanted) {
        return Err(format!("pod {wanted} was made, where {start} to {end} were asked for"));
    }
    if value["spec"]["podManagementPolicy"].text() == "Parallel" {
        return Ok(());
    }
    let serving: BTreeSet<i64> = active(set.uid(), view).filter(|pod| facts(pod).ready).filter_map(ordinal).collect();
    match (start..wanted).find(|before| !serving.contains(before)) {
        Some(before) => Err(format!("pod {wanted} was made while {before} does not serve")),
        None => Ok(()),
    }
}

fn from_replica_set(_: &Object, set: &Object, view: &View, decision: &Decision) -> Result<(), String> {
    let (had, taken) = (active(set.uid(), view).count(), decision.taken.len());
    if had as i64 - taken as i64 >= size(set) {
        return Ok(());
    }
    Err(format!("of {had} pods {taken} were taken, though {} are asked for", size(set)))
}

/// As many nodes are served as there are, but for those that the set may leave out while it rolls; a lost one counts with
/// the pod that it has. Whatever does not serve may go, and so may one of two.
fn from_daemon_set(pod: &Object, set: &Object, view: &View, decision: &Decision) -> Result<(), String> {
    let serves = |pod: &&Object| pod_facts::of(pod).ready;
    let served = |but: &dyn Fn(&str) -> bool| -> BTreeSet<Str> {
        let pods = active(set.uid(), view).filter(serves).filter(|pod| !but(pod.name()));
        pods.map(|pod| facts(pod).node).collect()
    };
    let before = served(&|name| decision.taken.contains(name) && name != pod.name());
    let after = served(&|name| decision.taken.contains(name)).len() as i64;
    let homes: BTreeSet<Str> = view.owned(PODS, set.uid()).map(|pod| facts(pod).node).collect();
    let is_lost = |node: &Object| {
        let value = node.value();
        value["spec"]["taints"].items().iter().any(|taint| LOST.contains(&taint["key"].text()))
    };
    let nodes = view.list(NODES, "").filter(|node| homes.contains(node.name()) || !is_lost(node)).count() as i64;
    let unavailable = &set.value()["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"];
    let least = nodes - int_or_percent(unavailable, nodes, true).unwrap_or(1);
    if before.len() as i64 == after || after >= least {
        return Ok(());
    }
    Err(format!("it takes a pod that serves, and {after} of {nodes} nodes are served then, {least} at least"))
}

/// Beyond what is asked for the last goes first, and nobody while another one goes. Within, one goes that has ended; or, to
/// be made of a newer template, one at a time, in order only while all serve.
fn from_stateful_set(pod: &Object, set: &Object, view: &View, decision: &Decision) -> Result<(), String> {
    let value = set.value();
    let own = || view.owned(PODS, set.uid());
    let Some((known, place)) = own().find(|known| known.uid() == pod.uid()).zip(ordinal(pod)) else {
        return Err("it takes a pod that is not in its view".to_owned());
    };
    let (asked, ordered) = (ordinals(&value), value["spec"]["podManagementPolicy"].text() != "Parallel");
    if pod_facts::of(known).phase.is_final() {
        return Ok(());
    }
    if !asked.contains(&place) {
        let later = own().filter_map(ordinal).find(|other| *other > place && !asked.contains(other));
        return match later.filter(|_| ordered) {
            Some(later) => Err(format!("pod {place} was taken while there is pod {later}")),
            None => Ok(()),
        };
    }
    let is_seen = number(&value, &["status", "observedGeneration"], 0) == set.facts().generation;
    if is_seen && known.labels().get(TEMPLATE) == value.at(&["status", "updateRevision"]).as_str() {
        return Err(format!("pod {place} was taken, which is of the newest template"));
    }
    let within = decision.taken.iter().filter_map(|name| ordinal_of(name)).filter(|taken| asked.contains(taken));
    if within.count() > 1 {
        return Err(format!("pods {:?} were taken at once", decision.taken));
    }
    let serving: BTreeSet<i64> = active(set.uid(), view).filter(|pod| facts(pod).ready).filter_map(ordinal).collect();
    match asked.clone().find(|other| !serving.contains(other)).filter(|_| ordered) {
        Some(other) => Err(format!("pod {place} was taken while {other} does not serve")),
        None => Ok(()),
    }
}

/// The fewest and the most pods that a deployment states.
fn limits(deployment: &Object) -> (i64, i64) {
    let value = deployment.value();
    let (replicas, strategy) = (number(&value, &["spec", "replicas"], 1), &value["spec"]["strategy"]);
    if strategy["type"].text() == "Recreate" {
        return (0, replicas);
    }
    let of = |field: &str, up| int_or_percent(&strategy["rollingUpdate"][field], replicas, up).unwrap_or(0);
    let (surge, unavailable) = (of("maxSurge", true), of("maxUnavailable", false));
    let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
    ((replicas - unavailable).max(0), replicas + surge)
}

fn size(set: &Object) -> i64 {
    number(&set.value(), &["spec", "replicas"], 1)
}

impl Replicas {
    /// The decision that a write belongs to; a new one must show what its owner's last one wrote. `None` for a message
    /// that comes again, long after its decision was carried out.
    fn decision(&mut self, owner: &str, author: &Author, revision: Revision) -> Result<Option<&mut Decision>, String> {
        let decision = self.decisions.entry(owner.into()).or_default();
        if author.life < decision.life || author.life == decision.life && author.decided_on < decision.on {
            return Ok(None);
        }
        if (decision.life, decision.on) != (author.life, author.decided_on) {
            if decision.life == author.life && decision.last > author.decided_on {
                return Err(format!(
                    "{} decided on revision {}, which lacks its own write {}",
                    author.who, author.decided_on, decision.last
                ));
            }
            let mut late = std::mem::take(&mut decision.late);
            late.retain(|_, pod| decision.life == author.life && pod.revision() > author.decided_on);
            let late_most = if late.is_empty() { 0 } else { decision.late_most };
            let (life, on) = (author.life, author.decided_on);
            *decision = Decision { life, on, late, late_most, ..Decision::default() };
        }
        if !self.over.contains(&author.call) {
            decision.last = revision;
        }
        Ok(Some(decision))
    }

    fn made(&mut self, pod: &Object, author: &Author, past: &Past<'_>) -> Result<(), String> {
        let Some((_, kind, resource, rule)) = MAKERS.iter().find(|row| author.who.ends_with(row.0)) else {
            return Ok(());
        };
        let Some(owner) = pod.facts().controller().filter(|owner| owner.kind == *kind) else { return Ok(()) };
        let named =
            |why: String| format!("{kind} {}/{}, by its controller's doing: {why}", pod.namespace(), owner.name);
        let is_late = self.over.contains(&author.call);
        let Some(decision) = self.decision(&owner.uid, author, pod.revision()).map_err(named)? else { return Ok(()) };
        decision.made.insert(pod.name().into());
        if is_late {
            decision.late.insert(pod.name().into(), pod.clone());
        }
        let Some(view) = past.at(author.decided_on) else { return Ok(()) };
        let found = view.one(*resource, pod.namespace(), &owner.name).filter(|found| found.uid() == owner.uid);
        if let Some(found) = found.filter(|_| is_late) {
            let asked = if *kind == "Job" { "parallelism" } else { "replicas" };
            decision.late_most = decision.late_most.max(number(&found.value(), &["spec", asked], 1));
        }
        match found {
            Some(found) => rule(pod, found, view, decision).map_err(named),
            None => Err(named("it is not in the view that was decided on".to_owned())),
        }
    }

    fn taken(&mut self, pod: &Object, author: &Author, revision: Revision, past: &Past<'_>) -> Result<(), String> {
        let Some((_, kind, resource, rule)) = TAKERS.iter().find(|row| author.who.ends_with(row.0)) else {
            return Ok(());
        };
        let Some(owner) = pod.facts().controller().filter(|owner| owner.kind == *kind) else { return Ok(()) };
        let named =
            |why: String| format!("{kind} {}/{}, by its controller's doing: {why}", pod.namespace(), owner.name);
        let Some(decision) = self.decision(&owner.uid, author, revision).map_err(named)? else { return Ok(()) };
        decision.taken.insert(pod.name().into());
        let Some(view) = past.at(author.decided_on) else { return Ok(()) };
        let found = view.one(*resource, pod.namespace(), &owner.name).filter(|found| found.uid() == owner.uid);
        found.map_or(Ok(()), |found| rule(pod, found, view, decision).map_err(named))
    }

    /// A deployment's set was made or resized.
    fn sized(&mut self, set: &Object, old: Option<&Object>, author: &Author, past: &Past<'_>) -> Result<(), String> {
        let Some(owner) = set.facts().controller().filter(|owner| owner.kind == "Deployment") else { return Ok(()) };
        let (had, has) = (old.map_or(0, size), size(set));
        if had == has {
            return Ok(());
        }
        let name = format!("Deployment {}/{}", set.namespace(), owner.name);
        let named = |why| format!("{name}, by its controller's doing: {why}");
        let Some(decision) = self.decision(&owner.uid, author, set.revision()).map_err(named)? else { return Ok(()) };
        let Some(view) = past.at(author.decided_on) else { return Ok(()) };
        let (was, _) = sum(owner, view, &decision.sizes);
        decision.sizes.insert(set.name().into(), has);
        let (is, told) = sum(owner, view, &decision.sizes);
        let found = view.one(DEPLOYMENTS, set.namespace(), &owner.name).filter(|found| found.uid() == owner.uid);
        let Some((least, most)) = found.map(limits) else {
            return Err(format!("{name} is not in the view that was decided on"));
        };
        if has > had && is > was && is > most {
            return Err(format!("{name} asks for {is} pods, its limit with surge is {most}: {told}"));
        }
        if has < had && is < was && is < least {
            return Err(format!("{name} asks for {is} pods only, its least is {least}: {told}"));
        }
        Ok(())
    }
}

/// What all sets of a deployment ask for in a view with these sizes changed, and a sentence about it.
fn sum(owner: &Owner, view: &View, sizes: &BTreeMap<Str, i64>) -> (i64, String) {
    let mut all: BTreeMap<Str, (i64, String)> = BTreeMap::new();
    for set in view.owned(REPLICA_SETS, &owner.uid) {
        let serve = number(&set.value(), &["status", "availableReplicas"], 0);
        all.insert(set.name().into(), (size(set), format!("{} {} of which {serve} serve", set.name(), size(set))));
    }
    for (name, size) in sizes {
        all.entry(name.clone()).or_insert_with(|| (0, "a new one".to_owned())).0 = *size;
    }
    let told: Vec<String> = all.values().map(|(_, told)| told.clone()).collect();
    (all.values().map(|(size, _)| size).sum(), told.join(", "))
}

impl Checker for Replicas {
    fn name(&self) -> &'static str {
        "replicas"
    }

    fn see(&mut self, seen: &Seen<'_>, past: &Past<'_>) -> Result<(), String> {
        if let Seen::Refused { call } | Seen::Answered { call, .. } = seen {
            self.over.insert(*call);
            if self.over.len() > CALLS_KEPT {
                self.over.pop_first();
            }
        }
        let Seen::Commit { revision, changes, author, .. } = seen else { return Ok(()) };
        if author.decided_on == Revision::ZERO {
            return Ok(());
        }
        for change in *changes {
            let Some(object) = change.new.as_ref().or(change.old.as_ref()) else { continue };
            if object.resource() == PODS && change.old.is_none() {
                self.made(object, author, past)?;
            }
            if object.resource() == PODS
                && let Some(old) = change.old.as_ref().filter(|old| old.facts().deleting.is_none())
                && change.new.as_ref().is_none_or(|new| new.facts().deleting.is_some())
            {
                self.taken(old, author, *revision, past)?;
            }
            if object.resource() == REPLICA_SETS
                && author.who.ends_with(":deployment-controller")
                && let Some(new) = &change.new
            {
                self.sized(new, change.old.as_ref(), author, past)?;
            }
        }
        Ok(())
    }
}
