//! Whether aggregated servers can be asked: the condition `Available` of each `APIService`, kept by the server that leads.
//!
//! Looked at when the `APIService`, its service or that one's endpoints change, in intervals, and sooner while something is
//! wrong. Each is looked at by a task of its own, so that one that hangs delays nobody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::apiregistration::api_service::{REMOTE, local_condition};
use cache::{Key, Part, View};
use client::{Api, Interest, Request};
use http::Method;
use meta::{Object, Resource, Str, Value, json};
use tokio::time::Instant;

use super::link::Link;
use super::{OWN, PATIENCE, Running, SERVICES, note, own_user, put_condition};
use crate::Server;

const CORE_SERVICES: Resource = Resource("services");
const SLICES: Resource = Resource("endpointslices.discovery.k8s.io");
const AVAILABLE: &str = "Available";
/// How often one that is well is looked at, and how soon one that is not.
const LOOK_EVERY: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Bytes of an answer to the check: it says what is served.
const ANSWER_MAX_BYTES: usize = 8 << 20;

/// Whether an `APIService` was found to be available.
pub fn is_available(service: &Value) -> bool {
    condition_of(service).is_some_and(|condition| condition["status"].text() == "True")
}

fn condition_of(service: &Value) -> Option<&Value> {
    service.at(&["status", "conditions"]).items().iter().find(|condition| condition["type"].text() == AVAILABLE)
}

/// Why one is not available: a word and a sentence.
type Wrong = (&'static str, String);

/// What is wrong with an `APIService` as far as the cluster's objects tell.
fn wrong(spec: &Value, view: &View) -> Option<Wrong> {
    let group = spec["group"].text();
    if OWN.contains(&group) {
        return Some(("NotSupported", format!("the group {group:?} is served by this server alone")));
    }
    let (namespace, name) = (spec.at(&["service", "namespace"]).text(), spec.at(&["service", "name"]).text());
    let port = spec.at(&["service", "port"]).as_int().unwrap_or(0);
    let Some(service) = view.one(CORE_SERVICES, namespace, name) else {
        return Some(("ServiceNotFound", format!("service/{name} in {namespace:?} is not present")));
    };
    let service = service.value();
    if service.at(&["spec", "type"]).text() == "ExternalName" {
        return None;
    }
    let ports = service.at(&["spec", "ports"]).items();
    let Some(wanted) = ports.iter().find(|entry| entry["port"].as_int() == Some(port)) else {
        let why = format!("service/{name} in {namespace:?} is not listening on port {port}");
        return Some(("ServicePortError", why));
    };
    let mut slices = slices(view, namespace, name).peekable();
    if slices.peek().is_none() {
        let why = format!("cannot find endpointslices for service/{name} in {namespace:?}");
        return Some(("EndpointsNotFound", why));
    }
    let port_name = wanted["name"].text();
    let serves = slices.any(|slice| {
        let slice = slice.value();
        let ready = |endpoint: &Value| endpoint.at(&["conditions", "ready"]).as_bool() != Some(false);
        slice["endpoints"].items().iter().any(ready)
            && slice["ports"].items().iter().any(|port| port["name"].text() == port_name && !port["port"].is_null())
    });
    (!serves).then(|| {
        let why = format!(
            "endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}"
        );
        ("MissingEndpoints", why)
    })
}

fn slices<'a>(view: &'a View, namespace: &'a str, service: &'a str) -> impl Iterator<Item = &'a Object> {
    let all = view.list(SLICES, namespace);
    all.filter(move |slice| slice.labels().get("kubernetes.io/service-name").is_some_and(|name| name == service))
}

/// The condition that an `APIService` should have, unless it has it.
fn missing(service: &Value, found: Option<&Wrong>, now: &str) -> Option<Value> {
    let (status, reason, message) = match found {
        None => ("True", "Passed", "all checks passed"),
        Some((reason, message)) => ("False", *reason, message.as_str()),
    };
    let told = condition_of(service);
    let same = told.is_some_and(|told| {
        (told["status"].text(), told["reason"].text(), told["message"].text()) == (status, reason, message)
    });
    let since = told.filter(|told| told["status"].text() == status).map(|told| told["lastTransitionTime"].clone());
    (!same).then(|| {
        json!({
            "type": AVAILABLE, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": (since.unwrap_or_else(|| now.into())),
        })
    })
}

async fn write(api: &Arc<dyn Api>, mut service: Value, condition: Value) -> bool {
    let name = service.at(&["metadata", "name"]).text().to_owned();
    put_condition(&mut service, condition);
    let request = Request::update(SERVICES, service).on("status");
    note(&format!("APIService {name}"), api.call(request.with(|options| options.manager = "gantry".into())).await)
}

/// Keeps the conditions, until the future is dropped.
pub(super) async fn keep(server: &Arc<Server>, api: &Arc<dyn Api>) {
    let mirror = server.storage.mirror().clone();
    let changed = mirror.listen(Interest::Parts(vec![(SERVICES, Part::Indexed(REMOTE, REMOTE.into()))]));
    let mut known: BTreeMap<Str, (u64, Running)> = BTreeMap::new();
    // Those that this server answers itself have their condition from the beginning, unless they were others' before.
    let local = mirror.view();
    for service in local.list(SERVICES, "") {
        tell_local(server, api, service).await;
    }
    drop(local);
    loop {
        let view = mirror.view();
        let mut next = BTreeMap::new();
        for service in view.by(SERVICES, REMOTE, REMOTE) {
            let name = Str::from(service.name());
            let made_of = base::hash64(&service.value()["spec"].to_json());
            let running = match known.remove(&name) {
                Some((before, running)) if before == made_of => running,
                _ => Running(tokio::spawn(look_after(server.clone(), api.clone(), name.clone()))),
            };
            next.insert(name, (made_of, running));
        }
        for name in std::mem::replace(&mut known, next).into_keys() {
            if let Some(service) = view.one(SERVICES, "", &name) {
                tell_local(server, api, service).await;
            }
        }
        drop(view);
        changed.changed().await;
    }
}

async fn tell_local(server: &Server, api: &Arc<dyn Api>, service: &Object) {
    let value = service.value();
    let is_told = condition_of(&value).is_some_and(|condition| condition["reason"].text() == "Local");
    if value.at(&["spec", "service"]).is_null() && !is_told {
        write(api, value, local_condition(server.now())).await;
    }
}

/// Looks after one, until it is gone.
async fn look_after(server: Arc<Server>, api: Arc<dyn Api>, name: Str) {
    let mirror = server.storage.mirror().clone();
    let Some(service) = mirror.one(SERVICES, "", &name) else { return };
    let spec = service.value()["spec"].clone();
    let link = Arc::new(Link::of(&spec, &server.front_proxy));
    let changed = mirror.listen(Interest::Parts(vec![
        (CORE_SERVICES, Part::Named(Key::of(&link.namespace, &link.service))),
        (SLICES, Part::Namespace(link.namespace.clone())),
        (SERVICES, Part::Named(Key::of("", &name))),
    ]));
    // What the verdict rests on, and what a user may have done to the verdict itself.
    let rests_on = || {
        let view = mirror.view();
        let of = |object: &Object| (object.uid().to_owned(), object.revision());
        let mut all: Vec<_> = view.one(CORE_SERVICES, &link.namespace, &link.service).map(of).into_iter().collect();
        all.extend(slices(&view, &link.namespace, &link.service).map(of));
        let told = view.one(SERVICES, "", &name).map(|service| condition_of(&service.value()).cloned());
        (all, told)
    };
    let mut pause = LOOK_AGAIN;
    loop {
        let view = mirror.view();
        let mut found = wrong(&spec, &view);
        drop(view);
        if found.is_none() {
            found = check(&server, &link, &spec).await.err().map(|why| ("FailedDiscoveryCheck", why));
        }
        let Some(service) = mirror.one(SERVICES, "", &name).map(|service| service.value()) else { return };
        let written = match missing(&service, found.as_ref(), &server.now().rfc3339()) {
            Some(condition) => {
                tracing::info!("APIService {name}: {} {}", condition["reason"].text(), condition["message"].text());
                write(&api, service, condition).await
            }
            None => true,
        };
        pause = match (written, &found) {
            (false, _) => LOOK_AGAIN,
            (true, None) => LOOK_EVERY,
            (true, Some(_)) if pause == LOOK_EVERY => LOOK_AGAIN,
            (true, Some(_)) => (pause * 2).min(LOOK_EVERY),
        };
        let (until, rested_on) = (Instant::now() + pause, rests_on());
        while rests_on() == rested_on {
            tokio::select! {
                () = changed.changed() => {}
                () = tokio::time::sleep_until(until) => break,
            }
        }
    }
}

/// Asks a server for what everyone that is aggregated must answer.
async fn check(server: &Server, link: &Arc<Link>, spec: &Value) -> Result<(), String> {
    let path = format!("/apis/{}/{}", spec["group"].text(), spec["version"].text());
    let asked = (Method::GET, path.as_str(), "application/json");
    let got = link.ask(server, asked, &own_user(), ANSWER_MAX_BYTES, PATIENCE).await;
    let got = got.map_err(|why| format!("failing or missing response from {}{path}: {why}", link.place()))?;
    match got.code {
        200..300 => Ok(()),
        code => Err(format!("failing or missing response from {}{path}: bad status: {code}", link.place())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::Facts;

    fn view(objects: Vec<(Resource, Value)>) -> View {
        let mut cache = cache::Cache::new(crate::indexes());
        let objects = objects.into_iter().map(|(resource, value)| {
            let facts = Facts::of(resource, &value);
            Object::new(facts, value.to_json())
        });
        cache.load(base::Revision(1), objects);
        cache.view()
    }

    #[test]
    fn what_is_wrong_has_a_word() {
        let spec =
            json!({"group": "a.b", "version": "v1", "service": {"namespace": "ns", "name": "s", "port": 443i64}});
        let service = |port: i64| {
            let meta = json!({"namespace": "ns", "name": "s"});
            (CORE_SERVICES, json!({"metadata": meta, "spec": {"ports": [{"name": "https", "port": port}]}}))
        };
        let slice = |ready: bool| {
            let labels = json!({"kubernetes.io/service-name": "s"});
            let meta = json!({"namespace": "ns", "name": "s-1", "labels": labels});
            let endpoints = json!([{"addresses": ["10.0.0.1"], "conditions": {"ready": ready}}]);
            (SLICES, json!({"metadata": meta, "endpoints": endpoints, "ports": [{"name": "https", "port": 8443i64}]}))
        };
        let word = |objects| wrong(&spec, &view(objects)).map(|(word, _)| word);
        assert_eq!(word(vec![]), Some("ServiceNotFound"));
        assert_eq!(word(vec![service(80)]), Some("ServicePortError"));
        assert_eq!(word(vec![service(443)]), Some("EndpointsNotFound"));
        assert_eq!(word(vec![service(443), slice(false)]), Some("MissingEndpoints"));
        assert_eq!(word(vec![service(443), slice(true)]), None);
        let mut outside = service(80);
        outside.1.set(&["spec", "type"], "ExternalName");
        assert_eq!(word(vec![outside]), None);
        let mut own = spec.clone();
        own.set(&["group"], "apiregistration.k8s.io");
        assert_eq!(wrong(&own, &view(vec![])).map(|(word, _)| word), Some("NotSupported"));
    }

    #[test]
    fn what_was_told_is_not_told_again_and_others_conditions_stay() {
        let mut service = json!({"status": {"conditions": [{"type": "Other", "status": "True"}]}});
        let gone = ("ServiceNotFound", "no service".to_owned());
        let first = missing(&service, Some(&gone), "1").unwrap();
        put_condition(&mut service, first);
        assert!(!is_available(&service) && missing(&service, Some(&gone), "2").is_none());
        let other = missing(&service, Some(&("MissingEndpoints", String::new())), "2").unwrap();
        assert_eq!(other["lastTransitionTime"].text(), "1", "it was unavailable all the time");
        let passed = missing(&service, None, "3").unwrap();
        put_condition(&mut service, passed);
        assert!(is_available(&service));
        assert_eq!(service.at(&["status", "conditions"]).items().len(), 2);
        assert_eq!(condition_of(&service).unwrap()["lastTransitionTime"].text(), "3");
    }
}
