//! Many packets for one call of the kernel: most of what a question costs is the way in and out.
//!
//! Answers to one client go through the kernel as one packet, which is cut where it arrives (`UDP_SEGMENT`).

use std::cmp::Reverse;
use std::io;
use std::mem::{MaybeUninit, zeroed};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

/// Packets taken at once.
pub const PACKETS: usize = 64;
/// The longest question that is read; a longer one is cut, and then refused as malformed.
const QUESTION_MAX_BYTES: usize = 1024;
/// From one question's place to the next. Were it a power of two, the beginnings of all would fall into the same few
/// sets of the processor's cache.
const STRIDE_BYTES: usize = QUESTION_MAX_BYTES + 64;
/// Answers that go together are no more than a packet can hold.
const TOGETHER_MAX_BYTES: usize = 60_000;

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
    /// The same in the order in which they are sent.
    parts: Vec<Part>,
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
            parts: Vec::with_capacity(PACKETS),
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

    /// Sends all answers, those to one client together. What the kernel does not take is lost, as UDP may; the client asks
    /// again.
    pub fn send(&mut self, socket: &UdpSocket) {
        let mut start = 0;
        self.parts.clear();
        for (question, end) in self.ends.drain(..) {
            let client = client_key(&self.clients[question]);
            self.parts.push(Part { client, bytes: end - start, start, question });
            start = end;
        }
        // Of one client the longest first: what is cut into pieces of one size may end with a shorter one.
        self.parts.sort_unstable_by_key(|part| (part.client, Reverse(part.bytes), part.start));
        if self.send_parts(socket, true) > 0 {
            // A link that cannot cut, for instance: by one, everything that was not taken.
            self.send_parts(socket, false);
        }
    }

    /// Sends what is in `parts`, and keeps there what was refused together; how much that is.
    fn send_parts(&mut self, socket: &UdpSocket, together: bool) -> usize {
        let mut vectors: [MaybeUninit<libc::iovec>; PACKETS] = [const { MaybeUninit::uninit() }; PACKETS];
        // SAFETY: a header of zeros has no parts and no address.
        let mut headers: [libc::mmsghdr; PACKETS] = [unsafe { zeroed() }; PACKETS];
        let mut sizes = [SegmentSize::new(0); PACKETS];
        let mut ends = [0; PACKETS];
        let (mut count, mut at) = (0, 0);
        while at < self.parts.len() {
            let run = if together { run(&self.parts[at..]) } else { 1 };
            let first = self.parts[at];
            let header = &mut headers[count].msg_hdr;
            header.msg_name = (&raw mut self.clients[first.question]).cast();
            header.msg_namelen = self.client_lengths[first.question];
            header.msg_iov = vectors[at..].as_mut_ptr().cast();
            header.msg_iovlen = run as _;
            if run > 1 {
                sizes[count] = SegmentSize::new(first.bytes as u16);
                header.msg_control = (&raw mut sizes[count]).cast();
                header.msg_controllen = size_of::<SegmentSize>() as _;
            }
            for (vector, part) in vectors[at..].iter_mut().zip(&self.parts[at..at + run]) {
                let answer = &mut self.answers[part.start..part.start + part.bytes];
                vector.write(libc::iovec { iov_base: answer.as_mut_ptr().cast(), iov_len: answer.len() });
            }
            at += run;
            ends[count] = at;
            count += 1;
        }
        let (mut sent, mut refused) = (0, 0);
        while sent < count {
            // SAFETY: every header points to parts, a size and an address of ours that outlive the call, with their true sizes.
            let taken = unsafe {
                let rest = (count - sent) as libc::c_uint;
                libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr().add(sent), rest, libc::MSG_DONTWAIT as _)
            };
            match usize::try_from(taken) {
                Ok(taken) if taken > 0 => sent += taken,
                // The first of the rest could not be sent, for a reason of its own: the others may.
                _ => {
                    let from = if sent == 0 { 0 } else { ends[sent - 1] };
                    if ends[sent] - from > 1 {
                        self.parts.copy_within(from..ends[sent], refused);
                        refused += ends[sent] - from;
                    }
                    sent += 1;
                }
            }
        }
        self.parts.truncate(refused);
        refused
    }
}

/// An answer that is to be sent.
#[derive(Clone, Copy)]
struct Part {
    client: u64,
    bytes: usize,
    /// Where it begins among all answers.
    start: usize,
    question: usize,
}

/// How many parts from the first one on may go together: to one client, of one size but for a shorter last one.
fn run(parts: &[Part]) -> usize {
    let first = parts[0];
    if first.client == 0 {
        return 1;
    }
    let most = (TOGETHER_MAX_BYTES / first.bytes.max(1)).max(1);
    let equal =
        parts.iter().take(most).take_while(|part| (part.client, part.bytes) == (first.client, first.bytes)).count();
    let shorter = equal < most && parts.get(equal).is_some_and(|part| part.client == first.client);
    equal + usize::from(shorter)
}

/// Address and port of a client as one number; 0 for those whose answers go one by one.
fn client_key(client: &libc::sockaddr_storage) -> u64 {
    if libc::c_int::from(client.ss_family) != libc::AF_INET {
        return 0;
    }
    // SAFETY: the family says what the address is, and the storage is large and aligned enough for any.
    let of = unsafe { &*(&raw const *client).cast::<libc::sockaddr_in>() };
    u64::from(of.sin_addr.s_addr) << 16 | u64::from(of.sin_port)
}

/// The message beside a packet that says into pieces of which size the kernel is to cut it.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct SegmentSize {
    bytes: usize,
    level: libc::c_int,
    kind: libc::c_int,
    size: u16,
}

impl SegmentSize {
    fn new(size: u16) -> SegmentSize {
        // What follows the size up to the end is not part of the message.
        let bytes = std::mem::offset_of!(SegmentSize, size) + size_of::<u16>();
        SegmentSize { bytes, level: libc::SOL_UDP, kind: libc::UDP_SEGMENT, size }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::time::Duration;

    /// Clients ask for answers of given sizes, and get them whole, whatever went together.
    fn check(address: &str, clients: &[&[u16]]) {
        let server = UdpSocket::bind(address).unwrap();
        let mut asked = 0;
        let asking: Vec<(UdpSocket, &[u16])> = clients
            .iter()
            .map(|sizes| {
                let client = UdpSocket::bind(address).unwrap();
                client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                client.connect(server.local_addr().unwrap()).unwrap();
                for (number, size) in sizes.iter().enumerate() {
                    client.send(&[&[number as u8][..], &size.to_be_bytes()].concat()).unwrap();
                    asked += 1;
                }
                (client, *sizes)
            })
            .collect();
        let mut batch = Batch::new();
        while asked > 0 {
            let taken = batch.receive(&server).unwrap();
            for at in 0..taken {
                let [number, high, low] = *batch.question(at) else { panic!("no question of ours") };
                batch.answer(at, &vec![number; usize::from(u16::from_be_bytes([high, low]))]);
            }
            batch.send(&server);
            asked -= taken;
        }
        for (client, sizes) in asking {
            let mut seen = BTreeSet::new();
            let mut buffer = [0; 2048];
            for _ in sizes {
                let len = client.recv(&mut buffer).unwrap();
                assert!(buffer[..len].iter().all(|byte| *byte == buffer[0]), "pieces of several answers in one");
                assert_eq!(len, usize::from(sizes[usize::from(buffer[0])]));
                assert!(seen.insert(buffer[0]), "answered twice");
            }
        }
    }

    #[test]
    fn answers_that_go_together_arrive_one_by_one() {
        let many = vec![1232; 40];
        check("127.0.0.1:0", &[&[60, 60, 60, 52, 52, 40], &[100], &[70, 50], &many]);
        check("127.0.0.1:0", &[&[300; 50], &[300; 50]]);
        check("[::1]:0", &[&[60, 60, 50], &[80]]);
    }

    #[test]
    fn what_cannot_go_together_goes_one_by_one() {
        // More than one packet holds, another size, a client that is not known, another client.
        let most = 65_507 / 3;
        let part = |bytes| Part { client: 1, bytes, start: 0, question: 0 };
        assert_eq!(run(&[part(most); 5]), TOGETHER_MAX_BYTES / most);
        assert_eq!(run(&[part(9), part(9), part(5), part(5)]), 3);
        assert_eq!(run(&[Part { client: 0, ..part(9) }; 2]), 1);
        assert_eq!(run(&[part(9), Part { client: 2, ..part(9) }]), 1);
    }
}
