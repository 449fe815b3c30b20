//! [`HttpApi`]: the door to a server behind HTTPS.
//!
//! Not here: watches (`follow`), and any knowledge of kinds: where a resource is served is told by [`Paths`].
//!
//! Invariants: a call is sent at most once, unless it is certain that nothing of it left this machine; every call has a
//! time limit; an answer has a size limit.

mod pool;

use std::sync::Arc;
use std::time::Duration;

use base::Revision;
use bytes::Bytes;
use http::{Method, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use meta::{Facts, Object, Reason, Resource, Status, Str, Value, json};

use crate::{Action, Answer, Api, Options, PatchType, Propagation, Reply, Request};
use pool::Pool;

/// How long a call may take from being sent to its whole answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// The largest answer taken: a list page or one object.
const ANSWER_MAX_BYTES: usize = 256 << 20;

/// How the caller proves who it is.
#[derive(Clone)]
pub enum Identity {
    Certificate {
        cert_pem: String,
        key_pem: String,
    },
    /// A certificate that its owner replaces from time to time; new connections show the newest one.
    Renewed(Arc<dyn rustls::client::ResolvesClientCert>),
    /// A bearer token.
    Token(String),
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity(..)")
    }
}

/// Where a resource is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// `""` for the core group.
    pub group: Str,
    pub version: Str,
    pub plural: Str,
    pub kind: Str,
    pub namespaced: bool,
}

impl Path {
    /// `apps/v1`, or `v1` in the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_string() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `/apis/apps/v1/namespaces/NAMESPACE/deployments`; all namespaces when `namespace` is `""`.
    pub fn collection(&self, namespace: &str) -> String {
        let root = if self.group.is_empty() { "/api" } else { "/apis" };
        let version = self.api_version();
        match namespace {
            namespace if self.namespaced && !namespace.is_empty() => {
                format!("{root}/{version}/namespaces/{}/{}", escape(namespace), self.plural)
            }
            _ => format!("{root}/{version}/{}", self.plural),
        }
    }
}

/// The table of served resources.
pub type Paths = Arc<dyn Fn(Resource) -> Option<Path> + Send + Sync>;

/// A server behind HTTPS, as one identity. Connections are kept and shared.
pub struct HttpApi {
    pool: Pool,
    servers: Vec<(String, u16)>,
    authority: String,
    token: Option<String>,
    /// The certificate is replaced from time to time.
    renewed: bool,
    paths: Paths,
}

impl HttpApi {
    /// `server` is `https://HOST:PORT`, or several of a cluster, separated by commas; `ca_pem` the authorities that its certificate must come from. Nothing is
    /// connected yet.
    pub fn new(server: &str, ca_pem: &str, identity: Identity, paths: Paths) -> Result<HttpApi, Status> {
        let mut places = Vec::new();
        for server in server.split(',') {
            let wrong = |why: &str| Status::bad_request(format!("the server's address {server:?} {why}"));
            let rest = server.strip_prefix("https://").ok_or_else(|| wrong("does not begin with https://"))?;
            let authority: http::uri::Authority =
                rest.trim_end_matches('/').parse().map_err(|_| wrong("is not an address"))?;
            let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
            places.push((host, authority.port_u16().unwrap_or(443)));
        }
        let first = server.split(',').next().unwrap_or(server);
        let authority = first.trim_start_matches("https://").trim_end_matches('/').to_owned();
        let token = match &identity {
            Identity::Token(token) => Some(token.clone()),
            Identity::Certificate { .. } | Identity::Renewed(_) => None,
        };
        let renewed = matches!(identity, Identity::Renewed(_));
        let pool = Pool::new(places.clone(), ca_pem, &identity)?;
        Ok(HttpApi { pool, servers: places, authority, token, renewed, paths })
    }

    /// Hosts and ports of all servers.
    pub fn servers(&self) -> &[(String, u16)] {
        &self.servers
    }

    /// Where `resource` is served.
    pub fn path(&self, resource: Resource) -> Result<Path, Status> {
        (self.paths)(resource).ok_or_else(|| Status::not_found(resource.group(), resource.plural(), ""))
    }

    /// Reads `path` (with its query) as it is.
    pub async fn get_raw(&self, path: &str) -> Result<Bytes, Status> {
        self.raw(Method::GET, path, "", Bytes::new()).await
    }

    /// Posts a body of type `content_type` to `path`.
    pub async fn post_raw(&self, path: &str, content_type: &str, body: Bytes) -> Result<Bytes, Status> {
        self.raw(Method::POST, path, content_type, body).await
    }

    /// Any request; the body of a good answer, or the `Status` that the server gave.
    pub async fn raw(&self, method: Method, path: &str, content_type: &str, body: Bytes) -> Result<Bytes, Status> {
        let call = async {
            let answer = self.open(method, path, content_type, body).await?;
            self.collect(answer).await
        };
        let late = |_| Status::new(Reason::Timeout, format!("no answer within {} s", CALL_TIMEOUT.as_secs()));
        self.or_move_on(async { tokio::time::timeout(CALL_TIMEOUT, call).await.map_err(late)? }).await
    }

    /// Which server is in use now, for [`HttpApi::left`].
    pub(crate) fn place(&self) -> usize {
        self.pool.at()
    }

    /// Is done when another server is in use than the one of that moment: streams of that one are of no more use.
    pub(crate) async fn left(&self, place: usize) {
        self.pool.left(place).await;
    }

    /// A server that cannot work (it lost its store) or does not answer is left for another one, where there is one.
    async fn or_move_on<T>(&self, work: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        let place = self.pool.at();
        let result = work.await;
        if let Err(status) = &result
            && matches!(status.reason(), Reason::ServiceUnavailable | Reason::Timeout)
        {
            self.pool.move_on(place);
        }
        result
    }

    /// Sends a request and returns its answer when the head has come; for streams. A refusal is a `Status` already.
    pub(crate) async fn open(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> Result<Incoming, Status> {
        // In boxes: futures within futures would each be as large as all in them, and a caller's stack is small.
        match Box::pin(self.open_once(method.clone(), path, content_type, body.clone())).await {
            // A connection goes on with the certificate that it began with, until that has ended: a new one has the next.
            // Who was not let in has changed nothing.
            Err(status) if status.reason() == Reason::Unauthorized && self.renewed => {
                self.pool.let_go();
                Box::pin(self.open_once(method, path, content_type, body)).await
            }
            other => other,
        }
    }

    async fn open_once(&self, method: Method, path: &str, content_type: &str, body: Bytes) -> Result<Incoming, Status> {
        let uri = format!("https://{}{path}", self.authority);
        let mut request = http::Request::builder().method(method).uri(uri).header(header::ACCEPT, "application/json");
        if !content_type.is_empty() {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request
            .header(header::USER_AGENT, concat!("gantry/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(body))
            .map_err(|error| Status::bad_request(format!("the request {path:?} cannot be sent: {error}")))?;
        self.or_move_on(async {
            let (parts, body) = Box::pin(self.pool.send(request)).await?.into_parts();
            if parts.status.is_success() {
                return Ok(body);
            }
            let text = self.collect(body).await?;
            Err(refusal(parts.status, &text))
        })
        .await
    }

    async fn collect(&self, body: Incoming) -> Result<Bytes, Status> {
        let collected = Limited::new(body, ANSWER_MAX_BYTES).collect().await;
        let failed = |error| Status::new(Reason::ServiceUnavailable, format!("the answer broke off: {error}"));
        Ok(collected.map_err(failed)?.to_bytes())
    }

    async fn perform(&self, request: Request) -> Result<Answer, Status> {
        let resource = request.resource;
        let path = self.path(resource)?;
        let mut url = path.collection(&request.namespace);
        if !request.name.is_empty() && !matches!(request.action, Action::Find) {
            url.push('/');
            url.push_str(&escape(&request.name));
        }
        if !request.subresource.is_empty() {
            url.push('/');
            url.push_str(&request.subresource);
        }
        let options = &request.options;
        let (method, content_type, body) = match request.action {
            Action::Get => (Method::GET, "", None),
            Action::Find => {
                url.push_str("?fieldSelector=metadata.name%3D");
                url.push_str(&escape(&request.name));
                return found(resource, &request, &self.get_raw(&url).await?);
            }
            Action::Create(mut value) => {
                if request.subresource.is_empty() {
                    complete(&mut value, &path);
                }
                (Method::POST, "application/json", Some(value))
            }
            Action::Update(mut value) => {
                if request.subresource.is_empty() || request.subresource == "status" {
                    complete(&mut value, &path);
                }
                demand(&mut value, options);
                (Method::PUT, "application/json", Some(value))
            }
            Action::Patch(kind, mut value) => {
                if kind == PatchType::Apply {
                    complete(&mut value, &path);
                }
                if kind != PatchType::Json {
                    demand(&mut value, options);
                }
                (Method::PATCH, media_type(kind), Some(value))
            }
            Action::Delete => (Method::DELETE, "application/json", Some(delete_options(options))),
        };
        let query = query(options, &method);
        if !query.is_empty() {
            url.push('?');
            url.push_str(&query);
        }
        let body = body.map_or_else(Bytes::new, |value| value.to_json().into());
        let text = self.raw(method, &url, content_type, body).await?;
        let value = parsed(&text)?;
        Ok(answer(resource, &request.namespace, &request.name, value))
    }
}

impl Api for HttpApi {
    fn call(&self, request: Request) -> Reply<'_, Answer> {
        Box::pin(self.perform(request))
    }
}

/// What the server said went wrong; anything that is no `Status` becomes one.
fn refusal(code: StatusCode, text: &[u8]) -> Status {
    match Value::parse(text) {
        Ok(value) if value["kind"].text() == "Status" => Status::from_value(&value),
        _ => {
            let reason = match code.as_u16() {
                400 => Reason::BadRequest,
                401 => Reason::Unauthorized,
                403 => Reason::Forbidden,
                404 => Reason::NotFound,
                409 => Reason::Conflict,
                410 => Reason::Gone,
                429 => Reason::TooManyRequests,
                503 => Reason::ServiceUnavailable,
                _ => Reason::Unknown,
            };
            let mut status = Status::new(reason, String::from_utf8_lossy(text).trim().to_owned());
            status.0.code = code.as_u16();
            status
        }
    }
}

fn parsed(text: &[u8]) -> Result<Value, Status> {
    Value::parse(text).map_err(|error| Status::internal(format!("the answer is not JSON: {error}")))
}

/// The one object of a list.
fn found(resource: Resource, request: &Request, text: &[u8]) -> Result<Answer, Status> {
    let list = parsed(text)?;
    let Some(value) = list["items"].items().first() else {
        return Err(Status::not_found(resource.group(), resource.plural(), &request.name));
    };
    let revision = list.at(&["metadata", "resourceVersion"]).text().parse().map(Revision).unwrap_or(Revision::ZERO);
    Ok(Answer { object: Object::new(Facts::of(resource, value), value.to_json()), revision })
}

/// The answer to a call. Where the server answers with a `Status` (most deletions, bindings, evictions), the object has
/// only the names that are known.
fn answer(resource: Resource, namespace: &str, name: &str, mut value: Value) -> Answer {
    if value["kind"].text() == "Status" {
        let uid = value.at(&["details", "uid"]).text();
        value = json!({"metadata": {"namespace": (namespace), "name": (name), "uid": (uid)}});
    }
    let facts = Facts::of(resource, &value);
    let revision = facts.revision;
    Answer { object: Object::new(facts, value.to_json()), revision }
}

fn complete(value: &mut Value, path: &Path) {
    let map = value.make_map();
    if !map.contains("apiVersion") {
        map.insert("apiVersion", path.api_version());
    }
    if !map.contains("kind") {
        map.insert("kind", &path.kind);
    }
}

/// Preconditions travel in the metadata of a written object.
fn demand(value: &mut Value, options: &Options) {
    if let Some(uid) = &options.uid {
        value.set(&["metadata", "uid"], uid);
    }
    if let Some(revision) = options.revision {
        value.set(&["metadata", "resourceVersion"], revision.to_string());
    }
}

fn delete_options(options: &Options) -> Value {
    let mut body = json!({"apiVersion": "v1", "kind": "DeleteOptions"});
    if let Some(uid) = &options.uid {
        body.set(&["preconditions", "uid"], uid);
    }
    if let Some(Revision(revision)) = options.revision {
        body.set(&["preconditions", "resourceVersion"], revision.to_string());
    }
    if let Some(seconds) = options.grace_seconds {
        body.set(&["gracePeriodSeconds"], seconds);
    }
    if let Some(propagation) = options.propagation {
        let word = match propagation {
            Propagation::Background => "Background",
            Propagation::Foreground => "Foreground",
            Propagation::Orphan => "Orphan",
        };
        body.set(&["propagationPolicy"], word);
    }
    body
}

fn media_type(kind: PatchType) -> &'static str {
    match kind {
        PatchType::Json => "application/json-patch+json",
        PatchType::Merge => "application/merge-patch+json",
        PatchType::Strategic => "application/strategic-merge-patch+json",
        PatchType::Apply => "application/apply-patch+yaml",
    }
}

fn query(options: &Options, method: &Method) -> String {
    let mut parts = Vec::new();
    if options.dry_run {
        parts.push("dryRun=All".to_owned());
    }
    if !options.manager.is_empty() && matches!(*method, Method::POST | Method::PUT | Method::PATCH) {
        parts.push(format!("fieldManager={}", escape(&options.manager)));
    }
    if options.force && *method == Method::PATCH {
        parts.push("force=true".to_owned());
    }
    parts.join("&")
}

/// Percent-encodes everything but the letters that need none anywhere in a URL.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_api() {
        let path = |group: &str, plural: &str, namespaced| Path {
            group: group.into(),
            version: "v1".into(),
            plural: plural.into(),
            kind: "X".into(),
            namespaced,
        };
        assert_eq!(path("", "pods", true).collection("a"), "/api/v1/namespaces/a/pods");
        assert_eq!(path("", "pods", true).collection(""), "/api/v1/pods");
        assert_eq!(path("apps", "deployments", true).collection("a"), "/apis/apps/v1/namespaces/a/deployments");
        assert_eq!(path("", "nodes", false).collection(""), "/api/v1/nodes");
        assert_eq!(escape("a b:c/ü"), "a%20b%3Ac%2F%C3%BC");
    }

    #[test]
    fn refusals_are_statuses() {
        let status = Status::not_found("apps", "deployments", "web");
        assert_eq!(refusal(StatusCode::NOT_FOUND, &status.to_value().to_json()), status);
        let status = refusal(StatusCode::BAD_GATEWAY, b"nobody there\n");
        assert_eq!((status.code(), status.message()), (502, "nobody there"));
    }

    #[test]
    fn addresses_are_checked() {
        let paths: Paths = Arc::new(|_| None);
        let new = |server| HttpApi::new(server, "", Identity::Token(String::new()), paths.clone()).err().unwrap();
        assert!(new("http://a:1").message().contains("https://"));
        assert!(new("https://a b").message().contains("not an address"));
        assert!(new("https://[::1]:6443").message().contains("certificate"));
    }
}
