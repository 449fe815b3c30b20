//! Binding: the scheduler's word on where a pod runs.

use std::sync::Arc;

use meta::{Errors, Path, Status, Value, json};

use crate::Server;
use crate::verbs::update::{Edit, Edited, change};
use crate::verbs::{Call, Outcome};

struct Bind {
    binding: Value,
}

impl Edit for Bind {
    fn apply(&self, _: &Server, call: &Call<'_>, old: &Value) -> Result<Edited, Status> {
        let name = old.at(&["metadata", "name"]).text();
        let node = self.binding.at(&["target", "name"]).text();
        let meta = &self.binding["metadata"];
        let conflict = |why: String| Err(Status::conflict("", "pods/binding", name, why));
        let uid = meta["uid"].text();
        if !uid.is_empty() && uid != old.at(&["metadata", "uid"]).text() {
            return conflict(format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                old.at(&["metadata", "uid"]).text()
            ));
        }
        if old.at(&["metadata", "deletionTimestamp"]).as_str().is_some() {
            return conflict(format!("pod {name} is being deleted, cannot be assigned to a host"));
        }
        let bound = old.at(&["spec", "nodeName"]).text();
        if !bound.is_empty() {
            return conflict(format!("pod {name} is already assigned to node {bound:?}"));
        }
        if !old.at(&["spec", "schedulingGates"]).items().is_empty() {
            return conflict(format!("pod {name} has non-empty .spec.schedulingGates"));
        }
        let mut value = old.clone();
        value.set(&["spec", "nodeName"], node);
        for (key, text) in meta["annotations"].entries().iter() {
            value.set(&["metadata", "annotations", key], text.clone());
        }
        let now = call.now.rfc3339();
        let conditions = value.make(&["status", "conditions"]).make_list();
        match conditions.iter_mut().find(|condition| condition["type"].text() == "PodScheduled") {
            Some(condition) if condition["status"].text() == "True" => {}
            Some(condition) => {
                let map = condition.make_map();
                map.insert("status", "True");
                map.insert("lastTransitionTime", now);
                map.remove("reason");
                map.remove("message");
                map.remove("observedGeneration");
            }
            None => conditions.push(json!({
                "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now,
            })),
        }
        Ok(Edited { value, warnings: Vec::new(), owned: false })
    }
}

/// `POST pods/NAME/binding`.
pub async fn bind(server: &Arc<Server>, call: &Call<'_>, binding: Value) -> Result<Outcome, Status> {
    check(call, &binding)?;
    let outcome = change(server, call, &Bind { binding }).await?;
    let value = json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success", "code": 201});
    Ok(Outcome { code: 201, value, stored: None, warnings: outcome.warnings })
}

/// `POST bindings`, the older form: the pod's name stands in the body.
pub async fn create(server: &Arc<Server>, call: &Call<'_>, binding: Value) -> Result<Outcome, Status> {
    let registry = server.storage.registry();
    let pods = registry.find("", "v1", "pods").ok_or_else(crate::dispatch::no_such_resource)?;
    let mut info = call.auth.info.clone();
    info.name = binding.at(&["metadata", "name"]).text().into();
    (info.resource, info.subresource) = ("pods".into(), "binding".into());
    let auth = call.auth.narrowed(info);
    let call = Call { auth: &auth, kind: pods, options: call.options, now: call.now };
    bind(server, &call, binding).await
}

fn check(call: &Call<'_>, binding: &Value) -> Result<(), Status> {
    if binding.at(&["metadata", "name"]).text() != call.auth.info.name {
        return Err(Status::bad_request("name in URL does not match name in Binding object"));
    }
    let mut errors = Errors::default();
    let target = Path::ROOT;
    let target = target.field("target");
    let kind = binding.at(&["target", "kind"]);
    if !matches!(kind.text(), "" | "Node") {
        errors.not_supported(&meta::At { value: kind, path: target.field("kind") }, &["Node", "<empty>"]);
    }
    if binding.at(&["target", "name"]).text().is_empty() {
        errors.required(&target.field("name"), "");
    }
    if !errors.is_empty() {
        return Err(Status::invalid("", "Binding", &call.auth.info.name, &errors));
    }
    Ok(())
}
