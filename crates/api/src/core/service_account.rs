//! ServiceAccounts: who pods are.

use base::Time;
use meta::{Column, Rules, Value};

use crate::columns::{age, columns};

pub struct ServiceAccount {
    columns: Vec<Column>,
}

impl ServiceAccount {
    pub fn new() -> ServiceAccount {
        ServiceAccount { columns: columns(&[("Age", "string", 0)]) }
    }
}

impl Default for ServiceAccount {
    fn default() -> ServiceAccount {
        ServiceAccount::new()
    }
}

impl Rules for ServiceAccount {
    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        vec![age(object, now)]
    }
}
