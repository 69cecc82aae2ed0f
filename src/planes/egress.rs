//! Sending decided packets out of one egress: cutting, fragmenting, retrying, counting.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::{Load, OutPacket, Slot, Transmit};
use crate::forward::DropReason;
use crate::forward::fragment::fragment;
use crate::forward::segment::segment;
use crate::table::PathId;
use crate::wire::ip::IpHeader;
use crate::wire::offload::GsoLayout;

/// How far a queue got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// All is sent or counted as dropped.
    Done,
    /// The egress takes no more for now; go on when it is writable.
    Blocked,
}

/// What became of the packets of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// Packets and bytes per path, in the order they were sent. Fragments count as packets, and
    /// what was sent whole as the datagrams it stands for: these are the packets on the wire.
    pub paths: Vec<(PathId, u64, u64)>,
    /// When the packets sent were received, in nanoseconds of `CLOCK_REALTIME`.
    pub received_ns: Vec<u64>,
    /// Packets dropped, by [`DropReason`].
    pub dropped: [u64; DropReason::COUNT],
    /// The last error the kernel gave for a packet that was dropped.
    pub error: Option<(DropReason, i32)>,
}

impl Default for Sent {
    fn default() -> Self {
        Self {
            paths: Vec::new(),
            received_ns: Vec::new(),
            dropped: [0; DropReason::COUNT],
            error: None,
        }
    }
}

impl Sent {
    fn count(&mut self, slot: &Slot, more: u64, bytes: u64) {
        match self.paths.last_mut() {
            Some((path, packets, sum)) if *path == slot.path => {
                *packets += more;
                *sum += bytes;
            }
            _ => self.paths.push((slot.path, more, bytes)),
        }
        let times = std::iter::repeat_n(slot.received_ns, more as usize);
        self.received_ns.extend(times);
    }

    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        self.paths.clear();
        self.received_ns.clear();
        self.dropped.fill(0);
        self.error = None;
    }
}

/// Packets of one load that leave on one egress, some of them perhaps in parts.
#[derive(Default)]
pub struct EgressQueue {
    load: Option<Arc<Load>>,
    slots: Vec<Slot>,
    /// What goes to the kernel.
    packets: Vec<Part>,
    parts: Vec<u8>,
    /// Datagrams that may have to be fragmented.
    scratch: Vec<u8>,
    /// What was left while it is cut.
    left: Vec<Part>,
    next: usize,
    mtu: usize,
    /// Packets go whole that stand for several datagrams, if the egress takes them so.
    whole: bool,
}

/// The slot, and where it goes in parts (datagrams, fragments) the range of this one.
type Part = (u32, Option<Range<u32>>);

impl EgressQueue {
    /// Takes the packets of a load. The queue must be empty.
    pub fn fill(&mut self, load: Arc<Load>, slots: Vec<Slot>, mtu: usize, sent: &mut Sent) {
        debug_assert!(self.is_empty());
        self.packets.clear();
        self.parts.clear();
        self.next = 0;
        self.mtu = mtu;
        self.whole = false;
        for (i, slot) in slots.iter().enumerate() {
            let longest = |s: GsoLayout| s.longest(slot.len as usize);
            if slot.segments.map_or(slot.len as usize, longest) <= mtu {
                self.whole |= slot.segments.is_some();
                self.packets.push((i as u32, None));
            } else {
                self.cut(i as u32, slot, &load, sent);
            }
        }
        self.slots = slots;
        self.load = Some(load);
    }

    /// Cuts a packet into its datagrams, where it stands for several, and into fragments what
    /// exceeds the MTU.
    fn cut(&mut self, i: u32, slot: &Slot, load: &Load, sent: &mut Sent) {
        let (packets, parts, mtu) = (&mut self.packets, &mut self.parts, self.mtu);
        let packet = load.packet(slot);
        let mut each = |packet: &[u8]| {
            let part = |r: Range<usize>| (i, Some(r.start as u32..r.end as u32));
            if packet.len() <= mtu {
                let start = parts.len();
                parts.extend_from_slice(packet);
                packets.push(part(start..parts.len()));
                return;
            }
            let cut = fragment(packet, mtu, parts, |r| packets.push(part(r)));
            if let Err(reason) = cut {
                sent.dropped[reason as usize] += 1;
            }
        };
        let Some(segments) = slot.segments else {
            return each(packet);
        };
        self.scratch.clear();
        let mut end = 0;
        let datagrams = IpHeader::parse(packet).map_err(DropReason::from);
        let cut = datagrams.and_then(|datagram| {
            let (payload, scratch) = (segments.payload(), &mut self.scratch);
            segment(packet, &datagram, payload, scratch, |r| end = r.end)
        });
        match cut {
            // All have the length of the longest but the last.
            Ok(()) => self.scratch[..end]
                .chunks(segments.longest(packet.len()))
                .for_each(each),
            Err(reason) => sent.dropped[reason as usize] += slot.packets(),
        }
    }

    /// Cuts what is left and was to go whole.
    fn cut_whole(&mut self, sent: &mut Sent) {
        self.whole = false;
        let Some(load) = self.load.clone() else {
            return;
        };
        let mut left = std::mem::take(&mut self.left);
        left.extend(self.packets.drain(self.next..));
        let slots = std::mem::take(&mut self.slots);
        for (i, range) in left.drain(..) {
            match &slots[i as usize] {
                slot if slot.segments.is_some() && range.is_none() => {
                    self.cut(i, slot, &load, sent);
                }
                _ => self.packets.push((i, range)),
            }
        }
        self.slots = slots;
        self.left = left;
    }

    /// True where nothing is left to send.
    pub fn is_empty(&self) -> bool {
        self.next >= self.packets.len()
    }

    /// Sends what can be sent now.
    pub fn drive(&mut self, transmit: &mut dyn Transmit, sent: &mut Sent) -> Progress {
        while self.next < self.packets.len() {
            if self.whole && !transmit.accepts_gso() {
                self.cut_whole(sent);
                continue;
            }
            let Some(load) = &self.load else {
                break;
            };
            let (slots, parts) = (&self.slots, &self.parts);
            let outgoing = |part: &Part| outgoing(part, slots, parts, load);
            let left = &self.packets[self.next..];
            let took = match transmit.send(&mut left.iter().map(outgoing)) {
                Ok(took @ 1..) => took.min(left.len()),
                // Neither taken nor refused: going on would go on for ever.
                Ok(0) => {
                    sent.dropped[DropReason::SendFailed as usize] += on_wire(&left[0], slots).0;
                    self.next += 1;
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Progress::Blocked,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    // Refused for being whole: the egress takes none any more, and this one will
                    // be cut with the others.
                    let whole = left[0].1.is_none() && slots[left[0].0 as usize].segments.is_some();
                    if whole && !transmit.accepts_gso() {
                        continue;
                    }
                    let reason = reason_of(&e);
                    sent.dropped[reason as usize] += on_wire(&left[0], slots).0;
                    sent.error = Some((reason, e.raw_os_error().unwrap_or_default()));
                    self.next += 1;
                    continue;
                }
            };
            for part in &left[..took] {
                let (packets, bytes) = on_wire(part, slots);
                sent.count(&slots[part.0 as usize], packets, bytes);
            }
            self.next += took;
        }
        // Lets go of the batch: its memory goes back to where packets come in.
        self.load = None;
        Progress::Done
    }

    /// Counts everything left as dropped.
    pub fn abandon(&mut self, reason: DropReason, sent: &mut Sent) {
        let left = self.packets[self.next..].iter();
        let left = left.map(|part| on_wire(part, &self.slots).0);
        sent.dropped[reason as usize] += left.sum::<u64>();
        self.next = self.packets.len();
        self.load = None;
    }
}

fn outgoing<'a>(
    (slot, range): &Part,
    slots: &[Slot],
    parts: &'a [u8],
    load: &'a Load,
) -> OutPacket<'a> {
    let slot = &slots[*slot as usize];
    match range {
        Some(r) => OutPacket::plain(&parts[r.start as usize..r.end as usize]),
        None => OutPacket {
            bytes: load.packet(slot),
            segments: slot.segments,
        },
    }
}

/// Packets and bytes that it is on the wire.
fn on_wire((slot, range): &Part, slots: &[Slot]) -> (u64, u64) {
    let slot = &slots[*slot as usize];
    match range {
        Some(r) => (1, u64::from(r.end - r.start)),
        None => (slot.packets(), slot.bytes()),
    }
}

fn reason_of(e: &io::Error) -> DropReason {
    match e.raw_os_error() {
        Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV) => DropReason::EgressDown,
        Some(libc::ENOBUFS) => DropReason::EgressBusy,
        Some(libc::EMSGSIZE) => DropReason::TooBig,
        _ => DropReason::SendFailed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TtlPolicy;
    use crate::model::{IfIndex, IfName, Link, Links, RouteRule};
    use crate::planes::{Batch, Packet, Switch};
    use crate::table::{Fib, Rib};
    use crate::wire::ip::refresh_ipv4_checksum;
    use crate::wire::offload::Offload;
    use crate::wire::udp;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::task::{Context, Poll};

    /// What `send` does next.
    #[derive(Debug, Clone, Copy)]
    enum Answer {
        Take(usize),
        Errno(i32),
    }

    /// Takes packets as told, all of them when it was told nothing.
    #[derive(Default)]
    struct Script {
        answers: VecDeque<Answer>,
        sent: Vec<Vec<u8>>,
        /// Takes whole what stands for several datagrams, until it answers `EINVAL`.
        accepts_gso: bool,
        /// How many it took so.
        whole: usize,
    }

    impl Transmit for Script {
        fn send(&mut self, packets: &mut dyn Iterator<Item = OutPacket<'_>>) -> io::Result<usize> {
            let before = self.sent.len();
            let most = match self.answers.pop_front() {
                Some(Answer::Errno(errno)) => {
                    self.accepts_gso &= errno != libc::EINVAL;
                    return Err(io::Error::from_raw_os_error(errno));
                }
                Some(Answer::Take(n)) => n,
                None => usize::MAX,
            };
            for packet in packets.take(most) {
                assert!(self.accepts_gso || packet.segments.is_none());
                self.whole += usize::from(packet.segments.is_some());
                self.sent.push(packet.bytes.to_vec());
            }
            Ok(self.sent.len() - before)
        }

        fn accepts_gso(&mut self) -> bool {
            self.accepts_gso
        }

        fn poll_writable(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn packet(n: u16, len: usize, flags: u8) -> Vec<u8> {
        let mut p = vec![0u8; len];
        p[0] = 0x45;
        p[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        p[4..6].copy_from_slice(&n.to_be_bytes());
        p[6] = flags;
        p[8] = 9;
        p[12..20].copy_from_slice(&[10, 0, 0, 1, 225, 1, 2, 3]);
        refresh_ipv4_checksum(&mut p);
        p
    }

    fn fib() -> Fib {
        let link = |index, name: &str| Link {
            index: IfIndex::new(index).unwrap(),
            name: name.parse::<IfName>().unwrap(),
            mtu: 1500,
            up: true,
            carrier: true,
            vlan: None,
            known_as: Default::default(),
        };
        let links: Links = [link(1, "in"), link(2, "out")].into_iter().collect();
        let (from, group) = ("in".parse().unwrap(), "225.1.2.3".parse().unwrap());
        let rule = RouteRule {
            ttl: TtlPolicy::Keep,
            ..RouteRule::new(from, group, vec!["out".parse().unwrap()])
        };
        let rib = Rib {
            rules: vec![rule],
            ..Rib::default()
        };
        rib.fib(&links, 1)
    }

    /// A queue of these packets, and what filling it counted. UDP is several datagrams of 100
    /// bytes.
    fn queue(packets: &[Vec<u8>], mtu: usize) -> (EgressQueue, Sent) {
        let fib = fib();
        let mut bytes = Vec::new();
        let mut all = Vec::new();
        for (i, packet) in packets.iter().enumerate() {
            all.push(Packet {
                start: bytes.len() as u32,
                len: packet.len() as u32,
                received_ns: i as u64,
                ethertype: 0x0800,
                offload: match packet[9] {
                    udp::PROTOCOL => Offload::UdpSegments { payload: 100 },
                    _ => Offload::None,
                },
                ..Packet::default()
            });
            bytes.extend_from_slice(packet);
        }
        let ingress = &fib.ingresses[&IfIndex::new(1).unwrap()];
        let batch = Batch::from_bytes(bytes, all);
        let switched = Switch::default().run(&fib, ingress, batch, 0);
        let slots = switched.egresses.into_iter().next().map(|(_, s)| s);
        let (mut queue, mut sent) = (EgressQueue::default(), Sent::default());
        let slots = slots.unwrap_or_default();
        assert_eq!(slots.len(), packets.len());
        queue.fill(switched.load, slots, mtu, &mut sent);
        (queue, sent)
    }

    fn packets(count: u16) -> Vec<Vec<u8>> {
        (0..count).map(|n| packet(n, 100, 0)).collect()
    }

    #[test]
    fn a_blocked_queue_goes_on_where_it_stopped() {
        let all = packets(10);
        let (mut queue, mut sent) = queue(&all, 1500);
        let mut script = Script::default();
        let busy = Answer::Errno(libc::EAGAIN);
        script.answers.extend([Answer::Take(3), busy]);
        assert_eq!(queue.drive(&mut script, &mut sent), Progress::Blocked);
        assert_eq!(script.sent, all[..3]);
        assert_eq!(sent.paths, [(0, 3, 300)]);
        script.answers.extend([busy]);
        assert_eq!(queue.drive(&mut script, &mut sent), Progress::Blocked);
        let interrupted = Answer::Errno(libc::EINTR);
        script.answers.extend([interrupted, Answer::Take(1)]);
        assert_eq!(queue.drive(&mut script, &mut sent), Progress::Done);
        assert!(queue.is_empty());
        assert_eq!(script.sent, all);
        assert_eq!(sent.paths, [(0, 10, 1000)]);
        assert_eq!(sent.received_ns, (0..10).collect::<Vec<_>>());
        assert_eq!(sent.dropped, [0; DropReason::COUNT]);
        assert_eq!(queue.drive(&mut script, &mut sent), Progress::Done);
        assert_eq!(script.sent.len(), 10);
    }

    #[test]
    fn an_error_costs_the_first_packet_only_and_has_its_reason() {
        for (errno, reason) in [
            (libc::ENETDOWN, DropReason::EgressDown),
            (libc::ENXIO, DropReason::EgressDown),
            (libc::ENODEV, DropReason::EgressDown),
            (libc::ENOBUFS, DropReason::EgressBusy),
            (libc::EMSGSIZE, DropReason::TooBig),
            (libc::EPERM, DropReason::SendFailed),
        ] {
            let all = packets(6);
            let (mut queue, mut sent) = queue(&all, 1500);
            let mut script = Script::default();
            let error = Answer::Errno(errno);
            script
                .answers
                .extend([Answer::Take(2), error, Answer::Take(1), error]);
            assert_eq!(queue.drive(&mut script, &mut sent), Progress::Done);
            assert_eq!(script.sent, [&all[..2], &all[3..4], &all[5..]].concat());
            assert_eq!(sent.dropped[reason as usize], 2);
            assert_eq!(sent.dropped.iter().sum::<u64>(), 2);
            assert_eq!(sent.error, Some((reason, errno)));
            assert_eq!(sent.paths, [(0, 4, 400)]);
        }
    }

    #[test]
    fn an_egress_that_takes_none_and_gives_no_error_does_not_hold_the_rest() {
        let all = packets(3);
        let (mut queue, mut sent) = queue(&all, 1500);
        let mut script = Script::default();
        script.answers.extend([Answer::Take(0)]);
        assert_eq!(queue.drive(&mut script, &mut sent), Progress::Done);
        assert_eq!(script.sent, all[1..]);
        assert_eq!(sent.dropped[DropReason::SendFailed as usize], 1);
    }

    #[test]
    fn the_mtu_is_the_largest_packet_that_goes_whole() {
        for (len, fragments) in [(999, 1), (1000, 1), (1001, 2), (3000, 4)] {
            let (mut queue, mut sent) = queue(&[packet(1, len, 0)], 1000);
            let mut script = Script::default();
            assert_eq!(queue.drive(&mut script, &mut sent), Progress::Done);
            assert_eq!(script.sent.len(), fragments, "{len}");
            assert!(script.sent.iter().all(|p| p.len() <= 1000));
            // Fragments count as the packets on the wire that they are.
            let bytes = (len + 20 * (fragments - 1)) as u64;
            assert_eq!(sent.paths, [(0, fragments as u64, bytes)]);
        }
    }

    #[test]
    fn what_may_not_be_fragmented_is_too_big_and_the_others_go_on() {
        const DF: u8 = 0x40;
        let all = [packet(1, 1000, DF), packet(2, 1001, DF), packet(3, 20, 0)];
        let (mut queue, mut sent) = queue(&all, 1000);
        assert_eq!(sent.dropped[DropReason::TooBig as usize], 1);
        let mut script = Script::default();
        queue.drive(&mut script, &mut sent);
        assert_eq!(script.sent, [&all[..1], &all[2..]].concat());
        assert_eq!(sent.dropped.iter().sum::<u64>(), 1);
    }

    /// Stands for `count` datagrams, the last one of a single byte.
    fn several(n: u16, count: usize) -> Vec<u8> {
        let len = 28 + (count - 1) * 100 + 1;
        let mut p = packet(n, len, 0);
        p[9] = udp::PROTOCOL;
        p[28..].fill(n as u8);
        refresh_ipv4_checksum(&mut p);
        p
    }

    /// The packets, and the bytes behind the headers of all in turn.
    fn bodies(packets: &[Vec<u8>]) -> Vec<u8> {
        packets.iter().flat_map(|p| &p[28..]).copied().collect()
    }

    #[test]
    fn an_egress_that_takes_them_gets_packets_whole_and_they_count_as_datagrams() {
        let all = [several(1, 3), several(2, 5)];
        let (mut queue, mut sent) = queue(&all, 128);
        let mut script = Script {
            accepts_gso: true,
            ..Script::default()
        };
        assert_eq!(queue.drive(&mut script, &mut sent), Progress::Done);
        assert_eq!((script.sent.len(), script.whole), (2, 2));
        assert_eq!(bodies(&script.sent), bodies(&all));
        let bytes = (2 * 128 + 29) + (4 * 128 + 29);
        assert_eq!(sent.paths, [(0, 8, bytes)]);
        assert_eq!(sent.received_ns, [0, 0, 0, 1, 1, 1, 1, 1]);
    }

    #[test]
    fn one_byte_less_of_mtu_and_each_datagram_is_fragmented() {
        let (mut queue, mut sent) = queue(&[several(1, 3)], 127);
        let mut script = Script {
            accepts_gso: true,
            ..Script::default()
        };
        assert_eq!(queue.drive(&mut script, &mut sent), Progress::Done);
        // Two with two fragments, and one with a single byte.
        assert_eq!((script.sent.len(), script.whole), (5, 0));
        let bytes = script.sent.iter().map(|p| p.len() as u64).sum();
        assert_eq!(sent.paths, [(0, 5, bytes)]);
    }

    #[test]
    fn what_the_kernel_refuses_to_cut_is_cut_and_nothing_is_lost() {
        let all = [
            packet(1, 50, 0),
            several(2, 2),
            several(3, 4),
            packet(4, 50, 0),
        ];
        let (mut queue, mut sent) = queue(&all, 1500);
        let mut script = Script {
            accepts_gso: true,
            ..Script::default()
        };
        let refused = Answer::Errno(libc::EINVAL);
        script.answers.extend([Answer::Take(2), refused]);
        assert_eq!(queue.drive(&mut script, &mut sent), Progress::Done);
        assert_eq!(script.whole, 1);
        let lens: Vec<_> = script.sent.iter().map(Vec::len).collect();
        assert_eq!(lens, [50, 129, 128, 128, 128, 29, 50]);
        assert_eq!(bodies(&script.sent), bodies(&all));
        assert_eq!(sent.dropped, [0; DropReason::COUNT]);
        assert_eq!(sent.paths, [(0, 8, 50 + 157 + 3 * 128 + 29 + 50)]);
    }

    #[test]
    fn what_is_dropped_whole_counts_as_datagrams() {
        let all = [several(1, 3), several(2, 4), several(3, 5)];
        let (mut queue, mut sent) = queue(&all, 1500);
        let mut script = Script {
            accepts_gso: true,
            ..Script::default()
        };
        let (full, busy) = (Answer::Errno(libc::ENOBUFS), Answer::Errno(libc::EAGAIN));
        script.answers.extend([full, Answer::Take(1), busy]);
        assert_eq!(queue.drive(&mut script, &mut sent), Progress::Blocked);
        queue.abandon(DropReason::EgressDown, &mut sent);
        assert_eq!(sent.dropped[DropReason::EgressBusy as usize], 3);
        assert_eq!(sent.dropped[DropReason::EgressDown as usize], 5);
        assert_eq!(sent.paths, [(0, 4, 3 * 128 + 29)]);
    }

    #[test]
    fn an_abandoned_queue_counts_what_was_left_once() {
        let (mut queue, mut sent) = queue(&[packet(1, 100, 0), packet(2, 2500, 0)], 1000);
        let mut script = Script::default();
        let busy = Answer::Errno(libc::EAGAIN);
        script.answers.extend([Answer::Take(2), busy]);
        assert_eq!(queue.drive(&mut script, &mut sent), Progress::Blocked);
        queue.abandon(DropReason::EgressDown, &mut sent);
        queue.abandon(DropReason::EgressDown, &mut sent);
        assert_eq!(sent.dropped[DropReason::EgressDown as usize], 2);
        assert!(queue.is_empty());
        assert_eq!(sent.paths[0].1, 2);
        sent.clear();
        assert_eq!(sent, Sent::default());
    }

    proptest! {
        #[test]
        fn whatever_the_egress_answers_nothing_is_lost_or_doubled(
            lens in proptest::collection::vec(20usize..3000, 0..40),
            answers in proptest::collection::vec(
                prop_oneof![
                    (0usize..5).prop_map(Answer::Take),
                    Just(Answer::Errno(libc::EAGAIN)),
                    Just(Answer::Errno(libc::EINTR)),
                    Just(Answer::Errno(libc::ENOBUFS)),
                ],
                0..60,
            ),
        ) {
            let all: Vec<_> = lens.iter().enumerate().map(|(n, l)| packet(n as u16, *l, 0)).collect();
            let everything = {
                let (mut queue, mut sent) = queue(&all, 1000);
                let mut script = Script::default();
                queue.drive(&mut script, &mut sent);
                script.sent
            };
            let (mut queue, mut sent) = queue(&all, 1000);
            let mut script = Script { answers: answers.into(), ..Script::default() };
            while queue.drive(&mut script, &mut sent) == Progress::Blocked {}
            let took: u64 = sent.paths.iter().map(|p| p.1).sum();
            let bytes: u64 = sent.paths.iter().map(|p| p.2).sum();
            prop_assert_eq!(took, script.sent.len() as u64);
            prop_assert_eq!(bytes, script.sent.iter().map(|p| p.len() as u64).sum::<u64>());
            prop_assert_eq!(took + sent.dropped.iter().sum::<u64>(), everything.len() as u64);
            prop_assert_eq!(sent.received_ns.len() as u64, took);
            // What was sent stands in the order it came in, each at most once.
            let mut rest = everything.iter();
            prop_assert!(script.sent.iter().all(|p| rest.any(|e| e == p)));
        }
    }
}
