//! Who owns which field: server-side apply, and the tracking of every other write, in `metadata.managedFields`.
//!
//! `track_update` runs on each create, update and patch, before the kind prepares the object; `apply` merges an applied
//! configuration into the live object. Both take objects that were normalised.
//!
//! Not here: defaults and validation, which the caller runs on the result; conversion between versions (an entry of
//! another version is treated as if its paths were of this one).
//!
//! Invariants: a field has at least the owner who set it last; nothing is removed that another applier owns.

mod set;
mod text;
mod validate;
mod walk;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use base::Time;

pub use set::{Set, Step};
pub use text::FieldsError;
pub use validate::validate;

use crate::schema::TypeRef;
use crate::status::{Reason, Status};
use crate::value::{Map, Str, Value};

/// Most managers that are kept for updates; older ones are merged into one.
const MAX_UPDATE_MANAGERS: usize = 10;
const OLD_MANAGERS: &str = "ancient-changes";
const BEFORE_APPLY: &str = "before-first-apply";

/// What no manager ever owns.
static STRIPPED: LazyLock<Set> = LazyLock::new(|| {
    Set::of_fields(&[
        &["apiVersion"],
        &["kind"],
        &["metadata"],
        &["metadata", "name"],
        &["metadata", "namespace"],
        &["metadata", "creationTimestamp"],
        &["metadata", "selfLink"],
        &["metadata", "uid"],
        &["metadata", "clusterName"],
        &["metadata", "generation"],
        &["metadata", "managedFields"],
        &["metadata", "resourceVersion"],
    ])
});

static MANAGED: LazyLock<Set> = LazyLock::new(|| Set::of_fields(&[&["metadata", "managedFields"]]));

/// Who writes, and how.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// `kubectl`; empty becomes `unknown`.
    pub manager: &'a str,
    /// `apps/v1`.
    pub api_version: &'a str,
    /// `""` for the object itself.
    pub subresource: &'a str,
    pub now: Time,
    /// What this endpoint does not write: `status` on the object itself, `spec` on `status`. Writes to it own nothing.
    pub reset: &'a Set,
}

/// A field that another manager owns with another value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// As shown: `"kubectl" using apps/v1`.
    pub manager: String,
    /// `.spec.replicas`
    pub path: String,
}

/// Why nothing was applied.
#[derive(Clone, Debug, PartialEq)]
pub enum ApplyError {
    Conflicts(Vec<Conflict>),
    /// The configuration does not fit its type.
    Typed(String),
    BadRequest(String),
    /// The live object's `managedFields` are broken.
    Managed(FieldsError),
}

impl ApplyError {
    pub fn status(&self) -> Status {
        match self {
            ApplyError::Conflicts(conflicts) => {
                let mut status = Status::new(Reason::Conflict, conflict_message(conflicts));
                for conflict in conflicts {
                    let message = format!("conflict with {}", conflict.manager);
                    status = status.caused("FieldManagerConflict", &conflict.path, message);
                }
                status
            }
            ApplyError::Typed(what) => {
                let mut status = Status::new(Reason::Unknown, what.clone());
                status.0.code = 500;
                status
            }
            ApplyError::BadRequest(what) => Status::bad_request(what.clone()),
            ApplyError::Managed(error) => Status::internal(format!("failed to decode managed fields: {error}")),
        }
    }
}

fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [conflict] = conflicts {
        return format!("Apply failed with 1 conflict: conflict with {}: {}", conflict.manager, conflict.path);
    }
    let mut lines: Vec<String> = Vec::new();
    let mut last = "";
    for conflict in conflicts {
        if conflict.manager != last {
            lines.push(format!("conflicts with {}:", conflict.manager));
            last = &conflict.manager;
        }
        lines.push(format!("- {}", conflict.path));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

/// What tells entries apart; sorts as entries are sorted but for their time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Id {
    applied: bool,
    manager: Str,
    /// Empty for appliers, which keep one entry over all versions.
    api_version: Str,
    subresource: Str,
}

#[derive(Clone, Debug)]
struct Owned {
    fields: Fields,
    api_version: Str,
    time: Option<Time>,
    /// The entry that says this, as far as its fields are still these; null when it has to be written anew.
    entry: Value,
}

/// What is owned. Most writes touch little of it, and the text is changed where they do.
#[derive(Clone, Debug)]
enum Fields {
    /// As `FieldsV1` in the form in which we write it.
    Text(Value),
    Set(Set),
}

impl Fields {
    fn set(&self) -> Cow<'_, Set> {
        match self {
            // Texts of this form can be read.
            Fields::Text(fields) => Cow::Owned(Set::from_fields(fields).unwrap_or_default()),
            Fields::Set(set) => Cow::Borrowed(set),
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Fields::Text(fields) => fields.entries().is_empty(),
            Fields::Set(set) => set.is_empty(),
        }
    }

    /// Whether all of `set` is known to be among them.
    fn covers(&self, set: &Set) -> bool {
        matches!(self, Fields::Text(fields) if text::covers(fields, set))
    }

    fn add(&mut self, more: Set) {
        match self {
            _ if self.covers(&more) => {}
            Fields::Text(fields) => text::add(fields, &more),
            Fields::Set(set) => *set = std::mem::take(set).union(more),
        }
    }

    fn remove(&mut self, gone: &Set) {
        match self {
            Fields::Text(fields) if !text::touches(fields, gone) => {}
            Fields::Text(fields) => text::remove(fields, gone),
            Fields::Set(set) => *set = std::mem::take(set).difference(gone),
        }
    }

    fn to_fields(&self) -> Value {
        match self {
            Fields::Text(fields) => fields.clone(),
            Fields::Set(set) => set.to_fields(),
        }
    }
}

type Managers = BTreeMap<Id, Owned>;

impl Id {
    fn of(writer: &Writer<'_>, applied: bool) -> Id {
        let manager = if writer.manager.is_empty() { "unknown" } else { writer.manager };
        Id {
            applied,
            manager: manager.into(),
            api_version: if applied { Str::default() } else { writer.api_version.into() },
            subresource: writer.subresource.into(),
        }
    }

    fn show(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if !self.applied {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }
}

/// The managers of a list; what is shared with `stored`, the list of an object that was stored, was written by
/// [`write_managers`] and needs no second look.
fn read_managers(entries: &Value, stored: &Value) -> Result<Managers, FieldsError> {
    let wrong = |what: &str| Err(FieldsError(what.to_owned()));
    let mut managers = Managers::new();
    for (at, entry) in entries.items().iter().enumerate() {
        let is_known = entries.is_shared_with(stored) || entry.is_shared_with(&stored[at]);
        let applied = match entry["operation"].text() {
            "Apply" => true,
            "Update" => false,
            _ => return wrong("operation must be `Apply` or `Update`"),
        };
        let api_version = entry["apiVersion"].text();
        if api_version.is_empty() {
            return wrong("apiVersion must not be empty");
        }
        if entry["fieldsType"].text() != "FieldsV1" {
            return wrong("fieldsType must be FieldsV1");
        }
        let fields = match &entry["fieldsV1"] {
            Value::Null => Fields::Set(Set::new()),
            fields if is_known || text::is_canonical(fields) => Fields::Text(fields.clone()),
            fields => Fields::Set(Set::from_fields(fields)?),
        };
        let id = Id {
            applied,
            manager: entry["manager"].text().into(),
            api_version: if applied { Str::default() } else { api_version.into() },
            subresource: entry["subresource"].text().into(),
        };
        let time = Time::parse(entry["time"].text());
        let entry = if is_known { entry.clone() } else { Value::Null };
        managers.insert(id, Owned { fields, api_version: api_version.into(), time, entry });
    }
    Ok(managers)
}

/// Puts the managers into the object, in upstream's order: appliers first, then by time.
fn write_managers(object: &mut Value, managers: Managers) {
    let mut sorted: Vec<(Id, Owned)> = managers.into_iter().collect();
    sorted.sort_by(|(a, owned_a), (b, owned_b)| {
        let seconds = |owned: &Owned| owned.time.map_or(0, Time::seconds);
        let operation = b.applied.cmp(&a.applied);
        let names = (&a.manager, &owned_a.api_version, &a.subresource);
        let time = seconds(owned_a).cmp(&seconds(owned_b));
        operation.then(time).then_with(|| names.cmp(&(&b.manager, &owned_b.api_version, &b.subresource)))
    });
    let entries = sorted.into_iter().map(|(id, owned)| {
        let fields = owned.fields.to_fields();
        if fields.is_shared_with(&owned.entry["fieldsV1"]) {
            return owned.entry;
        }
        let subresource = (!id.subresource.is_empty()).then(|| ("subresource", Value::from(id.subresource)));
        let time = owned.time.map(|time| ("time", Value::from(time.rfc3339())));
        let always = [
            ("apiVersion", owned.api_version.into()),
            ("fieldsType", "FieldsV1".into()),
            ("fieldsV1", fields),
            ("manager", id.manager.into()),
            ("operation", if id.applied { "Apply" } else { "Update" }.into()),
        ];
        Value::Map(always.into_iter().chain(subresource).chain(time).collect())
    });
    let entries: Vec<Value> = entries.collect();
    if entries.is_empty() {
        object.take(&["metadata", "managedFields"]);
    } else {
        object.set(&["metadata", "managedFields"], entries);
    }
}

/// Whether the caller asks to forget all owners: `managedFields: []`, or one empty entry.
fn is_reset(entries: &Value) -> bool {
    match entries {
        Value::List(items) => match items.as_slice() {
            [] => true,
            [one] => one
                .entries()
                .iter()
                .all(|(_, value)| value.is_null() || value.text().is_empty() && value.as_str().is_some()),
            _ => false,
        },
        _ => false,
    }
}

/// Records in `new.metadata.managedFields` what changed from `old` (`None`: the object is created) to `new`, and who
/// did it. An empty list of managers in `new` forgets all owners, as does one empty entry; otherwise owners that
/// `new` brings count, and those of `old` where it brings none.
pub fn track_update(old: Option<&Value>, new: &mut Value, of: TypeRef<'_>, writer: &Writer<'_>) {
    let zero;
    let sent = new.take(&["metadata", "managedFields"]).unwrap_or_default();
    let live = old.map_or(&Value::Null, |old| &old["metadata"]["managedFields"]);
    let mut managers = if !writer.subresource.is_empty() {
        read_managers(live, live).unwrap_or_default()
    } else if is_reset(&sent) {
        Managers::new()
    } else {
        match read_managers(&sent, live) {
            Ok(managers) if !managers.is_empty() => managers,
            _ => read_managers(live, live).unwrap_or_default(),
        }
    };
    // An object that is not tracked stays so.
    if managers.is_empty() && old.is_some() {
        return;
    }
    let old = match old {
        Some(old) => old,
        None => {
            zero = empty_object(of);
            &zero
        }
    };
    update(old, new, of, writer, &mut managers);
    cap(&mut managers);
    write_managers(new, managers);
}

/// Whether [`track_update`] of a creation of `one` makes its writer own the same fields as one of `other`. May say no
/// where it does.
pub fn is_alike(one: &Value, other: &Value, of: TypeRef<'_>) -> bool {
    walk::is_alike(one, other, Some(of))
}

/// Records the creation of `new`, which brings no managers, as `writer`'s, where the fields that it owns are known.
pub fn own_created(new: &mut Value, fields: &Value, writer: &Writer<'_>) {
    let time = Some(Time::from_seconds(writer.now.seconds()));
    let (fields, api_version) = (Fields::Text(fields.clone()), writer.api_version.into());
    let owned = Owned { fields, api_version, time, entry: Value::Null };
    write_managers(new, Managers::from([(Id::of(writer, false), owned)]));
}

/// What a new object is compared with: what Go writes for the type's zero.
fn empty_object(of: TypeRef<'_>) -> Value {
    let mut zero = Value::map();
    if !of.schema.is_custom() {
        // The zero always fits its type.
        let _ = crate::normalise::normalise(&mut zero, of, &mut Vec::new());
    }
    zero
}

/// The managers after `writer` changed `old` to `new`.
fn update(old: &Value, new: &Value, of: TypeRef<'_>, writer: &Writer<'_>, managers: &mut Managers) {
    // `new` comes without `managedFields`, which are never compared.
    let mut changes = walk::compare(old, new, of).without(writer.reset);
    changes.removed = changes.removed.difference(&MANAGED);
    let taken = changes.modified.union(changes.added);
    let own = Id::of(writer, false);
    // Who changes what is his own would lose it, and be given it back.
    let is_own = changes.removed.is_empty()
        && taken.intersection(&STRIPPED).is_empty()
        && managers.get(&own).is_some_and(|owned| owned.fields.covers(&taken));
    disown(managers, is_own.then_some(&own), &[&taken, &changes.removed]);
    let set = taken.difference(&STRIPPED);
    if set.is_empty() {
        return;
    }
    let owned = managers.entry(own).or_insert_with(|| Owned {
        fields: Fields::Set(Set::new()),
        api_version: writer.api_version.into(),
        time: None,
        entry: Value::Null,
    });
    owned.fields.add(set);
    owned.entry = Value::Null;
    owned.time = Some(Time::from_seconds(writer.now.seconds()));
}

/// The object without its `managedFields`, which are never compared.
fn without_managed(object: &Value) -> std::borrow::Cow<'_, Value> {
    if object["metadata"]["managedFields"].is_null() {
        return std::borrow::Cow::Borrowed(object);
    }
    let mut map = Map::new();
    for (key, value) in object.entries().iter() {
        if key != "metadata" {
            map.insert(key, value.clone());
            continue;
        }
        let kept = value.entries().iter().filter(|(key, _)| *key != "managedFields");
        map.insert(key, kept.map(|(key, value)| (key, value.clone())).collect::<Map>());
    }
    std::borrow::Cow::Owned(Value::Map(map))
}

/// Takes what is `gone` from all managers but `keep`, and forgets those who own nothing any more.
fn disown(managers: &mut Managers, keep: Option<&Id>, gone: &[&Set]) {
    for (_, owned) in managers.iter_mut().filter(|(id, _)| Some(*id) != keep) {
        gone.iter().filter(|gone| !gone.is_empty()).for_each(|gone| owned.fields.remove(gone));
    }
    managers.retain(|_, owned| !owned.fields.is_empty());
}

/// Merges the oldest update managers when there are too many.
fn cap(managers: &mut Managers) {
    let mut updaters: Vec<Id> = managers.keys().filter(|id| !id.applied).cloned().collect();
    let mut count = updaters.len();
    if count <= MAX_UPDATE_MANAGERS {
        return;
    }
    let seconds = |id: &Id| managers.get(id).and_then(|owned| owned.time).map_or(0, Time::seconds);
    updaters.sort_by_key(|id| (seconds(id), id.clone()));
    let mut first: BTreeMap<Str, Id> = BTreeMap::new();
    for id in updaters {
        if count <= MAX_UPDATE_MANAGERS {
            return;
        }
        let Some(version) = managers.get(&id).map(|owned| owned.api_version.clone()) else { continue };
        let Some(oldest) = first.get(&version) else {
            first.insert(version, id);
            continue;
        };
        let bucket =
            Id { applied: false, manager: OLD_MANAGERS.into(), api_version: version, subresource: Str::default() };
        if !managers.contains_key(&bucket)
            && let Some(owned) = managers.remove(oldest)
        {
            managers.insert(bucket.clone(), owned);
        }
        if id != bucket
            && let Some(owned) = managers.remove(&id)
            && let Some(into) = managers.get_mut(&bucket)
        {
            into.fields.add(owned.fields.set().into_owned());
            (into.time, into.entry) = (owned.time, Value::Null);
        }
        count -= 1;
    }
}

/// Merges `applied` into `live` (`None`: the object is created) for `writer`. The result is neither defaulted nor
/// normalised; `None` when nothing but `managedFields` would change and these neither.
///
/// # Errors
/// Conflicts without `force`, or a configuration that does not fit.
pub fn apply(
    live: Option<&Value>,
    applied: &Value,
    of: TypeRef<'_>,
    writer: &Writer<'_>,
    force: bool,
) -> Result<Value, ApplyError> {
    if !applied["metadata"]["managedFields"].is_null() {
        return Err(ApplyError::BadRequest("metadata.managedFields must be nil".to_owned()));
    }
    validate(applied, of).map_err(|what| ApplyError::Typed(describe(applied, &what)))?;
    let empty = empty_object(of);
    let live = live.unwrap_or(&empty);
    let known = &live["metadata"]["managedFields"];
    let mut managers = read_managers(known, known).map_err(ApplyError::Managed)?;
    let bare = without_managed(live);
    if managers.is_empty() {
        update(&empty, &bare, of, &Writer { manager: BEFORE_APPLY, ..*writer }, &mut managers);
    }
    let id = Id::of(writer, true);
    let merged = walk::merge(Some(&bare), Some(applied), Some(of)).unwrap_or_else(Value::map);
    let own = walk::fields_of(applied, Some(of)).1.without(writer.reset);
    let last = managers.get(&id).cloned();
    let time = last.as_ref().and_then(|owned| owned.time);
    let (fields, api_version) = (Fields::Set(own), writer.api_version.into());
    managers.insert(id.clone(), Owned { fields, api_version, time, entry: Value::Null });
    let result = match &last {
        Some(last) if !last.fields.is_empty() => prune(merged, &managers, &last.fields.set(), of),
        _ => merged,
    };
    let changes = walk::compare(&bare, &result, of).without(writer.reset);
    let taken = changes.modified.union(changes.added);
    let conflicts = conflicts(&managers, &id, &taken);
    if !force && !conflicts.is_empty() {
        return Err(ApplyError::Conflicts(conflicts));
    }
    disown(&mut managers, Some(&id), &[&taken, &changes.removed]);
    let mut result = result;
    if let Some(owned) = managers.get_mut(&id) {
        owned.fields.remove(&STRIPPED);
        // Removed fields are nobody's, not even the applier's.
        if result != *bare {
            (owned.time, owned.entry) = (Some(Time::from_seconds(writer.now.seconds())), Value::Null);
        }
    }
    managers.retain(|_, owned| !owned.fields.is_empty());
    write_managers(&mut result, managers);
    keep_last_applied(&mut result, applied, writer.manager);
    Ok(result)
}

/// Merges `config` into `live` as an applied configuration is merged, without regard to who owns what.
///
/// # Errors
/// Where `config` does not fit the type.
pub fn merged(live: &Value, config: &Value, of: TypeRef<'_>) -> Result<Value, String> {
    validate(config, of)?;
    Ok(walk::merge(Some(live), Some(config), Some(of)).unwrap_or_else(Value::map))
}

/// kubectl's own annotation, where the object has it, follows what kubectl applies.
fn keep_last_applied(result: &mut Value, applied: &Value, manager: &str) {
    let path = ["metadata", "annotations", "kubectl.kubernetes.io/last-applied-configuration"];
    if manager != "kubectl" || result.at(&path).is_null() {
        return;
    }
    let mut config = applied.clone();
    config.take(&path);
    let mut text = String::from_utf8_lossy(&config.to_json()).into_owned();
    text.push('\n');
    result.set(&path, text);
}

fn describe(applied: &Value, what: &str) -> String {
    let metadata = &applied["metadata"];
    format!(
        "failed to create typed patch object ({}/{}; {}, Kind={}): {what}",
        metadata["namespace"].text(),
        metadata["name"].text(),
        applied["apiVersion"].text(),
        applied["kind"].text()
    )
}

fn conflicts(managers: &Managers, own: &Id, taken: &Set) -> Vec<Conflict> {
    let mut all = Vec::new();
    for (id, owned) in managers.iter().filter(|(id, _)| *id != own) {
        for path in owned.fields.set().intersection(taken).paths() {
            all.push(Conflict { manager: id.show(), path });
        }
    }
    all.sort();
    all
}

/// Takes out of `merged` what the applier owned last and nobody owns now.
fn prune(merged: Value, managers: &Managers, last: &Set, of: TypeRef<'_>) -> Value {
    let of = Some(of);
    let last = walk::with_named(last, of);
    let fields = |value: &Value| walk::with_named(&walk::fields_of(value, of).1, of);
    let rest = walk::remove(&merged, &last, of).unwrap_or_else(Value::map);
    let owned = managers.values().fold(Set::new(), |all, owned| all.union(owned.fields.set().into_owned()));
    let all = fields(&merged);
    let unowned = all.clone().difference(&fields(&rest).union(walk::with_named(&owned, of)));
    let kept = walk::remove(&merged, &unowned, of).unwrap_or_else(Value::map);
    let gone = all.difference(&fields(&kept)).intersection(&last);
    walk::remove(&merged, &gone, of).unwrap_or_else(Value::map)
}

/// Puts the old `managedFields` back where nothing but their times changed, so that a write without effect stays one.
pub fn keep_times(old: &Value, new: &mut Value) {
    let was = &old["metadata"]["managedFields"];
    if was.is_null() || !is_same_object(old, new) {
        return;
    }
    let (before, after) = (was.items(), new["metadata"]["managedFields"].items());
    let same = before.len() == after.len()
        && before.iter().all(|a| after.iter().any(|b| is_same_but(a.entries(), b.entries(), "time")));
    if same {
        new.set(&["metadata", "managedFields"], was.clone());
    }
}

/// Whether two objects are the same but for their `managedFields`.
fn is_same_object(a: &Value, b: &Value) -> bool {
    is_same_but(a.entries(), b.entries(), "metadata")
        && is_same_but(a["metadata"].entries(), b["metadata"].entries(), "managedFields")
}

/// Whether two maps are the same but for one member.
fn is_same_but(a: &Map, b: &Map, but: &str) -> bool {
    let (mut a, mut b) = (a.iter().filter(|(key, _)| *key != but), b.iter().filter(|(key, _)| *key != but));
    loop {
        match (a.next(), b.next()) {
            (None, None) => return true,
            (Some(a), Some(b)) if a == b => {}
            _ => return false,
        }
    }
}

/// The key of a list's item as JSON, where items are told apart: `"a"`, `{"id":"p"}`.
pub(crate) fn item_key(of: TypeRef<'_>, kind: &crate::schema::ListKind, item: &Value) -> Option<String> {
    let value = match walk::item_step(of, kind, item)? {
        Step::Value(value) => value,
        Step::Key(keys) => Value::Map(keys.into_iter().collect()),
        Step::Field(_) | Step::Index(_) => return None,
    };
    Some(String::from_utf8_lossy(&value.to_json()).into_owned())
}

#[cfg(test)]
mod tests;
