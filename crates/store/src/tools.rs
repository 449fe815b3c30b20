//! What can be done with a store's files while nobody serves from them: check, dump, restore.

use crate::disk::{Disk, FileDisk};
use crate::error::{Damage, OpenError, Torn, io_error, lock_error};
use crate::log::parse_name;
use crate::recover::{Loaded, load};
use crate::snapshot::{SnapshotHead, SnapshotJob};
use crate::stage::{Head, Lsn};
use crate::types::{HistoryLimits, LeaseId, Range, Version};
use crate::visible::State;
use base::{Revision, Time, Tree};
use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const NO_HISTORY: HistoryLimits = HistoryLimits { window_ms: 0, max_events: 0, max_bytes: 0 };

/// How often, and with which pause, a store that is being written is read before damage is believed.
const LOOK_TRIES: u32 = 20;
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// What the files of a store hold, and what is wrong with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub revision: Revision,
    pub keys: usize,
    pub leases: usize,
    pub snapshot: Option<String>,
    pub segments: usize,
    /// Intact records behind the snapshot.
    pub records: u64,
    /// An unfinished last batch, which the next start will cut off. No damage.
    pub torn: Option<Torn>,
    /// Empty: the store is sound.
    pub damages: Vec<Damage>,
}

/// A key of a dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dumped {
    pub key: Bytes,
    pub value: Bytes,
    pub create_revision: Revision,
    pub mod_revision: Revision,
    pub lease: Option<LeaseId>,
}

/// A consistent state taken from files.
pub struct Dump {
    /// The revision of the state; restoring goes on after it.
    pub revision: Revision,
    /// What had to be left out; empty unless salvage was asked for.
    pub damages: Vec<Damage>,
    /// The leases and their times to live in milliseconds.
    pub leases: Vec<(LeaseId, u64)>,
    state: State,
}

impl Dump {
    /// All keys, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Dumped> + '_ {
        self.state.keys.iter().map(|(key, version)| Dumped {
            key: key.clone(),
            value: version.value.bytes(),
            create_revision: version.create_revision,
            mod_revision: version.mod_revision,
            lease: version.lease,
        })
    }

    /// The keys of one range.
    pub fn range(&self, range: &Range) -> Vec<(Bytes, Arc<Version>)> {
        self.state.read(range, None, 0).items
    }
}

fn open(dir: &Path) -> Result<FileDisk, OpenError> {
    let place = dir.display().to_string();
    if !dir.is_dir() {
        return Err(OpenError::NotAStore { place });
    }
    let disk = FileDisk::lock(dir, false).map_err(lock_error(place.clone()))?;
    if is_empty(&disk)? { Err(OpenError::NotAStore { place }) } else { Ok(disk) }
}

fn is_empty(disk: &dyn Disk) -> Result<bool, OpenError> {
    let names = disk.list().map_err(io_error(disk, "list the files", ""))?;
    Ok(!names.iter().any(|name| parse_name(name, "log").is_some() || parse_name(name, "snapshot").is_some()))
}

/// Reads every byte of the store in `dir` and changes nothing.
///
/// # Errors
/// When the files cannot be read at all; damage is part of the report.
pub fn check(dir: &Path) -> Result<Report, OpenError> {
    check_on(&open(dir)?)
}

/// [`check`] on any disk.
///
/// # Errors
/// As there.
pub fn check_on(disk: &dyn Disk) -> Result<Report, OpenError> {
    let mut loaded = match load(disk, NO_HISTORY, Time::ZERO, None) {
        Err(OpenError::Damaged(damage)) => return Ok(unreadable(damage)),
        other => other?,
    };
    loaded.replay.finish();
    let Loaded { replay, tail, snapshot, damages } = loaded;
    Ok(Report {
        revision: replay.head.revision,
        keys: replay.keys.len(),
        leases: replay.head.leases.iter().count(),
        snapshot: snapshot.map(|(name, _)| name),
        segments: tail.segments.len(),
        records: tail.records,
        torn: tail.torn,
        damages,
    })
}

/// The report when not even the snapshot's header can be read.
fn unreadable(damage: Damage) -> Report {
    let (snapshot, torn, damages) = (Some(damage.file.clone()), None, vec![damage]);
    Report { revision: Revision::ZERO, keys: 0, leases: 0, snapshot, segments: 0, records: 0, torn, damages }
}

/// The state of the store in `dir` at `revision` (`None`: the newest). With `salvage`, what is intact of a damaged
/// store: the blocks of the snapshot that verify, and the log up to the first damage.
///
/// # Errors
/// [`OpenError::Damaged`] without `salvage`; [`OpenError::NoSuchRevision`].
pub fn dump(dir: &Path, revision: Option<Revision>, salvage: bool) -> Result<Dump, OpenError> {
    dump_on(&open(dir)?, revision, salvage)
}

/// The state of the store in `dir`, though another process may be writing there: as of some revision between the call
/// and its end. What is acknowledged before the call is in it.
///
/// # Errors
/// [`OpenError::Damaged`] when it stays so however often it is read.
pub fn look(dir: &Path) -> Result<Dump, OpenError> {
    let place = dir.display().to_string();
    if !dir.is_dir() {
        return Err(OpenError::NotAStore { place });
    }
    let failed = |source| OpenError::Io { operation: "open the folder", file: place.clone(), source };
    let disk = FileDisk::look(dir).map_err(failed)?;
    let mut tries = 0;
    loop {
        tries += 1;
        // A file that is replaced, or a record that is written, while we read, looks like damage once.
        match if is_empty(&disk)? {
            Err(OpenError::NotAStore { place: place.clone() })
        } else {
            dump_on(&disk, None, false)
        } {
            Err(OpenError::Damaged(_) | OpenError::Io { .. }) if tries < LOOK_TRIES => {
                std::thread::sleep(LOOK_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

/// [`dump`] on any disk.
///
/// # Errors
/// As there.
pub fn dump_on(disk: &dyn Disk, revision: Option<Revision>, salvage: bool) -> Result<Dump, OpenError> {
    let mut loaded = load(disk, NO_HISTORY, Time::ZERO, revision)?;
    if !salvage && !loaded.damages.is_empty() {
        return Err(OpenError::Damaged(loaded.damages.swap_remove(0)));
    }
    let oldest = loaded.snapshot.as_ref().map_or(0, |(_, head)| head.revision.0);
    loaded.replay.finish();
    let (keys, head) = (loaded.replay.keys, loaded.replay.head);
    if let Some(asked) = revision
        && asked > head.revision
    {
        return Err(OpenError::NoSuchRevision { asked: asked.0, oldest, newest: head.revision.0 });
    }
    let at = revision.unwrap_or(head.revision);
    let leases = head.leases.iter().map(|(id, lease)| (id, lease.ttl_ms)).collect();
    Ok(Dump { revision: at, damages: loaded.damages, leases, state: State { revision: at, keys } })
}

/// Writes a new store into the empty folder `dir`. Keys keep their revisions; the next commit's is above `revision` and
/// above all of theirs. A key whose lease is not among `leases` is restored without one.
///
/// # Errors
/// [`OpenError::NotEmpty`] when there is a store already.
pub fn restore(
    dir: &Path,
    revision: Revision,
    leases: &[(LeaseId, u64)],
    keys: impl IntoIterator<Item = Dumped>,
    store_id: u64,
) -> Result<(), OpenError> {
    let place = dir.display().to_string();
    let disk = FileDisk::lock(dir, true).map_err(lock_error(place.clone()))?;
    if !is_empty(&disk)? {
        return Err(OpenError::NotEmpty { place });
    }
    restore_on(&disk, revision, leases, keys, store_id)
}

/// [`restore`] on any disk.
///
/// # Errors
/// As there.
pub fn restore_on(
    disk: &dyn Disk,
    revision: Revision,
    leases: &[(LeaseId, u64)],
    keys: impl IntoIterator<Item = Dumped>,
    store_id: u64,
) -> Result<(), OpenError> {
    let (mut keys_by_name, mut head) = (Tree::new(), Head::empty());
    head.revision = revision;
    for (id, ttl_ms) in leases {
        head.leases.insert(id.0, *ttl_ms, Time::ZERO);
    }
    for Dumped { key, value, create_revision, mod_revision, lease } in keys {
        head.revision = head.revision.max(mod_revision);
        let lease = lease.filter(|id| head.leases.get(*id).is_some());
        let version =
            Version { value: value.into(), create_revision, mod_revision, lease, ephemeral: false, attachment: None };
        keys_by_name.insert(key, Arc::new(version));
    }
    let job = SnapshotJob {
        head: SnapshotHead {
            store_id,
            lsn: Lsn(0),
            lsn_crc: 0,
            revision: head.revision,
            reserved: Revision::ZERO,
            ephemeral_used: false,
            next_lease: head.leases.next,
        },
        keys: keys_by_name,
        leases: head.leases,
    };
    job.write(disk).map_err(io_error(disk, "write the snapshot in", "")).map(|_| ())
}
