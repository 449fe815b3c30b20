//! Binding: the scheduler's word on where a pod runs.

use std::sync::Arc;

use meta::{Errors, Object, Path, Status, Value, json};

use crate::Server;
use crate::storage::{Write, WriteError};
use crate::verbs::{Call, Outcome};

/// Tries when others change the pod at the same time.
const TRIES: usize = 16;

/// The pod on its node, or why it may not go there.
fn assigned(call: &Call<'_>, pod: &Object, binding: &Value) -> Result<Value, Status> {
    let name = pod.name();
    let node = binding.at(&["target", "name"]).text();
    let meta = &binding["metadata"];
    let conflict = |why: String| Err(Status::conflict("", "pods/binding", name, why));
    let uid = meta["uid"].text();
    if !uid.is_empty() && uid != pod.uid() {
        return conflict(format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", pod.uid()));
    }
    if pod.facts().deleting.is_some() {
        return conflict(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    let mut value = pod.value();
    let bound = value.at(&["spec", "nodeName"]).text();
    if !bound.is_empty() {
        return conflict(format!("pod {name} is already assigned to node {bound:?}"));
    }
    if !value.at(&["spec", "schedulingGates"]).items().is_empty() {
        return conflict(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    value.set(&["spec", "nodeName"], node);
    for (key, text) in meta["annotations"].entries().iter() {
        value.set(&["metadata", "annotations", key], text.clone());
    }
    let now = call.now.rfc3339();
    let conditions = value.make(&["status", "conditions"]).make_list();
    match conditions.make_mut().iter_mut().find(|condition| condition["type"].text() == "PodScheduled") {
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
    Ok(value)
}

/// `POST pods/NAME/binding`. The pod changes in two places that the binding says and that were free, so neither its
/// checks nor the ownership of its fields are gone through again; upstream does the same (`BindingREST.assignPod`).
pub async fn bind(server: &Arc<Server>, call: &Call<'_>, binding: Value) -> Result<Outcome, Status> {
    check(call, &binding)?;
    let (resource, namespace, name) = (call.kind.resource, call.namespace(), &call.auth.info.name);
    for _ in 0..TRIES {
        let pod = server.storage.mirror().one(resource, namespace, name).ok_or_else(|| call.not_found(name))?;
        let object = assigned(call, &pod, &binding)?;
        if !call.options.dry_run {
            let write = Write::Put { resource, object, expect: pod.revision(), lease: None };
            match server.storage.commit(vec![write]).await {
                Ok(_) => {}
                Err(WriteError::Stale { .. }) => continue,
                Err(WriteError::Failed(status)) => return Err(status),
            }
        }
        let value = json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success", "code": 201});
        return Ok(Outcome { code: 201, value, stored: None, warnings: Vec::new() });
    }
    Err(call.conflict(name))
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
