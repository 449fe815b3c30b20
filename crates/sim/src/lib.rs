//! Worlds: the whole cluster in one process, in virtual time, from one seed.
//!
//! The real store on a simulated disk, the real verb pipeline, controllers, scheduler, event recorder and pod machine run
//! on [`exec`]'s heap of events; between them lie links that lose, delay and repeat; processes and machines crash; a
//! seeded user works. Checkers watch all the time; afterwards faults stop, and everything must come to rest as desired.
//!
//! Not here: any rule of Kubernetes except as a promise in [`check`]; copies of code that a real cluster runs.
//!
//! Invariants: the same seed and profile give the same events, bit for bit, on every machine.

pub mod backend;
pub mod check;
pub mod desired;
pub mod exec;
pub mod fault;
pub mod gist;
pub mod link;
pub mod machine;
pub mod minimise;
pub mod museum;
pub mod mutation;
pub mod network;
pub mod schedule;
pub mod servers;
pub mod shared;
pub mod truth;
pub mod upgrade;
pub mod user;
pub mod world;
