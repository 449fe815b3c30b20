//! Mutating and validating webhook configurations: who is asked about which changes.

use std::collections::BTreeSet;

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Str, Value, names};

use crate::check;
use crate::columns::{age, columns};
use crate::expressions;

pub struct WebhookConfiguration {
    mutating: bool,
    columns: Vec<Column>,
}

impl WebhookConfiguration {
    pub fn new(mutating: bool) -> WebhookConfiguration {
        WebhookConfiguration { mutating, columns: columns(&[("Webhooks", "integer", 0), ("Age", "string", 0)]) }
    }
}

const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];
const TIMEOUT_SECONDS_MAX: i64 = 30;

impl Rules for WebhookConfiguration {
    fn defaults(&self, object: &mut Value) {
        let Some(hooks) = object.get_mut("webhooks") else { return };
        for hook in hooks.items_mut() {
            hook.default("failurePolicy", "Fail");
            hook.default("matchPolicy", "Equivalent");
            hook.default("namespaceSelector", Value::map());
            hook.default("objectSelector", Value::map());
            hook.default("timeoutSeconds", 10i64);
            if self.mutating {
                hook.default("reinvocationPolicy", "Never");
            }
            if let Some(service) = hook.at_mut(&["clientConfig", "service"]).filter(|service| !service.is_null()) {
                service.default("port", 443i64);
            }
            if let Some(rules) = hook.get_mut("rules") {
                rules.items_mut().iter_mut().for_each(|rule| rule.default("scope", "*"));
            }
        }
    }

    fn check(&self, _: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let mut seen: BTreeSet<Str> = BTreeSet::new();
        for hook in at.field("webhooks").items() {
            check_hook(&hook, errors);
            if self.mutating {
                check::set_word(&hook.field("reinvocationPolicy"), &["IfNeeded", "Never"], errors);
            }
            let name = hook.field("name");
            if !name.is_empty() && !seen.insert(name.text().into()) {
                errors.duplicate(&name);
            }
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        vec![Value::Int(object["webhooks"].items().len() as i64), age(object, now)]
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn check_hook(hook: &At<'_>, errors: &mut Errors) {
    let name = hook.field("name");
    match name.text() {
        "" => errors.required(&name.path, ""),
        text => {
            let wrong = names::dns_subdomain(text);
            if wrong.is_empty() && text.split('.').count() < 3 {
                errors.invalid(&name, "should be a domain with at least three segments separated by dots");
            }
            check::invalid(&name, wrong, errors);
        }
    }
    for rule in hook.field("rules").items() {
        check_rule(&rule, errors);
    }
    check::set_word(&hook.field("failurePolicy"), &["Fail", "Ignore"], errors);
    check::set_word(&hook.field("matchPolicy"), &["Equivalent", "Exact"], errors);
    let effects = hook.field("sideEffects");
    if !effects.is_set() {
        errors.required(&effects.path, "must specify one of None, NoneOnDryRun");
    }
    check::set_word(&effects, &["None", "NoneOnDryRun"], errors);
    let timeout = hook.field("timeoutSeconds");
    if timeout.int().is_some_and(|seconds| !(1..=TIMEOUT_SECONDS_MAX).contains(&seconds)) {
        errors.invalid(&timeout, "the timeout value must be between 1 and 30 seconds");
    }
    check::label_selector(&hook.field("namespaceSelector"), errors);
    check::label_selector(&hook.field("objectSelector"), errors);
    check_client(&hook.field("clientConfig"), errors);
    check_versions(&hook.field("admissionReviewVersions"), errors);
    let conditions = hook.field("matchConditions");
    for (index, condition) in conditions.items().enumerate() {
        let (name, expression) = (condition.field("name"), condition.field("expression"));
        if expression.text().trim().is_empty() {
            errors.required(&expression.path, "");
        }
        check::named(&name, names::qualified_name, errors);
        if conditions.value.items()[..index].iter().any(|other| other["name"] == *name.value) {
            errors.duplicate(&name);
        }
    }
    expressions::check_conditions(&conditions, &expressions::admission(false), errors);
}

/// The operations and resources of one rule.
pub fn check_rule(rule: &At<'_>, errors: &mut Errors) {
    let operations = rule.field("operations");
    check::required(&operations, errors);
    let star_and_more = |list: &At<'_>| {
        let items = list.value.items();
        items.len() > 1 && items.iter().any(|item| item.text() == "*")
    };
    if star_and_more(&operations) {
        errors.invalid(&operations, "if '*' is present, must not specify other operations");
    }
    for operation in operations.items() {
        check::supported(&operation, OPERATIONS, errors);
    }
    for key in ["apiGroups", "apiVersions"] {
        let list = rule.field(key);
        check::required(&list, errors);
        if star_and_more(&list) {
            errors.invalid(&list, "if '*' is present, must not specify other values");
        }
        for item in list.items() {
            if key == "apiVersions" && item.is_empty() {
                errors.required(&item.path, "");
            }
        }
    }
    let resources = rule.field("resources");
    check::required(&resources, errors);
    for resource in resources.items() {
        if resource.is_empty() {
            errors.required(&resource.path, "");
        }
    }
    check::set_word(&rule.field("scope"), &["*", "Cluster", "Namespaced"], errors);
}

fn check_client(client: &At<'_>, errors: &mut Errors) {
    let (url, service) = (client.field("url"), client.field("service"));
    if url.is_set() == service.is_set() {
        errors.required(&client.path, "exactly one of url or service is required");
        return;
    }
    if url.is_set() {
        match url.text().strip_prefix("https://") {
            None => {
                errors.invalid(&url, "'https' is the only allowed URL scheme; desired format: https://host[/path]");
                let host = url.text().split_once("://").map_or("", |(_, rest)| rest.split('/').next().unwrap_or(""));
                if host.is_empty() {
                    errors.invalid(&url, "host must be specified");
                }
            }
            Some(rest) => {
                if rest.is_empty() || rest.starts_with('/') {
                    errors.invalid(&url, "host must be specified");
                }
                if rest.contains(['@', '#', '?']) {
                    errors.invalid(&url, "user information, fragments and queries are not permitted");
                }
            }
        }
        return;
    }
    // Upstream names the one when the other is missing; clients see it so.
    for (key, named) in [("name", "namespace"), ("namespace", "name")] {
        if service.field(key).is_empty() {
            errors.required(&service.field(named).path, "");
        }
    }
    let port = service.field("port");
    if !(1..=65_535).contains(&port.int().unwrap_or(0)) {
        errors.invalid(&port, "port is not valid: must be between 1 and 65535, inclusive");
    }
    let path = service.field("path");
    if !matches!(path.text(), "" | "/") {
        if !path.text().starts_with('/') {
            errors.invalid(&path, "must start with a '/'");
        }
        let inner = path.text().trim_start_matches('/').trim_end_matches('/');
        for part in inner.split('/') {
            check::invalid(&path, names::dns_subdomain(part), errors);
        }
    }
}

fn check_versions(versions: &At<'_>, errors: &mut Errors) {
    if versions.is_empty() {
        errors.required(&versions.path, "must specify one of v1, v1beta1");
        return;
    }
    let list = versions.value.items();
    for (index, version) in versions.items().enumerate() {
        if list[..index].contains(version.value) {
            errors.invalid(&version, "duplicate version");
        }
        check::invalid(&version, names::dns1035_label(version.text()), errors);
    }
    if !list.iter().any(|version| REVIEW_VERSIONS.contains(&version.text())) {
        errors.invalid(versions, "must include at least one of v1, v1beta1");
    }
}
