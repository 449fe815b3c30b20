//! Cluster roles made of others: the rules of all roles that their selectors pick.

use api::rbac::role;
use cache::{Event, View};
use meta::{Resource, Selector, Str, Value};
use reconcile::{Context, Effect, Outcome, Reconciler};

use crate::common::*;

pub struct ClusterRoleAggregation;

impl Reconciler for ClusterRoleAggregation {
    fn name(&self) -> &'static str {
        "clusterrole-aggregation-controller"
    }

    fn watches(&self) -> &[Resource] {
        &[CLUSTER_ROLES]
    }

    fn keys(&self, _: Resource, _: &Event, view: &View, out: &mut Vec<Str>) {
        out.extend(view.by(CLUSTER_ROLES, role::AGGREGATING, role::OF_OTHERS).map(key_of));
    }

    fn reconcile(&self, key: &str, view: &View, cx: &mut Context) -> Outcome {
        let Some(role) = view.one(CLUSTER_ROLES, "", key).filter(|role| !is_deleting(role)) else {
            return Outcome::Settled;
        };
        let mut value = role.value();
        if value["aggregationRule"].is_null() {
            return Outcome::Settled;
        }
        let selectors: Vec<Selector> =
            value["aggregationRule"]["clusterRoleSelectors"].items().iter().map(Selector::of).collect();
        let mut rules: Vec<Value> = Vec::new();
        for other in view.list(CLUSTER_ROLES, "").filter(|other| other.name() != key) {
            if selectors.iter().any(|selector| selector.matches(other.labels())) {
                for rule in other.value()["rules"].items() {
                    if !rules.contains(rule) {
                        rules.push(rule.clone());
                    }
                }
            }
        }
        if value["rules"].items() != rules.as_slice() {
            value.set(&["rules"], Value::from(rules));
            cx.push(Effect::Update { resource: CLUSTER_ROLES, object: value });
        }
        Outcome::Settled
    }
}
