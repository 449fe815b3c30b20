//! Makes the claims of pods' own (ephemeral) volumes. They are owned by their pods, and go with them.

use api::core::volume_binding::{CLAIMS, claim_of};
use cache::{Event, View};
use meta::{Object, Resource, Str, Value};
use reconcile::{Context, Effect, Outcome, Reconciler};

use crate::common::*;

pub struct EphemeralVolumes;

impl Reconciler for EphemeralVolumes {
    fn name(&self) -> &'static str {
        "ephemeral-volume-controller"
    }

    fn watches(&self) -> &[Resource] {
        &[CLAIMS]
    }

    fn lives(&self) -> &[Resource] {
        &[PODS]
    }

    fn keys(&self, resource: Resource, event: &Event, _: &View, out: &mut Vec<Str>) {
        if resource == PODS {
            let pods = event.new.iter().filter(|pod| pod_facts(pod).has_own_claims);
            out.extend(pods.map(key_of));
        } else if event.new.is_none() {
            // A claim that was deleted while its pod goes on is made anew.
            owner_keys(event, "Pod", out);
        }
    }

    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome {
        let (namespace, name) = split(key);
        let Some(pod) = view.one(PODS, namespace, name).filter(|pod| !is_deleting(pod)) else {
            return Outcome::Settled;
        };
        let value = pod.value();
        for volume in value.at(&["spec", "volumes"]).items().iter().filter(|volume| volume.get("ephemeral").is_some()) {
            let Some(claim) = claim_of(name, volume) else { continue };
            match view.one(CLAIMS, namespace, &claim) {
                Some(known) if controlled_by(known, pod.uid()) => {}
                Some(_) => {
                    let message = format!("PVC {namespace}/{claim} was not created for pod {key} (pod is not owner)");
                    record(
                        cx,
                        self.name(),
                        POD,
                        pod,
                        "Warning",
                        "FailedBinding",
                        format!("ephemeral volume: {message}"),
                    );
                }
                None => cx.push(Effect::Create { resource: CLAIMS, object: claim_for(pod, volume, &claim) }),
            }
        }
        Outcome::Settled
    }
}

fn claim_for(pod: &Object, volume: &Value, name: &str) -> Value {
    let template = volume.at(&["ephemeral", "volumeClaimTemplate"]);
    let mut claim = meta::json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"namespace": (pod.namespace()), "name": name, "ownerReferences": [(reference(POD, pod))]},
        "spec": (template["spec"].clone()),
    });
    for key in ["labels", "annotations"] {
        if let Some(value) = template["metadata"].get(key) {
            claim.set(&["metadata", key], value.clone());
        }
    }
    claim
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::World;

    #[test]
    fn a_pod_has_a_claim_of_its_own() {
        let mut world = World::new();
        let pod = |name: &str| {
            meta::json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "ns"},
                "spec": {"containers": [{"name": "c"}], "volumes": [
                    {"name": "v", "ephemeral": {"volumeClaimTemplate": {
                        "metadata": {"labels": {"a": "b"}}, "spec": {"storageClassName": "c"},
                    }}},
                ]},
            })
        };
        world.create(PODS, pod("p"));
        world.settle();
        let claim = world.get(CLAIMS, "ns", "p-v");
        assert_eq!(claim["spec"]["storageClassName"].text(), "c");
        assert_eq!(claim["metadata"]["labels"]["a"].text(), "b");
        assert_eq!(claim["metadata"]["ownerReferences"].items()[0]["name"].text(), "p");

        world.create(CLAIMS, meta::json!({"metadata": {"name": "q-v", "namespace": "ns"}, "spec": {}}));
        world.create(PODS, pod("q"));
        world.settle();
        assert!(world.reasons().contains(&"FailedBinding"), "somebody else made it: {:?}", world.reasons());
    }
}
