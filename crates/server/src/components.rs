//! Component statuses (`kubectl get componentstatuses`): whether the store answers, and whether somebody leads the
//! controllers and the scheduler, as their leases in `kube-system` tell.
//!
//! Nothing is stored or remembered: a request looks. There is no watch, as nothing says when one of them changes.

use std::sync::Arc;

use base::Time;
use meta::{Facts, Kind, Object, Resource, Status, Value, Verb, json};

use crate::Server;
use crate::authz::Authorized;
use crate::codec;
use crate::dispatch::{Incomer, accept_of, not_allowed};
use crate::http::negotiate::{Shape, content_type};
use crate::http::{Response, body};
use crate::verbs::list::Filter;

pub const RESOURCE: Resource = Resource("componentstatuses");
const LEASES: Resource = Resource("leases.coordination.k8s.io");
/// The store has the name that it has in Kubernetes.
const STORE: &str = "etcd-0";
/// The other components, and the leases of whoever leads them.
const LED: [(&str, &str); 2] = [("controller-manager", "kube-controller-manager"), ("scheduler", "kube-scheduler")];

/// Answers a request about components.
pub async fn answer(
    server: &Arc<Server>,
    auth: &Authorized,
    kind: &Arc<Kind>,
    verb: Verb,
    incomer: &Incomer,
) -> Result<Response, Status> {
    let accept = accept_of(incomer, true, false)?;
    let (now, info) = (server.now(), &auth.info);
    let all = look(server, now).await;
    if verb == Verb::Get {
        let found = all.iter().find(|one| one.at(&["metadata", "name"]).text() == info.name);
        let found = found.ok_or_else(|| Status::not_found("", "componentstatus", &info.name))?;
        return Ok(body::answer(200, content_type(accept.media), codec::encode(kind, accept, found, now)));
    }
    if verb != Verb::List {
        return Err(not_allowed());
    }
    let filter = Filter::of(&incomer.query, kind)?;
    let is_wanted = |value: &Value| filter.matches(kind, &Object::new(Facts::of(RESOURCE, value), value.to_json()));
    let mut items: Vec<Value> = all.into_iter().filter(is_wanted).collect();
    if accept.shape == Shape::Object {
        // In a list of one kind it stands once.
        for item in &mut items {
            item.take(&["apiVersion"]);
            item.take(&["kind"]);
        }
    }
    Ok(codec::respond_listed(kind, accept, items, now))
}

/// All components as they are now.
async fn look(server: &Server, now: Time) -> Vec<Value> {
    let mut all: Vec<Value> = LED
        .iter()
        .map(|(name, lease)| {
            let lease_object = server.one(LEASES, "kube-system", lease).map(|object| object.value());
            component(name, led(lease, lease_object.as_ref(), now))
        })
        .collect();
    all.push(component(STORE, server.storage.fresh().await.map_err(|status| status.message().to_owned())));
    all
}

/// Whether who holds a lease has renewed it in time.
fn led(name: &str, lease: Option<&Value>, now: Time) -> Result<(), String> {
    let Some(lease) = lease else { return Err(format!("nobody has led yet: there is no lease kube-system/{name}")) };
    let spec = &lease["spec"];
    let seconds = spec["leaseDurationSeconds"].as_int().unwrap_or(0);
    let renewed = Time::parse(spec["renewTime"].text());
    match renewed.filter(|at| now <= at.plus_ms(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000))) {
        Some(_) => Ok(()),
        None => Err(format!(
            "nobody leads: {} renewed the lease kube-system/{name} last at {}, for {seconds} s",
            spec["holderIdentity"].text(),
            spec["renewTime"].text(),
        )),
    }
}

fn component(name: &str, found: Result<(), String>) -> Value {
    let condition = match found {
        Ok(()) => json!({"type": "Healthy", "status": "True", "message": "ok"}),
        Err(why) => json!({"type": "Healthy", "status": "False", "error": why}),
    };
    json!({
        "apiVersion": "v1", "kind": "ComponentStatus", "metadata": {"name": name}, "conditions": [condition],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_renew_his_lease_leads_no_more() {
        let now = Time::from_seconds(1_800_000_000);
        let lease = |seconds_ago: u64| {
            json!({"spec": {
                "holderIdentity": "a", "leaseDurationSeconds": 15i64,
                "renewTime": (Time::from_seconds(1_800_000_000 - i64::try_from(seconds_ago).unwrap()).rfc3339_micro()),
            }})
        };
        assert_eq!(led("kube-scheduler", Some(&lease(15)), now), Ok(()));
        assert!(led("kube-scheduler", Some(&lease(16)), now).unwrap_err().contains("nobody leads: a renewed"));
        assert!(led("kube-scheduler", None, now).unwrap_err().contains("there is no lease"));
        let told = component("scheduler", Err("gone".to_owned()));
        let kind = api::kinds::kinds().into_iter().find(|kind| kind.resource == RESOURCE).unwrap();
        assert_eq!(kind.rules.cells(&told, now), ["Unhealthy".into(), "".into(), "gone".into()]);
        assert_eq!(kind.rules.cells(&component("scheduler", Ok(())), now), ["Healthy".into(), "ok".into(), "".into()]);
    }
}
