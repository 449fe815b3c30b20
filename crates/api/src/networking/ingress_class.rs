//! IngressClasses: who serves ingresses.

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Value, names};

use crate::check;
use crate::columns::{age, column, columns, or_none};

pub struct IngressClass {
    columns: Vec<Column>,
}

impl IngressClass {
    pub fn new() -> IngressClass {
        let mut all = vec![Column { format: "name".into(), ..column("Name", "string", 0) }];
        all.extend(columns(&[("Controller", "string", 0), ("Parameters", "string", 0), ("Age", "string", 0)]));
        IngressClass { columns: all }
    }
}

impl Default for IngressClass {
    fn default() -> IngressClass {
        IngressClass::new()
    }
}

/// The name, marked when the class is the one that is taken where none is named.
pub fn name_with_default(object: &Value, annotation: &str) -> Value {
    let meta = &object["metadata"];
    match meta["annotations"][annotation].text() {
        "true" => format!("{} (default)", meta["name"].text()).into(),
        _ => meta["name"].clone(),
    }
}

/// A path with a domain: `example.com/ingress`.
fn prefixed_path(at: &At<'_>, errors: &mut Errors) {
    match at.text().split_once('/') {
        Some((domain, path)) if !domain.is_empty() && !path.is_empty() => {
            check::invalid(at, names::dns_subdomain(domain), errors);
        }
        _ => errors.invalid(at, "must be a domain-prefixed path (such as \"acme.io/foo\")"),
    }
}

impl Rules for IngressClass {
    fn defaults(&self, object: &mut Value) {
        if let Some(parameters) = object.at_mut(&["spec", "parameters"]).filter(|found| !found.is_null()) {
            parameters.default("scope", "Cluster");
        }
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let spec = at.field("spec");
        let controller = spec.field("controller");
        match change.old {
            Some(old) => check::immutable(&controller, old.at(&["spec", "controller"]), errors),
            None if controller.is_empty() => errors.required(&controller.path, ""),
            None => {}
        }
        if !controller.is_empty() {
            if controller.text().len() > 250 {
                errors.too_long(&controller.path, 250);
            }
            prefixed_path(&controller, errors);
        }
        let parameters = spec.field("parameters");
        if !parameters.is_set() {
            return;
        }
        let group = parameters.field("apiGroup");
        if group.is_set() {
            check::optional(&group, names::dns_subdomain, errors);
        }
        for key in ["kind", "name"] {
            check::named(&parameters.field(key), names::path_segment, errors);
        }
        let (scope, namespace) = (parameters.field("scope"), parameters.field("namespace"));
        check::supported(&scope, &["Cluster", "Namespace"], errors);
        match scope.text() {
            "Namespace" if !namespace.is_set() => {
                errors.required(&namespace.path, "`parameters.scope` is set to 'Namespace'");
            }
            "Namespace" => check::invalid(&namespace, names::dns_label(namespace.text()), errors),
            "Cluster" if namespace.is_set() => {
                errors.forbidden(&namespace.path, "`parameters.scope` is set to 'Cluster'");
            }
            _ => {}
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let parameters = object.at(&["spec", "parameters"]);
        let text = match (parameters.is_null(), parameters["apiGroup"].text()) {
            (true, _) => String::new(),
            (false, "") => format!("{}/{}", parameters["kind"].text(), parameters["name"].text()),
            (false, group) => format!("{}.{group}/{}", parameters["kind"].text(), parameters["name"].text()),
        };
        vec![
            name_with_default(object, "ingressclass.kubernetes.io/is-default-class"),
            object.at(&["spec", "controller"]).text().into(),
            or_none(&text),
            age(object, now),
        ]
    }

    fn has_generation(&self) -> bool {
        true
    }
}
