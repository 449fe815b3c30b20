//! Routes to the pods of other nodes: plain ones, and the VXLAN device for those that are not on our link.
//!
//! Routes of ours carry a protocol number of their own, so that a restart finds them and nobody else's are touched.

use crate::address::Cidr;
use crate::error::Error;
use crate::netlink::route::{ROUTE_PROTOCOL, Requests, RouteSpec, Routes, Vxlan as VxlanLink};
use crate::nodenet::{NodeNet, Via, Vxlan};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The overlay's device.
pub const VXLAN_LINK: &str = "gantry-vx";
/// Bytes that the wrapping takes from a packet.
const VXLAN_OVERHEAD_V4: u32 = 50;
const VXLAN_OVERHEAD_V6: u32 = 70;
const ETHERNET_MTU: u32 = 1500;

/// What is in place.
#[derive(Default)]
pub(crate) struct Overlay {
    routes: BTreeMap<Cidr, Via>,
    vxlan: Option<Vxlan>,
    vxlan_index: u32,
    known: bool,
}

impl Overlay {
    /// Makes routes and device as `net` says. After an error some may be missing; the next call begins anew.
    pub fn apply(&mut self, routes: &mut Routes, net: &NodeNet) -> Result<bool, Error> {
        if self.known && self.routes == net.routes && self.vxlan == net.vxlan {
            return Ok(false);
        }
        let outcome = self.change(routes, net);
        self.known = outcome.is_ok();
        outcome.map(|()| true)
    }

    fn change(&mut self, routes: &mut Routes, net: &NodeNet) -> Result<(), Error> {
        if !self.known || self.vxlan != net.vxlan {
            self.device(routes, net)?;
        }
        if !self.known {
            self.sweep(routes, net)?;
        }
        let old = std::mem::take(&mut self.routes);
        for (cidr, via) in &old {
            if net.routes.get(cidr) != Some(via) {
                self.delete(routes, *cidr, *via)?;
            }
        }
        let added: Vec<_> = net.routes.iter().filter(|(cidr, via)| old.get(cidr) != Some(via)).collect();
        for (cidr, via) in added {
            self.add(routes, *cidr, *via)?;
        }
        self.routes = net.routes.clone();
        Ok(())
    }

    /// Removes routes of ours that nobody wants any more (from an earlier life).
    fn sweep(&mut self, routes: &mut Routes, net: &NodeNet) -> Result<(), Error> {
        self.routes.clear();
        for route in routes.routes(Some(ROUTE_PROTOCOL))? {
            let to_node = route.via.is_some() && route.destination.prefix > 0;
            if to_node && !net.routes.contains_key(&route.destination) {
                let mut requests = Requests::default();
                requests.delete_route(&route);
                routes.send(requests, "remove an old route")?;
            }
        }
        Ok(())
    }

    fn device(&mut self, routes: &mut Routes, net: &NodeNet) -> Result<(), Error> {
        let found = routes.link(VXLAN_LINK)?;
        if let (Some(old), Some(vxlan), false) = (&found, &net.vxlan, self.known)
            && old.mac == Some(Vxlan::mac_of(vxlan.local))
        {
            // From an earlier life, and still right: packets keep flowing over it.
            (self.vxlan, self.vxlan_index) = (net.vxlan, old.index);
            return Ok(());
        }
        if let Some(old) = found {
            let mut requests = Requests::default();
            requests.delete_link(old.index);
            routes.send(requests, "remove the overlay's device")?;
            self.routes.retain(|_, via| matches!(via, Via::Node(_)));
        }
        self.vxlan = net.vxlan;
        let Some(vxlan) = net.vxlan else { return Ok(()) };
        let underlay = routes
            .addresses()?
            .into_iter()
            .find(|(_, found)| found.address == vxlan.local)
            .map(|(index, _)| index)
            .ok_or_else(|| Error::NoSuchLink(format!("with the address {}", vxlan.local)))?;
        let overhead = if vxlan.local.is_ipv4() { VXLAN_OVERHEAD_V4 } else { VXLAN_OVERHEAD_V6 };
        let mut requests = Requests::default();
        requests.vxlan(&VxlanLink {
            name: VXLAN_LINK,
            mac: Vxlan::mac_of(vxlan.local),
            id: vxlan.id,
            port: vxlan.port,
            local: vxlan.local,
            underlay,
            mtu: Some(ETHERNET_MTU - overhead),
        });
        routes.send(requests, "add the overlay's device")?;
        self.vxlan_index = routes.index(VXLAN_LINK)?;
        let mut requests = Requests::default();
        requests.address(self.vxlan_index, vxlan.address, Cidr::host(vxlan.address).prefix).up(self.vxlan_index);
        routes.send(requests, "start the overlay's device")
    }

    /// The gateway of a route over the overlay: the node's own address there, the first of its pods' network.
    fn gateway(cidr: Cidr) -> IpAddr {
        cidr.nth(0)
    }

    fn add(&self, routes: &mut Routes, cidr: Cidr, via: Via) -> Result<(), Error> {
        let mut requests = Requests::default();
        match via {
            Via::Node(node) => {
                let link = self.link_to(routes, node)?;
                let route = RouteSpec { destination: cidr, via: Some(node), link, onlink: false, source: None };
                requests.route(&route);
            }
            Via::Vxlan { node } => {
                let (gateway, mac) = (Overlay::gateway(cidr), Vxlan::mac_of(node));
                requests.neighbour(self.vxlan_index, gateway, mac).forward(self.vxlan_index, mac, node);
                requests.route(&self.wrapped(cidr));
            }
        }
        routes.send(requests, &format!("add the route to {cidr}"))
    }

    fn wrapped(&self, cidr: Cidr) -> RouteSpec {
        let via = Some(Overlay::gateway(cidr));
        RouteSpec { destination: cidr, via, link: self.vxlan_index, onlink: true, source: None }
    }

    fn delete(&self, routes: &mut Routes, cidr: Cidr, via: Via) -> Result<(), Error> {
        let mut requests = Requests::default();
        match via {
            Via::Node(node) => {
                let link = self.link_to(routes, node)?;
                let route = RouteSpec { destination: cidr, via: Some(node), link, onlink: false, source: None };
                requests.delete_route(&route);
            }
            Via::Vxlan { node } => {
                let (gateway, mac) = (Overlay::gateway(cidr), Vxlan::mac_of(node));
                requests.delete_route(&self.wrapped(cidr));
                requests.delete_neighbour(self.vxlan_index, gateway, mac).delete_forward(self.vxlan_index, mac, node);
            }
        }
        match routes.try_send(requests) {
            // Gone already, with its link or by another hand.
            Err(error) if [libc::ESRCH, libc::ENOENT, libc::ENODEV].contains(&error.errno) => Ok(()),
            other => other.map_err(Error::netlink(format!("remove the route to {cidr}"))),
        }
    }

    /// The link on which a node's address is.
    fn link_to(&self, routes: &mut Routes, node: IpAddr) -> Result<u32, Error> {
        let on_link = |(index, cidr): (u32, Cidr)| (cidr.contains(node) && cidr != Cidr::host(node)).then_some(index);
        let found = routes.addresses()?.into_iter().find_map(on_link);
        found.ok_or_else(|| Error::NoSuchLink(format!("that reaches {node}")))
    }

    /// Removes device and routes.
    pub fn remove(&mut self, routes: &mut Routes) -> Result<(), Error> {
        self.known = false;
        self.apply(routes, &NodeNet::default()).map(|_| ())?;
        self.known = false;
        Ok(())
    }
}
