//! Jobs: pods that run to their end, counted once each.
//!
//! A pod carries the finalizer `batch.kubernetes.io/job-tracking` until it is counted. Counting takes three looks: the
//! uid is written to `status.uncountedTerminatedPods`; the finalizer is removed; the uid moves into the count. So a pod
//! is never counted twice and never lost, whatever fails in between. A pod whose job is gone has nobody to count it: its
//! finalizer is removed, under a key of its own (`pod:` before the name).

mod policy;

use std::collections::BTreeSet;

use api::core::pod_facts::{Phase, PodFacts};
use base::Time;
use cache::{Event, View};
use meta::{Object, Resource, Selector, Str, Value, json};
use reconcile::{Context, Effect, Lists, Outcome, Reconciler};

use crate::common::*;
use policy::{Indexes, Verdict};

const NAME: &str = "job-controller";
pub const JOB: Gvk = Gvk { api_version: "batch/v1", kind: "Job" };
pub const TRACKING: &str = "batch.kubernetes.io/job-tracking";
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// The pause before a pod replaces one that failed, doubled with each.
const RETRY: base::Backoff = base::Backoff::new(10_000, 600_000);
/// Before the name of a pod in the key of its release.
const ABANDONED: &str = "pod:";
/// Uids that one status may hold uncounted.
const UNCOUNTED_MAX: usize = 500;

pub struct Jobs;

/// A pod of the job.
pub struct JobPod {
    pub object: Object,
    pub value: Value,
    pub facts: PodFacts,
    pub index: Option<i64>,
}

impl JobPod {
    fn of(object: Object) -> JobPod {
        let (value, facts) = (object.value(), pod_facts(&object));
        let index = value.at(&["metadata", "annotations", INDEX]).text().parse().ok();
        JobPod { object, value, facts, index }
    }

    fn is_tracked(&self) -> bool {
        is_tracked(&self.object)
    }

    pub fn succeeded(&self) -> bool {
        self.facts.phase == Phase::Succeeded
    }

    pub fn failed(&self) -> bool {
        self.facts.phase == Phase::Failed
    }

    fn is_active(&self) -> bool {
        !self.facts.phase.is_final() && !is_deleting(&self.object)
    }

    fn is_terminating(&self) -> bool {
        !self.facts.phase.is_final() && is_deleting(&self.object)
    }

    fn finished_at(&self) -> Time {
        let states = self.value["status"]["containerStatuses"].items().iter();
        let ends = states.filter_map(|state| Time::parse(state.at(&["state", "terminated", "finishedAt"]).text()));
        ends.max().or(self.object.facts().deleting).unwrap_or(self.object.facts().created)
    }
}

impl Reconciler for Jobs {
    fn name(&self) -> &'static str {
        NAME
    }

    fn watches(&self) -> &[Resource] {
        &[JOBS, PODS]
    }

    fn keys(&self, resource: Resource, event: &Event, view: &View, out: &mut Vec<Str>) {
        if resource == JOBS {
            out.extend(sides(event).map(key_of));
            out.dedup();
            if let (Some(old), None) = (&event.old, &event.new) {
                out.extend(view.owned(PODS, old.uid()).filter(|pod| is_abandoned(pod, view)).map(abandoned_key));
            }
        } else {
            if let Some(pod) = event.new.as_ref().filter(|pod| is_abandoned(pod, view)) {
                out.push(abandoned_key(pod));
            }
            owner_keys(event, "Job", out);
            neighbours(view, JOBS, event, out);
        }
    }

    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome {
        let (namespace, name) = split(key);
        if let Some(name) = name.strip_prefix(ABANDONED) {
            if let Some(pod) = view.one(PODS, namespace, name).filter(|pod| is_abandoned(pod, view)) {
                release(&JobPod::of(pod.clone()), cx);
            }
            return Outcome::Settled;
        }
        let Some(object) = view.one(JOBS, namespace, name) else {
            return Outcome::Settled;
        };
        let value = object.value();
        let managed_by = value["spec"]["managedBy"].text();
        if !managed_by.is_empty() && managed_by != "kubernetes.io/job-controller" {
            return Outcome::Settled;
        }
        let selector = Selector::of(&value["spec"]["selector"]);
        let pods: Vec<JobPod> = claim(view, PODS, object, JOB, &|one| selector.matches(one.labels()), cx)
            .into_iter()
            .map(JobPod::of)
            .collect();
        if !cx.effects.is_empty() {
            // Taken or let go: the next view shows whose they are.
            return Outcome::Settled;
        }
        let mut look = Look::new(object, &value, &pods);
        look.run(cx);
        outcome(look.again)
    }
}

/// Whether a pod waits to be counted by a job that is no more, or that let it go.
fn is_abandoned(pod: &Object, view: &View) -> bool {
    let owner = pod.facts().controller().filter(|owner| owner.kind == JOB.kind);
    is_tracked(pod)
        && owner
            .is_none_or(|owner| view.one(JOBS, pod.namespace(), &owner.name).is_none_or(|job| job.uid() != &*owner.uid))
}

fn abandoned_key(pod: &Object) -> Str {
    join(pod.namespace(), &format!("{ABANDONED}{}", pod.name()))
}

fn is_tracked(pod: &Object) -> bool {
    pod.facts().finalizers.iter().any(|finalizer| finalizer == TRACKING)
}

/// One look at a job.
struct Look<'a> {
    object: &'a Object,
    value: &'a Value,
    pods: &'a [JobPod],
    status: Value,
    again: Option<Time>,
    indexed: bool,
    suspended: bool,
    /// Pods counted or to be counted as what.
    succeeded: i64,
    failed: i64,
    /// Ended pods not yet in the counts.
    uncounted: Vec<&'a JobPod>,
    verdict: Verdict,
}

impl<'a> Look<'a> {
    fn new(object: &'a Object, value: &'a Value, pods: &'a [JobPod]) -> Look<'a> {
        let spec = &value["spec"];
        let mut status = value["status"].clone();
        status.make_map();
        let uncounted = |field: &str| value["status"]["uncountedTerminatedPods"][field].items();
        let noted: BTreeSet<&str> = uncounted("succeeded").iter().chain(uncounted("failed")).map(Value::text).collect();
        let len = |field: &str| i64::try_from(uncounted(field).len()).unwrap_or(0);
        let replacing_failed_only = spec["podReplacementPolicy"].text() == "Failed";
        let fresh: Vec<&JobPod> = pods
            .iter()
            .filter(|pod| pod.is_tracked() && !noted.contains(pod.object.uid()))
            .filter(|pod| {
                // A pod that is going counts as failed at once, unless only what has failed is replaced.
                pod.facts.phase.is_final() || (is_deleting(&pod.object) && !replacing_failed_only)
            })
            .collect();
        let known = |field: &str| value["status"][field].as_int().unwrap_or(0);
        let new_successes = fresh.iter().filter(|pod| pod.succeeded()).count() as i64;
        let new_failures = fresh.len() as i64 - new_successes;
        let verdict = policy::verdict(value, pods);
        let ignored = fresh.iter().filter(|pod| !pod.succeeded() && policy::is_ignored(value, pod)).count() as i64;
        Look {
            object,
            value,
            pods,
            again: None,
            indexed: spec["completionMode"].text() == "Indexed",
            suspended: spec["suspend"].is_true(),
            succeeded: known("succeeded") + len("succeeded") + new_successes,
            failed: known("failed") + len("failed") + new_failures - ignored,
            uncounted: fresh,
            status,
            verdict,
        }
    }

    fn spec(&self) -> &'a Value {
        &self.value["spec"]
    }

    fn is_finished(&self) -> bool {
        ["Complete", "Failed"].iter().any(|of_type| condition(&self.status, of_type)["status"].text() == "True")
    }

    fn run(&mut self, cx: &mut Context) {
        if is_deleting(self.object) || self.is_finished() {
            // Nothing is counted any more; only the pods are let go.
            for pod in self.pods.iter().filter(|pod| pod.is_tracked()) {
                if pod.facts.phase.is_final() || is_deleting(&pod.object) || is_deleting(self.object) {
                    release(pod, cx);
                }
            }
            return;
        }
        if self.status["startTime"].is_null() && !self.suspended {
            self.status.set(&["startTime"], cx.now.rfc3339());
        }
        self.count(cx);
        let target = self.judge(cx);
        let active: Vec<&JobPod> = self.pods.iter().filter(|pod| pod.is_active()).collect();
        let (mut running, mut deleted) = (active.len(), 0);
        if target.is_some() || self.suspended {
            deleted = self.remove(&active, cx);
        } else {
            running = self.manage(&active, cx);
        }
        running -= deleted.min(running);
        self.suspend_condition(cx);
        self.finish(target, running, cx);
        self.write(running, deleted, cx);
    }

    /// Moves ended pods one step towards being counted.
    fn count(&mut self, cx: &mut Context) {
        let mut left: [Vec<Value>; 2] = [Vec::new(), Vec::new()];
        for (at, field) in ["succeeded", "failed"].into_iter().enumerate() {
            let noted = self.value["status"]["uncountedTerminatedPods"][field].items();
            let mut counted = 0;
            for uid in noted {
                match self.pods.iter().find(|pod| pod.object.uid() == uid.text() && pod.is_tracked()) {
                    Some(pod) => {
                        release(pod, cx);
                        left[at].push(uid.clone());
                    }
                    None => counted += 1,
                }
            }
            if counted > 0 {
                let before = self.status[field].as_int().unwrap_or(0);
                self.status.set(&[field], before + counted);
            }
        }
        let room = UNCOUNTED_MAX.saturating_sub(left[0].len() + left[1].len());
        let mut indexes = Indexes::parse(self.status["completedIndexes"].text());
        let mut failed_indexes = Indexes::parse(self.status["failedIndexes"].text());
        let per_index = !self.spec()["backoffLimitPerIndex"].is_null();
        for pod in self.uncounted.iter().take(room) {
            if pod.succeeded() {
                if let Some(index) = pod.index {
                    indexes.add(index);
                }
                left[0].push(pod.object.uid().into());
            } else if policy::is_ignored(self.value, pod) {
                release(pod, cx);
            } else {
                if let Some(index) = pod.index.filter(|_| per_index)
                    && self.verdict.failed_indexes.contains(index)
                {
                    failed_indexes.add(index);
                }
                left[1].push(pod.object.uid().into());
            }
        }
        if self.indexed {
            self.succeeded = indexes.len();
            put_text(&mut self.status, "completedIndexes", indexes.to_string());
            if per_index {
                self.status.set(&["failedIndexes"], failed_indexes.to_string());
            }
        }
        let [succeeded, failed] = left;
        let mut uncounted = Value::map();
        if !succeeded.is_empty() {
            uncounted.set(&["succeeded"], Value::from(succeeded));
        }
        if !failed.is_empty() {
            uncounted.set(&["failed"], Value::from(failed));
        }
        self.status.set(&["uncountedTerminatedPods"], uncounted);
    }

    /// Whether the job is decided: the interim condition, its reason and message.
    fn judge(&mut self, cx: &mut Context) -> Option<(&'static str, String, String)> {
        for of_type in ["FailureTarget", "SuccessCriteriaMet"] {
            let known = condition(&self.status, of_type);
            if known["status"].text() == "True" {
                return Some((of_type, known["reason"].text().to_owned(), known["message"].text().to_owned()));
            }
        }
        let failed = |reason: &str, message: &str| Some(("FailureTarget", reason.to_owned(), message.to_owned()));
        if let Some(message) = self.verdict.fail_job.clone() {
            return failed("PodFailurePolicy", &message);
        }
        let limit = self.spec()["backoffLimit"].as_int().unwrap_or(6);
        let restarts: i64 = match self.spec().at(&["template", "spec", "restartPolicy"]).text() {
            "OnFailure" => self.pods.iter().filter(|pod| pod.is_active()).map(|pod| pod.facts.restarts).sum(),
            _ => 0,
        };
        let on_failure = restarts > 0 && restarts >= limit;
        if self.failed > limit || on_failure {
            return failed("BackoffLimitExceeded", "The job failed more often than its limit allows");
        }
        if let Some(seconds) = self.spec()["activeDeadlineSeconds"].as_int().filter(|_| !self.suspended)
            && let Some(start) = Time::parse(self.status["startTime"].text())
        {
            let until = start.plus_ms(seconds_ms(seconds));
            if until <= cx.now {
                return failed("DeadlineExceeded", "The job was active for longer than its deadline");
            }
            sooner(&mut self.again, until);
        }
        if self.indexed {
            let failed_indexes = Indexes::parse(self.status["failedIndexes"].text());
            if let Some(max) = self.spec()["maxFailedIndexes"].as_int()
                && failed_indexes.len() > max
            {
                return failed("MaxFailedIndexesExceeded", "More indexes failed than allowed");
            }
            let completions = self.spec()["completions"].as_int().unwrap_or(0);
            if failed_indexes.len() > 0 && failed_indexes.len() + self.succeeded >= completions {
                return failed("FailedIndexes", "Some indexes failed");
            }
            let done = Indexes::parse(self.status["completedIndexes"].text());
            if policy::success(self.spec(), &done) {
                let message = "A rule of the success policy holds".to_owned();
                return Some(("SuccessCriteriaMet", "SuccessPolicy".to_owned(), message));
            }
        }
        let complete = match self.spec()["completions"].as_int() {
            Some(completions) => self.succeeded >= completions,
            None => self.succeeded > 0 && !self.pods.iter().any(JobPod::is_active),
        };
        if complete && !self.suspended {
            let message = "As many pods succeeded as were asked for".to_owned();
            return Some(("SuccessCriteriaMet", "CompletionsReached".to_owned(), message));
        }
        None
    }

    fn remove(&self, pods: &[&JobPod], cx: &mut Context) -> usize {
        for pod in pods.iter().take(BATCH_MAX) {
            delete(cx, &pod.object, "");
            let message = format!("Deleted pod: {}", pod.object.name());
            record(cx, NAME, JOB, self.object, "Normal", "SuccessfulDelete", message);
        }
        pods.len().min(BATCH_MAX)
    }

    /// Makes or removes pods until as many are active as there should be; returns how many are then.
    fn manage(&mut self, active: &[&JobPod], cx: &mut Context) -> usize {
        let parallelism = self.spec()["parallelism"].as_int().unwrap_or(1);
        let wanted = match self.spec()["completions"].as_int() {
            Some(completions) => parallelism.min(completions - self.succeeded),
            None if self.succeeded > 0 => active.len() as i64,
            None => parallelism,
        };
        let wanted = usize::try_from(wanted.max(0)).unwrap_or(0);
        if active.len() > wanted {
            let mut surplus: Vec<&JobPod> = active.to_vec();
            surplus.sort_by(|a, b| {
                let order = |pod: &JobPod| (pod.facts.ready, pod.facts.phase == Phase::Running);
                order(a).cmp(&order(b)).then(b.object.facts().created.cmp(&a.object.facts().created))
            });
            surplus.truncate(active.len() - wanted);
            return active.len() - self.remove(&surplus, cx);
        }
        let blocked = if self.spec()["podReplacementPolicy"].text() == "Failed" {
            self.pods.iter().filter(|pod| pod.is_terminating()).count()
        } else {
            0
        };
        let missing = wanted.saturating_sub(active.len() + blocked).min(BATCH_MAX);
        if missing == 0 {
            return active.len();
        }
        let per_index = !self.spec()["backoffLimitPerIndex"].is_null();
        if !per_index && self.failed > 0 {
            let last = self.pods.iter().filter(|pod| pod.failed()).map(JobPod::finished_at).max();
            let failures = u32::try_from(self.failed).unwrap_or(u32::MAX);
            if let Some(until) = last.map(|last| last.plus_ms(RETRY.delay_ms(failures)))
                && until > cx.now
            {
                sooner(&mut self.again, until);
                return active.len();
            }
        }
        let indexes = if self.indexed { self.free_indexes(active, missing, cx.now) } else { Vec::new() };
        let number = if self.indexed { indexes.len() } else { missing };
        for at in 0..number {
            self.make(indexes.get(at).copied(), cx);
        }
        active.len() + number
    }

    /// The lowest indexes that neither run, nor are done, nor failed for good, nor wait after a failure.
    fn free_indexes(&mut self, active: &[&JobPod], number: usize, now: Time) -> Vec<i64> {
        let completions = self.spec()["completions"].as_int().unwrap_or(0);
        let done = Indexes::parse(self.status["completedIndexes"].text());
        let failed = Indexes::parse(self.status["failedIndexes"].text());
        let mut taken: BTreeSet<i64> = active.iter().filter_map(|pod| pod.index).collect();
        if self.spec()["podReplacementPolicy"].text() == "Failed" {
            taken.extend(self.pods.iter().filter(|pod| pod.is_terminating()).filter_map(|pod| pod.index));
        }
        if !self.spec()["backoffLimitPerIndex"].is_null() {
            for pod in self.pods.iter().filter(|pod| pod.failed()) {
                let failures = u32::try_from(failures_of(pod) + 1).unwrap_or(u32::MAX);
                let until = pod.finished_at().plus_ms(RETRY.delay_ms(failures));
                if let Some(index) = pod.index.filter(|index| until > now && !failed.contains(*index)) {
                    taken.insert(index);
                    sooner(&mut self.again, until);
                }
            }
        }
        (0..completions)
            .filter(|index| !taken.contains(index) && !done.contains(*index) && !failed.contains(*index))
            .take(number)
            .collect()
    }

    fn make(&self, index: Option<i64>, cx: &mut Context) {
        let mut prefix = format!("{}-", self.object.name());
        if let Some(index) = index {
            prefix.push_str(&format!("{index}-"));
        }
        let taken = |name: &str| self.pods.iter().any(|pod| pod.object.name() == name);
        let mut own = index.map(|_| cx.rng.fork(&prefix));
        let rng = own.as_mut().unwrap_or(&mut cx.rng);
        let mut pod = pod_of(&self.spec()["template"], JOB, self.object, &prefix, taken, rng);
        pod.make(&["metadata", "finalizers"]).make_list().push(TRACKING.into());
        if let Some(index) = index {
            let text = index.to_string();
            pod.set(&["metadata", "annotations", INDEX], &text);
            pod.set(&["metadata", "labels", INDEX], &text);
            if pod.at(&["spec", "hostname"]).text().is_empty() {
                pod.set(&["spec", "hostname"], format!("{}-{index}", self.object.name()));
            }
            if !self.spec()["backoffLimitPerIndex"].is_null() {
                let failed = self.pods.iter().filter(|pod| pod.index == Some(index) && pod.failed());
                let failures = failed.map(|pod| failures_of(pod) + 1).max().unwrap_or(0);
                pod.set(&["metadata", "annotations", FAILURES], failures.to_string());
            }
            set_index_variable(&mut pod);
        }
        let message = format!("Created pod: {}", pod.at(&["metadata", "name"]).text());
        cx.push(Effect::Create { resource: PODS, object: pod });
        record(cx, NAME, JOB, self.object, "Normal", "SuccessfulCreate", message);
    }

    fn suspend_condition(&mut self, cx: &mut Context) {
        let known = condition(&self.status, "Suspended")["status"].text().to_owned();
        if self.suspended && known != "True" {
            let message = "The job is suspended".to_owned();
            self.condition("Suspended", "True", "JobSuspended", message.clone(), cx.now);
            self.status.take(&["startTime"]);
            record(cx, NAME, JOB, self.object, "Normal", "Suspended", message);
        } else if !self.suspended && known == "True" {
            let message = "The job goes on".to_owned();
            self.condition("Suspended", "False", "JobResumed", message.clone(), cx.now);
            self.status.set(&["startTime"], cx.now.rfc3339());
            record(cx, NAME, JOB, self.object, "Normal", "Resumed", message);
        }
    }

    fn condition(&mut self, of_type: &str, state: &str, reason: &str, message: String, now: Time) {
        let mut conditions = self.status["conditions"].items().to_vec();
        conditions.retain(|one| one["type"].text() != of_type);
        conditions.push(json!({
            "type": of_type, "status": state, "reason": reason, "message": message,
            "lastProbeTime": (now.rfc3339()), "lastTransitionTime": (now.rfc3339()),
        }));
        self.status.set(&["conditions"], Value::from(conditions));
    }

    /// Notes the decision at once, and the end when every pod has ended and is counted.
    fn finish(&mut self, target: Option<(&'static str, String, String)>, running: usize, cx: &mut Context) {
        let Some((of_type, reason, message)) = target else { return };
        if condition(&self.status, of_type).is_null() {
            self.condition(of_type, "True", &reason, message.clone(), cx.now);
        }
        let counted = self.status["uncountedTerminatedPods"].entries().is_empty() && self.uncounted.is_empty();
        let terminating = self.pods.iter().any(|pod| pod.is_terminating() || pod.is_active());
        if running > 0 || !counted || terminating {
            return;
        }
        if of_type == "FailureTarget" {
            self.condition("Failed", "True", &reason, message.clone(), cx.now);
            record(cx, NAME, JOB, self.object, "Warning", &reason, message);
        } else {
            self.condition("Complete", "True", &reason, message, cx.now);
            self.status.set(&["completionTime"], cx.now.rfc3339());
            record(cx, NAME, JOB, self.object, "Normal", "Completed", "Job completed".to_owned());
        }
    }

    fn write(&mut self, running: usize, deleted: usize, cx: &mut Context) {
        let ready = self.pods.iter().filter(|pod| pod.is_active() && pod.facts.ready).count();
        let terminating = self.pods.iter().filter(|pod| pod.is_terminating()).count() + deleted;
        let ready = if self.suspended || self.is_finished() { 0 } else { ready };
        self.status.set(&["ready"], ready as i64);
        self.status.set(&["terminating"], terminating as i64);
        self.status.take(&["active"]);
        put_count(&mut self.status, "active", running as i64);
        if self.indexed {
            let done = Indexes::parse(self.status["completedIndexes"].text()).len();
            self.status.take(&["succeeded"]);
            put_count(&mut self.status, "succeeded", done);
        }
        // The record of the end stands behind the status that says so.
        let records: Vec<Effect> = {
            let (records, writes) = std::mem::take(&mut cx.effects).into_iter().partition(|effect| {
                matches!(effect, Effect::Record(record)
                    if !matches!(record.reason.as_str(), "SuccessfulCreate" | "SuccessfulDelete"))
            });
            cx.effects = writes;
            records
        };
        if write_status(cx, self.object, self.value, self.status.clone()) {
            cx.effects.extend(records);
        }
    }
}

fn failures_of(pod: &JobPod) -> i64 {
    pod.value.at(&["metadata", "annotations", FAILURES]).text().parse().unwrap_or(0)
}

fn put_text(status: &mut Value, field: &str, text: String) {
    if text.is_empty() {
        status.take(&[field]);
    } else {
        status.set(&[field], text);
    }
}

/// Takes the tracking finalizer off a pod.
fn release(pod: &JobPod, cx: &mut Context) {
    let rest: Vec<Value> = pod.value["metadata"]["finalizers"]
        .items()
        .iter()
        .filter(|finalizer| finalizer.text() != TRACKING)
        .cloned()
        .collect();
    cx.push(Effect::Patch {
        resource: PODS,
        subresource: "",
        namespace: pod.object.namespace().into(),
        name: pod.object.name().into(),
        uid: pod.object.uid().into(),
        patch: json!({"metadata": {
            "finalizers": (if rest.is_empty() { Value::Null } else { Value::from(rest) }),
            "resourceVersion": (pod.object.revision().to_string()),
        }}),
        lists: Lists::Replaced,
    });
}

/// Tells every container its index, unless the template names the variable itself.
fn set_index_variable(pod: &mut Value) {
    const VARIABLE: &str = "JOB_COMPLETION_INDEX";
    for list in ["initContainers", "containers"] {
        let Some(containers) = pod.at_mut(&["spec", list]) else { continue };
        for container in containers.items_mut() {
            let variables = container.make(&["env"]).make_list();
            if !variables.iter().any(|one| one["name"].text() == VARIABLE) {
                let path = format!("metadata.labels['{INDEX}']");
                variables.push(json!({
                    "name": VARIABLE, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}},
                }));
            }
        }
    }
}
