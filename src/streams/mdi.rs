//! The media delivery index (RFC 4445): delay factor and media loss rate.

use crate::api::streams::MdiView;

/// The interval of measurement: the second that section 3 recommends.
const INTERVAL_NS: u64 = 1_000_000_000;

/// Measures the media delivery index of a stream.
///
/// The media rate is that of the clock in the stream in the interval before, or the rate of arrival
/// in it.
#[derive(Debug, Clone, Default)]
pub struct Mdi {
    began_ns: Option<u64>,
    /// Media bytes of the interval.
    bytes: u64,
    /// Lost media packets of the interval.
    lost: u64,
    /// Media rate in bytes per second; 0 in the first interval.
    media_rate: f64,
    /// The lowest and the highest fill level of the virtual buffer.
    levels: (f64, f64),
    last: Option<MdiView>,
}

impl Mdi {
    /// Adds a packet with `bytes` of media. `media_rate` is the rate by the clock in the stream, in
    /// bytes per second.
    pub fn add(&mut self, bytes: u64, media_rate: Option<f64>, now_ns: u64) {
        let began_ns = *self.began_ns.get_or_insert(now_ns);
        let elapsed_ns = now_ns.saturating_sub(began_ns);
        if elapsed_ns >= INTERVAL_NS {
            self.end_interval(media_rate, elapsed_ns);
            // An interval without packets is none of the stream.
            let next_ns = began_ns + INTERVAL_NS;
            self.began_ns = Some(match elapsed_ns < 2 * INTERVAL_NS {
                true => next_ns,
                false => now_ns,
            });
        }
        let began_ns = self.began_ns.unwrap_or(now_ns);
        let elapsed = now_ns.saturating_sub(began_ns) as f64 / 1e9;
        let before = self.bytes as f64 - self.media_rate * elapsed;
        self.bytes += bytes;
        let after = before + bytes as f64;
        self.levels = (self.levels.0.min(before), self.levels.1.max(after));
    }

    /// Adds lost media packets.
    pub fn add_lost(&mut self, packets: u64) {
        self.lost += packets;
    }

    fn end_interval(&mut self, media_rate: Option<f64>, elapsed_ns: u64) {
        let seconds = elapsed_ns as f64 / 1e9;
        if self.media_rate > 0.0 {
            let delay_factor = (self.levels.1 - self.levels.0) / self.media_rate;
            self.last = Some(MdiView {
                delay_factor_us: (delay_factor * 1e6) as u64,
                media_loss_rate: self.lost,
                media_bits_per_second: (self.media_rate * 8.0) as u64,
            });
        }
        let arrived = self.bytes as f64 / seconds;
        self.media_rate = media_rate.filter(|rate| *rate > 0.0).unwrap_or(arrived);
        (self.bytes, self.lost, self.levels) = (0, 0, (0.0, 0.0));
    }

    /// Returns the index of the last full interval.
    pub fn view(&self) -> Option<MdiView> {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Adds 3 seconds of packets with 1316 bytes; `group` of them arrive at once.
    fn run(group: u64) -> MdiView {
        let mut mdi = Mdi::default();
        for n in 0..301u64 {
            // 100 packets a second on average.
            let at = n / group * group * 10 * MS;
            mdi.add(1316, Some(131_600.0), 1_000_000_000 + at);
        }
        mdi.view().unwrap()
    }

    /// RFC 4445 section 3.1: with a constant rate, the delay factor is the time of one packet.
    #[test]
    fn smooth_stream_has_the_delay_factor_of_one_packet() {
        let view = run(1);
        assert_eq!(view.delay_factor_us, 10_000);
        assert_eq!(view.media_bits_per_second, 1_052_800);
    }

    #[test]
    fn stream_in_groups_has_the_delay_factor_of_one_group() {
        // Ten packets at once hold 100 ms of media.
        assert_eq!(run(10).delay_factor_us, 100_000);
    }

    #[test]
    fn media_loss_rate_counts_an_interval() {
        let mut mdi = Mdi::default();
        for n in 0..250u64 {
            mdi.add(1316, None, n * 10 * MS);
            if (100..110).contains(&n) {
                mdi.add_lost(7);
            }
        }
        assert_eq!(mdi.view().unwrap().media_loss_rate, 70);
    }
}
