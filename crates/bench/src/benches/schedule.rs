//! Pods through the whole control plane: created by a client over TLS, bound by the scheduler, seen bound by a watch.
//!
//! Measured as upstream's scheduler benchmark does it: nodes, then the first pods (waited for), then the measured ones as
//! fast as the client can, while scheduling runs; the throughput is the mean of samples of one second. The nodes' leases
//! are renewed all the while, and all controllers run.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use meta::json;

use crate::child::Server;
use crate::cluster::{Nodes, Pods};
use crate::door::Ask;
use crate::error::Error;
use crate::frame::{Bench, Run, Want, figure, option, runtime};
use crate::load::{self, Maker, Until};
use crate::machine::Process;
use crate::numbers::{percentile, sampled_per_s};
use crate::shapes::{HIGH, NAMESPACE, SHAPES, Shape, base_pod, pod_name, pods_path};

/// When nothing more is bound for so long, nothing will be.
const PATIENCE: Duration = Duration::from_secs(60);
/// Ours must be so many times what upstream demands of itself.
const TIMES_UPSTREAM: f64 = 10.0;

pub const BENCH: Bench = Bench {
    name: "schedule",
    about: "Pods created, bound and seen bound through the real API, in the shapes of upstream's scheduler benchmark",
    options: &[
        option("shape", "basic", "basic", "The shape of pods"),
        option("nodes", "0", "20", "Nodes; 0: as many as the shape says"),
        option("pods", "0", "50", "Measured pods; 0: as the shape says"),
        option("initial", "-", "10", "Pods that are there first; -: as the shape says"),
        option("outstanding", "128", "8", "Requests at once"),
    ],
    figures: &[
        figure("pods_per_s", Want::AtLeast(3_000.0, 10_000.0)),
        figure("p99_create_to_bound_ms", Want::Nothing),
        figure("cpu_us_per_pod", Want::Nothing),
        figure("rss_mb", Want::Nothing),
    ],
    peer: None,
    needs_root: false,
    run,
};

fn run(run: &mut Run) -> Result<(), Error> {
    let name = run.word("shape").to_owned();
    let shape = SHAPES.iter().find(|shape| shape.name == name).ok_or_else(|| {
        let known: Vec<&str> = SHAPES.iter().map(|shape| shape.name).collect();
        Error::Option { name: "shape".into(), why: format!("{name:?} is none of {}", known.join(", ")) }
    })?;
    if shape.name != "basic" {
        run.want("pods_per_s", Want::AtLeast(TIMES_UPSTREAM * shape.upstream, TIMES_UPSTREAM * shape.upstream));
    }
    runtime()?.block_on(async {
        let server = Server::start(run, "server", &[]).await?;
        measure(run, &server, shape).await
    })
}

/// The number that was said, or the shape's.
fn sizes(run: &Run, shape: &Shape) -> Result<(usize, usize, usize), Error> {
    let or = |said: usize, else_: usize| if said == 0 { else_ } else { said };
    let initial = if run.word("initial") == "-" { shape.initial } else { run.count("initial")? };
    Ok((or(run.count("nodes")?, shape.nodes), initial, or(run.count("pods")?, shape.measured)))
}

async fn measure(run: &mut Run, server: &Server, shape: &'static Shape) -> Result<(), Error> {
    let (nodes, initial, measured) = sizes(run, shape)?;
    let outstanding = run.count("outstanding")?;
    server.door.namespace(NAMESPACE).await?;
    let class = json!({
        "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": HIGH}, "value": 1000,
    });
    server.door.two().await?.ask(&Ask::post("/apis/scheduling.k8s.io/v1/priorityclasses", &class)).await?;
    run.say(format!("{nodes} nodes"));
    let _nodes = Nodes::start(server, nodes, shape.zones, outstanding).await?;
    let (pods, _watch) = Pods::watch(server).await?;
    let path = pods_path(NAMESPACE);

    run.say(format!("{initial} pods that are there first"));
    pods.count("i-");
    let first = making(&path, "i", shape.first, initial);
    load::piped(server.process(), &server.door, outstanding, first, Until::Requests(initial)).await?;
    if shape.first_binds {
        pods.await_bound(initial, PATIENCE).await?;
    }

    run.say(format!("{measured} measured pods"));
    pods.count("m-");
    let sent = Arc::new(Mutex::new(vec![0_u64; measured]));
    let then: Maker = {
        let (sent, pods, then) = (sent.clone(), pods.clone(), making(&path, "m", shape.then, measured));
        Arc::new(move |number| {
            let ask = then(number);
            if let Ok(mut sent) = sent.lock()
                && let Some(sent) = sent.get_mut(number)
            {
                *sent = pods.now_us();
            }
            ask
        })
    };
    let (server_us, client_us) = (server.process().cpu_us(), Process::own().cpu_us());
    let threads = server.process().threads_us();
    let began_us = pods.now_us();
    let mut creation =
        load::piped(server.process(), &server.door, outstanding, then, Until::Requests(measured)).await?;
    pods.await_bound(measured, PATIENCE).await?;

    let each = |us: u64| us as f64 / measured as f64;
    let sent = sent.lock().map(|sent| sent.clone()).unwrap_or_default();
    let bound: Vec<u64> = (0..measured).filter_map(|number| pods.bound_us(&pod_name("m", number))).collect();
    let mut waits: Vec<u32> = bound
        .iter()
        .zip(&sent)
        .map(|(bound, sent)| u32::try_from(bound.saturating_sub(*sent)).unwrap_or(u32::MAX))
        .collect();
    run.figure("pods_per_s", sampled_per_s(&bound, began_us));
    run.figure("p50_create_to_bound_ms", percentile(&mut waits, 0.5) / 1e3);
    run.figure("p99_create_to_bound_ms", percentile(&mut waits, 0.99) / 1e3);
    run.figure("creates_per_s", creation.per_s());
    run.figure("p99_create_ms", creation.ms(0.99));
    run.figure("cpu_us_per_pod", each(server.process().cpu_us() - server_us));
    run.figure("client_cpu_us_per_pod", each(Process::own().cpu_us() - client_us));
    for (name, us) in server.process().threads_us() {
        let used = us.saturating_sub(threads.get(&name).copied().unwrap_or(0));
        if each(used) >= 1.0 {
            run.say(format!("  thread {name}: {:.1} us per pod", each(used)));
        }
    }
    run.figure("rss_mb", server.process().rss_mb());
    run.figure("peak_rss_mb", server.process().peak_mb());
    Ok(())
}

/// Requests that are all written beforehand: what is measured is not how fast this client writes JSON.
fn making(path: &str, prefix: &'static str, change: fn(&mut meta::Value, usize), count: usize) -> Maker {
    let make = |number| {
        let mut pod = base_pod(&pod_name(prefix, number));
        change(&mut pod, number);
        Ask::post(path, &pod)
    };
    let all: Vec<Ask> = (0..count).map(make).collect();
    Arc::new(move |number| all[number % count].clone())
}
