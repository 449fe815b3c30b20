//! `POST pods/NAME/eviction`: a deletion that respects disruption budgets.

use std::sync::Arc;

use api::core::disruption_target::{DISRUPTION_TARGET, Taker, disruption_target, is_disruption_target};
use meta::{Object, Reason, Resource, Selector, Status, Value, json};

use crate::Server;
use crate::storage::{Write, WriteError};
use crate::verbs::delete::{Deleted, delete_one};
use crate::verbs::options::DeleteOptions;
use crate::verbs::{Call, Outcome};

const BUDGETS: Resource = Resource("poddisruptionbudgets.policy");
const TRIES: usize = 20;
/// Pods that a budget remembers as on their way out; more would mean that nobody deletes them.
const DISRUPTED_MAX: usize = 2000;

pub async fn evict(server: &Arc<Server>, call: &Call<'_>, eviction: Value) -> Result<Outcome, Status> {
    let name = &call.auth.info.name;
    let body = &eviction["deleteOptions"];
    let mut options = DeleteOptions::of(&crate::request::Query::default(), (!body.is_null()).then_some(body))?;
    options.dry_run |= call.options.dry_run;
    let pod =
        server.one(call.kind.resource, call.namespace(), name).ok_or_else(|| Status::not_found("", "pods", name))?;
    let asked = eviction.at(&["metadata", "name"]).text();
    if asked != name {
        return Err(Status::bad_request(format!(
            "name in URL does not match name in Eviction object: {name} != {asked}"
        )));
    }
    if !passes_freely(&pod) {
        take_from_budget(server, call, &pod, options.dry_run).await?;
    }
    if !options.dry_run {
        tell(server, call, name).await?;
    }
    match delete_one(server, call, name, &options).await? {
        Deleted::Gone(_) | Deleted::Waits(_) => {}
    }
    let value = json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success", "code": 201});
    Ok(Outcome { code: 201, value, stored: None, warnings: Vec::new() })
}

/// Says on the pod why it goes, so that its controller does not take it for a failure of its own
/// (`addConditionAndDeletePod` of upstream's eviction).
async fn tell(server: &Arc<Server>, call: &Call<'_>, name: &str) -> Result<(), Status> {
    for _ in 0..TRIES {
        let Some(pod) = server.one(call.kind.resource, call.namespace(), name) else { return Ok(()) };
        let mut value = pod.value();
        if is_disruption_target(&value["status"]) {
            return Ok(());
        }
        let mut conditions = value.at(&["status", "conditions"]).items().to_vec();
        conditions.retain(|one| one["type"].text() != DISRUPTION_TARGET);
        conditions.push(disruption_target(Taker::Eviction, &pod, call.now));
        value.set(&["status", "conditions"], conditions);
        let write = Write::Put { resource: call.kind.resource, object: value, expect: pod.revision(), lease: None };
        match server.storage.commit(vec![write]).await {
            Ok(_) => return Ok(()),
            Err(WriteError::Stale { .. }) => {}
            Err(WriteError::Failed(status)) => return Err(status),
        }
    }
    Err(Status::new(Reason::TooManyRequests, "the pod changes too fast, please try again").retry_after(1))
}

/// Pods that serve nothing (finished, never started, going already) are outside of any budget.
fn passes_freely(pod: &Object) -> bool {
    let value = pod.value();
    pod.facts().deleting.is_some()
        || matches!(value.at(&["status", "phase"]).text(), "Succeeded" | "Failed" | "Pending" | "")
}

fn is_ready(pod: &Object) -> bool {
    let value = pod.value();
    let conditions = value.at(&["status", "conditions"]).items();
    conditions.iter().any(|condition| condition["type"].text() == "Ready" && condition["status"].text() == "True")
}

async fn take_from_budget(server: &Arc<Server>, call: &Call<'_>, pod: &Object, dry_run: bool) -> Result<(), Status> {
    for _ in 0..TRIES {
        let view = server.storage.mirror().view();
        let budgets: Vec<Object> = view
            .list(BUDGETS, pod.namespace())
            .filter(|budget| Selector::of(budget.value().at(&["spec", "selector"])).matches(pod.labels()))
            .cloned()
            .collect();
        let budget = match budgets.as_slice() {
            [] => return Ok(()),
            [budget] => budget,
            _ => {
                let message =
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
                return Err(Status::new(Reason::InternalError, message));
            }
        };
        let mut value = budget.value();
        let status = &value["status"];
        if !is_ready(pod) {
            let always = value.at(&["spec", "unhealthyPodEvictionPolicy"]).text() == "AlwaysAllow";
            let healthy = status["currentHealthy"].as_int().unwrap_or(0);
            let desired = status["desiredHealthy"].as_int().unwrap_or(0);
            // A pod that is not ready does not count as healthy, so losing it takes nothing from a budget that is met.
            if always || (healthy >= desired && desired > 0) {
                return Ok(());
            }
        }
        let observed = status["observedGeneration"].as_int().unwrap_or(0);
        if observed < budget.facts().generation {
            return Err(refused("The disruption budget is still being processed by the server.").retry_after(10));
        }
        let allowed = status["disruptionsAllowed"].as_int().unwrap_or(0);
        if allowed < 0 {
            return Err(Status::forbidden(
                "policy",
                "poddisruptionbudgets",
                budget.name(),
                "pdb disruptions allowed is negative",
            ));
        }
        if allowed == 0 {
            let message = format!(
                "The disruption budget {} needs {} healthy pods and has {} currently",
                budget.name(),
                status["desiredHealthy"].as_int().unwrap_or(0),
                status["currentHealthy"].as_int().unwrap_or(0)
            );
            return Err(refused(&message));
        }
        if status["disruptedPods"].entries().len() > DISRUPTED_MAX {
            let why = "DisruptedPods map too big - too many evictions not confirmed by PDB controller";
            return Err(Status::forbidden("policy", "poddisruptionbudgets", budget.name(), why));
        }
        if dry_run {
            return Ok(());
        }
        value.set(&["status", "disruptionsAllowed"], allowed - 1);
        value.set(&["status", "disruptedPods", pod.name()], call.now.rfc3339());
        let write = Write::Put { resource: BUDGETS, object: value, expect: budget.revision(), lease: None };
        match server.storage.commit(vec![write]).await {
            Ok(_) => return Ok(()),
            Err(WriteError::Stale { .. }) => {}
            Err(WriteError::Failed(status)) => return Err(status),
        }
    }
    Err(Status::new(Reason::TooManyRequests, "the disruption budget changes too fast, please try again").retry_after(1))
}

fn refused(message: &str) -> Status {
    let status =
        Status::new(Reason::TooManyRequests, "Cannot evict pod as it would violate the pod's disruption budget.");
    status.caused("DisruptionBudget", "", message)
}
