//! From a view of the cluster to the network of one node, and to the names of its DNS: pure functions.
//!
//! Which endpoints serve: the ready ones; when a service has none left, those that still serve while terminating. Where only
//! endpoints of the node count, the same holds of these. Hints of the slices prefer near endpoints: those for the node, else
//! those for its zone, as long as every ready endpoint has such a hint and one of them leads here.
//!
//! A whole plan ([`node_net`]) costs as much as there is; a [`Planner`] keeps one current at the cost of what changed.
//! Both are the same code, and a test compares them.

mod claims;
mod planner;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use cache::{Key, View};
use meta::{Object, Resource, Str, Value};

use crate::address::Cidr;
use crate::dns::{EndpointName, PortName, ServiceNames};
use crate::nodenet::{Endpoint, HostPort, NodeNet, Protocol, Via, Vip, VipKey, Vxlan};
pub use planner::{Changed, Planner, Touched};

pub const SERVICES: Resource = Resource("services");
pub const SLICES: Resource = Resource("endpointslices.discovery.k8s.io");
pub const NODES: Resource = Resource("nodes");
pub const PODS: Resource = Resource("pods");
pub const NAMESPACES: Resource = Resource("namespaces");
/// What the plan of a node looks at.
pub const WATCHES: &[Resource] = &[SERVICES, SLICES, NODES, PODS, NAMESPACES];
/// The index that a view needs beside `api::INDEXES`: slices by their service's key.
pub const INDEXES: &[api::IndexRow] = &[(SLICES, OF_SERVICE, service_key)];
pub const OF_SERVICE: &str = "service";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const ZONE: &str = "topology.kubernetes.io/zone";
/// Seconds that session affinity lasts when the service does not say.
const AFFINITY_S: u32 = 10_800;

/// What the cluster's owner decided.
#[derive(Clone, Debug)]
pub struct PlanOptions {
    /// Addresses of all pods, of all nodes.
    pub cluster_cidrs: Vec<Cidr>,
    pub service_cidrs: Vec<Cidr>,
    /// Nodes share one link; otherwise packets between them are wrapped.
    pub same_link: bool,
    /// Where the node's own name server listens.
    pub name_server: Option<IpAddr>,
}

/// The network of `node`, whole.
pub fn node_net(view: &View, node: &str, options: &PlanOptions) -> NodeNet {
    let mut planner = Planner::new(node, options.clone());
    planner.update(view, &Touched::All);
    planner.net()
}

/// The key of the service that a slice is of.
fn service_key(slice: &Object, out: &mut Vec<Str>) {
    out.extend(slice.labels().get(SERVICE_NAME).map(|name| Key::of(slice.namespace(), name).0.as_str().into()));
}

/// How packets get to the pods of another node.
fn routes(node: &Value, options: &PlanOptions) -> Vec<(Cidr, Via)> {
    let Some(address) = address_of(node) else { return Vec::new() };
    let via = if options.same_link { Via::Node(address) } else { Via::Vxlan { node: address } };
    let cidrs = cidrs_of(node).into_iter().filter(|cidr| cidr.is_ipv6() == address.is_ipv6());
    cidrs.map(|cidr| (cidr, via)).collect()
}

/// The node's own end of the overlay, if there is one.
fn overlay(node: &Value, options: &PlanOptions) -> Option<Vxlan> {
    match (options.same_link, address_of(node), cidrs_of(node).first()) {
        (false, Some(local), Some(cidr)) => Some(Vxlan { id: 7, port: 8472, local, address: cidr.nth(0) }),
        _ => None,
    }
}

/// The zone that a node stands in; `""` when it does not say.
fn zone_of(node: &Object) -> &str {
    node.labels().get(ZONE).unwrap_or_default()
}

/// A node's pod networks.
pub fn cidrs_of(node: &Value) -> Vec<Cidr> {
    let spec = &node["spec"];
    let many: Vec<Cidr> = spec["podCIDRs"].items().iter().filter_map(|cidr| cidr.text().parse().ok()).collect();
    if many.is_empty() { spec["podCIDR"].text().parse().into_iter().collect() } else { many }
}

/// A node's own address.
pub fn address_of(node: &Value) -> Option<IpAddr> {
    let addresses = node.at(&["status", "addresses"]).items();
    addresses.iter().find(|address| address["type"].text() == "InternalIP")?["address"].text().parse().ok()
}

fn protocol_of(text: &str) -> Protocol {
    match text {
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        _ => Protocol::Tcp,
    }
}

fn port_of(value: &Value) -> Option<u16> {
    value.as_int().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0)
}

fn addresses(values: &Value) -> Vec<IpAddr> {
    values.items().iter().filter_map(|address| address.text().parse().ok()).collect()
}

/// The cluster addresses of a service; none for headless ones and external names.
pub fn cluster_addresses(spec: &Value) -> Vec<IpAddr> {
    if spec["type"].text() == "ExternalName" {
        return Vec::new();
    }
    let many = addresses(&spec["clusterIPs"]);
    if many.is_empty() { spec["clusterIP"].text().parse().into_iter().collect() } else { many }
}

/// The node that is planned for.
#[derive(Clone, Copy)]
struct Here<'a> {
    node: &'a str,
    zone: &'a str,
}

fn vips(service: &Object, slices: &[Value], here: Here<'_>) -> Vec<(VipKey, Arc<Vip>)> {
    let value = service.value();
    let spec = &value["spec"];
    let cluster = cluster_addresses(spec);
    let mut vips = Vec::new();
    let affinity_s = (spec["sessionAffinity"].text() == "ClientIP").then(|| {
        let seconds = spec.at(&["sessionAffinityConfig", "clientIP", "timeoutSeconds"]).as_int();
        seconds.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(AFFINITY_S)
    });
    let mut external: BTreeSet<IpAddr> = addresses(&spec["externalIPs"]).into_iter().collect();
    let ingress = value.at(&["status", "loadBalancer", "ingress"]).items();
    external.extend(ingress.iter().filter_map(|ingress| ingress["ip"].text().parse::<IpAddr>().ok()));
    for port in spec["ports"].items() {
        let Some(number) = port_of(&port["port"]) else { continue };
        let protocol = protocol_of(port["protocol"].text());
        for address in &cluster {
            let same_family = |other: &IpAddr| other.is_ipv6() == address.is_ipv6();
            let (internal_local, external_local) =
                ["internalTrafficPolicy", "externalTrafficPolicy"].map(|key| spec[key].text() == "Local").into();
            let Found { ready, serving } = endpoints(slices, port["name"].text(), protocol, address.is_ipv6(), here);
            let local = internal_local || external_local;
            // Where only pods of this node count, those that end here stand in for ready ones elsewhere.
            let stand_in = local && !ready.is_empty() && !ready.keys().any(|endpoint| endpoint.local);
            let draining = serving.iter().copied().filter(|endpoint| stand_in && endpoint.local).collect();
            let vip = Vip {
                name: format!("{}/{}:{}", service.namespace(), service.name(), port["name"].text()),
                endpoints: if ready.is_empty() { serving.into_iter().collect() } else { near(&ready, local) },
                draining,
                affinity_s,
                node_port: port_of(&port["nodePort"]),
                external: external.iter().copied().filter(same_family).collect(),
                internal_local,
                external_local,
            };
            vips.push((VipKey { address: *address, protocol, port: number }, Arc::new(vip)));
        }
    }
    vips
}

fn condition(endpoint: &Value, name: &str) -> Option<bool> {
    endpoint.at(&["conditions", name]).as_bool()
}

/// What the hints of an endpoint say of one node, or of one zone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hint {
    Absent,
    /// Meant for here, perhaps among others.
    Here,
    Elsewhere,
}

impl Hint {
    fn of(hints: &Value, here: &str) -> Hint {
        match hints.items() {
            [] => Hint::Absent,
            places if places.iter().any(|place| place["name"].text() == here) => Hint::Here,
            _ => Hint::Elsewhere,
        }
    }
}

/// Ready endpoints with what they say of the node and of its zone.
type Ready = BTreeMap<Endpoint, [Hint; 2]>;

/// The endpoints to be used here, by their hints; `local` ones are always kept where some callers reach only these.
fn near(ready: &Ready, local: bool) -> Vec<Endpoint> {
    let meant = (0..2).find(|at| {
        let hints = || ready.values().map(|hints| hints[*at]);
        hints().all(|hint| hint != Hint::Absent) && hints().any(|hint| hint == Hint::Here)
    });
    let used = ready
        .iter()
        .filter(|(endpoint, hints)| meant.is_none_or(|at| hints[at] == Hint::Here) || local && endpoint.local);
    used.map(|(endpoint, _)| *endpoint).collect()
}

/// The endpoints of one port: the ready ones, and those that serve while they terminate.
struct Found {
    ready: Ready,
    serving: BTreeSet<Endpoint>,
}

fn endpoints(slices: &[Value], port_name: &str, protocol: Protocol, ipv6: bool, here: Here<'_>) -> Found {
    let (mut ready, mut serving) = (Ready::new(), BTreeSet::new());
    for slice in slices {
        if slice["addressType"].text() != if ipv6 { "IPv6" } else { "IPv4" } {
            continue;
        }
        let port = slice["ports"]
            .items()
            .iter()
            .find(|port| port["name"].text() == port_name && protocol_of(port["protocol"].text()) == protocol);
        let Some(number) = port.and_then(|port| port_of(&port["port"])) else { continue };
        for endpoint in slice["endpoints"].items() {
            let Ok(address) = endpoint["addresses"][0].text().parse() else { continue };
            let found = Endpoint { address, port: number, local: endpoint["nodeName"].text() == here.node };
            if condition(endpoint, "ready") != Some(false) {
                let hints = &endpoint["hints"];
                ready.insert(found, [Hint::of(&hints["forNodes"], here.node), Hint::of(&hints["forZones"], here.zone)]);
            } else if condition(endpoint, "serving") == Some(true) && condition(endpoint, "terminating") == Some(true) {
                serving.insert(found);
            }
        }
    }
    Found { ready, serving }
}

fn host_ports(pod: &Object) -> Vec<HostPort> {
    let mut found = Vec::new();
    if api::core::pod_facts::of(pod).phase.is_final() {
        return found;
    }
    let value = pod.value();
    let spec = &value["spec"];
    let Ok(address) = value.at(&["status", "podIP"]).text().parse::<IpAddr>() else { return found };
    if spec["hostNetwork"].is_true() {
        return found;
    }
    let containers = spec["containers"].items().iter().chain(spec["initContainers"].items());
    for port in containers.flat_map(|container| container["ports"].items()) {
        if let (Some(host), Some(pod_port)) = (port_of(&port["hostPort"]), port_of(&port["containerPort"])) {
            let on = port["hostIP"].text().parse::<IpAddr>().ok().filter(|address| !address.is_unspecified());
            let protocol = protocol_of(port["protocol"].text());
            found.push(HostPort { address: on, protocol, port: host, pod: address, pod_port });
        }
    }
    found
}

/// The names of one service; `None` when it is gone.
pub fn service_names(view: &View, namespace: &str, name: &str) -> Option<ServiceNames> {
    let service = view.one(SERVICES, namespace, name)?.value();
    let spec = &service["spec"];
    if spec["type"].text() == "ExternalName" {
        let external = Some(spec["externalName"].text().to_owned());
        return Some(ServiceNames { external, ..ServiceNames::default() });
    }
    let ports = spec["ports"].items().iter().filter_map(port_name).collect();
    let addresses = cluster_addresses(spec);
    let mut names = ServiceNames { addresses, ports, ..ServiceNames::default() };
    if names.addresses.is_empty() {
        let all = spec["publishNotReadyAddresses"].is_true();
        for slice in view.by(SLICES, OF_SERVICE, &Key::of(namespace, name).0) {
            names.endpoints.extend(endpoint_names(&slice.value(), all));
        }
    }
    Some(names)
}

fn port_name(port: &Value) -> Option<PortName> {
    Some(PortName {
        name: port["name"].text().to_owned(),
        protocol: protocol_of(port["protocol"].text()),
        port: port_of(&port["port"])?,
    })
}

fn endpoint_names(slice: &Value, all: bool) -> Vec<EndpointName> {
    let ports: Vec<PortName> = slice["ports"].items().iter().filter_map(port_name).collect();
    let endpoints = slice["endpoints"].items().iter();
    let ready = endpoints.filter(|endpoint| all || condition(endpoint, "ready") != Some(false));
    ready
        .flat_map(|endpoint| {
            let hostname = endpoint["hostname"].as_str().map(str::to_owned);
            addresses(&endpoint["addresses"]).into_iter().map(move |address| (address, hostname.clone()))
        })
        .map(|(address, hostname)| EndpointName { address, hostname, ports: ports.clone() })
        .collect()
}

#[cfg(test)]
mod tests;
