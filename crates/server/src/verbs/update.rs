//! Changes of existing objects: update, and the common path that patches and subresources share.

use base::{Revision, Time};
use meta::kind::{Change, Companion, Prepare};
use meta::{At, Errors, Object, Resource, Status, Str, Value};

use super::{Call, Outcome, metadata};
use crate::Server;
use crate::admission::{self, Mutated, Review, Written};
use crate::conversion;
use crate::ownership;
use crate::storage::{Write, WriteError};

/// Tries of a change that names no revision, when others change the object at the same time.
const TRIES: usize = 64;

/// Another object's change in the same commit.
#[derive(Clone, Debug)]
pub enum CompanionWrite {
    Create(Resource, Value),
    Delete {
        resource: Resource,
        namespace: Str,
        name: Str,
    },
    /// Replaces an object that must still be at this revision (a quota's use).
    Replace {
        resource: Resource,
        object: Value,
        expect: Revision,
    },
    /// Takes something that is no object, on the knowledge of what was claimed before.
    Claim {
        key: String,
        expect: Revision,
    },
}

impl CompanionWrite {
    pub fn of(companion: Companion) -> CompanionWrite {
        match companion {
            Companion::Create(resource, value) => CompanionWrite::Create(resource, value),
            Companion::Delete { resource, namespace, name } => CompanionWrite::Delete { resource, namespace, name },
        }
    }

    pub fn write(self, server: &Server, now: Time) -> Result<Write, Status> {
        Ok(match self {
            CompanionWrite::Create(resource, mut object) => {
                let meta = object.make(&["metadata"]).make_map();
                meta.insert("uid", crate::uid::new());
                meta.insert("creationTimestamp", now.rfc3339());
                Write::Put { resource, object, expect: Revision::ZERO, lease: None }
            }
            CompanionWrite::Delete { resource, namespace, name } => {
                let found = server.storage.mirror().one(resource, &namespace, &name);
                let expect = found.map_or(Revision::ZERO, |object| object.revision());
                Write::Delete { resource, namespace, name, expect }
            }
            CompanionWrite::Replace { resource, object, expect } => {
                Write::Put { resource, object, expect, lease: None }
            }
            CompanionWrite::Claim { key, expect } => Write::Claim { key, expect },
        })
    }
}

/// How a change makes the new object of the old one. Called anew when another writer came first.
pub trait Edit: Sync {
    /// `old` is in the version asked for. The result is complete and has defaults.
    fn apply(&self, server: &Server, call: &Call<'_>, old: &Value) -> Result<Edited, Status>;

    /// Whether a lost race is the caller's to solve: it named the revision it saw.
    fn is_exact(&self) -> bool {
        false
    }
}

/// What an edit made.
pub struct Edited {
    pub value: Value,
    pub warnings: Vec<String>,
    /// Ownership was computed by the edit itself (apply).
    pub owned: bool,
}

/// Replaces the object by the body.
pub struct Replace {
    pub value: Value,
    pub warnings: Vec<String>,
}

/// The object that the call names as it is now, with the name of the version asked for, so that a body that replaces it is
/// read with it at hand; null when there is none.
pub fn standing(server: &Server, call: &Call<'_>) -> Value {
    let found = server.storage.mirror().one(call.kind.resource, call.namespace(), &call.auth.info.name);
    found.map_or(Value::Null, |object| {
        let mut value = object.value();
        call.kind.rules.present(&mut value);
        value
    })
}

impl Edit for Replace {
    fn apply(&self, _: &Server, _: &Call<'_>, _: &Value) -> Result<Edited, Status> {
        Ok(Edited { value: self.value.clone(), warnings: self.warnings.clone(), owned: false })
    }

    fn is_exact(&self) -> bool {
        !self.value.at(&["metadata", "resourceVersion"]).text().is_empty()
    }
}

/// Changes the object that the call names. `create` makes it where it may be missing (apply).
pub async fn change(server: &Server, call: &Call<'_>, edit: &dyn Edit) -> Result<Outcome, Status> {
    let name = &call.auth.info.name;
    for _ in 0..TRIES {
        let Some(current) = server.storage.mirror().one(call.kind.resource, call.namespace(), name) else {
            return Err(call.not_found(name));
        };
        match attempt(server, call, edit, &current).await? {
            Some(outcome) => return Ok(outcome),
            None if edit.is_exact() => return Err(call.conflict(name)),
            None => {}
        }
    }
    Err(call.conflict(name))
}

/// One try; `None` when another writer came first.
async fn attempt(
    server: &Server,
    call: &Call<'_>,
    edit: &dyn Edit,
    current: &Object,
) -> Result<Option<Outcome>, Status> {
    let kind = call.kind;
    let mut old = current.value();
    conversion::present(server, kind, &mut old).await?;
    let Edited { mut value, mut warnings, owned } = edit.apply(server, call, &old)?;
    check_same(call, &value, &old, current)?;
    metadata::keep_owned(&mut value, &old);
    let subresource = call.auth.info.subresource.as_str();
    keep_other_part(call, subresource, &mut value, &old);

    if !owned {
        ownership::track(call, &old, &mut value);
    }
    let view = server.storage.mirror().view();
    let written = Written { server, call, old: Some(&old) };
    let Mutated { view, object: mut value, mut companions, warnings: more } = written.mutate(view, value).await?;
    warnings.extend(more);
    let change = Change {
        old: Some(&old),
        sibling: None,
        subresource,
        now: call.now,
        user: &call.auth.user.name,
        groups: &call.auth.user.groups,
        uid: &call.auth.user.uid,
        extra: &call.auth.user.extra,
    };
    let lookup = server.lookup(&view);
    let mut rng = base::Rng::new(crate::uid::seed());
    let mut extra = Vec::new();
    let mut prepare =
        Prepare { change, lookup: &lookup, dry_run: call.options.dry_run, companions: &mut extra, rng: &mut rng };
    kind.rules.prepare(&mut prepare, &mut value)?;
    companions.extend(extra.into_iter().map(CompanionWrite::of));
    if kind.rules.has_generation() && subresource != "status" && kind.rules.raises_generation(&old, &value) {
        let generation = old.at(&["metadata", "generation"]).as_int().unwrap_or(0);
        value.set(&["metadata", "generation"], generation + 1);
    }

    let mut errors = Errors::default();
    let at = At::root(&value);
    metadata::check(kind, &at, Some(&old), &mut errors);
    kind.rules.check(&change, &at, &mut errors);
    if !errors.is_empty() {
        return Err(Status::invalid(call.group(), &kind.names.kind, current.name(), &errors));
    }
    warnings.extend(kind.rules.warnings(&change, &value));
    let mut review = Review::new(server, call, &view, Some(&old), value);
    review.companions = companions;
    admission::validate(&mut review)?;
    let Review { object: mut value, companions, warnings: more, .. } = review;
    warnings.extend(more);
    // Whoever holds a view while it waits makes the next commit copy what it changes.
    warnings.extend(written.ask(view, &value).await?);
    value.set(&["metadata", "resourceVersion"], current.revision().to_string());

    ownership::settle(&old, &mut value);
    let done = Outcome { code: 200, value, stored: None, warnings };
    if done.value == old && companions.is_empty() && is_stored_so(kind, &old, current) {
        let stored = kind.rules.conversion().is_none().then(|| current.clone());
        return Ok(Some(Outcome { stored, ..done }));
    }
    if call.options.dry_run {
        return Ok(Some(done));
    }
    commit(server, call, current, done, companions).await
}

/// Whether what is presented stands in the store in the form in which it would be written today.
fn is_stored_so(kind: &meta::Kind, presented: &Value, current: &Object) -> bool {
    let found = current.value();
    // Only kinds with several versions, or with a schema of many days, have forms of yesterday.
    if kind.rules.shows_as_stored() && found["apiVersion"] == presented["apiVersion"] {
        return true;
    }
    let mut stored = presented.clone();
    kind.rules.to_stored(&mut stored);
    stored["apiVersion"] == found["apiVersion"] && (kind.rules.shows_as_stored() || stored == found)
}

async fn commit(
    server: &Server,
    call: &Call<'_>,
    current: &Object,
    mut done: Outcome,
    companions: Vec<CompanionWrite>,
) -> Result<Option<Outcome>, Status> {
    let kind = call.kind;
    let mut stored = done.value.clone();
    conversion::to_stored(server, kind, &mut stored).await?;
    let resource = kind.resource;
    let (namespace, name) = (current.facts().namespace.clone(), current.facts().name.clone());
    let expect = current.revision();
    let meta = &stored["metadata"];
    // The last finalizer is gone from an object that waits for its deletion: now it goes.
    let finished = meta.get("deletionTimestamp").is_some()
        && meta["finalizers"].items().is_empty()
        && meta["deletionGracePeriodSeconds"].as_int().unwrap_or(0) == 0
        && !kind.rules.holds(&stored);
    let mut writes = Vec::with_capacity(1 + companions.len());
    if finished {
        writes.push(Write::Delete { resource, namespace: namespace.clone(), name: name.clone(), expect });
        for companion in kind.rules.released(&stored) {
            writes.push(CompanionWrite::of(companion).write(server, call.now)?);
        }
    } else {
        let lease = match kind.rules.ttl_seconds() {
            Some(seconds) => Some(server.ttl_lease(seconds).await?),
            None => None,
        };
        writes.push(Write::Put { resource, object: stored, expect, lease });
    }
    for companion in companions {
        writes.push(companion.write(server, call.now)?);
    }
    match server.storage.commit(writes).await {
        Ok(revision) => {
            done.value.set(&["metadata", "resourceVersion"], revision.to_string());
            if kind.rules.conversion().is_none() {
                done.stored = server.storage.mirror().one(resource, &namespace, &name);
            }
            Ok(Some(done))
        }
        Err(WriteError::Stale { .. }) => Ok(None),
        Err(WriteError::Failed(status)) => Err(status),
    }
}

/// The body must name the object that the URL names, and the state it saw must still be there.
fn check_same(call: &Call<'_>, value: &Value, old: &Value, current: &Object) -> Result<(), Status> {
    let meta = &value["metadata"];
    let name = meta["name"].text();
    if name != call.auth.info.name {
        if name.is_empty() {
            return Err(Status::bad_request("name must be provided"));
        }
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.auth.info.name
        )));
    }
    let namespace = meta["namespace"].text();
    if !namespace.is_empty() && namespace != call.namespace() {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    let version = meta["resourceVersion"].text();
    if !version.is_empty() && version != current.revision().to_string() {
        if version.parse::<u64>().is_err() {
            let mut errors = Errors::default();
            let path = meta::Path::ROOT;
            let path = path.field("metadata");
            errors.invalid_value(&path.field("resourceVersion"), version, "must be a number");
            return Err(Status::invalid(call.group(), &call.kind.names.kind, name, &errors));
        }
        return Err(call.conflict(name));
    }
    let uid = meta["uid"].text();
    if !uid.is_empty() && uid != old.at(&["metadata", "uid"]).text() {
        return Err(Status::conflict(
            call.group(),
            call.plural(),
            name,
            format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                old.at(&["metadata", "uid"]).text()
            ),
        ));
    }
    Ok(())
}

/// Writes of the object leave its status alone, writes of the status leave the rest alone.
fn keep_other_part(call: &Call<'_>, subresource: &str, value: &mut Value, old: &Value) {
    let keep = |value: &mut Value, key: &str| match old.get(key) {
        Some(part) => {
            value.make_map().insert(key, part.clone());
        }
        None => {
            value.make_map().remove(key);
        }
    };
    match subresource {
        "" if call.kind.subresource("status").is_some() => keep(value, "status"),
        "status" => {
            let keys: Vec<Str> = value.entries().keys().chain(old.entries().keys()).map(Into::into).collect();
            for key in keys {
                if !matches!(key.as_str(), "metadata" | "status" | "apiVersion" | "kind") {
                    keep(value, &key);
                }
            }
            let meta = value.make(&["metadata"]).make_map();
            match old.at(&["metadata", "ownerReferences"]) {
                Value::Null => meta.remove("ownerReferences"),
                owners => meta.insert("ownerReferences", owners.clone()),
            };
        }
        _ => {}
    }
}
