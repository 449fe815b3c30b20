//! A network for several nodes on one machine, for `gantry up`.
//!
//! A namespace of ours holds a switch; each node is a namespace with `eth0` on it. The machine gets one link with one
//! address on that switch and nothing else: no route but that of the address itself, no rule, no setting. So node
//! traffic never meets the machine's firewall, and taking the link away takes everything away.
//!
//! To the outside, nodes go through the machine: their packets leave it only if it forwards and gives them its own
//! address. Both can be asked for ([`Lan::allow_outside`]); the address is then given by a table of ours, and
//! forwarding, which concerns the whole machine, is switched on only on request. It cannot be done wholly in a
//! namespace of ours: the last step happens on the machine's own link.

use crate::address::{Cidr, Mac, bytes_of};
use crate::error::Error;
use crate::links::forwarding;
use crate::netlink::nft::{Batch, ChainKind, Hook, Nft, reg};
use crate::netlink::route::{Requests, RouteSpec, Routes, Veth};
use crate::netns::Netns;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

const SWITCH: &str = "switch";
const NODE_LINK: &str = "eth0";
/// The switch's namespace among those of the nodes.
const SWITCH_NETNS: &str = "switch";
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
/// Names of links have at most 15 characters; the prefix leaves room for a number.
const MAX_PREFIX: usize = 11;
/// Where subnets for machines' own clusters are looked for.
const SUBNETS: Cidr = Cidr { address: IpAddr::V4(std::net::Ipv4Addr::new(10, 192, 0, 0)), prefix: 10 };
const SUBNET_PREFIX: u8 = 24;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LanConfig {
    /// All names of ours on the machine begin with this; at most 11 characters.
    pub prefix: String,
    /// Addresses of machine (the first) and nodes. IPv4.
    pub subnet: Cidr,
    /// An existing folder where namespaces are kept.
    pub netns_dir: PathBuf,
}

/// A node on the switch.
#[derive(Debug)]
pub struct NodeLink {
    pub name: String,
    pub address: IpAddr,
    /// Where its namespace is kept.
    pub path: PathBuf,
    pub netns: Netns,
}

/// Whether nodes reach what is outside the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outside {
    Open,
    /// The machine does not forward, and was not asked to.
    ForwardingOff,
}

pub struct Lan {
    config: LanConfig,
    switch: Netns,
}

impl Lan {
    /// Makes switch and machine's link. What an earlier life left under the same names is removed first. The machine's
    /// namespace is that of the calling thread.
    ///
    /// # Errors
    /// When the kernel refuses; nothing is left then.
    pub fn create(config: LanConfig) -> Result<Lan, Error> {
        if config.prefix.len() > MAX_PREFIX || config.subnet.is_ipv6() {
            return Err(Error::Limit("the prefix has at most 11 characters, and the subnet is IPv4"));
        }
        Lan::remove(&config)?;
        match Lan::build(&config) {
            Ok(switch) => Ok(Lan { config, switch }),
            Err(error) => {
                let _ = Lan::remove(&config);
                Err(error)
            }
        }
    }

    fn build(config: &LanConfig) -> Result<Netns, Error> {
        let machine = Netns::current()?;
        let switch = Netns::create(&config.netns_dir.join(SWITCH_NETNS))?;
        let name = config.machine_link();
        switch.run(|| {
            let mut routes = Routes::open()?;
            let mut requests = Requests::default();
            requests.bridge(SWITCH);
            routes.send(requests, "make the switch")?;
            let bridge = routes.index(SWITCH)?;
            let veth = Veth {
                name: "machine",
                index: 0,
                mac: None,
                mtu: None,
                master: Some(bridge),
                peer_name: &name,
                peer_mac: Some(Mac::for_address(config.machine_address())),
                peer_namespace: machine.as_fd(),
            };
            let mut requests = Requests::default();
            requests.veth(&veth).up(bridge);
            routes.send(requests, "make the machine's link")?;
            let port = routes.index("machine")?;
            let mut requests = Requests::default();
            requests.up(port);
            routes.send(requests, "start the machine's link")
        })??;
        let mut routes = Routes::open()?;
        let index = routes.index(&name)?;
        let mut requests = Requests::default();
        requests.address(index, config.machine_address(), config.subnet.prefix).up(index);
        routes.send(requests, "give the machine's link its address")?;
        Ok(switch)
    }

    pub fn config(&self) -> &LanConfig {
        &self.config
    }

    /// The machine's address on the switch: where nodes reach it.
    pub fn machine_address(&self) -> IpAddr {
        self.config.machine_address()
    }

    /// Makes a node: namespace, link, address, default route, forwarding. `number` (from 0) decides the address.
    ///
    /// # Errors
    /// When the number has no address, or the kernel refuses; nothing of the node is left then.
    pub fn add_node(&self, name: &str, number: u32) -> Result<NodeLink, Error> {
        if u128::from(number) + 3 >= self.config.subnet.size() {
            return Err(Error::Limit("there are no more addresses for nodes"));
        }
        let address = self.config.subnet.nth(2 + u128::from(number));
        let path = self.config.netns_dir.join(name);
        let netns = Netns::create(&path)?;
        let port = format!("node{number}");
        match self.connect_node(&netns, &port, address) {
            Ok(()) => Ok(NodeLink { name: name.into(), address, path, netns }),
            Err(error) => {
                let _ = self.remove_port(&port);
                let _ = Netns::delete(&path);
                Err(error)
            }
        }
    }

    fn connect_node(&self, node: &Netns, port: &str, address: IpAddr) -> Result<(), Error> {
        self.switch.run(|| {
            let mut routes = Routes::open()?;
            let bridge = routes.index(SWITCH)?;
            let mut requests = Requests::default();
            requests.veth(&Veth {
                name: port,
                index: 0,
                mac: None,
                mtu: None,
                master: Some(bridge),
                peer_name: NODE_LINK,
                peer_mac: Some(Mac::for_address(address)),
                peer_namespace: node.as_fd(),
            });
            routes.send(requests, "make a node's link")?;
            let index = routes.index(port)?;
            let mut requests = Requests::default();
            requests.up(index);
            routes.send(requests, "start a node's link")
        })??;
        node.run(|| {
            forwarding()?;
            let mut routes = Routes::open()?;
            let link = routes.index(NODE_LINK)?;
            let destination = Cidr { address: IpAddr::from([0u8; 4]), prefix: 0 };
            let via = Some(self.config.machine_address());
            let mut requests = Requests::default();
            requests.up(1).address(link, address, self.config.subnet.prefix).up(link);
            requests.route(&RouteSpec { destination, via, link, onlink: false, source: None });
            routes.send(requests, "give a node its address")
        })?
    }

    fn remove_port(&self, port: &str) -> Result<(), Error> {
        self.switch.run(|| {
            let mut requests = Requests::default();
            requests.delete_named(port);
            match Routes::open()?.try_send(requests) {
                Err(error) if error.errno == libc::ENODEV => Ok(()),
                other => other.map_err(Error::netlink("remove a node's link")),
            }
        })?
    }

    /// Cuts a node off, or connects it again: for tests of what happens then.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn set_connected(&self, number: u32, connected: bool) -> Result<(), Error> {
        self.switch.run(|| {
            let mut routes = Routes::open()?;
            let index = routes.index(&format!("node{number}"))?;
            let mut requests = Requests::default();
            if connected {
                requests.up(index)
            } else {
                requests.down(index)
            };
            routes.send(requests, "switch a node's link")
        })?
    }

    /// Removes a node: its link and its namespace's name.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_node(&self, name: &str, number: u32) -> Result<(), Error> {
        self.remove_port(&format!("node{number}"))?;
        Netns::delete(&self.config.netns_dir.join(name))
    }

    /// Lets nodes reach the outside with the machine's address, by a table of ours on the machine. With `forward`,
    /// switches the machine's forwarding on if it is off; it is never switched off again, because others may rely on it
    /// by then.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn allow_outside(&self, forward: bool) -> Result<Outside, Error> {
        let on = std::fs::read_to_string(FORWARDING).is_ok_and(|text| text.trim() == "1");
        if !on && !forward {
            return Ok(Outside::ForwardingOff);
        }
        if !on {
            std::fs::write(FORWARDING, "1").map_err(Error::io("switch forwarding on"))?;
        }
        let mut batch = Batch::new(libc::AF_INET as u8, &self.config.table());
        batch.add_table();
        batch.delete_table();
        batch.add_table();
        batch.add_base_chain("sources", ChainKind::Nat, Hook::Postrouting, 100);
        let subnet = self.config.subnet;
        batch.add_rule("sources", |rule| {
            for (offset, inside) in [(12, true), (16, false)] {
                rule.payload(reg(0), 1, offset, 4).bitwise(reg(0), &subnet.mask(), &[0; 4]);
                rule.compare(reg(0), inside, &bytes_of(subnet.network().address));
            }
            rule.masquerade();
        });
        Nft::open()?.commit(batch).map_err(Error::netlink("let nodes reach the outside"))?;
        Ok(Outside::Open)
    }

    /// Removes everything that stands under the names of `config`, also what an earlier life left: link, table,
    /// namespaces' names. Nothing there is no error. Run in the machine's namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(config: &LanConfig) -> Result<(), Error> {
        let mut requests = Requests::default();
        requests.delete_named(&config.machine_link());
        match Routes::open()?.try_send(requests) {
            Err(error) if error.errno != libc::ENODEV => {
                return Err(Error::netlink("remove the machine's link")(error));
            }
            _ => {}
        }
        let mut batch = Batch::new(libc::AF_INET as u8, &config.table());
        batch.delete_table();
        // Not added first, so that one that is missing is told of: to take a table away the kernel makes us wait for 10 ms.
        match Nft::open()?.commit(batch) {
            Err(error) if error.errno != libc::ENOENT => {
                return Err(Error::netlink("remove the machine's table")(error));
            }
            _ => {}
        }
        remove_namespaces(&config.netns_dir)
    }
}

impl LanConfig {
    fn machine_link(&self) -> String {
        format!("{}0", self.prefix)
    }

    /// The machine's address on the switch: where nodes reach it.
    pub fn machine_address(&self) -> IpAddr {
        self.subnet.nth(1)
    }

    fn table(&self) -> String {
        format!("{}-outside", self.prefix)
    }
}

fn remove_namespaces(dir: &Path) -> Result<(), Error> {
    let listing = match std::fs::read_dir(dir) {
        Ok(listing) => listing,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(format!("list {}", dir.display()))(error)),
    };
    for entry in listing {
        let entry = entry.map_err(Error::io(format!("list {}", dir.display())))?;
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            Netns::delete(&entry.path())?;
        }
    }
    Ok(())
}

/// A subnet for a cluster on this machine that overlaps none of `used` (the machine's addresses and routes:
/// [`Lan::used_networks`]). `seed` decides where the search begins, so that one data folder keeps its subnet.
pub fn pick_subnet(used: &[Cidr], seed: u64) -> Option<Cidr> {
    let count = 1u128 << (SUBNET_PREFIX - SUBNETS.prefix);
    let size = 1u128 << (32 - SUBNET_PREFIX);
    (0..count).find_map(|step| {
        let number = (u128::from(seed) + step) % count;
        let subnet = Cidr { address: SUBNETS.nth(number * size), prefix: SUBNET_PREFIX };
        (!used.iter().any(|other| other.prefix > 0 && other.overlaps(&subnet))).then_some(subnet)
    })
}

impl Lan {
    /// The networks that the calling thread's namespace has addresses in or routes to.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn used_networks() -> Result<Vec<Cidr>, Error> {
        let mut routes = Routes::open()?;
        let mut used: Vec<Cidr> = routes.addresses()?.into_iter().map(|(_, cidr)| cidr).collect();
        used.extend(routes.routes(None)?.into_iter().map(|route| route.destination));
        Ok(used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_avoid_what_is_used() {
        let parse = |text: &str| text.parse::<Cidr>().unwrap();
        assert_eq!(pick_subnet(&[], 0), Some(parse("10.192.0.0/24")));
        let used = [parse("0.0.0.0/0"), parse("10.192.0.0/23"), parse("10.192.2.7/32")];
        assert_eq!(pick_subnet(&used, 0), Some(parse("10.192.3.0/24")));
        assert_eq!(pick_subnet(&[parse("10.0.0.0/8")], 5), None);
    }
}
