//! The shell of the agent: what it is given, what it shares, and the tasks that run.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::core::pod_facts;
use base::{Clock, Revision, Time};
use cache::{Key, Part};
use client::{Action, Api, Interest, Mirror, Request};
use meta::{Object, Resource, Status, Str, Value, json};
use net::{Addresses, Cidr, PodLinks};
use reconcile::EventRecord;
use runtime::{Found, Runtime};
use tokio::sync::{Notify, mpsc, watch};

use crate::carry;
use crate::endpoints::{Known, KnownPods};
use crate::local_storage::{self, LOOK_EVERY, PAUSE_FACTOR};
use crate::numbers::Samples;
use crate::pod::admit::{self, Takes};
use crate::pod::worker::{self, EVICTED};
use crate::pod::{Command, Observed, Outcome, Seen, SeenState, Standing, Worker};
use crate::spec::{self, PodDirs};

pub const PODS: Resource = Resource("pods");
pub const NODES: Resource = Resource("nodes");
const ACCOUNTS: Resource = Resource("serviceaccounts");
/// How often volumes of running pods are compared with what they come from.
const REFRESH: Duration = Duration::from_secs(30);
const GATHER: Duration = Duration::from_millis(crate::pod::worker::GATHER_MS);
/// A label under which a sandbox keeps its address.
pub const ADDRESS: &str = "gantry/address";

/// How an agent is set up.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    pub node: String,
    pub addresses: Vec<IpAddr>,
    /// For volumes, logs and what is kept of pods.
    pub data: PathBuf,
    /// For what must not get onto a disk: see [`crate::volumes::mount_memory`].
    pub memory: PathBuf,
    /// Where network namespaces of pods are kept; a tmpfs is best.
    pub netns: PathBuf,
    /// The port of the kubelet endpoints.
    pub port: u16,
    pub cluster_domain: String,
    /// The name server that pods ask: the agent's own.
    pub dns: Option<IpAddr>,
    pub cpu_milli: i64,
    pub memory_bytes: i64,
    pub pods: i64,
    pub labels: BTreeMap<String, String>,
    /// Where the cgroups of pods lie, below each hierarchy's root: `/kubepods`.
    pub cgroup: String,
    /// The cgroup whose numbers are the node's; `None` where the node has the machine for itself.
    pub node_cgroup: Option<String>,
}

/// What is kept of each pod, below the node's folder, and what its containers wrote.
const PODS_DIR: &str = "pods";
const LOGS_DIR: &str = "logs";
/// Which address was given last, so that a later agent does not begin with those that came free last: who has not heard yet
/// that a pod is gone would find another pod there.
const LAST_ADDRESS: &str = "last-address";
/// Which network the node had last, to be asked for when it comes anew.
const LAST_NETWORK: &str = "last-network";

/// Where events go.
pub type EventSink = Arc<dyn Fn(EventRecord) + Send + Sync>;

/// Begins to mirror the objects of a further resource whose fields are as said (`""`: all), for as long as the process
/// lives.
pub type Follower = Arc<dyn Fn(Resource, String) + Send + Sync>;

/// What all tasks of an agent share.
pub struct Agent {
    pub options: AgentOptions,
    pub api: Arc<dyn Api>,
    pub mirror: Arc<Mirror>,
    pub runtime: Arc<dyn Runtime>,
    pub clock: Arc<dyn Clock>,
    pub events: EventSink,
    pub links: Arc<Mutex<PodLinks>>,
    pub addresses: Mutex<Option<Addresses>>,
    workers: Mutex<BTreeMap<Str, Hears>>,
    /// When the node last renewed its lease, by [`runtime::boot_ms`].
    pub standing: watch::Sender<Standing>,
    /// What an earlier agent left running is known.
    pub(crate) adopted: watch::Sender<bool>,
    /// The shares that the cgroups of the classes of service have: best effort, burstable.
    class_shares: Mutex<[u64; 2]>,
    pub tokens: carry::Tokens,
    pub(crate) credentials: crate::certificates::Store,
    /// What is followed beside what every agent follows.
    followed: Mutex<BTreeSet<Resource>>,
    follower: Follower,
    pub(crate) known: Mutex<KnownPods>,
    /// How many containers have ended: by sort, exit code and reason.
    pub(crate) ends: Mutex<BTreeMap<(&'static str, i32, Str), u64>>,
    pub(crate) samples: Mutex<Samples>,
    pub(crate) permits: crate::endpoints::permit::Permits,
    pub started: Time,
}

/// What a pod takes of the node, or reason and message of its refusal.
type Judged = Result<Takes, (Str, String)>;

/// What a pod's task hears.
struct Hears {
    object: watch::Sender<Told>,
    /// Something of the pod changed in the runtime.
    runtime: Arc<Notify>,
    /// What it takes of the node; nothing once it was refused.
    takes: Option<Takes>,
    /// The generation of which that was judged last, if any was.
    judged: Option<i64>,
}

/// A pod's object, nothing when it is gone, and why it does not have the resources yet that it asks for.
#[derive(Clone, Default)]
struct Told {
    object: Option<Object>,
    pending: Option<(Str, String)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Agent {
    pub fn new(
        options: AgentOptions,
        api: Arc<dyn Api>,
        (mirror, follower): (Arc<Mirror>, Follower),
        runtime: Arc<dyn Runtime>,
        clock: Arc<dyn Clock>,
        events: EventSink,
        links: PodLinks,
    ) -> Arc<Agent> {
        let started = clock.now();
        Arc::new(Agent {
            options,
            api,
            mirror,
            runtime,
            clock,
            events,
            links: Arc::new(Mutex::new(links)),
            addresses: Mutex::new(None),
            class_shares: Mutex::default(),
            workers: Mutex::default(),
            adopted: watch::Sender::new(false),
            standing: watch::Sender::new(Standing::unknown(runtime::boot_ms())),
            tokens: carry::Tokens::default(),
            credentials: crate::certificates::Store::default(),
            followed: Mutex::default(),
            follower,
            known: Mutex::default(),
            ends: Mutex::default(),
            samples: Mutex::default(),
            permits: crate::endpoints::permit::Permits::default(),
            started,
        })
    }

    pub fn now(&self) -> Time {
        self.clock.now()
    }

    pub fn dirs(&self, uid: &str) -> PodDirs {
        let options = &self.options;
        PodDirs {
            root: options.data.join(PODS_DIR).join(uid),
            logs: options.data.join(LOGS_DIR).join(uid),
            memory: options.memory.join(uid),
        }
    }

    pub fn host_addresses(&self) -> Vec<Str> {
        self.options.addresses.iter().map(|address| address.to_string().into()).collect()
    }

    /// Has the objects of `resource` mirrored from now on: few pods need them, and most agents never.
    pub fn follow(&self, resource: Resource, field_selector: String) {
        if lock(&self.followed).insert(resource) {
            (self.follower)(resource, field_selector);
        }
    }

    /// An object by a read of the API: a secret, a config map.
    pub async fn fetch(&self, resource: Resource, namespace: &str, name: &str) -> Result<Option<Value>, String> {
        match self.api.call(Request::get(resource, namespace, name)).await {
            Ok(answer) => Ok(Some(answer.object.value())),
            Err(status) if status.reason() == meta::Reason::NotFound => Ok(None),
            Err(status) => Err(status.message().to_owned()),
        }
    }

    /// A token for a pod's account, bound to the pod.
    pub async fn token(&self, pod: &Value, audience: &str, seconds: i64) -> Result<(String, Time), Status> {
        let meta = &pod["metadata"];
        let mut body = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {
                "expirationSeconds": seconds,
                "boundObjectRef": {
                    "apiVersion": "v1", "kind": "Pod", "name": (meta["name"].clone()), "uid": (meta["uid"].clone()),
                },
            },
        });
        if !audience.is_empty() {
            body.set(&["spec", "audiences"], json!([audience]));
        }
        let account = pod.at(&["spec", "serviceAccountName"]).text();
        let mut request = Request::get(ACCOUNTS, meta["namespace"].text(), account).on("token");
        request.action = Action::Create(body);
        let answer = self.api.call(request).await?.object.value();
        let expires = Time::parse(answer.at(&["status", "expirationTimestamp"]).text()).unwrap_or_default();
        Ok((answer.at(&["status", "token"]).text().to_owned(), expires))
    }

    /// Tells the user something about a pod.
    pub fn event(&self, pod: &Value, container: &str, of_type: &'static str, reason: &str, message: String) {
        let meta = &pod["metadata"];
        let mut about = json!({
            "apiVersion": "v1", "kind": "Pod", "namespace": (meta["namespace"].clone()), "name": (meta["name"].clone()),
            "uid": (meta["uid"].clone()), "resourceVersion": (meta["resourceVersion"].clone()),
        });
        if !container.is_empty() {
            about.set(&["fieldPath"], format!("spec.containers{{{container}}}"));
        }
        (self.events)(EventRecord {
            about,
            related: Value::Null,
            of_type,
            reason: reason.into(),
            action: "".into(),
            message,
            reporter: "kubelet".into(),
            host: self.options.node.as_str().into(),
        });
    }

    /// What the runtime has of the pod with this uid.
    pub async fn observe(&self, uid: &str) -> Result<(Observed, Option<String>), runtime::Error> {
        let Found { sandboxes, mut containers } = self.runtime.of_pod(uid).await?;
        let sandbox = sandboxes.iter().max_by_key(|one| one.spec.attempt);
        let Some(sandbox) = sandbox else { return Ok((Observed::default(), None)) };
        let mut observed = Observed {
            sandbox: true,
            sandbox_ready: sandbox.ready,
            addresses: sandbox
                .spec
                .annotations
                .get(ADDRESS)
                .map(|address| address.as_str().into())
                .into_iter()
                .collect(),
            ..Observed::default()
        };
        containers.sort_by_key(|one| one.attempt);
        for container in containers {
            let seen = self.seen(uid, &container);
            let name = Str::from(container.name.as_str());
            if let Some(before) = observed.containers.insert(name.clone(), seen) {
                observed.previous.insert(name, before);
            }
        }
        Ok((observed, Some(sandbox.id.clone())))
    }

    fn seen(&self, uid: &str, container: &runtime::ContainerStatus) -> Seen {
        let state = match container.state {
            runtime::State::Created => SeenState::Created,
            runtime::State::Running => SeenState::Running,
            runtime::State::Exited | runtime::State::Unknown => SeenState::Exited,
        };
        let message = match state {
            SeenState::Exited => {
                let file = self.dirs(uid).termination(&container.name, container.attempt);
                crate::termination::message(container, &file)
            }
            _ => container.message.clone(),
        };
        Seen {
            id: container.id.as_str().into(),
            attempt: container.attempt,
            state,
            image: container.image.as_str().into(),
            image_id: container.image_ref.as_str().into(),
            started: container.started_at,
            finished: container.finished_at,
            exit_code: container.exit_code,
            signal: container.signal,
            reason: container.reason.as_str().into(),
            message: message.into(),
            limits: Some(container.resources.clone()),
        }
    }

    /// Runs until the process ends: adopts what is there, then follows the pods.
    pub async fn run(self: Arc<Self>) -> Result<(), runtime::Error> {
        for dir in [PODS_DIR, LOGS_DIR].map(|name| self.options.data.join(name)) {
            let doing = format!("make {}", dir.display());
            std::fs::create_dir_all(&dir).map_err(|source| runtime::Error::Io { doing, source })?;
            runtime::spread(&dir);
        }
        let found = self.runtime.found().await?;
        self.adopted.send_replace(true);
        let agent = self.clone();
        tokio::spawn(async move { agent.watch_runtime().await });
        let pods = self.mirror.listen(Interest::Parts(vec![(PODS, Part::All)]));
        let network = self.wait_for_addresses(&found).await;
        tokio::spawn(self.clone().follow_network(network));
        // Before the pods of this node are known, everything found would look like left behind.
        self.mirror.knows(PODS, Revision(1)).await;
        loop {
            self.hand_out(&found.sandboxes);
            pods.changed().await;
        }
    }

    /// Pods need addresses, which come with the node's pod network. What runs here of a node's object that is gone ends without.
    async fn wait_for_addresses(&self, found: &Found) -> Option<Cidr> {
        self.mirror.knows(NODES, Revision(1)).await;
        let (mut changed, mut network) = (self.mirror.subscribe(), None);
        loop {
            changed.borrow_and_update();
            self.take_network(&mut network, &found.sandboxes);
            let is_gone = self.mirror.one(NODES, "", &self.options.node).is_none();
            if network.is_some() || is_gone && !found.sandboxes.is_empty() || changed.changed().await.is_err() {
                return network;
            }
        }
    }

    /// Follows the node's network: a node that comes anew may have another one.
    async fn follow_network(self: Arc<Self>, mut network: Option<Cidr>) {
        let own = Part::Named(Key::of("", &self.options.node));
        let changed = self.mirror.listen(Interest::Parts(vec![(NODES, own)]));
        loop {
            // Somebody may have made the node's object anew while pods run here.
            let sandboxes = self.runtime.sandboxes().await.unwrap_or_default();
            self.take_network(&mut network, &sandboxes);
            changed.changed().await;
        }
    }

    /// The network that the node had last, if it had one.
    pub(crate) fn last_network(&self) -> Option<String> {
        let noted = std::fs::read_to_string(self.options.data.join(LAST_NETWORK)).ok()?;
        noted.trim().parse::<Cidr>().ok().map(|network| network.to_string())
    }

    /// Gives addresses of the network that the node has now, if that is another than `known`; `found` have some of it. A node
    /// that is gone keeps what it had: it may come with the same one, of which pods may still have addresses.
    fn take_network(&self, known: &mut Option<Cidr>, found: &[runtime::SandboxStatus]) {
        let node = self.mirror.one(NODES, "", &self.options.node);
        let Some(network) = node.and_then(|node| net::plan::cidrs_of(&node.value()).first().copied()) else { return };
        if *known == Some(network) {
            return;
        }
        *known = Some(network);
        if let Err(error) = std::fs::write(self.options.data.join(LAST_NETWORK), network.to_string()) {
            tracing::warn!("the network {network} could not be noted: {error}");
        }
        let last = std::fs::read_to_string(self.options.data.join(LAST_ADDRESS)).ok();
        let last = last.and_then(|text| text.trim().parse::<IpAddr>().ok());
        let mut addresses = Addresses::new(network).after(last);
        for sandbox in found {
            if let Some(address) = sandbox.spec.annotations.get(ADDRESS).and_then(|text| text.parse().ok()) {
                addresses.take(address);
            }
        }
        *lock(&self.addresses) = Some(addresses);
    }

    /// An address for a pod, noted as the one that was given last.
    pub(crate) fn give_address(&self) -> Result<IpAddr, String> {
        let address = lock(&self.addresses).as_mut().and_then(Addresses::give);
        let address = address.ok_or("no address is left for pods on this node")?;
        let noted = std::fs::write(self.options.data.join(LAST_ADDRESS), address.to_string());
        if let Err(error) = noted {
            lock(&self.addresses).iter_mut().for_each(|addresses| _ = addresses.free(address));
            return Err(format!("cannot note the address {address}: {error}"));
        }
        Ok(address)
    }

    async fn watch_runtime(&self) {
        let mut version = 0;
        loop {
            let changes = self.runtime.changed(version).await;
            version = changes.version;
            let workers = lock(&self.workers);
            if changes.all {
                workers.values().for_each(|worker| worker.runtime.notify_one());
            } else {
                let own = changes.pods.iter().filter_map(|uid| workers.get(uid.as_str()));
                own.for_each(|worker| worker.runtime.notify_one());
            }
        }
    }

    /// Gives every pod of this node to its task; pods that are gone are told so.
    fn hand_out(self: &Arc<Self>, found: &[runtime::SandboxStatus]) {
        let view = self.mirror.view();
        let mut workers = lock(&self.workers);
        let mut here: BTreeMap<Str, Object> = BTreeMap::new();
        for pod in view.by(PODS, "node", &self.options.node) {
            here.insert(pod.uid().into(), pod.clone());
        }
        let mut judged = self.judge(&here, &workers);
        for (uid, pod) in &here {
            match workers.get(uid) {
                Some(_) => {}
                None => {
                    let pending = worker::pending_of(&pod.value());
                    let judged_at = pending.is_none().then_some(pod.facts().generation);
                    let (object, objects) = watch::channel(Told { object: Some(pod.clone()), pending });
                    let runtime = Arc::new(Notify::new());
                    let mut worker = Worker::new(pod);
                    let takes = match judged.remove(uid) {
                        Some(Err((reason, message))) => {
                            self.event(worker.pod(), "", "Warning", &reason, message.clone());
                            worker.refuse(reason, message);
                            None
                        }
                        taken => taken.and_then(Result::ok),
                    };
                    workers.insert(uid.clone(), Hears { object, runtime: runtime.clone(), takes, judged: judged_at });
                    let (agent, uid) = (self.clone(), uid.clone());
                    tokio::spawn(async move {
                        agent.place(&mut worker, &uid).await;
                        agent.work(worker, uid, objects, runtime).await;
                    });
                }
            }
        }
        self.resize(&here, &mut workers);
        for (uid, worker) in workers.iter() {
            let pod = here.get(uid);
            worker.object.send_if_modified(|known| {
                let at = |object: Option<&Object>| object.map(Object::revision);
                let newer = at(known.object.as_ref()) < at(pod) || pod.is_none() && known.object.is_some();
                if newer {
                    known.object = pod.cloned();
                }
                newer
            });
        }
        self.share_out(&here, &workers);
        // What runs for pods that nobody knows is removed.
        for sandbox in found {
            let uid = Str::from(sandbox.spec.uid.as_str());
            if !here.contains_key(&uid) && !workers.contains_key(&uid) {
                let (agent, id) = (self.clone(), sandbox.id.clone());
                tokio::spawn(async move { carry::discard(&agent, &uid, &id).await });
            }
        }
    }

    /// What each pod that has no task yet takes of the node, or why the node does not take it. Those that had begun before
    /// come first, then the new in the order of their making.
    fn judge(&self, here: &BTreeMap<Str, Object>, workers: &BTreeMap<Str, Hears>) -> BTreeMap<Str, Judged> {
        let mut new: Vec<(&Str, &Object)> = here.iter().filter(|(uid, _)| !workers.contains_key(*uid)).collect();
        let Some(node) = (!new.is_empty()).then(|| self.mirror.one(NODES, "", &self.options.node)).flatten() else {
            return new
                .into_iter()
                .map(|(uid, pod)| (uid.clone(), Ok(Takes::of(&worker::admitted(&pod.value())))))
                .collect();
        };
        let (allocatable, mut judged) = (node.value()["status"]["allocatable"].clone(), BTreeMap::<Str, Judged>::new());
        let has_begun = |pod: &Object| !pod.value().at(&["status", "startTime"]).is_null();
        new.sort_by_cached_key(|(_, pod)| (!has_begun(pod), pod.facts().created));
        let counts = |uid: &Str| here.get(uid).is_some_and(|pod| !pod_facts::of(pod).phase.is_final());
        for (uid, pod) in new {
            let value = pod.value();
            let takes = Takes::of(&worker::admitted(&value));
            let known = workers.iter().filter_map(|(uid, one)| Some((uid, one.takes.as_ref()?)));
            let beside = judged.iter().filter_map(|(uid, one)| Some((uid, one.as_ref().ok()?)));
            let others: Vec<&Takes> = known.chain(beside).filter(|(uid, _)| counts(uid)).map(|(_, one)| one).collect();
            let refusal = match value.at(&["status", "startTime"]).is_null() {
                true => takes.refusal(&allocatable, &others),
                false => None,
            };
            judged.insert(uid.clone(), refusal.map_or(Ok(takes), Err));
        }
        judged
    }

    /// Judges what pods ask for anew since their spec changed, and once more what there was no room for.
    fn resize(&self, here: &BTreeMap<Str, Object>, workers: &mut BTreeMap<Str, Hears>) {
        let asks = |uid: &Str, hears: &Hears| {
            hears.takes.is_some() && here.get(uid).is_some_and(|pod| hears.judged != Some(pod.facts().generation))
        };
        let asking: Vec<Str> =
            workers.iter().filter(|(uid, hears)| asks(uid, hears)).map(|(uid, _)| uid.clone()).collect();
        let Some(node) = (!asking.is_empty()).then(|| self.mirror.one(NODES, "", &self.options.node)).flatten() else {
            return;
        };
        let (node, mut pods): (Value, Vec<(Str, &Object)>) =
            (node.value(), asking.into_iter().filter_map(|uid| Some((uid.clone(), here.get(&uid)?))).collect());
        pods.sort_by_key(|(_, pod)| pod.facts().created);
        let counts = |uid: &Str| here.get(uid).is_some_and(|pod| !pod_facts::of(pod).phase.is_final());
        for (uid, pod) in pods {
            let wanted = Takes::of(&pod.value());
            let others = workers.iter().filter(|(other, _)| **other != uid && counts(other));
            let others: Vec<&Takes> = others.filter_map(|(_, one)| one.takes.as_ref()).collect();
            let has = workers.get(&uid).and_then(|hears| hears.takes.clone()).unwrap_or_default();
            let pending = wanted.pending(&has, node.at(&["status", "allocatable"]), &others);
            let Some(hears) = workers.get_mut(&uid) else { continue };
            if pending.is_none() {
                (hears.takes, hears.judged) = (Some(wanted), Some(pod.facts().generation));
            }
            let told = hears.object.send_if_modified(|told| {
                let news = told.pending != pending;
                if news {
                    *told = Told { object: Some(pod.clone()), pending: pending.clone() };
                }
                news
            });
            if let (true, Some((reason, message))) = (told, pending) {
                self.event(&pod.value(), "", "Warning", &format!("Resize{reason}"), message);
            }
        }
    }

    /// Refuses a pod that has not begun and does not belong on this node.
    async fn place(&self, worker: &mut Worker, uid: &Str) {
        let pod = worker.pod();
        let node = || self.mirror.one(NODES, "", &self.options.node);
        let has_begun = !pod.at(&["status", "startTime"]).is_null();
        if has_begun || node().is_none_or(|node| admit::misplaced(pod, &node).is_none()) {
            return;
        }
        // The pod may rest on what the node has become and the mirror does not show yet.
        let asked = self.api.call(Request::get(NODES, "", &self.options.node)).await;
        let node = asked.ok().map(|answer| answer.object).or_else(node);
        let Some((reason, message)) = node.and_then(|node| admit::misplaced(pod, &node)) else { return };
        self.event(pod, "", "Warning", &reason, message.clone());
        worker.refuse(reason, message);
        if let Some(hears) = lock(&self.workers).get_mut(uid) {
            hears.takes = None;
        }
    }

    /// Gives the classes of service their shares of the processor: burstable pods what they ask for together, those that
    /// ask for nothing the least there is (kubelet, `qos_container_manager_linux.go`). Pods that are guaranteed theirs
    /// stand beside the classes.
    fn share_out(self: &Arc<Self>, here: &BTreeMap<Str, Object>, workers: &BTreeMap<Str, Hears>) {
        let counts = |uid: &Str| here.get(uid).is_some_and(|pod| !pod_facts::of(pod).phase.is_final());
        let burstable = workers.iter().filter(|(uid, _)| counts(uid)).filter_map(|(_, worker)| worker.takes.as_ref());
        let asked = burstable.filter(|takes| takes.class == "burstable").map(Takes::cpu_milli).sum();
        let wanted = [spec::shares(0), spec::shares(asked)];
        if std::mem::replace(&mut *lock(&self.class_shares), wanted) == wanted {
            return;
        }
        let agent = self.clone();
        tokio::spawn(async move {
            // What is wanted by now: another may have been faster.
            let wanted = *lock(&agent.class_shares);
            for (class, shares) in ["besteffort", "burstable"].into_iter().zip(wanted) {
                let path = format!("{}/{class}", agent.options.cgroup);
                let resources = runtime::Resources { cpu_shares: Some(shares), ..runtime::Resources::default() };
                if let Err(error) = agent.runtime.set_cgroup(&path, resources).await {
                    tracing::warn!("the class {class} does not have its share: {error}");
                }
            }
        });
    }

    /// The task of one pod.
    async fn work(
        self: Arc<Self>,
        mut worker: Worker,
        uid: Str,
        mut pods: watch::Receiver<Told>,
        runtime: Arc<Notify>,
    ) {
        let (done, mut results) = mpsc::unbounded_channel::<(Command, Outcome)>();
        let mut refreshed = tokio::time::Instant::now();
        let mut measure_at = refreshed + LOOK_EVERY;
        let mut standings = self.standing.subscribe();
        loop {
            let Told { object, pending } = pods.borrow_and_update().clone();
            worker.pend(pending);
            worker.see(object.as_ref(), self.now());
            let standing = *standings.borrow_and_update();
            let observed = match self.observe(&uid).await {
                Ok((observed, sandbox)) => {
                    let until_ms = worker.stand(&standing, runtime::boot_ms(), observed.sandbox_ready);
                    if let (Some(until_ms), Some(sandbox)) = (until_ms, &sandbox) {
                        match self.runtime.hold(sandbox, until_ms).await {
                            Ok(is_held) => worker.held(until_ms, is_held),
                            Err(error) => tracing::warn!("pod {uid} cannot be held: {error}"),
                        }
                    }
                    self.know(worker.pod(), Known { uid: uid.clone(), sandbox, observed: observed.clone() });
                    observed
                }
                Err(error) => {
                    tracing::warn!("pod {uid}: {error}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            let now = self.now();
            let Some(commands) = worker.decide(&observed, now) else {
                lock(&self.workers).remove(&uid);
                self.forget(worker.pod());
                return;
            };
            let step = commands.iter().any(Command::is_step);
            for command in commands {
                let (agent, pod, done) = (self.clone(), worker.pod().clone(), done.clone());
                tokio::spawn(async move {
                    let outcome = carry::out(&agent, &pod, &command).await;
                    // The receiver goes only with the pod's task.
                    let _ = done.send((command, outcome));
                });
            }
            if step {
                tokio::select! {
                    changed = pods.changed() => match changed {
                        Ok(()) => continue,
                        Err(_) => return,
                    },
                    Some((command, outcome)) = results.recv() => {
                        self.take(&mut worker, &command, outcome);
                        continue;
                    }
                    () = tokio::time::sleep(GATHER) => {}
                }
            }
            if let Some(status) = worker.status(&observed, &self.host_addresses(), now) {
                let answer = self.api.call(worker.telling(&status)).await;
                match &answer {
                    // What was told counts from now on, not from when the mirror shows it: a container that has ended has.
                    Ok(answer) => worker.see(Some(&answer.object), self.now()),
                    Err(why) => tracing::debug!("the status of pod {uid} was not written: {why}"),
                }
                worker.told(status, answer.as_ref().map(|_| ()));
            }
            if refreshed.elapsed() >= REFRESH && observed.sandbox_ready {
                refreshed = tokio::time::Instant::now();
                if let Err(why) = carry::refresh(&self, worker.pod()).await {
                    self.event(worker.pod(), "", "Warning", "FailedMount", why);
                }
            }
            let limited = observed.sandbox_ready && local_storage::is_limited(worker.pod());
            if limited && tokio::time::Instant::now() >= measure_at {
                let began = tokio::time::Instant::now();
                let excess = local_storage::excess(&self, worker.pod(), &observed).await;
                measure_at = began + LOOK_EVERY.max(began.elapsed() * PAUSE_FACTOR);
                if let Some(why) = excess {
                    self.event(worker.pod(), "", "Warning", EVICTED, why.clone());
                    worker.evict(why);
                    continue;
                }
            }
            // An answer that was expected brings no look.
            loop {
                let measure = async {
                    match limited {
                        true => tokio::time::sleep_until(measure_at).await,
                        false => std::future::pending().await,
                    }
                };
                let wake = worker.wake().map(|at| Duration::from_millis(at.ms_since(self.now()).max(1)));
                let ends = worker.ends_ms(&standing);
                let stands = async {
                    let Some(ends_ms) = ends else { return std::future::pending().await };
                    let left = Duration::from_millis(ends_ms.saturating_sub(runtime::boot_ms()));
                    // The sender lives as long as the agent.
                    let _ = tokio::time::timeout(left, standings.changed()).await;
                };
                tokio::select! {
                    changed = pods.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    () = runtime.notified() => break,
                    Some((command, outcome)) = results.recv() => {
                        self.take(&mut worker, &command, outcome);
                        while let Ok((command, outcome)) = results.try_recv() {
                            self.take(&mut worker, &command, outcome);
                        }
                        if !worker.is_quiet() {
                            break;
                        }
                    }
                    () = measure => break,
                    () = stands => break,
                    () = tokio::time::sleep(wake.unwrap_or(REFRESH).min(REFRESH)) => break,
                }
            }
        }
    }

    /// Remembers how a command went, and tells what is worth telling.
    fn take(&self, worker: &mut Worker, command: &Command, outcome: Outcome) {
        for note in worker.take(command, outcome, self.now()) {
            self.event(worker.pod(), &note.container, note.of_type, note.reason, note.message);
        }
    }
}
