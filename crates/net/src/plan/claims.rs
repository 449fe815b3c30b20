//! Who says what: several owners may say something about the same key (two Services with one external address), and the
//! last of them in order is heard. What an owner says replaces what it said before.

use std::collections::{BTreeMap, BTreeSet};

pub(super) struct Claims<K, V> {
    /// What each owner speaks of.
    of: BTreeMap<Owner, Vec<K>>,
    /// Who speaks of a key, in the order of owners; mostly one.
    by: BTreeMap<K, Vec<(Owner, V)>>,
}

pub(super) type Owner = cache::Key;

impl<K: Ord + Copy, V: PartialEq> Claims<K, V> {
    pub fn new() -> Claims<K, V> {
        Claims { of: BTreeMap::new(), by: BTreeMap::new() }
    }

    /// Takes all that `owner` says now, and notes the keys of which it says something else than before.
    pub fn say(&mut self, owner: &Owner, said: Vec<(K, V)>, changed: &mut BTreeSet<K>) {
        let said: BTreeMap<K, V> = said.into_iter().collect();
        let keys: Vec<K> = said.keys().copied().collect();
        let before = if keys.is_empty() { self.of.remove(owner) } else { self.of.insert(owner.clone(), keys) };
        for key in before.into_iter().flatten().filter(|key| !said.contains_key(key)) {
            let Some(voices) = self.by.get_mut(&key) else { continue };
            voices.retain(|(other, _)| other != owner);
            if voices.is_empty() {
                self.by.remove(&key);
            }
            changed.insert(key);
        }
        for (key, value) in said {
            let voices = self.by.entry(key).or_default();
            match voices.binary_search_by(|(other, _)| other.cmp(owner)) {
                Ok(at) if voices[at].1 == value => continue,
                Ok(at) => voices[at].1 = value,
                Err(at) => {
                    // Mostly there is no other; a vector that grows by itself makes room for four.
                    voices.reserve_exact(1);
                    voices.insert(at, (owner.clone(), value));
                }
            }
            changed.insert(key);
        }
    }

    /// What is heard about a key.
    pub fn heard(&self, key: &K) -> Option<&V> {
        self.by.get(key)?.last().map(|(_, value)| value)
    }

    /// All that is heard.
    pub fn all(&self) -> impl Iterator<Item = (&K, &V)> {
        self.by.iter().filter_map(|(key, voices)| voices.last().map(|(_, value)| (key, value)))
    }

    pub fn owners(&self) -> impl Iterator<Item = &Owner> {
        self.of.keys()
    }
}
