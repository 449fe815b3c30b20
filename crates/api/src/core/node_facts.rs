//! What is read of every node once: whether it is well, and what keeps pods away.

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

use meta::{Object, Str, Value};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// A node's projection.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeFacts {
    /// The status of its condition `Ready`; `""` when it has none.
    pub ready: Str,
    /// `spec.taints`.
    pub taints: Arc<Value>,
    /// A fingerprint of `spec`.
    pub spec: u64,
    /// Has a taint that drives pods away (`NoExecute`).
    pub drives_away: bool,
    /// Has one of the taints of a node that is not well.
    pub unwell: bool,
    /// Its part of the pods' addresses; `""` before it got one.
    pub pod_cidr: Str,
    /// A fingerprint of where it and its pods are: of its part of the pods' addresses, and of `status.addresses`.
    pub place: u64,
}

impl NodeFacts {
    pub fn of(node: &Value) -> NodeFacts {
        let (spec, status) = (&node["spec"], &node["status"]);
        let taints = spec["taints"].items();
        let ready = status["conditions"].items().iter().find(|condition| condition["type"].text() == "Ready");
        NodeFacts {
            ready: ready.map_or("", |ready| ready["status"].text()).into(),
            taints: Arc::new(spec["taints"].clone()),
            spec: base::hash64(&spec.to_json()),
            drives_away: taints.iter().any(|taint| taint["effect"].text() == "NoExecute"),
            pod_cidr: spec["podCIDR"].text().into(),
            place: base::hash64(
                &[&spec["podCIDR"], &spec["podCIDRs"], &status["addresses"]].map(|part| part.to_json()).concat(),
            ),
            unwell: taints.iter().any(|taint| matches!(taint["key"].text(), NOT_READY | UNREACHABLE)),
        }
    }

    /// The facts of a node object, read anew where its mirror keeps none.
    pub fn seen(node: &Object) -> Cow<'_, NodeFacts> {
        node.own().map_or_else(|| Cow::Owned(NodeFacts::of(&node.value())), Cow::Borrowed)
    }

    /// The same to be kept.
    pub fn read(node: &Object) -> NodeFacts {
        NodeFacts::seen(node).into_owned()
    }
}

/// For `Rules::facts` of nodes.
pub fn facts(node: &Value) -> Option<Arc<dyn Any + Send + Sync>> {
    Some(Arc::new(NodeFacts::of(node)))
}

/// Where a node and its pods are, for the index [`PLACE`].
pub fn place_of(node: &Object, out: &mut Vec<Str>) {
    out.push(format!("{:x}", NodeFacts::seen(node).place).into());
}

/// The annotation in which a node that comes anew says which network its pods had before.
pub const HAD_NETWORK: &str = "gantry/had-network";

/// The index that files nodes elsewhere when their place is another one.
pub const PLACE: &str = "place";
