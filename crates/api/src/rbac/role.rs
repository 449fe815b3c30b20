//! Role and ClusterRole.

use std::any::Any;
use std::sync::Arc;

use meta::{At, Change, Errors, Object, Rules, Str, Value, names};

use crate::check;

/// The index of cluster roles that may be made of others; they are filed under [`OF_OTHERS`].
pub const AGGREGATING: &str = "aggregating";
pub const OF_OTHERS: &str = "others";

/// For [`AGGREGATING`]. The text is looked at, not read: whoever has the words elsewhere is only looked at in vain.
pub fn aggregating_of(role: &Object, out: &mut Vec<Str>) {
    const FIELD: &[u8] = b"\"aggregationRule\"";
    if role.text().windows(FIELD.len()).any(|text| text == FIELD) {
        out.push(OF_OTHERS.into());
    }
}

/// Both kinds of role; `cluster` ones may name URLs and aggregate others.
pub struct Role {
    pub cluster: bool,
}

impl Rules for Role {
    fn check_name(&self, name: &str) -> Vec<String> {
        names::path_segment(name)
    }

    fn check(&self, _: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        for rule in at.field("rules").items() {
            self.check_rule(&rule, errors);
        }
        let aggregation = at.field("aggregationRule");
        if aggregation.is_set() {
            let selectors = aggregation.field("clusterRoleSelectors");
            if selectors.is_empty() {
                errors.required(
                    &selectors.path,
                    "at least one clusterRoleSelector required if aggregationRule is non-nil",
                );
            }
            for selector in selectors.items() {
                let known = errors.0.len();
                check::label_selector(&selector, errors);
                if errors.0.len() > known {
                    errors.invalid(&selector, "invalid label selector.");
                }
            }
        }
    }

    fn facts(&self, object: &Value) -> Option<Arc<dyn Any + Send + Sync>> {
        super::role_facts(object)
    }
}

impl Role {
    fn check_rule(&self, rule: &At<'_>, errors: &mut Errors) {
        if rule.field("verbs").is_empty() {
            errors.required(&rule.field("verbs").path, "verbs must contain at least one value");
        }
        let urls = rule.field("nonResourceURLs");
        if !urls.is_empty() {
            if !self.cluster {
                let detail = "namespaced rules cannot apply to non-resource URLs";
                errors.invalid(&urls, detail);
            }
            let others = ["apiGroups", "resources", "resourceNames"];
            if others.iter().any(|key| !rule.field(key).is_empty()) {
                errors.invalid(&urls, "rules cannot apply to both regular resources and non-resource URLs");
            }
            return;
        }
        if rule.field("apiGroups").is_empty() {
            errors.required(&rule.field("apiGroups").path, "resource rules must supply at least one api group");
        }
        if rule.field("resources").is_empty() {
            errors.required(&rule.field("resources").path, "resource rules must supply at least one resource");
        }
    }
}
