//! Keeps the node's services, routes and names as the cluster says: a plan from the view, applied as a whole.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use client::Mirror;
use meta::Str;
use net::dns::{Server, Sockets, Zone, upstreams_of};
use net::plan::{PlanOptions, SERVICES, SLICES, node_net, service_names, service_of};
use net::{Dataplane, Error, NetnsThread};

/// Changes that come close together are applied together.
const GATHER: Duration = Duration::from_millis(20);
/// After an apply that failed.
const RETRY: Duration = Duration::from_secs(1);

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
    let zone = Arc::new(RwLock::new(zone));
    let address = SocketAddr::new(options.dns, 53);
    let sockets = thread.run(move || Sockets::bind(address))??;
    let own = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let upstreams: Vec<SocketAddr> =
        upstreams_of(&own).into_iter().filter(|upstream| upstream.ip() != options.dns).collect();
    let server = Server::start(vec![sockets], zone.clone(), &upstreams)?;
    let plane = thread.run(Dataplane::open)??;
    let mut plane = Some(plane);
    let mut changed = mirror.subscribe();
    let mut cursor = base::Revision::ZERO;
    loop {
        changed.borrow_and_update();
        let view = mirror.view();
        name_services(&mirror, &view, &mut cursor, &zone);
        let net = node_net(&view, &options.node, &options.plan);
        let Some(mut taken) = plane.take() else { return Ok(()) };
        // A node without pod network has nothing to say yet.
        let ready = !net.pod_cidrs.is_empty();
        let (taken, result) = thread.run(move || {
            let result = if ready { taken.apply(&net).map(|_| ()) } else { Ok(()) };
            (taken, result)
        })?;
        plane = Some(taken);
        if let Err(error) = result {
            tracing::error!("the node's network could not be set: {error}");
            tokio::time::sleep(RETRY).await;
            continue;
        }
        if changed.changed().await.is_err() {
            drop(server);
            return Ok(());
        }
        tokio::time::sleep(GATHER).await;
    }
}

/// Brings the names of services up to date: those that changed since `cursor`, or all.
fn name_services(mirror: &Mirror, view: &cache::View, cursor: &mut base::Revision, zone: &RwLock<Zone>) {
    let mut touched: BTreeSet<(String, String)> = BTreeSet::new();
    let mut lost = false;
    for resource in [SERVICES, SLICES] {
        match mirror.since(resource, *cursor, usize::MAX) {
            Ok(events) => {
                let objects = events.iter().flat_map(|event| event.new.iter().chain(event.old.iter()));
                touched.extend(objects.filter_map(|object| service_of(resource, object)));
            }
            Err(_) => lost = true,
        }
    }
    if lost || *cursor == base::Revision::ZERO {
        touched
            .extend(view.list(SERVICES, "").map(|service| (service.namespace().to_owned(), service.name().to_owned())));
    }
    *cursor = view.at();
    if touched.is_empty() {
        return;
    }
    let mut zone = zone.write().unwrap_or_else(PoisonError::into_inner);
    let namespaces: BTreeSet<Str> = view.list(SERVICES, "").map(|service| service.namespace().into()).collect();
    for (namespace, name) in touched {
        zone.set_namespace(&namespace, namespaces.contains(namespace.as_str()));
        zone.set_service(&namespace, &name, service_names(view, &namespace, &name));
    }
}
