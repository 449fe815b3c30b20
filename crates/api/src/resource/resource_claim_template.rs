//! ResourceClaimTemplate: what the claims of pods are made from.

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Value};

use super::requests;
use crate::check;
use crate::columns::{age, columns};

pub struct ResourceClaimTemplate {
    columns: Vec<Column>,
}

impl ResourceClaimTemplate {
    pub fn new() -> ResourceClaimTemplate {
        ResourceClaimTemplate { columns: columns(&[("Age", "string", 0)]) }
    }
}

impl Default for ResourceClaimTemplate {
    fn default() -> ResourceClaimTemplate {
        ResourceClaimTemplate::new()
    }
}

impl Rules for ResourceClaimTemplate {
    fn defaults(&self, object: &mut Value) {
        if let Some(spec) = object.at_mut(&["spec", "spec"]) {
            requests::defaults(spec);
        }
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let spec = at.field("spec");
        let metadata = spec.field("metadata");
        check::labels(&metadata.field("labels"), errors);
        check::annotations(&metadata.field("annotations"), errors);
        requests::check_spec(&spec.field("spec"), errors);
        if let Some(old) = change.old {
            check::immutable(&spec, &old["spec"], errors);
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        vec![age(object, now)]
    }
}
