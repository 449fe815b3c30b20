//! One MVCC store over opaque bytes: every change has one revision, in one order, and what is visible is durable.
//!
//! From pure to real: [`Mvcc`] (the machine: no IO, no clock, no threads) is made of [`Stage`] (decides) and [`Visible`]
//! (shows); [`Store`] adds the log on a [`Disk`] and is stepped by whoever drives it (a simulator with a [`SimDisk`], or
//! a thread); [`Embedded`] is that thread. [`Backend`] is the seam that servers see; etcd stands behind it too.
//! [`Format`] is the version of what stands in values. [`check`], [`dump`] and [`restore`] work on the files of a store
//! that is not running; `FORMAT.md` describes them byte by byte.
//!
//! Not here: JSON, kinds of objects, sockets, any meaning of keys and values.
//!
//! Invariants: a revision is given once, and goes up, also across restarts; a refused transaction changes nothing; an
//! answered one survives any crash (ephemeral keys excepted, see below); readers and the feed never see what is not
//! durable; a revision's events are never parted.
//!
//! Ephemeral keys (`Put::ephemeral`) have revisions and events like all others but wait for no disk. They survive a
//! clean close. After a crash they are gone; every follower is then told to begin anew ([`Error::Compacted`]), because
//! revisions up to the logged reserve may have been seen.

mod backend;
mod crc;
mod disk;
mod embedded;
mod error;
mod format;
mod lease;
mod log;
mod mvcc;
mod record;
mod recover;
mod simdisk;
mod snapshot;
mod stage;
mod store;
mod ticket;
mod tools;
mod types;
mod visible;

pub use backend::Backend;
pub use disk::{Disk, DiskFile, FileDisk, LockError};
pub use embedded::{Alarm, BATCH_BYTES, BATCH_COMMANDS, Embedded, QUEUE_COMMANDS, Status};
pub use error::{Damage, OpenError, Torn};
pub use format::Format;
pub use mvcc::Mvcc;
pub use recover::Recovered;
pub use simdisk::SimDisk;
pub use snapshot::{SnapshotBuffers, SnapshotJob};
pub use stage::{Batch, Lsn, Publication, RECORD_HEADER_BYTES, RESERVED_REVISIONS, Stage};
pub use store::{Command, Options, Sink, Store};
pub use ticket::{Done, Ticket};
pub use tools::{Dump, Dumped, Report, check, check_on, dump, dump_on, look, restore, restore_on};
pub use types::{
    Attachment, Commit, Compare, Error, Event, HistoryLimits, Invalid, LeaseId, MAX_KEY_BYTES, MAX_OPERATIONS,
    MAX_TRANSACTION_BYTES, MAX_VALUE_BYTES, Op, Put, Range, Refused, Txn, Version,
};
pub use visible::{Events, Page, State, Visible};
