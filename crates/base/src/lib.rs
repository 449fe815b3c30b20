//! The few words that every room shares: time, revisions, ranges of addresses, seeded randomness, back-off, bytes
//! that may be packed, small seams.
//!
//! Not here: anything that knows Kubernetes, reads a real clock, or does IO. A shell implements [`Clock`]; the
//! simulator implements it too.
//!
//! Invariants: everything here is deterministic; [`Rng`] gives the same stream for the same seed on every machine.

mod backoff;
mod blob;
mod cidr;
mod rng;
mod short;
mod time;
mod tree;

pub use backoff::Backoff;
pub use blob::{Blob, Dictionary};
pub use cidr::{Cidr, NotACidr};
pub use rng::{Rng, hash64};
pub use short::{order, same};
pub use time::{Clock, Time};
pub use tree::{Finder, Range, Tree};

/// A place in the one order of all changes of a cluster. 0 is "before anything"; the first commit has 1 or more.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(pub u64);

impl Revision {
    pub const ZERO: Revision = Revision(0);

    pub fn next(self) -> Revision {
        Revision(self.0 + 1)
    }
}

impl std::fmt::Display for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl std::fmt::Debug for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "r{}", self.0)
    }
}
