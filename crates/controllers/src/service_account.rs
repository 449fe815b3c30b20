//! Makes the service account `default` in every namespace.

use cache::{Event, View};
use meta::{Resource, Str, json};
use reconcile::{Context, Effect, Outcome, Reconciler};

use crate::common::{NAMESPACES, SERVICE_ACCOUNTS, is_deleting};

pub struct ServiceAccounts;

impl Reconciler for ServiceAccounts {
    fn name(&self) -> &'static str {
        "service-account-controller"
    }

    fn watches(&self) -> &[Resource] {
        &[NAMESPACES, SERVICE_ACCOUNTS]
    }

    fn keys(&self, resource: Resource, event: &Event, _: &View, out: &mut Vec<Str>) {
        let Some(object) = event.new.as_ref().or(event.old.as_ref()) else { return };
        if resource == NAMESPACES {
            out.push(object.name().into());
        } else if event.new.is_none() && object.name() == "default" {
            out.push(object.namespace().into());
        }
    }

    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome {
        let active = view.one(NAMESPACES, "", key).is_some_and(|namespace| !is_deleting(namespace));
        if active && view.one(SERVICE_ACCOUNTS, key, "default").is_none() {
            let object = json!({
                "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": key},
            });
            cx.push(Effect::Create { resource: SERVICE_ACCOUNTS, object });
        }
        Outcome::Settled
    }
}
