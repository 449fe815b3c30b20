//! Life of sandboxes and containers: run, create, start, stop, remove, and finding them again.

use std::collections::HashSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::mount::UnmountFlags;

use super::link::{Event, Greeting, Link, unexpected};
use super::model::{Container, ContainerRecord, Pod, PodRecord};
use super::trash::Trash;
use super::{Embedded, Inner, blocking, plan_of, records};
use crate::plan::{Record, Reply, Request, RootPlan, SandboxPlan};
use crate::seam::{ContainerSpec, ContainerStats, Found, Resources, SandboxSpec, SandboxStatus};
use crate::shim::seed::{self, Seed};
use crate::shim::{NETWORK_FILE, PLAN_FILE, READY, SEED_WORD, SHIM_WORD, SHM_DIR, exit_file};
use crate::{Error, lock};

const POD_FILE: &str = "sandbox.json";
/// How long a killed process may take to be gone before that is an error.
const KILL_MS: u64 = 10_000;
const SIGKILL: i32 = 9;
/// What a shim may say when it does not get ready.
const COMPLAINT_MAX_BYTES: u64 = 8 << 10;

/// A random id as containers and sandboxes have it: 64 hexadecimal digits.
fn new_id() -> Result<String, Error> {
    use ring::rand::SecureRandom;
    let mut bytes = [0; 32];
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Error::Io { doing: "make an id".to_owned(), source: std::io::Error::other("no random bytes") })?;
    Ok(hex::encode(bytes))
}

pub(super) fn now_us() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1000
}

/// Writes a small file so that readers see the old or the new text. Not synced: what it describes ends with the
/// machine.
fn write_whole(path: &Path, value: &impl serde::Serialize) -> Result<(), Error> {
    let doing = || format!("write {}", path.display());
    let text = serde_json::to_vec(value).map_err(|e| Error::io(doing())(e.into()))?;
    let new = path.with_extension("tmp");
    std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, path)).map_err(Error::io(doing()))
}

fn record_file(pod: &Path, container: &str) -> PathBuf {
    pod.join(format!("{container}.json"))
}

impl Embedded {
    pub(super) async fn run_sandbox_now(&self, spec: SandboxSpec) -> Result<SandboxStatus, Error> {
        plan_of::check_sysctls(&spec)?;
        let id = new_id()?;
        let created_us = now_us();
        let dir = self.inner.config.state.join("pods").join(&id);
        let (inner, made, plan_id, shown) = (self.inner.clone(), dir.clone(), id.clone(), spec.clone());
        let begun = blocking("start a sandbox", move || inner.begin_sandbox(&plan_id, &made, &shown, created_us)).await;
        let linked = match begun {
            Ok(()) => self.inner.clone().open_link(&id, &dir).await,
            Err(error) => Err(error),
        };
        let (link, greeting) = match linked {
            Ok(linked) => linked,
            Err(error) => {
                let (inner, cgroup) = (self.inner.clone(), spec.cgroup_parent.clone());
                blocking("clean up a sandbox", move || inner.clear_pod(&dir, &cgroup)).await?;
                return Err(error);
            }
        };
        let pod = Pod { dir, spec, created_us, link: Some(link), pid: greeting.pid };
        let status = pod.status(&id);
        self.inner.change(&id.clone(), |m| m.pods.insert(id, pod));
        Ok(status)
    }

    pub(super) async fn stop_sandbox_now(&self, id: &str) -> Result<(), Error> {
        let Ok((link, dir)) = self.inner.pod(id, |p| (p.link.clone(), p.dir.clone())) else { return Ok(()) };
        let containers = self.containers_of(id);
        for container in &containers {
            if let Err(error) = self.signal(container, SIGKILL, true).await {
                tracing::debug!(%error, container, "a container of a sandbox to stop is gone");
            }
        }
        for container in &containers {
            self.wait_ended(container, KILL_MS).await?;
        }
        if let Some(link) = link {
            // Its last act is to answer; when it is already gone the goal is reached too.
            let _ = link.order("end the shim", Request::Quit).await;
            self.inner.change(id, |m| {
                if let Some(pod) = m.pods.get_mut(id) {
                    pod.link = None;
                }
            });
        }
        blocking("unmount a sandbox", move || {
            unmount_pod(&dir);
            Ok(())
        })
        .await
    }

    pub(super) async fn remove_sandbox_now(&self, id: &str) -> Result<(), Error> {
        self.stop_sandbox_now(id).await?;
        let Ok((dir, cgroup)) = self.inner.pod(id, |p| (p.dir.clone(), p.spec.cgroup_parent.clone())) else {
            return Ok(());
        };
        for container in self.containers_of(id) {
            self.remove_now(&container).await?;
        }
        // Another sandbox of the same pod (a new attempt) may live in the same cgroup.
        let shared =
            self.inner.model(|m| m.pods.iter().any(|(other, p)| other != id && p.spec.cgroup_parent == cgroup));
        let inner = self.inner.clone();
        let cgroup = if shared { String::new() } else { cgroup };
        blocking("remove a sandbox", move || inner.clear_pod(&dir, &cgroup)).await?;
        self.inner.change(id, |m| m.pods.remove(id));
        Ok(())
    }

    fn containers_of(&self, sandbox: &str) -> Vec<String> {
        self.inner.model(|m| {
            m.containers.values().filter(|c| c.record.spec.sandbox == sandbox).map(|c| c.record.id.clone()).collect()
        })
    }

    pub(super) async fn create_now(&self, spec: ContainerSpec) -> Result<String, Error> {
        let sandbox = spec.sandbox.clone();
        let (dir, parent) = self.inner.pod(&sandbox, |p| (p.dir.clone(), p.spec.cgroup_parent.clone()))?;
        self.inner.link(&sandbox)?;
        let id = new_id()?;
        let (inner, made) = (self.inner.clone(), id.clone());
        let cgroup = format!("{}/{id}", parent.trim_end_matches('/'));
        let record = blocking("create a container", move || {
            let image = inner.take_image(&spec.image, &made)?;
            let record = ContainerRecord {
                created_us: now_us(),
                image_id: image.status.id.clone(),
                image_ref: image.status.digests.first().unwrap_or(&image.status.id).clone(),
                image: image.status.config,
                layers: image.layers,
                cgroup,
                resources: spec.resources.clone(),
                start_error: None,
                spec,
                id: made,
            };
            let root = inner.container_dir(&record.id);
            for dir in [root.join("upper"), root.join("work")] {
                std::fs::create_dir(&dir).map_err(Error::io(format!("make {}", dir.display())))?;
            }
            write_whole(&record_file(&dir, &record.id), &record)?;
            Ok(record)
        })
        .await?;
        self.inner.change(&sandbox, |m| m.containers.insert(id.clone(), Container::new(record, None, false)));
        Ok(id)
    }

    pub(super) async fn start_now(&self, id: &str) -> Result<(), Error> {
        let gate = self.inner.container(id, |c| c.gate.clone())?;
        let _one = gate.lock().await;
        let (record, created) = self
            .inner
            .container(id, |c| (c.record.clone(), c.run.is_none() && !c.lost && c.record.start_error.is_none()))?;
        if !created {
            return Err(Error::Conflict { what: "container", id: id.to_owned(), why: "was started before".to_owned() });
        }
        let sandbox = record.spec.sandbox.clone();
        let link = self.inner.link(&sandbox)?;
        let inner = self.inner.clone();
        let planned = blocking("plan a container", move || inner.plan(&record)).await;
        let reply = match planned {
            Ok(plan) => link.ask(Request::Start(Box::new(plan))).await?,
            Err(error) => Reply::Failed { why: error.to_string() },
        };
        match reply {
            Reply::Started(run) => {
                self.inner.change(&sandbox, |m| {
                    if let Some(container) = m.containers.get_mut(id) {
                        // Its end may have been announced before this reply was handled.
                        container.run.get_or_insert(run);
                    }
                });
                Ok(())
            }
            Reply::Failed { why } => {
                self.start_failed(id, &sandbox, &why).await?;
                Err(Error::Start { container: id.to_owned(), why })
            }
            other => Err(unexpected("start a container", other)),
        }
    }

    async fn start_failed(&self, id: &str, sandbox: &str, why: &str) -> Result<(), Error> {
        let record = self.inner.change(sandbox, |m| {
            m.containers.get_mut(id).map(|c| {
                c.record.start_error = Some(why.to_owned());
                c.record.clone()
            })
        });
        let (Some(record), Ok(dir)) = (record, self.inner.pod(sandbox, |p| p.dir.clone())) else { return Ok(()) };
        let inner = self.inner.clone();
        blocking("record a failed start", move || {
            if let Err(error) = inner.cgroups.remove(&record.cgroup) {
                tracing::warn!(%error, "the cgroup of a container that did not start stays");
            }
            write_whole(&record_file(&dir, &record.id), &record)
        })
        .await
    }

    /// Sends a signal; to everything in the container's cgroup when `everything`.
    pub(super) async fn signal(&self, id: &str, signal: i32, everything: bool) -> Result<(), Error> {
        let (sandbox, running) = self.inner.container(id, |c| (c.record.spec.sandbox.clone(), c.is_running()))?;
        if !running {
            return Ok(());
        }
        let link = self.inner.link(&sandbox)?;
        link.order("send a signal", Request::Kill { container: id.to_owned(), signal, everything }).await
    }

    pub(super) async fn stop_now(&self, id: &str, timeout_ms: u64) -> Result<(), Error> {
        let (running, signal) = self.inner.container(id, |c| (c.is_running(), c.status().stop_signal))?;
        if !running {
            return Ok(());
        }
        if timeout_ms > 0 {
            self.signal(id, signal, false).await?;
            if self.wait_ended(id, timeout_ms).await.is_ok() {
                return Ok(());
            }
        }
        self.signal(id, SIGKILL, true).await?;
        self.wait_ended(id, KILL_MS).await
    }

    /// Waits until the container does not run.
    async fn wait_ended(&self, id: &str, timeout_ms: u64) -> Result<(), Error> {
        let mut version = self.inner.version.subscribe();
        let ended = async {
            while self.inner.container(id, Container::is_running).unwrap_or(false) {
                if version.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_millis(timeout_ms), ended)
            .await
            .map_err(|_| Error::Timeout { doing: format!("the end of container {id}"), after_ms: timeout_ms })
    }

    pub(super) async fn remove_now(&self, id: &str) -> Result<(), Error> {
        let Ok(gate) = self.inner.container(id, |c| c.gate.clone()) else { return Ok(()) };
        let _one = gate.lock().await;
        self.stop_now(id, 0).await?;
        let found = self
            .inner
            .container(id, |c| (c.record.spec.sandbox.clone(), (!c.cgroup_goes).then(|| c.record.cgroup.clone())));
        let Ok((sandbox, cgroup)) = found else { return Ok(()) };
        if let Ok(link) = self.inner.link(&sandbox) {
            // Nobody waits for it: what it would tell of this container is not asked for any more.
            link.tell(Request::Forget { container: id.to_owned() });
        }
        let pod = self.inner.pod(&sandbox, |p| p.dir.clone())?;
        let (inner, container) = (self.inner.clone(), id.to_owned());
        blocking("remove a container", move || {
            // One that goes is not waited for. If it cannot, that was said, and the pod's cgroup takes it along.
            cgroup.map_or(Ok(()), |cgroup| inner.cgroups.remove(&cgroup))?;
            inner.clear_container(&pod, &container)
        })
        .await?;
        self.inner.change(&sandbox, |m| m.containers.remove(id));
        Ok(())
    }

    pub(super) async fn update_now(&self, id: &str, resources: Resources) -> Result<(), Error> {
        let (sandbox, mut record) = self.inner.container(id, |c| (c.record.spec.sandbox.clone(), c.record.clone()))?;
        let dir = self.inner.pod(&sandbox, |p| p.dir.clone())?;
        let running = self.inner.container(id, Container::is_running)?;
        let inner = self.inner.clone();
        let record = blocking("update a container", move || {
            if running {
                inner.cgroups.set(&record.cgroup, &resources)?;
            }
            merge(&mut record.resources, &resources);
            write_whole(&record_file(&dir, &record.id), &record)?;
            Ok(record)
        })
        .await?;
        self.inner.change(&sandbox, |m| {
            if let Some(container) = m.containers.get_mut(id) {
                container.record.resources = record.resources;
            }
        });
        Ok(())
    }

    pub(super) async fn stats_now(&self, id: &str) -> Result<ContainerStats, Error> {
        let cgroup = self.inner.container(id, |c| c.record.cgroup.clone())?;
        let (inner, id) = (self.inner.clone(), id.to_owned());
        blocking("measure a container", move || {
            let mut stats = inner.cgroups.usage(&cgroup);
            (stats.writable_bytes, stats.writable_inodes) = disk_usage(&inner.container_dir(&id).join("upper"));
            Ok(stats)
        })
        .await
    }

    pub(super) async fn found_now(&self) -> Result<Found, Error> {
        let pods = self.inner.config.state.join("pods");
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(&pods).map_err(Error::io(format!("read {}", pods.display())))?.flatten() {
            ids.push(entry.file_name().to_string_lossy().into_owned());
        }
        // All is read before anything is touched: what cannot be read may be running.
        let mut known = Vec::new();
        for id in ids {
            let dir = pods.join(&id);
            let (record, containers) = (records::read::<PodRecord>(&dir.join(POD_FILE))?, container_records(&dir)?);
            known.push((id, dir, record, containers));
        }
        for (id, dir, record, containers) in known {
            let Some(record) = record else {
                // It was interrupted before anything could have been started in it.
                let inner = self.inner.clone();
                blocking("remove a broken sandbox", move || inner.clear_pod(&dir, "")).await?;
                continue;
            };
            self.adopt(&id, dir, record, containers).await;
        }
        let inner = self.inner.clone();
        blocking("remove what is left over", move || inner.sweep()).await?;
        self.inner.model(|m| {
            Ok(Found {
                sandboxes: m.pods.iter().map(|(id, p)| p.status(id)).collect(),
                containers: m.containers.values().map(Container::status).collect(),
            })
        })
    }

    async fn adopt(&self, id: &str, dir: PathBuf, record: PodRecord, known: Vec<ContainerRecord>) {
        let linked = self.inner.clone().open_link(id, &dir).await;
        if let Err(error) = &linked {
            tracing::info!(%error, sandbox = id, "the shim of a sandbox is gone");
        }
        let (link, greeting) = match linked {
            Ok((link, greeting)) => (Some(link), greeting),
            Err(_) => (None, Greeting { pid: 0, records: Vec::new() }),
        };
        let alive = link.is_some();
        let mut containers = Vec::new();
        let mut dead = Vec::new();
        for record in known {
            let run = greeting.records.iter().find(|r| r.container == record.id).cloned();
            let run = run.or_else(|| records::read(&dir.join(exit_file(&record.id))).unwrap_or_else(untold));
            let lost = run.is_none() && !alive && record.start_error.is_none();
            if run.as_ref().is_none_or(|r| r.finished_us != 0) {
                dead.push(record.cgroup.clone());
            }
            containers.push(Container::new(record, run, lost));
        }
        let inner = self.inner.clone();
        let cleared = blocking("clear cgroups", move || {
            dead.iter().filter(|c| inner.cgroups.exists(c)).try_for_each(|c| inner.cgroups.remove(c))
        });
        if let Err(error) = cleared.await {
            tracing::warn!(%error, sandbox = id, "a cgroup of an ended container stays");
        }
        let pod = Pod { dir, spec: record.spec, created_us: record.created_us, link, pid: greeting.pid };
        self.inner.change(id, |m| {
            m.pods.insert(id.to_owned(), pod);
            m.containers.extend(containers.into_iter().map(|c| (c.record.id.clone(), c)));
        });
    }
}

impl Inner {
    pub(super) fn container_dir(&self, id: &str) -> PathBuf {
        self.config.root.join("containers").join(id)
    }

    /// Finds the image of a container to be, and notes its layers as used before anybody can remove them.
    fn take_image(&self, name: &str, container: &str) -> Result<crate::image::Image, Error> {
        self.images.while_kept(|| {
            let image = self.images.find(name).ok_or_else(|| Error::ImageMissing { name: name.to_owned() })?;
            let dir = self.container_dir(container);
            std::fs::create_dir_all(&dir).map_err(Error::io(format!("make {}", dir.display())))?;
            write_whole(&dir.join(crate::image::LAYERS_FILE), &image.layers)?;
            Ok(image)
        })
    }

    fn begin_sandbox(&self, id: &str, dir: &Path, spec: &SandboxSpec, created_us: i64) -> Result<(), Error> {
        std::fs::create_dir(dir).map_err(Error::io(format!("make {}", dir.display())))?;
        write_whole(&dir.join(POD_FILE), &PodRecord { spec: spec.clone(), created_us })?;
        let plan = SandboxPlan {
            id: id.to_owned(),
            hostname: spec.hostname.clone(),
            network: spec.network.clone(),
            host_ipc: spec.host_ipc,
            share_processes: spec.share_processes,
            sysctls: spec.sysctls.clone().into_iter().collect(),
            shm_bytes: spec.shm_bytes,
            held_until_ms: spec.held_until_ms,
        };
        write_whole(&dir.join(PLAN_FILE), &plan)?;
        self.cgroups.create(&spec.cgroup_parent)?;
        self.cgroups.set(&spec.cgroup_parent, &spec.resources)?;
        self.start_shim(id, dir)
    }

    /// Starts the shim and waits until it listens.
    fn start_shim(&self, id: &str, dir: &Path) -> Result<(), Error> {
        let doing = "start the pod's shim";
        let mut said = self.fork_shim(id);
        if said.is_empty() {
            // The seed is gone, or cannot be had.
            *lock(&self.seed) = None;
            let mut child =
                self.program(SHIM_WORD).arg(dir).stdout(Stdio::piped()).spawn().map_err(Error::io(doing))?;
            if let Some(stdout) = child.stdout.take() {
                let _ = stdout.take(COMPLAINT_MAX_BYTES).read_to_string(&mut said);
            }
            // The process we started ends at once; the shim is its orphan.
            child.wait().map_err(Error::io(doing))?;
        }
        match said == READY {
            true => Ok(()),
            false => Err(Error::Shim {
                doing: doing.to_owned(),
                why: if said.is_empty() { "it ended without a word".to_owned() } else { said },
            }),
        }
    }

    /// Has the shim forked of the seed; what it said, which is nothing when there is no seed.
    fn fork_shim(&self, id: &str) -> String {
        let ask = || -> std::io::Result<std::fs::File> {
            let (hear, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            let mut kept = lock(&self.seed);
            let seed = match &mut *kept {
                Some(seed) => seed,
                none => {
                    let place = self.config.state.join("pods").join("0".repeat(seed::ID_BYTES));
                    let mut command = self.program(SEED_WORD);
                    command.arg(place).stdout(Stdio::null());
                    none.insert(Seed::start(command)?)
                }
            };
            seed.ask(id, tell)?;
            Ok(hear.into())
        };
        let mut said = String::new();
        match ask() {
            Ok(hear) => drop(hear.take(COMPLAINT_MAX_BYTES).read_to_string(&mut said)),
            Err(error) => tracing::debug!(%error, "a shim is executed, not forked"),
        }
        said
    }

    /// The own program with a hidden subcommand.
    fn program(&self, word: &str) -> Command {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(self.program_path());
        command.arg0("gantry").arg(word).env_clear().stdin(Stdio::null()).stderr(Stdio::null()).current_dir("/");
        command
    }

    async fn open_link(self: Arc<Self>, id: &str, dir: &Path) -> Result<(Link, Greeting), Error> {
        let sandbox = id.to_owned();
        // Weak: a runtime that is dropped must not be kept alive by its connections.
        let weak = Arc::downgrade(&self);
        Link::open(dir, move |event| {
            if let Some(inner) = weak.upgrade() {
                inner.handle(&sandbox, event);
            }
        })
        .await
    }

    fn handle(self: Arc<Self>, sandbox: &str, event: Event) {
        let cgroups: Vec<String> = match event {
            Event::Ended(run) => {
                let id = run.container.clone();
                self.change(sandbox, |m| {
                    m.containers.get_mut(&id).map(|c| {
                        (c.run, c.cgroup_goes) = (Some(run), true);
                        c.record.cgroup.clone()
                    })
                })
                .into_iter()
                .collect()
            }
            Event::Lost => self.change(sandbox, |m| {
                let Some(pod) = m.pods.get_mut(sandbox) else { return Vec::new() };
                pod.link = None;
                let dir = pod.dir.clone();
                let running = m.containers.values_mut().filter(|c| c.record.spec.sandbox == sandbox && c.is_running());
                running
                    .map(|c| {
                        match records::read::<Record>(&dir.join(exit_file(&c.record.id))).unwrap_or_else(untold) {
                            Some(run) => c.run = Some(run),
                            None => c.lost = true,
                        }
                        c.cgroup_goes = true;
                        c.record.cgroup.clone()
                    })
                    .collect()
            }),
        };
        if cgroups.is_empty() {
            return;
        }
        tokio::task::spawn_blocking(move || {
            for cgroup in cgroups {
                if let Err(error) = self.cgroups.remove(&cgroup) {
                    tracing::warn!(%error, "the cgroup of an ended container stays until it is removed");
                }
            }
        });
    }

    /// Makes the cgroup and the complete plan of a container.
    fn plan(&self, record: &ContainerRecord) -> Result<crate::plan::ContainerPlan, Error> {
        let (pod, sandbox) = self.pod(&record.spec.sandbox, |p| (p.dir.clone(), p.spec.clone()))?;
        let dir = self.container_dir(&record.id);
        let (plan, devices) = plan_of::container(plan_of::Sources {
            host: &self.host,
            cgroups: &self.cgroups,
            id: &record.id,
            spec: &record.spec,
            image: &record.image,
            cgroup: &record.cgroup,
            root: RootPlan {
                layers: self.images.layers_dir(),
                lower: record.layers.iter().rev().cloned().collect(),
                upper: dir.join("upper"),
                work: dir.join("work"),
                // Some directory that is there: only the container's own mount namespace ever sees the mount.
                target: pod.clone(),
                read_only: false,
            },
            shm: (!sandbox.host_ipc).then(|| pod.join(SHM_DIR)),
        })?;
        self.cgroups.create(&record.cgroup)?;
        self.cgroups.set(&record.cgroup, &record.resources)?;
        self.cgroups.allow_devices(&record.cgroup, &devices)?;
        Ok(plan)
    }

    /// Takes away all a sandbox has on the machine. `cgroup` is empty when it must stay.
    fn clear_pod(&self, dir: &Path, cgroup: &str) -> Result<(), Error> {
        unmount_pod(dir);
        if !cgroup.trim_matches('/').is_empty() {
            self.cgroups.remove(cgroup)?;
        }
        let [of_root, of_state] = &self.trash;
        let records = container_records(dir).unwrap_or_else(|error| untold(error).unwrap_or_default());
        records.iter().try_for_each(|record| of_root.take(&self.container_dir(&record.id)))?;
        of_state.take(dir)
    }

    fn clear_container(&self, pod: &Path, id: &str) -> Result<(), Error> {
        self.trash[0].take(&self.container_dir(id))?;
        [pod.join(exit_file(id)), record_file(pod, id)].iter().try_for_each(|path| match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(format!("remove {}", path.display()))(error))
            }
            _ => Ok(()),
        })
    }

    /// Removes what no container owns any more.
    fn sweep(&self) -> Result<(), Error> {
        let known: HashSet<String> = self.model(|m| m.containers.keys().cloned().collect());
        let dir = self.config.root.join("containers");
        for entry in std::fs::read_dir(&dir).map_err(Error::io(format!("read {}", dir.display())))?.flatten() {
            if !known.contains(&*entry.file_name().to_string_lossy()) {
                self.trash[0].take(&entry.path())?;
            }
        }
        self.trash.iter().try_for_each(Trash::empty_rest)
    }
}

fn unmount_pod(dir: &Path) {
    for name in [NETWORK_FILE, SHM_DIR] {
        // Not mounted is as good.
        let _ = rustix::mount::unmount(dir.join(name), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    }
}

/// How a container ended is not known when what its shim wrote cannot be read.
fn untold<T>(error: Error) -> Option<T> {
    tracing::warn!("{error}");
    None
}

/// The records of a pod's containers.
fn container_records(dir: &Path) -> Result<Vec<ContainerRecord>, Error> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(Vec::new()) };
    let names = entries.flatten().map(|e| e.path());
    let files =
        names.filter(|p| p.extension().is_some_and(|e| e == "json") && p.file_name().is_some_and(|n| n != POD_FILE));
    files.filter_map(|path| records::read(&path).transpose()).collect()
}

fn merge(into: &mut Resources, from: &Resources) {
    let Resources { cpu_shares, cpu_quota_us, cpu_period_us, memory_limit_bytes, pids_limit, .. } = from;
    into.cpu_shares = cpu_shares.or(into.cpu_shares);
    into.cpu_quota_us = cpu_quota_us.or(into.cpu_quota_us);
    into.cpu_period_us = cpu_period_us.or(into.cpu_period_us);
    into.memory_limit_bytes = memory_limit_bytes.or(into.memory_limit_bytes);
    into.pids_limit = pids_limit.or(into.pids_limit);
    into.cpuset_cpus = from.cpuset_cpus.clone().or_else(|| into.cpuset_cpus.take());
    into.cpuset_mems = from.cpuset_mems.clone().or_else(|| into.cpuset_mems.take());
    into.unified.extend(from.unified.clone());
}

/// Bytes and inodes below a directory; what cannot be read counts as nothing.
pub fn disk_usage(dir: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    const BLOCK_BYTES: u64 = 512;
    let (mut bytes, mut inodes) = (0, 0);
    let mut waiting = vec![dir.to_owned()];
    while let Some(dir) = waiting.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let Ok(stat) = entry.metadata() else { continue };
            bytes += stat.blocks() * BLOCK_BYTES;
            inodes += 1;
            if stat.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    (bytes, inodes)
}
