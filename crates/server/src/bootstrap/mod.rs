//! What every cluster has from its first moment: namespaces, default roles and bindings, priorities, flow control, the
//! service of the API itself.
//!
//! Objects that are missing are created at every start, and default roles that lost permissions get them back, unless
//! they are annotated not to be reconciled. Everything goes through the one pipeline.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use meta::{Reason, Status, Value, json};

use crate::Server;
use crate::aggregation::registration::MANAGED;
use crate::ca::write_private;
use crate::discovery;
use crate::error::Error;
use crate::local;

/// Default roles, bindings, priority classes and flow control, one object a line.
const OBJECTS: &str = include_str!("objects.json");
const NAMESPACES: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

/// A secret of `dir`, made at the first start; one whose file was removed is made anew.
pub fn secret(dir: &Path, name: &str) -> Result<String, Error> {
    let path = dir.join(name);
    if path.exists() {
        let text = std::fs::read_to_string(&path).map_err(|error| Error::File { what: "read", path, error })?;
        return Ok(text.trim().to_owned());
    }
    let token = format!("{}.{}", crate::uid::new(), crate::uid::new()).replace('-', "");
    write_private(&path, token.as_bytes())?;
    Ok(token)
}

/// Creates what is missing.
pub async fn run(server: &Arc<Server>) -> Result<(), Error> {
    let failed = |what: &Value, status: &Status| Error::Bootstrap {
        what: format!("{} {}", what["kind"].text(), what.at(&["metadata", "name"]).text()),
        why: status.message().to_owned(),
    };
    // All at once: the store puts them into few batches.
    let all = async |objects: Vec<Value>| {
        let made = objects.into_iter().map(async |object| {
            let result = ensure(server, object.clone()).await;
            (object, result)
        });
        let made = futures_util::future::join_all(made).await;
        made.into_iter().try_for_each(|(object, result)| result.map_err(|status| failed(&object, &status)))
    };
    let namespace = |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    all(NAMESPACES.map(namespace).into()).await?;
    let objects = Value::parse(OBJECTS.as_bytes())
        .map_err(|error| Error::Bootstrap { what: "the default objects".to_owned(), why: error.to_string() })?;
    let objects = objects.items().iter().cloned().chain(service_objects(server));
    all(objects.chain(api_services(server)).collect()).await
}

async fn ensure(server: &Arc<Server>, object: Value) -> Result<(), Status> {
    let (group, version) = split_version(object["apiVersion"].text());
    let registry = server.storage.registry();
    let Some(kind) = registry.by_kind(group, version, object["kind"].text()) else {
        return Err(Status::internal(format!(
            "the default objects have a kind that is not served: {}",
            object["kind"].text()
        )));
    };
    let meta = &object["metadata"];
    let (namespace, name) = (meta["namespace"].text(), meta["name"].text());
    if let Some(found) = server.one(kind.resource, namespace, name) {
        return restore(server, kind.resource, &found.value(), &object).await;
    }
    let made = local::call(server, &local::system(), client::Request::create(kind.resource, object.clone())).await;
    let Err(status) = made else { return Ok(()) };
    // Another server of the cluster may have been faster with it, or with what it takes (an address).
    server.storage.fresh().await?;
    match server.one(kind.resource, namespace, name) {
        Some(_) => Ok(()),
        None => Err(status),
    }
}

/// Default roles regain rules that were taken from them; nothing that was added is removed.
async fn restore(server: &Arc<Server>, resource: meta::Resource, found: &Value, wanted: &Value) -> Result<(), Status> {
    let keeps_itself =
        found.at(&["metadata", "annotations", "rbac.authorization.kubernetes.io/autoupdate"]).text() == "true";
    if !keeps_itself || wanted.get("aggregationRule").is_some() {
        return Ok(());
    }
    let mut repaired = found.clone();
    for list in ["rules", "subjects"] {
        let missing: Vec<Value> =
            wanted[list].items().iter().filter(|item| !found[list].items().contains(item)).cloned().collect();
        if !missing.is_empty() {
            repaired.make(&[list]).make_list().extend(missing);
        }
    }
    if repaired == *found {
        return Ok(());
    }
    match local::call(server, &local::system(), client::Request::update(resource, repaired)).await {
        // Another server of the cluster repairs it, too.
        Err(status) if status.reason() == Reason::Conflict => Ok(()),
        other => other.map(|_| ()),
    }
}

/// `("apps", "v1")` of `apps/v1`.
pub fn split_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// The range of service addresses, and the service of the API.
fn service_objects(server: &Server) -> Vec<Value> {
    let cidr = server.options.service_cidr.as_str();
    let first = api::address::first_of(cidr).unwrap_or_else(|| "10.96.0.1".to_owned());
    let port = server.options.advertise.rsplit(':').next().and_then(|port| port.parse::<i64>().ok()).unwrap_or(6443);
    vec![
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
            "spec": {"cidrs": [cidr]},
        }),
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": "kubernetes", "namespace": "default",
                "labels": {"component": "apiserver", "provider": "kubernetes"},
            },
            "spec": {
                "clusterIP": (&first), "type": "ClusterIP",
                "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}],
            },
        }),
    ]
}

/// One `APIService` per group and version that is built in, as clients of aggregation expect; those of definitions come
/// and go with them (`aggregation::registration`).
fn api_services(server: &Server) -> Vec<Value> {
    let registry = server.storage.registry();
    let own = registry.of("").map(|entry| (&entry.head.names.group, &entry.head.names.version));
    let (own, groups): (BTreeSet<_>, _) = (own.collect(), registry.groups());
    let named = groups.iter().flat_map(|(group, versions)| versions.iter().map(move |version| (group, version)));
    named
        .filter(|named| own.contains(named))
        .map(|(group, version)| {
            let mut spec = json!({
                "version": version,
                "groupPriorityMinimum": (if group.is_empty() { 18_000 } else { discovery::GROUP_PRIORITY }),
                "versionPriority": (if group.is_empty() { 1 } else { discovery::VERSION_PRIORITY }),
            });
            if !group.is_empty() {
                spec.set(&["group"], group);
            }
            let mut service = json!({
                "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
                "metadata": {"name": (format!("{version}.{group}"))}, "spec": spec,
            });
            service.set(&["metadata", "labels", MANAGED], "onstart");
            service
        })
        .collect()
}
