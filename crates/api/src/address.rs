//! Addresses that a cluster gives itself.

pub use base::Cidr;

/// The first address of a range that may be given out: the one after the network's own.
pub fn first_of(cidr: &str) -> Option<String> {
    Cidr::parse(cidr)?.get(1).map(|address| address.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_networks_own_address_is_not_given() {
        assert_eq!(first_of("fd00::/108").as_deref(), Some("fd00::1"));
        assert_eq!(first_of("10.96.0.0/32"), None);
        assert_eq!(first_of("10.96.0.0"), None);
    }
}
