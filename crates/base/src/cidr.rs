//! Ranges of addresses: an address and how many of its bits name the range.

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
    /// Reads `ADDRESS/LENGTH`, the length without leading zeros and signs; the address may have bits behind it.
    pub fn parse(text: &str) -> Option<Cidr> {
        let (address, length) = text.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let good = length == "0" || !length.starts_with(['0', '+']);
        let prefix = length.parse().ok().filter(|_| good)?;
        let cidr = Cidr { address, prefix };
        (prefix <= cidr.bits()).then_some(cidr)
    }

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
    pub fn mask(&self) -> Vec<u8> {
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

    /// The `n`th address of the network, if it has so many.
    pub fn get(&self, n: u128) -> Option<IpAddr> {
        (n < self.size()).then(|| self.nth(n))
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
        Cidr::parse(text).ok_or_else(|| NotACidr(text.into()))
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
        assert_eq!((net.get(256), cidr("fd00::/108").get(1)), (None, "fd00::1".parse().ok()));
        assert_eq!((cidr("0.0.0.0/0").size(), cidr("::/0").contains("::1".parse().unwrap())), (1 << 32, true));
        for wrong in ["", "10.0.0.0", "10.0.0.0/33", "x/8", "fd00::/129", "10.0.0.0/08", "10.0.0.0/+8"] {
            assert!(wrong.parse::<Cidr>().is_err(), "{wrong}");
        }
    }
}
