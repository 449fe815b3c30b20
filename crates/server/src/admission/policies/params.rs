//! The objects that a binding gives to its policy as parameters.

use cache::View;
use meta::{Selector, Value};

use crate::admission::Review;

/// One evaluation for each: the parameter, or null where the policy has none. Empty when the binding says that nothing is
/// to be checked while there is no parameter.
///
/// # Errors
/// Why the binding cannot be followed.
pub fn params(policy: &Value, binding: &Value, review: &Review<'_>) -> Result<Vec<Value>, String> {
    found(policy, binding, review).map_err(|why| format!("failed to configure binding: {why}"))
}

fn found(policy: &Value, binding: &Value, review: &Review<'_>) -> Result<Vec<Value>, String> {
    let (wanted, reference) = (&policy["spec"]["paramKind"], &binding["spec"]["paramRef"]);
    if wanted.is_null() || reference.is_null() {
        return Ok(vec![Value::Null]);
    }
    let (group, version) = wanted["apiVersion"].text().rsplit_once('/').unwrap_or(("", wanted["apiVersion"].text()));
    let registry = review.server.storage.registry();
    let Some(kind) = registry.by_kind(group, version, wanted["kind"].text()) else {
        return Err(format!(
            "failed to find resource referenced by paramKind: '{}, Kind={}'",
            wanted["apiVersion"].text(),
            wanted["kind"].text()
        ));
    };
    let asked = reference["namespace"].text();
    let namespace = match (kind.names.namespaced, asked) {
        (false, "") => "",
        (false, _) => return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".to_owned()),
        (true, "") if review.namespace.is_empty() => {
            let why = "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources";
            return Err(why.to_owned());
        }
        (true, "") => review.namespace,
        (true, asked) => asked,
    };
    let found = values(review.view, kind, namespace, reference);
    if found.is_empty() && reference["parameterNotFoundAction"].text() != "Allow" {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
    }
    Ok(found)
}

fn values(view: &View, kind: &meta::Kind, namespace: &str, reference: &Value) -> Vec<Value> {
    let name = reference["name"].text();
    let objects: Vec<&meta::Object> = if name.is_empty() {
        let selector = Selector::of(&reference["selector"]);
        view.list(kind.resource, namespace).filter(|object| selector.matches(object.labels())).collect()
    } else {
        view.one(kind.resource, namespace, name).into_iter().collect()
    };
    let shown = |object: &meta::Object| {
        let mut value = object.value();
        kind.rules.present(&mut value);
        value
    };
    objects.into_iter().map(shown).collect()
}
