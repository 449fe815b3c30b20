//! `gantry server`: the control plane, on a store of its own or, with others, on one etcd.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use server::authn::ADMIN;
use server::ca::{Current, Identity, Usage, renew_after, write_private};
use server::identity::User;
use server::local::{Fenced, Local};
use server::{Options, Server, SystemClock};
use tokio::net::TcpListener;

use crate::backend;
use crate::error::Error;
use crate::flags::Settings;
use crate::folder::Folder;
use crate::footprint;
use crate::join::{self, Token};
use crate::parts::controllers::Silence;
use crate::parts::events::Recorder;
use crate::parts::leader::{Candidate, Reign};
use crate::parts::{self, Tokio, servers};

/// Ports that services get on every node.
const NODE_PORTS: (u16, u16) = (30_000, 32_767);
/// Where the token of newcomers lies in the data folder.
pub const TOKEN_FILE: &str = "join-token";
/// How long a server that has halted takes to give up the lead and to end what it has open.
const HALT_MAX: Duration = Duration::from_secs(3);
/// Between tries to renew certificates.
const RETRY: Duration = Duration::from_secs(5);

/// A running control plane.
pub struct Running {
    pub server: Arc<Server>,
    stop: tokio::sync::watch::Sender<bool>,
    listeners: Vec<tokio::task::JoinHandle<()>>,
    candidate: tokio::task::JoinHandle<()>,
    _hearing: beat::Hearing,
}

impl Running {
    /// Gives the lead up and ends listening; what was answered stays answered, and whoever watches is told that it is over.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        self.server.storage.close();
        // One that panicked leads no more, either.
        let _ = self.candidate.await;
        for listener in self.listeners {
            // A listener that panicked has ended, too.
            let _ = listener.await;
        }
    }
}

pub fn run(settings: &Settings) -> Result<(), Error> {
    let _folder = Folder::take(&settings.data(), "gantry server")?;
    crate::machine::all_files();
    let started = |error| Error::doing("start the threads", error);
    let runtime = crate::parts::threads().map_err(started)?;
    runtime.block_on(async {
        tokio::spawn(footprint::keep_small());
        tokio::spawn(footprint::cool_trees());
        tokio::spawn(footprint::huge_pages_when_large());
        let running = start(settings).await?;
        tell!("The API answers on {}", url_of(settings));
        tell!("kubectl --kubeconfig {} get namespaces", settings.data().join("kubeconfig").display());
        if !settings.names("parts", "controllers") {
            tell!("Without the part controllers nothing happens by itself, and no machine can join.");
        } else {
            let token = settings.data().join(TOKEN_FILE);
            tell!("Machines join with gantry agent --server URL --token-file {}", token.display());
        }
        let why = tokio::select! {
            () = stopped() => None,
            why = running.server.storage.halted() => Some(why),
        };
        // Whoever is connected is to look for another server. One that has halted waits for nobody to be told so.
        match why {
            None => {
                running.stop().await;
                Ok(())
            }
            Some(why) => {
                if tokio::time::timeout(HALT_MAX, running.stop()).await.is_err() {
                    tracing::debug!("it did not stop in order within {} s", HALT_MAX.as_secs());
                }
                Err(Error::Machine(why))
            }
        }
    })
}

fn url_of(settings: &Settings) -> String {
    format!("https://{}", settings.must::<SocketAddr>("listen"))
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

/// Two ranges of addresses must not overlap.
pub fn check_ranges(settings: &Settings) -> Result<(), Error> {
    let ranges = ["pod-cidr", "service-cidr", "node-cidr"];
    let read = |name: &'static str| Some((name, settings.read::<net::Cidr>(name)?));
    let said: Vec<(&str, net::Cidr)> = ranges.into_iter().filter_map(read).collect();
    for (at, (name, range)) in said.iter().enumerate() {
        if let Some((other, taken)) = said[..at].iter().find(|(_, taken)| taken.overlaps(range)) {
            return Err(settings.complain(name, format!("{range} overlaps {taken}, which is --{other}")));
        }
    }
    Ok(())
}

/// The address under which others reach a listener: its own, or, for one on all addresses, that of the machine.
fn reachable(listener: SocketAddr) -> SocketAddr {
    if !listener.ip().is_unspecified() {
        return listener;
    }
    let outward = || -> std::io::Result<IpAddr> {
        // Nothing is sent: the kernel only chooses the way to an address that is nobody's.
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        Ok(socket.local_addr()?.ip())
    };
    SocketAddr::new(outward().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), listener.port())
}

/// Starts a control plane and returns when it answers. The caller holds the data folder.
pub async fn start(settings: &Settings) -> Result<Running, Error> {
    check_ranges(settings)?;
    let mut listeners = vec![bind(settings.must("listen"), "--listen").await?];
    bind_also(settings, &mut listeners).await?;
    let own = addresses(settings, &listeners[0])?;
    serve(settings, open(settings, own[1]).await?, listeners, own).await
}

/// The same, while `beside` makes what the further addresses to listen on (`--also`) belong to: to open the state takes as
/// long.
pub async fn start_beside<T>(
    settings: &Settings,
    beside: impl Future<Output = Result<T, Error>>,
) -> Result<(Running, T), Error> {
    check_ranges(settings)?;
    let mut listeners = vec![bind(settings.must("listen"), "--listen").await?];
    let own = addresses(settings, &listeners[0])?;
    // Both have ended before a failure is told: whoever then cleans up meets nobody who is still at work.
    let (opened, made) = tokio::join!(open(settings, own[1]), beside);
    let made = made?;
    let opened = opened?;
    bind_also(settings, &mut listeners).await?;
    Ok((serve(settings, opened, listeners, own).await?, made))
}

async fn bind_also(settings: &Settings, listeners: &mut Vec<TcpListener>) -> Result<(), Error> {
    for also in settings.sockets("also") {
        listeners.push(bind(also, "--also").await?);
    }
    Ok(())
}

/// The server's own address, and the one under which others reach it.
fn addresses(settings: &Settings, listener: &TcpListener) -> Result<[SocketAddr; 2], Error> {
    let own = listener.local_addr().map_err(|error| Error::doing("listen", error))?;
    Ok([own, settings.sockets("also").first().copied().unwrap_or_else(|| reachable(own))])
}

/// Opens the state, and writes what every cluster has. Says whether other servers share it.
async fn open(settings: &Settings, inside: SocketAddr) -> Result<(Arc<Server>, bool), Error> {
    let opened = backend::open(settings).await?;
    let data = settings.data();
    let options = Options {
        dir: data.join("keys"),
        advertise: inside.to_string(),
        service_cidr: settings.must("service-cidr"),
        cluster_domain: settings.must("cluster-domain"),
        node_ports: NODE_PORTS,
        audit_log: Some(data.join("audit.log")),
        token_config_maps: token_config_maps(settings),
        knows: settings.read("data-version").map_or(server::pack::NEWEST, store::Format),
    };
    let server = Server::open(options, opened.backend, Arc::new(SystemClock)).await?;
    Ok((server, opened.shared))
}

/// Answers on all listeners.
async fn serve(
    settings: &Settings,
    (server, shared): (Arc<Server>, bool),
    listeners: Vec<TcpListener>,
    own: [SocketAddr; 2],
) -> Result<Running, Error> {
    let (data, also, [address, inside]) = (settings.data(), settings.sockets("also"), own);
    let token = Token::new(server.ca.pem(), &server.authn.join_token)?;
    write_private(&data.join(TOKEN_FILE), format!("{token}\n").as_bytes())?;
    let certificates = Certificates::new(&server, settings, &own, &also)?;
    let tls = server::http::serve::tls_with(certificates.serving.clone(), server.ca.pem())?;
    tokio::spawn(certificates.keep());
    if shared {
        let backend = server.storage.backend().clone();
        tokio::spawn(servers::register(backend, Arc::new(Tokio), inside, server.storage.knows()));
    }
    // At once: the store puts them into few batches.
    let published = async {
        if shared {
            return Ok(());
        }
        let api = Local { server: server.clone(), user: server::local::system() };
        servers::publish(server.storage.mirror(), &api, &std::iter::once(inside).collect()).await.map_err(Error::from)
    };
    let welcomed =
        async { if settings.names("parts", "controllers") { welcome(&server, settings).await } else { Ok(()) } };
    let measured = async {
        let measures = settings.names("parts", "metrics");
        if measures { server::metrics::start(&server).await.map_err(Error::from) } else { Ok(()) }
    };
    tokio::try_join!(published, welcomed, measured)?;
    let (stop, stopping) = tokio::sync::watch::channel(false);
    let (silence, hearing) = listen_to_nodes(&server, &listeners)?;
    let candidate = stand(&server, settings, inside, shared, silence, stopping);
    let listeners = listeners
        .into_iter()
        .map(|listener| {
            let (server, tls, mut stopping) = (server.clone(), tls.clone(), stop.subscribe());
            let handler = move |request, peer| server::dispatch::answer(server.clone(), request, peer);
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
    Ok(Running { server, stop, listeners, candidate, _hearing: hearing })
}

/// Hears the nodes' signs of life, on the addresses of the API.
fn listen_to_nodes(server: &Server, listeners: &[TcpListener]) -> Result<(Silence, beat::Hearing), Error> {
    let failed = |error| Error::doing("listen to the nodes", error);
    let bind = |listener: &TcpListener| {
        let address = listener.local_addr().map_err(failed)?;
        UdpSocket::bind(address).map_err(|error| busy(address, "--listen or --also (its UDP port)", &error))
    };
    let sockets = listeners.iter().map(bind).collect::<Result<Vec<UdpSocket>, Error>>()?;
    let (tell, silence) = tokio::sync::watch::channel(Arc::default());
    let tell = move |silent: BTreeSet<String>| {
        tracing::info!("nodes that are not heard: {silent:?}");
        tell.send_replace(Arc::new(silent));
    };
    let hearing = beat::hear(sockets, server.beats(), tell).map_err(failed)?;
    Ok((silence, hearing))
}

/// The names of further config maps beside tokens, each with its key. By default the one that OpenShift's tree of Kubernetes
/// has: its recordings are what the API is measured by, and programs made for it read their trust there.
fn token_config_maps(settings: &Settings) -> Vec<(String, String)> {
    let said = settings.all("token-config-map").iter().filter(|text| !text.is_empty());
    said.map(|text| match text.split_once(':') {
        Some((name, key)) => (name.to_owned(), key.to_owned()),
        None => (text.clone(), text.split_once('-').map_or(text.as_str(), |(_, rest)| rest).to_owned()),
    })
    .collect()
}

/// Lets newcomers in.
async fn welcome(server: &Arc<Server>, settings: &Settings) -> Result<(), Error> {
    let told = ["pod-cidr", "service-cidr", "cluster-domain"].map(|name| (name, settings.must::<String>(name)));
    let mut said = tokio::task::JoinSet::new();
    for (resource, object) in join::objects(&told) {
        let request = client::Request::apply(resource, object, servers::MANAGER);
        let server = server.clone();
        said.spawn(async move { server::local::call(&server, &server::local::system(), request).await });
    }
    while let Some(outcome) = said.join_next().await {
        outcome.map_err(|error| Error::doing("let newcomers in", error))??;
    }
    Ok(())
}

/// The certificates of a running server, and how they stay fresh.
struct Certificates {
    server: Arc<Server>,
    lifetime: Duration,
    /// Names and addresses that the server answers to.
    names: Vec<String>,
    serving: Arc<Current>,
}

impl Certificates {
    fn new(
        server: &Arc<Server>,
        settings: &Settings,
        own: &[SocketAddr],
        also: &[SocketAddr],
    ) -> Result<Certificates, Error> {
        let domain = &server.options.cluster_domain;
        let mut names: Vec<String> =
            ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "127.0.0.1"]
                .map(str::to_owned)
                .into();
        names.push(format!("kubernetes.default.svc.{domain}"));
        names.extend(
            own.iter()
                .chain(also)
                .map(|address| address.ip())
                .filter(|ip| !ip.is_unspecified())
                .map(|ip| ip.to_string()),
        );
        names.extend(api::address::first_of(&server.options.service_cidr));
        names.sort();
        names.dedup();
        let lifetime = settings.duration("certificate-lifetime");
        let mut told = own[0];
        if told.ip().is_unspecified() {
            told.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
        }
        write_kubeconfig(server, &settings.data().join("kubeconfig"), &told)?;
        let first = serving(server, &names, lifetime)?;
        let made = Certificates { server: server.clone(), lifetime, names, serving: Arc::new(Current::new(&first)?) };
        server.kubelets.renew(&server.ca, lifetime)?;
        server.front_proxy.renew(lifetime)?;
        Ok(made)
    }

    fn renew(&self) -> Result<(), Error> {
        self.serving.replace(&serving(&self.server, &self.names, self.lifetime)?)?;
        self.server.kubelets.renew(&self.server.ca, self.lifetime)?;
        self.server.front_proxy.renew(self.lifetime)?;
        Ok(())
    }

    /// Renews all in time, for as long as the process lives.
    async fn keep(self) {
        let mut pause = renew_after(self.lifetime);
        loop {
            tokio::time::sleep(pause).await;
            pause = match self.renew() {
                Ok(()) => {
                    tracing::info!("the server's certificates are renewed");
                    renew_after(self.lifetime)
                }
                Err(error) => {
                    tracing::warn!("the server's certificates are not renewed yet: {error}");
                    RETRY
                }
            };
        }
    }
}

fn serving(server: &Server, names: &[String], lifetime: Duration) -> Result<Identity, server::Error> {
    server.ca.issue_for("gantry", &[], names, Usage::Server, lifetime)
}

/// Stands for election; the parts of a server run while it leads. Without parts to run it leaves the lead to others.
fn stand(
    server: &Arc<Server>,
    settings: &Settings,
    address: SocketAddr,
    shared: bool,
    silence: Silence,
    stopping: tokio::sync::watch::Receiver<bool>,
) -> tokio::task::JoinHandle<()> {
    if !settings.names("parts", "controllers") && !settings.names("parts", "scheduler") {
        return tokio::spawn(async {});
    }
    let name = format!("{}_{}", address, server::uid::new());
    let candidate = Candidate {
        backend: server.storage.backend().clone(),
        side: server.storage.side(),
        shell: Arc::new(Tokio),
        name: name.clone(),
        shared,
    };
    let (server, settings) = (server.clone(), settings.clone());
    tokio::spawn(candidate.run(stopping, move |reign| {
        start_parts(&server, &settings, &silence, reign);
        let api = || door(reign, &server, server::local::system());
        let parts = [("controllers", servers::CONTROLLER_MANAGER), ("scheduler", servers::SCHEDULER)];
        let parts = parts.into_iter().filter(|(part, _)| settings.names("parts", part)).map(|(_, program)| program);
        reign.spawn(servers::tell_leader(api(), reign.shell(), name.clone(), parts.collect()));
        reign.spawn(server::aggregation::lead(server.clone(), api()));
        let (backend, side) = (server.storage.backend().clone(), server.storage.side());
        if shared {
            reign.spawn(servers::publish_all(side.clone(), server.storage.mirror().clone(), api(), reign.shell()));
        }
        let settle_ms = u64::try_from(settings.duration("upgrade-settle").as_millis()).unwrap_or(u64::MAX);
        let (shell, fence, knows) = (reign.shell(), reign.fence(), server.storage.knows());
        reign.spawn(servers::Raising { backend, side, shell, fence, knows, shared, settle_ms }.run());
    }))
}

/// The cluster's root, as the controller of signing requests uses it. Nothing holds longer than the setting says.
fn signer(server: &Arc<Server>, lifetime: Duration) -> controllers::Sign {
    let server = server.clone();
    let longest = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX);
    Arc::new(move |request_pem, usages, seconds| {
        let seconds = seconds.min(longest);
        let usage = if usages.iter().any(|usage| usage == "server auth") { Usage::Server } else { Usage::Client };
        server.ca.sign(request_pem, usage, seconds).map_err(|error| error.to_string())
    })
}

/// Issues the tokens that secrets hold: they last as long as the secret does.
fn issuer(server: &Arc<Server>) -> controllers::Issue {
    /// Long enough for everybody: what ends such a token is the end of its secret.
    const SECONDS: i64 = 100 * 365 * 24 * 3600;
    let server = server.clone();
    Arc::new(move |asked| {
        let grant = server::tokens::Grant {
            namespace: asked.namespace,
            account: asked.account,
            account_uid: asked.account_uid,
            bound: Some(("secrets", asked.secret, asked.secret_uid)),
            node: None,
            audiences: &[server::tokens::ISSUER.into()],
            seconds: SECONDS,
        };
        let signed = server.authn.tokens.sign(&grant, server.now());
        signed.map(|(token, _)| token).map_err(|error| error.to_string())
    })
}

/// A door for one identity, through which nothing is written after the reign.
fn door(reign: &Reign, server: &Arc<Server>, user: User) -> Arc<dyn client::Api> {
    Arc::new(Fenced { api: Arc::new(Local { server: server.clone(), user }), fence: reign.fence() })
}

/// Starts the parts that act, each with an identity of its own.
fn start_parts(server: &Arc<Server>, settings: &Settings, silence: &Silence, reign: &Reign) {
    let runs = |part: &str| settings.names("parts", part);
    let mirror = server.storage.mirror();
    let door = |name: &str, groups: &[&str]| door(reign, server, User::new(name, groups));
    let clock = server.clock.clone();
    let shell = reign.shell();
    if runs("controllers") {
        let lifetime = settings.duration("certificate-lifetime");
        let also_published = token_config_maps(settings)
            .into_iter()
            .map(|(name, key)| (name, key, server.ca.pem().to_owned()))
            .collect();
        let settings = controllers::Settings {
            root_ca_pem: server.ca.pem().to_owned(),
            cluster_domain: server.options.cluster_domain.clone(),
            service_cidr: server.options.service_cidr.clone(),
            sign: Some(signer(server, lifetime)),
            issue: Some(issuer(server)),
            token_config_maps: also_published,
            ..controllers::Settings::default()
        };
        for make in controllers::CONTROLLERS {
            let controller = make(&settings);
            let user = controllers::user_of(controller.name());
            let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"];
            let api = door(&user, &groups);
            let recorder = Recorder::new(api.clone(), clock.clone());
            let silence = silence.clone();
            reign.spawn(parts::controllers::run(controller, mirror.clone(), api, shell.clone(), recorder, silence));
        }
    }
    if runs("controllers")
        && let Some(cluster) = settings.text("pod-cidr").and_then(api::address::Cidr::parse)
    {
        let api = door("system:serviceaccount:kube-system:node-controller", &["system:masters"]);
        reign.spawn(parts::ipam::run(cluster, mirror.clone(), api, shell.clone()));
    }
    if runs("scheduler") {
        let api = door("system:kube-scheduler", &[]);
        let recorder = Recorder::new(api.clone(), clock.clone());
        reign.spawn(parts::scheduler::run(mirror.clone(), api, shell, recorder));
    }
}

/// Listens; `flag` is where the address was said.
async fn bind(address: SocketAddr, flag: &str) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|error| busy(address, flag, &error))
}

/// Why an address cannot be listened on, and what to do.
pub fn busy(address: SocketAddr, flag: &str, error: &std::io::Error) -> Error {
    Error::Machine(match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            format!("{address} is in use by another program; stop that one, or give another address with {flag}")
        }
        std::io::ErrorKind::AddrNotAvailable => {
            format!("{address} is no address of this machine; give one that is with {flag}")
        }
        std::io::ErrorKind::PermissionDenied => {
            format!(
                "this user may not listen on {address}; start gantry as root, or give a port from 1024 on with {flag}"
            )
        }
        _ => format!("cannot listen on {address} ({flag}): {error}"),
    })
}

/// The administrator's kubeconfig; mode 0600.
fn write_kubeconfig(server: &Server, path: &Path, address: &SocketAddr) -> Result<(), Error> {
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: gantry\nclusters:\n- name: gantry\n  cluster:\n    \
         server: https://{address}\n    certificate-authority-data: {}\ncontexts:\n- name: gantry\n  context:\n    \
         cluster: gantry\n    user: {ADMIN}\nusers:\n- name: {ADMIN}\n  user:\n    token: {}\n",
        STANDARD.encode(server.ca.pem()),
        server.authn.admin_token,
    );
    write_private(path, text.as_bytes())?;
    Ok(())
}
