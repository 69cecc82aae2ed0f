//! Frames that are wrong, by accident or on purpose.
//!
//! `MCASTOR_SOAK_FRAMES=1000000 cargo test --test netns soak` is the long form.

use super::{cases, route};
use crate::lab::frame::{self, Ipv4, fix_ipv4_checksum};
use crate::lab::{Capture, Injector, Lab, Random, Router, Star, Udp, eventually};

cases!("hostile":
    each_fault_has_its_reason,
    bad_sources,
    soak,
);

const GROUP: &str = "225.1.2.3";

fn four() -> Vec<u8> {
    Udp::new("10.0.0.10:9", "225.1.2.3:5000", [0x55; 64]).frame()
}

fn six() -> Vec<u8> {
    Udp::new("[2001:db8::10]:9", "[ff3e::1:2]:5000", [0x55; 64]).frame()
}

fn everything() -> String {
    route("r", "in", "", "224.0.0.0/4", &["out1"], "")
        + &route("r6", "in", "", "ff00::/8", &["out1"], "")
}

/// Injects one frame after the other; each must be counted once, under a reason it may have.
fn drops(lab: &Lab, frames: &[(&str, Vec<u8>, &[&str])]) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &everything());
    let inject = Injector::new(&star.src, "eth0");
    let capture = Capture::new(&star.rcv, "eth1");
    let reasons = || -> Vec<(String, u64)> {
        let metrics = router.metrics();
        let all = metrics.matching("mcastor_dropped_packets_total", &[("iface", "in")]);
        all.filter(|s| s.value > 0.0)
            .map(|s| (s.labels["reason"].clone(), s.value as u64))
            .collect()
    };
    let mut faults = String::new();
    for (what, frame, want) in frames {
        let before = reasons();
        inject.send(frame);
        let total = |r: &[(String, u64)]| r.iter().map(|(_, n)| n).sum::<u64>();
        let counted =
            crate::lab::wait_until(crate::lab::PATIENCE, || total(&reasons()) > total(&before));
        let after = reasons();
        let grew: Vec<_> = after
            .iter()
            .filter(|r| !before.contains(r))
            .map(|r| r.0.as_str())
            .collect();
        if !counted || grew.len() != 1 || !want.contains(&grew[0]) {
            faults += &format!("{what}: counted as {grew:?}, expected one of {want:?}\n");
        }
    }
    assert!(faults.is_empty(), "{faults}");
    assert!(
        capture.frames().is_empty(),
        "some came out: {:x?}",
        capture.frames()
    );
    inject.send(&four());
    capture.expect(GROUP, 1);
}

fn each_fault_has_its_reason(lab: &Lab) {
    let with = |mut frame: Vec<u8>, change: &dyn Fn(&mut Vec<u8>)| {
        change(&mut frame);
        frame
    };
    // Changes the IPv4 header and mends its checksum, so that only the fault meant is there.
    let mended = |change: &dyn Fn(&mut Vec<u8>)| {
        with(four(), &|f| {
            change(f);
            fix_ipv4_checksum(&mut f[14..]);
        })
    };
    let cut = |mut frame: Vec<u8>, len: usize| {
        frame.truncate(len);
        frame
    };
    const CUT: &[&str] = &["truncated"];
    const ODD: &[&str] = &["malformed"];
    const EITHER: &[&str] = &["truncated", "malformed"];
    drops(
        lab,
        &[
            (
                "IPv4 header checksum",
                with(four(), &|f| f[24] ^= 1),
                &["bad_checksum"],
            ),
            (
                "IPv4 header checksum zero",
                with(four(), &|f| f[24..26].fill(0)),
                &["bad_checksum"],
            ),
            ("nothing after Ethernet, IPv4", cut(four(), 14), CUT),
            ("one byte of IPv4", cut(four(), 15), CUT),
            ("19 bytes of IPv4", cut(four(), 33), CUT),
            ("IPv4 ends before its total length", cut(four(), 60), CUT),
            ("IHL 0", with(four(), &|f| f[14] = 0x40), ODD),
            ("IHL 4", with(four(), &|f| f[14] = 0x44), ODD),
            (
                "IHL beyond total length",
                mended(&|f| {
                    f[14] = 0x4f;
                    f[16..18].copy_from_slice(&40u16.to_be_bytes());
                }),
                EITHER,
            ),
            ("total length 0", mended(&|f| f[16..18].fill(0)), ODD),
            (
                "total length below the header",
                mended(&|f| f[16..18].copy_from_slice(&[0, 19])),
                ODD,
            ),
            (
                "total length beyond the frame",
                mended(&|f| f[16..18].copy_from_slice(&[0, 93])),
                CUT,
            ),
            ("total length 65535", mended(&|f| f[16..18].fill(0xff)), CUT),
            ("version 5 as IPv4", mended(&|f| f[14] = 0x55), ODD),
            ("version 6 as IPv4", mended(&|f| f[14] = 0x65), EITHER),
            ("nothing after Ethernet, IPv6", cut(six(), 14), CUT),
            ("39 bytes of IPv6", cut(six(), 53), CUT),
            ("IPv6 ends before its payload length", cut(six(), 90), CUT),
            (
                "payload length beyond the frame",
                with(six(), &|f| f[18..20].copy_from_slice(&[0, 73])),
                CUT,
            ),
            (
                "payload length 65535",
                with(six(), &|f| f[18..20].fill(0xff)),
                CUT,
            ),
            ("version 4 as IPv6", with(six(), &|f| f[14] = 0x45), EITHER),
            ("version 0 as IPv6", with(six(), &|f| f[14] = 0), ODD),
            (
                "unicast in a multicast frame",
                mended(&|f| f[30..34].copy_from_slice(&[10, 0, 0, 1])),
                &["not_multicast"],
            ),
            (
                "unicast IPv6 in a multicast frame",
                with(six(), &|f| f[38] = 0x20),
                &["not_multicast"],
            ),
        ],
    );
}

fn bad_sources(lab: &Lab) {
    let v4 = |src: &str| Udp::new(&format!("{src}:9"), "225.1.2.3:5000", "x").frame();
    let v6 = |src: &str| Udp::new(&format!("[{src}]:9"), "[ff3e::1:2]:5000", "x").frame();
    const BAD: &[&str] = &["bad_source"];
    drops(
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
    let mut hop_by_hop = six();
    hop_by_hop.splice(54..54, [17, 0, 5, 2, 0, 0, 1, 0]);
    hop_by_hop[19] += 8;
    hop_by_hop[20] = 0;
    let mut fragment6 = six();
    fragment6.splice(54..54, [17, 0, 0, 1, 0, 0, 0, 9]);
    fragment6[19] += 8;
    fragment6[20] = 44;
    vec![
        four(),
        Udp::new("10.0.0.10:9", "225.1.2.3:5000", [1; 1400]).frame(),
        Udp::new("10.0.0.10:9", "225.1.2.3:5000", [1; 1300])
            .options(&[0x94, 4, 0, 0, 7, 7, 4, 0, 0, 0, 0, 0])
            .frame(),
        Udp::new("10.0.0.10:9", "225.1.2.3:5000", "").ttl(1).frame(),
        fragment(0x2000),
        fragment(0x1fff),
        fragment(0x3f00),
        six(),
        Udp::new("[2001:db8::10]:9", "[ff3e::1:2]:5000", [1; 1400]).frame(),
        hop_by_hop,
        fragment6,
    ]
}

/// One frame made wrong, or made up. The Ethernet header stays, so that it reaches the router.
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
    // Half of the broken IPv4 headers get a right checksum, to come past the first check.
    let ihl = frame.get(14).map_or(0, |b| usize::from(b & 0xf) * 4);
    if random.below(2) == 0 && frame[12] == 0x08 && ihl >= 20 && frame.len() >= 14 + ihl {
        fix_ipv4_checksum(&mut frame[14..]);
    }
    frame
}

/// Random and mutated frames through the live capture: none may stop it, feed its memory, or
/// go uncounted.
fn soak(lab: &Lab) {
    let frames: u64 = std::env::var("MCASTOR_SOAK_FRAMES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(20_000);
    let star = Star::v4(lab, 2);
    // The narrow egress cuts what the wide one sends whole.
    star.rtr.ip("link set out1 mtu 600");
    let any = |name: &str, group: &str, extra: &str| {
        route(name, "in", "", group, &["out1", "out2"], extra)
    };
    let toml =
        any("r", "224.0.0.0/4", "") + &any("r6", "ff00::/8", "ttl = \"keep\"\nlink_local = true\n");
    let mut router = Router::start(lab, &star.rtr, &toml);
    let inject = Injector::new(&star.src, "eth0");
    let (seeds, mut random) = (seeds(), Random::default());
    let taken = |router: &Router| {
        let m = router.metrics();
        let of = |name: &str, label: &str, value: &str| m.sum(name, &[(label, value)]) as u64;
        let messages = of("mcastor_interface_membership_messages_total", "iface", "in");
        of("mcastor_interface_received_packets_total", "iface", "in")
            + messages
            + of("mcastor_socket_dropped_packets_total", "iface", "in")
    };
    let mut settled = 0;
    for n in 1..=frames {
        inject.send(&mutate(&mut random, &seeds));
        // In steps the router can follow, so that frames are parsed, not lost before.
        if n % 2_000 == 0 || n == frames {
            eventually("frames taken in", n, || taken(&router));
            if n * 4 >= frames && settled == 0 {
                settled = router.program.rss();
            }
        }
    }
    let m = router.metrics();
    let dropped = |iface: &str| m.sum("mcastor_dropped_packets_total", &[("iface", iface)]) as u64;
    let wide = m.sum("mcastor_route_packets_total", &[("oif", "out2")]) as u64;
    let lost = m.sum("mcastor_socket_dropped_packets_total", &[("iface", "in")]) as u64;
    let name = "mcastor_interface_membership_messages_total";
    let messages = m.sum(name, &[("iface", "in")]) as u64;
    let sum = wide + dropped("in") + dropped("out2") + lost + messages;
    assert_eq!(
        sum,
        frames,
        "routed {wide}, lost {lost}:\n{}",
        m.show("mcastor_")
    );
    assert!(wide > frames / 50, "some are good enough to cross: {wide}");
    assert!(lost < frames / 2, "most must be parsed, lost {lost}");
    assert_eq!(router.program.ended(), None);
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
