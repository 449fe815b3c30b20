//! Which resources are served: the built-in ones and those that definitions add at run time.

use std::collections::BTreeMap;
use std::sync::Arc;

use meta::{Kind, Resource, Str};

use crate::subresource::openapi::Documents;

/// An immutable set of served kinds. Replaced as a whole when a definition changes.
#[derive(Default)]
pub struct Registry {
    /// OpenAPI of these kinds.
    pub documents: Documents,
    /// By group, version and plural.
    by_path: BTreeMap<(Str, Str, Str), Arc<Kind>>,
    /// All, in discovery's order.
    kinds: Vec<Arc<Kind>>,
    /// The kind whose version is the stored one.
    stored: BTreeMap<Resource, Arc<Kind>>,
}

impl Registry {
    pub fn new(kinds: impl IntoIterator<Item = Arc<Kind>>) -> Registry {
        let mut registry = Registry::default();
        for kind in kinds {
            registry.add(kind);
        }
        registry
    }

    /// Adds a kind. The first version of a resource that is added is the stored one.
    pub fn add(&mut self, kind: Arc<Kind>) {
        let names = &kind.names;
        let path = (names.group.clone(), names.version.clone(), names.plural.clone());
        if self.by_path.insert(path, kind.clone()).is_none() {
            self.kinds.push(kind.clone());
        }
        self.stored.entry(kind.resource).or_insert(kind);
    }

    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Kind>> {
        self.by_path.get(&(group.into(), version.into(), plural.into()))
    }

    /// The kind of the version in which a resource is stored.
    pub fn stored(&self, resource: Resource) -> Option<&Arc<Kind>> {
        self.stored.get(&resource)
    }

    /// The kind by its own name, in any served version, the given one first.
    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Kind>> {
        let same = |candidate: &&Arc<Kind>| candidate.names.group == group && candidate.names.kind == kind;
        self.kinds
            .iter()
            .find(|candidate| same(candidate) && candidate.names.version == version)
            .or_else(|| self.kinds.iter().find(same))
    }

    pub fn kinds(&self) -> &[Arc<Kind>] {
        &self.kinds
    }

    /// Every resource that is stored, once.
    pub fn resources(&self) -> impl Iterator<Item = (Resource, &Arc<Kind>)> {
        self.stored.iter().map(|(resource, kind)| (*resource, kind))
    }

    /// The groups in discovery's order, each with its versions in order of preference.
    pub fn groups(&self) -> Vec<(Str, Vec<Str>)> {
        let mut groups: Vec<(Str, Vec<Str>)> = Vec::new();
        for kind in &self.kinds {
            let (group, version) = (&kind.names.group, &kind.names.version);
            match groups.iter_mut().find(|(name, _)| name == group) {
                Some((_, versions)) => {
                    if !versions.contains(version) {
                        versions.push(version.clone());
                    }
                }
                None => groups.push((group.clone(), vec![version.clone()])),
            }
        }
        groups
    }
}
