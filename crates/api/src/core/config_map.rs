//! ConfigMaps: settings by key.

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Value};

use crate::columns::{age, columns};

pub struct ConfigMap {
    columns: Vec<Column>,
}

impl ConfigMap {
    pub fn new() -> ConfigMap {
        ConfigMap { columns: columns(&[("Data", "string", 0), ("Age", "string", 0)]) }
    }
}

impl Default for ConfigMap {
    fn default() -> ConfigMap {
        ConfigMap::new()
    }
}

impl Rules for ConfigMap {
    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let (data, binary) = (at.field("data"), at.field("binaryData"));
        let mut bytes = 0;
        for (key, value) in data.members() {
            super::secret::check_key(&data, key, errors);
            if binary.value.get(key).is_some() {
                errors.invalid_value(&data.path.key(key), key, "duplicate of key present in binaryData");
            }
            bytes += value.text().len();
        }
        for (key, value) in binary.members() {
            super::secret::check_key(&binary, key, errors);
            bytes += value.text().len() / 4 * 3;
        }
        if bytes > super::secret::DATA_MAX_BYTES {
            errors.too_long(&meta::Path::ROOT, super::secret::DATA_MAX_BYTES);
        }
        if let Some(old) = change.old {
            super::secret::check_immutable(at, old, &["data", "binaryData"], errors);
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let keys = object["data"].entries().len() + object["binaryData"].entries().len();
        vec![Value::Int(keys as i64), age(object, now)]
    }
}
