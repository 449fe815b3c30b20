//! The machine with its log, stepped: commands in, answers out, one batch at a time. No threads and no clock of its own,
//! so a simulator drives it on a [`crate::SimDisk`]; [`crate::Embedded`] drives it on a thread.
//!
//! Invariants: an answer is given only after its batch is durable, published and fed to the sink; when the log fails,
//! every command of the batch gets the error and none has happened.

use crate::disk::Disk;
use crate::error::{OpenError, io_error};
use crate::log::{LogError, SegmentLog};
use crate::recover::{Recovered, load};
use crate::snapshot::{self, SnapshotHead, SnapshotJob};
use crate::stage::{Lsn, Stage};
use crate::ticket::Done;
use crate::types::{Commit, Error, Event, HistoryLimits, LeaseId, Txn, Version};
use crate::visible::Visible;
use base::{Revision, Time};
use bytes::Bytes;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

/// How a store behaves; the defaults are meant for use.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub history: HistoryLimits,
    pub segment_bytes: u64,
    /// A snapshot is due when the log has grown by this, or by the size of the last snapshot if that is more.
    pub snapshot_after_bytes: u64,
}

impl Default for Options {
    fn default() -> Options {
        let history = HistoryLimits::default();
        Options { history, segment_bytes: 64 * 1024 * 1024, snapshot_after_bytes: 128 * 1024 * 1024 }
    }
}

/// Where the feed goes. One call per batch, in order of revisions, before the batch's commands are answered.
pub trait Sink: Send {
    fn on_events(&mut self, events: &[Event]);

    /// The history between what was told last and `revision` is lost; this is the whole state there. Only backends
    /// whose history others can cut short call it, so a sink that follows none of these need not have it.
    fn on_state(&mut self, revision: Revision, state: Vec<(Bytes, Arc<Version>)>) {
        unreachable!("{} keys at {revision}: a store in this process never loses the history of its sink", state.len());
    }
}

/// Something to be done in the next batch.
pub enum Command {
    Txn {
        txn: Txn,
        done: Done<Commit>,
    },
    Grant {
        ttl_ms: u64,
        done: Done<LeaseId>,
    },
    Renew {
        id: LeaseId,
        done: Done<u64>,
    },
    Revoke {
        id: LeaseId,
        done: Done<Commit>,
    },
    Compact {
        at: Revision,
        done: Done<()>,
    },
    /// Sends the feed after revision `after` to `sink`, now what is past and from then on what comes. Takes the place
    /// of an earlier sink.
    Follow {
        after: Revision,
        sink: Box<dyn Sink>,
        done: Done<Revision>,
    },
}

impl Command {
    /// What a batch counts it for.
    pub fn bytes(&self) -> usize {
        if let Command::Txn { txn, .. } = self { txn.bytes() } else { 0 }
    }

    /// Answers with an error instead of doing it.
    pub fn refuse(self, error: Error) {
        match self {
            Command::Txn { done, .. } | Command::Revoke { done, .. } => done(Err(error)),
            Command::Grant { done, .. } => done(Err(error)),
            Command::Renew { done, .. } => done(Err(error)),
            Command::Compact { done, .. } => done(Err(error)),
            Command::Follow { done, .. } => done(Err(error)),
        }
    }
}

/// An answer held back until its batch is durable.
enum Answer {
    Commit(Done<Commit>, Result<Commit, Error>),
    Grant(Done<LeaseId>, Result<LeaseId, Error>),
    Renew(Done<u64>, Result<u64, Error>),
    Compact(Done<()>, Result<(), Error>),
}

impl Answer {
    fn give(self, failed: Option<&Error>) {
        match self {
            Answer::Commit(done, outcome) => done(failed.map_or(outcome, |error| Err(error.clone()))),
            Answer::Grant(done, outcome) => done(failed.map_or(outcome, |error| Err(error.clone()))),
            // Renewals are kept even when the batch is taken back.
            Answer::Renew(done, outcome) => done(outcome),
            Answer::Compact(done, outcome) => done(failed.map_or(outcome, |error| Err(error.clone()))),
        }
    }
}

pub struct Store {
    stage: Stage,
    visible: Arc<RwLock<Visible>>,
    log: SegmentLog,
    disk: Arc<dyn Disk>,
    sink: Option<Box<dyn Sink>>,
    options: Options,
    snapshot_bytes: u64,
    snapshot_running: bool,
    answers: Vec<Answer>,
}

impl Store {
    /// Opens the store on `disk`, or begins an empty one there. `fresh_id` names a new store; any number not used for
    /// another store will do.
    ///
    /// # Errors
    /// [`OpenError::Damaged`] and all others; nothing has been changed then.
    pub fn open(
        disk: Arc<dyn Disk>,
        options: Options,
        fresh_id: u64,
        now: Time,
    ) -> Result<(Store, Recovered), OpenError> {
        let mut loaded = load(&*disk, options.history, now, None)?;
        if !loaded.damages.is_empty() {
            return Err(OpenError::Damaged(loaded.damages.swap_remove(0)));
        }
        for name in disk.list().map_err(io_error(&*disk, "list the files", ""))? {
            if name.ends_with(".new") {
                disk.remove(&name).map_err(io_error(&*disk, "remove the unfinished", &name))?;
            }
        }
        if loaded.tail.segments.is_empty() && loaded.snapshot.is_none() {
            loaded.tail.store_id = fresh_id;
        }
        let clean = loaded.replay.finish();
        let log = SegmentLog::open(disk.clone(), &loaded.tail, options.segment_bytes).map_err(io_error(
            &*disk,
            "go on with the log in",
            "",
        ))?;
        let (keys, head) = (loaded.replay.keys, loaded.replay.head);
        let recovered = Recovered {
            revision: head.revision,
            keys: keys.len(),
            records: loaded.tail.records,
            clean,
            torn: loaded.tail.torn,
        };
        let store = Store {
            stage: Stage::new(&keys, head),
            visible: Arc::new(RwLock::new(loaded.replay.visible)),
            log,
            disk,
            sink: None,
            options,
            snapshot_bytes: 0,
            snapshot_running: false,
            answers: Vec::new(),
        };
        Ok((store, recovered))
    }

    /// The reading half, for any thread.
    pub fn visible(&self) -> Arc<RwLock<Visible>> {
        self.visible.clone()
    }

    /// Makes the file that the first batch goes into, ahead of it.
    ///
    /// # Errors
    /// What the first batch will be told, too, if it still holds then.
    pub fn begin(&mut self) -> io::Result<()> {
        self.log.begin()
    }

    /// Does one batch: ends leases whose time is over, then the commands in order, then one write and one sync.
    pub fn run(&mut self, commands: impl IntoIterator<Item = Command>, now: Time) {
        self.stage.expire(now);
        let mut follow = Vec::new();
        for command in commands {
            match command {
                Command::Txn { txn, done } => {
                    let outcome = self.stage.commit(txn, now);
                    self.answers.push(Answer::Commit(done, outcome));
                }
                Command::Grant { ttl_ms, done } => {
                    let outcome = self.stage.grant(ttl_ms, now);
                    self.answers.push(Answer::Grant(done, outcome));
                }
                Command::Renew { id, done } => {
                    let outcome = self.stage.renew(id, now);
                    self.answers.push(Answer::Renew(done, outcome));
                }
                Command::Revoke { id, done } => {
                    let outcome = self.stage.revoke(id, now);
                    self.answers.push(Answer::Commit(done, outcome));
                }
                Command::Compact { at, done } => {
                    let outcome = self.stage.compact(at);
                    self.answers.push(Answer::Compact(done, outcome));
                }
                Command::Follow { after, sink, done } => follow.push((after, sink, done)),
            }
        }
        let failed = self.flush().err();
        for answer in self.answers.drain(..) {
            answer.give(failed.as_ref());
        }
        for (after, sink, done) in follow {
            self.follow(after, sink, done);
        }
    }

    /// Logs, syncs and publishes the open batch.
    fn flush(&mut self) -> Result<(), Error> {
        let Some(batch) = self.stage.seal() else { return Ok(()) };
        if let Some(mut record) = batch.record {
            let logged = self.log.append(&mut record, batch.lsn).and_then(|()| self.log.sync());
            if let Err(LogError { operation, source, may_remain }) = logged {
                self.stage.rollback(may_remain);
                let full = source.kind() == io::ErrorKind::StorageFull || source.kind() == io::ErrorKind::QuotaExceeded;
                return Err(Error::Disk { operation, full, message: source.to_string() });
            }
            self.stage.recycle(record);
        }
        if let Some(publication) = self.stage.durable(batch.lsn) {
            let dropped = self.visible.write().unwrap_or_else(PoisonError::into_inner).publish(&publication);
            if let Some(sink) = &mut self.sink
                && !publication.events.is_empty()
            {
                sink.on_events(&publication.events);
            }
            drop(dropped);
        }
        Ok(())
    }

    fn follow(&mut self, after: Revision, mut sink: Box<dyn Sink>, done: Done<Revision>) {
        let past = self.visible.read().unwrap_or_else(PoisonError::into_inner).since(after, usize::MAX);
        match past {
            Ok(past) => {
                if !past.events.is_empty() {
                    sink.on_events(&past.events);
                }
                self.sink = Some(sink);
                done(Ok(past.revision));
            }
            Err(error) => done(Err(error)),
        }
    }

    /// When [`Store::run`] has something to do though no command comes: a lease ends or history grows old.
    pub fn next_wake(&self) -> Option<Time> {
        let trim = self.visible.read().unwrap_or_else(PoisonError::into_inner).next_trim();
        match (self.stage.next_expiry(), trim) {
            (Some(expiry), Some(trim)) => Some(expiry.min(trim)),
            (expiry, trim) => expiry.or(trim),
        }
    }

    /// Lets history go that is older than the window.
    pub fn trim(&mut self, now: Time) {
        let gone = self.visible.write().unwrap_or_else(PoisonError::into_inner).trim(now);
        drop(gone);
    }

    /// A snapshot to be written, if one is due and none is under way. Call between batches, write it on any thread, and
    /// tell the outcome to [`Store::snapshot_done`].
    pub fn snapshot_due(&mut self) -> Option<SnapshotJob> {
        let due = self.options.snapshot_after_bytes.max(self.snapshot_bytes);
        (!self.snapshot_running && self.log.since_snapshot >= due).then(|| self.snapshot())
    }

    /// A snapshot of the published state, due or not.
    pub fn snapshot(&mut self) -> SnapshotJob {
        self.snapshot_running = true;
        self.log.since_snapshot = 0;
        let published = self.stage.published();
        let (lsn, lsn_crc) = self.log.last();
        let head = SnapshotHead {
            store_id: self.log.store_id(),
            lsn,
            lsn_crc,
            revision: published.revision.max(published.burned),
            reserved: published.reserved,
            ephemeral_used: published.ephemeral_used,
            next_lease: published.leases.next,
        };
        let keys = self.visible.read().unwrap_or_else(PoisonError::into_inner).newest().keys.clone();
        SnapshotJob { head, keys, leases: published.leases.clone() }
    }

    /// The outcome of writing `job`: after success the log before it is removed. After a failure the next one is tried
    /// when the log has grown again.
    ///
    /// # Errors
    /// When old files cannot be removed; nothing is lost by that.
    pub fn snapshot_done(&mut self, lsn: Lsn, outcome: &io::Result<u64>) -> io::Result<()> {
        self.snapshot_running = false;
        if let Ok(bytes) = outcome {
            self.snapshot_bytes = *bytes;
            self.log.remove_through(lsn)?;
            snapshot::remove_older(&*self.disk)?;
        }
        Ok(())
    }

    /// Closes cleanly: ephemeral keys are written down and found again at the next opening.
    ///
    /// # Errors
    /// [`Error::Disk`]; ephemeral keys are lost then, as after a crash.
    pub fn close(mut self) -> Result<(), Error> {
        self.stage.park();
        self.flush()
    }
}

impl SnapshotJob {
    /// The last record of the log that the snapshot covers.
    pub fn lsn(&self) -> Lsn {
        self.head.lsn
    }
}
