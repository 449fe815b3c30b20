//! What a controller is, and the machine that drives one: a work queue with three rules, and effects as values.
//!
//! Not here: any concrete kind, any IO. A shell takes the [`Job`]s, performs their effects through the API, and reports
//! back; the simulator does the same through a faulty link.
//!
//! The three rules of [`Driver`]: one job per key at a time; a key waits until the view has reached the key's own last
//! write (so a controller never acts on a view that lacks what it did itself); generated names come from a random
//! stream seeded by controller, key and view revision, so that a repeated decision repeats its names; after a failure,
//! which may have happened all the same, the view of the failed decision stays the seed.

mod driver;
mod effect;

use base::{Rng, Time};
use cache::{Event, View};
use meta::{Resource, Str};

pub use driver::{Done, Driver, Job};
pub use effect::{Effect, EventRecord};

/// A controller: which keys an event touches, and what to do about one key. Pure, total, level-triggered.
pub trait Reconciler: Send {
    /// For queues, metrics, seeds and field ownership: `replicaset-controller`.
    fn name(&self) -> &'static str;

    /// The resources whose events it wants to see.
    fn watches(&self) -> &[Resource];

    /// The keys that the change of an object of `resource` touches. On start it is called once for every existing
    /// object, as if just created. Keys are its own affair (`namespace/name` mostly).
    fn keys(&self, resource: Resource, event: &Event, view: &View, out: &mut Vec<Str>);

    /// Looks at what is and says what to do about `key`. It cannot fail and never learns which event woke it.
    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome;
}

/// What a reconciler may use besides the view, and where its effects go.
pub struct Context {
    pub now: Time,
    pub rng: Rng,
    pub effects: Vec<Effect>,
    /// Why writes of the key's last job were refused; empty when it went well.
    pub refused: Vec<String>,
}

/// As a watched resource: all resources that have objects.
pub const EVERYTHING: Resource = Resource("*");

/// What is left to do for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing until something changes.
    Settled,
    /// Look again at this time at the latest.
    Again(Time),
    /// Nothing can be done now; the sentence says why. Looked at again with growing pauses, and on any change.
    Blocked(String),
}

impl Context {
    pub fn new(now: Time, rng: Rng) -> Context {
        Context { now, rng, effects: Vec::new(), refused: Vec::new() }
    }

    pub fn push(&mut self, effect: Effect) {
        self.effects.push(effect);
    }
}
