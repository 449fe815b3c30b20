//! Which requests a policy or a webhook is about, by its rules and selectors.

use std::sync::Arc;

use meta::{Kind, Resource, Selector, Value};

use crate::admission::Review;

const NAMESPACES: Resource = Resource("namespaces");

/// The version in which `found` (`matchConstraints`, `matchResources`, a hook) wants to see the request, by its selectors
/// and these rules; `None` when it is not about it. Without rules it is about everything that its selectors pick.
pub fn seen_as(found: &Value, rules: &Value, review: &Review<'_>) -> Option<Arc<Kind>> {
    if !in_namespaces(&found["namespaceSelector"], review) || !has_labels(&found["objectSelector"], review) {
        return None;
    }
    let versions = versions(review, found["matchPolicy"].text() == "Exact");
    let wanted = |rules: &Value| rules.items().iter().find_map(|rule| version_of(rule, review, &versions)).cloned();
    if wanted(&found["excludeResourceRules"]).is_some() {
        return None;
    }
    if rules.items().is_empty() { versions.into_iter().next() } else { wanted(rules) }
}

/// The versions of the resource, the one that was asked for first.
fn versions(review: &Review<'_>, exact: bool) -> Vec<Arc<Kind>> {
    let registry = review.server.storage.registry();
    let names = &review.kind.names;
    let mut found: Vec<Arc<Kind>> =
        registry.find(&names.group, &names.version, &names.plural).cloned().into_iter().collect();
    if !exact {
        let others = registry
            .entries()
            .filter(|entry| entry.head.resource == review.resource && entry.head.names.version != names.version);
        found.extend(others.map(|entry| entry.kind().clone()));
    }
    found
}

/// The first version that the rule is about.
fn version_of<'a>(rule: &Value, review: &Review<'_>, versions: &'a [Arc<Kind>]) -> Option<&'a Arc<Kind>> {
    let has = |key: &str, word: &str| rule[key].items().iter().any(|one| one.text() == "*" || one.text() == word);
    let namespaced = review.kind.names.namespaced && review.resource != NAMESPACES;
    let in_scope = match rule["scope"].text() {
        "Cluster" => !namespaced,
        "Namespaced" => namespaced,
        _ => true,
    };
    let named = match rule["resourceNames"].items() {
        [] => true,
        names => names.iter().any(|name| name.text() == review.name()),
    };
    if !in_scope || !named || !has("operations", review.operation) || !is_about(&rule["resources"], review) {
        return None;
    }
    versions.iter().find(|kind| has("apiGroups", &kind.names.group) && has("apiVersions", &kind.names.version))
}

/// `pods`, `pods/status`, `pods/*`, `*/status`, `*`, `*/*`.
fn is_about(resources: &Value, review: &Review<'_>) -> bool {
    resources.items().iter().any(|wanted| {
        let (resource, subresource) = wanted.text().split_once('/').unwrap_or((wanted.text(), ""));
        (resource == "*" || resource == review.kind.names.plural.as_str())
            && (subresource == "*" || subresource == review.subresource)
    })
}

/// Whether the namespace of the object, or the object if it is one, has the labels. What is in no namespace passes.
fn in_namespaces(selector: &Value, review: &Review<'_>) -> bool {
    let selector = selector_of(selector);
    if selector.is_everything() {
        return true;
    }
    if review.resource == NAMESPACES {
        return selector.matches_value(&review.shown()["metadata"]["labels"]);
    }
    if !review.kind.names.namespaced {
        return true;
    }
    let namespace = review.view.one(NAMESPACES, "", review.namespace);
    namespace.is_some_and(|namespace| selector.matches(namespace.labels()))
}

/// Whether the object has the labels, or had them.
fn has_labels(selector: &Value, review: &Review<'_>) -> bool {
    let selector = selector_of(selector);
    let holds = |object: &Value| !object.is_null() && selector.matches_value(&object["metadata"]["labels"]);
    selector.is_everything() || holds(&review.object) || review.old.is_some_and(holds)
}

/// A selector that is not there selects everything.
fn selector_of(selector: &Value) -> Selector {
    if selector.is_null() { Selector::everything() } else { Selector::of(selector) }
}

/// An object of the request in another version.
pub fn converted(object: &Value, from: &Kind, to: &Kind) -> Value {
    let mut object = object.clone();
    if from.names.version != to.names.version && !object.is_null() {
        from.rules.to_stored(&mut object);
        to.rules.present(&mut object);
    }
    object
}
