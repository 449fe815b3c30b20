//! An object as everybody holds it: its canonical text, shared by all readers and packed while nobody uses it, and a few
//! facts read once.

use std::any::Any;
use std::cmp::Ordering;
use std::fmt;
use std::sync::atomic::AtomicU8;
use std::sync::{Arc, Mutex, OnceLock};

use base::{Blob, Revision, Time};
use bytes::Bytes;

use crate::proto::{Encoder, ProtoError};
use crate::schema::TypeRef;
use crate::value::{Str, Value};

/// A resource by group and plural: `pods`, `deployments.apps`. Interned, so it is one word and compares as text.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Resource(pub &'static str);

impl Ord for Resource {
    fn cmp(&self, other: &Resource) -> Ordering {
        // Most that are equal are one text.
        if std::ptr::eq(self.0, other.0) { Ordering::Equal } else { base::order(self.0.as_bytes(), other.0.as_bytes()) }
    }
}

impl PartialOrd for Resource {
    fn partial_cmp(&self, other: &Resource) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Resource {
    /// The plural: `deployments`.
    pub fn plural(self) -> &'static str {
        self.0.split_once('.').map_or(self.0, |(plural, _)| plural)
    }

    /// The group: `apps`, or `""` for the core group.
    pub fn group(self) -> &'static str {
        self.0.split_once('.').map_or("", |(_, group)| group)
    }

    /// A resource that is known only at run time. Each distinct name is kept for ever, so callers intern only
    /// resources that were registered.
    pub fn intern(name: &str) -> Resource {
        use std::collections::BTreeSet;
        use std::sync::{Mutex, PoisonError};
        static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
        let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(name) = names.get(name) {
            return Resource(name);
        }
        let name: &'static str = Box::leak(name.to_owned().into_boxed_str());
        names.insert(name);
        Resource(name)
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Labels or annotations, sorted by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(Box<[(Str, Str)]>);

impl Labels {
    pub fn of(map: &Value) -> Labels {
        Labels(map.entries().iter().map(|(key, value)| (key.into(), value.text().into())).collect())
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.binary_search_by(|(k, _)| k.as_str().cmp(key)).ok().map(|at| self.0[at].1.as_str())
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<K: Into<Str>, V: Into<Str>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Labels {
        let mut entries: Vec<(Str, Str)> = entries.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        entries.sort();
        Labels(entries.into())
    }
}

/// One owner reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub api_version: Str,
    pub kind: Str,
    pub name: Str,
    pub uid: Str,
    pub controller: bool,
    pub block_owner_deletion: bool,
}

/// What is read of every object once, when it is made.
#[derive(Clone)]
pub struct Facts {
    pub resource: Resource,
    /// `""` for cluster-scoped objects.
    pub namespace: Str,
    pub name: Str,
    pub uid: Str,
    pub revision: Revision,
    pub generation: i64,
    pub created: Time,
    /// When its deletion was asked for; it stays while finalizers do (or, for pods, until the node is done).
    pub deleting: Option<Time>,
    pub labels: Labels,
    pub owners: Box<[Owner]>,
    pub finalizers: Box<[Str]>,
    /// The kind's own projection (`api::pod::PodFacts` …), made by `Kind::facts`.
    pub own: Option<Arc<dyn Any + Send + Sync>>,
}

impl Facts {
    /// Reads the facts of any object from its metadata.
    pub fn of(resource: Resource, object: &Value) -> Facts {
        let meta = &object["metadata"];
        let text = |key: &str| -> Str { meta[key].text().into() };
        let owners = meta["ownerReferences"].items().iter().map(|owner| Owner {
            api_version: owner["apiVersion"].text().into(),
            kind: owner["kind"].text().into(),
            name: owner["name"].text().into(),
            uid: owner["uid"].text().into(),
            controller: owner["controller"].is_true(),
            block_owner_deletion: owner["blockOwnerDeletion"].is_true(),
        });
        Facts {
            resource,
            namespace: text("namespace"),
            name: text("name"),
            uid: text("uid"),
            revision: Revision(meta["resourceVersion"].text().parse().unwrap_or(0)),
            generation: meta["generation"].as_int().unwrap_or(0),
            created: Time::parse(meta["creationTimestamp"].text()).unwrap_or_default(),
            deleting: Time::parse(meta["deletionTimestamp"].text()),
            labels: Labels::of(&meta["labels"]),
            owners: owners.collect(),
            finalizers: meta["finalizers"].items().iter().map(|name| name.text().into()).collect(),
            own: None,
        }
    }

    /// The owner that manages this object.
    pub fn controller(&self) -> Option<&Owner> {
        self.owners.iter().find(|owner| owner.controller)
    }
}

/// The reference to the owner that manages an object, where there are no facts of it yet.
pub fn controller_of(object: &Value) -> Option<&Value> {
    object["metadata"]["ownerReferences"].items().iter().find(|owner| owner["controller"].is_true())
}

/// An object at one revision. Cheap to clone; never changes.
#[derive(Clone)]
pub struct Object(Arc<Inner>);

struct Inner {
    facts: Facts,
    body: Blob,
    /// Its protobuf message, once somebody has asked.
    protobuf: OnceLock<Blob>,
    /// Its tree, while the object is one of those that were read or written lately.
    tree: Mutex<Option<Box<Value>>>,
    /// Among which of them it is; its tree may be gone all the same.
    kept: AtomicU8,
}

impl Drop for Inner {
    fn drop(&mut self) {
        warm::forget(*self.kept.get_mut(), self.body.len());
    }
}

impl Object {
    /// `body` is the object's canonical JSON, complete with `resourceVersion`.
    pub fn new(facts: Facts, body: impl Into<Blob>) -> Object {
        let (protobuf, tree, kept) = (OnceLock::new(), Mutex::new(None), AtomicU8::new(warm::NOT_KEPT));
        Object(Arc::new(Inner { facts, body: body.into(), protobuf, tree, kept }))
    }

    /// The same where the tree that the text was written from is at hand; whoever changes the object next needs it.
    pub fn written(facts: Facts, body: impl Into<Blob>, tree: Value) -> Object {
        let object = Object::new(facts, body);
        debug_assert_eq!(Value::parse(&object.text()).ok().as_ref(), Some(&tree), "the text is the tree's");
        warm::keep(&object, tree);
        object
    }

    /// Holds the text packed from now on: nobody is expected to read it soon. What was read or written lately is packed
    /// by itself when it has not been used for a while.
    pub fn pack(&self) {
        warm::pack(&self.0);
    }

    pub fn facts(&self) -> &Facts {
        &self.0.facts
    }

    /// The canonical JSON.
    pub fn text(&self) -> Bytes {
        self.0.body.bytes()
    }

    /// The length of the canonical JSON.
    pub fn text_len(&self) -> usize {
        self.0.body.len()
    }

    /// Its message in protobuf, without envelope, in the version in which it is stored. It is made once, for all who ask.
    ///
    /// # Errors
    /// As [`Encoder::message`].
    pub fn protobuf(&self, encoder: &mut Encoder, of: TypeRef<'_>) -> Result<Blob, ProtoError> {
        if let Some(known) = self.0.protobuf.get() {
            return Ok(known.clone());
        }
        let made = Blob::from(encoder.message(&self.text(), of)?.to_vec());
        let message = self.0.protobuf.get_or_init(|| made).clone();
        if !warm::is_kept(self) {
            self.pack();
        }
        Ok(message)
    }

    /// The object as a tree: a clone of the one that was decoded lately, or decoded now.
    pub fn value(&self) -> Value {
        if let Some(tree) = warm::of(self) {
            return tree;
        }
        let mut tree = Value::parse(&self.text())
            .expect("an object's own text is valid: it was written by us or checked when it was read");
        Object::share(self.resource(), &mut tree);
        warm::keep(self, tree.clone());
        tree
    }

    /// Gives up the tree: a newer version took the object's place, and nobody will change this one. Its text is kept for
    /// those who have not seen it yet.
    pub fn supersede(&self) {
        warm::supersede(self);
    }

    /// Shares with a sibling, an object of the same controller that was made or read lately, what is equal in both trees:
    /// siblings are made of one template.
    pub fn share(resource: Resource, tree: &mut Value) {
        if let Some(owner) = controller_of(tree) {
            let owner = Str::from(owner["uid"].text());
            warm::share(resource, &owner, tree);
        }
    }

    /// Gives up the trees that were kept before the last call. To be called from time to time, so that a process which
    /// has nothing to do keeps none.
    pub fn cool() {
        warm::cool();
    }

    pub fn resource(&self) -> Resource {
        self.0.facts.resource
    }

    pub fn namespace(&self) -> &str {
        &self.0.facts.namespace
    }

    pub fn name(&self) -> &str {
        &self.0.facts.name
    }

    pub fn uid(&self) -> &str {
        &self.0.facts.uid
    }

    pub fn revision(&self) -> Revision {
        self.0.facts.revision
    }

    pub fn labels(&self) -> &Labels {
        &self.0.facts.labels
    }

    /// The kind's own projection, if its kind makes one of type `T`.
    pub fn own<T: 'static>(&self) -> Option<&T> {
        self.0.facts.own.as_deref().and_then(|own| (own as &dyn Any).downcast_ref())
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let facts = self.facts();
        write!(f, "{} {}/{} {:?}", facts.resource, facts.namespace, facts.name, facts.revision)
    }
}

/// What is known of objects that were read or written lately: their trees, and their texts unpacked. What was just
/// written is mostly read and changed next, by several readers. Trees are found through their objects only, so nobody can
/// tell whether one was kept but by the time that it takes. Those kept longest go first; with its tree an object's text
/// is packed, against what its siblings have in common.
///
/// What a newer version took the place of is kept apart: only those who follow the changes read it, and soon; where much
/// is written it would drive out what will be changed next.
mod warm {
    use std::collections::VecDeque;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

    use base::{Blob, Dictionary, hash64};

    use super::{Inner, Object, Resource};
    use crate::value::Value;

    /// The mark of an object that is none of those that are kept.
    pub const NOT_KEPT: u8 = 0;
    /// Of the newest versions. A tree takes about four times as much as its text, but those of siblings share most of it.
    static NEWEST: Kept = Kept::new(1, 20 << 20);
    /// Of those that newer ones took the place of: as much as is read before all have seen it.
    static SUPERSEDED: Kept = Kept::new(2, 4 << 20);
    /// A larger text's tree is not kept.
    const TEXT_MAX_BYTES: usize = 256 << 10;
    /// Objects that are remembered as kept of each sort; those that are gone meanwhile count, too.
    const OBJECTS_MAX: usize = 16_384;
    /// When so many are remembered, those that are gone are looked for.
    const OBJECTS_MANY: usize = OBJECTS_MAX / 2;
    /// Dictionaries that there are, of at most 16 KiB each; sorts that fall into one place share what they have in common.
    const DICTIONARIES: usize = 1_024;

    /// Controllers of which a tree is remembered for the next sibling; those that fall into one place take turns.
    const FAMILIES: usize = 256;

    static FAMILY: [Mutex<Option<(u64, Value)>>; FAMILIES] = [const { Mutex::new(None) }; FAMILIES];
    static SLOTS: [Mutex<Dictionary>; DICTIONARIES] = [const { Mutex::new(Dictionary::new()) }; DICTIONARIES];

    /// Objects that are kept, up to so many bytes of their texts.
    struct Kept {
        /// What [`Inner::kept`] is for those that are.
        mark: u8,
        bytes_max: usize,
        bytes: AtomicUsize,
        order: Mutex<Order>,
    }

    /// Those that are kept, or were, in the order in which they came.
    struct Order {
        all: VecDeque<Weak<Inner>>,
        /// How many of them came since they were cooled last.
        new: usize,
        /// How many there may be before it is looked which are gone.
        many: usize,
    }

    impl Kept {
        const fn new(mark: u8, bytes_max: usize) -> Kept {
            let order = Order { all: VecDeque::new(), new: 0, many: OBJECTS_MANY };
            Kept { mark, bytes_max, bytes: AtomicUsize::new(0), order: Mutex::new(order) }
        }

        /// Takes in one whose mark is of these already; what is to be given up for it.
        fn enter(&self, object: &Object) -> Vec<Arc<Inner>> {
            let bytes = object.text_len();
            let mut excess = (self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes).saturating_sub(self.bytes_max);
            let mut cooled = Vec::new();
            let mut order = lock(&self.order);
            order.all.push_back(Arc::downgrade(&object.0));
            order.new += 1;
            if order.all.len() > order.many {
                order.all.retain(|one| one.upgrade().is_some_and(|inner| self.has(&inner)));
                order.new = order.new.min(order.all.len());
                // Half as many again must come before another look is worth it.
                order.many = (order.all.len() + order.all.len() / 2).max(OBJECTS_MANY);
            }
            while excess > 0 || order.all.len() > OBJECTS_MAX {
                let Some(oldest) = order.all.pop_front() else { break };
                if let Some(inner) = oldest.upgrade().filter(|inner| self.has(inner)) {
                    excess = excess.saturating_sub(inner.body.len());
                    cooled.push(inner);
                }
            }
            cooled
        }

        /// To be called without the lock: the last hold of an object may be among them. One that has left meanwhile is
        /// somebody else's.
        fn give_up(&self, cooled: Vec<Arc<Inner>>) {
            for inner in cooled {
                if self.leave(&inner, NOT_KEPT) {
                    drop_tree(&inner);
                    pack(&inner);
                }
            }
        }

        fn has(&self, inner: &Inner) -> bool {
            inner.kept.load(Ordering::Relaxed) == self.mark
        }

        /// Takes the mark from one; false when it has another, or none.
        fn leave(&self, inner: &Inner, mark: u8) -> bool {
            let left = inner.kept.compare_exchange(self.mark, mark, Ordering::Relaxed, Ordering::Relaxed).is_ok();
            if left {
                self.bytes.fetch_sub(inner.body.len(), Ordering::Relaxed);
            }
            left
        }

        /// Gives up what came before the last call; true when nothing is left.
        fn cool(&self) -> bool {
            let mut order = lock(&self.order);
            let old = order.all.len().saturating_sub(order.new);
            order.new = 0;
            let cooled =
                order.all.drain(..old).filter_map(|one| one.upgrade()).filter(|inner| self.has(inner)).collect();
            if order.all.is_empty() {
                order.all.shrink_to_fit();
            }
            let idle = order.all.is_empty();
            drop(order);
            self.give_up(cooled);
            idle
        }
    }

    /// Text is not like a message.
    #[derive(Clone, Copy)]
    enum Form {
        Text,
        Protobuf,
    }

    fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for the objects of a resource that are alike: those of one controller, or of one namespace.
    fn kin(resource: Resource, alike: &str) -> u64 {
        hash64(resource.0.as_bytes()) ^ hash64(alike.as_bytes()).rotate_left(17)
    }

    /// Takes the tree from an object, and drops it when its lock is free again.
    pub fn drop_tree(inner: &Inner) {
        let tree = lock(&inner.tree).take();
        drop(tree);
    }

    pub fn share(resource: Resource, owner: &str, tree: &mut Value) {
        let family = kin(resource, owner);
        let slot = &FAMILY[usize::try_from(family).unwrap_or(0) % FAMILIES];
        let sibling = lock(slot).as_ref().filter(|(known, _)| *known == family).map(|(_, tree)| tree.clone());
        if let Some(sibling) = sibling {
            tree.graft(&sibling);
        }
        // What was remembered is dropped without the lock.
        let before = lock(slot).replace((family, tree.clone()));
        drop(before);
    }

    pub fn of(object: &Object) -> Option<Value> {
        lock(&object.0.tree).as_deref().cloned()
    }

    /// One that was kept, as `mark` says, is no more.
    pub fn forget(mark: u8, bytes: usize) {
        if let Some(kept) = [&NEWEST, &SUPERSEDED].into_iter().find(|kept| kept.mark == mark) {
            kept.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    pub fn keep(object: &Object, tree: Value) {
        if object.text_len() > TEXT_MAX_BYTES {
            return;
        }
        let before = lock(&object.0.tree).replace(Box::new(tree));
        drop(before);
        if object.0.kept.compare_exchange(NOT_KEPT, NEWEST.mark, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            NEWEST.give_up(NEWEST.enter(object));
        }
    }

    pub fn supersede(object: &Object) {
        drop_tree(&object.0);
        if NEWEST.leave(&object.0, SUPERSEDED.mark) {
            SUPERSEDED.give_up(SUPERSEDED.enter(object));
        }
    }

    pub fn cool() {
        SUPERSEDED.cool();
        if NEWEST.cool() {
            FAMILY.iter().for_each(|slot| drop(lock(slot).take()));
        }
    }

    pub fn is_kept(object: &Object) -> bool {
        object.0.kept.load(Ordering::Relaxed) != NOT_KEPT
    }

    pub fn pack(inner: &Inner) {
        pack_one(inner, Form::Text, &inner.body);
        if let Some(message) = inner.protobuf.get() {
            pack_one(inner, Form::Protobuf, message);
        }
    }

    fn pack_one(inner: &Inner, form: Form, blob: &Blob) {
        let facts = &inner.facts;
        let alike = facts.controller().map_or(&facts.namespace, |owner| &owner.uid);
        let place = kin(facts.resource, alike) ^ form as u64;
        let slot = usize::try_from(place).unwrap_or(0) % DICTIONARIES;
        blob.pack(&mut lock(&SLOTS[slot]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    fn object(number: usize, size: usize) -> Object {
        let value = json!({"metadata": {"name": (format!("n{number}"))}, "text": ("x".repeat(size))});
        Object::new(Facts::of(Resource("things"), &value), value.to_json())
    }

    #[test]
    fn trees_are_kept_for_a_while() {
        let one = object(0, 1000);
        let tree = one.value();
        assert!(one.value().is_shared_with(&tree));
        let others: Vec<Object> = (1..200).map(|number| object(number, 200_000)).collect();
        for other in &others {
            assert_eq!(other.value(), Value::parse(&other.text()).unwrap());
        }
        assert!(!one.value().is_shared_with(&tree) && one.value() == tree, "many came since");
        let last = object(101, 10);
        last.value();
        Object::cool();
        let tree = last.value();
        Object::cool();
        Object::cool();
        assert!(!last.value().is_shared_with(&tree), "nothing happened for two rounds");
        let sibling = |number: usize| {
            let owner = json!({"controller": true, "uid": "u"});
            let spec = json!({"containers": [{"name": "c"}]});
            let metadata = json!({"name": (format!("n{number}")), "ownerReferences": [owner]});
            let value = json!({"metadata": metadata, "spec": spec});
            Object::new(Facts::of(Resource("things"), &value), value.to_json())
        };
        let (one, other) = (sibling(1), sibling(2));
        assert!(one.value()["spec"].is_shared_with(&other.value()["spec"]));
        let tree = one.value();
        one.supersede();
        assert!(!one.value().is_shared_with(&tree) && one.value() == tree);
        let current = object(102, 200_000);
        let tree = current.value();
        for number in 103..303 {
            let passing = object(number, 200_000);
            passing.value();
            passing.supersede();
        }
        assert!(current.value().is_shared_with(&tree), "what was superseded takes nobody's place");
        let huge = object(100, 1 << 20);
        assert!(!huge.value().is_shared_with(&huge.value()));
    }
}
