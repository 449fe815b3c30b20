//! `POST serviceaccounts/NAME/token`: a token, bound to an object that must exist.

use std::sync::Arc;

use meta::{Errors, Path, Resource, Status, Str, Value};

use crate::Server;
use crate::tokens::{Grant, ISSUER};
use crate::verbs::{Call, Outcome};

/// Seconds that a token holds when nothing is asked, at least and at most.
const DEFAULT_SECONDS: i64 = 3600;
const MIN_SECONDS: i64 = 600;
const MAX_SECONDS: i64 = 1 << 32;

pub fn request(server: &Arc<Server>, call: &Call<'_>, mut request: Value) -> Result<Outcome, Status> {
    let info = &call.auth.info;
    let account = server
        .one(call.kind.resource, &info.namespace, &info.name)
        .ok_or_else(|| Status::not_found("", "serviceaccounts", &info.name))?;
    let spec = &request["spec"];
    let seconds = spec["expirationSeconds"].as_int().unwrap_or(DEFAULT_SECONDS);
    let path = Path::ROOT;
    let path = path.field("spec");
    let mut errors = Errors::default();
    if seconds < MIN_SECONDS {
        let detail = "may not specify a duration less than 10 minutes";
        errors.invalid_value(&path.field("expirationSeconds"), seconds, detail);
    }
    if seconds > MAX_SECONDS {
        let detail = "may not specify a duration larger than 2^32 seconds";
        errors.invalid_value(&path.field("expirationSeconds"), seconds, detail);
    }
    if !errors.is_empty() {
        return Err(Status::invalid("authentication.k8s.io", "TokenRequest", "", &errors));
    }
    let mut audiences: Vec<Str> = spec["audiences"].items().iter().map(|audience| audience.text().into()).collect();
    if audiences.is_empty() {
        audiences.push(ISSUER.into());
    }
    let reference = &spec["boundObjectRef"];
    let mut node = None;
    let bound = if reference.is_null() {
        None
    } else {
        let (kind, name, uid) = (reference["kind"].text(), reference["name"].text(), reference["uid"].text());
        let resource = match kind {
            "Pod" => "pods",
            "Secret" => "secrets",
            "Node" => "nodes",
            other => {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount to object of type {other:?}"
                )));
            }
        };
        let namespace = if resource == "nodes" { "" } else { info.namespace.as_str() };
        let object = server
            .one(Resource::intern(resource), namespace, name)
            .ok_or_else(|| Status::not_found("", resource, name))?;
        if !uid.is_empty() && uid != object.uid() {
            let why = format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. \
                               The object might have been deleted and then recreated"
            );
            return Err(Status::conflict("", resource, name, why));
        }
        if resource == "pods" {
            let pod = object.value();
            if pod.at(&["spec", "serviceAccountName"]).text() != info.name {
                let why = format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    info.name
                );
                return Err(Status::forbidden("", "serviceaccounts", &info.name, why));
            }
            node = server
                .one(Resource("nodes"), "", pod.at(&["spec", "nodeName"]).text())
                .map(|node| (node.name().to_owned(), node.uid().to_owned()));
        }
        Some((resource, name.to_owned(), object.uid().to_owned()))
    };
    let grant = Grant {
        namespace: &info.namespace,
        account: &info.name,
        account_uid: account.uid(),
        bound: bound.as_ref().map(|(resource, name, uid)| (*resource, name.as_str(), uid.as_str())),
        node: node.as_ref().map(|(name, uid)| (name.as_str(), uid.as_str())),
        audiences: &audiences,
        seconds,
    };
    let (token, expires) = server.authn.tokens.sign(&grant, call.now).map_err(Status::internal)?;
    request.set(&["metadata", "name"], &info.name);
    request.set(&["metadata", "namespace"], &info.namespace);
    request.set(&["metadata", "creationTimestamp"], call.now.rfc3339());
    request.set(&["spec", "expirationSeconds"], seconds);
    request.set(&["spec", "audiences"], audiences.iter().map(Value::from).collect::<Vec<_>>());
    request.set(&["status", "token"], token);
    request.set(&["status", "expirationTimestamp"], expires.rfc3339());
    Ok(Outcome { code: 201, value: request, stored: None, warnings: Vec::new() })
}
