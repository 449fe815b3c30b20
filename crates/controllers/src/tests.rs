//! What the controllers make of small worlds, together.

use std::sync::Arc;

use api::core::leash::STOP_AFTER;
use meta::{Resource, Value, json};

use crate::Settings;
use crate::common::*;
use crate::testing::World;

fn template(image: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": "x"}},
        "spec": {"restartPolicy": "Always", "containers": [{"name": "c", "image": image}]},
    })
}

fn workload(kind: &str, replicas: i64) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "w", "namespace": "ns"},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": "x"}}, "template": (template("i:1")),
            "progressDeadlineSeconds": 600, "revisionHistoryLimit": 10,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            "updateStrategy": {"type": "RollingUpdate"},
        },
    })
}

fn job(spec: Value) -> Value {
    let mut job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j", "namespace": "ns"},
        "spec": {
            "selector": {"matchLabels": {"job": "j"}}, "parallelism": 1i64, "completions": 1i64, "backoffLimit": 6i64,
            "template": {
                "metadata": {"labels": {"job": "j"}},
                "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]},
            },
        },
    });
    for (key, value) in spec.entries().iter() {
        job.set(&["spec", key], value.clone());
    }
    job
}

fn world() -> World {
    let mut world = World::new();
    world.create(
        NODES,
        json!({
            "metadata": {"name": "node-a", "labels": {"zone": "a"}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        }),
    );
    world.create(NAMESPACES, json!({"metadata": {"name": "ns"}, "spec": {"finalizers": ["kubernetes"]}}));
    world.settle();
    world
}

#[track_caller]
fn check_status(world: &World, resource: Resource, name: &str, expected: Value) {
    let status = world.get(resource, "ns", name)["status"].clone();
    for (field, value) in expected.entries().iter() {
        assert_eq!(&status[field], value, "{field} of {}", String::from_utf8_lossy(&status.to_json()));
    }
}

#[track_caller]
fn check_condition(world: &World, resource: Resource, name: &str, of_type: &str, state: &str, reason: &str) {
    let value = world.get(resource, "ns", name);
    let found = condition(&value["status"], of_type);
    assert_eq!((found["status"].text(), found["reason"].text()), (state, reason), "{of_type} of {resource} {name}");
}

#[test]
fn a_namespace_gets_its_account_and_certificates_and_goes_with_its_content() {
    let mut world = world();
    assert!(!world.get(SERVICE_ACCOUNTS, "ns", "default").is_null());
    assert_eq!(world.get(CONFIG_MAPS, "ns", "kube-root-ca.crt")["data"]["ca.crt"].text(), "PEM");
    world.create(DEPLOYMENTS, workload("Deployment", 2));
    world.create(CONFIG_MAPS, json!({"metadata": {"name": "held", "namespace": "ns", "finalizers": ["x.io/y"]}}));
    world.settle();
    world.delete(NAMESPACES, "", "ns", "");
    world.settle();
    let namespace = world.get(NAMESPACES, "", "ns");
    assert_eq!(condition(&namespace["status"], "NamespaceFinalizersRemaining")["status"].text(), "True");
    assert_eq!(world.all(PODS).len(), 0);
    world.change(CONFIG_MAPS, "ns", "held", |map| {
        map.take(&["metadata", "finalizers"]);
    });
    world.settle();
    assert!(world.get(NAMESPACES, "", "ns").is_null());
}

#[test]
fn a_namespace_waits_until_aggregated_servers_have_nothing_in_it() {
    use api::core::namespace::{CONTENT, CONTENT_UNKNOWN};
    let mut world = world();
    let service = json!({"namespace": "x", "name": "y"});
    world.create(crate::namespace::API_SERVICES, json!({"metadata": {"name": "v1.a.b"}, "spec": {"service": service}}));
    world.delete(NAMESPACES, "", "ns", "");
    world.settle();
    assert!(world.get(NAMESPACES, "", "ns")["status"]["conditions"].is_null(), "nobody has told anything yet");
    let told = |world: &mut World, status: &str, reason: &str| {
        world.change(NAMESPACES, "", "ns", |namespace| {
            let told = json!({"type": CONTENT, "status": status, "reason": reason, "message": "a.b: silent"});
            let conditions = namespace.make(&["status", "conditions"]).make_list();
            conditions.retain(|one| one["type"].text() != CONTENT);
            conditions.push(told);
        });
        world.settle();
    };
    told(&mut world, "False", CONTENT_UNKNOWN);
    let namespace = world.get(NAMESPACES, "", "ns");
    let failure = condition(&namespace["status"], "NamespaceDeletionDiscoveryFailure");
    assert_eq!((failure["status"].text(), failure["message"].text()), ("True", "a.b: silent"));
    assert_eq!(condition(&namespace["status"], "NamespaceContentRemaining")["status"].text(), "False");
    told(&mut world, "False", "SomeResourcesRemain");
    let namespace = world.get(NAMESPACES, "", "ns");
    assert_eq!(condition(&namespace["status"], "NamespaceDeletionDiscoveryFailure")["status"].text(), "False");
    assert_eq!(condition(&namespace["status"], "NamespaceContentRemaining")["status"].text(), "True");
    told(&mut world, "True", "ContentDeleted");
    assert!(world.get(NAMESPACES, "", "ns").is_null());
}

/// The server would refuse each of them, again and again.
#[test]
fn nothing_is_made_in_a_namespace_that_is_on_its_way_out() {
    let mut world = world();
    world.create(CONFIG_MAPS, json!({"metadata": {"name": "held", "namespace": "ns", "finalizers": ["x.io/y"]}}));
    world.delete(NAMESPACES, "", "ns", "");
    world.create(REPLICA_SETS, workload("ReplicaSet", 2));
    world.create(DAEMON_SETS, workload("DaemonSet", 0));
    world.settle();
    assert!(!world.get(NAMESPACES, "", "ns").is_null());
    assert!(!world.reasons().contains(&"SuccessfulCreate"), "{:?}", world.reasons());
}

#[test]
fn a_deployment_rolls_and_keeps_its_history() {
    let mut world = world();
    world.create(DEPLOYMENTS, workload("Deployment", 3));
    world.settle();
    let done = json!({"replicas": 3i64, "updatedReplicas": 3i64, "availableReplicas": 3i64, "readyReplicas": 3i64});
    check_status(&world, DEPLOYMENTS, "w", done.clone());
    check_condition(&world, DEPLOYMENTS, "w", "Progressing", "True", "NewReplicaSetAvailable");
    for (image, sets, revision) in [("i:2", 2, "2"), ("i:3", 3, "3"), ("i:1", 3, "4")] {
        world.change(DEPLOYMENTS, "ns", "w", |object| object.set(&["spec", "template"], template(image)));
        world.settle();
        check_status(&world, DEPLOYMENTS, "w", done.clone());
        assert_eq!(world.all(REPLICA_SETS).len(), sets, "sets after {image}");
        let annotation = ["metadata", "annotations", "deployment.kubernetes.io/revision"];
        assert_eq!(world.get(DEPLOYMENTS, "ns", "w").at(&annotation).text(), revision);
        assert!(world.all(PODS).iter().all(|pod| pod["spec"]["containers"][0]["image"].text() == image));
    }
    world.change(DEPLOYMENTS, "ns", "w", |object| object.set(&["spec", "revisionHistoryLimit"], 0i64));
    world.settle();
    assert_eq!(world.all(REPLICA_SETS).len(), 1);
}

#[test]
fn a_deployment_stops_within_its_limits_and_at_its_deadline() {
    let mut world = world();
    world.create(DEPLOYMENTS, workload("Deployment", 4));
    world.settle();
    world.play_pods = false;
    world.change(DEPLOYMENTS, "ns", "w", |object| object.set(&["spec", "template"], template("i:2")));
    world.settle();
    let replicas = |world: &World, image: &str| {
        let pods = world.all(PODS);
        pods.iter().filter(|pod| pod["spec"]["containers"][0]["image"].text() == image).count()
    };
    assert_eq!((replicas(&world, "i:1"), replicas(&world, "i:2")), (3, 2));
    world.pass(700);
    check_condition(&world, DEPLOYMENTS, "w", "Progressing", "False", "ProgressDeadlineExceeded");
    world.change(DEPLOYMENTS, "ns", "w", |object| object.set(&["spec", "replicas"], 8i64));
    world.settle();
    assert_eq!(replicas(&world, "i:1") + replicas(&world, "i:2"), 10);
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut world = world();
    world.create(DEPLOYMENTS, workload("Deployment", 2));
    world.settle();
    world.change(DEPLOYMENTS, "ns", "w", |object| {
        object.set(&["spec", "paused"], true);
        object.set(&["spec", "replicas"], 3i64);
        object.set(&["spec", "template"], template("i:2"));
    });
    world.settle();
    check_condition(&world, DEPLOYMENTS, "w", "Progressing", "Unknown", "DeploymentPaused");
    assert_eq!((world.all(REPLICA_SETS).len(), world.all(PODS).len()), (1, 3));
    world.change(DEPLOYMENTS, "ns", "w", |object| object.set(&["spec", "paused"], false));
    world.settle();
    check_condition(&world, DEPLOYMENTS, "w", "Progressing", "True", "NewReplicaSetAvailable");
    assert!(world.all(PODS).iter().all(|pod| pod["spec"]["containers"][0]["image"].text() == "i:2"));
}

#[test]
fn a_recreated_deployment_never_mixes_templates() {
    let mut world = world();
    let mut object = workload("Deployment", 3);
    object.set(&["spec", "strategy"], json!({"type": "Recreate"}));
    world.create(DEPLOYMENTS, object);
    world.settle();
    world.change(DEPLOYMENTS, "ns", "w", |object| object.set(&["spec", "template"], template("i:2")));
    world.settle();
    check_status(
        &world,
        DEPLOYMENTS,
        "w",
        json!({"updatedReplicas": 3i64, "replicas": 3i64, "availableReplicas": 3i64}),
    );
}

#[test]
fn a_set_adopts_releases_and_scales_down_what_is_missed_least() {
    let mut world = world();
    world.create(
        PODS,
        json!({"metadata": {"name": "orphan", "namespace": "ns", "labels": {"app": "x"}, "annotations":
        {"controller.kubernetes.io/pod-deletion-cost": "100"}}, "spec": {}}),
    );
    world.create(REPLICA_SETS, workload("ReplicaSet", 2));
    world.settle();
    assert_eq!(world.all(PODS).len(), 2);
    world.change(PODS, "ns", "orphan", |pod| pod.set(&["metadata", "labels", "app"], "y"));
    world.settle();
    assert_eq!(world.all(PODS).len(), 3);
    assert!(world.get(PODS, "ns", "orphan")["metadata"]["ownerReferences"].items().is_empty());
    world.change(PODS, "ns", "orphan", |pod| pod.set(&["metadata", "labels", "app"], "x"));
    world.settle();
    world.change(REPLICA_SETS, "ns", "w", |set| set.set(&["spec", "replicas"], 1i64));
    world.settle();
    assert_eq!(world.all(PODS).len(), 1);
    assert!(!world.get(PODS, "ns", "orphan").is_null(), "the dear one stays");
}

#[test]
fn a_refused_pod_is_told_of() {
    let mut world = world();
    world.limit = Some((PODS, 1));
    world.create(REPLICA_SETS, workload("ReplicaSet", 2));
    world.pass(1);
    check_condition(&world, REPLICA_SETS, "w", "ReplicaFailure", "True", "FailedCreate");
    assert!(world.reasons().contains(&"FailedCreate"));
    world.limit = None;
    world.pass(30);
    check_status(&world, REPLICA_SETS, "w", json!({"readyReplicas": 2i64, "conditions": null}));
}

#[test]
fn ten_thousand_replicas_are_made() {
    let mut world = world();
    world.play_pods = false;
    world.create(REPLICA_SETS, workload("ReplicaSet", 10_000));
    world.settle();
    assert_eq!(world.view().count(PODS), 10_000);
}

#[test]
fn a_stateful_set_goes_in_order() {
    let mut world = world();
    world.create(STATEFUL_SETS, workload("StatefulSet", 3));
    world.settle();
    check_status(&world, STATEFUL_SETS, "w", json!({"replicas": 3i64, "readyReplicas": 3i64, "currentReplicas": 3i64}));
    let mut changed = workload("StatefulSet", 3)["spec"].clone();
    changed.set(&["template"], template("i:2"));
    changed.set(&["updateStrategy", "rollingUpdate"], json!({"partition": 2i64}));
    world.change(STATEFUL_SETS, "ns", "w", |set| set.set(&["spec"], changed));
    world.settle();
    check_status(&world, STATEFUL_SETS, "w", json!({"currentReplicas": 2i64, "updatedReplicas": 1i64}));
    world.change(STATEFUL_SETS, "ns", "w", |set| {
        set.set(&["spec", "updateStrategy", "rollingUpdate", "partition"], 0i64);
        set.set(&["spec", "replicas"], 4i64);
    });
    world.settle();
    check_status(&world, STATEFUL_SETS, "w", json!({"currentReplicas": 4i64, "updatedReplicas": 4i64}));
    let names: Vec<String> = world.all(PODS).iter().map(|pod| pod["metadata"]["name"].text().to_owned()).collect();
    assert_eq!(names, ["w-0", "w-1", "w-2", "w-3"]);
    assert_eq!(world.all(REVISIONS).len(), 2);
}

#[test]
fn a_stateful_set_waits_for_the_pod_before() {
    let mut world = world();
    world.play_pods = false;
    world.create(STATEFUL_SETS, workload("StatefulSet", 3));
    world.settle();
    assert_eq!(world.all(PODS).len(), 1);
    let mut parallel = workload("StatefulSet", 3);
    parallel.set(&["metadata", "name"], "p");
    parallel.set(&["spec", "podManagementPolicy"], "Parallel");
    world.create(STATEFUL_SETS, parallel);
    world.settle();
    assert_eq!(world.all(PODS).len(), 4);
}

#[test]
fn a_daemon_set_follows_nodes_and_templates() {
    let mut world = world();
    world.play_pods = false;
    world.create(NODES, json!({"metadata": {"name": "node-b", "labels": {"zone": "b"}}}));
    let mut object = workload("DaemonSet", 0);
    object.set(&["spec", "updateStrategy", "rollingUpdate"], json!({"maxUnavailable": 1i64, "maxSurge": 0i64}));
    world.create(DAEMON_SETS, object);
    world.settle();
    check_status(&world, DAEMON_SETS, "w", json!({"desiredNumberScheduled": 2i64, "currentNumberScheduled": 2i64}));
    world.change(DAEMON_SETS, "ns", "w", |set| set.set(&["spec", "template", "spec", "nodeSelector", "zone"], "a"));
    world.settle();
    check_status(&world, DAEMON_SETS, "w", json!({"desiredNumberScheduled": 1i64, "updatedNumberScheduled": 1i64}));
    assert_eq!(world.all(PODS).len(), 1);
}

#[test]
fn a_daemon_on_a_lost_node_counts_in_a_rollout() {
    let node = |ready: &str| json!({"metadata": {"name": "node-b"}, "status": {"conditions": [{"type": "Ready", "status": ready}]}});
    let mut world = world();
    world.play_pods = false;
    world.create(NODES, node("True"));
    let mut object = workload("DaemonSet", 0);
    object.set(&["spec", "updateStrategy", "rollingUpdate"], json!({"maxUnavailable": 1i64, "maxSurge": 0i64}));
    world.create(DAEMON_SETS, object);
    world.settle();
    for pod in world.all(PODS) {
        let required = pod.at(&["spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution"]);
        let node = required["nodeSelectorTerms"][0]["matchFields"][0]["values"][0].text().to_owned();
        let ready = if node == "node-a" { "True" } else { "False" };
        world.change(PODS, "ns", pod["metadata"]["name"].text(), |pod| {
            pod.set(&["spec", "nodeName"], node);
            let ready = json!({"type": "Ready", "status": ready, "lastTransitionTime": "2027-01-01T00:00:00Z"});
            pod.set(&["status"], json!({"phase": "Running", "conditions": [ready]}));
        });
    }
    let unknown = node("Unknown")["status"].clone();
    world.change(NODES, "", "node-b", |node| node.set(&["status"], unknown));
    world.settle();
    let taints = world.get(NODES, "", "node-b")["spec"]["taints"].clone();
    assert!(taints.items().iter().any(|taint| taint["effect"].text() == "NoSchedule"), "{taints:?}");
    world.change(DAEMON_SETS, "ns", "w", |set| set.set(&["spec", "template"], template("i:2")));
    world.settle();
    let serves = |pod: &&Value| pod["spec"]["nodeName"].text() == "node-a";
    let serving = world.all(PODS).iter().filter(serves).count();
    assert_eq!(serving, 1, "one may be missing, and one is");
}

#[test]
fn a_job_counts_each_pod_once() {
    let mut world = world();
    world.create(JOBS, job(json!({"completions": 3i64, "parallelism": 2i64})));
    world.settle();
    assert_eq!(world.all(PODS).len(), 2);
    for _ in 0..3 {
        let pods = world.all(PODS);
        let Some(pod) = pods.iter().find(|pod| pod["status"]["phase"].text() == "Running") else { break };
        world.end_pod("ns", pod["metadata"]["name"].text(), "Succeeded", 0);
        world.settle();
    }
    check_status(&world, JOBS, "j", json!({"succeeded": 3i64, "ready": 0i64, "uncountedTerminatedPods": {}}));
    check_condition(&world, JOBS, "j", "Complete", "True", "CompletionsReached");
    assert!(world.all(PODS).iter().all(|pod| pod["metadata"]["finalizers"].items().is_empty()));
}

#[test]
fn pods_of_a_job_that_is_gone_are_released() {
    let mut world = world();
    world.create(JOBS, job(json!({"completions": 2i64, "parallelism": 2i64})));
    world.settle();
    assert_eq!(world.all(PODS).len(), 2);
    world.delete(JOBS, "ns", "j", "Background");
    world.settle();
    assert_eq!(world.all(PODS), Vec::<Value>::new());
}

#[test]
fn a_job_fails_for_what_its_policies_say() {
    let exit_42 = json!({"rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42i64]}}]});
    for (spec, reason) in [
        (json!({"backoffLimit": 0i64}), "BackoffLimitExceeded"),
        (json!({"podFailurePolicy": exit_42}), "PodFailurePolicy"),
        (json!({"completionMode": "Indexed", "backoffLimitPerIndex": 0i64, "backoffLimit": 100i64}), "FailedIndexes"),
    ] {
        let mut world = world();
        world.create(JOBS, job(spec));
        world.settle();
        let name = world.all(PODS)[0]["metadata"]["name"].text().to_owned();
        world.end_pod("ns", &name, "Failed", 42);
        world.settle();
        check_condition(&world, JOBS, "j", "Failed", "True", reason);
        check_status(&world, JOBS, "j", json!({"failed": 1i64}));
    }
}

#[test]
fn a_job_pauses_and_runs_out_of_time() {
    let mut world = world();
    world.create(JOBS, job(json!({"suspend": true, "activeDeadlineSeconds": 5i64, "ttlSecondsAfterFinished": 10i64})));
    world.settle();
    check_condition(&world, JOBS, "j", "Suspended", "True", "JobSuspended");
    assert_eq!(world.all(PODS).len(), 0);
    world.change(JOBS, "ns", "j", |job| job.set(&["spec", "suspend"], false));
    world.settle();
    assert_eq!(world.all(PODS).len(), 1);
    world.pass(6);
    check_condition(&world, JOBS, "j", "Failed", "True", "DeadlineExceeded");
    world.pass(20);
    assert!(world.get(JOBS, "ns", "j").is_null());
}

#[test]
fn a_cron_job_starts_jobs_and_forgets_old_ones() {
    let mut world = world();
    world.create(
        CRON_JOBS,
        json!({
            "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "c", "namespace": "ns"},
            "spec": {
                    "schedule": "* * * * *", "concurrencyPolicy": "Forbid",
                    "jobTemplate": {"spec": (job(json!({}))["spec"].clone())},
                },
        }),
    );
    world.pass(130);
    assert_eq!(world.all(JOBS).len(), 1, "the second waits for the first");
    let pod = world.all(PODS)[0]["metadata"]["name"].text().to_owned();
    world.end_pod("ns", &pod, "Succeeded", 0);
    world.pass(120);
    assert_eq!(world.all(JOBS).len(), 2);
    assert!(world.reasons().contains(&"SawCompletedJob"));
    assert!(!world.reasons().contains(&"MissingJob"));
    let active = world.get(CRON_JOBS, "ns", "c")["status"]["active"].items()[0]["name"].text().to_owned();
    world.delete(JOBS, "ns", &active, "Background");
    world.settle();
    assert!(world.reasons().contains(&"MissingJob"));
}

#[test]
fn endpoints_follow_pods() {
    let mut world = world();
    world.create(
        SERVICES,
        json!({
            "metadata": {"name": "svc", "namespace": "ns"},
            "spec": {"selector": {"app": "x"}, "ports": [{"name": "http", "port": 80i64, "targetPort": "web"}]},
        }),
    );
    world.settle();
    assert_eq!(world.all(SLICES).len(), 1);
    let mut set = workload("ReplicaSet", 1);
    let ports = json!([{"name": "c", "image": "i", "ports": [{"name": "web", "containerPort": 8080i64}]}]);
    set.set(&["spec", "template", "spec", "containers"], ports);
    world.create(REPLICA_SETS, set);
    world.settle();
    let slices = world.all(SLICES);
    assert_eq!(slices.len(), 1, "the empty slice is filled");
    assert_eq!(slices[0]["ports"][0]["port"].as_int(), Some(8080));
    assert!(slices[0]["endpoints"][0]["conditions"]["ready"].is_true());
    let endpoints = world.get(ENDPOINTS, "ns", "svc");
    assert_eq!(endpoints["subsets"][0]["addresses"][0]["ip"].text(), "10.8.0.1");
    world.change(REPLICA_SETS, "ns", "w", |set| set.set(&["spec", "replicas"], 0i64));
    world.settle();
    assert!(world.all(SLICES)[0]["endpoints"].is_null());
    assert!(world.get(ENDPOINTS, "ns", "svc")["subsets"].is_null());
}

#[test]
fn endpoints_say_where_they_are_meant_for() {
    let mut world = world();
    world.change(NODES, "", "node-a", |node| node.set(&["metadata", "labels", "topology.kubernetes.io/zone"], "one"));
    world.create(
        SERVICES,
        json!({
            "metadata": {"name": "svc", "namespace": "ns"},
            "spec": {"selector": {"app": "x"}, "ports": [{"port": 80i64}]},
        }),
    );
    world.create(REPLICA_SETS, workload("ReplicaSet", 1));
    world.settle();
    for (preference, zones, nodes) in [("", 0, 0), ("PreferSameNode", 1, 1), ("PreferClose", 1, 0), ("", 0, 0)] {
        world.change(SERVICES, "ns", "svc", |service| match preference {
            "" => _ = service.take(&["spec", "trafficDistribution"]),
            preference => service.set(&["spec", "trafficDistribution"], preference),
        });
        world.settle();
        let hints = &world.all(SLICES)[0]["endpoints"][0]["hints"];
        let count = |key: &str| hints[key].items().len();
        assert_eq!((count("forZones"), count("forNodes")), (zones, nodes), "{preference:?}: {hints:?}");
    }
}

#[test]
fn dependents_go_with_their_owner_or_are_set_free() {
    for (propagation, sets, pods) in [("Background", 0, 0), ("Foreground", 0, 0), ("Orphan", 1, 2)] {
        let mut world = world();
        world.create(DEPLOYMENTS, workload("Deployment", 2));
        world.settle();
        world.delete(DEPLOYMENTS, "ns", "w", propagation);
        world.settle();
        assert!(world.get(DEPLOYMENTS, "ns", "w").is_null(), "{propagation}");
        assert_eq!((world.all(REPLICA_SETS).len(), world.all(PODS).len()), (sets, pods), "{propagation}");
    }
    let mut world = world();
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "gone", "uid": "dead"});
    world.create(CONFIG_MAPS, json!({"metadata": {"name": "o", "namespace": "ns", "ownerReferences": [owner]}}));
    world.settle();
    assert!(world.get(CONFIG_MAPS, "ns", "o").is_null());
}

#[test]
fn a_circle_of_owners_goes_with_one_of_them() {
    let mut world = world();
    for name in ["a", "b", "c"] {
        world.create(CONFIG_MAPS, json!({"metadata": {"name": name, "namespace": "ns"}}));
    }
    for (name, owner) in [("a", "c"), ("b", "a"), ("c", "b")] {
        let uid = world.get(CONFIG_MAPS, "ns", owner).at(&["metadata", "uid"]).clone();
        let owner = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "name": owner, "uid": uid, "controller": true, "blockOwnerDeletion": true,
        });
        world.change(CONFIG_MAPS, "ns", name, |map| map.set(&["metadata", "ownerReferences"], json!([owner])));
    }
    world.settle();
    world.delete(CONFIG_MAPS, "ns", "a", "Foreground");
    world.settle();
    let left: Vec<bool> = ["a", "b", "c"].iter().map(|name| world.get(CONFIG_MAPS, "ns", name).is_null()).collect();
    assert_eq!(left, [true; 3]);
}

#[test]
fn a_silent_node_loses_its_pods() {
    let mut world = world();
    world.create(
        NODES,
        json!({"metadata": {"name": "node-b"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
    );
    let renew = |world: &mut World, node: &str| {
        let at = world.now.rfc3339();
        world.change(LEASES, "kube-node-lease", node, |lease| lease.set(&["spec", "renewTime"], at));
    };
    for node in ["node-a", "node-b"] {
        let at = world.now.rfc3339();
        world.create(
            LEASES,
            json!({"metadata": {"name": node, "namespace": "kube-node-lease"}, "spec": {"renewTime": at}}),
        );
    }
    let mut set = workload("ReplicaSet", 1);
    set.set(
        &["spec", "template", "spec", "tolerations"],
        json!([
            {
                    "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
                    "tolerationSeconds": 30i64,
                }
        ]),
    );
    world.create(REPLICA_SETS, set);
    world.settle();
    let first = world.all(PODS)[0]["metadata"]["name"].text().to_owned();
    world.play_pods = false;
    for _ in 0..6 {
        world.pass(10);
        renew(&mut world, "node-b");
    }
    world.settle();
    let node = world.get(NODES, "", "node-a");
    assert_eq!(condition(&node["status"], "Ready")["status"].text(), "Unknown");
    assert_eq!(node["spec"]["taints"].items().len(), 2);
    assert_eq!(condition(&world.get(PODS, "ns", &first)["status"], "Ready")["status"].text(), "False");
    world.pass(39);
    assert!(world.get(PODS, "ns", &first).is_null());
    assert!(world.reasons().contains(&"TaintManagerEviction"));
}

#[test]
fn pods_that_a_lost_node_drives_away_are_told_once() {
    let mut world = world();
    for node in ["node-a", "node-b"] {
        let ready = json!([{"type": "Ready", "status": "True"}]);
        world.create(NODES, json!({"metadata": {"name": node}, "status": {"conditions": ready}}));
        world.create(LEASES, json!({"metadata": {"name": node, "namespace": "kube-node-lease"}, "spec": {}}));
    }
    let mut set = workload("ReplicaSet", 1);
    set.set(&["spec", "template", "metadata", "finalizers"], json!(["example.com/stays"]));
    world.create(REPLICA_SETS, set);
    world.settle();
    let pod = world.all(PODS)[0].clone();
    world.play_pods = false;
    let node = pod["spec"]["nodeName"].text().to_owned();
    assert_eq!(condition(&pod["status"], "Ready")["status"].text(), "True");
    world.hear(&[&node]);
    world.settle();
    let gone = world.get(PODS, "ns", pod["metadata"]["name"].text());
    assert!(!gone["metadata"]["deletionTimestamp"].is_null());
    assert_eq!(condition(&gone["status"], "Ready")["status"].text(), "False");
    assert_eq!(condition(&gone["status"], "DisruptionTarget")["reason"].text(), "DeletionByTaintManager");
    let told = world.reasons().iter().filter(|reason| **reason == "NodeNotReady").count();
    assert_eq!(told, 1, "of the node, and not of each of its pods");
}

#[test]
fn a_node_that_is_not_heard_is_doubted_at_once_unless_its_lease_goes_on() {
    let mut world = world();
    for node in ["node-b", "node-c"] {
        let ready = json!([{"type": "Ready", "status": "True"}]);
        world.create(NODES, json!({"metadata": {"name": node}, "status": {"conditions": ready}}));
        world.create(LEASES, json!({"metadata": {"name": node, "namespace": "kube-node-lease"}, "spec": {}}));
    }
    world.settle();
    let ready = |world: &World, node: &str| {
        condition(&world.get(NODES, "", node)["status"], "Ready")["status"].text().to_owned()
    };
    world.hear(&["node-b", "unknown"]);
    world.settle();
    assert_eq!((ready(&world, "node-b").as_str(), ready(&world, "node-c").as_str()), ("Unknown", "True"));
    // It says that it is well: only its signs of life do not arrive.
    let well = |node: &mut Value| node.set(&["status", "conditions"], json!([{"type": "Ready", "status": "True"}]));
    world.change(LEASES, "kube-node-lease", "node-b", |lease| lease.set(&["spec", "renewTime"], "now"));
    world.change(NODES, "", "node-b", well);
    world.settle();
    assert_eq!(ready(&world, "node-b"), "True");
    world.hear(&[]);
    world.hear(&["node-b"]);
    world.settle();
    assert_eq!(ready(&world, "node-b"), "Unknown", "a new silence counts anew");
}

#[test]
fn budgets_count_what_may_go() {
    let mut world = world();
    world.create(DEPLOYMENTS, workload("Deployment", 4));
    for (name, field, amount) in [("min", "minAvailable", json!("50%")), ("max", "maxUnavailable", json!(1i64))] {
        let mut budget =
            json!({"metadata": {"name": name, "namespace": "ns"}, "spec": {"selector": {"matchLabels": {"app": "x"}}}});
        budget.set(&["spec", field], amount);
        world.create(BUDGETS, budget);
    }
    world.settle();
    check_status(
        &world,
        BUDGETS,
        "min",
        json!({"desiredHealthy": 2i64, "disruptionsAllowed": 2i64, "expectedPods": 4i64}),
    );
    check_status(&world, BUDGETS, "max", json!({"desiredHealthy": 3i64, "disruptionsAllowed": 1i64}));
}

#[test]
fn quotas_are_counted_anew() {
    let mut world = world();
    world.create(
        QUOTAS,
        json!({"metadata": {"name": "q", "namespace": "ns"},
        "spec": {"hard": {"pods": "5", "count/replicasets.apps": "2"}}}),
    );
    world.create(REPLICA_SETS, workload("ReplicaSet", 2));
    world.settle();
    check_status(&world, QUOTAS, "q", json!({"used": {"pods": "2", "count/replicasets.apps": "1"}}));
}

#[test]
fn pods_of_lost_nodes_and_roles_of_many_parts() {
    let mut world = world();
    world.create(
        PODS,
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "ns"},
            "spec": {"nodeName": "gone"},
        }),
    );
    world.pass(39);
    assert_eq!(world.all(PODS).len(), 1);
    world.pass(5);
    assert_eq!(world.all(PODS).len(), 0);
    world.create(
        CLUSTER_ROLES,
        json!({"metadata": {"name": "part", "labels": {"to": "whole"}}, "rules": [{"verbs": ["get"]}]}),
    );
    world.create(
        CLUSTER_ROLES,
        json!({"metadata": {"name": "whole"},
        "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "whole"}}]}}),
    );
    world.settle();
    assert_eq!(world.get(CLUSTER_ROLES, "", "whole")["rules"].items().len(), 1);
}

#[test]
fn a_pod_on_a_leash_is_given_up_when_its_node_has_ended_it_and_not_before() {
    // 20 s to be reachable again, 5 s to end, 5 s and a sixteenth more for whoever waits.
    const GONE_S: i64 = 20 + 5 + 5 + 2;
    let mut world = world();
    for node in ["node-b", "node-c"] {
        let ready = json!([{"type": "Ready", "status": "True"}]);
        world.create(NODES, json!({"metadata": {"name": node}, "status": {"conditions": ready}}));
        world.create(LEASES, json!({"metadata": {"name": node, "namespace": "kube-node-lease"}, "spec": {}}));
    }
    let pod = |name: &str, node: &str, phase: &str| {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "ns"},
            "spec": {
                "nodeName": node, "terminationGracePeriodSeconds": 5i64, "tolerations": [{"operator": "Exists"}],
            },
            "status": {"phase": phase},
        });
        pod.set(&["metadata", "annotations", STOP_AFTER], "20");
        pod
    };
    world.play_pods = false;
    world.create(PODS, pod("runs", "node-b", "Running"));
    world.create(PODS, pod("done", "node-b", "Succeeded"));
    let mut plain = pod("plain", "node-b", "Running");
    plain.set(&["metadata", "annotations"], Value::map());
    world.create(PODS, plain);
    world.create(PODS, pod("homeless", "node-c", "Running"));
    let left = |world: &World| {
        let pods = world.all(PODS);
        pods.iter().map(|pod| pod["metadata"]["name"].text().to_owned()).collect::<Vec<_>>()
    };
    world.hear(&["node-b"]);
    world.delete(NODES, "", "node-c", "");
    world.pass(20);
    // A node whose lease goes on may be one that cannot be heard; time counts anew.
    world.change(LEASES, "kube-node-lease", "node-b", |lease| lease.set(&["spec", "renewTime"], "now"));
    world.pass(GONE_S - 20 - 3);
    assert_eq!(left(&world).len(), 4);
    world.pass(6);
    assert_eq!(left(&world), ["done", "plain", "runs"], "its node is no more");
    world.pass(10);
    assert_eq!(left(&world).len(), 3);
    world.pass(12);
    assert_eq!(left(&world), ["done", "plain"]);
}

#[test]
fn pods_of_a_node_that_was_deleted_are_asked_to_end_and_given_up_when_its_machine_is_silent() {
    let mut world = world();
    (world.play_pods, world.pods_linger) = (false, true);
    for node in ["lives", "dead"] {
        world.create(NODES, json!({"metadata": {"name": node}}));
        world.create(LEASES, json!({"metadata": {"name": node, "namespace": "kube-node-lease"}, "spec": {}}));
        let spec = json!({"nodeName": node, "tolerations": [{"operator": "Exists"}]});
        let metadata = json!({"name": node, "namespace": "ns"});
        let status = json!({"startTime": "2027-01-15T08:00:00Z", "phase": "Running"});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status});
        world.create(PODS, pod);
    }
    world.settle();
    let is_asked = |world: &World, name: &str| !world.get(PODS, "ns", name)["metadata"]["deletionTimestamp"].is_null();
    assert_eq!(["lives", "dead"].map(|name| is_asked(&world, name)), [false; 2]);
    world.delete(NODES, "", "lives", "");
    world.delete(NODES, "", "dead", "");
    world.settle();
    assert_eq!(["lives", "dead"].map(|name| is_asked(&world, name)), [true; 2]);
    for second in 0..12i64 {
        world.change(LEASES, "kube-node-lease", "lives", |lease| lease.set(&["spec", "renewTime"], second));
        world.pass(10);
        let given_up = world.get(PODS, "ns", "dead").is_null();
        assert_eq!(given_up, second >= 3, "10 s after {second}");
    }
    assert!(is_asked(&world, "lives"), "its node has heard of it, and it takes its time");
    world.pass(45);
    assert_eq!(world.all(PODS).len(), 0);
}

#[test]
fn a_stateful_set_takes_only_pods_of_its_names() {
    let mut world = world();
    let meta = json!({"name": "stranger", "namespace": "ns", "labels": {"app": "x"}});
    world.create(PODS, json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"nodeName": "node-a"}}));
    world.create(STATEFUL_SETS, workload("StatefulSet", 1));
    world.settle();
    assert!(world.get(PODS, "ns", "stranger").at(&["metadata", "ownerReferences"]).is_null());
    assert!(!world.get(PODS, "ns", "w-0").at(&["metadata", "ownerReferences"]).is_null());
}

#[test]
fn a_stateful_set_shrinks_past_pods_that_ended_and_halts_before_those_that_may_get_well() {
    for (phase, expected) in [("Failed", [true; 3]), ("Running", [false; 3])] {
        let mut world = world();
        world.create(STATEFUL_SETS, workload("StatefulSet", 3));
        world.settle();
        world.play_pods = false;
        for name in ["w-0", "w-1", "w-2"] {
            world.change(PODS, "ns", name, |pod| pod.set(&["status"], json!({"phase": phase})));
        }
        world.change(STATEFUL_SETS, "ns", "w", |set| set.set(&["spec", "replicas"], 0i64));
        world.settle();
        let goes = |name: &str| {
            let pod = world.get(PODS, "ns", name);
            pod.is_null() || !pod["metadata"]["deletionTimestamp"].is_null()
        };
        assert_eq!(["w-0", "w-1", "w-2"].map(goes), expected, "{phase}");
    }
}

#[test]
fn an_orphan_that_ended_gives_its_name_to_a_stateful_set() {
    let mut world = world();
    world.create(
        PODS,
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "w-0", "namespace": "ns", "labels": {"app": "x"}},
            "spec": {"nodeName": "node-a"}, "status": {"phase": "Failed"},
        }),
    );
    world.create(STATEFUL_SETS, workload("StatefulSet", 1));
    world.settle();
    let pods = world.all(PODS);
    assert_eq!(pods.len(), 1);
    assert_eq!((pods[0]["metadata"]["name"].text(), pods[0]["status"]["phase"].text()), ("w-0", "Running"));
}

#[test]
fn storage_in_use_is_held() {
    const CLAIMS: Resource = Resource("persistentvolumeclaims");
    let mut world = world();
    world.play_pods = false;
    let held = json!({"name": "c", "namespace": "a", "finalizers": ["kubernetes.io/pvc-protection"]});
    world.create(CLAIMS, json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": held}));
    world.create(
        PODS,
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "a"},
            "spec": {"nodeName": "n", "containers": [],
                "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]},
        }),
    );
    world.delete(CLAIMS, "a", "c", "");
    world.settle();
    assert!(!world.get(CLAIMS, "a", "c").is_null());
    world.change(PODS, "a", "p", |pod| pod.set(&["spec", "nodeName"], ""));
    world.settle();
    assert!(world.get(CLAIMS, "a", "c").is_null());
}

#[test]
fn token_secrets_are_filled_and_go_with_their_account() {
    const SECRETS: Resource = Resource("secrets");
    let settings = Settings {
        root_ca_pem: "PEM".to_owned(),
        issue: Some(Arc::new(|asked| Ok(format!("token of {}", asked.account)))),
        ..Settings::default()
    };
    let mut world = World::with(&settings);
    world.create(NAMESPACES, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}}));
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "s", "namespace": "a"}});
    world.create(SERVICE_ACCOUNTS, account);
    let annotations = json!({"kubernetes.io/service-account.name": "s"});
    world.create(
        SECRETS,
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
            "metadata": {"name": "t", "namespace": "a", "annotations": annotations},
        }),
    );
    world.settle();
    let secret = world.get(SECRETS, "a", "t");
    assert_eq!(secret["data"]["token"].text(), "dG9rZW4gb2Ygcw==");
    assert_eq!(secret["data"]["namespace"].text(), "YQ==");
    world.delete(SERVICE_ACCOUNTS, "a", "s", "");
    world.settle();
    assert!(world.get(SECRETS, "a", "t").is_null());
}

#[test]
fn the_bundle_of_the_servers_authority_is_named_by_what_it_holds() {
    let pem = api::certificates::pem::write("CERTIFICATE", b"anchor");
    let mut world = World::with(&Settings { root_ca_pem: pem.clone(), ..Settings::default() });
    world.create(NAMESPACES, json!({"metadata": {"name": "kube-system"}}));
    world.settle();
    let signer = "kubernetes.io/kube-apiserver-serving";
    let first = world.all(TRUST_BUNDLES);
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].at(&["spec", "trustBundle"]).text(), pem);
    assert!(first[0].at(&["metadata", "name"]).text().starts_with("kubernetes.io:kube-apiserver-serving:"));
    let former = json!({"metadata": {"name": "former"}, "spec": {"signerName": signer, "trustBundle": "x"}});
    world.create(TRUST_BUNDLES, former);
    world.create(TRUST_BUNDLES, json!({"metadata": {"name": "other"}, "spec": {"trustBundle": "x"}}));
    world.settle();
    let left: Vec<String> =
        world.all(TRUST_BUNDLES).iter().map(|one| one.at(&["metadata", "name"]).text().into()).collect();
    assert_eq!(left, [first[0].at(&["metadata", "name"]).text(), "other"]);
}

#[test]
fn requests_for_certificates_of_pods_are_forgotten() {
    let mut world = world();
    world.create(POD_CERTIFICATE_REQUESTS, json!({"metadata": {"name": "r", "namespace": "ns"}}));
    world.pass(14 * 60);
    assert_eq!(world.all(POD_CERTIFICATE_REQUESTS).len(), 1);
    world.pass(2 * 60);
    assert!(world.all(POD_CERTIFICATE_REQUESTS).is_empty());
}

#[test]
fn migrations_of_a_resource_run_one_after_the_other() {
    let migration = |name: &str, resource: &str| {
        json!({
            "apiVersion": "storagemigration.k8s.io/v1", "kind": "StorageVersionMigration", "metadata": {"name": name},
            "spec": {"resource": {"group": "", "resource": resource}},
        })
    };
    let mut world = world();
    let is = |world: &World, name: &str, of_type: &str| {
        api::storagemigration::storage_version_migration::holds(&world.get(MIGRATIONS, "", name), of_type)
    };
    // Nothing of today is written anew, and what is not served is waited for first.
    world.create(MIGRATIONS, migration("a", "configmaps"));
    world.create(MIGRATIONS, migration("b", "configmaps"));
    world.create(MIGRATIONS, migration("n", "nothings"));
    let before = world.get(CONFIG_MAPS, "ns", "kube-root-ca.crt");
    world.settle();
    for name in ["a", "b"] {
        assert!(is(&world, name, "Succeeded") && !is(&world, name, "Running"), "{name}");
    }
    assert_eq!(world.get(CONFIG_MAPS, "ns", "kube-root-ca.crt"), before);
    assert!(is(&world, "n", "Running") && !is(&world, "n", "Failed"));
    world.pass(61);
    assert!(is(&world, "n", "Failed") && !is(&world, "n", "Running"));
}

#[test]
fn a_migration_outlasts_a_server_that_is_busy_and_ends_with_one_that_refuses() {
    let mut world = world();
    let things = meta::Resource::intern("things.example.com");
    world.create(
        DEFINITIONS,
        json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": "things.example.com"},
            "spec": {
                "group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                    "type": "object", "properties": {"size": {"type": "integer"}},
                }}}],
            },
        }),
    );
    // It has no size, which the schema gives to all from then on.
    world.create(
        things,
        json!({
            "apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"namespace": "ns", "name": "old"},
        }),
    );
    world.change(DEFINITIONS, "", "things.example.com", |definition| {
        let path = ["schema", "openAPIV3Schema", "properties", "size", "default"];
        definition.make(&["spec", "versions"]).make_list().make_mut()[0].set(&path, 1i64);
    });
    world.refusals = Some((things, true));
    world.create(
        MIGRATIONS,
        json!({
            "apiVersion": "storagemigration.k8s.io/v1", "kind": "StorageVersionMigration", "metadata": {"name": "m"},
            "spec": {"resource": {"group": "example.com", "resource": "things"}},
        }),
    );
    world.pass(30);
    let told = |world: &World, of_type: &str| condition(&world.get(MIGRATIONS, "", "m")["status"], of_type).clone();
    assert_eq!(told(&world, "Running")["status"].text(), "True");
    let said = told(&world, "Running")["message"].text().to_owned();
    assert_eq!(said, "The migration is running, 1/1 objects not yet migrated; transient error: too much to do");
    assert!(told(&world, "Failed").is_null());
    world.refusals = Some((things, false));
    world.pass(60);
    assert_eq!(told(&world, "Failed")["status"].text(), "True");
}

#[test]
fn a_range_of_services_stays_while_its_addresses_are_in_use() {
    let mut world = world();
    let (ranges, addresses) =
        (meta::Resource("servicecidrs.networking.k8s.io"), meta::Resource("ipaddresses.networking.k8s.io"));
    let range = |name: &str, cidr: &str| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name},
            "spec": {"cidrs": [cidr]},
        })
    };
    let address =
        |name: &str| json!({"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress", "metadata": {"name": name}});
    let ready = |world: &World| condition(&world.get(ranges, "", "added")["status"], "Ready").clone();
    world.create(ranges, range("added", "10.98.0.0/24"));
    world.create(addresses, address("10.98.0.7"));
    world.settle();
    assert_eq!(ready(&world)["status"].text(), "True");
    world.delete(ranges, "", "added", "");
    world.pass(60);
    assert_eq!(ready(&world)["reason"].text(), "Terminating");
    // A wider range has the address, too: now the other one may go, a little later.
    world.create(ranges, range("wide", "10.98.0.0/16"));
    world.pass(1);
    assert!(world.get(ranges, "", "added").is_null());
}
