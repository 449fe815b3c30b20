//! What stands behind a service: the pods it selects, their ports and conditions. Shared by `endpoints` and
//! `endpoint_slice`.

use api::core::pod_facts::PodFacts;
use api::core::selecting::selects;
use api::core::selection;
use base::Time;
use cache::{Event, View};
use meta::{Object, Selector, Str, Value};

use crate::common::*;

pub const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
pub const HEADLESS: &str = "service.kubernetes.io/headless";

/// A pod behind a service.
pub struct Backend {
    pub pod: Object,
    pub value: Value,
    pub facts: PodFacts,
    pub ips: Vec<Str>,
}

impl Backend {
    pub fn is_terminating(&self) -> bool {
        is_deleting(&self.pod)
    }

    /// The name under which the pod is found in the service's domain; `""` for none.
    pub fn hostname(&self, service: &Object) -> &str {
        let spec = &self.value["spec"];
        if spec["subdomain"].text() == service.name() { spec["hostname"].text() } else { "" }
    }

    /// When what is published of the pod last changed.
    pub fn changed_at(&self) -> Time {
        let ready = condition(&self.value["status"], "Ready");
        Time::parse(ready["lastTransitionTime"].text()).unwrap_or(self.pod.facts().created)
    }
}

pub fn has_selector(service: &Value) -> bool {
    service["spec"]["type"].text() != "ExternalName" && !service["spec"]["selector"].entries().is_empty()
}

pub fn is_headless(service: &Value) -> bool {
    service["spec"]["clusterIP"].text() == "None"
}

/// The pods that a service selects and that have an address, by name.
pub fn backends(view: &View, object: &Object, service: &Value) -> Vec<Backend> {
    let selector = Selector::of_map(&service["spec"]["selector"]);
    let mut found = Vec::new();
    for pod in selected(view, object.namespace(), &selector) {
        let facts = pod_facts(pod);
        if facts.phase.is_final() {
            continue;
        }
        let value = pod.value();
        let ips: Vec<Str> = value["status"]["podIPs"].items().iter().map(|one| one["ip"].text().into()).collect();
        let ips = if ips.is_empty() { vec![value["status"]["podIP"].text().into()] } else { ips };
        if ips.iter().all(|ip: &Str| ip.is_empty()) {
            continue;
        }
        found.push(Backend { pod: pod.clone(), value, facts, ips });
    }
    found
}

/// The port of a pod that a service's port leads to.
pub fn target_port(pod: &Value, port: &Value) -> Option<i64> {
    match &port["targetPort"] {
        Value::Int(number) => Some(*number),
        Value::Str(name) => {
            let spec = &pod["spec"];
            let sidecars = spec["initContainers"].items().iter().filter(|one| one["restartPolicy"].text() == "Always");
            let containers = spec["containers"].items().iter().chain(sidecars);
            let mut ports = containers.flat_map(|container| container["ports"].items());
            let protocol = protocol_of(port);
            let found = ports.find(|one| one["name"].text() == name.as_str() && protocol_of(one) == protocol);
            found.and_then(|one| one["containerPort"].as_int())
        }
        _ => port["port"].as_int(),
    }
}

pub fn protocol_of(port: &Value) -> &str {
    match port["protocol"].text() {
        "" => "TCP",
        protocol => protocol,
    }
}

/// The services that a change of a pod touches.
pub fn services_of(event: &Event, view: &View, out: &mut Vec<Str>) {
    let mut looks = 2;
    if let (Some(old), Some(new)) = (&event.old, &event.new)
        && old.labels() == new.labels()
    {
        let (a, b) = (pod_facts(old), pod_facts(new));
        let same = a.ready == b.ready && a.phase == b.phase && a.node == b.node && a.ips == b.ips;
        if same && is_deleting(old) == is_deleting(new) {
            return;
        }
        // Whose labels are what they were is selected by whoever selected it.
        looks = 1;
    }
    for pod in sides(event).take(looks) {
        for place in selection::places_of(pod) {
            for service in view.by(SERVICES, selection::SELECTOR, &place).filter(|service| selects(service, pod)) {
                if service.namespace() == pod.namespace() {
                    out.push(key_of(service));
                }
            }
        }
    }
}
