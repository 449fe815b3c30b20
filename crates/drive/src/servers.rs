//! The servers of a cluster: each says that it is there and which data version it knows, and the leader tells pods and
//! programs where they all are, and raises the cluster's version to what all know.
//!
//! A server's sign is a key `/servers/ADDRESS:PORT` that lives as long as its lease is renewed; its value is the newest
//! data version that the server reads ([`Format`]; empty in those that know the first only).
//!
//! How the version goes up without anybody being left behind:
//!
//! - A server enters on the condition that the version is the one it saw, and knows; with it it puts [`ENTERED`].
//! - The leader raises on the condition that nobody has entered since it counted ([`ENTERED`] is as it saw it), and that
//!   it still leads. So of an entry and a raise that cross each other one is refused, and looks again.
//! - A server whose sign lapsed while it was cut off is not counted. It is told the version by its feed before it is told
//!   anything that was written in it, and stops there (`server::storage`).
//! - The leader waits until who is there, and what they know, has not changed for a while: servers that are being replaced
//!   are away for a moment, and until the version is raised they can be put back to the older program.
//!
//! The version is never lowered: what was written in it stays.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use base::Revision;
use client::{Api, Mirror, Request};
use meta::{Resource, Status, Value, json};
use store::{Backend, Compare, Error, Format, LeaseId, Put, Range, Txn};
use tokio::sync::watch;

use crate::Shell;
use crate::leader::Side;

/// What the keys of servers begin with.
pub const PLACE: &str = "/servers/";
/// Put by every server that enters.
pub const ENTERED: &[u8] = b"/cluster/entered";
/// How long a server that says nothing counts as there.
pub const LEASE_MS: u64 = 5_000;
const RENEW_EVERY_MS: u64 = 1_500;
const SLICES: Resource = Resource("endpointslices.discovery.k8s.io");
const ENDPOINTS: Resource = Resource("endpoints");
const LEASES: Resource = Resource("leases.coordination.k8s.io");
/// What programs that look for Kubernetes' leaders find ([`tell_leader`]).
pub const CONTROLLER_MANAGER: &str = "kube-controller-manager";
pub const SCHEDULER: &str = "kube-scheduler";
/// How often it is said anew.
const SAY_EVERY_MS: u64 = 10_000;
const SAID_SECONDS: i64 = 15;
/// Who writes for servers.
pub const MANAGER: &str = "gantry-server";
/// Between tries.
const RETRY_MS: u64 = 1_000;

/// Why a server could not enter.
enum Outside {
    /// Somebody was faster; it is looked at again.
    Again,
    TooOld(Format),
    Failed(Error),
}

/// Says that a server is at `address` and reads data up to version `knows`, for as long as the process lives.
pub async fn register(backend: Arc<dyn Backend>, shell: Arc<dyn Shell>, address: SocketAddr, knows: Format) {
    let key = format!("{PLACE}{address}");
    let mut lease: Option<LeaseId> = None;
    loop {
        let told = match lease {
            Some(id) => backend.renew(id).await.map(|_| id).map_err(Outside::Failed),
            None => enter(&*backend, &key, knows).await,
        };
        let why = match told {
            Ok(id) => {
                lease = Some(id);
                shell.sleep(RENEW_EVERY_MS).await;
                continue;
            }
            Err(Outside::Again) => continue,
            Err(Outside::TooOld(format)) => {
                format!("the data has version {format}, and {knows} is the newest it knows")
            }
            Err(Outside::Failed(error)) => error.to_string(),
        };
        // Its key went with it, if it is gone; another one does no harm if it is not.
        lease = None;
        tracing::warn!("the server's sign of being there is not renewed: {why}");
        shell.sleep(RETRY_MS).await;
    }
}

async fn enter(backend: &dyn Backend, key: &str, knows: Format) -> Result<LeaseId, Outside> {
    let page = backend.range(Range::key(Format::KEY), None, None, 0).await.map_err(Outside::Failed)?;
    let found = page.items.first().map(|(_, version)| &**version);
    let (format, seen) = (Format::of(found), found.map_or(Revision::ZERO, |version| version.mod_revision));
    if format > knows {
        return Err(Outside::TooOld(format));
    }
    let id = backend.grant(LEASE_MS).await.map_err(Outside::Failed)?;
    let sign = Put { lease: Some(id), ..Put::new(key.to_owned(), knows.text()) };
    let txn = Txn::new().when(Format::KEY, seen).put(sign).put(Put::new(ENTERED, ""));
    match backend.txn(txn).await {
        Ok(_) => Ok(id),
        Err(Error::Refused(_)) => Err(Outside::Again),
        Err(error) => Err(Outside::Failed(error)),
    }
}

/// Who is there, and the newest data version that each knows.
fn there(side: &Side) -> BTreeMap<SocketAddr, Format> {
    let server = |key: &[u8]| std::str::from_utf8(key).ok()?.strip_prefix(PLACE)?.parse().ok();
    side.iter().filter_map(|(key, version)| Some((server(key)?, Format::of(Some(version))))).collect()
}

/// How the leader raises the cluster's version.
pub struct Raising {
    pub backend: Arc<dyn Backend>,
    /// The keys as this server sees them; wakes when one changes.
    pub side: watch::Receiver<Side>,
    pub shell: Arc<dyn Shell>,
    /// What must hold: that it leads.
    pub fence: Compare,
    /// What the leader itself knows.
    pub knows: Format,
    /// Others may be there, and say so.
    pub shared: bool,
    /// How long nothing about the servers may have changed.
    pub settle_ms: u64,
}

/// What a leader sees of versions and servers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    format: Format,
    at: Revision,
    entered: Revision,
    there: BTreeMap<SocketAddr, Format>,
}

impl Known {
    fn of(side: &Side) -> Known {
        let at = |key: &[u8]| side.get(key).map_or(Revision::ZERO, |version| version.mod_revision);
        let format = Format::of(side.get(Format::KEY).map(|version| &**version));
        Known { format, at: at(Format::KEY), entered: at(ENTERED), there: there(side) }
    }

    /// The version that all know, where it is newer than the cluster's. Of shared data nobody's is raised while no server
    /// is known to be there: the leader's own sign has lapsed, and perhaps others'.
    fn next(&self, knows: Format, shared: bool) -> Option<Format> {
        let lowest = self.there.values().copied().min();
        let all = if shared { lowest?.min(knows) } else { knows };
        (all > self.format).then_some(all)
    }
}

impl Raising {
    /// Raises the version whenever all servers know a newer one, for as long as it leads.
    pub async fn run(mut self) {
        let mut since: Option<(Known, u64)> = None;
        loop {
            let known = Known::of(&self.side.borrow_and_update());
            let now_ms = self.shell.steady_ms();
            let Some(next) = known.next(self.knows, self.shared) else {
                since = None;
                // The sender lives as long as the server.
                let _ = self.side.changed().await;
                continue;
            };
            let began_ms = match &since {
                Some((before, began_ms)) if *before == known => *began_ms,
                _ => now_ms,
            };
            since = Some((known.clone(), began_ms));
            let wait_ms = self.settle_ms.saturating_sub(now_ms.saturating_sub(began_ms));
            if wait_ms > 0 {
                tokio::select! {
                    biased;
                    _ = self.side.changed() => {}
                    () = self.shell.sleep(wait_ms) => {}
                }
                continue;
            }
            match self.raise(&known, next).await {
                Ok(()) => tracing::info!("all servers know data version {next}; it is used from now on"),
                Err(error) => tracing::info!("the data version is not raised to {next} yet: {error}"),
            }
            // Until it is shown, or whoever was faster is.
            self.shell.sleep(RETRY_MS).await;
        }
    }

    async fn raise(&self, known: &Known, next: Format) -> Result<(), Error> {
        let txn = Txn::new().when(Format::KEY, known.at).when(ENTERED, known.entered);
        let mut txn = txn.put(Put::new(Format::KEY, next.text()));
        txn.compares.push(self.fence.clone());
        self.backend.txn(txn).await.map(|_| ())
    }
}

/// Keeps the endpoints of the service `kubernetes` those of the servers that are there; part of the leader.
pub async fn publish_all(
    mut side: watch::Receiver<Side>,
    mirror: Arc<Mirror>,
    api: Arc<dyn Api>,
    shell: Arc<dyn Shell>,
) {
    let mut told: Option<BTreeSet<SocketAddr>> = None;
    loop {
        let there: BTreeSet<SocketAddr> = there(&side.borrow_and_update()).into_keys().collect();
        // An empty list would only be wrong: this server is there.
        if !there.is_empty() && told.as_ref() != Some(&there) {
            match publish(&mirror, &*api, &there).await {
                Ok(()) => told = Some(there),
                Err(status) => {
                    tracing::warn!("the endpoints of the API are not told yet: {status}");
                    shell.sleep(RETRY_MS).await;
                    continue;
                }
            }
        }
        // The server lives as long as the process.
        let _ = side.changed().await;
    }
}

/// The addresses of servers that others can reach, by port: endpoints of one list share theirs.
fn by_port(there: &BTreeSet<SocketAddr>) -> BTreeMap<u16, Vec<String>> {
    let mut by_port: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for address in there.iter().filter(|address| !address.ip().is_loopback()) {
        by_port.entry(address.port()).or_default().push(address.ip().to_string());
    }
    by_port
}

/// The same as `Endpoints`, for programs that do not know slices.
fn endpoints(there: &BTreeSet<SocketAddr>) -> Value {
    let subsets = by_port(there).into_iter().map(|(port, addresses)| {
        let addresses: Vec<Value> = addresses.into_iter().map(|address| json!({"ip": address})).collect();
        json!({
            "addresses": addresses,
            "ports": [{"name": "https", "port": (i64::from(port)), "protocol": "TCP"}],
        })
    });
    let subsets: Vec<Value> = subsets.collect();
    json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {
            "name": "kubernetes", "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": subsets,
    })
}

/// The slices for servers at these addresses: one for each port.
fn slices(there: &BTreeSet<SocketAddr>) -> BTreeMap<String, Value> {
    let mut slices = BTreeMap::new();
    for (at, (port, addresses)) in by_port(there).into_iter().enumerate() {
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
pub async fn publish(mirror: &Mirror, api: &dyn Api, there: &BTreeSet<SocketAddr>) -> Result<(), Status> {
    let wanted = slices(there);
    let view = mirror.view();
    for known in view.list(SLICES, "default") {
        let ours = known.labels().get("kubernetes.io/service-name").is_some_and(|name| name == "kubernetes");
        if ours && known.name().starts_with("kubernetes-") && !wanted.contains_key(known.name()) {
            api.call(Request::delete(SLICES, "default", known.name())).await?;
        }
    }
    for slice in wanted.into_values() {
        api.call(Request::apply(SLICES, slice, MANAGER)).await?;
    }
    api.call(Request::apply(ENDPOINTS, endpoints(there), MANAGER)).await?;
    Ok(())
}

/// Says who leads these programs' parts, in the way that programs for Kubernetes look for it; part of the leader.
pub async fn tell_leader(api: Arc<dyn Api>, shell: Arc<dyn Shell>, name: String, programs: Vec<&'static str>) {
    let since = shell.now().rfc3339_micro();
    loop {
        for program in &programs {
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": (*program), "namespace": "kube-system"},
                "spec": {
                    "holderIdentity": (&name), "leaseDurationSeconds": SAID_SECONDS, "acquireTime": (&since),
                    "renewTime": (shell.now().rfc3339_micro()),
                },
            });
            if let Err(status) = api.call(Request::apply(LEASES, lease, MANAGER)).await {
                tracing::debug!("{program}: {status}");
            }
        }
        shell.sleep(SAY_EVERY_MS).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_with_several_ports_are_several_slices() {
        let there = ["10.0.0.1:6443", "10.0.0.2:6443", "10.0.0.3:7443", "127.0.0.1:6443"];
        let there = there.iter().map(|address| address.parse().unwrap()).collect();
        let slices = slices(&there);
        assert_eq!(slices.keys().collect::<Vec<_>>(), ["kubernetes", "kubernetes-7443"]);
        let addresses = slices["kubernetes"]["endpoints"].items();
        let addresses: Vec<&str> = addresses.iter().map(|one| one["addresses"].items()[0].text()).collect();
        assert_eq!(addresses, ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(endpoints(&there)["subsets"].items().len(), 2);
    }

    #[test]
    fn the_version_goes_up_to_what_all_know_and_never_down() {
        let known = |format: u32, servers: &[u32]| {
            let servers = servers.iter().zip(1u16..);
            let there = servers.map(|(knows, port)| (SocketAddr::from(([10, 0, 0, 1], port)), Format(*knows)));
            Known { format: Format(format), at: Revision(1), entered: Revision(2), there: there.collect() }
        };
        let next = |format, servers: &[u32]| known(format, servers).next(Format(3), true).map(|format| format.0);
        assert_eq!(next(1, &[3, 3]), Some(3));
        assert_eq!(next(1, &[2, 3]), Some(2));
        assert_eq!(next(1, &[1, 3]), None);
        assert_eq!(next(3, &[1, 3]), None);
        assert_eq!(next(1, &[4, 4]), Some(3), "not beyond what the leader knows");
        assert_eq!(next(1, &[]), None);
        assert_eq!(known(1, &[]).next(Format(3), false), Some(Format(3)));
        assert_eq!(known(u32::MAX, &[3]).next(Format(3), true), None);
    }
}
