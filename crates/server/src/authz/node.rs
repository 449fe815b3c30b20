//! What a node may do: only what concerns itself and the pods bound to it.
//!
//! The rules are those of upstream's node authorizer: fixed rules for its own objects, and reads of secrets, config
//! maps, claims and volumes only where a pod on the node refers to them.

use api::core::volume_binding::{self, CLAIMS};
use api::rbac::{Ask, PolicyRule};
use cache::View;
use meta::{Object, Resource, Str, Value, json};
use std::sync::LazyLock;

use super::{Attributes, Decision};

pub const PODS: Resource = Resource("pods");
const CERTIFICATE_REQUESTS: Resource = Resource("podcertificaterequests.certificates.k8s.io");
const ATTACHMENTS: Resource = Resource("volumeattachments.storage.k8s.io");

/// What every node may do without a look at any pod.
static RULES: LazyLock<Vec<PolicyRule>> = LazyLock::new(|| {
    let rules = json!([
        {"verbs": ["create"], "apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"]},
        {"verbs": ["create"], "apiGroups": ["authorization.k8s.io"],
         "resources": ["localsubjectaccessreviews", "subjectaccessreviews"]},
        {"verbs": ["get", "list", "watch"], "apiGroups": [""], "resources": ["services"]},
        {"verbs": ["create", "get", "list", "watch"], "apiGroups": [""], "resources": ["nodes"]},
        {"verbs": ["patch", "update"], "apiGroups": [""], "resources": ["nodes/status", "nodes"]},
        {"verbs": ["create", "patch", "update"], "apiGroups": ["", "events.k8s.io"], "resources": ["events"]},
        {"verbs": ["create", "delete"], "apiGroups": [""], "resources": ["pods"]},
        {"verbs": ["patch", "update"], "apiGroups": [""], "resources": ["pods/status"]},
        {"verbs": ["create"], "apiGroups": [""], "resources": ["pods/eviction"]},
        {"verbs": ["create", "get", "list", "watch"], "apiGroups": ["certificates.k8s.io"],
         "resources": ["certificatesigningrequests"]},
        {"verbs": ["get", "list", "watch"], "apiGroups": ["certificates.k8s.io"],
         "resources": ["clustertrustbundles"]},
        {"verbs": ["get", "list", "watch"], "apiGroups": ["node.k8s.io"], "resources": ["runtimeclasses"]},
        {"verbs": ["get", "list", "watch"], "apiGroups": ["storage.k8s.io"], "resources": ["csidrivers"]},
        {"verbs": ["get", "list", "watch"], "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"]}
    ]);
    rules.items().iter().map(PolicyRule::of).collect()
});

pub fn decide(attributes: &Attributes<'_>, view: &View) -> Decision {
    let none = Decision::NoOpinion(String::new());
    let Some(node) = attributes.user.node() else { return none };
    if !attributes.is_resource {
        // The key of its own signs of life.
        let own = attributes.path.strip_prefix("/beat/") == Some(node);
        return if own && attributes.verb == "get" { Decision::Allow(String::new()) } else { none };
    }
    let reads = matches!(attributes.verb, "get" | "list" | "watch");
    let named = !attributes.name.is_empty();
    let graph = |found: bool| {
        if found {
            Decision::Allow(String::new())
        } else {
            let what = attributes.resource;
            Decision::NoOpinion(format!("no relationship found between node {node:?} and this object ({what})"))
        }
    };
    match (attributes.group, attributes.resource, attributes.subresource) {
        ("", "secrets" | "configmaps", "") => {
            if !reads || !named {
                return Decision::NoOpinion("can only read namespaced object of this type".to_owned());
            }
            graph(pods_of(view, node).any(|pod| {
                pod.namespace() == attributes.namespace && refers(&pod.value(), attributes.resource, attributes.name)
            }))
        }
        ("", "persistentvolumeclaims", "") if attributes.verb == "get" => graph(
            claims_of(view, node).any(|(namespace, name)| namespace == attributes.namespace && name == attributes.name),
        ),
        ("", "persistentvolumes", "") if attributes.verb == "get" => {
            graph(claims_of(view, node).any(|(namespace, name)| {
                let claim = view.one(CLAIMS, &namespace, &name);
                claim.is_some_and(|claim| claim.value().at(&["spec", "volumeName"]).text() == attributes.name)
            }))
        }
        ("", "pods", "") if reads => {
            if attributes.verb != "get" && attributes.fields.exact("spec.nodeName") == Some(node) {
                return Decision::Allow(String::new());
            }
            if !named {
                let why = format!("can only {} pods with spec.nodeName field selector", attributes.verb);
                return Decision::NoOpinion(why);
            }
            let mut own = pods_of(view, node);
            graph(own.any(|pod| pod.namespace() == attributes.namespace && pod.name() == attributes.name))
        }
        ("storage.k8s.io", "volumeattachments", "") if attributes.verb == "get" => {
            let attachment = view.one(ATTACHMENTS, "", attributes.name);
            graph(attachment.is_some_and(|attachment| attachment.value().at(&["spec", "nodeName"]).text() == node))
        }
        ("", "serviceaccounts", subresource @ ("" | "token"))
            if attributes.verb == if subresource.is_empty() { "get" } else { "create" } =>
        {
            graph(pods_of(view, node).any(|pod| {
                pod.namespace() == attributes.namespace
                    && pod.value().at(&["spec", "serviceAccountName"]).text() == attributes.name
            }))
        }
        ("certificates.k8s.io", "podcertificaterequests", "") => match attributes.verb {
            "create" => Decision::Allow(String::new()),
            "list" | "watch" if attributes.fields.exact("spec.nodeName") == Some(node) => {
                Decision::Allow(String::new())
            }
            "get" => {
                let request = view.one(CERTIFICATE_REQUESTS, attributes.namespace, attributes.name);
                graph(request.is_some_and(|request| request.value().at(&["spec", "nodeName"]).text() == node))
            }
            _ => none,
        },
        ("coordination.k8s.io", "leases", "") => {
            let own = attributes.namespace == "kube-node-lease" && attributes.name == node;
            let creates = attributes.verb == "create" && attributes.namespace == "kube-node-lease";
            let verbs = matches!(attributes.verb, "get" | "update" | "patch" | "delete");
            if creates || (own && verbs) { Decision::Allow(String::new()) } else { none }
        }
        ("storage.k8s.io", "csinodes", "") => {
            let verbs = matches!(attributes.verb, "get" | "update" | "patch" | "delete");
            if attributes.verb == "create" || (verbs && attributes.name == node) {
                Decision::Allow(String::new())
            } else {
                none
            }
        }
        _ => {
            let ask = Ask {
                verb: attributes.verb,
                group: attributes.group,
                resource: attributes.resource,
                subresource: attributes.subresource,
                name: attributes.name,
                url: None,
            };
            if RULES.iter().any(|rule| rule.allows(&ask)) { Decision::Allow(String::new()) } else { none }
        }
    }
}

/// The pods bound to a node.
pub fn pods_of<'a>(view: &'a View, node: &str) -> impl Iterator<Item = &'a Object> + use<'a> {
    view.by(PODS, "node", node)
}

fn claims_of(view: &View, node: &str) -> impl Iterator<Item = (Str, Str)> {
    pods_of(view, node).flat_map(|pod| {
        let claims = volume_binding::claims_of(pod.name(), &pod.value());
        claims.into_iter().map(|claim| (pod.namespace().into(), claim))
    })
}

/// Whether a pod refers to a secret or config map by name: volumes, environment, pull secrets.
pub fn refers(pod: &Value, resource: &str, name: &str) -> bool {
    let spec = &pod["spec"];
    let secret = resource == "secrets";
    let (volume_key, volume_name) = if secret { ("secret", "secretName") } else { ("configMap", "name") };
    let (from, key_ref) = if secret { ("secretRef", "secretKeyRef") } else { ("configMapRef", "configMapKeyRef") };
    let in_volume = |volume: &Value| {
        let projected = volume.at(&["projected", "sources"]).items();
        volume[volume_key][volume_name].text() == name
            || projected.iter().any(|source| source[volume_key]["name"].text() == name)
            || (secret && volume_drivers(volume).any(|reference| reference == name))
    };
    let in_container = |container: &Value| {
        container["envFrom"].items().iter().any(|source| source[from]["name"].text() == name)
            || container["env"].items().iter().any(|env| env["valueFrom"][key_ref]["name"].text() == name)
    };
    let containers = ["containers", "initContainers", "ephemeralContainers"];
    (secret && spec["imagePullSecrets"].items().iter().any(|pull| pull["name"].text() == name))
        || spec["volumes"].items().iter().any(in_volume)
        || containers.iter().any(|list| spec[*list].items().iter().any(in_container))
}

/// The secrets that a volume's driver is given by name.
fn volume_drivers(volume: &Value) -> impl Iterator<Item = &str> {
    let sources = volume.entries().iter().filter(|(key, _)| *key != "name");
    sources.flat_map(|(_, source)| {
        ["secretRef", "nodePublishSecretRef"].into_iter().map(move |key| source[key]["name"].text())
    })
}
