//! A greedy client beside a modest one: what the modest one, the node's lease and the controllers notice of it.
//!
//! Both are service accounts with the same rights in the same priority level. The greedy one does at once all that a
//! client can do too much of (`greedy`), from a thread that has the processors only when nobody else wants them: it stands
//! for a machine of its own. The modest one reads, lists and writes at its own pace.

mod greedy;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use base::Time;
use meta::{Value, json};

use crate::cluster::Task;
use crate::door::{Ask, Door};
use crate::error::Error;
use crate::frame::{Bench, Run, Want, figure, now, option, runtime};
use crate::load::{self, Maker, Until};
use crate::machine::Process;
use crate::numbers::percentile;
use crate::real::{Up, creation};
use greedy::{Greed, Heard};

const NAMESPACE: &str = "flood";
/// How far apart the modest client's requests are.
const PACE: Duration = Duration::from_millis(20);
/// An answer that took longer than this never came.
const ANSWER: Duration = Duration::from_secs(30);
/// A node renews its lease every ten seconds; this is late.
const LATE_S: f64 = 20.0;
const LOOK: Duration = Duration::from_millis(500);
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node-1";

pub const BENCH: Bench = Bench {
    name: "flood",
    about: "A modest client, a node and the controllers, while a greedy client does too much of everything",
    options: &[
        option("seconds", "60", "5", "How long the flood lasts, and how long the quiet before it"),
        option("connections", "200", "20", "Connections of each sort of greed"),
        option("objects", "3000", "300", "Objects that the greedy client lists again and again"),
        option("only", "all", "all", "Only the sorts of greed whose name has this word"),
        option("after_s", "30", "3", "How long it is looked what the server gives back when the flood is over"),
    ],
    figures: &[
        figure("p50_quiet_ms", Want::Nothing),
        figure("p99_quiet_ms", Want::Nothing),
        figure("p50_ms", Want::AtMost(100.0, 20.0)),
        figure("p99_ms", Want::AtMost(1_000.0, 200.0)),
        figure("failed_per_run", Want::AtMost(0.0, 0.0)),
        figure("late_leases_per_run", Want::AtMost(0.0, 0.0)),
        figure("refused_per_run", Want::AtLeast(1.0, 1.0)),
        figure("refused_without_retry_per_run", Want::AtMost(0.0, 0.0)),
        figure("rss_growth_mb", Want::AtMost(64.0, 16.0)),
        figure("rss_after_mb", Want::Nothing),
    ],
    peer: None,
    needs_root: true,
    run,
};

/// What came of the modest client's requests.
#[derive(Default)]
struct Noted {
    latencies_us: Vec<u32>,
    failed: Vec<String>,
}

fn run(run: &mut Run) -> Result<(), Error> {
    runtime()?.block_on(flood(run))
}

async fn flood(run: &mut Run) -> Result<(), Error> {
    let up = Up::start(run, "flooded").await?;
    up.ready().await?;
    let (server, door) = (up.server.process(), up.server.door.clone());
    door.namespace(NAMESPACE).await?;
    let (modest, greedy) = (account(&door, "modest").await?, account(&door, "greedy").await?);
    let objects = run.count("objects")?;
    fill(&up, objects).await?;
    let time = Duration::from_secs(run.number("seconds")?);
    let leases = leases(&door);

    let mut quiet = ask_for(&modest, time).await?;
    let ready_quiet = pod_ready_s(&door, "quiet").await?;
    let before_mb = server.rss_mb();
    let (stop, heard) = (Arc::new(AtomicBool::new(false)), Arc::new(Heard::default()));
    let greed =
        Greed { door: greedy, connections: run.count("connections")?, heard: heard.clone(), stop: stop.clone() };
    let flooding = greed.begin(run.word("only").to_owned())?;
    // The first half fills what can be filled; from then on nothing may grow.
    let mut noted = ask_for(&modest, time / 2).await?;
    let half_mb = server.rss_mb();
    let ready = pod_ready_s(&door, "flooded").await?;
    let second = ask_for(&modest, time / 2).await?;
    let end_mb = server.rss_mb();
    noted.latencies_us.extend(second.latencies_us);
    noted.failed.extend(second.failed);
    stop.store(true, Ordering::Relaxed);
    flooding.join().map_err(|_| Error::doing("flood", "the greedy client panicked"))?;
    let (late, gap_s) = leases.told()?;
    let after_mb = lowest_mb(server, Duration::from_secs(run.number("after_s")?)).await;

    run.figure("p50_quiet_ms", percentile(&mut quiet.latencies_us, 0.5) / 1e3);
    run.figure("p99_quiet_ms", percentile(&mut quiet.latencies_us, 0.99) / 1e3);
    run.figure("p50_ms", percentile(&mut noted.latencies_us, 0.5) / 1e3);
    run.figure("p99_ms", percentile(&mut noted.latencies_us, 0.99) / 1e3);
    run.figure("asked_per_run", noted.latencies_us.len() as f64);
    run.figure("failed_per_run", (quiet.failed.len() + noted.failed.len()) as f64);
    run.figure("pod_ready_quiet_s", ready_quiet);
    run.figure("pod_ready_s", ready);
    run.figure("late_leases_per_run", late as f64);
    run.figure("lease_gap_s", gap_s);
    let refused = heard.refused.load(Ordering::Relaxed);
    run.figure("refused_per_run", refused as f64);
    run.figure("refused_without_retry_per_run", heard.without_retry.load(Ordering::Relaxed) as f64);
    run.figure("rss_quiet_mb", before_mb);
    run.figure("rss_half_mb", half_mb);
    run.figure("rss_growth_mb", end_mb - half_mb);
    run.figure("rss_peak_mb", server.peak_mb());
    run.figure("rss_after_mb", after_mb);
    run.note(format!("the greedy client heard {}", heard.told()));
    if let Some(first) = quiet.failed.iter().chain(&noted.failed).next() {
        return Err(Error::doing("serve a modest client beside a greedy one", first));
    }
    Ok(())
}

/// The least that a process has within a time.
async fn lowest_mb(server: Process, time: Duration) -> f64 {
    let (began, mut lowest) = (Instant::now(), server.rss_mb());
    while began.elapsed() < time {
        tokio::time::sleep(LOOK).await;
        lowest = lowest.min(server.rss_mb());
    }
    lowest
}

/// A service account that may do everything, and the door that it uses.
async fn account(door: &Door, name: &str) -> Result<Door, Error> {
    let mut line = door.two().await?;
    let accounts = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts");
    line.ask(&Ask::post(&accounts, &json!({"metadata": {"name": name}}))).await?;
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": (format!("{NAMESPACE}-{name}"))},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}],
    });
    line.ask(&Ask::post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding)).await?;
    let request =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 7200}});
    let made = line.ask(&Ask::post(&format!("{accounts}/{name}/token"), &request)).await?;
    let made = Value::parse(&made).map_err(Error::while_doing("read a token"))?;
    door.with_token(made["status"]["token"].text())
}

/// What the greedy client lists.
async fn fill(up: &Up, objects: usize) -> Result<(), Error> {
    let make: Maker = Arc::new(|number| {
        let map = json!({"metadata": {"name": (format!("filler-{number}"))}, "data": {"text": ("x".repeat(2_000))}});
        Ask::post(&format!("/api/v1/namespaces/{NAMESPACE}/configmaps"), &map)
    });
    load::piped(up.server.process(), &up.server.door, 32, make, Until::Requests(objects)).await?;
    Ok(())
}

/// Asks one thing after the other, as a controller of a user's does.
async fn ask_for(door: &Door, time: Duration) -> Result<Noted, Error> {
    let (began, mut noted) = (Instant::now(), Noted::default());
    let mut line = door.two().await?;
    let maps = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
    for number in 0.. {
        if began.elapsed() >= time {
            break;
        }
        let ask = match number % 4 {
            0 => Ask::post(&maps, &json!({"metadata": {"generateName": "modest-"}, "data": {"a": "b"}})),
            1 => Ask::get(&format!("{maps}/filler-{}", number % 100)),
            2 => Ask::get("/api/v1/nodes"),
            _ => Ask::patch(
                &format!("{maps}/filler-{}", number % 100),
                "application/merge-patch+json",
                &json!({"data": {"n": (number.to_string())}}),
            ),
        };
        let sent = Instant::now();
        match tokio::time::timeout(ANSWER, line.exchange(&ask)).await {
            Ok(Ok(Ok(_))) => noted.latencies_us.push(load::micros(sent.elapsed())),
            Ok(Ok(Err(status))) => noted.failed.push(format!("{} {}: {}", ask.method, ask.path, status.message())),
            Ok(Err(error)) => {
                noted.failed.push(format!("{} {}: {error}", ask.method, ask.path));
                line = door.two().await?;
            }
            Err(_) => {
                noted.failed.push(format!("{} {}: no answer in {} s", ask.method, ask.path, ANSWER.as_secs()));
                line = door.two().await?;
            }
        }
        tokio::time::sleep(PACE.saturating_sub(sent.elapsed())).await;
    }
    Ok(noted)
}

/// How long scheduler, controllers and the node's agent take until a pod is ready.
async fn pod_ready_s(door: &Door, name: &str) -> Result<f64, Error> {
    let began = Instant::now();
    door.two().await?.ask(&creation(NAMESPACE, name)).await?;
    loop {
        let text = door.get(&format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}")).await?;
        let pod = Value::parse(&text).map_err(Error::while_doing("read a pod"))?;
        let mut conditions = pod["status"]["conditions"].items().iter();
        if conditions.any(|one| one["type"].text() == "Ready" && one["status"].text() == "True") {
            return Ok(began.elapsed().as_secs_f64());
        }
        if began.elapsed() > 2 * ANSWER {
            return Err(Error::doing("see a pod ready", "it is not within a minute"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Looks after the node's lease for as long as it lives.
struct Leases {
    seen: Arc<std::sync::Mutex<Vec<Time>>>,
    _looking: Task,
}

fn leases(door: &Door) -> Leases {
    let (door, seen) = (door.clone(), Arc::<std::sync::Mutex<Vec<Time>>>::default());
    let noted = seen.clone();
    let looking = Task::spawn(async move {
        loop {
            if let Ok(text) = door.get(LEASE).await
                && let Ok(lease) = Value::parse(&text)
                && let Some(at) = Time::parse(lease["spec"]["renewTime"].text())
            {
                let mut seen = crate::cluster::lock(&noted);
                if seen.last() != Some(&at) {
                    seen.push(at);
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    });
    Leases { seen, _looking: looking }
}

impl Leases {
    /// How many renewals were late, and the longest time between two.
    fn told(&self) -> Result<(usize, f64), Error> {
        let mut seen = crate::cluster::lock(&self.seen).clone();
        if seen.is_empty() {
            return Err(Error::doing("look after a lease", "it was never seen"));
        }
        seen.push(now());
        let gaps: Vec<f64> = seen.windows(2).map(|two| two[1].ms_since(two[0]) as f64 / 1e3).collect();
        Ok((gaps.iter().filter(|gap| **gap > LATE_S).count(), gaps.iter().copied().fold(0.0, f64::max)))
    }
}

/// The thread of the greedy client yields to all others.
fn yield_to_others() {
    // Where that is refused, the figures show what it costs.
    let _ = rustix::process::nice(19);
}
