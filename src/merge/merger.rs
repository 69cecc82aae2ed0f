//! The merge of all streams of a route.

use std::net::IpAddr;

use ahash::{AHashMap, RandomState};

use super::fingerprint::Fingerprints;
use super::held::{HeldPacket, HeldPackets};
use super::packet::MergePacket;
use super::sequence::PacketNumber;
use super::statistics::MergeStatistics;
use super::step::Step;
use super::stream::{Fate, LIVENESS_NS, MergedStream, NumberedPacket, Place};
use super::window::MAX_SLOTS;
use crate::model::{MergeBy, MergePath, MergeRule};

/// Limit of the streams of a merge. Packets of further streams are compared by their payload.
const MAX_STREAMS: usize = 1024;

/// Number of streams whose windows have room for the highest rates: 2 MiB each.
const FAST_STREAMS: usize = 64;

/// A stream without packets for this time ends when another one needs its place among the fast ones.
const IDLE_NS: u64 = 60 * LIVENESS_NS;

/// The same, when another one needs its place.
const SHORT_IDLE_NS: u64 = 2 * LIVENESS_NS;

/// Silent streams are looked for at this interval, so that packets of many further streams, which a
/// host can forge, do not each cost a look at all streams.
const SEARCH_NS: u64 = LIVENESS_NS;

/// While the process cannot run, packets of both paths wait unread. For this time they are not
/// counted as lost, and their copies are remembered.
const MAX_STALL_NS: u64 = 3 * LIVENESS_NS;

/// Limit of the slots of the windows of other streams.
const MAX_SLOTS_OF_SLOW_STREAMS: usize = 4096;

/// A path that was read so many times less than the other one is not read at all.
const MAX_UNREAD: u32 = 64;

/// Group, port, and SSRC or its like.
type StreamKey = (IpAddr, u16, u64);

/// What happens to a packet that was pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MergeOutcome {
    /// It is one of the steps.
    Passed,
    /// It waits for an earlier one; see [`Merger::hold`].
    Held(HeldAs),
    /// It was passed on already.
    Duplicate,
    /// Later packets were passed on already.
    Late,
}

/// The place of a packet that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldAs {
    stream: StreamKey,
    place: Place,
}

/// Up to when a path was read.
#[derive(Debug, Clone, Copy, Default)]
struct ReadPosition {
    until_ns: Option<u64>,
    /// How often the other path was read since.
    unread: u32,
    /// The number of the last batch.
    batch: u64,
}

/// The state of a merge.
pub struct Merger {
    by: MergeBy,
    window_ns: u64,
    streams: AHashMap<StreamKey, Box<MergedStream>>,
    /// When silent streams were looked for.
    searched_ns: Option<u64>,
    /// Number of streams that wait.
    waiting: usize,
    held: HeldPackets,
    fingerprints: Option<Fingerprints>,
    hasher: RandomState,
    read: [ReadPosition; 2],
    steps: Vec<Step>,
    statistics: MergeStatistics,
}

impl Merger {
    /// Returns a merge without packets.
    pub fn new(rule: &MergeRule) -> Self {
        Self {
            by: rule.by,
            window_ns: rule.window.as_nanos() as u64,
            streams: AHashMap::new(),
            searched_ns: None,
            waiting: 0,
            held: HeldPackets::default(),
            fingerprints: None,
            hasher: RandomState::new(),
            read: [ReadPosition::default(); 2],
            steps: Vec::new(),
            statistics: MergeStatistics::default(),
        }
    }

    /// Notes that all packets of a path that were received until this time were pushed.
    pub fn note_read(&mut self, path: MergePath, until_ns: u64) {
        self.note_time(path, until_ns);
        self.note_reading(path);
    }

    /// Notes that packets of a batch of a path were pushed. Successive batches have other numbers.
    ///
    /// A batch counts once, however many packets it has. While the process could not read, both
    /// paths have collected packets, and a large batch of one must not look as if the other brought
    /// nothing.
    pub fn note_batch(&mut self, path: MergePath, batch: u64) {
        let own = &mut self.read[path.index()];
        if std::mem::replace(&mut own.batch, batch) != batch {
            self.note_reading(path);
        }
    }

    fn note_reading(&mut self, path: MergePath) {
        let other = &mut self.read[path.other().index()];
        other.unread = other.unread.saturating_add(1);
        self.read[path.index()].unread = 0;
    }

    fn note_time(&mut self, path: MergePath, time_ns: u64) {
        let own = &mut self.read[path.index()];
        let latest = own.until_ns.unwrap_or_default();
        if latest.saturating_sub(time_ns) < LIVENESS_NS {
            own.until_ns = Some(latest.max(time_ns));
            return;
        }
        // The times of a path are in order, so the clock was set back.
        own.until_ns = Some(time_ns);
        for stream in self.streams.values_mut() {
            stream.set_back(time_ns);
        }
        if let Some(fingerprints) = &mut self.fingerprints {
            fingerprints.set_back(time_ns);
        }
    }

    /// Returns the time up to which both paths were read.
    fn clock_ns(&self) -> u64 {
        let is_read = |read: &&ReadPosition| read.unread <= MAX_UNREAD;
        let read = self.read.iter().filter(is_read);
        read.filter_map(|r| r.until_ns).min().unwrap_or_default()
    }

    /// Takes a packet of a path, in the order of arrival on this path. [`Merger::take_steps`]
    /// returns what is passed on then.
    pub fn push(
        &mut self,
        path: MergePath,
        packet: &MergePacket<'_>,
        time_ns: u64,
    ) -> MergeOutcome {
        self.note_time(path, time_ns);
        self.statistics.received[path.index()] += 1;
        let sequence = packet
            .payload
            .and_then(|payload| PacketNumber::read(self.by, payload));
        let Some(sequence) = sequence else {
            return self.compare_payload(path, packet, time_ns);
        };
        let (group, port) = packet.flow();
        let key = (group, port, sequence.stream);
        let (clock_ns, is_full) = (self.clock_ns(), self.held.is_full());
        if !self.streams.contains_key(&key) && !self.add_stream(key, sequence.bits, time_ns) {
            return self.compare_payload(path, packet, time_ns);
        }
        let Some(stream) = self.streams.get_mut(&key) else {
            return MergeOutcome::Late;
        };
        let was_waiting = stream.is_waiting();
        let arrival = NumberedPacket {
            path: path.index(),
            number: sequence.number,
            time_ns,
            clock_ns,
            is_full,
        };
        let fate = stream.push(arrival, &mut self.steps, &mut self.statistics);
        self.waiting += usize::from(stream.is_waiting());
        self.waiting -= usize::from(was_waiting);
        match fate {
            Fate::Passed => MergeOutcome::Passed,
            Fate::Held(place) => MergeOutcome::Held(HeldAs { stream: key, place }),
            Fate::Duplicate => MergeOutcome::Duplicate,
            Fate::Late => MergeOutcome::Late,
        }
    }

    /// Adds a stream, in place of silent ones if there are many. Returns false if there are too many.
    fn add_stream(&mut self, key: StreamKey, bits: u32, now_ns: u64) -> bool {
        if self.streams.len() >= FAST_STREAMS {
            self.end_silent(now_ns);
        }
        if self.streams.len() >= MAX_STREAMS {
            return false;
        }
        let max_slots = match self.streams.len() {
            0..FAST_STREAMS => MAX_SLOTS,
            _ => MAX_SLOTS_OF_SLOW_STREAMS,
        };
        let stream = MergedStream::new(bits, self.window_ns, max_slots, now_ns);
        self.streams.insert(key, Box::new(stream));
        true
    }

    /// Ends streams that are silent, if it is time to look for them.
    fn end_silent(&mut self, now_ns: u64) {
        // After a step back of the clock, it is time.
        let since = self.searched_ns.and_then(|at| now_ns.checked_sub(at));
        if since.is_some_and(|since_ns| since_ns < SEARCH_NS) {
            return;
        }
        self.searched_ns = Some(now_ns);
        let limit_ns = match self.streams.len() >= MAX_STREAMS {
            true => SHORT_IDLE_NS,
            false => IDLE_NS,
        };
        let is_silent = |stream: &MergedStream| now_ns.saturating_sub(stream.last_ns()) > limit_ns;
        let streams = self.streams.iter();
        let silent = streams.filter(|(_, stream)| is_silent(stream));
        let silent: Vec<StreamKey> = silent.map(|(key, _)| *key).collect();
        silent.into_iter().for_each(|key| self.end_stream(key));
    }

    fn end_stream(&mut self, key: StreamKey) {
        if let Some(mut stream) = self.streams.remove(&key) {
            self.waiting -= usize::from(stream.is_waiting());
            stream.end(&mut self.steps, &mut self.statistics);
        }
    }

    /// Passes a packet on unless it is the copy of another one.
    fn compare_payload(
        &mut self,
        path: MergePath,
        packet: &MergePacket<'_>,
        time_ns: u64,
    ) -> MergeOutcome {
        let counts = &mut self.statistics;
        counts.by_payload += 1;
        let new = || Fingerprints::new(self.window_ns);
        let fingerprints = self.fingerprints.get_or_insert_with(new);
        let fingerprint = packet.fingerprint(&self.hasher);
        match fingerprints.push(fingerprint, path, time_ns, counts) {
            None => {
                self.steps.push(Step::Current);
                MergeOutcome::Passed
            }
            Some(delay_ns) => {
                counts.duplicates[path.index()] += 1;
                counts.note_skew(match path {
                    MergePath::First => -delay_ns,
                    MergePath::Second => delay_ns,
                });
                MergeOutcome::Duplicate
            }
        }
    }

    /// Holds a packet that [`Merger::push`] wants held: a copy of `bytes`, as they leave.
    pub fn hold(&mut self, held_as: HeldAs, packet: HeldPacket, bytes: &[u8]) {
        if let Some(stream) = self.streams.get_mut(&held_as.stream) {
            stream.set_held(held_as.place, self.held.insert(packet, bytes));
        }
    }

    /// Returns a held packet.
    pub fn held(&self, number: u32) -> Option<&HeldPacket> {
        self.held.get(number)
    }

    /// Ends to hold a packet that was passed on or dropped.
    pub fn remove(&mut self, number: u32) {
        self.held.remove(number);
    }

    /// Returns what the last calls pass on, in order. The caller gives the memory back to
    /// [`Merger::recycle`].
    pub fn take_steps(&mut self) -> Vec<Step> {
        std::mem::take(&mut self.steps)
    }

    /// Takes the memory of [`Merger::take_steps`] back.
    pub fn recycle(&mut self, mut steps: Vec<Step>) {
        steps.clear();
        self.steps = steps;
    }

    /// Returns whether packets are held, so that [`Merger::poll`] must be called.
    pub fn is_waiting(&self) -> bool {
        self.waiting > 0
    }

    /// Passes on what is not waited for any more.
    pub fn poll(&mut self) {
        let clock_ns = self.clock_ns();
        for stream in self.streams.values_mut() {
            if stream.is_waiting() {
                stream.poll(clock_ns, &mut self.steps, &mut self.statistics);
                self.waiting -= usize::from(!stream.is_waiting());
            }
        }
    }

    /// Passes on everything that is held.
    pub fn flush(&mut self) {
        let clock_ns = self.clock_ns();
        for stream in self.streams.values_mut() {
            stream.flush(clock_ns, &mut self.steps, &mut self.statistics);
        }
        self.waiting = 0;
    }

    /// Returns the counts, with all losses until now. `now_ns` is the time of the receive times.
    pub fn statistics(&mut self, now_ns: u64) -> MergeStatistics {
        let earliest_ns = now_ns.saturating_sub(MAX_STALL_NS);
        let now_ns = now_ns.min(self.clock_ns().max(earliest_ns));
        let mut peak = 0;
        let counts = &mut self.statistics;
        for stream in self.streams.values_mut() {
            let clock_ns = match stream.is_waiting() {
                true => stream.last_ns(),
                false => now_ns,
            };
            stream.settle(clock_ns, counts);
            peak = peak.max(stream.peak_skew_ns());
        }
        if let Some(fingerprints) = &mut self.fingerprints {
            fingerprints.expire(now_ns, counts);
        }
        MergeStatistics {
            peak_skew_ns: peak,
            streams: self.streams.len() as u64,
            holding: self.held.len() as u64,
            ..*counts
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use etherparse::PacketBuilder;

    use super::*;
    use crate::model::MergePath::{First, Second};
    use crate::wire::ip::IpHeader;

    const START_NS: u64 = 1_000_000 * LIVENESS_NS;

    fn merger(by: MergeBy) -> Merger {
        Merger::new(&MergeRule {
            path: First,
            with: "eth1".parse().unwrap(),
            window: Duration::from_millis(50),
            by,
        })
    }

    /// Pushes an RTP packet with this SSRC and sequence number.
    fn push(
        merger: &mut Merger,
        path: MergePath,
        (ssrc, number): (u32, u16),
        now_ns: u64,
    ) -> MergeOutcome {
        let mut payload = vec![0x80, 96];
        payload.extend(number.to_be_bytes());
        payload.extend([0; 4]);
        payload.extend(ssrc.to_be_bytes());
        let builder = PacketBuilder::ipv4([10, 0, 0, 1], [239, 1, 1, 1], 7).udp(4000, 5004);
        let mut bytes = Vec::new();
        builder.write(&mut bytes, &payload).unwrap();
        let header = IpHeader::parse(&bytes).unwrap();
        let packet = MergePacket::new(&header, &bytes, header.destination);
        let outcome = merger.push(path, &packet, now_ns);
        let steps = merger.take_steps();
        merger.recycle(steps);
        outcome
    }

    /// The counts are read when only one of two copies was.
    #[test]
    fn copies_that_are_read_late_are_recognised() {
        for by in [MergeBy::Payload, MergeBy::Rtp] {
            let mut merger = merger(by);
            let first = push(&mut merger, First, (1, 0), START_NS);
            assert_eq!(first, MergeOutcome::Passed);
            let read_ns = START_NS + 2 * LIVENESS_NS;
            assert_eq!(merger.statistics(read_ns).lost, [0, 0]);
            let copy = push(&mut merger, Second, (1, 0), START_NS + 10_000_000);
            assert_eq!(copy, MergeOutcome::Duplicate);
            assert_eq!(merger.statistics(read_ns).lost, [0, 0]);
            // One that does not come is lost.
            push(&mut merger, First, (1, 1), read_ns);
            let later_ns = read_ns + MAX_STALL_NS + LIVENESS_NS;
            assert_eq!(merger.statistics(later_ns).lost, [0, 1]);
        }
    }

    /// A sender has another SSRC after each restart.
    #[test]
    fn streams_that_ended_do_not_shrink_later_windows() {
        let mut merger = merger(MergeBy::Rtp);
        for ssrc in 0..FAST_STREAMS as u32 {
            push(&mut merger, First, (ssrc, 0), START_NS);
        }
        let later_ns = START_NS + IDLE_NS + 1;
        push(&mut merger, First, (1000, 0), later_ns);
        assert_eq!(merger.streams.len(), 1);
        // The second path is ahead by more than the window of a slow stream.
        let number = MAX_SLOTS_OF_SLOW_STREAMS as u16 + 1000;
        let outcome = push(&mut merger, Second, (1000, number), later_ns);
        assert!(matches!(outcome, MergeOutcome::Held(_)), "{outcome:?}");
    }

    #[test]
    fn streams_beyond_the_limit_cost_one_search_a_second() {
        let mut merger = merger(MergeBy::Rtp);
        for ssrc in 0..MAX_STREAMS as u32 {
            push(&mut merger, First, (ssrc, 0), START_NS);
        }
        for ssrc in 0..1000 {
            let now_ns = START_NS + u64::from(ssrc);
            push(&mut merger, First, (1_000_000 + ssrc, 0), now_ns);
        }
        assert_eq!(merger.searched_ns, Some(START_NS));
        assert_eq!(merger.statistics.by_payload, 1000);
        // Silent streams give their places to others.
        let later_ns = START_NS + SHORT_IDLE_NS + 1;
        push(&mut merger, First, (2_000_000, 0), later_ns);
        assert_eq!(merger.searched_ns, Some(later_ns));
        assert_eq!(merger.streams.len(), 1);
    }
}
