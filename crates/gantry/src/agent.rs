//! `gantry agent`: one node, in the network namespace it was started in.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cache::{Cache, Index};
use client::{Api, HttpApi, Mirror, Path as ApiPath, Paths, Wish, follow, follow_one};
use meta::{Resource, Value};
use net::plan::PlanOptions;
use net::{Netns, NetnsThread, PodLinks};
use node::agent::{Agent, AgentOptions};
use node::network::{NetworkOptions, network_loop};
use runtime::{Config, Embedded, Runtime};
use server::SystemClock;

use crate::error::Error;
use crate::flags::Settings;
use crate::folder::{Folder, absolute};
use crate::footprint;
use crate::join::{self, Member, Newcomer, Token};
use crate::left;
use crate::machine;
use crate::parts::events::Recorder;

/// Between tries to reach the server at start.
const RETRY: Duration = Duration::from_secs(1);
/// How often the key of the node's signs of life is asked for again: servers that got another admin token make others.
const BEAT_KEY_CHECK: Duration = Duration::from_secs(60);
/// Pods a node takes.
const PODS_MAX: i64 = 1000;
/// Changes that a reader of the mirror may be behind before it has to look at everything.
const HISTORY_EVENTS: usize = 1_000;
/// The node's own process and its pods, below the node's cgroup.
const AGENT_CGROUP: &str = "agent";
const PODS_CGROUP: &str = "kubepods";

/// Who this node is and where it lives.
struct Place {
    server: String,
    node: String,
    address: IpAddr,
    port: u16,
    data: PathBuf,
    state: PathBuf,
}

pub fn run(settings: &Settings) -> Result<(), Error> {
    machine::need_root("agent")?;
    let data = absolute(&settings.data())?;
    let _folder = Folder::take(&data, "gantry agent")?;
    let state = absolute(&settings.path("state").expect("the flag has a default"))?;
    let _state = Folder::take(&state, "gantry agent")?;
    if !settings.flag("shared-machine") {
        // Whoever made this node in a part of the machine has tried the machine.
        machine::check(&data)?;
    }
    machine::all_files();
    let place = Place::find(settings, data, state)?;
    let started = |error| Error::doing("start the threads", error);
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(started)?;
    tokio.block_on(serve(settings, place))
}

impl Place {
    fn find(settings: &Settings, data: PathBuf, state: PathBuf) -> Result<Place, Error> {
        let missing = "is needed; give the address of the server, like https://192.0.2.10:6443";
        let server = settings.all("server").join(",");
        if server.is_empty() {
            return Err(settings.complain("server", missing));
        }
        let node = match settings.text("node") {
            Some(name) => name.to_owned(),
            None => {
                let uname = rustix::system::uname();
                uname.nodename().to_string_lossy().to_lowercase()
            }
        };
        if let Some(wrong) = meta::names::dns_subdomain(&node).into_iter().next() {
            return Err(settings.complain("node", format!("{node:?} is no name for a node: {wrong}")));
        }
        let address = match settings.read("address") {
            Some(address) => address,
            None => own_address(server.split(',').next().unwrap_or_default()).map_err(|why| {
                settings.complain("address", format!("is needed; the own address is not known: {why}"))
            })?,
        };
        Ok(Place { server, node, address, port: settings.must("kubelet-port"), data, state })
    }
}

/// The address from which this machine reaches the server. Nothing is sent: the kernel only chooses the way.
fn own_address(server: &str) -> Result<IpAddr, String> {
    use std::net::ToSocketAddrs;
    let authority = server.trim_start_matches("https://").trim_end_matches('/');
    let with_port = if authority.rsplit(':').next().is_some_and(|port| port.parse::<u16>().is_ok()) {
        authority.to_owned()
    } else {
        format!("{authority}:443")
    };
    let to =
        with_port.to_socket_addrs().map_err(|error| error.to_string())?.next().ok_or("the server has no address")?;
    let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).map_err(|error| error.to_string())?;
    socket.connect(to).map_err(|error| error.to_string())?;
    Ok(socket.local_addr().map_err(|error| error.to_string())?.ip())
}

/// Where a resource's objects lie, for all built-in kinds.
pub fn paths() -> Paths {
    let mut table: BTreeMap<Resource, ApiPath> = BTreeMap::new();
    for (resource, names) in api::kinds::names() {
        table.entry(resource).or_insert(ApiPath {
            group: names.group,
            version: names.version,
            plural: names.plural,
            kind: names.kind,
            namespaced: names.namespaced,
        });
    }
    Arc::new(move |resource| table.get(&resource).cloned())
}

/// What an agent mirrors: its own node and pods, and what its network is planned from: of other nodes only where they are.
fn wishes(node: &str) -> Vec<Wish> {
    let pods = Wish {
        field_selector: format!("spec.nodeName={node}").into(),
        facts: api::core::pod_facts::facts,
        ..Wish::all(node::agent::PODS)
    };
    let nodes = || Wish { facts: api::core::node_facts::facts, ..Wish::all(net::plan::NODES) };
    let own = Wish { field_selector: format!("metadata.name={node}").into(), ..nodes() };
    let places = Wish { moved_in: api::core::node_facts::PLACE.into(), ..nodes() };
    let others = [net::plan::SERVICES, net::plan::SLICES].map(Wish::all);
    [pods, own, places].into_iter().chain(others).collect()
}

async fn serve(settings: &Settings, place: Place) -> Result<(), Error> {
    let own = SocketAddr::new(place.address, place.port);
    // Taken first: who cannot have it need not join.
    let listener = tokio::net::TcpListener::bind(own)
        .await
        .map_err(|error| crate::server::busy(own, "--kubelet-port or --address", &error))?;
    let runtime = Arc::new(open_runtime(settings, &place)?);
    let joined = async {
        let member = patiently(|| join(settings, &place)).await?;
        let told = patiently(|| join::settings(&member.http)).await?;
        Ok::<_, Error>((member, told))
    };
    // To join is mostly to wait for others; what is loaded meanwhile is there before the first pod comes.
    let (joined, ()) = tokio::join!(joined, load_images(settings, &*runtime));
    let (member, told) = joined?;
    let rows = api::INDEXES.iter().chain(net::plan::INDEXES);
    let indexes: Vec<Index> = rows.map(|(resource, name, of)| Index { resource: *resource, name, of: *of }).collect();
    let mirror = Arc::new(Mirror::new(Cache::new(indexes).with_history(HISTORY_EVENTS)));
    tokio::spawn(follow(member.http.clone(), mirror.clone(), wishes(&place.node)));

    let netns = Netns::current()?;
    let thread = NetnsThread::start(&netns)?;
    let links = PodLinks::open(&netns)?;
    let network = network_options(settings, &place, &told)?;
    let options = agent_options(settings, &place, &network.cluster_domain);
    std::fs::create_dir_all(&options.netns).map_err(Error::file("create the folder", &options.netns))?;
    let memory = &options.memory;
    node::volumes::mount_memory(memory).map_err(Error::file("mount a place for secrets on", memory))?;
    let doors: Arc<dyn Api> = member.http.clone();
    let clock = Arc::new(SystemClock);
    let recorder = Recorder::new(doors.clone(), clock.clone());
    let events: node::agent::EventSink = Arc::new(move |record| {
        let recorder = recorder.clone();
        tokio::spawn(async move { recorder.record(record).await });
    });
    let (http, further) = (member.http.clone(), mirror.clone());
    let follower: node::agent::Follower = Arc::new(move |resource, fields| {
        let wish = Wish { field_selector: fields.into(), ..Wish::all(resource) };
        tokio::spawn(follow_one(http.clone(), further.clone(), wish));
    });
    let agent = Agent::new(options, doors, (mirror.clone(), follower), runtime, clock, events, links);
    let tls = node::kubelet::tls_with(member.serving.clone(), &member.ca_pem)
        .map_err(|error| Error::doing("serve the node's endpoints", error))?;
    tokio::spawn(node::kubelet::serve(listener, tls, agent.clone()));
    tokio::spawn(node::node_object::keep(agent.clone()));
    tokio::spawn(keep_beating(member.http.clone(), place.node.clone()));
    tokio::spawn(node::numbers::keep(agent.clone()));
    tokio::spawn(node::health_ports::keep(mirror.clone(), place.node.clone()));
    let network = tokio::spawn(network_loop(network, mirror, thread));
    tokio::spawn(footprint::keep_small());
    tokio::spawn(footprint::cool_trees());
    tracing::info!("node {} serves on {own}", place.node);
    tokio::select! {
        result = agent.run() => result?,
        result = network => result.map_err(|error| Error::doing("keep the node's network", error))??,
        () = crate::server::stopped() => {}
    }
    Ok(())
}

/// Sends signs of life with the key that the servers say, for as long as the process lives.
async fn keep_beating(http: Arc<HttpApi>, node: String) {
    let (mut known, mut sender) = (Vec::new(), None);
    loop {
        let asked = http.get_raw(&format!("/beat/{node}")).await;
        let key = asked
            .ok()
            .and_then(|text| Value::parse(&text).ok())
            .and_then(|said| STANDARD.decode(said["key"].text()).ok());
        match key {
            Some(key) if !key.is_empty() && key != known => {
                // One that sends with an old key is not believed.
                drop(sender.take());
                match beat::Sender::start(node.clone(), &key, http.servers().to_vec()) {
                    Ok(started) => (known, sender) = (key, Some(started)),
                    Err(error) => tracing::warn!("no signs of life are sent: {error}"),
                }
            }
            _ => {}
        }
        tokio::time::sleep(if sender.is_some() { BEAT_KEY_CHECK } else { RETRY }).await;
    }
}

/// Tries again while the server does not answer: it may start later than its nodes.
async fn patiently<T, F: Future<Output = Result<T, Error>>>(attempt: impl Fn() -> F) -> Result<T, Error> {
    let mut told = false;
    loop {
        match attempt().await {
            Err(error) if error.is_passing() => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!("waiting for the server: {error}");
                }
                tokio::time::sleep(RETRY).await;
            }
            other => return other,
        }
    }
}

async fn join(settings: &Settings, place: &Place) -> Result<Member, Error> {
    let token = settings.path("token-file").map(|path| Token::read(&path)).transpose()?;
    let newcomer = Newcomer {
        server: place.server.clone(),
        node: place.node.clone(),
        names: vec![place.node.clone(), place.address.to_string(), "127.0.0.1".to_owned()],
        keys: place.data.join("keys"),
    };
    newcomer.join(token.as_ref()).await
}

fn network_options(settings: &Settings, place: &Place, told: &Value) -> Result<NetworkOptions, Error> {
    let range = |name: &str| {
        let text = told[name].text();
        let wrong = |_| Error::Machine(format!("the server tells no range of addresses as {name}, but {text:?}"));
        text.parse::<net::Cidr>().map_err(wrong)
    };
    Ok(NetworkOptions {
        node: place.node.clone(),
        plan: PlanOptions {
            cluster_cidrs: vec![range("pod-cidr")?],
            service_cidrs: vec![range("service-cidr")?],
            same_link: settings.text("pod-network") == Some("direct"),
            name_server: Some(place.address),
        },
        cluster_domain: told["cluster-domain"].text().to_owned(),
        dns: place.address,
    })
}

fn agent_options(settings: &Settings, place: &Place, cluster_domain: &str) -> AgentOptions {
    let cgroup: String = settings.must("cgroup");
    let labels = settings.all("label").iter().filter_map(|pair| pair.split_once('='));
    AgentOptions {
        node: place.node.clone(),
        addresses: vec![place.address],
        data: place.data.clone(),
        memory: place.state.join("memory"),
        netns: place.state.join("netns"),
        port: place.port,
        cluster_domain: cluster_domain.to_owned(),
        dns: Some(place.address),
        cpu_milli: std::thread::available_parallelism().map_or(1, |count| count.get() as i64) * 1000,
        memory_bytes: memory_bytes(),
        pods: PODS_MAX,
        labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        cgroup: format!("{cgroup}/{PODS_CGROUP}"),
        node_cgroup: settings.flag("shared-machine").then_some(cgroup),
    }
}

/// Opens the runtime, and moves this process into the node's cgroup, so that the node's numbers are of all of it.
fn open_runtime(settings: &Settings, place: &Place) -> Result<Embedded, Error> {
    let state = place.state.join("runtime");
    node::volumes::off_the_disk(&state).map_err(Error::file("have in memory", &state))?;
    let mut config = Config::new(place.data.join("runtime"), state);
    config.registries = crate::images::registries(settings);
    let runtime = Embedded::open(config)?;
    let cgroup: String = settings.must("cgroup");
    let own = format!("{cgroup}/{AGENT_CGROUP}");
    left::Place { state: place.state.clone(), cgroup }.tell(&place.data)?;
    runtime.cgroups().create(&own)?;
    runtime.cgroups().join(&own, std::process::id())?;
    Ok(runtime)
}

/// Loads the archives that lie in the images folder; one that is no image is told of, and skipped.
async fn load_images(settings: &Settings, runtime: &dyn Runtime) {
    let Some(Ok(entries)) = settings.path("images").as_deref().map(std::fs::read_dir) else { return };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| is_archive(path)).collect();
    paths.sort();
    for path in paths {
        match runtime.load(path.clone()).await {
            Ok(images) => {
                let names: Vec<String> = images.into_iter().flat_map(|image| image.tags).collect();
                tracing::info!("loaded {}", names.join(", "));
            }
            Err(error) => tracing::warn!("{}: {error}", path.display()),
        }
    }
}

fn is_archive(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "tar")
}

fn memory_bytes() -> i64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<i64>().ok()).unwrap_or(0) * 1024
}
