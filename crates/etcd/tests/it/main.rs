//! The backend on real etcd (Debian's `etcd-server`), and the one suite of behaviour over it and over the embedded store.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod cluster;
mod faults;
mod member;
mod suite;
