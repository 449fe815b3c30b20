//! The store that several servers share, and the way of each to it: what etcd and its client are to real servers.
//!
//! The store is the real one on a simulated disk, in a process of its own. A question to it and its answer travel, and
//! either may be lost; then nobody knows what became of it. Each server is fed by a watch of its own, which is late and
//! breaks off.
//!
//! Invariants: those of [`store::Backend`]. A write is answered after the server's sink was given it; a transaction whose
//! answer got lost is [`Error::Unknown`] and never sent twice; the feed has no gap and no repetition.

use std::sync::{Arc, Mutex};

use base::Revision;
use bytes::Bytes;
use drive::Shell;
use store::{Backend, Commit, Done, Error, Event, Events, LeaseId, Op, Page, Range, Sink, Ticket, Txn};
use tokio::sync::{oneshot, watch};

use crate::backend::Stepped;
use crate::check::Seen;
use crate::exec::{Author, Process, lock};
use crate::link::Net;

/// How long one try may take, how long a question that changes nothing is tried, and the pause between tries.
const TRY_TIMEOUT_MS: u64 = 2_000;
const CALL_TIMEOUT_MS: u64 = 8_000;
const AGAIN_MS: u64 = 25;
/// How long an answer waits for the feed to show what it tells of.
const FEED_WAIT_MS: u64 = 10_000;
/// Pause before a watch that broke off is begun anew, and after which a silent one is looked after.
const RECONNECT_MS: u64 = 100;
const SILENCE_MS: u64 = 5_000;
/// Events that a watch brings at once, about.
const EVENTS_MAX: usize = 1_000;

/// The store's side: one for all lives of the store.
pub struct Hub {
    up: Mutex<Option<(Process, Arc<Stepped>)>>,
    /// Moves when something was committed, and when the store comes or goes.
    moved: watch::Sender<u64>,
}

/// Wakes the watches.
struct Bell(watch::Sender<u64>);

impl Sink for Bell {
    fn on_events(&mut self, _: &[Event]) {
        self.0.send_modify(|moves| *moves += 1);
    }
}

impl Hub {
    pub fn new() -> Arc<Hub> {
        Arc::new(Hub { up: Mutex::default(), moved: watch::Sender::new(0) })
    }

    /// The store of this moment, and the process in which it works.
    pub fn set(&self, up: Option<(Process, Arc<Stepped>)>) {
        if let Some((process, stepped)) = &up {
            let following = stepped.follow(stepped.revision(), Box::new(Bell(self.moved.clone())));
            process.spawn(Box::pin(async move { drop(following.await) }));
        }
        *lock(&self.up) = up;
        self.moved.send_modify(|moves| *moves += 1);
    }

    pub fn up(&self) -> Option<(Process, Arc<Stepped>)> {
        lock(&self.up).clone()
    }
}

/// Why a question has no answer.
enum Failure {
    /// It certainly did not reach the store.
    NotSent,
    Lost,
}

fn unknown(why: &str) -> Error {
    Error::Unknown(why.to_owned())
}

/// One server's way to the store.
#[derive(Clone)]
pub struct Remote {
    hub: Arc<Hub>,
    net: Arc<Net>,
    /// The server, as its link to the store is cut by.
    name: Arc<str>,
    shell: Process,
    /// The newest revision that any answer told.
    newest: Arc<Mutex<Revision>>,
    /// Up to where the sink was given everything; `None` before there is one.
    fed: Arc<watch::Sender<Option<Revision>>>,
}

impl Remote {
    /// Connects, for as long as that takes.
    pub async fn open(hub: Arc<Hub>, net: Arc<Net>, name: &str, shell: Process) -> Remote {
        let (newest, fed) = (Arc::new(Mutex::new(Revision::ZERO)), Arc::new(watch::Sender::new(None)));
        let remote = Remote { hub, net, name: name.into(), shell, newest, fed };
        while remote.quorum().await.is_err() {
            remote.shell.sleep(RECONNECT_MS).await;
        }
        remote
    }

    /// Something of this server's talk with the store got lost.
    fn lost(&self) {
        self.net.truth.show(&Seen::Hindered { who: &self.name });
    }

    /// Asks once. The question travels on its own: whoever asked may have given up when it arrives.
    async fn once<T: Send + 'static>(
        &self,
        author: &Arc<Author>,
        ask: impl FnOnce(&Stepped) -> Ticket<T> + Send + 'static,
    ) -> Result<Result<T, Error>, Failure> {
        let (tell, heard) = oneshot::channel();
        let (own, author) = (self.clone(), author.clone());
        self.shell.on_behalf_of(&author).spawn(Box::pin(async move {
            let (net, name) = (&own.net, &*own.name);
            own.shell.sleep(net.travel_ms()).await;
            if net.cuts(name).up || net.chance(|weather| weather.lost) {
                own.shell.sleep(TRY_TIMEOUT_MS).await;
                return;
            }
            let Some((process, stepped)) = own.hub.up() else {
                let _ = tell.send(Err(Failure::NotSent));
                return;
            };
            let (answer, answered) = oneshot::channel();
            process.on_behalf_of(&author).spawn(Box::pin(async move {
                let outcome = ask(&stepped).await;
                // The connection may be gone.
                let _ = answer.send((stepped.revision(), outcome));
            }));
            let Ok((revision, outcome)) = answered.await else {
                own.shell.sleep(net.travel_ms()).await;
                let _ = tell.send(Err(Failure::Lost));
                return;
            };
            own.shell.sleep(net.travel_ms()).await;
            if net.cuts(name).down || net.chance(|weather| weather.answer_lost) {
                own.shell.sleep(TRY_TIMEOUT_MS).await;
                return;
            }
            own.note(revision);
            let _ = tell.send(Ok((revision, outcome)));
        }));
        let heard = tokio::select! {
            biased;
            heard = heard => heard.unwrap_or(Err(Failure::Lost)),
            () = self.shell.sleep(TRY_TIMEOUT_MS) => Err(Failure::Lost),
        };
        let (revision, outcome) = heard.inspect_err(|_| self.lost())?;
        if let Err(Error::Refused(_)) = &outcome {
            // Whoever decides anew must decide on something newer; that nothing has happened is known all the same.
            let _ = self.reach(revision).await;
        }
        Ok(outcome)
    }

    fn note(&self, revision: Revision) {
        let mut newest = lock(&self.newest);
        *newest = (*newest).max(revision);
    }

    /// Asks until there is an answer; what may have been done is asked again only when that is `harmless`.
    async fn ask<T: Send + 'static>(
        &self,
        author: &Arc<Author>,
        harmless: bool,
        ask: impl FnOnce(&Stepped) -> Ticket<T> + Clone + Send + 'static,
    ) -> Result<T, Error> {
        let until_ms = self.shell.steady_ms() + CALL_TIMEOUT_MS;
        loop {
            match self.once(author, ask.clone()).await {
                Ok(outcome) => return outcome,
                Err(Failure::Lost) if !harmless => return Err(unknown("the answer got lost")),
                Err(_) if self.shell.steady_ms() >= until_ms => return Err(unknown("the store does not answer")),
                Err(_) => self.shell.sleep(AGAIN_MS).await,
            }
        }
    }

    /// Works in a task of its own, on behalf of whoever asks.
    fn spawn<T, F>(&self, work: impl FnOnce(Remote, Arc<Author>) -> F) -> Ticket<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let author = self.net.exec.author();
        let (done, ticket) = Ticket::new();
        let work = work(self.clone(), author.clone());
        self.shell.on_behalf_of(&author).spawn(Box::pin(async move { done(work.await) }));
        ticket
    }

    fn read<T: Send + 'static>(&self, ask: impl FnOnce(&Stepped) -> Ticket<T> + Clone + Send + 'static) -> Ticket<T> {
        self.spawn(|own, author| async move { own.ask(&author, true, ask).await })
    }

    /// The newest revision of the store.
    async fn quorum(&self) -> Result<Revision, Error> {
        self.ask(&Arc::default(), true, |stepped| Ticket::ready(Ok(stepped.revision()))).await
    }

    /// Waits until the sink was given everything up to `revision`.
    async fn reach(&self, revision: Revision) -> Result<(), Error> {
        let mut fed = self.fed.subscribe();
        tokio::select! {
            biased;
            // The sender lives as long as `self`.
            _ = fed.wait_for(|fed| fed.is_none_or(|at| at >= revision)) => Ok(()),
            () = self.shell.sleep(FEED_WAIT_MS) => Err(unknown("the feed did not come along in time")),
        }
    }

    async fn commit(self, author: Arc<Author>, txn: Txn) -> Result<Commit, Error> {
        let commit = self.ask(&author, false, move |stepped| stepped.txn(txn)).await?;
        if commit.changed > 0 {
            self.reach(commit.revision).await?;
        }
        Ok(commit)
    }

    /// Brings the sink everything after `at`, for as long as the server lives.
    async fn feed(self, mut at: Revision, mut sink: Box<dyn Sink>) {
        let mut moved = self.hub.moved.subscribe();
        loop {
            moved.borrow_and_update();
            let cuts = self.net.cuts(&self.name);
            let there = self.hub.up().filter(|_| !cuts.up && !cuts.down);
            let Some((_, stepped)) = there else {
                self.shell.sleep(RECONNECT_MS).await;
                continue;
            };
            let brought = match stepped.since(at, EVENTS_MAX).await {
                Ok(events) if events.revision == at => None,
                Ok(events) => Some(Ok(events)),
                Err(_) => stepped.range(Range::all(), None, None, 0).await.ok().map(Err),
            };
            let Some(brought) = brought else {
                tokio::select! {
                    biased;
                    _ = moved.changed() => {}
                    () = self.shell.sleep(SILENCE_MS) => {}
                }
                continue;
            };
            self.shell.sleep(self.net.hop_ms()).await;
            if self.net.cuts(&self.name).down || self.net.chance(|weather| weather.watch_cut) {
                self.lost();
                self.shell.sleep(RECONNECT_MS).await;
                continue;
            }
            at = match brought {
                Ok(Events { mut events, revision }) => {
                    if let Some(mutation) = self.net.mutation {
                        mutation.watch(&mut events);
                    }
                    sink.on_events(&events);
                    revision
                }
                Err(Page { revision, items, .. }) => {
                    self.net.exec.note(format!("{} begins anew at r{revision}", self.name));
                    sink.on_state(revision, items);
                    revision
                }
            };
            self.note(at);
            self.fed.send_replace(Some(at));
        }
    }
}

impl Backend for Remote {
    fn submit(&self, mut txn: Txn, done: Done<Commit>) {
        for op in &mut txn.ops {
            if let Op::Put(put) = op {
                // What travels has no more than its bytes.
                put.attachment = None;
            }
        }
        if let Some(mutation) = self.net.mutation {
            mutation.txn(&mut txn);
        }
        let author = self.net.exec.author();
        let work = self.clone().commit(author.clone(), txn);
        self.shell.on_behalf_of(&author).spawn(Box::pin(async move { done(work.await) }));
    }

    fn range(&self, range: Range, at: Option<Revision>, start_after: Option<Bytes>, limit: usize) -> Ticket<Page> {
        let mutation = self.net.mutation;
        self.spawn(|own, author| async move {
            let ask = move |stepped: &Stepped| stepped.range(range, at, start_after, limit);
            let mut page = own.ask(&author, true, ask).await?;
            if let Some(mutation) = mutation {
                mutation.page(&mut page);
            }
            Ok(page)
        })
    }

    fn count(&self, range: Range, at: Option<Revision>) -> Ticket<usize> {
        self.read(move |stepped| stepped.count(range, at))
    }

    fn since(&self, after: Revision, max: usize) -> Ticket<Events> {
        self.read(move |stepped| stepped.since(after, max))
    }

    fn follow(&self, after: Revision, sink: Box<dyn Sink>) -> Ticket<Revision> {
        self.fed.send_replace(Some(after));
        self.shell.spawn(Box::pin(self.clone().feed(after, sink)));
        Ticket::ready(Ok(after))
    }

    fn grant(&self, ttl_ms: u64) -> Ticket<LeaseId> {
        self.read(move |stepped| stepped.grant(ttl_ms))
    }

    fn renew(&self, id: LeaseId) -> Ticket<u64> {
        self.read(move |stepped| stepped.renew(id))
    }

    fn revoke(&self, id: LeaseId) -> Ticket<Commit> {
        self.read(move |stepped| stepped.revoke(id))
    }

    fn compact(&self, at: Revision) -> Ticket<()> {
        self.read(move |stepped| stepped.compact(at))
    }

    fn revision(&self) -> Revision {
        *lock(&self.newest)
    }

    fn catch_up(&self) -> Option<Ticket<Revision>> {
        Some(self.spawn(|own, _| async move {
            let revision = own.quorum().await?;
            own.reach(revision).await?;
            Ok(revision)
        }))
    }
}
