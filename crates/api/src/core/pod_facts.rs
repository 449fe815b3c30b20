//! What is read of every pod once: most decisions about pods need no more.

use std::any::Any;
use std::sync::Arc;

use base::Time;
use meta::{Object, Str, Value};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    #[default]
    Pending,
    Running,
    Succeeded,
    Failed,
    Unknown,
}

impl Phase {
    pub fn of(text: &str) -> Phase {
        match text {
            "Running" => Phase::Running,
            "Succeeded" => Phase::Succeeded,
            "Failed" => Phase::Failed,
            "Unknown" => Phase::Unknown,
            _ => Phase::Pending,
        }
    }

    /// Whether the pod will never run again.
    pub fn is_final(self) -> bool {
        matches!(self, Phase::Succeeded | Phase::Failed)
    }
}

/// A pod's projection.
#[derive(Clone, Debug, Default)]
pub struct PodFacts {
    /// `""` until it is bound.
    pub node: Str,
    pub phase: Phase,
    pub ready: bool,
    /// When it became ready; [`Time::ZERO`] when it is not.
    pub ready_since: Time,
    pub scheduler: Str,
    pub priority: i64,
    /// Has scheduling gates.
    pub gated: bool,
    /// Its conditions tell that it is held by its gates.
    pub told_gated: bool,
    /// The most restarts of a container.
    pub restarts: i64,
    /// A fingerprint of `status.podIPs`; 0 without any.
    pub ips: u64,
    /// A fingerprint of `spec.tolerations`.
    pub tolerations: u64,
    /// Has volumes for which claims are made (`ephemeral`).
    pub has_own_claims: bool,
}

impl PodFacts {
    pub fn of(pod: &Value) -> PodFacts {
        let (spec, status) = (&pod["spec"], &pod["status"]);
        let ready = status["conditions"]
            .items()
            .iter()
            .find(|condition| condition["type"].text() == "Ready" && condition["status"].text() == "True");
        PodFacts {
            node: spec["nodeName"].text().into(),
            phase: Phase::of(status["phase"].text()),
            ready: ready.is_some(),
            ready_since: ready.and_then(|ready| Time::parse(ready["lastTransitionTime"].text())).unwrap_or_default(),
            scheduler: spec["schedulerName"].text().into(),
            priority: spec["priority"].as_int().unwrap_or(0),
            gated: !spec["schedulingGates"].items().is_empty(),
            told_gated: status["conditions"].items().iter().any(|condition| {
                condition["type"].text() == "PodScheduled" && condition["reason"].text() == "SchedulingGated"
            }),
            restarts: status["containerStatuses"]
                .items()
                .iter()
                .filter_map(|container| container["restartCount"].as_int())
                .max()
                .unwrap_or(0),
            ips: match &status["podIPs"] {
                Value::Null => 0,
                ips => base::hash64(&ips.to_json()),
            },
            tolerations: base::hash64(&spec["tolerations"].to_json()),
            has_own_claims: spec["volumes"].items().iter().any(|volume| volume.get("ephemeral").is_some()),
        }
    }
}

/// For `Rules::facts` of pods.
pub fn facts(pod: &Value) -> Option<Arc<dyn Any + Send + Sync>> {
    Some(Arc::new(PodFacts::of(pod)))
}

/// The facts of a pod object.
pub fn of(pod: &Object) -> &PodFacts {
    static NONE: PodFacts = PodFacts {
        node: Str::const_new(""),
        phase: Phase::Unknown,
        ready: false,
        ready_since: Time::ZERO,
        scheduler: Str::const_new(""),
        priority: 0,
        gated: false,
        told_gated: false,
        restarts: 0,
        ips: 0,
        tolerations: 0,
        has_own_claims: false,
    };
    pod.own().unwrap_or(&NONE)
}

/// The node a pod is bound to, for the index.
pub fn node_of(pod: &Object, out: &mut Vec<Str>) {
    let node = &of(pod).node;
    if !node.is_empty() {
        out.push(node.clone());
    }
}

/// The namespace of a pod that no controller owns, for the index.
pub fn orphan_of(pod: &Object, out: &mut Vec<Str>) {
    if pod.facts().controller().is_none() {
        out.push(pod.facts().namespace.clone());
    }
}
