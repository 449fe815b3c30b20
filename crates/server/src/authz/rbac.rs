//! Role-based access: the rules that a user's bindings give, and the check that nobody gives away what they lack.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use api::rbac::{Ask, BindingFacts, PolicyRule, RoleFacts, Subject};
use cache::{Shown, View};
use meta::{Object, Resource, Str};

use super::{Attributes, Decision, groups};
use crate::identity::{MASTERS, User};

pub const CLUSTER_ROLES: Resource = Resource("clusterroles.rbac.authorization.k8s.io");
pub const CLUSTER_ROLE_BINDINGS: Resource = Resource("clusterrolebindings.rbac.authorization.k8s.io");
pub const ROLES: Resource = Resource("roles.rbac.authorization.k8s.io");
pub const ROLE_BINDINGS: Resource = Resource("rolebindings.rbac.authorization.k8s.io");

/// The index of bindings by whom they bind.
const BOUND: &str = "bound";
/// What a view needs beside `api::INDEXES`, so that a request looks at the bindings of its user alone.
pub const INDEXES: &[api::IndexRow] = &[(CLUSTER_ROLE_BINDINGS, BOUND, bound), (ROLE_BINDINGS, BOUND, bound)];

fn user_key(namespace: &str, user: &str) -> String {
    format!("{namespace}/user/{user}")
}

fn group_key(namespace: &str, group: &str) -> String {
    format!("{namespace}/group/{group}")
}

/// The keys of whom a binding binds, in its namespace.
fn bound(binding: &Object, keys: &mut Vec<Str>) {
    let Some(facts) = binding.own::<BindingFacts>() else { return };
    let namespace = binding.namespace();
    for subject in &facts.subjects {
        let key = match subject {
            Subject::User(name) => user_key(namespace, name),
            Subject::Group(name) => group_key(namespace, name),
            Subject::ServiceAccount { namespace: of, name } => {
                user_key(namespace, &format!("system:serviceaccount:{of}:{name}"))
            }
        };
        keys.push(key.into());
    }
}

/// The bindings of `resource` in `namespace` (`""` for those of the cluster) that bind the user, by name.
fn bindings<'a>(user: &User, resource: Resource, namespace: &str, view: &'a View) -> BTreeMap<&'a str, &'a Object> {
    let keys = groups(user).map(|group| group_key(namespace, group));
    let keys = std::iter::once(user_key(namespace, &user.name)).chain(keys);
    keys.flat_map(|key| view.by(resource, BOUND, &key)).map(|binding| (binding.name(), binding)).collect()
}

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

/// A binding and the role that it gives.
struct Grant {
    binding: Object,
    role: Object,
}

/// All that grants rest on.
const SOURCES: &[Resource] = &[CLUSTER_ROLES, CLUSTER_ROLE_BINDINGS, ROLES, ROLE_BINDINGS];
/// Users and namespaces of which the grants are remembered.
const REMEMBERED_MAX: usize = 4096;

/// The grants found last, as long as views show the same roles and bindings.
#[derive(Default)]
struct Remembered {
    shown: Shown,
    /// By user, groups, resource and namespace.
    grants: HashMap<Vec<u8>, Rc<[Grant]>>,
}

thread_local! {
    /// Callers ask again and again for what they may, and roles seldom change.
    static REMEMBERED: RefCell<Remembered> = RefCell::default();
}

/// What the bindings of `resource` in `namespace` (`""` for those of the cluster) give the user, by the bindings' names.
fn grants(user: &User, resource: Resource, namespace: &str, view: &View) -> Rc<[Grant]> {
    let mut key = Vec::with_capacity(128);
    for part in [user.name.as_str(), namespace, resource.0].into_iter().chain(groups(user)) {
        // Whatever stands in a name, it can not be read as two.
        key.extend_from_slice(&part.len().to_le_bytes());
        key.extend_from_slice(part.as_bytes());
    }
    REMEMBERED.with_borrow_mut(|remembered| {
        if !view.shows(&remembered.shown, SOURCES) {
            *remembered = Remembered { shown: view.shown(SOURCES), grants: HashMap::new() };
        }
        if let Some(known) = remembered.grants.get(&key) {
            return known.clone();
        }
        let found: Rc<[Grant]> = find_grants(user, resource, namespace, view);
        if remembered.grants.len() >= REMEMBERED_MAX {
            remembered.grants.clear();
        }
        remembered.grants.insert(key, found.clone());
        found
    })
}

fn find_grants(user: &User, resource: Resource, namespace: &str, view: &View) -> Rc<[Grant]> {
    let grant = |binding: &Object| {
        // The index narrows, what the binding says decides.
        let facts = binding.own::<BindingFacts>().filter(|facts| facts.binds(&user.name, groups(user)))?;
        let role = match facts.role_kind.as_str() {
            "ClusterRole" => view.one(CLUSTER_ROLES, "", &facts.role_name),
            _ => view.one(ROLES, binding.namespace(), &facts.role_name),
        };
        Some(Grant { binding: binding.clone(), role: role?.clone() })
    };
    bindings(user, resource, namespace, view).into_values().filter_map(grant).collect()
}

/// Calls `each` with the rules of every binding of the user that holds in `namespace` (`""`: only cluster-wide ones),
/// until it returns false.
fn visit(user: &User, namespace: &str, view: &View, each: &mut dyn FnMut(&Object, &[PolicyRule]) -> bool) {
    let places = [(CLUSTER_ROLE_BINDINGS, ""), (ROLE_BINDINGS, namespace)];
    let places = places.into_iter().filter(|(resource, place)| *resource == CLUSTER_ROLE_BINDINGS || !place.is_empty());
    for (resource, place) in places {
        for Grant { binding, role } in grants(user, resource, place, view).iter() {
            let Some(role) = role.own::<RoleFacts>() else { continue };
            if !each(binding, &role.rules) {
                return;
            }
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

#[cfg(test)]
mod tests {
    use base::Revision;
    use cache::Cache;
    use meta::{Facts, Value, json};

    use super::*;

    fn object(resource: Resource, value: &Value) -> Object {
        let mut facts = Facts::of(resource, value);
        facts.own = match resource {
            CLUSTER_ROLES | ROLES => api::rbac::role_facts(value),
            _ => api::rbac::binding_facts(value),
        };
        Object::new(facts, value.to_json())
    }

    fn role(resource: Resource, namespace: &str, name: &str, verb: &str) -> Object {
        let metadata = json!({"name": name, "namespace": namespace, "uid": (format!("{namespace}-{name}"))});
        let rule = json!({"verbs": [verb], "apiGroups": [""], "resources": ["pods"]});
        object(resource, &json!({"metadata": metadata, "rules": [rule]}))
    }

    fn binding(namespace: &str, name: &str, role: &str, subjects: &[(&str, &str)]) -> Object {
        let (resource, kind) = match namespace {
            "" => (CLUSTER_ROLE_BINDINGS, "ClusterRole"),
            _ => (ROLE_BINDINGS, "Role"),
        };
        let subject = |(kind, name): &(&str, &str)| json!({"kind": (*kind), "name": (*name), "namespace": "n"});
        let subjects: Vec<Value> = subjects.iter().map(subject).collect();
        let metadata = json!({"name": name, "namespace": namespace, "uid": (format!("{namespace}-b-{name}"))});
        object(resource, &json!({"metadata": metadata, "subjects": subjects, "roleRef": {"kind": kind, "name": role}}))
    }

    #[test]
    fn what_is_remembered_of_a_user_ends_with_the_roles_that_it_rests_on() {
        let mut cache = Cache::new(crate::indexes());
        let (reads, writes) = (role(ROLES, "n", "r", "get"), role(ROLES, "n", "r", "update"));
        let user = User::new("u", &[]);
        let verbs = |view: &View, namespace: &str| -> Vec<String> {
            rules_of(&user, namespace, view).iter().map(|rule| rule.verbs[0].to_string()).collect()
        };
        cache.load(Revision(1), [reads.clone(), binding("n", "b", "r", &[("User", "u")])]);
        let before = cache.view();
        assert_eq!(
            (verbs(&before, "n"), verbs(&before, "m"), verbs(&before, "")),
            (vec!["get".into()], vec![], vec![])
        );
        let change = |old: Option<Object>, new: Option<Object>| cache::Change { revision: Revision(2), new, old };
        cache.apply(Revision(2), [change(Some(reads), Some(writes))]);
        assert_eq!(verbs(&cache.view(), "n"), ["update"]);
        assert_eq!(verbs(&before, "n"), ["get"], "an older view says what it showed");
        let gone = cache.one(ROLE_BINDINGS, "n", "b").cloned();
        cache.apply(Revision(3), [cache::Change { revision: Revision(3), new: None, old: gone }]);
        assert!(verbs(&cache.view(), "n").is_empty());
    }

    #[test]
    fn a_user_has_the_rules_of_his_bindings_each_once_and_no_others() {
        let mut cache = Cache::new(crate::indexes());
        cache.load(
            Revision(1),
            [
                role(CLUSTER_ROLES, "", "get", "get"),
                role(CLUSTER_ROLES, "", "list", "list"),
                role(ROLES, "n", "watch", "watch"),
                role(ROLES, "m", "watch", "delete"),
                binding("", "b", "get", &[("User", "u"), ("Group", "g")]),
                binding("", "a", "list", &[("Group", "g")]),
                binding("n", "c", "watch", &[("ServiceAccount", "s")]),
                binding("m", "c", "watch", &[("User", "u")]),
                binding("", "strange", "list", &[("User", "u\0"), ("User", "n/user/u")]),
            ],
        );
        let view = cache.view();
        let verbs = |user: &User, namespace: &str| -> Vec<String> {
            rules_of(user, namespace, &view).iter().map(|rule| rule.verbs[0].to_string()).collect()
        };
        let user = User::new("u", &["g"]);
        assert_eq!(verbs(&user, "n"), ["list", "get"]);
        assert_eq!(verbs(&user, "m"), ["list", "get", "delete"]);
        assert_eq!(verbs(&User::new("u", &[]), ""), ["get"]);
        assert_eq!(verbs(&User::new("system:serviceaccount:n:s", &[]), "n"), ["watch"]);
        assert!(verbs(&User::new("s", &["u"]), "n").is_empty());
    }
}
