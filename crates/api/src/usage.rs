//! What an object takes of a namespace's quota, and which quotas it falls under.

use std::collections::BTreeMap;

use meta::{Quantity, Resource, Str, Value};

use crate::core::pod_facts::Phase;

type Amounts = BTreeMap<Str, Quantity>;

/// Resources that quotas count by names of their own, besides `count/RESOURCE.GROUP`.
const COUNTED: &[&str] = &[
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
];

/// What `object` of `resource` takes; empty when nothing is counted.
pub fn of(resource: Resource, object: &Value) -> Amounts {
    let one = || Quantity::from_int(1);
    let mut taken = Amounts::new();
    let finished = resource.0 == "pods" && Phase::of(object.at(&["status", "phase"]).text()).is_final();
    taken.insert(format!("count/{resource}").into(), one());
    if COUNTED.contains(&resource.0) && !finished {
        taken.insert(resource.0.into(), one());
    }
    match resource.0 {
        "pods" if !finished => pod(object, &mut taken),
        "services" => service(object, &mut taken),
        "persistentvolumeclaims" => claim(object, &mut taken),
        _ => {}
    }
    taken
}

fn pod(pod: &Value, taken: &mut Amounts) {
    for kind in ["requests", "limits"] {
        for (name, amount) in pod_total(&pod["spec"], kind) {
            if kind == "requests" && matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
                taken.insert(name.clone(), amount.clone());
            }
            let extended = name.contains('/') || name.starts_with("hugepages-");
            if kind == "requests" || !extended {
                taken.insert(format!("{kind}.{name}").into(), amount);
            }
        }
    }
}

/// The sum over a pod's containers, or the most of an init container; pod-level amounts win; overhead is added.
pub fn pod_total(spec: &Value, kind: &str) -> Amounts {
    let mut total = Amounts::new();
    let add = |total: &mut Amounts, resources: &Value| {
        for (name, amount) in resources[kind].entries().iter() {
            if let Ok(amount) = Quantity::of(amount) {
                let known = total.entry(name.into()).or_default();
                *known = known.plus(&amount);
            }
        }
    };
    for container in spec["containers"].items() {
        add(&mut total, &container["resources"]);
    }
    let (mut sidecars, mut peak) = (Amounts::new(), Amounts::new());
    for container in spec["initContainers"].items() {
        let at_once = if container["restartPolicy"].text() == "Always" {
            add(&mut sidecars, &container["resources"]);
            add(&mut total, &container["resources"]);
            sidecars.clone()
        } else {
            let mut at_once = sidecars.clone();
            add(&mut at_once, &container["resources"]);
            at_once
        };
        raise(&mut peak, at_once);
    }
    raise(&mut total, peak);
    for (name, amount) in spec.at(&["resources", kind]).entries().iter() {
        if let Ok(amount) = Quantity::of(amount) {
            total.insert(name.into(), amount);
        }
    }
    for (name, amount) in spec["overhead"].entries().iter() {
        if let Ok(amount) = Quantity::of(amount)
            && (kind == "requests" || total.contains_key(name))
        {
            let known = total.entry(name.into()).or_default();
            *known = known.plus(&amount);
        }
    }
    total
}

fn raise(total: &mut Amounts, to: Amounts) {
    for (name, amount) in to {
        let known = total.entry(name).or_default();
        if amount > *known {
            *known = amount;
        }
    }
}

fn service(service: &Value, taken: &mut Amounts) {
    let spec = &service["spec"];
    let ports = spec["ports"].items();
    let number = |count: usize| Quantity::from_int(count as i64);
    match spec["type"].text() {
        "NodePort" => {
            taken.insert("services.nodeports".into(), number(ports.len()));
        }
        "LoadBalancer" => {
            taken.insert("services.loadbalancers".into(), number(1));
            let allocates = spec["allocateLoadBalancerNodePorts"].as_bool() != Some(false);
            let with_port = ports.iter().filter(|port| port["nodePort"].as_int().unwrap_or(0) > 0).count();
            taken.insert("services.nodeports".into(), number(if allocates { ports.len() } else { with_port }));
        }
        _ => {}
    }
}

fn claim(claim: &Value, taken: &mut Amounts) {
    let spec = &claim["spec"];
    let Ok(storage) = Quantity::of(spec.at(&["resources", "requests", "storage"])) else { return };
    taken.insert("requests.storage".into(), storage.clone());
    let class = spec["storageClassName"].text();
    if !class.is_empty() {
        let prefix = format!("{class}.storageclass.storage.k8s.io/");
        taken.insert(format!("{prefix}requests.storage").into(), storage);
        taken.insert(format!("{prefix}persistentvolumeclaims").into(), Quantity::from_int(1));
    }
}

/// Whether an object falls under a quota: pods by their scopes, everything else only under quotas without scopes.
pub fn in_scope(resource: Resource, object: &Value, quota_spec: &Value) -> bool {
    let plain = quota_spec["scopes"].items().iter().map(|scope| (scope.text(), "Exists", &[][..]));
    let selected = quota_spec.at(&["scopeSelector", "matchExpressions"]).items().iter().map(|expression| {
        (expression["scopeName"].text(), expression["operator"].text(), expression["values"].items())
    });
    let mut scopes = plain.chain(selected).peekable();
    if scopes.peek().is_none() {
        return true;
    }
    scopes.all(|(scope, operator, values)| match resource.0 {
        "pods" => pod_has_scope(object, scope, operator, values),
        "persistentvolumeclaims" => scope == "VolumeAttributesClass" && claim_has_class(object, operator, values),
        _ => false,
    })
}

/// Whether one of the classes that a claim has, wants or is on its way to is selected.
fn claim_has_class(claim: &Value, operator: &str, values: &[Value]) -> bool {
    let (spec, status) = (&claim["spec"], &claim["status"]);
    let names = [
        spec["volumeAttributesClassName"].text(),
        status["currentVolumeAttributesClassName"].text(),
        status.at(&["modifyVolumeStatus", "targetVolumeAttributesClassName"]).text(),
    ];
    let mut names = names.into_iter().filter(|name| !name.is_empty()).peekable();
    match names.peek() {
        None => is_selected("", operator, values),
        Some(_) => names.any(|name| is_selected(name, operator, values)),
    }
}

/// Whether the name of a class, `""` for none, is one that a scope's selector means.
fn is_selected(class: &str, operator: &str, values: &[Value]) -> bool {
    let listed = || values.iter().any(|value| value.text() == class);
    match operator {
        "In" => listed(),
        "NotIn" => !listed(),
        "DoesNotExist" => class.is_empty(),
        _ => !class.is_empty(),
    }
}

/// Whether a pod's affinity speaks of pods of other namespaces.
fn looks_abroad(spec: &Value) -> bool {
    let affinity = &spec["affinity"];
    let kinds = [&affinity["podAffinity"], &affinity["podAntiAffinity"]];
    let required = kinds.iter().flat_map(|kind| kind["requiredDuringSchedulingIgnoredDuringExecution"].items());
    let preferred = kinds.iter().flat_map(|kind| kind["preferredDuringSchedulingIgnoredDuringExecution"].items());
    let mut terms = required.chain(preferred.map(|weighted| &weighted["podAffinityTerm"]));
    terms.any(|term| !term["namespaces"].items().is_empty() || term.get("namespaceSelector").is_some())
}

fn pod_has_scope(pod: &Value, scope: &str, operator: &str, values: &[Value]) -> bool {
    let spec = &pod["spec"];
    let terminating = spec["activeDeadlineSeconds"].as_int().is_some();
    match scope {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => is_best_effort(spec),
        "NotBestEffort" => !is_best_effort(spec),
        "PriorityClass" => is_selected(spec["priorityClassName"].text(), operator, values),
        "CrossNamespacePodAffinity" => looks_abroad(spec),
        _ => false,
    }
}

/// Whether no container asks for or limits cpu or memory.
pub fn is_best_effort(spec: &Value) -> bool {
    let lists = ["containers", "initContainers"].iter().flat_map(|list| spec[*list].items());
    let mut all = lists.map(|container| &container["resources"]).chain([&spec["resources"]]);
    all.all(|resources| {
        ["requests", "limits"].iter().all(|kind| {
            let amounts = resources[*kind].entries().iter();
            amounts
                .filter(|(name, _)| matches!(*name, "cpu" | "memory"))
                .all(|(_, amount)| Quantity::of(amount).is_ok_and(|amount| amount.is_zero()))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::json;

    #[test]
    fn scopes_count_what_they_say() {
        let select = |name: &str, operator: &str, values: &[&str]| {
            let values: Vec<Value> = values.iter().map(|value| Value::from(*value)).collect();
            let expression = json!({"scopeName": name, "operator": operator, "values": values});
            json!({"scopeSelector": {"matchExpressions": [expression]}})
        };
        let claims = Resource("persistentvolumeclaims");
        let claim = |wants: &str, has: &str| {
            json!({
                "spec": {"volumeAttributesClassName": wants}, "status": {"currentVolumeAttributesClassName": has},
            })
        };
        let gold = select("VolumeAttributesClass", "In", &["gold"]);
        assert!(in_scope(claims, &claim("gold", ""), &gold) && in_scope(claims, &claim("silver", "gold"), &gold));
        assert!(!in_scope(claims, &claim("silver", ""), &gold) && !in_scope(claims, &claim("", ""), &gold));
        assert!(in_scope(claims, &claim("", ""), &select("VolumeAttributesClass", "DoesNotExist", &[])));
        assert!(!in_scope(claims, &claim("", ""), &json!({"scopes": ["Terminating"]})));
        let pods = Resource("pods");
        let abroad = json!({"scopes": ["CrossNamespacePodAffinity"]});
        let pod = |term: Value| {
            let terms = json!([{"weight": 1i64, "podAffinityTerm": term}]);
            let kind = json!({"preferredDuringSchedulingIgnoredDuringExecution": terms});
            json!({"spec": {"affinity": {"podAntiAffinity": kind}}})
        };
        assert!(in_scope(pods, &pod(json!({"namespaces": ["a"]})), &abroad));
        assert!(in_scope(pods, &pod(json!({"namespaceSelector": {}})), &abroad));
        assert!(!in_scope(pods, &pod(json!({"topologyKey": "a"})), &abroad));
    }
}
