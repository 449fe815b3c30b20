//! Connections to one server: one with HTTP/2 that all calls share, or idle ones with HTTP/1.1. Of several servers that
//! are one cluster the first that answers is used, until it does so no more, or says that it cannot work.

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
use tokio::sync::watch;
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
/// The same times where there is another server to go on with.
const PING_EVERY_OF_MANY: Duration = Duration::from_secs(3);
const PING_TIMEOUT_OF_MANY: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT_OF_MANY: Duration = Duration::from_secs(2);

type Sent = Full<Bytes>;

enum Sender {
    Two(http2::SendRequest<Sent>),
    One(http1::SendRequest<Sent>),
}

/// Where a server is.
struct Place {
    host: String,
    port: u16,
    name: ServerName<'static>,
}

pub(super) struct Pool {
    places: Vec<Place>,
    /// Counts the places that were used; the last of them, modulo how many there are, is in use.
    at: watch::Sender<usize>,
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
    /// `servers` are hosts and ports of one cluster, at least one.
    pub fn new(servers: Vec<(String, u16)>, ca_pem: &str, identity: &Identity) -> Result<Pool, Status> {
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
        if matches!(identity, Identity::Renewed(_)) {
            // A session that is resumed goes on with the certificate that it began with, although there is a newer one.
            config.resumption = rustls::client::Resumption::disabled();
        }
        let place = |(host, port): (String, u16)| {
            let name = ServerName::try_from(host.clone()).map_err(|error| bad(&error))?;
            Ok(Place { host, port, name })
        };
        let places = servers.into_iter().map(place).collect::<Result<Vec<Place>, Status>>()?;
        let tls = TlsConnector::from(Arc::new(config));
        let (shared, idle, connecting) = (Mutex::default(), Arc::default(), tokio::sync::Mutex::default());
        Ok(Pool { places, at: watch::Sender::new(0), tls, shared, idle, connecting })
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

    /// Keeps no connection any more: the next request goes over a new one. What is under way comes to its end.
    pub fn let_go(&self) {
        *self.shared.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
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

    fn place(&self) -> &Place {
        &self.places[*self.at.borrow() % self.places.len()]
    }

    /// Which place is in use, for [`Pool::move_on`] and [`Pool::left`].
    pub fn at(&self) -> usize {
        *self.at.borrow()
    }

    /// Uses the place no more that was in use `at` that moment, where there is another one.
    pub fn move_on(&self, at: usize) {
        if self.places.len() < 2 {
            return;
        }
        let moved = self.at.send_if_modified(|now| {
            let same = *now == at;
            *now += usize::from(same);
            same
        });
        if moved {
            *self.shared.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    /// Is done when another place is in use than `at` that moment.
    pub async fn left(&self, at: usize) {
        let mut now = self.at.subscribe();
        // The sender lives as long as the pool.
        let _ = now.wait_for(|now| now % self.places.len() != at % self.places.len()).await;
    }

    /// A TLS connection to the place in use; the failure says whether the server only was not there.
    async fn secure(&self, many: bool) -> Result<tokio_rustls::client::TlsStream<TcpStream>, (Status, bool)> {
        let Place { host, port, name } = self.place();
        let limit = if many { CONNECT_TIMEOUT_OF_MANY } else { CONNECT_TIMEOUT };
        let socket = match tokio::time::timeout(limit, TcpStream::connect((host.as_str(), *port))).await {
            Ok(Ok(socket)) => socket,
            Ok(Err(error)) => {
                let refused = error.kind() == ErrorKind::ConnectionRefused;
                return Err((unavailable(format!("cannot connect to {self}: {error}")), refused));
            }
            Err(_) => return Err((unavailable(format!("cannot connect to {self} in time")), false)),
        };
        // Small requests go at once; the kernel must not wait for more.
        let _ = socket.set_nodelay(true);
        match tokio::time::timeout(limit, self.tls.connect(name.clone(), socket)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err((unavailable(format!("cannot trust {self}: {error}")), false)),
            Err(_) => Err((unavailable(format!("{self} does not speak TLS in time")), false)),
        }
    }

    /// A connection, and whether it is a new one.
    async fn connect_once(&self) -> Result<(Sender, bool), Status> {
        let turn = self.connecting.lock().await;
        if let Some(sender) = self.kept() {
            return Ok((sender, false));
        }
        let (mut tries, many) = (0, self.places.len() > 1);
        let stream = loop {
            tries += 1;
            let failure = match self.secure(many).await {
                Ok(stream) => break stream,
                Err(failure) => failure,
            };
            let again = failure.1 || many;
            self.at.send_modify(|at| *at += 1);
            if !again || tries >= CONNECT_TRIES * self.places.len() as u32 {
                return Err(failure.0);
            }
            if (tries as usize).is_multiple_of(self.places.len()) {
                tokio::time::sleep(CONNECT_PAUSE).await;
            }
        };
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
            .keep_alive_interval(if many { PING_EVERY_OF_MANY } else { PING_EVERY })
            .keep_alive_timeout(if many { PING_TIMEOUT_OF_MANY } else { PING_TIMEOUT })
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
        let place = self.place();
        write!(f, "{}:{}", place.host, place.port)
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
