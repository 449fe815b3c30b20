//! Links, addresses, routes, neighbours over rtnetlink.

use super::{
    Messages, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, Socket, attribute, attributes,
    text_of, u32_of,
};
use crate::address::{Cidr, Mac, bytes_of, ip_of};
use crate::error::{Error, NetlinkError};
use rustix::fd::{AsRawFd, BorrowedFd};
use std::net::IpAddr;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LINK: u16 = 3;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_LOCAL6: u16 = 17;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_F_NODAD: u8 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;
const NUD_NOARP: u16 = 0x40;
const NTF_SELF: u8 = 2;
const IFF_UP: u32 = 1;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
const RT_TABLE_MAIN: u8 = 254;
const RTNH_F_ONLINK: u32 = 4;
const AF_BRIDGE: u8 = 7;

/// Routes of ours carry this protocol number, so that they can be told from the machine's own.
pub(crate) const ROUTE_PROTOCOL: u8 = 155;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub index: u32,
    pub name: String,
    pub mac: Option<Mac>,
    pub kind: Option<String>,
    pub up: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RouteSpec {
    pub destination: Cidr,
    pub via: Option<IpAddr>,
    pub link: u32,
    /// The gateway is on the link though no address says so.
    pub onlink: bool,
    pub source: Option<IpAddr>,
}

/// A veth pair: this end in the socket's namespace, the other one wherever.
pub(crate) struct Veth<'a> {
    pub name: &'a str,
    /// 0: the kernel chooses.
    pub index: u32,
    pub mac: Option<Mac>,
    pub mtu: Option<u32>,
    pub master: Option<u32>,
    pub peer_name: &'a str,
    pub peer_mac: Option<Mac>,
    pub peer_namespace: BorrowedFd<'a>,
}

pub(crate) struct Vxlan<'a> {
    pub name: &'a str,
    pub mac: Mac,
    pub id: u32,
    pub port: u16,
    pub local: IpAddr,
    pub underlay: u32,
    pub mtu: Option<u32>,
}

/// Requests collected to be sent in one piece.
#[derive(Default)]
pub(crate) struct Requests(Messages);

fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

fn link_header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&change.to_ne_bytes());
    header
}

impl Requests {
    pub fn veth(&mut self, veth: &Veth<'_>) -> &mut Self {
        let m = &mut self.0;
        m.begin(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link_header(veth.index, 0, 0));
        m.text(IFLA_IFNAME, veth.name);
        if let Some(mac) = veth.mac {
            m.attr(IFLA_ADDRESS, &mac.0);
        }
        if let Some(mtu) = veth.mtu {
            m.u32(IFLA_MTU, mtu);
        }
        if let Some(master) = veth.master {
            m.u32(IFLA_MASTER, master);
        }
        m.nest(IFLA_LINKINFO, |m| {
            m.text(IFLA_INFO_KIND, "veth");
            m.nest(IFLA_INFO_DATA, |m| {
                m.nest(VETH_INFO_PEER, |m| {
                    m.raw(&link_header(0, 0, 0));
                    m.text(IFLA_IFNAME, veth.peer_name);
                    if let Some(mac) = veth.peer_mac {
                        m.attr(IFLA_ADDRESS, &mac.0);
                    }
                    if let Some(mtu) = veth.mtu {
                        m.u32(IFLA_MTU, mtu);
                    }
                    m.u32(IFLA_NET_NS_FD, veth.peer_namespace.as_raw_fd() as u32);
                });
            });
        });
        self
    }

    pub fn bridge(&mut self, name: &str) -> &mut Self {
        let m = &mut self.0;
        m.begin(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link_header(0, 0, 0));
        m.text(IFLA_IFNAME, name);
        m.nest(IFLA_LINKINFO, |m| m.text(IFLA_INFO_KIND, "bridge"));
        self
    }

    pub fn vxlan(&mut self, vxlan: &Vxlan<'_>) -> &mut Self {
        let m = &mut self.0;
        m.begin(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link_header(0, 0, 0));
        m.text(IFLA_IFNAME, vxlan.name);
        m.attr(IFLA_ADDRESS, &vxlan.mac.0);
        if let Some(mtu) = vxlan.mtu {
            m.u32(IFLA_MTU, mtu);
        }
        m.nest(IFLA_LINKINFO, |m| {
            m.text(IFLA_INFO_KIND, "vxlan");
            m.nest(IFLA_INFO_DATA, |m| {
                m.u32(IFLA_VXLAN_ID, vxlan.id);
                m.u32(IFLA_VXLAN_LINK, vxlan.underlay);
                let local = if vxlan.local.is_ipv4() { IFLA_VXLAN_LOCAL } else { IFLA_VXLAN_LOCAL6 };
                m.attr(local, &bytes_of(vxlan.local));
                m.attr(IFLA_VXLAN_LEARNING, &[0]);
                m.attr(IFLA_VXLAN_PORT, &vxlan.port.to_be_bytes());
            });
        });
        self
    }

    pub fn up(&mut self, index: u32) -> &mut Self {
        self.0.begin(RTM_NEWLINK, 0, &link_header(index, IFF_UP, IFF_UP));
        self
    }

    pub fn down(&mut self, index: u32) -> &mut Self {
        self.0.begin(RTM_NEWLINK, 0, &link_header(index, 0, IFF_UP));
        self
    }

    pub fn delete_link(&mut self, index: u32) -> &mut Self {
        self.0.begin(RTM_DELLINK, 0, &link_header(index, 0, 0));
        self
    }

    /// Deletes by name, in the socket's namespace.
    pub fn delete_named(&mut self, name: &str) -> &mut Self {
        self.0.begin(RTM_DELLINK, 0, &link_header(0, 0, 0));
        self.0.text(IFLA_IFNAME, name);
        self
    }

    pub fn address(&mut self, index: u32, address: IpAddr, prefix: u8) -> &mut Self {
        let mut header = [family(address), prefix, if address.is_ipv6() { IFA_F_NODAD } else { 0 }, 0, 0, 0, 0, 0];
        header[4..].copy_from_slice(&index.to_ne_bytes());
        self.0.begin(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &header);
        self.0.attr(IFA_LOCAL, &bytes_of(address));
        self.0.attr(IFA_ADDRESS, &bytes_of(address));
        self
    }

    pub fn route(&mut self, route: &RouteSpec) -> &mut Self {
        self.route_message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, route)
    }

    pub fn delete_route(&mut self, route: &RouteSpec) -> &mut Self {
        self.route_message(RTM_DELROUTE, 0, route)
    }

    fn route_message(&mut self, kind: u16, flags: u16, route: &RouteSpec) -> &mut Self {
        let scope = if route.via.is_some() || route.destination.is_ipv6() { RT_SCOPE_UNIVERSE } else { RT_SCOPE_LINK };
        let mut header = [0; 12];
        header[0] = family(route.destination.address);
        header[1] = route.destination.prefix;
        header[4] = RT_TABLE_MAIN;
        header[5] = ROUTE_PROTOCOL;
        header[6] = scope;
        header[7] = RTN_UNICAST;
        header[8..].copy_from_slice(&if route.onlink { RTNH_F_ONLINK } else { 0 }.to_ne_bytes());
        let m = &mut self.0;
        m.begin(kind, flags, &header);
        if route.destination.prefix > 0 {
            m.attr(RTA_DST, &bytes_of(route.destination.address));
        }
        if let Some(via) = route.via {
            m.attr(RTA_GATEWAY, &bytes_of(via));
        }
        if let Some(source) = route.source {
            m.attr(RTA_PREFSRC, &bytes_of(source));
        }
        m.u32(RTA_OIF, route.link);
        self
    }

    /// Says for good where `address` is on the link.
    pub fn neighbour(&mut self, index: u32, address: IpAddr, mac: Mac) -> &mut Self {
        self.neighbour_message(RTM_NEWNEIGH, family(address), NUD_PERMANENT, 0, index, address, mac)
    }

    pub fn delete_neighbour(&mut self, index: u32, address: IpAddr, mac: Mac) -> &mut Self {
        self.neighbour_message(RTM_DELNEIGH, family(address), 0, 0, index, address, mac)
    }

    /// Says behind which node the VXLAN address `mac` is.
    pub fn forward(&mut self, index: u32, mac: Mac, node: IpAddr) -> &mut Self {
        self.neighbour_message(RTM_NEWNEIGH, AF_BRIDGE, NUD_PERMANENT | NUD_NOARP, NTF_SELF, index, node, mac)
    }

    pub fn delete_forward(&mut self, index: u32, mac: Mac, node: IpAddr) -> &mut Self {
        self.neighbour_message(RTM_DELNEIGH, AF_BRIDGE, 0, NTF_SELF, index, node, mac)
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one message")]
    fn neighbour_message(
        &mut self,
        kind: u16,
        family: u8,
        state: u16,
        flags: u8,
        index: u32,
        address: IpAddr,
        mac: Mac,
    ) -> &mut Self {
        let mut header = [0; 12];
        header[0] = family;
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        header[8..10].copy_from_slice(&state.to_ne_bytes());
        header[10] = flags;
        let create = if kind == RTM_NEWNEIGH { NLM_F_CREATE | NLM_F_REPLACE } else { 0 };
        debug_assert_eq!(create & NLM_F_APPEND, 0, "one place per address");
        self.0.begin(kind, create, &header);
        self.0.attr(NDA_DST, &bytes_of(address));
        self.0.attr(NDA_LLADDR, &mac.0);
        self
    }
}

/// A socket of one network namespace.
pub(crate) struct Routes(Socket);

impl Routes {
    /// In the calling thread's namespace.
    pub fn open() -> Result<Routes, Error> {
        Socket::open(None).map(Routes).map_err(Error::io("open a route socket"))
    }

    pub fn send(&mut self, requests: Requests, operation: &str) -> Result<(), Error> {
        self.0.request(requests.0).map_err(Error::netlink(operation))
    }

    /// The same for callers that look at the error.
    pub fn try_send(&mut self, requests: Requests) -> Result<(), NetlinkError> {
        self.0.request(requests.0)
    }

    pub fn link(&mut self, name: &str) -> Result<Option<Link>, Error> {
        let mut message = Messages::new();
        message.begin(RTM_GETLINK, 0, &link_header(0, 0, 0));
        message.text(IFLA_IFNAME, name);
        match self.0.get(message) {
            Ok((RTM_NEWLINK, payload)) => Ok(link_of(&payload)),
            Ok(_) => Ok(None),
            Err(error) if error.errno == libc::ENODEV => Ok(None),
            Err(error) => Err(Error::netlink(format!("look up the link {name}"))(error)),
        }
    }

    pub fn index(&mut self, name: &str) -> Result<u32, Error> {
        self.link(name)?.map(|link| link.index).ok_or_else(|| Error::NoSuchLink(name.into()))
    }

    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        let links = std::cell::RefCell::new(Vec::new());
        let make = |m: &mut Messages| m.begin(RTM_GETLINK, NLM_F_DUMP, &link_header(0, 0, 0));
        self.0
            .dump(&make, |_, payload| links.borrow_mut().extend(link_of(payload)), || links.borrow_mut().clear())
            .map_err(Error::netlink("list the links"))?;
        Ok(links.into_inner())
    }

    /// All addresses: link, address, length of the prefix.
    pub fn addresses(&mut self) -> Result<Vec<(u32, Cidr)>, Error> {
        let found = std::cell::RefCell::new(Vec::new());
        let make = |m: &mut Messages| m.begin(RTM_GETADDR, NLM_F_DUMP, &[0; 8]);
        let visit = |_, payload: &[u8]| found.borrow_mut().extend(address_of(payload));
        self.0.dump(&make, visit, || found.borrow_mut().clear()).map_err(Error::netlink("list the addresses"))?;
        Ok(found.into_inner())
    }

    /// The unicast routes of the main table; with `protocol`, only those of this number.
    pub fn routes(&mut self, protocol: Option<u8>) -> Result<Vec<RouteSpec>, Error> {
        let found = std::cell::RefCell::new(Vec::new());
        let make = |m: &mut Messages| m.begin(RTM_GETROUTE, NLM_F_DUMP, &[0; 12]);
        let visit = |_, payload: &[u8]| found.borrow_mut().extend(route_of(payload, protocol));
        self.0.dump(&make, visit, || found.borrow_mut().clear()).map_err(Error::netlink("list the routes"))?;
        Ok(found.into_inner())
    }
}

fn link_of(payload: &[u8]) -> Option<Link> {
    let (header, attrs) = payload.split_at_checked(16)?;
    let mut link = Link {
        index: u32_of(&header[4..])?,
        name: String::new(),
        mac: None,
        kind: None,
        up: u32_of(&header[8..])? & IFF_UP != 0,
    };
    for (kind, value) in attributes(attrs) {
        match kind {
            IFLA_IFNAME => link.name = text_of(value),
            IFLA_ADDRESS => link.mac = value.try_into().ok().map(Mac),
            IFLA_LINKINFO => link.kind = attribute(value, IFLA_INFO_KIND).map(text_of),
            _ => {}
        }
    }
    Some(link)
}

fn address_of(payload: &[u8]) -> Option<(u32, Cidr)> {
    let (header, attrs) = payload.split_at_checked(8)?;
    let address = attribute(attrs, IFA_LOCAL).or_else(|| attribute(attrs, IFA_ADDRESS)).and_then(ip_of)?;
    Some((u32_of(&header[4..])?, Cidr { address, prefix: header[1] }))
}

/// A unicast route of the main table; with `protocol`, only one of this number.
fn route_of(payload: &[u8], protocol: Option<u8>) -> Option<RouteSpec> {
    let (header, attrs) = payload.split_at_checked(12)?;
    let ours = protocol.is_none_or(|wanted| header[5] == wanted);
    if !ours || header[4] != RT_TABLE_MAIN || header[7] != RTN_UNICAST {
        return None;
    }
    let any = if header[0] == libc::AF_INET as u8 { IpAddr::from([0u8; 4]) } else { IpAddr::from([0u8; 16]) };
    let address = attribute(attrs, RTA_DST).map_or(Some(any), ip_of)?;
    Some(RouteSpec {
        destination: Cidr { address, prefix: header[1] },
        via: attribute(attrs, RTA_GATEWAY).and_then(ip_of),
        link: attribute(attrs, RTA_OIF).and_then(u32_of)?,
        onlink: u32_of(&header[8..])? & RTNH_F_ONLINK != 0,
        source: attribute(attrs, RTA_PREFSRC).and_then(ip_of),
    })
}

/// Reads one answer as each of the things that are asked for.
pub(crate) fn read(payload: &[u8]) {
    let _ = (link_of(payload), address_of(payload), route_of(payload, None));
}
