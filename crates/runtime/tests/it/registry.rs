//! Pulls: from Debian's registry with TLS and a password, and from a small one that misbehaves as told.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use runtime::testing::{Blob, Blobs, Compression, TestFile, TestImage};
use runtime::{Credentials, Embedded, Error, RegistryConfig, no_progress};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::{Lab, texts};

/// `puller` with `se:cret`, as `htpasswd -B` writes it.
const HTPASSWD: &str = "puller:$2y$04$hJBUEg5hzbiQvWD0v4YKge6SAC8Osgk1NQfRF2hpg05xF/KGG1rJS\n";

/// Debian's registry as a process, with TLS and a password file.
struct DebianRegistry {
    process: Child,
    port: u16,
    roots: PathBuf,
}

impl DebianRegistry {
    async fn start(dir: &Path, images: &[(&str, &str, &Blobs)]) -> DebianRegistry {
        let key = rcgen::generate_simple_self_signed(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
        let roots = dir.join("cert.pem");
        std::fs::write(&roots, key.cert.pem()).unwrap();
        std::fs::write(dir.join("key.pem"), key.signing_key.serialize_pem()).unwrap();
        std::fs::write(dir.join("htpasswd"), HTPASSWD).unwrap();
        for (repository, tag, blobs) in images {
            store(&dir.join("registry"), repository, tag, blobs);
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let at = dir.display();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {at}/registry}}}}\n\
             http: {{addr: '127.0.0.1:{port}', tls: {{certificate: {at}/cert.pem, key: {at}/key.pem}}}}\n\
             auth: {{htpasswd: {{realm: test, path: {at}/htpasswd}}}}\n"
        );
        std::fs::write(dir.join("config.yml"), config).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(dir.join("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("tests need docker-registry: apt-get install docker-registry");
        let registry = DebianRegistry { process, port, roots };
        for _ in 0..500 {
            if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return registry;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the registry does not listen");
    }
}

impl Drop for DebianRegistry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Puts an image into the registry's file layout.
fn store(root: &Path, repository: &str, tag: &str, blobs: &Blobs) {
    let base = root.join("docker/registry/v2");
    let put = |path: PathBuf, bytes: &[u8]| {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    let hex = |blob: &Blob| blob.digest["sha256:".len()..].to_owned();
    for blob in blobs.layers.iter().chain([&blobs.config, &blobs.manifest]) {
        put(base.join(format!("blobs/sha256/{}/{}/data", &hex(blob)[..2], hex(blob))), &blob.bytes);
    }
    let repository = base.join("repositories").join(repository);
    for blob in blobs.layers.iter().chain([&blobs.config]) {
        put(repository.join(format!("_layers/sha256/{}/link", hex(blob))), blob.digest.as_bytes());
    }
    let (digest, hex) = (&blobs.manifest.digest, hex(&blobs.manifest));
    put(repository.join(format!("_manifests/revisions/sha256/{hex}/link")), digest.as_bytes());
    put(repository.join(format!("_manifests/tags/{tag}/current/link")), digest.as_bytes());
    put(repository.join(format!("_manifests/tags/{tag}/index/sha256/{hex}/link")), digest.as_bytes());
}

fn image() -> TestImage {
    TestImage::busybox()
        .layer(&[
            TestFile::Dir("app", 0o755),
            TestFile::File("app/old", b"1", 0o644),
            TestFile::File("app/kept", b"2", 0o644),
        ])
        .layer(&[TestFile::File("app/.wh.old", b"", 0o644), TestFile::File("app/new", b"3", 0o600)])
        .layer(&[TestFile::Dir("opaque", 0o755), TestFile::File("opaque/.wh..wh..opq", b"", 0o644)])
}

fn puller() -> Option<Credentials> {
    Some(Credentials::Basic { user: "puller".into(), password: "se:cret".into() })
}

#[tokio::test]
async fn debians_registry_over_tls_with_a_password() {
    let mut lab = Lab::empty().await;
    let blobs = image().blobs();
    let zstd = TestImage { compression: Compression::Zstd, ..image() };
    let zstd = zstd.layer(&[TestFile::File("top", b"z", 0o644)]).blobs();
    let images = [("team/app", "v1", &blobs), ("team/app", "zstd", &zstd)];
    let registry = DebianRegistry::start(lab.dir.path(), &images).await;
    let name = format!("127.0.0.1:{}/team/app:v1", registry.port);
    let error = lab.runtime.pull(&name, puller(), no_progress()).await.unwrap_err();
    assert!(matches!(error, Error::RegistryUnreachable { .. }), "an unknown certificate is refused: {error}");
    let config = RegistryConfig { roots: vec![registry.roots.clone()], ..RegistryConfig::default() };
    lab.replace(|c| c.registries = config);
    for credentials in [None, Some(Credentials::Basic { user: "puller".into(), password: "wrong".into() })] {
        let error = lab.runtime.pull(&name, credentials, no_progress()).await.unwrap_err();
        assert!(matches!(error, Error::ImageUnauthorized { .. }), "{error}");
        assert_eq!(error.image_reason(), "ErrImagePull");
    }
    let missing = format!("127.0.0.1:{}/team/app:v9", registry.port);
    let error = lab.runtime.pull(&missing, puller(), no_progress()).await.unwrap_err();
    assert!(matches!(error, Error::ImageMissing { .. }), "{error}");
    let last = Arc::new(Mutex::new((0, 0)));
    let seen = last.clone();
    let progress = Arc::new(move |done, total| *seen.lock().unwrap() = (done, total));
    let status = lab.runtime.pull(&name, puller(), progress).await.unwrap();
    let total: u64 = blobs.layers.iter().map(|l| l.bytes.len() as u64).sum();
    assert_eq!(*last.lock().unwrap(), (total, total));
    assert_eq!((&status.id, &status.tags), (&blobs.config.digest, &vec![name.clone()]));
    assert_eq!(status.digests, [format!("127.0.0.1:{}/team/app@{}", registry.port, blobs.manifest.digest)]);
    assert!(lab.runtime.image(&status.digests[0]).await.unwrap().is_some());
    let other = name.replace(":v1", ":zstd");
    lab.runtime.pull(&other, puller(), no_progress()).await.unwrap();
    let layers = std::fs::read_dir(lab.dir.path().join("root/images/layers")).unwrap().count();
    assert_eq!(layers, 5, "the four layers of both are there once");
    let (_, lines) =
        lab.script(|s| s.image = other.clone(), "cd /app; ls; stat -c %a new; cat /top; ls -A /opaque").await;
    assert_eq!(texts(&lines), ["kept", "new", "600"]);
    assert_eq!(lines.last().unwrap(), "stdout P z");
    drop(registry);
    lab.close().await;
}

/// How the small registry misbehaves.
#[derive(Default)]
struct Behaviour {
    /// Ends the connection after so many bytes of a blob, this many times.
    break_blobs: (usize, usize),
    /// Says 503 this many times.
    busy: usize,
    /// Wants this token, which its own token service gives to `puller`.
    token: Option<String>,
    /// Sends blobs by redirecting to this other address.
    redirect: Option<String>,
    /// Sends another byte for this digest.
    damage: Option<String>,
}

/// A registry on loopback without TLS. Keeps every request's first line and authorization.
struct SmallRegistry {
    address: String,
    behaviour: Arc<Mutex<Behaviour>>,
    requests: Arc<Mutex<Vec<String>>>,
    server: tokio::task::JoinHandle<()>,
}

impl SmallRegistry {
    /// `documents`: path below `/v2/` to bytes.
    async fn start(documents: HashMap<String, Vec<u8>>) -> SmallRegistry {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let behaviour: Arc<Mutex<Behaviour>> = Arc::default();
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let shared = (behaviour.clone(), requests.clone(), Arc::new(documents), address.clone());
        let server = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (behaviour, requests, documents, address) = shared.clone();
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") && head.len() < 16 << 10 {
                        match stream.read_u8().await {
                            // The beginning of TLS, which this server does not speak.
                            Ok(0x16) if head.is_empty() => return,
                            Ok(byte) => head.push(byte),
                            Err(_) => return,
                        }
                    }
                    let head = String::from_utf8_lossy(&head).into_owned();
                    let answer = answer(&head, &behaviour, &requests, &documents, &address);
                    let _ = stream.write_all(&answer).await;
                });
            }
        });
        SmallRegistry { address, behaviour, requests, server }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for SmallRegistry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn answer(
    head: &str,
    behaviour: &Mutex<Behaviour>,
    requests: &Mutex<Vec<String>>,
    documents: &HashMap<String, Vec<u8>>,
    address: &str,
) -> Vec<u8> {
    let header = |name: &str| {
        head.lines().find_map(|l| l.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v))
    };
    let path = head.split(' ').nth(1).unwrap_or("").to_owned();
    let authorization = header("authorization").unwrap_or("").to_owned();
    requests.lock().unwrap().push(format!("{path} {authorization}"));
    let say = |status: &str, headers: &str, body: &[u8]| {
        let mut out = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n", body.len()).into_bytes();
        out.extend_from_slice(body);
        out
    };
    let mut b = behaviour.lock().unwrap();
    if path.starts_with("/token") {
        let good = base64::engine::general_purpose::STANDARD.encode("puller:se:cret");
        return match (&b.token, authorization == format!("Basic {good}")) {
            (Some(token), true) => say("200 OK", "", format!(r#"{{"token":"{token}"}}"#).as_bytes()),
            _ => say("401 Unauthorized", "", b""),
        };
    }
    if b.busy > 0 {
        b.busy -= 1;
        return say("503 Service Unavailable", "", b"");
    }
    if let Some(token) = &b.token
        && authorization != format!("Bearer {token}")
    {
        let challenge = format!("WWW-Authenticate: Bearer realm=\"http://{address}/token\",service=\"small\"\r\n");
        return say("401 Unauthorized", &challenge, b"");
    }
    let Some(body) = documents.get(path.trim_start_matches("/v2/")) else { return say("404 Not Found", "", b"") };
    let mut body = body.clone();
    if !path.contains("/blobs/") {
        return say("200 OK", "", &body);
    }
    if let Some(to) = &b.redirect {
        return say("307 Temporary Redirect", &format!("Location: http://{to}{path}\r\n"), b"");
    }
    if b.damage.as_ref().is_some_and(|d| path.ends_with(d.as_str())) {
        let last = body.len() - 1;
        body[last] ^= 1;
    }
    let from: usize =
        header("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()).unwrap_or(0);
    let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
    let mut out = say(status, "", &body[from..]);
    let (after, times) = &mut b.break_blobs;
    if *times > 0 && body.len() - from > *after {
        *times -= 1;
        out.truncate(out.len() - (body.len() - from) + *after);
    }
    out
}

/// The paths of an image in repository `r`, tag `t`.
fn documents(blobs: &Blobs) -> HashMap<String, Vec<u8>> {
    let mut all: HashMap<String, Vec<u8>> = blobs
        .layers
        .iter()
        .chain([&blobs.config])
        .map(|b| (format!("r/blobs/{}", b.digest), b.bytes.clone()))
        .collect();
    for version in ["t", &blobs.manifest.digest] {
        all.insert(format!("r/manifests/{version}"), blobs.manifest.bytes.clone());
    }
    all
}

#[tokio::test]
async fn a_broken_connection_is_taken_up_again() {
    let lab = Lab::empty().await;
    let blobs = image().blobs();
    let registry = SmallRegistry::start(documents(&blobs)).await;
    *registry.behaviour.lock().unwrap() = Behaviour { break_blobs: (200_000, 3), busy: 2, ..Behaviour::default() };
    let name = format!("{}/r:t", registry.address);
    lab.runtime.pull(&name, None, no_progress()).await.unwrap();
    let largest = &blobs.layers[0].digest;
    let fetched = registry.requests().iter().filter(|r| r.contains(largest.as_str())).count();
    assert_eq!(fetched, 4, "three breaks, each taken up where it was");
    // What is there is not fetched again.
    lab.runtime.pull(&name, None, no_progress()).await.unwrap();
    let again = registry.requests().iter().filter(|r| r.contains(largest.as_str())).count();
    assert_eq!(again, 4);
    lab.close().await;
}

#[tokio::test]
async fn tokens_are_fetched_and_go_nowhere_else() {
    let lab = Lab::empty().await;
    let blobs = image().blobs();
    let other = SmallRegistry::start(documents(&blobs)).await;
    let registry = SmallRegistry::start(documents(&blobs)).await;
    *registry.behaviour.lock().unwrap() =
        Behaviour { token: Some("t0ken".into()), redirect: Some(other.address.clone()), ..Behaviour::default() };
    let name = format!("{}/r:t", registry.address);
    let error = lab.runtime.pull(&name, None, no_progress()).await.unwrap_err();
    assert!(matches!(error, Error::ImageUnauthorized { .. }), "{error}");
    lab.runtime.pull(&name, puller(), no_progress()).await.unwrap();
    let asked = registry.requests();
    assert!(
        asked.iter().any(|r| r.starts_with("/token?service=small&scope=repository%3Ar%3Apull Basic ")),
        "{asked:?}"
    );
    assert!(asked.iter().any(|r| r == "/v2/r/manifests/t Bearer t0ken"));
    let leaked: Vec<String> = other.requests().into_iter().filter(|r| !r.ends_with(' ')).collect();
    assert!(!other.requests().is_empty() && leaked.is_empty(), "authorization went to another host: {leaked:?}");
    let given = Some(Credentials::Token("t0ken".into()));
    lab.runtime.remove_image(&name).await.unwrap();
    lab.runtime.pull(&name, given, no_progress()).await.unwrap();
    lab.close().await;
}

#[tokio::test]
async fn wrong_bytes_are_never_unpacked() {
    let lab = Lab::empty().await;
    let blobs = image().blobs();
    for damaged in [&blobs.config.digest, &blobs.layers[1].digest] {
        let registry = SmallRegistry::start(documents(&blobs)).await;
        registry.behaviour.lock().unwrap().damage = Some(damaged.clone());
        let error = lab.runtime.pull(&format!("{}/r:t", registry.address), None, no_progress()).await.unwrap_err();
        assert!(matches!(error, Error::ImageDigest { .. }), "{error}");
    }
    // The layer's digest is right, but it is not the one the configuration promised.
    let mut lying = image();
    lying.layers.swap(1, 2);
    let mut documents = documents(&blobs);
    let swapped = lying.blobs();
    let manifest = String::from_utf8(blobs.manifest.bytes.clone()).unwrap();
    let manifest = manifest.replace(&blobs.layers[1].digest, &swapped.layers[1].digest);
    let size = |b: &Blob| format!("\"size\":{}", b.bytes.len());
    let manifest = manifest.replace(&size(&blobs.layers[1]), &size(&swapped.layers[1]));
    documents.insert("r/manifests/t".into(), manifest.into_bytes());
    let registry = SmallRegistry::start(documents).await;
    let error = lab.runtime.pull(&format!("{}/r:t", registry.address), None, no_progress()).await.unwrap_err();
    assert!(matches!(error, Error::ImageDigest { .. }), "{error}");
    assert!(lab.runtime.images().await.unwrap().is_empty());
    let left = std::fs::read_dir(lab.dir.path().join("root/images/layers")).unwrap().flatten();
    assert!(left.map(|e| e.file_name()).all(|n| !n.to_string_lossy().starts_with("new")));
    lab.close().await;
}

#[tokio::test]
async fn an_index_chooses_this_machine() {
    let lab = Lab::empty().await;
    let blobs = image().blobs();
    let foreign = TestImage { architecture: "s390x".into(), ..image() }.blobs();
    let index = |entries: &[(&Blobs, &str)]| {
        let entries: Vec<serde_json::Value> = entries
            .iter()
            .map(|(b, architecture)| {
                let mut entry = b.manifest.descriptor();
                entry["platform"] = serde_json::json!({"os": "linux", "architecture": architecture});
                entry
            })
            .collect();
        serde_json::json!({"schemaVersion": 2, "manifests": entries}).to_string().into_bytes()
    };
    let own = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let mut all = documents(&blobs);
    all.extend(documents(&foreign));
    all.insert("r/manifests/both".into(), index(&[(&foreign, "s390x"), (&blobs, own)]));
    all.insert("r/manifests/foreign".into(), index(&[(&foreign, "s390x")]));
    all.insert("r/manifests/lie".into(), foreign.manifest.bytes.clone());
    all.insert("r/manifests/garbage".into(), b"<html>".to_vec());
    let registry = SmallRegistry::start(all).await;
    let pull = async |tag: &str| lab.runtime.pull(&format!("{}/r:{tag}", registry.address), None, no_progress()).await;
    assert_eq!(pull("both").await.unwrap().id, blobs.config.digest);
    for tag in ["foreign", "lie"] {
        let error = pull(tag).await.unwrap_err();
        assert!(matches!(error, Error::ImagePlatform { .. }) && error.to_string().contains("s390x"), "{error}");
    }
    assert!(matches!(pull("garbage").await.unwrap_err(), Error::ImageInvalid { .. }));
    let error = lab.runtime.pull("NOT A NAME", None, no_progress()).await.unwrap_err();
    assert_eq!(error.image_reason(), "InvalidImageName");
    let closed = format!("{}/r:t", "127.0.0.1:9");
    let error = lab.runtime.pull(&closed, None, no_progress()).await.unwrap_err();
    assert!(matches!(error, Error::RegistryUnreachable { .. }), "{error}");
    lab.close().await;
}

#[tokio::test]
async fn damaged_archives_are_errors() {
    let lab = Lab::empty().await;
    let path = lab.dir.path().join("image.tar");
    image().write_oci(&path, "registry.test/x:1").unwrap();
    let good = std::fs::read(&path).unwrap();
    let mut rng = base::Rng::new(21);
    for round in 0..40 {
        let mut bytes = good.clone();
        match round % 3 {
            0 => bytes.truncate(rng.below(bytes.len() as u64) as usize),
            // Mostly in the documents at the front.
            1 => (0..3).for_each(|_| bytes[rng.below(4096) as usize] = rng.below(256) as u8),
            _ => {
                let at = rng.below(bytes.len() as u64) as usize;
                bytes[at] ^= 1 << rng.below(8);
            }
        }
        std::fs::write(&path, &bytes).unwrap();
        let _ = lab.runtime.load(path.clone()).await;
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&lab.dir.path().display().to_string()));
    // Leftovers of an interruption go at the next start.
    let layers = lab.dir.path().join("root/images/layers");
    std::fs::create_dir_all(layers.join("new-77/fs")).unwrap();
    drop(Embedded::open(Lab::config(lab.dir.path())).unwrap());
    assert!(!layers.join("new-77").exists());
    lab.close().await;
}

#[tokio::test]
async fn many_layers_stack() {
    let lab = Lab::empty().await;
    let mut image = TestImage::busybox();
    for n in 0..120 {
        image = image.layer(&[TestFile::File(&format!("layer{n}"), b"x\n", 0o644)]);
    }
    let path = lab.dir.path().join("many.tar");
    image.write_oci(&path, "registry.test/many:1").unwrap();
    lab.runtime.load(path).await.unwrap();
    let (_, lines) =
        lab.script(|s| s.image = "registry.test/many:1".into(), "ls / | grep -c ^layer; cat /layer0").await;
    assert_eq!(texts(&lines), ["120", "x"]);
    lab.close().await;
}
