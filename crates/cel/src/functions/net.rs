//! Addresses and ranges of addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Row, no_such};
use crate::value::{Fail, Val, fail};

/// Addresses without zones and without IPv4 inside of IPv6.
fn address(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().ok()?;
    match address {
        IpAddr::V6(six) if six.to_ipv4_mapped().is_some() => None,
        address => Some(address),
    }
}

fn range(text: &str) -> Option<(IpAddr, u8)> {
    let (start, bits) = text.split_once('/')?;
    let start = address(start)?;
    let good = bits == "0" || (!bits.starts_with(['0', '+']) && !bits.is_empty());
    let bits: u8 = bits.parse().ok().filter(|_| good)?;
    (bits <= width(start)).then_some((start, bits))
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address with its last bits cleared.
fn masked(address: IpAddr, bits: u8) -> IpAddr {
    let rest = u32::from(width(address) - bits);
    match address {
        IpAddr::V4(four) => {
            let mask = u32::MAX.checked_shl(rest).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from(u32::from(four) & mask))
        }
        IpAddr::V6(six) => {
            let mask = u128::MAX.checked_shl(rest).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(six) & mask))
        }
    }
}

fn holds(start: IpAddr, bits: u8, address: IpAddr) -> bool {
    start.is_ipv4() == address.is_ipv4() && masked(start, bits) == masked(address, bits)
}

fn is<'a>(args: &[Val<'a>], what: fn(IpAddr) -> bool) -> Result<Val<'a>, Fail> {
    match args {
        [Val::Ip(address)] => Ok(Val::Bool(what(*address))),
        _ => no_such(),
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(four) => four.is_link_local(),
        IpAddr::V6(six) => six.segments()[0] & 0xffc0 == 0xfe80,
    }
}

fn is_link_local_multicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(four) => four.octets()[..3] == [224, 0, 0],
        IpAddr::V6(six) => six.segments()[0] & 0xff0f == 0xff02,
    }
}

fn is_global(address: IpAddr) -> bool {
    let none = address.is_unspecified() || address.is_loopback() || address.is_multicast() || is_link_local(address);
    !none && address != IpAddr::V4(Ipv4Addr::BROADCAST)
}

fn parsed<'a>(text: &str) -> Result<Val<'a>, Fail> {
    match address(text) {
        Some(address) => Ok(Val::Ip(address)),
        None => fail(format!("IP Address {text:?} parse error during conversion from string")),
    }
}

fn parsed_range<'a>(text: &str) -> Result<Val<'a>, Fail> {
    match range(text) {
        Some((start, bits)) => Ok(Val::Cidr(start, bits)),
        None => fail(format!("network address parse error during conversion from string: {text:?}")),
    }
}

fn contains_range<'a>(args: &[Val<'a>]) -> Result<Val<'a>, Fail> {
    let other = match &args[1] {
        Val::Text(text) => parsed_range(text)?,
        other => other.clone(),
    };
    match (&args[0], other) {
        (Val::Cidr(start, bits), Val::Cidr(inner, more)) => Ok(Val::Bool(more >= *bits && holds(*start, *bits, inner))),
        _ => no_such(),
    }
}

fn contains_address<'a>(args: &[Val<'a>]) -> Result<Val<'a>, Fail> {
    let other = match &args[1] {
        Val::Text(text) => parsed(text)?,
        other => other.clone(),
    };
    match (&args[0], other) {
        (Val::Cidr(start, bits), Val::Ip(address)) => Ok(Val::Bool(holds(*start, *bits, address))),
        _ => no_such(),
    }
}

pub const ROWS: &[Row] = &[
    Row("isIP(string) bool", |args| match args {
        [Val::Text(text)] => Ok(Val::Bool(address(text).is_some())),
        _ => no_such(),
    }),
    Row("ip(string) ip", |args| match args {
        [Val::Text(text)] => parsed(text),
        _ => no_such(),
    }),
    Row("ip.isCanonical(string) bool", |args| match args {
        [Val::Text(text)] => match parsed(text)? {
            Val::Ip(address) => Ok(Val::Bool(address.to_string() == **text)),
            _ => no_such(),
        },
        _ => no_such(),
    }),
    Row("ip#family() int", |args| match args {
        [Val::Ip(address)] => Ok(Val::Int(if address.is_ipv4() { 4 } else { 6 })),
        _ => no_such(),
    }),
    Row("ip#isUnspecified() bool", |args| is(args, |address| address.is_unspecified())),
    Row("ip#isLoopback() bool", |args| is(args, |address| address.is_loopback())),
    Row("ip#isLinkLocalMulticast() bool", |args| is(args, is_link_local_multicast)),
    Row("ip#isLinkLocalUnicast() bool", |args| is(args, is_link_local)),
    Row("ip#isGlobalUnicast() bool", |args| is(args, is_global)),
    Row("isCIDR(string) bool", |args| match args {
        [Val::Text(text)] => Ok(Val::Bool(range(text).is_some())),
        _ => no_such(),
    }),
    Row("cidr(string) cidr", |args| match args {
        [Val::Text(text)] => parsed_range(text),
        _ => no_such(),
    }),
    Row("cidr#containsIP(ip) bool", contains_address),
    Row("cidr#containsIP(string) bool", contains_address),
    Row("cidr#containsCIDR(cidr) bool", contains_range),
    Row("cidr#containsCIDR(string) bool", contains_range),
    Row("cidr#ip() ip", |args| match args {
        [Val::Cidr(start, _)] => Ok(Val::Ip(*start)),
        _ => no_such(),
    }),
    Row("cidr#masked() cidr", |args| match args {
        [Val::Cidr(start, bits)] => Ok(Val::Cidr(masked(*start, *bits), *bits)),
        _ => no_such(),
    }),
    Row("cidr#prefixLength() int", |args| match args {
        [Val::Cidr(_, bits)] => Ok(Val::Int((*bits).into())),
        _ => no_such(),
    }),
];
