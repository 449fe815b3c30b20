//! Webhooks: a program on this machine is asked about writes to a real server.

use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use client::{Api, Request};
use http_body_util::BodyExt;
use meta::{Reason, Resource, Value, json};
use tokio::net::TcpListener;

use super::{Lab, MAPS, NAMESPACES, Usage};

const MUTATING: Resource = Resource("mutatingwebhookconfigurations.admissionregistration.k8s.io");
const VALIDATING: Resource = Resource("validatingwebhookconfigurations.admissionregistration.k8s.io");

/// A program that answers what `judge` makes of a request, and remembers what it was asked.
pub struct Hook {
    pub address: String,
    pub asked: Arc<Mutex<Vec<Value>>>,
    pub task: tokio::task::JoinHandle<()>,
}

impl Hook {
    pub async fn open(lab: &Lab, judge: fn(&Value) -> Value) -> Hook {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let identity = lab.server.ca.issue("hook", &[], &["127.0.0.1".to_owned()], Usage::Server, 1).unwrap();
        let tls = server::http::serve::tls(&identity, lab.server.ca.pem()).unwrap();
        let asked: Arc<Mutex<Vec<Value>>> = Arc::default();
        let heard = asked.clone();
        let handler = move |request: http::Request<hyper::body::Incoming>, _| {
            let heard = heard.clone();
            async move {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let review = Value::parse(&body).unwrap();
                heard.lock().unwrap().push(review["request"].clone());
                let mut response = judge(&review["request"]);
                response.set(&["uid"], review["request"]["uid"].clone());
                let (version, kind) = (review["apiVersion"].clone(), review["kind"].clone());
                let answer = json!({"apiVersion": version, "kind": kind, "response": response});
                server::http::body::answer(200, "application/json", answer.to_json())
            }
        };
        let task = tokio::spawn(server::http::serve::run(listener, tls, handler, std::future::pending()));
        Hook { address, asked, task }
    }

    /// Where it is, as definitions and configurations say it.
    pub fn client_config(&self, lab: &Lab) -> Value {
        json!({"url": (format!("https://{}/judge", self.address)), "caBundle": (STANDARD.encode(lab.server.ca.pem()))})
    }

    /// The configuration by which the hook is asked about config maps of labelled namespaces.
    fn configuration(&self, lab: &Lab, name: &str, more: Value) -> Value {
        let mut hook = json!({
            "name": (format!("{name}.example.com")), "clientConfig": (self.client_config(lab)), "sideEffects": "None",
            "admissionReviewVersions": ["v1"], "namespaceSelector": {"matchLabels": {"judged": "yes"}},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["CREATE", "DELETE"]}],
        });
        for (key, value) in more.entries().iter() {
            hook.set(&[key], value.clone());
        }
        json!({"metadata": {"name": name}, "webhooks": [hook]})
    }
}

fn map(name: &str, text: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "judged"}, "data": {"text": text}})
}

async fn lab() -> Lab {
    let lab = Lab::new().await;
    let namespace = json!({"metadata": {"name": "judged", "labels": {"judged": "yes"}}});
    lab.api().call(Request::create(NAMESPACES, namespace)).await.unwrap();
    lab
}

fn judge(request: &Value) -> Value {
    match (request["operation"].text(), request.at(&["object", "data", "text"]).text()) {
        ("CREATE", "no") => {
            json!({"allowed": false, "status": {"code": 403, "message": "not that", "reason": "Forbidden"}})
        }
        ("DELETE", _) if request.at(&["oldObject", "data", "text"]).text() == "keep" => json!({"allowed": false}),
        _ => json!({"allowed": true}),
    }
}

fn change(request: &Value) -> Value {
    let patch = match request.at(&["object", "data", "text"]).text() {
        "" => return json!({"allowed": true}),
        text => json!([{"op": "add", "path": "/data/text", "value": (format!("{text}!"))}]),
    };
    json!({"allowed": true, "patchType": "JSONPatch", "patch": (STANDARD.encode(patch.to_json()))})
}

#[tokio::test]
async fn hooks_refuse_and_are_asked_about_what_concerns_them() {
    let lab = lab().await;
    let (api, hook) = (lab.api(), Hook::open(&lab, judge).await);
    let skips = json!([{"name": "named", "expression": "request.name != 'skip'"}]);
    let configuration = hook.configuration(&lab, "judge", json!({"matchConditions": skips}));
    api.call(Request::create(VALIDATING, configuration)).await.unwrap();
    let refused = api.call(Request::create(MAPS, map("a", "no"))).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::Forbidden);
    assert_eq!(refused.message(), "admission webhook \"judge.example.com\" denied the request: not that");
    api.call(Request::create(MAPS, map("skip", "no"))).await.unwrap();
    api.call(Request::create(MAPS, map("kept", "keep"))).await.unwrap();
    let kept = api.call(Request::delete(MAPS, "judged", "kept")).await.unwrap_err();
    assert_eq!(
        (kept.code(), kept.message()),
        (400, "admission webhook \"judge.example.com\" denied the request without explanation")
    );
    {
        let asked = hook.asked.lock().unwrap();
        let seen: Vec<(&str, &str)> = asked.iter().map(|one| (one["operation"].text(), one["name"].text())).collect();
        assert_eq!(seen, [("CREATE", "a"), ("CREATE", "kept"), ("DELETE", "kept")]);
        let first = &asked[0];
        assert_eq!((first["kind"]["kind"].text(), first["resource"]["resource"].text()), ("ConfigMap", "configmaps"));
        assert_eq!(first["object"]["kind"].text(), "ConfigMap");
        assert_eq!((first["userInfo"]["username"].text(), &first["oldObject"]), ("tester", &Value::Null));
    }
    // Nobody answers any more: a closed hook refuses, an open one lets pass.
    hook.task.abort();
    let silent = api.call(Request::create(MAPS, map("b", "yes"))).await.unwrap_err();
    assert_eq!(silent.reason(), Reason::InternalError);
    let why = "Internal error occurred: failed calling webhook \"judge.example.com\": failed to call webhook: Post \"https://";
    assert!(silent.message().starts_with(why), "{}", silent.message());
    api.call(Request::delete(VALIDATING, "", "judge")).await.unwrap();
    let open = hook.configuration(&lab, "open", json!({"failurePolicy": "Ignore"}));
    api.call(Request::create(VALIDATING, open)).await.unwrap();
    api.call(Request::create(MAPS, map("b", "yes"))).await.unwrap();
}

#[tokio::test]
async fn hooks_change_what_is_written_one_after_another() {
    let lab = lab().await;
    let (api, hook) = (lab.api(), Hook::open(&lab, change).await);
    for (name, again) in [("first", "IfNeeded"), ("second", "Never")] {
        let configuration = hook.configuration(&lab, name, json!({"reinvocationPolicy": again}));
        api.call(Request::create(MUTATING, configuration)).await.unwrap();
    }
    let made = api.call(Request::create(MAPS, map("a", "x"))).await.unwrap();
    // The first, the second, and the first once more, since the second changed something.
    assert_eq!(made.object.value()["data"]["text"].text(), "x!!!");
    let heard: Vec<String> = {
        let asked = hook.asked.lock().unwrap();
        asked.iter().map(|one| one.at(&["object", "data", "text"]).text().to_owned()).collect()
    };
    assert_eq!(heard, ["x", "x!", "x!!"]);
}
