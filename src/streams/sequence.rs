//! Loss, reordering and duplicates by sequence numbers (RFC 3550 appendix A.1 and A.3).
//!
//! Other than in A.3, a duplicate does not cancel a loss: `lost` counts the numbers that did not
//! arrive.

use super::bursts::Bursts;
use crate::api::streams::SequenceView;
use crate::forward::drop_history::LastMinute;

/// `MAX_MISORDER` of the RFC: a packet less far behind is late, others are of a new start.
const MAX_MISORDER: u64 = 100;

/// `MAX_DROPOUT` of the RFC, for numbers of 16 bits: more missing numbers are a restart.
const MAX_DROPOUT_16: u64 = 3000;

/// The same for longer numbers, which do not wrap within seconds.
const MAX_DROPOUT: u64 = 1_000_000;

/// Of longer numbers, the upper bits are ignored: what is counted never overflows.
const MAX_BITS: u32 = 48;

/// How many numbers are remembered.
const WINDOW: u64 = 128;

/// What a packet is by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The first one, or the first of a sender that started again.
    First,
    /// Later than all before, after this many missing numbers.
    Next(u64),
    /// Missing until now.
    Late,
    /// Arrived before.
    Duplicate,
    /// Too far from the others. If the next packet follows it, the sender has started again.
    Stray,
}

/// Follows the sequence numbers of a stream.
#[derive(Debug, Clone)]
pub struct Sequence {
    bits: u32,
    has_started: bool,
    /// The lowest and the highest number, extended to 64 bits.
    base: u64,
    max: u64,
    /// Numbers that arrived since `base`.
    received: u64,
    /// The number after that of a stray packet.
    after_stray: Option<u64>,
    /// Which of the last [`WINDOW`] numbers arrived; bit 0 is `max`.
    seen: u128,
    /// Expected and lost numbers before the last restart.
    earlier: (u64, u64),
    reordered: u64,
    duplicates: u64,
    restarts: u64,
    lost_minute: LastMinute,
    expected_minute: LastMinute,
    bursts: Bursts,
}

impl Sequence {
    /// Follows numbers of `bits` bits, which wrap.
    pub fn new(bits: u32) -> Self {
        Self {
            bits: bits.clamp(8, MAX_BITS),
            has_started: false,
            base: 0,
            max: 0,
            received: 0,
            after_stray: None,
            seen: 0,
            earlier: (0, 0),
            reordered: 0,
            duplicates: 0,
            restarts: 0,
            lost_minute: LastMinute::default(),
            expected_minute: LastMinute::default(),
            bursts: Bursts::default(),
        }
    }

    fn mask(&self) -> u64 {
        u64::MAX >> (64 - self.bits)
    }

    /// Adds a packet. `now_ms` is a clock in milliseconds.
    pub fn add(&mut self, number: u64, now_ms: u64) -> Order {
        let mask = self.mask();
        let number = number & mask;
        if !self.has_started {
            self.start(number, now_ms);
            return Order::First;
        }
        let ahead = number.wrapping_sub(self.max) & mask;
        let behind = self.max.wrapping_sub(number) & mask;
        let max_dropout = match self.bits {
            ..=16 => MAX_DROPOUT_16.min(mask / 2),
            _ => MAX_DROPOUT,
        };
        if ahead == 0 {
            return self.add_duplicate();
        }
        if ahead < max_dropout {
            self.advance(ahead);
            self.lost_minute.add(ahead - 1, now_ms);
            self.expected_minute.add(ahead, now_ms);
            return Order::Next(ahead - 1);
        }
        if behind >= MAX_MISORDER {
            if self.after_stray == Some(number) {
                self.restart(number.wrapping_sub(1) & mask, now_ms);
                self.add(number, now_ms);
                return Order::First;
            }
            self.after_stray = Some(number.wrapping_add(1) & mask);
            return Order::Stray;
        }
        let bit = 1u128 << behind;
        if self.seen & bit != 0 {
            return self.add_duplicate();
        }
        self.reordered += 1;
        self.seen |= bit;
        let extended = self.max - behind;
        if extended >= self.base {
            self.received += 1;
            self.lost_minute.remove(1);
        }
        Order::Late
    }

    fn add_duplicate(&mut self) -> Order {
        self.duplicates += 1;
        Order::Duplicate
    }

    /// Starts with a number. Leaves room below it for late packets.
    fn start(&mut self, number: u64, now_ms: u64) {
        self.has_started = true;
        self.after_stray = None;
        let room = 1 << self.bits;
        (self.base, self.max) = (number + room, number + room);
        (self.received, self.seen) = (1, 1);
        self.expected_minute.add(1, now_ms);
    }

    /// Continues with `number`, because the sender started again.
    pub fn restart(&mut self, number: u64, now_ms: u64) {
        if self.has_started {
            self.restarts += 1;
            self.earlier = (self.expected(), self.lost());
            self.settle_all();
        }
        self.start(number & self.mask(), now_ms);
    }

    /// Makes the number `ahead` of the highest the highest.
    fn advance(&mut self, ahead: u64) {
        // Numbers that leave the window are final, in their order.
        let known = (self.max - self.base + 1).min(WINDOW);
        for step in 0..ahead.min(WINDOW) {
            let position = WINDOW - 1 - step;
            if position < known {
                self.bursts.add(self.seen >> position & 1 == 1);
            }
        }
        self.bursts.add_lost(ahead.saturating_sub(WINDOW));
        self.seen = match ahead {
            0..WINDOW => self.seen << ahead,
            _ => 0,
        };
        self.seen |= 1;
        self.max += ahead;
        self.received += 1;
        self.after_stray = None;
    }

    /// Makes the numbers of the window final.
    fn settle_all(&mut self) {
        let known = (self.max - self.base + 1).min(WINDOW);
        for position in (0..known).rev() {
            self.bursts.add(self.seen >> position & 1 == 1);
        }
    }

    /// Returns how many numbers were sent.
    pub fn expected(&self) -> u64 {
        match self.has_started {
            true => self.earlier.0 + (self.max - self.base + 1),
            false => 0,
        }
    }

    /// Returns how many numbers did not arrive.
    pub fn lost(&self) -> u64 {
        match self.has_started {
            true => self.earlier.1 + (self.max - self.base + 1).saturating_sub(self.received),
            false => 0,
        }
    }

    /// Returns how often the sender started again.
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// Returns the bursts and gaps until now.
    pub fn bursts(&self) -> Bursts {
        let mut all = self.clone();
        if all.has_started {
            all.settle_all();
        }
        all.bursts
    }

    /// Returns what the numbers say.
    pub fn view(&self, now_ms: u64) -> SequenceView {
        let lost_minute = self.lost_minute.packets(now_ms);
        let expected = self.expected_minute.packets(now_ms).max(1);
        SequenceView {
            expected: self.expected(),
            lost: self.lost(),
            lost_minute,
            loss_ppm: lost_minute * 1_000_000 / expected,
            reordered: self.reordered,
            duplicates: self.duplicates,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(bits: u32, numbers: impl IntoIterator<Item = u64>) -> Sequence {
        let mut sequence = Sequence::new(bits);
        for number in numbers {
            sequence.add(number, 1000);
        }
        sequence
    }

    fn view(bits: u32, numbers: impl IntoIterator<Item = u64>) -> SequenceView {
        run(bits, numbers).view(1000)
    }

    #[test]
    fn wrap_is_no_loss() {
        for bits in [16, 32, 64] {
            let top = u64::MAX >> (64 - bits);
            let numbers = (0..500u64).map(|n| top.wrapping_sub(249).wrapping_add(n) & top);
            let view = view(bits, numbers);
            assert_eq!((view.expected, view.lost), (500, 0), "{bits}");
        }
    }

    #[test]
    fn losses_and_late_packets_and_duplicates_are_counted_once() {
        // 3 and 4 are lost, 7 is late, 9 arrives three times, 2 twice.
        let view = view(16, [0, 1, 2, 5, 6, 8, 7, 9, 9, 9, 10, 2]);
        let expected = SequenceView {
            expected: 11,
            lost: 2,
            lost_minute: 2,
            loss_ppm: 2_000_000 / 11,
            reordered: 1,
            duplicates: 3,
        };
        assert_eq!(view, expected);
    }

    /// RFC 3550 appendix A.1: a packet far away is ignored, two in a row are a restart.
    #[test]
    fn two_distant_packets_in_a_row_are_a_restart() {
        let sequence = run(16, [10, 11, 40_000, 12, 13]);
        assert_eq!((sequence.restarts(), sequence.lost()), (0, 0));
        let sequence = run(16, [10, 11, 13, 40_000, 40_001, 40_003]);
        let view = sequence.view(1000);
        assert_eq!((sequence.restarts(), view.expected, view.lost), (1, 8, 2));
        // 2,998 missing numbers are losses, more are not.
        assert_eq!(run(16, [10, 10 + 2999]).lost(), 2998);
        assert_eq!(run(16, [10, 10 + 3000]).lost(), 0);
    }

    #[test]
    fn bursts_follow_the_numbers_and_not_the_arrival() {
        // 100 to 103 are lost, and 105 arrives after 107.
        let numbers = (0..400u64).filter(|n| !(100..104).contains(n) && *n != 105);
        let mut numbers: Vec<u64> = numbers.collect();
        let after = numbers.iter().position(|n| *n == 107).unwrap();
        numbers.insert(after + 1, 105);
        let bursts = run(16, numbers.clone()).bursts().view();
        assert_eq!((bursts.bursts, bursts.burst_packets), (1, 4));
        assert_eq!((bursts.longest_loss, bursts.gap_density_ppm), (4, 0));
        // A loss that is longer than the window.
        let numbers = (0..1000u64).filter(|n| !(300..700).contains(n));
        let sequence = run(16, numbers);
        assert_eq!(sequence.lost(), 400);
        let bursts = sequence.bursts().view();
        assert_eq!((bursts.burst_packets, bursts.longest_loss), (400, 400));
    }

    #[test]
    fn losses_of_the_last_minute_are_forgotten() {
        let mut sequence = Sequence::new(16);
        [1, 2, 5].iter().for_each(|n| _ = sequence.add(*n, 5_000));
        sequence.add(7, 30_000);
        assert_eq!(sequence.view(30_000).lost_minute, 3);
        let view = sequence.view(61_000);
        assert_eq!((view.lost_minute, view.lost), (1, 3));
    }

    proptest::proptest! {
        /// Whatever is dropped: expected and lost are those of the numbers themselves.
        #[test]
        fn lost_is_what_was_not_sent_on(
            start in 0u64..65_536,
            dropped in proptest::collection::vec(proptest::bool::weighted(0.2), 3..2000),
        ) {
            let numbers = dropped.iter().enumerate().filter(|(_, d)| !**d);
            let numbers: Vec<u64> = numbers.map(|(n, _)| n as u64).collect();
            let (Some(first), Some(last)) = (numbers.first(), numbers.last()) else {
                return Ok(());
            };
            let view = view(16, numbers.iter().map(|n| (start + n) % 65_536));
            let expected = last - first + 1;
            proptest::prop_assert_eq!(view.expected, expected);
            proptest::prop_assert_eq!(view.lost, expected - numbers.len() as u64);
            let sequence = run(16, numbers.iter().map(|n| (start + n) % 65_536));
            let mut bursts = Bursts::default();
            let range = &dropped[*first as usize..=*last as usize];
            range.iter().for_each(|dropped| bursts.add(!dropped));
            proptest::prop_assert_eq!(sequence.bursts().view(), bursts.view());
        }
    }
}
