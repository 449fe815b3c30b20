//! What one more of each thing costs, at three sizes: processor time of the server for making it, and memory that it holds
//! from then on. And memory under churn: whether it still grows when all histories are full.

use std::sync::Arc;
use std::time::Duration;

use meta::json;

use crate::child::Server;
use crate::cluster::{Task, watch};
use crate::door::{Ask, Line};
use crate::error::Error;
use crate::frame::{Bench, Run, Want, figure, now, option, runtime};
use crate::load::{self, Maker, Until};
use crate::shapes::{NAMESPACE, node, node_name, pod_name, pods_path, usual_pod};

/// Each size is so many times the one before.
const FACTOR: usize = 4;
const SIZES: u32 = 3;
/// Streams that share a connection.
const SHARED: usize = 100;
/// What follows a creation belongs to its cost: the server is looked at this often until it rests.
const LOOK: Duration = Duration::from_millis(500);
/// It rests when it used at most this much of one processor meanwhile.
const REST_PERCENT: u64 = 4;
/// Nodes of which pods are.
const PODS_NODES: usize = 4;
/// It need not rest for ever.
const LOOKS_MAX: usize = 120;

pub const BENCH: Bench = Bench {
    name: "growth",
    about: "What one more node, pod, service, custom resource definition, event and watch costs, at three sizes; churn",
    options: &[
        option("nodes", "250", "4", "Nodes of the first size; the others are 4 and 16 times as many"),
        option("pods", "2000", "8", "Pods of the first size"),
        option("services", "250", "4", "Services of the first size"),
        option("crds", "63", "2", "Custom resource definitions of the first size"),
        option("events", "2000", "8", "Events of the first size"),
        option("watches", "250", "4", "Watches of the first size"),
        option("churn", "150000", "30", "Objects that are made and deleted"),
        option("outstanding", "64", "4", "Requests at once"),
    ],
    figures: &[
        figure("nodes_growth_per_size", Want::AtMost(1.5, 1.1)),
        figure("pods_growth_per_size", Want::AtMost(1.5, 1.1)),
        figure("services_growth_per_size", Want::AtMost(1.5, 1.1)),
        figure("crds_growth_per_size", Want::AtMost(1.5, 1.1)),
        figure("events_growth_per_size", Want::AtMost(1.5, 1.1)),
        figure("bytes_per_crd", Want::AtMost(20_000.0, 20_000.0)),
        figure("churn_late_growth_mb", Want::AtMost(20.0, 5.0)),
    ],
    peer: None,
    needs_root: false,
    run,
};

/// A thing that is made by one request.
struct Thing {
    name: &'static str,
    /// Nodes that are there first.
    nodes: usize,
    make: fn(usize) -> Ask,
}

const THINGS: &[Thing] = &[
    Thing { name: "nodes", nodes: 0, make: |number| Ask::post(crate::shapes::NODES, &node(number, 3, now())) },
    Thing {
        name: "pods",
        nodes: PODS_NODES,
        make: |number| {
            let mut pod = usual_pod(&pod_name("pod", number));
            pod.set(&["spec", "nodeName"], node_name(number % PODS_NODES));
            Ask::post(&pods_path(NAMESPACE), &pod)
        },
    },
    Thing {
        name: "services",
        nodes: 0,
        make: |number| {
            let name = format!("service-{number}");
            let service = json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": (name.as_str()), "namespace": NAMESPACE},
                "spec": {"selector": {"app": (name.as_str())}, "ports": [{"name": "http", "port": 80}]},
            });
            Ask::post(&format!("/api/v1/namespaces/{NAMESPACE}/services"), &service)
        },
    },
    Thing { name: "crds", nodes: 0, make: definition },
    Thing {
        name: "events",
        nodes: 0,
        make: |number| {
            let at = now().rfc3339();
            let event = json!({
                "apiVersion": "v1", "kind": "Event",
                "metadata": {"name": (format!("event-{number}")), "namespace": NAMESPACE},
                "involvedObject": {"apiVersion": "v1", "kind": "Pod", "name": (pod_name("pod", number)), "namespace": NAMESPACE},
                "reason": "Started", "message": "Started container web", "type": "Normal", "count": 1,
                "firstTimestamp": (at.as_str()), "lastTimestamp": (at.as_str()),
                "source": {"component": "kubelet", "host": (node_name(0))},
                "reportingComponent": "kubelet", "reportingInstance": (node_name(0)),
            });
            Ask::post(&format!("/api/v1/namespaces/{NAMESPACE}/events"), &event)
        },
    },
];

/// A definition with a schema of the usual sort.
fn definition(number: usize) -> Ask {
    let (plural, kind) = (format!("things{number}"), format!("Thing{number}"));
    let text = || json!({"type": "string", "description": "what it is called"});
    let condition = json!({
        "type": "object", "required": ["type", "status"],
        "properties": {"type": (text()), "status": (text()), "reason": (text()), "message": (text())},
    });
    let spec = json!({
        "type": "object", "required": ["size"],
        "properties": {
            "size": {"type": "integer", "minimum": 0, "maximum": 100}, "image": (text()), "version": (text()),
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "replicas": {"type": "integer", "default": 1},
            "storage": {"type": "object", "properties": {"class": (text()), "size": (text())}},
        },
    });
    let status = json!({
        "type": "object",
        "properties": {"ready": {"type": "integer"}, "conditions": {"type": "array", "items": condition}},
    });
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": (format!("{plural}.bench.example.com"))},
        "spec": {
            "group": "bench.example.com", "scope": "Namespaced",
            "names": {"plural": (plural.as_str()), "singular": (format!("thing{number}")), "kind": (kind.as_str()), "listKind": (format!("{kind}List"))},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec, "status": status}}},
            }],
        },
    });
    Ask::post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition)
}

fn run(run: &mut Run) -> Result<(), Error> {
    runtime()?.block_on(async {
        watches(run, &fresh(run, "watches").await?).await?;
        for thing in THINGS {
            things(run, &fresh(run, thing.name).await?, thing).await?;
        }
        churn(run, &fresh(run, "churn").await?).await
    })
}

/// A server of its own: what was made before on it, and what it still holds of that, would hide what is taken.
async fn fresh(run: &Run, name: &str) -> Result<Server, Error> {
    let server = Server::start(run, name, &[]).await?;
    server.door.namespace(NAMESPACE).await?;
    rested(&server).await;
    Ok(server)
}

async fn things(run: &mut Run, server: &Server, thing: &'static Thing) -> Result<(), Error> {
    let (first, outstanding) = (run.count(thing.name)?, run.count("outstanding")?);
    for number in 0..thing.nodes {
        server.door.two().await?.ask(&Ask::post(crate::shapes::NODES, &node(number, 3, now()))).await?;
    }
    let (mut made, mut costs) = (0, Vec::new());
    for power in 0..SIZES {
        let size = first * FACTOR.pow(power);
        let (before_mb, began, count) = (server.process().rss_mb(), made, size - made);
        let cpu = server.process().cpu_us();
        let make: Maker = Arc::new(move |number| (thing.make)(began + number));
        load::piped(server.process(), &server.door, outstanding, make, Until::Requests(count)).await?;
        rested(server).await;
        let cost = (server.process().cpu_us() - cpu) as f64 / count as f64;
        let bytes = (server.process().rss_mb() - before_mb) * 1e6 / count as f64;
        run.figure(&format!("{}_{size}_cpu_us", thing.name), cost);
        run.figure(&format!("{}_{size}_bytes", thing.name), bytes);
        costs.push((cost, bytes));
        made = size;
    }
    if let [(cost, _), .., (last_cost, last_bytes)] = costs.as_slice() {
        run.figure(&format!("{}_growth_per_size", thing.name), last_cost / cost.max(1e-9));
        run.figure(&format!("bytes_per_{}", thing.name.trim_end_matches('s')), *last_bytes);
        run.figure(&format!("cpu_us_per_{}", thing.name.trim_end_matches('s')), *last_cost);
    }
    Ok(())
}

/// Waits until the server has done what it wanted to do.
async fn rested(server: &Server) {
    for _ in 0..LOOKS_MAX {
        let before = server.process().cpu_us();
        tokio::time::sleep(LOOK).await;
        let used_us = server.process().cpu_us() - before;
        if u128::from(used_us * 100) <= LOOK.as_micros() * u128::from(REST_PERCENT) {
            return;
        }
    }
}

async fn watches(run: &mut Run, server: &Server) -> Result<(), Error> {
    let first = run.count("watches")?;
    let (mut tasks, mut connections): (Vec<Task>, Vec<Line>) = (Vec::new(), Vec::new());
    for power in 0..SIZES {
        let size = first * FACTOR.pow(power);
        let (before_mb, cpu, count) = (server.process().rss_mb(), server.process().cpu_us(), size - tasks.len());
        while tasks.len() < size {
            if tasks.len() / SHARED >= connections.len() {
                connections.push(server.door.two().await?);
            }
            let line = connections[tasks.len() / SHARED].share();
            tasks.push(watch(line, "/api/v1/namespaces/kube-public/configmaps?watch=true", |_| ()).await?);
        }
        rested(server).await;
        run.figure(&format!("watches_{size}_cpu_us"), (server.process().cpu_us() - cpu) as f64 / count as f64);
        let bytes = (server.process().rss_mb() - before_mb) * 1e6 / count as f64;
        run.figure(&format!("watches_{size}_bytes"), bytes);
    }
    Ok(())
}

/// Makes and deletes, a third at a time; what counts is what the last third adds.
async fn churn(run: &mut Run, server: &Server) -> Result<(), Error> {
    let (count, outstanding) = (run.count("churn")?, run.count("outstanding")?);
    let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
    let mut memory = vec![server.process().rss_mb()];
    for third in 0..3 {
        let path = path.clone();
        let make: Maker = Arc::new(move |number| {
            let name = format!("map-{third}-{}", number / 2);
            if number % 2 == 1 {
                return Ask::delete(&format!("{path}/{name}"));
            }
            let map = json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": (name.as_str()), "namespace": NAMESPACE},
                "data": {"text": ("x".repeat(1_000))},
            });
            Ask::post(&path, &map)
        });
        load::pairs(load::lines(&server.door, outstanding, true).await?, make, count / 3).await?;
        rested(server).await;
        memory.push(server.process().rss_mb());
    }
    run.figure("churn_begin_mb", memory[0]);
    run.figure("churn_end_mb", memory[3]);
    run.figure("churn_late_growth_mb", memory[3] - memory[2]);
    Ok(())
}
