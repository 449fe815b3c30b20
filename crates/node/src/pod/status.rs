//! What is told about a pod: `status`, from the pod, what is observed and what is remembered.

use base::Time;
use meta::{Map, Str, Value, json};

use super::decide::{all_containers, init_failed, is_over, policy_of, restarts};
use super::worker::{RESIZE_IN_PROGRESS, RESIZE_PENDING};
use super::{Memory, Observed, ProbeKind, Seen, SeenState, is_sidecar};

/// What others tell of a pod in its status.
const OF_OTHERS: [&str; 3] = ["qosClass", "nominatedNodeName", "resize"];
/// The conditions that a node tells. One of them that it tells no more goes.
const CONDITIONS: [&str; 6] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", RESIZE_PENDING, RESIZE_IN_PROGRESS];
const PLACED: &str = "PodScheduled";

/// The whole status. `old` is the stored one; conditions keep their transition times, foreign conditions stay.
pub fn status(pod: &Value, old: &Value, observed: &Observed, memory: &Memory, host: &[Str], now: Time) -> Value {
    let mut status = Value::map();
    let spec = &pod["spec"];
    let init = container_statuses(spec["initContainers"].items(), pod, old, "initContainerStatuses", observed, memory);
    let main = container_statuses(spec["containers"].items(), pod, old, "containerStatuses", observed, memory);
    let ephemeral = container_statuses(
        spec["ephemeralContainers"].items(),
        pod,
        old,
        "ephemeralContainerStatuses",
        observed,
        memory,
    );
    let phase = phase(pod, old, observed, memory);
    status.set(&["phase"], phase);
    let start = Time::parse(old["startTime"].text()).or(memory.started).unwrap_or(now);
    status.set(&["startTime"], start.rfc3339());
    set_addresses(&mut status, spec, old, observed, host);
    if let Some(generation) = pod.at(&["metadata", "generation"]).as_int() {
        status.set(&["observedGeneration"], generation);
    }
    for (key, statuses) in
        [("initContainerStatuses", &init), ("containerStatuses", &main), ("ephemeralContainerStatuses", &ephemeral)]
    {
        // What the node refused never had containers: their words would hide the reason.
        let refused = memory.doom.is_some() && observed.containers.is_empty() && old[key].is_null();
        if !statuses.is_empty() && !refused {
            status.set(&[key], statuses.clone());
        }
    }
    for key in OF_OTHERS {
        if let Some(value) = old.get(key) {
            status.set(&[key], value.clone());
        }
    }
    if let Some((reason, message)) = &memory.doom {
        status.set(&["reason"], reason);
        status.set(&["message"], message.as_str());
    }
    let conditions = conditions(pod, old, observed, memory, phase, &init, &main, now);
    status.set(&["conditions"], conditions);
    status
}

/// What makes a stored status say what `status` does, as a strategic patch that says nothing of what is others': they may
/// write at the same moment, and what they wrote is not known here yet.
pub fn patch_of(status: &Value) -> Value {
    let mut patch = Map::new();
    for (key, value) in status.entries().iter().filter(|(key, _)| !OF_OTHERS.contains(key)) {
        match key {
            "conditions" => {
                patch.insert(key, own_conditions(value.items()));
                let order = value.items().iter().map(|one| json!({"type": (one["type"].clone())}));
                patch.insert("$setElementOrder/conditions", order.collect::<Vec<_>>());
            }
            // Merged by their addresses they would keep those that are no more.
            "hostIPs" | "podIPs" => drop(patch.insert(key, replacing(value))),
            _ => drop(patch.insert(key, value.clone())),
        }
    }
    Value::Map(patch)
}

/// A list that takes the place of another in a strategic patch, where the two would be merged.
pub fn replacing(list: &Value) -> Value {
    std::iter::once(json!({"$patch": "replace"})).chain(list.items().iter().cloned()).collect::<Vec<_>>().into()
}

/// What is to become of the conditions that are the node's.
fn own_conditions(all: &[Value]) -> Vec<Value> {
    let own = all.iter().filter_map(|one| match one["type"].text() {
        // Another's, but for the generation that it is said of.
        PLACED => one.get("observedGeneration").map(|at| json!({"type": PLACED, "observedGeneration": (at.clone())})),
        of_type => CONDITIONS.contains(&of_type).then(|| {
            let mut one = one.clone();
            // What is merged keeps what is not spoken of.
            ["reason", "message"].into_iter().for_each(|key| one.default(key, Value::Null));
            one
        }),
    });
    let over = CONDITIONS.iter().filter(|of_type| !all.iter().any(|one| one["type"].text() == **of_type));
    own.chain(over.map(|of_type| json!({"type": (*of_type), "$patch": "delete"}))).collect()
}

fn set_addresses(status: &mut Value, spec: &Value, old: &Value, observed: &Observed, host: &[Str]) {
    let list = |addresses: &[Str]| -> Value {
        addresses.iter().map(|address| json!({"ip": address})).collect::<Vec<_>>().into()
    };
    if let Some(first) = host.first() {
        status.set(&["hostIP"], first);
        status.set(&["hostIPs"], list(host));
    }
    let own = if spec["hostNetwork"].is_true() { host } else { &observed.addresses };
    match own.first() {
        Some(first) if observed.sandbox || spec["hostNetwork"].is_true() => {
            status.set(&["podIP"], first);
            status.set(&["podIPs"], list(own));
        }
        _ => {
            for key in ["podIP", "podIPs"] {
                if let Some(value) = old.get(key) {
                    status.set(&[key], value.clone());
                }
            }
        }
    }
}

/// `Pending`, `Running`, `Succeeded` or `Failed`; the last two are for ever.
fn phase(pod: &Value, old: &Value, observed: &Observed, memory: &Memory) -> &'static str {
    match old["phase"].text() {
        "Succeeded" => return "Succeeded",
        "Failed" => return "Failed",
        _ => {}
    }
    let containers = pod.at(&["spec", "containers"]).items();
    let seen: Vec<Option<&Seen>> = containers.iter().map(|container| begun(observed, container)).collect();
    let running = seen.iter().flatten().any(|seen| seen.state != SeenState::Exited);
    if memory.doom.is_some() {
        return if running { "Running" } else { "Failed" };
    }
    if init_failed(pod, observed) {
        return "Failed";
    }
    if is_over(pod, observed) {
        return match seen.iter().flatten().all(|seen| seen.exit_code == 0) {
            true => "Succeeded",
            false => "Failed",
        };
    }
    if seen.iter().any(Option::is_none) {
        return if seen.iter().flatten().next().is_some() { "Running" } else { "Pending" };
    }
    // A pod that is being deleted and whose containers have all ended will not come back.
    let deleting = pod.at(&["metadata", "deletionTimestamp"]).as_str().is_some();
    if deleting && !running {
        return match seen.iter().flatten().all(|seen| seen.exit_code == 0) {
            true => "Succeeded",
            false => "Failed",
        };
    }
    "Running"
}

fn container_statuses(
    containers: &[Value],
    pod: &Value,
    old: &Value,
    key: &str,
    observed: &Observed,
    memory: &Memory,
) -> Vec<Value> {
    containers
        .iter()
        .map(|container| {
            let name = container["name"].text();
            let told = old[key].items().iter().find(|old| old["name"].text() == name).cloned().unwrap_or_default();
            container_status(container, pod, &told, old["phase"].text(), observed, memory)
        })
        .collect()
}

fn container_status(
    container: &Value,
    pod: &Value,
    old: &Value,
    old_phase: &str,
    observed: &Observed,
    memory: &Memory,
) -> Value {
    let name = container["name"].text();
    let seen = begun(observed, container);
    let own = memory.containers.get(name);
    let mut status = json!({
        "name": name, "image": (container["image"].clone()), "imageID": "", "ready": false, "restartCount": 0i64,
        "started": false,
    });
    let running = seen.filter(|seen| seen.state == SeenState::Running);
    if let Some(seen) = seen {
        status.set(&["restartCount"], i64::from(seen.attempt));
        status.set(&["containerID"], format!("gantry://{}", seen.id));
        status.set(&["imageID"], &seen.image_id);
    } else {
        for key in ["restartCount", "imageID", "containerID"] {
            if let Some(value) = old.get(key) {
                status.set(&[key], value.clone());
            }
        }
    }
    let verdict = |kind: ProbeKind| -> Option<Option<bool>> {
        container.get(kind.key())?;
        let state = own.and_then(|own| own.probes.get(&kind));
        Some(state.filter(|state| running.is_some_and(|seen| seen.id == state.id)).and_then(|state| state.verdict))
    };
    let started = running.is_some() && verdict(ProbeKind::Startup).is_none_or(|verdict| verdict == Some(true));
    let ready = started && verdict(ProbeKind::Readiness).is_none_or(|verdict| verdict == Some(true));
    let is_init = pod.at(&["spec", "initContainers"]).items().iter().any(|init| init["name"].text() == name);
    let passes = is_init && !is_sidecar(container);
    let done = seen.is_some_and(|seen| seen.state == SeenState::Exited && seen.exit_code == 0);
    // One that has to end is ready when it has, not while it runs.
    status.set(&["ready"], if passes { done } else { ready });
    status.set(&["started"], started);
    tell_resources(&mut status, container, old, running);
    if let Some(mounts) = told_mounts(container) {
        status.set(&["volumeMounts"], mounts);
    }
    let (state, last) = states(container, pod, old, seen, observed.previous.get(name), own, old_phase);
    status.set(&["state"], state);
    status.set(&["lastState"], last);
    status
}

/// `resources` are those in force: the spec's, but for one that runs with others yet.
fn tell_resources(status: &mut Value, container: &Value, old: &Value, running: Option<&Seen>) {
    let spec = &container["resources"];
    let waits = running.is_some_and(|seen| super::decide::resize(container, seen).is_some());
    let told = if waits { &old["resources"] } else { spec };
    status.set(&["resources"], if told.is_null() { Value::map() } else { told.clone() });
    if running.is_some() && !spec["requests"].entries().is_empty() {
        status.set(&["allocatedResources"], spec["requests"].clone());
    }
}

/// The mounts as the kubelet tells them (`ContainerStatus.volumeMounts`); nothing without any.
fn told_mounts(container: &Value) -> Option<Value> {
    let mounts = container["volumeMounts"].items().iter().map(|mount| {
        let mut told = json!({"name": (mount["name"].clone()), "mountPath": (mount["mountPath"].clone())});
        if mount["readOnly"].is_true() {
            told.set(&["readOnly"], true);
            let recursive = match mount["recursiveReadOnly"].text() {
                "" => "Disabled",
                "IfPossible" => "Enabled",
                policy => policy,
            };
            told.set(&["recursiveReadOnly"], recursive);
        }
        told
    });
    let mounts: Vec<Value> = mounts.collect();
    (!mounts.is_empty()).then(|| mounts.into())
}

/// The container, if it was ever started: one that is made is about to be, and nothing is told of it yet.
fn begun<'a>(observed: &'a Observed, container: &Value) -> Option<&'a Seen> {
    observed.containers.get(container["name"].text()).filter(|seen| seen.state != SeenState::Created)
}

fn terminated(seen: &Seen) -> Value {
    let mut state = json!({
        "exitCode": (i64::from(seen.exit_code)), "reason": (&seen.reason),
        "containerID": (format!("gantry://{}", seen.id)),
    });
    for (key, time) in [("startedAt", seen.started), ("finishedAt", seen.finished)] {
        state.set(&[key], time.map_or(Value::Null, |time| time.rfc3339().into()));
    }
    if seen.signal != 0 {
        state.set(&["signal"], i64::from(seen.signal));
    }
    if !seen.message.is_empty() {
        state.set(&["message"], &seen.message);
    }
    json!({"terminated": state})
}

fn waiting(reason: &str, message: &str) -> Value {
    let mut state = json!({"reason": reason});
    if !message.is_empty() {
        state.set(&["message"], message);
    }
    json!({"waiting": state})
}

/// `state` and `lastState`.
fn states(
    container: &Value,
    pod: &Value,
    old: &Value,
    seen: Option<&Seen>,
    previous: Option<&Seen>,
    own: Option<&super::ContainerMemory>,
    old_phase: &str,
) -> (Value, Value) {
    let last = previous.map_or_else(|| old.get("lastState").cloned().unwrap_or_else(Value::map), terminated);
    let failure = own.and_then(|own| own.failure.as_ref());
    match seen {
        Some(seen) if seen.state == SeenState::Running => {
            let since = seen.started.map_or(Value::Null, |time| time.rfc3339().into());
            (json!({"running": {"startedAt": since}}), last)
        }
        Some(seen) if seen.state == SeenState::Exited => {
            let comes_again = restarts(container, policy_of(pod), seen.exit_code);
            let is_init =
                pod.at(&["spec", "initContainers"]).items().iter().any(|init| init["name"] == container["name"]);
            let done = is_init && !is_sidecar(container) && seen.exit_code == 0;
            let deleting = pod.at(&["metadata", "deletionTimestamp"]).as_str().is_some();
            match failure {
                Some(failure) => (waiting(&failure.reason, &failure.message), terminated(seen)),
                None if comes_again && !done && !deleting && own.is_some_and(|own| own.restarts > 1) => {
                    let pause = super::RESTART.delay_ms(own.map_or(0, |own| own.restarts.saturating_sub(1))) / 1000;
                    let message = format!(
                        "back-off {pause}s restarting failed container={} pod={}_{}({})",
                        container["name"].text(),
                        pod.at(&["metadata", "name"]).text(),
                        pod.at(&["metadata", "namespace"]).text(),
                        pod.at(&["metadata", "uid"]).text()
                    );
                    (waiting("CrashLoopBackOff", &message), terminated(seen))
                }
                None => (terminated(seen), last),
            }
        }
        _ => match failure {
            Some(failure) => {
                // The second and later tries wait for their turn.
                let again = own.is_some_and(|own| own.failures > 1) && failure.reason == "ErrImagePull";
                let reason = if again { "ImagePullBackOff" } else { failure.reason.as_str() };
                (waiting(reason, &failure.message), last)
            }
            None if is_final(pod, old_phase) && !old["state"].entries().is_empty() => last_words(old),
            None => {
                let last = if old["state"]["terminated"].is_null() { last } else { old["state"].clone() };
                let initialising = !pod.at(&["spec", "initContainers"]).items().is_empty();
                (waiting(if initialising { "PodInitializing" } else { "ContainerCreating" }, ""), last)
            }
        },
    }
}

/// Whether no container of the pod will start any more.
fn is_final(pod: &Value, old_phase: &str) -> bool {
    pod.at(&["metadata", "deletionTimestamp"]).as_str().is_some() || matches!(old_phase, "Succeeded" | "Failed")
}

/// `state` and `lastState` of a container that was taken away: what was told last; one that was never seen to end is
/// said to be lost (kubelet: `ContainerStatusUnknown`, exit code 137).
fn last_words(old: &Value) -> (Value, Value) {
    let last = old.get("lastState").cloned().unwrap_or_else(Value::map);
    if old["state"]["running"].is_null() {
        return (old["state"].clone(), last);
    }
    let lost = json!({"terminated": {
        "exitCode": 137i64, "reason": "ContainerStatusUnknown",
        "message": "The container could not be found when the pod ended. It was running before.",
        "startedAt": (old["state"]["running"]["startedAt"].clone()), "finishedAt": null,
        "containerID": (old["containerID"].clone()),
    }});
    (lost, last)
}

/// Reason and message of a resize that is under way: empty ones, unless it failed.
fn resizing<'a>(pod: &Value, observed: &Observed, memory: &'a Memory) -> Option<(&'static str, &'a str)> {
    if memory.resize_pending.is_some() {
        return None;
    }
    let is_resized = |container: &&Value| {
        let seen = begun(observed, container).filter(|seen| seen.state == SeenState::Running);
        seen.is_some_and(|seen| super::decide::resize(container, seen).is_some())
    };
    let told = all_containers(pod).filter(is_resized).map(|container| {
        let own = memory.containers.get(container["name"].text()).filter(|own| own.resize_failures > 0);
        own.map_or(("", ""), |own| ("Error", own.resize_error.as_str()))
    });
    // One that failed comes before those that are merely under way.
    told.max()
}

#[allow(clippy::too_many_arguments)]
fn conditions(
    pod: &Value,
    old: &Value,
    observed: &Observed,
    memory: &Memory,
    phase: &str,
    init: &[Value],
    main: &[Value],
    now: Time,
) -> Value {
    let over = matches!(phase, "Succeeded" | "Failed");
    let unready: Vec<&str> = main.iter().filter(|one| !one["ready"].is_true()).map(|one| one["name"].text()).collect();
    let unfinished: Vec<&str> =
        init.iter().filter(|one| !one["ready"].is_true()).map(|one| one["name"].text()).collect();
    let main_began =
        main.iter().any(|one| one["state"].get("running").is_some() || one["restartCount"].as_int() > Some(0));
    let initialised = unfinished.is_empty() || main_began || (phase == "Succeeded");
    let list = |what: &str, names: &[&str]| format!("containers with {what} status: [{}]", names.join(" "));
    let sidecars_ready = pod
        .at(&["spec", "initContainers"])
        .items()
        .iter()
        .filter(|one| is_sidecar(one))
        .all(|one| init.iter().any(|status| status["name"] == one["name"] && status["ready"].is_true()));
    let containers_ready = if over {
        ("False", if phase == "Succeeded" { "PodCompleted" } else { "PodFailed" }, String::new())
    } else if unready.is_empty() && sidecars_ready {
        ("True", "", String::new())
    } else {
        ("False", "ContainersNotReady", list("unready", &unready))
    };
    let gates = pod.at(&["spec", "readinessGates"]).items();
    let closed = gates.iter().map(|gate| gate["conditionType"].text()).find(|gate| {
        !old["conditions"].items().iter().any(|one| one["type"].text() == *gate && one["status"].text() == "True")
    });
    let ready = match closed {
        Some(_) if containers_ready.0 == "True" => {
            ("False", "ReadinessGatesNotReady", "the status of pod readiness gate is not \"True\"".to_owned())
        }
        _ => containers_ready.clone(),
    };
    let sandboxed = observed.sandbox_ready && memory.prepare_error.is_none();
    let mut wanted = vec![
        ("PodReadyToStartContainers", (if sandboxed { "True" } else { "False" }, "", String::new())),
        (
            "Initialized",
            match (initialised, over) {
                (true, true) => ("True", if phase == "Succeeded" { "PodCompleted" } else { "" }, String::new()),
                (true, false) => ("True", "", String::new()),
                (false, _) => ("False", "ContainersNotInitialized", list("incomplete", &unfinished)),
            },
        ),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
    ];
    if memory.doom.is_some() && over {
        for (_, value) in wanted.iter_mut().skip(2) {
            *value = ("False", "PodFailed", String::new());
        }
    }
    let known = old["conditions"].items();
    let mut all: Vec<Value> = wanted
        .into_iter()
        .map(|(of_type, (status, reason, message))| {
            let before = known.iter().find(|one| one["type"].text() == of_type);
            let since = match before {
                Some(before) if before["status"].text() == status => before["lastTransitionTime"].clone(),
                _ => now.rfc3339().into(),
            };
            let mut condition: Map = Map::new();
            condition.insert("type", of_type);
            condition.insert("status", status);
            condition.insert("lastProbeTime", Value::Null);
            condition.insert("lastTransitionTime", since);
            if !reason.is_empty() {
                condition.insert("reason", reason);
            }
            if !message.is_empty() {
                condition.insert("message", message);
            }
            if let Some(generation) = pod.at(&["metadata", "generation"]).as_int() {
                condition.insert("observedGeneration", generation);
            }
            Value::Map(condition)
        })
        .collect();
    if let Some((reason, message)) = &memory.resize_pending {
        let before = known.iter().find(|one| one["type"].text() == RESIZE_PENDING);
        let since = before.map_or_else(|| now.rfc3339().into(), |before| before["lastTransitionTime"].clone());
        all.push(json!({
            "type": RESIZE_PENDING, "status": "True", "lastProbeTime": (Value::Null), "lastTransitionTime": since,
            "reason": reason, "message": message, "observedGeneration": (pod.at(&["metadata", "generation"]).clone()),
        }));
    }
    if let Some((reason, message)) = resizing(pod, observed, memory).filter(|_| !over) {
        let before = known.iter().find(|one| one["type"].text() == RESIZE_IN_PROGRESS);
        let generation = pod.at(&["metadata", "generation"]);
        let is_same = |before: &&Value| before["observedGeneration"] == *generation;
        let since =
            before.filter(is_same).map_or_else(|| now.rfc3339().into(), |one| one["lastTransitionTime"].clone());
        let mut condition = json!({
            "type": RESIZE_IN_PROGRESS, "status": "True", "lastProbeTime": (Value::Null), "lastTransitionTime": since,
            "observedGeneration": (generation.clone()),
        });
        for (key, text) in [("reason", reason), ("message", message)] {
            if !text.is_empty() {
                condition.set(&[key], text);
            }
        }
        all.push(condition);
    }
    all.extend(known.iter().filter(|one| !CONDITIONS.contains(&one["type"].text())).cloned());
    // That it is placed holds of every generation that its node sees.
    let placed = all.iter_mut().find(|one| one["type"].text() == PLACED && one["status"].text() == "True");
    if let (Some(placed), Some(generation)) = (placed, pod.at(&["metadata", "generation"]).as_int()) {
        placed.set(&["observedGeneration"], generation);
    }
    all.into()
}
