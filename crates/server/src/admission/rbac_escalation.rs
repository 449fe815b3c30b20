//! Nobody gives away permissions that they do not have: roles and bindings are checked against the writer's own rules.

use api::rbac::{Ask, PolicyRule, RoleFacts};
use meta::{Status, Value};

use super::{Admission, Review};
use crate::authz::rbac::{CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, ROLE_BINDINGS, ROLES, lacking, rules_of};
use crate::identity::MASTERS;

const GROUP: &str = "rbac.authorization.k8s.io";

pub struct RbacEscalation;

impl Admission for RbacEscalation {
    fn name(&self) -> &'static str {
        "RBACEscalation"
    }

    fn validate(&self, review: &mut Review<'_>) -> Result<(), Status> {
        if review.operation == "DELETE" || review.user.in_group(MASTERS) {
            return Ok(());
        }
        let (rules, verb, resource) = match review.resource {
            ROLES | CLUSTER_ROLES => {
                if review.old.is_some_and(|old| {
                    old["rules"] == review.object["rules"] && old["aggregationRule"] == review.object["aggregationRule"]
                }) {
                    return Ok(());
                }
                let mut rules = RoleFacts::of(&review.object).rules;
                if review.object.get("aggregationRule").is_some() {
                    // Who aggregates gives whatever other roles may come to hold.
                    let star = || vec!["*".into()];
                    rules.push(PolicyRule {
                        verbs: star(),
                        groups: star(),
                        resources: star(),
                        ..PolicyRule::default()
                    });
                    rules.push(PolicyRule { verbs: star(), urls: star(), ..PolicyRule::default() });
                }
                (rules, "escalate", review.kind.names.plural.to_string())
            }
            ROLE_BINDINGS | CLUSTER_ROLE_BINDINGS => {
                if review.old.is_some_and(|old| {
                    old["roleRef"] == review.object["roleRef"] && old["subjects"] == review.object["subjects"]
                }) {
                    return Ok(());
                }
                let role = &review.object["roleRef"];
                let resource = if role["kind"].text() == "ClusterRole" { "clusterroles" } else { "roles" };
                if may(review, "bind", resource, role["name"].text()) {
                    return Ok(());
                }
                (self::rules(review, role)?, "bind", resource.to_owned())
            }
            _ => return Ok(()),
        };
        if verb == "escalate" && may(review, verb, &resource, review.name()) {
            return Ok(());
        }
        let missing = lacking(review.user, review.namespace, &rules, review.view);
        if missing.is_empty() {
            return Ok(());
        }
        let listed: Vec<String> = missing.iter().map(show).collect();
        let why = format!(
            "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held:\n{}",
            review.user.name,
            review.user.groups,
            listed.join("\n")
        );
        Err(review.forbidden(why))
    }
}

fn may(review: &Review<'_>, verb: &str, resource: &str, name: &str) -> bool {
    let ask = Ask { verb, group: GROUP, resource, subresource: "", name, url: None };
    rules_of(review.user, review.namespace, review.view).iter().any(|rule| rule.allows(&ask))
}

/// The rules that a binding gives.
fn rules(review: &Review<'_>, role: &Value) -> Result<Vec<PolicyRule>, Status> {
    let name = role["name"].text();
    let found = match role["kind"].text() {
        "ClusterRole" => review.view.one(CLUSTER_ROLES, "", name),
        _ => review.view.one(ROLES, review.namespace, name),
    };
    match found {
        Some(role) => Ok(RoleFacts::of(&role.value()).rules),
        None => {
            let plural = if role["kind"].text() == "ClusterRole" { "clusterroles" } else { "roles" };
            Err(Status::not_found(GROUP, plural, name))
        }
    }
}

fn show(rule: &PolicyRule) -> String {
    if rule.urls.is_empty() {
        format!("{{APIGroups:{:?}, Resources:{:?}, Verbs:{:?}}}", rule.groups, rule.resources, rule.verbs)
    } else {
        format!("{{NonResourceURLs:{:?}, Verbs:{:?}}}", rule.urls, rule.verbs)
    }
}
