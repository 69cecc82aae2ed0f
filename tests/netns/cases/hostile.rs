//! Malformed frames, accidental and deliberate.
//!
//! `MCASTOR_SOAK_FRAMES=1000000 cargo test --test netns soak_of_malformed_frames` runs the long
//! form.

use super::{cases, route};
use crate::lab::frame::{self, Ipv4, fix_ipv4_checksum};
use crate::lab::tun::Tun;
use crate::lab::{
    Capture, Injector, Lab, NumberedStream, Random, Router, Star, Udp, eventually,
    received_in_order,
};

cases!("hostile":
    malformed_packets_are_counted_by_reason,
    invalid_sources_are_dropped_as_bad_source,
    messages_of_one_link_are_not_forwarded,
    unknown_offload_of_a_tap_stops_no_stream,
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

/// A guest sends packets that its tap device describes as UFO, which the kernel cannot describe to
/// a packet socket. Another port of the bridge sends a stream meanwhile.
fn unknown_offload_of_a_tap_stops_no_stream(lab: &Lab) {
    const ATTACKS: u64 = 200;
    let star = Star::v4(lab, 1);
    star.rtr.ip_batch(
        "link add br0 type bridge mcast_snooping 0\nlink set in master br0\nlink set br0 up\n",
    );
    let tap = Tun::tap_with_offload(&star.rtr, "tap0");
    star.rtr.ip("link set tap0 master br0 up");
    let router = Router::start(lab, &star.rtr, &route("r", "br0", "", GROUP, &["out1"], ""));
    let capture = Capture::new(&star.rcv, "eth1");
    let stream = NumberedStream::start(&star.src, "eth0", "10.0.0.10:9", "225.1.2.3:5000", 2000);
    stream.wait_for_more(100);
    // struct virtio_net_hdr: the checksum is to be completed, GSO type UFO, 42 bytes of headers,
    // segments of 1,400 bytes.
    let mut attack = vec![1, 3, 42, 0];
    attack.extend(1400u16.to_le_bytes());
    attack.extend([34, 0, 6, 0]);
    attack.extend(Udp::new("10.0.0.66:9", "225.9.9.9:5000", [0x55; 3000]).frame());
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

fn seeds() -> Vec<Vec<u8>> {
    let group = GROUP.parse().expect("v4");
    let h = Ipv4 {
        ttl: 9,
        src: [10, 0, 0, 10],
        dst: [225, 1, 2, 3],
        ..Ipv4::default()
    };
    let fragment = |flags_offset| {
        frame::ethernet(
            group,
            &frame::ipv4(
                &Ipv4 {
                    protocol: 17,
                    flags_offset,
                    ..h.clone()
                },
                &[3; 800],
            ),
        )
    };
    let mut hop_by_hop = v6_frame();
    hop_by_hop.splice(54..54, [17, 0, 5, 2, 0, 0, 1, 0]);
    hop_by_hop[19] += 8;
    hop_by_hop[20] = 0;
    let mut fragment6 = v6_frame();
    fragment6.splice(54..54, [17, 0, 0, 1, 0, 0, 0, 9]);
    fragment6[19] += 8;
    fragment6[20] = 44;
    vec![
        v4_frame(),
        Udp::new("10.0.0.10:9", "225.1.2.3:5000", [1; 1400]).frame(),
        Udp::new("10.0.0.10:9", "225.1.2.3:5000", [1; 1300])
            .options(&[0x94, 4, 0, 0, 7, 7, 4, 0, 0, 0, 0, 0])
            .frame(),
        Udp::new("10.0.0.10:9", "225.1.2.3:5000", "").ttl(1).frame(),
        fragment(0x2000),
        fragment(0x1fff),
        fragment(0x3f00),
        v6_frame(),
        Udp::new("[2001:db8::10]:9", "[ff3e::1:2]:5000", [1; 1400]).frame(),
        hop_by_hop,
        fragment6,
    ]
}

/// Returns a seed with random changes, or a random packet. The Ethernet header is kept, so that the
/// frame reaches the router.
fn mutate(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut frame = seeds[random.below(seeds.len())].clone();
    match random.below(5) {
        0 => {
            let len = random.below(1500);
            frame.truncate(14);
            frame.extend((0..len).map(|_| 0));
            frame[14..]
                .iter_mut()
                .for_each(|b| *b = random.next() as u8);
        }
        1 => frame.truncate(14 + random.below(frame.len() - 14)),
        2 => {
            let header = frame.len().min(14 + 60) - 14;
            let at = 14 + random.below(header);
            frame[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)];
        }
        _ => {
            for _ in 0..=random.below(6) {
                let at = 14 + random.below(frame.len() - 14);
                frame[at] = random.next() as u8;
            }
        }
    }
    // Half of the mutated IPv4 headers get a valid checksum, so that later checks are reached too.
    let ihl = frame.get(14).map_or(0, |b| usize::from(b & 0xf) * 4);
    if random.below(2) == 0 && frame[12] == 0x08 && ihl >= 20 && frame.len() >= 14 + ihl {
        fix_ipv4_checksum(&mut frame[14..]);
    }
    frame
}

/// Captures random and mutated frames. The router must keep running, its memory must not grow, and
/// each frame must be counted.
fn soak_of_malformed_frames(lab: &Lab) {
    let frames: u64 = std::env::var("MCASTOR_SOAK_FRAMES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(20_000);
    let star = Star::v4(lab, 2);
    // The narrow egress fragments packets that the wide one sends unfragmented.
    star.rtr.ip("link set out1 mtu 600");
    let any = |name: &str, group: &str, extra: &str| {
        route(name, "in", "", group, &["out1", "out2"], extra)
    };
    let toml =
        any("r", "224.0.0.0/4", "") + &any("r6", "ff00::/8", "ttl = \"keep\"\nlink_local = true\n");
    let mut router = Router::start(lab, &star.rtr, &toml);
    let inject = Injector::new(&star.src, "eth0");
    let (seeds, mut random) = (seeds(), Random::default());
    let counted = |router: &Router| {
        let m = router.metrics();
        let sum = |name: &str, label: &str, value: &str| m.sum(name, &[(label, value)]) as u64;
        let messages = sum("mcastor_interface_membership_messages_total", "iface", "in");
        sum("mcastor_interface_received_packets_total", "iface", "in")
            + messages
            + sum("mcastor_socket_dropped_packets_total", "iface", "in")
    };
    let mut settled = 0;
    for n in 1..=frames {
        inject.send(&mutate(&mut random, &seeds));
        // Waits at times, so that frames are parsed and not lost at the socket.
        if n % 2_000 == 0 || n == frames {
            eventually("frames counted in", n, || counted(&router));
            if n * 4 >= frames && settled == 0 {
                settled = router.program.rss();
            }
        }
    }
    // The egress counts a packet after the ingress.
    let (mut wide, mut lost) = (0, 0);
    eventually("frames accounted for", frames, || {
        let m = router.metrics();
        let sum = |name: &str, label: &str, value: &str| m.sum(name, &[(label, value)]) as u64;
        let dropped = |iface: &str| sum("mcastor_dropped_packets_total", "iface", iface);
        wide = sum("mcastor_route_packets_total", "oif", "out2");
        lost = sum("mcastor_socket_dropped_packets_total", "iface", "in");
        let messages = sum("mcastor_interface_membership_messages_total", "iface", "in");
        wide + dropped("in") + dropped("out2") + lost + messages
    });
    assert!(
        wide > frames / 50,
        "too few mutated frames are valid: {wide} were forwarded"
    );
    assert!(
        lost < frames / 2,
        "too many frames were lost at the socket: {lost}"
    );
    assert_eq!(router.program.exit_status(), None);
    let grown = router.program.rss().saturating_sub(settled);
    assert!(
        grown < 8 << 20,
        "memory grew by {grown} bytes over three quarters of the frames"
    );
    assert!(!router.program.stderr().contains("panicked"));
    let capture = Capture::new(&star.rcv, "eth2");
    inject.send(&Udp::new("10.0.0.10:9", "225.9.9.9:5000", "alive").frame());
    capture.expect("225.9.9.9", 1);
}
