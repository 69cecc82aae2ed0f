//! What is tried with bytes from strangers. Used by the fuzz targets beside this file and, with
//! a bounded number of generated inputs, by `tests/fuzzed.rs`. Each function panics where a
//! promise is broken, and tells whether the input came through: was forwarded or understood.

use std::cell::RefCell;
use std::io;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use mcastor::control::Request;
use mcastor::forward::{DropReason, NotData, decide};
use mcastor::model::{IfIndex, Link, Links, RouteName, RouteRule, TtlPolicy, TtlThreshold};
use mcastor::planes::egress::Sent;
use mcastor::planes::{Batch, EgressQueue, Packet, Progress, Switch, Transmit};
use mcastor::settings::Settings;
use mcastor::streams::{Arrival, Tallies};
use mcastor::table::flows::{FlowBudget, Flows};
use mcastor::table::{Fib, InterfaceOptions, Rib};
use mcastor::wire::ip::Datagram;
use mcastor::wire::offload::Offload;

/// Takes bytes of the input apart; zeros where it ends.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, n: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        head
    }

    fn u8(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or_default()
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes([self.u8(), self.u8()])
    }
}

fn link(index: u32, name: &str, mtu: u32, vlan: Option<u16>) -> Link {
    let iif = IfIndex::new(1).unwrap();
    Link {
        index: IfIndex::new(index).unwrap(),
        name: name.parse().unwrap(),
        mtu,
        up: true,
        carrier: true,
        vlan: vlan.map(|id| (iif, id)),
    }
}

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

/// A live table: every policy, both IP versions, egresses with large, small and tiny MTU.
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
        ],
        interfaces: vec![InterfaceOptions {
            name: "usual".parse().unwrap(),
            ttl_threshold: TtlThreshold::new(8),
        }],
        joins: vec![],
    }
    .fib(&links, 1)
});

/// Takes packets as `answers` say.
struct Whim<'a> {
    answers: Input<'a>,
    mtu: usize,
    packets: u64,
    bytes: u64,
}

impl Transmit for Whim<'_> {
    fn send(&mut self, packets: &mut dyn Iterator<Item = &[u8]>) -> io::Result<usize> {
        let most = match self.answers.u8() {
            251 => return Err(io::Error::from_raw_os_error(libc::EAGAIN)),
            252 => return Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
            253 => return Err(io::Error::from_raw_os_error(libc::ENETDOWN)),
            0 => usize::MAX,
            n => usize::from(n),
        };
        let mut took = 0;
        for packet in packets.take(most) {
            assert!(packet.len() <= self.mtu, "larger than the MTU");
            let parsed = Datagram::parse(packet).expect("what leaves is a packet");
            assert_eq!(parsed.len, packet.len(), "padding left with it");
            self.bytes += packet.len() as u64;
            took += 1;
        }
        self.packets += took as u64;
        Ok(took)
    }

    fn poll_writable(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

thread_local! {
    static SWITCH: RefCell<Switch> = RefCell::default();
    /// Fewer than strangers can make.
    static FLOWS: RefCell<Flows> = RefCell::new(Flows::new(FlowBudget::new(256)));
}

/// A clock in milliseconds that never goes back; the loop window is left behind each time.
fn clock() -> u64 {
    static NOW: AtomicU64 = AtomicU64::new(0);
    NOW.fetch_add(10_000, Ordering::Relaxed)
}

/// A batch of packets, taken from the input with all that a plane may say of them, through the
/// switch and out of every egress.
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
            cut: flags & 0x80 != 0 && a & 1 == 1,
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
    let ingress = &fib.ingresses[&IfIndex::new(1).unwrap()];
    let batch = Batch::from_bytes(bytes, metas);
    let switched = SWITCH.with_borrow_mut(|s| s.run(fib, ingress, batch, clock()));
    let tally = &switched.tally;
    let dropped: u64 = tally.dropped.iter().sum();
    let seen = tally.packets + tally.membership;
    assert!(seen >= count as u64 && dropped <= count as u64);
    let slots: usize = switched.egresses.iter().map(|(_, s)| s.len()).sum();
    let below: u64 = tally.below_threshold.iter().map(|(_, n)| n).sum();
    let passed = tally.packets - dropped;
    assert!(slots as u64 + below >= passed, "a packet is nowhere");
    assert!(
        slots as u64 + below <= passed * 3,
        "more than there are egresses"
    );
    for (egress, slots) in switched.egresses {
        let mtu = fib.egresses[egress as usize].mtu as usize;
        let (mut queue, mut sent) = (EgressQueue::default(), Sent::default());
        let filled = slots.len() as u64;
        queue.fill(switched.load.clone(), slots, mtu, &mut sent);
        let unfit: u64 = sent.dropped.iter().sum();
        let mut whim = Whim {
            answers: Input(answers),
            mtu,
            packets: 0,
            bytes: 0,
        };
        while queue.drive(&mut whim, &mut sent) == Progress::Blocked {}
        assert!(queue.is_empty());
        let counted: (u64, u64) = sent
            .paths
            .iter()
            .fold((0, 0), |(p, b), path| (p + path.1, b + path.2));
        assert_eq!(counted, (whim.packets, whim.bytes));
        let lost: u64 = sent.dropped.iter().sum();
        assert!(counted.0 + lost >= filled && unfit <= filled);
    }
    passed > 0
}

/// One packet, looked up; what is decided follows from the packet alone.
pub fn decision(data: &[u8]) -> bool {
    let fib = &*FIB;
    let ingress = &fib.ingresses[&IfIndex::new(1).unwrap()];
    let look_up =
        |bytes: &[u8]| FLOWS.with_borrow_mut(|flows| decide(fib, ingress, flows, bytes, clock()));
    let first = look_up(data);
    match &first {
        Ok(d) => {
            assert!(d.datagram.len <= data.len() && d.datagram.header_len <= d.datagram.len);
            assert!(d.datagram.destination.is_multicast() && d.datagram.source_is_valid());
            assert_eq!(
                d.datagram.source.is_ipv4(),
                d.datagram.destination.is_ipv4()
            );
            assert!(!d.entry.paths.is_empty());
            // What follows the packet does not matter.
            let alone = look_up(&data[..d.datagram.len]).expect("the packet alone");
            assert_eq!((alone.datagram, alone.ttl), (d.datagram, d.ttl));
        }
        Err(NotData::Dropped(reason)) => assert!(DropReason::ALL.contains(reason)),
        Err(NotData::Membership) => {}
    }
    first.is_ok()
}

/// A line of the control socket. What is understood is understood again when written.
pub fn control(data: &[u8]) -> bool {
    let Ok(line) = std::str::from_utf8(data) else {
        return false;
    };
    match Request::parse(line) {
        Ok(request) => {
            let again = serde_json::to_string(&request).expect("a request can be written");
            assert_eq!(Request::parse(&again), Ok(request));
            true
        }
        Err(e) => {
            assert!(e.len() < 4096 + 2 * line.len(), "an answer that grows");
            false
        }
    }
}

/// A settings file. It is read or refused; a refusal can be shown.
pub fn settings(data: &[u8]) -> bool {
    thread_local! {
        static FILE: tempfile::NamedTempFile = tempfile::NamedTempFile::new().unwrap();
    }
    FILE.with(|file| {
        std::fs::write(file.path(), data).unwrap();
        match Settings::load(Some(file.path()), std::iter::empty()) {
            Ok(settings) => {
                for (i, one) in settings.routes.iter().enumerate() {
                    assert!(!settings.routes[..i].iter().any(|r| r.rivals(one)));
                }
                true
            }
            Err(report) => {
                assert!(!format!("{report} {report:?}").is_empty());
                false
            }
        }
    })
}

/// UDP payloads for the receiver of test streams: cut into pieces, each counted once.
pub fn recv(data: &[u8]) -> bool {
    let mut input = Input(data);
    let mut tallies = Tallies::default();
    let mut arrived = 0;
    let group = std::net::IpAddr::from([225, 1, 2, 3]);
    while !input.0.is_empty() {
        let (len, ttl) = (usize::from(input.u8()), input.u8());
        let received_ns = u64::from(input.u16()) << 48 | u64::from(input.u16());
        tallies.add(&Arrival {
            group,
            source: std::net::IpAddr::from([10, 0, 0, ttl % 4]),
            ttl: (ttl & 1 == 0).then_some(ttl),
            received_ns,
            data: input.take(len),
        });
        arrived += 1;
    }
    let report = tallies.report();
    let counted: u64 = report
        .iter()
        .map(|s| s.received + s.duplicates + s.late)
        .sum();
    assert_eq!(counted + tallies.foreign() + tallies.untracked(), arrived);
    for stream in &report {
        assert!(stream.first_seq <= stream.last_seq);
        assert!(stream.reordered <= stream.received && stream.damaged <= arrived);
        serde_json::to_string(stream).expect("a report can be written");
    }
    let _ = (tallies.received(group), tallies.is_complete(group));
    counted > 0
}
