//! Pseudo-random numbers that are the same in every run.

/// An xorshift64* generator.
pub struct Random(u64);

impl Default for Random {
    fn default() -> Self {
        Self::new(0x6d63_6173_746f_7221)
    }
}

impl Random {
    /// Creates a generator from a seed; zero is replaced by one.
    pub fn new(seed: u64) -> Self {
        Self(seed.max(1))
    }

    /// Returns the next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Returns a number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}
