//! The queue of an egress: segments, fragments, sends, retries and counts switched packets.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::{OutPacket, PacketSink, SharedBatch, Slot};
use crate::forward::DropReason;
use crate::forward::fragment::{clear_dont_fragment, fragment};
use crate::forward::segment::segment;
use crate::model::FragmentPolicy;
use crate::streams::StreamId;
use crate::table::{Path, PathId, SharedVec};
use crate::wire::ip::IpHeader;
use crate::wire::ip_summary::IpSummary;
use crate::wire::offload::GsoLayout;

/// The state of a queue after [`EgressQueue::drive`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Every packet is sent or counted as dropped.
    Done,
    /// The socket is full; continue when it is writable.
    Blocked,
}

/// The number of packets of a queue with each outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendCounts {
    /// Packets and bytes sent for each path, in the order of sending, as on the wire: each fragment
    /// counts as a packet, and a GSO packet as its datagrams.
    pub paths: Vec<(PathId, u64, u64)>,
    /// Receive times of the packets sent, in nanoseconds of `CLOCK_REALTIME`.
    pub received_ns: Vec<u64>,
    /// Packets dropped, by [`DropReason`].
    pub dropped: [u64; DropReason::COUNT],
    /// The dropped packets.
    pub drops: Vec<SendDrop>,
    /// The last error (errno) of the kernel for a dropped packet.
    pub error: Option<(DropReason, i32)>,
    /// The last packet that was dropped as [`DropReason::TooBig`] because it may not be fragmented.
    pub too_big: Option<TooBigPacket>,
}

/// Packets that were dropped together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendDrop {
    /// Why they were dropped.
    pub reason: DropReason,
    /// One of them, if it has an IP header.
    pub packet: Option<IpSummary>,
    /// Number of packets.
    pub packets: u64,
    /// Their length together, in bytes.
    pub bytes: u64,
    /// Their stream, if it is monitored.
    pub stream: Option<StreamId>,
}

/// A packet that is larger than the MTU and may not be fragmented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooBigPacket {
    /// The path.
    pub path: PathId,
    /// Length of the IP packet in bytes.
    pub len: usize,
    /// Whether it is IPv4. DF is set then.
    pub is_ipv4: bool,
}

impl Default for SendCounts {
    fn default() -> Self {
        Self {
            paths: Vec::new(),
            received_ns: Vec::new(),
            dropped: [0; DropReason::COUNT],
            drops: Vec::new(),
            error: None,
            too_big: None,
        }
    }
}

impl SendCounts {
    fn count(&mut self, slot: &Slot, count: u64, bytes: u64) {
        match self.paths.last_mut() {
            Some((path, packets, sum)) if *path == slot.path => {
                *packets += count;
                *sum += bytes;
            }
            _ => self.paths.push((slot.path, count, bytes)),
        }
        let times = std::iter::repeat_n(slot.received_ns, count as usize);
        self.received_ns.extend(times);
    }

    /// Counts dropped packets of a slot. `bytes` are those of the first, `counted` the packets and
    /// bytes on the wire.
    fn drop(&mut self, slot: &Slot, reason: DropReason, bytes: &[u8], (packets, len): (u64, u64)) {
        self.dropped[reason as usize] += packets;
        self.drops.push(SendDrop {
            reason,
            packet: IpSummary::read(bytes),
            packets,
            bytes: len,
            stream: slot.stream,
        });
    }

    /// Resets all counts. Keeps the allocated memory.
    pub fn clear(&mut self) {
        self.paths.clear();
        self.received_ns.clear();
        self.dropped.fill(0);
        self.drops.clear();
        self.error = None;
        self.too_big = None;
    }
}

/// Receives the packets of monitored streams that an [`EgressQueue`] sent.
pub trait SendObserver {
    /// A packet was sent. It may be a fragment.
    fn sent(&mut self, stream: StreamId, packet: OutPacket<'_>);
}

/// Ignores them.
pub struct NoObserver;

impl SendObserver for NoObserver {
    fn sent(&mut self, _: StreamId, _: OutPacket<'_>) {}
}

/// The packets of one batch that leave on one egress. Some are sent as segments or fragments.
#[derive(Default)]
pub struct EgressQueue {
    batch: Option<Arc<SharedBatch>>,
    slots: Vec<Slot>,
    /// The packets to send, in order.
    packets: Vec<OutgoingRange>,
    /// The bytes of segments and fragments.
    parts: Vec<u8>,
    /// Segments that may have to be fragmented.
    scratch: Vec<u8>,
    /// The unsent packets, while [`EgressQueue::segment_remaining`] works on them.
    left: Vec<OutgoingRange>,
    next: usize,
    mtu: usize,
    /// The paths that the slots refer to.
    paths: SharedVec<Path>,
    /// A packet with DF that is fragmented.
    cleared: Vec<u8>,
    /// The identification of the next such packet.
    next_id: u16,
    /// Whether the queue has GSO packets to send unsegmented.
    has_gso: bool,
}

/// A packet to send: the index of its slot, and for a segment or fragment its range in `parts`.
type OutgoingRange = (u32, Option<Range<u32>>);

impl EgressQueue {
    /// Fills the queue with packets of a batch. The queue must be empty.
    pub fn fill(
        &mut self,
        batch: Arc<SharedBatch>,
        slots: Vec<Slot>,
        mtu: usize,
        paths: &SharedVec<Path>,
        sent: &mut SendCounts,
    ) {
        debug_assert!(self.is_empty());
        self.packets.clear();
        self.parts.clear();
        self.next = 0;
        self.mtu = mtu;
        self.paths.clone_from(paths);
        self.has_gso = false;
        for (i, slot) in slots.iter().enumerate() {
            let longest = |s: GsoLayout| s.longest(slot.len as usize);
            if slot.segments.map_or(slot.len as usize, longest) <= mtu {
                self.has_gso |= slot.segments.is_some();
                self.packets.push((i as u32, None));
            } else {
                self.split(i as u32, slot, &batch, sent);
            }
        }
        self.slots = slots;
        self.batch = Some(batch);
    }

    /// Segments a GSO packet, and fragments datagrams that exceed the MTU.
    fn split(&mut self, i: u32, slot: &Slot, batch: &SharedBatch, sent: &mut SendCounts) {
        let (packets, parts, mtu) = (&mut self.packets, &mut self.parts, self.mtu);
        let path = self.paths.get(slot.path as usize);
        let clears_df = path.is_some_and(|path| path.fragment == FragmentPolicy::Always);
        let (cleared, next_id) = (&mut self.cleared, &mut self.next_id);
        let packet = batch.packet(slot);
        let mut each = |packet: &[u8]| {
            let part = |r: Range<usize>| (i, Some(r.start as u32..r.end as u32));
            if packet.len() <= mtu {
                let start = parts.len();
                parts.extend_from_slice(packet);
                packets.push(part(start..parts.len()));
                return;
            }
            let mut packet = packet;
            if clears_df {
                cleared.clear();
                cleared.extend_from_slice(packet);
                if clear_dont_fragment(cleared, *next_id) {
                    *next_id = next_id.wrapping_add(1);
                    packet = cleared;
                }
            }
            let fragmented = fragment(packet, mtu, parts, |r| packets.push(part(r)));
            if let Err(reason) = fragmented {
                sent.drop(slot, reason, packet, (1, packet.len() as u64));
                if reason == DropReason::TooBig {
                    sent.too_big = Some(TooBigPacket {
                        path: slot.path,
                        len: packet.len(),
                        is_ipv4: packet.first().is_some_and(|b| b >> 4 == 4),
                    });
                }
            }
        };
        let Some(segments) = slot.segments else {
            return each(packet);
        };
        self.scratch.clear();
        let mut end = 0;
        let datagrams = IpHeader::parse(packet).map_err(DropReason::from);
        let segmented = datagrams.and_then(|datagram| {
            let (payload, scratch) = (segments.payload(), &mut self.scratch);
            segment(packet, &datagram, payload, scratch, |r| end = r.end)
        });
        match segmented {
            // All datagrams but the last have the same length.
            Ok(()) => self.scratch[..end]
                .chunks(segments.longest(packet.len()))
                .for_each(each),
            Err(reason) => {
                sent.drop(slot, reason, packet, (slot.packets(), slot.bytes()));
            }
        }
    }

    /// Segments the remaining GSO packets, because the egress does not accept them.
    fn segment_remaining(&mut self, sent: &mut SendCounts) {
        self.has_gso = false;
        let Some(batch) = self.batch.clone() else {
            return;
        };
        let mut left = std::mem::take(&mut self.left);
        left.extend(self.packets.drain(self.next..));
        let slots = std::mem::take(&mut self.slots);
        for (i, range) in left.drain(..) {
            match &slots[i as usize] {
                slot if slot.segments.is_some() && range.is_none() => {
                    self.split(i, slot, &batch, sent);
                }
                _ => self.packets.push((i, range)),
            }
        }
        self.slots = slots;
        self.left = left;
    }

    /// Reports whether nothing is left to send.
    pub fn is_empty(&self) -> bool {
        self.next >= self.packets.len()
    }

    /// Sends as many packets as the socket accepts now.
    pub fn drive(&mut self, transmit: &mut dyn PacketSink, sent: &mut SendCounts) -> Progress {
        self.drive_observed(transmit, sent, &mut NoObserver)
    }

    /// Like [`drive`](Self::drive), and passes each packet of a monitored stream that was sent to
    /// `observer`.
    pub fn drive_observed(
        &mut self,
        transmit: &mut dyn PacketSink,
        sent: &mut SendCounts,
        observer: &mut impl SendObserver,
    ) -> Progress {
        while self.next < self.packets.len() {
            if self.has_gso && !transmit.accepts_gso() {
                self.segment_remaining(sent);
                continue;
            }
            let Some(batch) = &self.batch else {
                break;
            };
            let (slots, parts) = (&self.slots, &self.parts);
            let outgoing = |part: &OutgoingRange| outgoing(part, slots, parts, batch);
            let left = &self.packets[self.next..];
            let accepted = match transmit.send(&mut left.iter().map(outgoing)) {
                Ok(accepted @ 1..) => accepted.min(left.len()),
                // The packet was neither accepted nor refused. Drops it, because retries might
                // never end.
                Ok(0) => {
                    let bytes = outgoing(&left[0]).bytes;
                    let (slot, wire) = (&slots[left[0].0 as usize], on_wire(&left[0], slots));
                    sent.drop(slot, DropReason::SendFailed, bytes, wire);
                    self.next += 1;
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Progress::Blocked,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    // The kernel refused the packet because the egress accepts no GSO packets. The
                    // next iteration segments this packet and the other GSO packets.
                    let is_gso =
                        left[0].1.is_none() && slots[left[0].0 as usize].segments.is_some();
                    if is_gso && !transmit.accepts_gso() {
                        continue;
                    }
                    let reason = reason_of(&e);
                    let (slot, wire) = (&slots[left[0].0 as usize], on_wire(&left[0], slots));
                    sent.drop(slot, reason, outgoing(&left[0]).bytes, wire);
                    sent.error = Some((reason, e.raw_os_error().unwrap_or_default()));
                    self.next += 1;
                    continue;
                }
            };
            for part in &left[..accepted] {
                let (packets, bytes) = on_wire(part, slots);
                let slot = &slots[part.0 as usize];
                sent.count(slot, packets, bytes);
                if let Some(stream) = slot.stream {
                    observer.sent(stream, outgoing(part));
                }
            }
            self.next += accepted;
        }
        // Returns the memory of the batch to the capture.
        self.batch = None;
        Progress::Done
    }

    /// Counts all remaining packets as dropped.
    pub fn abandon(&mut self, reason: DropReason, sent: &mut SendCounts) {
        if let Some(batch) = self.batch.take() {
            for part in &self.packets[self.next..] {
                let packet = outgoing(part, &self.slots, &self.parts, &batch);
                let slot = &self.slots[part.0 as usize];
                sent.drop(slot, reason, packet.bytes, on_wire(part, &self.slots));
            }
        }
        self.next = self.packets.len();
    }
}

fn outgoing<'a>(
    (slot, range): &OutgoingRange,
    slots: &[Slot],
    parts: &'a [u8],
    batch: &'a SharedBatch,
) -> OutPacket<'a> {
    let slot = &slots[*slot as usize];
    match range {
        Some(r) => OutPacket::plain(&parts[r.start as usize..r.end as usize]),
        None => OutPacket {
            bytes: batch.packet(slot),
            segments: slot.segments,
        },
    }
}

/// Returns the packets and bytes on the wire.
fn on_wire((slot, range): &OutgoingRange, slots: &[Slot]) -> (u64, u64) {
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
    use crate::model::{IfName, InterfaceId, Link, Links, RouteRule};
    use crate::pipeline::{Batch, Packet, Switch};
    use crate::table::{Fib, Rib};
    use crate::wire::ip::refresh_ipv4_checksum;
    use crate::wire::offload::Offload;
    use crate::wire::udp;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::task::{Context, Poll};

    /// The result of one `send`.
    #[derive(Debug, Clone, Copy)]
    enum SendResult {
        Take(usize),
        Errno(i32),
    }

    /// A sink with scripted results. Without a further result, accepts all packets.
    #[derive(Default)]
    struct ScriptedSink {
        results: VecDeque<SendResult>,
        sent: Vec<Vec<u8>>,
        /// Accepts GSO packets until a result is `EINVAL`.
        accepts_gso: bool,
        /// Number of GSO packets accepted.
        gso_packets: usize,
    }

    impl PacketSink for ScriptedSink {
        fn send(&mut self, packets: &mut dyn Iterator<Item = OutPacket<'_>>) -> io::Result<usize> {
            let before = self.sent.len();
            let most = match self.results.pop_front() {
                Some(SendResult::Errno(errno)) => {
                    self.accepts_gso &= errno != libc::EINVAL;
                    return Err(io::Error::from_raw_os_error(errno));
                }
                Some(SendResult::Take(n)) => n,
                None => usize::MAX,
            };
            for packet in packets.take(most) {
                assert!(self.accepts_gso || packet.segments.is_none());
                self.gso_packets += usize::from(packet.segments.is_some());
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

    fn fib(fragment: FragmentPolicy) -> Fib {
        let link = |index, name: &str| {
            Link::new(
                InterfaceId::new(index).unwrap(),
                name.parse::<IfName>().unwrap(),
            )
        };
        let links: Links = [link(1, "in"), link(2, "out")].into_iter().collect();
        let (from, group) = ("in".parse().unwrap(), "225.1.2.3".parse().unwrap());
        let rule = RouteRule {
            ttl: TtlPolicy::Keep,
            fragment,
            ..RouteRule::new(from, group, vec!["out".parse().unwrap()])
        };
        let rib = Rib {
            rules: vec![rule].into(),
            ..Rib::default()
        };
        rib.build_fib(&links, 1)
    }

    /// Returns a queue of these packets, and the counts of filling it. UDP packets are GSO packets
    /// with 100 bytes per datagram.
    fn queue(packets: &[Vec<u8>], mtu: usize) -> (EgressQueue, SendCounts) {
        queue_of(packets, mtu, FragmentPolicy::Auto)
    }

    fn queue_of(
        packets: &[Vec<u8>],
        mtu: usize,
        fragment: FragmentPolicy,
    ) -> (EgressQueue, SendCounts) {
        let fib = fib(fragment);
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
        let ingress = &fib.ingresses[&InterfaceId::new(1).unwrap()];
        let batch = Batch::from_bytes(bytes, all);
        let switched = Switch::default().run(&fib, ingress, batch, 0);
        let slots = switched.egresses.into_iter().next().map(|(_, s)| s);
        let (mut queue, mut sent) = (EgressQueue::default(), SendCounts::default());
        let slots = slots.unwrap_or_default();
        assert_eq!(slots.len(), packets.len());
        queue.fill(switched.shared, slots, mtu, &fib.paths, &mut sent);
        (queue, sent)
    }

    fn packets(count: u16) -> Vec<Vec<u8>> {
        (0..count).map(|n| packet(n, 100, 0)).collect()
    }

    #[test]
    fn blocked_queue_resumes_at_the_same_packet() {
        let all = packets(10);
        let (mut queue, mut sent) = queue(&all, 1500);
        let mut script = ScriptedSink::default();
        let busy = SendResult::Errno(libc::EAGAIN);
        script.results.extend([SendResult::Take(3), busy]);
        assert_eq!(queue.drive(&mut script, &mut sent), Progress::Blocked);
        assert_eq!(script.sent, all[..3]);
        assert_eq!(sent.paths, [(0, 3, 300)]);
        script.results.extend([busy]);
        assert_eq!(queue.drive(&mut script, &mut sent), Progress::Blocked);
        let interrupted = SendResult::Errno(libc::EINTR);
        script.results.extend([interrupted, SendResult::Take(1)]);
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
    fn send_error_drops_only_the_first_packet() {
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
            let mut script = ScriptedSink::default();
            let error = SendResult::Errno(errno);
            script
                .results
                .extend([SendResult::Take(2), error, SendResult::Take(1), error]);
            assert_eq!(queue.drive(&mut script, &mut sent), Progress::Done);
            assert_eq!(script.sent, [&all[..2], &all[3..4], &all[5..]].concat());
            assert_eq!(sent.dropped[reason as usize], 2);
            assert_eq!(sent.dropped.iter().sum::<u64>(), 2);
            assert_eq!(sent.error, Some((reason, errno)));
            assert_eq!(sent.paths, [(0, 4, 400)]);
        }
    }

    #[test]
    fn send_of_zero_packets_does_not_stall_the_queue() {
        let all = packets(3);
        let (mut queue, mut sent) = queue(&all, 1500);
        let mut script = ScriptedSink::default();
        script.results.extend([SendResult::Take(0)]);
        assert_eq!(queue.drive(&mut script, &mut sent), Progress::Done);
        assert_eq!(script.sent, all[1..]);
        assert_eq!(sent.dropped[DropReason::SendFailed as usize], 1);
    }

    #[test]
    fn df_packets_are_fragmented_if_the_route_says_so() {
        const DF: u8 = 0x40;
        // Senders may set the same identification in all packets with DF.
        let all = [packet(0, 1500, DF), packet(0, 1500, DF)];
        let (mut queue, mut sent) = queue(&all, 1450);
        assert_eq!(sent.dropped[DropReason::TooBig as usize], 2);
        let too_big = TooBigPacket {
            path: 0,
            len: 1500,
            is_ipv4: true,
        };
        assert_eq!(sent.too_big, Some(too_big));
        let mut script = ScriptedSink::default();
        assert_eq!(queue.drive(&mut script, &mut sent), Progress::Done);
        assert_eq!(script.sent.len(), 0);
        let (mut queue, mut sent) = queue_of(&all, 1450, FragmentPolicy::Always);
        assert_eq!(queue.drive(&mut script, &mut sent), Progress::Done);
        assert_eq!(sent.dropped, [0; DropReason::COUNT]);
        assert_eq!(sent.too_big, None);
        let field = |p: &[u8], at: usize| u16::from_be_bytes([p[at], p[at + 1]]);
        let headers: Vec<_> = script.sent.iter().map(|p| (p.len(), field(p, 6))).collect();
        // 1424 bytes are the largest multiple of 8 that fits; MF is 0x2000.
        let expected = [(1444, 0x2000), (76, 178)];
        assert_eq!(headers, [expected, expected].concat());
        let ids: Vec<u16> = script.sent.iter().map(|p| field(p, 4)).collect();
        assert!(
            ids[0] == ids[1] && ids[2] == ids[3] && ids[0] != ids[2],
            "{ids:?}"
        );
        for packet in &script.sent {
            assert!(IpHeader::parse(packet).is_ok(), "the checksum is valid");
        }
        // A packet that fits keeps DF.
        let small = [packet(7, 1450, DF)];
        let (mut queue, mut sent) = queue_of(&small, 1450, FragmentPolicy::Always);
        let mut script = ScriptedSink::default();
        assert_eq!(queue.drive(&mut script, &mut sent), Progress::Done);
        assert_eq!(script.sent, small);
    }

    #[test]
    fn packet_of_mtu_size_is_not_fragmented() {
        for (len, fragments) in [(999, 1), (1000, 1), (1001, 2), (3000, 4)] {
            let (mut queue, mut sent) = queue(&[packet(1, len, 0)], 1000);
            let mut script = ScriptedSink::default();
            assert_eq!(queue.drive(&mut script, &mut sent), Progress::Done);
            assert_eq!(script.sent.len(), fragments, "{len}");
            assert!(script.sent.iter().all(|p| p.len() <= 1000));
            // Each fragment counts as a packet.
            let bytes = (len + 20 * (fragments - 1)) as u64;
            assert_eq!(sent.paths, [(0, fragments as u64, bytes)]);
        }
    }

    #[test]
    fn unfragmentable_packet_is_dropped_as_too_big() {
        const DF: u8 = 0x40;
        let all = [packet(1, 1000, DF), packet(2, 1001, DF), packet(3, 20, 0)];
        let (mut queue, mut sent) = queue(&all, 1000);
        assert_eq!(sent.dropped[DropReason::TooBig as usize], 1);
        let mut script = ScriptedSink::default();
        queue.drive(&mut script, &mut sent);
        assert_eq!(script.sent, [&all[..1], &all[2..]].concat());
        assert_eq!(sent.dropped.iter().sum::<u64>(), 1);
    }

    /// A GSO packet of `count` datagrams; the last has a single byte.
    fn gso_packet(n: u16, count: usize) -> Vec<u8> {
        let len = 28 + (count - 1) * 100 + 1;
        let mut p = packet(n, len, 0);
        p[9] = udp::PROTOCOL;
        p[28..].fill(n as u8);
        refresh_ipv4_checksum(&mut p);
        p
    }

    /// Returns the concatenated payloads of the packets.
    fn bodies(packets: &[Vec<u8>]) -> Vec<u8> {
        packets.iter().flat_map(|p| &p[28..]).copied().collect()
    }

    #[test]
    fn gso_packet_is_sent_unsegmented_and_counts_as_datagrams() {
        let all = [gso_packet(1, 3), gso_packet(2, 5)];
        let (mut queue, mut sent) = queue(&all, 128);
        let mut script = ScriptedSink {
            accepts_gso: true,
            ..ScriptedSink::default()
        };
        assert_eq!(queue.drive(&mut script, &mut sent), Progress::Done);
        assert_eq!((script.sent.len(), script.gso_packets), (2, 2));
        assert_eq!(bodies(&script.sent), bodies(&all));
        let bytes = (2 * 128 + 29) + (4 * 128 + 29);
        assert_eq!(sent.paths, [(0, 8, bytes)]);
        assert_eq!(sent.received_ns, [0, 0, 0, 1, 1, 1, 1, 1]);
    }

    #[test]
    fn gso_datagrams_above_the_mtu_are_fragmented() {
        let (mut queue, mut sent) = queue(&[gso_packet(1, 3)], 127);
        let mut script = ScriptedSink {
            accepts_gso: true,
            ..ScriptedSink::default()
        };
        assert_eq!(queue.drive(&mut script, &mut sent), Progress::Done);
        // Two datagrams with two fragments each, and the last one with a single byte.
        assert_eq!((script.sent.len(), script.gso_packets), (5, 0));
        let bytes = script.sent.iter().map(|p| p.len() as u64).sum();
        assert_eq!(sent.paths, [(0, 5, bytes)]);
    }

    #[test]
    fn refused_gso_packet_is_segmented_without_loss() {
        let all = [
            packet(1, 50, 0),
            gso_packet(2, 2),
            gso_packet(3, 4),
            packet(4, 50, 0),
        ];
        let (mut queue, mut sent) = queue(&all, 1500);
        let mut script = ScriptedSink {
            accepts_gso: true,
            ..ScriptedSink::default()
        };
        let refused = SendResult::Errno(libc::EINVAL);
        script.results.extend([SendResult::Take(2), refused]);
        assert_eq!(queue.drive(&mut script, &mut sent), Progress::Done);
        assert_eq!(script.gso_packets, 1);
        let lens: Vec<_> = script.sent.iter().map(Vec::len).collect();
        assert_eq!(lens, [50, 129, 128, 128, 128, 29, 50]);
        assert_eq!(bodies(&script.sent), bodies(&all));
        assert_eq!(sent.dropped, [0; DropReason::COUNT]);
        assert_eq!(sent.paths, [(0, 8, 50 + 157 + 3 * 128 + 29 + 50)]);
    }

    #[test]
    fn dropped_gso_packet_counts_as_datagrams() {
        let all = [gso_packet(1, 3), gso_packet(2, 4), gso_packet(3, 5)];
        let (mut queue, mut sent) = queue(&all, 1500);
        let mut script = ScriptedSink {
            accepts_gso: true,
            ..ScriptedSink::default()
        };
        let (full, busy) = (
            SendResult::Errno(libc::ENOBUFS),
            SendResult::Errno(libc::EAGAIN),
        );
        script.results.extend([full, SendResult::Take(1), busy]);
        assert_eq!(queue.drive(&mut script, &mut sent), Progress::Blocked);
        queue.abandon(DropReason::EgressDown, &mut sent);
        assert_eq!(sent.dropped[DropReason::EgressBusy as usize], 3);
        assert_eq!(sent.dropped[DropReason::EgressDown as usize], 5);
        assert_eq!(sent.paths, [(0, 4, 3 * 128 + 29)]);
    }

    #[test]
    fn abandoned_queue_counts_remaining_packets_once() {
        let (mut queue, mut sent) = queue(&[packet(1, 100, 0), packet(2, 2500, 0)], 1000);
        let mut script = ScriptedSink::default();
        let busy = SendResult::Errno(libc::EAGAIN);
        script.results.extend([SendResult::Take(2), busy]);
        assert_eq!(queue.drive(&mut script, &mut sent), Progress::Blocked);
        queue.abandon(DropReason::EgressDown, &mut sent);
        queue.abandon(DropReason::EgressDown, &mut sent);
        assert_eq!(sent.dropped[DropReason::EgressDown as usize], 2);
        assert!(queue.is_empty());
        assert_eq!(sent.paths[0].1, 2);
        sent.clear();
        assert_eq!(sent, SendCounts::default());
    }

    proptest! {
        #[test]
        fn each_packet_is_sent_or_counted_once(
            lens in proptest::collection::vec(20usize..3000, 0..40),
            results in proptest::collection::vec(
                prop_oneof![
                    (0usize..5).prop_map(SendResult::Take),
                    Just(SendResult::Errno(libc::EAGAIN)),
                    Just(SendResult::Errno(libc::EINTR)),
                    Just(SendResult::Errno(libc::ENOBUFS)),
                ],
                0..60,
            ),
        ) {
            let all: Vec<_> = lens.iter().enumerate().map(|(n, l)| packet(n as u16, *l, 0)).collect();
            let everything = {
                let (mut queue, mut sent) = queue(&all, 1000);
                let mut script = ScriptedSink::default();
                queue.drive(&mut script, &mut sent);
                script.sent
            };
            let (mut queue, mut sent) = queue(&all, 1000);
            let mut script = ScriptedSink { results: results.into(), ..ScriptedSink::default() };
            while queue.drive(&mut script, &mut sent) == Progress::Blocked {}
            let accepted: u64 = sent.paths.iter().map(|p| p.1).sum();
            let bytes: u64 = sent.paths.iter().map(|p| p.2).sum();
            prop_assert_eq!(accepted, script.sent.len() as u64);
            prop_assert_eq!(bytes, script.sent.iter().map(|p| p.len() as u64).sum::<u64>());
            prop_assert_eq!(accepted + sent.dropped.iter().sum::<u64>(), everything.len() as u64);
            prop_assert_eq!(sent.received_ns.len() as u64, accepted);
            // The packets were sent in order, each at most once.
            let mut rest = everything.iter();
            prop_assert!(script.sent.iter().all(|p| rest.any(|e| e == p)));
        }
    }
}
