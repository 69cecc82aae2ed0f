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
}
