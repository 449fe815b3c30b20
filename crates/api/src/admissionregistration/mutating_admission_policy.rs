//! MutatingAdmissionPolicy: changes in CEL that are made to writes.

use base::Time;
use cel::{Env, Type};
use meta::{At, Change, Column, Errors, Rules, Value};

use super::match_resources as matches;
use crate::check;
use crate::columns::{age, columns};
use crate::expressions;

/// What is deleted cannot be changed.
const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "UPDATE"];

pub struct MutatingAdmissionPolicy {
    columns: Vec<Column>,
}

impl MutatingAdmissionPolicy {
    pub fn new() -> MutatingAdmissionPolicy {
        let shown = [("Mutations", "integer", 0), ("ParamKind", "string", 0), ("Age", "string", 0)];
        MutatingAdmissionPolicy { columns: columns(&shown) }
    }
}

impl Default for MutatingAdmissionPolicy {
    fn default() -> MutatingAdmissionPolicy {
        MutatingAdmissionPolicy::new()
    }
}

impl Rules for MutatingAdmissionPolicy {
    fn defaults(&self, object: &mut Value) {
        let spec = object.make(&["spec"]);
        spec.default("failurePolicy", "Fail");
        if let Some(constraints) = spec.get_mut("matchConstraints") {
            matches::defaults(constraints);
        }
    }

    fn check(&self, _: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let spec = at.field("spec");
        check::set_word(&spec.field("failurePolicy"), &["Fail", "Ignore"], errors);
        check::word(&spec.field("reinvocationPolicy"), &["IfNeeded", "Never"], errors);
        matches::check_param_kind(&spec.field("paramKind"), errors);
        let constraints = spec.field("matchConstraints");
        matches::check_constraints(&constraints, errors);
        let rules = constraints.field("resourceRules");
        for rule in rules.value.items() {
            // The path leaves out the places upstream, so clients see it so.
            for operation in rule["operations"].items() {
                let place = At { value: operation, path: rules.path.field("operations") };
                check::supported(&place, OPERATIONS, errors);
            }
        }
        let env = expressions::admission(spec.field("paramKind").is_set());
        matches::check_conditions(&spec.field("matchConditions"), errors);
        expressions::check_conditions(&spec.field("matchConditions"), &env, errors);
        matches::check_variables(&spec.field("variables"), errors);
        let env = expressions::with_variables(&spec.field("variables"), &env, errors).with_patches();
        let mutations = spec.field("mutations");
        check::required(&mutations, errors);
        for mutation in mutations.items() {
            check_mutation(&mutation, &env, errors);
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let spec = &object["spec"];
        vec![
            Value::Int(spec["mutations"].items().len() as i64),
            matches::param_kind_text(&spec["paramKind"]),
            age(object, now),
        ]
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn check_mutation(mutation: &At<'_>, env: &Env, errors: &mut Errors) {
    let of_type = mutation.field("patchType");
    let (wanted, other) = match of_type.text() {
        "" => return errors.required(&of_type.path, ""),
        "ApplyConfiguration" => ("applyConfiguration", "jsonPatch"),
        "JSONPatch" => ("jsonPatch", "applyConfiguration"),
        _ => return errors.not_supported(&of_type, &["ApplyConfiguration", "JSONPatch"]),
    };
    if mutation.field(other).is_set() {
        errors.forbidden(&mutation.field(other).path, format!("must be unset if patchType is {}", of_type.text()));
    }
    let patch = mutation.field(wanted);
    if !patch.is_set() {
        errors.required(&patch.path, format!("must be specified if patchType is {}", of_type.text()));
        return;
    }
    let expression = patch.field("expression");
    if expression.text().trim().is_empty() {
        errors.required(&expression.path, "expression is not specified");
        return;
    }
    let known = errors.0.len();
    let result = expressions::check(&expression, env, &[], errors);
    let fits = match (wanted, result) {
        ("applyConfiguration", Some(Type::Object(object))) => object.name == "Object",
        ("jsonPatch", Some(Type::List(item, _))) => match &*item {
            Type::Object(object) => object.name == "JSONPatch",
            other => other.is_dyn(),
        },
        _ => false,
    };
    if !fits && errors.0.len() == known {
        errors.invalid(&expression, format!("does not evaluate to what patchType {} asks for", of_type.text()));
    }
}
