//! FlowSchema: which requests belong to which priority level.

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Value, names};

use crate::check;
use crate::columns::{age, columns, or_none};

const PRECEDENCE_DEFAULT: i64 = 1000;
const PRECEDENCE_MAX: i64 = 10_000;
const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];

pub struct FlowSchema {
    columns: Vec<Column>,
}

impl FlowSchema {
    pub fn new() -> FlowSchema {
        let shown = [
            ("PriorityLevel", "string", 0),
            ("MatchingPrecedence", "string", 0),
            ("DistinguisherMethod", "string", 0),
            ("Age", "string", 0),
            ("MissingPL", "string", 0),
        ];
        FlowSchema { columns: columns(&shown) }
    }
}

impl Default for FlowSchema {
    fn default() -> FlowSchema {
        FlowSchema::new()
    }
}

impl Rules for FlowSchema {
    fn defaults(&self, object: &mut Value) {
        let spec = object.make(&["spec"]);
        if spec["matchingPrecedence"].as_int().unwrap_or(0) == 0 {
            spec.set(&["matchingPrecedence"], PRECEDENCE_DEFAULT);
        }
    }

    fn first_status(&self) -> Option<Value> {
        Some(Value::map())
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        if change.is_status() {
            return;
        }
        let spec = at.field("spec");
        let precedence = spec.field("matchingPrecedence");
        let number = precedence.int().unwrap_or(0);
        if number <= 0 {
            errors.invalid(&precedence, "must be a positive value");
        }
        if number > PRECEDENCE_MAX {
            errors.invalid(&precedence, format!("must not be greater than {PRECEDENCE_MAX}"));
        }
        if number == 1 && at.value.at(&["metadata", "name"]).text() != "exempt" {
            errors.invalid(&precedence, "only the schema named 'exempt' may have matchingPrecedence 1");
        }
        let method = spec.field("distinguisherMethod");
        if method.is_set() {
            check::supported(&method.field("type"), &["ByNamespace", "ByUser"], errors);
        }
        let level = spec.field("priorityLevelConfiguration");
        check::named(&level.field("name"), names::dns_subdomain, errors);
        for rule in spec.field("rules").items() {
            check_rule(&rule, errors);
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let spec = &object["spec"];
        let conditions = object.at(&["status", "conditions"]).items();
        let dangling = conditions.iter().find(|condition| condition["type"].text() == "Dangling");
        vec![
            spec.at(&["priorityLevelConfiguration", "name"]).text().into(),
            spec["matchingPrecedence"].clone(),
            or_none(spec.at(&["distinguisherMethod", "type"]).text()),
            age(object, now),
            dangling.map_or("?", |condition| condition["status"].text()).into(),
        ]
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn check_rule(rule: &At<'_>, errors: &mut Errors) {
    let subjects = rule.field("subjects");
    if subjects.is_empty() {
        errors.required(&subjects.path, "subjects must contain at least one value");
    }
    for subject in subjects.items() {
        check_subject(&subject, errors);
    }
    let (resources, others) = (rule.field("resourceRules"), rule.field("nonResourceRules"));
    if resources.is_empty() && others.is_empty() {
        errors.required(&rule.path, "at least one of resourceRules and nonResourceRules has to be non-empty");
    }
    for resource in resources.items() {
        check_verbs(&resource.field("verbs"), errors);
        check_many(&resource.field("apiGroups"), errors);
        check_many(&resource.field("resources"), errors);
        let namespaces = resource.field("namespaces");
        if namespaces.is_empty() {
            if !resource.value["clusterScope"].is_true() {
                errors.required(&namespaces.path, "rules that are not cluster scoped must supply a namespace");
            }
        } else if is_all(&namespaces) {
            check_alone(&namespaces, errors);
        } else {
            for namespace in namespaces.items() {
                check::invalid(&namespace, names::dns_label(namespace.text()), errors);
            }
        }
    }
    for other in others.items() {
        check_verbs(&other.field("verbs"), errors);
        let urls = other.field("nonResourceURLs");
        check_many(&urls, errors);
        for url in urls.items().filter(|url| url.text() != "*") {
            check_url(&url, errors);
        }
    }
}

fn check_subject(subject: &At<'_>, errors: &mut Errors) {
    let part = match subject.field("kind").text() {
        "ServiceAccount" => "serviceAccount",
        "User" => "user",
        "Group" => "group",
        _ => return errors.not_supported(&subject.field("kind"), &["Group", "ServiceAccount", "User"]),
    };
    for other in ["serviceAccount", "user", "group"] {
        let found = subject.field(other);
        if other == part && !found.is_set() {
            errors.required(&found.path, "is required for this kind of subject");
        }
        if other != part && found.is_set() {
            errors.forbidden(&found.path, "is forbidden for this kind of subject");
        }
    }
    let found = subject.field(part);
    if !found.is_set() {
        return;
    }
    let name = found.field("name");
    if part != "serviceAccount" {
        check::required(&name, errors);
        return;
    }
    if name.text() != "*" {
        check::named(&name, names::dns_subdomain, errors);
    }
    check::named(&found.field("namespace"), names::dns_label, errors);
}

fn is_all(list: &At<'_>) -> bool {
    list.value.items().iter().any(|item| item.text() == "*")
}

fn check_alone(list: &At<'_>, errors: &mut Errors) {
    if list.value.items().len() > 1 {
        errors.invalid(list, "if '*' is present, must not specify other values");
    }
}

/// A list that must not be empty, and in which `*` stands alone.
fn check_many(list: &At<'_>, errors: &mut Errors) {
    check::required(list, errors);
    if is_all(list) {
        check_alone(list, errors);
    }
}

fn check_verbs(verbs: &At<'_>, errors: &mut Errors) {
    check_many(verbs, errors);
    if !is_all(verbs) && verbs.value.items().iter().any(|verb| !VERBS.contains(&verb.text())) {
        errors.not_supported(verbs, VERBS);
    }
}

fn check_url(url: &At<'_>, errors: &mut Errors) {
    let text = url.text();
    if text == "/" {
        return;
    }
    let wrong = match text.find('*') {
        _ if !text.starts_with('/') => Some("must start with slash"),
        _ if text.contains(' ') => Some("must not contain white-space"),
        _ if text.contains("//") => Some("must not contain double slash"),
        Some(at) if at + 1 != text.len() || !text.ends_with("/*") => Some("wildcard can only do suffix matching"),
        _ => None,
    };
    if let Some(why) = wrong {
        errors.invalid(url, why);
    }
}
