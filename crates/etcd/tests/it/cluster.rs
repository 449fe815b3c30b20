//! Several backends on one etcd: what one does, the others show; and moving a state in and out.

use base::Revision;
use bytes::Bytes;
use etcd::{Etcd, Limits, OpenError, Options};
use store::{Backend, Dumped, Error, Event, Invalid, Put, Range, Txn};

use crate::member::Cluster;
use crate::suite::Seen;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_elsewhere_is_seen_after_catching_up() {
    let cluster = Cluster::start(1);
    let (one, two) = (cluster.open("/gantry/").await, cluster.open("/gantry/").await);
    let seen = Seen::default();
    two.follow(two.revision(), Box::new(seen.clone())).await.unwrap();
    for at in 0..50u32 {
        let commit = one.txn(Txn::new().put(Put::new(format!("/registry/a/{at}"), "v"))).await.unwrap();
        let told = two.catch_up().unwrap().await.unwrap();
        assert!(told >= commit.revision);
        assert_eq!(seen.events().last().unwrap().revision, commit.revision);
    }
    // Revisions that are not ours bring no event, and nobody waits for them in vain.
    let other = cluster.open("/other/").await;
    let theirs = other.txn(Txn::new().put(Put::new("x", "v"))).await.unwrap().revision;
    assert!(two.catch_up().unwrap().await.unwrap() >= theirs);
    assert_eq!(seen.events().len(), 50);
    // A refusal is told when the feed shows what it is about.
    let made = one.txn(Txn::new().put(Put::new("/registry/a/0", "w"))).await.unwrap().revision;
    let refused = two.txn(Txn::new().when("/registry/a/0", Revision::ZERO).delete("/registry/a/0")).await;
    let Err(Error::Refused(refused)) = refused else { panic!("{refused:?}") };
    assert_eq!(refused.found, made);
    assert_eq!(seen.events().last().unwrap().revision, made);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcds_limits_are_refusals_that_name_them() {
    let cluster = Cluster::start(1);
    let backend = cluster.open("/gantry/").await;
    let many = (0..129).fold(Txn::new(), |txn, at| txn.put(Put::new(format!("k{at}"), "v")));
    let limit = Invalid::BeyondBackend { what: "operations", found: 129, limit: 128 };
    assert_eq!(backend.txn(many).await, Err(Error::Invalid(limit)));
    let big = backend.txn(Txn::new().put(Put::new("big", vec![b'x'; 2 << 20]))).await;
    assert!(matches!(big, Err(Error::Invalid(Invalid::BeyondBackend { what: "bytes", .. }))), "{big:?}");
    // Told of larger limits than etcd has, it is etcd that refuses; nothing has happened.
    let limits = Limits { operations: 1000, request_bytes: 8 << 20 };
    let bold = Etcd::open(&Options { limits, ..cluster.options("/gantry/") }).await.unwrap();
    let many = (0..129).fold(Txn::new(), |txn, at| txn.put(Put::new(format!("k{at}"), "v")));
    assert!(matches!(bold.txn(many).await, Err(Error::Invalid(Invalid::BeyondBackend { .. }))));
    let big = bold.txn(Txn::new().put(Put::new("big", vec![b'x'; 4 << 20]))).await;
    assert!(matches!(big, Err(Error::Invalid(Invalid::BeyondBackend { .. }))), "{big:?}");
    assert_eq!(backend.count(Range::all(), None).await, Ok(0));
}

/// Runs etcd's own tool, as somebody would who knows nothing of us.
fn etcdctl(cluster: &Cluster, words: &[&str]) {
    let mut command = std::process::Command::new("etcdctl");
    command.env("ETCDCTL_API", "3").arg(format!("--endpoints=127.0.0.1:{}", cluster.members[0].client_port));
    let output = command.args(words).output().expect("etcd-client is there");
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_write_below_the_prefix_is_left_out() {
    let cluster = Cluster::start(1);
    let backend = cluster.open("/gantry/").await;
    let seen = Seen::default();
    backend.follow(backend.revision(), Box::new(seen.clone())).await.unwrap();
    let put = |key: &'static str| backend.txn(Txn::new().put(Put::new(key, "v")));
    put("/a").await.unwrap();
    put("/b").await.unwrap();
    // Theirs beside ours, theirs in the place of ours, and one that comes and goes.
    etcdctl(&cluster, &["put", "/gantry/data/c", "{}"]);
    etcdctl(&cluster, &["put", "/gantry/data/b", ""]);
    etcdctl(&cluster, &["put", "/gantry/data/d", "x"]);
    etcdctl(&cluster, &["del", "/gantry/data/d"]);
    // The feed has come past them, and brings what follows.
    let last = put("/e").await.unwrap().revision;
    let told = |seen: &Seen| -> Vec<(String, bool)> {
        let key = |event: &Event| String::from_utf8_lossy(&event.key).into_owned();
        seen.events().iter().map(|event| (key(event), event.new.is_some())).collect()
    };
    let expected = [("/a", true), ("/b", true), ("/b", false), ("/e", true)];
    assert_eq!(told(&seen), expected.map(|(key, there)| (key.to_owned(), there)));
    assert!(backend.catch_up().unwrap().await.unwrap() >= last);
    // Whoever reads, or begins, does without them.
    let other = cluster.open("/gantry/").await;
    let page = other.range(Range::all(), None, None, 0).await.unwrap();
    assert_eq!(page.items.iter().map(|(key, _)| &key[..]).collect::<Vec<_>>(), [b"/a", b"/e"]);
    assert_eq!(other.since(Revision::ZERO, usize::MAX).await.unwrap().events, seen.events());
    // Their key cannot be taken for a free one, and is one as soon as they have let go of it.
    let make = || backend.txn(Txn::new().when("/b", Revision::ZERO).put(Put::new("/b", "w")));
    let Err(Error::Refused(refused)) = make().await else { panic!("it was written over") };
    assert!(refused.found > Revision::ZERO && refused.value.is_none(), "{refused:?}");
    etcdctl(&cluster, &["del", "/gantry/data/b"]);
    make().await.unwrap();
    assert_eq!(told(&seen).last(), Some(&("/b".to_owned(), true)));
    // A server that was away for too long is given the whole state, without them.
    backend.compact(backend.revision()).await.unwrap();
    let page = other.range(Range::all(), None, None, 0).await.unwrap();
    assert_eq!(page.items.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_is_moved_with_its_revisions() {
    let cluster = Cluster::start(1);
    drop(cluster.open("/warm/").await);
    let keys: Vec<Dumped> = (0..700u64)
        .map(|at| Dumped {
            key: format!("/registry/pods/{at:04}").into(),
            value: Bytes::from(vec![b'v'; 3000]),
            create_revision: Revision(1000 + at),
            mod_revision: Revision(5000 + at),
            lease: (at == 3).then_some(store::LeaseId(9)),
        })
        .collect();
    let options = cluster.options("/gantry/");
    let last = Revision(90_000);
    let count = Etcd::import(&options, last, &[(store::LeaseId(9), 60_000)], keys.clone()).await.unwrap();
    assert_eq!(count, 700);
    let again = Etcd::import(&options, last, &[], keys.clone()).await;
    assert!(matches!(again, Err(OpenError::NotEmpty { .. })), "{again:?}");
    let backend = cluster.open("/gantry/").await;
    assert!(backend.revision() >= last);
    let page = backend.range(Range::all(), None, None, 0).await.unwrap();
    for ((key, version), dumped) in page.items.iter().zip(&keys) {
        assert_eq!((key, &version.value.bytes()), (&dumped.key, &dumped.value));
        assert_eq!((version.create_revision, version.mod_revision), (dumped.create_revision, dumped.mod_revision));
        assert_eq!(version.lease.is_some(), dumped.lease.is_some());
    }
    assert_eq!(page.items.len(), 700);
    // A condition on a revision from before the move holds exactly while the moved value stands.
    let old = |at: u64| Txn::new().when("/registry/pods/0005", Revision(at)).put(Put::new("/registry/pods/0005", "n"));
    let Err(Error::Refused(refused)) = backend.txn(old(5004)).await else { panic!() };
    assert_eq!(refused.found, Revision(5005));
    let new = backend.txn(old(5005)).await.unwrap().revision;
    assert!(new > last);
    let Err(Error::Refused(refused)) = backend.txn(old(5005)).await else { panic!() };
    assert_eq!(refused.found, new);
    // The history from before is not here.
    let lost = backend.follow(last, Box::new(Seen::default())).await;
    assert!(matches!(lost, Err(Error::Compacted(_))), "{lost:?}");
    assert!(matches!(backend.range(Range::all(), Some(Revision(5100)), None, 0).await, Err(Error::Compacted(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_and_passwords_open_the_door() {
    let dir = tempfile::tempdir().unwrap();
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&authority_key).unwrap();
    let ca_pem = authority.pem();
    let issuer = rcgen::Issuer::new(params, authority_key);
    let issue = |name: &str, usage| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.extended_key_usages = usage;
        (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
    };
    use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    let server = issue("etcd", vec![ServerAuth, ClientAuth]);
    let client = issue("client", vec![ClientAuth]);
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (ca, cert, key) = (write("ca", &ca_pem), write("cert", &server.0), write("key", &server.1));
    let words = [
        format!("--cert-file={cert}"),
        format!("--key-file={key}"),
        format!("--trusted-ca-file={ca}"),
        "--client-cert-auth".to_owned(),
    ];
    let mut cluster = Cluster::with(3, &words.each_ref().map(String::as_str));
    let ports: Vec<u16> = cluster.members.iter().map(|member| member.client_port).collect();
    let endpoint = |port: &u16| etcd::Endpoint::parse(&format!("https://127.0.0.1:{port}")).unwrap();
    let endpoints = ports.iter().map(endpoint).collect();
    let identity = Some((client.0.as_str(), client.1.as_str()));
    let mut options = Options { tls: Some(etcd::tls(&ca_pem, identity).unwrap()), ..Options::new(endpoints) };
    let backend = crate::member::open(&options).await;
    backend.txn(Txn::new().put(Put::new("a", "v"))).await.unwrap();
    let nobody = Options { tls: Some(etcd::tls(&ca_pem, None).unwrap()), ..options.clone() };
    assert!(matches!(Etcd::open(&nobody).await, Err(OpenError::Reach { .. })));

    let control = |words: &[&str]| {
        let place = format!("https://127.0.0.1:{}", ports[0]);
        let (own, own_key) = (write("own", &client.0), write("own-key", &client.1));
        let mut command = std::process::Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args([
            "--endpoints",
            &place,
            "--cacert",
            &ca,
            "--cert",
            &own,
            "--key",
            &own_key,
        ]);
        let done = command.args(words).output().unwrap();
        assert!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
    };
    control(&["user", "add", "root:secret"]);
    control(&["user", "grant-role", "root", "root"]);
    control(&["auth", "enable"]);
    let shut = backend.txn(Txn::new().put(Put::new("b", "v"))).await;
    assert!(shut.is_err(), "{shut:?}");
    options.user = Some(("root".to_owned(), "wrong".to_owned()));
    let Err(OpenError::Reach { why, .. }) = Etcd::open(&options).await else { panic!() };
    assert!(why.contains("log in as root"), "{why}");
    options.user = Some(("root".to_owned(), "secret".to_owned()));
    let backend = Etcd::open(&options).await.unwrap();
    let seen = Seen::default();
    backend.follow(backend.revision(), Box::new(seen.clone())).await.unwrap();
    backend.txn(Txn::new().put(Put::new("b", "v"))).await.unwrap();
    assert_eq!(seen.events().len(), 1);
    // Each member is away once; whoever comes to another shows certificate and password there.
    for at in 0..3usize {
        cluster.members[at].kill();
        let key = format!("c{at}");
        let written = crate::suite::until("a write beside a dead member", async || {
            backend.txn(Txn::new().put(Put::new(key.clone(), "v"))).await.ok()
        });
        let written = written.await.revision;
        cluster.members[at].restart();
        let told = async || seen.events().iter().any(|event| event.revision == written).then_some(());
        crate::suite::until("the write in the feed", told).await;
    }
}
