//! Random identities.

/// A new random UUID (version 4).
pub fn new() -> String {
    let mut bytes = [0u8; 16];
    // Failing here would need a kernel without getrandom, which cannot run this program at all.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    format(bytes)
}

/// A random number, for streams of names.
pub fn seed() -> u64 {
    let mut bytes = [0u8; 8];
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u64::from_le_bytes(bytes)
}

/// 16 random bytes as a UUID of version 4.
pub fn format(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex::encode(bytes);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
