//! Rules of `metadata` that hold for every kind: what the system sets, what may not change, what is valid.

use base::Time;
use meta::{At, Errors, Kind, Status, Str, Value, names};

/// Labels and annotations together, in bytes.
const ANNOTATIONS_MAX_BYTES: usize = 256 * 1024;
/// Letters that a generated name gets after its prefix.
const SUFFIX_LEN: usize = 5;
/// Longest prefix of a generated name that is kept.
const PREFIX_MAX: usize = 63 - SUFFIX_LEN;

/// Sets what a new object gets from the system.
pub fn fill_new(object: &mut Value, namespace: &str, now: Time, rng: &mut base::Rng) -> Result<(), Status> {
    let meta = object.make(&["metadata"]).make_map();
    for owned in ["selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "resourceVersion"] {
        meta.remove(owned);
    }
    if namespace.is_empty() {
        meta.remove("namespace");
    } else {
        meta.insert("namespace", namespace);
    }
    meta.insert("uid", crate::uid::new());
    meta.insert("creationTimestamp", now.rfc3339());
    generate_name(meta, rng);
    Ok(())
}

/// Gives an object without a name the one that `generateName` asks for.
pub fn generate_name(meta: &mut meta::Map, rng: &mut base::Rng) {
    let has_name = meta.get("name").is_some_and(|name| !name.text().is_empty());
    let prefix = meta.get("generateName").map(|prefix| Str::from(prefix.text())).unwrap_or_default();
    if !has_name && !prefix.is_empty() {
        let kept: String = prefix.chars().take(PREFIX_MAX).collect();
        meta.insert("name", format!("{kept}{}", rng.suffix(SUFFIX_LEN)));
    }
}

/// What an update may not touch is taken from the old object.
pub fn keep_owned(object: &mut Value, old: &Value) {
    let old = &old["metadata"];
    let meta = object.make(&["metadata"]).make_map();
    meta.remove("selfLink");
    for key in ["creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"] {
        match old.get(key) {
            Some(value) => {
                meta.insert(key, value.clone());
            }
            None => {
                meta.remove(key);
            }
        }
    }
    for key in ["uid", "namespace"] {
        if meta.get(key).is_none_or(|value| value.text().is_empty())
            && let Some(value) = old.get(key)
        {
            meta.insert(key, value.clone());
        }
    }
    // Only the apply machinery writes these; an explicit empty list resets them there.
    if meta.get("generateName").is_none_or(Value::is_null) {
        match old.get("generateName") {
            Some(value) => {
                meta.insert("generateName", value.clone());
            }
            None => {
                meta.remove("generateName");
            }
        }
    }
}

/// Checks metadata as such, and the change from the old one.
pub fn check(kind: &Kind, at: &At<'_>, old: Option<&Value>, errors: &mut Errors) {
    let meta = at.field("metadata");
    let name = meta.field("name");
    match name.text() {
        "" => errors.required(&name.path, "name or generateName is required"),
        text if old.is_none() => {
            for why in kind.rules.check_name(text) {
                errors.invalid(&name, why);
            }
        }
        _ => {}
    }
    if let Some(prefix) = meta.field("generateName").value.as_str().filter(|prefix| !prefix.is_empty() && old.is_none())
    {
        // The prefix may end in a dash, which the letters to come make valid.
        let masked = format!("{}a", prefix.trim_end_matches('-'));
        for why in kind.rules.check_name(&masked) {
            errors.invalid(&meta.field("generateName"), why);
        }
    }
    let namespace = meta.field("namespace");
    if kind.names.namespaced {
        match namespace.text() {
            "" => errors.required(&namespace.path, ""),
            text => names::dns_label(text).into_iter().for_each(|why| errors.invalid(&namespace, why)),
        }
    } else if !namespace.is_empty() {
        errors.forbidden(&namespace.path, "not allowed on this type");
    }
    check_labels(&meta.field("labels"), errors);
    check_annotations(&meta.field("annotations"), errors);
    check_finalizers(kind, &meta.field("finalizers"), errors);
    check_owners(&meta.field("ownerReferences"), errors);
    if let Some(old) = old {
        check_change(&meta, &old["metadata"], errors);
    }
}

pub fn check_labels(labels: &At<'_>, errors: &mut Errors) {
    for (key, value) in labels.members() {
        for why in names::qualified_name(key) {
            errors.invalid_value(&labels.path, key, why);
        }
        for why in names::label_value(value.text()) {
            errors.invalid_value(&labels.path, value.text(), why);
        }
    }
}

pub fn check_annotations(annotations: &At<'_>, errors: &mut Errors) {
    let mut total = 0;
    for (key, value) in annotations.members() {
        for why in names::qualified_name(&key.to_lowercase()) {
            errors.invalid_value(&annotations.path, key, why);
        }
        total += key.len() + value.text().len();
    }
    if total > ANNOTATIONS_MAX_BYTES {
        errors.too_long(&annotations.path, ANNOTATIONS_MAX_BYTES);
    }
}

/// Most built-in kinds take standard finalizers and those of a domain with a path; what extends the API takes any
/// qualified name (upstream: `pkg/apis/core/validation` beside `apimachinery/pkg/api/validation`).
fn check_finalizers(kind: &Kind, finalizers: &At<'_>, errors: &mut Errors) {
    let mut has = (false, false);
    let extends = matches!(&*kind.names.group, "apiextensions.k8s.io" | "apiregistration.k8s.io");
    let needs_path = crate::dispatch::is_built_in(kind) && !extends;
    for finalizer in finalizers.items() {
        let name = finalizer.text();
        for why in names::qualified_name(name) {
            errors.invalid_value(&finalizers.path, name, why);
        }
        if needs_path && !name.contains('/') && !matches!(name, "orphan" | "foregroundDeletion" | "kubernetes") {
            errors.invalid_value(
                &finalizer.path,
                name,
                "name is neither a standard finalizer name nor is it fully qualified",
            );
        }
        has.0 |= name == "orphan";
        has.1 |= name == "foregroundDeletion";
    }
    if has == (true, true) {
        let detail = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.invalid_value(&finalizers.path, finalizers.value.clone(), detail);
    }
}

fn check_owners(owners: &At<'_>, errors: &mut Errors) {
    let mut controllers = 0;
    for owner in owners.items() {
        let api_version = owner.field("apiVersion");
        let version = api_version.text();
        if version.split('/').count() > 2 {
            errors.invalid(&api_version, "unexpected GroupVersion string");
        } else if version.rsplit('/').next().is_none_or(str::is_empty) {
            errors.invalid(&api_version, "version must not be empty");
        }
        for key in ["kind", "name", "uid"] {
            if owner.field(key).is_empty() {
                errors.invalid(&owner.field(key), "must not be empty");
            }
        }
        if version == "v1" && owner.field("kind").text() == "Event" {
            errors.invalid(&owner, "v1, Kind=Event is disallowed from being an owner");
        }
        if owner.value["controller"].is_true() {
            controllers += 1;
        }
    }
    if controllers > 1 {
        let detail = "Only one reference can have Controller set to true";
        errors.invalid_value(&owners.path, owners.value.clone(), detail);
    }
}

fn check_change(meta: &At<'_>, old: &Value, errors: &mut Errors) {
    for key in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        let field = meta.field(key);
        if *field.value != old[key] && !(field.is_empty() && old[key].text().is_empty()) {
            errors.invalid(&field, "field is immutable");
        }
    }
    // While it is being deleted, no finalizer may be added.
    if old.get("deletionTimestamp").is_some() {
        let before = old["finalizers"].items();
        let added: Vec<&str> = meta
            .field("finalizers")
            .value
            .items()
            .iter()
            .filter(|finalizer| !before.contains(finalizer))
            .map(Value::text)
            .collect();
        if !added.is_empty() {
            errors.forbidden(
                &meta.field("finalizers").path,
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
                ),
            );
        }
    }
}
