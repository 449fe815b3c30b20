//! From files to a machine: the newest snapshot, then every record behind it.

use crate::disk::Disk;
use crate::error::{Damage, OpenError, Torn};
use crate::log::{Tail, scan};
use crate::record::{Entry, Item, LoggedOp, Malformed, items};
use crate::snapshot::{self, SnapshotHead, Stored};
use crate::stage::{Head, Keys, Lsn};
use crate::types::{Event, HistoryLimits, LeaseId, Version};
use crate::visible::Visible;
use base::{Revision, Time, Tree};
use std::sync::Arc;

/// What was found when a store was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The newest revision; the next commit has a greater one.
    pub revision: Revision,
    pub keys: usize,
    /// Records of the log that were replayed.
    pub records: u64,
    /// The store had been closed cleanly, so ephemeral keys are still there.
    pub clean: bool,
    /// The unacknowledged tail of the last batch, which was cut off.
    pub torn: Option<Torn>,
}

/// The state under reconstruction.
pub(crate) struct Replay {
    pub keys: Keys,
    pub head: Head,
    pub visible: Visible,
    floor: Revision,
    parked: Vec<Entry>,
    closed: bool,
    now: Time,
    /// Commits after this revision are not applied (dumps of the past).
    until: Option<Revision>,
}

impl Replay {
    pub fn new(limits: HistoryLimits, now: Time, until: Option<Revision>) -> Replay {
        let head = Head::empty();
        Replay {
            keys: Tree::new(),
            visible: Visible::new(Tree::new(), head.revision, Revision::ZERO, limits),
            head,
            floor: Revision::ZERO,
            parked: Vec::new(),
            closed: false,
            now,
            until,
        }
    }

    pub fn snapshot_entry(&mut self, stored: Stored) {
        match stored {
            Stored::Entry(entry) => self.restore(entry, false),
            Stored::Lease { id, ttl_ms } => self.head.leases.insert(id, ttl_ms, self.now),
        }
    }

    fn restore(&mut self, entry: Entry, ephemeral: bool) {
        let lease = (entry.lease != 0).then_some(LeaseId(entry.lease));
        if let Some(id) = lease {
            self.head.leases.attach(id, &entry.key);
        }
        let Entry { create_revision, mod_revision, key, value, .. } = entry;
        let version =
            Version { value: value.into(), create_revision, mod_revision, lease, ephemeral, attachment: None };
        self.keys.insert(key, Arc::new(version));
    }

    pub fn snapshot_done(&mut self, head: &SnapshotHead) {
        self.head.revision = head.revision;
        self.head.reserved = head.reserved;
        self.head.ephemeral_used = head.ephemeral_used;
        self.head.leases.next = self.head.leases.next.max(head.next_lease);
        self.head.lsn = head.lsn;
        self.floor = head.revision;
    }

    pub fn record(&mut self, lsn: Lsn, body: &[u8]) -> Result<(), Malformed> {
        // A record is taken whole or not at all.
        let all = items(body).collect::<Result<Vec<Item>, Malformed>>()?;
        for item in all {
            self.item(item);
        }
        self.head.lsn = lsn;
        Ok(())
    }

    fn item(&mut self, item: Item) {
        if self.closed {
            // Work went on after a clean close, so the parked keys may have changed unseen.
            self.closed = false;
            self.head.ephemeral_used |= !self.parked.is_empty();
            self.parked.clear();
        }
        match item {
            Item::Commit { revision, time, partial, ops } => self.commit(revision, time, partial, ops),
            Item::Reserve { up_to } => {
                self.head.reserved = up_to;
                self.head.ephemeral_used = true;
            }
            Item::Grant { id, ttl_ms } => self.head.leases.insert(id, ttl_ms, self.now),
            Item::Revoke { id } => self.head.leases.remove(LeaseId(id)),
            Item::Compact { at } => self.floor = self.floor.max(at),
            Item::Parked(entry) => self.parked.push(entry),
            Item::Close { revision } => {
                if revision > self.head.revision {
                    self.head.revision = revision;
                    self.floor = self.floor.max(revision);
                }
                self.head.reserved = Revision::ZERO;
                self.head.ephemeral_used = false;
                self.closed = true;
            }
        }
    }

    fn commit(&mut self, revision: Revision, time: Time, partial: bool, ops: Vec<LoggedOp>) {
        if self.until.is_some_and(|until| revision > until) {
            self.head.revision = revision;
            return;
        }
        if partial {
            self.floor = revision;
        } else if revision.0 > self.head.revision.0 + 1 {
            self.floor = Revision(revision.0 - 1);
        }
        let mut events = Vec::with_capacity(ops.len());
        for op in ops {
            let (key, new) = match op {
                LoggedOp::Delete { key } => (key, None),
                LoggedOp::Put { key, lease, value } => {
                    let create_revision = self.keys.get(&key[..]).map_or(revision, |old| old.create_revision);
                    let lease = (lease != 0).then_some(LeaseId(lease));
                    let (ephemeral, attachment) = (false, None);
                    let version = Version {
                        value: value.into(),
                        create_revision,
                        mod_revision: revision,
                        lease,
                        ephemeral,
                        attachment,
                    };
                    (key, Some(Arc::new(version)))
                }
            };
            let old = match &new {
                Some(new) => self.keys.insert(key.clone(), new.clone()),
                None => self.keys.remove(&key[..]),
            };
            if let Some(id) = old.as_ref().and_then(|old| old.lease) {
                self.head.leases.detach(id, &key);
            }
            if let Some(id) = new.as_ref().and_then(|new| new.lease) {
                self.head.leases.attach(id, &key);
            }
            events.push(Event { revision, key, old, new });
        }
        self.visible.remember(&events, time);
        self.visible.trim(time);
        self.head.revision = revision;
    }

    /// Settles what only the end of the log can tell. Returns true after a clean close.
    pub fn finish(&mut self) -> bool {
        if self.closed {
            for entry in std::mem::take(&mut self.parked) {
                if entry.lease == 0 || self.head.leases.get(LeaseId(entry.lease)).is_some() {
                    self.restore(entry, true);
                    self.head.ephemeral_used = true;
                }
            }
        } else if self.head.ephemeral_used {
            // Ephemeral keys are gone without an event, and revisions up to the reserve may have been seen: everyone
            // who watches must begin anew.
            self.head.revision = self.head.revision.max(self.head.reserved).next();
            self.head.reserved = Revision::ZERO;
            self.floor = self.head.revision;
        }
        let floor = self.floor.max(self.visible.floor());
        self.visible.settle(self.keys.clone(), self.head.revision, floor);
        self.closed
    }
}

/// Everything that the files say, and what is wrong with them.
pub(crate) struct Loaded {
    pub replay: Replay,
    pub tail: Tail,
    pub snapshot: Option<(String, SnapshotHead)>,
    /// All damage: of the snapshot, then of the log.
    pub damages: Vec<Damage>,
}

/// Reads snapshot and log as far as they are intact.
pub(crate) fn load(
    disk: &dyn Disk,
    limits: HistoryLimits,
    now: Time,
    until: Option<Revision>,
) -> Result<Loaded, OpenError> {
    let mut replay = Replay::new(limits, now, until);
    let mut damages = Vec::new();
    let mut snapshot = None;
    if let Some(name) = snapshot::newest(disk)? {
        let (head, found) = snapshot::read(disk, &name, &mut |stored| replay.snapshot_entry(stored))?;
        damages = found;
        if until.is_some_and(|until| until < head.revision) {
            let (asked, oldest) = (until.map_or(0, |until| until.0), head.revision.0);
            return Err(OpenError::NoSuchRevision { asked, oldest, newest: oldest });
        }
        replay.snapshot_done(&head);
        snapshot = Some((name, head));
    }
    let (id, after, crc) = match &snapshot {
        Some((_, head)) => (Some(head.store_id), head.lsn, head.lsn_crc),
        None => (None, Lsn(0), 0),
    };
    let tail = scan(disk, id, after, crc, &mut |lsn, body| replay.record(lsn, body))?;
    damages.extend(tail.damage.clone());
    Ok(Loaded { replay, tail, snapshot, damages })
}
