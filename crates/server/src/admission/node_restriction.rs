//! A node writes only its own node object, its own lease, and the pods bound to it.

use meta::{Resource, Status, Value};

use super::{Admission, Review};

const NODES: Resource = Resource("nodes");
const PODS: Resource = Resource("pods");
const ACCOUNTS: Resource = Resource("serviceaccounts");
/// Labels that a node may not set on itself, but for these exceptions.
const RESERVED: &[&str] = &["kubernetes.io", "k8s.io"];
const ALLOWED: &[&str] = &[
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];
const ALLOWED_PREFIXES: &[&str] = &["kubelet.kubernetes.io/", "node.kubernetes.io/"];

pub struct NodeRestriction;

impl Admission for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn validate(&self, review: &mut Review<'_>) -> Result<(), Status> {
        if !review.user.in_group("system:nodes") {
            return Ok(());
        }
        let Some(node) = review.user.node().map(str::to_owned) else {
            return Err(review.forbidden("could not determine node from user"));
        };
        match review.resource.0 {
            "nodes" => check_node(review, &node),
            "pods" => check_pod(review, &node),
            "leases.coordination.k8s.io" => {
                if review.namespace != "kube-node-lease" || review.name() != node {
                    return Err(review.forbidden("can only access the lease of its own node"));
                }
                Ok(())
            }
            "podcertificaterequests.certificates.k8s.io" => check_certificate_request(review, &node),
            _ => Ok(()),
        }
    }
}

fn check_node(review: &Review<'_>, node: &str) -> Result<(), Status> {
    if review.name() != node {
        return Err(review.forbidden(format!("node {node:?} is not allowed to modify node {:?}", review.name())));
    }
    let labels = |object: Option<&Value>| -> Vec<(String, String)> {
        let map = object.map(|object| object.at(&["metadata", "labels"]).entries().clone()).unwrap_or_default();
        map.iter().map(|(key, value)| (key.to_owned(), value.text().to_owned())).collect()
    };
    let (new, old) = (labels((!review.object.is_null()).then_some(&review.object)), labels(review.old));
    if review.operation == "DELETE" {
        return Err(review.forbidden(format!("node {node:?} is not allowed to delete nodes")));
    }
    let touched = new.iter().filter(|pair| !old.contains(pair)).chain(old.iter().filter(|pair| !new.contains(pair)));
    let forbidden: Vec<&str> = touched.map(|(key, _)| key.as_str()).filter(|key| is_reserved(key)).collect();
    if !forbidden.is_empty() {
        return Err(review.forbidden(format!("is not allowed to modify labels: {}", forbidden.join(", "))));
    }
    if let Some(old) = review.old
        && review.subresource.is_empty()
        && old.at(&["spec", "taints"]) != review.object.at(&["spec", "taints"])
    {
        return Err(review.forbidden(format!("node {node:?} is not allowed to modify taints")));
    }
    Ok(())
}

fn is_reserved(key: &str) -> bool {
    let Some((prefix, _)) = key.split_once('/') else { return false };
    let reserved = RESERVED.iter().any(|domain| prefix == *domain || prefix.ends_with(&format!(".{domain}")));
    if prefix.ends_with("node-restriction.kubernetes.io") {
        return true;
    }
    reserved && !ALLOWED.contains(&key) && !ALLOWED_PREFIXES.iter().any(|allowed| key.starts_with(allowed))
}

/// A node asks only for its own pods, as whom they run, and what they mount.
fn check_certificate_request(review: &Review<'_>, node: &str) -> Result<(), Status> {
    let spec = &review.object["spec"];
    if (review.operation, review.subresource) != ("CREATE", "") {
        return Err(review.forbidden(format!("node {node:?} can only create such requests")));
    }
    if spec["nodeName"].text() != node {
        return Err(review.forbidden(format!("it names the node {:?}, not {node:?}", spec["nodeName"].text())));
    }
    let namespaced = |resource: Resource, name: &str| review.view.one(resource, review.namespace, name);
    let (pod, account) = (spec["podName"].text(), spec["serviceAccountName"].text());
    let found = [
        ("node", "nodeUID", review.view.one(NODES, "", node)),
        ("pod", "podUID", namespaced(PODS, pod)),
        ("service account", "serviceAccountUID", namespaced(ACCOUNTS, account)),
    ];
    for (what, uid, object) in &found {
        if object.is_none_or(|object| object.uid() != spec[*uid].text()) {
            return Err(review.forbidden(format!("there is no {what} with that name and uid")));
        }
    }
    let Some(pod) = found[1].2.map(meta::Object::value) else { return Ok(()) };
    if pod.at(&["spec", "nodeName"]).text() != node {
        return Err(review.forbidden(format!("the pod does not run on node {node:?}")));
    }
    if pod.at(&["metadata", "annotations"]).get("kubernetes.io/config.mirror").is_some() {
        return Err(review.forbidden("the pod is a mirror pod"));
    }
    if pod.at(&["spec", "serviceAccountName"]).text() != account {
        return Err(review.forbidden("the pod runs as another service account"));
    }
    let signer = spec["signerName"].text();
    let mut sources =
        pod.at(&["spec", "volumes"]).items().iter().flat_map(|one| one.at(&["projected", "sources"]).items());
    if !sources.any(|source| source.at(&["podCertificate", "signerName"]).text() == signer) {
        return Err(review.forbidden(format!("the pod mounts no certificate of the signer {signer:?}")));
    }
    Ok(())
}

fn check_pod(review: &Review<'_>, node: &str) -> Result<(), Status> {
    let bound = |pod: &Value| pod.at(&["spec", "nodeName"]).text() == node;
    match (review.operation, review.subresource) {
        ("CREATE", "") => {
            let mirror = review.object.at(&["metadata", "annotations"]).get("kubernetes.io/config.mirror").is_some();
            if !mirror {
                return Err(review.forbidden(format!("pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods")));
            }
            if !bound(&review.object) {
                return Err(
                    review.forbidden(format!("node {node:?} can only create pods with spec.nodeName set to itself"))
                );
            }
            Ok(())
        }
        _ => match review.old {
            Some(old) if !bound(old) => {
                Err(review.forbidden(format!("node {node:?} can only change pods with spec.nodeName set to itself")))
            }
            _ => Ok(()),
        },
    }
}
