//! Create: the life of a new object up to the commit.

use base::Revision;
use meta::kind::{Change, Prepare};
use meta::{At, Errors, Object, Reason, Status, Value};

use super::{Call, Outcome, metadata};
use crate::Server;
use crate::admission::{self, Mutated, Review, Written};
use crate::conversion;
use crate::ownership::Created;
use crate::storage::{Write, WriteError};

/// Tries of a create whose generated name is taken, or whose free choices (addresses, ports) collide.
const TRIES: usize = 8;

/// Creates `value` (decoded, with defaults) in the call's namespace.
pub async fn create(server: &Server, call: &Call<'_>, value: Value) -> Result<Outcome, Status> {
    create_owned(server, call, value, false).await
}

/// The same; `applied` says that the value brings its `managedFields` with it.
pub async fn create_owned(server: &Server, call: &Call<'_>, value: Value, applied: bool) -> Result<Outcome, Status> {
    let generated = value.at(&["metadata", "name"]).text().is_empty();
    let mut last = None;
    for _ in 0..TRIES {
        match attempt(server, call, value.clone(), applied).await {
            Err(Retry::Taken(status)) if generated => last = Some(status),
            Err(Retry::Collided(status)) => last = Some(status),
            Err(Retry::Taken(status) | Retry::No(status)) => return Err(status),
            Ok(outcome) => return Ok(outcome),
        }
    }
    Err(last.unwrap_or_else(|| Status::internal("no try was made")))
}

enum Retry {
    /// The name exists.
    Taken(Status),
    /// Something that came with it (an address, a quota) was changed by another at the same time.
    Collided(Status),
    No(Status),
}

impl From<Status> for Retry {
    fn from(status: Status) -> Retry {
        Retry::No(status)
    }
}

async fn attempt(server: &Server, call: &Call<'_>, mut value: Value, applied: bool) -> Result<Outcome, Retry> {
    let mut rng = base::Rng::new(crate::uid::seed());
    check_place(call, &value)?;
    let was_stored = !value.at(&["metadata", "resourceVersion"]).text().is_empty();
    metadata::fill_new(&mut value, call.namespace(), call.now, &mut rng)?;
    let created = if applied { Created::default() } else { server.creations.track(call, &mut value) };
    let kind = call.kind;
    let view = server.storage.mirror().view();
    let written = Written { server, call, old: None };
    let Mutated { view, object: mut value, mut companions, mut warnings } = written.mutate(view, value).await?;

    let change = Change {
        old: None,
        sibling: created.sibling(),
        subresource: "",
        now: call.now,
        user: &call.auth.user.name,
        groups: &call.auth.user.groups,
        uid: &call.auth.user.uid,
        extra: &call.auth.user.extra,
    };
    let lookup = server.lookup(&view);
    let mut extra = Vec::new();
    let mut prepare =
        Prepare { change, lookup: &lookup, dry_run: call.options.dry_run, companions: &mut extra, rng: &mut rng };
    if let Some(status) = kind.rules.first_status() {
        value.set(&["status"], status);
    }
    kind.rules.prepare(&mut prepare, &mut value)?;
    companions.extend(extra.into_iter().map(super::update::CompanionWrite::of));
    if let Some(generation) = kind.rules.first_generation() {
        value.set(&["metadata", "generation"], generation);
    }

    if let Some(sibling) = created.sibling() {
        value.graft(sibling);
    }
    let mut errors = Errors::default();
    let at = At::root(&value);
    metadata::check(kind, &at, None, &mut errors);
    kind.rules.check(&change, &at, &mut errors);
    if !errors.is_empty() {
        let name = value.at(&["metadata", "name"]).text();
        return Err(Status::invalid(call.group(), &kind.names.kind, name, &errors).into());
    }
    warnings.extend(kind.rules.warnings(&change, &value));

    let mut review = Review::new(server, call, &view, None, value);
    review.companions = companions;
    admission::validate(&mut review)?;
    let Review { object: mut value, companions, warnings: more, .. } = review;
    warnings.extend(more);

    // Whoever holds a view while it waits makes the next commit copy what it changes.
    warnings.extend(written.ask(view, &value).await?);
    // Policies have their say first, as in upstream, where this is the store's word.
    if was_stored {
        return Err(Status::bad_request("resourceVersion should not be set on objects to be created").into());
    }
    let name: meta::Str = value.at(&["metadata", "name"]).text().into();
    if server.storage.mirror().one(kind.resource, call.namespace(), &name).is_some() {
        return Err(Retry::Taken(Status::already_exists(call.group(), call.plural(), &name)));
    }
    if call.options.dry_run {
        return Ok(Outcome { code: 201, value, stored: None, warnings });
    }
    Object::share(kind.resource, &mut value);
    server.creations.note(created, &value);
    let mut stored = value.clone();
    conversion::to_stored(server, kind, &mut stored).await?;
    let lease = match kind.rules.ttl_seconds() {
        Some(seconds) => Some(server.ttl_lease(seconds).await?),
        None => None,
    };
    let mut writes = vec![Write::Put { resource: kind.resource, object: stored, expect: Revision::ZERO, lease }];
    for companion in companions {
        writes.push(companion.write(server, call.now)?);
    }
    match server.storage.commit(writes).await {
        Ok(revision) => {
            value.set(&["metadata", "resourceVersion"], revision.to_string());
            let object = match kind.rules.conversion() {
                None => server.storage.mirror().one(kind.resource, call.namespace(), &name),
                Some(_) => None,
            };
            Ok(Outcome { code: 201, value, stored: object, warnings })
        }
        Err(WriteError::Stale { resource, .. }) if resource == Some(kind.resource) => {
            Err(Retry::Taken(Status::already_exists(call.group(), call.plural(), &name)))
        }
        Err(WriteError::Stale { .. }) => Err(Retry::Collided(Status::new(
            Reason::ServerTimeout,
            "something that the object needs was changed at the same time, please try again",
        ))),
        Err(WriteError::Failed(status)) => Err(status.into()),
    }
}

/// The body must agree with the URL.
fn check_place(call: &Call<'_>, value: &Value) -> Result<(), Status> {
    let namespace = value.at(&["metadata", "namespace"]).text();
    if !namespace.is_empty() && namespace != call.namespace() && call.kind.names.namespaced {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}
