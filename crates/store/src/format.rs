//! The data version: a number for how values stand in the store, kept there under one key.
//!
//! What a version means is its writers' business; the order is: whoever knows a version reads all older forms, too, and
//! the version of a store only goes up.

use std::fmt;

use bytes::Bytes;

use crate::types::Version;

/// A data version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Format(pub u32);

impl Format {
    /// Where a store says which version everything in it may use.
    pub const KEY: &[u8] = b"/cluster/format";
    /// Of stores that say nothing.
    pub const FIRST: Format = Format(1);
    /// Of a text that is no version: newer than all that anyone knows.
    pub const UNREADABLE: Format = Format(u32::MAX);

    /// Reads what [`Format::text`] made; an empty text is the first version.
    pub fn parse(text: &[u8]) -> Format {
        if text.is_empty() {
            return Format::FIRST;
        }
        let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).filter(|number| *number > 0);
        number.map_or(Format::UNREADABLE, Format)
    }

    /// What the version of [`Format::KEY`] says, where there is one.
    pub fn of(said: Option<&Version>) -> Format {
        said.map_or(Format::FIRST, |said| Format::parse(&said.value.bytes()))
    }

    pub fn text(self) -> Bytes {
        self.0.to_string().into()
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Format::UNREADABLE => f.write_str("unreadable"),
            Format(number) => write!(f, "{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_version_is_newer_than_all() {
        assert_eq!(Format::parse(b""), Format::FIRST);
        assert_eq!(Format::parse(&Format(12).text()), Format(12));
        for wrong in [&b"0"[..], b"-1", b"2 ", b"two", b"\xff", b"99999999999"] {
            assert_eq!(Format::parse(wrong), Format::UNREADABLE, "{wrong:?}");
        }
    }
}
