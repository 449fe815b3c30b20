//! The cluster that is tortured: `gantry up` with real nodes, what is known of it, and how one waits for it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use meta::{Value, json};
use rustix::process::{Pid, Signal, kill_process};

use super::clocks::Clocks;
use super::registry::Registry;
use super::{NAMESPACE, Tortured};
use crate::child::Server;
use crate::door::{Ask, Door};
use crate::error::Error;
use crate::machine::Process;
use crate::real::pod;
use base::Rng;

pub const NODES: u64 = 2;
pub const STEADY: usize = 4;
pub const VICTIMS: usize = 2;
/// How long what must come true may take.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// How long one look may take.
const ANSWER: Duration = Duration::from_secs(20);
pub const LOOK: Duration = Duration::from_millis(100);

/// The cluster, and what is known of it.
pub struct Torture {
    pub binary: PathBuf,
    pub data: PathBuf,
    pub log: PathBuf,
    pub port: u16,
    /// The addresses of its nodes.
    pub subnet: String,
    pub server: Option<Server>,
    pub stand: Duration,
    pub lives: u32,
    /// Said to `gantry up` besides what is always said.
    pub words: Vec<String>,
    pub clocks: Clocks,
    pub registry: Registry,
}

impl Tortured for Torture {
    async fn answers(&self) -> Result<(), Error> {
        answers(&self.server()?.door).await
    }
}

/// How much of [`PATIENCE`] is left. It is counted in steps that this process made: while others have the whole machine,
/// nobody is late.
pub struct Patience(u64);

/// The steps made since this process began to count.
static STEPS: LazyLock<Arc<AtomicU64>> = LazyLock::new(|| {
    let steps = Arc::<AtomicU64>::default();
    let counted = steps.clone();
    // Without the thread nobody's patience ends.
    let _ = std::thread::Builder::new().name("patience".into()).spawn(move || {
        loop {
            std::thread::sleep(LOOK);
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    steps
});

impl Patience {
    pub fn begin() -> Patience {
        Patience(STEPS.load(Ordering::Relaxed))
    }

    pub fn is_over(&self) -> bool {
        let steps = STEPS.load(Ordering::Relaxed) - self.0;
        u128::from(steps) * LOOK.as_millis() > PATIENCE.as_millis()
    }
}

/// Waits until a server answers.
pub async fn answers(door: &Door) -> Result<(), Error> {
    let patience = Patience::begin();
    loop {
        match tokio::time::timeout(Duration::from_secs(5), door.get("/readyz")).await {
            Ok(Ok(_)) => return Ok(()),
            _ if patience.is_over() => return Err(Error::doing("see the server answer", "it does not")),
            _ => tokio::time::sleep(LOOK).await,
        }
    }
}

/// Runs a program to its end and returns what it said.
pub fn command(command: &mut Command) -> Result<String, Error> {
    let doing = format!("{command:?}");
    let output = command.output().map_err(|error| Error::doing(&doing, error))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::doing(doing, String::from_utf8_lossy(&output.stderr).trim()))
}

pub fn signal(process: Process, signal: Signal) {
    if let Some(pid) = Pid::from_raw(i32::try_from(process.0).unwrap_or(0)) {
        // One that is gone already needs no signal.
        let _ = kill_process(pid, signal);
    }
}

/// Asks again and again until the answer is `Some`.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Result<Option<T>, Error>) -> Result<T, Error> {
    let patience = Patience::begin();
    loop {
        let looked = tokio::time::timeout(ANSWER, look()).await;
        match looked.unwrap_or_else(|_| Err(Error::doing("hear an answer", "none came"))) {
            Ok(Some(found)) => return Ok(found),
            Err(error) if patience.is_over() => return Err(Error::doing(what, error)),
            Ok(None) if patience.is_over() => {
                return Err(Error::doing(what, format!("it is not so within {} s", PATIENCE.as_secs())));
            }
            _ => tokio::time::sleep(LOOK).await,
        }
    }
}

impl Torture {
    pub fn server(&self) -> Result<&Server, Error> {
        self.server.as_ref().ok_or_else(|| Error::doing("speak to the cluster", "it does not run"))
    }

    pub async fn start(&mut self) -> Result<(), Error> {
        self.lives += 1;
        let mut command = Command::new(&self.binary);
        command.args(["up", "--nodes", &NODES.to_string(), "--log", "warn", "--node-cidr", &self.subnet]);
        command.args(["--listen", &format!("127.0.0.1:{}", self.port)]);
        command.args(["--insecure-registry", &self.registry.authority()]);
        command.args(&self.words).arg("--data").arg(&self.data);
        self.clocks.wind(&mut command);
        let log = self.log.join(format!("up-{}.log", self.lives));
        self.server = Some(Server::of(command, self.data.clone(), &[], &log).await?);
        Ok(())
    }

    pub async fn items(&self, path: &str) -> Result<Vec<Value>, Error> {
        let text = self.server()?.door.await_good(path).await?;
        let list = Value::parse(&text).map_err(Error::while_doing("read a list"))?;
        Ok(list["items"].items().to_vec())
    }

    async fn all_ready(&self, path: &str, count: usize, what: &str) -> Result<(), Error> {
        let patience = Patience::begin();
        loop {
            let items = self.items(path).await?;
            if items.len() >= count && items.iter().all(is_ready) {
                return Ok(());
            }
            if patience.is_over() {
                let not: Vec<String> = items.iter().filter(|one| !is_ready(one)).map(told).collect();
                return Err(Error::doing(format!("see all {what} ready"), not.join(", ")));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    pub async fn nodes_ready(&self) -> Result<(), Error> {
        self.all_ready("/api/v1/nodes", usize::try_from(NODES).unwrap_or(1), "nodes").await
    }

    pub async fn pods_ready(&self) -> Result<(), Error> {
        self.all_ready(&pods_path(), STEADY + VICTIMS, "pods").await
    }

    pub async fn make_pods(&self) -> Result<(), Error> {
        for number in 0..STEADY + VICTIMS {
            let name = if number < STEADY { format!("steady-{number}") } else { format!("victim-{number}") };
            self.make_pod(&name, json!(["sleep", (marker(&name))]), |_| ()).await?;
        }
        self.pods_ready().await
    }

    /// Makes a pod that runs `command`, changed by `change` before it is sent.
    pub async fn make_pod(&self, name: &str, command: Value, change: impl FnOnce(&mut Value)) -> Result<(), Error> {
        let mut object = pod(NAMESPACE, name);
        let mut container = object["spec"]["containers"].items()[0].clone();
        container.set(&["command"], command);
        change(&mut container);
        object.set(&["spec", "containers"], Value::from(vec![container]));
        self.server()?.door.two().await?.ask(&Ask::post(&pods_path(), &object)).await?;
        Ok(())
    }

    /// Deletes a pod, and waits until it is gone.
    pub async fn remove_pod(&self, name: &str) -> Result<(), Error> {
        let path = format!("{}/{name}", pods_path());
        let gone = async || {
            let mut line = self.server()?.door.two().await?;
            let answer = line.exchange(&Ask::delete(&format!("{path}?gracePeriodSeconds=1"))).await?;
            Ok(answer.is_err_and(|status| status.code() == 404).then_some(()))
        };
        eventually(&format!("see {name} gone"), gone).await
    }

    pub async fn pod(&self, name: &str) -> Result<Value, Error> {
        let text = self.server()?.door.get(&format!("{}/{name}", pods_path())).await?;
        Value::parse(&text).map_err(Error::while_doing("read a pod"))
    }

    /// The containers of the pods that nobody aims at.
    pub async fn containers(&self) -> Result<BTreeMap<String, String>, Error> {
        let pods = self.items(&pods_path()).await?;
        let steady = pods.iter().filter(|pod| told(pod).starts_with("steady"));
        Ok(steady.map(|pod| (told(pod), container(pod))).collect())
    }

    pub fn agents(&self) -> Result<Vec<Process>, Error> {
        let children = self.server()?.process().children();
        Ok(children.into_iter().filter(|child| child.words().iter().any(|word| word == "agent")).collect())
    }

    pub fn agent(&self, rng: &mut Rng) -> Result<Process, Error> {
        let agents = self.agents()?;
        let at = usize::try_from(rng.below(agents.len() as u64)).unwrap_or(0);
        agents.get(at).copied().ok_or_else(|| Error::doing("find an agent", "the cluster has none"))
    }

    /// The common part of the cluster's names on this machine.
    pub fn name(&self) -> Result<String, Error> {
        let name = std::fs::read_to_string(self.data.join("name")).map_err(Error::while_doing("find the names"))?;
        Ok(name.trim().to_owned())
    }

    /// Waits until a write is taken.
    pub async fn writes(&self) -> Result<(), Error> {
        let name = json!({"metadata": {"generateName": "after-"}});
        let ask = Ask::post("/api/v1/namespaces/default/configmaps", &name);
        eventually("see a write taken", async || Ok(self.server()?.door.two().await?.ask(&ask).await.ok())).await?;
        Ok(())
    }
}

pub fn pods_path() -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/pods")
}

pub fn is_ready(object: &Value) -> bool {
    let conditions = object.at(&["status", "conditions"]).items();
    conditions.iter().any(|one| one["type"].text() == "Ready" && one["status"].text() == "True")
}

/// What tells a pod's process from all others on the machine.
pub fn marker(pod: &str) -> String {
    let number = base::hash64(format!("{} {pod}", std::process::id()).as_bytes()) % 1_000_000_000;
    (1_000_000_000 + number).to_string()
}

/// The process of one of the pods that are aimed at, and the shim that looks after it.
pub fn victim(rng: &mut Rng) -> Result<(Process, Process), Error> {
    let number = STEADY + usize::try_from(rng.below(VICTIMS as u64)).unwrap_or(0);
    let marker = marker(&format!("victim-{number}"));
    let found = Process::all_of(&["sleep", &marker]).into_iter().next();
    let process = found.ok_or_else(|| Error::doing("find a container", "it does not run"))?;
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.0)).unwrap_or_default();
    let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
    let shim = parent.map(Process).filter(|shim| shim.words().iter().any(|word| word == "shim"));
    shim.map(|shim| (process, shim)).ok_or_else(|| Error::doing("find a shim", "the container has another parent"))
}

/// A pod's container and how often it was restarted.
pub fn container(pod: &Value) -> String {
    let statuses = pod.at(&["status", "containerStatuses"]).items();
    let told = |one: &Value| format!("{} ({})", one["containerID"].text(), one["restartCount"].as_int().unwrap_or(0));
    statuses.iter().map(told).collect::<Vec<_>>().join(" ")
}

pub fn told(object: &Value) -> String {
    object.at(&["metadata", "name"]).text().to_owned()
}

/// A file system in memory over a folder; goes with this.
pub struct Mounted(PathBuf);

impl Mounted {
    pub fn over(folder: &Path, size: &str) -> Result<Mounted, Error> {
        std::fs::create_dir_all(folder).map_err(Error::while_doing("make a folder"))?;
        command(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(folder))?;
        Ok(Mounted(folder.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What is busy still goes when nobody uses it any more.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}
