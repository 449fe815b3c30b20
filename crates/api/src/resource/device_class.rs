//! DeviceClass: devices that are asked for by one name.

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Value};

use super::requests::{check_configuration, check_selectors};
use crate::columns::{age, columns};

pub struct DeviceClass {
    columns: Vec<Column>,
}

impl DeviceClass {
    pub fn new() -> DeviceClass {
        DeviceClass { columns: columns(&[("Age", "string", 0)]) }
    }
}

impl Default for DeviceClass {
    fn default() -> DeviceClass {
        DeviceClass::new()
    }
}

impl Rules for DeviceClass {
    fn check(&self, _: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let spec = at.field("spec");
        check_selectors(&spec.field("selectors"), errors);
        check_configuration(&spec.field("config"), None, errors);
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        vec![age(object, now)]
    }

    fn has_generation(&self) -> bool {
        true
    }
}
