//! gRPC as etcd speaks it, over hyper: one HTTP/2 connection, calls with one answer, and streams.
//!
//! Invariants: every call has a time limit; it is told apart whether a request certainly did nothing ([`Failure::NotSent`])
//! or may have been carried out ([`Failure::Lost`]).

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::HeaderMap;
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// The longest message that is read.
pub const MESSAGE_MAX_BYTES: usize = 1 << 30;
/// How long connecting to one endpoint may take, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes that etcd may send ahead on one stream and on one connection.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;

/// gRPC's codes that decide something here.
pub mod code {
    pub const INVALID_ARGUMENT: u32 = 3;
    pub const NOT_FOUND: u32 = 5;
    pub const RESOURCE_EXHAUSTED: u32 = 8;
    pub const OUT_OF_RANGE: u32 = 11;
    pub const UNAVAILABLE: u32 = 14;
    pub const UNAUTHENTICATED: u32 = 16;
}

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nothing of it reached etcd.
    NotSent(String),
    /// It was sent, and no answer came.
    Lost(String),
    /// etcd said no.
    Said { code: u32, message: String },
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::NotSent(why) | Failure::Lost(why) => f.write_str(why),
            Failure::Said { message, .. } => f.write_str(message),
        }
    }
}

/// One member of etcd, as a client reaches it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub host: String,
    pub port: u16,
    pub tls: bool,
}

impl Endpoint {
    /// Reads `https://HOST:PORT` or `http://HOST:PORT`.
    ///
    /// # Errors
    /// A sentence on what is wrong with it.
    pub fn parse(text: &str) -> Result<Endpoint, String> {
        let wrong = || format!("{text:?} is no endpoint of etcd; write it like https://192.0.2.10:2379");
        let (tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err(wrong()),
        };
        let authority: http::uri::Authority = rest.trim_end_matches('/').parse().map_err(|_| wrong())?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(wrong());
        }
        Ok(Endpoint { host, port: authority.port_u16().unwrap_or(2379), tls })
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }
}

/// What a request is made of: one message, or those that come.
pub enum Outgoing {
    Whole(Option<Bytes>),
    Stream(mpsc::Receiver<Bytes>),
}

impl hyper::body::Body for Outgoing {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::convert::Infallible>>> {
        match self.get_mut() {
            Outgoing::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Outgoing::Stream(receiver) => receiver.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }
}

/// A message with gRPC's five bytes in front.
pub fn framed(message: &impl Message) -> Bytes {
    let mut text = BytesMut::with_capacity(5 + message.encoded_len());
    text.put_u8(0);
    // A request is bounded far below this by the limits on transactions.
    text.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    text.extend_from_slice(&message.encode_to_vec());
    text.freeze()
}

/// A connection to one endpoint.
pub struct Link {
    sender: SendRequest<Outgoing>,
    pub endpoint: Endpoint,
    broken: AtomicBool,
    token: Option<String>,
}

impl Link {
    /// Connects; `tls` must be there for endpoints that want it.
    pub async fn open(
        endpoint: &Endpoint,
        tls: Option<&Arc<rustls::ClientConfig>>,
        token: Option<String>,
    ) -> Result<Link, String> {
        let connect = Link::connect(endpoint, tls, token);
        match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(done) => done.map_err(|why| format!("{endpoint}: {why}")),
            Err(_) => Err(format!("{endpoint}: no connection within {} s", CONNECT_TIMEOUT.as_secs())),
        }
    }

    async fn connect(
        endpoint: &Endpoint,
        tls: Option<&Arc<rustls::ClientConfig>>,
        token: Option<String>,
    ) -> Result<Link, String> {
        let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await.map_err(|e| e.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let sender = if endpoint.tls {
            let tls = tls.ok_or("there is no configuration for TLS")?;
            let name = ServerName::try_from(endpoint.host.clone()).map_err(|error| error.to_string())?;
            let connector = tokio_rustls::TlsConnector::from(tls.clone());
            let stream = connector.connect(name, stream).await.map_err(|error| error.to_string())?;
            Link::speak(TokioIo::new(stream)).await?
        } else {
            Link::speak(TokioIo::new(stream)).await?
        };
        Ok(Link { sender, endpoint: endpoint.clone(), broken: AtomicBool::new(false), token })
    }

    async fn speak<T>(io: T) -> Result<SendRequest<Outgoing>, String>
    where
        T: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
    {
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(4 << 20);
        let (sender, connection) = builder.handshake(io).await.map_err(|error| error.to_string())?;
        tokio::spawn(async move {
            // Whoever waits for an answer is told by the answer that the connection ended.
            let _ = connection.await;
        });
        Ok(sender)
    }

    pub fn is_usable(&self) -> bool {
        !self.broken.load(Ordering::Acquire) && !self.sender.is_closed()
    }

    /// Nobody shall use it any more.
    pub fn give_up(&self) {
        self.broken.store(true, Ordering::Release);
    }

    fn request(&self, path: &str, body: Outgoing, has_leader: bool) -> Result<http::Request<Outgoing>, Failure> {
        let scheme = if self.endpoint.tls { "https" } else { "http" };
        let mut request = http::Request::post(format!("{scheme}://{}{path}", self.endpoint.authority()))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("user-agent", concat!("gantry/", env!("CARGO_PKG_VERSION")));
        if has_leader {
            // A member that is cut off from the others says so, and does not make us wait.
            request = request.header("hasleader", "true");
        }
        if let Some(token) = &self.token {
            request = request.header("token", token);
        }
        request.body(body).map_err(|error| Failure::NotSent(error.to_string()))
    }

    /// One message there, one back.
    pub async fn call<A: Message, B: Message + Default>(
        &self,
        path: &str,
        message: &A,
        limit: Duration,
    ) -> Result<B, Failure> {
        let work = async {
            let mut stream = self.send(path, Outgoing::Whole(Some(framed(message)))).await?;
            let answer = stream.next().await?;
            let answer = answer.ok_or_else(|| Failure::Lost("etcd answered with nothing".to_owned()))?;
            // The status behind the message decides.
            while stream.next::<B>().await?.is_some() {}
            Ok(answer)
        };
        let late = || Failure::Lost(format!("{} did not answer within {} ms", self.endpoint, limit.as_millis()));
        tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(late()))
    }

    /// Opens a stream of answers.
    pub async fn send(&self, path: &str, body: Outgoing) -> Result<Answers, Failure> {
        let mut sender = self.sender.clone();
        let not_sent = |error: hyper::Error| Failure::NotSent(format!("{}: {error}", self.endpoint));
        sender.ready().await.map_err(not_sent)?;
        let request = self.request(path, body, true)?;
        let response = sender.send_request(request).await;
        let response = response.map_err(|error| Failure::Lost(format!("{}: {error}", self.endpoint)))?;
        if response.status() != http::StatusCode::OK {
            return Err(Failure::Lost(format!("{}: HTTP {}", self.endpoint, response.status().as_u16())));
        }
        // An answer without messages has its status in the head.
        if let Some(failure) = said(response.headers())? {
            return Err(failure);
        }
        let place = self.endpoint.to_string();
        Ok(Answers { body: response.into_body(), rest: BytesMut::new(), place, ended: false })
    }
}

/// The status among headers or trailers: `Ok(None)` for none, or for "all is well".
fn said(headers: &HeaderMap) -> Result<Option<Failure>, Failure> {
    let Some(status) = headers.get("grpc-status") else { return Ok(None) };
    let status = status.to_str().ok().and_then(|text| text.parse::<u32>().ok());
    let code = status.ok_or_else(|| Failure::Lost("the status of the answer is not readable".to_owned()))?;
    if code == 0 {
        return Ok(None);
    }
    let message = headers.get("grpc-message").and_then(|text| text.to_str().ok()).unwrap_or_default();
    Ok(Some(Failure::Said { code, message: unescaped(message) }))
}

/// `%20` and the like.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The messages of an answer.
pub struct Answers {
    body: Incoming,
    rest: BytesMut,
    place: String,
    ended: bool,
}

impl Answers {
    /// The next message, `None` at a good end.
    pub async fn next<B: Message + Default>(&mut self) -> Result<Option<B>, Failure> {
        loop {
            if let Some(message) = message(&mut self.rest, &self.place)? {
                return Ok(Some(message));
            }
            if self.ended {
                return Ok(None);
            }
            let lost = |why: String| Failure::Lost(format!("{}: {why}", self.place));
            let Some(frame) = self.body.frame().await else {
                return Err(lost("the answer ended without its status".to_owned()));
            };
            match frame.map_err(|error| lost(error.to_string()))?.into_data() {
                Ok(data) => self.rest.extend_from_slice(&data),
                Err(frame) => {
                    let Ok(trailers) = frame.into_trailers() else { continue };
                    if let Some(failure) = said(&trailers)? {
                        return Err(failure);
                    }
                    self.ended = true;
                }
            }
        }
    }
}

/// The first message of `rest`, as soon as all of it is there; it came from `place`.
pub fn message<B: Message + Default>(rest: &mut BytesMut, place: &str) -> Result<Option<B>, Failure> {
    if rest.len() < 5 {
        return Ok(None);
    }
    let bytes = u32::from_be_bytes([rest[1], rest[2], rest[3], rest[4]]) as usize;
    if bytes > MESSAGE_MAX_BYTES || rest[0] != 0 {
        return Err(Failure::Lost(format!("{place}: the answer is too long, or compressed")));
    }
    if rest.len() < 5 + bytes {
        return Ok(None);
    }
    rest.advance(5);
    let text = rest.split_to(bytes).freeze();
    let bad = |error: prost::DecodeError| Failure::Lost(format!("{place}: {error}"));
    B::decode(text).map(Some).map_err(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_or_refused_with_an_example() {
        let one = Endpoint::parse("https://a.example:2379/").unwrap();
        assert_eq!((one.host.as_str(), one.port, one.tls), ("a.example", 2379, true));
        assert_eq!(Endpoint::parse("http://[::1]:9").unwrap().to_string(), "http://[::1]:9");
        assert_eq!(Endpoint::parse("https://a").unwrap().port, 2379);
        for bad in ["", "a:2379", "ftp://a", "https://", "https://a b"] {
            assert!(Endpoint::parse(bad).unwrap_err().contains("https://192.0.2.10:2379"), "{bad}");
        }
    }

    #[test]
    fn messages_of_a_status_are_read() {
        assert_eq!(unescaped("a%20b%c3%bc%"), "a bü%");
    }
}
