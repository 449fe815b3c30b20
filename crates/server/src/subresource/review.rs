//! Reviews: questions about access and identity, answered at once and never stored.

use std::sync::Arc;

use meta::labels::FieldTerm;
use meta::{Errors, FieldSelector, Path, Status, Str, Value, json};

use crate::Server;
use crate::authz::{Attributes, Decision, decide, rbac};
use crate::dispatch::no_such_resource;
use crate::identity::{AUTHENTICATED, User};
use crate::tokens::ISSUER;
use crate::verbs::{Call, Outcome};

pub fn answer(server: &Arc<Server>, call: &Call<'_>, mut review: Value) -> Result<Outcome, Status> {
    match call.kind.names.kind.as_str() {
        "SelfSubjectReview" => {
            review = json!({
                "apiVersion": (call.kind.names.api_version()), "kind": "SelfSubjectReview",
                "metadata": {"creationTimestamp": (call.now.rfc3339())},
                "status": {"userInfo": (user_info(&call.auth.user))},
            });
        }
        "TokenReview" => token(server, call, &mut review)?,
        "SubjectAccessReview" | "LocalSubjectAccessReview" | "SelfSubjectAccessReview" => {
            access(server, call, &mut review)?;
        }
        "SelfSubjectRulesReview" => rules(server, call, &mut review)?,
        _ => return Err(no_such_resource()),
    }
    Ok(Outcome { code: 201, value: review, stored: None, warnings: Vec::new() })
}

fn list(words: &[Str]) -> Value {
    words.iter().map(Value::from).collect::<Vec<_>>().into()
}

/// A caller as objects and expressions say it.
pub fn user_info(user: &User) -> Value {
    let mut info = json!({"username": (&user.name), "groups": (list(&user.groups))});
    if !user.uid.is_empty() {
        info.set(&["uid"], &user.uid);
    }
    for (key, values) in &user.extra {
        info.make(&["extra"]).make_map().insert(key.clone(), list(values));
    }
    info
}

fn token(server: &Server, call: &Call<'_>, review: &mut Value) -> Result<(), Status> {
    let spec = &review["spec"];
    let token = spec["token"].text().to_owned();
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    let mut audiences: Vec<Str> = spec["audiences"].items().iter().map(|audience| audience.text().into()).collect();
    if audiences.is_empty() {
        audiences.push(ISSUER.into());
    }
    let status = match server.authn.token(&token, &audiences, server.storage.mirror(), call.now) {
        Ok((user, good)) => json!({"authenticated": true, "user": (user_info(&user)), "audiences": (list(&good))}),
        Err(why) => json!({"error": (format!("invalid token: {why}"))}),
    };
    review.set(&["metadata", "creationTimestamp"], Value::Null);
    review.take(&["metadata", "creationTimestamp"]);
    review.set(&["status"], status);
    Ok(())
}

fn access(server: &Server, call: &Call<'_>, review: &mut Value) -> Result<(), Status> {
    let kind = call.kind.names.kind.as_str();
    let mut errors = Errors::default();
    let path = Path::ROOT;
    let path = path.field("spec");
    let spec = &review["spec"];
    let (resource, other) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    match (resource.is_null(), other.is_null()) {
        (true, true) => {
            let detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            errors.invalid_value(&path.field("resourceAttributes"), Value::Null, detail);
        }
        (false, false) => {
            let detail = "cannot be specified in combination with resourceAttributes";
            errors.invalid_value(&path.field("nonResourceAttributes"), other.clone(), detail);
        }
        _ => {}
    }
    let is_self = kind == "SelfSubjectAccessReview";
    let groups: Vec<Str> = spec["groups"].items().iter().map(|group| group.text().into()).collect();
    if !is_self && spec["user"].text().is_empty() && groups.is_empty() {
        errors.invalid_value(&path.field("user"), "", "at least one of user or group must be specified");
    }
    if kind == "LocalSubjectAccessReview" {
        if resource["namespace"].text() != call.auth.info.namespace {
            let detail = "must match metadata.namespace";
            let at = path.field("resourceAttributes");
            errors.invalid_value(&at.field("namespace"), resource["namespace"].text(), detail);
        }
        if !other.is_null() {
            let detail = "disallowed on this kind of request";
            errors.invalid_value(&path.field("nonResourceAttributes"), other.clone(), detail);
        }
    }
    let at = path.field("resourceAttributes");
    for key in ["fieldSelector", "labelSelector"] {
        let selector = &resource[key];
        if !selector["rawSelector"].text().is_empty() && !selector["requirements"].items().is_empty() {
            let at = at.field(key);
            let detail = "may not specify both rawSelector and requirements";
            errors.invalid_value(&at.field("rawSelector"), selector["rawSelector"].clone(), detail);
        }
    }
    if !errors.is_empty() {
        return Err(Status::invalid("authorization.k8s.io", kind, "", &errors));
    }
    let user = if is_self {
        call.auth.user.clone()
    } else {
        User { name: spec["user"].text().into(), uid: spec["uid"].text().into(), groups, extra: Vec::new() }
    };
    let fields = selector_of(&resource["fieldSelector"]);
    let attributes = Attributes {
        user: &user,
        verb: if resource.is_null() { other["verb"].text() } else { resource["verb"].text() },
        is_resource: !resource.is_null(),
        group: resource["group"].text(),
        resource: resource["resource"].text(),
        subresource: resource["subresource"].text(),
        namespace: resource["namespace"].text(),
        name: resource["name"].text(),
        path: other["path"].text(),
        fields: &fields,
    };
    let status = match decide(&attributes, &server.storage.mirror().view()) {
        Decision::Allow(reason) if reason.is_empty() => json!({"allowed": true}),
        Decision::Allow(reason) => json!({"allowed": true, "reason": reason}),
        Decision::NoOpinion(reason) if reason.is_empty() => json!({"allowed": false}),
        Decision::NoOpinion(reason) => json!({"allowed": false, "reason": reason}),
    };
    review.set(&["status"], status);
    Ok(())
}

/// The field selector that a review asks about: as text, or as requirements. What cannot be understood narrows nothing,
/// so that it never allows more.
fn selector_of(asked: &Value) -> FieldSelector {
    if !asked["rawSelector"].text().is_empty() {
        return FieldSelector::parse(asked["rawSelector"].text()).unwrap_or_default();
    }
    let term = |requirement: &Value| {
        let [value] = requirement["values"].items() else { return None };
        let equal = match requirement["operator"].text() {
            "In" => true,
            "NotIn" => false,
            _ => return None,
        };
        Some(FieldTerm { field: requirement["key"].text().into(), value: value.text().into(), equal })
    };
    FieldSelector(asked["requirements"].items().iter().filter_map(term).collect())
}

fn rules(server: &Server, call: &Call<'_>, review: &mut Value) -> Result<(), Status> {
    let namespace = review.at(&["spec", "namespace"]).text().to_owned();
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let (mut resources, mut others) = (Vec::new(), Vec::new());
    let view = server.storage.mirror().view();
    for rule in rbac::rules_of(&call.auth.user, &namespace, &view) {
        if !rule.resources.is_empty() {
            let mut entry = json!({
                "verbs": (list(&rule.verbs)), "apiGroups": (list(&rule.groups)), "resources": (list(&rule.resources)),
            });
            if !rule.names.is_empty() {
                entry.set(&["resourceNames"], list(&rule.names));
            }
            resources.push(entry);
        }
        if !rule.urls.is_empty() {
            others.push(json!({"verbs": (list(&rule.verbs)), "nonResourceURLs": (list(&rule.urls))}));
        }
    }
    debug_assert!(call.auth.user.in_group(AUTHENTICATED) || !call.auth.user.groups.is_empty());
    review.set(&["status"], json!({"resourceRules": resources, "nonResourceRules": others, "incomplete": false}));
    Ok(())
}
