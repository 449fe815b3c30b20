//! Ingresses: ways in by host and path.

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Value, names};

use crate::check;
use crate::columns::{age, columns, or_none};

pub struct Ingress {
    columns: Vec<Column>,
}

impl Ingress {
    pub fn new() -> Ingress {
        let names = ["Class", "Hosts", "Address", "Ports", "Age"];
        Ingress { columns: columns(&names.map(|name| (name, "string", 0))) }
    }
}

impl Default for Ingress {
    fn default() -> Ingress {
        Ingress::new()
    }
}

impl Rules for Ingress {
    fn first_status(&self) -> Option<Value> {
        Some(meta::json!({"loadBalancer": {}}))
    }

    fn check(&self, change: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        if change.is_status() {
            return;
        }
        let spec = at.field("spec");
        let (rules, backend) = (spec.field("rules"), spec.field("defaultBackend"));
        if rules.is_empty() && !backend.is_set() {
            errors.invalid(&spec, "either `defaultBackend` or `rules` must be specified");
        }
        if backend.is_set() {
            check_backend(&backend, errors);
        }
        for rule in rules.items() {
            check_host(&rule.field("host"), errors);
            let http = rule.field("http");
            if !http.is_set() {
                continue;
            }
            let paths = http.field("paths");
            check::required(&paths, errors);
            for path in paths.items() {
                check_path(&path, errors);
            }
        }
        for tls in spec.field("tls").items() {
            for host in tls.field("hosts").items() {
                check_name_of_host(&host, errors);
            }
            check::optional(&tls.field("secretName"), names::dns_subdomain, errors);
        }
        let class = spec.field("ingressClassName");
        if class.is_set() {
            check::invalid(&class, names::dns_subdomain(class.text()), errors);
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let hosts: Vec<&str> =
            spec["rules"].items().iter().map(|rule| rule["host"].text()).filter(|host| !host.is_empty()).collect();
        let addresses: Vec<&str> = status["loadBalancer"]["ingress"]
            .items()
            .iter()
            .map(|entry| if entry["ip"].text().is_empty() { entry["hostname"].text() } else { entry["ip"].text() })
            .collect();
        vec![
            or_none(spec["ingressClassName"].text()),
            match hosts.len() {
                0 => "*".into(),
                count if count > 3 => format!("{} + {} more...", hosts[..3].join(","), count - 3).into(),
                _ => hosts.join(",").into(),
            },
            addresses.join(",").into(),
            if spec["tls"].items().is_empty() { "80" } else { "80, 443" }.into(),
            age(object, now),
        ]
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn check_name_of_host(host: &At<'_>, errors: &mut Errors) {
    if host.text().contains('*') {
        check::invalid(host, names::wildcard_subdomain(host.text()), errors);
    } else {
        check::invalid(host, names::dns_subdomain(host.text()), errors);
    }
}

fn check_host(host: &At<'_>, errors: &mut Errors) {
    if host.is_empty() {
        return;
    }
    if check::is_address(host.text()) {
        errors.invalid(host, "must be a DNS name, not an IP address");
    }
    check_name_of_host(host, errors);
}

fn check_path(path: &At<'_>, errors: &mut Errors) {
    let (of_type, text) = (path.field("pathType"), path.field("path"));
    match of_type.text() {
        "" if !of_type.is_set() => errors.required(&of_type.path, "pathType must be specified"),
        "Exact" | "Prefix" => {
            if !text.text().starts_with('/') {
                errors.invalid(&text, "must be an absolute path");
            }
            for part in ["//", "/./", "/../", "%2f", "%2F"] {
                if text.text().contains(part) {
                    errors.invalid(&text, format!("must not contain '{part}'"));
                }
            }
            for part in ["/..", "/."] {
                if text.text().ends_with(part) {
                    errors.invalid(&text, format!("cannot end with '{part}'"));
                }
            }
        }
        "ImplementationSpecific" => {
            if !text.is_empty() && !text.text().starts_with('/') {
                errors.invalid(&text, "must be an absolute path");
            }
        }
        _ => errors.not_supported(&of_type, &["Exact", "ImplementationSpecific", "Prefix"]),
    }
    if of_type.is_set() {
        check_backend(&path.field("backend"), errors);
    }
}

fn check_backend(backend: &At<'_>, errors: &mut Errors) {
    let (resource, service) = (backend.field("resource"), backend.field("service"));
    match (resource.is_set(), service.is_set()) {
        (true, true) => errors.invalid_value(&backend.path, "", "cannot set both resource and service backends"),
        (true, false) => {
            let group = resource.field("apiGroup");
            if group.is_set() {
                check::invalid(&group, names::dns_subdomain(group.text()), errors);
            }
            for key in ["kind", "name"] {
                check::named(&resource.field(key), names::path_segment, errors);
            }
        }
        (false, true) => {
            check::named(&service.field("name"), names::dns_label, errors);
            let port = service.field("port");
            let (name, number) = (port.field("name"), port.field("number"));
            match (name.is_empty(), number.int().unwrap_or(0)) {
                (false, 0) => check::invalid(&name, names::port_name(name.text()), errors),
                (false, _) => errors.invalid_value(&backend.path, "", "cannot set both port name & port number"),
                (true, 0) => errors.required(&backend.path, "port name or number is required"),
                (true, _) => check::port(&number, errors),
            }
        }
        (false, false) => errors.invalid_value(&backend.path, "", "resource or service backend is required"),
    }
}
