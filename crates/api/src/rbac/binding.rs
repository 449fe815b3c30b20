//! RoleBinding and ClusterRoleBinding.

use std::any::Any;
use std::sync::Arc;

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Value, names};

use crate::columns::{age, columns};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Both kinds of binding.
pub struct Binding {
    cluster: bool,
    columns: Vec<Column>,
}

impl Binding {
    pub fn new(cluster: bool) -> Binding {
        let shown = [
            ("Role", "string", 0),
            ("Age", "string", 0),
            ("Users", "string", 1),
            ("Groups", "string", 1),
            ("ServiceAccounts", "string", 1),
        ];
        Binding { cluster, columns: columns(&shown) }
    }
}

impl Rules for Binding {
    fn check_name(&self, name: &str) -> Vec<String> {
        names::path_segment(name)
    }

    fn defaults(&self, object: &mut Value) {
        if let Some(role) = object.get_mut("roleRef")
            && role["apiGroup"].text().is_empty()
        {
            role.set(&["apiGroup"], GROUP);
        }
        for subject in object.make(&["subjects"]).make_list().make_mut() {
            let group = match subject["kind"].text() {
                "User" | "Group" => GROUP,
                _ => continue,
            };
            if subject["apiGroup"].text().is_empty() {
                subject.set(&["apiGroup"], group);
            }
        }
        if object["subjects"].items().is_empty() {
            object.take(&["subjects"]);
        }
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let role = at.field("roleRef");
        let group = role.field("apiGroup");
        if group.text() != GROUP {
            errors.not_supported(&group, &[GROUP]);
        }
        let kind = role.field("kind");
        let kinds: &[&str] = if self.cluster { &["ClusterRole"] } else { &["Role", "ClusterRole"] };
        if !kinds.contains(&kind.text()) {
            errors.not_supported(&kind, kinds);
        }
        let name = role.field("name");
        match name.text() {
            "" => errors.required(&name.path, ""),
            text => names::path_segment(text).into_iter().for_each(|why| errors.invalid(&name, why)),
        }
        for subject in at.field("subjects").items() {
            self.check_subject(&subject, errors);
        }
        if let Some(old) = change.old
            && old["roleRef"] != *role.value
        {
            errors.invalid(&role, "cannot change roleRef");
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let role = &object["roleRef"];
        let subjects = |kind: &str| -> Value {
            let of_kind = object["subjects"].items().iter().filter(|subject| subject["kind"].text() == kind);
            let names = of_kind.map(|subject| match subject["namespace"].text() {
                namespace if kind == "ServiceAccount" && !namespace.is_empty() => {
                    format!("{namespace}/{}", subject["name"].text())
                }
                _ => subject["name"].text().to_owned(),
            });
            names.collect::<Vec<_>>().join(", ").into()
        };
        vec![
            format!("{}/{}", role["kind"].text(), role["name"].text()).into(),
            age(object, now),
            subjects("User"),
            subjects("Group"),
            subjects("ServiceAccount"),
        ]
    }

    fn facts(&self, object: &Value) -> Option<Arc<dyn Any + Send + Sync>> {
        super::binding_facts(object)
    }
}

impl Binding {
    fn check_subject(&self, subject: &At<'_>, errors: &mut Errors) {
        let (name, kind, group) = (subject.field("name"), subject.field("kind"), subject.field("apiGroup"));
        if name.is_empty() {
            errors.required(&name.path, "");
        }
        match kind.text() {
            "ServiceAccount" => {
                if !name.is_empty() {
                    names::dns_subdomain(name.text()).into_iter().for_each(|why| errors.invalid(&name, why));
                }
                if !group.is_empty() {
                    errors.not_supported(&group, &[""]);
                }
                if subject.field("namespace").is_empty() && self.cluster {
                    errors.required(&subject.field("namespace").path, "");
                }
            }
            "User" | "Group" => {
                if group.text() != GROUP {
                    errors.not_supported(&group, &[GROUP]);
                }
            }
            _ => errors.not_supported(&kind, &["Group", "ServiceAccount", "User"]),
        }
    }
}
