use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{SinkExt, StreamExt};
use meta::{Status, Value, json};
use node::kubelet::{ContainerRef, Metrics, Pods, Proof, serve, tls};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use runtime::testing::{Compression, TestImage};
use runtime::{Config, ContainerSpec, Embedded, LogSpec, Runtime, SandboxSpec};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

const IMAGE: &str = "registry.test/busybox:1";
const PATIENCE: Duration = Duration::from_secs(30);

/// An authority, and certificates of it for `(user, group)`.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    fn issue(&self, user: &str, group: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, user);
        params.distinguished_name.push(DnType::OrganizationName, group);
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

struct One {
    runtime: Arc<dyn Runtime>,
    sandbox: String,
    id: String,
    log_path: PathBuf,
}

impl Pods for One {
    fn container(&self, _: &str, pod: &str, container: &str) -> Result<ContainerRef, Status> {
        if container != "main" {
            return Err(Status::not_found("", "pods", pod));
        }
        let (id, log_path) = (self.id.clone(), self.log_path.clone());
        Ok(ContainerRef { id, log_path, previous_log_path: None, tty: false, stdin: true, stdin_once: false })
    }

    fn sandbox(&self, _: &str, _: &str) -> Result<String, Status> {
        Ok(self.sandbox.clone())
    }

    fn runtime(&self) -> Arc<dyn Runtime> {
        self.runtime.clone()
    }

    fn pods_json(&self) -> Value {
        json!({"kind": "PodList"})
    }

    fn running_json(&self) -> Value {
        json!({"kind": "PodList", "items": [{"metadata": {"name": "demo"}}]})
    }

    fn stats_json(&self, _: bool) -> BoxFuture<'_, Value> {
        Box::pin(async { json!({}) })
    }

    fn metrics(&self, _: Metrics) -> BoxFuture<'_, String> {
        Box::pin(async { String::new() })
    }

    fn permit(&self, who: Proof, _: &'static str, part: &'static str) -> BoxFuture<'_, Result<(), http::StatusCode>> {
        let answer = match who {
            Proof::User { name, .. } if name == format!("may-{part}") => Ok(()),
            Proof::Nothing => Err(http::StatusCode::UNAUTHORIZED),
            _ => Err(http::StatusCode::FORBIDDEN),
        };
        Box::pin(async move { answer })
    }
}

struct Lab {
    authority: Authority,
    address: std::net::SocketAddr,
    embedded: Embedded,
    sandbox: String,
    cgroup: String,
    _dir: tempfile::TempDir,
}

impl Lab {
    /// One container that runs a script.
    async fn new(script: &str) -> Lab {
        let dir = tempfile::Builder::new().prefix("gantry-node-").tempdir().unwrap();
        let embedded = Embedded::open(Config::new(dir.path().join("root"), dir.path().join("state"))).unwrap();
        embedded.found().await.unwrap();
        let archive = dir.path().join("busybox.tar");
        TestImage { compression: Compression::None, ..TestImage::busybox() }.write_oci(&archive, IMAGE).unwrap();
        embedded.load(archive).await.unwrap();
        let cgroup = format!("/{}", dir.path().file_name().unwrap().to_string_lossy());
        let mut spec = SandboxSpec::new("default", "demo", "uid");
        spec.cgroup_parent = format!("{cgroup}/pod");
        let sandbox = embedded.run_sandbox(spec).await.unwrap().id;
        let log_path = dir.path().join("log/0.log");
        let mut spec = ContainerSpec::new(&sandbox, "main", IMAGE);
        spec.command = vec!["sh".into(), "-c".into(), script.into()];
        spec.stdin = true;
        spec.log = Some(LogSpec { path: log_path.clone(), max_bytes: 300, max_files: 1000 });
        let id = embedded.create(spec).await.unwrap();
        embedded.start(&id).await.unwrap();
        let authority = Authority::new();
        let (cert, key) = authority.issue("node", "nodes");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = tls(&cert, &key, &authority.pem).unwrap();
        let pods = One { runtime: Arc::new(embedded.clone()), sandbox: sandbox.clone(), id, log_path };
        tokio::spawn(serve(listener, tls, Arc::new(pods)));
        Lab { authority, address, embedded, sandbox, cgroup, _dir: dir }
    }

    async fn close(self) {
        self.embedded.remove_sandbox(&self.sandbox).await.unwrap();
        self.embedded.cgroups().remove(&self.cgroup).unwrap();
    }

    /// A connection, as a user of a group or as nobody.
    async fn dial(&self, user: Option<(&str, &str)>) -> TlsStream<TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.unwrap().with_root_certificates(roots);
        let config = match user {
            None => builder.with_no_client_auth(),
            Some((user, group)) => {
                let (cert, key) = self.authority.issue(user, group);
                let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
        };
        let socket = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap()
    }

    /// The whole answer to a GET.
    async fn get(&self, user: Option<(&str, &str)>, path: &str) -> String {
        let mut stream = self.dial(user).await;
        let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A server that closes without TLS' good-bye has still said everything.
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the answer ends");
        String::from_utf8(answer).unwrap()
    }

    /// All messages of a WebSocket until it closes, after sending some; per channel.
    async fn talk(&self, path: &str, protocol: &str, messages: Vec<Message>, until: &str) -> [Vec<u8>; 4] {
        let stream = self.dial(Some(ADMIN)).await;
        let mut request = format!("wss://localhost{path}").into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
        let (mut socket, response) = tokio_tungstenite::client_async(request, stream).await.unwrap();
        assert_eq!(response.headers()["sec-websocket-protocol"], protocol);
        for message in messages {
            socket.send(message).await.unwrap();
        }
        let mut channels: [Vec<u8>; 4] = Default::default();
        let reading = async {
            while let Some(message) = socket.next().await {
                let (channel, bytes) = match message.unwrap() {
                    Message::Binary(bytes) => (bytes[0], bytes.slice(1..)),
                    Message::Text(text) => {
                        (text.as_bytes()[0] - b'0', Bytes::from(STANDARD.decode(&text.as_bytes()[1..]).unwrap()))
                    }
                    _ => break,
                };
                channels[usize::from(channel)].extend_from_slice(&bytes);
                if !until.is_empty() && String::from_utf8_lossy(&channels[usize::from(channel)]).contains(until) {
                    break;
                }
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("the socket ends");
        channels
    }
}

const ADMIN: (&str, &str) = ("admin", "system:masters");

#[tokio::test(flavor = "multi_thread")]
async fn only_known_clients_are_answered() {
    let lab = Lab::new("sleep 1000").await;
    assert!(lab.get(None, "/healthz").await.starts_with("HTTP/1.1 401"));
    assert!(lab.get(Some(("alice", "people")), "/pods").await.starts_with("HTTP/1.1 403"));
    for (user, path, code) in [
        ("may-healthz", "/healthz", 200),
        ("may-proxy", "/healthz", 200),
        ("may-pods", "/healthz", 403),
        ("may-pods", "/pods", 200),
        ("may-proxy", "/metrics", 403),
        ("may-metrics", "/metrics", 200),
    ] {
        let answer = lab.get(Some((user, "people")), path).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {code}")), "{user} {path}: {answer}");
    }
    assert!(lab.get(Some(ADMIN), "/healthz").await.ends_with("\r\nok"));
    assert!(lab.get(Some(("kube-apiserver-kubelet-client", "x")), "/pods").await.contains("PodList"));
    assert!(lab.get(Some(("may-pods", "people")), "/runningpods/").await.contains("demo"));
    assert!(lab.get(Some(ADMIN), "/containerLogs/default/demo/other").await.starts_with("HTTP/1.1 404"));
    assert!(lab.get(Some(ADMIN), "/exec/default/demo/main?command=ls&stdout=1").await.starts_with("HTTP/1.1 400"));
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_loses_nothing_over_rotations() {
    let lab = Lab::new("n=0; while [ $n -lt 300 ]; do echo line $n; n=$((n+1)); done; read x; echo last; exit 3").await;
    let (all, ()) = tokio::join!(lab.get(Some(ADMIN), "/containerLogs/default/demo/main?follow=true"), async {
        let enter = vec![Message::binary(&b"\0now\n"[..])];
        let path = "/attach/default/demo/main?stdin=1&stdout=1";
        let channels = lab.talk(path, "v5.channel.k8s.io", enter, "").await;
        assert!(String::from_utf8_lossy(&channels[1]).contains("last"));
        assert!(String::from_utf8_lossy(&channels[3]).contains("Success"));
    });
    let lines: Vec<&str> = all.lines().filter(|line| line.starts_with("l")).collect();
    let expected: Vec<String> = (0..300).map(|n| format!("line {n}")).chain(["last".to_owned()]).collect();
    assert_eq!(lines, expected);
    let tail = lab.get(Some(ADMIN), "/containerLogs/default/demo/main?tailLines=12").await;
    assert!(tail.contains("line 289\n") && !tail.contains("line 288\n"), "{tail}");
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_read_over_sockets() {
    let lab = Lab::new("echo one; echo two; sleep 1000").await;
    let path = "/containerLogs/default/demo/main";
    while !lab.get(Some(ADMIN), path).await.contains("two") {}
    for protocol in ["", "binary.k8s.io", "base64.binary.k8s.io"] {
        let mut request = format!("wss://localhost{path}").into_client_request().unwrap();
        if !protocol.is_empty() {
            request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
        }
        let (mut socket, _) =
            tokio_tungstenite::client_async(request, lab.dial(Some(ADMIN)).await).await.expect("logs go over sockets");
        let mut read = Vec::new();
        while let Some(Ok(message)) = socket.next().await {
            match message {
                Message::Binary(bytes) => read.extend_from_slice(&bytes),
                Message::Text(text) => read.extend(STANDARD.decode(text.as_bytes()).unwrap()),
                _ => break,
            }
        }
        assert_eq!(String::from_utf8_lossy(&read), "one\ntwo\n", "{protocol}");
    }
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn older_websocket_protocols_are_spoken() {
    let lab = Lab::new("mkdir -p /www; echo page > /www/index.html; httpd -f -p 127.0.0.1:8080 -h /www").await;
    let path = "/exec/default/demo/main?command=sh&command=-c&command=read+x;echo+$x;echo+bad+%3E%262;exit+5\
        &stdin=1&stdout=1&stderr=1";
    for protocol in ["v4.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io", "base64.channel.k8s.io"] {
        let input = if protocol.contains("base64") {
            Message::text(format!("0{}", STANDARD.encode("word\n")))
        } else {
            Message::binary(&b"\0word\n"[..])
        };
        let channels = lab.talk(path, protocol, vec![input], "").await;
        assert_eq!((&channels[1][..], &channels[2][..]), (&b"word\n"[..], &b"bad\n"[..]), "{protocol}");
        let end = String::from_utf8_lossy(&channels[3]).into_owned();
        assert_eq!(end.contains("\"reason\":\"ExitCode\""), protocol.starts_with("v4"), "{end}");
        assert!(end.contains('5'), "{end}");
    }
    let path = "/portForward/default/demo?ports=8080";
    let ask = || vec![Message::binary(&b"\0GET / HTTP/1.0\r\n\r\n"[..])];
    let mut page = String::new();
    // The web server needs a moment; a refusal is told on the other channel.
    for _ in 0..100 {
        let channels = lab.talk(path, "v4.channel.k8s.io", ask(), "page").await;
        assert_eq!((&channels[0][..2], &channels[1][..2]), (&[0x90, 0x1f][..], &[0x90, 0x1f][..]));
        page = String::from_utf8_lossy(&channels[0][2..]).into_owned();
        if !page.is_empty() {
            break;
        }
        assert!(String::from_utf8_lossy(&channels[1]).contains("error forwarding port 8080"));
    }
    assert!(page.contains("200 OK") && page.contains("page"), "{page}");
    lab.close().await;
}
