//! The sequence numbers that a receiver has seen, in constant memory.

/// Number of sequence numbers, counted back from the highest, within which duplicates are detected.
pub const WINDOW: u64 = 65_536;

const WORDS: usize = (WINDOW / 64) as usize;

/// The received sequence numbers of a flow, in constant memory.
#[derive(Debug)]
pub(super) struct SequenceWindow {
    first: u64,
    highest: u64,
    /// One bit per number at index `seq % WINDOW`; valid for the last `WINDOW` numbers up to
    /// `highest`.
    bits: Box<[u64; WORDS]>,
}

/// The position of a received sequence number relative to the numbers received before it.
pub(super) enum SequenceOrder {
    /// Higher than all before.
    Next,
    /// Lower than the highest, and not received before.
    Reordered,
    /// Received before.
    Duplicate,
    /// [`WINDOW`] or more below the highest: reordered or duplicate, which is not recorded.
    TooLate,
}

impl SequenceWindow {
    /// Starts with the first number.
    pub(super) fn new(seq: u64) -> Self {
        let mut seen = Self {
            first: seq,
            highest: seq,
            bits: Box::new([0; WORDS]),
        };
        seen.set(seq);
        seen
    }

    fn set(&mut self, seq: u64) {
        let at = seq % WINDOW;
        self.bits[(at / 64) as usize] |= 1 << (at % 64);
    }

    /// Records a number.
    pub(super) fn insert(&mut self, seq: u64) -> SequenceOrder {
        if seq > self.highest {
            if seq - self.highest >= WINDOW {
                self.bits.fill(0);
            } else {
                for skipped in self.highest + 1..seq {
                    let at = skipped % WINDOW;
                    self.bits[(at / 64) as usize] &= !(1 << (at % 64));
                }
            }
            self.highest = seq;
            self.set(seq);
            return SequenceOrder::Next;
        }
        if self.highest - seq >= WINDOW {
            return SequenceOrder::TooLate;
        }
        let at = seq % WINDOW;
        if self.bits[(at / 64) as usize] >> (at % 64) & 1 == 1 {
            return SequenceOrder::Duplicate;
        }
        self.set(seq);
        self.first = self.first.min(seq);
        SequenceOrder::Reordered
    }

    /// Returns the lowest and the highest number.
    pub(super) fn range(&self) -> (u64, u64) {
        (self.first, self.highest)
    }

    /// Returns how many numbers there are from the lowest to the highest.
    pub(super) fn span(&self) -> u64 {
        (self.highest - self.first).saturating_add(1)
    }
}
