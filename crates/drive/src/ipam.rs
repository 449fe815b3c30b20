//! Gives every node its part of the pods' addresses. A node that comes anew gets the part that it had, where nobody else has it
//! by now: others may still lead there what was meant for its pods, and for those of another node it would be wrong.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::address::Cidr;
use api::core::node_facts::{HAD_NETWORK, NodeFacts};
use client::{Api, Mirror, PatchType, Request};
use meta::{Resource, Str, json};

use crate::Shell;
use crate::cursor::interest;

const NODES: Resource = Resource("nodes");
/// Bits of one node's range: 254 pods.
const NODE_BITS: u8 = 24;
/// Pause after a write that failed.
const RETRY_MS: u64 = 1_000;

/// Runs for as long as the process lives.
pub async fn run(cluster: Cidr, mirror: Arc<Mirror>, api: Arc<dyn Api>, shell: Arc<dyn Shell>) {
    let changed = mirror.listen(interest(&[NODES]));
    loop {
        let view = mirror.view();
        let mut taken: BTreeSet<Str> = BTreeSet::new();
        let mut without = Vec::new();
        for node in view.list(NODES, "") {
            let cidr = NodeFacts::read(node).pod_cidr;
            if cidr.is_empty() {
                without.push(node.clone());
            } else {
                taken.insert(cidr);
            }
        }
        let mut failed = false;
        let size = 1u128 << (32 - NODE_BITS);
        let ranges = (0..cluster.size() / size).filter_map(|at| cluster.get(at * size));
        let (mut given, mut fresh) = (Vec::new(), Vec::new());
        for node in without {
            let value = node.value();
            let had = value.at(&["metadata", "annotations", HAD_NETWORK]).text();
            match is_part(had, &cluster) && taken.insert(had.into()) {
                true => given.push((node, had.to_owned())),
                false => fresh.push(node),
            }
        }
        let free = ranges.map(|base| format!("{base}/{NODE_BITS}")).filter(|cidr| !taken.contains(cidr.as_str()));
        let mut left = fresh.into_iter();
        given.extend(free.zip(left.by_ref()).map(|(cidr, node)| (node, cidr)));
        if let Some(node) = left.next() {
            tracing::error!("no addresses are left for the pods of node {} and {} more", node.name(), left.len());
        }
        for (node, cidr) in &given {
            let patch = json!({"metadata": {"uid": (node.uid())}, "spec": {"podCIDR": cidr, "podCIDRs": [cidr]}});
            let request = Request::patch(NODES, "", node.name(), PatchType::Merge, patch);
            if let Err(status) = api.call(request.with(|options| options.manager = "node-ipam".into())).await {
                tracing::warn!("node {} got no addresses: {status}", node.name());
                failed = true;
            }
        }
        if failed {
            shell.sleep(RETRY_MS).await;
        } else {
            changed.changed().await;
        }
    }
}

/// Whether this names a part of the cluster's addresses that a node can have.
fn is_part(text: &str, cluster: &Cidr) -> bool {
    let size = 1u128 << (32 - NODE_BITS);
    let Some(part) = Cidr::parse(text).filter(|part| part.size() == size) else { return false };
    part.get(0).is_some_and(|base| cluster.contains(base) && text == format!("{base}/{NODE_BITS}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_one_that_would_be_given() {
        let cluster = Cidr::parse("10.244.0.0/16").expect("it is a range");
        assert!(is_part("10.244.7.0/24", &cluster));
        for other in ["", "10.244.7.0/25", "10.244.7.1/24", "10.245.7.0/24", "fd00::/24"] {
            assert!(!is_part(other, &cluster), "{other}");
        }
    }
}
