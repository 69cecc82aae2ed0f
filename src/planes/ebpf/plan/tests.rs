//! Plans are compared with the decisions of the packet plane.

use proptest::prelude::*;

use super::*;
use crate::forward::{Arrival, DropReason, TraceStep, resolve};
use crate::model::{KernelForwarding, Link, Links, RouteRule, TtlThreshold};
use crate::table::{InterfaceOptions, ReportOptions, Rib, StreamState};
use crate::wire::ip::refresh_ipv4_checksum;

const SOURCE: [u8; 4] = [10, 0, 0, 1];
const GROUP: [u8; 4] = [225, 1, 2, 3];

/// Links of which this one is no plain Ethernet link.
struct Facts {
    tunnel: Option<u32>,
    host_listens: bool,
}

impl LinkFacts for Facts {
    fn is_plain_ethernet(&self, interface: InterfaceId) -> bool {
        Some(interface.get()) != self.tunnel
    }

    fn has_peer_elsewhere(&self, _: InterfaceId) -> bool {
        false
    }

    fn host_wants(&self, _: InterfaceId, _: IpAddr) -> bool {
        self.host_listens
    }
}

fn id(n: u32) -> InterfaceId {
    InterfaceId::new(n).unwrap()
}

/// The ingress `in`, and the egresses `out2` to `out4`: name, MTU, and whether it is up.
fn links(egresses: &[(u32, bool)]) -> Links {
    let mut links = Links::default();
    let link = |n: u32, name: &str, (mtu, up): (u32, bool)| {
        let mut link = Link::new(id(n), name.parse().unwrap());
        let address = crate::model::MacAddress([2, 0, 0, 0, 0, n as u8]);
        (link.mtu, link.up, link.carrier) = (mtu, up, up);
        link.address = Some(address);
        link
    };
    links.insert(link(1, "in", (1500, true)));
    for (n, egress) in (2..).zip(egresses) {
        links.insert(link(n, &format!("out{n}"), *egress));
    }
    links
}

fn any_ttl() -> impl Strategy<Value = TtlPolicy> {
    prop_oneof![
        Just(TtlPolicy::Decrement),
        Just(TtlPolicy::Keep),
        (1u8..).prop_map(TtlPolicy::Set)
    ]
}

fn any_rule() -> impl Strategy<Value = RouteRule> {
    let group = prop_oneof![
        Just("225.1.2.3/32"),
        Just("225.1.0.0/16"),
        Just("226.0.0.0/8"),
    ];
    let to = proptest::sample::subsequence(vec!["out2", "out3", "out4"], 0..=3);
    let flags = (proptest::bool::weighted(0.1), proptest::bool::weighted(0.1));
    (group, to, any_ttl(), flags).prop_map(|(group, to, ttl, (guard, excepts))| {
        let to = to.iter().map(|name| name.parse().unwrap()).collect();
        let mut rule = RouteRule::new("in".parse().unwrap(), group.parse().unwrap(), to);
        rule.ttl = ttl;
        rule.loop_guard = guard;
        if excepts {
            rule.except_sources = vec!["10.0.0.1".parse().unwrap()];
        }
        rule
    })
}

fn packet(ttl: u8, len: usize) -> Vec<u8> {
    let mut packet = vec![0; len];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    (packet[8], packet[9]) = (ttl, 17);
    packet[12..16].copy_from_slice(&SOURCE);
    packet[16..20].copy_from_slice(&GROUP);
    refresh_ipv4_checksum(&mut packet);
    packet
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// A packet that the kernel may forward by the plan leaves on the egresses that the packet plane
    /// chooses, with the same TTL.
    #[test]
    fn plan_is_what_the_packet_plane_does(
        rules in proptest::collection::vec(any_rule(), 1..4),
        egresses in proptest::collection::vec(
            (400u32..2000, proptest::bool::weighted(0.9)), 3),
        thresholds in proptest::collection::vec(proptest::option::weighted(0.3, 1u8..), 3),
        tunnel in proptest::option::weighted(0.1, 1u32..5),
        host_listens: bool,
        packets in proptest::collection::vec((any::<u8>(), 28usize..2100), 20),
    ) {
        let options = (2..).zip(&thresholds).map(|(n, ttl): (u32, _)| InterfaceOptions {
            name: format!("out{n}").parse().unwrap(),
            ttl_threshold: ttl.and_then(TtlThreshold::new),
            mrdisc: None,
            reports: ReportOptions::default(),
            disabled: false,
            capture: false,
            kernel_forwarding: KernelForwarding::Auto,
            bandwidth: None,
        });
        let rib = Rib {
            rules: rules.into(),
            interfaces: options.collect(),
            ..Rib::default()
        };
        let fib = rib.build_fib(&links(&egresses), 1);
        let facts = Facts { tunnel, host_listens };
        let key = (IpAddr::from(SOURCE), IpAddr::from(GROUP));
        let Ok(plan) = plan(&fib, id(1), key, &facts) else {
            return Ok(());
        };
        prop_assert_eq!(plan.action.action.keep_original, host_listens);
        let Some(ingress) = fib.ingresses.get(&id(1)) else {
            return Ok(());
        };
        for (ttl, len) in packets {
            let arrival = Arrival {
                fib: &fib,
                ingress,
                streams: &StreamState::default(),
                sender: None,
                now_ms: 0,
            };
            let trace = resolve(arrival, &packet(ttl, len));
            let mut sent = Vec::new();
            let mut refused = Vec::new();
            for step in &trace.steps {
                if let TraceStep::PathChecked { path, ttl, result } = *step {
                    let egress = fib.egress_of(path).unwrap();
                    match result {
                        Ok(()) if len as u32 <= egress.mtu => sent.push((egress.index, ttl)),
                        Ok(()) => refused.push(DropReason::TooBig),
                        Err(reason) => refused.push(reason),
                    }
                }
            }
            let is_forwarded = ttl > plan.min_ttl && len <= usize::from(plan.max_len);
            if !is_forwarded {
                // Left to the packet plane only if that drops, fragments or refuses something.
                let is_dropped = trace.outcome.is_err() || !refused.is_empty();
                prop_assert!(is_dropped || ttl == 0, "{plan:?} {trace:?}");
                continue;
            }
            prop_assert!(trace.outcome.is_ok() && refused.is_empty(), "{plan:?} {trace:?}");
            let action = &plan.action.action;
            let leaves_with = action.set_ttl.unwrap_or(ttl - u8::from(action.decrement));
            let egresses = action.egresses.iter();
            let planned: Vec<_> = egresses.map(|e| (e.index.into(), leaves_with)).collect();
            prop_assert_eq!(sent, planned);
        }
    }
}

#[test]
fn reasons_for_declining_are_found() {
    let plan_of = |change: &dyn Fn(&mut RouteRule), egresses: &[(u32, bool)], tunnel| {
        let to = vec!["out2".parse().unwrap(), "out3".parse().unwrap()];
        let group = "225.1.2.3/32".parse().unwrap();
        let mut rule = RouteRule::new("in".parse().unwrap(), group, to);
        change(&mut rule);
        let rib = Rib {
            rules: vec![rule].into(),
            ..Rib::default()
        };
        let fib = rib.build_fib(&links(egresses), 1);
        let facts = Facts {
            tunnel,
            host_listens: false,
        };
        let key = (IpAddr::from(SOURCE), IpAddr::from(GROUP));
        plan(&fib, id(1), key, &facts).map(|plan| plan.action.paths.len())
    };
    let up = [(1500, true), (1500, true)];
    let down = [(1500, true), (1500, false)];
    assert_eq!(plan_of(&|_| {}, &up, None), Ok(2));
    assert_eq!(plan_of(&|_| {}, &down, None), Err(Declined::EgressDown));
    assert_eq!(plan_of(&|_| {}, &up, Some(1)), Err(Declined::IngressKind));
    assert_eq!(plan_of(&|_| {}, &up, Some(3)), Err(Declined::EgressKind));
    let guard = |rule: &mut RouteRule| rule.loop_guard = true;
    assert_eq!(plan_of(&guard, &up, None), Err(Declined::LoopGuard));
    let translate = |rule: &mut RouteRule, source: &str, group: &str| {
        rule.source = "10.0.0.1".parse().unwrap();
        let to = (Some(source.parse().unwrap()), Some(group.parse().unwrap()));
        let translation = TranslationRule::new((rule.source, rule.group), to, None, false);
        rule.translation = Some(translation.unwrap());
    };
    let same_version = |rule: &mut RouteRule| translate(rule, "10.0.0.2", "226.1.2.3");
    assert_eq!(plan_of(&same_version, &up, None), Ok(2));
    let other_version = |rule: &mut RouteRule| translate(rule, "fd00::2", "ff3e::1");
    assert_eq!(
        plan_of(&other_version, &up, None),
        Err(Declined::OtherIpVersion)
    );
    let other = |rule: &mut RouteRule| rule.group = "226.0.0.0/8".parse().unwrap();
    assert_eq!(plan_of(&other, &up, None), Err(Declined::NoRoute));
}
