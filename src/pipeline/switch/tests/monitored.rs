//! Tests of monitored streams in the switch.

use super::*;
use crate::api::streams::StreamLoss;
use crate::model::MonitorKind;
use crate::streams::{IngressNames, Registry};

const MONITORED: [u8; 4] = [225, 1, 2, 3];
const OTHER: [u8; 4] = [225, 4, 4, 4];

/// A table in which the streams of one group are monitored.
fn monitored_fib() -> Fib {
    let monitored = RouteRule {
        monitor: Some(MonitorKind::Rate),
        ..rule("225.1.2.3", &["out1", "out3"], TtlPolicy::Decrement)
    };
    fib(vec![
        monitored,
        rule("225.4.4.4", &["out1"], TtlPolicy::Decrement),
    ])
}

fn switch_with(registry: &Arc<Registry>) -> Switch {
    let flows = Flows::new(FlowBudget::new(100));
    let monitor = StreamMonitor::new(registry.clone());
    Switch::new(flows, Arc::default(), Arc::default(), monitor)
}

/// Returns the packets of each monitored stream, and what was lost.
fn reported(switch: &mut Switch, registry: &Registry) -> Vec<(u64, Vec<(&'static str, u64)>)> {
    let interface = InterfaceId::new(1).unwrap();
    switch
        .monitor
        .report(interface, (0, 10_000), |_| IngressNames::default());
    let (ingresses, _) = registry.reports();
    let view = |report: &Arc<crate::streams::report::IngressReport>| {
        let lost = report.lost.iter();
        let lost = lost.map(|(_, reason, StreamLoss { total, .. })| (reason.label(), *total));
        (report.examined.health.packets, lost.collect())
    };
    ingresses.iter().map(view).collect()
}

fn run_packets(switch: &mut Switch, fib: &Fib, packets: &[Vec<u8>]) -> Switched {
    let (mut bytes, mut all) = (Vec::new(), Vec::new());
    for packet in packets {
        all.push(Packet {
            start: bytes.len() as u32,
            len: packet.len() as u32,
            ethertype: 0x0800,
            ..Packet::default()
        });
        bytes.extend_from_slice(packet);
    }
    let ingress = &fib.ingresses[&InterfaceId::new(1).unwrap()];
    switch.run(fib, ingress, Batch::from_bytes(bytes, all), 1)
}

/// out3 has a TTL threshold of 8.
#[test]
fn monitored_stream_is_observed_with_its_drops() {
    let (registry, fib) = (Arc::new(Registry::default()), monitored_fib());
    let mut switch = switch_with(&registry);
    let ttls = [20, 20, 5, 1];
    let packets = ttls.map(|ttl| packet(MONITORED, ttl, 50));
    let others = [packet(OTHER, 9, 50), packet(OTHER, 1, 50)];
    let switched = run_packets(&mut switch, &fib, &[&packets[..], &others[..]].concat());
    let lost = vec![("ttl_threshold", 1), ("ttl_expired", 1)];
    assert_eq!(reported(&mut switch, &registry), [(4, lost)]);
    for (egress, slots) in &switched.egresses {
        let monitored = slots.iter().filter(|slot| slot.stream.is_some()).count();
        let expected = if fib.egresses[*egress as usize].name.as_str() == "out1" {
            3
        } else {
            2
        };
        assert_eq!(monitored, expected);
    }
}

#[test]
fn stream_ends_when_it_is_idle_or_not_wanted() {
    let (registry, fib) = (Arc::new(Registry::default()), monitored_fib());
    let mut switch = switch_with(&registry);
    for (idle_ms, wanted, live) in [(60_000, true, 1), (60_000, false, 0), (5_000, true, 0)] {
        run_packets(&mut switch, &fib, &[packet(MONITORED, 9, 50)]);
        switch.monitor.expire(10_000, idle_ms, |_| wanted);
        assert_eq!(registry.live(), live, "{idle_ms} {wanted}");
    }
    drop(switch);
    assert_eq!(registry.live(), 0);
}

#[test]
fn streams_beyond_the_limit_are_counted_once() {
    let registry = Arc::new(Registry::default());
    registry.set_limit(2);
    let all = RouteRule {
        monitor: Some(MonitorKind::Rate),
        ..rule("225.1.0.0/16", &["out1"], TtlPolicy::Decrement)
    };
    let fib = fib(vec![all]);
    let mut switch = switch_with(&registry);
    for _ in 0..3 {
        let packets: Vec<_> = (0..5).map(|n| packet([225, 1, 0, n], 9, 50)).collect();
        run_packets(&mut switch, &fib, &packets);
    }
    assert_eq!((registry.live(), registry.take_left_out()), (2, 3));
    assert_eq!(registry.take_left_out(), 0);
}
