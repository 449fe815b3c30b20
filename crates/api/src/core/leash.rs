//! Pods that end when their node is cut off, so that others may start them without asking it.
//!
//! Kubernetes has no such agreement: a pod on a node that nobody reaches stays until the node answers, or until somebody
//! vouches that it is off, and a stateful set waits for that. A pod with the annotation [`STOP_AFTER`] says how long its
//! node may fail to renew its lease (as `stop_on_client_after` does in Nomad). After that the node ends it, with its
//! grace, and the control plane takes it for gone. Each side counts by its own clock: the node from when it began the last
//! renewal that was answered, the control plane from when it heard of one, which is later.

use meta::{At, Errors, Path, Value};

use super::pod::GRACE_SECONDS;

/// How many seconds a node may fail to renew its lease before it ends the pod. Does not change.
pub const STOP_AFTER: &str = "gantry.dev/stop-after-disconnect-seconds";
/// Leases are renewed every ten seconds: with less, one renewal that gets lost would end the pod.
pub const SECONDS_MIN: i64 = 20;
pub const SECONDS_MAX: i64 = 86_400;

/// What the control plane waits beyond the time that the node has: for the kernel to end processes, and for clocks of which
/// one runs faster than the other.
const MARGIN_MS: u64 = 5_000;
const MARGIN_PART: u64 = 16;

/// How long a pod may live without its node's lease being renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leash {
    /// After which the node begins to end it.
    pub stop_ms: u64,
    /// What it has to end by itself.
    pub grace_ms: u64,
}

impl Leash {
    /// That of a pod; `None` where it asks for none, or for what [`check`] refuses.
    pub fn of(pod: &Value) -> Option<Leash> {
        let seconds = seconds_of(pod.at(&["metadata", "annotations", STOP_AFTER]).as_str()?)?;
        let grace = pod.at(&["spec", "terminationGracePeriodSeconds"]).as_int().unwrap_or(GRACE_SECONDS).max(1);
        let ms = |seconds: i64| seconds.unsigned_abs().saturating_mul(1000);
        Some(Leash { stop_ms: ms(seconds), grace_ms: ms(grace) })
    }

    /// After which no process of it is left on the node.
    pub fn end_ms(&self) -> u64 {
        self.stop_ms.saturating_add(self.grace_ms)
    }

    /// After which the control plane takes it for gone, counted from when it heard of the last renewal.
    pub fn gone_ms(&self) -> u64 {
        let end_ms = self.end_ms();
        end_ms.saturating_add(MARGIN_MS).saturating_add(end_ms / MARGIN_PART)
    }
}

fn seconds_of(text: &str) -> Option<i64> {
    text.parse().ok().filter(|seconds| (SECONDS_MIN..=SECONDS_MAX).contains(seconds))
}

/// Checks the annotation in the metadata of a pod or of a template; of a pod that was there before it stays as it was,
/// since its node may not hear of another time.
pub fn check(metadata: &Value, path: &Path<'_>, old: Option<&Value>, errors: &mut Errors) {
    let value = metadata.at(&["annotations", STOP_AFTER]);
    let annotations = path.field("annotations");
    let at = At { value, path: annotations.key(STOP_AFTER) };
    if value.as_str().is_some_and(|text| seconds_of(text).is_none()) {
        errors.invalid(&at, format!("must be a whole number of seconds from {SECONDS_MIN} to {SECONDS_MAX}"));
    }
    if old.is_some_and(|old| old.at(&["metadata", "annotations", STOP_AFTER]) != value) {
        errors.invalid(&at, "field is immutable");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::json;

    #[test]
    fn whoever_waits_for_a_pod_to_be_gone_waits_longer_than_its_node_takes() {
        let mut pod = json!({"spec": {"terminationGracePeriodSeconds": 5i64}});
        assert_eq!(Leash::of(&pod), None);
        pod.set(&["metadata", "annotations", STOP_AFTER], "30");
        let leash = Leash::of(&pod).unwrap();
        assert_eq!((leash.stop_ms, leash.end_ms(), leash.gone_ms()), (30_000, 35_000, 35_000 + 5_000 + 2_187));
        for wrong in ["", "19", "86401", "30s", "-30", "9223372036854775808"] {
            pod.set(&["metadata", "annotations", STOP_AFTER], wrong);
            assert_eq!(Leash::of(&pod), None, "{wrong}");
        }
        pod.set(&["metadata", "annotations", STOP_AFTER], "86400");
        pod.set(&["spec", "terminationGracePeriodSeconds"], i64::MAX);
        assert!(Leash::of(&pod).unwrap().gone_ms() > u64::MAX / 2000);
    }
}
