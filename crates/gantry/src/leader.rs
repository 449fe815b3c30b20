//! Which of several servers leads: runs the controllers and the scheduler, and all else that must happen once.
//!
//! Two keys of the store say it. `/leader` is put by who takes the lead, and its modification revision is the epoch: all
//! that the leader's parts write carries the condition that it still is ([`server::storage::fenced`]), so the store refuses
//! what a leader of the past still sends, however late it wakes up. `/leader-beat` is put by the leader every
//! [`BEAT`]. A server that has seen no change of the two for [`PATIENCE`], on its own clock, takes the lead by putting
//! both on the condition that both are what it saw; so nobody's clock is compared with another's, and of several only one
//! succeeds. (A lease of etcd would do the same in two to three seconds: it lasts at least that long.)
//!
//! A server with a store of its own leads itself, by the same keys, at once and without beats.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::{Clock, Revision, Time};
use client::{Answer, Api, Reply, Request};
use drive::{Shell, Task};
use server::storage::{Side, Storage, fenced};
use store::{Compare, Put, Txn};
use tokio::sync::watch;

use crate::parts::Tokio;

const LEADER: &[u8] = b"/leader";
const BEAT_KEY: &[u8] = b"/leader-beat";
/// How often the leader says that it lives.
pub const BEAT: Duration = Duration::from_millis(80);
/// After this long without a sign the leader counts as dead.
pub const PATIENCE: Duration = Duration::from_millis(320);
/// How long a leader that stops tries to say so.
const RESIGN_TIMEOUT: Duration = Duration::from_secs(1);
/// How much history a shared backend keeps for watches that resume, and how often older history is dropped.
const HISTORY: Duration = Duration::from_secs(300);
const COMPACT_EVERY: Duration = Duration::from_secs(60);

/// A time of leading. Its parts end with it.
#[derive(Clone)]
pub struct Reign {
    epoch: Revision,
    ended: watch::Receiver<bool>,
}

impl Reign {
    fn fence(&self) -> Compare {
        Compare { key: LEADER.into(), mod_revision: self.epoch }
    }

    /// The same door, through which nothing is written after the reign.
    pub fn door(&self, api: Arc<dyn Api>) -> Arc<dyn Api> {
        Arc::new(Fenced { api, fence: self.fence() })
    }

    /// Runs a task until it or the reign ends.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut ended = self.ended.clone();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                // Also when whoever would tell is gone.
                _ = ended.wait_for(|ended| *ended) => {}
                () = task => {}
            }
        });
    }

    /// Time and tasks for parts that end with the reign.
    pub fn shell(&self) -> Arc<dyn Shell> {
        Arc::new(self.clone())
    }
}

impl Clock for Reign {
    fn now(&self) -> Time {
        Tokio.now()
    }
}

impl Shell for Reign {
    fn spawn(&self, task: Task) {
        Reign::spawn(self, task);
    }

    fn sleep(&self, ms: u64) -> Task {
        Tokio.sleep(ms)
    }
}

struct Fenced {
    api: Arc<dyn Api>,
    fence: Compare,
}

impl Api for Fenced {
    fn call(&self, request: Request) -> Reply<'_, Answer> {
        Box::pin(fenced(self.fence.clone(), self.api.call(request)))
    }
}

/// Where this server stands: what it saw of the keys, and since when they are so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    leader: Revision,
    beat: Revision,
    since: Instant,
}

impl Seen {
    /// Takes in what the keys are now. What has not changed is as old as before.
    fn of(side: &Side, before: Option<Seen>, now: Instant) -> Seen {
        let revision = |key: &[u8]| side.get(key).map_or(Revision::ZERO, |version| version.mod_revision);
        let (leader, beat) = (revision(LEADER), revision(BEAT_KEY));
        match before {
            Some(before) if (before.leader, before.beat) == (leader, beat) => before,
            _ => Seen { leader, beat, since: now },
        }
    }

    /// How long until the lead may be taken.
    fn wait(&self, patience: Duration, now: Instant) -> Duration {
        if self.leader == Revision::ZERO {
            return Duration::ZERO;
        }
        patience.saturating_sub(now.saturating_duration_since(self.since))
    }
}

/// A server that leads whenever nobody else does.
pub struct Candidate {
    pub storage: Storage,
    /// How others see who leads; any text that tells the servers apart.
    pub name: String,
    /// Others may lead, too.
    pub shared: bool,
}

impl Candidate {
    /// Stands for election until `stop` says so. `begin` starts the parts of each reign.
    pub async fn run(self, mut stop: watch::Receiver<bool>, begin: impl Fn(&Reign)) {
        let (mut side, stop) = (self.storage.side(), &mut stop);
        let mut seen: Option<Seen> = None;
        let patience = if self.shared { PATIENCE } else { Duration::ZERO };
        loop {
            let now = Seen::of(&side.borrow_and_update(), seen, Instant::now());
            seen = Some(now);
            let wait = now.wait(patience, Instant::now());
            if !wait.is_zero() {
                tokio::select! {
                    biased;
                    () = stopped(stop) => return,
                    _ = side.changed() => {}
                    () = tokio::time::sleep(wait) => {}
                }
                continue;
            }
            match self.take(now).await {
                Some(epoch) => {
                    self.reign(epoch, &mut side, stop, &begin).await;
                    if *stop.borrow() {
                        return;
                    }
                    seen = None;
                }
                // Whoever was faster, or the backend, is given the time again.
                None => {
                    seen = Some(Seen { since: Instant::now(), ..now });
                    tokio::select! {
                        () = stopped(stop) => return,
                        () = tokio::time::sleep(BEAT) => {}
                    }
                }
            }
        }
    }

    /// Tries to become the leader after the one that was seen.
    async fn take(&self, seen: Seen) -> Option<Revision> {
        let txn = Txn::new()
            .when(LEADER, seen.leader)
            .when(BEAT_KEY, seen.beat)
            .put(Put::new(LEADER, self.name.clone().into_bytes()))
            .put(Put::new(BEAT_KEY, ""));
        match self.storage.backend().txn(txn).await {
            Ok(commit) => {
                tracing::info!("{} leads from revision {} on", self.name, commit.revision);
                Some(commit.revision)
            }
            Err(store::Error::Refused(_)) => None,
            Err(error) => {
                tracing::warn!("{} cannot take the lead yet: {error}", self.name);
                None
            }
        }
    }

    async fn reign(
        &self,
        epoch: Revision,
        side: &mut watch::Receiver<Side>,
        stop: &mut watch::Receiver<bool>,
        begin: &impl Fn(&Reign),
    ) {
        let (end, ended) = watch::channel(false);
        let reign = Reign { epoch, ended };
        begin(&reign);
        let (lost, mut heard) = tokio::sync::mpsc::channel::<()>(1);
        if self.shared {
            reign.spawn(beat(self.storage.clone(), reign.fence(), lost.clone()));
            reign.spawn(compact(self.storage.clone()));
        }
        let leader = |side: &Side| side.get(LEADER).map_or(Revision::ZERO, |version| version.mod_revision);
        // What is shown may lag behind the answer; from when it shows this epoch on, anything else ends it.
        let mut shown = false;
        loop {
            let at = leader(&side.borrow_and_update());
            if at > epoch || shown && at != epoch {
                break;
            }
            shown |= at == epoch;
            tokio::select! {
                biased;
                () = stopped(stop) => {
                    end.send_replace(true);
                    self.resign(epoch).await;
                    return;
                }
                _ = heard.recv() => break,
                _ = side.changed() => {}
            }
        }
        end.send_replace(true);
        drop(lost);
        tracing::warn!("{} leads no more", self.name);
    }

    /// Lets the others go on at once.
    async fn resign(&self, epoch: Revision) {
        let txn = Txn::new().when(LEADER, epoch).delete(LEADER);
        // If it fails, the others wait a little longer.
        let _ = tokio::time::timeout(RESIGN_TIMEOUT, self.storage.backend().txn(txn)).await;
    }
}

/// Until somebody says stop, or is gone.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Says that the leader lives, until the store says that it leads no more.
async fn beat(storage: Storage, fence: Compare, lost: tokio::sync::mpsc::Sender<()>) {
    let mut ticks = tokio::time::interval(BEAT);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let mut txn = Txn::new().put(Put::new(BEAT_KEY, ""));
        txn.compares.push(fence.clone());
        match storage.backend().txn(txn).await {
            Ok(_) => {}
            Err(store::Error::Refused(_)) => {
                // The receiver lives as long as the reign.
                let _ = lost.send(()).await;
                return;
            }
            Err(error) => tracing::warn!("a sign of life got lost: {error}"),
        }
    }
}

/// Drops history that nobody resumes from any more.
async fn compact(storage: Storage) {
    let mut marks: VecDeque<(Instant, Revision)> = VecDeque::new();
    loop {
        marks.push_back((Instant::now(), storage.backend().revision()));
        let mut at = None;
        while marks.front().is_some_and(|(since, _)| since.elapsed() >= HISTORY) {
            at = marks.pop_front().map(|(_, revision)| revision);
        }
        if let Some(at) = at
            && let Err(error) = storage.backend().compact(at).await
        {
            tracing::warn!("the history up to revision {at} is not dropped yet: {error}");
        }
        tokio::time::sleep(COMPACT_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use store::{Backend, Embedded};

    #[test]
    fn patience_begins_anew_with_every_sign() {
        let version = |revision: u64| store::Version {
            value: "".into(),
            create_revision: Revision(1),
            mod_revision: Revision(revision),
            lease: None,
            ephemeral: false,
            attachment: None,
        };
        let side = |leader: u64, beat: u64| -> Side {
            let all = [(LEADER, leader), (BEAT_KEY, beat)].into_iter().filter(|(_, revision)| *revision > 0);
            Arc::new(all.map(|(key, at)| (key.into(), Arc::new(version(at)))).collect::<BTreeMap<_, _>>())
        };
        let begun = Instant::now();
        let later = |ms| begun + Duration::from_millis(ms);
        let first = Seen::of(&side(5, 6), None, begun);
        assert_eq!(first.wait(PATIENCE, later(100)), PATIENCE - Duration::from_millis(100));
        let same = Seen::of(&side(5, 6), Some(first), later(200));
        assert_eq!(same, first);
        assert!(same.wait(PATIENCE, later(400)).is_zero());
        let beaten = Seen::of(&side(5, 7), Some(same), later(300));
        assert_eq!(beaten.wait(PATIENCE, later(300)), PATIENCE);
        // Who resigned is not waited for.
        assert!(Seen::of(&side(0, 7), Some(beaten), later(301)).wait(PATIENCE, later(301)).is_zero());
    }

    async fn storage(backend: Arc<dyn Backend>) -> Storage {
        let keys = server::Keys::passing().unwrap();
        let options = server::Options {
            dir: std::path::PathBuf::new(),
            advertise: "127.0.0.1:6443".to_owned(),
            service_cidr: "10.96.0.0/16".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            node_ports: (30_000, 32_767),
            audit_log: None,
            token_config_maps: Vec::new(),
        };
        let server = server::Server::with(options, keys, backend, Arc::new(server::SystemClock)).await.unwrap();
        server.storage.clone()
    }

    /// A backend that stops answering: a leader that is paused, or cut off.
    struct Pausing {
        inner: Arc<Embedded>,
        paused: watch::Sender<bool>,
    }

    impl Backend for Pausing {
        fn submit(&self, txn: Txn, done: store::Done<store::Commit>) {
            let (inner, mut paused) = (self.inner.clone(), self.paused.subscribe());
            tokio::spawn(async move {
                let _ = paused.wait_for(|paused| !*paused).await;
                inner.submit(txn, done);
            });
        }

        fn range(
            &self,
            range: store::Range,
            at: Option<Revision>,
            after: Option<bytes::Bytes>,
            limit: usize,
        ) -> store::Ticket<store::Page> {
            self.inner.range(range, at, after, limit)
        }

        fn count(&self, range: store::Range, at: Option<Revision>) -> store::Ticket<usize> {
            self.inner.count(range, at)
        }

        fn since(&self, after: Revision, max: usize) -> store::Ticket<store::Events> {
            self.inner.since(after, max)
        }

        fn follow(&self, after: Revision, mut sink: Box<dyn store::Sink>) -> store::Ticket<Revision> {
            // The embedded store has one sink and here are two servers, so each looks by itself.
            let inner = self.inner.clone();
            tokio::spawn(async move {
                let mut at = after;
                loop {
                    let Ok(events) = inner.since(at, 1000).await else { return };
                    at = events.revision;
                    if !events.events.is_empty() {
                        sink.on_events(&events.events);
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            });
            store::Ticket::ready(Ok(after))
        }

        fn grant(&self, ttl_ms: u64) -> store::Ticket<store::LeaseId> {
            self.inner.grant(ttl_ms)
        }

        fn renew(&self, id: store::LeaseId) -> store::Ticket<u64> {
            self.inner.renew(id)
        }

        fn revoke(&self, id: store::LeaseId) -> store::Ticket<store::Commit> {
            self.inner.revoke(id)
        }

        fn compact(&self, at: Revision) -> store::Ticket<()> {
            self.inner.compact(at)
        }

        fn revision(&self) -> Revision {
            self.inner.revision()
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_paused_leader_is_replaced_and_its_late_write_refused() {
        let dir = tempfile::tempdir().unwrap();
        let inner = Arc::new(Embedded::open(dir.path(), store::Options::default()).unwrap().0);
        let mut servers = Vec::new();
        for name in ["one", "two"] {
            let paused = watch::Sender::new(false);
            let backend = Arc::new(Pausing { inner: inner.clone(), paused: paused.clone() });
            let storage = storage(backend).await;
            let (stop, stopping) = watch::channel(false);
            let (told, reigns) = tokio::sync::mpsc::unbounded_channel::<Reign>();
            let candidate = Candidate { storage: storage.clone(), name: name.to_owned(), shared: true };
            tokio::spawn(candidate.run(stopping, move |reign| told.send(reign.clone()).unwrap()));
            servers.push((storage, paused, stop, reigns));
        }
        // Whoever is first.
        let (first, one, two) = {
            let (left, right) = servers.split_at_mut(1);
            let (left, right) = (&mut left[0], &mut right[0]);
            tokio::select! {
                reign = left.3.recv() => (reign.unwrap(), left, right),
                reign = right.3.recv() => (reign.unwrap(), right, left),
            }
        };
        // It keeps the lead by its beats.
        tokio::time::sleep(PATIENCE * 2).await;
        assert!(two.3.try_recv().is_err() && !*first.ended.borrow());
        one.1.send_replace(true);
        let late = {
            let (storage, fence) = (one.0.clone(), first.fence());
            let write = server::storage::Write::Put {
                resource: meta::Resource("configmaps"),
                object: meta::json!({"metadata": {"name": "late", "namespace": "default"}}),
                expect: Revision::ZERO,
                lease: None,
            };
            tokio::spawn(fenced(fence, async move { storage.commit(vec![write]).await }))
        };
        let paused = Instant::now();
        let second = two.3.recv().await.unwrap();
        let took = paused.elapsed();
        assert!(second.epoch > first.epoch);
        assert!(took < PATIENCE * 5, "{took:?}");
        // The first wakes up and still believes to lead, until it hears better.
        one.1.send_replace(false);
        let late = late.await.unwrap();
        assert!(matches!(late, Err(server::storage::WriteError::Failed(_))), "{late:?}");
        first.ended.clone().wait_for(|ended| *ended).await.unwrap();
        // Who stops says so, and nobody waits.
        let stopped = Instant::now();
        two.2.send_replace(true);
        let third = one.3.recv().await.unwrap();
        assert!(third.epoch > second.epoch && stopped.elapsed() < PATIENCE, "{:?}", stopped.elapsed());
        one.2.send_replace(true);
    }
}
