//! Everything at once: a large cluster is resident; then reads of the API, questions about names, and pods that come and
//! go, each at a fixed rate, on a real cluster with one real node beside the simulated ones. The writes are those of the
//! pods: made and deleted by the client, bound by the scheduler, told of by their nodes, which note when they heard of
//! each: another watch of all pods would be a load of its own.
//!
//! The cluster is resident when its pods run and what making them left to do is done: the sets' counts, the services'
//! endpoints. What is measured begins then.
//!
//! Churn is counted as the scalability group of Kubernetes does (`sig-scalability/slos/slos.md`): creations and deletions
//! of pods in a second.
//!
//! Answers are waited for a while after the last request. What is not answered, or not bound, by then counts as having
//! waited all the time.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use turn::Turn;

use crate::asker;
use crate::benches::dns;
use crate::cluster::{Nodes, lock};
use crate::door::Ask;
use crate::error::Error;
use crate::frame::{Bench, Run, Want, figure, option, runtime};
use crate::load::{self, Maker, Until, micros};
use crate::machine::Process;
use crate::numbers::percentile;
use crate::pipe::{Answer, Pipe};
use crate::real::Up;
use crate::shapes::{MERGE, NAMESPACE, base_pod, deployment, pod_name, pods_path};
use crate::simnodes::SimNodes;

const PATIENCE: Duration = Duration::from_secs(90);
/// The server has nothing left to do when it uses less than this of a processor in such a time: signs of life go on.
const QUIET_CORES: f64 = 0.4;
const QUIET: Duration = Duration::from_secs(1);
/// How long answers and bindings may take at the end.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// From one look whether they came to the next.
const LOOK: Duration = Duration::from_millis(20);
/// Seconds that a pod of the churn lives.
const LIFE_S: usize = 5;
/// Changes of which one is a creation, and one a deletion.
const PAIR: usize = 2;
/// Connections of the client, and how often a second it sends what is due.
const CONNECTIONS: usize = 8;
const TICKS_PER_S: u64 = 1_000;
/// Questions a second that are timed one by one.
const PROBES_PER_S: u64 = 100;

pub const BENCH: Bench = Bench {
    name: "all-at-once",
    about: "With a large cluster resident: API requests, questions about names, and pods that come and go, together",
    options: &[
        option("nodes", "5000", "10", "Simulated nodes"),
        option("pods", "150000", "100", "Pods that are there"),
        option("requests", "10000", "50", "Reads of the API a second"),
        option("questions", "100000", "500", "Questions about names a second"),
        option("churn", "1000", "10", "Pods a second that come or go: half are made, half deleted"),
        option("services", "1000", "10", "Services that are asked for"),
        option("seconds", "15", "2", "How long"),
    ],
    figures: &[
        figure("cores_used", Want::AtMost(2.0, 1.45)),
        figure("answered_percent", Want::AtLeast(99.0, 100.0)),
        figure("bound_percent", Want::AtLeast(99.0, 100.0)),
        figure("api_p99_ms", Want::AtMost(100.0, 10.0)),
        figure("dns_answered_percent", Want::AtLeast(99.0, 100.0)),
        figure("dns_p99_ms", Want::AtMost(10.0, 1.0)),
        figure("bound_p99_ms", Want::AtMost(1_000.0, 100.0)),
    ],
    peer: None,
    needs_root: true,
    run,
};

fn run(run: &mut Run) -> Result<(), Error> {
    runtime()?.block_on(measure(run))
}

async fn measure(run: &mut Run) -> Result<(), Error> {
    let up = Up::start(run, "up").await?;
    up.ready().await?;
    let (server, agent) = (&up.server, up.agent()?);
    server.door.namespace(NAMESPACE).await?;
    let (nodes, pods, services) = (run.count("nodes")?, run.count("pods")?, run.count("services")?);
    run.say(format!("{nodes} nodes, {pods} pods, {services} services"));
    let cluster = Nodes::start(server, nodes, 3, 64).await?;
    // The real node is to have names to answer, not pods of this bench.
    let cordon = meta::json!({"spec": {"unschedulable": true}});
    server.door.two().await?.ask(&Ask::patch("/api/v1/nodes/node-1", MERGE, &cordon)).await?;
    let agents = SimNodes::start(&server.door, cluster.dead()).await?;
    let make: Maker = Arc::new(|number| dns::creation(&service_name(number)));
    load::piped(server.process(), &server.door, 32, make, Until::Requests(services)).await?;
    let make: Maker = Arc::new(move |number| {
        let wanted = deployment(NAMESPACE, &format!("web-{number}"), 1_000.min(pods - number * 1_000));
        Ask::post(&format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments"), &wanted)
    });
    let sets = pods.div_ceil(1_000);
    load::piped(server.process(), &server.door, 8, make, Until::Requests(sets)).await?;
    let alive = LIFE_S * run.count("churn")? / PAIR;
    let make: Maker = Arc::new(|number| Ask::post(&pods_path(NAMESPACE), &base_pod(&pod_name("m", number))));
    load::piped(server.process(), &server.door, 8, make, Until::Requests(alive)).await?;
    agents.counts.await_running(pods + alive, PATIENCE).await?;
    quiet(server.process()).await?;
    // What the nodes wrote until here is no part of it.
    let _ = agents.counts.write_p99_ms();
    run.figure("rss_mb", server.process().rss_mb());

    let seconds = run.number("seconds")?;
    let address = dns::server_of(&up).await?;
    let asking = dns::Asking::inside(agent)?;
    asking.wait(address, &service_name(services - 1))?;
    let names: Vec<String> = (0..services)
        .map(|number| format!("{}.{NAMESPACE}.svc.cluster.local", service_name(number * 7919 % services)))
        .collect();
    let time = Duration::from_secs(seconds);
    let generator = asker::start(agent, address, &names, run.number("questions")?, time)?;
    let probing = std::thread::spawn(move || probe(&asking, address, seconds));
    let parts = [("server", server.process()), ("agent", agent), ("client", Process::own())];
    let before = parts.map(|(_, process)| process.cpu_us());
    let began = Instant::now();
    let (api, sent) = offered(run, &up, alive, seconds as f64).await?;
    let elapsed = began.elapsed().as_secs_f64();
    let used = parts.map(|(_, process)| process.cpu_us());
    run.figure("api_requests_per_s", lock(&api.latencies_us).len() as f64 / elapsed);
    let bound_at = |number: usize| lock(&agents.counts.bound).get(&pod_name("m", alive + number)).copied();
    let settled = || api.settled() && (0..sent.len()).rev().all(|number| bound_at(number).is_some());
    let ended = Instant::now();
    while !settled() && ended.elapsed() < LAST_ANSWERS {
        tokio::time::sleep(LOOK).await;
    }
    let named = generator.join().map_err(|_| Error::doing("ask for names", "the asking thread failed"))??;
    let mut whole = 0.0;
    for ((name, process), (before, after)) in parts.iter().zip(before.iter().zip(&used)) {
        let cores = after.saturating_sub(*before) as f64 / 1e6 / elapsed;
        whole += cores;
        // The generator is a thread of the client's process.
        let asking = if *process == Process::own() { named.cpu_us as f64 / 1e6 / elapsed } else { 0.0 };
        run.figure(&format!("{name}_cores_used"), cores - asking);
    }
    run.figure("generator_cores_used", named.cpu_us as f64 / 1e6 / elapsed);
    run.figure("cores_used", whole);
    run.figure("dns_answered_percent", named.percent());
    let mut answered = probing.join().map_err(|_| Error::doing("ask for names", "the asking thread failed"))??;
    run.figure("dns_p99_ms", percentile(&mut answered, 0.99) / 1e3);
    let failed = std::mem::take(&mut *lock(&api.failed));
    if let Some(first) = failed.first() {
        run.say(format!("{} requests failed, the first: {first}", failed.len()));
    }
    let mut latencies = std::mem::take(&mut *lock(&api.latencies_us));
    run.figure("answered_percent", latencies.len() as f64 / api.sent.max(1) as f64 * 100.0);
    run.figure("failed_requests", failed.len() as f64);
    latencies.resize(api.sent.max(latencies.len()), micros(Duration::from_secs_f64(elapsed)));
    run.figure("api_p99_ms", percentile(&mut latencies, 0.99) / 1e3);
    let (end, mut bound_in_time) = (Instant::now(), 0);
    let wait = |(number, at): (usize, &Instant)| {
        let bound = bound_at(number);
        bound_in_time += usize::from(bound.is_some());
        micros(bound.unwrap_or(end).saturating_duration_since(*at))
    };
    let mut waits: Vec<u32> = sent.iter().enumerate().map(wait).collect();
    run.figure("bound_percent", bound_in_time as f64 / sent.len().max(1) as f64 * 100.0);
    run.figure("bound_p99_ms", percentile(&mut waits, 0.99) / 1e3);
    run.figure("status_p99_ms", agents.counts.write_p99_ms());
    Ok(())
}

async fn quiet(server: Process) -> Result<(), Error> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        let before = server.cpu_us();
        tokio::time::sleep(QUIET).await;
        if (server.cpu_us() - before) as f64 / 1e6 < QUIET_CORES * QUIET.as_secs_f64() {
            return Ok(());
        }
    }
    Err(Error::doing("make a cluster that is resident", "the server never had nothing left to do"))
}

/// All are of one length, so that questions about them are.
fn service_name(number: usize) -> String {
    format!("service-{number:05}")
}

/// What came of the requests.
struct Api {
    /// Of those that were answered.
    latencies_us: Arc<Mutex<Vec<u32>>>,
    sent: usize,
    /// Why, of the others.
    failed: Arc<Mutex<Vec<String>>>,
    /// Over which answers come still.
    _pipes: Vec<Pipe<Instant>>,
}

impl Api {
    fn settled(&self) -> bool {
        lock(&self.latencies_us).len() + lock(&self.failed).len() >= self.sent
    }
}

/// Sends requests and makes and deletes pods, all at their rates; `alive` pods are there to be deleted first. When each
/// pod was sent.
async fn offered(run: &Run, up: &Up, alive: usize, seconds: f64) -> Result<(Api, Vec<Instant>), Error> {
    let door = &up.server.door;
    let (requests, churn, services) = (run.number("requests")?, run.count("churn")?, run.count("services")?.max(1));
    let (latencies, failed) = (Arc::<Mutex<Vec<u32>>>::default(), Arc::<Mutex<Vec<String>>>::default());
    let mut pipes = Vec::new();
    for _ in 0..CONNECTIONS {
        let (latencies, failed) = (latencies.clone(), failed.clone());
        let take = move |sent: Instant, answer: Answer| match answer {
            Ok(()) => lock(&latencies).push(micros(sent.elapsed())),
            Err(status) => lock(&failed).push(format!("{} {}", status.code(), status.message())),
        };
        pipes.push(Pipe::open(door, take).await?);
    }
    let (path, mut sent, mut asked, mut changes) = (pods_path(NAMESPACE), Vec::new(), 0_usize, 0_usize);
    let read = |service| Ask::get(&format!("/api/v1/namespaces/{NAMESPACE}/services/{}", service_name(service)));
    let reads: Vec<Ask> = (0..services).map(read).collect();
    // Of each round of ticks so many are churn: rates are whole numbers of a second.
    let whole = requests + churn as u64;
    // What is due in about one tick goes over one connection, as a client has it that asks for several things at once.
    let together = usize::try_from(whole / TICKS_PER_S).unwrap_or(usize::MAX).max(1);
    let send = |ask: Ask, number: usize| {
        if let Err(error) = pipes[number / together % CONNECTIONS].send(ask, Instant::now()) {
            lock(&failed).push(error.to_string());
        }
    };
    load::paced(whole, seconds, |number| {
        let slot = number as u64 * churn as u64 % whole;
        let ask = if slot < churn as u64 {
            changes += 1;
            if changes.is_multiple_of(PAIR) {
                let old = pod_name("m", sent.len().saturating_sub(1));
                Ask::delete(&format!("{path}/{old}?gracePeriodSeconds=0"))
            } else {
                sent.push(Instant::now());
                Ask::post(&path, &base_pod(&pod_name("m", alive + sent.len() - 1)))
            }
        } else {
            reads[number % services].clone()
        };
        asked += 1;
        send(ask, asked);
    })
    .await;
    Ok((Api { latencies_us: latencies, sent: asked, failed, _pipes: pipes }, sent))
}

/// Questions one by one; microseconds of each.
fn probe(asking: &dns::Asking, server: std::net::SocketAddr, seconds: u64) -> Result<Vec<u32>, Error> {
    // What it waits for a processor is none of the answer's time. Without the right to it, it counts as such.
    let _ = turn::take(Turn::Soon);
    let (began, mut found) = (Instant::now(), Vec::new());
    while began.elapsed() < Duration::from_secs(seconds) {
        let sent = Instant::now();
        asking.wait(server, &service_name(0))?;
        found.push(micros(sent.elapsed()));
        std::thread::sleep(Duration::from_millis(1_000 / PROBES_PER_S));
    }
    Ok(found)
}
