//! What aggregated servers have in namespaces that are deleted: the server that leads asks them to delete it, and tells by
//! a condition of the namespace how far that is. The controller of namespaces lets none go before.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::apiregistration::api_service::REMOTE;
use api::core::namespace::{CONTENT, CONTENT_DELETED, CONTENT_REMAINS, CONTENT_UNKNOWN, KUBERNETES};
use cache::Part;
use client::{Api, Interest, Request};
use http::Method;
use meta::{Resource, Str, Value, json};

use super::documents::namespaced;
use super::{PATIENCE, Remote, Running, SERVICES, note, own_user, put_condition};
use crate::Server;

const NAMESPACES: Resource = Resource("namespaces");
const JSON: &str = "application/json";
/// Bytes of an answer about what was deleted or is left, and how many objects of a kind are deleted one by one at once.
const ANSWER_MAX_BYTES: usize = 8 << 20;
const ONE_BY_ONE_MAX: usize = 500;
/// Between two looks at a namespace that is not empty.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(15);

/// Empties namespaces that go, until the future is dropped.
pub(super) async fn keep(server: &Arc<Server>, api: &Arc<dyn Api>) {
    let mirror = server.storage.mirror().clone();
    let changed =
        mirror.listen(Interest::Parts(vec![(NAMESPACES, Part::All), (SERVICES, Part::Indexed(REMOTE, REMOTE.into()))]));
    let mut tended: BTreeMap<Str, Running> = BTreeMap::new();
    let mut registered: Vec<Str> = Vec::new();
    loop {
        let view = mirror.view();
        let now: Vec<Str> = view.by(SERVICES, REMOTE, REMOTE).map(|service| service.uid().into()).collect();
        if now != registered {
            // What was said of a namespace was said of others.
            tended.clear();
            registered = now;
        }
        let mut next = BTreeMap::new();
        for namespace in view.list(NAMESPACES, "").filter(|namespace| namespace.facts().deleting.is_some()) {
            let name = Str::from(namespace.name());
            let tending = tended
                .remove(&name)
                .unwrap_or_else(|| Running(tokio::spawn(tend(server.clone(), api.clone(), name.clone()))));
            next.insert(name, tending);
        }
        drop(view);
        tended = next;
        changed.changed().await;
    }
}

/// How far a namespace is: a word and a sentence.
type Found = (&'static str, String);

/// Empties one namespace.
async fn tend(server: Arc<Server>, api: Arc<dyn Api>, name: Str) {
    let mut pause = LOOK_AGAIN;
    loop {
        let found = empty(&server, &name).await;
        let Some(namespace) = server.one(NAMESPACES, "", &name).map(|namespace| namespace.value()) else { return };
        let finalizers = namespace.at(&["spec", "finalizers"]).items();
        if !finalizers.iter().any(|finalizer| finalizer.text() == KUBERNETES) {
            return;
        }
        let is_known = server.storage.mirror().view().by(SERVICES, REMOTE, REMOTE).next().is_some();
        let told = match missing(&namespace, &found, is_known, &server.now().rfc3339()) {
            Some(namespace) => {
                let request = Request::update(NAMESPACES, namespace).on("status");
                let request = request.with(|options| options.manager = "gantry".into());
                note(&format!("namespace {name}"), api.call(request).await)
            }
            None => true,
        };
        if told && found.0 == CONTENT_DELETED {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK_AGAIN_MAX);
    }
}

/// The namespace with the condition that it should have, unless it has it, or nobody asks for it.
fn missing(namespace: &Value, (reason, message): &Found, is_known: bool, now: &str) -> Option<Value> {
    let status = if *reason == CONTENT_DELETED { "True" } else { "False" };
    let conditions = namespace.at(&["status", "conditions"]).items();
    let told = conditions.iter().find(|one| one["type"].text() == CONTENT);
    let same = told.is_some_and(|told| {
        (told["status"].text(), told["reason"].text(), told["message"].text()) == (status, *reason, message.as_str())
    });
    if same || told.is_none() && !is_known {
        return None;
    }
    let condition = json!({
        "type": CONTENT, "status": status, "reason": (*reason), "message": (message.as_str()), "lastTransitionTime": now,
    });
    let mut namespace = namespace.clone();
    put_condition(&mut namespace, condition);
    Some(namespace)
}

/// Asks every aggregated server to delete what it has in a namespace, and what is left.
async fn empty(server: &Arc<Server>, namespace: &str) -> Found {
    let registry = server.storage.registry();
    let asked = registry.remotes.iter().map(|(_, remote)| empty_one(server, remote, namespace));
    let (mut unknown, mut left) = (Vec::new(), Vec::new());
    for (remote, outcome) in registry.remotes.iter().zip(futures_util::future::join_all(asked).await) {
        match outcome {
            Ok(found) => left.extend(found),
            Err(why) => unknown.push(format!("{}/{}: {why}", remote.1.group, remote.1.version)),
        }
    }
    match (unknown.is_empty(), left.is_empty()) {
        (false, _) => {
            let why = "unable to retrieve the complete list of server APIs";
            (
                CONTENT_UNKNOWN,
                format!("Discovery failed for some groups, {} failing: {why}: {}", unknown.len(), unknown.join(", ")),
            )
        }
        (true, false) => (CONTENT_REMAINS, left.join(", ")),
        (true, true) => (CONTENT_DELETED, "aggregated servers have nothing in the namespace".to_owned()),
    }
}

/// The same for one server; what is left of which resources.
async fn empty_one(server: &Arc<Server>, remote: &Arc<Remote>, namespace: &str) -> Result<Vec<String>, String> {
    let told = remote.told();
    if !remote.is_available || !told.is_current {
        return Err("stale GroupVersion discovery".to_owned());
    }
    let ask = async |method: Method, path: &str| {
        let got = remote.link.ask(server, (method, path, JSON), &own_user(), ANSWER_MAX_BYTES, PATIENCE).await?;
        match got.code {
            200..300 | 404 => Ok(Value::parse(&got.body).unwrap_or_default()),
            code => Err(format!("{path}: {code}")),
        }
    };
    let many = namespaced(&told, "deletecollection");
    let mut left = Vec::new();
    for plural in namespaced(&told, "list") {
        let path = format!("{}/namespaces/{namespace}/{plural}", remote.path());
        if many.contains(&plural) {
            ask(Method::DELETE, &path).await?;
        } else if namespaced(&told, "delete").contains(&plural) {
            let found = ask(Method::GET, &path).await?;
            for object in found["items"].items().iter().take(ONE_BY_ONE_MAX) {
                ask(Method::DELETE, &format!("{path}/{}", object.at(&["metadata", "name"]).text())).await?;
            }
        } else {
            continue;
        }
        let count = ask(Method::GET, &path).await?["items"].items().len();
        if count > 0 {
            left.push(format!("{plural}.{} has {count} resource instances", remote.group));
        }
    }
    Ok(left)
}
