//! A cache that tasks share: one feeder, many readers, and a signal when it moved.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use base::Revision;
use cache::{Cache, Change, Compacted, Event, View};
use meta::{Object, Resource};
use tokio::sync::watch;

/// The shared cache. The server's is fed by the store; an agent's by watches over HTTPS.
pub struct Mirror {
    cache: RwLock<Cache>,
    revision: watch::Sender<Revision>,
}

impl Mirror {
    pub fn new(cache: Cache) -> Mirror {
        let revision = watch::Sender::new(cache.revision());
        Mirror { cache: RwLock::new(cache), revision }
    }

    /// The cache itself, for reading. Held for moments only: the feeder waits meanwhile.
    pub fn read(&self) -> RwLockReadGuard<'_, Cache> {
        self.cache.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn view(&self) -> View {
        self.read().view()
    }

    pub fn one(&self, resource: Resource, namespace: &str, name: &str) -> Option<Object> {
        self.read().one(resource, namespace, name).cloned()
    }

    pub fn since(&self, resource: Resource, since: Revision, max: usize) -> Result<Vec<Event>, Compacted> {
        self.read().since(resource, since, max)
    }

    pub fn revision(&self) -> Revision {
        *self.revision.borrow()
    }

    /// A receiver that wakes whenever the revision grows.
    pub fn subscribe(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }

    /// Waits until the cache shows `revision`.
    pub async fn reached(&self, revision: Revision) {
        // The sender lives as long as `self`, so the wait ends only by success.
        let _ = self.subscribe().wait_for(|at| *at >= revision).await;
    }

    /// Waits until the cache shows `resource` up to `revision`; for caches that are fed by several watches.
    pub async fn knows(&self, resource: Resource, revision: Revision) {
        let mut changed = self.subscribe();
        while self.read().known(resource) < revision {
            // The sender lives as long as `self`.
            let _ = changed.changed().await;
        }
    }

    /// Applies the changes of one revision and wakes the readers.
    pub fn apply(&self, revision: Revision, changes: impl IntoIterator<Item = Change>) {
        self.change(|cache| cache.apply(revision, changes));
    }

    /// Any other change of the cache by its feeder; wakes the readers.
    pub fn change<T>(&self, change: impl FnOnce(&mut Cache) -> T) -> T {
        let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut cache);
        let at = cache.revision();
        drop(cache);
        self.revision.send_if_modified(|known| std::mem::replace(known, at) != at);
        result
    }

    /// Like [`Mirror::change`], for a feeder whose changes do not always move the revision: always wakes the readers.
    pub fn feed<T>(&self, change: impl FnOnce(&mut Cache) -> T) -> T {
        let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut cache);
        let at = cache.revision();
        drop(cache);
        self.revision.send_replace(at);
        result
    }
}
