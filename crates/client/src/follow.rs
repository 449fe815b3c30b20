//! Keeping a [`Mirror`] current over HTTPS: each [`Wish`] is one list and then one watch, resumed for ever.
//!
//! Invariants: nothing is skipped (a gap becomes a fresh list, whose differences become events); a failure is tried
//! again with a growing, spread pause, and what the cache showed stays meanwhile.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use base::{Backoff, Revision, Rng};
use bytes::BytesMut;
use cache::{Change, Source};
use http::Method;
use http_body_util::BodyExt;
use meta::{Facts, Object, Reason, Resource, Status, Str, Value};

use crate::http::{HttpApi, Path, escape};
use crate::mirror::Mirror;

/// Objects in one page of a list.
const PAGE_MAX: usize = 500;
/// How long one watch is asked for; spread, so that not all end at once.
const WATCH_SECONDS_MIN: u64 = 300;
const WATCH_SECONDS_SPREAD: u64 = 300;
/// How much longer than asked a watch may be silent before it counts as lost.
const SILENCE_SPARE: Duration = Duration::from_secs(30);
/// The largest event of a watch.
const EVENT_MAX_BYTES: usize = 16 << 20;
/// Events applied as one batch.
const BATCH_MAX: usize = 512;
const PAUSES: Backoff = Backoff::new(100, 10_000);

/// Makes a kind's own projection of an object (`api`'s `Rules::facts`).
pub type OwnFacts = fn(&Value) -> Option<Arc<dyn Any + Send + Sync>>;

/// A part of the API to be mirrored.
#[derive(Clone)]
pub struct Wish {
    pub resource: Resource,
    /// `None`: all namespaces.
    pub namespace: Option<Str>,
    /// As in requests, `spec.nodeName=a`; `""` for all objects.
    pub field_selector: Str,
    /// Of all objects only what this index of the server files elsewhere than before; `""` for all changes.
    pub moved_in: Str,
    pub facts: OwnFacts,
}

impl Wish {
    /// All objects of a resource, without a projection of their own.
    pub fn all(resource: Resource) -> Wish {
        let (field_selector, moved_in) = (Str::default(), Str::default());
        Wish { resource, namespace: None, field_selector, moved_in, facts: |_| None }
    }

    /// The feed that this wish is in the cache.
    pub fn source(&self) -> Source {
        let part = match &self.namespace {
            Some(namespace) => format!("{namespace}?{}{}", self.field_selector, self.moved_in),
            None => format!("?{}{}", self.field_selector, self.moved_in),
        };
        Source { resource: self.resource, part: part.into() }
    }
}

/// Follows all wishes until the future is dropped. `mirror.knows(resource, Revision(1))` waits for a resource's first
/// list.
pub async fn follow(api: Arc<HttpApi>, mirror: Arc<Mirror>, wishes: Vec<Wish>) {
    let sources: Vec<Source> = wishes.iter().map(Wish::source).collect();
    mirror.feed(|cache| sources.iter().for_each(|source| cache.register(source)));
    let mut tasks = tokio::task::JoinSet::new();
    for wish in wishes {
        tasks.spawn(follow_one(api.clone(), mirror.clone(), wish));
    }
    while tasks.join_next().await.is_some() {}
}

/// Follows one wish until the future is dropped; `mirror.feed(|cache| cache.forget(&wish.source()))` takes its objects
/// out again.
pub async fn follow_one(api: Arc<HttpApi>, mirror: Arc<Mirror>, wish: Wish) {
    let source = wish.source();
    mirror.feed(|cache| cache.register(&source));
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut rng = Rng::new(clock.as_nanos() as u64).fork(&format!("{source:?}"));
    let follower = Follower { api, mirror, wish, source };
    let mut failures = 0;
    let mut listed = false;
    loop {
        let result = if listed { follower.watch(&mut rng).await } else { follower.list().await.map(|()| true) };
        match result {
            // A watch that brought something or lasted is in order.
            Ok(useful) => {
                listed = true;
                failures = if useful { 0 } else { failures + 1 };
            }
            Err(status) => {
                failures += 1;
                let what = follower.wish.resource;
                if matches!(status.reason(), Reason::Expired | Reason::Gone) {
                    tracing::debug!("{what}: the history is lost, a fresh list follows: {status}");
                    listed = false;
                } else {
                    tracing::warn!("{what}: {} failed: {status}", if listed { "a watch" } else { "a list" });
                }
            }
        }
        let pause_ms = PAUSES.delay_ms(failures);
        if pause_ms > 0 {
            tokio::time::sleep(Duration::from_millis(pause_ms / 2 + rng.below(pause_ms / 2 + 1))).await;
        }
    }
}

struct Follower {
    api: Arc<HttpApi>,
    mirror: Arc<Mirror>,
    wish: Wish,
    source: Source,
}

impl Follower {
    fn url(&self, path: &Path) -> String {
        let mut url = path.collection(self.wish.namespace.as_deref().unwrap_or(""));
        url.push('?');
        if !self.wish.field_selector.is_empty() {
            url.push_str(&format!("fieldSelector={}&", escape(&self.wish.field_selector)));
        }
        if !self.wish.moved_in.is_empty() {
            url.push_str(&format!("movedIn={}&", escape(&self.wish.moved_in)));
        }
        url
    }

    /// Reads all pages and replaces what was known.
    async fn list(&self) -> Result<(), Status> {
        let path = self.api.path(self.wish.resource)?;
        let mut objects = Vec::new();
        let mut token = String::new();
        let revision = loop {
            let mut url = format!("{}limit={PAGE_MAX}", self.url(&path));
            if !token.is_empty() {
                url.push_str(&format!("&continue={}", escape(&token)));
            }
            let page = parse(&self.api.get_raw(&url).await?)?;
            let items = page["items"].items().iter();
            objects.extend(items.map(|item| self.object(item.clone(), &path)));
            token = page.at(&["metadata", "continue"]).text().to_owned();
            if token.is_empty() {
                break revision_of(&page);
            }
        };
        self.mirror.feed(|cache| cache.replace_from(&self.source, revision, objects));
        Ok(())
    }

    fn object(&self, mut value: Value, path: &Path) -> Object {
        let map = value.make_map();
        // In lists the items do not say what they are.
        if !map.contains("kind") {
            map.insert("kind", &path.kind);
            map.insert("apiVersion", path.api_version());
        }
        let mut facts = Facts::of(self.wish.resource, &value);
        facts.own = (self.wish.facts)(&value);
        let object = Object::new(facts, value.to_json());
        object.pack();
        object
    }

    /// Watches until the watch ends; says whether it was of use.
    async fn watch(&self, rng: &mut Rng) -> Result<bool, Status> {
        let path = self.api.path(self.wish.resource)?;
        let since = self.mirror.read().resume(&self.source);
        let seconds = WATCH_SECONDS_MIN + rng.below(WATCH_SECONDS_SPREAD);
        let url = format!(
            "{}watch=true&allowWatchBookmarks=true&resourceVersion={since}&timeoutSeconds={seconds}",
            self.url(&path)
        );
        let place = self.api.place();
        let open = self.api.open(Method::GET, &url, "", bytes::Bytes::new());
        let lost = |_| Status::new(Reason::Timeout, "the watch is silent");
        let mut body = tokio::time::timeout(SILENCE_SPARE, open).await.map_err(lost)??;
        let silence = Duration::from_secs(seconds) + SILENCE_SPARE;
        let mut rest = BytesMut::new();
        // How far the text was searched for the end of a line.
        let (mut searched, mut useful) = (0, false);
        loop {
            let frame = tokio::select! {
                biased;
                frame = tokio::time::timeout(silence, body.frame()) => frame.map_err(lost)?,
                // Calls found that server of no use; it may have lost its store and be silent for that.
                () = self.api.left(place) => return Ok(useful),
            };
            let Some(frame) = frame else { return Ok(useful) };
            let broken = |error| Status::new(Reason::ServiceUnavailable, format!("the watch broke off: {error}"));
            let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
            rest.extend_from_slice(&data);
            let mut batch = Vec::new();
            while let Some(end) = rest[searched..].iter().position(|byte| *byte == b'\n') {
                let line = rest.split_to(searched + end + 1);
                searched = 0;
                if line.len() > 1 {
                    self.event(&line, &path, &mut batch)?;
                    useful = true;
                }
                if batch.len() >= BATCH_MAX {
                    self.flush(&mut batch);
                }
            }
            searched = rest.len();
            self.flush(&mut batch);
            if rest.len() > EVENT_MAX_BYTES {
                return Err(Status::internal(format!("an event is larger than {EVENT_MAX_BYTES} bytes")));
            }
        }
    }

    fn flush(&self, batch: &mut Vec<Change>) {
        if !batch.is_empty() {
            let batch = std::mem::take(batch);
            self.mirror.feed(|cache| cache.apply_from(&self.source, batch));
        }
    }

    fn event(&self, line: &[u8], path: &Path, batch: &mut Vec<Change>) -> Result<(), Status> {
        let mut event = parse(line)?;
        let of_type: Str = event["type"].text().into();
        let object = event.take(&["object"]).unwrap_or(Value::Null);
        match of_type.as_str() {
            "ADDED" | "MODIFIED" => {
                let object = self.object(object, path);
                batch.push(Change { revision: object.revision(), old: None, new: Some(object) });
            }
            "DELETED" => {
                let object = self.object(object, path);
                batch.push(Change { revision: object.revision(), old: Some(object), new: None });
            }
            "BOOKMARK" => {
                self.flush(batch);
                let revision = revision_of(&object);
                self.mirror.feed(|cache| cache.advance_from(&self.source, revision));
            }
            "ERROR" => {
                self.flush(batch);
                return Err(Status::from_value(&object));
            }
            other => return Err(Status::internal(format!("the watch has an event of type {other:?}"))),
        }
        Ok(())
    }
}

fn parse(text: &[u8]) -> Result<Value, Status> {
    Value::parse(text).map_err(|error| Status::internal(format!("the server's text is not JSON: {error}")))
}

fn revision_of(object: &Value) -> Revision {
    Revision(object.at(&["metadata", "resourceVersion"]).text().parse().unwrap_or(0))
}
