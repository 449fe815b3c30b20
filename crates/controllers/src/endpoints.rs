//! Endpoints: the older list of the addresses behind a service.

use std::collections::BTreeMap;
use std::net::IpAddr;

use cache::{Event, View};
use meta::{Map, Object, Resource, Str, Value, json};
use reconcile::{Context, Effect, Outcome, Reconciler};

use crate::common::*;
use crate::service_endpoints::*;

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Addresses that one object may hold.
const ADDRESSES_MAX: usize = 1000;

pub struct EndpointsOfServices;

impl Reconciler for EndpointsOfServices {
    fn name(&self) -> &'static str {
        "endpoint-controller"
    }

    fn watches(&self) -> &[Resource] {
        &[SERVICES, PODS, ENDPOINTS]
    }

    fn keys(&self, resource: Resource, event: &Event, view: &View, out: &mut Vec<Str>) {
        match resource {
            PODS => services_of(event, view, out),
            _ => {
                out.extend(sides(event).map(key_of));
                out.dedup();
            }
        }
    }

    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome {
        let (namespace, name) = split(key);
        let known = view.one(ENDPOINTS, namespace, name);
        let Some(object) = view.one(SERVICES, namespace, name) else {
            // Leases of leaders live in objects of this kind too, so only what a service had is removed.
            if let Some(known) = known.filter(|known| known.labels().get(MANAGED_BY).is_some() && !is_deleting(known)) {
                delete(cx, known, "");
            }
            return Outcome::Settled;
        };
        let service = object.value();
        if !has_selector(&service) || is_deleting(object) {
            return Outcome::Settled;
        }
        let backends = backends(view, object, &service);
        cx.reads = backends.len();
        let (subsets, over) = subsets(object, &service, &backends);
        let mut labels = service["metadata"]["labels"].clone();
        labels.set(&[MANAGED_BY], "endpoint-controller");
        if is_headless(&service) {
            labels.set(&[HEADLESS], "");
        }
        let known_value = known.map(Object::value).unwrap_or_default();
        let same = known.is_some()
            && known_value["subsets"].items() == subsets.as_slice()
            && known_value["metadata"]["labels"] == labels;
        if same {
            return Outcome::Settled;
        }
        let mut value = known_value;
        value.set(&["apiVersion"], "v1");
        value.set(&["kind"], "Endpoints");
        value.set(&["metadata", "name"], name);
        value.set(&["metadata", "namespace"], namespace);
        value.set(&["metadata", "labels"], labels);
        let changed = backends.iter().map(Backend::changed_at).max().unwrap_or(object.facts().created);
        value.set(&["metadata", "annotations", TRIGGER_TIME], changed.rfc3339());
        value.take(&["metadata", "annotations", OVER_CAPACITY]);
        if over {
            value.set(&["metadata", "annotations", OVER_CAPACITY], "truncated");
        }
        value.take(&["subsets"]);
        if !subsets.is_empty() {
            value.set(&["subsets"], Value::from(subsets));
        }
        cx.push(match known {
            Some(_) => Effect::Update { resource: ENDPOINTS, object: value },
            None => Effect::Create { resource: ENDPOINTS, object: value },
        });
        Outcome::Settled
    }
}

/// The addresses that serve the same ports.
#[derive(Default)]
struct Group {
    ports: Vec<Value>,
    ready: Vec<Value>,
    waiting: Vec<Value>,
}

/// The addresses by the ports they serve, and whether some had to be left out.
fn subsets(object: &Object, service: &Value, backends: &[Backend]) -> (Vec<Value>, bool) {
    let tolerant = service["spec"]["publishNotReadyAddresses"].is_true();
    let mut groups: BTreeMap<Vec<(i64, Str)>, Group> = BTreeMap::new();
    let mut sorted: Vec<&Backend> = backends.iter().collect();
    sorted.sort_by_key(|backend| (backend.ips[0].parse::<IpAddr>().ok(), backend.pod.name().to_owned()));
    let mut count = 0;
    for backend in sorted {
        if backend.is_terminating() && !tolerant {
            continue;
        }
        count += 1;
        if count > ADDRESSES_MAX {
            continue;
        }
        let ports = ports(service, &backend.value);
        if ports.is_empty() && !(is_headless(service) && service["spec"]["ports"].items().is_empty()) {
            continue;
        }
        let key = ports.iter().map(|port| (port["port"].as_int().unwrap_or(0), port["name"].text().into())).collect();
        let group = groups.entry(key).or_insert_with(|| Group { ports, ..Group::default() });
        let address = address(object, backend);
        if tolerant || backend.facts.ready { &mut group.ready } else { &mut group.waiting }.push(address);
    }
    let subsets = groups.into_values().map(|Group { ports, ready, waiting }| {
        let mut subset = Map::new();
        for (field, list) in [("addresses", ready), ("notReadyAddresses", waiting), ("ports", ports)] {
            if !list.is_empty() {
                subset.insert(field, Value::from(list));
            }
        }
        Value::Map(subset)
    });
    (subsets.collect(), count > ADDRESSES_MAX)
}

fn ports(service: &Value, pod: &Value) -> Vec<Value> {
    let mut ports = Vec::new();
    for port in service["spec"]["ports"].items() {
        let Some(number) = target_port(pod, port) else { continue };
        let mut made = json!({"port": number, "protocol": (protocol_of(port))});
        for field in ["name", "appProtocol"] {
            if !port[field].text().is_empty() {
                made.set(&[field], port[field].clone());
            }
        }
        ports.push(made);
    }
    ports
}

fn address(service: &Object, backend: &Backend) -> Value {
    let pod = &backend.pod;
    let mut address = json!({
        "ip": (&backend.ips[0]),
        "targetRef": {
            "kind": "Pod", "name": (pod.name()), "namespace": (pod.namespace()), "uid": (pod.uid()),
        },
    });
    if !backend.facts.node.is_empty() {
        address.set(&["nodeName"], &backend.facts.node);
    }
    let hostname = backend.hostname(service);
    if !hostname.is_empty() {
        address.set(&["hostname"], hostname);
    }
    address
}
