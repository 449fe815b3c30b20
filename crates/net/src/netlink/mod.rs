//! Netlink: messages, attributes, sockets. Our own, because what we need is small and the batches of nf_tables fit no
//! library that is pure Rust.
//!
//! Invariants: a socket belongs to the network namespace of the thread that opened it, for good; parsing is total.

pub(crate) mod conntrack;
pub(crate) mod nft;
pub(crate) mod route;

use crate::error::NetlinkError;
use rustix::fd::OwnedFd;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use std::io;
use std::time::Duration;

pub(crate) const NLM_F_REQUEST: u16 = 1;
pub(crate) const NLM_F_ACK: u16 = 4;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_REPLACE: u16 = 0x100;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;
const HEADER_BYTES: usize = 16;
/// The kernel never sends more than this in one piece.
const RECEIVE_BYTES: usize = 64 * 1024;
const RECEIVE_BUFFER_BYTES: usize = 8 * 1024 * 1024;
/// The kernel answers at once; this only keeps a bug from hanging the node.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// A dump that changed under our hands is asked for again this often.
const DUMP_TRIES: usize = 10;

/// One or more messages under construction.
#[derive(Default)]
pub(crate) struct Messages {
    bytes: Vec<u8>,
    starts: Vec<usize>,
}

impl Messages {
    pub fn new() -> Messages {
        Messages::default()
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Begins a message; everything up to the next `begin` belongs to it.
    pub fn begin(&mut self, kind: u16, flags: u16, header: &[u8]) {
        self.finish();
        self.starts.push(self.bytes.len());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 8]);
        self.bytes.extend_from_slice(header);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(&mut self) {
        if let Some(start) = self.starts.last().copied() {
            let len = (self.bytes.len() - start) as u32;
            self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
        }
    }

    /// Lets the last message be acknowledged.
    fn acknowledge_last(&mut self) {
        if let Some(start) = self.starts.last().copied() {
            self.bytes[start + 6] |= NLM_F_ACK as u8;
        }
    }

    /// Numbers the messages from `sequence` on.
    fn number(&mut self, sequence: u32) {
        for (at, start) in self.starts.iter().enumerate() {
            let number = sequence.wrapping_add(at as u32);
            self.bytes[start + 8..start + 12].copy_from_slice(&number.to_ne_bytes());
        }
    }

    pub fn attr(&mut self, kind: u16, value: &[u8]) {
        self.bytes.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    /// A number in the machine's order, as rtnetlink has it.
    pub fn u32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_ne_bytes());
    }

    /// A number in the network's order, as netfilter has it.
    pub fn be32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_be_bytes());
    }

    /// A string with its zero.
    pub fn text(&mut self, kind: u16, value: &str) {
        self.bytes.extend_from_slice(&((value.len() + 5) as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    /// Everything that `inside` writes becomes one nested attribute.
    pub fn nest(&mut self, kind: u16, inside: impl FnOnce(&mut Messages)) {
        let start = self.open(kind);
        inside(self);
        self.close(start);
    }

    pub fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        start
    }

    pub fn close(&mut self, start: usize) {
        let len = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    }
}

/// The attributes in `bytes`: kind and value. Ends at the first that does not fit.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.get(..4)?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & NLA_TYPE_MASK;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// The value of the first attribute of this kind.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

pub(crate) fn text_of(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

pub(crate) fn u32_of(value: &[u8]) -> Option<u32> {
    value.get(..4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
}

pub(crate) struct Header<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    pub payload: &'a [u8],
}

/// The messages that are packed into `bytes`.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Header<'_>> {
    std::iter::from_fn(move || {
        let len = u32_of(bytes)? as usize;
        let message = bytes.get(..len)?;
        let header = message.get(..HEADER_BYTES)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some(Header {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: u32_of(&header[8..])?,
            payload: &message[HEADER_BYTES..],
        })
    })
}

pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

fn failed(error: io::Error) -> NetlinkError {
    NetlinkError { errno: error.raw_os_error().unwrap_or(libc::EIO), message: None, index: 0 }
}

impl Socket {
    /// `None`: rtnetlink, whose number is 0.
    pub fn open(protocol: Option<Protocol>) -> io::Result<Socket> {
        let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        rustix::net::bind(&fd, &SocketAddrNetlink::new(0, 0))?;
        let _ = sockopt::set_socket_recv_buffer_size_force(&fd, RECEIVE_BUFFER_BYTES)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(&fd, RECEIVE_BUFFER_BYTES));
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        extended_answers(&fd);
        Ok(Socket { fd, sequence: 1, buffer: vec![0; RECEIVE_BYTES] })
    }

    fn send(&mut self, messages: &mut Messages) -> Result<u32, NetlinkError> {
        messages.finish();
        let first = self.sequence;
        messages.number(first);
        self.sequence = self.sequence.wrapping_add(messages.starts.len() as u32);
        if messages.len() > 100_000 {
            let _ = sockopt::set_socket_send_buffer_size_force(&self.fd, messages.len() * 2);
        }
        rustix::net::send(&self.fd, &messages.bytes, SendFlags::empty()).map_err(|error| failed(error.into()))?;
        Ok(first)
    }

    fn receive(&mut self, flags: RecvFlags) -> io::Result<usize> {
        loop {
            match rustix::net::recv(&self.fd, &mut self.buffer[..], flags) {
                Ok((read, _)) => return Ok(read),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends messages that are each acknowledged, and waits for all answers. The first error is returned; messages after
    /// it have been carried out nevertheless.
    pub fn request(&mut self, mut messages: Messages) -> Result<(), NetlinkError> {
        let count = messages.starts.len();
        for start in &messages.starts {
            messages.bytes[start + 6] |= NLM_F_ACK as u8;
        }
        let first = self.send(&mut messages)?;
        let (mut answered, mut error) = (0, None);
        while answered < count {
            let read = self.receive(RecvFlags::empty()).map_err(failed)?;
            for header in self::messages(&self.buffer[..read]) {
                let index = header.sequence.wrapping_sub(first) as usize;
                if header.kind == NLMSG_ERROR && index < count {
                    answered += 1;
                    if let Err(found) = answer(&header, index) {
                        error.get_or_insert(found);
                    }
                }
            }
        }
        error.map_or(Ok(()), Err)
    }

    /// Sends one atomic batch of netfilter: `messages` between a begin and an end. Nothing of it has happened on error.
    pub fn batch(&mut self, messages: &mut Messages) -> Result<(), NetlinkError> {
        let count = messages.starts.len();
        let first = self.send(messages)?;
        // The kernel has worked the batch off before `send` returns, so all answers are there already: errors of single
        // messages first, and the acknowledgement of the last one.
        let (mut error, mut acknowledged) = (None, false);
        loop {
            let read = match self.receive(RecvFlags::DONTWAIT) {
                Ok(read) => read,
                Err(gone) if gone.kind() == io::ErrorKind::WouldBlock => break,
                Err(other) => return Err(failed(other)),
            };
            for header in self::messages(&self.buffer[..read]) {
                let index = header.sequence.wrapping_sub(first) as usize;
                if header.kind != NLMSG_ERROR || index >= count {
                    continue;
                }
                match answer(&header, index) {
                    Ok(()) => acknowledged = true,
                    Err(found) => {
                        error.get_or_insert(found);
                    }
                }
            }
        }
        match error {
            Some(error) => Err(error),
            None if acknowledged => Ok(()),
            None => Err(NetlinkError { errno: libc::EIO, message: Some("no answer to the batch".into()), index: 0 }),
        }
    }

    /// Sends one request whose answer has many parts and shows each: its kind and payload.
    pub fn dump(
        &mut self,
        make: &dyn Fn(&mut Messages),
        mut visit: impl FnMut(u16, &[u8]),
        mut again: impl FnMut(),
    ) -> Result<(), NetlinkError> {
        for _ in 0..DUMP_TRIES {
            let mut messages = Messages::new();
            make(&mut messages);
            let first = self.send(&mut messages)?;
            let (mut done, mut interrupted) = (false, false);
            while !done {
                let read = self.receive(RecvFlags::empty()).map_err(failed)?;
                let buffer = std::mem::take(&mut self.buffer);
                let mut outcome = Ok(());
                for header in self::messages(&buffer[..read]) {
                    if header.sequence != first {
                        continue;
                    }
                    interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                    match header.kind {
                        NLMSG_DONE => done = true,
                        NLMSG_ERROR => {
                            done = true;
                            outcome = answer(&header, 0);
                        }
                        kind => visit(kind, header.payload),
                    }
                }
                self.buffer = buffer;
                outcome?;
            }
            if !interrupted {
                return Ok(());
            }
            again();
        }
        Err(NetlinkError { errno: libc::EAGAIN, message: Some("the state keeps changing".into()), index: 0 })
    }

    /// Sends one request that has one answer.
    pub fn get(&mut self, mut messages: Messages) -> Result<(u16, Vec<u8>), NetlinkError> {
        let first = self.send(&mut messages)?;
        loop {
            let read = self.receive(RecvFlags::empty()).map_err(failed)?;
            for header in self::messages(&self.buffer[..read]) {
                if header.sequence != first {
                    continue;
                }
                if header.kind == NLMSG_ERROR {
                    answer(&header, 0)?;
                }
                return Ok((header.kind, header.payload.to_vec()));
            }
        }
    }
}

/// The outcome that an error message tells; number 0 is an acknowledgement.
fn answer(header: &Header<'_>, index: usize) -> Result<(), NetlinkError> {
    let errno = u32_of(header.payload).map_or(libc::EBADMSG, |number| -(number as i32));
    if errno == 0 {
        return Ok(());
    }
    let mut message = None;
    if header.flags & NLM_F_ACK_TLVS != 0 {
        // The refused message follows the number, whole or (capped) only its header.
        let echoed = u32_of(header.payload.get(4..).unwrap_or(&[])).unwrap_or(0) as usize;
        let skip = 4 + if header.flags & NLM_F_CAPPED != 0 { HEADER_BYTES } else { echoed.next_multiple_of(4) };
        message = header.payload.get(skip..).and_then(|rest| attribute(rest, NLMSGERR_ATTR_MSG)).map(text_of);
    }
    Err(NetlinkError { errno, message, index })
}

/// Asks for error texts instead of whole echoes; old kernels that do not know these options do without.
fn extended_answers(fd: &OwnedFd) {
    use std::os::fd::AsRawFd;
    for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
        let on: libc::c_int = 1;
        // SAFETY: the descriptor is open, and the value is an int of the length told.
        unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_NETLINK,
                option,
                std::ptr::from_ref(&on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Rng;

    #[test]
    fn attributes_are_read_as_written() {
        let mut all = Messages::new();
        all.begin(7, 0, &[1, 2, 3, 4]);
        all.text(1, "eth0");
        all.nest(2, |inner| inner.u32(3, 9));
        all.finish();
        let header = messages(&all.bytes).next().unwrap();
        assert_eq!((header.kind, header.flags, header.payload.len()), (7, NLM_F_REQUEST, 4 + 12 + 12));
        let attrs: Vec<_> = attributes(&header.payload[4..]).collect();
        assert_eq!(text_of(attrs[0].1), "eth0");
        assert_eq!(attribute(attrs[1].1, 3).and_then(u32_of), Some(9));
    }

    #[test]
    fn any_bytes_are_parsed() {
        let mut rng = Rng::new(5);
        for _ in 0..20_000 {
            let bytes: Vec<u8> =
                (0..rng.below(80)).map(|_| if rng.chance(600) { 0 } else { rng.next_u64() as u8 }).collect();
            for header in messages(&bytes) {
                let _ = answer(&header, 0);
                attributes(header.payload).for_each(|(_, value)| drop(text_of(value)));
            }
        }
    }
}
