//! Many requests over one HTTP/2 connection, without a task, a channel or a tree of headers for each: what is due is written
//! together, what has come is read together, and of an answer nothing is kept but what it says against the request.
//!
//! The server sees an ordinary client: TLS, flow control, and as many streams as it allows. Not here: answers that somebody
//! wants to read, and watches; those are [`crate::door::Line`]'s. Each request is answered once, by the server or by the end of
//! the connection.

mod heads;

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use meta::{Reason, Status};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::cluster::{Task, lock};
use crate::door::{Ask, Door, refusal};
use crate::error::Error;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD_BYTES: usize = 9;
/// Bytes that one read may bring.
const READ_BYTES: usize = 64 << 10;
/// Bytes that an answer, and all of them, may send before they must be taken.
const STREAM_WINDOW: u32 = 4 << 20;
const WINDOW: u32 = 16 << 20;
/// What everybody begins with (RFC 9113, 6.5.2 and 6.9.2), and the fewest streams that a server should allow.
const FIRST_WINDOW: u32 = 65_535;
const FIRST_FRAME_BYTES: usize = 16_384;
const FIRST_STREAMS: usize = 100;
/// Bytes of a request's body: more could wait for ever.
const BODY_MAX_BYTES: usize = FIRST_WINDOW as usize;
/// Bytes that wait for the socket; more requests are written when these are.
const OUT_MAX_BYTES: usize = 256 << 10;

/// Frames, and what their flags say.
mod frame {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RESET: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW: u8 = 8;
    pub const CONTINUATION: u8 = 9;

    pub const END: u8 = 0x1;
    pub const ACK: u8 = 0x1;
    pub const END_OF_HEAD: u8 = 0x4;
    pub const PADDED: u8 = 0x8;
    pub const PRIORITY: u8 = 0x20;

    pub const MAX_STREAMS: u16 = 3;
    pub const INITIAL_WINDOW: u16 = 4;
    pub const MAX_BYTES: u16 = 5;
}

/// What the server says to a request.
pub type Answer = Result<(), Status>;

/// An open connection, each of whose requests brings a `T` along that is given back with the answer.
pub struct Pipe<T> {
    due: Arc<Mutex<Due<T>>>,
    _drives: Task,
}

/// What has not been written yet.
struct Due<T> {
    asks: VecDeque<(Ask, T)>,
    /// Of whoever writes.
    waker: Option<Waker>,
}

impl<T: Send + 'static> Pipe<T> {
    /// A new connection. Each answer goes to `take`.
    ///
    /// # Errors
    /// There is none to be had.
    pub async fn open(door: &Door, take: impl FnMut(T, Answer) + Send + 'static) -> Result<Pipe<T>, Error> {
        let (authority, authorization) = door.said();
        Ok(Pipe::over(door.stream().await?, heads::Writer::new(authority, authorization), take))
    }

    fn over<S>(stream: S, writer: heads::Writer, take: impl FnMut(T, Answer) + Send + 'static) -> Pipe<T>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let due = Arc::new(Mutex::new(Due { asks: VecDeque::new(), waker: None }));
        let mut driver = Driver::new(stream, writer, take, due.clone());
        let drives = std::future::poll_fn(move |context| driver.poll(context));
        Pipe { due, _drives: Task::spawn(drives) }
    }

    /// Sends when those before it are sent and the server has room.
    ///
    /// # Errors
    /// The body is larger than what every server has room for.
    pub fn send(&self, ask: Ask, token: T) -> Result<(), Error> {
        if ask.body.len() > BODY_MAX_BYTES {
            let why = format!("{} bytes are more than {BODY_MAX_BYTES}", ask.body.len());
            return Err(Error::doing("send a request", why));
        }
        let mut due = lock(&self.due);
        due.asks.push_back((ask, token));
        if let Some(waker) = due.waker.take() {
            waker.wake();
        }
        Ok(())
    }
}

/// A request that is sent.
struct Sent<T> {
    token: T,
    /// The status and what comes with it, when it is a refusal.
    refused: Option<(u16, Vec<u8>)>,
    is_answered: bool,
}

/// The connection's one reader and writer.
struct Driver<S, T, F> {
    stream: S,
    due: Arc<Mutex<Due<T>>>,
    take: F,
    writer: heads::Writer,
    reader: heads::Reader,
    sent: HashMap<u32, Sent<T>>,
    next_stream: u32,
    out: Vec<u8>,
    written: usize,
    buffer: Box<[u8]>,
    /// The part of a frame that has come.
    part: Vec<u8>,
    /// A head that comes in several frames: its stream, whether it ends the answer, and what there is.
    head: Option<(u32, bool, Vec<u8>)>,
    streams_max: usize,
    frame_max_bytes: usize,
    /// Bytes that may be sent, in all and for each new stream.
    window: i64,
    stream_window: i64,
    /// Bytes that came since the server was told to go on.
    taken: u32,
    /// Why nothing more comes.
    broken: Option<String>,
}

fn put_frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

fn four(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |four| u32::from_be_bytes(*four))
}

fn broke(why: &str) -> Status {
    Status::new(Reason::ServiceUnavailable, format!("cannot hear the answer to a request: {why}"))
}

impl<S, T, F> Driver<S, T, F>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: FnMut(T, Answer),
{
    fn new(stream: S, writer: heads::Writer, take: F, due: Arc<Mutex<Due<T>>>) -> Self {
        let mut out = PREFACE.to_vec();
        let window = [&frame::INITIAL_WINDOW.to_be_bytes()[..], &STREAM_WINDOW.to_be_bytes()].concat();
        put_frame(&mut out, frame::SETTINGS, 0, 0, &window);
        put_frame(&mut out, frame::WINDOW, 0, 0, &(WINDOW - FIRST_WINDOW).to_be_bytes());
        Driver {
            stream,
            due,
            take,
            writer,
            reader: heads::Reader::default(),
            sent: HashMap::new(),
            next_stream: 1,
            out,
            written: 0,
            buffer: vec![0; READ_BYTES].into(),
            part: Vec::new(),
            head: None,
            streams_max: FIRST_STREAMS,
            frame_max_bytes: FIRST_FRAME_BYTES,
            window: FIRST_WINDOW.into(),
            stream_window: FIRST_WINDOW.into(),
            taken: 0,
            broken: None,
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        lock(&self.due).waker = Some(context.waker().clone());
        if self.broken.is_none()
            && let Err(why) = self.exchange(context)
        {
            self.broken = Some(why.to_string());
        }
        if let Some(why) = &self.broken {
            let sent = std::mem::take(&mut self.sent).into_values().map(|sent| sent.token);
            let due = std::mem::take(&mut lock(&self.due).asks).into_iter().map(|(_, token)| token);
            for token in sent.chain(due) {
                (self.take)(token, Err(broke(why)));
            }
        }
        Poll::Pending
    }

    fn exchange(&mut self, context: &mut Context<'_>) -> Result<(), Error> {
        let failed = Error::while_doing::<std::io::Error>;
        loop {
            let mut buffer = ReadBuf::new(&mut self.buffer);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                Poll::Pending => break,
                Poll::Ready(read) => read.map_err(failed("read answers"))?,
            }
            let len = buffer.filled().len();
            if len == 0 {
                return Err(Error::doing("read answers", "the server closed the connection"));
            }
            let buffer = std::mem::take(&mut self.buffer);
            let heard = self.hear(&buffer[..len]);
            self.buffer = buffer;
            heard?;
        }
        loop {
            self.fill();
            if self.written == self.out.len() {
                break;
            }
            match Pin::new(&mut self.stream).poll_write(context, &self.out[self.written..]) {
                Poll::Pending => return Ok(()),
                Poll::Ready(written) => self.written += written.map_err(failed("send requests"))?,
            }
        }
        match Pin::new(&mut self.stream).poll_flush(context) {
            Poll::Ready(flushed) => flushed.map_err(failed("send requests")),
            Poll::Pending => Ok(()),
        }
    }

    /// Writes the frames of as many requests as there is room for.
    fn fill(&mut self) {
        if self.written == self.out.len() {
            self.out.clear();
            self.written = 0;
        }
        if self.taken > WINDOW / 2 {
            put_frame(&mut self.out, frame::WINDOW, 0, 0, &self.taken.to_be_bytes());
            self.taken = 0;
        }
        let shared = self.due.clone();
        let mut due = lock(&shared);
        while self.out.len() - self.written < OUT_MAX_BYTES && self.sent.len() < self.streams_max {
            let Some((ask, _)) = due.asks.front() else { break };
            let bytes = ask.body.len() as i64;
            if bytes > self.window.min(self.stream_window) {
                break;
            }
            let Some((ask, token)) = due.asks.pop_front() else { break };
            let (stream, at) = (self.next_stream, self.out.len());
            self.next_stream += 2;
            self.window -= bytes;
            let ends = if ask.body.is_empty() { frame::END } else { 0 };
            put_frame(&mut self.out, frame::HEADERS, frame::END_OF_HEAD | ends, stream, &[]);
            self.writer.write(&ask, &mut self.out);
            let length = (self.out.len() - at - FRAME_HEAD_BYTES) as u32;
            self.out[at..at + 3].copy_from_slice(&length.to_be_bytes()[1..]);
            let mut parts = ask.body.chunks(self.frame_max_bytes).peekable();
            while let Some(part) = parts.next() {
                let ends = if parts.peek().is_none() { frame::END } else { 0 };
                put_frame(&mut self.out, frame::DATA, ends, stream, part);
            }
            self.sent.insert(stream, Sent { token, refused: None, is_answered: false });
        }
    }

    /// Takes what has come.
    fn hear(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !self.part.is_empty() && !bytes.is_empty() {
            let wanted = frame_bytes(&self.part).unwrap_or(FRAME_HEAD_BYTES);
            let more = (wanted - self.part.len()).min(bytes.len());
            self.part.extend_from_slice(&bytes[..more]);
            bytes = &bytes[more..];
            if frame_bytes(&self.part) == Some(self.part.len()) {
                let mut whole = std::mem::take(&mut self.part);
                self.frame(&whole)?;
                whole.clear();
                self.part = whole;
            }
        }
        while let Some(whole) = frame_bytes(bytes).and_then(|len| bytes.split_off(..len)) {
            self.frame(whole)?;
        }
        self.part.extend_from_slice(bytes);
        Ok(())
    }

    fn frame(&mut self, whole: &[u8]) -> Result<(), Error> {
        let (head, mut payload) = whole.split_at(FRAME_HEAD_BYTES);
        let (kind, flags, stream) = (head[3], head[4], four(&head[5..]) & 0x7fff_ffff);
        let torn = || Error::doing("read answers", format!("a frame of kind {kind} is torn"));
        if flags & frame::PADDED != 0 && matches!(kind, frame::DATA | frame::HEADERS) {
            let (padding, rest) = payload.split_first().ok_or_else(torn)?;
            let len = rest.len().checked_sub(usize::from(*padding)).ok_or_else(torn)?;
            payload = &rest[..len];
        }
        match kind {
            frame::DATA => {
                let bytes = (whole.len() - FRAME_HEAD_BYTES) as u32;
                self.taken += bytes;
                if let Some((_, said)) = self.sent.get_mut(&stream).and_then(|sent| sent.refused.as_mut()) {
                    said.extend_from_slice(payload);
                }
                match flags & frame::END {
                    0 if bytes > 0 => put_frame(&mut self.out, frame::WINDOW, 0, stream, &bytes.to_be_bytes()),
                    0 => {}
                    _ => self.ended(stream, None),
                }
            }
            frame::HEADERS => {
                let priority = if flags & frame::PRIORITY != 0 { 5 } else { 0 };
                let block = payload.get(priority..).ok_or_else(torn)?;
                let ends = flags & frame::END != 0;
                match flags & frame::END_OF_HEAD {
                    0 => self.head = Some((stream, ends, block.to_vec())),
                    _ => self.answered(stream, ends, block)?,
                }
            }
            frame::CONTINUATION => {
                let (stream, ends, mut block) = self.head.take().ok_or_else(torn)?;
                block.extend_from_slice(payload);
                match flags & frame::END_OF_HEAD {
                    0 => self.head = Some((stream, ends, block)),
                    _ => self.answered(stream, ends, &block)?,
                }
            }
            frame::RESET => self.ended(stream, Some("the server reset it")),
            frame::SETTINGS if flags & frame::ACK == 0 => {
                self.agree(payload);
                put_frame(&mut self.out, frame::SETTINGS, frame::ACK, 0, &[]);
            }
            frame::PING if flags & frame::ACK == 0 => put_frame(&mut self.out, frame::PING, frame::ACK, 0, payload),
            frame::GOAWAY => return Err(Error::doing("read answers", "the server ends the connection")),
            // Of a stream it says nothing that is needed: a request's body goes at once.
            frame::WINDOW if stream == 0 => self.window += i64::from(four(payload) & 0x7fff_ffff),
            _ => {}
        }
        Ok(())
    }

    fn agree(&mut self, settings: &[u8]) {
        for setting in settings.chunks_exact(6) {
            let value = four(&setting[2..]);
            match u16::from_be_bytes([setting[0], setting[1]]) {
                frame::MAX_STREAMS => self.streams_max = value as usize,
                frame::INITIAL_WINDOW => self.stream_window = value.into(),
                frame::MAX_BYTES => self.frame_max_bytes = FIRST_FRAME_BYTES.max(value as usize),
                _ => {}
            }
        }
    }

    fn answered(&mut self, stream: u32, ends: bool, block: &[u8]) -> Result<(), Error> {
        let status = self.reader.read(block)?;
        if let (Some(sent), Some(status)) = (self.sent.get_mut(&stream), status) {
            // A status below 200 says that the answer is yet to come.
            sent.is_answered |= status >= 200;
            sent.refused = (status >= 300).then(|| (status, Vec::new()));
        }
        if ends {
            self.ended(stream, None);
        }
        Ok(())
    }

    fn ended(&mut self, stream: u32, why: Option<&str>) {
        let Some(sent) = self.sent.remove(&stream) else { return };
        let answer = match (why, sent.refused, sent.is_answered) {
            (Some(why), ..) => Err(broke(why)),
            (None, Some((code, said)), _) => Err(refusal(code, &said)),
            (None, None, true) => Ok(()),
            (None, None, false) => Err(broke("it has no status")),
        };
        (self.take)(sent.token, answer);
    }
}

/// The bytes of the frame that `bytes` begin with, as soon as its head is there.
fn frame_bytes(bytes: &[u8]) -> Option<usize> {
    let [one, two, three, ..] = *bytes.get(..FRAME_HEAD_BYTES)? else { return None };
    Some(u32::from_be_bytes([0, one, two, three]) as usize + FRAME_HEAD_BYTES)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http_body_util::{BodyExt, Full};
    use hyper::service::service_fn;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::sync::mpsc;

    use super::*;

    /// Serves one connection: paths say the status, and answers repeat what they were sent.
    fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, most: Arc<AtomicUsize>) -> Task {
        let running = Arc::<AtomicUsize>::default();
        let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let (running, most) = (running.clone(), most.clone());
            async move {
                most.fetch_max(running.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                let status = request.uri().path()[1..].parse::<u16>().unwrap();
                let proof = request.headers()[http::header::AUTHORIZATION].clone();
                assert_eq!(request.uri().authority().unwrap(), "host:1");
                let body = request.into_body().collect().await.unwrap().to_bytes();
                tokio::task::yield_now().await;
                running.fetch_sub(1, Ordering::Relaxed);
                let mut response = http::Response::new(Full::new(body));
                *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
                response.headers_mut().insert("proof", proof);
                Ok::<_, std::convert::Infallible>(response)
            }
        });
        Task::spawn(async move {
            let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let served = builder.max_concurrent_streams(7).serve_connection(TokioIo::new(stream), service);
            // The other side ends it.
            let _ = served.await;
        })
    }

    #[tokio::test]
    async fn every_request_is_answered_once_and_no_more_run_than_the_server_allows() {
        let (ours, theirs) = tokio::io::duplex(1_000);
        let (most, (sender, mut answers)) = (Arc::<AtomicUsize>::default(), mpsc::unbounded_channel());
        let served = serve(theirs, most.clone());
        let take = move |number: usize, answer: Answer| sender.send((number, answer)).unwrap();
        let pipe = Pipe::over(ours, heads::Writer::new("host:1", "Bearer t"), take);
        let statuses = [200, 201, 404, 409, 429, 201];
        // In all, more than windows hold.
        let body = "x".repeat(5_000);
        let mut seen = vec![0; 600];
        for number in 0..seen.len() {
            pipe.send(Ask::new(http::Method::PATCH, &format!("/{}", statuses[number % 6]), body.clone()), number)
                .unwrap();
        }
        for _ in 0..seen.len() {
            let (number, answer) = answers.recv().await.unwrap();
            seen[number] += 1;
            let code = statuses[number % 6];
            match answer {
                Ok(()) => assert!(code < 300),
                Err(status) => assert_eq!(status.message(), format!("{code}: {body}")),
            }
        }
        assert!(seen.iter().all(|seen| *seen == 1));
        assert!((2..=7).contains(&most.load(Ordering::Relaxed)), "{most:?}");
        drop(served);
        for number in 0..2 {
            pipe.send(Ask::get("/200"), number).unwrap();
            let (of, answer) = answers.recv().await.unwrap();
            assert_eq!((of, answer.unwrap_err().reason()), (number, Reason::ServiceUnavailable));
        }
        assert!(pipe.send(Ask::new(http::Method::POST, "/200", vec![b'x'; 65_536]), 0).is_err());
    }
}
