//! StorageVersionMigrations: has every object of a resource written anew that stands in a form in which it would not be
//! written today: in another version, without a default of its present schema, with what that does not know.
//!
//! Which objects those are is read off the view, so nothing is remembered from one batch to the next. Of several
//! migrations of a resource the eldest runs. A definition under way says so (`StorageMigrating`), and has one stored
//! version afterwards, unless it changed meanwhile.

use api::storagemigration::storage_version_migration::holds;
use cache::{Event, View};
use meta::{Kind, Object, Resource, Str, Value, json};
use reconcile::{Context, Effect, Lists, Outcome, Reconciler};

use crate::common::*;

/// How long a resource that is not served may still come.
const UNKNOWN_MS: u64 = 60_000;
/// How long a server that refused a write for the moment is left alone at most.
const BUSY_PAUSE_MS: u64 = 1_000;
const RUNNING: &str = "Running";
const SUCCEEDED: &str = "Succeeded";
const FAILED: &str = "Failed";
const MIGRATING: &str = "StorageMigrating";

pub struct StorageMigration;

impl Reconciler for StorageMigration {
    fn name(&self) -> &'static str {
        "storage-version-migrator-controller"
    }

    fn watches(&self) -> &[Resource] {
        &[MIGRATIONS, DEFINITIONS]
    }

    fn keys(&self, resource: Resource, event: &Event, view: &View, out: &mut Vec<Str>) {
        for object in sides(event) {
            let wanted = match resource == MIGRATIONS {
                true => wanted(&object.value()),
                false => Str::from(object.name()),
            };
            let same = view.list(MIGRATIONS, "").filter(|other| self::wanted(&other.value()) == wanted);
            out.extend(same.map(key_of));
        }
    }

    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome {
        let found = view.one(MIGRATIONS, "", key);
        let Some(migration) = found.filter(|migration| !is_deleting(migration)) else { return Outcome::Settled };
        let value = migration.value();
        let resource = Resource::intern(&wanted(&value));
        let definition = view.one(DEFINITIONS, "", resource.0);
        let (runs, ended) = (holds(&value, RUNNING), holds(&value, SUCCEEDED) || holds(&value, FAILED));
        match (runs, ended) {
            (false, true) => Outcome::Settled,
            (true, true) => finish(migration, &value, definition, cx),
            (false, false) if !is_next(migration, resource, view) => Outcome::Settled,
            (false, false) => begin(migration, &value, definition, view, cx),
            (true, false) => migrate(migration, &value, resource, definition, view, cx),
        }
    }
}

/// `plural.group`: the name of the resource, and of its definition if it has one.
fn wanted(migration: &Value) -> Str {
    let wanted = migration.at(&["spec", "resource"]);
    meta::status::qualified(wanted["group"].text(), wanted["resource"].text()).into()
}

/// Whether no other migration of the resource runs, or has waited for longer.
fn is_next(migration: &Object, resource: Resource, view: &View) -> bool {
    let age = |migration: &Object| (migration.facts().created, Str::from(migration.name()));
    view.list(MIGRATIONS, "").filter(|other| other.uid() != migration.uid()).all(|other| {
        let value = other.value();
        let (runs, ended) = (holds(&value, RUNNING), holds(&value, SUCCEEDED) || holds(&value, FAILED));
        wanted(&value) != resource.0 || (!runs && (ended || age(other) > age(migration)))
    })
}

fn begin(migration: &Object, value: &Value, definition: Option<&Object>, view: &View, cx: &mut Context) -> Outcome {
    if let Some(definition) = definition {
        let generation = definition.value().at(&["metadata", "generation"]).as_int().unwrap_or(0);
        let told = definition.value();
        let told = condition(&told["status"], MIGRATING);
        if told["status"].text() != "True" || told["observedGeneration"].as_int() != Some(generation) {
            let message = format!("Migration {} is running", migration.name());
            tell(definition, ("True", "MigrationRunning", &message), None, cx);
            return Outcome::Again(cx.now);
        }
    }
    let mut status = value["status"].clone();
    status.set(&["resourceVersion"], view.at().to_string());
    put(&mut status, RUNNING, ("True", "MigrationRunning", "The migration is running"), cx);
    write_status(cx, migration, value, status);
    Outcome::Settled
}

fn migrate(
    migration: &Object,
    value: &Value,
    resource: Resource,
    definition: Option<&Object>,
    view: &View,
    cx: &mut Context,
) -> Outcome {
    let mut status = value["status"].clone();
    let Some(kind) = kind_of(resource, definition) else {
        let until = migration.facts().created.plus_ms(UNKNOWN_MS);
        if cx.now < until {
            return Outcome::Again(until);
        }
        put(&mut status, FAILED, ("True", "StorageVersionMigrationFailed", "the resource is not served"), cx);
        write_status(cx, migration, value, status);
        return Outcome::Settled;
    };
    let all: Vec<&Object> = view.list(resource, "").collect();
    cx.reads = all.len();
    let old: Vec<&&Object> = all.iter().filter(|object| !is_of_today(&kind, object)).collect();
    if old.is_empty() {
        let message = format!("The migration is running, {} objects verified migrated", all.len());
        put(&mut status, RUNNING, ("True", "MigrationRunning", &message), cx);
        put(&mut status, SUCCEEDED, ("True", "StorageVersionMigrationSucceeded", "Migration completed"), cx);
        write_status(cx, migration, value, status);
        return Outcome::Settled;
    }
    // Conflicts are not among them: whoever came first wrote the object anew.
    if let Some(why) = cx.refused.iter().find(|refusal| !refusal.passes).map(|refusal| refusal.why.clone()) {
        let message =
            format!("{}/{} not yet migrated. migration encountered unhandled error: {why}", old.len(), all.len());
        put(&mut status, FAILED, ("True", "StorageVersionMigrationFailed", &message), cx);
        write_status(cx, migration, value, status);
        return Outcome::Settled;
    }
    let mut next = cx.now;
    if let Some(refusal) = cx.refused.first() {
        next = next.plus_ms(BUSY_PAUSE_MS);
        let (left, why) = (old.len(), &refusal.why);
        let message =
            format!("The migration is running, {left}/{} objects not yet migrated; transient error: {why}", all.len());
        put(&mut status, RUNNING, ("True", "MigrationRunning", &message), cx);
        write_status(cx, migration, value, status);
    }
    for object in old.into_iter().take(BATCH_MAX) {
        cx.push(Effect::Patch {
            resource,
            subresource: "",
            namespace: object.namespace().into(),
            name: object.name().into(),
            uid: object.uid().into(),
            patch: json!({"metadata": {"resourceVersion": (object.revision().to_string())}}),
            lists: Lists::Replaced,
        });
    }
    Outcome::Again(next)
}

/// First the definition is told, then the migration's running ends: a look between the two finds what is left to do.
fn finish(migration: &Object, value: &Value, definition: Option<&Object>, cx: &mut Context) -> Outcome {
    if let Some(definition) = definition {
        let told = definition.value();
        let generation = told.at(&["metadata", "generation"]).clone();
        let condition = condition(&told["status"], MIGRATING).clone();
        if condition["status"].text() == "True" {
            let is_same = condition["observedGeneration"] == generation;
            let stored = told.at(&["spec", "versions"]).items().iter().find(|version| version["storage"].is_true());
            let (words, versions) = match (holds(value, SUCCEEDED), is_same) {
                (true, true) => (
                    ("MigrationSucceeded", "The migration has succeeded and the stored versions have been updated"),
                    stored.map(|version| version["name"].clone()),
                ),
                (true, false) => (
                    (
                        "MigrationSucceeded",
                        "The migration has succeeded but the stored versions have not been updated due to a generation mismatch",
                    ),
                    None,
                ),
                (false, _) => (("MigrationFailed", "The migration has failed"), None),
            };
            tell(definition, ("False", words.0, words.1), versions, cx);
            return Outcome::Again(cx.now);
        }
    }
    let mut status = value["status"].clone();
    put(&mut status, RUNNING, ("False", "MigrationCompleted", "Migration completed"), cx);
    write_status(cx, migration, value, status);
    Outcome::Settled
}

/// Sets a condition of a migration.
fn put(status: &mut Value, of_type: &str, (truth, reason, message): (&str, &str, &str), cx: &Context) {
    let mut conditions = status["conditions"].items().to_vec();
    let known = conditions.iter().position(|condition| condition["type"].text() == of_type);
    let since = match known {
        Some(at) if conditions[at]["status"].text() == truth => conditions[at]["lastTransitionTime"].clone(),
        _ => cx.now.rfc3339().into(),
    };
    let condition = json!({
        "type": of_type, "status": truth, "reason": reason, "message": message, "lastTransitionTime": since,
    });
    match known {
        Some(at) => conditions[at] = condition,
        None => conditions.push(condition),
    }
    status.set(&["conditions"], Value::from(conditions));
}

/// Says on a definition how its migration stands. It names the definition's revision: what is said rests on it.
fn tell(definition: &Object, (truth, reason, message): (&str, &str, &str), stored: Option<Value>, cx: &mut Context) {
    let mut status = json!({"conditions": [{
        "type": MIGRATING, "status": truth, "reason": reason, "message": message, "lastTransitionTime": (cx.now.rfc3339()),
        "observedGeneration": (definition.value().at(&["metadata", "generation"]).clone()),
    }]});
    let mut conditions = definition.value().at(&["status", "conditions"]).items().to_vec();
    conditions.retain(|condition| condition["type"].text() != MIGRATING);
    conditions.extend(status["conditions"].items().to_vec());
    status.set(&["conditions"], Value::from(conditions));
    if let Some(version) = stored {
        status.set(&["storedVersions"], json!([version]));
    }
    cx.push(Effect::Patch {
        resource: DEFINITIONS,
        subresource: "status",
        namespace: Str::default(),
        name: definition.name().into(),
        uid: definition.uid().into(),
        patch: json!({"metadata": {"resourceVersion": (definition.revision().to_string())}, "status": status}),
        lists: Lists::Replaced,
    });
}

/// The kind in whose words the resource is stored.
fn kind_of(resource: Resource, definition: Option<&Object>) -> Option<Kind> {
    match definition {
        Some(definition) => api::custom::kinds(&definition.value()).into_iter().next(),
        None => api::kinds::kinds().into_iter().find(|kind| kind.resource == resource),
    }
}

/// Whether an object stands there as it would be written today.
fn is_of_today(kind: &Kind, object: &Object) -> bool {
    let found = object.value();
    let mut today = found.clone();
    kind.rules.present(&mut today);
    kind.rules.to_stored(&mut today);
    today == found
}
