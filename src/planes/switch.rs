//! A captured batch, decided packet by packet and sorted by egress.
//!
//! Packets are changed in place and never copied, except those that segmentation cuts: their
//! pieces stand in a second buffer beside the batch.

use std::sync::Arc;

use super::{Batch, Packet};
use crate::forward::rewrite::rewrite;
use crate::forward::segment::segment;
use crate::forward::{Decision, DropReason, LoopGuard, NotData, decide};
use crate::table::flows::{FlowBudget, Flows};
use crate::table::{EgressId, Fib, Ingress, PathId};
use crate::wire::offload::Offload;
use crate::wire::vlan;

/// One packet on its way out of one egress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// First byte in the batch, or in the cut pieces.
    pub start: u32,
    /// Bytes of the IP packet.
    pub len: u32,
    /// Whether it stands in the cut pieces.
    pub piece: bool,
    /// The path it takes.
    pub path: PathId,
    /// When it was received, in nanoseconds of `CLOCK_REALTIME`.
    pub received_ns: u64,
}

/// The memory of a decided batch; the last egress to let go of it gives it back.
pub struct Load {
    batch: Batch,
    pieces: Vec<u8>,
}

impl Load {
    /// The bytes of a slot.
    pub fn packet(&self, slot: &Slot) -> &[u8] {
        let memory = if slot.piece {
            &self.pieces[..]
        } else {
            self.batch.bytes()
        };
        &memory[slot.start as usize..][..slot.len as usize]
    }
}

/// What happened to a batch, in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    /// IP packets that came in; one that segmentation cuts counts as its pieces.
    pub packets: u64,
    /// Their IP bytes.
    pub bytes: u64,
    /// Packets dropped before any egress, by [`DropReason`].
    pub dropped: [u64; DropReason::COUNT],
    /// IGMP and MLD messages that came in besides: no router forwards one.
    pub membership: u64,
    /// Packets an egress did not take because of its TTL threshold.
    pub below_threshold: Vec<(EgressId, u64)>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            packets: 0,
            bytes: 0,
            dropped: [0; DropReason::COUNT],
            membership: 0,
            below_threshold: Vec::new(),
        }
    }
}

impl Tally {
    fn below_threshold(&mut self, egress: EgressId, packets: u64) {
        match self.below_threshold.iter_mut().find(|(e, _)| *e == egress) {
            Some((_, n)) => *n += packets,
            None => self.below_threshold.push((egress, packets)),
        }
    }
}

/// A batch sorted by egress.
pub struct Switched {
    /// The bytes.
    pub load: Arc<Load>,
    /// Per egress with anything to send, its packets in order.
    pub egresses: Vec<(EgressId, Vec<Slot>)>,
    /// What was counted.
    pub tally: Tally,
}

/// Decides batches of one interface, and knows its flows.
pub struct Switch {
    /// The flows the interface forwards.
    pub flows: Flows,
    guard: Arc<LoopGuard>,
    /// Where in `egresses` an egress stands; by egress id.
    places: Vec<Option<u32>>,
    cuts: Vec<(u32, u32)>,
}

impl Default for Switch {
    /// With flows and a loop window of its own.
    fn default() -> Self {
        let flows = Flows::new(FlowBudget::new(65_536));
        Self::new(flows, Arc::default())
    }
}

impl Switch {
    /// Notes flows in `flows`, and stops what comes back within the window of `guard`.
    pub fn new(flows: Flows, guard: Arc<LoopGuard>) -> Self {
        Self {
            flows,
            guard,
            places: Vec::new(),
            cuts: Vec::new(),
        }
    }

    /// Decides every packet of a batch that came in on `ingress`. `now_ms` is a clock that
    /// never goes back.
    pub fn run(&mut self, fib: &Fib, ingress: &Ingress, mut batch: Batch, now_ms: u64) -> Switched {
        let mut tally = Tally::default();
        let mut pieces = Vec::new();
        let mut egresses: Vec<(EgressId, Vec<Slot>)> = Vec::new();
        self.places.clear();
        self.places.resize(fib.egresses.len(), None);
        let packets = std::mem::take(&mut batch.packets);
        let expected = packets.len();
        for packet in &packets {
            self.cuts.clear();
            let decided = self.decide(fib, ingress, &mut batch, packet, now_ms);
            let cut = decided.and_then(|(decision, start)| {
                self.cut(&batch, packet, &decision, start, &mut pieces)?;
                Ok(decision)
            });
            let decision = match cut {
                Ok(decision) => decision,
                Err(NotData::Membership) => {
                    tally.membership += 1;
                    continue;
                }
                Err(NotData::Dropped(reason)) => {
                    tally.packets += 1;
                    tally.bytes += u64::from(packet.len);
                    tally.dropped[reason as usize] += 1;
                    continue;
                }
            };
            tally.packets += self.cuts.len() as u64;
            tally.bytes += self
                .cuts
                .iter()
                .map(|(_, len)| u64::from(*len))
                .sum::<u64>();
            let piece = matches!(packet.offload, Offload::UdpSegments { .. });
            if decision.entry.loop_guard {
                let memory = if piece { &pieces[..] } else { batch.bytes() };
                let guard = &self.guard;
                let before = self.cuts.len();
                self.cuts.retain(|(start, len)| {
                    let packet = &memory[*start as usize..][..*len as usize];
                    !guard.came_back(packet, now_ms)
                });
                let came_back = (before - self.cuts.len()) as u64;
                tally.dropped[DropReason::Loop as usize] += came_back;
            }
            let count = self.cuts.len() as u64;
            if count == 0 {
                continue;
            }
            for id in &decision.entry.paths {
                let path = &fib.paths[*id as usize];
                if path
                    .threshold
                    .is_some_and(|t| !t.passes(decision.datagram.ttl))
                {
                    tally.below_threshold(path.egress, count);
                    continue;
                }
                let place = &mut self.places[path.egress as usize];
                let place = *place.get_or_insert_with(|| {
                    egresses.push((path.egress, Vec::with_capacity(expected)));
                    egresses.len() as u32 - 1
                });
                let slots = &mut egresses[place as usize].1;
                slots.extend(self.cuts.iter().map(|(start, len)| Slot {
                    start: *start,
                    len: *len,
                    piece,
                    path: *id,
                    received_ns: packet.received_ns,
                }));
            }
        }
        Switched {
            load: Arc::new(Load { batch, pieces }),
            egresses,
            tally,
        }
    }

    /// Notes where the packets are that a captured one stands for: itself, or its pieces.
    fn cut(
        &mut self,
        batch: &Batch,
        packet: &Packet,
        decision: &Decision<'_>,
        start: usize,
        pieces: &mut Vec<u8>,
    ) -> Result<(), DropReason> {
        let len = decision.datagram.len;
        let Offload::UdpSegments { payload } = packet.offload else {
            self.cuts.push((start as u32, len as u32));
            return Ok(());
        };
        let bytes = &batch.bytes()[start..start + len];
        segment(bytes, &decision.datagram, payload, pieces, |range| {
            self.cuts.push((range.start as u32, range.len() as u32));
        })
    }

    /// Decides one packet and rewrites it in place. Also returns where its IP header starts.
    fn decide<'f>(
        &mut self,
        fib: &'f Fib,
        ingress: &Ingress,
        batch: &mut Batch,
        packet: &Packet,
        now_ms: u64,
    ) -> Result<(Decision<'f>, usize), NotData> {
        if packet.cut {
            return Err(DropReason::Truncated.into());
        }
        let start = packet.start as usize;
        let bytes = batch
            .bytes_mut()
            .get_mut(start..start + packet.len as usize)
            .ok_or(DropReason::Truncated)?;
        // The outermost tag says whose frame it is. The kernel strips it, but not from frames that
        // go out on a device which cannot insert tags.
        let vlan = packet
            .vlan
            .or_else(|| vlan::outer_tag(packet.ethertype, bytes));
        if vlan.is_some_and(|id| ingress.vlans_elsewhere.contains(&id)) {
            return Err(DropReason::VlanElsewhere.into());
        }
        let (ethertype, tags) = vlan::skip_tags(packet.ethertype, bytes)?;
        let bytes = &mut bytes[tags..];
        let version = bytes.first().map_or(0, |b| b >> 4);
        match (ethertype, version) {
            (vlan::ETHERTYPE_IPV4, 4) | (vlan::ETHERTYPE_IPV6, 6) => {}
            (vlan::ETHERTYPE_IPV4 | vlan::ETHERTYPE_IPV6, _) if bytes.is_empty() => {
                return Err(DropReason::Truncated.into());
            }
            _ => return Err(DropReason::Malformed.into()),
        }
        let decision = decide(fib, ingress, &mut self.flows, bytes, now_ms)?;
        let offload = match packet.offload {
            // Counted from where the tags are.
            Offload::Checksum { start, offset } => Offload::Checksum {
                start: start
                    .checked_sub(tags as u16)
                    .ok_or(DropReason::ChecksumUnknown)?,
                offset,
            },
            other => other,
        };
        rewrite(&mut bytes[..decision.datagram.len], offload, decision.ttl)?;
        Ok((decision, start + tags))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{IfIndex, Link, Links, RouteName, RouteRule, TtlPolicy, TtlThreshold};
    use crate::table::{InterfaceOptions, Rib};
    use crate::wire::ip::{Datagram, refresh_ipv4_checksum};
    use crate::wire::{checksum, udp};
    use proptest::prelude::*;

    const IIF: &str = "eth0";

    fn link(index: u32, name: &str, vlan: Option<(u32, u16)>) -> Link {
        Link {
            vlan: vlan.map(|(on, id)| (IfIndex::new(on).unwrap(), id)),
            ..Link::new(IfIndex::new(index).unwrap(), name.parse().unwrap())
        }
    }

    fn rule(group: &str, to: &[&str], ttl: TtlPolicy) -> RouteRule {
        let to = to.iter().map(|t| t.parse().unwrap()).collect();
        RouteRule {
            name: RouteName::new(format!("{group} {ttl}")),
            ttl,
            ..RouteRule::new(IIF.parse().unwrap(), group.parse().unwrap(), to)
        }
    }

    /// eth0 (with VLAN 10 on top of it) to out1, out2 and out3, the last with a threshold of 8.
    fn fib(rules: Vec<RouteRule>) -> Fib {
        let links: Links = [
            link(1, IIF, None),
            link(2, "out1", None),
            link(3, "out2", None),
            link(4, "out3", None),
            link(5, "eth0.10", Some((1, 10))),
        ]
        .into_iter()
        .collect();
        let interfaces = vec![InterfaceOptions {
            name: "out3".parse().unwrap(),
            ttl_threshold: TtlThreshold::new(8),
        }];
        Rib {
            rules,
            interfaces,
            joins: vec![],
        }
        .fib(&links, 1)
    }

    fn usual() -> Fib {
        fib(vec![
            rule("225.1.2.3", &["out1", "out3"], TtlPolicy::Decrement),
            rule("225.1.0.0/16", &["out2", "out1"], TtlPolicy::Keep),
            rule("225.9.9.9", &["gone"], TtlPolicy::Decrement),
            rule("ff3e::/32", &["out1"], TtlPolicy::Decrement),
        ])
    }

    fn packet(group: [u8; 4], ttl: u8, body: usize) -> Vec<u8> {
        let mut p = vec![0u8; 28];
        p[0] = 0x45;
        p[2..4].copy_from_slice(&((28 + body) as u16).to_be_bytes());
        p[8] = ttl;
        p[9] = udp::PROTOCOL;
        p[12..16].copy_from_slice(&[10, 0, 0, 1]);
        p[16..20].copy_from_slice(&group);
        p[24..26].copy_from_slice(&((8 + body) as u16).to_be_bytes());
        p.extend((0..body).map(|i| i as u8));
        refresh_ipv4_checksum(&mut p);
        p
    }

    fn packet_v6(hop_limit: u8) -> Vec<u8> {
        let mut p = vec![0u8; 48];
        p[0] = 0x60;
        p[5] = 8;
        p[6] = udp::PROTOCOL;
        p[7] = hop_limit;
        p[8] = 0x20;
        p[23] = 1;
        p[24..26].copy_from_slice(&[0xff, 0x3e]);
        p[39] = 1;
        p
    }

    const GROUP: [u8; 4] = [225, 1, 2, 3];

    /// A batch of packets, each with what is known of it.
    fn batch(packets: &[(Vec<u8>, Packet)]) -> Batch {
        let (mut bytes, mut all) = (vec![0xee; 7], Vec::new());
        for (i, (packet, meta)) in packets.iter().enumerate() {
            let version = packet.first().map_or(0, |b| b >> 4);
            let own = match version {
                6 => vlan::ETHERTYPE_IPV6,
                _ => vlan::ETHERTYPE_IPV4,
            };
            all.push(Packet {
                start: bytes.len() as u32,
                len: packet.len() as u32,
                received_ns: i as u64,
                ethertype: if meta.ethertype == 0 {
                    own
                } else {
                    meta.ethertype
                },
                ..*meta
            });
            bytes.extend_from_slice(packet);
        }
        Batch::from_bytes(bytes, all)
    }

    fn run(fib: &Fib, packets: &[(Vec<u8>, Packet)]) -> Switched {
        let ingress = &fib.ingresses[&IfIndex::new(1).unwrap()];
        Switch::default().run(fib, ingress, batch(packets), 0)
    }

    fn plain(packet: Vec<u8>) -> (Vec<u8>, Packet) {
        (packet, Packet::default())
    }

    /// Why the only packet was dropped.
    fn reason(packet: (Vec<u8>, Packet)) -> Option<DropReason> {
        let len = packet.0.len() as u64;
        let switched = run(&usual(), &[packet]);
        assert_eq!(switched.tally.packets, 1);
        let found = DropReason::ALL
            .iter()
            .find(|r| switched.tally.dropped[**r as usize] == 1);
        // What is no packet counts with all its bytes.
        assert!(found.is_none() || switched.tally.bytes == len);
        assert_eq!(found.is_some(), switched.egresses.is_empty());
        found.copied()
    }

    /// What leaves on an interface.
    fn leaving(fib: &Fib, switched: &Switched, name: &str) -> Vec<Vec<u8>> {
        let named = |id: &EgressId| fib.egresses[*id as usize].name.as_str() == name;
        let slots = switched.egresses.iter().filter(|(id, _)| named(id));
        slots
            .flat_map(|(_, slots)| slots)
            .map(|slot| switched.load.packet(slot).to_vec())
            .collect()
    }

    #[test]
    fn fan_out_obeys_thresholds_and_keeps_the_order_of_each_egress() {
        let fib = usual();
        let ttls = [9, 8, 2, 200, 1];
        let packets: Vec<_> = ttls.iter().map(|t| plain(packet(GROUP, *t, 4))).collect();
        let mixed = [&packets[..], &[plain(packet([225, 1, 7, 7], 1, 4))]].concat();
        let switched = run(&fib, &mixed);
        let left = |name| -> Vec<u8> {
            let packets = leaving(&fib, &switched, name);
            packets.iter().map(|p| p[8]).collect()
        };
        assert_eq!(left("out1"), [8, 7, 1, 199, 1]);
        assert_eq!(left("out3"), [8, 199]);
        assert_eq!(left("out2"), [1]);
        let out3 = fib.egresses.iter().position(|e| e.name.as_str() == "out3");
        let below = &switched.tally.below_threshold;
        assert_eq!(below, &[(out3.unwrap() as u32, 2)]);
        assert_eq!(switched.tally.dropped[DropReason::TtlExpired as usize], 1);
        assert_eq!(switched.tally.packets, 6);
        for (_, slots) in &switched.egresses {
            assert!(slots.is_sorted_by_key(|s| s.received_ns));
        }
    }

    #[test]
    fn a_vlan_with_an_interface_of_its_own_is_left_to_it() {
        let vlan = |id| Packet {
            vlan: Some(id),
            ..Packet::default()
        };
        let elsewhere = Some(DropReason::VlanElsewhere);
        assert_eq!(reason((packet(GROUP, 9, 4), vlan(10))), elsewhere);
        assert_eq!(reason((packet(GROUP, 9, 4), vlan(11))), None);
        // Tagged for priority only (802.1Q section 9.6).
        assert_eq!(reason((packet(GROUP, 9, 4), vlan(0))), None);
    }

    fn tagged(tags: &[(u16, u16)], packet: Vec<u8>) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (control, next) in tags {
            bytes.extend_from_slice(&control.to_be_bytes());
            bytes.extend_from_slice(&next.to_be_bytes());
        }
        bytes.extend(packet);
        bytes
    }

    fn of_type(ethertype: u16) -> Packet {
        Packet {
            ethertype,
            ..Packet::default()
        }
    }

    #[test]
    fn tags_left_in_the_bytes_are_stepped_over_and_the_outermost_counts() {
        let fib = usual();
        let inner = |id: u16| tagged(&[(id, 0x0800)], packet(GROUP, 9, 4));
        // QinQ: the kernel took the outer tag; the inner one is nobody else's.
        let mut qinq = of_type(vlan::ETHERTYPE_VLAN);
        qinq.vlan = Some(20);
        let switched = run(&fib, &[(inner(10), qinq)]);
        assert_eq!(leaving(&fib, &switched, "out1"), [packet(GROUP, 8, 4)]);
        qinq.vlan = Some(10);
        assert_eq!(reason((inner(20), qinq)), Some(DropReason::VlanElsewhere));
        // Going out on a device that cannot insert tags, the outer tag is in the bytes too.
        let untouched = of_type(vlan::ETHERTYPE_VLAN);
        let elsewhere = Some(DropReason::VlanElsewhere);
        assert_eq!(reason((inner(10), untouched)), elsewhere);
        assert_eq!(reason((inner(0x6000 | 10), untouched)), elsewhere);
        assert_eq!(reason((inner(11), untouched)), None);
        let two = tagged(&[(20, 0x8100), (10, 0x86dd)], packet_v6(9));
        let switched = run(&fib, &[(two, of_type(vlan::ETHERTYPE_SERVICE_VLAN))]);
        assert_eq!(leaving(&fib, &switched, "out1"), [packet_v6(8)]);
        let cut = tagged(&[(20, 0x8100)], vec![0, 10]);
        let reason = reason((cut, of_type(vlan::ETHERTYPE_VLAN)));
        assert_eq!(reason, Some(DropReason::Truncated));
    }

    #[test]
    fn a_checksum_behind_tags_is_finished_at_its_place() {
        let fib = usual();
        let mut unfinished = packet(GROUP, 9, 5);
        let (s, d) = ([10, 0, 0, 1].into(), GROUP.into());
        let sum = checksum::fold(checksum::pseudo_header(s, d, udp::PROTOCOL, 13));
        unfinished[26..28].copy_from_slice(&sum.to_be_bytes());
        let mut meta = of_type(vlan::ETHERTYPE_VLAN);
        meta.offload = Offload::Checksum {
            start: 24,
            offset: 6,
        };
        let switched = run(&fib, &[(tagged(&[(11, 0x0800)], unfinished), meta)]);
        let left = &leaving(&fib, &switched, "out1")[0];
        let sum = checksum::pseudo_header(s, d, udp::PROTOCOL, 13);
        assert_eq!(checksum::fold(checksum::add(sum, &left[20..])), 0xffff);
        meta.offload = Offload::Checksum {
            start: 3,
            offset: 6,
        };
        let bytes = tagged(&[(11, 0x0800)], packet(GROUP, 9, 5));
        assert_eq!(reason((bytes, meta)), Some(DropReason::ChecksumUnknown));
    }

    #[test]
    fn pieces_of_a_super_packet_go_to_every_egress_and_count_as_packets() {
        let fib = usual();
        let offload = Offload::UdpSegments { payload: 1000 };
        let big = (
            packet([225, 1, 7, 7], 9, 2500),
            Packet {
                offload,
                ..Packet::default()
            },
        );
        let small = plain(packet([225, 1, 7, 7], 5, 1));
        let switched = run(&fib, &[small.clone(), big, small.clone()]);
        let out1 = leaving(&fib, &switched, "out1");
        let lens: Vec<_> = out1.iter().map(Vec::len).collect();
        assert_eq!(lens, [29, 1028, 1028, 528, 29]);
        assert_eq!(leaving(&fib, &switched, "out2"), out1);
        let whole = |p: &Vec<u8>| Datagram::parse(p).is_ok_and(|d| d.len == p.len());
        assert!(out1.iter().all(whole));
        assert_eq!(switched.tally.packets, 5);
        assert_eq!(switched.tally.bytes, 29 + 1028 + 1028 + 528 + 29);
        // One that cannot be cut is one packet dropped, and leaves no pieces behind.
        let mut meta = Packet {
            offload: Offload::UdpSegments { payload: 0 },
            ..Packet::default()
        };
        let gso = Some(DropReason::GsoUnknown);
        assert_eq!(reason((packet(GROUP, 9, 100), meta)), gso);
        meta.offload = Offload::Unknown;
        assert_eq!(reason((packet(GROUP, 9, 100), meta)), gso);
    }

    #[test]
    fn what_is_no_whole_packet_has_a_reason() {
        let good = || packet(GROUP, 9, 4);
        let cut = Packet {
            cut: true,
            ..Packet::default()
        };
        assert_eq!(reason((good(), cut)), Some(DropReason::Truncated));
        let malformed = Some(DropReason::Malformed);
        assert_eq!(reason((good(), of_type(vlan::ETHERTYPE_IPV6))), malformed);
        assert_eq!(reason((packet_v6(9), of_type(0x0800))), malformed);
        assert_eq!(reason((good(), of_type(0x0806))), malformed);
        let empty = reason((vec![], of_type(0x0800)));
        assert_eq!(empty, Some(DropReason::Truncated));
        let no_egress = reason(plain(packet([225, 9, 9, 9], 9, 4)));
        assert_eq!(no_egress, Some(DropReason::NoEgress));
        // A place outside the batch is what no plane gives; it must not be read.
        let fib = usual();
        let ingress = &fib.ingresses[&IfIndex::new(1).unwrap()];
        let mut outside = batch(&[plain(good())]);
        outside.packets[0].len += 1;
        let switched = Switch::default().run(&fib, ingress, outside, 0);
        assert_eq!(switched.tally.dropped[DropReason::Truncated as usize], 1);
    }

    #[test]
    fn padding_is_trimmed() {
        let fib = usual();
        let mut padded = packet(GROUP, 9, 1);
        padded.resize(46, 0xaa);
        let switched = run(&fib, &[plain(padded)]);
        assert_eq!(leaving(&fib, &switched, "out1"), [packet(GROUP, 8, 1)]);
        assert_eq!(switched.tally.bytes, 29);
    }

    fn any_packet() -> impl Strategy<Value = (Vec<u8>, Packet)> {
        let groups = prop_oneof![
            Just(GROUP),
            Just([225, 1, 9, 9]),
            Just([225, 9, 9, 9]),
            Just([230, 1, 1, 1]),
            Just([224, 0, 0, 251]),
            Just([10, 0, 0, 9]),
        ];
        let bytes = prop_oneof![
            4 => (groups, any::<u8>(), 0usize..3000).prop_map(|(g, t, b)| packet(g, t, b)),
            1 => any::<u8>().prop_map(packet_v6),
            1 => proptest::collection::vec(any::<u8>(), 0..80),
        ];
        let offload = prop_oneof![
            4 => Just(Offload::None),
            1 => Just(Offload::Checksum { start: 20, offset: 6 }),
            1 => (any::<u16>(), any::<u16>()).prop_map(|(start, offset)| Offload::Checksum { start, offset }),
            2 => (0u16..1500).prop_map(|payload| Offload::UdpSegments { payload }),
            1 => Just(Offload::Unknown),
        ];
        let ethertype = prop_oneof![8 => Just(0u16), 1 => Just(0x8100u16), 1 => any::<u16>()];
        let vlan = proptest::option::weighted(0.2, 9u16..12);
        (
            bytes,
            offload,
            ethertype,
            vlan,
            proptest::bool::weighted(0.05),
        )
            .prop_map(|(bytes, offload, ethertype, vlan, cut)| {
                let meta = Packet {
                    ethertype,
                    vlan,
                    offload,
                    cut,
                    ..Packet::default()
                };
                (bytes, meta)
            })
    }

    fn any_rules() -> impl Strategy<Value = Vec<RouteRule>> {
        let group = prop_oneof![
            Just("225.1.2.3"),
            Just("225.1.0.0/16"),
            Just("224.0.0.0/4"),
            Just("ff00::/8"),
        ];
        let to = proptest::sample::subsequence(vec!["out1", "out2", "out3"], 0..=3);
        let ttl = prop_oneof![
            Just(TtlPolicy::Decrement),
            Just(TtlPolicy::Keep),
            (1u8..).prop_map(TtlPolicy::Set)
        ];
        let rule = (group, to, ttl).prop_map(|(g, to, ttl)| rule(g, &to, ttl));
        proptest::collection::vec(rule, 1..5)
    }

    proptest! {
        /// Every packet is decided once: for each, all its paths are slots or below a
        /// threshold, or it is dropped with one reason.
        #[test]
        fn nothing_is_lost_in_the_count(
            rules in any_rules(),
            packets in proptest::collection::vec(any_packet(), 0..30),
        ) {
            let fib = fib(rules);
            let ingress = &fib.ingresses[&IfIndex::new(1).unwrap()];
            let mut switch = Switch::default();
            let whole = switch.run(&fib, ingress, batch(&packets), 0);
            let (mut forwarded, mut dropped, mut below, mut slots) = (0, 0, 0, 0);
            for packet in &packets {
                let one = switch.run(&fib, ingress, batch(std::slice::from_ref(packet)), 0);
                let lost = one.tally.dropped.iter().sum::<u64>();
                let passed = one.tally.packets - lost;
                prop_assert!(lost <= 1 && (lost == 0 || passed == 0));
                let on_slots = one.egresses.iter().map(|(_, s)| s.len() as u64).sum::<u64>();
                let under = one.tally.below_threshold.iter().map(|(_, n)| n).sum::<u64>();
                if passed > 0 {
                    // As often as its route has paths.
                    prop_assert!(on_slots + under > 0);
                    prop_assert_eq!((on_slots + under) % passed, 0);
                }
                forwarded += passed;
                dropped += lost;
                below += under;
                slots += on_slots;
            }
            prop_assert_eq!(whole.tally.packets, forwarded + dropped);
            prop_assert_eq!(whole.tally.dropped.iter().sum::<u64>(), dropped);
            let under = whole.tally.below_threshold.iter().map(|(_, n)| n).sum::<u64>();
            prop_assert_eq!(under, below);
            let mut on_slots = 0;
            for (egress, list) in &whole.egresses {
                prop_assert!(!list.is_empty());
                prop_assert!(list.is_sorted_by_key(|s| s.received_ns));
                for slot in list {
                    prop_assert_eq!(fib.paths[slot.path as usize].egress, *egress);
                    let bytes = whole.load.packet(slot);
                    prop_assert_eq!(Datagram::parse(bytes).map(|d| d.len), Ok(bytes.len()));
                }
                on_slots += list.len() as u64;
            }
            prop_assert_eq!(on_slots, slots);
        }
    }
}
