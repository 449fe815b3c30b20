//! Port-forward: connections into a pod's network, each a pair of streams: one for bytes, one for what went wrong.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use meta::{Reason, Status};
use runtime::Runtime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use super::websocket::{self, Socket};
use super::{Body, Query};
use crate::spdy::{Receiving, Sending, Session, Stream};

const PROTOCOL: &str = "portforward.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// The upgrade to one connection's bare bytes, for the proxies of pods and services.
const BARE: &str = "tcp";
/// Best first; those after the tunnel have two channels per port in place of streams.
const WEBSOCKET_PROTOCOLS: [&str; 4] = [TUNNEL, "v4.channel.k8s.io", "portforward.k8s.io", ""];
/// Pairs of which only one stream has come.
const HALVES_MAX: usize = 256;
/// Ports of one plain WebSocket.
const PORTS_MAX: usize = 100;
const BUFFER_BYTES: usize = 32 << 10;
/// How long a client may go on sending after the pod has ended a connection.
const REST_PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn answer(
    runtime: Arc<dyn Runtime>,
    sandbox: String,
    query: &Query,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Status> {
    if request.headers().get(header::UPGRADE).is_some_and(|wanted| wanted == BARE) {
        return bare_bytes(&*runtime, &sandbox, query, request).await;
    }
    if !websocket::wanted(request.headers()) {
        let (response, _) = super::remote::spdy_response(&request, &[PROTOCOL])?;
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            if let Ok(upgraded) = upgrade.await {
                serve(Session::accepting(TokioIo::new(upgraded)), runtime, sandbox).await;
            }
        });
        return Ok(response);
    }
    let protocol = websocket::choose(request.headers(), &WEBSOCKET_PROTOCOLS)?;
    let words = query.all("ports").chain(query.all("port")).flat_map(|words| words.split(','));
    let ports: Result<Vec<u16>, _> = words.map(str::parse).collect();
    let ports = ports.map_err(|_| Status::bad_request("a port is a number from 1 to 65535"))?;
    if protocol != TUNNEL && (ports.is_empty() || ports.len() > PORTS_MAX) {
        return Err(Status::bad_request(format!("1 to {PORTS_MAX} ports must be named")));
    }
    let (response, socket) = websocket::accept(request, protocol)?;
    tokio::spawn(async move {
        let Some(socket) = socket.await else { return };
        if protocol == TUNNEL {
            serve(Session::accepting(websocket::tunnel(socket)), runtime, sandbox).await;
        } else {
            channels(socket, ports, runtime, sandbox).await;
        }
    });
    Ok(response)
}

/// Connects first, so that a port nobody listens on is told as such; then the connection is the port's.
async fn bare_bytes(
    runtime: &dyn Runtime,
    sandbox: &str,
    query: &Query,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Status> {
    let port = query.all("port").next().and_then(|port| port.parse().ok());
    let port = port.ok_or_else(|| Status::bad_request("a port is a number from 1 to 65535"))?;
    let refused = |error| Status::new(Reason::ServiceUnavailable, format!("port {port} of the pod: {error}"));
    let mut stream = runtime.connect(sandbox, port).await.map_err(refused)?;
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            // Either side may end it; what was in flight has then been passed on.
            let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(upgraded), &mut stream).await;
        }
    });
    let mut response = super::bare(StatusCode::SWITCHING_PROTOCOLS);
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(BARE));
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    Ok(response)
}

/// Pairs the streams of a session and connects each pair, until the client is gone.
async fn serve(mut session: Session, runtime: Arc<dyn Runtime>, sandbox: String) {
    let mut halves: BTreeMap<String, Stream> = BTreeMap::new();
    let mut pairs = tokio::task::JoinSet::new();
    while let Some(stream) = session.accept().await {
        while pairs.try_join_next().is_some() {}
        let data = stream.header("streamtype") == "data";
        // Old clients do not number their requests; their data stream follows its error stream.
        let request = match stream.header("requestid") {
            "" => if data { stream.id.saturating_sub(2) } else { stream.id }.to_string(),
            id => id.to_owned(),
        };
        let other = halves.remove(&request);
        let (error, data) = match other {
            Some(other) if data => (other, stream),
            Some(other) => (stream, other),
            None if halves.len() >= HALVES_MAX => {
                stream.sending.reset().await;
                continue;
            }
            None => {
                halves.insert(request, stream);
                continue;
            }
        };
        let port = data.header("port").parse();
        let (runtime, sandbox) = (runtime.clone(), sandbox.clone());
        pairs.spawn(async move {
            let why = match port {
                Ok(port) => connect(&*runtime, &sandbox, port, data.receiving, data.sending).await,
                Err(_) => {
                    data.sending.reset().await;
                    Err("the port is not a number from 1 to 65535".to_owned())
                }
            };
            if let Err(why) = why {
                let _ = error.sending.write(why.into()).await;
            }
            error.sending.finish().await;
        });
    }
}

/// Carries one connection; the error is what the client is told.
async fn connect(
    runtime: &dyn Runtime,
    sandbox: &str,
    port: u16,
    mut receiving: Receiving,
    sending: Sending,
) -> Result<(), String> {
    let stream = match runtime.connect(sandbox, port).await {
        Ok(stream) => stream,
        Err(error) => {
            sending.finish().await;
            return Err(format!("error forwarding port {port} to pod {sandbox}: {error}"));
        }
    };
    let (mut from_pod, mut to_pod) = tokio::io::split(stream);
    let up = async {
        while let Some(bytes) = receiving.read().await {
            if to_pod.write_all(&bytes).await.is_err() {
                return;
            }
        }
        // The pod may have closed already.
        let _ = to_pod.shutdown().await;
    };
    let down = async {
        let mut buffer = BytesMut::with_capacity(BUFFER_BYTES);
        while let Ok(1..) = from_pod.read_buf(&mut buffer).await {
            if sending.write(buffer.split().freeze()).await.is_err() {
                return;
            }
            buffer.reserve(BUFFER_BYTES);
        }
        sending.finish().await;
    };
    tokio::pin!(up, down);
    tokio::select! {
        () = &mut up => down.await,
        () = &mut down => {
            let _ = tokio::time::timeout(REST_PATIENCE, up).await;
        }
    }
    Ok(())
}

/// The older form: channels `2n` (bytes) and `2n + 1` (what went wrong) of the nth port; each begins with the port.
async fn channels(socket: Socket, ports: Vec<u16>, runtime: Arc<dyn Runtime>, sandbox: String) {
    let (mut sink, mut stream) = socket.split();
    let (out, mut messages) = mpsc::channel::<(u8, Bytes)>(16);
    let mut inputs: Vec<mpsc::Sender<Bytes>> = Vec::new();
    let mut tasks = tokio::task::JoinSet::new();
    for (n, port) in ports.into_iter().enumerate() {
        let (input, pieces) = mpsc::channel(16);
        inputs.push(input);
        // At most `PORTS_MAX` ports, so their channels fit a byte.
        let channel = (2 * n) as u8;
        let (out, runtime, sandbox) = (out.clone(), runtime.clone(), sandbox.clone());
        tasks.spawn(async move { one_channel(&*runtime, &sandbox, port, channel, pieces, out).await });
    }
    drop(out);
    let writer = async {
        while let Some((channel, bytes)) = messages.recv().await {
            let mut message = BytesMut::with_capacity(bytes.len() + 1);
            message.extend_from_slice(&[channel]);
            message.extend_from_slice(&bytes);
            if sink.send(Message::Binary(message.freeze())).await.is_err() {
                return;
            }
        }
        websocket::close(&mut sink).await;
    };
    let reader = async {
        while let Some(Ok(message)) = stream.next().await {
            let Message::Binary(bytes) = message else { continue };
            let Some(channel) = bytes.first().copied().filter(|channel| channel % 2 == 0) else { continue };
            if let Some(input) = inputs.get(usize::from(channel / 2)) {
                // A connection that has ended takes no more.
                let _ = input.send(bytes.slice(1..)).await;
            }
        }
    };
    tokio::select! {
        () = writer => {}
        () = reader => {}
    }
}

async fn one_channel(
    runtime: &dyn Runtime,
    sandbox: &str,
    port: u16,
    channel: u8,
    mut pieces: mpsc::Receiver<Bytes>,
    out: mpsc::Sender<(u8, Bytes)>,
) {
    for channel in [channel, channel + 1] {
        let _ = out.send((channel, Bytes::copy_from_slice(&port.to_le_bytes()))).await;
    }
    let stream = match runtime.connect(sandbox, port).await {
        Ok(stream) => stream,
        Err(error) => {
            let why = format!("error forwarding port {port} to pod {sandbox}: {error}");
            let _ = out.send((channel + 1, why.into())).await;
            return;
        }
    };
    let (mut from_pod, mut to_pod) = tokio::io::split(stream);
    let up = async {
        while let Some(bytes) = pieces.recv().await {
            if to_pod.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    let down = async {
        let mut buffer = BytesMut::with_capacity(BUFFER_BYTES);
        while let Ok(1..) = from_pod.read_buf(&mut buffer).await {
            if out.send((channel, buffer.split().freeze())).await.is_err() {
                return;
            }
            buffer.reserve(BUFFER_BYTES);
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}
