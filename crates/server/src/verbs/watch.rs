//! Watches: a cursor into the cache's history, pulled whenever the client has taken what it was given.
//!
//! There is no buffer per watcher: a slow client is only a cursor that lags; one that lags past the history gets 410.
//!
//! What a send costs is mostly the way through TLS and the kernel, not the events. A watch on which events keep coming
//! therefore sends at most every [`PACE`], all that has gathered; one on which they are rare sends each at once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use base::Revision;
use bytes::Bytes;
use cache::{Compacted, Event, Part, View};
use client::{Interest, Listener, Mirror};
use futures_util::Stream;
use futures_util::future::BoxFuture;
use meta::{Kind, Object, Reason, Status, Value, json};

use super::list::{Filter, matching, part_of};
use crate::storage::restamped;

/// Events taken from the history at once.
const PULL_MAX: usize = 256;
/// Bytes put together for one write.
const WRITE_MAX_BYTES: usize = 128 * 1024;
/// Bytes of a frame around an object.
const FRAME_BYTES: usize = 64;
/// The least time between two sends while events keep coming.
const PACE: Duration = Duration::from_millis(3);
/// Events keep coming where a send follows another within this time.
const BUSY: Duration = Duration::from_millis(10);
/// How often a bookmark is sent to those who want some.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

/// How an object is shown in this watch: gives its text to the second argument.
pub type Show = Arc<dyn Fn(&Object, &mut dyn FnMut(&[u8])) + Send + Sync>;
/// Objects in the version that is watched, asked of somebody.
pub type Convert = Arc<dyn Fn(Vec<Object>) -> BoxFuture<'static, Result<Vec<Object>, Status>> + Send + Sync>;
/// Wraps one event: its type and the object's text, into the bytes of one frame.
pub type Frame = fn(&str, &[u8], &mut Vec<u8>);

/// What a watch wants.
pub struct Wish {
    pub kind: Arc<Kind>,
    pub namespace: String,
    pub filter: Filter,
    pub since: Revision,
    pub bookmarks: bool,
    /// First everything that exists, then a bookmark that says so.
    pub initial: Option<View>,
    /// The bookmark after the initial objects is annotated (`sendInitialEvents=true`).
    pub marks_initial: bool,
    pub timeout: Duration,
    /// Becomes true when the server has nothing more to show.
    pub over: tokio::sync::watch::Receiver<bool>,
    pub show: Show,
    /// Of kinds whose versions differ in more than their name.
    pub convert: Option<Convert>,
    pub frame: Frame,
}

/// JSON frames: one object a line.
pub fn json_frame(of_type: &str, object: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(of_type.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    out.extend_from_slice(object);
    out.extend_from_slice(b"}\n");
}

/// What an event is to a watcher with this filter.
fn seen<'a>(wish: &Wish, event: &'a Event) -> Option<(&'static str, &'a Object)> {
    let inside = |object: &&Object| {
        (wish.namespace.is_empty() || object.namespace() == wish.namespace) && wish.filter.matches(&wish.kind, object)
    };
    let (old, new) = (event.old.as_ref().filter(inside), event.new.as_ref().filter(inside));
    match (old, new) {
        (None, Some(new)) => Some(("ADDED", new)),
        (Some(_), Some(new)) => Some(("MODIFIED", new)),
        (Some(old), None) => Some(("DELETED", event.new.as_ref().unwrap_or(old))),
        (None, None) => None,
    }
}

/// About how much is sent of an event that is shown.
fn shown_bytes(event: &Event) -> usize {
    event.new.as_ref().or(event.old.as_ref()).map_or(0, Object::text_len) + FRAME_BYTES
}

struct Watch {
    wish: Wish,
    mirror: Arc<Mirror>,
    cursor: Revision,
    part: Part,
    changed: Listener,
    deadline: tokio::time::Instant,
    next_bookmark: tokio::time::Instant,
    initial: VecDeque<Object>,
    initial_bookmark: bool,
    /// The initial objects are in the version that is watched.
    converted: bool,
    /// What of objects the watch is about shows only in its version ([`Filter::before_conversion`]).
    chooses_converted: bool,
    ended: bool,
    /// When events were sent last, and when the next may be.
    sent: tokio::time::Instant,
    not_before: Option<tokio::time::Instant>,
}

/// The frames of a watch, until its time is over or its server stops.
pub fn frames(wish: Wish, mirror: Arc<Mirror>) -> impl Stream<Item = Bytes> + Send {
    let now = tokio::time::Instant::now();
    let rough = wish.filter.before_conversion(&wish.kind);
    let filter = rough.as_ref().unwrap_or(&wish.filter);
    let part = part_of(&wish.kind, &wish.namespace, filter);
    let initial: VecDeque<Object> = match &wish.initial {
        Some(view) => matching(&wish.kind, &part, &wish.namespace, filter, view).into(),
        None => VecDeque::new(),
    };
    let watch = Watch {
        cursor: wish.initial.as_ref().map_or(wish.since, View::at),
        changed: mirror.listen(Interest::Parts(vec![(wish.kind.resource, part.clone())])),
        part,
        deadline: now + wish.timeout,
        next_bookmark: now + BOOKMARK_EVERY,
        initial,
        initial_bookmark: wish.marks_initial,
        converted: wish.convert.is_none(),
        chooses_converted: rough.is_some(),
        ended: false,
        sent: now,
        not_before: None,
        wish,
        mirror,
    };
    futures_util::stream::unfold(watch, |mut watch| async move { watch.next().await.map(|bytes| (bytes, watch)) })
}

impl Watch {
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut out = Vec::new();
        if !std::mem::replace(&mut self.converted, true)
            && let Some(convert) = self.wish.convert.clone()
        {
            match convert(std::mem::take(&mut self.initial).into()).await {
                Ok(objects) => {
                    self.initial = objects.into();
                    self.initial.retain(|object| self.wish.filter.matches(&self.wish.kind, object));
                }
                Err(status) => return Some(self.fail(&status)),
            }
        }
        while let Some(object) = self.initial.pop_front() {
            self.put("ADDED", &object, &mut out);
            if out.len() >= WRITE_MAX_BYTES {
                return Some(out.into());
            }
        }
        if std::mem::take(&mut self.initial_bookmark) {
            self.bookmark(true, &mut out);
        }
        if !out.is_empty() {
            return Some(out.into());
        }
        if let Some(at) = self.not_before.take() {
            tokio::time::sleep_until(at).await;
        }
        if *self.wish.over.borrow() {
            return self.last();
        }
        loop {
            // Noted before the pull, so that a change right after it wakes us again.
            let at = self.mirror.revision();
            match self.mirror.since_in(self.wish.kind.resource, &self.part, self.cursor, PULL_MAX) {
                Err(Compacted { .. }) => return Some(self.fail(&too_old(self.cursor))),
                Ok(events) => {
                    out.reserve(events.iter().map(shown_bytes).sum::<usize>().min(2 * WRITE_MAX_BYTES));
                    if let Err(status) = self.put_all(&events, &mut out).await {
                        return Some(self.fail(&status));
                    }
                    self.cursor = events.last().map_or(self.cursor.max(at), |event| event.revision);
                    if !out.is_empty() {
                        let now = tokio::time::Instant::now();
                        self.not_before = (now - self.sent < BUSY).then(|| now + PACE);
                        self.sent = now;
                        return Some(out.into());
                    }
                    if !events.is_empty() {
                        continue;
                    }
                }
            }
            tokio::select! {
                () = self.changed.changed() => {}
                () = tokio::time::sleep_until(self.next_bookmark), if self.wish.bookmarks => {
                    self.next_bookmark += BOOKMARK_EVERY;
                    self.bookmark(false, &mut out);
                    return Some(out.into());
                }
                // Its time is over, or the server's: the client asks again, there or elsewhere, from where it is.
                () = end(self.deadline, &mut self.wish.over) => {
                    return self.last();
                }
            }
        }
    }

    /// What is sent last: up to where the client was told everything, if it wants to know.
    fn last(&mut self) -> Option<Bytes> {
        self.ended = true;
        let mut out = Vec::new();
        if self.wish.bookmarks {
            self.bookmark(false, &mut out);
        }
        (!out.is_empty()).then(|| out.into())
    }

    /// The last frame: why the watch ends.
    fn fail(&mut self, status: &Status) -> Bytes {
        self.ended = true;
        let mut out = Vec::new();
        (self.wish.frame)("ERROR", &status.to_value().to_json(), &mut out);
        out.into()
    }

    /// What the watcher sees of events; where its version has to be asked for, all by one question.
    async fn put_all(&self, events: &[Event], out: &mut Vec<u8>) -> Result<(), Status> {
        if let (Some(convert), true) = (&self.wish.convert, self.chooses_converted) {
            for event in converted(events, convert).await? {
                let Some((of_type, object)) = seen(&self.wish, &event) else { continue };
                let gone = (of_type == "DELETED").then(|| deleted(object, event.revision));
                self.put(of_type, gone.as_ref().unwrap_or(object), out);
            }
            return Ok(());
        }
        let mut asked: (Vec<&'static str>, Vec<Object>) = Default::default();
        for event in events {
            let Some((of_type, object)) = seen(&self.wish, event) else { continue };
            let gone = (of_type == "DELETED").then(|| deleted(object, event.revision));
            let object = gone.as_ref().unwrap_or(object);
            match self.wish.convert {
                None => self.put(of_type, object, out),
                Some(_) => {
                    asked.0.push(of_type);
                    asked.1.push(object.clone());
                }
            }
        }
        let (types, objects) = asked;
        if let (Some(convert), false) = (&self.wish.convert, types.is_empty()) {
            let objects = convert(objects).await?;
            types.iter().zip(&objects).for_each(|(of_type, object)| self.put(of_type, object, out));
        }
        Ok(())
    }

    fn put(&self, of_type: &str, object: &Object, out: &mut Vec<u8>) {
        (self.wish.show)(object, &mut |text| (self.wish.frame)(of_type, text, out));
    }

    fn bookmark(&self, initial: bool, out: &mut Vec<u8>) {
        let names = &self.wish.kind.names;
        let mut object = json!({
            "apiVersion": (names.api_version()), "kind": (&names.kind),
            "metadata": {"resourceVersion": (self.cursor.to_string())},
        });
        if initial {
            let annotations: &[&str] = &["metadata", "annotations"];
            object.make(annotations).make_map().insert("k8s.io/initial-events-end", Value::from("true"));
        }
        let facts = meta::Facts::of(self.wish.kind.resource, &object);
        self.put("BOOKMARK", &Object::new(facts, object.to_json()), out);
    }
}

/// Events with what was and what is in the version that is watched, all by one question.
async fn converted(events: &[Event], convert: &Convert) -> Result<Vec<Event>, Status> {
    let objects = events.iter().flat_map(|event| [&event.old, &event.new]).flatten().cloned().collect();
    let mut objects = convert(objects).await?.into_iter();
    let mut take = |had: &Option<Object>| had.as_ref().and_then(|_| objects.next());
    Ok(events.iter().map(|event| Event { old: take(&event.old), new: take(&event.new), ..event.clone() }).collect())
}

/// Until the time of a watch is over, or its server has nothing more to show.
async fn end(deadline: tokio::time::Instant, over: &mut tokio::sync::watch::Receiver<bool>) {
    let over = async {
        if over.wait_for(|over| *over).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = over => {}
        () = tokio::time::sleep_until(deadline) => {}
    }
}

/// A deleted object is shown as it was last, at the revision of its deletion.
fn deleted(object: &Object, revision: Revision) -> Object {
    let facts = meta::Facts { revision, ..object.facts().clone() };
    Object::new(facts, restamped(object, revision))
}

/// The history no longer reaches back to where the client was.
pub fn too_old(since: Revision) -> Status {
    Status::new(Reason::Expired, format!("too old resource version: {since}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::{Facts, Resource};

    #[tokio::test]
    async fn events_are_converted_with_what_was_and_what_is() {
        let object = |host: &str| {
            let value = json!({"metadata": {"name": host, "labels": {"version": "v1"}}});
            Object::new(Facts::of(Resource("cats.a.b"), &value), value.to_json())
        };
        let convert: Convert = Arc::new(|objects| {
            let newer = |object: Object| {
                let mut value = object.value();
                value.set(&["metadata", "labels", "version"], "v2");
                Object::new(Facts::of(object.resource(), &value), value.to_json())
            };
            Box::pin(async move { Ok(objects.into_iter().map(newer).collect()) })
        });
        let event = |old: Option<&str>, new: Option<&str>| Event {
            revision: Revision(1),
            old: old.map(object),
            new: new.map(object),
        };
        let events = [event(None, Some("a")), event(Some("a"), Some("b")), event(Some("b"), None)];
        let seen: Vec<(Option<String>, Option<String>)> = converted(&events, &convert)
            .await
            .unwrap()
            .iter()
            .map(|event| {
                let told = |object: &Option<Object>| {
                    object
                        .as_ref()
                        .map(|object| format!("{} {}", object.name(), object.labels().get("version").unwrap()))
                };
                (told(&event.old), told(&event.new))
            })
            .collect();
        let (a, b) = (Some("a v2".to_owned()), Some("b v2".to_owned()));
        assert_eq!(seen, [(None, a.clone()), (a, b.clone()), (b, None)]);
    }
}
