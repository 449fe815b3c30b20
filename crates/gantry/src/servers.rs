//! The servers of a cluster: each says that it is there, and the leader tells pods and programs where they all are.
//!
//! A server's sign is a key `/servers/ADDRESS:PORT` that lives as long as its lease is renewed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use client::{Api, PatchType, Request};
use meta::{Resource, Value, json};
use server::Server;
use server::storage::Storage;
use store::{LeaseId, Put, Txn};

const PLACE: &str = "/servers/";
const SLICES: Resource = Resource("endpointslices.discovery.k8s.io");
const LEASES: Resource = Resource("leases.coordination.k8s.io");
/// How long a server that says nothing counts as there.
const LEASE_MS: u64 = 5_000;
const RENEW_EVERY: Duration = Duration::from_millis(1_500);
/// What programs that look for Kubernetes' leaders find, and how often it is said anew.
const PROGRAMS: [&str; 2] = ["kube-controller-manager", "kube-scheduler"];
const SAY_EVERY: Duration = Duration::from_secs(10);
const SAID_SECONDS: i64 = 15;
/// Between tries.
const RETRY: Duration = Duration::from_secs(1);

/// Says that a server is at `address`, for as long as the process lives.
pub async fn register(storage: Storage, address: SocketAddr) {
    let key = format!("{PLACE}{address}");
    let mut lease: Option<LeaseId> = None;
    loop {
        let told = match lease {
            Some(id) => storage.backend().renew(id).await.map(|_| id),
            None => enter(&storage, &key).await,
        };
        match told {
            Ok(id) => {
                lease = Some(id);
                tokio::time::sleep(RENEW_EVERY).await;
            }
            Err(error) => {
                // Its key went with it, if it is gone; another one does no harm if it is not.
                lease = None;
                tracing::warn!("the server's sign of being there is not renewed: {error}");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn enter(storage: &Storage, key: &str) -> Result<LeaseId, store::Error> {
    let id = storage.backend().grant(LEASE_MS).await?;
    let put = Put { lease: Some(id), ..Put::new(key.to_owned(), "") };
    storage.backend().txn(Txn::new().put(put)).await?;
    Ok(id)
}

/// Keeps the endpoints of the service `kubernetes` those of the servers that are there; part of the leader.
pub async fn publish_all(server: Arc<Server>, api: Arc<dyn Api>) {
    let mut side = server.storage.side();
    let mut told: Option<BTreeSet<SocketAddr>> = None;
    loop {
        let there: BTreeSet<SocketAddr> = {
            let side = side.borrow_and_update();
            let names = side.keys().filter_map(|key| std::str::from_utf8(key).ok()?.strip_prefix(PLACE));
            names.filter_map(|name| name.parse().ok()).collect()
        };
        // An empty list would only be wrong: this server is there.
        if !there.is_empty() && told.as_ref() != Some(&there) {
            match publish(&server, &*api, &there).await {
                Ok(()) => told = Some(there),
                Err(status) => {
                    tracing::warn!("the endpoints of the API are not told yet: {status}");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            }
        }
        // The server lives as long as the process.
        let _ = side.changed().await;
    }
}

/// The slices for servers at these addresses: one for each port, since the endpoints of a slice share theirs.
fn slices(there: &BTreeSet<SocketAddr>) -> BTreeMap<String, Value> {
    let mut by_port: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for address in there.iter().filter(|address| !address.ip().is_loopback()) {
        by_port.entry(address.port()).or_default().push(address.ip().to_string());
    }
    let mut slices = BTreeMap::new();
    for (at, (port, addresses)) in by_port.into_iter().enumerate() {
        let name = if at == 0 { "kubernetes".to_owned() } else { format!("kubernetes-{port}") };
        let endpoints: Vec<Value> = addresses
            .into_iter()
            .map(|address| json!({"addresses": [address], "conditions": {"ready": true}}))
            .collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": (&name), "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"},
            },
            "endpoints": endpoints,
            "ports": [{"name": "https", "port": (i64::from(port)), "protocol": "TCP"}],
        });
        slices.insert(name, slice);
    }
    slices
}

/// Tells pods where the API is: the endpoints behind the service `kubernetes`.
///
/// # Errors
/// What the pipeline refused.
pub async fn publish(server: &Server, api: &dyn Api, there: &BTreeSet<SocketAddr>) -> Result<(), meta::Status> {
    let wanted = slices(there);
    let view = server.storage.mirror().view();
    for known in view.list(SLICES, "default") {
        let ours = known.labels().get("kubernetes.io/service-name").is_some_and(|name| name == "kubernetes");
        if ours && known.name().starts_with("kubernetes-") && !wanted.contains_key(known.name()) {
            api.call(Request::delete(SLICES, "default", known.name())).await?;
        }
    }
    for (name, slice) in wanted {
        apply(api, SLICES, "default", &name, slice).await?;
    }
    Ok(())
}

async fn apply(
    api: &dyn Api,
    resource: Resource,
    namespace: &str,
    name: &str,
    object: Value,
) -> Result<(), meta::Status> {
    let request = Request::patch(resource, namespace, name, PatchType::Apply, object);
    let request = request.with(|options| {
        options.manager = "gantry-server".into();
        options.force = true;
    });
    api.call(request).await.map(|_| ())
}

/// Says who leads in the way that programs for Kubernetes look for it; part of the leader.
pub async fn tell_leader(server: Arc<Server>, api: Arc<dyn Api>, name: String) {
    let since = server.now().rfc3339_micro();
    loop {
        for program in PROGRAMS {
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": program, "namespace": "kube-system"},
                "spec": {
                    "holderIdentity": (&name), "leaseDurationSeconds": SAID_SECONDS, "acquireTime": (&since),
                    "renewTime": (server.now().rfc3339_micro()),
                },
            });
            if let Err(status) = apply(&*api, LEASES, "kube-system", program, lease).await {
                tracing::debug!("{program}: {status}");
            }
        }
        tokio::time::sleep(SAY_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_with_several_ports_are_several_slices() {
        let there = ["10.0.0.1:6443", "10.0.0.2:6443", "10.0.0.3:7443", "127.0.0.1:6443"];
        let slices = slices(&there.iter().map(|address| address.parse().unwrap()).collect());
        assert_eq!(slices.keys().collect::<Vec<_>>(), ["kubernetes", "kubernetes-7443"]);
        let addresses = slices["kubernetes"]["endpoints"].items();
        let addresses: Vec<&str> = addresses.iter().map(|one| one["addresses"].items()[0].text()).collect();
        assert_eq!(addresses, ["10.0.0.1", "10.0.0.2"]);
    }
}
