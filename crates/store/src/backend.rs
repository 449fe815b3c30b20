//! The seam behind which a cluster's state lives: our own store in this process, or etcd.
//!
//! The calls have the shape of etcd's (transactions on modification revisions, ranges at a revision, one ordered feed,
//! leases, compaction), so that both keep the same promises.

use crate::store::Sink;
use crate::ticket::{Done, Ticket};
use crate::types::{Commit, Error, LeaseId, Range, Txn};
use crate::visible::{Events, Page};
use base::Revision;

/// All calls return at once; their outcome comes by ticket or callback.
pub trait Backend: Send + Sync {
    /// Commits `txn` and tells `done`. The cheapest way in.
    fn submit(&self, txn: Txn, done: Done<Commit>);

    /// Commits `txn`.
    fn txn(&self, txn: Txn) -> Ticket<Commit> {
        let (done, ticket) = Ticket::new();
        self.submit(txn, done);
        ticket
    }

    /// A page of `range` at revision `at` (`None`: the newest), after `start_after`, of at most `limit` keys (0: all).
    fn range(
        &self,
        range: Range,
        at: Option<Revision>,
        start_after: Option<bytes::Bytes>,
        limit: usize,
    ) -> Ticket<Page>;

    fn count(&self, range: Range, at: Option<Revision>) -> Ticket<usize>;

    /// The events after revision `after`, in whole revisions, about `max` of them.
    fn since(&self, after: Revision, max: usize) -> Ticket<Events>;

    /// Sends the feed after revision `after` to `sink`, for good. The ticket says up to where the past has been sent.
    /// A backend has one sink; the new one takes the place of an earlier one.
    fn follow(&self, after: Revision, sink: Box<dyn Sink>) -> Ticket<Revision>;

    fn grant(&self, ttl_ms: u64) -> Ticket<LeaseId>;

    /// Tells the lease's time to live in milliseconds.
    fn renew(&self, id: LeaseId) -> Ticket<u64>;

    fn revoke(&self, id: LeaseId) -> Ticket<Commit>;

    /// Forgets the history up to and including `at`.
    fn compact(&self, at: Revision) -> Ticket<()>;

    /// The newest revision this process knows.
    fn revision(&self) -> Revision;

    /// Ends when the sink was given all that had been committed anywhere when this was called, and tells up to where.
    /// `None` where that is always so, because there is no other writer than this process.
    fn catch_up(&self) -> Option<Ticket<Revision>> {
        None
    }
}

/// Answers at once.
pub(crate) fn ready<T: Send + 'static>(outcome: Result<T, Error>) -> Ticket<T> {
    Ticket::ready(outcome)
}
