//! Runs the scheduler: feeds it, and writes its plans.

use std::sync::Arc;
use std::time::Duration;

use base::Clock;
use client::{Action, Api, Mirror, PatchType, Request};
use meta::{Object, Reason, Status, Value, json};
use reconcile::EventRecord;
use scheduler::{NAME, PODS, Placement, Plan, Refusal, Scheduler, WATCHES};
use tokio::sync::mpsc;

use super::Cursor;
use super::controllers::about;
use super::events::Recorder;

/// Pods placed per plan: enough to fill the store's batches, few enough to stay current.
const PLAN_MAX: usize = 512;

/// Runs for as long as the process lives.
pub async fn run(mirror: Arc<Mirror>, api: Arc<dyn Api>, clock: Arc<dyn Clock>, recorder: Recorder) {
    let mut changed = mirror.subscribe();
    let mut cursor = Cursor::new(WATCHES, mirror.revision());
    let mut scheduler = Scheduler::new();
    scheduler.start(&mirror.view(), clock.now());
    let (lost, mut losses) = mpsc::unbounded_channel::<Placement>();
    loop {
        changed.borrow_and_update();
        let (events, view) = cursor.pull(&mirror);
        match events {
            Some(events) => {
                events.iter().for_each(|(resource, event)| scheduler.observe(*resource, event, clock.now()))
            }
            None => {
                scheduler = Scheduler::new();
                scheduler.start(&view, clock.now());
            }
        }
        while let Ok(placement) = losses.try_recv() {
            give_back(&mut scheduler, &placement, &mirror, &*clock);
        }
        let Plan { placements, refusals } = scheduler.plan(&view, clock.now(), PLAN_MAX);
        let busy = !placements.is_empty() || !refusals.is_empty();
        for placement in placements {
            let (api, recorder, lost, mirror) = (api.clone(), recorder.clone(), lost.clone(), mirror.clone());
            tokio::spawn(async move { bind(placement, &mirror, &*api, &recorder, &lost).await });
        }
        for refusal in refusals {
            let (api, recorder, mirror, clock) = (api.clone(), recorder.clone(), mirror.clone(), clock.clone());
            tokio::spawn(async move { refuse(refusal, &mirror, &*api, &recorder, &*clock).await });
        }
        for pod in scheduler.gated() {
            if !has_condition(pod, "SchedulingGated") {
                let (api, pod, clock) = (api.clone(), pod.clone(), clock.clone());
                let message = "Scheduling is blocked due to non-empty scheduling gates";
                tokio::spawn(async move { condition(&pod, "SchedulingGated", message, None, &*api, &*clock).await });
            }
        }
        if busy && scheduler.is_ready() {
            tokio::task::yield_now().await;
            continue;
        }
        let wake = scheduler.wake_at().map(|at| at.ms_since(clock.now()).max(1)).unwrap_or(60_000);
        tokio::select! {
            _ = changed.changed() => {}
            Some(placement) = losses.recv() => give_back(&mut scheduler, &placement, &mirror, &*clock),
            () = tokio::time::sleep(Duration::from_millis(wake)) => {}
        }
    }
}

fn give_back(scheduler: &mut Scheduler, placement: &Placement, mirror: &Mirror, clock: &dyn Clock) {
    let pod = mirror.one(PODS, &placement.namespace, &placement.name);
    scheduler.failed(placement, pod.as_ref(), clock.now());
}

async fn bind(
    placement: Placement,
    mirror: &Mirror,
    api: &dyn Api,
    recorder: &Recorder,
    lost: &mpsc::UnboundedSender<Placement>,
) {
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": {"name": (&placement.name), "namespace": (&placement.namespace), "uid": (&placement.uid)},
        "target": {"apiVersion": "v1", "kind": "Node", "name": (&placement.node)},
    });
    let mut request = Request::get(PODS, &placement.namespace, &placement.name).on("binding");
    request.action = Action::Create(binding);
    let result = api.call(request.with(|options| options.manager = NAME.into())).await;
    if let Err(status) = result {
        tracing::debug!("{} was not bound: {status}", placement.key);
        // The receiver goes only with the whole task.
        let _ = lost.send(placement);
        return;
    }
    let Some(pod) = mirror.one(PODS, &placement.namespace, &placement.name) else { return };
    let message = format!("Successfully assigned {} to {}", placement.key, placement.node);
    recorder.record(event(&pod, "Normal", "Scheduled", "Binding", message)).await;
}

fn event(pod: &Object, of_type: &'static str, reason: &str, action: &str, message: String) -> EventRecord {
    EventRecord {
        about: about("v1", "Pod", pod),
        related: Value::Null,
        of_type,
        reason: reason.into(),
        action: action.into(),
        message,
        reporter: NAME.into(),
        host: "".into(),
    }
}

fn has_condition(pod: &Object, reason: &str) -> bool {
    let value = pod.value();
    let conditions = value.at(&["status", "conditions"]).items();
    conditions.iter().any(|one| one["type"].text() == "PodScheduled" && one["reason"].text() == reason)
}

async fn refuse(refusal: Refusal, mirror: &Mirror, api: &dyn Api, recorder: &Recorder, clock: &dyn Clock) {
    let Some(pod) = mirror.one(PODS, &refusal.namespace, &refusal.name).filter(|pod| pod.uid() == refusal.uid) else {
        return;
    };
    for (key, uid) in &refusal.victims {
        push_out(key, uid, &pod, &refusal, mirror, api, recorder, clock).await;
    }
    condition(&pod, refusal.reason, &refusal.message, refusal.nominated.as_deref(), api, clock).await;
    recorder.record(event(&pod, "Warning", "FailedScheduling", "Scheduling", refusal.message.clone())).await;
}

/// Tells on the pod why it waits.
async fn condition(
    pod: &Object,
    reason: &str,
    message: &str,
    nominated: Option<&str>,
    api: &dyn Api,
    clock: &dyn Clock,
) {
    let now = clock.now().rfc3339();
    let value = pod.value();
    let conditions = value.at(&["status", "conditions"]).items();
    let known = conditions.iter().find(|one| one["type"].text() == "PodScheduled");
    let same = known.is_some_and(|one| one["reason"].text() == reason && one["message"].text() == message);
    if same && nominated.is_none() {
        return;
    }
    let since = match known {
        Some(known) if known["status"].text() == "False" => known["lastTransitionTime"].clone(),
        _ => now.into(),
    };
    let mut patch = json!({
        "metadata": {"uid": (pod.uid())},
        "status": {"conditions": [{
            "type": "PodScheduled", "status": "False", "reason": reason, "message": message,
            "observedGeneration": (pod.facts().generation),
            "lastProbeTime": null, "lastTransitionTime": since,
        }]},
    });
    if let Some(node) = nominated {
        patch.set(&["status", "nominatedNodeName"], node);
    }
    let request = Request::patch(PODS, pod.namespace(), pod.name(), PatchType::Strategic, patch).on("status");
    report(api.call(request.with(|options| options.manager = NAME.into())).await.map(|_| ()));
}

/// Deletes a pod to make room, saying so on it first.
#[allow(clippy::too_many_arguments)]
async fn push_out(
    key: &str,
    uid: &str,
    winner: &Object,
    refusal: &Refusal,
    mirror: &Mirror,
    api: &dyn Api,
    recorder: &Recorder,
    clock: &dyn Clock,
) {
    let (namespace, name) = key.split_once('/').unwrap_or(("", key));
    let Some(victim) = mirror.one(PODS, namespace, name).filter(|pod| pod.uid() == uid) else { return };
    if victim.facts().deleting.is_some() {
        return;
    }
    let patch = json!({
        "metadata": {"uid": uid},
        "status": {"conditions": [{
            "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
            "message": (format!("{NAME}: preempting to accommodate a higher priority pod")),
            "lastTransitionTime": (clock.now().rfc3339()),
        }]},
    });
    let request = Request::patch(PODS, namespace, name, PatchType::Strategic, patch).on("status");
    report(api.call(request.with(|options| options.manager = NAME.into())).await.map(|_| ()));
    let request = Request::delete(PODS, namespace, name).with(|options| options.uid = Some(uid.into()));
    report(api.call(request).await.map(|_| ()));
    let node = refusal.nominated.as_deref().unwrap_or("a node");
    let message = format!("Preempted by pod {} on node {node}", winner.uid());
    recorder.record(event(&victim, "Normal", "Preempted", "Preempting", message)).await;
}

fn report(result: Result<(), Status>) {
    match result {
        Err(status) if !matches!(status.reason(), Reason::NotFound | Reason::Conflict) => {
            tracing::warn!("the scheduler could not write: {status}");
        }
        _ => {}
    }
}
