//! Frames of SPDY/3.1 and their header blocks.
//!
//! A control frame is `1|version:15|type:16|flags:8|length:24`, a data frame `0|stream:31|flags:8|length:24`. Header
//! blocks of one direction share one zlib stream, so both coders live as long as their direction.

use std::sync::LazyLock;

use bytes::{Buf, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::Error;

const VERSION: u16 = 3;
const FIN: u8 = 1;
const HEAD_BYTES: usize = 8;
/// A header block after decompression.
const HEADERS_MAX_BYTES: usize = 64 << 10;
const HEADERS_MAX: usize = 256;
/// Entries of one settings frame.
const SETTINGS_MAX: usize = 64;
/// Id of the setting that says how much of a stream may be under way.
pub const INITIAL_WINDOW: u32 = 7;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// Names (lower case) and values of one header block, in their order.
pub type Headers = Vec<(String, String)>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    Data {
        stream: u32,
        fin: bool,
        bytes: Bytes,
    },
    SynStream {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    SynReply {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    Reset {
        stream: u32,
        code: u32,
    },
    /// Ids and values.
    Settings(Vec<(u32, u32)>),
    Ping(u32),
    GoAway {
        last: u32,
        code: u32,
    },
    Headers {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    /// Stream 0 is the session.
    WindowUpdate {
        stream: u32,
        delta: u32,
    },
    /// A control frame of a type that means nothing here.
    Other(u16),
}

/// The words that both sides' compressors begin with: those of the protocol's draft 3.
static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
        accept-ranges age allow authorization cache-control connection content-base content-encoding \
        content-language content-length content-location content-md5 content-range content-type date etag expect \
        expires from host if-match if-modified-since if-none-match if-range if-unmodified-since last-modified \
        location max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after server te \
        trailer transfer-encoding upgrade user-agent vary via warning www-authenticate method get status 200_OK \
        version HTTP/1.1 url public set-cookie keep-alive origin";
    const REST: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
        203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized\
        403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
        Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
        chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,\
        text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";
    let mut all = Vec::new();
    for word in WORDS.split_ascii_whitespace() {
        let word = word.replace('_', " ");
        all.extend_from_slice(&(word.len() as u32).to_be_bytes());
        all.extend_from_slice(word.as_bytes());
    }
    all.extend_from_slice(REST.as_bytes());
    all
});

/// Reads frames out of the bytes of one direction.
pub struct Decoder {
    buffer: BytesMut,
    inflate: Decompress,
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder { buffer: BytesMut::new(), inflate: Decompress::new(true) }
    }
}

impl Decoder {
    /// Where bytes from the wire are put.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next complete frame. After an error the session is lost.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Error> {
        if self.buffer.len() < HEAD_BYTES {
            return Ok(None);
        }
        let length = usize::from(self.buffer[5]) << 16 | usize::from(self.buffer[6]) << 8 | usize::from(self.buffer[7]);
        if self.buffer.len() < HEAD_BYTES + length {
            self.buffer.reserve(HEAD_BYTES + length - self.buffer.len());
            return Ok(None);
        }
        let mut frame = self.buffer.split_to(HEAD_BYTES + length).freeze();
        let first = frame.get_u32();
        let flags = (frame.get_u32() >> 24) as u8;
        let fin = flags & FIN != 0;
        if first >> 31 == 0 {
            return Ok(Some(Frame::Data { stream: first, fin, bytes: frame }));
        }
        if (first >> 16 & 0x7fff) as u16 != VERSION {
            return Err(Error::Malformed("another version"));
        }
        let of_type = first as u16;
        self.control(of_type, fin, frame).map(Some)
    }

    fn control(&mut self, of_type: u16, fin: bool, mut rest: Bytes) -> Result<Frame, Error> {
        let number = |rest: &mut Bytes| rest.try_get_u32().map_err(|_| Error::Malformed("a short frame"));
        let id = |rest: &mut Bytes| number(rest).map(|id| id & 0x7fff_ffff);
        Ok(match of_type {
            SYN_STREAM => {
                let stream = id(&mut rest)?;
                number(&mut rest)?;
                rest.try_get_u16().map_err(|_| Error::Malformed("a short frame"))?;
                Frame::SynStream { stream, fin, headers: self.headers(&rest)? }
            }
            SYN_REPLY => Frame::SynReply { stream: id(&mut rest)?, fin, headers: self.headers(&rest)? },
            HEADERS => Frame::Headers { stream: id(&mut rest)?, fin, headers: self.headers(&rest)? },
            RST_STREAM => Frame::Reset { stream: id(&mut rest)?, code: number(&mut rest)? },
            PING => Frame::Ping(number(&mut rest)?),
            GOAWAY => Frame::GoAway { last: id(&mut rest)?, code: number(&mut rest).unwrap_or(0) },
            WINDOW_UPDATE => Frame::WindowUpdate { stream: id(&mut rest)?, delta: id(&mut rest)? },
            SETTINGS => {
                let count = number(&mut rest)? as usize;
                if count > SETTINGS_MAX {
                    return Err(Error::Malformed("too many settings"));
                }
                let mut settings = Vec::with_capacity(count);
                for _ in 0..count {
                    settings.push((number(&mut rest)? & 0x00ff_ffff, number(&mut rest)?));
                }
                Frame::Settings(settings)
            }
            other => Frame::Other(other),
        })
    }

    fn headers(&mut self, block: &[u8]) -> Result<Headers, Error> {
        let text = self.inflated(block)?;
        let mut rest = &text[..];
        let count = rest.try_get_u32().map_err(|_| Error::Malformed("a short header block"))? as usize;
        if count > HEADERS_MAX {
            return Err(Error::Malformed("too many headers"));
        }
        let mut word = || -> Result<String, Error> {
            let length = rest.try_get_u32().map_err(|_| Error::Malformed("a short header block"))? as usize;
            let word = rest.get(..length).ok_or(Error::Malformed("a header longer than its block"))?;
            rest = &rest[length..];
            String::from_utf8(word.to_vec()).map_err(|_| Error::Malformed("a header that is not text"))
        };
        let mut headers = Headers::with_capacity(count);
        for _ in 0..count {
            headers.push((word()?.to_ascii_lowercase(), word()?));
        }
        Ok(headers)
    }

    fn inflated(&mut self, mut block: &[u8]) -> Result<Vec<u8>, Error> {
        let mut text = Vec::with_capacity(1024);
        loop {
            let (before, had) = (self.inflate.total_in(), text.len());
            let result = self.inflate.decompress_vec(block, &mut text, FlushDecompress::Sync);
            let taken = (self.inflate.total_in() - before) as usize;
            block = block.get(taken..).unwrap_or_default();
            match result {
                Ok(Status::StreamEnd) => return Err(Error::Malformed("the end of the header compression")),
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    let set = self.inflate.set_dictionary(&DICTIONARY);
                    set.map_err(|_| Error::Malformed("another dictionary"))?;
                    continue;
                }
                Err(_) => return Err(Error::Malformed("a header block that does not decompress")),
            }
            if text.len() > HEADERS_MAX_BYTES {
                return Err(Error::Malformed("too long headers"));
            }
            if text.len() == text.capacity() {
                text.reserve(text.len().max(1024));
            } else if block.is_empty() {
                return Ok(text);
            } else if taken == 0 && text.len() == had {
                return Err(Error::Malformed("a header block that does not decompress"));
            }
        }
    }
}

/// Writes the frames of one direction.
pub struct Encoder {
    deflate: Compress,
}

impl Default for Encoder {
    fn default() -> Encoder {
        let mut deflate = Compress::new(Compression::fast(), true);
        deflate.set_dictionary(&DICTIONARY).expect("a fresh compressor takes a dictionary");
        Encoder { deflate }
    }
}

impl Encoder {
    pub fn encode(&mut self, frame: &Frame, out: &mut Vec<u8>) {
        let (of_type, fin, body) = match frame {
            Frame::Data { stream, fin, bytes } => {
                head(stream & 0x7fff_ffff, *fin, bytes.len(), out);
                return out.extend_from_slice(bytes);
            }
            Frame::SynStream { stream, fin, headers } => {
                let mut body = numbers(&[*stream, 0]);
                body.extend_from_slice(&[0, 0]);
                self.headers(headers, &mut body);
                (SYN_STREAM, *fin, body)
            }
            Frame::SynReply { stream, fin, headers } => (SYN_REPLY, *fin, self.with_headers(*stream, headers)),
            Frame::Headers { stream, fin, headers } => (HEADERS, *fin, self.with_headers(*stream, headers)),
            Frame::Reset { stream, code } => (RST_STREAM, false, numbers(&[*stream, *code])),
            Frame::Settings(settings) => {
                let mut body = numbers(&[settings.len() as u32]);
                settings.iter().for_each(|(id, value)| body.extend(numbers(&[*id, *value])));
                (SETTINGS, false, body)
            }
            Frame::Ping(id) => (PING, false, numbers(&[*id])),
            Frame::GoAway { last, code } => (GOAWAY, false, numbers(&[*last, *code])),
            Frame::WindowUpdate { stream, delta } => (WINDOW_UPDATE, false, numbers(&[*stream, *delta])),
            Frame::Other(of_type) => (*of_type, false, Vec::new()),
        };
        head(1 << 31 | u32::from(VERSION) << 16 | u32::from(of_type), fin, body.len(), out);
        out.extend_from_slice(&body);
    }

    fn with_headers(&mut self, stream: u32, headers: &Headers) -> Vec<u8> {
        let mut body = numbers(&[stream]);
        self.headers(headers, &mut body);
        body
    }

    fn headers(&mut self, headers: &Headers, body: &mut Vec<u8>) {
        let mut text = numbers(&[headers.len() as u32]);
        for word in headers.iter().flat_map(|(name, value)| [name, value]) {
            text.extend_from_slice(&(word.len() as u32).to_be_bytes());
            text.extend_from_slice(word.as_bytes());
        }
        let mut rest = &text[..];
        loop {
            body.reserve(rest.len().max(256));
            let before = self.deflate.total_in();
            let result = self.deflate.compress_vec(rest, body, FlushCompress::Sync);
            result.expect("a compressor that is never finished takes everything");
            rest = &rest[(self.deflate.total_in() - before) as usize..];
            if rest.is_empty() && body.len() < body.capacity() {
                return;
            }
        }
    }
}

fn numbers(all: &[u32]) -> Vec<u8> {
    all.iter().flat_map(|number| number.to_be_bytes()).collect()
}

fn head(first: u32, fin: bool, length: usize, out: &mut Vec<u8>) {
    debug_assert!(length < 1 << 24, "frames are cut before they are written");
    out.extend_from_slice(&first.to_be_bytes());
    out.extend_from_slice(&(u32::from(fin) << 24 | length as u32 & 0x00ff_ffff).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Rng;

    #[test]
    fn the_dictionary_is_that_of_the_protocol() {
        let (mut a, mut b) = (1u32, 0u32);
        for byte in DICTIONARY.iter() {
            a = (a + u32::from(*byte)) % 65_521;
            b = (b + a) % 65_521;
        }
        assert_eq!((DICTIONARY.len(), b << 16 | a), (1423, 0xe3c6_a7c2));
    }

    fn word(rng: &mut Rng) -> String {
        let length = rng.below(30) as usize;
        rng.suffix(length)
    }

    fn frame(rng: &mut Rng) -> Frame {
        let (stream, fin) = (rng.below(1 << 31) as u32, rng.chance(300));
        let headers: Headers = (0..rng.below(6)).map(|_| (word(rng), word(rng))).collect();
        match rng.below(9) {
            0 => Frame::SynStream { stream, fin, headers },
            1 => Frame::SynReply { stream, fin, headers },
            2 => Frame::Headers { stream, fin, headers },
            3 => Frame::Reset { stream, code: 5 },
            4 => Frame::Settings(vec![(INITIAL_WINDOW, rng.below(1 << 31) as u32)]),
            5 => Frame::Ping(rng.below(1 << 32) as u32),
            6 => Frame::GoAway { last: stream, code: 0 },
            7 => Frame::WindowUpdate { stream, delta: rng.below(1 << 31) as u32 },
            _ => Frame::Data { stream, fin, bytes: vec![7; rng.below(5000) as usize].into() },
        }
    }

    #[test]
    fn frames_survive_the_wire_in_any_pieces() {
        for seed in 0..100 {
            let mut rng = Rng::new(seed);
            let frames: Vec<Frame> = (0..30).map(|_| frame(&mut rng)).collect();
            let (mut encoder, mut wire) = (Encoder::default(), Vec::new());
            frames.iter().for_each(|frame| encoder.encode(frame, &mut wire));
            let (mut decoder, mut seen, mut rest) = (Decoder::default(), Vec::new(), &wire[..]);
            while !rest.is_empty() {
                let piece = 1 + rng.below(rest.len().min(700) as u64) as usize;
                decoder.buffer().extend_from_slice(&rest[..piece]);
                rest = &rest[piece..];
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push(frame);
                }
            }
            assert_eq!(seen, frames, "seed {seed}");
        }
    }

    #[test]
    fn damaged_frames_are_errors_and_nothing_worse() {
        for seed in 0..3000 {
            let mut rng = Rng::new(seed);
            let (mut encoder, mut wire) = (Encoder::default(), Vec::new());
            (0..5).for_each(|_| encoder.encode(&frame(&mut rng), &mut wire));
            for _ in 0..1 + rng.below(8) {
                let at = rng.below(wire.len() as u64) as usize;
                wire[at] = rng.next_u64() as u8;
            }
            let mut decoder = Decoder::default();
            decoder.buffer().extend_from_slice(&wire);
            while let Ok(Some(_)) = decoder.next_frame() {}
        }
    }

    #[test]
    fn a_bomb_of_headers_is_refused() {
        let headers = vec![("a".to_owned(), "x".repeat(HEADERS_MAX_BYTES))];
        let mut wire = Vec::new();
        Encoder::default().encode(&Frame::SynStream { stream: 1, fin: false, headers }, &mut wire);
        assert!(wire.len() < 2000);
        let mut decoder = Decoder::default();
        decoder.buffer().extend_from_slice(&wire);
        assert!(matches!(decoder.next_frame(), Err(Error::Malformed("too long headers"))));
    }
}
