//! Planted defects, one per promise: switched on in a world, each must be found by its checker. They sit in the seams
//! between the real parts, never in the parts.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::core::pod_facts::PodFacts;
use base::Revision;
use cache::{Change, View};
use client::{Action, Api, PatchType, Request};
use drive::Shell;
use drive::leader::{BEAT_KEY, LEADER};
use drive::servers::{ENTERED, PLACE};
use meta::{Facts, Labels, Object, Resource, Value, json};
use server::pack;
use store::{Event, Format, Op, Page, Put, Txn, Version};

use crate::exec::Process;
use crate::link::LinkApi;
use crate::user::{BUDGETS, NODES, PODS, RESERVED};

const SLICES: Resource = net::plan::SLICES;
/// As which the scheduler writes.
const SCHEDULER: &str = "default-scheduler";
const LEASES: Resource = Resource("leases.coordination.k8s.io");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// A write is answered before the disk has it.
    AnswerBeforeSync,
    /// The controllers' watch leaves one deletion of a pod out.
    SkipDeletion,
    /// Controllers do not wait for their own writes.
    ForgetOwnWrites,
    /// The controllers' watch shows a replica set as deleted when its status is told.
    LoseOwners,
    /// Job status says one success more than there was.
    CountTwice,
    /// Evictions are plain deletions.
    EvictFreely,
    /// The scheduler's watch leaves bound pods out.
    BlindScheduler,
    /// Agents run the pods of other nodes, too.
    GreedyAgents,
    /// Agents let the object go while its containers run.
    HastyAgents,
    /// Deployments are not looked at.
    NoDeployments,
    /// Deployments are allowed more surge than they state.
    TooMuchSurge,
    /// Someone writes the same object for ever.
    Chatter,
    /// Someone tells of the same thing for ever, seldom.
    Mutter,
    /// Reads are answered with what was read first.
    StaleReads,
    /// The controllers' watch brings one change at the next one's revision.
    LateEvents,
    /// Leases end before their time.
    HastyLeases,
    /// The scheduler's watch does not show that nodes take no more pods.
    HideCordons,
    /// A damaged file is taken for a sound one.
    TrustRot,
    /// The controllers' watch leaves renewals of leases out.
    LoseBeats,
    /// What a leader's parts write does not depend on its leading.
    NoFence,
    /// A server that does not lead takes no notice of the leader's signs of life.
    DeafCandidate,
    /// A server's clock for the lead runs far too slowly.
    SlowCandidate,
    /// A leader decides on what was some seconds ago.
    LaggingLeader,
    /// Servers answer without asking the shared store for what is new.
    StaleServers,
    /// The watch that feeds a server leaves deletions of pods out.
    LeakyFeed,
    /// The store's feed leaves a revision out now and then.
    LoseRevisions,
    /// The store moves a running pod to another node.
    BindTwice,
    /// The controllers' watch brings changes twice.
    TellTwice,
    /// The controllers' watch brings the first change of a commit only.
    TearCommits,
    /// The controllers' watch goes on from now when it broke off.
    ForgetWhere,
    /// The controllers' watch says that it is complete further than it is.
    HastyBookmarks,
    /// Deployments take more away than they may.
    BelowMinimum,
    /// Nothing is collected.
    NoCollector,
    /// A newer server writes newer forms as soon as it is there.
    HastyForms,
    /// The leader takes every server for the newest.
    HastyRaise,
    /// Whoever enters sets the data version to what was first.
    FormatsGoBack,
    /// Servers are not told that the data version was raised.
    BlindToFormats,
    /// Servers begin and enter whatever the data version is.
    StubbornServers,
    /// The data version stays where it is.
    NeverRaise,
    /// Agents are not told where the pods of services are.
    BlindPlanners,
    /// An agent that comes back takes the routes of its machine for there, also when that had lost its power.
    TrustingAgents,
    /// Agents leave in the kernel what is no service any more.
    LazyKernels,
    /// Agents take their time until they tell the kernel.
    SleepyPlanners,
    /// Slices say of all pods that they are ready.
    HastySlices,
    /// An agent that begins does not know which address was given last.
    ForgottenAddresses,
    /// All nodes get the same addresses for their pods.
    TwinNetworks,
    /// The controllers' watch says of all daemons that they are ready.
    RosyDaemons,
    /// Stateful sets take their first pod away instead of the one that they mean.
    FirstGoes,
    /// The scheduler's watch does not show that nodes are reserved.
    HideTaints,
    /// Pods are bound to the first node, wherever the scheduler wants them.
    BindAnywhere,
    /// A job's status says one success less than there was, unless the job is complete.
    LoseSuccess,
    /// Leases never end.
    LazyLeases,
    /// Agents take the lease of their node for renewed, whatever became of it.
    SureAgents,
    /// Nobody ends a pod that no agent holds any more.
    DeafShims,
    /// The scheduler's watch shows pods that have a node without their labels.
    ForgetSiblings,
    /// Not whom the scheduler means has to go, but who matters most on that node.
    PushOutTheFirst,
    /// The scheduler is not told of budgets.
    HideBudgets,
    /// Nobody is pushed out.
    SpareVictims,
    /// Agents register their node anew whatever runs there.
    HastyNodes,
    /// Agents do not care whether their node has an object.
    LostNodes,
    /// Agents whose node has no object renew no lease while pods still run there.
    MuteNodes,
}

/// Every defect, the checker that must find it, and in which sort of world.
pub const DEFECTS: &[(Mutation, &str, &str)] = &[
    (Mutation::AnswerBeforeSync, "store", "crashes"),
    (Mutation::SkipDeletion, "watch", "calm"),
    (Mutation::ForgetOwnWrites, "replicas", "lossy"),
    (Mutation::TooMuchSurge, "replicas", "calm"),
    (Mutation::HastyAgents, "identity", "calm"),
    (Mutation::GreedyAgents, "agents", "calm"),
    (Mutation::LoseOwners, "ownership", "calm"),
    (Mutation::CountTwice, "jobs", "calm"),
    (Mutation::EvictFreely, "budgets", "busy"),
    (Mutation::EvictFreely, "budgets", "guarded"),
    (Mutation::BlindScheduler, "scheduler", "tight"),
    (Mutation::NoDeployments, "liveness", "calm"),
    (Mutation::Chatter, "liveness", "calm"),
    (Mutation::Mutter, "liveness", "calm"),
    (Mutation::Mutter, "liveness", "servers"),
    (Mutation::StaleReads, "history", "calm"),
    (Mutation::SkipDeletion, "history", "calm"),
    (Mutation::LateEvents, "history", "calm"),
    (Mutation::HastyLeases, "leases", "calm"),
    (Mutation::HideCordons, "scheduler", "busy"),
    (Mutation::TrustRot, "store", "disks"),
    (Mutation::LoseBeats, "nodes", "busy"),
    (Mutation::NoFence, "leaders", "servers"),
    (Mutation::DeafCandidate, "leaders", "servers"),
    (Mutation::SlowCandidate, "leaders", "servers"),
    (Mutation::LaggingLeader, "leaders", "servers"),
    (Mutation::StaleServers, "history", "servers"),
    (Mutation::LeakyFeed, "watch", "servers"),
    (Mutation::LoseRevisions, "store", "calm"),
    (Mutation::BindTwice, "scheduler", "calm"),
    (Mutation::TellTwice, "history", "calm"),
    (Mutation::TearCommits, "history", "calm"),
    (Mutation::ForgetWhere, "watch", "lossy"),
    (Mutation::HastyBookmarks, "watch", "calm"),
    (Mutation::BelowMinimum, "replicas", "busy"),
    (Mutation::NoCollector, "liveness", "calm"),
    (Mutation::HastyForms, "formats", "upgrade"),
    (Mutation::HastyRaise, "formats", "upgrade"),
    (Mutation::FormatsGoBack, "formats", "upgrade"),
    (Mutation::BlindToFormats, "formats", "upgrade"),
    (Mutation::StubbornServers, "formats", "upgrade"),
    (Mutation::NeverRaise, "liveness", "upgrade"),
    (Mutation::BlindPlanners, "liveness", "calm"),
    (Mutation::TrustingAgents, "liveness", "nodes"),
    (Mutation::BlindPlanners, "network", "calm"),
    (Mutation::TrustingAgents, "network", "nodes"),
    (Mutation::LazyKernels, "network", "busy"),
    (Mutation::SleepyPlanners, "network", "calm"),
    (Mutation::HastySlices, "network", "calm"),
    (Mutation::ForgottenAddresses, "network", "crashes"),
    (Mutation::TwinNetworks, "network", "calm"),
    (Mutation::RosyDaemons, "replicas", "busy"),
    (Mutation::FirstGoes, "replicas", "busy"),
    (Mutation::HideTaints, "scheduler", "picky"),
    (Mutation::BindAnywhere, "scheduler", "picky"),
    (Mutation::BlindScheduler, "scheduler", "picky"),
    (Mutation::LoseSuccess, "jobs", "busy"),
    (Mutation::LazyLeases, "leases", "calm"),
    (Mutation::SureAgents, "identity", "lost"),
    (Mutation::DeafShims, "identity", "lost"),
    (Mutation::ForgetSiblings, "spread", "spread"),
    (Mutation::PushOutTheFirst, "preemption", "ranked"),
    (Mutation::HideBudgets, "preemption", "guarded"),
    (Mutation::SpareVictims, "liveness", "ranked"),
    (Mutation::HastyNodes, "nodes", "removals"),
    (Mutation::LostNodes, "liveness", "removals"),
    (Mutation::MuteNodes, "identity", "removals"),
];

impl Mutation {
    /// A request as it arrives.
    pub fn request(self, mut request: Request, view: &View) -> Request {
        match self {
            Mutation::EvictFreely if request.subresource == "eviction" => {
                request.action = Action::Delete;
                request.subresource = "".into();
                request
            }
            Mutation::CountTwice if request.resource.0 == "jobs.batch" && request.subresource == "status" => {
                if let Action::Update(object) = &mut request.action {
                    let succeeded = object.at(&["status", "succeeded"]).as_int().unwrap_or(0);
                    if succeeded > 0 {
                        object.set(&["status", "succeeded"], succeeded + 1);
                    }
                }
                request
            }
            Mutation::LoseSuccess if request.resource.0 == "jobs.batch" && request.subresource == "status" => {
                if let Action::Update(object) = &mut request.action {
                    let succeeded = object.at(&["status", "succeeded"]).as_int().unwrap_or(0);
                    let conditions = object.at(&["status", "conditions"]).items();
                    if succeeded > 0 && !conditions.iter().any(|one| one["type"].text() == "Complete") {
                        object.set(&["status", "succeeded"], succeeded - 1);
                    }
                }
                request
            }
            Mutation::FirstGoes
                if request.resource == PODS
                    && matches!(request.action, Action::Delete)
                    && request.options.manager == "statefulset-controller" =>
            {
                let first = request.name.rsplit_once('-').map(|(set, _)| format!("{set}-0")).unwrap_or_default();
                if let Some(pod) = view.one(PODS, &request.namespace, &first) {
                    request.options.uid = Some(pod.uid().into());
                    request.name = first.into();
                }
                request
            }
            Mutation::PushOutTheFirst if pushes_out(&request) => {
                let victim = view.one(PODS, &request.namespace, &request.name).map(node_of).unwrap_or_default();
                let first = view.by(PODS, "node", &victim).max_by_key(|pod| priority_of(pod));
                if let Some(pod) = first.filter(|pod| pod.facts().deleting.is_none()) {
                    request.options.uid = Some(pod.uid().into());
                    (request.namespace, request.name) = (pod.namespace().into(), pod.name().into());
                }
                request
            }
            Mutation::SpareVictims if pushes_out(&request) => {
                request.action = Action::Get;
                request
            }
            Mutation::BindAnywhere if request.resource == PODS && request.subresource == "binding" => {
                if let Action::Create(binding) = &mut request.action {
                    binding.set(&["target", "name"], "node-0");
                }
                request
            }
            Mutation::TooMuchSurge if request.resource.0 == "replicasets.apps" => {
                if let Action::Create(object) | Action::Update(object) = &mut request.action {
                    let replicas = object.at(&["spec", "replicas"]).as_int().unwrap_or(0);
                    if replicas > 0 && request.subresource.is_empty() {
                        object.set(&["spec", "replicas"], replicas + 3);
                    }
                }
                request
            }
            Mutation::BelowMinimum if request.resource.0 == "replicasets.apps" => {
                let takes = |object: &Value, view: &View| {
                    let meta = &object["metadata"];
                    let known = view.one(request.resource, meta["namespace"].text(), meta["name"].text());
                    let size = |value: &Value| value.at(&["spec", "replicas"]).as_int().unwrap_or(0);
                    known.is_some_and(|known| size(object) < size(&known.value()))
                };
                if let Action::Update(object) = &mut request.action
                    && request.subresource.is_empty()
                    && takes(object, view)
                {
                    object.set(&["spec", "replicas"], 0i64);
                }
                request
            }
            Mutation::HastySlices if request.resource == SLICES => {
                if let Action::Create(slice) | Action::Update(slice) = &mut request.action
                    && let Some(endpoints) = slice.at_mut(&["endpoints"])
                {
                    endpoints.items_mut().iter_mut().for_each(|one| one.set(&["conditions", "ready"], true));
                }
                request
            }
            Mutation::TwinNetworks if request.resource == NODES => {
                if let Action::Patch(_, patch) | Action::Update(patch) = &mut request.action
                    && let Some(spec) = patch.at_mut(&["spec"])
                    && spec.get("podCIDR").is_some()
                {
                    spec.set(&["podCIDR"], "10.244.0.0/24");
                    spec.set(&["podCIDRs"], Value::from(vec![Value::from("10.244.0.0/24")]));
                }
                request
            }
            _ => request,
        }
    }

    /// Who writes for ever.
    pub fn talks(self) -> Option<Talks> {
        match self {
            Mutation::Chatter => Some(|api, shell| Box::pin(talk(api, shell, 20_000, chatter))),
            Mutation::Mutter => Some(|api, shell| Box::pin(talk(api, shell, 200_000, mutter))),
            _ => None,
        }
    }

    /// A transaction as a server sends it.
    pub fn txn(self, txn: &mut Txn) {
        let takes = txn.ops.iter().any(|op| &op.key()[..] == LEADER);
        if self == Mutation::DeafCandidate && takes {
            txn.compares.retain(|compare| &compare.key[..] != BEAT_KEY);
        }
        if self == Mutation::StubbornServers {
            txn.compares.retain(|compare| &compare.key[..] != Format::KEY);
        }
        if self == Mutation::NeverRaise && txn.ops.iter().any(|op| &op.key()[..] == Format::KEY) {
            *txn = std::mem::take(txn).when(Format::KEY, Revision(u64::MAX));
        }
    }

    /// What a server reads of the store.
    pub fn page(self, page: &mut Page) {
        if self == Mutation::StubbornServers {
            page.items.retain(|(key, _)| &key[..] != Format::KEY);
        }
    }

    /// A transaction as the store carries it out.
    pub fn store(self, txn: &mut Txn) {
        const FROM: &[u8] = b"\"nodeName\":\"node-1\"";
        const TO: &[u8] = b"\"nodeName\":\"node-0\"";
        if self == Mutation::FormatsGoBack && txn.ops.iter().any(|op| &op.key()[..] == ENTERED) {
            *txn = std::mem::take(txn).put(Put::new(Format::KEY, Format::FIRST.text()));
        }
        for op in &mut txn.ops {
            if let Op::Put(put) = op
                && self == Mutation::HastyForms
                && put.key.starts_with(b"/registry/configmaps/")
                && put.value.len() >= pack::PACK_FROM_BYTES
                && let Some(packed) = pack::pack(&put.value)
            {
                (put.value, put.stamp, put.attachment) = (packed, None, None);
            }
        }
        let pods = txn.ops.iter_mut().filter_map(|op| match op {
            Op::Put(put) if put.key.starts_with(b"/registry/pods/") => Some(put),
            _ => None,
        });
        for put in pods.filter(|_| self == Mutation::BindTwice) {
            let mut text = put.value.to_vec();
            let finds = |text: &[u8], what: &[u8]| text.windows(what.len()).position(|window| window == what);
            if finds(&text, b"\"phase\":\"Running\"").is_some()
                && let Some(at) = finds(&text, FROM)
            {
                text[at..at + TO.len()].copy_from_slice(TO);
                // What travels with the value is of the text before.
                (put.value, put.attachment) = (text.into(), None);
            }
        }
    }

    /// A stretch of the store's feed as it is told to the truth.
    pub fn told(self, events: &mut Vec<Event>) {
        if self == Mutation::LoseRevisions {
            events.retain(|event| event.revision.0 % 50 != 0);
        }
    }

    /// A stretch of the store's watch as a server gets it.
    pub fn watch(self, events: &mut Vec<Event>) {
        if self == Mutation::LeakyFeed {
            events.retain(|event| event.new.is_some() || !event.key.starts_with(b"/registry/pods/"));
        }
        if self == Mutation::BlindToFormats {
            events.retain(|event| &event.key[..] != Format::KEY);
        }
        for event in events.iter_mut().filter(|event| event.key.starts_with(PLACE.as_bytes())) {
            if let Some(new) = event.new.as_mut().filter(|_| self == Mutation::HastyRaise) {
                *new = Arc::new(Version { value: pack::NEWEST.text().into(), ..Version::clone(new) });
            }
        }
    }

    /// A list as a client gets it.
    pub fn list(self, client: &str, mut objects: Vec<Object>) -> Vec<Object> {
        if (self, client) == (Mutation::BlindScheduler, "scheduler") {
            objects.retain(|object| object.resource() != PODS || node_of(object).is_empty());
        }
        if (self, client) == (Mutation::HideBudgets, "scheduler") {
            objects.retain(|object| object.resource() != BUDGETS);
        }
        objects
    }

    /// A stretch of a watch as a client gets it.
    pub fn feed(self, client: &str, mut changes: BTreeMap<Revision, Vec<Change>>) -> BTreeMap<Revision, Vec<Change>> {
        let drops = |change: &Change| match (self, client) {
            (Mutation::SkipDeletion, "controllers") => {
                change.new.is_none() && change.old.as_ref().is_some_and(|old| old.resource() == PODS)
            }
            (Mutation::LoseBeats, "controllers") => {
                change.old.is_some() && change.new.as_ref().is_some_and(|new| new.resource() == LEASES)
            }
            _ => false,
        };
        let hides = |change: &Change| {
            let (Some(new), of) = (&change.new, (self, client)) else { return false };
            match of {
                (Mutation::BlindScheduler, "scheduler") => new.resource() == PODS && !node_of(new).is_empty(),
                (Mutation::HideBudgets, "scheduler") => new.resource() == BUDGETS,
                (Mutation::HideCordons, "scheduler") => {
                    new.resource() == NODES && new.value()["spec"]["unschedulable"].is_true()
                }
                (Mutation::HideTaints, "scheduler") => {
                    let value = new.value();
                    let reserved = |taint: &Value| taint["key"].text() == RESERVED;
                    new.resource() == NODES && value["spec"]["taints"].items().iter().any(reserved)
                }
                (Mutation::LoseOwners, "controllers") => {
                    let replicas = new.value().at(&["status", "replicas"]).as_int().unwrap_or(0);
                    new.resource().0 == "replicasets.apps" && replicas > 0
                }
                _ => false,
            }
        };
        for list in changes.values_mut() {
            list.retain(|change| !drops(change));
            match (self, client) {
                (Mutation::TellTwice, "controllers") => list.extend(list.first().cloned()),
                (Mutation::TearCommits, "controllers") => list.truncate(1),
                _ => {}
            }
            if matches!(self, Mutation::HideCordons | Mutation::HideTaints | Mutation::HideBudgets) {
                list.retain(|change| !hides(change));
            }
            if (self, client) == (Mutation::RosyDaemons, "controllers") {
                list.iter_mut().filter_map(|change| change.new.as_mut()).for_each(make_rosy);
            }
            if (self, client) == (Mutation::ForgetSiblings, "scheduler") {
                list.iter_mut().filter_map(|change| change.new.as_mut()).for_each(strip_bound);
            }
            for change in list.iter_mut().filter(|change| hides(change)) {
                change.old = change.new.take();
            }
        }
        if (self, client) == (Mutation::LateEvents, "controllers")
            && changes.len() > 1
            && let Some((_, early)) = changes.pop_first()
            && let Some(next) = changes.values_mut().next()
        {
            next.extend(early);
        }
        changes
    }
}

/// Says of a daemon that it is ready.
fn make_rosy(object: &mut Object) {
    let is_daemon = object.facts().controller().is_some_and(|owner| owner.kind == "DaemonSet");
    if let Some(known) = object.own::<PodFacts>().filter(|_| is_daemon) {
        let mut facts = object.facts().clone();
        facts.own = Some(Arc::new(PodFacts { ready: true, ..known.clone() }));
        *object = Object::new(facts, object.text());
    }
}

/// Takes the labels off a pod that has a node.
fn strip_bound(object: &mut Object) {
    if object.resource() == PODS && !node_of(object).is_empty() {
        let mut value = object.value();
        value.set(&["metadata", "labels"], Value::Null);
        let facts = Facts { labels: Labels::default(), ..object.facts().clone() };
        *object = Object::new(facts, value.to_json());
    }
}

/// Whether the scheduler makes room by this.
fn pushes_out(request: &Request) -> bool {
    request.resource == PODS && matches!(request.action, Action::Delete) && request.options.manager == SCHEDULER
}

fn priority_of(pod: &Object) -> i64 {
    pod.own::<PodFacts>().map_or(0, |facts| facts.priority)
}

fn node_of(pod: &Object) -> String {
    pod.own::<PodFacts>().map(|facts| facts.node.to_string()).unwrap_or_default()
}

/// Somebody who writes for ever.
type Talks = fn(LinkApi, Process) -> drive::Task;

/// Writes every so often.
async fn talk(api: LinkApi, shell: Process, every_ms: u64, word: fn(u64) -> Request) {
    for count in 0.. {
        shell.sleep(every_ms).await;
        // What is lost, or refused, is said again.
        let _ = api.call(word(count)).await;
    }
}

/// The same object once more.
fn chatter(count: u64) -> Request {
    let patch = json!({"metadata": {"annotations": {"count": (count.to_string())}}});
    Request::patch(Resource("namespaces"), "", "default", PatchType::Merge, patch)
}

/// The same event once more.
fn mutter(count: u64) -> Request {
    let about = json!({"apiVersion": "v1", "kind": "Namespace", "namespace": "", "name": "default"});
    Request::create(
        Resource("events"),
        json!({
            "metadata": {"name": (format!("mutter-{count}")), "namespace": "default"}, "involvedObject": about,
            "type": "Normal", "reason": "Muttered", "message": "as before",
        }),
    )
}
