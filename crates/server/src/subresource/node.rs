//! Connections to nodes: logs, exec, attach, port-forward, and proxies. The server authorizes, finds the node, and then
//! passes bytes both ways; what is spoken inside is between the client and the node.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderValue, Method, Request, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use meta::{Kind, Reason, Resource, Status, Str, Value};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::Server;
use crate::admission;
use crate::authz::Authorized;
use crate::ca::{Ca, Current, Identity, Usage, roots};
use crate::dispatch::{Incomer, no_such_resource};
use crate::error::Error;
use crate::flow::places::Place;
use crate::http::{Body, Response, body};
use crate::subresource::links::{Links, PAGE_MAX_BYTES};
use crate::unjudged::Unjudged;

const NODES: Resource = Resource("nodes");
const PODS: Resource = Resource("pods");
const SERVICES: Resource = Resource("services");
const SLICES: Resource = Resource("endpointslices.discovery.k8s.io");
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a node may take to begin its answer: the request holds a seat meanwhile.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The port of a kubelet that does not say.
const KUBELET_PORT: u16 = 10250;

/// How the server proves itself to the nodes.
pub struct Kubelets {
    tls: Arc<rustls::ClientConfig>,
    /// For what runs in pods, whose certificates nobody here could judge: a proxy is for looking at it, as in upstream.
    unjudged: Arc<rustls::ClientConfig>,
    certificate: Arc<Current>,
}

/// The user that the server is for the nodes.
fn kubelet_client(ca: &Ca, lifetime: Duration) -> Result<Identity, Error> {
    ca.issue_for("kube-apiserver-kubelet-client", &["system:masters"], &[], Usage::Client, lifetime)
}

impl Kubelets {
    pub fn new(ca: &Ca) -> Result<Kubelets, Error> {
        let bad = |error: &dyn std::fmt::Display| Error::Tls { why: error.to_string() };
        let lifetime = crate::ca::days(u64::try_from(crate::ca::LEAF_DAYS).unwrap_or(1));
        let certificate = Arc::new(Current::new(&kubelet_client(ca, lifetime)?)?);
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| bad(&error))?
            .with_root_certificates(roots(ca.pem().as_bytes())?)
            .with_client_cert_resolver(certificate.clone());
        let unjudged = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| bad(&error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Unjudged))
            .with_no_client_auth();
        Ok(Kubelets { tls: Arc::new(config), unjudged: Arc::new(unjudged), certificate })
    }

    /// Takes a new certificate, which holds for `lifetime`.
    pub fn renew(&self, ca: &Ca, lifetime: Duration) -> Result<(), Error> {
        self.certificate.replace(&kubelet_client(ca, lifetime)?)
    }
}

/// Reads a path of a node's kubelet, at most `limit` bytes.
pub async fn read(server: &Server, node: &str, path: &str, limit: usize) -> Result<Bytes, Status> {
    let (host, port) = node_address(server, node)?;
    let target = Target { host, port, tls: Tls::Node, path: path.to_owned(), pod: None };
    let wire = dial(server, &target).await?;
    let failed = |error: &dyn std::fmt::Display| {
        Status::new(Reason::ServiceUnavailable, format!("node {node:?} did not answer: {error}"))
    };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(wire)).await.map_err(|error| failed(&error))?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path).header(header::HOST, format!("{}:{}", target.host, target.port));
    let request = request.body(Full::new(Bytes::new())).map_err(Status::internal)?;
    let answer = sender.send_request(request).await.map_err(|error| failed(&error))?;
    let code = answer.status();
    let body = http_body_util::Limited::new(answer.into_body(), limit).collect().await;
    connection.abort();
    let bytes = body.map_err(|error| failed(&error))?.to_bytes();
    if code.is_success() { Ok(bytes) } else { Err(failed(&code)) }
}

/// How a connection is secured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tls {
    Plain,
    /// The other side proves that it is the node.
    Node,
    /// The other side need not prove anything.
    Unjudged,
}

impl Tls {
    fn of_scheme(is_https: bool) -> Tls {
        if is_https { Tls::Unjudged } else { Tls::Plain }
    }
}

/// Where a connection goes.
struct Target {
    host: String,
    port: u16,
    tls: Tls,
    path: String,
    /// The pod that has the port: the connection goes through its node, as the server need not be in the pods' network.
    pod: Option<Through>,
}

/// A pod as its node knows it.
struct Through {
    node: String,
    namespace: Str,
    name: Str,
}

pub async fn connect(
    server: &Arc<Server>,
    auth: &Authorized,
    kind: &Arc<Kind>,
    incomer: Incomer,
) -> Result<Response, Status> {
    let info = &auth.info;
    let proxied = (info.subresource == "proxy").then(|| parts_of(incomer.uri.path(), kind.names.namespaced));
    if let Some((prefix, "")) = proxied
        && matches!(incomer.method, Method::GET | Method::HEAD)
        && !incomer.headers.contains_key(header::UPGRADE)
    {
        // Relative links of the page would lead out of the proxy.
        let query = incomer.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let mut response = body::text(301, Bytes::new());
        let place = HeaderValue::from_str(&format!("{prefix}/{query}")).map_err(Status::internal)?;
        response.headers_mut().insert(header::LOCATION, place);
        return Ok(response);
    }
    let tail = proxied.map(|(_, tail)| if tail.is_empty() { "/" } else { tail }.to_owned()).unwrap_or_default();
    let target = match (kind.resource, info.subresource.as_str()) {
        (PODS, "proxy") => pod_proxy(server, auth, tail)?,
        (PODS, subresource) => pod_stream(server, auth, subresource, &incomer)?,
        (SERVICES, "proxy") => service_proxy(server, auth, tail)?,
        (NODES, "proxy") => node_proxy(server, &info.name, tail)?,
        _ => return Err(no_such_resource()),
    };
    let links = proxied.filter(|_| kind.resource != NODES).map(|(prefix, _)| Links {
        prefix: prefix.to_owned(),
        hosts: [format!("{}:{}", target.host, target.port)]
            .into_iter()
            .chain(incomer.header(header::HOST).map(str::to_owned))
            .chain(incomer.uri.authority().map(ToString::to_string))
            .collect(),
    });
    admission::connect::check(server, auth, kind, &incomer.query).await?;
    let place = server.streams.take(&auth.user.name)?;
    let late = |_| {
        let why = format!("the node did not begin to answer within {} s", ANSWER_TIMEOUT.as_secs());
        Status::new(Reason::Timeout, why)
    };
    tokio::time::timeout(ANSWER_TIMEOUT, pass(server, target, links, incomer, place)).await.map_err(late)?
}

/// The path up to its part `proxy`, and what follows that, as the client wrote it.
fn parts_of(path: &str, namespaced: bool) -> (&str, &str) {
    /// Slashes before the end of `/api/v1/nodes/NAME/proxy` and `/api/v1/namespaces/NAMESPACE/pods/NAME/proxy`.
    const SLASHES: [usize; 2] = [5, 7];
    let mut slashes = path.match_indices('/').map(|(at, _)| at).skip(SLASHES[usize::from(namespaced)]);
    path.split_at(slashes.next().unwrap_or(path.len()))
}

/// A port of a node: its kubelet's, unless another one is named.
fn node_proxy(server: &Server, name: &str, path: String) -> Result<Target, Status> {
    let (is_https, name, port) = split_name(name);
    let (host, kubelet) = node_address(server, name)?;
    let port = match port {
        "" => kubelet,
        port => port.parse().map_err(|_| Status::bad_request(format!("invalid port {port:?}")))?,
    };
    let tls = if port == kubelet { Tls::Node } else { Tls::of_scheme(is_https) };
    Ok(Target { host, port, tls, path, pod: None })
}

fn pod(server: &Server, auth: &Authorized) -> Result<Value, Status> {
    let info = &auth.info;
    let pod = server.one(PODS, &info.namespace, &info.name);
    Ok(pod.ok_or_else(|| Status::not_found("", "pods", &info.name))?.value())
}

/// A node's kubelet: its internal address and the port it tells.
fn node_address(server: &Server, name: &str) -> Result<(String, u16), Status> {
    let node = server.one(NODES, "", name).ok_or_else(|| Status::not_found("", "nodes", name))?.value();
    let addresses = node.at(&["status", "addresses"]).items();
    let address = ["InternalIP", "ExternalIP", "Hostname"]
        .into_iter()
        .find_map(|of_type| addresses.iter().find(|address| address["type"].text() == of_type))
        .map(|address| address["address"].text().to_owned())
        .ok_or_else(|| Status::internal(format!("node {name:?} has no address")))?;
    let port = node.at(&["status", "daemonEndpoints", "kubeletEndpoint", "Port"]).as_int();
    Ok((address, port.and_then(|port| u16::try_from(port).ok()).unwrap_or(KUBELET_PORT)))
}

/// log, exec, attach, port-forward: the kubelet's endpoint of the pod.
fn pod_stream(server: &Server, auth: &Authorized, subresource: &str, incomer: &Incomer) -> Result<Target, Status> {
    let info = &auth.info;
    let pod = pod(server, auth)?;
    let node = pod.at(&["spec", "nodeName"]).text();
    if node.is_empty() {
        return Err(Status::bad_request(format!("pod {} does not have a host assigned", info.name)));
    }
    let (host, port) = node_address(server, node)?;
    let query = incomer.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let place = format!("{}/{}", info.namespace, info.name);
    let path = if subresource == "portforward" {
        format!("/portForward/{place}{query}")
    } else {
        let container = container_of(&pod, &incomer.query, &info.name, subresource)?;
        let endpoint = match subresource {
            "log" => "containerLogs",
            other => other,
        };
        format!("/{endpoint}/{place}/{container}{query}")
    };
    Ok(Target { host, port, tls: Tls::Node, path, pod: None })
}

/// The container that is meant: the named one, the annotated default, or the only one.
fn container_of(pod: &Value, query: &crate::request::Query, name: &str, subresource: &str) -> Result<String, Status> {
    let lists = ["initContainers", "containers", "ephemeralContainers"];
    let names = |lists: &[&str]| -> Vec<String> {
        let containers = lists.iter().flat_map(|list| pod["spec"][*list].items());
        containers.map(|container| container["name"].text().to_owned()).collect()
    };
    let asked = query.text("container");
    if !asked.is_empty() {
        if names(&lists).iter().any(|name| name == asked) {
            return Ok(asked.to_owned());
        }
        return Err(Status::bad_request(format!("container {asked} is not valid for pod {name}")));
    }
    let all = names(&["containers"]);
    let default = pod.at(&["metadata", "annotations", "kubectl.kubernetes.io/default-container"]).text();
    match all.as_slice() {
        [one] => Ok(one.clone()),
        _ if !default.is_empty() && all.iter().any(|name| name == default) && subresource != "log" => {
            Ok(default.to_owned())
        }
        [] => Err(Status::bad_request(format!("pod {name} has no containers"))),
        many => {
            let mut message =
                format!("a container name must be specified for pod {name}, choose one of: [{}]", many.join(" "));
            let init = names(&["initContainers"]);
            if !init.is_empty() {
                message.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            Err(Status::bad_request(message))
        }
    }
}

/// `SCHEME:NAME:PORT`, `NAME:PORT` or `NAME`.
fn split_name(name: &str) -> (bool, &str, &str) {
    let parts: Vec<&str> = name.split(':').collect();
    match parts.as_slice() {
        [scheme, name, port] => (*scheme == "https", name, port),
        [name, port] => (false, name, port),
        _ => (false, name, ""),
    }
}

fn pod_proxy(server: &Server, auth: &Authorized, path: String) -> Result<Target, Status> {
    let (is_https, name, port) = split_name(&auth.info.name);
    let pod = server.one(PODS, &auth.info.namespace, name).ok_or_else(|| Status::not_found("", "pods", name))?.value();
    let host = pod.at(&["status", "podIP"]).text().to_owned();
    if host.is_empty() {
        return Err(Status::new(Reason::ServiceUnavailable, format!("pod {name:?} has no address")));
    }
    let first = pod.at(&["spec", "containers"])[0].at(&["ports"])[0]["containerPort"].as_int();
    let port = match port {
        "" => first.and_then(|port| u16::try_from(port).ok()).unwrap_or(80),
        port => port.parse().map_err(|_| Status::bad_request(format!("invalid port {port:?}")))?,
    };
    let node = pod.at(&["spec", "nodeName"]).text().to_owned();
    let through = Through { node, namespace: auth.info.namespace.clone(), name: name.into() };
    Ok(Target { host, port, tls: Tls::of_scheme(is_https), path, pod: Some(through) })
}

fn service_proxy(server: &Server, auth: &Authorized, path: String) -> Result<Target, Status> {
    let (is_https, name, port) = split_name(&auth.info.name);
    let (host, port, pod) = service_endpoint(server, &auth.info.namespace, name, port)?;
    Ok(Target { host, port, tls: Tls::of_scheme(is_https), path, pod })
}

/// A ready endpoint of a service's port, which is named or numbered: its address, and its pod if it has one.
fn service_endpoint(
    server: &Server,
    namespace: &Str,
    name: &str,
    port: &str,
) -> Result<(String, u16, Option<Through>), Status> {
    let service = server.one(SERVICES, namespace, name).ok_or_else(|| Status::not_found("", "services", name))?.value();
    let ports = service.at(&["spec", "ports"]).items();
    let number = port.parse::<i64>().ok();
    let wanted = ports
        .iter()
        .find(|entry| match port {
            "" => ports.len() == 1,
            port => entry["name"].text() == port || number.is_some_and(|number| entry["port"].as_int() == Some(number)),
        })
        .ok_or_else(|| {
            Status::new(Reason::ServiceUnavailable, format!("no service port {port:?} found for service {name:?}"))
        })?;
    let view = server.storage.mirror().view();
    for slice in view.list(SLICES, namespace) {
        if slice.labels().get("kubernetes.io/service-name") != Some(name) {
            continue;
        }
        let slice = slice.value();
        let Some(port) = slice["ports"].items().iter().find(|entry| entry["name"].text() == wanted["name"].text())
        else {
            continue;
        };
        let ready = slice["endpoints"]
            .items()
            .iter()
            .find(|endpoint| endpoint.at(&["conditions", "ready"]).as_bool() != Some(false));
        if let (Some(endpoint), Some(port)) = (ready, port["port"].as_int().and_then(|port| u16::try_from(port).ok())) {
            let host = endpoint["addresses"][0].text().to_owned();
            let reference = &endpoint["targetRef"];
            let pod = (reference["kind"].text() == "Pod").then(|| Through {
                node: endpoint["nodeName"].text().to_owned(),
                namespace: namespace.clone(),
                name: reference["name"].text().into(),
            });
            return Ok((host, port, pod));
        }
    }
    Err(Status::new(Reason::ServiceUnavailable, format!("no endpoints available for service {name:?}")))
}

/// A port of a service, through the node of one of its pods; or of the machine that the service is a name of.
pub async fn dial_service(server: &Server, namespace: &Str, name: &str, port: u16) -> Result<Box<dyn Wire>, Status> {
    let elsewhere = server.one(SERVICES, namespace, name).map(|service| service.value()["spec"].clone());
    if let Some(spec) = elsewhere.filter(|spec| spec["type"].text() == "ExternalName") {
        return dial_address(spec["externalName"].text(), port).await;
    }
    match service_endpoint(server, namespace, name, &port.to_string())? {
        (_, port, Some(pod)) => dial_pod(server, &pod, port).await,
        (host, port, None) => dial_address(&host, port).await,
    }
}

pub trait Wire: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send> Wire for T {}

async fn dial(server: &Server, target: &Target) -> Result<Box<dyn Wire>, Status> {
    let wire = match &target.pod {
        Some(pod) => dial_pod(server, pod, target.port).await?,
        None => dial_address(&target.host, target.port).await?,
    };
    match target.tls {
        Tls::Plain => Ok(wire),
        Tls::Node => secure(&server.kubelets.tls, wire, &target.host).await,
        Tls::Unjudged => secure(&server.kubelets.unjudged, wire, &target.host).await,
    }
}

fn unreachable(place: &str, error: &dyn std::fmt::Display) -> Status {
    Status::new(Reason::ServiceUnavailable, format!("error dialing {place}: {error}"))
}

pub async fn dial_address(host: &str, port: u16) -> Result<Box<dyn Wire>, Status> {
    let place = format!("{host}:{port}");
    let dialed = tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect((host, port))).await;
    let socket = dialed.map_err(|error| unreachable(&place, &error))?.map_err(|error| unreachable(&place, &error))?;
    let _ = socket.set_nodelay(true);
    Ok(Box::new(socket))
}

pub async fn secure(tls: &Arc<rustls::ClientConfig>, wire: Box<dyn Wire>, host: &str) -> Result<Box<dyn Wire>, Status> {
    let name = ServerName::try_from(host.to_owned()).map_err(|error| unreachable(host, &error))?;
    let stream = TlsConnector::from(tls.clone()).connect(name, wire).await;
    Ok(Box::new(stream.map_err(|error| unreachable(host, &error))?))
}

/// A port of a pod, through the endpoints of its node.
async fn dial_pod(server: &Server, pod: &Through, port: u16) -> Result<Box<dyn Wire>, Status> {
    let place = format!("{}/{}:{port}", pod.namespace, pod.name);
    let (host, kubelet) = node_address(server, &pod.node)?;
    let wire = secure(&server.kubelets.tls, dial_address(&host, kubelet).await?, &host).await?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(wire)).await;
    let (mut sender, connection) = handshake.map_err(|error| unreachable(&place, &error))?;
    tokio::spawn(connection.with_upgrades());
    let request = Request::get(format!("/portForward/{}/{}?port={port}", pod.namespace, pod.name))
        .header(header::HOST, host)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "tcp")
        .body(Full::new(Bytes::new()))
        .map_err(Status::internal)?;
    let mut answer = sender.send_request(request).await.map_err(|error| unreachable(&place, &error))?;
    if answer.status() != http::StatusCode::SWITCHING_PROTOCOLS {
        return Err(unreachable(&place, &format!("its node answers {}", answer.status())));
    }
    let upgraded = hyper::upgrade::on(&mut answer).await.map_err(|error| unreachable(&place, &error))?;
    Ok(Box::new(TokioIo::new(upgraded)))
}

/// An answer whose links lead through the proxy again.
async fn lead(links: &Links, mut parts: http::response::Parts, mut incoming: Incoming) -> Result<Response, Status> {
    links.lead_header(&mut parts.headers);
    let of_type = parts.headers.get(header::CONTENT_TYPE).and_then(|of_type| of_type.to_str().ok()).unwrap_or_default();
    if parts.headers.contains_key(header::LOCATION)
        || of_type.split(';').next().unwrap_or_default().trim() != "text/html"
    {
        return Ok(http::Response::from_parts(parts, Body::Incoming(incoming)));
    }
    let mut page = Vec::new();
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|error| unreachable("the page", &error))?;
        page.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        if page.len() > PAGE_MAX_BYTES {
            let rest = futures_util::stream::unfold(incoming, |mut incoming| async move {
                loop {
                    // A page that breaks off ends there for its reader, too.
                    match incoming.frame().await?.ok()?.into_data() {
                        Ok(data) => return Some((data, incoming)),
                        Err(_) => continue,
                    }
                }
            });
            let whole = futures_util::stream::once(std::future::ready(Bytes::from(page))).chain(rest);
            return Ok(http::Response::from_parts(parts, Body::Stream(Box::pin(whole))));
        }
    }
    if let Some(led) = links.lead_page(&parts.headers, &page) {
        page = led;
    }
    parts.headers.insert(header::CONTENT_LENGTH, page.len().into());
    Ok(http::Response::from_parts(parts, Body::Full(Some(page.into()))))
}

/// Sends the request on and the answer back; upgraded connections become a tunnel.
async fn pass(
    server: &Arc<Server>,
    target: Target,
    links: Option<Links>,
    mut incomer: Incomer,
    place: Place,
) -> Result<Response, Status> {
    let wire = dial(server, &target).await?;
    let failed =
        |error: hyper::Error| Status::new(Reason::ServiceUnavailable, format!("the node did not answer: {error}"));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(wire)).await.map_err(failed)?;
    tokio::spawn(connection.with_upgrades());
    let upgrades = incomer.headers.contains_key(header::UPGRADE);
    let path = match (target.path.contains('?'), incomer.uri.query()) {
        (false, Some(query)) => format!("{}?{query}", target.path),
        _ => target.path.clone(),
    };
    let mut request = Request::builder().method(incomer.method.clone()).uri(path);
    if let Some(headers) = request.headers_mut() {
        for (name, value) in &incomer.headers {
            // What proves the caller to us is not the node's to see; the user was authorized here.
            let ours = matches!(
                *name,
                header::AUTHORIZATION | header::HOST | header::CONTENT_LENGTH | header::TRANSFER_ENCODING
            ) || name.as_str().starts_with("impersonate-");
            if !ours {
                headers.append(name.clone(), value.clone());
            }
        }
        let host = format!("{}:{}", target.host, target.port);
        headers.insert(header::HOST, HeaderValue::from_str(&host).unwrap_or(HeaderValue::from_static("node")));
    }
    let sent = if upgrades { Bytes::new() } else { incomer.body().await? };
    let request = request.body(Full::new(sent)).map_err(Status::internal)?;
    let answer = sender.send_request(request).await.map_err(failed)?;
    if answer.status() != http::StatusCode::SWITCHING_PROTOCOLS {
        let (mut parts, incoming) = answer.into_parts();
        parts.headers.remove(header::CONNECTION);
        parts.headers.remove(header::TRANSFER_ENCODING);
        if let Some(links) = links {
            return Ok(lead(&links, parts, incoming).await?.map(|body| body.holding(place)));
        }
        return Ok(http::Response::from_parts(parts, Body::Incoming(incoming).holding(place)));
    }
    Ok(tunnel(answer, incomer, place))
}

/// Answers that the connection is another's from here on, and passes bytes both ways.
pub(crate) fn tunnel(mut answer: http::Response<Incoming>, mut incomer: Incomer, place: Place) -> Response {
    let mut response = body::text(101, Bytes::new());
    *response.headers_mut() = answer.headers().clone();
    let theirs = hyper::upgrade::on(&mut answer);
    let mut request = Request::new(());
    std::mem::swap(request.extensions_mut(), &mut incomer.extensions);
    let ours = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let (Ok(theirs), Ok(ours)) = (theirs.await, ours.await) else { return };
        let (mut theirs, mut ours) = (TokioIo::new(theirs), TokioIo::new(ours));
        // Either side may end it; what was in flight has then been passed on.
        let _ = tokio::io::copy_bidirectional(&mut theirs, &mut ours).await;
        drop(place);
    });
    response
}
