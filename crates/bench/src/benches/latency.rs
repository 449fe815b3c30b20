//! Pods that arrive at a fixed rate: how long from the moment a client sends one to the moment a watch shows it bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::child::Server;
use crate::cluster::{Nodes, Pods};
use crate::door::Ask;
use crate::error::Error;
use crate::frame::{Bench, Run, Want, figure, option, runtime};
use crate::load;
use crate::machine::Process;
use crate::numbers::percentile;
use crate::shapes::{NAMESPACE, base_pod, pod_name, pods_path};

const PATIENCE: Duration = Duration::from_secs(30);

pub const BENCH: Bench = Bench {
    name: "latency",
    about: "Pods that arrive at a fixed rate: from being sent to being seen bound",
    options: &[
        option("nodes", "5000", "20", "Nodes"),
        option("rate", "1000", "50", "Pods a second"),
        option("seconds", "20", "1", "How long"),
        option("outstanding", "128", "8", "Requests at once while the nodes are made"),
    ],
    figures: &[
        figure("p50_ms", Want::AtMost(100.0, 10.0)),
        figure("p99_ms", Want::AtMost(100.0, 10.0)),
        figure("cores_used", Want::Nothing),
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

async fn measure(run: &mut Run, server: &Server) -> Result<(), Error> {
    let (nodes, rate, seconds) = (run.count("nodes")?, run.number("rate")?, run.number("seconds")? as f64);
    server.door.namespace(NAMESPACE).await?;
    run.say(format!("{nodes} nodes"));
    let _nodes = Nodes::start(server, nodes, 3, run.count("outstanding")?).await?;
    let (pods, _watch) = Pods::watch(server).await?;
    pods.count("m-");
    let line = server.door.two().await?;
    let (path, failed) = (pods_path(NAMESPACE), Arc::new(AtomicU64::new(0)));
    let mut sent_us = Vec::new();
    let (server_us, client_us) = (server.process().cpu_us(), Process::own().cpu_us());
    run.say(format!("{rate} pods a second for {seconds} s"));
    let sent = load::paced(rate, seconds, |number| {
        let Some(mut line) = line.share() else { return };
        let (ask, failed) = (Ask::post(&path, &base_pod(&pod_name("m", number))), failed.clone());
        sent_us.push(pods.now_us());
        tokio::spawn(async move {
            if line.pass(&ask).await.is_err() {
                failed.fetch_add(1, Ordering::Relaxed);
            }
        });
    })
    .await;
    pods.await_bound(sent, PATIENCE).await?;
    if failed.load(Ordering::Relaxed) > 0 {
        return Err(Error::doing("create pods at a fixed rate", format!("{failed:?} of {sent} failed")));
    }
    let used = |us: u64| us as f64 / 1e6 / seconds;
    run.figure("cores_used", used(server.process().cpu_us() - server_us));
    run.figure("client_cores_used", used(Process::own().cpu_us() - client_us));
    let mut waits: Vec<u32> = (0..sent)
        .filter_map(|number| {
            let wait = pods.bound_us(&pod_name("m", number))?.saturating_sub(sent_us[number]);
            u32::try_from(wait).ok()
        })
        .collect();
    run.figure("p50_ms", percentile(&mut waits, 0.5) / 1e3);
    run.figure("p99_ms", percentile(&mut waits, 0.99) / 1e3);
    run.figure("max_ms", percentile(&mut waits, 1.0) / 1e3);
    run.figure("rss_mb", server.process().rss_mb());
    Ok(())
}
