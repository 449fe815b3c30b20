//! Deletion of namespaces: their content first, pods before the rest, then the finalizer `kubernetes`.
//!
//! What aggregated servers have in a namespace is not in the view. While there are such servers, a condition tells how far
//! that is deleted ([`CONTENT`]), and no namespace goes before it says that it is.

use std::collections::BTreeMap;

use api::apiregistration::api_service::REMOTE;
use api::core::namespace::{CONTENT, CONTENT_UNKNOWN};
use cache::{Event, View};
use meta::{Object, Resource, Str, Value, json};
use reconcile::{Context, EVERYTHING, Effect, Outcome, Reconciler};

use crate::common::*;

const FINALIZER: &str = "kubernetes";
/// Those who answer for a group and version.
pub const API_SERVICES: Resource = Resource("apiservices.apiregistration.k8s.io");

pub struct Namespaces;

impl Reconciler for Namespaces {
    fn name(&self) -> &'static str {
        "namespace-controller"
    }

    fn watches(&self) -> &[Resource] {
        &[NAMESPACES]
    }

    fn lives(&self) -> &[Resource] {
        &[EVERYTHING]
    }

    fn keys(&self, resource: Resource, event: &Event, view: &View, out: &mut Vec<Str>) {
        let Some(object) = event.new.as_ref().or(event.old.as_ref()) else { return };
        if resource == NAMESPACES {
            if event.new.as_ref().is_some_and(is_deleting) {
                out.push(object.name().into());
            }
        } else if view.one(NAMESPACES, "", object.namespace()).is_some_and(is_deleting) {
            out.push(object.namespace().into());
        }
    }

    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome {
        let Some(object) = view.one(NAMESPACES, "", key).filter(|namespace| is_deleting(namespace)) else {
            return Outcome::Settled;
        };
        let value = object.value();
        if !value["spec"]["finalizers"].items().iter().any(|finalizer| finalizer.text() == FINALIZER) {
            return Outcome::Settled;
        }
        let pods: Vec<&Object> = view.list(PODS, key).collect();
        cx.reads = pods.len();
        let mut remaining: BTreeMap<Resource, usize> = BTreeMap::new();
        let mut finalizers: BTreeMap<Str, usize> = BTreeMap::new();
        let mut removed = 0;
        let content: Vec<&Object> = if pods.is_empty() {
            view.resources().filter(|resource| *resource != NAMESPACES).flat_map(|it| view.list(it, key)).collect()
        } else {
            pods
        };
        for found in content.iter().copied().filter(|found| found.namespace() == key) {
            *remaining.entry(found.resource()).or_default() += 1;
            for finalizer in &found.facts().finalizers {
                *finalizers.entry(finalizer.clone()).or_default() += 1;
            }
            if !is_deleting(found) && removed < BATCH_MAX {
                removed += 1;
                delete(cx, found, "Background");
            }
        }
        let elsewhere = elsewhere(&value, view);
        if remaining.is_empty() && elsewhere.is_none() {
            let rest = value["spec"]["finalizers"].items().iter().filter(|one| one.text() != FINALIZER).cloned();
            let mut object = value.clone();
            object.set(&["spec", "finalizers"], Value::List(rest.collect()));
            cx.push(Effect::UpdateSub { resource: NAMESPACES, subresource: "finalize", object });
            return Outcome::Settled;
        }
        // What goes at once needs no telling: only what is still there after it was asked to go.
        let is_told = !remaining.is_empty() || elsewhere.as_ref().is_some_and(|(_, message)| !message.is_empty());
        if removed == 0 && is_told {
            let status = status_of(&value, &remaining, &finalizers, elsewhere.as_ref(), cx);
            write_status(cx, object, &value, status);
        }
        if removed >= BATCH_MAX { Outcome::Again(cx.now) } else { Outcome::Settled }
    }
}

/// What aggregated servers may still have in a namespace: why and which, in words, or nothing while nobody has told. `None`
/// when there are none, or nothing is left.
fn elsewhere(namespace: &Value, view: &View) -> Option<(String, String)> {
    view.by(API_SERVICES, REMOTE, REMOTE).next()?;
    let conditions = namespace["status"]["conditions"].items();
    let told = conditions.iter().find(|one| one["type"].text() == CONTENT);
    match told {
        Some(told) if told["status"].text() == "True" => None,
        Some(told) => Some((told["reason"].text().to_owned(), told["message"].text().to_owned())),
        None => Some(Default::default()),
    }
}

fn status_of(
    value: &Value,
    remaining: &BTreeMap<Resource, usize>,
    finalizers: &BTreeMap<Str, usize>,
    elsewhere: Option<&(String, String)>,
    cx: &Context,
) -> Value {
    let list = |entries: Vec<String>| entries.join(", ");
    let unknown = elsewhere.filter(|(reason, _)| reason == CONTENT_UNKNOWN).map(|(_, message)| message.clone());
    let left = elsewhere.filter(|(reason, message)| reason != CONTENT_UNKNOWN && !message.is_empty());
    let here = remaining.iter().map(|(resource, count)| format!("{resource} has {count} left"));
    let resources: Vec<String> = here.chain(left.map(|(_, message)| message.clone())).collect();
    let remains = !resources.is_empty();
    let resources = list(resources);
    let holding = list(finalizers.iter().map(|(name, count)| format!("{name} in {count}")).collect());
    let (held, free) = (!finalizers.is_empty(), finalizers.is_empty());
    let rows = [
        (
            "NamespaceDeletionDiscoveryFailure",
            unknown.is_some(),
            if unknown.is_some() { "DiscoveryFailed" } else { "ResourcesDiscovered" },
            unknown.unwrap_or_else(|| "All resources are known".to_owned()),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            "ParsedGroupVersions",
            "All groups are known".to_owned(),
        ),
        ("NamespaceDeletionContentFailure", false, "ContentDeleted", "All content was asked to go".to_owned()),
        (
            "NamespaceContentRemaining",
            remains,
            if remains { "SomeResourcesRemain" } else { "ContentRemoved" },
            if remains {
                format!("Some content is left: {resources}")
            } else {
                "Nothing that is known is left".to_owned()
            },
        ),
        (
            "NamespaceFinalizersRemaining",
            held,
            if free { "ContentHasNoFinalizers" } else { "SomeFinalizersRemain" },
            if free { "Nothing holds the content".to_owned() } else { format!("Finalizers hold content: {holding}") },
        ),
    ];
    let mut conditions = value["status"]["conditions"].items().to_vec();
    for (of_type, is, reason, message) in rows {
        let state = if is { "True" } else { "False" };
        let known = conditions.iter().position(|one| one["type"].text() == of_type);
        let since = known
            .map(|at| &conditions[at])
            .filter(|one| one["status"].text() == state)
            .map(|one| one["lastTransitionTime"].clone());
        let made = json!({
            "type": of_type, "status": state, "reason": reason, "message": message,
            "lastTransitionTime": (since.unwrap_or_else(|| cx.now.rfc3339().into())),
        });
        match known {
            Some(at) => conditions[at] = made,
            None => conditions.push(made),
        }
    }
    json!({"phase": "Terminating", "conditions": conditions})
}
