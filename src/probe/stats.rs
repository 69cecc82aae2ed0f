//! Statistics of received test streams: loss, duplicates, reordering, latency.

use std::collections::HashMap;
use std::net::IpAddr;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::payload::{self, Payload};
use super::sequence_window::{SequenceOrder, SequenceWindow};

/// Most streams with statistics. Packets of further streams are only counted.
pub const MAX_STREAMS: usize = 1024;

/// Upper end of the latency histogram. A longer latency counts as this value.
const LATENCY_MAX_NS: u64 = 60_000_000_000;

/// A datagram received from a socket, before it is known to be a test packet.
#[derive(Debug, Clone, Copy)]
pub struct ProbeDatagram<'a> {
    /// Destination group.
    pub group: IpAddr,
    /// Source address.
    pub source: IpAddr,
    /// TTL or hop limit on arrival, if known.
    pub ttl: Option<u8>,
    /// Arrival time in nanoseconds since 1970.
    pub received_ns: u64,
    /// The UDP payload.
    pub data: &'a [u8],
}

/// What a receiver counts of the datagrams that arrive.
pub trait DatagramStats {
    /// Counts one datagram, whether it belongs to a stream or not.
    fn add(&mut self, datagram: &ProbeDatagram<'_>);

    /// Returns the number of datagrams of any kind.
    fn datagrams(&self) -> u64;

    /// Returns the number of distinct packets of `group`, summed over its streams.
    fn received(&self, group: IpAddr) -> u64;

    /// Returns whether `group` has at least one stream and all its streams are complete.
    fn is_complete(&self, group: IpAddr) -> bool;
}

/// Latency in microseconds, from the sender's timestamp to the kernel's receive timestamp. It is
/// exact on one host; between hosts it is as exact as their clocks are synchronised, and negative
/// if the sender's clock is ahead.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latency {
    /// Smallest.
    pub min: f64,
    /// Median, within 1 %.
    pub p50: f64,
    /// 99th percentile, within 1 %.
    pub p99: f64,
    /// Largest.
    pub max: f64,
}

/// Statistics of one flow of one sender.
#[derive(Debug)]
pub struct StreamStats {
    seen: SequenceWindow,
    total: Option<u64>,
    received: u64,
    duplicates: u64,
    reordered: u64,
    late: u64,
    damaged: u64,
    bytes: u64,
    ttl: Option<(u8, u8)>,
    latency: Option<Histogram<u64>>,
    latency_range_ns: (i64, i64),
}

impl StreamStats {
    /// Starts the statistics with the first packet of the flow, and counts it.
    pub fn new(payload: &Payload, datagram: &ProbeDatagram<'_>) -> Self {
        let mut stream = Self {
            seen: SequenceWindow::new(payload.seq),
            total: payload.total,
            received: 1,
            duplicates: 0,
            reordered: 0,
            late: 0,
            damaged: 0,
            bytes: 0,
            ttl: None,
            latency: Histogram::new_with_bounds(1, LATENCY_MAX_NS, 2).ok(),
            latency_range_ns: (i64::MAX, i64::MIN),
        };
        stream.measure(payload, datagram);
        stream
    }

    /// Counts one more packet.
    pub fn add(&mut self, payload: &Payload, datagram: &ProbeDatagram<'_>) {
        match self.seen.insert(payload.seq) {
            SequenceOrder::Next => self.received += 1,
            SequenceOrder::Reordered => {
                self.received += 1;
                self.reordered += 1;
            }
            SequenceOrder::Duplicate => self.duplicates += 1,
            SequenceOrder::TooLate => self.late += 1,
        }
        self.measure(payload, datagram);
    }

    fn measure(&mut self, payload: &Payload, datagram: &ProbeDatagram<'_>) {
        self.bytes += datagram.data.len() as u64;
        if !payload::filler_is_intact(datagram.data) {
            self.damaged += 1;
        }
        if let Some(ttl) = datagram.ttl {
            let (min, max) = self.ttl.unwrap_or((ttl, ttl));
            self.ttl = Some((min.min(ttl), max.max(ttl)));
        }
        // Read as signed, the wrapping difference is right for clocks up to 292 years apart.
        let ns = datagram.received_ns.wrapping_sub(payload.sent_ns) as i64;
        let (min, max) = self.latency_range_ns;
        self.latency_range_ns = (min.min(ns), max.max(ns));
        if let Some(latency) = &mut self.latency {
            latency.saturating_record(ns.max(1) as u64);
        }
    }

    /// Returns the number of distinct packets received.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Returns the number of duplicates.
    pub fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// Returns the number of packets that did not arrive: of the announced total if there is one,
    /// else between the lowest and the highest sequence number received.
    pub fn lost(&self) -> u64 {
        match self.total {
            Some(total) => total.saturating_sub(self.received),
            None => self.missing(),
        }
    }

    /// Returns the number of packets missing so far between the lowest and the highest sequence
    /// number received.
    pub fn missing(&self) -> u64 {
        let span = self.seen.span();
        span.saturating_sub(self.received)
    }

    /// Returns the lowest and the highest sequence number received.
    pub fn range(&self) -> (u64, u64) {
        self.seen.range()
    }

    /// Returns the lowest and the highest TTL or hop limit received.
    pub fn ttl(&self) -> Option<(u8, u8)> {
        self.ttl
    }

    /// Returns whether the total is known and every packet has arrived.
    pub fn is_complete(&self) -> bool {
        self.total.is_some_and(|total| self.received >= total)
    }

    /// Returns the latency so far; `None` if the histogram could not be created.
    pub fn latency(&self) -> Option<Latency> {
        let histogram = self.latency.as_ref()?;
        let (min, max) = self.latency_range_ns;
        // The upper bound of a bucket can exceed the largest recorded value.
        let quantile = |q| histogram.value_at_quantile(q).min(max.max(0) as u64) as f64 / 1000.0;
        Some(Latency {
            min: min as f64 / 1000.0,
            p50: quantile(0.5),
            p99: quantile(0.99),
            max: max as f64 / 1000.0,
        })
    }
}

/// One line of a report: the statistics of one flow of one sender.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StreamReport {
    /// The group.
    pub group: IpAddr,
    /// Source address on arrival; a router may have translated it.
    pub source: IpAddr,
    /// Stream id in hexadecimal.
    pub stream: String,
    /// Flow number within the stream.
    pub flow: u16,
    /// Distinct packets.
    pub received: u64,
    /// Packets that did not arrive; see [`StreamStats::lost`].
    pub lost: u64,
    /// Packets that arrived again.
    pub duplicates: u64,
    /// Packets that arrived after a packet with a higher number (RFC 4737 section 3.3).
    pub reordered: u64,
    /// Packets 65,536 or more behind the newest. Each is either a duplicate or a reordered
    /// packet; which one is not recorded. A reordered packet among them stays counted as lost.
    pub late: u64,
    /// Packets with damaged filler.
    pub damaged: u64,
    /// Bytes of UDP payload, including duplicates.
    pub bytes: u64,
    /// Lowest sequence number received.
    pub first_seq: u64,
    /// Highest sequence number received.
    pub last_seq: u64,
    /// Total number of packets that the sender announced.
    pub total: Option<u64>,
    /// Lowest TTL or hop limit received.
    pub ttl_min: Option<u8>,
    /// Highest TTL or hop limit received.
    pub ttl_max: Option<u8>,
    /// Latency in microseconds.
    pub latency_us: Option<Latency>,
}

/// Identifies one flow of one sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct StreamKey {
    group: IpAddr,
    source: IpAddr,
    stream: u64,
    flow: u16,
}

/// Statistics of all streams that a receiver gets, in bounded memory.
#[derive(Debug, Default)]
pub struct ReceiverStats {
    datagrams: u64,
    streams: HashMap<StreamKey, StreamStats>,
    foreign: u64,
    untracked: u64,
}

impl ReceiverStats {
    /// Returns the number of datagrams that are not test packets.
    pub fn foreign(&self) -> u64 {
        self.foreign
    }

    /// Returns the number of test packets of streams beyond [`MAX_STREAMS`].
    pub fn untracked(&self) -> u64 {
        self.untracked
    }

    /// Returns the statistics of each stream of `group`.
    pub fn streams_of(&self, group: IpAddr) -> impl Iterator<Item = &StreamStats> {
        self.streams
            .iter()
            .filter(move |(key, _)| key.group == group)
            .map(|(_, stream)| stream)
    }

    /// Returns a report of each stream, sorted by group, then source.
    pub fn report(&self) -> Vec<StreamReport> {
        let mut streams: Vec<_> = self.streams.iter().collect();
        streams.sort_by_key(|(key, _)| **key);
        streams
            .into_iter()
            .map(|(key, stream)| StreamReport {
                group: key.group,
                source: key.source,
                stream: format!("{:016x}", key.stream),
                flow: key.flow,
                received: stream.received,
                lost: stream.lost(),
                duplicates: stream.duplicates,
                reordered: stream.reordered,
                late: stream.late,
                damaged: stream.damaged,
                bytes: stream.bytes,
                first_seq: stream.range().0,
                last_seq: stream.range().1,
                total: stream.total,
                ttl_min: stream.ttl.map(|t| t.0),
                ttl_max: stream.ttl.map(|t| t.1),
                latency_us: stream.latency(),
            })
            .collect()
    }
}

impl DatagramStats for ReceiverStats {
    fn add(&mut self, datagram: &ProbeDatagram<'_>) {
        self.datagrams += 1;
        let Ok(payload) = Payload::parse(datagram.data) else {
            self.foreign += 1;
            return;
        };
        let key = StreamKey {
            group: datagram.group,
            source: datagram.source,
            stream: payload.stream,
            flow: payload.flow,
        };
        if let Some(stream) = self.streams.get_mut(&key) {
            stream.add(&payload, datagram);
        } else if self.streams.len() < MAX_STREAMS {
            self.streams
                .insert(key, StreamStats::new(&payload, datagram));
        } else {
            self.untracked += 1;
        }
    }

    fn datagrams(&self) -> u64 {
        self.datagrams
    }

    fn received(&self, group: IpAddr) -> u64 {
        self.streams_of(group).map(StreamStats::received).sum()
    }

    fn is_complete(&self, group: IpAddr) -> bool {
        let mut streams = self.streams_of(group).peekable();
        streams.peek().is_some() && streams.all(StreamStats::is_complete)
    }
}

#[cfg(test)]
mod tests {
    use super::super::sequence_window::WINDOW;
    use super::*;
    use proptest::prelude::*;

    fn packet(seq: u64, total: Option<u64>) -> Vec<u8> {
        Payload {
            stream: 7,
            flow: 0,
            seq,
            sent_ns: 1_000,
            total,
        }
        .to_bytes()
        .to_vec()
    }

    fn datagram(data: &[u8]) -> ProbeDatagram<'_> {
        ProbeDatagram {
            group: [225, 1, 2, 3].into(),
            source: [10, 0, 0, 1].into(),
            ttl: Some(15),
            received_ns: 11_000,
            data,
        }
    }

    fn report_of(seqs: impl IntoIterator<Item = u64>, total: Option<u64>) -> StreamReport {
        let mut stats = ReceiverStats::default();
        for seq in seqs {
            stats.add(&datagram(&packet(seq, total)));
        }
        assert_eq!(stats.foreign(), 0);
        stats.report().remove(0)
    }

    #[test]
    fn gaps_count_as_lost_ends_only_with_total() {
        let report = report_of([2, 3, 5], None);
        assert_eq!((report.received, report.lost), (3, 1));
        assert_eq!((report.first_seq, report.last_seq), (2, 5));
        let report = report_of([2, 3, 5], Some(10));
        assert_eq!((report.received, report.lost), (3, 7));
        assert_eq!(report_of(0..10, Some(10)).lost, 0);
    }

    #[test]
    fn duplicates_and_reordered_packets_are_distinguished() {
        let report = report_of([0, 3, 1, 1, 2, 3], Some(4));
        assert_eq!(
            (
                report.received,
                report.lost,
                report.duplicates,
                report.reordered
            ),
            (4, 0, 2, 2)
        );
        // The first packet received may be a reordered one.
        let report = report_of([1, 0, 2], None);
        assert_eq!((report.received, report.lost, report.reordered), (3, 0, 1));
        assert_eq!(report.first_seq, 0);
    }

    #[test]
    fn packets_behind_the_window_are_late() {
        let report = report_of([0, WINDOW - 1, 1], None);
        assert_eq!((report.reordered, report.late), (1, 0));
        let report = report_of([0, WINDOW, 0, 1], None);
        assert_eq!(
            (report.late, report.duplicates, report.reordered),
            (1, 0, 1)
        );
        // A bit set in one lap of the ring must not count in the next lap.
        let report = report_of([0, 1, WINDOW + 1, 2, WINDOW], None);
        assert_eq!((report.duplicates, report.reordered), (0, 2));
    }

    #[test]
    fn extreme_numbers_do_not_overflow() {
        let report = report_of([0, u64::MAX, 5, u64::MAX - 1, u64::MAX], None);
        assert_eq!(report.received, 3);
        assert_eq!((report.late, report.duplicates), (1, 1));
        assert!(report.lost > 1 << 60);

        // The announced total changes and is less than the number of packets received.
        let mut stats = ReceiverStats::default();
        for (seq, total) in [(0, Some(2)), (1, Some(2)), (9, Some(10)), (8, None)] {
            stats.add(&datagram(&packet(seq, total)));
        }
        assert_eq!(stats.report()[0].lost, 0);

        // The largest possible sending time.
        let mut data = packet(0, None);
        data[24..32].fill(0xff);
        stats.add(&datagram(&data));
    }

    #[test]
    fn streams_beyond_the_limit_are_untracked() {
        let mut stats = ReceiverStats::default();
        for stream in 0..MAX_STREAMS as u64 + 5 {
            let payload = Payload {
                stream,
                flow: 0,
                seq: 0,
                sent_ns: 0,
                total: Some(1),
            };
            stats.add(&datagram(&payload.to_bytes()));
        }
        assert_eq!(stats.report().len(), MAX_STREAMS);
        assert_eq!(stats.untracked(), 5);
        stats.add(&datagram(b"GET / HTTP/1.1"));
        assert_eq!(stats.foreign(), 1);
        assert!(stats.is_complete([225, 1, 2, 3].into()));
        assert!(!stats.is_complete([225, 1, 2, 4].into()));
        assert_eq!(stats.received([225, 1, 2, 3].into()), MAX_STREAMS as u64);
    }

    #[test]
    fn latency_and_ttl_report_minimum_and_maximum() {
        let data = packet(0, None);
        let mut stats = ReceiverStats::default();
        stats.add(&datagram(&data));
        let data = packet(1, None);
        stats.add(&ProbeDatagram {
            ttl: Some(3),
            received_ns: 500,
            ..datagram(&data)
        });
        let report = stats.report().remove(0);
        assert_eq!((report.ttl_min, report.ttl_max), (Some(3), Some(15)));
        let latency = report.latency_us.unwrap();
        assert_eq!((latency.min, latency.max), (-0.5, 10.0));
        assert!((latency.p99 - 10.0).abs() < 0.1, "{latency:?}");
    }

    proptest! {
        /// Compares the window with a set of all sequence numbers.
        #[test]
        fn counts_agree_with_a_full_set(seqs in prop::collection::vec(0u64..300, 1..400)) {
            let mut known = std::collections::BTreeSet::new();
            let (mut duplicates, mut reordered) = (0, 0);
            for &seq in &seqs {
                if known.last().is_some_and(|&last| seq < last) && !known.contains(&seq) {
                    reordered += 1;
                }
                if !known.insert(seq) {
                    duplicates += 1;
                }
            }
            let span = known.last().unwrap() - known.first().unwrap() + 1;
            let report = report_of(seqs, None);
            prop_assert_eq!(report.received, known.len() as u64);
            prop_assert_eq!(report.lost, span - known.len() as u64);
            prop_assert_eq!(report.duplicates, duplicates);
            prop_assert_eq!(report.reordered, reordered);
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(data in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut stats = ReceiverStats::default();
            stats.add(&datagram(&data));
            let mut ours = packet(0, None);
            let at = data.len().min(ours.len() - 5);
            ours[5..5 + at].copy_from_slice(&data[..at]);
            stats.add(&datagram(&ours));
            stats.report();
        }
    }
}
