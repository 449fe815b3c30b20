//! Resource quotas: the limits in force and what is used of them, counted anew.

use std::collections::BTreeMap;

use cache::{Event, View};
use meta::{Quantity, Resource, Str, Value, json};
use reconcile::{Context, EVERYTHING, Outcome, Reconciler};

use crate::common::*;

pub struct ResourceQuotas;

impl Reconciler for ResourceQuotas {
    fn name(&self) -> &'static str {
        "resourcequota-controller"
    }

    fn watches(&self) -> &[Resource] {
        &[QUOTAS, PODS]
    }

    fn lives(&self) -> &[Resource] {
        &[EVERYTHING]
    }

    fn keys(&self, resource: Resource, event: &Event, view: &View, out: &mut Vec<Str>) {
        if resource == QUOTAS {
            out.extend(event.new.iter().map(key_of));
            return;
        }
        let Some(object) = event.new.as_ref().or(event.old.as_ref()) else { return };
        if object.namespace().is_empty() {
            return;
        }
        // What is made is added by admission in the same commit; what goes, or ends, is given back here.
        let ended = resource == PODS
            && event.new.as_ref().is_some_and(|pod| pod_facts(pod).phase.is_final())
            && event.old.as_ref().is_none_or(|pod| !pod_facts(pod).phase.is_final());
        if event.old.is_none() || event.new.is_none() || ended {
            out.extend(view.list(QUOTAS, object.namespace()).map(key_of));
        }
    }

    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome {
        let (namespace, name) = split(key);
        let Some(quota) = view.one(QUOTAS, namespace, name).filter(|quota| !is_deleting(quota)) else {
            return Outcome::Settled;
        };
        let value = quota.value();
        let hard = value["spec"]["hard"].clone();
        let mut used: BTreeMap<Str, Quantity> =
            hard.entries().keys().map(|name| (name.into(), Quantity::from_int(0))).collect();
        for resource in view.resources().filter(|resource| counts(*resource, &hard)) {
            for object in view.list(resource, namespace) {
                let object = object.value();
                if !api::usage::in_scope(resource, &object, &value["spec"]) {
                    continue;
                }
                for (name, amount) in api::usage::of(resource, &object) {
                    if let Some(known) = used.get_mut(&name) {
                        *known = known.plus(&amount);
                    }
                }
            }
        }
        let used: Value = Value::Map(used.into_iter().collect());
        write_status(cx, quota, &value, json!({"hard": hard, "used": used}));
        Outcome::Settled
    }
}

/// Whether a limit can depend on objects of `resource`.
fn counts(resource: Resource, hard: &Value) -> bool {
    hard.entries().keys().any(|name| match name.strip_prefix("count/") {
        Some(counted) => counted == resource.0,
        None => match resource.0 {
            "pods" => !name.starts_with("services") && !name.contains("storageclass.storage.k8s.io"),
            "services" => name.starts_with("services"),
            "persistentvolumeclaims" => name.contains("storage") || name.contains("persistentvolumeclaims"),
            plural => name == plural,
        },
    })
}
