//! LIST of all pods of a large cluster: whole and in pages, as JSON and as protobuf, alone and ten at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;

use crate::child::Server;
use crate::cluster::{self, Nodes, quoted};
use crate::door::{Ask, Door, JSON, PROTOBUF};
use crate::error::Error;
use crate::frame::{Bench, Run, Want, figure, option};
use crate::machine::Process;
use crate::shapes::NAMESPACE;

/// Callers at once in the last measurement.
const AT_ONCE: usize = 10;
/// How often the server's memory is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(5);
/// Bytes at the end of a page in which its token stands.
const TAIL_BYTES: usize = 4096;

pub const BENCH: Bench = Bench {
    name: "list",
    about: "LIST of all Running pods over TLS: JSON and protobuf, whole and in pages, and ten at once",
    options: &[
        option("nodes", "5000", "10", "Nodes"),
        option("pods", "150000", "200", "Pods that run"),
        option("page", "500", "20", "Objects of a page"),
        option("rounds", "3", "1", "How often; the median counts"),
        option("outstanding", "128", "8", "Requests at once while the pods are made"),
    ],
    figures: &[
        figure("json_seconds", Want::AtMost(2.0, 0.6)),
        figure("protobuf_seconds", Want::AtMost(2.0, 0.6)),
        figure("extra_rss_mb", Want::AtMost(128.0, 32.0)),
    ],
    peer: None,
    needs_root: false,
    run,
};

fn run(run: &mut Run) -> Result<(), Error> {
    // The caller's side of TLS has a thread for each of those at once.
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let tokio = tokio.map_err(Error::while_doing("start the client"))?;
    tokio.block_on(async {
        let server = Server::start(run, "server", &[]).await?;
        measure(run, &server).await
    })
}

async fn measure(run: &mut Run, server: &Server) -> Result<(), Error> {
    let (nodes, pods, outstanding) = (run.count("nodes")?, run.count("pods")?, run.count("outstanding")?);
    server.door.namespace(NAMESPACE).await?;
    let empty_mb = server.process().rss_mb();
    run.say(format!("{nodes} nodes, {pods} pods that run"));
    let _nodes = Nodes::start(server, nodes, 3, outstanding).await?;
    let began = Instant::now();
    cluster::running_pods(server, pods, nodes, outstanding).await?;
    run.figure("pods_made_per_s", pods as f64 / began.elapsed().as_secs_f64());
    run.figure("rss_mb", server.process().rss_mb());
    run.figure("bytes_per_pod", (server.process().rss_mb() - empty_mb) * 1e6 / pods as f64);
    let (mut before, mut rounds) = (f64::MAX, run.number("rounds")?);
    while rounds > 0 {
        rounds -= 1;
        for (name, media) in [("json", JSON), ("protobuf", PROTOBUF)] {
            before = before.min(server.process().rss_mb());
            let done = one(server, "/api/v1/pods", media).await?;
            run.figure(&format!("{name}_seconds"), done.seconds);
            run.figure(&format!("{name}_mb"), done.bytes as f64 / 1e6);
            run.figure(&format!("{name}_cpu_seconds"), done.cpu_us as f64 / 1e6);
            run.figure(&format!("{name}_extra_rss_mb"), done.peak_mb - before);
            if media == JSON {
                run.figure("extra_rss_mb", done.peak_mb - before);
            }
        }
        let page = run.count("page")?;
        let began = Instant::now();
        let found = paged(&server.door, page).await?;
        run.figure("json_paged_seconds", began.elapsed().as_secs_f64());
        if found != pods.div_ceil(page) {
            return Err(Error::doing("list in pages", format!("{found} pages of {page} instead of all {pods}")));
        }
        let watcher = Peak::start(server.process());
        let began = Instant::now();
        let tasks: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                let door = server.door.clone();
                tokio::spawn(async move { read(&door, "/api/v1/pods", JSON).await })
            })
            .collect();
        for task in tasks {
            task.await.map_err(Error::while_doing("list"))??;
        }
        run.figure("ten_at_once_seconds", began.elapsed().as_secs_f64());
        run.figure("ten_at_once_extra_rss_mb", watcher.stop() - before);
    }
    Ok(())
}

struct Done {
    seconds: f64,
    bytes: usize,
    cpu_us: u64,
    peak_mb: f64,
}

async fn one(server: &Server, path: &str, media: &'static str) -> Result<Done, Error> {
    let watcher = Peak::start(server.process());
    let cpu = server.process().cpu_us();
    let began = Instant::now();
    let bytes = read(&server.door, path, media).await?;
    let seconds = began.elapsed().as_secs_f64();
    Ok(Done { seconds, bytes, cpu_us: server.process().cpu_us() - cpu, peak_mb: watcher.stop() })
}

async fn read(door: &Door, path: &str, media: &'static str) -> Result<usize, Error> {
    door.two().await?.pass(&Ask::get(path).accepting(media)).await
}

/// Reads all pages, one after the other; how many there were.
async fn paged(door: &Door, page: usize) -> Result<usize, Error> {
    let mut line = door.two().await?;
    let finder = memchr::memmem::Finder::new(br#""continue":""#);
    let (mut pages, mut path) = (0, format!("/api/v1/pods?limit={page}"));
    loop {
        let response = line.open(&Ask::get(&path)).await?;
        if !response.status().is_success() {
            return Err(Error::doing("list a page", response.status()));
        }
        let (mut body, mut tail) = (response.into_body(), Vec::new());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(Error::while_doing("list a page"))?;
            let Some(bytes) = frame.data_ref() else { continue };
            tail.extend_from_slice(&bytes[bytes.len().saturating_sub(TAIL_BYTES)..]);
            tail.drain(..tail.len().saturating_sub(TAIL_BYTES));
        }
        pages += 1;
        match quoted(&tail, &finder) {
            Some(token) if !token.is_empty() => path = format!("/api/v1/pods?limit={page}&continue={token}"),
            _ => return Ok(pages),
        }
    }
}

/// Notes the most memory that a process uses.
pub struct Peak {
    stop: Arc<AtomicBool>,
    /// In bytes.
    most: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Peak {
    pub fn start(process: Process) -> Peak {
        let (stop, most) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = {
            let (stop, most) = (stop.clone(), most.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    most.fetch_max((process.rss_mb() * 1e6) as u64, Ordering::Relaxed);
                    std::thread::sleep(LOOK);
                }
            })
        };
        Peak { stop, most, thread }
    }

    /// In MB.
    pub fn stop(self) -> f64 {
        self.stop.store(true, Ordering::Relaxed);
        // A thread that only looks does not panic.
        let _ = self.thread.join();
        self.most.load(Ordering::Relaxed) as f64 / 1e6
    }
}
