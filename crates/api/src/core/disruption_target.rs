//! The condition `DisruptionTarget` of a pod that is taken away through no fault of its own: who writes it, in which words.

use base::Time;
use meta::{Object, Value, json};

pub const DISRUPTION_TARGET: &str = "DisruptionTarget";

/// Who takes a pod away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taker<'a> {
    /// Somebody who asked for its eviction.
    Eviction,
    /// A `NoExecute` taint of its node.
    Taint,
    /// Nobody: its node is no more.
    LostNode,
    /// Its own node, which is cut off: see [`super::leash`].
    CutOffNode,
    /// The scheduler of this name, for a pod of a higher priority.
    Preemption(&'a str),
}

/// The condition on a pod that is about to go. Its words are those of Kubernetes: programs know them.
pub fn disruption_target(taker: Taker<'_>, pod: &Object, now: Time) -> Value {
    let (reason, message) = match taker {
        Taker::Eviction => ("EvictionByEvictionAPI", "Eviction API: evicting".to_owned()),
        Taker::Taint => ("DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint".to_owned()),
        Taker::LostNode => ("DeletionByPodGC", "PodGC: node no longer exists".to_owned()),
        Taker::CutOffNode => ("DeletionByPodGC", "PodGC: node is cut off and has ended the pod".to_owned()),
        Taker::Preemption(scheduler) => {
            ("PreemptionByScheduler", format!("{scheduler}: preempting to accommodate a higher priority pod"))
        }
    };
    let mut condition = json!({
        "type": DISRUPTION_TARGET, "status": "True", "reason": reason, "message": message,
        "lastProbeTime": null, "lastTransitionTime": (now.rfc3339()),
    });
    // Whoever evicts has not looked at the pod's specification.
    if taker != Taker::Eviction {
        condition.set(&["observedGeneration"], pod.facts().generation);
    }
    condition
}

/// Whether a pod's status says that it is taken away.
pub fn is_disruption_target(status: &Value) -> bool {
    let conditions = status["conditions"].items();
    conditions.iter().any(|one| one["type"].text() == DISRUPTION_TARGET && one["status"].text() == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_who_take_a_pod_say_so_in_words_that_programs_know() {
        let value = json!({"metadata": {"namespace": "ns", "name": "p", "generation": 3i64}});
        let pod = Object::new(meta::Facts::of(meta::Resource("pods"), &value), value.to_json());
        for (taker, reason, generation) in [
            (Taker::Eviction, "EvictionByEvictionAPI", None),
            (Taker::Taint, "DeletionByTaintManager", Some(3)),
            (Taker::LostNode, "DeletionByPodGC", Some(3)),
            (Taker::CutOffNode, "DeletionByPodGC", Some(3)),
            (Taker::Preemption("s"), "PreemptionByScheduler", Some(3)),
        ] {
            let condition = disruption_target(taker, &pod, Time::from_seconds(0));
            assert_eq!(condition["reason"].text(), reason);
            assert_eq!(condition["observedGeneration"].as_int(), generation, "{reason}");
            assert!(is_disruption_target(&json!({"conditions": [condition]})));
        }
        assert!(!is_disruption_target(&Value::map()));
    }
}
