//! NetworkPolicies: who may talk to whom.

use base::Time;
use meta::{At, Change, Column, Errors, Rules, Value};

use crate::address::Cidr;
use crate::apps::selector_text;
use crate::check;
use crate::columns::{age, columns};

pub struct NetworkPolicy {
    columns: Vec<Column>,
}

impl NetworkPolicy {
    pub fn new() -> NetworkPolicy {
        NetworkPolicy { columns: columns(&[("Pod-Selector", "string", 0), ("Age", "string", 0)]) }
    }
}

impl Default for NetworkPolicy {
    fn default() -> NetworkPolicy {
        NetworkPolicy::new()
    }
}

impl Rules for NetworkPolicy {
    fn defaults(&self, object: &mut Value) {
        let spec = object.make(&["spec"]);
        if spec["policyTypes"].items().is_empty() {
            let mut types = vec![Value::from("Ingress")];
            if !spec["egress"].items().is_empty() {
                types.push("Egress".into());
            }
            spec.set(&["policyTypes"], types);
        }
        for direction in ["ingress", "egress"] {
            let Some(rules) = spec.get_mut(direction) else { continue };
            for rule in rules.items_mut() {
                let Some(ports) = rule.get_mut("ports") else { continue };
                for port in ports.items_mut() {
                    port.default("protocol", "TCP");
                }
            }
        }
    }

    fn check(&self, _: &Change<'_>, at: &At<'_>, errors: &mut Errors) {
        let spec = at.field("spec");
        check::label_selector(&spec.field("podSelector"), errors);
        for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
            for rule in spec.field(direction).items() {
                for port in rule.field("ports").items() {
                    check_port(&port, errors);
                }
                for peer in rule.field(peers).items() {
                    check_peer(&peer, errors);
                }
            }
        }
        let types = spec.field("policyTypes");
        if types.value.items().len() > 2 {
            errors.invalid(&types, "may not specify more than two policyTypes");
            return;
        }
        for one in types.items() {
            check::supported(&one, &["Egress", "Ingress"], errors);
        }
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Time) -> Vec<Value> {
        vec![selector_text(object.at(&["spec", "podSelector"])), age(object, now)]
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn check_port(port: &At<'_>, errors: &mut Errors) {
    let (number, end) = (port.field("port"), port.field("endPort"));
    let protocol = port.field("protocol");
    if protocol.is_set() {
        check::supported(&protocol, &["SCTP", "TCP", "UDP"], errors);
    }
    if number.is_set() {
        check::port_or_name(&number, errors);
        if number.int().is_some() && end.is_set() {
            if end.int().unwrap_or(0) < number.int().unwrap_or(0) {
                errors.invalid(&end, "must be greater than or equal to `port`");
            }
            check::port(&end, errors);
        }
        if number.value.as_str().is_some() && end.is_set() {
            errors.invalid(&end, "may not be specified when `port` is non-numeric");
        }
    } else if end.is_set() {
        errors.invalid(&end, "may not be specified when `port` is not specified");
    }
}

fn check_peer(peer: &At<'_>, errors: &mut Errors) {
    let (pods, namespaces, block) = (peer.field("podSelector"), peer.field("namespaceSelector"), peer.field("ipBlock"));
    check::label_selector(&pods, errors);
    check::label_selector(&namespaces, errors);
    if block.is_set() {
        check_block(&block, errors);
        if pods.is_set() || namespaces.is_set() {
            errors.forbidden(&peer.path, "may not specify both ipBlock and another peer");
        }
    } else if !pods.is_set() && !namespaces.is_set() {
        errors.required(&peer.path, "must specify a peer");
    }
}

fn check_block(block: &At<'_>, errors: &mut Errors) {
    let range = block.field("cidr");
    if range.is_empty() {
        errors.required(&range.path, "");
        return;
    }
    check::cidr(&range, errors);
    let Some(outer) = Cidr::parse(range.text()) else { return };
    for except in block.field("except").items() {
        match Cidr::parse(except.text()) {
            None => check::cidr(&except, errors),
            Some(inner) if !outer.contains(inner.nth(0)) || inner.prefix <= outer.prefix => {
                errors.invalid(&except, "must be a strict subset of `cidr`");
            }
            Some(_) => {}
        }
    }
}
