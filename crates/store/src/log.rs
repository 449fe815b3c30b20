//! The log: batches as checksummed, chained records in preallocated segments. `FORMAT.md` is the reference.
//!
//! Invariants: one batch is one record; a record names its number and its predecessor's checksum; at most the last
//! record is not durable; the rest of a segment is zero. So a record that does not verify is the torn tail of the last
//! batch exactly when no later record verifies, and damage otherwise.

use crate::crc::crc32c;
use crate::disk::{Disk, DiskFile, read_all};
use crate::error::{Damage, OpenError, Torn, io_error};
use crate::record::Malformed;
use crate::stage::{Lsn, RECORD_HEADER_BYTES};
use std::io;
use std::sync::Arc;

pub(crate) const FORMAT_VERSION: u32 = 1;
pub(crate) const SEGMENT_MAGIC: [u8; 8] = *b"GANTRYLG";
const RECORD_MAGIC: [u8; 4] = *b"GRc1";
pub(crate) const SEGMENT_HEADER_BYTES: usize = 64;
/// The first segment, and every one while the disk is nearly full.
pub(crate) const SMALL_SEGMENT_BYTES: u64 = 4 * 1024 * 1024;
const NEW_SEGMENT_NAME: &str = "segment.new";

pub(crate) fn segment_name(first: Lsn) -> String {
    format!("log-{:020}.gantry", first.0)
}

pub(crate) fn parse_name(name: &str, kind: &str) -> Option<Lsn> {
    let digits = name.strip_prefix(kind)?.strip_prefix('-')?.strip_suffix(".gantry")?;
    (digits.len() == 20).then(|| digits.parse().ok().map(Lsn)).flatten()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// The store's identity goes into every checksum, so that bytes of another store never verify here.
fn record_crc(store_id: u64, header: &[u8], body: &[u8]) -> u32 {
    crc32c(crc32c(crc32c(0, &store_id.to_le_bytes()), &header[..20]), body)
}

/// A failed write or sync. Nothing of the batch will be found again unless `may_remain`.
pub(crate) struct LogError {
    pub operation: &'static str,
    pub source: io::Error,
    pub may_remain: bool,
}

pub(crate) struct SegmentLog {
    disk: Arc<dyn Disk>,
    store_id: u64,
    segment_bytes: u64,
    /// First numbers of all segments, ascending; the last one is written to.
    segments: Vec<Lsn>,
    file: Option<Box<dyn DiskFile>>,
    capacity: u64,
    /// Where the next record goes, and the end of what may have been written beyond.
    offset: u64,
    dirty: u64,
    last: Lsn,
    last_crc: u32,
    unsynced: Option<(Lsn, u32, u64)>,
    /// Bytes appended since the last snapshot.
    pub since_snapshot: u64,
    prepared: bool,
}

impl SegmentLog {
    /// Goes on behind `tail`.
    pub fn open(disk: Arc<dyn Disk>, tail: &Tail, segment_bytes: u64) -> io::Result<SegmentLog> {
        let mut log = SegmentLog {
            disk,
            store_id: tail.store_id,
            segment_bytes: segment_bytes.max(SEGMENT_HEADER_BYTES as u64 + 4096),
            segments: tail.segments.clone(),
            file: None,
            capacity: 0,
            offset: 0,
            dirty: 0,
            last: tail.last,
            last_crc: tail.last_crc,
            unsynced: None,
            since_snapshot: tail.replayed_bytes,
            prepared: false,
        };
        if let Some(name) = tail.segments.last().map(|first| segment_name(*first)) {
            let file = log.disk.open(&name)?;
            log.capacity = file.bytes()?;
            log.file = Some(file);
            log.offset = tail.offset;
            log.dirty = tail.dirty;
            log.clear()?;
        }
        Ok(log)
    }

    pub fn last(&self) -> (Lsn, u32) {
        (self.last, self.last_crc)
    }

    pub fn store_id(&self) -> u64 {
        self.store_id
    }

    /// Writes zeros over everything behind the last good record.
    fn clear(&mut self) -> io::Result<()> {
        if self.dirty > self.offset
            && let Some(file) = &mut self.file
        {
            file.write_at(self.offset, &vec![0; (self.dirty - self.offset) as usize])?;
            file.sync()?;
        }
        self.dirty = self.offset;
        Ok(())
    }

    /// Writes one record behind the last. `record` has [`RECORD_HEADER_BYTES`] of room in front of the body.
    pub fn append(&mut self, record: &mut [u8], lsn: Lsn) -> Result<(), LogError> {
        assert_eq!(lsn.0, self.last.0 + 1, "records are numbered without gaps");
        let failed = |operation, may_remain| move |source| LogError { operation, source, may_remain };
        self.clear().map_err(failed("take a failed batch back from the log", true))?;
        if self.offset + record.len() as u64 > self.capacity {
            self.rotate(record.len() as u64).map_err(failed("add a segment to the log", false))?;
        }
        let (header, body) = record.split_at_mut(RECORD_HEADER_BYTES);
        header[..4].copy_from_slice(&RECORD_MAGIC);
        header[4..8].copy_from_slice(&(body.len() as u32).to_le_bytes());
        header[8..16].copy_from_slice(&lsn.0.to_le_bytes());
        header[16..20].copy_from_slice(&self.last_crc.to_le_bytes());
        let crc = record_crc(self.store_id, header, body);
        header[20..24].copy_from_slice(&crc.to_le_bytes());
        let end = self.offset + record.len() as u64;
        self.dirty = end;
        let written = match &mut self.file {
            Some(file) => file.write_at(self.offset, record),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        if let Err(source) = written {
            let may_remain = self.clear().is_err();
            return Err(LogError { operation: "write to the log", source, may_remain });
        }
        self.unsynced = Some((lsn, crc, end));
        Ok(())
    }

    /// Makes the appended record durable.
    pub fn sync(&mut self) -> Result<(), LogError> {
        let (Some((lsn, crc, end)), Some(file)) = (self.unsynced.take(), &mut self.file) else { return Ok(()) };
        if let Err(source) = file.sync() {
            let may_remain = self.clear().is_err();
            return Err(LogError { operation: "sync the log", source, may_remain });
        }
        self.since_snapshot += end - self.offset;
        (self.last, self.last_crc, self.offset) = (lsn, crc, end);
        if !self.prepared && self.offset > self.capacity / 2 {
            self.prepared = true;
            self.disk.prepare(self.segment_bytes);
        }
        Ok(())
    }

    /// Makes the first segment where there is none. That takes some milliseconds, for which the first writer need not wait.
    pub fn begin(&mut self) -> io::Result<()> {
        if self.segments.is_empty() { self.rotate(0) } else { Ok(()) }
    }

    /// Begins a new segment with room for at least one record of `needed` bytes.
    fn rotate(&mut self, needed: u64) -> io::Result<()> {
        let first = Lsn(self.last.0 + 1);
        let least = (needed + SEGMENT_HEADER_BYTES as u64).next_multiple_of(4096);
        let small = SMALL_SEGMENT_BYTES.min(self.segment_bytes).max(least);
        let wanted = if self.segments.is_empty() { small } else { self.segment_bytes.max(least) };
        let mut file = match self.disk.create(NEW_SEGMENT_NAME, wanted) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull && small < wanted => {
                self.disk.create(NEW_SEGMENT_NAME, small)
            }
            made => made,
        }?;
        let mut header = [0; SEGMENT_HEADER_BYTES];
        header[..8].copy_from_slice(&SEGMENT_MAGIC);
        header[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        header[16..24].copy_from_slice(&self.store_id.to_le_bytes());
        header[24..32].copy_from_slice(&first.0.to_le_bytes());
        header[32..36].copy_from_slice(&self.last_crc.to_le_bytes());
        let crc = crc32c(0, &header[..60]);
        header[60..].copy_from_slice(&crc.to_le_bytes());
        let made = file.write_at(0, &header).and_then(|()| file.sync());
        made.and_then(|()| self.disk.rename(NEW_SEGMENT_NAME, &segment_name(first)))
            .and_then(|()| self.disk.sync_names())?;
        self.capacity = file.bytes()?;
        self.file = Some(file);
        self.offset = SEGMENT_HEADER_BYTES as u64;
        self.dirty = self.offset;
        if self.segments.last() != Some(&first) {
            self.segments.push(first);
        }
        self.prepared = false;
        Ok(())
    }

    /// Removes segments that hold nothing after `lsn`.
    pub fn remove_through(&mut self, lsn: Lsn) -> io::Result<()> {
        while self.segments.len() > 1 && self.segments[1].0 <= lsn.0 + 1 {
            self.disk.remove(&segment_name(self.segments[0]))?;
            self.segments.remove(0);
        }
        Ok(())
    }
}

/// Takes the body of a record.
pub(crate) type Visit<'a> = &'a mut dyn FnMut(Lsn, &[u8]) -> Result<(), Malformed>;

/// Where a scan of the log ended, and how.
pub(crate) struct Tail {
    pub store_id: u64,
    pub segments: Vec<Lsn>,
    pub offset: u64,
    /// The end of non-zero bytes behind `offset`.
    pub dirty: u64,
    pub last: Lsn,
    pub last_crc: u32,
    pub records: u64,
    pub replayed_bytes: u64,
    pub torn: Option<Torn>,
    pub damage: Option<Damage>,
}

struct Header {
    store_id: u64,
    first: Lsn,
    before_crc: u32,
}

fn segment_header(disk: &dyn Disk, name: &str, bytes: &[u8]) -> Result<Header, OpenError> {
    let damaged = |what: &str| {
        Err(OpenError::Damaged(Damage {
            file: format!("{}/{name}", disk.place()),
            offset: 0,
            what: what.into(),
            saved: "everything before this file".into(),
        }))
    };
    if bytes.get(..8) != Some(&SEGMENT_MAGIC) {
        return damaged("this is no log segment: the first 8 bytes are not GANTRYLG");
    }
    let version = u32_at(bytes, 8);
    if bytes.len() < SEGMENT_HEADER_BYTES || crc32c(0, &bytes[..60]) != u32_at(bytes, 60) {
        return damaged("the header's checksum does not match");
    }
    if version != FORMAT_VERSION {
        return Err(OpenError::Version { file: format!("{}/{name}", disk.place()), found: version });
    }
    Ok(Header { store_id: u64_at(bytes, 16), first: Lsn(u64_at(bytes, 24)), before_crc: u32_at(bytes, 32) })
}

/// A record at `at` that verifies on its own: its number, predecessor's checksum, checksum and whole length.
fn record_at(store_id: u64, bytes: &[u8], at: usize) -> Option<(Lsn, u32, u32, usize)> {
    let header = bytes.get(at..at + RECORD_HEADER_BYTES)?;
    let body = bytes.get(at + RECORD_HEADER_BYTES..)?.get(..u32_at(header, 4) as usize)?;
    let crc = u32_at(header, 20);
    (header[..4] == RECORD_MAGIC && record_crc(store_id, header, body) == crc)
        .then(|| (Lsn(u64_at(header, 8)), u32_at(header, 16), crc, RECORD_HEADER_BYTES + body.len()))
}

/// A record behind the torn or damaged place `from` that verifies and is younger than `expected`.
fn later_record(store_id: u64, bytes: &[u8], from: usize, expected: Lsn) -> Option<(usize, Lsn)> {
    let rest = bytes.get(from + 1..)?;
    rest.windows(4).enumerate().filter(|(_, window)| *window == RECORD_MAGIC).find_map(|(at, _)| {
        let (lsn, ..) = record_at(store_id, bytes, from + 1 + at)?;
        (lsn > expected).then_some((from + 1 + at, lsn))
    })
}

/// Reads the log behind record `after` (checksum `after_crc`) and shows each body to `visit`. Ends at the first damage,
/// which is told in the answer, so that what came before can be saved.
pub(crate) fn scan(
    disk: &dyn Disk,
    known_id: Option<u64>,
    after: Lsn,
    after_crc: u32,
    visit: Visit<'_>,
) -> Result<Tail, OpenError> {
    let names = disk.list().map_err(io_error(disk, "list the files", ""))?;
    let mut segments: Vec<Lsn> = names.iter().filter_map(|name| parse_name(name, "log")).collect();
    segments.sort_unstable();
    let needed = segments.partition_point(|first| first.0 <= after.0 + 1).saturating_sub(1);
    let mut tail = Tail {
        store_id: known_id.unwrap_or(0),
        segments: segments.clone(),
        offset: 0,
        dirty: 0,
        last: after,
        last_crc: after_crc,
        records: 0,
        replayed_bytes: 0,
        torn: None,
        damage: None,
    };
    let mut known_id = known_id;
    for (at, first) in segments.iter().enumerate().skip(needed) {
        let name = segment_name(*first);
        let file = disk.open(&name).map_err(io_error(disk, "open", &name))?;
        let bytes = read_all(&*file).map_err(io_error(disk, "read", &name))?;
        let last_segment = at + 1 == segments.len();
        scan_segment(disk, &name, &bytes, at == needed, last_segment, after, &mut known_id, &mut tail, visit)?;
        if tail.damage.is_some() {
            return Ok(tail);
        }
    }
    Ok(tail)
}

#[allow(clippy::too_many_arguments, reason = "one step of `scan`, split for reading")]
fn scan_segment(
    disk: &dyn Disk,
    name: &str,
    bytes: &[u8],
    first_segment: bool,
    last_segment: bool,
    after: Lsn,
    known_id: &mut Option<u64>,
    tail: &mut Tail,
    visit: Visit<'_>,
) -> Result<(), OpenError> {
    let file = format!("{}/{name}", disk.place());
    let damage = |offset: usize, what: String, last: Lsn| {
        Some(Damage { file: file.clone(), offset: offset as u64, what, saved: format!("all records up to {}", last.0) })
    };
    let header = match segment_header(disk, name, bytes) {
        Ok(header) => header,
        Err(OpenError::Damaged(found)) => {
            tail.damage = Some(Damage { saved: format!("all records up to {}", tail.last.0), ..found });
            return Ok(());
        }
        Err(other) => return Err(other),
    };
    if *known_id.get_or_insert(header.store_id) != header.store_id {
        tail.damage = damage(16, "this file belongs to another store".into(), tail.last);
        return Ok(());
    }
    tail.store_id = header.store_id;
    if first_segment && header.first <= after {
        // Records that the snapshot covers already; the chain begins where this segment says.
        (tail.last, tail.last_crc) = (Lsn(header.first.0 - 1), header.before_crc);
    }
    if header.first.0 != tail.last.0 + 1 || header.before_crc != tail.last_crc {
        let what = format!("records {} to {} are missing before this file", tail.last.0 + 1, header.first.0 - 1);
        tail.damage = damage(24, what, tail.last);
        return Ok(());
    }
    let mut at = SEGMENT_HEADER_BYTES;
    while let Some((lsn, before, crc, len)) = record_at(tail.store_id, bytes, at) {
        if lsn.0 != tail.last.0 + 1 || before != tail.last_crc {
            break;
        }
        if lsn > after {
            if let Err(malformed) = visit(lsn, &bytes[at + RECORD_HEADER_BYTES..at + len]) {
                let offset = at + RECORD_HEADER_BYTES + malformed.offset;
                tail.damage = damage(offset, format!("record {} has no valid {}", lsn.0, malformed.what), tail.last);
                return Ok(());
            }
            tail.records += 1;
            tail.replayed_bytes += len as u64;
        }
        (tail.last, tail.last_crc) = (lsn, crc);
        at += len;
    }
    tail.offset = at as u64;
    let garbage = bytes[at..].iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    tail.dirty = (at + garbage) as u64;
    if garbage == 0 {
        return Ok(());
    }
    let expected = Lsn(tail.last.0 + 1);
    if let Some((found, lsn)) = later_record(tail.store_id, bytes, at, expected) {
        let what = format!("record {} does not verify, but record {} at offset {found} does", expected.0, lsn.0);
        tail.damage = damage(at, what, tail.last);
    } else if !last_segment {
        tail.damage = damage(at, format!("record {} does not verify, but later files follow", expected.0), tail.last);
    } else {
        tail.torn = Some(Torn { file, offset: at as u64, bytes: garbage as u64 });
    }
    Ok(())
}
