//! No two services get one port of the nodes.
//!
//! The kind chooses ports that no service of its view has. Writers that choose at the same time see each other's choice
//! too late; so each claims what it takes, and of two claims of one port made on the same knowledge only one commits. The
//! other chooses anew.

use std::collections::BTreeSet;

use meta::{Status, Value};

use super::{Admission, Review};
use crate::verbs::update::CompanionWrite;

pub struct NodePorts;

impl Admission for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn validate(&self, review: &mut Review<'_>) -> Result<(), Status> {
        if !review.is("services", "") || review.object.is_null() || review.dry_run {
            return Ok(());
        }
        let before: BTreeSet<i64> = review.old.into_iter().flat_map(ports_of).collect();
        let taken: BTreeSet<i64> = ports_of(&review.object).filter(|port| !before.contains(port)).collect();
        let side = review.server.storage.side();
        for port in taken {
            let key = format!("/claims/node-ports/{port}");
            let claimed = side.borrow().get(key.as_bytes()).map_or(base::Revision::ZERO, |claim| claim.mod_revision);
            // A claim from after the view is one that the choice did not know of: it must not be passed over.
            let expect = claimed.min(review.view.at());
            review.companions.push(CompanionWrite::Claim { key, expect });
        }
        Ok(())
    }
}

fn ports_of(service: &Value) -> impl Iterator<Item = i64> {
    let spec = &service["spec"];
    let ports = spec["ports"].items().iter().map(|port| &port["nodePort"]);
    ports.chain([&spec["healthCheckNodePort"]]).filter_map(Value::as_int).filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::json;

    #[test]
    fn all_ports_of_nodes_are_claimed() {
        let service = json!({"spec": {"healthCheckNodePort": 3, "ports": [{"port": 80, "nodePort": 1}, {"port": 81}]}});
        assert_eq!(ports_of(&service).collect::<Vec<_>>(), [1, 3]);
    }
}
