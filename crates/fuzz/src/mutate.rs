//! Mutations of bytes: flips, cuts, repeats, splices, and words that decoders trip over.

use base::Rng;

/// Inputs are no longer than this.
const BYTES_MAX: usize = 64 * 1024;

/// Numbers at the edges of what fields hold, and pieces of the formats that are read here.
const WORDS: &[&[u8]] = &[
    b"",
    b"\0",
    b"\xff\xff\xff\xff",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
    b"-1",
    b"0",
    b"1e308",
    b"1e-400",
    b"9223372036854775807",
    b"9223372036854775808",
    b"-9223372036854775808",
    b"18446744073709551616",
    b"2147483648",
    b"4294967296",
    b"0.00000000000000000001",
    b"1Ei",
    b"1n",
    b"null",
    b"true",
    b"{}",
    b"[]",
    b"\"\"",
    b"\"\\ud800\"",
    b"\\u0000",
    b"{\"",
    b"\":",
    b"},{",
    b"],[",
    b"$patch",
    b"$setElementOrder/",
    b"$retainKeys",
    b"f:",
    b"k:{\"",
    b"v:",
    b"i:-1",
    b"/-",
    b"~0~1",
    b"..",
    b"../../",
    b"%00",
    b"%",
    b"&a ",
    b"*a",
    b"- ",
    b": ",
    b"\n",
    b"\r\n\r\n",
    b"!!",
    b" in (",
    b" notin (a,b)",
    b"!=",
    b"==",
    b"sha256:",
    b"1970-01-01T00:00:00Z",
    b"9999-99-99T99:99:99.999999999Z",
    b"P1Y",
    b"1h1m1s",
    "ü\u{202e}\u{0}\u{fffd}".as_bytes(),
    b"\xc3\x28",
    b"\xed\xa0\x80",
    b"\xc0\x0c",
];

/// One to eight changes to an input of the pool.
pub fn mutate(pool: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let pick = |rng: &mut Rng| pool.get(rng.below(pool.len() as u64) as usize).cloned().unwrap_or_default();
    let mut bytes = pick(rng);
    for _ in 0..=rng.below(8) {
        change(&mut bytes, pool, rng);
        bytes.truncate(BYTES_MAX);
    }
    bytes
}

fn change(bytes: &mut Vec<u8>, pool: &[Vec<u8>], rng: &mut Rng) {
    let len = bytes.len() as u64;
    let at = rng.below(len + 1) as usize;
    let some = |rng: &mut Rng| (at + 1 + rng.below(16) as usize).min(len as usize).max(at);
    match rng.below(10) {
        0 if len > 0 => bytes[rng.below(len) as usize] ^= 1 << rng.below(8),
        1 if len > 0 => bytes[rng.below(len) as usize] = rng.next_u64() as u8,
        2 => bytes.truncate(at),
        3 => drop(bytes.drain(at..some(rng))),
        4 => {
            let piece = bytes[at..some(rng)].to_vec();
            let times = 1 + rng.below(40) as usize;
            bytes.splice(at..at, piece.repeat(times));
        }
        5 => {
            let other = &pool[rng.below(pool.len() as u64) as usize];
            let from = rng.below(other.len() as u64 + 1) as usize;
            let to = (from + rng.below(200) as usize).min(other.len());
            bytes.splice(at..at, other[from..to].iter().copied());
        }
        6 => {
            let to = some(rng);
            bytes.splice(at..to, WORDS[rng.below(WORDS.len() as u64) as usize].iter().copied());
        }
        7 => {
            let other = rng.below(len + 1) as usize;
            let (low, high) = (at.min(other), at.max(other));
            bytes[low..high].reverse();
        }
        _ => {
            let word = WORDS[rng.below(WORDS.len() as u64) as usize];
            bytes.splice(at..at, word.iter().copied());
        }
    }
}
