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

use std::collections::BTreeMap;
use std::sync::Arc;

use base::{Revision, Rng, Time};
use cache::{Event, View};
use meta::{Resource, Str};

pub use driver::{Done, Driver, Job, Refusal};
pub use effect::{Effect, EventRecord, Lists};

/// A controller: which keys an event touches, and what to do about one key. Pure, total, level-triggered.
pub trait Reconciler: Send {
    /// For queues, metrics, seeds and field ownership: `replicaset-controller`.
    fn name(&self) -> &'static str;

    /// The resources whose events it wants to see.
    fn watches(&self) -> &[Resource];

    /// Further resources of which it wants to see only what comes and goes ([`Event::is_of_life`]), not every change.
    fn lives(&self) -> &[Resource] {
        &[]
    }

    /// The keys that the change of an object of `resource` touches. On start it is called once for every existing
    /// object, as if just created. Keys are its own affair (`namespace/name` mostly).
    fn keys(&self, resource: Resource, event: &Event, view: &View, out: &mut Vec<Str>);

    /// The keys that are touched when a node falls silent or is heard again ([`Context::silent`]).
    fn keys_of_silence(&self, _node: &str, _out: &mut Vec<Str>) {}

    /// Looks at what is and says what to do about `key`. It cannot fail and never learns which event woke it.
    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome;
}

/// Nodes that are not heard any more, each with the revision at which that was noticed. What the view shows of a node
/// since then is newer than its silence.
pub type Silent = BTreeMap<Str, Revision>;

/// What a reconciler may use besides the view, and where its effects go.
pub struct Context {
    pub now: Time,
    pub rng: Rng,
    /// What is heard of nodes beside the store; nothing where nobody listens.
    pub silent: Arc<Silent>,
    pub effects: Vec<Effect>,
    /// Why writes of the key's last job were refused; empty when it went well.
    pub refused: Vec<Refusal>,
    /// What was pushed changes nothing that a look at the key depends on, like a status that is only told: the change that
    /// it makes is no reason for another look.
    pub last: bool,
    /// How many objects the look reads, where that is many: looks that read much are spaced ([`Driver::next`]).
    pub reads: usize,
    /// What the key's last look marked.
    known: Option<Mark>,
    marked: Option<Mark>,
}

/// What a look at a key found, since when looks had found it, and when the look was.
#[derive(Clone, Copy, Debug)]
struct Mark {
    mark: u64,
    since: Time,
    looked: Time,
}

/// Among [`Reconciler::lives`]: all resources that have objects.
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
        let silent = Arc::default();
        Context {
            now,
            rng,
            silent,
            effects: Vec::new(),
            refused: Vec::new(),
            last: false,
            reads: 0,
            known: None,
            marked: None,
        }
    }

    /// Since when looks at this key have found the same `mark`, by the clock of whoever looks; from now on if it is new.
    /// What others write down is as wrong as their clocks. A time between two looks that is longer than `gap_ms` counts
    /// for nothing: whoever looks stood still, or his clock jumped. Kept from look to look as long as each look asks, and
    /// lost with the process.
    pub fn since(&mut self, mark: u64, gap_ms: u64) -> Time {
        let now = self.now;
        let goes_on = |known: &Mark| known.mark == mark && known.looked <= now && now.ms_since(known.looked) <= gap_ms;
        let since = self.known.filter(goes_on).map_or(now, |known| known.since);
        self.marked = Some(Mark { mark, since, looked: now });
        since
    }

    pub fn push(&mut self, effect: Effect) {
        self.effects.push(effect);
    }
}
