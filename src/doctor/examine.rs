//! Turns facts into findings.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::facts::{Facts, HostFacts, InterfaceFacts, RouterFacts};
use super::finding::{Cause, Certainty, Finding};
use super::firewall::RuleEffect;
use crate::model::addr::is_link_local_group;
use crate::sys::kernel_release::version;
use Certainty::{Certain, Likely, Possible};

/// The first release of the kernel with all that mcastor uses (docs/requirements.md).
const KERNEL: (u32, u32) = (5, 17);

/// Smallest step of the clock that is reported, in milliseconds. A time service that slews the clock
/// changes it by less than a tenth of that during an examination.
const CLOCK_STEP_MS: i64 = 20;

/// Returns the likely causes of multicast that does not arrive, the most certain first.
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let out = &mut findings;
    links(facts, out);
    if let Some(router) = &facts.router {
        dropped(facts, router, out);
        waiting(router, out);
        redundancy(router, out);
        mtu(&facts.host, router, out);
    }
    reports(facts, out);
    reverse_path(facts, out);
    multicast_route(facts, out);
    firewall(facts, out);
    bridges(facts, out);
    subnets(facts, out);
    programs(facts, out);
    this_process(facts, out);
    findings.sort_by_key(|finding| finding.certainty);
    findings
}

/// Returns the interfaces that matter: the named one, else those that mcastor uses, else those on
/// which programs have joined groups.
fn relevant(facts: &Facts) -> Vec<&InterfaceFacts> {
    let all = facts.host.interfaces.iter();
    if let Some(name) = &facts.interface {
        return all.filter(|interface| interface.name == *name).collect();
    }
    let used = |name: &str| {
        let router = facts.router.as_ref()?;
        let view = router.interfaces.iter().find(|view| view.name == name)?;
        let is_used = view.ingress || view.egress || view.downstream_of.is_some();
        (is_used || !view.upstream_of.is_empty()).then_some(())
    };
    match facts.router {
        Some(_) => all.filter(|i| used(&i.name).is_some()).collect(),
        None => all.filter(|i| has_receivers(facts, i)).collect(),
    }
}

/// Returns whether programs have joined the group in question on an interface, or any group that is
/// forwarded between networks.
fn has_receivers(facts: &Facts, interface: &InterfaceFacts) -> bool {
    interface.groups.iter().any(|group| match facts.group {
        Some(wanted) => *group == wanted,
        None => !is_link_local_group(*group),
    })
}

fn links(facts: &Facts, out: &mut Vec<Finding>) {
    if let Some(name) = &facts.interface
        && relevant(facts).is_empty()
    {
        let names: Vec<&str> = facts
            .host
            .interfaces
            .iter()
            .map(|i| i.name.as_str())
            .collect();
        out.push(Finding::new(
            Cause::InterfaceMissing,
            Certain,
            format!("{name} is not among {}", names.join(", ")),
            "check the name; for an interface of a container or of the host, run the doctor there",
        ));
    }
    for interface in relevant(facts) {
        let name = &interface.name;
        if !interface.up {
            let remedy = format!("ip link set {name} up");
            let evidence = format!("{name} is down");
            out.push(Finding::new(
                Cause::InterfaceDown,
                Certain,
                evidence,
                remedy,
            ));
        } else if !interface.carrier {
            out.push(Finding::new(
                Cause::NoCarrier,
                Certain,
                format!("{name} is up without a carrier"),
                "check the cable, the switch port, or whether the other end of the veth is up",
            ));
        }
        if !interface.multicast && !interface.loopback {
            out.push(Finding::new(
                Cause::NoMulticastFlag,
                Certain,
                format!("{name} does not have the flag MULTICAST"),
                format!("ip link set {name} multicast on"),
            ));
        }
    }
}

/// Drop reasons that are part of normal operation. The alerts and the dashboard exclude them too.
pub const NORMAL_REASONS: [&str; 13] = [
    "no_route",
    "source_excepted",
    "not_wanted",
    "standby",
    "merge_duplicate",
    "other_forwarder",
    "ttl_threshold",
    "link_local",
    "link_only",
    "bad_source",
    "vlan_elsewhere",
    "link_local_source",
    "not_multicast",
];

/// One finding for each reason, with the stream that loses most.
fn dropped(facts: &Facts, router: &RouterFacts, out: &mut Vec<Finding>) {
    let mut reported: Vec<&str> = Vec::new();
    let group = facts.group.map(|group| group.to_string());
    for drop in &router.drops {
        let is_asked = group.is_some() && drop.group == group;
        let is_normal = NORMAL_REASONS.contains(&drop.reason.as_str());
        let is_other = group.is_some() && !is_asked;
        let elsewhere = facts
            .interface
            .as_ref()
            .is_some_and(|name| *name != drop.interface);
        let counts = drop.last_minute > 0 && !is_other && !elsewhere && (is_asked || !is_normal);
        if !counts || reported.contains(&drop.reason.as_str()) {
            continue;
        }
        reported.push(&drop.reason);
        let stream = match (&drop.source, &drop.group) {
            (Some(source), Some(group)) => format!("of ({source}, {group})"),
            _ => "without an IP header".into(),
        };
        out.push(Finding::new(
            Cause::PacketsDropped,
            if is_normal { Possible } else { Certain },
            format!(
                "{}: {} packets {stream} dropped as {} in the last minute. {}",
                drop.interface, drop.last_minute, drop.reason, drop.meaning
            ),
            drop.remedy.clone(),
        ));
    }
    for interface in &router.interfaces {
        if interface.socket_dropped_packets > 0 {
            out.push(Finding::new(
                Cause::CaptureDrops,
                Likely,
                format!(
                    "{}: {} packets since the start",
                    interface.name, interface.socket_dropped_packets
                ),
                "give mcastor more CPU, or spread the streams over more interfaces",
            ));
        }
    }
}

fn waiting(router: &RouterFacts, out: &mut Vec<Finding>) {
    for pending in &router.pending {
        let hints = match pending.hints.is_empty() {
            true => "check the name; `ip link` lists the interfaces".into(),
            false => pending.hints.join("; "),
        };
        out.push(Finding::new(
            Cause::InterfacePending,
            Certain,
            format!(
                "{} \"{}\" waits for {}",
                pending.kind,
                pending.name,
                pending.waiting_for.join(", ")
            ),
            hints,
        ));
    }
    let proxies = router.interfaces.iter().any(|i| i.downstream_of.is_some());
    let is_idle = router.routes.is_empty() && router.discovery.is_empty() && !proxies;
    if is_idle && router.pending.is_empty() {
        out.push(Finding::new(
            Cause::NothingConfigured,
            Certain,
            "`mcastor show routes` is empty",
            "add a [[route]] or a [[proxy]] to the settings, or `mcastor add IIF GROUP OIF`",
        ));
    }
}

fn redundancy(router: &RouterFacts, out: &mut Vec<Finding>) {
    for interface in &router.interfaces {
        let yielded = interface.dropped_packets.get("other_forwarder");
        if let Some(packets) = yielded.filter(|packets| **packets > 0) {
            out.push(Finding::new(
                Cause::DuplicateForwarder,
                Possible,
                format!(
                    "{}: {packets} packets were withheld, because another forwarder sends them",
                    interface.name
                ),
                "nothing, if two routers serve this link on purpose; `mcastor show flows` names \
                 the other one",
            ));
        }
        for conflict in &interface.subnet_conflicts {
            out.push(Finding::new(
                Cause::SameSubnet,
                Likely,
                format!("{}: {conflict}", interface.name),
                "give one of the networks another subnet, or translate the source with rewrite",
            ));
        }
    }
}

fn mtu(host: &HostFacts, router: &RouterFacts, out: &mut Vec<Finding>) {
    let mtu = |name: &str| {
        host.interfaces
            .iter()
            .find(|i| i.name == name)
            .map(|i| i.mtu)
    };
    let mut reported = Vec::new();
    for path in router.routes.iter().flat_map(|route| &route.paths) {
        let (Some(iif), Some(oif)) = (mtu(&path.iif), mtu(&path.oif)) else {
            continue;
        };
        if iif > oif && !reported.contains(&(&path.iif, &path.oif)) {
            reported.push((&path.iif, &path.oif));
            out.push(Finding::new(
                Cause::MtuMismatch,
                Possible,
                format!("{} has MTU {iif}, {} has {oif}", path.iif, path.oif),
                format!(
                    "ip link set {} mtu {iif}, or fragment = \"always\" in the route, or smaller \
                     packets",
                    path.oif
                ),
            ));
        }
    }
}

fn reports(facts: &Facts, out: &mut Vec<Finding>) {
    let Some(group) = facts.group else {
        return;
    };
    let joined_here = facts
        .host
        .interfaces
        .iter()
        .any(|i| i.groups.contains(&group));
    let mut known = facts.router.iter().flat_map(|router| &router.groups);
    if !joined_here && !known.any(|known| known.group == group.to_string()) {
        out.push(Finding::new(
            Cause::NoReport,
            Likely,
            format!("no program of this host, and no host behind mcastor, has joined {group}"),
            "start the receiver, and look for its report with tcpdump: `tcpdump -ni IF igmp or icmp6`",
        ));
    }
}

/// Returns the interface that the kernel sends to an address on.
fn route_to(host: &HostFacts, address: IpAddr) -> Option<&str> {
    let matching = host
        .routes
        .iter()
        .filter(|(net, _, _)| net.contains(&address));
    let best =
        matching.min_by_key(|(net, _, metric)| (std::cmp::Reverse(net.prefix_len()), *metric));
    best.map(|(_, interface, _)| interface.as_str())
}

/// Finds interfaces whose `rp_filter` drops packets: those from sources that the host would reach
/// over another interface, or not at all.
fn reverse_path(facts: &Facts, out: &mut Vec<Finding>) {
    let host = &facts.host;
    for interface in relevant(facts).into_iter().filter(|i| i.rp_filter == 1) {
        let name = &interface.name;
        let is_receiver = has_receivers(facts, interface);
        let default = route_to(host, Ipv4Addr::new(203, 0, 113, 1).into());
        if !is_receiver || default == Some(name) {
            continue;
        }
        out.push(Finding::new(
            Cause::ReversePathFilter,
            Likely,
            format!(
                "rp_filter of {name} is 1, programs receive multicast on it, and the default route \
                 leads {}: packets from sources outside the subnets of {name} are dropped",
                default.map_or_else(|| "nowhere".into(), |other| format!("to {other}"))
            ),
            format!(
                "sysctl -w net.ipv4.conf.{name}.rp_filter=2 net.ipv4.conf.all.rp_filter=2, or a route \
                 to the source over {name}"
            ),
        ));
    }
}

/// Reports that programs which name no interface use another interface than the examined one.
fn multicast_route(facts: &Facts, out: &mut Vec<Finding>) {
    let Some(name) = &facts.interface else {
        return;
    };
    let any = |v6: bool| -> IpAddr {
        match v6 {
            false => Ipv4Addr::new(239, 255, 255, 254).into(),
            true => Ipv6Addr::new(0xff0e, 0, 0, 0, 0, 0, 0, 0xfffe).into(),
        }
    };
    let group = facts.group.unwrap_or_else(|| any(false));
    // IPv6 has a route for multicast on each interface.
    // The routes of an interface vanish with it.
    if group.is_ipv6() || !relevant(facts).iter().any(|interface| interface.up) {
        return;
    }
    let evidence = match route_to(&facts.host, group) {
        Some(used) if used == name => return,
        Some(used) => format!("packets to {group} leave on {used}, and not on {name}"),
        None => format!("there is no route to {group}"),
    };
    out.push(Finding::new(
        Cause::MulticastRoute,
        Possible,
        evidence,
        format!("name the interface in the program, or ip route add 224.0.0.0/4 dev {name}"),
    ));
}

fn firewall(facts: &Facts, out: &mut Vec<Finding>) {
    for rule in &facts.host.firewall {
        let (problem, certainty, remedy) = match rule.effect {
            RuleEffect::DropsIgmp => (
                Cause::FirewallDropsIgmp,
                Likely,
                "iptables -I INPUT -p igmp -j ACCEPT, or with nft: ip protocol igmp accept",
            ),
            RuleEffect::DropsMulticast => (
                Cause::FirewallDropsMulticast,
                Likely,
                "accept the groups that programs of this host receive; mcastor itself receives \
                 before the firewall",
            ),
            RuleEffect::DropsAnswers if relays_answers(facts) => (
                Cause::DiscoveryFragments,
                Possible,
                "accept UDP to ports 61440 to 61951: udp dport 61440-61951 accept, or iptables -I \
                 INPUT -p udp --dport 61440:61951 -j ACCEPT",
            ),
            RuleEffect::ChangesTtl if facts.router.is_some() => (
                Cause::TtlRule,
                Likely,
                "mcastor receives packets before such rules and sends after them: set ttl = { set = \
                 N } in the route",
            ),
            RuleEffect::DropsForwarded if facts.host.bridge_nf && has_bridge(facts) => (
                Cause::BridgeNetfilter,
                Likely,
                "sysctl -w net.bridge.bridge-nf-call-iptables=0, or accept multicast in FORWARD",
            ),
            RuleEffect::IsolatesNetwork if facts.host.bridge_nf => (
                Cause::InternalNetwork,
                Possible,
                "use a network without `internal: true`, or let mcastor forward between the \
                 containers: conf/compose/internal.yml",
            ),
            RuleEffect::ChangesTtl
            | RuleEffect::DropsForwarded
            | RuleEffect::DropsAnswers
            | RuleEffect::IsolatesNetwork => {
                continue;
            }
        };
        out.push(Finding::new(problem, certainty, rule.text.clone(), remedy));
    }
}

/// Returns whether answers of discovery come back through the running mcastor.
fn relays_answers(facts: &Facts) -> bool {
    let mut rules = facts.router.iter().flat_map(|router| &router.discovery);
    rules.any(|rule| {
        rule.protocols
            .iter()
            .any(|protocol| protocol.answers == "relay")
    })
}

fn has_bridge(facts: &Facts) -> bool {
    facts.host.interfaces.iter().any(|i| i.bridge.is_some())
}

fn bridges(facts: &Facts, out: &mut Vec<Finding>) {
    for interface in &facts.host.interfaces {
        let (name, Some(bridge)) = (&interface.name, interface.bridge) else {
            continue;
        };
        let mut ports = facts.host.interfaces.iter();
        let has_ports = ports.any(|port| port.master.as_ref() == Some(name));
        let asked = facts.interface.as_ref().is_none_or(|asked| asked == name);
        if !interface.up || !has_ports || !asked {
            continue;
        }
        let serves = |router: &RouterFacts| {
            let mut views = router.interfaces.iter().filter(|view| view.name == *name);
            views.any(|view| view.queriers.iter().any(|querier| querier.us))
        };
        let has_querier =
            bridge.querier || bridge.other_querier || facts.router.as_ref().is_some_and(serves);
        if bridge.snooping && !has_querier {
            out.push(Finding::new(
                Cause::SnoopingWithoutQuerier,
                Possible,
                format!(
                    "{name} has snooping and knows no querier. This bridge delivers all groups to \
                     all ports then, but switches behind it may deliver none"
                ),
                format!(
                    "ip link set {name} type bridge mcast_querier 1, or make {name} downstream of a \
                     [[proxy]]"
                ),
            ));
        }
        if !bridge.snooping && bridge.querier {
            out.push(Finding::new(
                Cause::QuerierWithoutSnooping,
                Possible,
                format!("{name} has mcast_querier 1 and mcast_snooping 0"),
                format!("ip link set {name} type bridge mcast_snooping 1"),
            ));
        }
    }
}

fn subnets(facts: &Facts, out: &mut Vec<Finding>) {
    let reports = |router: &RouterFacts| {
        let mut interfaces = router.interfaces.iter();
        interfaces.any(|interface| !interface.subnet_conflicts.is_empty())
    };
    if facts.router.as_ref().is_some_and(reports) {
        return;
    }
    let global = |net: &&IpNet| match net.addr() {
        IpAddr::V4(address) => !address.is_link_local() && net.prefix_len() < 32,
        IpAddr::V6(address) => !address.is_unicast_link_local() && net.prefix_len() < 128,
    };
    let interfaces: Vec<_> = relevant(facts)
        .into_iter()
        .filter(|i| !i.loopback)
        .collect();
    for (at, one) in interfaces.iter().enumerate() {
        for other in &interfaces[at + 1..] {
            let mine = one.addresses.iter().filter(global);
            let shared = mine
                .flat_map(|a| other.addresses.iter().filter(global).map(move |b| (a, b)))
                .find(|(a, b)| a.contains(&b.addr()) || b.contains(&a.addr()));
            let Some((a, b)) = shared else {
                continue;
            };
            out.push(Finding::new(
                Cause::SameSubnet,
                Likely,
                format!("{} has {a}, {} has {b}", one.name, other.name),
                "give one of the networks another subnet, or connect both with a bridge",
            ));
        }
    }
}

fn programs(facts: &Facts, out: &mut Vec<Finding>) {
    let host = &facts.host;
    if host.kernel_multicast_routing {
        out.push(Finding::new(
            Cause::OtherRouter,
            Likely,
            "the kernel has multicast interfaces (/proc/net/ip_mr_vif): smcrouted, igmpproxy, pimd \
             or another program runs here",
            "stop that program, or leave its groups and interfaces to it",
        ));
    }
    // mcastor spreads its groups over as many sockets as it needs.
    let of_router = facts.router.iter().flat_map(|router| &router.groups);
    let of_router: BTreeSet<(&str, &str)> = of_router
        .filter(|group| group.role == "host")
        .map(|group| (group.interface.as_str(), group.group.as_str()))
        .collect();
    let joined = |interface: &InterfaceFacts| {
        let groups = interface.groups.iter();
        let counts = |group: &&IpAddr| {
            let is_of_router = || {
                let group = group.to_string();
                of_router.contains(&(interface.name.as_str(), group.as_str()))
            };
            group.is_ipv4() && !is_link_local_group(**group) && !is_of_router()
        };
        groups.filter(counts).count()
    };
    let joined: usize = host.interfaces.iter().map(joined).sum();
    if let Some(limit) = host.max_memberships.filter(|limit| joined >= *limit) {
        out.push(Finding::new(
            Cause::MaxMemberships,
            Possible,
            format!("{joined} groups are joined here; a socket may join {limit}"),
            format!(
                "sysctl -w net.ipv4.igmp_max_memberships={}",
                limit.max(128) * 2
            ),
        ));
    }
    if host.backlog_drops > 0 {
        out.push(Finding::new(
            Cause::BacklogDrops,
            Likely,
            format!("{} packets while this command ran", host.backlog_drops),
            "sysctl -w net.core.netdev_max_backlog=10000, or spread the load over more cores",
        ));
    }
    if let [first, second, ..] = host.forwarders[..] {
        out.push(Finding::new(
            Cause::DuplicateForwarder,
            Possible,
            format!("the processes {first} and {second} forward packets in this network namespace"),
            "if both have a route for the same stream, each packet is sent twice: stop one of them",
        ));
    }
    if host.checksum_errors > 0 {
        out.push(Finding::new(
            Cause::ChecksumErrors,
            Possible,
            format!(
                "{} UDP packets since this network namespace exists",
                host.checksum_errors
            ),
            "turn checksum offload off where the packets come from: ethtool -K INTERFACE tx off",
        ));
    }
    if host.clock_step_ms.abs() >= CLOCK_STEP_MS {
        out.push(Finding::new(
            Cause::ClockStep,
            Possible,
            format!(
                "the clock was set by {} ms during the examination",
                host.clock_step_ms
            ),
            "let one time service set the clock; latencies that `mcastor recv` and \
             mcastor_forward_latency_seconds show are wrong until then",
        ));
    }
    if let Some((socket, error)) = &host.engine_socket_error {
        out.push(Finding::new(
            Cause::EngineSocket,
            Possible,
            format!("{socket}: {error}"),
            "needed only for names such as network:NAME: run as root or in the socket's group",
        ));
    }
}

fn this_process(facts: &Facts, out: &mut Vec<Finding>) {
    let host = &facts.host;
    let (net_raw, net_admin) = host.capabilities;
    if !net_raw {
        out.push(Finding::new(
            Cause::MissingCapability,
            if facts.router.is_some() {
                Possible
            } else {
                Certain
            },
            "this user has no CAP_NET_RAW: mcastor started by it cannot capture or send",
            "run as root, or with AmbientCapabilities=CAP_NET_RAW, --cap-add NET_RAW or setcap",
        ));
    } else if !net_admin {
        out.push(Finding::new(
            Cause::MissingCapability,
            Possible,
            "this user has no CAP_NET_ADMIN: socket buffers are limited by net.core.rmem_max, \
             container names cannot be resolved, and bursts are not used",
            "add CAP_NET_ADMIN if packets are lost in bursts, or if names are needed",
        ));
    }
    if let Some(error) = &host.packet_socket_error {
        out.push(Finding::new(
            Cause::NoPacketSocket,
            Certain,
            error.clone(),
            "permit AF_PACKET: RestrictAddressFamilies= of the service, or the seccomp profile of \
             the container",
        ));
    }
    // Without CAP_NET_RAW mcastor does not start at all.
    if let Some((reason, remedy)) = host.kernel_forwarding_error.as_ref().filter(|_| net_raw) {
        out.push(Finding::new(
            Cause::PacketPlane,
            Possible,
            reason.clone(),
            *remedy,
        ));
    }
    if version(&host.kernel).is_some_and(|version| version < KERNEL) {
        out.push(Finding::new(
            Cause::OldKernel,
            Possible,
            format!("Linux {}", host.kernel),
            format!(
                "Linux {}.{} or later has everything that mcastor uses",
                KERNEL.0, KERNEL.1
            ),
        ));
    }
}

#[cfg(test)]
mod tests;
