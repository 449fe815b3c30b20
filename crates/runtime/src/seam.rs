//! The seam between the node agent and whatever runs containers: one object-safe trait and its plain types.
//!
//! Shaped after the CRI, so that the embedded runtime, a CRI client (containerd, CRI-O) and a simulated runtime can
//! stand behind it. It knows no Kubernetes object: the caller has decided everything, the runtime carries it out.
//!
//! Invariants: [`Runtime::changed`] wakes for every change of a container's or sandbox's state, however it came
//! about; a status is never older than a change that was announced; every operation may be repeated.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use base::Time;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use crate::Error;

/// What every operation returns: a boxed future of a result.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, Error>>;

/// Runs sandboxes and containers and keeps their images. Shared as `Arc<dyn Runtime>`.
pub trait Runtime: Send + Sync + 'static {
    fn version(&self) -> Answer<'_, Version>;

    /// Fetches an image. `progress` is told about bytes as they come; it must not block.
    fn pull<'a>(
        &'a self,
        image: &'a str,
        credentials: Option<Credentials>,
        progress: Progress,
    ) -> Answer<'a, ImageStatus>;
    /// Takes the images out of an OCI layout or `docker save` archive on this machine.
    fn load(&self, archive: PathBuf) -> Answer<'_, Vec<ImageStatus>>;
    fn images(&self) -> Answer<'_, Vec<ImageStatus>>;
    /// By name or by id; `None` when it is not there.
    fn image<'a>(&'a self, image: &'a str) -> Answer<'a, Option<ImageStatus>>;
    /// By name (that name goes, the image with its last name) or by id (all its names go). Missing is no error.
    fn remove_image<'a>(&'a self, image: &'a str) -> Answer<'a, ()>;
    fn image_usage(&self) -> Answer<'_, DiskUsage>;

    fn run_sandbox(&self, spec: SandboxSpec) -> Answer<'_, SandboxStatus>;
    /// Ends all its containers at once and the sandbox itself. The records stay until removed.
    fn stop_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;
    /// Stops it when needed and removes it with its containers. Missing is no error.
    fn remove_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;
    fn sandboxes(&self) -> Answer<'_, Vec<SandboxStatus>>;
    /// From `until_ms` on, by [`boot_ms`], nothing of a sandbox runs, whether or not anybody looks after it then: what runs
    /// is killed, what should start is refused. Said again it counts from then on; `false` when it is too late for that:
    /// nothing runs there any more.
    fn hold<'a>(&'a self, id: &'a str, until_ms: u64) -> Answer<'a, bool>;

    /// Records a container and lays out its root file system; nothing runs yet. Returns its id.
    fn create(&self, spec: ContainerSpec) -> Answer<'_, String>;
    /// Starts the process. On [`Error::Start`] the container is `Exited` with code 128 and reason `StartError`.
    fn start<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;
    /// Sends the stop signal, waits for the end up to `timeout_ms`, then kills. Returns when it has ended.
    fn stop<'a>(&'a self, id: &'a str, timeout_ms: u64) -> Answer<'a, ()>;
    /// Sends one signal to the container's first process.
    fn kill<'a>(&'a self, id: &'a str, signal: i32) -> Answer<'a, ()>;
    /// Kills when needed and forgets it. Missing is no error.
    fn remove<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;
    fn containers(&self) -> Answer<'_, Vec<ContainerStatus>>;
    /// The sandboxes of one pod, all attempts, and their containers.
    fn of_pod<'a>(&'a self, uid: &'a str) -> Answer<'a, Found>;
    fn container<'a>(&'a self, id: &'a str) -> Answer<'a, ContainerStatus>;
    /// Changes limits of a container in place.
    fn update<'a>(&'a self, id: &'a str, resources: Resources) -> Answer<'a, ()>;
    fn stats<'a>(&'a self, id: &'a str) -> Answer<'a, ContainerStats>;
    /// The same without what takes long to count (the writable layer).
    fn usage<'a>(&'a self, id: &'a str) -> Answer<'a, ContainerStats> {
        self.stats(id)
    }
    /// Of any cgroup, named as in [`SandboxSpec::cgroup_parent`].
    fn cgroup_usage<'a>(&'a self, path: &'a str) -> Answer<'a, ContainerStats> {
        let what = format!("the numbers of the cgroup {path}");
        Box::pin(async move { Err(Error::Unsupported { what }) })
    }
    /// Limits of any cgroup, named as in [`SandboxSpec::cgroup_parent`]; it is made where it is not there.
    fn set_cgroup<'a>(&'a self, path: &'a str, _: Resources) -> Answer<'a, ()> {
        let what = format!("the limits of the cgroup {path}");
        Box::pin(async move { Err(Error::Unsupported { what }) })
    }
    /// Of the whole pod, from its own cgroup.
    fn sandbox_stats<'a>(&'a self, id: &'a str) -> Answer<'a, ContainerStats>;

    /// Runs one more process in a running container. Dropping the session kills it.
    fn exec<'a>(&'a self, id: &'a str, request: ExecRequest) -> Answer<'a, Session>;
    /// Runs a process to its end and keeps at most [`EXEC_OUTPUT_MAX_BYTES`] of each stream.
    fn exec_sync<'a>(&'a self, id: &'a str, argv: Vec<String>, timeout_ms: u64) -> Answer<'a, ExecOutput>;
    /// Joins the streams of the container's first process. Dropping the session detaches.
    fn attach<'a>(&'a self, id: &'a str, stdin: bool) -> Answer<'a, Session>;
    /// A TCP connection to `127.0.0.1:port` (or `::1`) inside the sandbox's network.
    fn connect<'a>(&'a self, sandbox: &'a str, port: u16) -> Answer<'a, Box<dyn Stream>>;
    /// Opens the log file anew, after someone moved it away.
    fn reopen_log<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;

    /// Waits until something changed after version `since`, and says what. Start with 0.
    fn changed(&self, since: u64) -> BoxFuture<'_, Changes>;
    /// Adopts what an earlier agent left running, and throws away what cannot be. Called once, first.
    fn found(&self) -> Answer<'_, Found>;
}

/// Milliseconds since the machine began, its sleep included: the same for all processes of it, and nobody sets it.
pub fn boot_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

/// Kept output per stream of [`Runtime::exec_sync`]; more is read and dropped.
pub const EXEC_OUTPUT_MAX_BYTES: usize = 16 << 20;

/// Both halves of a byte stream.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub name: String,
    pub version: String,
}

/// How to prove who we are to a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    Basic {
        user: String,
        password: String,
    },
    /// A bearer token that the registry takes as it is.
    Token(String),
    /// An OAuth2 refresh token, exchanged at the registry's token service.
    Identity(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// Told about a pull: `(done, total)` in compressed bytes over all layers.
pub type Progress = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// A [`Progress`] that ignores everything.
pub fn no_progress() -> Progress {
    Arc::new(|_, _| {})
}

/// One image on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageStatus {
    /// Digest of its configuration, `sha256:...`.
    pub id: String,
    /// Names with tags.
    pub tags: Vec<String>,
    /// Names with digests.
    pub digests: Vec<String>,
    /// Unpacked size.
    pub size_bytes: u64,
    pub config: ImageConfig,
}

/// What an image says about how it wants to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    pub env: Vec<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub working_dir: String,
    /// `user[:group]`, by name or number; empty is root.
    pub user: String,
    pub stop_signal: Option<i32>,
    pub labels: BTreeMap<String, String>,
    pub volumes: Vec<String>,
}

impl ImageConfig {
    /// The numeric user, when the image names one by number or not at all.
    pub fn uid(&self) -> Option<u32> {
        match self.user.split(':').next().unwrap_or("") {
            "" => Some(0),
            user => user.parse().ok(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    pub bytes: u64,
    pub inodes: u64,
}

/// Where a sandbox's network comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkNamespace {
    /// The agent's own.
    Host,
    /// A new one with only `lo` up; [`SandboxStatus::network`] says where it can be joined.
    New,
    /// One that exists.
    Path(PathBuf),
}

/// Which processes a container sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidNamespace {
    /// Its own.
    #[default]
    Container,
    /// Those of the sandbox (needs [`SandboxSpec::share_processes`]).
    Pod,
    /// The node's.
    Host,
    /// Those of another container of the sandbox, by id.
    Target(String),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxSpec {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub attempt: u32,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// `None` keeps the node's name and UTS namespace.
    pub hostname: Option<String>,
    pub network: NetworkNamespace,
    pub host_ipc: bool,
    /// One process namespace for the whole pod, with a tiny first process that reaps.
    pub share_processes: bool,
    pub sysctls: BTreeMap<String, String>,
    /// The pod's cgroup below each hierarchy's root, such as `/kubepods/burstable/pod1234`.
    pub cgroup_parent: String,
    /// Limits of the pod's cgroup as a whole.
    pub resources: Resources,
    /// Size of the shared `/dev/shm`.
    pub shm_bytes: u64,
    /// From when on nothing of it runs, until [`Runtime::hold`] says another time; `None`: for as long as it likes.
    #[serde(default)]
    pub held_until_ms: Option<u64>,
}

impl SandboxSpec {
    /// A sandbox with a network of its own and nothing special.
    pub fn new(namespace: &str, name: &str, uid: &str) -> SandboxSpec {
        SandboxSpec {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            attempt: 0,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            hostname: Some(name.to_owned()),
            network: NetworkNamespace::New,
            host_ipc: false,
            share_processes: false,
            sysctls: BTreeMap::new(),
            cgroup_parent: format!("/kubepods/pod{uid}"),
            resources: Resources::default(),
            shm_bytes: 64 << 20,
            held_until_ms: None,
        }
    }
}

#[derive(Clone, Debug)]
pub struct SandboxStatus {
    pub id: String,
    pub spec: SandboxSpec,
    pub created_at: Time,
    /// `false` when it was stopped or its shim is gone.
    pub ready: bool,
    /// Path of the network namespace; `None` for the host's.
    pub network: Option<PathBuf>,
    /// The shim's process.
    pub pid: i32,
}

/// How mounts travel between host and container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub host_path: PathBuf,
    pub container_path: PathBuf,
    pub read_only: bool,
    /// With `read_only`: mounts below it become read-only too.
    pub recursive_read_only: bool,
    pub propagation: Propagation,
    /// Take the mounts below the host path along.
    pub recursive: bool,
    /// No part of the host path may be a symbolic link: it lies where containers write, and was looked at before.
    #[serde(default)]
    pub no_links: bool,
}

impl Mount {
    pub fn new(host_path: impl Into<PathBuf>, container_path: impl Into<PathBuf>) -> Mount {
        Mount {
            host_path: host_path.into(),
            container_path: container_path.into(),
            read_only: false,
            recursive_read_only: false,
            propagation: Propagation::Private,
            recursive: true,
            no_links: false,
        }
    }

    pub fn read_only(mut self) -> Mount {
        self.read_only = true;
        self
    }
}

/// A device node of the host that a container may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    pub host_path: PathBuf,
    pub container_path: PathBuf,
    /// Of `r`, `w`, `m`.
    pub permissions: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    #[default]
    RuntimeDefault,
    Unconfined,
    /// A profile in the OCI (docker) JSON form on this machine.
    Localhost(PathBuf),
}

/// Limits; what is `None` is not touched (and unlimited at creation).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    pub cpu_shares: Option<u64>,
    /// Microseconds per period; negative is unlimited.
    pub cpu_quota_us: Option<i64>,
    pub cpu_period_us: Option<u64>,
    /// 0 or negative is unlimited.
    pub memory_limit_bytes: Option<i64>,
    pub pids_limit: Option<i64>,
    /// A list such as `0-3,7`.
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    /// Raw cgroup v2 files (`memory.high`); ignored on v1.
    pub unified: BTreeMap<String, String>,
}

/// Where a container's output goes, in the CRI's log format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSpec {
    pub path: PathBuf,
    /// The file is rotated when it would grow over this; 0 never.
    pub max_bytes: u64,
    /// Rotated files kept beside the live one.
    pub max_files: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecuritySpec {
    /// Overrides the image's user; a number, or a name of the image.
    pub user: Option<String>,
    pub group: Option<u32>,
    pub supplemental_groups: Vec<u32>,
    /// Leave out the groups that the image's `/etc/group` gives the user (policy `Strict`).
    pub ignore_image_groups: bool,
    /// `NET_ADMIN`, `CAP_NET_ADMIN` or `ALL`.
    pub add_capabilities: Vec<String>,
    pub drop_capabilities: Vec<String>,
    pub privileged: bool,
    pub no_new_privileges: bool,
    pub read_only_root: bool,
    pub seccomp: Seccomp,
    /// `procMount: Unmasked`: leave `/proc` as it is.
    pub unmasked_proc: bool,
    /// Linux' -1000..=1000; raised to what this process may set.
    pub oom_score_adj: Option<i32>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerSpec {
    pub sandbox: String,
    pub name: String,
    pub attempt: u32,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Name or id of an image that is there.
    pub image: String,
    /// Overrides the entrypoint; the image's `cmd` is then ignored.
    pub command: Vec<String>,
    /// Overrides `cmd`.
    pub args: Vec<String>,
    /// Added to the image's environment; same names win. Order is kept.
    pub env: Vec<(String, String)>,
    pub working_dir: Option<String>,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Device>,
    pub security: SecuritySpec,
    pub pid: PidNamespace,
    pub resources: Resources,
    pub log: Option<LogSpec>,
    pub tty: bool,
    pub stdin: bool,
    /// Close stdin when the first attached session ends.
    pub stdin_once: bool,
    pub stop_signal: Option<i32>,
}

impl ContainerSpec {
    pub fn new(sandbox: &str, name: &str, image: &str) -> ContainerSpec {
        ContainerSpec {
            sandbox: sandbox.to_owned(),
            name: name.to_owned(),
            attempt: 0,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            image: image.to_owned(),
            command: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            working_dir: None,
            mounts: Vec::new(),
            devices: Vec::new(),
            security: SecuritySpec::default(),
            pid: PidNamespace::default(),
            resources: Resources::default(),
            log: None,
            tty: false,
            stdin: false,
            stdin_once: false,
            stop_signal: None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    Created,
    Running,
    Exited,
    /// Its process ended while nobody could see how.
    Unknown,
}

#[derive(Clone, Debug)]
pub struct ContainerStatus {
    pub id: String,
    pub sandbox: String,
    pub name: String,
    pub attempt: u32,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// As asked for.
    pub image: String,
    pub image_id: String,
    /// `name@sha256:...` when the image has such a name, else its id.
    pub image_ref: String,
    pub state: State,
    /// 0 when nothing runs.
    pub pid: i32,
    pub created_at: Time,
    pub started_at: Option<Time>,
    pub finished_at: Option<Time>,
    /// 128 + signal when a signal ended it.
    pub exit_code: i32,
    /// 0 when none.
    pub signal: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `ContainerStatusUnknown`; empty while it runs.
    pub reason: String,
    pub message: String,
    pub log_path: Option<PathBuf>,
    pub stop_signal: i32,
    /// The limits in force.
    pub resources: Resources,
    pub tty: bool,
    pub stdin: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContainerStats {
    pub cpu_ns: u64,
    /// Charged memory without the file cache that can be dropped at once.
    pub memory_working_set_bytes: u64,
    pub memory_usage_bytes: u64,
    pub memory_rss_bytes: u64,
    /// 0 when unlimited.
    pub memory_limit_bytes: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    pub pids: u64,
    /// Times the kernel killed a process of this cgroup for memory.
    pub oom_kills: u64,
    /// Bytes in the container's writable layer; only filled for containers.
    pub writable_bytes: u64,
    pub writable_inodes: u64,
}

#[derive(Clone, Debug, Default)]
pub struct ExecRequest {
    pub argv: Vec<String>,
    pub tty: bool,
    pub stdin: bool,
    /// First window size as (columns, rows).
    pub size: Option<(u16, u16)>,
}

/// What is sent into a [`Session`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    Stdin(Bytes),
    /// No more input.
    Close,
    Resize {
        columns: u16,
        rows: u16,
    },
}

/// What comes out of a [`Session`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    Stdout(Bytes),
    Stderr(Bytes),
    /// The last message. `code` is 128 + signal when a signal ended the process.
    Exit {
        code: i32,
    },
}

/// The two ends of a stream with a process. Both are bounded, so a slow side slows the other.
#[derive(Debug)]
pub struct Session {
    pub input: mpsc::Sender<Input>,
    pub output: mpsc::Receiver<Output>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    pub code: i32,
    pub stdout: Bytes,
    pub stderr: Bytes,
}

/// What changed since the asked version. When so much changed that it is no longer known, `all` is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub version: u64,
    /// Ids of the sandboxes concerned (also those of changed containers).
    pub sandboxes: Vec<String>,
    /// The uids of their pods.
    pub pods: Vec<String>,
    pub all: bool,
}

/// What [`Runtime::found`] or [`Runtime::of_pod`] saw.
#[derive(Clone, Debug, Default)]
pub struct Found {
    pub sandboxes: Vec<SandboxStatus>,
    pub containers: Vec<ContainerStatus>,
}
