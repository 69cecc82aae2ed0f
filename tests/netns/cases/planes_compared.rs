//! The packet plane and the eBPF plane side by side: the same random tables and packets must give
//! the same frames on each egress and the same counters.
//!
//!     MCASTOR_SOAK_PACKETS=100000 MCASTOR_SEED=7 cargo test --test netns planes_compared

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use super::cases;
use crate::lab::frame::{fix_ipv4_checksum, tagged, transport_sum};
use crate::lab::frame_generator::FrameGenerator;
use crate::lab::numbered_stream::stay_on_one_core;
use crate::lab::packet::Frame;
use crate::lab::tun::Tun;
use crate::lab::{
    Capture, Injector, IpPacket, Lab, Random, Router, Star, Udp, UdpTx, eventually, wait_until,
};

cases!("planes_compared":
    #[BpfPrograms] random_tables_and_packets_leave_alike,
);

/// Egresses of the router: as many as a route may have.
const EGRESSES: usize = 64;

/// Packets that are sent with one table before it changes.
const PACKETS_PER_TABLE: u64 = 1000;

/// Packets between two comparisons. So few that neither router drops any because it is busy.
const BURST: u64 = 125;

/// Longest wait for both routers to have forwarded a burst.
const PATIENCE: Duration = Duration::from_secs(20);

/// The counters that must be equal. Those of routes are added up over the planes.
const COUNTERS: [&str; 9] = [
    "mcastor_route_packets_total",
    "mcastor_route_bytes_total",
    "mcastor_dropped_packets_total",
    "mcastor_interface_received_packets_total",
    "mcastor_interface_received_bytes_total",
    "mcastor_interface_membership_messages_total",
    "mcastor_interface_transmitted_packets_total",
    "mcastor_interface_transmitted_bytes_total",
    "mcastor_translations_total",
];

/// A router with its senders and receivers.
struct Side {
    star: Star,
    router: Router,
    inject: Injector,
    tap: Tun,
    /// By egress, what it sent since the last comparison.
    captures: Vec<(Capture, Vec<Frame>)>,
    /// By series, what was counted since the start.
    counters: BTreeMap<String, u64>,
    last_read: BTreeMap<String, u64>,
}

/// What arrives at both routers.
enum Arrival {
    /// A frame on `in`.
    Frame(Vec<u8>),
    /// UDP payload of a GSO packet on `in`, and the size of its segments.
    Segments(String, Vec<u8>, usize),
    /// A frame on `tap0`, after its `struct virtio_net_hdr`.
    Tap(Vec<u8>),
}

impl Side {
    fn new(lab: &Lab, plane: &str) -> Self {
        let star = Star::v4_tagged(lab, EGRESSES, plane);
        // Some egresses fragment packets, or drop them as too big.
        star.rtr.ip("link set out1 mtu 600");
        star.rtr.ip("link set out2 mtu 1000");
        let tap = Tun::tap_with_offload(&star.rtr, "tap0");
        star.rtr.ip("link set tap0 up");
        let environment = [("MCASTOR__PLANE__KIND", plane)];
        let router = Router::start_with(lab, &star.rtr, &settings(&[], &[]), &environment);
        let captures = (1..=EGRESSES).map(|n| Capture::new(&star.rcv, &format!("eth{n}")));
        Self {
            captures: captures.map(|capture| (capture, Vec::new())).collect(),
            inject: Injector::new(&star.src, "eth0"),
            star,
            router,
            tap,
            counters: BTreeMap::new(),
            last_read: BTreeMap::new(),
        }
    }

    /// Returns whether the kernel takes the arrival.
    fn send(&self, arrival: &Arrival) -> bool {
        match arrival {
            Arrival::Frame(frame) => self.inject.send(frame),
            Arrival::Tap(frame) => return self.tap.try_write(frame),
            Arrival::Segments(to, payload, size) => {
                let tx = UdpTx::new(&self.star.src, "eth0", to);
                tx.bind(4000);
                tx.set(libc::SOL_UDP, libc::UDP_SEGMENT, *size as i32);
                // The kernel numbers packets with DF from zero, and others at random.
                let discover = libc::IP_PMTUDISC_DO;
                tx.set(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, discover);
                tx.ttl(64);
                tx.send(payload);
            }
        }
        true
    }

    /// Returns what arrived: on `in`, and on `tap0`.
    fn arrived(&self) -> (u64, u64) {
        let metrics = self.router.metrics();
        let of = |iface: &str| {
            let names = [
                "mcastor_interface_received_packets_total",
                "mcastor_interface_membership_messages_total",
                "mcastor_socket_dropped_packets_total",
            ];
            let sum = |name: &&str| metrics.sum(name, &[("iface", iface)]) as u64;
            names.iter().map(sum).sum()
        };
        (of("in"), of("tap0"))
    }

    /// Reads the counters. A router deletes those of removed paths after a while, so what they counted
    /// is kept here.
    fn read_counters(&mut self) {
        let mut now: BTreeMap<String, u64> = BTreeMap::new();
        for sample in self.router.metrics().samples {
            if COUNTERS.contains(&sample.name.as_str()) && sample.value > 0.0 {
                let mut labels = sample.labels;
                labels.remove("plane");
                let key = format!("{}{labels:?}", sample.name);
                *now.entry(key).or_default() += sample.value as u64;
            }
        }
        for (key, value) in &now {
            let before = self.last_read.get(key).copied().unwrap_or(0);
            let new = value.checked_sub(before).unwrap_or(*value);
            *self.counters.entry(key.clone()).or_default() += new;
        }
        self.last_read = now;
    }

    fn forwarded_by(&self, plane: &str) -> u64 {
        let labels = [("plane", plane)];
        self.router.metric("mcastor_route_packets_total", &labels) as u64
    }

    fn collect(&mut self) {
        for (capture, frames) in &mut self.captures {
            frames.extend(capture.take_new().into_iter().filter(|f| !f.outgoing));
        }
    }

    fn reload(&mut self, toml: &str) {
        self.router.write_settings(toml);
        self.router.run("reload");
        self.read_counters();
    }
}

/// A route of a random table.
#[derive(Clone)]
struct Route {
    from: &'static str,
    source: String,
    group: String,
    /// A part of `source`.
    excepted: Option<String>,
    to: Vec<String>,
    ttl: String,
    loop_guard: bool,
    rewrite: Option<String>,
}

fn settings(routes: &[Route], thresholds: &[(String, u8)]) -> String {
    // The kernel of the router joins nothing, so it sends no reports, which would be counted too.
    let mut toml = String::new();
    for (name, threshold) in thresholds {
        toml += &format!("[[interface]]\nname = \"{name}\"\nttl_threshold = {threshold}\n");
    }
    // The groups of `FrameGenerator`.
    for (n, group) in ["225.1.1.0/24", "ff3e::1:0/112"].iter().enumerate() {
        for from in ["in", "tap0"] {
            let more = "join = false\ningress = \"all\"\n";
            toml += &super::route(&format!("any{n}{from}"), from, "", group, &["out3"], more);
        }
    }
    for (n, route) in routes.iter().enumerate() {
        let mut more = format!(
            "join = false\ningress = \"all\"\nttl = {}\nloop_guard = {}\n",
            route.ttl, route.loop_guard
        );
        if let Some(excepted) = &route.excepted {
            more += &format!("except_sources = [\"{excepted}\"]\n");
        }
        if let Some(rewrite) = &route.rewrite {
            more += &format!("rewrite = {{ {rewrite} }}\n");
        }
        let to: Vec<&str> = route.to.iter().map(String::as_str).collect();
        let (source, group) = (&route.source, &route.group);
        toml += &super::route(&format!("r{n}"), route.from, source, group, &to, &more);
    }
    toml
}

/// Returns whether all packets of the flows to a group are plain: the kernel forwards each of them.
fn is_steady(group: IpAddr) -> bool {
    let last = match group {
        IpAddr::V4(group) => group.octets()[3],
        IpAddr::V6(group) => group.octets()[15],
    };
    last % 4 != 3
}

/// A stream of packets.
struct Flow {
    from: &'static str,
    source: IpAddr,
    group: IpAddr,
}

/// Generates tables and packets. The same seed gives the same ones.
struct Generator {
    random: Random,
    frames: FrameGenerator,
    /// Each table has groups of its own, so its flows are new.
    table: u16,
    packets: u32,
}

impl Generator {
    fn one_in(&mut self, n: usize) -> bool {
        self.random.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.random.below(items.len())]
    }

    fn group(&self, v6: bool, last: u8) -> IpAddr {
        let [high, low] = self.table.to_be_bytes();
        match v6 {
            false => Ipv4Addr::new(226, high, low, last).into(),
            true => Ipv6Addr::new(0xff3e, 0, 0, 0, 0, 1, self.table, last.into()).into(),
        }
    }

    fn source(v6: bool, last: u8) -> IpAddr {
        match v6 {
            false => Ipv4Addr::new(10, 0, 0, last).into(),
            true => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()).into(),
        }
    }

    fn egresses(&mut self) -> Vec<String> {
        let count = match self.random.below(40) {
            0 => EGRESSES,
            1 | 2 => 9 + self.random.below(30),
            3..10 => 4 + self.random.below(5),
            _ => 1 + self.random.below(3),
        };
        let mut chosen = BTreeSet::new();
        while chosen.len() < count {
            chosen.insert(1 + self.random.below(EGRESSES));
        }
        chosen.into_iter().map(|n| format!("out{n}")).collect()
    }

    fn ttl(&mut self) -> String {
        match self.random.below(4) {
            0 => "\"keep\"".to_owned(),
            1 => format!("{{ set = {} }}", self.pick(&[1, 5, 64, 255])),
            _ => "\"decrement\"".to_owned(),
        }
    }

    /// Returns a rewrite for route `n`, whose group has this many bits. Each route has other groups,
    /// because two streams may not leave with the same addresses.
    fn rewrite(&mut self, n: usize, v6: bool, bits: Option<usize>) -> Option<String> {
        if !self.one_in(6) {
            return None;
        }
        let [high, low] = self.table.to_be_bytes();
        let group = match v6 {
            false => Ipv4Addr::new(233 + n as u8 % 6, high, low, 0).to_string(),
            true => Ipv6Addr::new(0xff3e, 0, 0, 0, 0, 2 + n as u16, self.table, 0).to_string(),
        };
        let prefix = bits.map_or(String::new(), |bits| format!("/{bits}"));
        Some(match self.random.below(3) {
            0 => "port = 7000".to_owned(),
            1 => format!("group = \"{group}{prefix}\""),
            _ => format!("group = \"{group}{prefix}\", port = 7000"),
        })
    }

    fn routes(&mut self) -> Vec<Route> {
        let mut routes = Vec::new();
        // One route for all packets of each interface and IP version, so that few are dropped.
        for (from, v6) in [("in", false), ("in", true), ("tap0", false), ("tap0", true)] {
            let bits = if v6 { 124 } else { 28 };
            routes.push(Route {
                from,
                source: String::new(),
                group: format!("{}/{bits}", self.group(v6, 0)),
                excepted: None,
                to: self.egresses(),
                ttl: self.ttl(),
                loop_guard: false,
                rewrite: None,
            });
        }
        let mut keys = BTreeSet::new();
        for n in 0..2 + self.random.below(5) {
            let v6 = self.one_in(3);
            let from = if self.one_in(4) { "tap0" } else { "in" };
            let all = if v6 { 128 } else { 32 };
            let (group, bits) = match self.one_in(2) {
                true => (format!("{}", self.group(v6, 0)), None),
                false => {
                    let first = 4 * self.random.below(4) as u8;
                    let bits = all - 2;
                    (format!("{}/{bits}", self.group(v6, first)), Some(bits))
                }
            };
            let prefix = all - 3;
            let (source, excepted) = match self.random.below(4) {
                0 => (Self::source(v6, 10).to_string(), None),
                1 => {
                    let source = format!("{}/{prefix}", Self::source(v6, 8));
                    (source, Some(Self::source(v6, 11).to_string()))
                }
                2 => (format!("{}/{prefix}", Self::source(v6, 8)), None),
                _ => (String::new(), None),
            };
            if !keys.insert((from, source.clone(), group.clone())) {
                continue;
            }
            routes.push(Route {
                from,
                source,
                group,
                excepted,
                to: self.egresses(),
                ttl: self.ttl(),
                loop_guard: self.one_in(16),
                rewrite: self.rewrite(n, v6, bits),
            });
        }
        routes
    }

    /// Changes some of the routes.
    fn change(&mut self, routes: &mut [Route]) {
        for route in routes {
            match self.random.below(16) {
                0 | 4 => route.to = self.egresses(),
                1 | 5 => route.ttl = self.ttl(),
                2 => route.loop_guard = !route.loop_guard,
                3 if route.rewrite.is_none() => route.rewrite = Some("port = 7001".to_owned()),
                3 => route.rewrite = None,
                _ => {}
            }
        }
    }

    fn thresholds(&mut self) -> Vec<(String, u8)> {
        let names: BTreeSet<_> = (0..self.random.below(3))
            .map(|_| format!("out{}", 1 + self.random.below(EGRESSES)))
            .collect();
        let threshold = |name| (name, self.pick(&[2, 16, 63]));
        names.into_iter().map(threshold).collect()
    }

    fn flows(&mut self) -> Vec<Flow> {
        let mut flows = Vec::new();
        for _ in 0..20 {
            let v6 = self.one_in(3);
            // No source sends on both interfaces, between which there is no order.
            let (from, source) = match self.one_in(5) {
                true => ("tap0", 13 + self.random.below(2)),
                false => ("in", 10 + self.random.below(3)),
            };
            let group = self.random.below(16);
            flows.push(Flow {
                from,
                source: Self::source(v6, source as u8),
                group: self.group(v6, group as u8),
            });
        }
        flows
    }

    /// Returns a packet of a flow that the kernel can forward.
    fn plain(&mut self, flow: &Flow, len: usize) -> Udp {
        self.packets += 1;
        let mut payload = self.packets.to_be_bytes().to_vec();
        payload.extend((0..len).map(|n| (n as u32 ^ self.packets) as u8));
        let endpoint = |address: IpAddr, port: u16| match address.is_ipv6() {
            true => format!("[{address}]:{port}"),
            false => format!("{address}:{port}"),
        };
        let (source, group) = (endpoint(flow.source, 4000), endpoint(flow.group, 5000));
        let udp = Udp::new(&source, &group, payload).id(self.packets as u16);
        match self.one_in(12) {
            true => udp.zero_checksum().ttl(64),
            false => udp.ttl(64),
        }
    }

    /// Returns a packet of a flow as it arrives.
    fn arrival(&mut self, flow: &Flow) -> Arrival {
        if is_steady(flow.group) {
            let len = self.pick(&[0, 1, 18, 200, 500]);
            let udp = self.plain(flow, len);
            return self.on(flow, udp, |_, frame| frame);
        }
        let len = self.pick(&[0, 1, 18, 200, 200, 200, 555, 600, 960, 1400]);
        let mut udp = self.plain(flow, len);
        if self.one_in(15) {
            udp = udp.ttl(self.pick(&[0, 1, 2, 3, 16, 17, 255]));
        }
        if self.one_in(4) {
            udp = udp.df().tos(0x28);
        }
        let is_first_source = flow.source == Self::source(false, 10);
        match self.random.below(100) {
            0..3 if flow.from == "in" && is_first_source => {
                let payload = udp.frame().split_off(14 + 28).repeat(6);
                let size = self.pick(&[100, 300, 500]);
                Arrival::Segments(format!("{}:5000", flow.group), payload, size)
            }
            0..3 if flow.from == "in" => Arrival::Frame(self.frames.frame()),
            0..15 if flow.from == "tap0" => {
                let payload = 400 * self.random.below(8);
                let frame = self.plain(flow, payload).frame();
                Arrival::Tap(left_to_segment(frame, self.pick(&[100, 333, 1200])))
            }
            15..20 if flow.from == "tap0" => Arrival::Tap(self.frames.offloaded().bytes),
            3..8 => self.on(flow, udp, |generator, frame| generator.make_odd(frame)),
            _ => self.on(flow, udp, |_, frame| frame),
        }
    }

    fn on(
        &mut self,
        flow: &Flow,
        udp: Udp,
        change: impl FnOnce(&mut Self, Vec<u8>) -> Vec<u8>,
    ) -> Arrival {
        let frame = change(self, udp.frame());
        match flow.from {
            "in" => Arrival::Frame(frame),
            _ => Arrival::Tap([vec![0; 10], frame].concat()),
        }
    }

    /// Makes a valid frame one that is unusual or invalid.
    fn make_odd(&mut self, mut frame: Vec<u8>) -> Vec<u8> {
        let v4 = frame[12] == 0x08;
        let header = 14 + if v4 { 20 } else { 40 };
        match self.random.below(10) {
            0 => frame.truncate(15 + self.random.below(frame.len() - 15)),
            1 => return tagged(&frame, self.pick(&[7, 0, 0x2001])),
            2 => frame.extend(vec![0xaa; 1 + self.random.below(20)]),
            3 => frame[header + 6] ^= 0x5a,
            4 => frame[header + 4] ^= 1,
            5 if v4 => frame[14 + 10] ^= 0x11,
            6 if v4 => {
                frame[20..22].copy_from_slice(&self.pick(&[[0x20, 0], [0x20, 9], [0, 9]]));
                fix_ipv4_checksum(&mut frame[14..]);
            }
            7 if v4 => {
                let options = self.pick(&[[1, 1, 1, 0], [0x94, 4, 0, 0], [68, 4, 5, 0]]);
                let len = u16::from_be_bytes([frame[16], frame[17]]) + 4;
                frame[14] = 0x46;
                frame[16..18].copy_from_slice(&len.to_be_bytes());
                frame.splice(34..34, options);
                fix_ipv4_checksum(&mut frame[14..]);
            }
            8 => {
                frame[if v4 { 23 } else { 20 }] = self.pick(&[1, 6, 47, 132]);
                if v4 {
                    fix_ipv4_checksum(&mut frame[14..]);
                }
            }
            _ => {
                // Addresses stay, so that the packet remains in its flow.
                let at = 14 + self.random.below(if v4 { 12 } else { 8 });
                frame[at] = self.random.next() as u8;
                if v4 && frame[14] & 0xf == 5 && self.one_in(2) {
                    fix_ipv4_checksum(&mut frame[14..]);
                }
            }
        }
        frame
    }
}

/// Returns a frame with a UDP packet as a sender leaves it to be segmented: for the tap interface,
/// with an incomplete checksum.
fn left_to_segment(mut frame: Vec<u8>, size: u16) -> Vec<u8> {
    let packet = IpPacket::parse(&frame).expect("a packet");
    let transport = 14 + packet.header;
    let without = vec![0; frame.len() - transport];
    let sum = !transport_sum(packet.src, packet.dst, 17, &without);
    frame[transport + 6..transport + 8].copy_from_slice(&sum.to_be_bytes());
    let is_segmented = frame.len() - transport - 8 > usize::from(size);
    // VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_UDP_L4.
    let mut bytes = vec![1, if is_segmented { 5 } else { 0 }];
    let size = if is_segmented { size } else { 0 };
    for field in [transport as u16 + 8, size, transport as u16, 6] {
        bytes.extend(field.to_ne_bytes());
    }
    bytes.extend(frame);
    bytes
}

/// Returns what a receiver makes of a frame: without the source address of the link, without
/// padding, and with a complete checksum.
fn as_received(frame: &Frame) -> (Option<(IpAddr, IpAddr)>, Vec<u8>) {
    let mut bytes = frame.bytes.clone();
    bytes[6..12].fill(0);
    let Some(packet) = IpPacket::parse(&frame.bytes) else {
        return (None, bytes);
    };
    // The packet plane leaves out what follows the IP packet; the kernel copies it.
    bytes.truncate(bytes.len() - packet.padding);
    if frame.csum_not_ready {
        let transport = 14 + packet.header;
        bytes[transport + 6..transport + 8].fill(0);
        let sum = transport_sum(packet.src, packet.dst, 17, &bytes[transport..]);
        bytes[transport + 6..transport + 8].copy_from_slice(&sum.to_be_bytes());
    }
    (Some((packet.src, packet.dst)), bytes)
}

/// What one egress sent, by source and group, in order.
type Received = BTreeMap<Option<(IpAddr, IpAddr)>, Vec<Vec<u8>>>;

fn by_flow(frames: &[Frame]) -> Received {
    let mut flows = Received::new();
    for frame in frames {
        let (key, bytes) = as_received(frame);
        flows.entry(key).or_default().push(bytes);
    }
    flows
}

/// Both routers, and what was sent to each.
struct Comparison {
    packet: Side,
    ebpf: Side,
    /// Packets sent to `in` and, at least, to `tap0`.
    sent: (u64, u64),
    burst: u64,
    compared: u64,
}

impl Comparison {
    fn sides(&self) -> [&Side; 2] {
        [&self.packet, &self.ebpf]
    }

    fn send(&mut self, arrival: &Arrival) {
        let accepted = self.sides().map(|side| side.send(arrival));
        assert_eq!(
            accepted[0], accepted[1],
            "the kernel takes a frame only once"
        );
        match arrival {
            Arrival::Frame(_) => self.sent.0 += 1,
            Arrival::Segments(_, payload, size) => {
                self.sent.0 += payload.len().div_ceil(*size) as u64;
            }
            Arrival::Tap(_) => self.sent.1 += u64::from(accepted[0]),
        }
        self.burst += 1;
        if self.burst >= BURST {
            self.compare();
        }
    }

    /// Waits until both routers have decided about all packets, and compares what they did.
    fn compare(&mut self) {
        self.burst = 0;
        let sent = self.sent;
        for side in self.sides() {
            eventually(
                "each packet was received, and at least so many",
                sent,
                || {
                    let (from_in, from_tap) = side.arrived();
                    (from_in, from_tap.min(sent.1))
                },
            );
        }
        wait_until(PATIENCE, || {
            for side in [&mut self.packet, &mut self.ebpf] {
                side.collect();
                side.read_counters();
            }
            let captures = self.packet.captures.iter().zip(&self.ebpf.captures);
            let mut lengths = captures.map(|((_, p), (_, e))| p.len() == e.len());
            lengths.all(|equal| equal) && self.packet.counters == self.ebpf.counters
        });
        let captures = self.packet.captures.iter().zip(&self.ebpf.captures);
        for (n, ((_, packet), (_, ebpf))) in captures.enumerate() {
            assert_alike(n + 1, &by_flow(packet), &by_flow(ebpf));
            self.compared += packet.len() as u64;
        }
        let (packet, ebpf) = (&self.packet.counters, &self.ebpf.counters);
        let keys: BTreeSet<_> = packet.keys().chain(ebpf.keys()).collect();
        let differences: Vec<_> = keys
            .into_iter()
            .map(|key| (key, packet.get(key), ebpf.get(key)))
            .filter(|(_, packet, ebpf)| packet != ebpf)
            .collect();
        assert!(
            differences.is_empty(),
            "counters of the packet plane and of the eBPF plane: {differences:#?}"
        );
        for side in self.sides() {
            let lost = side
                .router
                .metric("mcastor_socket_dropped_packets_total", &[]);
            assert_eq!(lost, 0.0, "a router was too busy");
        }
        for side in [&mut self.packet, &mut self.ebpf] {
            side.captures.iter_mut().for_each(|(_, f)| f.clear());
        }
    }

    /// Sends packets until the kernel forwards all flows that it accepts.
    fn wait_for_hand_over(&mut self, generator: &mut Generator, flows: &[Flow]) {
        // The packets must not depend on how long this takes.
        let plain: Vec<Arrival> = flows
            .iter()
            .map(|flow| {
                let udp = generator.plain(flow, 20);
                generator.on(flow, udp, |_, frame| frame)
            })
            .collect();
        let groups: BTreeSet<String> = flows.iter().map(|f| f.group.to_string()).collect();
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            plain.iter().for_each(|arrival| self.send(arrival));
            std::thread::sleep(Duration::from_millis(10));
            let shown = self.ebpf.router.control().show("flows");
            let mut of_table = shown
                .iter()
                .filter(|flow| groups.contains(flow["group"].as_str().unwrap_or("")));
            let waits = |flow: &serde_json::Value| {
                let declined = flow["declined"].as_str().unwrap_or("");
                declined.contains("not handed over")
            };
            if !of_table.any(waits) || Instant::now() > until {
                return;
            }
        }
    }
}

#[track_caller]
fn assert_alike(egress: usize, packet: &Received, ebpf: &Received) {
    let keys: BTreeSet<_> = packet.keys().chain(ebpf.keys()).collect();
    let none = Vec::new();
    for key in keys {
        let of = |received: &Received| received.get(key).unwrap_or(&none).clone();
        let (packet, ebpf) = (of(packet), of(ebpf));
        if packet == ebpf {
            continue;
        }
        // Packets without a flow have no order.
        if key.is_none() && is_merged(&packet, &ebpf) {
            continue;
        }
        // The frames from the first that differs to the last one.
        let equal = packet.iter().zip(&ebpf).take_while(|(p, e)| p == e).count();
        let hex = |frames: &[Vec<u8>]| {
            let lines = frames.iter().skip(equal).map(|frame| {
                let bytes: String = frame.iter().map(|b| format!("{b:02x}")).collect();
                format!("  {} bytes {bytes:.120}\n", frame.len())
            });
            lines.collect::<String>()
        };
        panic!(
            "out{egress}, {key:?}: after {equal} equal packets\npacket plane:\n{}eBPF plane:\n{}",
            hex(&packet),
            hex(&ebpf)
        );
    }
}

/// Returns whether `merged` has the elements of `original`, in the order of two senders, each of which
/// kept the original order.
fn is_merged(original: &[Vec<u8>], merged: &[Vec<u8>]) -> bool {
    let mut positions: BTreeMap<&[u8], Vec<usize>> = BTreeMap::new();
    for (at, bytes) in original.iter().enumerate().rev() {
        positions.entry(bytes).or_default().push(at);
    }
    // The last position of each sender; `ahead` is the sender of the later packets.
    let (mut ahead, mut behind) = (None, None);
    for bytes in merged {
        let Some(at) = positions.get_mut(bytes.as_slice()).and_then(Vec::pop) else {
            return false;
        };
        if Some(at) > ahead {
            ahead = Some(at);
        } else if Some(at) > behind {
            behind = Some(at);
        } else {
            return false;
        }
    }
    original.len() == merged.len()
}

/// Sends the same random packets through both planes, with the same random tables, which change
/// twice. A part of the packets is sent before the kernel takes over, and another part afterwards.
fn random_tables_and_packets_leave_alike(lab: &Lab) {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|n| n.parse().expect("a number"))
    };
    let packets: u64 = number("MCASTOR_SOAK_PACKETS").unwrap_or(8_000);
    let seed: u64 = number("MCASTOR_SEED").unwrap_or(1);
    eprintln!("MCASTOR_SEED={seed}");
    stay_on_one_core();
    let mut comparison = Comparison {
        packet: Side::new(lab, "packet"),
        ebpf: Side::new(lab, "ebpf"),
        sent: (0, 0),
        burst: 0,
        compared: 0,
    };
    let mut generator = Generator {
        random: Random::new(seed),
        frames: FrameGenerator::new(seed, 0),
        table: 0,
        packets: 0,
    };
    while comparison.sent.0 + comparison.sent.1 < packets {
        generator.table += 1;
        let mut routes = generator.routes();
        let thresholds = generator.thresholds();
        let flows = generator.flows();
        let reload = |comparison: &mut Comparison, routes: &[Route]| {
            let toml = settings(routes, &thresholds);
            comparison.packet.reload(&toml);
            comparison.ebpf.reload(&toml);
        };
        reload(&mut comparison, &routes);
        let send = |comparison: &mut Comparison, generator: &mut Generator, count| {
            for _ in 0..count {
                let flow = &flows[generator.random.below(flows.len())];
                let arrival = generator.arrival(flow);
                comparison.send(&arrival);
            }
        };
        send(&mut comparison, &mut generator, PACKETS_PER_TABLE / 20);
        comparison.wait_for_hand_over(&mut generator, &flows);
        send(&mut comparison, &mut generator, PACKETS_PER_TABLE / 2);
        // No packet is on its way while the table changes: which table it meets would be chance.
        comparison.compare();
        generator.change(&mut routes);
        reload(&mut comparison, &routes);
        send(&mut comparison, &mut generator, PACKETS_PER_TABLE * 9 / 20);
        comparison.compare();
    }
    let (kernel, process) = ["ebpf", "packet"]
        .map(|plane| comparison.ebpf.forwarded_by(plane))
        .into();
    println!(
        "seed {seed}: {} packets sent, {} compared; of {} the kernel forwarded {kernel}",
        comparison.sent.0 + comparison.sent.1,
        comparison.compared,
        kernel + process
    );
    assert!(
        kernel > process,
        "the kernel forwarded {kernel}, the process {process}"
    );
    assert!(process > packets / 20, "the process forwarded {process}");
    assert_eq!(comparison.packet.forwarded_by("ebpf"), 0);
}
