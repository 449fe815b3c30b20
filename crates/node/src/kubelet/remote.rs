//! Exec and attach: a process' streams over WebSocket channels or SPDY streams.
//!
//! A bridge per protocol turns what the client sends into [`Input`] and writes [`Outgoing`]; [`pump`] stands between it
//! and the runtime's session and knows no protocol.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use meta::{Status, Value, json};
use runtime::{ExecRequest, Input, Output, Runtime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::websocket::{self, Socket};
use super::{Body, ContainerRef, Query, bare, listed};
use crate::spdy::{self, Receiving, Sending};

/// How long a client may take to open all streams that it asked for, and to go when all is said.
const STREAMS_TIMEOUT: Duration = Duration::from_secs(30);
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);
/// How long a process with a terminal waits for the size of its window.
const SIZE_PATIENCE: Duration = Duration::from_millis(300);
/// Messages that wait in either direction.
const MESSAGES_MAX: usize = 16;
/// The longest text of one window size.
const RESIZE_MAX_BYTES: usize = 4096;

/// Best first. The plain ones are of the time before exit codes had a form.
const WEBSOCKET_PROTOCOLS: [&str; 6] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "",
];
const SPDY_PROTOCOLS: [&str; 4] = ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// In version 5: the next byte is a channel that has ended.
const CLOSE: u8 = 255;

/// One request to exec or attach.
pub(super) struct Call {
    exec: bool,
    target: ContainerRef,
    argv: Vec<String>,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

/// What goes to the client. `End` is the last: `None` when all went well.
enum Outgoing {
    Stdout(Bytes),
    Stderr(Bytes),
    End(Option<Value>),
}

/// The client's side, whatever it speaks. `input` ends when the client is gone.
struct Remote {
    /// What came before the process was started; goes before `input`.
    early: Vec<Input>,
    input: mpsc::Receiver<Input>,
    output: mpsc::Sender<Outgoing>,
}

impl Call {
    pub fn new(exec: bool, target: ContainerRef, query: &Query) -> Result<Call, Status> {
        let argv: Vec<String> = query.all("command").map(str::to_owned).collect();
        if exec && argv.is_empty() {
            return Err(Status::bad_request("you must specify at least 1 command for the container"));
        }
        // Attaching to a terminal is always one, whatever the client says.
        let tty = if exec { query.flag(&["tty"]) } else { target.tty };
        let stdin = query.flag(&["stdin", "input"]);
        let stdout = query.flag(&["stdout", "output"]);
        // A terminal has one output.
        let stderr = query.flag(&["stderr", "error"]) && !tty;
        if !stdin && !stdout && !stderr {
            return Err(Status::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
        }
        Ok(Call { exec, target, argv, stdin, stdout, stderr, tty })
    }

    /// Upgrades the connection and runs the call on it.
    pub fn answer(self, runtime: Arc<dyn Runtime>, mut request: Request<Incoming>) -> Result<Response<Body>, Status> {
        if websocket::wanted(request.headers()) {
            let protocol = websocket::choose(request.headers(), &WEBSOCKET_PROTOCOLS)?;
            let (response, socket) = websocket::accept(request, protocol)?;
            tokio::spawn(async move {
                let Some(socket) = socket.await else { return };
                let remote = over_websocket(socket, protocol, &self);
                self.run(runtime, remote).await;
            });
            return Ok(response);
        }
        let (response, protocol) = spdy_response(&request, &SPDY_PROTOCOLS)?;
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let Ok(upgraded) = upgrade.await else { return };
            let session = spdy::Session::accepting(TokioIo::new(upgraded));
            match over_spdy(session, protocol, &self).await {
                Some(remote) => self.run(runtime, remote).await,
                None => tracing::debug!("a client did not open the streams of its call"),
            }
        });
        Ok(response)
    }

    async fn run(self, runtime: Arc<dyn Runtime>, mut remote: Remote) {
        let id = &self.target.id;
        let opened = if self.exec {
            // A program that asks for its window's size at once is to find it there; clients send it first.
            let size = if self.tty { first_size(&mut remote).await } else { None };
            let request = ExecRequest { argv: self.argv.clone(), tty: self.tty, stdin: self.stdin, size };
            runtime.exec(id, request).await
        } else {
            runtime.attach(id, self.stdin && self.target.stdin).await
        };
        match opened {
            Ok(session) => pump(session, remote, &self).await,
            Err(error) => {
                let doing = if self.exec { "executing command in" } else { "attaching to" };
                let status = Status::internal(format!("error {doing} container: {error}"));
                let _ = remote.output.send(Outgoing::End(Some(status.to_value()))).await;
            }
        }
    }
}

/// The window's size, if the client tells it soon. What else it said first is kept.
async fn first_size(remote: &mut Remote) -> Option<(u16, u16)> {
    let until = tokio::time::Instant::now() + SIZE_PATIENCE;
    while remote.early.len() < MESSAGES_MAX {
        match tokio::time::timeout_at(until, remote.input.recv()).await {
            Ok(Some(Input::Resize { columns, rows })) => return Some((columns, rows)),
            Ok(Some(other)) => remote.early.push(other),
            Ok(None) | Err(_) => break,
        }
    }
    None
}

/// Carries both directions until the process has ended or the client is gone.
async fn pump(session: runtime::Session, remote: Remote, call: &Call) {
    let runtime::Session { input, mut output } = session;
    let Remote { early, input: mut from_client, output: to_client } = remote;
    let mut early = early.into_iter();
    // Whoever attached to give something is done with it, unless the container's input ends with his: then he hears the rest.
    let leaves = call.stdin && !call.exec && (!call.target.stdin_once || call.tty);
    let feed = async {
        loop {
            let next = match early.next() {
                Some(message) => Some(message),
                None => from_client.recv().await,
            };
            let Some(message) = next else { break false };
            let wanted = match message {
                Input::Stdin(_) => call.stdin,
                Input::Close if leaves => break true,
                Input::Close => call.stdin,
                Input::Resize { .. } => true,
            };
            // A process that has closed its input still has output to be read.
            if wanted && input.send(message).await.is_err() {
                tracing::debug!("a process takes no more input");
            }
        }
    };
    let drain = async {
        let end = loop {
            let sent = match output.recv().await {
                Some(Output::Stdout(bytes)) if call.stdout => to_client.send(Outgoing::Stdout(bytes)).await,
                Some(Output::Stderr(bytes)) if call.stderr => to_client.send(Outgoing::Stderr(bytes)).await,
                Some(Output::Stdout(_) | Output::Stderr(_)) => Ok(()),
                Some(Output::Exit { code }) if call.exec && code != 0 => break Some(exited(code)),
                Some(Output::Exit { .. }) => break None,
                None => break Some(Status::internal("the container's streams broke off").to_value()),
            };
            if sent.is_err() {
                return;
            }
        };
        let _ = to_client.send(Outgoing::End(end)).await;
    };
    let has_left = tokio::select! {
        has_left = feed => has_left,
        () = drain => false,
    };
    if has_left {
        // One that is gone needs no farewell.
        let _ = to_client.send(Outgoing::End(None)).await;
    }
}

/// How an exit code other than 0 is told.
fn exited(code: i32) -> Value {
    json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": (format!("command terminated with non-zero exit code: {code}")),
        "details": {"causes": [{"reason": "ExitCode", "message": (code.to_string())}]},
    })
}

fn success() -> Value {
    json!({"metadata": {}, "status": "Success"})
}

/// A window size as clients write it.
fn resize(text: &[u8]) -> Option<Input> {
    let size = Value::parse(text).ok()?;
    let side = |name: &str| size[name].as_int().and_then(|side| u16::try_from(side).ok());
    Some(Input::Resize { columns: side("Width")?, rows: side("Height")? })
}

// WebSocket

/// Which forms a WebSocket protocol has.
#[derive(Clone, Copy)]
struct Form {
    base64: bool,
    /// The end is told as a `Status`.
    structured: bool,
    closes: bool,
}

impl Form {
    fn message(self, channel: u8, bytes: &[u8]) -> Message {
        if self.base64 {
            return Message::text(format!("{channel}{}", STANDARD.encode(bytes)));
        }
        let mut message = BytesMut::with_capacity(bytes.len() + 1);
        message.extend_from_slice(&[channel]);
        message.extend_from_slice(bytes);
        Message::Binary(message.freeze())
    }

    fn read(self, message: Message) -> Option<(u8, Bytes)> {
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
            _ => return None,
        };
        let channel = *bytes.first()?;
        let rest = bytes.slice(1..);
        if self.base64 {
            return Some((channel.checked_sub(b'0')?, STANDARD.decode(&rest).ok()?.into()));
        }
        Some((channel, rest))
    }
}

impl Form {
    fn of(protocol: &str) -> Form {
        Form {
            base64: protocol.contains("base64"),
            structured: protocol.starts_with("v4") || protocol.starts_with("v5"),
            closes: protocol.starts_with("v5"),
        }
    }
}

/// Reads a client's messages in a protocol as a call does; for whoever throws bytes at it.
pub(crate) async fn read_messages<S>(socket: WebSocketStream<S>, protocol: &str, to_process: mpsc::Sender<Input>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    read_socket(socket.split().1, Form::of(protocol), to_process).await;
}

fn over_websocket(socket: Socket, protocol: &str, call: &Call) -> Remote {
    let form = Form::of(protocol);
    let (sink, stream) = socket.split();
    let (to_process, input) = mpsc::channel(MESSAGES_MAX);
    let (output, from_process) = mpsc::channel(MESSAGES_MAX);
    let first = if call.stdout {
        STDOUT
    } else if call.stderr {
        STDERR
    } else {
        ERROR
    };
    let reader = tokio::spawn(read_socket(stream, form, to_process));
    tokio::spawn(write_socket(sink, form, first, from_process, reader));
    Remote { early: Vec::new(), input, output }
}

async fn read_socket<S>(mut stream: SplitStream<WebSocketStream<S>>, form: Form, to_process: mpsc::Sender<Input>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(Ok(message)) = stream.next().await {
        let input = match form.read(message) {
            Some((STDIN, bytes)) if !bytes.is_empty() => Input::Stdin(bytes),
            Some((CLOSE, channels)) if form.closes && channels.first() == Some(&STDIN) => Input::Close,
            Some((RESIZE, text)) => match resize(&text) {
                Some(size) => size,
                None => continue,
            },
            _ => continue,
        };
        // After the end of the process the client's closing is still waited for.
        let _ = to_process.send(input).await;
    }
}

async fn write_socket(
    mut sink: SplitSink<Socket, Message>,
    form: Form,
    first: u8,
    mut from_process: mpsc::Receiver<Outgoing>,
    mut reader: tokio::task::JoinHandle<()>,
) {
    // Tells the client that all is set up.
    let mut alive = sink.send(form.message(first, b"")).await.is_ok();
    while alive && let Some(outgoing) = from_process.recv().await {
        let message = match outgoing {
            Outgoing::Stdout(bytes) => form.message(STDOUT, &bytes),
            Outgoing::Stderr(bytes) => form.message(STDERR, &bytes),
            Outgoing::End(end) if form.structured => form.message(ERROR, &end.unwrap_or_else(success).to_json()),
            Outgoing::End(Some(end)) => form.message(ERROR, end["message"].text().as_bytes()),
            Outgoing::End(None) => continue,
        };
        alive = sink.send(message).await.is_ok();
    }
    if alive {
        websocket::close(&mut sink).await;
        let _ = tokio::time::timeout(CLOSE_PATIENCE, &mut reader).await;
    }
    reader.abort();
}

// SPDY

/// The answer that upgrades to SPDY, and the protocol inside it that both know.
pub(super) fn spdy_response(
    request: &Request<Incoming>,
    known: &[&'static str],
) -> Result<(Response<Body>, &'static str), Status> {
    let wants = listed(request.headers(), "upgrade").iter().any(|word| word.eq_ignore_ascii_case("SPDY/3.1"));
    if !wants {
        return Err(Status::bad_request("you must upgrade to a WebSocket or to SPDY/3.1"));
    }
    let offered = listed(request.headers(), "x-stream-protocol-version");
    let chosen = match known.iter().find(|known| offered.iter().any(|offered| offered == *known)) {
        Some(chosen) => *chosen,
        // The oldest clients do not say.
        None if offered.is_empty() => known.last().copied().unwrap_or_default(),
        None => return Err(Status::bad_request(format!("no protocol of {offered:?} is spoken here"))),
    };
    let mut response = bare(StatusCode::SWITCHING_PROTOCOLS);
    let headers = response.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert("x-stream-protocol-version", HeaderValue::from_static(chosen));
    Ok((response, chosen))
}

#[derive(Default)]
struct Outs {
    error: Option<Sending>,
    stdout: Option<Sending>,
    stderr: Option<Sending>,
}

/// Waits for all streams of the call; `None` when they do not come.
async fn over_spdy(mut session: spdy::Session, protocol: &str, call: &Call) -> Option<Remote> {
    let (to_process, input) = mpsc::channel(MESSAGES_MAX);
    let (output, from_process) = mpsc::channel(MESSAGES_MAX);
    let resizes = call.tty && !protocol.starts_with("v2") && !protocol.starts_with("channel");
    let mut missing = 1 + [call.stdin, call.stdout, call.stderr, resizes].into_iter().filter(|wanted| *wanted).count();
    let mut outs = Outs::default();
    // Halves that are not used must stay, or their streams would count as closed.
    let mut kept: Vec<Receiving> = Vec::new();
    let collecting = async {
        while missing > 0 {
            let stream = session.accept().await?;
            let slot = match stream.header("streamtype") {
                "stdin" => {
                    tokio::spawn(read_stdin(stream.receiving, to_process.clone(), stream.sending));
                    missing -= 1;
                    continue;
                }
                "resize" => {
                    tokio::spawn(read_resizes(stream.receiving, to_process.clone(), stream.sending));
                    missing -= 1;
                    continue;
                }
                "error" => &mut outs.error,
                "stdout" => &mut outs.stdout,
                "stderr" => &mut outs.stderr,
                _ => {
                    stream.sending.reset().await;
                    continue;
                }
            };
            *slot = Some(stream.sending);
            kept.push(stream.receiving);
            missing -= 1;
        }
        Some(())
    };
    tokio::time::timeout(STREAMS_TIMEOUT, collecting).await.ok()??;
    let structured = protocol.starts_with("v4");
    tokio::spawn(async move {
        let _kept = kept;
        let writing = write_streams(outs, structured, from_process);
        let gone = async {
            while let Some(stream) = session.accept().await {
                stream.sending.reset().await;
            }
            // Holding a sender until here keeps the input open while the client is there.
            drop(to_process);
        };
        let said = tokio::select! {
            () = writing => true,
            () = gone => false,
        };
        if said {
            session.close().await;
        }
    });
    Some(Remote { early: Vec::new(), input, output })
}

async fn read_stdin(mut receiving: Receiving, to_process: mpsc::Sender<Input>, _sending: Sending) {
    while let Some(bytes) = receiving.read().await {
        if to_process.send(Input::Stdin(bytes)).await.is_err() {
            return;
        }
    }
    let _ = to_process.send(Input::Close).await;
}

async fn read_resizes(mut receiving: Receiving, to_process: mpsc::Sender<Input>, _sending: Sending) {
    let mut text = BytesMut::new();
    while let Some(bytes) = receiving.read().await {
        text.extend_from_slice(&bytes);
        // Sizes are flat objects, one after the other.
        while let Some(end) = text.iter().position(|byte| *byte == b'}') {
            let one = text.split_to(end + 1);
            if let Some(size) = resize(&one)
                && to_process.send(size).await.is_err()
            {
                return;
            }
        }
        if text.len() > RESIZE_MAX_BYTES {
            return;
        }
    }
}

async fn write_streams(outs: Outs, structured: bool, mut from_process: mpsc::Receiver<Outgoing>) {
    let Outs { error, stdout, stderr } = outs;
    let mut end = None;
    while let Some(outgoing) = from_process.recv().await {
        let (sending, bytes) = match outgoing {
            Outgoing::Stdout(bytes) => (&stdout, bytes),
            Outgoing::Stderr(bytes) => (&stderr, bytes),
            Outgoing::End(value) => {
                end = Some(value);
                break;
            }
        };
        if let Some(sending) = sending
            && sending.write(bytes).await.is_err()
        {
            return;
        }
    }
    for sending in [stdout, stderr].into_iter().flatten() {
        sending.finish().await;
    }
    let Some(error) = error else { return };
    let text = match end {
        Some(end) if structured => end.unwrap_or_else(success).to_json(),
        Some(Some(end)) => end["message"].text().as_bytes().to_vec(),
        _ => Vec::new(),
    };
    // When the client is gone there is nobody to tell.
    let _ = error.write(text.into()).await;
    error.finish().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(tty: bool) -> ContainerRef {
        ContainerRef {
            id: "c".into(),
            log_path: "/l".into(),
            previous_log_path: None,
            tty,
            stdin: true,
            stdin_once: false,
        }
    }

    #[test]
    fn calls_are_read_in_both_spellings() {
        let call = Call::new(true, target(false), &Query::parse("command=ls&input=1&output=1&error=1&tty=1")).unwrap();
        assert!(call.stdin && call.stdout && !call.stderr && call.tty);
        let call = Call::new(false, target(false), &Query::parse("stdout=true&stderr=true&tty=true")).unwrap();
        assert!(!call.stdin && call.stdout && call.stderr && !call.tty);
        assert!(Call::new(true, target(false), &Query::parse("stdout=true")).is_err());
        assert!(Call::new(true, target(false), &Query::parse("command=ls")).is_err());
    }

    #[test]
    fn messages_have_channels() {
        for base64 in [false, true] {
            let form = Form { base64, structured: true, closes: true };
            assert_eq!(form.read(form.message(STDERR, b"oh")), Some((STDERR, "oh".into())));
            assert_eq!(form.read(Message::Binary(Bytes::new())), None);
        }
        assert_eq!(resize(b"{\"Width\":80,\"Height\":24}\n"), Some(Input::Resize { columns: 80, rows: 24 }));
        assert_eq!(resize(b"{\"Width\":-1,\"Height\":24}"), None);
    }
}
