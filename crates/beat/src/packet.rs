//! What is sent, and how it is proven.
//!
//! Layout: `gbt1`, the sequence number (8 bytes, big endian), the length of the name (1 byte), the name, and the first
//! [`TAG_BYTES`] of HMAC-SHA-256 over all before. Each node has a key of its own, which follows from the servers' secret
//! and its name, so servers keep no list of keys, and one server's secret is every server's.

use ring::hmac;

const MARK: &[u8; 4] = b"gbt1";
/// Bytes before the name.
const HEAD_BYTES: usize = 4 + 8 + 1;
const TAG_BYTES: usize = 16;
/// Names of nodes are DNS subdomains.
const NAME_MAX_BYTES: usize = 253;
/// The longest datagram.
pub const MAX_BYTES: usize = HEAD_BYTES + NAME_MAX_BYTES + TAG_BYTES;
/// Of a node's key.
pub const KEY_BYTES: usize = 32;

/// What the keys of all nodes follow from.
pub struct Keys(hmac::Key);

impl Keys {
    /// `secret` is known to all servers of a cluster and to nobody else.
    pub fn new(secret: &[u8]) -> Keys {
        let own = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let derived = hmac::sign(&own, b"gantry signs of life 1");
        Keys(hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()))
    }

    /// The key that `node` is given.
    pub fn of(&self, node: &str) -> [u8; KEY_BYTES] {
        let mut key = [0; KEY_BYTES];
        key.copy_from_slice(hmac::sign(&self.0, node.as_bytes()).as_ref());
        key
    }
}

/// Makes and proves the datagrams of one node.
pub struct Signer(hmac::Key);

impl Signer {
    pub fn new(key: &[u8]) -> Signer {
        Signer(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// Writes the datagram into `out`.
    pub fn write(&self, node: &str, sequence: u64, out: &mut Vec<u8>) {
        let name = &node.as_bytes()[..node.len().min(NAME_MAX_BYTES)];
        out.clear();
        out.extend_from_slice(MARK);
        out.extend_from_slice(&sequence.to_be_bytes());
        // It is at most NAME_MAX_BYTES.
        out.push(name.len() as u8);
        out.extend_from_slice(name);
        let tag = hmac::sign(&self.0, out);
        out.extend_from_slice(&tag.as_ref()[..TAG_BYTES]);
    }

    /// Whether `packet` was made with this key.
    pub fn proves(&self, packet: &Packet<'_>) -> bool {
        let tag = hmac::sign(&self.0, packet.signed);
        // Compared without an early end; the tags are as long as each other.
        let differ = tag.as_ref().iter().zip(packet.tag).fold(0, |sum, (a, b)| sum | (a ^ b));
        packet.tag.len() == TAG_BYTES && differ == 0
    }
}

/// A datagram that has the right form; not proven yet.
#[derive(Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    pub node: &'a str,
    pub sequence: u64,
    signed: &'a [u8],
    tag: &'a [u8],
}

impl<'a> Packet<'a> {
    /// `None` for bytes that are no such datagram.
    pub fn read(bytes: &'a [u8]) -> Option<Packet<'a>> {
        let rest = bytes.strip_prefix(MARK)?;
        let (sequence, rest) = rest.split_first_chunk::<8>()?;
        let (length, rest) = rest.split_first()?;
        let (name, tag) = rest.split_at_checked(usize::from(*length))?;
        if tag.len() != TAG_BYTES || name.is_empty() || name.len() > NAME_MAX_BYTES {
            return None;
        }
        let node = std::str::from_utf8(name).ok()?;
        let signed = &bytes[..bytes.len() - TAG_BYTES];
        Some(Packet { node, sequence: u64::from_be_bytes(*sequence), signed, tag })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_nodes_own_key_proves() {
        let keys = Keys::new(b"secret");
        let (one, two) = (Signer::new(&keys.of("one")), Signer::new(&keys.of("two")));
        let mut bytes = Vec::new();
        one.write("one", 7, &mut bytes);
        let packet = Packet::read(&bytes).unwrap();
        assert_eq!((packet.node, packet.sequence), ("one", 7));
        assert!(one.proves(&packet) && !two.proves(&packet));
        assert!(!Signer::new(&Keys::new(b"other").of("one")).proves(&packet));
        for at in 0..bytes.len() {
            let mut forged = bytes.clone();
            forged[at] ^= 1;
            assert!(Packet::read(&forged).is_none_or(|packet| !one.proves(&packet)), "byte {at}");
        }
    }

    #[test]
    fn whatever_else_comes_is_no_datagram() {
        let mut bytes = Vec::new();
        Signer::new(b"key").write("node", u64::MAX, &mut bytes);
        for length in 0..bytes.len() {
            assert_eq!(Packet::read(&bytes[..length]), None, "{length} bytes");
        }
        bytes.push(0);
        assert_eq!(Packet::read(&bytes), None);
        let mut nameless = Vec::new();
        Signer::new(b"key").write("", 1, &mut nameless);
        assert_eq!(Packet::read(&nameless), None);
    }
}
