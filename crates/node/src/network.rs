//! Keeps the node's services, routes and names as the cluster says: a plan that follows the view, applied by what changed.
//!
//! Names and services are two tasks: a name is answered as soon as it is known, while a batch is on its way to the kernel.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use api::core::node_facts::NodeFacts;
use base::Revision;
use cache::{Event, Key, Part, View};
use client::{Interest, Mirror};
use meta::Resource;
use net::dns::{Server, Sockets, Zone, upstreams_of};
use net::plan::{Changed, NODES, PODS, PlanOptions, Planner, SERVICES, SLICES, Touched, service_names};
use net::{Dataplane, Error, NetnsThread};
use tokio::time::Instant;

/// Changes that come closer together than this are applied together; the first of them at once.
const GATHER: Duration = Duration::from_millis(20);
/// After an apply that failed.
const RETRY: Duration = Duration::from_secs(1);
const NAMES: &[Resource] = &[SERVICES, SLICES];
/// What the plan of a node is made of.
pub const PLAN: &[Resource] = &[SERVICES, SLICES, NODES, PODS];

/// What the network of this node needs to know.
pub struct NetworkOptions {
    pub node: String,
    pub plan: PlanOptions,
    pub cluster_domain: String,
    /// Where the name server listens.
    pub dns: IpAddr,
}

/// Runs for as long as the process lives. The thread is one that stays in the node's network namespace.
pub async fn network_loop(options: NetworkOptions, mirror: Arc<Mirror>, thread: NetnsThread) -> Result<(), Error> {
    let zone = Zone::new(&options.cluster_domain, &[options.dns], &options.plan.cluster_cidrs)
        .map_err(|_| Error::Limit("the cluster domain is no name"))?;
    let address = SocketAddr::new(options.dns, 53);
    let sockets = thread.task(move || Sockets::bind(address)).await??;
    let plane = thread.task(Dataplane::open).await??;
    // Until everything is known once, the kernel keeps what an earlier agent left, and questions wait.
    for resource in PLAN {
        mirror.knows(*resource, Revision(1)).await;
    }
    let names = names(options.dns, zone, sockets, &mirror);
    let services = services(&options, plane, &mirror, &thread);
    tokio::try_join!(names, services).map(|_| ())
}

/// What changed since the last look; at first everything did.
pub struct Cursor {
    resources: &'static [Resource],
    at: Option<Revision>,
}

impl Cursor {
    pub fn new(resources: &'static [Resource]) -> Cursor {
        Cursor { resources, at: None }
    }

    /// What a mirror shows now, and what of it may be new.
    pub fn touched(&mut self, mirror: &Mirror) -> (View, Touched) {
        let view = mirror.view();
        let mut touched = if self.at.is_some() { Touched::nothing() } else { Touched::All };
        for resource in self.resources {
            match mirror.since(*resource, self.at.unwrap_or_default(), usize::MAX) {
                Ok(events) => {
                    let events = events.iter().filter(|event| !is_beat(*resource, event));
                    let objects = events.flat_map(|event| event.new.iter().chain(event.old.iter()));
                    objects.for_each(|object| touched.note(*resource, object));
                }
                // More changed than is remembered.
                Err(_) => touched = Touched::All,
            }
        }
        self.at = Some(view.at());
        (view, touched)
    }
}

/// Whether a node only said that it lives.
fn is_beat(resource: Resource, event: &Event) -> bool {
    let (NODES, Some(old), Some(new)) = (resource, &event.old, &event.new) else { return false };
    NodeFacts::seen(old).place == NodeFacts::seen(new).place
}

/// All changes of these resources.
pub fn interest(resources: &[Resource]) -> Interest {
    Interest::Parts(resources.iter().map(|resource| (*resource, Part::All)).collect())
}

/// Answers questions about names. Ends only by a failure.
async fn names(own: IpAddr, zone: Zone, sockets: Sockets, mirror: &Arc<Mirror>) -> Result<(), Error> {
    let zone = Arc::new(RwLock::new(zone));
    let hosts = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let upstreams: Vec<SocketAddr> = upstreams_of(&hosts).into_iter().filter(|upstream| upstream.ip() != own).collect();
    let listener = mirror.listen(interest(NAMES));
    let mut cursor = Cursor::new(NAMES);
    let (view, touched) = cursor.touched(mirror);
    name_services(&view, touched, &zone);
    let _server = Server::start(vec![sockets], zone.clone(), &upstreams)?;
    loop {
        listener.changed().await;
        let (view, touched) = cursor.touched(mirror);
        name_services(&view, touched, &zone);
    }
}

/// Brings the names of services up to date. Questions wait while names are put down, not while they are worked out.
fn name_services(view: &View, touched: Touched, zone: &RwLock<Zone>) {
    let key_of = |object: &meta::Object| Key::of(object.namespace(), object.name());
    let services = match touched {
        Touched::Some { services, .. } => services,
        Touched::All => {
            let zone = zone.read().unwrap_or_else(PoisonError::into_inner);
            let known = zone.all_services().map(|(namespace, name)| Key::of(namespace, name));
            view.list(SERVICES, "").map(key_of).chain(known).collect::<BTreeSet<_>>()
        }
    };
    let parts = services.iter().map(|key| key.0.split_once('/').unwrap_or(("", &key.0)));
    let found: Vec<_> = parts
        .map(|(namespace, name)| {
            let any = view.list(SERVICES, namespace).next().is_some();
            (namespace, any, name, service_names(view, namespace, name))
        })
        .collect();
    if found.is_empty() {
        return;
    }
    let mut zone = zone.write().unwrap_or_else(PoisonError::into_inner);
    for (namespace, any, name, names) in found {
        zone.set_namespace(namespace, any);
        zone.set_service(namespace, name, names);
    }
}

/// Keeps services, routes and host ports in the kernel.
async fn services(
    options: &NetworkOptions,
    plane: Dataplane,
    mirror: &Arc<Mirror>,
    thread: &NetnsThread,
) -> Result<(), Error> {
    let listener = mirror.listen(interest(PLAN));
    let mut cursor = Cursor::new(PLAN);
    let mut planner = Planner::new(&options.node, options.plan.clone());
    let mut plane = Some(plane);
    let mut waiting = Changed { rest: true, ..Changed::default() };
    let mut next = Instant::now();
    loop {
        let (view, touched) = cursor.touched(mirror);
        let changed = planner.update(&view, &touched);
        drop(view);
        waiting.vips.extend(changed.vips);
        waiting.rest |= changed.rest;
        if planner.is_ready() && !waiting.nothing() {
            next = Instant::now() + GATHER;
            let Changed { vips, rest } = std::mem::take(&mut waiting);
            let whole = rest.then(|| planner.net());
            let Some(mut taken) = plane.take() else { return Ok(()) };
            let (taken, result) = thread
                .task(move || {
                    let result = match whole {
                        Some(net) => taken.apply(&net),
                        None => taken.apply_vips(&vips.into_iter().collect::<Vec<_>>()),
                    };
                    (taken, result)
                })
                .await?;
            plane = Some(taken);
            if let Err(error) = result {
                tracing::error!("the node's network could not be set: {error}");
                // What of it was done is not known.
                waiting.rest = true;
                tokio::time::sleep(RETRY).await;
                continue;
            }
        }
        listener.changed().await;
        tokio::time::sleep_until(next).await;
    }
}
