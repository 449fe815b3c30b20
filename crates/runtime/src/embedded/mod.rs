//! The runtime of our own: images in a directory, a shim per pod, and this side of it in the agent.
//!
//! What is true about a container is its record (a file, written when it is created), what its shim says, and the
//! file the shim leaves when the container has ended. This module holds the same in memory and keeps it current by the
//! shims' events; after a restart of the agent [`Embedded::found`] reads it all again and nothing is lost.
//!
//! Directories: `root` outlives the machine's restart (`images/`, `containers/ID` with what a container wrote),
//! `state` need not (`pods/ID` with the shim's socket, plans and records). Each has `removed/`, for what is to be emptied.
//!
//! Not here: which containers should run. Invariants: every operation may be repeated; a container's end is announced
//! after its log is complete; what failed half-way leaves nothing behind.

mod link;
mod model;
mod plan_of;
mod pods;
mod records;
mod streams;
mod trash;

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rustix::fs::CWD;

pub use self::pods::disk_usage;
use crate::image::{Images, RegistryConfig, Role};
use crate::plan::{Reply, Request};
use crate::seam::*;
use crate::shim::seed::Seed;
use crate::{Cgroups, Error};
use model::Model;
use trash::Trash;

/// How the own binary is started as a shim.
#[derive(Clone, Debug)]
pub struct ShimProgram {
    pub path: PathBuf,
}

impl Default for ShimProgram {
    fn default() -> ShimProgram {
        ShimProgram { path: PathBuf::from("/proc/self/exe") }
    }
}

/// What the embedded runtime needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// For images and what containers write. On a file system that overlayfs takes as upper layer.
    pub root: PathBuf,
    /// For sockets and records; may be a tmpfs.
    pub state: PathBuf,
    pub shim: ShimProgram,
    pub registries: RegistryConfig,
    /// `None` looks at this process' mounts.
    pub cgroups: Option<Cgroups>,
}

impl Config {
    pub fn new(root: impl Into<PathBuf>, state: impl Into<PathBuf>) -> Config {
        Config {
            root: root.into(),
            state: state.into(),
            shim: ShimProgram::default(),
            registries: RegistryConfig::default(),
            cgroups: None,
        }
    }
}

/// What this process may give to containers.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    /// Capabilities it has itself.
    pub bounding: u64,
    /// The lowest OOM score adjustment it may set.
    pub oom_score_min: i32,
}

impl Host {
    fn look() -> Host {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name));
            line.and_then(|v| u64::from_str_radix(v.trim(), 16).ok()).unwrap_or(0)
        };
        let bounding = mask("CapBnd:") & mask("CapPrm:");
        let may_lower = crate::capability::number("SYS_RESOURCE").is_some_and(|n| bounding & (1 << n) != 0);
        let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
        let own = own.trim().parse().unwrap_or(0);
        Host { bounding, oom_score_min: if may_lower { -1000 } else { own } }
    }
}

/// The embedded runtime. Cheap to clone.
#[derive(Clone)]
pub struct Embedded {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    host: Host,
    cgroups: Cgroups,
    images: Arc<Images>,
    model: Mutex<Model>,
    version: tokio::sync::watch::Sender<u64>,
    /// The program shims are started from; see [`read_only_program`].
    program: Option<OwnedFd>,
    /// Of which shims are forked; started with the first.
    seed: Mutex<Option<Seed>>,
    /// What was removed from `root`, and from `state`.
    trash: [Trash; 2],
}

impl Embedded {
    /// Opens the directories. Call [`Runtime::found`] next.
    pub fn open(config: Config) -> Result<Embedded, Error> {
        for dir in [config.root.join("containers"), config.root.join("images"), config.state.join("pods")] {
            std::fs::create_dir_all(&dir).map_err(Error::io(format!("make {}", dir.display())))?;
        }
        for dir in [&config.root, &config.state] {
            if dir.as_os_str().as_encoded_bytes().iter().any(|b| b":,\\\n".contains(b)) || !dir.is_absolute() {
                return Err(Error::Unsupported {
                    what: format!("a directory that is relative or has one of : , \\ in its name ({})", dir.display()),
                });
            }
        }
        crate::spread(&config.root.join("containers"));
        records::claim(&config.state)?;
        let cgroups = match &config.cgroups {
            Some(cgroups) => cgroups.clone(),
            None => Cgroups::detect()?,
        };
        let images = Arc::new(Images::open(&config.root.join("images"), config.registries.clone(), Role::Owner)?);
        let program = read_only_program(&config.shim.path);
        let stamp = pods::now_us();
        let trash = |dir: &Path| Trash::open(&dir.join("removed"), stamp);
        let trash = [trash(&config.root)?, trash(&config.state)?];
        let (version, _) = tokio::sync::watch::channel(0);
        let host = Host::look();
        let model = Mutex::new(Model::default());
        Ok(Embedded {
            inner: Arc::new(Inner {
                config,
                host,
                cgroups,
                images,
                model,
                version,
                program,
                seed: Mutex::default(),
                trash,
            }),
        })
    }

    /// The control groups in use, for pod and node level limits.
    pub fn cgroups(&self) -> &Cgroups {
        &self.inner.cgroups
    }
}

/// The shim's program through a read-only mount of its own. A container that gets hold of `/proc/PID/exe` of a process
/// on its way into the container can then not write to the program, and a replaced file does not disturb new shims.
/// `None` on kernels that cannot; the plain path is used then.
fn read_only_program(path: &Path) -> Option<OwnedFd> {
    use rustix::mount::OpenTreeFlags;
    use std::os::fd::AsFd;
    let path = std::fs::canonicalize(path).ok()?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, path, flags).ok()?;
    crate::sys::mount_attributes(tree.as_fd(), libc::MOUNT_ATTR_RDONLY, 0, 0, false).ok()?;
    Some(tree)
}

impl Inner {
    fn program_path(&self) -> PathBuf {
        match &self.program {
            Some(fd) => PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())),
            None => self.config.shim.path.clone(),
        }
    }
}

/// Runs blocking work off the async threads.
async fn blocking<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let result = tokio::task::spawn_blocking(work).await;
    result.unwrap_or_else(|e| Err(Error::Io { doing: doing.to_owned(), source: std::io::Error::other(e) }))
}

impl Runtime for Embedded {
    fn version(&self) -> Answer<'_, Version> {
        let version = Version { name: "gantry".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
        async { Ok(version) }.boxed()
    }

    fn pull<'a>(
        &'a self,
        image: &'a str,
        credentials: Option<Credentials>,
        progress: Progress,
    ) -> Answer<'a, ImageStatus> {
        self.inner.images.pull(image, credentials, progress).boxed()
    }

    fn load(&self, archive: PathBuf) -> Answer<'_, Vec<ImageStatus>> {
        async move { self.inner.images.load(&archive).await }.boxed()
    }

    fn images(&self) -> Answer<'_, Vec<ImageStatus>> {
        async { Ok(self.inner.images.list()) }.boxed()
    }

    fn image<'a>(&'a self, image: &'a str) -> Answer<'a, Option<ImageStatus>> {
        async move { Ok(self.inner.images.find(image).map(|i| i.status)) }.boxed()
    }

    fn remove_image<'a>(&'a self, image: &'a str) -> Answer<'a, ()> {
        let (images, image, root) = (self.inner.images.clone(), image.to_owned(), self.inner.config.root.clone());
        blocking("remove an image", move || images.remove(&image, || crate::image::layers_in_use(&root))).boxed()
    }

    fn image_usage(&self) -> Answer<'_, DiskUsage> {
        async { Ok(self.inner.images.usage()) }.boxed()
    }

    fn run_sandbox(&self, spec: SandboxSpec) -> Answer<'_, SandboxStatus> {
        self.run_sandbox_now(spec).boxed()
    }

    fn stop_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        self.stop_sandbox_now(id).boxed()
    }

    fn remove_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        self.remove_sandbox_now(id).boxed()
    }

    fn sandboxes(&self) -> Answer<'_, Vec<SandboxStatus>> {
        async { Ok(self.inner.model(|m| m.pods.iter().map(|(id, p)| p.status(id)).collect())) }.boxed()
    }

    fn hold<'a>(&'a self, id: &'a str, until_ms: u64) -> Answer<'a, bool> {
        async move {
            match self.inner.link(id)?.ask(Request::Hold { until_ms }).await? {
                Reply::Done => Ok(true),
                Reply::LetGo => Ok(false),
                other => Err(link::unexpected("hold a sandbox", other)),
            }
        }
        .boxed()
    }

    fn create(&self, spec: ContainerSpec) -> Answer<'_, String> {
        self.create_now(spec).boxed()
    }

    fn start<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        self.start_now(id).boxed()
    }

    fn stop<'a>(&'a self, id: &'a str, timeout_ms: u64) -> Answer<'a, ()> {
        self.stop_now(id, timeout_ms).boxed()
    }

    fn kill<'a>(&'a self, id: &'a str, signal: i32) -> Answer<'a, ()> {
        self.signal(id, signal, false).boxed()
    }

    fn remove<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        self.remove_now(id).boxed()
    }

    fn containers(&self) -> Answer<'_, Vec<ContainerStatus>> {
        async { Ok(self.inner.model(|m| m.containers.values().map(model::Container::status).collect())) }.boxed()
    }

    fn of_pod<'a>(&'a self, uid: &'a str) -> Answer<'a, Found> {
        async move { Ok(self.inner.model(|m| m.of_pod(uid))) }.boxed()
    }

    fn container<'a>(&'a self, id: &'a str) -> Answer<'a, ContainerStatus> {
        async move { self.inner.container(id, |c| c.status()) }.boxed()
    }

    fn update<'a>(&'a self, id: &'a str, resources: Resources) -> Answer<'a, ()> {
        self.update_now(id, resources).boxed()
    }

    fn stats<'a>(&'a self, id: &'a str) -> Answer<'a, ContainerStats> {
        self.stats_now(id).boxed()
    }

    fn usage<'a>(&'a self, id: &'a str) -> Answer<'a, ContainerStats> {
        async move {
            let path = self.inner.container(id, |c| c.record.cgroup.clone())?;
            self.cgroup_usage(&path).await
        }
        .boxed()
    }

    fn cgroup_usage<'a>(&'a self, path: &'a str) -> Answer<'a, ContainerStats> {
        let (cgroups, path) = (self.inner.cgroups.clone(), path.to_owned());
        blocking("measure a cgroup", move || Ok(cgroups.usage(&path))).boxed()
    }

    fn set_cgroup<'a>(&'a self, path: &'a str, resources: Resources) -> Answer<'a, ()> {
        let (cgroups, path) = (self.inner.cgroups.clone(), path.to_owned());
        let set = move || {
            cgroups.create(&path)?;
            cgroups.set(&path, &resources)
        };
        blocking("limit a cgroup", set).boxed()
    }

    fn sandbox_stats<'a>(&'a self, id: &'a str) -> Answer<'a, ContainerStats> {
        async move {
            let path = self.inner.pod(id, |p| p.spec.cgroup_parent.clone())?;
            self.cgroup_usage(&path).await
        }
        .boxed()
    }

    fn exec<'a>(&'a self, id: &'a str, request: ExecRequest) -> Answer<'a, Session> {
        self.exec_now(id, request).boxed()
    }

    fn exec_sync<'a>(&'a self, id: &'a str, argv: Vec<String>, timeout_ms: u64) -> Answer<'a, ExecOutput> {
        self.exec_sync_now(id, argv, timeout_ms).boxed()
    }

    fn attach<'a>(&'a self, id: &'a str, stdin: bool) -> Answer<'a, Session> {
        self.attach_now(id, stdin).boxed()
    }

    fn connect<'a>(&'a self, sandbox: &'a str, port: u16) -> Answer<'a, Box<dyn Stream>> {
        self.connect_now(sandbox, port).boxed()
    }

    fn reopen_log<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        self.reopen_log_now(id).boxed()
    }

    fn changed(&self, since: u64) -> BoxFuture<'_, Changes> {
        async move {
            let mut version = self.inner.version.subscribe();
            // The sender lives as long as `self`.
            let _ = version.wait_for(|v| *v > since).await;
            self.inner.model(|m| m.changes_since(since))
        }
        .boxed()
    }

    fn found(&self) -> Answer<'_, Found> {
        self.found_now().boxed()
    }
}
