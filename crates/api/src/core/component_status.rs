//! ComponentStatuses: whether the parts of the control plane are well. Nothing of them is stored; the server says what it
//! knows when it is asked.

use base::Time;
use meta::{Column, Rules, Value};

use crate::columns::columns;

pub struct ComponentStatus {
    columns: Vec<Column>,
}

impl ComponentStatus {
    pub fn new() -> ComponentStatus {
        ComponentStatus { columns: columns(&["Status", "Message", "Error"].map(|name| (name, "string", 0))) }
    }
}

impl Default for ComponentStatus {
    fn default() -> ComponentStatus {
        ComponentStatus::new()
    }
}

impl Rules for ComponentStatus {
    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, _: Time) -> Vec<Value> {
        let conditions = object["conditions"].items();
        let Some(healthy) = conditions.iter().find(|condition| condition["type"].text() == "Healthy") else {
            return vec!["Unknown".into(), "".into(), "".into()];
        };
        let status = if healthy["status"].text() == "True" { "Healthy" } else { "Unhealthy" };
        vec![status.into(), healthy["message"].text().into(), healthy["error"].text().into()]
    }
}
