//! What the agent knows of its pods and containers, in memory, and the two files it is read from again.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use base::Time;
use serde::{Deserialize, Serialize};

use super::Inner;
use super::link::Link;
use crate::plan::Record;
use crate::seam::{
    Changes, ContainerSpec, ContainerStatus, Found, ImageConfig, NetworkNamespace, Resources, SandboxSpec,
    SandboxStatus, State,
};
use crate::shim::NETWORK_FILE;
use crate::{Error, lock};

/// Changes remembered for [`crate::Runtime::changed`].
const CHANGES_MAX: usize = 4096;
/// Exit code of a process that could not be started.
const START_ERROR_CODE: i32 = 128;
/// Exit code of a process whose end nobody saw.
const UNKNOWN_CODE: i32 = 255;
const SIGTERM: i32 = 15;

#[derive(Default)]
pub(super) struct Model {
    pub pods: BTreeMap<String, Pod>,
    pub containers: BTreeMap<String, Container>,
    version: u64,
    changes: VecDeque<Noted>,
}

/// That a sandbox changed.
struct Noted {
    version: u64,
    sandbox: String,
    /// The pod's uid.
    uid: String,
}

pub(super) struct Pod {
    pub dir: PathBuf,
    pub spec: SandboxSpec,
    pub created_us: i64,
    /// `None` when its shim is gone.
    pub link: Option<Link>,
    pub pid: i32,
}

/// `sandbox.json`
#[derive(Serialize, Deserialize)]
pub(super) struct PodRecord {
    pub spec: SandboxSpec,
    pub created_us: i64,
}

/// `ID.json`: what was decided when the container was created, and that it could not be started.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct ContainerRecord {
    pub id: String,
    pub spec: ContainerSpec,
    pub created_us: i64,
    pub image_id: String,
    pub image_ref: String,
    pub image: ImageConfig,
    /// Layers of its root, lowest first.
    pub layers: Vec<String>,
    pub cgroup: String,
    /// The limits in force.
    pub resources: Resources,
    pub start_error: Option<String>,
}

pub(super) struct Container {
    pub record: ContainerRecord,
    pub run: Option<Record>,
    /// Its shim went away while it ran.
    pub lost: bool,
    /// Its cgroup is being removed, or was: that begins with its end.
    pub cgroup_goes: bool,
    /// Starting and removing exclude each other.
    pub gate: Arc<tokio::sync::Mutex<()>>,
}

impl Pod {
    pub fn network(&self) -> Option<PathBuf> {
        match &self.spec.network {
            NetworkNamespace::Host => None,
            NetworkNamespace::New => Some(self.dir.join(NETWORK_FILE)),
            NetworkNamespace::Path(path) => Some(path.clone()),
        }
    }

    pub fn status(&self, id: &str) -> SandboxStatus {
        SandboxStatus {
            id: id.to_owned(),
            spec: self.spec.clone(),
            created_at: Time(self.created_us),
            ready: self.link.is_some(),
            network: self.network(),
            pid: if self.link.is_some() { self.pid } else { 0 },
        }
    }
}

impl Container {
    pub fn new(record: ContainerRecord, run: Option<Record>, lost: bool) -> Container {
        Container { record, run, lost, cgroup_goes: false, gate: Arc::default() }
    }

    pub fn is_running(&self) -> bool {
        !self.lost && self.run.as_ref().is_some_and(|r| r.finished_us == 0)
    }

    pub fn status(&self) -> ContainerStatus {
        let r = &self.record;
        let mut status = ContainerStatus {
            id: r.id.clone(),
            sandbox: r.spec.sandbox.clone(),
            name: r.spec.name.clone(),
            attempt: r.spec.attempt,
            labels: r.spec.labels.clone(),
            annotations: r.spec.annotations.clone(),
            image: r.spec.image.clone(),
            image_id: r.image_id.clone(),
            image_ref: r.image_ref.clone(),
            state: State::Created,
            pid: 0,
            created_at: Time(r.created_us),
            started_at: self.run.as_ref().map(|run| Time(run.started_us)),
            finished_at: None,
            exit_code: 0,
            signal: 0,
            reason: String::new(),
            message: String::new(),
            log_path: r.spec.log.as_ref().map(|l| l.path.clone()),
            stop_signal: r.spec.stop_signal.or(r.image.stop_signal).unwrap_or(SIGTERM),
            resources: r.resources.clone(),
            tty: r.spec.tty,
            stdin: r.spec.stdin,
        };
        let mut end = |code, reason: &str, message: &str, finished_us| {
            status.state = State::Exited;
            status.exit_code = code;
            reason.clone_into(&mut status.reason);
            message.clone_into(&mut status.message);
            status.finished_at = Some(Time(finished_us));
        };
        match (&self.run, &r.start_error) {
            (_, Some(why)) => end(START_ERROR_CODE, "StartError", why, r.created_us),
            (Some(run), _) if run.finished_us != 0 => {
                let reason = match (run.oom, run.exit_code) {
                    (true, _) => "OOMKilled",
                    (false, 0) => "Completed",
                    (false, _) => "Error",
                };
                end(run.exit_code, reason, "", run.finished_us);
                status.signal = run.signal;
            }
            _ if self.lost => {
                end(UNKNOWN_CODE, "Unknown", "its process ended while nobody could see how", r.created_us)
            }
            (Some(run), _) => {
                status.state = State::Running;
                status.pid = run.pid;
            }
            (None, None) => {}
        }
        status
    }
}

impl Model {
    pub fn changes_since(&self, since: u64) -> Changes {
        let all = since == 0 || self.changes.front().is_some_and(|first| first.version > since + 1);
        // Versions ascend, and readers are mostly a few behind.
        let start = self.changes.partition_point(|noted| noted.version <= since);
        let each = |of: fn(&Noted) -> &String| {
            let mut found: Vec<String> = self.changes.range(start..).map(of).cloned().collect();
            found.sort();
            found.dedup();
            found
        };
        Changes { version: self.version, sandboxes: each(|noted| &noted.sandbox), pods: each(|noted| &noted.uid), all }
    }

    fn uid_of(&self, sandbox: &str) -> Option<String> {
        self.pods.get(sandbox).map(|pod| pod.spec.uid.clone())
    }

    fn note(&mut self, sandbox: &str, uid: String) -> u64 {
        self.version += 1;
        if self.changes.len() == CHANGES_MAX {
            self.changes.pop_front();
        }
        self.changes.push_back(Noted { version: self.version, sandbox: sandbox.to_owned(), uid });
        self.version
    }

    /// The sandboxes of one pod and their containers.
    pub fn of_pod(&self, uid: &str) -> Found {
        let own = |sandbox: &str| self.pods.get(sandbox).is_some_and(|pod| pod.spec.uid == uid);
        let sandboxes = self.pods.iter().filter(|(_, pod)| pod.spec.uid == uid);
        let containers = self.containers.values().filter(|one| own(&one.record.spec.sandbox));
        Found {
            sandboxes: sandboxes.map(|(id, pod)| pod.status(id)).collect(),
            containers: containers.map(Container::status).collect(),
        }
    }
}

impl Inner {
    /// Looks at the model.
    pub fn model<T>(&self, look: impl FnOnce(&Model) -> T) -> T {
        look(&lock(&self.model))
    }

    /// Changes the model and announces that `sandbox` changed.
    pub fn change<T>(&self, sandbox: &str, change: impl FnOnce(&mut Model) -> T) -> T {
        let mut model = lock(&self.model);
        let before = model.uid_of(sandbox);
        let result = change(&mut model);
        let uid = before.or_else(|| model.uid_of(sandbox)).unwrap_or_default();
        let version = model.note(sandbox, uid);
        // Under the lock, so that versions are announced in order.
        self.version.send_replace(version);
        result
    }

    pub fn container<T>(&self, id: &str, look: impl FnOnce(&Container) -> T) -> Result<T, Error> {
        self.model(|m| m.containers.get(id).map(look))
            .ok_or_else(|| Error::NotFound { what: "container", id: id.to_owned() })
    }

    pub fn pod<T>(&self, id: &str, look: impl FnOnce(&Pod) -> T) -> Result<T, Error> {
        self.model(|m| m.pods.get(id).map(look)).ok_or_else(|| Error::NotFound { what: "sandbox", id: id.to_owned() })
    }

    /// The shim of a sandbox.
    pub fn link(&self, sandbox: &str) -> Result<Link, Error> {
        self.pod(sandbox, |p| p.link.clone())?.ok_or_else(|| Error::Conflict {
            what: "sandbox",
            id: sandbox.to_owned(),
            why: "is not running".to_owned(),
        })
    }

    /// The sandbox of a container that must be running, with its shim.
    pub fn running(&self, id: &str) -> Result<(String, Link), Error> {
        let (sandbox, running) = self.container(id, |c| (c.record.spec.sandbox.clone(), c.is_running()))?;
        match running {
            true => Ok((sandbox.clone(), self.link(&sandbox)?)),
            false => Err(Error::Conflict { what: "container", id: id.to_owned(), why: "is not running".to_owned() }),
        }
    }
}
