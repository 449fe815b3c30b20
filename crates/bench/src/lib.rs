//! The bench: what the cluster can do on this machine, in figures, beside its peers.
//!
//! - [`BENCHES`]: the table; one row per bench, each in a file of its own below `benches`.
//! - [`cluster`]: nodes without machines; [`simnodes`]: their agents; [`real`]: a real one.
//! - [`frame`]: options in, one JSON object out. [`machine`]: processor time, memory, pinning, what else was running.
//! - [`child`]: the system under test, always a process of its own. [`door`]: a lean client of the public API;
//!   [`pipe`]: a leaner one, for whoever reads no answers. [`load`] drives them; [`asker`] asks for names. [`shapes`]: nodes and pods as users have them.
//! - `torture`: no figures of speed, but whether promises hold while everything is killed.
//! - [`report`]: results on paper, and the comparison with stored ones.
//!
//! Not here: any way around what an ordinary client passes: TLS, authorization, admission, validation, audit and the sync
//! before an answer stay on; a figure that was not measured is missing.
//!
//! Invariants: every process and folder that a bench makes is gone when it ends, also when it fails; the time of the
//! server's processor is kept apart from the client's.

pub mod asker;
mod benches;
pub mod child;
pub mod cluster;
pub mod door;
pub mod error;
pub mod frame;
pub mod load;
pub mod machine;
pub mod numbers;
pub mod pieces;
pub mod pipe;
pub mod real;
pub mod report;
pub mod shapes;
pub mod simnodes;
mod torture;

pub use benches::BENCHES;
pub use error::Error;
pub use frame::{Bench, Figure, OptionRow, Run, Said};

/// The bench of this name.
pub fn bench(name: &str) -> Option<&'static Bench> {
    BENCHES.iter().find(|bench| bench.name == name)
}
