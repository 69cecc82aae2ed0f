//! Attacks by hosts and clients, while a counted stream, joins of other hosts and health probes run
//! beside them.
//!
//! Each test prints what it measured. Run it with a release build in `MCASTOR_BINARY` to measure;
//! the bounds of the tests allow for a busy machine and a build that is not optimised.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::joins::records;
use mcastor::sys::thread_priority::run_in_background;

use super::{cases, route};
use crate::lab::proxy::{checksummed, igmp_frame, proxy, report};
use crate::lab::{
    Capture, Injector, Lab, NumberedStream, Router, Star, Udp, eventually, measures, missing,
    received_in_order, wait_until,
};

cases!("attacks":
    report_flood_does_not_delay_other_interfaces,
    jumbo_report_flood_does_not_delay_other_interfaces,
    removed_egresses_lose_no_packet,
    renames_lose_no_packet,
    flow_queries_lose_no_packet,
    #[Program("prlimit", "util-linux")]
    joins_leave_descriptors_for_control_and_http,
);

const GROUP: &str = "239.9.9.9";

/// A record of an IGMPv3 report: type, group, sources.
type Record = (u8, [u8; 4], Vec<[u8; 4]>);

/// An IGMPv3 report with these records.
fn v3_report(records: &[Record]) -> Vec<u8> {
    let mut body = vec![0x22, 0, 0, 0, 0, 0];
    body.extend((records.len() as u16).to_be_bytes());
    for (kind, group, sources) in records {
        body.extend([*kind, 0]);
        body.extend((sources.len() as u16).to_be_bytes());
        body.extend(group);
        body.extend(sources.concat());
    }
    checksummed(&body)
}

/// Prints the median, the 99th percentile and the maximum. Returns the maximum.
fn print_latencies(what: &str, mut latencies: Vec<Duration>) -> Duration {
    latencies.sort_unstable();
    let at = |part: f64| latencies[((latencies.len() - 1) as f64 * part) as usize];
    let max = at(1.0);
    println!(
        "{what}: {} times, median {:?}, p99 {:?}, maximum {max:?}",
        latencies.len(),
        at(0.5),
        at(0.99)
    );
    max
}

/// A host sends 2,400 reports a second, each with 183 TO_IN {} records about groups that have 256
/// sources. Each record causes a query about the 256 sources.
fn report_flood_does_not_delay_other_interfaces(lab: &Lab) {
    assert_flood_is_bounded(lab, 183, 2400.0);
}

/// The same with reports of 9,000 bytes. 320 a second contain almost as many records.
fn jumbo_report_flood_does_not_delay_other_interfaces(lab: &Lab) {
    assert_flood_is_bounded(lab, 1120, 320.0);
}

/// Sends `rate` reports a second with this number of records, beside a stream and joins of another
/// interface.
fn assert_flood_is_bounded(lab: &Lab, records_each: usize, rate: f64) {
    const ALLOW: u8 = 5;
    const TO_IN: u8 = 3;
    let star = Star::v4(lab, 2);
    star.rtr.ip("link set out1 mtu 9000");
    star.rcv.ip("link set eth1 mtu 9000");
    let upstream = Capture::new(&star.src, "eth0");
    let delivered = Capture::new(&star.rcv, "eth2");
    let toml = proxy(&["in"], &["out1", "out2"], "").replace("\"2s\"", "\"20s\"");
    let router = Router::start(lab, &star.rtr, &toml);
    let (attacker, member) = (
        Injector::new(&star.rcv, "eth1"),
        Injector::new(&star.rcv, "eth2"),
    );
    let from_attacker = |body: &[u8]| igmp_frame([10, 0, 1, 66], [224, 0, 0, 22], body, 1, true);
    let from_member = |body: &[u8]| igmp_frame([10, 0, 2, 10], [224, 0, 0, 22], body, 1, true);
    let joined = |wire: &Capture, group: [u8; 4]| {
        let group = group.map(|byte| byte.to_string()).join(".");
        records(wire).iter().any(|record| record.1 == group)
    };
    let source = |n: u16| [10, 7, (n >> 8) as u8, n as u8];
    let groups: Vec<[u8; 4]> = (1..=64).map(|n| [239, 1, 1, n]).collect();
    let create_groups = || {
        for group in &groups {
            let sources = (0..256).map(source).collect();
            attacker.send(&from_attacker(&v3_report(&[(ALLOW, *group, sources)])));
        }
    };
    create_groups();
    eventually("the groups of the attacker are joined", true, || {
        groups.iter().all(|group| joined(&upstream, *group))
    });
    member.send(&from_member(&report([239, 9, 9, 9])));
    eventually("the stream is joined", true, || {
        joined(&upstream, [239, 9, 9, 9])
    });
    drop(upstream);
    let stream = NumberedStream::start(&star.src, "eth0", "10.0.0.10:9", "239.9.9.9:5000", 2000);
    stream.wait_for_more(100);

    let records = (0..records_each).map(|n| (TO_IN, groups[n % groups.len()], Vec::new()));
    let attack = from_attacker(&v3_report(&records.collect::<Vec<_>>()));
    let (stopped, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let is_query = |packet: &crate::lab::IpPacket| packet.protocol == 2 && packet.body()[0] == 0x11;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // A build that is not optimised gets a lower rate.
            let rate = if measures() { rate } else { rate / 4.0 };
            let start = Instant::now();
            while !stopped.load(Ordering::Relaxed) && sent.load(Ordering::Relaxed) < 60_000 {
                let due = (start.elapsed().as_secs_f64() * rate) as u64;
                while sent.load(Ordering::Relaxed) < due {
                    attacker.send(&attack);
                    // The sources end a second after the query if no host reports them.
                    if sent.fetch_add(1, Ordering::Relaxed) % 1200 == 0 {
                        create_groups();
                    }
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        eventually("the attack runs", true, || {
            sent.load(Ordering::Relaxed) as f64 > rate / 4.0
        });
        let (mut joins, mut probes) = (Vec::new(), Vec::new());
        for n in 1..=50 {
            // A new capture for each join: the attacker causes many reports upstream.
            let wire = Capture::new(&star.src, "eth0");
            let start = Instant::now();
            let group = [239, 2, 2, n];
            // On a busy machine, the fifty rounds take longer than a membership lasts.
            member.send(&from_member(&report([239, 9, 9, 9])));
            member.send(&from_member(&report(group)));
            assert!(
                wait_until(Duration::from_secs(10), || joined(&wire, group)),
                "join {n} has no effect"
            );
            joins.push(start.elapsed());
            delivered.collect();
            let start = Instant::now();
            let health = router.get("/healthz").expect("an answer");
            probes.push(start.elapsed());
            assert_eq!(health.status, 200, "{}", health.body);
            let answered = router.try_run("show interfaces").status.success();
            assert!(answered, "the control socket answers");
        }
        assert_none_lost(stream, &delivered);
        let join = print_latencies("joins on another interface", joins);
        let probe = print_latencies("/healthz", probes);
        let limit = match measures() {
            true => Duration::from_millis(500),
            false => Duration::from_secs(10),
        };
        assert!(join < limit, "{join:?}");
        assert!(probe < limit, "{probe:?}");
        let queries = Capture::new(&star.rcv, "eth2");
        let leave = from_member(&v3_report(&[(TO_IN, [239, 2, 2, 50], Vec::new())]));
        eventually("the leave is queried", true, || {
            // On a busy machine the membership may have ended, or the leave may have been lost.
            member.send(&from_member(&report([239, 2, 2, 50])));
            member.send(&leave);
            queries.to("239.2.2.50").iter().any(is_query)
        });
        let refused = router.metric("mcastor_membership_refused_total", &[("iface", "out1")]);
        let start = Instant::now();
        router.stop();
        let stop = start.elapsed();
        println!(
            "{} reports, {refused} refused; stopped in {stop:?}",
            sent.load(Ordering::Relaxed)
        );
        stopped.store(true, Ordering::Relaxed);
        assert!(stop < Duration::from_secs(5), "{stop:?}");
        assert!(refused > 100.0, "{refused}");
    });
}

/// Starts a counted stream from `in` to `out1`, and captures it.
fn counted_stream(star: &Star) -> (NumberedStream, Capture) {
    let delivered = Capture::new(&star.rcv, "eth1");
    let stream = NumberedStream::start(&star.src, "eth0", "10.0.0.10:9", "239.9.9.9:5000", 2000);
    stream.wait_for_more(100);
    (stream, delivered)
}

/// Ends the stream. Each of its packets must have arrived once, in order.
#[track_caller]
fn assert_none_lost(stream: NumberedStream, delivered: &Capture) {
    let sent = stream.finish();
    eventually("the last packet arrives", true, || {
        received_in_order(delivered, GROUP).last() == Some(&(sent - 1))
    });
    let lost = missing(sent, &received_in_order(delivered, GROUP));
    assert_eq!(lost.len(), 0, "lost of {sent}");
}

/// Closing the sockets of an egress takes the kernel 16 ms.
fn removed_egresses_lose_no_packet(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let toml = route("r", "in", "", GROUP, &["out1"], "")
        + &route("churn", "in", "", "239.8.0.0/16", &["v*"], "");
    let router = Router::start(lab, &star.rtr, &toml);
    let (stream, delivered) = counted_stream(&star);
    let count = if measures() { 1000 } else { 100 };
    let lines = |line: &dyn Fn(u32) -> String| (0..count).map(line).collect::<String>();
    for _ in 0..3 {
        star.rtr.ip_batch(&lines(&|n| {
            format!("link add v{n} type veth peer name w{n}\nlink set w{n} up\nlink set v{n} up\n")
        }));
        eventually("the egresses are up", f64::from(count), || {
            let metrics = router.metrics();
            let up = metrics.matching("mcastor_interface_up", &[]);
            up.filter(|up| up.labels["iface"].starts_with('v') && up.value == 1.0)
                .count() as f64
        });
        star.rtr.ip_batch(&lines(&|n| format!("link del v{n}\n")));
    }
    stream.wait_for_more(500);
    assert_none_lost(stream, &delivered);
}

/// 800 renames of an egress a second.
fn renames_lose_no_packet(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let toml = route("r", "in", "", GROUP, &["out1"], "")
        + &route("churn", "in", "", "239.8.0.0/16", &["v*"], "");
    let router = Router::start(lab, &star.rtr, &toml);
    star.rtr
        .ip_batch("link add v0 type veth peer name w0\nlink set w0 up\nlink set v0 up\n");
    eventually("the egress is up", 1.0, || {
        router.metric("mcastor_interface_up", &[("iface", "v0")])
    });
    let (stream, delivered) = counted_stream(&star);
    let (start, mut renames) = (Instant::now(), 0);
    let there_and_back = "link set v0 name v1\nlink set v1 name v0\n".repeat(40);
    while renames < 2400 {
        star.rtr.ip_batch(&there_and_back);
        renames += 80;
        let due = Duration::from_secs_f64(f64::from(renames) / 800.0);
        std::thread::sleep(due.saturating_sub(start.elapsed()));
    }
    let took = start.elapsed();
    println!("{renames} renames in {took:?}");
    stream.wait_for_more(500);
    assert_none_lost(stream, &delivered);
    assert_eq!(router.get("/healthz").expect("an answer").status, 200);
}

/// Eight clients query up to 65,536 flows as fast as they can. Then another client queries once.
fn flow_queries_lose_no_packet(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let toml = route("r", "in", "", "239.0.0.0/8", &["out1"], "")
        + &route("fast", "in", "", "239.9.9.8", &["out1"], "");
    let router = Router::start(lab, &star.rtr, &toml);
    let inject = Injector::new(&star.src, "eth0");
    let count: u32 = if measures() { 65_536 } else { 5_000 };
    for n in 0..count {
        let source = format!("10.8.{}.{}:9", (n >> 8) & 0xff, n & 0xff);
        let group = "239.8.0.1:5000";
        inject.send(&Udp::new(&source, group, [0; 8]).frame());
        if n % 50 == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    eventually("the flows exist", true, || {
        router.metric("mcastor_flows", &[]) >= f64::from(count) * 0.75
    });
    let (stream, delivered) = counted_stream(&star);
    // Too fast for a capture, so it is counted.
    let rate = if measures() { 20_000 } else { 500 };
    let to = "239.9.9.8:5000";
    let fast = NumberedStream::start(&star.src, "eth0", "10.0.0.10:9", to, rate);
    let answers: usize = std::thread::scope(|scope| {
        let ask = || {
            // Real clients run on other machines. Here they must not take cores from the router.
            run_in_background().expect("a low priority");
            let (start, mut answers) = (Instant::now(), 0);
            while start.elapsed() < Duration::from_secs(3) {
                // A request may time out, because its thread gets no core for a long time.
                let answer = router.get("/api/v1/flows");
                answers += usize::from(answer.is_ok_and(|answer| answer.status == 200));
            }
            answers
        };
        let askers: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        askers
            .into_iter()
            .map(|a| a.join().expect("an asker"))
            .sum()
    });
    println!("{answers} answers");
    // On a busy machine, no earlier request may have been answered.
    eventually("an answer", Some(200), || {
        router.get("/api/v1/flows").ok().map(|answer| answer.status)
    });
    stream.wait_for_more(100);
    assert_none_lost(stream, &delivered);
    let sent = fast.finish();
    println!("{sent} packets at {rate} a second");
    router.expect_routed("fast", "out1", sent.into());
}

/// A host joins so many groups that the kernel needs more sockets than the process may open.
fn joins_leave_descriptors_for_control_and_http(lab: &Lab) {
    for limit in [1024usize, 72] {
        let star = Star::tagged(lab, 1, &limit.to_string());
        let own = std::process::id();
        let lowered = std::process::Command::new("prlimit")
            .args([format!("--pid={own}"), format!("--nofile={limit}:{limit}")])
            .status();
        assert!(lowered.expect("prlimit").success());
        let upstream = Capture::new(&star.src, "eth0");
        let interfaces: Vec<String> = (0..(limit - 64) / 16).map(|n| format!("up{n}")).collect();
        let link = |name: &String| {
            format!(
                "link add {name} type veth peer name {name}p\nlink set {name}p up\nlink set {name} up\n"
            )
        };
        star.rtr
            .ip_batch(&interfaces.iter().map(link).collect::<String>());
        let toml =
            proxy(&["in"], &["out1"], "") + &route("v", "up*", "", "239.3.0.0/20", &["out1"], "");
        let router = Router::start(lab, &star.rtr, &toml);
        let host = Injector::new(&star.rcv, "eth1");
        let groups: Vec<[u8; 4]> = (0..1000u16)
            .map(|n| [239, 4, (n >> 8) as u8, n as u8])
            .collect();
        let join = || {
            for groups in groups.chunks(100) {
                let records: Vec<_> = groups.iter().map(|group| (4, *group, Vec::new())).collect();
                host.send(&igmp_frame(
                    [10, 0, 1, 10],
                    [224, 0, 0, 22],
                    &v3_report(&records),
                    1,
                    true,
                ));
            }
        };
        join();
        if limit == 1024 {
            eventually("all groups are reported upstream", groups.len(), || {
                let reported = records(&upstream);
                let reported: BTreeSet<&String> = reported.iter().map(|record| &record.1).collect();
                let joined = reported.iter().filter(|group| group.starts_with("239.4."));
                joined.count()
            });
        } else {
            eventually("the groups are known", true, || {
                router.metric("mcastor_membership_groups", &[]) >= 900.0
            });
        }
        for _ in 0..20 {
            assert_eq!(router.get("/healthz").expect("HTTP answers").status, 200);
            assert!(router.try_run("show groups").status.success());
        }
        let pid = std::fs::read_to_string(router.pid_file()).expect("the pid");
        let open = std::fs::read_dir(format!("/proc/{}/fd", pid.trim())).expect("descriptors");
        println!("limit {limit}: {} descriptors are open", open.count());
        router.stop();
    }
}
