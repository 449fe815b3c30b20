//! Serving custom resources: follows the definitions, tells their state, and replaces the registry when they change.
//!
//! State: the definitions in the cache, the registry made of them, and what is [`Known`]. Who decides: this task alone. A
//! definition that is being deleted is held by a finalizer until all its objects are gone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cache::Part;
use client::{Interest, Request};
use meta::{Head, Object, Reason, Resource, Status, Str, Value, json};

use crate::Server;
use crate::local;
use crate::registry::Entry;

pub const DEFINITIONS: Resource = Resource("customresourcedefinitions.apiextensions.k8s.io");
const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Changes taken at once.
const PULL_MAX: usize = 256;
/// Names that a kind is known by, of which none may be another's in the same group.
const WORDS: [&str; 3] = ["plural", "kind", "singular"];

/// A word of a group: whether it is a plural, a kind or a singular, and the word itself.
type Word = (Str, &'static str, Str);

/// What is known of the definitions, kept up with their changes, so that one definition costs what one costs.
#[derive(Default)]
struct Known {
    /// By name: a hash of what its kinds were made of.
    served: BTreeMap<String, u64>,
    /// The words that each definition has as its own, and whose each of them is.
    words: BTreeMap<String, Vec<Word>>,
    owners: BTreeMap<Word, String>,
    /// Those whose names are another's: looked at again when names become free.
    refused: BTreeSet<String>,
    /// Those that go as soon as their last object has gone.
    leaving: BTreeSet<String>,
}

/// Follows the definitions until the future is dropped.
pub async fn follow(server: Arc<Server>) {
    let mirror = server.storage.mirror().clone();
    let definitions_only = || Interest::Parts(vec![(DEFINITIONS, Part::All)]);
    let mut known = Known::default();
    let (mut changed, mut waited) = (mirror.listen(definitions_only()), false);
    let mut cursor = None;
    loop {
        // Noted before the pull, so that a change right after it wakes us again.
        let at = mirror.revision();
        let pulled = cursor.and_then(|since| mirror.since_in(DEFINITIONS, &Part::All, since, PULL_MAX).ok());
        let mut names: BTreeSet<String> = match &pulled {
            Some(events) => events.iter().filter_map(name_of).collect(),
            // From the beginning, or from too long ago: all that there are, and all that there were.
            None => {
                let view = mirror.view();
                let there = view.list(DEFINITIONS, "").map(|definition| definition.name().to_owned());
                there.chain(known.served.keys().cloned()).collect()
            }
        };
        let more = pulled.as_ref().is_some_and(|events| events.len() >= PULL_MAX);
        cursor = Some(match pulled.as_deref() {
            Some([.., last]) => last.revision,
            _ => cursor.unwrap_or(at).max(at),
        });
        names.append(&mut known.leaving);
        // What was accepted before is known before anything else is.
        let mut free = false;
        for name in &names {
            free |= known.note(name, mirror.one(DEFINITIONS, "", name).as_ref());
        }
        for name in &names {
            if let Some(definition) = mirror.one(DEFINITIONS, "", name) {
                free |= tend_and_tell(&server, &mut known, &definition).await;
            }
        }
        if free {
            for name in std::mem::take(&mut known.refused) {
                if let Some(definition) = mirror.one(DEFINITIONS, "", &name) {
                    tend_and_tell(&server, &mut known, &definition).await;
                }
            }
        }
        serve(&server, &mut known, &names);
        let waiting = !known.leaving.is_empty();
        if waiting != waited {
            // A definition that goes waits for its last object, whichever that is.
            changed = mirror.listen(if waiting { Interest::Everything } else { definitions_only() });
            waited = waiting;
            continue;
        }
        if !more {
            changed.changed().await;
        }
    }
}

fn name_of(event: &cache::Event) -> Option<String> {
    event.new.as_ref().or(event.old.as_ref()).map(|definition| definition.name().to_owned())
}

/// Brings a definition up to date; whether words became free by it.
async fn tend_and_tell(server: &Arc<Server>, known: &mut Known, definition: &Object) -> bool {
    let name = definition.name();
    if definition.facts().deleting.is_some() {
        known.leaving.insert(name.to_owned());
    }
    match tend(server, known, definition).await {
        Ok(free) => return free,
        Err(status) => match status.reason() {
            // Another writer came first; the change that it made brings the next look.
            Reason::Conflict | Reason::NotFound => tracing::debug!("definition {name}: {status}"),
            _ => tracing::warn!("definition {name}: {status}"),
        },
    }
    false
}

/// Serves the named definitions as they are now.
fn serve(server: &Server, known: &mut Known, names: &BTreeSet<String>) {
    let mut changes: Vec<(&String, Vec<Arc<Entry>>)> = Vec::new();
    for name in names {
        let found = server.one(DEFINITIONS, "", name).map(|definition| (definition.value(), definition));
        let Some((value, definition)) = found.filter(|(value, _)| is_true(value, "Established")) else {
            if known.served.remove(name).is_some() {
                changes.push((name, Vec::new()));
            }
            continue;
        };
        let mut made_of = value["spec"].to_json();
        value.at(&["status", "acceptedNames"]).write_json(&mut made_of);
        let made_of = base::hash64(&made_of);
        if known.served.insert(name.clone(), made_of) != Some(made_of) {
            changes.push((name, Entry::of(&definition)));
        }
    }
    if changes.is_empty() {
        return;
    }
    server.storage.change_registry(|registry| {
        for (name, kinds) in changes {
            registry.serve(name, kinds);
        }
    });
}

impl Known {
    /// Notes that a definition is there or gone; whether words became free by it.
    fn note(&mut self, name: &str, definition: Option<&Object>) -> bool {
        let Some(definition) = definition else {
            self.refused.remove(name);
            return self.claim(name, Vec::new());
        };
        if !self.words.contains_key(name) {
            let value = definition.value();
            if is_true(&value, "NamesAccepted") {
                return self.claim(name, words_of(&value, value.at(&["status", "acceptedNames"])));
            }
        }
        false
    }

    /// From here on a definition has these words, as far as they are nobody else's, and no others; whether any of those
    /// that it had became free.
    fn claim(&mut self, name: &str, words: Vec<Word>) -> bool {
        let had = self.words.remove(name).unwrap_or_default();
        let mut free = false;
        for word in had.iter().filter(|word| !words.contains(word)) {
            if self.owners.get(word).is_some_and(|owner| owner == name) {
                self.owners.remove(word);
                free = true;
            }
        }
        for word in &words {
            self.owners.entry(word.clone()).or_insert_with(|| name.to_owned());
        }
        if !words.is_empty() {
            self.words.insert(name.to_owned(), words);
        }
        free
    }
}

/// The words that `names` of a definition are, in its group.
fn words_of(definition: &Value, names: &Value) -> Vec<Word> {
    let group: Str = definition.at(&["spec", "group"]).text().into();
    let said = WORDS.into_iter().map(|sort| (group.clone(), sort, Str::from(names[sort].text())));
    said.filter(|(_, _, word)| !word.is_empty()).collect()
}

fn is_true(definition: &Value, of_type: &str) -> bool {
    let conditions = definition.at(&["status", "conditions"]).items();
    conditions.iter().any(|condition| condition["type"].text() == of_type && condition["status"].text() == "True")
}

/// Brings one definition's status and finalizer up to date; whether words became free by it.
async fn tend(server: &Arc<Server>, known: &mut Known, definition: &Object) -> Result<bool, Status> {
    let value = definition.value();
    if definition.facts().deleting.is_some() {
        return finish(server, definition, value).await.map(|()| false);
    }
    let conflict = conflict(server, &value, definition.name(), known);
    let accepted = conflict.is_none();
    let mut free = false;
    if accepted {
        // Its own from here on, also before the status that says so has come back.
        free = known.claim(definition.name(), words_of(&value, &value["spec"]["names"]));
        known.refused.remove(definition.name());
    } else {
        known.refused.insert(definition.name().to_owned());
    }
    if !definition.facts().finalizers.iter().any(|name| name == FINALIZER) {
        let patch = json!({"metadata": {"finalizers": [FINALIZER], "uid": (definition.uid())}});
        let request = Request::patch(DEFINITIONS, "", definition.name(), client::PatchType::Strategic, patch);
        local::call(server, &local::system(), request.with(|options| options.manager = "gantry".into())).await?;
        // It is held before it is served; the change comes back to us.
        return Ok(free);
    }
    let stored = value.at(&["spec", "versions"]).items().iter().find(|version| version["storage"].is_true());
    let stored = stored.map(|version| version["name"].clone()).unwrap_or_default();
    let mut versions = value.at(&["status", "storedVersions"]).items().to_vec();
    if !versions.contains(&stored) {
        versions.push(stored);
    }
    let mut wanted = value.clone();
    if accepted {
        wanted.set(&["status", "acceptedNames"], value.at(&["spec", "names"]).clone());
    } else if wanted.at(&["status", "acceptedNames"]).is_null() {
        wanted.set(&["status", "acceptedNames"], json!({"plural": "", "kind": ""}));
    }
    wanted.set(&["status", "storedVersions"], versions);
    let now = server.now().rfc3339();
    let names = match conflict {
        None => ("True", "NoConflicts", "no conflicts found".to_owned()),
        Some(why) => ("False", "NameConflict", why),
    };
    condition(&mut wanted, "NamesAccepted", names, &now);
    let established = match accepted {
        true => ("True", "InitialNamesAccepted", "the initial names have been accepted".to_owned()),
        false => ("False", "NotAccepted", "not all names are accepted".to_owned()),
    };
    if accepted || !is_true(&value, "Established") {
        condition(&mut wanted, "Established", established, &now);
    }
    if wanted["status"] != value["status"] {
        let request = Request::update(DEFINITIONS, wanted).on("status");
        local::call(server, &local::system(), request.with(|options| options.manager = "gantry".into())).await?;
    }
    Ok(free)
}

fn condition(definition: &mut Value, of_type: &str, (status, reason, message): (&str, &str, String), now: &str) {
    let conditions = definition.make(&["status", "conditions"]).make_list();
    if let Some(known) = conditions.make_mut().iter_mut().find(|condition| condition["type"].text() == of_type) {
        if known["status"].text() == status {
            return;
        }
        *known =
            json!({"type": of_type, "status": status, "reason": reason, "message": message, "lastTransitionTime": now});
        return;
    }
    conditions.push(
        json!({"type": of_type, "status": status, "reason": reason, "message": message, "lastTransitionTime": now}),
    );
}

/// Why the definition's names cannot be served: another kind of the group has them.
fn conflict(server: &Server, definition: &Value, own_name: &str, known: &Known) -> Option<String> {
    let spec = &definition["spec"];
    let (group, names) = (spec["group"].text(), &spec["names"]);
    let same = |kind: &Head| {
        kind.names.plural == names["plural"].text()
            || kind.names.kind == names["kind"].text()
            || kind.names.singular == names["singular"].text()
    };
    let registry = server.storage.registry();
    if let Some(kind) = registry.of("").map(|entry| &entry.head).find(|kind| kind.names.group == group && same(kind)) {
        return Some(format!("{:?} is already in use", kind.names.kind));
    }
    let words = words_of(definition, names);
    let owner = words.iter().filter_map(|word| known.owners.get(word)).find(|owner| *owner != own_name)?;
    Some(format!("the names are already in use by {owner:?}"))
}

/// Deletes the objects of a definition that is going, then lets it go.
async fn finish(server: &Arc<Server>, definition: &Object, mut value: Value) -> Result<(), Status> {
    if !definition.facts().finalizers.iter().any(|name| name == FINALIZER) {
        return Ok(());
    }
    let plural = value.at(&["spec", "names", "plural"]).text();
    let resource = Resource::intern(&format!("{plural}.{}", value.at(&["spec", "group"]).text()));
    let objects: Vec<Object> = server.storage.mirror().view().list(resource, "").cloned().collect();
    for object in &objects {
        if object.facts().deleting.is_none() {
            let request = Request::delete(resource, object.namespace(), object.name());
            // One that is gone meanwhile is as good as deleted; others are tried again at the next change.
            let _ = local::call(server, &local::system(), request).await;
        }
    }
    if server.storage.mirror().view().count(resource) > 0 {
        return Ok(());
    }
    let finalizers = value.make(&["metadata", "finalizers"]).make_list();
    finalizers.retain(|finalizer| finalizer.text() != FINALIZER);
    local::call(server, &local::system(), Request::update(DEFINITIONS, value)).await.map(|_| ())
}
