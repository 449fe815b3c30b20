//! Where what was removed lies until it is emptied.
//!
//! To empty a container's directory takes several milliseconds on a busy disk that is told of every block it gets back
//! (`discard`), and nobody needs to wait for that: what is moved here is gone for everybody else. It is emptied at once
//! by a blocking thread; what a process that ends leaves here the next one empties.
//!
//! Invariants: whatever is in the directory belongs to nobody; when [`WAITING_MAX`] wait, who brings more empties it
//! himself.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::{Error, lock};

/// Most things that wait to be emptied.
const WAITING_MAX: usize = 256;

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Trash {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    dir: OwnedFd,
    /// Begins every name, so that those of an earlier process are others.
    stamp: i64,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    taken: u64,
    waiting: VecDeque<OsString>,
    /// A thread is emptying.
    busy: bool,
}

impl Trash {
    /// Makes the directory where it is missing. It must lie on the file system of what will be taken.
    pub fn open(path: &Path, stamp: i64) -> Result<Trash, Error> {
        let doing = || format!("make {}", path.display());
        std::fs::create_dir_all(path).map_err(Error::io(doing()))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(Error::os(doing()))?;
        Ok(Trash { inner: Arc::new(Inner { path: path.to_owned(), dir, stamp, queue: Mutex::default() }) })
    }

    /// Takes the tree at `path` away. Missing is no error. Call it in the async runtime or one of its blocking threads.
    pub fn take(&self, path: &Path) -> Result<(), Error> {
        let name = {
            let mut queue = lock(&self.inner.queue);
            queue.taken += 1;
            let room = queue.waiting.len() < WAITING_MAX;
            room.then(|| OsString::from(format!("{:x}-{}", self.inner.stamp, queue.taken)))
        };
        let moved = name.as_ref().map(|name| rustix::fs::renameat(CWD, path, &self.inner.dir, name));
        match (moved, name) {
            (Some(Err(Errno::NOENT)), _) => Ok(()),
            (Some(Ok(())), Some(name)) => {
                self.wait_for_thread([name]);
                Ok(())
            }
            // Too many wait, or it cannot be moved.
            _ => crate::rooted::remove_path(path).map_err(Error::os(format!("remove {}", path.display()))),
        }
    }

    /// Has emptied what an earlier process left.
    pub fn empty_rest(&self) -> Result<(), Error> {
        let names = crate::rooted::names(self.inner.dir.as_fd());
        self.wait_for_thread(names.map_err(Error::os(format!("read {}", self.inner.path.display())))?);
        Ok(())
    }

    fn wait_for_thread(&self, names: impl IntoIterator<Item = OsString>) {
        let mut queue = lock(&self.inner.queue);
        queue.waiting.extend(names);
        if !queue.waiting.is_empty() && !std::mem::replace(&mut queue.busy, true) {
            let inner = self.inner.clone();
            tokio::task::spawn_blocking(move || inner.empty());
        }
    }
}

impl Inner {
    fn empty(&self) {
        loop {
            let name = {
                let mut queue = lock(&self.queue);
                let name = queue.waiting.pop_front();
                queue.busy = name.is_some();
                name
            };
            let Some(name) = name else { return };
            if let Err(error) = crate::rooted::remove_tree(self.dir.as_fd(), &name) {
                tracing::warn!(%error, dir = %self.path.display(), "what was removed stays until the next start");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(dir: &Path) -> usize {
        std::fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn what_is_taken_is_gone_at_once_and_emptied_soon() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("removed");
        std::fs::create_dir_all(at.join("of-before/deep")).unwrap();
        // With one blocking thread, what is asked for last is done last.
        let tokio = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        tokio.block_on(async {
            let trash = Trash::open(&at, 1).unwrap();
            trash.empty_rest().unwrap();
            for number in 0..2 * WAITING_MAX {
                let tree = dir.path().join(format!("tree-{number}"));
                std::fs::create_dir_all(tree.join("a/b")).unwrap();
                std::fs::write(tree.join("a/file"), "text").unwrap();
                trash.take(&tree).unwrap();
                assert!(!tree.exists());
            }
            trash.take(&dir.path().join("never-there")).unwrap();
            tokio::task::spawn_blocking(|| ()).await.unwrap();
        });
        assert_eq!((left(&at), left(dir.path())), (0, 1));
    }
}
