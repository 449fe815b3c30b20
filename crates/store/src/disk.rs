//! The seam to the disk: one flat folder of files. [`FileDisk`] is a real folder, [`crate::SimDisk`] a simulated one.
//!
//! The seam lies below framing, checksums and recovery, so that a simulation exercises those too.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// A folder of files. Names are durable after [`Disk::sync_names`], contents after [`DiskFile::sync`].
pub trait Disk: Send + Sync {
    /// Where this is, for messages.
    fn place(&self) -> String;
    fn list(&self) -> io::Result<Vec<String>>;
    /// A new file of `zeros` zero bytes whose blocks are there already; an old file of this name is gone.
    fn create(&self, name: &str, zeros: u64) -> io::Result<Box<dyn DiskFile>>;
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    fn sync_names(&self) -> io::Result<()>;
    /// A hint that `create(_, zeros)` comes soon.
    fn prepare(&self, zeros: u64) {
        let _ = zeros;
    }
}

pub trait DiskFile: Send {
    fn bytes(&self) -> io::Result<u64>;
    /// Fills `buffer` from `offset`; fewer bytes only at the end of the file.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    fn sync(&mut self) -> io::Result<()>;
}

/// Reads a whole file.
pub(crate) fn read_all(file: &dyn DiskFile) -> io::Result<Vec<u8>> {
    let len = usize::try_from(file.bytes()?).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    let mut bytes = vec![0; len];
    let read = file.read_at(0, &mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}

const LOCK_NAME: &str = "lock";
const PREPARED_NAME: &str = "prepared.new";
const ZERO_CHUNK_BYTES: usize = 1024 * 1024;
/// Files are made durable by so many bytes at a time: whoever syncs another file meanwhile waits for no more than that.
pub(crate) const SYNC_BYTES: u64 = 2 * 1024 * 1024;
/// What a file is called that is removed already but still takes room.
const GONE_PREFIX: &str = "gone-";
/// Removing a larger file takes longer than a write should wait: a tenth of a second for 256 MiB.
const GONE_BYTES_MIN: u64 = 1024 * 1024;
/// So many times as long as it took to give back a piece of a file is the pause after it.
const GIVE_BACK_PAUSE: u32 = 4;

/// A real folder, held under a lock as long as this lives.
pub struct FileDisk {
    dir: PathBuf,
    prepared: Arc<Mutex<Prepared>>,
    /// Large files removed so far.
    gone: AtomicU64,
    /// Whoever holds it gives back the room of one.
    giving_back: Arc<Mutex<()>>,
    _lock: File,
}

enum Prepared {
    None,
    Working,
    Ready(u64),
}

/// Why a folder could not be taken.
#[derive(Debug)]
pub enum LockError {
    /// Another process has it; its number as far as known.
    Held {
        pid: Option<u32>,
    },
    Io(io::Error),
}

impl FileDisk {
    /// Takes the folder `dir`; creates it (mode 0700) when it is not there and `create` allows.
    ///
    /// # Errors
    /// [`LockError::Held`] when another process, or another part of this one, has it open.
    pub fn lock(dir: &Path, create: bool) -> Result<FileDisk, LockError> {
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        if create {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(LockError::Io)?;
        }
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(dir.join(LOCK_NAME))
            .map_err(LockError::Io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _ = lock.read_to_string(&mut text);
                return Err(LockError::Held { pid: text.trim().parse().ok() });
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(LockError::Io(error)),
        }
        // The number is for messages only, so a full disk must not keep a store from being opened.
        let _ = lock.set_len(0).and_then(|()| lock.write_all(std::process::id().to_string().as_bytes()));
        for entry in std::fs::read_dir(dir).map_err(LockError::Io)?.flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(GONE_PREFIX.as_bytes()) {
                std::fs::remove_file(entry.path()).map_err(LockError::Io)?;
            }
        }
        Ok(FileDisk::at(dir, lock))
    }

    fn at(dir: &Path, lock: File) -> FileDisk {
        let prepared = Arc::new(Mutex::new(Prepared::None));
        FileDisk { dir: dir.to_path_buf(), prepared, gone: AtomicU64::new(0), giving_back: Arc::default(), _lock: lock }
    }

    /// The folder `dir` without its lock, to be read only: another process may be writing there.
    pub(crate) fn look(dir: &Path) -> io::Result<FileDisk> {
        Ok(FileDisk::at(dir, File::open(dir)?))
    }

    fn create_new(path: &Path, zeros: u64) -> io::Result<File> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        // Written, not only allocated: a later write then changes no metadata, and fdatasync stays cheap.
        let chunk = vec![0; ZERO_CHUNK_BYTES.min(zeros as usize)];
        let mut at = 0;
        while at < zeros {
            let len = (zeros - at).min(chunk.len() as u64) as usize;
            let written = file.write_all_at(&chunk[..len], at);
            at += len as u64;
            let written = if at.is_multiple_of(SYNC_BYTES) || at == zeros {
                written.and_then(|()| file.sync_data())
            } else {
                written
            };
            if let Err(error) = written {
                let _ = std::fs::remove_file(path);
                return Err(error);
            }
        }
        Ok(file)
    }

    fn take_prepared(&self, zeros: u64, path: &Path) -> Option<File> {
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*prepared, Prepared::Ready(bytes) if bytes == zeros) {
            return None;
        }
        *prepared = Prepared::None;
        std::fs::rename(self.dir.join(PREPARED_NAME), path).ok()?;
        OpenOptions::new().read(true).write(true).open(path).ok()
    }
}

impl Disk for FileDisk {
    fn place(&self) -> String {
        self.dir.display().to_string()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            if let Ok(name) = entry?.file_name().into_string()
                && name != LOCK_NAME
                && !name.starts_with(GONE_PREFIX)
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn create(&self, name: &str, zeros: u64) -> io::Result<Box<dyn DiskFile>> {
        let path = self.dir.join(name);
        match self.take_prepared(zeros, &path) {
            Some(file) => Ok(Box::new(file)),
            None => Ok(Box::new(FileDisk::create_new(&path, zeros)?)),
        }
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(OpenOptions::new().read(true).write(true).open(self.dir.join(name))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.dir.join(name);
        if std::fs::metadata(&path)?.len() < GONE_BYTES_MIN {
            return std::fs::remove_file(path);
        }
        let gone = self.dir.join(format!("{GONE_PREFIX}{}", self.gone.fetch_add(1, Ordering::Relaxed)));
        std::fs::rename(path, &gone)?;
        let (there, giving_back) = (gone.clone(), self.giving_back.clone());
        let work = move || {
            // While it is open, only its name goes: what takes long is to give back its room, and nobody waits for that.
            let file = OpenOptions::new().write(true).open(&there);
            let removed = std::fs::remove_file(there);
            let _one_at_a_time = giving_back.lock();
            // What is left of it when this fails goes with the last who has it open.
            let _ = file.and_then(|file| give_back(&file));
            removed
        };
        match std::thread::Builder::new().name("store-remove".into()).spawn(work) {
            Ok(_) => Ok(()),
            Err(_) => std::fs::remove_file(gone),
        }
    }

    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn prepare(&self, zeros: u64) {
        let mut state = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*state, Prepared::None) {
            return;
        }
        let (prepared, path) = (self.prepared.clone(), self.dir.join(PREPARED_NAME));
        let work = move || {
            let made = FileDisk::create_new(&path, zeros).is_ok();
            *prepared.lock().unwrap_or_else(PoisonError::into_inner) =
                if made { Prepared::Ready(zeros) } else { Prepared::None };
        };
        if std::thread::Builder::new().name("store-prepare".into()).spawn(work).is_ok() {
            *state = Prepared::Working;
        }
    }
}

/// Gives back the room of a file from its end, with pauses. The file system is locked meanwhile, against whoever syncs,
/// too: so it is a little at a time, and by a thread that has its turn as all have (one that had to wait for what others
/// leave kept the log waiting for a fifth of a second).
fn give_back(file: &File) -> io::Result<()> {
    let mut left = file.metadata()?.len();
    while left > 0 {
        let began = Instant::now();
        left = left.saturating_sub(SYNC_BYTES);
        file.set_len(left)?;
        std::thread::sleep(began.elapsed() * GIVE_BACK_PAUSE);
    }
    Ok(())
}

impl DiskFile for File {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut read = 0;
        while read < buffer.len() {
            match FileExt::read_at(self, &mut buffer[read..], offset + read as u64) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_removed_is_gone_at_once_and_for_good() {
        let dir = std::env::temp_dir().join(format!("gantry-disk-{}", std::process::id()));
        let disk = FileDisk::lock(&dir, true).unwrap();
        for name in ["large", "other"] {
            disk.create(name, 2 * GONE_BYTES_MIN).unwrap();
        }
        disk.create("small", 10).unwrap();
        for name in ["large", "small"] {
            disk.remove(name).unwrap();
        }
        assert_eq!(disk.list().unwrap(), ["other"]);
        disk.create("large", 10).unwrap();
        assert_eq!(disk.open("large").unwrap().bytes().unwrap(), 10);
        assert!(disk.remove("small").is_err());
        drop(disk);
        // As a crash leaves it in the middle.
        let half = dir.join(format!("{GONE_PREFIX}5"));
        File::create(&half).unwrap();
        let disk = FileDisk::lock(&dir, false).unwrap();
        assert!(!half.exists());
        assert_eq!(disk.list().unwrap(), ["large", "other"]);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
