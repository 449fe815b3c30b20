//! Heads of requests and answers as HTTP/2 packs them (RFC 7541), as far as a client of prepared requests needs it.
//!
//! A request's fields that stay the same are said once and named by number from then on; its path is said in plain. Of an
//! answer nothing is read but its status: of the other fields only the lengths, which say what the server's table forgets.

use std::collections::VecDeque;

use crate::door::Ask;
use crate::error::Error;

/// Bytes of a table that was not agreed upon (RFC 7541, 4.2; RFC 9113, 6.5.2), and what an entry takes beside its texts.
const TABLE_MAX_BYTES: usize = 4_096;
const ENTRY_BYTES: usize = 32;
/// Bytes of the fields that are said once: they leave the table to themselves, so that it forgets none of them.
const KEPT_MAX_BYTES: usize = TABLE_MAX_BYTES;

/// Numbers of fields that everybody knows, with and without their values.
const AUTHORITY: usize = 1;
const METHOD: usize = 2;
const METHOD_GET: usize = 2;
const METHOD_POST: usize = 3;
const PATH: usize = 4;
const SCHEME_HTTPS: usize = 7;
const STATUS: usize = 8;
const STATUSES: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
const ACCEPT: usize = 19;
const AUTHORIZATION: usize = 23;
const CONTENT_TYPE: usize = 31;
/// The lengths of their names, from number 1 on.
const NAMES: [usize; 61] = [
    10, 7, 7, 5, 5, 7, 7, 7, 7, 7, 7, 7, 7, 7, 14, 15, 15, 13, 6, 27, 3, 5, 13, 13, 19, 16, 16, 14, 16, 13, 12, 6, 4,
    4, 6, 7, 4, 4, 8, 17, 13, 8, 19, 13, 4, 8, 12, 18, 19, 5, 7, 7, 11, 6, 10, 25, 17, 10, 4, 3, 16,
];

/// What the first bits of a field say of it: how it is said, and how many bits of its number follow.
const INDEXED: (u8, u32) = (0x80, 7);
const KEPT: (u8, u32) = (0x40, 6);
const PLAIN: (u8, u32) = (0x00, 4);

fn write_number(out: &mut Vec<u8>, (pattern, bits): (u8, u32), number: usize) {
    let most = (1_usize << bits) - 1;
    if number < most {
        out.push(pattern | number as u8);
        return;
    }
    out.push(pattern | most as u8);
    let mut rest = number - most;
    while rest >= 0x80 {
        out.push(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    write_number(out, (0x00, 7), text.len());
    out.extend_from_slice(text.as_bytes());
}

/// Writes the heads of a connection's requests, in the order in which they are sent.
pub struct Writer {
    authority: String,
    authorization: String,
    /// What the server was told to keep, the first one first.
    kept: Vec<(usize, String)>,
    kept_bytes: usize,
}

impl Writer {
    pub fn new(authority: &str, authorization: &str) -> Writer {
        let (authority, authorization) = (authority.to_owned(), authorization.to_owned());
        Writer { authority, authorization, kept: Vec::new(), kept_bytes: 0 }
    }

    pub fn write(&mut self, ask: &Ask, out: &mut Vec<u8>) {
        match ask.method {
            http::Method::GET => write_number(out, INDEXED, METHOD_GET),
            http::Method::POST => write_number(out, INDEXED, METHOD_POST),
            _ => Writer::field(&mut self.kept, &mut self.kept_bytes, METHOD, ask.method.as_str(), out),
        }
        write_number(out, INDEXED, SCHEME_HTTPS);
        let path = ask.path.path_and_query().map_or("/", |path| path.as_str());
        write_number(out, PLAIN, PATH);
        write_text(out, path);
        let mut field = |name, value: &str| Writer::field(&mut self.kept, &mut self.kept_bytes, name, value, out);
        field(AUTHORITY, &self.authority);
        if !self.authorization.is_empty() {
            field(AUTHORIZATION, &self.authorization);
        }
        field(ACCEPT, ask.accept);
        if !ask.body.is_empty() {
            field(CONTENT_TYPE, ask.content_type);
        }
    }

    fn field(kept: &mut Vec<(usize, String)>, kept_bytes: &mut usize, name: usize, value: &str, out: &mut Vec<u8>) {
        if let Some(at) = kept.iter().position(|(known, text)| *known == name && text == value) {
            // The newest has the first number after those that everybody knows.
            write_number(out, INDEXED, NAMES.len() + kept.len() - at);
            return;
        }
        let bytes = NAMES[name - 1] + value.len() + ENTRY_BYTES;
        if *kept_bytes + bytes > KEPT_MAX_BYTES {
            write_number(out, PLAIN, name);
        } else {
            write_number(out, KEPT, name);
            kept.push((name, value.to_owned()));
            *kept_bytes += bytes;
        }
        write_text(out, value);
    }
}

/// A field in the server's table.
struct Entry {
    /// The status, if it tells one.
    status: Option<u16>,
    is_status: bool,
    name_len: usize,
    bytes: usize,
}

/// Reads the heads of a connection's answers; all of them, in the order in which they come.
pub struct Reader {
    /// The newest first.
    table: VecDeque<Entry>,
    bytes: usize,
    max_bytes: usize,
}

impl Default for Reader {
    fn default() -> Reader {
        Reader { table: VecDeque::new(), bytes: 0, max_bytes: TABLE_MAX_BYTES }
    }
}

fn torn() -> Error {
    Error::doing("read the head of an answer", "it is not packed as RFC 7541 says")
}

fn read_number(block: &mut &[u8], bits: u32) -> Result<usize, Error> {
    let (first, rest) = block.split_first().ok_or_else(torn)?;
    *block = rest;
    let most = (1_usize << bits) - 1;
    let mut number = usize::from(*first) & most;
    if number < most {
        return Ok(number);
    }
    for shift in [0, 7, 14, 21] {
        let (next, rest) = block.split_first().ok_or_else(torn)?;
        *block = rest;
        number += usize::from(next & 0x7f) << shift;
        if next & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(torn())
}

/// A text's length, and the number that it writes if that has three digits.
fn read_text(block: &mut &[u8]) -> Result<(usize, Option<u16>), Error> {
    let packed = block.first().ok_or_else(torn)? & 0x80 != 0;
    let len = read_number(block, 7)?;
    let text = block.split_off(..len).ok_or_else(torn)?;
    let (mut number, mut count) = (Some(0), 0);
    let mut take = |digit: Option<u16>| {
        count += 1;
        number = number.zip(digit.filter(|_| count <= 3)).map(|(number, digit)| number * 10 + digit);
    };
    if packed {
        unpack(text, take)?;
    } else {
        text.iter().for_each(|byte| take(byte.is_ascii_digit().then(|| u16::from(byte - b'0'))));
    }
    Ok((count, number.filter(|_| count == 3)))
}

/// How many codes of so many bits there are (RFC 7541, appendix B). Those of one length follow each other, after the
/// shorter ones.
const CODES: [(u32, u32); 21] = [
    (5, 10),
    (6, 26),
    (7, 32),
    (8, 6),
    (10, 5),
    (11, 3),
    (12, 2),
    (13, 6),
    (14, 2),
    (15, 3),
    (19, 3),
    (20, 8),
    (21, 13),
    (22, 26),
    (23, 29),
    (24, 12),
    (25, 4),
    (26, 15),
    (27, 19),
    (28, 29),
    (30, 4),
];

/// Calls `take` for each character of a packed text, with the digit that it is.
fn unpack(text: &[u8], mut take: impl FnMut(Option<u16>)) -> Result<(), Error> {
    let (mut held, mut held_bits, mut bytes) = (0_u64, 0_u32, text.iter());
    loop {
        while held_bits <= 56
            && let Some(byte) = bytes.next()
        {
            (held, held_bits) = (held << 8 | u64::from(*byte), held_bits + 8);
        }
        let (mut first, mut known_bits, mut found) = (0_u64, 0_u32, None);
        for (bits, count) in CODES {
            if bits > held_bits {
                break;
            }
            first <<= bits - known_bits;
            known_bits = bits;
            let code = held >> (held_bits - bits) & ((1 << bits) - 1);
            if code < first + u64::from(count) {
                found = Some((bits, code));
                break;
            }
            first += u64::from(count);
        }
        match found {
            // The digits 0 to 2 are the first codes of five bits, 3 to 9 follow upon 25 of six.
            Some((5, code @ 0..=2)) => take(Some(code as u16)),
            Some((6, code @ 25..=31)) => take(Some(code as u16 - 22)),
            Some(_) => take(None),
            // What is left fills the last byte with ones.
            None if held_bits < 8 && held & ((1 << held_bits) - 1) == (1 << held_bits) - 1 => return Ok(()),
            None => return Err(torn()),
        }
        held_bits -= found.map_or(0, |(bits, _)| bits);
    }
}

impl Reader {
    /// The status of an answer with this head; `None` in the fields after a body.
    pub fn read(&mut self, mut block: &[u8]) -> Result<Option<u16>, Error> {
        let mut found = None;
        while let Some(first) = block.first() {
            let status = match first.leading_zeros() {
                0 => self.status_of(read_number(&mut block, 7)?)?,
                1 => {
                    let entry = self.literal(&mut block, 6)?;
                    let status = entry.status;
                    self.keep(entry);
                    status
                }
                2 => {
                    self.max_bytes = read_number(&mut block, 5)?.min(TABLE_MAX_BYTES);
                    self.forget();
                    None
                }
                _ => self.literal(&mut block, 4)?.status,
            };
            found = found.or(status);
        }
        Ok(found)
    }

    fn entry(&self, number: usize) -> Result<&Entry, Error> {
        number.checked_sub(NAMES.len() + 1).and_then(|at| self.table.get(at)).ok_or_else(torn)
    }

    fn status_of(&self, number: usize) -> Result<Option<u16>, Error> {
        match number {
            0 => Err(torn()),
            1..=61 => Ok(number.checked_sub(STATUS).and_then(|at| STATUSES.get(at)).copied()),
            _ => Ok(self.entry(number)?.status),
        }
    }

    /// A field whose value is said, with a name that is said, too, or has a number.
    fn literal(&self, block: &mut &[u8], bits: u32) -> Result<Entry, Error> {
        let name = read_number(block, bits)?;
        let (is_status, name_len) = match name {
            0 => (false, read_text(block)?.0),
            1..=61 => ((STATUS..STATUS + STATUSES.len()).contains(&name), NAMES[name - 1]),
            _ => self.entry(name).map(|entry| (entry.is_status, entry.name_len))?,
        };
        let (len, number) = read_text(block)?;
        let bytes = name_len + len + ENTRY_BYTES;
        Ok(Entry { status: number.filter(|_| is_status), is_status, name_len, bytes })
    }

    fn keep(&mut self, entry: Entry) {
        self.bytes += entry.bytes;
        self.table.push_front(entry);
        self.forget();
    }

    fn forget(&mut self) {
        while self.bytes > self.max_bytes {
            self.bytes -= self.table.pop_back().map_or(self.bytes, |entry| entry.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_of_the_rfc_are_read() {
        // RFC 7541, C.6: answers whose texts are packed, with a table that forgets (here by a smaller size said first).
        let blocks = [
            "3fe101488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3",
            "4883640effc1c0bf",
            "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
        ];
        let mut reader = Reader::default();
        let read = blocks.map(|block| reader.read(&hex(block)).unwrap());
        assert_eq!(read, [Some(302), Some(307), Some(200)]);
        assert_eq!((reader.table.len(), reader.bytes), (3, 215));
    }

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn what_is_no_head_is_refused() {
        for block in ["80", "be", "7f", "7fffffffffff", "4803", "488100", "00"] {
            assert!(Reader::default().read(&hex(block)).is_err(), "{block}");
        }
        assert_eq!(Reader::default().read(&hex("")).unwrap(), None);
    }

    #[test]
    fn what_stays_is_said_once() {
        let mut writer = Writer::new("host:1", "Bearer t");
        let ask = Ask::get("/a?b=c");
        let (mut first, mut second) = (Vec::new(), Vec::new());
        writer.write(&ask, &mut first);
        writer.write(&ask, &mut second);
        assert!(first.len() > 40);
        assert_eq!(second, [&[0x82, 0x87, 0x04, 6], "/a?b=c".as_bytes(), &[0xc0, 0xbf, 0xbe]].concat());
    }
}
