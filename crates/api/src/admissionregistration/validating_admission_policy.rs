//! ValidatingAdmissionPolicy: rules in CEL that writes must hold.

use base::Time;
use cel::{Env, Type};
use meta::{At, Change, Column, Errors, Rules, Value, names};

use super::match_resources as matches;
use crate::check;
use crate::columns::{age, columns};
use crate::expressions;

const AUDIT_ANNOTATIONS_MAX: usize = 20;
const REASONS: &[&str] = &["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];

pub struct ValidatingAdmissionPolicy {
    columns: Vec<Column>,
}

impl ValidatingAdmissionPolicy {
    pub fn new() -> ValidatingAdmissionPolicy {
        let shown = [("Validations", "integer", 0), ("ParamKind", "string", 0), ("Age", "string", 0)];
        ValidatingAdmissionPolicy { columns: columns(&shown) }
    }
}

impl Default for ValidatingAdmissionPolicy {
    fn default() -> ValidatingAdmissionPolicy {
        ValidatingAdmissionPolicy::new()
    }
}

impl Rules for ValidatingAdmissionPolicy {
    fn defaults(&self, object: &mut Value) {
        let spec = object.make(&["spec"]);
        spec.default("failurePolicy", "Fail");
        if let Some(constraints) = spec.get_mut("matchConstraints") {
            matches::defaults(constraints);
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
        check::set_word(&spec.field("failurePolicy"), &["Fail", "Ignore"], errors);
        matches::check_param_kind(&spec.field("paramKind"), errors);
        matches::check_constraints(&spec.field("matchConstraints"), errors);
        let env = expressions::admission(spec.field("paramKind").is_set());
        matches::check_conditions(&spec.field("matchConditions"), errors);
        expressions::check_conditions(&spec.field("matchConditions"), &env, errors);
        matches::check_variables(&spec.field("variables"), errors);
        let env = expressions::with_variables(&spec.field("variables"), &env, errors);
        let (validations, annotations) = (spec.field("validations"), spec.field("auditAnnotations"));
        if validations.is_empty() && annotations.is_empty() {
            errors.required(&validations.path, "validations or auditAnnotations must contain at least one item");
            errors.required(&annotations.path, "validations or auditAnnotations must contain at least one item");
        }
        for validation in validations.items() {
            check_validation(&validation, &env, errors);
        }
        check_annotations(at.value.at(&["metadata", "name"]).text(), &annotations, &env, errors);
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let spec = &object["spec"];
        vec![
            Value::Int(spec["validations"].items().len() as i64),
            matches::param_kind_text(&spec["paramKind"]),
            age(object, now),
        ]
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn check_validation(validation: &At<'_>, env: &Env, errors: &mut Errors) {
    let (expression, message) = (validation.field("expression"), validation.field("message"));
    if expression.text().trim().is_empty() {
        errors.required(&expression.path, "expression is not specified");
    } else {
        expressions::check(&expression, env, &[Type::Bool], errors);
    }
    let made = validation.field("messageExpression");
    if !made.is_empty() {
        expressions::check(&made, env, &[Type::STRING], errors);
    }
    if !message.is_empty() {
        if message.text().trim().is_empty() {
            errors.invalid(&message, "message must be non-empty if specified");
        } else if message.text().contains(['\n', '\r']) {
            errors.invalid(&message, "message must not contain line breaks");
        }
    } else if expression.text().contains(['\n', '\r']) && validation.field("messageExpression").is_empty() {
        errors.required(&message.path, "message must be specified if expression contains line breaks");
    }
    check::set_word(&validation.field("reason"), REASONS, errors);
}

fn check_annotations(policy: &str, annotations: &At<'_>, env: &Env, errors: &mut Errors) {
    let list = annotations.value.items();
    if list.len() > AUDIT_ANNOTATIONS_MAX {
        errors.too_many(&annotations.path, list.len(), AUDIT_ANNOTATIONS_MAX);
    }
    for (index, annotation) in annotations.items().enumerate() {
        let (key, value) = (annotation.field("key"), annotation.field("valueExpression"));
        check::invalid(&key, names::qualified_name(&format!("{policy}/{}", key.text())), errors);
        if value.text().trim().is_empty() {
            errors.required(&value.path, "valueExpression is not specified");
        } else {
            expressions::check(&value, env, &[Type::STRING, Type::Null], errors);
        }
        if list[..index].iter().any(|other| other["key"] == *key.value) {
            errors.duplicate(&key);
        }
    }
}
