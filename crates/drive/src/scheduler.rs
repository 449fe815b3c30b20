//! Runs the scheduler: feeds it, and writes its plans.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::core::disruption_target::{Taker, disruption_target};
use base::Revision;
use client::{Action, Api, Mirror, PatchType, Request};
use meta::{Object, Reason, Status, Str, Value, json};
use reconcile::EventRecord;
use scheduler::volumes::Choice;
use scheduler::{NAME, PODS, Placement, Plan, Refusal, Scheduler, WATCHES};
use tokio::sync::mpsc;

use crate::controllers::about;
use crate::cursor::{Cursor, interest};
use crate::events::Recorder;
use crate::{Shell, fate};

/// Pods placed per plan: enough to fill the store's batches, few enough to stay current.
const PLAN_MAX: usize = 512;
/// Pause of a scheduler that waits for nothing but changes.
const IDLE_MS: u64 = 60_000;

/// What plans are carried out with.
#[derive(Clone)]
struct Hands {
    mirror: Arc<Mirror>,
    api: Arc<dyn Api>,
    shell: Arc<dyn Shell>,
    recorder: Recorder,
}

/// Runs for as long as the process lives.
pub async fn run(mirror: Arc<Mirror>, api: Arc<dyn Api>, shell: Arc<dyn Shell>, recorder: Recorder) {
    let hands = Arc::new(Hands { mirror: mirror.clone(), api, shell: shell.clone(), recorder });
    let changed = mirror.listen(interest(WATCHES));
    let mut cursor = Cursor::new(WATCHES, &[], mirror.revision());
    let mut scheduler = Scheduler::new();
    scheduler.start(&mirror.view(), shell.now());
    let (lost, mut losses) = mpsc::unbounded_channel::<Placement>();
    // Bindings that are under way, by the pod's uid, and those that are no more.
    let mut under_way: BTreeMap<Str, Placement> = BTreeMap::new();
    let (ended, mut ends) = mpsc::unbounded_channel::<Str>();
    loop {
        while let Ok(uid) = ends.try_recv() {
            under_way.remove(&uid);
        }
        let (events, view) = cursor.pull(&mirror);
        match events {
            Some(events) => {
                events.iter().for_each(|(resource, event)| scheduler.observe(*resource, event, shell.now()))
            }
            None => {
                scheduler = Scheduler::new();
                scheduler.start(&view, shell.now());
                // What was decided may still happen, though nothing shows it yet.
                under_way.values().for_each(|placement| scheduler.assume(placement));
            }
        }
        while let Ok(placement) = losses.try_recv() {
            give_back(&mut scheduler, &placement, &hands);
        }
        let Plan { placements, refusals, choices } = scheduler.plan(&view, shell.now(), PLAN_MAX);
        let busy = !placements.is_empty() || !refusals.is_empty() || !choices.is_empty();
        for placement in placements {
            let (hands, lost, ended, decided_on) = (hands.clone(), lost.clone(), ended.clone(), view.at());
            under_way.insert(placement.uid.clone(), placement.clone());
            shell.spawn(Box::pin(async move {
                let uid = placement.uid.clone();
                bind(placement, decided_on, &hands, &lost).await;
                // The receiver goes only with the whole task.
                let _ = ended.send(uid);
            }));
        }
        for refusal in refusals {
            let (hands, decided_on) = (hands.clone(), view.at());
            shell.spawn(Box::pin(async move { refuse(refusal, decided_on, &hands).await }));
        }
        for choice in choices {
            let hands = hands.clone();
            shell.spawn(Box::pin(async move { hands.tell(choice).await }));
        }
        for pod in scheduler.held() {
            let hands = hands.clone();
            let message = "Scheduling is blocked due to non-empty scheduling gates";
            shell.spawn(Box::pin(async move { hands.condition(&pod, "SchedulingGated", message, None).await }));
        }
        if busy && scheduler.is_ready() {
            tokio::task::yield_now().await;
            continue;
        }
        let wake_ms = scheduler.wake_at().map_or(IDLE_MS, |at| at.ms_since(shell.now()).max(1));
        tokio::select! {
            biased;
            _ = changed.changed() => {}
            Some(placement) = losses.recv() => give_back(&mut scheduler, &placement, &hands),
            () = shell.sleep(wake_ms) => {}
        }
    }
}

fn give_back(scheduler: &mut Scheduler, placement: &Placement, hands: &Hands) {
    let pod = hands.mirror.one(PODS, &placement.namespace, &placement.name);
    scheduler.failed(placement, pod.as_ref(), hands.shell.now());
}

async fn bind(placement: Placement, decided_on: Revision, hands: &Hands, lost: &mpsc::UnboundedSender<Placement>) {
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": {"name": (&placement.name), "namespace": (&placement.namespace), "uid": (&placement.uid)},
        "target": {"apiVersion": "v1", "kind": "Node", "name": (&placement.node)},
    });
    let mut request = Request::get(PODS, &placement.namespace, &placement.name).on("binding");
    request.action = Action::Create(binding);
    let request = request.with(|options| {
        options.manager = NAME.into();
        options.decided_on = decided_on;
    });
    let mut failures = 0;
    let answer = loop {
        match fate::settle(request.clone(), &*hands.api, &*hands.shell).await {
            // What failed within the server may happen all the same, later: nobody else is given the room meanwhile.
            Err(status) if status.reason() == Reason::InternalError => {
                failures += 1;
                tracing::debug!("binding {} again: {status}", placement.key);
                hands.shell.sleep(fate::AGAIN.delay_ms(failures)).await;
            }
            answer => break answer,
        }
    };
    if let Err(status) = answer {
        // An earlier answer may have got lost; then the pod is where it was to go, and its room is taken.
        if status.reason() != Reason::Conflict || !is_there(&placement, hands).await {
            tracing::debug!("{} was not bound: {status}", placement.key);
            // The receiver goes only with the whole task.
            let _ = lost.send(placement);
            return;
        }
    }
    let Some(pod) = hands.mirror.one(PODS, &placement.namespace, &placement.name) else { return };
    let message = format!("Successfully assigned {} to {}", placement.key, placement.node);
    hands.recorder.record(event(&pod, "Normal", "Scheduled", "Binding", message)).await;
}

/// Whether the pod is bound to the very node of its placement.
async fn is_there(placement: &Placement, hands: &Hands) -> bool {
    let look = Request::get(PODS, &placement.namespace, &placement.name);
    let found = fate::settle(look, &*hands.api, &*hands.shell).await;
    found.is_ok_and(|answer| {
        answer.object.uid() == placement.uid
            && answer.object.value().at(&["spec", "nodeName"]).text() == placement.node.as_str()
    })
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

async fn refuse(refusal: Refusal, decided_on: Revision, hands: &Hands) {
    let pod = hands.mirror.one(PODS, &refusal.namespace, &refusal.name);
    let Some(pod) = pod.filter(|pod| pod.uid() == refusal.uid) else { return };
    for (key, uid) in &refusal.victims {
        hands.push_out(key, uid, &pod, &refusal, decided_on).await;
    }
    hands.condition(&pod, refusal.reason, &refusal.message, refusal.nominated.as_deref()).await;
    hands.recorder.record(event(&pod, "Warning", "FailedScheduling", "Scheduling", refusal.message.clone())).await;
}

impl Hands {
    /// Tells claims and volumes what was chosen for them. Who was too late chooses again.
    async fn tell(&self, choice: Choice) {
        let Choice { resource, namespace, name, patch } = choice;
        let request = Request::patch(resource, &namespace, &name, PatchType::Merge, patch);
        report(self.api.call(request.with(|options| options.manager = NAME.into())).await.map(|_| ()));
    }

    /// Tells on the pod why it waits, and for which node.
    async fn condition(&self, pod: &Object, reason: &str, message: &str, nominated: Option<&str>) {
        let now = self.shell.now().rfc3339();
        let value = pod.value();
        let conditions = value.at(&["status", "conditions"]).items();
        let known = conditions.iter().find(|one| one["type"].text() == "PodScheduled");
        let same = known.is_some_and(|one| one["reason"].text() == reason && one["message"].text() == message);
        let known_node = value.at(&["status", "nominatedNodeName"]).text();
        if same && known_node == nominated.unwrap_or_default() {
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
        if known_node != nominated.unwrap_or_default() {
            patch.set(&["status", "nominatedNodeName"], nominated.map_or(Value::Null, Value::from));
        }
        let request = Request::patch(PODS, pod.namespace(), pod.name(), PatchType::Strategic, patch).on("status");
        report(self.api.call(request.with(|options| options.manager = NAME.into())).await.map(|_| ()));
    }

    /// Deletes a pod to make room, saying so on it first.
    async fn push_out(&self, key: &str, uid: &str, winner: &Object, refusal: &Refusal, decided_on: Revision) {
        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
        let Some(victim) = self.mirror.one(PODS, namespace, name).filter(|pod| pod.uid() == uid) else { return };
        if victim.facts().deleting.is_some() {
            return;
        }
        let why = disruption_target(Taker::Preemption(NAME), &victim, self.shell.now());
        let patch = json!({"metadata": {"uid": uid}, "status": {"conditions": [why]}});
        let request = Request::patch(PODS, namespace, name, PatchType::Strategic, patch).on("status");
        report(self.api.call(request.with(|options| options.manager = NAME.into())).await.map(|_| ()));
        let request = Request::delete(PODS, namespace, name).with(|options| {
            options.manager = NAME.into();
            options.uid = Some(uid.into());
            options.decided_on = decided_on;
        });
        report(fate::settle(request, &*self.api, &*self.shell).await.map(|_| ()));
        let node = refusal.nominated.as_deref().unwrap_or("a node");
        let message = format!("Preempted by pod {} on node {node}", winner.uid());
        self.recorder.record(event(&victim, "Normal", "Preempted", "Preempting", message)).await;
    }
}

fn report(result: Result<(), Status>) {
    match result {
        Err(status) if !matches!(status.reason(), Reason::NotFound | Reason::Conflict) => {
            tracing::warn!("the scheduler could not write: {status}");
        }
        _ => {}
    }
}
