//! Real files: reopening, kill -9, locks, snapshots, restore.

use base::Revision;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use store::{
    Backend, Embedded, Error, Event, LeaseId, OpenError, Options, Put, Range, Sink, Txn, check, dump, restore,
};

#[test]
fn writers_say_when_the_thread_is_woken() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Embedded::open(dir.path(), small()).unwrap();
    let (asked, asking) = std::sync::mpsc::channel();
    let alarm = store.woken_by(move || asked.send(()).unwrap());
    let put = |key: &str| store.txn(Txn::new().put(Put::new(key.to_owned(), "1")));
    // Before it sleeps for the first time it takes what comes.
    let sleeps = |key: &str| loop {
        let ticket = put(key);
        if asking.recv_timeout(Duration::from_millis(50)).is_ok() {
            break ticket;
        }
        ticket.wait().unwrap();
    };
    let first = sleeps("a");
    assert!(asking.try_recv().is_err(), "it is asked once");
    alarm.ring();
    first.wait().unwrap();
    // Who should ring does not: whoever writes later wakes it.
    let first = sleeps("b");
    std::thread::sleep(Duration::from_millis(5));
    put("c").wait().unwrap();
    first.wait().unwrap();
    let last = sleeps("d");
    drop(store);
    last.wait().unwrap();
}

fn small() -> Options {
    Options { segment_bytes: 256 * 1024, snapshot_after_bytes: 512 * 1024, ..Options::default() }
}

#[test]
fn a_reopened_store_holds_everything() {
    let dir = tempfile::tempdir().unwrap();
    let (store, recovered) = Embedded::open(dir.path(), small()).unwrap();
    assert_eq!((recovered.revision, recovered.keys), (Revision(0), 0));
    let lease = store.grant(3_600_000).wait().unwrap();
    let tickets: Vec<_> = (0..3000u32)
        .map(|n| store.txn(Txn::new().put(Put::new(format!("k{:04}", n % 1000), vec![n as u8; 1000]))))
        .collect();
    for ticket in tickets {
        ticket.wait().unwrap();
    }
    let refused = store.txn(Txn::new().when("k0001", Revision(5)).delete("k0001")).wait();
    assert!(matches!(refused, Err(Error::Refused(refused)) if refused.found == Revision(2002)));
    let beat = Put { ephemeral: true, lease: Some(lease), ..Put::new("beat", "1") };
    store.txn(Txn::new().put(beat)).wait().unwrap();
    let all = store.range(Range::all(), None, None, 0).wait().unwrap();
    assert_eq!((all.items.len(), all.revision, store.revision()), (1001, Revision(3001), Revision(3001)));
    let past = store.range(Range::key("k0001"), Some(Revision(2001)), None, 0).wait().unwrap();
    assert_eq!(past.items[0].1.mod_revision, Revision(1002));
    store.close().unwrap();

    let report = check(dir.path()).unwrap();
    assert_eq!((report.damages.len(), report.keys, report.leases), (0, 1001, 1));
    assert!(report.snapshot.is_some(), "{report:?}");

    let (store, recovered) = Embedded::open(dir.path(), small()).unwrap();
    assert_eq!((recovered.clean, recovered.revision, recovered.keys), (true, Revision(3001), 1001));
    assert_eq!(store.range(Range::all(), None, None, 0).wait().unwrap().items, all.items);
    assert_eq!(store.renew(lease).wait(), Ok(3_600_000));
    assert_eq!(store.revoke(lease).wait().unwrap().changed, 1);
    assert_eq!(store.revoke(LeaseId(9)).wait(), Err(Error::NoSuchLease(LeaseId(9))));
    assert_eq!(store.get(b"beat"), None);
}

#[test]
fn two_processes_never_share_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Embedded::open(dir.path(), small()).unwrap();
    let second = Embedded::open(dir.path(), small()).err().unwrap();
    assert!(matches!(second, OpenError::Locked { pid: Some(pid), .. } if pid == std::process::id()), "{second}");
    assert!(matches!(check(dir.path()), Err(OpenError::Locked { .. })));
    drop(store);
    Embedded::open(dir.path(), small()).unwrap();
}

#[test]
fn dumps_of_the_past_are_restored_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Embedded::open(&dir.path().join("a"), Options::default()).unwrap();
    for n in 0..10 {
        store.txn(Txn::new().put(Put::new(format!("k{}", n % 4), format!("v{n}")))).wait().unwrap();
    }
    store.close().unwrap();
    let dumped = dump(&dir.path().join("a"), Some(Revision(6)), false).unwrap();
    restore(&dir.path().join("b"), dumped.revision, &dumped.leases, dumped.iter(), 9).unwrap();
    let again = restore(&dir.path().join("b"), dumped.revision, &[], dumped.iter(), 9);
    assert!(matches!(again, Err(OpenError::NotEmpty { .. })));
    let (store, recovered) = Embedded::open(&dir.path().join("b"), Options::default()).unwrap();
    assert_eq!((recovered.revision, recovered.keys), (Revision(6), 4));
    let one = store.get(b"k1").unwrap();
    assert_eq!((&one.value.bytes()[..], one.create_revision, one.mod_revision), (&b"v5"[..], Revision(2), Revision(6)));
    assert_eq!(store.txn(Txn::new().delete("k1")).wait().unwrap().revision, Revision(7));
    let ahead = dump(&dir.path().join("a"), Some(Revision(99)), false).err().unwrap();
    assert!(matches!(ahead, OpenError::NoSuchRevision { asked: 99, oldest: 0, newest: 10 }));
    assert!(matches!(check(&dir.path().join("c")), Err(OpenError::NotAStore { .. })));
}

struct Collect(Arc<Mutex<Vec<Event>>>);

impl Sink for Collect {
    fn on_events(&mut self, events: &[Event]) {
        self.0.lock().unwrap().extend_from_slice(events);
    }
}

#[test]
fn an_answered_writer_finds_the_sink_at_its_revision() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Embedded::open(dir.path(), small()).unwrap();
    store.txn(Txn::new().put(Put::new("before", "v"))).wait().unwrap();
    let events = Arc::new(Mutex::new(Vec::new()));
    assert_eq!(store.follow(Revision(0), Box::new(Collect(events.clone()))).wait(), Ok(Revision(1)));
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (store, events) = (&store, &events);
            scope.spawn(move || {
                for n in 0..50 {
                    let put = Put::new(format!("{thread}-{n}"), "v");
                    let revision = store.txn(Txn::new().put(put)).wait().unwrap().revision;
                    assert!(events.lock().unwrap().iter().any(|event| event.revision == revision));
                    assert!(store.revision() >= revision);
                }
            });
        }
    });
    let events = events.lock().unwrap();
    assert_eq!(events.iter().map(|event| event.revision.0).collect::<Vec<_>>(), (1..=401).collect::<Vec<_>>());
    assert_eq!(store.since(Revision(0), 1000).wait().unwrap().events, *events);
    store.compact(Revision(100)).wait().unwrap();
    assert_eq!(store.since(Revision(99), 1).wait(), Err(Error::Compacted(Revision(100))));
    assert!(matches!(store.range(Range::all(), Some(Revision(99)), None, 0).wait(), Err(Error::Compacted(_))));
}

#[test]
fn leases_end_by_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Embedded::open(dir.path(), small()).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    struct Forward(std::sync::mpsc::Sender<Event>);
    impl Sink for Forward {
        fn on_events(&mut self, events: &[Event]) {
            events.iter().for_each(|event| self.0.send(event.clone()).unwrap());
        }
    }
    store.follow(Revision(0), Box::new(Forward(sender))).wait().unwrap();
    let granted = std::time::Instant::now();
    let lease = store.grant(50).wait().unwrap();
    store.txn(Txn::new().put(Put { lease: Some(lease), ..Put::new("k", "v") })).wait().unwrap();
    assert!(receiver.recv().unwrap().new.is_some());
    assert!(receiver.recv().unwrap().new.is_none());
    assert!(granted.elapsed().as_millis() >= 50);
}

const CHILD_DIR: &str = "STORE_TEST_CHILD_DIR";

/// Not a test by itself: the writer that `acknowledged_writes_survive_kill` kills.
#[test]
fn child_writer() {
    let Ok(dir) = std::env::var(CHILD_DIR) else { return };
    let (store, recovered) = Embedded::open(dir.as_ref(), small()).unwrap();
    let store = &store;
    println!("\nopened {}", recovered.revision);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || {
                for n in 0.. {
                    let key = format!("{thread}-{}", n % 200);
                    let put = Put { stamp: Some(0), ..Put::new(key.clone(), vec![b' '; 700]) };
                    let commit = store.txn(Txn::new().put(put)).wait().unwrap();
                    println!("acknowledged {key} {}", commit.revision);
                }
            });
        }
    });
}

#[test]
fn acknowledged_writes_survive_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = std::collections::BTreeMap::new();
    for round in 0..5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "files::child_writer", "--nocapture", "--test-threads", "1"])
            .env(CHILD_DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut count = 0;
        while count < 400 * (round + 1) {
            let line = lines.next().unwrap().unwrap();
            let words: Vec<&str> = line.split(' ').collect();
            if let ["acknowledged", key, revision] = words[..] {
                acknowledged.insert(key.to_string(), revision.parse::<u64>().unwrap());
                count += 1;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What was written to the pipe before the end counts too; the last line may be cut.
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        for line in rest.iter().take(rest.len().saturating_sub(1)) {
            if let ["acknowledged", key, revision] = line.split(' ').collect::<Vec<_>>()[..] {
                acknowledged.insert(key.to_string(), revision.parse::<u64>().unwrap());
            }
        }
        let report = check(dir.path()).unwrap();
        assert!(report.damages.is_empty(), "{report:?}");
        let (store, _) = Embedded::open(dir.path(), small()).unwrap();
        for (key, revision) in &acknowledged {
            let found = store.get(key.as_bytes()).unwrap_or_else(|| panic!("{key} is lost"));
            assert!(found.mod_revision.0 >= *revision, "{key} went back to {found:?}");
            assert!(found.value.bytes().starts_with(found.mod_revision.to_string().as_bytes()));
        }
        drop(store);
    }
}
