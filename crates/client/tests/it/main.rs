//! The door over HTTPS and the mirror behind it, against a real server.

#![expect(clippy::unwrap_used, reason = "helpers of tests stop the test, as tests do")]

mod aggregation;
mod conversion;
mod last_words;
mod policies;
mod webhooks;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base::Revision;
use cache::Cache;
use client::{Api, HttpApi, Identity, Mirror, PatchType, Path, Paths, Request, Wish, follow};
use meta::{Reason, Resource, Status, json};
use server::ca::Usage;
use server::{Options, Server, SystemClock};
use tokio::net::TcpListener;

const MAPS: Resource = Resource("configmaps");
const SECRETS: Resource = Resource("secrets");
const NAMESPACES: Resource = Resource("namespaces");
const PATIENCE: Duration = Duration::from_secs(20);

struct Lab {
    server: Arc<Server>,
    address: String,
    task: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Lab {
    async fn new() -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (backend, _) = store::Embedded::open(&dir.path().join("store"), store::Options::default()).unwrap();
        let options = Options { dir: dir.path().join("keys"), advertise: address.clone(), ..Options::passing() };
        let server = Server::open(options, Arc::new(backend), Arc::new(SystemClock)).await.unwrap();
        let task = serve(server.clone(), listener);
        Lab { server, address, task, _dir: dir }
    }

    fn api(&self) -> Arc<HttpApi> {
        self.api_of(paths())
    }

    fn api_of(&self, paths: Paths) -> Arc<HttpApi> {
        let ca = self.server.ca.issue("tester", &["system:masters"], &[], Usage::Client, 1).unwrap();
        let identity = Identity::Certificate { cert_pem: ca.cert_pem, key_pem: ca.key_pem };
        let server = format!("https://{}", self.address);
        Arc::new(HttpApi::new(&server, self.server.ca.pem(), identity, paths).unwrap())
    }
}

/// Serves on a task of its own; aborting it leaves open connections as they are.
fn serve(server: Arc<Server>, listener: TcpListener) -> tokio::task::JoinHandle<()> {
    let identity = server.ca.issue("gantry", &[], &["127.0.0.1".to_owned()], Usage::Server, 1).unwrap();
    let tls = server::http::serve::tls(&identity, server.ca.pem()).unwrap();
    let handler = move |request, peer| server::dispatch::answer(server.clone(), request, peer);
    tokio::spawn(server::http::serve::run(listener, tls, handler, std::future::pending()))
}

fn paths() -> Paths {
    let kinds = api::kinds::kinds();
    Arc::new(move |resource| {
        let kind = kinds.iter().find(|kind| kind.resource == resource)?;
        let names = kind.names.clone();
        let (group, version, plural, kind) = (names.group, names.version, names.plural, names.kind);
        Some(Path { group, version, plural, kind, namespaced: names.namespaced })
    })
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it happens in time")
}

#[tokio::test]
async fn calls_travel_over_https() {
    let lab = Lab::new().await;
    let api = lab.api();
    api.call(Request::create(NAMESPACES, json!({"metadata": {"name": "ns"}}))).await.unwrap();
    let map = json!({"metadata": {"name": "a", "namespace": "ns"}, "data": {"x": "1"}});
    let created = api.call(Request::create(MAPS, map.clone())).await.unwrap();
    assert_eq!(created.object.value()["kind"].text(), "ConfigMap");
    assert_eq!(created.revision, created.object.revision());
    let again = api.call(Request::create(MAPS, map)).await.unwrap_err();
    assert_eq!(again.reason(), Reason::AlreadyExists);
    let patch = Request::patch(MAPS, "ns", "a", PatchType::Merge, json!({"data": {"y": "2"}}));
    let patched = api.call(patch.clone().with(|options| options.manager = "me".into())).await.unwrap();
    assert_eq!(patched.object.value().at(&["data", "y"]).text(), "2");
    let late = api.call(patch.with(|options| options.revision = Some(created.revision))).await.unwrap_err();
    assert_eq!(late.reason(), Reason::Conflict);
    let gone = Request::delete(MAPS, "ns", "a").with(|options| options.uid = Some("other".into()));
    assert_eq!(api.call(gone).await.unwrap_err().reason(), Reason::Conflict);
    let gone = api.call(Request::delete(MAPS, "ns", "a")).await.unwrap();
    assert_eq!(gone.object.name(), "a");
    let missing = api.call(Request::get(MAPS, "ns", "a")).await.unwrap_err();
    assert_eq!((missing.reason(), missing.0.name.as_str()), (Reason::NotFound, "a"));
    assert_eq!(&api.get_raw("/healthz").await.unwrap()[..], b"ok");
    let counted = String::from_utf8(api.get_raw("/metrics/slis").await.unwrap().to_vec()).unwrap();
    assert!(counted.contains("kubernetes_healthcheck{name=\"bootstrap\",type=\"readyz\"} 1\n"), "{counted}");
    let unknown = api.call(Request::get(Resource("unicorns"), "", "a")).await.unwrap_err();
    assert_eq!(unknown.reason(), Reason::NotFound);
}

#[tokio::test]
async fn another_authority_and_a_closed_port_are_errors() {
    let lab = Lab::new().await;
    let other = Lab::new().await;
    let server = format!("https://{}", lab.address);
    let token = Identity::Token("none".to_owned());
    let api = HttpApi::new(&server, other.server.ca.pem(), token.clone(), paths()).unwrap();
    assert!(api.get_raw("/healthz").await.unwrap_err().message().contains("cannot trust"));
    let api = HttpApi::new(&server, lab.server.ca.pem(), token.clone(), paths()).unwrap();
    assert_eq!(api.call(Request::get(MAPS, "a", "b")).await.unwrap_err().reason(), Reason::Unauthorized);
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let api = HttpApi::new(&format!("https://{closed}"), lab.server.ca.pem(), token, paths()).unwrap();
    assert!(api.get_raw("/healthz").await.unwrap_err().message().contains("cannot connect"));
}

#[tokio::test]
async fn a_mirror_follows_through_lost_connections() {
    let lab = Lab::new().await;
    let api = lab.api();
    api.call(Request::create(NAMESPACES, json!({"metadata": {"name": "ns"}}))).await.unwrap();
    let map = |name: &str| Request::create(MAPS, json!({"metadata": {"name": (name), "namespace": "ns"}}));
    let secret = |name: &str| Request::create(SECRETS, json!({"metadata": {"name": (name), "namespace": "ns"}}));
    for n in 0..700 {
        api.call(map(&format!("m{n}"))).await.unwrap();
    }
    let mirror = Arc::new(Mirror::new(Cache::new([])));
    let one = Wish { namespace: Some("ns".into()), field_selector: "metadata.name=s".into(), ..Wish::all(SECRETS) };
    let (proxy, cut) = wire(&lab.address).await;
    let through = HttpApi::new(&format!("https://{proxy}"), lab.server.ca.pem(), identity(&lab), paths()).unwrap();
    let following = tokio::spawn(follow(Arc::new(through), mirror.clone(), vec![Wish::all(MAPS), one]));
    soon(mirror.knows(MAPS, Revision(1))).await;
    soon(mirror.knows(SECRETS, Revision(1))).await;
    assert!(mirror.view().count(MAPS) >= 700);

    let written = api.call(map("late")).await.unwrap();
    soon(mirror.knows(MAPS, written.revision)).await;
    assert_eq!(mirror.one(MAPS, "ns", "late").unwrap().value()["kind"].text(), "ConfigMap");
    api.call(secret("other")).await.unwrap();
    let wanted = api.call(secret("s")).await.unwrap();
    soon(mirror.knows(SECRETS, wanted.revision)).await;
    assert!(mirror.one(SECRETS, "ns", "other").is_none());

    for round in 0..3 {
        cut.send_replace(round);
        api.call(Request::delete(MAPS, "ns", &format!("m{round}"))).await.unwrap();
        let written = api.call(map(&format!("after{round}"))).await.unwrap();
        soon(mirror.knows(MAPS, written.revision)).await;
        assert!(mirror.one(MAPS, "ns", &format!("m{round}")).is_none());
    }
    following.abort();
    lab.task.abort();
}

/// Serves on another port, and says how many watches were asked for there; while `down`, calls are refused as by a
/// server that lost its store.
async fn counted(lab: &Lab, down: Arc<AtomicBool>) -> (String, tokio::sync::watch::Receiver<u32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let identity = lab.server.ca.issue("gantry", &[], &["127.0.0.1".to_owned()], Usage::Server, 1).unwrap();
    let tls = server::http::serve::tls(&identity, lab.server.ca.pem()).unwrap();
    let (server, watches) = (lab.server.clone(), tokio::sync::watch::Sender::new(0));
    let count = watches.subscribe();
    let handler = move |request: http::Request<hyper::body::Incoming>, peer| {
        let (server, down) = (server.clone(), down.load(Ordering::SeqCst));
        if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
            watches.send_modify(|watches| *watches += 1);
        }
        async move {
            match down {
                true => server::http::body::refusal(&Status::new(Reason::ServiceUnavailable, "the store is away")),
                false => server::dispatch::answer(server, request, peer).await,
            }
        }
    };
    tokio::spawn(server::http::serve::run(listener, tls, handler, std::future::pending()));
    (address, count)
}

/// Its watches would be silent for ever.
#[tokio::test]
async fn a_server_that_cannot_work_is_left_also_by_watches() {
    let lab = Lab::new().await;
    let down = Arc::new(AtomicBool::new(false));
    let (one, mut at_one) = counted(&lab, down.clone()).await;
    let (two, mut at_two) = counted(&lab, Arc::default()).await;
    let places = format!("https://{one},https://{two}");
    let api = Arc::new(HttpApi::new(&places, lab.server.ca.pem(), identity(&lab), paths()).unwrap());
    api.call(Request::create(NAMESPACES, json!({"metadata": {"name": "ns"}}))).await.unwrap();
    let mirror = Arc::new(Mirror::new(Cache::new([])));
    let following = tokio::spawn(follow(api.clone(), mirror.clone(), vec![Wish::all(MAPS)]));
    soon(at_one.wait_for(|watches| *watches == 1)).await.unwrap();
    assert_eq!(*at_two.borrow(), 0);
    down.store(true, Ordering::SeqCst);
    let map = |name: &str| Request::create(MAPS, json!({"metadata": {"name": name, "namespace": "ns"}}));
    assert_eq!(api.call(map("a")).await.unwrap_err().reason(), Reason::ServiceUnavailable);
    soon(at_two.wait_for(|watches| *watches == 1)).await.unwrap();
    let written = api.call(map("b")).await.unwrap();
    soon(mirror.knows(MAPS, written.revision)).await;
    assert_eq!(*at_one.borrow(), 1);
    following.abort();
}

fn identity(lab: &Lab) -> Identity {
    let issued = lab.server.ca.issue("tester", &["system:masters"], &[], Usage::Client, 1).unwrap();
    Identity::Certificate { cert_pem: issued.cert_pem, key_pem: issued.key_pem }
}

/// A wire to `target` that loses its connections whenever the sender sends.
async fn wire(target: &str) -> (String, tokio::sync::watch::Sender<u32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (cut, seen) = tokio::sync::watch::channel(0);
    let target = target.to_owned();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let (target, mut seen) = (target.clone(), seen.clone());
            seen.borrow_and_update();
            tokio::spawn(async move {
                let mut far = tokio::net::TcpStream::connect(target).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    _ = seen.changed() => {}
                }
            });
        }
    });
    (address, cut)
}
