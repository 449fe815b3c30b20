//! Real images, containers and registries. Needs root, busybox, and for registries Debian's `docker-registry`.

mod containers;
mod life;
mod rights;
mod support;

runtime::testing::shim_here!();
