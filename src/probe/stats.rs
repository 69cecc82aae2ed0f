//! What arrived of a stream: losses, duplicates, order, latency.

use std::collections::HashMap;
use std::net::IpAddr;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::payload::{self, Payload};

/// Packets a late one may be behind the newest and still be told from a duplicate.
pub const WINDOW: u64 = 65_536;
/// Streams kept apart. What further ones send is counted, not followed.
pub const MAX_STREAMS: usize = 1024;

const WORDS: usize = (WINDOW / 64) as usize;
/// Upper end of the latency histogram; a longer latency counts as this one.
const LATENCY_MAX_NS: u64 = 60_000_000_000;

/// One packet, as a socket handed it over.
#[derive(Debug, Clone, Copy)]
pub struct ReceivedProbe<'a> {
    /// The group it was sent to.
    pub group: IpAddr,
    /// Who sent it.
    pub source: IpAddr,
    /// TTL or hop limit on arrival, where known.
    pub ttl: Option<u8>,
    /// Time of arrival in nanoseconds since 1970.
    pub received_ns: u64,
    /// The UDP payload.
    pub data: &'a [u8],
}

/// Which sequence numbers have been seen, in constant memory.
#[derive(Debug)]
struct SequenceWindow {
    first: u64,
    highest: u64,
    /// Bit `seq % WINDOW`, valid for the last `WINDOW` numbers up to `highest`.
    bits: Box<[u64; WORDS]>,
}

enum SequenceOrder {
    Next,
    Reordered,
    Duplicate,
    TooLate,
}

impl SequenceWindow {
    fn new(seq: u64) -> Self {
        let mut seen = Self {
            first: seq,
            highest: seq,
            bits: Box::new([0; WORDS]),
        };
        seen.set(seq);
        seen
    }

    fn set(&mut self, seq: u64) {
        let at = seq % WINDOW;
        self.bits[(at / 64) as usize] |= 1 << (at % 64);
    }

    fn place(&mut self, seq: u64) -> SequenceOrder {
        if seq > self.highest {
            if seq - self.highest >= WINDOW {
                self.bits.fill(0);
            } else {
                for gone in self.highest + 1..seq {
                    let at = gone % WINDOW;
                    self.bits[(at / 64) as usize] &= !(1 << (at % 64));
                }
            }
            self.highest = seq;
            self.set(seq);
            return SequenceOrder::Next;
        }
        if self.highest - seq >= WINDOW {
            return SequenceOrder::TooLate;
        }
        let at = seq % WINDOW;
        if self.bits[(at / 64) as usize] >> (at % 64) & 1 == 1 {
            return SequenceOrder::Duplicate;
        }
        self.set(seq);
        self.first = self.first.min(seq);
        SequenceOrder::Reordered
    }
}

/// Latency in microseconds, from the sender's stamp to the kernel's on arrival. Both clocks must
/// agree: one host, or hosts with synchronized clocks. Below zero where the sender's is ahead.
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

/// The account of one flow of one sender.
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
    /// An account opened by its first packet, which is counted.
    pub fn new(payload: &Payload, arrival: &ReceivedProbe<'_>) -> Self {
        let mut tally = Self {
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
        tally.measure(payload, arrival);
        tally
    }

    /// Counts one more packet.
    pub fn add(&mut self, payload: &Payload, arrival: &ReceivedProbe<'_>) {
        match self.seen.place(payload.seq) {
            SequenceOrder::Next => self.received += 1,
            SequenceOrder::Reordered => {
                self.received += 1;
                self.reordered += 1;
            }
            SequenceOrder::Duplicate => self.duplicates += 1,
            SequenceOrder::TooLate => self.late += 1,
        }
        self.measure(payload, arrival);
    }

    fn measure(&mut self, payload: &Payload, arrival: &ReceivedProbe<'_>) {
        self.bytes += arrival.data.len() as u64;
        if !payload::filler_is_intact(arrival.data) {
            self.damaged += 1;
        }
        if let Some(ttl) = arrival.ttl {
            let (min, max) = self.ttl.unwrap_or((ttl, ttl));
            self.ttl = Some((min.min(ttl), max.max(ttl)));
        }
        // A wrapped difference of two clocks read as signed is right within 292 years.
        let ns = arrival.received_ns.wrapping_sub(payload.sent_ns) as i64;
        let (min, max) = self.latency_range_ns;
        self.latency_range_ns = (min.min(ns), max.max(ns));
        if let Some(latency) = &mut self.latency {
            latency.saturating_record(ns.max(1) as u64);
        }
    }

    /// Distinct packets.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Packets that arrived once more.
    pub fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// Packets that did not arrive: of the announced total where there is one, else between the
    /// lowest and the highest number seen.
    pub fn lost(&self) -> u64 {
        match self.total {
            Some(total) => total.saturating_sub(self.received),
            None => self.missing(),
        }
    }

    /// Packets missing so far: between the lowest and the highest number seen.
    pub fn missing(&self) -> u64 {
        let span = (self.seen.highest - self.seen.first).saturating_add(1);
        span.saturating_sub(self.received)
    }

    /// Lowest and highest sequence number seen.
    pub fn range(&self) -> (u64, u64) {
        (self.seen.first, self.seen.highest)
    }

    /// Lowest and highest TTL or hop limit seen.
    pub fn ttl(&self) -> Option<(u8, u8)> {
        self.ttl
    }

    /// True where the total is known and all of it has arrived.
    pub fn is_complete(&self) -> bool {
        self.total.is_some_and(|total| self.received >= total)
    }

    /// Latency so far; `None` where no histogram could be kept.
    pub fn latency(&self) -> Option<Latency> {
        let histogram = self.latency.as_ref()?;
        let (min, max) = self.latency_range_ns;
        // A bucket may reach past the largest value in it.
        let quantile = |q| histogram.value_at_quantile(q).min(max.max(0) as u64) as f64 / 1000.0;
        Some(Latency {
            min: min as f64 / 1000.0,
            p50: quantile(0.5),
            p99: quantile(0.99),
            max: max as f64 / 1000.0,
        })
    }
}

/// One line of a report: a flow as one sender's packets made it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StreamReport {
    /// The group.
    pub group: IpAddr,
    /// The sender's address as it arrived.
    pub source: IpAddr,
    /// The run of the sender, in hexadecimal.
    pub stream: String,
    /// The flow within the run.
    pub flow: u16,
    /// Distinct packets.
    pub received: u64,
    /// Missing packets; see [`StreamStats::lost`].
    pub lost: u64,
    /// Packets that arrived once more.
    pub duplicates: u64,
    /// Packets that arrived after one with a higher number (RFC 4737 section 3.3).
    pub reordered: u64,
    /// Packets more than [`WINDOW`] behind: duplicates or stragglers, nobody can tell. A
    /// straggler among them stays counted as lost.
    pub late: u64,
    /// Packets whose filler is not what was sent.
    pub damaged: u64,
    /// Payload bytes, duplicates included.
    pub bytes: u64,
    /// Lowest sequence number seen.
    pub first_seq: u64,
    /// Highest sequence number seen.
    pub last_seq: u64,
    /// How many packets the sender announced.
    pub total: Option<u64>,
    /// Lowest TTL or hop limit seen.
    pub ttl_min: Option<u8>,
    /// Highest TTL or hop limit seen.
    pub ttl_max: Option<u8>,
    /// Latency in microseconds.
    pub latency_us: Option<Latency>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Key {
    group: IpAddr,
    source: IpAddr,
    stream: u64,
    flow: u16,
}

/// The accounts of all streams, in bounded memory.
#[derive(Debug, Default)]
pub struct ReceiverStats {
    streams: HashMap<Key, StreamStats>,
    foreign: u64,
    untracked: u64,
}

impl ReceiverStats {
    /// Counts one packet of whatever kind.
    pub fn add(&mut self, arrival: &ReceivedProbe<'_>) {
        let Ok(payload) = Payload::read(arrival.data) else {
            self.foreign += 1;
            return;
        };
        let key = Key {
            group: arrival.group,
            source: arrival.source,
            stream: payload.stream,
            flow: payload.flow,
        };
        if let Some(tally) = self.streams.get_mut(&key) {
            tally.add(&payload, arrival);
        } else if self.streams.len() < MAX_STREAMS {
            self.streams
                .insert(key, StreamStats::new(&payload, arrival));
        } else {
            self.untracked += 1;
        }
    }

    /// Packets that are not test packets.
    pub fn foreign(&self) -> u64 {
        self.foreign
    }

    /// Test packets of streams past [`MAX_STREAMS`].
    pub fn untracked(&self) -> u64 {
        self.untracked
    }

    /// Distinct packets of `group`, over all its streams.
    pub fn received(&self, group: IpAddr) -> u64 {
        self.of(group).map(StreamStats::received).sum()
    }

    /// True where `group` has a stream and every one of them is complete.
    pub fn is_complete(&self, group: IpAddr) -> bool {
        let mut streams = self.of(group).peekable();
        streams.peek().is_some() && streams.all(StreamStats::is_complete)
    }

    /// The streams of `group`.
    pub fn of(&self, group: IpAddr) -> impl Iterator<Item = &StreamStats> {
        self.streams
            .iter()
            .filter(move |(key, _)| key.group == group)
            .map(|(_, tally)| tally)
    }

    /// Every stream, by group, then source.
    pub fn report(&self) -> Vec<StreamReport> {
        let mut streams: Vec<_> = self.streams.iter().collect();
        streams.sort_by_key(|(key, _)| **key);
        streams
            .into_iter()
            .map(|(key, tally)| StreamReport {
                group: key.group,
                source: key.source,
                stream: format!("{:016x}", key.stream),
                flow: key.flow,
                received: tally.received,
                lost: tally.lost(),
                duplicates: tally.duplicates,
                reordered: tally.reordered,
                late: tally.late,
                damaged: tally.damaged,
                bytes: tally.bytes,
                first_seq: tally.seen.first,
                last_seq: tally.seen.highest,
                total: tally.total,
                ttl_min: tally.ttl.map(|t| t.0),
                ttl_max: tally.ttl.map(|t| t.1),
                latency_us: tally.latency(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
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

    fn arrival(data: &[u8]) -> ReceivedProbe<'_> {
        ReceivedProbe {
            group: [225, 1, 2, 3].into(),
            source: [10, 0, 0, 1].into(),
            ttl: Some(15),
            received_ns: 11_000,
            data,
        }
    }

    fn tallied(seqs: impl IntoIterator<Item = u64>, total: Option<u64>) -> StreamReport {
        let mut tallies = ReceiverStats::default();
        for seq in seqs {
            tallies.add(&arrival(&packet(seq, total)));
        }
        assert_eq!(tallies.foreign(), 0);
        tallies.report().remove(0)
    }

    #[test]
    fn gaps_are_lost_and_heads_and_tails_where_the_total_is_known() {
        let report = tallied([2, 3, 5], None);
        assert_eq!((report.received, report.lost), (3, 1));
        assert_eq!((report.first_seq, report.last_seq), (2, 5));
        let report = tallied([2, 3, 5], Some(10));
        assert_eq!((report.received, report.lost), (3, 7));
        assert_eq!(tallied(0..10, Some(10)).lost, 0);
    }

    #[test]
    fn duplicates_and_reordered_packets_are_told_apart() {
        let report = tallied([0, 3, 1, 1, 2, 3], Some(4));
        assert_eq!(
            (
                report.received,
                report.lost,
                report.duplicates,
                report.reordered
            ),
            (4, 0, 2, 2)
        );
        // The stream may begin with a late packet.
        let report = tallied([1, 0, 2], None);
        assert_eq!((report.received, report.lost, report.reordered), (3, 0, 1));
        assert_eq!(report.first_seq, 0);
    }

    #[test]
    fn what_is_further_behind_than_the_window_is_late() {
        let report = tallied([0, WINDOW - 1, 1], None);
        assert_eq!((report.reordered, report.late), (1, 0));
        let report = tallied([0, WINDOW, 0, 1], None);
        assert_eq!(
            (report.late, report.duplicates, report.reordered),
            (1, 0, 1)
        );
        // A bit of one lap of the ring must not count in the next.
        let report = tallied([0, 1, WINDOW + 1, 2, WINDOW], None);
        assert_eq!((report.duplicates, report.reordered), (0, 2));
    }

    #[test]
    fn hostile_numbers_do_no_harm() {
        let report = tallied([0, u64::MAX, 5, u64::MAX - 1, u64::MAX], None);
        assert_eq!(report.received, 3);
        assert_eq!((report.late, report.duplicates), (1, 1));
        assert!(report.lost > 1 << 60);

        // A total that changes, and shrinks below what arrived.
        let mut tallies = ReceiverStats::default();
        for (seq, total) in [(0, Some(2)), (1, Some(2)), (9, Some(10)), (8, None)] {
            tallies.add(&arrival(&packet(seq, total)));
        }
        assert_eq!(tallies.report()[0].lost, 0);

        // Clocks at either end.
        let mut data = packet(0, None);
        data[24..32].fill(0xff);
        tallies.add(&arrival(&data));
    }

    #[test]
    fn streams_are_followed_up_to_a_limit() {
        let mut tallies = ReceiverStats::default();
        for stream in 0..MAX_STREAMS as u64 + 5 {
            let payload = Payload {
                stream,
                flow: 0,
                seq: 0,
                sent_ns: 0,
                total: Some(1),
            };
            tallies.add(&arrival(&payload.to_bytes()));
        }
        assert_eq!(tallies.report().len(), MAX_STREAMS);
        assert_eq!(tallies.untracked(), 5);
        tallies.add(&arrival(b"GET / HTTP/1.1"));
        assert_eq!(tallies.foreign(), 1);
        assert!(tallies.is_complete([225, 1, 2, 3].into()));
        assert!(!tallies.is_complete([225, 1, 2, 4].into()));
        assert_eq!(tallies.received([225, 1, 2, 3].into()), MAX_STREAMS as u64);
    }

    #[test]
    fn latency_and_ttl_are_ranges() {
        let data = packet(0, None);
        let mut tallies = ReceiverStats::default();
        tallies.add(&arrival(&data));
        let data = packet(1, None);
        tallies.add(&ReceivedProbe {
            ttl: Some(3),
            received_ns: 500,
            ..arrival(&data)
        });
        let report = tallies.report().remove(0);
        assert_eq!((report.ttl_min, report.ttl_max), (Some(3), Some(15)));
        let latency = report.latency_us.unwrap();
        assert_eq!((latency.min, latency.max), (-0.5, 10.0));
        assert!((latency.p99 - 10.0).abs() < 0.1, "{latency:?}");
    }

    proptest! {
        /// Against a set that remembers everything.
        #[test]
        fn agrees_with_a_set(seqs in prop::collection::vec(0u64..300, 1..400)) {
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
            let report = tallied(seqs, None);
            prop_assert_eq!(report.received, known.len() as u64);
            prop_assert_eq!(report.lost, span - known.len() as u64);
            prop_assert_eq!(report.duplicates, duplicates);
            prop_assert_eq!(report.reordered, reordered);
        }

        #[test]
        fn any_bytes_are_survived(data in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut tallies = ReceiverStats::default();
            tallies.add(&arrival(&data));
            let mut ours = packet(0, None);
            let at = data.len().min(ours.len() - 5);
            ours[5..5 + at].copy_from_slice(&data[..at]);
            tallies.add(&arrival(&ours));
            tallies.report();
        }
    }
}
