//! Two paths of one stream become one.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{cases, route};
use crate::lab::numbered_stream::{NumberedReceiver, sequence_number, stay_on_one_core};
use crate::lab::random::Random;
use crate::lab::router::measures;
use crate::lab::{Capture, Injector, Lab, Router, Star, TIMEOUT, Udp, eventually, wait_until};

cases!("merge":
    independent_losses_of_two_paths_are_repaired,
    correlated_losses_with_reordering_are_the_joint_loss,
    wrapping_rtp_stream_leaves_with_the_source_of_the_first_path,
    second_path_with_another_group_leaves_as_the_first,
    restarted_sender_loses_and_doubles_nothing,
    path_that_dies_and_returns_interrupts_nothing,
    packets_without_number_are_merged_by_their_payload,
    reload_merges_ingresses_of_two_threads,
    merge_is_explained_and_not_left_to_the_kernel,
    monitored_merge_shows_the_losses_of_each_path,
    high_rate_is_merged_without_loss,
);

const GROUP: &str = "239.1.1.1";
const DST: &str = "239.1.1.1:5004";

/// The sender on the first path, and on the second.
const SOURCES: [&str; 2] = ["10.0.0.10:4000", "10.0.2.10:4000"];

/// A skew of which a packet of the other path arrives within the window even on a busy machine.
const WINDOW: &str = "window = \"1s\"";

/// Returns the settings of a merge of the two paths of [`start`].
fn settings(by: &str) -> String {
    let merge = format!("merge = {{ with = \"out2\", {WINDOW}, by = {by} }}\n");
    route("feed", "in", "", GROUP, &["out1"], &merge)
}

const BY_FIELD: &str = "{ offset = 0, bytes = 4 }";

/// A router with two paths from a sender, `in` and `out2`, and a receiver behind `out1`.
struct Paths {
    star: Star,
    router: Router,
    injectors: [Injector; 2],
    /// Group and port of the packets on each path.
    destinations: [&'static str; 2],
    /// What arrives at the router on each path.
    arrived: [Capture; 2],
    received: Capture,
}

fn start(lab: &Lab, toml: &str) -> Paths {
    let star = Star::v4(lab, 2);
    let router = Router::start(lab, &star.rtr, toml);
    Paths {
        injectors: [
            Injector::new(&star.src, "eth0"),
            Injector::new(&star.rcv, "eth2"),
        ],
        arrived: [
            Capture::new(&star.rtr, "in"),
            Capture::new(&star.rtr, "out2"),
        ],
        destinations: [DST; 2],
        received: Capture::new(&star.rcv, "eth1"),
        router,
        star,
    }
}

/// What a path does with the packets of the stream.
struct Impairment<'a> {
    delay_ms: u64,
    /// The longest further delay. It is random, so packets are reordered.
    jitter_us: u64,
    is_lost: &'a dyn Fn(usize) -> bool,
}

impl Impairment<'_> {
    fn delay(delay_ms: u64) -> Self {
        Self {
            delay_ms,
            jitter_us: 0,
            is_lost: &|_| false,
        }
    }
}

impl Paths {
    /// Sends packets with these payloads a millisecond apart on both paths. The kernel may have no
    /// `netem`, so the sender delays and loses them itself.
    fn send(&self, payloads: &[Vec<u8>], paths: [Impairment<'_>; 2]) {
        let mut random = Random::default();
        let mut schedule = Vec::new();
        for (path, impairment) in paths.iter().enumerate() {
            for (at, payload) in payloads.iter().enumerate() {
                if (impairment.is_lost)(at) {
                    continue;
                }
                let jitter = random.below(impairment.jitter_us as usize + 1) as u64;
                let due_us = (at as u64 + impairment.delay_ms) * 1000 + jitter;
                let udp = Udp::new(SOURCES[path], self.destinations[path], payload);
                let frame = udp.id(at as u16).frame();
                schedule.push((Duration::from_micros(due_us), path, frame));
            }
        }
        schedule.sort_by_key(|(due, ..)| *due);
        stay_on_one_core();
        let began = Instant::now();
        for (due, path, frame) in schedule {
            std::thread::sleep(due.saturating_sub(began.elapsed()));
            self.injectors[path].send(&frame);
        }
    }

    /// Returns the number of each packet that arrived on a path.
    fn arrived(&self, number: fn(&[u8]) -> u32) -> [BTreeSet<u32>; 2] {
        [0, 1].map(|path| {
            let (group, _) = self.destinations[path].split_once(':').expect("a port");
            let packets = self.arrived[path].to(group);
            packets
                .iter()
                .map(|packet| number(packet.payload()))
                .collect()
        })
    }

    /// Waits until the receiver has each packet that arrived on a path, and checks that it has
    /// nothing else, each once, and in this order if `in_order`.
    #[track_caller]
    fn expect_union(&self, number: fn(&[u8]) -> u32, in_order: bool) {
        let mut all = Vec::new();
        let received = || -> Vec<u32> {
            let packets = self.received.to(GROUP);
            packets
                .iter()
                .map(|packet| number(packet.payload()))
                .collect()
        };
        eventually("the union arrives", true, || {
            let [first, second] = self.arrived(number);
            all = first.union(&second).copied().collect();
            received().len() >= all.len()
        });
        let mut received = received();
        if !in_order {
            received.sort_unstable();
        }
        let missing = all.iter().filter(|n| !received.contains(n));
        let missing: Vec<_> = missing.take(10).collect();
        assert!(
            received == all,
            "{} of {}: no {missing:?}",
            received.len(),
            all.len()
        );
    }

    /// Waits until a counter of the merge has this value.
    #[track_caller]
    fn expect(&self, counter: &str, path: Option<&str>, expected: u64) {
        let name = format!("mcastor_merge_{counter}_total");
        let mut labels = vec![("route", "feed")];
        labels.extend(path.map(|path| ("path", path)));
        self.router.expect_metric(&name, &labels, expected);
    }
}

fn numbered(count: u32) -> Vec<Vec<u8>> {
    (0..count).map(|n| n.to_be_bytes().to_vec()).collect()
}

/// Returns RTP packets, whose payload has a number that does not wrap.
fn rtp(numbers: impl Iterator<Item = u16>) -> Vec<Vec<u8>> {
    let packet = |(at, number): (usize, u16)| {
        let mut packet = vec![0x80, 33, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4];
        packet[2..4].copy_from_slice(&number.to_be_bytes());
        packet.extend((at as u32).to_be_bytes());
        packet
    };
    numbers.enumerate().map(packet).collect()
}

fn number_after_rtp(payload: &[u8]) -> u32 {
    sequence_number(&payload[12..])
}

/// Returns which of `count` packets are lost, each with a probability of `percent`.
fn random_losses(count: usize, percent: usize, seed: u64) -> Vec<bool> {
    let mut random = Random::new(seed << 32);
    // The first numbers of a generator depend much on its seed.
    (0..10).for_each(|_| {
        random.next();
    });
    // The first packet of both paths begins the stream.
    (0..count)
        .map(|at| at > 0 && random.below(100) < percent)
        .collect()
}

fn independent_losses_of_two_paths_are_repaired(lab: &Lab) {
    let paths = start(lab, &settings(BY_FIELD));
    let lost = [random_losses(1500, 5, 1), random_losses(1500, 5, 2)];
    let first = Impairment {
        is_lost: &|at| lost[0][at],
        ..Impairment::delay(0)
    };
    let second = Impairment {
        is_lost: &|at| lost[1][at],
        ..Impairment::delay(30)
    };
    paths.send(&numbered(1500), [first, second]);
    paths.expect_union(sequence_number, true);
    let [first, second] = paths.arrived(sequence_number);
    let both = first.intersection(&second).count() as u64;
    let all = first.union(&second).count() as u64;
    paths.router.expect_metric(
        "mcastor_dropped_packets_total",
        &[("reason", "merge_duplicate")],
        both,
    );
    paths.expect("received_packets", Some("first"), first.len() as u64);
    paths.expect("received_packets", Some("second"), second.len() as u64);
    // The last packet may be lost on both paths, which then nobody can notice.
    let sent = u64::from(first.union(&second).last().expect("packets") + 1);
    paths.expect("lost_on_both_packets", None, sent - all);
    paths.expect("late_packets", None, 0);
    let before_last = |path: &BTreeSet<u32>| path.range(..sent as u32).count() as u64;
    paths.expect("lost_packets", Some("first"), sent - before_last(&first));
    paths.expect("lost_packets", Some("second"), sent - before_last(&second));
    let shown = paths.router.run("show routes");
    let losses = format!(
        "lost {} and {} of",
        sent - before_last(&first),
        sent - before_last(&second)
    );
    assert!(shown.contains("feed merges in and out2"), "{shown}");
    assert!(shown.contains(&losses), "{losses}: {shown}");
}

fn correlated_losses_with_reordering_are_the_joint_loss(lab: &Lab) {
    let paths = start(lab, &settings(BY_FIELD));
    // Bursts are lost on both paths.
    let is_in_burst = |at: usize| at % 100 >= 95;
    let lost = random_losses(1500, 5, 20);
    let first = Impairment {
        delay_ms: 0,
        jitter_us: 8000,
        is_lost: &|at| is_in_burst(at) || lost[at],
    };
    let second = Impairment {
        delay_ms: 30,
        jitter_us: 8000,
        is_lost: &|at| is_in_burst(at) || lost[(at + 750) % 1500],
    };
    paths.send(&numbered(1500), [first, second]);
    let [first, second] = paths.arrived(sequence_number);
    let arrived: BTreeSet<u32> = first.union(&second).copied().collect();
    let received = || -> Vec<u32> {
        let packets = paths.received.to(GROUP);
        packets
            .iter()
            .map(|p| sequence_number(p.payload()))
            .collect()
    };
    // Packets that were sent before the first one that arrived come too late.
    let expected = |first: u32| arrived.range(first..).copied().collect::<Vec<_>>();
    eventually("the union arrives", true, || {
        received()
            .first()
            .is_some_and(|first| received().len() >= expected(*first).len())
    });
    let received = received();
    assert!(received[0] < 20, "began with {}", received[0]);
    assert_eq!(received, expected(received[0]));
}

fn wrapping_rtp_stream_leaves_with_the_source_of_the_first_path(lab: &Lab) {
    let merge = format!("merge = {{ with = \"out2\", {WINDOW}, source = \"10.0.2.10\" }}\n");
    let toml = route("feed", "in", "10.0.0.10", GROUP, &["out1"], &merge);
    let paths = start(lab, &toml);
    let lost = [random_losses(1200, 10, 4), random_losses(1200, 10, 5)];
    let payloads = rtp((0..1200).map(|n| 65_000u16.wrapping_add(n)));
    let first = Impairment {
        is_lost: &|at| lost[0][at],
        ..Impairment::delay(25)
    };
    let second = Impairment {
        is_lost: &|at| lost[1][at],
        ..Impairment::delay(0)
    };
    paths.send(&payloads, [first, second]);
    paths.expect_union(number_after_rtp, true);
    for packet in paths.received.to(GROUP) {
        assert_eq!(packet.src.to_string(), "10.0.0.10");
        assert!(packet.udp_ok() && packet.header_ok);
        assert_eq!(packet.ttl, 15);
    }
}

fn second_path_with_another_group_leaves_as_the_first(lab: &Lab) {
    const SECOND: &str = "239.2.2.2";
    let merge = format!(
        "merge = {{ with = \"out2\", {WINDOW}, source = \"10.0.2.10\", group = \"{SECOND}\" }}\n"
    );
    let toml = route("feed", "in", "10.0.0.10", GROUP, &["out1"], &merge);
    let mut paths = start(lab, &toml);
    paths.destinations[1] = "239.2.2.2:5004";
    // Each path has the group of its own packets.
    for (interface, group) in [("in", GROUP), ("out2", SECOND)] {
        eventually("the joined group", true, || {
            let groups = paths.router.run("show groups");
            let has = |line: &str, word: &str| line.split_whitespace().any(|w| w == word);
            (groups.lines()).any(|line| has(line, interface) && line.contains(group))
        });
    }
    let lost = [random_losses(1000, 10, 11), random_losses(1000, 10, 12)];
    let first = Impairment {
        is_lost: &|at| lost[0][at],
        ..Impairment::delay(0)
    };
    let second = Impairment {
        is_lost: &|at| lost[1][at],
        ..Impairment::delay(20)
    };
    paths.send(&rtp(0..1000), [first, second]);
    paths.expect_union(number_after_rtp, true);
    for packet in paths.received.to(GROUP) {
        assert_eq!(packet.src.to_string(), "10.0.0.10");
        assert!(packet.udp_ok() && packet.header_ok);
    }
    assert_eq!(paths.received.to(SECOND).len(), 0);
    let [first, second] = paths.arrived(number_after_rtp);
    paths.expect("received_packets", Some("first"), first.len() as u64);
    paths.expect("received_packets", Some("second"), second.len() as u64);
    let text = paths
        .router
        .run("explain 10.0.2.10 239.2.2.2:5004 --iif out2");
    assert!(text.contains("merges it with in by rtp"), "{text}");
}

fn restarted_sender_loses_and_doubles_nothing(lab: &Lab) {
    let paths = start(lab, &settings("\"rtp\""));
    let lost = random_losses(1200, 10, 6);
    let numbers = (0..600).map(|n| 40_000 + n).chain((0..600).map(|n| 7 + n));
    let first = Impairment {
        is_lost: &|at| lost[at],
        ..Impairment::delay(0)
    };
    let second = Impairment {
        is_lost: &|at| at > 0 && lost[(at + 3) % 1200],
        ..Impairment::delay(30)
    };
    paths.send(&rtp(numbers), [first, second]);
    paths.expect_union(number_after_rtp, true);
    paths.expect("restarts", None, 1);
}

fn path_that_dies_and_returns_interrupts_nothing(lab: &Lab) {
    let paths = start(lab, &settings(BY_FIELD));
    let first = Impairment {
        is_lost: &|at| (400..1000).contains(&at),
        ..Impairment::delay(0)
    };
    let second = Impairment {
        is_lost: &|at| (1200..1600).contains(&at),
        ..Impairment::delay(30)
    };
    paths.send(&numbered(2000), [first, second]);
    paths.expect_union(sequence_number, true);
    paths.expect("lost_packets", Some("first"), 600);
    paths.expect("lost_packets", Some("second"), 400);
    paths.expect("lost_on_both_packets", None, 0);
    paths.expect("restarts", None, 0);
}

fn packets_without_number_are_merged_by_their_payload(lab: &Lab) {
    let paths = start(lab, &settings("\"payload\""));
    let lost = [random_losses(1000, 10, 7), random_losses(1000, 10, 8)];
    let first = Impairment {
        is_lost: &|at| lost[0][at],
        ..Impairment::delay(10)
    };
    let second = Impairment {
        is_lost: &|at| lost[1][at],
        ..Impairment::delay(0)
    };
    paths.send(&numbered(1000), [first, second]);
    paths.expect_union(sequence_number, false);
}

fn reload_merges_ingresses_of_two_threads(lab: &Lab) {
    let separate = route("feed", "in", "", GROUP, &["out1"], "ingress = \"all\"\n")
        + &route("other", "out2", "", GROUP, &["out1"], "ingress = \"all\"\n");
    let paths = start(lab, &separate);
    let delays = || [Impairment::delay(0), Impairment::delay(5)];
    paths.send(&numbered(10), delays());
    eventually("both copies arrive", 20, || paths.received.to(GROUP).len());
    paths.router.write_settings(&settings(BY_FIELD));
    paths.router.run("reload");
    eventually("the merge is in force", true, || {
        paths
            .router
            .run("show routes")
            .contains("feed merges in and out2")
    });
    // Both ingresses are served again.
    eventually("the router is ready", true, || paths.router.is_ready());
    let lost = random_losses(500, 20, 9);
    let payloads = &numbered(600)[100..];
    let first = Impairment {
        is_lost: &|at| lost[at],
        ..Impairment::delay(0)
    };
    paths.send(payloads, [first, Impairment::delay(20)]);
    eventually("each packet arrives", true, || {
        let packets = paths.received.to(GROUP);
        let numbers = packets[20..].iter().map(|p| sequence_number(p.payload()));
        numbers.eq(100..600)
    });
}

fn merge_is_explained_and_not_left_to_the_kernel(lab: &Lab) {
    let paths = start(lab, &settings(BY_FIELD));
    paths.send(&numbered(300), [Impairment::delay(0), Impairment::delay(1)]);
    paths.expect_union(sequence_number, true);
    let text = paths.router.run("explain 10.0.0.10 239.1.1.1 --iif in");
    let merges = "merges it with out2 by 4 bytes at offset 0 within 1000 ms";
    assert!(text.contains(merges), "{text}");
    let text = paths.router.run("explain 10.0.2.10 239.1.1.1 --iif out2");
    assert!(text.contains("merges it with in by"), "{text}");
    let planes = paths.router.metrics();
    let by_kernel = planes.sum("mcastor_route_packets_total", &[("plane", "ebpf")]);
    assert_eq!(by_kernel, 0.0);
}

/// Each path is a stream of its own. A loss is one of its path, also if the other path repairs it, and
/// a copy is no loss.
fn monitored_merge_shows_the_losses_of_each_path(lab: &Lab) {
    let toml = settings("\"rtp\"") + "monitor = \"rtp\"\n[monitor]\nsilent_after = \"1h\"\n";
    let paths = start(lab, &toml);
    let lost = [random_losses(1000, 5, 13), random_losses(1000, 5, 14)];
    let first = Impairment {
        is_lost: &|at| lost[0][at],
        ..Impairment::delay(0)
    };
    let second = Impairment {
        is_lost: &|at| lost[1][at],
        ..Impairment::delay(30)
    };
    paths.send(&rtp(0..1000), [first, second]);
    paths.expect_union(number_after_rtp, true);
    let arrived = paths.arrived(number_after_rtp);
    let stream = |iif: &str| -> Value {
        let text = paths
            .router
            .run(&format!("show streams --json --iif {iif}"));
        let streams: Value = serde_json::from_str(&text).expect("JSON");
        streams[0].clone()
    };
    for (iif, arrived) in ["in", "out2"].into_iter().zip(&arrived) {
        let last = *arrived.last().expect("packets");
        let lost = last + 1 - arrived.len() as u32;
        assert!(lost > 20, "{lost} on {iif}");
        let expected = json!([arrived.len(), lost, {}, "lost_before"]);
        eventually(iif, expected, || {
            let stream = stream(iif);
            let packets = &stream["ingress"]["packets"];
            let lost = &stream["lost_before"]["total"];
            json!([packets, lost, stream["lost_here"], stream["verdict"]])
        });
    }
    // Each packet leaves as one of the path that brought it in time.
    let all = arrived[0].union(&arrived[1]).count() as u64;
    eventually("packets that left", all, || {
        let sent = |iif| stream(iif)["egresses"][0]["health"]["packets"].as_u64();
        ["in", "out2"]
            .map(|iif| sent(iif).unwrap_or(0))
            .iter()
            .sum()
    });
}

/// Longest time between two bursts of a run that counts. A path that is silent for a second is not
/// waited for, so the losses of a sender that gets no time are not those of the router.
const MAX_PAUSE: Duration = Duration::from_millis(500);

/// Runs until one counts.
const MAX_RUNS: usize = 5;

/// Packets by which the sender may be ahead of the receiver at its full rate: fewer than the sockets of
/// the router have room for.
const MAX_AHEAD: u64 = 4096;

/// Longest time between two bursts of a sender that is further ahead.
const SLOW_INTERVAL: Duration = Duration::from_millis(100);

/// Sends `count` numbered packets of 200 bytes on both paths, `rate` a second on each. One thread sends
/// on both, a few packets on each in turn: two threads would get apart on a busy machine. It is slower
/// while the receiver, of which `received` returns the packets, is far behind. Returns the longest time
/// between two bursts.
fn send_numbered(
    paths: &[Injector; 2],
    count: u32,
    rate: f64,
    is_lost: &[fn(u32) -> bool; 2],
    received: impl Fn() -> u64,
) -> Duration {
    const BURST: u32 = 32;
    let mut frames = SOURCES.map(|source| {
        let frame = Udp::new(source, DST, [0; 200]).zero_checksum().frame();
        vec![frame; BURST as usize]
    });
    let interval = Duration::from_secs_f64(f64::from(BURST) / rate);
    stay_on_one_core();
    let began = Instant::now();
    let (mut last, mut longest) = (began, Duration::ZERO);
    for (n, first) in (0..).zip((0..count).step_by(BURST as usize)) {
        // Only a measurement catches up after a pause. The router takes that for a high rate and reads
        // a ring, which has room for less than a socket.
        let due = match measures() {
            true => began + interval * n,
            false => last + interval,
        };
        while Instant::now() < due {
            std::thread::sleep(Duration::from_micros(50));
        }
        wait_until(SLOW_INTERVAL, || u64::from(first) <= received() + MAX_AHEAD);
        for (path, frames) in frames.iter_mut().enumerate() {
            let numbers = (first..count.min(first + BURST)).filter(|n| !is_lost[path](*n));
            let mut kept = 0;
            for (frame, number) in frames.iter_mut().zip(numbers) {
                frame[42..46].copy_from_slice(&number.to_be_bytes());
                kept += 1;
            }
            paths[path].send_all(&frames[..kept]);
            let now = Instant::now();
            longest = longest.max(now - std::mem::replace(&mut last, now));
        }
    }
    longest
}

/// With `MCASTOR_BINARY`, at 300,000 packets a second on each path, whether they can be read or not.
fn high_rate_is_merged_without_loss(lab: &Lab) {
    // The senders of a busy machine may be further apart than those of the goal.
    let toml = match measures() {
        true => settings(BY_FIELD).replace(WINDOW, "window = \"50ms\""),
        false => settings(BY_FIELD),
    };
    let (rate, count) = match measures() {
        true => (300_000.0, 1_500_000u32),
        false => (10_000.0, 20_000),
    };
    // Each path loses other packets, a few of them on both.
    let is_lost = [|n: u32| n % 20 == 7, |n: u32| n % 21 == 7];
    let lost_on_both = (0..count).filter(|n| is_lost.iter().all(|f| f(*n))).count() as u64;
    let goal = u64::from(count) - lost_on_both;
    for _ in 0..MAX_RUNS {
        let paths = start(lab, &toml);
        drop(paths.arrived);
        drop(paths.received);
        let receiver = NumberedReceiver::start(&paths.star.rcv, "eth1", GROUP);
        if measures() {
            // The sender and the receiver would be other machines.
            paths.router.program.raise_priority();
        }
        let began = Instant::now();
        // A thread of its own, which each time stays on the core that is free then.
        let received = || match measures() {
            true => u64::from(count),
            false => receiver.received(),
        };
        let sender = || send_numbered(&paths.injectors, count, rate, &is_lost, received);
        let pause = std::thread::scope(|scope| scope.spawn(sender).join()).expect("the sender");
        let took = began.elapsed();
        if pause > MAX_PAUSE && !measures() {
            println!("the sender had no time for {pause:.1?}");
            receiver.finish();
            continue;
        }
        let is_complete = wait_until(TIMEOUT, || receiver.received() >= goal);
        let of_receiver = receiver.lost();
        let counts = receiver.finish();
        println!(
            "{count} packets on each path in {took:.1?}: {} received, {} doubled, {} late; the \
             receiver lost {of_receiver}",
            counts.numbers, counts.doubled, counts.late
        );
        assert!(is_complete, "{} of {goal} received", counts.numbers);
        assert_eq!((counts.numbers, counts.doubled, counts.late), (goal, 0, 0));
        return;
    }
    panic!("in {MAX_RUNS} runs the sender had no time");
}
