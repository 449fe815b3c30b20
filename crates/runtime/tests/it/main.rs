//! Real images, containers and registries. Needs root, busybox, and for registries Debian's `docker-registry`.

mod containers;
mod support;

runtime::testing::shim_here!();
