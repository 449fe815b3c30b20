//! Leases: keys that live as long as somebody renews. Persistent maps, so that a failed batch is taken back by a clone.
//!
//! Invariants: a lease never ends before its time to live has passed since its grant or last renewal; renewals are not
//! logged, so after a restart every lease starts anew; ids ascend and are never given twice.

use crate::types::LeaseId;
use base::{Time, Tree};
use bytes::Bytes;
use std::ops::Bound;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub ttl_ms: u64,
    pub expires: Time,
}

#[derive(Clone)]
pub(crate) struct Leases {
    pub next: u64,
    by_id: Tree<u64, Lease>,
    by_expiry: Tree<(Time, u64), ()>,
    keys: Tree<(u64, Bytes), ()>,
}

impl Leases {
    pub fn new() -> Leases {
        Leases { next: 1, by_id: Tree::new(), by_expiry: Tree::new(), keys: Tree::new() }
    }

    pub fn grant(&mut self, ttl_ms: u64, now: Time) -> LeaseId {
        let id = self.next;
        self.insert(id, ttl_ms, now);
        LeaseId(id)
    }

    /// Puts a lease of a given name: replay of the log.
    pub fn insert(&mut self, id: u64, ttl_ms: u64, now: Time) {
        self.next = self.next.max(id.saturating_add(1));
        let lease = Lease { ttl_ms, expires: now.plus_ms(ttl_ms) };
        if let Some(old) = self.by_id.insert(id, lease) {
            self.by_expiry.remove(&(old.expires, id));
        }
        self.by_expiry.insert((lease.expires, id), ());
    }

    pub fn get(&self, id: LeaseId) -> Option<Lease> {
        self.by_id.get(&id.0).copied()
    }

    /// A renewal never shortens a lease: a caller whose clock went back must not end it early.
    pub fn renew(&mut self, id: LeaseId, now: Time) -> Option<u64> {
        let lease = self.get(id)?;
        self.extend(id, now.plus_ms(lease.ttl_ms));
        Some(lease.ttl_ms)
    }

    fn extend(&mut self, id: LeaseId, expires: Time) {
        if let Some(lease) = self.get(id)
            && expires > lease.expires
        {
            self.by_expiry.remove(&(lease.expires, id.0));
            self.by_expiry.insert((expires, id.0), ());
            self.by_id.insert(id.0, Lease { expires, ..lease });
        }
    }

    /// Takes the renewals of `newer` over: a batch that is taken back does not take back renewals.
    pub fn keep_renewals_of(&mut self, newer: &Leases) {
        for (id, lease) in newer.by_id.iter() {
            self.extend(LeaseId(*id), lease.expires);
        }
    }

    pub fn remove(&mut self, id: LeaseId) {
        if let Some(lease) = self.by_id.remove(&id.0) {
            self.by_expiry.remove(&(lease.expires, id.0));
        }
    }

    pub fn attach(&mut self, id: LeaseId, key: &Bytes) {
        self.keys.insert((id.0, key.clone()), ());
    }

    pub fn detach(&mut self, id: LeaseId, key: &Bytes) {
        self.keys.remove(&(id.0, key.clone()));
    }

    pub fn keys_of(&self, id: LeaseId) -> Vec<Bytes> {
        self.keys
            .from(Bound::Included(&(id.0, Bytes::new())))
            .take_while(|((lease, _), ())| *lease == id.0)
            .map(|((_, key), ())| key.clone())
            .collect()
    }

    pub fn expired(&self, now: Time) -> Vec<LeaseId> {
        self.by_expiry.iter().take_while(|((at, _), ())| *at <= now).map(|((_, id), ())| LeaseId(*id)).collect()
    }

    pub fn next_expiry(&self) -> Option<Time> {
        self.by_expiry.iter().next().map(|((at, _), ())| *at)
    }

    pub fn iter(&self) -> impl Iterator<Item = (LeaseId, Lease)> {
        self.by_id.iter().map(|(id, lease)| (LeaseId(*id), *lease))
    }
}
