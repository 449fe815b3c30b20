//! The feed: one watch over everything below the prefix, resumed on another member when it breaks.
//!
//! etcd sends the events of one watch in the order of revisions, and all events of a revision in one message (we do not
//! let it cut messages up). So a message is a commit or several whole ones, and the last revision of a message is a place
//! to go on from.
//!
//! How far the feed is complete is told by events only. etcd's answer to a progress request may overtake events (fixed in
//! 3.4.25 and 3.5.8), so it is used to see that the member lives and for nothing else. Who must know that the feed has
//! come to some revision, though perhaps nothing of ours has it, puts the key `pulse`: its event comes after.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base::{Backoff, Revision};
use bytes::Bytes;
use store::{Error, Event, Events, Range, Sink};
use tokio::sync::{mpsc, oneshot};

use crate::client::Client;
use crate::message as m;
use crate::rpc::{Answers, Failure, Link, Outgoing, framed};
use crate::{Inner, PULSE_AFTER, end_of, lock};

/// How often a member is asked whether it still is there.
const ALIVE_EVERY: Duration = Duration::from_millis(500);
/// A member that says nothing for this long is given up.
const SILENCE_MAX: Duration = Duration::from_millis(2_000);
const PAUSES: Backoff = Backoff::new(20, 1_000);

/// Why a watch ended.
#[derive(Debug)]
enum End {
    /// What came after the place is no longer there.
    Compacted(i64),
    Lost(String),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> End {
        End::Lost(failure.to_string())
    }
}

/// An open watch.
struct Watch {
    link: Arc<Link>,
    answers: Answers,
    asks: mpsc::Sender<Bytes>,
    /// Events up to here are known already.
    after: i64,
}

impl Watch {
    async fn open(client: &Client, prefix: &Bytes, after: i64) -> Result<Watch, End> {
        let link = client.link().await.map_err(End::Lost)?;
        let (asks, asked) = mpsc::channel(4);
        // It begins at `after` itself: etcd then says for certain whether what follows is still complete.
        let create = m::WatchCreateRequest {
            key: prefix.clone(),
            range_end: end_of(prefix),
            start_revision: after.max(1),
            progress_notify: false,
            prev_kv: true,
        };
        let create = m::WatchRequest { request: Some(m::WatchAsk::Create(create)) };
        asks.send(framed(&create)).await.map_err(|_| End::Lost("the watch was not sent".to_owned()))?;
        let opening = link.send("/etcdserverpb.Watch/Watch", Outgoing::Stream(asked));
        let silent = || End::Lost(format!("{} does not open a watch", link.endpoint));
        match tokio::time::timeout(SILENCE_MAX, opening).await {
            Ok(Ok(answers)) => Ok(Watch { link, answers, asks, after }),
            Ok(Err(failure)) => {
                client.give_up(&link);
                Err(failure.into())
            }
            Err(_) => {
                client.give_up(&link);
                Err(silent())
            }
        }
    }

    /// The next events, whole revisions, oldest first; none when the member only said that it is there.
    async fn next(&mut self) -> Result<Vec<m::Event>, End> {
        let mut silent = Duration::ZERO;
        let answer: m::WatchResponse = loop {
            match tokio::time::timeout(ALIVE_EVERY, self.answers.next()).await {
                Ok(answer) => break answer?.ok_or_else(|| End::Lost("the watch ended".to_owned()))?,
                Err(_) if silent >= SILENCE_MAX => {
                    return Err(End::Lost(format!("{} is silent", self.link.endpoint)));
                }
                Err(_) => {
                    silent += ALIVE_EVERY;
                    let progress = m::WatchRequest { request: Some(m::WatchAsk::Progress(m::WatchProgressRequest {})) };
                    // A full queue means that the member takes nothing; its silence will tell.
                    let _ = self.asks.try_send(framed(&progress));
                }
            }
        };
        if answer.compact_revision > 0 {
            return Err(End::Compacted(answer.compact_revision));
        }
        if answer.canceled {
            return Err(End::Lost(format!("etcd ended the watch: {}", answer.cancel_reason)));
        }
        let known = self.after;
        let revision = |event: &m::Event| event.kv.as_ref().map_or(0, |pair| pair.mod_revision);
        let events: Vec<m::Event> = answer.events.into_iter().filter(|event| revision(event) > known).collect();
        self.after = events.last().map_or(known, revision);
        Ok(events)
    }
}

impl Inner {
    /// Our events of etcd's. An error says that the past of a key is missing that is needed.
    pub(crate) fn events(&self, found: Vec<m::Event>) -> Result<Vec<Event>, String> {
        let mut events = Vec::with_capacity(found.len());
        for m::Event { of_type, kv, prev_kv } in found {
            let Some(pair) = kv else { continue };
            let Some(key) = self.key(&pair.key) else { continue };
            let deleted = of_type == m::EVENT_DELETE;
            if deleted && prev_kv.is_none() {
                return Err(format!("what {} was before its deletion is gone", key.escape_ascii()));
            }
            let old = prev_kv.and_then(|pair| self.decode(&pair)).map(Arc::new);
            let new = if deleted { None } else { self.decode(&pair).map(Arc::new) };
            // Where somebody else's value takes the place of ours, ours is gone; what is theirs alone is nothing to us.
            if old.is_none() && new.is_none() {
                continue;
            }
            events.push(Event { revision: self.scale.told(pair.mod_revision), key, old, new });
        }
        Ok(events)
    }
}

/// Begins to follow; answers when the past has been told.
pub async fn follow(inner: Arc<Inner>, after: Revision, sink: Box<dyn Sink>) -> Result<Revision, Error> {
    let newest = inner.quorum().await?;
    let from = start(&inner, after, newest)?;
    let (early, ended) = oneshot::channel();
    inner.following.store(true, Ordering::Release);
    let feeder = Feeder { client: inner.client.beside(), inner: inner.clone(), sink, at: from, early: Some(early) };
    let earlier = lock(&inner.follower).take();
    if let Some(earlier) = earlier {
        earlier.abort();
    }
    inner.fed.send_replace(from);
    let task = tokio::spawn(feeder.run());
    *lock(&inner.follower) = Some(task.abort_handle());
    tokio::select! {
        Ok(error) = ended => {
            inner.following.store(false, Ordering::Release);
            Err(error)
        }
        reached = inner.reach(newest) => reached.map(|()| inner.scale.told(newest)),
    }
}

/// etcd's revision after which to begin.
fn start(inner: &Inner, after: Revision, newest: i64) -> Result<i64, Error> {
    let from = inner.scale.of_etcd(after).ok_or(Error::Compacted(inner.scale.floor()))?;
    if from > newest { Err(Error::Ahead(inner.scale.told(newest))) } else { Ok(from) }
}

struct Feeder {
    inner: Arc<Inner>,
    /// Its own connection, so that a slow sink slows nobody down.
    client: Client,
    sink: Box<dyn Sink>,
    at: i64,
    /// Until the first events: whoever began is told that there is no beginning here.
    early: Option<oneshot::Sender<Error>>,
}

impl Feeder {
    async fn run(mut self) {
        let mut failures = 0;
        loop {
            match self.watch(&mut failures).await {
                End::Compacted(at) => {
                    if let Some(early) = self.early.take() {
                        let _ = early.send(Error::Compacted(self.inner.scale.told(at)));
                        return;
                    }
                    tracing::warn!("etcd has forgotten what came after revision {}; the whole state follows", self.at);
                    if let Err(error) = self.begin_anew().await {
                        tracing::warn!("the whole state is not read yet: {error}");
                        failures += 1;
                    }
                }
                End::Lost(why) => {
                    failures += 1;
                    tracing::info!("the feed of etcd is resumed after revision {}: {why}", self.at);
                }
            }
            tokio::time::sleep(Duration::from_millis(PAUSES.delay_ms(failures))).await;
        }
    }

    /// Watches until the watch ends.
    async fn watch(&mut self, failures: &mut u32) -> End {
        let mut watch = match Watch::open(&self.client, &self.inner.prefix, self.at).await {
            Ok(watch) => watch,
            Err(end) => return end,
        };
        loop {
            let found = match watch.next().await {
                Ok(found) => found,
                Err(end) => {
                    self.client.give_up(&watch.link);
                    return end;
                }
            };
            *failures = 0;
            if found.is_empty() {
                continue;
            }
            match self.inner.events(found) {
                Ok(events) => {
                    if !events.is_empty() {
                        self.sink.on_events(&events);
                    }
                    self.tell(watch.after);
                }
                Err(why) => {
                    tracing::warn!("{why}");
                    return End::Compacted(watch.after);
                }
            }
        }
    }

    fn tell(&mut self, at: i64) {
        self.at = at;
        self.early = None;
        self.inner.newest.fetch_max(at, Ordering::AcqRel);
        self.inner.fed.send_replace(at);
    }

    async fn begin_anew(&mut self) -> Result<(), Error> {
        let page = self.inner.read(Range::all(), None, None, 0).await?;
        let at = self.inner.scale.of_etcd(page.revision).unwrap_or(self.at);
        self.sink.on_state(page.revision, page.items);
        self.tell(at);
        Ok(())
    }
}

/// The events after `after` up to now, about `max` of them.
pub async fn since(inner: &Inner, after: Revision, max: usize) -> Result<Events, Error> {
    let newest = inner.quorum().await?;
    let from = start(inner, after, newest)?;
    let mut events: Vec<Event> = Vec::new();
    let client = inner.client.beside();
    let lost = |end: End| match end {
        End::Compacted(at) => Error::Compacted(inner.scale.told(at)),
        End::Lost(why) => Error::Unknown(format!("etcd: {why}")),
    };
    let mut watch = Watch::open(&client, &inner.prefix, from).await.map_err(lost)?;
    let mut pulsed = false;
    while watch.after < newest {
        let next = match tokio::time::timeout(PULSE_AFTER, watch.next()).await {
            Ok(next) => next.map_err(lost)?,
            Err(_) if pulsed => watch.next().await.map_err(lost)?,
            Err(_) => {
                // Perhaps nothing of ours has the newest revision.
                pulsed = true;
                let key = [&inner.prefix[..], crate::PULSE].concat().into();
                let request = m::PutRequest { key, ..m::PutRequest::default() };
                let _: m::PutResponse = inner.ask("/etcdserverpb.KV/Put", &request).await?;
                continue;
            }
        };
        events.extend(inner.events(next).map_err(crate::damaged)?);
    }
    let newest = inner.scale.told(newest);
    events.retain(|event| event.revision <= newest);
    let cut = events.get(max.saturating_sub(1)).map(|event| event.revision).filter(|_| max < events.len());
    if let Some(last) = cut {
        events.retain(|event| event.revision <= last);
        return Ok(Events { events, revision: last });
    }
    Ok(Events { events, revision: newest })
}
