//! ServiceCIDRs: ranges of service addresses.

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Value};

use crate::address::Cidr;
use crate::check;
use crate::columns::{age, columns};

pub struct ServiceCidr {
    columns: Vec<Column>,
}

impl ServiceCidr {
    pub fn new() -> ServiceCidr {
        ServiceCidr { columns: columns(&[("CIDRs", "string", 0), ("Age", "string", 0)]) }
    }
}

impl Default for ServiceCidr {
    fn default() -> ServiceCidr {
        ServiceCidr::new()
    }
}

impl Rules for ServiceCidr {
    fn first_status(&self) -> Option<Value> {
        Some(Value::map())
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        if change.is_status() {
            return;
        }
        let spec = at.field("spec");
        let ranges = spec.field("cidrs");
        if let Some(old) = change.old {
            check::immutable(&ranges, old.at(&["spec", "cidrs"]), errors);
            return;
        }
        let list = ranges.value.items();
        if list.is_empty() {
            errors.required(&ranges.path, "at least one CIDR required");
        }
        let families: Vec<bool> =
            list.iter().filter_map(|range| Cidr::parse(range.text())).map(|range| !range.is_ipv6()).collect();
        if list.len() > 2 || (families.len() == 2 && families[0] == families[1]) {
            errors.invalid(&ranges, "may specify no more than one IP for each IP family");
        }
        for range in ranges.items() {
            match Cidr::parse(range.text()) {
                Some(found) if found.network() == found => {}
                Some(_) => errors.invalid(&range, "must be in canonical form"),
                None => check::cidr(&range, errors),
            }
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let ranges: Vec<&str> = object.at(&["spec", "cidrs"]).items().iter().map(Value::text).collect();
        vec![ranges.join(",").into(), age(object, now)]
    }
}
