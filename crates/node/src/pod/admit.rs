//! Whether a node takes a pod that was put on it: whoever names a node in the pod's spec, or binds it without looking, asks
//! no scheduler. Room, host ports, the pod's choice of nodes and taints that evict are judged, as by the kubelet
//! (`lifecycle/predicate.go`).

use std::collections::BTreeMap;

use api::core::host_ports::{self, HostPort};
use api::core::node_fit::{self, Choice};
use api::core::sysctls;
use meta::{Object, Quantity, Str, Value};

/// What a pod takes of its node for as long as it is there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Takes {
    /// Its class of service: `guaranteed`, `burstable` or `besteffort`.
    pub class: &'static str,
    requests: BTreeMap<Str, Quantity>,
    ports: Vec<HostPort>,
    /// The system that it needs, `""` for any.
    system: Str,
    /// What it would set of the kernel and may not, `""` for nothing.
    sysctl: Str,
}

impl Takes {
    pub fn of(pod: &Value) -> Takes {
        let spec = &pod["spec"];
        Takes {
            class: crate::spec::qos(pod),
            requests: api::usage::pod_total(spec, "requests"),
            ports: host_ports::of(spec),
            system: spec["os"]["name"].text().into(),
            sysctl: forbidden_sysctl(spec).into(),
        }
    }

    pub fn cpu_milli(&self) -> i64 {
        self.requests.get("cpu").map_or(0, Quantity::milli)
    }

    /// Why the node cannot give a pod this now that had `before`, as reason and message of its condition: more than there is
    /// at all will never do.
    pub fn pending(&self, before: &Takes, allocatable: &Value, others: &[&Takes]) -> Option<(Str, String)> {
        let in_units = |name: &str, amount: &Quantity| if name == "cpu" { amount.milli() } else { amount.value() };
        let (mut deferred, mut infeasible) = (None, None);
        for (name, asked) in &self.requests {
            let Some(capacity) = Quantity::given(&allocatable[name.as_str()]) else { continue };
            if before.requests.get(name).is_some_and(|had| had >= asked) {
                continue;
            }
            let used = others.iter().filter_map(|other| other.requests.get(name));
            let used = used.fold(Quantity::default(), |sum, amount| sum.plus(amount));
            let [requested, used_units, has] = [asked, &used, &capacity].map(|amount| in_units(name, amount));
            if *asked > capacity {
                let why = format!("Node didn't have enough capacity: {name}, requested: {requested}, capacity: {has}");
                infeasible.get_or_insert(("Infeasible".into(), why));
            } else if used.plus(asked) > capacity {
                let why = format!(
                    "Node didn't have enough resource: {name}, requested: {requested}, used: {used_units}, capacity: {has}"
                );
                deferred.get_or_insert(("Deferred".into(), why));
            }
        }
        infeasible.or(deferred)
    }

    /// Why a node that has `allocatable` and these pods does not take one more, as reason and message of its status.
    pub fn refusal(&self, allocatable: &Value, others: &[&Takes]) -> Option<(Str, String)> {
        let capacity = |name: &str| Quantity::given(&allocatable[name]);
        let lacks = |name: &str, asked: &Quantity, used: &Quantity, capacity: &Quantity| {
            let in_units = |amount: &Quantity| if name == "cpu" { amount.milli() } else { amount.value() };
            let message = format!(
                "Pod was rejected: Node didn't have enough resource: {name}, requested: {}, used: {}, capacity: {}",
                in_units(asked),
                in_units(used),
                in_units(capacity)
            );
            Some((Str::from(format!("OutOf{name}")), message))
        };
        if !matches!(self.system.as_str(), "" | "linux") {
            let why = "Failed to admit pod as the OS field doesn't match node OS";
            return Some(("PodOSNotSupported".into(), why.to_owned()));
        }
        if !self.sysctl.is_empty() {
            return Some(("SysctlForbidden".into(), format!("forbidden sysctl: {:?} not allowlisted", self.sysctl)));
        }
        let (one, here) = (Quantity::from_int(1), Quantity::from_int(i64::try_from(others.len()).unwrap_or(i64::MAX)));
        if let Some(most) = capacity("pods").filter(|most| here.plus(&one) > *most) {
            return lacks("pods", &one, &here, &most);
        }
        for (name, asked) in self.requests.iter().filter(|(_, asked)| !asked.is_zero()) {
            let Some(has) = capacity(name) else { continue };
            let used = others.iter().filter_map(|other| other.requests.get(name));
            let used = used.fold(Quantity::default(), |sum, amount| sum.plus(amount));
            if used.plus(asked) > has {
                return lacks(name, asked, &used, &has);
            }
        }
        let taken = |port: &HostPort| others.iter().any(|other| other.ports.iter().any(|theirs| port.clashes(theirs)));
        let why = "node(s) didn't have free ports for the requested pod ports";
        self.ports.iter().any(taken).then(|| failed("NodePorts", why))
    }
}

/// The first that may not be set.
fn forbidden_sysctl(spec: &Value) -> &str {
    let mut names = spec.at(&["securityContext", "sysctls"]).items().iter().map(|sysctl| sysctl["name"].text());
    names.find(|name| !sysctls::is_safe(name)).unwrap_or_default()
}

fn failed(predicate: &str, why: &str) -> (Str, String) {
    (predicate.into(), format!("Pod was rejected: Predicate {predicate} failed: {why}"))
}

/// Why a pod does not belong on `node`, whatever room that has: it chooses others, or does not bear a taint that would evict
/// it. Who was told of the pod may not have been told yet of what the node is by now.
pub fn misplaced(pod: &Value, node: &Object) -> Option<(Str, String)> {
    let spec = &pod["spec"];
    if !Choice::of(spec).selects(node) {
        return Some(failed("NodeAffinity", "node(s) didn't match Pod's node affinity/selector"));
    }
    let value = node.value();
    let taints = value.at(&["spec", "taints"]).items();
    let bears = node_fit::bears(spec["tolerations"].items(), taints, &[node_fit::NO_EXECUTE]);
    (!bears).then(|| failed("TaintToleration", "node(s) had untolerated taint(s)"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::json;

    fn takes(cpu: &str, port: i64) -> Takes {
        let container =
            json!({"resources": {"requests": {"cpu": cpu}}, "ports": [{"hostPort": port, "protocol": "TCP"}]});
        Takes::of(&json!({"spec": {"containers": [container]}}))
    }

    #[test]
    fn what_a_node_has_no_room_for_waits() {
        let allocatable = json!({"cpu": "2", "memory": "1Gi"});
        let reason = |asked: &str, before: &str, other: &str| {
            let pending = takes(asked, 0).pending(&takes(before, 0), &allocatable, &[&takes(other, 0)]);
            pending.map(|(reason, _)| reason)
        };
        assert_eq!(reason("1500m", "1", "500m"), None);
        assert_eq!(reason("1501m", "1", "500m").as_deref(), Some("Deferred"));
        assert_eq!(reason("3", "1", "500m").as_deref(), Some("Infeasible"));
        assert_eq!(reason("1", "1500m", "1500m"), None, "less always does");
    }

    #[test]
    fn a_pod_that_chose_other_nodes_is_refused() {
        let taint = json!({"key": "k", "value": "v", "effect": "NoExecute"});
        let node = json!({"metadata": {"name": "a", "labels": {"zone": "x"}}, "spec": {"taints": [taint]}});
        let facts = meta::Facts::of(meta::Resource("nodes"), &node);
        let node = Object::new(facts, node.to_json());
        let reason = |spec: Value| misplaced(&json!({"spec": spec}), &node).map(|(reason, _)| reason);
        let bears = json!([{"operator": "Exists"}]);
        assert_eq!(reason(json!({"tolerations": (bears.clone())})), None);
        assert_eq!(reason(json!({})).as_deref(), Some("TaintToleration"));
        let chosen = |zone: &str| json!({"tolerations": (bears.clone()), "nodeSelector": {"zone": zone}});
        assert_eq!(reason(chosen("x")), None);
        assert_eq!(reason(chosen("y")).as_deref(), Some("NodeAffinity"));
    }

    #[test]
    fn a_node_takes_what_it_has_room_and_ports_for() {
        let allocatable = json!({"cpu": "1", "memory": "1Gi", "pods": "2"});
        let reason = |new: Takes, others: &[&Takes]| new.refusal(&allocatable, others).map(|(reason, _)| reason);
        assert_eq!(reason(takes("1", 0), &[]), None);
        assert_eq!(reason(takes("600m", 0), &[&takes("500m", 0)]).as_deref(), Some("OutOfcpu"));
        assert_eq!(reason(takes("0", 80), &[&takes("0", 80)]).as_deref(), Some("NodePorts"));
        assert_eq!(reason(takes("0", 80), &[&takes("0", 81)]), None);
        assert_eq!(reason(takes("0", 0), &[&takes("0", 0), &takes("0", 0)]).as_deref(), Some("OutOfpods"));
        let other = Takes::of(&json!({"spec": {"os": {"name": "windows"}}}));
        assert_eq!(reason(other, &[]).as_deref(), Some("PodOSNotSupported"));
        let sets = |name: &str| Takes::of(&json!({"spec": {"securityContext": {"sysctls": [{"name": name}]}}}));
        assert_eq!(reason(sets("kernel.msgmax"), &[]).as_deref(), Some("SysctlForbidden"));
        assert_eq!(reason(sets("net/ipv4/tcp_syncookies"), &[]), None);
        let (_, message) = takes("2", 0).refusal(&allocatable, &[]).unwrap();
        assert!(message.ends_with("cpu, requested: 2000, used: 0, capacity: 1000"), "{message}");
    }
}
