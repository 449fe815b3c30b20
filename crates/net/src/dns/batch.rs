//! Many packets for one call of the kernel: most of what a question costs is the way in and out.

use std::io;
use std::mem::{MaybeUninit, zeroed};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

/// Packets taken at once.
const PACKETS: usize = 64;
/// The longest question that is read; a longer one is cut, and then refused as malformed.
const QUESTION_MAX_BYTES: usize = 1024;
/// From one question's place to the next. Were it a power of two, the beginnings of all would fall into the same few
/// sets of the processor's cache.
const STRIDE_BYTES: usize = QUESTION_MAX_BYTES + 64;

/// Has answers sent in one piece, which saves numbering their fragments, or not at all.
///
/// # Errors
/// When the socket is of the other family.
pub fn whole_packets(socket: &UdpSocket, v4: bool) -> io::Result<()> {
    let (level, option, value) = if v4 {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)
    };
    // SAFETY: the option is a number, and the pointer is to one that outlives the call, with its true size.
    let outcome = unsafe {
        let bytes = size_of::<libc::c_int>() as libc::socklen_t;
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), bytes)
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Questions that came together, and the answers to them.
pub struct Batch {
    questions: Box<[[u8; STRIDE_BYTES]; PACKETS]>,
    lengths: [usize; PACKETS],
    clients: [libc::sockaddr_storage; PACKETS],
    client_lengths: [libc::socklen_t; PACKETS],
    /// All answers, one after the other.
    answers: Vec<u8>,
    /// Of each answer its question and where it ends.
    ends: Vec<(usize, usize)>,
}

impl Batch {
    pub fn new() -> Batch {
        Batch {
            questions: Box::new([[0; STRIDE_BYTES]; PACKETS]),
            lengths: [0; PACKETS],
            // SAFETY: a socket address of zeros is one of no family.
            clients: [unsafe { zeroed() }; PACKETS],
            client_lengths: [0; PACKETS],
            answers: Vec::new(),
            ends: Vec::with_capacity(PACKETS),
        }
    }

    /// Waits until something has come, and takes it; the number of questions.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        self.answers.clear();
        self.ends.clear();
        let mut parts: [MaybeUninit<libc::iovec>; PACKETS] = [const { MaybeUninit::uninit() }; PACKETS];
        // SAFETY: a header of zeros has no parts and no address.
        let mut headers: [libc::mmsghdr; PACKETS] = [unsafe { zeroed() }; PACKETS];
        for at in 0..PACKETS {
            let part = libc::iovec { iov_base: self.questions[at].as_mut_ptr().cast(), iov_len: QUESTION_MAX_BYTES };
            let header = &mut headers[at].msg_hdr;
            header.msg_iov = parts[at].write(part);
            header.msg_iovlen = 1;
            header.msg_name = (&raw mut self.clients[at]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        }
        // SAFETY: every header points to a part and an address of ours that outlive the call, with their true sizes.
        let taken = unsafe {
            let no_limit = std::ptr::null_mut();
            let flags = libc::MSG_WAITFORONE as _;
            libc::recvmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), PACKETS as libc::c_uint, flags, no_limit)
        };
        let taken = usize::try_from(taken).map_err(|_| io::Error::last_os_error())?;
        for (at, header) in headers.iter().enumerate().take(taken) {
            self.lengths[at] = (header.msg_len as usize).min(QUESTION_MAX_BYTES);
            self.client_lengths[at] = header.msg_hdr.msg_namelen;
        }
        Ok(taken)
    }

    pub fn question(&self, at: usize) -> &[u8] {
        &self.questions[at][..self.lengths[at]]
    }

    /// Who asked.
    pub fn client(&self, at: usize) -> Option<SocketAddr> {
        let client = &raw const self.clients[at];
        match libc::c_int::from(self.clients[at].ss_family) {
            libc::AF_INET => {
                // SAFETY: the family says what the address is, and the storage is large and aligned enough for any.
                let of = unsafe { &*client.cast::<libc::sockaddr_in>() };
                let ip = Ipv4Addr::from(u32::from_be(of.sin_addr.s_addr));
                Some(SocketAddr::new(ip.into(), u16::from_be(of.sin_port)))
            }
            libc::AF_INET6 => {
                // SAFETY: as above.
                let of = unsafe { &*client.cast::<libc::sockaddr_in6>() };
                Some(SocketAddr::new(Ipv6Addr::from(of.sin6_addr.s6_addr).into(), u16::from_be(of.sin6_port)))
            }
            _ => None,
        }
    }

    /// Answers the question at `at` with the next [`Batch::send`].
    pub fn answer(&mut self, at: usize, answer: &[u8]) {
        self.answers.extend_from_slice(answer);
        self.ends.push((at, self.answers.len()));
    }

    /// Sends all answers. What the kernel does not take is lost, as UDP may; the client asks again.
    pub fn send(&mut self, socket: &UdpSocket) {
        if self.ends.is_empty() {
            return;
        }
        let mut parts: [MaybeUninit<libc::iovec>; PACKETS] = [const { MaybeUninit::uninit() }; PACKETS];
        // SAFETY: a header of zeros has no parts and no address.
        let mut headers: [libc::mmsghdr; PACKETS] = [unsafe { zeroed() }; PACKETS];
        let mut start = 0;
        for (place, (at, end)) in self.ends.iter().enumerate() {
            let answer = &mut self.answers[start..*end];
            let part = libc::iovec { iov_base: answer.as_mut_ptr().cast(), iov_len: answer.len() };
            let header = &mut headers[place].msg_hdr;
            header.msg_iov = parts[place].write(part);
            header.msg_iovlen = 1;
            header.msg_name = (&raw mut self.clients[*at]).cast();
            header.msg_namelen = self.client_lengths[*at];
            start = *end;
        }
        let mut sent = 0;
        while sent < self.ends.len() {
            // SAFETY: every header points to a part and an address of ours that outlive the call, with their true sizes.
            let taken = unsafe {
                let rest = (self.ends.len() - sent) as libc::c_uint;
                libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr().add(sent), rest, libc::MSG_DONTWAIT as _)
            };
            match usize::try_from(taken) {
                Ok(taken) if taken > 0 => sent += taken,
                // The first of the rest could not be sent, for a reason of its own: the others may.
                _ => sent += 1,
            }
        }
    }
}
