//! The agent behind the kubelet's endpoints: which container is meant, and the numbers of pods and node.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use futures_util::future::BoxFuture;
use meta::{Reason, Status, Str, Value, json};
use runtime::Runtime;

use crate::agent::{Agent, PODS};
use crate::kubelet::{ContainerRef, Pods};
use crate::pod::Observed;

/// What was last seen of a pod, for those who ask from outside.
#[derive(Clone, Debug)]
pub struct Known {
    pub uid: Str,
    pub sandbox: Option<String>,
    pub observed: Observed,
}

/// By namespace and name.
pub type KnownPods = BTreeMap<(Str, Str), Known>;

impl Agent {
    /// Notes what was seen of a pod.
    pub fn know(&self, pod: &Value, known: Known) {
        let meta = &pod["metadata"];
        let key = (meta["namespace"].text().into(), meta["name"].text().into());
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(key, known);
    }

    /// Forgets a pod, unless another of the same name took its place.
    pub fn forget(&self, pod: &Value) {
        let meta = &pod["metadata"];
        let key = (Str::from(meta["namespace"].text()), Str::from(meta["name"].text()));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.get(&key).is_some_and(|known| known.uid == meta["uid"].text()) {
            known.remove(&key);
        }
    }

    fn find(&self, namespace: &str, pod: &str) -> Result<Known, Status> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.get(&(namespace.into(), pod.into())).cloned();
        found.ok_or_else(|| Status::not_found("", "pods", pod))
    }

    fn log_of(&self, known: &Known, container: &str, attempt: u32) -> PathBuf {
        self.dirs(&known.uid).log(container, attempt)
    }

    fn spec_of(&self, namespace: &str, pod: &str, container: &str) -> Value {
        let pod = self.mirror.one(PODS, namespace, pod).map(|pod| pod.value()).unwrap_or_default();
        crate::pod::decide::all_containers(&pod)
            .find(|one| one["name"].text() == container)
            .cloned()
            .unwrap_or_default()
    }
}

impl Pods for Agent {
    fn container(&self, namespace: &str, pod: &str, container: &str) -> Result<ContainerRef, Status> {
        let known = self.find(namespace, pod)?;
        let Some(seen) = known.observed.containers.get(container) else {
            let state = self.mirror.one(PODS, namespace, pod).map(|pod| pod.value()).unwrap_or_default();
            let statuses = state.at(&["status", "containerStatuses"]).items();
            let status = statuses.iter().find(|status| status["name"].text() == container);
            let why = status.map(|status| status.at(&["state", "waiting", "reason"]).text()).unwrap_or_default();
            let message = format!("container {container:?} in pod {pod:?} is waiting to start: {why}");
            return Err(Status::new(Reason::BadRequest, message));
        };
        let spec = self.spec_of(namespace, pod, container);
        let previous = known.observed.previous.get(container);
        Ok(ContainerRef {
            id: seen.id.to_string(),
            log_path: self.log_of(&known, container, seen.attempt),
            previous_log_path: previous.map(|previous| self.log_of(&known, container, previous.attempt)),
            tty: spec["tty"].is_true(),
            stdin: spec["stdin"].is_true(),
            stdin_once: spec["stdinOnce"].is_true(),
        })
    }

    fn sandbox(&self, namespace: &str, pod: &str) -> Result<String, Status> {
        let known = self.find(namespace, pod)?;
        known.sandbox.ok_or_else(|| Status::new(Reason::BadRequest, format!("pod {pod:?} is not running")))
    }

    fn runtime(&self) -> Arc<dyn Runtime> {
        self.runtime.clone()
    }

    fn pods_json(&self) -> Value {
        let view = self.mirror.view();
        let items: Vec<Value> = view.by(PODS, "node", &self.options.node).map(|pod| pod.value()).collect();
        json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": items})
    }

    fn stats_json(&self) -> BoxFuture<'_, Value> {
        Box::pin(async {
            let now = self.now().rfc3339();
            let mut pods = Vec::new();
            let (mut cpu, mut memory) = (0i64, 0i64);
            for ((namespace, name), known, numbers) in self.numbers().await {
                let containers: Vec<Value> = numbers
                    .iter()
                    .map(|(container, stats)| {
                        let mut entry = usage(stats, &now);
                        entry.set(&["name"], container.as_str());
                        entry
                    })
                    .collect();
                let total = numbers.iter().fold(runtime::ContainerStats::default(), |mut total, (_, stats)| {
                    total.cpu_ns += stats.cpu_ns;
                    total.memory_working_set_bytes += stats.memory_working_set_bytes;
                    total
                });
                cpu += total.cpu_ns as i64;
                memory += total.memory_working_set_bytes as i64;
                let mut entry = usage(&total, &now);
                entry.set(&["podRef"], json!({"name": name, "namespace": namespace, "uid": (known.uid)}));
                entry.set(&["containers"], containers);
                pods.push(entry);
            }
            json!({
                "node": {
                    "nodeName": (self.options.node.as_str()),
                    "cpu": {"time": (now.as_str()), "usageCoreNanoSeconds": cpu},
                    "memory": {"time": (now.as_str()), "workingSetBytes": memory, "availableBytes": (self.options.memory_bytes - memory)},
                },
                "pods": pods,
            })
        })
    }

    fn metrics_resource(&self) -> BoxFuture<'_, String> {
        Box::pin(async {
            let mut text = String::new();
            for (metric, of_type) in
                [("container_cpu_usage_seconds_total", "counter"), ("container_memory_working_set_bytes", "gauge")]
            {
                text.push_str(&format!("# TYPE {metric} {of_type}\n"));
                for ((namespace, name), _, numbers) in self.numbers().await {
                    for (container, stats) in numbers {
                        let value = match of_type {
                            "counter" => (stats.cpu_ns as f64 / 1e9).to_string(),
                            _ => stats.memory_working_set_bytes.to_string(),
                        };
                        text.push_str(&format!(
                            "{metric}{{container={container:?},namespace={namespace:?},pod={name:?}}} {value}\n"
                        ));
                    }
                }
            }
            text
        })
    }
}

type Numbers = Vec<((Str, Str), Known, Vec<(Str, runtime::ContainerStats)>)>;

impl Agent {
    /// The numbers of all running containers, by pod.
    async fn numbers(&self) -> Numbers {
        let known: Vec<_> = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.iter().map(|(key, known)| (key.clone(), known.clone())).collect()
        };
        let mut all = Numbers::new();
        for (key, known) in known {
            let mut numbers = Vec::new();
            for (name, seen) in &known.observed.containers {
                if seen.state == crate::pod::SeenState::Running
                    && let Ok(stats) = self.runtime.stats(&seen.id).await
                {
                    numbers.push((name.clone(), stats));
                }
            }
            all.push((key, known, numbers));
        }
        all
    }
}

fn usage(stats: &runtime::ContainerStats, now: &str) -> Value {
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    json!({
        "cpu": {"time": now, "usageCoreNanoSeconds": (number(stats.cpu_ns))},
        "memory": {
            "time": now, "workingSetBytes": (number(stats.memory_working_set_bytes)),
            "usageBytes": (number(stats.memory_usage_bytes)), "rssBytes": (number(stats.memory_rss_bytes)),
        },
    })
}
