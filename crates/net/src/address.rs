//! Hardware addresses as values, and who gives pods their addresses.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

pub use base::{Cidr, NotACidr};

/// A hardware address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// A locally administered address that follows from an IP address, so that two ends agree without asking.
    pub fn for_address(address: IpAddr) -> Mac {
        let bytes = bytes_of(address);
        let last = &bytes[bytes.len() - 4..];
        Mac([0x0a, 0x58, last[0], last[1], last[2], last[3]])
    }

    /// The IPv6 link-local address that a link of this hardware address gives itself.
    pub fn link_local(&self) -> Ipv6Addr {
        let m = self.0;
        Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = self.0;
        write!(f, "{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", m[0], m[1], m[2], m[3], m[4], m[5])
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

pub(crate) fn bytes_of(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

pub(crate) fn ip_of(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// Gives the pods of one node their addresses: pure bookkeeping over a network.
///
/// The first address (the network), the second (the node's own, for whoever wants one) and the last (broadcast, in
/// IPv4) are never given. Addresses are given in turn, so that one just freed rests as long as possible: peers may still
/// have it in their caches.
#[derive(Clone, Debug)]
pub struct Addresses {
    network: Cidr,
    used: BTreeSet<IpAddr>,
    next: u128,
}

impl Addresses {
    pub fn new(network: Cidr) -> Addresses {
        Addresses { network: network.network(), used: BTreeSet::new(), next: 0 }
    }

    /// The same, going on behind the address that was given last by an earlier life: without, the first to be given would be
    /// those that came free last.
    pub fn after(mut self, last: Option<IpAddr>) -> Addresses {
        if let Some(last) = last.filter(|last| self.network.contains(*last)) {
            let bits = |address| match address {
                IpAddr::V4(address) => u128::from(u32::from(address)),
                IpAddr::V6(address) => u128::from(address),
            };
            let place = bits(last) - bits(self.network.nth(0));
            self.next = place.saturating_sub(1) % self.capacity().max(1);
        }
        self
    }

    pub fn network(&self) -> Cidr {
        self.network
    }

    /// How many addresses can be given in all.
    pub fn capacity(&self) -> u128 {
        let reserved = if self.network.is_ipv6() { 2 } else { 3 };
        self.network.size().saturating_sub(reserved)
    }

    pub fn used(&self) -> usize {
        self.used.len()
    }

    /// Marks an address that a pod has already (after a restart). False when it is not free or not ours.
    pub fn take(&mut self, address: IpAddr) -> bool {
        self.network.contains(address) && self.used.insert(address)
    }

    /// The next free address; `None` when all are in use.
    pub fn give(&mut self) -> Option<IpAddr> {
        let capacity = self.capacity();
        if self.used.len() as u128 >= capacity {
            return None;
        }
        // Among `used + 1` candidates in a row one is free, unless reserved addresses were taken by hand.
        for _ in 0..=self.used.len() {
            let address = self.network.nth(2 + self.next % capacity);
            self.next = (self.next + 1) % capacity;
            if self.used.insert(address) {
                return Some(address);
            }
        }
        None
    }

    /// Frees an address. False when nobody had it.
    pub fn free(&mut self, address: IpAddr) -> bool {
        self.used.remove(&address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_are_given_once_and_rest_after_use() {
        let mut pool = Addresses::new(cidr("10.244.1.0/29"));
        assert!(pool.take("10.244.1.3".parse().unwrap()) && !pool.take("10.244.1.3".parse().unwrap()));
        assert!(!pool.take("10.244.2.3".parse().unwrap()));
        let given: Vec<String> = std::iter::from_fn(|| pool.give()).map(|address| address.to_string()).collect();
        assert_eq!(given, ["10.244.1.2", "10.244.1.4", "10.244.1.5", "10.244.1.6"]);
        assert_eq!((pool.used() as u128, pool.capacity()), (5, 5));
        assert!(pool.free("10.244.1.4".parse().unwrap()) && !pool.free("10.244.1.4".parse().unwrap()));
        assert_eq!(pool.give(), Some("10.244.1.4".parse().unwrap()));
        for (last, next) in [("10.244.1.4", "10.244.1.5"), ("10.244.1.6", "10.244.1.2"), ("10.244.2.4", "10.244.1.2")] {
            let mut later = Addresses::new(cidr("10.244.1.0/29")).after(last.parse().ok());
            assert_eq!(later.give(), Some(next.parse().unwrap()), "after {last}");
        }
        let mut six = Addresses::new(cidr("fd00:1::/64"));
        assert_eq!(six.give(), Some("fd00:1::2".parse().unwrap()));
    }
}
