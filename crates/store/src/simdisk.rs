//! A disk in memory that forgets like a real one: what was not synced may be lost, the last write may be torn, bits may
//! flip, and it may be full. Everything it does follows from a seed.

use crate::disk::{Disk, DiskFile};
use base::Rng;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The unit in which a write reaches the medium.
const SECTOR_BYTES: usize = 512;
/// Pieces of memory that are kept for later files.
const SPARE_MAX: usize = 12;

#[derive(Clone, Default)]
struct SimFile {
    durable: Vec<u8>,
    current: Vec<u8>,
    /// Writes since the last sync: offset and length.
    pending: Vec<(usize, usize)>,
}

#[derive(Default)]
struct Inner {
    /// Names as programs see them, and as they are after a crash.
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    files: BTreeMap<u64, SimFile>,
    next: u64,
    /// Bytes that all files together may have.
    capacity: Option<u64>,
    /// Syncs that fail from now on.
    failing_syncs: u32,
    syncs: u64,
    /// Changes until the power fails.
    power: Option<u32>,
    /// Memory of files that are gone, for the next ones: to have it anew costs more than to write it.
    spare: Vec<Vec<u8>>,
}

/// Clones share one medium.
#[derive(Clone, Default)]
pub struct SimDisk(Arc<Mutex<Inner>>);

struct Handle {
    disk: SimDisk,
    id: u64,
}

impl SimDisk {
    pub fn new() -> SimDisk {
        SimDisk::default()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A disk of its own with the same contents.
    pub fn copy(&self) -> SimDisk {
        let inner = self.inner();
        let (names, durable_names) = (inner.names.clone(), inner.durable_names.clone());
        let (files, next) = (inner.files.clone(), inner.next);
        SimDisk(Arc::new(Mutex::new(Inner { names, durable_names, files, next, ..Inner::default() })))
    }

    /// Power loss: names and bytes that were not synced stay or go, sector by sector, as `rng` decides. Open handles
    /// must not be used afterwards.
    pub fn crash(&self, rng: &mut Rng) {
        let mut inner = self.inner();
        inner.power = None;
        if rng.chance(500) {
            // Some file systems have made the names durable by themselves.
            inner.durable_names = inner.names.clone();
        }
        inner.names = inner.durable_names.clone();
        let keep_all = rng.chance(200);
        for file in inner.files.values_mut() {
            let mut kept = file.durable.clone();
            for (offset, len) in std::mem::take(&mut file.pending) {
                let mut at = offset;
                while at < offset + len {
                    let end = ((at / SECTOR_BYTES + 1) * SECTOR_BYTES).min(offset + len);
                    if keep_all || rng.chance(500) {
                        if kept.len() < end {
                            kept.resize(end, 0);
                        }
                        kept[at..end].copy_from_slice(&file.current[at..end]);
                    }
                    at = end;
                }
            }
            file.durable = kept.clone();
            file.current = kept;
        }
        let used: Vec<u64> = inner.names.values().copied().collect();
        inner.files.retain(|id, _| used.contains(id));
    }

    /// Flips one bit of a file, on the medium.
    pub fn flip(&self, name: &str, offset: usize, bit: u8) {
        let mut inner = self.inner();
        if let Some(id) = inner.names.get(name).copied()
            && let Some(file) = inner.files.get_mut(&id)
        {
            for bytes in [&mut file.durable, &mut file.current] {
                if let Some(byte) = bytes.get_mut(offset) {
                    *byte ^= 1 << (bit & 7);
                }
            }
        }
    }

    /// Limits the bytes of all files together; `None` lifts the limit.
    pub fn set_capacity(&self, capacity: Option<u64>) {
        self.inner().capacity = capacity;
    }

    /// Lets the power fail at the change (write, sync, new name) after `changes` more; [`SimDisk::crash`] brings it back.
    pub fn power_off_after(&self, changes: u32) {
        self.inner().power = Some(changes);
    }

    /// Lets the next `count` syncs fail.
    pub fn fail_syncs(&self, count: u32) {
        self.inner().failing_syncs = count;
    }

    pub fn used_bytes(&self) -> u64 {
        self.inner().files.values().map(|file| file.current.len() as u64).sum()
    }

    /// Syncs of file contents so far.
    pub fn syncs(&self) -> u64 {
        self.inner().syncs
    }

    pub fn contents(&self, name: &str) -> Option<Vec<u8>> {
        let inner = self.inner();
        inner.names.get(name).and_then(|id| inner.files.get(id)).map(|file| file.current.clone())
    }
}

impl Inner {
    fn change(&mut self) -> io::Result<()> {
        match &mut self.power {
            Some(0) => Err(io::Error::other("simulated loss of power")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn room(&self, more: u64) -> io::Result<()> {
        let used: u64 = self.files.values().map(|file| file.current.len() as u64).sum();
        match self.capacity {
            Some(capacity) if used + more > capacity => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    fn forget_unnamed(&mut self, id: u64) {
        if !self.names.values().any(|other| *other == id) && !self.durable_names.values().any(|other| *other == id) {
            let gone = self.files.remove(&id).map(|file| [file.durable, file.current]);
            self.spare.extend(gone.into_iter().flatten());
            self.spare.sort_unstable_by_key(|bytes| std::cmp::Reverse(bytes.capacity()));
            self.spare.truncate(SPARE_MAX);
        }
    }

    /// So many zeros, in memory that has room for little more; for what is yet to grow, in the largest there is.
    fn zeros(&mut self, len: usize) -> Vec<u8> {
        let fits = |bytes: &Vec<u8>| bytes.capacity() >= len;
        let place = if len == 0 { Some(0) } else { self.spare.iter().rposition(fits) };
        let spare = place.filter(|place| *place < self.spare.len()).map(|place| self.spare.remove(place));
        let mut bytes = spare.unwrap_or_default();
        bytes.clear();
        bytes.resize(len, 0);
        bytes
    }
}

impl Disk for SimDisk {
    fn place(&self) -> String {
        "simulated disk".into()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.inner().names.keys().cloned().collect())
    }

    fn create(&self, name: &str, zeros: u64) -> io::Result<Box<dyn DiskFile>> {
        let mut inner = self.inner();
        inner.change()?;
        inner.room(zeros)?;
        let id = inner.next;
        inner.next += 1;
        let (durable, current) = (inner.zeros(zeros as usize), inner.zeros(zeros as usize));
        inner.files.insert(id, SimFile { durable, current, pending: Vec::new() });
        if let Some(old) = inner.names.insert(name.into(), id) {
            inner.forget_unnamed(old);
        }
        Ok(Box::new(Handle { disk: self.clone(), id }))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let id = self.inner().names.get(name).copied().ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Handle { disk: self.clone(), id }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.inner();
        inner.change()?;
        let id = inner.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        if let Some(old) = inner.names.insert(to.into(), id) {
            inner.forget_unnamed(old);
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut inner = self.inner();
        inner.change()?;
        let id = inner.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        inner.forget_unnamed(id);
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut inner = self.inner();
        inner.change()?;
        let gone: Vec<u64> = inner.durable_names.values().copied().collect();
        inner.durable_names = inner.names.clone();
        for id in gone {
            inner.forget_unnamed(id);
        }
        Ok(())
    }
}

impl Handle {
    fn with<T>(&self, work: impl FnOnce(&mut Inner, &mut SimFile) -> io::Result<T>) -> io::Result<T> {
        let mut inner = self.disk.inner();
        let mut file = inner.files.remove(&self.id).ok_or(io::ErrorKind::NotFound)?;
        // The file counts as used while it is out of the table.
        let result = work(&mut inner, &mut file);
        inner.files.insert(self.id, file);
        result
    }
}

impl DiskFile for Handle {
    fn bytes(&self) -> io::Result<u64> {
        self.with(|_, file| Ok(file.current.len() as u64))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.with(|_, file| {
            let rest = file.current.get(offset as usize..).unwrap_or(&[]);
            let len = rest.len().min(buffer.len());
            buffer[..len].copy_from_slice(&rest[..len]);
            Ok(len)
        })
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        self.with(|inner, file| {
            if end > file.current.len() {
                // A growing write stops in the middle when the disk is full, as real ones do.
                if let Err(full) = inner.room(end as u64) {
                    let part = bytes.len() / 2;
                    file.current.resize(file.current.len().max(start + part), 0);
                    file.current[start..start + part].copy_from_slice(&bytes[..part]);
                    file.pending.push((start, part));
                    return Err(full);
                }
            }
            inner.change()?;
            if start == file.current.len() {
                file.current.extend_from_slice(bytes);
            } else {
                file.current.resize(end.max(file.current.len()), 0);
                file.current[start..end].copy_from_slice(bytes);
            }
            file.pending.push((start, bytes.len()));
            Ok(())
        })
    }

    fn sync(&mut self) -> io::Result<()> {
        self.with(|inner, file| {
            if inner.failing_syncs > 0 {
                inner.failing_syncs -= 1;
                return Err(io::Error::other("simulated failure of the medium"));
            }
            inner.change()?;
            inner.syncs += 1;
            let SimFile { durable, current, pending } = file;
            // What was not there before was pending, or is the gap before it.
            let known = durable.len();
            durable.extend_from_slice(current.get(known..).unwrap_or_default());
            for (offset, len) in pending.drain(..) {
                durable[offset..offset + len].copy_from_slice(&current[offset..offset + len]);
            }
            Ok(())
        })
    }
}
