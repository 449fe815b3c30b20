//! Pods for which room is being made: each waits for one node, whose room no pod of lower priority may take meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;

use meta::Str;

use crate::class::Class;

#[derive(Default)]
pub struct Nominated {
    of_pod: BTreeMap<Str, usize>,
    /// In the order of their coming.
    at_place: BTreeMap<usize, Vec<(Str, Arc<Class>)>>,
}

impl Nominated {
    /// The pod waits for the node at `place`, and for no other any more.
    pub fn insert(&mut self, key: &Str, place: usize, class: &Arc<Class>) {
        self.remove(key);
        self.of_pod.insert(key.clone(), place);
        self.at_place.entry(place).or_default().push((key.clone(), class.clone()));
    }

    pub fn remove(&mut self, key: &Str) {
        let Some(place) = self.of_pod.remove(key) else { return };
        if let Some(pods) = self.at_place.get_mut(&place) {
            pods.retain(|(known, _)| known != key);
            if pods.is_empty() {
                self.at_place.remove(&place);
            }
        }
    }

    /// The node is gone: those who waited for it wait for nothing.
    pub fn vacate(&mut self, place: usize) {
        for (key, _) in self.at_place.remove(&place).unwrap_or_default() {
            self.of_pod.remove(&key);
        }
    }

    pub fn place_of(&self, key: &str) -> Option<usize> {
        self.of_pod.get(key).copied()
    }

    /// Whether nobody waits for any node.
    pub fn is_empty(&self) -> bool {
        self.of_pod.is_empty()
    }

    pub fn places(&self) -> impl Iterator<Item = usize> {
        self.at_place.keys().copied()
    }

    /// Those who wait for a node and whose room the pod named `pod`, of `class`, must leave alone. Of its equals these are the
    /// ones who came before it: two who left room to each other would both go without.
    pub fn before(&self, place: usize, class: &Class, pod: &str) -> impl Iterator<Item = &(Str, Arc<Class>)> {
        let all = self.at_place.get(&place).map_or(&[][..], Vec::as_slice);
        let own = all.iter().position(|(key, _)| **key == *pod).unwrap_or(all.len());
        let priority = class.priority;
        let goes_first = move |(at, (_, other)): &(usize, &(Str, Arc<Class>))| {
            *at != own && (other.priority > priority || other.priority == priority && *at < own)
        };
        all.iter().enumerate().filter(goes_first).map(|(_, other)| other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_waits_for_one_node() {
        let (mut nominated, class) = (Nominated::default(), Arc::new(Class::default()));
        let (first, second) = (Str::from("a"), Str::from("b"));
        nominated.insert(&first, 1, &class);
        nominated.insert(&second, 1, &class);
        nominated.insert(&first, 2, &class);
        let names = |nominated: &Nominated, place: usize, except: &str| -> Vec<String> {
            nominated.before(place, &class, except).map(|(key, _)| key.to_string()).collect()
        };
        assert_eq!(names(&nominated, 1, ""), ["b"]);
        assert_eq!(names(&nominated, 2, "a"), Vec::<String>::new());
        nominated.insert(&first, 1, &class);
        assert_eq!((names(&nominated, 1, "a"), names(&nominated, 1, "b")), (vec!["b".to_owned()], vec![]));
        assert_eq!(names(&nominated, 1, "c"), ["b", "a"]);
        nominated.insert(&first, 2, &class);
        nominated.vacate(2);
        assert_eq!((nominated.place_of("a"), nominated.places().collect::<Vec<_>>()), (None, vec![1]));
        nominated.remove(&second);
        assert_eq!(nominated.places().count(), 0);
    }
}
