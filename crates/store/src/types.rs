//! The nouns of the store: transactions, what they leave behind, and what may be said against them.

use base::{Blob, Revision};
use bytes::Bytes;
use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// Operations in one transaction; more is [`Invalid::TooManyOperations`].
pub const MAX_OPERATIONS: usize = 16_384;
/// Bytes of one key.
pub const MAX_KEY_BYTES: usize = 4 * 1024;
/// Bytes of one value.
pub const MAX_VALUE_BYTES: usize = 8 * 1024 * 1024;
/// Bytes of all keys and values of one transaction.
pub const MAX_TRANSACTION_BYTES: usize = 32 * 1024 * 1024;

/// Something that travels in memory with a value, so that its reader need not decode it again. Never logged.
pub type Attachment = Arc<dyn Any + Send + Sync>;

/// The name of a lease. Given once, never again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// One value of one key: the bytes and where in the order of all changes they stand.
#[derive(Clone)]
pub struct Version {
    pub value: Blob,
    /// The revision at which the key came into being (after its last deletion).
    pub create_revision: Revision,
    /// The revision that wrote this value.
    pub mod_revision: Revision,
    pub lease: Option<LeaseId>,
    /// True when the value was never promised to survive a restart.
    pub ephemeral: bool,
    pub attachment: Option<Attachment>,
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}@{:?}/{:?}", self.value, self.mod_revision, self.create_revision)?;
        if let Some(lease) = self.lease {
            write!(f, " lease {}", lease.0)?;
        }
        if self.ephemeral { f.write_str(" ephemeral") } else { Ok(()) }
    }
}

/// Equality of what is stored; attachments are not looked at.
impl PartialEq for Version {
    fn eq(&self, other: &Version) -> bool {
        self.value == other.value
            && self.create_revision == other.create_revision
            && self.mod_revision == other.mod_revision
            && self.lease == other.lease
            && self.ephemeral == other.ephemeral
    }
}

/// "The newest version of `key` was written at `mod_revision`"; 0 says that there is no such key.
///
/// A leader's epoch is such a compare too: the election key's modification revision is the epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    pub key: Bytes,
    pub mod_revision: Revision,
}

/// A value to be put.
#[derive(Clone)]
pub struct Put {
    pub key: Bytes,
    pub value: Bytes,
    /// Where in `value` the decimal text of the commit's revision is inserted (the writer leaves `""` and names the
    /// place between the quotes), so that stored, logged and fed bytes are final.
    pub stamp: Option<u32>,
    /// The key is deleted when this lease ends. A put without lease detaches the key.
    pub lease: Option<LeaseId>,
    /// The value need not survive a restart and so waits for no disk.
    pub ephemeral: bool,
    pub attachment: Option<Attachment>,
}

impl Put {
    /// A plain, durable put.
    pub fn new(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Put {
        Put { key: key.into(), value: value.into(), stamp: None, lease: None, ephemeral: false, attachment: None }
    }
}

impl fmt::Debug for Put {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Put({:?} = {:?}, stamp {:?}, lease {:?}", self.key, self.value, self.stamp, self.lease)?;
        f.write_str(if self.ephemeral { ", ephemeral)" } else { ")" })
    }
}

#[derive(Clone, Debug)]
pub enum Op {
    Put(Put),
    /// Deleting what is not there changes nothing and is no error.
    Delete {
        key: Bytes,
    },
}

impl Op {
    pub fn key(&self) -> &Bytes {
        match self {
            Op::Put(put) => &put.key,
            Op::Delete { key } => key,
        }
    }
}

/// All of it at one revision, or nothing.
#[derive(Clone, Debug, Default)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub ops: Vec<Op>,
}

impl Txn {
    pub fn new() -> Txn {
        Txn::default()
    }

    /// Demands that `key` was last written at `mod_revision` (0: that it does not exist).
    pub fn when(mut self, key: impl Into<Bytes>, mod_revision: Revision) -> Txn {
        self.compares.push(Compare { key: key.into(), mod_revision });
        self
    }

    pub fn put(mut self, put: Put) -> Txn {
        self.ops.push(Op::Put(put));
        self
    }

    pub fn delete(mut self, key: impl Into<Bytes>) -> Txn {
        self.ops.push(Op::Delete { key: key.into() });
        self
    }

    /// Bytes of keys and values; what limits and batches count.
    pub fn bytes(&self) -> usize {
        self.ops.iter().map(|op| op.key().len() + if let Op::Put(put) = op { put.value.len() } else { 0 }).sum()
    }

    /// Whether the transaction could take effect in some state.
    ///
    /// # Errors
    /// What it has too much of, or twice.
    pub fn check(&self) -> Result<(), Invalid> {
        if self.ops.len() > MAX_OPERATIONS {
            return Err(Invalid::TooManyOperations { operations: self.ops.len() });
        }
        let bytes = self.bytes();
        if bytes > MAX_TRANSACTION_BYTES {
            return Err(Invalid::TransactionTooLong { bytes });
        }
        for op in &self.ops {
            let key_bytes = op.key().len();
            if key_bytes == 0 {
                return Err(Invalid::EmptyKey);
            }
            if key_bytes > MAX_KEY_BYTES {
                return Err(Invalid::KeyTooLong { bytes: key_bytes });
            }
            if let Op::Put(put) = op {
                let value_bytes = put.value.len();
                if value_bytes > MAX_VALUE_BYTES {
                    return Err(Invalid::ValueTooLong { bytes: value_bytes });
                }
                if let Some(stamp) = put.stamp
                    && stamp as usize > value_bytes
                {
                    return Err(Invalid::StampOutside { stamp, value_bytes });
                }
            }
        }
        if self.ops.len() > 1 {
            let mut keys: Vec<&[u8]> = self.ops.iter().map(|op| &op.key()[..]).collect();
            keys.sort_unstable();
            if keys.windows(2).any(|pair| pair[0] == pair[1]) {
                return Err(Invalid::KeyTwice);
            }
        }
        Ok(())
    }
}

/// A transaction that took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The transaction's revision; the newest one when nothing changed.
    pub revision: Revision,
    /// Keys put or deleted.
    pub changed: usize,
}

/// A compare that did not hold. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub key: Bytes,
    pub expected: Revision,
    /// The key's modification revision; 0 when it does not exist.
    pub found: Revision,
    pub value: Option<Bytes>,
}

/// A transaction that can never take effect, whatever the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    EmptyKey,
    KeyTooLong {
        bytes: usize,
    },
    ValueTooLong {
        bytes: usize,
    },
    TransactionTooLong {
        bytes: usize,
    },
    TooManyOperations {
        operations: usize,
    },
    /// One key may change once in a transaction.
    KeyTwice,
    /// The stamp lies outside the value.
    StampOutside {
        stamp: u32,
        value_bytes: usize,
    },
    LeaseTooShort,
    /// More than the backend takes at once; it can be told to take more.
    BeyondBackend {
        what: &'static str,
        found: usize,
        limit: usize,
    },
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Invalid::EmptyKey => f.write_str("a key is empty"),
            Invalid::KeyTooLong { bytes } => write!(f, "a key has {bytes} bytes, at most {MAX_KEY_BYTES} are allowed"),
            Invalid::ValueTooLong { bytes } => {
                write!(f, "a value has {bytes} bytes, at most {MAX_VALUE_BYTES} are allowed")
            }
            Invalid::TransactionTooLong { bytes } => {
                write!(f, "the transaction has {bytes} bytes, at most {MAX_TRANSACTION_BYTES} are allowed")
            }
            Invalid::TooManyOperations { operations } => {
                write!(f, "the transaction has {operations} operations, at most {MAX_OPERATIONS} are allowed")
            }
            Invalid::KeyTwice => f.write_str("the transaction changes one key twice"),
            Invalid::StampOutside { stamp, value_bytes } => {
                write!(f, "the revision's place {stamp} lies outside a value of {value_bytes} bytes")
            }
            Invalid::LeaseTooShort => f.write_str("a lease lasts at least one millisecond"),
            Invalid::BeyondBackend { what, found, limit } => {
                write!(f, "the transaction has {found} {what}, and the backend takes {limit} at once")
            }
        }
    }
}

/// Why an operation on the store did not happen. On every one of them nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    Refused(Box<Refused>),
    Invalid(Invalid),
    NoSuchLease(LeaseId),
    /// History up to and including this revision is gone; read the present state.
    Compacted(Revision),
    /// The revision asked for has not been given yet; this one is the newest.
    Ahead(Revision),
    /// The log could not be written; `full` says that the disk has no room.
    Disk {
        operation: &'static str,
        full: bool,
        message: String,
    },
    /// Too many requests wait already.
    Busy,
    /// The store was closed.
    Closed,
    /// A remote backend could not be reached, or its answer got lost: the transaction may have happened.
    Unknown(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Refused(refused) => write!(
                f,
                "key {} was expected at revision {} and is at {}",
                refused.key.escape_ascii(),
                refused.expected,
                refused.found
            ),
            Error::Invalid(invalid) => write!(f, "invalid transaction: {invalid}"),
            Error::NoSuchLease(id) => write!(f, "there is no lease {}", id.0),
            Error::Compacted(at) => write!(f, "the history up to revision {at} has been compacted"),
            Error::Ahead(current) => write!(f, "the revision lies ahead of the newest one, {current}"),
            Error::Disk { operation, full: true, .. } => write!(f, "{operation}: no space left on the disk"),
            Error::Disk { operation, message, .. } => write!(f, "{operation}: {message}"),
            Error::Busy => f.write_str("too many writes are waiting"),
            Error::Closed => f.write_str("the store is closed"),
            Error::Unknown(message) => write!(f, "the outcome is unknown: {message}"),
        }
    }
}

impl std::error::Error for Error {}

/// One key's change at one revision.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub revision: Revision,
    pub key: Bytes,
    pub old: Option<Arc<Version>>,
    /// `None`: deleted.
    pub new: Option<Arc<Version>>,
}

/// Keys from `start` up to, not including, `end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    pub start: Bytes,
    /// `None`: to the last key.
    pub end: Option<Bytes>,
}

impl Range {
    pub fn all() -> Range {
        Range { start: Bytes::new(), end: None }
    }

    /// The one key.
    pub fn key(key: impl Into<Bytes>) -> Range {
        let start = key.into();
        let end = [&start[..], &[0]].concat();
        Range { start, end: Some(end.into()) }
    }

    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Range {
        let start = prefix.into();
        let mut end = start.to_vec();
        while let Some(last) = end.pop() {
            if last < u8::MAX {
                end.push(last + 1);
                return Range { start, end: Some(end.into()) };
            }
        }
        Range { start, end: None }
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && self.end.as_ref().is_none_or(|end| key < &end[..])
    }
}

/// The most that a [`crate::Mvcc`] remembers of the past. An event leaves when it is older than `window_ms`, or when
/// there are more events or bytes than allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryLimits {
    pub window_ms: u64,
    pub max_events: usize,
    /// Keys and values of the events, and a fixed share for each.
    pub max_bytes: usize,
}

impl Default for HistoryLimits {
    fn default() -> HistoryLimits {
        HistoryLimits { window_ms: 5 * 60 * 1000, max_events: 200_000, max_bytes: 256 * 1024 * 1024 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_end_before_the_next_sibling() {
        let range = Range::prefix("/pods/");
        assert!(range.contains(b"/pods/") && range.contains(b"/pods/\xff\xff"));
        assert!(!range.contains(b"/pods0") && !range.contains(b"/pods"));
        assert_eq!(Range::prefix(vec![1, 255]).end.as_deref(), Some(&[2u8][..]));
        assert_eq!(Range::prefix(vec![255, 255]).end, None);
        let one = Range::key("a");
        assert!(one.contains(b"a") && !one.contains(b"a\0") && !one.contains(b"b"));
    }
}
