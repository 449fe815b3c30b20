//! The checkers: one file each, and the table [`CHECKERS`]. Each looks at everything that happens and says what must not.
//!
//! A checker knows the promise, not the code: it keeps books of its own. Each is proven by a planted defect in
//! [`crate::mutation`] that it catches.

mod agents;
mod budgets;
mod formats;
mod history;
mod identity;
mod jobs;
mod leaders;
mod leases;
mod network;
mod nodes;
mod ownership;
mod preemption;
mod replicas;
pub mod scheduler;
mod spread;
mod store;
mod watch;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::IpAddr;

use ::history::Outcome;
use ::net::NodeNet;
use ::net::plan::Changed;
use ::store::{Format, LeaseId};
use base::{Revision, Time};
use bytes::Bytes;
use cache::{Cache, Change, Source, View};
use meta::{Object, Resource, Str};

use crate::desired::facts;
use crate::exec::Author;
use crate::truth::Past;
use crate::user::PODS;
pub use leaders::STORE;

/// Up to where an agent sees each of [`crate::network::sources`].
pub type Sees = [Revision; 4];

/// Something that happened.
pub enum Seen<'a> {
    /// A transaction became visible.
    Commit { revision: Revision, changes: &'a [Change], author: &'a Author, before: &'a View, after: &'a View },
    /// The store was opened again after a crash.
    Recovered { found: Revision, acknowledged: Revision, stored: &'a BTreeMap<Bytes, Revision> },
    /// The disk will refuse a write, or did: revisions may be left out.
    DiskFails,
    /// A client's mirror took something in. `of`: it follows all of these resources, or of all where none is named, at one
    /// revision; without, it follows parts. `life`: a client that begins anew has a new mirror.
    Mirror { client: &'a str, cache: &'a Cache, life: u64, of: Option<&'a [Resource]> },
    /// A container began to run (`true`) or ended on a node.
    Container { node: &'a str, pod: &'a str, uid: &'a str, container: &'a str, runs: bool },
    /// A server refuses a call, as its caller may hear any moment; a message of it that comes again may be carried out yet.
    Refused { call: u64 },
    /// A client asks something of the server.
    Asked { call: u64 },
    /// A pod, by its uid, is to be bound to a node, as was decided on a revision; whether it will be is open.
    Binds { uid: &'a str, node: &'a str, decided_on: Revision },
    /// The answer came, or none will; with what it says of an object.
    Answered { call: u64, client: &'a str, key: &'a str, outcome: Outcome },
    /// A client that follows all of these resources (of all where none is named) is brought the changes after `since` up
    /// to `to`.
    Heard {
        client: &'a str,
        of: &'a [Resource],
        since: Revision,
        changes: &'a BTreeMap<Revision, Vec<Change>>,
        to: Revision,
    },
    /// A lease was granted or renewed: it lives at least until then.
    Leased { lease: LeaseId, until: Time },
    /// A key went with its lease.
    Expired { lease: LeaseId, key: &'a [u8] },
    /// A bit of old data flipped, and the store opened all the same: what it would serve.
    Rotten { place: &'a str, stored: &'a BTreeMap<Bytes, Revision>, sound: &'a BTreeMap<Bytes, Revision> },
    /// A key that holds no object was put, on a lease or not, or is gone (`None`).
    Side { key: &'a [u8], revision: Revision, value: Option<&'a [u8]>, lease: Option<LeaseId> },
    /// A value was written in a form that not every data version has.
    Stored { key: &'a [u8], revision: Revision, form: Format },
    /// A server that reads data up to `knows` answered a client, with all up to `at` in its cache.
    Served { who: &'a str, knows: Format, at: Revision },
    /// A server that may lead, or the store that servers share, begins or ends.
    Runs { who: &'a str, runs: bool },
    /// One of these can do nothing for a while, or can again.
    Halted { who: &'a str, why: &'static str, halted: bool },
    /// What one of these did or said got lost.
    Hindered { who: &'a str },
    /// The agent of a machine begins or ends.
    Agent { node: &'a str, runs: bool },
    /// An agent was brought what there is of a source up to a revision.
    Brought { node: &'a str, source: &'a Source, known: Revision },
    /// The planner of a machine's network took in what its agent knows of each of [`crate::network::sources`]; `ready`: the
    /// kernel is told of it.
    Planned { node: &'a str, sees: &'a Sees, changed: &'a Changed, ready: bool },
    /// The kernel of a machine was told.
    Routed { node: &'a str, net: &'a NodeNet },
    /// A pod on a node has an address (`true`), or has it no more.
    Address { node: &'a str, uid: &'a str, address: IpAddr, given: bool },
    /// Faults are over, everybody says to be done.
    Quiet { view: &'a View },
}

/// A pod that is on another node since a commit; `before` is empty where it was on none.
struct Binding<'a> {
    pod: &'a Object,
    before: Str,
    node: Str,
}

fn bindings(changes: &[Change]) -> impl Iterator<Item = Binding<'_>> {
    let pods = changes.iter().filter_map(|change| Some((change.new.as_ref()?, change.old.as_ref())));
    pods.filter(|(new, _)| new.resource() == PODS).filter_map(|(pod, old)| {
        let (node, before) = (facts(pod).node, old.map(|old| facts(old).node).unwrap_or_default());
        (node != before).then_some(Binding { pod, before, node })
    })
}

/// Every key of two sequences in the order of their keys, with what stands there in each.
fn pairs<K: Ord, V, I, J>(one: I, other: J) -> impl Iterator<Item = (K, Option<V>, Option<V>)>
where
    I: IntoIterator<Item = (K, V)>,
    J: IntoIterator<Item = (K, V)>,
{
    let (mut one, mut other) = (one.into_iter().peekable(), other.into_iter().peekable());
    std::iter::from_fn(move || {
        let order = match (one.peek(), other.peek()) {
            (Some((a, _)), Some((b, _))) => a.cmp(b),
            (Some(_), None) => Ordering::Less,
            (None, _) => Ordering::Greater,
        };
        let mine = if order == Ordering::Greater { None } else { one.next() };
        let (key, mine) = mine.map_or((None, None), |(key, value)| (Some(key), Some(value)));
        let theirs = if order == Ordering::Less { None } else { other.next() };
        let (known, theirs) = theirs.map_or((None, None), |(key, value)| (Some(key), Some(value)));
        Some((key.or(known)?, mine, theirs))
    })
}

pub trait Checker: Send {
    fn name(&self) -> &'static str;

    /// # Errors
    /// A sentence about the promise that was broken.
    fn see(&mut self, seen: &Seen<'_>, past: &Past<'_>) -> Result<(), String>;
}

type Make = fn() -> Box<dyn Checker>;

/// All checkers.
pub const CHECKERS: &[Make] = &[
    || Box::new(store::Store::default()),
    || Box::new(watch::Watch::default()),
    || Box::new(history::History::default()),
    || Box::new(leases::Leases::default()),
    || Box::new(leaders::Leaders::default()),
    || Box::new(formats::Formats::default()),
    || Box::new(replicas::Replicas::default()),
    || Box::new(identity::Identity::default()),
    || Box::new(agents::Agents::default()),
    || Box::new(ownership::Ownership::default()),
    || Box::new(jobs::Jobs::default()),
    || Box::new(budgets::Budgets::default()),
    || Box::new(scheduler::Scheduler::default()),
    || Box::new(spread::Spread),
    || Box::new(preemption::Preemption::default()),
    || Box::new(nodes::Nodes::default()),
    || Box::new(network::Network::default()),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_comes_once_with_what_stands_there() {
        let found: Vec<_> = pairs([(1, 'a'), (3, 'c'), (4, 'd')], [(2, 'x'), (3, 'y')]).collect();
        let wanted = [(1, Some('a'), None), (2, None, Some('x')), (3, Some('c'), Some('y')), (4, Some('d'), None)];
        assert_eq!(found, wanted);
        assert_eq!(pairs([(0, ()); 0], []).count(), 0);
    }
}
