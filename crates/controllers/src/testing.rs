//! A tiny world for tests: a cache, controllers with their drivers, a clock, and a node that runs what it is given.
//!
//! Effects are applied as the API would apply them, as far as controllers can tell: generations, revisions, uids,
//! preconditions, finalizers, propagation.

use base::{Revision, Time};
use cache::{Cache, Change, Index, Part, View};
use meta::{Facts, Object, Resource, Value};
use reconcile::{Done, Driver, Effect, EventRecord, Lists, Refusal};

use crate::common::*;
use crate::{CONTROLLERS, Settings};

/// Rounds until a world must be quiet.
const ROUNDS_MAX: usize = 2000;

pub struct World {
    cache: Cache,
    drivers: Vec<(Driver, Revision)>,
    pub now: Time,
    pub records: Vec<EventRecord>,
    /// Creates of this resource are refused beyond this number of objects.
    pub limit: Option<(Resource, usize)>,
    /// Patches of this resource are refused: for good, or for the moment (`true`).
    pub refusals: Option<(Resource, bool)>,
    /// New pods are bound, run and become ready at once.
    pub play_pods: bool,
    /// Pods that are asked to end stay until they are removed by force.
    pub pods_linger: bool,
}

impl World {
    /// A world with all controllers.
    pub fn new() -> World {
        World::with(&Settings { root_ca_pem: "PEM".to_owned(), ..Settings::default() })
    }

    /// A world with all controllers, set up in this way.
    pub fn with(settings: &Settings) -> World {
        let indexes: Vec<Index> =
            api::INDEXES.iter().map(|(resource, name, of)| Index { resource: *resource, name, of: *of }).collect();
        let now = Time::from_seconds(1_800_000_000);
        let drivers = CONTROLLERS.iter().map(|make| (Driver::new(make(settings)), Revision::ZERO)).collect();
        World {
            cache: Cache::new(indexes),
            drivers,
            now,
            records: Vec::new(),
            limit: None,
            refusals: None,
            play_pods: true,
            pods_linger: false,
        }
    }

    pub fn view(&self) -> View {
        self.cache.view()
    }

    pub fn get(&self, resource: Resource, namespace: &str, name: &str) -> Value {
        self.view().one(resource, namespace, name).map(Object::value).unwrap_or_default()
    }

    pub fn all(&self, resource: Resource) -> Vec<Value> {
        self.view().list(resource, "").map(Object::value).collect()
    }

    pub fn reasons(&self) -> Vec<&str> {
        self.records.iter().map(|record| record.reason.as_str()).collect()
    }

    /// Whoever listens to the nodes tells that these are silent.
    pub fn hear(&mut self, silent: &[&str]) {
        let (silent, view) = (silent.iter().map(|name| (*name).to_owned()).collect(), self.view());
        self.drivers.iter_mut().for_each(|(driver, _)| driver.hear(&silent, &view));
    }

    /// Creates an object, as a user would.
    pub fn create(&mut self, resource: Resource, mut object: Value) {
        let revision = self.cache.revision().next();
        object.default("status", Value::map());
        object.set(&["metadata", "uid"], format!("uid-{}", revision.0));
        object.set(&["metadata", "creationTimestamp"], self.now.rfc3339());
        object.set(&["metadata", "generation"], 1i64);
        self.store(resource, object);
    }

    /// Changes an object, as a user would.
    pub fn change(&mut self, resource: Resource, namespace: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let mut object = self.get(resource, namespace, name);
        assert!(!object.is_null(), "{resource} {namespace}/{name} exists");
        let spec = object["spec"].clone();
        change(&mut object);
        if object["spec"] != spec {
            let generation = object["metadata"]["generation"].as_int().unwrap_or(0);
            object.set(&["metadata", "generation"], generation + 1);
        }
        self.store(resource, object);
    }

    pub fn delete(&mut self, resource: Resource, namespace: &str, name: &str, propagation: &str) {
        let mut object = self.get(resource, namespace, name);
        if object.is_null() {
            return;
        }
        let finalizer = match propagation {
            "Foreground" => Some("foregroundDeletion"),
            "Orphan" => Some("orphan"),
            _ => None,
        };
        if let Some(finalizer) = finalizer {
            let list = object.make(&["metadata", "finalizers"]).make_list();
            if !list.iter().any(|one| one.text() == finalizer) {
                list.push(finalizer.into());
            }
        }
        object.set(&["metadata", "deletionTimestamp"], self.now.rfc3339());
        if resource == NAMESPACES {
            object.set(&["status", "phase"], "Terminating");
        }
        self.store(resource, object);
    }

    /// Puts an object, or takes it out when it is deleted and nothing holds it.
    fn store(&mut self, resource: Resource, mut object: Value) {
        let revision = self.cache.revision().next();
        object.set(&["metadata", "resourceVersion"], revision.0.to_string());
        let held = (resource == PODS && self.pods_linger)
            || !object["metadata"]["finalizers"].items().is_empty()
            || (resource == NAMESPACES && !object["spec"]["finalizers"].items().is_empty());
        let mut facts = Facts::of(resource, &object);
        if resource == PODS {
            facts.own = api::core::pod_facts::facts(&object);
        }
        let gone = facts.deleting.is_some() && !held;
        let made = Object::new(facts, object.to_json());
        let change = match gone {
            true => Change { revision, old: Some(made), new: None },
            false => Change { revision, old: None, new: Some(made) },
        };
        self.cache.apply(revision, [change]);
    }

    fn perform(&mut self, effect: Effect) -> Result<(), Refusal> {
        if let (Effect::Patch { resource, .. }, Some((refused, passes))) = (&effect, self.refusals)
            && refused == *resource
        {
            return Err(Refusal { why: "too much to do".to_owned(), passes });
        }
        self.carry_out(effect).map_err(|why| Refusal { why, passes: false })
    }

    fn carry_out(&mut self, effect: Effect) -> Result<(), String> {
        match effect {
            Effect::Create { resource, object } => self.perform_create(resource, object),
            Effect::Update { resource, object } | Effect::UpdateSub { resource, object, subresource: "approval" } => {
                let (namespace, name, known) = self.known(resource, &object)?;
                self.change(resource, &namespace, &name, |stored| {
                    let status = known["status"].clone();
                    *stored = object;
                    stored.set(&["status"], status);
                });
                Ok(())
            }
            Effect::UpdateSub { resource, subresource, object } => {
                let (namespace, name, _) = self.known(resource, &object)?;
                let path = if subresource == "status" { "status" } else { "spec" };
                let mut stored = self.get(resource, &namespace, &name);
                stored.set(&[path], object[path].clone());
                self.store(resource, stored);
                Ok(())
            }
            Effect::Patch { resource, namespace, name, uid, patch, lists, .. } => {
                let mut stored = self.get(resource, &namespace, &name);
                let wanted = patch["metadata"]["resourceVersion"].text().to_owned();
                let stale = !wanted.is_empty() && stored["metadata"]["resourceVersion"].text() != wanted;
                if stored["metadata"]["uid"].text() != uid || stale {
                    return Err("conflict".to_owned());
                }
                match lists {
                    Lists::Replaced => merge(&mut stored, &patch),
                    Lists::Merged => {
                        let (group, version) = stored["apiVersion"].text().split_once('/').unwrap_or(("", "v1"));
                        let of = api::schema::kind(group, version, stored["kind"].text()).ok_or("an unknown kind")?;
                        stored = meta::patch::strategic(&stored, &patch, of).map_err(|error| error.to_string())?;
                    }
                }
                self.store(resource, stored);
                Ok(())
            }
            Effect::Post { .. } => Err("not played".to_owned()),
            Effect::Delete { resource, namespace, name, uid, propagation, grace_seconds, .. } => {
                if self.get(resource, &namespace, &name)["metadata"]["uid"].text() == uid {
                    let linger = self.pods_linger;
                    self.pods_linger &= grace_seconds != Some(0);
                    self.delete(resource, &namespace, &name, propagation);
                    self.pods_linger = linger;
                }
                Ok(())
            }
            Effect::Record(record) => {
                self.records.push(record);
                Ok(())
            }
        }
    }

    fn perform_create(&mut self, resource: Resource, object: Value) -> Result<(), String> {
        let meta = &object["metadata"];
        if self.view().one(resource, meta["namespace"].text(), meta["name"].text()).is_some() {
            return Ok(());
        }
        if self.view().one(NAMESPACES, "", meta["namespace"].text()).is_some_and(is_deleting) {
            return Err("the namespace is being terminated".to_owned());
        }
        if self.limit.is_some_and(|(limited, most)| limited == resource && self.view().count(resource) >= most) {
            return Err("exceeded quota".to_owned());
        }
        self.create(resource, object);
        Ok(())
    }

    fn known(&self, resource: Resource, object: &Value) -> Result<(String, String, Value), String> {
        let meta = &object["metadata"];
        let known = self.get(resource, meta["namespace"].text(), meta["name"].text());
        if known["metadata"]["resourceVersion"] != meta["resourceVersion"] {
            return Err("conflict".to_owned());
        }
        Ok((meta["namespace"].text().to_owned(), meta["name"].text().to_owned(), known))
    }

    /// Runs everything until nothing is left to do at this time.
    pub fn settle(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let mut busy = false;
            for at in 0..self.drivers.len() {
                busy |= self.step(at);
            }
            busy |= self.play_pods && self.play();
            if !busy {
                return;
            }
        }
        panic!(
            "the world does not settle; last records: {:?}",
            self.reasons().into_iter().rev().take(5).collect::<Vec<_>>()
        );
    }

    /// Lets time pass, waking what wants to be woken.
    pub fn pass(&mut self, seconds: i64) {
        let end = self.now.plus_ms(seconds_ms(seconds));
        loop {
            self.settle();
            let wake = self.drivers.iter().filter_map(|(driver, _)| driver.wake_at()).min();
            match wake.filter(|wake| *wake <= end) {
                Some(wake) => self.now = self.now.max(wake),
                None => break,
            }
        }
        self.now = end;
        self.settle();
    }

    fn step(&mut self, at: usize) -> bool {
        let view = self.view();
        let (driver, seen) = &mut self.drivers[at];
        let (watches, lives) = (driver.reconciler().watches().to_vec(), driver.reconciler().lives().to_vec());
        let lives = if lives.contains(&reconcile::EVERYTHING) { view.resources().collect() } else { lives };
        let all = watches.iter().map(|resource| (*resource, Part::All));
        let lives = lives.into_iter().filter(|resource| !watches.contains(resource));
        for (resource, part) in all.chain(lives.map(|resource| (resource, Part::Lives))) {
            let events = self.cache.since_in(resource, &part, *seen, usize::MAX).expect("history is kept in tests");
            for event in events {
                driver.observe(resource, &event, &view);
            }
        }
        *seen = view.at();
        let Some(job) = driver.next(&view, self.now) else { return false };
        let (mut refused, mut last) = (Vec::new(), Ok(()));
        for effect in job.effects {
            if let Effect::Record(record) = &effect
                && last.is_err()
            {
                let mut record = record.clone();
                record.reason = record.reason.replace("Successful", "Failed").into();
                self.records.push(record);
                continue;
            }
            let result = self.perform(effect);
            refused.extend(result.clone().err());
            last = result;
        }
        let done =
            if refused.is_empty() { Done::Written(self.cache.revision()) } else { Done::Failed(self.cache.revision()) };
        let (driver, _) = &mut self.drivers[at];
        driver.refused(&job.key, refused);
        driver.done(job.key, done, self.now);
        true
    }

    /// Binds a new pod and makes it ready.
    fn play(&mut self) -> bool {
        let view = self.view();
        let pod = view.list(PODS, "").find(|pod| pod_facts(pod).node.is_empty() && !is_deleting(pod));
        let Some(pod) = pod else { return false };
        let mut value = pod.value();
        value.set(&["spec", "nodeName"], "node-a");
        value.set(
            &["status"],
            meta::json!({
                "phase": "Running", "podIP": "10.8.0.1", "podIPs": [{"ip": "10.8.0.1"}],
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": (self.now.rfc3339())}],
            }),
        );
        self.store(PODS, value);
        true
    }

    /// Ends a pod.
    pub fn end_pod(&mut self, namespace: &str, name: &str, phase: &str, code: i64) {
        let at = self.now.rfc3339();
        self.change(PODS, namespace, name, |pod| {
            pod.set(&["status", "phase"], phase);
            pod.set(&["status", "conditions"], Vec::new());
            pod.set(
                &["status", "containerStatuses"],
                meta::json!([
                    {"name": "c", "state": {"terminated": {"exitCode": code, "finishedAt": at}}}
                ]),
            );
        });
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_map() else {
        *target = patch.clone();
        return;
    };
    let map = target.make_map();
    for (key, value) in patch.iter() {
        if value.is_null() {
            map.remove(key);
        } else {
            merge(map.entry(key), value);
        }
    }
}
