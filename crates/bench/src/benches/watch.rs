//! Watches: a hundred callers, each with a connection of its own over TLS, see every write to pods of the usual size.
//!
//! First writes at full rate: how many events arrive. Then writes at a fixed rate: how late they arrive, counted from the
//! moment the writer sent its request, so that the whole write is in it. Last, watches on which nothing happens.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use memchr::memmem::Finder;
use meta::Value;

use crate::child::Server;
use crate::cluster::{Task, lock, quoted, watch};
use crate::door::{Ask, Line};
use crate::error::Error;
use crate::frame::{Bench, Run, Want, figure, option, runtime};
use crate::load::{self, Maker, Until};
use crate::machine::Process;
use crate::numbers::percentile;
use crate::shapes::{NAMESPACE, gated_pod, pod_name, pods_path, stored_pods};

/// Streams that share a connection while watches are idle.
const IDLE_SHARED: usize = 100;
/// Events may be this late after the last write.
const DRAIN: Duration = Duration::from_secs(20);
const SENT: &str = "example.com/sent-us";

pub const BENCH: Bench = Bench {
    name: "watch",
    about: "Watchers of pods over TLS, each on its own connection, while pods are written",
    options: &[
        option("watchers", "100", "4", "Watchers"),
        option("pods", "1000", "20", "Pods that are written in turn"),
        option("seconds", "5", "1", "How long each measurement lasts"),
        option("rounds", "3", "1", "How often; the median counts"),
        option("outstanding", "64", "4", "Writes at once"),
        option("rate", "1000", "50", "Writes a second while lateness is measured"),
        option("idle", "5000", "50", "Watches on which nothing happens"),
    ],
    figures: &[
        figure("events_per_s", Want::AtLeast(100_000.0, 300_000.0)),
        figure("lag_p99_ms", Want::AtMost(50.0, 10.0)),
        figure("bytes_per_idle_watch", Want::Nothing),
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

/// What the watchers saw.
struct Seen {
    began: Instant,
    events: AtomicU64,
    bytes: AtomicU64,
    lags_us: Mutex<Vec<u32>>,
}

impl Seen {
    fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn take(&self, line: &[u8], sent: &Finder<'_>) {
        self.events.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(line.len() as u64, Ordering::Relaxed);
        if let Some(at) = quoted(line, sent).and_then(|text| text.parse::<u64>().ok()) {
            let lag = u32::try_from(self.now_us().saturating_sub(at)).unwrap_or(u32::MAX);
            lock(&self.lags_us).push(lag);
        }
    }

    /// Waits until `count` events have come.
    async fn drained(&self, count: u64) -> Result<(), Error> {
        let asked = Instant::now();
        while self.events.load(Ordering::Relaxed) < count {
            if asked.elapsed() > DRAIN {
                let seen = self.events.load(Ordering::Relaxed);
                return Err(Error::doing("see all events", format!("{seen} of {count} came")));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }
}

async fn measure(run: &mut Run, server: &Server) -> Result<(), Error> {
    let (watchers, pods, outstanding) = (run.count("watchers")?, run.count("pods")?, run.count("outstanding")?);
    let (seconds, rate) = (run.number("seconds")? as f64, run.number("rate")?);
    server.door.namespace(NAMESPACE).await?;
    let path = pods_path(NAMESPACE);
    let made = path.clone();
    let make: Maker = Arc::new(move |number| Ask::post(&made, &gated_pod(&pod_name("pod", number))));
    load::piped(server.process(), &server.door, outstanding, make, Until::Requests(pods)).await?;
    let stored = Arc::new(stored_pods(&server.door, &path).await?);
    let lags_us = Mutex::default();
    let seen = Arc::new(Seen { began: Instant::now(), events: AtomicU64::new(0), bytes: AtomicU64::new(0), lags_us });
    let follow = format!("{path}?watch=true");
    let mut tasks: Vec<Task> = Vec::new();
    for _ in 0..watchers {
        let (seen, sent) = (seen.clone(), Finder::new(br#""example.com/sent-us":""#));
        tasks.push(watch(Some(server.door.two().await?), &follow, move |line| seen.take(line, &sent)).await?);
    }
    let many = |count: usize| (count * watchers) as u64;
    seen.drained(many(pods)).await?;
    let size = seen.bytes.load(Ordering::Relaxed) as f64 / many(pods) as f64;
    run.figure("event_bytes", size);

    for _ in 0..run.number("rounds")? {
        seen.events.store(0, Ordering::Relaxed);
        lock(&seen.lags_us).clear();
        let make = writes(&path, stored.clone(), seen.clone());
        let (server_us, client_us, began) = (server.process().cpu_us(), Process::own().cpu_us(), Instant::now());
        let load = load::piped(server.process(), &server.door, outstanding, make, Until::Seconds(seconds)).await?;
        let events = many(load.latencies_us.len());
        seen.drained(events).await?;
        run.figure("events_per_s", events as f64 / began.elapsed().as_secs_f64());
        run.figure("writes_per_s", load.per_s());
        run.figure("cpu_us_per_event", (server.process().cpu_us() - server_us) as f64 / events as f64);
        run.figure("client_cpu_us_per_event", (Process::own().cpu_us() - client_us) as f64 / events as f64);
        run.figure("lag_full_rate_p99_ms", percentile(&mut lock(&seen.lags_us), 0.99) / 1e3);

        lags(run, server, &seen, (&path, &stored, watchers), rate, seconds).await?;
    }
    drop(tasks);
    idle(run, server).await
}

/// How late events are at a fixed rate of writes.
async fn lags(
    run: &mut Run,
    server: &Server,
    seen: &Arc<Seen>,
    (path, stored, watchers): (&str, &Arc<Vec<Value>>, usize),
    rate: u64,
    seconds: f64,
) -> Result<(), Error> {
    seen.events.store(0, Ordering::Relaxed);
    lock(&seen.lags_us).clear();
    let (line, make) = (server.door.two().await?, writes(path, stored.clone(), seen.clone()));
    let failed = Arc::new(AtomicU64::new(0));
    let sent = load::paced(rate, seconds, |number| {
        let Some(mut line) = line.share() else { return };
        let (ask, failed) = (make(number), failed.clone());
        tokio::spawn(async move {
            if line.pass(&ask).await.is_err() {
                failed.fetch_add(1, Ordering::Relaxed);
            }
        });
    })
    .await;
    if failed.load(Ordering::Relaxed) > 0 {
        return Err(Error::doing("write at a fixed rate", format!("{failed:?} of {sent} writes failed")));
    }
    seen.drained((sent * watchers) as u64).await?;
    let mut lags = lock(&seen.lags_us);
    run.figure("lag_p50_ms", percentile(&mut lags, 0.5) / 1e3);
    run.figure("lag_p99_ms", percentile(&mut lags, 0.99) / 1e3);
    Ok(())
}

/// Replaces pods in turn, each with the time at which it was sent.
fn writes(path: &str, pods: Arc<Vec<Value>>, seen: Arc<Seen>) -> Maker {
    let path = path.to_owned();
    Arc::new(move |number| {
        let mut pod = pods[number % pods.len()].clone();
        pod.set(&["metadata", "annotations", SENT], seen.now_us().to_string());
        Ask::put(&format!("{path}/{}", pod["metadata"]["name"].text()), &pod)
    })
}

/// What a watch costs on which nothing happens. It sees an empty namespace.
async fn idle(run: &mut Run, server: &Server) -> Result<(), Error> {
    let count = run.count("idle")?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut connections: Vec<Line> = Vec::new();
    while connections.len() * IDLE_SHARED < count {
        connections.push(server.door.two().await?);
    }
    let before = server.process().rss_mb();
    let mut tasks = Vec::new();
    for number in 0..count {
        let line = connections[number / IDLE_SHARED].share();
        tasks.push(watch(line, "/api/v1/namespaces/kube-public/pods?watch=true", |_| ()).await?);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    run.figure("bytes_per_idle_watch", (server.process().rss_mb() - before) * 1e6 / count as f64);
    Ok(())
}
