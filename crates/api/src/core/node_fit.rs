//! Whether a pod of a template may run on a node: name, selector, affinity, taints. Not resources, which change.

use meta::{Object, Value};

/// What a taint does that matters here.
pub const NO_EXECUTE: &str = "NoExecute";
pub const NO_SCHEDULE: &str = "NoSchedule";

/// What a pod's spec says of nodes, looked up once for all of them.
pub struct Choice<'a> {
    name: &'a str,
    selector: &'a Value,
    required: &'a Value,
}

impl<'a> Choice<'a> {
    pub fn of(spec: &'a Value) -> Choice<'a> {
        let required = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        Choice { name: spec["nodeName"].text(), selector: &spec["nodeSelector"], required }
    }

    /// Name, node selector and required node affinity.
    pub fn selects(&self, node: &Object) -> bool {
        let labels = node.labels();
        (self.name.is_empty() || self.name == node.name())
            && self.selector.entries().iter().all(|(key, value)| labels.get(key) == value.as_str())
            && affinity(self.required, node)
    }
}

fn affinity(required: &Value, node: &Object) -> bool {
    required.is_null() || required["nodeSelectorTerms"].items().iter().any(|term| term_holds(term, node))
}

fn term_holds(term: &Value, node: &Object) -> bool {
    let (expressions, fields) = (term["matchExpressions"].items(), term["matchFields"].items());
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|one| holds(one, node.labels().get(one["key"].text())))
        && fields.iter().all(|one| {
            let value = (one["key"].text() == "metadata.name").then(|| node.name());
            holds(one, value)
        })
}

fn holds(expression: &Value, value: Option<&str>) -> bool {
    let values = expression["values"].items();
    let listed = value.is_some_and(|value| values.iter().any(|one| one.text() == value));
    let compared = || Some((value?.parse::<i64>().ok()?, values.first()?.text().parse::<i64>().ok()?));
    match expression["operator"].text() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared().is_some_and(|(value, limit)| value > limit),
        "Lt" => compared().is_some_and(|(value, limit)| value < limit),
        _ => false,
    }
}

/// Whether one of `tolerations` bears `taint`.
pub fn tolerates(tolerations: &[Value], taint: &Value) -> bool {
    tolerations.iter().any(|one| toleration_fits(one, taint))
}

pub fn toleration_fits(toleration: &Value, taint: &Value) -> bool {
    let effect = toleration["effect"].text();
    let key = toleration["key"].text();
    (effect.is_empty() || effect == taint["effect"].text())
        && match toleration["operator"].text() {
            "Exists" => key.is_empty() || key == taint["key"].text(),
            _ => key == taint["key"].text() && toleration["value"].text() == taint["value"].text(),
        }
}

/// Whether all taints with one of `effects` are borne.
pub fn bears(tolerations: &[Value], taints: &[Value], effects: &[&str]) -> bool {
    taints.iter().filter(|taint| effects.contains(&taint["effect"].text())).all(|taint| tolerates(tolerations, taint))
}
