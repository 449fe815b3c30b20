//! Removes what lost all its owners, holds owners until their dependents are gone (foreground), and sets dependents
//! free (orphan).
//!
//! An owner is present when the object its reference names exists with the same uid. A reference to a kind that is not
//! known is left alone.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use cache::{Event, View};
use meta::{Object, Owner, Resource, Str, Value, json};
use reconcile::{Context, EVERYTHING, Effect, Lists, Outcome, Reconciler};

use crate::common::*;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

pub struct GarbageCollector;

enum Found<'a> {
    Unknown,
    Absent,
    Present(&'a Object),
}

type Kinds = BTreeMap<(Str, Str), (Resource, bool)>;

/// Built-in kinds by group and kind: resource, and whether it is namespaced.
static KINDS: LazyLock<Kinds> = LazyLock::new(|| {
    let kinds = api::kinds::kinds().into_iter();
    kinds
        .map(|kind| ((kind.names.group.clone(), kind.names.kind.clone()), (kind.resource, kind.names.namespaced)))
        .collect()
});

fn resource_of(view: &View, group: &str, kind: &str) -> Option<(Resource, bool)> {
    if let Some(found) = KINDS.get(&(Str::from(group), Str::from(kind))) {
        return Some(*found);
    }
    view.list(DEFINITIONS, "").find_map(|definition| {
        let value = definition.value();
        let spec = &value["spec"];
        let fits = spec["group"].text() == group && spec["names"]["kind"].text() == kind;
        let namespaced = spec["scope"].text() == "Namespaced";
        fits.then(|| (Resource::intern(&format!("{}.{group}", spec["names"]["plural"].text())), namespaced))
    })
}

fn find<'a>(view: &'a View, dependent: &Object, owner: &Owner) -> Found<'a> {
    let (group, _) = owner.api_version.split_once('/').unwrap_or(("", &owner.api_version));
    let Some((resource, namespaced)) = resource_of(view, group, &owner.kind) else { return Found::Unknown };
    if namespaced && dependent.namespace().is_empty() {
        return Found::Unknown;
    }
    let namespace = if namespaced { dependent.namespace() } else { "" };
    match view.one(resource, namespace, &owner.name) {
        Some(object) if object.uid() == owner.uid => Found::Present(object),
        _ => Found::Absent,
    }
}

fn gc_key(object: &Object) -> Str {
    format!("{}|{}", object.resource(), key_of(object)).into()
}

fn has(object: &Object, finalizer: &str) -> bool {
    object.facts().finalizers.iter().any(|name| name == finalizer)
}

impl Reconciler for GarbageCollector {
    fn name(&self) -> &'static str {
        "generic-garbage-collector"
    }

    fn watches(&self) -> &[Resource] {
        &[]
    }

    fn lives(&self) -> &[Resource] {
        &[EVERYTHING]
    }

    fn keys(&self, _: Resource, event: &Event, view: &View, out: &mut Vec<Str>) {
        if let Some(new) = &event.new {
            if !new.facts().owners.is_empty() || (is_deleting(new) && (has(new, ORPHAN) || has(new, FOREGROUND))) {
                out.push(gc_key(new));
            }
        } else if let Some(old) = &event.old {
            out.extend(view.owned_by(old.uid()).map(gc_key));
        }
        // An owner that waits for its dependents looks again whenever one of them changes.
        for object in sides(event) {
            for owner in &object.facts().owners {
                if let Found::Present(owner) = find(view, object, owner)
                    && is_deleting(owner)
                {
                    out.push(gc_key(owner));
                }
            }
        }
    }

    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome {
        let Some((resource, key)) = key.split_once('|') else { return Outcome::Settled };
        let (namespace, name) = split(key);
        let Some(object) = view.one(Resource::intern(resource), namespace, name) else { return Outcome::Settled };
        if is_deleting(object) {
            if has(object, ORPHAN) {
                set_free(object, view, cx);
            } else if has(object, FOREGROUND) {
                clear_away(object, view, cx);
            }
            return Outcome::Settled;
        }
        look_at_owners(object, view, cx);
        Outcome::Settled
    }
}

fn patch(cx: &mut Context, object: &Object, field: &str, list: Vec<Value>) {
    let mut patch = json!({"metadata": {"resourceVersion": (object.revision().to_string())}});
    patch.set(&["metadata", field], if list.is_empty() { Value::Null } else { Value::from(list) });
    cx.push(Effect::Patch {
        resource: object.resource(),
        subresource: "",
        namespace: object.namespace().into(),
        name: object.name().into(),
        uid: object.uid().into(),
        patch,
        lists: Lists::Replaced,
    });
}

fn drop_owners(cx: &mut Context, object: &Object, gone: impl Fn(&str) -> bool) {
    let value = object.value();
    let owners = value["metadata"]["ownerReferences"].items().iter();
    patch(cx, object, "ownerReferences", owners.filter(|owner| !gone(owner["uid"].text())).cloned().collect());
}

/// The object's owners may go before it.
fn unblock_owners(cx: &mut Context, object: &Object) {
    let value = object.value();
    let owners = value["metadata"]["ownerReferences"].items().iter().cloned().map(|mut owner| {
        owner.set(&["blockOwnerDeletion"], false);
        owner
    });
    patch(cx, object, "ownerReferences", owners.collect());
}

fn drop_finalizer(cx: &mut Context, object: &Object, finalizer: &str) {
    let rest = object.facts().finalizers.iter().filter(|name| *name != finalizer).map(Value::from);
    patch(cx, object, "finalizers", rest.collect());
}

/// Takes the reference off every dependent, then the finalizer off the owner.
fn set_free(owner: &Object, view: &View, cx: &mut Context) {
    let dependents: Vec<&Object> = view.owned_by(owner.uid()).take(BATCH_MAX).collect();
    if dependents.is_empty() {
        return drop_finalizer(cx, owner, ORPHAN);
    }
    for dependent in dependents {
        drop_owners(cx, dependent, |uid| uid == owner.uid());
    }
}

/// Deletes the dependents, and lets the owner go when none is left that blocks it.
fn clear_away(owner: &Object, view: &View, cx: &mut Context) {
    let mut blocked = false;
    for dependent in view.owned_by(owner.uid()) {
        let reference = dependent.facts().owners.iter().find(|one| one.uid == owner.uid());
        blocked |= reference.is_some_and(|reference| reference.block_owner_deletion);
        if !is_deleting(dependent) && cx.effects.len() < BATCH_MAX {
            look_at_owners(dependent, view, cx);
        }
    }
    if !blocked {
        drop_finalizer(cx, owner, FOREGROUND);
    }
}

fn look_at_owners(object: &Object, view: &View, cx: &mut Context) {
    let (mut solid, mut gone, mut waiting) = (false, Vec::new(), Vec::new());
    for owner in &object.facts().owners {
        match find(view, object, owner) {
            Found::Unknown => solid = true,
            Found::Absent => gone.push(owner.uid.clone()),
            Found::Present(found) if is_deleting(found) && has(found, FOREGROUND) => waiting.push(owner.uid.clone()),
            Found::Present(_) => solid = true,
        }
    }
    if gone.is_empty() && waiting.is_empty() {
        return;
    }
    if solid {
        return drop_owners(cx, object, |uid| gone.iter().chain(&waiting).any(|one| one == uid));
    }
    let waits_for = |dependent: &Object| is_deleting(dependent) && has(dependent, FOREGROUND);
    if !waiting.is_empty()
        && object.facts().owners.iter().any(|owner| owner.block_owner_deletion)
        && view.owned_by(object.uid()).any(waits_for)
    {
        // A circle: each would wait for the next for ever, so one does not hold up its owners.
        return unblock_owners(cx, object);
    }
    let propagation = if has(object, ORPHAN) {
        "Orphan"
    } else if has(object, FOREGROUND) || (!waiting.is_empty() && view.owned_by(object.uid()).next().is_some()) {
        "Foreground"
    } else {
        "Background"
    };
    cx.push(Effect::Delete {
        resource: object.resource(),
        namespace: object.namespace().into(),
        name: object.name().into(),
        uid: object.uid().into(),
        // Someone may be giving it another owner just now.
        revision: Some(object.revision()),
        propagation,
        grace_seconds: None,
    });
}
