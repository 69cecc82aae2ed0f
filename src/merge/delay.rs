//! The largest delay that was recently observed.

/// Time for which a delay is remembered at least; it is forgotten after twice that time.
const INTERVAL_NS: u64 = 10_000_000_000;

/// A maximum over the last ten to twenty seconds.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PeakDelay {
    current: u64,
    previous: u64,
    began_ns: u64,
}

impl PeakDelay {
    /// Notes a delay.
    pub fn note(&mut self, delay_ns: u64, now_ns: u64) {
        self.rotate(now_ns);
        self.current = self.current.max(delay_ns);
    }

    /// Returns the maximum.
    pub fn peak(&mut self, now_ns: u64) -> u64 {
        self.rotate(now_ns);
        self.current.max(self.previous)
    }

    /// Notes that the clock was set back to `now_ns`.
    pub fn set_back(&mut self, now_ns: u64) {
        self.began_ns = self.began_ns.min(now_ns);
    }

    fn rotate(&mut self, now_ns: u64) {
        let age = now_ns.saturating_sub(self.began_ns);
        if age < INTERVAL_NS {
            return;
        }
        self.previous = match age < 2 * INTERVAL_NS {
            true => self.current,
            false => 0,
        };
        self.current = 0;
        self.began_ns = now_ns;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peak_is_forgotten_after_two_intervals() {
        let mut delay = PeakDelay::default();
        let start = 100 * INTERVAL_NS;
        delay.note(7, start);
        delay.note(3, start + INTERVAL_NS / 2);
        assert_eq!(delay.peak(start + INTERVAL_NS - 1), 7);
        assert_eq!(delay.peak(start + INTERVAL_NS), 7);
        delay.note(2, start + INTERVAL_NS);
        assert_eq!(delay.peak(start + 2 * INTERVAL_NS), 2);
        assert_eq!(delay.peak(start + 4 * INTERVAL_NS), 0);
    }
}
