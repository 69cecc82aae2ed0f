//! Generates frames of all protocols that the router reads. They follow the structure of the
//! protocols, so that they get behind the first checks: some are valid, in some a field is wrong,
//! and some have random bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Random;
use super::frame::{Ipv4, ethernet, fix_ipv4_checksum, ipv4, tagged, transport_sum};
use super::proxy::checksummed;

const UDP: u8 = 17;
const IGMP: u8 = 2;
const ICMPV6: u8 = 58;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

/// Longest frame of an Ethernet link, without a tag.
const MAX_FRAME: usize = 1514;

/// A frame of a tap interface with `IFF_VNET_HDR`.
pub struct OffloadedFrame {
    /// The `struct virtio_net_hdr` and the frame.
    pub bytes: Vec<u8>,
    /// The largest number of packets that it stands for.
    pub packets: u64,
}

/// A generator of frames on a link.
pub struct FrameGenerator {
    random: Random,
    /// The third octet of the IPv4 addresses on the link, 10.0.N.0/24.
    subnet: u8,
}

impl FrameGenerator {
    /// Creates a generator that returns the same frames in each run, for the link 10.0.N.0/24.
    pub fn new(seed: u64, subnet: u8) -> Self {
        Self {
            random: Random::new(seed),
            subnet,
        }
    }

    /// Returns a frame: data, membership messages, or other protocols.
    pub fn frame(&mut self) -> Vec<u8> {
        let kind = self.random.below(8);
        let mut frame = self.damaged_packet(kind, 1400);
        frame.truncate(MAX_FRAME);
        // The kernel drops a tagged frame with less than two bytes of the packet.
        if self.one_in(50) && frame.len() >= 16 {
            let tci = self.random.next() as u16;
            frame = tagged(&frame, tci);
        }
        frame
    }

    /// Returns a frame of an IGMP or MLD message.
    pub fn message(&mut self) -> Vec<u8> {
        let kind = 3 + self.random.below(3);
        let mut frame = self.damaged_packet(kind, 1400);
        frame.truncate(MAX_FRAME);
        frame
    }

    /// Returns a frame that the sender leaves to be segmented.
    pub fn offloaded(&mut self) -> OffloadedFrame {
        let frame = self.damaged_packet(0, 20_000);
        let flags = u8::from(!self.one_in(4));
        let kind = *self.pick(&[5, 5, 5, 5, 3, 1, 4, 0, 0x85]);
        let size = *self.pick(&[100_u16, 600, 1200, 1400, 0, 0xffff]);
        let header = if frame[12] == 0x86 { 40 } else { 20 };
        let transport = match self.one_in(8) {
            true => self.random.below(80) as u16,
            false => 14 + header,
        };
        let headers = match self.one_in(8) {
            true => self.random.next() as u16,
            false => transport + 8,
        };
        let mut bytes = vec![flags, kind];
        for field in [headers, size, transport, 6] {
            bytes.extend(field.to_ne_bytes());
        }
        bytes.extend(&frame);
        OffloadedFrame {
            packets: match size {
                0 => 1,
                size => frame.len().div_ceil(size.into()) as u64,
            },
            bytes,
        }
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.random.below(n) == 0
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.random.below(items.len())]
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.random.next() as u8).collect()
    }

    /// Returns a number, or in one of ten cases another one.
    fn mostly(&mut self, number: u16) -> u16 {
        match self.one_in(10) {
            true => *self.pick(&[0, 1, number.wrapping_sub(1), number.wrapping_add(1), 0xffff]),
            false => number,
        }
    }

    /// Returns a packet, of which one in four is damaged.
    fn damaged_packet(&mut self, kind: usize, longest: usize) -> Vec<u8> {
        let v6 = self.one_in(2);
        let mut frame = self.packet(v6, kind, longest);
        if self.one_in(4) {
            self.damage(&mut frame);
        }
        frame
    }

    fn packet(&mut self, v6: bool, kind: usize, longest: usize) -> Vec<u8> {
        let is_message = (3..6).contains(&kind);
        let (source, group) = (self.source(v6, is_message), self.group(v6));
        let (protocol, payload) = match kind {
            0..3 => (UDP, self.udp(source, group, longest)),
            3 => self.report(source, group),
            4 => self.query(source, group),
            5 => self.short_message(source, group),
            6 => self.other_control_message(source, group),
            _ => {
                let len = self.random.below(200);
                (self.random.next() as u8, self.bytes(len))
            }
        };
        let ttl = match is_message && !self.one_in(10) {
            true => 1,
            false => *self.pick(&[0, 1, 2, 9, 64, 64, 255]),
        };
        let ip = match (source, group) {
            (IpAddr::V4(source), IpAddr::V4(group)) => {
                let header = Ipv4 {
                    tos: self.random.next() as u8,
                    id: self.random.next() as u16,
                    flags_offset: *self.pick(&[0, 0, 0, 0, 0x4000, 0x2000, 0x1fff, 0x00b9, 0x3f00]),
                    ttl,
                    protocol,
                    src: source.octets(),
                    dst: group.octets(),
                    options: self.ipv4_options(is_message),
                };
                ipv4(&header, &payload)
            }
            (IpAddr::V6(source), IpAddr::V6(group)) => {
                let (next, body) = self.extension_headers(is_message, protocol, payload);
                let mut ip = vec![0x60, self.random.next() as u8, 0, 0];
                let len = self.mostly(body.len() as u16);
                ip.extend(len.to_be_bytes());
                ip.extend([next, ttl]);
                ip.extend(source.octets());
                ip.extend(group.octets());
                ip.extend(&body);
                ip
            }
            _ => unreachable!("both addresses have the same version"),
        };
        ethernet(group, &ip)
    }

    fn source(&mut self, v6: bool, is_message: bool) -> IpAddr {
        let host = self.random.below(30) as u8 + 10;
        let random = self.random.next();
        match (v6, self.random.below(12)) {
            (false, 0) => Ipv4Addr::from(random as u32).into(),
            (false, 1) => IpAddr::V4(*self.pick(&[
                Ipv4Addr::UNSPECIFIED,
                Ipv4Addr::BROADCAST,
                Ipv4Addr::LOCALHOST,
                Ipv4Addr::new(169, 254, 1, 1),
                Ipv4Addr::new(225, 1, 1, 1),
            ])),
            (false, _) => Ipv4Addr::new(10, 0, self.subnet, host).into(),
            (true, 0) => Ipv6Addr::from(u128::from(random) << 64 | u128::from(random)).into(),
            (true, 1) => IpAddr::V6(*self.pick(&[
                Ipv6Addr::UNSPECIFIED,
                Ipv6Addr::LOCALHOST,
                "ff02::1".parse().expect("an address"),
                "::ffff:10.0.0.1".parse().expect("an address"),
            ])),
            (true, _) if is_message => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, host.into()).into(),
            (true, _) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, host.into()).into(),
        }
    }

    fn group(&mut self, v6: bool) -> IpAddr {
        let random = self.random.next() as u32;
        let last = random as u8;
        match (v6, self.random.below(10)) {
            (false, 0) => Ipv4Addr::from(random).into(),
            (false, 1) => IpAddr::V4(*self.pick(&[
                Ipv4Addr::new(224, 0, 0, 1),
                Ipv4Addr::new(224, 0, 0, 2),
                Ipv4Addr::new(224, 0, 0, 22),
                Ipv4Addr::new(224, 0, 0, 251),
                Ipv4Addr::new(10, 0, self.subnet, 1),
            ])),
            (false, 2) => Ipv4Addr::new(232, 1, 1, last).into(),
            (false, 3..5) => Ipv4Addr::new(239, 1, 1, last).into(),
            (false, 5) => Ipv4Addr::new(226, 1, 1, last).into(),
            (false, _) => Ipv4Addr::new(225, 1, 1, last).into(),
            (true, 0) => Ipv6Addr::new(0xff0e, 0, 0, 0, 0, 0, 0, random as u16).into(),
            (true, 1) => {
                let known = [
                    "ff02::1",
                    "ff02::2",
                    "ff02::16",
                    "ff01::1",
                    "ff05::2",
                    "2001:db8::1",
                ];
                let known: &[&str; 6] = &known;
                IpAddr::V6(self.pick(known).parse().expect("an address"))
            }
            (true, 2..5) => Ipv6Addr::new(0xff1e, 0, 0, 0, 0, 0, 1, last.into()).into(),
            (true, _) => Ipv6Addr::new(0xff3e, 0, 0, 0, 0, 0, 1, last.into()).into(),
        }
    }

    fn udp(&mut self, source: IpAddr, group: IpAddr, longest: usize) -> Vec<u8> {
        let len = match longest {
            1400 => *self.pick(&[0, 1, 64, 600, 1400]),
            longest => self.random.below(longest),
        };
        let port = self.random.next() as u16;
        let mut udp = vec![0, 9];
        udp.extend(port.to_be_bytes());
        let stated = self.mostly(8 + len as u16);
        udp.extend(stated.to_be_bytes());
        udp.extend([0, 0]);
        udp.resize(8 + len, port as u8);
        let sum = match self.one_in(8) {
            true => 0,
            false => match transport_sum(source, group, UDP, &udp) {
                0 => 0xffff,
                sum => sum,
            },
        };
        let sum = self.mostly(sum);
        udp[6..8].copy_from_slice(&sum.to_be_bytes());
        udp
    }

    /// Writes the checksum of an IGMP or ICMPv6 message.
    fn message_of(&mut self, source: IpAddr, group: IpAddr, mut body: Vec<u8>) -> (u8, Vec<u8>) {
        if self.one_in(20) {
            let at = self.random.below(body.len());
            body[at] ^= 1 << self.random.below(8);
        }
        match source {
            IpAddr::V4(_) => {
                let body = match self.one_in(20) {
                    true => body,
                    false => checksummed(&body),
                };
                (IGMP, body)
            }
            IpAddr::V6(_) => {
                body[2..4].fill(0);
                let sum = transport_sum(source, group, ICMPV6, &body);
                let sum = self.mostly(sum);
                body[2..4].copy_from_slice(&sum.to_be_bytes());
                (ICMPV6, body)
            }
        }
    }

    fn octets(address: IpAddr) -> Vec<u8> {
        match address {
            IpAddr::V4(a) => a.octets().to_vec(),
            IpAddr::V6(a) => a.octets().to_vec(),
        }
    }

    fn sources(&mut self, v6: bool, most: usize) -> (u16, Vec<u8>) {
        let count = self.random.below(most);
        let mut octets = Vec::new();
        for _ in 0..count {
            let source = self.source(v6, false);
            octets.extend(Self::octets(source));
        }
        (self.mostly(count as u16), octets)
    }

    /// An IGMPv3 or MLDv2 report: records of each type, with sources and auxiliary data.
    fn report(&mut self, source: IpAddr, group: IpAddr) -> (u8, Vec<u8>) {
        let v6 = source.is_ipv6();
        let count = self.random.below(8);
        let mut body = vec![if v6 { 143 } else { 0x22 }, 0, 0, 0, 0, 0];
        let stated = self.mostly(count as u16);
        body.extend(stated.to_be_bytes());
        for _ in 0..count {
            let kind = match self.one_in(10) {
                true => self.random.next() as u8,
                false => self.random.below(6) as u8 + 1,
            };
            let auxiliary = if self.one_in(10) {
                self.random.below(3)
            } else {
                0
            };
            let (number, sources) = self.sources(v6, 12);
            body.extend([kind, auxiliary as u8]);
            body.extend(number.to_be_bytes());
            let group = self.group(v6);
            body.extend(Self::octets(group));
            body.extend(sources);
            let auxiliary = self.bytes(4 * auxiliary);
            body.extend(auxiliary);
        }
        self.message_of(source, group, body)
    }

    /// A query of each version: general, of a group, and of sources.
    fn query(&mut self, source: IpAddr, group: IpAddr) -> (u8, Vec<u8>) {
        let v6 = source.is_ipv6();
        let asked = match self.one_in(2) {
            true => vec![0; if v6 { 16 } else { 4 }],
            false => Self::octets(group),
        };
        let delay = self.random.next() as u8;
        let mut body = match v6 {
            true => vec![130, 0, 0, 0, 0, delay, 0, 0],
            false => vec![0x11, delay, 0, 0],
        };
        body.extend(asked);
        if !self.one_in(3) {
            body.extend([self.random.next() as u8, self.random.next() as u8]);
            let (number, sources) = self.sources(v6, 12);
            body.extend(number.to_be_bytes());
            body.extend(sources);
        }
        self.message_of(source, group, body)
    }

    /// The reports and leaves of IGMPv1, IGMPv2 and MLDv1, and multicast router discovery.
    fn short_message(&mut self, source: IpAddr, group: IpAddr) -> (u8, Vec<u8>) {
        let (kinds, reserved): (&[u8], _) = match source {
            IpAddr::V4(_) => (&[0x12, 0x16, 0x17, 0x30, 0x31, 0x32], 0),
            IpAddr::V6(_) => (&[131, 132, 151, 152, 153], 4),
        };
        let mut body = vec![*self.pick(kinds), 0, 0, 0];
        body.resize(4 + reserved, 0);
        body.extend(Self::octets(group));
        self.message_of(source, group, body)
    }

    /// DVMRP, PIM version 1, mtrace; neighbour and router discovery, errors and echoes.
    fn other_control_message(&mut self, source: IpAddr, group: IpAddr) -> (u8, Vec<u8>) {
        let kinds: &[u8] = match source {
            IpAddr::V4(_) => &[0x13, 0x14, 0x1e, 0x1f, 0x24, 0x41],
            IpAddr::V6(_) => &[1, 2, 3, 128, 129, 133, 134, 135, 136, 137, 200],
        };
        let mut body = vec![*self.pick(kinds), 0, 0, 0];
        let len = self.random.below(40);
        let rest = self.bytes(len);
        body.extend(rest);
        self.message_of(source, group, body)
    }

    /// IPv4 options, as many as fit into 40 bytes; most messages have the router alert.
    fn ipv4_options(&mut self, is_message: bool) -> Vec<u8> {
        let mut options = Vec::new();
        if is_message && !self.one_in(8) {
            options.extend([0x94, 4, 0, 0]);
        }
        while self.one_in(4) && options.len() < 30 {
            let option: Vec<u8> = match self.random.below(7) {
                0 => vec![0],
                1 => vec![1],
                // Record route, loose source route, timestamp, security.
                2 => vec![7, 7, 4, 0, 0, 0, 0],
                3 => vec![131, 7, 4, 10, 0, 0, 1],
                4 => vec![68, 8, 5, 0, 0, 0, 0, 0],
                5 => vec![130, 3, 0],
                _ => vec![self.random.next() as u8, *self.pick(&[0, 1, 2, 40, 255])],
            };
            options.extend(option);
        }
        options.resize(options.len().div_ceil(4) * 4, 0);
        options
    }

    /// Puts extension headers in front of an IPv6 payload. Returns the first protocol, and all
    /// bytes.
    fn extension_headers(
        &mut self,
        is_message: bool,
        protocol: u8,
        payload: Vec<u8>,
    ) -> (u8, Vec<u8>) {
        let mut kinds = Vec::new();
        if is_message && !self.one_in(8) {
            kinds.push(HOP_BY_HOP);
        }
        while self.one_in(3) && kinds.len() < 5 {
            kinds.push(*self.pick(&[
                HOP_BY_HOP,
                DESTINATION,
                ROUTING,
                FRAGMENT,
                AUTHENTICATION,
                135,
            ]));
        }
        let (mut next, mut bytes) = (protocol, payload);
        for kind in kinds.into_iter().rev() {
            let mut header = match kind {
                HOP_BY_HOP | DESTINATION => self.options_header(),
                FRAGMENT => {
                    let offset = *self.pick(&[0_u16, 0, 1, 0x5b9, 0xfff9, 0xfff8]);
                    let [high, low] = offset.to_be_bytes();
                    vec![0, 0, high, low, 0, 0, 0, self.random.next() as u8]
                }
                AUTHENTICATION => {
                    let mut header = vec![0, 4, 0, 0];
                    header.resize(24, 7);
                    header
                }
                _ => {
                    let units = self.random.below(3);
                    let mut header = vec![0, units as u8, self.random.below(5) as u8, 0];
                    header.resize(8 + 8 * units, 0);
                    header
                }
            };
            header[0] = next;
            header[1] = self.mostly(header[1].into()) as u8;
            header.extend(&bytes);
            (next, bytes) = (kind, header);
        }
        (next, bytes)
    }

    /// A hop-by-hop or destination options header.
    fn options_header(&mut self) -> Vec<u8> {
        let mut header = vec![0, 0];
        if !self.one_in(4) {
            header.extend([5, 2, 0, 0]);
        }
        while self.one_in(3) {
            let option: Vec<u8> = match self.random.below(4) {
                0 => vec![0],
                1 => vec![1, 2, 0, 0],
                2 => vec![0xc2, 4, 0, 1, 0, 0],
                _ => vec![self.random.next() as u8, *self.pick(&[0, 1, 60, 255])],
            };
            header.extend(option);
        }
        header.resize(header.len().div_ceil(8) * 8, 0);
        header[1] = (header.len() / 8 - 1) as u8;
        header
    }

    /// Changes bytes behind the Ethernet header, which is kept, so that the frame reaches the
    /// router.
    fn damage(&mut self, frame: &mut Vec<u8>) {
        match self.random.below(5) {
            0 => {
                let len = self.random.below(1500);
                let bytes = self.bytes(len);
                frame.truncate(14);
                frame.extend(bytes);
            }
            1 => frame.truncate(14 + self.random.below(frame.len() - 14)),
            2 => {
                let at = 14 + self.random.below(frame.len().min(14 + 60) - 14);
                frame[at] = *self.pick(&[0, 1, 0x7f, 0x80, 0xff]);
            }
            _ => {
                for _ in 0..=self.random.below(6) {
                    let at = 14 + self.random.below(frame.len() - 14);
                    frame[at] = self.random.next() as u8;
                }
            }
        }
        // Half of the IPv4 headers get a valid checksum, so that later checks are reached too.
        let header = frame.get(14).map_or(0, |b| usize::from(b & 0xf) * 4);
        let is_complete = header >= 20 && frame.len() >= 14 + header;
        if self.one_in(2) && frame[12] == 0x08 && is_complete {
            fix_ipv4_checksum(&mut frame[14..]);
        }
    }
}
