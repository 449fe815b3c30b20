//! EndpointSlices: the addresses behind a service in pieces, so that a change of one pod rewrites only one piece. Also
//! the mirror of endpoints that people write by hand.

use std::collections::BTreeMap;

use base::Time;
use cache::{Event, View};
use meta::{Object, Resource, Str, Value, json};
use reconcile::{Context, Effect, Outcome, Reconciler};

use crate::common::*;
use crate::service_endpoints::*;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
const ZONE: &str = "topology.kubernetes.io/zone";
/// The preference of a service that asks for more than the zone.
const SAME_NODE: &str = "PreferSameNode";
/// Endpoints that one slice holds.
const ENDPOINTS_MAX: usize = 100;

const SERVICE: Gvk = Gvk { api_version: "v1", kind: "Service" };
const ENDPOINTS_KIND: Gvk = Gvk { api_version: "v1", kind: "Endpoints" };

pub struct Slices;
pub struct Mirrors;

/// All endpoints that share address family and ports.
#[derive(Clone, Debug, PartialEq)]
struct Group {
    family: &'static str,
    /// Null while there is no endpoint.
    ports: Value,
    endpoints: Vec<Value>,
}

impl Reconciler for Slices {
    fn name(&self) -> &'static str {
        "endpointslice-controller"
    }

    fn watches(&self) -> &[Resource] {
        &[SERVICES, PODS, SLICES]
    }

    fn keys(&self, resource: Resource, event: &Event, view: &View, out: &mut Vec<Str>) {
        match resource {
            SERVICES => out.extend(event.new.iter().map(key_of)),
            PODS => services_of(event, view, out),
            _ => owner_keys(event, "Service", out),
        }
    }

    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome {
        let (namespace, name) = split(key);
        let Some(object) = view.one(SERVICES, namespace, name) else { return Outcome::Settled };
        let service = object.value();
        if !has_selector(&service) || is_deleting(object) {
            return Outcome::Settled;
        }
        let backends = backends(view, object, &service);
        cx.reads = backends.len();
        let mut labels = service["metadata"]["labels"].clone();
        labels.set(&[SERVICE_NAME], name);
        labels.set(&[MANAGED_BY], "endpointslice-controller.k8s.io");
        if is_headless(&service) {
            labels.set(&[HEADLESS], "");
        }
        let changed = backends.iter().map(Backend::changed_at).max().unwrap_or(object.facts().created);
        let keeper = Keeper { of: SERVICE, owner: object, labels, changed };
        keeper.sync(groups(view, object, &service, &backends), view, cx);
        Outcome::Settled
    }
}

fn families(service: &Value) -> Vec<&'static str> {
    let listed = service["spec"]["ipFamilies"].items().iter();
    let families: Vec<&str> = listed.map(|one| if one.text() == "IPv6" { "IPv6" } else { "IPv4" }).collect();
    if families.is_empty() { vec!["IPv4"] } else { families }
}

fn groups(view: &View, object: &Object, service: &Value, backends: &[Backend]) -> Vec<Group> {
    let mut all = Vec::new();
    for family in families(service) {
        let mut by_ports: BTreeMap<Vec<u8>, Group> = BTreeMap::new();
        for backend in backends {
            let Some(ip) = backend.ips.iter().find(|ip| ip.contains(':') == (family == "IPv6")) else { continue };
            let ports = slice_ports(service, &backend.value);
            let group = by_ports.entry(ports.to_json()).or_insert(Group { family, ports, endpoints: Vec::new() });
            group.endpoints.push(endpoint(view, object, service, backend, ip));
        }
        if by_ports.is_empty() {
            all.push(Group { family, ports: Value::Null, endpoints: Vec::new() });
        }
        all.extend(by_ports.into_values());
    }
    all
}

fn slice_ports(service: &Value, pod: &Value) -> Value {
    let ports = service["spec"]["ports"].items().iter().filter_map(|port| {
        let number = target_port(pod, port)?;
        let mut made = json!({"name": (port["name"].text()), "port": number, "protocol": (protocol_of(port))});
        if !port["appProtocol"].is_null() {
            made.set(&["appProtocol"], port["appProtocol"].clone());
        }
        Some(made)
    });
    Value::List(ports.collect())
}

fn endpoint(view: &View, object: &Object, service: &Value, backend: &Backend, ip: &Str) -> Value {
    let (serving, terminating) = (backend.facts.ready, backend.is_terminating());
    let ready = service["spec"]["publishNotReadyAddresses"].is_true() || (serving && !terminating);
    let pod = &backend.pod;
    let mut endpoint = json!({
        "addresses": [ip],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "targetRef": {
            "kind": "Pod", "name": (pod.name()), "namespace": (pod.namespace()), "uid": (pod.uid()),
        },
    });
    let near = service["spec"]["trafficDistribution"].text();
    let node = &backend.facts.node;
    if !node.is_empty() {
        endpoint.set(&["nodeName"], node);
        if let Some(zone) = view.one(NODES, "", node).and_then(|node| node.labels().get(ZONE)) {
            endpoint.set(&["zone"], zone);
            if ready && !near.is_empty() {
                endpoint.set(&["hints", "forZones"], json!([{"name": zone}]));
            }
        }
        if ready && near == SAME_NODE {
            endpoint.set(&["hints", "forNodes"], json!([{"name": node}]));
        }
    }
    let hostname = backend.hostname(object);
    if !hostname.is_empty() {
        endpoint.set(&["hostname"], hostname);
    }
    endpoint
}

/// Who the slices belong to and what they are labelled with.
struct Keeper<'a> {
    of: Gvk,
    owner: &'a Object,
    labels: Value,
    changed: Time,
}

/// A slice as it is and as it is to be.
struct Slice {
    object: Object,
    value: Value,
    endpoints: Vec<Value>,
    ports: Value,
}

impl Keeper<'_> {
    /// Brings the slices to hold exactly the groups, changing as few of them as can be.
    fn sync(&self, groups: Vec<Group>, view: &View, cx: &mut Context) {
        let owned = view.owned(SLICES, self.owner.uid()).filter(|slice| !is_deleting(slice));
        let mut free: Vec<Slice> = owned
            .map(|object| {
                let value = object.value();
                let (endpoints, ports) = (value["endpoints"].items().to_vec(), value["ports"].clone());
                Slice { object: object.clone(), endpoints, ports, value }
            })
            .collect();
        let (mut kept, mut made) = (Vec::new(), Vec::new());
        for group in groups {
            let (mut mine, rest): (Vec<Slice>, Vec<Slice>) = free
                .into_iter()
                .partition(|slice| slice.value["addressType"].text() == group.family && slice.ports == group.ports);
            free = rest;
            let left = place(&group, &mut mine);
            let empty = group.endpoints.is_empty();
            for slice in mine {
                if slice.endpoints.is_empty() && !(empty && kept.is_empty()) {
                    free.push(slice);
                } else {
                    kept.push(slice);
                }
            }
            let nothing = empty && kept.iter().all(|slice| slice.value["addressType"].text() != group.family);
            let pieces: Vec<Vec<Value>> = match nothing {
                true => vec![Vec::new()],
                false => left.chunks(ENDPOINTS_MAX).map(<[Value]>::to_vec).collect(),
            };
            made.extend(pieces.into_iter().map(|piece| (group.family, group.ports.clone(), piece)));
        }
        // A slice that is not needed any more becomes one that is.
        for (family, ports, piece) in made {
            match free.iter().position(|slice| slice.value["addressType"].text() == family) {
                Some(at) => {
                    let mut slice = free.swap_remove(at);
                    (slice.endpoints, slice.ports) = (piece, ports);
                    kept.push(slice);
                }
                None => self.make(family, ports, piece, cx),
            }
        }
        kept.into_iter().for_each(|slice| self.write(slice, cx));
        free.iter().for_each(|slice| delete(cx, &slice.object, ""));
    }

    fn fill(&self, value: &mut Value, ports: Value, endpoints: Vec<Value>) {
        value.set(&["metadata", "labels"], self.labels.clone());
        value.set(&["metadata", "annotations", TRIGGER_TIME], self.changed.rfc3339());
        value.set(&["ports"], ports);
        value.set(&["endpoints"], if endpoints.is_empty() { Value::Null } else { Value::from(endpoints) });
    }

    fn make(&self, family: &str, ports: Value, endpoints: Vec<Value>, cx: &mut Context) {
        let prefix = format!("{}-", self.owner.name());
        let mut object = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {
                "name": (generated(&prefix, &mut cx.rng)), "generateName": (&prefix),
                "namespace": (self.owner.namespace()), "ownerReferences": [(reference(self.of, self.owner))],
            },
        });
        self.fill(&mut object, ports, endpoints);
        cx.push(Effect::Create { resource: SLICES, object });
    }

    fn write(&self, slice: Slice, cx: &mut Context) {
        let same = slice.value["endpoints"].items() == slice.endpoints.as_slice()
            && slice.value["ports"] == slice.ports
            && slice.value["metadata"]["labels"] == self.labels;
        if !same {
            let mut object = slice.value;
            self.fill(&mut object, slice.ports, slice.endpoints);
            cx.push(Effect::Update { resource: SLICES, object });
        }
    }
}

/// Keeps in each slice the endpoints that still exist, fills its room, and returns those that found no place.
fn place(group: &Group, slices: &mut [Slice]) -> Vec<Value> {
    let identity = |endpoint: &Value| -> (Str, Str) {
        (endpoint["targetRef"]["uid"].text().into(), endpoint["addresses"][0].text().into())
    };
    let mut wanted: BTreeMap<(Str, Str), &Value> =
        group.endpoints.iter().map(|endpoint| (identity(endpoint), endpoint)).collect();
    for slice in slices.iter_mut() {
        let present = std::mem::take(&mut slice.endpoints);
        slice.endpoints = present.iter().filter_map(|one| wanted.remove(&identity(one)).cloned()).collect();
    }
    let mut left: Vec<Value> = wanted.into_values().cloned().collect();
    for slice in slices.iter_mut().filter(|slice| !slice.endpoints.is_empty()) {
        let room = ENDPOINTS_MAX.saturating_sub(slice.endpoints.len()).min(left.len());
        slice.endpoints.extend(left.drain(..room));
    }
    if let Some(slice) = slices.iter_mut().find(|slice| slice.endpoints.is_empty()) {
        let room = ENDPOINTS_MAX.min(left.len());
        slice.endpoints.extend(left.drain(..room));
    }
    left
}

impl Reconciler for Mirrors {
    fn name(&self) -> &'static str {
        "endpointslicemirroring-controller"
    }

    fn watches(&self) -> &[Resource] {
        &[SERVICES, ENDPOINTS, SLICES]
    }

    fn keys(&self, resource: Resource, event: &Event, _: &View, out: &mut Vec<Str>) {
        match resource {
            SLICES => owner_keys(event, "Endpoints", out),
            _ => out.extend(event.new.iter().map(key_of)),
        }
    }

    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome {
        let (namespace, name) = split(key);
        let (Some(service), Some(object)) = (view.one(SERVICES, namespace, name), view.one(ENDPOINTS, namespace, name))
        else {
            return Outcome::Settled;
        };
        let value = object.value();
        let by_us = object.labels().get("endpoints.kubernetes.io/managed-by").is_some();
        let leader = !value.at(&["metadata", "annotations", "control-plane.alpha.kubernetes.io/leader"]).is_null();
        if by_us || leader || object.labels().get(SKIP_MIRROR) == Some("true") || is_deleting(object) {
            return Outcome::Settled;
        }
        if !service.value()["spec"]["selector"].entries().is_empty() {
            return Outcome::Settled;
        }
        let mut labels = value["metadata"]["labels"].clone();
        labels.set(&[SERVICE_NAME], name);
        labels.set(&[MANAGED_BY], "endpointslicemirroring-controller.k8s.io");
        let keeper = Keeper { of: ENDPOINTS_KIND, owner: object, labels, changed: object.facts().created };
        keeper.sync(mirrored(&value), view, cx);
        Outcome::Settled
    }
}

fn mirrored(endpoints: &Value) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for subset in endpoints["subsets"].items() {
        let ports = subset["ports"].items().iter().map(|port| {
            let mut made =
                json!({"name": (port["name"].text()), "port": (port["port"].clone()), "protocol": (protocol_of(port))});
            if !port["appProtocol"].is_null() {
                made.set(&["appProtocol"], port["appProtocol"].clone());
            }
            made
        });
        let ports = Value::List(ports.collect());
        for (field, ready) in [("addresses", true), ("notReadyAddresses", false)] {
            for address in subset[field].items() {
                let family = if address["ip"].text().contains(':') { "IPv6" } else { "IPv4" };
                let mut endpoint = json!({"addresses": [(address["ip"].clone())], "conditions": {"ready": ready}});
                for field in ["hostname", "nodeName", "targetRef"] {
                    if !address[field].is_null() {
                        endpoint.set(&[field], address[field].clone());
                    }
                }
                match groups.iter_mut().find(|group| group.family == family && group.ports == ports) {
                    Some(group) => group.endpoints.push(endpoint),
                    None => groups.push(Group { family, ports: ports.clone(), endpoints: vec![endpoint] }),
                }
            }
        }
    }
    groups
}
