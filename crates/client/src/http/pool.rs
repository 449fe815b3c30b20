//! Connections to one server: one with HTTP/2 that all calls share, or idle ones with HTTP/1.1.

use std::io::ErrorKind;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use meta::{Reason, Status};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::Identity;

/// TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Tries when the server refuses the connection (it restarts), and the pause between them.
const CONNECT_TRIES: u32 = 3;
const CONNECT_PAUSE: Duration = Duration::from_millis(200);
/// Connections tried for one request while each turns out to be closed.
const SEND_TRIES: u32 = IDLE_MAX as u32 + 2;
/// Idle connections kept, with HTTP/1.1.
const IDLE_MAX: usize = 16;
/// A silent HTTP/2 connection is asked whether it lives, and given up when it does not say so.
const PING_EVERY: Duration = Duration::from_secs(15);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

type Sent = Full<Bytes>;

enum Sender {
    Two(http2::SendRequest<Sent>),
    One(http1::SendRequest<Sent>),
}

pub(super) struct Pool {
    host: String,
    port: u16,
    name: ServerName<'static>,
    tls: TlsConnector,
    shared: Mutex<Option<http2::SendRequest<Sent>>>,
    idle: Arc<Mutex<Vec<http1::SendRequest<Sent>>>>,
    /// One connects at a time; the others then share what it made.
    connecting: tokio::sync::Mutex<()>,
}

fn unavailable(why: impl std::fmt::Display) -> Status {
    Status::new(Reason::ServiceUnavailable, why.to_string())
}

impl Pool {
    pub fn new(host: String, port: u16, ca_pem: &str, identity: &Identity) -> Result<Pool, Status> {
        let bad = |error: &dyn std::fmt::Display| Status::bad_request(format!("cannot use a certificate: {error}"));
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
            roots.add(certificate.map_err(|error| bad(&error))?).map_err(|error| bad(&error))?;
        }
        if roots.is_empty() {
            return Err(bad(&"there is none for the authority"));
        }
        let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| bad(&error))?
            .with_root_certificates(roots);
        let mut config = match identity {
            Identity::Token(_) => builder.with_no_client_auth(),
            Identity::Renewed(certificate) => builder.with_client_cert_resolver(certificate.clone()),
            Identity::Certificate { cert_pem, key_pem } => {
                let chain = CertificateDer::pem_slice_iter(cert_pem.as_bytes()).collect::<Result<Vec<_>, _>>();
                let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|error| bad(&error))?;
                let chain = chain.map_err(|error| bad(&error))?;
                builder.with_client_auth_cert(chain, key).map_err(|error| bad(&error))?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let name = ServerName::try_from(host.clone()).map_err(|error| bad(&error))?;
        let tls = TlsConnector::from(Arc::new(config));
        let (shared, idle, connecting) = (Mutex::default(), Arc::default(), tokio::sync::Mutex::default());
        Ok(Pool { host, port, name, tls, shared, idle, connecting })
    }

    /// Sends a request over a kept or a new connection. When a kept one turns out to be closed before anything of the
    /// request was sent, the next is tried.
    pub async fn send(&self, mut request: Request<Sent>) -> Result<Response<Incoming>, Status> {
        let uri = request.uri().clone();
        for _ in 0..SEND_TRIES {
            *request.uri_mut() = uri.clone();
            let (sender, fresh) = match self.kept() {
                Some(sender) => (sender, false),
                None => self.connect_once().await?,
            };
            let unsent = match sender {
                Sender::Two(mut sender) => match sender.try_send_request(request).await {
                    Ok(answer) => return Ok(answer),
                    Err(mut error) => {
                        self.forget(&sender);
                        (error.take_message(), error.into_error())
                    }
                },
                Sender::One(mut sender) => match sender.try_send_request(relative(request)).await {
                    Ok(answer) => {
                        self.keep(sender);
                        return Ok(answer);
                    }
                    Err(mut error) => (error.take_message(), error.into_error()),
                },
            };
            match unsent {
                (Some(again), _) if !fresh => request = again,
                (_, error) => return Err(unavailable(format!("the server did not answer: {}", cause(&error)))),
            }
        }
        Err(unavailable(format!("{self} closes every connection")))
    }

    fn kept(&self) -> Option<Sender> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.as_ref().is_some_and(http2::SendRequest::is_closed) {
            *shared = None;
        }
        if let Some(sender) = &*shared {
            return Some(Sender::Two(sender.clone()));
        }
        drop(shared);
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(sender) = idle.pop() {
            if sender.is_ready() {
                return Some(Sender::One(sender));
            }
        }
        None
    }

    /// Puts an HTTP/1.1 connection back when its answer was read to the end.
    fn keep(&self, mut sender: http1::SendRequest<Sent>) {
        let idle = self.idle.clone();
        tokio::spawn(async move {
            if sender.ready().await.is_ok() {
                let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
                if idle.len() < IDLE_MAX {
                    idle.push(sender);
                }
            }
        });
    }

    fn forget(&self, sender: &http2::SendRequest<Sent>) {
        if sender.is_closed() {
            let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
            if shared.as_ref().is_some_and(http2::SendRequest::is_closed) {
                *shared = None;
            }
        }
    }

    /// A connection, and whether it is a new one.
    async fn connect_once(&self) -> Result<(Sender, bool), Status> {
        let turn = self.connecting.lock().await;
        if let Some(sender) = self.kept() {
            return Ok((sender, false));
        }
        let mut tries = 1;
        let socket = loop {
            match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect((self.host.as_str(), self.port))).await {
                Ok(Ok(socket)) => break socket,
                Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused && tries < CONNECT_TRIES => {
                    tries += 1;
                    tokio::time::sleep(CONNECT_PAUSE).await;
                }
                Ok(Err(error)) => return Err(unavailable(format!("cannot connect to {self}: {error}"))),
                Err(_) => return Err(unavailable(format!("cannot connect to {self} in time"))),
            }
        };
        // Small requests go at once; the kernel must not wait for more.
        let _ = socket.set_nodelay(true);
        let secured = tokio::time::timeout(CONNECT_TIMEOUT, self.tls.connect(self.name.clone(), socket)).await;
        let stream = secured
            .map_err(|_| unavailable(format!("{self} does not speak TLS in time")))?
            .map_err(|error| unavailable(format!("cannot trust {self}: {error}")))?;
        let two = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let failed = |error: hyper::Error| unavailable(format!("cannot speak HTTP with {self}: {}", cause(&error)));
        if !two {
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
            drop(turn);
            tokio::spawn(connection);
            return Ok((Sender::One(sender), true));
        }
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(1 << 24)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(failed)?;
        tokio::spawn(connection);
        *self.shared.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender.clone());
        Ok((Sender::Two(sender), true))
    }
}

impl std::fmt::Display for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// HTTP/1.1 has the host in a header and only the path in the first line.
fn relative(mut request: Request<Sent>) -> Request<Sent> {
    let Some(path) = request.uri().path_and_query().cloned() else { return request };
    if let Some(host) = request.uri().authority().and_then(|host| HeaderValue::from_str(host.as_str()).ok()) {
        request.headers_mut().insert(header::HOST, host);
    }
    *request.uri_mut() = Uri::from(path);
    request
}

/// The innermost reason; hyper's own words say little.
fn cause(error: &hyper::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
