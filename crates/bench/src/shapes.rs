//! Nodes and pods as users and upstream's scheduler benchmark have them. Facts of sizes: `scheduler_perf` (upstream's
//! integration benchmark of the scheduler): nodes of 4 CPU, 32 Gi and 110 pods; pods of 100 m and 500 Mi.

use base::Time;
use meta::{Value, json};

use crate::door::Door;
use crate::error::Error;

/// The type of merge patches.
pub const STRATEGIC: &str = "application/strategic-merge-patch+json";
pub const MERGE: &str = "application/merge-patch+json";
pub const NODES: &str = "/api/v1/nodes";
/// Where measured pods are made.
pub const NAMESPACE: &str = "bench";

pub fn pods_path(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods")
}

pub fn node_name(number: usize) -> String {
    format!("node-{number:05}")
}

pub fn pod_name(prefix: &str, number: usize) -> String {
    format!("{prefix}-{number:06}")
}

/// A node that is well, in one of `zones` zones.
pub fn node(number: usize, zones: usize, now: Time) -> Value {
    let name = node_name(number);
    let amounts = json!({"cpu": "4", "memory": "32Gi", "pods": "110", "example.com/device": "10"});
    let zone = format!("zone-{}", number % zones.max(1));
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": (name.as_str()), "labels": {
            "kubernetes.io/hostname": (name.as_str()), "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
            "topology.kubernetes.io/zone": zone,
        }},
        "status": {
            "capacity": (amounts.clone()), "allocatable": amounts, "conditions": (node::node_object::conditions(now)),
            "addresses": [{"type": "InternalIP", "address": (format!("10.{}.{}.{}", 64 + number / 65536, number / 256 % 256, number % 256))}],
            "nodeInfo": {"kubeletVersion": "v1.37.0", "kernelVersion": "6.1", "osImage": "Linux", "architecture": "amd64"},
        },
    })
}

/// A node's lease as its kubelet makes it.
pub fn lease(name: &str, now: Time) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": name, "namespace": "kube-node-lease"},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": (now.rfc3339_micro())},
    })
}

/// Upstream's base pod: 100 m of CPU and 500 Mi.
pub fn base_pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"containers": [{
            "name": "pause", "image": "registry.k8s.io/pause:3.10", "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "100m", "memory": "500Mi"}, "requests": {"cpu": "100m", "memory": "500Mi"}},
        }]},
    })
}

/// A pod of the usual size: about 3.3 KB as compact JSON once the server has it.
pub fn usual_pod(name: &str) -> Value {
    let env: Vec<Value> = ["HTTP_PORT", "LOG_LEVEL", "REGION", "DATABASE_HOST", "CACHE_HOST"]
        .into_iter()
        .map(|key| json!({"name": key, "value": (format!("value-of-{}", key.to_lowercase()))}))
        .collect();
    // A probe that goes well tells the API nothing: it is the nodes' own work, which one thread does for all of them here.
    let probe = json!({"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 60});
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": NAMESPACE,
            "labels": {"app.kubernetes.io/name": "web", "app.kubernetes.io/part-of": "shop", "pod-template-hash": "5d8f6c7b9"},
            "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "8080"},
        },
        "spec": {
            "containers": [{
                "name": "web", "image": "registry.example/shop/web:1.42.0", "env": env,
                "ports": [{"containerPort": 8080, "name": "http", "protocol": "TCP"}],
                "resources": {"limits": {"cpu": "500m", "memory": "512Mi"}, "requests": {"cpu": "100m", "memory": "256Mi"}},
                "livenessProbe": (probe.clone()), "readinessProbe": probe,
                "volumeMounts": [{"name": "config", "mountPath": "/etc/web"}],
            }],
            "volumes": [{"name": "config", "configMap": {"name": "web"}}],
        },
    })
}

/// All pods of a path as they are stored, ready to be written back whatever became of them meanwhile.
///
/// # Errors
/// They cannot be listed.
pub async fn stored_pods(door: &Door, path: &str) -> Result<Vec<Value>, Error> {
    let mut list = Value::parse(&door.get(path).await?).map_err(Error::while_doing("read a list"))?;
    let mut pods: Vec<Value> = std::mem::take(list.make(&["items"]).make_list()).into_iter().collect();
    for pod in &mut pods {
        pod.set(&["apiVersion"], "v1");
        pod.set(&["kind"], "Pod");
        pod.take(&["metadata", "resourceVersion"]);
    }
    Ok(pods)
}

/// What a kubelet says of a usual pod that runs.
pub fn running_status(number: usize, now: Time) -> Value {
    let at = now.rfc3339();
    let condition = |of_type: &str| json!({"type": of_type, "status": "True", "lastTransitionTime": (at.as_str())});
    let types = ["Initialized", "PodReadyToStartContainers", "Ready", "ContainersReady", "PodScheduled"];
    let address = format!("10.{}.{}.{}", 128 + number / 65_536, number / 256 % 256, number % 256);
    json!({"status": {
        "phase": "Running", "startTime": (at.as_str()), "qosClass": "Burstable",
        "hostIP": "192.168.0.1", "hostIPs": [{"ip": "192.168.0.1"}],
        "podIP": (address.as_str()), "podIPs": [{"ip": (address.as_str())}],
        "conditions": (types.iter().map(|of_type| condition(of_type)).collect::<Vec<_>>()),
        "containerStatuses": [{
            "name": "web", "image": "registry.example/shop/web:1.42.0", "ready": true, "started": true, "restartCount": 0,
            "imageID": "registry.example/shop/web@sha256:0f3c1e5a7b9d2f4e6a8c0b1d3f5e7a9c2b4d6f8e0a1c3e5b7d9f1a3c5e7b9d2f",
            "containerID": (format!("gantry://{number:064x}")), "state": {"running": {"startedAt": (at.as_str())}},
        }],
    }})
}

/// The usual pod that no scheduler takes up, for benches of the API alone: it waits at a gate.
pub fn gated_pod(name: &str) -> Value {
    let mut pod = usual_pod(name);
    pod.set(&["spec", "schedulingGates"], json!([{"name": "example.com/bench"}]));
    pod
}

/// A Deployment of usual pods that ask for little.
pub fn deployment(namespace: &str, name: &str, replicas: usize) -> Value {
    let mut pod = usual_pod(name);
    let labels = json!({"app": name});
    pod.set(&["metadata"], json!({"labels": (labels.clone())}));
    // Thirty of them fit on a node of 4 CPU.
    if let Some(container) = pod.at_mut(&["spec", "containers"]).and_then(|all| all.items_mut().first_mut()) {
        container.set(&["resources", "requests", "cpu"], "50m");
    }
    let template = json!({"metadata": (pod["metadata"].clone()), "spec": (pod["spec"].clone())});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": (i64::try_from(replicas).unwrap_or(i64::MAX)), "selector": {"matchLabels": labels},
            "template": template,
        },
    })
}

/// Lets the pods of a Deployment leave a lost node at once.
pub fn bears_no_loss(deployment: &mut Value) {
    let toleration =
        |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0});
    let both = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"].map(toleration);
    deployment.set(&["spec", "template", "spec", "tolerations"], Vec::from(both));
}

/// One shape of load for the scheduler.
pub struct Shape {
    pub name: &'static str,
    pub zones: usize,
    /// Upstream's sizes.
    pub nodes: usize,
    pub initial: usize,
    pub measured: usize,
    /// Upstream's floor in pods a second; 0 where it publishes none.
    pub upstream: f64,
    /// The pods that are there first, and whether they are waited for.
    pub first: fn(&mut Value, usize),
    pub first_binds: bool,
    pub then: fn(&mut Value, usize),
}

fn plain(_: &mut Value, _: usize) {}

/// Upstream puts two on each of its nodes; so one of the sizes follows from the other.
fn named_node(pod: &mut Value, number: usize) {
    let term =
        json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [(node_name(number / 2))]}]});
    let path = ["spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution"];
    pod.set(&path, json!({"nodeSelectorTerms": [term]}));
}

fn spread(pod: &mut Value, _: usize) {
    pod.set(&["metadata", "labels"], json!({"color": "blue"}));
    pod.set(
        &["spec", "topologySpreadConstraints"],
        json!([{
            "maxSkew": 5, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"color": "blue"}},
        }]),
    );
}

fn term(color: &str, key: &str) -> Value {
    json!({"labelSelector": {"matchLabels": {"color": color}}, "topologyKey": key})
}

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";

fn affinity(pod: &mut Value, _: usize) {
    pod.set(&["metadata", "labels"], json!({"color": "blue"}));
    pod.set(&["spec", "affinity", "podAffinity", REQUIRED], json!([(term("blue", "topology.kubernetes.io/zone"))]));
}

fn anti_affinity(pod: &mut Value, _: usize) {
    pod.set(&["metadata", "labels"], json!({"color": "green"}));
    pod.set(&["spec", "affinity", "podAntiAffinity", REQUIRED], json!([(term("green", "kubernetes.io/hostname"))]));
}

fn preferred(pod: &mut Value, _: usize) {
    pod.set(&["metadata", "labels"], json!({"color": "red"}));
    let path = ["spec", "affinity", "podAffinity", "preferredDuringSchedulingIgnoredDuringExecution"];
    pod.set(&path, json!([{"weight": 1, "podAffinityTerm": (term("red", "kubernetes.io/hostname"))}]));
}

fn node_affinity(pod: &mut Value, _: usize) {
    let zones = json!({"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["zone-0", "zone-1"]});
    pod.set(
        &["spec", "affinity", "nodeAffinity", REQUIRED],
        json!({"nodeSelectorTerms": [{"matchExpressions": [zones]}]}),
    );
}

fn ask_for(pod: &mut Value, cpu: &str) {
    let amounts = json!({"cpu": cpu, "memory": "500Mi"});
    if let Some(container) = pod.at_mut(&["spec", "containers"]).and_then(|all| all.items_mut().first_mut()) {
        container.set(&["resources"], json!({"limits": (amounts.clone()), "requests": amounts}));
    }
}

fn low(pod: &mut Value, _: usize) {
    ask_for(pod, "900m");
    pod.set(&["spec", "terminationGracePeriodSeconds"], 0_i64);
}

fn high(pod: &mut Value, _: usize) {
    ask_for(pod, "3");
    pod.set(&["spec", "priorityClassName"], HIGH);
}

/// The class of pods that push others away.
pub const HIGH: &str = "bench-high";

fn too_large(pod: &mut Value, _: usize) {
    ask_for(pod, "9");
}

fn gate(pod: &mut Value, _: usize) {
    pod.set(&["spec", "schedulingGates"], json!([{"name": "example.com/bench"}]));
}

fn device(pod: &mut Value, _: usize) {
    if let Some(container) = pod.at_mut(&["spec", "containers"]).and_then(|all| all.items_mut().first_mut()) {
        container.set(&["resources", "limits", "example.com/device"], "1");
    }
}

/// Four shapes in turn.
fn mixed(pod: &mut Value, number: usize) {
    [spread, affinity, preferred, node_affinity][number % 4](pod, number);
}

const fn shape(
    name: &'static str,
    zones: usize,
    sizes: (usize, usize, usize),
    upstream: f64,
    first: fn(&mut Value, usize),
    then: fn(&mut Value, usize),
) -> Shape {
    let (nodes, initial, measured) = sizes;
    Shape { name, zones, nodes, initial, measured, upstream, first, first_binds: true, then }
}

/// All shapes; `bench schedule --shape NAME`.
pub const SHAPES: &[Shape] = &[
    shape("basic", 1, (5_000, 1_000, 10_000), 680.0, plain, plain),
    shape("basic-large", 1, (5_000, 5_000, 50_000), 810.0, plain, plain),
    shape("named-node", 1, (15_001, 0, 30_000), 1_100.0, plain, named_node),
    shape("spread", 3, (5_000, 5_000, 5_000), 460.0, plain, spread),
    shape("affinity", 1, (5_000, 5_000, 5_000), 35.0, affinity, affinity),
    shape("anti-affinity", 1, (5_000, 1_000, 2_000), 60.0, anti_affinity, anti_affinity),
    shape("preferred", 1, (5_000, 5_000, 5_000), 90.0, preferred, preferred),
    shape("node-affinity", 2, (5_000, 5_000, 10_000), 220.0, plain, node_affinity),
    shape("preemption", 1, (5_000, 20_000, 5_000), 570.0, low, high),
    Shape { first_binds: false, ..shape("unschedulable", 1, (5_000, 20_000, 10_000), 600.0, too_large, plain) },
    Shape { first_binds: false, ..shape("gated", 1, (5_000, 10_000, 10_000), 910.0, gate, plain) },
    shape("mixed", 3, (5_000, 5_000, 5_000), 140.0, mixed, mixed),
    shape("devices", 1, (5_000, 1_000, 10_000), 180.0, plain, device),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_told_apart() {
        for shape in SHAPES {
            let mut pod = base_pod(&pod_name("m", 1));
            (shape.then)(&mut pod, 1);
            assert!(pod["spec"]["containers"].items().len() == 1, "{}", shape.name);
            assert_eq!(SHAPES.iter().filter(|other| other.name == shape.name).count(), 1);
        }
        let size = usual_pod("m-000001").to_json().len();
        assert!((1_000..2_000).contains(&size), "{size}");
        assert_eq!(node(70_000, 3, Time::ZERO)["status"]["addresses"][0]["address"].text(), "10.65.17.112");
    }
}
