//! The sending schedule of a test stream.

use std::time::Duration;

/// Shortest sleep between packets. A wake-up costs more than a packet, so shorter sleeps would
/// cost more than they save.
pub const QUANTUM: Duration = Duration::from_micros(100);

/// The next action of a paced sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PaceAction {
    /// This many packets are due now. Report sent packets with [`Pacer::sent`], then poll again.
    Send(u64),
    /// No packet is due for this long.
    Sleep(Duration),
}

/// An absolute schedule: packet `n` is due `n / rate` seconds after the start. A single late
/// wake-up delays packets but does not lower the rate. If every sleep is more than about a
/// millisecond too long, the token bucket does lower it.
///
/// After a pause of the process, a token bucket limits the sender to twice the rate until it has
/// caught up. One large burst would overrun the buffers along the path.
#[derive(Debug, Clone)]
pub struct Pacer {
    /// Packets per second; 0 or less means no schedule.
    rate: f64,
    sent: u64,
    /// Packets that the token bucket permits now; refilled at twice the rate up to `depth`.
    tokens: f64,
    depth: f64,
    /// When `tokens` was last refilled.
    refilled: Duration,
}

impl Pacer {
    /// Creates a schedule of `rate` packets per second. `None` sends as fast as the socket accepts.
    pub fn new(rate: Option<f64>) -> Self {
        let rate = rate.unwrap_or(0.0);
        // The packets of one millisecond: a sleep can be about that much too long.
        let depth = (rate * 0.001).max(16.0);
        Self {
            rate,
            sent: 0,
            tokens: depth,
            depth,
            refilled: Duration::ZERO,
        }
    }

    /// Returns the next action at `elapsed` since the start.
    pub fn poll(&mut self, elapsed: Duration) -> PaceAction {
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

    /// Records that `packets` were sent.
    pub fn sent(&mut self, packets: u64) {
        self.sent = self.sent.saturating_add(packets);
        self.tokens -= packets as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a pacer for `seconds` with a simulated clock on which each sleep is `oversleep` too
    /// long; returns the packets sent, the number of sleeps and the longest burst.
    fn run(rate: f64, seconds: u64, oversleep: Duration) -> (u64, u64, u64) {
        let mut pacer = Pacer::new(Some(rate));
        let (mut now, mut sent, mut sleeps) = (Duration::ZERO, 0, 0);
        let (mut burst, mut longest) = (0, 0);
        while now < Duration::from_secs(seconds) {
            match pacer.poll(now) {
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
    fn rates_from_one_to_a_million_are_accurate() {
        for rate in [1.0, 10.0, 9_999.0, 20_000.0, 300_000.0, 1_000_000.0] {
            let (sent, sleeps, _) = run(rate, 4, Duration::from_micros(60));
            let expected = 4.0 * rate;
            let error = (sent as f64 - expected).abs();
            assert!(error <= 1.0 + rate * 0.001, "{rate}: {sent} of {expected}");
            // One wake-up per packet at low rates, one per quantum at high rates.
            assert!(
                sleeps as f64 <= expected.min(40_000.0) + 1.0,
                "{rate}: {sleeps}"
            );
        }
    }

    #[test]
    fn first_packet_is_due_at_once_second_after_interval() {
        let mut pacer = Pacer::new(Some(2.0));
        assert_eq!(pacer.poll(Duration::ZERO), PaceAction::Send(1));
        pacer.sent(1);
        assert_eq!(
            pacer.poll(Duration::from_millis(100)),
            PaceAction::Sleep(Duration::from_millis(400))
        );
        assert_eq!(pacer.poll(Duration::from_millis(500)), PaceAction::Send(1));
    }

    #[test]
    fn catching_up_after_stall_uses_bounded_bursts() {
        let (sent, _, longest) = run(100_000.0, 10, Duration::from_millis(2));
        assert!(longest <= 100, "{longest}");
        assert!(sent < 1_000_000, "permanent oversleeping lowers the rate");
        let mut pacer = Pacer::new(Some(100_000.0));
        assert_eq!(pacer.poll(Duration::from_secs(3)), PaceAction::Send(100));
    }

    #[test]
    fn extreme_and_missing_rates_do_not_panic() {
        assert_eq!(
            Pacer::new(None).poll(Duration::ZERO),
            PaceAction::Send(u64::MAX)
        );
        for rate in [f64::MAX, f64::INFINITY, f64::MIN_POSITIVE, 1e-300] {
            let mut pacer = Pacer::new(Some(rate));
            pacer.poll(Duration::ZERO);
            pacer.sent(1);
            pacer.poll(Duration::MAX);
        }
    }
}
