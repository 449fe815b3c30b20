//! Aggregated servers: a program on this machine answers for a group and version of a real server.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use client::{Api, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use meta::{Resource, Value, json};
use server::authn::Peer;
use server::http::{Body, Response, body};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::{Lab, MAPS, NAMESPACES, Usage, soon};

const API_SERVICES: Resource = Resource("apiservices.apiregistration.k8s.io");
const DEFINITIONS: Resource = Resource("customresourcedefinitions.apiextensions.k8s.io");
const SERVICES: Resource = Resource("services");
const AGGREGATED: &str = "application/json;v=v2;g=apidiscovery.k8s.io;as=APIGroupDiscoveryList,application/json";

/// What the aggregated server keeps and heard.
#[derive(Default)]
struct State {
    flunders: Vec<Value>,
    /// Method, path and headers of each request.
    heard: Vec<(String, http::HeaderMap)>,
    /// Answers no discovery of its own while set.
    hangs: bool,
}

struct Aggregated {
    address: std::net::SocketAddr,
    state: Arc<Mutex<State>>,
    /// Ends it.
    stop: Arc<tokio::sync::Notify>,
}

impl Aggregated {
    /// A server that knows plain discovery only, and flunders.
    async fn open(lab: &Lab) -> Aggregated {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let names = ["flunder.wardle.svc".to_owned()];
        let identity = lab.server.ca.issue("flunder", &[], &names, Usage::Server, 1).unwrap();
        // It lets in whom the published authority vouches for.
        let published = lab.server.front_proxy.published(&lab.server.ca);
        let tls = server::http::serve::tls(&identity, published["requestheader-client-ca-file"].text()).unwrap();
        let state: Arc<Mutex<State>> = Arc::default();
        let kept = state.clone();
        let handler = move |request: http::Request<hyper::body::Incoming>, peer: Arc<Peer>| {
            let state = kept.clone();
            async move {
                let name = peer.certified.as_ref().map(|certified| certified.user.name.to_string());
                match name.as_deref() {
                    Some("front-proxy-client") => answer(&state, request).await,
                    _ => body::text(401, "who are you?"),
                }
            }
        };
        let stop: Arc<tokio::sync::Notify> = Arc::default();
        let stopped = stop.clone();
        tokio::spawn(server::http::serve::run(listener, tls, handler, async move { stopped.notified().await }));
        Aggregated { address, state, stop }
    }

    fn heard(&self, what: &str) -> http::HeaderMap {
        let state = self.state.lock().unwrap();
        let found = state.heard.iter().rev().find(|(asked, _)| asked == what);
        found.unwrap_or_else(|| panic!("{what} was not asked: {:?}", state.heard)).1.clone()
    }

    /// Registers it, by a service that is a name of this machine.
    async fn register(&self, lab: &Lab, ca: &str) {
        let api = lab.api();
        api.call(Request::create(NAMESPACES, json!({"metadata": {"name": "wardle"}}))).await.unwrap();
        api.call(Request::create(SERVICES, service())).await.unwrap();
        api.call(Request::create(API_SERVICES, registration(ca, self.address.port()))).await.unwrap();
    }
}

fn service() -> Value {
    let spec = json!({"type": "ExternalName", "externalName": "localhost"});
    json!({"metadata": {"name": "flunder", "namespace": "wardle"}, "spec": spec})
}

fn registration(ca: &str, port: u16) -> Value {
    json!({
        "metadata": {"name": "v1.wardle.example.com"},
        "spec": {
            "group": "wardle.example.com", "version": "v1", "groupPriorityMinimum": 2000i64, "versionPriority": 200i64,
            "service": {"namespace": "wardle", "name": "flunder", "port": (i64::from(port))}, "caBundle": (STANDARD.encode(ca)),
        },
    })
}

async fn answer(state: &Mutex<State>, mut request: http::Request<hyper::body::Incoming>) -> Response {
    const FLUNDERS: &str = "/apis/wardle.example.com/v1/namespaces/ns/flunders";
    let (method, target) = (request.method().to_string(), request.uri().to_string());
    let what = format!("{method} {target}");
    state.lock().unwrap().heard.push((what.clone(), request.headers().clone()));
    if state.lock().unwrap().hangs {
        std::future::pending::<()>().await;
    }
    let list = |state: &State| json!({"kind": "FlunderList", "items": (state.flunders.clone())});
    match what.as_str() {
        "GET /apis/wardle.example.com/v1" => {
            let verbs = json!(["create", "delete", "deletecollection", "get", "list", "watch"]);
            let flunders = json!({
                "name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": verbs,
            });
            body::json(
                200,
                &json!({"kind": "APIResourceList", "groupVersion": "wardle.example.com/v1", "resources": [flunders]}),
            )
        }
        "GET /openapi/v3" => {
            let url = "/openapi/v3/apis/wardle.example.com/v1?hash=AB12";
            body::json(200, &json!({"paths": {"apis/wardle.example.com/v1": {"serverRelativeURL": url}}}))
        }
        "GET /openapi/v3/apis/wardle.example.com/v1" => body::json(200, &json!({"openapi": "3.0.0"})),
        "GET /apis/wardle.example.com/v1/namespaces/ns/flunders?watch=true" => {
            let events = ["one\n", "two\n"].map(|event| Bytes::from_static(event.as_bytes()));
            http::Response::new(Body::Parts(Box::new(events.into_iter())))
        }
        "GET /apis/wardle.example.com/v1/namespaces/ns/flunders/away" => {
            let mut response = body::text(302, "");
            response.headers_mut().insert("location", "https://example.com/".parse().unwrap());
            response
        }
        "GET /apis/wardle.example.com/v1/namespaces/ns/flunders/a/exec" => {
            let upgraded = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut wire = TokioIo::new(upgraded.await.unwrap());
                let mut said = [0; 4];
                wire.read_exact(&mut said).await.unwrap();
                wire.write_all(&said.map(|byte| byte.to_ascii_uppercase())).await.unwrap();
                wire.shutdown().await.unwrap();
            });
            let mut response = body::text(101, "");
            for (name, value) in [("connection", "Upgrade"), ("upgrade", "echo")] {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
            response
        }
        _ if target.starts_with(FLUNDERS) && method == "POST" => {
            let made = Value::parse(&request.into_body().collect().await.unwrap().to_bytes()).unwrap();
            state.lock().unwrap().flunders.push(made.clone());
            body::json(201, &made)
        }
        _ if target.starts_with(FLUNDERS) && method == "GET" => body::json(200, &list(&state.lock().unwrap())),
        _ if target.starts_with(FLUNDERS) && method == "DELETE" => {
            let gone = list(&state.lock().unwrap());
            state.lock().unwrap().flunders.clear();
            body::json(200, &gone)
        }
        _ => body::text(404, "404 page not found\n"),
    }
}

/// What a user's request to the server of the lab is answered, over a connection of its own.
async fn call(
    lab: &Lab,
    user: (&str, &[&str]),
    request: http::request::Builder,
    sent: &str,
) -> http::Response<hyper::body::Incoming> {
    let identity = lab.server.ca.issue(user.0, user.1, &[], Usage::Client, 1).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(server::ca::roots(lab.server.ca.pem().as_bytes()).unwrap());
    let (chain, key) = identity.rustls().unwrap();
    let config = config.with_client_auth_cert(chain, key).unwrap();
    let socket = tokio::net::TcpStream::connect(&lab.address).await.unwrap();
    let name = rustls_pki_types::ServerName::try_from("127.0.0.1").unwrap();
    let wire = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(wire)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let request = request.header("host", "gantry").body(Full::new(Bytes::from(sent.to_owned()))).unwrap();
    soon(sender.send_request(request)).await.unwrap()
}

async fn read(lab: &Lab, path: &str, accept: &str) -> (u16, Value, String) {
    let request = http::Request::get(path).header("accept", accept);
    let answer = call(lab, ADMIN, request, "").await;
    let code = answer.status().as_u16();
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    (code, Value::parse(&bytes).unwrap_or_default(), String::from_utf8_lossy(&bytes).into_owned())
}

const ADMIN: (&str, &[&str]) = ("tester", &["system:masters"]);
const FLUNDERS: &str = "/apis/wardle.example.com/v1/namespaces/ns/flunders";

/// A lab whose server leads, with an aggregated server that is registered.
async fn lab() -> (Lab, Aggregated) {
    let lab = Lab::new().await;
    let api: Arc<dyn Api> =
        Arc::new(server::local::Local { server: lab.server.clone(), user: server::local::system() });
    tokio::spawn(server::aggregation::lead(lab.server.clone(), api));
    lab.api().call(Request::create(NAMESPACES, json!({"metadata": {"name": "ns"}}))).await.unwrap();
    let aggregated = Aggregated::open(&lab).await;
    (lab, aggregated)
}

/// Waits for the condition of the registration, and returns its reason.
async fn is_available(lab: &Lab, status: &str) -> String {
    let api = lab.api();
    soon(async {
        loop {
            let service = api.call(Request::get(API_SERVICES, "", "v1.wardle.example.com")).await.unwrap();
            let service = service.object.value();
            let condition = service.at(&["status", "conditions"])[0].clone();
            if condition["status"].text() == status {
                return condition["reason"].text().to_owned();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

/// Reads a path until the answer is as wanted.
async fn until(lab: &Lab, path: &str, accept: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    soon(async {
        loop {
            let (_, value, _) = read(lab, path, accept).await;
            if wanted(&value) {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

fn group_of(list: &Value) -> Option<&Value> {
    let name = |group: &&Value| group.at(&["metadata", "name"]).text() == "wardle.example.com";
    list["items"].items().iter().find(name)
}

#[tokio::test]
async fn requests_of_a_group_are_passed_on() {
    let (lab, aggregated) = lab().await;
    assert_eq!(read(&lab, FLUNDERS, "*/*").await.0, 404);
    aggregated.register(&lab, lab.server.ca.pem()).await;
    assert_eq!(is_available(&lab, "True").await, "Passed");
    // The user is named; what proved him stays here, and so does what he says that he is.
    let flunder = r#"{"kind":"Flunder","metadata":{"name":"a"}}"#;
    let request = http::Request::post(FLUNDERS)
        .header("impersonate-user", "jane")
        .header("impersonate-group", "system:masters")
        .header("impersonate-extra-example.org%2fteam", "blue")
        .header("x-remote-user", "root")
        .header("x-remote-extra-scopes", "all")
        .header("content-type", "application/json");
    let made = call(&lab, ADMIN, request, flunder).await;
    assert_eq!(made.status(), 201);
    let heard = aggregated.heard(&format!("POST {FLUNDERS}"));
    let all = |name: &str| -> Vec<String> {
        heard.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(all("x-remote-user"), ["jane"]);
    assert_eq!(all("x-remote-group"), ["system:masters", "system:authenticated"]);
    assert_eq!(all("x-remote-extra-example.org%2fteam"), ["blue"]);
    assert_eq!(all("content-type"), ["application/json"]);
    for name in ["authorization", "x-remote-extra-scopes", "impersonate-user", "impersonate-group"] {
        assert!(!heard.contains_key(name), "{name}: {heard:?}");
    }
    // A token proves its user here only.
    let request =
        http::Request::get(FLUNDERS).header("authorization", format!("Bearer {}", lab.server.authn.admin_token));
    assert_eq!(call(&lab, ("nobody", &[]), request, "").await.status(), 200);
    let heard = aggregated.heard(&format!("GET {FLUNDERS}"));
    assert_eq!(heard.get("x-remote-user").unwrap(), "gantry-admin");
    assert!(!heard.contains_key("authorization"));
    // Whoever may not is refused here, and what could be read in two ways goes nowhere.
    let refused = call(&lab, ("joe", &[]), http::Request::get(FLUNDERS), "").await;
    assert_eq!(refused.status(), 403);
    assert_eq!(read(&lab, "/apis/wardle.example.com/v1/namespaces/ns%2Fflunders/flunders", "*/*").await.0, 400);
    // Watches last, redirects are not passed on, and upgrades are tunnels.
    let (code, _, watched) = read(&lab, &format!("{FLUNDERS}?watch=true"), "*/*").await;
    assert_eq!((code, watched.as_str()), (200, "one\ntwo\n"));
    assert_eq!(read(&lab, &format!("{FLUNDERS}/away"), "*/*").await.0, 502);
    let request =
        http::Request::get(format!("{FLUNDERS}/a/exec")).header("connection", "Upgrade").header("upgrade", "echo");
    let mut upgraded = call(&lab, ADMIN, request, "").await;
    assert_eq!(upgraded.status(), 101);
    let mut wire = TokioIo::new(hyper::upgrade::on(&mut upgraded).await.unwrap());
    wire.write_all(b"echo").await.unwrap();
    let mut said = String::new();
    soon(wire.read_to_string(&mut said)).await.unwrap();
    assert_eq!(said, "ECHO");
    // Without its registration there is nothing behind the path.
    lab.api().call(Request::delete(API_SERVICES, "", "v1.wardle.example.com")).await.unwrap();
    soon(async {
        while read(&lab, FLUNDERS, "*/*").await.0 != 404 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert!(group_of(&read(&lab, "/apis", AGGREGATED).await.1).is_none());
}

#[tokio::test]
async fn discovery_speaks_of_aggregated_servers() {
    let (lab, aggregated) = lab().await;
    aggregated.register(&lab, lab.server.ca.pem()).await;
    is_available(&lab, "True").await;
    let is_told =
        |list: &Value| group_of(list).is_some_and(|group| group["versions"][0]["freshness"].text() == "Current");
    let told = until(&lab, "/apis", AGGREGATED, is_told).await;
    let version = &group_of(&told).unwrap()["versions"][0];
    let flunders = &version["resources"][0];
    assert_eq!((version["version"].text(), flunders["resource"].text()), ("v1", "flunders"));
    assert_eq!((flunders["scope"].text(), flunders["verbs"].items().len()), ("Namespaced", 6));
    // By priority it stands behind what is built in.
    let (_, groups, _) = read(&lab, "/apis", "application/json").await;
    assert_eq!(groups["groups"].items().last().unwrap()["name"].text(), "wardle.example.com");
    let (code, group, _) = read(&lab, "/apis/wardle.example.com", "application/json").await;
    assert_eq!((code, group["preferredVersion"]["version"].text()), (200, "v1"));
    let (code, resources, _) = read(&lab, "/apis/wardle.example.com/v1", "application/json").await;
    assert_eq!((code, resources["resources"][0]["kind"].text()), (200, "Flunder"));
    let (_, index, _) = read(&lab, "/openapi/v3", "application/json").await;
    let place = index["paths"]["apis/wardle.example.com/v1"]["serverRelativeURL"].text();
    assert_eq!(place, "/openapi/v3/apis/wardle.example.com/v1?hash=AB12");
    let (code, document, _) = read(&lab, place, "application/json").await;
    assert_eq!((code, document["openapi"].text()), (200, "3.0.0"));
    // One that hangs delays nobody, and what was known of it stays, as old.
    aggregated.state.lock().unwrap().hangs = true;
    lab.api().call(Request::delete(SERVICES, "wardle", "flunder")).await.unwrap();
    assert_eq!(is_available(&lab, "False").await, "ServiceNotFound");
    let (code, refused, _) = read(&lab, FLUNDERS, "application/json").await;
    assert_eq!((code, refused["reason"].text()), (503, "ServiceUnavailable"));
    let is_old = |list: &Value| group_of(list).is_some_and(|group| group["versions"][0]["freshness"].text() == "Stale");
    let old = until(&lab, "/apis", AGGREGATED, is_old).await;
    assert_eq!(group_of(&old).unwrap()["versions"][0]["resources"], version["resources"]);
}

#[tokio::test]
async fn a_server_that_proves_nothing_is_not_asked() {
    let (lab, aggregated) = lab().await;
    let other = Lab::new().await;
    aggregated.register(&lab, other.server.ca.pem()).await;
    assert_eq!(is_available(&lab, "False").await, "FailedDiscoveryCheck");
    assert_eq!(read(&lab, FLUNDERS, "*/*").await.0, 503);
    assert!(aggregated.state.lock().unwrap().heard.is_empty());
    // A user who says that it need not prove anything gets what he asks for.
    let patch = json!({"spec": {"caBundle": null, "insecureSkipTLSVerify": true}});
    let patch = Request::patch(API_SERVICES, "", "v1.wardle.example.com", client::PatchType::Merge, patch);
    lab.api().call(patch).await.unwrap();
    assert_eq!(is_available(&lab, "True").await, "Passed");
    assert_eq!(read(&lab, FLUNDERS, "*/*").await.0, 200);
    // One that goes away is noticed when it is asked, and said to be unavailable later.
    aggregated.stop.notify_one();
    soon(async {
        while read(&lab, FLUNDERS, "*/*").await.0 != 503 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn definitions_have_registrations_and_believers_are_told_whom() {
    let lab = lab().await.0;
    let api = lab.api();
    let definition = json!({
        "metadata": {"name": "cats.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "cats", "singular": "cat", "kind": "Cat"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}],
        },
    });
    api.call(Request::create(DEFINITIONS, definition)).await.unwrap();
    let registered = async || api.call(Request::get(API_SERVICES, "", "v1.example.com")).await.ok();
    soon(async {
        while registered().await.is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let made = registered().await.unwrap().object.value();
    assert_eq!(made.at(&["status", "conditions"])[0]["reason"].text(), "Local");
    assert_eq!(made.at(&["metadata", "labels", "kube-aggregator.kubernetes.io/automanaged"]).text(), "true");
    api.call(Request::delete(DEFINITIONS, "", "cats.example.com")).await.unwrap();
    soon(async {
        while registered().await.is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let published = || api.call(Request::get(MAPS, "kube-system", "extension-apiserver-authentication"));
    let data = published().await.unwrap().object.value()["data"].clone();
    assert_eq!(data, lab.server.front_proxy.published(&lab.server.ca));
    assert_eq!(data["requestheader-allowed-names"].text(), r#"["front-proxy-client"]"#);
    api.call(Request::delete(MAPS, "kube-system", "extension-apiserver-authentication")).await.unwrap();
    soon(async {
        while published().await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn namespaces_wait_for_what_is_elsewhere() {
    const CONTENT: &str = "gantry.dev/AggregatedContentDeleted";
    let (lab, aggregated) = lab().await;
    aggregated.register(&lab, lab.server.ca.pem()).await;
    is_available(&lab, "True").await;
    let api = lab.api();
    let request = http::Request::post(FLUNDERS).header("content-type", "application/json");
    assert_eq!(call(&lab, ADMIN, request, r#"{"metadata":{"name":"a"}}"#).await.status(), 201);
    let told = async |status: &str, reason: &str| {
        soon(async {
            loop {
                let namespace = api.call(Request::get(NAMESPACES, "", "ns")).await.unwrap().object.value();
                let conditions = namespace.at(&["status", "conditions"]).items();
                let told = conditions.iter().find(|one| one["type"].text() == CONTENT);
                if told.is_some_and(|told| (told["status"].text(), told["reason"].text()) == (status, reason)) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    };
    // It cannot be asked: nobody knows what is there.
    api.call(Request::delete(SERVICES, "wardle", "flunder")).await.unwrap();
    is_available(&lab, "False").await;
    api.call(Request::delete(NAMESPACES, "", "ns")).await.unwrap();
    told("False", "DiscoveryFailed").await;
    api.call(Request::create(SERVICES, service())).await.unwrap();
    told("True", "ContentDeleted").await;
    assert!(aggregated.state.lock().unwrap().flunders.is_empty());
    let heard = aggregated.heard(&format!("DELETE {FLUNDERS}"));
    assert_eq!(heard.get("x-remote-user").unwrap(), "system:kube-aggregator");
}
