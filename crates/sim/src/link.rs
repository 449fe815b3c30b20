//! The way between a process and the server: every call and every watch goes over it, and it may fail in every way.
//!
//! A call travels in its own time, so calls overtake each other. It may be lost, come twice, come long after its sender
//! gave up, and its answer may be lost. What a sender has on the wire is gone when it crashes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use base::{Revision, Rng};
use cache::{Cache, Change, Source, View};
use client::{Action, Answer, Api, Mirror, Reply, Request};
use drive::Shell;
use history::Outcome;
use meta::{Object, Reason, Resource, Status};
use server::Server;
use server::identity::User;
use tokio::sync::oneshot;

use crate::check::Seen;
use crate::exec::{Author, Exec, Process, lock};
use crate::mutation::Mutation;
use crate::truth::Truth;

/// Sealed in the store, so that the truth does not know them.
const SECRETS: Resource = Resource("secrets");
/// How long a caller waits for an answer.
const CALL_TIMEOUT_MS: u64 = 10_000;
/// Pause before a client tries to connect again.
const RECONNECT_MS: u64 = 200;
/// A late message comes up to this late.
const LATE_MS: u64 = 14_000;

/// How often what happens to a message, of 1,000; and how long it takes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    pub lost: u64,
    pub doubled: u64,
    pub late: u64,
    pub answer_lost: u64,
    pub watch_cut: u64,
    pub latency_ms: u64,
}

/// The server of this moment, and the process in which it works.
pub type Up = Option<(Arc<Server>, Process)>;

type Moves<T> = tokio::sync::watch::Receiver<T>;

/// All links of a world.
pub struct Net {
    pub exec: Exec,
    pub truth: Arc<Truth>,
    pub mutation: Option<Mutation>,
    weather: Mutex<Weather>,
    rng: Mutex<Rng>,
    up: Mutex<Up>,
    /// Moves when a server comes or goes.
    lives: tokio::sync::watch::Sender<u64>,
    cut: Mutex<BTreeMap<String, Cut>>,
    calls: Mutex<u64>,
    /// First answers, for a planted defect.
    stale: Arc<Mutex<BTreeMap<String, Answer>>>,
}

/// Which ways of a link are broken: to the server, and from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    pub up: bool,
    pub down: bool,
}

impl Cut {
    pub const BOTH: Cut = Cut { up: true, down: true };
    pub const NONE: Cut = Cut { up: false, down: false };
}

impl Net {
    pub fn new(exec: &Exec, truth: &Arc<Truth>, rng: Rng, mutation: Option<Mutation>) -> Arc<Net> {
        let (weather, rng) = (Mutex::default(), Mutex::new(rng));
        let (up, cut, lives) = (Mutex::default(), Mutex::default(), tokio::sync::watch::Sender::new(0));
        let (calls, stale) = (Mutex::default(), Arc::default());
        let (exec, truth) = (exec.clone(), truth.clone());
        Arc::new(Net { exec, truth, mutation, weather, rng, up, lives, cut, calls, stale })
    }

    pub fn set_weather(&self, weather: Weather) {
        *lock(&self.weather) = weather;
    }

    pub fn set_server(&self, up: Up) {
        *lock(&self.up) = up;
        self.lives.send_modify(|lives| *lives += 1);
    }

    pub fn server(&self) -> Up {
        lock(&self.up).clone()
    }

    /// Cuts a client off one way or both, or heals its link.
    pub fn cut(&self, client: &str, cut: Cut) {
        lock(&self.cut).insert(client.to_owned(), cut);
    }

    fn cuts(&self, client: &str) -> Cut {
        lock(&self.cut).get(client).copied().unwrap_or_default()
    }

    fn is_cut(&self, client: &str) -> bool {
        self.cuts(client) != Cut::NONE
    }

    /// The number of the next call.
    fn number(&self) -> u64 {
        let mut calls = lock(&self.calls);
        *calls += 1;
        *calls
    }

    fn chance(&self, of: impl Fn(&Weather) -> u64) -> bool {
        let permille = of(&lock(&self.weather));
        lock(&self.rng).chance(permille)
    }

    /// How long one message takes.
    fn travel_ms(&self) -> u64 {
        let weather = *lock(&self.weather);
        let mut rng = lock(&self.rng);
        let late = rng.chance(weather.late);
        1 + rng.below(weather.latency_ms.max(1)) + if late { rng.below(LATE_MS) } else { 0 }
    }
}

/// One process's door to the API, as one user.
#[derive(Clone)]
pub struct LinkApi {
    pub net: Arc<Net>,
    /// The process, as links are cut by.
    pub client: String,
    pub user: User,
    pub shell: Process,
}

/// What a history keeps of a question.
struct Asked {
    resource: Resource,
    namespace: String,
    name: String,
    /// A read, or a write of the object itself.
    reads: bool,
    tells: bool,
}

impl Asked {
    fn of(request: &Request) -> Asked {
        let tells =
            matches!(&*request.subresource, "" | "status") && !request.options.dry_run && request.resource != SECRETS;
        Asked {
            resource: request.resource,
            namespace: request.namespace.to_string(),
            name: request.name.to_string(),
            reads: matches!(request.action, Action::Get | Action::Find),
            tells: tells && !matches!(request.action, Action::Delete),
        }
    }

    /// The key, and what the answer says of it.
    fn outcome(self, answer: &Result<Answer, Status>) -> (String, Outcome) {
        let outcome = match answer {
            _ if !self.tells => Outcome::Unknown,
            Ok(answer) if self.reads => Outcome::Saw(Some(answer.object.revision())),
            // What goes with its last finalizer is shown as it was.
            Ok(answer) if answer.object.facts().deleting.is_some() => Outcome::Unknown,
            Ok(answer) => Outcome::Wrote(answer.object.revision()),
            // Whoever may only list is refused when there is no such kind; nobody here asks for one.
            Err(status) if status.reason() == Reason::NotFound && !self.name.is_empty() => Outcome::Saw(None),
            Err(_) => Outcome::Unknown,
        };
        let name = answer.as_ref().map_or(self.name, |answer| answer.object.name().to_owned());
        (key_of(self.resource, &self.namespace, &name), outcome)
    }
}

/// The name of an object in histories.
pub fn key_of(resource: Resource, namespace: &str, name: &str) -> String {
    format!("{resource}/{namespace}/{name}")
}

fn timeout() -> Status {
    Status::new(Reason::Timeout, "no answer came in time")
}

impl Api for LinkApi {
    fn call(&self, request: Request) -> Reply<'_, Answer> {
        Box::pin(async move {
            let (tell, heard) = oneshot::channel();
            let (door, asked) = (self.clone(), Asked::of(&request));
            let call = self.net.number();
            self.net.truth.show(&Seen::Asked { call });
            self.shell.spawn(Box::pin(async move { door.travel(request, tell).await }));
            let answer = tokio::select! {
                biased;
                answer = heard => answer.unwrap_or_else(|_| {
                    Err(Status::new(Reason::ServiceUnavailable, "the connection broke off"))
                }),
                () = self.shell.sleep(CALL_TIMEOUT_MS) => Err(timeout()),
            };
            let (key, outcome) = asked.outcome(&answer);
            self.net.truth.show(&Seen::Answered { call, client: &self.client, key: &key, outcome });
            answer
        })
    }
}

impl LinkApi {
    /// Brings a request to the server and its answer back, as far as the weather allows.
    async fn travel(self, request: Request, tell: oneshot::Sender<Result<Answer, Status>>) {
        let net = &self.net;
        let lost = net.cuts(&self.client).up || net.chance(|weather| weather.lost);
        let doubled = net.chance(|weather| weather.doubled);
        let travel_ms = net.travel_ms();
        if lost {
            self.shell.sleep(CALL_TIMEOUT_MS * 2).await;
            drop(tell);
            return;
        }
        if doubled {
            let (again, request) = (self.clone(), request.clone());
            let more_ms = travel_ms + net.travel_ms();
            self.shell.spawn(Box::pin(async move {
                again.shell.sleep(more_ms).await;
                drop(again.arrive(request));
            }));
        }
        self.shell.sleep(travel_ms).await;
        let Some(answer) = self.arrive(request) else {
            let refused = Status::new(Reason::ServiceUnavailable, "the server is not reachable");
            let _ = tell.send(Err(refused));
            return;
        };
        let Ok(mut answer) = answer.await else { return };
        if let (Some(Mutation::ForgetOwnWrites), "controllers", Ok(answer)) =
            (net.mutation, self.client.as_str(), &mut answer)
        {
            answer.revision = Revision::ZERO;
        }
        self.shell.sleep(net.travel_ms()).await;
        if net.cuts(&self.client).down || net.chance(|weather| weather.answer_lost) {
            self.shell.sleep(CALL_TIMEOUT_MS * 2).await;
            drop(tell);
            return;
        }
        // The caller may have given up.
        let _ = tell.send(answer);
    }

    /// The server takes the request in; its work goes on whatever becomes of the caller.
    fn arrive(&self, request: Request) -> Option<oneshot::Receiver<Result<Answer, Status>>> {
        let (server, process) = self.net.server()?;
        let author = Author {
            who: format!("{} {}", self.client, self.user.name),
            what: what(&request),
            life: self.shell.number(),
            decided_on: request.options.decided_on,
        };
        let (tell, heard) = oneshot::channel();
        let (user, exec, stale) = (self.user.clone(), self.net.exec.clone(), self.net.stale.clone());
        let shell = process.on_behalf_of(author.clone());
        let mutation = self.net.mutation;
        shell.spawn(Box::pin(async move {
            let request = match mutation {
                Some(mutation) => mutation.request(request, &server.storage.mirror().view()),
                None => request,
            };
            let asked = matches!(request.action, Action::Get).then(|| what(&request));
            let answer = server::local::call(&server, &user, request).await;
            let answer = match (asked, answer) {
                (Some(asked), Ok(answer)) if mutation == Some(Mutation::StaleReads) => {
                    Ok(lock(&stale).entry(asked).or_insert(answer).clone())
                }
                (_, answer) => answer,
            };
            if let Err(status) = &answer {
                exec.note(format!("{author} refused: {status}"));
            }
            // The caller may have given up.
            let _ = tell.send(answer);
        }));
        Some(heard)
    }
}

/// `create pods/eviction default/a`.
fn what(request: &Request) -> String {
    let verb = match &request.action {
        Action::Get => "get",
        Action::Find => "find",
        Action::Create(_) => "create",
        Action::Update(_) => "update",
        Action::Patch(..) => "patch",
        Action::Delete => "delete",
    };
    let slash = if request.subresource.is_empty() { "" } else { "/" };
    format!("{verb} {}{slash}{} {}/{}", request.resource, request.subresource, request.namespace, request.name)
}

/// The indexes of a client's cache.
pub fn empty_cache() -> Cache {
    Cache::new(server::indexes())
}

/// One process's mirror, and how it is kept.
#[derive(Clone)]
pub struct Follower {
    pub net: Arc<Net>,
    pub client: String,
    pub shell: Process,
    pub mirror: Arc<Mirror>,
}

impl Follower {
    /// The server's cache, and what moves when this server is gone.
    async fn connect(&self) -> (Arc<Mirror>, Moves<u64>) {
        loop {
            let lives = self.net.lives.subscribe();
            if !self.net.is_cut(&self.client)
                && let Some((server, _)) = self.net.server()
            {
                return (server.storage.mirror().clone(), lives);
            }
            self.shell.sleep(RECONNECT_MS).await;
        }
    }

    /// A message is on its way; false when it is lost, and the connection with it.
    async fn travel(&self) -> bool {
        self.shell.sleep(self.net.travel_ms()).await;
        !self.net.cuts(&self.client).down && !self.net.chance(|weather| weather.watch_cut)
    }

    /// Waits for news; false when the connection broke.
    async fn news(&self, changed: &mut Moves<Revision>, lives: &mut Moves<u64>) -> bool {
        /// How long a silent connection is trusted.
        const SILENCE_MS: u64 = 5_000;
        tokio::select! {
            biased;
            _ = lives.changed() => false,
            changed = changed.changed() => changed.is_ok(),
            () = self.shell.sleep(SILENCE_MS) => !self.net.is_cut(&self.client),
        }
    }

    /// Follows everything, in the order of revisions, as a process beside the server's cache does.
    pub async fn whole(self) {
        let mut listed = false;
        loop {
            let (source, mut lives) = self.connect().await;
            if !listed {
                let view = source.view();
                if !self.travel().await {
                    continue;
                }
                self.load(&view);
                listed = true;
            }
            let mut changed = source.subscribe();
            loop {
                changed.borrow_and_update();
                let Some(batch) = pull_whole(&source, self.mirror.revision()) else {
                    listed = false;
                    break;
                };
                if batch.to > self.mirror.revision() {
                    if !self.travel().await {
                        break;
                    }
                    self.take(batch);
                }
                if !self.news(&mut changed, &mut lives).await {
                    self.shell.sleep(RECONNECT_MS).await;
                    break;
                }
            }
        }
    }

    fn load(&self, view: &View) {
        let resources: Vec<Resource> = view.resources().collect();
        let objects: Vec<Object> =
            resources.iter().flat_map(|resource| view.list(*resource, "").cloned().collect::<Vec<_>>()).collect();
        let objects = match self.net.mutation {
            Some(mutation) => mutation.list(&self.client, objects),
            None => objects,
        };
        self.mirror.feed(|cache| {
            cache.start_over(view.at(), objects);
        });
        self.saw(true);
    }

    fn take(&self, batch: Batch) {
        let changes = match self.net.mutation {
            Some(mutation) => mutation.feed(&self.client, batch.changes),
            None => batch.changes,
        };
        self.net.truth.show(&Seen::Heard {
            client: &self.client,
            since: self.mirror.revision(),
            changes: &changes,
            to: batch.to,
        });
        self.mirror.feed(|cache| {
            for (revision, changes) in changes {
                cache.apply(revision, changes);
            }
            cache.advance(batch.to);
        });
        self.saw(true);
    }

    fn saw(&self, whole: bool) {
        let cache = self.mirror.read();
        self.net.truth.show(&Seen::Mirror { client: &self.client, cache: &cache, whole });
    }

    /// Follows the part of one resource that `wants` picks, by a watch of its own, as an agent does.
    pub async fn part(self, source: Source, wants: impl Fn(&Object) -> bool + Send) {
        let resource = source.resource;
        self.mirror.feed(|cache| cache.register(&source));
        let mut listed = false;
        loop {
            let (server, mut lives) = self.connect().await;
            if !listed {
                let view = server.view();
                let objects = view.list(resource, "").filter(|object| wants(object)).cloned().collect();
                if !self.travel().await {
                    continue;
                }
                self.mirror.feed(|cache| cache.replace_from(&source, view.at(), objects));
                self.saw(false);
                listed = true;
            }
            let mut changed = server.subscribe();
            let mut cursor = self.mirror.read().resume(&source);
            loop {
                let at = *changed.borrow_and_update();
                let Ok(events) = server.since(resource, cursor, usize::MAX) else {
                    listed = false;
                    break;
                };
                cursor = cursor.max(at);
                let changes: Vec<Change> = events
                    .into_iter()
                    .filter_map(|event| {
                        let old = event.old.filter(|old| wants(old));
                        match event.new.filter(|new| wants(new)) {
                            Some(new) => Some(Change { revision: event.revision, old: None, new: Some(new) }),
                            None => old.map(|old| Change { revision: event.revision, old: Some(old), new: None }),
                        }
                    })
                    .collect();
                if !changes.is_empty() {
                    if !self.travel().await {
                        break;
                    }
                    self.mirror.feed(|cache| {
                        cache.apply_from(&source, changes);
                        cache.advance_from(&source, at);
                    });
                    self.saw(false);
                }
                if !self.news(&mut changed, &mut lives).await {
                    self.shell.sleep(RECONNECT_MS).await;
                    break;
                }
            }
        }
    }
}

/// Changes by revision, and up to where they are complete.
struct Batch {
    changes: BTreeMap<Revision, Vec<Change>>,
    to: Revision,
}

/// Everything after `since`; `None` when the history does not reach back so far.
fn pull_whole(source: &Mirror, since: Revision) -> Option<Batch> {
    let cache = source.read();
    let (view, mut changes) = (cache.view(), BTreeMap::<Revision, Vec<Change>>::new());
    if since < cache.floor() {
        return None;
    }
    for resource in view.resources() {
        for event in cache.since(resource, since, usize::MAX).ok()? {
            let change = Change { revision: event.revision, old: event.old, new: event.new };
            changes.entry(event.revision).or_default().push(change);
        }
    }
    Some(Batch { changes, to: view.at() })
}
