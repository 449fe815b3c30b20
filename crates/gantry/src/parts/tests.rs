//! Leading on the real clock: what worlds show in theirs holds with tokio's timers, too.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base::Revision;
use drive::leader::{Candidate, PATIENCE_MS, Reign};
use server::storage::{Storage, fenced};
use store::{Backend, Embedded, Txn};
use tokio::sync::watch;

use super::Tokio;

const PATIENCE: Duration = Duration::from_millis(PATIENCE_MS);

async fn is_over(reign: &Reign) -> bool {
    tokio::time::timeout(Duration::ZERO, reign.ended()).await.is_ok()
}

async fn storage(backend: Arc<dyn Backend>) -> Storage {
    let keys = server::Keys::passing().unwrap();
    let options = server::Options::passing();
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
        let candidate = Candidate {
            backend: storage.backend().clone(),
            side: storage.side(),
            shell: Arc::new(Tokio),
            name: name.to_owned(),
            shared: true,
        };
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
    assert!(two.3.try_recv().is_err() && !is_over(&first).await);
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
    assert!(second.epoch() > first.epoch());
    assert!(took < PATIENCE * 5, "{took:?}");
    // The first wakes up and still believes to lead, until it hears better.
    one.1.send_replace(false);
    let late = late.await.unwrap();
    assert!(matches!(late, Err(server::storage::WriteError::Failed(_))), "{late:?}");
    first.ended().await;
    // Who stops says so, and nobody waits.
    let stopped = Instant::now();
    two.2.send_replace(true);
    let third = one.3.recv().await.unwrap();
    assert!(third.epoch() > second.epoch() && stopped.elapsed() < PATIENCE, "{:?}", stopped.elapsed());
    one.2.send_replace(true);
}
