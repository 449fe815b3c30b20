//! The whole machine, writing and reading half together: no IO, no clock, no threads.
//!
//! A driver commits, seals, logs the batch, and calls [`Mvcc::durable`]; only then do reads and the feed see it.

use crate::stage::{Batch, Head, Lsn, Stage};
use crate::types::{Commit, Error, Event, HistoryLimits, LeaseId, Range, Txn};
use crate::visible::{Events, Page, Visible};
use base::{Revision, Time, Tree};

pub struct Mvcc {
    pub(crate) stage: Stage,
    pub(crate) visible: Visible,
}

impl Mvcc {
    /// An empty machine.
    pub fn new(limits: HistoryLimits) -> Mvcc {
        let head = Head::empty();
        let visible = Visible::new(Tree::new(), head.revision, Revision::ZERO, limits);
        Mvcc { stage: Stage::new(&Tree::new(), head), visible }
    }

    /// See [`Stage::commit`].
    pub fn commit(&mut self, txn: Txn, now: Time) -> Result<Commit, Error> {
        self.stage.commit(txn, now)
    }

    /// See [`Stage::grant`].
    pub fn grant(&mut self, ttl_ms: u64, now: Time) -> Result<LeaseId, Error> {
        self.stage.grant(ttl_ms, now)
    }

    /// See [`Stage::renew`].
    pub fn renew(&mut self, id: LeaseId, now: Time) -> Result<u64, Error> {
        self.stage.renew(id, now)
    }

    /// See [`Stage::revoke`].
    pub fn revoke(&mut self, id: LeaseId, now: Time) -> Result<Commit, Error> {
        self.stage.revoke(id, now)
    }

    /// See [`Stage::expire`].
    pub fn expire(&mut self, now: Time) -> Vec<Commit> {
        self.stage.expire(now)
    }

    /// See [`Stage::compact`].
    pub fn compact(&mut self, at: Revision) -> Result<(), Error> {
        self.stage.compact(at)
    }

    /// See [`Stage::seal`].
    pub fn seal(&mut self) -> Option<Batch> {
        self.stage.seal()
    }

    /// Publishes every sealed batch up to `lsn` and returns the events, in order.
    pub fn durable(&mut self, lsn: Lsn) -> Vec<Event> {
        let Some(publication) = self.stage.durable(lsn) else { return Vec::new() };
        let _ = self.visible.publish(&publication);
        publication.events
    }

    /// See [`Stage::rollback`].
    pub fn rollback(&mut self, burn: bool) {
        self.stage.rollback(burn);
    }

    /// Drops history outside the window.
    pub fn trim(&mut self, now: Time) {
        self.visible.trim(now);
    }

    /// The newest visible revision.
    pub fn revision(&self) -> Revision {
        self.visible.revision()
    }

    /// See [`Visible::since`].
    pub fn since(&self, after: Revision, max: usize) -> Result<Events, Error> {
        self.visible.since(after, max)
    }

    /// A page of `range` at revision `at` (newest: `None`), after key `start_after`, of at most `limit` keys (0: all).
    ///
    /// # Errors
    /// [`Error::Compacted`] and [`Error::Ahead`].
    pub fn read(
        &self,
        range: &Range,
        at: Option<Revision>,
        start_after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Page, Error> {
        Ok(self.visible.state(at)?.read(range, start_after, limit))
    }

    /// How many keys of `range` there are at revision `at`.
    ///
    /// # Errors
    /// [`Error::Compacted`] and [`Error::Ahead`].
    pub fn count(&self, range: &Range, at: Option<Revision>) -> Result<usize, Error> {
        Ok(self.visible.state(at)?.count(range))
    }
}
