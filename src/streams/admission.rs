//! Which streams are monitored while the limit leaves some out.

use ahash::AHashMap;

use crate::table::flows::FlowKey;

/// The most streams that are remembered.
const MAX_LEFT_OUT: usize = 4096;

/// For how many periods a stream is remembered after its last packet.
const REMEMBERED_PERIODS: u64 = 10;

/// A stream that has sent for this time is kept at the limit, also while it is silent.
const LASTING_MS: u64 = 10_000;

/// At the limit, any other stream ends after this time without packets.
const SHORT_IDLE_MS: u64 = 1000;

/// When a stream was left out.
#[derive(Debug, Clone, Copy)]
struct LeftOut {
    first_period: u64,
    last_period: u64,
}

/// Decides which streams of an ingress begin, and which end for others.
///
/// A host that forges sources sends few packets from each of them. So while streams are left out, a
/// stream begins only if it was left out in an earlier period and still sends. And streams that
/// have not lasted end early.
#[derive(Debug, Default)]
pub(super) struct MonitorAdmission {
    left_out: AHashMap<FlowKey, LeftOut>,
    period: u64,
    /// Whether streams are left out.
    is_limited: bool,
}

impl MonitorAdmission {
    /// Returns whether a stream may begin if there is room.
    pub fn permits(&self, key: &FlowKey) -> bool {
        let left_out = self.left_out.get(key);
        match self.is_limited {
            true => left_out.is_some_and(|stream| stream.first_period < self.period),
            false => left_out.is_none(),
        }
    }

    /// Notes that a stream was left out. Returns whether it was not known.
    pub fn leave_out(&mut self, key: FlowKey) -> bool {
        if let Some(known) = self.left_out.get_mut(&key) {
            known.last_period = self.period;
            return false;
        }
        let has_room = self.left_out.len() < MAX_LEFT_OUT;
        if has_room {
            let (first_period, last_period) = (self.period, self.period);
            let stream = LeftOut {
                first_period,
                last_period,
            };
            self.left_out.insert(key, stream);
        }
        has_room
    }

    /// Forgets a stream that has begun.
    pub fn begin(&mut self, key: &FlowKey) {
        self.left_out.remove(key);
    }

    /// Begins the next period. `is_full` is whether the limit is reached.
    pub fn next_period(&mut self, is_full: bool) {
        let is_left_out = |stream: &LeftOut| stream.last_period == self.period;
        self.is_limited = is_full || self.left_out.values().any(is_left_out);
        // A flood must not displace others for longer than a period.
        let remembered = match self.left_out.len() < MAX_LEFT_OUT {
            true => REMEMBERED_PERIODS,
            false => 0,
        };
        let oldest = self.period.saturating_sub(remembered);
        self.left_out
            .retain(|_, stream| stream.last_period >= oldest);
        if !self.is_limited {
            self.left_out.clear();
        }
        self.period += 1;
    }

    /// Returns for how long a stream may be without packets. `lasted_ms` is the time from its first
    /// to its last packet.
    pub fn idle_limit_ms(&self, lasted_ms: u64, idle_ms: u64) -> u64 {
        match self.is_limited && lasted_ms < LASTING_MS {
            true => idle_ms.min(SHORT_IDLE_MS),
            false => idle_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn key(source: u32) -> FlowKey {
        let source = Ipv4Addr::from(0x0a00_0000 + source);
        (source.into(), [225, 1, 2, 3].into())
    }

    #[test]
    fn stream_begins_in_the_period_after_it_was_left_out() {
        let mut admission = MonitorAdmission::default();
        assert!(admission.permits(&key(1)));
        assert!(admission.leave_out(key(1)));
        assert!(!admission.leave_out(key(1)), "it is counted once");
        assert!(!admission.permits(&key(1)));
        admission.next_period(true);
        assert!(admission.permits(&key(1)));
        assert!(!admission.permits(&key(2)), "it must wait first");
        admission.begin(&key(1));
        // Nothing is left out any more.
        admission.next_period(false);
        assert!(admission.permits(&key(2)));
    }

    #[test]
    fn flood_is_forgotten_after_a_period() {
        let mut admission = MonitorAdmission::default();
        for source in 0..MAX_LEFT_OUT as u32 {
            assert!(admission.leave_out(key(source)));
        }
        assert!(!admission.leave_out(key(u32::MAX >> 8)));
        admission.next_period(true);
        admission.next_period(true);
        assert!(admission.leave_out(key(u32::MAX >> 8)));
    }

    #[test]
    fn only_streams_that_lasted_outlive_silence_at_the_limit() {
        let mut admission = MonitorAdmission::default();
        assert_eq!(admission.idle_limit_ms(0, 300_000), 300_000);
        admission.next_period(true);
        assert_eq!(admission.idle_limit_ms(9_999, 300_000), SHORT_IDLE_MS);
        assert_eq!(admission.idle_limit_ms(10_000, 300_000), 300_000);
        assert_eq!(admission.idle_limit_ms(0, 500), 500);
    }
}
