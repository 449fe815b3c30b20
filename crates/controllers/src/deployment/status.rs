//! What is told about a deployment: counts and conditions.

use base::Time;
use meta::{Value, json};
use reconcile::Context;

use super::{Look, Set};
use crate::common::*;

/// The part of a status that a rollout changes.
struct Counts {
    replicas: i64,
    updated: i64,
    ready: i64,
    available: i64,
    unavailable: i64,
    terminating: Option<i64>,
}

impl Counts {
    fn of(look: &Look) -> Counts {
        let sum = |field: &str| look.all().filter_map(|set| set.value["status"][field].as_int()).sum::<i64>();
        let terminating = |set: &Set| set.value["status"]["terminatingReplicas"].as_int();
        let available = sum("availableReplicas");
        Counts {
            replicas: sum("replicas"),
            updated: look.new.as_ref().and_then(|set| set.value["status"]["replicas"].as_int()).unwrap_or(0),
            ready: sum("readyReplicas"),
            available,
            unavailable: (look.total() - available).max(0),
            terminating: look.all().map(terminating).sum(),
        }
    }
}

/// Whether all pods are of the new template and serve.
pub fn is_complete(look: &Look) -> bool {
    let counts = Counts::of(look);
    counts.updated == look.replicas && counts.replicas == look.replicas && counts.available == look.replicas
}

/// Sets a condition of `conditions`; the same status and reason change nothing, the same status keeps its transition.
fn set(conditions: &mut Vec<Value>, of_type: &str, state: &str, reason: &str, message: &str, now: Time) {
    let known = conditions.iter().find(|one| one["type"].text() == of_type);
    if known.is_some_and(|known| known["status"].text() == state && known["reason"].text() == reason) {
        return;
    }
    let since = known.filter(|known| known["status"].text() == state).map(|known| known["lastTransitionTime"].clone());
    let now = now.rfc3339();
    let made = json!({
        "type": of_type, "status": state, "reason": reason, "message": message, "lastUpdateTime": (&now),
        "lastTransitionTime": (since.unwrap_or_else(|| (&now).into())),
    });
    conditions.retain(|one| one["type"].text() != of_type);
    conditions.push(made);
}

/// Notes a pause or its end in the condition `Progressing`. Says whether something had to be written.
pub fn write_paused(look: &Look, paused: bool, cx: &mut Context) -> bool {
    if look.value["spec"]["progressDeadlineSeconds"].is_null() {
        return false;
    }
    let known = condition(&look.value["status"], "Progressing")["reason"].text();
    if known == "ProgressDeadlineExceeded" {
        return false;
    }
    let (reason, message) = match (paused, known == "DeploymentPaused") {
        (true, false) => ("DeploymentPaused", "The rollout waits for the end of a pause"),
        (false, true) => ("DeploymentResumed", "The pause is over"),
        _ => return false,
    };
    let mut conditions = look.value["status"]["conditions"].items().to_vec();
    set(&mut conditions, "Progressing", "Unknown", reason, message, cx.now);
    let mut status = look.value["status"].clone();
    status.set(&["conditions"], Value::from(conditions));
    write_status(cx, &look.object, &look.value, status)
}

/// Writes the status. `rolling`: progress is watched too; `made`: the name of a set made in this pass.
pub fn write(look: &Look, rolling: bool, made: Option<String>, cx: &mut Context, again: &mut Option<Time>) {
    let (counts, known, now) = (Counts::of(look), &look.value["status"], cx.now);
    let mut conditions = known["conditions"].items().to_vec();
    let enough = look.replicas - look.limits.unavailable;
    if counts.available >= enough {
        let message = "Enough pods are available.";
        set(&mut conditions, "Available", "True", "MinimumReplicasAvailable", message, now);
    } else {
        let message = "Too few pods are available.";
        set(&mut conditions, "Available", "False", "MinimumReplicasUnavailable", message, now);
    }
    if rolling {
        match look.value["spec"]["progressDeadlineSeconds"].as_int() {
            Some(deadline) => progress(look, &counts, deadline, made, &mut conditions, now, again),
            None => conditions.retain(|one| one["type"].text() != "Progressing"),
        }
        let failure = look
            .new
            .iter()
            .chain(look.old.iter())
            .map(|set| condition(&set.value["status"], "ReplicaFailure"))
            .find(|one| !one.is_null());
        match failure {
            Some(one) => {
                let (state, reason, message) = (one["status"].text(), one["reason"].text(), one["message"].text());
                set(&mut conditions, "ReplicaFailure", state, reason, message, now);
            }
            None => conditions.retain(|one| one["type"].text() != "ReplicaFailure"),
        }
    }
    let mut status = json!({"observedGeneration": (look.object.facts().generation)});
    put_count(&mut status, "replicas", counts.replicas);
    put_count(&mut status, "updatedReplicas", counts.updated);
    put_count(&mut status, "readyReplicas", counts.ready);
    put_count(&mut status, "availableReplicas", counts.available);
    put_count(&mut status, "unavailableReplicas", counts.unavailable);
    if let Some(terminating) = counts.terminating {
        status.set(&["terminatingReplicas"], terminating);
    }
    if let Some(collisions) = known["collisionCount"].as_int() {
        status.set(&["collisionCount"], collisions);
    }
    status.set(&["conditions"], Value::from(conditions));
    // A write of the deployment itself in this pass would make this one fail; the next pass brings it.
    let busy = cx
        .effects
        .iter()
        .any(|effect| matches!(effect, reconcile::Effect::Update { resource, .. } if *resource == DEPLOYMENTS));
    if busy {
        if status != *known {
            sooner(again, now);
        }
        return;
    }
    write_status(cx, &look.object, &look.value, status);
}

fn progress(
    look: &Look,
    counts: &Counts,
    deadline_seconds: i64,
    made: Option<String>,
    conditions: &mut Vec<Value>,
    now: Time,
    again: &mut Option<Time>,
) {
    let known = &look.value["status"];
    let current = condition(known, "Progressing").clone();
    let reason = current["reason"].text();
    if counts.replicas == counts.updated && reason == "NewReplicaSetAvailable" && made.is_none() {
        return;
    }
    let name = made.as_deref().or(look.new.as_ref().map(|set| set.object.name())).unwrap_or(look.object.name());
    let before = |field: &str| known[field].as_int().unwrap_or(0);
    let old_pods = counts.replicas - counts.updated;
    let moved = counts.updated > before("updatedReplicas")
        || old_pods < before("replicas") - before("updatedReplicas")
        || counts.ready > before("readyReplicas")
        || counts.available > before("availableReplicas");
    if is_complete(look) && made.is_none() {
        let message = format!("ReplicaSet \"{name}\" is complete.");
        set(conditions, "Progressing", "True", "NewReplicaSetAvailable", &message, now);
        return;
    }
    if made.is_some() {
        let message = format!("ReplicaSet \"{name}\" was made.");
        set(conditions, "Progressing", "True", "NewReplicaSetCreated", &message, now);
    } else if current.is_null() {
        let message = format!("ReplicaSet \"{name}\" was found.");
        set(conditions, "Progressing", "True", "FoundNewReplicaSet", &message, now);
    } else if moved {
        let message = format!("ReplicaSet \"{name}\" moves on.");
        // Even if it said so before, the time of the update counts for the deadline.
        let since = (current["status"].text() == "True").then(|| current["lastTransitionTime"].clone());
        conditions.retain(|one| one["type"].text() != "Progressing");
        conditions.push(json!({
            "type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated", "message": message,
            "lastUpdateTime": (now.rfc3339()), "lastTransitionTime": (since.unwrap_or_else(|| now.rfc3339().into())),
        }));
    } else if !matches!(reason, "ProgressDeadlineExceeded" | "NewReplicaSetAvailable") {
        let since = Time::parse(current["lastUpdateTime"].text()).unwrap_or(now);
        let until = since.plus_ms(seconds_ms(deadline_seconds));
        if until < now {
            let message = format!("ReplicaSet \"{name}\" made no progress within {deadline_seconds} s.");
            set(conditions, "Progressing", "False", "ProgressDeadlineExceeded", &message, now);
            return;
        }
        // A second later, since times are kept in whole seconds.
        sooner(again, until.plus_ms(1000));
    }
    if made.is_some() || moved || current.is_null() {
        sooner(again, now.plus_ms(seconds_ms(deadline_seconds) + 1000));
    }
}
