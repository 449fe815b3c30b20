//! Power loss, torn writes, flipped bits and full disks, by seed, on a simulated disk.

use base::{Revision, Rng, Time};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use store::{
    Command, Disk, Error, Event, HistoryLimits, OpenError, Options, Put, Recovered, SimDisk, Sink, Store, Txn,
    check_on, dump_on, restore_on,
};

type Map = BTreeMap<Bytes, (Bytes, Revision)>;

const OPTIONS: Options = Options {
    history: HistoryLimits { window_ms: u64::MAX / 4, max_events: 10_000, max_bytes: usize::MAX / 2 },
    segment_bytes: 16 * 1024,
    snapshot_after_bytes: 40 * 1024,
};

fn open(disk: &SimDisk) -> Result<(Store, Recovered), OpenError> {
    Store::open(Arc::new(disk.clone()), OPTIONS, 77, Time(0))
}

fn durable_of(store: &Store) -> Map {
    let visible = store.visible();
    let visible = visible.read().unwrap();
    let all = visible.newest().read(&store::Range::all(), None, 0);
    let durable = all.items.into_iter().filter(|(_, found)| !found.ephemeral);
    durable.map(|(key, found)| (key, (found.value.bytes(), found.mod_revision))).collect()
}

fn ephemeral_count(store: &Store) -> usize {
    let visible = store.visible();
    let visible = visible.read().unwrap();
    visible.newest().read(&store::Range::all(), None, 0).items.iter().filter(|(_, found)| found.ephemeral).count()
}

/// Takes events over as a cache would.
#[derive(Clone, Default)]
struct Follower(Arc<Mutex<(Map, Revision)>>);

impl Sink for Follower {
    fn on_events(&mut self, events: &[Event]) {
        let mut state = self.0.lock().unwrap();
        for event in events {
            assert!(event.revision >= state.1);
            state.1 = event.revision;
            match &event.new {
                Some(new) if !new.ephemeral => {
                    state.0.insert(event.key.clone(), (new.value.bytes(), new.mod_revision));
                }
                _ => {
                    state.0.remove(&event.key);
                }
            }
        }
    }
}

/// A batch of random puts and deletes; the answers go to `answers`.
fn batch(rng: &mut Rng, answers: &Arc<Mutex<Vec<Result<Revision, Error>>>>) -> Vec<Command> {
    (0..1 + rng.below(4))
        .map(|_| {
            let key = format!("key{:02}", rng.below(40));
            let txn = if rng.chance(200) {
                Txn::new().delete(key)
            } else {
                let value = vec![rng.next_u64() as u8; rng.below(1500) as usize];
                Txn::new().put(Put { ephemeral: rng.chance(200), ..Put::new(key, value) })
            };
            let answers = answers.clone();
            let done = move |outcome: Result<store::Commit, Error>| {
                answers.lock().unwrap().push(outcome.map(|commit| commit.revision));
            };
            Command::Txn { txn, done: Box::new(done) }
        })
        .collect()
}

/// Runs until the power fails or `batches` are done. Returns the state that was acknowledged, the newest revision seen,
/// and whether the power failed.
fn run(store: &mut Store, disk: &SimDisk, rng: &mut Rng, batches: u64) -> (Map, Revision, bool) {
    let follower = Follower::default();
    let answers = Arc::new(Mutex::new(Vec::new()));
    let start = store.visible().read().unwrap().revision();
    *follower.0.lock().unwrap() = (durable_of(store), start);
    let follow = Command::Follow { after: start, sink: Box::new(follower.clone()), done: Box::new(|_| {}) };
    store.run([follow], Time(0));
    for n in 0..batches {
        store.run(batch(rng, &answers), Time(n as i64));
        let failed = answers.lock().unwrap().drain(..).any(|answer| answer.is_err());
        assert_eq!(follower.0.lock().unwrap().0, durable_of(store), "the feed leads to the state");
        if failed {
            return (durable_of(store), store.visible().read().unwrap().revision(), true);
        }
        if let Some(job) = store.snapshot_due() {
            let outcome = job.write(disk);
            // The power may fail in it; the next batch then finds out.
            let _ = store.snapshot_done(job.lsn(), &outcome);
        }
    }
    (durable_of(store), store.visible().read().unwrap().revision(), false)
}

#[test]
fn acknowledged_writes_survive_power_loss() {
    let (mut crashes, mut torn, mut snapshots) = (0, 0, 0);
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let disk = SimDisk::new();
        let (mut expected, mut newest) = (Map::new(), Revision(0));
        for round in 0..6 {
            let (mut store, recovered) = open(&disk).unwrap_or_else(|error| panic!("seed {seed}.{round}: {error}"));
            torn += u32::from(recovered.torn.is_some());
            let found = durable_of(&store);
            if round > 0 {
                // All that was acknowledged; or that and the whole batch whose answer the power loss cut off.
                let lost = expected.iter().any(|(key, value)| {
                    value.1 <= newest && found.get(key).is_none_or(|now| now.1 < value.1) && found.contains_key(key)
                });
                assert!(!lost, "seed {seed}.{round}: an older value came back");
                let younger = found.values().any(|value| value.1 > newest);
                if !younger && found.len() == expected.len() {
                    assert_eq!(found, expected, "seed {seed}.{round}");
                }
                assert!(recovered.revision >= newest, "seed {seed}.{round}: revisions went back");
            }
            if !recovered.clean {
                assert_eq!(ephemeral_count(&store), 0, "seed {seed}.{round}");
            }
            disk.power_off_after(10 + rng.below(150) as u32);
            let before = rng.below(120);
            let failed;
            (expected, newest, failed) = run(&mut store, &disk, &mut rng, before);
            if !failed && rng.chance(300) {
                let ephemeral = ephemeral_count(&store);
                if store.close().is_ok() {
                    disk.crash(&mut rng);
                    let (again, recovered) = open(&disk).unwrap();
                    assert!(recovered.clean && ephemeral_count(&again) == ephemeral, "seed {seed}.{round}");
                    assert_eq!(durable_of(&again), expected);
                }
            }
            snapshots += u32::from(disk.list().unwrap().iter().any(|name| name.starts_with("snapshot-")));
            disk.crash(&mut rng);
            crashes += 1;
        }
    }
    assert!(crashes > 1000 && torn > 50 && snapshots > 100, "{crashes} crashes, {torn} torn, {snapshots} snapshots");
}

/// After a crash the state is exactly the acknowledged one or that plus the one batch in flight.
#[test]
fn a_batch_is_found_whole_or_not_at_all() {
    for seed in 0..200 {
        let mut rng = Rng::new(seed);
        let disk = SimDisk::new();
        let (mut store, _) = open(&disk).unwrap();
        let put = |n: u64, batch: u64| Txn::new().put(Put::new(format!("k{n}"), format!("{batch}")));
        let commands = |batch: u64| -> Vec<Command> {
            (0..5).map(|n| Command::Txn { txn: put(n, batch), done: Box::new(|_| {}) }).collect()
        };
        let acknowledged = rng.below(20);
        (0..acknowledged).for_each(|n| store.run(commands(n), Time(0)));
        disk.power_off_after(rng.below(2) as u32);
        store.run(commands(acknowledged), Time(0));
        disk.crash(&mut rng);
        let (store, _) = open(&disk).unwrap();
        let values: Vec<String> =
            durable_of(&store).values().map(|value| String::from_utf8_lossy(&value.0).into_owned()).collect();
        let before: Vec<String> = if acknowledged == 0 { vec![] } else { vec![(acknowledged - 1).to_string(); 5] };
        let after = vec![acknowledged.to_string(); 5];
        assert!(values == before || values == after, "seed {seed}: {values:?}");
    }
}

/// The places of a file where something was written.
fn written(disk: &SimDisk, name: &str) -> usize {
    disk.contents(name).unwrap().iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

#[test]
fn flipped_bits_are_found_and_told() {
    let mut told = 0;
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let disk = SimDisk::new();
        let (mut store, _) = open(&disk).unwrap();
        let (expected, newest, _) = run(&mut store, &disk, &mut rng, 80);
        store.close().unwrap();
        let names: Vec<String> = disk.list().unwrap();
        let name = &names[rng.below(names.len() as u64) as usize];
        let offset = rng.below(written(&disk, name) as u64) as usize;
        disk.flip(name, offset, rng.next_u64() as u8);
        let before: Vec<_> = names.iter().map(|name| disk.contents(name)).collect();
        match open(&disk) {
            // The close itself, or bytes that say nothing.
            Ok((store, _)) => assert_eq!(durable_of(&store), expected, "seed {seed}: {name} at {offset}"),
            Err(OpenError::Damaged(damage)) => {
                told += 1;
                assert!(damage.file.ends_with(name.as_str()), "seed {seed}: {damage:?} in {name}");
                assert!(
                    damage.offset <= offset as u64 || name.starts_with("snapshot"),
                    "seed {seed}: {damage:?} {offset}"
                );
                let after: Vec<_> = names.iter().map(|name| disk.contents(name)).collect();
                assert_eq!(before, after, "seed {seed}: a refused store was changed");
                assert!(!check_on(&disk).unwrap().damages.is_empty());
                assert!(matches!(dump_on(&disk, None, false), Err(OpenError::Damaged(_))));
                if let Ok(dump) = dump_on(&disk, None, true) {
                    let fresh = SimDisk::new();
                    let count = dump.iter().count();
                    restore_on(&fresh, dump.revision, &dump.leases, dump.iter(), 5).unwrap();
                    let (store, recovered) = open(&fresh).unwrap();
                    assert_eq!((recovered.keys, durable_of(&store).len()), (count, count));
                    assert!(recovered.revision <= newest.next() || dump.revision > newest);
                }
            }
            Err(OpenError::Version { .. }) => told += 1,
            Err(other) => panic!("seed {seed}: {other}"),
        }
    }
    assert!(told > 200, "{told}");
}

#[test]
fn a_full_disk_refuses_and_recovers() {
    for seed in 0..60 {
        let mut rng = Rng::new(seed);
        let disk = SimDisk::new();
        let (mut store, _) = open(&disk).unwrap();
        run(&mut store, &disk, &mut rng, 10);
        disk.set_capacity(Some(disk.used_bytes() + rng.below(20_000)));
        let answers = Arc::new(Mutex::new(Vec::new()));
        let mut full = None;
        for n in 0..200 {
            let before = durable_of(&store);
            store.run(batch(&mut rng, &answers), Time(n));
            let answers: Vec<_> = answers.lock().unwrap().drain(..).collect();
            if let Some(Err(error)) = answers.iter().find(|answer| answer.is_err()) {
                full = Some(error.clone());
                assert_eq!(durable_of(&store), before, "nothing of the batch is seen");
                break;
            }
        }
        assert!(matches!(full, Some(Error::Disk { full: true, .. })), "seed {seed}: {full:?}");
        if rng.chance(500) {
            disk.set_capacity(None);
            store.run(batch(&mut rng, &answers), Time(300));
            assert!(answers.lock().unwrap().drain(..).all(|answer| answer.is_ok()), "seed {seed}");
        }
        disk.set_capacity(None);
        let expected = durable_of(&store);
        disk.crash(&mut rng);
        let (store, _) = open(&disk).unwrap();
        assert_eq!(durable_of(&store), expected, "seed {seed}");
    }
}

#[test]
fn a_failing_sync_takes_the_batch_back() {
    let disk = SimDisk::new();
    let (mut store, _) = open(&disk).unwrap();
    let answers = Arc::new(Mutex::new(Vec::new()));
    let mut rng = Rng::new(3);
    store.run(batch(&mut rng, &answers), Time(0));
    let expected = durable_of(&store);
    for failures in [1, 2] {
        answers.lock().unwrap().clear();
        disk.fail_syncs(failures);
        let txn = Txn::new().put(Put::new("failed", "v"));
        let failed = answers.clone();
        let done = move |outcome: Result<store::Commit, Error>| {
            failed.lock().unwrap().push(outcome.map(|commit| commit.revision));
        };
        store.run([Command::Txn { txn, done: Box::new(done) }], Time(0));
        assert!(matches!(answers.lock().unwrap()[..], [Err(Error::Disk { full: false, .. })]));
        assert_eq!(durable_of(&store), expected);
    }
    disk.fail_syncs(0);
    store.run([Command::Txn { txn: Txn::new().put(Put::new("later", "v")), done: Box::new(|_| {}) }], Time(0));
    disk.crash(&mut rng);
    let (store, _) = open(&disk).unwrap();
    let found = durable_of(&store);
    assert!(found.contains_key(&b"later"[..]) && !found.contains_key(&b"failed"[..]));
}

/// A follower that comes back after a crash is told to begin anew when ephemeral changes may have been lost.
#[test]
fn followers_begin_anew_after_lost_ephemeral_changes() {
    let disk = SimDisk::new();
    let (mut store, _) = open(&disk).unwrap();
    let put = |key: &'static str, ephemeral| {
        let txn = Txn::new().put(Put { ephemeral, ..Put::new(key, "v") });
        Command::Txn { txn, done: Box::new(|_| {}) }
    };
    store.run([put("a", false)], Time(0));
    store.run([put("beat", true)], Time(0));
    store.run([put("b", false)], Time(0));
    let seen = store.visible().read().unwrap().revision();
    disk.crash(&mut Rng::new(1));
    let (store, recovered) = open(&disk).unwrap();
    assert!(recovered.revision > seen && ephemeral_count(&store) == 0);
    let outcome = store.visible().read().unwrap().since(seen, 10);
    assert_eq!(outcome, Err(Error::Compacted(recovered.revision)));

    // Without ephemeral changes the feed goes on where it was.
    let disk = SimDisk::new();
    let (mut store, _) = open(&disk).unwrap();
    store.run([put("a", false)], Time(0));
    store.run([put("b", false)], Time(0));
    disk.crash(&mut Rng::new(1));
    let (store, _) = open(&disk).unwrap();
    assert_eq!(store.visible().read().unwrap().since(Revision(1), 10).unwrap().events.len(), 1);
}
