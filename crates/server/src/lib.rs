//! The API server: HTTP, TLS, authentication, authorization, the one verb pipeline, admission, discovery, streaming.
//!
//! Not here: what any kind means (that is `api`), controllers, the scheduler.
//!
//! Invariants: no handler runs without an [`authz::Authorized`], which only the authorizer makes; every write passes the
//! one pipeline in [`verbs`]; a write is answered only after the cache shows it.

pub mod admission;
pub mod aggregation;
pub mod audit;
pub mod authn;
pub mod authz;
pub mod bootstrap;
pub mod ca;
pub mod callee;
pub mod codec;
pub mod components;
pub mod conversion;
pub mod definitions;
pub mod discovery;
pub mod dispatch;
pub mod error;
pub mod flow;
pub mod http;
pub mod identity;
pub mod local;
pub mod lookup;
pub mod metrics;
pub mod ownership;
pub mod pack;
pub mod registry;
pub mod request;
pub mod scene;
pub mod seal;
pub mod storage;
pub mod subresource;
pub mod table;
pub mod tokens;
pub mod uid;
pub mod unjudged;
pub mod verbs;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use base::{Clock, Time};
use cache::{Cache, Index, View};
use client::Mirror;
use meta::{Object, Resource, Status};
use store::LeaseId;

pub use error::Error;
use flow::places::{self, Places};
use registry::Registry;
use storage::Storage;
use verbs::list::Snapshots;

/// How a server is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where keys and certificates lie.
    pub dir: PathBuf,
    /// The address that clients are told, `HOST:PORT`.
    pub advertise: String,
    pub service_cidr: String,
    pub cluster_domain: String,
    pub node_ports: (u16, u16),
    /// Where the audit log goes; none when absent.
    pub audit_log: Option<PathBuf>,
    /// Further config maps that pods find beside their token, each with the key that is shown as a file of that name.
    /// Whoever sets this publishes the maps in every namespace (`controllers::root_ca::RootCa::also`).
    pub token_config_maps: Vec<(String, String)>,
    /// The newest data version to read and, once the cluster may, to write: [`pack::NEWEST`], or an older one to be as an
    /// older program.
    pub knows: store::Format,
}

impl Options {
    /// A server without files and without an audit log, as a `cluster.local` with the usual addresses has it.
    pub fn passing() -> Options {
        Options {
            dir: PathBuf::new(),
            advertise: "10.0.0.1:6443".to_owned(),
            service_cidr: "10.96.0.0/16".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            node_ports: (30_000, 32_767),
            audit_log: None,
            token_config_maps: Vec::new(),
            knows: pack::NEWEST,
        }
    }
}

/// The real time.
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Time {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Time(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
}

/// A running API server, without its sockets.
pub struct Server {
    pub options: Options,
    pub storage: Storage,
    pub ca: Arc<ca::Ca>,
    pub authn: Arc<authn::Authenticator>,
    pub clock: Arc<dyn Clock>,
    pub snapshots: Snapshots,
    pub creations: ownership::Creations,
    /// Admission policies as they were compiled.
    pub policies: admission::policies::Known<admission::policies::Policy>,
    /// The hooks of each configuration, with their conditions compiled.
    pub hooks: admission::policies::Known<Vec<admission::webhooks::Hook>>,
    pub audit: audit::Audit,
    pub flows: Arc<flow::Flows>,
    /// Places for watches, for streams to nodes, and for requests that aggregated servers answer.
    pub watches: Arc<flow::places::Places>,
    pub streams: Arc<flow::places::Places>,
    pub passed: Arc<flow::places::Places>,
    /// Set when the objects that every cluster has are there.
    pub ready: std::sync::atomic::AtomicBool,
    leases: Mutex<BTreeMap<u64, (Time, LeaseId)>>,
    pub kubelets: Arc<subresource::node::Kubelets>,
    pub front_proxy: Arc<aggregation::front_proxy::FrontProxy>,
    pub metrics: metrics::Metrics,
}

/// What a server is known by and trusts: its root, the keys of its tokens and of its secrets.
#[derive(Clone)]
pub struct Keys {
    ca: Arc<ca::Ca>,
    authn: Arc<authn::Authenticator>,
    seal: Arc<seal::Seal>,
    kubelets: Arc<subresource::node::Kubelets>,
    front_proxy: Arc<aggregation::front_proxy::FrontProxy>,
}

impl Keys {
    /// Loads the keys from `dir`, or makes them there.
    ///
    /// # Errors
    /// What could not be read or made.
    pub fn open(dir: &std::path::Path) -> Result<Keys, Error> {
        std::fs::create_dir_all(dir).map_err(|error| Error::File { what: "create", path: dir.to_owned(), error })?;
        let secrets = [bootstrap::secret(dir, "join-token")?, bootstrap::secret(dir, "admin-token")?];
        Keys::of(ca::Ca::open(dir)?, tokens::Tokens::open(dir)?, secrets, seal::Seal::open(dir)?)
    }

    /// Keys that live in memory only, for servers that end with this process.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn passing() -> Result<Keys, Error> {
        Keys::of(ca::Ca::make()?.0, tokens::Tokens::make()?.0, [uid::new(), uid::new()], seal::Seal::make()?.0)
    }

    fn of(ca: ca::Ca, tokens: tokens::Tokens, [join, admin]: [String; 2], seal: seal::Seal) -> Result<Keys, Error> {
        let kubelets = Arc::new(subresource::node::Kubelets::new(&ca)?);
        let front_proxy = Arc::new(aggregation::front_proxy::FrontProxy::new(&ca)?);
        let authn = Arc::new(authn::Authenticator { tokens, join_token: join, admin_token: admin });
        Ok(Keys { ca: Arc::new(ca), authn, seal: Arc::new(seal), kubelets, front_proxy })
    }
}

/// The indexes that the server's cache keeps.
pub fn indexes() -> Vec<Index> {
    let rows = api::INDEXES.iter().chain(authz::rbac::INDEXES);
    rows.map(|(resource, name, of)| Index { resource: *resource, name, of: *of }).collect()
}

impl Server {
    /// Loads keys and objects, and writes what every cluster has.
    pub async fn open(
        options: Options,
        backend: Arc<dyn store::Backend>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Server>, Error> {
        let keys = Keys::open(&options.dir)?;
        let server = Server::with(options, keys, backend, clock).await?;
        tokio::spawn(definitions::follow(server.clone()));
        tokio::spawn(flow::follow(server.clone()));
        tokio::spawn(aggregation::follow(server.clone()));
        server.begin().await?;
        Ok(server)
    }

    /// A server with these keys that has loaded its objects. It is ready after [`Server::begin`]; its caller drives
    /// [`definitions::follow`].
    ///
    /// # Errors
    /// When the store cannot be read or the audit log not be opened.
    pub async fn with(
        options: Options,
        keys: Keys,
        backend: Arc<dyn store::Backend>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Server>, Error> {
        let registry = Arc::new(RwLock::new(Arc::new(Registry::new(api::kinds::kinds().into_iter().map(Arc::new)))));
        let mirror = Arc::new(Mirror::new(Cache::new(indexes())));
        let storage = Storage::open(backend, mirror, registry, keys.seal, options.knows).await?;
        let audit = audit::Audit::open(options.audit_log.as_deref())?;
        Ok(Arc::new(Server {
            options,
            storage,
            ca: keys.ca,
            authn: keys.authn,
            clock,
            snapshots: Snapshots::default(),
            creations: ownership::Creations::default(),
            policies: admission::policies::Known::default(),
            hooks: admission::policies::Known::default(),
            flows: Arc::default(),
            watches: Places::new("watches", places::WATCHES_MAX, places::WATCHES_OF_USER_MAX),
            streams: Places::new("streams to nodes", places::STREAMS_MAX, places::STREAMS_OF_USER_MAX),
            passed: Places::new("requests to aggregated servers", places::PASSED_MAX, places::PASSED_OF_USER_MAX),
            audit,
            ready: std::sync::atomic::AtomicBool::new(false),
            leases: Mutex::default(),
            kubelets: keys.kubelets,
            front_proxy: keys.front_proxy,
            metrics: metrics::Metrics::default(),
        }))
    }

    /// Writes what every cluster has and is missing, and is ready then.
    ///
    /// # Errors
    /// [`Error::Bootstrap`] with what could not be written.
    pub async fn begin(self: &Arc<Self>) -> Result<(), Error> {
        bootstrap::run(self).await?;
        self.ready.store(true, std::sync::atomic::Ordering::Release);
        Ok(())
    }

    /// What proves the nodes' signs of life. All servers of a cluster have the same, and only they.
    pub fn beats(&self) -> beat::Keys {
        beat::Keys::new(self.authn.admin_token.as_bytes())
    }

    pub fn now(&self) -> Time {
        self.clock.now()
    }

    /// The reads that a kind may make while it prepares a change.
    pub fn lookup<'a>(&'a self, view: &'a View) -> lookup::ViewLookup<'a> {
        lookup::ViewLookup { view, options: &self.options }
    }

    /// A lease on which objects live that go after `seconds`. Objects of one minute share one.
    pub async fn ttl_lease(&self, seconds: u64) -> Result<LeaseId, Status> {
        /// Objects may live this much longer than asked, so that many share a lease.
        const SHARE_SECONDS: u64 = 60;
        let now = self.now();
        let known = {
            let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
            leases.retain(|_, (until, _)| *until > now);
            leases.get(&seconds).map(|(_, lease)| *lease)
        };
        if let Some(lease) = known {
            return Ok(lease);
        }
        let lease = self.storage.lease(seconds + SHARE_SECONDS).await?;
        let until = now.plus_ms(SHARE_SECONDS * 1000);
        self.leases.lock().unwrap_or_else(PoisonError::into_inner).insert(seconds, (until, lease));
        Ok(lease)
    }

    pub fn one(&self, resource: Resource, namespace: &str, name: &str) -> Option<Object> {
        self.storage.mirror().one(resource, namespace, name)
    }
}
