//! Cluster roles made of others: the rules of all roles that their selectors pick.

use cache::{Event, View};
use meta::{Object, Resource, Selector, Str, Value};
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
        out.extend(view.list(CLUSTER_ROLES, "").filter(|role| may_aggregate(role)).map(key_of));
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

/// Whether a role may be made of others. The text is looked at, not read: this is asked of all roles at every change,
/// and whoever has the words elsewhere is only reconciled in vain.
fn may_aggregate(role: &Object) -> bool {
    const FIELD: &[u8] = b"\"aggregationRule\"";
    role.text().windows(FIELD.len()).any(|text| text == FIELD)
}
