//! Leases: who leads, and until when.

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Value};

use crate::check;
use crate::columns::{age, columns};

pub struct Lease {
    columns: Vec<Column>,
}

impl Lease {
    pub fn new() -> Lease {
        Lease { columns: columns(&[("Holder", "string", 0), ("Age", "string", 0)]) }
    }
}

impl Default for Lease {
    fn default() -> Lease {
        Lease::new()
    }
}

impl Rules for Lease {
    fn check(&self, _: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let spec = at.field("spec");
        check::positive(&spec.field("leaseDurationSeconds"), errors);
        check::non_negative(&spec.field("leaseTransitions"), errors);
        let (strategy, holder) = (spec.field("strategy"), spec.field("preferredHolder"));
        if holder.is_set() && strategy.is_empty() {
            errors.forbidden(&holder.path, "may only be specified when `strategy` is defined");
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        vec![object.at(&["spec", "holderIdentity"]).text().into(), age(object, now)]
    }
}
