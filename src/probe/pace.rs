//! When the next packets are due.

use std::time::Duration;

/// Shortest sleep. Waking up more often than this costs more than a packet does.
pub const QUANTUM: Duration = Duration::from_micros(100);

/// What a paced sender does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PaceAction {
    /// This many packets are due now; ask again when they are sent.
    Send(u64),
    /// Nothing to do for so long.
    Sleep(Duration),
}

/// An absolute schedule: packet `n` is due `n / rate` seconds after the start, so that a late
/// wake-up delays packets and never lowers the rate.
///
/// A debt left by a pause of the process is paid back at twice the rate, not in one burst that
/// would overrun every buffer on the way.
#[derive(Debug, Clone)]
pub struct Pacer {
    /// Packets per second; not positive: no schedule.
    rate: f64,
    sent: u64,
    /// Packets that may leave now; refilled at twice the rate up to `depth`.
    tokens: f64,
    depth: f64,
    /// When `tokens` was last refilled.
    refilled: Duration,
}

impl Pacer {
    /// A schedule of `rate` packets per second; `None` sends as fast as the socket takes them.
    pub fn new(rate: Option<f64>) -> Self {
        let rate = rate.unwrap_or(0.0);
        // A millisecond's worth: about what a sleep may be too long.
        let depth = (rate * 0.001).max(16.0);
        Self {
            rate,
            sent: 0,
            tokens: depth,
            depth,
            refilled: Duration::ZERO,
        }
    }

    /// The next step at `elapsed` since the start.
    pub fn step(&mut self, elapsed: Duration) -> PaceAction {
        if self.rate <= 0.0 {
            return PaceAction::Send(u64::MAX);
        }
        let since = elapsed.saturating_sub(self.refilled).as_secs_f64();
        self.tokens = (self.tokens + since * 2.0 * self.rate).min(self.depth);
        self.refilled = elapsed;
        let due = ((elapsed.as_secs_f64() * self.rate) as u64).saturating_add(1);
        let now = due.saturating_sub(self.sent).min(self.tokens as u64);
        if now > 0 {
            return PaceAction::Send(now);
        }
        let next = self.sent as f64 / self.rate - elapsed.as_secs_f64();
        let next = Duration::try_from_secs_f64(next.max(0.0)).unwrap_or(Duration::MAX);
        PaceAction::Sleep(next.max(QUANTUM))
    }

    /// Tells that `packets` left.
    pub fn sent(&mut self, packets: u64) {
        self.sent = self.sent.saturating_add(packets);
        self.tokens -= packets as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a pacer for `seconds` against a clock that sleeps `oversleep` too long each time;
    /// returns packets sent, sleeps, and the longest burst.
    fn run(rate: f64, seconds: u64, oversleep: Duration) -> (u64, u64, u64) {
        let mut pacer = Pacer::new(Some(rate));
        let (mut now, mut sent, mut sleeps) = (Duration::ZERO, 0, 0);
        let (mut burst, mut longest) = (0, 0);
        while now < Duration::from_secs(seconds) {
            match pacer.step(now) {
                PaceAction::Send(n) => {
                    pacer.sent(n);
                    sent += n;
                    burst += n;
                    longest = longest.max(burst);
                }
                PaceAction::Sleep(d) => {
                    assert!(d >= QUANTUM);
                    now += d + oversleep;
                    sleeps += 1;
                    burst = 0;
                }
            }
        }
        (sent, sleeps, longest)
    }

    #[test]
    fn rates_are_held_from_one_to_a_million() {
        for rate in [1.0, 10.0, 9_999.0, 20_000.0, 300_000.0, 1_000_000.0] {
            let (sent, sleeps, _) = run(rate, 4, Duration::from_micros(60));
            let want = 4.0 * rate;
            let off = (sent as f64 - want).abs();
            assert!(off <= 1.0 + rate * 0.001, "{rate}: {sent} of {want}");
            // One wake-up per packet at low rates, one per quantum at high ones.
            assert!(
                sleeps as f64 <= want.min(40_000.0) + 1.0,
                "{rate}: {sleeps}"
            );
        }
    }

    #[test]
    fn the_first_packet_is_due_at_once_and_the_next_an_interval_later() {
        let mut pacer = Pacer::new(Some(2.0));
        assert_eq!(pacer.step(Duration::ZERO), PaceAction::Send(1));
        pacer.sent(1);
        assert_eq!(
            pacer.step(Duration::from_millis(100)),
            PaceAction::Sleep(Duration::from_millis(400))
        );
        assert_eq!(pacer.step(Duration::from_millis(500)), PaceAction::Send(1));
    }

    #[test]
    fn a_long_stall_is_paid_back_in_bounded_bursts() {
        let (sent, _, longest) = run(100_000.0, 10, Duration::from_millis(2));
        assert!(longest <= 100, "{longest}");
        assert!(sent < 1_000_000, "a debt too large to pay lowers the rate");
        let mut pacer = Pacer::new(Some(100_000.0));
        assert_eq!(pacer.step(Duration::from_secs(3)), PaceAction::Send(100));
    }

    #[test]
    fn no_rate_is_no_schedule_and_odd_rates_do_not_panic() {
        assert_eq!(
            Pacer::new(None).step(Duration::ZERO),
            PaceAction::Send(u64::MAX)
        );
        for rate in [f64::MAX, f64::INFINITY, f64::MIN_POSITIVE, 1e-300] {
            let mut pacer = Pacer::new(Some(rate));
            pacer.step(Duration::ZERO);
            pacer.sent(1);
            pacer.step(Duration::MAX);
        }
    }
}
