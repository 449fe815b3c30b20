//! `gantry up`: a whole cluster on one machine: the server in this process, and nodes in network namespaces of their
//! own. `gantry down` takes away what is left of one.
//!
//! All mounts happen in a mount namespace of this process, so the machine's stay as they were; on the machine's side
//! there is one link with one address, and one nftables table for what nodes send to the outside.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use clap::Args;
use net::{Lan, LanConfig, Netns, NodeLink, pick_subnet};
use server::ca::{LEAF_DAYS, Usage, write_private};

use crate::server::{Part, Running, ServerArgs};

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Args, Clone, Debug)]
pub struct UpArgs {
    /// Folder for everything the cluster keeps.
    #[arg(long, env = "GANTRY_DATA", default_value = "/var/lib/gantry", value_name = "DIR")]
    pub data: PathBuf,
    /// Address and port of the API on this machine.
    #[arg(long, env = "GANTRY_LISTEN", default_value = "127.0.0.1:6443", value_name = "ADDR:PORT")]
    pub listen: SocketAddr,
    /// How many nodes.
    #[arg(long, env = "GANTRY_NODES", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub nodes: u32,
    /// Manifests (YAML or JSON) that are applied when the cluster is ready; may be given several times.
    #[arg(long, value_name = "FILE")]
    pub apply: Vec<PathBuf>,
    /// Registries, HOST:PORT, that are spoken to without TLS.
    #[arg(long, value_name = "HOST:PORT")]
    pub insecure_registry: Vec<String>,
    /// Certificates (PEM) of authorities that registries may be signed by.
    #[arg(long, value_name = "FILE")]
    pub registry_ca: Option<PathBuf>,
}

#[derive(Args, Clone, Debug)]
pub struct DownArgs {
    /// The folder that `gantry up` was given.
    #[arg(long, env = "GANTRY_DATA", default_value = "/var/lib/gantry", value_name = "DIR")]
    pub data: PathBuf,
    /// Remove the folder, too.
    #[arg(long)]
    pub delete_data: bool,
}

/// What a data folder's cluster is called on the machine.
struct Names {
    prefix: String,
    state: PathBuf,
    cgroup: String,
    seed: u64,
}

impl Names {
    fn of(data: &Path) -> Result<Names, Failure> {
        std::fs::create_dir_all(data).map_err(|error| format!("cannot create {}: {error}", data.display()))?;
        let seed = base::hash64(data.canonicalize()?.as_os_str().as_encoded_bytes());
        let short = format!("{:07x}", seed & 0xfff_ffff);
        Ok(Names {
            prefix: format!("gt{short}"),
            state: PathBuf::from(format!("/run/gantry-{short}")),
            cgroup: format!("/gantry-{short}"),
            seed,
        })
    }
}

pub fn run(args: UpArgs) -> Result<(), Failure> {
    if !rustix::process::geteuid().is_root() {
        return Err("nodes need namespaces and mounts, which only root may make; start gantry up as root".into());
    }
    let names = Names::of(&args.data)?;
    // Before any thread starts: mounts of nodes and containers are nobody else's.
    // SAFETY: a new mount namespace changes nothing that other code of this process counts on; it has one thread.
    #[allow(unsafe_code)]
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }
        .map_err(|error| format!("cannot have mounts of our own ({error}); this needs the right CAP_SYS_ADMIN"))?;
    rustix::mount::mount_change(
        "/",
        rustix::mount::MountPropagationFlags::REC | rustix::mount::MountPropagationFlags::PRIVATE,
    )
    .map_err(|error| format!("cannot separate the mounts: {error}"))?;
    rustix::mount::mount_change(
        "/",
        rustix::mount::MountPropagationFlags::REC | rustix::mount::MountPropagationFlags::SHARED,
    )
    .map_err(|error| format!("cannot share the mounts with containers: {error}"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(cluster(args, names))
}

async fn cluster(args: UpArgs, names: Names) -> Result<(), Failure> {
    sweep(&names)?;
    let netns_dir = names.state.join("nodes");
    std::fs::create_dir_all(&netns_dir)?;
    let used = Lan::used_networks()?;
    let subnet = pick_subnet(&used, names.seed).ok_or("no range of addresses is free on this machine for the nodes")?;
    let lan = Lan::create(LanConfig { prefix: names.prefix.clone(), subnet, netns_dir })?;
    let outside = lan.allow_outside(false);
    if let Err(error) = &outside {
        tracing::warn!("nodes will not reach the outside: {error}");
    }
    let server = crate::server::start(&ServerArgs {
        data: args.data.clone(),
        listen: args.listen,
        parts: vec![Part::Api, Part::Controllers, Part::Scheduler],
        service_cidr: "10.96.0.0/16".to_owned(),
        also: vec![SocketAddr::new(lan.machine_address(), args.listen.port())],
    })
    .await?;
    let mut nodes = Vec::new();
    for number in 0..args.nodes {
        let name = format!("node-{}", number + 1);
        let link = lan.add_node(&name, number)?;
        let keys = node_keys(&server, &args.data, &name, link.address)?;
        nodes.push(Node { name, link, keys, child: None });
    }
    let images = args.data.join("images");
    std::fs::create_dir_all(&images)?;
    let url = format!("https://{}:{}", lan.machine_address(), args.listen.port());
    for node in &mut nodes {
        node.start(&args, &names, &url)?;
    }
    for file in &args.apply {
        crate::apply::file(&server.server, file).await?;
    }
    println!("The cluster is up: https://{}", args.listen);
    println!("kubectl --kubeconfig {} get nodes", args.data.join("kubeconfig").display());
    let mut stop = std::pin::pin!(crate::server::stopped());
    loop {
        tokio::select! {
            () = &mut stop => break,
            () = tokio::time::sleep(Duration::from_millis(500)) => {
                for node in &mut nodes {
                    if node.has_ended() {
                        tracing::warn!("the agent of {} ended; it is started again", node.name);
                        node.start(&args, &names, &url)?;
                    }
                }
            }
        }
    }
    for node in &mut nodes {
        node.stop().await;
    }
    server.stop().await;
    drop(lan);
    sweep(&names)
}

struct Node {
    name: String,
    link: NodeLink,
    keys: PathBuf,
    child: Option<Child>,
}

impl Node {
    /// Starts the node's agent inside the node's network namespace.
    fn start(&mut self, args: &UpArgs, names: &Names, url: &str) -> Result<(), Failure> {
        let dir = args.data.join("nodes").join(&self.name);
        std::fs::create_dir_all(&dir)?;
        let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("agent.log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("agent")
            .args(["--server", url, "--node", &self.name])
            .args(["--address", &self.link.address.to_string()])
            .arg("--data")
            .arg(&dir)
            .arg("--state")
            .arg(names.state.join(&self.name))
            .arg("--keys")
            .arg(&self.keys)
            .arg("--cgroup")
            .arg(format!("{}/{}", names.cgroup, self.name))
            .arg("--images")
            .arg(args.data.join("images"))
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        for registry in &args.insecure_registry {
            command.args(["--insecure-registry", registry]);
        }
        if let Some(path) = &args.registry_ca {
            command.arg("--registry-ca").arg(path);
        }
        let netns = Netns::open(&self.link.path)?;
        // SAFETY: between fork and exec only system calls are made: joining a namespace and a signal for our own end.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(move || {
                rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
                rustix::thread::move_into_link_name_space(
                    netns.as_fd(),
                    Some(rustix::thread::LinkNameSpaceType::Network),
                )?;
                Ok(())
            });
        }
        self.child =
            Some(command.spawn().map_err(|error| format!("cannot start the agent of {}: {error}", self.name))?);
        Ok(())
    }

    fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
    }

    async fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let pid = rustix::process::Pid::from_child(&child);
        // One that has ended already needs no signal.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        for _ in 0..100 {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// The node's certificates, made anew at every start.
fn node_keys(server: &Running, data: &Path, name: &str, address: IpAddr) -> Result<PathBuf, Failure> {
    let dir = data.join("nodes").join(name).join("keys");
    std::fs::create_dir_all(&dir)?;
    let names = [name.to_owned(), address.to_string(), "127.0.0.1".to_owned()];
    let user = format!("system:node:{name}");
    let identity = server.server.ca.issue(&user, &["system:nodes"], &names, Usage::Both, LEAF_DAYS)?;
    write_private(&dir.join("ca.crt"), server.server.ca.pem().as_bytes())?;
    write_private(&dir.join("node.crt"), identity.cert_pem.as_bytes())?;
    write_private(&dir.join("node.key"), identity.key_pem.as_bytes())?;
    Ok(dir)
}

pub fn down(args: DownArgs) -> Result<(), Failure> {
    let names = Names::of(&args.data)?;
    sweep(&names)?;
    if args.delete_data {
        std::fs::remove_dir_all(&args.data)
            .map_err(|error| format!("cannot remove {}: {error}", args.data.display()))?;
    }
    Ok(())
}

/// Ends and removes everything of ours that is left on the machine: shims and containers, links, namespaces, cgroups.
fn sweep(names: &Names) -> Result<(), Failure> {
    end_processes(names);
    remove_cgroups(&names.cgroup);
    unmount_below(&names.state);
    let subnet = "10.192.0.0/24".parse().map_err(|_| "the subnet is no range")?;
    let netns_dir = names.state.join("nodes");
    Lan::remove(&LanConfig { prefix: names.prefix.clone(), subnet, netns_dir })?;
    for node in std::fs::read_dir(&names.state).into_iter().flatten().flatten() {
        for netns in std::fs::read_dir(node.path().join("netns")).into_iter().flatten().flatten() {
            Netns::delete(&netns.path())?;
        }
    }
    match std::fs::remove_dir_all(&names.state) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("cannot remove {}: {error}", names.state.display()).into())
        }
        _ => Ok(()),
    }
}

/// Unmounts what is mounted below `dir` in this process' mount namespace, the innermost first.
fn unmount_below(dir: &Path) {
    let text = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = text.lines().filter_map(|line| line.split(' ').nth(1)).map(Path::new);
    let mut ours: Vec<&Path> = points.filter(|point| point.starts_with(dir) && *point != dir).collect();
    ours.reverse();
    for point in ours {
        // What cannot be unmounted shows itself when the folder is removed.
        let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Kills the shims (their command line names our state folder) and whatever is in our cgroups.
fn end_processes(names: &Names) {
    let state = names.state.as_os_str().as_encoded_bytes();
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let ours = line.windows(state.len()).any(|window| window == state);
        if ours && line.split(|byte| *byte == 0).any(|word| word == b"shim" || word == b"agent") {
            pids.push(pid);
        }
    }
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        processes_below(&hierarchy.path().join(names.cgroup.trim_start_matches('/')), &mut pids);
    }
    for pid in pids {
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            // One that has ended meanwhile is what we want.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

fn processes_below(dir: &Path, pids: &mut Vec<i32>) {
    if let Ok(text) = std::fs::read_to_string(dir.join("cgroup.procs")) {
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            processes_below(&entry.path(), pids);
        }
    }
}

fn remove_cgroups(cgroup: &str) {
    fn remove(dir: &Path) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                remove(&entry.path());
            }
        }
        // Processes that were just killed may hold it for a moment.
        for _ in 0..50 {
            match std::fs::remove_dir(dir) {
                Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                    std::thread::sleep(Duration::from_millis(10))
                }
                _ => return,
            }
        }
    }
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let dir = hierarchy.path().join(cgroup.trim_start_matches('/'));
        if dir.is_dir() {
            remove(&dir);
        }
    }
}
