//! [`Kind`]: everything the one pipeline asks of a kind: its names, and its behaviour behind the object-safe [`Rules`].

use std::any::Any;
use std::sync::Arc;

use base::Time;

use crate::field::{At, Errors};
use crate::object::{Object, Resource};
use crate::schema::{NodeId, Schema, TypeRef};
use crate::status::Status;
use crate::value::{Str, Value};

/// What discovery says of a kind in one version.
#[derive(Clone, Debug)]
pub struct Names {
    pub group: Str,
    pub version: Str,
    pub kind: Str,
    pub list_kind: Str,
    pub plural: Str,
    pub singular: Str,
    pub short: Vec<Str>,
    pub categories: Vec<Str>,
    pub namespaced: bool,
}

impl Verb {
    /// The word that discovery and RBAC use.
    pub fn word(self) -> &'static str {
        match self {
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Watch => "watch",
            Verb::Create => "create",
            Verb::Update => "update",
            Verb::Patch => "patch",
            Verb::Delete => "delete",
            Verb::DeleteCollection => "deletecollection",
        }
    }
}

impl Names {
    /// `apps/v1`, or `v1` in the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_string() } else { format!("{}/{}", self.group, self.version) }
    }
}

/// What discovery tells of a kind, without what it takes to serve its objects.
#[derive(Clone, Debug)]
pub struct Head {
    pub names: Names,
    pub resource: Resource,
    pub verbs: Vec<Verb>,
    pub subresources: Vec<Subresource>,
}

/// The verbs of discovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Verb {
    /// What a kind serves that has no reason to lack one, in the order of discovery.
    pub const ALL: [Verb; 8] = [
        Verb::Create,
        Verb::Delete,
        Verb::DeleteCollection,
        Verb::Get,
        Verb::List,
        Verb::Patch,
        Verb::Update,
        Verb::Watch,
    ];
}

/// One subresource of a kind, as discovery lists it.
#[derive(Clone, Debug)]
pub struct Subresource {
    /// `status`, `scale`, `binding`, `eviction`, `token`, `exec`, `log` …
    pub name: &'static str,
    /// Group, version and kind of its body as discovery shows them; group and version are `""` where they are the
    /// parent's, the kind is `""` where it is the parent's.
    pub body: (&'static str, &'static str, &'static str),
    pub verbs: &'static [Verb],
}

/// What is being done to an object while a kind prepares and checks it.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// The stored object before the change; `None` on create.
    pub old: Option<&'a Value>,
    /// On create an object of the kind that was created, and checked, before; what is shared with it was checked.
    pub sibling: Option<&'a Value>,
    /// `""` for the object itself, else `status`, `scale` …
    pub subresource: &'a str,
    pub now: Time,
    /// Who asks: `system:node:a`, `alice` …
    pub user: &'a str,
    pub groups: &'a [Str],
    /// What else is known of the caller: the user's uid, and further facts by key.
    pub uid: &'a str,
    pub extra: &'a [(Str, Vec<Str>)],
}

impl Change<'_> {
    pub fn is_create(&self) -> bool {
        self.old.is_none()
    }

    pub fn is_status(&self) -> bool {
        self.subresource == "status"
    }
}

/// A column of a kind's `Table`.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    pub name: Str,
    /// `string`, `integer`, `date`, `boolean`, `number`.
    pub of_type: Str,
    /// `name` for the first column, else mostly empty.
    pub format: Str,
    pub description: Str,
    /// 0 is shown always, 1 with `-o wide`.
    pub priority: i64,
}

/// The reads a kind may make while it prepares a change: other objects, at one revision.
pub trait Lookup: Sync {
    /// The object `name` in `namespace` (`""` for cluster-scoped ones).
    fn one(&self, resource: Resource, namespace: &str, name: &str) -> Option<Object>;
    /// All objects of a resource in `namespace`, or in all when it is `""`.
    fn list(&self, resource: Resource, namespace: &str) -> Vec<Object>;
    /// A setting of the cluster that kinds may need: `service-cidr`, `node-port-range`, `cluster-domain` …
    fn setting(&self, name: &str) -> Option<Str>;
}

/// Another object that must be written or deleted in the same commit (an address that a service takes, say).
#[derive(Clone, Debug)]
pub enum Companion {
    /// Fails the commit if it exists already.
    Create(Resource, Value),
    Delete {
        resource: Resource,
        namespace: Str,
        name: Str,
    },
}

/// Everything a kind sees and may add while it prepares an object for storing.
pub struct Prepare<'a> {
    pub change: Change<'a>,
    pub lookup: &'a dyn Lookup,
    /// Only a trial: take nothing for good.
    pub dry_run: bool,
    pub companions: &'a mut Vec<Companion>,
    /// A random stream for choices that are free (an address among many).
    pub rng: &'a mut base::Rng,
}

/// One kind in one version, as the pipeline serves it. Built-in kinds are rows of a table in `api`; a custom resource's
/// is made from its definition.
#[derive(Clone)]
pub struct Kind {
    pub names: Names,
    /// What it is stored under; several versions (and, for events, groups) may share one.
    pub resource: Resource,
    /// Verbs that the resource itself answers, in discovery's sense.
    pub verbs: Vec<Verb>,
    pub subresources: Vec<Subresource>,
    /// The schema and, in it, the type of the kind's objects.
    pub schema: Arc<Schema>,
    pub node: NodeId,
    pub rules: Arc<dyn Rules>,
}

impl Kind {
    /// The type of the kind's objects.
    pub fn of(&self) -> TypeRef<'_> {
        TypeRef { schema: &self.schema, node: self.node }
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|subresource| subresource.name == name)
    }

    pub fn serves(&self, verb: Verb) -> bool {
        self.verbs.contains(&verb)
    }
}

/// A program that says what objects of one version are in another, and the version that is stored (`group/version`).
#[derive(Clone, Copy, Debug)]
pub struct Conversion<'a> {
    /// `spec.conversion.webhook` of the definition.
    pub webhook: &'a Value,
    pub stored: &'a str,
}

/// How a kind behaves. One implementation per kind, one file each. All methods are pure; every one has the answer that
/// fits most kinds.
pub trait Rules: Send + Sync {
    /// What is wrong with a name, or with the prefix of a generated one; most kinds take DNS subdomains.
    fn check_name(&self, name: &str) -> Vec<String> {
        crate::names::dns_subdomain(name)
    }

    /// Fills what the user left out. Runs on every decode of outside bytes, and after every patch.
    fn defaults(&self, _object: &mut Value) {}

    /// Before storing: resets what the caller may not set, sets what the system owns (status on create, generation is
    /// the pipeline's), allocates.
    fn prepare(&self, _cx: &mut Prepare<'_>, _object: &mut Value) -> Result<(), Status> {
        Ok(())
    }

    /// All that is wrong with the object, or with the change from `change.old` to it.
    fn check(&self, _change: &Change<'_>, _at: &At<'_>, _errors: &mut Errors) {}

    /// Warnings for the `Warning` headers.
    fn warnings(&self, _change: &Change<'_>, _object: &Value) -> Vec<String> {
        Vec::new()
    }

    /// What must go with the object when it is deleted for good.
    fn released(&self, _object: &Value) -> Vec<Companion> {
        Vec::new()
    }

    /// Seconds between the request and the removal that a graceful deletion takes; `None` where deletion is at once.
    fn grace_seconds(&self, _object: &Value, _asked: Option<i64>) -> Option<i64> {
        None
    }

    /// Called when an object is marked as being deleted (a namespace's phase).
    fn marked_deleted(&self, _object: &mut Value) {}

    /// Whether something in the object itself holds it back from going, as finalizers do (`spec.finalizers` of a
    /// namespace).
    fn holds(&self, _object: &Value) -> bool {
        false
    }

    /// Whether a finished deletion is answered with the object in place of a `Status`.
    fn answers_deletion_with_object(&self) -> bool {
        false
    }

    /// Whether dependents are left alone when the caller does not say.
    fn orphans_by_default(&self) -> bool {
        false
    }

    /// Where a scale stands: paths of the replicas, of their count, and of the selector; `None` where they are
    /// `spec.replicas`, `status.replicas` and `spec.selector`.
    fn scale_paths(&self) -> Option<(&str, &str, Option<&str>)> {
        None
    }

    /// The `openAPIV3Schema` of a custom resource.
    fn openapi(&self) -> Option<&Value> {
        None
    }

    /// Seconds after which an object goes by itself (events).
    fn ttl_seconds(&self) -> Option<u64> {
        None
    }

    /// The columns of its table after the name column; the last one is mostly the age.
    fn columns(&self) -> &[Column] {
        &[]
    }

    /// One cell per column.
    fn cells(&self, _object: &Value, _now: Time) -> Vec<Value> {
        Vec::new()
    }

    /// The value of a selectable field besides `metadata.name` and `metadata.namespace`; `None` when the field is not
    /// selectable.
    fn selectable(&self, _object: &Value, _field: &str) -> Option<Str> {
        None
    }

    /// The same for an object whose facts tell it without decoding; `None` when they do not.
    fn projected(&self, _object: &Object, _field: &str) -> Option<Str> {
        None
    }

    /// The kind's own projection, kept beside the bytes.
    fn facts(&self, _object: &Value) -> Option<Arc<dyn Any + Send + Sync>> {
        None
    }

    /// From this version to the stored one. Most kinds have one version and change nothing.
    fn to_stored(&self, _object: &mut Value) {}

    /// From the stored version to this one.
    fn present(&self, _object: &mut Value) {}

    /// Who says what an object is in another version, where versions differ in more than their name.
    fn conversion(&self) -> Option<Conversion<'_>> {
        None
    }

    /// Whether what is stored in this version is what is shown. A kind whose schema has changed shows what it stores
    /// with the fields and defaults that it has now ([`Rules::present`]).
    fn shows_as_stored(&self) -> bool {
        true
    }

    /// Whether a change from `old` to `new` raises `metadata.generation`: any difference outside metadata and status.
    fn raises_generation(&self, old: &Value, new: &Value) -> bool {
        let other = |value: &Value| -> Vec<(Str, Value)> {
            let outside = |(key, _): &(&str, &Value)| !matches!(*key, "metadata" | "status" | "apiVersion" | "kind");
            value.entries().iter().filter(outside).map(|(key, value)| (key.into(), value.clone())).collect()
        };
        other(old) != other(new)
    }

    /// Whether objects of this kind have a generation at all.
    fn has_generation(&self) -> bool {
        false
    }

    /// The status that every new object begins with, whatever its maker wrote; `None` where that counts.
    fn first_status(&self) -> Option<Value> {
        None
    }

    /// The generation of a new object.
    fn first_generation(&self) -> Option<i64> {
        self.has_generation().then_some(1)
    }
}
