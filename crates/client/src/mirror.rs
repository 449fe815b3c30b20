//! A cache that tasks share: one feeder, many readers, and a signal when it moved.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use base::Revision;
use cache::{Bells, Cache, Change, Compacted, Event, Part, View};
use meta::{Object, Resource};
use tokio::sync::{Notify, watch};

/// The shared cache. The server's is fed by the store; an agent's by watches over HTTPS.
pub struct Mirror {
    cache: RwLock<Cache>,
    revision: watch::Sender<Revision>,
    /// The number of the next listener.
    listeners: AtomicU64,
}

/// What a listener listens to.
#[derive(Clone, Debug)]
pub enum Interest {
    /// Every change of any resource.
    Everything,
    Parts(Vec<(Resource, Part)>),
    /// What comes and goes of any resource, and these parts.
    LivesAnd(Vec<(Resource, Part)>),
}

impl Interest {
    fn parts(&self) -> &[(Resource, Part)] {
        match self {
            Interest::Everything => &[],
            Interest::Parts(parts) | Interest::LivesAnd(parts) => parts,
        }
    }
}

/// Wakes its owner when something that interests it has changed.
pub struct Listener {
    mirror: Arc<Mirror>,
    id: u64,
    interest: Interest,
    notify: Arc<Notify>,
}

impl Listener {
    /// Returns after a change since the last return, or since the listener was made. Can return without one.
    pub async fn changed(&self) {
        self.notify.notified().await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut cache = self.mirror.write();
        match &self.interest {
            Interest::Everything => cache.unlisten_to_everything(self.id),
            Interest::LivesAnd(_) => cache.unlisten_to_lives(self.id),
            Interest::Parts(_) => {}
        }
        self.interest.parts().iter().for_each(|(resource, part)| cache.unlisten(*resource, part, self.id));
    }
}

impl Mirror {
    pub fn new(cache: Cache) -> Mirror {
        let revision = watch::Sender::new(cache.revision());
        Mirror { cache: RwLock::new(cache), revision, listeners: AtomicU64::new(0) }
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Cache> {
        self.cache.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens from now on. What changed before is for the owner to look at.
    pub fn listen(self: &Arc<Self>, interest: Interest) -> Listener {
        let id = self.listeners.fetch_add(1, Ordering::Relaxed);
        let notify = Arc::new(Notify::new());
        let own = notify.clone();
        // One permit is kept for a listener that is busy.
        let bell: cache::Bell = Arc::new(move || own.notify_one());
        let mut cache = self.write();
        interest.parts().iter().for_each(|(resource, part)| cache.listen(*resource, part, id, bell.clone()));
        match &interest {
            Interest::Everything => cache.listen_to_everything(id, bell),
            Interest::LivesAnd(_) => cache.listen_to_lives(id, bell),
            Interest::Parts(_) => {}
        }
        drop(cache);
        Listener { mirror: self.clone(), id, interest, notify }
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

    /// See [`Cache::since_in`].
    pub fn since_in(
        &self,
        resource: Resource,
        part: &Part,
        since: Revision,
        max: usize,
    ) -> Result<Vec<Event>, Compacted> {
        self.read().since_in(resource, part, since, max)
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
        let (result, at, rung) = self.changed(change);
        self.revision.send_if_modified(|known| std::mem::replace(known, at) != at);
        rung.iter().for_each(Bells::ring);
        result
    }

    fn changed<T>(&self, change: impl FnOnce(&mut Cache) -> T) -> (T, Revision, Vec<Bells>) {
        let mut cache = self.write();
        let result = change(&mut cache);
        (result, cache.revision(), cache.rung())
    }

    /// Like [`Mirror::change`], for a feeder whose changes do not always move the revision: always wakes the readers.
    pub fn feed<T>(&self, change: impl FnOnce(&mut Cache) -> T) -> T {
        let (result, at, rung) = self.changed(change);
        self.revision.send_replace(at);
        rung.iter().for_each(Bells::ring);
        result
    }
}
