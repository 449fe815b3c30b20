//! The streams of one session: a task that reads, a task that writes, and handles.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::Error;
use super::frame::{Decoder, Encoder, Frame, Headers, INITIAL_WINDOW};

/// Streams open at once.
const STREAMS_MAX: usize = 4096;
/// Pieces of one stream that wait for their reader; then the whole session waits.
const PIECES_MAX: usize = 64;
/// Frames that wait for the wire.
const FRAMES_MAX: usize = 64;
/// Longest piece in one frame.
const PIECE_MAX_BYTES: usize = 32 << 10;
const WINDOW_BYTES: i64 = 64 << 10;
/// Bytes read before they are acknowledged together.
const ACKNOWLEDGE_BYTES: u32 = 16 << 10;
/// How long the other side has to close its half.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);
const REFUSED: u32 = 3;
const CANCEL: u32 = 5;

enum Out {
    Frame(Frame),
    End,
}

/// What may be sent, by the other side's word.
struct Windows {
    waits: bool,
    initial: i64,
    session: i64,
    streams: BTreeMap<u32, i64>,
    closed: bool,
}

struct Shared {
    windows: Mutex<Windows>,
    changed: Notify,
}

impl Shared {
    fn change<T>(&self, change: impl FnOnce(&mut Windows) -> T) -> T {
        let result = change(&mut self.windows.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_waiters();
        result
    }

    /// Takes room for up to `wanted` bytes of a stream; waits while there is none.
    async fn room(&self, stream: u32, wanted: usize) -> Result<usize, Error> {
        loop {
            let changed = self.changed.notified();
            {
                let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
                let windows = &mut *windows;
                if windows.closed {
                    return Err(Error::Closed);
                }
                let own = windows.streams.get_mut(&stream).ok_or(Error::Closed)?;
                let room = if windows.waits { windows.session.min(*own) } else { i64::MAX };
                let taken = (wanted as i64).min(room);
                if taken > 0 || wanted == 0 {
                    *own -= taken;
                    windows.session -= taken;
                    return Ok(taken as usize);
                }
            }
            changed.await;
        }
    }
}

/// A running session. Dropping it ends both tasks at once; [`Session::close`] ends it in order.
pub struct Session {
    accepted: mpsc::Receiver<Stream>,
    out: mpsc::Sender<Out>,
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
}

/// One stream that the other side opened.
pub struct Stream {
    pub id: u32,
    pub headers: Headers,
    pub receiving: Receiving,
    pub sending: Sending,
}

impl Stream {
    /// The value of a header, or `""`.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }
}

/// The half of a stream that comes in.
pub struct Receiving {
    id: u32,
    pieces: mpsc::Receiver<Bytes>,
    out: mpsc::Sender<Out>,
    read: u32,
}

impl Receiving {
    /// The next piece; `None` at the end.
    pub async fn read(&mut self) -> Option<Bytes> {
        let piece = self.pieces.recv().await?;
        self.read = self.read.saturating_add(piece.len() as u32);
        if self.read >= ACKNOWLEDGE_BYTES {
            let delta = std::mem::take(&mut self.read);
            for stream in [self.id, 0] {
                // When the session is gone there is nobody to tell.
                let _ = self.out.send(Out::Frame(Frame::WindowUpdate { stream, delta })).await;
            }
        }
        Some(piece)
    }
}

/// The half of a stream that goes out. Dropped unfinished, the stream stays half open.
pub struct Sending {
    id: u32,
    out: mpsc::Sender<Out>,
    shared: Arc<Shared>,
}

impl Sending {
    pub async fn write(&self, mut bytes: Bytes) -> Result<(), Error> {
        while !bytes.is_empty() {
            let room = self.shared.room(self.id, bytes.len().min(PIECE_MAX_BYTES)).await?;
            let frame = Frame::Data { stream: self.id, fin: false, bytes: bytes.split_to(room) };
            self.out.send(Out::Frame(frame)).await.map_err(|_| Error::Closed)?;
        }
        Ok(())
    }

    /// No more bytes.
    pub async fn finish(self) {
        let frame = Frame::Data { stream: self.id, fin: true, bytes: Bytes::new() };
        let _ = self.out.send(Out::Frame(frame)).await;
    }

    /// Gives the whole stream up.
    pub async fn reset(self) {
        let _ = self.out.send(Out::Frame(Frame::Reset { stream: self.id, code: CANCEL })).await;
    }
}

impl Session {
    /// The side that accepts streams, on a wire that was upgraded already.
    pub fn accepting(wire: impl AsyncRead + AsyncWrite + Send + 'static) -> Session {
        let (read, write) = tokio::io::split(wire);
        let (out, frames) = mpsc::channel(FRAMES_MAX);
        let (hand, accepted) = mpsc::channel(PIECES_MAX);
        let windows = Windows {
            waits: false,
            initial: WINDOW_BYTES,
            session: WINDOW_BYTES,
            streams: BTreeMap::new(),
            closed: false,
        };
        let shared = Arc::new(Shared { windows: Mutex::new(windows), changed: Notify::new() });
        let inside = Reader { streams: BTreeMap::new(), last: 0, out: out.clone(), hand, shared: shared.clone() };
        let reader = tokio::spawn(async move {
            if let Err(error) = inside.run(read).await {
                tracing::debug!("{error}");
            }
            shared.change(|windows| windows.closed = true);
        });
        let writer = tokio::spawn(async move {
            if let Err(error) = write_frames(write, frames).await {
                tracing::debug!("{error}");
            }
        });
        Session { accepted, out, reader, writer }
    }

    /// The next stream that the other side opens; `None` when the session has ended.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.accepted.recv().await
    }

    /// Sends what waits, says good-bye, and gives the other side a moment to close.
    pub async fn close(mut self) {
        let _ = self.out.send(Out::Frame(Frame::GoAway { last: 0, code: 0 })).await;
        let _ = self.out.send(Out::End).await;
        let ended = async {
            let _ = (&mut self.writer).await;
            // What it still opens is nothing to us.
            while self.accepted.recv().await.is_some() {}
        };
        let _ = tokio::time::timeout(CLOSE_PATIENCE, ended).await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.reader.abort();
        self.writer.abort();
    }
}

async fn write_frames(mut wire: impl AsyncWrite + Unpin, mut frames: mpsc::Receiver<Out>) -> Result<(), Error> {
    let (mut encoder, mut bytes) = (Encoder::default(), Vec::new());
    let mut ends = false;
    while !ends && let Some(first) = frames.recv().await {
        let mut next = Some(first);
        while let Some(Out::Frame(frame)) = next {
            encoder.encode(&frame, &mut bytes);
            next = if bytes.len() < PIECE_MAX_BYTES { frames.try_recv().ok() } else { None };
        }
        ends = matches!(next, Some(Out::End));
        wire.write_all(&bytes).await?;
        wire.flush().await?;
        bytes.clear();
    }
    wire.shutdown().await?;
    Ok(())
}

struct Reader {
    /// Where the pieces of open streams go.
    streams: BTreeMap<u32, mpsc::Sender<Bytes>>,
    last: u32,
    out: mpsc::Sender<Out>,
    hand: mpsc::Sender<Stream>,
    shared: Arc<Shared>,
}

impl Reader {
    async fn run(mut self, mut wire: impl AsyncRead + Unpin) -> Result<(), Error> {
        let mut decoder = Decoder::default();
        loop {
            while let Some(frame) = decoder.next_frame()? {
                self.take(frame).await?;
            }
            decoder.buffer().reserve(PIECE_MAX_BYTES);
            if wire.read_buf(decoder.buffer()).await? == 0 {
                return Ok(());
            }
        }
    }

    async fn take(&mut self, frame: Frame) -> Result<(), Error> {
        match frame {
            Frame::SynStream { stream, fin, headers } => self.opened(stream, fin, headers).await?,
            Frame::Data { stream, fin, bytes } => self.data(stream, fin, bytes).await,
            Frame::Headers { stream, fin: true, .. } => {
                self.streams.remove(&stream);
            }
            Frame::Reset { stream, .. } => {
                self.streams.remove(&stream);
                self.shared.change(|windows| windows.streams.remove(&stream));
            }
            // Odd numbers are the other side's questions; even ones would be answers to ours.
            Frame::Ping(id) if id % 2 == 1 => {
                // A flood of questions need not be answered one by one.
                let _ = self.out.try_send(Out::Frame(Frame::Ping(id)));
            }
            Frame::Settings(settings) => {
                for (_, value) in settings.into_iter().filter(|(id, _)| *id == INITIAL_WINDOW) {
                    self.shared.change(|windows| {
                        let more = i64::from(value) - windows.initial;
                        windows.streams.values_mut().for_each(|window| *window += more);
                        (windows.initial, windows.waits) = (i64::from(value), true);
                    });
                }
            }
            Frame::WindowUpdate { stream, delta } => self.shared.change(|windows| {
                windows.waits = true;
                match stream {
                    0 => windows.session += i64::from(delta),
                    stream => {
                        if let Some(window) = windows.streams.get_mut(&stream) {
                            *window += i64::from(delta);
                        }
                    }
                }
            }),
            Frame::SynReply { .. }
            | Frame::Ping(_)
            | Frame::GoAway { .. }
            | Frame::Headers { .. }
            | Frame::Other(_) => {}
        }
        Ok(())
    }

    async fn opened(&mut self, id: u32, fin: bool, headers: Headers) -> Result<(), Error> {
        if id <= self.last || id.is_multiple_of(2) {
            return Err(Error::Malformed("a stream number out of order"));
        }
        self.last = id;
        self.streams.retain(|_, pieces| !pieces.is_closed());
        if self.streams.len() >= STREAMS_MAX {
            let refused = Frame::Reset { stream: id, code: REFUSED };
            return self.out.send(Out::Frame(refused)).await.map_err(|_| Error::Closed);
        }
        self.shared.change(|windows| windows.streams.insert(id, windows.initial));
        let reply = Frame::SynReply { stream: id, fin: false, headers: Headers::new() };
        self.out.send(Out::Frame(reply)).await.map_err(|_| Error::Closed)?;
        let (hand, pieces) = mpsc::channel(PIECES_MAX);
        if !fin {
            self.streams.insert(id, hand);
        }
        let receiving = Receiving { id, pieces, out: self.out.clone(), read: 0 };
        let sending = Sending { id, out: self.out.clone(), shared: self.shared.clone() };
        // Nobody accepts any more: the session is being closed.
        let _ = self.hand.send(Stream { id, headers, receiving, sending }).await;
        Ok(())
    }

    async fn data(&mut self, stream: u32, fin: bool, bytes: Bytes) {
        if let Some(pieces) = self.streams.get(&stream)
            && !bytes.is_empty()
        {
            // A reader that went away wants no more of it.
            let _ = pieces.send(bytes).await;
        }
        if fin {
            self.streams.remove(&stream);
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.shared.change(|windows| windows.streams.remove(&self.id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The other side, frame by frame.
    struct Peer {
        wire: tokio::io::DuplexStream,
        encoder: Encoder,
        decoder: Decoder,
    }

    impl Peer {
        fn new() -> (Peer, Session) {
            let (near, far) = tokio::io::duplex(4096);
            (Peer { wire: near, encoder: Encoder::default(), decoder: Decoder::default() }, Session::accepting(far))
        }

        async fn send(&mut self, frame: Frame) {
            let mut bytes = Vec::new();
            self.encoder.encode(&frame, &mut bytes);
            self.wire.write_all(&bytes).await.unwrap();
        }

        async fn open(&mut self, stream: u32) {
            let headers = vec![("streamType".to_owned(), "data".to_owned())];
            self.send(Frame::SynStream { stream, fin: false, headers }).await;
        }

        async fn next(&mut self) -> Option<Frame> {
            loop {
                if let Some(frame) = self.decoder.next_frame().unwrap() {
                    return Some(frame);
                }
                if self.wire.read_buf(self.decoder.buffer()).await.unwrap() == 0 {
                    return None;
                }
            }
        }
    }

    #[tokio::test]
    async fn streams_open_carry_and_end() {
        let (mut peer, mut session) = Peer::new();
        peer.open(1).await;
        let mut stream = session.accept().await.unwrap();
        assert_eq!(stream.header("streamtype"), "data");
        assert_eq!(peer.next().await, Some(Frame::SynReply { stream: 1, fin: false, headers: vec![] }));
        peer.send(Frame::Data { stream: 1, fin: true, bytes: "abc".into() }).await;
        assert_eq!(stream.receiving.read().await, Some("abc".into()));
        assert_eq!(stream.receiving.read().await, None);
        peer.send(Frame::Ping(7)).await;
        assert_eq!(peer.next().await, Some(Frame::Ping(7)));
        stream.sending.write("xyz".into()).await.unwrap();
        stream.sending.finish().await;
        assert_eq!(peer.next().await, Some(Frame::Data { stream: 1, fin: false, bytes: "xyz".into() }));
        assert_eq!(peer.next().await, Some(Frame::Data { stream: 1, fin: true, bytes: Bytes::new() }));
        let closing = tokio::spawn(session.close());
        assert_eq!(peer.next().await, Some(Frame::GoAway { last: 0, code: 0 }));
        assert_eq!(peer.next().await, None);
        drop(peer);
        closing.await.unwrap();
    }

    #[tokio::test]
    async fn a_peer_with_windows_is_waited_for_and_others_are_not() {
        let (mut peer, mut session) = Peer::new();
        peer.send(Frame::Settings(vec![(INITIAL_WINDOW, 10)])).await;
        peer.open(1).await;
        let stream = session.accept().await.unwrap();
        let writing =
            tokio::spawn(async move { stream.sending.write("0123456789abcdef".into()).await.map(|()| stream) });
        peer.next().await;
        assert_eq!(peer.next().await, Some(Frame::Data { stream: 1, fin: false, bytes: "0123456789".into() }));
        peer.send(Frame::WindowUpdate { stream: 1, delta: 3 }).await;
        assert_eq!(peer.next().await, Some(Frame::Data { stream: 1, fin: false, bytes: "abc".into() }));
        peer.send(Frame::Reset { stream: 1, code: CANCEL }).await;
        assert!(writing.await.unwrap().is_err());

        let (mut peer, mut session) = Peer::new();
        peer.open(1).await;
        let stream = session.accept().await.unwrap();
        let writing = tokio::spawn(async move { stream.sending.write(vec![1; 1 << 20].into()).await });
        let mut seen = 0;
        while seen < 1 << 20 {
            if let Some(Frame::Data { bytes, .. }) = peer.next().await {
                seen += bytes.len();
            }
        }
        writing.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_is_read_is_acknowledged_and_nonsense_ends_the_session() {
        let (mut peer, mut session) = Peer::new();
        peer.open(1).await;
        let mut stream = session.accept().await.unwrap();
        peer.next().await;
        peer.send(Frame::Data { stream: 1, fin: false, bytes: vec![1; 20 << 10].into() }).await;
        assert_eq!(stream.receiving.read().await.unwrap().len(), 20 << 10);
        assert_eq!(peer.next().await, Some(Frame::WindowUpdate { stream: 1, delta: 20 << 10 }));
        assert_eq!(peer.next().await, Some(Frame::WindowUpdate { stream: 0, delta: 20 << 10 }));
        peer.open(1).await;
        assert!(session.accept().await.is_none());
        assert!(stream.receiving.read().await.is_none());
    }
}
