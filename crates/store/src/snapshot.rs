//! Snapshots: the durable state at one place of the log, in one file of checksummed blocks. `FORMAT.md` is the reference.
//!
//! A snapshot gets its final name only when all of it is on the disk. Ephemeral keys are not in it: a restart that is no
//! clean one must not bring back what was deleted since.

use crate::crc::crc32c;
use crate::disk::{Disk, DiskFile, SYNC_BYTES};
use crate::error::{Damage, OpenError, io_error};
use crate::lease::Leases;
use crate::log::parse_name;
use crate::record::{Entry, Malformed, Reader, put_entry};
use crate::stage::{Keys, Lsn, entry};
use base::Revision;
use lz4_flex::block::{compress_into, decompress, get_maximum_output_size};
use std::io;

/// The first version has no packed blocks.
pub(crate) const SNAPSHOT_VERSION: u32 = 2;
const SNAPSHOT_VERSION_OLDEST: u32 = 1;
const SNAPSHOT_MAGIC: [u8; 8] = *b"GANTRYSN";
const BLOCK_MAGIC: [u8; 4] = *b"GBk1";
/// A block whose body is the length of the plain one and its LZ4: objects that stand together are mostly much alike, and
/// bytes that are not written need no place in the cache of the disk.
const PACKED_MAGIC: [u8; 4] = *b"GBz1";
const HEADER_BYTES: usize = 96;
const BLOCK_HEADER_BYTES: usize = 16;
/// A block is closed when it has this many bytes.
const BLOCK_BYTES: usize = 1024 * 1024;
/// No block is longer: one entry of the greatest size and a full block.
const MAX_BLOCK_BYTES: usize = 48 * 1024 * 1024;
const TAG_ENTRY: u8 = 1;
const TAG_LEASE: u8 = 2;
const TAG_END: u8 = 3;
const NEW_NAME: &str = "snapshot.new";

pub(crate) fn snapshot_name(lsn: Lsn) -> String {
    format!("snapshot-{:020}.gantry", lsn.0)
}

/// The newest snapshot's name.
pub(crate) fn newest(disk: &dyn Disk) -> Result<Option<String>, OpenError> {
    let names = disk.list().map_err(io_error(disk, "list the files", ""))?;
    Ok(names.into_iter().filter(|name| parse_name(name, "snapshot").is_some()).max())
}

/// What stands in front of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotHead {
    pub store_id: u64,
    /// The last record that the snapshot covers, and its checksum.
    pub lsn: Lsn,
    pub lsn_crc: u32,
    pub revision: Revision,
    pub reserved: Revision,
    pub ephemeral_used: bool,
    pub next_lease: u64,
}

/// A snapshot waiting to be written; holds its state by O(1) clones, so that it can be written on another thread.
pub struct SnapshotJob {
    pub(crate) head: SnapshotHead,
    pub(crate) keys: Keys,
    pub(crate) leases: Leases,
}

impl SnapshotJob {
    /// Writes the snapshot, makes it durable and gives it its name. Returns how many bytes there were to write, before they
    /// were packed.
    ///
    /// # Errors
    /// Any error of the disk; there is no snapshot then, and none of its bytes remain.
    pub fn write(&self, disk: &dyn Disk) -> io::Result<u64> {
        self.write_with(disk, &mut SnapshotBuffers::default(), &mut || {})
    }

    /// The same with buffers that are at hand from an earlier snapshot; `between` is called from block to block.
    ///
    /// # Errors
    /// As [`SnapshotJob::write`].
    pub fn write_with(
        &self,
        disk: &dyn Disk,
        buffers: &mut SnapshotBuffers,
        between: &mut dyn FnMut(),
    ) -> io::Result<u64> {
        let written = self.write_new(disk, buffers, between);
        if written.is_err() {
            let _ = disk.remove(NEW_NAME);
        }
        let size = written?;
        disk.rename(NEW_NAME, &snapshot_name(self.head.lsn))?;
        disk.sync_names()?;
        Ok(size)
    }

    fn write_new(&self, disk: &dyn Disk, buffers: &mut SnapshotBuffers, between: &mut dyn FnMut()) -> io::Result<u64> {
        let mut file = disk.create(NEW_NAME, 0)?;
        file.write_at(0, &encode_head(&self.head))?;
        let mut writer = BlockWriter::new(&mut *file, self.head.store_id, buffers, between);
        for (id, lease) in self.leases.iter() {
            writer.block.push(TAG_LEASE);
            writer.block.extend_from_slice(&id.0.to_le_bytes());
            writer.block.extend_from_slice(&lease.ttl_ms.to_le_bytes());
            writer.flush_if_full()?;
        }
        let mut count = 0u64;
        for (key, version) in self.keys.iter().filter(|(_, version)| !version.ephemeral) {
            writer.block.push(TAG_ENTRY);
            put_entry(writer.block, &entry(key, version));
            writer.flush_if_full()?;
            count += 1;
        }
        writer.block.push(TAG_END);
        writer.block.extend_from_slice(&count.to_le_bytes());
        writer.flush()?;
        let plain = writer.plain;
        file.sync()?;
        Ok(plain)
    }
}

/// Removes all snapshots but the newest.
pub(crate) fn remove_older(disk: &dyn Disk) -> io::Result<()> {
    let mut names: Vec<String> =
        disk.list()?.into_iter().filter(|name| parse_name(name, "snapshot").is_some()).collect();
    names.sort_unstable();
    names.pop();
    names.iter().try_for_each(|name| disk.remove(name))
}

/// What blocks are made in: about twice the size of one.
#[derive(Default)]
pub struct SnapshotBuffers {
    block: Vec<u8>,
    packed: Vec<u8>,
}

struct BlockWriter<'a> {
    file: &'a mut dyn DiskFile,
    store_id: u64,
    /// Begins with room for the block's header.
    block: &'a mut Vec<u8>,
    /// The same, of the packed block; as long as any was.
    packed: &'a mut Vec<u8>,
    between: &'a mut dyn FnMut(),
    index: u32,
    at: u64,
    synced: u64,
    /// What was written, before it was packed.
    plain: u64,
}

impl<'a> BlockWriter<'a> {
    fn new(
        file: &'a mut dyn DiskFile,
        store_id: u64,
        buffers: &'a mut SnapshotBuffers,
        between: &'a mut dyn FnMut(),
    ) -> BlockWriter<'a> {
        let at = HEADER_BYTES as u64;
        let SnapshotBuffers { block, packed } = buffers;
        block.clear();
        block.resize(BLOCK_HEADER_BYTES, 0);
        BlockWriter { file, store_id, block, packed, between, index: 0, at, synced: at, plain: at }
    }

    fn flush_if_full(&mut self) -> io::Result<()> {
        if self.block.len() >= BLOCK_BYTES { self.flush() } else { Ok(()) }
    }

    /// Puts the packed block into its place, and says how long it is, if that is much shorter.
    fn pack(&mut self) -> Option<usize> {
        const START: usize = BLOCK_HEADER_BYTES + size_of::<u32>();
        let body = &self.block[BLOCK_HEADER_BYTES..];
        let most = START + get_maximum_output_size(body.len());
        if self.packed.len() < most {
            self.packed.resize(most, 0);
        }
        self.packed[BLOCK_HEADER_BYTES..START].copy_from_slice(&(body.len() as u32).to_le_bytes());
        // The place is as long as it can get.
        let len = START + compress_into(body, &mut self.packed[START..]).ok()?;
        // A little less to read is not worth unpacking it.
        (len < self.block.len() / 8 * 7).then_some(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        let (magic, block) = match self.pack() {
            Some(len) => (PACKED_MAGIC, &mut self.packed[..len]),
            None => (BLOCK_MAGIC, &mut self.block[..]),
        };
        let (header, body) = block.split_at_mut(BLOCK_HEADER_BYTES);
        header[..4].copy_from_slice(&magic);
        header[4..8].copy_from_slice(&(body.len() as u32).to_le_bytes());
        header[8..12].copy_from_slice(&self.index.to_le_bytes());
        let crc = block_crc(self.store_id, header, body);
        header[12..].copy_from_slice(&crc.to_le_bytes());
        self.file.write_at(self.at, block)?;
        self.at += block.len() as u64;
        self.plain += self.block.len() as u64;
        self.index += 1;
        self.block.truncate(BLOCK_HEADER_BYTES);
        if self.at - self.synced >= SYNC_BYTES {
            self.file.sync()?;
            self.synced = self.at;
        }
        (self.between)();
        Ok(())
    }
}

fn block_crc(store_id: u64, header: &[u8], body: &[u8]) -> u32 {
    crc32c(crc32c(crc32c(0, &store_id.to_le_bytes()), &header[..12]), body)
}

fn encode_head(head: &SnapshotHead) -> [u8; HEADER_BYTES] {
    let mut out = [0; HEADER_BYTES];
    out[..8].copy_from_slice(&SNAPSHOT_MAGIC);
    out[8..12].copy_from_slice(&SNAPSHOT_VERSION.to_le_bytes());
    out[12..16].copy_from_slice(&u32::from(head.ephemeral_used).to_le_bytes());
    let numbers = [head.store_id, head.lsn.0, head.revision.0, head.reserved.0, head.next_lease];
    for (at, number) in numbers.into_iter().enumerate() {
        out[16 + at * 8..24 + at * 8].copy_from_slice(&number.to_le_bytes());
    }
    out[56..60].copy_from_slice(&head.lsn_crc.to_le_bytes());
    let crc = crc32c(0, &out[..HEADER_BYTES - 4]);
    out[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    out
}

fn decode_head(bytes: &[u8; HEADER_BYTES]) -> Result<Result<SnapshotHead, u32>, &'static str> {
    if bytes[..8] != SNAPSHOT_MAGIC {
        return Err("this is no snapshot: the first 8 bytes are not GANTRYSN");
    }
    let cut = |_: Malformed| "the header is cut";
    let mut reader = Reader::new(&bytes[8..]);
    let version = reader.u32("version").map_err(cut)?;
    let flags = reader.u32("flags").map_err(cut)?;
    let mut number = || reader.u64("number").map_err(cut);
    let (store_id, lsn, revision, reserved, next_lease) = (number()?, number()?, number()?, number()?, number()?);
    let lsn_crc = reader.u32("checksum").map_err(cut)?;
    let crc = u32::from_le_bytes([bytes[92], bytes[93], bytes[94], bytes[95]]);
    if crc32c(0, &bytes[..HEADER_BYTES - 4]) != crc {
        return Err("the header's checksum does not match");
    }
    if !(SNAPSHOT_VERSION_OLDEST..=SNAPSHOT_VERSION).contains(&version) {
        return Ok(Err(version));
    }
    Ok(Ok(SnapshotHead {
        store_id,
        lsn: Lsn(lsn),
        lsn_crc,
        revision: Revision(revision),
        reserved: Revision(reserved),
        ephemeral_used: flags & 1 != 0,
        next_lease,
    }))
}

/// One thing in a snapshot.
pub(crate) enum Stored {
    Entry(Entry),
    Lease { id: u64, ttl_ms: u64 },
}

/// Reads a snapshot and shows what is in it to `visit`. Damaged blocks are left out and told in the answer.
pub(crate) fn read(
    disk: &dyn Disk,
    name: &str,
    visit: &mut dyn FnMut(Stored),
) -> Result<(SnapshotHead, Vec<Damage>), OpenError> {
    let place = format!("{}/{name}", disk.place());
    let damage =
        |offset: u64, what: &str, saved: String| Damage { file: place.clone(), offset, what: what.into(), saved };
    let file = disk.open(name).map_err(io_error(disk, "open", name))?;
    let size = file.bytes().map_err(io_error(disk, "read", name))?;
    let mut header = [0; HEADER_BYTES];
    file.read_at(0, &mut header).map_err(io_error(disk, "read", name))?;
    let head = match decode_head(&header) {
        Ok(Ok(head)) => head,
        Ok(Err(found)) => return Err(OpenError::Version { file: place, found }),
        Err(what) => return Err(OpenError::Damaged(damage(0, what, "the log behind the snapshot".into()))),
    };
    let mut damages = Vec::new();
    let (mut at, mut index, mut entries, mut ended) = (HEADER_BYTES as u64, 0u32, 0u64, false);
    while at < size && !ended {
        let mut header = [0; BLOCK_HEADER_BYTES];
        file.read_at(at, &mut header).map_err(io_error(disk, "read", name))?;
        let len = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        let crc = u32::from_le_bytes([header[12], header[13], header[14], header[15]]);
        let saved = |entries: u64| format!("{entries} keys in the blocks before, and intact blocks after");
        let is_packed = header[..4] == PACKED_MAGIC;
        if !(is_packed || header[..4] == BLOCK_MAGIC) || len > MAX_BLOCK_BYTES || header[8..12] != index.to_le_bytes() {
            damages.push(damage(at, "a block's header is damaged", saved(entries)));
            match next_block(&*file, at + 1, size).map_err(io_error(disk, "read", name))? {
                Some((offset, next)) => (at, index) = (offset, next),
                None => break,
            }
            continue;
        }
        let mut body = vec![0; len];
        let read = file.read_at(at + BLOCK_HEADER_BYTES as u64, &mut body).map_err(io_error(disk, "read", name))?;
        if read < len || block_crc(head.store_id, &header, &body) != crc {
            damages.push(damage(at, "a block's checksum does not match", saved(entries)));
        } else {
            let plain = if is_packed { unpack(&body) } else { Ok(body) };
            let visited =
                plain.and_then(|body| read_block(&body, &mut entries, &mut ended, &mut damages, &damage, at, visit));
            if let Err(malformed) = visited {
                let inside = if is_packed { 0 } else { BLOCK_HEADER_BYTES + malformed.offset };
                damages.push(damage(at + inside as u64, malformed.what, saved(entries)));
            }
        }
        at += (BLOCK_HEADER_BYTES + len) as u64;
        index += 1;
    }
    if !ended {
        damages.push(damage(size, "the file ends too early", format!("{entries} keys before")));
    }
    Ok((head, damages))
}

/// The plain body of a packed block.
fn unpack(body: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut reader = Reader::new(body);
    let len = reader.u32("length")? as usize;
    let plain = if len <= MAX_BLOCK_BYTES { decompress(&body[size_of::<u32>()..], len).ok() } else { None };
    match plain.filter(|plain| plain.len() == len) {
        Some(plain) => Ok(plain),
        None => reader.wrong("a block cannot be unpacked"),
    }
}

fn read_block(
    body: &[u8],
    entries: &mut u64,
    ended: &mut bool,
    damages: &mut Vec<Damage>,
    damage: &dyn Fn(u64, &str, String) -> Damage,
    at: u64,
    visit: &mut dyn FnMut(Stored),
) -> Result<(), Malformed> {
    let mut reader = Reader::new(body);
    while !reader.is_at_end() {
        match reader.u8("entry")? {
            TAG_ENTRY => {
                visit(Stored::Entry(reader.entry()?));
                *entries += 1;
            }
            TAG_LEASE => visit(Stored::Lease { id: reader.u64("lease")?, ttl_ms: reader.u64("time to live")? }),
            TAG_END => {
                let count = reader.u64("number of keys")?;
                if count != *entries && damages.is_empty() {
                    damages.push(damage(at, "the number of keys does not match", format!("{entries} keys")));
                }
                *ended = true;
            }
            _ => return reader.wrong("entry"),
        }
    }
    Ok(())
}

/// The next place that looks like a block's header, for salvage.
fn next_block(file: &dyn DiskFile, from: u64, size: u64) -> io::Result<Option<(u64, u32)>> {
    let mut rest = vec![0; usize::try_from(size - from).unwrap_or(0)];
    file.read_at(from, &mut rest)?;
    Ok(rest
        .windows(BLOCK_HEADER_BYTES)
        .enumerate()
        .find(|(_, window)| window[..4] == BLOCK_MAGIC || window[..4] == PACKED_MAGIC)
        .map(|(at, window)| (from + at as u64, u32::from_le_bytes([window[8], window[9], window[10], window[11]]))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simdisk::SimDisk;
    use crate::store::{Command, Options, Store};
    use crate::types::{Put, Txn};
    use base::{Rng, Time};
    use std::sync::Arc;

    /// The snapshot of a store with this under some keys.
    fn snapshot_of(values: &[Vec<u8>]) -> (SimDisk, String) {
        let disk = SimDisk::new();
        let (mut store, _) = Store::open(Arc::new(disk.clone()), Options::default(), 7, Time::ZERO).unwrap();
        let puts = values.iter().enumerate().map(|(at, value)| {
            let txn = Txn::new().put(Put::new(format!("key-{at:04}"), value.clone()));
            Command::Txn { txn, done: Box::new(|outcome| assert!(outcome.is_ok())) }
        });
        store.run(puts, Time::ZERO);
        store.snapshot().write(&disk).unwrap();
        let name = newest(&disk).unwrap().unwrap();
        (disk, name)
    }

    fn values_in(disk: &SimDisk, name: &str) -> Vec<Vec<u8>> {
        let mut values = Vec::new();
        let (_, damages) = read(disk, name, &mut |stored| {
            if let Stored::Entry(entry) = stored {
                values.push(entry.value.to_vec());
            }
        })
        .unwrap();
        assert!(damages.is_empty(), "{damages:?}");
        values
    }

    #[test]
    fn what_is_alike_is_packed_and_what_is_not_stays_plain() {
        let mut rng = Rng::new(1);
        let alike: Vec<Vec<u8>> = (0..900).map(|at| format!("{at} {}", "word ".repeat(400)).into_bytes()).collect();
        let noise: Vec<Vec<u8>> =
            (0..900).map(|_| (0..250).flat_map(|_| rng.next_u64().to_le_bytes()).collect()).collect();
        for (values, magic, most) in [(&alike, PACKED_MAGIC, 200_000), (&noise, BLOCK_MAGIC, 2_000_000)] {
            let (disk, name) = snapshot_of(values);
            assert_eq!(&values_in(&disk, &name), values);
            let file = disk.open(&name).unwrap();
            let mut found = [0; 4];
            file.read_at(HEADER_BYTES as u64, &mut found).unwrap();
            assert_eq!((found, file.bytes().unwrap() < most), (magic, true));
        }
        // As the first version wrote it.
        let (disk, name) = snapshot_of(&noise);
        let mut header = [0; HEADER_BYTES];
        disk.open(&name).unwrap().read_at(0, &mut header).unwrap();
        header[8..12].copy_from_slice(&SNAPSHOT_VERSION_OLDEST.to_le_bytes());
        let crc = crc32c(0, &header[..HEADER_BYTES - 4]);
        header[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        disk.open(&name).unwrap().write_at(0, &header).unwrap();
        assert_eq!(values_in(&disk, &name), noise);
        assert!(unpack(&[255, 255, 255, 255, 0]).is_err() && unpack(&[5, 0, 0, 0, 1]).is_err() && unpack(&[]).is_err());
    }
}
