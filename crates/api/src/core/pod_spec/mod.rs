//! What a pod is made of, shared by pods and everything that holds a template of pods: defaults and checks.
//!
//! Not here: rules of pods as objects (status, updates, columns), which stand in `core::pod`.

pub mod defaults;

use meta::Value;

/// The lists of a pod's spec that hold containers.
pub const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// All containers of a pod's spec but the ephemeral ones.
pub fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    spec["initContainers"].items().iter().chain(spec["containers"].items())
}
