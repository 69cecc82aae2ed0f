//! Numbers as good as random, the same in every run.

/// xorshift64*.
pub struct Random(u64);

impl Default for Random {
    fn default() -> Self {
        Self::new(0x6d63_6173_746f_7221)
    }
}

impl Random {
    /// Numbers that follow from this one, of which zero counts as one.
    pub fn new(seed: u64) -> Self {
        Self(seed.max(1))
    }

    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}
