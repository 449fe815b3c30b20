//! The user: creates, scales, rolls, drains and deletes, as the seed says. One step is a row in [`STEPS`].

use std::ops::Range;
use std::sync::Arc;

use api::core::leash::{SECONDS_MIN, STOP_AFTER};
use base::{Clock, Rng};
use cache::View;
use client::{Action, Api, Mirror, PatchType, Propagation, Request};
use drive::Shell;
use meta::{Object, Resource, Value, json};

use crate::exec::Process;
use crate::link::LinkApi;
use crate::schedule::Schedule;

pub const DEPLOYMENTS: Resource = Resource("deployments.apps");
pub const REPLICA_SETS: Resource = Resource("replicasets.apps");
pub const STATEFUL_SETS: Resource = Resource("statefulsets.apps");
pub const DAEMON_SETS: Resource = Resource("daemonsets.apps");
pub const JOBS: Resource = Resource("jobs.batch");
pub const SERVICES: Resource = Resource("services");
pub const BUDGETS: Resource = Resource("poddisruptionbudgets.policy");
pub const NAMESPACES: Resource = Resource("namespaces");
pub const PODS: Resource = Resource("pods");
pub const NODES: Resource = Resource("nodes");
/// Namespaces that the user works in.
const SPACES: [&str; 2] = ["red", "blue"];
/// Objects of one kind in one namespace.
const NAMES: [&str; 3] = ["a", "b", "c"];
/// The most pods that one workload asks for.
const REPLICAS_MAX: u64 = 5;
const MAPS: Resource = Resource("configmaps");
/// What the user looks at.
pub const WATCHES: &[Resource] =
    &[DEPLOYMENTS, REPLICA_SETS, STATEFUL_SETS, DAEMON_SETS, JOBS, SERVICES, BUDGETS, NAMESPACES, PODS, NODES];
/// About how long the text of a book is.
const BOOK_BYTES: usize = 24 * 1024;
const IMAGES: [&str; 4] = ["run", "run", "slow", "stubborn"];
pub const HOSTNAME: &str = "kubernetes.io/hostname";
pub const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
/// The taint of nodes that are reserved.
pub const RESERVED: &str = "reserved";
/// Where a node stands; each of [`ZONES`] has as many nodes.
pub const ZONE: &str = "topology.kubernetes.io/zone";
const ZONES: u64 = 3;
/// The priority classes of a user to whom some pods matter more than others: name, number, whether others make room for them.
const CLASSES: [(&str, i64, bool); 3] = [("low", -100, true), ("high", 1_000, true), ("patient", 2_000, false)];
const PRIORITY_CLASSES: Resource = Resource("priorityclasses.scheduling.k8s.io");
/// What some pods have to end where nodes are deleted while they run.
const LONG_GRACE_SECONDS: i64 = 60;
/// How often a drain asks those who may not go yet again, and after how long.
const DRAIN_ROUNDS: u32 = 3;
const DRAIN_AGAIN_MS: u64 = 5_000;
/// Pods of one workload that want a host each: with one more for a rollout there are nodes for all.
const APART_MAX: i64 = 3;

pub struct User {
    pub api: LinkApi,
    pub mirror: Arc<Mirror>,
    pub shell: Process,
    pub rng: Rng,
    /// About how often it does something.
    pub pace_ms: u64,
    /// How often its pods are asked whether they are ready.
    pub probe_seconds: i64,
    /// Pods of its stateful sets ask to be ended where their node is cut off.
    pub leashed: bool,
    /// Nodes are deleted while they run: some of its pods take longer to end than nodes may be silent.
    pub removes: bool,
    pub wants: Wants,
}

/// What the user asks for beyond running its pods somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// Nothing: there is room for all.
    Room,
    /// Pods say which nodes and neighbours they take, and nodes are reserved now and then.
    Places,
    /// Pods are to be spread over zones and nodes, and nodes move between zones now and then.
    Spread,
    /// There is no room for all, and some pods matter more than others.
    Rank,
}

/// What one step asks for; nothing when there is nothing to do it to.
type Step = fn(&mut User, &View) -> Vec<Request>;

/// Name, weight, step.
pub const STEPS: &[(&str, u64, Step)] = &[
    ("create a deployment", 14, |user, _| vec![user.deployment()]),
    ("create a stateful set", 8, |user, _| vec![user.stateful_set()]),
    ("create a daemon set", 3, |user, _| vec![user.daemon_set()]),
    ("create a job", 8, |user, _| vec![user.job()]),
    ("create a service", 5, |user, _| vec![user.service()]),
    ("create a budget", 6, |user, _| vec![user.budget()]),
    ("scale", 16, |user, view| user.scale(view)),
    ("roll", 14, |user, view| user.roll(view)),
    ("pause or resume", 3, |user, view| user.pause(view)),
    ("delete a workload", 7, |user, view| user.delete(view)),
    ("delete a pod", 6, |user, view| user.delete_pod(view)),
    ("cordon or uncordon", 3, |user, view| user.cordon(view)),
    ("drain", 5, |user, view| user.drain(view)),
    ("delete a namespace", 1, |user, _| vec![Request::delete(NAMESPACES, "", user.space())]),
];

impl User {
    /// Waits for a part of the pace, given in thousandths: all that a user does keeps the pace of its world.
    async fn rest(&mut self, permille: Range<u64>) {
        let part = permille.start + self.rng.below(permille.end - permille.start);
        self.shell.sleep((self.pace_ms * part / 1000).max(1)).await;
    }

    /// Works until `steps` are done, about one each time that the pace says. Each step is chosen by its number and made at its time, so
    /// that a schedule can leave others out.
    pub async fn work(mut self, steps: u64, schedule: Schedule) {
        self.spaces().await;
        let total: u64 = STEPS.iter().map(|(_, weight, _)| weight).sum();
        let (own, began, mut at_ms) = (self.rng.clone(), self.shell.now(), 0);
        for number in 0..steps {
            self.rng = own.fork(&format!("step {number}"));
            at_ms += 50 + self.rng.below(self.pace_ms * 2);
            if !schedule.has_step(number) {
                continue;
            }
            let passed_ms = self.shell.now().ms_since(began);
            self.shell.sleep(at_ms.saturating_sub(passed_ms).max(1)).await;
            let mut draw = self.rng.below(total);
            let row = STEPS.iter().find(|(_, weight, _)| {
                let hit = draw < *weight;
                draw = draw.saturating_sub(*weight);
                hit
            });
            let Some((name, _, step)) = row else { continue };
            let view = self.mirror.view();
            let requests = step(&mut self, &view);
            self.api.net.exec.note(format!("the user, step {number}: {name}, {} requests", requests.len()));
            for request in requests {
                // What is refused, or lost, is left as it is, as a user would who is in a hurry.
                let _ = self.api.call(request).await;
            }
            if self.rng.chance(100) {
                self.spaces().await;
            }
        }
    }

    async fn spaces(&mut self) {
        for name in SPACES {
            let namespace = json!({"metadata": {"name": name}});
            let _ = self.api.call(Request::create(NAMESPACES, namespace)).await;
        }
        let classes = CLASSES.iter().filter(|_| self.wants == Wants::Rank);
        for (name, number, preempts) in classes {
            let policy = if *preempts { "PreemptLowerPriority" } else { "Never" };
            let class = json!({"metadata": {"name": (*name)}, "value": (*number), "preemptionPolicy": policy});
            let _ = self.api.call(Request::create(PRIORITY_CLASSES, class)).await;
        }
    }

    /// Reads what there is, or was, over and over: what it is shown goes into the history.
    pub async fn look_around(mut self) {
        let kinds = [DEPLOYMENTS, STATEFUL_SETS, JOBS, BUDGETS, PODS, PODS, NODES];
        let mut known: Option<(Resource, String, String)> = None;
        loop {
            self.rest(55..550).await;
            let view = self.mirror.view();
            if known.is_none() || self.rng.chance(300) {
                let found = self.any(&view, &kinds);
                known = found.map(|found| (found.resource(), found.namespace().to_owned(), found.name().to_owned()));
            }
            if let Some((resource, namespace, name)) = &known {
                // What it says is judged where it arrives.
                let _ = self.api.call(Request::get(*resource, namespace, name)).await;
            }
        }
    }

    /// Writes large objects and reads them again, over and over.
    pub async fn keep_books(mut self) {
        loop {
            self.rest(110..935).await;
            let name = format!("book-{}", self.rng.below(5));
            let text = self.rng.next_u64().to_string().repeat(BOOK_BYTES / 16);
            let object = json!({"metadata": {"name": (&name), "namespace": "default"}, "data": {"text": (&text)}});
            let request = match self.rng.below(8) {
                0 => Request::delete(MAPS, "default", &name),
                1..=4 => Request::create(MAPS, object),
                _ => Request::patch(MAPS, "default", &name, PatchType::Merge, json!({"data": {"text": text}})),
            };
            let _ = self.api.call(request).await;
            let _ = self.api.call(Request::get(MAPS, "default", &name)).await;
        }
    }

    /// Reserves nodes for those who bear it, and frees them again, over and over; where zones matter, it moves some.
    pub async fn reserve_nodes(mut self) {
        loop {
            self.rest(1_000..5_000).await;
            let view = self.mirror.view();
            let Some(node) = self.any_node(&view) else { continue };
            if self.wants == Wants::Spread && self.rng.chance(500) {
                let zone = format!("zone-{}", self.rng.below(ZONES));
                let _ = self.api.call(move_to(&node, &zone)).await;
                continue;
            }
            let reserves = self.rng.chance(500);
            let _ = self.api.call(reserve(&node, reserves)).await;
        }
    }

    /// Deletes the objects of nodes that run, over and over.
    pub async fn remove_nodes(mut self) {
        loop {
            self.rest(3_000..12_000).await;
            let view = self.mirror.view();
            let Some(node) = self.any_node(&view) else { continue };
            let _ = self.api.call(Request::delete(NODES, "", node.name())).await;
        }
    }

    /// Gives workloads budgets, of which many let nobody go, and takes them away again, over and over.
    pub async fn guard(mut self) {
        loop {
            self.rest(200..1_500).await;
            let view = self.mirror.view();
            let Some(object) = self.any(&view, &[DEPLOYMENTS, STATEFUL_SETS]) else { continue };
            let app = object.labels().get("app").unwrap_or_default().to_owned();
            let known = view.one(BUDGETS, object.namespace(), &app).is_some();
            let spec = match self.rng.below(4) {
                0 => json!({"minAvailable": 1i64}),
                1 => json!({"maxUnavailable": 1i64}),
                _ => json!({"maxUnavailable": 0i64}),
            };
            let request = match known {
                true if self.rng.chance(300) => Request::delete(BUDGETS, object.namespace(), &app),
                true => continue,
                false => Request::create(BUDGETS, budget_of(object.namespace(), &app, spec)),
            };
            let _ = self.api.call(request).await;
        }
    }

    /// Empties nodes as budgets allow, and takes them in use again, over and over.
    pub async fn drain_nodes(mut self) {
        loop {
            self.rest(1_000..5_000).await;
            let Some(node) = self.any_node(&self.mirror.view()) else { continue };
            for _ in 0..DRAIN_ROUNDS {
                for request in drain(&node, &self.mirror.view()) {
                    let _ = self.api.call(request).await;
                }
                self.shell.sleep(DRAIN_AGAIN_MS).await;
            }
            let _ = self.api.call(merge(NODES, &node, json!({"spec": {"unschedulable": null}}))).await;
        }
    }

    /// Leaves the cluster so that everything asked for can be had: all nodes take pods and stand in their own zones, nothing
    /// is paused.
    pub async fn tidy_up(self) {
        loop {
            let view = self.mirror.view();
            let mut requests = Vec::new();
            let is_reserved = |taint: &Value| taint["key"].text() == RESERVED;
            for node in view.list(NODES, "") {
                if node.value()["spec"]["taints"].items().iter().any(is_reserved) {
                    requests.push(reserve(node, false));
                }
            }
            for node in view.list(NODES, "") {
                let number = node.name().rsplit('-').next().and_then(|number| number.parse().ok());
                let zone = zone_of(number.unwrap_or(0));
                if node.labels().get(ZONE).is_some_and(|known| known != zone) {
                    requests.push(move_to(node, &zone));
                }
            }
            for node in view.list(NODES, "").filter(|node| node.value()["spec"]["unschedulable"].is_true()) {
                requests.push(merge(NODES, node, json!({"spec": {"unschedulable": null}})));
            }
            for deployment in view.list(DEPLOYMENTS, "").filter(|one| one.value()["spec"]["paused"].is_true()) {
                requests.push(merge(DEPLOYMENTS, deployment, json!({"spec": {"paused": null}})));
            }
            for request in requests {
                let _ = self.api.call(request).await;
            }
            self.shell.sleep(2_000).await;
        }
    }

    fn pick<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.rng.below(all.len() as u64) as usize]
    }

    fn space(&mut self) -> &'static str {
        self.pick(&SPACES)
    }

    fn name(&mut self) -> &'static str {
        self.pick(&NAMES)
    }

    fn replicas(&mut self) -> i64 {
        let replicas = self.rng.below(REPLICAS_MAX) as i64;
        if self.wants == Wants::Places { replicas.min(APART_MAX) } else { replicas }
    }

    fn template(&mut self, space: &str, app: &str) -> Value {
        let image = format!("{}-{}", self.pick(&IMAGES), self.rng.below(100));
        let mut container = json!({
            "name": "main", "image": image, "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
        });
        if self.rng.chance(400) {
            container.set(
                &["readinessProbe"],
                json!({
                    "httpGet": {"path": "/", "port": 80i64}, "periodSeconds": (self.probe_seconds), "failureThreshold": 2i64,
                }),
            );
        }
        let long_seconds = if self.removes && self.rng.chance(300) { LONG_GRACE_SECONDS } else { 0 };
        let grace_seconds = self.rng.below(8) as i64 + 1 + long_seconds;
        let mut spec = json!({"terminationGracePeriodSeconds": grace_seconds, "containers": [container]});
        match self.wants {
            Wants::Room => {}
            Wants::Places => self.want_places(space, app, &mut spec),
            Wants::Spread => self.want_spread(app, &mut spec),
            Wants::Rank => self.want_rank(app, &mut spec),
        }
        let mut metadata = json!({"labels": {"app": app}});
        if self.leashed && app.starts_with("statefulset") {
            let seconds = SECONDS_MIN + self.rng.below(20) as i64;
            metadata.set(&["annotations", STOP_AFTER], seconds.to_string());
        }
        json!({"metadata": metadata, "spec": spec})
    }

    /// Says where the pods of a template may run. Of daemons every node has one, so they only take a port of it.
    fn want_places(&mut self, space: &str, app: &str, spec: &mut Value) {
        self.bear_reservations(app, spec);
        if app.starts_with("daemonset") {
            let port = 7_000 + (base::hash64(format!("{space}/{app}").as_bytes()) % 10_000) as i64;
            let ports = json!([{"containerPort": 80i64, "hostPort": port}]);
            let containers = spec.make(&["containers"]).make_list();
            containers.make_mut().iter_mut().for_each(|container| container.set(&["ports"], ports.clone()));
            return;
        }
        // A workload keeps to one sort: pods that want a host each and pods that want none of some hosts would wait for each
        // other in a rollout for ever.
        match app.as_bytes().last() {
            Some(b'a') => self.avoid_a_node(spec),
            Some(b'b') => {
                let siblings = json!({"matchLabels": {"app": app}});
                let term = json!({"labelSelector": siblings, "topologyKey": HOSTNAME});
                spec.set(&["affinity", "podAntiAffinity", REQUIRED], json!([term]));
            }
            _ => spec.set(&["nodeSelector"], json!({"kubernetes.io/os": "linux"})),
        }
    }

    /// Daemons, and some others, go to nodes that are reserved.
    fn bear_reservations(&mut self, app: &str, spec: &mut Value) {
        let mut toleration = json!({"key": RESERVED, "operator": "Exists"});
        if !app.starts_with("daemonset") {
            if !self.rng.chance(300) {
                return;
            }
            toleration.set(&["effect"], "NoSchedule");
        }
        spec.set(&["tolerations"], json!([toleration]));
    }

    fn avoid_a_node(&mut self, spec: &mut Value) {
        let other = format!("node-{}", self.rng.below(2));
        let elsewhere = json!({"key": HOSTNAME, "operator": "NotIn", "values": [other]});
        let terms = json!([{"matchExpressions": [elsewhere]}]);
        spec.set(&["affinity", "nodeAffinity", REQUIRED], json!({"nodeSelectorTerms": terms}));
    }

    /// Says over what the pods of a template are to be spread. Of daemons every node has one.
    fn want_spread(&mut self, app: &str, spec: &mut Value) {
        self.bear_reservations(app, spec);
        if app.starts_with("daemonset") {
            return;
        }
        if self.rng.chance(300) {
            self.avoid_a_node(spec);
        }
        let siblings = json!({"matchLabels": {"app": app}});
        let skew = 1 + self.rng.below(2) as i64;
        let key = if self.rng.chance(700) { ZONE } else { HOSTNAME };
        let mut constraint = json!({
            "maxSkew": skew, "topologyKey": key, "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": (siblings.clone()),
        });
        // Nodes are never all in one zone when everybody is back where they belong, so that two can be had.
        if self.rng.chance(400) {
            constraint.set(&["minDomains"], 2i64);
        }
        if self.rng.chance(400) {
            constraint.set(&["matchLabelKeys"], json!(["pod-template-hash", "controller-revision-hash"]));
        }
        if self.rng.chance(400) {
            constraint.set(&["nodeTaintsPolicy"], "Honor");
        }
        if self.rng.chance(300) {
            constraint.set(&["nodeAffinityPolicy"], "Ignore");
        }
        let mut constraints = vec![constraint];
        if self.rng.chance(300) {
            let other = if key == ZONE { HOSTNAME } else { ZONE };
            constraints.push(json!({
                "maxSkew": 1i64, "topologyKey": other, "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": siblings,
            }));
        }
        spec.set(&["topologySpreadConstraints"], Value::from(constraints));
    }

    /// Says how much the pods of a template matter, and how much room they take.
    fn want_rank(&mut self, app: &str, spec: &mut Value) {
        let milli = if app.starts_with("daemonset") { 50 } else { 100 + 100 * self.rng.below(4) };
        let containers = spec.make(&["containers"]).make_list();
        let cpu = format!("{milli}m");
        containers.make_mut().iter_mut().for_each(|one| one.set(&["resources", "requests", "cpu"], cpu.as_str()));
        let class = match self.rng.below(10) {
            0..4 => "low",
            4..6 => return,
            6..9 => "high",
            _ => "patient",
        };
        spec.set(&["priorityClassName"], class);
    }

    fn workload(&mut self, kind: &str) -> Value {
        let (space, name) = (self.space(), self.name());
        let app = format!("{}-{name}", kind.to_lowercase());
        let template = self.template(space, &app);
        json!({
            "metadata": {"name": name, "namespace": space, "labels": {"app": (app.as_str())}},
            "spec": {"selector": {"matchLabels": {"app": (app.as_str())}}, "template": template},
        })
    }

    fn deployment(&mut self) -> Request {
        let mut object = self.workload("Deployment");
        object.set(&["spec", "replicas"], self.replicas());
        if self.rng.chance(500) {
            let (surge, unavailable) = (self.rng.below(3) as i64, self.rng.below(2) as i64);
            object.set(
                &["spec", "strategy"],
                json!({"type": "RollingUpdate", "rollingUpdate":
                    {"maxSurge": surge, "maxUnavailable": (if surge == 0 { 1 } else { unavailable })}}),
            );
        } else if self.rng.chance(150) {
            object.set(&["spec", "strategy"], json!({"type": "Recreate"}));
        }
        Request::create(DEPLOYMENTS, object)
    }

    fn stateful_set(&mut self) -> Request {
        let mut object = self.workload("StatefulSet");
        object.set(&["spec", "replicas"], self.replicas().min(3));
        object.set(&["spec", "serviceName"], "none");
        if self.rng.chance(300) {
            object.set(&["spec", "podManagementPolicy"], "Parallel");
        }
        Request::create(STATEFUL_SETS, object)
    }

    fn daemon_set(&mut self) -> Request {
        let object = self.workload("DaemonSet");
        Request::create(DAEMON_SETS, object)
    }

    fn job(&mut self) -> Request {
        let (space, name) = (self.space(), format!("job-{}", self.rng.below(4)));
        let completions = 1 + self.rng.below(4) as i64;
        let code = if self.rng.chance(150) { 1 } else { 0 };
        let image = format!("task-{}-{code}", 1 + self.rng.below(6));
        let mut spec = json!({
            "completions": completions, "parallelism": (1 + self.rng.below(3) as i64),
            "backoffLimit": (self.rng.below(3) as i64),
            "template": {"spec": {
                "restartPolicy": "Never", "terminationGracePeriodSeconds": 2i64,
                "containers": [{"name": "main", "image": image, "resources": {"requests": {"cpu": "50m"}}}],
            }},
        });
        if self.rng.chance(300) {
            spec.set(&["completionMode"], "Indexed");
        }
        if self.rng.chance(300) {
            spec.set(&["ttlSecondsAfterFinished"], 20i64);
        }
        Request::create(JOBS, json!({"metadata": {"name": name, "namespace": space}, "spec": spec}))
    }

    fn service(&mut self) -> Request {
        let (space, name) = (self.space(), self.name());
        let app = format!("{}-{name}", self.pick(&["deployment", "statefulset"]));
        Request::create(
            SERVICES,
            json!({"metadata": {"name": (app.as_str()), "namespace": space},
                "spec": {"selector": {"app": (app.as_str())}, "ports": [{"port": 80i64}]}}),
        )
    }

    fn budget(&mut self) -> Request {
        let (space, name) = (self.space(), self.name());
        let app = format!("{}-{name}", self.pick(&["deployment", "statefulset"]));
        let field = if self.rng.chance(500) { "minAvailable" } else { "maxUnavailable" };
        let mut spec = json!({});
        spec.set(&[field], 1i64);
        Request::create(BUDGETS, budget_of(space, &app, spec))
    }

    /// Any object of these resources in the user's namespaces.
    fn any(&mut self, view: &View, resources: &[Resource]) -> Option<Object> {
        let all: Vec<Object> = resources
            .iter()
            .flat_map(|resource| view.list(*resource, "").cloned().collect::<Vec<_>>())
            .filter(|object| SPACES.contains(&object.namespace()) && object.facts().deleting.is_none())
            .collect();
        let at = self.rng.below(all.len() as u64) as usize;
        all.get(at).cloned()
    }

    fn scale(&mut self, view: &View) -> Vec<Request> {
        let Some(object) = self.any(view, &[DEPLOYMENTS, STATEFUL_SETS]) else { return Vec::new() };
        let replicas = self.replicas();
        vec![merge(object.resource(), &object, json!({"spec": {"replicas": replicas}}))]
    }

    fn roll(&mut self, view: &View) -> Vec<Request> {
        let Some(object) = self.any(view, &[DEPLOYMENTS, STATEFUL_SETS, DAEMON_SETS]) else { return Vec::new() };
        let app = object.labels().get("app").unwrap_or_default().to_owned();
        let template = self.template(object.namespace(), &app);
        vec![merge(object.resource(), &object, json!({"spec": {"template": template}}))]
    }

    fn pause(&mut self, view: &View) -> Vec<Request> {
        let Some(object) = self.any(view, &[DEPLOYMENTS]) else { return Vec::new() };
        let paused = self.rng.chance(400);
        vec![merge(DEPLOYMENTS, &object, json!({"spec": {"paused": paused}}))]
    }

    fn delete(&mut self, view: &View) -> Vec<Request> {
        let kinds = [DEPLOYMENTS, STATEFUL_SETS, DAEMON_SETS, JOBS, SERVICES, BUDGETS];
        let Some(object) = self.any(view, &kinds) else { return Vec::new() };
        let propagation = match self.rng.below(10) {
            0..5 => None,
            5..8 => Some(Propagation::Foreground),
            8 => Some(Propagation::Background),
            _ => Some(Propagation::Orphan),
        };
        let request = Request::delete(object.resource(), object.namespace(), object.name());
        vec![request.with(|options| options.propagation = propagation)]
    }

    fn delete_pod(&mut self, view: &View) -> Vec<Request> {
        let Some(object) = self.any(view, &[PODS]) else { return Vec::new() };
        vec![Request::delete(PODS, object.namespace(), object.name())]
    }

    fn any_node(&mut self, view: &View) -> Option<Object> {
        let all: Vec<Object> = view.list(NODES, "").cloned().collect();
        let at = self.rng.below(all.len() as u64) as usize;
        all.get(at).cloned()
    }

    fn cordon(&mut self, view: &View) -> Vec<Request> {
        let Some(node) = self.any_node(view) else { return Vec::new() };
        let off = self.rng.chance(400);
        vec![merge(NODES, &node, json!({"spec": {"unschedulable": off}}))]
    }

    fn drain(&mut self, view: &View) -> Vec<Request> {
        self.any_node(view).map_or_else(Vec::new, |node| drain(&node, view))
    }
}

/// Cordons a node and evicts what is on it, once.
fn drain(node: &Object, view: &View) -> Vec<Request> {
    let mut requests = vec![merge(NODES, node, json!({"spec": {"unschedulable": true}}))];
    for pod in view.by(PODS, "node", node.name()) {
        let daemon = pod.facts().controller().is_some_and(|owner| owner.kind == "DaemonSet");
        if daemon || pod.facts().deleting.is_some() {
            continue;
        }
        let mut request = Request::get(PODS, pod.namespace(), pod.name()).on("eviction");
        request.action = Action::Create(json!({
            "apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": {"name": (pod.name()), "namespace": (pod.namespace())},
        }));
        requests.push(request);
    }
    requests
}

/// A budget for the pods of a workload.
fn budget_of(space: &str, app: &str, mut spec: Value) -> Value {
    spec.set(&["selector"], json!({"matchLabels": {"app": app}}));
    json!({"metadata": {"name": app, "namespace": space}, "spec": spec})
}

/// Reserves a node, or frees it; its other taints stay, and who changed them meanwhile is not overruled.
fn reserve(node: &Object, reserves: bool) -> Request {
    let mut taints = node.value()["spec"]["taints"].items().to_vec();
    taints.retain(|taint| taint["key"].text() != RESERVED);
    if reserves {
        taints.push(json!({"key": RESERVED, "value": "yes", "effect": "NoSchedule"}));
    }
    let taints = if taints.is_empty() { Value::Null } else { Value::from(taints) };
    let revision = node.revision().to_string();
    merge(NODES, node, json!({"metadata": {"resourceVersion": revision}, "spec": {"taints": taints}}))
}

/// The zone in which a node of this number stands.
pub fn zone_of(number: u64) -> String {
    format!("zone-{}", number % ZONES)
}

fn move_to(node: &Object, zone: &str) -> Request {
    let mut labels = json!({});
    labels.set(&[ZONE], zone);
    merge(NODES, node, json!({"metadata": {"labels": labels}}))
}

fn merge(resource: Resource, object: &Object, patch: Value) -> Request {
    Request::patch(resource, object.namespace(), object.name(), PatchType::Merge, patch)
}
