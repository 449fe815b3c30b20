//! Asks for names at a fixed rate, and counts what is answered.
//!
//! Beside everything else on two processors a generator must cost little: each millisecond every socket hands its questions
//! to the kernel in one piece, which cuts them into packets, and takes the answers that have come the same way. It stands for
//! clients with processors of their own, and so has its turn before others: what it sends late comes all at once.

use std::io::{ErrorKind, IoSliceMut};
use std::net::SocketAddr;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use quinn_udp::{BATCH_SIZE, RecvMeta, UdpSockRef};
use rustix::time::{ClockId, clock_gettime};
use turn::Turn;

use crate::error::Error;
use crate::machine::Process;
use crate::pieces::{Pieces, TOGETHER};

/// As many clients ask.
const SOCKETS: usize = 8;
const TICK: Duration = Duration::from_millis(1);
/// How long answers may take at the end.
const LAST_ANSWERS: Duration = Duration::from_millis(200);
/// What one call may take in: answers that were put together are never more.
const TAKEN_BYTES: usize = 1 << 16;
/// Bytes that a socket holds back: every answer of a second.
const BUFFER_BYTES: usize = 8 << 20;

/// What came of the questions.
#[derive(Debug, Default)]
pub struct Answers {
    pub asked: usize,
    /// With success and at least one record.
    pub answered: usize,
    /// Processor time of the asking thread.
    pub cpu_us: u64,
}

impl Answers {
    pub fn percent(&self) -> f64 {
        self.answered as f64 / self.asked.max(1) as f64 * 100.0
    }
}

/// A question about the address of `name` (a name of several labels, without the last dot), with the number zero.
pub fn question(name: &str) -> Vec<u8> {
    let mut question = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
        question.extend(label.as_bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    question
}

/// Whether this answers a question: the code of success and one record at least.
pub fn answers(packet: &[u8]) -> bool {
    packet.len() > 12 && packet[3] & 0xf == 0 && packet[7] > 0
}

struct Client(Pieces);

impl Client {
    fn new() -> std::io::Result<Client> {
        let pieces = Pieces::new()?;
        // As much as the machine grants.
        let _ = pieces.state.set_recv_buffer_size(UdpSockRef::from(&pieces.socket), BUFFER_BYTES);
        Ok(Client(pieces))
    }

    /// Takes what has come; how many answers that is.
    fn take(&self, buffers: &mut [Vec<u8>; BATCH_SIZE]) -> std::io::Result<usize> {
        let mut answered = 0;
        loop {
            let mut metas = [RecvMeta::default(); BATCH_SIZE];
            let mut slices = buffers.each_mut().map(|buffer| IoSliceMut::new(buffer));
            let taken = match self.0.state.recv(UdpSockRef::from(&self.0.socket), &mut slices, &mut metas) {
                Ok(taken) => taken,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(answered),
                Err(error) => return Err(error),
            };
            for (buffer, meta) in buffers.iter().zip(&metas).take(taken) {
                answered += buffer[..meta.len].chunks(meta.stride.max(1)).filter(|packet| answers(packet)).count();
            }
        }
    }
}

/// Asks for `names` (all of one length) again and again, `rate` questions a second, from within the network of a process.
///
/// # Errors
/// There is no such network, or no socket in it. The thread ends with what asking failed with.
pub fn start(
    inside: Process,
    server: SocketAddr,
    names: &[String],
    rate: u64,
    time: Duration,
) -> Result<JoinHandle<Result<Answers, Error>>, Error> {
    let failed = || Error::while_doing::<net::Error>("enter the node's network");
    let netns = net::Netns::open(Path::new(&format!("/proc/{}/ns/net", inside.0))).map_err(failed())?;
    let clients = netns.run(|| (0..SOCKETS).map(|_| Client::new()).collect::<std::io::Result<Vec<_>>>());
    let clients = clients.map_err(failed())?.map_err(Error::while_doing("ask for names"))?;
    let questions: Vec<Vec<u8>> = names.iter().map(|name| question(name)).collect();
    let work = move || {
        // Without the right to it, some of what is lost is lost by the generator.
        let _ = turn::take(Turn::Soon);
        ask(&clients, server, &questions, rate, time).map_err(Error::while_doing("ask for names"))
    };
    std::thread::Builder::new().name("asker".into()).spawn(work).map_err(Error::while_doing("ask for names"))
}

fn ask(
    clients: &[Client],
    server: SocketAddr,
    questions: &[Vec<u8>],
    rate: u64,
    time: Duration,
) -> std::io::Result<Answers> {
    let size = questions.first().map_or(0, Vec::len);
    let mut buffers = [(); BATCH_SIZE].map(|()| vec![0; TAKEN_BYTES]);
    let (mut found, mut contents) = (Answers::default(), Vec::with_capacity(TOGETHER * size));
    let began = Instant::now();
    let mut last = 0_u32;
    while began.elapsed() < time + LAST_ANSWERS {
        let due = (began.elapsed().min(time).as_secs_f64() * rate as f64) as usize;
        let share = (due - found.asked).div_ceil(SOCKETS).clamp(1, TOGETHER);
        // Every socket its share; what is due beyond that, because this thread stood still, in further rounds.
        let mut turn = 0;
        while found.asked < due {
            let count = share.min(due - found.asked);
            contents.clear();
            for number in found.asked..found.asked + count {
                let at = contents.len();
                contents.extend_from_slice(&questions[number % questions.len()]);
                last += 1;
                contents[at..at + 2].copy_from_slice(&(last as u16).to_be_bytes());
            }
            // What is not sent is not answered.
            clients[turn % SOCKETS].0.send(server, &contents, size)?;
            found.asked += count;
            turn += 1;
        }
        for client in clients {
            found.answered += client.take(&mut buffers)?;
        }
        std::thread::sleep(TICK);
    }
    let used = clock_gettime(ClockId::ThreadCPUTime);
    found.cpu_us =
        u64::try_from(used.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(used.tv_nsec).unwrap_or(0) / 1_000;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn what_is_asked_at_a_rate_is_counted_when_answered() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        server.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let address = server.local_addr().unwrap();
        let names: Vec<String> = (0..10).map(|number| format!("one-{number}.test")).collect();
        let asking = start(Process::own(), address, &names, 2_000, Duration::from_millis(300)).unwrap();
        let (mut seen, mut buffer) = (0, [0; 512]);
        while let Ok((len, from)) = server.recv_from(&mut buffer) {
            assert_eq!(buffer[2..len], question(&names[seen % 10])[2..]);
            // Every other question is told that there is no such name.
            (buffer[3], buffer[7]) = if seen.is_multiple_of(2) { (0, 1) } else { (3, 0) };
            server.send_to(&buffer[..len], from).unwrap();
            seen += 1;
        }
        let found = asking.join().unwrap().unwrap();
        assert_eq!((found.asked, seen), (600, 600));
        assert_eq!(found.answered, 300);
    }
}
