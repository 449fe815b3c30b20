//! The writing half of the machine: what has been decided but is perhaps not yet durable.
//!
//! Transactions are applied to a staged state at once, so that later ones in a batch compare against earlier ones.
//! [`Stage::seal`] closes a batch and says what must be logged; [`Stage::durable`] hands out what may now be seen;
//! [`Stage::rollback`] takes everything back that was not published.
//!
//! Invariants: a revision is given once (also across restarts, see below); nothing leaves this half unpublished; a
//! refused or invalid transaction changes nothing; what was rolled back leaves no trace but perhaps unused revisions.
//!
//! Ephemeral keys take revisions without waiting for the disk. So that a restart cannot give these again, the log
//! first says "revisions up to N may be in use" ([`RESERVED_REVISIONS`] at a time), and a restart goes on above N.

use crate::lease::Leases;
use crate::record::{self, Entry, Item};
use crate::types::{Commit, Error, Event, Invalid, LeaseId, Op, Put, Refused, Txn, Version};
use base::{Revision, Time, Tree};
use bytes::{Bytes, BytesMut};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Revisions set aside for ephemeral changes by one line of the log.
pub const RESERVED_REVISIONS: u64 = 10_000;
/// Bytes kept free in front of a batch for the log's record header.
pub const RECORD_HEADER_BYTES: usize = 24;
/// Buffers above this size are not kept for the next batch.
const KEEP_BUFFER_BYTES: usize = 8 * 1024 * 1024;

/// The number of a record in the log; the first has 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Lsn(pub u64);

pub(crate) type Keys = Tree<Bytes, Arc<Version>>;

/// What a rollback takes back beside the keys, which it takes back by their events.
#[derive(Clone)]
pub(crate) struct Head {
    pub revision: Revision,
    /// The highest revision that must not be given again though nothing is visible at it.
    pub burned: Revision,
    pub leases: Leases,
    pub reserved: Revision,
    /// Ephemeral changes have happened since the last clean close.
    pub ephemeral_used: bool,
    pub lsn: Lsn,
}

impl Head {
    pub fn empty() -> Head {
        Head {
            revision: Revision::ZERO,
            burned: Revision::ZERO,
            leases: Leases::new(),
            reserved: Revision::ZERO,
            ephemeral_used: false,
            lsn: Lsn(0),
        }
    }
}

/// A closed batch: to be logged, made durable and then published.
pub struct Batch {
    /// Once the log is durable up to here, the batch may be published.
    pub lsn: Lsn,
    /// The record, with [`RECORD_HEADER_BYTES`] of room in front; `None` when nothing needs the disk.
    pub record: Option<Vec<u8>>,
}

/// What became visible: the events, and the revision up to which they are complete.
pub struct Publication {
    pub revision: Revision,
    pub events: Vec<Event>,
    pub(crate) time: Time,
    pub(crate) compact: Option<Revision>,
}

struct Sealed {
    lsn: Lsn,
    head: Head,
    events: Vec<Event>,
    time: Time,
    compact: Option<Revision>,
}

pub struct Stage {
    /// The staged state. Looked up by key and never iterated for effect, so its order decides nothing. Measured: sharing
    /// the published tree's nodes (copying a leaf per put), or a second tree, costs several times as much.
    keys: HashMap<Bytes, Arc<Version>>,
    head: Head,
    /// As last published.
    base: Head,
    sealed: VecDeque<Sealed>,
    events: Vec<Event>,
    record: Vec<u8>,
    time: Time,
    compact: Option<Revision>,
    /// The open batch holds ephemeral changes.
    ephemeral: bool,
}

impl Stage {
    pub(crate) fn new(keys: &Keys, head: Head) -> Stage {
        Stage {
            keys: keys.iter().map(|(key, version)| (key.clone(), version.clone())).collect(),
            base: head.clone(),
            head,
            sealed: VecDeque::new(),
            events: Vec::new(),
            record: vec![0; RECORD_HEADER_BYTES],
            time: Time::ZERO,
            compact: None,
            ephemeral: false,
        }
    }

    /// The newest staged revision.
    pub fn revision(&self) -> Revision {
        self.head.revision
    }

    pub(crate) fn published(&self) -> &Head {
        &self.base
    }

    /// Bytes of the open batch's record so far.
    pub fn batch_bytes(&self) -> usize {
        self.record.len()
    }

    /// Decides a transaction at `now` against the staged state.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Invalid`], [`Error::NoSuchLease`]; nothing has changed then.
    pub fn commit(&mut self, txn: Txn, now: Time) -> Result<Commit, Error> {
        txn.check().map_err(Error::Invalid)?;
        for compare in &txn.compares {
            let found = self.keys.get(&compare.key[..]);
            let revision = found.map_or(Revision::ZERO, |version| version.mod_revision);
            if revision != compare.mod_revision {
                return Err(Error::Refused(Box::new(Refused {
                    key: compare.key.clone(),
                    expected: compare.mod_revision,
                    found: revision,
                    value: found.map(|version| version.value.bytes()),
                })));
            }
        }
        for op in &txn.ops {
            if let Op::Put(Put { lease: Some(id), .. }) = op
                && self.head.leases.get(*id).is_none()
            {
                return Err(Error::NoSuchLease(*id));
            }
        }
        Ok(self.apply(txn.ops, now))
    }

    /// Carries out checked operations at the next revision.
    fn apply(&mut self, ops: Vec<Op>, now: Time) -> Commit {
        let revision = self.head.revision.max(self.head.burned).next();
        let start = record::begin_commit(&mut self.record, revision, now);
        let (mut changed, mut logged, mut partial) = (0, 0, false);
        for op in ops {
            let (key, new) = match op {
                Op::Put(put) => {
                    let created = self.keys.get(&put.key[..]).map_or(revision, |old| old.create_revision);
                    (put.key.clone(), Some(Arc::new(version(put, created, revision))))
                }
                Op::Delete { key } => (key, None),
            };
            let old = match &new {
                Some(new) => self.keys.insert(key.clone(), new.clone()),
                None => self.keys.remove(&key[..]),
            };
            if old.is_none() && new.is_none() {
                continue;
            }
            changed += 1;
            self.move_lease(&key, old.as_deref(), new.as_deref());
            match &new {
                Some(new) if !new.ephemeral => {
                    record::put_op(&mut self.record, &key, new.lease.map_or(0, |id| id.0), &new.value.bytes());
                    logged += 1;
                }
                _ => {
                    partial |= new.is_some() || old.as_ref().is_some_and(|old| old.ephemeral);
                    if old.as_ref().is_some_and(|old| !old.ephemeral) {
                        record::delete_op(&mut self.record, &key);
                        logged += 1;
                    }
                }
            }
            self.events.push(Event { revision, key, old, new });
        }
        if logged == 0 {
            self.record.truncate(start);
        } else {
            record::end_commit(&mut self.record, start, partial, logged);
        }
        if changed > 0 {
            self.head.revision = revision;
            self.time = now;
            self.ephemeral |= partial;
        }
        Commit { revision: self.head.revision, changed }
    }

    fn move_lease(&mut self, key: &Bytes, old: Option<&Version>, new: Option<&Version>) {
        let (old, new) = (old.and_then(|version| version.lease), new.and_then(|version| version.lease));
        if old != new {
            if let Some(id) = old {
                self.head.leases.detach(id, key);
            }
            if let Some(id) = new {
                self.head.leases.attach(id, key);
            }
        }
    }

    /// Grants a lease that ends `ttl_ms` after its last renewal, never earlier.
    ///
    /// # Errors
    /// [`Invalid::LeaseTooShort`] for 0.
    pub fn grant(&mut self, ttl_ms: u64, now: Time) -> Result<LeaseId, Error> {
        if ttl_ms == 0 {
            return Err(Error::Invalid(Invalid::LeaseTooShort));
        }
        let id = self.head.leases.grant(ttl_ms, now);
        record::put_item(&mut self.record, &Item::Grant { id: id.0, ttl_ms });
        Ok(id)
    }

    /// Renews a lease and returns its time to live in milliseconds. Not logged.
    ///
    /// # Errors
    /// [`Error::NoSuchLease`].
    pub fn renew(&mut self, id: LeaseId, now: Time) -> Result<u64, Error> {
        self.head.leases.renew(id, now).ok_or(Error::NoSuchLease(id))
    }

    /// Ends a lease: its keys are deleted at one revision.
    ///
    /// # Errors
    /// [`Error::NoSuchLease`].
    pub fn revoke(&mut self, id: LeaseId, now: Time) -> Result<Commit, Error> {
        self.head.leases.get(id).ok_or(Error::NoSuchLease(id))?;
        let ops = self.head.leases.keys_of(id).into_iter().map(|key| Op::Delete { key }).collect();
        let commit = self.apply(ops, now);
        self.head.leases.remove(id);
        record::put_item(&mut self.record, &Item::Revoke { id: id.0 });
        Ok(commit)
    }

    /// Ends every lease whose time is over at `now`, one revision each.
    pub fn expire(&mut self, now: Time) -> Vec<Commit> {
        let expired = self.head.leases.expired(now);
        expired.into_iter().filter_map(|id| self.revoke(id, now).ok()).collect()
    }

    /// When [`Stage::expire`] has something to do next.
    pub fn next_expiry(&self) -> Option<Time> {
        self.head.leases.next_expiry()
    }

    /// Forgets the history up to and including `at` when the batch is published.
    ///
    /// # Errors
    /// [`Error::Ahead`] when `at` has not been given yet.
    pub fn compact(&mut self, at: Revision) -> Result<(), Error> {
        if at > self.head.revision {
            return Err(Error::Ahead(self.head.revision));
        }
        self.compact = self.compact.max(Some(at));
        record::put_item(&mut self.record, &Item::Compact { at });
        Ok(())
    }

    /// Writes down the ephemeral keys and that this is a clean close; seal and log the batch afterwards.
    pub(crate) fn park(&mut self) {
        let mut ephemeral: Vec<_> = self.keys.iter().filter(|(_, version)| version.ephemeral).collect();
        ephemeral.sort_unstable_by_key(|(key, _)| *key);
        for (key, version) in ephemeral {
            record::put_item(&mut self.record, &Item::Parked(entry(key, version)));
        }
        record::put_item(&mut self.record, &Item::Close { revision: self.head.revision.max(self.head.burned) });
        self.head.reserved = Revision::ZERO;
        self.head.ephemeral_used = false;
    }

    /// Closes the open batch; `None` when nothing happened in it.
    pub fn seal(&mut self) -> Option<Batch> {
        let used = std::mem::take(&mut self.ephemeral);
        let logged = self.record.len() > RECORD_HEADER_BYTES;
        let (revision, reserved) = (self.head.revision.0, self.head.reserved.0);
        let forced = used && reserved < revision;
        let soon = logged && self.head.ephemeral_used && reserved < revision + RESERVED_REVISIONS / 2;
        if forced || (soon && reserved > 0) {
            self.head.reserved = Revision(revision + RESERVED_REVISIONS);
            record::put_item(&mut self.record, &Item::Reserve { up_to: self.head.reserved });
        }
        self.head.ephemeral_used |= used;
        let record = if self.record.len() > RECORD_HEADER_BYTES {
            self.head.lsn = Lsn(self.head.lsn.0 + 1);
            Some(std::mem::replace(&mut self.record, vec![0; RECORD_HEADER_BYTES]))
        } else {
            None
        };
        if record.is_none() && self.events.is_empty() {
            return None;
        }
        let lsn = self.head.lsn;
        self.sealed.push_back(Sealed {
            lsn,
            head: self.head.clone(),
            events: std::mem::take(&mut self.events),
            time: self.time,
            compact: self.compact.take(),
        });
        Some(Batch { lsn, record })
    }

    /// Gives a logged batch's buffer back for reuse.
    pub fn recycle(&mut self, mut record: Vec<u8>) {
        if self.record.len() == RECORD_HEADER_BYTES && record.capacity() <= KEEP_BUFFER_BYTES {
            record.clear();
            record.resize(RECORD_HEADER_BYTES, 0);
            self.record = record;
        }
    }

    /// The log is durable up to `lsn`: what may be seen from now on; `None` when nothing is new.
    pub fn durable(&mut self, lsn: Lsn) -> Option<Publication> {
        let mut publication: Option<Publication> = None;
        while self.sealed.front().is_some_and(|sealed| sealed.lsn <= lsn) {
            let Some(sealed) = self.sealed.pop_front() else { break };
            let (mut events, mut compact) = (sealed.events, sealed.compact);
            if let Some(earlier) = publication.take() {
                compact = compact.max(earlier.compact);
                events.splice(0..0, earlier.events);
            }
            publication = Some(Publication { revision: sealed.head.revision, events, time: sealed.time, compact });
            self.base = sealed.head;
        }
        publication
    }

    /// The log failed: takes back everything that is not published. With `burn` the revisions of the failed batches are
    /// never given again, because the disk may still hold them.
    pub fn rollback(&mut self, burn: bool) {
        let sealed = self.sealed.drain(..).flat_map(|sealed| sealed.events);
        let events: Vec<Event> = sealed.chain(self.events.drain(..)).collect();
        for event in events.into_iter().rev() {
            match event.old {
                Some(old) => self.keys.insert(event.key, old),
                None => self.keys.remove(&event.key[..]),
            };
        }
        let given = self.head.revision.max(self.head.burned);
        let mut head = self.base.clone();
        head.leases.keep_renewals_of(&self.head.leases);
        if burn {
            head.burned = head.burned.max(given);
            head.leases.next = self.head.leases.next;
        }
        self.base = head.clone();
        self.head = head;
        self.record.truncate(RECORD_HEADER_BYTES);
        self.compact = None;
        self.ephemeral = false;
    }
}

/// A key as it is written to snapshots and clean closes.
pub(crate) fn entry(key: &Bytes, version: &Version) -> Entry {
    Entry {
        create_revision: version.create_revision,
        mod_revision: version.mod_revision,
        lease: version.lease.map_or(0, |id| id.0),
        key: key.clone(),
        value: version.value.bytes(),
    }
}

fn version(put: Put, create_revision: Revision, mod_revision: Revision) -> Version {
    let value = match put.stamp {
        Some(at) => stamped(&put.value, at as usize, mod_revision),
        None => put.value,
    };
    let Put { lease, ephemeral, attachment, .. } = put;
    Version { value: value.into(), create_revision, mod_revision, lease, ephemeral, attachment }
}

/// `value` with the revision's decimal text at offset `at`, which lies inside.
fn stamped(value: &[u8], at: usize, revision: Revision) -> Bytes {
    let mut digits = [0u8; 20];
    let mut first = digits.len();
    let mut rest = revision.0;
    loop {
        first -= 1;
        digits[first] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    let mut out = BytesMut::with_capacity(value.len() + digits.len() - first);
    out.extend_from_slice(&value[..at]);
    out.extend_from_slice(&digits[first..]);
    out.extend_from_slice(&value[at..]);
    out.freeze()
}
