//! ValidatingAdmissionPolicyBinding and MutatingAdmissionPolicyBinding: where a policy holds, and with which parameters.

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Value, names};

use super::match_resources as matches;
use crate::check;
use crate::columns::{age, columns};

const ACTIONS: &[&str] = &["Audit", "Deny", "Warn"];

pub struct PolicyBinding {
    mutating: bool,
    columns: Vec<Column>,
}

impl PolicyBinding {
    pub fn new(mutating: bool) -> PolicyBinding {
        let shown = [("PolicyName", "string", 0), ("ParamRef", "string", 0), ("Age", "string", 0)];
        PolicyBinding { mutating, columns: columns(&shown) }
    }
}

impl Rules for PolicyBinding {
    fn defaults(&self, object: &mut Value) {
        if let Some(found) = object.at_mut(&["spec", "matchResources"]) {
            matches::defaults(found);
        }
    }

    fn check(&self, _: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let spec = at.field("spec");
        check::named(&spec.field("policyName"), names::dns_subdomain, errors);
        check_param(&spec.field("paramRef"), errors);
        matches::check(&spec.field("matchResources"), errors);
        if self.mutating {
            return;
        }
        let actions = spec.field("validationActions");
        check::required(&actions, errors);
        for (index, action) in actions.items().enumerate() {
            check::supported(&action, ACTIONS, errors);
            if actions.value.items()[..index].contains(action.value) {
                errors.duplicate(&action);
            }
        }
        let has = |word: &str| actions.value.items().iter().any(|action| action.text() == word);
        if has("Deny") && has("Warn") {
            errors.invalid(&actions, "must not contain both Deny and Warn (repeating the same validation failure)");
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let spec = &object["spec"];
        let param = &spec["paramRef"];
        let text = match (param.is_null(), param["name"].text(), param["namespace"].text()) {
            (true, ..) => "<unset>".to_owned(),
            (false, "", _) => meta::Selector::of(&param["selector"]).to_string(),
            (false, name, "") => format!("*/{name}"),
            (false, name, namespace) => format!("{namespace}/{name}"),
        };
        vec![spec["policyName"].text().into(), text.into(), age(object, now)]
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn check_param(param: &At<'_>, errors: &mut Errors) {
    if !param.is_set() {
        return;
    }
    let (name, selector) = (param.field("name"), param.field("selector"));
    match (name.is_empty(), selector.is_set()) {
        (false, true) => errors.forbidden(&name.path, "name and selector are mutually exclusive"),
        (false, false) => check::invalid(&name, names::path_segment(name.text()), errors),
        (true, true) => check::label_selector(&selector, errors),
        (true, false) => errors.required(&param.path, "one of name or selector must be specified"),
    }
    let action = param.field("parameterNotFoundAction");
    check::word(&action, &["Allow", "Deny"], errors);
}
