//! Faults of members and of the way to them, under load: nothing acknowledged is lost, and the feed has no gap.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base::Revision;
use bytes::Bytes;
use etcd::{Endpoint, Etcd, Options};
use store::{Backend, Error, Put, Range, Txn};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::member::Cluster;
use crate::suite::{Seen, until};

/// A way to a member that can be cut: closed, or silent.
struct Way {
    port: u16,
    state: watch::Sender<Passage>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Passage {
    Open,
    /// What is there stays and nothing passes.
    Silent,
    Closed,
}

impl Way {
    async fn to(port: u16) -> Way {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let (state, seen) = watch::channel(Passage::Open);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let mut seen = seen.clone();
                if *seen.borrow() == Passage::Closed {
                    continue;
                }
                let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
                let (near, far) = (near.into_split(), far.into_split());
                let there = tokio::spawn(pass(near.0, far.1, seen.clone()));
                let back = tokio::spawn(pass(far.0, near.1, seen.clone()));
                tokio::spawn(async move {
                    let _ = seen.wait_for(|state| *state == Passage::Closed).await;
                    there.abort();
                    back.abort();
                });
            }
        });
        Way { port: own, state }
    }

    fn set(&self, passage: Passage) {
        self.state.send_replace(passage);
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut seen: watch::Receiver<Passage>,
) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        if seen.wait_for(|state| *state == Passage::Open).await.is_err() || to.write_all(&bytes[..count]).await.is_err()
        {
            return;
        }
    }
}

/// Writers that keep what was acknowledged, each with keys of its own.
struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    writers: Vec<tokio::task::JoinHandle<Written>>,
}

/// What one writer knows of its key: the last acknowledged value, and those of unknown fate after it.
#[derive(Default)]
struct Written {
    key: String,
    acknowledged: BTreeMap<Revision, u64>,
    unknown: Vec<u64>,
    refused: usize,
}

impl Load {
    fn start(backend: &Arc<Etcd>, writers: usize) -> Load {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let writers = (0..writers)
            .map(|at| {
                let (backend, stop, count) = (backend.clone(), stop.clone(), acknowledged.clone());
                tokio::spawn(async move {
                    let mut written = Written { key: format!("/load/{at}"), ..Written::default() };
                    let (mut number, mut at) = (0u64, Some(Revision::ZERO));
                    while !stop.load(Ordering::Relaxed) {
                        number += 1;
                        // After an unknown fate the writer looks before it goes on, as every client must.
                        let expect = match at {
                            Some(at) => at,
                            None => {
                                let page = backend.range(Range::key(written.key.clone()), None, None, 0).await;
                                let Ok(page) = page else { continue };
                                page.items.first().map_or(Revision::ZERO, |(_, found)| found.mod_revision)
                            }
                        };
                        let put = Put::new(written.key.clone(), number.to_string());
                        match backend.txn(Txn::new().when(written.key.clone(), expect).put(put)).await {
                            Ok(commit) => {
                                written.acknowledged.insert(commit.revision, number);
                                count.fetch_add(1, Ordering::Relaxed);
                                at = Some(commit.revision);
                            }
                            Err(Error::Unknown(_) | Error::Busy) => {
                                written.unknown.push(number);
                                at = None;
                            }
                            Err(Error::Refused(_)) => {
                                written.refused += 1;
                                at = None;
                            }
                            Err(error) => panic!("{error}"),
                        }
                    }
                    written
                })
            })
            .collect();
        Load { stop, acknowledged, writers }
    }

    /// Waits until so many more writes were acknowledged.
    async fn go_on(&self, more: usize) -> Duration {
        let (from, began) = (self.acknowledged.load(Ordering::Relaxed), Instant::now());
        until("writes", async || (self.acknowledged.load(Ordering::Relaxed) >= from + more).then_some(())).await;
        began.elapsed()
    }

    async fn end(self) -> Vec<Written> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for writer in self.writers {
            all.push(writer.await.unwrap());
        }
        all
    }
}

/// Every acknowledged write stands in the feed of every follower, once and in order; the feed makes the state that etcd
/// has.
async fn judge(written: &[Written], backend: &Etcd, followers: &[Seen]) {
    backend.catch_up().unwrap().await.unwrap();
    let page = backend.range(Range::prefix("/load/"), None, None, 0).await.unwrap();
    for seen in followers {
        until("the feed's end", async || {
            let last = page.items.iter().map(|(_, version)| version.mod_revision).max()?;
            seen.events().last().filter(|event| event.revision >= last).map(|_| ())
        })
        .await;
        let events = seen.below("/load/");
        assert!(events.windows(2).all(|pair| pair[0].revision < pair[1].revision), "in order, none twice");
        assert!(seen.1.lock().unwrap().is_empty(), "the history was never lost");
        let mut state: BTreeMap<Bytes, Bytes> = BTreeMap::new();
        for event in &events {
            // The chain of old and new values shows that nothing is missing in between.
            let old = event.old.as_ref().map(|old| old.value.bytes());
            assert_eq!(old, state.get(&event.key).cloned(), "at revision {}", event.revision);
            state.insert(event.key.clone(), event.new.as_ref().unwrap().value.bytes());
        }
        let stored: BTreeMap<Bytes, Bytes> =
            page.items.iter().map(|(key, version)| (key.clone(), version.value.bytes())).collect();
        assert_eq!(state, stored);
        for writer in written {
            for (revision, number) in &writer.acknowledged {
                let event = events.iter().find(|event| event.revision == *revision);
                let event = event.unwrap_or_else(|| panic!("{} of {} is lost", number, writer.key));
                assert_eq!(event.new.as_ref().unwrap().value, number.to_string());
            }
        }
    }
    let sum = |count: fn(&Written) -> usize| written.iter().map(count).sum::<usize>();
    eprintln!(
        "{} acknowledged, {} of unknown fate, {} refused; none lost",
        sum(|writer| writer.acknowledged.len()),
        sum(|writer| writer.unknown.len()),
        sum(|writer| writer.refused)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_are_killed_or_paused_lose_nothing() {
    let mut cluster = Cluster::start(3);
    let backend = Arc::new(cluster.open("/gantry/").await);
    let other = cluster.open("/gantry/").await;
    let (seen, also) = (Seen::default(), Seen::default());
    backend.follow(backend.revision(), Box::new(seen.clone())).await.unwrap();
    other.follow(other.revision(), Box::new(also.clone())).await.unwrap();
    let load = Load::start(&backend, 4);
    load.go_on(100).await;
    // Each member has its turn, so the leader and those we are connected to are among them.
    for at in 0..3 {
        cluster.members[at].kill();
        let pause = load.go_on(60).await;
        eprintln!("member {at} killed: 60 more writes after {} ms", pause.as_millis());
        cluster.members[at].restart();
        load.go_on(60).await;
    }
    for at in 0..3 {
        cluster.members[at].pause();
        let pause = load.go_on(60).await;
        eprintln!("member {at} paused: 60 more writes after {} ms", pause.as_millis());
        cluster.members[at].go_on();
        load.go_on(60).await;
    }
    judge(&load.end().await, &backend, &[seen, also]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_member_is_killed_or_paused_and_nothing_is_lost() {
    let mut cluster = Cluster::start(1);
    let backend = Arc::new(cluster.open("/gantry/").await);
    let seen = Seen::default();
    backend.follow(backend.revision(), Box::new(seen.clone())).await.unwrap();
    let load = Load::start(&backend, 4);
    load.go_on(100).await;
    for _ in 0..3 {
        cluster.members[0].kill();
        cluster.members[0].restart();
        let pause = load.go_on(60).await;
        eprintln!("killed and begun anew: 60 more writes after {} ms", pause.as_millis());
    }
    cluster.members[0].pause();
    // Longer than anybody waits for an answer.
    let silent = backend.txn(Txn::new().put(Put::new("/silent", "v"))).await;
    assert!(matches!(silent, Err(Error::Unknown(_))), "{silent:?}");
    cluster.members[0].go_on();
    load.go_on(60).await;
    judge(&load.end().await, &backend, &[seen]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ways_that_are_cut_or_silent_lose_nothing() {
    let cluster = Cluster::start(3);
    drop(cluster.open("/gantry/").await);
    let mut ways = Vec::new();
    for member in &cluster.members {
        ways.push(Way::to(member.client_port).await);
    }
    let endpoint = |way: &Way| Endpoint::parse(&format!("http://127.0.0.1:{}", way.port)).unwrap();
    let options = Options::new(ways.iter().map(endpoint).collect());
    let backend = Arc::new(Etcd::open(&options).await.unwrap());
    let seen = Seen::default();
    backend.follow(backend.revision(), Box::new(seen.clone())).await.unwrap();
    let load = Load::start(&backend, 4);
    load.go_on(50).await;
    for round in 0..2 {
        for way in &ways {
            way.set(if round == 0 { Passage::Closed } else { Passage::Silent });
            let pause = load.go_on(60).await;
            eprintln!("round {round}: 60 more writes after {} ms", pause.as_millis());
            way.set(Passage::Open);
        }
    }
    // Everything away for a while, and back.
    ways.iter().for_each(|way| way.set(Passage::Closed));
    let gone = backend.txn(Txn::new().put(Put::new("/gone", "v"))).await;
    assert!(matches!(gone, Err(Error::Unknown(_))), "{gone:?}");
    ways.iter().for_each(|way| way.set(Passage::Open));
    load.go_on(60).await;
    judge(&load.end().await, &backend, &[seen]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_was_away_for_too_long_gets_the_whole_state() {
    let cluster = Cluster::start(1);
    let near = cluster.open("/gantry/").await;
    let way = Way::to(cluster.members[0].client_port).await;
    let endpoint = Endpoint::parse(&format!("http://127.0.0.1:{}", way.port)).unwrap();
    let far = Etcd::open(&Options::new(vec![endpoint])).await.unwrap();
    let seen = Seen::default();
    far.follow(far.revision(), Box::new(seen.clone())).await.unwrap();
    far.txn(Txn::new().put(Put::new("/a", "1"))).await.unwrap();
    way.set(Passage::Closed);
    near.txn(Txn::new().delete("/a")).await.unwrap();
    let at = near.txn(Txn::new().put(Put::new("/b", "1"))).await.unwrap().revision;
    near.compact(at).await.unwrap();
    way.set(Passage::Open);
    let told = until("the whole state", async || seen.1.lock().unwrap().first().copied()).await;
    assert!(told >= at);
    // From there on by events again.
    let next = far.txn(Txn::new().put(Put::new("/c", "1"))).await.unwrap().revision;
    assert_eq!(seen.events().last().unwrap().revision, next);
}
