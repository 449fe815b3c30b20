//! The real store on the simulated disk, one batch at a time: commands wait until the disk's turn has come.
//!
//! Invariants: a command is answered in the batch in which it was done; what a batch published is told to the truth
//! with its authors before anyone else runs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use base::{Clock, Revision, Time};
use bytes::Bytes;
use drive::Shell;
use store::{
    Backend, Command, Commit, Done, Error, Event, Events, HistoryLimits, LeaseId, OpenError, Options, Page, Put, Range,
    SimDisk, Sink, SnapshotBuffers, Store, Ticket, Txn, Visible,
};
use tokio::sync::Notify;

use crate::check::Seen;
use crate::exec::{Author, Exec, Process, lock};
use crate::mutation::Mutation;
use crate::truth::Truth;

/// Small files, so that worlds of minutes see segments end and snapshots come.
pub const OPTIONS: Options = Options {
    history: HistoryLimits { window_ms: 300_000, max_events: 20_000, max_bytes: 64 << 20 },
    segment_bytes: 512 * 1024,
    snapshot_after_bytes: 1024 * 1024,
};
/// How late history may be forgotten, so that a quiet store sleeps.
const TRIM_SLACK_MS: u64 = 60_000;
/// How far ahead a planted defect looks.
const HASTY_MS: u64 = 8_000;

/// How the disk fares; changed by faults.
#[derive(Clone, Copy, Debug)]
pub struct DiskPace {
    pub sync_ms: u64,
    /// Added to some syncs, up to this.
    pub jitter_ms: u64,
}

type Published = Arc<Mutex<(Vec<Event>, BTreeMap<Revision, Arc<Author>>)>>;

/// The backend of one life of the server.
pub struct Stepped {
    store: Mutex<Store>,
    disk: SimDisk,
    visible: Arc<RwLock<Visible>>,
    queue: Mutex<Vec<Command>>,
    kick: Notify,
    published: Published,
    exec: Exec,
    truth: Arc<Truth>,
    mutation: Option<Mutation>,
}

/// Keeps what is published for the truth, and passes it on.
struct Tee {
    next: Box<dyn Sink>,
    published: Published,
}

impl Sink for Tee {
    fn on_events(&mut self, events: &[Event]) {
        lock(&self.published).0.extend(events.iter().cloned());
        self.next.on_events(events);
    }
}

impl Stepped {
    /// Opens the store on the disk and tells the truth what was found.
    ///
    /// # Errors
    /// A sentence, when the disk holds no sound store.
    pub fn open(
        disk: &SimDisk,
        exec: &Exec,
        truth: &Arc<Truth>,
        mutation: Option<Mutation>,
    ) -> Result<Arc<Stepped>, OpenError> {
        let (store, recovered) = Store::open(Arc::new(disk.clone()), OPTIONS, 1, exec.now())?;
        let visible = store.visible();
        exec.note(format!("the store has revision {}, torn: {}", recovered.revision, recovered.torn.is_some()));
        truth.recovered(&visible.read().unwrap_or_else(PoisonError::into_inner));
        Ok(Arc::new(Stepped {
            store: Mutex::new(store),
            disk: disk.clone(),
            visible,
            queue: Mutex::default(),
            kick: Notify::new(),
            published: Arc::default(),
            exec: exec.clone(),
            truth: truth.clone(),
            mutation,
        }))
    }

    fn visible(&self) -> RwLockReadGuard<'_, Visible> {
        self.visible.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest value of a key.
    pub fn value(&self, key: &[u8]) -> Option<Bytes> {
        let page = self.visible().newest().read(&Range::key(key.to_vec()), None, 1);
        page.items.into_iter().next().map(|(_, version)| version.value.bytes())
    }

    fn send(&self, command: Command) {
        lock(&self.queue).push(command);
        self.kick.notify_one();
    }

    fn ask<T: Send + 'static>(&self, make: impl FnOnce(Done<T>) -> Command) -> Ticket<T> {
        let (done, ticket) = Ticket::new();
        self.send(make(done));
        ticket
    }

    /// Turns the disk for as long as the process lives; `pace` says how fast.
    pub async fn turn(self: Arc<Self>, shell: Process, mut pace: impl FnMut() -> u64) {
        let mut buffers = SnapshotBuffers::default();
        loop {
            let idle = lock(&self.queue).is_empty();
            if idle {
                let wake = lock(&self.store)
                    .next_wake()
                    .map_or(TRIM_SLACK_MS, |at| at.ms_since(self.exec.now()).clamp(1, TRIM_SLACK_MS));
                tokio::select! {
                    biased;
                    () = self.kick.notified() => {}
                    () = shell.sleep(wake) => {}
                }
            }
            if !lock(&self.queue).is_empty() {
                shell.sleep(pace()).await;
            }
            self.batch();
            let job = lock(&self.store).snapshot_due();
            if let Some(job) = job {
                let outcome = job.write_with(&self.disk, &mut buffers, &mut || {});
                // A failure is tried again when the log has grown; the power may have failed.
                let _ = lock(&self.store).snapshot_done(job.lsn(), &outcome);
            }
            lock(&self.store).trim(self.exec.now());
        }
    }

    /// One batch: whatever waits.
    pub fn batch(&self) {
        let commands = std::mem::take(&mut *lock(&self.queue));
        // Leases count on a clock that never jumps, which a host's own is not.
        let hasty = self.mutation == Some(Mutation::HastyLeases) && commands.is_empty();
        let now = match self.mutation {
            Some(Mutation::LazyLeases) => start(),
            _ if hasty => self.exec.now().plus_ms(HASTY_MS),
            _ => self.exec.now(),
        };
        lock(&self.store).run(commands, now);
        let (mut events, authors) = std::mem::take(&mut *lock(&self.published));
        if let Some(mutation) = self.mutation {
            mutation.told(&mut events);
        }
        self.truth.committed(&events, &authors);
    }
}

impl Backend for Stepped {
    fn submit(&self, mut txn: Txn, done: Done<Commit>) {
        if let Some(mutation) = self.mutation {
            mutation.store(&mut txn);
        }
        let (published, author, truth) = (self.published.clone(), self.exec.author(), self.truth.clone());
        let done = move |outcome: Result<Commit, Error>| {
            if let Ok(commit) = &outcome
                && commit.changed > 0
            {
                lock(&published).1.insert(commit.revision, author);
                truth.acknowledged(commit.revision);
            }
            done(outcome);
        };
        if self.mutation == Some(Mutation::AnswerBeforeSync) {
            let revision = Revision(self.revision().0 + 1 + lock(&self.queue).len() as u64);
            done(Ok(Commit { revision, changed: txn.ops.len() }));
            return self.send(Command::Txn { txn, done: Box::new(|_| {}) });
        }
        self.send(Command::Txn { txn, done: Box::new(done) });
    }

    fn range(&self, range: Range, at: Option<Revision>, start_after: Option<Bytes>, limit: usize) -> Ticket<Page> {
        let state = self.visible().state(at);
        Ticket::ready(state.map(|state| state.read(&range, start_after.as_deref(), limit)))
    }

    fn count(&self, range: Range, at: Option<Revision>) -> Ticket<usize> {
        let state = self.visible().state(at);
        Ticket::ready(state.map(|state| state.count(&range)))
    }

    fn since(&self, after: Revision, max: usize) -> Ticket<Events> {
        Ticket::ready(self.visible().since(after, max))
    }

    fn follow(&self, after: Revision, sink: Box<dyn Sink>) -> Ticket<Revision> {
        let sink = Box::new(Tee { next: sink, published: self.published.clone() });
        self.ask(|done| Command::Follow { after, sink, done })
    }

    fn grant(&self, ttl_ms: u64) -> Ticket<LeaseId> {
        let (exec, truth) = (self.exec.clone(), self.truth.clone());
        self.ask(|done| {
            let done = move |outcome: Result<LeaseId, Error>| {
                if let Ok(lease) = &outcome {
                    truth.show(&Seen::Leased { lease: *lease, until: exec.now().plus_ms(ttl_ms) });
                }
                done(outcome);
            };
            Command::Grant { ttl_ms, done: Box::new(done) }
        })
    }

    fn renew(&self, id: LeaseId) -> Ticket<u64> {
        let (exec, truth) = (self.exec.clone(), self.truth.clone());
        self.ask(|done| {
            let done = move |outcome: Result<u64, Error>| {
                if let Ok(ttl_ms) = &outcome {
                    truth.show(&Seen::Leased { lease: id, until: exec.now().plus_ms(*ttl_ms) });
                }
                done(outcome);
            };
            Command::Renew { id, done: Box::new(done) }
        })
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

/// When a batch may be done next.
pub fn next_sync_ms(pace: DiskPace, draw: u64) -> u64 {
    pace.sync_ms + if pace.jitter_ms == 0 { 0 } else { draw % pace.jitter_ms }
}

/// An instant as the store's files carry it.
pub fn start() -> Time {
    Time::from_seconds(1_800_000_000)
}

/// What uses leases as nothing else in a world does: keys on leases of seconds, some renewed, some let go.
pub async fn tenant(backend: Arc<Stepped>, shell: Process, mut rng: base::Rng) {
    let mut held: Vec<LeaseId> = Vec::new();
    let mut number = 0u64;
    loop {
        shell.sleep(500 + rng.below(4_000)).await;
        if held.len() < 3 || rng.chance(300) {
            let Ok(lease) = backend.grant(5_000 + rng.below(15_000)).await else { continue };
            number += 1;
            let key = format!("/tenant/{}/{number}", shell.number());
            let put = Put { lease: Some(lease), ..Put::new(key, "") };
            // What the disk refuses is not there.
            if backend.txn(Txn::new().put(put)).await.is_ok() {
                held.push(lease);
            }
        }
        let at = rng.below(held.len().max(1) as u64) as usize;
        let Some(lease) = held.get(at).copied() else { continue };
        if rng.chance(200) || backend.renew(lease).await.is_err() {
            held.swap_remove(at);
        }
    }
}
