//! A server that stops: what is open ends in order, by what is heard on the wire.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;

use crate::{Lab, Usage, soon};

const WATCH: &str = "/api/v1/configmaps?watch=true&allowWatchBookmarks=true";
/// The type of the frame by which an HTTP/2 server says goodbye.
const GOAWAY: u8 = 7;

/// A second door of a lab's server, and how it is shut.
struct Door {
    address: String,
    stop: tokio::sync::oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

impl Door {
    async fn open(lab: &Lab) -> Door {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let identity = lab.server.ca.issue("gantry", &[], &["127.0.0.1".to_owned()], Usage::Server, 1).unwrap();
        let tls = server::http::serve::tls(&identity, lab.server.ca.pem()).unwrap();
        let (server, (stop, stopped)) = (lab.server.clone(), tokio::sync::oneshot::channel());
        let handler = move |request, peer| server::dispatch::answer(server.clone(), request, peer);
        let stopped = async { stopped.await.unwrap() };
        let task = tokio::spawn(server::http::serve::run(listener, tls, handler, stopped));
        Door { address, stop, task }
    }

    async fn connect(&self, lab: &Lab, protocol: &[u8]) -> TlsStream<TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(lab.server.ca.pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        let socket = TcpStream::connect(&self.address).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap()
    }
}

/// A connection of which all is kept that came.
struct Kept(TlsStream<TcpStream>, Arc<Mutex<Vec<u8>>>);

impl AsyncRead for Kept {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let polled = Pin::new(&mut self.0).poll_read(cx, into);
        self.1.lock().unwrap().extend_from_slice(&into.filled()[before..]);
        polled
    }
}

impl AsyncWrite for Kept {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// The types of the frames that came.
fn frames(bytes: &[u8]) -> Vec<u8> {
    let (mut types, mut rest) = (Vec::new(), bytes);
    while let [a, b, c, of_type, ..] = rest {
        types.push(*of_type);
        rest = rest.get(9 + u32::from_be_bytes([0, *a, *b, *c]) as usize..).unwrap_or_default();
    }
    types
}

#[tokio::test]
async fn a_server_that_stops_ends_its_watches_and_says_goodbye() {
    let lab = Lab::new().await;
    let door = Door::open(&lab).await;
    let token = format!("Bearer {}", lab.server.authn.admin_token);

    let mut one = door.connect(&lab, b"http/1.1").await;
    let ask = format!("GET {WATCH} HTTP/1.1\r\nHost: here\r\nAuthorization: {token}\r\n\r\n");
    one.write_all(ask.as_bytes()).await.unwrap();
    let mut heard = vec![0; 12];
    soon(one.read_exact(&mut heard)).await.unwrap();
    assert_eq!(heard, b"HTTP/1.1 200");

    let kept = Arc::new(Mutex::new(Vec::new()));
    let two = Kept(door.connect(&lab, b"h2").await, kept.clone());
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(two)).await.unwrap();
    let connection = tokio::spawn(connection);
    let ask = http::Request::get(format!("https://here{WATCH}")).header("Authorization", &token);
    let answer = soon(sender.send_request(ask.body(Empty::<Bytes>::new()).unwrap())).await.unwrap();
    assert_eq!(answer.status(), 200);

    lab.server.storage.close();
    door.stop.send(()).unwrap();
    // The last chunk, and the end of the connection in the words of TLS.
    soon(one.read_to_end(&mut heard)).await.unwrap();
    assert!(heard.ends_with(b"\r\n0\r\n\r\n"), "{}", String::from_utf8_lossy(&heard));
    let body = soon(answer.into_body().collect()).await.unwrap().to_bytes();
    for told in [&heard[..], &body[..]] {
        assert!(String::from_utf8_lossy(told).contains("BOOKMARK"), "{}", String::from_utf8_lossy(told));
    }
    soon(connection).await.unwrap().unwrap();
    assert!(frames(&kept.lock().unwrap()).contains(&GOAWAY));
    soon(door.task).await.unwrap();
    assert!(TcpStream::connect(&door.address).await.is_err(), "nobody is let in any more");
    lab.task.abort();
}

/// One that was shown what it cannot read tells whoever watches at once, whether or not anybody stops it.
#[tokio::test]
async fn a_server_that_halts_ends_its_watches() {
    let lab = Lab::new().await;
    let door = Door::open(&lab).await;
    let token = format!("Bearer {}", lab.server.authn.admin_token);
    let mut one = door.connect(&lab, b"http/1.1").await;
    let ask = format!("GET {WATCH} HTTP/1.1\r\nHost: here\r\nConnection: close\r\nAuthorization: {token}\r\n\r\n");
    one.write_all(ask.as_bytes()).await.unwrap();
    let mut heard = vec![0; 12];
    soon(one.read_exact(&mut heard)).await.unwrap();
    let raise = store::Txn::new().put(store::Put::new(store::Format::KEY, "99"));
    store::Backend::txn(&**lab.server.storage.backend(), raise).await.unwrap();
    soon(one.read_to_end(&mut heard)).await.unwrap();
    assert!(heard.ends_with(b"\r\n0\r\n\r\n"), "{}", String::from_utf8_lossy(&heard));
    lab.task.abort();
}
