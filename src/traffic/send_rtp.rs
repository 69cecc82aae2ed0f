//! The RTP headers of a test stream.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use serde::Serialize;

use crate::streams::rtp::{HEADER_LEN, static_clock_rate};

/// The first dynamic payload type (RFC 3551 section 6).
const DYNAMIC_PAYLOAD_TYPE: u8 = 96;

/// The clock rate of video, for payload types without a rate of their own.
const DEFAULT_CLOCK_RATE: u32 = 90_000;

/// How RTP is sent. The derived command-line arguments are those of `mcastor send`.
#[derive(Debug, Clone, clap::Args)]
pub struct RtpOptions {
    /// Send RTP (RFC 3550): each test packet begins with an RTP header
    #[arg(long = "rtp", id = "rtp", display_order = 73)]
    pub enabled: bool,
    /// RTP payload type, 0 to 127
    #[arg(long, value_name = "N", requires = "rtp", default_value_t = DYNAMIC_PAYLOAD_TYPE,
        value_parser = clap::value_parser!(u8).range(..128), display_order = 74)]
    pub payload_type: u8,
    /// Clock rate of the RTP timestamps. Default: that of a static payload type, else 90000
    #[arg(long, value_name = "HZ", requires = "rtp", display_order = 75,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub clock: Option<u32>,
    /// Synchronisation source of the first flow, such as 0x1234abcd; each further flow has the
    /// next one. Default: random
    #[arg(long, value_name = "SSRC", requires = "rtp", value_parser = number, display_order = 76)]
    pub ssrc: Option<u32>,
    /// Sequence number of the first RTP packet. Default: random
    #[arg(long, value_name = "N", requires = "rtp", display_order = 77)]
    pub sequence: Option<u16>,
    /// Timestamp of the first RTP packet. Default: random
    #[arg(long, value_name = "N", requires = "rtp", value_parser = number, display_order = 78)]
    pub timestamp: Option<u32>,
}

impl Default for RtpOptions {
    /// Returns the defaults of the command line: no RTP.
    fn default() -> Self {
        Self {
            enabled: false,
            payload_type: DYNAMIC_PAYLOAD_TYPE,
            clock: None,
            ssrc: None,
            sequence: None,
            timestamp: None,
        }
    }
}

/// Parses a number of 32 bits, decimal or hexadecimal.
fn number(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "not a number of 32 bits, such as 0x1234abcd or 305441741".into())
}

/// The RTP headers that were sent. Its JSON form is part of the output of `--json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RtpSent {
    /// The payload type.
    pub payload_type: u8,
    /// Clock rate of the timestamps in Hz.
    pub clock_rate: u32,
    /// The synchronisation sources, in the order of the groups.
    pub ssrcs: Vec<u32>,
    /// Sequence number of the first packet of each flow.
    pub first_sequence: u16,
    /// Timestamp of the first packet of each flow.
    pub first_timestamp: u32,
}

/// Numbers the packets of a run.
pub(super) struct RtpSender {
    payload_type: u8,
    clock_rate: u32,
    ssrc: u32,
    sequence: u16,
    timestamp: u32,
    /// Packets per second in each flow; 0 means as fast as possible.
    rate: f64,
}

impl RtpSender {
    /// Chooses at random what the options leave open (RFC 3550 section 5.1).
    pub(super) fn new(rtp: &RtpOptions, rate: f64) -> Self {
        let random = RandomState::new();
        let clock_rate = rtp.clock.or(static_clock_rate(rtp.payload_type));
        Self {
            payload_type: rtp.payload_type,
            clock_rate: clock_rate.unwrap_or(DEFAULT_CLOCK_RATE),
            ssrc: rtp.ssrc.unwrap_or(random.hash_one("ssrc") as u32),
            sequence: rtp.sequence.unwrap_or(random.hash_one("sequence") as u16),
            timestamp: (rtp.timestamp).unwrap_or(random.hash_one("timestamp") as u32),
            rate,
        }
    }

    /// Returns the header of packet `number` of a flow, which is sent `elapsed` after the start
    /// (RFC 3550 section 5.1). It has no marker, padding, extension and contributing sources.
    ///
    /// The timestamp is that of the schedule, as in a recording that is sent. So a receiver sees the
    /// delays of the sender as jitter too. Without a schedule it is the time of sending.
    pub(super) fn header(&self, flow: u16, number: u64, elapsed: Duration) -> [u8; HEADER_LEN] {
        let seconds = match self.rate > 0.0 {
            true => number as f64 / self.rate,
            false => elapsed.as_secs_f64(),
        };
        let ticks = (seconds * f64::from(self.clock_rate)).round() as u64;
        let [s0, s1] = self.sequence.wrapping_add(number as u16).to_be_bytes();
        let timestamp = self.timestamp.wrapping_add(ticks as u32);
        let [t0, t1, t2, t3] = timestamp.to_be_bytes();
        let [i0, i1, i2, i3] = self.ssrc.wrapping_add(flow.into()).to_be_bytes();
        let (version, kind) = (2 << 6, self.payload_type & 0x7f);
        [version, kind, s0, s1, t0, t1, t2, t3, i0, i1, i2, i3]
    }

    /// Returns what the headers of `flows` flows contain.
    pub(super) fn sent(&self, flows: u16) -> RtpSent {
        let ssrcs = (0..flows).map(|flow| self.ssrc.wrapping_add(flow.into()));
        RtpSent {
            payload_type: self.payload_type,
            clock_rate: self.clock_rate,
            ssrcs: ssrcs.collect(),
            first_sequence: self.sequence,
            first_timestamp: self.timestamp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streams::rtp::RtpPacket;

    #[test]
    fn headers_follow_the_schedule_and_wrap() {
        let options = RtpOptions {
            payload_type: 0,
            ssrc: Some(u32::MAX),
            sequence: Some(65_535),
            timestamp: Some(u32::MAX - 159),
            ..RtpOptions::default()
        };
        let sender = RtpSender::new(&options, 50.0);
        let header = |number, flow| {
            let header = sender.header(flow, number, Duration::from_secs(9));
            let packet = RtpPacket::parse(&header).expect("RTP");
            assert_eq!(packet.payload_type, 0);
            (packet.sequence, packet.timestamp, packet.ssrc)
        };
        assert_eq!(header(0, 0), (65_535, u32::MAX - 159, u32::MAX));
        // 8,000 Hz at 50 packets a second are 160 ticks.
        assert_eq!(header(1, 1), (0, 0, 0));
        assert_eq!(header(2, 0), (1, 160, u32::MAX));
        assert_eq!(sender.sent(2).ssrcs, [u32::MAX, 0]);
    }

    #[test]
    fn without_a_schedule_timestamps_are_the_time_of_sending() {
        let options = RtpOptions {
            timestamp: Some(0),
            ..RtpOptions::default()
        };
        let sender = RtpSender::new(&options, 0.0);
        let header = sender.header(0, 7, Duration::from_millis(100));
        let packet = RtpPacket::parse(&header).expect("RTP");
        assert_eq!((packet.payload_type, packet.timestamp), (96, 9000));
    }

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        assert_eq!(number("0x1234abcd"), Ok(0x1234_abcd));
        assert_eq!(number("305441741"), Ok(0x1234_abcd));
        assert!(number("1234abcd").is_err() && number("-1").is_err());
    }
}
