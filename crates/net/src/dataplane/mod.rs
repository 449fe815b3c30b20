//! Makes the kernel of the calling thread's network namespace do what a [`NodeNet`] says.
//!
//! The first [`Dataplane::apply`] replaces our table as a whole, in one atomic batch; later ones change elements only.
//! [`Dataplane::apply_vips`] is for callers that know what changed: its cost does not depend on how many services there
//! are. Two tables of ours (`ip gantry`, `ip6 gantry`), routes of our own protocol number, the overlay's device: nothing
//! else is touched.
//!
//! Invariants: a batch that the kernel refuses leaves the old state; applying the same value twice changes nothing;
//! whatever was in our tables before the first apply is gone after it.

mod frame;
mod fronts;
mod overlay;

pub use overlay::VXLAN_LINK;

use crate::error::Error;
use crate::netlink::conntrack::{Conntrack, Entry};
use crate::netlink::nft::{Batch, Data, Nft};
use crate::netlink::route::Routes;
use crate::nodenet::{HostPort, NodeNet, Protocol, Vip, VipKey};
use frame::{Frame, TABLE};
use fronts::{Claims, Delta, Family, FrontKey, Owner, PickChain, SetId, front_of, fronts_of};
use overlay::Overlay;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// What an apply did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The tables were built anew.
    pub replaced: bool,
    /// Elements added or removed.
    pub elements: usize,
    /// Routes or the overlay's device changed.
    pub routes: bool,
    /// Stale UDP connections deleted.
    pub connections: usize,
    /// Bytes of netlink messages.
    pub bytes: usize,
}

impl Applied {
    pub fn nothing(&self) -> bool {
        *self == Applied::default()
    }
}

/// Elements that a set has room for at least.
const LEAST_ROOM: u32 = 1024;

struct Present {
    net: NodeNet,
    /// Elements and room for them, by set.
    counts: BTreeMap<(Family, SetId), (u32, u32)>,
    frames: Vec<Frame>,
    claims: Claims,
    chains: BTreeSet<(Family, PickChain)>,
}

/// Owns the sockets of one network namespace.
pub struct Dataplane {
    nft: Nft,
    conntrack: Conntrack,
    routes: Routes,
    overlay: Overlay,
    /// `None`: unknown; the next apply replaces everything.
    present: Option<Present>,
}

impl Dataplane {
    /// For the network namespace of the calling thread; it may be used from any thread afterwards.
    ///
    /// # Errors
    /// When the sockets cannot be opened.
    pub fn open() -> Result<Dataplane, Error> {
        Ok(Dataplane {
            nft: Nft::open()?,
            conntrack: Conntrack::open()?,
            routes: Routes::open()?,
            overlay: Overlay::default(),
            present: None,
        })
    }

    /// Makes the kernel as `net` says.
    ///
    /// # Errors
    /// When the kernel refuses; services are then as before, and routes are tried again by the next call.
    pub fn apply(&mut self, net: &NodeNet) -> Result<Applied, Error> {
        let routes = self.overlay.apply(&mut self.routes, net)?;
        let frames = frames(net);
        let mut applied = match &self.present {
            Some(present) if present.frames == frames => {
                let changed = changed_vips(&present.net, net);
                self.change(&changed, Some(&net.host_ports))?
            }
            _ => self.replace(net, frames)?,
        };
        if let Some(present) = &mut self.present {
            present.net = net.clone();
        }
        applied.routes = routes;
        Ok(applied)
    }

    /// Changes only these services (`None`: removed); everything else stays as last applied.
    ///
    /// # Errors
    /// As [`Dataplane::apply`]; also when nothing was applied yet.
    pub fn apply_vips(&mut self, changes: &[(VipKey, Option<Arc<Vip>>)]) -> Result<Applied, Error> {
        let applied = self.change(changes, None)?;
        if let Some(present) = &mut self.present {
            for (key, vip) in changes {
                match vip {
                    Some(vip) => present.net.vips.insert(*key, vip.clone()),
                    None => present.net.vips.remove(key),
                };
            }
        }
        Ok(applied)
    }

    /// What was applied last.
    pub fn applied(&self) -> Option<&NodeNet> {
        self.present.as_ref().map(|present| &present.net)
    }

    /// Builds the tables anew.
    fn replace(&mut self, net: &NodeNet, frames: Vec<Frame>) -> Result<Applied, Error> {
        let (mut claims, mut delta) = (Claims::default(), Delta::default());
        for port in &net.host_ports {
            claim_host_port(&mut claims, port, true, &mut delta);
        }
        for (key, vip) in &net.vips {
            claim_vip(&mut claims, key, None, Some(vip), &mut delta);
        }
        let mut counts: BTreeMap<(Family, SetId), (u32, u32)> = BTreeMap::new();
        for (family, set, _) in delta.elements.keys() {
            counts.entry((*family, *set)).or_insert((0, LEAST_ROOM)).0 += 1;
        }
        counts.values_mut().for_each(|(count, room)| *room = (*count * 2).next_power_of_two().max(LEAST_ROOM));
        let mut applied = Applied { replaced: true, ..Applied::default() };
        for family in [Family::V4, Family::V6] {
            let mut batch = Batch::new(family.number(), TABLE);
            let Some(frame) = frames.iter().find(|frame| frame.family == family) else {
                batch.add_table();
                batch.delete_table();
                let committed = self.nft.commit(batch);
                // A kernel without IPv6 has no such table either.
                if family == Family::V4 {
                    committed.map_err(Error::netlink("remove the table of the family"))?;
                }
                continue;
            };
            let room = |set| counts.get(&(family, set)).map_or(LEAST_ROOM, |(_, room)| *room);
            frame.build(&mut batch, &room);
            applied.elements += fill(&mut batch, frame, &delta, &BTreeSet::new());
            applied.bytes += batch.bytes();
            let outcome = self.nft.commit(batch).map_err(Error::netlink("replace the table of services"));
            if outcome.is_err() {
                // One family may be done: the next call must do both.
                self.present = None;
            }
            outcome?;
        }
        let had = self.present.take().map(|present| present.claims);
        applied.connections = self.forget_connections(&delta, had.as_ref(), &claims)?;
        self.present = Some(Present { net: net.clone(), counts, frames, claims, chains: delta.chains });
        Ok(applied)
    }

    /// Changes elements.
    fn change(
        &mut self,
        vips: &[(VipKey, Option<Arc<Vip>>)],
        host_ports: Option<&BTreeSet<HostPort>>,
    ) -> Result<Applied, Error> {
        let Some(mut present) = self.present.take() else { return Err(Error::Limit("nothing was applied yet")) };
        let mut delta = Delta::default();
        if let Some(wanted) = host_ports {
            let gone: Vec<HostPort> = present.net.host_ports.difference(wanted).copied().collect();
            let new: Vec<HostPort> = wanted.difference(&present.net.host_ports).copied().collect();
            gone.iter().for_each(|port| claim_host_port(&mut present.claims, port, false, &mut delta));
            new.iter().for_each(|port| claim_host_port(&mut present.claims, port, true, &mut delta));
        }
        for (key, vip) in vips {
            let old = present.net.vips.get(key).cloned();
            claim_vip(&mut present.claims, key, old.as_deref(), vip.as_deref(), &mut delta);
        }
        if delta.is_empty() {
            self.present = Some(present);
            return Ok(Applied::default());
        }
        if !make_room(&mut present.counts, &delta) {
            // Sets have a fixed size, and one is too small now: build the tables anew, with more room.
            let mut net = present.net.clone();
            net.host_ports = host_ports.unwrap_or(&net.host_ports).clone();
            for (key, vip) in vips {
                match vip {
                    Some(vip) => net.vips.insert(*key, vip.clone()),
                    None => net.vips.remove(key),
                };
            }
            let frames = present.frames.clone();
            return self.replace(&net, frames);
        }
        let mut applied = Applied::default();
        for frame in &present.frames {
            let mut batch = Batch::new(frame.family.number(), TABLE);
            let elements = fill(&mut batch, frame, &delta, &present.chains);
            if elements > 0 {
                applied.elements += elements;
                applied.bytes += batch.bytes();
                // On error `present` stays unknown, so that the next apply builds anew what may be half done.
                self.nft.commit(batch).map_err(Error::netlink("change the elements of services"))?;
            }
        }
        present.chains.append(&mut delta.chains);
        self.forget_clients(&delta, &present.claims)?;
        applied.connections = self.forget_connections(&delta, None, &present.claims)?;
        self.present = Some(present);
        Ok(applied)
    }

    /// Forgets clients that stick to an endpoint which is gone.
    fn forget_clients(&mut self, delta: &Delta, claims: &Claims) -> Result<(), Error> {
        let sticky = |front: &fronts::Front| {
            let has = |target: &fronts::Target| matches!(target, fronts::Target::Spread { affinity_s: Some(_), .. });
            has(&front.inside) || front.outside.as_ref().is_some_and(has)
        };
        let moved: Vec<&FrontKey> =
            delta.moved.iter().filter(|(_, before, _)| sticky(before)).map(|(key, ..)| key).collect();
        for family in [Family::V4, Family::V6] {
            if !moved.iter().any(|key| key.family == family) {
                continue;
            }
            let known = self.nft.elements(family.number(), TABLE, frame::sticky_map())?.unwrap_or_default();
            let stale = known.iter().filter(|(client, data)| {
                let place = client.get(family.address_bytes() as usize..).unwrap_or(&[]);
                moved.iter().filter(|key| key.family == family && key.long_key() == place).any(|key| {
                    let allowed = claims.front(key).is_some_and(|front| {
                        let outside = front.outside.iter().flat_map(|target| target.endpoints());
                        front.inside.endpoints().iter().chain(outside).any(|endpoint| {
                            let id = claims.sticky_id(endpoint).map(|id| id.to_ne_bytes());
                            matches!((data, id), (Data::Value(value), Some(id)) if value[..] == id)
                        })
                    });
                    !allowed
                })
            });
            let stale: Vec<&[u8]> = stale.map(|(client, _)| &client[..]).collect();
            if !stale.is_empty() {
                let mut batch = Batch::new(family.number(), TABLE);
                batch.delete_elements(frame::sticky_map(), stale.into_iter());
                match self.nft.commit(batch) {
                    // One of them ended in the meantime; the others will be refused by their endpoint and end too.
                    Err(error) if error.errno == libc::ENOENT => {}
                    other => other.map_err(Error::netlink("forget clients of gone endpoints"))?,
                }
            }
        }
        Ok(())
    }

    /// Deletes UDP connections that lead to endpoints which are gone, or that began before there was an endpoint: UDP
    /// never ends by itself while a client keeps sending.
    fn forget_connections(&mut self, delta: &Delta, had: Option<&Claims>, now: &Claims) -> Result<usize, Error> {
        let mut gone: BTreeSet<(FrontKey, IpAddr, u16)> = BTreeSet::new();
        let mut opened: BTreeSet<FrontKey> = BTreeSet::new();
        let udp = |key: &FrontKey| key.protocol == Protocol::Udp;
        for (key, before, _) in delta.moved.iter().filter(|(key, ..)| udp(key)) {
            let after = now.front(key);
            for (address, port) in before.inside.endpoints() {
                if !after.is_some_and(|after| after.inside.endpoints().contains(&(*address, *port))) {
                    gone.insert((*key, *address, *port));
                }
            }
        }
        // After a replacement everything counts as new; entries that were right stay right.
        let known = |key: &FrontKey| had.and_then(|had| had.front(key)).is_some();
        opened.extend(delta.opened.iter().filter(|key| udp(key) && !known(key)));
        let mut deleted = 0;
        for family in [Family::V4, Family::V6] {
            if !gone.iter().any(|(key, ..)| key.family == family) && !opened.iter().any(|key| key.family == family) {
                continue;
            }
            let stale = |entry: &Entry| {
                let original = entry.original;
                if original.protocol != Protocol::Udp.number() {
                    return false;
                }
                [Some(original.destination), None].into_iter().any(|address| {
                    let key = FrontKey { family, address, protocol: Protocol::Udp, port: original.destination_port };
                    gone.contains(&(key, entry.reply.source, entry.reply.source_port))
                        || opened.contains(&key) && address.is_some() && entry.reply.source == original.destination
                })
            };
            deleted += self.conntrack.delete(family.number(), stale)?;
        }
        Ok(deleted)
    }

    /// Compares the kernel's sets with what was applied last and tells the differences; empty: all as it should be.
    ///
    /// # Errors
    /// When the sets cannot be read.
    pub fn read(&mut self) -> Result<Vec<String>, Error> {
        let mut differences = Vec::new();
        for family in [Family::V4, Family::V6] {
            let Some(present) = &self.present else { return Ok(vec!["nothing was applied yet".into()]) };
            if !present.frames.iter().any(|frame| frame.family == family) {
                continue;
            }
            let mut expected = present.claims.expected(family);
            for set in SetId::ALL {
                let Some(found) = self.nft.elements(family.number(), TABLE, set.name())? else {
                    differences.push(format!("{family:?} {}: the set is missing", set.name()));
                    continue;
                };
                for (key, data) in found {
                    match expected.remove(&(set, key.clone())) {
                        Some(wanted) if wanted == data => {}
                        Some(wanted) => differences.push(format!("{} {key:?}: {data:?}, not {wanted:?}", set.name())),
                        None => differences.push(format!("{} {key:?}: {data:?} is too much", set.name())),
                    }
                }
            }
            differences.extend(expected.keys().map(|(set, key)| format!("{} {key:?} is missing", set.name())));
        }
        Ok(differences)
    }

    /// Lets the next apply replace everything: after [`Dataplane::read`] found differences.
    pub fn distrust(&mut self) {
        self.present = None;
        self.overlay = Overlay::default();
    }

    /// Takes tables, routes and the overlay's device away.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&mut self) -> Result<(), Error> {
        self.present = None;
        self.overlay.remove(&mut self.routes)?;
        for family in [Family::V4, Family::V6] {
            let mut batch = Batch::new(family.number(), TABLE);
            batch.add_table();
            batch.delete_table();
            match self.nft.commit(batch) {
                Err(error) if family == Family::V6 && error.errno == libc::EAFNOSUPPORT => {}
                other => other.map_err(Error::netlink("remove the table of services"))?,
            }
        }
        Ok(())
    }
}

/// Counts what comes and goes. False when a set has no room for it.
fn make_room(counts: &mut BTreeMap<(Family, SetId), (u32, u32)>, delta: &Delta) -> bool {
    let mut fits = true;
    for ((family, set, _), (before, after)) in &delta.elements {
        let (count, room) = counts.entry((*family, *set)).or_insert((0, LEAST_ROOM));
        *count = (*count + u32::from(after.is_some())).saturating_sub(u32::from(before.is_some()));
        // In one batch, what goes still has its place while what comes takes one.
        fits &= *count + (delta.elements.len() as u32).min(LEAST_ROOM / 4) <= *room;
    }
    fits
}

/// The frames of the families that are in use; IPv4 always is.
fn frames(net: &NodeNet) -> Vec<Frame> {
    let six = net.cluster_cidrs.iter().chain(&net.service_cidrs).chain(&net.pod_cidrs).any(|cidr| cidr.is_ipv6())
        || net.vips.keys().any(|key| key.address.is_ipv6())
        || net.host_ports.iter().any(|port| port.pod.is_ipv6());
    let families = if six { vec![Family::V4, Family::V6] } else { vec![Family::V4] };
    families
        .into_iter()
        .map(|family| {
            let of = |set: &BTreeSet<crate::address::Cidr>| -> Vec<_> {
                set.iter().filter(|cidr| cidr.is_ipv6() == (family == Family::V6)).copied().collect()
            };
            Frame {
                family,
                pod_cidrs: of(&net.pod_cidrs),
                cluster_cidr: of(&net.cluster_cidrs).first().copied(),
                service_cidrs: of(&net.service_cidrs),
                no_masquerade: of(&net.no_masquerade),
                name_server: net.name_server.filter(|server| server.is_ipv6() == (family == Family::V6)),
            }
        })
        .collect()
}

/// The services that differ, by walking both in order; those that share their value are not looked into.
fn changed_vips(old: &NodeNet, new: &NodeNet) -> Vec<(VipKey, Option<Arc<Vip>>)> {
    let mut changed = Vec::new();
    let mut olds = old.vips.iter().peekable();
    for (key, vip) in &new.vips {
        while let Some((gone, _)) = olds.next_if(|(other, _)| *other < key) {
            changed.push((*gone, None));
        }
        match olds.next_if(|(other, _)| *other == key) {
            Some((_, same)) if Arc::ptr_eq(same, vip) || same == vip => {}
            _ => changed.push((*key, Some(vip.clone()))),
        }
    }
    changed.extend(olds.map(|(gone, _)| (*gone, None)));
    changed
}

fn claim_host_port(claims: &mut Claims, port: &HostPort, claimed: bool, delta: &mut Delta) {
    let (key, front) = front_of(port);
    claims.claim(key, Owner::HostPort(*port), claimed.then_some(front), delta);
    claims.hairpin(port.pod, claimed, delta);
}

fn claim_vip(claims: &mut Claims, key: &VipKey, old: Option<&Vip>, new: Option<&Vip>, delta: &mut Delta) {
    let fronts = |vip: Option<&Vip>| vip.map_or_else(Vec::new, |vip| fronts_of(key, vip));
    let wanted = fronts(new);
    for (front, _) in fronts(old) {
        if !wanted.iter().any(|(other, _)| *other == front) {
            claims.claim(front, Owner::Vip(*key), None, delta);
        }
    }
    for (front, target) in wanted {
        claims.claim(front, Owner::Vip(*key), Some(target), delta);
    }
    for (vip, up) in [(old, false), (new, true)] {
        for endpoint in vip.iter().flat_map(|vip| vip.local()) {
            claims.hairpin(endpoint.address, up, delta);
        }
    }
}

/// Writes the changes of one family into a batch: new chains, then what goes, then what comes. Returns how many elements.
fn fill(batch: &mut Batch, frame: &Frame, delta: &Delta, chains: &BTreeSet<(Family, PickChain)>) -> usize {
    for (_, chain) in delta.chains.difference(chains).filter(|(family, _)| *family == frame.family) {
        frame.pick_chain(batch, chain);
    }
    let mut count = 0;
    let range = |set| (frame.family, set, Vec::new())..;
    for set in SetId::ALL {
        let here = delta
            .elements
            .range(range(set))
            .take_while(|((family, other, _), _)| (*family, *other) == (frame.family, set));
        let changed: Vec<_> = here.filter(|(_, (before, after))| before != after).collect();
        count += changed.len();
        let gone = changed.iter().filter(|(_, (before, _))| before.is_some());
        batch.delete_elements(set.name(), gone.map(|((_, _, key), _)| &key[..]));
        let come = changed.iter().filter_map(|((_, _, key), (_, after))| after.as_ref().map(|data| (&key[..], data)));
        batch.add_elements(set.name(), come);
    }
    count
}
