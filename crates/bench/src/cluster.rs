//! A cluster without machines: node objects that are well, their leases renewed as kubelets do it, and a watch of all
//! pods that notes what becomes of them.

use std::collections::{HashMap, HashSet};
use std::net::ToSocketAddrs;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use http_body_util::BodyExt;
use memchr::memmem::Finder;
use meta::{Value, json};
use tokio::task::JoinHandle;

use crate::child::Server;
use crate::door::{Ask, Line};
use crate::error::Error;
use crate::frame::now;
use crate::load::{self, Maker, Until};
use crate::pieces::Pieces;
use crate::pipe::Pipe;
use crate::shapes;

/// How often a kubelet renews its lease.
const LEASE_EVERY: Duration = Duration::from_secs(10);
/// Slices in which the renewals of one period are sent.
const LEASE_SLICES: usize = 50;
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";

/// Ends a task with its owner.
pub struct Task(JoinHandle<()>);

impl Task {
    pub fn spawn(work: impl Future<Output = ()> + Send + 'static) -> Task {
        Task(tokio::spawn(work))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Nodes without machines.
pub struct Nodes {
    pub count: usize,
    /// Those that renew nothing any more.
    dead: Arc<Mutex<HashSet<usize>>>,
    /// How often one that lives was taken for lost.
    doubts: Arc<AtomicUsize>,
    _renewing: Task,
    _beating: Beating,
    _retelling: Task,
}

/// The nodes' signs of life; they end when this is dropped.
struct Beating {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Beating {
    /// Slices of the nodes that send one after the other, as nodes of their own would.
    const SLICES: usize = 25;

    /// Asks for each node's key as its agent would, and sends from here on.
    async fn start(server: &Server, count: usize, dead: Arc<Mutex<HashSet<usize>>>) -> Result<Beating, Error> {
        let failed = |error| Error::doing("send signs of life", error);
        let mut line = server.door.two().await?;
        let mut nodes = Vec::with_capacity(count);
        for number in 0..count {
            let name = shapes::node_name(number);
            let said = Value::parse(&line.ask(&Ask::get(&format!("/beat/{name}"))).await?).unwrap_or_default();
            let key = STANDARD.decode(said["key"].text()).map_err(Error::while_doing("read a node's key"))?;
            nodes.push((name, beat::Signer::new(&key)));
        }
        let address = server.door.address().to_socket_addrs().map_err(failed)?.next();
        let address = address.ok_or_else(|| Error::doing("send signs of life", "the server has no address"))?;
        let pieces = Pieces::new().map_err(failed)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let send = move || {
            let every = Duration::from_millis(beat::EVERY_MS) / u32::try_from(Beating::SLICES).unwrap_or(1);
            let (mut beat, mut all, mut sequence, mut due) = (Vec::new(), Vec::new(), 0, Instant::now());
            for slice in (0..Beating::SLICES).cycle() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                sequence += 1;
                let gone = lock(&dead).clone();
                for number in (slice..nodes.len()).step_by(Beating::SLICES).filter(|number| !gone.contains(number)) {
                    let (name, signer) = &nodes[number];
                    // All names are of one length, and so are these.
                    signer.write(name, sequence, &mut beat);
                    all.extend_from_slice(&beat);
                }
                // A server that does not listen is silence like any other.
                let _ = pieces.send(address, &all, beat.len());
                all.clear();
                due += every;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        };
        let thread = std::thread::Builder::new().name("beats".into()).spawn(send).map_err(failed)?;
        Ok(Beating { stop, thread: Some(thread) })
    }
}

impl Drop for Beating {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // One that panicked sends no more, either.
            let _ = thread.join();
        }
    }
}

impl Nodes {
    /// Makes `count` nodes with their leases, and renews those from here on.
    ///
    /// # Errors
    /// The server refused one.
    pub async fn start(server: &Server, count: usize, zones: usize, outstanding: usize) -> Result<Nodes, Error> {
        let make: Maker = Arc::new(move |number| Ask::post(shapes::NODES, &shapes::node(number, zones, now())));
        Nodes::made(server, count, make, outstanding).await
    }

    /// The same with node objects of one's own.
    ///
    /// # Errors
    /// The server refused one.
    pub async fn made(server: &Server, count: usize, node: Maker, outstanding: usize) -> Result<Nodes, Error> {
        let make: Maker = Arc::new(move |number| {
            if number < count {
                node(number)
            } else {
                Ask::post(LEASES, &shapes::lease(&shapes::node_name(number - count), now()))
            }
        });
        load::piped(server.process(), &server.door, outstanding, make, Until::Requests(2 * count)).await?;
        let dead = Arc::<Mutex<HashSet<usize>>>::default();
        // A renewal that failed is made up for by the next one.
        let pipe = Pipe::open(&server.door, |(), _| {}).await?;
        let renewing = Task::spawn(renew(pipe, count, dead.clone()));
        let beating = Beating::start(server, count, dead.clone()).await?;
        let doubts = Arc::<AtomicUsize>::default();
        let retelling = retell(server, dead.clone(), doubts.clone()).await?;
        Ok(Nodes { count, dead, doubts, _renewing: renewing, _beating: beating, _retelling: retelling })
    }

    /// How often a node that lives was taken for lost.
    pub fn doubts(&self) -> usize {
        self.doubts.load(Ordering::Relaxed)
    }

    /// These nodes fall silent.
    pub fn kill(&self, nodes: impl IntoIterator<Item = usize>) {
        lock(&self.dead).extend(nodes);
    }

    pub fn dead(&self) -> Arc<Mutex<HashSet<usize>>> {
        self.dead.clone()
    }
}

/// Nodes that are taken for lost say that they are well, as every agent does that hears so of itself.
async fn retell(server: &Server, dead: Arc<Mutex<HashSet<usize>>>, doubts: Arc<AtomicUsize>) -> Result<Task, Error> {
    let line = server.door.two().await?;
    let (name, doubted) = (Finder::new(br#""name":"node-"#), Finder::new(br#""reason":"NodeStatusUnknown""#));
    let take = move |event: &[u8]| {
        if doubted.find(event).is_none() {
            return;
        }
        let Some(number) = quoted(event, &name).and_then(|number| number.parse().ok()) else { return };
        let Some(mut line) = line.share().filter(|_| !lock(&dead).contains(&number)) else { return };
        doubts.fetch_add(1, Ordering::Relaxed);
        let status = json!({"status": {"conditions": (node::node_object::conditions(now()))}});
        let path = format!("{}/{}/status?fieldManager=kubelet", shapes::NODES, shapes::node_name(number));
        let ask = Ask::patch(&path, shapes::STRATEGIC, &status);
        // One that is not heard stays in doubt, and is told so by the next event.
        tokio::spawn(async move { line.pass(&ask).await.is_ok() });
    };
    watch(Some(server.door.two().await?), &format!("{}?watch=true", shapes::NODES), take).await
}

async fn renew(pipe: Pipe<()>, count: usize, dead: Arc<Mutex<HashSet<usize>>>) {
    let mut ticks = tokio::time::interval(LEASE_EVERY / u32::try_from(LEASE_SLICES).unwrap_or(1));
    for slice in (0..LEASE_SLICES).cycle() {
        ticks.tick().await;
        for number in (slice..count).step_by(LEASE_SLICES) {
            if lock(&dead).contains(&number) {
                continue;
            }
            let name = shapes::node_name(number);
            let ask = Ask::put(&format!("{LEASES}/{name}"), &shapes::lease(&name, now()));
            if pipe.send(ask, ()).is_err() {
                return;
            }
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What stands before the revision from which a watch is to begin.
const SINCE: &str = "&resourceVersion=";

/// Opens a watch and gives each line of it to `take`, until the task is dropped. When the stream ends, or the watch fell
/// behind the server's history, it begins anew with everything that exists (without the revision in which `path` ends, if
/// it does), as every client of the API must.
///
/// # Errors
/// The watch is refused.
pub async fn watch(
    line: Option<Line>,
    path: &str,
    mut take: impl FnMut(&[u8]) + Send + 'static,
) -> Result<Task, Error> {
    let Some(mut line) = line else { return Err(Error::doing("watch", "the connection cannot be shared")) };
    let response = line.open(&Ask::get(path)).await?;
    let anew = Ask::get(path.split(SINCE).next().unwrap_or(path));
    if !response.status().is_success() {
        return Err(Error::doing("watch", response.status()));
    }
    let mut body = response.into_body();
    Ok(Task::spawn(async move {
        loop {
            let (mut lines, mut lost) = (Lines::default(), false);
            while let Some(Ok(frame)) = body.frame().await {
                let Some(bytes) = frame.data_ref() else { continue };
                lines.feed(bytes, &mut |text: &[u8]| match text.starts_with(br#"{"type":"ERROR""#) {
                    true => lost = true,
                    false => take(text),
                });
                if lost {
                    break;
                }
            }
            // Without a server the bench ends by its own patience.
            let Ok(again) = line.open(&anew).await else { return };
            body = again.into_body();
        }
    }))
}

/// Makes pods that run: each is created on a node and its status told, as a scheduler and a kubelet would.
///
/// # Errors
/// The server refused one.
pub async fn running_pods(server: &Server, pods: usize, nodes: usize, outstanding: usize) -> Result<(), Error> {
    let path = shapes::pods_path(shapes::NAMESPACE);
    let make: Maker = Arc::new(move |number| {
        let name = shapes::pod_name("pod", number / 2);
        if number % 2 == 1 {
            let patch = shapes::running_status(number / 2, now());
            return Ask::patch(&format!("{path}/{name}/status?fieldManager=kubelet"), shapes::MERGE, &patch);
        }
        let mut pod = shapes::usual_pod(&name);
        pod.set(&["spec", "nodeName"], shapes::node_name(number / 2 % nodes.max(1)));
        Ask::post(&path, &pod)
    });
    // A pod and its status go over one hand, one after the other.
    let lines = load::lines(&server.door, outstanding, true).await?;
    load::pairs(lines, make, pods).await
}

/// Parts a stream into lines.
#[derive(Default)]
pub struct Lines(BytesMut);

impl Lines {
    /// Gives each whole line to `take`.
    pub fn feed(&mut self, bytes: &[u8], mut take: impl FnMut(&[u8])) {
        let mut rest = bytes;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            if self.0.is_empty() {
                take(&rest[..end]);
            } else {
                self.0.extend_from_slice(&rest[..end]);
                take(&self.0);
                self.0.clear();
            }
            rest = &rest[end + 1..];
        }
        self.0.extend_from_slice(rest);
    }
}

/// The text that follows `after` up to the next quote.
pub fn quoted<'a>(line: &'a [u8], after: &Finder<'_>) -> Option<&'a str> {
    let start = after.find(line)? + after.needle().len();
    let end = memchr::memchr(b'"', line.get(start..)?)?;
    std::str::from_utf8(&line[start..start + end]).ok()
}

/// What a watch of all pods saw.
pub struct Pods {
    began: Instant,
    /// By name: when it was first seen bound, in microseconds after the beginning.
    bound: Mutex<HashMap<String, u64>>,
    /// Those whose name begins with the prefix that is counted.
    counted: AtomicUsize,
    prefix: Mutex<String>,
    last_us: AtomicU64,
    pub events: AtomicU64,
}

impl Pods {
    /// Watches all pods until the task is dropped, from now on: those that are there would take seconds to be told.
    ///
    /// # Errors
    /// The watch is refused.
    pub async fn watch(server: &Server) -> Result<(Arc<Pods>, Task), Error> {
        let pods = Arc::new(Pods {
            began: Instant::now(),
            bound: Mutex::default(),
            counted: AtomicUsize::new(0),
            prefix: Mutex::default(),
            last_us: AtomicU64::new(0),
            events: AtomicU64::new(0),
        });
        let seen = pods.clone();
        let (name, node) = (Finder::new(br#""name":""#), Finder::new(br#""nodeName":""#));
        let namespace = Finder::new(br#""namespace":""#);
        let take = move |line: &[u8]| seen.take(line, (&name, &node, &namespace));
        let mut line = server.door.two().await?;
        let list = Value::parse(&line.ask(&Ask::get("/api/v1/pods?limit=1")).await?).unwrap_or_default();
        let since = list.at(&["metadata", "resourceVersion"]).text();
        let task = watch(Some(line), &format!("/api/v1/pods?watch=true{SINCE}{since}"), take).await?;
        Ok((pods, task))
    }

    fn take(&self, line: &[u8], finders: (&Finder<'_>, &Finder<'_>, &Finder<'_>)) {
        self.events.fetch_add(1, Ordering::Relaxed);
        let (name, node, namespace) = finders;
        if quoted(line, node).is_none_or(str::is_empty) {
            return;
        }
        // Keys are sorted: the pod's own name stands right before its namespace.
        let Some(end) = namespace.find(line) else { return };
        let head = &line[..end];
        let Some(at) = memchr::memmem::rfind(head, name.needle()) else { return };
        let Some(found) = quoted(&head[at..], name) else { return };
        let now_us = self.now_us();
        let mut bound = lock(&self.bound);
        if bound.contains_key(found) {
            return;
        }
        bound.insert(found.to_owned(), now_us);
        drop(bound);
        if found.starts_with(lock(&self.prefix).as_str()) {
            self.counted.fetch_add(1, Ordering::Relaxed);
            self.last_us.store(now_us, Ordering::Relaxed);
        }
    }

    /// Microseconds since the watch began.
    pub fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// From now on, pods whose name begins with `prefix` are counted.
    pub fn count(&self, prefix: &str) {
        prefix.clone_into(&mut lock(&self.prefix));
        self.counted.store(0, Ordering::Relaxed);
    }

    /// Waits until `count` pods of the prefix are bound.
    ///
    /// # Errors
    /// Nothing more was bound for `patience`.
    pub async fn await_bound(&self, count: usize, patience: Duration) -> Result<(), Error> {
        let (mut known, mut since) = (0, Instant::now());
        loop {
            let counted = self.counted.load(Ordering::Relaxed);
            if counted >= count {
                return Ok(());
            }
            if counted > known {
                (known, since) = (counted, Instant::now());
            }
            if since.elapsed() > patience {
                let why = format!("{counted} of {count} are, and no more for {} s", patience.as_secs());
                return Err(Error::doing("see all pods bound", why));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// How many pods of the prefix are bound.
    pub fn counted(&self) -> usize {
        self.counted.load(Ordering::Relaxed)
    }

    /// When the pod was first seen bound.
    pub fn bound_us(&self, name: &str) -> Option<u64> {
        lock(&self.bound).get(name).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole() {
        let (mut lines, mut seen) = (Lines::default(), Vec::new());
        for part in ["ab\nc", "", "d\n\ne", "f"] {
            lines.feed(part.as_bytes(), |line| seen.push(String::from_utf8_lossy(line).into_owned()));
        }
        assert_eq!(seen, ["ab", "cd", ""]);
    }

    #[test]
    fn quotes_end() {
        let finder = Finder::new(br#""a":""#);
        assert_eq!(quoted(br#"{"a":"b","c":1}"#, &finder), Some("b"));
        assert_eq!(quoted(br#"{"a":"b"#, &finder), None);
        assert_eq!(quoted(br#"{"c":"b"}"#, &finder), None);
    }
}
