//! Deletion: at once, gracefully, or after finalizers; of one object or of all that a selector picks.

use client::Propagation;
use meta::{Object, Status, Value, json};

use super::options::DeleteOptions;
use super::update::CompanionWrite;
use super::{Call, Outcome};
use crate::Server;
use crate::admission::{self, Review, Written};
use crate::conversion;
use crate::storage::{Write, WriteError};

const TRIES: usize = 64;
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// What became of the object.
pub enum Deleted {
    /// It is gone; this is how it was last.
    Gone(Value),
    /// It waits for its grace period or its finalizers.
    Waits(Value),
}

/// Deletes the object that the call names. The answer is the object where it still waits, or for kinds whose deletion
/// answers with it; a `Status` with success otherwise.
pub async fn delete(server: &Server, call: &Call<'_>, options: &DeleteOptions) -> Result<Outcome, Status> {
    let name = &call.auth.info.name;
    let (value, waits) = match delete_one(server, call, name, options).await? {
        Deleted::Gone(value) => (value, false),
        Deleted::Waits(value) => (value, true),
    };
    let answer = if waits || call.kind.rules.answers_deletion_with_object() {
        value
    } else {
        json!({
            "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success",
            "details": {
                "name": name, "kind": (call.plural()), "uid": (value.at(&["metadata", "uid"]).text()),
            },
        })
    };
    let mut answer = answer;
    if answer["kind"].text() == "Status" && !call.group().is_empty() {
        answer.set(&["details", "group"], call.group());
    }
    let code = 200;
    Ok(Outcome { code, value: answer, stored: None, warnings: Vec::new() })
}

/// Deletes one object of the call's kind and namespace.
pub async fn delete_one(
    server: &Server,
    call: &Call<'_>,
    name: &str,
    options: &DeleteOptions,
) -> Result<Deleted, Status> {
    for _ in 0..TRIES {
        let Some(current) = server.storage.mirror().one(call.kind.resource, call.namespace(), name) else {
            return Err(call.not_found(name));
        };
        check_preconditions(call, &current, options)?;
        if let Some(deleted) = attempt(server, call, &current, options).await? {
            return Ok(deleted);
        }
    }
    Err(call.conflict(name))
}

fn check_preconditions(call: &Call<'_>, current: &Object, options: &DeleteOptions) -> Result<(), Status> {
    let failed = |what: &str, asked: &str, found: &str| {
        let why = format!("Precondition failed: {what} in precondition: {asked}, {what} in object meta: {found}");
        Err(Status::conflict(call.group(), call.plural(), current.name(), why))
    };
    if let Some(uid) = &options.uid
        && uid != current.uid()
    {
        return failed("UID", uid, current.uid());
    }
    if let Some(revision) = options.revision
        && revision != current.revision()
    {
        return failed("ResourceVersion", &revision.to_string(), &current.revision().to_string());
    }
    Ok(())
}

/// One try; `None` when another writer came first.
async fn attempt(
    server: &Server,
    call: &Call<'_>,
    current: &Object,
    options: &DeleteOptions,
) -> Result<Option<Deleted>, Status> {
    let kind = call.kind;
    let old = current.value();
    let seen = conversion::shown_one(server, kind, current).await?.value();
    let view = server.storage.mirror().view();
    let mut review = Review::new(server, call, &view, Some(&seen), Value::Null);
    admission::validate(&mut review)?;
    let companions = review.companions;
    Written { server, call, old: Some(&seen) }.ask(view, &Value::Null).await?;

    let mut value = old.clone();
    let finalizers = finalizers_after(call, &old, options);
    let grace = kind.rules.grace_seconds(&old, options.grace_seconds).unwrap_or(0).max(0);
    let waiting = old.at(&["metadata", "deletionTimestamp"]).as_str().is_some();
    let holds = kind.rules.holds(&old);
    if finalizers.is_empty() {
        value.take(&["metadata", "finalizers"]);
    } else {
        value.set(&["metadata", "finalizers"], finalizers.clone());
    }
    if finalizers.is_empty() && grace == 0 && !holds {
        let mut gone = old;
        // What could have taken its time shows that it took none.
        if kind.rules.grace_seconds(&gone, options.grace_seconds).is_some() {
            if !waiting {
                let generation = gone.at(&["metadata", "generation"]).as_int();
                if let (true, Some(generation)) = (kind.rules.has_generation(), generation) {
                    gone.set(&["metadata", "generation"], generation + 1);
                }
                gone.set(&["metadata", "deletionTimestamp"], call.now.rfc3339());
            }
            gone.set(&["metadata", "deletionGracePeriodSeconds"], 0i64);
        }
        conversion::present(server, kind, &mut gone).await?;
        if options.dry_run {
            return Ok(Some(Deleted::Gone(gone)));
        }
        let (namespace, name) = (current.facts().namespace.clone(), current.facts().name.clone());
        let mut writes = vec![Write::Delete { resource: kind.resource, namespace, name, expect: current.revision() }];
        for companion in kind.rules.released(&gone) {
            writes.push(CompanionWrite::of(companion).write(server, call.now)?);
        }
        for companion in companions {
            writes.push(companion.write(server, call.now)?);
        }
        return match server.storage.commit(writes).await {
            Ok(revision) => {
                gone.set(&["metadata", "resourceVersion"], revision.to_string());
                Ok(Some(Deleted::Gone(gone)))
            }
            Err(WriteError::Stale { .. }) => Ok(None),
            Err(WriteError::Failed(status)) => Err(status),
        };
    }
    // It stays for a while. A second request may shorten the grace period, never lengthen it.
    let known = old.at(&["metadata", "deletionGracePeriodSeconds"]).as_int();
    let shortens = match known {
        Some(known) if waiting => grace < known,
        _ => !waiting,
    };
    if shortens {
        let until = call.now.plus_ms(u64::try_from(grace).unwrap_or(0).saturating_mul(1000));
        value.set(&["metadata", "deletionTimestamp"], until.rfc3339());
        // What holds itself back (a namespace) was not given a period of grace.
        if grace > 0 || !holds {
            value.set(&["metadata", "deletionGracePeriodSeconds"], grace);
        }
        if kind.rules.has_generation() && !waiting {
            let generation = old.at(&["metadata", "generation"]).as_int().unwrap_or(0);
            value.set(&["metadata", "generation"], generation + 1);
        }
        kind.rules.marked_deleted(&mut value);
    }
    let unchanged = value == old;
    let mut shown = value.clone();
    conversion::present(server, kind, &mut shown).await?;
    if unchanged || options.dry_run {
        return Ok(Some(Deleted::Waits(shown)));
    }
    let write = Write::Put { resource: kind.resource, object: value, expect: current.revision(), lease: None };
    match server.storage.commit(vec![write]).await {
        Ok(revision) => {
            shown.set(&["metadata", "resourceVersion"], revision.to_string());
            Ok(Some(Deleted::Waits(shown)))
        }
        Err(WriteError::Stale { .. }) => Ok(None),
        Err(WriteError::Failed(status)) => Err(status),
    }
}

/// The finalizers after the request: the propagation policy adds one and takes the other away.
fn finalizers_after(call: &Call<'_>, old: &Value, options: &DeleteOptions) -> Vec<Value> {
    let mut finalizers: Vec<Value> = old.at(&["metadata", "finalizers"]).items().to_vec();
    let has = |finalizers: &[Value], name: &str| finalizers.iter().any(|finalizer| finalizer.text() == name);
    let (orphan, foreground) = match (options.orphan_dependents, options.propagation) {
        (Some(orphan), _) => (orphan, false),
        (None, Some(Propagation::Orphan)) => (true, false),
        (None, Some(Propagation::Foreground)) => (false, true),
        (None, Some(Propagation::Background)) => (false, false),
        (None, None) if has(&finalizers, ORPHAN) => (true, false),
        (None, None) if has(&finalizers, FOREGROUND) => (false, true),
        (None, None) => (call.kind.rules.orphans_by_default(), false),
    };
    finalizers.retain(|finalizer| !matches!(finalizer.text(), ORPHAN | FOREGROUND));
    if orphan {
        finalizers.push(ORPHAN.into());
    }
    if foreground {
        finalizers.push(FOREGROUND.into());
    }
    finalizers
}
