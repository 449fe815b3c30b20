//! The ports of a node that a pod takes.

use meta::{Str, Value};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    pub ip: Str,
    pub protocol: Str,
    pub port: i64,
}

/// Those of a pod's containers and sidecars.
pub fn of(spec: &Value) -> Vec<HostPort> {
    let sidecars = spec["initContainers"].items().iter().filter(|one| one["restartPolicy"].text() == "Always");
    let containers = spec["containers"].items().iter().chain(sidecars);
    let ports = containers.flat_map(|container| container["ports"].items());
    ports
        .filter_map(|port| {
            let number = port["hostPort"].as_int().filter(|number| *number > 0)?;
            let ip = match port["hostIP"].text() {
                "" => "0.0.0.0",
                ip => ip,
            };
            let protocol = match port["protocol"].text() {
                "" => "TCP",
                protocol => protocol,
            };
            Some(HostPort { ip: ip.into(), protocol: protocol.into(), port: number })
        })
        .collect()
}

impl HostPort {
    /// Whether two pods cannot both have it on one node.
    pub fn clashes(&self, other: &HostPort) -> bool {
        const ANY: [&str; 2] = ["0.0.0.0", "::"];
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || ANY.contains(&self.ip.as_str()) || ANY.contains(&other.ip.as_str()))
    }
}
