//! Exponential back-off as a pure function of the number of failures.

/// Delays that double from `first_ms` up to `max_ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub first_ms: u64,
    pub max_ms: u64,
}

impl Backoff {
    pub const fn new(first_ms: u64, max_ms: u64) -> Backoff {
        Backoff { first_ms, max_ms }
    }

    /// The delay before the next try after `failures` failures in a row; 0 when there was none.
    pub fn delay_ms(self, failures: u32) -> u64 {
        match failures {
            0 => 0,
            n => self.first_ms.saturating_mul(1u64 << (n - 1).min(40)).min(self.max_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_limit() {
        let backoff = Backoff::new(10, 70);
        let delays: Vec<u64> = [0, 1, 2, 3, 4, 100].into_iter().map(|n| backoff.delay_ms(n)).collect();
        assert_eq!(delays, [0, 10, 20, 40, 70, 70]);
    }
}
