//! New nodes take no pods until they were seen ready.

use meta::{Resource, Status, json};

use super::{Admission, Review};

pub const NODES: Resource = Resource("nodes");
const NOT_READY: &str = "node.kubernetes.io/not-ready";

pub struct TaintNodesByCondition;

impl Admission for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    fn mutate(&self, review: &mut Review<'_>) -> Result<(), Status> {
        if review.operation != "CREATE" || !review.is("nodes", "") {
            return Ok(());
        }
        let taints = review.object.make(&["spec", "taints"]).make_list();
        let is_there =
            taints.iter().any(|taint| taint["key"].text() == NOT_READY && taint["effect"].text() == "NoSchedule");
        if !is_there {
            taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
        }
        Ok(())
    }
}
