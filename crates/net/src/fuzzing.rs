//! A door for the fuzzer to decoders that are nobody else's business: what the kernel answers over netlink.

use crate::netlink::{conntrack, messages, nft, route};

/// Answers to begin with: a link, an address, a route, an element of a set, a connection.
pub fn replies() -> Vec<Vec<u8>> {
    let message = |kind: u16, payload: &[u8]| {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&(16 + payload.len() as u32).to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&[2, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend_from_slice(payload);
        bytes
    };
    let attribute = |kind: u16, value: &[u8]| {
        let mut bytes = (4 + value.len() as u16).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    let ports = [attribute(1, &[6]), attribute(2, &[0, 80]), attribute(3, &[1, 0])].concat();
    let addresses = [attribute(1, &[10, 0, 0, 1]), attribute(2, &[10, 0, 0, 2])].concat();
    let tuple = [attribute(0x8001, &addresses), attribute(0x8002, &ports)].concat();
    let entry = [vec![2, 0, 0, 0], attribute(0x8001, &tuple), attribute(0x8002, &tuple)].concat();
    let element = attribute(0x8001, &[attribute(0x8001, &attribute(1, &[10, 0, 0, 1]))].concat());
    vec![
        message(16, &[vec![0; 16], attribute(3, b"eth0\0"), attribute(18, &attribute(1, b"veth\0"))].concat()),
        message(20, &[vec![2, 24, 0, 0, 1, 0, 0, 0], attribute(1, &[10, 0, 0, 1])].concat()),
        message(
            24,
            &[vec![2, 24, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0], attribute(1, &[10, 0, 0, 0]), attribute(4, &[1, 0, 0, 0])]
                .concat(),
        ),
        message(0x0a0c, &[vec![2, 0, 0, 0], attribute(3, &element)].concat()),
        message(0x0100, &entry),
        message(2, &[0xff; 40]),
    ]
}

/// Reads `bytes` as the answers to every question that is asked.
pub fn read_replies(bytes: &[u8]) {
    for message in messages(bytes) {
        route::read(message.payload);
        nft::read(message.payload);
        conntrack::read(message.payload);
    }
}
