//! What was refused is asked for again by the name that it was refused by, whatever else of the decision was done.

use std::collections::BTreeSet;

use base::Rng;
use meta::{Resource, Value, json};
use reconcile::{Context, Effect};

use crate::common::*;
use crate::testing::World;
use crate::{CONTROLLERS, Settings};

/// The pods that a controller asks for now, with the names that come of one seed.
fn asked(controller: &str, world: &World) -> Vec<Value> {
    let settings = Settings { root_ca_pem: "PEM".to_owned(), ..Settings::default() };
    let mut all = CONTROLLERS.iter().map(|make| make(&settings));
    let reconciler = all.find(|one| one.name() == controller).expect("it is in the table");
    let mut cx = Context::new(world.now, Rng::new(7));
    reconciler.reconcile("ns/w", &world.view(), &mut cx);
    let pods = cx.effects.into_iter().filter_map(|effect| match effect {
        Effect::Create { resource: PODS, object } => Some(object),
        _ => None,
    });
    pods.collect()
}

fn name(pod: &Value) -> String {
    pod["metadata"]["name"].text().to_owned()
}

/// A world where three pods of a workload are wanted and none is made.
fn refusing(resource: Resource, spec: &Value) -> World {
    let mut world = World::new();
    world.limit = Some((PODS, 0));
    for node in ["node-a", "node-b", "node-c"] {
        let ready = json!({"conditions": [{"type": "Ready", "status": "True"}]});
        world.create(NODES, json!({"metadata": {"name": node}, "status": ready}));
    }
    world.create(NAMESPACES, json!({"metadata": {"name": "ns"}, "spec": {"finalizers": ["kubernetes"]}}));
    let template = json!({
        "metadata": {"labels": {"app": "x"}},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]},
    });
    let mut spec = spec.clone();
    spec.set(&["selector"], json!({"matchLabels": {"app": "x"}}));
    spec.set(&["template"], template);
    world.create(resource, json!({"metadata": {"name": "w", "namespace": "ns"}, "spec": spec}));
    world.settle();
    world
}

#[test]
fn what_was_refused_keeps_its_name_whatever_else_was_made() {
    let jobs = json!({"parallelism": 3i64, "completions": 3i64, "backoffLimit": 6i64});
    let mut indexed = jobs.clone();
    indexed.set(&["completionMode"], "Indexed");
    let rows = [
        ("replicaset-controller", REPLICA_SETS, json!({"replicas": 3i64})),
        ("daemon-set-controller", DAEMON_SETS, json!({"updateStrategy": {"type": "RollingUpdate"}})),
        ("job-controller", JOBS, jobs),
        ("job-controller", JOBS, indexed),
    ];
    for (controller, resource, spec) in rows {
        for made in 0..8usize {
            let mut world = refusing(resource, &spec);
            let first = asked(controller, &world);
            assert_eq!(first.len(), 3, "{controller}");
            let is_made = |at: usize| made >> at & 1 == 1;
            let (done, refused): (Vec<_>, Vec<_>) = first.into_iter().enumerate().partition(|(at, _)| is_made(*at));
            done.into_iter().for_each(|(_, pod)| world.create(PODS, pod));
            let again: BTreeSet<String> = asked(controller, &world).iter().map(name).collect();
            let refused: BTreeSet<String> = refused.iter().map(|(_, pod)| name(pod)).collect();
            assert_eq!(again, refused, "{controller}, {made:03b}");
        }
    }
}
