//! The forms of stored values: plain JSON, and, from data version 2 on, large objects packed.
//!
//! Layout of a packed value: `gp1:`, the length of the plain text (4 bytes, little endian), the text as zlib packs it. A
//! packed value has no place for the revision, which is put into its text when it is read. Large objects are mostly
//! definitions, endpoints and people's files in ConfigMaps: they become a fifth to a tenth, in the log, in etcd (which
//! takes 1.5 MiB at once) and on the way there.
//!
//! Sealed values are not packed: their length would tell about what they hide.
//!
//! Invariants: every version reads the forms of all before it; [`unpack`] never makes more than the length says, nor more
//! than [`PLAIN_MAX_BYTES`].

use std::io::{Read, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use store::Format;

/// The version that packs large objects.
pub const PACKS: Format = Format(2);
/// What this program reads and, once the cluster may, writes.
pub const NEWEST: Format = PACKS;
/// Objects from this size on are packed.
pub const PACK_FROM_BYTES: usize = 16 * 1024;
/// The longest plain text of a packed value: that of a value in the store.
pub const PLAIN_MAX_BYTES: usize = store::MAX_VALUE_BYTES;

const MARK: &[u8] = b"gp1:";
const HEAD_BYTES: usize = MARK.len() + 4;

/// The oldest version that has values of this form.
pub fn form_of(value: &[u8]) -> Format {
    if value.starts_with(MARK) { PACKS } else { Format::FIRST }
}

/// The packed form of a text; `None` where it saves too little to be worth a second form.
pub fn pack(plain: &[u8]) -> Option<Bytes> {
    let length = u32::try_from(plain.len()).ok().filter(|length| *length as usize <= PLAIN_MAX_BYTES)?;
    let mut packed = Vec::with_capacity(plain.len() / 4);
    packed.extend_from_slice(MARK);
    packed.extend_from_slice(&length.to_le_bytes());
    let mut packer = ZlibEncoder::new(packed, Compression::fast());
    packer.write_all(plain).ok()?;
    let packed = packer.finish().ok()?;
    (packed.len() < plain.len() / 4 * 3).then(|| packed.into())
}

/// The plain text of a value in any form that `knows` has.
///
/// # Errors
/// Why it is not one.
pub fn unpack(value: &Bytes, knows: Format) -> Result<Bytes, String> {
    let form = form_of(value);
    if form > knows {
        return Err(format!("its form is of data version {form}, and this gantry reads up to {knows}"));
    }
    if form < PACKS {
        return Ok(value.clone());
    }
    let damaged = |why: &str| format!("it is packed and damaged: {why}");
    let (head, packed) = value.split_at_checked(HEAD_BYTES).ok_or_else(|| damaged("it is too short"))?;
    let length = head[MARK.len()..].iter().rev().fold(0usize, |sum, byte| sum << 8 | usize::from(*byte));
    if length > PLAIN_MAX_BYTES {
        return Err(damaged("it says that it is larger than any object"));
    }
    let mut plain = Vec::with_capacity(length);
    // One byte more than it says shows that there is more.
    let unpacked = ZlibDecoder::new(packed).take(length as u64 + 1).read_to_end(&mut plain);
    match unpacked {
        Ok(_) if plain.len() == length => Ok(plain.into()),
        Ok(_) => Err(damaged("it has another length than it says")),
        Err(error) => Err(damaged(&error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_packed_comes_back_to_those_who_know_it() {
        let plain = Bytes::from(b"{\"data\":\"0123456789\"}".repeat(1000));
        let packed = pack(&plain).unwrap();
        assert!(packed.len() < plain.len() / 10, "{}", packed.len());
        assert_eq!(unpack(&packed, PACKS).unwrap(), plain);
        assert_eq!(unpack(&plain, Format::FIRST).unwrap(), plain);
        let refused = unpack(&packed, Format::FIRST).unwrap_err();
        assert_eq!(refused, "its form is of data version 2, and this gantry reads up to 1");
    }

    #[test]
    fn what_saves_nothing_stays_plain() {
        let mut rng = base::Rng::new(1);
        let noise: Vec<u8> = (0..4096).flat_map(|_| rng.next_u64().to_le_bytes()).collect();
        assert!(pack(&noise).is_none());
    }

    #[test]
    fn damage_is_refused() {
        let plain = b"{\"data\":\"0123456789\"}".repeat(1000);
        let packed = pack(&plain).unwrap();
        for cut in 4..packed.len() {
            assert!(unpack(&packed.slice(..cut), PACKS).is_err(), "cut at {cut}");
        }
        let mut wrong = packed.to_vec();
        wrong[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(unpack(&wrong.clone().into(), PACKS).unwrap_err().contains("larger than any object"));
        for length in [0u32, 1, 20_999, 21_001] {
            wrong[4..8].copy_from_slice(&length.to_le_bytes());
            assert!(unpack(&wrong.clone().into(), PACKS).is_err(), "{length}");
        }
    }
}
