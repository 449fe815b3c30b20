//! What one node's network shall be: one value, computed elsewhere, compared, printed, and applied as a whole.
//!
//! Not here: how it came about (the planner) and how it gets into the kernel ([`crate::Dataplane`]).

use crate::address::{Cidr, Mac};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Endpoints of one virtual address; more are left out.
pub const MAX_ENDPOINTS: usize = 16_383;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub(crate) fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        })
    }
}

/// Which virtual address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VipKey {
    pub address: IpAddr,
    pub protocol: Protocol,
    pub port: u16,
}

impl fmt::Display for VipKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.protocol, self.address, self.port)
    }
}

/// Where a connection may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    pub address: IpAddr,
    pub port: u16,
    /// A pod of this node.
    pub local: bool,
}

/// One port of a Service in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vip {
    /// `namespace/name:port`, for printing only.
    pub name: String,
    /// In any order, each once. Empty: connections are refused.
    pub endpoints: Vec<Endpoint>,
    /// Pods of this node that still serve while they end, for connections that go to local endpoints only: set when others
    /// are ready, and none here is.
    pub draining: Vec<Endpoint>,
    /// A client stays with its endpoint until it has been silent for this many seconds.
    pub affinity_s: Option<u32>,
    /// On every address of the node itself.
    pub node_port: Option<u16>,
    /// External IPs and addresses of load balancers, on the Service's port.
    pub external: BTreeSet<IpAddr>,
    /// The cluster address leads to local endpoints only.
    pub internal_local: bool,
    /// From outside the cluster, node port and external addresses lead to local endpoints only, which see the client's
    /// address; without any, the connection is dropped. From inside they lead to all.
    pub external_local: bool,
}

impl Vip {
    /// Its endpoints on this node.
    pub fn local(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.iter().filter(|endpoint| endpoint.local).chain(&self.draining)
    }
}

/// A port of the node that leads to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// `None`: all addresses of the node.
    pub address: Option<IpAddr>,
    pub protocol: Protocol,
    pub port: u16,
    pub pod: IpAddr,
    pub pod_port: u16,
}

/// How packets get to the pods of another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Via {
    /// The node is on our own link: hand it the packets as they are.
    Node(IpAddr),
    /// Wrapped; `mac` is that node's VXLAN device ([`Vxlan::mac_of`]).
    Vxlan { node: IpAddr },
}

/// This node's end of the overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    pub id: u32,
    /// UDP port, the same on all nodes.
    pub port: u16,
    /// This node's address on the network below.
    pub local: IpAddr,
    /// This node's own address on the overlay: the first address of its pod network.
    pub address: IpAddr,
}

impl Vxlan {
    /// The hardware address of a node's device follows from the node's address.
    pub fn mac_of(node: IpAddr) -> Mac {
        let Mac([_, _, rest @ ..]) = Mac::for_address(node);
        Mac([0x0a, 0x59, rest[0], rest[1], rest[2], rest[3]])
    }
}

/// The whole network of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeNet {
    /// Addresses of this node's own pods; their connections to the outside get the node's address.
    pub pod_cidrs: BTreeSet<Cidr>,
    /// Addresses of all pods; at most one network per family is looked at.
    pub cluster_cidrs: BTreeSet<Cidr>,
    /// Addresses of services; what is addressed to one that does not exist is refused.
    pub service_cidrs: BTreeSet<Cidr>,
    /// Pods keep their address towards these, beside the cluster's own.
    pub no_masquerade: BTreeSet<Cidr>,
    pub vips: BTreeMap<VipKey, Arc<Vip>>,
    pub host_ports: BTreeSet<HostPort>,
    /// The pod networks of other nodes.
    pub routes: BTreeMap<Cidr, Via>,
    pub vxlan: Option<Vxlan>,
    /// Where this node answers DNS (UDP port 53): such packets are not tracked as connections, and no service can take
    /// that address and port.
    pub name_server: Option<IpAddr>,
}

impl fmt::Display for NodeNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |set: &BTreeSet<Cidr>| set.iter().map(Cidr::to_string).collect::<Vec<_>>().join(" ");
        writeln!(f, "pods {}", list(&self.pod_cidrs))?;
        writeln!(f, "cluster {}", list(&self.cluster_cidrs))?;
        writeln!(f, "services {}", list(&self.service_cidrs))?;
        if !self.no_masquerade.is_empty() {
            writeln!(f, "keep the address towards {}", list(&self.no_masquerade))?;
        }
        if let Some(vxlan) = &self.vxlan {
            writeln!(f, "overlay {} port {} at {} as {}", vxlan.id, vxlan.port, vxlan.local, vxlan.address)?;
        }
        if let Some(server) = self.name_server {
            writeln!(f, "names at {server}")?;
        }
        for (destination, via) in &self.routes {
            match via {
                Via::Node(node) => writeln!(f, "route {destination} via {node}")?,
                Via::Vxlan { node } => writeln!(f, "route {destination} over {node}")?,
            }
        }
        for (key, vip) in &self.vips {
            write!(f, "vip {key} ({})", vip.name)?;
            if let Some(seconds) = vip.affinity_s {
                write!(f, " affinity {seconds} s")?;
            }
            if let Some(port) = vip.node_port {
                write!(f, " node port {port}")?;
            }
            for address in &vip.external {
                write!(f, " external {address}")?;
            }
            for (set, text) in [(vip.internal_local, " internal local"), (vip.external_local, " external local")] {
                f.write_str(if set { text } else { "" })?;
            }
            f.write_str(" ->")?;
            for endpoint in &vip.endpoints {
                let local = if endpoint.local { "*" } else { "" };
                write!(f, " {}:{}{local}", endpoint.address, endpoint.port)?;
            }
            for endpoint in &vip.draining {
                write!(f, " (draining {}:{}*)", endpoint.address, endpoint.port)?;
            }
            writeln!(f)?;
        }
        for port in &self.host_ports {
            let address = port.address.map_or("*".into(), |address| address.to_string());
            writeln!(f, "host port {} {address} {} -> {}:{}", port.protocol, port.port, port.pod, port.pod_port)?;
        }
        Ok(())
    }
}
