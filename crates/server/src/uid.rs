//! Random identities.
//!
//! A thread may draw them from a seeded stream instead ([`seeded`]), so that a simulated server repeats itself.

use std::cell::RefCell;
use std::ops::Range;

use base::Rng;

/// Random bytes fetched from the kernel at once.
const POOL_BYTES: usize = 512;

/// Characters of a UUID; which bytes make its groups, and where each group begins.
const TEXT_BYTES: usize = 36;
const GROUPS: [(Range<usize>, usize); 5] = [(0..4, 0), (4..6, 9), (6..8, 14), (8..10, 19), (10..16, 24)];

thread_local! {
    static STREAM: RefCell<Option<Rng>> = const { RefCell::new(None) };
    /// Random bytes, and how many of them are used.
    static POOL: RefCell<([u8; POOL_BYTES], usize)> = const { RefCell::new(([0; POOL_BYTES], POOL_BYTES)) };
}

/// Runs `work` with all identities of this thread drawn from `rng`, which goes on behind what was drawn. Never for a
/// server that others can reach: the identities can be guessed.
pub fn seeded<T>(rng: &mut Rng, work: impl FnOnce() -> T) -> T {
    let before = STREAM.with_borrow_mut(|stream| stream.replace(rng.clone()));
    let result = work();
    let after = STREAM.with_borrow_mut(|stream| std::mem::replace(stream, before));
    if let Some(after) = after {
        *rng = after;
    }
    result
}

fn fill(bytes: &mut [u8]) {
    let drawn = STREAM.with_borrow_mut(|stream| {
        let Some(rng) = stream else { return false };
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&rng.next_u64().to_le_bytes()[..part.len()]);
        }
        true
    });
    if drawn {
        return;
    }
    POOL.with_borrow_mut(|(pool, used)| {
        if *used + bytes.len() > pool.len() {
            // Failing here would need a kernel without getrandom, which cannot run this program at all.
            let _ = rustix::rand::getrandom(&mut pool[..], rustix::rand::GetRandomFlags::empty());
            *used = 0;
        }
        let next = *used + bytes.len();
        bytes.copy_from_slice(&pool[*used..next]);
        // What was given is given once.
        pool[*used..next].fill(0);
        *used = next;
    });
}

/// A new random UUID (version 4).
pub fn new() -> String {
    let mut bytes = [0u8; 16];
    fill(&mut bytes);
    format(bytes)
}

/// A random number, for streams of names.
pub fn seed() -> u64 {
    let mut bytes = [0u8; 8];
    fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// 16 random bytes as a UUID of version 4.
pub fn format(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = [b'-'; TEXT_BYTES];
    for (group, at) in GROUPS {
        let digits = &mut text[at..at + 2 * group.len()];
        // It has room for just as many.
        let _ = hex::encode_to_slice(&bytes[group], digits);
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_written_as_a_uuid_of_version_4() {
        let bytes = std::array::from_fn(|at| 16 * at as u8 + 15 - at as u8);
        assert_eq!(format(bytes), "0f1e2d3c-4b5a-4978-8796-a5b4c3d2e1f0");
    }

    #[test]
    fn a_seeded_thread_repeats_itself_and_goes_on() {
        let (mut one, mut two) = (Rng::new(7), Rng::new(7));
        let first = seeded(&mut one, || (new(), seed()));
        assert_eq!(first, seeded(&mut two, || (new(), seed())));
        assert_ne!(first.0, seeded(&mut one, new));
        assert_ne!(new(), new());
    }
}
