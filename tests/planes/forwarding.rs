//! The forwarding table and the counters of a plane: what every plane that forwards by itself must
//! do, tested on the simulated plane, and that a plane without forwarding reports no counts.

use std::sync::Arc;

use mcastor::model::{Link, Links, RouteName, RouteRule, TtlPolicy};
use mcastor::planes::{PathCount, Plane, PlaneCounters};
use mcastor::table::{Fib, FibDiff, Rib};
use mcastor::wire::ip::refresh_ipv4_checksum;

use super::bed::*;
use super::{BedTest, NamedTest};

pub const TESTS: &[NamedTest<BedTest>] = tests![bed:
    plane_without_forwarding_reports_no_counts,
];

pub const SIM_TESTS: &[NamedTest<BedTest>] = tests![bed:
    synced_route_is_forwarded_and_counted_once,
    packets_that_the_plane_cannot_forward_are_captured,
    removed_route_stops_forwarding,
];

/// Returns a table with one route from `near` to `far`.
fn fib(bed: &Bed, generation: u64, change: impl FnOnce(&mut RouteRule)) -> Arc<Fib> {
    let (near, far) = ("near".parse().unwrap(), "far".parse().unwrap());
    let links: Links = [Link::new(bed.near, near), Link::new(bed.far, far)]
        .into_iter()
        .collect();
    let to = vec!["far".parse().unwrap()];
    let mut rule = RouteRule {
        name: RouteName::new("one"),
        loop_guard: false,
        ttl: TtlPolicy::Decrement,
        ..RouteRule::new("near".parse().unwrap(), "224.0.0.0/4".parse().unwrap(), to)
    };
    change(&mut rule);
    let rib = Rib {
        rules: vec![rule].into(),
        ..Rib::default()
    };
    Arc::new(rib.build_fib(&links, generation))
}

fn sync(plane: &dyn Plane, old: &Arc<Fib>, new: &Arc<Fib>) {
    let diff = FibDiff {
        old: old.clone(),
        new: new.clone(),
    };
    plane.sync(&diff).unwrap();
}

/// Returns a packet with a valid checksum, which forwarding requires.
fn valid_packet(n: u32, len: usize) -> Vec<u8> {
    let mut packet = packet(n, len);
    refresh_ipv4_checksum(&mut packet);
    packet
}

fn slices(packets: &[Vec<u8>]) -> Vec<&[u8]> {
    packets.iter().map(Vec::as_slice).collect()
}

async fn plane_without_forwarding_reports_no_counts(bed: Bed) -> Outcome {
    let mut capture = bed.plane.capture(bed.far)?;
    let mut sink = bed.plane.transmit(bed.near)?;
    sync(bed.plane.as_ref(), &Arc::default(), &fib(&bed, 1, |_| ()));
    let sent = [packet(1, 100)];
    send_all(sink.as_mut(), &sent).await?;
    check_equal(&receive(capture.as_mut(), 1).await?, &sent)?;
    assert_eq!(bed.plane.take_counters(), PlaneCounters::default());
    Ok(())
}

async fn synced_route_is_forwarded_and_counted_once(bed: Bed) -> Outcome {
    let Kind::Sim(sim) = &bed.kind else {
        return Ok(());
    };
    sim.set_forwarding(true);
    let table = fib(&bed, 1, |_| ());
    sync(sim, &Arc::default(), &table);
    let packets = [valid_packet(1, 100), valid_packet(2, 200)];
    sim.arrive(bed.near, &slices(&packets));
    let sent = sim.take_sent(bed.far);
    assert_eq!(sent.len(), 2);
    assert_eq!(sent[0][8], packets[0][8] - 1, "TTL");
    assert!(
        !sim.has_arriving(bed.near),
        "forwarded packets are not captured"
    );
    let counters = sim.take_counters();
    let totals = |counts: &[PathCount]| -> (u64, u64) {
        let packets = counts.iter().map(|c| c.packets).sum();
        (packets, counts.iter().map(|c| c.bytes).sum())
    };
    assert_eq!(totals(&counters.paths), (2, 300));
    assert_eq!(counters.received.iter().map(|r| r.packets).sum::<u64>(), 2);
    assert!(
        counters
            .paths
            .iter()
            .all(|p| p.route == RouteName::new("one")
                && p.iif.as_str() == "near"
                && p.oif.as_str() == "far")
    );
    assert_eq!(sim.take_counters(), PlaneCounters::default());
    Ok(())
}

async fn packets_that_the_plane_cannot_forward_are_captured(bed: Bed) -> Outcome {
    let Kind::Sim(sim) = &bed.kind else {
        return Ok(());
    };
    sim.set_forwarding(true);
    let guarded = fib(&bed, 1, |rule| rule.loop_guard = true);
    sync(sim, &Arc::default(), &guarded);
    sim.arrive(bed.near, &slices(&[valid_packet(1, 100)]));
    assert!(sim.has_arriving(bed.near));
    assert!(sim.take_sent(bed.far).is_empty());
    assert_eq!(sim.take_counters(), PlaneCounters::default());
    Ok(())
}

async fn removed_route_stops_forwarding(bed: Bed) -> Outcome {
    let Kind::Sim(sim) = &bed.kind else {
        return Ok(());
    };
    sim.set_forwarding(true);
    let table = fib(&bed, 1, |_| ());
    sync(sim, &Arc::default(), &table);
    sync(sim, &table, &Arc::default());
    sim.arrive(bed.near, &slices(&[valid_packet(1, 100)]));
    assert!(sim.has_arriving(bed.near));
    assert!(sim.take_sent(bed.far).is_empty());
    Ok(())
}
