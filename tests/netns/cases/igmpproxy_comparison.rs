//! The same scenarios with `mcastor` and with Debian's igmpproxy, which uses the kernel's multicast
//! routing. docs/proxy.md has a table of the results; each run prints its figures.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::cases;
use crate::lab::proxy::{member, members, proxy};
use crate::lab::{
    BINARY, Capture, GroupMember, Injector, IpPacket, Lab, Ns, Program, Router, Star, TIMEOUT, Udp,
    UdpRx, eventually, wait_until,
};

cases!("igmpproxy_comparison":
    #[Program("igmpproxy", "igmpproxy")] #[KernelMroute] source_filter_is_applied,
    #[Program("igmpproxy", "igmpproxy")] #[KernelMroute] join_during_a_flow_latency,
    #[Program("igmpproxy", "igmpproxy")] #[KernelMroute] leave_to_last_packet_latency,
    #[Program("igmpproxy", "igmpproxy")] #[KernelMroute] joins_200_groups_upstream,
    #[Program("igmpproxy", "igmpproxy")] #[KernelMroute] recreated_downstream_link_is_served,
    #[Program("igmpproxy", "igmpproxy")] #[KernelMroute] cpu_time_per_packet,
    #[Program("igmpproxy", "igmpproxy")] #[KernelMroute] converted_file_forwards_the_same_streams,
    igmpproxy_conf_is_refused_with_the_remedy,
);

/// A running proxy of either implementation.
enum Proxy {
    Mcastor(Box<Router>),
    Igmpproxy(Program),
}

impl Proxy {
    fn both(lab: &Lab, run: impl Fn(&Star, Self, &str)) {
        for name in ["mcastor", "igmpproxy"] {
            let star = Star::v4(lab, 2);
            let proxy = if name == "mcastor" {
                let settings = proxy(&["in"], &["out*"], "");
                Self::Mcastor(Box::new(Router::start(lab, &star.rtr, &settings)))
            } else {
                Self::Igmpproxy(igmpproxy(lab, &star.rtr))
            };
            run(&star, proxy, name);
        }
    }

    fn program(&self) -> &Program {
        match self {
            Self::Mcastor(router) => &router.program,
            Self::Igmpproxy(program) => program,
        }
    }

    fn is_mcastor(&self) -> bool {
        matches!(self, Self::Mcastor(_))
    }

    /// Returns how long to wait for an effect. Effects that igmpproxy never has are awaited
    /// briefly.
    fn patience(&self) -> Duration {
        if self.is_mcastor() {
            TIMEOUT
        } else {
            Duration::from_secs(6)
        }
    }
}

/// Starts igmpproxy with `in` as upstream and both egresses as downstreams.
fn igmpproxy(lab: &Lab, ns: &Ns) -> Program {
    let text = "phyint in upstream ratelimit 0 threshold 1\n altnet 10.0.0.0/8\n\
                phyint out1 downstream ratelimit 0 threshold 1\n\
                phyint out2 downstream ratelimit 0 threshold 1\nphyint lo disabled\n";
    start_igmpproxy(lab, ns, text)
}

/// Starts igmpproxy and waits until it has `out2`.
fn start_igmpproxy(lab: &Lab, ns: &Ns, text: &str) -> Program {
    let conf = lab.file("igmpproxy.conf");
    std::fs::write(&conf, text).expect("settings");
    ns.sysctl("net/ipv4/ip_forward", "1");
    let program = ns.spawn(lab, "igmpproxy", &["-n", &conf.display().to_string()]);
    eventually("igmpproxy has its interfaces", true, || {
        let vifs = ns.enter(|| std::fs::read_to_string("/proc/thread-self/net/ip_mr_vif"));
        vifs.is_ok_and(|v| v.contains("out2"))
    });
    program
}

/// An altnet with host bits, whitelists, a TTL threshold, and a disabled interface with a member.
const CONVERTED: &str = "quickleave\nphyint in upstream ratelimit 0 threshold 1\n\
    \taltnet 10.7.7.1/16\nphyint out1 downstream ratelimit 900 threshold 1\n\
    \twhitelist 225.1.0.0/16 whitelist 225.9.9.9\n\
    phyint out2 downstream threshold 8 whitelist 224.0.0.0/4\nphyint out3 disabled\n";

/// The same file, the same members and the same streams; the same packets arrive.
fn converted_file_forwards_the_same_streams(lab: &Lab) {
    let groups = ["225.1.0.1", "225.9.9.9", "225.2.0.1"];
    let sources = ["10.0.0.10", "10.7.1.2", "172.16.0.1"];
    let expected: BTreeSet<String> = ["10.0.0.10", "10.7.1.2"]
        .into_iter()
        .flat_map(|source| {
            let to_out1 = ["225.1.0.1", "225.9.9.9"].map(|g| format!("eth1 {source} {g}"));
            let to_out2 = groups.map(|g| format!("eth2 {source} {g}"));
            let of_ttl = |ttl: u8| move |row: String| format!("{row} {ttl}");
            let low = to_out1.clone().map(of_ttl(4));
            let high = to_out1.into_iter().chain(to_out2).map(of_ttl(19));
            low.into_iter().chain(high).collect::<Vec<_>>()
        })
        .collect();
    let [ours, theirs] = ["mcastor", "igmpproxy"].map(|name| {
        let star = Star::v4(lab, 3);
        let conf = lab.file(&format!("{name}.conf"));
        std::fs::write(&conf, CONVERTED).expect("settings");
        let path = conf.display().to_string();
        let (mut router, mut program) = (None, None);
        if name == "mcastor" {
            let output = star
                .rtr
                .output(BINARY, &["convert", "--from", "igmpproxy", &path]);
            assert_eq!(output.status.code(), Some(0), "{output:?}");
            let notes = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(
                notes.contains("ratelimit 900 of out1 is dropped"),
                "{notes}"
            );
            // Queries of the other program are not faster; the members report at once.
            let toml = String::from_utf8_lossy(&output.stdout).into_owned();
            router = Some(Router::start(lab, &star.rtr, &toml));
        } else {
            program = Some(start_igmpproxy(lab, &star.rtr, CONVERTED));
        }
        let captures = [1, 2, 3].map(|n| Capture::new(&star.rcv, &format!("eth{n}")));
        let _members: Vec<UdpRx> = (1..=3)
            .flat_map(|n| {
                let iface = format!("eth{n}");
                let ns = &star.rcv;
                groups.map(|group| UdpRx::join(ns, &iface, &format!("{group}:5000")))
            })
            .collect();
        let inject = Injector::new(&star.src, "eth0");
        let mut arrived = BTreeSet::new();
        let mut send_round = || {
            for (source, group) in sources.iter().flat_map(|s| groups.map(|g| (s, g))) {
                for ttl in [5, 20] {
                    let from = format!("{source}:9");
                    let packet = Udp::new(&from, &format!("{group}:5000"), "x").ttl(ttl);
                    inject.send(&packet.frame());
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
            for (n, capture) in captures.iter().enumerate() {
                let frames = capture.frames();
                let seen = frames.iter().filter(|f| !f.outgoing);
                let seen = seen.filter_map(|f| IpPacket::parse(&f.bytes));
                for s in seen.filter(|s| s.protocol == 17) {
                    arrived.insert(format!("eth{} {} {} {}", n + 1, s.src, s.dst, s.ttl));
                }
            }
            arrived.clone()
        };
        let complete = wait_until(TIMEOUT, || send_round().is_superset(&expected));
        // Streams that must not cross get more chances to.
        let all = (0..10).map(|_| send_round()).last().unwrap_or_default();
        assert!(complete, "{name}: {:?}", expected.difference(&all));
        drop((router, program));
        all
    });
    assert_eq!(theirs, expected, "igmpproxy");
    assert_eq!(ours, expected, "mcastor");
}

fn igmpproxy_conf_is_refused_with_the_remedy(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let conf = lab.file("igmpproxy.conf");
    std::fs::write(&conf, CONVERTED).expect("settings");
    let path = conf.display().to_string();
    for (words, code) in [
        (&["check"][..], 2),
        (&["run", "--config"], 2),
        (&["smcrouted", "-F"], 78),
        (&["smcrouted", "-n", "-u", "/nonexistent/sock", "-f"], 78),
    ] {
        let args = [words, &[&path]].concat();
        let output = star.rtr.output(BINARY, &args);
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {printed}");
        assert!(
            printed.contains("the configuration of igmpproxy"),
            "{printed}"
        );
        assert!(
            printed.contains("mcastor convert --from igmpproxy"),
            "{printed}"
        );
    }
    // Without --from, the file is recognised.
    let output = star.rtr.output(BINARY, &["convert", &path]);
    let toml = lab.file("made.toml");
    std::fs::write(&toml, &output.stdout).expect("settings");
    let checked = star
        .rtr
        .output(BINARY, &["check", &toml.display().to_string()]);
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    assert!(
        String::from_utf8_lossy(&checked.stdout).contains("2 proxies"),
        "{checked:?}"
    );
}

fn frame(source: &str, group: &str) -> Vec<u8> {
    Udp::new(&format!("{source}:9"), &format!("{group}:5000"), "x").frame()
}

fn data(wire: &Capture, group: &str, source: &str) -> usize {
    let matches = |s: &crate::lab::IpPacket| s.protocol == 17 && s.src.to_string() == source;
    wire.to(group).into_iter().filter(matches).count()
}

/// A member joins one source; two sources send.
fn source_filter_is_applied(lab: &Lab) {
    Proxy::both(lab, |star, proxy, name| {
        let group = "225.1.2.3";
        let wire = Capture::new(&star.rcv, "eth1");
        let _member = GroupMember::new(&star.rcv, "eth1", group).join("10.0.0.10");
        let inject = Injector::new(&star.src, "eth0");
        let served = wait_until(proxy.patience(), || {
            inject.send(&frame("10.0.0.10", group));
            std::thread::sleep(Duration::from_millis(5));
            data(&wire, group, "10.0.0.10") > 0
        });
        let before = data(&wire, group, "10.0.0.10");
        // At a low rate, because the kernel queues only three packets of an unresolved stream.
        for _ in 0..50 {
            inject.send(&frame("10.0.0.11", group));
            inject.send(&frame("10.0.0.10", group));
            std::thread::sleep(Duration::from_millis(4));
        }
        let all = wait_until(proxy.patience(), || {
            data(&wire, group, "10.0.0.10") >= before + 50
        });
        let other = data(&wire, group, "10.0.0.11");
        println!("{name}: joined source served {served} {all}, other source {other} of 50");
        if proxy.is_mcastor() {
            assert!(served && all);
            assert_eq!(other, 0);
        } else {
            // igmpproxy treats INCLUDE either as a join of all sources or as no join.
            assert!(other > 0 || !served);
        }
    });
}

/// Measures the time from the join to the first packet of a running stream.
fn join_during_a_flow_latency(lab: &Lab) {
    Proxy::both(lab, |star, proxy, name| {
        let inject = Injector::new(&star.src, "eth0");
        let mut waits = Vec::new();
        for n in 0..20 {
            let group = format!("225.2.0.{n}");
            let wire = Capture::new(&star.rcv, "eth1");
            (0..3).for_each(|_| inject.send(&frame("10.0.0.10", &group)));
            let start = Instant::now();
            let _rx = UdpRx::join(&star.rcv, "eth1", &format!("{group}:5000"));
            let came = wait_until(proxy.patience(), || {
                inject.send(&frame("10.0.0.10", &group));
                data(&wire, &group, "10.0.0.10") > 0
            });
            assert!(came || !proxy.is_mcastor(), "{group}");
            waits.push(start.elapsed());
        }
        waits.sort();
        println!(
            "{name}: join to first packet: median {:?}, longest {:?}",
            waits[10], waits[19]
        );
    });
}

/// Measures the time from the leave of the last member to the last packet.
fn leave_to_last_packet_latency(lab: &Lab) {
    for version in ["2", "3"] {
        Proxy::both(lab, |star, proxy, name| {
            let sysctl = "net/ipv4/conf/eth1/force_igmp_version";
            star.rcv.sysctl(sysctl, version);
            let group = "225.1.2.3";
            let wire = Capture::new(&star.rcv, "eth1");
            let inject = Injector::new(&star.src, "eth0");
            let rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
            eventually("packets arrive", true, || {
                inject.send(&frame("10.0.0.10", group));
                data(&wire, group, "10.0.0.10") > 0
            });
            drop(rx);
            let start = Instant::now();
            let mut last = start;
            let mut seen = 0;
            let quiet = Duration::from_secs(2);
            while last.elapsed() < quiet && start.elapsed() < 6 * quiet {
                inject.send(&frame("10.0.0.10", group));
                std::thread::sleep(Duration::from_millis(10));
                let now = data(&wire, group, "10.0.0.10");
                if now > seen {
                    (seen, last) = (now, Instant::now());
                }
            }
            let took = last - start;
            println!("{name}: leave of version {version} to last packet: {took:?}");
            // Two last member queries take 200 ms; if a leave is lost on a busy machine, the group
            // membership interval of 4.6 s applies.
            let longest = Duration::from_secs(10);
            assert!(!proxy.is_mcastor() || took < longest, "{took:?}");
        });
    }
}

fn joined_by_kernel(ns: &Ns, iface: &str) -> usize {
    let shown = ns.try_ip(&format!("-4 maddress show dev {iface}"));
    shown.unwrap_or_default().matches("inet  225.3.").count()
}

/// A socket can join only a limited number of groups.
fn joins_200_groups_upstream(lab: &Lab) {
    Proxy::both(lab, |star, proxy, name| {
        let members: Vec<GroupMember> = (0..200)
            .map(|n| GroupMember::any_source(&star.rcv, "eth1", &format!("225.3.0.{n}")))
            .collect();
        let all = wait_until(proxy.patience(), || {
            joined_by_kernel(&star.rtr, "in") == 200
        });
        let joined = joined_by_kernel(&star.rtr, "in");
        println!("{name}: of 200 groups {joined} joined upstream");
        assert_eq!(all, proxy.is_mcastor());
        drop(members);
    });
}

/// A downstream link is deleted and recreated.
fn recreated_downstream_link_is_served(lab: &Lab) {
    Proxy::both(lab, |star, proxy, name| {
        star.rtr.ip("link del out1");
        star.add_egress(1);
        let group = "225.1.2.3";
        let wire = Capture::new(&star.rcv, "eth1");
        let _rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
        let inject = Injector::new(&star.src, "eth0");
        let served = wait_until(proxy.patience(), || {
            inject.send(&frame("10.0.0.10", group));
            data(&wire, group, "10.0.0.10") > 0
        });
        println!("{name}: serves a recreated link: {served}");
        assert_eq!(served, proxy.is_mcastor());
    });
}

/// Measures the CPU time of the process per forwarded packet. The kernel forwards igmpproxy's
/// packets and charges their cost to the sender.
fn cpu_time_per_packet(lab: &Lab) {
    Proxy::both(lab, |star, proxy, name| {
        let group = "225.1.2.3";
        let wire = Capture::new(&star.rcv, "eth1");
        let _rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
        let inject = Injector::new(&star.src, "eth0");
        let frame = frame("10.0.0.10", group);
        eventually("packets arrive", true, || {
            inject.send(&frame);
            data(&wire, group, "10.0.0.10") > 0
        });
        if let Proxy::Mcastor(router) = &proxy {
            assert_eq!(members(router).len(), 1);
            assert!(member(router, "out1", group).is_some());
        }
        drop(wire);
        let tx = || star.rtr.sent_packets("out1");
        let (cpu, sent) = (proxy.program().cpu_seconds(), tx());
        let n = 50_000u64;
        let start = Instant::now();
        for i in 0..n {
            inject.send(&frame);
            if i % 32 == 0 {
                // Paced to about 10,000 packets a second, so that none is lost.
                while start.elapsed() < Duration::from_micros(i * 100) {
                    std::thread::yield_now();
                }
            }
        }
        wait_until(proxy.patience(), || tx() >= sent + n);
        let (took, forwarded) = (proxy.program().cpu_seconds() - cpu, tx() - sent);
        println!(
            "{name}: {forwarded} of {n} packets, {:.2} us of its own time each",
            took * 1e6 / forwarded.max(1) as f64
        );
        let lost = match &proxy {
            Proxy::Mcastor(router) => router.metric("mcastor_dropped_packets_total", &[]) as u64,
            Proxy::Igmpproxy(_) => 0,
        };
        // `out1` transmits queries and reports, too.
        assert!(forwarded + lost >= n * 99 / 100, "{forwarded}, {lost} lost");
    });
}
