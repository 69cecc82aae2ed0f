//! What is tried with bytes from strangers. Used by the fuzz targets beside this file and, with
//! a bounded number of generated inputs, by `tests/fuzzed.rs`. Each function panics where a
//! promise is broken, and tells whether the input came through: was forwarded or understood.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use mcastor::control::Request;
use mcastor::forward::translate::{Identifications, across, in_place};
use mcastor::forward::{self, Decision, DropReason, NotData, decide};
use mcastor::membership::{Downstream, DownstreamConfig, Protocol, ReportGate, Upstream};
use mcastor::mnat::protocol::{self, Answer, Op};
use mcastor::mnat::{Machine, Plan, Role, joinfile};
use mcastor::model::rewrite_rules;
use mcastor::model::{
    Group, HeaderChecks, IfIndex, Link, Links, ProxyRule, Rewrite, RouteName, RouteRule,
    SourceFilter, TtlPolicy, TtlThreshold,
};
use mcastor::planes::egress::Sent;
use mcastor::planes::{Batch, EgressQueue, Packet, Progress, Switch, Transmit};
use mcastor::settings::Settings;
use mcastor::smcroute::conf;
use mcastor::smcroute::convert::convert;
use mcastor::smcroute::wire::{Command, length};
use mcastor::streams::{Arrival, Tallies};
use mcastor::table::flows::{FlowBudget, Flows};
use mcastor::table::{Feeds, Fib, InterfaceOptions, Learned, Rib};
use mcastor::wire::checksum;
use mcastor::wire::envelope::Checks;
use mcastor::wire::group_message::Message;
use mcastor::wire::ip::Datagram;
use mcastor::wire::offload::Offload;
use mcastor::wire::{Refusal, membership, mrdisc};

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
        known_as: Default::default(),
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
            mrdisc: None,
            disabled: false,
        }],
        ..Rib::default()
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
    let feeds = Feeds::default();
    let look_up = |bytes: &[u8]| {
        let arrival = forward::Arrival {
            fib,
            ingress,
            feeds: &feeds,
            now_ms: clock(),
        };
        FLOWS.with_borrow_mut(|flows| decide(arrival, flows, bytes))
    };
    let ttls = |d: &Decision<'_>| d.versions().map(|v| v.ttl).collect::<Vec<_>>();
    let first = look_up(data);
    match &first {
        Ok(d) => {
            assert!(d.datagram.len <= data.len() && d.datagram.header_len <= d.datagram.len);
            assert!(d.datagram.destination.is_multicast() && d.datagram.source_is_valid());
            assert_eq!(
                d.datagram.source.is_ipv4(),
                d.datagram.destination.is_ipv4()
            );
            assert!(d.versions().any(|v| v.paths().next().is_some()));
            // What follows the packet does not matter.
            let alone = look_up(&data[..d.datagram.len]).expect("the packet alone");
            assert_eq!((alone.datagram, ttls(&alone)), (d.datagram, ttls(d)));
        }
        Err(NotData::Dropped(reason)) => assert!(DropReason::ALL.contains(reason)),
        Err(NotData::Membership) => {}
    }
    first.is_ok()
}

/// A packet with a message about memberships, or of multicast router discovery. What is heard is
/// heard again when written.
pub fn membership(data: &[u8]) -> bool {
    let on_link = ["10.0.0.0/8".parse().unwrap()];
    let checks = |headers| Checks {
        headers,
        on_link: &on_link,
    };
    let lenient = checks(HeaderChecks::Lenient);
    let heard = membership::parse(data, &lenient);
    let strictly = membership::parse(data, &checks(HeaderChecks::Strict));
    match (&heard, &strictly) {
        (heard, Ok(_)) => assert_eq!(heard, &strictly),
        (Err(refusal), Err(_)) => assert!(Refusal::ALL.contains(refusal)),
        (Ok(_), Err(_)) => {}
    }
    let discovery = mrdisc::parse(data, &lenient);
    assert!(heard.is_err() || discovery.is_err(), "both at once");
    if heard.is_ok() || discovery.is_ok() {
        let datagram = Datagram::parse(data).expect("what is heard is a packet");
        assert!(
            datagram.is_membership_message(data),
            "it would be forwarded"
        );
        assert_eq!(mrdisc::is_message(&datagram, data), discovery.is_ok());
    }
    if let Ok(discovery) = &discovery {
        // Its own source may be one that is not spoken from.
        let from = ours(discovery.source);
        let packet = mrdisc::build(&discovery.message, from);
        let again = mrdisc::parse(&packet, &checks(HeaderChecks::Strict));
        assert_eq!(again.map(|h| h.message), Ok(discovery.message));
    }
    let Ok(heard) = heard else {
        return discovery.is_ok();
    };
    let held = match &heard.message {
        Message::Query(query) => query.sources.len(),
        Message::Records(records) => records.iter().map(|r| 1 + r.sources.len()).sum(),
        Message::Report { .. } | Message::Leave { .. } => 1,
    };
    assert!(held * 4 <= data.len(), "more than it holds");
    LIVE.with_borrow_mut(|live| live.hear(heard.source, heard.destination, &heard.message));
    let packets = membership::build(&heard.message, ours(heard.source), 65_535);
    let packets = packets.expect("what is heard can be said");
    for packet in &packets {
        // Groups of interface-local scope are no destination.
        match membership::parse(packet, &checks(HeaderChecks::Strict)) {
            Err(refusal) => assert_eq!(refusal, Refusal::BadDestination),
            // The largest do not fit behind our header, which has an option.
            Ok(again) if data.len() < 60_000 => assert_eq!(again.message, heard.message),
            Ok(_) => {}
        }
    }
    true
}

/// What stands behind the parser: the gate, a machine for each IP version, what is wanted
/// upstream, and the snapshot made of it.
struct Live {
    now: Instant,
    gate: ReportGate,
    machines: [Downstream; 2],
    upstream: Upstream,
    learned: Learned,
    fib: Fib,
    wanted: BTreeMap<Group, SourceFilter>,
}

/// Few, so that they are reached.
const GROUPS: usize = 80;
const SOURCES: usize = 8;
const OUT: u32 = 3;

thread_local! {
    static LIVE: RefCell<Live> = RefCell::new(Live::new());
}

impl Live {
    fn new() -> Self {
        let now = Instant::now();
        let pattern = |name: &str| vec![name.parse().unwrap()];
        let mut rule = ProxyRule::new(pattern("in"), pattern("usual"));
        rule.limits.groups = GROUPS;
        rule.limits.sources_per_group = SOURCES;
        rule.limits.reports_per_second = 1000;
        rule.fast_leave = true;
        let links: Links = [link(1, "in", 1500, None), link(OUT, "usual", 1500, None)]
            .into_iter()
            .collect();
        let mut fib = Rib {
            proxies: vec![rule.clone()],
            ..Rib::default()
        }
        .fib(&links, 1);
        let mut learned = Learned::default();
        learned.rebuild(&mut fib);
        let rule = Arc::new(rule);
        let machine = |protocol, own: &str| {
            let config = DownstreamConfig::new(protocol, rule.clone());
            Downstream::new(now, config, Some(own.parse().unwrap()))
        };
        Self {
            now,
            gate: ReportGate::new(now, 1000, 7),
            machines: [
                machine(Protocol::Igmp, "10.0.0.1"),
                machine(Protocol::Mld, "fe80::1"),
            ],
            upstream: Upstream::new(),
            learned,
            fib,
            wanted: BTreeMap::new(),
        }
    }

    /// One message, some time later. Limits hold, and machine, upstream and snapshot agree.
    fn hear(&mut self, from: IpAddr, to: IpAddr, message: &Message) {
        self.now += Duration::from_millis(37);
        let now = self.now;
        let downstream = IfIndex::new(OUT).unwrap();
        let machine = &mut self.machines[usize::from(!from.is_ipv4())];
        if self.gate.admit(now, from).is_ok() {
            let standing = self.gate.standing(now, from);
            if machine.handle_as(now, standing, from, to, message).is_ok() {
                let until = now + machine.timing().group_membership_interval();
                self.gate.member(now, from, until);
            }
        }
        machine.handle_timeout(now);
        assert!(machine.poll_timeout().is_none_or(|at| at > now));
        assert!(machine.group_count() <= GROUPS);
        assert!(machine.source_count() <= machine.config().sources());
        assert!(self.gate.known() <= 4096);
        let mut asked = 0;
        while machine.poll_query().is_some() {
            asked += 1;
        }
        // A query holds 75 or 135 sources; each record asks once, and timers for each group.
        let records = match message {
            Message::Records(records) => records.len(),
            _ => 1,
        };
        assert!(asked <= 2 * records + 2 * GROUPS + 2, "{asked} queries");
        while machine.poll_event().is_some() {}
        let mut changed = Vec::new();
        while let Some((group, filter)) = machine.poll_change() {
            assert_eq!(machine.filter(group), filter);
            self.learned.learn(downstream, group, filter.clone());
            self.upstream.note(downstream, group, filter.clone());
            changed.push((group, filter));
        }
        if let Some(fib) = self.learned.update(&self.fib, self.fib.generation + 1) {
            self.fib = fib;
        }
        while let Some((group, filter)) = self.upstream.poll_change() {
            assert_eq!(self.upstream.union(group), filter);
            match filter.is_none() {
                true => self.wanted.remove(&group),
                false => self.wanted.insert(group, filter),
            };
        }
        for (group, filter) in changed {
            let told = self.wanted.get(&group).cloned().unwrap_or_default();
            assert_eq!(told, filter, "upstream is the union of one");
            let stranger = match group.addr() {
                IpAddr::V4(_) => IpAddr::from([10, 77, 77, 77]),
                IpAddr::V6(_) => "2001:db8::77".parse().unwrap(),
            };
            let named = match &filter {
                SourceFilter::Include(named) | SourceFilter::Exclude(named) => named,
            };
            let sources = named.iter().map(|s| s.addr()).chain([stranger]);
            for source in sources {
                let found = self.fib.wishes.find(source, group.addr());
                let taken = found.is_some_and(|f| !self.fib.wishes.set(f.set).is_empty());
                let takes = filter.takes(mcastor::model::Source::new(source).unwrap());
                assert_eq!(taken, takes, "{source} {group}");
            }
        }
        assert!(self.learned.len() <= 2 * GROUPS && self.wanted.len() <= 2 * GROUPS);
    }
}

/// Where we would speak from to such a host.
fn ours(source: std::net::IpAddr) -> std::net::IpAddr {
    let ours = if source.is_ipv4() {
        "10.0.0.1"
    } else {
        "fe80::1"
    };
    ours.parse().unwrap()
}

/// What the UDP checksum of a packet without options, extensions or fragments sums to: 0xffff
/// where it is right, `None` where there is none to look at.
fn udp_sum(packet: &[u8], d: &Datagram) -> Option<u16> {
    let fragment = d.source.is_ipv4() && (packet[6] & 0x3f, packet[7]) != (0, 0);
    let body = &packet[d.header_len..d.len];
    let len = u16::from_be_bytes([*body.get(4)?, *body.get(5)?]);
    let plain = d.protocol == 17 && !fragment && usize::from(len) == body.len();
    if !plain || body.len() < 8 || body[6..8] == [0, 0] {
        return None;
    }
    let sum = checksum::pseudo_header(d.source, d.destination, 17, body.len() as u32);
    Some(checksum::fold(checksum::add(sum, body)))
}

/// A packet, translated: what comes out is a packet to where the rewrite says, as right or as
/// wrong as before.
pub fn translate(data: &[u8]) -> bool {
    let mut input = Input(data);
    let which = input.u8();
    let mut packet = input.0.to_vec();
    let Ok(datagram) = Datagram::parse(&packet) else {
        return false;
    };
    if !datagram.destination.is_multicast() || !datagram.source_is_valid() {
        return false;
    }
    packet.truncate(datagram.len);
    let of = |source: &str, group: &str, to: (&str, &str)| {
        let from = (source.parse().unwrap(), group.parse().unwrap());
        let to = (to.0.parse().ok(), to.1.parse().ok());
        let port = std::num::NonZeroU16::new(u16::from(which >> 4) * 256);
        Rewrite::new(from, to, port, true).unwrap()
    };
    let four = datagram.source.is_ipv4();
    let rewrite = match (four, which & 1 == 0) {
        (true, true) => of("0.0.0.0/1", "224.0.0.0/5", ("128.0.0.0/1", "232.0.0.0/5")),
        (true, false) => of("0.0.0.0/0", "224.0.0.0/4", ("64:ff9b::/96", "ff3e::/100")),
        (false, true) => of("2000::/4", "ff30::/12", ("3000::/4", "ff20::/12")),
        (false, false) => of("2000::/96", "ff3e::/100", ("0.0.0.0/0", "224.0.0.0/4")),
    };
    let before = udp_sum(&packet, &datagram);
    let (mut out, mut cuts) = (Vec::new(), Vec::new());
    let mtu = if which & 2 == 0 {
        1500
    } else {
        usize::from(which)
    };
    let done = if rewrite.family().stays() {
        let done = in_place(&mut packet, &datagram, &rewrite);
        if done.is_ok() {
            out.extend_from_slice(&packet);
            cuts.push(0..packet.len());
        }
        done
    } else {
        let mut ids = Identifications::default();
        across(&packet, &datagram, &rewrite, &mut ids, mtu, &mut out, |r| {
            cuts.push(r)
        })
    };
    let Ok(family) = done else {
        assert!(
            cuts.is_empty() && out.is_empty(),
            "refused, but something is left"
        );
        return false;
    };
    assert_eq!(family, rewrite.family());
    let whole = cuts.len() == 1;
    for cut in cuts {
        let packet = &out[cut];
        let new = Datagram::parse(packet).expect("what leaves is a packet");
        assert_eq!(new.len, packet.len());
        assert_eq!(new.ttl, datagram.ttl);
        let to = rewrite.addresses(datagram.source, datagram.destination);
        assert_eq!((new.source, new.destination), to);
        if let (Some(before), Some(after), true) = (before, udp_sum(packet, &new), whole) {
            assert_eq!(
                before == 0xffff,
                after == 0xffff,
                "the checksum was or became wrong"
            );
        }
        assert!(whole || packet.len() <= mtu);
    }
    true
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
                    assert_eq!(rewrite_rules::feeds_itself(&settings.routes, i), None);
                }
                assert_eq!(rewrite_rules::all_merged(&settings.routes), []);
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

/// A joinfile. What is read is written and read again as the same.
pub fn joins(data: &[u8]) -> bool {
    let file = joinfile::parse(data);
    assert!(file.faults.len() <= file.fault_count);
    assert!(
        file.joins.len() + file.fault_count <= data.iter().filter(|b| **b == b'\n').count() + 1
    );
    let again = joinfile::parse(joinfile::render(file.joins.clone()).as_bytes());
    assert_eq!((again.joins, again.fault_count), (file.joins.clone(), 0));
    !file.joins.is_empty()
}

/// An answer of an MNAT server, to every kind of request, and to an end that has mappings: it
/// goes on, and a mapping it loses is taken back as it was.
pub fn mnat_answer(data: &[u8]) -> bool {
    let mut input = Input(data);
    let (status, body) = (input.u16() % 600, input.0);
    for op in Op::ALL {
        if let Ok(Answer::Watcher { id, .. }) = protocol::read(op, status, body) {
            assert!(!id.is_empty() && id.len() <= 128);
        }
    }
    let (watcher, known) = (
        br#"{"watcher-id": "A", "refresh-period": 20}"#,
        br#"{"ietf-mnat:watcher": [{"id": "A", "mapped-sg": [{"id": 1, "state": "assigned-local-multicast",
            "global-subscription": {"source": "10.0.0.1", "group": "232.1.1.1"},
            "local-mapping": {"source": "10.9.1.2", "group": "239.1.1.7"}}]}]}"#,
    );
    let begun = std::time::Instant::now();
    let grace = std::time::Duration::from_secs(300);
    let mut machine = Machine::new(Role::Ingress, grace, begun, 1);
    let (mut plan, mut now) = (Plan::new(Role::Ingress), begun);
    let mut polls = 0;
    for _ in 0..40 {
        now = now.max(machine.poll_timeout().expect("it always goes on"));
        machine.handle_timeout(now);
        let Some(request) = machine.poll_request(now) else {
            continue;
        };
        let answer: (u16, &[u8]) = match (request.op, polls) {
            (Op::Poll, 1) => (status, body),
            (Op::Poll, _) => (200, known),
            _ => (200, watcher),
        };
        polls += u32::from(request.op == Op::Poll);
        machine.handle_outcome(now, Ok(answer));
        while let Some(event) = machine.poll_event() {
            if let mcastor::mnat::Event::Change(change) = event {
                plan.apply(now, &change);
            }
        }
        while plan.poll_step().is_some() {}
    }
    assert!(polls > 3, "{polls} polls");
    assert_eq!(machine.counts()[0], 1, "the mapping came back");
    assert_eq!(plan.routes().count(), 1);
    protocol::read(Op::Poll, status, body).is_ok()
}

/// An `smcroute.conf` that may include itself under other names. Every fault has a line, no two
/// routes are rivals, and what it means can be written as TOML and read back.
pub fn smcroute_conf(data: &[u8]) -> bool {
    thread_local! {
        static FILE: tempfile::NamedTempFile = tempfile::Builder::new()
            .suffix(".toml")
            .tempfile()
            .unwrap();
    }
    let mut left = 20;
    let conf = conf::read("a", data.first().is_some_and(|b| b % 2 == 0), &mut |path| {
        left -= 1;
        match (path, left) {
            ("a", _) => Ok(vec![("a".into(), data.to_vec())]),
            (_, ..0) => Err(io::ErrorKind::NotFound.into()),
            (path, _) => Ok(vec![(path.into(), data.to_vec())]),
        }
    });
    for fault in &conf.faults {
        assert!(fault.place.line > 0 && !fault.cause.is_empty());
    }
    for (i, (_, one)) in conf.routes.iter().enumerate() {
        assert!(
            !one.to.is_empty()
                && one.source.net().addr().is_ipv4() == one.group.net().addr().is_ipv4()
        );
        assert!(!conf.routes[..i].iter().any(|(_, r)| r.rivals(one)));
    }
    let toml = convert(&conf);
    FILE.with(|file| {
        std::fs::write(file.path(), &toml).unwrap();
        let settings = Settings::load(Some(file.path()), std::iter::empty());
        let settings = settings.unwrap_or_else(|report| panic!("{report}\n{toml}"));
        let routes: Vec<_> = conf.routes.iter().map(|(_, r)| r.clone()).collect();
        let joins: Vec<_> = conf.joins.iter().map(|(_, j)| j.clone()).collect();
        assert_eq!((settings.routes, settings.joins), (routes, joins), "{toml}");
    });
    !conf.routes.is_empty() || !conf.joins.is_empty() || !conf.interfaces.is_empty()
}

/// A command on smcroute's socket. It is understood, and then writes itself as it was, or
/// refused.
pub fn smcroute_wire(data: &[u8]) -> bool {
    let whole = length(data);
    match Command::read(data) {
        Ok(command) => {
            assert_eq!(whole, Ok(Some(data.len())));
            let written = command.write().expect("what was read is short enough");
            assert_eq!(Command::read(&written), Ok(command));
            true
        }
        Err(e) => {
            assert!(!e.to_string().is_empty() && e.to_string().len() < 200);
            false
        }
    }
}
