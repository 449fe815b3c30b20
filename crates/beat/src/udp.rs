//! The threads that send and hear. Both ask for the highest priority, since what they do is little and late is wrong; where
//! that is not allowed they go on without.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use turn::Turn;

use crate::listener::{EVERY_MS, Listener, Rest};
use crate::packet::{Keys, MAX_BYTES, Signer};

/// The kernel keeps so much of what comes between two looks: a second of 5,000 nodes.
const BUFFER_BYTES: usize = 16 * 1024 * 1024;
const STACK_BYTES: usize = 128 * 1024;

/// A thread that runs until this is dropped.
struct Running {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Runs `work` again and again; it says how long to rest in between.
    fn start(
        name: &str,
        sockets: Vec<UdpSocket>,
        mut work: impl FnMut(&[UdpSocket]) -> Rest + Send + 'static,
    ) -> io::Result<Running> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let stopped = stop.clone();
        let run = move || {
            // Without the right to it, it stays as it is.
            let _ = turn::take(Turn::First);
            loop {
                let (rest_ms, sockets) = match work(&sockets) {
                    Rest::For(ms) => (ms, &[][..]),
                    Rest::UntilHeard(ms) => (ms, &sockets[..]),
                };
                let mut awaited = vec![PollFd::new(&stopped, PollFlags::IN)];
                awaited.extend(sockets.iter().map(|socket| PollFd::new(socket, PollFlags::IN)));
                let rest = Timespec::try_from(Duration::from_millis(rest_ms)).ok();
                // A wait that a signal breaks off is a short one.
                let _ = poll(&mut awaited, rest.as_ref());
                if awaited[0].revents().contains(PollFlags::IN) {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name(name.into()).stack_size(STACK_BYTES).spawn(run)?;
        Ok(Running { stop, thread: Some(thread) })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A counter that is full has told it already.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // One that panicked does no more, either.
            let _ = thread.join();
        }
    }
}

/// A listener; it stops when this is dropped.
pub struct Hearing {
    _running: Running,
}

/// Hears what comes to `sockets`. `tell` is told all silent nodes whenever they change.
///
/// # Errors
/// The sockets or the thread cannot be had.
pub fn hear(
    sockets: Vec<UdpSocket>,
    keys: Keys,
    mut tell: impl FnMut(BTreeSet<String>) + Send + 'static,
) -> io::Result<Hearing> {
    for socket in &sockets {
        socket.set_nonblocking(true)?;
        // A smaller buffer loses datagrams only of thousands of nodes.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, BUFFER_BYTES);
    }
    let (began, mut listener, mut bytes) = (Instant::now(), Listener::new(keys), [0; MAX_BYTES + 1]);
    let look = move |sockets: &[UdpSocket]| {
        // What comes from here on is heard at the next look, so nobody is silent for it.
        let now_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        for socket in sockets {
            drain(socket, &mut bytes, |bytes| _ = listener.hear(bytes, now_ms));
        }
        if listener.look(now_ms) {
            tell(listener.silent());
        }
        listener.rest(now_ms)
    };
    Ok(Hearing { _running: Running::start("beats", sockets, look)? })
}

/// Takes all that has come; errors of a socket (an earlier answer that nobody wanted) are no datagrams.
fn drain(socket: &UdpSocket, bytes: &mut [u8], mut take: impl FnMut(&[u8])) {
    /// One socket must not keep the thread from the others for ever.
    const MOST: usize = 100_000;
    for _ in 0..MOST {
        match socket.recv(bytes) {
            Ok(length) => take(&bytes[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => {}
        }
    }
}

/// A node that sends; it stops when this is dropped.
pub struct Sender {
    _running: Running,
}

impl Sender {
    /// Sends signs of life of `node` to all `servers` (`HOST:PORT`), whose names are looked up again from time to time.
    ///
    /// # Errors
    /// The thread cannot be had.
    pub fn start(node: String, key: &[u8], servers: Vec<(String, u16)>) -> io::Result<Sender> {
        let (mut way, signer) = (Way::default(), Signer::new(key));
        let send = move |_: &[UdpSocket]| {
            way.send(&node, &signer, &servers);
            Rest::For(EVERY_MS)
        };
        Ok(Sender { _running: Running::start("beat", Vec::new(), send)? })
    }
}

/// Sockets to the servers, made anew from time to time: addresses change, and so does the machine's own.
#[derive(Default)]
struct Way {
    sockets: Vec<UdpSocket>,
    made: Option<Instant>,
    sequence: u64,
    packet: Vec<u8>,
}

impl Way {
    fn send(&mut self, node: &str, signer: &Signer, servers: &[(String, u16)]) {
        /// How long sockets and looked-up names count.
        const KEPT: Duration = Duration::from_secs(30);
        if self.made.is_none_or(|made| made.elapsed() > KEPT) {
            let found = servers.iter().flat_map(|(host, port)| (host.as_str(), *port).to_socket_addrs()).flatten();
            self.sockets = found.filter_map(|server| connect(server).ok()).collect();
            self.made = Some(Instant::now());
        }
        self.sequence = next(self.sequence);
        signer.write(node, self.sequence, &mut self.packet);
        for socket in &self.sockets {
            // What cannot be sent now is made up for by the next one.
            let _ = socket.send(&self.packet);
        }
    }
}

fn connect(server: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    socket.connect(server)?;
    Ok(socket)
}

/// A number above `last`, also after a new start: the time, unless the clock went back.
fn next(last: u64) -> u64 {
    let micros = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
    u64::try_from(micros).unwrap_or(u64::MAX).max(last.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_is_heard_until_it_stops() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let (told, silences) = std::sync::mpsc::channel();
        let hearing = hear(vec![socket], Keys::new(b"secret"), move |silent| drop(told.send(silent))).unwrap();
        let key = Keys::new(b"secret").of("one");
        let place = vec![("127.0.0.1".to_owned(), port)];
        let sender = Sender::start("one".to_owned(), &key, place.clone()).unwrap();
        let other = Sender::start("two".to_owned(), &Keys::new(b"secret").of("two"), place.clone()).unwrap();
        std::thread::sleep(Duration::from_millis(2 * EVERY_MS));
        drop(sender);
        let silent = silences.recv_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!(silent, BTreeSet::from(["one".to_owned()]));
        let again = Sender::start("one".to_owned(), &key, place).unwrap();
        assert!(silences.recv_timeout(Duration::from_secs(30)).unwrap().is_empty());
        drop((again, other, hearing));
    }
}
