//! The only door to the API: one request type, one trait, and the mirror that keeps a local cache current.
//!
//! Controllers, the scheduler and the nodes call [`Api`]; whether the server is in this process, behind HTTPS, or
//! behind a faulty simulated link is not theirs to know. The in-process door is implemented by the server;
//! [`HttpApi`] is the one over HTTPS, and [`follow`] keeps a [`Mirror`] current through it.
//!
//! Not here: anything of the server's inside; any decision.

mod follow;
mod http;
mod mirror;

use std::future::Future;
use std::pin::Pin;

use base::Revision;
use meta::{Object, Resource, Status, Str, Value};

pub use follow::{OwnFacts, Wish, follow, follow_one};
pub use http::{HttpApi, Identity, Path, Paths};
pub use mirror::{Interest, Listener, Mirror};

/// What comes back when the future is done.
pub type Reply<'a, T> = Pin<Box<dyn Future<Output = Result<T, Status>> + Send + 'a>>;

/// Reads and writes objects. Each call passes authorization and admission as the caller's identity.
pub trait Api: Send + Sync {
    fn call(&self, request: Request) -> Reply<'_, Answer>;
}

/// What a call brought.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The object as it is after the call; for a deletion, as it was last.
    pub object: Object,
    /// A view at this revision shows what the call did.
    pub revision: Revision,
}

/// One call.
#[derive(Clone, Debug)]
pub struct Request {
    pub action: Action,
    pub resource: Resource,
    /// `""` for cluster-scoped resources.
    pub namespace: Str,
    /// `""` only for a create, where the body has the name or `generateName`.
    pub name: Str,
    /// `""` for the object itself, else `status`, `binding`, `eviction`, `token` …
    pub subresource: Str,
    pub options: Options,
}

#[derive(Clone, Debug)]
pub enum Action {
    Get,
    /// Reads the object as a list of all objects with this name shows it, for callers that may list but not get. The
    /// answer's revision is that of the list.
    Find,
    Create(Value),
    /// With `metadata.resourceVersion` in the body, only if it is still the stored one.
    Update(Value),
    Patch(PatchType, Value),
    Delete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
    Apply,
}

/// How dependents fare when their owner is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

#[derive(Clone, Debug, Default)]
pub struct Options {
    pub dry_run: bool,
    /// Who owns the fields that are written.
    pub manager: Str,
    /// Apply: take over fields that others own.
    pub force: bool,
    /// Only if the object has this uid.
    pub uid: Option<Str>,
    /// Only if the object is at this revision.
    pub revision: Option<Revision>,
    pub propagation: Option<Propagation>,
    pub grace_seconds: Option<i64>,
    /// The view that the call was decided on; zero when it rests on none. No server needs it: it is for whoever judges
    /// decisions.
    pub decided_on: Revision,
}

impl Request {
    fn new(action: Action, resource: Resource, namespace: &str, name: &str) -> Request {
        let (namespace, name) = (namespace.into(), name.into());
        Request { action, resource, namespace, name, subresource: Str::default(), options: Options::default() }
    }

    pub fn get(resource: Resource, namespace: &str, name: &str) -> Request {
        Request::new(Action::Get, resource, namespace, name)
    }

    pub fn find(resource: Resource, namespace: &str, name: &str) -> Request {
        Request::new(Action::Find, resource, namespace, name)
    }

    /// Creates `object`; its namespace is read from its metadata.
    pub fn create(resource: Resource, object: Value) -> Request {
        let namespace = Str::from(object.at(&["metadata", "namespace"]).text());
        Request::new(Action::Create(object), resource, &namespace, "")
    }

    /// Replaces the object that `object`'s metadata names.
    pub fn update(resource: Resource, object: Value) -> Request {
        let meta = &object["metadata"];
        let (namespace, name) = (Str::from(meta["namespace"].text()), Str::from(meta["name"].text()));
        Request::new(Action::Update(object), resource, &namespace, &name)
    }

    /// Applies the object that `object`'s metadata names, as `manager`, who takes what others own.
    pub fn apply(resource: Resource, object: Value, manager: &str) -> Request {
        let meta = &object["metadata"];
        let (namespace, name) = (Str::from(meta["namespace"].text()), Str::from(meta["name"].text()));
        let request = Request::patch(resource, &namespace, &name, PatchType::Apply, object);
        request.with(|options| (options.manager, options.force) = (manager.into(), true))
    }

    pub fn patch(resource: Resource, namespace: &str, name: &str, kind: PatchType, patch: Value) -> Request {
        Request::new(Action::Patch(kind, patch), resource, namespace, name)
    }

    pub fn delete(resource: Resource, namespace: &str, name: &str) -> Request {
        Request::new(Action::Delete, resource, namespace, name)
    }

    /// The same call on a subresource.
    pub fn on(mut self, subresource: &str) -> Request {
        self.subresource = subresource.into();
        self
    }

    pub fn with(mut self, change: impl FnOnce(&mut Options)) -> Request {
        change(&mut self.options);
        self
    }
}
