//! `gantry agent`: one node, in the network namespace it was started in.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cache::{Cache, Index};
use clap::Args;
use client::{Api, HttpApi, Identity, Mirror, Path as ApiPath, Paths, Wish, follow};
use meta::Resource;
use net::plan::PlanOptions;
use net::{Netns, NetnsThread, PodLinks};
use node::agent::{Agent, AgentOptions};
use node::network::{NetworkOptions, network_loop};
use runtime::{Config, Embedded, Runtime};
use server::SystemClock;

use crate::parts::events::Recorder;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const KUBELET_PORT: u16 = 10_250;
/// Pods a node takes.
const PODS_MAX: i64 = 1000;

#[derive(Args, Clone, Debug)]
pub struct AgentArgs {
    /// The API server, https://HOST:PORT.
    #[arg(long, env = "GANTRY_SERVER", value_name = "URL")]
    pub server: String,
    /// The node's name.
    #[arg(long, env = "GANTRY_NODE", value_name = "NAME")]
    pub node: String,
    /// The node's own address.
    #[arg(long, env = "GANTRY_ADDRESS", value_name = "ADDR")]
    pub address: IpAddr,
    /// Folder for images, volumes and logs.
    #[arg(long, env = "GANTRY_DATA", value_name = "DIR")]
    pub data: PathBuf,
    /// Folder for what need not outlive the machine: namespaces, sockets.
    #[arg(long, env = "GANTRY_STATE", value_name = "DIR")]
    pub state: PathBuf,
    /// Folder with ca.crt, node.crt and node.key.
    #[arg(long, env = "GANTRY_KEYS", value_name = "DIR")]
    pub keys: PathBuf,
    /// Where the cgroups of pods lie, below each hierarchy's root.
    #[arg(long, env = "GANTRY_CGROUP", default_value = "/kubepods", value_name = "PATH")]
    pub cgroup: String,
    /// Image archives (*.tar) in this folder are loaded at start.
    #[arg(long, env = "GANTRY_IMAGES", value_name = "DIR")]
    pub images: Option<PathBuf>,
    /// Range of the addresses of all pods.
    #[arg(long, env = "GANTRY_CLUSTER_CIDR", default_value = "10.244.0.0/16", value_name = "CIDR")]
    pub cluster_cidr: String,
    /// Range of the addresses of services.
    #[arg(long, env = "GANTRY_SERVICE_CIDR", default_value = "10.96.0.0/16", value_name = "CIDR")]
    pub service_cidr: String,
    /// Registries, HOST:PORT, that are spoken to without TLS.
    #[arg(long, env = "GANTRY_INSECURE_REGISTRY", value_name = "HOST:PORT")]
    pub insecure_registry: Vec<String>,
    /// Certificates (PEM) of authorities that registries may be signed by.
    #[arg(long, env = "GANTRY_REGISTRY_CA", value_name = "FILE")]
    pub registry_ca: Option<PathBuf>,
}

pub fn run(args: AgentArgs) -> Result<(), Failure> {
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    tokio.block_on(serve(args))
}

/// Where a resource's objects lie, for all built-in kinds.
pub fn paths() -> Paths {
    let mut table: BTreeMap<Resource, ApiPath> = BTreeMap::new();
    for kind in api::kinds::kinds() {
        let names = kind.names;
        table.entry(kind.resource).or_insert(ApiPath {
            group: names.group,
            version: names.version,
            plural: names.plural,
            kind: names.kind,
            namespaced: names.namespaced,
        });
    }
    Arc::new(move |resource| table.get(&resource).cloned())
}

/// What an agent mirrors: its own pods, and what its network is planned from.
fn wishes(node: &str) -> Vec<Wish> {
    let pods = Wish {
        field_selector: format!("spec.nodeName={node}").into(),
        facts: api::core::pod_facts::facts,
        ..Wish::all(node::agent::PODS)
    };
    let others = [net::plan::SERVICES, net::plan::SLICES, net::plan::NODES].map(Wish::all);
    std::iter::once(pods).chain(others).collect()
}

fn read(dir: &Path, name: &str) -> Result<String, Failure> {
    let path = dir.join(name);
    std::fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()).into())
}

async fn serve(args: AgentArgs) -> Result<(), Failure> {
    let ca = read(&args.keys, "ca.crt")?;
    let (cert_pem, key_pem) = (read(&args.keys, "node.crt")?, read(&args.keys, "node.key")?);
    let identity = Identity::Certificate { cert_pem: cert_pem.clone(), key_pem: key_pem.clone() };
    let http = Arc::new(HttpApi::new(&args.server, &ca, identity, paths())?);
    let indexes: Vec<Index> =
        api::INDEXES.iter().map(|(resource, name, of)| Index { resource: *resource, name, of: *of }).collect();
    let mirror = Arc::new(Mirror::new(Cache::new(indexes)));
    tokio::spawn(follow(http.clone(), mirror.clone(), wishes(&args.node)));
    let doors: Arc<dyn Api> = http;
    let clock = Arc::new(SystemClock);
    let recorder = Recorder::new(doors.clone(), clock.clone());

    let runtime: Arc<dyn Runtime> = Arc::new(open_runtime(&args)?);
    load_images(&args, &*runtime).await;
    let netns = Netns::current()?;
    let thread = NetnsThread::start(&netns)?;
    let links = PodLinks::open(&netns)?;
    let cidr = |text: &str| text.parse::<net::Cidr>().map_err(|_| format!("{text:?} is no address range"));
    let network = NetworkOptions {
        node: args.node.clone(),
        plan: PlanOptions {
            cluster_cidrs: vec![cidr(&args.cluster_cidr)?],
            service_cidrs: vec![cidr(&args.service_cidr)?],
            same_link: true,
        },
        cluster_domain: "cluster.local".to_owned(),
        dns: args.address,
    };
    let options = AgentOptions {
        node: args.node.clone(),
        addresses: vec![args.address],
        data: args.data.clone(),
        netns: args.state.join("netns"),
        port: KUBELET_PORT,
        cluster_domain: "cluster.local".to_owned(),
        dns: Some(args.address),
        cpu_milli: std::thread::available_parallelism().map_or(1, |count| count.get() as i64) * 1000,
        memory_bytes: memory_bytes(),
        pods: PODS_MAX,
        labels: BTreeMap::new(),
        cgroup: args.cgroup.clone(),
    };
    std::fs::create_dir_all(&options.netns)?;
    let events: node::agent::EventSink = Arc::new(move |record| {
        let recorder = recorder.clone();
        tokio::spawn(async move { recorder.record(record).await });
    });
    let agent = Agent::new(options, doors, mirror.clone(), runtime, clock, events, links);
    let tls = node::kubelet::tls(&cert_pem, &key_pem, &ca)?;
    let listener = tokio::net::TcpListener::bind((args.address, KUBELET_PORT)).await?;
    tokio::spawn(node::kubelet::serve(listener, tls, agent.clone()));
    tokio::spawn(node::node_object::keep(agent.clone()));
    let network = tokio::spawn(network_loop(network, mirror, thread));
    tokio::select! {
        result = agent.run() => result?,
        result = network => result??,
        () = crate::server::stopped() => {}
    }
    Ok(())
}

fn open_runtime(args: &AgentArgs) -> Result<Embedded, Failure> {
    let mut config = Config::new(args.data.join("runtime"), args.state.join("runtime"));
    config.registries.insecure = args.insecure_registry.clone();
    if let Some(path) = &args.registry_ca {
        config.registries.roots = vec![path.clone()];
    }
    Ok(Embedded::open(config)?)
}

/// Loads the archives that lie in the images folder; one that is no image is told of, and skipped.
async fn load_images(args: &AgentArgs, runtime: &dyn Runtime) {
    let Some(Ok(entries)) = args.images.as_ref().map(std::fs::read_dir) else { return };
    for path in
        entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "tar"))
    {
        match runtime.load(path.clone()).await {
            Ok(images) => {
                let names: Vec<String> = images.into_iter().flat_map(|image| image.tags).collect();
                tracing::info!("loaded {}", names.join(", "));
            }
            Err(error) => tracing::warn!("{}: {error}", path.display()),
        }
    }
}

fn memory_bytes() -> i64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<i64>().ok()).unwrap_or(0) * 1024
}
