//! EndpointSlices: some of the addresses behind a service.

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Value, names};

use crate::check;
use crate::columns::{age, columns};

pub struct EndpointSlice {
    columns: Vec<Column>,
}

impl EndpointSlice {
    pub fn new() -> EndpointSlice {
        EndpointSlice {
            columns: columns(&[
                ("AddressType", "string", 0),
                ("Ports", "string", 0),
                ("Endpoints", "string", 0),
                ("Age", "string", 0),
            ]),
        }
    }
}

impl Default for EndpointSlice {
    fn default() -> EndpointSlice {
        EndpointSlice::new()
    }
}

impl Rules for EndpointSlice {
    fn defaults(&self, object: &mut Value) {
        for key in ["endpoints", "ports"] {
            if object[key].items().is_empty() {
                object.set(&[key], Value::Null);
            }
        }
        if let Some(ports) = object.get_mut("ports") {
            for port in ports.items_mut() {
                port.default("name", "");
                port.default("protocol", "TCP");
            }
        }
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let of_type = at.field("addressType");
        check::word(&of_type, &["FQDN", "IPv4", "IPv6"], errors);
        if let Some(old) = change.old {
            check::immutable(&of_type, &old["addressType"], errors);
        }
        let endpoints = at.field("endpoints");
        if endpoints.value.items().len() > ENDPOINTS_MAX {
            errors.too_many(&endpoints.path, endpoints.value.items().len(), ENDPOINTS_MAX);
        }
        for endpoint in endpoints.items() {
            check_endpoint(&endpoint, of_type.text(), errors);
        }
        let ports = at.field("ports");
        if ports.value.items().len() > PORTS_MAX {
            errors.too_many(&ports.path, ports.value.items().len(), PORTS_MAX);
            return;
        }
        for (index, port) in ports.items().enumerate() {
            let name = port.field("name");
            check::optional(&name, names::dns_label, errors);
            if ports.value.items()[..index].iter().any(|other| other["name"] == *name.value) {
                errors.duplicate(&name);
            }
            check::supported(&port.field("protocol"), &["SCTP", "TCP", "UDP"], errors);
            set(&port.field("appProtocol"), names::qualified_name, errors);
        }
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let ports: Vec<String> = object["ports"]
            .items()
            .iter()
            .map(|port| port["port"].as_int().map_or_else(|| "*".to_owned(), |port| port.to_string()))
            .collect();
        let addresses: Vec<&str> =
            object["endpoints"].items().iter().flat_map(|end| end["addresses"].items()).map(Value::text).collect();
        vec![object["addressType"].text().into(), short(&ports), short(&addresses), age(object, now)]
    }
}

const ENDPOINTS_MAX: usize = 1000;
const PORTS_MAX: usize = 20_000;
const ADDRESSES_MAX: usize = 100;
/// Items that a cell shows.
const SHOWN: usize = 3;

fn short<T: AsRef<str>>(all: &[T]) -> Value {
    let texts: Vec<&str> = all.iter().map(AsRef::as_ref).collect();
    match texts.len() {
        0 => "<unset>".into(),
        count if count > SHOWN => format!("{} + {} more...", texts[..SHOWN].join(","), count - SHOWN).into(),
        _ => texts.join(",").into(),
    }
}

/// A text that, once it is there, may not be empty either.
pub fn set(at: &At<'_>, check: fn(&str) -> Vec<String>, errors: &mut Errors) {
    if at.is_set() {
        check::invalid(at, check(at.text()), errors);
    }
}

fn check_endpoint(endpoint: &At<'_>, of_type: &str, errors: &mut Errors) {
    let addresses = endpoint.field("addresses");
    let count = addresses.value.items().len();
    if count == 0 {
        errors.required(&addresses.path, "must contain at least 1 address");
    } else if count > ADDRESSES_MAX {
        errors.too_many(&addresses.path, count, ADDRESSES_MAX);
    }
    for address in addresses.items() {
        let parsed = address.text().parse::<std::net::IpAddr>();
        match of_type {
            "IPv4" | "IPv6" => {
                let fits = parsed.as_ref().is_ok_and(|parsed| parsed.is_ipv4() == (of_type == "IPv4"));
                check::address(&address, errors);
                if check::is_address(address.text()) && parsed.is_ok() && !fits {
                    errors.invalid(&address, format!("must be an {of_type} address"));
                }
                check_not_special(&address, errors);
            }
            "FQDN" => check::invalid(&address, names::dns_subdomain(address.text()), errors),
            _ => {}
        }
    }
    check::optional(&endpoint.field("hostname"), names::dns_label, errors);
    set(&endpoint.field("nodeName"), names::dns_subdomain, errors);
    let hints = endpoint.field("hints");
    for zone in hints.field("forZones").items() {
        check::invalid(&zone.field("name"), names::label_value(zone.field("name").text()), errors);
    }
    for node in hints.field("forNodes").items() {
        check::invalid(&node.field("name"), names::dns_subdomain(node.field("name").text()), errors);
    }
}

/// Endpoints are other hosts, so not this one.
pub fn check_not_special(address: &At<'_>, errors: &mut Errors) {
    let special = match address.text().parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(ip)) => {
            ip.is_unspecified()
                || ip.is_loopback()
                || ip.is_link_local()
                || (ip.octets()[0] == 224 && ip.octets()[1] == 0 && ip.octets()[2] == 0)
        }
        Ok(std::net::IpAddr::V6(ip)) => {
            ip.is_unspecified() || ip.is_loopback() || (ip.segments()[0] & 0xffc0) == 0xfe80
        }
        Err(_) => false,
    };
    if special {
        errors.invalid(address, "may not be an unspecified, loopback or link-local address");
    }
}
