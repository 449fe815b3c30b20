//! Which resources are served: the built-in ones and those that definitions add at run time.
//!
//! A set of kinds never changes: a change makes another one, which shares all that stayed the same. So the cost of a
//! definition does not grow with how many there are. What it takes to serve the objects of a definition (types, rules,
//! columns) is made when somebody asks for one: most definitions of a cluster are never asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use base::Tree;
use meta::{Head, Kind, Object, Resource, Str};

use crate::aggregation::{Remote, Remotes};
use crate::subresource::openapi::Documents;

/// Who brought a kind: `""` those that are built in, else the definition's name; and its number among those.
type Place = (Str, usize);

/// A served kind: what discovery tells of it, and the rest, as soon as it is needed.
pub struct Entry {
    pub head: Head,
    /// The definition that it is made of; `None` for what was made already.
    definition: Option<Object>,
    kind: OnceLock<Arc<Kind>>,
}

impl Entry {
    fn made(kind: Arc<Kind>) -> Arc<Entry> {
        let Kind { names, resource, verbs, subresources, .. } = &*kind;
        let (names, verbs, subresources) = (names.clone(), verbs.clone(), subresources.clone());
        let head = Head { names, resource: *resource, verbs, subresources };
        Arc::new(Entry { head, definition: None, kind: kind.into() })
    }

    /// The entries of a definition's served versions, the stored one first.
    pub fn of(definition: &Object) -> Vec<Arc<Entry>> {
        let heads = api::custom::heads(&definition.value()).into_iter();
        let entry = |head| Entry { head, definition: Some(definition.clone()), kind: OnceLock::new() };
        heads.map(|head| Arc::new(entry(head))).collect()
    }

    /// All of it.
    pub fn kind(&self) -> &Arc<Kind> {
        self.kind.get_or_init(|| {
            let made = self
                .definition
                .as_ref()
                .and_then(|definition| api::custom::kind_of(&definition.value(), &self.head.names.version));
            Arc::new(made.expect("the head was read from a served version of the same definition"))
        })
    }
}

/// An immutable set of served kinds.
#[derive(Clone, Default)]
pub struct Registry {
    /// OpenAPI of these kinds.
    pub documents: Documents,
    /// By group, version and plural.
    by_path: Tree<(Str, Str, Str), Arc<Entry>>,
    /// By group and kind, in the order in which versions were added.
    by_kind: Tree<(Str, Str), Vec<Arc<Entry>>>,
    /// All, in discovery's order.
    kinds: Tree<Place, Arc<Entry>>,
    /// The kind whose version is the stored one.
    stored: Tree<Resource, Arc<Entry>>,
    /// Groups and versions that other servers answer, whether there are kinds of them here or not.
    pub remotes: Remotes,
}

impl Registry {
    pub fn new(kinds: impl IntoIterator<Item = Arc<Kind>>) -> Registry {
        let mut registry = Registry::default();
        registry.serve_made(kinds);
        registry
    }

    /// Serves these kinds besides those of definitions.
    pub fn serve_made(&mut self, kinds: impl IntoIterator<Item = Arc<Kind>>) {
        self.serve("", kinds.into_iter().map(Entry::made));
    }

    /// Serves `kinds` instead of those that `owner` had served. The first version of a resource is the stored one.
    pub fn serve(&mut self, owner: &str, kinds: impl IntoIterator<Item = Arc<Entry>>) {
        let had: Vec<Arc<Entry>> = self.of(owner).cloned().collect();
        for (at, kind) in had.iter().enumerate() {
            self.kinds.remove(&(Str::from(owner), at));
            self.forget(kind);
        }
        for (at, kind) in kinds.into_iter().enumerate() {
            self.add((owner.into(), at), kind);
        }
    }

    /// Who else answers a group and version.
    pub fn remote(&self, group: &str, version: &str) -> Option<&Arc<Remote>> {
        if self.remotes.is_empty() {
            return None;
        }
        self.remotes.get(&(group.into(), version.into()))
    }

    /// The groups and versions of definitions.
    pub fn of_definitions(&self) -> BTreeSet<(Str, Str)> {
        let added = self.kinds.iter().filter(|((owner, _), _)| !owner.is_empty());
        added.map(|(_, entry)| (entry.head.names.group.clone(), entry.head.names.version.clone())).collect()
    }

    /// The kinds that `owner` has served.
    pub fn of<'a>(&'a self, owner: &'a str) -> impl Iterator<Item = &'a Arc<Entry>> {
        let first = (Str::from(owner), 0);
        let from = self.kinds.from(std::ops::Bound::Included(&first));
        from.take_while(move |((other, _), _)| other == owner).map(|(_, kind)| kind)
    }

    fn add(&mut self, place: Place, kind: Arc<Entry>) {
        let names = &kind.head.names;
        self.documents.forget(&names.group, &names.version);
        self.by_path.insert((names.group.clone(), names.version.clone(), names.plural.clone()), kind.clone());
        let of_kind = (names.group.clone(), names.kind.clone());
        match self.by_kind.get_mut(&of_kind) {
            Some(versions) => versions.push(kind.clone()),
            None => drop(self.by_kind.insert(of_kind, vec![kind.clone()])),
        }
        if self.stored.get(&kind.head.resource).is_none() {
            self.stored.insert(kind.head.resource, kind.clone());
        }
        self.kinds.insert(place, kind);
    }

    fn forget(&mut self, kind: &Arc<Entry>) {
        let names = &kind.head.names;
        self.documents.forget(&names.group, &names.version);
        let path = (names.group.clone(), names.version.clone(), names.plural.clone());
        if self.by_path.get(&path).is_some_and(|served| Arc::ptr_eq(served, kind)) {
            self.by_path.remove(&path);
        }
        let of_kind = (names.group.clone(), names.kind.clone());
        if let Some(versions) = self.by_kind.get_mut(&of_kind) {
            versions.retain(|served| !Arc::ptr_eq(served, kind));
            if versions.is_empty() {
                self.by_kind.remove(&of_kind);
            }
        }
        if self.stored.get(&kind.head.resource).is_some_and(|served| Arc::ptr_eq(served, kind)) {
            self.stored.remove(&kind.head.resource);
        }
    }

    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Kind>> {
        self.by_path.get(&(group.into(), version.into(), plural.into())).map(|entry| entry.kind())
    }

    /// The kind of the version in which a resource is stored.
    pub fn stored(&self, resource: Resource) -> Option<&Arc<Kind>> {
        self.stored.get(&resource).map(|entry| entry.kind())
    }

    /// The kind by its own name, in any served version, the given one first.
    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Kind>> {
        let versions = self.by_kind.get(&(group.into(), kind.into()))?;
        let exact = versions.iter().find(|candidate| candidate.head.names.version == version);
        exact.or_else(|| versions.first()).map(|entry| entry.kind())
    }

    /// All, in discovery's order.
    pub fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.kinds.iter().map(|(_, entry)| entry)
    }

    /// The groups in discovery's order, each with its versions in order of preference.
    pub fn groups(&self) -> Vec<(Str, Vec<Str>)> {
        let mut groups: Vec<(Str, Vec<Str>)> = Vec::new();
        let mut at: BTreeMap<&Str, usize> = BTreeMap::new();
        for entry in self.entries() {
            let (group, version) = (&entry.head.names.group, &entry.head.names.version);
            let place = *at.entry(group).or_insert_with(|| {
                groups.push((group.clone(), Vec::new()));
                groups.len() - 1
            });
            let versions = &mut groups[place].1;
            if !versions.contains(version) {
                versions.push(version.clone());
            }
        }
        groups
    }

    /// Whether anything is served in a group, in this version unless it is the core group.
    pub fn has(&self, group: &str, version: &str) -> bool {
        let first = (Str::from(group), Str::from(if group.is_empty() { "" } else { version }), Str::default());
        let found = self.by_path.from(std::ops::Bound::Included(&first)).next();
        found.is_some_and(|((of, at, _), _)| of == group && (group.is_empty() || at == version))
    }

    /// The kinds of one group and version, by plural.
    pub fn in_version(&self, group: &str, version: &str) -> Vec<&Arc<Entry>> {
        let first = (Str::from(group), Str::from(version), Str::default());
        let from = self.by_path.from(std::ops::Bound::Included(&first));
        from.take_while(|((of, at, _), _)| of == group && at == version).map(|(_, kind)| kind).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::json;

    fn made(plural: &str, kind: &str) -> Vec<Arc<Entry>> {
        let version = |name: &str, storage: bool| json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": {"type": "object"}}});
        let definition = json!({
            "metadata": {"name": (format!("{plural}.a.b"))},
            "spec": {
                "group": "a.b", "scope": "Namespaced", "names": {"plural": plural, "kind": kind},
                "versions": [(version("v1", false)), (version("v2", true))],
            },
        });
        let facts = meta::Facts::of(crate::definitions::DEFINITIONS, &definition);
        Entry::of(&Object::new(facts, definition.to_json()))
    }

    #[test]
    fn kinds_come_and_go_and_leave_what_was_there() {
        let built_in: Vec<Arc<Kind>> = api::kinds::kinds().into_iter().map(Arc::new).collect();
        let before = Registry::new(built_in.iter().cloned());
        let mut registry = before.clone();
        registry.serve("cats.a.b", made("cats", "Cat"));
        registry.serve("dogs.a.b", made("dogs", "Dog"));
        assert_eq!(registry.entries().count(), built_in.len() + 4);
        let compiled = |registry: &Registry| registry.of("cats.a.b").filter(|entry| entry.kind.get().is_some()).count();
        assert_eq!(compiled(&registry), 0, "nobody has asked for it yet");
        let cats = Resource::intern("cats.a.b");
        assert_eq!(registry.stored(cats).unwrap().names.version, "v2");
        assert_eq!(compiled(&registry), 1);
        assert_eq!(registry.by_kind("a.b", "v1", "Cat").unwrap().names.version, "v1");
        assert_eq!(registry.by_kind("a.b", "v9", "Cat").unwrap().names.version, "v2");
        assert_eq!(registry.groups().last().unwrap(), &("a.b".into(), vec!["v2".into(), "v1".into()]));
        assert_eq!(registry.in_version("a.b", "v1").len(), 2);
        assert!(registry.has("a.b", "v1") && !registry.has("a.b", "v3") && registry.has("", "anything"));
        // Another set for the same owner stands instead of the first.
        registry.serve("cats.a.b", made("cats", "Cat").into_iter().take(1));
        assert!(registry.find("a.b", "v1", "cats").is_none() && registry.find("a.b", "v2", "cats").is_some());
        for owner in ["cats.a.b", "dogs.a.b"] {
            registry.serve(owner, []);
        }
        assert!(registry.stored(cats).is_none() && registry.by_kind("a.b", "v2", "Cat").is_none());
        let names = |registry: &Registry| registry.entries().map(|entry| entry.head.resource).collect::<Vec<_>>();
        assert_eq!(names(&registry), names(&before));
        assert_eq!(registry.groups(), before.groups());
    }
}
