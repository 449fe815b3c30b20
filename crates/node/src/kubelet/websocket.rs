//! The WebSocket side of upgrades: the handshake, the protocols, and a byte stream inside messages.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream::SplitSink;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use meta::Status;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use super::{Body, bare};

/// The largest message taken.
const MESSAGE_MAX_BYTES: usize = 16 << 20;
/// Bytes that wait between the messages and the stream inside them.
const TUNNEL_BYTES: usize = 64 << 10;

pub(super) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// The server's side of a socket on a connection whose handshake is over.
pub(crate) async fn over<S: AsyncRead + AsyncWrite + Unpin>(io: S) -> WebSocketStream<S> {
    let config =
        WebSocketConfig::default().max_message_size(Some(MESSAGE_MAX_BYTES)).max_frame_size(Some(MESSAGE_MAX_BYTES));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// Whether a request wants a WebSocket.
pub(super) fn wanted(headers: &HeaderMap) -> bool {
    super::listed(headers, "upgrade").iter().any(|word| word.eq_ignore_ascii_case("websocket"))
}

/// The first of `known` that the client offers; `""` when it offers none at all and `known` has that.
pub(super) fn choose(headers: &HeaderMap, known: &[&'static str]) -> Result<&'static str, Status> {
    let offered = super::listed(headers, "sec-websocket-protocol");
    let chosen = known.iter().find(|known| match **known {
        "" => offered.is_empty(),
        known => offered.iter().any(|offered| offered == known),
    });
    chosen.copied().ok_or_else(|| Status::bad_request(format!("no protocol of {offered:?} is spoken here")))
}

/// The answer that upgrades, and what becomes the socket once it was sent.
pub(super) fn accept(
    mut request: Request<Incoming>,
    protocol: &'static str,
) -> Result<(Response<Body>, impl Future<Output = Option<Socket>> + Send), Status> {
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY);
    let key = key.ok_or_else(|| Status::bad_request("a WebSocket needs the header Sec-WebSocket-Key"))?;
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(Status::internal)?;
    let mut response = bare(StatusCode::SWITCHING_PROTOCOLS);
    let headers = response.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if !protocol.is_empty() {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let socket = async move { Some(over(TokioIo::new(upgrade.await.ok()?)).await) };
    Ok((response, socket))
}

/// Says that all went in order; without a code the clients take it for a fault.
pub(super) async fn close<S: AsyncRead + AsyncWrite + Unpin>(sink: &mut SplitSink<WebSocketStream<S>, Message>) {
    let frame = CloseFrame { code: CloseCode::Normal, reason: Default::default() };
    // A client that is gone needs no good-bye.
    let _ = sink.send(Message::Close(Some(frame))).await;
}

/// The forms in which a plain answer is read over a socket; without a name as `binary.k8s.io`.
const READ_PROTOCOLS: [&str; 3] = ["binary.k8s.io", "base64.binary.k8s.io", ""];

/// Sends an answer's body as the messages of a socket, for clients that read streams so (`wsstream.Reader` of upstream's
/// API server).
pub(super) fn read(request: Request<Incoming>, mut body: Body) -> Result<Response<Body>, Status> {
    let protocol = choose(request.headers(), &READ_PROTOCOLS)?;
    let (response, socket) = accept(request, protocol)?;
    tokio::spawn(async move {
        let Some(socket) = socket.await else { return };
        let (mut sink, mut stream) = socket.split();
        loop {
            let frame = tokio::select! {
                frame = body.frame() => frame,
                // The client has nothing to say but that it goes.
                said = stream.next() => match said {
                    Some(Ok(message)) if !message.is_close() => continue,
                    _ => return,
                },
            };
            let Some(Ok(frame)) = frame else { break };
            let Ok(bytes) = frame.into_data() else { continue };
            let message = match protocol {
                "base64.binary.k8s.io" => Message::Text(STANDARD.encode(&bytes).into()),
                _ => Message::Binary(bytes),
            };
            if sink.send(message).await.is_err() {
                return;
            }
        }
        close(&mut sink).await;
    });
    Ok(response)
}

/// The byte stream that travels in a socket's binary messages.
pub(crate) fn tunnel<S>(socket: WebSocketStream<S>) -> DuplexStream
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (near, far) = tokio::io::duplex(TUNNEL_BYTES);
    let (mut from_us, mut to_us) = tokio::io::split(far);
    let (mut sink, mut stream) = socket.split();
    tokio::spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Close(_) => break,
                _ => continue,
            };
            if to_us.write_all(&bytes).await.is_err() {
                break;
            }
        }
        // The reader sees the end by this; that it is gone already is no matter.
        let _ = to_us.shutdown().await;
    });
    tokio::spawn(async move {
        let mut buffer = vec![0; 32 << 10];
        while let Ok(length @ 1..) = from_us.read(&mut buffer).await {
            if sink.send(Message::Binary(Bytes::copy_from_slice(&buffer[..length]))).await.is_err() {
                return;
            }
        }
        close(&mut sink).await;
    });
    near
}
