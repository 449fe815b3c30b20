//! What becomes of one pod, look by look: the machine with its memory, and the words for the API. No IO: whoever drives
//! it observes, carries commands out and sends requests.

use api::core::leash::Leash;
use base::{Revision, Time};
use client::{PatchType, Request};
use meta::{Object, Reason, Resource, Status, Value, json};

use super::decide::all_containers;
use super::status::patch_of;
use super::{Command, Memory, Observed, ProbeKind, Standing, StartFailure, decide, status};

const PODS: Resource = Resource("pods");
/// Why a pod could not be prepared: its volumes, or its sandbox.
pub const FAILED_MOUNT: &str = "FailedMount";
pub const FAILED_SANDBOX: &str = "FailedCreatePodSandBox";

/// Why a pod ends that its node does not bear any longer, and how long it has for that.
pub const EVICTED: &str = "Evicted";
const EVICTED_GRACE_MS: u64 = 1_000;
/// Why a pod ends that is not to run where its node cannot be asked.
const CUT_OFF: &str = "NodeCutOff";

/// How long a step towards running may take before it is told that it is under way: a pod that starts at once is told of
/// once, and not after every step.
pub const GATHER_MS: u64 = 100;

/// How a command went.
#[derive(Clone, Debug)]
pub enum Outcome {
    Done(Result<(), String>),
    Started(Result<(), StartFailure>),
    Probed(bool, String),
}

/// Something to tell the user: the container (`""`: the pod), the type, the reason, the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    pub container: String,
    pub of_type: &'static str,
    pub reason: &'static str,
    pub message: String,
}

/// One pod on its node.
pub struct Worker {
    memory: Memory,
    /// How long it may run on while its node does not renew its lease; for ever without.
    leash: Option<Leash>,
    /// Until when its sandbox is held to run, and how the node stood at the last look.
    held_until_ms: Option<u64>,
    stood: Option<Standing>,
    /// The pod as it was last, for when its object goes without waiting.
    pod: Value,
    /// The revision of what was seen last; `None` when it is gone.
    seen: Option<Revision>,
    gone: bool,
    /// Whether it has all that it asks for is another question than at the last look.
    is_turned: bool,
    /// The status that was written last.
    told: Value,
    /// What a look rested on after which there was nothing to tell.
    nothing_new: Option<Basis>,
    /// What was taken since the last look is what everybody expected.
    quiet: bool,
}

/// All that a status is made of; with the same there is the same to tell, whatever the time.
struct Basis {
    pod: Option<Revision>,
    observed: Observed,
    memory: Memory,
    host: Vec<meta::Str>,
}

impl Worker {
    /// One that knows its pod: what is done for it when its object is gone needs that.
    pub fn new(object: &Object) -> Worker {
        let (value, seen) = (object.value(), Some(object.revision()));
        let (pod, memory) = (admitted(&value), Memory { resize_pending: pending_of(&value), ..Memory::default() });
        let (gone, is_turned, told, leash) = (false, false, Value::Null, Leash::of(&value));
        let (held_until_ms, stood, nothing_new) = (None, None, None);
        Worker { memory, leash, held_until_ms, stood, pod, seen, gone, is_turned, told, nothing_new, quiet: false }
    }

    /// Takes in whether the node has room for what the pod asks for by now, before its object is taken: as long as it has
    /// not, the pod keeps the resources that it has.
    pub fn pend(&mut self, pending: Option<(meta::Str, String)>) {
        self.is_turned |= self.memory.resize_pending != pending;
        self.memory.resize_pending = pending;
    }

    /// Takes the object as it is now; `None` when it is gone: then the pod ends at once. One that is older than what was
    /// seen tells nothing: the newer one is on its way, too.
    pub fn see(&mut self, object: Option<&Object>, now: Time) {
        if object.is_some_and(|object| Some(object.revision()) < self.seen) {
            return;
        }
        let known = std::mem::replace(&mut self.seen, object.map(Object::revision));
        if self.seen.is_none() || self.seen != known || std::mem::take(&mut self.is_turned) {
            self.gone = object.is_none();
            let pod = object.map_or_else(|| orphaned(&self.pod, now), Object::value);
            let before = std::mem::replace(&mut self.pod, pod);
            if self.memory.resize_pending.is_some() {
                keep_resources(&mut self.pod, &before["spec"]);
            }
        }
    }

    /// The node does not take the pod: it fails without having begun.
    pub fn refuse(&mut self, reason: meta::Str, message: String) {
        self.memory.doom.get_or_insert((reason, message));
    }

    /// The node does not bear the pod any longer: it ends soon, and does not come back.
    pub fn evict(&mut self, message: String) {
        self.memory.doom.get_or_insert((EVICTED.into(), message));
        self.memory.doom_grace_ms = Some(EVICTED_GRACE_MS);
    }

    /// Takes in how the node stands: where it has not renewed its lease for as long as the pod bears, now or before it did, the
    /// pod ends. So does one that an earlier agent began and of which nothing is there (`ready`: its sandbox is): whether it
    /// was given up meanwhile, nobody knows. Says until when its sandbox is to be held now, if it has one and that is another
    /// time than before ([`Worker::held`]).
    pub fn stand(&mut self, standing: &Standing, now_ms: u64, ready: bool) -> Option<u64> {
        let leash = self.leash?;
        let known = self.stood.replace(*standing);
        let missed = known.is_some_and(|known| known.ends_ms(&leash) <= standing.since_ms);
        if missed || standing.ends_ms(&leash) <= now_ms {
            self.cut_off(format!("The node did not renew its lease for {} s.", leash.stop_ms / 1000));
        } else if known.is_none() && !ready && !self.pod.at(&["status", "startTime"]).is_null() {
            self.cut_off("The node lost the pod while nobody held it.".to_owned());
        }
        let until_ms = standing.holds_until_ms(&leash).ok()?;
        (ready && self.held_until_ms != Some(until_ms)).then_some(until_ms)
    }

    /// Takes the answer to holding its sandbox until then: it is, or it had been let go before.
    pub fn held(&mut self, until_ms: u64, is_held: bool) {
        self.held_until_ms = Some(until_ms);
        if !is_held {
            self.cut_off("The node did not hold the pod any more.".to_owned());
        }
    }

    fn cut_off(&mut self, message: String) {
        if !self.has_ended() {
            self.memory.doom.get_or_insert((CUT_OFF.into(), message));
        }
    }

    /// Whether it ended by itself: nothing is left to be ended.
    fn has_ended(&self) -> bool {
        self.memory.ended || matches!(self.pod.at(&["status", "phase"]).text(), "Succeeded" | "Failed")
    }

    /// When the pod ends if its node stands as it does by then; nothing where that does not matter, or no more.
    pub fn ends_ms(&self, standing: &Standing) -> Option<u64> {
        let ends = self.memory.doom.is_none() && !self.has_ended();
        self.leash.filter(|_| ends).map(|leash| standing.ends_ms(&leash))
    }

    pub fn pod(&self) -> &Value {
        &self.pod
    }

    /// What to do now, each marked as under way; `None` when nothing is left of the pod.
    pub fn decide(&mut self, observed: &Observed, now: Time) -> Option<Vec<Command>> {
        let commands = decide(&self.pod, observed, &mut self.memory, now);
        if self.gone && self.memory.removed && self.memory.busy.is_empty() {
            return None;
        }
        self.memory.busy.extend(commands.iter().map(Command::part));
        self.quiet = true;
        Some(commands)
    }

    /// The status to be written, if the stored one says something else. A look that finds everything as the last one did,
    /// as after most probes, makes none.
    pub fn status(&mut self, observed: &Observed, host: &[meta::Str], now: Time) -> Option<Value> {
        if self.gone {
            return None;
        }
        let is_known = |known: &Basis| {
            known.pod == self.seen
                && known.host == host
                && known.observed == *observed
                && known.memory.tells_the_same(&self.memory)
        };
        if self.nothing_new.as_ref().is_some_and(is_known) {
            return None;
        }
        let stored = &self.pod["status"];
        let status = status(&self.pod, stored, observed, &self.memory, host, now);
        // Only what the stored one says, too, is said whatever the time. What was told and is not stored, or no more, is
        // looked at again.
        let is_stored = says_the_same(&status, stored);
        let tells = status != self.told && !is_stored;
        let basis =
            || Basis { pod: self.seen, observed: observed.clone(), memory: self.memory.clone(), host: host.to_vec() };
        self.nothing_new = is_stored.then(basis);
        tells.then_some(status)
    }

    /// The request that writes `status`.
    pub fn telling(&self, status: &Value) -> Request {
        let meta = &self.pod["metadata"];
        let patch = json!({"metadata": {"uid": (meta["uid"].clone())}, "status": (patch_of(status))});
        let request = Request::patch(PODS, meta["namespace"].text(), meta["name"].text(), PatchType::Strategic, patch);
        request.on("status").with(|options| options.manager = "kubelet".into())
    }

    /// Takes the answer to [`Worker::telling`]; a pod that is another by now is told nothing more.
    pub fn told(&mut self, status: Value, answer: Result<(), &Status>) {
        let over = |status: &Status| matches!(status.reason(), Reason::NotFound | Reason::Conflict);
        if answer.is_ok() || answer.is_err_and(over) {
            self.told = status;
        }
    }

    /// When to look again though nothing changed.
    pub fn wake(&self) -> Option<Time> {
        self.memory.wake
    }

    /// Whether what was taken since the last look leaves nothing to be decided or told: probes that succeeded as before.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Remembers how a command went.
    pub fn take(&mut self, command: &Command, outcome: Outcome, now: Time) -> Vec<Note> {
        let mut notes = Vec::new();
        let mut note = |container: &str, of_type, reason, message| {
            notes.push(Note { container: container.to_owned(), of_type, reason, message });
        };
        let (memory, quiet) = (&mut self.memory, std::mem::take(&mut self.quiet));
        memory.busy.remove(&command.part());
        if *command == Command::Delete {
            memory.farewell = Some(now);
        }
        match (command, outcome) {
            (Command::Prepare, Outcome::Started(Err(failure))) => {
                let reason = if failure.reason == FAILED_MOUNT { FAILED_MOUNT } else { FAILED_SANDBOX };
                note("", "Warning", reason, failure.message.clone());
                memory.prepared(Err(failure.message), now);
            }
            (Command::Prepare, Outcome::Started(Ok(())) | Outcome::Done(Ok(()))) => memory.prepared(Ok(()), now),
            (Command::Start { container, .. }, Outcome::Started(result)) => memory.started(container, result, now),
            (Command::Probe { container, id, kind }, Outcome::Probed(good, message)) => {
                let wanted = all_containers(&self.pod).find(|one| one["name"].text() == container.as_str());
                let Some(probe) = wanted.and_then(|one| one.get(kind.key())) else { return notes };
                if !good {
                    note(container, "Warning", "Unhealthy", format!("{kind:?} probe failed: {message}"));
                }
                let Some(state) = memory.container(container).probes.get_mut(kind).filter(|state| state.id == *id)
                else {
                    return notes;
                };
                let before = state.verdict;
                state.answer(probe, good, message, now);
                let next = state.next;
                if good && before == Some(true) && *kind != ProbeKind::Startup {
                    memory.wake_by(next);
                    self.quiet = quiet;
                    return notes;
                }
                if !good && state.verdict == Some(false) && *kind != ProbeKind::Readiness {
                    let probe = kind.key().trim_end_matches("Probe");
                    let what = format!("Container {container} failed {probe} probe, will be restarted");
                    note(container, "Normal", "Killing", what);
                }
            }
            (Command::Resize { container, .. }, Outcome::Done(result)) => {
                let own = memory.container(container);
                match result {
                    Ok(()) => own.resize_failures = 0,
                    Err(why) => {
                        (own.resize_failures, own.resize_failed_at) = (own.resize_failures.saturating_add(1), now);
                        own.resize_error = why.clone();
                        note(container, "Warning", "ResizeError", why);
                    }
                }
            }
            (Command::Stop { .. } | Command::Remove | Command::End, Outcome::Done(Err(why))) => {
                memory.clearing_failures = memory.clearing_failures.saturating_add(1);
                memory.clearing_failed_at = now;
                tracing::warn!("{command:?}: {why}");
            }
            (Command::Stop { .. }, Outcome::Done(Ok(()))) => memory.clearing_failures = 0,
            (Command::Remove, Outcome::Done(Ok(()))) => (memory.removed, memory.clearing_failures) = (true, 0),
            (Command::End, Outcome::Done(Ok(()))) => (memory.ended, memory.clearing_failures) = (true, 0),
            (_, Outcome::Done(Err(why))) => tracing::warn!("{command:?}: {why}"),
            _ => {}
        }
        notes
    }
}

/// The condition of a pod that asks for more than its node has.
pub const RESIZE_PENDING: &str = "PodResizePending";
/// The condition of a pod whose containers do not have the resources yet that they were given.
pub const RESIZE_IN_PROGRESS: &str = "PodResizeInProgress";
const CONTAINERS: [&str; 2] = ["containers", "initContainers"];

/// Reason and message of a resize that a pod waits for, as its status tells.
pub fn pending_of(pod: &Value) -> Option<(meta::Str, String)> {
    let conditions = pod.at(&["status", "conditions"]).items();
    let found = conditions.iter().find(|condition| condition["type"].text() == RESIZE_PENDING)?;
    Some((found["reason"].text().into(), found["message"].text().to_owned()))
}

/// The pod with the resources that its node has given it: those it asks for, unless it waits for them.
pub fn admitted(pod: &Value) -> Value {
    let mut admitted = pod.clone();
    if pending_of(pod).is_none() {
        return admitted;
    }
    let mut spec = Value::map();
    for list in CONTAINERS {
        let statuses =
            pod.at(&["status", if list == "containers" { "containerStatuses" } else { "initContainerStatuses" }]);
        let has = |status: &Value| {
            let mut resources = status["resources"].clone();
            if let Some(requests) = status.get("allocatedResources") {
                resources.set(&["requests"], requests.clone());
            }
            json!({"name": (status["name"].clone()), "resources": resources})
        };
        spec.set(&[list], statuses.items().iter().map(has).collect::<Vec<Value>>());
    }
    keep_resources(&mut admitted, &spec);
    admitted
}

/// Gives the containers of a pod the resources that those of their names have in `before`.
fn keep_resources(pod: &mut Value, before: &Value) {
    for list in CONTAINERS {
        let Some(containers) = pod.at_mut(&["spec", list]) else { continue };
        for container in containers.items_mut() {
            let known = before[list].items().iter().find(|one| one["name"] == container["name"]);
            if let Some(known) = known {
                container.set(&["resources"], known["resources"].clone());
            }
        }
    }
    if let (Some(known), Some(_)) = (before.get("resources"), pod["spec"].get("resources")) {
        pod.set(&["spec", "resources"], known.clone());
    }
}

/// The last word about a pod that has ended: its object may go.
pub fn farewell(pod: &Value) -> Request {
    let meta = &pod["metadata"];
    Request::delete(PODS, meta["namespace"].text(), meta["name"].text()).with(|options| {
        options.grace_seconds = Some(0);
        options.uid = Some(meta["uid"].text().into());
    })
}

/// The pod as if its deletion without grace had been asked for: its object is gone.
fn orphaned(last: &Value, now: Time) -> Value {
    let mut pod = last.clone();
    pod.set(&["metadata", "deletionTimestamp"], now.rfc3339());
    pod.set(&["metadata", "deletionGracePeriodSeconds"], 1i64);
    pod
}

/// Whether a new status tells nothing that the stored one does not.
fn says_the_same(new: &Value, stored: &Value) -> bool {
    new.entries().iter().all(|(key, value)| {
        &stored[key] == value || (value.entries().is_empty() && value.as_map().is_some() && stored[key].is_null())
    })
}
