//! HTTP towards one registry: TLS, authentication, redirects, and errors that say what happened.
//!
//! Invariants: plain HTTP is only spoken to loopback addresses and to registries that are configured as insecure;
//! an `Authorization` header is only ever sent to the registry itself (credentials also to the token service it
//! names, over TLS), never along a redirect to another host.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use base64::Engine;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, LOCATION, RANGE, USER_AGENT, WWW_AUTHENTICATE};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::auth::{self, Challenge, TokenAnswer};
use crate::seam::Credentials;
use crate::{Error, ImageName, lock};

const CONNECT_MS: u64 = 15_000;
/// How long a registry may be silent before or within an answer.
const IDLE_MS: u64 = 60_000;
const REDIRECTS_MAX: usize = 5;
/// Where Linux systems keep their certificate roots, in the order they are tried.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// How registries are reached.
#[derive(Clone, Debug, Default)]
pub struct RegistryConfig {
    /// `host[:port]` of registries that may be spoken to without TLS. Loopback addresses always may.
    pub insecure: Vec<String>,
    /// PEM files with further certificate roots.
    pub roots: Vec<PathBuf>,
}

/// A connection's worth of settings for one pull. Keeps the token it was given.
pub(super) struct Registry {
    host: String,
    plain: bool,
    name: ImageName,
    credentials: Option<Credentials>,
    token: Mutex<Option<String>>,
    /// The scheme that worked.
    scheme: Mutex<Option<&'static str>>,
    tls: Arc<rustls::ClientConfig>,
}

impl Registry {
    pub fn new(name: &ImageName, credentials: Option<Credentials>, config: &RegistryConfig) -> Result<Registry, Error> {
        let host = if name.registry == "docker.io" { "registry-1.docker.io" } else { &name.registry };
        Ok(Registry {
            host: host.to_owned(),
            plain: config.insecure.contains(&name.registry),
            name: name.clone(),
            credentials,
            token: Mutex::new(None),
            scheme: Mutex::new(None),
            tls: tls_config(&config.roots)?,
        })
    }

    pub fn unreachable(&self, why: impl Into<String>) -> Error {
        Error::RegistryUnreachable { registry: self.name.registry.clone(), why: why.into() }
    }

    /// GET below `/v2/REPOSITORY/`, authenticated when the registry wants it.
    pub async fn get(&self, path: &str, accept: &str, from: u64) -> Result<Response<Incoming>, Error> {
        let path = format!("/v2/{}/{path}", self.name.repository);
        let known = *lock(&self.scheme);
        let schemes: &[&str] = match known {
            Some("http") => &["http"],
            Some(_) => &["https"],
            None if self.plain || self.name.is_loopback() => &["https", "http"],
            None => &["https"],
        };
        let mut last = None;
        for scheme in schemes.iter().copied() {
            let uri: Uri = format!("{scheme}://{}{path}", self.host)
                .parse()
                .map_err(|_| self.unreachable(format!("{} makes no address", self.host)))?;
            match self.get_authorized(&uri, accept, from).await {
                Err(Failure::Connect(error)) => last = last.or(Some(error)),
                Err(Failure::Other(error)) => return Err(error),
                Ok(response) => {
                    *lock(&self.scheme) = Some(scheme);
                    return Ok(response);
                }
            }
        }
        Err(last.unwrap_or_else(|| self.unreachable("no way to reach it")))
    }

    async fn get_authorized(&self, uri: &Uri, accept: &str, from: u64) -> Result<Response<Incoming>, Failure> {
        let response = self.follow(uri, accept, from).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let values = response.headers().get_all(WWW_AUTHENTICATE);
        let challenge = auth::challenge(values.iter().filter_map(|v| v.to_str().ok()));
        let header = self.authorization(challenge).await?;
        *lock(&self.token) = Some(header);
        self.follow(uri, accept, from).await
    }

    /// Follows redirects. Only requests to the registry itself carry the authorization.
    async fn follow(&self, uri: &Uri, accept: &str, from: u64) -> Result<Response<Incoming>, Failure> {
        let mut at = uri.clone();
        for _ in 0..=REDIRECTS_MAX {
            let mut headers = HeaderMap::new();
            set(&mut headers, ACCEPT, accept);
            if from > 0 {
                set(&mut headers, RANGE, &format!("bytes={from}-"));
            }
            let own = at.authority() == uri.authority() && at.scheme() == uri.scheme();
            let token = lock(&self.token).clone();
            if let (true, Some(token)) = (own, token) {
                set(&mut headers, AUTHORIZATION, &token);
            }
            let response = self.send(Method::GET, &at, headers, Bytes::new()).await?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION).and_then(|l| l.to_str().ok()).unwrap_or("");
            at = self.redirected(&at, location)?;
        }
        Err(Failure::Other(self.unreachable("it redirects in circles")))
    }

    fn redirected(&self, at: &Uri, location: &str) -> Result<Uri, Failure> {
        let refuse = |why: &str| Failure::Other(self.unreachable(format!("a redirect to {location:?} {why}")));
        let text = match location.starts_with('/') && !location.starts_with("//") {
            true => format!("{}://{}{location}", at.scheme_str().unwrap_or("https"), authority(at)),
            false => location.to_owned(),
        };
        let uri: Uri = text.parse().map_err(|_| refuse("is no address"))?;
        match uri.scheme_str() {
            Some("https") => Ok(uri),
            Some("http") if self.plain || (self.name.is_loopback() && is_loopback(&uri)) => Ok(uri),
            Some("http") => Err(refuse("would leave TLS")),
            _ => Err(refuse("is not HTTP")),
        }
    }

    /// The value of the `Authorization` header that answers a challenge.
    async fn authorization(&self, challenge: Option<Challenge>) -> Result<String, Failure> {
        let refused = |why: &str| Failure::Other(self.unauthorized(why));
        match (challenge, &self.credentials) {
            (None, _) => Err(refused("it does not say how to authenticate")),
            (Some(Challenge::Basic), Some(Credentials::Basic { user, password })) => Ok(basic(user, password)),
            (Some(Challenge::Basic), _) => Err(refused("it needs a user and a password")),
            (Some(Challenge::Bearer { .. }), Some(Credentials::Token(token))) => Ok(format!("Bearer {token}")),
            (Some(Challenge::Bearer { realm, service, scope }), _) => self.fetch_token(&realm, service, scope).await,
        }
    }

    async fn fetch_token(
        &self,
        realm: &str,
        service: Option<String>,
        scope: Option<String>,
    ) -> Result<String, Failure> {
        let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.name.repository));
        let mut query = format!("scope={}", auth::encode(&scope));
        if let Some(service) = service {
            query = format!("service={}&{query}", auth::encode(&service));
        }
        let mut headers = HeaderMap::new();
        let (method, address, body) = match &self.credentials {
            Some(Credentials::Identity(token)) => {
                set(&mut headers, CONTENT_TYPE, "application/x-www-form-urlencoded");
                let token = auth::encode(token);
                let form = format!("grant_type=refresh_token&client_id=gantry&refresh_token={token}&{query}");
                (Method::POST, realm.to_owned(), form)
            }
            other => {
                if let Some(Credentials::Basic { user, password }) = other {
                    set(&mut headers, AUTHORIZATION, &basic(user, password));
                }
                let joint = if realm.contains('?') { '&' } else { '?' };
                (Method::GET, format!("{realm}{joint}{query}"), String::new())
            }
        };
        let uri: Uri =
            address.parse().map_err(|_| Failure::Other(self.unauthorized("its token service is no address")))?;
        let safe = uri.scheme_str() == Some("https")
            || uri.scheme_str() == Some("http") && (self.plain || (self.name.is_loopback() && is_loopback(&uri)));
        if !safe {
            return Err(Failure::Other(self.unauthorized("its token service is not reached over TLS")));
        }
        let response = self.send(method, &uri, headers, body.into()).await?;
        let status = response.status();
        let text = read_small(response, 1 << 20).await.map_err(|e| Failure::Other(self.unreachable(e)))?;
        match status {
            StatusCode::OK => serde_json::from_slice::<TokenAnswer>(&text)
                .ok()
                .and_then(TokenAnswer::token)
                .map(|t| format!("Bearer {t}"))
                .ok_or_else(|| Failure::Other(self.unreachable("its token service gave no token"))),
            s if s.is_server_error() => Err(Failure::Other(self.unreachable(format!("its token service says {s}")))),
            s => Err(Failure::Other(self.unauthorized(&format!("its token service says {s}")))),
        }
    }

    pub fn missing(&self) -> Error {
        Error::ImageMissing { name: self.name.to_string() }
    }

    pub fn unauthorized(&self, why: &str) -> Error {
        Error::ImageUnauthorized { name: self.name.to_string(), why: why.to_owned() }
    }

    /// One request on a connection of its own.
    async fn send(
        &self,
        method: Method,
        uri: &Uri,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>, Failure> {
        let host = uri.host().unwrap_or("").trim_matches(['[', ']']).to_owned();
        let tls = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let connecting = async {
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            let _ = stream.set_nodelay(true);
            if !tls {
                return Ok::<_, std::io::Error>(Err(stream));
            }
            let name = ServerName::try_from(host.clone()).map_err(std::io::Error::other)?;
            Ok(Ok(TlsConnector::from(self.tls.clone()).connect(name, stream).await?))
        };
        let shown = authority(uri);
        let connect = |why: String| Failure::Connect(self.unreachable(format!("{shown}: {why}")));
        let stream = match tokio::time::timeout(Duration::from_millis(CONNECT_MS), connecting).await {
            Err(_) => return Err(connect("no connection in time".to_owned())),
            // A wrong certificate is no reason to go on without one.
            Ok(Err(error)) if is_certificate(&error) => {
                return Err(Failure::Other(self.unreachable(format!("{shown}: {error}"))));
            }
            Ok(Err(error)) => return Err(connect(error.to_string())),
            Ok(Ok(stream)) => stream,
        };
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        let mut request =
            Request::builder().method(method).uri(path).body(Full::new(body)).map_err(|e| connect(e.to_string()))?;
        *request.headers_mut() = headers;
        set(request.headers_mut(), HOST, &shown);
        set(request.headers_mut(), USER_AGENT, concat!("gantry/", env!("CARGO_PKG_VERSION")));
        let answer = async {
            match stream {
                Ok(tls) => exchange(TokioIo::new(tls), request).await,
                Err(plain) => exchange(TokioIo::new(plain), request).await,
            }
        };
        match tokio::time::timeout(Duration::from_millis(IDLE_MS), answer).await {
            Err(_) => Err(Failure::Other(self.unreachable(format!("{shown} did not answer in time")))),
            // A TLS server that is spoken to in plain HTTP, or the other way round, breaks here.
            Ok(Err(error)) => Err(connect(error.to_string())),
            Ok(Ok(response)) => Ok(response),
        }
    }
}

fn is_certificate(error: &std::io::Error) -> bool {
    let tls = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    matches!(tls, Some(rustls::Error::InvalidCertificate(_)))
}

/// Whether another scheme may be tried.
pub(super) enum Failure {
    Connect(Error),
    Other(Error),
}

async fn exchange<S>(stream: TokioIo<S>, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, hyper::Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    tokio::spawn(connection);
    sender.send_request(request).await
}

/// The next piece of a body, within the time a registry may be silent.
pub(super) async fn next_chunk(body: &mut Incoming) -> Result<Option<Bytes>, String> {
    loop {
        let frame = tokio::time::timeout(Duration::from_millis(IDLE_MS), body.frame()).await;
        match frame {
            Err(_) => return Err("it stopped sending".to_owned()),
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => return Err(error.to_string()),
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// A whole small body.
pub(super) async fn read_small(response: Response<Incoming>, max_bytes: u64) -> Result<Vec<u8>, String> {
    let mut body = response.into_body();
    let mut text = Vec::new();
    while let Some(chunk) = next_chunk(&mut body).await? {
        text.extend_from_slice(&chunk);
        if text.len() as u64 > max_bytes {
            return Err(format!("it sent more than {max_bytes} bytes"));
        }
    }
    Ok(text)
}

fn set(headers: &mut HeaderMap, name: http::HeaderName, value: &str) {
    if let Ok(mut value) = http::HeaderValue::from_str(value) {
        value.set_sensitive(name == AUTHORIZATION);
        headers.insert(name, value);
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

/// Host and port, without the user an address might carry.
fn authority(uri: &Uri) -> String {
    match (uri.host(), uri.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (Some(host), None) => host.to_owned(),
        (None, _) => String::new(),
    }
}

fn is_loopback(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or("").trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|a| a.is_loopback())
}

/// System roots and the given ones. The system's are read once.
fn tls_config(extra: &[PathBuf]) -> Result<Arc<rustls::ClientConfig>, Error> {
    static CONFIGS: OnceLock<Mutex<HashMap<Vec<PathBuf>, Arc<rustls::ClientConfig>>>> = OnceLock::new();
    let configs = CONFIGS.get_or_init(Mutex::default);
    if let Some(config) = lock(configs).get(extra) {
        return Ok(config.clone());
    }
    let mut roots = rustls::RootCertStore::empty();
    if let Some(path) = SYSTEM_ROOTS.iter().find(|p| std::path::Path::new(p).exists())
        && let Ok(certificates) = CertificateDer::pem_file_iter(path)
    {
        roots.add_parsable_certificates(certificates.flatten());
    }
    for path in extra {
        let doing = format!("read the certificate roots {}", path.display());
        let failed = |why: String| Error::Io { doing: doing.clone(), source: std::io::Error::other(why) };
        for certificate in CertificateDer::pem_file_iter(path).map_err(|e| failed(e.to_string()))? {
            let certificate = certificate.map_err(|e| failed(e.to_string()))?;
            roots.add(certificate).map_err(|e| failed(e.to_string()))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::Unsupported { what: format!("TLS ({e})") })?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let config = Arc::new(config);
    lock(configs).insert(extra.to_vec(), config.clone());
    Ok(config)
}
