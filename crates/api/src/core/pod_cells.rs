//! The cells of a pod's row: its state in one word.

use base::Time;
use meta::Value;

use crate::columns::{age, human};

/// What the containers' states say of the pod.
struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<Time>,
}

pub fn cells(pod: &Value, now: Time) -> Vec<Value> {
    let summary = summary(pod);
    let restarts = match summary.last_restart {
        Some(time) if summary.restarts != 0 => {
            format!("{} ({} ago)", summary.restarts, human(now.seconds() - time.seconds()))
        }
        _ => summary.restarts.to_string(),
    };
    let status = &pod["status"];
    let or_none = |text: &str| Value::from(if text.is_empty() { "<none>" } else { text });
    let address = match status["podIPs"].items() {
        [first, ..] => first["ip"].text(),
        [] => status["podIP"].text(),
    };
    vec![
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        age(pod, now),
        or_none(address),
        or_none(pod.at(&["spec", "nodeName"]).text()),
        or_none(status["nominatedNodeName"].text()),
        gates(pod).into(),
    ]
}

fn gates(pod: &Value) -> String {
    let gates = pod.at(&["spec", "readinessGates"]).items();
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let conditions = pod.at(&["status", "conditions"]).items();
    let holds = |gate: &&Value| {
        conditions
            .iter()
            .find(|condition| condition["type"] == gate["conditionType"])
            .is_some_and(|condition| condition["status"].text() == "True")
    };
    format!("{}/{}", gates.iter().filter(holds).count(), gates.len())
}

fn ended(state: &Value) -> Option<Time> {
    Time::parse(state.at(&["lastState", "terminated", "finishedAt"]).text())
}

fn exit_words(terminated: &Value) -> String {
    match (terminated["reason"].text(), terminated["signal"].as_int().unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", terminated["exitCode"].as_int().unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn summary(pod: &Value) -> Summary {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let own = status["reason"].text();
    let mut found = Summary {
        reason: if own.is_empty() { status["phase"].text() } else { own }.to_owned(),
        ready: 0,
        total: spec["containers"].items().len(),
        restarts: 0,
        last_restart: None,
    };
    for condition in status["conditions"].items() {
        if condition["type"].text() == "PodScheduled" && condition["reason"].text() == "SchedulingGated" {
            found.reason = "SchedulingGated".to_owned();
        }
    }
    let sidecar = |name: &Value| {
        spec["initContainers"]
            .items()
            .iter()
            .any(|container| container["name"] == *name && container["restartPolicy"].text() == "Always")
    };
    found.total += spec["initContainers"].items().iter().filter(|container| sidecar(&container["name"])).count();
    let mut sidecars = (0, None);
    let initializing = init_states(status, spec, &sidecar, &mut found, &mut sidecars);
    let initialized = status["conditions"]
        .items()
        .iter()
        .any(|condition| condition["type"].text() == "Initialized" && condition["status"].text() == "True");
    if !initializing || initialized {
        (found.restarts, found.last_restart) = sidecars;
        main_states(status, &mut found);
    }
    if !pod.at(&["metadata", "deletionTimestamp"]).is_null() {
        match (status["reason"].text(), status["phase"].text()) {
            ("NodeLost", _) => found.reason = "Unknown".to_owned(),
            (_, "Succeeded" | "Failed") => {}
            _ => found.reason = "Terminating".to_owned(),
        }
    }
    found
}

/// The state of the first container that still has to begin; says whether there is one.
fn init_states(
    status: &Value,
    spec: &Value,
    sidecar: &dyn Fn(&Value) -> bool,
    found: &mut Summary,
    sidecars: &mut (i64, Option<Time>),
) -> bool {
    let mut initializing = false;
    for (at, container) in status["initContainerStatuses"].items().iter().enumerate() {
        let restarts = container["restartCount"].as_int().unwrap_or(0);
        found.restarts += restarts;
        found.last_restart = found.last_restart.max(ended(container));
        let is_sidecar = sidecar(&container["name"]);
        if is_sidecar {
            sidecars.0 += restarts;
            sidecars.1 = sidecars.1.max(ended(container));
        }
        let (terminated, waiting) = (container.at(&["state", "terminated"]), container.at(&["state", "waiting"]));
        if !terminated.is_null() && terminated["exitCode"].as_int().unwrap_or(0) == 0 {
            continue;
        }
        if is_sidecar && container["started"].is_true() {
            found.ready += usize::from(container["ready"].is_true());
            continue;
        }
        let waits = waiting["reason"].text();
        found.reason = if !terminated.is_null() {
            format!("Init:{}", exit_words(terminated))
        } else if !waits.is_empty() && waits != "PodInitializing" {
            format!("Init:{waits}")
        } else {
            format!("Init:{at}/{}", spec["initContainers"].items().len())
        };
        initializing = true;
        break;
    }
    initializing
}

fn main_states(status: &Value, found: &mut Summary) {
    let mut running = false;
    for container in status["containerStatuses"].items().iter().rev() {
        found.restarts += container["restartCount"].as_int().unwrap_or(0);
        found.last_restart = found.last_restart.max(ended(container));
        let state = &container["state"];
        let waits = state["waiting"]["reason"].text();
        if !waits.is_empty() {
            found.reason = waits.to_owned();
        } else if !state["terminated"].is_null() {
            found.reason = exit_words(&state["terminated"]);
        } else if container["ready"].is_true() && !state["running"].is_null() {
            running = true;
            found.ready += 1;
        }
    }
    if found.reason == "Completed" && running {
        let ready = status["conditions"]
            .items()
            .iter()
            .any(|condition| condition["type"].text() == "Ready" && condition["status"].text() == "True");
        found.reason = if ready { "Running" } else { "NotReady" }.to_owned();
    }
}

/// The names and images of a template's containers, and its selector in words: columns of the workloads.
pub fn containers_and_images(spec: &Value) -> [Value; 2] {
    let join = |key: &str| {
        let parts: Vec<&str> = spec["containers"].items().iter().map(|container| container[key].text()).collect();
        Value::from(parts.join(","))
    };
    [join("name"), join("image")]
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::json;

    #[test]
    fn words_of_states() {
        let terminated = |body: Value| json!({"terminated": (body)});
        for (status, word) in [
            (json!({"phase": "Pending"}), "Pending"),
            (json!({"phase": "Failed", "reason": "Evicted"}), "Evicted"),
            (
                json!({"phase": "Failed", "containerStatuses": [{"state": (terminated(json!({"exitCode": 3})))}]}),
                "ExitCode:3",
            ),
            (
                json!({"phase": "Failed", "containerStatuses": [{"state": (terminated(json!({"signal": 9})))}]}),
                "Signal:9",
            ),
            (
                json!({"phase": "Running", "containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
                "CrashLoopBackOff",
            ),
            (
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]}),
                "Init:0/1",
            ),
        ] {
            let pod =
                json!({"spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "i"}]}, "status": (status)});
            assert_eq!(cells(&pod, Time::ZERO)[1].text(), word);
        }
    }
}
