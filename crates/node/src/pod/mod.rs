//! The pod machine: what to do next for one pod, and what to tell about it. Pure: pod, observed containers, what it
//! remembers, and the time go in; commands and a status come out.
//!
//! It is level-triggered: [`decide`] looks at what is, so a lost answer or a restart of the agent changes nothing. What
//! cannot be observed (probe results, pauses after failures, why an image cannot be had) is kept in [`Memory`].

pub mod admit;
pub mod decide;
pub mod probes;
pub mod standing;
pub mod status;
pub mod worker;

use std::collections::{BTreeMap, BTreeSet};

use base::{Backoff, Time};
use meta::{Str, Value};
use runtime::Resources;

pub use decide::decide;
pub use standing::Standing;
pub use status::status;
pub use worker::{Note, Outcome, Worker};

/// Pauses before a container that ended is started again.
pub const RESTART: Backoff = Backoff::new(10_000, 300_000);
/// A container that ran this long starts with a fresh count.
pub const RESTART_RESET_MS: u64 = 600_000;
/// Pauses between tries to get an image.
pub const PULL: Backoff = Backoff::new(10_000, 300_000);
/// Pauses between tries of anything else that failed.
pub const RETRY: Backoff = Backoff::new(1_000, 30_000);

/// A container as the runtime sees it: the newest of its name.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub id: Str,
    pub attempt: u32,
    pub state: SeenState,
    pub image: Str,
    pub image_id: Str,
    pub started: Option<Time>,
    pub finished: Option<Time>,
    pub exit_code: i32,
    pub signal: i32,
    pub reason: Str,
    pub message: Str,
    /// The limits in force; `None` where nobody tells.
    pub limits: Option<Resources>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeenState {
    Created,
    Running,
    Exited,
}

/// What the runtime has of one pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// The sandbox is there and ready.
    pub sandbox_ready: bool,
    /// There is a sandbox, ready or not.
    pub sandbox: bool,
    pub addresses: Vec<Str>,
    /// By container name, the newest attempt of each.
    pub containers: BTreeMap<Str, Seen>,
    /// The one before the newest, where there is one.
    pub previous: BTreeMap<Str, Seen>,
}

/// Something to do. Each names the part of the pod it works on; a part is worked on by one command at a time.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Volumes, network, sandbox.
    Prepare,
    /// Image, files, environment, process, postStart hook.
    Start {
        container: Str,
        attempt: u32,
    },
    /// The limits of one that runs become those of its spec.
    Resize {
        container: Str,
        id: Str,
    },
    /// preStop hook, stop signal, kill.
    Stop {
        container: Str,
        id: Str,
        grace_ms: u64,
    },
    Probe {
        container: Str,
        id: Str,
        kind: ProbeKind,
    },
    /// The pod's processes and network end; records and logs stay.
    End,
    /// Everything of the pod goes.
    Remove,
    /// The pod object goes for good.
    Delete,
}

impl Command {
    /// Whether it brings the pod a step nearer to running.
    pub fn is_step(&self) -> bool {
        matches!(self, Command::Prepare | Command::Start { .. })
    }

    /// The part it works on.
    pub fn part(&self) -> Str {
        match self {
            Command::Prepare | Command::End | Command::Remove => "sandbox".into(),
            Command::Start { container, .. } | Command::Stop { container, .. } | Command::Resize { container, .. } => {
                format!("container/{container}").into()
            }
            Command::Probe { container, kind, .. } => format!("probe/{container}/{kind:?}").into(),
            Command::Delete => "object".into(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

/// Why a container could not be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartFailure {
    /// `ErrImagePull`, `CreateContainerConfigError`, `RunContainerError` …
    pub reason: Str,
    pub message: String,
}

/// What is remembered of one container.
#[derive(Clone, Debug, Default)]
pub struct ContainerMemory {
    /// Starts that failed in a row, and the last failure.
    pub failures: u32,
    pub failure: Option<StartFailure>,
    pub failed_at: Time,
    /// Resizes that failed in a row, why, and when the last one did.
    pub resize_failures: u32,
    pub resize_error: String,
    pub resize_failed_at: Time,
    /// Restarts in a row that count for the pause.
    pub restarts: u32,
    /// The container whose end was counted last.
    pub counted: Str,
    /// A liveness or startup probe condemned this container id; it is stopped.
    pub condemned: Str,
    pub probes: BTreeMap<ProbeKind, probes::ProbeState>,
}

/// What is remembered of one pod.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    pub containers: BTreeMap<Str, ContainerMemory>,
    /// Parts that a command works on now.
    pub busy: BTreeSet<Str>,
    pub prepare_failures: u32,
    pub prepare_failed_at: Time,
    pub prepare_error: Option<String>,
    /// Stops and removals that failed in a row, and when the last one did.
    pub clearing_failures: u32,
    pub clearing_failed_at: Time,
    pub removed: bool,
    pub ended: bool,
    /// When the API was last told that the object may go.
    pub farewell: Option<Time>,
    /// When the pod was first seen: `status.startTime`.
    pub started: Option<Time>,
    /// Set when the pod must end whatever its object says: reason and message.
    pub doom: Option<(Str, String)>,
    /// What it is given to end then, where that is not its own time.
    pub doom_grace_ms: Option<u64>,
    /// Why the pod does not have the resources yet that its object asks for: reason and message.
    pub resize_pending: Option<(Str, String)>,
    pub wake: Option<Time>,
}

impl Memory {
    /// Something is to be looked at again at `at`, at the latest.
    pub fn wake_by(&mut self, at: Time) {
        self.wake = Some(self.wake.map_or(at, |known| known.min(at)));
    }

    /// Whether a status that is made of this tells nothing that one made of `other` does not: the rest is about what is
    /// done next, and when.
    pub fn tells_the_same(&self, other: &Memory) -> bool {
        let probes =
            |one: &ContainerMemory, other: &ContainerMemory| {
                one.probes.len() == other.probes.len()
                    && one.probes.iter().zip(&other.probes).all(|((kind, one), (of, other))| {
                        kind == of && one.id == other.id && one.verdict == other.verdict
                    })
            };
        self.doom == other.doom
            && self.resize_pending == other.resize_pending
            && self.prepare_error == other.prepare_error
            && self.started == other.started
            && self.containers.len() == other.containers.len()
            && self.containers.iter().zip(&other.containers).all(|((name, one), (of, other))| {
                name == of
                    && one.restarts == other.restarts
                    && one.failures == other.failures
                    && one.failure == other.failure
                    && one.resize_error == other.resize_error
                    && probes(one, other)
            })
    }

    pub fn container(&mut self, name: &str) -> &mut ContainerMemory {
        self.containers.entry(name.into()).or_default()
    }

    /// Takes the outcome of a start.
    pub fn started(&mut self, container: &str, outcome: Result<(), StartFailure>, now: Time) {
        let memory = self.container(container);
        match outcome {
            Ok(()) => (memory.failures, memory.failure) = (0, None),
            Err(failure) => {
                memory.failures += 1;
                memory.failed_at = now;
                memory.failure = Some(failure);
            }
        }
    }

    /// Takes the outcome of a preparation.
    pub fn prepared(&mut self, outcome: Result<(), String>, now: Time) {
        match outcome {
            Ok(()) => (self.prepare_failures, self.prepare_error) = (0, None),
            Err(why) => {
                self.prepare_failures += 1;
                self.prepare_failed_at = now;
                self.prepare_error = Some(why);
            }
        }
    }
}

/// Whether an init container is a sidecar: it starts in order but keeps running.
pub fn is_sidecar(container: &Value) -> bool {
    container["restartPolicy"].text() == "Always"
}

#[cfg(test)]
mod tests;
