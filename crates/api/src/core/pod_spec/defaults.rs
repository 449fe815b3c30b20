//! What a pod gets that says nothing.

use meta::{Str, Value};

use super::CONTAINER_LISTS;

/// Permissions of files in volumes: 0644.
const FILE_MODE: i64 = 0o644;
/// Longest reference to an image.
const IMAGE_LEN_MAX: usize = 255;
/// Life of a projected token.
const TOKEN_SECONDS: i64 = 3600;

/// Defaults of a pod's spec, wherever it stands.
pub fn spec(spec: &mut Value) {
    spec.default("dnsPolicy", "ClusterFirst");
    spec.default("restartPolicy", "Always");
    spec.default("securityContext", Value::map());
    spec.default("terminationGracePeriodSeconds", 30i64);
    spec.default("schedulerName", "default-scheduler");
    // A negative grace was always the shortest one.
    if spec["terminationGracePeriodSeconds"].as_int().is_some_and(|seconds| seconds < 0) {
        spec.set(&["terminationGracePeriodSeconds"], 1i64);
    }
    same_account(spec);
    for list in CONTAINER_LISTS {
        if let Some(containers) = spec.get_mut(list) {
            containers.items_mut().iter_mut().for_each(container);
        }
    }
    if let Some(volumes) = spec.get_mut("volumes") {
        volumes.items_mut().iter_mut().for_each(volume);
    }
}

/// Defaults that pods have and templates have not.
pub fn pod_only(spec: &mut Value) {
    spec.default("enableServiceLinks", true);
    let host_network = spec["hostNetwork"].is_true();
    for list in ["initContainers", "containers"] {
        let Some(containers) = spec.get_mut(list) else { continue };
        for container in containers.items_mut() {
            if host_network {
                host_ports(container);
            }
            requests_of_limits(container);
        }
    }
}

/// The account has two names; both say the same.
fn same_account(spec: &mut Value) {
    let name: Str = spec["serviceAccountName"].text().into();
    let old: Str = spec["serviceAccount"].text().into();
    match (name.is_empty(), old.is_empty()) {
        (false, _) => spec.set(&["serviceAccount"], name),
        (true, false) => spec.set(&["serviceAccountName"], old),
        (true, true) => {}
    }
}

fn host_ports(container: &mut Value) {
    let Some(ports) = container.get_mut("ports") else { return };
    for port in ports.items_mut() {
        if port["hostPort"].as_int().unwrap_or(0) == 0
            && let Some(number) = port["containerPort"].as_int()
        {
            port.set(&["hostPort"], number);
        }
    }
}

/// A request that is not given is the limit.
fn requests_of_limits(container: &mut Value) {
    let limits = container.at(&["resources", "limits"]).clone();
    for (name, limit) in limits.entries().iter() {
        container.make(&["resources", "requests"]).default(name, limit.clone());
    }
}

/// The pull policy that belongs to an image: `latest` may move, everything else stays.
pub fn pull_policy(image: &str) -> &'static str {
    // An image that is no reference has no tag to judge by.
    if image.is_empty() || image.len() > IMAGE_LEN_MAX || image.contains(char::is_whitespace) {
        return "IfNotPresent";
    }
    let (name, digest) = match image.split_once('@') {
        Some((name, _)) => (name, true),
        None => (image, false),
    };
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.split_once(':') {
        Some((_, "latest")) => "Always",
        None if !digest => "Always",
        _ => "IfNotPresent",
    }
}

fn container(container: &mut Value) {
    if container["imagePullPolicy"].text().is_empty() {
        let policy = pull_policy(container["image"].text());
        container.set(&["imagePullPolicy"], policy);
    }
    for (key, value) in [("terminationMessagePath", "/dev/termination-log"), ("terminationMessagePolicy", "File")] {
        if container[key].text().is_empty() {
            container.set(&[key], value);
        }
    }
    if let Some(ports) = container.get_mut("ports") {
        for port in ports.items_mut() {
            if port["protocol"].text().is_empty() {
                port.set(&["protocol"], "TCP");
            }
        }
    }
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(found) = container.get_mut(key).filter(|found| !found.is_null()) {
            probe(found);
        }
    }
    for key in ["postStart", "preStop"] {
        if let Some(handler) = container.at_mut(&["lifecycle", key]) {
            http_get(handler);
        }
    }
    if let Some(env) = container.get_mut("env") {
        for var in env.items_mut() {
            if let Some(reference) = var.at_mut(&["valueFrom", "fieldRef"]).filter(|found| !found.is_null()) {
                field_ref(reference);
            }
            if let Some(reference) = var.at_mut(&["valueFrom", "fileKeyRef"]).filter(|found| !found.is_null()) {
                reference.default("optional", false);
            }
        }
    }
}

fn field_ref(reference: &mut Value) {
    if reference["apiVersion"].text().is_empty() {
        reference.set(&["apiVersion"], "v1");
    }
}

fn http_get(handler: &mut Value) {
    if let Some(get) = handler.get_mut("httpGet").filter(|found| !found.is_null()) {
        for (key, value) in [("path", "/"), ("scheme", "HTTP")] {
            if get[key].text().is_empty() {
                get.set(&[key], value);
            }
        }
    }
}

fn probe(probe: &mut Value) {
    http_get(probe);
    if let Some(grpc) = probe.get_mut("grpc").filter(|found| !found.is_null()) {
        grpc.default("service", "");
    }
    for (key, value) in
        [("timeoutSeconds", 1i64), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        if probe[key].as_int().unwrap_or(0) == 0 {
            probe.set(&[key], value);
        }
    }
}

fn volume(volume: &mut Value) {
    let sources = volume.entries().iter().filter(|(key, value)| *key != "name" && !value.is_null()).count();
    if sources == 0 {
        volume.set(&["emptyDir"], Value::map());
        return;
    }
    for key in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(key).filter(|found| !found.is_null()) {
            source.default("defaultMode", FILE_MODE);
        }
    }
    downward_items(volume);
    if let Some(sources) = volume.at_mut(&["projected", "sources"]) {
        for source in sources.items_mut() {
            downward_items(source);
            if let Some(token) = source.get_mut("serviceAccountToken").filter(|found| !found.is_null()) {
                token.default("expirationSeconds", TOKEN_SECONDS);
            }
        }
    }
    if let Some(path) = volume.get_mut("hostPath").filter(|found| !found.is_null()) {
        path.default("type", "");
    }
    if let Some(image) = volume.get_mut("image").filter(|found| !found.is_null())
        && image["pullPolicy"].text().is_empty()
    {
        let policy = pull_policy(image["reference"].text());
        image.set(&["pullPolicy"], policy);
    }
    if let Some(claim) = volume.at_mut(&["ephemeral", "volumeClaimTemplate", "spec"]) {
        claim.default("volumeMode", "Filesystem");
    }
    network_disks(volume);
}

fn network_disks(volume: &mut Value) {
    const DEFAULTS: &[(&str, &[(&str, &str)])] = &[
        ("iscsi", &[("iscsiInterface", "default")]),
        ("rbd", &[("pool", "rbd"), ("user", "admin"), ("keyring", "/etc/ceph/keyring")]),
        ("azureDisk", &[("cachingMode", "ReadWrite"), ("kind", "Shared"), ("fsType", "ext4")]),
        ("scaleIO", &[("storageMode", "ThinProvisioned"), ("fsType", "xfs")]),
    ];
    for (kind, defaults) in DEFAULTS {
        let Some(source) = volume.get_mut(kind).filter(|found| !found.is_null()) else { continue };
        for (key, value) in *defaults {
            if source[*key].text().is_empty() {
                source.set(&[key], *value);
            }
        }
        if *kind == "azureDisk" {
            source.default("readOnly", false);
        }
    }
}

fn downward_items(source: &mut Value) {
    if let Some(items) = source.at_mut(&["downwardAPI", "items"]) {
        for item in items.items_mut() {
            if let Some(reference) = item.get_mut("fieldRef").filter(|found| !found.is_null()) {
                field_ref(reference);
            }
        }
    }
}

/// A persistent volume's sources have the same defaults.
pub fn volume_source(source: &mut Value) {
    network_disks(source);
    if let Some(path) = source.get_mut("hostPath").filter(|found| !found.is_null()) {
        path.default("type", "");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::json;

    #[test]
    fn pull_policies() {
        for (image, policy) in [
            ("a", "Always"),
            ("A b", "IfNotPresent"),
            ("a:latest", "Always"),
            ("a:1", "IfNotPresent"),
            ("host:5000/a", "Always"),
            ("host:5000/a:1", "IfNotPresent"),
            ("a@sha256:00", "IfNotPresent"),
            ("a:latest@sha256:00", "Always"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn doing_it_twice_changes_nothing() {
        let mut once = json!({"containers": [{"name": "a", "image": "a:1", "ports": [{"containerPort": 1}]}],
            "volumes": [{"name": "v"}], "serviceAccount": "x"});
        spec(&mut once);
        pod_only(&mut once);
        let mut twice = once.clone();
        spec(&mut twice);
        pod_only(&mut twice);
        assert_eq!(once, twice);
        assert_eq!(once["serviceAccountName"].text(), "x");
        assert!(once["volumes"][0]["emptyDir"].as_map().is_some());
    }
}
