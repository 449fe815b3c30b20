//! Addresses, networks and hardware addresses as values, and who gives pods theirs.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An address and the length of its network's prefix, as in `10.0.0.1/24`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    pub address: IpAddr,
    pub prefix: u8,
}

impl Cidr {
    /// The one address.
    pub fn host(address: IpAddr) -> Cidr {
        Cidr { address, prefix: if address.is_ipv4() { 32 } else { 128 } }
    }

    pub fn is_ipv6(&self) -> bool {
        self.address.is_ipv6()
    }

    fn bits(&self) -> u8 {
        if self.is_ipv6() { 128 } else { 32 }
    }

    /// The network's mask as bytes.
    pub(crate) fn mask(&self) -> Vec<u8> {
        let all = u128::MAX.checked_shl(u32::from(self.bits() - self.prefix.min(self.bits()))).unwrap_or(0);
        let bytes = all.to_be_bytes();
        if self.is_ipv6() { bytes.to_vec() } else { bytes[12..].to_vec() }
    }

    /// The network without the address's own bits.
    pub fn network(&self) -> Cidr {
        Cidr { address: self.nth(0), prefix: self.prefix }
    }

    /// The `n`th address of the network; counts beyond it wrap.
    pub fn nth(&self, n: u128) -> IpAddr {
        let free = u32::from(self.bits() - self.prefix.min(self.bits()));
        let low = 1u128.checked_shl(free).map_or(u128::MAX, |size| size - 1);
        match self.address {
            IpAddr::V4(address) => {
                let low = low as u32;
                IpAddr::V4(Ipv4Addr::from(u32::from(address) & !low | n as u32 & low))
            }
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address) & !low | n & low)),
        }
    }

    /// How many addresses there are; the greatest number for very large networks.
    pub fn size(&self) -> u128 {
        1u128.checked_shl(u32::from(self.bits() - self.prefix.min(self.bits()))).unwrap_or(u128::MAX)
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && Cidr { address, prefix: self.prefix }.nth(0) == self.nth(0)
    }

    pub fn overlaps(&self, other: &Cidr) -> bool {
        let (wide, narrow) = if self.prefix <= other.prefix { (self, other) } else { (other, self) };
        wide.contains(narrow.address)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no `ADDRESS/LENGTH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotACidr(pub String);

impl fmt::Display for NotACidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no network like 10.0.0.0/24", self.0)
    }
}

impl std::error::Error for NotACidr {}

impl FromStr for Cidr {
    type Err = NotACidr;

    fn from_str(text: &str) -> Result<Cidr, NotACidr> {
        let wrong = || NotACidr(text.into());
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let cidr =
            Cidr { address: address.parse().map_err(|_| wrong())?, prefix: prefix.parse().map_err(|_| wrong())? };
        if cidr.prefix <= cidr.bits() { Ok(cidr) } else { Err(wrong()) }
    }
}

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
    fn networks_know_their_addresses() {
        let net = cidr("10.1.2.3/24");
        assert_eq!(net.network().to_string(), "10.1.2.0/24");
        assert_eq!(net.nth(255).to_string(), "10.1.2.255");
        assert!(net.contains("10.1.2.77".parse().unwrap()) && !net.contains("10.1.3.1".parse().unwrap()));
        assert_eq!(net.mask(), [255, 255, 255, 0]);
        assert_eq!(cidr("0.0.0.0/0").mask(), [0; 4]);
        assert_eq!(cidr("fd00::/8").mask()[..2], [255, 0]);
        assert!(cidr("10.0.0.0/8").overlaps(&net) && net.overlaps(&cidr("10.0.0.0/8")));
        assert!(!net.overlaps(&cidr("10.1.3.0/24")) && !net.overlaps(&cidr("fd00::/8")));
        assert_eq!(cidr("fd00::/64").nth(5).to_string(), "fd00::5");
        for wrong in ["", "10.0.0.0", "10.0.0.0/33", "x/8", "fd00::/129"] {
            assert!(wrong.parse::<Cidr>().is_err(), "{wrong}");
        }
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
        let mut six = Addresses::new(cidr("fd00:1::/64"));
        assert_eq!(six.give(), Some("fd00:1::2".parse().unwrap()));
    }
}
