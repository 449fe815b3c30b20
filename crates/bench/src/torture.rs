//! Torture: a whole cluster of real nodes and containers, under load, while everything that can be killed is killed.
//!
//! Writers and watchers note what was acknowledged and what they saw; the judge of histories, the same as the simulator's,
//! says afterwards whether a promise was broken. Pods that nobody aims at must run the same containers as before, as
//! long as only agents, links, shims of others and the server's patience were struck.
//!
//! One row of [`FAULTS`] strikes, waits, and heals. The first half of the time strikes what running containers survive;
//! then the server, and everything at once, dies, too, and the disk fills up.

mod clients;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Command;
use std::time::{Duration, Instant};

use base::Rng;
use meta::{Value, json};
use runtime::testing::{Compression, TestImage};
use rustix::process::{Pid, Signal, kill_process};

use crate::child::Server;
use crate::door::Ask;
use crate::error::Error;
use crate::frame::{Bench, Run, Want, figure, option};
use crate::machine::Process;
use crate::real::{IMAGE, free_port, pod};
use clients::Clients;

const NAMESPACE: &str = "torture";
/// Bytes of the file system that the cluster's data lies on.
const DISK: &str = "size=768m";
const NODES: u64 = 2;
const STEADY: usize = 4;
const VICTIMS: usize = 2;
/// How long what must come true may take.
const PATIENCE: Duration = Duration::from_secs(90);
const LOOK: Duration = Duration::from_millis(100);
const WATCHERS: u64 = 3;

pub const BENCH: Bench = Bench {
    name: "torture",
    about: "A real cluster under load while its parts are killed, stopped, cut off and filled up; histories are judged",
    options: &[
        option("minutes", "10", "1", "How long faults strike"),
        option("writers", "8", "4", "Clients that write and read"),
        option("stand_s", "45", "4", "How long what is stopped stands still"),
        option("seed", "1", "1", "Which faults, in which order"),
    ],
    figures: &[
        figure("broken_per_run", Want::AtMost(0.0, 0.0)),
        figure("restarted_per_run", Want::AtMost(0.0, 0.0)),
        figure("faults_per_run", Want::Nothing),
        figure("acknowledged_per_run", Want::Nothing),
        figure("judged_per_run", Want::Nothing),
        figure("heard_per_run", Want::Nothing),
    ],
    peer: None,
    needs_root: true,
    run,
};

type Struck<'a> = Pin<Box<dyn Future<Output = Result<(), Error>> + 'a>>;

struct Fault {
    name: &'static str,
    /// Running containers that it does not aim at go on.
    gentle: bool,
    strike: for<'a> fn(&'a mut Torture, &'a mut Rng) -> Struck<'a>,
}

const FAULTS: &[Fault] = &[
    Fault { name: "an agent is killed", gentle: true, strike: |torture, rng| Box::pin(torture.kill_agent(rng)) },
    Fault { name: "an agent stands still", gentle: true, strike: |torture, rng| Box::pin(torture.stop_agent(rng)) },
    Fault { name: "the server stands still", gentle: true, strike: |torture, _| Box::pin(torture.stop_server()) },
    Fault { name: "a node is cut off", gentle: true, strike: |torture, rng| Box::pin(torture.cut_node(rng)) },
    Fault { name: "a container is killed", gentle: true, strike: |torture, rng| Box::pin(torture.kill_container(rng)) },
    Fault { name: "a shim is killed", gentle: true, strike: |torture, rng| Box::pin(torture.kill_shim(rng)) },
    Fault { name: "the server is killed", gentle: false, strike: |torture, _| Box::pin(torture.kill_server(false)) },
    Fault { name: "everything is killed", gentle: false, strike: |torture, _| Box::pin(torture.kill_server(true)) },
    Fault { name: "the disk is full", gentle: false, strike: |torture, _| Box::pin(torture.fill_disk()) },
];

/// The cluster, and what is known of it.
struct Torture {
    binary: PathBuf,
    data: PathBuf,
    log: PathBuf,
    port: u16,
    server: Option<Server>,
    stand: Duration,
    lives: u32,
}

/// The file system of the cluster's data; goes with this.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        // What is busy still goes when nobody uses it any more.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn run(run: &mut Run) -> Result<(), Error> {
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let tokio = tokio.map_err(Error::while_doing("start the clients"))?;
    tokio.block_on(torture(run))
}

async fn torture(run: &mut Run) -> Result<(), Error> {
    let data = run.dir().join("data");
    std::fs::create_dir_all(&data).map_err(Error::while_doing("make a folder"))?;
    command(Command::new("mount").args(["-t", "tmpfs", "-o", DISK, "tmpfs"]).arg(&data))?;
    let _mounted = Mounted(data.clone());
    let images = data.join("images");
    std::fs::create_dir_all(&images).map_err(Error::while_doing("make a folder"))?;
    let image = TestImage { compression: Compression::None, ..TestImage::busybox() };
    image.write_oci(&images.join("busybox.tar"), IMAGE).map_err(Error::while_doing("make an image"))?;
    let mut torture = Torture {
        binary: run.binary.clone(),
        log: run.dir().to_owned(),
        port: free_port()?,
        data,
        server: None,
        stand: Duration::from_secs(run.number("stand_s")?),
        lives: 0,
    };
    torture.start().await?;
    torture.nodes_ready().await?;
    let door = torture.server()?.door.clone();
    door.namespace(NAMESPACE).await?;
    torture.make_pods().await?;
    let (writers, seed) = (run.number("writers")?, run.number("seed")?);
    let clients = Clients::start(&door, writers, WATCHERS, seed);
    let before = torture.containers().await?;
    let (mut rng, half) = (Rng::new(seed), Duration::from_secs(run.number("minutes")? * 30));
    let mut struck = strike_for(&mut torture, run, &mut rng, half, true).await?;
    torture.pods_ready().await?;
    let after = torture.containers().await?;
    let restarted: Vec<&String> =
        before.iter().filter(|(name, id)| after.get(*name) != Some(id)).map(|row| row.0).collect();
    run.figure("restarted_per_run", restarted.len() as f64);
    struck += strike_for(&mut torture, run, &mut rng, half, false).await?;
    torture.nodes_ready().await?;
    torture.pods_ready().await?;
    let verdict = clients.judge(&door, usize::try_from(writers).unwrap_or(usize::MAX)).await?;
    let store = torture.data.join("store");
    torture.server = None;
    let rotten = rot(&torture.binary, &store, &run.dir().join("rotten"), &mut rng)?;
    run.figure("faults_per_run", f64::from(struck));
    run.figure("acknowledged_per_run", verdict.acknowledged as f64);
    run.figure("judged_per_run", verdict.judged as f64);
    run.figure("heard_per_run", verdict.heard as f64);
    run.figure("rotten_files_per_run", f64::from(rotten));
    run.figure("broken_per_run", verdict.broken.len() as f64);
    run.note(format!(
        "{} answers did not come, {} watches began anew, refusals by code: {:?}",
        verdict.unknown, verdict.relists, verdict.refusals
    ));
    if !verdict.broken.is_empty() {
        return Err(Error::doing("keep every promise", verdict.broken.join("; ")));
    }
    if !restarted.is_empty() {
        return Err(Error::doing("let containers run", format!("{restarted:?} are others than before")));
    }
    Ok(())
}

/// Strikes again and again; each fault once before any comes again.
async fn strike_for(
    torture: &mut Torture,
    run: &Run,
    rng: &mut Rng,
    time: Duration,
    gentle: bool,
) -> Result<u32, Error> {
    let (until, mut struck, mut left) = (Instant::now() + time, 0, Vec::new());
    while Instant::now() < until {
        if left.is_empty() {
            left = FAULTS.iter().filter(|fault| fault.gentle == gentle).collect();
        }
        let fault = left.swap_remove(usize::try_from(rng.below(left.len() as u64)).unwrap_or(0));
        let began = Instant::now();
        (fault.strike)(torture, rng).await?;
        torture.answers().await?;
        run.say(format!("{}: served again after {:.1} s", fault.name, began.elapsed().as_secs_f64()));
        struck += 1;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(struck)
}

fn command(command: &mut Command) -> Result<String, Error> {
    let doing = format!("{command:?}");
    let output = command.output().map_err(|error| Error::doing(&doing, error))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::doing(doing, String::from_utf8_lossy(&output.stderr).trim()))
}

fn signal(process: Process, signal: Signal) {
    if let Some(pid) = Pid::from_raw(i32::try_from(process.0).unwrap_or(0)) {
        // One that is gone already needs no signal.
        let _ = kill_process(pid, signal);
    }
}

/// Flips a byte in a copy of each of the store's files: the check must refuse in one sentence, or find all that was there.
fn rot(binary: &Path, store: &Path, copies: &Path, rng: &mut Rng) -> Result<u32, Error> {
    let check = |data: &Path| Command::new(binary).args(["store", "check", "--data"]).arg(data).output();
    let (mut refused, wrong) = (0, Error::while_doing::<std::io::Error>("copy the store"));
    let files: Vec<PathBuf> = std::fs::read_dir(store).map_err(wrong)?.flatten().map(|entry| entry.path()).collect();
    for (number, file) in files.iter().enumerate() {
        let name = file.file_name().unwrap_or_default();
        let bytes = std::fs::read(file).map_err(Error::while_doing("read the store"))?;
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        if !name.to_string_lossy().ends_with(".gantry") || used < 1024 {
            continue;
        }
        let copy = copies.join(number.to_string()).join("store");
        std::fs::create_dir_all(&copy).map_err(Error::while_doing("copy the store"))?;
        for other in &files {
            let to = copy.join(other.file_name().unwrap_or_default());
            std::fs::copy(other, to).map_err(Error::while_doing("copy the store"))?;
        }
        let mut rotten = bytes;
        // The last record may be the torn end of the log for all that anyone can tell.
        let at = usize::try_from(rng.below(used as u64 / 2)).unwrap_or(0);
        rotten[at] ^= 1 << rng.below(8);
        std::fs::write(copy.join(name), rotten).map_err(Error::while_doing("flip a byte"))?;
        let data = copies.join(number.to_string());
        let output = check(&data).map_err(Error::while_doing("check a store"))?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() {
            return Err(Error::doing("refuse a damaged store", format!("byte {at} of {name:?} was taken for sound")));
        }
        if said.is_empty() || said.contains("panicked") {
            return Err(Error::doing("refuse a damaged store in a sentence", said));
        }
        refused += 1;
    }
    Ok(refused)
}

impl Torture {
    fn server(&self) -> Result<&Server, Error> {
        self.server.as_ref().ok_or_else(|| Error::doing("speak to the cluster", "it does not run"))
    }

    async fn start(&mut self) -> Result<(), Error> {
        self.lives += 1;
        let mut command = Command::new(&self.binary);
        command.args([
            "up",
            "--nodes",
            &NODES.to_string(),
            "--log",
            "warn",
            "--listen",
            &format!("127.0.0.1:{}", self.port),
            "--data",
        ]);
        command.arg(&self.data);
        let log = self.log.join(format!("up-{}.log", self.lives));
        self.server = Some(Server::of(command, self.data.clone(), &[], &log).await?);
        Ok(())
    }

    /// Waits until the server answers.
    async fn answers(&self) -> Result<(), Error> {
        let (began, door) = (Instant::now(), &self.server()?.door);
        loop {
            match tokio::time::timeout(Duration::from_secs(5), door.get("/readyz")).await {
                Ok(Ok(_)) => return Ok(()),
                _ if began.elapsed() > PATIENCE => return Err(Error::doing("see the server answer", "it does not")),
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    }

    async fn items(&self, path: &str) -> Result<Vec<Value>, Error> {
        let text = self.server()?.door.await_good(path).await?;
        let list = Value::parse(&text).map_err(Error::while_doing("read a list"))?;
        Ok(list["items"].items().to_vec())
    }

    async fn all_ready(&self, path: &str, count: usize, what: &str) -> Result<(), Error> {
        let began = Instant::now();
        let ready = |one: &Value| {
            let conditions = one.at(&["status", "conditions"]).items();
            conditions.iter().any(|one| one["type"].text() == "Ready" && one["status"].text() == "True")
        };
        loop {
            let items = self.items(path).await?;
            if items.len() >= count && items.iter().all(ready) {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                let not: Vec<String> = items.iter().filter(|one| !ready(one)).map(told).collect();
                return Err(Error::doing(format!("see all {what} ready"), not.join(", ")));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn nodes_ready(&self) -> Result<(), Error> {
        self.all_ready("/api/v1/nodes", usize::try_from(NODES).unwrap_or(1), "nodes").await
    }

    async fn pods_ready(&self) -> Result<(), Error> {
        self.all_ready(&format!("/api/v1/namespaces/{NAMESPACE}/pods"), STEADY + VICTIMS, "pods").await
    }

    async fn make_pods(&self) -> Result<(), Error> {
        let mut line = self.server()?.door.two().await?;
        for number in 0..STEADY + VICTIMS {
            let name = if number < STEADY { format!("steady-{number}") } else { format!("victim-{number}") };
            let mut object = pod(NAMESPACE, &name);
            let (mut container, marker) = (object["spec"]["containers"].items()[0].clone(), marker(&name));
            container.set(&["command"], json!(["sleep", (marker)]));
            object.set(&["spec", "containers"], Value::List(vec![container]));
            line.ask(&Ask::post(&format!("/api/v1/namespaces/{NAMESPACE}/pods"), &object)).await?;
        }
        self.pods_ready().await
    }

    /// The containers of the pods that nobody aims at.
    async fn containers(&self) -> Result<BTreeMap<String, String>, Error> {
        let pods = self.items(&format!("/api/v1/namespaces/{NAMESPACE}/pods")).await?;
        let name = |pod: &Value| pod.at(&["metadata", "name"]).text().to_owned();
        let steady = pods.iter().filter(|pod| name(pod).starts_with("steady"));
        Ok(steady.map(|pod| (name(pod), container(pod))).collect())
    }

    fn agent(&self, rng: &mut Rng) -> Result<Process, Error> {
        let children = self.server()?.process().children();
        let agents: Vec<Process> =
            children.into_iter().filter(|child| child.words().iter().any(|word| word == "agent")).collect();
        let at = usize::try_from(rng.below(agents.len() as u64)).unwrap_or(0);
        agents.get(at).copied().ok_or_else(|| Error::doing("find an agent", "the cluster has none"))
    }

    async fn kill_agent(&mut self, rng: &mut Rng) -> Result<(), Error> {
        signal(self.agent(rng)?, Signal::KILL);
        tokio::time::sleep(Duration::from_secs(2)).await;
        Ok(())
    }

    async fn stop_agent(&mut self, rng: &mut Rng) -> Result<(), Error> {
        let agent = self.agent(rng)?;
        signal(agent, Signal::STOP);
        tokio::time::sleep(self.stand).await;
        signal(agent, Signal::CONT);
        self.nodes_ready().await
    }

    async fn stop_server(&mut self) -> Result<(), Error> {
        let server = self.server()?.process();
        signal(server, Signal::STOP);
        tokio::time::sleep(self.stand).await;
        signal(server, Signal::CONT);
        Ok(())
    }

    /// Takes the switch's end of a node's link down, so that the node keeps its routes.
    async fn cut_node(&mut self, rng: &mut Rng) -> Result<(), Error> {
        let name = std::fs::read_to_string(self.data.join("name")).map_err(Error::while_doing("find the links"))?;
        let switch = format!("--net=/run/gantry-{}/nodes/switch", name.trim());
        // Its namespaces are mounted where the cluster sees them.
        let cluster = format!("--target={}", self.server()?.process().0);
        let port = format!("node{}", rng.below(NODES));
        let set = |state: &str| {
            let words = [cluster.as_str(), "--mount", "nsenter", &switch, "ip", "link", "set", &port, state];
            command(Command::new("nsenter").args(words))
        };
        set("down")?;
        tokio::time::sleep(self.stand).await;
        set("up")?;
        self.nodes_ready().await
    }

    async fn kill_container(&mut self, rng: &mut Rng) -> Result<(), Error> {
        signal(victim(rng)?.0, Signal::KILL);
        tokio::time::sleep(Duration::from_secs(2)).await;
        Ok(())
    }

    async fn kill_shim(&mut self, rng: &mut Rng) -> Result<(), Error> {
        signal(victim(rng)?.1, Signal::KILL);
        tokio::time::sleep(Duration::from_secs(2)).await;
        Ok(())
    }

    /// Kills the server, and with `all` everything else of the cluster, and starts the cluster anew.
    async fn kill_server(&mut self, all: bool) -> Result<(), Error> {
        let server = self.server()?.process();
        let agents = server.children();
        signal(server, Signal::KILL);
        if all {
            agents.into_iter().for_each(|agent| signal(agent, Signal::KILL));
        }
        self.server = None;
        self.start().await
    }

    async fn fill_disk(&mut self) -> Result<(), Error> {
        let filler = self.data.join("filler");
        // It ends with the disk being full, which is what is wanted.
        let _ = Command::new("dd").args(["if=/dev/zero", "bs=64k"]).arg(format!("of={}", filler.display())).output();
        tokio::time::sleep(Duration::from_secs(4)).await;
        std::fs::remove_file(&filler).map_err(Error::while_doing("free the disk"))?;
        let mut line = self.server()?.door.two().await?;
        let (began, name) = (Instant::now(), json!({"metadata": {"generateName": "after-"}}));
        let ask = Ask::post("/api/v1/namespaces/default/configmaps", &name);
        while let Err(error) = line.ask(&ask).await {
            if began.elapsed() > PATIENCE {
                return Err(error);
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

/// What tells a pod's process from all others on the machine.
fn marker(pod: &str) -> String {
    let number = base::hash64(format!("{} {pod}", std::process::id()).as_bytes()) % 1_000_000_000;
    (1_000_000_000 + number).to_string()
}

/// The process of one of the pods that are aimed at, and the shim that looks after it.
fn victim(rng: &mut Rng) -> Result<(Process, Process), Error> {
    let number = STEADY + usize::try_from(rng.below(VICTIMS as u64)).unwrap_or(0);
    let wanted = ["sleep".to_owned(), marker(&format!("victim-{number}"))];
    let wrong = Error::while_doing::<std::io::Error>("look for processes");
    let all = std::fs::read_dir("/proc").map_err(wrong)?.flatten();
    let all = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).map(Process);
    let found = all.into_iter().find(|process| process.words().iter().take(2).eq(wanted.iter()));
    let process = found.ok_or_else(|| Error::doing("find a container", "it does not run"))?;
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.0)).unwrap_or_default();
    let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
    let shim = parent.map(Process).filter(|shim| shim.words().iter().any(|word| word == "shim"));
    shim.map(|shim| (process, shim)).ok_or_else(|| Error::doing("find a shim", "the container has another parent"))
}

/// A pod's container and how often it was restarted.
fn container(pod: &Value) -> String {
    let statuses = pod.at(&["status", "containerStatuses"]).items();
    let told = |one: &Value| format!("{} ({})", one["containerID"].text(), one["restartCount"].as_int().unwrap_or(0));
    statuses.iter().map(told).collect::<Vec<_>>().join(" ")
}

fn told(object: &Value) -> String {
    object.at(&["metadata", "name"]).text().to_owned()
}
