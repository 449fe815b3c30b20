//! A pod's network namespace and its link to the node.
//!
//! Each pod has a veth of its own and the node a route to the pod's one address; there is no bridge. Reasons: a packet
//! between two pods of a node passes the node's IP layer, where services are translated back (over a bridge the answer
//! of a neighbour would pass it by, unless bridged packets are sent through netfilter, which not every kernel can); a pod
//! reaches itself through a service without hairpin modes; no broadcast, no learning, nothing that grows with the
//! number of pods. Both ends know each other's hardware address from the start, so nobody ever asks for it.
//!
//! Making a pod's network takes one thread in the node's namespace and four netlink messages' round trips.

use crate::address::{Cidr, Mac};
use crate::error::Error;
use crate::links::forwarding;
use crate::netlink::route::{Requests, RouteSpec, Routes, Veth};
use crate::netns::{Netns, NetnsThread, keep, unshare};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

/// The link's name inside the pod.
pub const POD_LINK: &str = "eth0";
/// The nodes' end of all pod links has this hardware address: it is seen by one pod only.
const NODE_MAC: Mac = Mac([0xee; 6]);
/// What pods have as their gateway; nobody has it as an address.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const LOOPBACK_INDEX: u32 = 1;
const POD_LINK_INDEX: u32 = 2;
const NAME_PREFIX: &str = "gp";

/// A pod's network as it shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLink {
    /// Where its namespace is kept.
    pub netns: PathBuf,
    /// The name of the node's end: [`PodLinks::name_of`].
    pub name: String,
    /// One address, or one per family.
    pub addresses: Vec<IpAddr>,
    /// `None`: the kernel's default of 1500.
    pub mtu: Option<u32>,
}

/// Makes and removes the links of one node's pods.
pub struct PodLinks {
    node: Netns,
    thread: NetnsThread,
    routes: Routes,
}

impl PodLinks {
    /// For the node whose network namespace is `node`. Lets it forward.
    ///
    /// # Errors
    /// When sockets or settings are refused.
    pub fn open(node: &Netns) -> Result<PodLinks, Error> {
        let thread = NetnsThread::start(node)?;
        thread.run(forwarding)??;
        let routes = thread.run(Routes::open)??;
        Ok(PodLinks { node: node.again()?, thread, routes })
    }

    /// The name of the node's end for a pod's UID: 15 characters, as long as names may be.
    pub fn name_of(uid: &str) -> String {
        format!("{NAME_PREFIX}{:013x}", base::hash64(uid.as_bytes()) >> 12)
    }

    /// Makes namespace, link, addresses and routes. After an error nothing of it is left.
    ///
    /// # Errors
    /// When something is there already, or the kernel refuses.
    pub fn attach(&mut self, pod: &PodLink) -> Result<Netns, Error> {
        let netns = match self.make(pod) {
            // The namespace was free to take, so the link is one whose namespace is just ending: help it.
            Err(error) if error.errno() == Some(libc::EEXIST) && !pod.netns.exists() => {
                self.remove_link(&pod.name)?;
                self.make(pod)?
            }
            made => made?,
        };
        match self.connect(pod) {
            Ok(()) => Ok(netns),
            Err(error) => {
                let _ = self.detach(pod);
                let _ = self.remove_link(&pod.name);
                Err(error)
            }
        }
    }

    /// The pod's side.
    fn make(&self, pod: &PodLink) -> Result<Netns, Error> {
        let (node, pod) = (self.node.again()?, pod.clone());
        self.thread.run(move || {
            unshare()?;
            let kept = keep(&pod.netns);
            let made = if kept.is_ok() { Some(inside(&pod, &node)) } else { None };
            // The thread serves the next pod too, so it must not stay in this one's namespace.
            node.enter()?;
            kept?;
            let made = made.unwrap_or(Err(Error::Limit("nothing was made")));
            if made.is_err() {
                Netns::delete(&pod.netns)?;
            }
            made
        })?
    }

    /// The node's side.
    fn connect(&mut self, pod: &PodLink) -> Result<(), Error> {
        let index = self.routes.index(&pod.name)?;
        let mut requests = Requests::default();
        requests.up(index);
        for address in &pod.addresses {
            requests.neighbour(index, *address, pod_mac(pod));
            requests.route(&RouteSpec {
                destination: Cidr::host(*address),
                via: None,
                link: index,
                onlink: false,
                source: None,
            });
        }
        self.routes.send(requests, &format!("connect the link {}", pod.name))
    }

    /// Takes the pod off the network and gives its namespace up; what is gone already is no error.
    ///
    /// The link goes with the namespace, when the last process in it has ended, in the kernel's own time: removing a
    /// link at once holds up everything else about links for tens of milliseconds. What must be gone now, goes now.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn detach(&mut self, pod: &PodLink) -> Result<(), Error> {
        if let Some(link) = self.routes.link(&pod.name)? {
            let mut requests = Requests::default();
            for address in &pod.addresses {
                requests.delete_route(&RouteSpec {
                    destination: Cidr::host(*address),
                    via: None,
                    link: link.index,
                    onlink: false,
                    source: None,
                });
            }
            match self.routes.try_send(requests) {
                // The namespace may end while we ask.
                Err(error) if ![libc::ESRCH, libc::ENODEV].contains(&error.errno) => {
                    return Err(Error::netlink(format!("remove the route to {}", pod.name))(error));
                }
                _ => {}
            }
        }
        Netns::delete(&pod.netns)
    }

    /// Removes a link at once, from its name alone: for what an earlier life left.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_link(&mut self, name: &str) -> Result<(), Error> {
        let mut requests = Requests::default();
        requests.delete_named(name);
        match self.routes.try_send(requests) {
            Err(error) if error.errno != libc::ENODEV => Err(Error::netlink(format!("remove the link {name}"))(error)),
            _ => Ok(()),
        }
    }

    /// The names of all pod links of this node.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn list(&mut self) -> Result<Vec<String>, Error> {
        let ours = |link: &crate::netlink::route::Link| {
            link.name.starts_with(NAME_PREFIX) && link.mac == Some(NODE_MAC) && link.kind.as_deref() == Some("veth")
        };
        Ok(self.routes.links()?.into_iter().filter(ours).map(|link| link.name).collect())
    }
}

fn pod_mac(pod: &PodLink) -> Mac {
    pod.addresses.first().map_or(Mac([0x0a, 0x58, 0, 0, 0, 1]), |address| Mac::for_address(*address))
}

/// Works in the pod's namespace, where the calling thread is.
fn inside(pod: &PodLink, node: &Netns) -> Result<Netns, Error> {
    use std::os::fd::AsFd;
    let netns = Netns::current()?;
    let mut routes = Routes::open()?;
    let veth = Veth {
        name: POD_LINK,
        index: POD_LINK_INDEX,
        mac: Some(pod_mac(pod)),
        mtu: pod.mtu,
        master: None,
        peer_name: &pod.name,
        peer_mac: Some(NODE_MAC),
        peer_namespace: node.as_fd(),
    };
    let mut requests = Requests::default();
    requests.veth(&veth).up(LOOPBACK_INDEX).up(POD_LINK_INDEX);
    for address in &pod.addresses {
        requests.address(POD_LINK_INDEX, *address, Cidr::host(*address).prefix);
        let (gateway, any) = match address {
            IpAddr::V4(_) => (IpAddr::V4(GATEWAY), IpAddr::from([0u8; 4])),
            IpAddr::V6(_) => (IpAddr::V6(NODE_MAC.link_local()), IpAddr::from([0u8; 16])),
        };
        requests.neighbour(POD_LINK_INDEX, gateway, NODE_MAC);
        let (link, source) = (POD_LINK_INDEX, None);
        if gateway.is_ipv4() {
            requests.route(&RouteSpec { destination: Cidr::host(gateway), via: None, link, onlink: false, source });
        }
        let destination = Cidr { address: any, prefix: 0 };
        requests.route(&RouteSpec { destination, via: Some(gateway), link, onlink: true, source });
    }
    routes.send(requests, &format!("make the network of the pod at {}", pod.netns.display()))?;
    Ok(netns)
}
