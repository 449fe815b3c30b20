//! Publishes the cluster's root certificates as the config map `kube-root-ca.crt` in every namespace.

use cache::{Event, View};
use meta::{Resource, Str, json};
use reconcile::{Context, Effect, Outcome, Reconciler};

use crate::common::{CONFIG_MAPS, NAMESPACES, is_deleting};

const NAME: &str = "kube-root-ca.crt";
/// The words are Kubernetes' own: programs find the map's purpose by them.
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
                           endpoints such as the internal service IP or kubernetes.default.svc. No other usage is \
                           guaranteed across distributions of Kubernetes clusters.";

pub struct RootCa {
    pub pem: String,
}

impl Reconciler for RootCa {
    fn name(&self) -> &'static str {
        "root-ca-cert-publisher"
    }

    fn watches(&self) -> &[Resource] {
        &[NAMESPACES, CONFIG_MAPS]
    }

    fn keys(&self, resource: Resource, event: &Event, _: &View, out: &mut Vec<Str>) {
        let Some(object) = event.new.as_ref().or(event.old.as_ref()) else { return };
        if resource == NAMESPACES {
            out.push(object.name().into());
        } else if object.name() == NAME {
            out.push(object.namespace().into());
        }
    }

    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome {
        if self.pem.is_empty() || view.one(NAMESPACES, "", key).is_none_or(is_deleting) {
            return Outcome::Settled;
        }
        match view.one(CONFIG_MAPS, key, NAME) {
            None => {
                let object = json!({
                    "apiVersion": "v1", "kind": "ConfigMap",
                    "metadata": {
                        "name": NAME, "namespace": key,
                        "annotations": {"kubernetes.io/description": DESCRIPTION},
                    },
                    "data": {"ca.crt": (&self.pem)},
                });
                cx.push(Effect::Create { resource: CONFIG_MAPS, object });
            }
            Some(found) => {
                let mut value = found.value();
                let wanted = json!({"ca.crt": (&self.pem)});
                if value["data"] != wanted {
                    value.set(&["data"], wanted);
                    cx.push(Effect::Update { resource: CONFIG_MAPS, object: value });
                }
            }
        }
        Outcome::Settled
    }
}
