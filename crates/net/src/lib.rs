//! The network of a node: what it shall be ([`NodeNet`], a value), and what makes it so.
//!
//! - [`Dataplane`]: services, host ports, masquerade and routes, over netlink into nftables (maps, constant rules).
//! - [`Netns`], [`Lan`], [`PodLinks`]: network namespaces, a switch for several nodes on one machine, pods' links.
//! - [`dns`]: names as data, answers as a pure function, a server loop.
//! - [`Addresses`]: which pod has which address.
//!
//! Not here: Kubernetes objects (the planner turns them into a [`NodeNet`] and a zone), containers, programs run as
//! helpers: everything goes through netlink and system calls.
//!
//! Invariants: applying the same value twice changes nothing; a refused change leaves the old state; what is not ours (by
//! table name, route protocol number, link name) is never touched.

mod address;
mod dataplane;
pub mod dns;
mod error;
pub mod fuzzing;
mod links;
mod netlink;
mod netns;
mod nodenet;
pub mod plan;

pub use address::{Addresses, Cidr, Mac, NotACidr};
pub use dataplane::{Applied, Dataplane, VXLAN_LINK};
pub use error::{Error, NetlinkError};
pub use links::lan::{Lan, LanConfig, NodeLink, Outside, pick_subnet};
pub use links::pods::{PodLink, PodLinks};
pub use netns::{Netns, NetnsThread};
pub use nodenet::{Endpoint, HostPort, MAX_ENDPOINTS, NodeNet, Protocol, Via, Vip, VipKey, Vxlan};
