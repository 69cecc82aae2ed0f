//! Tests of routes that merge two paths.

use std::time::Duration;

use super::*;
use crate::model::{MergeBy, SourcePrefix};

/// Settings of a merge of eth0 and eth1, whose second path has another source and group.
fn rules() -> Vec<RouteRule> {
    let first = rule("225.1.2.3", &["out1", "out3"], TtlPolicy::Decrement);
    let merge = |path: MergePath, with: &str| MergeRule {
        path,
        with: with.parse().unwrap(),
        window: Duration::from_millis(50),
        by: MergeBy::Field {
            offset: 0,
            bytes: 2,
        },
    };
    let copies = ("10.0.0.9".parse().unwrap(), "225.7.7.7".parse().unwrap());
    let source: SourcePrefix = "10.0.0.1".parse().unwrap();
    let to_first = (Some(source), Some(first.group));
    let second = RouteRule {
        from: "eth1".parse().unwrap(),
        source: copies.0,
        group: copies.1,
        translation: TranslationRule::new(copies, to_first, None, false).ok(),
        merge: Some(merge(MergePath::Second, "eth0")),
        takeover: None,
        ..first.clone()
    };
    let first = RouteRule {
        source,
        merge: Some(merge(MergePath::First, "eth1")),
        takeover: None,
        ..first
    };
    vec![first, second]
}

/// The switches of both ingresses.
struct Paths {
    fib: Fib,
    switches: [Switch; 2],
}

impl Paths {
    fn new(rules: Vec<RouteRule>) -> Self {
        let merges = Arc::<Merges>::default();
        let switch = || Switch::default().with_merges(merges.clone());
        Self {
            fib: fib(rules),
            switches: [switch(), switch()],
        }
    }

    fn ingress(&self, path: usize) -> Arc<Ingress> {
        let index = [1, 6][path];
        self.fib.ingresses[&InterfaceId::new(index).unwrap()].clone()
    }

    fn run(&mut self, path: usize, packets: &[(Vec<u8>, Packet)]) -> Switched {
        let ingress = self.ingress(path);
        self.switches[path].run(&self.fib, &ingress, batch(packets), 0)
    }

    /// Returns the numbers of the packets that leave on an interface.
    fn numbers(&self, switched: &Switched, name: &str) -> Vec<u16> {
        let packets = leaving(&self.fib, switched, name).into_iter();
        let number = |packet: Vec<u8>| {
            let header = IpHeader::parse(&packet).unwrap();
            assert_eq!(header.source.to_string(), "10.0.0.1");
            assert_eq!(header.destination.to_string(), "225.1.2.3");
            assert_eq!(header.ttl, 8);
            u16::from_be_bytes([packet[28], packet[29]])
        };
        packets.map(number).collect()
    }
}

fn numbered(path: usize, number: u16) -> (Vec<u8>, Packet) {
    let group = [GROUP, [225, 7, 7, 7]][path];
    let mut bytes = packet(group, 9, 10);
    bytes[15] = [1, 9][path];
    bytes[28..30].copy_from_slice(&number.to_be_bytes());
    refresh_ipv4_checksum(&mut bytes);
    plain(bytes)
}

#[test]
fn two_paths_leave_as_one_stream_in_order() {
    let mut paths = Paths::new(rules());
    let first = paths.run(0, &[1, 2, 4, 5].map(|n| numbered(0, n)));
    assert_eq!(paths.numbers(&first, "out1"), [1, 2]);
    let second = paths.run(1, &[1, 2, 3, 4, 6].map(|n| numbered(1, n)));
    assert_eq!(paths.numbers(&second, "out1"), [3, 4, 5, 6]);
    assert_eq!(paths.numbers(&second, "out3"), [3, 4, 5, 6]);
    let counts = &second.counts;
    assert_eq!(counts.dropped[DropReason::MergeDuplicate as usize], 3);
    assert_eq!(counts.dropped.iter().sum::<u64>(), 3);
    // Each packet is counted for the path that brought it.
    let slots = &second.egresses[0].1;
    let iif = |slot: &Slot| paths.fib.paths[slot.path as usize].iif.to_string();
    let iifs: Vec<String> = slots.iter().map(iif).collect();
    assert_eq!(iifs, ["eth1", "eth0", "eth0", "eth1"]);
}

#[test]
fn held_packets_leave_when_they_are_not_waited_for() {
    let mut paths = Paths::new(rules());
    paths.run(0, &[1, 3].map(|n| numbered(0, n)));
    let ingress = paths.ingress(0);
    let poll = |paths: &mut Paths, until| {
        let switched = paths.switches[0].poll_merges(&paths.fib, &ingress, until, 0);
        paths.numbers(&switched, "out1")
    };
    assert!(poll(&mut paths, Some(49_000_000)).is_empty());
    assert_eq!(poll(&mut paths, Some(51_000_000)), [3]);
    let late = paths.run(1, &[numbered(1, 2)]);
    assert_eq!(late.counts.dropped[DropReason::MergeLate as usize], 1);
    assert_eq!(late.egresses.len(), 0);
    let mut paths = Paths::new(rules());
    paths.run(0, &[1, 3].map(|n| numbered(0, n)));
    assert_eq!(poll(&mut paths, None), [3]);
}

#[test]
fn held_packets_of_a_removed_route_are_counted() {
    let mut paths = Paths::new(rules());
    paths.run(0, &[1, 3].map(|n| numbered(0, n)));
    let merges = {
        let ingress = paths.ingress(0);
        let all = paths.switches[0].merges(&paths.fib, &ingress);
        all.map(|(_, merge)| merge.clone()).collect::<Vec<_>>()
    };
    let others = vec![rule("225.1.2.4", &["out1"], TtlPolicy::Decrement)];
    let mut other = fib(others);
    // The switch of the other path has not seen the new table yet.
    other.generation = paths.fib.generation;
    let ingress = paths.ingress(0);
    let switched = paths.switches[0].poll_merges(&other, &ingress, None, 0);
    assert_eq!(switched.counts.dropped[DropReason::NoRoute as usize], 1);
    assert!(!merges[0].is_waiting());
}

#[test]
fn held_packets_leave_before_those_of_a_merge_that_replaces_theirs() {
    let mut paths = Paths::new(rules());
    paths.run(0, &[1, 3].map(|n| numbered(0, n)));
    let mut others = rules();
    for rule in &mut others {
        let merge = rule.merge.as_mut().unwrap();
        merge.window = Duration::from_millis(60);
    }
    let generation = paths.fib.generation + 1;
    paths.fib = fib(others);
    paths.fib.generation = generation;
    let switched = paths.run(0, &[numbered(0, 4)]);
    assert_eq!(paths.numbers(&switched, "out1"), [3, 4]);
    assert_eq!(switched.counts.dropped.iter().sum::<u64>(), 0);
    // Without a packet, they leave too.
    paths.run(0, &[numbered(0, 6)]);
    paths.fib = fib(rules());
    paths.fib.generation = generation + 1;
    let ingress = paths.ingress(0);
    assert_eq!(paths.switches[0].merges(&paths.fib, &ingress).count(), 1);
    assert!(paths.switches[0].has_replaced_merges());
    let switched = paths.switches[0].flush_replaced_merges(&paths.fib, 0);
    assert_eq!(paths.numbers(&switched, "out1"), [6]);
    assert!(!paths.switches[0].has_replaced_merges());
}

#[test]
fn packets_held_when_the_last_route_ends_are_counted() {
    let mut paths = Paths::new(rules());
    paths.run(0, &[1, 3].map(|n| numbered(0, n)));
    let mut other = fib(Vec::new());
    other.generation = paths.fib.generation + 1;
    let switched = paths.switches[0].poll_merges(&other, &Ingress::default(), None, 0);
    assert_eq!(switched.counts.dropped[DropReason::NoRoute as usize], 1);
    assert!(!paths.switches[0].has_replaced_merges());
}

#[test]
fn datagrams_of_a_gso_packet_are_merged_one_by_one() {
    let mut paths = Paths::new(rules());
    // Three datagrams of 10 bytes with the numbers 7, 8 and 9.
    let mut gso = packet(GROUP, 9, 30);
    for (at, number) in [7u16, 8, 9].iter().enumerate() {
        gso[28 + 10 * at..30 + 10 * at].copy_from_slice(&number.to_be_bytes());
    }
    refresh_ipv4_checksum(&mut gso);
    let segmented = Packet {
        offload: Offload::UdpSegments { payload: 10 },
        ..Packet::default()
    };
    let second = paths.run(1, &[7, 9].map(|n| numbered(1, n)));
    assert_eq!(paths.numbers(&second, "out1"), [7]);
    let first = paths.run(0, &[(gso, segmented)]);
    assert_eq!(paths.numbers(&first, "out1"), [8, 9]);
    assert_eq!(first.counts.dropped[DropReason::MergeDuplicate as usize], 2);
}

/// An egress of the route that also has members of a proxy gets each packet once.
#[test]
fn proxy_forwards_beside_the_merge() {
    let members = [
        (2, GROUP, SourceFilter::any()),
        (3, GROUP, SourceFilter::any()),
    ];
    let mut paths = Paths::new(rules());
    paths.fib = fib_with(rules(), vec![proxy(&[IIF], TtlPolicy::Decrement)], &members);
    let first = paths.run(0, &[1, 1, 3].map(|n| numbered(0, n)));
    assert_eq!(paths.numbers(&first, "out1"), [1]);
    assert_eq!(paths.numbers(&first, "out2"), [1, 1, 3]);
    let second = paths.run(1, &[numbered(1, 2)]);
    assert_eq!(paths.numbers(&second, "out1"), [2, 3]);
}
