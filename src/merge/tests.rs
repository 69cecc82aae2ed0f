//! Merges of simulated paths, compared with the union of what the paths brought.

use std::collections::BTreeSet;
use std::time::Duration;

use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::stream::{MergedStream, NumberedPacket};
use super::window::MAX_SLOTS;
use super::*;
use crate::model::{InterfaceId, MergeBy, MergePath, MergeRule};
use crate::wire::ip::IpHeader;

const MS: u64 = 1_000_000;
const START: u64 = 1_000_000 * MS;
const BY_FIELD: MergeBy = MergeBy::Field {
    offset: 0,
    bytes: 4,
};

/// A packet that arrives on a path: its time and its place in the order of sending.
type Arrival = (u64, usize);

fn rule(by: MergeBy, window_ms: u64) -> MergeRule {
    MergeRule {
        path: MergePath::First,
        with: "eth1".parse().unwrap(),
        window: Duration::from_millis(window_ms),
        by,
    }
}

fn packet(payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ipv4([10, 0, 0, 1], [239, 1, 1, 1], 7).udp(4000, 5004);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, payload).unwrap();
    bytes
}

/// A merge that is read at times, and what it passes on.
struct Simulation {
    merger: Merger,
    payloads: Vec<Vec<u8>>,
    now_ns: u64,
    /// What was passed on, with the time.
    passed: Vec<(usize, u64)>,
    expired: usize,
}

impl Simulation {
    fn new(rule: &MergeRule, payloads: Vec<Vec<u8>>) -> Self {
        Self {
            merger: Merger::new(rule),
            payloads,
            now_ns: START,
            passed: Vec::new(),
            expired: 0,
        }
    }

    fn push(&mut self, path: MergePath, (time_ns, at): Arrival) {
        let bytes = packet(&self.payloads[at]);
        let header = IpHeader::parse(&bytes).unwrap();
        let merge_packet = MergePacket::new(&header, &bytes, header.destination);
        let outcome = self.merger.push(path, &merge_packet, time_ns);
        self.take_steps(Some(at));
        if let MergeOutcome::Held(held_as) = outcome {
            let held = HeldPacket {
                bytes: Vec::new(),
                path,
                ingress: InterfaceId::new(1).unwrap(),
                stream: (header.source, header.destination),
                monitored: None,
                ttl: 7,
                // Identifies the packet.
                received_ns: at as u64,
            };
            self.merger.hold(held_as, held, &bytes);
        }
    }

    fn take_steps(&mut self, current: Option<usize>) {
        let steps = self.merger.take_steps();
        for step in &steps {
            match step {
                Step::Current => self.passed.push((current.unwrap(), self.now_ns)),
                Step::Held(number) => {
                    let held = self.merger.held(*number).unwrap();
                    let at = held.received_ns as usize;
                    assert!(held.bytes.ends_with(&self.payloads[at]));
                    self.passed.push((at, self.now_ns));
                    self.merger.remove(*number);
                }
                Step::Expired(number) => {
                    self.expired += 1;
                    self.merger.remove(*number);
                }
            }
        }
        self.merger.recycle(steps);
    }

    /// Reads both paths at each of the times that are `interval_ns` apart, until everything that
    /// waits was passed on.
    fn run(&mut self, paths: &[Vec<Arrival>; 2], interval_ns: u64) {
        let mut next = [0; 2];
        let last = paths.iter().flatten().map(|(time, _)| *time).max();
        let end = last.unwrap_or(START) + 3000 * MS;
        while self.now_ns < end {
            self.now_ns += interval_ns;
            for path in MergePath::ALL {
                let arrivals = &paths[path.index()];
                while let Some(arrival) = arrivals.get(next[path.index()])
                    && arrival.0 <= self.now_ns
                {
                    next[path.index()] += 1;
                    self.push(path, *arrival);
                }
            }
            if self.merger.is_waiting() {
                for path in MergePath::ALL {
                    self.merger.note_read(path, self.now_ns);
                }
                self.merger.poll();
                self.take_steps(None);
            }
        }
        assert!(!self.merger.is_waiting());
        assert_eq!(self.merger.statistics(end + 1000 * MS).holding, 0);
    }

    fn numbers(&self) -> Vec<usize> {
        self.passed.iter().map(|(at, _)| *at).collect()
    }
}

/// Returns the arrivals of packets that are sent `interval_ns` apart, without the lost ones.
fn path(
    count: usize,
    interval_ns: u64,
    delay_ns: impl Fn(usize) -> u64,
    is_lost: impl Fn(usize) -> bool,
) -> Vec<Arrival> {
    let sent = (0..count).filter(|at| !is_lost(*at));
    let mut arrivals: Vec<Arrival> = sent
        .map(|at| (START + at as u64 * interval_ns + delay_ns(at), at))
        .collect();
    arrivals.sort();
    arrivals
}

/// Returns what both paths bring, from the first packet on that arrives: the receiver has not seen
/// the stream before.
fn union(paths: &[Vec<Arrival>; 2], interval_ns: u64) -> Vec<usize> {
    let read_at = |(time, _): &Arrival| (time - START).div_ceil(interval_ns).max(1);
    let firsts = paths.iter().filter_map(|path| path.first());
    // Within one reading, the first path is read first.
    let Some((_, first)) = firsts.min_by_key(|arrival| read_at(arrival)) else {
        return Vec::new();
    };
    let all: BTreeSet<usize> = paths.iter().flatten().map(|(_, at)| *at).collect();
    all.into_iter().filter(|at| at >= first).collect()
}

fn numbered(count: usize, first: u32) -> Vec<Vec<u8>> {
    let numbers = (0..count as u32).map(|n| first.wrapping_add(n));
    numbers.map(|n| n.to_be_bytes().to_vec()).collect()
}

fn rtp(numbers: impl Iterator<Item = u16>) -> Vec<Vec<u8>> {
    let packet = |number: u16| {
        let mut packet = vec![0x80, 33, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4];
        packet[2..4].copy_from_slice(&number.to_be_bytes());
        packet
    };
    numbers.map(packet).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    /// Also if the process reads the paths rarely, and if the numbers wrap.
    #[test]
    fn two_lossy_paths_become_their_union_in_order(
        lost in prop::collection::vec(0u8..10, 300),
        limits in (0u8..5, 0u8..5),
        delays_ms in (0u64..90, 0u64..90),
        interval_us in 200u64..6000,
        reading_ms in 1u64..40,
        first in prop::sample::select(vec![0u32, 65_400, u32::MAX - 100]),
        by_rtp: bool,
    ) {
        let interval_ns = interval_us * 1000;
        // Some are lost on both paths.
        let is_lost = [|v: u8, l: u8| v < l, |v: u8, l: u8| (v + 3) % 10 < l];
        let paths = [
            path(300, interval_ns, |_| delays_ms.0 * MS, |at| is_lost[0](lost[at], limits.0)),
            path(300, interval_ns, |_| delays_ms.1 * MS, |at| is_lost[1](lost[at], limits.1)),
        ];
        let (by, payloads) = match by_rtp {
            true => (MergeBy::Rtp, rtp((0..300).map(|n| (first as u16).wrapping_add(n)))),
            false => (BY_FIELD, numbered(300, first)),
        };
        let mut simulation = Simulation::new(&rule(by, 100), payloads);
        simulation.run(&paths, reading_ms * MS);
        prop_assert_eq!(simulation.numbers(), union(&paths, reading_ms * MS));
        let counts = simulation.merger.statistics(simulation.now_ns);
        prop_assert_eq!(counts.restarts, 0);
        prop_assert_eq!(counts.limited, 0);
    }

    /// Jitter reorders the packets of each path, and doubles some.
    #[test]
    fn reordered_and_doubled_packets_leave_once_in_order(
        seeds in prop::collection::vec((0u8..10, 0u64..25, 0u64..25, 0u8..10), 300),
        limits in (0u8..4, 0u8..4),
        delay_ms in 0u64..20,
        interval_us in 200u64..6000,
        reading_ms in 1u64..10,
    ) {
        let interval_ns = interval_us * 1000;
        let mut paths = [
            path(300, interval_ns, |at| seeds[at].1 * MS, |at| seeds[at].0 < limits.0),
            path(300, interval_ns, |at| (delay_ms + seeds[at].2) * MS, |at| 9 - seeds[at].0 < limits.1),
        ];
        for path in &mut paths {
            let doubled = path.iter().filter(|(_, at)| seeds[*at].3 == 0);
            let doubled: Vec<Arrival> = doubled.map(|(time, at)| (time + 3 * MS, *at)).collect();
            path.extend(doubled);
            path.sort();
        }
        let mut simulation = Simulation::new(&rule(BY_FIELD, 100), numbered(300, 9));
        simulation.run(&paths, reading_ms * MS);
        prop_assert_eq!(simulation.numbers(), union(&paths, reading_ms * MS));
    }

    /// The packets before the restart that are still on their way leave first.
    #[test]
    fn restarted_sender_loses_and_doubles_nothing(
        lost in prop::collection::vec(0u8..20, 400),
        delays_ms in (0u64..40, 0u64..40),
        interval_us in 500u64..5000,
        reading_ms in 1u64..10,
        jump in 20_000u16..45_000,
    ) {
        let interval_ns = interval_us * 1000;
        let paths = [
            path(400, interval_ns, |_| delays_ms.0 * MS, |at| lost[at] == 0),
            path(400, interval_ns, |_| delays_ms.1 * MS, |at| lost[at] == 1),
        ];
        let before = (0..200).map(|n| 65_500u16.wrapping_add(n));
        let after = (0..200).map(|n| 65_500u16.wrapping_add(jump).wrapping_add(n));
        let payloads = rtp(before.chain(after));
        let mut simulation = Simulation::new(&rule(MergeBy::Rtp, 100), payloads);
        simulation.run(&paths, reading_ms * MS);
        prop_assert_eq!(simulation.numbers(), union(&paths, reading_ms * MS));
        prop_assert_eq!(simulation.merger.statistics(simulation.now_ns).restarts, 1);
    }

    /// Whatever numbers a sender invents, every packet is passed on or dropped once.
    #[test]
    fn any_numbers_are_bounded_and_counted(
        packets in prop::collection::vec((any::<u16>(), any::<bool>(), 0u64..3000), 1..600),
        near in any::<bool>(),
    ) {
        let number = |n: u16| if near { n % 40 } else { n };
        let payloads = rtp(packets.iter().map(|(n, _, _)| number(*n)));
        let mut paths = [Vec::new(), Vec::new()];
        let mut time = START;
        for (at, (_, second, wait_us)) in packets.iter().enumerate() {
            time += wait_us * 1000;
            paths[usize::from(*second)].push((time, at));
        }
        let mut simulation = Simulation::new(&rule(MergeBy::Rtp, 50), payloads);
        simulation.run(&paths, 2 * MS);
        let passed: BTreeSet<usize> = simulation.numbers().into_iter().collect();
        prop_assert_eq!(passed.len(), simulation.passed.len());
        let counts = simulation.merger.statistics(simulation.now_ns);
        let dropped: u64 = counts.duplicates.iter().chain(&counts.late).sum();
        prop_assert_eq!(passed.len() as u64 + dropped, packets.len() as u64);
    }

    /// Without numbers, the first of two copies leaves at once.
    #[test]
    fn payload_copies_leave_once(
        lost in prop::collection::vec(0u8..10, 300),
        delays_ms in (0u64..40, 0u64..40),
        interval_us in 200u64..6000,
    ) {
        let interval_ns = interval_us * 1000;
        let paths = [
            path(300, interval_ns, |_| delays_ms.0 * MS, |at| lost[at] < 2),
            path(300, interval_ns, |_| delays_ms.1 * MS, |at| (1..4).contains(&lost[at])),
        ];
        let mut simulation = Simulation::new(&rule(MergeBy::Payload, 50), numbered(300, 0));
        simulation.run(&paths, MS);
        let mut passed = simulation.numbers();
        prop_assert!(longest_wait_ns(&simulation, &paths, 0) <= MS);
        passed.sort_unstable();
        let all: BTreeSet<usize> = paths.iter().flatten().map(|(_, at)| *at).collect();
        prop_assert_eq!(passed, all.into_iter().collect::<Vec<_>>());
    }
}

/// Returns the largest time for which a packet waited after its first copy had arrived.
fn longest_wait_ns(simulation: &Simulation, paths: &[Vec<Arrival>; 2], from: usize) -> u64 {
    let arrived = |at: usize| {
        let copies = paths.iter().flatten().filter(|(_, other)| *other == at);
        copies.map(|(time, _)| *time).min().unwrap()
    };
    let late = simulation.passed.iter().filter(|(at, _)| *at >= from);
    late.map(|(at, time)| time.saturating_sub(arrived(*at)))
        .max()
        .unwrap()
}

#[test]
fn added_latency_is_at_most_the_skew() {
    let skew = 30 * MS;
    // The second path lost every 20th packet, and the first one every 7th: some on both.
    let paths = [
        path(5000, MS, |_| 0, |at| at % 7 == 3),
        path(5000, MS, |_| skew, |at| at % 20 == 3),
    ];
    let mut simulation = Simulation::new(&rule(BY_FIELD, 50), numbered(5000, 0));
    simulation.run(&paths, MS);
    assert_eq!(simulation.numbers(), union(&paths, MS));
    let wait = longest_wait_ns(&simulation, &paths, 2500);
    assert!((skew - MS..=skew + 2 * MS).contains(&wait), "{wait}");
    let counts = simulation.merger.statistics(simulation.now_ns);
    let lost_on_both = (0..5000).filter(|at| at % 7 == 3 && at % 20 == 3).count() as u64;
    assert_eq!(counts.lost_on_both, lost_on_both);
    let of_first = (0..5000).filter(|at| at % 7 == 3).count() as u64;
    assert_eq!(counts.lost, [of_first, 250]);
    assert_eq!(counts.late, [0, 0]);
    assert!(
        counts.skew_ns.abs_diff(skew as i64) < MS,
        "{}",
        counts.skew_ns
    );
}

#[test]
fn packets_wait_for_nothing_while_the_other_path_is_dead() {
    let dies = 1000;
    let paths = [
        path(5000, MS, |_| 0, |at| at % 10 == 0),
        path(dies, MS, |_| 20 * MS, |_| false),
    ];
    let mut simulation = Simulation::new(&rule(BY_FIELD, 50), numbered(5000, 0));
    simulation.run(&paths, MS);
    assert_eq!(simulation.numbers(), union(&paths, MS));
    let wait = longest_wait_ns(&simulation, &paths, 3500);
    assert!(wait <= 2 * MS, "{wait}");
    let wait = longest_wait_ns(&simulation, &paths, 0);
    assert!(wait <= 52 * MS, "{wait}");
}

#[test]
fn path_that_returns_is_used_again() {
    let is_dead = |at: usize| (1000..4000).contains(&at);
    let paths = [
        path(6000, MS, |_| 0, |at| at % 10 == 5),
        path(6000, MS, |_| 20 * MS, is_dead),
    ];
    let mut simulation = Simulation::new(&rule(MergeBy::Rtp, 50), rtp((0..6000).map(|n| n as u16)));
    simulation.run(&paths, MS);
    // The path was not waited for when these were missing.
    let not_waited_for = [4005, 4015];
    let mut expected = union(&paths, MS);
    expected.retain(|at| !not_waited_for.contains(at));
    assert!(simulation.numbers() == expected);
    let counts = simulation.merger.statistics(simulation.now_ns);
    assert_eq!((counts.restarts, counts.late), (0, [0, 2]));
}

/// Such a path brings nothing new, and must not look like a sender that starts again.
#[test]
fn path_that_is_behind_by_more_than_the_window_is_late() {
    for by_rtp in [false, true] {
        let paths = [
            path(4000, MS, |_| 0, |at| at % 10 == 0),
            path(4000, MS, |_| 400 * MS, |_| false),
        ];
        let (by, payloads) = match by_rtp {
            true => (MergeBy::Rtp, rtp((0..4000).map(|n| n as u16))),
            false => (BY_FIELD, numbered(4000, 0)),
        };
        let mut simulation = Simulation::new(&rule(by, 50), payloads);
        simulation.run(&paths, MS);
        let numbers = simulation.numbers();
        let first: Vec<usize> = paths[0].iter().map(|(_, at)| *at).collect();
        // When the first path has ended, the rest of the second is new.
        assert_eq!(numbers[..first.len()], first[..]);
        assert!(numbers.is_sorted(), "{by_rtp}");
    }
}

#[test]
fn long_outage_of_both_paths_is_counted_as_loss() {
    let is_lost = |at: usize| (1000..9000).contains(&at);
    let paths = [
        path(10_000, MS, |_| 0, is_lost),
        path(10_000, MS, |_| 20 * MS, is_lost),
    ];
    let mut simulation = Simulation::new(&rule(BY_FIELD, 50), numbered(10_000, 0));
    simulation.run(&paths, MS);
    assert_eq!(simulation.numbers(), union(&paths, MS));
    let counts = simulation.merger.statistics(simulation.now_ns);
    assert_eq!((counts.lost_on_both, counts.restarts), (8000, 0));
}

/// 300,000 packets a second, and a skew that needs 9,000 packets to be held.
#[test]
fn high_rate_with_a_large_skew_is_not_limited() {
    let interval = 3_333;
    let paths = [
        path(150_000, interval, |_| 0, |at| at % 20 == 3),
        path(150_000, interval, |_| 30 * MS, |at| at % 20 == 7),
    ];
    for by_rtp in [false, true] {
        let (by, payloads) = match by_rtp {
            true => (MergeBy::Rtp, rtp((0..150_000u32).map(|n| n as u16))),
            false => (BY_FIELD, numbered(150_000, 0)),
        };
        let mut simulation = Simulation::new(&rule(by, 50), payloads);
        simulation.run(&paths, 2 * MS);
        assert_eq!(simulation.numbers(), union(&paths, 2 * MS), "{by_rtp}");
        let counts = simulation.merger.statistics(simulation.now_ns);
        assert_eq!((counts.limited, counts.restarts), (0, 0));
    }
}

/// The limit gives up missing packets instead of dropping those that arrive.
#[test]
fn limit_of_held_packets_passes_them_on_in_order() {
    let paths = [
        path(100_000, 1_000, |_| 0, |at| at == 5),
        path(100_000, 1_000, |_| 900 * MS, |at| at != 0 && at != 5),
    ];
    let mut simulation = Simulation::new(&rule(BY_FIELD, 1000), numbered(100_000, 0));
    simulation.run(&paths, 2 * MS);
    let numbers = simulation.numbers();
    assert!(numbers.is_sorted());
    assert_eq!(numbers.len(), 99_999);
    assert!(simulation.merger.statistics(simulation.now_ns).limited > 0);
}

#[test]
fn many_streams_fall_back_to_their_payload() {
    let payload = |stream: u32| {
        let mut packet = rtp(std::iter::once(7)).remove(0);
        packet[8..12].copy_from_slice(&stream.to_be_bytes());
        packet
    };
    let payloads: Vec<_> = (0..3000).map(payload).collect();
    let paths = [
        path(3000, 100_000, |_| 0, |_| false),
        path(3000, 100_000, |_| 2 * MS, |_| false),
    ];
    let mut simulation = Simulation::new(&rule(MergeBy::Rtp, 50), payloads);
    simulation.run(&paths, MS);
    assert_eq!(simulation.numbers(), (0..3000).collect::<Vec<_>>());
    let counts = simulation.merger.statistics(simulation.now_ns);
    assert_eq!(counts.streams, 1024);
    assert_eq!(counts.by_payload, 2 * (3000 - 1024));
}

/// The process could not read for longer than the window, and then reads all of one path first.
#[test]
fn stall_of_the_process_is_no_loss() {
    let paths = [
        path(4000, MS, |_| 0, |at| at % 10 == 3),
        path(4000, MS, |_| 30 * MS, |at| at % 10 == 7),
    ];
    let mut simulation = Simulation::new(&rule(BY_FIELD, 50), numbered(4000, 0));
    for path in MergePath::ALL {
        simulation.merger.note_read(path, START);
    }
    simulation.run(&paths, 500 * MS);
    assert_eq!(simulation.numbers(), union(&paths, 500 * MS));
}

#[test]
fn clock_that_is_set_back_withholds_no_packets() {
    let (hour, step) = (3_600_000 * MS, 2500);
    let clock = |ms: usize| START + ms as u64 * MS + if ms < step { hour } else { 0 };
    let mut simulation = Simulation::new(&rule(BY_FIELD, 50), numbered(4000, 0));
    let mut passed = 0;
    for ms in 0..4100 {
        simulation.now_ns = clock(ms);
        if ms < 4000 && ms % 10 != 3 {
            simulation.push(MergePath::First, (clock(ms), ms));
        }
        // What both lose is missing when the clock is set back.
        let of_second = ms.checked_sub(20).filter(|at| *at < 4000 && *at != 2483);
        if let Some(at) = of_second {
            simulation.push(MergePath::Second, (clock(ms), at));
        }
        for path in MergePath::ALL {
            simulation.merger.note_read(path, clock(ms));
        }
        simulation.merger.poll();
        simulation.take_steps(None);
        if ms == step + 100 {
            passed = simulation.passed.len();
        }
    }
    assert!(passed > step, "{passed}");
    let expected: Vec<usize> = (0..4000).filter(|at| *at != 2483).collect();
    assert_eq!(simulation.numbers(), expected);
}

/// Returns a packet that arrives on the first path at `time_ns`.
fn on_first_path(number: u64, time_ns: u64) -> NumberedPacket {
    NumberedPacket {
        path: 0,
        number,
        time_ns,
        clock_ns: time_ns,
        is_full: false,
    }
}

/// A sender may choose any numbers. The work for them is bounded by the number of its packets.
#[test]
fn skipped_numbers_are_bounded_by_the_packets() {
    let mut stream = MergedStream::new(32, 50 * MS, MAX_SLOTS, START);
    let (mut steps, mut counts) = (Vec::new(), MergeStatistics::default());
    let (packets, mut number) = (3000, 0);
    for n in 0..packets {
        // The window grows at first.
        number += if n < 1000 { 500 } else { 60_000 };
        let packet = on_first_path(number, START + n * 1000);
        stream.push(packet, &mut steps, &mut counts);
        steps.clear();
    }
    let most = MAX_SLOTS as u64 + packets * 512;
    assert!(counts.lost_on_both <= most, "{counts:?}");
}

/// The largest distance of numbers of 64 bits has no absolute value.
#[test]
fn opposite_numbers_are_no_restart() {
    let mut stream = MergedStream::new(64, 50 * MS, MAX_SLOTS, START);
    let (mut steps, mut counts) = (Vec::new(), MergeStatistics::default());
    for (n, number) in [0, 1 << 62, 3 << 62].into_iter().enumerate() {
        let packet = on_first_path(number, START + n as u64 * MS);
        stream.push(packet, &mut steps, &mut counts);
    }
    assert_eq!(counts.restarts, 0);
}
