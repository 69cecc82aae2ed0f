//! The fuzz targets for data packets: the switch, the forwarding decision and the translation.

use std::cell::RefCell;
use std::io;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use mcastor::forward::translate::{Identifications, translate_in_place, translate_version};
use mcastor::forward::{self, Decision, DropReason, NotData, decide};
use mcastor::model::{
    InterfaceId, KernelForwarding, Links, RouteName, RouteRule, TranslationRule, TtlPolicy,
    TtlThreshold,
};
use mcastor::pipeline::egress::SendCounts;
use mcastor::pipeline::{
    Batch, EgressQueue, OutPacket, Packet, PacketSink, Progress, Slot, Switch,
};
use mcastor::table::flows::{FlowBudget, Flows};
use mcastor::table::{Fib, InterfaceOptions, Rib, StreamState};
use mcastor::wire::checksum;
use mcastor::wire::ip::IpHeader;
use mcastor::wire::offload::Offload;

use super::{Input, link};

/// Runs a batch of packets through the switch and sends it on every egress. The packets and their
/// metadata come from the input.
pub fn switch(data: &[u8]) -> bool {
    let mut input = Input(data);
    let count = usize::from(input.u8() % 8) + 1;
    let answers = input.take(8);
    let mut metas = Vec::new();
    for _ in 0..count {
        let flags = input.u8();
        let (a, b) = (input.u16(), input.u16());
        let meta = Packet {
            ethertype: match flags & 7 {
                0 => 0x8100,
                1 => 0x88a8,
                2 => a,
                3 | 4 => 0x86dd,
                _ => 0x0800,
            },
            vlan: (flags & 8 != 0).then_some(a & 0x0fff),
            offload: match flags >> 4 & 7 {
                0 => Offload::Checksum {
                    start: 20,
                    offset: 6,
                },
                1 => Offload::Checksum {
                    start: a,
                    offset: b,
                },
                2 => Offload::UdpSegments { payload: b },
                3 => Offload::Unknown,
                _ => Offload::None,
            },
            truncated: flags & 0x80 != 0 && a & 1 == 1,
            ..Packet::default()
        };
        metas.push(meta);
    }
    let bytes = input.0.to_vec();
    let each = bytes.len() / count;
    for (i, meta) in metas.iter_mut().enumerate() {
        meta.start = (i * each) as u32;
        meta.len = each as u32;
        meta.received_ns = i as u64;
    }
    let fib = &*FIB;
    let ingress = &fib.ingresses[&InterfaceId::new(1).unwrap()];
    let batch = Batch::from_bytes(bytes, metas);
    let switched = SWITCH.with_borrow_mut(|s| s.run(fib, ingress, batch, clock()));
    let tally = &switched.counts;
    let dropped: u64 = tally.dropped.iter().sum();
    let seen = tally.packets + tally.membership;
    assert!(seen >= count as u64 && dropped <= tally.packets);
    let slots = switched.egresses.iter().flat_map(|(_, slots)| slots);
    let slots: u64 = slots.map(Slot::packets).sum();
    let below: u64 = tally.refused.iter().map(|(_, _, n)| n).sum();
    let passed = tally.packets - dropped;
    assert!(
        slots + below >= passed,
        "a packet is missing in the counters"
    );
    assert!(slots + below <= passed * 3, "more copies than egresses");
    for (egress, slots) in switched.egresses {
        let mtu = fib.egresses[egress as usize].mtu as usize;
        let (mut queue, mut sent) = (EgressQueue::default(), SendCounts::default());
        let filled: u64 = slots.iter().map(Slot::packets).sum();
        queue.fill(switched.shared.clone(), slots, mtu, &fib.paths, &mut sent);
        let rejected: u64 = sent.dropped.iter().sum();
        let mut sink = ScriptedSink {
            answers: Input(answers),
            mtu,
            accepts_gso: answers.first().is_some_and(|a| a % 2 == 0),
            packets: 0,
            bytes: 0,
        };
        while queue.drive(&mut sink, &mut sent) == Progress::Blocked {}
        assert!(queue.is_empty());
        let counted: (u64, u64) = sent
            .paths
            .iter()
            .fold((0, 0), |(p, b), path| (p + path.1, b + path.2));
        assert_eq!(counted, (sink.packets, sink.bytes));
        let lost: u64 = sent.dropped.iter().sum();
        assert!(counted.0 + lost >= filled && rejected <= filled);
    }
    passed > 0
}

/// Makes the forwarding decision for one packet. It must depend on nothing but the packet.
pub fn decision(data: &[u8]) -> bool {
    let fib = &*FIB;
    let ingress = &fib.ingresses[&InterfaceId::new(1).unwrap()];
    let streams = StreamState::default();
    let look_up = |bytes: &[u8]| {
        let arrival = forward::Arrival {
            fib,
            ingress,
            streams: &streams,
            sender: None,
            now_ms: clock(),
        };
        FLOWS.with_borrow_mut(|flows| decide(arrival, flows, bytes))
    };
    let ttls = |d: &Decision<'_>| d.variants().map(|v| v.ttl).collect::<Vec<_>>();
    let first = look_up(data);
    match &first {
        Ok(d) => {
            assert!(
                d.datagram.packet_len <= data.len()
                    && d.datagram.header_len <= d.datagram.packet_len
            );
            assert!(d.datagram.destination.is_multicast() && d.datagram.has_valid_source());
            assert_eq!(
                d.datagram.source.is_ipv4(),
                d.datagram.destination.is_ipv4()
            );
            assert!(d.variants().any(|v| v.paths().next().is_some()));
            // Bytes after the packet must not change the decision.
            let trimmed = look_up(&data[..d.datagram.packet_len]).expect("the trimmed packet");
            assert_eq!((trimmed.datagram, ttls(&trimmed)), (d.datagram, ttls(d)));
        }
        Err(NotData::Dropped(reason)) => assert!(DropReason::ALL.contains(reason)),
        Err(NotData::Membership) => {}
    }
    first.is_ok()
}

/// Translates a packet. The result must have the addresses of the rule, and its UDP checksum must
/// be valid if and only if it was valid before.
pub fn translate(data: &[u8]) -> bool {
    let mut input = Input(data);
    let selector = input.u8();
    let mut packet = input.0.to_vec();
    let Ok(datagram) = IpHeader::parse(&packet) else {
        return false;
    };
    if !datagram.destination.is_multicast() || !datagram.has_valid_source() {
        return false;
    }
    packet.truncate(datagram.packet_len);
    let translation = |source: &str, group: &str, to: (&str, &str)| {
        let from = (source.parse().unwrap(), group.parse().unwrap());
        let to = (to.0.parse().ok(), to.1.parse().ok());
        let port = std::num::NonZeroU16::new(u16::from(selector >> 4) * 256);
        TranslationRule::new(from, to, port, true).unwrap()
    };
    let four = datagram.source.is_ipv4();
    let rule = match (four, selector & 1 == 0) {
        (true, true) => translation("0.0.0.0/1", "224.0.0.0/5", ("128.0.0.0/1", "232.0.0.0/5")),
        (true, false) => translation("0.0.0.0/0", "224.0.0.0/4", ("64:ff9b::/96", "ff3e::/100")),
        (false, true) => translation("2000::/4", "ff30::/12", ("3000::/4", "ff20::/12")),
        (false, false) => translation("2000::/96", "ff3e::/100", ("0.0.0.0/0", "224.0.0.0/4")),
    };
    let before = udp_sum(&packet, &datagram);
    let (mut out, mut fragments) = (Vec::new(), Vec::new());
    let mtu = if selector & 2 == 0 {
        1500
    } else {
        usize::from(selector)
    };
    let done = if rule.kind().keeps_ip_version() {
        let done = translate_in_place(&mut packet, &datagram, &rule);
        if done.is_ok() {
            out.extend_from_slice(&packet);
            fragments.push(0..packet.len());
        }
        done
    } else {
        let mut ids = Identifications::default();
        translate_version(&packet, &datagram, &rule, &mut ids, mtu, &mut out, |r| {
            fragments.push(r)
        })
    };
    let Ok(family) = done else {
        assert!(
            fragments.is_empty() && out.is_empty(),
            "refused, but with output"
        );
        return false;
    };
    assert_eq!(family, rule.kind());
    let is_unfragmented = fragments.len() == 1;
    for fragment in fragments {
        let packet = &out[fragment];
        let new = IpHeader::parse(packet).expect("the output is a valid packet");
        assert_eq!(new.packet_len, packet.len());
        assert_eq!(new.ttl, datagram.ttl);
        let to = rule.addresses(datagram.source, datagram.destination);
        assert_eq!((new.source, new.destination), to);
        if let (Some(before), Some(after), true) = (before, udp_sum(packet, &new), is_unfragmented)
        {
            assert_eq!(
                before == 0xffff,
                after == 0xffff,
                "the translation changed the validity of the checksum"
            );
        }
        assert!(is_unfragmented || packet.len() <= mtu);
    }
    true
}

/// Returns the sum over the UDP datagram and its pseudo header, 0xffff if the checksum is valid.
/// `None` if the packet has no UDP checksum, or has options, extension headers or fragments.
fn udp_sum(packet: &[u8], d: &IpHeader) -> Option<u16> {
    let fragment = d.source.is_ipv4() && (packet[6] & 0x3f, packet[7]) != (0, 0);
    let body = &packet[d.header_len..d.packet_len];
    let len = u16::from_be_bytes([*body.get(4)?, *body.get(5)?]);
    let plain = d.protocol == 17 && !fragment && usize::from(len) == body.len();
    if !plain || body.len() < 8 || body[6..8] == [0, 0] {
        return None;
    }
    let sum = checksum::pseudo_header(d.source, d.destination, 17, body.len() as u32);
    Some(checksum::fold(checksum::add(sum, body)))
}

/// A FIB with all TTL policies, both IP versions, and egresses with large, usual and very small
/// MTU.
static FIB: LazyLock<Fib> = LazyLock::new(|| {
    let links: Links = [
        link(1, "in", 1500, None),
        link(2, "wide", 65_535, None),
        link(3, "usual", 1500, None),
        link(4, "tiny", 68, None),
        link(5, "in.10", 1500, Some(10)),
    ]
    .into_iter()
    .collect();
    let mut excepted = rule("225.1.2.3", None, &["tiny"], TtlPolicy::Keep);
    excepted.except_sources = vec!["10.0.0.0/9".parse().unwrap()];
    let mut link_local = rule("ff02::/16", None, &["usual"], TtlPolicy::Decrement);
    link_local.link_local = true;
    Rib {
        rules: vec![
            excepted,
            link_local,
            rule(
                "225.1.2.0/24",
                None,
                &["usual", "tiny"],
                TtlPolicy::Decrement,
            ),
            rule(
                "224.0.0.0/4",
                None,
                &["wide", "usual", "tiny"],
                TtlPolicy::Decrement,
            ),
            rule(
                "232.0.0.0/8",
                Some("10.0.0.0/8"),
                &["usual"],
                TtlPolicy::Set(8),
            ),
            rule(
                "ff00::/8",
                None,
                &["wide", "usual", "tiny"],
                TtlPolicy::Decrement,
            ),
            rule("ff3e::/32", None, &["gone"], TtlPolicy::Keep),
        ]
        .into(),
        interfaces: vec![InterfaceOptions {
            name: "usual".parse().unwrap(),
            ttl_threshold: TtlThreshold::new(8),
            mrdisc: None,
            reports: Default::default(),
            disabled: false,
            capture: false,
            kernel_forwarding: KernelForwarding::Auto,
            bandwidth: None,
        }],
        ..Rib::default()
    }
    .build_fib(&links, 1)
});

fn rule(group: &str, source: Option<&str>, to: &[&str], ttl: TtlPolicy) -> RouteRule {
    let to = to.iter().map(|t| t.parse().unwrap()).collect();
    let rule = RouteRule::new("in".parse().unwrap(), group.parse().unwrap(), to);
    RouteRule {
        name: RouteName::new(format!("{group} {source:?}")),
        source: source.map_or(rule.source, |s| s.parse().unwrap()),
        ttl,
        loop_guard: matches!(ttl, TtlPolicy::Set(_)),
        ..rule
    }
}

/// A sink that accepts or refuses packets according to `answers`.
struct ScriptedSink<'a> {
    answers: Input<'a>,
    mtu: usize,
    accepts_gso: bool,
    packets: u64,
    bytes: u64,
}

impl PacketSink for ScriptedSink<'_> {
    fn send(&mut self, packets: &mut dyn Iterator<Item = OutPacket<'_>>) -> io::Result<usize> {
        let limit = match self.answers.u8() {
            251 => return Err(io::Error::from_raw_os_error(libc::EAGAIN)),
            252 => return Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
            253 => return Err(io::Error::from_raw_os_error(libc::ENETDOWN)),
            254 => {
                self.accepts_gso = false;
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            0 => usize::MAX,
            n => usize::from(n),
        };
        let mut accepted = 0;
        for OutPacket {
            bytes: packet,
            segments,
        } in packets.take(limit)
        {
            assert!(
                self.accepts_gso || segments.is_none(),
                "unexpected GSO packet"
            );
            let longest = segments.map_or(packet.len(), |s| s.longest(packet.len()));
            assert!(longest <= self.mtu, "longer than the MTU");
            let parsed = IpHeader::parse(packet).expect("the output is a valid packet");
            assert_eq!(
                parsed.packet_len,
                packet.len(),
                "the packet includes padding"
            );
            self.bytes += segments.map_or(packet.len() as u64, |s| s.bytes(packet.len()));
            self.packets += segments.map_or(1, |s| s.count(packet.len()));
            accepted += 1;
        }
        Ok(accepted)
    }

    fn accepts_gso(&mut self) -> bool {
        self.accepts_gso
    }

    fn poll_writable(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

thread_local! {
    static SWITCH: RefCell<Switch> = RefCell::default();
    /// A small budget, so that the inputs exceed it.
    static FLOWS: RefCell<Flows> = RefCell::new(Flows::new(FlowBudget::new(256)));
}

/// Returns the time in milliseconds. Each call advances it beyond the window of the loop guard.
fn clock() -> u64 {
    static NOW: AtomicU64 = AtomicU64::new(0);
    NOW.fetch_add(10_000, Ordering::Relaxed)
}
