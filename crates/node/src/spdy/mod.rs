//! SPDY/3.1 as Kubernetes' clients speak it inside an upgraded connection: many byte streams over one wire.
//!
//! [`frame`] turns bytes into frames and back, with the compressed header blocks; [`session`] runs the streams.
//!
//! Not here: HTTP over SPDY (requests and answers), pushed streams, credentials. What a stream means is the caller's.
//!
//! Invariants: bytes from outside make an error, never a panic; decompressed headers, streams and waiting bytes have
//! limits; a stream's bytes come in order and end once.
//!
//! Flow control: what is read is always acknowledged. Windows of the other side are counted always, but waited for only
//! once it has shown that it uses them (a window update, or settings with a window): the common client library neither
//! grants nor asks, and would be waited for for ever. With such a client the wire itself holds back whoever is too
//! fast.

pub mod frame;
mod session;

pub use frame::{Frame, Headers};
pub use session::{Receiving, Sending, Session, Stream};

/// What can go wrong on a session.
#[derive(Debug)]
pub enum Error {
    /// The other side sent what the protocol does not allow.
    Malformed(&'static str),
    /// The wire or the stream is closed.
    Closed,
    Wire(std::io::Error),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Malformed(what) => write!(f, "a SPDY peer breaks the protocol: {what}"),
            Error::Closed => f.write_str("the SPDY stream is closed"),
            Error::Wire(error) => write!(f, "the wire of a SPDY session broke: {error}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Error {
        Error::Wire(error)
    }
}
