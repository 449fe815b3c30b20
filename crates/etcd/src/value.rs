//! How a value stands in etcd, and how it is shown.
//!
//! A value has one byte in front that says what follows: 0x10 and a flag for each of
//! - 1: the place of the revision, 4 bytes little endian. The embedded store writes the revision into the bytes when it
//!   commits; etcd cannot, so it is inserted whenever the value is read, from the key's modification revision.
//! - 2: the revisions that the key had before it was moved here from another backend (creation, modification), 8 bytes
//!   little endian each. Its bytes are final.
//!
//! Whatever has no such byte in front somebody else wrote, since no Gantry writes without it: [`decode`] says `None`, and
//! who reads leaves it out. A newer form of values has this byte, too, and a data version; what cannot be read behind
//! the byte is told to whoever asks, and a server stops at it.
//!
//! Revisions: what is told to others is etcd's revision plus `offset`, which is 0 unless a cluster was moved here; it then
//! lifts all revisions above those that were given before.

use base::Revision;
use bytes::{BufMut, Bytes, BytesMut};
use store::{LeaseId, Put, Version};

use crate::message::KeyValue;

const FORMAT: u8 = 0x10;
const STAMP: u8 = 1;
const MOVED: u8 = 2;

/// The text of a value that is to be put.
pub fn encode(put: &Put) -> Bytes {
    let mut text = BytesMut::with_capacity(put.value.len() + 5);
    match put.stamp {
        Some(stamp) => {
            text.put_u8(FORMAT | STAMP);
            text.put_u32_le(stamp);
        }
        None => text.put_u8(FORMAT),
    }
    text.extend_from_slice(&put.value);
    text.freeze()
}

/// The text of a value that keeps the revisions it had elsewhere.
pub fn encode_moved(value: &[u8], created: Revision, modified: Revision) -> Bytes {
    let mut text = BytesMut::with_capacity(value.len() + 17);
    text.put_u8(FORMAT | MOVED);
    text.put_u64_le(created.0);
    text.put_u64_le(modified.0);
    text.extend_from_slice(value);
    text.freeze()
}

/// How etcd's revisions are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scale {
    /// What is added to etcd's.
    pub offset: u64,
    /// etcd's revision when the moving here had ended; history begins after it. 0 when nothing was moved.
    pub moved_until: i64,
}

impl Scale {
    pub fn told(&self, etcd: i64) -> Revision {
        Revision(u64::try_from(etcd).unwrap_or(0).saturating_add(self.offset))
    }

    /// etcd's revision of a told one; `None` for those from before the move.
    pub fn of_etcd(&self, told: Revision) -> Option<i64> {
        let etcd = i64::try_from(told.0.checked_sub(self.offset)?).ok()?;
        (etcd >= self.moved_until).then_some(etcd)
    }

    /// The oldest revision that can be told about.
    pub fn floor(&self) -> Revision {
        if self.moved_until == 0 { Revision::ZERO } else { self.told(self.moved_until) }
    }
}

/// A key's value as it is shown; `None` for one that we did not write.
pub fn decode(pair: &KeyValue, scale: &Scale) -> Option<Version> {
    let mut rest = pair.value.clone();
    let mut take = |count: usize| (rest.len() >= count).then(|| rest.split_to(count));
    let flags = take(1).and_then(|tag| tag.first().copied())?;
    let number = |bytes: Bytes| bytes.iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    let (mut created, mut modified) = (scale.told(pair.create_revision), scale.told(pair.mod_revision));
    let mut stamp = None;
    match flags {
        FORMAT => {}
        flags if flags == FORMAT | STAMP => stamp = Some(number(take(4)?)),
        flags if flags == FORMAT | MOVED => {
            created = Revision(number(take(8)?));
            modified = Revision(number(take(8)?));
        }
        _ => return None,
    }
    let value = match stamp.and_then(|place| usize::try_from(place).ok()) {
        None => rest,
        Some(place) if place <= rest.len() => {
            let digits = modified.to_string();
            [&rest[..place], digits.as_bytes(), &rest[place..]].concat().into()
        }
        Some(_) => return None,
    };
    let lease = u64::try_from(pair.lease).ok().filter(|id| *id != 0).map(LeaseId);
    Some(Version {
        value: value.into(),
        create_revision: created,
        mod_revision: modified,
        lease,
        ephemeral: false,
        attachment: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(value: Bytes) -> KeyValue {
        KeyValue { key: "k".into(), create_revision: 3, mod_revision: 7, value, lease: 0 }
    }

    #[test]
    fn the_revision_is_shown_where_the_writer_said() {
        let put = Put { stamp: Some(2), ..Put::new("k", "\"\"x") };
        let put = Put { stamp: Some(1), ..put };
        let scale = Scale { offset: 100, moved_until: 5 };
        let version = decode(&pair(encode(&put)), &scale).unwrap();
        assert_eq!((&version.value.bytes()[..], version.mod_revision), (&b"\"107\"x"[..], Revision(107)));
        let moved = decode(&pair(encode_moved(b"v", Revision(9), Revision(44))), &scale).unwrap();
        assert_eq!(
            (moved.create_revision, moved.mod_revision, &moved.value.bytes()[..]),
            (Revision(9), Revision(44), &b"v"[..])
        );
        assert_eq!((scale.of_etcd(Revision(44)), scale.of_etcd(Revision(107))), (None, Some(7)));
    }

    #[test]
    fn foreign_values_are_told_apart() {
        for bad in [&b""[..], b"{}", b"\x11\x01", b"\x11\x09\x00\x00\x00ab", b"\x12short"] {
            assert!(decode(&pair(Bytes::copy_from_slice(bad)), &Scale::default()).is_none(), "{bad:?}");
        }
    }
}
