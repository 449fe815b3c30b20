//! IPAddresses: who holds a service address.

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Value, names};

use crate::check;
use crate::columns::{age, columns};

pub struct IpAddress {
    columns: Vec<Column>,
}

impl IpAddress {
    pub fn new() -> IpAddress {
        IpAddress { columns: columns(&[("ParentRef", "string", 0)]) }
    }
}

impl Default for IpAddress {
    fn default() -> IpAddress {
        IpAddress::new()
    }
}

impl Rules for IpAddress {
    fn check_name(&self, name: &str) -> Vec<String> {
        let canonical = name.parse::<std::net::IpAddr>().is_ok_and(|address| address.to_string() == name);
        if canonical { Vec::new() } else { vec!["must be an IP address in canonical form".to_owned()] }
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let spec = at.field("spec");
        let parent = spec.field("parentRef");
        if let Some(old) = change.old {
            check::immutable(&parent, old.at(&["spec", "parentRef"]), errors);
        }
        if !parent.is_set() {
            errors.required(&parent.path, "");
        } else {
            check::optional(&parent.field("group"), names::dns_subdomain, errors);
            for key in ["resource", "name"] {
                check::named(&parent.field(key), names::path_segment, errors);
            }
            check::optional(&parent.field("namespace"), names::path_segment, errors);
        }
    }

    fn has_generation(&self) -> bool {
        false
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let parent = object.at(&["spec", "parentRef"]);
        let parts = ["group", "resource", "namespace", "name"].map(|key| parent[key].text());
        let named: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        vec![named.join("/").into(), age(object, now)]
    }
}
