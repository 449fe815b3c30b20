//! Aggregated servers: programs that answer for a group and version in this server's place, each registered by an
//! `APIService` that names a service.
//!
//! State: the `APIService`s of the cache, of which every server makes its [`Remote`]s, a part of the registry; and what
//! each aggregated server told of itself last ([`Told`]), by which discovery speaks of it. Who decides: [`follow`] which
//! there are; the server that leads which of them are [`availability`], as conditions that all servers go by; it also keeps
//! the `APIService`s of definitions ([`registration`]), publishes whom aggregated servers are to believe, and deletes what
//! they have in namespaces that go ([`content`]). Who does: [`proxy`] passes requests on, over a [`link`].
//!
//! Promises: a request was authorized here before it goes on, and goes without what proved its caller. What an aggregated
//! server says is bounded, and asked in tasks of its own: one that hangs costs others nothing, and what was known of it is
//! shown as stale. The core group and `apiregistration.k8s.io` are nobody else's, so that a registration can be undone.

pub mod availability;
pub mod content;
pub mod documents;
pub mod front_proxy;
pub mod link;
pub mod proxy;
pub mod registration;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use api::apiregistration::api_service::REMOTE;
use base::Tree;
use cache::Part;
use client::{Api, Interest};
use meta::{Resource, Status, Str, Value};

use crate::Server;
use crate::identity::{MASTERS, User};
use link::Link;

pub const SERVICES: Resource = Resource("apiservices.apiregistration.k8s.io");
/// Groups that this server keeps for itself.
const OWN: [&str; 2] = ["", "apiregistration.k8s.io"];
/// How often a server is asked again what it serves, and how soon after it could not be asked.
const ASK_EVERY: Duration = Duration::from_secs(60);
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Remotes by group and version.
pub type Remotes = Tree<(Str, Str), Arc<Remote>>;

/// An aggregated server, for one group and version.
pub struct Remote {
    /// Of its `APIService`.
    pub name: Str,
    pub group: Str,
    pub version: Str,
    pub group_priority: i64,
    pub version_priority: i64,
    /// Whether requests are passed on to it.
    pub is_available: bool,
    pub link: Arc<Link>,
    told: Arc<RwLock<Arc<Told>>>,
}

/// What an aggregated server told of itself.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Its entry in aggregated discovery, without freshness. Nothing until it was asked.
    pub discovery: Option<Value>,
    /// Whether it could be asked the last time.
    pub is_current: bool,
    /// What tells whether its document of OpenAPI changed, if it has one.
    pub openapi: Option<String>,
}

impl Remote {
    /// What an `APIService` registers; `None` for what this server answers itself.
    fn of(server: &Server, service: &Value, before: Option<&Registered>) -> Option<Registered> {
        let spec = &service["spec"];
        let (group, version): (Str, Str) = (spec["group"].text().into(), spec["version"].text().into());
        if spec["service"].is_null() || OWN.contains(&group.as_str()) {
            return None;
        }
        let mut place = spec.clone();
        for priority in ["groupPriorityMinimum", "versionPriority"] {
            place.take(&[priority]);
        }
        let made_of = base::hash64(&place.to_json());
        // Its connections, and what it told, are good until it is described otherwise.
        let same = before.filter(|before| before.made_of == made_of).map(|before| &before.remote);
        let remote = Remote {
            name: service.at(&["metadata", "name"]).text().into(),
            group,
            version,
            group_priority: spec["groupPriorityMinimum"].as_int().unwrap_or(0),
            version_priority: spec["versionPriority"].as_int().unwrap_or(0),
            is_available: availability::is_available(service),
            link: same.map_or_else(|| Arc::new(Link::of(spec, &server.front_proxy)), |same| same.link.clone()),
            told: same.map_or_else(Arc::default, |same| same.told.clone()),
        };
        Some(Registered { made_of, remote: Arc::new(remote) })
    }

    pub fn told(&self) -> Arc<Told> {
        self.told.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn tell(&self, told: Told) {
        *self.told.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(told);
    }

    /// `/apis/GROUP/VERSION`.
    pub fn path(&self) -> String {
        format!("/apis/{}/{}", self.group, self.version)
    }
}

/// A remote, and a hash of what the `spec` says of the way to it.
struct Registered {
    made_of: u64,
    remote: Arc<Remote>,
}

/// The user that this server is for aggregated servers when it asks for itself.
fn own_user() -> User {
    User { name: "system:kube-aggregator".into(), groups: vec![MASTERS.into()], ..User::default() }
}

/// A task that ends with whoever holds this.
struct Running(tokio::task::JoinHandle<()>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Routes to those that are registered, and asks them what they serve, until the future is dropped.
pub async fn follow(server: Arc<Server>) {
    let mirror = server.storage.mirror().clone();
    let changed = mirror.listen(Interest::Parts(vec![(SERVICES, Part::Indexed(REMOTE, REMOTE.into()))]));
    let mut known: BTreeMap<Str, (Registered, Running)> = BTreeMap::new();
    loop {
        let view = mirror.view();
        let mut next = BTreeMap::new();
        for service in view.by(SERVICES, REMOTE, REMOTE) {
            let before = known.remove(service.name());
            let made = Remote::of(&server, &service.value(), before.as_ref().map(|(registered, _)| registered));
            let Some(made) = made else { continue };
            let running = match before {
                Some((before, running))
                    if before.made_of == made.made_of && before.remote.is_available == made.remote.is_available =>
                {
                    running
                }
                _ => Running(tokio::spawn(keep_asking(server.clone(), made.remote.clone()))),
            };
            next.insert(Str::from(service.name()), (made, running));
        }
        drop(view);
        known = next;
        server.storage.change_registry(|registry| {
            let remotes = known.values().map(|(registered, _)| registered.remote.clone());
            registry.remotes = remotes.map(|remote| ((remote.group.clone(), remote.version.clone()), remote)).collect();
        });
        changed.changed().await;
    }
}

/// Asks a remote what it serves: now, in intervals, and soon again while it cannot be asked.
async fn keep_asking(server: Arc<Server>, remote: Arc<Remote>) {
    let mut pause = ASK_AGAIN;
    loop {
        if !remote.is_available {
            // Another task asks when that changes.
            remote.tell(Told { is_current: false, ..(*remote.told()).clone() });
            return;
        }
        match documents::ask(&server, &remote).await {
            Ok(told) => {
                remote.tell(told);
                pause = ASK_EVERY;
            }
            Err(why) => {
                tracing::debug!("{} does not say what it serves: {why}", remote.name);
                remote.tell(Told { is_current: false, ..(*remote.told()).clone() });
                pause = if pause == ASK_EVERY { ASK_AGAIN } else { (pause * 2).min(ASK_EVERY) };
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// What only the server that leads does, for as long as it leads: `api` writes nothing afterwards.
pub async fn lead(server: Arc<Server>, api: Arc<dyn Api>) {
    tokio::join!(
        availability::keep(&server, &api),
        registration::keep(&server, &api),
        registration::publish(&server, &api),
        content::keep(&server, &api),
    );
}

/// Writes that lose against others are made anew at the next look; what else fails is told.
fn note(what: &str, outcome: Result<client::Answer, Status>) -> bool {
    use meta::Reason;
    match outcome {
        Ok(_) => true,
        Err(status) => {
            match status.reason() {
                Reason::Conflict | Reason::NotFound | Reason::AlreadyExists => tracing::debug!("{what}: {status}"),
                _ => tracing::warn!("{what}: {status}"),
            }
            false
        }
    }
}

/// Puts a condition of a status in its place; others keep theirs.
fn put_condition(object: &mut Value, condition: Value) {
    let conditions = object.make(&["status", "conditions"]).make_list();
    match conditions.make_mut().iter_mut().find(|one| one["type"] == condition["type"]) {
        Some(place) => *place = condition,
        None => conditions.push(condition),
    }
}
