//! Address ranges: `10.96.0.0/16` and what lies in it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    pub base: IpAddr,
    pub bits: u8,
}

impl Cidr {
    /// Reads `ADDRESS/BITS`; host bits may be set and are kept in `base`.
    pub fn parse(text: &str) -> Option<Cidr> {
        let (address, bits) = text.split_once('/')?;
        let base: IpAddr = address.parse().ok()?;
        let bits: u8 =
            bits.parse().ok().filter(|_| !bits.starts_with('+') && (bits == "0" || !bits.starts_with('0')))?;
        (bits <= if base.is_ipv4() { 32 } else { 128 }).then_some(Cidr { base, bits })
    }

    fn number(address: IpAddr) -> u128 {
        match address {
            IpAddr::V4(address) => u128::from(u32::from(address)),
            IpAddr::V6(address) => u128::from(address),
        }
    }

    fn width(&self) -> u8 {
        if self.base.is_ipv4() { 32 } else { 128 }
    }

    /// The first address: host bits are zero.
    pub fn network(&self) -> IpAddr {
        self.nth(0).unwrap_or(self.base)
    }

    /// How many addresses there are, at most `u128::MAX`.
    pub fn len(&self) -> u128 {
        1u128.checked_shl(u32::from(self.width() - self.bits)).unwrap_or(u128::MAX)
    }

    pub fn is_empty(&self) -> bool {
        false
    }

    /// The address at place `at` in the range.
    pub fn nth(&self, at: u128) -> Option<IpAddr> {
        if at >= self.len() {
            return None;
        }
        let host = self.width() - self.bits;
        let mask = if host >= 128 { 0 } else { u128::MAX << host };
        let number = (Self::number(self.base) & mask) + at;
        Some(match self.base {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(number).ok()?)),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
        })
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        if address.is_ipv4() != self.base.is_ipv4() {
            return false;
        }
        let host = u32::from(self.width() - self.bits);
        let cut = |address| Self::number(address).checked_shr(host).unwrap_or(0);
        cut(address) == cut(self.base)
    }
}

/// The first address that may be given out: the one after the network's own.
pub fn first_of(cidr: &str) -> Option<String> {
    Cidr::parse(cidr)?.nth(1).map(|address| address.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let range = Cidr::parse("10.96.3.4/16").unwrap();
        assert_eq!(range.network().to_string(), "10.96.0.0");
        assert_eq!((range.len(), range.nth(1).unwrap().to_string()), (65_536, "10.96.0.1".to_owned()));
        assert!(range.contains("10.96.255.255".parse().unwrap()) && !range.contains("10.97.0.0".parse().unwrap()));
        assert_eq!(first_of("fd00::/108").as_deref(), Some("fd00::1"));
        for bad in ["10.0.0.0", "10.0.0.0/33", "x/8", "10.0.0/8", "10.0.0.0/08", "10.0.0.0/+8"] {
            assert_eq!(Cidr::parse(bad), None, "{bad}");
        }
        assert_eq!(Cidr::parse("0.0.0.0/0").unwrap().len(), 1 << 32);
        assert!(Cidr::parse("::/0").unwrap().contains("::1".parse().unwrap()));
    }
}
