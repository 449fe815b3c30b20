//! VolumeAttributesClass: attributes of volumes that may change while they are used.

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Value};

use super::csi_driver::check_driver_name;
use crate::columns::{age, columns};

const PARAMETERS_MAX: usize = 512;
const PARAMETERS_MAX_BYTES: usize = 256 * 1024;

pub struct VolumeAttributesClass {
    columns: Vec<Column>,
}

impl VolumeAttributesClass {
    pub fn new() -> VolumeAttributesClass {
        VolumeAttributesClass { columns: columns(&[("DriverName", "string", 0), ("Age", "string", 0)]) }
    }
}

impl Default for VolumeAttributesClass {
    fn default() -> VolumeAttributesClass {
        VolumeAttributesClass::new()
    }
}

impl Rules for VolumeAttributesClass {
    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let (driver, parameters) = (at.field("driverName"), at.field("parameters"));
        check_driver_name(&driver, errors);
        if parameters.is_empty() {
            errors.required(&parameters.path, "must contain at least one key/value pair");
        }
        if parameters.map().len() > PARAMETERS_MAX {
            errors.too_long(&parameters.path, PARAMETERS_MAX);
        }
        let mut bytes = 0;
        for (key, value) in parameters.members() {
            if key.is_empty() {
                errors.invalid(&parameters, "parameter keys must not be empty");
            }
            bytes += key.len() + value.text().len();
        }
        if bytes > PARAMETERS_MAX_BYTES {
            errors.too_long(&parameters.path, PARAMETERS_MAX_BYTES);
        }
        if let Some(old) = change.old {
            for (field, key) in [(&driver, "driverName"), (&parameters, "parameters")] {
                if *field.value != old[key] {
                    errors.forbidden(&field.path, format!("updates to {key} are forbidden."));
                }
            }
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        vec![object["driverName"].text().into(), age(object, now)]
    }
}
