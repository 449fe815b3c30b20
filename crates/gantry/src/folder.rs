//! A data folder that one process at a time works in.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::error::Error;

const LOCK: &str = "lock";

/// The folder, held as long as this lives. The kernel gives it up when the process ends, however that comes about.
pub struct Folder {
    _lock: File,
}

impl Folder {
    /// Makes the folder when it is not there, and takes it for `who`.
    pub fn take(path: &Path, who: &str) -> Result<Folder, Error> {
        std::fs::create_dir_all(path).map_err(Error::file("create the folder", path))?;
        let place = path.join(LOCK);
        let mut options = File::options();
        let mut lock = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&place)
            .map_err(Error::file("open", &place))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(Error::InUse { path: path.to_owned(), by: owner(&mut lock).told() });
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(Error::file("lock", place)(error)),
        }
        // Words for others only, so a full disk must not keep the folder from being used.
        let _ = lock.set_len(0).and_then(|()| lock.rewind());
        let _ = lock.write_all(format!("{} {who}", std::process::id()).as_bytes());
        Ok(Folder { _lock: lock })
    }

    /// Who has the folder now; `None` when nobody does.
    pub fn owner(path: &Path) -> Option<Owner> {
        let mut lock = File::options().read(true).open(path.join(LOCK)).ok()?;
        match lock.try_lock_shared() {
            Err(std::fs::TryLockError::WouldBlock) => Some(owner(&mut lock)),
            _ => None,
        }
    }
}

/// The process that has a folder, as far as it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub pid: Option<i32>,
    pub who: String,
}

impl Owner {
    pub fn told(&self) -> String {
        match self.pid {
            Some(pid) => format!("{} (process {pid})", self.who),
            None => "another process".to_owned(),
        }
    }
}

fn owner(lock: &mut File) -> Owner {
    let mut text = String::new();
    // What cannot be read is told as nothing.
    let _ = lock.read_to_string(&mut text);
    match text.split_once(' ') {
        Some((pid, who)) => Owner { pid: pid.parse().ok(), who: who.to_owned() },
        None => Owner { pid: None, who: String::new() },
    }
}

/// The absolute form of a folder's path; the folder is made when it is not there.
pub fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::fs::create_dir_all(path).map_err(Error::file("create the folder", path))?;
    path.canonicalize().map_err(Error::file("find", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Folder::owner(dir.path()), None);
        let folder = Folder::take(dir.path(), "gantry up").unwrap();
        let refused = Folder::take(dir.path(), "gantry server").err().unwrap().to_string();
        let pid = std::process::id();
        let path = dir.path().display();
        assert_eq!(
            refused,
            format!("{path} is in use by gantry up (process {pid}): stop it first, or give another folder")
        );
        assert_eq!(Folder::owner(dir.path()).unwrap().pid, Some(pid as i32));
        drop(folder);
        assert_eq!(Folder::owner(dir.path()), None);
        Folder::take(dir.path(), "gantry server").unwrap();
    }
}
