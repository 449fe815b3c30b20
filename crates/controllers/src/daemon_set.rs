//! DaemonSets: one pod on every node that fits.

use api::core::node_facts::NodeFacts;
use api::core::pod_facts::{self, Phase};
use cache::{Event, View};
use meta::quantity::int_or_percent;
use meta::{Object, Resource, Selector, Str, Value, json};
use reconcile::{Context, Effect, Outcome, Reconciler};

use crate::common::*;
use crate::history::{Keeper, Revision};
use api::core::node_fit::{Choice, NO_EXECUTE, NO_SCHEDULE, bears};

const REPORTER: &str = "daemonset-controller";
const DAEMON_SET: Gvk = Gvk { api_version: "apps/v1", kind: "DaemonSet" };
const HASH_LABEL: &str = "controller-revision-hash";
const GENERATION: &str = "deprecated.daemonset.template.generation";

/// Taints that daemon pods bear, whatever their template says.
const BORNE: &[(&str, &str)] = &[
    ("node.kubernetes.io/not-ready", NO_EXECUTE),
    ("node.kubernetes.io/unreachable", NO_EXECUTE),
    ("node.kubernetes.io/disk-pressure", NO_SCHEDULE),
    ("node.kubernetes.io/memory-pressure", NO_SCHEDULE),
    ("node.kubernetes.io/pid-pressure", NO_SCHEDULE),
    ("node.kubernetes.io/unschedulable", NO_SCHEDULE),
];

pub struct DaemonSets;

struct Daemon<'a> {
    pod: &'a Object,
    phase: Phase,
    ready: bool,
    available: bool,
    updated: bool,
}

/// A node and the set's pods on it, oldest first.
struct Place<'a> {
    node: &'a Object,
    /// A pod should be made if there is none.
    runs: bool,
    /// A pod that is there may stay.
    stays: bool,
    pods: Vec<Daemon<'a>>,
}

struct Look<'a> {
    view: &'a View,
    object: &'a Object,
    value: &'a Value,
    template: Value,
    update: Revision,
    surge: i64,
    unavailable: i64,
    /// Its namespace takes no new pods.
    ends: bool,
}

impl Reconciler for DaemonSets {
    fn name(&self) -> &'static str {
        "daemon-set-controller"
    }

    fn watches(&self) -> &[Resource] {
        &[DAEMON_SETS, PODS, REVISIONS, NODES]
    }

    fn keys(&self, resource: Resource, event: &Event, view: &View, out: &mut Vec<Str>) {
        match resource {
            DAEMON_SETS => out.extend(event.new.iter().map(key_of)),
            NODES => {
                // A node's heartbeat in its status changes nothing here.
                let same = match (&event.old, &event.new) {
                    (Some(old), Some(new)) => {
                        old.labels() == new.labels()
                            && old.facts().generation == new.facts().generation
                            && NodeFacts::seen(old).spec == NodeFacts::seen(new).spec
                    }
                    _ => false,
                };
                if !same {
                    out.extend(view.list(DAEMON_SETS, "").map(key_of));
                }
            }
            PODS => {
                let node = |pod: &Option<Object>| pod.as_ref().map(|pod| pod_facts(pod).node);
                if !counts_as_before(event) || node(&event.old) != node(&event.new) {
                    owner_keys(event, "DaemonSet", out);
                    neighbours(view, DAEMON_SETS, event, out);
                }
            }
            _ => owner_keys(event, "DaemonSet", out),
        }
    }

    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome {
        let (namespace, name) = split(key);
        let Some(object) = view.one(DAEMON_SETS, namespace, name) else { return Outcome::Settled };
        let value = object.value();
        let selector = Selector::of(&value["spec"]["selector"]);
        if selector.is_everything() {
            return Outcome::Settled;
        }
        let revisions = claim(view, REVISIONS, object, DAEMON_SET, &|one| selector.matches(one.labels()), cx);
        let pods = claim(view, PODS, object, DAEMON_SET, &|one| selector.matches(one.labels()), cx);
        if !cx.effects.is_empty() {
            // Taken or let go: the next view shows whose they are.
            return Outcome::Settled;
        }
        let keeper = Keeper { of: DAEMON_SET, owner: object, value: &value, hash_label: HASH_LABEL };
        let Some((update, old)) = keeper.sync(revisions, cx) else { return Outcome::Settled };
        keeper.truncate(&old, |one| pods.iter().any(|pod| pod.labels().get(HASH_LABEL) == Some(one.hash.as_str())), cx);
        let mut again = None;
        let template = with_tolerations(&value["spec"]["template"]);
        let mut places = places(view, &template);
        let homeless = settle(&mut places, &pods, &value, &update, cx, &mut again);
        let desired = i64::try_from(places.iter().filter(|place| place.runs).count()).unwrap_or(i64::MAX);
        let rolling = &value["spec"]["updateStrategy"]["rollingUpdate"];
        let look = Look {
            view,
            object,
            value: &value,
            template,
            update,
            surge: int_or_percent(&rolling["maxSurge"], desired, true).unwrap_or(0),
            unavailable: int_or_percent(&rolling["maxUnavailable"], desired, true).unwrap_or(1),
            ends: is_ending(namespace, view),
        };
        if !is_deleting(object) {
            homeless.iter().for_each(|pod| look.remove(pod, cx));
            look.manage(&places, cx);
            if value["spec"]["updateStrategy"]["type"].text() != "OnDelete" {
                look.roll(&places, cx);
            }
        }
        let status = look.status(&places);
        // Nothing of the status is looked at.
        cx.last = cx.effects.is_empty();
        write_status(cx, object, &value, status);
        outcome(again)
    }
}

fn with_tolerations(template: &Value) -> Value {
    let mut template = template.clone();
    let host_network = template["spec"]["hostNetwork"].is_true();
    let list = template.make(&["spec", "tolerations"]).make_list();
    let network = host_network.then_some(("node.kubernetes.io/network-unavailable", NO_SCHEDULE));
    for (key, effect) in BORNE.iter().copied().chain(network) {
        let toleration = json!({"key": key, "operator": "Exists", "effect": effect});
        if !list.contains(&toleration) {
            list.push(toleration);
        }
    }
    template
}

fn places<'a>(view: &'a View, template: &Value) -> Vec<Place<'a>> {
    let spec = &template["spec"];
    let (choice, tolerations) = (Choice::of(spec), spec["tolerations"].items());
    view.list(NODES, "")
        .map(|node| {
            let selected = choice.selects(node);
            let facts = NodeFacts::seen(node);
            let taints = facts.taints.items();
            Place {
                node,
                runs: selected && bears(tolerations, taints, &[NO_EXECUTE, NO_SCHEDULE]),
                stays: selected && bears(tolerations, taints, &[NO_EXECUTE]),
                pods: Vec::new(),
            }
        })
        .collect()
}

/// Puts the pods to their nodes, which stand in the order of their names; returns those whose node is gone.
fn settle<'a>(
    places: &mut [Place<'a>],
    pods: &'a [Object],
    value: &Value,
    update: &Revision,
    cx: &mut Context,
    again: &mut Option<base::Time>,
) -> Vec<&'a Object> {
    let min_ready = value["spec"]["minReadySeconds"].as_int().unwrap_or(0);
    let mut homeless = Vec::new();
    for pod in pods {
        let facts = pod_facts::of(pod);
        let wanted = facts.node.is_empty().then(|| wanted_node(&pod.value()));
        let node = wanted.as_ref().unwrap_or(&facts.node);
        match places.binary_search_by(|place| place.node.name().cmp(node)) {
            Ok(at) => {
                let available = is_available(facts, min_ready, cx.now, again);
                let updated = pod.labels().get(HASH_LABEL) == Some(update.hash.as_str());
                let (phase, ready) = (facts.phase, facts.ready);
                places[at].pods.push(Daemon { pod, phase, ready, available, updated });
            }
            Err(_) if wanted.is_some() && !is_deleting(pod) => homeless.push(pod),
            Err(_) => {}
        }
    }
    let age = |pod: &Object| (pod.facts().created, pod.facts().name.clone());
    for place in places.iter_mut().filter(|place| place.pods.len() > 1) {
        place.pods.sort_by_key(|daemon| age(daemon.pod));
    }
    homeless.sort_by_key(|pod| age(pod));
    homeless
}

/// The node that an unbound pod is meant for.
fn wanted_node(pod: &Value) -> Str {
    let terms = &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let fields = terms["nodeSelectorTerms"].items().iter().flat_map(|term| term["matchFields"].items());
    let named = fields.filter(|field| field["key"].text() == "metadata.name");
    named.map(|field| field["values"][0].text()).next().unwrap_or_default().into()
}

impl Look<'_> {
    fn make(&self, node: &Object, cx: &mut Context) {
        if self.ends {
            return;
        }
        let prefix = format!("{}-", self.object.name());
        let taken = |name: &str| self.view.one(PODS, self.object.namespace(), name).is_some();
        let mut rng = cx.rng.fork(node.name());
        let mut pod = pod_of(&self.template, DAEMON_SET, self.object, &prefix, taken, &mut rng);
        pod.set(&["metadata", "labels", HASH_LABEL], &self.update.hash);
        let generation = self.value.at(&["metadata", "annotations", GENERATION]).text();
        if !generation.is_empty() {
            pod.set(&["metadata", "labels", "pod-template-generation"], generation);
        }
        let field = json!({"key": "metadata.name", "operator": "In", "values": [(node.name())]});
        let required =
            pod.make(&["spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution"]);
        let terms = required.make(&["nodeSelectorTerms"]).make_list();
        if terms.is_empty() {
            terms.push(json!({"matchFields": [(field)]}));
        } else {
            terms.make_mut().iter_mut().for_each(|term| term.set(&["matchFields"], Value::from(vec![field.clone()])));
        }
        let message = format!("Created pod: {}", pod.at(&["metadata", "name"]).text());
        cx.push(Effect::Create { resource: PODS, object: pod });
        record(cx, REPORTER, DAEMON_SET, self.object, "Normal", "SuccessfulCreate", message);
    }

    fn remove(&self, pod: &Object, cx: &mut Context) {
        delete(cx, pod, "");
        let message = format!("Deleted pod: {}", pod.name());
        record(cx, REPORTER, DAEMON_SET, self.object, "Normal", "SuccessfulDelete", message);
    }

    /// One pod where one should be, none where none may be.
    fn manage(&self, places: &[Place], cx: &mut Context) {
        let mut made = 0;
        for place in places {
            let present = || place.pods.iter().filter(|daemon| !is_deleting(daemon.pod));
            if !place.stays {
                present().for_each(|daemon| self.remove(daemon.pod, cx));
                continue;
            }
            for daemon in present().filter(|daemon| daemon.phase.is_final()) {
                let (of_type, reason) = match daemon.phase {
                    Phase::Failed => ("Warning", "FailedDaemonPod"),
                    _ => ("Normal", "SucceededDaemonPod"),
                };
                let message = format!("Pod {} on node {} ended and is removed", daemon.pod.name(), place.node.name());
                record(cx, REPORTER, DAEMON_SET, self.object, of_type, reason, message);
                self.remove(daemon.pod, cx);
            }
            // A pod that goes is waited for, so that two never serve one node (unless they may).
            if place.pods.is_empty() && place.runs && made < BATCH_MAX {
                made += 1;
                self.make(place.node, cx);
            }
            let mixed = alive(place).any(|daemon| daemon.updated) && alive(place).any(|daemon| !daemon.updated);
            let keep = if self.surge > 0 && mixed { 2 } else { 1 };
            alive(place).skip(keep).for_each(|daemon| self.remove(daemon.pod, cx));
        }
    }

    /// Replaces pods of older templates within the limits.
    fn roll(&self, places: &[Place], cx: &mut Context) {
        if self.surge > 0 {
            return self.roll_with_surge(places, cx);
        }
        let (mut unavailable, mut useless, mut candidates) = (0, Vec::new(), Vec::new());
        for place in places {
            match oldest(place) {
                // A node that takes no new pod for now, as one that is lost, still counts with the one that it has; to
                // take that away would leave it without.
                _ if !place.runs => {
                    let lacks = !place.pods.is_empty() && !alive(place).any(|daemon| daemon.available);
                    unavailable += i64::from(place.stays && lacks);
                }
                (Some(new), None) => unavailable += i64::from(!new.available),
                (None, Some(old)) if old.available => candidates.push(old),
                (None, Some(old)) => {
                    unavailable += 1;
                    useless.push(old);
                }
                _ => unavailable += 1,
            }
        }
        let room = usize::try_from(self.unavailable - unavailable).unwrap_or(0);
        useless.into_iter().chain(candidates.into_iter().take(room)).for_each(|daemon| self.remove(daemon.pod, cx));
    }

    fn roll_with_surge(&self, places: &[Place], cx: &mut Context) {
        let (mut surging, mut useless, mut candidates) = (0, Vec::new(), Vec::new());
        for place in places.iter().filter(|place| place.runs) {
            match oldest(place) {
                (Some(new), Some(old)) if new.available => self.remove(old.pod, cx),
                (Some(_), Some(_)) => surging += 1,
                (None, Some(old)) if old.available => candidates.push(place.node),
                (None, Some(_)) => useless.push(place.node),
                _ => {}
            }
        }
        let room = usize::try_from(self.surge - surging).unwrap_or(0);
        useless.into_iter().chain(candidates.into_iter().take(room)).for_each(|node| self.make(node, cx));
    }

    fn status(&self, places: &[Place]) -> Value {
        let (mut desired, mut current, mut wrong, mut ready, mut available, mut updated) = (0, 0, 0, 0, 0, 0);
        for place in places {
            if !place.runs {
                wrong += i64::from(!place.pods.is_empty() && !place.stays);
                if !place.stays {
                    continue;
                }
            }
            desired += i64::from(place.runs);
            if place.pods.is_empty() || !place.runs {
                continue;
            }
            current += 1;
            // The oldest ready pod speaks for the node.
            let speaker = place.pods.iter().find(|daemon| daemon.ready).or(place.pods.first());
            if let Some(daemon) = speaker {
                ready += i64::from(daemon.ready);
                available += i64::from(daemon.available);
            }
            updated += i64::from(place.pods.iter().any(|daemon| daemon.updated));
        }
        let mut status = json!({
            "desiredNumberScheduled": desired, "currentNumberScheduled": current, "numberMisscheduled": wrong,
            "numberReady": ready,
        });
        put_count(&mut status, "numberAvailable", available);
        put_count(&mut status, "numberUnavailable", desired - available);
        put_count(&mut status, "updatedNumberScheduled", updated);
        put_count(&mut status, "observedGeneration", self.object.facts().generation);
        for field in ["collisionCount", "conditions"] {
            if let Some(known) = self.value["status"].get(field) {
                status.set(&[field], known.clone());
            }
        }
        status
    }
}

fn alive<'a>(place: &'a Place<'a>) -> impl Iterator<Item = &'a Daemon<'a>> {
    place.pods.iter().filter(|daemon| !is_deleting(daemon.pod) && !daemon.phase.is_final())
}

/// Of those that live the oldest of the newest template, and the oldest of others.
fn oldest<'a>(place: &'a Place<'a>) -> (Option<&'a Daemon<'a>>, Option<&'a Daemon<'a>>) {
    (alive(place).find(|daemon| daemon.updated), alive(place).find(|daemon| !daemon.updated))
}
