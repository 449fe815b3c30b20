//! What the server that leads keeps for aggregated servers and their clients: the `APIService`s of definitions, and the
//! config map by which aggregated servers know whom to believe.
//!
//! An `APIService` that a user made for a group and version of a definition stays: it is how another server takes over.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cache::{Key, Part, View};
use client::{Api, Interest, PatchType, Request};
use meta::{Object, Resource, Str, Value, json};

use super::{SERVICES, note};
use crate::Server;

/// Says that an `APIService` comes and goes with the definitions of its group and version, or that it was made at the
/// start.
pub const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
/// Of definitions, as in Kubernetes.
pub const GROUP_PRIORITY: i64 = 1_000;
pub const VERSION_PRIORITY: i64 = 100;
const MAPS: Resource = Resource("configmaps");
const PUBLISHED: (&str, &str) = ("kube-system", "extension-apiserver-authentication");
/// Between two looks when a write failed, and at least between looks at the definitions.
const AGAIN: Duration = Duration::from_secs(1);

/// The `APIService` of a group and version of definitions.
fn made(group: &str, version: &str) -> Value {
    let mut made = json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": (format!("{version}.{group}"))},
        "spec": {
            "group": group, "version": version, "groupPriorityMinimum": GROUP_PRIORITY,
            "versionPriority": VERSION_PRIORITY,
        },
    });
    made.set(&["metadata", "labels", MANAGED], "true");
    made
}

/// What is to be done so that the definitions' groups and versions are registered.
fn plan(view: &View, wanted: &BTreeSet<(Str, Str)>) -> Vec<Request> {
    let managed = |object: &Object| object.labels().get(MANAGED).map(|how| how.to_string());
    let mut requests = Vec::new();
    let mut names = BTreeSet::new();
    for (group, version) in wanted {
        let name = format!("{version}.{group}");
        match view.one(SERVICES, "", &name) {
            None => requests.push(Request::create(SERVICES, made(group, version))),
            // Made at the start of an earlier version, which did not follow definitions.
            Some(found) if managed(found).as_deref() == Some("onstart") => {
                let mut patch = Value::map();
                patch.set(&["metadata", "labels", MANAGED], "true");
                requests.push(Request::patch(SERVICES, "", &name, PatchType::Merge, patch));
            }
            Some(_) => {}
        }
        names.insert(name);
    }
    for found in view.list(SERVICES, "") {
        if managed(found).as_deref() == Some("true") && !names.contains(found.name()) {
            let uid = found.uid().into();
            requests.push(Request::delete(SERVICES, "", found.name()).with(|options| options.uid = Some(uid)));
        }
    }
    requests
}

/// Keeps the `APIService`s of definitions, until the future is dropped.
pub(super) async fn keep(server: &Arc<Server>, api: &Arc<dyn Api>) {
    let mirror = server.storage.mirror().clone();
    let changed = mirror.listen(Interest::Parts(vec![(SERVICES, Part::Lives)]));
    let mut served = server.storage.registry_changes();
    loop {
        served.borrow_and_update();
        let requests = plan(&mirror.view(), &server.storage.registry().of_definitions());
        for request in requests {
            let what = format!("APIService {}", request.name);
            note(&what, api.call(request.with(|options| options.manager = "gantry".into())).await);
        }
        tokio::select! {
            () = changed.changed() => {}
            _ = served.changed() => {}
        }
        // Definitions mostly come in crowds.
        tokio::time::sleep(AGAIN).await;
    }
}

/// Keeps the config map that aggregated servers read, until the future is dropped.
pub(super) async fn publish(server: &Arc<Server>, api: &Arc<dyn Api>) {
    let (namespace, name) = PUBLISHED;
    let mirror = server.storage.mirror().clone();
    let changed = mirror.listen(Interest::Parts(vec![(MAPS, Part::Named(Key::of(namespace, name)))]));
    let wanted = server.front_proxy.published(&server.ca);
    loop {
        let request = match mirror.one(MAPS, namespace, name).map(|map| map.value()) {
            None => {
                let meta = json!({"namespace": namespace, "name": name});
                let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": (wanted.clone())});
                Some(Request::create(MAPS, map))
            }
            Some(map) if map["data"] == wanted => None,
            Some(mut map) => {
                map.set(&["data"], wanted.clone());
                Some(Request::update(MAPS, map))
            }
        };
        let done = match request {
            None => true,
            Some(request) => {
                let request = request.with(|options| options.manager = "gantry".into());
                note(&format!("ConfigMap {namespace}/{name}"), api.call(request).await)
            }
        };
        tokio::select! {
            () = changed.changed() => {}
            () = tokio::time::sleep(AGAIN), if !done => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::Action;
    use meta::Facts;

    #[test]
    fn definitions_are_registered_and_users_are_left_alone() {
        let mut cache = cache::Cache::new(crate::indexes());
        let service = |name: &str, label: &str| {
            let mut value = json!({"metadata": {"name": name}});
            if !label.is_empty() {
                value.set(&["metadata", "labels", MANAGED], label);
            }
            Object::new(Facts::of(SERVICES, &value), value.to_json())
        };
        let there = [
            service("v1.built.in", "onstart"),
            service("v1.old", "onstart"),
            service("v1.mine", ""),
            service("v1.kept", "true"),
            service("v1.gone", "true"),
        ];
        cache.load(base::Revision(1), there);
        let wanted = ["old", "mine", "kept", "new"].map(|group| (Str::from(group), Str::from("v1"))).into();
        let said = plan(&cache.view(), &wanted).into_iter().map(|request| match request.action {
            Action::Create(object) => format!("create {}", object.at(&["metadata", "name"]).text()),
            Action::Patch(..) => format!("patch {}", request.name),
            Action::Delete => format!("delete {}", request.name),
            _ => "other".to_owned(),
        });
        assert_eq!(said.collect::<Vec<_>>(), ["create v1.new", "patch v1.old", "delete v1.gone"]);
    }
}
