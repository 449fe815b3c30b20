//! `/stats/summary`: the numbers of node, pods and containers as the kubelet's clients know them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::PoisonError;

use meta::{Str, Value, json};
use runtime::ContainerStats;

use super::{Known, PodName};
use crate::agent::Agent;
use crate::numbers::{LinkNumbers, NODE, Reading, links};
use crate::pod::SeenState;

/// The node's own link.
const NODE_LINK: &str = "eth0";

impl Agent {
    /// The last sample of a container, or of the node.
    pub(super) fn reading(&self, key: &str) -> Option<Reading> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).newest(key)
    }

    /// The running containers of a pod, each with its last sample.
    pub(super) fn readings(&self, known: &Known) -> Vec<(Str, Str, Option<base::Time>, Reading)> {
        let running = known.observed.containers.iter().filter(|(_, seen)| seen.state == SeenState::Running);
        running
            .filter_map(|(name, seen)| Some((name.clone(), seen.id.clone(), seen.started, self.reading(&seen.id)?)))
            .collect()
    }
}

/// The `Summary`; with `brief`, CPU and memory only.
pub(super) async fn summary(agent: &Agent, brief: bool) -> Value {
    let links = if brief { BTreeMap::new() } else { links() };
    let mut pods = Vec::new();
    for (name, known) in agent.known_pods() {
        pods.push(pod(agent, &name, &known, (!brief).then_some(&links)).await);
    }
    let mut node = json!({"nodeName": (agent.options.node.as_str()), "startTime": (agent.started.rfc3339())});
    if let Some(reading) = agent.reading(NODE) {
        usage(&mut node, &reading);
        let free = agent.options.memory_bytes - number(reading.stats.memory_working_set_bytes);
        node.set(&["memory", "availableBytes"], free.max(0));
    }
    if !brief {
        let now = agent.now().rfc3339();
        node.set(&["fs"], disk(&agent.options.data, &now));
        let mut images = disk(&agent.options.data, &now);
        let used = agent.runtime.image_usage().await.unwrap_or_default();
        images.set(&["usedBytes"], number(used.bytes));
        node.set(&["runtime"], json!({"imageFs": images}));
        if let Some(link) = links.get(NODE_LINK) {
            node.set(&["network"], network(NODE_LINK, *link, &now));
        }
        let read = |path: &str| std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<i64>().ok());
        let running = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let running = running.split(' ').nth(3).and_then(|word| word.split_once('/')?.1.parse::<i64>().ok());
        if let (Some(most), Some(now_running)) = (read("/proc/sys/kernel/pid_max"), running) {
            node.set(&["rlimit"], json!({"time": (now), "maxpid": most, "curproc": now_running}));
        }
    }
    json!({"node": node, "pods": pods})
}

async fn pod(agent: &Agent, name: &PodName, known: &Known, links: Option<&BTreeMap<String, LinkNumbers>>) -> Value {
    let (mut containers, mut total) = (Vec::new(), Reading::default());
    let mut rated = true;
    let mut disk_bytes = 0;
    for (container, id, started, reading) in agent.readings(known) {
        let mut entry = json!({"name": container});
        if let Some(started) = started {
            entry.set(&["startTime"], started.rfc3339());
        }
        usage(&mut entry, &reading);
        add(&mut total, &reading, &mut rated);
        if links.is_some()
            && let Ok(stats) = agent.runtime.stats(&id).await
        {
            disk_bytes += stats.writable_bytes;
            let at = agent.now().rfc3339();
            entry.set(
                &["rootfs"],
                json!({
                    "time": at, "usedBytes": (number(stats.writable_bytes)),
                    "inodesUsed": (number(stats.writable_inodes)),
                }),
            );
        }
        containers.push(entry);
    }
    let (namespace, name) = name;
    let mut entry = json!({"podRef": {"name": name, "namespace": namespace, "uid": (&known.uid)}});
    let started = containers.iter().map(|one| one["startTime"].text().to_owned()).filter(|text| !text.is_empty()).min();
    if let Some(started) = started {
        entry.set(&["startTime"], started);
    }
    if !containers.is_empty() {
        total.cpu_nano_cores = total.cpu_nano_cores.filter(|_| rated);
        usage(&mut entry, &total);
        entry.set(&["process_stats"], json!({"process_count": (number(total.stats.pids))}));
    }
    entry.set(&["containers"], containers);
    if let Some(links) = links {
        let now = agent.now().rfc3339();
        entry.set(&["ephemeral-storage"], json!({"time": (now.as_str()), "usedBytes": (number(disk_bytes))}));
        if let Some(link) = links.get(&net::PodLinks::name_of(&known.uid)) {
            entry.set(&["network"], network("eth0", link.turned(), &now));
        }
    }
    entry
}

/// Adds a container's sample to its pod's. The pod has a rate only when all its containers have.
fn add(total: &mut Reading, one: &Reading, rated: &mut bool) {
    let ContainerStats { cpu_ns, memory_working_set_bytes, memory_usage_bytes, memory_rss_bytes, pids, .. } = one.stats;
    total.at = total.at.max(one.at);
    total.stats.cpu_ns += cpu_ns;
    total.stats.memory_working_set_bytes += memory_working_set_bytes;
    total.stats.memory_usage_bytes += memory_usage_bytes;
    total.stats.memory_rss_bytes += memory_rss_bytes;
    total.stats.page_faults += one.stats.page_faults;
    total.stats.major_page_faults += one.stats.major_page_faults;
    total.stats.pids += pids;
    match one.cpu_nano_cores {
        Some(rate) => total.cpu_nano_cores = Some(total.cpu_nano_cores.unwrap_or(0) + rate),
        None => *rated = false,
    }
    total.window_ms = total.window_ms.max(one.window_ms);
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn usage(entry: &mut Value, reading: &Reading) {
    let (at, stats) = (reading.at.rfc3339(), &reading.stats);
    let mut cpu = json!({"time": (at.as_str()), "usageCoreNanoSeconds": (number(stats.cpu_ns))});
    if let Some(rate) = reading.cpu_nano_cores {
        cpu.set(&["usageNanoCores"], number(rate));
        // Ours: over how long the rate is, for whoever tells it on.
        cpu.set(&["windowMilliseconds"], number(reading.window_ms));
    }
    entry.set(&["cpu"], cpu);
    entry.set(
        &["memory"],
        json!({
            "time": at, "workingSetBytes": (number(stats.memory_working_set_bytes)),
            "usageBytes": (number(stats.memory_usage_bytes)), "rssBytes": (number(stats.memory_rss_bytes)),
            "pageFaults": (number(stats.page_faults)), "majorPageFaults": (number(stats.major_page_faults)),
        }),
    );
}

fn network(name: &str, link: LinkNumbers, now: &str) -> Value {
    let mut one = json!({
        "name": name, "rxBytes": (number(link.rx_bytes)), "rxErrors": (number(link.rx_errors)),
        "txBytes": (number(link.tx_bytes)), "txErrors": (number(link.tx_errors)),
    });
    let interfaces = vec![one.clone()];
    one.set(&["time"], now);
    one.set(&["interfaces"], interfaces);
    one
}

/// The file system that a folder is on.
fn disk(path: &Path, now: &str) -> Value {
    let Ok(found) = rustix::fs::statvfs(path) else { return json!({"time": now}) };
    let bytes = |blocks: u64| number(blocks.saturating_mul(found.f_frsize));
    json!({
        "time": now, "availableBytes": (bytes(found.f_bavail)), "capacityBytes": (bytes(found.f_blocks)),
        "usedBytes": (bytes(found.f_blocks.saturating_sub(found.f_bfree))), "inodesFree": (number(found.f_ffree)),
        "inodes": (number(found.f_files)), "inodesUsed": (number(found.f_files.saturating_sub(found.f_ffree))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_the_sum_of_its_containers() {
        let one = |cpu_ns, rate| Reading {
            stats: ContainerStats { cpu_ns, memory_working_set_bytes: 10, ..ContainerStats::default() },
            cpu_nano_cores: rate,
            window_ms: 5_000,
            ..Reading::default()
        };
        let (mut total, mut rated) = (Reading::default(), true);
        add(&mut total, &one(5, Some(2)), &mut rated);
        add(&mut total, &one(6, Some(3)), &mut rated);
        assert_eq!((total.stats.cpu_ns, total.stats.memory_working_set_bytes), (11, 20));
        assert_eq!((total.cpu_nano_cores, rated), (Some(5), true));
        add(&mut total, &one(1, None), &mut rated);
        assert!(!rated);
    }

    #[test]
    fn a_file_system_is_told_with_its_inodes() {
        let found = disk(Path::new("/proc/self"), "now");
        assert_eq!(found["time"].text(), "now");
        let found = disk(Path::new("/"), "now");
        let of = |key: &str| found[key].as_int().unwrap();
        assert!(of("capacityBytes") >= of("usedBytes") && of("inodes") >= of("inodesUsed"));
    }
}
