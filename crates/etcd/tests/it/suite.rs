//! What every backend promises, as functions over `&dyn Backend`; each is run over the embedded store and over etcd.
//!
//! A function uses keys below a prefix of its own, so that all of them can share one store.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base::{Revision, Rng};
use bytes::Bytes;
use store::{Backend, Embedded, Error, Event, Invalid, LeaseId, Op, Put, Range, Sink, Txn, Version};

use crate::member::Cluster;

/// What a sink was given, by batches, and the whole states after a loss.
#[derive(Clone, Default)]
pub struct Seen(pub Arc<Mutex<Vec<Event>>>, pub Arc<Mutex<Vec<Revision>>>);

impl Sink for Seen {
    fn on_events(&mut self, events: &[Event]) {
        self.0.lock().unwrap().extend(events.iter().cloned());
    }

    fn on_state(&mut self, revision: Revision, _: Vec<(Bytes, Arc<Version>)>) {
        self.1.lock().unwrap().push(revision);
    }
}

impl Seen {
    pub fn events(&self) -> Vec<Event> {
        self.0.lock().unwrap().clone()
    }

    /// The events of keys below `prefix`.
    pub fn below(&self, prefix: &str) -> Vec<Event> {
        self.events().into_iter().filter(|event| event.key.starts_with(prefix.as_bytes())).collect()
    }
}

/// Awaits what only time brings.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < end, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn key(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn put(backend: &dyn Backend, name: &str, value: &str) -> Revision {
    backend.txn(Txn::new().put(Put::new(key(name), key(value)))).await.unwrap().revision
}

async fn get(backend: &dyn Backend, name: &str) -> Option<Arc<Version>> {
    let page = backend.range(Range::key(key(name)), None, None, 0).await.unwrap();
    page.items.into_iter().next().map(|(_, version)| version)
}

fn names(items: &[(Bytes, Arc<Version>)]) -> Vec<String> {
    items.iter().map(|(key, _)| String::from_utf8_lossy(key).into_owned()).collect()
}

async fn conditions(backend: &dyn Backend) {
    let made = backend.txn(Txn::new().when("c/a", Revision::ZERO).put(Put::new("c/a", "1"))).await.unwrap();
    assert_eq!(made.changed, 1);
    let again = backend.txn(Txn::new().when("c/a", Revision::ZERO).put(Put::new("c/a", "2"))).await;
    let Err(Error::Refused(refused)) = again else { panic!("{again:?}") };
    assert_eq!((refused.found, refused.expected), (made.revision, Revision::ZERO));
    assert_eq!(refused.value.as_deref(), Some(&b"1"[..]));
    let next = backend.txn(Txn::new().when("c/a", made.revision).put(Put::new("c/a", "3"))).await.unwrap();
    assert!(next.revision > made.revision);
    // Of several compares the one that does not hold is told, and nothing of the transaction has happened.
    let txn = Txn::new().when("c/a", next.revision).when("c/b", next.revision).put(Put::new("c/c", "x")).delete("c/a");
    let Err(Error::Refused(refused)) = backend.txn(txn).await else { panic!() };
    assert_eq!((&refused.key[..], refused.found), (&b"c/b"[..], Revision::ZERO));
    assert!(get(backend, "c/c").await.is_none());
    let version = get(backend, "c/a").await.unwrap();
    assert_eq!((&version.value.bytes()[..], version.mod_revision), (&b"3"[..], next.revision));
    assert_eq!(version.create_revision, made.revision);
    // A condition without a change, and a change that changes nothing.
    assert_eq!(backend.txn(Txn::new().when("c/a", next.revision)).await.unwrap().changed, 0);
    assert_eq!(backend.txn(Txn::new().delete("c/none")).await.unwrap().changed, 0);
    assert_eq!(backend.txn(Txn::new().when("c/a", next.revision).delete("c/a")).await.unwrap().changed, 1);
    let back = put(backend, "c/a", "4").await;
    assert_eq!(get(backend, "c/a").await.unwrap().create_revision, back);
}

async fn refusals(backend: &dyn Backend) {
    let bad = [
        (Txn::new().put(Put::new("", "v")), Invalid::EmptyKey),
        (Txn::new().put(Put::new("r/a", "v")).delete("r/a"), Invalid::KeyTwice),
        (
            Txn::new().put(Put { stamp: Some(2), ..Put::new("r/a", "v") }),
            Invalid::StampOutside { stamp: 2, value_bytes: 1 },
        ),
    ];
    for (txn, why) in bad {
        assert_eq!(backend.txn(txn).await, Err(Error::Invalid(why)));
    }
    let lost = LeaseId(4_242_424);
    let held = Put { lease: Some(lost), ..Put::new("r/a", "v") };
    assert_eq!(backend.txn(Txn::new().put(held)).await, Err(Error::NoSuchLease(lost)));
    assert_eq!(backend.renew(lost).await, Err(Error::NoSuchLease(lost)));
    assert_eq!(backend.revoke(lost).await, Err(Error::NoSuchLease(lost)));
    assert_eq!(backend.grant(0).await, Err(Error::Invalid(Invalid::LeaseTooShort)));
    let ahead = Revision(backend.revision().0 + 1_000_000);
    assert!(matches!(backend.range(Range::all(), Some(ahead), None, 0).await, Err(Error::Ahead(_))));
    assert!(matches!(backend.since(ahead, 1).await, Err(Error::Ahead(_))));
}

async fn stamps(backend: &dyn Backend) {
    let txn = Txn::new().put(Put { stamp: Some(6), ..Put::new("s/a", "{\"v\":\"\"}") });
    let revision = backend.txn(txn).await.unwrap().revision;
    let wanted = format!("{{\"v\":\"{revision}\"}}");
    assert_eq!(get(backend, "s/a").await.unwrap().value, wanted);
    let events = backend.since(Revision(revision.0 - 1), 10).await.unwrap();
    let event = events.events.iter().find(|event| event.revision == revision).unwrap();
    assert_eq!(event.new.as_ref().unwrap().value, wanted);
    let refused = backend.txn(Txn::new().when("s/a", Revision::ZERO).delete("s/a")).await;
    let Err(Error::Refused(refused)) = refused else { panic!("{refused:?}") };
    assert_eq!(refused.value.unwrap(), wanted);
}

async fn pages(backend: &dyn Backend) {
    for at in 0..5 {
        put(backend, &format!("p/{at}"), "old").await;
    }
    let before = backend.catch_up_or_revision().await;
    put(backend, "p/1", "new").await;
    backend.txn(Txn::new().delete("p/2").put(Put::new("p/9", "new"))).await.unwrap();
    let all = Range::prefix("p/");
    let page = backend.range(all.clone(), Some(before), None, 2).await.unwrap();
    assert_eq!((names(&page.items), page.more, page.revision), (vec!["p/0".into(), "p/1".into()], true, before));
    assert_eq!(&page.items[1].1.value.bytes()[..], b"old");
    let page = backend.range(all.clone(), Some(before), Some(key("p/1")), 9).await.unwrap();
    assert_eq!((names(&page.items), page.more), (vec!["p/2".into(), "p/3".into(), "p/4".into()], false));
    let page = backend.range(all.clone(), None, None, 0).await.unwrap();
    assert_eq!(names(&page.items), ["p/0", "p/1", "p/3", "p/4", "p/9"]);
    assert_eq!(backend.count(all.clone(), Some(before)).await, Ok(5));
    assert_eq!(backend.count(Range { start: key("p/1"), end: Some(key("p/4")) }, None).await, Ok(2));
    let page = backend.range(all, None, Some(key("p/9")), 3).await.unwrap();
    assert!(page.items.is_empty() && !page.more);
    let start = backend.range(Range::key("p/4"), None, Some(key("a")), 0).await.unwrap();
    assert_eq!(names(&start.items), ["p/4"]);
}

/// The newest revision, on backends that others write to as well as on those without.
trait Newest {
    async fn catch_up_or_revision(&self) -> Revision;
}

impl Newest for dyn Backend + '_ {
    async fn catch_up_or_revision(&self) -> Revision {
        match self.catch_up() {
            Some(ticket) => ticket.await.unwrap(),
            None => self.revision(),
        }
    }
}

async fn feed(backend: &dyn Backend) {
    let from = backend.catch_up_or_revision().await;
    put(backend, "f/a", "1").await;
    let seen = Seen::default();
    let told = backend.follow(from, Box::new(seen.clone())).await.unwrap();
    // The past first.
    assert_eq!(seen.below("f/").len(), 1);
    assert!(told >= seen.below("f/")[0].revision);
    // What was answered has been fed; a commit is one revision, in one piece.
    let txn = Txn::new().put(Put::new("f/a", "2")).put(Put::new("f/b", "1")).delete("f/none");
    let many = backend.txn(txn).await.unwrap();
    assert_eq!(many.changed, 2);
    let events = seen.below("f/");
    assert_eq!(events[1..].iter().map(|event| event.revision).collect::<Vec<_>>(), [many.revision; 2]);
    assert_eq!(&events[1].old.as_ref().unwrap().value.bytes()[..], b"1");
    let gone = backend.txn(Txn::new().delete("f/b")).await.unwrap().revision;
    let last = seen.below("f/").pop().unwrap();
    assert_eq!((last.revision, last.new), (gone, None));
    assert_eq!(&last.old.unwrap().value.bytes()[..], b"1");
    // Another sink takes its place and goes on where it wants to.
    let second = Seen::default();
    backend.follow(many.revision, Box::new(second.clone())).await.unwrap();
    put(backend, "f/c", "1").await;
    let revisions = |seen: &Seen| seen.below("f/").iter().map(|event| event.revision).collect::<Vec<_>>();
    assert_eq!(revisions(&second).len(), 2);
    assert_eq!(revisions(&second)[0], gone);
    assert_eq!(revisions(&seen).len(), 4);
    // The same by asking, in pieces of whole revisions.
    let (mut at, mut all) = (from, Vec::new());
    loop {
        let part = backend.since(at, 1).await.unwrap();
        if part.events.is_empty() {
            break;
        }
        at = part.revision;
        all.extend(part.events.into_iter().filter(|event| event.key.starts_with(b"f/")));
    }
    assert_eq!(all.len(), 5);
    assert!(all.windows(2).all(|pair| pair[0].revision <= pair[1].revision));
}

async fn leases(backend: &dyn Backend) {
    let seen = Seen::default();
    backend.follow(backend.catch_up_or_revision().await, Box::new(seen.clone())).await.unwrap();
    let lease = backend.grant(1000).await.unwrap();
    let held = |name: &'static str, id| Put { lease: Some(id), ..Put::new(name, "v") };
    let granted = Instant::now();
    backend.txn(Txn::new().put(held("l/a", lease)).put(held("l/b", lease)).put(held("l/c", lease))).await.unwrap();
    assert_eq!(get(backend, "l/a").await.unwrap().lease, Some(lease));
    // A put without lease detaches its key.
    put(backend, "l/c", "stays").await;
    assert!(backend.renew(lease).await.unwrap() >= 1000);
    until("the end of a lease", async || seen.below("l/").iter().find(|event| event.new.is_none()).cloned()).await;
    assert!(granted.elapsed() >= Duration::from_millis(1000), "never early");
    let gone: Vec<Event> = seen.below("l/").into_iter().filter(|event| event.new.is_none()).collect();
    assert_eq!(gone.len(), 2);
    assert_eq!(gone[0].revision, gone[1].revision, "all keys of a lease go at one revision");
    assert!(get(backend, "l/a").await.is_none());
    assert_eq!(&get(backend, "l/c").await.unwrap().value.bytes()[..], b"stays");
    let second = backend.grant(60_000).await.unwrap();
    assert_ne!(second, lease);
    backend.txn(Txn::new().put(held("l/a", second))).await.unwrap();
    assert_eq!(backend.revoke(second).await.unwrap().changed, 1);
    assert!(get(backend, "l/a").await.is_none());
}

async fn compaction(backend: &dyn Backend) {
    let first = put(backend, "h/a", "1").await;
    let second = put(backend, "h/a", "2").await;
    backend.compact(second).await.unwrap();
    backend.compact(first).await.unwrap();
    assert!(matches!(backend.since(first, 9).await, Err(Error::Compacted(_))));
    assert!(matches!(backend.range(Range::prefix("h/"), Some(first), None, 0).await, Err(Error::Compacted(_))));
    let follow = backend.follow(first, Box::new(Seen::default())).await;
    assert!(matches!(follow, Err(Error::Compacted(_))), "{follow:?}");
    let page = backend.range(Range::prefix("h/"), Some(second), None, 0).await.unwrap();
    assert_eq!(&page.items[0].1.value.bytes()[..], b"2");
    let third = put(backend, "h/a", "3").await;
    let events = backend.since(second, 9).await.unwrap();
    assert_eq!(events.events.iter().filter(|event| event.key == "h/a").count(), 1);
    assert!(events.revision >= third);
}

/// What a key is worth: value, creation, modification.
type Model = BTreeMap<Bytes, (Bytes, Revision, Revision)>;

fn apply(model: &mut Model, ops: &[Op], at: Revision) -> usize {
    let mut changed = 0;
    for op in ops {
        match op {
            Op::Put(put) => {
                let created = model.get(&put.key).map_or(at, |(_, created, _)| *created);
                model.insert(put.key.clone(), (put.value.clone(), created, at));
                changed += 1;
            }
            Op::Delete { key } => changed += usize::from(model.remove(key).is_some()),
        }
    }
    changed
}

/// A random history of transactions: answers, states of the past, and the feed are what a small model says.
async fn history(backend: &dyn Backend, seed: u64, steps: usize) {
    let mut rng = Rng::new(seed);
    let mut model = Model::new();
    let mut past: Vec<(Revision, Model)> = Vec::new();
    let seen = Seen::default();
    backend.follow(backend.catch_up_or_revision().await, Box::new(seen.clone())).await.unwrap();
    let mut newest = Revision::ZERO;
    for step in 0..steps {
        let pick = |rng: &mut Rng| key(&format!("m/{}", rng.below(12)));
        let mut txn = Txn::new();
        for _ in 0..rng.below(3) {
            let name = pick(&mut rng);
            let found = model.get(&name).map_or(Revision::ZERO, |(_, _, modified)| *modified);
            let wrong = rng.below(4) == 0;
            txn = txn.when(name, if wrong { Revision(found.0 + 1 + rng.below(2)) } else { found });
        }
        let mut taken = std::collections::BTreeSet::new();
        for _ in 0..rng.below(5) {
            let name = pick(&mut rng);
            if taken.insert(name.clone()) {
                let value = format!("{step}.{}", rng.below(1000));
                txn = if rng.below(3) == 0 { txn.delete(name) } else { txn.put(Put::new(name, value)) };
            }
        }
        let holds = txn.compares.iter().find(|compare| {
            model.get(&compare.key).map_or(Revision::ZERO, |(_, _, modified)| *modified) != compare.mod_revision
        });
        let ops = txn.ops.clone();
        match (backend.txn(txn.clone()).await, holds) {
            (Ok(commit), None) => {
                let changed = apply(&mut model, &ops, commit.revision);
                assert_eq!(commit.changed, changed, "step {step}");
                if changed > 0 {
                    assert!(commit.revision > newest, "step {step}");
                    newest = commit.revision;
                    past.push((newest, model.clone()));
                }
            }
            (Err(Error::Refused(refused)), Some(compare)) => {
                assert_eq!((&refused.key, refused.expected), (&compare.key, compare.mod_revision), "step {step}");
            }
            (other, _) => panic!("step {step}: {other:?}"),
        }
        if rng.below(5) == 0
            && let Some((at, then)) = past.get(rng.below(past.len().max(1) as u64) as usize)
        {
            let page = backend.range(Range::prefix("m/"), Some(*at), None, 0).await.unwrap();
            let found: Model = page
                .items
                .iter()
                .map(|(key, found)| (key.clone(), (found.value.bytes(), found.create_revision, found.mod_revision)))
                .collect();
            assert_eq!(found, *then, "step {step}, at {at}");
        }
    }
    // What the sink was given makes the same states, one after the other.
    let mut replayed = Model::new();
    let mut states = past.iter();
    let events = seen.below("m/");
    for commit in events.chunk_by(|a, b| a.revision == b.revision) {
        let ops: Vec<Op> = commit
            .iter()
            .map(|event| match &event.new {
                Some(new) => Op::Put(Put::new(event.key.clone(), new.value.bytes())),
                None => Op::Delete { key: event.key.clone() },
            })
            .collect();
        apply(&mut replayed, &ops, commit[0].revision);
        let (at, then) = states.next().unwrap();
        assert_eq!((commit[0].revision, &replayed), (*at, then));
    }
    assert!(states.next().is_none());
}

/// All of it.
pub async fn run(backend: &dyn Backend) {
    conditions(backend).await;
    refusals(backend).await;
    stamps(backend).await;
    pages(backend).await;
    feed(backend).await;
    history(backend, 11, 150).await;
    leases(backend).await;
    compaction(backend).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_store_keeps_every_promise() {
    let dir = tempfile::tempdir().unwrap();
    let (backend, _) = Embedded::open(dir.path(), store::Options::default()).unwrap();
    run(&backend).await;
    for seed in 0..20 {
        history_in_a_new_store(seed).await;
    }
}

async fn history_in_a_new_store(seed: u64) {
    let dir = tempfile::tempdir().unwrap();
    let (backend, _) = Embedded::open(dir.path(), store::Options::default()).unwrap();
    history(&backend, seed, 300).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_keeps_every_promise() {
    let cluster = Cluster::start(1);
    let backend = cluster.open("/gantry/").await;
    run(&backend).await;
    for seed in 0..3 {
        history(&cluster.open(&format!("/seed-{seed}")).await, seed, 200).await;
    }
}
