//! CPU, memory, network and disk of the node and its pods: sampled all the time, so that whoever asks gets a rate over
//! a window at once.
//!
//! [`Samples`] is pure: what was read goes in with its time, what is told comes out. Reading is the agent's task
//! [`keep`]. Not here: the texts in which numbers are told (`endpoints`).

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use base::Time;
use meta::Str;
use runtime::ContainerStats;

use crate::agent::Agent;
use crate::pod::SeenState;

/// How often everything is read.
const EVERY: Duration = Duration::from_secs(5);
/// Samples kept of one thing; the window is as long as the time between the oldest and the newest.
const KEPT: usize = 4;
/// A window shorter than this says nothing.
const WINDOW_MIN_MS: u64 = 1_000;
/// The key of the node itself; containers have their ids.
pub const NODE: &str = "";

/// What is known of one thing at one time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    pub at: Time,
    pub stats: ContainerStats,
    /// Billionths of a CPU, over the window; `None` before there is one.
    pub cpu_nano_cores: Option<u64>,
    pub window_ms: u64,
}

/// The last samples of everything, by key.
#[derive(Debug, Default)]
pub struct Samples(BTreeMap<Str, VecDeque<(Time, ContainerStats)>>);

impl Samples {
    /// Notes what was read. CPU time that went back is of another process: the window begins anew.
    pub fn note(&mut self, key: &str, at: Time, stats: ContainerStats) {
        let ring = self.0.entry(key.into()).or_default();
        if ring.back().is_some_and(|(before, last)| last.cpu_ns > stats.cpu_ns || *before >= at) {
            ring.clear();
        }
        if ring.len() == KEPT {
            ring.pop_front();
        }
        ring.push_back((at, stats));
    }

    /// Forgets all but these keys.
    pub fn keep(&mut self, keys: &dyn Fn(&str) -> bool) {
        self.0.retain(|key, _| keys(key));
    }

    pub fn newest(&self, key: &str) -> Option<Reading> {
        let ring = self.0.get(key)?;
        let ((first, oldest), (at, newest)) = (ring.front()?, ring.back()?);
        let window_ms = at.ms_since(*first);
        let used = newest.cpu_ns - oldest.cpu_ns;
        let rate = (window_ms >= WINDOW_MIN_MS).then(|| used.saturating_mul(1_000) / window_ms);
        Some(Reading { at: *at, stats: *newest, cpu_nano_cores: rate, window_ms })
    }
}

/// Reads everything again and again, for as long as the process lives.
pub async fn keep(agent: Arc<Agent>) {
    loop {
        sample(&agent).await;
        tokio::time::sleep(EVERY).await;
    }
}

async fn sample(agent: &Agent) {
    let running: Vec<Str> = {
        let known = agent.known.lock().unwrap_or_else(PoisonError::into_inner);
        let containers = known.values().flat_map(|pod| pod.observed.containers.values());
        containers.filter(|seen| seen.state == SeenState::Running).map(|seen| seen.id.clone()).collect()
    };
    let mut read = Vec::with_capacity(running.len() + 1);
    for id in &running {
        // One that has just ended has no numbers.
        if let Ok(stats) = agent.runtime.usage(id).await {
            read.push((id.clone(), agent.now(), stats));
        }
    }
    read.push((NODE.into(), agent.now(), node(agent).await));
    let mut samples = agent.samples.lock().unwrap_or_else(PoisonError::into_inner);
    for (key, at, stats) in read {
        samples.note(&key, at, stats);
    }
    samples.keep(&|key| key == NODE || running.iter().any(|id| id == key));
}

/// The node's own numbers: of its cgroup, or of the whole machine when it has it for itself.
async fn node(agent: &Agent) -> ContainerStats {
    match &agent.options.node_cgroup {
        Some(path) => agent.runtime.cgroup_usage(path).await.unwrap_or_default(),
        None => {
            let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
            machine(&read("/proc/stat"), &read("/proc/meminfo"))
        }
    }
}

/// The machine's numbers from the kernel's texts.
fn machine(stat: &str, meminfo: &str) -> ContainerStats {
    /// The kernel counts in hundredths of a second, whatever its own clock.
    const TICK_NS: u64 = 10_000_000;
    let ticks: Vec<u64> = stat
        .lines()
        .find_map(|line| line.strip_prefix("cpu "))
        .map(|line| line.split_whitespace().filter_map(|word| word.parse().ok()).collect())
        .unwrap_or_default();
    // user, nice, system, (idle, iowait,) irq, softirq, steal
    let busy: u64 =
        ticks.iter().enumerate().filter(|(at, _)| matches!(at, 0..=2 | 5..=7)).map(|(_, ticks)| ticks).sum();
    let field = |name: &str| -> u64 {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
    };
    let total = field("MemTotal");
    ContainerStats {
        cpu_ns: busy * TICK_NS,
        memory_working_set_bytes: total.saturating_sub(field("MemAvailable")),
        memory_usage_bytes: total.saturating_sub(field("MemFree")),
        memory_rss_bytes: field("AnonPages"),
        ..ContainerStats::default()
    }
}

/// Bytes, packets and errors of one link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkNumbers {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
}

impl LinkNumbers {
    /// The same link, seen from its other end.
    pub fn turned(self) -> LinkNumbers {
        LinkNumbers {
            rx_bytes: self.tx_bytes,
            rx_packets: self.tx_packets,
            rx_errors: self.tx_errors,
            tx_bytes: self.rx_bytes,
            tx_packets: self.rx_packets,
            tx_errors: self.rx_errors,
        }
    }
}

/// The links of the node's network namespace, which is that of the process.
pub fn links() -> BTreeMap<String, LinkNumbers> {
    links_of(&std::fs::read_to_string("/proc/net/dev").unwrap_or_default())
}

fn links_of(text: &str) -> BTreeMap<String, LinkNumbers> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines
        .map(|(name, numbers)| {
            let of: Vec<u64> = numbers.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            let at = |index: usize| of.get(index).copied().unwrap_or(0);
            let numbers = LinkNumbers {
                rx_bytes: at(0),
                rx_packets: at(1),
                rx_errors: at(2),
                tx_bytes: at(8),
                tx_packets: at(9),
                tx_errors: at(10),
            };
            (name.trim().to_owned(), numbers)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(cpu_ns: u64) -> ContainerStats {
        ContainerStats { cpu_ns, ..ContainerStats::default() }
    }

    #[test]
    fn rates_are_over_the_window() {
        let mut samples = Samples::default();
        assert_eq!(samples.newest("a"), None);
        samples.note("a", Time::from_seconds(100), cpu(5_000_000_000));
        assert_eq!(samples.newest("a").unwrap().cpu_nano_cores, None);
        samples.note("a", Time::from_seconds(105), cpu(6_000_000_000));
        let reading = samples.newest("a").unwrap();
        assert_eq!((reading.cpu_nano_cores, reading.window_ms), (Some(200_000_000), 5_000));
        for second in [110, 115, 120] {
            samples.note("a", Time::from_seconds(second), cpu(6_000_000_000));
        }
        let reading = samples.newest("a").unwrap();
        assert_eq!((reading.cpu_nano_cores, reading.window_ms), (Some(0), 15_000));
        // A new process: its time is less than what was.
        samples.note("a", Time::from_seconds(125), cpu(1));
        assert_eq!(samples.newest("a").unwrap().cpu_nano_cores, None);
        samples.keep(&|key| key == "b");
        assert_eq!(samples.newest("a"), None);
    }

    #[test]
    fn texts_of_the_kernel_are_read() {
        let stat = "cpu  100 1 10 5000 7 3 2 1 0 0\ncpu0 1 1 1 1\n";
        let memory = "MemTotal:       1000 kB\nMemFree:         200 kB\nMemAvailable:    600 kB\nAnonPages:  50 kB\n";
        let stats = machine(stat, memory);
        assert_eq!(stats.cpu_ns, 117 * 10_000_000);
        assert_eq!((stats.memory_working_set_bytes, stats.memory_rss_bytes), (400 * 1024, 50 * 1024));
        assert_eq!(machine("", ""), ContainerStats::default());
        let text = "Inter-|   Receive\n face |bytes packets\n  eth0: 10 2 0 0 0 0 0 0 20 4 1 0 0 0 0 0\n";
        let eth0 = links_of(text)["eth0"];
        assert_eq!((eth0.rx_bytes, eth0.tx_packets, eth0.tx_errors), (10, 4, 1));
        assert_eq!(eth0.turned().tx_bytes, 10);
    }
}
