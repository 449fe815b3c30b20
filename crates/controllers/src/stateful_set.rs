//! StatefulSets: pods with ordinals, made, updated and removed in order or in parallel.

use api::core::pod_facts::{Phase, PodFacts};
use cache::{Event, View};
use meta::quantity::int_or_percent;
use meta::{Object, Resource, Selector, Str, Value, json};
use reconcile::{Context, Effect, Outcome, Reconciler};

use crate::common::*;
use crate::history::{Keeper, Revision};

const NAME: &str = "statefulset-controller";
const STATEFUL_SET: Gvk = Gvk { api_version: "apps/v1", kind: "StatefulSet" };
const CLAIMS: Resource = Resource("persistentvolumeclaims");
const REVISION_LABEL: &str = "controller-revision-hash";

pub struct StatefulSets;

/// One pod of the set.
struct Replica {
    ordinal: i64,
    pod: Object,
    facts: PodFacts,
    /// Running, ready, and so for long enough.
    available: bool,
}

impl Replica {
    fn revision(&self) -> &str {
        self.pod.labels().get(REVISION_LABEL).unwrap_or_default()
    }

    fn is_ready(&self) -> bool {
        self.facts.phase == Phase::Running && self.facts.ready
    }

    fn is_terminating(&self) -> bool {
        is_deleting(&self.pod)
    }

    fn is_healthy(&self) -> bool {
        self.is_ready() && self.available && !self.is_terminating()
    }
}

struct Look<'a> {
    object: &'a Object,
    value: Value,
    start: i64,
    wanted: i64,
    partition: i64,
    rolling: bool,
    ordered: bool,
    current: Revision,
    update: Revision,
}

impl Reconciler for StatefulSets {
    fn name(&self) -> &'static str {
        NAME
    }

    fn watches(&self) -> &[Resource] {
        &[STATEFUL_SETS, PODS, REVISIONS]
    }

    fn keys(&self, resource: Resource, event: &Event, view: &View, out: &mut Vec<Str>) {
        match resource {
            STATEFUL_SETS => out.extend(event.new.iter().map(key_of)),
            PODS => {
                owner_keys(event, "StatefulSet", out);
                neighbours(view, STATEFUL_SETS, event, out);
            }
            _ => owner_keys(event, "StatefulSet", out),
        }
    }

    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome {
        let (namespace, name) = split(key);
        let Some(object) = view.one(STATEFUL_SETS, namespace, name) else { return Outcome::Settled };
        let value = object.value();
        let spec = &value["spec"];
        let selector = Selector::of(&spec["selector"]);
        if selector.is_everything() {
            return Outcome::Settled;
        }
        let revisions = claim(view, REVISIONS, object, STATEFUL_SET, &|one| selector.matches(one.labels()), cx);
        // A pod of another name is none of its own, whatever its labels say (`stateful_set.go`, `isMemberOf`).
        let is_own = |pod: &Object| selector.matches(pod.labels()) && ordinal_of(pod, name).is_some();
        let pods = claim(view, PODS, object, STATEFUL_SET, &is_own, cx);
        if !cx.effects.is_empty() {
            // Taken or let go: the next view shows whose they are.
            return Outcome::Settled;
        }
        let keeper =
            Keeper { of: STATEFUL_SET, owner: object, value: &value, hash_label: "controller.kubernetes.io/hash" };
        let Some((update, old)) = keeper.sync(revisions, cx) else { return Outcome::Settled };
        let current = value["status"]["currentRevision"].text();
        let current = old.iter().find(|revision| revision.name == current).unwrap_or(&update).clone();
        let min_ready = spec["minReadySeconds"].as_int().unwrap_or(0);
        let mut again = None;
        let mut replicas: Vec<Replica> = pods
            .into_iter()
            .filter_map(|pod| {
                let ordinal = ordinal_of(&pod, name)?;
                let facts = pod_facts(&pod);
                let available = is_available(&facts, min_ready, cx.now, &mut again);
                Some(Replica { ordinal, pod, facts, available })
            })
            .collect();
        replicas.sort_by_key(|replica| replica.ordinal);
        keeper.truncate(
            &old,
            |one| one.name == current.name || replicas.iter().any(|replica| replica.revision() == one.name),
            cx,
        );
        let partition = int_or_percent(&spec["updateStrategy"]["rollingUpdate"]["partition"], 0, true).unwrap_or(0);
        let look = Look {
            object,
            start: spec["ordinals"]["start"].as_int().unwrap_or(0),
            wanted: spec["replicas"].as_int().unwrap_or(1),
            partition,
            rolling: spec["updateStrategy"]["type"].text() != "OnDelete",
            ordered: spec["podManagementPolicy"].text() != "Parallel",
            value: value.clone(),
            current,
            update,
        };
        if !is_deleting(object) && look.make_and_remove(&replicas, view, cx) {
            look.roll(&replicas, cx);
        }
        let status = look.status(&replicas);
        write_status(cx, object, &value, status);
        outcome(again)
    }
}

/// Which of the set's pods it is, by its name.
fn ordinal_of(pod: &Object, set: &str) -> Option<i64> {
    pod.name().strip_prefix(set)?.strip_prefix('-')?.parse().ok()
}

impl Look<'_> {
    fn holds(&self, ordinal: i64) -> bool {
        (self.start..self.start + self.wanted).contains(&ordinal)
    }

    /// Fills the ordinals that miss a pod and empties those beyond. Says whether the rollout may go on.
    fn make_and_remove(&self, replicas: &[Replica], view: &View, cx: &mut Context) -> bool {
        for ordinal in (self.start..self.start + self.wanted).take(BATCH_MAX) {
            let Some(replica) = replicas.iter().find(|replica| replica.ordinal == ordinal) else {
                self.make(ordinal, view, cx);
                if self.ordered {
                    return false;
                }
                continue;
            };
            if replica.facts.phase.is_final() && !replica.is_terminating() {
                self.replace(replica, cx);
                return false;
            }
            if self.ordered && !replica.is_healthy() {
                return false;
            }
        }
        // Those that stay come first, then those that go, from the first (`stateful_set_control.go`, `firstUnavailablePod`).
        let (stay, go): (Vec<&Replica>, Vec<&Replica>) =
            replicas.iter().partition(|replica| self.holds(replica.ordinal));
        let sick = stay.into_iter().chain(go).find(|replica| !replica.is_healthy());
        let sick = sick.map(|replica| replica.ordinal);
        for replica in replicas.iter().rev().filter(|replica| !self.holds(replica.ordinal)) {
            if replica.is_terminating() {
                if self.ordered {
                    return false;
                }
                continue;
            }
            // What ended does not get well: upstream would wait for it until somebody removes it.
            let may_recover = !replica.is_healthy() && !replica.facts.phase.is_final();
            if self.ordered && may_recover && sick != Some(replica.ordinal) {
                return false;
            }
            self.remove(replica, cx);
            if self.ordered {
                return false;
            }
        }
        true
    }

    fn replace(&self, replica: &Replica, cx: &mut Context) {
        let (of_type, reason) = match replica.facts.phase {
            Phase::Failed => ("Warning", "RecreatingFailedPod"),
            _ => ("Normal", "RecreatingTerminatedPod"),
        };
        delete(cx, &replica.pod, "");
        let message =
            format!("Pod {} of StatefulSet {} ended and is made anew", replica.pod.name(), self.object.name());
        record(cx, NAME, STATEFUL_SET, self.object, of_type, reason, message);
    }

    fn remove(&self, replica: &Replica, cx: &mut Context) {
        delete(cx, &replica.pod, "");
        let message = format!("delete Pod {} in StatefulSet {} successful", replica.pod.name(), self.object.name());
        record(cx, NAME, STATEFUL_SET, self.object, "Normal", "SuccessfulDelete", message);
    }

    fn make(&self, ordinal: i64, view: &View, cx: &mut Context) {
        let held = self.rolling
            && !self.value.at(&["spec", "updateStrategy", "rollingUpdate", "partition"]).is_null()
            && ordinal < self.start + self.partition;
        let revision = if held { &self.current } else { &self.update };
        let name = format!("{}-{ordinal}", self.object.name());
        let prefix = format!("{}-", self.object.name());
        let mut pod = pod_of(&revision.template, STATEFUL_SET, self.object, &prefix, |_| false, &mut cx.rng);
        pod.set(&["metadata", "name"], &name);
        pod.set(&["metadata", "labels", "statefulset.kubernetes.io/pod-name"], &name);
        pod.set(&["metadata", "labels", "apps.kubernetes.io/pod-index"], ordinal.to_string());
        pod.set(&["metadata", "labels", REVISION_LABEL], &revision.name);
        pod.set(&["spec", "hostname"], &name);
        if !self.value["spec"]["serviceName"].text().is_empty() {
            pod.set(&["spec", "subdomain"], self.value["spec"]["serviceName"].clone());
        }
        self.make_claims(&name, &mut pod, view, cx);
        cx.push(Effect::Create { resource: PODS, object: pod });
        let message = format!("create Pod {name} in StatefulSet {} successful", self.object.name());
        record(cx, NAME, STATEFUL_SET, self.object, "Normal", "SuccessfulCreate", message);
    }

    /// Makes the pod's claims that are missing, and mounts them in place of volumes of the same name.
    fn make_claims(&self, pod_name: &str, pod: &mut Value, view: &View, cx: &mut Context) {
        for template in self.value["spec"]["volumeClaimTemplates"].items() {
            let volume = template["metadata"]["name"].text();
            let name = format!("{volume}-{pod_name}");
            let volumes = pod.make(&["spec", "volumes"]).make_list();
            volumes.retain(|one| one["name"].text() != volume);
            volumes.push(json!({"name": volume, "persistentVolumeClaim": {"claimName": (&name)}}));
            if view.one(CLAIMS, self.object.namespace(), &name).is_some() {
                continue;
            }
            let mut claim = template.clone();
            claim.take(&["status"]);
            claim.set(&["apiVersion"], "v1");
            claim.set(&["kind"], "PersistentVolumeClaim");
            claim.set(&["metadata", "name"], &name);
            claim.set(&["metadata", "namespace"], self.object.namespace());
            for (key, value) in self.value["spec"]["selector"]["matchLabels"].entries().iter() {
                claim.set(&["metadata", "labels", key], value.clone());
            }
            cx.push(Effect::Create { resource: CLAIMS, object: claim });
            let message = format!("create Claim {name} Pod {pod_name} in StatefulSet {} success", self.object.name());
            record(cx, NAME, STATEFUL_SET, self.object, "Normal", "SuccessfulCreate", message);
        }
    }

    /// Removes pods of older revisions, from the last ordinal down to the partition.
    fn roll(&self, replicas: &[Replica], cx: &mut Context) {
        if !self.rolling {
            return;
        }
        let max = &self.value["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"];
        let max = int_or_percent(max, self.wanted, true).unwrap_or(1).max(1);
        let mut unavailable = 0;
        for replica in replicas.iter().rev().filter(|replica| self.holds(replica.ordinal)) {
            if replica.ordinal < self.start + self.partition {
                return;
            }
            if replica.revision() != self.update.name && !replica.is_terminating() {
                self.remove(replica, cx);
                unavailable += 1;
            } else if !replica.is_healthy() {
                unavailable += 1;
            }
            if unavailable >= max {
                return;
            }
        }
    }

    fn status(&self, replicas: &[Replica]) -> Value {
        let (mut ready, mut available, mut of_current, mut of_update) = (0, 0, 0, 0);
        for replica in replicas {
            ready += i64::from(replica.is_ready());
            available += i64::from(replica.is_ready() && replica.available);
            if !replica.is_terminating() {
                of_current += i64::from(replica.revision() == self.current.name);
                of_update += i64::from(replica.revision() == self.update.name);
            }
        }
        let all = i64::try_from(replicas.len()).unwrap_or(i64::MAX);
        let done = self.rolling && of_update == all && ready == all;
        let (current, of_current) =
            if done { (&self.update.name, of_update) } else { (&self.current.name, of_current) };
        let collisions = self.value["status"]["collisionCount"].as_int().unwrap_or(0);
        let mut status = json!({
            "replicas": all, "availableReplicas": available, "collisionCount": collisions,
            "currentRevision": current, "updateRevision": (&self.update.name),
        });
        put_count(&mut status, "observedGeneration", self.object.facts().generation);
        put_count(&mut status, "readyReplicas", ready);
        put_count(&mut status, "currentReplicas", of_current);
        put_count(&mut status, "updatedReplicas", of_update);
        if let Some(conditions) = self.value["status"].get("conditions") {
            status.set(&["conditions"], conditions.clone());
        }
        status
    }
}
