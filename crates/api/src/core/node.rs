//! Nodes: the machines.

use std::any::Any;
use std::sync::Arc;

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Str, Value, names};

use crate::check;
use crate::columns::{age, columns, or_none};

pub struct Node {
    columns: Vec<Column>,
}

impl Node {
    pub fn new() -> Node {
        Node {
            columns: columns(&[
                ("Status", "string", 0),
                ("Roles", "string", 0),
                ("Age", "string", 0),
                ("Version", "string", 0),
                ("Internal-IP", "string", 1),
                ("External-IP", "string", 1),
                ("OS-Image", "string", 1),
                ("Kernel-Version", "string", 1),
                ("Container-Runtime", "string", 1),
            ]),
        }
    }
}

impl Default for Node {
    fn default() -> Node {
        Node::new()
    }
}

impl Rules for Node {
    fn defaults(&self, object: &mut Value) {
        let status = object.make(&["status"]);
        if let Some(capacity) = status.get("capacity").cloned()
            && status["allocatable"].is_null()
        {
            status.set(&["allocatable"], capacity);
        }
        if status["daemonEndpoints"]["kubeletEndpoint"].is_null() {
            status.set(&["daemonEndpoints", "kubeletEndpoint", "Port"], 0i64);
        }
        let info = status.make(&["nodeInfo"]);
        for key in NODE_INFO {
            info.default(key, "");
        }
        let spec = object.make(&["spec"]);
        let first: Str = spec["podCIDR"].text().into();
        if !first.is_empty() && spec["podCIDRs"][0].text() != first {
            spec.set(&["podCIDRs"], vec![Value::from(first)]);
        } else if first.is_empty() && !spec["podCIDRs"].items().is_empty() {
            let first = spec["podCIDRs"][0].clone();
            spec.set(&["podCIDR"], first);
        }
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let (spec, meta) = (at.field("spec"), at.field("metadata"));
        let taints = At { value: spec.field("taints").value, path: meta.path.field("taints") };
        if change.is_create() || !change.is_status() {
            check_taints(&taints, errors);
        }
        let ranges = spec.field("podCIDRs");
        for range in ranges.items() {
            check::cidr(&range, errors);
        }
        if ranges.value.items().len() > 2 {
            errors.invalid(&ranges, "may specify no more than one CIDR for each IP family");
        }
        let Some(old) = change.old else { return };
        let before = &old["spec"];
        if !before["podCIDRs"].items().is_empty() && *ranges.value != before["podCIDRs"] {
            errors.forbidden(&ranges.path, "node updates may not change podCIDR except from \"\" to valid");
        }
        let provider = spec.field("providerID");
        if !before["providerID"].text().is_empty() && *provider.value != before["providerID"] {
            errors.forbidden(&provider.path, "node updates may not change providerID except from \"\" to valid");
        }
    }

    fn facts(&self, object: &Value) -> Option<Arc<dyn Any + Send + Sync>> {
        super::node_facts::facts(object)
    }

    fn selectable(&self, object: &Value, field: &str) -> Option<Str> {
        let cordoned = object.at(&["spec", "unschedulable"]).is_true();
        (field == "spec.unschedulable").then(|| if cordoned { "true" } else { "false" }.into())
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let ready = status["conditions"].items().iter().find(|condition| condition["type"].text() == "Ready");
        let mut state = match ready.map(|ready| ready["status"].text()) {
            Some("True") => "Ready",
            Some(_) => "NotReady",
            None => "Unknown",
        }
        .to_owned();
        if spec["unschedulable"].is_true() {
            state.push_str(",SchedulingDisabled");
        }
        let info = &status["nodeInfo"];
        let or_unknown = |text: &str| Value::from(if text.is_empty() { "<unknown>" } else { text });
        let address = |of_type: &str| {
            let all = status["addresses"].items();
            let found = all.iter().find(|address| address["type"].text() == of_type);
            or_none(found.map_or("", |address| address["address"].text()))
        };
        let kernel = match (info["kernelVersion"].text(), info["architecture"].text()) {
            ("", _) => "<unknown>".to_owned(),
            (kernel, "") => kernel.to_owned(),
            (kernel, architecture) => format!("{kernel} ({architecture})"),
        };
        vec![
            state.into(),
            roles(object),
            age(object, now),
            info["kubeletVersion"].text().into(),
            address("InternalIP"),
            address("ExternalIP"),
            or_unknown(info["osImage"].text()),
            kernel.into(),
            or_unknown(info["containerRuntimeVersion"].text()),
        ]
    }
}

const NODE_INFO: [&str; 10] = [
    "architecture",
    "bootID",
    "containerRuntimeVersion",
    "kernelVersion",
    "kubeProxyVersion",
    "kubeletVersion",
    "machineID",
    "operatingSystem",
    "osImage",
    "systemUUID",
];

fn roles(node: &Value) -> Value {
    let labels = node.at(&["metadata", "labels"]).entries();
    let mut roles: Vec<&str> = labels
        .iter()
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some("") | None => (key == "kubernetes.io/role").then(|| value.text()),
            role => role,
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    or_none(&roles.join(","))
}

fn check_taints(taints: &At<'_>, errors: &mut Errors) {
    for (index, taint) in taints.items().enumerate() {
        let (key, value, effect) = (taint.field("key"), taint.field("value"), taint.field("effect"));
        check::invalid(&key, names::qualified_name(key.text()), errors);
        check::invalid(&value, names::label_value(value.text()), errors);
        check::word(&effect, &["NoExecute", "NoSchedule", "PreferNoSchedule"], errors);
        let same = |other: &Value| other["key"] == *key.value && other["effect"] == *effect.value;
        if taints.value.items()[..index].iter().any(same) {
            errors.duplicate(&taint);
        }
    }
}
