//! `gantry server`: the control plane on a store of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use server::ca::{LEAF_DAYS, Usage, write_private};
use server::identity::User;
use server::local::Local;
use server::{Options, Server, SystemClock};
use tokio::net::TcpListener;

use crate::parts::{self, events::Recorder};

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Args, Clone, Debug)]
pub struct ServerArgs {
    /// Folder for keys, the store and the kubeconfig.
    #[arg(long, env = "GANTRY_DATA", default_value = "/var/lib/gantry", value_name = "DIR")]
    pub data: PathBuf,
    /// Address and port of the API.
    #[arg(long, env = "GANTRY_LISTEN", default_value = "127.0.0.1:6443", value_name = "ADDR:PORT")]
    pub listen: SocketAddr,
    /// Parts to run.
    #[arg(long, env = "GANTRY_PARTS", value_delimiter = ',', default_value = "api,controllers,scheduler")]
    pub parts: Vec<Part>,
    /// Range of the addresses of services.
    #[arg(long, env = "GANTRY_SERVICE_CIDR", default_value = "10.96.0.0/16", value_name = "CIDR")]
    pub service_cidr: String,
    /// More addresses to listen on.
    #[arg(long, value_name = "ADDR:PORT")]
    pub also: Vec<SocketAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    Api,
    Controllers,
    Scheduler,
}

/// A running control plane.
pub struct Running {
    pub server: Arc<Server>,
    stop: tokio::sync::watch::Sender<bool>,
    listeners: Vec<tokio::task::JoinHandle<()>>,
}

impl Running {
    /// Ends listening; what was answered stays answered.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        for listener in self.listeners {
            // A listener that panicked has ended, too.
            let _ = listener.await;
        }
    }
}

pub fn run(args: ServerArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let running = start(&args).await?;
        stopped().await;
        running.stop().await;
        Ok(())
    })
}

/// Resolves at the first SIGINT or SIGTERM.
pub async fn stopped() {
    let mut terminate = match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(terminate) => terminate,
        Err(error) => return tracing::error!("cannot wait for signals: {error}"),
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

/// Starts a control plane and returns when it answers.
pub async fn start(args: &ServerArgs) -> Result<Running, Failure> {
    let mut listeners = vec![bind(args.listen).await?];
    let address = listeners[0].local_addr()?;
    for also in &args.also {
        listeners.push(bind(*also).await?);
    }
    std::fs::create_dir_all(&args.data)?;
    let (backend, _) = store::Embedded::open(&args.data.join("store"), store::Options::default())?;
    let inside = args.also.first().copied().unwrap_or(address);
    let options = Options {
        dir: args.data.join("keys"),
        advertise: inside.to_string(),
        service_cidr: args.service_cidr.clone(),
        cluster_domain: "cluster.local".to_owned(),
        node_ports: (30_000, 32_767),
        audit_log: Some(args.data.join("audit.log")),
        token_config_maps: Vec::new(),
    };
    let server = Server::open(options, Arc::new(backend), Arc::new(SystemClock)).await?;
    let mut names = server_names(&address, &args.service_cidr);
    names.extend(args.also.iter().map(|also| also.ip().to_string()));
    let identity = server.ca.issue("gantry", &[], &names, Usage::Server, LEAF_DAYS)?;
    let tls = server::http::serve::tls(&identity, server.ca.pem())?;
    write_kubeconfig(&server, &args.data, &address)?;
    publish(&server, inside).await?;
    start_parts(&server, &args.parts);
    let (stop, _) = tokio::sync::watch::channel(false);
    let listeners = listeners
        .into_iter()
        .map(|listener| {
            let (server, tls, mut stopping) = (server.clone(), tls.clone(), stop.subscribe());
            let handler = move |request, user| server::dispatch::answer(server.clone(), request, user);
            tokio::spawn(async move {
                let stop = async move {
                    // The sender goes only with the whole server.
                    let _ = stopping.wait_for(|stop| *stop).await;
                };
                server::http::serve::run(listener, tls, handler, stop).await;
            })
        })
        .collect();
    tracing::info!("the API answers on https://{address}");
    Ok(Running { server, stop, listeners })
}

/// Tells pods where the API is: the endpoints behind the service `kubernetes`.
async fn publish(server: &Arc<Server>, address: SocketAddr) -> Result<(), Failure> {
    if address.ip().is_loopback() {
        return Ok(());
    }
    let port = i64::from(address.port());
    let slice = meta::json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "endpoints": [{"addresses": [(address.ip().to_string())], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    });
    let resource = meta::Resource("endpointslices.discovery.k8s.io");
    let request = client::Request::patch(resource, "default", "kubernetes", client::PatchType::Apply, slice);
    let request = request.with(|options| {
        options.manager = "gantry-server".into();
        options.force = true;
    });
    server::local::call(server, &server::local::system(), request).await?;
    Ok(())
}

/// The cluster's root, as the controller of signing requests uses it.
fn signer(server: &Arc<Server>) -> controllers::Sign {
    let server = server.clone();
    Arc::new(move |request_pem, usages, seconds| {
        let usage = if usages.iter().any(|usage| usage == "server auth") { Usage::Server } else { Usage::Client };
        server.ca.sign(request_pem, usage, seconds).map_err(|error| error.to_string())
    })
}

/// Starts the parts that act, each with an identity of its own.
fn start_parts(server: &Arc<Server>, parts: &[Part]) {
    let mirror = server.storage.mirror();
    let door = |name: &str, groups: &[&str]| -> Arc<dyn client::Api> {
        Arc::new(Local { server: server.clone(), user: User::new(name, groups) })
    };
    let clock = server.clock.clone();
    let shell: Arc<dyn drive::Shell> = Arc::new(parts::Tokio);
    if parts.contains(&Part::Controllers) {
        let settings = controllers::Settings {
            root_ca_pem: server.ca.pem().to_owned(),
            cluster_domain: server.options.cluster_domain.clone(),
            service_cidr: server.options.service_cidr.clone(),
            started: clock.now(),
            sign: Some(signer(server)),
            ..controllers::Settings::default()
        };
        for make in controllers::CONTROLLERS {
            let controller = make(&settings);
            let user = format!("system:serviceaccount:kube-system:{}", controller.name());
            let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"];
            let api = door(&user, &groups);
            let recorder = Recorder::new(api.clone(), clock.clone());
            tokio::spawn(parts::controllers::run(controller, mirror.clone(), api, shell.clone(), recorder));
        }
    }
    if parts.contains(&Part::Controllers)
        && let Some(cluster) = api::address::Cidr::parse("10.244.0.0/16")
    {
        let api = door("system:serviceaccount:kube-system:node-controller", &["system:masters"]);
        tokio::spawn(parts::ipam::run(cluster, mirror.clone(), api, shell.clone()));
    }
    if parts.contains(&Part::Scheduler) {
        let api = door("system:kube-scheduler", &[]);
        let recorder = Recorder::new(api.clone(), clock.clone());
        tokio::spawn(parts::scheduler::run(mirror.clone(), api, shell, recorder));
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    let failed = |error| server::Error::Listen { address: address.to_string(), error };
    Ok(TcpListener::bind(address).await.map_err(failed)?)
}

fn server_names(address: &SocketAddr, service_cidr: &str) -> Vec<String> {
    let mut names: Vec<String> = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        .into_iter()
        .map(str::to_owned)
        .collect();
    names.push("kubernetes.default.svc.cluster.local".to_owned());
    names.push("127.0.0.1".to_owned());
    names.push(address.ip().to_string());
    names.extend(api::address::first_of(service_cidr));
    names.sort();
    names.dedup();
    names
}

/// The administrator's kubeconfig; mode 0600.
fn write_kubeconfig(server: &Server, data: &Path, address: &SocketAddr) -> Result<(), Failure> {
    let identity = server.ca.issue("gantry-admin", &["system:masters"], &[], Usage::Client, LEAF_DAYS)?;
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: gantry\nclusters:\n- name: gantry\n  cluster:\n    \
         server: https://{address}\n    certificate-authority-data: {}\ncontexts:\n- name: gantry\n  context:\n    \
         cluster: gantry\n    user: gantry-admin\nusers:\n- name: gantry-admin\n  user:\n    \
         client-certificate-data: {}\n    client-key-data: {}\n",
        STANDARD.encode(server.ca.pem()),
        STANDARD.encode(&identity.cert_pem),
        STANDARD.encode(&identity.key_pem),
    );
    write_private(&data.join("kubeconfig"), text.as_bytes())?;
    Ok(())
}
