//! Random delays.

use std::time::Duration;

/// A pseudorandom sequence of delays (xorshift64).
#[derive(Debug)]
pub(super) struct RandomDelays {
    state: u64,
}

impl RandomDelays {
    /// Creates a sequence. Machines on one link need different seeds, so that they do not send at
    /// the same time.
    pub(super) fn new(seed: u64) -> Self {
        // Mixes the bits of small seeds (splitmix64).
        let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self {
            state: (state ^ (state >> 31)) | 1,
        }
    }

    /// Returns a uniformly distributed part of `max`.
    pub(super) fn part(&mut self, max: Duration) -> Duration {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        max.mul_f64((self.state >> 11) as f64 / (1u64 << 53) as f64)
    }
}
