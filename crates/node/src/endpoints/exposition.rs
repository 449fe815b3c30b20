//! Numbers in Prometheus' text: the agent's own, those of `/metrics/resource`, and those of `/metrics/cadvisor`.

use std::fmt::Write;
use std::sync::PoisonError;

use base::Time;

use super::{Known, PodName};
use crate::agent::{Agent, NODES};
use crate::numbers::{NODE, Reading, links};
use crate::pod::SeenState;

/// A metric being written: its head once, then its rows.
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, of_type: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {of_type}");
    }

    fn row(&mut self, name: &str, labels: &[(&str, &str)], value: f64, at: Option<Time>) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{text}\"", if index == 0 { '{' } else { ',' });
        }
        self.0.push_str(if labels.is_empty() { " " } else { "} " });
        let _ = write!(self.0, "{value}");
        if let Some(at) = at {
            let _ = write!(self.0, " {}", at.0 / 1000);
        }
        self.0.push('\n');
    }

    fn one(&mut self, name: &str, of_type: &str, help: &str, value: f64) {
        self.head(name, of_type, help);
        self.row(name, &[], value, None);
    }
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

/// A container's row of some metric.
type Measure = fn(&Reading) -> f64;

/// A running container: pod, what is known of it, name, id, start, last sample.
type Row = (PodName, Known, meta::Str, meta::Str, Option<Time>, Reading);

fn rows(agent: &Agent) -> Vec<Row> {
    let mut all = Vec::new();
    for (pod, known) in agent.known_pods() {
        for (name, id, started, reading) in agent.readings(&known) {
            all.push((pod.clone(), known.clone(), name, id, started, reading));
        }
    }
    all
}

/// `/metrics/resource`
pub(super) fn resource(agent: &Agent) -> String {
    const NUMBERS: [(&str, &str, &str, Measure); 2] = [
        ("cpu_usage_seconds_total", "counter", "CPU time in seconds", |one| seconds(one.stats.cpu_ns)),
        ("memory_working_set_bytes", "gauge", "Memory in use, without what can be dropped at once", |one| {
            one.stats.memory_working_set_bytes as f64
        }),
    ];
    let (mut text, rows) = (Text(String::new()), rows(agent));
    for (suffix, of_type, help, measure) in NUMBERS {
        let name = format!("container_{suffix}");
        text.head(&name, of_type, help);
        for ((namespace, pod), _, container, _, _, reading) in &rows {
            let labels = [("container", container.as_str()), ("namespace", namespace), ("pod", pod)];
            text.row(&name, &labels, measure(reading), Some(reading.at));
        }
        let name = format!("pod_{suffix}");
        text.head(&name, of_type, help);
        for (key, group) in &by_pod(&rows, measure) {
            text.row(&name, &[("namespace", &key.0), ("pod", &key.1)], group.0, Some(group.1));
        }
        if let Some(reading) = agent.reading(NODE) {
            let name = format!("node_{suffix}");
            text.head(&name, of_type, help);
            text.row(&name, &[], measure(&reading), Some(reading.at));
        }
    }
    text.head("container_start_time_seconds", "gauge", "When the container started");
    for ((namespace, pod), _, container, _, started, _) in &rows {
        let labels = [("container", container.as_str()), ("namespace", namespace), ("pod", pod)];
        let Some(started) = started else { continue };
        text.row("container_start_time_seconds", &labels, started.0 as f64 / 1e6, None);
    }
    text.one("resource_scrape_error", "gauge", "1 when numbers are missing", 0.0);
    text.0
}

/// Sums of a number over the containers of each pod, and the newest time.
fn by_pod(rows: &[Row], measure: Measure) -> std::collections::BTreeMap<PodName, (f64, Time)> {
    let mut sums = std::collections::BTreeMap::new();
    for (pod, _, _, _, _, reading) in rows {
        let sum = sums.entry(pod.clone()).or_insert((0.0, Time::default()));
        *sum = (sum.0 + measure(reading), sum.1.max(reading.at));
    }
    sums
}

/// `/metrics/cadvisor`
pub(super) fn containers(agent: &Agent) -> String {
    const NUMBERS: [(&str, &str, &str, Measure); 8] = [
        ("container_cpu_usage_seconds_total", "counter", "CPU time in seconds", |one| seconds(one.stats.cpu_ns)),
        ("container_memory_working_set_bytes", "gauge", "Memory in use, without what can be dropped at once", |one| {
            one.stats.memory_working_set_bytes as f64
        }),
        ("container_memory_usage_bytes", "gauge", "All memory charged", |one| one.stats.memory_usage_bytes as f64),
        ("container_memory_rss", "gauge", "Anonymous memory", |one| one.stats.memory_rss_bytes as f64),
        ("container_spec_memory_limit_bytes", "gauge", "The limit of memory; 0 is none", |one| {
            one.stats.memory_limit_bytes as f64
        }),
        ("container_memory_failures_total", "counter", "Page faults that went to the disk", |one| {
            one.stats.major_page_faults as f64
        }),
        ("container_processes", "gauge", "Processes", |one| one.stats.pids as f64),
        ("container_oom_events_total", "counter", "Times it was out of memory", |one| one.stats.oom_kills as f64),
    ];
    let (mut text, rows) = (Text(String::new()), rows(agent));
    let mut labelled = Vec::new();
    for ((namespace, pod), known, container, id, started, reading) in &rows {
        let image = known.observed.containers.get(container).map(|seen| seen.image.as_str()).unwrap_or_default();
        let place = format!("{}/pod{}/{id}", agent.options.cgroup, known.uid);
        let labels = [
            ("container", container.to_string()),
            ("id", place),
            ("image", image.to_owned()),
            ("name", id.to_string()),
            ("namespace", namespace.to_string()),
            ("pod", pod.to_string()),
        ];
        labelled.push((labels, *started, reading));
    }
    for (name, of_type, help, measure) in NUMBERS {
        text.head(name, of_type, help);
        for (labels, _, reading) in &labelled {
            let mut labels: Vec<(&str, &str)> = labels.iter().map(|(label, text)| (*label, text.as_str())).collect();
            if name == "container_cpu_usage_seconds_total" {
                labels.insert(1, ("cpu", "total"));
            }
            text.row(name, &labels, measure(reading), Some(reading.at));
        }
    }
    text.head("container_start_time_seconds", "gauge", "When the container started");
    for (labels, started, _) in &labelled {
        let labels: Vec<(&str, &str)> = labels.iter().map(|(label, text)| (*label, text.as_str())).collect();
        if let Some(started) = started {
            text.row("container_start_time_seconds", &labels, started.0 as f64 / 1e6, None);
        }
    }
    networks(agent, &mut text);
    text.one("machine_cpu_cores", "gauge", "CPUs", agent.options.cpu_milli as f64 / 1000.0);
    text.one("machine_memory_bytes", "gauge", "Memory", agent.options.memory_bytes as f64);
    text.0
}

/// The pods' links, as the pods see them.
fn networks(agent: &Agent, text: &mut Text) {
    type Count = fn(&crate::numbers::LinkNumbers) -> u64;
    const NUMBERS: [(&str, Count); 6] = [
        ("receive_bytes", |link| link.rx_bytes),
        ("receive_packets", |link| link.rx_packets),
        ("receive_errors", |link| link.rx_errors),
        ("transmit_bytes", |link| link.tx_bytes),
        ("transmit_packets", |link| link.tx_packets),
        ("transmit_errors", |link| link.tx_errors),
    ];
    let (links, pods) = (links(), agent.known_pods());
    for (what, count) in NUMBERS {
        let name = format!("container_network_{what}_total");
        text.head(&name, "counter", "Of the pod's link");
        for ((namespace, pod), known) in &pods {
            let Some(link) = links.get(&net::PodLinks::name_of(&known.uid)) else { continue };
            let labels = [("interface", "eth0"), ("namespace", namespace.as_str()), ("pod", pod)];
            text.row(&name, &labels, count(&link.turned()) as f64, None);
        }
    }
}

/// `/metrics`
pub(super) fn agent(agent: &Agent) -> String {
    let mut text = Text(String::new());
    let pods = agent.known_pods();
    text.head("kubelet_node_name", "gauge", "The node's name");
    text.row("kubelet_node_name", &[("node", &agent.options.node)], 1.0, None);
    let ready = pods.iter().filter(|(_, known)| known.observed.sandbox_ready).count();
    text.one("kubelet_running_pods", "gauge", "Pods whose sandbox is ready", ready as f64);
    text.head("kubelet_running_containers", "gauge", "Containers by state");
    for (state, word) in
        [(SeenState::Created, "created"), (SeenState::Running, "running"), (SeenState::Exited, "exited")]
    {
        let containers = pods.iter().flat_map(|(_, known)| known.observed.containers.values());
        let count = containers.filter(|seen| seen.state == state).count();
        text.row("kubelet_running_containers", &[("container_state", word)], count as f64, None);
    }
    text.head("kubelet_terminated_containers_total", "counter", "Containers that have ended");
    for ((sort, code, reason), count) in agent.ends.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        let code = code.to_string();
        let labels = [("container_type", *sort), ("exit_code", code.as_str()), ("reason", reason.as_str())];
        text.row("kubelet_terminated_containers_total", &labels, *count as f64, None);
    }
    let registered = agent.mirror.one(NODES, "", &agent.options.node).is_some();
    text.one("kubelet_node_registered", "gauge", "1 when the server knows the node", f64::from(u8::from(registered)));
    text.one(
        "gantry_mirror_revision",
        "gauge",
        "The revision that the node has seen",
        agent.mirror.revision().0 as f64,
    );
    process(agent, &mut text);
    text.0
}

/// The agent's own process.
fn process(agent: &Agent, text: &mut Text) {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let status = read("/proc/self/status");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = resident.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(0.0);
    text.one("process_resident_memory_bytes", "gauge", "Memory of the agent", resident * 1024.0);
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let used = used.tv_sec as f64 + used.tv_nsec as f64 / 1e9;
    text.one("process_cpu_seconds_total", "counter", "CPU time of the agent", used);
    let open = std::fs::read_dir("/proc/self/fd").map(Iterator::count).unwrap_or(0);
    text.one("process_open_fds", "gauge", "Open files of the agent", open as f64);
    text.one("process_start_time_seconds", "gauge", "When the agent started", agent.started.0 as f64 / 1e6);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut text = Text(String::new());
        text.head("a", "gauge", "Help");
        text.row("a", &[("b", "x\"y\\z\n")], 1.5, Some(Time::from_seconds(2)));
        text.row("a", &[], 3.0, None);
        assert_eq!(text.0, "# HELP a Help\n# TYPE a gauge\na{b=\"x\\\"y\\\\z\\n\"} 1.5 2000\na 3\n");
    }
}
