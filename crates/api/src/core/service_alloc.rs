//! What the system gives to services: addresses and ports of nodes. An address is held by an `IPAddress` object that is
//! written in the same commit, so two services can never have one.

use std::collections::BTreeSet;

use meta::{Companion, Errors, Object, Path, Prepare, Resource, Status, Str, Value};

use super::service::is_external;
use crate::address::Cidr;

const SERVICES: Resource = Resource("services");
const RANGES: Resource = Resource("servicecidrs.networking.k8s.io");
const ADDRESSES: Resource = Resource("ipaddresses.networking.k8s.io");
/// Tries of a free choice before all is looked through.
const TRIES: usize = 32;

/// On an update: what was given stays unless the caller says otherwise, and what the type no longer needs goes.
pub fn keep(object: &mut Value, old: &Value) {
    let before = &old["spec"];
    let spec = object.make(&["spec"]);
    let (now, was): (Str, Str) = (spec["type"].text().into(), before["type"].text().into());
    if now != "ExternalName" && was != "ExternalName" {
        if spec["clusterIP"].text().is_empty() {
            copy(spec, before, "clusterIP");
        }
        if spec["clusterIPs"].items().is_empty() && spec["clusterIP"] == before["clusterIP"] {
            copy(spec, before, "clusterIPs");
        }
        for key in ["ipFamilies", "ipFamilyPolicy"] {
            if spec[key].is_null() {
                copy(spec, before, key);
            }
        }
    }
    if now == "ExternalName" {
        for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            if spec[key] == before[key] {
                spec.take(&[key]);
            }
        }
    }
    keep_ports(spec, before, &now, &was);
    let needs = |spec: &Value| spec["type"].text() == "LoadBalancer" && spec["externalTrafficPolicy"].text() == "Local";
    match (needs(spec), needs(before)) {
        (true, true) if spec["healthCheckNodePort"].as_int().unwrap_or(0) == 0 => {
            copy(spec, before, "healthCheckNodePort");
        }
        (false, true) if spec["healthCheckNodePort"] == before["healthCheckNodePort"] => {
            spec.take(&["healthCheckNodePort"]);
        }
        _ => {}
    }
    if now != "LoadBalancer" && was == "LoadBalancer" {
        for key in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if spec[key] == before[key] {
                spec.take(&[key]);
            }
        }
    }
    if !is_external(&now)
        && (now != "ClusterIP" || spec["externalIPs"].items().is_empty())
        && spec["externalTrafficPolicy"] == before["externalTrafficPolicy"]
    {
        spec.take(&["externalTrafficPolicy"]);
    }
    if now != "LoadBalancer" && was == "LoadBalancer" {
        object.set(&["status", "loadBalancer"], Value::map());
    }
}

fn copy(spec: &mut Value, before: &Value, key: &str) {
    if let Some(value) = before.get(key) {
        spec.set(&[key], value.clone());
    }
}

fn keep_ports(spec: &mut Value, before: &Value, now: &str, was: &str) {
    let Some(ports) = spec.get_mut("ports") else { return };
    let old = before["ports"].items();
    let taken: BTreeSet<i64> = ports.items().iter().filter_map(|port| port["nodePort"].as_int()).collect();
    for port in ports.items_mut() {
        let same = |other: &&Value| other["port"] == port["port"] && other["protocol"] == port["protocol"];
        let given = port["nodePort"].as_int().unwrap_or(0);
        let Some(node) = old.iter().find(same).and_then(|other| other["nodePort"].as_int()) else { continue };
        if is_external(now) && is_external(was) && given == 0 && !taken.contains(&node) {
            port.set(&["nodePort"], node);
        } else if !is_external(now) && is_external(was) && given == node {
            port.take(&["nodePort"]);
        }
    }
}

/// Fills the families and the list of addresses from the single one.
pub fn families(object: &mut Value) {
    let spec = object.make(&["spec"]);
    let address: Str = spec["clusterIP"].text().into();
    if !address.is_empty() && spec["clusterIPs"].is_null() {
        spec.set(&["clusterIPs"], vec![Value::from(&address)]);
    }
    if spec["type"].text() == "ExternalName" {
        return;
    }
    let both = address == "None" && spec["selector"].entries().is_empty();
    spec.default("ipFamilyPolicy", if both { "RequireDualStack" } else { "SingleStack" });
    if spec["ipFamilies"].items().is_empty() {
        let first = if address.contains(':') { "IPv6" } else { "IPv4" };
        let mut all = vec![Value::from(first)];
        if both {
            all.push(if first == "IPv4" { "IPv6" } else { "IPv4" }.into());
        }
        spec.set(&["ipFamilies"], all);
    }
}

/// Takes addresses and ports that the service needs and does not have.
pub fn allocate(cx: &mut Prepare<'_>, object: &mut Value) -> Result<(), Status> {
    let of_type: Str = object.at(&["spec", "type"]).text().into();
    if of_type != "ExternalName" {
        take_address(cx, object)?;
    }
    if let Some(old) = cx.change.old {
        // An address that is no longer used goes free.
        let (was, now) = (old.at(&["spec", "clusterIP"]), object.at(&["spec", "clusterIP"]));
        if was != now {
            cx.companions.extend(released(old));
        }
    }
    let balancer_ports = object.at(&["spec", "allocateLoadBalancerNodePorts"]).as_bool() != Some(false);
    let wants = of_type == "NodePort" || (of_type == "LoadBalancer" && balancer_ports);
    let health = of_type == "LoadBalancer" && object.at(&["spec", "externalTrafficPolicy"]).text() == "Local";
    let asked = object.at(&["spec", "ports"]).items().iter().any(|port| port["nodePort"].as_int().unwrap_or(0) != 0);
    if wants || health || asked { take_ports(cx, object, wants, health) } else { Ok(()) }
}

fn take_address(cx: &mut Prepare<'_>, object: &mut Value) -> Result<(), Status> {
    let given: Str = object.at(&["spec", "clusterIP"]).text().into();
    if given == "None"
        || cx.change.old.is_some_and(|old| old.at(&["spec", "clusterIP"]).text() == given && !given.is_empty())
    {
        return Ok(());
    }
    let Some(first) = cx.lookup.setting("service-cidr").and_then(|range| Cidr::parse(&range)) else {
        return Err(Status::internal("the cluster has no range of service addresses"));
    };
    // Of the ranges that were added, those of the same family; one is taken from when those before it are full.
    let added = || {
        let ranges = cx.lookup.list(RANGES, "").into_iter().filter(is_open);
        let ranges = ranges.flat_map(|range| range.value().at(&["spec", "cidrs"]).items().to_vec());
        let ranges = ranges.filter_map(|range| Cidr::parse(range.text()));
        ranges.filter(|range| range.is_ipv6() == first.is_ipv6() && *range != first).collect::<Vec<Cidr>>()
    };
    let is_free = |address: &str| cx.lookup.one(ADDRESSES, "", address).is_none();
    let address: Str = if given.is_empty() {
        let mut found = free_address(first, cx.rng, &is_free);
        if found.is_none() {
            found = added().into_iter().find_map(|range| free_address(range, cx.rng, &is_free));
        }
        found.ok_or_else(|| Status::internal("failed to allocate a serviceIP: range is full"))?.into()
    } else {
        let is_in = |range: Cidr| given.parse().is_ok_and(|address| range.contains(address));
        let inside = is_in(first) || added().into_iter().any(is_in);
        if !inside || !is_free(&given) {
            let why = if inside { "provided IP is already allocated" } else { "provided IP is not in the valid range" };
            let mut errors = Errors::default();
            let list = Value::from(vec![Value::from(&given)]);
            errors.invalid_value(
                &Path::ROOT.field("spec").field("clusterIPs"),
                list,
                format!("failed to allocate IP {given}: {why}"),
            );
            return Err(Status::invalid("", "Service", object.at(&["metadata", "name"]).text(), &errors));
        }
        given
    };
    object.set(&["spec", "clusterIP"], &address);
    object.set(&["spec", "clusterIPs"], vec![Value::from(&address)]);
    if !cx.dry_run {
        let meta = &object["metadata"];
        cx.companions
            .push(Companion::Create(ADDRESSES, holder(&address, meta["namespace"].text(), meta["name"].text())));
    }
    Ok(())
}

/// Whether services get addresses of a ServiceCIDR.
fn is_open(range: &Object) -> bool {
    let value = range.value();
    let conditions = value.at(&["status", "conditions"]).items();
    range.facts().deleting.is_none()
        && conditions.iter().any(|one| one["type"].text() == "Ready" && one["status"].text() == "True")
}

/// An address of a range that nobody has: any, or the first one where few are left.
fn free_address(range: Cidr, rng: &mut base::Rng, is_free: &impl Fn(&str) -> bool) -> Option<String> {
    // The ends of a range are its network and broadcast.
    let places = u64::try_from(range.size().saturating_sub(2)).unwrap_or(u64::MAX).max(1);
    let any = (0..TRIES).map(|_| 1 + u128::from(rng.below(places)));
    let all = any.chain(1..=u128::from(places)).filter_map(|at| range.get(at)).map(|address| address.to_string());
    all.into_iter().find(|address| is_free(address))
}

/// The object that holds an address.
pub fn holder(address: &str, namespace: &str, name: &str) -> Value {
    let family = if address.contains(':') { "IPv6" } else { "IPv4" };
    meta::json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {"name": (address), "labels": {
            "ipaddress.kubernetes.io/ip-family": (family),
            "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
        }},
        "spec": {"parentRef": {"name": (name), "namespace": (namespace), "resource": "services"}},
    })
}

/// Ports of nodes that services hold, the health checks among them.
fn ports_of(service: &Value) -> impl Iterator<Item = (i64, Str)> {
    let spec = &service["spec"];
    let health = spec["healthCheckNodePort"].as_int().map(|port| (port, Str::from("TCP")));
    let ports = spec["ports"].items().iter();
    ports.filter_map(|port| Some((port["nodePort"].as_int()?, port["protocol"].text().into()))).chain(health)
}

fn take_ports(cx: &mut Prepare<'_>, object: &mut Value, wants: bool, health: bool) -> Result<(), Status> {
    let setting = cx.lookup.setting("node-port-range").unwrap_or_else(|| "30000-32767".into());
    let (first, last) = setting
        .split_once('-')
        .and_then(|(first, last)| Some((first.parse::<i64>().ok()?, last.parse::<i64>().ok()?)))
        .unwrap_or((30_000, 32_767));
    let (namespace, name): (Str, Str) =
        (object.at(&["metadata", "namespace"]).text().into(), object.at(&["metadata", "name"]).text().into());
    let mut used: BTreeSet<(i64, Str)> = BTreeSet::new();
    for service in cx.lookup.list(SERVICES, "") {
        if service.name() != name || service.facts().namespace != namespace {
            used.extend(ports_of(&service.value()));
        }
    }
    let mut errors = Errors::default();
    for (index, (port, protocol)) in ports_of(object).enumerate() {
        let wrong = if !(first..=last).contains(&port) {
            format!("provided port is not in the valid range. The range of valid ports is {setting}")
        } else if used.contains(&(port, protocol)) {
            "provided port is already allocated".to_owned()
        } else {
            continue;
        };
        let (spec, ports) = (Path::ROOT.field("spec"), "ports");
        errors.invalid_value(&spec.field(ports).index(index).field("nodePort"), port, wrong);
    }
    if !errors.is_empty() {
        return Err(Status::invalid("", "Service", &name, &errors));
    }
    used.extend(ports_of(object));
    let full = || Status::internal("failed to allocate a nodePort: range is full");
    let mut free = |protocol: &str| -> Option<i64> {
        let places = u64::try_from(last - first + 1).ok()?;
        let random = (0..TRIES).map(|_| first + i64::try_from(cx.rng.below(places)).unwrap_or(0));
        let port = random
            .chain(first..=last)
            .find(|port| !["TCP", "UDP", "SCTP"].iter().any(|other| used.contains(&(*port, Str::from(*other)))))?;
        used.insert((port, protocol.into()));
        Some(port)
    };
    if wants && let Some(ports) = object.at_mut(&["spec", "ports"]) {
        for port in ports.items_mut() {
            if port["nodePort"].as_int().unwrap_or(0) == 0 {
                let protocol: Str = port["protocol"].text().into();
                port.set(&["nodePort"], free(&protocol).ok_or_else(full)?);
            }
        }
    }
    if health && object.at(&["spec", "healthCheckNodePort"]).as_int().unwrap_or(0) == 0 {
        object.set(&["spec", "healthCheckNodePort"], free("TCP").ok_or_else(full)?);
    }
    Ok(())
}

/// The address goes free with the service.
pub fn released(object: &Value) -> Vec<Companion> {
    let addresses = object.at(&["spec", "clusterIPs"]).items();
    let real = addresses.iter().map(Value::text).filter(|address| !matches!(*address, "" | "None"));
    real.map(|address| Companion::Delete { resource: ADDRESSES, namespace: "".into(), name: address.into() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::{Change, Lookup};

    /// Addresses that are held, and ranges that were added.
    #[derive(Default)]
    struct Known(BTreeSet<&'static str>, Vec<Value>);

    fn object(resource: Resource, value: &Value) -> Object {
        Object::new(meta::Facts::of(resource, value), value.to_json())
    }

    impl Lookup for Known {
        fn one(&self, resource: Resource, _: &str, name: &str) -> Option<Object> {
            let held = resource == ADDRESSES && self.0.contains(name);
            held.then(|| object(resource, &holder(name, "b", "other")))
        }

        fn list(&self, resource: Resource, _: &str) -> Vec<Object> {
            let ranges = self.1.iter().filter(|_| resource == RANGES);
            ranges.map(|range| object(resource, range)).collect()
        }

        fn setting(&self, name: &str) -> Option<Str> {
            (name == "service-cidr").then(|| "10.96.0.0/30".into())
        }
    }

    fn given(object: Value) -> (Value, Vec<Companion>) {
        given_with(&Known::default(), object).unwrap()
    }

    fn given_with(lookup: &Known, mut object: Value) -> Result<(Value, Vec<Companion>), Status> {
        let mut companions = Vec::new();
        let mut rng = base::Rng::new(1);
        let now = base::Time::ZERO;
        let change =
            Change { old: None, sibling: None, subresource: "", now, user: "", groups: &[], uid: "", extra: &[] };
        let mut cx = Prepare { change, lookup, dry_run: false, companions: &mut companions, rng: &mut rng };
        families(&mut object);
        allocate(&mut cx, &mut object)?;
        Ok((object, companions))
    }

    #[test]
    fn addresses_come_with_a_holder_and_ports_from_the_range() {
        let (service, companions) = given(meta::json!({
            "metadata": {"name": "a", "namespace": "b"},
            "spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}, {"port": 81, "protocol": "TCP"}]}}));
        let address = service.at(&["spec", "clusterIP"]).text();
        assert!(matches!(address, "10.96.0.1" | "10.96.0.2"), "{address}");
        assert!(matches!(&companions[..], [Companion::Create(ADDRESSES, _)]));
        let ports: BTreeSet<i64> = ports_of(&service).map(|(port, _)| port).collect();
        assert!(ports.len() == 2 && ports.iter().all(|port| (30_000..=32_767).contains(port)));
        assert_eq!(released(&service).len(), 1);
        let headless = meta::json!({"spec": {"type": "ClusterIP", "clusterIP": "None"}});
        assert!(given(headless.clone()).1.is_empty() && released(&headless).is_empty());
    }

    #[test]
    fn added_ranges_give_addresses_when_they_are_ready() {
        let range = |name: &str, cidr: &str, ready: &str| {
            meta::json!({
                "metadata": {"name": name}, "spec": {"cidrs": [cidr]},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            })
        };
        let ranges = vec![range("a", "10.97.0.0/30", "False"), range("b", "10.98.0.0/30", "True")];
        let known = Known(["10.96.0.1", "10.96.0.2", "10.98.0.1"].into(), ranges);
        let check = |address: &str, expected: Option<&str>| {
            let service = meta::json!({"metadata": {"name": "a"}, "spec": {"type": "ClusterIP", "clusterIP": address}});
            let found = given_with(&known, service).ok();
            assert_eq!(found.as_ref().map(|(service, _)| service["spec"]["clusterIP"].text()), expected, "{address:?}");
        };
        check("", Some("10.98.0.2"));
        check("10.98.0.2", Some("10.98.0.2"));
        check("10.98.0.1", None);
        check("10.97.0.1", None);
        let full = Known(["10.96.0.1", "10.96.0.2"].into(), Vec::new());
        let service = meta::json!({"metadata": {"name": "a"}, "spec": {"type": "ClusterIP"}});
        assert!(given_with(&full, service).is_err());
    }
}
