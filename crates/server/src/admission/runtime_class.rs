//! Pods of a runtime class get its overhead, node selector and tolerations.

use meta::{Resource, Status, Str, Value};

use super::{Admission, Review};

const CLASSES: Resource = Resource("runtimeclasses.node.k8s.io");

pub struct RuntimeClass;

impl Admission for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    fn mutate(&self, review: &mut Review<'_>) -> Result<(), Status> {
        if review.operation != "CREATE" || !review.is("pods", "") {
            return Ok(());
        }
        let name = Str::from(review.object.at(&["spec", "runtimeClassName"]).text());
        if name.is_empty() {
            if !review.object.at(&["spec", "overhead"]).entries().is_empty() {
                return Err(
                    review.forbidden("pod rejected: Pod Overhead set without corresponding RuntimeClass defined")
                );
            }
            return Ok(());
        }
        let Some(class) = review.view.one(CLASSES, "", &name) else {
            return Err(review.forbidden(format!("pod rejected: RuntimeClass {name:?} not found")));
        };
        let class = class.value();
        let fixed = class.at(&["overhead", "podFixed"]);
        let own = review.object.at(&["spec", "overhead"]);
        if !own.entries().is_empty() && own != fixed {
            return Err(review.forbidden("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"));
        }
        if !fixed.is_null() {
            review.object.set(&["spec", "overhead"], fixed.clone());
        }
        for (key, value) in class.at(&["scheduling", "nodeSelector"]).entries().iter() {
            let known = review.object.at(&["spec", "nodeSelector"])[key].as_str().map(str::to_owned);
            if known.is_some_and(|known| known != value.text()) {
                let why = "pod rejected: conflict: runtimeClass.scheduling.nodeSelector and pod nodeSelector differ";
                return Err(review.forbidden(why));
            }
            review.object.set(&["spec", "nodeSelector", key], value.clone());
        }
        if class.get("scheduling").is_some() {
            let own = review.object.at(&["spec", "tolerations"]).items();
            let merged = merge(own, class.at(&["scheduling", "tolerations"]).items());
            review.object.set(&["spec", "tolerations"], merged);
        }
        if review.object.at(&["spec", "tolerations"]).items().is_empty() {
            review.object.take(&["spec", "tolerations"]);
        }
        Ok(())
    }
}

/// Both lists without what another toleration covers (upstream's `MergeTolerations`).
fn merge(first: &[Value], second: &[Value]) -> Vec<Value> {
    let all: Vec<&Value> = first.iter().chain(second).collect();
    let mut merged: Vec<Value> = Vec::new();
    for (at, toleration) in all.iter().enumerate() {
        let known = merged.iter().any(|other| covers(other, toleration));
        if !known && !all[at + 1..].iter().any(|later| later != toleration && covers(later, toleration)) {
            merged.push((*toleration).clone());
        }
    }
    merged
}

/// Whether `wide` tolerates all that `narrow` does.
fn covers(wide: &Value, narrow: &Value) -> bool {
    if wide == narrow {
        return true;
    }
    let exists = wide["operator"].text() == "Exists";
    if wide["key"] != narrow["key"] && !(wide["key"].text().is_empty() && exists) {
        return false;
    }
    let effect = wide["effect"].text();
    if !effect.is_empty() && effect != narrow["effect"].text() {
        return false;
    }
    if effect == "NoExecute"
        && let Some(seconds) = wide["tolerationSeconds"].as_int()
        && narrow["tolerationSeconds"].as_int().is_none_or(|asked| asked > seconds)
    {
        return false;
    }
    let equal = |toleration: &Value| matches!(toleration["operator"].text(), "" | "Equal");
    exists || (equal(wide) && equal(narrow) && wide["value"] == narrow["value"])
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::json;

    #[test]
    fn what_another_covers_goes() {
        let exists = json!({"key": "a", "operator": "Exists"});
        let equal = json!({"key": "a", "operator": "Equal", "value": "x", "effect": "NoSchedule"});
        let short = json!({"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5i64});
        let merged = |a: &[&Value], b: &[&Value]| {
            let own = |list: &[&Value]| list.iter().map(|value| (*value).clone()).collect::<Vec<_>>();
            merge(&own(a), &own(b))
        };
        assert_eq!(merged(&[&equal, &equal], &[]), vec![equal.clone()]);
        assert_eq!(merged(&[&equal], &[&exists]), vec![exists.clone()]);
        assert_eq!(merged(&[&equal], &[&short]), vec![equal.clone(), short.clone()]);
        assert_eq!(merged(&[&exists], &[&short]), vec![exists]);
    }
}
