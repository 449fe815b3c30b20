//! RuntimeClasses: what runs a pod.

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Value, names};

use crate::check;
use crate::columns::{age, columns};
use crate::core::pod_spec::{affinity, resources};

pub struct RuntimeClass {
    columns: Vec<Column>,
}

impl RuntimeClass {
    pub fn new() -> RuntimeClass {
        RuntimeClass { columns: columns(&[("Handler", "string", 0), ("Age", "string", 0)]) }
    }
}

impl Default for RuntimeClass {
    fn default() -> RuntimeClass {
        RuntimeClass::new()
    }
}

impl Rules for RuntimeClass {
    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let handler = at.field("handler");
        check::named(&handler, names::dns_label, errors);
        if let Some(old) = change.old {
            check::immutable(&handler, &old["handler"], errors);
        }
        let overhead = at.field("overhead");
        for (name, amount) in overhead.field("podFixed").members() {
            resources::check_name(&amount, name, errors);
            resources::check_quantity(&amount, name, errors);
        }
        let scheduling = at.field("scheduling");
        check::labels(&scheduling.field("nodeSelector"), errors);
        let tolerations = scheduling.field("tolerations");
        affinity::check_tolerations(&tolerations, errors);
        for (index, toleration) in tolerations.items().enumerate() {
            if tolerations.value.items()[..index].contains(toleration.value) {
                errors.duplicate(&toleration);
            }
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        vec![object["handler"].text().into(), age(object, now)]
    }
}
