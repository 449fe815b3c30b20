//! What a controller wants done, as values with their preconditions.

use base::Revision;
use meta::{Resource, Str, Value};

/// What a patch does with lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lists {
    /// It replaces them: a JSON merge patch. Where others write the same list, it names the revision that it rests on.
    Replaced,
    /// It merges them item by item, by their keys: a strategic merge patch. What others wrote beside stays.
    Merged,
}

/// One write. Whoever performs it stamps it with the leader's epoch.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// The object's namespace and name (or `generateName`) stand in its metadata. "Already exists" counts as done.
    Create { resource: Resource, object: Value },
    /// Replaces the object; `metadata.resourceVersion` in it is the precondition.
    Update { resource: Resource, object: Value },
    /// Replaces a subresource (`status`, `scale`, `finalize` …); the same precondition.
    UpdateSub { resource: Resource, subresource: &'static str, object: Value },
    /// A patch, on the object or a subresource (`""`: the object), for changes that need no precondition but the uid.
    Patch {
        resource: Resource,
        subresource: &'static str,
        namespace: Str,
        name: Str,
        uid: Str,
        patch: Value,
        lists: Lists,
    },
    /// Posts `body` to a subresource (`eviction`, `binding`).
    Post { resource: Resource, subresource: &'static str, namespace: Str, name: Str, body: Value },
    /// Deletes the object with this uid (and, when given, at this revision). "Not found" counts as done.
    Delete {
        resource: Resource,
        namespace: Str,
        name: Str,
        uid: Str,
        revision: Option<Revision>,
        /// `Background`, `Foreground`, `Orphan`, or `""` for the kind's default.
        propagation: &'static str,
        grace_seconds: Option<i64>,
    },
    /// Tells the user something. Never waited for; repeated records are counted, not stored again. Directly after a
    /// write it tells of that write: it is stored once the write went well. When the write was refused, a record
    /// `SuccessfulX` becomes a warning `FailedX`, and any other is dropped; when others had done it before, a record
    /// `SuccessfulX` is dropped.
    Record(EventRecord),
}

/// An event about an object, before it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct EventRecord {
    /// `apiVersion`, `kind`, `namespace`, `name`, `uid`, `resourceVersion`, `fieldPath` of what it is about.
    pub about: Value,
    /// A second object, for `events.k8s.io` (`related`); null when there is none.
    pub related: Value,
    /// `Normal` or `Warning`.
    pub of_type: &'static str,
    pub reason: Str,
    /// What was being done (`Scheduling`, `Binding`); `""` where Kubernetes leaves it so.
    pub action: Str,
    pub message: String,
    /// `default-scheduler`, `replicaset-controller`, `kubelet`.
    pub reporter: Str,
    /// The node, for events of an agent.
    pub host: Str,
}
