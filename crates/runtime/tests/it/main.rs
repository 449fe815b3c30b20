//! Real images, containers and registries. Needs root, busybox, and for registries Debian's `docker-registry`.

#![expect(clippy::unwrap_used, reason = "helpers of tests stop the test, as tests do")]

mod containers;
mod life;
mod registry;
mod rights;
mod support;
mod visit;

runtime::testing::shim_here!();
