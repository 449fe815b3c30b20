//! Real network namespaces, links, tables and sockets. Everything happens in namespaces made here; needs root.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod dns;
mod links;
mod services;
mod world;
