//! Random transactions against a history of plain maps.

use base::{Revision, Rng, Time};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use store::{Error, Event, HistoryLimits, Invalid, LeaseId, Lsn, Mvcc, Put, Range, Txn};

type Map = BTreeMap<Bytes, (Bytes, Revision, Revision)>;

fn key(n: u64) -> Bytes {
    Bytes::from(format!("/kind{}/{}", n % 3, n))
}

/// The machine beside the plainest possible description of it.
struct World {
    mvcc: Mvcc,
    rng: Rng,
    now: Time,
    /// The state after each visible revision, from 0 on.
    states: Vec<Map>,
    staged: Vec<Map>,
    floor: Revision,
    seen: Vec<Event>,
}

impl World {
    fn new(seed: u64) -> World {
        World {
            mvcc: Mvcc::new(HistoryLimits { window_ms: 1_000_000, max_events: 500, max_bytes: 1 << 20 }),
            rng: Rng::new(seed),
            now: Time(0),
            states: vec![Map::new()],
            staged: Vec::new(),
            floor: Revision(0),
            seen: Vec::new(),
        }
    }

    fn newest(&self) -> &Map {
        self.staged.last().unwrap_or_else(|| self.states.last().unwrap())
    }

    fn commit(&mut self) {
        let revision = Revision((self.states.len() + self.staged.len()) as u64);
        let mut map = self.newest().clone();
        let mut txn = Txn::new();
        let mut holds = true;
        for _ in 0..self.rng.below(3) {
            let key = key(self.rng.below(20));
            let at = map.get(&key).map_or(Revision(0), |found| found.2);
            let wrong = self.rng.chance(150);
            holds &= !wrong;
            txn = txn.when(key, if wrong { Revision(at.0 + 7) } else { at });
        }
        let mut used = Vec::new();
        let mut changed = 0;
        for _ in 0..1 + self.rng.below(4) {
            let key = key(self.rng.below(20));
            if used.contains(&key) {
                continue;
            }
            used.push(key.clone());
            if self.rng.chance(300) {
                changed += usize::from(map.remove(&key).is_some());
                txn = txn.delete(key);
            } else {
                let stamp = self.rng.chance(500);
                let create = map.get(&key).map_or(revision, |found| found.1);
                let text = if stamp { format!("<{revision}>") } else { "<>".into() };
                map.insert(key.clone(), (text.into(), create, revision));
                txn = txn.put(Put { stamp: stamp.then_some(1), ..Put::new(key, "<>") });
                changed += 1;
            }
        }
        match self.mvcc.commit(txn, self.now) {
            Ok(commit) => {
                assert!(holds && commit.changed == changed);
                if changed > 0 {
                    assert_eq!(commit.revision, revision);
                    self.staged.push(map);
                }
            }
            Err(Error::Refused(refused)) => {
                assert!(!holds);
                let found = self.newest().get(&refused.key);
                assert_eq!(found.map_or(Revision(0), |found| found.2), refused.found);
                assert_eq!(found.map(|found| &found.0), refused.value.as_ref());
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn flush(&mut self) {
        if let Some(batch) = self.mvcc.seal() {
            if self.rng.chance(100) {
                self.mvcc.rollback(false);
                self.staged.clear();
                return;
            }
            assert_eq!(self.mvcc.revision(), Revision(self.states.len() as u64 - 1), "unsealed is not seen");
            self.seen.extend(self.mvcc.durable(batch.lsn));
            self.states.append(&mut self.staged);
        }
    }

    fn check(&mut self) {
        let newest = Revision(self.states.len() as u64 - 1);
        assert_eq!(self.mvcc.revision(), newest);
        let at = Revision(self.rng.below(newest.0 + 2));
        let range = [Range::all(), Range::prefix("/kind1/"), Range::key(key(4))][self.rng.below(3) as usize].clone();
        match self.mvcc.read(&range, Some(at), None, 3) {
            Ok(first) => {
                let mut items = first.items.clone();
                let mut more = first.more;
                while more {
                    let after = items.last().unwrap().0.clone();
                    let page = self.mvcc.read(&range, Some(at), Some(&after), 3).unwrap();
                    items.extend(page.items);
                    more = page.more;
                }
                let want = self.states[at.0 as usize].iter().filter(|(key, _)| range.contains(key));
                let want: Vec<_> = want.map(|(key, value)| (key.clone(), value.clone())).collect();
                let got: Vec<_> = items
                    .iter()
                    .map(|(key, found)| (key.clone(), (found.value.bytes(), found.create_revision, found.mod_revision)))
                    .collect();
                assert_eq!(got, want);
                assert_eq!(self.mvcc.count(&range, Some(at)).unwrap(), want.len());
            }
            Err(Error::Ahead(current)) => assert!(at > newest && current == newest),
            Err(Error::Compacted(floor)) => {
                assert!(at < floor && floor >= self.floor);
                self.floor = floor;
            }
            Err(other) => panic!("{other}"),
        }
        self.check_feed(at.min(newest));
    }

    /// The feed from `after`, in pieces, turns the state at `after` into the newest.
    fn check_feed(&mut self, after: Revision) {
        let (mut at, mut map) = (after, self.states[after.0 as usize].clone());
        while at < self.mvcc.revision() {
            let stretch = match self.mvcc.since(at, 1 + self.rng.below(5) as usize) {
                Ok(stretch) => stretch,
                Err(Error::Compacted(floor)) => {
                    assert!(at < floor);
                    return;
                }
                Err(other) => panic!("{other}"),
            };
            for event in &stretch.events {
                assert!(event.revision > at);
                let old = match &event.new {
                    Some(new) => {
                        map.insert(event.key.clone(), (new.value.bytes(), new.create_revision, new.mod_revision))
                    }
                    None => map.remove(&event.key),
                };
                assert_eq!(old.map(|old| old.0), event.old.as_ref().map(|old| old.value.bytes()));
            }
            assert_eq!(map, self.states[stretch.revision.0 as usize]);
            at = stretch.revision;
        }
    }
}

#[test]
fn random_histories_match_the_model() {
    for seed in 0..60 {
        let mut world = World::new(seed);
        for _ in 0..400 {
            world.now = world.now.plus_ms(world.rng.below(10));
            match world.rng.below(10) {
                0..=5 => world.commit(),
                6..=7 => world.flush(),
                8 => world.check(),
                _ if world.rng.chance(50) => {
                    let at = Revision(world.rng.below(world.states.len() as u64));
                    world.mvcc.compact(at).unwrap();
                    world.flush();
                }
                _ => {}
            }
        }
        world.flush();
        world.check();
        let revisions: Vec<u64> = world.seen.iter().map(|event| event.revision.0).collect();
        assert!(revisions.is_sorted(), "seed {seed}");
    }
}

fn publish(mvcc: &mut Mvcc) -> Vec<Event> {
    mvcc.seal().map_or_else(Vec::new, |batch| mvcc.durable(batch.lsn))
}

#[test]
fn leases_end_on_time_and_in_one_revision() {
    let mut mvcc = Mvcc::new(HistoryLimits::default());
    let lease = mvcc.grant(100, Time(0)).unwrap();
    let put = |key: &str| Put { lease: Some(lease), ..Put::new(key.to_string(), "v") };
    mvcc.commit(Txn::new().put(put("a")).put(put("b")).put(Put::new("c", "v")), Time(0)).unwrap();
    mvcc.commit(Txn::new().put(put("d")), Time(0)).unwrap();
    // A put without lease detaches.
    mvcc.commit(Txn::new().put(Put::new("d", "w")), Time(0)).unwrap();
    publish(&mut mvcc);
    assert!(mvcc.expire(Time(99_999)).is_empty());
    assert_eq!(mvcc.renew(lease, Time(50_000)), Ok(100));
    assert!(mvcc.expire(Time(149_999)).is_empty());
    // A batch that is taken back keeps renewals.
    mvcc.commit(Txn::new().put(Put::new("x", "v")), Time(60_000)).unwrap();
    assert_eq!(mvcc.renew(lease, Time(60_000)), Ok(100));
    mvcc.rollback(false);
    assert!(mvcc.expire(Time(159_999)).is_empty());
    let ended = mvcc.expire(Time(160_000));
    assert_eq!(ended.iter().map(|commit| commit.changed).collect::<Vec<_>>(), [2]);
    let events = publish(&mut mvcc);
    assert_eq!(
        events.iter().map(|event| (&event.key[..], event.revision)).collect::<Vec<_>>(),
        [(&b"a"[..], Revision(4)), (&b"b"[..], Revision(4))]
    );
    assert!(events.iter().all(|event| event.new.is_none()));
    assert_eq!(mvcc.renew(lease, Time(0)), Err(Error::NoSuchLease(lease)));
    let missing = Txn::new().put(Put { lease: Some(LeaseId(99)), ..Put::new("k", "v") });
    assert_eq!(mvcc.commit(missing, Time(0)), Err(Error::NoSuchLease(LeaseId(99))));
}

#[test]
fn ephemeral_changes_need_the_disk_once_per_reserve() {
    let mut mvcc = Mvcc::new(HistoryLimits::default());
    let beat = |n: u64| Txn::new().put(Put { ephemeral: true, ..Put::new("beat", n.to_string()) });
    let mut records = 0;
    for n in 0..15_000 {
        mvcc.commit(beat(n), Time(0)).unwrap();
        let batch = mvcc.seal().unwrap();
        records += u64::from(batch.record.is_some());
        assert_eq!(batch.lsn, Lsn(records));
        assert_eq!(mvcc.durable(batch.lsn).len(), 1);
    }
    assert_eq!((mvcc.revision(), records), (Revision(15_000), 2));
}

#[test]
fn invalid_transactions_change_nothing() {
    let mut mvcc = Mvcc::new(HistoryLimits::default());
    let cases = [
        (Txn::new().put(Put::new("", "v")), Invalid::EmptyKey),
        (Txn::new().put(Put::new("a", "v")).delete("a"), Invalid::KeyTwice),
        (
            Txn::new().put(Put { stamp: Some(2), ..Put::new("a", "v") }),
            Invalid::StampOutside { stamp: 2, value_bytes: 1 },
        ),
        (Txn::new().delete(vec![b'k'; 5000]), Invalid::KeyTooLong { bytes: 5000 }),
    ];
    for (txn, want) in cases {
        assert_eq!(mvcc.commit(txn, Time(0)), Err(Error::Invalid(want)));
    }
    assert!(mvcc.seal().is_none());
}

#[test]
fn attachments_travel_with_the_value() {
    let mut mvcc = Mvcc::new(HistoryLimits::default());
    let put = Put { attachment: Some(Arc::new(42u32)), ..Put::new("a", "v") };
    mvcc.commit(Txn::new().put(put), Time(0)).unwrap();
    mvcc.commit(Txn::new().delete("a"), Time(0)).unwrap();
    let events = publish(&mut mvcc);
    for version in [&events[0].new, &events[1].old] {
        let attachment = version.as_ref().unwrap().attachment.clone().unwrap();
        assert_eq!(attachment.downcast_ref::<u32>(), Some(&42));
    }
}

#[test]
fn history_leaves_by_time_count_and_bytes() {
    let limits = HistoryLimits { window_ms: 100, max_events: 10, max_bytes: 5_000 };
    let mut mvcc = Mvcc::new(limits);
    for n in 0..20u64 {
        mvcc.commit(Txn::new().put(Put::new(format!("k{n}"), "v")), Time(0)).unwrap();
        publish(&mut mvcc);
    }
    assert_eq!(mvcc.since(Revision(9), 100), Err(Error::Compacted(Revision(10))));
    assert_eq!(mvcc.since(Revision(10), 100).unwrap().events.len(), 10);
    mvcc.commit(Txn::new().put(Put::new("big", vec![0; 4_500])), Time(1)).unwrap();
    publish(&mut mvcc);
    assert!(mvcc.since(Revision(21), 100).unwrap().events.is_empty());
    assert_eq!(mvcc.since(Revision(18), 100), Err(Error::Compacted(Revision(19))));
    mvcc.trim(Time(102_000));
    assert_eq!(mvcc.since(Revision(20), 100), Err(Error::Compacted(Revision(21))));
}
