//! Limit ranges: defaults for containers that ask for nothing, and bounds for containers, pods and claims.

use std::cmp::Ordering;

use meta::{Object, Quantity, Resource, Status, Str, Value};

use super::{Admission, Review};

const RANGES: Resource = Resource("limitranges");
const CONTAINERS: [&str; 2] = ["initContainers", "containers"];

pub struct LimitRanger;

impl Admission for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    fn mutate(&self, review: &mut Review<'_>) -> Result<(), Status> {
        if review.operation != "CREATE" || !review.is("pods", "") {
            return Ok(());
        }
        for range in ranges(review) {
            for limit in range.value().at(&["spec", "limits"]).items() {
                if limit["type"].text() == "Container" {
                    fill(&mut review.object, limit);
                }
            }
        }
        Ok(())
    }

    fn validate(&self, review: &mut Review<'_>) -> Result<(), Status> {
        if review.operation == "DELETE" || !matches!(review.subresource, "" | "resize") {
            return Ok(());
        }
        let is_pod = review.resource.0 == "pods" && (review.operation == "CREATE" || review.subresource == "resize");
        let is_claim = review.resource.0 == "persistentvolumeclaims";
        if !is_pod && !is_claim {
            return Ok(());
        }
        let mut wrong = Vec::new();
        for range in ranges(review) {
            for limit in range.value().at(&["spec", "limits"]).items() {
                match limit["type"].text() {
                    "Container" if is_pod => {
                        let containers = CONTAINERS.iter().flat_map(|list| review.object["spec"][*list].items());
                        containers.for_each(|container| check(limit, "Container", &container["resources"], &mut wrong));
                    }
                    "Pod" if is_pod => check(limit, "Pod", &sum(&review.object), &mut wrong),
                    "PersistentVolumeClaim" if is_claim => {
                        check(limit, "PersistentVolumeClaim", review.object.at(&["spec", "resources"]), &mut wrong);
                    }
                    _ => {}
                }
            }
        }
        match wrong.as_slice() {
            [] => Ok(()),
            [one] => Err(review.forbidden(one)),
            many => Err(review.forbidden(format!("[{}]", many.join(", ")))),
        }
    }
}

fn ranges(review: &Review<'_>) -> Vec<Object> {
    review.view.list(RANGES, review.namespace).filter(|_| !review.namespace.is_empty()).cloned().collect()
}

/// Requests and limits that a container leaves out, from the range's defaults.
fn fill(pod: &mut Value, limit: &Value) {
    let mut notes = Vec::new();
    for list in CONTAINERS {
        let Some(containers) = pod.at_mut(&["spec", list]) else { continue };
        for container in containers.items_mut() {
            let name = Str::from(container["name"].text());
            let mut set: Vec<(&str, Vec<Str>)> = Vec::new();
            for (kind, defaults, word) in [("limits", "default", "limit"), ("requests", "defaultRequest", "request")] {
                let mut names = Vec::new();
                for (resource, amount) in limit[defaults].entries().iter() {
                    if container["resources"][kind].get(resource).is_none() {
                        container.set(&["resources", kind, resource], amount.clone());
                        names.push(resource.into());
                    }
                }
                if !names.is_empty() {
                    set.push((word, names));
                }
            }
            let word = if list == "initContainers" { "init container" } else { "container" };
            // Upstream tells requests first.
            for (what, names) in set.into_iter().rev() {
                notes.push(format!("{} {what} for {word} {name}", names.join(", ")));
            }
        }
    }
    if !notes.is_empty() {
        let note = format!("LimitRanger plugin set: {}", notes.join("; "));
        pod.set(&["metadata", "annotations", "kubernetes.io/limit-ranger"], note);
    }
}

/// The requests and limits of a whole pod; a limit that any container lacks is none.
fn sum(pod: &Value) -> Value {
    let mut total = Value::map();
    for kind in ["requests", "limits"] {
        let containers = pod.at(&["spec", "containers"]).items();
        let mut names: Vec<Str> = containers
            .iter()
            .flat_map(|container| container["resources"][kind].entries().keys().map(Str::from).collect::<Vec<_>>())
            .collect();
        names.sort();
        names.dedup();
        for name in names {
            let mut amount = Quantity::default();
            for container in containers {
                if let Ok(more) = Quantity::of(&container["resources"][kind][name.as_str()]) {
                    amount = amount.plus(&more);
                }
            }
            for container in pod.at(&["spec", "initContainers"]).items() {
                if let Ok(peak) = Quantity::of(&container["resources"][kind][name.as_str()])
                    && peak.compare(&amount) == Ordering::Greater
                {
                    amount = peak;
                }
            }
            total.set(&[kind, &name], amount);
        }
    }
    total
}

fn check(limit: &Value, of: &str, resources: &Value, wrong: &mut Vec<String>) {
    let quantity = Quantity::given;
    let amount = |kind: &str, name: &str| quantity(&resources[kind][name]);
    for (name, bound) in limit["min"].entries().iter() {
        let Some(bound) = quantity(bound) else { continue };
        // Of each bound one word is said, as upstream does.
        let below = |found: &Option<Quantity>| found.as_ref().is_some_and(|one| one.compare(&bound) == Ordering::Less);
        match (amount("requests", name), amount("limits", name)) {
            (None, _) => wrong.push(format!("minimum {name} usage per {of} is {bound}.  No request is specified")),
            (request @ Some(_), _) if below(&request) => {
                let request = request.unwrap_or_default();
                wrong.push(format!("minimum {name} usage per {of} is {bound}, but request is {request}"));
            }
            (_, most) if below(&most) => {
                let most = most.unwrap_or_default();
                wrong.push(format!("minimum {name} usage per {of} is {bound}, but limit is {most}"));
            }
            _ => {}
        }
    }
    for (name, bound) in limit["max"].entries().iter() {
        let Some(bound) = quantity(bound) else { continue };
        let claim = of == "PersistentVolumeClaim";
        let above =
            |found: &Option<Quantity>| found.as_ref().is_some_and(|one| one.compare(&bound) == Ordering::Greater);
        match (amount("limits", name), amount("requests", name)) {
            (None, _) if !claim => {
                wrong.push(format!("maximum {name} usage per {of} is {bound}.  No limit is specified"));
            }
            (most, _) if above(&most) => {
                let most = most.unwrap_or_default();
                wrong.push(format!("maximum {name} usage per {of} is {bound}, but limit is {most}"));
            }
            (_, request) if above(&request) => {
                let request = request.unwrap_or_default();
                wrong.push(format!("maximum {name} usage per {of} is {bound}, but request is {request}"));
            }
            _ => {}
        }
    }
    for (name, bound) in limit["maxLimitRequestRatio"].entries().iter() {
        let Some(bound) = quantity(bound) else { continue };
        match (amount("requests", name), amount("limits", name)) {
            (Some(request), Some(most)) if !request.is_zero() => {
                let ratio = most.to_f64() / request.to_f64();
                if ratio > bound.to_f64() {
                    wrong.push(format!(
                        "{name} max limit to request ratio per {of} is {bound}, but provided ratio is {ratio:.6}"
                    ));
                }
            }
            _ => wrong.push(format!(
                "{name} max limit to request ratio per {of} is {bound}, but no request or limit is specified"
            )),
        }
    }
}
