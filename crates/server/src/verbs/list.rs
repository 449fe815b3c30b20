//! Lists: pages of a snapshot at one revision, filtered by selectors, made while they are sent.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use base::{Revision, Time};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cache::{Key, Part, View};
use meta::labels::FieldTerm;
use meta::{FieldSelector, Kind, Object, Reason, Resource, Selector, Status, Value, json};

use crate::request::Query;

/// Snapshots that are kept for lists in pages, so that all pages show one revision.
const SNAPSHOTS_MAX: usize = 64;
/// How long a list in pages may take at one revision: after so long Kubernetes compacts what was.
const LIST_MAX_MS: u64 = 5 * 60 * 1000;

/// What of a resource is asked for.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub labels: Selector,
    pub fields: FieldSelector,
    /// Of a watch of all objects, only what this index files elsewhere than before, about.
    pub moved: Option<&'static str>,
}

/// The parameter with which agents name an index, for [`Filter::moved`]: that a node lives is told to all who watch nodes, and
/// those who look for its place need not hear it.
const MOVED: &str = "movedIn";

/// The index of this name that is kept of a kind's objects.
fn index_of(kind: &Kind, name: &str) -> Result<&'static str, Status> {
    let mut rows = api::INDEXES.iter().filter(|(resource, ..)| *resource == kind.resource);
    let known = rows.find(|(_, known, _)| *known == name).map(|(_, known, _)| *known);
    known.ok_or_else(|| Status::bad_request(format!("{MOVED}: {} has no index {name:?}", kind.names.plural)))
}

impl Filter {
    /// Reads the selectors of a query; `kind` says which fields it knows.
    pub fn of(query: &Query, kind: &Kind) -> Result<Filter, Status> {
        let labels = Selector::parse(query.text("labelSelector")).map_err(Status::bad_request)?;
        let fields = FieldSelector::parse(query.text("fieldSelector")).map_err(Status::bad_request)?;
        for term in &fields.0 {
            let known = match term.field.as_str() {
                "metadata.name" => true,
                "metadata.namespace" => kind.names.namespaced || kind.names.group.is_empty(),
                field => kind.rules.selectable(&Value::Null, field).is_some(),
            };
            if !known {
                return Err(Status::bad_request(format!(
                    "field label not supported: {}, of kind {}",
                    term.field, kind.names.kind
                )));
            }
        }
        let moved = match query.text(MOVED) {
            "" => None,
            name => Some(index_of(kind, name)?),
        };
        Ok(Filter { labels, fields, moved })
    }

    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    /// What of this is said of objects of `kind` as they are stored, if some of it is not: a program that shows them in
    /// another version may give them other labels and fields, but the name that they have (`conversion`).
    pub fn before_conversion(&self, kind: &Kind) -> Option<Filter> {
        kind.rules.conversion()?;
        let of_place = |term: &FieldTerm| matches!(term.field.as_str(), "metadata.name" | "metadata.namespace");
        let fields = FieldSelector(self.fields.0.iter().filter(|term| of_place(term)).cloned().collect());
        let says_more = !self.labels.is_everything() || fields.0.len() < self.fields.0.len();
        says_more.then(|| Filter { labels: Selector::everything(), fields, moved: self.moved })
    }

    pub fn matches(&self, kind: &Kind, object: &Object) -> bool {
        if !self.labels.matches(object.labels()) {
            return false;
        }
        if self.fields.is_everything() {
            return true;
        }
        let mut decoded = None;
        self.fields.0.iter().all(|term| {
            let equal = match term.field.as_str() {
                "metadata.name" => object.name() == term.value,
                "metadata.namespace" => object.namespace() == term.value,
                field => {
                    let found = kind.rules.projected(object, field).or_else(|| {
                        let value = decoded.get_or_insert_with(|| object.value());
                        kind.rules.selectable(value, field)
                    });
                    found.is_some_and(|found| found == term.value)
                }
            };
            equal == term.equal
        })
    }
}

/// The smallest known part of the resource that holds everything that can match.
pub fn part_of(kind: &Kind, namespace: &str, filter: &Filter) -> Part {
    if let Some(name) = filter.fields.exact("metadata.name")
        && (!namespace.is_empty() || !kind.names.namespaced)
    {
        return Part::Named(Key::of(namespace, name));
    }
    let indexed = api::INDEXED_FIELDS.iter().filter(|(resource, _, _)| *resource == kind.resource).find_map(
        |(_, field, index)| {
            let value = filter.fields.exact(field).filter(|value| !value.is_empty())?;
            Some(Part::Indexed(index, value.into()))
        },
    );
    match indexed {
        Some(part) => part,
        None if namespace.is_empty() => filter.moved.map_or(Part::All, Part::Moved),
        None => Part::Namespace(namespace.into()),
    }
}

/// The objects of a part of `kind` that match.
pub fn matching<'a>(
    kind: &'a Kind,
    part: &Part,
    namespace: &'a str,
    filter: &'a Filter,
    view: &'a View,
) -> Vec<Object> {
    let inside =
        |object: &&Object| (namespace.is_empty() || object.namespace() == namespace) && filter.matches(kind, object);
    match part {
        Part::All | Part::Lives | Part::Moved(_) => view.list(kind.resource, "").filter(inside).cloned().collect(),
        Part::Namespace(namespace) => view.list(kind.resource, namespace).filter(inside).cloned().collect(),
        Part::Named(key) => {
            let (namespace, name) = key.0.split_once('/').unwrap_or(("", &key.0));
            view.one(kind.resource, namespace, name).filter(inside).into_iter().cloned().collect()
        }
        Part::Indexed(index, value) => view.by(kind.resource, index, value).filter(inside).cloned().collect(),
    }
}

/// One page of a list.
pub struct Page {
    pub revision: Revision,
    pub objects: Vec<Object>,
    /// Empty on the last page.
    pub next: String,
    pub remaining: Option<i64>,
}

/// Views at the revisions of lists that are read in pages: whole ones, and those of one resource that were read from the
/// store's history, because the list was begun at another server, or names a revision of the past.
#[derive(Default)]
pub struct Snapshots(Mutex<VecDeque<Snapshot>>);

struct Snapshot {
    of: Option<Resource>,
    view: View,
    kept: Time,
}

impl Snapshots {
    /// Keeps a view, of `resource` alone if one is named, and lets go of those that no list goes on with.
    pub fn keep(&self, resource: Option<Resource>, view: &View, now: Time) {
        let mut views = self.known();
        views.retain(|known| now.ms_since(known.kept) < LIST_MAX_MS);
        if views.iter().any(|known| known.view.at() == view.at() && (known.of.is_none() || known.of == resource)) {
            return;
        }
        if views.len() == SNAPSHOTS_MAX {
            views.pop_front();
        }
        views.push_back(Snapshot { of: resource, view: view.clone(), kept: now });
    }

    fn known(&self) -> MutexGuard<'_, VecDeque<Snapshot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn at(&self, resource: Resource, revision: Revision) -> Option<View> {
        let views = self.known();
        let fits = |of: Option<Resource>| of.is_none_or(|of| of == resource);
        views.iter().find(|known| known.view.at() == revision && fits(known.of)).map(|known| known.view.clone())
    }

    /// The revision of the past that a list of `resource` is about, if its view is not kept.
    pub fn missing(&self, resource: Resource, query: &Query, newest: Revision) -> Option<Revision> {
        let revision = match query.text("continue") {
            "" => match Wanted::of(query).ok()? {
                Wanted::Exactly(revision) => revision,
                _ => return None,
            },
            text => Token::decode(text).ok()?.revision,
        };
        let past = revision > Revision::ZERO && revision < newest;
        (past && self.at(resource, revision).is_none()).then_some(revision)
    }
}

struct Token {
    revision: Revision,
    /// When the list began, in whole seconds.
    began: Time,
    after: String,
    /// How many are left, where it is known.
    left: Option<i64>,
}

impl Token {
    fn encode(&self) -> String {
        let revision = i64::try_from(self.revision.0).unwrap_or(0);
        let mut token = json!({
            "v": "meta.k8s.io/v1", "rv": revision, "start": (&self.after), "began": (self.began.seconds()),
        });
        if let Some(left) = self.left {
            token.set(&["left"], left);
        }
        URL_SAFE_NO_PAD.encode(token.to_json())
    }

    fn decode(text: &str) -> Result<Token, Status> {
        let bad = || Status::bad_request("continue key is not valid: the token is not one of this server");
        let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|_| bad())?;
        let value = Value::parse(&bytes).map_err(|_| bad())?;
        let revision = value["rv"].as_int().and_then(|number| u64::try_from(number).ok()).ok_or_else(bad)?;
        let after = value["start"].as_str().ok_or_else(bad)?.to_owned();
        let left = value["left"].as_int().filter(|left| *left > 0);
        // One that does not say it began long ago.
        let began = Time::from_seconds(value["began"].as_int().unwrap_or(0));
        Ok(Token { revision: Revision(revision), began, after, left })
    }
}

/// Reads a continue token.
///
/// # Errors
/// When it is not one that this server gave.
pub fn check_token(text: &str) -> Result<(), Status> {
    Token::decode(text).map(|_| ())
}

/// What the query says about the revision of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Newest,
    AtLeast(Revision),
    Exactly(Revision),
}

impl Wanted {
    pub fn of(query: &Query) -> Result<Wanted, Status> {
        let version = query.text("resourceVersion");
        let rule = query.text("resourceVersionMatch");
        let invalid = |field: &str, value: &str, why: &str, forbidden: bool| {
            let mut errors = meta::Errors::default();
            let path = meta::Path::ROOT;
            if forbidden {
                errors.forbidden(&path.field(field), why);
            } else {
                errors.invalid_value(&path.field(field), value, why);
            }
            Status::invalid("meta.k8s.io", "ListOptions", "", &errors)
        };
        if !rule.is_empty() {
            if !query.text("continue").is_empty() {
                return Err(invalid(
                    "resourceVersionMatch",
                    rule,
                    "resourceVersionMatch is forbidden when continue is provided",
                    true,
                ));
            }
            if !matches!(rule, "Exact" | "NotOlderThan") {
                let mut errors = meta::Errors::default();
                let value = Value::from(rule);
                let at = meta::At { value: &value, path: meta::Path::ROOT.field("resourceVersionMatch") };
                errors.not_supported(&at, &["Exact", "NotOlderThan", ""]);
                return Err(Status::invalid("meta.k8s.io", "ListOptions", "", &errors));
            }
            if version.is_empty() && query.get("sendInitialEvents").is_none() {
                return Err(invalid(
                    "resourceVersionMatch",
                    rule,
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                    true,
                ));
            }
            if rule == "Exact" && version == "0" {
                return Err(invalid(
                    "resourceVersionMatch",
                    rule,
                    "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                    true,
                ));
            }
        }
        if version.is_empty() {
            return Ok(Wanted::Newest);
        }
        let number: u64 = version.parse().map_err(|_| {
            Status::bad_request(format!("invalid resource version: resourceVersion: Invalid value: {version:?}"))
        })?;
        Ok(match (rule, number) {
            ("Exact", number) => Wanted::Exactly(Revision(number)),
            (_, 0) => Wanted::Newest,
            (_, number) => Wanted::AtLeast(Revision(number)),
        })
    }
}

/// Reads one page. `view` is the newest state, as of `now`.
///
/// # Errors
/// Among others: the list began so long ago that its state counts as compacted; only that is told of in its token, since what
/// can still be read of the past differs between servers and stores.
pub fn page(
    kind: &Kind,
    namespace: &str,
    filter: &Filter,
    query: &Query,
    (view, now): (&View, Time),
    snapshots: &Snapshots,
) -> Result<Page, Status> {
    let limit = usize::try_from(query.number("limit")?.unwrap_or(0)).unwrap_or(0);
    let token = match query.text("continue") {
        "" => None,
        text => {
            if !matches!(query.text("resourceVersion"), "" | "0") {
                return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
            }
            Some(Token::decode(text)?)
        }
    };
    let wanted = Wanted::of(query)?;
    let view = match (&token, wanted) {
        (Some(token), _) => {
            if token.revision == Revision::ZERO {
                // The token of an expired list: go on from the key at the newest state.
                view.clone()
            } else if token.revision == view.at() {
                view.clone()
            } else if now.ms_since(token.began) >= LIST_MAX_MS {
                return Err(expired(&token.after));
            } else {
                snapshots.at(kind.resource, token.revision).ok_or_else(|| expired(&token.after))?
            }
        }
        (None, Wanted::Exactly(revision)) if revision != view.at() => {
            snapshots.at(kind.resource, revision).ok_or_else(|| {
                if revision > view.at() {
                    too_new(revision, view.at())
                } else {
                    Status::new(
                        Reason::Expired,
                        "The provided resource version is too old to display a consistent list result.",
                    )
                }
            })?
        }
        (None, Wanted::AtLeast(revision)) if revision > view.at() => return Err(too_new(revision, view.at())),
        _ => view.clone(),
    };
    let part = part_of(kind, namespace, filter);
    if matches!(part, Part::Named(_)) || limit == 0 && token.is_none() {
        let objects = matching(kind, &part, namespace, filter, &view);
        return Ok(Page { revision: view.at(), objects, next: String::new(), remaining: None });
    }
    let after = token.as_ref().map(|token| token.after.as_str());
    let mut objects = Vec::new();
    let mut last = String::new();
    let mut rest = view.list_from(kind.resource, namespace, after).filter(|(_, object)| filter.matches(kind, object));
    for (key, object) in rest.by_ref() {
        objects.push(object.clone());
        if limit > 0 && objects.len() == limit {
            last = key.0.to_string();
            break;
        }
    }
    if limit == 0 || objects.len() < limit {
        return Ok(Page { revision: view.at(), objects, next: String::new(), remaining: None });
    }
    let more = rest.next().is_some();
    if !more {
        return Ok(Page { revision: view.at(), objects, next: String::new(), remaining: None });
    }
    // With a selector the number left is not known without reading all, so upstream does not tell it. Later pages of the
    // same state subtract.
    let known = token.as_ref().filter(|token| token.revision == view.at()).and_then(|token| token.left);
    let remaining = filter.is_everything().then(|| match known {
        Some(left) => left - i64::try_from(objects.len()).unwrap_or(i64::MAX),
        None => 1 + i64::try_from(rest.count()).unwrap_or(i64::MAX - 1),
    });
    snapshots.keep(None, &view, now);
    // Whoever goes on at the newest state begins anew.
    let began = token.as_ref().filter(|token| token.revision == view.at()).map_or(now, |token| token.began);
    let next = Token { revision: view.at(), began, after: last, left: remaining }.encode();
    Ok(Page { revision: view.at(), objects, next, remaining })
}

/// 410, with a token that goes on at the newest state.
fn expired(after: &str) -> Status {
    let token = Token { revision: Revision::ZERO, began: Time(0), after: after.to_owned(), left: None }.encode();
    let message = "The provided continue parameter is too old to display a consistent list result. You can start a \
                   new list without the continue parameter, or use the continue token in this response to retrieve \
                   the remainder of the results.";
    let mut status = Status::new(Reason::Expired, message);
    status.0.continue_token = token;
    status
}

/// The client saw a newer state than this server has.
pub fn too_new(asked: Revision, current: Revision) -> Status {
    Status::new(Reason::Timeout, format!("Too large resource version: {asked}, current: {current}"))
        .caused("ResourceVersionTooLarge", "", "Too large resource version")
        .retry_after(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Entry;
    use meta::Facts;

    #[test]
    fn a_snapshot_is_not_kept_for_ever() {
        let (snapshots, mut cache) = (Snapshots::default(), cache::Cache::new(Vec::new()));
        let began = Time::from_seconds(1_800_000_000);
        snapshots.keep(None, &cache.view(), began);
        cache.advance(Revision(2));
        snapshots.keep(None, &cache.view(), began.plus_ms(LIST_MAX_MS - 1));
        assert_eq!(snapshots.known().len(), 2);
        cache.advance(Revision(3));
        snapshots.keep(None, &cache.view(), began.plus_ms(LIST_MAX_MS));
        assert_eq!(snapshots.known().len(), 2);
    }

    #[test]
    fn a_list_in_pages_ends_some_minutes_after_it_began() {
        let definition = json!({
            "metadata": {"name": "cats.a.b"},
            "spec": {
                "group": "a.b", "scope": "Namespaced", "names": {"plural": "cats", "kind": "Cat"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}],
            },
        });
        let facts = Facts::of(crate::definitions::DEFINITIONS, &definition);
        let entries = Entry::of(&Object::new(facts, definition.to_json()));
        let kind = entries[0].kind();
        let cat = |name: &str| {
            let cat = json!({"metadata": {"name": name, "namespace": "n"}});
            Object::new(Facts::of(kind.resource, &cat), cat.to_json())
        };
        let (snapshots, mut cache) = (Snapshots::default(), cache::Cache::new(Vec::new()));
        cache.load(Revision(1), ["a", "b", "c"].map(cat));
        let began = Time::from_seconds(1_800_000_000);
        let read = |cache: &cache::Cache, token: &str, now: Time| {
            let query = Query::parse(&format!("limit=1&continue={token}"));
            page(kind, "n", &Filter::default(), &query, (&cache.view(), now), &snapshots)
        };
        let first = read(&cache, "", began).unwrap();
        cache.advance(Revision(2));
        let second = read(&cache, &first.next, began.plus_ms(LIST_MAX_MS - 1000)).unwrap();
        assert_eq!((second.revision, second.objects[0].name()), (Revision(1), "b"));
        let late = began.plus_ms(LIST_MAX_MS);
        let why = read(&cache, &second.next, late).err().unwrap();
        assert_eq!(why.reason(), Reason::Expired, "as long after the list began, however late the last page came");
        let rest = read(&cache, &why.0.continue_token, late).unwrap();
        assert_eq!((rest.revision, rest.objects[0].name()), (Revision(2), "c"));
    }

    #[test]
    fn what_converted_objects_say_is_asked_when_they_are() {
        let version = |name: &str, storage: bool| {
            json!({
                "name": name, "served": true, "storage": storage, "selectableFields": [{"jsonPath": ".host"}],
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"host": {"type": "string"}}}},
            })
        };
        let kinds = |conversion: Value| {
            let definition = json!({
                "metadata": {"name": "cats.a.b"},
                "spec": {
                    "group": "a.b", "scope": "Namespaced", "names": {"plural": "cats", "kind": "Cat"},
                    "versions": [(version("v1", true)), (version("v2", false))], "conversion": conversion,
                },
            });
            let facts = Facts::of(crate::definitions::DEFINITIONS, &definition);
            Entry::of(&Object::new(facts, definition.to_json()))
        };
        let rough = |kind: &Kind, labels: &str, fields: &str| {
            let filter = Filter {
                labels: Selector::parse(labels).unwrap(),
                fields: FieldSelector::parse(fields).unwrap(),
                moved: None,
            };
            filter.before_conversion(kind).map(|rough| (rough.labels.is_everything(), rough.fields.0.len()))
        };
        let webhook = json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"]}});
        let asked = kinds(webhook);
        let kind = asked[1].kind();
        assert_eq!(rough(kind, "", ""), None);
        assert_eq!(rough(kind, "", "metadata.name=a"), None);
        assert_eq!(rough(kind, "", "metadata.name=a,host=b"), Some((true, 1)));
        assert_eq!(rough(kind, "a=b", ""), Some((true, 0)));
        let plain = kinds(json!({"strategy": "None"}));
        assert_eq!(rough(plain[1].kind(), "a=b", "host=b"), None);
    }
}
