//! One world: its processes, its disk, its script of work, faults, and rest.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use base::{Clock, Rng, Time};
use cache::Cache;
use client::Mirror;
use drive::Shell;
use drive::controllers::nobody_listens;
use drive::events::Recorder;
use meta::Resource;
use server::identity::{MASTERS, User as Identity};
use server::{Keys, Options, Server, pack};
use store::{Backend, Disk, Format, OpenError, SimDisk, Store};

use crate::backend::{DiskPace, OPTIONS, Stepped, next_sync_ms, start};
use crate::check::{CHECKERS, Seen};
use crate::desired;
use crate::exec::{Exec, Process, lock};
use crate::fault::{FAULTS, Fault, Profile};
use crate::link::{Cut, Follower, LinkApi, Net, Weather, empty_cache};
use crate::machine::{Agent, Ills, Machine, seed_of};
use crate::mutation::Mutation;
use crate::schedule::Schedule;
use crate::servers::{Cluster, server_name};
use crate::truth::{Truth, by_node, objects};
use crate::user::{self, BUDGETS, NAMESPACES, NODES, PODS, User, Wants};

/// Everything must have come to rest this long after the last fault.
pub const REST_WITHIN_MS: u64 = 20 * 60 * 1000;
/// At rest nothing but heartbeats is written for this long.
pub const SILENCE_MS: u64 = 60_000;
/// And for this long after that: more than any pause after which somebody tries again or looks through everything.
pub const STAYS_SILENT_MS: u64 = 400_000;
/// How often the world is asked whether it has come to rest.
const ASK_MS: u64 = 5_000;
/// Time for the nodes to register before the user comes.
const BOOT_MS: u64 = 8_000;
/// After so long a server that could not start is started again.
const RESTART_MS: u64 = 1_000;
/// What the scheduler decides on, with the budgets that it asks when it preempts.
const SCHEDULER: &[Resource] = &[NODES, NAMESPACES, PODS, BUDGETS];
const CALM_DISK: DiskPace = DiskPace { sync_ms: 1, jitter_ms: 3 };
/// The disk image is made this long before any world begins.
const IMAGE_AGE_MS: u64 = 3_600_000;

/// What makes a world.
#[derive(Clone, Debug)]
pub struct Settings {
    pub seed: u64,
    pub profile: &'static Profile,
    pub mutation: Option<Mutation>,
    /// Only this checker looks; all when absent.
    pub only: Option<&'static str>,
    /// Half the work, for tests that are built without optimisation.
    pub brief: bool,
    /// What of all this happens.
    pub schedule: Schedule,
    /// Print every step as it happens.
    pub print: bool,
}

/// What became of a world.
#[derive(Clone, Debug)]
pub struct Report {
    pub seed: u64,
    pub profile: &'static str,
    /// Checker and sentence, when a promise was broken.
    pub finding: Option<String>,
    /// When the world ended, since it began.
    pub virtual_ms: u64,
    pub digest: u64,
    pub events: u64,
    pub writes: u64,
    pub last_steps: Vec<String>,
}

type Action = Box<dyn FnOnce(&mut World)>;

/// A running world; faults change it through its methods.
pub struct World {
    pub exec: Exec,
    pub net: Arc<Net>,
    pub truth: Arc<Truth>,
    pub disk: SimDisk,
    pub machines: Vec<Arc<Machine>>,
    pub pace: Arc<Mutex<DiskPace>>,
    /// Servers that share a store; none in a world where one server has a store of its own.
    pub cluster: Cluster,
    settings: Settings,
    rng: Rng,
    server: Option<(Process, Arc<Stepped>)>,
    controllers: Option<Process>,
    scheduler: Option<Process>,
    user: Process,
    agents: Vec<Option<Process>>,
    planned: BTreeMap<(Time, u64), Action>,
    numbers: u64,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys::passing().expect("this machine has randomness"));
/// The disk of a cluster that was begun once: every world starts from a copy.
static IMAGE: LazyLock<SimDisk> = LazyLock::new(|| {
    let began = Time(start().0 - i64::try_from(IMAGE_AGE_MS).unwrap_or(0) * 1000);
    let exec = Exec::new(began, false);
    let truth = Truth::new(&exec, Vec::new(), false);
    let disk = SimDisk::new();
    let net = Net::new(&exec, &truth, Rng::new(0), 1, None);
    let mut world = World::of(exec, net, truth, disk.clone(), Settings::quiet(0), Vec::new());
    server::uid::seeded(&mut Rng::new(0), || {
        world.start_server();
        world.exec.run_until(began.plus_ms(60_000));
    });
    disk
});

impl Settings {
    /// A world without anything planted or printed.
    pub fn quiet(seed: u64) -> Settings {
        let (profile, schedule) = (&crate::fault::PROFILES[0], Schedule::default());
        Settings { seed, profile, mutation: None, only: None, brief: false, schedule, print: false }
    }

    fn work_ms(&self) -> u64 {
        self.schedule.work_ms.unwrap_or(self.profile.work_ms) >> u32::from(self.brief)
    }
}

/// A fault that is to strike: when, which, and where its own choices come from.
type Planned = (u64, &'static Fault, u64);

/// The faults of a world in the order of their planning, which gives them their numbers.
pub fn fault_plan(settings: &Settings) -> Vec<Planned> {
    let rng = Rng::new(settings.seed).fork(settings.profile.name);
    let mut all = Vec::new();
    for (name, mean_ms) in settings.profile.faults.iter().copied().flatten() {
        let fault = FAULTS.iter().find(|fault| fault.name == *name).expect("profiles name faults of the table");
        let mut rng = rng.fork(name);
        let mut at_ms = rng.below(mean_ms * 2);
        while at_ms < settings.profile.work_ms {
            all.push((at_ms, fault, rng.next_u64()));
            at_ms += 1 + rng.below(mean_ms * 2);
        }
    }
    all
}

/// Runs one world from its first moment to its rest, or to the first finding.
pub fn run(settings: Settings) -> Report {
    let image = IMAGE.copy();
    let exec = Exec::new(start(), settings.print);
    let rng = Rng::new(settings.seed).fork(settings.profile.name);
    let checkers = CHECKERS.iter().map(|make| make());
    let checkers = checkers.filter(|checker| settings.only.is_none_or(|only| only == checker.name()));
    let truth = Truth::new(&exec, checkers.collect(), settings.profile.crowded);
    let net = Net::new(&exec, &truth, rng.fork("network"), settings.profile.servers.max(1), settings.mutation);
    let machine = |number| Machine::new(&net, number, settings.profile.cpu_milli, seed_of(&rng, number));
    let machines: Vec<Arc<Machine>> = (0..settings.profile.nodes).map(machine).collect();
    let (seed, profile) = (settings.seed, settings.profile.name);
    let mut world = World::of(exec.clone(), net, truth.clone(), image, settings, machines);
    server::uid::seeded(&mut rng.fork("identities"), || world.live());
    let (digest, events) = exec.digest();
    Report {
        seed,
        profile,
        finding: exec.failure(),
        virtual_ms: exec.now().ms_since(start()),
        digest,
        events,
        writes: truth.writes(),
        last_steps: exec.lines(),
    }
}

impl World {
    fn of(
        exec: Exec,
        net: Arc<Net>,
        truth: Arc<Truth>,
        disk: SimDisk,
        settings: Settings,
        machines: Vec<Arc<Machine>>,
    ) -> World {
        let (user, rng) = (exec.process("user"), Rng::new(settings.seed).fork(settings.profile.name));
        let agents = machines.iter().map(|_| None).collect();
        let (pace, planned) = (Arc::new(Mutex::new(CALM_DISK)), BTreeMap::new());
        let (server, controllers, scheduler) = (None, None, None);
        let cluster = Cluster::new(settings.profile);
        World {
            exec,
            net,
            truth,
            disk,
            machines,
            pace,
            cluster,
            settings,
            rng,
            server,
            controllers,
            scheduler,
            user,
            agents,
            planned,
            numbers: 0,
        }
    }

    /// The whole script.
    fn live(&mut self) {
        if self.is_shared() {
            self.start_store();
            (0..self.servers()).for_each(|at| self.start_member(at));
        } else {
            self.start_server();
            self.start_controllers();
            self.start_scheduler();
        }
        for at in 0..self.machines.len() {
            self.start_agent(at);
        }
        self.pass(BOOT_MS);
        let (mut weather, mut ills) = (self.settings.profile.weather, self.settings.profile.ills);
        self.settings.schedule.calm(&mut weather, &mut ills);
        self.net.set_weather(weather);
        for machine in &self.machines {
            machine.set_ills(ills);
        }
        self.start_user();
        self.plan_faults();
        self.pass(self.settings.work_ms());
        self.exec.note("faults are over");
        self.heal();
        self.rest();
    }

    /// Lets time pass, with what is planned in it.
    fn pass(&mut self, ms: u64) {
        let end = self.exec.now().plus_ms(ms);
        while let Some((&(at, number), _)) = self.planned.first_key_value() {
            if at > end || self.exec.failure().is_some() {
                break;
            }
            self.exec.run_until(at);
            if let Some(action) = self.planned.remove(&(at, number)) {
                action(self);
            }
        }
        self.exec.run_until(end);
    }

    /// Does `action` in `ms`.
    pub fn plan(&mut self, ms: u64, action: impl FnOnce(&mut World) + 'static) {
        self.numbers += 1;
        self.planned.insert((self.exec.now().plus_ms(ms), self.numbers), Box::new(action));
    }

    fn plan_faults(&mut self) {
        for (number, (at_ms, fault, seed)) in fault_plan(&self.settings).into_iter().enumerate() {
            if !self.settings.schedule.has_fault(number as u64) {
                continue;
            }
            self.plan(at_ms, move |world| {
                world.exec.note(format!("fault {number}: {}", fault.name));
                (fault.strike)(world, &mut Rng::new(seed));
            });
        }
    }

    /// Ends all faults and brings back whatever is down.
    fn heal(&mut self) {
        self.planned.clear();
        self.net.set_weather(Weather { latency_ms: 3, ..Weather::default() });
        *lock(&self.pace) = CALM_DISK;
        self.disk.set_capacity(None);
        self.disk.fail_syncs(0);
        for machine in &self.machines {
            machine.set_ills(Ills::default());
        }
        for client in self.clients() {
            self.net.cut(&client, Cut::NONE);
        }
        self.exec.heal();
        for machine in &self.machines {
            self.truth.show(&Seen::Halted { who: &machine.name, why: "stands still", halted: false });
        }
        if self.is_shared() {
            self.heal_cluster();
        } else {
            self.start_server();
            self.start_controllers();
            self.start_scheduler();
        }
        for at in 0..self.agents.len() {
            if self.agents[at].is_none() {
                self.start_agent(at);
            }
        }
        self.exec.kill(&self.user);
        self.user = self.exec.process("user");
        let mirror = self.follower("user tidy", &self.user, user::WATCHES);
        let user = self.user_of("user tidy", mirror, "tidy");
        self.user.spawn(Box::pin(user.tidy_up()));
    }

    /// Waits for everything to be as desired and silent.
    fn rest(&mut self) {
        let limit = self.exec.now().plus_ms(REST_WITHIN_MS);
        loop {
            self.pass(ASK_MS);
            if self.exec.failure().is_some() {
                return;
            }
            let view = self.truth.view();
            let missing = desired::missing(&view, &self.machines, self.settings.profile).or_else(|| self.unraised());
            if missing.is_none() && self.truth.quiet_ms() >= SILENCE_MS {
                return self.stay_silent();
            }
            if self.exec.now() >= limit {
                let why = missing.unwrap_or_else(|| "someone goes on writing though all is as desired".to_owned());
                return self.exec.fail(format!(
                    "liveness: no rest {} minutes after the last fault: {why}",
                    REST_WITHIN_MS / 60_000
                ));
            }
        }
    }

    /// Whoever has come to rest writes nothing more.
    fn stay_silent(&mut self) {
        let before = self.truth.stirs();
        self.pass(STAYS_SILENT_MS);
        if self.exec.failure().is_some() {
            return;
        }
        let (stirs, last) = (self.truth.stirs() - before, self.truth.last_stir());
        if stirs > 0 {
            return self
                .exec
                .fail(format!("liveness: {stirs} writes after everything had come to rest, the last is {last}"));
        }
        self.truth.show(&Seen::Quiet { view: &self.truth.view() });
    }

    /// All that have a link of their own.
    pub fn clients(&self) -> Vec<String> {
        let agents = self.machines.iter().map(|machine| format!("agent {}", machine.name));
        let parts: &[&str] = if self.is_shared() { &[] } else { &["controllers", "scheduler"] };
        parts.iter().chain(&["user"]).map(|name| (*name).to_owned()).chain(agents).collect()
    }

    /// All that have a clock of their own.
    pub fn hosts(&self) -> Vec<String> {
        let machines = self.machines.iter().map(|machine| machine.name.clone());
        let servers = match self.is_shared() {
            true => (0..self.servers()).map(server_name).collect(),
            false => ["server", "controllers", "scheduler"].map(str::to_owned).to_vec(),
        };
        servers.into_iter().chain(machines).collect()
    }

    /// Everything that runs and can be made to stand still.
    pub fn processes(&self) -> Vec<(String, Process)> {
        let server = self.server.iter().map(|(process, _)| ("the server".to_owned(), process.clone()));
        let controllers = self.controllers.iter().map(|process| ("controllers".to_owned(), process.clone()));
        let scheduler = self.scheduler.iter().map(|process| ("the scheduler".to_owned(), process.clone()));
        let agents = self.agents.iter().zip(&self.machines);
        let agents = agents.filter_map(|(process, machine)| Some((machine.name.clone(), process.clone()?)));
        server.chain(controllers).chain(scheduler).chain(self.members()).chain(agents).collect()
    }

    /// Flips a bit of what was written long ago, on a copy of the disk as a crash would leave it: a server that starts
    /// there must refuse, or serve exactly what one would without the flip.
    pub fn rot(&mut self, rng: &mut Rng) {
        /// The last records may be the torn end of the log for all that anyone can tell.
        const RECENT_BYTES: u64 = 64 * 1024;
        let sound = self.disk.copy();
        sound.crash(rng);
        let (sound, rotten) = (sound.copy(), sound);
        let names: Vec<String> = rotten.list().unwrap_or_default();
        let Some(name) = names.get(rng.below(names.len() as u64) as usize).cloned() else { return };
        let bytes = rotten.contents(&name).unwrap_or_default();
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
        let newest = names.iter().filter(|name| name.starts_with("log-")).max();
        let limit = if newest == Some(&name) { used.saturating_sub(RECENT_BYTES) } else { used };
        if limit == 0 {
            return;
        }
        let (offset, bit) = (rng.below(limit), rng.below(8) as u8);
        rotten.flip(&name, usize::try_from(offset).unwrap_or(0), bit);
        let open = |disk: &SimDisk| Store::open(Arc::new(disk.clone()), OPTIONS, 1, self.exec.now());
        let shown = |store: &Store| objects(&store.visible().read().unwrap_or_else(PoisonError::into_inner));
        let Ok((before, _)) = open(&sound) else { return };
        let sound = shown(&before);
        let place = format!("byte {offset} of {name}");
        let served = match open(&rotten) {
            Ok((store, _)) => shown(&store),
            Err(_) if self.settings.mutation == Some(Mutation::TrustRot) => sound.clone().into_iter().skip(1).collect(),
            Err(why) => return self.exec.note(format!("{place} rotted, and was refused: {why}")),
        };
        self.exec.note(format!("{place} rotted, and was not needed or repaired"));
        self.truth.show(&Seen::Rotten { place: &place, stored: &served, sound: &sound });
    }

    pub fn start_server(&mut self) {
        if self.server.is_some() {
            return;
        }
        let Some((process, stepped)) = self.open_store("server", World::start_server) else { return };
        let (net, shell, backend) = (self.net.clone(), process.clone(), stepped.clone());
        process.spawn(Box::pin(async move {
            let clock = Arc::new(shell.clone());
            match begin(backend, clock, &shell, pack::NEWEST).await {
                Ok(server) => {
                    net.exec.note("the server answers");
                    net.set_server(0, Some((server, shell)));
                }
                Err(error) => net.exec.note(format!("the server does not begin: {error}")),
            }
        }));
        self.server = Some((process, stepped));
    }

    /// The server's machine loses power; what was being written then may be half there.
    pub fn crash_server(&mut self, rng: &mut Rng) {
        let Some((process, stepped)) = self.server.take() else { return };
        self.net.set_server(0, None);
        self.lose_power(&process, &stepped, rng);
    }

    /// Opens the store on the disk and turns it in a process on `host`; `again` is done later when the disk fails now.
    pub fn open_store(&mut self, host: &str, again: fn(&mut World)) -> Option<(Process, Arc<Stepped>)> {
        let stepped = match Stepped::open(&self.disk, &self.exec, &self.truth, self.settings.mutation) {
            Ok(stepped) => stepped,
            // A disk that fails now may work later: a supervisor starts the server again.
            Err(why @ OpenError::Io { .. }) => {
                self.exec.note(format!("the {host} does not start: {why}"));
                self.plan(RESTART_MS, again);
                return None;
            }
            Err(why) => {
                self.exec.fail(format!("store: it does not open after a crash: {why}"));
                return None;
            }
        };
        let process = self.exec.process(host);
        let tenant = Rng::new(self.rng.next_u64());
        process.spawn(Box::pin(crate::backend::tenant(stepped.clone(), process.clone(), tenant)));
        let (pace, mut rng) = (self.pace.clone(), Rng::new(self.rng.next_u64()));
        let next = move || next_sync_ms(*lock(&pace), rng.next_u64());
        process.spawn(Box::pin(stepped.clone().turn(process.clone(), next)));
        Some((process, stepped))
    }

    /// Ends a store's process with the power of its machine.
    pub fn lose_power(&mut self, process: &Process, stepped: &Stepped, rng: &mut Rng) {
        self.truth.show(&Seen::DiskFails);
        self.exec.kill(process);
        if rng.chance(600) {
            self.disk.power_off_after(rng.below(5) as u32);
            stepped.batch();
        }
        self.disk.crash(rng);
    }

    fn follower(&self, client: &str, process: &Process, of: &'static [Resource]) -> Arc<Mirror> {
        // Only controllers, who follow everything, ask for all that can be found.
        let cache = if of.is_empty() { empty_cache() } else { Cache::new(by_node()) };
        let mirror = Arc::new(Mirror::new(cache));
        let (net, client, shell) = (self.net.clone(), client.into(), process.clone());
        let follower = Follower { net, client, shell, mirror: mirror.clone(), of };
        process.spawn(Box::pin(follower.whole()));
        mirror
    }

    fn door(&self, client: &str, user: &str, groups: &[&str], shell: &Process) -> LinkApi {
        LinkApi::new(&self.net, client, Identity::new(user, groups), shell)
    }

    pub fn start_controllers(&mut self) {
        if self.controllers.is_some() {
            return;
        }
        let process = self.exec.process("controllers");
        let mirror = self.follower("controllers", &process, &[]);
        let settings = controllers::Settings { root_ca_pem: "PEM".to_owned(), ..controllers::Settings::default() };
        let shell: Arc<dyn Shell> = Arc::new(process.clone());
        for make in controllers::CONTROLLERS {
            let controller = make(&settings);
            let left_out = match self.settings.mutation {
                Some(Mutation::NoDeployments) => "deployment-controller",
                Some(Mutation::NoCollector) => "generic-garbage-collector",
                _ => "",
            };
            if controller.name() == left_out {
                continue;
            }
            let user = format!("system:serviceaccount:kube-system:{}", controller.name());
            let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"];
            let api: Arc<dyn client::Api> = Arc::new(self.door("controllers", &user, &groups, &process));
            let recorder = Recorder::new(api.clone(), Arc::new(process.clone()));
            let run =
                drive::controllers::run(controller, mirror.clone(), api, shell.clone(), recorder, nobody_listens());
            process.spawn(after_list(mirror.clone(), run));
        }
        if let Some(cluster) = api::address::Cidr::parse("10.244.0.0/16") {
            let api = self.door("controllers", "system:serviceaccount:kube-system:ipam", &[MASTERS], &process);
            let run = drive::ipam::run(cluster, mirror.clone(), Arc::new(api), shell);
            process.spawn(after_list(mirror, run));
        }
        self.controllers = Some(process);
    }

    pub fn crash_controllers(&mut self) {
        if let Some(process) = self.controllers.take() {
            self.exec.kill(&process);
        }
    }

    pub fn start_scheduler(&mut self) {
        if self.scheduler.is_some() {
            return;
        }
        let process = self.exec.process("scheduler");
        let mirror = self.follower("scheduler", &process, SCHEDULER);
        let api: Arc<dyn client::Api> = Arc::new(self.door("scheduler", "system:kube-scheduler", &[], &process));
        let recorder = Recorder::new(api.clone(), Arc::new(process.clone()));
        let run = drive::scheduler::run(mirror.clone(), api, Arc::new(process.clone()), recorder);
        process.spawn(after_list(mirror, run));
        self.scheduler = Some(process);
    }

    pub fn crash_scheduler(&mut self) {
        if let Some(process) = self.scheduler.take() {
            self.exec.kill(&process);
        }
    }

    pub fn start_agent(&mut self, at: usize) {
        if self.agents[at].is_none() {
            self.agents[at] = Some(Agent::start(&self.machines[at]));
        }
    }

    pub fn crash_agent(&mut self, at: usize) {
        if let Some(process) = self.agents[at].take() {
            self.truth.show(&Seen::Agent { node: &self.machines[at].name, runs: false });
            self.exec.kill(&process);
        }
    }

    fn user_of(&self, client: &str, mirror: Arc<Mirror>, stream: &str) -> User {
        let api = self.door(client, "the-user", &[MASTERS], &self.user);
        let (rng, profile) = (self.rng.fork(stream), self.settings.profile);
        let (pace_ms, probe_seconds) = (profile.pace_ms(), profile.probe_seconds);
        let (wants, leashed, removes) = (profile.wants, profile.leashed, profile.removes);
        User { api, mirror, shell: self.user.clone(), rng, pace_ms, probe_seconds, wants, leashed, removes }
    }

    fn start_user(&mut self) {
        let profile = self.settings.profile;
        let mirror = self.follower("user", &self.user, user::WATCHES);
        let user = self.user_of("user", mirror.clone(), "user");
        let steps = profile.steps >> u32::from(self.settings.brief);
        self.user.spawn(Box::pin(user.work(steps, self.settings.schedule.clone())));
        if profile.upgrade {
            self.user.spawn(Box::pin(self.user_of("user", mirror.clone(), "bookkeeper").keep_books()));
        }
        if matches!(profile.wants, Wants::Places | Wants::Spread) {
            self.user.spawn(Box::pin(self.user_of("user", mirror.clone(), "landlord").reserve_nodes()));
        }
        if profile.removes {
            self.user.spawn(Box::pin(self.user_of("user", mirror.clone(), "remover").remove_nodes()));
        }
        if profile.guards {
            self.user.spawn(Box::pin(self.user_of("user", mirror.clone(), "guard").guard()));
            self.user.spawn(Box::pin(self.user_of("user", mirror.clone(), "drainer").drain_nodes()));
        }
        self.user.spawn(Box::pin(self.user_of("user", mirror, "reader").look_around()));
        if let Some(talks) = self.settings.mutation.and_then(Mutation::talks) {
            let api = self.door("user", "the-chatterer", &[MASTERS], &self.user);
            let process = self.exec.process("user");
            process.spawn(Box::pin(talks(api.from(&process), process.clone())));
        }
    }
}

/// Runs `work` once the mirror has its first list.
fn after_list(mirror: Arc<Mirror>, work: impl Future<Output = ()> + Send + 'static) -> drive::Task {
    Box::pin(async move {
        mirror.reached(base::Revision(1)).await;
        work.await;
    })
}

/// Begins a server on `backend` that knows data up to version `knows`.
///
/// # Errors
/// What it could not read or write.
pub async fn begin(
    backend: Arc<dyn Backend>,
    clock: Arc<dyn Clock>,
    shell: &Process,
    knows: Format,
) -> Result<Arc<Server>, server::Error> {
    let options = Options { knows, ..Options::passing() };
    let server = Server::with(options, KEYS.clone(), backend, clock).await?;
    shell.spawn(Box::pin(server::definitions::follow(server.clone())));
    server.begin().await?;
    Ok(server)
}
