//! Worlds with several servers on one store: how servers and store come and go, and what a leader runs.
//!
//! A server is a process with its pipeline, its cache and a candidate for the lead ([`drive::leader`]); whoever leads runs
//! controllers and scheduler on its own cache, behind the fence of its reign, as `gantry server` does.

use std::net::SocketAddr;
use std::sync::Arc;

use base::{Revision, Rng};
use client::{Answer, Api, Mirror, Reply, Request};
use drive::Shell;
use drive::controllers::nobody_listens;
use drive::events::Recorder;
use drive::leader::{Candidate, Reign, Side};
use drive::servers::{Raising, register};
use meta::{Object, Reason, Status};
use server::Server;
use server::identity::{MASTERS, User};
use server::local::{Fenced, Local};
use server::pack;
use store::{Backend, Format, Version};
use tokio::sync::{oneshot, watch};

use crate::check::{STORE, Seen};
use crate::exec::{Author, Process};
use crate::fault::Profile;
use crate::link::{Cut, Net, empty_cache, what};
use crate::mutation::Mutation;
use crate::shared::{Hub, Remote};
use crate::upgrade::SETTLE_MS;
use crate::world::{World, begin};

/// Pause of a server that could not begin.
const AGAIN_MS: u64 = 500;

/// The servers of a world and what they share.
pub struct Cluster {
    pub hub: Arc<Hub>,
    /// The newest data version that the program in each server's place knows.
    pub installed: Vec<Format>,
    /// An older server cannot be reached, nor replaced; the others are not put back meanwhile.
    pub away: bool,
    store: Option<Process>,
    servers: Vec<Option<Member>>,
}

/// A server of one life.
struct Member {
    process: Process,
    /// Asks it to give the lead up and to end.
    stop: watch::Sender<bool>,
}

impl Cluster {
    pub fn new(profile: &Profile) -> Cluster {
        let installed = if profile.upgrade { Format::FIRST } else { pack::NEWEST };
        let servers: Vec<Option<Member>> = (0..profile.servers).map(|_| None).collect();
        Cluster { hub: Hub::new(), installed: vec![installed; servers.len()], away: false, store: None, servers }
    }
}

pub fn server_name(at: usize) -> String {
    format!("server-{}", at + 1)
}

/// A door within a server's process: every call is done on behalf of the leader's part that makes it.
struct Inside {
    api: Arc<dyn Api>,
    net: Arc<Net>,
    shell: Process,
    who: Arc<str>,
    epoch: Revision,
}

impl Api for Inside {
    fn call(&self, request: Request) -> Reply<'_, Answer> {
        let author = Arc::new(Author {
            who: self.who.clone(),
            what: what(&request),
            call: 0,
            life: self.epoch.0,
            epoch: self.epoch,
            decided_on: request.options.decided_on,
        });
        let (tell, heard) = oneshot::channel();
        let (api, net) = (self.api.clone(), self.net.clone());
        self.shell.on_behalf_of(&author).spawn(Box::pin(async move {
            let answer = api.call(request).await;
            if let Err(status) = &answer {
                net.exec.note(format!("{author} refused: {status}"));
            }
            // The caller may have ended with its reign.
            let _ = tell.send(answer);
        }));
        Box::pin(async move {
            let ended = |_| Err(Status::new(Reason::ServiceUnavailable, "the server ended"));
            heard.await.unwrap_or_else(ended)
        })
    }
}

/// What a leader runs.
struct Parts {
    net: Arc<Net>,
    mirror: Arc<Mirror>,
    server: Arc<Server>,
    shell: Process,
    name: String,
}

impl Parts {
    fn door(&self, reign: &Reign, user: &str, groups: &[&str]) -> Arc<dyn Api> {
        let local = Local { server: self.server.clone(), user: User::new(user, groups) };
        let api: Arc<dyn Api> = match self.net.mutation {
            Some(Mutation::NoFence) => Arc::new(local),
            _ => Arc::new(Fenced { api: Arc::new(local), fence: reign.fence() }),
        };
        let (net, shell) = (self.net.clone(), self.shell.clone());
        Arc::new(Inside { api, net, shell, who: format!("{} {user}", self.name).into(), epoch: reign.epoch() })
    }

    fn begin(&self, reign: &Reign) {
        self.net.exec.note(format!("{} leads from r{} on", self.name, reign.epoch()));
        let (mirror, shell) = (&self.mirror, reign.shell());
        let recorder = |api: &Arc<dyn Api>| Recorder::new(api.clone(), shell_clock(&self.shell));
        let settings = controllers::Settings { root_ca_pem: "PEM".to_owned(), ..controllers::Settings::default() };
        for make in controllers::CONTROLLERS {
            let controller = make(&settings);
            let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"];
            let api = self.door(reign, &controllers::user_of(controller.name()), &groups);
            let recorder = recorder(&api);
            reign.spawn(drive::controllers::run(
                controller,
                mirror.clone(),
                api,
                shell.clone(),
                recorder,
                nobody_listens(),
            ));
        }
        if let Some(cluster) = api::address::Cidr::parse("10.244.0.0/16") {
            let api = self.door(reign, "system:serviceaccount:kube-system:node-controller", &[MASTERS]);
            reign.spawn(drive::ipam::run(cluster, mirror.clone(), api, shell.clone()));
        }
        let api = self.door(reign, "system:kube-scheduler", &[]);
        let recorder = recorder(&api);
        reign.spawn(drive::scheduler::run(mirror.clone(), api, shell.clone(), recorder));
        self.lead_servers(reign);
    }

    /// Tells where the servers are and who leads, and raises the data version.
    fn lead_servers(&self, reign: &Reign) {
        let storage = &self.server.storage;
        let (backend, side, shell) = (storage.backend().clone(), storage.side(), reign.shell());
        let api = || self.door(reign, "system:apiserver", &[MASTERS]);
        reign.spawn(drive::servers::publish_all(side.clone(), self.mirror.clone(), api(), shell.clone()));
        let programs = vec![drive::servers::CONTROLLER_MANAGER, drive::servers::SCHEDULER];
        reign.spawn(drive::servers::tell_leader(api(), shell.clone(), self.name.clone(), programs));
        let (fence, knows) = (reign.fence(), storage.knows());
        let raising = Raising { backend, side, shell, fence, knows, shared: true, settle_ms: SETTLE_MS };
        reign.spawn(raising.run());
    }
}

fn shell_clock(process: &Process) -> Arc<dyn base::Clock> {
    Arc::new(process.clone())
}

/// One life of a server, from its start to its end.
async fn serve(hub: Arc<Hub>, net: Arc<Net>, at: usize, knows: Format, shell: Process, stop: watch::Receiver<bool>) {
    let name = server_name(at);
    let server = loop {
        let remote = Remote::open(hub.clone(), net.clone(), &name, shell.clone()).await;
        match begin(Arc::new(remote), Arc::new(shell.clone()), &shell, knows).await {
            Ok(server) => break server,
            Err(error) => {
                net.exec.note(format!("{name} does not begin: {error}"));
                shell.sleep(AGAIN_MS).await;
            }
        }
    };
    net.exec.note(format!("{name} answers"));
    net.set_server(at, Some((server.clone(), shell.clone())));
    let mirror = match net.mutation {
        Some(Mutation::LaggingLeader) => lagging(server.storage.mirror(), &shell),
        _ => server.storage.mirror().clone(),
    };
    let parts = Parts { net: net.clone(), mirror, server: server.clone(), shell: shell.clone(), name: name.clone() };
    let slow = net.mutation == Some(Mutation::SlowCandidate);
    let own: Arc<dyn Shell> = if slow { Arc::new(Slow(shell.clone())) } else { Arc::new(shell.clone()) };
    let side = match net.mutation {
        Some(Mutation::DeafCandidate) => without_beats(server.storage.side(), &shell),
        _ => server.storage.side(),
    };
    let backend = server.storage.backend().clone();
    let life = format!("{name}/{}", shell.number());
    let address = SocketAddr::from(([10, 0, 0, u8::try_from(at + 1).unwrap_or(u8::MAX)], 6443));
    shell.spawn(Box::pin(register(backend.clone(), Arc::new(shell.clone()), address, knows)));
    let candidate = Candidate { backend, side, shell: own, name: life, shared: true };
    net.truth.show(&Seen::Runs { who: &name, runs: true });
    tokio::select! {
        biased;
        why = server.storage.halted() => {
            net.exec.note(format!("{name} ends: {why}"));
            net.set_server(at, None);
            net.truth.show(&Seen::Runs { who: &name, runs: false });
            net.exec.kill(&shell);
        }
        () = candidate.run(stop, |reign| parts.begin(reign)) => {}
    }
}

/// A planted defect: a shell on which all takes longer.
struct Slow(Process);

impl base::Clock for Slow {
    fn now(&self) -> base::Time {
        self.0.now()
    }
}

impl Shell for Slow {
    fn spawn(&self, task: drive::Task) {
        self.0.spawn(task);
    }

    fn sleep(&self, ms: u64) -> drive::Task {
        self.0.sleep(ms.saturating_mul(30))
    }

    fn steady_ms(&self) -> u64 {
        self.0.steady_ms() / 30
    }
}

/// A planted defect: a mirror of a mirror, always some seconds behind.
fn lagging(source: &Arc<Mirror>, shell: &Process) -> Arc<Mirror> {
    let (mirror, source) = (Arc::new(Mirror::new(empty_cache())), source.clone());
    let (behind, own) = (mirror.clone(), shell.clone());
    shell.spawn(Box::pin(async move {
        loop {
            let view = source.view();
            let all: Vec<Object> = view.resources().flat_map(|resource| view.list(resource, "").cloned()).collect();
            behind.feed(|cache| cache.start_over(view.at(), all));
            own.sleep(3_000).await;
        }
    }));
    mirror
}

/// A planted defect: the keys about the lead without the leader's signs of life.
fn without_beats(mut side: watch::Receiver<Side>, shell: &Process) -> watch::Receiver<Side> {
    let first = side.borrow_and_update().clone();
    let (told, heard) = watch::channel(first);
    shell.spawn(Box::pin(async move {
        while side.changed().await.is_ok() {
            let now = side.borrow_and_update().clone();
            let leader =
                |side: &Side| side.get(drive::leader::LEADER).map(|version: &Arc<Version>| version.mod_revision);
            told.send_if_modified(|known| {
                let differs = leader(known) != leader(&now);
                if differs {
                    *known = now;
                }
                differs
            });
        }
    }));
    heard
}

impl World {
    /// Whether the servers of this world share a store.
    pub fn is_shared(&self) -> bool {
        !self.cluster.servers.is_empty()
    }

    pub fn servers(&self) -> usize {
        self.cluster.servers.len()
    }

    pub fn start_store(&mut self) {
        if self.cluster.store.is_some() {
            return;
        }
        let Some((process, stepped)) = self.open_store("store", World::start_store) else { return };
        self.cluster.hub.set(Some((process.clone(), stepped)));
        self.cluster.store = Some(process);
        self.truth.show(&Seen::Runs { who: STORE, runs: true });
    }

    /// The store's machine loses power; what was being written then may be half there.
    pub fn crash_store(&mut self, rng: &mut Rng) {
        let (Some(process), Some((_, stepped))) = (self.cluster.store.take(), self.cluster.hub.up()) else { return };
        self.cluster.hub.set(None);
        self.gone(STORE);
        self.lose_power(&process, &stepped, rng);
    }

    pub fn start_member(&mut self, at: usize) {
        if self.cluster.servers[at].is_some() {
            return;
        }
        let process = self.exec.process(&server_name(at));
        let (stop, stopping) = watch::channel(false);
        let (hub, net, knows) = (self.cluster.hub.clone(), self.net.clone(), self.cluster.installed[at]);
        process.spawn(Box::pin(serve(hub, net, at, knows, process.clone(), stopping)));
        self.cluster.servers[at] = Some(Member { process, stop });
    }

    /// A server dies where it stands.
    pub fn crash_member(&mut self, at: usize) {
        let Some(member) = self.cluster.servers[at].take() else { return };
        self.exec.note(format!("{} dies", server_name(at)));
        self.net.set_server(at, None);
        self.gone(&server_name(at));
        self.exec.kill(&member.process);
    }

    /// A process ended; that it stood still is over with it.
    fn gone(&self, who: &str) {
        self.truth.show(&Seen::Runs { who, runs: false });
        self.truth.show(&Seen::Halted { who, why: "stands still", halted: false });
    }

    /// A server is asked to end: it gives the lead up first.
    pub fn stop_member(&mut self, at: usize) {
        let Some(member) = &self.cluster.servers[at] else { return };
        self.exec.note(format!("{} is asked to end", server_name(at)));
        self.truth.show(&Seen::Runs { who: &server_name(at), runs: false });
        member.stop.send_replace(true);
    }

    /// Which server leads, if one does.
    pub fn leader(&self) -> Option<usize> {
        let (_, stepped) = self.cluster.hub.up()?;
        let name = stepped.value(drive::leader::LEADER)?;
        let name = String::from_utf8_lossy(&name).into_owned();
        (0..self.servers()).find(|at| name.split_once('/').is_some_and(|(server, _)| server == server_name(*at)))
    }

    /// The process of a server that runs.
    pub fn member(&self, at: usize) -> Option<Process> {
        self.cluster.servers.get(at)?.as_ref().map(|member| member.process.clone())
    }

    /// The processes of store and servers, by name.
    pub fn members(&self) -> Vec<(String, Process)> {
        let store = self.cluster.store.iter().map(|process| (STORE.to_owned(), process.clone()));
        store.chain((0..self.servers()).filter_map(|at| Some((server_name(at), self.member(at)?)))).collect()
    }

    /// Lets a process stand still for `ms`.
    pub fn stand_still(&mut self, name: String, process: Process, ms: u64) {
        self.exec.note(format!("{name} stands still"));
        self.exec.pause(&process);
        self.truth.show(&Seen::Halted { who: &name, why: "stands still", halted: true });
        self.plan(ms, move |world| {
            // One that died meanwhile has a successor, of whom this says nothing.
            if world.exec.lives(&process) {
                world.exec.go_on(&process);
                world.truth.show(&Seen::Halted { who: &name, why: "stands still", halted: false });
            }
        });
    }

    /// Breaks a server's link to the store for `ms`.
    pub fn cut_from_store(&mut self, at: usize, how: Cut, ms: u64) {
        let name = server_name(at);
        self.exec.note(format!("{name} is cut off the store: {how:?}"));
        self.net.cut(&name, how);
        self.truth.show(&Seen::Halted { who: &name, why: "cut off", halted: true });
        self.plan(ms, move |world| world.rejoin(&name));
    }

    fn rejoin(&mut self, name: &str) {
        self.net.cut(name, Cut::NONE);
        self.truth.show(&Seen::Halted { who: name, why: "cut off", halted: false });
    }

    /// The disk works badly, or again as it should.
    pub fn trouble_disk(&self, why: &'static str, halted: bool) {
        self.truth.show(&Seen::Halted { who: STORE, why, halted });
    }

    /// Brings back whatever is down of store and servers.
    pub fn heal_cluster(&mut self) {
        for why in ["stands still", "slow", "full"] {
            self.trouble_disk(why, false);
        }
        self.start_store();
        self.finish_upgrade();
        for at in 0..self.servers() {
            let name = server_name(at);
            self.rejoin(&name);
            self.truth.show(&Seen::Halted { who: &name, why: "stands still", halted: false });
            // One that was asked to end has no one who starts it again now.
            if self.cluster.servers[at].as_ref().is_some_and(|member| *member.stop.borrow()) {
                self.crash_member(at);
            }
            self.start_member(at);
        }
    }

    /// Every server forgets its history, and the store most of its own.
    pub fn forget_history(&self) {
        for (server, _) in self.net.servers() {
            let mirror = server.storage.mirror();
            let at = mirror.revision();
            mirror.change(|cache| cache.compact(at));
        }
        if let Some((process, stepped)) = self.cluster.hub.up() {
            let forgotten = stepped.compact(stepped.revision());
            // A store that crashes first keeps its history.
            process.spawn(Box::pin(async move { drop(forgotten.await) }));
        }
    }
}
