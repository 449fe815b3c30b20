//! The store in this process: a thread that commits, and readers that never wait for it.
//!
//! Writers queue; the thread takes whatever is queued as one batch (no timers: a lone write goes at once), and one write
//! and one sync later publishes it, feeds the sink and answers. Leases count on a clock that never jumps.

use crate::backend::{Backend, ready};
use crate::disk::{Disk, FileDisk};
use crate::error::{OpenError, lock_error};
use crate::recover::Recovered;
use crate::snapshot::{SnapshotBuffers, SnapshotJob};
use crate::stage::Lsn;
use crate::store::{Command, Options, Sink, Store};
use crate::ticket::{Done, Ticket};
use crate::types::{Commit, Error, LeaseId, Range, Txn};
use crate::visible::{Events, Page, State, Visible};
use base::{Revision, Time};
use bytes::Bytes;
use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use turn::Turn;

/// Commands in one batch.
pub const BATCH_COMMANDS: usize = 1024;
/// Bytes at which a batch is closed.
pub const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Commands that may wait; more are answered with [`Error::Busy`].
pub const QUEUE_COMMANDS: usize = 65_536;
/// How long commands wait at most for an [`Alarm`], when more come.
const ALARM_PATIENCE: Duration = Duration::from_millis(1);
/// How long a snapshot is content with what others leave: the log grows meanwhile, and with it the time that opening takes.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(30);
/// So many times as long as a piece of a snapshot took is the pause after it.
const SNAPSHOT_PAUSE: u32 = 4;
/// The longest pause of a snapshot that is late: a piece takes some milliseconds.
const SNAPSHOT_LATE_PAUSE_MAX: Duration = Duration::from_millis(40);
/// States of the past kept for lists that go on page by page.
const RECENT_STATES: usize = 16;

#[derive(Default)]
struct Queue {
    commands: VecDeque<Command>,
    snapshots: Vec<(Lsn, io::Result<u64>)>,
    /// The thread sleeps and must be woken.
    asleep: bool,
    /// Since when an [`Alarm`] is to be rung.
    asked: Option<Instant>,
    closing: bool,
    /// Nothing is taken any more.
    closed: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    status: Mutex<Status>,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How the background work fares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Snapshots written since the store was opened.
    pub snapshots: u64,
    /// Why the last snapshot, or the removal of what it replaces, failed; it will be tried again.
    pub snapshot_error: Option<String>,
}

pub struct Embedded {
    shared: Arc<Shared>,
    visible: Arc<RwLock<Visible>>,
    recent: Mutex<VecDeque<State>>,
    asks: OnceLock<Box<dyn Fn() + Send + Sync>>,
    thread: Mutex<Option<JoinHandle<Result<(), Error>>>>,
}

impl Embedded {
    /// Opens the store in folder `dir`, or begins one there.
    ///
    /// # Errors
    /// [`OpenError`]; each says what to do.
    pub fn open(dir: &Path, options: Options) -> Result<(Embedded, Recovered), OpenError> {
        let disk = FileDisk::lock(dir, true).map_err(lock_error(dir.display().to_string()))?;
        Embedded::open_on(Arc::new(disk), options)
    }

    /// The same on any disk.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_on(disk: Arc<dyn Disk>, options: Options) -> Result<(Embedded, Recovered), OpenError> {
        let clock = Monotonic::start();
        let (store, recovered) = Store::open(disk.clone(), options, random_id(), clock.now())?;
        let visible = store.visible();
        let (queue, status) = (Mutex::new(Queue::default()), Mutex::new(Status::default()));
        let shared = Arc::new(Shared { queue, wake: Condvar::new(), status });
        let committer = Committer { shared: shared.clone(), store, disk, clock, batch: Vec::new() };
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || committer.run())
            .map_err(|source| OpenError::Io { operation: "start the thread of", file: "the store".into(), source })?;
        let recent = Mutex::new(VecDeque::new());
        let asks = OnceLock::new();
        Ok((Embedded { shared, visible, recent, asks, thread: Mutex::new(Some(thread)) }, recovered))
    }

    fn send(&self, command: Command) {
        let mut queue = self.shared.queue();
        let refusal = if queue.closed || queue.closing {
            Some(Error::Closed)
        } else if queue.commands.len() >= QUEUE_COMMANDS {
            Some(Error::Busy)
        } else {
            None
        };
        if let Some(error) = refusal {
            drop(queue);
            command.refuse(error);
            return;
        }
        queue.commands.push_back(command);
        let (first, ask) = (std::mem::take(&mut queue.asleep), self.asks.get());
        if first && ask.is_some() {
            queue.asked = Some(Instant::now());
        }
        let late = queue.asked.take_if(|asked| asked.elapsed() > ALARM_PATIENCE).is_some();
        drop(queue);
        match ask {
            Some(ask) if first => ask(),
            _ if first || late => self.shared.wake.notify_one(),
            _ => {}
        }
    }

    /// Lets writers say when the thread that commits is woken: `ask` is called with the first command that waits for it, and
    /// the [`Alarm`] is to be rung soon after, in any case and from anywhere. (Where that takes long, the next one who writes
    /// wakes the thread.) Who writes on until then has more written together: woken at once, the thread would cut in on those
    /// very writers, and write two or three changes at a time.
    ///
    /// Once for a store; a second call changes nothing.
    pub fn woken_by(&self, ask: impl Fn() + Send + Sync + 'static) -> Alarm {
        let _ = self.asks.set(Box::new(ask));
        Alarm(self.shared.clone())
    }

    fn ask<T: Send + 'static>(&self, make: impl FnOnce(Done<T>) -> Command) -> Ticket<T> {
        let (done, ticket) = Ticket::new();
        self.send(make(done));
        ticket
    }

    fn visible(&self) -> std::sync::RwLockReadGuard<'_, Visible> {
        self.visible.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest value of a key; does not wait for writers.
    pub fn get(&self, key: &[u8]) -> Option<Arc<crate::types::Version>> {
        self.visible().newest().get(key).cloned()
    }

    /// The whole state at a revision, by an O(1) clone for the newest one.
    ///
    /// # Errors
    /// [`Error::Compacted`] and [`Error::Ahead`].
    pub fn state(&self, at: Option<Revision>) -> Result<State, Error> {
        let Some(revision) = at else { return self.visible().state(None) };
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = recent.iter().find(|state| state.revision == revision)
            && revision >= self.visible().floor()
        {
            return Ok(state.clone());
        }
        let state = self.visible().state(at)?;
        if recent.len() == RECENT_STATES {
            recent.pop_front();
        }
        recent.push_back(state.clone());
        Ok(state)
    }

    /// How the background work fares.
    pub fn status(&self) -> Status {
        self.shared.status().clone()
    }

    /// Does what is queued, writes ephemeral keys down and gives the folder free.
    ///
    /// # Errors
    /// [`Error::Disk`] when the last writing failed; everything acknowledged is safe all the same.
    pub fn close(self) -> Result<(), Error> {
        self.stop()
    }

    fn stop(&self) -> Result<(), Error> {
        self.shared.queue().closing = true;
        self.shared.wake.notify_one();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        thread.map_or(Ok(()), |thread| thread.join().unwrap_or(Err(Error::Closed)))
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

impl Backend for Embedded {
    fn submit(&self, txn: Txn, done: Done<Commit>) {
        self.send(Command::Txn { txn, done });
    }

    fn range(&self, range: Range, at: Option<Revision>, start_after: Option<Bytes>, limit: usize) -> Ticket<Page> {
        ready(self.state(at).map(|state| state.read(&range, start_after.as_deref(), limit)))
    }

    fn count(&self, range: Range, at: Option<Revision>) -> Ticket<usize> {
        ready(self.state(at).map(|state| state.count(&range)))
    }

    fn since(&self, after: Revision, max: usize) -> Ticket<Events> {
        ready(self.visible().since(after, max))
    }

    fn follow(&self, after: Revision, sink: Box<dyn Sink>) -> Ticket<Revision> {
        self.ask(|done| Command::Follow { after, sink, done })
    }

    fn grant(&self, ttl_ms: u64) -> Ticket<LeaseId> {
        self.ask(|done| Command::Grant { ttl_ms, done })
    }

    fn renew(&self, id: LeaseId) -> Ticket<u64> {
        self.ask(|done| Command::Renew { id, done })
    }

    fn revoke(&self, id: LeaseId) -> Ticket<Commit> {
        self.ask(|done| Command::Revoke { id, done })
    }

    fn compact(&self, at: Revision) -> Ticket<()> {
        self.ask(|done| Command::Compact { at, done })
    }

    fn revision(&self) -> Revision {
        self.visible().revision()
    }
}

/// Wall time at the start, and from then on time that never jumps.
struct Monotonic {
    start: Time,
    since: Instant,
}

impl Monotonic {
    fn start() -> Monotonic {
        let micros = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
        Monotonic { start: Time(i64::try_from(micros).unwrap_or(i64::MAX)), since: Instant::now() }
    }

    fn now(&self) -> Time {
        Time(self.start.0.saturating_add(i64::try_from(self.since.elapsed().as_micros()).unwrap_or(i64::MAX)))
    }
}

/// A number that no other store has: it only keeps apart files that somebody mixed up.
fn random_id() -> u64 {
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u64(u64::from(std::process::id()));
    hasher.finish()
}

/// Wakes the thread that commits.
pub struct Alarm(Arc<Shared>);

impl Alarm {
    pub fn ring(&self) {
        self.0.wake.notify_one();
    }
}

struct Committer {
    shared: Arc<Shared>,
    store: Store,
    disk: Arc<dyn Disk>,
    clock: Monotonic,
    batch: Vec<Command>,
}

/// Writes a snapshot in what those who serve leave, and in small pieces with pauses between, of a second's work in all.
/// One that is not done after a while, or is waited for, asks for its share: the late one makes shorter pauses, the one that
/// is waited for none.
fn write_beside(job: &SnapshotJob, disk: &dyn Disk, shared: &Shared) -> io::Result<u64> {
    let (began, mut asked, mut piece) = (Instant::now(), false, Instant::now());
    let _ = turn::take(Turn::Spare);
    let mut between = || {
        let (pause, closing) = (piece.elapsed() * SNAPSHOT_PAUSE, shared.queue().closing);
        let late = began.elapsed() > SNAPSHOT_PATIENCE;
        if (late || closing) && !std::mem::replace(&mut asked, true) {
            let _ = turn::take(Turn::Later);
        }
        if !closing {
            // What it waited for a processor is no reason to wait longer, when it is late.
            std::thread::sleep(if late { pause.min(SNAPSHOT_LATE_PAUSE_MAX) } else { pause });
        }
        piece = Instant::now();
    };
    job.write_with(disk, &mut SnapshotBuffers::default(), &mut between)
}

/// Answers whoever still waits when the thread ends, also by a panic.
struct Farewell(Arc<Shared>);

impl Drop for Farewell {
    fn drop(&mut self) {
        let mut queue = self.0.queue();
        queue.closed = true;
        let waiting = std::mem::take(&mut queue.commands);
        drop(queue);
        waiting.into_iter().for_each(|command| command.refuse(Error::Closed));
    }
}

impl Committer {
    fn run(mut self) -> Result<(), Error> {
        let _farewell = Farewell(self.shared.clone());
        // This thread has its turn as all have: while it waits, more gathers for one sync. With a turn sooner, a write cost a
        // third more. With a later one, it waited for whatever else computes on the machine: a hundredfold.
        let mut snapshot: Option<JoinHandle<()>> = None;
        // Whoever opened the store goes on meanwhile. What fails here fails for the first batch again, and is told then.
        let _ = self.store.begin();
        while self.take_batch() {
            let mut batch = std::mem::take(&mut self.batch);
            self.store.run(batch.drain(..), self.clock.now());
            self.batch = batch;
            if let Some(job) = self.store.snapshot_due() {
                let (shared, disk, lsn) = (self.shared.clone(), self.disk.clone(), job.lsn());
                let write = move || {
                    let outcome = write_beside(&job, &*disk, &shared);
                    shared.queue().snapshots.push((lsn, outcome));
                    shared.wake.notify_one();
                };
                match std::thread::Builder::new().name("store-snapshot".into()).spawn(write) {
                    Ok(thread) => snapshot = Some(thread),
                    Err(error) => self.snapshot_ended(lsn, &Err(error)),
                }
            }
        }
        if let Some(thread) = snapshot {
            let _ = thread.join();
            self.take_snapshots();
        }
        self.store.close()
    }

    /// Waits for something to do and takes at most one batch; false when the store is to be closed.
    fn take_batch(&mut self) -> bool {
        let shared = self.shared.clone();
        let mut queue = shared.queue();
        loop {
            if !queue.snapshots.is_empty() {
                drop(queue);
                self.take_snapshots();
                queue = shared.queue();
            }
            let mut bytes = 0;
            while self.batch.len() < BATCH_COMMANDS && bytes < BATCH_BYTES {
                let Some(command) = queue.commands.pop_front() else { break };
                bytes += command.bytes();
                self.batch.push(command);
            }
            if !self.batch.is_empty() {
                queue.asked = None;
                return true;
            }
            if queue.closing {
                queue.closed = true;
                return false;
            }
            queue.asleep = true;
            let wait_ms = self.store.next_wake().map(|at| at.ms_since(self.clock.now()) + 1);
            queue = match wait_ms {
                None => shared.wake.wait(queue).unwrap_or_else(PoisonError::into_inner),
                Some(ms) => {
                    let wait = shared.wake.wait_timeout(queue, Duration::from_millis(ms));
                    let (queue, result) = wait.unwrap_or_else(PoisonError::into_inner);
                    if result.timed_out() {
                        self.store.trim(self.clock.now());
                        return true;
                    }
                    queue
                }
            };
            queue.asleep = false;
        }
    }

    fn take_snapshots(&mut self) {
        let ended = std::mem::take(&mut self.shared.queue().snapshots);
        for (lsn, outcome) in ended {
            self.snapshot_ended(lsn, &outcome);
        }
    }

    fn snapshot_ended(&mut self, lsn: Lsn, outcome: &io::Result<u64>) {
        let removed = self.store.snapshot_done(lsn, outcome);
        let mut status = self.shared.status();
        status.snapshots += u64::from(outcome.is_ok());
        status.snapshot_error = outcome.as_ref().err().or(removed.as_ref().err()).map(io::Error::to_string);
    }
}
