//! Why a folder could not be opened as a store, in words that say what to do.

use crate::disk::{Disk, LockError};
use std::fmt;
use std::io;

/// Bytes on the disk that are not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub file: String,
    pub offset: u64,
    pub what: String,
    /// What is intact all the same.
    pub saved: String,
}

/// The unfinished last batch, which nobody was told about, was cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    pub file: String,
    pub offset: u64,
    pub bytes: u64,
}

#[derive(Debug)]
pub enum OpenError {
    /// Another process has the folder open.
    Locked {
        place: String,
        pid: Option<u32>,
    },
    Damaged(Damage),
    /// Written by another version of the format.
    Version {
        file: String,
        found: u32,
    },
    /// A store that must be there is not, or one that must not be is.
    NotAStore {
        place: String,
    },
    NotEmpty {
        place: String,
    },
    /// A revision before the oldest or after the newest one kept was asked for.
    NoSuchRevision {
        asked: u64,
        oldest: u64,
        newest: u64,
    },
    Io {
        operation: &'static str,
        file: String,
        source: io::Error,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Locked { place, pid: Some(pid) } => {
                write!(f, "{place} is in use by process {pid}: stop it first, or use another folder")
            }
            OpenError::Locked { place, pid: None } => {
                write!(f, "{place} is in use by another process: stop it first, or use another folder")
            }
            OpenError::Damaged(damage) => write!(
                f,
                "{} is damaged at byte {}: {}; {} can be saved (`gantry store dump --salvage`, then `restore`)",
                damage.file, damage.offset, damage.what, damage.saved
            ),
            OpenError::Version { file, found } => {
                let known = crate::log::FORMAT_VERSION.max(crate::snapshot::SNAPSHOT_VERSION);
                write!(f, "{file} has format version {found}, this program reads versions up to {known}")
            }
            OpenError::NotAStore { place } => write!(f, "{place} holds no store"),
            OpenError::NotEmpty { place } => write!(f, "{place} already holds a store: restore into an empty folder"),
            OpenError::NoSuchRevision { asked, oldest, newest } => {
                write!(f, "revision {asked} is not kept: the files hold revisions {oldest} to {newest}")
            }
            OpenError::Io { operation, file, source } => write!(f, "{operation} {file}: {source}"),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            OpenError::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

pub(crate) fn io_error(disk: &dyn Disk, operation: &'static str, name: &str) -> impl FnOnce(io::Error) -> OpenError {
    let file = if name.is_empty() { disk.place() } else { format!("{}/{name}", disk.place()) };
    move |source| OpenError::Io { operation, file, source }
}

pub(crate) fn lock_error(place: String) -> impl FnOnce(LockError) -> OpenError {
    move |error| match error {
        LockError::Held { pid } => OpenError::Locked { place, pid },
        LockError::Io(source) => OpenError::Io { operation: "open the folder", file: place, source },
    }
}
