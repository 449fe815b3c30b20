//! Deployments: one ReplicaSet per template, rolled from old to new within the limits of the strategy.
//!
//! `status` holds what is told about a deployment; this file what is done.

mod math;
mod status;

use cache::{Event, View};
use meta::{Object, Resource, Selector, Str, Value, json};
use reconcile::{Context, Effect, Outcome, Reconciler};

use crate::common::*;
use math::Limits;

const NAME: &str = "deployment-controller";
const DEPLOYMENT: Gvk = Gvk { api_version: "apps/v1", kind: "Deployment" };
pub const HASH_LABEL: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of a deployment that its sets do not inherit.
const NOT_INHERITED: &[&str] = &[
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

pub struct Deployments;

/// A ReplicaSet of the deployment, decoded.
#[derive(Clone)]
pub struct Set {
    pub object: Object,
    pub value: Value,
    /// As it will be after this pass.
    pub replicas: i64,
}

impl Set {
    fn of(object: Object) -> Set {
        let value = object.value();
        let replicas = value["spec"]["replicas"].as_int().unwrap_or(1);
        Set { object, value, replicas }
    }

    /// Pods that serve and will stay: what serves beyond the wanted number is about to go, and the status says so late.
    pub fn available(&self) -> i64 {
        self.value["status"]["availableReplicas"].as_int().unwrap_or(0).min(self.replicas)
    }

    fn annotation(&self, key: &str) -> &str {
        self.value.at(&["metadata", "annotations", key]).text()
    }

    fn number(&self, key: &str) -> Option<i64> {
        self.annotation(key).parse().ok()
    }

    fn revision(&self) -> i64 {
        self.number(REVISION).unwrap_or(0)
    }
}

/// One look at one deployment.
pub struct Look {
    pub object: Object,
    pub value: Value,
    pub replicas: i64,
    pub limits: Limits,
    pub new: Option<Set>,
    /// Oldest first.
    pub old: Vec<Set>,
}

impl Look {
    fn spec(&self) -> &Value {
        &self.value["spec"]
    }

    pub fn all(&self) -> impl Iterator<Item = &Set> {
        self.old.iter().chain(self.new.iter())
    }

    fn total(&self) -> i64 {
        self.all().map(|set| set.replicas).sum()
    }

    fn is_recreate(&self) -> bool {
        self.spec()["strategy"]["type"].text() == "Recreate"
    }
}

impl Reconciler for Deployments {
    fn name(&self) -> &'static str {
        NAME
    }

    fn watches(&self) -> &[Resource] {
        &[DEPLOYMENTS, REPLICA_SETS, PODS]
    }

    fn keys(&self, resource: Resource, event: &Event, view: &View, out: &mut Vec<Str>) {
        match resource {
            DEPLOYMENTS => out.extend(event.new.iter().map(key_of)),
            REPLICA_SETS => {
                owner_keys(event, "Deployment", out);
                neighbours(view, DEPLOYMENTS, event, out);
            }
            // Recreate waits for pods to be gone; nothing else here looks at pods.
            _ if event.new.is_none() => {
                let owner = event.old.as_ref().and_then(|pod| pod.facts().controller().map(|owner| (pod, owner)));
                let set = owner.and_then(|(pod, owner)| view.one(REPLICA_SETS, pod.namespace(), &owner.name));
                if let Some(set) = set
                    && let Some(owner) = set.facts().controller()
                {
                    out.push(join(set.namespace(), &owner.name));
                }
            }
            _ => {}
        }
    }

    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome {
        let (namespace, name) = split(key);
        let Some(object) = view.one(DEPLOYMENTS, namespace, name) else { return Outcome::Settled };
        let value = object.value();
        let selector = Selector::of(&value["spec"]["selector"]);
        if selector.is_everything() {
            return Outcome::Settled;
        }
        let mut sets: Vec<Set> =
            claim(view, REPLICA_SETS, object, DEPLOYMENT, &|one| selector.matches(one.labels()), cx)
                .into_iter()
                .map(Set::of)
                .collect();
        if !cx.effects.is_empty() {
            // Taken or let go: the next view shows whose they are.
            return Outcome::Settled;
        }
        sets.sort_by(|a, b| {
            (a.object.facts().created, a.object.name()).cmp(&(b.object.facts().created, b.object.name()))
        });
        let template = plain_template(&value["spec"]["template"]);
        let new = sets.iter().position(|set| plain_template(&set.value["spec"]["template"]) == template);
        let new = new.map(|at| sets.remove(at));
        let replicas = value["spec"]["replicas"].as_int().unwrap_or(1);
        let limits = Limits::of(&value["spec"]["strategy"], replicas);
        let mut look = Look { object: object.clone(), value, replicas, limits, new, old: sets };
        let mut again = None;
        if is_deleting(object) {
            status::write(&look, false, None, cx, &mut again);
            return outcome(again);
        }
        act(&mut look, view, cx, &mut again);
        outcome(again)
    }
}

/// A template as it is compared: without the label that tells templates apart.
fn plain_template(template: &Value) -> Value {
    let mut template = template.clone();
    template.take(&["metadata", "labels", HASH_LABEL]);
    essence(&template)
}

fn act(look: &mut Look, view: &View, cx: &mut Context, again: &mut Option<base::Time>) {
    let paused = look.spec()["paused"].is_true();
    if status::write_paused(look, paused, cx) {
        return;
    }
    let scaling = look.all().any(|set| set.replicas > 0 && set.number(DESIRED).is_some_and(|was| was != look.replicas));
    if paused || scaling {
        if renumber(look, cx) {
            return;
        }
        scale_evenly(look, cx);
        if paused {
            clean_up(look, cx);
        }
        status::write(look, false, None, cx, again);
        return;
    }
    if look.is_recreate() {
        let waiting = look.old.iter().any(|set| set.replicas > 0 || has_running_pods(set, view));
        if waiting {
            if renumber(look, cx) {
                return;
            }
            let old: Vec<usize> = (0..look.old.len()).filter(|at| look.old[*at].replicas > 0).collect();
            old.into_iter().for_each(|at| resize(look, Which::Old(at), 0, cx));
            status::write(look, true, None, cx, again);
            return;
        }
    }
    let made = match ensure_new(look, view, cx) {
        New::Busy => return,
        New::Made(name) => Some(name),
        New::There => None,
    };
    if made.is_none() {
        roll(look, cx);
    }
    if status::is_complete(look) {
        clean_up(look, cx);
    }
    status::write(look, true, made, cx, again);
}

fn has_running_pods(set: &Set, view: &View) -> bool {
    set.value["status"]["replicas"].as_int().unwrap_or(0) > 0
        || view.owned(PODS, set.object.uid()).any(|pod| !pod_facts(pod).phase.is_final())
}

/// One step of a rollout: the new set up, or else the old ones down.
fn roll(look: &mut Look, cx: &mut Context) {
    let Some(new) = &look.new else { return };
    let target = if look.is_recreate() { look.replicas } else { math::new_replicas(look, new.replicas) };
    if target != new.replicas {
        return resize(look, Which::New, target, cx);
    }
    for (at, target) in math::old_replicas(look) {
        resize(look, Which::Old(at), target, cx);
    }
}

#[derive(Clone, Copy)]
enum Which {
    New,
    Old(usize),
}

/// Changes a set's number of replicas and what it knows of the deployment's.
fn resize(look: &mut Look, which: Which, target: i64, cx: &mut Context) {
    let (desired, max) = (look.replicas.to_string(), (look.replicas + look.limits.surge).to_string());
    let set = match which {
        Which::New => look.new.as_mut(),
        Which::Old(at) => look.old.get_mut(at),
    };
    let Some(set) = set else { return };
    let from = set.replicas;
    if from == target && set.annotation(DESIRED) == desired && set.annotation(MAX) == max {
        return;
    }
    set.value.set(&["spec", "replicas"], target);
    set.value.set(&["metadata", "annotations", DESIRED], desired);
    set.value.set(&["metadata", "annotations", MAX], max);
    set.replicas = target;
    cx.push(Effect::Update { resource: REPLICA_SETS, object: set.value.clone() });
    if from != target {
        let direction = if target > from { "up" } else { "down" };
        let message = format!("Scaled {direction} replica set {} from {from} to {target}", set.object.name());
        record(cx, NAME, DEPLOYMENT, &look.object, "Normal", "ScalingReplicaSet", message);
    }
}

/// Follows a change of `replicas`, or a pause: every active set gets its share.
fn scale_evenly(look: &mut Look, cx: &mut Context) {
    for (which, target) in math::shares(look) {
        let which = if which == look.old.len() { Which::New } else { Which::Old(which) };
        resize(look, which, target, cx);
    }
}

enum New {
    There,
    /// It was made, or counted anew, and the next view shows it.
    Made(String),
    Busy,
}

/// Makes sure that the new set exists and is the latest revision.
fn ensure_new(look: &mut Look, view: &View, cx: &mut Context) -> New {
    if look.new.is_some() {
        return if renumber(look, cx) { New::Busy } else { New::There };
    }
    let template = &look.spec()["template"];
    let collisions = look.value["status"]["collisionCount"].as_int().unwrap_or(0);
    let hash = hash_of(&essence(template), collisions);
    let name = format!("{}-{hash}", look.object.name());
    if view.one(REPLICA_SETS, look.object.namespace(), &name).is_some_and(|found| !is_deleting(found)) {
        // The name is taken by a set that is not ours or has another template.
        let mut status = look.value["status"].clone();
        status.set(&["collisionCount"], collisions + 1);
        write_status(cx, &look.object, &look.value, status);
        return New::Busy;
    }
    let revision = look.old.iter().map(Set::revision).max().unwrap_or(0) + 1;
    let mut labels = template["metadata"]["labels"].clone();
    labels.set(&[HASH_LABEL], &hash);
    let mut selector = look.spec()["selector"].clone();
    selector.set(&["matchLabels", HASH_LABEL], &hash);
    let mut pods = template.clone();
    pods.set(&["metadata", "labels"], labels.clone());
    let mut annotations = inherited(look);
    annotations.set(&[REVISION], revision.to_string());
    annotations.set(&[DESIRED], look.replicas.to_string());
    annotations.set(&[MAX], (look.replicas + look.limits.surge).to_string());
    let replicas = if look.is_recreate() { look.replicas } else { math::new_replicas(look, 0) };
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": {
            "name": (&name), "namespace": (look.object.namespace()), "labels": labels, "annotations": annotations,
            "ownerReferences": [(reference(DEPLOYMENT, &look.object))],
        },
        "spec": {"replicas": replicas, "selector": selector, "template": pods},
    });
    if let Some(seconds) = look.spec()["minReadySeconds"].as_int().filter(|seconds| *seconds > 0) {
        object.set(&["spec", "minReadySeconds"], seconds);
    }
    cx.push(Effect::Create { resource: REPLICA_SETS, object });
    if replicas > 0 {
        let message = format!("Scaled up replica set {name} from 0 to {replicas}");
        record(cx, NAME, DEPLOYMENT, &look.object, "Normal", "ScalingReplicaSet", message);
    }
    number(look, revision, cx);
    New::Made(name)
}

fn inherited(look: &Look) -> Value {
    let mut annotations = look.value["metadata"]["annotations"].clone();
    annotations.make_map().retain(|key, _| !NOT_INHERITED.contains(&key));
    annotations
}

/// Gives the new set the latest revision, the deployment's annotations and `minReadySeconds`, and the deployment the
/// set's revision. Says whether something had to be written.
fn renumber(look: &mut Look, cx: &mut Context) -> bool {
    let wanted = look.old.iter().map(Set::revision).max().unwrap_or(0) + 1;
    let extra = inherited(look);
    let min_ready = look.spec()["minReadySeconds"].as_int().unwrap_or(0);
    let Some(set) = &mut look.new else { return false };
    let mut value = set.value.clone();
    for (key, text) in extra.entries().iter() {
        value.set(&["metadata", "annotations", key], text.clone());
    }
    let had = set.revision();
    if had < wanted {
        if had > 0 {
            let history = match set.annotation(REVISION_HISTORY) {
                "" => had.to_string(),
                before => format!("{before},{had}"),
            };
            value.set(&["metadata", "annotations", REVISION_HISTORY], history);
        }
        value.set(&["metadata", "annotations", REVISION], wanted.to_string());
    }
    if value["spec"]["minReadySeconds"].as_int().unwrap_or(0) != min_ready {
        value.set(&["spec", "minReadySeconds"], min_ready);
    }
    let revision = had.max(wanted);
    let changed = value != set.value;
    if changed {
        set.value = value.clone();
        cx.push(Effect::Update { resource: REPLICA_SETS, object: value });
    }
    number(look, revision, cx) || changed
}

/// Writes the revision on the deployment.
fn number(look: &Look, revision: i64, cx: &mut Context) -> bool {
    let revision = revision.to_string();
    if look.value.at(&["metadata", "annotations", REVISION]).text() == revision {
        return false;
    }
    let mut value = look.value.clone();
    value.set(&["metadata", "annotations", REVISION], revision);
    cx.push(Effect::Update { resource: DEPLOYMENTS, object: value });
    true
}

/// Removes the oldest sets without pods beyond the history limit.
fn clean_up(look: &Look, cx: &mut Context) {
    let Some(limit) = look.spec()["revisionHistoryLimit"].as_int().and_then(|limit| usize::try_from(limit).ok()) else {
        return;
    };
    let mut old: Vec<&Set> = look.old.iter().filter(|set| !is_deleting(&set.object)).collect();
    old.sort_by_key(|set| set.revision());
    let excess = old.len().saturating_sub(limit);
    for set in old.into_iter().take(excess) {
        let status = &set.value["status"];
        let observed = status["observedGeneration"].as_int().unwrap_or(0);
        if status["replicas"].as_int().unwrap_or(0) == 0
            && set.replicas == 0
            && observed >= set.object.facts().generation
        {
            delete(cx, &set.object, "");
        }
    }
}
