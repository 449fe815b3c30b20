//! The loop around [`answer`](super::answer): UDP and TCP, and the way to other servers for names that are not ours.
//!
//! Sockets to listen on are bound by the caller, in whatever network namespace it is ([`Sockets::bind`]); questions to
//! upstream servers leave from the namespace in which the server runs, which may be another one.
//!
//! UDP has a thread for each socket, which waits in the kernel and takes packets by the batch: a runtime's readiness costs
//! about as much as the answer. While many ask it looks at intervals and not at every packet, as a driver of a network card
//! does under load. What has to be asked elsewhere, and TCP, is left to the runtime.
//!
//! Limits: [`MAX_FORWARDS`] questions upstream at once, [`MAX_CONNECTIONS`] TCP clients, each closed after
//! [`IDLE_TIMEOUT`]. Beyond them clients get SERVFAIL, or no connection.

use crate::dns::answer::{Outcome, Transport, answer, limit};
use crate::dns::batch::{Batch, PACKETS};
use crate::dns::wire::{self, HEADER_BYTES, Owner, Reply, SERVER_FAILURE, Section, TYPE_A, TYPE_AAAA, TYPE_CNAME};
use crate::dns::zone::Zone;
use crate::error::Error;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use turn::Turn;

pub const MAX_FORWARDS: usize = 1024;
pub const MAX_CONNECTIONS: usize = 256;
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one upstream server has for its answer.
pub const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(2);
/// All upstream servers are tried this often.
const UPSTREAM_ROUNDS: usize = 2;
/// Room for questions that wait, so that a burst is not lost while the thread does not run.
const WAITING_BYTES: usize = 4 << 20;
/// Questions that came together from which on the server is busy: it then lets more gather before it looks again.
const BUSY_QUESTIONS: usize = 8;
/// How long questions gather. Waking a thread costs clients and server more than an answer does, so that who asks much is
/// answered sooner for it; a server that is not busy never waits.
const GATHER: Duration = Duration::from_micros(100);
/// How late a thread that gathers may wake; the usual 50 us would be half as much again.
const LATE_NS: u64 = 1_000;
/// After an error of the socket that was not about one packet.
const PAUSE: Duration = Duration::from_millis(1);
/// Replies of upstream servers may be as long as UDP allows.
const MAX_REPLY_BYTES: usize = 65_535;

/// Sockets of one address, bound and waiting.
pub struct Sockets {
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
    address: SocketAddr,
}

impl Sockets {
    /// Binds UDP and TCP on `address`, in the calling thread's network namespace. Port 0 takes a free one.
    ///
    /// # Errors
    /// When the address is not ours or in use.
    pub fn bind(address: SocketAddr) -> Result<Sockets, Error> {
        let bind = || -> io::Result<Sockets> {
            let tcp = std::net::TcpListener::bind(address)?;
            let address = tcp.local_addr()?;
            let udp = std::net::UdpSocket::bind(address)?;
            tcp.set_nonblocking(true)?;
            // Answers fit through every usual link in one piece, so that nobody needs to number fragments or believe any.
            super::batch::whole_packets(&udp, address.is_ipv4())?;
            // What an unprivileged process gets is enough for a start.
            let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&udp, WAITING_BYTES);
            Ok(Sockets { udp, tcp, address })
        };
        bind().map_err(Error::io(format!("listen for DNS on {address}")))
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// How much was asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub queries: u64,
    pub forwarded: u64,
    /// Forwarded without an answer.
    pub failed: u64,
}

#[derive(Default)]
struct Counters {
    queries: AtomicU64,
    forwarded: AtomicU64,
    failed: AtomicU64,
}

/// A running server; it ends when this is dropped.
pub struct Server {
    tasks: Vec<JoinHandle<()>>,
    udp: Vec<Arc<std::net::UdpSocket>>,
    shared: Arc<Shared>,
}

struct Shared {
    /// Threads shall end.
    ended: AtomicBool,
    zone: Arc<RwLock<Zone>>,
    upstreams: Vec<SocketAddr>,
    /// The upstream that answered last.
    preferred: AtomicU32,
    forwards: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    turn: AtomicU32,
    counters: Counters,
}

impl Server {
    /// Serves `zone` on `sockets`; other names are asked from `upstreams`, in order. Servers that are we ourselves are left
    /// out, so that no question runs in a circle. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// When the sockets cannot be handed to the runtime.
    pub fn start(sockets: Vec<Sockets>, zone: Arc<RwLock<Zone>>, upstreams: &[SocketAddr]) -> Result<Server, Error> {
        let own: Vec<SocketAddr> = sockets.iter().map(|sockets| sockets.address).collect();
        let is_own = |upstream: &&SocketAddr| {
            own.iter().any(|own| {
                own == *upstream
                    || own.ip().is_unspecified() && own.port() == upstream.port() && upstream.ip().is_loopback()
            })
        };
        let shared = Arc::new(Shared {
            ended: AtomicBool::new(false),
            zone,
            upstreams: upstreams.iter().filter(|upstream| !is_own(upstream)).copied().collect(),
            preferred: AtomicU32::new(0),
            forwards: Arc::new(Semaphore::new(MAX_FORWARDS)),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            turn: AtomicU32::new(u32::from(random_id())),
            counters: Counters::default(),
        });
        let mut server = Server { tasks: Vec::new(), udp: Vec::new(), shared: shared.clone() };
        for Sockets { udp, tcp, address } in sockets {
            let failed = || Error::io(format!("serve DNS on {address}"));
            let tcp = TcpListener::from_std(tcp).map_err(failed())?;
            let udp = Arc::new(udp);
            let (own, socket, runtime) = (shared.clone(), udp.clone(), Handle::current());
            let thread = std::thread::Builder::new().name("dns".into());
            thread.spawn(move || serve_udp(&own, &socket, &runtime)).map_err(failed())?;
            server.udp.push(udp);
            server.tasks.push(tokio::spawn(serve_tcp(shared.clone(), tcp)));
        }
        Ok(server)
    }

    pub fn counts(&self) -> Counts {
        let counters = &self.shared.counters;
        Counts {
            queries: counters.queries.load(Ordering::Relaxed),
            forwarded: counters.forwarded.load(Ordering::Relaxed),
            failed: counters.failed.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.shared.ended.store(true, Ordering::Release);
        for socket in &self.udp {
            // It has no peer, which the kernel complains of; those who wait in it wake all the same.
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
        }
    }
}

/// The servers that a `resolv.conf` names.
pub fn upstreams_of(resolv_conf: &str) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for line in resolv_conf.lines() {
        let mut words = line.split_whitespace();
        if words.next() == Some("nameserver")
            && let Some(address) = words.next().and_then(|word| word.parse::<IpAddr>().ok())
        {
            found.push(SocketAddr::new(address, 53));
        }
    }
    found
}

/// Answers until the server ends.
fn serve_udp(shared: &Arc<Shared>, socket: &Arc<std::net::UdpSocket>, runtime: &Handle) {
    // A kernel that wakes it later makes batches larger, nothing else.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(LATE_NS));
    // Without the right to it, it waits for its turn as others do.
    let _ = turn::take(Turn::Soon);
    let (mut batch, mut out) = (Batch::new(), Vec::with_capacity(4096));
    loop {
        let taken = batch.receive(socket);
        if shared.ended.load(Ordering::Acquire) {
            return;
        }
        let Ok(taken) = taken else {
            std::thread::sleep(PAUSE);
            continue;
        };
        let turn = shared.count(taken as u32);
        // Changes of names wait for a batch at most.
        let zone = shared.zone.read().unwrap_or_else(PoisonError::into_inner);
        for at in 0..taken {
            let question = batch.question(at);
            match answer(&zone, question, Transport::Udp, turn.wrapping_add(at as u32), &mut out) {
                Outcome::Reply => batch.answer(at, &out),
                Outcome::Ignore => {}
                outcome => {
                    let permit = shared.forwards.clone().try_acquire_owned();
                    let (Ok(permit), Some(client)) = (permit, batch.client(at)) else {
                        wire::bare_reply(&mut out, question, SERVER_FAILURE);
                        batch.answer(at, &out);
                        continue;
                    };
                    let (shared, socket) = (shared.clone(), socket.clone());
                    let (query, partial) = (question.to_vec(), out.clone());
                    runtime.spawn(async move {
                        let reply = shared.elsewhere(query, partial, outcome, Transport::Udp).await;
                        // What the kernel does not take is lost, as UDP may; the client asks again.
                        let _ = rustix::net::sendto(&socket, &reply, rustix::net::SendFlags::DONTWAIT, &client);
                        drop(permit);
                    });
                }
            }
        }
        drop(zone);
        batch.send(socket);
        // After a full batch more is there already.
        if (BUSY_QUESTIONS..PACKETS).contains(&taken) {
            std::thread::sleep(GATHER);
        }
    }
}

async fn serve_tcp(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if let Ok(permit) = shared.connections.clone().try_acquire_owned() {
                    let shared = shared.clone();
                    tokio::spawn(async move {
                        let _ = serve_stream(&shared, stream).await;
                        drop(permit);
                    });
                }
            }
            // Out of descriptors, most likely: others must end first.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn serve_stream(shared: &Shared, mut stream: TcpStream) -> io::Result<()> {
    let mut out = Vec::new();
    loop {
        let query = timeout(IDLE_TIMEOUT, read_message(&mut stream)).await??;
        let reply = match shared.answer(&query, Transport::Tcp, &mut out) {
            Outcome::Reply => std::mem::take(&mut out),
            Outcome::Ignore => return Ok(()),
            outcome => match shared.forwards.clone().try_acquire_owned() {
                Ok(_permit) => shared.elsewhere(query, std::mem::take(&mut out), outcome, Transport::Tcp).await,
                Err(_) => {
                    wire::bare_reply(&mut out, &query, SERVER_FAILURE);
                    std::mem::take(&mut out)
                }
            },
        };
        timeout(IDLE_TIMEOUT, write_message(&mut stream, &reply)).await??;
    }
}

async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let len = stream.read_u16().await?;
    let mut message = vec![0; usize::from(len)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let len = u16::try_from(message.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let framed = [&len.to_be_bytes(), message].concat();
    stream.write_all(&framed).await
}

impl Shared {
    /// Counts questions; the turn of the first.
    fn count(&self, questions: u32) -> u32 {
        self.counters.queries.fetch_add(u64::from(questions), Ordering::Relaxed);
        self.turn.fetch_add(questions, Ordering::Relaxed)
    }

    fn answer(&self, query: &[u8], transport: Transport, out: &mut Vec<u8>) -> Outcome {
        let turn = self.count(1);
        let zone = self.zone.read().unwrap_or_else(PoisonError::into_inner);
        answer(&zone, query, transport, turn, out)
    }

    /// The reply to a question that needs an upstream server.
    async fn elsewhere(&self, query: Vec<u8>, partial: Vec<u8>, outcome: Outcome, transport: Transport) -> Vec<u8> {
        self.counters.forwarded.fetch_add(1, Ordering::Relaxed);
        let reply = match &outcome {
            Outcome::Alias(target) => {
                let Ok(question) = wire::question(&query) else { return partial };
                let asked = wire::query(question.id, target, question.kind, crate::dns::answer::UDP_BYTES);
                self.ask(&asked).await.map(|found| with_alias(&query, &question, &partial, &found, transport))
            }
            _ => self.ask(&query).await.map(|found| fitting(&query, found, transport)),
        };
        reply.unwrap_or_else(|| {
            self.counters.failed.fetch_add(1, Ordering::Relaxed);
            let mut out = Vec::new();
            match wire::question(&query) {
                Ok(question) => {
                    let reply = Reply::begin(&mut out, &query, &question, limit(&question, transport));
                    reply.end(&question, SERVER_FAILURE, 0, crate::dns::answer::UDP_BYTES);
                }
                Err(_) => wire::bare_reply(&mut out, &query, SERVER_FAILURE),
            }
            out
        })
    }

    /// Asks the upstream servers, the last good one first.
    async fn ask(&self, query: &[u8]) -> Option<Vec<u8>> {
        let count = self.upstreams.len();
        let preferred = self.preferred.load(Ordering::Relaxed) as usize;
        for step in 0..count * UPSTREAM_ROUNDS {
            let at = (preferred + step) % count;
            let upstream = self.upstreams[at];
            let reply = match timeout(UPSTREAM_TIMEOUT, ask_udp(upstream, query)).await {
                Ok(Ok(reply)) if reply[2] & 2 != 0 => match timeout(UPSTREAM_TIMEOUT, ask_tcp(upstream, query)).await {
                    Ok(Ok(whole)) => whole,
                    // The truncated one is better than nothing: the client sees that it is.
                    _ => reply,
                },
                Ok(Ok(reply)) => reply,
                _ => continue,
            };
            if reply[3] & 15 == SERVER_FAILURE && step + 1 < count * UPSTREAM_ROUNDS {
                continue;
            }
            self.preferred.store(at as u32, Ordering::Relaxed);
            return Some(reply);
        }
        None
    }
}

/// A number that nobody can guess: with the port it is what keeps strangers from answering for the server.
fn random_id() -> u16 {
    let mut bytes = [0; 2];
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u16::from_ne_bytes(bytes)
}

/// The query under a number of our own.
fn renumbered(query: &[u8], id: u16) -> Vec<u8> {
    let mut query = query.to_vec();
    query[..2].copy_from_slice(&id.to_be_bytes());
    query
}

/// True when `reply` is one to `query`: same number, same question.
fn matches(query: &[u8], reply: &[u8]) -> bool {
    let question = |message: &[u8]| {
        let (name, at) = wire::Name::read(message, HEADER_BYTES)?;
        Some((name.lower().as_bytes().to_vec(), message.get(at..at + 4)?.to_vec()))
    };
    reply.len() >= HEADER_BYTES
        && reply[..2] == query[..2]
        && reply[2] & 0x80 != 0
        && question(query).is_some_and(|asked| question(reply) == Some(asked))
}

async fn ask_udp(upstream: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = if upstream.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(upstream).await?;
    let sent = renumbered(query, random_id());
    socket.send(&sent).await?;
    let mut buffer = vec![0; MAX_REPLY_BYTES];
    loop {
        let len = socket.recv(&mut buffer).await?;
        if matches(&sent, &buffer[..len]) {
            buffer.truncate(len);
            buffer[..2].copy_from_slice(&query[..2]);
            buffer.shrink_to_fit();
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(upstream: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    let sent = renumbered(query, random_id());
    write_message(&mut stream, &sent).await?;
    let mut reply = read_message(&mut stream).await?;
    if !matches(&sent, &reply) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    reply[..2].copy_from_slice(&query[..2]);
    Ok(reply)
}

/// The reply as it is if the client can take it; otherwise one that says "ask by TCP".
fn fitting(query: &[u8], reply: Vec<u8>, transport: Transport) -> Vec<u8> {
    let Ok(question) = wire::question(query) else { return reply };
    let limit = limit(&question, transport);
    if reply.len() <= limit {
        return reply;
    }
    let mut out = Vec::new();
    Reply::begin(&mut out, query, &question, limit).end(&question, reply[3] & 15, 0, crate::dns::answer::UDP_BYTES);
    out[2] |= 2;
    out
}

/// Our alias, and behind it what the upstream server says about its target.
fn with_alias(query: &[u8], question: &wire::Question, partial: &[u8], found: &[u8], transport: Transport) -> Vec<u8> {
    let mut out = Vec::new();
    let mut reply = Reply::begin(&mut out, query, question, limit(question, transport));
    for record in wire::answers(partial).filter(|record| record.kind == TYPE_CNAME) {
        if let Some((alias, _)) = wire::Name::read(partial, record.data_at) {
            reply.record(
                Section::Answer,
                Owner::Name(record.name.as_bytes()),
                TYPE_CNAME,
                record.ttl,
                &[alias.as_bytes()],
            );
        }
    }
    for record in wire::answers(found) {
        let owner = Owner::Name(record.name.as_bytes());
        match record.kind {
            TYPE_A | TYPE_AAAA => {
                reply.record(Section::Answer, owner, record.kind, record.ttl, &[record.data]);
            }
            TYPE_CNAME => {
                if let Some((alias, _)) = wire::Name::read(found, record.data_at) {
                    reply.record(Section::Answer, owner, TYPE_CNAME, record.ttl, &[alias.as_bytes()]);
                }
            }
            _ => {}
        }
    }
    reply.end(question, found.get(3).map_or(SERVER_FAILURE, |flags| flags & 15), 0, crate::dns::answer::UDP_BYTES);
    out
}
