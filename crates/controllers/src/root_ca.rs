//! Publishes the cluster's root certificates as the config map `kube-root-ca.crt` in every namespace, and what else is to
//! be found beside the tokens of pods.

use cache::{Event, View};
use meta::{Resource, Str, Value, json};
use reconcile::{Context, Effect, Outcome, Reconciler};

use crate::common::{CONFIG_MAPS, NAMESPACES, is_deleting};

const NAME: &str = "kube-root-ca.crt";
/// The words are Kubernetes' own: programs find the map's purpose by them.
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
                           endpoints such as the internal service IP or kubernetes.default.svc. No other usage is \
                           guaranteed across distributions of Kubernetes clusters.";

pub struct RootCa {
    pub pem: String,
    /// Further config maps of every namespace, each with one key: name, key, text.
    pub also: Vec<(String, String, String)>,
}

impl RootCa {
    /// Name, key and text of all that is published.
    fn published(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        let root = (!self.pem.is_empty()).then_some((NAME, "ca.crt", self.pem.as_str()));
        root.into_iter().chain(self.also.iter().map(|(name, key, text)| (name.as_str(), key.as_str(), text.as_str())))
    }
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
        } else if self.published().any(|(name, ..)| object.name() == name) {
            out.push(object.namespace().into());
        }
    }

    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome {
        if view.one(NAMESPACES, "", key).is_none_or(is_deleting) {
            return Outcome::Settled;
        }
        for (name, file, text) in self.published() {
            let wanted = Value::Map([(file, Value::from(text))].into_iter().collect());
            match view.one(CONFIG_MAPS, key, name) {
                None => {
                    let mut object = json!({
                        "apiVersion": "v1", "kind": "ConfigMap",
                        "metadata": {"name": name, "namespace": key}, "data": wanted,
                    });
                    if name == NAME {
                        object.set(&["metadata", "annotations", "kubernetes.io/description"], DESCRIPTION);
                    }
                    cx.push(Effect::Create { resource: CONFIG_MAPS, object });
                }
                Some(found) => {
                    let mut value = found.value();
                    if value["data"] != wanted {
                        value.set(&["data"], wanted);
                        cx.push(Effect::Update { resource: CONFIG_MAPS, object: value });
                    }
                }
            }
        }
        Outcome::Settled
    }
}
