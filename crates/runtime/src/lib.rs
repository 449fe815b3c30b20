//! Images and containers on Linux: pull, verify, store and unpack; sandboxes, containers, exec, attach, logs, numbers.
//!
//! The node agent speaks to [`Runtime`], an object-safe seam of plain types. [`Embedded`] is the runtime of our own;
//! a CRI client and a simulated runtime stand behind the same seam. The binary's hidden subcommands `shim` and `seed` are
//! [`shim::main_if_meant`].
//!
//! Not here: Kubernetes objects, policy, networks (a sandbox's network namespace is made or joined, its links are the
//! caller's).
//!
//! Invariants: what a container may do is decided once, as a complete plan, before anything is started; bytes from
//! outside (manifests, archives, challenges, names) can make an error but never a panic or a path out of their
//! directory; killing the agent stops no container.
//!
//! Where things are: `seam` the trait and its types; `embedded` this side of it; `shim` the process per pod; `plan`
//! what goes between them; `image` registry, archives, store; `cgroup`, `seccomp`, `capability`, `rooted`,
//! `memory`, `spread`, `sys` the kernel's corners.

mod capability;
mod cgroup;
mod embedded;
mod error;
pub mod fuzzing;
mod image;
pub mod memory;
mod name;
mod plan;
mod rooted;
mod seam;
mod seccomp;
mod seccomp_names;
pub mod shim;
mod spread;
mod sys;
pub mod testing;

pub use cgroup::Cgroups;
pub use embedded::{Config, Embedded, ShimProgram, disk_usage};
pub use error::Error;
pub use image::manifest::signal;
pub use image::{ImageStore, RegistryConfig};
pub use name::ImageName;
pub use rooted::Rooted;
pub use seam::*;
pub use spread::spread;

/// Locks a mutex. A panic while it was held is no reason to stop everything else: what it guards is replaced in whole
/// steps.
fn lock<T: ?Sized>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
