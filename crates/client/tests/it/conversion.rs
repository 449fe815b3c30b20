//! Custom resources whose versions a program on this machine turns into each other.

use std::sync::Arc;
use std::time::Duration;

use cache::Cache;
use client::{Api, HttpApi, Mirror, PatchType, Path, Request, Wish, follow};
use meta::{Reason, Resource, Value, json};

use super::webhooks::Hook;
use super::{Lab, NAMESPACES, soon};

const DEFINITIONS: Resource = Resource("customresourcedefinitions.apiextensions.k8s.io");
const DOORS: Resource = Resource("doors.example.com");

/// Version 1 has `spec.place` (`host:port`), version 2 has `spec.host` and `spec.port`.
fn convert(request: &Value) -> Value {
    let wanted = request["desiredAPIVersion"].text();
    let convert = |object: &Value| {
        let mut object = object.clone();
        object.set(&["apiVersion"], wanted);
        let spec = object["spec"].clone();
        let other = match wanted {
            "example.com/v1" => json!({"place": (format!("{}:{}", spec["host"].text(), spec["port"].text()))}),
            _ => {
                let (host, port) = spec["place"].text().split_once(':').unwrap_or_default();
                json!({"host": host, "port": port})
            }
        };
        object.set(&["spec"], other);
        object
    };
    if request["objects"].items().iter().any(|object| object["spec"]["place"].text() == "bad:1") {
        return json!({"result": {"status": "Failure", "message": "no door"}});
    }
    let converted: Vec<Value> = request["objects"].items().iter().map(convert).collect();
    json!({"convertedObjects": converted, "result": {"status": "Success"}})
}

fn definition(lab: &Lab, hook: &Hook) -> Value {
    let version = |name: &str, storage: bool| {
        let spec = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}});
        json!({"name": name, "served": true, "storage": storage, "schema": schema})
    };
    let webhook = json!({"clientConfig": (hook.client_config(lab)), "conversionReviewVersions": ["v9", "v1"]});
    json!({
        "metadata": {"name": "doors.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "doors", "singular": "door", "kind": "Door"},
            "versions": [(version("v1", true)), (version("v2", false))],
            "conversion": {"strategy": "Webhook", "webhook": webhook},
        },
    })
}

/// The door of a client that knows one version.
fn api(lab: &Lab, version: &'static str) -> Arc<HttpApi> {
    lab.api_of(Arc::new(move |resource| {
        let (group, plural, kind) = ("example.com".into(), "doors".into(), "Door".into());
        (resource == DOORS).then(|| Path { group, version: version.into(), plural, kind, namespaced: true })
    }))
}

fn door(version: &str, name: &str, spec: Value) -> Value {
    let meta = json!({"name": name, "namespace": "ns"});
    json!({"apiVersion": (format!("example.com/{version}")), "kind": "Door", "metadata": meta, "spec": spec})
}

#[tokio::test]
async fn each_version_shows_what_the_other_wrote() {
    let lab = Lab::new().await;
    let hook = Hook::open(&lab, convert).await;
    lab.api().call(Request::create(NAMESPACES, json!({"metadata": {"name": "ns"}}))).await.unwrap();
    lab.api().call(Request::create(DEFINITIONS, definition(&lab, &hook))).await.unwrap();
    let (one, two) = (api(&lab, "v1"), api(&lab, "v2"));
    let first = door("v1", "a", json!({"place": "home:80"}));
    // A definition is served a moment after it was made.
    soon(async {
        while one.call(Request::create(DOORS, first.clone())).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let made = two.call(Request::create(DOORS, door("v2", "b", json!({"host": "work", "port": "81"})))).await.unwrap();
    assert_eq!(
        made.object.value()["spec"],
        json!({"host": "work", "port": "81"}),
        "the answer speaks the client's version"
    );
    let seen = |api: Arc<HttpApi>, name: &'static str| async move {
        api.call(Request::get(DOORS, "ns", name)).await.unwrap().object.value()["spec"].clone()
    };
    assert_eq!(seen(one.clone(), "b").await, json!({"place": "work:81"}));
    assert_eq!(seen(two.clone(), "a").await, json!({"host": "home", "port": "80"}));
    // A list, and what is watched after it, with one question for each batch.
    let mirror = Arc::new(Mirror::new(Cache::new([])));
    let following = tokio::spawn(follow(two.clone(), mirror.clone(), vec![Wish::all(DOORS)]));
    let shown = |name: &'static str, port: &'static str| {
        let mirror = mirror.clone();
        async move {
            while mirror.one(DOORS, "ns", name).is_none_or(|door| door.value()["spec"]["port"].text() != port) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    soon(async { tokio::join!(shown("a", "80"), shown("b", "81")) }).await;
    let patch = Request::patch(DOORS, "ns", "a", PatchType::Merge, json!({"spec": {"port": "82"}}));
    let patched = two.call(patch.clone()).await.unwrap();
    assert_eq!(patched.object.value()["spec"], json!({"host": "home", "port": "82"}));
    assert_eq!(two.call(patch).await.unwrap().revision, patched.revision, "nothing changed");
    soon(shown("a", "82")).await;
    assert_eq!(seen(one.clone(), "a").await, json!({"place": "home:82"}));
    let gone = two.call(Request::delete(DOORS, "ns", "b")).await;
    assert!(gone.is_ok(), "{gone:?}");
    soon(async {
        while mirror.one(DOORS, "ns", "b").is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    following.abort();
    // What cannot be converted is told; the stored version goes on.
    one.call(Request::create(DOORS, door("v1", "c", json!({"place": "bad:1"})))).await.unwrap();
    let refused = two.call(Request::get(DOORS, "ns", "c")).await.unwrap_err();
    let why = "conversion webhook for example.com/v1, Kind=Door failed: no door";
    assert_eq!((refused.code(), refused.reason(), refused.message()), (500, Reason::InternalError, why));
    assert_eq!(seen(one, "c").await, json!({"place": "bad:1"}));
}
