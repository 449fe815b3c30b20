//! Says of validating policies what their expressions get wrong of the types that they are about.

use api::admissionregistration::type_check;
use cache::{Event, View};
use meta::{Object, Resource, Str, Value, json};
use reconcile::{Context, Outcome, Reconciler};

use crate::common::*;

const POLICIES: Resource = Resource("validatingadmissionpolicies.admissionregistration.k8s.io");

pub struct PolicyStatus;

impl Reconciler for PolicyStatus {
    fn name(&self) -> &'static str {
        "validatingadmissionpolicy-status-controller"
    }

    fn watches(&self) -> &[Resource] {
        &[POLICIES]
    }

    fn keys(&self, _: Resource, event: &Event, _: &View, out: &mut Vec<Str>) {
        out.extend(event.new.iter().map(key_of));
    }

    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome {
        let Some(policy) = view.one(POLICIES, "", key) else { return Outcome::Settled };
        let (value, generation) = (policy.value(), policy.facts().generation);
        // Once for each version of it: a policy is often older than what it is about.
        if value.at(&["status", "observedGeneration"]).as_int().is_some_and(|seen| seen >= generation) {
            return Outcome::Settled;
        }
        let definition = |name: &str| view.one(DEFINITIONS, "", name).map(Object::value);
        let warnings = type_check::warnings(&value, &definition);
        let mut status = value["status"].clone();
        status.set(&["observedGeneration"], generation);
        status.set(&["typeChecking"], Value::map());
        if !warnings.is_empty() {
            status.set(&["typeChecking"], json!({"expressionWarnings": warnings}));
        }
        write_status(cx, policy, &value, status);
        Outcome::Settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::World;

    #[test]
    fn a_policy_is_looked_at_once_for_each_version() {
        let mut world = World::new();
        world.create(
            POLICIES,
            json!({
                "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
                "metadata": {"name": "p"},
                "spec": {
                    "matchConstraints": {"resourceRules": [
                        {"apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"]},
                    ]},
                    "validations": [{"expression": "object.spec.nothing > 1"}],
                },
            }),
        );
        world.settle();
        let status = world.get(POLICIES, "", "p")["status"].clone();
        assert_eq!(status["observedGeneration"].as_int(), Some(1));
        assert_eq!(status["typeChecking"]["expressionWarnings"].items().len(), 1);
        world.change(POLICIES, "", "p", |policy| {
            policy.set(&["spec", "validations"], json!([{"expression": "object.spec.replicas > 1"}]));
        });
        world.settle();
        let status = world.get(POLICIES, "", "p")["status"].clone();
        assert_eq!(status, json!({"observedGeneration": 2i64, "typeChecking": {}}));
    }
}
