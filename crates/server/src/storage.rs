//! Objects in the store: keys, the revision's place in the bytes, encryption at rest, and the feed into the cache.
//!
//! Invariant: a write is answered only after the cache shows it, so whoever was answered reads its own write. Where
//! other servers write to the same backend, [`Storage::fresh`] makes the cache show what they were answered for.
//!
//! Values may stand in any form that this server knows ([`crate::pack`]); a newer form is written only when the store
//! says that the whole cluster may. A server that is shown a version or a value that it cannot read shows nothing more
//! and refuses everything ([`Storage::refusal`]): whoever reads on would miss what it was.
//!
//! Writes may be fenced ([`fenced`]): a condition that every transaction of a task carries. It is how a leader's epoch
//! gets into all that its parts write, so that the store refuses what a leader of the past still sends.

mod text;

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use base::{Blob, Revision};
use bytes::Bytes;
use cache::{Cache, Change, View};
use client::Mirror;
use meta::{Facts, Object, Reason, Resource, Status, Str, Value};
use store::{
    Attachment, Backend, Compare, Error as StoreError, Event, Format, LeaseId, Put, Range, Sink, Txn, Version,
};
use tokio::sync::watch;

use crate::error::Error;
use crate::pack;
use crate::registry::Registry;
use crate::seal::Seal;
use text::{Text, encode};

const PREFIX: &str = "/registry/";

/// Resources whose stored bytes are encrypted.
const SEALED: &[Resource] = &[Resource("secrets")];

/// Objects loaded per page at start.
const LOAD_PAGE: usize = 10_000;

tokio::task_local! {
    static FENCE: Compare;
}

/// Runs `work` so that all it commits is committed only while `fence` holds. Tasks that `work` spawns are not fenced.
pub async fn fenced<T>(fence: Compare, work: impl Future<Output = T>) -> T {
    FENCE.scope(fence, work).await
}

/// The keys of the store that hold no objects, as they are now: who leads, which servers there are.
pub type Side = Arc<BTreeMap<Bytes, Arc<Version>>>;

/// The registry of served kinds as everyone shares it.
pub type SharedRegistry = Arc<RwLock<Arc<Registry>>>;

/// The store's key of an object.
pub fn key_of(resource: Resource, namespace: &str, name: &str) -> Bytes {
    let mut key = String::with_capacity(PREFIX.len() + resource.0.len() + namespace.len() + name.len() + 2);
    key.push_str(PREFIX);
    key.push_str(resource.0);
    key.push('/');
    if !namespace.is_empty() {
        key.push_str(namespace);
        key.push('/');
    }
    key.push_str(name);
    key.into()
}

/// The resource of a key in the store; `None` for keys that hold no objects.
fn resource_of(key: &[u8]) -> Option<Resource> {
    let rest = std::str::from_utf8(key).ok()?.strip_prefix(PREFIX)?;
    rest.split_once('/').map(|(resource, _)| Resource::intern(resource))
}

/// The object of a key as the cache shows it.
fn found(cache: &Cache, key: &[u8]) -> Option<Object> {
    let rest = std::str::from_utf8(key).ok()?.strip_prefix(PREFIX)?;
    let (resource, rest) = rest.split_once('/')?;
    let (namespace, name) = rest.split_once('/').unwrap_or(("", rest));
    cache.one(Resource::intern(resource), namespace, name).cloned()
}

/// What travels with a put, so that the feed need not decode the object again. The feed takes it out: the store keeps
/// the attachment for as long as the value.
type Pending = Mutex<Option<Made>>;

struct Made {
    facts: Facts,
    /// What the text was written from, without its revision; none where the text is read back as something else.
    tree: Option<Value>,
    /// For sealed and packed values: the plain bytes and where the revision goes.
    plain: Option<(Bytes, u32)>,
}

/// One change of a commit.
#[derive(Debug)]
pub enum Write {
    /// Puts the object; its `metadata.resourceVersion` is set by the store. `expect` is the revision at which it must
    /// be now ([`Revision::ZERO`]: it must not exist).
    Put { resource: Resource, object: Value, expect: Revision, lease: Option<LeaseId> },
    /// Deletes the object, which must be at revision `expect`.
    Delete { resource: Resource, namespace: Str, name: Str, expect: Revision },
    /// Puts a key that holds no object, which must be at revision `expect`: of two who take something on the same
    /// knowledge, only one does.
    Claim { key: String, expect: Revision },
}

/// Why a commit did not happen.
#[derive(Debug)]
pub enum WriteError {
    /// Something was at another revision than expected.
    Stale {
        resource: Option<Resource>,
        found: Revision,
    },
    Failed(Status),
}

/// The objects of the cluster.
#[derive(Clone)]
pub struct Storage {
    backend: Arc<dyn Backend>,
    mirror: Arc<Mirror>,
    registry: SharedRegistry,
    /// How often other kinds were served.
    registry_changes: Arc<watch::Sender<u64>>,
    seal: Arc<Seal>,
    side: Arc<watch::Sender<Side>>,
    knows: Format,
    halted: Arc<watch::Sender<Halted>>,
    over: Arc<watch::Sender<bool>>,
    late: Arc<AtomicU64>,
}

/// Why a server shows nothing more; nothing while it serves.
type Halted = Option<Arc<str>>;

impl Storage {
    /// Loads everything into the cache and begins to follow the backend's feed. `knows` is the newest data version that
    /// is read, and written once the cluster may.
    ///
    /// # Errors
    /// [`Error::Format`] when the store is of a newer version.
    pub async fn open(
        backend: Arc<dyn Backend>,
        mirror: Arc<Mirror>,
        registry: SharedRegistry,
        seal: Arc<Seal>,
        knows: Format,
    ) -> Result<Storage, Error> {
        let (side, halted, over, registry_changes) = (Arc::default(), Arc::default(), Arc::default(), Arc::default());
        let late = Arc::default();
        let storage = Storage { backend, mirror, registry, registry_changes, seal, side, knows, halted, over, late };
        let failed = |error: StoreError| Error::Store { what: "read the store", why: error.to_string() };
        let at = storage.backend.revision();
        // Before anything else is looked at, which this server may not know how to read.
        let page = storage.backend.range(Range::key(Format::KEY), Some(at), None, 0).await.map_err(failed)?;
        let found = Format::of(page.items.first().map(|(_, version)| &**version));
        if found > knows {
            return Err(Error::Format { found, knows });
        }
        let mut objects = Vec::new();
        let mut side = BTreeMap::new();
        let mut after: Option<Bytes> = None;
        loop {
            let page = storage.backend.range(Range::all(), Some(at), after, LOAD_PAGE).await.map_err(failed)?;
            for (key, version) in &page.items {
                match storage.decoder().cold(key, version)? {
                    Some(object) => objects.push(object),
                    None => drop(side.insert(key.clone(), version.clone())),
                }
            }
            match page.items.last() {
                Some((key, _)) if page.more => after = Some(key.clone()),
                _ => break,
            }
        }
        storage.mirror.change(|cache| cache.load(at, objects));
        storage.side.send_replace(Arc::new(side));
        storage.backend.follow(at, Box::new(storage.feed())).await.map_err(failed)?;
        Ok(storage)
    }

    fn decoder(&self) -> Decoder {
        Decoder { registry: self.registry.clone(), seal: self.seal.clone(), knows: self.knows }
    }

    fn feed(&self) -> Feed {
        let (mirror, side) = (self.mirror.clone(), self.side.clone());
        let (halted, over) = (self.halted.clone(), self.over.clone());
        Feed { mirror, decoder: self.decoder(), side, halted, over }
    }

    /// The newest data version that this server reads.
    pub fn knows(&self) -> Format {
        self.knows
    }

    /// The data version that the whole cluster may use, as far as this server was told.
    pub fn format(&self) -> Format {
        format_in(&self.side.borrow())
    }

    /// Is done when this server was shown something that it cannot read, and says what.
    pub async fn halted(&self) -> String {
        let mut halted = self.halted.subscribe();
        match halted.wait_for(Option::is_some).await {
            Ok(why) => why.as_deref().unwrap_or_default().to_owned(),
            // The sender lives as long as `self`.
            Err(_) => String::new(),
        }
    }

    /// The server stops: whoever watches is brought what there is, and no more.
    pub fn close(&self) {
        self.over.send_replace(true);
    }

    /// Becomes true when nothing more will be shown, since the server stops or cannot read what it was shown.
    pub fn over(&self) -> watch::Receiver<bool> {
        self.over.subscribe()
    }

    /// The answer to everybody once this server was shown something that it cannot read.
    pub fn refusal(&self) -> Option<Status> {
        let halted = self.halted.borrow();
        halted.as_deref().map(|why| Status::new(Reason::ServiceUnavailable, format!("this server has stopped: {why}")))
    }

    /// Writes that the store refused since their fence had fallen: what this server sent as a leader of the past.
    pub fn late(&self) -> u64 {
        self.late.load(Ordering::Relaxed)
    }

    pub fn mirror(&self) -> &Arc<Mirror> {
        &self.mirror
    }

    /// The keys that hold no objects; the receiver wakes when one changes.
    pub fn side(&self) -> watch::Receiver<Side> {
        self.side.subscribe()
    }

    /// Makes the cache show all that had been answered anywhere when this was called.
    ///
    /// # Errors
    /// When the backend cannot say what that is.
    pub async fn fresh(&self) -> Result<(), Status> {
        if let Some(ticket) = self.backend.catch_up() {
            ticket.await.map_err(|error| status_of(&error))?;
        }
        self.refusal().map_or(Ok(()), Err)
    }

    /// The objects of a resource as they were; `None` when the history does not reach back so far.
    pub async fn past(&self, resource: Resource, revision: Revision) -> Option<View> {
        let range = Range::prefix(format!("{PREFIX}{}/", resource.0));
        let (mut objects, mut after) = (Vec::new(), None);
        loop {
            let page = self.backend.range(range.clone(), Some(revision), after, LOAD_PAGE).await.ok()?;
            for (key, version) in &page.items {
                objects.extend(self.decoder().cold(key, version).ok()?);
            }
            match page.items.last() {
                Some((key, _)) if page.more => after = Some(key.clone()),
                _ => break,
            }
        }
        let mut cache = Cache::new(crate::indexes());
        cache.load(revision, objects);
        Some(cache.view())
    }

    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    pub fn registry(&self) -> Arc<Registry> {
        self.registry.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Serves other kinds from now on: `change` makes the new set of the one that is served.
    pub fn change_registry(&self, change: impl FnOnce(&mut Registry)) {
        let mut served = self.registry.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = (**served).clone();
        change(&mut next);
        *served = Arc::new(next);
        drop(served);
        self.registry_changes.send_modify(|changes| *changes += 1);
    }

    /// Tells when other kinds are served.
    pub fn registry_changes(&self) -> watch::Receiver<u64> {
        self.registry_changes.subscribe()
    }

    /// Commits all writes at one revision, or none. Returns when the cache shows them.
    pub async fn commit(&self, writes: Vec<Write>) -> Result<Revision, WriteError> {
        let serves = || self.refusal().map_or(Ok(()), |status| Err(WriteError::Failed(status)));
        serves()?;
        let registry = self.registry();
        let mut txn = Txn::new();
        for write in writes {
            txn = self.stage(txn, write, &registry).map_err(WriteError::Failed)?;
        }
        let fence = FENCE.try_with(Compare::clone).ok();
        txn.compares.extend(fence.clone());
        match self.backend.txn(txn).await {
            // One that was not shown is not answered, though it has happened.
            Ok(commit) => serves().map(|()| commit.revision),
            Err(StoreError::Refused(refused)) if fence.is_some_and(|fence| fence.key == refused.key) => {
                self.late.fetch_add(1, Ordering::Relaxed);
                Err(WriteError::Failed(Status::new(Reason::Conflict, "another server leads now")))
            }
            Err(StoreError::Refused(refused)) => {
                Err(WriteError::Stale { resource: resource_of(&refused.key), found: refused.found })
            }
            Err(error) => Err(WriteError::Failed(status_of(&error))),
        }
    }

    fn stage(&self, txn: Txn, write: Write, registry: &Registry) -> Result<Txn, Status> {
        match write {
            Write::Delete { resource, namespace, name, expect } => {
                let key = key_of(resource, &namespace, &name);
                Ok(txn.when(key.clone(), expect).delete(key))
            }
            Write::Claim { key, expect } => Ok(txn.when(key.clone(), expect).put(Put::new(key, ""))),
            Write::Put { resource, mut object, expect, lease } => {
                object.set(&["metadata", "resourceVersion"], "");
                let mut facts = Facts::of(resource, &object);
                facts.own = registry.stored(resource).and_then(|kind| kind.rules.facts(&object));
                let key = key_of(resource, &facts.namespace, &facts.name);
                let Text { bytes, stamp, floats } =
                    encode(&object).ok_or_else(|| Status::internal("an object without a place for its revision"))?;
                let tree = (!floats).then_some(object);
                // A sealed or packed value has no place for the revision; its plain text travels beside it.
                let other = match SEALED.contains(&resource) {
                    true => Some(self.seal.seal(&key, &bytes).map_err(Status::internal)?),
                    false => self.packed(&bytes),
                };
                let (value, at, plain) = match other {
                    Some(value) => (value, None, Some((bytes, stamp))),
                    None => (bytes, Some(stamp), None),
                };
                let attachment: Attachment = Arc::new(Pending::new(Some(Made { facts, tree, plain })));
                let put = Put { stamp: at, lease, attachment: Some(attachment), ..Put::new(key.clone(), value) };
                Ok(txn.when(key, expect).put(put))
            }
        }
    }

    /// The packed form of an object's text, where it is large and the cluster may have that form.
    fn packed(&self, plain: &Bytes) -> Option<Bytes> {
        let may = plain.len() >= pack::PACK_FROM_BYTES && self.knows.min(self.format()) >= pack::PACKS;
        may.then(|| pack::pack(plain)).flatten()
    }

    /// A lease whose objects go after `seconds`.
    pub async fn lease(&self, seconds: u64) -> Result<LeaseId, Status> {
        self.backend.grant(seconds.saturating_mul(1000)).await.map_err(|error| status_of(&error))
    }
}

/// The answer to a client for an error of the store.
fn status_of(error: &StoreError) -> Status {
    match error {
        StoreError::Compacted(_) => Status::new(Reason::Expired, "the resource version is too old"),
        StoreError::Busy => {
            Status::new(Reason::TooManyRequests, "too many writes are waiting, please try again later").retry_after(1)
        }
        StoreError::Disk { full: true, .. } => {
            Status::new(Reason::ServiceUnavailable, error.to_string()).retry_after(5)
        }
        StoreError::Invalid(_) => Status::new(Reason::RequestEntityTooLarge, error.to_string()),
        StoreError::Closed | StoreError::Unknown(_) => Status::new(Reason::ServiceUnavailable, error.to_string()),
        error => Status::internal(error),
    }
}

/// The version among keys that hold no objects.
fn format_in(side: &Side) -> Format {
    Format::of(side.get(Format::KEY).map(|version| &**version))
}

/// The longest revision.
const REVISION_DIGITS_MAX: usize = 20;

/// Makes objects of stored values.
struct Decoder {
    registry: SharedRegistry,
    seal: Arc<Seal>,
    knows: Format,
}

impl Decoder {
    /// What the feed brings: it is read next. `Ok(None)` for keys that hold no objects.
    fn object(&self, key: &Bytes, version: &Version) -> Result<Option<Object>, Error> {
        let Some(resource) = resource_of(key) else { return Ok(None) };
        let pending = version.attachment.as_deref().and_then(|attachment| attachment.downcast_ref::<Pending>());
        let made = pending.and_then(|pending| pending.lock().unwrap_or_else(PoisonError::into_inner).take());
        let (facts, body, tree) = match made {
            Some(Made { facts, tree, plain }) => {
                let body = match plain {
                    None => version.value.clone(),
                    Some((plain, stamp)) => stamped(&plain, stamp, version.mod_revision).into(),
                };
                let tree = tree.map(|mut tree| {
                    tree.set(&["metadata", "resourceVersion"], version.mod_revision.to_string());
                    tree
                });
                (Facts { revision: version.mod_revision, ..facts }, body, tree)
            }
            None => self.parsed(resource, key, version)?,
        };
        Ok(Some(match tree {
            Some(tree) => Object::written(facts, body, tree),
            None => Object::new(facts, body),
        }))
    }

    /// What stands in the store: nobody is expected to read it soon. `Ok(None)` for keys that hold no objects.
    fn cold(&self, key: &Bytes, version: &Version) -> Result<Option<Object>, Error> {
        let Some(resource) = resource_of(key) else { return Ok(None) };
        let (facts, body, _) = self.parsed(resource, key, version)?;
        let object = Object::new(facts, body);
        object.pack();
        Ok(Some(object))
    }

    /// Facts and text of a stored value, and its tree where the text is read back as that.
    fn parsed(
        &self,
        resource: Resource,
        key: &Bytes,
        version: &Version,
    ) -> Result<(Facts, Blob, Option<Value>), Error> {
        let damaged = |why: String| Error::Object { key: key.escape_ascii().to_string(), why };
        let stored = version.value.bytes();
        let bytes = self.seal.unseal(key, &stored).map_err(|error| damaged(error.to_string()))?;
        let bytes = pack::unpack(&bytes, self.knows).map_err(damaged)?;
        let mut value = Value::parse(&bytes).map_err(|error| damaged(error.to_string()))?;
        value.set(&["metadata", "resourceVersion"], version.mod_revision.to_string());
        let mut facts = Facts::of(resource, &value);
        let registry = self.registry.read().unwrap_or_else(PoisonError::into_inner).clone();
        facts.own = registry.stored(resource).and_then(|kind| kind.rules.facts(&value));
        // What the store holds anyway is not held twice.
        let mut text = Vec::with_capacity(bytes.len() + REVISION_DIGITS_MAX);
        let floats = value.write_json(&mut text);
        let body = if text == stored { version.value.clone() } else { text.into() };
        Ok((facts, body, (!floats).then_some(value)))
    }
}

fn stamped(plain: &Bytes, stamp: u32, revision: Revision) -> Bytes {
    let (before, after) = plain.split_at(stamp as usize);
    [before, revision.to_string().as_bytes(), after].concat().into()
}

/// An object's text as it would be at another revision.
pub fn restamped(object: &Object, revision: Revision) -> Bytes {
    text::restamp(&object.text(), object.revision(), revision).unwrap_or_else(|| {
        let mut value = object.value();
        value.set(&["metadata", "resourceVersion"], revision.to_string());
        value.to_json().into()
    })
}

/// The backend's feed, made into changes of the cache.
struct Feed {
    mirror: Arc<Mirror>,
    decoder: Decoder,
    side: Arc<watch::Sender<Side>>,
    halted: Arc<watch::Sender<Halted>>,
    over: Arc<watch::Sender<bool>>,
}

/// Objects by their keys; none where one is gone.
type Objects<'a> = Vec<(&'a Bytes, Option<Object>)>;

/// What a stretch of the feed says, up to the first revision that cannot be read whole.
#[derive(Default)]
struct Stretch<'a> {
    objects: Vec<(Revision, Objects<'a>)>,
    side: Vec<(&'a Bytes, Option<&'a Arc<Version>>)>,
    /// Why it ends before the end.
    unreadable: Option<Error>,
}

impl Feed {
    /// What a version of a key says; `Ok(None)` for keys that hold no objects.
    fn read(&self, key: &Bytes, version: &Version) -> Result<Option<Object>, Error> {
        if key == Format::KEY {
            let (found, knows) = (Format::of(Some(version)), self.decoder.knows);
            return if found > knows { Err(Error::Format { found, knows }) } else { Ok(None) };
        }
        self.decoder.object(key, version)
    }

    fn stretch<'a>(&self, events: &'a [Event]) -> Stretch<'a> {
        let mut stretch = Stretch::default();
        for commit in events.chunk_by(|one, next| one.revision == next.revision) {
            let (mut objects, mut side) = (Vec::new(), Vec::new());
            for event in commit {
                let new = event.new.as_ref();
                match new.map(|version| self.read(&event.key, version)).transpose() {
                    Ok(object) if resource_of(&event.key).is_some() => objects.push((&event.key, object.flatten())),
                    Ok(_) => side.push((&event.key, new)),
                    Err(error) => {
                        stretch.unreadable = Some(error);
                        return stretch;
                    }
                }
            }
            if !objects.is_empty() {
                stretch.objects.push((commit[0].revision, objects));
            }
            stretch.side.extend(side);
        }
        stretch
    }

    /// Shows nothing from now on.
    fn halt(&self, error: &Error) {
        tracing::error!("{error}");
        self.halted.send_replace(Some(error.to_string().into()));
        self.over.send_replace(true);
    }

    fn is_halted(&self) -> bool {
        self.halted.borrow().is_some()
    }

    /// Notes changes of keys that hold no objects. They do not move the cache: nobody there would see a difference.
    fn note_side(&self, changed: &[(&Bytes, Option<&Arc<Version>>)]) {
        if changed.is_empty() {
            return;
        }
        self.side.send_modify(|side| {
            let side = Arc::make_mut(side);
            for (key, version) in changed {
                match version {
                    Some(version) => drop(side.insert((*key).clone(), (*version).clone())),
                    None => drop(side.remove(&key[..])),
                }
            }
        });
    }
}

impl Sink for Feed {
    fn on_events(&mut self, events: &[Event]) {
        if self.is_halted() {
            return;
        }
        let Stretch { objects, side, unreadable } = self.stretch(events);
        if !objects.is_empty() {
            self.mirror.change(|cache| {
                for (revision, changes) in objects {
                    let changes: Vec<Change> = changes
                        .into_iter()
                        .map(|(key, new)| {
                            // What is deleted is in the cache as it was last.
                            let old = if new.is_none() { found(cache, key) } else { None };
                            Change { revision, new, old }
                        })
                        .collect();
                    cache.apply(revision, changes);
                }
            });
        }
        self.note_side(&side);
        if let Some(error) = unreadable {
            self.halt(&error);
        }
    }

    /// What differs becomes changes at `revision`; history begins anew there, so that watchers list again.
    fn on_state(&mut self, revision: Revision, state: Vec<(Bytes, Arc<Version>)>) {
        if self.is_halted() {
            return;
        }
        let (mut changes, mut there, mut side) = (Vec::new(), HashSet::new(), BTreeMap::new());
        let view = self.mirror.view();
        for (key, version) in &state {
            let new = match self.read(key, version) {
                Ok(Some(new)) => new,
                Ok(None) => {
                    side.insert(key.clone(), version.clone());
                    continue;
                }
                Err(error) => return self.halt(&error),
            };
            there.insert(key.clone());
            let old = view.one(new.resource(), new.namespace(), new.name()).cloned();
            if old.as_ref().is_none_or(|old| old.revision() != new.revision()) {
                changes.push(Change { revision, new: Some(new), old });
            }
        }
        for resource in view.resources() {
            let gone = view.list(resource, "");
            let gone = gone.filter(|old| !there.contains(&key_of(resource, old.namespace(), old.name())));
            changes.extend(gone.map(|old| Change { revision, new: None, old: Some(old.clone()) }));
        }
        self.mirror.change(|cache| {
            cache.apply(revision, changes);
            cache.compact(revision);
        });
        self.side.send_replace(Arc::new(side));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::json;

    #[test]
    fn keys_name_their_resource() {
        let key = key_of(Resource("deployments.apps"), "ns", "web");
        assert_eq!(key, "/registry/deployments.apps/ns/web");
        assert_eq!(resource_of(&key), Some(Resource("deployments.apps")));
        assert_eq!(resource_of(b"/leader"), None);
    }

    fn object(name: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "ns", "uid": name}})
    }

    async fn storage(dir: &std::path::Path) -> Storage {
        let (backend, _) = store::Embedded::open(dir, store::Options::default()).unwrap();
        let registry = Registry::new(api::kinds::kinds().into_iter().map(Arc::new));
        let mirror = Arc::new(Mirror::new(cache::Cache::new([])));
        let (seal, _) = Seal::make().unwrap();
        let registry = Arc::new(RwLock::new(Arc::new(registry)));
        Storage::open(Arc::new(backend), mirror, registry, Arc::new(seal), pack::NEWEST).await.unwrap()
    }

    const MAPS: Resource = Resource("configmaps");

    fn put(name: &str) -> Vec<Write> {
        vec![Write::Put { resource: MAPS, object: object(name), expect: Revision::ZERO, lease: None }]
    }

    #[tokio::test]
    async fn a_fence_that_fell_refuses_all_that_stands_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let storage = storage(dir.path()).await;
        let lead = |backend: &Arc<dyn Backend>| backend.txn(Txn::new().put(Put::new("/leader", "me")));
        let epoch = lead(storage.backend()).await.unwrap().revision;
        let fence = Compare { key: "/leader".into(), mod_revision: epoch };
        fenced(fence.clone(), storage.commit(put("a"))).await.unwrap();
        assert_eq!(storage.side().borrow().get(&b"/leader"[..]).unwrap().mod_revision, epoch);
        lead(storage.backend()).await.unwrap();
        let late = fenced(fence, storage.commit(put("b"))).await;
        let Err(WriteError::Failed(status)) = late else { panic!("{late:?}") };
        assert_eq!((status.message(), storage.late()), ("another server leads now", 1));
        assert!(storage.mirror().one(MAPS, "ns", "b").is_none());
        storage.commit(put("b")).await.unwrap();
        assert_eq!(storage.late(), 1);
    }

    #[tokio::test]
    async fn the_past_of_a_resource_is_read_from_the_history() {
        let dir = tempfile::tempdir().unwrap();
        let storage = storage(dir.path()).await;
        let first = storage.commit(put("a")).await.unwrap();
        storage.commit(put("b")).await.unwrap();
        let view = storage.past(MAPS, first).await.unwrap();
        assert_eq!(view.list(MAPS, "").map(|object| object.name().to_owned()).collect::<Vec<_>>(), ["a"]);
        assert_eq!(view.at(), first);
        storage.backend().compact(storage.mirror().revision()).await.unwrap();
        assert!(storage.past(MAPS, first).await.is_none());
    }

    #[tokio::test]
    async fn a_whole_state_takes_the_place_of_a_lost_history() {
        let dir = tempfile::tempdir().unwrap();
        let storage = storage(dir.path()).await;
        for name in ["a", "b"] {
            storage.commit(put(name)).await.unwrap();
        }
        let page = storage.backend().range(Range::all(), None, None, 0).await.unwrap();
        let mut state = page.items;
        state.retain(|(key, _)| !key.ends_with(b"/a"));
        let version = Version { value: "x".into(), ..Version::clone(&state[0].1) };
        state.push(("/leader".into(), Arc::new(version)));
        let mut feed = storage.feed();
        let since = storage.mirror.revision();
        feed.on_state(Revision(90), state);
        assert!(storage.mirror.one(MAPS, "ns", "a").is_none() && storage.mirror.one(MAPS, "ns", "b").is_some());
        assert_eq!(storage.mirror.revision(), Revision(90));
        assert!(storage.mirror.since(MAPS, since, 9).is_err());
        assert!(storage.side().borrow().contains_key(&b"/leader"[..]));
    }

    /// Servers of these versions on one store, each with a cache of its own that is fed by hand.
    struct Servers {
        dir: tempfile::TempDir,
        first: Storage,
    }

    impl Servers {
        async fn new() -> Servers {
            let dir = tempfile::tempdir().unwrap();
            let first = storage(dir.path()).await;
            Servers { dir, first }
        }

        async fn raise(&self, format: Format) -> Result<Revision, StoreError> {
            let put = Put::new(Format::KEY, format.text());
            self.first.backend.txn(Txn::new().put(put)).await.map(|commit| commit.revision)
        }

        /// A server that was shown everything up to now and is fed by hand from then on.
        fn another(&self, knows: Format) -> Storage {
            let first = &self.first;
            let side = Arc::new(watch::Sender::new(first.side.borrow().clone()));
            let mirror = Arc::new(Mirror::new(cache::Cache::new([])));
            let view = first.mirror.view();
            let all = view.resources().flat_map(|resource| view.list(resource, "").cloned().collect::<Vec<_>>());
            mirror.change(|cache| cache.load(view.at(), all.collect::<Vec<_>>()));
            Storage { mirror, side, knows, halted: Arc::default(), ..first.clone() }
        }

        async fn feed(&self, to: &Storage, since: Revision) {
            let mut events = self.first.backend.since(since, usize::MAX).await.unwrap().events;
            for event in &mut events {
                // As from elsewhere: without what travels in memory.
                if let Some(new) = &mut event.new {
                    *new = Arc::new(Version { attachment: None, ..Version::clone(new) });
                }
            }
            to.feed().on_events(&events);
        }
    }

    fn large(name: &str) -> Vec<Write> {
        let mut object = object(name);
        object.set(&["data", "text"], "0123456789".repeat(4_000));
        vec![Write::Put { resource: MAPS, object, expect: Revision::ZERO, lease: None }]
    }

    #[tokio::test]
    async fn large_objects_are_packed_when_the_cluster_may_and_read_the_same() {
        let servers = Servers::new().await;
        let (one, old) = (&servers.first, servers.another(Format::FIRST));
        let first = one.commit(large("a")).await.unwrap();
        servers.raise(pack::PACKS).await.unwrap();
        assert_eq!(one.format(), pack::PACKS);
        one.commit(large("b")).await.unwrap();
        let page = one.backend.range(Range::prefix("/registry/"), None, None, 0).await.unwrap();
        let forms: Vec<Format> = page.items.iter().map(|(_, version)| pack::form_of(&version.value.bytes())).collect();
        assert_eq!(forms, [Format::FIRST, pack::PACKS]);
        let other = servers.another(pack::NEWEST);
        servers.feed(&other, first).await;
        for name in ["a", "b"] {
            let (one, other) = (one.mirror.one(MAPS, "ns", name).unwrap(), other.mirror.one(MAPS, "ns", name).unwrap());
            assert_eq!((one.text(), one.revision()), (other.text(), other.revision()));
            assert_eq!(one.value().at(&["metadata", "resourceVersion"]).text(), one.revision().to_string());
        }
        let past = one.past(MAPS, one.mirror.revision()).await.unwrap();
        assert_eq!(past.one(MAPS, "ns", "b").unwrap().text(), one.mirror.one(MAPS, "ns", "b").unwrap().text());
        assert_eq!(old.mirror.revision(), Revision::ZERO);
    }

    #[tokio::test]
    async fn who_meets_a_version_it_does_not_know_shows_nothing_from_there_on() {
        let servers = Servers::new().await;
        let old = servers.another(Format::FIRST);
        let seen = servers.first.commit(put("a")).await.unwrap();
        servers.raise(pack::PACKS).await.unwrap();
        servers.first.commit(put("b")).await.unwrap();
        assert!(old.refusal().is_none());
        servers.feed(&old, Revision::ZERO).await;
        assert_eq!(old.mirror.revision(), seen);
        let why = "the cluster's data has version 2, and this gantry reads up to 1";
        assert!(old.halted().await.starts_with(why), "{}", old.halted().await);
        let Err(WriteError::Failed(status)) = old.commit(put("c")).await else { panic!("it writes on") };
        assert!(status.code() == 503 && status.message().contains(why), "{status}");
        assert!(old.fresh().await.is_err());
        // Nothing moves it again.
        servers.feed(&old, Revision::ZERO).await;
        assert_eq!((old.mirror.revision(), old.format()), (seen, Format::FIRST));
    }

    #[tokio::test]
    async fn an_object_that_cannot_be_read_stops_the_server_and_is_not_left_out() {
        let servers = Servers::new().await;
        let other = servers.another(pack::NEWEST);
        let seen = servers.first.commit(put("a")).await.unwrap();
        let strange = Txn::new().put(Put::new("/registry/configmaps/ns/b", "gp9:whatever"));
        servers.first.backend.txn(strange.put(Put::new("/leader", "me"))).await.unwrap();
        servers.feed(&other, Revision::ZERO).await;
        assert_eq!(other.mirror.revision(), seen);
        assert!(!other.side().borrow().contains_key(&b"/leader"[..]), "a commit is shown whole or not at all");
        assert!(other.halted().await.contains("/registry/configmaps/ns/b"), "{}", other.halted().await);
        // The server that has it from its own store, too.
        assert!(servers.first.refusal().is_some());
        let state = servers.first.backend.range(Range::all(), None, None, 0).await.unwrap();
        let again = servers.another(pack::NEWEST);
        again.feed().on_state(state.revision, state.items);
        assert!(again.refusal().is_some() && again.mirror.revision() == seen);
    }

    #[tokio::test]
    async fn a_server_does_not_begin_on_data_of_a_newer_version() {
        let servers = Servers::new().await;
        servers.raise(Format(3)).await.unwrap();
        let Servers { dir, first } = servers;
        let (backend, registry, seal) = (first.backend.clone(), first.registry.clone(), first.seal.clone());
        let mirror = Arc::new(Mirror::new(cache::Cache::new([])));
        let opened = Storage::open(backend, mirror, registry, seal, pack::NEWEST).await;
        let told = opened.err().map(|error| error.to_string()).unwrap_or_default();
        let why = "the cluster's data has version 3, and this gantry reads up to 2; run a gantry as new as that of the \
                   cluster's other servers";
        assert_eq!(told, why);
        drop(dir);
    }
}
