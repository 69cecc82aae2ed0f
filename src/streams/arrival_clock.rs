//! The time of packets, while the clock of the machine may be set.

/// By how much packets may be out of order, in nanoseconds. An earlier time means that the clock was
/// set back.
const MAX_DISORDER_NS: u64 = 1_000_000_000;

/// Makes times of `CLOCK_REALTIME` that never go back by more than a second: what is measured between
/// packets continues where the clock was set back.
///
/// A clock that was set forward cannot be told from a time without packets.
#[derive(Debug, Clone, Default)]
pub(super) struct ArrivalClock {
    /// The latest time of a packet.
    latest_ns: u64,
    /// By how much the clock was set back.
    added_ns: u64,
}

impl ArrivalClock {
    /// Returns the time of a packet.
    pub fn note(&mut self, received_ns: u64) -> u64 {
        let mut time_ns = self.time_ns(received_ns);
        let behind_ns = self.latest_ns.saturating_sub(time_ns);
        if behind_ns > MAX_DISORDER_NS {
            self.added_ns += behind_ns;
            time_ns = self.latest_ns;
        }
        self.latest_ns = self.latest_ns.max(time_ns);
        time_ns
    }

    /// Returns a time for comparison with those of packets.
    pub fn time_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_add(self.added_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn time_continues_where_the_clock_was_set_back() {
        let mut clock = ArrivalClock::default();
        assert_eq!(clock.note(9000 * SECOND), 9000 * SECOND);
        // Two queues are read one after the other.
        assert_eq!(clock.note(8999 * SECOND), 8999 * SECOND);
        assert_eq!(clock.note(100 * SECOND), 9000 * SECOND);
        assert_eq!(clock.note(103 * SECOND), 9003 * SECOND);
        assert_eq!(clock.time_ns(104 * SECOND), 9004 * SECOND);
        assert_eq!(clock.note(50 * SECOND), 9003 * SECOND);
        assert_eq!(clock.note(51 * SECOND), 9004 * SECOND);
    }
}
