//! etcd (3.4 and later) as a [`Backend`]: several servers share one state, and each sees the same order of changes.
//!
//! - [`Etcd`]: the backend; [`Options`] say where etcd is and how to prove who we are.
//! - [`Etcd::import`]: takes a whole state over from elsewhere, into an empty prefix.
//! - `rpc`, `client`, `message`: gRPC as etcd speaks it. `value`: how values stand in etcd. `txn`, `feed`: the two
//!   halves of the seam that need thought.
//!
//! Not here: JSON, kinds, what keys mean; consensus, which is etcd's.
//!
//! Below the prefix (`/gantry/` unless said otherwise) stand `meta` (the format, and the offset of revisions),
//! `pulse` (see `feed`), and `data` followed by the store's own keys: `/gantry/data/registry/pods/…`.
//!
//! Invariants: the same as the store's. In particular a write is answered after the sink was given it, also by servers
//! that a refusal has shown something new; a transaction whose answer got lost is [`Error::Unknown`] and never sent
//! twice; the feed has no gap and no repetition, whatever happens to connections and members. What others write below the
//! prefix is told of and left out.

mod client;
mod feed;
pub mod fuzzing;
mod message;
mod moved;
mod rpc;
mod tls;
mod txn;
mod value;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base::Revision;
use bytes::Bytes;
use store::{Backend, Commit, Done, Error, Events, LeaseId, Page, Range, Sink, Ticket, Txn, Version};
use tokio::sync::watch;

use client::{Client, Repeat};
use message as m;
pub use rpc::Endpoint;
use rpc::{Failure, code};
pub use tls::tls;
use value::Scale;

/// How long a write or a read waits for the feed to show what it knows of.
const FEED_WAIT: Duration = Duration::from_secs(10);
/// After this long it is made sure that the feed has something to show.
const PULSE_AFTER: Duration = Duration::from_millis(25);
/// Values of others that are told of one by one.
const FOREIGN_TOLD_MAX: usize = 1_000;
/// Keys read in one request.
const RANGE_KEYS: i64 = 2_000;
const META: &[u8] = b"meta";
const PULSE: &[u8] = b"pulse";
const DATA: &[u8] = b"data";
/// What `meta` begins with.
const FORMAT: &str = "gantry-etcd/1";

/// What etcd takes at once; as its own flags `--max-txn-ops` and `--max-request-bytes` say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub operations: usize,
    pub request_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { operations: 128, request_bytes: 1536 * 1024 }
    }
}

/// Where etcd is and how it is spoken to.
#[derive(Clone)]
pub struct Options {
    pub endpoints: Vec<Endpoint>,
    /// Needed for `https` endpoints; see [`tls`].
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// Name and password.
    pub user: Option<(String, String)>,
    /// All keys begin with it; a `/` is added when it does not end in one.
    pub prefix: String,
    pub limits: Limits,
}

impl Options {
    /// The default prefix and limits, without TLS and login.
    pub fn new(endpoints: Vec<Endpoint>) -> Options {
        Options { endpoints, tls: None, user: None, prefix: "/gantry/".to_owned(), limits: Limits::default() }
    }

    fn prefix(&self) -> Bytes {
        let slash = if self.prefix.ends_with('/') { "" } else { "/" };
        format!("{}{slash}", self.prefix).into()
    }

    fn client(&self) -> Client {
        Client::new(self.endpoints.clone(), self.tls.clone(), self.user.clone())
    }
}

/// Why a cluster on etcd could not be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// No endpoint answered, or the one that did refused.
    Reach {
        doing: &'static str,
        why: String,
    },
    /// What stands under the prefix is not ours, or of another version.
    Foreign {
        prefix: String,
        found: String,
    },
    /// A move into the prefix was begun and not finished.
    Unfinished {
        prefix: String,
    },
    /// Something stands where nothing may.
    NotEmpty {
        prefix: String,
        keys: i64,
    },
    /// A key or value that is to be taken over is larger than etcd takes.
    TooLong {
        key: String,
        bytes: usize,
        limit: usize,
    },
    Tls {
        what: &'static str,
        why: String,
    },
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OpenError::Reach { doing, why } => write!(f, "cannot {doing} at etcd: {why}"),
            OpenError::Foreign { prefix, found } => {
                write!(f, "etcd holds something else under {prefix} ({found}); give another prefix")
            }
            OpenError::Unfinished { prefix } => write!(
                f,
                "a move into {prefix} was begun and not finished; delete what is there \
                 (etcdctl del --prefix {prefix}) and move again"
            ),
            OpenError::NotEmpty { prefix, keys } => {
                write!(f, "etcd already holds {keys} keys under {prefix}; give a prefix that is empty")
            }
            OpenError::TooLong { key, bytes, limit } => write!(
                f,
                "the value of {key} has {bytes} bytes and etcd takes {limit} in one request; raise etcd's \
                 --max-request-bytes and say so with --etcd-max-request-bytes"
            ),
            OpenError::Tls { what, why } => write!(f, "cannot use {what} for etcd: {why}"),
        }
    }
}

impl std::error::Error for OpenError {}

fn reach_error(doing: &'static str) -> impl Fn(Failure) -> OpenError {
    move |failure| OpenError::Reach { doing, why: failure.to_string() }
}

/// A state kept in etcd.
pub struct Etcd {
    inner: Arc<Inner>,
    runtime: tokio::runtime::Handle,
}

pub(crate) struct Inner {
    client: Client,
    prefix: Bytes,
    limits: Limits,
    scale: Scale,
    /// The newest revision of etcd that any answer told.
    newest: AtomicI64,
    /// Up to where the sink was given everything, in etcd's revisions.
    fed: watch::Sender<i64>,
    following: AtomicBool,
    follower: Mutex<Option<tokio::task::AbortHandle>>,
    pulsing: tokio::sync::Mutex<()>,
    asking: Mutex<Asking>,
    /// Keys with values that are none of ours, and their revisions, that were told of.
    foreign: Mutex<BTreeSet<(Bytes, i64)>>,
}

/// Those who want to know the newest revision; one question answers all who came before it was asked.
#[derive(Default)]
struct Asking {
    running: bool,
    waiting: Vec<Done<Revision>>,
}

impl Etcd {
    /// Connects, and marks an empty prefix as ours. To be called on a runtime of tokio, which then carries all work.
    ///
    /// # Errors
    /// [`OpenError`]; each says what to do.
    pub async fn open(options: &Options) -> Result<Etcd, OpenError> {
        let (client, prefix) = (options.client(), options.prefix());
        let (scale, newest) = moved::meta(&client, &prefix).await?;
        let (fed, _) = watch::channel(0);
        let inner = Inner {
            client,
            prefix,
            limits: options.limits,
            scale,
            newest: AtomicI64::new(newest),
            fed,
            following: AtomicBool::new(false),
            follower: Mutex::new(None),
            pulsing: tokio::sync::Mutex::new(()),
            asking: Mutex::default(),
            foreign: Mutex::default(),
        };
        Ok(Etcd { inner: Arc::new(inner), runtime: tokio::runtime::Handle::current() })
    }

    fn spawn<T, F>(&self, work: impl FnOnce(Arc<Inner>) -> F) -> Ticket<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let (done, ticket) = Ticket::new();
        let work = work(self.inner.clone());
        self.runtime.spawn(async move { done(work.await) });
        ticket
    }

    /// The time that a lease was granted for, in milliseconds; `None` when it is gone.
    pub fn lease_ms(&self, id: LeaseId) -> Ticket<Option<u64>> {
        self.spawn(move |inner| async move {
            let answer = inner.lease(id, false).await?;
            let there = answer.ttl > 0;
            Ok(u64::try_from(answer.granted).ok().filter(|_| there).map(|seconds| seconds * 1000))
        })
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if let Some(follower) = lock(&self.inner.follower).take() {
            follower.abort();
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    /// The place of one of our keys.
    fn place(&self, key: &[u8]) -> Bytes {
        [&self.prefix[..], DATA, key].concat().into()
    }

    /// Our key at a place; `None` for what is not data.
    fn key(&self, place: &Bytes) -> Option<Bytes> {
        let skip = self.prefix.len() + DATA.len();
        let data = place.strip_prefix(&self.prefix[..])?.strip_prefix(DATA)?;
        (!data.is_empty()).then(|| place.slice(skip..))
    }

    /// First place and first place behind.
    fn places(&self, range: &Range, start_after: Option<&[u8]>) -> (Bytes, Bytes) {
        let start = match start_after {
            Some(after) if after >= &range.start[..] => self.place(&[after, &[0]].concat()),
            _ => self.place(&range.start),
        };
        let end = match &range.end {
            Some(end) => self.place(end),
            None => end_of(&self.place(b"")),
        };
        (start, end)
    }

    fn note(&self, header: Option<&m::Header>) -> i64 {
        let revision = m::revision(header);
        self.newest.fetch_max(revision, Ordering::AcqRel);
        revision
    }

    async fn ask<A: prost::Message, B: prost::Message + Default>(&self, path: &str, request: &A) -> Result<B, Error> {
        self.client.call(path, request, Repeat::Harmless).await.map_err(|failure| self.error(&failure))
    }

    /// The newest revision of all etcd, by its quorum.
    async fn quorum(&self) -> Result<i64, Error> {
        let key: Bytes = [&self.prefix[..], META].concat().into();
        let request = m::RangeRequest { key, count_only: true, ..m::RangeRequest::default() };
        let answer: m::RangeResponse = self.ask("/etcdserverpb.KV/Range", &request).await?;
        Ok(self.note(answer.header.as_ref()))
    }

    /// Waits until the sink was given everything up to `revision`.
    async fn reach(&self, revision: i64) -> Result<(), Error> {
        let mut fed = self.fed.subscribe();
        if !self.following.load(Ordering::Acquire) || *fed.borrow() >= revision {
            return Ok(());
        }
        // The sender lives as long as `self`, so the wait ends by success or by its time.
        if tokio::time::timeout(PULSE_AFTER, fed.wait_for(|at| *at >= revision)).await.is_ok() {
            return Ok(());
        }
        self.pulse(revision).await?;
        let late = |_| Error::Unknown(format!("the feed of etcd did not come to revision {revision} in time"));
        tokio::time::timeout(FEED_WAIT, fed.wait_for(|at| *at >= revision)).await.map(|_| ()).map_err(late)
    }

    /// Writes something after `revision`, so that the feed passes it even if it was none of ours. One at a time: the
    /// first who comes does it for all.
    async fn pulse(&self, revision: i64) -> Result<(), Error> {
        let _turn = self.pulsing.lock().await;
        let mut fed = self.fed.subscribe();
        if *fed.borrow() >= revision {
            return Ok(());
        }
        let key = [&self.prefix[..], PULSE].concat().into();
        let request = m::PutRequest { key, ..m::PutRequest::default() };
        let answer: m::PutResponse = self.ask("/etcdserverpb.KV/Put", &request).await?;
        let at = self.note(answer.header.as_ref());
        let _ = tokio::time::timeout(PULSE_AFTER, fed.wait_for(|fed| *fed >= at)).await;
        Ok(())
    }

    async fn read(
        &self,
        range: Range,
        at: Option<Revision>,
        start_after: Option<Bytes>,
        limit: usize,
    ) -> Result<Page, Error> {
        let mut at = at.map(|told| self.scale.of_etcd(told).ok_or(Error::Compacted(self.scale.floor()))).transpose()?;
        if at == Some(0) {
            return Ok(Page { revision: Revision::ZERO, items: Vec::new(), more: false });
        }
        let (mut key, range_end) = self.places(&range, start_after.as_deref());
        let mut items = Vec::new();
        loop {
            let wanted = if limit == 0 { RANGE_KEYS } else { RANGE_KEYS.min(limit as i64 - items.len() as i64) };
            let request = m::RangeRequest {
                key,
                range_end: range_end.clone(),
                limit: wanted,
                revision: at.unwrap_or(0),
                count_only: false,
            };
            if request.key >= request.range_end {
                let revision = self.scale.told(at.unwrap_or(self.newest.load(Ordering::Acquire)));
                return Ok(Page { revision, items, more: false });
            }
            let answer: m::RangeResponse = self.ask("/etcdserverpb.KV/Range", &request).await?;
            let header = self.note(answer.header.as_ref());
            // All pages are of the revision of the first.
            let revision = *at.get_or_insert(header);
            for pair in &answer.kvs {
                let (Some(key), Some(version)) = (self.key(&pair.key), self.decode(pair)) else { continue };
                items.push((key, Arc::new(version)));
            }
            let full = limit > 0 && items.len() >= limit;
            match answer.kvs.last() {
                Some(last) if answer.more && !full => key = [&last.key[..], &[0]].concat().into(),
                _ => return Ok(Page { revision: self.scale.told(revision), items, more: answer.more }),
            }
        }
    }

    /// A value as it is shown; `None` where it is none of ours, which is said once for each. Others can write whatever
    /// they like below our prefix: it must neither stop the cluster nor be taken for a part of it. What stood there before
    /// is gone, and the key can be written again when theirs has been deleted.
    pub(crate) fn decode(&self, pair: &m::KeyValue) -> Option<Version> {
        let version = value::decode(pair, &self.scale);
        if version.is_none() && self.key(&pair.key).is_some() {
            let mut told = lock(&self.foreign);
            if told.len() < FOREIGN_TOLD_MAX && told.insert((pair.key.clone(), pair.mod_revision)) {
                tracing::error!(
                    "the value of {} at etcd's revision {} was not written by Gantry, and is left out; delete that key",
                    pair.key.escape_ascii(),
                    pair.mod_revision
                );
            }
        }
        version
    }

    async fn lease(&self, id: LeaseId, keys: bool) -> Result<m::LeaseResponse, Error> {
        let request = m::LeaseRequest { id: number(id), keys };
        self.ask("/etcdserverpb.Lease/LeaseTimeToLive", &request).await
    }

    /// What a failure means to the store's callers.
    fn error(&self, failure: &Failure) -> Error {
        let Failure::Said { code, message } = failure else {
            return Error::Unknown(format!("etcd: {failure}"));
        };
        let newest = self.scale.told(self.newest.load(Ordering::Acquire));
        let beyond = |what, limit| Error::Invalid(store::Invalid::BeyondBackend { what, found: limit + 1, limit });
        match *code {
            code::OUT_OF_RANGE if message.contains("future revision") => Error::Ahead(newest),
            code::OUT_OF_RANGE => Error::Compacted(newest),
            code::RESOURCE_EXHAUSTED if message.contains("space exceeded") => {
                Error::Disk { operation: "write to etcd", full: true, message: message.clone() }
            }
            code::RESOURCE_EXHAUSTED if message.contains("larger than max") => {
                beyond("bytes", self.limits.request_bytes)
            }
            code::RESOURCE_EXHAUSTED => Error::Busy,
            code::INVALID_ARGUMENT if message.contains("too large") => beyond("bytes", self.limits.request_bytes),
            code::INVALID_ARGUMENT if message.contains("too many operations") => {
                beyond("operations", self.limits.operations)
            }
            _ => Error::Unknown(format!("etcd: {message}")),
        }
    }
}

fn damaged(message: String) -> Error {
    Error::Disk { operation: "read from etcd", full: false, message }
}

fn number(id: LeaseId) -> i64 {
    i64::try_from(id.0).unwrap_or(i64::MAX)
}

/// The first key behind all that begin with `prefix`.
fn end_of(prefix: &[u8]) -> Bytes {
    // Our prefixes end in a letter or a slash, so they have one.
    Range::prefix(prefix.to_vec()).end.unwrap_or_else(|| Bytes::from_static(&[0]))
}

impl Backend for Etcd {
    fn submit(&self, txn: Txn, done: Done<Commit>) {
        let inner = self.inner.clone();
        self.runtime.spawn(async move { done(inner.commit(txn).await) });
    }

    fn range(&self, range: Range, at: Option<Revision>, start_after: Option<Bytes>, limit: usize) -> Ticket<Page> {
        self.spawn(move |inner| async move { inner.read(range, at, start_after, limit).await })
    }

    fn count(&self, range: Range, at: Option<Revision>) -> Ticket<usize> {
        self.spawn(move |inner| async move {
            let told = |told| inner.scale.of_etcd(told).ok_or(Error::Compacted(inner.scale.floor()));
            let revision = at.map(told).transpose()?;
            let (key, range_end) = inner.places(&range, None);
            if revision == Some(0) || key >= range_end {
                return Ok(0);
            }
            let revision = revision.unwrap_or(0);
            let request = m::RangeRequest { key, range_end, revision, count_only: true, limit: 0 };
            let answer: m::RangeResponse = inner.ask("/etcdserverpb.KV/Range", &request).await?;
            inner.note(answer.header.as_ref());
            Ok(usize::try_from(answer.count).unwrap_or(0))
        })
    }

    fn since(&self, after: Revision, max: usize) -> Ticket<Events> {
        self.spawn(move |inner| async move { feed::since(&inner, after, max).await })
    }

    fn follow(&self, after: Revision, sink: Box<dyn Sink>) -> Ticket<Revision> {
        self.spawn(move |inner| async move { feed::follow(inner, after, sink).await })
    }

    fn grant(&self, ttl_ms: u64) -> Ticket<LeaseId> {
        self.spawn(move |inner| async move {
            if ttl_ms == 0 {
                return Err(Error::Invalid(store::Invalid::LeaseTooShort));
            }
            // Never shorter than asked. A lease whose grant got lost ends by itself, so asking again is harmless.
            let request = m::LeaseGrantRequest { ttl: i64::try_from(ttl_ms.div_ceil(1000)).unwrap_or(i64::MAX) };
            let answer: m::LeaseGrantResponse = inner.ask("/etcdserverpb.Lease/LeaseGrant", &request).await?;
            let id = u64::try_from(answer.id).ok().filter(|_| answer.error.is_empty());
            id.map(LeaseId).ok_or_else(|| Error::Unknown(format!("etcd: {}", answer.error)))
        })
    }

    fn renew(&self, id: LeaseId) -> Ticket<u64> {
        self.spawn(move |inner| async move {
            let request = m::LeaseRequest { id: number(id), keys: false };
            let answer: m::LeaseResponse = inner.ask("/etcdserverpb.Lease/LeaseKeepAlive", &request).await?;
            let seconds = u64::try_from(answer.ttl).ok().filter(|seconds| *seconds > 0);
            seconds.map(|seconds| seconds * 1000).ok_or(Error::NoSuchLease(id))
        })
    }

    fn revoke(&self, id: LeaseId) -> Ticket<Commit> {
        self.spawn(move |inner| async move {
            let changed = inner.lease(id, true).await?.keys.len();
            let request = m::LeaseRequest { id: number(id), keys: false };
            let answer = inner.client.call("/etcdserverpb.Lease/LeaseRevoke", &request, Repeat::Never).await;
            let answer: m::LeaseRevokeResponse = answer.map_err(|failure| match &failure {
                Failure::Said { code: code::NOT_FOUND, .. } => Error::NoSuchLease(id),
                failure => inner.error(failure),
            })?;
            let at = inner.note(answer.header.as_ref());
            if changed > 0 {
                inner.reach(at).await?;
            }
            Ok(Commit { revision: inner.scale.told(at), changed })
        })
    }

    fn compact(&self, at: Revision) -> Ticket<()> {
        self.spawn(move |inner| async move {
            let newest = inner.quorum().await?;
            let Some(revision) = inner.scale.of_etcd(at).map(|at| at.min(newest)).filter(|at| *at > 0) else {
                return Ok(());
            };
            let request = m::CompactionRequest { revision };
            let answer = inner.client.call("/etcdserverpb.KV/Compact", &request, Repeat::Harmless).await;
            match answer {
                Ok(m::CompactionResponse { .. }) => Ok(()),
                // Somebody was faster, or it was us before an answer got lost.
                Err(Failure::Said { code: code::OUT_OF_RANGE, message }) if message.contains("compacted") => Ok(()),
                Err(failure) => Err(inner.error(&failure)),
            }
        })
    }

    fn revision(&self) -> Revision {
        self.inner.scale.told(self.inner.newest.load(Ordering::Acquire))
    }

    fn catch_up(&self) -> Option<Ticket<Revision>> {
        let (done, ticket) = Ticket::new();
        let mut asking = lock(&self.inner.asking);
        asking.waiting.push(done);
        if !std::mem::replace(&mut asking.running, true) {
            let inner = self.inner.clone();
            self.runtime.spawn(async move { inner.answer_all().await });
        }
        Some(ticket)
    }
}

impl Inner {
    async fn answer_all(&self) {
        loop {
            let waiting = {
                let mut asking = lock(&self.asking);
                asking.running = !asking.waiting.is_empty();
                std::mem::take(&mut asking.waiting)
            };
            if waiting.is_empty() {
                return;
            }
            let outcome = match self.quorum().await {
                Ok(at) => self.reach(at).await.map(|()| self.scale.told(at)),
                Err(error) => Err(error),
            };
            waiting.into_iter().for_each(|done| done(outcome.clone()));
        }
    }
}
