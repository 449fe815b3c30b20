//! Roles and bindings: what the authorizer reads of them, once per object.

pub mod binding;
pub mod role;

use std::any::Any;
use std::sync::Arc;

use meta::{Str, Value};

/// One rule of a role.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyRule {
    pub verbs: Vec<Str>,
    pub groups: Vec<Str>,
    pub resources: Vec<Str>,
    pub names: Vec<Str>,
    pub urls: Vec<Str>,
}

/// What is asked, in RBAC's terms.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    /// `pods`, or `pods/log` with a subresource.
    pub resource: &'a str,
    pub subresource: &'a str,
    pub name: &'a str,
    /// Set for paths that are no resources; the other fields but the verb are then empty.
    pub url: Option<&'a str>,
}

/// The rules of a Role or ClusterRole.
#[derive(Debug, Default)]
pub struct RoleFacts {
    pub rules: Vec<PolicyRule>,
}

/// Whom a binding binds, and to what.
#[derive(Debug)]
pub struct BindingFacts {
    pub subjects: Vec<Subject>,
    /// `ClusterRole` or `Role`.
    pub role_kind: Str,
    pub role_name: Str,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Subject {
    User(Str),
    Group(Str),
    ServiceAccount { namespace: Str, name: Str },
}

fn words(value: &Value) -> Vec<Str> {
    value.items().iter().map(|item| item.text().into()).collect()
}

fn has(list: &[Str], word: &str) -> bool {
    list.iter().any(|item| item == word || item == "*")
}

impl PolicyRule {
    pub fn of(rule: &Value) -> PolicyRule {
        PolicyRule {
            verbs: words(&rule["verbs"]),
            groups: words(&rule["apiGroups"]),
            resources: words(&rule["resources"]),
            names: words(&rule["resourceNames"]),
            urls: words(&rule["nonResourceURLs"]),
        }
    }

    /// Whether the rule allows what is asked.
    pub fn allows(&self, ask: &Ask<'_>) -> bool {
        if !has(&self.verbs, ask.verb) {
            return false;
        }
        if let Some(url) = ask.url {
            return self.urls.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => url.starts_with(prefix),
                None => pattern == url,
            });
        }
        has(&self.groups, ask.group)
            && self.resources.iter().any(|resource| resource_matches(resource, ask.resource, ask.subresource))
            && (self.names.is_empty() || (!ask.name.is_empty() && self.names.iter().any(|name| name == ask.name)))
    }

    /// The rule as single permissions, so that a set of rules can be compared with another.
    pub fn split(&self) -> Vec<PolicyRule> {
        let one = |word: &Str| vec![word.clone()];
        let mut out = Vec::new();
        for verb in &self.verbs {
            for url in &self.urls {
                out.push(PolicyRule { verbs: one(verb), urls: one(url), ..PolicyRule::default() });
            }
            for group in &self.groups {
                for resource in &self.resources {
                    let base = PolicyRule {
                        verbs: one(verb),
                        groups: one(group),
                        resources: one(resource),
                        ..PolicyRule::default()
                    };
                    if self.names.is_empty() {
                        out.push(base);
                    } else {
                        let named = |name| PolicyRule { names: one(name), ..base.clone() };
                        out.extend(self.names.iter().map(named));
                    }
                }
            }
        }
        out
    }

    /// Whether this rule gives everything that the single permission `part` gives.
    pub fn covers(&self, part: &PolicyRule) -> bool {
        let all = |mine: &[Str], theirs: &[Str]| theirs.iter().all(|word| has(mine, word));
        if !all(&self.verbs, &part.verbs) {
            return false;
        }
        if !part.urls.is_empty() {
            return part.urls.iter().all(|url| {
                self.urls
                    .iter()
                    .any(|mine| mine == url || mine.strip_suffix('*').is_some_and(|prefix| url.starts_with(prefix)))
            });
        }
        let covers_resource = |resource: &Str| {
            let (name, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            self.resources.iter().any(|mine| mine == resource || resource_matches(mine, name, subresource))
        };
        all(&self.groups, &part.groups)
            && part.resources.iter().all(covers_resource)
            && (self.names.is_empty()
                || (!part.names.is_empty() && part.names.iter().all(|name| self.names.contains(name))))
    }
}

fn resource_matches(pattern: &str, resource: &str, subresource: &str) -> bool {
    if pattern == "*" {
        return true;
    }
    match (pattern.split_once('/'), subresource) {
        (None, "") => pattern == resource,
        (None, _) => false,
        (Some(("*", sub)), subresource) => sub == subresource && !subresource.is_empty(),
        (Some((name, sub)), subresource) => name == resource && sub == subresource,
    }
}

impl RoleFacts {
    pub fn of(role: &Value) -> RoleFacts {
        RoleFacts { rules: role["rules"].items().iter().map(PolicyRule::of).collect() }
    }
}

impl BindingFacts {
    pub fn of(binding: &Value) -> BindingFacts {
        let subject = |subject: &Value| {
            let name: Str = subject["name"].text().into();
            match subject["kind"].text() {
                "User" => Subject::User(name),
                "Group" => Subject::Group(name),
                _ => Subject::ServiceAccount { namespace: subject["namespace"].text().into(), name },
            }
        };
        BindingFacts {
            subjects: binding["subjects"].items().iter().map(subject).collect(),
            role_kind: binding.at(&["roleRef", "kind"]).text().into(),
            role_name: binding.at(&["roleRef", "name"]).text().into(),
        }
    }

    /// Whether the binding binds the user, by name, group or account.
    pub fn binds<'a>(&self, user: &str, groups: impl Iterator<Item = &'a str> + Clone) -> bool {
        self.subjects.iter().any(|subject| match subject {
            Subject::User(name) => name == user,
            Subject::Group(name) => groups.clone().any(|group| group == name),
            Subject::ServiceAccount { namespace, name } => {
                user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'))
                    == Some((namespace, name))
            }
        })
    }
}

/// For `Rules::facts` of both kinds of role.
pub fn role_facts(role: &Value) -> Option<Arc<dyn Any + Send + Sync>> {
    Some(Arc::new(RoleFacts::of(role)))
}

/// For `Rules::facts` of both kinds of binding.
pub fn binding_facts(binding: &Value) -> Option<Arc<dyn Any + Send + Sync>> {
    Some(Arc::new(BindingFacts::of(binding)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::json;

    #[test]
    fn rules_allow_and_cover() {
        let rule =
            PolicyRule::of(&json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "*/scale"]}));
        let ask = |verb, resource, subresource| Ask { verb, group: "", resource, subresource, name: "", url: None };
        assert!(rule.allows(&ask("get", "pods", "")));
        assert!(!rule.allows(&ask("get", "pods", "log")));
        assert!(rule.allows(&ask("get", "x", "scale")));
        assert!(!rule.allows(&ask("delete", "pods", "")));
        let all = PolicyRule::of(&json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        assert!(rule.split().iter().all(|part| all.covers(part)));
        assert!(!all.split().iter().all(|part| rule.covers(part)));
        let url = PolicyRule::of(&json!({"verbs": ["get"], "nonResourceURLs": ["/healthz*"]}));
        assert!(url.allows(&Ask { url: Some("/healthz/x"), ..ask("get", "", "") }));
    }
}
