//! Lets go of volumes, claims and classes of attributes that are being deleted once nobody uses them: their finalizer,
//! which admission gave them, is taken away.

use api::core::volume_binding::{CLAIMS, VOLUMES, claims_of};
use cache::{Event, View};
use meta::{Object, Resource, Str};
use reconcile::{Context, Effect, Outcome, Reconciler};

use crate::common::{PODS, is_deleting, key_of, sides, split};

const CLASSES: Resource = Resource("volumeattributesclasses.storage.k8s.io");

/// One protected resource: what guards it and when it is in use.
pub struct StorageProtection {
    name: &'static str,
    protected: Resource,
    finalizer: &'static str,
    watches: &'static [Resource],
    is_used: fn(&View, &Object) -> bool,
}

impl StorageProtection {
    /// A claim is in use while a pod that was placed mounts it.
    pub fn of_claims() -> StorageProtection {
        StorageProtection {
            name: "pvc-protection-controller",
            protected: CLAIMS,
            finalizer: "kubernetes.io/pvc-protection",
            watches: &[CLAIMS, PODS],
            is_used: |view, claim| {
                view.list(PODS, claim.namespace()).any(|pod| {
                    let value = pod.value();
                    !value.at(&["spec", "nodeName"]).text().is_empty()
                        && claims_of(pod.name(), &value).contains(&claim.name().into())
                })
            },
        }
    }

    /// A volume is in use while it is bound.
    pub fn of_volumes() -> StorageProtection {
        StorageProtection {
            name: "pv-protection-controller",
            protected: VOLUMES,
            finalizer: "kubernetes.io/pv-protection",
            watches: &[VOLUMES],
            is_used: |_, volume| volume.value().at(&["status", "phase"]).text() == "Bound",
        }
    }

    /// A class is in use while a claim asks for it or a volume has it.
    pub fn of_classes() -> StorageProtection {
        StorageProtection {
            name: "volumeattributesclass-protection-controller",
            protected: CLASSES,
            finalizer: "kubernetes.io/vac-protection",
            watches: &[CLASSES, CLAIMS, VOLUMES],
            is_used: |view, class| {
                let names = |object: &Object| {
                    let value = object.value();
                    let at = [&["spec"][..], &["status"]].map(|path| value.at(path));
                    let keys = ["volumeAttributesClassName", "currentVolumeAttributesClassName"];
                    at.iter().any(|part| keys.iter().any(|key| part[*key].text() == class.name()))
                };
                view.list(CLAIMS, "").any(names) || view.list(VOLUMES, "").any(names)
            },
        }
    }
}

impl Reconciler for StorageProtection {
    fn name(&self) -> &'static str {
        self.name
    }

    fn watches(&self) -> &[Resource] {
        self.watches
    }

    fn keys(&self, resource: Resource, event: &Event, view: &View, out: &mut Vec<Str>) {
        if resource == self.protected {
            out.extend(event.new.iter().filter(|object| is_deleting(object)).map(key_of));
            return;
        }
        // A user that changes or goes may free any that is being deleted.
        let namespaces: Vec<&str> = match self.protected {
            CLAIMS => sides(event).map(Object::namespace).collect(),
            _ => vec![""],
        };
        for namespace in namespaces {
            out.extend(view.list(self.protected, namespace).filter(|object| is_deleting(object)).map(key_of));
        }
        out.dedup();
    }

    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome {
        let (namespace, name) = split(key);
        let Some(object) = view.one(self.protected, namespace, name).filter(|object| is_deleting(object)) else {
            return Outcome::Settled;
        };
        let held = object.facts().finalizers.iter().any(|finalizer| finalizer == self.finalizer);
        if !held || (self.is_used)(view, object) {
            return Outcome::Settled;
        }
        let mut value = object.value();
        value.make(&["metadata", "finalizers"]).make_list().retain(|finalizer| finalizer.text() != self.finalizer);
        cx.push(Effect::Update { resource: self.protected, object: value });
        Outcome::Settled
    }
}
