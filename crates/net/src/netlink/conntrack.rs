//! The kernel's table of connections: find entries, delete entries.

use super::{Messages, NLM_F_DUMP, Socket, attribute};
use crate::address::ip_of;
use crate::error::Error;
use rustix::net::netlink::NETFILTER;
use std::cell::RefCell;
use std::net::IpAddr;

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tuple {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub source_port: u16,
    pub destination_port: u16,
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub original: Tuple,
    pub reply: Tuple,
    raw: Vec<u8>,
    family: u8,
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let ip = attribute(bytes, 1)?;
    let protocol = attribute(bytes, 2)?;
    let port = |kind| attribute(protocol, kind)?.try_into().ok().map(u16::from_be_bytes);
    Some(Tuple {
        source: attribute(ip, 1).or_else(|| attribute(ip, 3)).and_then(ip_of)?,
        destination: attribute(ip, 2).or_else(|| attribute(ip, 4)).and_then(ip_of)?,
        protocol: *attribute(protocol, 1)?.first()?,
        source_port: port(2).unwrap_or(0),
        destination_port: port(3).unwrap_or(0),
    })
}

fn entry(payload: &[u8]) -> Option<Entry> {
    let (header, attrs) = payload.split_at_checked(4)?;
    let raw = attribute(attrs, TUPLE_ORIGINAL)?;
    let reply = tuple(attribute(attrs, TUPLE_REPLY)?)?;
    Some(Entry { original: tuple(raw)?, reply, raw: raw.to_vec(), family: header[0] })
}

/// Reads one answer as a connection.
pub(crate) fn read(payload: &[u8]) {
    let _ = entry(payload);
}

pub(crate) struct Conntrack(Socket);

impl Conntrack {
    pub fn open() -> Result<Conntrack, Error> {
        Socket::open(Some(NETFILTER)).map(Conntrack).map_err(Error::io("open a connection-tracking socket"))
    }

    /// Deletes the entries of this family that `stale` picks, and returns their number.
    pub fn delete(&mut self, family: u8, stale: impl Fn(&Entry) -> bool) -> Result<usize, Error> {
        let found = RefCell::new(Vec::new());
        let make = |m: &mut Messages| m.begin(GET, NLM_F_DUMP, &[family, 0, 0, 0]);
        let visit = |_, payload: &[u8]| found.borrow_mut().extend(entry(payload).filter(&stale));
        self.0.dump(&make, visit, || found.borrow_mut().clear()).map_err(Error::netlink("list the connections"))?;
        let found = found.into_inner();
        for entry in &found {
            let mut m = Messages::new();
            m.begin(DELETE, 0, &[entry.family, 0, 0, 0]);
            m.nest(TUPLE_ORIGINAL, |m| m.raw(&entry.raw));
            match self.0.request(m) {
                // Ended by itself in the meantime.
                Err(error) if error.errno == libc::ENOENT => {}
                other => other.map_err(Error::netlink("delete a connection"))?,
            }
        }
        Ok(found.len())
    }
}
