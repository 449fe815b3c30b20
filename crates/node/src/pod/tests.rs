use super::*;
use meta::{Facts, Object, Resource, json};

fn pod(spec: Value) -> Value {
    json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": spec, "status": {}})
}

fn seen(id: &str, attempt: u32, state: SeenState, exit_code: i32) -> Seen {
    let at = |seconds| Some(Time::from_seconds(seconds));
    let finished = if state == SeenState::Exited { at(110) } else { None };
    Seen {
        id: id.into(),
        attempt,
        state,
        image: "i".into(),
        image_id: "i".into(),
        started: at(100),
        finished,
        exit_code,
        signal: 0,
        reason: "Error".into(),
        message: "".into(),
        limits: None,
    }
}

struct Script {
    pod: Value,
    observed: Observed,
    memory: Memory,
    now: Time,
}

impl Script {
    fn new(spec: Value) -> Script {
        let observed = Observed { sandbox: true, sandbox_ready: true, ..Observed::default() };
        Script { pod: pod(spec), observed, memory: Memory::default(), now: Time::from_seconds(120) }
    }

    fn set(&mut self, name: &str, seen: Seen) {
        self.observed.containers.insert(name.into(), seen);
    }

    fn decide(&mut self) -> Vec<String> {
        let commands = decide(&self.pod, &self.observed, &mut self.memory, self.now);
        commands
            .iter()
            .map(|command| match command {
                Command::Start { container, attempt } => format!("start {container} {attempt}"),
                Command::Resize { container, .. } => format!("resize {container}"),
                Command::Stop { container, grace_ms, .. } => format!("stop {container} {grace_ms}"),
                Command::Probe { container, kind, .. } => format!("probe {container} {kind:?}"),
                other => format!("{other:?}").to_lowercase(),
            })
            .collect()
    }

    fn status(&self) -> Value {
        status(&self.pod, &self.pod["status"], &self.observed, &self.memory, &["10.0.0.1".into()], self.now)
    }

    fn condition(&self, of_type: &str) -> String {
        let status = self.status();
        let found = status["conditions"].items().iter().find(|one| one["type"].text() == of_type).cloned();
        found.unwrap_or_default()["status"].text().to_owned()
    }
}

#[test]
fn init_containers_come_one_after_the_other_and_sidecars_stay() {
    let mut script = Script::new(json!({
        "restartPolicy": "Always",
        "initContainers": [{"name": "i1"}, {"name": "s", "restartPolicy": "Always"}, {"name": "i2"}],
        "containers": [{"name": "a"}, {"name": "b"}],
    }));
    assert_eq!(script.decide(), ["start i1 0"]);
    assert_eq!((script.status()["phase"].text(), script.condition("Initialized").as_str()), ("Pending", "False"));
    script.set("i1", seen("1", 0, SeenState::Exited, 0));
    assert_eq!(script.decide(), ["start s 0"]);
    script.set("s", seen("2", 0, SeenState::Running, 0));
    assert_eq!(script.decide(), ["start i2 0"]);
    script.set("i2", seen("3", 0, SeenState::Exited, 0));
    assert_eq!(script.decide(), ["start a 0", "start b 0"]);
    script.set("a", seen("4", 0, SeenState::Running, 0));
    script.set("b", seen("5", 0, SeenState::Running, 0));
    assert_eq!(script.decide(), Vec::<String>::new());
    assert_eq!((script.status()["phase"].text(), script.condition("Ready").as_str()), ("Running", "True"));
}

#[test]
fn what_is_only_made_is_not_told() {
    let mut script = Script::new(json!({"restartPolicy": "Always", "containers": [{"name": "a"}]}));
    let before = script.status();
    assert_eq!(before["phase"].text(), "Pending");
    script.set("a", seen("1", 0, SeenState::Created, 0));
    assert_eq!(script.status(), before);
    script.set("a", seen("1", 0, SeenState::Running, 0));
    assert_eq!(script.status()["phase"].text(), "Running");
}

#[test]
fn restarts_wait_longer_each_time() {
    let mut script = Script::new(json!({"restartPolicy": "Always", "containers": [{"name": "a"}]}));
    script.set("a", seen("1", 0, SeenState::Exited, 1));
    assert_eq!(script.decide(), ["start a 1"], "the first restart is at once");
    script.set("a", seen("2", 1, SeenState::Exited, 1));
    script.now = Time::from_seconds(111);
    assert_eq!(script.decide(), Vec::<String>::new());
    let state = script.status()["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
    assert_eq!(state.text(), "CrashLoopBackOff");
    script.now = script.memory.wake.unwrap();
    assert_eq!(script.now, Time::from_seconds(120));
    assert_eq!(script.decide(), ["start a 2"]);
}

#[test]
fn policies_decide_what_the_end_means() {
    for (policy, code, expected, phase) in [
        ("Never", 0, vec!["end"], "Succeeded"),
        ("Never", 3, vec!["end"], "Failed"),
        ("OnFailure", 0, vec!["end"], "Succeeded"),
        ("OnFailure", 3, vec!["start a 1"], "Running"),
        ("Always", 0, vec!["start a 1"], "Running"),
    ] {
        let mut script = Script::new(json!({"restartPolicy": policy, "containers": [{"name": "a"}]}));
        script.set("a", seen("1", 0, SeenState::Exited, code));
        assert_eq!(script.decide(), expected, "{policy} {code}");
        assert_eq!(script.status()["phase"].text(), phase, "{policy} {code}");
    }
}

#[test]
fn deletion_stops_removes_and_lets_go() {
    let mut script = Script::new(json!({
        "restartPolicy": "Always", "initContainers": [{"name": "s", "restartPolicy": "Always"}],
        "containers": [{"name": "a"}],
    }));
    script.set("s", seen("1", 0, SeenState::Running, 0));
    script.set("a", seen("2", 0, SeenState::Running, 0));
    script.pod.set(&["metadata", "deletionTimestamp"], Time::from_seconds(125).rfc3339());
    script.pod.set(&["metadata", "deletionGracePeriodSeconds"], 30i64);
    assert_eq!(script.decide(), ["stop a 5000"], "sidecars go last");
    script.set("a", seen("2", 0, SeenState::Exited, 0));
    assert_eq!(script.decide(), ["stop s 5000"]);
    script.set("s", seen("1", 0, SeenState::Exited, 0));
    assert_eq!(script.decide(), ["remove"]);
    script.memory.removed = true;
    assert_eq!(script.decide(), ["delete"]);
}

#[test]
fn probes_condemn_and_admit() {
    let probe = json!({"periodSeconds": 1, "failureThreshold": 2});
    let mut script = Script::new(json!({"restartPolicy": "Always", "containers": [
        {"name": "a", "livenessProbe": (probe.clone()), "readinessProbe": probe}]}));
    script.set("a", seen("1", 0, SeenState::Running, 0));
    assert_eq!(script.decide(), ["probe a Liveness", "probe a Readiness"]);
    assert_eq!(script.condition("Ready"), "False", "not ready before the probe says so");
    let definition = script.pod.at(&["spec", "containers"])[0]["livenessProbe"].clone();
    let now = script.now;
    let answer = |script: &mut Script, kind, good| {
        script.memory.container("a").probes.get_mut(&kind).unwrap().answer(&definition, good, String::new(), now);
    };
    answer(&mut script, ProbeKind::Readiness, true);
    assert_eq!(script.condition("Ready"), "True");
    answer(&mut script, ProbeKind::Liveness, false);
    answer(&mut script, ProbeKind::Liveness, false);
    script.decide();
    assert_eq!(script.decide(), ["stop a 30000"]);
}

#[test]
fn a_command_under_way_is_not_given_twice() {
    let mut script = Script::new(json!({"containers": [{"name": "a"}]}));
    script.observed = Observed::default();
    assert_eq!(script.decide(), ["prepare"]);
    script.memory.busy.insert("sandbox".into());
    assert_eq!(script.decide(), Vec::<String>::new());
    script.memory.busy.clear();
    script.memory.prepared(Err("no".to_owned()), script.now);
    assert_eq!(script.decide(), Vec::<String>::new());
    assert!(script.memory.wake.is_some());
}

#[test]
fn what_was_told_of_a_container_that_is_gone_stays() {
    let mut script = Script::new(json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}));
    script.set("c", seen("one", 0, SeenState::Exited, 3));
    let told = script.status();
    script.pod.set(&["metadata", "deletionTimestamp"], "1970-01-01T00:01:00Z");
    script.pod.set(&["status"], told.clone());
    script.observed.containers.clear();
    assert_eq!(script.status()["containerStatuses"], told["containerStatuses"]);

    script.pod.set(
        &["status", "containerStatuses"],
        vec![json!({
            "name": "c", "containerID": "gantry://one", "state": {"running": {"startedAt": "1970-01-01T00:01:00Z"}},
        })],
    );
    script.pod.set(&["status", "phase"], "Running");
    let lost = script.status()["containerStatuses"].items()[0]["state"]["terminated"].clone();
    assert_eq!((lost["reason"].text(), lost["exitCode"].as_int()), ("ContainerStatusUnknown", Some(137)));
}

#[test]
fn limits_follow_the_spec_and_are_told_when_they_are_in_force() {
    let container = |cpu: &str, policy: &str| {
        json!({"restartPolicy": "Always", "containers": [{
            "name": "a", "resources": {"requests": {"cpu": cpu}, "limits": {"cpu": cpu}},
            "resizePolicy": [{"resourceName": "cpu", "restartPolicy": policy}],
        }]})
    };
    let mut script = Script::new(container("200m", "NotRequired"));
    let limits = crate::spec::resources(&script.pod["spec"]["containers"][0]["resources"]);
    let running = Seen { limits: Some(limits), ..seen("1", 0, SeenState::Running, 0) };
    script.set("a", running.clone());
    assert_eq!(script.decide(), Vec::<String>::new());
    script.pod.set(&["status"], script.status());
    script.pod.set(&["spec"], container("300m", "NotRequired"));
    let told =
        |script: &Script| script.status()["containerStatuses"][0]["resources"]["limits"]["cpu"].text().to_owned();
    assert_eq!((script.decide(), told(&script)), (vec!["resize a".to_owned()], "200m".to_owned()));
    let limits = crate::spec::resources(&script.pod["spec"]["containers"][0]["resources"]);
    script.set("a", Seen { limits: Some(limits), ..running.clone() });
    assert_eq!((script.decide(), told(&script)), (Vec::new(), "300m".to_owned()));
    script.pod.set(&["spec"], container("400m", "RestartContainer"));
    assert_eq!(script.decide(), ["stop a 30000"]);
    let free = json!({"restartPolicy": "Always", "containers": [{
        "name": "a", "resizePolicy": [{"resourceName": "cpu", "restartPolicy": "RestartContainer"}],
    }]});
    script.pod.set(&["spec"], free);
    let limits = Resources { cpu_shares: Some(2), cpu_quota_us: Some(1_000), ..Resources::default() };
    script.set("a", Seen { limits: Some(limits), ..running });
    assert_eq!(script.decide(), ["resize a"], "it is set free where it runs");
}

/// As a node's controller does, in the very second in which the pod was told to be ready.
#[test]
fn what_others_say_of_a_pod_is_set_right_at_a_later_look() {
    let pod = |status: &Value, revision: u64| {
        let value = json!({
            "metadata": {"name": "a", "namespace": "ns", "uid": "u", "resourceVersion": (revision.to_string())},
            "spec": {"restartPolicy": "Always", "containers": [{"name": "a"}]}, "status": (status.clone()),
        });
        Object::new(Facts::of(Resource("pods"), &value), value.to_json())
    };
    let (mut worker, now) = (Worker::new(&pod(&Value::map(), 1)), Time::from_seconds(1_800_000_000));
    let mut observed = Observed { sandbox: true, sandbox_ready: true, ..Observed::default() };
    observed.containers.insert("a".into(), seen("1", 0, SeenState::Running, 0));
    worker.see(Some(&pod(&Value::map(), 1)), now);
    worker.decide(&observed, now);
    let status = worker.status(&observed, &[], now).expect("there is no status yet");
    worker.told(status.clone(), Ok(()));
    let mut doubted = status.clone();
    for condition in doubted.make(&["conditions"]).items_mut() {
        if condition["type"].text() == "Ready" {
            condition.set(&["status"], "False");
        }
    }
    worker.see(Some(&pod(&doubted, 2)), now);
    assert_eq!(worker.status(&observed, &[], now), None, "that was told");
    assert!(worker.status(&observed, &[], now.plus_ms(30_000)).is_some());
    worker.see(Some(&pod(&status, 3)), now);
    assert_eq!(worker.status(&observed, &[], now.plus_ms(60_000)), None);
}

#[test]
fn a_probe_that_succeeds_as_before_brings_no_look() {
    let probe = json!({"periodSeconds": 10i64, "failureThreshold": 1i64});
    let value = pod(json!({"restartPolicy": "Always", "containers": [{"name": "a", "readinessProbe": probe}]}));
    let object = Object::new(Facts::of(Resource("pods"), &value), value.to_json());
    let mut observed = Observed { sandbox: true, sandbox_ready: true, ..Observed::default() };
    observed.containers.insert("a".into(), seen("1", 0, SeenState::Running, 0));
    let (mut worker, start) = (Worker::new(&object), Time::from_seconds(1_800_000_000));
    worker.see(Some(&object), start);
    for (number, (good, quiet)) in [(true, false), (true, true), (false, false), (true, false)].into_iter().enumerate()
    {
        let now = start.plus_ms(20_000 * number as u64);
        let commands = worker.decide(&observed, now).expect("it is there");
        let [command] = &commands[..] else { panic!("{commands:?}") };
        let answered = now.plus_ms(50);
        worker.take(command, Outcome::Probed(good, String::new()), answered);
        assert_eq!(worker.is_quiet(), quiet, "probe {number}");
        let next = Some(answered.plus_ms(10_000));
        assert_eq!(worker.wake(), next.filter(|_| quiet), "what brings a look sets the time anew");
        assert!(worker.decide(&observed, answered).is_some_and(|commands| commands.is_empty()));
        assert_eq!(worker.wake(), next, "a look finds nothing else");
    }
}

/// Its folders are named by its uid.
#[test]
fn a_pod_that_is_gone_at_the_first_look_is_removed_by_its_name() {
    let value =
        json!({"metadata": {"name": "a", "namespace": "ns", "uid": "u"}, "spec": {"containers": [{"name": "a"}]}});
    let pod = Object::new(Facts::of(Resource("pods"), &value), value.to_json());
    let (mut worker, mut now) = (Worker::new(&pod), Time::from_seconds(1_800_000_000));
    worker.see(None, now);
    let observed = Observed::default();
    assert_eq!(worker.decide(&observed, now), Some(vec![Command::Remove]));
    assert_eq!(worker.pod()["metadata"]["uid"].text(), "u");
    worker.take(&Command::Remove, Outcome::Done(Err("busy".into())), now);
    assert_eq!(worker.decide(&observed, now), Some(Vec::new()), "it pauses");
    now = worker.wake().expect("it is tried again");
    assert_eq!(worker.decide(&observed, now), Some(vec![Command::Remove]));
    worker.take(&Command::Remove, Outcome::Done(Ok(())), now);
    assert_eq!(worker.decide(&observed, now), None);
}

#[test]
fn a_resize_that_waits_leaves_the_pod_as_it_is() {
    let asks = |cpu: &str, status: Value, revision: u64| {
        let container = json!({"name": "a", "resources": {"requests": {"cpu": cpu}}});
        let value = json!({
            "metadata": {"name": "a", "namespace": "ns", "uid": "u", "generation": 2i64,
                "resourceVersion": (revision.to_string())},
            "spec": {"restartPolicy": "Always", "containers": [container]}, "status": status,
        });
        Object::new(Facts::of(Resource("pods"), &value), value.to_json())
    };
    let cpu = |worker: &Worker| {
        worker.pod().at(&["spec", "containers"]).items()[0]["resources"]["requests"]["cpu"].text().to_owned()
    };
    let now = Time::from_seconds(1_800_000_000);
    let mut worker = Worker::new(&asks("1", Value::map(), 1));
    let pending = Some(("Deferred".into(), "no room".to_owned()));
    worker.pend(pending.clone());
    worker.see(Some(&asks("2", Value::map(), 2)), now);
    assert_eq!(cpu(&worker), "1");
    let status = worker.status(&Observed::default(), &[], now).expect("that it waits is told");
    assert!(status["conditions"].items().iter().all(|one| one["observedGeneration"].as_int() == Some(2)));
    let told = status["conditions"].items().iter().find(|one| one["type"].text() == "PodResizePending").unwrap();
    assert_eq!((told["reason"].text(), told["observedGeneration"].as_int()), ("Deferred", Some(2)));
    // The next agent begins with what the pod had.
    let mut stored = status.clone();
    let has = json!({"name": "a", "allocatedResources": {"cpu": "1"}, "resources": {"requests": {"cpu": "1"}}});
    stored.set(&["containerStatuses"], json!([has]));
    let object = asks("2", stored, 3);
    let mut next = Worker::new(&object);
    assert_eq!(cpu(&next), "1");
    next.pend(pending);
    next.see(Some(&object), now);
    assert_eq!(cpu(&next), "1");
    // There is room: nothing else has changed.
    next.pend(None);
    next.see(Some(&object), now);
    assert_eq!(cpu(&next), "2");
    let status = next.status(&Observed::default(), &[], now).expect("that is told, too");
    assert!(status["conditions"].items().iter().all(|one| one["type"].text() != "PodResizePending"));
}

#[test]
fn what_was_told_is_not_forgotten_for_what_is_seen_late() {
    let pod = |revision: u64, phase: &str| {
        let value = json!({
            "metadata": {"name": "a", "namespace": "ns", "uid": "u", "resourceVersion": (revision.to_string())},
            "spec": {"containers": [{"name": "a"}]}, "status": {"phase": phase},
        });
        Object::new(Facts::of(Resource("pods"), &value), value.to_json())
    };
    let phase = |worker: &Worker| worker.pod().at(&["status", "phase"]).text().to_owned();
    let (mut worker, now) = (Worker::new(&pod(1, "Pending")), Time::from_seconds(1_800_000_000));
    worker.see(Some(&pod(3, "Failed")), now);
    worker.see(Some(&pod(2, "Running")), now);
    assert_eq!(phase(&worker), "Failed");
    worker.see(Some(&pod(4, "Succeeded")), now);
    assert_eq!(phase(&worker), "Succeeded");
}

#[test]
fn a_pod_that_was_told_to_have_ended_does_not_begin_again() {
    for (phase, expected) in [("Failed", vec!["end"]), ("Succeeded", vec!["end"]), ("Running", vec!["start a 0"])] {
        let mut script = Script::new(json!({"restartPolicy": "Always", "containers": [{"name": "a"}]}));
        script.pod.set(&["status", "phase"], phase);
        assert_eq!(script.decide(), expected, "{phase}");
    }
}

#[test]
fn a_pod_on_a_leash_ends_when_its_node_has_not_renewed_its_lease_for_too_long() {
    let mut value = pod(json!({"terminationGracePeriodSeconds": 5i64, "containers": [{"name": "a"}]}));
    value.set(&["metadata", "annotations", api::core::leash::STOP_AFTER], "30");
    let object = Object::new(Facts::of(Resource("pods"), &value), value.to_json());
    let (mut worker, now) = (Worker::new(&object), Time::from_seconds(120));
    let mut observed = Observed { sandbox: true, sandbox_ready: true, ..Observed::default() };
    observed.containers.insert("a".into(), seen("a0", 0, SeenState::Running, 0));
    let unknown = Standing::unknown(1_000);
    assert_eq!(worker.stand(&unknown, 1_000, true), None, "an earlier agent has said until when it is held");
    let renewed = Standing::renewed(5_000);
    assert_eq!(worker.stand(&renewed, 6_000, true), Some(40_000));
    worker.held(40_000, true);
    assert_eq!((worker.stand(&renewed, 34_999, true), worker.ends_ms(&renewed)), (None, Some(35_000)));
    assert_eq!(worker.decide(&observed, now), Some(Vec::new()));
    worker.stand(&renewed, 35_000, true);
    assert_eq!(worker.ends_ms(&renewed), None);
    let stop = Command::Stop { container: "a".into(), id: "a0".into(), grace_ms: 5_000 };
    assert_eq!(worker.decide(&observed, now), Some(vec![stop]));
    // What has begun to end does not come back.
    worker.stand(&Standing::renewed(36_000), 36_500, true);
    observed.containers.insert("a".into(), seen("a0", 0, SeenState::Exited, 143));
    let status = worker.status(&observed, &[], now).unwrap();
    assert_eq!((status["phase"].text(), status["reason"].text()), ("Failed", "NodeCutOff"));
    // What ended by itself ended as it did.
    let mut done = value.clone();
    done.set(&["status", "phase"], "Succeeded");
    let mut done = Worker::new(&Object::new(Facts::of(Resource("pods"), &done), done.to_json()));
    done.stand(&renewed, 35_000, false);
    assert_eq!(done.ends_ms(&renewed), None);
    let told = done.status(&observed, &[], now).unwrap();
    assert_eq!((told["phase"].text(), told["reason"].text()), ("Succeeded", ""));
    // Others may have given it up: while this agent stood still, while its sandbox was let go, while it was not there.
    let is_given_up = |worker: &mut Worker| {
        let sandbox = Observed { sandbox: true, sandbox_ready: true, ..Observed::default() };
        worker.decide(&sandbox, now) == Some(vec![Command::End])
    };
    let mut stood_still = Worker::new(&object);
    stood_still.stand(&renewed, 6_000, true);
    stood_still.stand(&Standing::renewed(35_000), 35_500, true);
    assert!(is_given_up(&mut stood_still));
    let mut let_go = Worker::new(&object);
    let_go.held(40_000, false);
    assert!(is_given_up(&mut let_go));
    for (began, ready) in [(true, false), (true, true), (false, false)] {
        let mut value = value.clone();
        if began {
            value.set(&["status", "startTime"], now.rfc3339());
        }
        let mut next = Worker::new(&Object::new(Facts::of(Resource("pods"), &value), value.to_json()));
        next.stand(&unknown, 1_000, ready);
        assert_eq!(is_given_up(&mut next), began && !ready);
    }
}

#[test]
fn an_evicted_pod_ends_soon_and_says_why() {
    let spec = json!({
        "restartPolicy": "Always", "terminationGracePeriodSeconds": 600i64, "containers": [{"name": "a"}],
    });
    let value = pod(spec);
    let object = Object::new(Facts::of(Resource("pods"), &value), value.to_json());
    let mut worker = Worker::new(&object);
    let mut observed = Observed { sandbox: true, sandbox_ready: true, ..Observed::default() };
    observed.containers.insert("a".into(), seen("1", 0, SeenState::Running, 0));
    let now = Time::from_seconds(120);
    assert_eq!(worker.decide(&observed, now), Some(Vec::new()));
    worker.evict("too much".to_owned());
    let stop = Command::Stop { container: "a".into(), id: "1".into(), grace_ms: 1_000 };
    assert_eq!(worker.decide(&observed, now), Some(vec![stop]));
    observed.containers.insert("a".into(), seen("1", 0, SeenState::Exited, 137));
    let status = worker.status(&observed, &[], now).unwrap();
    let told = ["phase", "reason", "message"].map(|key| status[key].text());
    assert_eq!(told, ["Failed", "Evicted", "too much"]);
}

#[test]
fn what_ends_is_asked_whether_it_still_serves_but_not_whether_it_lives() {
    let mut script = Script::new(json!({"containers": [{
        "name": "a", "readinessProbe": {"periodSeconds": 1i64}, "livenessProbe": {"periodSeconds": 1i64},
    }]}));
    script.set("a", seen("1", 0, SeenState::Running, 0));
    assert_eq!(script.decide(), ["probe a Liveness", "probe a Readiness"]);
    script.pod.set(&["metadata", "deletionTimestamp"], Time::from_seconds(150).rfc3339());
    assert_eq!(script.decide(), ["stop a 30000", "probe a Readiness"]);
    script.set("a", seen("1", 0, SeenState::Exited, 0));
    assert_eq!(script.decide(), ["remove"]);
}

#[test]
fn a_resize_is_told_until_the_container_has_what_it_asks_for() {
    let mut script = Script::new(json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}]}));
    let with = |cpu_shares: u64| Seen {
        limits: Some(Resources { cpu_shares: Some(cpu_shares), ..Resources::default() }),
        ..seen("1", 0, SeenState::Running, 0)
    };
    script.set("a", with(102));
    assert_eq!(script.decide(), ["resize a"]);
    assert_eq!(script.condition("PodResizeInProgress"), "True");
    script.memory.container("a").resize_failures = 1;
    script.memory.container("a").resize_error = "no such cgroup".into();
    let status = script.status();
    let told = status["conditions"].items().iter().find(|one| one["type"].text() == "PodResizeInProgress").unwrap();
    assert_eq!((told["reason"].text(), told["message"].text()), ("Error", "no such cgroup"));
    script.pod.set(&["status"], status);
    script.set("a", with(1024));
    assert_eq!(script.condition("PodResizeInProgress"), "");
}

#[test]
fn a_container_may_have_a_policy_and_rules_of_its_own() {
    let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42i64]}}]);
    for (pod, own, rules, code, expected, phase) in [
        ("Never", "Always", Value::Null, 0, vec!["start a 1"], "Running"),
        ("Never", "OnFailure", Value::Null, 0, vec!["end"], "Succeeded"),
        ("Never", "OnFailure", Value::Null, 1, vec!["start a 1"], "Running"),
        ("Always", "Never", Value::Null, 1, vec!["end"], "Failed"),
        ("Never", "Never", rules.clone(), 42, vec!["start a 1"], "Running"),
        ("Never", "Never", rules, 41, vec!["end"], "Failed"),
    ] {
        let mut container = json!({"name": "a", "restartPolicy": own});
        if !rules.is_null() {
            container.set(&["restartPolicyRules"], rules);
        }
        let mut script = Script::new(json!({"restartPolicy": pod, "containers": (vec![container])}));
        script.set("a", seen("1", 0, SeenState::Exited, code));
        assert_eq!(script.decide(), expected, "{pod} {own} {code}");
        assert_eq!(script.status()["phase"].text(), phase, "{pod} {own} {code}");
    }
    let mut script = Script::new(json!({
        "restartPolicy": "Always", "initContainers": [{"name": "i", "restartPolicy": "Never"}],
        "containers": [{"name": "a"}],
    }));
    script.set("i", seen("1", 0, SeenState::Exited, 1));
    assert_eq!(script.decide(), ["end"]);
    assert_eq!(script.status()["phase"].text(), "Failed");
}

#[test]
fn what_is_told_is_told_of_the_generation_that_was_seen() {
    let mut script = Script::new(json!({"containers": [{"name": "a"}]}));
    script.pod.set(&["metadata", "generation"], 3i64);
    script.pod.set(
        &["status", "conditions"],
        json!([{"type": "PodScheduled", "status": "True"}, {"type": "mine", "status": "True"}]),
    );
    for condition in script.status()["conditions"].items() {
        let expected = (condition["type"].text() != "mine").then_some(3);
        assert_eq!(condition["observedGeneration"].as_int(), expected, "{condition:?}");
    }
}

#[test]
fn what_others_tell_of_a_pod_meanwhile_stays() {
    let mut script = Script::new(json!({"restartPolicy": "Always", "containers": [{"name": "a"}]}));
    let placed = json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let gate = |status: &str| json!({"type": "example.com/gate", "status": status});
    script.pod.set(&["metadata", "generation"], 2i64);
    script.pod.set(&["status"], json!({"conditions": [placed, (gate("False"))]}));
    script.observed.addresses = vec!["10.1.0.9".into(), "fd00::9".into()];
    script.memory.resize_pending = Some(("Deferred".into(), "later".to_owned()));
    let kind = api::kinds::kinds().into_iter().find(|kind| kind.resource == Resource("pods")).unwrap();
    let write = |stored: &Value, status: &Value| {
        let patch = json!({"status": (super::status::patch_of(status))});
        meta::patch::strategic(stored, &patch, kind.of()).unwrap()
    };
    let condition = |pod: &Value, of_type: &str| {
        let found = pod["status"]["conditions"].items().iter().find(|one| one["type"].text() == of_type).cloned();
        found.unwrap_or_default()
    };
    // Nobody else writes: what is stored is what was to be told.
    script.pod = write(&script.pod, &script.status());
    let types = |pod: &Value| -> Vec<String> {
        pod["status"]["conditions"].items().iter().map(|one| one["type"].text().to_owned()).collect()
    };
    let own = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodResizePending"];
    assert_eq!(types(&script.pod), [&own[..], &["PodScheduled", "example.com/gate"]].concat());
    assert_eq!(condition(&script.pod, "PodScheduled")["observedGeneration"].as_int(), Some(2));
    assert_eq!(condition(&script.pod, "Ready")["reason"].text(), "ContainersNotReady");
    // While the next is on its way, somebody opens the gate, adds a condition, and names a node.
    script.set("a", seen("1", 0, SeenState::Running, 0));
    (script.memory.resize_pending, script.observed.addresses) = (None, vec!["10.1.0.9".into()]);
    let status = script.status();
    let mut stored = script.pod.clone();
    let theirs = json!([
        (gate("True")), {"type": "DisruptionTarget", "status": "True"}, {"type": "Ready", "status": "Unknown"}
    ]);
    let others = json!({"status": {"nominatedNodeName": "other", "conditions": theirs}});
    stored = meta::patch::strategic(&stored, &others, kind.of()).unwrap();
    let pod = write(&stored, &status);
    for of_type in ["example.com/gate", "DisruptionTarget", "Ready", "ContainersReady"] {
        assert_eq!(condition(&pod, of_type)["status"].text(), "True", "{of_type}");
    }
    assert!(condition(&pod, "Ready").get("reason").is_none(), "it is ready, for no reason");
    assert!(condition(&pod, "PodResizePending").is_null());
    assert_eq!(pod["status"]["nominatedNodeName"].text(), "other");
    assert_eq!(pod["status"]["podIPs"], json!([{"ip": "10.1.0.9"}]));
    assert_eq!(pod["status"]["containerStatuses"], status["containerStatuses"]);
}
