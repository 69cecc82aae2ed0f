//! Malformed frames, accidental and deliberate.
//!
//! `MCASTOR_SOAK_FRAMES=10000000 cargo test --test netns soak_of_malformed_frames` runs the long
//! form.

use std::sync::atomic::Ordering;

use super::{cases, route};
use crate::lab::flood::Flood;
use crate::lab::frame::{self, fix_ipv4_checksum};
use crate::lab::frame_generator::FrameGenerator;
use crate::lab::metrics::Metrics;
use crate::lab::proxy::proxy;
use crate::lab::tun::Tun;
use crate::lab::{
    Capture, Injector, Lab, NumberedStream, Router, Star, TIMEOUT, Udp, eventually,
    received_in_order, wait_until,
};

cases!("hostile":
    malformed_packets_are_counted_by_reason,
    invalid_sources_are_dropped_as_bad_source,
    messages_of_one_link_are_not_forwarded,
    unknown_offload_of_a_tap_stops_no_stream,
    unknown_offload_is_counted_at_high_rates,
    soak_of_malformed_frames,
);

const GROUP: &str = "225.1.2.3";

fn v4_frame() -> Vec<u8> {
    Udp::new("10.0.0.10:9", "225.1.2.3:5000", [0x55; 64]).frame()
}

fn v6_frame() -> Vec<u8> {
    Udp::new("[2001:db8::10]:9", "[ff3e::1:2]:5000", [0x55; 64]).frame()
}

fn routes_for_all_groups() -> String {
    route("r", "in", "", "224.0.0.0/4", &["out1"], "")
        + &route("r6", "in", "", "ff00::/8", &["out1"], "")
}

/// Injects the frames one by one. Each must be counted once, under one of its expected reasons.
fn assert_dropped(lab: &Lab, frames: &[(&str, Vec<u8>, &[&str])]) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &routes_for_all_groups());
    let inject = Injector::new(&star.src, "eth0");
    let capture = Capture::new(&star.rcv, "eth1");
    let drop_counts = || -> Vec<(String, u64)> {
        let metrics = router.metrics();
        let all = metrics.matching("mcastor_dropped_packets_total", &[("iface", "in")]);
        all.filter(|s| s.value > 0.0)
            .map(|s| (s.labels["reason"].clone(), s.value as u64))
            .collect()
    };
    let mut faults = String::new();
    for (fault, frame, reasons) in frames {
        let before = drop_counts();
        inject.send(frame);
        let total = |r: &[(String, u64)]| r.iter().map(|(_, n)| n).sum::<u64>();
        let counted = crate::lab::wait_until(crate::lab::TIMEOUT, || {
            total(&drop_counts()) > total(&before)
        });
        let after = drop_counts();
        let increased: Vec<_> = after
            .iter()
            .filter(|r| !before.contains(r))
            .map(|r| r.0.as_str())
            .collect();
        if !counted || increased.len() != 1 || !reasons.contains(&increased[0]) {
            faults += &format!("{fault}: counted as {increased:?}, expected one of {reasons:?}\n");
        }
    }
    assert!(faults.is_empty(), "{faults}");
    assert!(
        capture.frames().is_empty(),
        "malformed frames were forwarded: {:x?}",
        capture.frames()
    );
    inject.send(&v4_frame());
    capture.expect(GROUP, 1);
}

fn malformed_packets_are_counted_by_reason(lab: &Lab) {
    let with = |mut frame: Vec<u8>, change: &dyn Fn(&mut Vec<u8>)| {
        change(&mut frame);
        frame
    };
    // Changes the IPv4 header and updates its checksum, so that the frame has only that fault.
    let v4_with = |change: &dyn Fn(&mut Vec<u8>)| {
        with(v4_frame(), &|f| {
            change(f);
            fix_ipv4_checksum(&mut f[14..]);
        })
    };
    let truncated = |mut frame: Vec<u8>, len: usize| {
        frame.truncate(len);
        frame
    };
    const TRUNCATED: &[&str] = &["truncated"];
    const MALFORMED: &[&str] = &["malformed"];
    const EITHER: &[&str] = &["truncated", "malformed"];
    assert_dropped(
        lab,
        &[
            (
                "IPv4 header checksum",
                with(v4_frame(), &|f| f[24] ^= 1),
                &["bad_checksum"],
            ),
            (
                "IPv4 header checksum zero",
                with(v4_frame(), &|f| f[24..26].fill(0)),
                &["bad_checksum"],
            ),
            (
                "nothing after Ethernet, IPv4",
                truncated(v4_frame(), 14),
                TRUNCATED,
            ),
            ("one byte of IPv4", truncated(v4_frame(), 15), TRUNCATED),
            ("19 bytes of IPv4", truncated(v4_frame(), 33), TRUNCATED),
            (
                "IPv4 ends before its total length",
                truncated(v4_frame(), 60),
                TRUNCATED,
            ),
            ("IHL 0", with(v4_frame(), &|f| f[14] = 0x40), MALFORMED),
            ("IHL 4", with(v4_frame(), &|f| f[14] = 0x44), MALFORMED),
            (
                "IHL beyond total length",
                v4_with(&|f| {
                    f[14] = 0x4f;
                    f[16..18].copy_from_slice(&40u16.to_be_bytes());
                }),
                EITHER,
            ),
            ("total length 0", v4_with(&|f| f[16..18].fill(0)), MALFORMED),
            (
                "total length below the header",
                v4_with(&|f| f[16..18].copy_from_slice(&[0, 19])),
                MALFORMED,
            ),
            (
                "total length beyond the frame",
                v4_with(&|f| f[16..18].copy_from_slice(&[0, 93])),
                TRUNCATED,
            ),
            (
                "total length 65535",
                v4_with(&|f| f[16..18].fill(0xff)),
                TRUNCATED,
            ),
            ("version 5 as IPv4", v4_with(&|f| f[14] = 0x55), MALFORMED),
            ("version 6 as IPv4", v4_with(&|f| f[14] = 0x65), EITHER),
            (
                "nothing after Ethernet, IPv6",
                truncated(v6_frame(), 14),
                TRUNCATED,
            ),
            ("39 bytes of IPv6", truncated(v6_frame(), 53), TRUNCATED),
            (
                "IPv6 ends before its payload length",
                truncated(v6_frame(), 90),
                TRUNCATED,
            ),
            (
                "payload length beyond the frame",
                with(v6_frame(), &|f| f[18..20].copy_from_slice(&[0, 73])),
                TRUNCATED,
            ),
            (
                "payload length 65535",
                with(v6_frame(), &|f| f[18..20].fill(0xff)),
                TRUNCATED,
            ),
            (
                "version 4 as IPv6",
                with(v6_frame(), &|f| f[14] = 0x45),
                EITHER,
            ),
            (
                "version 0 as IPv6",
                with(v6_frame(), &|f| f[14] = 0),
                MALFORMED,
            ),
            (
                "unicast in a multicast frame",
                v4_with(&|f| f[30..34].copy_from_slice(&[10, 0, 0, 1])),
                &["not_multicast"],
            ),
            (
                "unicast IPv6 in a multicast frame",
                with(v6_frame(), &|f| f[38] = 0x20),
                &["not_multicast"],
            ),
        ],
    );
}

fn invalid_sources_are_dropped_as_bad_source(lab: &Lab) {
    let v4 = |src: &str| Udp::new(&format!("{src}:9"), "225.1.2.3:5000", "x").frame();
    let v6 = |src: &str| Udp::new(&format!("[{src}]:9"), "[ff3e::1:2]:5000", "x").frame();
    const BAD: &[&str] = &["bad_source"];
    assert_dropped(
        lab,
        &[
            ("0.0.0.0", v4("0.0.0.0"), BAD),
            ("loopback", v4("127.0.0.1"), BAD),
            ("multicast", v4("225.1.2.3"), BAD),
            ("broadcast", v4("255.255.255.255"), BAD),
            ("::", v6("::"), BAD),
            ("::1", v6("::1"), BAD),
            ("multicast, IPv6", v6("ff3e::1"), BAD),
        ],
    );
}

/// Returns the Ethernet frame of an IP packet in hexadecimal, to 225.1.2.3 or ff3e::225:1.
fn frame_of(hex: &str) -> Vec<u8> {
    let bytes = (0..hex.len()).step_by(2);
    let packet: Vec<u8> = bytes
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal"))
        .collect();
    let group = match packet[0] >> 4 {
        4 => GROUP,
        _ => "ff3e::225:1",
    };
    frame::ethernet(group.parse().expect("a group"), &packet)
}

/// Neighbour discovery, router discovery and VRRP, and MLD reports behind extension headers, from
/// sources that are valid beyond the link to groups that are routed with `ttl = "keep"`. Built by
/// scapy; the tests of src/wire name the calls.
fn messages_of_one_link_are_not_forwarded(lab: &Lab) {
    const LINK_ONLY: [&str; 3] = [
        "6000000000103aff20010db8000000000000000000000001ff3e000000000000000000000225000186004386000807080000000000000000",
        "4500002800010000ff70ce5f0a000001e101020321016401000170f30a0000090000000000000000",
        "4500001c000100000101ccdb0a000001e10102030900f6ff00000000",
    ];
    const REPORTS: [&str; 5] = [
        "6000000000103c0120010db8000000000000000000000001ff3e00000000000000000000022500013a000104000000008f00419e00000000",
        "600000000018000120010db8000000000000000000000001ff3e00000000000000000000022500013c000502000001003a000104000000008f00419e00000000",
        "6000000000202b0120010db8000000000000000000000001ff3e00000000000000000000022500013a0200000000000020010db80000000000000000000000028f00419e00000000",
        "6000000000102c0120010db8000000000000000000000001ff3e00000000000000000000022500013a000000000000078f00419e00000000",
        "600000000020330120010db8000000000000000000000001ff3e00000000000000000000022500013a04000000000001000000010000000000000000000000008f00419e00000000",
    ];
    const ECHO: &str = "6000000000083a0120010db8000000000000000000000001ff3e00000000000000000000022500018000509e00000000";
    let star = Star::v4(lab, 1);
    let keep = "ttl = \"keep\"\nlink_local = true\n";
    let toml = route("r", "in", "", GROUP, &["out1"], keep)
        + &route("r6", "in", "", "ff00::/8", &["out1"], keep);
    let router = Router::start(lab, &star.rtr, &toml);
    let inject = Injector::new(&star.src, "eth0");
    let capture = Capture::new(&star.rcv, "eth1");
    let messages = "mcastor_interface_membership_messages_total";
    let before = router.metric(messages, &[("iface", "in")]) as u64;
    for packet in LINK_ONLY.iter().chain(&REPORTS) {
        inject.send(&frame_of(packet));
    }
    inject.send(&frame_of(ECHO));
    capture.expect("ff3e::225:1", 1);
    router.expect_dropped("link_only", "in", LINK_ONLY.len() as u64);
    // The hosts on the link send reports too.
    let reports = REPORTS.len() as u64;
    eventually("reports are messages", true, || {
        router.metric(messages, &[("iface", "in")]) as u64 >= before + reports
    });
    assert!(capture.to(GROUP).is_empty());
}

/// Makes `in` and a new tap ports of the bridge `br0`, and returns the tap.
fn bridge_with_tap(star: &Star) -> Tun {
    star.rtr.ip_batch(
        "link add br0 type bridge mcast_snooping 0\nlink set in master br0\nlink set br0 up\n",
    );
    let tap = Tun::tap_with_offload(&star.rtr, "tap0");
    star.rtr.ip("link set tap0 master br0 up");
    tap
}

/// A guest sends packets that its tap device describes as UFO, which the kernel cannot describe to
/// a packet socket. Another port of the bridge sends a stream meanwhile.
fn unknown_offload_of_a_tap_stops_no_stream(lab: &Lab) {
    const ATTACKS: u64 = 200;
    let star = Star::v4(lab, 1);
    let tap = bridge_with_tap(&star);
    let router = Router::start(lab, &star.rtr, &route("r", "br0", "", GROUP, &["out1"], ""));
    let capture = Capture::new(&star.rcv, "eth1");
    let stream = NumberedStream::start(&star.src, "eth0", "10.0.0.10:9", "225.1.2.3:5000", 2000);
    stream.wait_for_more(100);
    let attack = ufo_frame();
    for _ in 0..ATTACKS {
        tap.write(&attack);
        stream.wait_for_more(1);
    }
    assert!(router.is_ready());
    router.expect_dropped("gso_unknown", "br0", ATTACKS);
    let sent = stream.finish();
    capture.expect(GROUP, sent as usize);
    received_in_order(&capture, GROUP);
    router.expect_routed("r", "out1", sent.into());
    router.expect_metric("mcastor_actor_restarts_total", &[], 0);
    router.expect_metric("mcastor_socket_dropped_packets_total", &[], 0);
}

/// Returns a frame that a tap describes as UFO.
fn ufo_frame() -> Vec<u8> {
    // struct virtio_net_hdr: the checksum is to be completed, GSO type UFO, 42 bytes of headers,
    // segments of 1,400 bytes.
    let mut frame = vec![1, 3, 42, 0];
    frame.extend(1400u16.to_le_bytes());
    frame.extend([34, 0, 6, 0]);
    frame.extend(Udp::new("10.0.0.66:9", "225.9.9.9:5000", [0x55; 3000]).frame());
    frame
}

/// The same while packets are captured in blocks, where the kernel leaves places without a frame.
fn unknown_offload_is_counted_at_high_rates(lab: &Lab) {
    const ATTACKS: u64 = 200;
    let star = Star::v4(lab, 1);
    let tap = bridge_with_tap(&star);
    // The kernel of the router joins nothing, so it sends no reports, which would be counted too.
    let silent = "[[interface]]\nname = \"br0\"\nversion = { igmp = 3, mld = 2 }\n";
    let log = "[log]\nlevel = \"debug\"\n";
    let toml = route("r", "br0", "", GROUP, &["out1"], "") + silent + log;
    let router = Router::start(lab, &star.rtr, &toml);
    let capture = Capture::new(&star.rcv, "eth1");
    let unrouted = Udp::new("10.0.0.10:9", "225.8.8.8:5000", [0x55; 64]).frame();
    let flood = Flood::start(&star.src, "eth0", vec![unrouted], 45_000);
    eventually("packets are captured in blocks", true, || {
        router.program.stderr().contains("throughput mode")
    });
    for _ in 0..ATTACKS {
        tap.write(&ufo_frame());
    }
    let sent = flood.sent.clone();
    drop(flood);
    let sent = sent.load(Ordering::Acquire) + ATTACKS;
    eventually("each frame is counted", sent, || {
        Counts::of(&router).arrived("br0")
    });
    router.expect_dropped("gso_unknown", "br0", ATTACKS);
    let stream = NumberedStream::start(&star.src, "eth0", "10.0.0.10:9", "225.1.2.3:5000", 2000);
    stream.wait_for_more(200);
    let sent = stream.finish();
    capture.expect(GROUP, sent as usize);
    assert!(router.is_ready());
    router.expect_metric("mcastor_actor_restarts_total", &[], 0);
}

/// What the router counted since its start.
struct Counts {
    metrics: Metrics,
}

impl Counts {
    fn of(router: &Router) -> Self {
        let metrics = router.metrics();
        Self { metrics }
    }

    fn sum(&self, name: &str, label: &str, values: &[&str]) -> u64 {
        let sum = |value: &&str| self.metrics.sum(name, &[(label, *value)]) as u64;
        values.iter().map(sum).sum()
    }

    /// Frames that arrived on an interface: packets, membership messages, and frames that the
    /// socket lost.
    fn arrived(&self, iface: &str) -> u64 {
        let names = [
            "mcastor_interface_received_packets_total",
            "mcastor_interface_membership_messages_total",
            "mcastor_socket_dropped_packets_total",
        ];
        let sum = |name: &&str| self.sum(name, "iface", &[iface]);
        names.iter().map(sum).sum()
    }

    fn lost(&self) -> u64 {
        let all = ["in", "out3", "tap0"];
        self.sum("mcastor_socket_dropped_packets_total", "iface", &all)
    }

    fn received(&self) -> u64 {
        let all = ["in", "out3", "tap0"];
        self.sum("mcastor_interface_received_packets_total", "iface", &all)
    }

    fn forwarded(&self) -> u64 {
        let all = ["in", "out2", "out3"];
        self.sum("mcastor_route_packets_total", "oif", &all)
    }

    fn dropped(&self) -> u64 {
        let all = ["in", "out2", "out3", "tap0"];
        self.sum("mcastor_dropped_packets_total", "iface", &all)
    }
}

/// Frames of all protocols arrive on an upstream and a downstream interface and on a tap. The router
/// must keep running, its memory must not grow, and each frame must be counted: as received, and
/// then as forwarded or dropped.
fn soak_of_malformed_frames(lab: &Lab) {
    let frames: u64 = std::env::var("MCASTOR_SOAK_FRAMES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(20_000);
    let star = Star::v4(lab, 3);
    // The narrow egress fragments packets that the wide one, which is counted, sends in one piece.
    star.rtr.ip("link set out1 mtu 600");
    for (ns, name) in [(&star.rtr, "out"), (&star.rcv, "eth")] {
        for n in [2, 3] {
            ns.ip(&format!("link set {name}{n} mtu 65535"));
        }
    }
    star.rtr.ip("link set in mtu 65535");
    star.src.ip("link set eth0 mtu 65535");
    let tap = Tun::tap_with_offload(&star.rtr, "tap0");
    star.rtr.ip("link set tap0 up");
    let any = |name: &str, iif: &str, group: &str, extra: &str| {
        route(name, iif, "", group, &["out1", "out2"], extra)
    };
    // Each packet fits one rule, and leaves on one of the counted interfaces.
    let limits = "[limits]\nflows = 512\n";
    // The kernel joins nothing there, so it sends no reports, which would be counted too.
    let silent = "[[interface]]\nname = \"in\"\nversion = { igmp = 3, mld = 2 }\n";
    let settings = [
        limits.to_owned(),
        silent.to_owned(),
        any("a", "in", "224.0.0.0/7", "loop_guard = true\n"),
        any(
            "a6",
            "in",
            "ff3e::/16",
            "ttl = \"keep\"\nlink_local = true\n",
        ),
        route(
            "b",
            "in",
            "",
            "226.1.1.0/24",
            &["out2"],
            "rewrite = { group = \"227.1.1.0/24\" }\n",
        ),
        any("c", "tap0", "225.0.0.0/8", ""),
        any("c6", "tap0", "ff3e::/16", ""),
        proxy(
            &["in"],
            &["out3"],
            "groups = [\"239.0.0.0/8\", \"232.0.0.0/8\", \"ff1e::/16\"]\n\
            limits = { groups = 64, sources_per_group = 8 }\n",
        ),
    ];
    let mut router = Router::start(lab, &star.rtr, &settings.concat());
    let (upstream, downstream) = (
        Injector::new(&star.src, "eth0"),
        Injector::new(&star.rcv, "eth3"),
    );
    let mut generator = FrameGenerator::new(1, 0);
    let mut hosts = FrameGenerator::new(2, 3);
    let (mut sent, mut from_hosts, mut from_tap, mut most_from_tap) = (0, 0, 0, 0);
    // The memory of the process after each tenth of the frames.
    let mut sizes = Vec::new();
    while sent + from_hosts + from_tap < frames {
        // Waits at times, so that frames are parsed and not lost at the socket.
        for n in 0..2_000 {
            match n % 10 {
                0..5 => {
                    upstream.send(&generator.frame());
                    sent += 1;
                }
                5 => {
                    let frame = generator.offloaded();
                    if tap.try_write(&frame.bytes) {
                        from_tap += 1;
                        most_from_tap += frame.packets;
                    }
                }
                6 => {
                    downstream.send(&hosts.frame());
                    from_hosts += 1;
                }
                _ => {
                    downstream.send(&hosts.message());
                    from_hosts += 1;
                }
            }
        }
        let all = (sent, from_hosts, true);
        let arrived = || {
            let counts = Counts::of(&router);
            let tap = counts.arrived("tap0") >= from_tap;
            (counts.arrived("in"), counts.arrived("out3"), tap)
        };
        if !wait_until(TIMEOUT, || arrived() == all) {
            panic!("{:?} of {all:?} frames are counted", arrived());
        }
        let tenths = (sent + from_hosts + from_tap) * 10 / frames;
        while (sizes.len() as u64) < tenths {
            sizes.push(router.program.rss());
        }
    }
    // The egress counts a packet after the ingress.
    eventually("each packet is forwarded or dropped", true, || {
        let counts = Counts::of(&router);
        counts.received() == counts.forwarded() + counts.dropped()
    });
    let counts = Counts::of(&router);
    let from_tap_counted = counts.arrived("tap0");
    assert!(
        (from_tap..=most_from_tap).contains(&from_tap_counted),
        "{from_tap} frames of the tap, of at most {most_from_tap} packets: {from_tap_counted} counted"
    );
    println!(
        "{sent} frames upstream, {from_hosts} downstream, {from_tap} from a tap as \
         {from_tap_counted} packets: {} forwarded, {} dropped, {} lost at the socket",
        counts.forwarded(),
        counts.dropped(),
        counts.lost()
    );
    let messages = counts.arrived("out3")
        - counts.sum(
            "mcastor_interface_received_packets_total",
            "iface",
            &["out3"],
        );
    let to_members = counts.sum("mcastor_route_packets_total", "oif", &["out3"]);
    for (what, many, least) in [
        ("forwarded packets", counts.forwarded(), frames / 20),
        ("dropped packets", counts.dropped(), frames / 20),
        ("messages of hosts", messages, frames / 20),
        ("packets to members", to_members, frames / 1000),
    ] {
        assert!(many > least, "{many} {what}");
    }
    assert!(
        counts.lost() < frames / 10,
        "{} frames were lost at the socket",
        counts.lost()
    );
    assert_eq!(router.program.exit_status(), None);
    let grown = router.program.rss().saturating_sub(sizes[0]);
    println!("memory after each tenth, in bytes: {sizes:?}; {grown} more at the end than at first");
    // In a short run, buffers still grow to their size.
    let most = if frames >= 1_000_000 {
        1 << 20
    } else {
        8 << 20
    };
    assert!(
        grown < most,
        "memory grew by {grown} bytes over nine tenths of the frames"
    );
    assert!(!router.program.stderr().contains("panicked"));
    router.expect_metric("mcastor_actor_restarts_total", &[], 0);
    let capture = Capture::new(&star.rcv, "eth2");
    upstream.send(&Udp::new("10.0.0.10:9", "225.9.9.9:5000", "alive").frame());
    capture.expect("225.9.9.9", 1);
}
