use super::super::facts::BridgeFacts;
use super::super::firewall::FirewallRule;
use super::*;
use crate::api::{DropView, PendingView};

/// Two good interfaces of a host with a receiver of 239.1.2.3 on eth0.
fn healthy() -> Facts {
    let interface = |name: &str, address: &str| InterfaceFacts {
        name: name.into(),
        up: true,
        carrier: true,
        multicast: true,
        mtu: 1500,
        addresses: vec![address.parse().unwrap()],
        ..InterfaceFacts::default()
    };
    let mut receiver = interface("eth0", "10.0.0.9/24");
    receiver.groups = vec!["224.0.0.1".parse().unwrap(), "239.1.2.3".parse().unwrap()];
    let route = |net: &str, name: &str| (net.parse().unwrap(), name.to_owned(), 0);
    Facts {
        host: HostFacts {
            interfaces: vec![receiver, interface("eth1", "10.0.1.9/24")],
            routes: vec![
                route("0.0.0.0/0", "eth0"),
                route("10.0.0.0/24", "eth0"),
                route("10.0.1.0/24", "eth1"),
            ],
            max_memberships: Some(20),
            capabilities: (true, true),
            kernel: "6.1.0-13-amd64".into(),
            ..HostFacts::default()
        },
        ..Facts::default()
    }
}

fn labels(facts: &Facts) -> Vec<&'static str> {
    examine(facts)
        .iter()
        .map(|finding| finding.problem)
        .collect()
}

/// Applies a change to a healthy host, and compares the findings.
#[track_caller]
fn check(change: impl FnOnce(&mut Facts), expected: &[Cause]) {
    let mut facts = healthy();
    change(&mut facts);
    let expected: Vec<&str> = expected.iter().map(|problem| problem.label()).collect();
    assert_eq!(labels(&facts), expected);
}

#[test]
fn healthy_host_has_no_findings() {
    check(|_| {}, &[]);
}

#[test]
fn links() {
    check(
        |f| f.interface = Some("eth7".into()),
        &[Cause::InterfaceMissing],
    );
    check(|f| f.host.interfaces[0].up = false, &[Cause::InterfaceDown]);
    check(
        |f| f.host.interfaces[0].carrier = false,
        &[Cause::NoCarrier],
    );
    check(
        |f| f.host.interfaces[0].multicast = false,
        &[Cause::NoMulticastFlag],
    );
    // No program receives on eth1.
    check(|f| f.host.interfaces[1].carrier = false, &[]);
}

#[test]
fn refused_programs_are_reported_where_packet_sockets_work() {
    let refused = |f: &mut Facts| {
        f.host.kernel_forwarding_error = Some(("they need CAP_BPF".into(), "add it"));
    };
    check(refused, &[Cause::PacketPlane]);
    check(
        |f| (refused(f), f.host.capabilities = (false, false)).1,
        &[Cause::MissingCapability],
    );
}

#[test]
fn reverse_path_filter_matters_without_a_route_to_the_source() {
    check(|f| f.host.interfaces[0].rp_filter = 1, &[]);
    let other = |f: &mut Facts| {
        f.host.interfaces[0].rp_filter = 1;
        f.host.routes[0].1 = "eth1".into();
    };
    check(other, &[Cause::ReversePathFilter]);
    check(|f| (other(f), f.host.interfaces[0].rp_filter = 2).1, &[]);
}

#[test]
fn multicast_route_is_that_of_the_named_interface() {
    check(|f| f.interface = Some("eth0".into()), &[]);
    check(
        |f| f.interface = Some("eth1".into()),
        &[Cause::MulticastRoute],
    );
    let with_route = |f: &mut Facts| {
        f.interface = Some("eth1".into());
        f.host
            .routes
            .push(("224.0.0.0/4".parse().unwrap(), "eth1".into(), 0));
    };
    check(with_route, &[]);
}

#[test]
fn group_without_members() {
    check(|f| f.group = Some("239.1.2.3".parse().unwrap()), &[]);
    check(
        |f| f.group = Some("239.1.2.4".parse().unwrap()),
        &[Cause::NoReport],
    );
}

#[test]
fn firewall_rules() {
    let rule = |effect| FirewallRule {
        effect,
        text: "a rule".into(),
    };
    let with = |effect| move |f: &mut Facts| f.host.firewall.push(rule(effect));
    check(with(RuleEffect::DropsIgmp), &[Cause::FirewallDropsIgmp]);
    check(
        with(RuleEffect::DropsMulticast),
        &[Cause::FirewallDropsMulticast],
    );
    check(with(RuleEffect::ChangesTtl), &[]);
    check(with(RuleEffect::DropsForwarded), &[]);
    check(with(RuleEffect::DropsAnswers), &[]);
    let relaying = |f: &mut Facts| {
        f.host.firewall.push(rule(RuleEffect::DropsAnswers));
        let protocol = crate::api::DiscoveryProtocolView {
            protocol: "ssdp".into(),
            answers: "relay".into(),
            reason: String::new(),
        };
        let rule = crate::api::DiscoveryView {
            name: "home".into(),
            from: Vec::new(),
            to: Vec::new(),
            protocols: vec![protocol],
            offers: Vec::new(),
            askers: Vec::new(),
            questions: Vec::new(),
        };
        let router = f.router.get_or_insert_default();
        router.discovery.push(rule);
    };
    check(relaying, &[Cause::DiscoveryFragments]);
    let bridged = |f: &mut Facts| {
        f.host.firewall.push(rule(RuleEffect::DropsForwarded));
        f.host.bridge_nf = true;
        f.host.interfaces[1].bridge = Some(BridgeFacts::default());
    };
    check(bridged, &[Cause::BridgeNetfilter]);
}

#[test]
fn bridges() {
    let bridge = |snooping, querier, other_querier| {
        move |f: &mut Facts| {
            f.host.interfaces[1].bridge = Some(BridgeFacts {
                snooping,
                querier,
                other_querier,
            });
            f.host.interfaces[0].master = Some("eth1".into());
        }
    };
    check(bridge(true, false, false), &[Cause::SnoopingWithoutQuerier]);
    check(bridge(true, true, false), &[]);
    check(bridge(true, false, true), &[]);
    check(bridge(false, true, false), &[Cause::QuerierWithoutSnooping]);
    check(bridge(false, false, false), &[]);
}

#[test]
fn host_and_process() {
    check(
        |f| f.host.kernel_multicast_routing = true,
        &[Cause::OtherRouter],
    );
    check(
        |f| f.host.max_memberships = Some(1),
        &[Cause::MaxMemberships],
    );
    // The only group is one that mcastor joined.
    let mut of_router = healthy();
    of_router.host.max_memberships = Some(1);
    let group = serde_json::json!({
        "interface": "eth0", "role": "host", "group": "239.1.2.3", "mode": "exclude",
        "sources": [], "expires_ms": null, "version": null, "reporters": [],
        "last_reporter": null, "original": [], "for": [], "error": null,
    });
    let router = of_router.router.get_or_insert_default();
    router.groups.push(serde_json::from_value(group).unwrap());
    assert!(!labels(&of_router).contains(&Cause::MaxMemberships.label()));
    check(|f| f.host.backlog_drops = 3, &[Cause::BacklogDrops]);
    check(|f| f.host.forwarders = vec![7], &[]);
    check(
        |f| f.host.forwarders = vec![7, 9],
        &[Cause::DuplicateForwarder],
    );
    check(|f| f.host.checksum_errors = 1, &[Cause::ChecksumErrors]);
    check(|f| f.host.clock_step_ms = 19, &[]);
    check(|f| f.host.clock_step_ms = -3_600_000, &[Cause::ClockStep]);
    check(
        |f| f.host.capabilities = (false, false),
        &[Cause::MissingCapability],
    );
    check(
        |f| f.host.capabilities = (true, false),
        &[Cause::MissingCapability],
    );
    check(
        |f| f.host.packet_socket_error = Some("no".into()),
        &[Cause::NoPacketSocket],
    );
    check(
        |f| f.host.kernel = "5.16.9-27-amd64".into(),
        &[Cause::OldKernel],
    );
    check(|f| f.host.kernel = "5.17.0".into(), &[]);
    let denied = Some(("/var/run/docker.sock".into(), "denied".into()));
    check(
        |f| f.host.engine_socket_error = denied,
        &[Cause::EngineSocket],
    );
}

fn router(facts: &mut Facts) -> &mut RouterFacts {
    let route: crate::api::RouteView = serde_json::from_value(serde_json::json!({
        "name": "r", "origin": "settings", "from": "eth0", "source": "*", "except_sources": [],
        "group": "239.1.2.3", "to": ["eth1"], "ttl": "decrement", "link_local": false,
        "paths": [{ "iif": "eth0", "oif": "eth1", "packets": 0, "bytes": 0 }], "waiting_for": []
    }))
    .unwrap();
    let interface = |name: &str, ingress: bool| {
        serde_json::from_value(serde_json::json!({
            "index": 1, "name": name, "up": true, "carrier": true, "mtu": 1500,
            "ingress": ingress, "egress": !ingress, "ttl_threshold": null, "received_packets": 0,
            "transmitted_packets": 0, "dropped_packets": {}, "socket_dropped_packets": 0
        }))
        .unwrap()
    };
    facts.router.insert(RouterFacts {
        routes: vec![route],
        interfaces: vec![interface("eth0", true), interface("eth1", false)],
        ..RouterFacts::default()
    })
}

fn drop_of(reason: &str, last_minute: u64) -> DropView {
    serde_json::from_value(serde_json::json!({
        "interface": "eth0", "reason": reason, "source": "10.0.0.7", "group": "239.1.2.3",
        "last_minute": last_minute, "packets": 9, "missed_at_most": 0, "bytes": 900, "age_ms": 1,
        "idle_ms": 1, "ttl": 1, "size": 100, "port": null, "meaning": "M.", "remedy": "R."
    }))
    .unwrap()
}

#[test]
fn running_router() {
    check(|f| _ = router(f), &[]);
    check(
        |f| router(f).drops.push(drop_of("ttl_expired", 5)),
        &[Cause::PacketsDropped],
    );
    check(|f| router(f).drops.push(drop_of("ttl_expired", 0)), &[]);
    check(|f| router(f).drops.push(drop_of("no_route", 5)), &[]);
    let asked = |f: &mut Facts| {
        router(f).drops.push(drop_of("no_route", 5));
        f.group = Some("239.1.2.3".parse().unwrap());
    };
    check(asked, &[Cause::PacketsDropped]);
    check(|f| router(f).routes.clear(), &[Cause::NothingConfigured]);
    let pending = PendingView {
        kind: "route".into(),
        name: "r".into(),
        waiting_for: vec!["eth7".into()],
        hints: Vec::new(),
        origin: "settings".into(),
    };
    check(
        |f| router(f).pending.push(pending),
        &[Cause::InterfacePending],
    );
    let small = |f: &mut Facts| {
        router(f);
        f.host.interfaces[1].mtu = 1400;
    };
    check(small, &[Cause::MtuMismatch]);
    let yields = |f: &mut Facts| {
        router(f).interfaces[1]
            .dropped_packets
            .insert("other_forwarder".into(), 7);
    };
    check(yields, &[Cause::DuplicateForwarder]);
    check(
        |f| router(f).interfaces[0].socket_dropped_packets = 1,
        &[Cause::CaptureDrops],
    );
    let same = |f: &mut Facts| {
        router(f);
        f.host.interfaces[1].addresses = vec!["10.0.0.200/24".parse().unwrap()];
    };
    check(same, &[Cause::SameSubnet]);
    let ttl = |f: &mut Facts| {
        router(f);
        let rule = FirewallRule {
            effect: RuleEffect::ChangesTtl,
            text: "a rule".into(),
        };
        f.host.firewall.push(rule);
    };
    check(ttl, &[Cause::TtlRule]);
}
