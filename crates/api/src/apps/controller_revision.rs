//! ControllerRevisions: what a template was, for going back.

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Value};

use crate::check;
use crate::columns::{age, column};

pub struct ControllerRevision {
    columns: Vec<Column>,
}

impl ControllerRevision {
    pub fn new() -> ControllerRevision {
        ControllerRevision {
            columns: vec![
                column("Controller", "string", 0),
                column("Revision", "string", 0),
                column("Age", "string", 0),
            ],
        }
    }
}

impl Default for ControllerRevision {
    fn default() -> ControllerRevision {
        ControllerRevision::new()
    }
}

impl Rules for ControllerRevision {
    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let data = at.field("data");
        match change.old {
            None if !data.is_set() || matches!(data.value, Value::List(items) if items.is_empty()) => {
                errors.required(&data.path, "data is mandatory")
            }
            Some(old) if *data.value != old["data"] => errors.invalid(&data, "field is immutable"),
            _ => {}
        }
        check::non_negative(&at.field("revision"), errors);
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let controller = match meta::object::controller_of(object) {
            Some(owner) => {
                let group = owner["apiVersion"].text().split_once('/').map_or("", |(group, _)| group);
                let kind = owner["kind"].text().to_lowercase();
                match group {
                    "" => format!("{kind}/{}", owner["name"].text()),
                    group => format!("{kind}.{group}/{}", owner["name"].text()),
                }
            }
            None => "<none>".to_owned(),
        };
        vec![controller.into(), super::number(&object["revision"]), age(object, now)]
    }
}
