//! The network of etcd's members: a namespace for each, and one switch between them where they are cut off.

use std::net::Ipv4Addr;
use std::process::Command;

use super::cluster::command;
use crate::error::Error;
use crate::machine::Process;

/// What namespaces and links are called, with the process' id behind it.
const PREFIX: &str = "gb";

/// Namespaces with one switch between them; go with this.
pub struct Switch {
    name: String,
    base: Ipv4Addr,
    members: usize,
}

impl Switch {
    /// `base` is the address before the first member's.
    pub fn make(base: Ipv4Addr, members: usize) -> Result<Switch, Error> {
        sweep();
        // Short, since it is part of the names of links.
        let switch = Switch { name: format!("{PREFIX}{}", std::process::id()), base, members };
        let hub = switch.hub();
        ip(&["netns", "add", &hub])?;
        ip(&["-n", &hub, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &hub, "link", "set", "br0", "up"])?;
        let own = &switch.name;
        ip(&["link", "add", own, "type", "veth", "peer", "name", "own", "netns", &hub])?;
        ip(&["-n", &hub, "link", "set", "own", "master", "br0", "up"])?;
        ip(&["address", "add", &format!("{}/24", switch.address(members)), "dev", own])?;
        ip(&["link", "set", own, "up"])?;
        for member in 0..members {
            let (space, port) = (switch.space(member), format!("port{member}"));
            ip(&["netns", "add", &space])?;
            ip(&["-n", &hub, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &space])?;
            ip(&["-n", &hub, "link", "set", &port, "master", "br0", "up"])?;
            ip(&["-n", &space, "address", "add", &format!("{}/24", switch.address(member)), "dev", "eth0"])?;
            ip(&["-n", &space, "link", "set", "eth0", "up"])?;
            ip(&["-n", &space, "link", "set", "lo", "up"])?;
        }
        Ok(switch)
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.name)
    }

    pub fn space(&self, member: usize) -> String {
        format!("{}-{member}", self.name)
    }

    pub fn address(&self, of: usize) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.to_bits() + u32::try_from(of).unwrap_or(0) + 1)
    }

    /// Nothing goes between a member and its peers, and with `all` nor between it and anybody.
    pub fn cut(&self, member: usize, all: bool) -> Result<(), Error> {
        let mut rules =
            "add table bridge cut; add chain bridge cut f { type filter hook forward priority 0; };".to_owned();
        let peers = (0..self.members).filter(|peer| *peer != member).map(|peer| format!("port{peer}"));
        let others: Vec<String> = if all { peers.chain(["own".to_owned()]).collect() } else { peers.collect() };
        for other in others {
            for (from, to) in [(format!("port{member}"), other.clone()), (other, format!("port{member}"))] {
                rules.push_str(&format!("add rule bridge cut f iifname {from} oifname {to} drop;"));
            }
        }
        ip(&["netns", "exec", &self.hub(), "nft", &rules])
    }

    pub fn heal(&self) -> Result<(), Error> {
        ip(&["netns", "exec", &self.hub(), "nft", "delete table bridge cut"])
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        // Of one that was half made, some are missing.
        let _ = ip(&["link", "delete", &self.name]);
        for space in (0..self.members).map(|member| self.space(member)).chain([self.hub()]) {
            let _ = ip(&["netns", "delete", &space]);
        }
    }
}

/// Takes away the namespaces of runs that were killed; their links go with them.
fn sweep() {
    let all = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    for name in all.filter_map(|entry| entry.file_name().into_string().ok()) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).and_then(|(id, _)| id.parse().ok());
        if owner.is_some_and(|id| !Process(id).exists()) {
            // Another run may be doing the same.
            let _ = ip(&["netns", "delete", &name]);
        }
    }
}

fn ip(words: &[&str]) -> Result<(), Error> {
    command(Command::new("ip").args(words)).map(|_| ())
}
