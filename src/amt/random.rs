//! Random numbers of the AMT machines.

use std::time::Duration;

use ring::hmac;

/// A sequence of numbers that others cannot predict without the seed: HMAC-SHA-256 of a counter.
/// The same seed gives the same sequence.
#[derive(Debug)]
pub struct AmtRandom {
    key: hmac::Key,
    counter: u64,
}

impl AmtRandom {
    /// Creates a sequence.
    pub fn new(seed: [u8; 32]) -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, &seed),
            counter: 0,
        }
    }

    /// Returns 32 bytes.
    pub fn bytes(&mut self) -> [u8; 32] {
        self.counter += 1;
        let tag = hmac::sign(&self.key, &self.counter.to_be_bytes());
        let mut bytes = [0; 32];
        bytes.copy_from_slice(tag.as_ref());
        bytes
    }

    /// Returns a nonce.
    pub fn nonce(&mut self) -> u32 {
        let [a, b, c, d, ..] = self.bytes();
        u32::from_be_bytes([a, b, c, d])
    }

    /// Returns a uniformly distributed duration from `min` to `max`.
    pub fn between(&mut self, min: Duration, max: Duration) -> Duration {
        let part = f64::from(self.nonce()) / f64::from(u32::MAX);
        min + max.saturating_sub(min).mul_f64(part)
    }

    /// Returns a random time with exponential back-off: from `min` to `min` * 2^`retries`, at most
    /// `max` (RFC 7450 section 5.2.3.4.3; RFC 8777 sections 2.5.4.1 and 2.7).
    pub fn back_off(&mut self, [min, max]: [Duration; 2], retries: u32) -> Duration {
        let factor = 1u32.checked_shl(retries).unwrap_or(u32::MAX);
        self.between(min, min.saturating_mul(factor).min(max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_within_their_limits() {
        let mut random = AmtRandom::new([7; 32]);
        let (min, max) = (Duration::from_secs(1), Duration::from_secs(3));
        let drawn: Vec<_> = (0..100).map(|_| random.between(min, max)).collect();
        assert!(drawn.iter().all(|d| (min..=max).contains(d)));
        assert!(drawn.iter().any(|d| *d < Duration::from_millis(1500)));
        assert!(drawn.iter().any(|d| *d > Duration::from_millis(2500)));
        assert_eq!(random.between(max, min), max);
    }

    #[test]
    fn back_off_doubles_its_range_up_to_the_limit() {
        let mut random = AmtRandom::new([7; 32]);
        let limits @ [min, max] = [Duration::from_secs(4), Duration::from_secs(120)];
        for (retries, longest) in [(0, 4), (1, 8), (2, 16), (4, 64), (5, 120), (40, 120)] {
            let longest = Duration::from_secs(longest);
            let drawn: Vec<_> = (0..100).map(|_| random.back_off(limits, retries)).collect();
            assert!(
                drawn.iter().all(|d| (min..=longest).contains(d)),
                "{drawn:?}"
            );
            let upper_half = drawn.iter().any(|d| *d >= (min + longest) / 2);
            assert!(upper_half && longest <= max, "{retries}: {drawn:?}");
        }
    }
}
