//! Canonical JSON text as a list of places: enough structure to write protobuf from it without making a tree of it.
//!
//! The text is our own or was checked when it was read, so grammar is not judged here; any bytes end in a tape or in
//! nothing, never in a panic.

use std::borrow::Cow;

use crate::value::Value;

/// Containers in each other; deeper text has no tape.
const MAX_DEPTH: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Null,
    False,
    True,
    Number,
    /// Text that stands for itself.
    Plain,
    /// Text with escapes.
    Escaped,
    List,
    Map,
}

/// One value, or a key of a map. A container's children follow it; those of a map are keys and values in turn.
#[derive(Clone, Copy, Debug)]
struct Place {
    kind: Kind,
    /// Where its text is; of strings, without the quotes.
    start: u32,
    end: u32,
    /// The place after it and all that is in it.
    next: u32,
}

/// A value of a tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At(u32);

/// What is absent.
pub(super) const ABSENT: At = At(u32::MAX);

/// The places of one text; its memory is used again for the next.
#[derive(Default)]
pub(super) struct Tape {
    places: Vec<Place>,
    open: Vec<u32>,
}

impl Tape {
    /// Reads `text`; `None` when it is no JSON, too deep or too long.
    pub fn read(&mut self, text: &[u8]) -> Option<At> {
        self.places.clear();
        self.open.clear();
        u32::try_from(text.len()).ok()?;
        let mut at = 0;
        while let Some(byte) = text.get(at) {
            match byte {
                b' ' | b'\n' | b'\r' | b'\t' | b',' | b':' => at += 1,
                b'{' | b'[' => {
                    if self.open.len() == MAX_DEPTH {
                        return None;
                    }
                    self.open.push(self.places.len() as u32);
                    self.push(if *byte == b'{' { Kind::Map } else { Kind::List }, at, at);
                    at += 1;
                }
                b'}' | b']' => {
                    at += 1;
                    let container = self.open.pop()? as usize;
                    let next = self.places.len() as u32;
                    let place = &mut self.places[container];
                    (place.end, place.next) = (at as u32, next);
                }
                b'"' => {
                    let (end, kind) = string_end(text, at + 1)?;
                    self.push(kind, at + 1, end);
                    at = end + 1;
                }
                _ => {
                    let length = text[at..].iter().position(|byte| b",}] \n\r\t".contains(byte));
                    let end = length.map_or(text.len(), |length| at + length);
                    let kind = match byte {
                        b'n' => Kind::Null,
                        b't' => Kind::True,
                        b'f' => Kind::False,
                        b'-' | b'0'..=b'9' => Kind::Number,
                        _ => return None,
                    };
                    self.push(kind, at, end);
                    at = end;
                }
            }
        }
        (self.open.is_empty() && !self.places.is_empty()).then_some(At(0))
    }

    fn push(&mut self, kind: Kind, start: usize, end: usize) {
        let next = self.places.len() as u32 + 1;
        self.places.push(Place { kind, start: start as u32, end: end as u32, next });
    }

    fn place(&self, at: At) -> Option<&Place> {
        self.places.get(at.0 as usize)
    }

    fn is(&self, at: At, kind: Kind) -> bool {
        self.place(at).is_some_and(|place| place.kind == kind)
    }

    pub fn is_null(&self, at: At) -> bool {
        self.place(at).is_none_or(|place| place.kind == Kind::Null)
    }

    pub fn is_true(&self, at: At) -> bool {
        self.is(at, Kind::True)
    }

    pub fn is_bool(&self, at: At) -> bool {
        self.is(at, Kind::True) || self.is(at, Kind::False)
    }

    pub fn is_list(&self, at: At) -> bool {
        self.is(at, Kind::List)
    }

    pub fn is_text(&self, at: At) -> bool {
        self.is(at, Kind::Plain) || self.is(at, Kind::Escaped)
    }

    /// The text of a value as it stands.
    pub fn raw<'t>(&self, at: At, text: &'t [u8]) -> &'t [u8] {
        let place = self.place(at).filter(|place| !matches!(place.kind, Kind::Plain | Kind::Escaped));
        if let Some(place) = place {
            return &text[place.start as usize..place.end as usize];
        }
        self.place(at).map_or(b"", |place| &text[place.start as usize - 1..place.end as usize + 1])
    }

    /// A string's text; empty for anything else.
    pub fn text<'t>(&self, at: At, text: &'t [u8]) -> Cow<'t, [u8]> {
        match self.place(at) {
            Some(place) if place.kind == Kind::Plain => (&text[place.start as usize..place.end as usize]).into(),
            Some(place) if place.kind == Kind::Escaped => {
                let quoted = &text[place.start as usize - 1..place.end as usize + 1];
                Value::parse(quoted).map(|value| value.text().as_bytes().to_vec()).unwrap_or_default().into()
            }
            _ => Cow::Borrowed(b""),
        }
    }

    /// A number without fraction.
    pub fn int(&self, at: At, text: &[u8]) -> Option<i64> {
        let place = self.place(at).filter(|place| place.kind == Kind::Number)?;
        std::str::from_utf8(&text[place.start as usize..place.end as usize]).ok()?.parse().ok()
    }

    pub fn double(&self, at: At, text: &[u8]) -> f64 {
        let place = self.place(at).filter(|place| place.kind == Kind::Number);
        let digits = place.and_then(|place| std::str::from_utf8(&text[place.start as usize..place.end as usize]).ok());
        digits.and_then(|digits| digits.parse().ok()).unwrap_or(0.0)
    }

    /// The items of a list, or the keys of a map: each value is [`Tape::value_of`] its key.
    pub fn children(&self, at: At) -> impl Iterator<Item = At> {
        let (kind, end) = self.place(at).map_or((Kind::Null, 0), |place| (place.kind, place.next));
        let mut next = match kind {
            Kind::List | Kind::Map => at.0 + 1,
            _ => end,
        };
        std::iter::from_fn(move || {
            if next >= end {
                return None;
            }
            let child = At(next);
            let last = if kind == Kind::Map { self.value_of(child) } else { child };
            next = self.place(last)?.next;
            Some(child)
        })
    }

    /// The value behind a key.
    pub fn value_of(&self, key: At) -> At {
        At(key.0 + 1)
    }
}

/// Where the string that begins at `from` ends, and whether it stands for itself.
fn string_end(text: &[u8], from: usize) -> Option<(usize, Kind)> {
    let (mut at, mut kind) = (from, Kind::Plain);
    loop {
        at += memchr::memchr2(b'"', b'\\', &text[at..])?;
        if text[at] == b'"' {
            return Some((at, kind));
        }
        kind = Kind::Escaped;
        at += 2;
        if at > text.len() {
            return None;
        }
    }
}
