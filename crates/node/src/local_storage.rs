//! Limits on what a pod puts on the node's disk: `ephemeral-storage` of its containers, and `sizeLimit` of its volumes. A pod
//! that has more is evicted.
//!
//! Only pods with such a limit are measured. Not here: volumes in memory, whose file system has the limit as its size,
//! and what is to go when the disk itself is full.

use std::collections::BTreeMap;
use std::time::Duration;

use meta::{Quantity, Str, Value};
use runtime::disk_usage;

use crate::agent::Agent;
use crate::pod::Observed;
use crate::pod::decide::all_containers;
use crate::volumes::path_of;

/// Between two looks at a pod.
pub const LOOK_EVERY: Duration = Duration::from_secs(10);
/// A look that takes long is followed by a pause of this many times as long.
pub const PAUSE_FACTOR: u32 = 20;

/// Bytes on the disk, by the name of container or volume.
#[derive(Debug, Default)]
struct Usage {
    /// What a container wrote into its own files, and its logs.
    containers: BTreeMap<Str, u64>,
    volumes: BTreeMap<Str, u64>,
}

fn limit(container: &Value) -> Option<Quantity> {
    Quantity::given(&container["resources"]["limits"]["ephemeral-storage"])
}

/// The volumes of the pod's own that lie on the disk, with their limits.
fn volumes(pod: &Value) -> impl Iterator<Item = (&Value, Option<Quantity>)> {
    let volumes = pod.at(&["spec", "volumes"]).items().iter();
    volumes.filter_map(|volume| {
        let source = volume.get("emptyDir").filter(|source| source["medium"].text().is_empty())?;
        Some((volume, Quantity::given(&source["sizeLimit"])))
    })
}

/// Whether anything of the pod has a limit.
pub fn is_limited(pod: &Value) -> bool {
    all_containers(pod).any(|container| limit(container).is_some()) || volumes(pod).any(|(_, limit)| limit.is_some())
}

/// Measures a pod, and says what it has too much of.
pub async fn excess(agent: &Agent, pod: &Value, observed: &Observed) -> Option<String> {
    let dirs = agent.dirs(pod.at(&["metadata", "uid"]).text());
    let mut usage = Usage::default();
    for (name, seen) in &observed.containers {
        // One that is being removed has nothing any more.
        let written = agent.runtime.stats(&seen.id).await.map(|stats| stats.writable_bytes).unwrap_or_default();
        usage.containers.insert(name.clone(), written);
    }
    let logs: Vec<_> = observed.containers.keys().map(|name| (name.clone(), dirs.logs.join(name.as_str()))).collect();
    let folders: Vec<_> =
        volumes(pod).map(|(volume, _)| (Str::from(volume["name"].text()), path_of(volume, &dirs))).collect();
    let measured = tokio::task::spawn_blocking(move || {
        let measure = |(name, path): (Str, std::path::PathBuf)| (name, disk_usage(&path).0);
        let logs: Vec<(Str, u64)> = logs.into_iter().map(measure).collect();
        (logs, folders.into_iter().map(measure).collect())
    });
    // It ends early only with the process.
    let (logs, folders) = measured.await.ok()?;
    usage.volumes = folders;
    for (name, bytes) in logs {
        *usage.containers.entry(name).or_default() += bytes;
    }
    judge(pod, &usage)
}

/// What a pod has too much of: one of its volumes, all together, or one of its containers.
fn judge(pod: &Value, usage: &Usage) -> Option<String> {
    let exceeds = |bytes: u64, limit: &Quantity| i64::try_from(bytes).is_ok_and(|bytes| bytes > limit.value());
    for (volume, limit) in volumes(pod) {
        let (name, limit) = (volume["name"].text(), limit.filter(|limit| limit.value() > 0));
        let bytes = usage.volumes.get(name).copied().unwrap_or(0);
        if limit.is_some_and(|limit| exceeds(bytes, &limit)) {
            let told = volume.at(&["emptyDir", "sizeLimit"]).text();
            return Some(format!("Usage of EmptyDir volume {name:?} exceeds the limit {told:?}."));
        }
    }
    let limits = pod.at(&["spec", "containers"]).items().iter().filter_map(limit);
    let all = usage.containers.values().chain(usage.volumes.values()).sum();
    if let Some(total) = limits.reduce(|sum, limit| sum.plus(&limit)).filter(|total| exceeds(all, total)) {
        return Some(format!("Pod ephemeral local storage usage exceeds the total limit of containers {total}."));
    }
    all_containers(pod).find_map(|container| {
        let (name, limit) = (container["name"].text(), limit(container)?);
        let bytes = usage.containers.get(name).copied().unwrap_or(0);
        let told = container["resources"]["limits"]["ephemeral-storage"].text();
        exceeds(bytes, &limit).then(|| format!("Container {name} exceeded its local ephemeral storage limit {told:?}."))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::json;

    #[test]
    fn what_is_too_much_is_named() {
        let container = |name: &str, limit: Option<&str>| {
            let mut container = json!({"name": name});
            if let Some(limit) = limit {
                container.set(&["resources", "limits", "ephemeral-storage"], limit);
            }
            container
        };
        let pod = |containers: Vec<Value>, volumes: Vec<Value>| json!({"spec": {"containers": containers, "volumes": volumes}});
        let check = |pod: &Value, containers: &[(&str, u64)], volumes: &[(&str, u64)], expected: Option<&str>| {
            let named = |list: &[(&str, u64)]| list.iter().map(|(name, bytes)| (Str::from(*name), *bytes)).collect();
            let usage = Usage { containers: named(containers), volumes: named(volumes) };
            let found = judge(pod, &usage);
            assert_eq!(found.is_some(), expected.is_some(), "{found:?}");
            assert!(found.unwrap_or_default().contains(expected.unwrap_or_default()), "{expected:?}");
        };
        let free = pod(vec![container("a", None)], vec![json!({"name": "v", "emptyDir": {}})]);
        assert!(!is_limited(&free));
        check(&free, &[("a", 1 << 40)], &[("v", 1 << 40)], None);
        let sized = pod(
            vec![container("a", None)],
            vec![
                json!({"name": "v", "emptyDir": {"sizeLimit": "10Ki"}}),
                json!({"name": "m", "emptyDir": {"sizeLimit": "1", "medium": "Memory"}}),
            ],
        );
        assert!(is_limited(&sized));
        check(&sized, &[("a", 1 << 40)], &[("v", 10 << 10)], None);
        check(&sized, &[], &[("v", (10 << 10) + 1)], Some("volume \"v\" exceeds the limit \"10Ki\""));
        let two = pod(
            vec![container("a", Some("5Mi")), container("b", Some("1Mi"))],
            vec![json!({"name": "v", "emptyDir": {}})],
        );
        check(&two, &[("a", 5 << 20), ("b", 1 << 20)], &[], None);
        check(&two, &[("a", 1 << 20), ("b", 1 << 20)], &[("v", 5 << 20)], Some("total limit of containers 6Mi"));
        check(&two, &[("a", 1 << 20), ("b", 2 << 20)], &[], Some("Container b exceeded"));
    }
}
