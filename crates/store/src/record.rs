//! What a record of the log says, byte by byte (`FORMAT.md` is the reference). No IO.
//!
//! Decoding is total: any bytes give items or an error with an offset, never a panic and never a huge allocation.

use base::{Revision, Time};
use bytes::Bytes;

pub(crate) const TAG_COMMIT: u8 = 1;
pub(crate) const TAG_RESERVE: u8 = 2;
pub(crate) const TAG_GRANT: u8 = 3;
pub(crate) const TAG_REVOKE: u8 = 4;
pub(crate) const TAG_COMPACT: u8 = 5;
pub(crate) const TAG_PARKED: u8 = 6;
pub(crate) const TAG_CLOSE: u8 = 7;
pub(crate) const OP_PUT: u8 = 1;
pub(crate) const OP_DELETE: u8 = 2;
/// The transaction also changed ephemeral keys, which are not in the record.
pub(crate) const FLAG_PARTIAL: u8 = 1;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Item {
    Commit {
        revision: Revision,
        time: Time,
        partial: bool,
        ops: Vec<LoggedOp>,
    },
    /// Revisions up to this one may be given without being logged.
    Reserve {
        up_to: Revision,
    },
    Grant {
        id: u64,
        ttl_ms: u64,
    },
    Revoke {
        id: u64,
    },
    Compact {
        at: Revision,
    },
    /// An ephemeral key as it was at a clean close.
    Parked(Entry),
    /// A clean close; the newest revision.
    Close {
        revision: Revision,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum LoggedOp {
    Put { key: Bytes, lease: u64, value: Bytes },
    Delete { key: Bytes },
}

/// A key with its newest version, as snapshots and clean closes write it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub create_revision: Revision,
    pub mod_revision: Revision,
    pub lease: u64,
    pub key: Bytes,
    pub value: Bytes,
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Begins a commit; the number of operations is filled in by [`end_commit`].
pub(crate) fn begin_commit(out: &mut Vec<u8>, revision: Revision, time: Time) -> usize {
    let start = out.len();
    out.push(TAG_COMMIT);
    out.push(0);
    out.extend_from_slice(&revision.0.to_le_bytes());
    out.extend_from_slice(&time.0.to_le_bytes());
    out.extend_from_slice(&0u32.to_le_bytes());
    start
}

pub(crate) fn end_commit(out: &mut [u8], start: usize, partial: bool, operations: u32) {
    out[start + 1] = if partial { FLAG_PARTIAL } else { 0 };
    out[start + 18..start + 22].copy_from_slice(&operations.to_le_bytes());
}

pub(crate) fn put_op(out: &mut Vec<u8>, key: &[u8], lease: u64, value: &[u8]) {
    out.push(OP_PUT);
    put_varint(out, lease);
    put_bytes(out, key);
    put_bytes(out, value);
}

pub(crate) fn delete_op(out: &mut Vec<u8>, key: &[u8]) {
    out.push(OP_DELETE);
    put_bytes(out, key);
}

pub(crate) fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    out.extend_from_slice(&entry.create_revision.0.to_le_bytes());
    out.extend_from_slice(&entry.mod_revision.0.to_le_bytes());
    put_varint(out, entry.lease);
    put_bytes(out, &entry.key);
    put_bytes(out, &entry.value);
}

/// Everything but commits, whose writer streams.
pub(crate) fn put_item(out: &mut Vec<u8>, item: &Item) {
    match item {
        Item::Commit { revision, time, partial, ops } => {
            let start = begin_commit(out, *revision, *time);
            for op in ops {
                match op {
                    LoggedOp::Put { key, lease, value } => put_op(out, key, *lease, value),
                    LoggedOp::Delete { key } => delete_op(out, key),
                }
            }
            end_commit(out, start, *partial, ops.len() as u32);
        }
        Item::Reserve { up_to } => number(out, TAG_RESERVE, up_to.0),
        Item::Grant { id, ttl_ms } => {
            number(out, TAG_GRANT, *id);
            out.extend_from_slice(&ttl_ms.to_le_bytes());
        }
        Item::Revoke { id } => number(out, TAG_REVOKE, *id),
        Item::Compact { at } => number(out, TAG_COMPACT, at.0),
        Item::Parked(entry) => {
            out.push(TAG_PARKED);
            put_entry(out, entry);
        }
        Item::Close { revision } => number(out, TAG_CLOSE, revision.0),
    }
}

fn number(out: &mut Vec<u8>, tag: u8, value: u64) {
    out.push(tag);
    out.extend_from_slice(&value.to_le_bytes());
}

/// What does not decode, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Malformed {
    pub offset: usize,
    pub what: &'static str,
}

/// A cursor over bytes; keys and values are copied out, because the buffers below are large and short-lived.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    pub fn is_at_end(&self) -> bool {
        self.at == self.bytes.len()
    }

    pub fn wrong<T>(&self, what: &'static str) -> Result<T, Malformed> {
        Err(Malformed { offset: self.at, what })
    }

    fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        match self.bytes[self.at..].get(..len) {
            Some(bytes) => {
                self.at += len;
                Ok(bytes)
            }
            None => self.wrong(what),
        }
    }

    pub fn u8(&mut self, what: &'static str) -> Result<u8, Malformed> {
        Ok(self.take(1, what)?[0])
    }

    pub fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(self.take(4, what)?);
        Ok(u32::from_le_bytes(bytes))
    }

    pub fn u64(&mut self, what: &'static str) -> Result<u64, Malformed> {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(self.take(8, what)?);
        Ok(u64::from_le_bytes(bytes))
    }

    pub fn varint(&mut self, what: &'static str) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8(what)?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        self.wrong(what)
    }

    pub fn bytes(&mut self, what: &'static str) -> Result<Bytes, Malformed> {
        let len = usize::try_from(self.varint(what)?).unwrap_or(usize::MAX);
        Ok(Bytes::copy_from_slice(self.take(len, what)?))
    }

    pub fn entry(&mut self) -> Result<Entry, Malformed> {
        Ok(Entry {
            create_revision: Revision(self.u64("create revision")?),
            mod_revision: Revision(self.u64("modification revision")?),
            lease: self.varint("lease")?,
            key: self.bytes("key")?,
            value: self.bytes("value")?,
        })
    }

    fn op(&mut self) -> Result<LoggedOp, Malformed> {
        match self.u8("operation")? {
            OP_PUT => {
                Ok(LoggedOp::Put { lease: self.varint("lease")?, key: self.bytes("key")?, value: self.bytes("value")? })
            }
            OP_DELETE => Ok(LoggedOp::Delete { key: self.bytes("key")? }),
            _ => self.wrong("operation"),
        }
    }

    pub fn item(&mut self) -> Result<Item, Malformed> {
        match self.u8("item")? {
            TAG_COMMIT => {
                let flags = self.u8("flags")?;
                if flags & !FLAG_PARTIAL != 0 {
                    return self.wrong("flags");
                }
                let revision = Revision(self.u64("revision")?);
                let time = Time(self.u64("time")? as i64);
                let count = self.u32("number of operations")?;
                let ops = (0..count).map(|_| self.op()).collect::<Result<Vec<_>, _>>()?;
                Ok(Item::Commit { revision, time, partial: flags & FLAG_PARTIAL != 0, ops })
            }
            TAG_RESERVE => Ok(Item::Reserve { up_to: Revision(self.u64("revision")?) }),
            TAG_GRANT => Ok(Item::Grant { id: self.u64("lease")?, ttl_ms: self.u64("time to live")? }),
            TAG_REVOKE => Ok(Item::Revoke { id: self.u64("lease")? }),
            TAG_COMPACT => Ok(Item::Compact { at: Revision(self.u64("revision")?) }),
            TAG_PARKED => Ok(Item::Parked(self.entry()?)),
            TAG_CLOSE => Ok(Item::Close { revision: Revision(self.u64("revision")?) }),
            _ => self.wrong("item"),
        }
    }
}

/// All items of a record's body.
pub(crate) fn items(body: &[u8]) -> impl Iterator<Item = Result<Item, Malformed>> {
    let mut reader = Reader::new(body);
    let mut failed = false;
    std::iter::from_fn(move || {
        if failed || reader.is_at_end() {
            return None;
        }
        let item = reader.item();
        failed = item.is_err();
        Some(item)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Rng;

    fn samples() -> Vec<Item> {
        let entry = Entry {
            create_revision: Revision(3),
            mod_revision: Revision(9),
            lease: 300,
            key: Bytes::from_static(b"k"),
            value: Bytes::from(vec![7; 200]),
        };
        vec![
            Item::Commit {
                revision: Revision(5),
                time: Time(-4),
                partial: true,
                ops: vec![
                    LoggedOp::Put { key: "a".into(), lease: 0, value: "x".into() },
                    LoggedOp::Delete { key: "b".into() },
                ],
            },
            Item::Reserve { up_to: Revision(10) },
            Item::Grant { id: 1, ttl_ms: 2 },
            Item::Revoke { id: 1 },
            Item::Compact { at: Revision(2) },
            Item::Parked(entry),
            Item::Close { revision: Revision(u64::MAX) },
        ]
    }

    #[test]
    fn reads_what_it_writes() {
        let mut body = Vec::new();
        samples().iter().for_each(|item| put_item(&mut body, item));
        assert_eq!(items(&body).collect::<Result<Vec<_>, _>>().as_ref(), Ok(&samples()));
    }

    /// Cut, flipped and random bytes end in items or an error.
    #[test]
    fn any_bytes_are_read_without_panic() {
        let mut body = Vec::new();
        samples().iter().for_each(|item| put_item(&mut body, item));
        let mut rng = Rng::new(1);
        for _ in 0..20_000 {
            let mut bytes = body[..rng.below(body.len() as u64 + 1) as usize].to_vec();
            for _ in 0..rng.below(4) {
                if !bytes.is_empty() {
                    let at = rng.below(bytes.len() as u64) as usize;
                    bytes[at] = rng.next_u64() as u8;
                }
            }
            let _ = items(&bytes).count();
        }
    }
}
