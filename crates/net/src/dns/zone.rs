//! The cluster's names as data. Pure; one Service is changed in O(its own names · log n).
//!
//! Invariant: every name below `<service>.<namespace>.svc.<domain>` belongs to that one Service, so a change of it
//! replaces exactly its own names. The reverse table remembers whose each entry is.
//!
//! Names are kept twice: in their order, which tells what lies below a name, and in a table by a hash of them, which is
//! where almost every question ends. Of two names with one hash the later is found by it, the other in the order. The
//! table is only asked for one hash at a time, so its own order decides nothing.

use crate::address::Cidr;
use crate::dns::wire::{Key, Name};
use crate::nodenet::Protocol;
use base::Tree;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Bound;
use std::sync::Arc;

/// How long clients may remember an answer, in seconds.
pub const TTL_S: u32 = 30;
/// How long they may remember that there is none.
pub const NEGATIVE_TTL_S: u32 = 5;
/// The version of Kubernetes' DNS specification that is followed.
pub const SPECIFICATION: &str = "1.1.0";

/// A named port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortName {
    /// Empty: the port has no name and so no SRV record.
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
}

/// A pod behind a headless Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointName {
    pub address: IpAddr,
    /// The pod's hostname, if it has one of its own; otherwise its address with dashes takes its place.
    pub hostname: Option<String>,
    pub ports: Vec<PortName>,
}

/// What DNS knows of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceNames {
    /// Cluster addresses; empty for headless ones.
    pub addresses: Vec<IpAddr>,
    /// The target of an ExternalName.
    pub external: Option<String>,
    /// Ports of a Service with cluster addresses.
    pub ports: Vec<PortName>,
    /// Pods of a headless Service that may be seen.
    pub endpoints: Vec<EndpointName>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Srv {
    pub port: u16,
    pub target: Arc<[u8]>,
    pub addresses: Vec<IpAddr>,
}

/// What one name holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Records {
    pub v4: Vec<Ipv4Addr>,
    pub v6: Vec<Ipv6Addr>,
    pub srv: Vec<Srv>,
    /// In wire form.
    pub cname: Option<Arc<[u8]>>,
    pub txt: Option<Arc<[u8]>>,
    pub ns: Option<Arc<[u8]>>,
}

impl Records {
    fn add(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) if !self.v4.contains(&address) => self.v4.push(address),
            IpAddr::V6(address) if !self.v6.contains(&address) => self.v6.push(address),
            _ => {}
        }
    }
}

/// Namespace and name.
type ServiceKey = (Arc<str>, Arc<str>);
/// Whose name, and the name in wire form.
pub(crate) type Named = (ServiceKey, Arc<[u8]>);
type Reverse = Arc<Vec<Named>>;
type ByHash = HashMap<u64, (Arc<[u8]>, Arc<Records>), BuildHasherDefault<AsItIs>>;

#[derive(Clone)]
pub struct Zone {
    pub(crate) domain: Name,
    pub(crate) domain_key: Key,
    names: Tree<Arc<[u8]>, Arc<Records>>,
    by_hash: ByHash,
    reverse: Tree<IpAddr, Reverse>,
    services: Tree<ServiceKey, Arc<ServiceNames>>,
    namespaces: Tree<Arc<str>, ()>,
    /// Networks whose addresses nobody else can name.
    local_networks: Vec<Cidr>,
    serial: u32,
}

/// A text that cannot be a domain name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotAName(pub String);

impl std::fmt::Display for NotAName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} is no domain name", self.0)
    }
}

impl std::error::Error for NotAName {}

/// What a lookup finds.
pub(crate) enum Found<'a> {
    Records(&'a Records),
    /// The name exists but only because of names below it.
    Empty,
    Nothing,
}

impl Zone {
    /// An empty zone for `domain`, usually `cluster.local`. `server` are the addresses on which it is served.
    ///
    /// # Errors
    /// When `domain` is no name.
    pub fn new(domain: &str, server: &[IpAddr], local_networks: &[Cidr]) -> Result<Zone, NotAName> {
        let name = Name::parse(domain).ok_or_else(|| NotAName(domain.into()))?.lower();
        let mut zone = Zone {
            domain: name,
            domain_key: name.key(),
            names: Tree::new(),
            by_hash: HashMap::default(),
            reverse: Tree::new(),
            services: Tree::new(),
            namespaces: Tree::new(),
            local_networks: local_networks.to_vec(),
            serial: 1,
        };
        let server_name = zone.name("ns.dns");
        let version = [&[SPECIFICATION.len() as u8], SPECIFICATION.as_bytes()].concat();
        zone.put("dns-version", Records { txt: Some(version.into()), ..Records::default() });
        // Below these there are names that are made up on demand, or none yet.
        for empty in ["svc", "pod"] {
            zone.put(empty, Records::default());
        }
        let mut own = Records::default();
        server.iter().for_each(|address| own.add(*address));
        zone.put("ns.dns", own);
        zone.put("", Records { ns: server_name.map(|name| name.as_bytes().into()), ..Records::default() });
        Ok(zone)
    }

    /// `prefix` within the zone.
    fn name(&self, prefix: &str) -> Option<Name> {
        let domain = self.domain.to_string();
        Name::parse(&if prefix.is_empty() { domain } else { format!("{prefix}.{domain}") }).map(Name::lower)
    }

    /// Names too long for DNS cannot be asked for either, so they are left out.
    fn put(&mut self, prefix: &str, records: Records) {
        if let Some(name) = self.name(prefix) {
            let (key, records) = (Arc::<[u8]>::from(name.key().as_bytes()), Arc::new(records));
            self.by_hash.insert(hash_of(&key), (key.clone(), records.clone()));
            self.names.insert(key, records);
        }
    }

    fn take(&mut self, prefix: &str) {
        if let Some(name) = self.name(prefix) {
            let key = name.key();
            let hash = hash_of(key.as_bytes());
            if self.by_hash.get(&hash).is_some_and(|(other, _)| **other == *key.as_bytes()) {
                self.by_hash.remove(&hash);
            }
            self.names.remove(key.as_bytes());
        }
    }

    /// Grows with every change.
    pub fn serial(&self) -> u32 {
        self.serial
    }

    pub fn services(&self) -> usize {
        self.services.len()
    }

    /// Namespace and name of every Service.
    pub fn all_services(&self) -> impl Iterator<Item = (&str, &str)> {
        self.services.iter().map(|((namespace, name), _)| (&**namespace, &**name))
    }

    pub fn service(&self, namespace: &str, name: &str) -> Option<&ServiceNames> {
        self.services.get(&(namespace.into(), name.into())).map(|found| &**found)
    }

    /// Says that a namespace exists, or no longer does: addresses with dashes below `pod` are answered in existing ones.
    pub fn set_namespace(&mut self, namespace: &str, exists: bool) {
        if exists == self.has_namespace(namespace.as_bytes()) {
            return;
        }
        self.serial = self.serial.wrapping_add(1);
        for kind in ["svc", "pod"] {
            let prefix = format!("{namespace}.{kind}");
            if exists { self.put(&prefix, Records::default()) } else { self.take(&prefix) }
        }
        if exists {
            self.namespaces.insert(namespace.into(), ());
        } else {
            self.namespaces.remove(namespace);
        }
    }

    /// Sets, replaces or (`None`) removes a Service.
    pub fn set_service(&mut self, namespace: &str, name: &str, service: Option<ServiceNames>) {
        let key: ServiceKey = (namespace.into(), name.into());
        let old = self.services.get(&key).cloned();
        if old.as_deref() == service.as_ref() {
            return;
        }
        self.serial = self.serial.wrapping_add(1);
        if let Some(old) = old {
            for (prefix, _) in self.records_of(&key, &old) {
                self.take(&prefix);
            }
            for address in old.addresses.iter().chain(old.endpoints.iter().map(|endpoint| &endpoint.address)) {
                self.take_reverse(&key, *address);
            }
            self.services.remove(&key);
        }
        let Some(mut service) = service else { return };
        // It is kept; what was collected one by one has room for more.
        service.addresses.shrink_to_fit();
        service.ports.shrink_to_fit();
        service.endpoints.shrink_to_fit();
        for (prefix, records) in self.records_of(&key, &service) {
            self.put(&prefix, records);
        }
        let own = service_prefix(&key);
        for address in &service.addresses {
            self.put_reverse(&key, *address, &own);
        }
        for endpoint in &service.endpoints {
            self.put_reverse(&key, endpoint.address, &format!("{}.{own}", endpoint_label(endpoint)));
        }
        self.services.insert(key, Arc::new(service));
    }

    fn put_reverse(&mut self, key: &ServiceKey, address: IpAddr, prefix: &str) {
        let Some(name) = self.name(prefix) else { return };
        let mut list = self.reverse.get(&address).map_or_else(Vec::new, |list| (**list).clone());
        let entry = (key.clone(), Arc::from(name.as_bytes()));
        if !list.contains(&entry) {
            list.push(entry);
            list.sort_unstable();
            self.reverse.insert(address, Arc::new(list));
        }
    }

    fn take_reverse(&mut self, key: &ServiceKey, address: IpAddr) {
        let Some(list) = self.reverse.get(&address) else { return };
        let rest: Vec<_> = list.iter().filter(|(owner, _)| owner != key).cloned().collect();
        if rest.is_empty() {
            self.reverse.remove(&address);
        } else {
            self.reverse.insert(address, Arc::new(rest));
        }
    }

    /// All names of a Service (without the domain) and what they hold.
    fn records_of(&self, key: &ServiceKey, service: &ServiceNames) -> Vec<(String, Records)> {
        let own = service_prefix(key);
        let wire = |prefix: &str| self.name(prefix).map(|name| Arc::<[u8]>::from(name.as_bytes()));
        let mut records = Records::default();
        if let Some(target) = &service.external {
            records.cname = Name::parse(target).map(|name| name.as_bytes().into());
            return vec![(own, records)];
        }
        let mut out = Vec::new();
        let mut by_port: Vec<(String, Records)> = Vec::new();
        let mut add_srv = |port: &PortName, srv: Srv, records: &mut Records| {
            if !records.srv.contains(&srv) {
                records.srv.push(srv.clone());
            }
            if port.name.is_empty() {
                return;
            }
            let protocol = port.protocol.to_string().to_lowercase();
            let prefix = format!("_{}._{protocol}.{own}", port.name);
            match by_port.iter_mut().find(|(other, _)| *other == prefix) {
                Some((_, records)) => records.srv.push(srv),
                None => by_port.push((prefix, Records { srv: vec![srv], ..Records::default() })),
            }
        };
        service.addresses.iter().for_each(|address| records.add(*address));
        for port in &service.ports {
            if let Some(target) = wire(&own) {
                let srv = Srv { port: port.port, target, addresses: service.addresses.clone() };
                add_srv(port, srv, &mut records);
            }
        }
        let mut endpoints: Vec<(String, Records)> = Vec::new();
        for endpoint in &service.endpoints {
            records.add(endpoint.address);
            let prefix = format!("{}.{own}", endpoint_label(endpoint));
            for port in &endpoint.ports {
                if let Some(target) = wire(&prefix) {
                    let srv = Srv { port: port.port, target, addresses: vec![endpoint.address] };
                    add_srv(port, srv, &mut records);
                }
            }
            match endpoints.iter_mut().find(|(other, _)| *other == prefix) {
                Some((_, found)) => found.add(endpoint.address),
                None => {
                    let mut found = Records::default();
                    found.add(endpoint.address);
                    endpoints.push((prefix, found));
                }
            }
        }
        out.push((own, records));
        out.append(&mut by_port);
        out.append(&mut endpoints);
        for (_, records) in &mut out {
            records.v4.shrink_to_fit();
            records.v6.shrink_to_fit();
            records.srv.shrink_to_fit();
        }
        out
    }

    /// Looks a lower-case name of the zone up.
    pub(crate) fn find(&self, key: &[u8]) -> Found<'_> {
        if let Some((_, records)) = self.by_hash.get(&hash_of(key)).filter(|(other, _)| **other == *key) {
            return Found::Records(records);
        }
        if let Some(records) = self.names.get(key) {
            return Found::Records(records);
        }
        let below = self.names.from(Bound::Excluded(key)).next();
        if below.is_some_and(|(other, _)| other.starts_with(key)) { Found::Empty } else { Found::Nothing }
    }

    pub(crate) fn has_namespace(&self, namespace: &[u8]) -> bool {
        std::str::from_utf8(namespace).is_ok_and(|namespace| self.namespaces.get(namespace).is_some())
    }

    /// The names of an address; `None`: it is for others to say.
    pub(crate) fn names_of(&self, address: IpAddr) -> Option<&[Named]> {
        match self.reverse.get(&address) {
            Some(names) => Some(names),
            None if self.local_networks.iter().any(|network| network.contains(address)) => Some(&[]),
            None => None,
        }
    }
}

/// A number that differs for most names; not for use against people who choose names so that it does not.
fn hash_of(key: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut hash = key.len() as u64;
    for part in key.chunks(8) {
        let mut word = [0; 8];
        word[..part.len()].copy_from_slice(part);
        let product = u128::from(hash ^ u64::from_le_bytes(word)) * u128::from(FACTOR);
        hash = product as u64 ^ (product >> 64) as u64;
    }
    hash
}

/// For keys that are hashes themselves.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = hash_of(bytes);
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

fn service_prefix((namespace, name): &ServiceKey) -> String {
    format!("{name}.{namespace}.svc")
}

/// The first label of a pod of a headless Service.
fn endpoint_label(endpoint: &EndpointName) -> String {
    endpoint.hostname.clone().unwrap_or_else(|| match endpoint.address {
        IpAddr::V4(address) => address.to_string().replace('.', "-"),
        IpAddr::V6(address) => address.to_string().replace(':', "-"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_one_hash_are_told_apart() {
        let mut zone = Zone::new("cluster.local", &[], &[]).unwrap();
        let key = |zone: &Zone, prefix: &str| zone.name(prefix).unwrap().key();
        for name in ["a", "b"] {
            let service = ServiceNames {
                addresses: vec![IpAddr::from([10, 0, 0, name.as_bytes()[0]])],
                ..ServiceNames::default()
            };
            zone.set_service("n", name, Some(service));
        }
        let found = |zone: &Zone, name: &str| match zone.find(key(zone, &format!("{name}.n.svc")).as_bytes()) {
            Found::Records(records) => records.v4.first().map(|address| address.octets()[3]),
            Found::Empty | Found::Nothing => None,
        };
        // As if the hash of one were that of the other, which came later.
        let (a, b) = (key(&zone, "a.n.svc"), key(&zone, "b.n.svc"));
        let other = zone.by_hash.get(&hash_of(b.as_bytes())).cloned().unwrap();
        zone.by_hash.insert(hash_of(a.as_bytes()), other);
        assert_eq!((found(&zone, "a"), found(&zone, "b")), (Some(b'a'), Some(b'b')));
        zone.set_service("n", "a", None);
        assert_eq!((found(&zone, "a"), found(&zone, "b")), (None, Some(b'b')));
        assert_ne!(hash_of(b"ab"), hash_of(b"ba"));
    }
}
