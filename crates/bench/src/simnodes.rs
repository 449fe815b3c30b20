//! Agents without machines: the real pod machine for every pod, on a runtime whose containers start and end at once.
//!
//! One thread follows all pods over one watch, where real kubelets have a watch each, and sends what the pod machine
//! wants told over a few connections. Containers do what their image says: all run until they are stopped.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base::Time;
use bytes::Bytes;
use memchr::memmem::Finder;
use meta::{Facts, Object, Reason, Resource, Str, Value};
use node::pod::{Command, Observed, Outcome, Seen, SeenState, Worker, decide::all_containers, worker};
use tokio::sync::mpsc;

use crate::cluster::{Task, lock, watch};
use crate::door::{Ask, Door};
use crate::error::Error;
use crate::frame::now;
use crate::numbers::percentile;
use crate::pipe::{Answer, Pipe};

const PODS: Resource = Resource("pods");
/// Looks at one pod in a row; more would be a circle.
const LOOKS_MAX: usize = 32;
/// Connections over which statuses are told.
const CONNECTIONS: usize = 4;
/// After a refusal.
const RETRY_MS: u64 = 1_000;

/// What the nodes did, for whoever waits for it.
#[derive(Default)]
pub struct Counts {
    /// Pods whose Running status the server has taken, and that still are.
    pub running: AtomicUsize,
    /// Pods that the nodes have something of.
    pub present: AtomicUsize,
    pub statuses: AtomicU64,
    pub refused: AtomicU64,
    /// Of writes to the API, in microseconds.
    latencies_us: Mutex<Vec<u32>>,
    /// When each pod, by name, was first seen on its node.
    pub bound: Mutex<HashMap<String, Instant>>,
    /// When each pod, by name, was first told to run.
    pub started: Mutex<HashMap<String, Instant>>,
}

impl Counts {
    /// The 99th percentile of the nodes' own writes since the last call, in milliseconds.
    pub fn write_p99_ms(&self) -> f64 {
        percentile(&mut std::mem::take(&mut *lock(&self.latencies_us)), 0.99) / 1e3
    }

    /// Waits until `pods` pods run.
    ///
    /// # Errors
    /// Nothing changed for `patience`.
    pub async fn await_running(&self, pods: usize, patience: Duration) -> Result<(), Error> {
        self.await_count(&self.running, pods, patience).await
    }

    /// Waits until `count` is `wanted`.
    ///
    /// # Errors
    /// Nothing changed for `patience`.
    pub async fn await_count(&self, count: &AtomicUsize, wanted: usize, patience: Duration) -> Result<(), Error> {
        let (mut known, mut since) = (usize::MAX, Instant::now());
        loop {
            let found = count.load(Ordering::Relaxed);
            if found == wanted {
                return Ok(());
            }
            if found != known {
                (known, since) = (found, Instant::now());
            }
            if since.elapsed() > patience {
                let refused = self.refused.load(Ordering::Relaxed);
                let why = format!("{found} of {wanted} for {} s; {refused} writes refused", patience.as_secs());
                return Err(Error::doing("see all pods run", why));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// The running nodes; they end when this is dropped.
pub struct SimNodes {
    pub counts: Arc<Counts>,
    words: Option<mpsc::UnboundedSender<Word>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// What the thread hears.
enum Word {
    Line(Bytes),
    Told(Str, Value, Answer, u32),
    Deleted(Str, Command, Answer),
    Silence(std::sync::mpsc::Sender<()>),
    Stop,
}

impl SimNodes {
    /// Starts the agents of all nodes; pods on `dead` nodes are left alone.
    ///
    /// # Errors
    /// The watch is refused.
    pub async fn start(door: &Door, dead: Arc<Mutex<HashSet<usize>>>) -> Result<SimNodes, Error> {
        let counts = Arc::new(Counts::default());
        let (sender, receiver) = mpsc::unbounded_channel();
        let (ready, started) = tokio::sync::oneshot::channel();
        let (door, shared, words) = (door.clone(), counts.clone(), sender.clone());
        let work = move || {
            let Ok(tokio) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
            tokio.block_on(async move {
                match Agents::connect(&door, shared, words, dead).await {
                    Ok(agents) => {
                        // Whoever waits is there: it is the caller.
                        let _ = ready.send(Ok(()));
                        agents.run(receiver).await;
                    }
                    Err(error) => drop(ready.send(Err(error))),
                }
            });
        };
        let thread = std::thread::Builder::new().name("sim-nodes".into()).spawn(work);
        let thread = thread.map_err(Error::while_doing("start the nodes"))?;
        started.await.map_err(Error::while_doing("start the nodes"))??;
        Ok(SimNodes { counts, words: Some(sender), thread: Some(thread) })
    }
}

impl SimNodes {
    /// Forgets what runs on nodes that died since the last call: nothing is told of it any more.
    pub fn fall_silent(&self) {
        let (sender, receiver) = std::sync::mpsc::channel();
        if let Some(words) = &self.words
            && words.send(Word::Silence(sender)).is_ok()
        {
            // The thread answers, or it is gone and tells nothing either.
            let _ = receiver.recv();
        }
    }
}

impl Drop for SimNodes {
    fn drop(&mut self) {
        if let Some(words) = self.words.take() {
            // A thread that ended hears nothing.
            let _ = words.send(Word::Stop);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One pod on its node.
struct Pod {
    name: String,
    worker: Worker,
    sandbox: bool,
    ready: bool,
    address: Str,
    /// The newest attempt of each.
    containers: BTreeMap<Str, Seen>,
    /// A status is on its way.
    telling: bool,
    /// The status that was told last says that it runs.
    runs: bool,
    wake: Option<Time>,
}

impl Pod {
    fn observed(&self) -> Observed {
        Observed {
            sandbox: self.sandbox,
            sandbox_ready: self.ready,
            addresses: if self.sandbox { vec![self.address.clone()] } else { Vec::new() },
            containers: self.containers.clone(),
            previous: BTreeMap::new(),
        }
    }

    fn end(&mut self, now: Time) {
        self.ready = false;
        for seen in self.containers.values_mut().filter(|seen| seen.state == SeenState::Running) {
            (seen.state, seen.finished, seen.exit_code) = (SeenState::Exited, Some(now), 137);
        }
    }

    /// Carries out what needs no server; `None` for what does.
    fn carry(&mut self, uid: &str, command: &Command, now: Time) -> Option<Outcome> {
        match command {
            Command::Prepare => (self.sandbox, self.ready) = (true, true),
            Command::Start { container, attempt } => {
                let wanted = all_containers(self.worker.pod()).find(|one| one["name"].text() == container.as_str());
                let image = Str::from(wanted.map(|one| one["image"].text()).unwrap_or_default());
                let seen = Seen {
                    id: format!("{uid}-{container}-{attempt}").into(),
                    attempt: *attempt,
                    state: SeenState::Running,
                    image: image.clone(),
                    image_id: image,
                    started: Some(now),
                    finished: None,
                    exit_code: 0,
                    signal: 0,
                    reason: Str::default(),
                    message: Str::default(),
                    limits: None,
                };
                self.containers.insert(container.clone(), seen);
                return Some(Outcome::Started(Ok(())));
            }
            // Limits are not told here, so none is ever to be changed.
            Command::Resize { .. } => {}
            Command::Stop { container, .. } => {
                if let Some(seen) = self.containers.get_mut(container) {
                    (seen.state, seen.finished, seen.exit_code) = (SeenState::Exited, Some(now), 143);
                    seen.reason = "Error".into();
                }
            }
            Command::Probe { .. } => return Some(Outcome::Probed(true, String::new())),
            Command::End => self.end(now),
            Command::Remove => {
                self.end(now);
                self.containers.clear();
                self.sandbox = false;
            }
            Command::Delete => return None,
        }
        Some(Outcome::Done(Ok(())))
    }
}

struct Agents {
    pods: HashMap<Str, Pod>,
    wakes: BTreeSet<(Time, Str)>,
    pipes: Vec<Pipe<Asked>>,
    turn: usize,
    addresses: u64,
    counts: Arc<Counts>,
    dead: Arc<Mutex<HashSet<usize>>>,
    /// The pod that was read last.
    like: Value,
    _watch: Task,
}

impl Agents {
    async fn connect(
        door: &Door,
        counts: Arc<Counts>,
        words: mpsc::UnboundedSender<Word>,
        dead: Arc<Mutex<HashSet<usize>>>,
    ) -> Result<Agents, Error> {
        let mut pipes = Vec::new();
        for _ in 0..CONNECTIONS {
            let words = words.clone();
            pipes.push(Pipe::open(door, move |asked, answer| hear(&words, asked, answer)).await?);
        }
        let (sender, node) = (words, Finder::new(br#""nodeName":""#));
        let take = move |line: &[u8]| {
            if node.find(line).is_some() {
                // The receiver ends with the whole thread.
                let _ = sender.send(Word::Line(Bytes::copy_from_slice(line)));
            }
        };
        let watch = watch(Some(door.two().await?), "/api/v1/pods?watch=true", take).await?;
        let (pods, wakes) = (HashMap::new(), BTreeSet::new());
        let like = Value::Null;
        Ok(Agents { pods, wakes, pipes, turn: 0, addresses: 0, counts, dead, like, _watch: watch })
    }

    async fn run(mut self, mut words: mpsc::UnboundedReceiver<Word>) {
        loop {
            let next = self.wakes.first().map(|(at, _)| at.ms_since(now()).max(1));
            let word = tokio::select! {
                biased;
                word = words.recv() => word,
                () = tokio::time::sleep(Duration::from_millis(next.unwrap_or(60_000))) => {
                    self.wake();
                    continue;
                }
            };
            match word {
                None | Some(Word::Stop) => return,
                Some(Word::Silence(done)) => {
                    self.silence();
                    // Whoever asked may have gone.
                    let _ = done.send(());
                }
                Some(Word::Line(line)) => self.see(&line),
                Some(Word::Told(uid, status, answer, us)) => self.told(&uid, status, &answer, us),
                Some(Word::Deleted(uid, command, answer)) => {
                    let outcome = match answer {
                        Err(status) if status.reason() != Reason::NotFound => Err(status.message().to_owned()),
                        _ => Ok(()),
                    };
                    if let Some(pod) = self.pods.get_mut(&uid) {
                        pod.worker.take(&command, Outcome::Done(outcome), now());
                    }
                    self.look(&uid);
                }
            }
        }
    }

    /// Forgets the pods of dead nodes.
    fn silence(&mut self) {
        let dead = lock(&self.dead).clone();
        let on_dead = |pod: &Pod| number_of(pod.worker.pod()).is_some_and(|number| dead.contains(&number));
        let gone: Vec<Str> = self.pods.iter().filter(|(_, pod)| on_dead(pod)).map(|(uid, _)| uid.clone()).collect();
        for uid in gone {
            self.forget(&uid);
        }
    }

    /// Pods whose time has come.
    fn wake(&mut self) {
        let now = now();
        while let Some((at, uid)) = self.wakes.first().cloned() {
            if at > now {
                return;
            }
            self.wakes.remove(&(at, uid.clone()));
            if let Some(pod) = self.pods.get_mut(&uid) {
                pod.wake = None;
            }
            self.look(&uid);
        }
    }

    /// Takes one event of the watch.
    fn see(&mut self, line: &Bytes) {
        let Some((deleted, text)) = event_of(line) else { return };
        // Pods are much like those before them.
        let Ok(value) = Value::parse_like(&text, &self.like, &mut Vec::new()) else { return };
        self.like = value.clone();
        if number_of(&value).is_none_or(|number| lock(&self.dead).contains(&number)) {
            return;
        }
        let object = Object::written(Facts::of(PODS, &value), text, value);
        let uid = Str::from(object.uid());
        if deleted && !self.pods.contains_key(&uid) {
            return;
        }
        let pod = self.pods.entry(uid.clone()).or_insert_with(|| {
            self.addresses += 1;
            self.counts.present.fetch_add(1, Ordering::Relaxed);
            lock(&self.counts.bound).entry(object.name().to_owned()).or_insert_with(Instant::now);
            let number = self.addresses;
            let address = format!("10.{}.{}.{}", 128 + number / 65_536 % 64, number / 256 % 256, number % 256);
            Pod {
                name: object.name().to_owned(),
                worker: Worker::new(&object),
                address: address.into(),
                sandbox: false,
                ready: false,
                containers: BTreeMap::new(),
                telling: false,
                runs: false,
                wake: None,
            }
        });
        pod.worker.see((!deleted).then_some(&object), now());
        self.look(&uid);
    }

    /// Lets the pod machine decide until it has nothing to say.
    fn look(&mut self, uid: &Str) {
        let at = now();
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let mut calls = Vec::new();
        for _ in 0..LOOKS_MAX {
            let Some(commands) = pod.worker.decide(&pod.observed(), at) else {
                self.forget(uid);
                return;
            };
            if commands.is_empty() {
                break;
            }
            for command in commands {
                match pod.carry(uid, &command, at) {
                    Some(outcome) => drop(pod.worker.take(&command, outcome, at)),
                    None => calls.push(command),
                }
            }
        }
        let status = if pod.telling { None } else { pod.worker.status(&pod.observed(), &["192.168.0.1".into()], at) };
        let farewell = (!calls.is_empty()).then(|| worker::farewell(pod.worker.pod()));
        let telling = status.map(|status| {
            pod.telling = true;
            (pod.worker.telling(&status), status)
        });
        if let Some(wake) = pod.worker.wake().filter(|wake| *wake > at && pod.wake.is_none_or(|known| known > *wake)) {
            if let Some(known) = pod.wake.replace(wake) {
                self.wakes.remove(&(known, uid.clone()));
            }
            self.wakes.insert((wake, uid.clone()));
        }
        if let Some((request, status)) = telling {
            self.send(&request, Asked::Status(uid.clone(), status, Instant::now()));
        }
        for command in calls {
            if let Some(request) = &farewell {
                self.send(request, Asked::Deletion(uid.clone(), command));
            }
        }
    }

    fn send(&mut self, request: &client::Request, asked: Asked) {
        self.turn += 1;
        let pipe = &self.pipes[self.turn % CONNECTIONS];
        // What cannot be sent is not answered: the pod waits for it.
        let sent = Ask::of(request).and_then(|ask| pipe.send(ask, asked));
        debug_assert!(sent.is_ok(), "{sent:?}");
    }

    fn told(&mut self, uid: &Str, status: Value, answer: &Answer, us: u32) {
        self.counts.statuses.fetch_add(1, Ordering::Relaxed);
        lock(&self.counts.latencies_us).push(us);
        if answer.is_err() {
            self.counts.refused.fetch_add(1, Ordering::Relaxed);
        }
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let runs = status["phase"].text() == "Running" && pod.ready;
        pod.telling = false;
        pod.worker.told(status, answer.as_ref().copied());
        if answer.is_ok() && runs != pod.runs {
            pod.runs = runs;
            if runs {
                self.counts.running.fetch_add(1, Ordering::Relaxed);
                lock(&self.counts.started).insert(pod.name.clone(), Instant::now());
            } else {
                self.counts.running.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.look(uid);
    }

    fn forget(&mut self, uid: &Str) {
        let Some(pod) = self.pods.remove(uid) else { return };
        self.counts.present.fetch_sub(1, Ordering::Relaxed);
        if pod.runs {
            self.counts.running.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(wake) = pod.wake {
            self.wakes.remove(&(wake, uid.clone()));
        }
    }
}

/// Whether a line of a watch tells that something is gone, and the object's text in it.
fn event_of(line: &Bytes) -> Option<(bool, Bytes)> {
    let rest = line.strip_prefix(br#"{"type":""#)?;
    let start = line.len() - rest.len() + memchr::memmem::find(rest, br#","object":"#)? + br#","object":"#.len();
    Some((rest.starts_with(b"DELETED"), line.slice(start..line.len().checked_sub(1)?)))
}

/// The number of the node that a pod is on.
fn number_of(pod: &Value) -> Option<usize> {
    pod["spec"]["nodeName"].text().strip_prefix("node-")?.parse().ok()
}

/// What a write was about, until it is answered.
enum Asked {
    /// Of a pod, with the moment in which it was sent.
    Status(Str, Value, Instant),
    Deletion(Str, Command),
}

/// Passes an answer on; what was refused, some time later.
fn hear(words: &mpsc::UnboundedSender<Word>, asked: Asked, answer: Answer) {
    let word = match asked {
        Asked::Status(uid, status, sent) => Word::Told(uid, status, answer, crate::load::micros(sent.elapsed())),
        Asked::Deletion(uid, command) => Word::Deleted(uid, command, answer),
    };
    // The receiver ends with the whole thread.
    if !matches!(word, Word::Told(_, _, Err(_), _)) {
        let _ = words.send(word);
        return;
    }
    let words = words.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(RETRY_MS)).await;
        let _ = words.send(word);
    });
}
