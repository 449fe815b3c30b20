//! The condition `Dangling` of flow schemas: whether the priority level that one names is there. Every server says it of what
//! it reads, in words that are the same on all.

use std::sync::Arc;

use base::Time;
use cache::View;
use client::{PatchType, Request};
use meta::{Object, Reason, Value, json};

use super::plan::{LEVELS, SCHEMAS};
use crate::{Server, local};

const DANGLING: &str = "Dangling";
/// Upstream's name for who says so.
const MANAGER: &str = "api-priority-and-fairness-config-consumer-v1";

/// Says of every schema what does not stand there yet; whether all could be said.
pub async fn tell(server: &Arc<Server>, view: &View) -> bool {
    let mut all = true;
    for schema in view.list(SCHEMAS, "") {
        let Some(condition) = missing(schema, view, server.now()) else { continue };
        let patch = json!({
            "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema",
            "metadata": {"name": (schema.name()), "uid": (schema.uid())}, "status": {"conditions": [condition]},
        });
        let request = Request::patch(SCHEMAS, "", schema.name(), PatchType::Apply, patch).on("status");
        let request = request.with(|options| {
            options.manager = MANAGER.into();
            options.force = true;
        });
        if let Err(status) = local::call(server, &local::system(), request).await {
            // Gone, or made anew: whoever looks next says what is to be said.
            if !matches!(status.reason(), Reason::NotFound | Reason::Conflict) {
                tracing::debug!("the flow schema {} is not told whether its level is there: {status}", schema.name());
                all = false;
            }
        }
    }
    all
}

/// The condition that a schema should have, unless it has it.
fn missing(schema: &Object, view: &View, now: Time) -> Option<Value> {
    let value = schema.value();
    let level = value.at(&["spec", "priorityLevelConfiguration", "name"]).text();
    let named = format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?}");
    let (status, reason, message) = match view.one(LEVELS, "", level) {
        Some(_) => ("False", "Found", format!("{named} and it exists")),
        None => ("True", "NotFound", format!("{named} but there is no such object")),
    };
    let told = value.at(&["status", "conditions"]).items().iter().find(|one| one["type"].text() == DANGLING);
    let same = told.is_some_and(|told| {
        (told["status"].text(), told["reason"].text(), told["message"].text()) == (status, reason, &message)
    });
    (!same).then(|| {
        json!({
            "type": DANGLING, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": (now.rfc3339()),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::tests::{level, schema, view};

    #[test]
    fn a_schema_without_its_level_dangles_and_what_is_told_is_not_told_again() {
        let view =
            view(&[level("small", 1, Value::map())], &[schema("a", 1, "small", "g"), schema("b", 2, "none", "g")]);
        let now = Time::from_seconds(1_800_000_000);
        for (name, status) in [("a", "False"), ("b", "True")] {
            let object = view.one(SCHEMAS, "", name).unwrap();
            let condition = missing(object, &view, now).unwrap();
            assert_eq!(condition["status"].text(), status, "{name}");
            let mut told = object.value();
            told.set(&["status", "conditions"], vec![condition]);
            let told = Object::new(meta::Facts::of(SCHEMAS, &told), told.to_json());
            assert_eq!(missing(&told, &view, now), None, "{name}");
        }
    }
}
