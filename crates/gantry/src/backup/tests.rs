//! Backups and moves of a small cluster: over files, and over real etcd.

use std::process::{Child, Command, Stdio};

use store::Embedded;

use super::*;

struct Member {
    child: Child,
    endpoint: String,
    _dir: tempfile::TempDir,
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn member() -> Member {
    let dir = tempfile::tempdir().unwrap();
    let port = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (client, peer) = (format!("http://127.0.0.1:{}", port()), format!("http://127.0.0.1:{}", port()));
    let log = std::fs::File::create(dir.path().join("log")).unwrap();
    let child = Command::new("etcd")
        .arg("--data-dir")
        .arg(dir.path().join("data"))
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}")])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("etcd-server is there");
    Member { child, endpoint: client, _dir: dir }
}

/// Waits until a member takes connections, which it does a moment after its start.
fn wait_for(member: &Member) {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let options = etcd::Options::new(vec![etcd::Endpoint::parse(&member.endpoint).unwrap()]);
    let probe = etcd::Options { prefix: "/probe".to_owned(), ..options };
    while runtime().unwrap().block_on(Etcd::open(&probe)).is_err() {
        assert!(std::time::Instant::now() < until, "etcd does not answer");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

fn words(words: &[&str]) -> Settings {
    let words = std::iter::once("gantry").chain(words.iter().copied()).map(std::ffi::OsString::from);
    crate::flags::read(words, &|_| None).unwrap()
}

/// A data folder with keys and some objects, one with a lease; the store is open as long as the result lives.
fn cluster(data: &Path) -> Embedded {
    server::Keys::open(&data.join("keys")).unwrap();
    let (store, _) = Embedded::open(&data.join("store"), store::Options::default()).unwrap();
    let lease = store.grant(3_600_000).wait().unwrap();
    for at in 0..300 {
        let text = format!("{{\"metadata\":{{\"name\":\"{at}\",\"resourceVersion\":\"\"}}}}");
        let stamp = u32::try_from(text.len() - 3).unwrap();
        let lease = (at == 7).then_some(lease);
        let put = Put { stamp: Some(stamp), lease, ..Put::new(format!("/registry/configmaps/ns/{at:03}"), text) };
        store.txn(Txn::new().put(put)).wait().unwrap();
    }
    let packed = server::pack::pack(&b"{\"metadata\":{\"name\":\"large\"}}".repeat(1000)).unwrap();
    let packed = Txn::new().put(Put::new("/registry/configmaps/ns/large", packed));
    store.txn(packed.put(Put::new(Format::KEY, server::pack::PACKS.text()))).wait().unwrap();
    store.txn(Txn::new().put(Put::new("/leader", "me")).put(Put::new("/cluster/entered", ""))).wait().unwrap();
    store
}

/// What one transaction of a writer puts, again and again, while backups are made.
fn pair(number: u64) -> Txn {
    let put = |name: &str| Put::new(format!("/registry/pods/ns/{name}"), number.to_string());
    Txn::new().put(put("a")).put(put("b"))
}

/// A backup made meanwhile has both keys of a commit or none, and nothing from later; which commit it was.
fn is_of_one_revision(file: &str) -> Option<u64> {
    let mut seen = BTreeMap::new();
    let found = read(Path::new(file), &mut |key| {
        seen.insert(key.key.clone(), key);
        Ok(())
    });
    let found = found.unwrap();
    let pair = ["a", "b"].map(|name| seen.get(format!("/registry/pods/ns/{name}").as_bytes()));
    assert_eq!(pair[0].map(|key| &key.value), pair[1].map(|key| &key.value));
    assert!(seen.values().all(|key| key.mod_revision <= found.revision));
    assert!(!seen.contains_key(&b"/leader"[..]));
    pair[0].map(|key| String::from_utf8_lossy(&key.value).parse().unwrap())
}

#[test]
fn a_backup_of_a_running_store_is_restored_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name).display().to_string();
    let (data, file, other) = (place("data"), place("backup"), place("other"));
    let running = cluster(Path::new(&data));
    // It is written while the backup is made.
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for at in 0u64.. {
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
                running.txn(pair(at)).wait().unwrap();
            }
        });
        for round in 0..10 {
            create(&words(&["backup", "create", &format!("{file}{round}"), "--data", &data])).unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    for round in 0..10 {
        is_of_one_revision(&format!("{file}{round}"));
    }
    verify(&words(&["backup", "verify", &format!("{file}9")])).unwrap();
    let back = ["backup", "restore", &format!("{file}9"), "--data", &other];
    let refused = restore(&words(&back)).unwrap_err().to_string();
    assert!(refused.contains("cluster-secret"), "{refused}");
    let secret = format!("{data}/cluster-secret");
    let back: Vec<&str> = back.into_iter().chain(["--cluster-secret-file", &secret]).collect();
    restore(&words(&back)).unwrap();
    let (there, here) = (store::dump(&Path::new(&other).join("store"), None, false).unwrap(), running);
    assert_eq!(there.iter().count(), 304);
    assert!(there.revision > here.revision());
    let leased = there.iter().find(|key| key.lease.is_some()).unwrap();
    assert_eq!((&leased.key[..], there.leases.len()), (&b"/registry/configmaps/ns/007"[..], 1));
    assert_eq!(
        backend::pack(&Path::new(&other).join("keys")).unwrap(),
        backend::pack(&Path::new(&data).join("keys")).unwrap()
    );
    // Not over what is there.
    assert!(restore(&words(&back)).unwrap_err().to_string().contains("already holds a store"));
    assert!(create(&words(&["backup", "create", &format!("{file}9"), "--data", &data])).is_err());
}

#[test]
fn lines_that_nobody_wrote_are_refused_in_whatever_packing() {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name).display().to_string();
    let (data, file) = (place("data"), place("backup"));
    drop(cluster(Path::new(&data)));
    create(&words(&["backup", "create", &file, "--data", &data])).unwrap();
    let plain = zstd::decode_all(&std::fs::read(&file).unwrap()[..]).unwrap();
    let pieces: [&[u8]; 8] = [b"\n", b"{", b"}", b"\"sha256\":\"\"", b"-1", b"18446744073709551616", b"\xff", b"null"];
    let mut rng = base::Rng::new(5);
    for round in 0..2_000 {
        let mut lines = plain.clone();
        for _ in 0..=rng.below(3) {
            let at = usize::try_from(rng.below(lines.len() as u64)).unwrap();
            match rng.below(4) {
                0 => lines[at] ^= 1 << rng.below(8),
                1 => lines.truncate(at.max(1)),
                2 => drop(lines.splice(at..at, pieces[usize::try_from(rng.below(8)).unwrap()].iter().copied())),
                _ => drop(lines.drain(at..(at + 40).min(lines.len()))),
            }
        }
        let packed = zstd::encode_all(&lines[..], 1).unwrap();
        let read = read_from(&packed[..], Path::new("damaged"), &mut |_| Ok(()));
        assert!(read.is_err() || lines == plain, "round {round}");
    }
}

#[test]
fn damage_of_a_backup_is_told_wherever_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name).display().to_string();
    let (data, file) = (place("data"), place("backup"));
    drop(cluster(Path::new(&data)));
    create(&words(&["backup", "create", &file, "--data", &data])).unwrap();
    let whole = std::fs::read(&file).unwrap();
    let check = |bytes: &[u8]| {
        std::fs::write(place("damaged"), bytes).unwrap();
        verify(&words(&["backup", "verify", &place("damaged")]))
    };
    check(&whole).unwrap();
    for at in (0..whole.len()).step_by(37) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        // Where the packing says the same in several ways, a flipped bit may change nothing of what is packed.
        let same = || zstd::decode_all(&damaged[..]).unwrap() == zstd::decode_all(&whole[..]).unwrap();
        assert!(check(&damaged).is_err() || same(), "byte {at}");
        assert!(check(&whole[..at]).is_err(), "cut at {at}");
    }
    // A whole pack of other lines is told, too.
    let mut lines: Vec<u8> = zstd::decode_all(&whole[..]).unwrap();
    let at = lines.windows(6).position(|window| window == b"\"name\\").unwrap();
    lines[at + 1] = b'N';
    assert!(check(&zstd::encode_all(&lines[..], 1).unwrap()).unwrap_err().to_string().contains("digest"));
}

#[test]
fn a_cluster_moves_into_etcd_and_back_with_every_revision() {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name).display().to_string();
    let (data, other, file) = (place("data"), place("other"), place("backup"));
    drop(cluster(Path::new(&data)));
    let (one, two) = (member(), member());
    wait_for(&one);
    wait_for(&two);
    let there =
        ["store", "migrate", "--from", "embedded", "--to", "etcd", "--data", &data, "--etcd-endpoints", &one.endpoint];
    migrate(&words(&there)).unwrap();
    assert!(migrate(&words(&there)).unwrap_err().to_string().contains("already holds"));
    // Back into another folder, with the secret that was made.
    let secret = format!("{data}/cluster-secret");
    let back = [
        "store",
        "migrate",
        "--from",
        "etcd",
        "--to",
        "embedded",
        "--data",
        &other,
        "--etcd-endpoints",
        &one.endpoint,
        "--cluster-secret-file",
        &secret,
    ];
    migrate(&words(&back)).unwrap();
    let state = |data: &str| {
        let dump = store::dump(&Path::new(data).join("store"), None, false).unwrap();
        let keys: Vec<Dumped> = dump.iter().filter(|key| !is_passing(&key.key)).collect();
        (dump.revision, keys)
    };
    let (before, after) = (state(&data), state(&other));
    assert!(after.0 >= before.0);
    assert_eq!(before.1.len(), after.1.len());
    for (before, after) in before.1.iter().zip(&after.1) {
        assert_eq!((&before.key, &before.value), (&after.key, &after.value));
        assert_eq!((before.create_revision, before.mod_revision), (after.create_revision, after.mod_revision));
        assert_eq!(before.lease.is_some(), after.lease.is_some());
    }
    assert_eq!(
        backend::pack(&Path::new(&other).join("keys")).unwrap(),
        backend::pack(&Path::new(&data).join("keys")).unwrap()
    );
    // A backup of the one etcd is restored into the other.
    let create_words =
        ["backup", "create", &file, "--backend", "etcd", "--etcd-endpoints", &one.endpoint, "--data", &data];
    create(&words(&create_words)).unwrap();
    let restore_words =
        ["backup", "restore", &file, "--backend", "etcd", "--etcd-endpoints", &two.endpoint, "--data", &data];
    restore(&words(&restore_words)).unwrap();
    let digest = |member: &Member| {
        let words = words(&["backup", "create", "x", "--backend", "etcd", "--etcd-endpoints", &member.endpoint]);
        let source = Source::etcd(&words).unwrap();
        (source.digest().unwrap(), source.revision())
    };
    let (from, to) = (digest(&one), digest(&two));
    assert_eq!(from.0, to.0);
    assert!(to.1.0 >= from.1.0 + LIFT);
}

#[test]
fn a_backup_of_an_etcd_that_is_written_to_is_restored_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name).display().to_string();
    let (data, other, file) = (place("data"), place("other"), place("backup"));
    drop(cluster(Path::new(&data)));
    let member = member();
    wait_for(&member);
    let at = ["--etcd-endpoints", &member.endpoint, "--data", &data];
    migrate(&words(&[&["store", "migrate", "--from", "embedded", "--to", "etcd"], &at[..]].concat())).unwrap();
    let backup = |file: &str, more: &[&str]| {
        create(&words(&[&["backup", "create", file, "--backend", "etcd"], &at[..], more].concat()))
    };
    let threads = runtime().unwrap();
    let options = etcd::Options::new(vec![etcd::Endpoint::parse(&member.endpoint).unwrap()]);
    let running = threads.block_on(Etcd::open(&options)).unwrap();
    let (stop, acknowledged) = (std::sync::atomic::AtomicBool::new(false), std::sync::atomic::AtomicU64::new(0));
    use std::sync::atomic::Ordering::SeqCst;
    let mut told = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1u64.. {
                if stop.load(SeqCst) {
                    break;
                }
                threads.block_on(running.txn(pair(number))).unwrap();
                acknowledged.store(number, SeqCst);
            }
        });
        while acknowledged.load(SeqCst) == 0 {
            std::thread::yield_now();
        }
        for round in 0..5 {
            let before = acknowledged.load(SeqCst);
            backup(&format!("{file}{round}"), &[]).unwrap();
            told.push((before, acknowledged.load(SeqCst)));
        }
        stop.store(true, SeqCst);
    });
    for (round, (before, after)) in told.into_iter().enumerate() {
        // All that was acknowledged before is in it.
        let found = is_of_one_revision(&format!("{file}{round}")).unwrap();
        assert!(before <= found && found <= after + 1, "{before} {found} {after}");
    }
    // The drill: into files, and beside the first into the same etcd.
    let secret = format!("{data}/cluster-secret");
    let back = ["backup", "restore", &format!("{file}4"), "--cluster-secret-file", &secret];
    restore(&words(&[&back[..], &["--data", &other]].concat())).unwrap();
    let there = ["--etcd-prefix", "/restored/"];
    restore(&words(&[&back[..], &["--backend", "etcd"], &at[..], &there].concat())).unwrap();
    backup(&format!("{file}5"), &there).unwrap();
    let keys = |file: &str| {
        let mut keys = Vec::new();
        read(Path::new(file), &mut |key| {
            keys.push((key.key, key.value, key.create_revision, key.mod_revision));
            Ok(())
        })
        .unwrap();
        keys
    };
    let dump = store::dump(&Path::new(&other).join("store"), None, false).unwrap();
    let files: Vec<_> = dump.iter().map(|key| (key.key, key.value, key.create_revision, key.mod_revision)).collect();
    let first = keys(&format!("{file}4"));
    assert_eq!(first.len(), 304);
    assert!(first == keys(&format!("{file}5")) && first == files);
}
