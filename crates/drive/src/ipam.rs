//! Gives every node its part of the pods' addresses.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::address::Cidr;
use api::core::node_facts::NodeFacts;
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
        let mut free = ranges.map(|base| format!("{base}/{NODE_BITS}")).filter(|cidr| !taken.contains(cidr.as_str()));
        for (at, node) in without.iter().enumerate() {
            let Some(cidr) = free.next() else {
                let (name, more) = (node.name(), without.len() - at - 1);
                tracing::error!("no addresses are left for the pods of node {name} and {more} more");
                break;
            };
            let patch = json!({"metadata": {"uid": (node.uid())}, "spec": {"podCIDR": (&cidr), "podCIDRs": [(&cidr)]}});
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
