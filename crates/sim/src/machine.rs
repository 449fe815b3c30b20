//! A machine with its containers, and the agent on it. The machine outlives the agent; the agent is the real pod machine
//! ([`node::pod::Worker`]) driven in virtual time.
//!
//! What an image does is told by its name: `run` stays, `task-SECONDS-CODE` ends by itself, `stubborn` does not heed
//! the stop signal, `slow` takes long to come up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use api::core::node_facts::{HAD_NETWORK, PLACE};
use base::{Clock, Revision, Rng, Time, hash64};
use cache::{Key, Part, Source};
use client::{Api, Interest, Mirror, Request};
use drive::Shell;
use meta::{Object, Reason, Resource, Status, Str, Value, json};
use net::plan::cidrs_of;
use net::{Addresses, Cidr, NodeNet};
use node::node_object;
use node::pod::worker::FAILED_SANDBOX;
use node::pod::{
    Command, Observed, Outcome, Seen, SeenState, Standing, StartFailure, Worker, decide::all_containers, worker,
};
use server::identity::User;
use tokio::sync::{Notify, mpsc, watch};

use crate::check;
use crate::exec::{Process, lock};
use crate::link::{Follower, LinkApi, Net};
use crate::mutation::Mutation;
use crate::network;
use crate::truth::Truth;
use crate::user::{ZONE, zone_of};

pub const PODS: Resource = Resource("pods");
pub const NODES: Resource = Resource("nodes");
/// What every machine has.
pub const MEMORY_MIB: i64 = 8_192;
pub const PODS_MAX: i64 = 30;
const LEASE_MS: u64 = 10_000;
const RETRY_MS: u64 = 1_000;
const LOOK_MS: u64 = 30_000;
/// The longest that an image takes to come, and a killed container to go.
const STALL_MS: u64 = 180_000;
const UNDEAD_MS: u64 = 60_000;

/// One pod as the machine has it.
#[derive(Default)]
struct Sandbox {
    key: String,
    ready: bool,
    address: Str,
    /// From when on nothing of it runs ([`runtime::Runtime::hold`]), by the time that passes.
    held_until_ms: Option<u64>,
    /// By name, all attempts.
    containers: BTreeMap<Str, Vec<Seen>>,
}

/// How containers fare beyond what their image says; changed by faults.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ills {
    /// Of 1,000 containers that start: crash within a minute.
    pub crash: u64,
    /// Of 1,000: answer no probe for a while.
    pub hang: u64,
    /// Of 1,000 starts: the image cannot be had just now.
    pub pull: u64,
    /// Of 1,000 starts: the image comes very slowly.
    pub stall: u64,
    /// Of 1,000: do not heed the stop signal.
    pub stubborn: u64,
    /// Of 1,000: do not go even when they are killed, for a while.
    pub undead: u64,
}

pub struct Machine {
    pub name: String,
    net: Arc<Net>,
    process: Mutex<Process>,
    rng: Mutex<Rng>,
    ills: Mutex<Ills>,
    sandboxes: Mutex<BTreeMap<Str, Sandbox>>,
    hung: Mutex<BTreeMap<Str, Time>>,
    /// Rung when something of a pod changes here, by its uid.
    bells: Mutex<BTreeMap<Str, Arc<Notify>>>,
    /// Of its pods; none before the node has a network for them, and before an agent gives the first.
    addresses: Mutex<Option<Addresses>>,
    /// The one that was given last, as the disk keeps it.
    last: Mutex<Option<IpAddr>>,
    /// The network that the node had last, as the disk keeps it.
    had: Mutex<Option<Cidr>>,
    network: Mutex<NodeNet>,
    /// An agent began here before.
    begun: Mutex<bool>,
    number: u64,
    cpu_milli: i64,
}

impl Machine {
    pub fn new(net: &Arc<Net>, number: u64, cpu_milli: i64, rng: Rng) -> Arc<Machine> {
        Arc::new(Machine {
            name: format!("node-{number}"),
            net: net.clone(),
            process: Mutex::new(net.exec.process(&format!("node-{number}"))),
            rng: Mutex::new(rng),
            ills: Mutex::default(),
            sandboxes: Mutex::default(),
            hung: Mutex::default(),
            bells: Mutex::default(),
            addresses: Mutex::default(),
            last: Mutex::default(),
            had: Mutex::default(),
            network: Mutex::default(),
            begun: Mutex::default(),
            number,
            cpu_milli,
        })
    }

    pub fn set_ills(&self, ills: Ills) {
        *lock(&self.ills) = ills;
    }

    /// The power fails: whatever ran here is gone.
    pub fn lose_power(&self) {
        self.net.exec.kill(&lock(&self.process));
        *lock(&self.process) = self.net.exec.process(&self.name);
        let sandboxes = std::mem::take(&mut *lock(&self.sandboxes));
        for (uid, sandbox) in &sandboxes {
            for (name, seen) in &sandbox.containers {
                if seen.last().is_some_and(|seen| seen.state == SeenState::Running) {
                    self.show(uid, &sandbox.key, name, false);
                }
            }
            self.show_address(uid, &sandbox.address, false);
            self.change(uid);
        }
        *lock(&self.addresses) = None;
        *lock(&self.network) = NodeNet::default();
    }

    /// Whether this defect is planted.
    pub fn has(&self, mutation: Mutation) -> bool {
        self.net.mutation == Some(mutation)
    }

    pub fn truth(&self) -> &Truth {
        &self.net.truth
    }

    /// A pod has an address here, or has it no more.
    fn show_address(&self, uid: &str, address: &str, given: bool) {
        if let Ok(address) = address.parse() {
            self.net.truth.show(&check::Seen::Address { node: &self.name, uid, address, given });
        }
    }

    /// Looks at what the kernel has of the network, or changes it.
    pub fn set_network<T>(&self, change: impl FnOnce(&mut NodeNet) -> T) -> T {
        change(&mut lock(&self.network))
    }

    /// The time as this machine's clock shows it.
    fn clock(&self) -> Time {
        lock(&self.process).now()
    }

    /// Whoever looks after the pod is to look.
    fn change(&self, uid: &str) {
        if let Some(bell) = lock(&self.bells).get(uid) {
            bell.notify_one();
        }
    }

    /// What is rung when something of a pod changes.
    fn bell(&self, uid: &Str) -> Arc<Notify> {
        lock(&self.bells).entry(uid.clone()).or_default().clone()
    }

    fn show(&self, uid: &str, key: &str, container: &str, runs: bool) {
        let verb = if runs { "starts" } else { "ends" };
        self.net.exec.note(format!("{} {verb} {key}/{container} ({uid})", self.name));
        self.net.truth.show(&check::Seen::Container { node: &self.name, pod: key, uid, container, runs });
    }

    fn draw(&self, limit: u64) -> u64 {
        lock(&self.rng).below(limit)
    }

    fn chance(&self, permille: u64) -> bool {
        lock(&self.rng).chance(permille)
    }

    /// Pods that have something here.
    pub fn uids(&self) -> Vec<Str> {
        lock(&self.sandboxes).keys().cloned().collect()
    }

    fn observe(&self, uid: &str) -> Observed {
        let sandboxes = lock(&self.sandboxes);
        let Some(sandbox) = sandboxes.get(uid) else { return Observed::default() };
        let mut observed = Observed {
            sandbox: true,
            sandbox_ready: sandbox.ready,
            addresses: vec![sandbox.address.clone()],
            ..Observed::default()
        };
        for (name, all) in &sandbox.containers {
            if let Some(last) = all.last() {
                observed.containers.insert(name.clone(), last.clone());
            }
            if let Some(before) = all.len().checked_sub(2).and_then(|at| all.get(at)) {
                observed.previous.insert(name.clone(), before.clone());
            }
        }
        observed
    }

    /// Makes a pod's sandbox, with an address of the node's network for pods.
    fn prepare(&self, uid: &str, key: &str, network: Option<Cidr>) -> Result<(), StartFailure> {
        let failed = |message: &str| StartFailure { reason: FAILED_SANDBOX.into(), message: message.to_owned() };
        let network = network.ok_or_else(|| failed("the node has no network for pods yet"))?;
        {
            let mut sandboxes = lock(&self.sandboxes);
            let taken: Vec<IpAddr> = sandboxes.values().filter_map(|sandbox| sandbox.address.parse().ok()).collect();
            let sandbox = sandboxes.entry(uid.into()).or_default();
            if sandbox.address.is_empty() {
                let mut addresses = lock(&self.addresses);
                let mut all = addresses.take().unwrap_or_else(|| {
                    let last = lock(&self.last).filter(|_| !self.has(Mutation::ForgottenAddresses));
                    let mut all = Addresses::new(network).after(last);
                    taken.iter().for_each(|address| _ = all.take(*address));
                    all
                });
                let given = all.give();
                *addresses = Some(all);
                let address = given.ok_or_else(|| failed("the node has no address left"))?;
                *lock(&self.last) = Some(address);
                *lock(&self.had) = Some(network);
                sandbox.address = address.to_string().into();
                self.show_address(uid, &sandbox.address, true);
            }
            if !std::mem::replace(&mut sandbox.ready, true) {
                sandbox.held_until_ms = None;
            }
            sandbox.key = key.to_owned();
        }
        self.change(uid);
        Ok(())
    }

    /// Holds a pod's sandbox until then; what runs in it afterwards is killed, whatever became of the agent. Nothing of the kind
    /// that does not go when it is killed is meant here: against that only a machine that is turned off helps.
    fn hold(self: &Arc<Self>, uid: &str, until_ms: u64) -> bool {
        if self.is_let_go(uid) {
            return false;
        }
        if let Some(sandbox) = lock(&self.sandboxes).get_mut(uid) {
            sandbox.held_until_ms = Some(until_ms);
        }
        let (machine, uid, process) = (self.clone(), uid.to_owned(), lock(&self.process).clone());
        let shell = process.clone();
        process.spawn(Box::pin(async move {
            shell.sleep(until_ms.saturating_sub(shell.steady_ms())).await;
            if machine.is_let_go(&uid) {
                machine.kill_all(&uid);
                machine.change(&uid);
            }
        }));
        true
    }

    fn is_let_go(&self, uid: &str) -> bool {
        let now_ms = lock(&self.process).steady_ms();
        let sandboxes = lock(&self.sandboxes);
        !self.has(Mutation::DeafShims)
            && sandboxes
                .get(uid)
                .is_some_and(|sandbox| sandbox.held_until_ms.is_some_and(|until_ms| until_ms <= now_ms))
    }

    /// Begins a container; what it does from here on happens on the machine.
    fn start(self: &Arc<Self>, uid: &str, container: &str, image: &str, attempt: u32) -> Result<(), StartFailure> {
        let ills = *lock(&self.ills);
        if self.chance(ills.pull) {
            let message = format!("{image}: the registry is not reachable");
            return Err(StartFailure { reason: "ErrImagePull".into(), message });
        }
        let now = self.clock();
        let id = Str::from(format!("{}-{uid}-{container}-{attempt}", self.name));
        let seen = Seen {
            id: id.clone(),
            attempt,
            state: SeenState::Running,
            image: image.into(),
            image_id: image.into(),
            started: Some(now),
            finished: None,
            exit_code: 0,
            signal: 0,
            reason: Str::default(),
            message: Str::default(),
            limits: None,
        };
        if self.is_let_go(uid) {
            let message = "nobody holds the pod any more".to_owned();
            return Err(StartFailure { reason: "RunContainerError".into(), message });
        }
        let key = {
            let mut sandboxes = lock(&self.sandboxes);
            let Some(sandbox) = sandboxes.get_mut(uid).filter(|sandbox| sandbox.ready) else {
                let message = "the sandbox is gone".to_owned();
                return Err(StartFailure { reason: "CreateContainerError".into(), message });
            };
            sandbox.containers.entry(container.into()).or_default().push(seen);
            sandbox.key.clone()
        };
        self.show(uid, &key, container, true);
        if self.chance(ills.hang) {
            let until = self.net.exec.now().plus_ms(5_000 + self.draw(40_000));
            lock(&self.hung).insert(id.clone(), until);
        }
        let words: Vec<&str> = image.split('-').collect();
        let end = match words.as_slice() {
            ["task", seconds, code, ..] => {
                Some((seconds.parse::<u64>().unwrap_or(1) * 1000 + self.draw(500), code.parse().unwrap_or(0)))
            }
            _ if self.chance(ills.crash) => Some((1_000 + self.draw(60_000), 1)),
            _ => None,
        };
        if let Some((ms, code)) = end {
            let (machine, uid, process) = (self.clone(), uid.to_owned(), lock(&self.process).clone());
            let shell = process.clone();
            process.spawn(Box::pin(async move {
                shell.sleep(ms).await;
                machine.exit(&uid, &id, code);
            }));
        }
        self.change(uid);
        Ok(())
    }

    fn exit(&self, uid: &str, id: &str, code: i32) {
        let now = self.clock();
        let mut ended = None;
        if let Some(sandbox) = lock(&self.sandboxes).get_mut(uid) {
            for (name, all) in &mut sandbox.containers {
                if let Some(seen) = all.iter_mut().find(|seen| seen.id == id && seen.state == SeenState::Running) {
                    (seen.state, seen.finished, seen.exit_code) = (SeenState::Exited, Some(now), code);
                    seen.reason = if code == 0 { "Completed".into() } else { "Error".into() };
                    ended = Some((sandbox.key.clone(), name.clone()));
                }
            }
        }
        if let Some((key, name)) = ended {
            self.show(uid, &key, &name, false);
            self.change(uid);
        }
    }

    /// How long a container takes to end when it is asked to, and its code.
    fn stop_ms(&self, image: &str, grace_ms: u64) -> (u64, i32) {
        let stubborn = image.starts_with("stubborn") || self.chance(lock(&self.ills).stubborn);
        let undead = self.chance(lock(&self.ills).undead);
        let needs = 50 + self.draw(400);
        match stubborn || undead || needs > grace_ms {
            true => (grace_ms + if undead { 1_000 + self.draw(UNDEAD_MS) } else { 0 }, 137),
            false => (needs, 143),
        }
    }

    /// What runs in the sandbox ends, its records stay.
    fn end(&self, uid: &str) {
        match lock(&self.sandboxes).get_mut(uid) {
            Some(sandbox) => sandbox.ready = false,
            None => return,
        }
        self.kill_all(uid);
        self.change(uid);
    }

    fn kill_all(&self, uid: &str) {
        let running = |sandbox: &Sandbox| {
            let all = sandbox.containers.values().flatten();
            all.filter(|seen| seen.state == SeenState::Running).map(|seen| seen.id.clone()).collect()
        };
        let running: Vec<Str> = lock(&self.sandboxes).get(uid).map(running).unwrap_or_default();
        for id in running {
            self.exit(uid, &id, 137);
        }
    }

    fn remove(&self, uid: &str) {
        self.end(uid);
        let gone = lock(&self.sandboxes).remove(uid);
        gone.iter().for_each(|sandbox| self.show_address(uid, &sandbox.address, false));
        let address = gone.and_then(|sandbox| sandbox.address.parse().ok());
        if let (Some(address), Some(all)) = (address, &mut *lock(&self.addresses)) {
            all.free(address);
        }
        self.change(uid);
    }

    fn is_hung(&self, id: &str) -> bool {
        lock(&self.hung).get(id).is_some_and(|until| *until > self.net.exec.now())
    }

    /// The node object's status as this machine is.
    fn status(&self) -> Value {
        let amounts = json!({
            "cpu": (format!("{}m", self.cpu_milli)), "memory": (format!("{MEMORY_MIB}Mi")), "pods": (PODS_MAX.to_string()),
        });
        json!({
            "addresses": [
                {"type": "InternalIP", "address": (network::address(self.number).to_string())},
                {"type": "Hostname", "address": (self.name.as_str())}
            ],
            "capacity": (amounts.clone()), "allocatable": amounts,
            "conditions": (node_object::conditions(self.clock())),
        })
    }
}

/// The agent of one life.
pub struct Agent {
    machine: Arc<Machine>,
    shell: Process,
    api: LinkApi,
    mirror: Arc<Mirror>,
    workers: Mutex<BTreeMap<Str, watch::Sender<Option<Object>>>>,
    standing: watch::Sender<Standing>,
}

impl Agent {
    /// Starts an agent on `machine`, as a process of its own.
    pub fn start(machine: &Arc<Machine>) -> Process {
        let net = machine.net.clone();
        let process = net.exec.process(&machine.name);
        let client: Arc<str> = format!("agent {}", machine.name).into();
        let user = User::new(&format!("system:node:{}", machine.name), &["system:nodes"]);
        let api = LinkApi::new(&net, &client, user, &process);
        let mirror = Arc::new(Mirror::new(network::cache()));
        let follower = Follower { net: net.clone(), client, shell: process.clone(), mirror: mirror.clone(), of: &[] };
        let (name, greedy) = (machine.name.clone(), net.mutation == Some(Mutation::GreedyAgents));
        let part = format!("?spec.nodeName={name}");
        let of_node = move |pod: &Object| {
            let node = pod.own::<api::core::pod_facts::PodFacts>().map(|facts| facts.node.clone());
            node.is_some_and(|node| node == name.as_str() || greedy && !node.is_empty())
        };
        let lane = if greedy { Part::All } else { Part::Indexed("node", machine.name.as_str().into()) };
        let pods = Source { resource: PODS, part: part.into() };
        process.spawn(Box::pin(follower.clone().part(pods, lane, of_node)));
        let [services, slices, places, own] = network::sources(&machine.name);
        let (name, key) = (machine.name.clone(), Part::Named(Key::of("", &machine.name)));
        process.spawn(Box::pin(follower.clone().part(own, key, move |node| node.name() == name)));
        process.spawn(Box::pin(follower.clone().part(places, Part::Moved(PLACE), |_| true)));
        process.spawn(Box::pin(follower.clone().part(services, Part::All, |_| true)));
        let blind = net.mutation == Some(Mutation::BlindPlanners);
        process.spawn(Box::pin(follower.clone().part(slices, Part::All, move |_| !blind)));
        // A new agent works them out of what is there.
        *lock(&machine.addresses) = None;
        let returns = std::mem::replace(&mut *lock(&machine.begun), true);
        let trusts = returns && net.mutation == Some(Mutation::TrustingAgents);
        process.spawn(Box::pin(network::follow(machine.clone(), mirror.clone(), process.clone(), trusts)));
        net.truth.show(&check::Seen::Agent { node: &machine.name, runs: true });
        let (workers, standing) = (Mutex::default(), watch::Sender::new(Standing::unknown(process.steady_ms())));
        let agent = Agent { machine: machine.clone(), shell: process.clone(), api, mirror, workers, standing };
        let agent = Arc::new(agent);
        process.spawn(Box::pin(agent.clone().keep()));
        process.spawn(Box::pin(agent.run()));
        process
    }

    /// Registers the node and keeps its status and lease fresh; when its object is deleted, it is registered anew.
    async fn keep(self: Arc<Self>) {
        loop {
            self.register().await;
            self.beat().await;
        }
    }

    /// As real agents do it, not before what ran for an earlier object of the node has ended.
    async fn register(&self) {
        let name = self.machine.name.as_str();
        let mut labels = json!({"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"});
        labels.set(&[ZONE], zone_of(self.machine.number));
        loop {
            let runs = !self.machine.uids().is_empty() && !self.machine.has(Mutation::HastyNodes);
            if runs {
                // Whoever hears nothing does not know either.
                if self.api.call(Request::get(NODES, "", name)).await.is_ok() {
                    return;
                }
                if !self.machine.has(Mutation::MuteNodes) {
                    let _ = self.renew("").await;
                }
                self.shell.sleep(RETRY_MS).await;
                continue;
            }
            if self.machine.uids().is_empty() {
                // Of another network, perhaps.
                *lock(&self.machine.addresses) = None;
            }
            let status = self.machine.status();
            let mut node = json!({"metadata": {"name": name, "labels": (labels.clone())}, "status": status});
            if let Some(network) = *lock(&self.machine.had) {
                node.set(&["metadata", "annotations", HAD_NETWORK], network.to_string());
            }
            match self.api.call(Request::create(NODES, node)).await {
                Ok(_) => return,
                Err(status) if status.reason() == Reason::AlreadyExists => return,
                Err(_) => self.shell.sleep(RETRY_MS).await,
            }
        }
    }

    /// Keeps the node's status and lease fresh until its object is gone.
    async fn beat(&self) {
        let name = self.machine.name.as_str();
        let (mut told, mut looked): (Option<u64>, Option<(u64, Revision)>) = (None, None);
        let (mut known, mut owned, mut noted) = (false, false, Revision::ZERO);
        loop {
            let (now, now_ms) = (self.shell.now(), self.shell.steady_ms());
            let node = self.mirror.one(NODES, "", name);
            let at = node.as_ref().map_or(Revision::ZERO, Object::revision);
            let (shows, mut unknown) = (node.is_some(), false);
            if let Some(node) = node.as_ref().filter(|_| at != std::mem::replace(&mut noted, at))
                && let Some(network) = cidrs_of(&node.value()).first()
            {
                *lock(&self.machine.had) = Some(*network);
            }
            // A real agent is woken by what others write about its node; here it looks with every beat.
            if looked.is_none_or(|(ms, seen)| now_ms - ms >= node_object::LOOK_MS || seen != at) {
                let old = node.map(|node| node.value()).unwrap_or_default();
                let (status, silent_ms) = (self.machine.status(), told.map_or(u64::MAX, |told| now_ms - told));
                let due = node_object::is_due(&status, &old, silent_ms);
                if !due {
                    looked = Some((now_ms, at));
                } else {
                    match self.api.call(node_object::telling(name, status, &old, now)).await {
                        Ok(_) => (told, looked) = (Some(now_ms), Some((now_ms, at))),
                        Err(status) => unknown = status.reason() == Reason::NotFound,
                    }
                }
            }
            known |= shows;
            if !shows && (known || unknown) && !self.machine.has(Mutation::LostNodes) {
                return;
            }
            let began_ms = self.shell.steady_ms();
            let owner = self.mirror.one(NODES, "", name).filter(|_| !owned);
            let owner = owner.map(|node| Str::from(node.uid())).unwrap_or_default();
            let renewed = self.renew(&owner).await;
            owned |= renewed.is_ok() && !owner.is_empty();
            let is_known = self.mirror.one(NODES, "", name).is_some();
            if renewed.is_ok() && is_known {
                self.standing.send_replace(Standing::renewed(began_ms));
            }
            self.shell.sleep(if renewed.is_ok() { LEASE_MS } else { RETRY_MS }).await;
        }
    }

    /// Renews the lease, or makes it; it goes with the `owner`, if one is given.
    async fn renew(&self, owner: &str) -> Result<(), Status> {
        let name = self.machine.name.as_str();
        match self.api.call(node_object::renewal(name, owner, self.shell.now())).await {
            Err(status) if status.reason() == Reason::NotFound => {
                self.api.call(node_object::first_lease(name, owner, self.shell.now())).await.map(|_| ())
            }
            answer => answer.map(|_| ()),
        }
    }

    /// Gives every pod of this node to its task.
    async fn run(self: Arc<Self>) {
        let found = self.machine.uids();
        let changed = self.mirror.listen(Interest::Parts(vec![(PODS, Part::All)]));
        self.mirror.knows(PODS, Revision(1)).await;
        let mut first = true;
        loop {
            let view = self.mirror.view();
            let here: BTreeMap<Str, Object> =
                view.list(PODS, "").map(|pod| (Str::from(pod.uid()), pod.clone())).collect();
            self.hand_out(&here);
            if std::mem::take(&mut first) {
                for uid in found.iter().filter(|uid| !here.contains_key(*uid)) {
                    self.machine.remove(uid);
                }
            }
            changed.changed().await;
        }
    }

    fn hand_out(self: &Arc<Self>, here: &BTreeMap<Str, Object>) {
        let mut workers = lock(&self.workers);
        for (uid, pod) in here {
            match workers.get(uid) {
                Some(worker) => {
                    worker.send_if_modified(|known| {
                        let newer = known.as_ref().is_none_or(|known| known.revision() < pod.revision());
                        if newer {
                            *known = Some(pod.clone());
                        }
                        newer
                    });
                }
                None => {
                    let (sender, receiver) = watch::channel(Some(pod.clone()));
                    workers.insert(uid.clone(), sender);
                    self.shell.spawn(Box::pin(self.clone().work(Worker::new(pod), uid.clone(), receiver)));
                }
            }
        }
        for (_, worker) in workers.iter().filter(|(uid, _)| !here.contains_key(*uid)) {
            worker.send_if_modified(|known| known.take().is_some());
        }
    }

    /// The task of one pod.
    async fn work(self: Arc<Self>, mut worker: Worker, uid: Str, mut pods: watch::Receiver<Option<Object>>) {
        let host = [Str::from(network::address(self.machine.number).to_string())];
        let (done, mut results) = mpsc::unbounded_channel::<(Command, Outcome)>();
        let changed = self.machine.bell(&uid);
        let mut standings = self.standing.subscribe();
        loop {
            worker.see(pods.borrow_and_update().as_ref(), self.shell.now());
            let standing = match self.machine.has(Mutation::SureAgents) {
                false => *standings.borrow_and_update(),
                true => Standing::renewed(self.shell.steady_ms()),
            };
            let observed = self.machine.observe(&uid);
            let until_ms = worker.stand(&standing, self.shell.steady_ms(), observed.sandbox_ready);
            if let Some(until_ms) = until_ms {
                worker.held(until_ms, self.machine.hold(&uid, until_ms));
            }
            let now = self.shell.now();
            let Some(commands) = worker.decide(&observed, now) else {
                lock(&self.workers).remove(&uid);
                lock(&self.machine.bells).remove(&uid);
                return;
            };
            let step = commands.iter().any(Command::is_step);
            for command in commands {
                let (agent, pod, done) = (self.clone(), worker.pod().clone(), done.clone());
                self.shell.spawn(Box::pin(async move {
                    let outcome = agent.carry(&pod, &command).await;
                    // The receiver goes only with the pod's task.
                    let _ = done.send((command, outcome));
                }));
            }
            if step {
                tokio::select! {
                    biased;
                    Some((command, outcome)) = results.recv() => {
                        worker.take(&command, outcome, self.shell.now());
                        continue;
                    }
                    changed = pods.changed() => match changed {
                        Ok(()) => continue,
                        Err(_) => return,
                    },
                    () = self.shell.sleep(worker::GATHER_MS) => {}
                }
            }
            if let Some(status) = worker.status(&observed, &host, now) {
                let answer = self.api.call(worker.telling(&status)).await;
                if let Ok(answer) = &answer {
                    worker.see(Some(&answer.object), self.shell.now());
                }
                worker.told(status, answer.as_ref().map(|_| ()));
            }
            // As real agents do it: an answer that was expected brings no look.
            loop {
                let ends_ms = worker.ends_ms(&standing);
                let left_ms = ends_ms.map(|ends_ms| ends_ms.saturating_sub(self.shell.steady_ms()));
                let wake_ms = worker.wake().map_or(LOOK_MS, |at| at.ms_since(self.shell.now()).clamp(1, LOOK_MS));
                tokio::select! {
                    biased;
                    Some((command, outcome)) = results.recv() => {
                        worker.take(&command, outcome, self.shell.now());
                        while let Ok((command, outcome)) = results.try_recv() {
                            worker.take(&command, outcome, self.shell.now());
                        }
                        if !worker.is_quiet() {
                            break;
                        }
                    }
                    changed = pods.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    () = changed.notified() => break,
                    // The sender lives as long as the agent.
                    _ = standings.changed(), if left_ms.is_some() => break,
                    () = self.shell.sleep(wake_ms.min(left_ms.unwrap_or(LOOK_MS))) => break,
                }
            }
        }
    }

    async fn carry(&self, pod: &Value, command: &Command) -> Outcome {
        let (meta, machine) = (&pod["metadata"], &self.machine);
        let uid = meta["uid"].text();
        let hasty = machine.net.mutation == Some(Mutation::HastyAgents);
        match command {
            Command::Prepare => {
                self.shell.sleep(20 + machine.draw(200)).await;
                let node = self.mirror.one(NODES, "", &machine.name);
                let network = node.and_then(|node| cidrs_of(&node.value()).first().copied());
                let key = format!("{}/{}", meta["namespace"].text(), meta["name"].text());
                let until_ms = self.standing.borrow().holds(pod);
                let until_ms = match until_ms {
                    Ok(until_ms) => until_ms,
                    Err(message) => {
                        return Outcome::Started(Err(StartFailure { reason: FAILED_SANDBOX.into(), message }));
                    }
                };
                let prepared = machine.prepare(uid, &key, network);
                if let (Ok(()), Some(until_ms)) = (&prepared, until_ms) {
                    machine.hold(uid, until_ms);
                }
                Outcome::Started(prepared)
            }
            Command::Start { container, attempt } => {
                let wanted = all_containers(pod).find(|one| one["name"].text() == container.as_str());
                let image = wanted.map(|one| one["image"].text()).unwrap_or_default();
                let stalls = machine.chance(lock(&machine.ills).stall);
                let slow_ms = if image.starts_with("slow") { 8_000 } else { 0 };
                let slow_ms = if stalls { machine.draw(STALL_MS) } else { slow_ms };
                self.shell.sleep(50 + machine.draw(700) + slow_ms).await;
                Outcome::Started(machine.start(uid, container, image, *attempt))
            }
            // Limits are not told here, so none is ever to be changed.
            Command::Resize { .. } => Outcome::Done(Ok(())),
            Command::Stop { container, id, grace_ms } => {
                if hasty {
                    let _ = self.api.call(worker::farewell(pod)).await;
                }
                let wanted = all_containers(pod).find(|one| one["name"].text() == container.as_str());
                let image = wanted.map(|one| one["image"].text()).unwrap_or_default();
                let (ms, code) = machine.stop_ms(image, *grace_ms);
                self.shell.sleep(ms).await;
                machine.exit(uid, id, code);
                Outcome::Done(Ok(()))
            }
            Command::Probe { id, .. } => {
                self.shell.sleep(1 + machine.draw(20)).await;
                let good = !machine.is_hung(id);
                Outcome::Probed(good, if good { String::new() } else { "no answer".to_owned() })
            }
            Command::End => {
                machine.end(uid);
                Outcome::Done(Ok(()))
            }
            Command::Remove => {
                self.shell.sleep(10 + machine.draw(100)).await;
                machine.remove(uid);
                Outcome::Done(Ok(()))
            }
            Command::Delete => match self.api.call(worker::farewell(pod)).await {
                Ok(_) => Outcome::Done(Ok(())),
                Err(status) if status.reason() == Reason::NotFound => Outcome::Done(Ok(())),
                Err(status) => Outcome::Done(Err(status.message().to_owned())),
            },
        }
    }
}

/// The pods whose containers run on a machine, for the comparison at the end.
pub fn running(machine: &Machine) -> BTreeSet<Str> {
    let sandboxes = lock(&machine.sandboxes);
    let runs = |sandbox: &Sandbox| {
        sandbox.containers.values().any(|all| all.last().is_some_and(|seen| seen.state == SeenState::Running))
    };
    sandboxes.iter().filter(|(_, sandbox)| runs(sandbox)).map(|(uid, _)| uid.clone()).collect()
}

/// A seed for a machine of this number.
pub fn seed_of(rng: &Rng, number: u64) -> Rng {
    let mut rng = rng.fork(&format!("machine {number}"));
    Rng::new(rng.next_u64() ^ hash64(&number.to_le_bytes()))
}
