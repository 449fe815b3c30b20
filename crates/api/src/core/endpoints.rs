//! Endpoints: the older form of endpoint slices.

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Value, names};

use crate::check;
use crate::columns::{age, columns};
use crate::discovery::endpoint_slice::{check_not_special, set};

pub struct Endpoints {
    columns: Vec<Column>,
}

impl Endpoints {
    pub fn new() -> Endpoints {
        Endpoints { columns: columns(&[("Endpoints", "string", 0), ("Age", "string", 0)]) }
    }
}

impl Default for Endpoints {
    fn default() -> Endpoints {
        Endpoints::new()
    }
}

impl Rules for Endpoints {
    fn defaults(&self, object: &mut Value) {
        let Some(subsets) = object.get_mut("subsets") else { return };
        for subset in subsets.items_mut() {
            let Some(ports) = subset.get_mut("ports") else { continue };
            for port in ports.items_mut() {
                if port["protocol"].text().is_empty() {
                    port.set(&["protocol"], "TCP");
                }
            }
        }
    }

    fn check(&self, _: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        for subset in at.field("subsets").items() {
            let (ready, others) = (subset.field("addresses"), subset.field("notReadyAddresses"));
            if ready.is_empty() && others.is_empty() {
                errors.required(&subset.path, "must specify `addresses` or `notReadyAddresses`");
            }
            for address in ready.items().chain(others.items()) {
                let ip = address.field("ip");
                check::address(&ip, errors);
                check_not_special(&ip, errors);
                check::optional(&address.field("hostname"), names::dns_label, errors);
                set(&address.field("nodeName"), names::dns_subdomain, errors);
            }
            let ports = subset.field("ports");
            let many = ports.value.items().len() > 1;
            for port in ports.items() {
                let name = port.field("name");
                if many && name.is_empty() {
                    errors.required(&name.path, "");
                }
                check::optional(&name, names::dns_label, errors);
                check::port(&port.field("port"), errors);
                check::word(&port.field("protocol"), &["SCTP", "TCP", "UDP"], errors);
                check::optional(&port.field("appProtocol"), names::qualified_name, errors);
            }
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        vec![ends(&object["subsets"]).into(), age(object, now)]
    }
}

/// Ends that a cell shows.
const SHOWN: usize = 3;

fn ends(subsets: &Value) -> String {
    let mut all = Vec::new();
    for subset in subsets.items() {
        let addresses = subset["addresses"].items();
        if subset["ports"].items().is_empty() {
            all.extend(addresses.iter().map(|address| address["ip"].text().to_owned()));
        }
        for port in subset["ports"].items() {
            let number = port["port"].as_int().unwrap_or(0);
            all.extend(addresses.iter().map(|address| match address["ip"].text() {
                ip if ip.contains(':') => format!("[{ip}]:{number}"),
                ip => format!("{ip}:{number}"),
            }));
        }
    }
    match all.len() {
        0 => "<none>".to_owned(),
        count if count > SHOWN => format!("{} + {} more...", all[..SHOWN].join(","), count - SHOWN),
        _ => all.join(","),
    }
}
