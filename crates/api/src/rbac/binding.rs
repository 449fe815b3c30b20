//! RoleBinding and ClusterRoleBinding.

use std::any::Any;
use std::sync::Arc;

use meta::{At, Change, Errors, Rules, Value, names};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Both kinds of binding.
pub struct Binding {
    pub cluster: bool,
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
        for subject in object.make(&["subjects"]).make_list() {
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
