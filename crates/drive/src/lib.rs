//! The parts of a control plane that act: what feeds the pure cores, and what turns their decisions into calls.
//!
//! - [`controllers`]: reconcilers, their jobs and effects; [`scheduler`]: plans and bindings; [`ipam`]: pod ranges of
//!   nodes; [`events`]: records for users; [`fate`]: what an answer, or none, means for a write; [`leader`]: which of
//!   several servers leads; [`servers`]: who is there, and the data version that all of them know.
//!
//! Not here: any decision of a controller or of the scheduler; threads, timers, clocks, sockets. Those come through
//! [`Shell`], so that a real process and the simulator run the same code.
//!
//! Invariants: a write whose fate is unknown is asked about until it is known, before its decider looks again; what
//! runs in a given order of events runs the same each time.

pub mod controllers;
pub mod cursor;
pub mod events;
pub mod fate;
pub mod ipam;
pub mod leader;
pub mod scheduler;
pub mod servers;

use std::future::Future;
use std::pin::Pin;

use base::Clock;

/// Something that runs by itself.
pub type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The time and the tasks of a process.
pub trait Shell: Clock {
    /// Runs `task` beside everything else, until it ends or the process does.
    fn spawn(&self, task: Task);

    /// Is done after `ms` milliseconds.
    fn sleep(&self, ms: u64) -> Task;

    /// Milliseconds by a clock that nobody sets, so that it never jumps; only differences mean something.
    fn steady_ms(&self) -> u64;
}
