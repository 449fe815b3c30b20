//! A node dies in a large cluster while both processors are kept busy by others: how soon its node object says so, and how
//! soon its pods run elsewhere. Nodes that are wrongly called dead meanwhile are counted.
//!
//! The pods bear a lost node for no time; by default Kubernetes' pods bear it for 300 s.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use meta::Value;

use crate::child::Server;
use crate::cluster::{Nodes, lock, watch};
use crate::door::Ask;
use crate::error::Error;
use crate::frame::{Bench, Run, Want, figure, option, runtime};
use crate::load::{self, Maker, Until};
use crate::machine;
use crate::numbers::percentile;
use crate::shapes::{NAMESPACE, bears_no_loss, deployment, node_name};
use crate::simnodes::SimNodes;

const PATIENCE: Duration = Duration::from_secs(120);

pub const BENCH: Bench = Bench {
    name: "detect",
    about: "A node dies while both processors are busy: until its object says so, until its pods run elsewhere",
    options: &[
        option("nodes", "5000", "10", "Nodes"),
        option("pods", "150000", "100", "Pods"),
        option("deaths", "3", "1", "Nodes that die, one after another"),
        option("busy", "1", "0", "1: both processors are kept busy by others"),
        option("outstanding", "128", "8", "Requests at once"),
    ],
    figures: &[
        figure("detect_p99_ms", Want::AtMost(5_000.0, 1_000.0)),
        figure("replaced_p99_ms", Want::AtMost(10_000.0, 2_000.0)),
        figure("false_positives", Want::AtMost(0.0, 0.0)),
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

/// Threads that only count.
struct Busy(Arc<AtomicBool>, Vec<std::thread::JoinHandle<()>>);

impl Busy {
    fn start(threads: usize) -> Busy {
        let stop = Arc::new(AtomicBool::new(false));
        let spin = |_| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                let mut sum = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    sum = std::hint::black_box(sum.wrapping_add(1));
                }
            })
        };
        let threads = (0..threads).map(spin).collect();
        Busy(stop, threads)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        for thread in self.1.drain(..) {
            // A thread that only counts does not panic.
            let _ = thread.join();
        }
    }
}

async fn measure(run: &mut Run, server: &Server) -> Result<(), Error> {
    let (nodes, pods, outstanding) = (run.count("nodes")?, run.count("pods")?, run.count("outstanding")?);
    server.door.namespace(NAMESPACE).await?;
    run.say(format!("{nodes} nodes, {pods} pods"));
    let cluster = Nodes::start(server, nodes, 3, outstanding).await?;
    let agents = SimNodes::start(&server.door, cluster.dead()).await?;
    let make: Maker = Arc::new(move |number| {
        let mut wanted = deployment(NAMESPACE, &format!("web-{number}"), 1_000.min(pods - number * 1_000));
        bears_no_loss(&mut wanted);
        Ask::post(&format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments"), &wanted)
    });
    let sets = pods.div_ceil(1_000);
    load::piped(server.process(), &server.door, 8, make, Until::Requests(sets)).await?;
    agents.counts.await_running(pods, PATIENCE).await?;

    let unready = Arc::new(Mutex::new(HashMap::<String, Instant>::new()));
    let seen = unready.clone();
    let take = move |line: &[u8]| {
        let Ok(event) = Value::parse(line) else { return };
        let node = &event["object"];
        let conditions = node["status"]["conditions"].items();
        let ready = conditions.iter().find(|one| one["type"].text() == "Ready");
        if ready.is_some_and(|one| one["status"].text() != "True") {
            lock(&seen).entry(node["metadata"]["name"].text().to_owned()).or_insert_with(Instant::now);
        }
    };
    let _watch = watch(Some(server.door.two().await?), "/api/v1/nodes?watch=true", take).await?;
    let _busy = Busy::start(if run.number("busy")? == 1 { machine::cores() } else { 0 });
    let deaths = run.count("deaths")?;
    let (mut detected, mut replaced) = (Vec::new(), Vec::new());
    for victim in 0..deaths {
        let name = node_name(victim);
        cluster.kill([victim]);
        agents.fall_silent();
        let died = Instant::now();
        let left = agents.counts.running.load(Ordering::Relaxed);
        run.say(format!("{name} dies with {} pods", pods - left));
        loop {
            if let Some(at) = lock(&unready).get(&name) {
                detected.push(load::micros(at.duration_since(died)));
                break;
            }
            if died.elapsed() > PATIENCE {
                return Err(Error::doing("see a dead node called dead", format!("{name} is called well")));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        agents.counts.await_running(pods, PATIENCE).await?;
        replaced.push(load::micros(died.elapsed()));
    }
    run.figure("detect_p99_ms", percentile(&mut detected, 0.99) / 1e3);
    run.figure("replaced_p99_ms", percentile(&mut replaced, 0.99) / 1e3);
    run.figure("false_positives", (lock(&unready).len() - deaths) as f64);
    Ok(())
}
