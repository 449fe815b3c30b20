//! A whole cluster from nothing: node objects, Deployments, and pods that all come to run, by way of controllers,
//! scheduler and the real pod machine of every node on a simulated runtime.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::child::Server;
use crate::cluster::Nodes;
use crate::door::Ask;
use crate::error::Error;
use crate::frame::{Bench, Run, Want, figure, option, runtime};
use crate::load::{self, Maker, Until};
use crate::machine::Process;
use crate::shapes::{NAMESPACE, deployment};
use crate::simnodes::SimNodes;

/// When nothing more comes to run for so long, nothing will.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time to settle before memory is read.
const SETTLE: Duration = Duration::from_secs(2);

pub const BENCH: Bench = Bench {
    name: "scale",
    about: "Simulated nodes and Deployments, from nothing until all pods run; the pod machine is the real one",
    options: &[
        option("nodes", "5000", "10", "Nodes"),
        option("pods", "150000", "100", "Pods"),
        option("replicas", "1000", "50", "Pods of one Deployment"),
        option("outstanding", "128", "8", "Requests at once"),
    ],
    figures: &[
        figure("seconds", Want::AtMost(120.0, 20.0)),
        figure("rss_mb", Want::AtMost(1_500.0, 500.0)),
        figure("bytes_per_pod", Want::Nothing),
        figure("bytes_per_node", Want::Nothing),
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
    let (nodes, pods, outstanding) = (run.count("nodes")?, run.count("pods")?, run.count("outstanding")?);
    let replicas = run.count("replicas")?.clamp(1, pods.max(1));
    server.door.namespace(NAMESPACE).await?;
    let memory = |what: &str, run: &mut Run| {
        let mb = server.process().rss_mb();
        run.say(format!("{what}: {mb:.0} MB"));
        mb
    };
    let empty_mb = memory("an empty cluster", run);
    let (server_us, client_us) = (server.process().cpu_us(), Process::own().cpu_us());
    let began = Instant::now();
    let cluster = Nodes::start(server, nodes, 3, outstanding).await?;
    let nodes_s = began.elapsed().as_secs_f64();
    run.figure("nodes_seconds", nodes_s);
    let nodes_mb = memory("with nodes", run);
    let agents = SimNodes::start(&server.door, cluster.dead()).await?;
    let path = format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments");
    let count = pods.div_ceil(replicas);
    let make: Maker = Arc::new(move |number| {
        let size = replicas.min(pods - number * replicas);
        Ask::post(&path, &deployment(NAMESPACE, &format!("web-{number:04}"), size))
    });
    let started = Instant::now();
    load::piped(server.process(), &server.door, outstanding.min(8), make, Until::Requests(count)).await?;
    let waiting = agents.counts.await_running(pods, PATIENCE);
    let shown = async {
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            let running = agents.counts.running.load(std::sync::atomic::Ordering::Relaxed);
            let cpu = (server.process().cpu_us() - server_us) as f64 / 1e6;
            let (at, mb) = (started.elapsed().as_secs_f64(), server.process().rss_mb());
            let doubts = cluster.doubts();
            run.say(format!(
                "{at:.0} s: {running} run, {doubts} nodes doubted; server {cpu:.1} s of processor, {mb:.0} MB"
            ));
        }
    };
    tokio::select! {
        outcome = waiting => outcome?,
        () = shown => {}
    }
    run.figure("pods_seconds", started.elapsed().as_secs_f64());
    run.figure("seconds", nodes_s + started.elapsed().as_secs_f64());
    run.figure("pods_per_s", pods as f64 / started.elapsed().as_secs_f64());
    run.figure("cpu_us_per_pod", (server.process().cpu_us() - server_us) as f64 / pods as f64);
    run.figure("client_cpu_us_per_pod", (Process::own().cpu_us() - client_us) as f64 / pods as f64);
    run.figure("doubted_nodes", cluster.doubts() as f64);
    run.figure("status_p99_ms", agents.counts.write_p99_ms());
    run.figure("peak_rss_mb", server.process().peak_mb());
    tokio::time::sleep(SETTLE).await;
    let all_mb = memory("with all pods", run);
    run.figure("rss_mb", all_mb);
    run.figure("bytes_per_node", (nodes_mb - empty_mb) * 1e6 / nodes as f64);
    run.figure("bytes_per_pod", (all_mb - nodes_mb) * 1e6 / pods as f64);
    Ok(())
}
