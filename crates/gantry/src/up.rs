//! `gantry up`: a whole cluster on one machine: the server in this process, and nodes that are agents in namespaces of
//! their own. `gantry down` takes away what is left of one, and of a machine's own agent.
//!
//! All mounts happen in mount namespaces of this process and of each node, so the machine's stay as they were; on the
//! machine's side there is one link with one address, and one nftables table for what nodes send to the outside.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use net::{Cidr, Lan, LanConfig, Netns, NodeLink, pick_subnet};
use rustix::mount::MountPropagationFlags;
use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::error::Error;
use crate::flags::Settings;
use crate::folder::{Folder, absolute};
use crate::footprint;
use crate::left::{self, Names};
use crate::machine;
use crate::server::{Running, TOKEN_FILE};

/// Where the nodes' range of addresses is remembered, in the data folder.
const SUBNET_FILE: &str = "node-cidr";
/// How often agents are looked after.
const LOOK: Duration = Duration::from_millis(500);
/// An agent that ends sooner than this after its start waits as long before the next.
const AGENT_MIN: Duration = Duration::from_secs(2);
/// A log that is larger when an agent starts is moved away.
const LOG_MAX_BYTES: u64 = 16 << 20;
/// Of this much of an agent's log the last line is told.
const LAST_WORDS_BYTES: usize = 4096;
/// How long an agent may take to end.
const AGENT_STOP: Duration = Duration::from_secs(5);
/// How long a running `gantry up` may take to stop.
const UP_STOP: Duration = Duration::from_secs(60);

pub fn run(settings: &Settings) -> Result<(), Error> {
    machine::need_root("up")?;
    crate::server::check_ranges(settings)?;
    let data = absolute(&settings.data())?;
    let _folder = Folder::take(&data, "gantry up")?;
    machine::check(&data)?;
    // Before any thread starts: mounts of nodes and containers are nobody else's.
    machine::own_mounts()?;
    machine::all_files();
    let names = Names::of(&data);
    let started = |error| Error::doing("start the threads", error);
    let runtime = crate::parts::threads().map_err(started)?;
    let settings = settings.clone().with("data", data.display());
    runtime.block_on(cluster(&settings, &data, &names))
}

async fn cluster(settings: &Settings, data: &Path, names: &Names) -> Result<(), Error> {
    tokio::spawn(footprint::keep_small());
    tokio::spawn(footprint::cool_trees());
    tokio::spawn(footprint::huge_pages_when_large());
    // What a cluster that was killed left behind.
    left::sweep(names)?;
    names.tell(data)?;
    let netns_dir = names.state.join("nodes");
    std::fs::create_dir_all(&netns_dir).map_err(Error::file("create the folder", &netns_dir))?;
    let up = match Up::start(settings, data, names).await {
        Ok(up) => up,
        Err(error) => {
            // The first failure is the one to tell; what stays is swept at the next start.
            let _ = left::sweep(names);
            return Err(error);
        }
    };
    up.watch().await
}

struct Up<'a> {
    settings: &'a Settings,
    data: &'a Path,
    names: &'a Names,
    url: String,
    server: Running,
    lan: Lan,
    nodes: Vec<Node>,
}

impl<'a> Up<'a> {
    async fn start(settings: &'a Settings, data: &'a Path, names: &'a Names) -> Result<Up<'a>, Error> {
        let config = names.lan(subnet(settings, data, names)?);
        let listen: SocketAddr = settings.must("listen");
        if listen.port() == 0 {
            return Err(settings.complain("listen", "nodes must know the port; give one, like 127.0.0.1:6443"));
        }
        let inside = SocketAddr::new(config.machine_address(), listen.port());
        let count = settings.must::<u32>("nodes");
        let linked = tokio::task::spawn_blocking(move || link(config, count));
        let linked = async { linked.await.map_err(|error| Error::doing("make the nodes", error))? };
        let server_settings = settings.handed_to("server").with("also", inside);
        let (server, (lan, nodes)) = crate::server::start_beside(&server_settings, linked).await?;
        tell!("The API answers on https://{listen}");
        let images = data.join("images");
        std::fs::create_dir_all(&images).map_err(Error::file("create the folder", &images))?;
        tokio::spawn(tell_ready(server.server.clone(), count as usize));
        let mut up = Up { settings, data, names, url: format!("https://{inside}"), server, lan, nodes: Vec::new() };
        for mut node in nodes {
            node.start(&up)?;
            up.nodes.push(node);
        }
        for file in settings.all("apply") {
            crate::apply::file(&up.server.server, Path::new(file)).await?;
            tell!("applied {file}");
        }
        tell!("The cluster is up; Ctrl-C stops it.");
        tell!("kubectl --kubeconfig {} get nodes", data.join("kubeconfig").display());
        Ok(up)
    }

    /// Until a signal comes: agents that end are started again.
    async fn watch(mut self) -> Result<(), Error> {
        let mut stop = std::pin::pin!(crate::server::stopped());
        let server = self.server.server.clone();
        let mut halted = std::pin::pin!(server.storage.halted());
        let mut outcome = Ok(());
        loop {
            tokio::select! {
                biased;
                () = &mut stop => break,
                why = &mut halted => {
                    outcome = Err(Error::Machine(why));
                    break;
                }
                () = tokio::time::sleep(LOOK) => {}
            }
            let mut nodes = std::mem::take(&mut self.nodes);
            for node in &mut nodes {
                if node.has_ended() && node.started.elapsed() >= AGENT_MIN {
                    let why = node.last_words(self.data);
                    tracing::warn!("the agent of {} ended and is started again; its last words: {why}", node.name);
                    if let Err(error) = node.start(&self) {
                        tracing::error!("{error}");
                    }
                }
            }
            self.nodes = nodes;
        }
        tell!("stopping");
        for node in &mut self.nodes {
            node.stop().await;
        }
        left::ask_to_end(self.names).await;
        self.server.stop().await;
        drop(self.lan);
        left::sweep(self.names).and(outcome)
    }
}

/// Makes the nodes' network, and the nodes without their agents.
fn link(config: LanConfig, count: u32) -> Result<(Lan, Vec<Node>), Error> {
    let lan = Lan::create(config).map_err(no_links)?;
    if let Err(error) = lan.allow_outside(false) {
        tracing::warn!("nodes will not reach the outside: {error}");
    }
    let make = |number: u32| {
        let name = format!("node-{}", number + 1);
        let link = lan.add_node(&name, number)?;
        Ok(Node { name, link, mounts: new_mounts()?, child: None, started: Instant::now() })
    };
    let nodes = (0..count).map(make).collect::<Result<Vec<Node>, Error>>()?;
    Ok((lan, nodes))
}

/// Nodes need a switch and links to it, which are modules of the kernel.
fn no_links(error: net::Error) -> Error {
    match error.errno() {
        Some(errno) if errno == rustix::io::Errno::OPNOTSUPP.raw_os_error() => {
            let help = "use a kernel with CONFIG_BRIDGE and CONFIG_VETH, or load them (modprobe bridge veth)";
            Error::Machine(format!("the kernel does not link nodes ({error}); {help}"))
        }
        _ => error.into(),
    }
}

/// Where an agent's words go.
fn log_of(dir: &Path) -> PathBuf {
    dir.join("agent.log")
}

/// Tells when each of `count` nodes takes pods.
async fn tell_ready(server: Arc<server::Server>, count: usize) {
    let begun = server.now();
    let mirror = server.storage.mirror();
    let mut changed = mirror.subscribe();
    let mut told = BTreeSet::new();
    while told.len() < count {
        changed.borrow_and_update();
        for node in mirror.view().list(node::agent::NODES, "") {
            if is_ready(&node.value(), begun.seconds()) && told.insert(node.name().to_owned()) {
                let seconds = server.now().ms_since(begun) as f64 / 1000.0;
                tell!("{} is ready after {seconds:.1} s", node.name());
            }
        }
        // The server lives as long as the process.
        let _ = changed.changed().await;
    }
}

/// Whether a node says, since a time in seconds, that it takes pods.
fn is_ready(node: &meta::Value, since: i64) -> bool {
    let conditions = node.at(&["status", "conditions"]).items();
    conditions.iter().any(|one| {
        let heard = base::Time::parse(one["lastHeartbeatTime"].text()).is_some_and(|at| at.seconds() >= since);
        one["type"].text() == "Ready" && one["status"].text() == "True" && heard
    })
}

/// The nodes' range of addresses: what was said, what was used last time, or one that is free on this machine.
fn subnet(settings: &Settings, data: &Path, names: &Names) -> Result<Cidr, Error> {
    let used = Lan::used_networks()?;
    let taken = |range: &Cidr| used.iter().any(|other| other.prefix > 0 && other.overlaps(range));
    let file = data.join(SUBNET_FILE);
    if let Some(said) = settings.read::<Cidr>("node-cidr") {
        if taken(&said) {
            return Err(settings.complain("node-cidr", format!("{said} is in use on this machine; give another range")));
        }
        return keep(&file, said);
    }
    let last = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse::<Cidr>().ok());
    if let Some(last) = last {
        if !taken(&last) {
            return Ok(last);
        }
        tracing::warn!("the nodes' range {last} is in use by others now; nodes get other addresses");
    }
    let why = "no range of addresses is free on this machine for the nodes; give one with --node-cidr";
    let picked = pick_subnet(&used, names.seed).ok_or_else(|| Error::Machine(why.to_owned()))?;
    keep(&file, picked)
}

fn keep(file: &Path, subnet: Cidr) -> Result<Cidr, Error> {
    std::fs::write(file, format!("{subnet}\n")).map_err(Error::file("write", file))?;
    Ok(subnet)
}

/// Mounts for one node: a copy of ours, and from then on its own.
fn new_mounts() -> Result<OwnedFd, Error> {
    let make = || -> std::io::Result<OwnedFd> {
        // SAFETY: only this thread's mounts change; no descriptors and no memory are parted.
        #[allow(unsafe_code)]
        unsafe {
            rustix::thread::unshare_unsafe(UnshareFlags::NEWNS)?;
        }
        for kind in [MountPropagationFlags::PRIVATE, MountPropagationFlags::SHARED] {
            rustix::mount::mount_change("/", MountPropagationFlags::REC | kind)?;
        }
        Ok(std::fs::File::open("/proc/thread-self/ns/mnt")?.into())
    };
    let made = std::thread::scope(|scope| scope.spawn(make).join());
    let made = made.unwrap_or_else(|_| Err(std::io::Error::other("the thread has ended")));
    made.map_err(|error| Error::doing("make a node's mounts", error))
}

/// A node: its namespaces, and the agent in them.
struct Node {
    name: String,
    link: NodeLink,
    mounts: OwnedFd,
    child: Option<Child>,
    started: Instant,
}

impl Node {
    /// Starts the node's agent inside the node's namespaces.
    fn start(&mut self, up: &Up<'_>) -> Result<(), Error> {
        let dir = up.data.join("nodes").join(&self.name);
        std::fs::create_dir_all(&dir).map_err(Error::file("create the folder", &dir))?;
        let log = log_of(&dir);
        if std::fs::metadata(&log).is_ok_and(|found| found.len() > LOG_MAX_BYTES) {
            let old = log.with_extension("log.1");
            std::fs::rename(&log, &old).map_err(Error::file("move away", &log))?;
        }
        let file = std::fs::File::options().create(true).append(true).open(&log).map_err(Error::file("open", &log))?;
        let failed = |error| Error::doing(format!("start the agent of {}", self.name), error);
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        let (own, other) = (file.try_clone().map_err(failed)?, file);
        command.arg("agent").args(self.words(up, &dir)).stdin(std::process::Stdio::null()).stdout(own).stderr(other);
        // What the user says to us by the environment is not said to agents: they are told by their words.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"GANTRY_")) {
            command.env_remove(name);
        }
        // Signals of the terminal are for us; agents are told when it is their turn.
        command.process_group(0);
        let (netns, mounts) = (Netns::open(&self.link.path)?, self.mounts.try_clone().map_err(failed)?);
        let name = self.name.clone();
        // SAFETY: between fork and exec only system calls are made: a signal for our own end, and joining namespaces.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(move || {
                rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
                rustix::thread::move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
                rustix::thread::move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount))?;
                rustix::thread::unshare_unsafe(UnshareFlags::NEWUTS)?;
                rustix::system::sethostname(name.as_bytes())?;
                Ok(())
            });
        }
        self.child = Some(command.spawn().map_err(failed)?);
        self.started = Instant::now();
        Ok(())
    }

    /// What the agent is told.
    fn words(&self, up: &Up<'_>, dir: &Path) -> Vec<String> {
        let path = |path: PathBuf| path.display().to_string();
        let said = [
            ("server", up.url.clone()),
            ("token-file", path(up.data.join(TOKEN_FILE))),
            ("node", self.name.clone()),
            ("address", self.link.address.to_string()),
            ("data", path(dir.to_owned())),
            ("state", path(up.names.state.join(&self.name))),
            ("cgroup", format!("{}/{}", up.names.cgroup, self.name)),
            ("images", path(up.data.join("images"))),
            ("pod-network", "direct".to_owned()),
            ("kubelet-port", up.settings.must("kubelet-port")),
            ("log", up.settings.must("log")),
        ];
        let passed = ["insecure-registry", "registry-ca", "label"];
        let passed =
            passed.into_iter().flat_map(|name| up.settings.all(name).iter().map(move |value| (name, value.clone())));
        let words = said.into_iter().chain(passed).flat_map(|(name, value)| [format!("--{name}"), value]);
        words.chain(["--shared-machine".to_owned()]).collect()
    }

    /// The last line of the agent's log.
    fn last_words(&self, data: &Path) -> String {
        let text = std::fs::read(log_of(&data.join("nodes").join(&self.name))).unwrap_or_default();
        let tail = &text[text.len().saturating_sub(LAST_WORDS_BYTES)..];
        String::from_utf8_lossy(tail).trim_end().lines().last().unwrap_or("none").to_owned()
    }

    fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
    }

    async fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let pid = rustix::process::Pid::from_child(&child);
        // One that has ended already needs no signal.
        let _ = rustix::process::kill_process(pid, Signal::TERM);
        let until = Instant::now() + AGENT_STOP;
        while Instant::now() < until {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

pub fn down(settings: &Settings) -> Result<(), Error> {
    machine::need_root("down")?;
    let said = settings.data();
    let data = match said.canonicalize() {
        Ok(data) => data,
        // What was removed by hand may still run: its names follow from its path.
        Err(_) => std::path::absolute(&said).map_err(Error::file("find", &said))?,
    };
    stop_running(&data)?;
    match left::Place::of(&data) {
        Some(place) => place.sweep()?,
        None => left::sweep(&Names::of(&data))?,
    }
    if settings.flag("delete-data") && data.exists() {
        std::fs::remove_dir_all(&data).map_err(Error::file("remove", &data))?;
    }
    Ok(())
}

/// Stops a `gantry up` or `gantry agent` that works in the folder.
fn stop_running(data: &Path) -> Result<(), Error> {
    let Some(owner) = Folder::owner(data) else { return Ok(()) };
    let pid = owner.pid.and_then(rustix::process::Pid::from_raw);
    let (Some(pid), true) = (pid, ["gantry up", "gantry agent"].contains(&owner.who.as_str())) else {
        return Err(Error::InUse { path: data.to_owned(), by: owner.told() });
    };
    tell!("stopping {}", owner.told());
    rustix::process::kill_process(pid, Signal::TERM).map_err(|error| Error::doing("stop it", error))?;
    let until = Instant::now() + UP_STOP;
    while Folder::owner(data).is_some() {
        if Instant::now() > until {
            let why = format!("{} did not stop within {} s; end it with kill -9", owner.told(), UP_STOP.as_secs());
            return Err(Error::Machine(why));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
