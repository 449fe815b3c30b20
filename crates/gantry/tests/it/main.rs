//! The program as its users run it: what it prints, and several servers as processes on one etcd.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod moves;
mod printing;
mod servers;
