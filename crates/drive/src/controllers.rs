//! Runs reconcilers: each has its own task, which turns its jobs into calls of the API.

use std::collections::BTreeSet;
use std::sync::Arc;

use base::{Revision, Time};
use client::{Action, Api, Mirror, PatchType, Propagation, Request};
use meta::{Reason, Status, Str, Value, json};
use reconcile::{Done, Driver, Effect, EventRecord, Lists, Reconciler, Refusal};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::Shell;
use crate::cursor::{Cursor, interest_in};
use crate::events::Recorder;
use crate::fate::{self, Written};

/// Calls under way at once for one controller.
const CALLS_MAX: usize = 64;

/// What the effects of one reconciler are carried out with.
struct Hands {
    manager: Str,
    api: Arc<dyn Api>,
    shell: Arc<dyn Shell>,
    recorder: Recorder,
    calls: Semaphore,
}

/// The nodes that are not heard any more; changes when one falls silent or is heard again.
pub type Silence = watch::Receiver<Arc<BTreeSet<String>>>;

/// What is heard where nothing is.
pub fn nobody_listens() -> Silence {
    watch::channel(Arc::default()).1
}

/// Runs one reconciler for as long as the process lives.
pub async fn run(
    reconciler: Box<dyn Reconciler>,
    mirror: Arc<Mirror>,
    api: Arc<dyn Api>,
    shell: Arc<dyn Shell>,
    recorder: Recorder,
    mut silence: Silence,
) {
    let (resources, lives) = (reconciler.watches().to_vec(), reconciler.lives().to_vec());
    let calls = Semaphore::new(CALLS_MAX);
    let hands = Hands { manager: reconciler.name().into(), api, shell: shell.clone(), recorder, calls };
    let hands = Arc::new(hands);
    let changed = mirror.listen(interest_in(&resources, &lives));
    let mut cursor = Cursor::new(&resources, &lives, mirror.revision());
    let mut driver = Driver::new(reconciler);
    driver.start(&mirror.view());
    driver.hear(&silence.borrow_and_update(), &mirror.view());
    let (done, mut results) = mpsc::unbounded_channel::<Finished>();
    loop {
        let (events, view) = cursor.pull(&mirror);
        match events {
            Some(events) => events.iter().for_each(|(resource, event)| driver.observe(*resource, event, &view)),
            None => driver.start(&view),
        }
        while let Ok(finished) = results.try_recv() {
            finish(&mut driver, finished, &*shell);
        }
        while let Some(job) = driver.next(&view, shell.now()) {
            let (hands, done, decided_on) = (hands.clone(), done.clone(), view.at());
            shell.spawn(Box::pin(async move {
                let (result, refused) = carry_out(job.effects, decided_on, &hands).await;
                // The receiver goes only with the whole task.
                let _ = done.send((job.key, result, refused));
            }));
        }
        tokio::select! {
            biased;
            () = changed.changed() => {}
            () = heard(&mut silence) => {
                let silent = silence.borrow_and_update().clone();
                driver.hear(&silent, &mirror.view());
            }
            Some(finished) = results.recv() => finish(&mut driver, finished, &*shell),
            () = reached(&mirror, driver.waits_for()) => {}
            () = come(&*shell, driver.wake_at()) => {}
        }
    }
}

/// Until other nodes are silent than before; never where nobody listens.
async fn heard(silence: &mut Silence) {
    if silence.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Until that time; never where there is nothing to wait for.
async fn come(shell: &dyn Shell, at: Option<Time>) {
    match at {
        Some(at) => shell.sleep(at.ms_since(shell.now()).max(1)).await,
        None => std::future::pending().await,
    }
}

/// A key that waits for a revision must be looked at when that comes, also when it comes with a change that interests
/// nobody here.
async fn reached(mirror: &Mirror, revision: Option<Revision>) {
    match revision {
        Some(revision) => mirror.reached(revision).await,
        None => std::future::pending().await,
    }
}

/// A job's key, how it went, and why writes were refused.
type Finished = (Str, Done, Vec<Refusal>);

fn finish(driver: &mut Driver, (key, result, refused): Finished, shell: &dyn Shell) {
    driver.refused(&key, refused);
    driver.done(key, result, shell.now());
}

/// Performs all effects of a job at once; the job is done when all are. Records wait for the write they stand behind.
async fn carry_out(effects: Vec<Effect>, decided_on: Revision, hands: &Arc<Hands>) -> (Done, Vec<Refusal>) {
    let mut writes = Vec::new();
    let mut effects = effects.into_iter().peekable();
    while let Some(effect) = effects.next() {
        if let Effect::Record(record) = effect {
            let told = hands.clone();
            hands.shell.spawn(Box::pin(async move { told.recorder.record(record).await }));
            continue;
        }
        let mut records = Vec::new();
        while let Some(Effect::Record(record)) = effects.next_if(|next| matches!(next, Effect::Record(_))) {
            records.push(record);
        }
        let (tell, heard) = oneshot::channel();
        let own = hands.clone();
        hands.shell.spawn(Box::pin(async move {
            let permit = own.calls.acquire().await;
            let result = perform(effect, decided_on, &own).await;
            drop(permit);
            let ended = match &result {
                Ok(written) if written.by_others => Ended::ByOthers,
                Ok(_) => Ended::Well,
                Err(status) => Ended::Refused(status.to_string()),
            };
            // Whoever asked may have ended.
            let _ = tell.send(result.map(|written| written.revision));
            announce(records, &ended, &own.recorder).await;
        }));
        writes.push(heard);
    }
    let (mut latest, mut failed, mut refused) = (Revision::ZERO, false, Vec::new());
    for result in futures_util::future::join_all(writes).await {
        match result {
            Ok(Ok(revision)) => latest = latest.max(revision),
            Err(_) => {
                failed = true;
                tracing::error!("{}: a write ended without an answer", hands.manager);
            }
            Ok(Err(status)) => {
                failed = true;
                tracing::debug!("{}: {status}", hands.manager);
                if !matches!(status.reason(), Reason::Conflict) {
                    refused.push(Refusal { why: status.to_string(), passes: status.reason().passes() });
                }
            }
        }
    }
    (if failed { Done::Failed(latest) } else { Done::Written(latest) }, refused)
}

/// How a write ended, for those who are told of it.
enum Ended {
    Well,
    /// There was nothing left to do.
    ByOthers,
    Refused(String),
}

/// Stores the records of one write: as they are when it went well, as failures when it was refused. What others did is no
/// success of ours.
async fn announce(records: Vec<EventRecord>, ended: &Ended, recorder: &Recorder) {
    for mut record in records {
        match (ended, record.reason.strip_prefix("Successful")) {
            (Ended::Well, _) | (Ended::ByOthers, None) => {}
            (Ended::ByOthers, Some(_)) | (Ended::Refused(_), None) => continue,
            (Ended::Refused(why), Some(what)) => {
                let doing = if what == "Delete" { "deleting" } else { "creating" };
                record.message = format!("Error {doing}: {why}");
                record.reason = format!("Failed{what}").into();
                record.of_type = "Warning";
            }
        }
        recorder.record(record).await;
    }
}

async fn perform(effect: Effect, decided_on: Revision, hands: &Hands) -> Result<Written, Status> {
    let (request, tolerated) = request_of(effect);
    let Some(request) = request else { return Ok(Written { revision: Revision::ZERO, by_others: false }) };
    let request = request.with(|options| {
        options.manager = hands.manager.clone();
        options.decided_on = decided_on;
    });
    fate::write(request, tolerated, &*hands.api, &*hands.shell).await
}

/// The call that an effect is, and the refusal that counts as done.
pub fn request_of(effect: Effect) -> (Option<Request>, Option<Reason>) {
    match effect {
        Effect::Create { resource, object } => (Some(Request::create(resource, object)), Some(Reason::AlreadyExists)),
        Effect::Update { resource, object } => (Some(Request::update(resource, object)), None),
        Effect::UpdateSub { resource, subresource, object } => {
            (Some(Request::update(resource, object).on(subresource)), None)
        }
        Effect::Patch { resource, subresource, namespace, name, uid, mut patch, lists } => {
            if !uid.is_empty() {
                patch.set(&["metadata", "uid"], uid);
            }
            let of_type = match lists {
                Lists::Replaced => PatchType::Merge,
                Lists::Merged => PatchType::Strategic,
            };
            let request = Request::patch(resource, &namespace, &name, of_type, patch).on(subresource);
            (Some(request), Some(Reason::NotFound))
        }
        Effect::Post { resource, subresource, namespace, name, body } => {
            let mut request = Request::get(resource, &namespace, &name).on(subresource);
            request.action = Action::Create(body);
            (Some(request), None)
        }
        Effect::Delete { resource, namespace, name, uid, revision, propagation, grace_seconds } => {
            let request = Request::delete(resource, &namespace, &name).with(|options| {
                options.uid = (!uid.is_empty()).then_some(uid);
                options.revision = revision;
                options.grace_seconds = grace_seconds;
                options.propagation = match propagation {
                    "Foreground" => Some(Propagation::Foreground),
                    "Orphan" => Some(Propagation::Orphan),
                    "Background" => Some(Propagation::Background),
                    _ => None,
                };
            });
            (Some(request), Some(Reason::NotFound))
        }
        Effect::Record(_) => (None, None),
    }
}

/// A reference to an object for an event about it.
pub fn about(api_version: &str, kind: &str, object: &meta::Object) -> Value {
    json!({
        "apiVersion": api_version, "kind": kind, "namespace": (object.namespace()), "name": (object.name()),
        "uid": (object.uid()), "resourceVersion": (object.revision().to_string()),
    })
}
