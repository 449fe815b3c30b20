//! What a large cluster does when much changes at once: a rolling restart of a large Deployment, the loss of many nodes,
//! the end of a large namespace; and how quick the API stays for others meanwhile.
//!
//! The pods of the lost nodes are counted as replaced when others run in their place. Their template bears a lost node for
//! no time; by default Kubernetes' pods bear it for 300 s, which would only add that time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use meta::{Value, json};

use crate::child::Server;
use crate::cluster::{Nodes, Task, lock};
use crate::door::{Ask, Door};
use crate::error::Error;
use crate::frame::{Bench, Run, Want, figure, option, runtime};
use crate::load::{self, Maker, Until};
use crate::numbers::percentile;
use crate::shapes::{MERGE, NAMESPACE, bears_no_loss, deployment};
use crate::simnodes::SimNodes;

const PATIENCE: Duration = Duration::from_secs(90);
const LOOK: Duration = Duration::from_millis(20);
/// The large Deployment, and the namespace that ends.
const LARGE: &str = "large";
const DOOMED: &str = "doomed";
/// Probes of the API a second.
const PROBES_PER_S: u64 = 50;

pub const BENCH: Bench = Bench {
    name: "churn",
    about: "Rolling restart of a large Deployment, loss of many nodes, end of a large namespace, in a large cluster",
    options: &[
        option("nodes", "5000", "10", "Nodes"),
        option("pods", "150000", "100", "Pods in all"),
        option("replicas", "10000", "20", "Pods of the large Deployment, and of the namespace that ends"),
        option("lost", "500", "1", "Nodes that are lost"),
        option("loss", "1", "0", "1: with the loss of nodes; 0: without"),
        option("outstanding", "128", "8", "Requests at once"),
    ],
    figures: &[
        figure("restart_seconds", Want::AtMost(60.0, 15.0)),
        figure("namespace_seconds", Want::AtMost(20.0, 2.0)),
        figure("restart_p99_api_ms", Want::Nothing),
        figure("namespace_p99_api_ms", Want::Nothing),
    ],
    peer: None,
    needs_root: false,
    run,
};

fn run(run: &mut Run) -> Result<(), Error> {
    runtime()?.block_on(async {
        let server = Server::start(run, "server", &[]).await?;
        measure(run, &server).await
    })
}

fn deployments(namespace: &str) -> String {
    format!("/apis/apps/v1/namespaces/{namespace}/deployments")
}

async fn measure(run: &mut Run, server: &Server) -> Result<(), Error> {
    let (nodes, pods, outstanding) = (run.count("nodes")?, run.count("pods")?, run.count("outstanding")?);
    let replicas = run.count("replicas")?.min(pods / 2);
    for namespace in [NAMESPACE, DOOMED] {
        server.door.namespace(namespace).await?;
    }
    run.say(format!("{nodes} nodes, {pods} pods"));
    let cluster = Nodes::start(server, nodes, 3, outstanding).await?;
    let agents = SimNodes::start(&server.door, cluster.dead()).await?;
    let mut sets = vec![(NAMESPACE, LARGE.to_owned(), replicas), (DOOMED, "web".to_owned(), replicas)];
    let (mut rest, mut number) = (pods - 2 * replicas, 0);
    while rest > 0 {
        let size = rest.min(1_000);
        sets.push((NAMESPACE, format!("web-{number}"), size));
        (rest, number) = (rest - size, number + 1);
    }
    let count = sets.len();
    let make: Maker = Arc::new(move |number| {
        let (namespace, name, size) = &sets[number];
        let mut wanted = deployment(namespace, name, *size);
        bears_no_loss(&mut wanted);
        if name == LARGE {
            wanted.set(&["spec", "strategy"], json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%"}}));
        }
        Ask::post(&deployments(namespace), &wanted)
    });
    load::piped(server.process(), &server.door, 8, make, Until::Requests(count)).await?;
    agents.counts.await_running(pods, PATIENCE).await?;
    run.figure("rss_mb", server.process().rss_mb());

    let probing = Probing::start(&server.door).await?;
    let (began, cpu) = (Instant::now(), server.process().cpu_us());
    restart(server, replicas).await?;
    tell(run, "restart", began, &probing);
    run.figure("restart_cpu_us_per_pod", (server.process().cpu_us() - cpu) as f64 / replicas as f64);
    agents.counts.await_running(pods, PATIENCE).await?;

    let (began, cpu) = (Instant::now(), server.process().cpu_us());
    server.door.two().await?.ask(&Ask::delete(&format!("/api/v1/namespaces/{DOOMED}"))).await?;
    gone(&server.door, &format!("/api/v1/namespaces/{DOOMED}")).await?;
    tell(run, "namespace", began, &probing);
    run.figure("namespace_cpu_us_per_pod", (server.process().cpu_us() - cpu) as f64 / replicas as f64);

    if run.number("loss")? == 1 {
        let before = agents.counts.running.load(Ordering::Relaxed);
        let (began, cpu) = (Instant::now(), server.process().cpu_us());
        cluster.kill(0..run.count("lost")?);
        agents.fall_silent();
        let lost = before - agents.counts.running.load(Ordering::Relaxed);
        run.say(format!("{lost} pods ran on the nodes that are lost"));
        agents.counts.await_running(before, PATIENCE).await?;
        tell(run, "loss", began, &probing);
        run.figure("loss_cpu_us_per_pod", (server.process().cpu_us() - cpu) as f64 / lost.max(1) as f64);
    }
    run.figure("rss_after_mb", server.process().rss_mb());
    Ok(())
}

fn tell(run: &mut Run, what: &str, began: Instant, probing: &Probing) {
    run.figure(&format!("{what}_seconds"), began.elapsed().as_secs_f64());
    run.figure(&format!("{what}_p99_api_ms"), probing.p99_ms());
}

/// Restarts the large Deployment, as `kubectl rollout restart` does, and waits until all is new.
async fn restart(server: &Server, replicas: usize) -> Result<(), Error> {
    let path = format!("{}/{LARGE}", deployments(NAMESPACE));
    let mut line = server.door.two().await?;
    let at = crate::frame::now().rfc3339();
    let patch = json!({"spec": {"template": {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": at}}}}});
    line.ask(&Ask::patch(&path, MERGE, &patch)).await?;
    let wanted = i64::try_from(replicas).unwrap_or(i64::MAX);
    let began = Instant::now();
    loop {
        let found =
            Value::parse(&line.ask(&Ask::get(&path)).await?).map_err(Error::while_doing("read a Deployment"))?;
        let status = &found["status"];
        let number = |key: &str| status[key].as_int().unwrap_or(0);
        let seen = number("observedGeneration") >= found["metadata"]["generation"].as_int().unwrap_or(0);
        let counts = [number("updatedReplicas"), number("availableReplicas"), number("replicas")];
        if seen && counts.iter().all(|count| *count == wanted) {
            return Ok(());
        }
        if began.elapsed() > 3 * PATIENCE {
            return Err(Error::doing(
                "see the restart end",
                format!("updated, available, all: {counts:?} of {wanted}"),
            ));
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn gone(door: &Door, path: &str) -> Result<(), Error> {
    let (mut line, began) = (door.two().await?, Instant::now());
    loop {
        match line.exchange(&Ask::get(path)).await? {
            Err(status) if status.code() == 404 => return Ok(()),
            Err(status) => return Err(Error::doing("see the namespace end", status.message())),
            Ok(_) if began.elapsed() > 3 * PATIENCE => return Err(Error::doing("see the namespace end", "it stays")),
            Ok(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

/// Somebody else who reads and writes meanwhile.
pub struct Probing {
    latencies_us: Arc<std::sync::Mutex<Vec<u32>>>,
    _task: Task,
}

impl Probing {
    pub async fn start(door: &Door) -> Result<Probing, Error> {
        let mut line = door.two().await?;
        let map =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "probe"}, "data": {"turn": "0"}});
        line.ask(&Ask::post("/api/v1/namespaces/default/configmaps", &map)).await?;
        let latencies_us = Arc::<std::sync::Mutex<Vec<u32>>>::default();
        let told = latencies_us.clone();
        let task = Task::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_secs(1) / u32::try_from(PROBES_PER_S).unwrap_or(1));
            let turn = AtomicU64::new(0);
            loop {
                ticks.tick().await;
                let number = turn.fetch_add(1, Ordering::Relaxed);
                let path = "/api/v1/namespaces/default/configmaps/probe";
                let patch = json!({"data": {"turn": (number.to_string())}});
                let ask = if number.is_multiple_of(2) { Ask::get(path) } else { Ask::patch(path, MERGE, &patch) };
                let sent = Instant::now();
                // One that is refused took its time as well.
                let _ = line.exchange(&ask).await;
                lock(&told).push(load::micros(sent.elapsed()));
            }
        });
        Ok(Probing { latencies_us, _task: task })
    }

    /// Of what was asked since the last call.
    pub fn p99_ms(&self) -> f64 {
        percentile(&mut std::mem::take(&mut *lock(&self.latencies_us)), 0.99) / 1e3
    }
}
