//! The agent's end of a shim: one control connection with requests, replies and events, and one connection per
//! stream session.

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

use crate::plan::{Envelope, Record, Reply, Request, frame};
use crate::seam::{Input, Output, Session};
use crate::shim::SOCKET_FILE;
use crate::{Error, lock};

/// Messages that wait in a session, each way.
const SESSION_QUEUE: usize = 16;
/// A shim answers at once; only a new process takes a little. This long means that it hangs.
const ANSWER_MS: u64 = 30_000;
/// How long a process may take what somebody gave it who has left since.
const LAST_INPUT_PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

type Waiting = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Reply>>>>>;

/// A live control connection. Cheap to clone.
#[derive(Clone)]
pub(super) struct Link {
    requests: mpsc::UnboundedSender<Vec<u8>>,
    waiting: Waiting,
    next: Arc<std::sync::atomic::AtomicU64>,
}

/// What a control connection tells without being asked.
pub(super) enum Event {
    Ended(Record),
    /// The shim is gone.
    Lost,
}

/// What a shim says when it is greeted.
pub(super) struct Greeting {
    pub pid: i32,
    pub records: Vec<Record>,
}

impl Link {
    /// Connects to the shim in `dir`. Events go to `events`.
    pub async fn open(dir: &Path, events: impl Fn(Event) + Send + 'static) -> Result<(Link, Greeting), Error> {
        let (mut reader, mut writer) = connect(dir).await?.into_split();
        let (requests, mut queue) = mpsc::unbounded_channel::<Vec<u8>>();
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let link = Link { requests, waiting: waiting.clone(), next: Arc::new(1.into()) };
        tokio::spawn(async move {
            while let Some(bytes) = queue.recv().await {
                if writer.write_all(&bytes).await.is_err() {
                    break;
                }
            }
        });
        tokio::spawn(async move {
            let mut buffer = Vec::new();
            while let Ok(Some((kind, payload))) = read_frame(&mut reader, &mut buffer).await {
                let envelope = match kind {
                    frame::MESSAGE => serde_json::from_slice::<Envelope<Reply>>(&payload),
                    _ => continue,
                };
                match envelope {
                    Ok(Envelope { body: Reply::Ended(record), .. }) => events(Event::Ended(record)),
                    Ok(Envelope { id, body }) => {
                        let answer = lock(&waiting).as_mut().and_then(|w| w.remove(&id));
                        if let Some(answer) = answer {
                            let _ = answer.send(body);
                        }
                    }
                    Err(error) => tracing::warn!(%error, "a shim said something that is not understood"),
                }
            }
            // Whoever waits learns by the dropped sender.
            *lock(&waiting) = None;
            events(Event::Lost);
        });
        match link.ask(Request::Hello).await? {
            Reply::Hello { pid, records, .. } => Ok((link, Greeting { pid, records })),
            other => Err(unexpected("greet the shim", other)),
        }
    }

    /// One request and its reply. [`Reply::Failed`] is returned as it is.
    pub async fn ask(&self, body: Request) -> Result<Reply, Error> {
        let id = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (answer, reply) = oneshot::channel();
        let gone = || Error::Shim { doing: "ask the pod's shim".to_owned(), why: "it is gone".to_owned() };
        let bytes = encode(id, body)?;
        lock(&self.waiting).as_mut().ok_or_else(gone)?.insert(id, answer);
        self.requests.send(bytes).map_err(|_| gone())?;
        match tokio::time::timeout(std::time::Duration::from_millis(ANSWER_MS), reply).await {
            Ok(reply) => reply.map_err(|_| gone()),
            Err(_) => Err(Error::Timeout { doing: "an answer of the pod's shim".to_owned(), after_ms: ANSWER_MS }),
        }
    }

    /// A request whose answer nobody hears.
    pub fn tell(&self, body: Request) {
        let id = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if let Ok(bytes) = encode(id, body) {
            // One that is gone needs to be told nothing.
            let _ = self.requests.send(bytes);
        }
    }

    /// A request whose only good answer is "done".
    pub async fn order(&self, doing: &str, request: Request) -> Result<(), Error> {
        match self.ask(request).await? {
            Reply::Done => Ok(()),
            other => Err(unexpected(doing, other)),
        }
    }
}

pub(super) fn unexpected(doing: &str, reply: Reply) -> Error {
    let why = match reply {
        Reply::Failed { why } => why,
        other => format!("unexpected answer {other:?}"),
    };
    Error::Shim { doing: doing.to_owned(), why }
}

fn encode(id: u64, body: Request) -> Result<Vec<u8>, Error> {
    let text = serde_json::to_vec(&Envelope { id, body })
        .map_err(|e| Error::Shim { doing: "write a request".to_owned(), why: e.to_string() })?;
    if text.len() >= frame::MAX_BYTES {
        return Err(Error::TooLarge { what: "a request to the shim".to_owned(), limit: frame::MAX_BYTES as u64 });
    }
    let mut bytes = Vec::with_capacity(text.len() + frame::HEAD_BYTES);
    frame::put(&mut bytes, frame::MESSAGE, &text);
    Ok(bytes)
}

async fn connect(dir: &Path) -> Result<UnixStream, Error> {
    // Socket paths are limited to 107 bytes; through the descriptor of the directory any depth works.
    let doing = || format!("connect to the shim in {}", dir.display());
    let dir_fd = std::fs::File::open(dir).map_err(Error::io(doing()))?;
    let path = format!("/proc/self/fd/{}/{SOCKET_FILE}", dir_fd.as_raw_fd());
    UnixStream::connect(path).await.map_err(Error::io(doing()))
}

/// The next frame, or `None` at the end.
async fn read_frame(reader: &mut OwnedReadHalf, buffer: &mut Vec<u8>) -> std::io::Result<Option<(u8, Bytes)>> {
    loop {
        match frame::split(buffer) {
            Ok(Some((kind, range, next))) => {
                let payload = Bytes::copy_from_slice(&buffer[range]);
                buffer.drain(..next);
                return Ok(Some((kind, payload)));
            }
            Ok(None) => {}
            Err(why) => return Err(std::io::Error::other(why)),
        }
        if reader.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

/// Opens a connection, sends `request` and, when it is granted, hands the connection's streams to the caller.
pub(super) async fn session(dir: &Path, request: Request) -> Result<(Reply, Option<Session>), Error> {
    let (mut reader, mut writer) = connect(dir).await?.into_split();
    let failed = |e: std::io::Error| Error::Io { doing: "talk to the shim".to_owned(), source: e };
    writer.write_all(&encode(1, request)?).await.map_err(failed)?;
    let mut buffer = Vec::new();
    let reply = match read_frame(&mut reader, &mut buffer).await.map_err(failed)? {
        Some((frame::MESSAGE, payload)) => {
            serde_json::from_slice::<Envelope<Reply>>(&payload)
                .map_err(|e| Error::Shim { doing: "open a stream".to_owned(), why: e.to_string() })?
                .body
        }
        _ => return Err(Error::Shim { doing: "open a stream".to_owned(), why: "the shim is gone".to_owned() }),
    };
    if !matches!(reply, Reply::Started(_) | Reply::Attached { .. }) {
        return Ok((reply, None));
    }
    let (input, inputs) = mpsc::channel(SESSION_QUEUE);
    let (outputs, output) = mpsc::channel(SESSION_QUEUE);
    tokio::spawn(pump(reader, buffer, writer, inputs, outputs));
    Ok((reply, Some(Session { input, output })))
}

/// Runs a session until the process ends or nobody listens. Ending it closes the connection, which tells the shim.
async fn pump(
    mut reader: OwnedReadHalf,
    mut buffer: Vec<u8>,
    mut writer: OwnedWriteHalf,
    mut inputs: mpsc::Receiver<Input>,
    outputs: mpsc::Sender<Output>,
) {
    let sending = async {
        let mut bytes = Vec::new();
        while let Some(input) = inputs.recv().await {
            bytes.clear();
            match input {
                Input::Stdin(data) => {
                    data.chunks(frame::MAX_BYTES / 2).for_each(|d| frame::put(&mut bytes, frame::STDIN, d));
                }
                Input::Close => frame::put(&mut bytes, frame::STDIN_END, &[]),
                Input::Resize { columns, rows } => {
                    let [a, b] = columns.to_le_bytes();
                    let [c, d] = rows.to_le_bytes();
                    frame::put(&mut bytes, frame::RESIZE, &[a, b, c, d]);
                }
            }
            if writer.write_all(&bytes).await.is_err() {
                break;
            }
        }
        // No more input; the output goes on for as long as somebody listens.
        outputs.closed().await;
    };
    let receiving = async {
        while let Ok(Some((kind, payload))) = read_frame(&mut reader, &mut buffer).await {
            let output = match kind {
                frame::STDOUT => Output::Stdout(payload),
                frame::STDERR => Output::Stderr(payload),
                frame::EXIT => {
                    let code = payload.first_chunk::<4>().map_or(255, |c| i32::from_le_bytes(*c));
                    let _ = outputs.send(Output::Exit { code }).await;
                    return;
                }
                _ => continue,
            };
            if outputs.send(output).await.is_err() {
                return;
            }
        }
    };
    // Whoever leaves has said what he said: it is handed on, unless the process takes nothing.
    let given_up = async {
        outputs.closed().await;
        tokio::time::sleep(LAST_INPUT_PATIENCE).await;
    };
    tokio::select! {
        () = sending => {}
        () = receiving => {}
        () = given_up => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_somebody_gave_before_he_left_is_handed_on() {
        // Which of two things that are ready is seen first is chance.
        for _ in 0..50 {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let (reader, writer) = ours.into_split();
            let (input, inputs) = mpsc::channel(SESSION_QUEUE);
            let (outputs, output) = mpsc::channel(SESSION_QUEUE);
            input.send(Input::Stdin(Bytes::from_static(b"last words"))).await.unwrap();
            drop((input, output));
            pump(reader, Vec::new(), writer, inputs, outputs).await;
            let (mut heard, mut buffer) = (theirs.into_split().0, Vec::new());
            let frame = read_frame(&mut heard, &mut buffer).await.unwrap();
            assert_eq!(frame, Some((frame::STDIN, Bytes::from_static(b"last words"))));
        }
    }
}
