//! DNS messages as bytes: reading is total, writing is by hand. Names are kept in wire form without compression.

use std::net::IpAddr;

pub(crate) const HEADER_BYTES: usize = 12;
pub(crate) const MAX_NAME_BYTES: usize = 255;
const MAX_LABEL_BYTES: u8 = 63;
/// Pointers followed in one name; more is a loop.
const MAX_POINTERS: usize = 32;

pub(crate) const TYPE_A: u16 = 1;
pub(crate) const TYPE_NS: u16 = 2;
pub(crate) const TYPE_CNAME: u16 = 5;
pub(crate) const TYPE_SOA: u16 = 6;
pub(crate) const TYPE_PTR: u16 = 12;
pub(crate) const TYPE_TXT: u16 = 16;
pub(crate) const TYPE_AAAA: u16 = 28;
pub(crate) const TYPE_SRV: u16 = 33;
pub(crate) const TYPE_OPT: u16 = 41;
pub(crate) const TYPE_ANY: u16 = 255;
pub(crate) const CLASS_IN: u16 = 1;
pub(crate) const CLASS_ANY: u16 = 255;

pub(crate) const NO_ERROR: u8 = 0;
pub(crate) const FORMAT_ERROR: u8 = 1;
pub(crate) const SERVER_FAILURE: u8 = 2;
pub(crate) const NAME_ERROR: u8 = 3;
pub(crate) const NOT_IMPLEMENTED: u8 = 4;
pub(crate) const REFUSED: u8 = 5;

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]))
}

/// A name in wire form, of bounded size, on the stack.
#[derive(Clone, Copy)]
pub(crate) struct Name {
    bytes: [u8; MAX_NAME_BYTES],
    len: u8,
}

impl Name {
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// From text like `kubernetes.default.svc.cluster.local`, with or without the last dot.
    pub fn parse(text: &str) -> Option<Name> {
        let mut name = Name { bytes: [0; MAX_NAME_BYTES], len: 0 };
        let text = text.strip_suffix('.').unwrap_or(text);
        for label in text.split('.').filter(|_| !text.is_empty()) {
            name.push(label.as_bytes())?;
        }
        name.end()
    }

    /// Adds a label; `None` when it is empty or something gets too long.
    fn push(&mut self, label: &[u8]) -> Option<()> {
        let start = usize::from(self.len);
        let end = start + 1 + label.len();
        if label.is_empty() || label.len() > usize::from(MAX_LABEL_BYTES) || end >= MAX_NAME_BYTES {
            return None;
        }
        self.bytes[start] = label.len() as u8;
        self.bytes[start + 1..end].copy_from_slice(label);
        self.len = end as u8;
        Some(())
    }

    fn end(mut self) -> Option<Name> {
        self.bytes[usize::from(self.len)] = 0;
        self.len += 1;
        Some(self)
    }

    /// Reads the name at `at`, following pointers; also gives the place behind it in the message.
    pub fn read(message: &[u8], at: usize) -> Option<(Name, usize)> {
        let mut name = Name { bytes: [0; MAX_NAME_BYTES], len: 0 };
        let (mut at, mut behind, mut pointers) = (at, None, 0);
        loop {
            let len = *message.get(at)?;
            match len {
                0 => return Some((name.end()?, behind.unwrap_or(at + 1))),
                1..=MAX_LABEL_BYTES => {
                    name.push(message.get(at + 1..at + 1 + usize::from(len))?)?;
                    at += 1 + usize::from(len);
                }
                0xc0.. => {
                    pointers += 1;
                    let to = usize::from(u16_at(message, at)? & 0x3fff);
                    if pointers > MAX_POINTERS || to >= at {
                        return None;
                    }
                    behind.get_or_insert(at + 2);
                    at = to;
                }
                _ => return None,
            }
        }
    }

    /// The labels, from the first to the last.
    pub fn labels(&self) -> Labels<'_> {
        Labels(self.as_bytes())
    }

    pub fn lower(mut self) -> Name {
        // Lengths are at most 63 and so no capital letters.
        self.bytes[..usize::from(self.len)].make_ascii_lowercase();
        self
    }

    /// The labels in reverse order, each with its length: an ancestor's key is the beginning of its children's keys.
    pub fn key(&self) -> Key {
        let mut key = Key { bytes: [0; MAX_NAME_BYTES], start: MAX_NAME_BYTES };
        for label in self.labels() {
            let end = key.start;
            key.start = end - label.len() - 1;
            key.bytes[key.start] = label.len() as u8;
            key.bytes[key.start + 1..end].copy_from_slice(label);
        }
        key
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for label in self.labels() {
            write!(f, "{}.", label.escape_ascii())?;
        }
        if self.len == 1 { f.write_str(".") } else { Ok(()) }
    }
}

pub(crate) struct Labels<'a>(&'a [u8]);

impl<'a> Iterator for Labels<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (len, rest) = self.0.split_first()?;
        if *len == 0 {
            return None;
        }
        let (label, rest) = rest.split_at_checked(usize::from(*len))?;
        self.0 = rest;
        Some(label)
    }
}

/// A name turned round, for ordered lookup.
#[derive(Clone, Copy)]
pub(crate) struct Key {
    bytes: [u8; MAX_NAME_BYTES],
    start: usize,
}

impl Key {
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

/// What somebody asks.
pub(crate) struct Question {
    pub id: u16,
    pub recursion_desired: bool,
    /// As written, for the answer.
    pub name: Name,
    pub kind: u16,
    pub class: u16,
    /// Where the question ends in the message.
    pub end: usize,
    /// The client's limit for UDP answers, if it knows EDNS; and whether it knows our version of it.
    pub edns: Option<(u16, bool)>,
}

/// Why a message is no question.
pub(crate) enum NoQuestion {
    /// Not to be answered at all.
    Ignore,
    /// To be answered with this code.
    Error(u8),
}

/// Reads a query.
pub(crate) fn question(message: &[u8]) -> Result<Question, NoQuestion> {
    let wrong = NoQuestion::Error(FORMAT_ERROR);
    let header = message.get(..HEADER_BYTES).ok_or(NoQuestion::Ignore)?;
    if header[2] & 0x80 != 0 {
        return Err(NoQuestion::Ignore);
    }
    if header[2] >> 3 & 15 != 0 {
        return Err(NoQuestion::Error(NOT_IMPLEMENTED));
    }
    let count = |at| u16_at(header, at).unwrap_or(0);
    if count(4) != 1 {
        return Err(wrong);
    }
    let Some((name, at)) = Name::read(message, HEADER_BYTES) else { return Err(wrong) };
    let (Some(kind), Some(class)) = (u16_at(message, at), u16_at(message, at + 2)) else { return Err(wrong) };
    let end = at + 4;
    // A compressed first name would point before itself, into the header.
    if end - HEADER_BYTES != name.as_bytes().len() + 4 {
        return Err(wrong);
    }
    let mut edns = None;
    let records = usize::from(count(6)) + usize::from(count(8)) + usize::from(count(10));
    let mut at = end;
    for _ in 0..records {
        let Some(record) = Record::read(message, at) else { return Err(wrong) };
        if record.kind == TYPE_OPT {
            edns = Some((record.class, record.ttl >> 16 & 0xff == 0));
        }
        at = record.end;
    }
    Ok(Question { id: count(0), recursion_desired: header[2] & 1 != 0, name, kind, class, end, edns })
}

/// One record of a message.
pub(crate) struct Record<'a> {
    pub name: Name,
    pub kind: u16,
    pub class: u16,
    pub ttl: u32,
    pub data: &'a [u8],
    /// Where the data begin.
    pub data_at: usize,
    pub end: usize,
}

impl<'a> Record<'a> {
    pub fn read(message: &'a [u8], at: usize) -> Option<Record<'a>> {
        let (name, at) = Name::read(message, at)?;
        let (kind, class) = (u16_at(message, at)?, u16_at(message, at + 2)?);
        let ttl = u32::from(u16_at(message, at + 4)?) << 16 | u32::from(u16_at(message, at + 6)?);
        let (data_at, end) = (at + 10, at + 10 + usize::from(u16_at(message, at + 8)?));
        Some(Record { name, kind, class, ttl, data: message.get(data_at..end)?, data_at, end })
    }
}

/// The records of the answer section of a reply.
pub(crate) fn answers(message: &[u8]) -> impl Iterator<Item = Record<'_>> {
    let count = u16_at(message, 6).unwrap_or(0);
    let mut at = if u16_at(message, 4) == Some(1) {
        Name::read(message, HEADER_BYTES).map(|(_, behind)| behind + 4)
    } else {
        None
    };
    (0..count).map_while(move |_| {
        let record = Record::read(message, at?)?;
        at = Some(record.end);
        Some(record)
    })
}

/// A reply under construction.
pub(crate) struct Reply<'a> {
    out: &'a mut Vec<u8>,
    limit: usize,
    counts: [u16; 3],
    truncated: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    Answer = 0,
    Authority = 1,
    Additional = 2,
}

/// Whose name a record bears.
#[derive(Clone, Copy)]
pub(crate) enum Owner<'a> {
    /// That at this offset of the reply.
    At(usize),
    Name(&'a [u8]),
}

const EDNS_BYTES: usize = 11;

impl<'a> Reply<'a> {
    /// Begins with the header and the question, repeated as it was asked.
    pub fn begin(out: &'a mut Vec<u8>, query: &[u8], question: &Question, limit: usize) -> Reply<'a> {
        out.clear();
        out.extend_from_slice(&query[..question.end]);
        out[2] = 0x80 | u8::from(question.recursion_desired);
        out[3] = 0x80;
        out[6..HEADER_BYTES].fill(0);
        let room = if question.edns.is_some() { EDNS_BYTES } else { 0 };
        Reply { out, limit: limit - room, counts: [0; 3], truncated: false }
    }

    pub fn authoritative(&mut self) {
        self.out[2] |= 4;
    }

    /// The place where the next byte goes.
    pub fn at(&self) -> usize {
        self.out.len()
    }

    /// Adds a record if there is room; otherwise marks the reply as truncated (unless it was only additional).
    pub fn record(&mut self, section: Section, owner: Owner<'_>, kind: u16, ttl: u32, data: &[&[u8]]) -> bool {
        if self.truncated {
            return false;
        }
        let owner_bytes = if let Owner::Name(name) = owner { name.len() } else { 2 };
        let data_bytes: usize = data.iter().map(|part| part.len()).sum();
        if self.out.len() + owner_bytes + 10 + data_bytes > self.limit {
            self.truncated = section != Section::Additional;
            return false;
        }
        match owner {
            Owner::At(at) => self.out.extend_from_slice(&(0xc000 | at as u16).to_be_bytes()),
            Owner::Name(name) => self.out.extend_from_slice(name),
        }
        self.out.extend_from_slice(&kind.to_be_bytes());
        self.out.extend_from_slice(&CLASS_IN.to_be_bytes());
        self.out.extend_from_slice(&ttl.to_be_bytes());
        self.out.extend_from_slice(&(data_bytes as u16).to_be_bytes());
        data.iter().for_each(|part| self.out.extend_from_slice(part));
        self.counts[section as usize] += 1;
        true
    }

    pub fn address(&mut self, section: Section, owner: Owner<'_>, address: IpAddr, ttl: u32) -> bool {
        match address {
            IpAddr::V4(address) => self.record(section, owner, TYPE_A, ttl, &[&address.octets()]),
            IpAddr::V6(address) => self.record(section, owner, TYPE_AAAA, ttl, &[&address.octets()]),
        }
    }

    /// Sets the code, the counts and, if the client knows it, the EDNS record.
    pub fn end(mut self, question: &Question, code: u8, extended: u8, udp_bytes: u16) {
        if question.edns.is_some() {
            let size = udp_bytes.to_be_bytes();
            let opt = TYPE_OPT.to_be_bytes();
            self.out.extend_from_slice(&[0, opt[0], opt[1], size[0], size[1], extended, 0, 0, 0, 0, 0]);
            self.counts[Section::Additional as usize] += 1;
        }
        if self.truncated {
            self.out[2] |= 2;
        }
        self.out[3] = self.out[3] & 0xf0 | code;
        for (at, count) in self.counts.iter().enumerate() {
            self.out[6 + at * 2..8 + at * 2].copy_from_slice(&count.to_be_bytes());
        }
    }
}

/// A reply that only bears a code, to something that may not even have a readable question.
pub(crate) fn bare_reply(out: &mut Vec<u8>, query: &[u8], code: u8) {
    out.clear();
    out.extend_from_slice(query.get(..2).unwrap_or(&[0, 0]));
    let flags = query.get(2).map_or(0, |flags| flags & 0x79);
    out.extend_from_slice(&[0x80 | flags, 0x80 | code, 0, 0, 0, 0, 0, 0, 0, 0]);
}

/// A query for a name, as we send it to upstream servers.
pub(crate) fn query(id: u16, name: &[u8], kind: u16, udp_bytes: u16) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + name.len() + 4 + EDNS_BYTES);
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
    out.extend_from_slice(name);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&CLASS_IN.to_be_bytes());
    let (opt, size) = (TYPE_OPT.to_be_bytes(), udp_bytes.to_be_bytes());
    out.extend_from_slice(&[0, opt[0], opt[1], size[0], size[1], 0, 0, 0, 0, 0, 0]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Rng;

    #[test]
    fn names_are_read_and_turned_round() {
        let name = Name::parse("Web.default.svc").unwrap();
        assert_eq!(name.to_string(), "Web.default.svc.");
        assert_eq!(name.lower().key().as_bytes(), b"\x03svc\x07default\x03web");
        assert_eq!(Name::parse(".").unwrap().as_bytes(), [0]);
        assert!(Name::parse("a..b").is_none() && Name::parse(&"x".repeat(64)).is_none());
        assert!(Name::parse(&["abcdefgh"; 29].join(".")).is_none());
        // A pointer forward or to itself is no name.
        let message = [b"\x01a\x00".as_slice(), b"\xc0\x00", b"\xc0\x05", b"\xc0\x09"].concat();
        assert_eq!(Name::read(&message, 3).map(|(name, behind)| (name.to_string(), behind)), Some(("a.".into(), 5)));
        assert!(Name::read(&message, 5).is_none() && Name::read(&message, 7).is_none());
    }

    #[test]
    fn any_bytes_are_read_without_panic() {
        let mut rng = Rng::new(11);
        let base = query(7, Name::parse("a.b.c").unwrap().as_bytes(), TYPE_A, 1232);
        for round in 0..50_000 {
            let mut bytes = if round % 2 == 0 { base.clone() } else { vec![0; rng.below(60) as usize] };
            for _ in 0..rng.below(6) {
                if !bytes.is_empty() {
                    let at = rng.below(bytes.len() as u64) as usize;
                    bytes[at] = if rng.chance(300) { 0xc0 } else { rng.next_u64() as u8 };
                }
            }
            bytes.truncate(rng.below(bytes.len() as u64 + 1) as usize);
            let _ = question(&bytes);
            answers(&bytes).for_each(|record| drop(record.name.to_string()));
        }
    }
}
