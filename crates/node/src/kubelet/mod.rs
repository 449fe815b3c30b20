//! The node's own HTTPS server: logs, exec, attach, port-forward, and numbers, for the API server and for scrapers.
//!
//! - [`logs`], `/containerLogs/NAMESPACE/POD/CONTAINER`
//! - [`remote`], `/exec/…` and `/attach/…`, over WebSocket and SPDY
//! - [`forward`], `/portForward/NAMESPACE/POD`, over SPDY, SPDY inside WebSocket, and plain WebSocket
//! - `/run/NAMESPACE/POD/CONTAINER?cmd=…`, a command to its end
//! - `/pods`, `/runningpods`, `/stats/summary`, `/metrics`, `/metrics/resource`, `/metrics/cadvisor`, `/healthz`
//!
//! Not here: what pods there are and how they run ([`Pods`] tells); who may do what to which pod: the API server has
//! decided that; others are let in as far as the API server says they may.
//!
//! Invariants: nobody is answered without a certificate of the cluster's authority for one of [`ALLOWED`], or the
//! server's word ([`Pods::permit`]) for another user; a client that goes away ends what was started for it.

mod forward;
mod logs;
mod node_logs;
pub(crate) mod remote;
pub(crate) mod websocket;

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use meta::{Status, Value};
use runtime::Runtime;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Connections at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 4096;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a command of `/run` may take.
const RUN_TIMEOUT_MS: u64 = 600_000;
/// The user and the group that get in.
const ALLOWED: (&str, &str) = ("kube-apiserver-kubelet-client", "system:masters");

/// What the endpoints ask of the agent.
pub trait Pods: Send + Sync + 'static {
    /// The newest run of a container; what is refused (no such pod or container, still waiting) is said to the client
    /// as it stands.
    fn container(&self, namespace: &str, pod: &str, container: &str) -> Result<ContainerRef, Status>;
    /// The pod's running sandbox.
    fn sandbox(&self, namespace: &str, pod: &str) -> Result<String, Status>;
    fn runtime(&self) -> Arc<dyn Runtime>;
    /// A `PodList` of this node's pods.
    fn pods_json(&self) -> Value;
    /// A `PodList` of what runs here, whatever the API says of it.
    fn running_json(&self) -> Value;
    /// The `Summary` of `/stats/summary`; with `brief`, CPU and memory only, as they were last sampled.
    fn stats_json(&self, brief: bool) -> BoxFuture<'_, Value>;
    /// Numbers as Prometheus' text.
    fn metrics(&self, of: Metrics) -> BoxFuture<'_, String>;
    /// Whether somebody who is no administrator may do `verb` to a part of the node: `metrics`, `stats`, `pods`,
    /// `proxy` …; the error is 401 or 403.
    fn permit(&self, who: Proof, verb: &'static str, part: &'static str) -> BoxFuture<'_, Result<(), StatusCode>> {
        let _ = (verb, part);
        let code = if who == Proof::Nothing { StatusCode::UNAUTHORIZED } else { StatusCode::FORBIDDEN };
        Box::pin(async move { Err(code) })
    }
}

/// What a caller shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// A certificate of the cluster's authority.
    User {
        name: String,
        groups: Vec<String>,
    },
    /// A bearer token, not checked yet.
    Token(String),
    Nothing,
}

/// Whose numbers are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metrics {
    /// `/metrics`: the agent's own.
    Agent,
    /// `/metrics/resource`: CPU and memory of node, pods and containers.
    Resource,
    /// `/metrics/cadvisor`: all that is known of containers and machine.
    Containers,
}

/// One run of a container, and the run before it.
#[derive(Clone, Debug)]
pub struct ContainerRef {
    pub id: String,
    /// The live log; rotated files lie beside it.
    pub log_path: PathBuf,
    /// The log of the run before; `None` when there was none.
    pub previous_log_path: Option<PathBuf>,
    pub tty: bool,
    pub stdin: bool,
    /// The container's input ends when that of an attached client does; else it stays open for the next one.
    pub stdin_once: bool,
}

/// A certificate or key that cannot be used.
#[derive(Debug)]
pub struct TlsError(String);

impl std::fmt::Display for TlsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot use a certificate for the node's endpoints: {}", self.0)
    }
}

impl std::error::Error for TlsError {}

/// TLS for the node's endpoints: its own certificate, and the authority of those who may come.
pub fn tls(cert_pem: &str, key_pem: &str, ca_pem: &str) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let bad = |error: &dyn std::fmt::Display| TlsError(error.to_string());
    let chain = CertificateDer::pem_slice_iter(cert_pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|error| bad(&error))?;
    let provider = rustls::crypto::ring::default_provider();
    let certified = rustls::sign::CertifiedKey::from_der(chain.map_err(|error| bad(&error))?, key, &provider);
    let certified = certified.map_err(|error| bad(&error))?;
    tls_with(Arc::new(rustls::sign::SingleCertAndKey::from(certified)), ca_pem)
}

/// The same, with a certificate that may be replaced.
pub fn tls_with(
    certificate: Arc<dyn rustls::server::ResolvesServerCert>,
    ca_pem: &str,
) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let bad = |error: &dyn std::fmt::Display| TlsError(error.to_string());
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(certificate.map_err(|error| bad(&error))?).map_err(|error| bad(&error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| bad(&error))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(&error))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    // Upgrades need HTTP/1.1.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Serves for as long as the future is polled.
pub async fn serve(listener: TcpListener, tls: Arc<rustls::ServerConfig>, pods: Arc<dyn Pods>) {
    let acceptor = TlsAcceptor::from(tls);
    let places = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    while let Ok(place) = places.clone().acquire_owned().await {
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (acceptor, pods) = (acceptor.clone(), pods.clone());
        tokio::spawn(async move {
            let _place = place;
            // Small answers go at once; the kernel must not wait for more.
            let _ = socket.set_nodelay(true);
            let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(socket)).await else { return };
            let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let access = access(certificate.map(AsRef::as_ref));
            let service = service_fn(move |request| {
                let (pods, access) = (pods.clone(), access.clone());
                async move { Ok::<_, Infallible>(answer(pods, access, request).await) }
            });
            let mut server = hyper::server::conn::http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
            if let Err(error) = server.serve_connection(TokioIo::new(stream), service).with_upgrades().await {
                tracing::debug!("a connection ended: {error}");
            }
        });
    }
}

/// What a connection proves.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Access {
    Granted,
    Asks(Proof),
}

/// What a verified client certificate lets in.
fn access(certificate: Option<&[u8]>) -> Access {
    let nobody = Access::Asks(Proof::Nothing);
    let Some(certificate) = certificate else { return nobody };
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(certificate) else { return nobody };
    let subject = certificate.subject();
    let name = subject.iter_common_name().find_map(|name| name.as_str().ok()).unwrap_or_default();
    let groups: Vec<&str> = subject.iter_organization().filter_map(|group| group.as_str().ok()).collect();
    if name == ALLOWED.0 || groups.contains(&ALLOWED.1) {
        return Access::Granted;
    }
    Access::Asks(Proof::User { name: name.to_owned(), groups: groups.into_iter().map(str::to_owned).collect() })
}

/// The verb and the part of the node that a request is about, as roles name them.
fn asked(method: &http::Method, path: &[&str]) -> (&'static str, &'static str) {
    let verb = match method.as_str() {
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "get",
    };
    let part = match path.first().copied().unwrap_or_default() {
        "stats" => "stats",
        "metrics" => "metrics",
        "pods" | "runningpods" => "pods",
        "healthz" | "livez" | "readyz" => "healthz",
        "logs" => "log",
        "configz" => "configz",
        _ => "proxy",
    };
    (verb, part)
}

/// Lets a request in, or says why not. A token beats the certificate: whoever sends one means it.
async fn admit(pods: &dyn Pods, access: Access, request: &Request<Incoming>, path: &[&str]) -> Result<(), StatusCode> {
    let header = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = header.and_then(|value| value.strip_prefix("Bearer ")).map(|token| token.trim().to_owned());
    let who = match (token, access) {
        (Some(token), _) => Proof::Token(token),
        (None, Access::Granted) => return Ok(()),
        (None, Access::Asks(proof)) => proof,
    };
    let (verb, part) = asked(request.method(), path);
    let answer = pods.permit(who.clone(), verb, part).await;
    // Who may do everything may do this; the narrower right is asked for first.
    match (answer, part) {
        (Err(StatusCode::FORBIDDEN), "pods" | "healthz" | "configz") => pods.permit(who, verb, "proxy").await,
        (answer, _) => answer,
    }
}

pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

fn full(code: StatusCode, content_type: &'static str, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(bytes.into()).boxed_unsync());
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

fn text(code: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    full(code, "text/plain; charset=utf-8", text)
}

fn refuse(status: &Status) -> Response<Body> {
    let code = StatusCode::from_u16(status.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    full(code, "application/json", status.to_value().to_json())
}

/// An answer without a body, to be filled with headers.
fn bare(code: StatusCode) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::new()).boxed_unsync());
    *response.status_mut() = code;
    response
}

/// The decoded parameters of a URL, in their order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    fn parse(text: &str) -> Query {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Query(
            pairs
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(key, value)| (decode(key), decode(value)))
                .collect(),
        )
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn one<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.all(name).next()
    }

    /// True by any of several names.
    fn flag(&self, names: &[&str]) -> bool {
        names.iter().any(|name| matches!(self.one(name), Some("true" | "True" | "TRUE" | "1" | "t" | "T")))
    }
}

/// Undoes the encoding of one part of a URL.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |at: usize| bytes.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        match (bytes[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high << 4 | low) as u8);
                at += 2;
            }
            (b'+', ..) => out.push(b' '),
            (other, ..) => out.push(other),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// All values of a header that is a list, over several lines and commas.
fn listed(headers: &HeaderMap, name: &str) -> Vec<String> {
    let lines = headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect()
}

async fn answer(pods: Arc<dyn Pods>, access: Access, request: Request<Incoming>) -> Response<Body> {
    let query = Query::parse(request.uri().query().unwrap_or(""));
    let path: Vec<String> = request.uri().path().split('/').skip(1).map(decode).collect();
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    if let Err(code) = admit(&*pods, access, &request, &path).await {
        return text(code, code.canonical_reason().unwrap_or_default());
    }
    let result = match path.as_slice() {
        ["healthz" | "livez" | "readyz", ..] => Ok(text(StatusCode::OK, "ok")),
        ["pods"] => Ok(full(StatusCode::OK, "application/json", pods.pods_json().to_json())),
        ["runningpods", ..] => Ok(full(StatusCode::OK, "application/json", pods.running_json().to_json())),
        ["stats", "summary"] => {
            let brief = query.flag(&["only_cpu_and_memory"]);
            Ok(full(StatusCode::OK, "application/json", pods.stats_json(brief).await.to_json()))
        }
        ["metrics"] => Ok(exposed(&*pods, Metrics::Agent).await),
        ["metrics", "resource"] => Ok(exposed(&*pods, Metrics::Resource).await),
        ["metrics", "cadvisor"] => Ok(exposed(&*pods, Metrics::Containers).await),
        ["logs", parts @ ..] => Ok(node_logs::answer(parts).await),
        ["run", namespace, pod, container] | ["run", namespace, pod, _, container] => {
            run(&*pods, &query, request.method(), namespace, pod, container).await
        }
        ["containerLogs", namespace, pod, container] => {
            let shown = logs::answer(&*pods, &query, namespace, pod, container).await;
            match shown {
                Ok(shown) if websocket::wanted(request.headers()) => websocket::read(request, shown.into_body()),
                shown => shown,
            }
        }
        [verb @ ("exec" | "attach"), namespace, pod, container]
        | [verb @ ("exec" | "attach"), namespace, pod, _, container] => {
            pods.container(namespace, pod, container).and_then(|target| {
                let remote = remote::Call::new(*verb == "exec", target, &query)?;
                remote.answer(pods.runtime(), request)
            })
        }
        ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => match pods.sandbox(namespace, pod) {
            Ok(sandbox) => forward::answer(pods.runtime(), sandbox, &query, request).await,
            Err(status) => Err(status),
        },
        _ => return text(StatusCode::NOT_FOUND, "404 page not found\n"),
    };
    result.unwrap_or_else(|status| refuse(&status))
}

async fn exposed(pods: &dyn Pods, of: Metrics) -> Response<Body> {
    full(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", pods.metrics(of).await)
}

/// Runs the words of `cmd` in a container and answers with what they said.
async fn run(
    pods: &dyn Pods,
    query: &Query,
    method: &http::Method,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<Response<Body>, Status> {
    if method != http::Method::POST {
        return Ok(text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed\n"));
    }
    let target = pods.container(namespace, pod, container)?;
    let argv: Vec<String> = query.one("cmd").unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    if argv.is_empty() {
        return Err(Status::bad_request("you must specify a command with cmd"));
    }
    let output = pods.runtime().exec_sync(&target.id, argv, RUN_TIMEOUT_MS).await.map_err(Status::internal)?;
    let mut said = output.stdout.to_vec();
    said.extend_from_slice(&output.stderr);
    Ok(match output.code {
        0 => text(StatusCode::OK, said),
        code => {
            said.extend_from_slice(format!("command terminated with exit code {code}\n").as_bytes());
            text(StatusCode::INTERNAL_SERVER_ERROR, said)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("command=sh&command=-c&command=echo+a%20b%26c%3D%C3%BC&stdin=true&tty=1&x&bad=%zz%4");
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["sh", "-c", "echo a b&c=ü"]);
        assert!(query.flag(&["input", "stdin"]) && query.flag(&["tty"]) && !query.flag(&["x"]));
        assert_eq!(query.one("bad"), Some("%zz%4"));
    }

    #[test]
    fn only_the_api_server_and_administrators_get_in() {
        assert_eq!(access(None), Access::Asks(Proof::Nothing));
        assert_eq!(access(Some(b"nonsense")), Access::Asks(Proof::Nothing));
    }

    #[test]
    fn requests_are_about_parts_of_the_node() {
        let get = http::Method::GET;
        assert_eq!(asked(&get, &["metrics", "cadvisor"]), ("get", "metrics"));
        assert_eq!(asked(&get, &["stats", "summary"]), ("get", "stats"));
        assert_eq!(asked(&get, &["logs", "a"]), ("get", "log"));
        assert_eq!(asked(&http::Method::POST, &["run", "a", "b", "c"]), ("create", "proxy"));
        assert_eq!(asked(&get, &["containerLogs", "a", "b", "c"]), ("get", "proxy"));
    }
}
