//! Objects of every kind through the real pipeline, in process: store, admission, checks, patches, ownership.
//!
//! An input makes an object of some kind; what the server says is wrong with it is taken out until it is accepted or
//! nothing is left to take. What was accepted must come back as it was answered, must not change when it is written as it
//! was read, must be applied twice as once, and one applier must not lose fields to another who names other fields. No
//! answer, to anything, is a 5xx.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use base::{Rng, hash64};
use client::{Answer, PatchType, Request};
use meta::{Kind, Object, Status, Str, Value, Verb, json};
use server::identity::{MASTERS, User};
use server::{Keys, Options, Server, SystemClock};
use store::{Embedded, SimDisk};
use tokio::runtime::Runtime;

use crate::objects;

/// How often something is taken out of an object that is refused.
const REPAIRS_MAX: u32 = 12;
/// Objects are forgotten after so many, so that the store stays small.
const LIFE: u64 = 2_000;

/// Kinds that act on others instead of being kept, or without which nothing else can be written.
const LEFT_OUT: &[&str] = &["Namespace", "CustomResourceDefinition", "APIService"];

struct Arena {
    server: Arc<Server>,
    tokio: Runtime,
    kinds: Vec<Arc<Kind>>,
    thrown: u64,
}

static ARENA: LazyLock<Mutex<Option<Arena>>> = LazyLock::new(|| Mutex::new(None));

/// A server of its own in memory, and what runs it.
pub fn server() -> (Arc<Server>, Runtime) {
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let tokio = tokio.expect("this machine has threads");
    let options = Options::passing();
    let server = tokio.block_on(async {
        let (backend, _) = Embedded::open_on(Arc::new(SimDisk::new()), store::Options::default())
            .expect("an empty disk holds a sound store");
        let keys = Keys::passing().expect("this machine has randomness");
        let server = Server::with(options, keys, Arc::new(backend), Arc::new(SystemClock)).await;
        let server = server.expect("an empty store is loaded");
        tokio::spawn(server::definitions::follow(server.clone()));
        server.begin().await.expect("an empty cluster begins");
        server
    });
    (server, tokio)
}

impl Arena {
    fn new() -> Arena {
        let (server, tokio) = server();
        let wanted = |kind: &Kind| {
            [Verb::Create, Verb::Get, Verb::Update, Verb::Patch, Verb::Delete].iter().all(|verb| kind.serves(*verb))
                && !LEFT_OUT.contains(&kind.names.kind.as_str())
        };
        let registry = server.storage.registry();
        let all = api::kinds::kinds().into_iter().filter(wanted).filter_map(|kind| registry.stored(kind.resource));
        let kinds = all.cloned().collect();
        Arena { server, tokio, kinds, thrown: 0 }
    }

    fn call(&self, request: Request) -> Result<Answer, Status> {
        let what = format!("{:?} {} {}", request.action, request.resource, request.name);
        let user = User::new("fuzzer", &[MASTERS]);
        let answer = self.tokio.block_on(server::local::call(&self.server, &user, request));
        if let Err(status) = &answer {
            assert!(status.code() < 500, "{} {}: {what}", status.code(), status.message());
        }
        answer
    }
}

/// Throws one object.
pub fn throw(input: &[u8]) {
    let mut held = ARENA.lock().unwrap_or_else(PoisonError::into_inner);
    if held.as_ref().is_some_and(|arena| arena.thrown >= LIFE) {
        *held = None;
    }
    let arena = held.get_or_insert_with(Arena::new);
    arena.thrown += 1;
    let mut rng = Rng::new(hash64(input));
    let kind = arena.kinds[usize::try_from(rng.below(arena.kinds.len() as u64)).unwrap_or(0)].clone();
    let mut value = objects::make(&kind.schema, kind.node, input);
    let name = format!("f{}", arena.thrown);
    value.take(&["metadata"]);
    value.set(&["metadata", "name"], name.as_str());
    let namespace = if kind.names.namespaced { "default" } else { "" };
    if kind.names.namespaced {
        value.set(&["metadata", "namespace"], namespace);
    }
    let place = Place { kind: &kind, namespace, name: &name };
    if let Some(first) = place.create(arena, value) {
        place.keeps(arena, &first);
        place.applies(arena);
        // Finalizers may hold it back; what matters is that no answer is a 5xx.
        let _ = arena.call(Request::delete(kind.resource, namespace, &name));
    }
}

struct Place<'a> {
    kind: &'a Kind,
    namespace: &'a str,
    name: &'a str,
}

impl Place<'_> {
    fn get(&self, arena: &Arena) -> Option<Object> {
        arena.call(Request::get(self.kind.resource, self.namespace, self.name)).ok().map(|answer| answer.object)
    }

    /// Creates the object, without what the server refuses of it.
    fn create(&self, arena: &Arena, mut value: Value) -> Option<Object> {
        for _ in 0..REPAIRS_MAX {
            let status = match arena.call(Request::create(self.kind.resource, value.clone())) {
                Ok(answer) => return Some(answer.object),
                Err(status) => status.to_value(),
            };
            let causes = status.at(&["details", "causes"]).items().to_vec();
            let removed = causes.iter().filter(|cause| remove(&mut value, cause["field"].text())).count();
            if removed == 0 {
                return None;
            }
        }
        None
    }

    /// What was answered is what is read, and writing what was read changes nothing.
    fn keeps(&self, arena: &Arena, first: &Object) {
        let Some(read) = self.get(arena) else { panic!("{} is not there after it was made", self.told()) };
        same(&self.told(), "read as it was answered", first, &read);
        let Ok(again) = arena.call(Request::update(self.kind.resource, read.value())) else { return };
        same(&self.told(), "written as it was read", &read, &again.object);
    }

    /// One who applies the same twice changes nothing; another who applies other fields takes none away.
    fn applies(&self, arena: &Arena) {
        let apply = |manager: &str, label: &str| {
            let names = &self.kind.names;
            let mut body = json!({
                "apiVersion": (names.api_version()), "kind": (names.kind.as_str()),
                "metadata": {"name": (self.name), "labels": {}},
            });
            body.set(&["metadata", "labels", label], "1");
            if names.namespaced {
                body.set(&["metadata", "namespace"], self.namespace);
            }
            let request = Request::patch(self.kind.resource, self.namespace, self.name, PatchType::Apply, body);
            arena.call(request.with(|options| options.manager = manager.into()))
        };
        let Ok(once) = apply("one", "a") else { return };
        let Ok(twice) = apply("one", "a") else { panic!("{} is applied once, and refused twice", self.told()) };
        same(&self.told(), "applied twice as once", &once.object, &twice.object);
        if apply("two", "b").is_err() {
            return;
        }
        let Some(after) = self.get(arena) else { panic!("{} is gone after it was applied", self.told()) };
        let owned = |object: &Object| {
            let value = object.value();
            let entries = value.at(&["metadata", "managedFields"]).items();
            entries.iter().find(|entry| entry["manager"].text() == "one").map(|entry| entry["fieldsV1"].to_json())
        };
        assert!(owned(&once.object).is_some(), "{}: who applies owns what he applied", self.told());
        assert_eq!(owned(&once.object), owned(&after), "{}: another applier takes no fields away", self.told());
        let labels = after.value().at(&["metadata", "labels"]).clone();
        assert!(labels["a"].text() == "1" && labels["b"].text() == "1", "{}: both labels stay", self.told());
    }

    fn told(&self) -> String {
        format!("{} {}/{}", self.kind.names.kind, self.namespace, self.name)
    }
}

fn same(what: &str, how: &str, one: &Object, two: &Object) {
    let (one, two) = (one.text(), two.text());
    assert_eq!(String::from_utf8_lossy(&one), String::from_utf8_lossy(&two), "{what} must be {how}");
}

/// The steps of a field's path: `spec.a[0].b[key]`.
fn steps(field: &str) -> Vec<Str> {
    let mut steps = Vec::new();
    let mut rest = field;
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let end = inner.find(']').unwrap_or(inner.len());
            steps.push(inner[..end].into());
            rest = inner.get(end + 1..).unwrap_or_default();
        } else {
            rest = rest.strip_prefix('.').unwrap_or(rest);
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            steps.push(rest[..end].into());
            rest = &rest[end..];
            if end == 0 && !rest.starts_with('[') {
                break;
            }
        }
    }
    steps
}

/// Takes a field out, or the nearest that is there of what it stands in; never the object's name.
fn remove(value: &mut Value, field: &str) -> bool {
    let mut steps = steps(field);
    if steps.first().is_none_or(|first| first == "metadata") {
        return false;
    }
    while !steps.is_empty() {
        if take(value, &steps) {
            return true;
        }
        steps.pop();
    }
    false
}

fn take(value: &mut Value, steps: &[Str]) -> bool {
    let [first, rest @ ..] = steps else { return false };
    let number = first.parse::<usize>().ok();
    match value {
        Value::List(items) if rest.is_empty() => {
            number.filter(|number| *number < items.len()).map(|number| items.remove(number)).is_some()
        }
        Value::List(items) => {
            number.and_then(|number| items.make_mut().get_mut(number)).is_some_and(|item| take(item, rest))
        }
        Value::Map(map) if rest.is_empty() => map.remove(first).is_some(),
        Value::Map(map) => map.get_mut(first).is_some_and(|value| take(value, rest)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_taken_out() {
        let mut value = json!({"spec": {"a": [{"b": {"x/y": 1, "c": 2}}, 3]}, "metadata": {"name": "a"}});
        assert!(remove(&mut value, "spec.a[0].b[x/y]"));
        assert!(remove(&mut value, "spec.a[1]"));
        assert!(remove(&mut value, "spec.a[0].missing.field"), "what it stands in goes");
        assert!(!remove(&mut value, "metadata.name"));
        assert_eq!(value.to_json(), br#"{"metadata":{"name":"a"},"spec":{"a":[]}}"#);
    }

    #[test]
    fn objects_of_all_kinds_go_through() {
        (0..100u64).for_each(|number| throw(&number.to_le_bytes()));
    }
}
