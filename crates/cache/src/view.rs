//! Immutable views and the shelves they are made of.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use base::{Finder, Revision, Tree};
use ecow::EcoString;
use meta::{Object, Resource, Str};

use crate::Index;

/// `namespace/name`, or `name` for cluster-scoped objects: the order in which lists are paged. Its text is shared by
/// clones: a change of a tree copies the keys that stand beside it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub EcoString);

impl Key {
    pub fn of(namespace: &str, name: &str) -> Key {
        if namespace.is_empty() {
            return Key(name.into());
        }
        let mut key = EcoString::with_capacity(namespace.len() + 1 + name.len());
        key.push_str(namespace);
        key.push('/');
        key.push_str(name);
        Key(key)
    }
}

impl Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The objects of one resource.
#[derive(Clone, Default)]
pub(crate) struct Shelf {
    objects: Tree<Key, Object>,
    /// By index name; entries are `value NUL key`. They stay as they are when an object changes that is filed where it was.
    indexes: Vec<(&'static str, Tree<EcoString, ()>)>,
}

/// The objects that a view shows of some resources: what was found out of them holds for every view that shows the same.
#[derive(Clone, Default)]
pub struct Shown(Vec<Option<Arc<Shelf>>>);

/// Objects by key, ascending.
pub type Entries<'a> = Vec<(&'a Key, &'a Object)>;

/// All objects at one revision. Cheap to clone.
#[derive(Clone)]
pub struct View {
    at: Revision,
    /// Up to where resources are known that have feeds of their own.
    known: Arc<BTreeMap<Resource, Revision>>,
    /// A tree, too: who holds a view must not make the next change copy all shelves.
    shelves: Tree<Resource, Arc<Shelf>>,
    /// Over all resources, as an index is kept: `owner uid NUL resource NUL key`.
    owned: Tree<EcoString, Resource>,
}

impl View {
    pub fn empty() -> View {
        View { at: Revision::ZERO, known: Arc::default(), shelves: Tree::new(), owned: Tree::new() }
    }

    /// The revision that the view shows. In a cache with several [`Source`](crate::Source)s it is a place in the order
    /// of arrival, good for cursors; what is shown of a resource is then told by [`View::knows`].
    pub fn at(&self) -> Revision {
        self.at
    }

    /// The revision up to which this view shows `resource`.
    pub fn knows(&self, resource: Resource) -> Revision {
        self.known.get(&resource).copied().unwrap_or(self.at)
    }

    /// One object; `namespace` is `""` for cluster-scoped resources.
    pub fn one(&self, resource: Resource, namespace: &str, name: &str) -> Option<&Object> {
        self.shelves.get(&resource)?.objects.get(Key::of(namespace, name).0.as_str())
    }

    /// The objects of `namespace`, or all when it is `""`, by key.
    pub fn list<'a>(&'a self, resource: Resource, namespace: &str) -> impl Iterator<Item = &'a Object> + use<'a> {
        self.list_from(resource, namespace, None).map(|(_, object)| object)
    }

    /// Like [`View::list`], beginning after the key `after`.
    pub fn list_from<'a>(
        &'a self,
        resource: Resource,
        namespace: &str,
        after: Option<&str>,
    ) -> impl Iterator<Item = (&'a Key, &'a Object)> + use<'a> {
        let prefix = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
        let start = match after {
            Some(key) if key >= prefix.as_str() => Bound::Excluded(key),
            _ => Bound::Included(prefix.as_str()),
        };
        let range = self.shelves.get(&resource).map(|shelf| shelf.objects.from::<str>(start));
        range.into_iter().flatten().take_while(move |(key, _)| key.0.starts_with(&prefix))
    }

    /// How many objects of a resource there are, in all namespaces.
    pub fn count(&self, resource: Resource) -> usize {
        self.shelves.get(&resource).map_or(0, |shelf| shelf.objects.len())
    }

    /// The objects that the index `name` files under `value`.
    pub fn by<'a>(&'a self, resource: Resource, name: &str, value: &str) -> impl Iterator<Item = &'a Object> + use<'a> {
        let shelf = self.shelves.get(&resource);
        let index = shelf.and_then(|shelf| shelf.indexes.iter().find(|(index, _)| *index == name));
        let mut finder = shelf.map(|shelf| shelf.objects.finder());
        let filed = filed(index.map(|(_, tree)| tree), format!("{value}\0"));
        filed.filter_map(move |(key, ())| finder.as_mut()?.get(key))
    }

    /// Everything, of any resource, that names `uid` as one of its owners.
    pub fn owned_by<'a>(&'a self, uid: &str) -> impl Iterator<Item = &'a Object> + use<'a> {
        self.find_owned(format!("{uid}\0"))
    }

    /// The objects of `resource` that name `uid` as one of their owners.
    pub fn owned<'a>(&'a self, resource: Resource, uid: &str) -> impl Iterator<Item = &'a Object> + use<'a> {
        self.find_owned(format!("{uid}\0{resource}\0"))
    }

    fn find_owned<'a>(&'a self, prefix: String) -> impl Iterator<Item = &'a Object> + use<'a> {
        let mut finder: Option<(Resource, Finder<'a, Key, Object>)> = None;
        filed(Some(&self.owned), prefix).filter_map(move |(entry, resource)| {
            let key = entry.rsplit('\0').next().unwrap_or_default();
            if finder.as_ref().is_none_or(|(known, _)| known != resource) {
                finder = Some((*resource, self.shelves.get(resource)?.objects.finder()));
            }
            finder.as_mut()?.1.get(key)
        })
    }

    /// The resources that have had objects.
    pub fn resources(&self) -> impl Iterator<Item = Resource> + '_ {
        self.shelves.iter().map(|(resource, _)| *resource)
    }

    /// The resources of which objects were put or taken out between `before`, a view of the same cache, and this one.
    pub fn moved(&self, before: &View) -> Vec<Resource> {
        let (now, then) = self.shelves.unshared(&before.shelves);
        let mut then = then.into_iter().peekable();
        let mut moved = Vec::new();
        for (resource, shelf) in now {
            while then.next_if(|(other, _)| other < resource).is_some() {}
            let known = then.next_if(|(other, _)| other == resource);
            if known.is_none_or(|(_, other)| !Arc::ptr_eq(shelf, other)) {
                moved.push(*resource);
            }
        }
        moved
    }

    /// The objects of `resource` here, and those in `before`, that are not known to be in both: all differences, and some
    /// that are equal. Cheap between two views of the same cache.
    pub fn unshared<'a>(&'a self, before: &'a View, resource: Resource) -> (Entries<'a>, Entries<'a>) {
        let pairs = |all: Vec<&'a (Key, Object)>| all.into_iter().map(|(key, object)| (key, object)).collect();
        match (self.shelves.get(&resource), before.shelves.get(&resource)) {
            (Some(now), Some(then)) => {
                let (now, then) = now.objects.unshared(&then.objects);
                (pairs(now), pairs(then))
            }
            _ => (self.list_from(resource, "", None).collect(), before.list_from(resource, "", None).collect()),
        }
    }

    /// What is shown of `resources`.
    pub fn shown(&self, resources: &[Resource]) -> Shown {
        Shown(resources.iter().map(|resource| self.shelves.get(resource).cloned()).collect())
    }

    /// Whether this view shows the same of `resources` as the one that `shown` is of. That it does may go unnoticed.
    pub fn shows(&self, shown: &Shown, resources: &[Resource]) -> bool {
        let same = |(known, resource): (&Option<Arc<Shelf>>, &Resource)| match (known, self.shelves.get(resource)) {
            (Some(known), Some(now)) => Arc::ptr_eq(known, now),
            (known, now) => known.is_none() && now.is_none(),
        };
        shown.0.len() == resources.len() && shown.0.iter().zip(resources).all(same)
    }

    pub(crate) fn note_known(&mut self, resource: Resource, known: Option<Revision>) {
        if self.known.get(&resource).copied() == known {
            return;
        }
        let all = Arc::make_mut(&mut self.known);
        match known {
            Some(known) => all.insert(resource, known),
            None => all.remove(&resource),
        };
    }

    pub(crate) fn advance(&mut self, revision: Revision) {
        self.at = revision;
    }

    /// Puts or takes out one object, with its index entries; returns what was there.
    pub(crate) fn put(
        &mut self,
        resource: Resource,
        namespace: &str,
        name: &str,
        new: Option<Object>,
        indexes: &[Index],
    ) -> Option<Object> {
        let key = Key::of(namespace, name);
        if self.shelves.get(&resource).is_none() {
            self.shelves.insert(resource, Arc::default());
        }
        let shelf = Arc::make_mut(self.shelves.get_mut(&resource)?);
        let old = match &new {
            Some(object) => shelf.objects.insert(key.clone(), object.clone()),
            None => shelf.objects.remove(key.0.as_str()),
        };
        for index in indexes.iter().filter(|index| index.resource == resource) {
            let values_of = |object: &Option<Object>| {
                let mut values = Vec::new();
                object.iter().for_each(|object| (index.of)(object, &mut values));
                values
            };
            let (before, after) = (values_of(&old), values_of(&new));
            if before == after {
                continue;
            }
            let at = shelf.indexes.iter().position(|(name, _)| *name == index.name).unwrap_or_else(|| {
                shelf.indexes.push((index.name, Tree::new()));
                shelf.indexes.len() - 1
            });
            let entries = |values: Vec<Str>| values.iter().map(|value| joined(&[value, &key.0])).collect();
            file(&mut shelf.indexes[at].1, entries(before), entries(after), ());
        }
        let owners_of = |object: &'_ Option<Object>| {
            let owners = object.as_ref().map_or(&[][..], |object| &object.facts().owners);
            owners.iter().map(|owner| owner.uid.clone()).collect::<Vec<Str>>()
        };
        let (before, after) = (owners_of(&old), owners_of(&new));
        if before != after {
            let entries = |owners: Vec<Str>| owners.iter().map(|uid| joined(&[uid, resource.0, &key.0])).collect();
            file(&mut self.owned, entries(before), entries(after), resource);
        }
        old
    }
}

fn file<V: Clone>(tree: &mut Tree<EcoString, V>, before: Vec<EcoString>, after: Vec<EcoString>, value: V) {
    for entry in before.iter().filter(|entry| !after.contains(entry)) {
        tree.remove(entry);
    }
    for entry in after.into_iter().filter(|entry| !before.contains(entry)) {
        tree.insert(entry, value.clone());
    }
}

fn joined(parts: &[&str]) -> EcoString {
    let mut text = EcoString::with_capacity(parts.iter().map(|part| part.len() + 1).sum());
    for (at, part) in parts.iter().enumerate() {
        if at > 0 {
            text.push('\0');
        }
        text.push_str(part);
    }
    text
}

/// The entries of an index that begin with a prefix, without it.
fn filed<'a, V: Clone>(
    tree: Option<&'a Tree<EcoString, V>>,
    prefix: String,
) -> impl Iterator<Item = (&'a str, &'a V)> + use<'a, V> {
    let range = tree.map(|tree| tree.from::<str>(Bound::Included(&prefix)));
    range.into_iter().flatten().map_while(move |(entry, value)| Some((entry.strip_prefix(prefix.as_str())?, value)))
}
