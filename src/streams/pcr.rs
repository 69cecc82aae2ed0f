//! The program clock reference of MPEG-TS: its jitter, its interval, and the media rate.

/// Ticks of the PCR per second.
const CLOCK_RATE: f64 = 27e6;

/// The number of values of a PCR: 2^33 times 300.
const WRAP: u64 = (1 << 33) * 300;

/// The interval of measurement.
const INTERVAL_NS: u64 = 1_000_000_000;

/// A longer time between two PCRs, or a step back, is a new clock.
const MAX_STEP: u64 = 27_000_000;

/// A program clock reference, in ticks of 27 MHz.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pcr(pub u64);

impl Pcr {
    /// Reads the six bytes of ISO 13818-1 section 2.4.3.5.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, d, e, f]: [u8; 6] = *bytes.first_chunk()?;
        let base = u64::from(u32::from_be_bytes([a, b, c, d])) << 1 | u64::from(e >> 7);
        let extension = u64::from(u16::from_be_bytes([e & 1, f]));
        Some(Self(base * 300 + extension))
    }
}

/// Measures the PCRs of one PID, the first that has any.
#[derive(Debug, Clone, Default)]
pub struct PcrMeter {
    pid: Option<u16>,
    /// The last PCR, and its time of arrival.
    last: Option<(Pcr, u64)>,
    /// The first PCR of the interval, its position in bytes, and its time of arrival.
    first: Option<(Pcr, u64, u64)>,
    /// The largest jitter and the longest time between PCRs of the interval, in nanoseconds.
    jitter_ns: u64,
    longest_ns: u64,
    /// Those of the interval before, and the media rate in bytes per second.
    measured: Option<(u64, u64, f64)>,
}

impl PcrMeter {
    /// Adds a PCR. `position` is the number of bytes before its packet.
    pub fn add(&mut self, pid: u16, pcr: Pcr, is_new_clock: bool, position: u64, now_ns: u64) {
        if *self.pid.get_or_insert(pid) != pid {
            // The PID is gone if it has no PCR for several intervals.
            let seen_ns = self.last.map_or(0, |(_, seen_ns)| seen_ns);
            if now_ns.saturating_sub(seen_ns) < 5 * INTERVAL_NS {
                return;
            }
            *self = Self::default();
            self.pid = Some(pid);
        }
        let Some((last, last_ns)) = self.last.replace((pcr, now_ns)) else {
            self.first = Some((pcr, position, now_ns));
            return;
        };
        let step = (pcr.0 + WRAP - last.0) % WRAP;
        if is_new_clock || step > MAX_STEP {
            self.first = Some((pcr, position, now_ns));
            return;
        }
        let elapsed_ns = now_ns.saturating_sub(last_ns);
        let step_ns = (step as f64 * 1e9 / CLOCK_RATE) as u64;
        self.jitter_ns = self.jitter_ns.max(elapsed_ns.abs_diff(step_ns));
        self.longest_ns = self.longest_ns.max(step_ns);
        let Some((first, first_position, first_ns)) = self.first else {
            return;
        };
        if now_ns.saturating_sub(first_ns) < INTERVAL_NS {
            return;
        }
        let ticks = (pcr.0 + WRAP - first.0) % WRAP;
        let bytes = position.saturating_sub(first_position);
        let rate = bytes as f64 / (ticks as f64 / CLOCK_RATE);
        self.measured = Some((self.jitter_ns, self.longest_ns, rate));
        self.first = Some((pcr, position, now_ns));
        (self.jitter_ns, self.longest_ns) = (0, 0);
    }

    /// Returns the media rate of the last full interval, in bytes per second.
    pub fn media_rate(&self) -> Option<f64> {
        self.measured.map(|(_, _, rate)| rate)
    }

    /// Returns the largest jitter in microseconds and the longest time between two PCRs in
    /// milliseconds, of the last full interval.
    pub fn view(&self) -> Option<(u64, u64)> {
        let (jitter_ns, longest_ns, _) = self.measured?;
        Some((jitter_ns / 1000, longest_ns / 1_000_000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn bytes_are_base_and_extension() {
        // Base 0x1_2345_6789, extension 0x101.
        let bytes = [0x91, 0xa2, 0xb3, 0xc4, 0xff, 0x01];
        assert_eq!(Pcr::read(&bytes), Some(Pcr(0x1_2345_6789 * 300 + 0x101)));
        assert_eq!(Pcr::read(&bytes[..5]), None);
    }

    #[test]
    fn jitter_is_the_largest_difference_to_the_clock() {
        let mut meter = PcrMeter::default();
        // A PCR every 40 ms and 50 packets; each second one arrives 3 ms late.
        for n in 0..60u64 {
            let late = (n % 25 == 10) as u64 * 3 * MS;
            let pcr = Pcr((WRAP - 27_000_000 + n * 1_080_000) % WRAP);
            meter.add(256, pcr, false, n * 50 * 188, n * 40 * MS + late);
        }
        assert_eq!(meter.view(), Some((3000, 40)));
        let rate = meter.media_rate().unwrap();
        assert!((rate - 50.0 * 188.0 * 25.0).abs() < 1.0, "{rate}");
    }

    #[test]
    fn new_clock_is_no_jitter() {
        let mut meter = PcrMeter::default();
        for n in 0..60u64 {
            let pcr = Pcr(n * 1_080_000 + if n >= 20 { 27_000_000_000 } else { 0 });
            meter.add(256, pcr, n == 20, n * 50, n * 40 * MS);
        }
        assert_eq!(meter.view(), Some((0, 40)));
    }
}
