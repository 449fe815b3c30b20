//! An ordered map with cheap snapshots: a copy-on-write B-tree.
//!
//! Why our own: the store and the cache hand out immutable views at every revision, while writers go on. A clone is one
//! reference count; a write copies only the nodes on its path, and none at all while no snapshot shares them.
//!
//! Invariants: keys ascend; all leaves have the same depth; no node but the root is empty, and none holds more than
//! [`MAX`] entries. Nodes are not merged before they are empty: removals come with later inserts in the same ranges.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::ops::Bound;
use std::sync::Arc;

/// Entries in a node before it is split.
const MAX: usize = 32;

#[derive(Clone)]
enum Node<K, V> {
    Leaf(Vec<(K, V)>),
    /// The first key below each child, and the child.
    Branch(Vec<(K, Arc<Node<K, V>>)>),
}

/// The map. `Clone` is O(1) and gives an independent map.
pub struct Tree<K, V> {
    root: Arc<Node<K, V>>,
    len: usize,
}

impl<K, V> Clone for Tree<K, V> {
    fn clone(&self) -> Self {
        Tree { root: self.root.clone(), len: self.len }
    }
}

impl<K: Ord + Clone, V: Clone> Default for Tree<K, V> {
    fn default() -> Self {
        Tree { root: Arc::new(Node::Leaf(Vec::new())), len: 0 }
    }
}

impl<K: Ord + Clone, V: Clone> Tree<K, V> {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        find(self.leaf_of(key), key)
    }

    /// Looks keys up one after another; ascending ones mostly where the last one stood.
    pub fn finder(&self) -> Finder<'_, K, V> {
        Finder { tree: self, leaf: &[] }
    }

    /// The entries of the leaf where `key` stands, if it is there.
    fn leaf_of<Q: Ord + ?Sized>(&self, key: &Q) -> &[(K, V)]
    where
        K: Borrow<Q>,
    {
        let mut node = &self.root;
        loop {
            match &**node {
                Node::Leaf(entries) => return entries,
                Node::Branch(children) => node = &children[child_of(children, key)].1,
            }
        }
    }

    /// The value to be changed in place.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let mut node = Arc::make_mut(&mut self.root);
        loop {
            match node {
                Node::Leaf(entries) => {
                    let at = entries.binary_search_by(|(k, _)| k.borrow().cmp(key)).ok()?;
                    return Some(&mut entries[at].1);
                }
                Node::Branch(children) => {
                    let at = child_of(children, key);
                    node = Arc::make_mut(&mut children[at].1);
                }
            }
        }
    }

    /// Puts `value` at `key` and returns what was there.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let (old, split) = insert(Arc::make_mut(&mut self.root), key, value);
        if let Some(right) = split {
            let left = std::mem::replace(&mut self.root, Arc::new(Node::Leaf(Vec::new())));
            self.root = Arc::new(Node::Branch(vec![(first_key(&left), left), (first_key(&right), right)]));
        }
        self.len += usize::from(old.is_none());
        old
    }

    /// Takes `key` out and returns what was there.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.get(key)?;
        let old = remove(Arc::make_mut(&mut self.root), key);
        while let Node::Branch(children) = &*self.root {
            match children.len() {
                0 => self.root = Arc::new(Node::Leaf(Vec::new())),
                1 => self.root = children[0].1.clone(),
                _ => break,
            }
        }
        self.len -= usize::from(old.is_some());
        old
    }

    /// The entries in ascending order of keys.
    pub fn iter(&self) -> Range<'_, K, V> {
        let mut range = Range { stack: Vec::new(), leaf: [].iter() };
        range.descend_first(&self.root);
        range
    }

    /// The entries from `start` on, ascending.
    pub fn from<Q: Ord + ?Sized>(&self, start: Bound<&Q>) -> Range<'_, K, V>
    where
        K: Borrow<Q>,
    {
        let (Bound::Included(key) | Bound::Excluded(key)) = start else { return self.iter() };
        let mut range = Range { stack: Vec::new(), leaf: [].iter() };
        let mut node = &self.root;
        loop {
            match &**node {
                Node::Branch(children) => {
                    let at = child_of(children, key);
                    range.stack.push(children[at + 1..].iter());
                    node = &children[at].1;
                }
                Node::Leaf(entries) => {
                    let at = match (entries.binary_search_by(|(k, _)| k.borrow().cmp(key)), start) {
                        (Ok(at), Bound::Excluded(_)) => at + 1,
                        (Ok(at) | Err(at), _) => at,
                    };
                    range.leaf = entries[at..].iter();
                    return range;
                }
            }
        }
    }
}

impl<K, V> Tree<K, V> {
    /// Whether this is the very same map as `other`: no change lies between them.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.root, &other.root)
    }
}

impl<K: Ord, V> Tree<K, V> {
    /// The entries of this map, and those of `other`, that are not known to be in both because the two share the node:
    /// all differences between the two maps, and some entries that happen to be equal. Both ascend. Costs what the two do
    /// not share.
    pub fn unshared<'a>(&'a self, other: &'a Self) -> (Entries<'a, K, V>, Entries<'a, K, V>) {
        let (mut own, mut others) = (Nodes(vec![&self.root]), Nodes(vec![&other.root]));
        let (mut new, mut old) = (Vec::new(), Vec::new());
        loop {
            let (one, two) = match (own.0.last().copied(), others.0.last().copied()) {
                (None, None) => return (new, old),
                (Some(_), None) => {
                    own.step(&mut new);
                    continue;
                }
                (None, Some(_)) => {
                    others.step(&mut old);
                    continue;
                }
                (Some(one), Some(two)) => (one, two),
            };
            if Arc::ptr_eq(one, two) {
                own.0.pop();
                others.0.pop();
                continue;
            }
            // A node that both share begins with the same key, which is not below that of any node it lies in: whatever
            // begins first is not met again on the other side, and of two that begin together the higher may hold the
            // lower one.
            match (lowest(one).cmp(&lowest(two)), &**one, &**two) {
                (Ordering::Less, ..) | (Ordering::Equal, Node::Branch(_), Node::Leaf(_)) => own.step(&mut new),
                (Ordering::Greater, ..) | (Ordering::Equal, Node::Leaf(_), Node::Branch(_)) => others.step(&mut old),
                (Ordering::Equal, ..) => {
                    own.step(&mut new);
                    others.step(&mut old);
                }
            }
        }
    }
}

/// Nodes that are yet to be looked at, the first one last.
struct Nodes<'a, K, V>(Vec<&'a Arc<Node<K, V>>>);

impl<'a, K, V> Nodes<'a, K, V> {
    /// Puts a branch's children in its place, or tells a leaf's entries.
    fn step(&mut self, told: &mut Entries<'a, K, V>) {
        match self.0.pop().map(|node| &**node) {
            Some(Node::Branch(children)) => self.0.extend(children.iter().rev().map(|(_, child)| child)),
            Some(Node::Leaf(entries)) => told.extend(entries),
            None => {}
        }
    }
}

/// A key that none below the node is less than; `None` where there is none.
fn lowest<K, V>(node: &Node<K, V>) -> Option<&K> {
    match node {
        Node::Leaf(entries) => entries.first().map(|(key, _)| key),
        Node::Branch(children) => children.first().map(|(key, _)| key),
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for Tree<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut tree = Tree::default();
        for (key, value) in entries {
            tree.insert(key, value);
        }
        tree
    }
}

/// Looks up one key after another in a [`Tree`].
pub struct Finder<'a, K, V> {
    tree: &'a Tree<K, V>,
    leaf: &'a [(K, V)],
}

impl<'a, K: Ord + Clone, V: Clone> Finder<'a, K, V> {
    pub fn get<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&'a V>
    where
        K: Borrow<Q>,
    {
        let is_here = match self.leaf {
            [] => false,
            [(first, _), .., (last, _)] => first.borrow() <= key && key <= last.borrow(),
            [(only, _)] => only.borrow() == key,
        };
        if !is_here {
            self.leaf = self.tree.leaf_of(key);
        }
        find(self.leaf, key)
    }
}

fn find<'a, K: Borrow<Q>, V, Q: Ord + ?Sized>(leaf: &'a [(K, V)], key: &Q) -> Option<&'a V> {
    leaf.binary_search_by(|(known, _)| known.borrow().cmp(key)).ok().map(|at| &leaf[at].1)
}

type Children<'a, K, V> = std::slice::Iter<'a, (K, Arc<Node<K, V>>)>;

/// Some entries of a [`Tree`].
pub type Entries<'a, K, V> = Vec<&'a (K, V)>;

/// Entries of a [`Tree`] in ascending order.
pub struct Range<'a, K, V> {
    stack: Vec<Children<'a, K, V>>,
    leaf: std::slice::Iter<'a, (K, V)>,
}

impl<'a, K, V> Range<'a, K, V> {
    fn descend_first(&mut self, mut node: &'a Arc<Node<K, V>>) {
        loop {
            match &**node {
                Node::Leaf(entries) => {
                    self.leaf = entries.iter();
                    return;
                }
                Node::Branch(children) => {
                    let mut rest = children.iter();
                    let Some((_, first)) = rest.next() else { return };
                    self.stack.push(rest);
                    node = first;
                }
            }
        }
    }
}

impl<'a, K, V> Iterator for Range<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.leaf.next() {
                return Some((key, value));
            }
            let (_, next) = loop {
                match self.stack.last_mut()?.next() {
                    Some(child) => break child,
                    None => self.stack.pop(),
                };
            };
            self.descend_first(next);
        }
    }
}

fn child_of<K: Ord + Borrow<Q>, V, Q: Ord + ?Sized>(children: &[(K, Arc<Node<K, V>>)], key: &Q) -> usize {
    children.partition_point(|(first, _)| first.borrow() <= key).saturating_sub(1)
}

fn first_key<K: Clone, V>(node: &Node<K, V>) -> K {
    match node {
        Node::Leaf(entries) => entries[0].0.clone(),
        Node::Branch(children) => children[0].0.clone(),
    }
}

type Split<K, V> = Option<Arc<Node<K, V>>>;

fn insert<K: Ord + Clone, V: Clone>(node: &mut Node<K, V>, key: K, value: V) -> (Option<V>, Split<K, V>) {
    match node {
        Node::Leaf(entries) => match entries.binary_search_by(|(k, _)| k.cmp(&key)) {
            Ok(at) => (Some(std::mem::replace(&mut entries[at].1, value)), None),
            Err(at) => {
                entries.insert(at, (key, value));
                (None, split(entries, at).map(|right| Arc::new(Node::Leaf(right))))
            }
        },
        Node::Branch(children) => {
            let at = child_of(children, &key);
            if key < children[at].0 {
                children[at].0 = key.clone();
            }
            let (old, right) = insert(Arc::make_mut(&mut children[at].1), key, value);
            let Some(right) = right else { return (old, None) };
            children.insert(at + 1, (first_key(&right), right));
            (old, split(children, at + 1).map(|right| Arc::new(Node::Branch(right))))
        }
    }
}

/// The right part of an overfull node. Keys mostly arrive in ascending order, so a split at the end keeps the left full.
fn split<T>(entries: &mut Vec<T>, inserted_at: usize) -> Option<Vec<T>> {
    if entries.len() <= MAX {
        return None;
    }
    let at = if inserted_at + 1 == entries.len() { entries.len() - 1 } else { entries.len() / 2 };
    Some(entries.split_off(at))
}

fn remove<K: Ord + Clone + Borrow<Q>, V: Clone, Q: Ord + ?Sized>(node: &mut Node<K, V>, key: &Q) -> Option<V> {
    match node {
        Node::Leaf(entries) => {
            let at = entries.binary_search_by(|(k, _)| k.borrow().cmp(key)).ok()?;
            Some(entries.remove(at).1)
        }
        Node::Branch(children) => {
            let at = child_of(children, key);
            let old = remove(Arc::make_mut(&mut children[at].1), key);
            let empty = match &*children[at].1 {
                Node::Leaf(entries) => entries.is_empty(),
                Node::Branch(children) => children.is_empty(),
            };
            if empty {
                children.remove(at);
            }
            old
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;
    use std::collections::BTreeMap;

    /// Random operations against the standard map, with snapshots that must not change.
    #[test]
    fn behaves_like_a_btreemap_and_snapshots_stay() {
        for seed in 0..40 {
            let mut rng = Rng::new(seed);
            let (mut tree, mut model) = (Tree::new(), BTreeMap::new());
            let mut snapshots = Vec::new();
            for step in 0..2_000u64 {
                let key = rng.below(600);
                if rng.chance(600) {
                    assert_eq!(tree.insert(key, step), model.insert(key, step));
                } else {
                    assert_eq!(tree.remove(&key), model.remove(&key));
                }
                assert_eq!(tree.len(), model.len());
                if step % 500 == 0 {
                    snapshots.push((tree.clone(), model.clone()));
                }
            }
            snapshots.push((tree, model));
            for pair in snapshots.windows(2) {
                let [(before, known), (after, model)] = pair else { continue };
                let (new, old) = after.unshared(before);
                assert!(new.is_sorted() && old.is_sorted());
                let mut patched = known.clone();
                for (key, _) in old {
                    patched.remove(key);
                }
                patched.extend(new.into_iter().copied());
                assert_eq!(patched, *model);
                assert!(after.is_same(&after.clone()) && !after.is_same(before));
            }
            for (tree, model) in &snapshots {
                assert!(tree.iter().eq(model.iter()));
                let mut finder = tree.finder();
                assert!((0..600).chain([5, 3, 599]).all(|key| finder.get(&key) == model.get(&key)));
                for start in [0, 17, 300, 599, 700] {
                    assert!(tree.from(Bound::Included(&start)).eq(model.range(start..)));
                    assert!(tree.from(Bound::Excluded(&start)).eq(model.range(start + 1..)));
                    assert_eq!(tree.get(&start), model.get(&start));
                }
            }
        }
    }
}
