use super::*;
use base::Revision;
use cache::{Cache, Change, Index};
use meta::{Facts, json};

/// A small cluster: the scheduler, the cache it is fed from, and the plans carried out at once.
struct Lab {
    scheduler: Scheduler,
    cache: Cache,
    revision: u64,
    now: Time,
}

impl Lab {
    fn new() -> Lab {
        let index = api::INDEXES.iter().map(|(resource, name, of)| Index { resource: *resource, name, of: *of });
        let cache = Cache::new(index.collect::<Vec<_>>());
        Lab { scheduler: Scheduler::new(), cache, revision: 0, now: Time::from_seconds(1_000) }
    }

    fn put(&mut self, resource: Resource, mut value: Value) {
        self.revision += 1;
        value.set(&["metadata", "resourceVersion"], self.revision.to_string());
        let mut facts = Facts::of(resource, &value);
        if resource == PODS {
            facts.own = api::core::pod_facts::facts(&value);
        }
        let new = Some(Object::new(facts, value.to_json()));
        self.change(resource, new, None);
    }

    fn change(&mut self, resource: Resource, new: Option<Object>, old: Option<Object>) {
        let revision = Revision(self.revision);
        self.cache.apply(revision, [Change { revision, new, old }]);
        for event in self.cache.since(resource, Revision(self.revision - 1), 9).unwrap() {
            self.scheduler.observe(resource, &event, self.now);
        }
    }

    fn delete(&mut self, name: &str) {
        self.revision += 1;
        let old = self.cache.one(PODS, "ns", name).cloned();
        self.change(PODS, None, old);
    }

    fn node(&mut self, name: &str, cpu: &str, zone: &str, more: Value) {
        let mut node = json!({
            "metadata": {"name": name, "labels": {"zone": zone, "kubernetes.io/hostname": name}},
            "status": {"allocatable": {"cpu": cpu, "memory": "10Gi", "pods": "10"}},
        });
        if !more.is_null() {
            meta::patch::merge_patch(&mut node, &more);
        }
        self.put(NODES, node);
    }

    fn pod(&mut self, name: &str, cpu: &str, more: Value) {
        let mut pod = json!({
            "metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"app": "a"}},
            "spec": {"schedulerName": NAME, "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]},
        });
        if !more.is_null() {
            meta::patch::merge_patch(&mut pod, &more);
        }
        self.put(PODS, pod);
    }

    /// Plans, binds what was placed, and prints it: `pod>node` or `pod!message`.
    fn run(&mut self) -> Vec<String> {
        let plan = self.scheduler.plan(&self.cache.view(), self.now, 1000);
        let mut lines = Vec::new();
        for placement in &plan.placements {
            let mut pod = self.cache.one(PODS, "ns", &placement.name).unwrap().value();
            pod.set(&["spec", "nodeName"], &placement.node);
            self.put(PODS, pod);
            lines.push(format!("{}>{}", placement.name, placement.node));
        }
        for refusal in &plan.refusals {
            let victims: Vec<&str> = refusal.victims.iter().map(|(key, _)| key.as_str()).collect();
            lines.push(format!("{}!{} {victims:?}", refusal.name, refusal.message.split('.').next().unwrap()));
        }
        lines
    }
}

#[test]
fn spreads_by_load_and_says_why_not() {
    let mut lab = Lab::new();
    lab.node("n1", "2", "z1", Value::Null);
    lab.node("n2", "2", "z1", Value::Null);
    for name in ["p1", "p2", "p3", "p4"] {
        lab.pod(name, "1", Value::Null);
    }
    let placed = lab.run();
    assert_eq!(placed.iter().filter(|line| line.ends_with("n1")).count(), 2, "{placed:?}");
    lab.pod("p5", "1", Value::Null);
    assert_eq!(lab.run(), ["p5!0/2 nodes are available: 2 Insufficient cpu []"]);
    assert!(lab.run().is_empty(), "nothing changed, nothing is tried");
    lab.delete("p1");
    lab.now = lab.now.plus_ms(2_000);
    assert_eq!(lab.run().len(), 1);
}

#[test]
fn other_resources_are_refused_by_name_and_made_room_for() {
    let mut lab = Lab::new();
    lab.node("n1", "2", "z1", json!({"status": {"allocatable": {"a.com/x": "2", "b.com/y": "1"}}}));
    let asks = |priority: i64, amount: &str| json!({"spec": {"priority": priority, "containers": [{"name": "c", "resources": {"requests": {"b.com/y": amount}}}]}});
    lab.pod("low", "1", asks(0, "1"));
    assert_eq!(lab.run(), ["low>n1"]);
    lab.pod("second", "1", asks(0, "1"));
    assert_eq!(lab.run(), ["second!0/1 nodes are available: 1 Insufficient b []"]);
    lab.pod("high", "1", asks(9, "1"));
    assert_eq!(lab.run(), ["high!0/1 nodes are available: 1 Insufficient b [\"ns/low\"]"]);
    // What was promised to the high one is not given to the low.
    lab.delete("low");
    lab.pod("third", "1", asks(0, "1"));
    lab.now = lab.now.plus_ms(20_000);
    assert_eq!(lab.run().iter().filter(|line| line.contains('>')).collect::<Vec<_>>(), ["high>n1"]);
}

#[test]
fn selectors_taints_and_cordons() {
    let mut lab = Lab::new();
    lab.node("n1", "4", "z1", json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}}));
    lab.node("n2", "4", "z2", json!({"spec": {"unschedulable": true}}));
    lab.node("n3", "4", "z3", Value::Null);
    lab.pod("a", "1", json!({"spec": {"nodeSelector": {"zone": "z1"}}}));
    let tolerations = json!([{"key": "k", "operator": "Exists"}]);
    lab.pod("b", "1", json!({"spec": {"nodeSelector": {"zone": "z1"}, "tolerations": tolerations}}));
    let lines = lab.run();
    assert_eq!(lines[0], "b>n1");
    assert!(
        lines[1].contains("1 node(s) had untolerated taint(s)") && lines[1].contains("1 node(s) were unschedulable"),
        "{lines:?}"
    );
}

#[test]
fn affinity_anti_affinity_and_spread() {
    let mut lab = Lab::new();
    for (name, zone) in [("n1", "z1"), ("n2", "z1"), ("n3", "z2")] {
        lab.node(name, "9", zone, Value::Null);
    }
    let selector = json!({"matchLabels": {"app": "a"}});
    let term = json!([{"topologyKey": "zone", "labelSelector": (selector.clone())}]);
    let apart = json!({"spec": {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": (term.clone())}}}});
    for name in ["a1", "a2", "a3"] {
        lab.pod(name, "1", apart.clone());
    }
    let lines = lab.run();
    assert!(lines[2].contains("3 node(s) didn't match pod anti-affinity rules"), "{lines:?}");
    lab.pod("plain", "1", Value::Null);
    let lines = lab.run();
    assert!(lines[0].contains("existing pods anti-affinity"), "both directions: {lines:?}");

    let mut lab = Lab::new();
    for (name, zone) in [("n1", "z1"), ("n2", "z1"), ("n3", "z2")] {
        lab.node(name, "9", zone, Value::Null);
    }
    let together =
        json!({"spec": {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}}});
    for name in ["t1", "t2", "t3"] {
        lab.pod(name, "1", together.clone());
    }
    let zones: BTreeSet<bool> = lab.run().iter().map(|line| line.ends_with("n3")).collect();
    assert_eq!(zones.len(), 1, "all in one zone");

    let mut lab = Lab::new();
    for (name, zone) in [("n1", "z1"), ("n2", "z1"), ("n3", "z2")] {
        lab.node(name, "9", zone, Value::Null);
    }
    let even = json!({"spec": {"topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": selector}]}});
    for at in 0..6 {
        lab.pod(&format!("s{at}"), "1", even.clone());
    }
    let lines = lab.run();
    assert_eq!(lines.iter().filter(|line| line.ends_with("n3")).count(), 3, "{lines:?}");
}

#[test]
fn ports_are_taken_once_a_node() {
    let mut lab = Lab::new();
    lab.node("n1", "9", "z", Value::Null);
    let ports = json!({"spec": {"containers": [{"name": "c", "ports": [{"hostPort": 80, "containerPort": 80}]}]}});
    lab.pod("a", "0", ports.clone());
    lab.pod("b", "0", ports);
    let lines = lab.run();
    assert_eq!(lines[0], "a>n1");
    assert!(lines[1].contains("free ports"), "{lines:?}");
}

#[test]
fn the_important_push_out_the_least() {
    let mut lab = Lab::new();
    lab.node("n1", "2", "z", Value::Null);
    lab.node("n2", "2", "z", Value::Null);
    for (name, priority) in [("low1", 1), ("low2", 1), ("mid1", 5), ("mid2", 5)] {
        lab.pod(name, "1", json!({"spec": {"priority": priority}}));
        lab.run();
    }
    lab.pod("high", "1", json!({"spec": {"priority": 10}}));
    let lines = lab.run();
    assert!(lines[0].contains("[\"ns/low"), "{lines:?}");
    lab.pod("never", "1", json!({"spec": {"priority": 10, "preemptionPolicy": "Never"}}));
    assert!(lab.run()[0].ends_with("[]"));
    lab.delete("low1");
    lab.delete("low2");
    lab.now = lab.now.plus_ms(3_000);
    assert!(lab.run().iter().any(|line| line.starts_with("high>")));
}

#[test]
fn who_comes_together_makes_room_once_each() {
    let mut lab = Lab::new();
    for node in ["n1", "n2"] {
        lab.node(node, "2", "z", Value::Null);
    }
    for at in 0..4 {
        lab.pod(&format!("low{at}"), "1", json!({"spec": {"priority": 1}}));
    }
    lab.run();
    for at in 0..5 {
        lab.pod(&format!("high{at}"), "1", json!({"spec": {"priority": 10}}));
    }
    let plan = lab.scheduler.plan(&lab.cache.view(), lab.now, 10);
    let mut victims: Vec<&str> =
        plan.refusals.iter().flat_map(|refusal| &refusal.victims).map(|(key, _)| &**key).collect();
    victims.sort_unstable();
    victims.dedup();
    assert_eq!(victims, ["ns/low0", "ns/low1", "ns/low2", "ns/low3"]);
    let nominated = |wanted: &str| plan.refusals.iter().filter(|one| one.nominated.as_deref() == Some(wanted)).count();
    assert_eq!((nominated("n1"), nominated("n2")), (2, 2), "a fifth would take somebody's room");
}

#[test]
fn who_is_deleted_while_it_waits_keeps_no_room() {
    let mut lab = Lab::new();
    lab.node("n1", "1", "z", Value::Null);
    lab.pod("low", "1", json!({"spec": {"priority": 1}}));
    lab.run();
    lab.pod("high", "1", json!({"spec": {"priority": 10}}));
    lab.run();
    lab.pod("high", "1", json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"priority": 10}}));
    lab.delete("low");
    lab.pod("next", "1", json!({"spec": {"priority": 5}}));
    assert_eq!(lab.run(), ["next>n1"]);
}

#[test]
fn the_search_for_room_goes_on_behind_nodes_that_cannot_make_any() {
    let mut lab = Lab::new();
    for at in 0..150 {
        lab.node(&format!("small{at:03}"), "2", "z", Value::Null);
        lab.pod(&format!("low{at}"), "2", json!({"spec": {"priority": 1}}));
    }
    lab.run();
    lab.node("z", "4", "z", Value::Null);
    lab.pod("last", "4", json!({"spec": {"priority": 1}}));
    lab.run();
    lab.pod("high", "3", json!({"spec": {"priority": 10}}));
    let lines = lab.run();
    assert!(lines[0].contains("ns/last"), "{lines:?}");
}

#[test]
fn a_lost_bind_is_undone_and_tried_again() {
    let mut lab = Lab::new();
    lab.node("n1", "1", "z", Value::Null);
    lab.pod("a", "1", Value::Null);
    let plan = lab.scheduler.plan(&lab.cache.view(), lab.now, 10);
    assert_eq!(plan.placements.len(), 1);
    let pod = lab.cache.one(PODS, "ns", "a").cloned();
    lab.scheduler.failed(&plan.placements[0], pod.as_ref(), lab.now);
    assert!(lab.run().is_empty(), "it pauses");
    lab.now = lab.now.plus_ms(1_500);
    assert_eq!(lab.run(), ["a>n1"]);
}

#[test]
fn who_leaves_is_no_part_of_a_spread_any_more() {
    let mut lab = Lab::new();
    lab.node("n1", "8", "z1", Value::Null);
    lab.node("n2", "2", "z2", Value::Null);
    let spread = json!({"spec": {"topologySpreadConstraints": [{
        "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "a"}},
    }]}});
    lab.pod("first", "100m", spread.clone());
    lab.pod("second", "100m", spread.clone());
    assert_eq!(lab.run(), ["first>n1", "second>n2"]);
    let mut leaves = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"nodeName": "n2"}});
    meta::patch::merge_patch(&mut leaves, &spread);
    lab.pod("second", "100m", leaves);
    lab.pod("third", "100m", spread);
    assert_eq!(lab.run(), ["third>n2"], "n1 has more room, and then two more than the other zone");
}

#[test]
fn room_that_is_not_enough_any_more_is_promised_to_nobody() {
    let mut lab = Lab::new();
    lab.node("n1", "2", "z", Value::Null);
    lab.pod("low", "2", json!({"spec": {"priority": 1}}));
    lab.run();
    lab.pod("high", "2", json!({"spec": {"priority": 10}}));
    assert!(lab.run()[0].ends_with("[\"ns/low\"]"));
    lab.pod("top", "1", json!({"spec": {"priority": 20}}));
    lab.delete("low");
    lab.now = lab.now.plus_ms(3_000);
    assert!(lab.run().contains(&"top>n1".to_owned()));
    lab.pod("small", "1", json!({"spec": {"priority": 5}}));
    assert!(lab.run().contains(&"small>n1".to_owned()));
}

#[test]
fn what_a_decision_takes_of_a_budget_the_next_one_knows() {
    let mut lab = Lab::new();
    for (node, pod, app, priority) in [("n1", "guarded1", "g", 1), ("n2", "guarded2", "g", 1), ("n3", "free", "f", 3)] {
        lab.node(node, "1", "z", Value::Null);
        lab.pod(pod, "1", json!({"metadata": {"labels": {"app": app}}, "spec": {"priority": priority}}));
        lab.run();
    }
    let budget = json!({
        "metadata": {"name": "b", "namespace": "ns"}, "spec": {"selector": {"matchLabels": {"app": "g"}}},
        "status": {"disruptionsAllowed": 1},
    });
    lab.put(Resource("poddisruptionbudgets.policy"), budget);
    for high in ["high1", "high2"] {
        lab.pod(high, "1", json!({"spec": {"priority": 10}}));
    }
    let victims: Vec<String> = lab.run().iter().filter_map(|line| line.rsplit(' ').next().map(str::to_owned)).collect();
    assert!(victims[0].contains("guarded") && victims[1].contains("free"), "{victims:?}");
}

/// What the scheduler keeps, beside what is found by looking at everything.
fn assert_kept_is_true(scheduler: &mut Scheduler) {
    let classes: Vec<Arc<Class>> = scheduler.nodes.residents.iter().flatten().map(|pod| pod.class.clone()).collect();
    for class in &classes {
        let (nodes, terms) = (&scheduler.nodes, &scheduler.terms);
        let anew = Sights::default().of(class, nodes, terms).clone();
        let kept = scheduler.sights.of(class, nodes, terms);
        assert_eq!((&kept.refusals, &kept.scores), (&anew.refusals, &anew.scores), "{class:?}");
    }
    scheduler.terms.refresh(&scheduler.nodes);
    scheduler.terms.sum_up();
    for (id, term) in scheduler.terms.iter() {
        let topology = scheduler.terms.topology_of(id);
        for tally in [&term.matching, &term.leaving, &term.holders, &term.leanings] {
            assert_eq!(tally.of_domain, topology.sums(&tally.of_node, |_| true), "{}", topology.key);
            assert_eq!(tally.total, tally.of_node.iter().map(|number| i64::from(*number)).sum::<i64>());
        }
    }
}

#[test]
fn what_is_kept_says_the_same_as_a_look_at_all() {
    let label = |key: &str| json!({"labelSelector": {"matchLabels": {"app": key}}, "topologyKey": "zone"});
    let wishes = [
        Value::Null,
        json!({"spec": {"nodeSelector": {"zone": "z1"}}}),
        json!({"spec": {"tolerations": [{"key": "t", "operator": "Exists"}]}}),
        json!({"spec": {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [(label("a"))]}}}}),
        json!({"spec": {"affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution":
            [{"weight": 7, "podAffinityTerm": (label("a"))}]}}}}),
        json!({"metadata": {"labels": {"app": "b"}}, "spec": {"affinity": {"podAntiAffinity":
            {"requiredDuringSchedulingIgnoredDuringExecution":
            [{"labelSelector": {"matchLabels": {"app": "b"}}, "topologyKey": "kubernetes.io/hostname"}]}}}}),
        json!({"spec": {"topologySpreadConstraints": [{"labelSelector": {"matchLabels": {"app": "a"}},
            "topologyKey": "zone", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}]}}),
        json!({"spec": {"priority": 5}}),
    ];
    for seed in 0..40 {
        let mut rng = base::Rng::new(seed);
        let mut lab = Lab::new();
        for step in 0..60 {
            match rng.below(8) {
                0 | 1 => {
                    let name = format!("n{}", rng.below(12));
                    let taints =
                        if rng.chance(300) { json!([{"key": "t", "effect": "NoSchedule"}]) } else { json!([]) };
                    let more = json!({"spec": {"taints": taints, "unschedulable": (rng.chance(200))}});
                    lab.node(&name, ["1", "2", "4"][rng.below(3) as usize], &format!("z{}", rng.below(3)), more);
                }
                2 => {
                    let name = format!("n{}", rng.below(12));
                    let old = lab.cache.one(NODES, "", &name).cloned();
                    if old.is_some() {
                        lab.revision += 1;
                        lab.change(NODES, None, old);
                    }
                }
                3 => {
                    let pod = lab.cache.view().list(PODS, "").nth(rng.below(20) as usize).cloned();
                    if let Some(pod) = pod {
                        lab.delete(pod.name());
                    }
                }
                _ => lab.pod(&format!("p{step}"), "300m", wishes[rng.below(wishes.len() as u64) as usize].clone()),
            }
            lab.now = lab.now.plus_ms(500);
            lab.run();
            assert_kept_is_true(&mut lab.scheduler);
        }
    }
}

#[test]
fn goes_where_the_volumes_of_its_claims_are() {
    use crate::volumes::Choice;
    use api::core::volume_binding::{BIND_COMPLETED, CLAIMS, CLASSES, SELECTED_NODE, VOLUMES};

    let mut lab = Lab::new();
    for name in ["n1", "n2", "n3"] {
        lab.node(name, "2", "z", Value::Null);
    }
    let on = |node: &str| {
        json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]},
        ]}]}})
    };
    let volume = |name: &str, node: &str, class: &str| {
        json!({
            "metadata": {"name": name}, "status": {"phase": "Available"},
            "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": class,
                "nodeAffinity": (on(node))},
        })
    };
    let claim = |name: &str, class: &str| {
        json!({
            "metadata": {"name": name, "namespace": "ns", "uid": name}, "status": {"phase": "Pending"},
            "spec": {"resources": {"requests": {"storage": "1Gi"}}, "accessModes": ["ReadWriteOnce"],
                "storageClassName": class},
        })
    };
    let class = |name: &str, provisioner: &str| json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": "WaitForFirstConsumer"});
    let mounts = |claims: &[&str]| {
        let volume = |name: &&str| json!({"name": (*name), "persistentVolumeClaim": {"claimName": (*name)}});
        json!({"spec": {"volumes": (claims.iter().map(volume).collect::<Vec<_>>())}})
    };
    let bound = |mut claim: Value, volume: &str| {
        claim.set(&["spec", "volumeName"], volume);
        claim.set(&["metadata", "annotations", BIND_COMPLETED], "yes");
        claim
    };
    let plan = |lab: &mut Lab| lab.scheduler.plan(&lab.cache.view(), lab.now, 1000).choices;

    lab.pod("p", "1", mounts(&["a"]));
    assert_eq!(lab.run(), [r#"p!0/3 nodes are available: persistentvolumeclaim "a" not found []"#]);
    lab.now = lab.now.plus_ms(1_000);
    lab.put(CLAIMS, claim("a", "slow"));
    assert_eq!(lab.run(), ["p!0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims []"]);
    lab.now = lab.now.plus_ms(1_000);
    lab.put(VOLUMES, volume("of-a", "n2", "slow"));
    lab.put(CLAIMS, bound(claim("a", "slow"), "of-a"));
    assert_eq!(lab.run(), ["p>n2"]);

    // A volume that exists is promised to the claim, whichever node it is on.
    lab.put(CLASSES, class("local", "kubernetes.io/no-provisioner"));
    lab.put(CLAIMS, claim("b", "local"));
    lab.pod("q", "1", mounts(&["b"]));
    let none = "node(s) didn't find available persistent volumes to bind";
    assert_eq!(lab.run(), [format!("q!0/3 nodes are available: 3 {none} []")]);
    lab.now = lab.now.plus_ms(1_000);
    lab.put(VOLUMES, volume("v3", "n3", "local"));
    let choices = plan(&mut lab);
    let [Choice { resource: VOLUMES, name, patch, .. }] = &choices[..] else { panic!("{choices:?}") };
    assert_eq!((name.as_str(), patch["spec"]["claimRef"]["name"].text()), ("v3", "b"));
    let mut promised = volume("v3", "n3", "local");
    promised.set(&["spec", "claimRef"], patch["spec"]["claimRef"].clone());
    lab.put(VOLUMES, promised);
    lab.now = lab.now.plus_ms(1_000);
    assert_eq!(plan(&mut lab), [], "all is said; it waits for the binding");
    lab.pod("thief", "2", json!({"spec": {"nodeSelector": {"kubernetes.io/hostname": "n3"}}}));
    assert_eq!(lab.run().len(), 1, "its room is promised");
    lab.put(CLAIMS, bound(claim("b", "local"), "v3"));
    lab.now = lab.now.plus_ms(1_000);
    assert_eq!(lab.run(), ["q>n3"]);

    // A volume is made for the node that was chosen.
    lab.put(CLASSES, class("made", "example.com/disks"));
    lab.put(CLAIMS, claim("c", "made"));
    lab.pod("r", "1", mounts(&["c"]));
    let choices = plan(&mut lab);
    let [Choice { resource: CLAIMS, name, patch, .. }] = &choices[..] else { panic!("{choices:?}") };
    assert_eq!(name.as_str(), "c");
    let node = Str::from(patch["metadata"]["annotations"][SELECTED_NODE].text());
    let mut told = claim("c", "made");
    told.set(&["metadata", "annotations", SELECTED_NODE], &node);
    lab.put(CLAIMS, told);
    lab.put(VOLUMES, volume("fresh", &node, "made"));
    lab.put(CLAIMS, bound(claim("c", "made"), "fresh"));
    lab.now = lab.now.plus_ms(1_000);
    assert_eq!(lab.run(), [format!("r>{node}")]);
}
