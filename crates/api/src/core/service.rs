//! Services: defaults, checks and columns. What the system gives them (addresses, ports) is in `service_alloc`.

use std::any::Any;
use std::sync::Arc;

use base::Time;
use meta::{At, Change, Column, Companion, Errors, Prepare, Rules, Status, Str, Value, names};

use super::service_alloc as alloc;
use crate::apps::labels_text;
use crate::check;
use crate::columns::{age, column};

pub struct Service {
    columns: Vec<Column>,
}

impl Service {
    pub fn new() -> Service {
        Service {
            columns: vec![
                column("Type", "string", 0),
                column("Cluster-IP", "string", 0),
                column("External-IP", "string", 0),
                column("Port(s)", "string", 0),
                column("Age", "string", 0),
                column("Selector", "string", 1),
            ],
        }
    }
}

impl Default for Service {
    fn default() -> Service {
        Service::new()
    }
}

/// How long a client keeps its endpoint, in seconds.
const STICKY_SECONDS: i64 = 10_800;
const STICKY_SECONDS_MAX: i64 = 86_400;

/// Whether a type is reached from outside.
pub fn is_external(of_type: &str) -> bool {
    matches!(of_type, "NodePort" | "LoadBalancer")
}

impl Rules for Service {
    fn facts(&self, object: &Value) -> Option<Arc<dyn Any + Send + Sync>> {
        super::selecting::by_map(object)
    }

    fn check_name(&self, name: &str) -> Vec<String> {
        names::dns_label(name)
    }

    fn defaults(&self, object: &mut Value) {
        let spec = object.make(&["spec"]);
        for (key, value) in [("sessionAffinity", "None"), ("type", "ClusterIP")] {
            if spec[key].text().is_empty() {
                spec.set(&[key], value);
            }
        }
        match spec["sessionAffinity"].text() {
            "None" => {
                spec.take(&["sessionAffinityConfig"]);
            }
            "ClientIP" => spec.make(&["sessionAffinityConfig", "clientIP"]).default("timeoutSeconds", STICKY_SECONDS),
            _ => {}
        }
        if let Some(ports) = spec.get_mut("ports") {
            for port in ports.items_mut() {
                if port["protocol"].text().is_empty() {
                    port.set(&["protocol"], "TCP");
                }
                let target = &port["targetPort"];
                if target.is_null() || target.as_int() == Some(0) || target.as_str() == Some("") {
                    let number = port["port"].clone();
                    port.set(&["targetPort"], number);
                }
            }
        }
        let of_type: Str = spec["type"].text().into();
        if is_external(&of_type) && spec["externalTrafficPolicy"].text().is_empty() {
            spec.set(&["externalTrafficPolicy"], "Cluster");
        }
        if is_external(&of_type) || of_type == "ClusterIP" {
            spec.default("internalTrafficPolicy", "Cluster");
        }
        if of_type == "LoadBalancer" {
            spec.default("allocateLoadBalancerNodePorts", true);
        }
    }

    fn prepare(&self, cx: &mut Prepare<'_>, object: &mut Value) -> Result<(), Status> {
        if !cx.change.subresource.is_empty() {
            return Ok(());
        }
        match cx.change.old {
            None => object.set(&["status"], meta::json!({"loadBalancer": {}})),
            Some(old) => alloc::keep(object, old),
        }
        alloc::families(object);
        // What is wrong is said by the check, which comes later; nothing is given to such a service.
        let mut errors = Errors::default();
        self.check(&Change { old: None, ..cx.change }, &At::root(object), &mut errors);
        if errors.is_empty() { alloc::allocate(cx, object) } else { Ok(()) }
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        if change.is_status() {
            return;
        }
        let spec = at.field("spec");
        let of_type = spec.field("type");
        let headless = spec.field("clusterIP").text() == "None";
        let ports = spec.field("ports");
        if ports.is_empty() && !headless && of_type.text() != "ExternalName" {
            errors.required(&ports.path, "");
        }
        check::word(&of_type, &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], errors);
        check_external_name(&spec, errors);
        check_ports(&spec, errors);
        check::labels(&spec.field("selector"), errors);
        check_affinity(&spec, errors);
        check_addresses(&spec, errors);
        check_balancer(&spec, errors);
        check_policies(&spec, errors);
        if let Some(old) = change.old {
            check_update(&spec, &old["spec"], errors);
        }
    }

    fn released(&self, object: &Value) -> Vec<Companion> {
        alloc::released(object)
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let spec = &object["spec"];
        let address = match (spec["clusterIPs"][0].text(), spec["clusterIP"].text()) {
            ("", "") => "<none>",
            ("", address) => address,
            (address, _) => address,
        };
        vec![
            spec["type"].clone(),
            address.into(),
            outside(object).into(),
            ports_text(&spec["ports"]).into(),
            age(object, now),
            labels_text(&spec["selector"]),
        ]
    }

    fn selectable(&self, object: &Value, field: &str) -> Option<Str> {
        match field {
            "spec.clusterIP" => Some(object.at(&["spec", "clusterIP"]).text().into()),
            "spec.type" => Some(object.at(&["spec", "type"]).text().into()),
            _ => None,
        }
    }
}

fn texts(value: &Value) -> Vec<&str> {
    value.items().iter().map(Value::text).collect()
}

fn outside(service: &Value) -> String {
    let spec = &service["spec"];
    let external = texts(&spec["externalIPs"]);
    match spec["type"].text() {
        "ExternalName" => spec["externalName"].text().to_owned(),
        "LoadBalancer" => {
            let given = service.at(&["status", "loadBalancer", "ingress"]).items();
            let mut all: Vec<&str> = given
                .iter()
                .map(|entry| if entry["ip"].text().is_empty() { entry["hostname"].text() } else { entry["ip"].text() })
                .collect();
            all.extend(external);
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        _ if external.is_empty() => "<none>".to_owned(),
        _ => external.join(","),
    }
}

fn ports_text(ports: &Value) -> String {
    let one = |port: &Value| {
        let (number, protocol) = (port["port"].as_int().unwrap_or(0), port["protocol"].text());
        match port["nodePort"].as_int().unwrap_or(0) {
            0 => format!("{number}/{protocol}"),
            node => format!("{number}:{node}/{protocol}"),
        }
    };
    let all: Vec<String> = ports.items().iter().map(one).collect();
    if all.is_empty() { "<none>".to_owned() } else { all.join(",") }
}

fn check_external_name(spec: &At<'_>, errors: &mut Errors) {
    if spec.field("type").text() != "ExternalName" {
        return;
    }
    for key in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        if !spec.field(key).is_empty() {
            errors.forbidden(&spec.field(key).path, "may not be set for ExternalName services");
        }
    }
    let name = spec.field("externalName");
    match name.text().trim_end_matches('.') {
        "" => errors.required(&name.path, ""),
        text => check::invalid(&name, names::dns_subdomain(text), errors),
    }
}

fn check_ports(spec: &At<'_>, errors: &mut Errors) {
    let ports = spec.field("ports");
    let list = ports.value.items();
    let of_type = spec.field("type").text();
    let nodes = is_external(of_type);
    for (index, port) in ports.items().enumerate() {
        let (name, number) = (port.field("name"), port.field("port"));
        let before = &list[..index];
        if name.is_empty() {
            if list.len() > 1 {
                errors.required(&name.path, "");
            }
        } else {
            check::invalid(&name, names::dns_label(name.text()), errors);
            if before.iter().any(|other| other["name"] == *name.value) {
                errors.duplicate(&name);
            }
        }
        check::port(&number, errors);
        check::word(&port.field("protocol"), &["SCTP", "TCP", "UDP"], errors);
        check::port_or_name(&port.field("targetPort"), errors);
        check::optional(&port.field("appProtocol"), names::qualified_name, errors);
        let node = port.field("nodePort");
        let same =
            |other: &Value, key: &str| other[key] == port.value[key] && other["protocol"] == port.value["protocol"];
        if node.int().unwrap_or(0) != 0 {
            if matches!(of_type, "ClusterIP" | "ExternalName") {
                errors.forbidden(&node.path, format!("may not be used when `type` is '{of_type}'"));
            } else if nodes && before.iter().any(|other| same(other, "nodePort")) {
                errors.duplicate(&node);
            }
        }
        if before.iter().any(|other| same(other, "port")) {
            errors.duplicate(&port);
        }
    }
}

fn check_affinity(spec: &At<'_>, errors: &mut Errors) {
    let (affinity, config) = (spec.field("sessionAffinity"), spec.field("sessionAffinityConfig"));
    check::word(&affinity, &["ClientIP", "None"], errors);
    match affinity.text() {
        "ClientIP" => {
            let client = config.field("clientIP");
            check::within(&client.field("timeoutSeconds"), 1, STICKY_SECONDS_MAX, errors);
        }
        "None" if config.is_set() => {
            errors.forbidden(&config.path, "must not be set when session affinity is None");
        }
        _ => {}
    }
}

fn check_addresses(spec: &At<'_>, errors: &mut Errors) {
    check::set_word(&spec.field("ipFamilyPolicy"), &["PreferDualStack", "RequireDualStack", "SingleStack"], errors);
    let families = spec.field("ipFamilies");
    for (index, family) in families.items().enumerate() {
        check::supported(&family, &["IPv4", "IPv6"], errors);
        if families.value.items()[..index].contains(family.value) {
            errors.duplicate(&family);
        }
    }
    let (address, all) = (spec.field("clusterIP"), spec.field("clusterIPs"));
    if !all.is_empty() && all.value[0].text() != address.text() {
        errors.invalid(&all, "first value must match `clusterIP`");
    }
    if all.is_empty() && !address.is_empty() && spec.field("type").text() != "ExternalName" {
        errors.required(&all.path, "");
    }
    for one in all.items() {
        if one.text() == "None" {
            if is_external(spec.field("type").text()) {
                errors.invalid(&one, "may not be set to 'None' for services that are reached from outside");
            }
            continue;
        }
        check::address(&one, errors);
    }
    for one in spec.field("externalIPs").items() {
        check::address(&one, errors);
        if let Ok(address) = one.text().parse::<std::net::IpAddr>()
            && (address.is_loopback() || address.is_unspecified() || address.is_multicast())
        {
            errors.invalid(&one, "may not be a loopback, unspecified or multicast address");
        }
    }
}

fn check_balancer(spec: &At<'_>, errors: &mut Errors) {
    let balancer = spec.field("type").text() == "LoadBalancer";
    let only = "may only be used when `type` is 'LoadBalancer'";
    let ranges = spec.field("loadBalancerSourceRanges");
    if !ranges.is_empty() {
        // The path has its Go name upstream, so clients see it so.
        let place = spec.path.field("LoadBalancerSourceRanges");
        if !balancer {
            errors.forbidden(&place, only);
        }
        for (index, range) in ranges.value.items().iter().enumerate() {
            check::cidr(&At { value: &Value::Str(range.text().trim().into()), path: place.index(index) }, errors);
        }
    }
    let allocate = spec.field("allocateLoadBalancerNodePorts");
    match (balancer, allocate.is_set()) {
        (true, false) => errors.required(&allocate.path, ""),
        (false, true) => errors.forbidden(&allocate.path, only),
        _ => {}
    }
    let class = spec.field("loadBalancerClass");
    if class.is_set() {
        if balancer {
            check::invalid(&class, names::qualified_name(class.text()), errors);
        } else {
            errors.forbidden(&class.path, only);
        }
    }
}

fn check_policies(spec: &At<'_>, errors: &mut Errors) {
    let of_type = spec.field("type").text();
    let external = spec.field("externalTrafficPolicy");
    let reached = is_external(of_type) || (of_type == "ClusterIP" && !spec.field("externalIPs").is_empty());
    if !reached {
        if !external.is_empty() {
            errors.invalid(&external, "may only be set for externally-accessible services");
        }
    } else if !external.is_empty() || is_external(of_type) {
        check::word(&external, &["Cluster", "Local"], errors);
    }
    let internal = spec.field("internalTrafficPolicy");
    if internal.is_set() {
        check::supported(&internal, &["Cluster", "Local"], errors);
    } else if matches!(of_type, "ClusterIP" | "NodePort" | "LoadBalancer") {
        errors.required(&internal.path, "");
    }
    let health = spec.field("healthCheckNodePort");
    let needed = of_type == "LoadBalancer" && external.text() == "Local";
    if health.int().unwrap_or(0) != 0 && !needed {
        errors.invalid(&health, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'");
    }
    let distribution = spec.field("trafficDistribution");
    check::set_word(&distribution, &["PreferClose", "PreferSameNode", "PreferSameZone"], errors);
}

fn check_update(spec: &At<'_>, old: &Value, errors: &mut Errors) {
    let (address, before) = (spec.field("clusterIPs"), &old["clusterIPs"]);
    let both = spec.field("type").text() != "ExternalName" && old["type"].text() != "ExternalName";
    if both && !before[0].text().is_empty() && address.value[0] != before[0] {
        errors.invalid(&address.index(0), "may not change once set");
    }
    let health = spec.field("healthCheckNodePort");
    let was = old["healthCheckNodePort"].as_int().unwrap_or(0);
    let needed = spec.field("type").text() == "LoadBalancer" && spec.field("externalTrafficPolicy").text() == "Local";
    if was != 0 && needed && health.int().unwrap_or(0) != was {
        errors.forbidden(&health.path, "field is immutable");
    }
    let class = spec.field("loadBalancerClass");
    let balancers = spec.field("type").text() == "LoadBalancer" && old["type"].text() == "LoadBalancer";
    if balancers && *class.value != old["loadBalancerClass"] {
        errors.invalid(&class, "may not change once set");
    }
}
