//! Statistics of received RTP streams, by synchronisation source.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;

use crate::api::streams::RtpView;
use crate::probe::stats::MAX_STREAMS;
use crate::probe::{DatagramStats, ProbeDatagram};
use crate::streams::rtp::{Rtp, RtpPacket};

/// Statistics of one synchronisation source.
#[derive(Debug)]
struct RtpStats {
    rtp: Rtp,
    packets: u64,
    bytes: u64,
    last_ns: u64,
    /// Longest time between two packets.
    max_delta_ns: u64,
    /// Sum of the jitter after each packet, and the largest one, in seconds.
    jitter_sum: f64,
    jitter_max: f64,
}

impl RtpStats {
    fn new(received_ns: u64) -> Self {
        Self {
            rtp: Rtp::default(),
            packets: 0,
            bytes: 0,
            last_ns: received_ns,
            max_delta_ns: 0,
            jitter_sum: 0.0,
            jitter_max: 0.0,
        }
    }

    fn add(&mut self, packet: &RtpPacket<'_>, datagram: &ProbeDatagram<'_>) {
        self.rtp.add(packet, datagram.received_ns);
        self.packets += 1;
        self.bytes += datagram.data.len() as u64;
        let delta_ns = datagram.received_ns.saturating_sub(self.last_ns);
        self.max_delta_ns = self.max_delta_ns.max(delta_ns);
        self.last_ns = datagram.received_ns;
        let jitter = self.rtp.jitter().unwrap_or_default();
        self.jitter_sum += jitter;
        self.jitter_max = self.jitter_max.max(jitter);
    }

    /// Returns the number of distinct packets.
    fn received(&self) -> u64 {
        let sequence = self.rtp.sequence();
        sequence.expected() - sequence.lost()
    }

    fn report(&self, key: &RtpKey) -> Option<RtpStreamReport> {
        let rtp = self.rtp.view(self.last_ns / 1_000_000)?;
        Some(RtpStreamReport {
            group: key.group,
            source: key.source,
            received: self.received(),
            bytes: self.bytes,
            max_delta_us: self.max_delta_ns as f64 / 1000.0,
            jitter_us: self.rtp.jitter().map(|jitter| RtpJitter {
                last: jitter * 1e6,
                mean: self.jitter_sum / self.packets as f64 * 1e6,
                max: self.jitter_max * 1e6,
            }),
            rtp,
        })
    }
}

/// Interarrival jitter (RFC 3550 section 6.4.1) in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RtpJitter {
    /// After the last packet.
    pub last: f64,
    /// Mean over all packets.
    pub mean: f64,
    /// Largest.
    pub max: f64,
}

/// One line of a report: the statistics of one synchronisation source.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RtpStreamReport {
    /// The group.
    pub group: IpAddr,
    /// Source address on arrival.
    pub source: IpAddr,
    /// Distinct packets.
    pub received: u64,
    /// Bytes of UDP payload, including duplicates.
    pub bytes: u64,
    /// Longest time between two packets, in microseconds.
    pub max_delta_us: f64,
    /// Jitter; null without a clock rate.
    pub jitter_us: Option<RtpJitter>,
    /// Synchronisation source, loss, bursts: the same as in `mcastor show streams`.
    pub rtp: RtpView,
}

/// Identifies a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct RtpKey {
    group: IpAddr,
    source: IpAddr,
    ssrc: u32,
}

/// Statistics of all RTP streams that a receiver gets, in bounded memory.
#[derive(Debug, Default)]
pub struct RtpReceiverStats {
    datagrams: u64,
    streams: BTreeMap<RtpKey, RtpStats>,
    foreign: u64,
    untracked: u64,
}

impl RtpReceiverStats {
    /// Returns the number of datagrams that are not RTP.
    pub fn foreign(&self) -> u64 {
        self.foreign
    }

    /// Returns the number of packets of streams beyond [`MAX_STREAMS`].
    pub fn untracked(&self) -> u64 {
        self.untracked
    }

    /// Returns the number of packets that are missing so far, summed over all streams.
    pub fn lost(&self) -> u64 {
        let lost = self
            .streams
            .values()
            .map(|stats| stats.rtp.sequence().lost());
        lost.sum()
    }

    /// Returns the report of each stream, by group, source and SSRC.
    pub fn report(&self) -> Vec<RtpStreamReport> {
        let streams = self.streams.iter();
        streams
            .filter_map(|(key, stats)| stats.report(key))
            .collect()
    }
}

impl DatagramStats for RtpReceiverStats {
    fn add(&mut self, datagram: &ProbeDatagram<'_>) {
        self.datagrams += 1;
        let Some(packet) = RtpPacket::parse(datagram.data) else {
            self.foreign += 1;
            return;
        };
        let key = RtpKey {
            group: datagram.group,
            source: datagram.source,
            ssrc: packet.ssrc,
        };
        let has_room = self.streams.len() < MAX_STREAMS;
        if has_room || self.streams.contains_key(&key) {
            let stats = self.streams.entry(key);
            let stats = stats.or_insert_with(|| RtpStats::new(datagram.received_ns));
            stats.add(&packet, datagram);
        } else {
            self.untracked += 1;
        }
    }

    fn datagrams(&self) -> u64 {
        self.datagrams
    }

    fn received(&self, group: IpAddr) -> u64 {
        let of_group = self.streams.iter().filter(|(key, _)| key.group == group);
        of_group.map(|(_, stats)| stats.received()).sum()
    }

    /// RTP does not say how many packets there will be.
    fn is_complete(&self, _group: IpAddr) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(225, 1, 2, 3));

    fn add(stats: &mut RtpReceiverStats, ssrc: u32, sequence: u16, received_ns: u64, time: u32) {
        let mut bytes = vec![0x80, 0];
        bytes.extend(sequence.to_be_bytes());
        bytes.extend(time.to_be_bytes());
        bytes.extend(ssrc.to_be_bytes());
        stats.add(&ProbeDatagram {
            group: GROUP,
            source: [10, 0, 0, 1].into(),
            ttl: None,
            received_ns,
            data: &bytes,
        });
    }

    #[test]
    fn each_synchronisation_source_is_judged_for_itself() {
        let mut stats = RtpReceiverStats::default();
        for sequence in [1, 2, 5, 4, 5] {
            add(&mut stats, 7, sequence, 0, 0);
            add(&mut stats, 8, 5 * sequence, 0, 0);
        }
        let report = stats.report();
        let counts = report.iter().map(|s| {
            let sequence = &s.rtp.sequence;
            (
                s.rtp.ssrc,
                s.received,
                sequence.lost,
                sequence.reordered,
                sequence.duplicates,
            )
        });
        assert_eq!(
            counts.collect::<Vec<_>>(),
            [(7, 4, 1, 1, 1), (8, 4, 17, 1, 1)]
        );
        assert_eq!((stats.lost(), stats.received(GROUP)), (18, 8));
    }

    /// Packets 20 ms apart, of which one is 8 ms late: the differences are 0, 8 and 8 ms.
    #[test]
    fn jitter_has_a_mean_and_a_maximum() {
        let mut stats = RtpReceiverStats::default();
        for (n, ms) in [0, 20, 48, 60].into_iter().enumerate() {
            add(&mut stats, 7, n as u16, ms * 1_000_000, n as u32 * 160);
        }
        let report = stats.report();
        let jitter = report[0].jitter_us.expect("a clock rate");
        let first = 8000.0 / 16.0;
        let second = first + (8000.0 - first) / 16.0;
        assert!((jitter.max - second).abs() < 1e-6, "{jitter:?}");
        assert!((jitter.last - second).abs() < 1e-6, "{jitter:?}");
        let mean = (first + second) / 4.0;
        assert!((jitter.mean - mean).abs() < 1e-6, "{jitter:?}");
        assert_eq!(report[0].max_delta_us, 28_000.0);
    }

    #[test]
    fn packets_of_other_protocols_are_counted_apart() {
        let mut stats = RtpReceiverStats::default();
        add(&mut stats, 7, 1, 0, 0);
        stats.add(&ProbeDatagram {
            group: GROUP,
            source: [10, 0, 0, 1].into(),
            ttl: None,
            received_ns: 0,
            data: b"hello",
        });
        assert_eq!((stats.foreign(), stats.datagrams()), (1, 2));
        assert_eq!((stats.received(GROUP), stats.lost()), (1, 0));
    }
}
