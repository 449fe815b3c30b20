//! Serving custom resources: follows the definitions, tells their state, and replaces the registry when they change.
//!
//! State: the definitions in the cache, the registry made of them. Who decides: this task alone. A definition that is
//! being deleted is held by a finalizer until all its objects are gone.

use std::collections::BTreeMap;
use std::sync::Arc;

use cache::Part;
use client::{Interest, Request};
use meta::{Kind, Object, Reason, Resource, Status, Value, json};

use crate::Server;
use crate::local;
use crate::registry::Registry;

pub const DEFINITIONS: Resource = Resource("customresourcedefinitions.apiextensions.k8s.io");
const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Follows the definitions until the future is dropped.
pub async fn follow(server: Arc<Server>) {
    let mirror = server.storage.mirror().clone();
    let definitions_only = || Interest::Parts(vec![(DEFINITIONS, Part::All)]);
    let mut known: BTreeMap<String, base::Revision> = BTreeMap::new();
    let (mut changed, mut waited) = (mirror.listen(definitions_only()), false);
    loop {
        let definitions: Vec<Object> = mirror.view().list(DEFINITIONS, "").cloned().collect();
        let now: BTreeMap<String, base::Revision> =
            definitions.iter().map(|definition| (definition.name().to_owned(), definition.revision())).collect();
        let waiting = definitions.iter().any(|definition| definition.facts().deleting.is_some());
        if waiting != waited {
            // A definition that goes waits for its last object, whichever that is.
            changed = mirror.listen(if waiting { Interest::Everything } else { definitions_only() });
            waited = waiting;
            continue;
        }
        if now != known || waiting {
            known = now;
            serve(&server, &definitions);
            for definition in &definitions {
                if let Err(status) = tend(&server, definition, &definitions).await {
                    match status.reason() {
                        // Another writer came first; the change that it made brings the next look.
                        Reason::Conflict | Reason::NotFound => {
                            tracing::debug!("definition {}: {status}", definition.name())
                        }
                        _ => tracing::warn!("definition {}: {status}", definition.name()),
                    }
                }
            }
        }
        changed.changed().await;
    }
}

/// Serves what is to be served now; for parts that bring kinds of their own.
pub fn serve_now(server: &Server) {
    let definitions: Vec<Object> = server.storage.mirror().view().list(DEFINITIONS, "").cloned().collect();
    serve(server, &definitions);
}

/// Replaces the registry by one with all established definitions.
fn serve(server: &Server, definitions: &[Object]) {
    let _one = server.metrics.serving.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let kinds = api::kinds::kinds().into_iter().chain(server.metrics.kinds());
    let mut registry = Registry::new(kinds.map(Arc::new));
    for definition in definitions {
        let value = definition.value();
        if is_true(&value, "Established") {
            for kind in api::custom::kinds(&value) {
                registry.add(Arc::new(kind));
            }
        }
    }
    server.storage.replace_registry(registry);
}

fn is_true(definition: &Value, of_type: &str) -> bool {
    let conditions = definition.at(&["status", "conditions"]).items();
    conditions.iter().any(|condition| condition["type"].text() == of_type && condition["status"].text() == "True")
}

/// Brings one definition's status and finalizer up to date.
async fn tend(server: &Arc<Server>, definition: &Object, all: &[Object]) -> Result<(), Status> {
    let value = definition.value();
    if definition.facts().deleting.is_some() {
        return finish(server, definition, value).await;
    }
    let accepted = conflict(server, &value, definition.name(), all).is_none();
    let stored = value.at(&["spec", "versions"]).items().iter().find(|version| version["storage"].is_true());
    let stored = stored.map(|version| version["name"].clone()).unwrap_or_default();
    let mut versions = value.at(&["status", "storedVersions"]).items().to_vec();
    if !versions.contains(&stored) {
        versions.push(stored);
    }
    let mut wanted = value.clone();
    if accepted {
        wanted.set(&["status", "acceptedNames"], value.at(&["spec", "names"]).clone());
    } else if wanted.at(&["status", "acceptedNames"]).is_null() {
        wanted.set(&["status", "acceptedNames"], json!({"plural": "", "kind": ""}));
    }
    wanted.set(&["status", "storedVersions"], versions);
    let now = server.now().rfc3339();
    let names = match conflict(server, &value, definition.name(), all) {
        None => ("True", "NoConflicts", "no conflicts found".to_owned()),
        Some(why) => ("False", "NameConflict", why),
    };
    condition(&mut wanted, "NamesAccepted", names, &now);
    let established = match accepted {
        true => ("True", "InitialNamesAccepted", "the initial names have been accepted".to_owned()),
        false => ("False", "NotAccepted", "not all names are accepted".to_owned()),
    };
    if accepted || !is_true(&value, "Established") {
        condition(&mut wanted, "Established", established, &now);
    }
    if wanted["status"] != value["status"] {
        let request = Request::update(DEFINITIONS, wanted).on("status");
        local::call(server, &local::system(), request.with(|options| options.manager = "gantry".into())).await?;
    }
    if !definition.facts().finalizers.iter().any(|name| name == FINALIZER) {
        let patch = json!({"metadata": {"finalizers": [FINALIZER], "uid": (definition.uid())}});
        let request = Request::patch(DEFINITIONS, "", definition.name(), client::PatchType::Strategic, patch);
        local::call(server, &local::system(), request.with(|options| options.manager = "gantry".into())).await?;
    }
    Ok(())
}

fn condition(definition: &mut Value, of_type: &str, (status, reason, message): (&str, &str, String), now: &str) {
    let conditions = definition.make(&["status", "conditions"]).make_list();
    if let Some(known) = conditions.iter_mut().find(|condition| condition["type"].text() == of_type) {
        if known["status"].text() == status {
            return;
        }
        *known =
            json!({"type": of_type, "status": status, "reason": reason, "message": message, "lastTransitionTime": now});
        return;
    }
    conditions.push(
        json!({"type": of_type, "status": status, "reason": reason, "message": message, "lastTransitionTime": now}),
    );
}

/// Why the definition's names cannot be served: another kind of the group has them.
fn conflict(server: &Server, definition: &Value, own_name: &str, all: &[Object]) -> Option<String> {
    let spec = &definition["spec"];
    let (group, names) = (spec["group"].text(), &spec["names"]);
    let same = |kind: &Kind| {
        kind.names.plural == names["plural"].text()
            || kind.names.kind == names["kind"].text()
            || kind.names.singular == names["singular"].text()
    };
    let builtin = server.storage.registry();
    if let Some(kind) = builtin.kinds().iter().find(|kind| {
        kind.names.group == group && same(kind) && format!("{}.{}", kind.names.plural, kind.names.group) != own_name
    }) {
        return Some(format!("{:?} is already in use", kind.names.kind));
    }
    all.iter()
        .filter(|other| other.name() != own_name)
        .map(Object::value)
        .filter(|other| other.at(&["spec", "group"]).text() == group && is_true(other, "NamesAccepted"))
        .find(|other| {
            ["plural", "kind", "singular"].iter().any(|key| {
                !names[*key].text().is_empty()
                    && other.at(&["status", "acceptedNames", key]).text() == names[*key].text()
            })
        })
        .map(|other| format!("the names are already in use by {:?}", other.at(&["metadata", "name"]).text()))
}

/// Deletes the objects of a definition that is going, then lets it go.
async fn finish(server: &Arc<Server>, definition: &Object, mut value: Value) -> Result<(), Status> {
    if !definition.facts().finalizers.iter().any(|name| name == FINALIZER) {
        return Ok(());
    }
    let plural = value.at(&["spec", "names", "plural"]).text();
    let resource = Resource::intern(&format!("{plural}.{}", value.at(&["spec", "group"]).text()));
    let objects: Vec<Object> = server.storage.mirror().view().list(resource, "").cloned().collect();
    for object in &objects {
        if object.facts().deleting.is_none() {
            let request = Request::delete(resource, object.namespace(), object.name());
            // One that is gone meanwhile is as good as deleted; others are tried again at the next change.
            let _ = local::call(server, &local::system(), request).await;
        }
    }
    if server.storage.mirror().view().count(resource) > 0 {
        return Ok(());
    }
    let finalizers = value.make(&["metadata", "finalizers"]).make_list();
    finalizers.retain(|finalizer| finalizer.text() != FINALIZER);
    local::call(server, &local::system(), Request::update(DEFINITIONS, value)).await.map(|_| ())
}
