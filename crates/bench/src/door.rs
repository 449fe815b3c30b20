//! A lean client of the public API: prepared requests over TLS, HTTP/2 or HTTP/1.1, and nothing read that need not be.
//!
//! It is an ordinary client: it verifies the server, shows a token, and asks what anybody may ask.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderName, HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use meta::{Reason, Status, Value, json};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::error::Error;
use crate::shapes::STRATEGIC;

pub const JSON: &str = "application/json";
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
/// How long something that must come true may take.
const WAIT: Duration = Duration::from_secs(30);
/// How long the head of an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes that a stream, and a connection, may send before they must be taken.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// A request, ready to be sent many times.
#[derive(Clone)]
pub struct Ask {
    pub method: Method,
    pub path: Uri,
    pub content_type: &'static str,
    pub accept: &'static str,
    pub body: Bytes,
}

impl Ask {
    pub fn new(method: Method, path: &str, body: impl Into<Bytes>) -> Ask {
        let path = Uri::try_from(path).unwrap_or_default();
        Ask { method, path, content_type: JSON, accept: JSON, body: body.into() }
    }

    pub fn get(path: &str) -> Ask {
        Ask::new(Method::GET, path, Bytes::new())
    }

    pub fn post(path: &str, object: &Value) -> Ask {
        Ask::new(Method::POST, path, object.to_json())
    }

    pub fn put(path: &str, object: &Value) -> Ask {
        Ask::new(Method::PUT, path, object.to_json())
    }

    pub fn delete(path: &str) -> Ask {
        Ask::new(Method::DELETE, path, Bytes::new())
    }

    /// The request that the node's pod machine wants sent.
    ///
    /// # Errors
    /// One of a sort that it never wants.
    pub fn of(request: &client::Request) -> Result<Ask, Error> {
        let mut path =
            format!("/api/v1/namespaces/{}/{}/{}", request.namespace, request.resource.plural(), request.name);
        if !request.subresource.is_empty() {
            path = format!("{path}/{}", request.subresource);
        }
        match &request.action {
            client::Action::Patch(client::PatchType::Strategic, patch) => {
                let path = format!("{path}?fieldManager={}", request.options.manager);
                Ok(Ask::patch(&path, STRATEGIC, patch))
            }
            client::Action::Delete => {
                let mut options = json!({"apiVersion": "v1", "kind": "DeleteOptions"});
                if let Some(uid) = &request.options.uid {
                    options.set(&["preconditions", "uid"], uid);
                }
                if let Some(seconds) = request.options.grace_seconds {
                    options.set(&["gracePeriodSeconds"], seconds);
                }
                Ok(Ask::new(Method::DELETE, &path, options.to_json()))
            }
            other => Err(Error::doing("send a request", format!("{other:?} is not known here"))),
        }
    }

    /// A patch of type `content_type`.
    pub fn patch(path: &str, content_type: &'static str, patch: &Value) -> Ask {
        Ask { content_type, ..Ask::new(Method::PATCH, path, patch.to_json()) }
    }

    pub fn accepting(self, accept: &'static str) -> Ask {
        Ask { accept, ..self }
    }
}

/// What a server says against a request.
pub fn refusal(code: u16, said: &[u8]) -> Status {
    match Value::parse(said) {
        Ok(status) if status["kind"].text() == "Status" => Status::from_value(&status),
        _ => Status::new(Reason::Unknown, format!("{code}: {}", String::from_utf8_lossy(said))),
    }
}

/// Where a server is and how to speak to it.
#[derive(Clone)]
pub struct Door {
    authority: String,
    address: String,
    name: ServerName<'static>,
    /// None for who shows a certificate.
    token: Option<HeaderValue>,
    roots: Arc<rustls::RootCertStore>,
    two: TlsConnector,
    one: TlsConnector,
}

/// A certificate chain and its key, both as PEM.
type Proof<'a> = (&'a [u8], &'a [u8]);

/// TLS to a server that one of `roots` vouches for, speaking `protocol`.
fn connector(
    roots: &Arc<rustls::RootCertStore>,
    protocol: &[u8],
    proof: Option<Proof<'_>>,
) -> Result<TlsConnector, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::while_doing("speak TLS"))?
        .with_root_certificates(roots.clone());
    let mut config = match proof {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain: Vec<_> = CertificateDer::pem_slice_iter(chain)
                .collect::<Result<_, _>>()
                .map_err(Error::while_doing("read a certificate"))?;
            let key = PrivateKeyDer::from_pem_slice(key).map_err(Error::while_doing("read a key"))?;
            builder.with_client_auth_cert(chain, key).map_err(Error::while_doing("show a certificate"))?
        }
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    if proof.is_some() {
        // Each connection shows the certificate anew.
        config.resumption = rustls::client::Resumption::disabled();
    }
    Ok(TlsConnector::from(Arc::new(config)))
}

impl Door {
    /// `HOST:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// `server` is `https://HOST:PORT`.
    ///
    /// # Errors
    /// A certificate, address or token that cannot be.
    pub fn new(server: &str, ca_pem: &[u8], token: &str) -> Result<Door, Error> {
        let wrong = |why: &dyn std::fmt::Display| Error::doing("speak to the server", why);
        let authority = server.strip_prefix("https://").ok_or_else(|| wrong(&"it has no https address"))?;
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem) {
            roots.add(certificate.map_err(|error| wrong(&error))?).map_err(|error| wrong(&error))?;
        }
        let roots = Arc::new(roots);
        Ok(Door {
            authority: authority.to_owned(),
            address: authority.to_owned(),
            name: ServerName::try_from(host.to_owned()).map_err(|error| wrong(&error))?,
            token: Some(HeaderValue::try_from(format!("Bearer {token}")).map_err(|error| wrong(&error))?),
            two: connector(&roots, b"h2", None)?,
            one: connector(&roots, b"http/1.1", None)?,
            roots,
        })
    }

    /// The same proof shown at another `HOST:PORT` of the same authority.
    ///
    /// # Errors
    /// An address that cannot be.
    pub fn to(&self, authority: &str) -> Result<Door, Error> {
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let name = ServerName::try_from(host.to_owned()).map_err(Error::while_doing("speak to another server"))?;
        Ok(Door { authority: authority.to_owned(), address: authority.to_owned(), name, ..self.clone() })
    }

    /// The same server, shown another token.
    ///
    /// # Errors
    /// A token that cannot stand in a header.
    pub fn with_token(&self, token: &str) -> Result<Door, Error> {
        let token = HeaderValue::try_from(format!("Bearer {token}")).map_err(Error::while_doing("show a token"))?;
        Ok(Door { token: Some(token), ..self.clone() })
    }

    /// The same server, shown a certificate (PEM, as its key) instead of a token.
    ///
    /// # Errors
    /// A certificate or key that cannot be used.
    pub fn with_certificate(&self, chain: &[u8], key: &[u8]) -> Result<Door, Error> {
        let (two, one) = (b"h2".as_slice(), b"http/1.1".as_slice());
        let connector = |protocol| connector(&self.roots, protocol, Some((chain, key)));
        Ok(Door { token: None, two: connector(two)?, one: connector(one)?, ..self.clone() })
    }

    /// A connection that speaks TLS, for HTTP/2, and nothing yet over it.
    ///
    /// # Errors
    /// There is none to be had.
    pub async fn stream(&self) -> Result<TlsStream<TcpStream>, Error> {
        let socket = self.socket().await?;
        self.two.connect(self.name.clone(), socket).await.map_err(Error::while_doing("speak TLS"))
    }

    /// The same for HTTP/1.1.
    ///
    /// # Errors
    /// There is none to be had.
    pub async fn stream_one(&self) -> Result<TlsStream<TcpStream>, Error> {
        let socket = self.socket().await?;
        self.one.connect(self.name.clone(), socket).await.map_err(Error::while_doing("speak TLS"))
    }

    /// What a client of its own says of itself: the server's name, and the header that proves who asks.
    pub fn said(&self) -> (&str, &str) {
        (&self.authority, self.token.as_ref().and_then(|token| token.to_str().ok()).unwrap_or_default())
    }

    /// The certificate that the server shows.
    ///
    /// # Errors
    /// There is no connection to be had.
    pub async fn shown(&self) -> Result<CertificateDer<'static>, Error> {
        let stream = self.stream_one().await?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        chain
            .first()
            .cloned()
            .map(CertificateDer::into_owned)
            .ok_or_else(|| Error::doing("see a certificate", "none is shown"))
    }

    async fn socket(&self) -> Result<TcpStream, Error> {
        let socket = TcpStream::connect(&self.address).await.map_err(Error::while_doing("connect"))?;
        // Small requests go at once.
        let _ = socket.set_nodelay(true);
        Ok(socket)
    }

    /// A new connection with HTTP/2.
    ///
    /// # Errors
    /// There is none to be had.
    pub async fn two(&self) -> Result<Line, Error> {
        let stream = self.stream().await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(1 << 18)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(Error::while_doing("speak HTTP/2"))?;
        tokio::spawn(connection);
        Ok(Line { to: To::Two(sender), authority: authority(&self.authority)?, token: self.token.clone(), tls: true })
    }

    /// A new connection with HTTP/1.1.
    ///
    /// # Errors
    /// There is none to be had.
    pub async fn one(&self) -> Result<Line, Error> {
        let socket = self.socket().await?;
        let stream = self.one.connect(self.name.clone(), socket).await.map_err(Error::while_doing("speak TLS"))?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(Error::while_doing("speak HTTP/1.1"))?;
        tokio::spawn(connection);
        Ok(Line { to: To::One(sender), authority: authority(&self.authority)?, token: self.token.clone(), tls: true })
    }

    /// One answer over a new connection.
    ///
    /// # Errors
    /// No answer, or one that is no success.
    pub async fn get(&self, path: &str) -> Result<Bytes, Error> {
        self.two().await?.ask(&Ask::get(path)).await
    }

    /// Asks until it succeeds.
    ///
    /// # Errors
    /// The last one, when it took too long.
    pub async fn await_good(&self, path: &str) -> Result<Bytes, Error> {
        let began = std::time::Instant::now();
        loop {
            match self.get(path).await {
                Err(error) if began.elapsed() > WAIT => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                good => return good,
            }
        }
    }

    /// A namespace in which pods can be made: its default service account is there.
    ///
    /// # Errors
    /// It does not come to be.
    pub async fn namespace(&self, name: &str) -> Result<(), Error> {
        let object = meta::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        self.two().await?.ask(&Ask::post("/api/v1/namespaces", &object)).await?;
        self.await_good(&format!("/api/v1/namespaces/{name}/serviceaccounts/default")).await?;
        self.await_good(&format!("/api/v1/namespaces/{name}/configmaps/kube-root-ca.crt")).await?;
        Ok(())
    }
}

enum To {
    Two(http2::SendRequest<Full<Bytes>>),
    One(http1::SendRequest<Full<Bytes>>),
}

fn authority(text: &str) -> Result<Authority, Error> {
    text.parse().map_err(Error::while_doing("send requests to a server"))
}

/// An open connection.
pub struct Line {
    to: To,
    authority: Authority,
    token: Option<HeaderValue>,
    tls: bool,
}

impl Line {
    /// A connection without TLS that speaks HTTP/2 from the first byte, as gRPC servers on loopback do.
    ///
    /// # Errors
    /// There is none to be had.
    pub async fn plain(address: &str) -> Result<Line, Error> {
        let socket = TcpStream::connect(address).await.map_err(Error::while_doing("connect"))?;
        let _ = socket.set_nodelay(true);
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(TokioIo::new(socket))
            .await
            .map_err(Error::while_doing("speak HTTP/2"))?;
        tokio::spawn(connection);
        Ok(Line { to: To::Two(sender), authority: authority(address)?, token: None, tls: false })
    }

    /// Another hand on the same HTTP/2 connection; `None` with HTTP/1.1, which has one request at a time.
    pub fn share(&self) -> Option<Line> {
        let To::Two(sender) = &self.to else { return None };
        let (authority, token) = (self.authority.clone(), self.token.clone());
        Some(Line { to: To::Two(sender.clone()), authority, token, tls: self.tls })
    }

    fn request(&self, ask: &Ask) -> Result<Request<Full<Bytes>>, Error> {
        let two = matches!(self.to, To::Two(_));
        let uri = if two {
            let parts = http::uri::Parts::from(ask.path.clone());
            let scheme = if self.tls { "https" } else { "http" };
            let path = parts.path_and_query.ok_or_else(|| Error::doing("send a request", "it has no path"))?;
            let uri = Uri::builder().scheme(scheme).authority(self.authority.clone()).path_and_query(path).build();
            uri.map_err(Error::while_doing("send a request"))?
        } else {
            ask.path.clone()
        };
        let mut request = Request::new(Full::new(ask.body.clone()));
        (*request.method_mut(), *request.uri_mut()) = (ask.method.clone(), uri);
        let headers = request.headers_mut();
        if !two && let Ok(host) = HeaderValue::try_from(self.authority.as_str()) {
            headers.insert(header::HOST, host);
        }
        if let Some(token) = &self.token {
            headers.insert(header::AUTHORIZATION, token.clone());
            headers.insert(header::ACCEPT, HeaderValue::from_static(ask.accept));
        } else {
            headers.insert(HeaderName::from_static("te"), HeaderValue::from_static("trailers"));
        }
        if !ask.body.is_empty() {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(ask.content_type));
        }
        Ok(request)
    }

    /// Sends and returns the answer when its head has come.
    ///
    /// # Errors
    /// The connection broke, or no answer came in time.
    pub async fn open(&mut self, ask: &Ask) -> Result<Response<Incoming>, Error> {
        let request = self.request(ask)?;
        let sent = async {
            match &mut self.to {
                To::Two(sender) => {
                    sender.ready().await?;
                    sender.send_request(request).await
                }
                To::One(sender) => {
                    sender.ready().await?;
                    sender.send_request(request).await
                }
            }
        };
        let late = |_| Error::doing(format!("{} {}", ask.method, ask.path), "no answer within a minute");
        tokio::time::timeout(ANSWER_TIMEOUT, sent).await.map_err(late)?.map_err(Error::while_doing("send a request"))
    }

    /// Sends and reads the whole answer, or what the server says against it.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn exchange(&mut self, ask: &Ask) -> Result<Result<Bytes, Status>, Error> {
        let (parts, body) = self.open(ask).await?.into_parts();
        let body = body.collect().await.map_err(Error::while_doing("read an answer"))?.to_bytes();
        if parts.status.is_success() {
            return Ok(Ok(body));
        }
        Ok(Err(refusal(parts.status.as_u16(), &body)))
    }

    /// Sends and reads the whole answer.
    ///
    /// # Errors
    /// The connection broke, or the server refused.
    pub async fn ask(&mut self, ask: &Ask) -> Result<Bytes, Error> {
        let refused = |status: Status| {
            Error::doing(format!("{} {}", ask.method, ask.path), format!("{} {}", status.code(), status.message()))
        };
        self.exchange(ask).await?.map_err(refused)
    }

    /// Sends, throws the answer away, and tells its length.
    ///
    /// # Errors
    /// The connection broke, or the server refused.
    pub async fn pass(&mut self, ask: &Ask) -> Result<usize, Error> {
        let response = self.open(ask).await?;
        if !response.status().is_success() {
            let (status, body) = (response.status(), response.into_body());
            let body = body.collect().await.map_err(Error::while_doing("read an answer"))?.to_bytes();
            let said = String::from_utf8_lossy(&body).into_owned();
            return Err(Error::doing(format!("{} {}", ask.method, ask.path), format!("{status} {said}")));
        }
        let mut body = response.into_body();
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(Error::while_doing("read an answer"))?;
            if let Some(status) = frame.trailers_ref().and_then(|trailers| trailers.get("grpc-status"))
                && status.as_bytes() != b"0"
            {
                return Err(Error::doing("call", format!("grpc-status {status:?}")));
            }
            bytes += frame.data_ref().map_or(0, Bytes::len);
        }
        Ok(bytes)
    }
}
