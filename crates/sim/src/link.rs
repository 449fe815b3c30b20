//! The way between a process and the server: every call and every watch goes over it, and it may fail in every way.
//!
//! A call travels in its own time, so calls overtake each other. It may be lost, come twice, come long after its sender
//! gave up, and its answer may be lost. What a sender has on the wire is gone when it crashes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use base::{Revision, Rng};
use cache::{Cache, Change, Event, Part, Source, View};
use client::{Action, Answer, Api, Interest, Mirror, Reply, Request};
use drive::Shell;
use history::Outcome;
use meta::{Object, Reason, Resource, Status};
use server::Server;
use server::identity::User;
use tokio::sync::oneshot;

use crate::check::Seen;
use crate::exec::{Author, Exec, Process, lock};
use crate::mutation::Mutation;
use crate::servers::server_name;
use crate::truth::Truth;

const PODS: Resource = Resource("pods");
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

/// Where a server is, when it is there.
#[derive(Default)]
struct Seat {
    up: Up,
    /// Moves when the server comes or goes.
    lives: tokio::sync::watch::Sender<u64>,
}

/// All links of a world.
pub struct Net {
    pub exec: Exec,
    pub truth: Arc<Truth>,
    pub mutation: Option<Mutation>,
    weather: Mutex<Weather>,
    rng: Mutex<Rng>,
    seats: Mutex<Vec<Seat>>,
    /// Where each client that has moved on talks to.
    homes: Mutex<BTreeMap<String, usize>>,
    /// Moves when a client moves on, and when a link breaks or is whole again.
    moves: tokio::sync::watch::Sender<u64>,
    cut: Mutex<BTreeMap<String, Cut>>,
    calls: Mutex<u64>,
    /// First answers, for a planted defect.
    stale: Mutex<BTreeMap<String, Answer>>,
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
    /// Links to this many servers.
    pub fn new(exec: &Exec, truth: &Arc<Truth>, rng: Rng, servers: usize, mutation: Option<Mutation>) -> Arc<Net> {
        let (weather, rng) = (Mutex::default(), Mutex::new(rng));
        let seats = Mutex::new((0..servers).map(|_| Seat::default()).collect());
        let (homes, moves, cut) = (Mutex::default(), tokio::sync::watch::Sender::new(0), Mutex::default());
        let (calls, stale) = (Mutex::default(), Mutex::default());
        let (exec, truth) = (exec.clone(), truth.clone());
        Arc::new(Net { exec, truth, mutation, weather, rng, seats, homes, moves, cut, calls, stale })
    }

    pub fn set_weather(&self, weather: Weather) {
        *lock(&self.weather) = weather;
    }

    pub fn set_server(&self, at: usize, up: Up) {
        if let Some(seat) = lock(&self.seats).get_mut(at) {
            seat.up = up;
            seat.lives.send_modify(|lives| *lives += 1);
        }
    }

    /// All servers that answer.
    pub fn servers(&self) -> Vec<(Arc<Server>, Process)> {
        lock(&self.seats).iter().filter_map(|seat| seat.up.clone()).collect()
    }

    /// Which server a client talks to.
    fn home(&self, client: &str) -> usize {
        let servers = lock(&self.seats).len();
        lock(&self.homes).get(client).copied().unwrap_or(base::hash64(client.as_bytes()) as usize % servers)
    }

    /// Whether there are several servers, which may be behind each other.
    fn is_shared(&self) -> bool {
        lock(&self.seats).len() > 1
    }

    fn server(&self, at: usize) -> Up {
        lock(&self.seats).get(at).and_then(|seat| seat.up.clone())
    }

    /// A client has had enough of the server that it talked to.
    fn move_on(&self, client: &str, from: usize) {
        if !self.is_shared() || self.home(client) != from {
            return;
        }
        let servers = lock(&self.seats).len();
        lock(&self.homes).insert(client.to_owned(), (from + 1) % servers);
        self.moves.send_modify(|moves| *moves += 1);
    }

    /// Cuts a client off one way or both, or heals its link.
    pub fn cut(&self, client: &str, cut: Cut) {
        lock(&self.cut).insert(client.to_owned(), cut);
        self.moves.send_modify(|moves| *moves += 1);
    }

    /// How a link is broken: of a client to its server, or of a server to the store.
    pub fn cuts(&self, client: &str) -> Cut {
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

    pub fn chance(&self, of: impl Fn(&Weather) -> u64) -> bool {
        let permille = of(&lock(&self.weather));
        lock(&self.rng).chance(permille)
    }

    /// How long what a watch brings takes: its messages do not overtake each other, so none is late by itself.
    pub fn hop_ms(&self) -> u64 {
        let latency_ms = lock(&self.weather).latency_ms.max(1);
        1 + lock(&self.rng).below(latency_ms)
    }

    /// How long one message takes.
    pub fn travel_ms(&self) -> u64 {
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
    client: Arc<str>,
    user: Arc<User>,
    /// Both, as authors are named.
    who: Arc<str>,
    shell: Process,
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
            let (call, home) = (self.net.number(), self.net.home(&self.client));
            self.net.truth.show(&Seen::Asked { call });
            if let (Action::Create(binding), "binding") = (&request.action, &*request.subresource) {
                let (uid, node) = (binding["metadata"]["uid"].text(), binding["target"]["name"].text());
                self.net.truth.show(&Seen::Binds { uid, node, decided_on: request.options.decided_on });
            }
            self.shell.spawn(Box::pin(async move { door.travel(call, home, request, tell).await }));
            let answer = tokio::select! {
                biased;
                answer = heard => answer.unwrap_or_else(|_| {
                    Err(Status::new(Reason::ServiceUnavailable, "the connection broke off"))
                }),
                () = self.shell.sleep(CALL_TIMEOUT_MS) => Err(timeout()),
            };
            if answer.as_ref().is_err_and(drive::fate::is_unknown) {
                self.net.move_on(&self.client, home);
            }
            let (key, outcome) = asked.outcome(&answer);
            self.net.truth.show(&Seen::Answered { call, client: &self.client, key: &key, outcome });
            answer
        })
    }
}

impl LinkApi {
    pub fn new(net: &Arc<Net>, client: &str, user: User, shell: &Process) -> LinkApi {
        let who = format!("{client} {}", user.name).into();
        LinkApi { net: net.clone(), client: client.into(), user: Arc::new(user), who, shell: shell.clone() }
    }

    /// The same door for another process.
    pub fn from(&self, shell: &Process) -> LinkApi {
        LinkApi { shell: shell.clone(), ..self.clone() }
    }

    /// Brings a request to the server and its answer back, as far as the weather allows.
    async fn travel(self, call: u64, home: usize, request: Request, tell: oneshot::Sender<Result<Answer, Status>>) {
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
                drop(again.arrive(call, home, request));
            }));
        }
        self.shell.sleep(travel_ms).await;
        let Some(answer) = self.arrive(call, home, request) else {
            let refused = Status::new(Reason::ServiceUnavailable, "the server is not reachable");
            let _ = tell.send(Err(refused));
            return;
        };
        let Ok(mut answer) = answer.await else { return };
        if let (Some(Mutation::ForgetOwnWrites), "controllers", Ok(answer)) = (net.mutation, &*self.client, &mut answer)
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
    fn arrive(&self, call: u64, home: usize, request: Request) -> Option<oneshot::Receiver<Result<Answer, Status>>> {
        let (server, process) = self.net.server(home)?;
        let author = Arc::new(Author {
            who: self.who.clone(),
            what: what(&request),
            call,
            life: self.shell.number(),
            epoch: Revision::ZERO,
            decided_on: request.options.decided_on,
        });
        let (tell, heard) = oneshot::channel();
        let (user, net, mutation) = (self.user.clone(), self.net.clone(), self.net.mutation);
        let shell = process.on_behalf_of(&author);
        shell.spawn(Box::pin(async move {
            let request = match mutation {
                Some(mutation) => mutation.request(request, &server.storage.mirror().view()),
                None => request,
            };
            let reads = mutation == Some(Mutation::StaleReads) && matches!(request.action, Action::Get);
            // Whoever names no revision is answered what is newest anywhere, as over HTTP.
            let fresh = match mutation {
                Some(Mutation::StaleServers) => Ok(()),
                _ => server.storage.fresh().await,
            };
            let answer = match fresh {
                Ok(()) => server::local::call(&server, &user, request).await,
                Err(status) => Err(status),
            };
            let answer = match answer {
                Ok(answer) if reads => Ok(lock(&net.stale).entry(author.what.clone()).or_insert(answer).clone()),
                answer => answer,
            };
            match &answer {
                Ok(_) => {
                    let (who, knows) = (&server_name(home), server.storage.knows());
                    net.truth.show(&Seen::Served { who, knows, at: server.storage.mirror().revision() });
                }
                Err(status) => {
                    net.truth.show(&Seen::Refused { call });
                    net.exec.note(format!("{author} refused: {status}"));
                }
            }
            // The caller may have given up.
            let _ = tell.send(answer);
        }));
        Some(heard)
    }
}

/// `create pods/eviction default/a`.
pub fn what(request: &Request) -> String {
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
    pub client: Arc<str>,
    pub shell: Process,
    pub mirror: Arc<Mirror>,
    /// What it is about; everything where nothing is named.
    pub of: &'static [Resource],
}

impl Follower {
    /// The server's cache. Who has to list anew is shown what is newest anywhere.
    async fn connect(&self, lists: bool) -> Line {
        loop {
            let home = self.net.home(&self.client);
            // Of the server that is asked, which may be gone when its answer is heard.
            let lives = lock(&self.net.seats).get(home).map(|seat| seat.lives.subscribe());
            if !self.net.is_cut(&self.client)
                && let Some((server, process)) = self.net.server(home)
                && let Some(lives) = lives
                && (!lists || !self.net.is_shared() || self.is_fresh(&server, &process).await)
            {
                let (source, moves) = (server.storage.mirror().clone(), self.net.moves.subscribe());
                return Line { home, source, lives, moves };
            }
            self.net.move_on(&self.client, home);
            self.shell.sleep(RECONNECT_MS).await;
        }
    }

    /// The server makes sure that it shows all that was answered anywhere.
    async fn is_fresh(&self, server: &Arc<Server>, process: &Process) -> bool {
        let (tell, heard) = oneshot::channel();
        let server = server.clone();
        process.spawn(Box::pin(async move {
            // The client may be gone.
            let _ = tell.send(server.storage.fresh().await.is_ok());
        }));
        heard.await.unwrap_or(false)
    }

    /// A message is on its way; false when it is lost, and the connection with it.
    async fn travel(&self) -> bool {
        self.shell.sleep(self.net.travel_ms()).await;
        !self.net.cuts(&self.client).down && !self.net.chance(|weather| weather.watch_cut)
    }

    /// Waits until `changed` says that there is something new.
    async fn news(&self, changed: impl Future<Output = ()>, line: &mut Line) -> News {
        /// How long a silent connection is trusted.
        const SILENCE_MS: u64 = 5_000;
        /// How often a client is told that there is nothing new for it.
        const BOOKMARK_MS: u64 = 60_000;
        let home = line.home;
        let broken = async |moves: &mut Moves<u64>| {
            while self.net.home(&self.client) == home {
                if self.net.is_cut(&self.client) {
                    self.shell.sleep(SILENCE_MS).await;
                    if self.net.is_cut(&self.client) {
                        return;
                    }
                    continue;
                }
                // The sender lives as long as the net.
                let _ = moves.changed().await;
            }
        };
        tokio::select! {
            biased;
            _ = line.lives.changed() => News::Broken,
            () = broken(&mut line.moves) => News::Broken,
            () = changed => News::Some,
            () = self.shell.sleep(BOOKMARK_MS) => News::None,
        }
    }

    /// Follows all that it is about, in the order of revisions, as a process beside the server's cache does.
    pub async fn whole(self) {
        let mut listed = false;
        loop {
            let mut line = self.connect(!listed).await;
            let source = line.source.clone();
            if listed && (self.net.mutation, &*self.client) == (Some(Mutation::ForgetWhere), "controllers") {
                self.mirror.feed(|cache| cache.advance(source.revision()));
            }
            if !listed {
                let view = source.view();
                if !self.travel().await {
                    continue;
                }
                self.load(&view);
                listed = true;
            }
            let parts = self.of.iter().map(|resource| (*resource, Part::All)).collect();
            let changed = source.listen(if self.of.is_empty() { Interest::Everything } else { Interest::Parts(parts) });
            loop {
                let Some(batch) = pull_whole(&source, self.of, self.mirror.revision()) else {
                    listed = false;
                    break;
                };
                if batch.to > self.mirror.revision() {
                    if !self.travel().await {
                        break;
                    }
                    self.take(batch);
                }
                if matches!(self.news(changed.changed(), &mut line).await, News::Broken) {
                    self.shell.sleep(RECONNECT_MS).await;
                    break;
                }
            }
        }
    }

    fn load(&self, view: &View) {
        let resources = match self.of {
            [] => view.resources().collect(),
            of => of.to_vec(),
        };
        let objects: Vec<Object> =
            resources.iter().flat_map(|resource| view.list(*resource, "").cloned().collect::<Vec<_>>()).collect();
        let objects = match self.net.mutation {
            Some(mutation) => mutation.list(&self.client, objects),
            None => objects,
        };
        self.mirror.feed(|cache| {
            cache.start_over(view.at(), objects);
        });
        self.saw(Some(self.of));
    }

    fn take(&self, mut batch: Batch) {
        if (self.net.mutation, &*self.client) == (Some(Mutation::HastyBookmarks), "controllers") {
            batch.to = batch.to.next();
        }
        let changes = match self.net.mutation {
            Some(mutation) => mutation.feed(&self.client, batch.changes),
            None => batch.changes,
        };
        self.net.truth.show(&Seen::Heard {
            client: &self.client,
            of: self.of,
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
        self.saw(Some(self.of));
    }

    fn saw(&self, of: Option<&[Resource]>) {
        let (cache, life) = (self.mirror.read(), self.shell.number());
        self.net.truth.show(&Seen::Mirror { client: &self.client, cache: &cache, life, of });
    }

    /// Of the parts pods are judged by what there is, the rest by what is made of it.
    fn saw_part(&self, source: &Source) {
        if source.resource == PODS {
            self.saw(None);
        } else if let Some(node) = self.client.strip_prefix("agent ") {
            let known = self.mirror.read().resume(source);
            self.net.truth.show(&Seen::Brought { node, source, known });
        }
    }

    /// Follows the part of one resource that `wants` picks, by a watch of its own, as an agent does. The server wakes it
    /// for changes of `lane`.
    pub async fn part(self, source: Source, lane: Part, wants: impl Fn(&Object) -> bool + Send) {
        let resource = source.resource;
        self.mirror.feed(|cache| cache.register(&source));
        let mut listed = false;
        loop {
            let mut line = self.connect(!listed).await;
            let server = line.source.clone();
            if !listed {
                let view = server.view();
                let objects = view.list(resource, "").filter(|object| wants(object)).cloned().collect();
                if !self.travel().await {
                    continue;
                }
                self.mirror.feed(|cache| cache.replace_from(&source, view.at(), objects));
                self.saw_part(&source);
                listed = true;
            }
            let changed = server.listen(Interest::Parts(vec![(resource, lane.clone())]));
            let (mut cursor, mut bookmark) = (self.mirror.read().resume(&source), false);
            loop {
                let (at, events) = {
                    let cache = server.read();
                    (cache.revision(), cache.since_in(resource, &lane, cursor, usize::MAX))
                };
                let Ok(events) = events else {
                    listed = false;
                    break;
                };
                bookmark &= at > cursor;
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
                if bookmark || !changes.is_empty() {
                    if !self.travel().await {
                        break;
                    }
                    self.mirror.feed(|cache| {
                        cache.apply_from(&source, changes);
                        cache.advance_from(&source, at);
                    });
                    self.saw_part(&source);
                }
                match self.news(changed.changed(), &mut line).await {
                    News::Some => bookmark = false,
                    News::None => bookmark = true,
                    News::Broken => {
                        self.shell.sleep(RECONNECT_MS).await;
                        break;
                    }
                }
            }
        }
    }
}

/// What comes of waiting at a connection.
enum News {
    Some,
    None,
    Broken,
}

/// A connection to a server's cache, and what tells that it is of no more use.
struct Line {
    home: usize,
    source: Arc<Mirror>,
    lives: Moves<u64>,
    moves: Moves<u64>,
}

/// Changes by revision, and up to where they are complete.
struct Batch {
    changes: BTreeMap<Revision, Vec<Change>>,
    to: Revision,
}

/// Everything of these resources, or of all, after `since`; `None` when the history does not reach back so far.
fn pull_whole(source: &Mirror, of: &[Resource], since: Revision) -> Option<Batch> {
    let cache = source.read();
    let mut changes = BTreeMap::<Revision, Vec<Change>>::new();
    let mut note = |event: Event| {
        let change = Change { revision: event.revision, old: event.old, new: event.new };
        changes.entry(event.revision).or_default().push(change);
    };
    match of {
        [] => cache.all_since(since).ok()?.into_iter().for_each(|(_, event)| note(event)),
        of => {
            for resource in of {
                cache.since(*resource, since, usize::MAX).ok()?.into_iter().for_each(&mut note);
            }
        }
    }
    Some(Batch { changes, to: cache.revision() })
}
