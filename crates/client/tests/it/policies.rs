//! Admission policies in CEL, held against real requests.

use std::sync::Arc;

use client::{Api, HttpApi, Request};
use meta::{Reason, Resource, Value, json};

use super::{Lab, MAPS, NAMESPACES};

const POLICIES: Resource = Resource("validatingadmissionpolicies.admissionregistration.k8s.io");
const BINDINGS: Resource = Resource("validatingadmissionpolicybindings.admissionregistration.k8s.io");

/// A policy about config maps in namespaces with the label `judged`, and its binding.
async fn bind(api: &Arc<HttpApi>, name: &str, policy: Value, binding: Value) {
    let mut whole = json!({
        "metadata": {"name": name},
        "spec": {"matchConstraints": {
            "namespaceSelector": {"matchLabels": {"judged": "yes"}},
            "resourceRules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["CREATE", "DELETE"],
            }],
        }},
    });
    let mut bound = json!({"metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Deny"]}});
    for (object, spec) in [(&mut whole, policy), (&mut bound, binding)] {
        for (key, value) in spec.entries().iter() {
            object.set(&["spec", key], value.clone());
        }
    }
    api.call(Request::create(POLICIES, whole)).await.unwrap();
    api.call(Request::create(BINDINGS, bound)).await.unwrap();
}

/// Creates a config map with `data`: what is said against it.
async fn refused(api: &Arc<HttpApi>, namespace: &str, name: &str, data: Value) -> Option<(Reason, String)> {
    let map = json!({"metadata": {"name": name, "namespace": namespace}, "data": data});
    let answer = api.call(Request::create(MAPS, map)).await;
    answer.err().map(|status| (status.reason(), status.message().to_owned()))
}

async fn lab() -> (Lab, Arc<HttpApi>) {
    let lab = Lab::new().await;
    let api = lab.api();
    for (name, judged) in [("judged", "yes"), ("free", "no")] {
        let namespace = json!({"metadata": {"name": name, "labels": {"judged": judged}}});
        api.call(Request::create(NAMESPACES, namespace)).await.unwrap();
    }
    (lab, api)
}

#[tokio::test]
async fn policies_refuse_what_they_object_to() {
    let (_lab, api) = lab().await;
    let policy = json!({
        "matchConditions": [{"name": "named", "expression": "!object.metadata.name.startsWith('skip')"}],
        "variables": [
            {"name": "size", "expression": "size(object.data.text)"},
            {"name": "fits", "expression": "variables.size < 4"},
        ],
        "validations": [
            {"expression": "variables.fits", "messageExpression": "'too long by ' + string(variables.size - 3)"},
            {"expression": "object.data.text != 'no'", "message": "not that", "reason": "Forbidden"},
            {"expression": "authorizer.group('').resource('pods').check('get').allowed()"},
            {"expression": "request.operation == 'CREATE' && namespaceObject.metadata.name == 'judged'"},
        ],
    });
    // Without the deletion: there is no object then.
    let rules = json!([{
        "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"], "operations": ["CREATE"], "scope": "Namespaced",
    }]);
    bind(&api, "text", policy, json!({"matchResources": {"resourceRules": rules}})).await;
    let denied = "configmaps \"a\" is forbidden: ValidatingAdmissionPolicy 'text' with binding 'text' denied request: ";
    let said = |what: &str| format!("{denied}{what}");
    for (namespace, name, text, wanted) in [
        ("judged", "a", "long", Some((Reason::Invalid, said("too long by 1")))),
        ("judged", "a", "no", Some((Reason::Forbidden, said("not that")))),
        ("judged", "b", "yes", None),
        ("judged", "skip", "longer", None),
        ("free", "a", "longer", None),
    ] {
        let found = refused(&api, namespace, name, json!({"text": text})).await;
        assert_eq!(found, wanted, "{namespace}/{name} {text}");
    }
    // Policies speak before the store does.
    let stored =
        json!({"metadata": {"name": "b", "namespace": "judged", "resourceVersion": "1"}, "data": {"text": "no"}});
    assert_eq!(api.call(Request::create(MAPS, stored)).await.unwrap_err().reason(), Reason::Forbidden);
    let found = refused(&api, "judged", "a", json!({"other": "x"})).await.unwrap();
    let why = "expression 'variables.fits' resulted in error: composited variable \"fits\" fails to evaluate: ";
    assert!(found.1.starts_with(&said(why)), "{found:?}");
    api.call(Request::delete(MAPS, "judged", "b")).await.unwrap();
    // Nothing is held any more once the binding is gone.
    api.call(Request::delete(BINDINGS, "", "text")).await.unwrap();
    assert_eq!(refused(&api, "judged", "a", json!({"text": "long"})).await, None);
}

#[tokio::test]
async fn policies_hold_with_their_parameters() {
    let (_lab, api) = lab().await;
    let policy = json!({
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "validations": [{"expression": "oldObject != null || object.data.text in params.data"}],
    });
    let reference = json!({"name": "words", "namespace": "free", "parameterNotFoundAction": "Deny"});
    bind(&api, "known", policy.clone(), json!({"paramRef": reference})).await;
    let (reason, message) = refused(&api, "judged", "a", json!({"text": "x"})).await.unwrap();
    assert_eq!(reason, Reason::Invalid);
    assert!(message.ends_with("no params found for policy binding with `Deny` parameterNotFoundAction"), "{message}");
    assert_eq!(refused(&api, "free", "words", json!({"x": "1"})).await, None);
    assert_eq!(refused(&api, "judged", "a", json!({"text": "x"})).await, None);
    assert!(refused(&api, "judged", "b", json!({"text": "y"})).await.is_some());
    api.call(Request::delete(MAPS, "judged", "a")).await.unwrap();
    // What cannot be said is no objection where failures are ignored; a binding that only warns lets pass.
    api.call(Request::delete(BINDINGS, "", "known")).await.unwrap();
    let broken = json!({"failurePolicy": "Ignore", "validations": [{"expression": "object.data.missing == 'x'"}]});
    bind(&api, "broken", broken, json!({})).await;
    let loud = json!({"validations": [{"expression": "false"}]});
    bind(&api, "loud", loud, json!({"validationActions": ["Warn"]})).await;
    assert_eq!(refused(&api, "judged", "b", json!({"text": "y"})).await, None);
}

#[tokio::test]
async fn policies_change_what_is_written() {
    const POLICIES: Resource = Resource("mutatingadmissionpolicies.admissionregistration.k8s.io");
    const BINDINGS: Resource = Resource("mutatingadmissionpolicybindings.admissionregistration.k8s.io");
    let (_lab, api) = lab().await;
    let policies = [
        (
            "a",
            "IfNeeded",
            json!([{
                "patchType": "ApplyConfiguration",
                "applyConfiguration": {"expression": "Object{data: {'seen': string(size(object.data))}}"},
            }]),
        ),
        (
            "b",
            "Never",
            json!([
                {"patchType": "JSONPatch", "jsonPatch": {
                    "expression": "[JSONPatch{op: 'add', path: '/data/added', value: variables.word}]",
                }},
                // The second sees what the first made.
                {"patchType": "JSONPatch", "jsonPatch": {
                    "expression": "[JSONPatch{op: 'add', path: '/data/twice', value: object.data.added + variables.word}]",
                }},
            ]),
        ),
    ];
    for (name, again, mutations) in policies {
        let rule = json!({
            "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["CREATE"],
        });
        let policy = json!({"metadata": {"name": name}, "spec": {
            "reinvocationPolicy": again, "mutations": mutations, "variables": [{"name": "word", "expression": "'x'"}],
            "matchConstraints": {"resourceRules": [rule], "namespaceSelector": {"matchLabels": {"judged": "yes"}}},
        }});
        api.call(Request::create(POLICIES, policy)).await.unwrap();
        let binding = json!({"metadata": {"name": name}, "spec": {"policyName": name}});
        api.call(Request::create(BINDINGS, binding)).await.unwrap();
    }
    for (namespace, wanted) in
        [("judged", json!({"own": "1", "added": "x", "twice": "xx", "seen": "4"})), ("free", json!({"own": "1"}))]
    {
        let map = json!({"metadata": {"name": "m", "namespace": namespace}, "data": {"own": "1"}});
        let made = api.call(Request::create(MAPS, map)).await.unwrap();
        assert_eq!(made.object.value()["data"], wanted);
    }
}
