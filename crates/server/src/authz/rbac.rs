//! Role-based access: the rules that a user's bindings give, and the check that nobody gives away what they lack.

use api::rbac::{Ask, BindingFacts, PolicyRule, RoleFacts};
use cache::View;
use meta::{Object, Resource};

use super::{Attributes, Decision, groups};
use crate::identity::{MASTERS, User};

pub const CLUSTER_ROLES: Resource = Resource("clusterroles.rbac.authorization.k8s.io");
pub const CLUSTER_ROLE_BINDINGS: Resource = Resource("clusterrolebindings.rbac.authorization.k8s.io");
pub const ROLES: Resource = Resource("roles.rbac.authorization.k8s.io");
pub const ROLE_BINDINGS: Resource = Resource("rolebindings.rbac.authorization.k8s.io");

pub fn decide(attributes: &Attributes<'_>, view: &View) -> Decision {
    let ask = Ask {
        verb: attributes.verb,
        group: attributes.group,
        resource: attributes.resource,
        subresource: attributes.subresource,
        name: attributes.name,
        url: (!attributes.is_resource).then_some(attributes.path),
    };
    let mut allowed = None;
    visit(attributes.user, attributes.namespace, view, &mut |binding, rules| {
        if rules.iter().any(|rule| rule.allows(&ask)) {
            allowed = Some(binding.name().to_owned());
        }
        allowed.is_none()
    });
    match allowed {
        Some(binding) => Decision::Allow(format!("RBAC: allowed by binding {binding:?}")),
        None => Decision::NoOpinion(String::new()),
    }
}

/// Calls `each` with the rules of every binding of the user that holds in `namespace` (`""`: only cluster-wide ones),
/// until it returns false.
fn visit(user: &User, namespace: &str, view: &View, each: &mut dyn FnMut(&Object, &[PolicyRule]) -> bool) {
    let cluster = view.list(CLUSTER_ROLE_BINDINGS, "");
    let namespaced = (!namespace.is_empty()).then(|| view.list(ROLE_BINDINGS, namespace)).into_iter().flatten();
    for binding in cluster.chain(namespaced) {
        let Some(facts) = binding.own::<BindingFacts>() else { continue };
        if !facts.binds(&user.name, groups(user)) {
            continue;
        }
        let role = match facts.role_kind.as_str() {
            "ClusterRole" => view.one(CLUSTER_ROLES, "", &facts.role_name),
            _ => view.one(ROLES, binding.namespace(), &facts.role_name),
        };
        let Some(role) = role.and_then(|role| role.own::<RoleFacts>()) else { continue };
        if !each(binding, &role.rules) {
            return;
        }
    }
}

/// All rules that a user has in `namespace`.
pub fn rules_of(user: &User, namespace: &str, view: &View) -> Vec<PolicyRule> {
    let mut all = Vec::new();
    visit(user, namespace, view, &mut |_, rules| {
        all.extend(rules.iter().cloned());
        true
    });
    if user.in_group(MASTERS) {
        let star = || vec!["*".into()];
        all.push(PolicyRule { verbs: star(), groups: star(), resources: star(), ..PolicyRule::default() });
        all.push(PolicyRule { verbs: star(), urls: star(), ..PolicyRule::default() });
    }
    all
}

/// The permissions of `rules` that `user` does not have in `namespace`: giving them away would be an escalation.
pub fn lacking(user: &User, namespace: &str, rules: &[PolicyRule], view: &View) -> Vec<PolicyRule> {
    let own = rules_of(user, namespace, view);
    rules.iter().flat_map(PolicyRule::split).filter(|part| !own.iter().any(|rule| rule.covers(part))).collect()
}
