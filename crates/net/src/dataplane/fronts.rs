//! From a node's network to elements of sets: pure.
//!
//! A *front* is an address (or "every address of the node"), protocol and port, and where connections to it go, seen from
//! inside and from outside the cluster. Several owners may claim one front (two Services with one external address);
//! the first in order has it, so the outcome does not depend on who came first.

use crate::address::bytes_of;
use crate::netlink::nft::Data;
use crate::nodenet::{Endpoint, HostPort, MAX_ENDPOINTS, Protocol, Vip, VipKey};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

/// Slots of endpoints that outsiders may reach with their own address begin here.
const KEPT_SLOTS: u32 = 65_536;
/// Affinity below this is kept to the second, above to 4 seconds, up to a good day: it must fit into 16 bits of a class.
const AFFINITY_FINE_S: u32 = 0x8000;
const AFFINITY_MAX_S: u32 = 0x7fff * 4;
/// What refused fronts hold.
pub(crate) const REFUSAL_DROP: u32 = 0;
pub(crate) const REFUSAL_REJECT: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    pub fn number(self) -> u8 {
        if self == Family::V4 { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
    }

    pub fn address_bytes(self) -> u32 {
        if self == Family::V4 { 4 } else { 16 }
    }
}

/// Which front. `address` `None`: every address of the node itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FrontKey {
    pub family: Family,
    pub address: Option<IpAddr>,
    pub protocol: Protocol,
    pub port: u16,
}

/// Who claims a front; the least has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Owner {
    HostPort(HostPort),
    Vip(VipKey),
}

/// Where connections go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// With "port unreachable".
    Reject,
    /// Silently.
    Drop,
    Spread {
        endpoints: Vec<(IpAddr, u16)>,
        affinity_s: Option<u32>,
        /// The client's address stays.
        keep: bool,
    },
}

impl Target {
    pub fn endpoints(&self) -> &[(IpAddr, u16)] {
        if let Target::Spread { endpoints, .. } = self { endpoints } else { &[] }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Front {
    pub inside: Target,
    /// Where it is another for clients from outside the cluster.
    pub outside: Option<Target>,
}

/// The sets of a table, in the order of their declaration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum SetId {
    Services,
    Ports,
    OutsideServices,
    OutsidePorts,
    RefusedServices,
    RefusedPorts,
    RefusedOutsideServices,
    RefusedOutsidePorts,
    Endpoints,
    /// Like `Endpoints` for services with affinity, but leads to a number of the endpoint.
    StickySlots,
    StickyEndpoints,
    Hairpin,
}

impl SetId {
    pub const ALL: [SetId; 12] = [
        SetId::Services,
        SetId::Ports,
        SetId::OutsideServices,
        SetId::OutsidePorts,
        SetId::RefusedServices,
        SetId::RefusedPorts,
        SetId::RefusedOutsideServices,
        SetId::RefusedOutsidePorts,
        SetId::Endpoints,
        SetId::StickySlots,
        SetId::StickyEndpoints,
        SetId::Hairpin,
    ];

    pub fn name(self) -> &'static str {
        match self {
            SetId::Services => "services",
            SetId::Ports => "ports",
            SetId::OutsideServices => "outside-services",
            SetId::OutsidePorts => "outside-ports",
            SetId::RefusedServices => "refused-services",
            SetId::RefusedPorts => "refused-ports",
            SetId::RefusedOutsideServices => "refused-outside-services",
            SetId::RefusedOutsidePorts => "refused-outside-ports",
            SetId::Endpoints => "endpoints",
            SetId::StickySlots => "sticky-slots",
            SetId::StickyEndpoints => "sticky-endpoints",
            SetId::Hairpin => "hairpin",
        }
    }

    /// The data are a refusal, not a class.
    pub fn is_refused(self) -> bool {
        matches!(
            self,
            SetId::RefusedServices | SetId::RefusedPorts | SetId::RefusedOutsideServices | SetId::RefusedOutsidePorts
        )
    }

    /// The key has no address.
    pub fn is_ports(self) -> bool {
        matches!(self, SetId::Ports | SetId::OutsidePorts | SetId::RefusedPorts | SetId::RefusedOutsidePorts)
    }
}

/// A chain that picks one of `count` endpoints. There is one for each count in use, however many services there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PickChain {
    /// The key of endpoints has no address.
    pub ports: bool,
    pub keep: bool,
    pub count: u32,
    pub affinity_s: Option<u32>,
}

impl PickChain {
    pub fn name(&self) -> String {
        let place = if self.ports { "ports" } else { "services" };
        let keep = if self.keep { "-keep" } else { "" };
        match self.affinity_s {
            None => format!("{place}{keep}-{}", self.count),
            Some(seconds) => format!("{place}{keep}-{}-sticky-{seconds}", self.count),
        }
    }

    /// What fronts hold that go here: a number, not a verdict. The kernel checks all rules anew (walking every map of
    /// verdicts) whenever a verdict is added, so verdicts stand only in the small map from these numbers to chains.
    pub fn class(&self) -> [u8; 4] {
        let seconds = self.affinity_s.unwrap_or(0);
        let affinity = if seconds < AFFINITY_FINE_S { seconds } else { AFFINITY_FINE_S | seconds.div_ceil(4) };
        let class = self.count & 0x3fff | u32::from(self.ports) << 14 | u32::from(self.keep) << 15 | affinity << 16;
        class.to_ne_bytes()
    }

    /// The number of the first slot.
    pub fn first_slot(&self) -> u32 {
        if self.keep { KEPT_SLOTS } else { 0 }
    }
}

/// An element and, for fronts, the chain that must exist.
pub(crate) struct Element {
    pub set: SetId,
    pub key: Vec<u8>,
    pub data: Data,
    pub chain: Option<PickChain>,
}

impl FrontKey {
    fn any_address(&self) -> Vec<u8> {
        vec![0; self.family.address_bytes() as usize]
    }

    fn protocol_port(&self) -> [u8; 8] {
        let port = self.port.to_be_bytes();
        [self.protocol.number(), 0, 0, 0, port[0], port[1], 0, 0]
    }

    /// As the rules build it: address (unless it is any), protocol, port, each filled up to 4 bytes.
    pub fn key(&self) -> Vec<u8> {
        let address = self.address.map(bytes_of).unwrap_or_default();
        [&address[..], &self.protocol_port()].concat()
    }

    /// The same with zeros for any address: the beginning of the endpoints' keys.
    pub fn long_key(&self) -> Vec<u8> {
        let address = self.address.map_or_else(|| self.any_address(), bytes_of);
        [&address[..], &self.protocol_port()].concat()
    }
}

/// The data of an endpoint: address and port.
pub(crate) fn endpoint_data((address, port): (IpAddr, u16)) -> Vec<u8> {
    let mut data = bytes_of(address);
    data.extend_from_slice(&port.to_be_bytes());
    data.extend_from_slice(&[0, 0]);
    data
}

/// The elements of a front.
fn elements(key: &FrontKey, front: &Front, sticky: &StickyIds, out: &mut Vec<Element>) {
    let ports = key.address.is_none();
    let pick = |services, of_ports| if ports { of_ports } else { services };
    let refused = pick(SetId::RefusedServices, SetId::RefusedPorts);
    target(key, &front.inside, pick(SetId::Services, SetId::Ports), refused, sticky, out);
    if let Some(outside) = &front.outside {
        let spread = pick(SetId::OutsideServices, SetId::OutsidePorts);
        let refused = pick(SetId::RefusedOutsideServices, SetId::RefusedOutsidePorts);
        target(key, outside, spread, refused, sticky, out);
    }
}

fn target(key: &FrontKey, target: &Target, spread: SetId, refused: SetId, sticky: &StickyIds, out: &mut Vec<Element>) {
    let (endpoints, affinity_s, keep) = match target {
        Target::Reject | Target::Drop => {
            let refusal = if *target == Target::Drop { REFUSAL_DROP } else { REFUSAL_REJECT };
            let data = Data::Value(refusal.to_ne_bytes().to_vec());
            out.push(Element { set: refused, key: key.key(), data, chain: None });
            return;
        }
        Target::Spread { endpoints, affinity_s, keep } => (endpoints, *affinity_s, *keep),
    };
    let ports = key.address.is_none();
    let chain = PickChain { ports, keep, count: endpoints.len() as u32, affinity_s };
    let data = Data::Value(chain.class().to_vec());
    out.push(Element { set: spread, key: key.key(), data, chain: Some(chain) });
    let long = key.long_key();
    for (slot, endpoint) in endpoints.iter().enumerate() {
        let slot = chain.first_slot() + slot as u32;
        let key = [&long[..], &slot.to_ne_bytes()].concat();
        let (set, data) = match (affinity_s, sticky.get(endpoint)) {
            (Some(_), Some((id, _))) => (SetId::StickySlots, id.to_ne_bytes().to_vec()),
            _ => (SetId::Endpoints, endpoint_data(*endpoint)),
        };
        out.push(Element { set, key, data: Data::Value(data), chain: None });
    }
}

/// The fronts of one service port.
pub(crate) fn fronts_of(key: &VipKey, vip: &Vip) -> Vec<(FrontKey, Arc<Front>)> {
    let family = Family::of(key.address);
    let affinity_s = vip.affinity_s.map(|seconds| match seconds.clamp(1, AFFINITY_MAX_S) {
        fine @ ..AFFINITY_FINE_S => fine,
        coarse => coarse.next_multiple_of(4).min(AFFINITY_MAX_S),
    });
    let spread = |only_local: bool, keep: bool| {
        let fits = |endpoint: &&Endpoint| Family::of(endpoint.address) == family;
        let all: Vec<&Endpoint> = if only_local { vip.local().collect() } else { vip.endpoints.iter().collect() };
        let fitting = all.into_iter().filter(fits).take(MAX_ENDPOINTS);
        let endpoints: Vec<(IpAddr, u16)> = fitting.map(|found| (found.address, found.port)).collect();
        if endpoints.is_empty() { None } else { Some(Target::Spread { endpoints, affinity_s, keep }) }
    };
    let all = spread(false, false);
    let cluster = Front {
        inside: match &all {
            None => Target::Reject,
            Some(_) if vip.internal_local => spread(true, false).unwrap_or(Target::Drop),
            Some(all) => all.clone(),
        },
        outside: None,
    };
    let outer = Arc::new(Front {
        outside: (vip.external_local && all.is_some()).then(|| spread(true, true).unwrap_or(Target::Drop)),
        inside: all.unwrap_or(Target::Reject),
    });
    let front = |address, port| FrontKey { family, address, protocol: key.protocol, port };
    let mut fronts = vec![(front(Some(key.address), key.port), Arc::new(cluster))];
    for address in vip.external.iter().filter(|address| Family::of(**address) == family) {
        fronts.push((front(Some(*address), key.port), outer.clone()));
    }
    if let Some(port) = vip.node_port {
        fronts.push((front(None, port), outer));
    }
    fronts
}

/// The front of a host port. Every address of the node: of the pod's family.
pub(crate) fn front_of(port: &HostPort) -> (FrontKey, Arc<Front>) {
    let key = FrontKey {
        family: Family::of(port.pod),
        address: port.address.filter(|address| !address.is_unspecified()),
        protocol: port.protocol,
        port: port.port,
    };
    let inside = Target::Spread { endpoints: vec![(port.pod, port.pod_port)], affinity_s: None, keep: true };
    (key, Arc::new(Front { inside, outside: None }))
}

/// What an element was, and what it shall be.
pub(crate) type BeforeAfter = (Option<Data>, Option<Data>);

/// What changes in the sets: for each touched element what it was and what it shall be.
#[derive(Default)]
pub(crate) struct Delta {
    pub elements: BTreeMap<(Family, SetId, Vec<u8>), BeforeAfter>,
    pub chains: std::collections::BTreeSet<(Family, PickChain)>,
    /// Fronts whose endpoints changed: before and after.
    pub moved: Vec<(FrontKey, Arc<Front>, Option<Arc<Front>>)>,
    /// Fronts that had no endpoint and now have some.
    pub opened: Vec<FrontKey>,
}

impl Delta {
    fn gone(&mut self, family: Family, set: SetId, key: Vec<u8>, data: Data) {
        self.elements.entry((family, set, key)).or_insert((Some(data), None)).1 = None;
    }

    fn here(&mut self, family: Family, set: SetId, key: Vec<u8>, data: Data) {
        self.elements.entry((family, set, key)).or_insert((None, None)).1 = Some(data);
    }

    pub fn is_empty(&self) -> bool {
        self.elements.values().all(|(before, after)| before == after)
    }
}

/// Numbers of endpoints of services with affinity, and how often each is in use. A number is never given again, so that
/// a client that sticks to a gone endpoint finds nothing and is sent to another.
type StickyIds = HashMap<(IpAddr, u16), (u32, u32)>;

/// All claims, and with them what the sets hold.
#[derive(Default)]
pub(crate) struct Claims {
    fronts: HashMap<FrontKey, Vec<(Owner, Arc<Front>)>>,
    /// How often an address is a local endpoint.
    hairpins: HashMap<IpAddr, u32>,
    sticky: StickyIds,
    last_sticky: u32,
}

impl Claims {
    /// Sets or takes away one owner's claim.
    pub fn claim(&mut self, key: FrontKey, owner: Owner, front: Option<Arc<Front>>, delta: &mut Delta) {
        let claims = self.fronts.entry(key).or_default();
        let before = claims.first().map(|(_, front)| front.clone());
        match claims.binary_search_by(|(other, _)| other.cmp(&owner)) {
            Ok(at) => match front {
                Some(front) => claims[at].1 = front,
                None => drop(claims.remove(at)),
            },
            Err(at) => {
                if let Some(front) = front {
                    // Mostly there is no other; a vector that grows by itself makes room for four.
                    claims.reserve_exact(1);
                    claims.insert(at, (owner, front));
                }
            }
        }
        let after = claims.first().map(|(_, front)| front.clone());
        if claims.is_empty() {
            self.fronts.remove(&key);
        }
        if before == after {
            return;
        }
        let mut list = Vec::new();
        self.count_sticky(key.family, after.as_deref(), true, delta);
        if let Some(before) = &before {
            elements(&key, before, &self.sticky, &mut list);
            list.drain(..).for_each(|element| delta.gone(key.family, element.set, element.key, element.data));
        }
        if let Some(after) = &after {
            elements(&key, after, &self.sticky, &mut list);
            for element in list {
                delta.chains.extend(element.chain.map(|chain| (key.family, chain)));
                delta.here(key.family, element.set, element.key, element.data);
            }
        }
        self.count_sticky(key.family, before.as_deref(), false, delta);
        let open =
            |front: &Option<Arc<Front>>| front.as_ref().is_some_and(|front| !front.inside.endpoints().is_empty());
        if !open(&before) && open(&after) {
            delta.opened.push(key);
        }
        if let Some(before) = before {
            delta.moved.push((key, before, after));
        }
    }

    /// Counts the endpoints of a front with affinity, up or down.
    fn count_sticky(&mut self, family: Family, front: Option<&Front>, up: bool, delta: &mut Delta) {
        let Some(front) = front else { return };
        for target in [Some(&front.inside), front.outside.as_ref()].into_iter().flatten() {
            let Target::Spread { endpoints, affinity_s: Some(_), .. } = target else { continue };
            for endpoint in endpoints {
                let (id, count) = self.sticky.entry(*endpoint).or_insert_with(|| {
                    self.last_sticky += 1;
                    (self.last_sticky, 0)
                });
                let before = *count;
                *count = if up { before + 1 } else { before.saturating_sub(1) };
                let (key, data) = (id.to_ne_bytes().to_vec(), Data::Value(endpoint_data(*endpoint)));
                match (before, *count) {
                    (0, 1..) => delta.here(family, SetId::StickyEndpoints, key, data),
                    (1.., 0) => {
                        delta.gone(family, SetId::StickyEndpoints, key, data);
                        self.sticky.remove(endpoint);
                    }
                    _ => {}
                }
            }
        }
    }

    /// The endpoint that a number stands for.
    pub fn sticky_id(&self, endpoint: &(IpAddr, u16)) -> Option<u32> {
        self.sticky.get(endpoint).map(|(id, _)| *id)
    }

    /// Counts local endpoints, up or down: packets from such an address to itself need another source.
    pub fn hairpin(&mut self, address: IpAddr, up: bool, delta: &mut Delta) {
        let count = self.hairpins.entry(address).or_default();
        let before = *count;
        *count = if up { before + 1 } else { before.saturating_sub(1) };
        let (after, family) = (*count, Family::of(address));
        let key = [bytes_of(address), bytes_of(address)].concat();
        if after == 0 {
            self.hairpins.remove(&address);
        }
        match (before, after) {
            (0, 1..) => delta.here(family, SetId::Hairpin, key, Data::None),
            (1.., 0) => delta.gone(family, SetId::Hairpin, key, Data::None),
            _ => {}
        }
    }

    /// The front that has `key` now.
    pub fn front(&self, key: &FrontKey) -> Option<&Arc<Front>> {
        self.fronts.get(key).and_then(|claims| claims.first()).map(|(_, front)| front)
    }

    /// All elements as they shall be, for comparison with the kernel.
    pub fn expected(&self, family: Family) -> BTreeMap<(SetId, Vec<u8>), Data> {
        let mut all = BTreeMap::new();
        let mut list = Vec::new();
        for (key, claims) in self.fronts.iter().filter(|(key, _)| key.family == family) {
            if let Some((_, front)) = claims.first() {
                elements(key, front, &self.sticky, &mut list);
            }
        }
        all.extend(list.into_iter().map(|element| ((element.set, element.key), element.data)));
        for (endpoint, (id, _)) in self.sticky.iter().filter(|((address, _), _)| Family::of(*address) == family) {
            let data = Data::Value(endpoint_data(*endpoint));
            all.insert((SetId::StickyEndpoints, id.to_ne_bytes().to_vec()), data);
        }
        for address in self.hairpins.keys().filter(|address| Family::of(**address) == family) {
            all.insert((SetId::Hairpin, [bytes_of(*address), bytes_of(*address)].concat()), Data::None);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Rng;

    fn random_vip(rng: &mut Rng) -> Vip {
        let endpoint = |rng: &mut Rng| Endpoint {
            address: IpAddr::from([10, 244, 0, rng.below(6) as u8]),
            port: 8080 + rng.below(2) as u16,
            local: rng.chance(500),
        };
        let count = rng.below(4);
        let endpoints: std::collections::BTreeSet<_> = (0..count).map(|_| endpoint(rng)).collect();
        Vip {
            name: "n/s".into(),
            endpoints: endpoints.into_iter().collect(),
            draining: Vec::new(),
            affinity_s: rng.chance(200).then_some(60),
            node_port: rng.chance(500).then_some(30_000 + rng.below(3) as u16),
            external: (0..rng.below(2)).map(|_| IpAddr::from([192, 0, 2, rng.below(3) as u8])).collect(),
            internal_local: rng.chance(200),
            external_local: rng.chance(300),
        }
    }

    /// Changes one by one lead to the same elements as building anew, and deltas apply cleanly, whatever the order and
    /// however many claim one front.
    #[test]
    fn changes_lead_where_building_leads() {
        for seed in 0..100 {
            let mut rng = Rng::new(seed);
            let mut claims = Claims::default();
            let mut vips: BTreeMap<VipKey, Vip> = BTreeMap::new();
            let mut kernel: BTreeMap<(SetId, Vec<u8>), Data> = BTreeMap::new();
            for _ in 0..60 {
                let key = VipKey {
                    address: IpAddr::from([10, 96, 0, rng.below(5) as u8]),
                    protocol: Protocol::Tcp,
                    port: 80,
                };
                let new = rng.chance(750).then(|| random_vip(&mut rng));
                let mut delta = Delta::default();
                let old = vips.remove(&key);
                let old_fronts = old.as_ref().map_or(vec![], |old| fronts_of(&key, old));
                let new_fronts = new.as_ref().map_or(vec![], |new| fronts_of(&key, new));
                for (front, _) in &old_fronts {
                    if !new_fronts.iter().any(|(other, _)| other == front) {
                        claims.claim(*front, Owner::Vip(key), None, &mut delta);
                    }
                }
                for (front, target) in new_fronts {
                    claims.claim(front, Owner::Vip(key), Some(target), &mut delta);
                }
                for (vip, up) in [(&old, false), (&new, true)] {
                    for endpoint in vip.iter().flat_map(|vip| vip.local()) {
                        claims.hairpin(endpoint.address, up, &mut delta);
                    }
                }
                vips.extend(new.map(|new| (key, new)));
                for ((_, set, element), (before, after)) in delta.elements {
                    assert_eq!(kernel.get(&(set, element.clone())), before.as_ref(), "seed {seed}");
                    match after {
                        Some(after) => kernel.insert((set, element), after),
                        None => kernel.remove(&(set, element)),
                    };
                }
                assert_eq!(kernel, claims.expected(Family::V4), "seed {seed}");
            }
            let mut fresh = Claims::default();
            for (key, vip) in vips.iter().rev() {
                for (front, target) in fronts_of(key, vip) {
                    fresh.claim(front, Owner::Vip(*key), Some(target), &mut Delta::default());
                }
                for endpoint in vip.local() {
                    fresh.hairpin(endpoint.address, true, &mut Delta::default());
                }
            }
            let numbers = |set: &SetId| matches!(set, SetId::StickySlots | SetId::StickyEndpoints);
            kernel.retain(|(set, _), _| !numbers(set));
            let mut fresh = fresh.expected(Family::V4);
            fresh.retain(|(set, _), _| !numbers(set));
            assert_eq!(kernel, fresh, "seed {seed}");
        }
    }
}
