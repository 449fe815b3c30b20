//! ResourceQuotas: how much a namespace may use. Not here: holding anyone to it (admission) and counting (a controller).

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Value};

use super::pod_spec::resources;
use super::pod_update::same;
use crate::columns::{age, columns};

pub struct ResourceQuota {
    columns: Vec<Column>,
}

impl ResourceQuota {
    pub fn new() -> ResourceQuota {
        ResourceQuota { columns: columns(&[("Request", "string", 0), ("Limit", "string", 0), ("Age", "string", 0)]) }
    }
}

impl Default for ResourceQuota {
    fn default() -> ResourceQuota {
        ResourceQuota::new()
    }
}

const SCOPES: [&str; 7] = [
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "CrossNamespacePodAffinity",
    "VolumeAttributesClass",
];

impl Rules for ResourceQuota {
    fn first_status(&self) -> Option<Value> {
        Some(Value::map())
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let (spec, status) = (at.field("spec"), at.field("status"));
        if change.is_status() {
            check_amounts(&status.field("hard"), errors);
            check_amounts(&status.field("used"), errors);
            return;
        }
        check_amounts(&spec.field("hard"), errors);
        let scopes = spec.field("scopes");
        for scope in scopes.items() {
            if !SCOPES.contains(&scope.text()) {
                errors.invalid(&scopes, "unsupported scope");
            }
        }
        let selector = spec.field("scopeSelector");
        let list = selector.field("matchExpressions");
        for expression in list.value.items() {
            check_scope(&At { value: expression, path: list.path }, errors);
        }
        if let Some(old) = change.old
            && !same(scopes.value, &old["spec"]["scopes"])
        {
            errors.invalid(&scopes, "field is immutable");
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let status = &object["status"];
        let list = |limits: bool| -> Value {
            let all: Vec<String> = status["hard"]
                .entries()
                .iter()
                .filter(|(name, _)| name.starts_with("limits.") == limits)
                .map(|(name, hard)| {
                    let used = match status["used"][name].text() {
                        "" => "0",
                        used => used,
                    };
                    format!("{name}: {used}/{}", hard.text())
                })
                .collect();
            all.join(", ").into()
        };
        vec![list(false), list(true), age(object, now)]
    }
}

fn check_amounts(amounts: &At<'_>, errors: &mut Errors) {
    for (name, amount) in amounts.members() {
        resources::check_name(&amount, name, errors);
        let counted = name.starts_with("count/");
        if !name.contains('/') && !counted && !resources::is_standard(name) {
            errors.invalid_value(&amount.path, name, "must be a standard resource for quota");
        }
        resources::check_quantity(&amount, name, errors);
    }
}

fn check_scope(expression: &At<'_>, errors: &mut Errors) {
    let (scope, operator) = (expression.field("scopeName"), expression.field("operator"));
    let values = expression.field("values");
    if !SCOPES.contains(&scope.text()) {
        errors.invalid(&scope, "unsupported scope");
    }
    let only_exists = matches!(
        scope.text(),
        "BestEffort" | "NotBestEffort" | "Terminating" | "NotTerminating" | "CrossNamespacePodAffinity"
    );
    if only_exists && operator.text() != "Exists" {
        errors.invalid(&operator, "must be 'Exist' when scope is any of the fixed scopes");
    }
    match operator.text() {
        "In" | "NotIn" => {
            if values.is_empty() {
                errors.required(
                    &values.path,
                    "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
                );
            }
        }
        "Exists" | "DoesNotExist" => {
            if !values.is_empty() {
                errors.invalid(
                    &values,
                    "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
                );
            }
        }
        _ => errors.invalid(&operator, "not a valid selector operator"),
    }
}
