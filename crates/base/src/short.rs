//! Comparing short texts. Names and keys are compared all the time, most of them of less than 16 bytes: a call to the
//! routine that compares memory costs several times what it takes to look at them here.

use std::cmp::Ordering;

/// Whether two texts are equal.
#[inline]
pub fn same(one: &[u8], other: &[u8]) -> bool {
    const WORD: usize = size_of::<u64>();
    const HALF: usize = size_of::<u32>();
    if one.len() != other.len() {
        return false;
    }
    match one.len() {
        // Both ends together are all of it.
        WORD..=16 => one.first_chunk::<WORD>() == other.first_chunk() && one.last_chunk::<WORD>() == other.last_chunk(),
        HALF..WORD => {
            one.first_chunk::<HALF>() == other.first_chunk() && one.last_chunk::<HALF>() == other.last_chunk()
        }
        _ => one == other,
    }
}

/// How two texts are ordered, byte by byte.
#[inline]
pub fn order(one: &[u8], other: &[u8]) -> Ordering {
    if let (Some(a), Some(b)) = (one.first_chunk(), other.first_chunk()) {
        let (a, b) = (u64::from_be_bytes(*a), u64::from_be_bytes(*b));
        if a != b {
            return a.cmp(&b);
        }
    }
    one.cmp(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    #[test]
    fn texts_compare_as_slices_do() {
        let mut rng = Rng::new(3);
        let mut text =
            |len: u64| -> Vec<u8> { (0..len).map(|_| 254 + u8::try_from(rng.below(2)).unwrap_or(0)).collect() };
        let texts: Vec<Vec<u8>> =
            (0..400).map(|at| text(at % 20)).chain([vec![0; 8], vec![0; 9], b"a".to_vec()]).collect();
        let mut equal = 0;
        for one in &texts {
            for other in &texts {
                assert_eq!((same(one, other), order(one, other)), (one == other, one.cmp(other)));
                equal += usize::from(one == other);
            }
        }
        assert!(equal > 2 * texts.len());
    }
}
