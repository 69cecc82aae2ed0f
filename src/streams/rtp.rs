//! RTP (RFC 3550): the header, loss by sequence numbers, and interarrival jitter.

use super::sequence::{Order, Sequence};
use crate::api::streams::RtpView;

/// Length of the fixed header in bytes.
pub const HEADER_LEN: usize = 12;

/// Clock rates that senders use. A measured rate is one of them.
const CLOCK_RATES: [u32; 10] = [
    8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 90_000, 96_000,
];

/// How long timestamps are compared with the clock, to measure their rate.
const MEASURE_NS: u64 = 1_000_000_000;

/// The header of an RTP packet, and its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RtpPacket<'p> {
    /// Payload type.
    pub payload_type: u8,
    /// Sequence number.
    pub sequence: u16,
    /// Timestamp.
    pub timestamp: u32,
    /// Synchronisation source.
    pub ssrc: u32,
    /// The bytes after the header, without padding.
    pub payload: &'p [u8],
}

impl<'p> RtpPacket<'p> {
    /// Parses a UDP payload (RFC 3550 section 5.1). Returns `None` if it is no RTP packet, or one
    /// of RTCP (RFC 5761 section 4).
    pub fn parse(bytes: &'p [u8]) -> Option<Self> {
        let header: &[u8; HEADER_LEN] = bytes.first_chunk()?;
        let [first, second, ..] = *header;
        let payload_type = second & 0x7f;
        if first >> 6 != 2 || (64..96).contains(&payload_type) {
            return None;
        }
        let mut start = HEADER_LEN + 4 * usize::from(first & 0xf);
        if first & 0x10 != 0 {
            let extension: &[u8; 4] = bytes.get(start..)?.first_chunk()?;
            start += 4 + 4 * usize::from(u16::from_be_bytes([extension[2], extension[3]]));
        }
        let padding = match first & 0x20 != 0 {
            true => usize::from(*bytes.last()?),
            false => 0,
        };
        let end = bytes.len().checked_sub(padding)?;
        Some(Self {
            payload_type,
            sequence: u16::from_be_bytes([header[2], header[3]]),
            timestamp: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            ssrc: u32::from_be_bytes([header[8], header[9], header[10], header[11]]),
            payload: bytes.get(start..end)?,
        })
    }
}

/// Returns the clock rate of a static payload type (RFC 3551 section 6).
pub fn static_clock_rate(payload_type: u8) -> Option<u32> {
    Some(match payload_type {
        0 | 3..=5 | 7..=9 | 12 | 13 | 15 | 18 => 8_000,
        6 => 16_000,
        10 | 11 => 44_100,
        14 | 25 | 26 | 28 | 31..=34 => 90_000,
        16 => 11_025,
        17 => 22_050,
        _ => return None,
    })
}

/// Follows an RTP stream.
#[derive(Debug, Clone)]
pub struct Rtp {
    source: Option<Source>,
    /// Another synchronisation source, and the number of its next packet: it becomes the source of
    /// the stream if this packet arrives next.
    candidate: Option<(u32, u16)>,
    sequence: Sequence,
    /// Interarrival jitter in seconds.
    jitter: f64,
    has_jitter: bool,
}

/// The synchronisation source of a stream.
#[derive(Debug, Clone, Copy)]
struct Source {
    ssrc: u32,
    payload_type: u8,
    clock_rate: Option<u32>,
    /// Time of arrival and timestamp of the packet from which the clock rate is measured.
    measured_from: (u64, u32),
    /// Those of the last packet.
    last: (u64, u32),
}

impl Source {
    fn new(packet: &RtpPacket<'_>, now_ns: u64) -> Self {
        Self {
            ssrc: packet.ssrc,
            payload_type: packet.payload_type,
            clock_rate: static_clock_rate(packet.payload_type),
            measured_from: (now_ns, packet.timestamp),
            last: (now_ns, packet.timestamp),
        }
    }

    /// Measures the clock rate, if enough time has passed.
    fn measure(&mut self, timestamp: u32, now_ns: u64) {
        let (from_ns, from_timestamp) = self.measured_from;
        let elapsed_ns = now_ns.saturating_sub(from_ns);
        if elapsed_ns < MEASURE_NS {
            return;
        }
        let ticks = timestamp.wrapping_sub(from_timestamp);
        let rate = f64::from(ticks) / (elapsed_ns as f64 / 1e9);
        let is_near = |known: &&u32| (rate / f64::from(**known) - 1.0).abs() < 0.03;
        self.clock_rate = CLOCK_RATES.iter().find(is_near).copied();
        self.measured_from = (now_ns, timestamp);
    }
}

impl Default for Rtp {
    fn default() -> Self {
        Self {
            source: None,
            candidate: None,
            sequence: Sequence::new(16),
            jitter: 0.0,
            has_jitter: false,
        }
    }
}

impl Rtp {
    /// Adds a packet. Returns how many were lost before it; `None` if the packet is a duplicate, or
    /// does not belong to the stream.
    pub fn add(&mut self, packet: &RtpPacket<'_>, now_ns: u64) -> Option<u64> {
        let now_ms = now_ns / 1_000_000;
        let source = self
            .source
            .get_or_insert_with(|| Source::new(packet, now_ns));
        if source.ssrc != packet.ssrc {
            let follows = self.candidate == Some((packet.ssrc, packet.sequence));
            self.candidate = Some((packet.ssrc, packet.sequence.wrapping_add(1)));
            if follows {
                *source = Source::new(packet, now_ns);
                let first = packet.sequence.wrapping_sub(1);
                self.sequence.restart(first.into(), now_ms);
                self.sequence.add(packet.sequence.into(), now_ms);
            }
            return follows.then_some(0);
        }
        self.candidate = None;
        let order = self.sequence.add(packet.sequence.into(), now_ms);
        match order {
            Order::Stray | Order::Duplicate => return None,
            Order::First => {
                *source = Source {
                    clock_rate: source.clock_rate,
                    ..Source::new(packet, now_ns)
                };
                return Some(0);
            }
            Order::Next(_) | Order::Late => {}
        }
        source.payload_type = packet.payload_type;
        match source.clock_rate {
            // RFC 3550 appendix A.8, with the difference of the transit times in seconds.
            Some(rate) => {
                let (last_ns, last_timestamp) = source.last;
                let arrival = now_ns as i64 - last_ns as i64;
                let sent = packet.timestamp.wrapping_sub(last_timestamp) as i32;
                let difference = arrival as f64 / 1e9 - f64::from(sent) / f64::from(rate);
                self.jitter += (difference.abs() - self.jitter) / 16.0;
                self.has_jitter = true;
            }
            None => source.measure(packet.timestamp, now_ns),
        }
        source.last = (now_ns, packet.timestamp);
        Some(match order {
            Order::Next(lost) => lost,
            _ => 0,
        })
    }

    /// Returns the interarrival jitter in seconds, once the clock rate is known.
    pub fn jitter(&self) -> Option<f64> {
        self.has_jitter.then_some(self.jitter)
    }

    /// Returns how many packets are missing.
    pub fn sequence(&self) -> &Sequence {
        &self.sequence
    }

    /// Returns what is known of the stream; `None` without a packet.
    pub fn view(&self, now_ms: u64) -> Option<RtpView> {
        let source = self.source?;
        let jitter_us = (self.jitter * 1e6).round() as u64;
        Some(RtpView {
            ssrc: source.ssrc,
            payload_type: source.payload_type,
            restarts: self.sequence.restarts(),
            clock_rate: source.clock_rate,
            jitter_us: (self.has_jitter).then_some(jitter_us),
            sequence: self.sequence.view(now_ms),
            bursts: self.sequence.bursts().view(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn bytes(payload_type: u8, sequence: u16, timestamp: u32, ssrc: u32) -> Vec<u8> {
        let mut bytes = vec![0x80, payload_type];
        bytes.extend(sequence.to_be_bytes());
        bytes.extend(timestamp.to_be_bytes());
        bytes.extend(ssrc.to_be_bytes());
        bytes.extend([0xab; 20]);
        bytes
    }

    fn add(rtp: &mut Rtp, packet: (u8, u16, u32, u32), now_ns: u64) -> Option<u64> {
        let bytes = bytes(packet.0, packet.1, packet.2, packet.3);
        rtp.add(&RtpPacket::parse(&bytes).unwrap(), now_ns)
    }

    #[test]
    fn header_with_sources_extension_and_padding_is_skipped() {
        let mut bytes = bytes(33, 7, 9, 11);
        bytes[0] = 0x80 | 0x20 | 0x10 | 2;
        let mut packet = bytes[..12].to_vec();
        packet.extend([0; 8]);
        packet.extend([0xbe, 0xde, 0, 1, 1, 2, 3, 4]);
        packet.extend([0x47; 10]);
        packet.extend([0, 0, 3]);
        let parsed = RtpPacket::parse(&packet).unwrap();
        assert_eq!((parsed.payload_type, parsed.sequence), (33, 7));
        assert_eq!((parsed.timestamp, parsed.ssrc), (9, 11));
        assert_eq!(parsed.payload, [0x47; 10]);
        for len in 0..packet.len() {
            // Cut anywhere: no panic, and no more payload than bytes.
            if let Some(cut) = RtpPacket::parse(&packet[..len]) {
                assert!(cut.payload.len() <= len);
            }
        }
    }

    #[test]
    fn rtcp_and_other_versions_are_no_rtp() {
        let mut rtcp = bytes(33, 7, 9, 11);
        // Sender report: packet type 200.
        rtcp[1] = 200;
        assert_eq!(RtpPacket::parse(&rtcp), None);
        let mut other = bytes(33, 7, 9, 11);
        other[0] = 0x47;
        assert_eq!(RtpPacket::parse(&other), None);
    }

    /// The C code of RFC 3550 appendix A.8, in units of timestamps.
    #[test]
    fn jitter_is_that_of_the_rfc() {
        let mut rtp = Rtp::default();
        let (mut jitter, mut transit_before) = (0.0f64, None);
        let mut random = 1u32;
        for n in 0..2000u32 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let delay_us = u64::from(random >> 20);
            let now_ns = 1_000_000_000 + (u64::from(n) * 20_000 + delay_us) * 1000;
            let timestamp = 4_294_900_000u32.wrapping_add(n * 160);
            add(&mut rtp, (0, n as u16, timestamp, 5), now_ns);
            let arrival = now_ns as f64 / 1e9 * 8000.0;
            let transit = arrival - f64::from(n) * 160.0;
            if let Some(before) = transit_before.replace(transit) {
                let d: f64 = transit - before;
                jitter += (1.0 / 16.0) * (d.abs() - jitter);
            }
        }
        let view = rtp.view(1).unwrap();
        let expected_us = jitter / 8000.0 * 1e6;
        let jitter_us = view.jitter_us.unwrap() as f64;
        assert!(
            (jitter_us - expected_us).abs() <= 1.0,
            "{jitter_us} {expected_us}"
        );
        assert_eq!((view.clock_rate, view.sequence.lost), (Some(8000), 0));
    }

    #[test]
    fn clock_rate_of_a_dynamic_type_is_measured() {
        for rate in [48_000u32, 90_000] {
            let mut rtp = Rtp::default();
            for n in 0..1500u32 {
                let timestamp = (u64::from(n) * u64::from(rate) / 1000) as u32;
                add(&mut rtp, (96, n as u16, timestamp, 5), u64::from(n) * MS);
            }
            let view = rtp.view(1).unwrap();
            assert_eq!(view.clock_rate, Some(rate));
            assert!(view.jitter_us.unwrap() < 20, "{view:?}");
        }
    }

    #[test]
    fn other_source_takes_over_with_its_second_packet() {
        let mut rtp = Rtp::default();
        (0..10).for_each(|n| _ = add(&mut rtp, (33, n, 0, 5), MS));
        add(&mut rtp, (33, 500, 0, 6), MS);
        add(&mut rtp, (33, 10, 0, 5), MS);
        let view = rtp.view(1).unwrap();
        assert_eq!((view.ssrc, view.restarts, view.sequence.lost), (5, 0, 0));
        add(&mut rtp, (33, 501, 0, 6), MS);
        add(&mut rtp, (33, 502, 0, 6), MS);
        assert_eq!(add(&mut rtp, (33, 505, 0, 6), MS), Some(2));
        assert_eq!(add(&mut rtp, (33, 505, 0, 6), MS), None);
        let view = rtp.view(1).unwrap();
        assert_eq!((view.ssrc, view.restarts, view.sequence.lost), (6, 1, 2));
    }
}
