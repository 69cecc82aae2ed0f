//! AMT: sender, relay, a network without multicast, gateway and receiver.

use serde_json::{Value, json};

use super::cases;
use super::mnat::join_source_v6;
use super::upgrade::Replacement;
use crate::lab::dns::{DnsRecord, DnsServer};
use crate::lab::proxy::{TIMERS, join_source, joined};
use crate::lab::{
    Capture, Injector, IpPacket, Lab, LinkEnd, Ns, NumberedStream, Router, Udp, connect_all,
    eventually,
};

cases!("amt":
    streams_cross_a_network_without_multicast_v4,
    streams_cross_a_network_without_multicast_v6,
    static_route_joins_through_the_tunnel,
    streams_move_to_another_relay_when_theirs_dies,
    every_gateway_gets_a_copy_until_it_leaves,
    relays_are_found_by_the_source_of_a_stream,
    streams_return_after_a_panic_and_an_upgrade,
);

/// The path of a stream. `core` forwards unicast only.
///
///     src eth0 ---- in  rel  wan0 ---- c0  core  c1 ---- wan0  gw  out ---- eth1 rcv
pub(super) struct AmtTopology {
    pub(super) src: Ns,
    pub(super) rel: Ns,
    pub(super) core: Ns,
    pub(super) gw: Ns,
    pub(super) rcv: Ns,
}

impl AmtTopology {
    pub(super) fn new(lab: &Lab) -> Self {
        let topology = Self {
            src: lab.ns("src"),
            rel: lab.ns("rel"),
            core: lab.ns("core"),
            gw: lab.ns("gw"),
            rcv: lab.ns("rcv"),
        };
        let Self {
            src,
            rel,
            core,
            gw,
            rcv,
        } = &topology;
        connect_all(&[
            (
                LinkEnd::new(rel, "in", &["10.0.0.1/24", "fd00::1/64"]),
                LinkEnd::new(src, "eth0", &["10.0.0.10/24", "fd00::10/64"]),
            ),
            (
                LinkEnd::new(rel, "wan0", &["10.1.0.1/24", "fd01::1/64"]),
                LinkEnd::new(core, "c0", &["10.1.0.2/24", "fd01::2/64"]),
            ),
            (
                LinkEnd::new(gw, "wan0", &["10.2.0.1/24", "fd02::1/64"]),
                LinkEnd::new(core, "c1", &["10.2.0.2/24", "fd02::2/64"]),
            ),
            (
                LinkEnd::new(gw, "out", &["10.3.0.1/24", "fd03::1/64"]),
                LinkEnd::new(rcv, "eth1", &["10.3.0.10/24", "fd03::10/64"]),
            ),
        ]);
        core.sysctl("net/ipv4/ip_forward", "1");
        core.sysctl("net/ipv6/conf/all/forwarding", "1");
        rel.ip("route add default via 10.1.0.2");
        rel.ip("-6 route add default via fd01::2");
        gw.ip("route add default via 10.2.0.2");
        gw.ip("-6 route add default via fd02::2");
        topology
    }

    pub(super) fn relay(&self, lab: &Lab) -> Router {
        Router::start(lab, &self.rel, RELAY)
    }

    pub(super) fn gateway(&self, lab: &Lab, relay: &str) -> Router {
        Router::start(lab, &self.gw, &gateway_settings(relay))
    }

    /// Sends packets with the numbers `from` to `to` of an IPv4 and an IPv6 stream.
    pub(super) fn send(&self, from: u32, to: u32) {
        let inject = Injector::new(&self.src, "eth0");
        for n in from..to {
            let payload = n.to_be_bytes();
            inject.send(&Udp::new("10.0.0.10:9", "232.1.1.1:5000", payload).frame());
            inject.send(&Udp::new("[fd00::10]:9", "[ff3e::8000:1]:5000", payload).frame());
        }
    }
}

pub(super) const RELAY: &str = "[[amt.relay]]\nname = \"tunnels\"\nquery_interval = \"5s\"\n\
    [[proxy]]\nname = \"r\"\nupstream = [\"in\"]\ndownstream = [\"tunnels\"]\n";

pub(super) fn gateway_settings(relay: &str) -> String {
    format!(
        "[[amt.gateway]]\nname = \"internet\"\nrelay = {relay}\n\
         [[proxy]]\nname = \"p\"\nupstream = [\"internet\"]\ndownstream = [\"out\"]\n{TIMERS}"
    )
}

/// Returns the tunnels of an interface.
pub(super) fn tunnels(router: &Router, interface: &str) -> Vec<Value> {
    let tunnels = router.control().show("tunnels");
    let of_interface = |t: &Value| t["interface"] == interface;
    tunnels.into_iter().filter(of_interface).collect()
}

/// Returns the number of groups that a relay's gateways joined.
pub(super) fn joined_groups(router: &Router) -> u64 {
    let tunnels = tunnels(router, "tunnels");
    let groups = tunnels.iter().filter_map(|t| t["memberships"].as_u64());
    groups.sum()
}

fn assert_streams_cross(lab: &Lab, relay: &str) {
    let topology = AmtTopology::new(lab);
    let relay_router = topology.relay(lab);
    let gateway = topology.gateway(lab, relay);
    let four = join_source(&topology.rcv, "eth1", "10.0.0.10", "232.1.1.1");
    let six = join_source_v6(&topology.rcv, "eth1", "fd00::10", "ff3e::8000:1");
    eventually("both groups at the relay", 2, || {
        joined_groups(&relay_router)
    });
    // The joins go on to the upstream interface of the relay when its routes are in force.
    eventually("joined upstream", 2, || joined(&relay_router, "in").len());
    let wire = Capture::new(&topology.rcv, "eth1");
    let core = Capture::new(&topology.core, "c0");
    topology.send(0, 300);
    for (group, source) in [("232.1.1.1", "10.0.0.10"), ("ff3e::8000:1", "fd00::10")] {
        let seen = wire.expect(group, 300);
        let source: std::net::IpAddr = source.parse().unwrap();
        // Sent with a TTL of 16. The relay and the gateway are routers: each lowers it.
        assert!(
            seen.iter().all(|s| s.src == source && s.ttl == 14),
            "{:?}",
            seen[0]
        );
        assert!(core.to(group).is_empty());
    }
    relay_router.expect_routed("r", "tunnels", 600);
    gateway.expect_routed("p", "out", 600);
    let labels = [("iface", "tunnels")];
    relay_router.expect_metric("mcastor_amt_copies_total", &labels, 600);
    let tunnel = &tunnels(&gateway, "internet")[0];
    assert_eq!(tunnel["packets"], 600, "{tunnel}");
    assert_eq!(
        (&tunnel["igmp"], &tunnel["mld"]),
        (&"connected".into(), &"connected".into())
    );
    // The stream of a source that was not joined stays out.
    let inject = Injector::new(&topology.src, "eth0");
    inject.send(&Udp::new("10.0.0.11:9", "232.1.1.1:5000", "x").frame());
    drop((four, six));
    eventually("no group at the relay", 0, || joined_groups(&relay_router));
    eventually("left upstream", 0, || joined(&relay_router, "in").len());
    topology.send(300, 310);
    relay_router.expect_dropped("no_route", "in", 20);
    // Queries to the group are no packets of the stream.
    let is_udp = |packet: &&IpPacket| packet.protocol == 17;
    assert_eq!(wire.to("232.1.1.1").iter().filter(is_udp).count(), 300);
}

fn streams_cross_a_network_without_multicast_v4(lab: &Lab) {
    assert_streams_cross(lab, "\"10.1.0.1\"");
}

fn streams_cross_a_network_without_multicast_v6(lab: &Lab) {
    assert_streams_cross(lab, "\"fd01::1\"");
}

fn static_route_joins_through_the_tunnel(lab: &Lab) {
    let topology = AmtTopology::new(lab);
    let relay = topology.relay(lab);
    let toml = "[[amt.gateway]]\nname = \"internet\"\nrelay = \"10.1.0.1\"\nfamilies = [\"ipv4\"]\n\
        [[route]]\nname = \"one\"\nfrom = \"internet\"\nsource = \"10.0.0.10\"\ngroup = \"232.1.1.1\"\nto = [\"out\"]\n\
        rewrite = { group = \"239.9.9.9\" }\n";
    let gateway = Router::start(lab, &topology.gw, toml);
    eventually("the group at the relay", 1, || joined(&relay, "in").len());
    let wire = Capture::new(&topology.rcv, "eth1");
    topology.send(0, 100);
    wire.expect("239.9.9.9", 100);
    gateway.expect_routed("one", "out", 100);
    // A reload without the route leaves the group.
    gateway.write_settings("[[amt.gateway]]\nname = \"internet\"\nrelay = \"10.1.0.1\"\n");
    gateway.run("reload");
    eventually("no group at the relay", 0, || joined_groups(&relay));
}

fn streams_move_to_another_relay_when_theirs_dies(lab: &Lab) {
    let topology = AmtTopology::new(lab);
    let second = lab.ns("rel2");
    connect_all(&[
        (
            LinkEnd::new(&second, "wan0", &["10.4.0.1/24"]),
            LinkEnd::new(&topology.core, "c2", &["10.4.0.2/24"]),
        ),
        (
            LinkEnd::new(&second, "in", &["10.0.1.1/24"]),
            LinkEnd::new(&topology.src, "eth1", &["10.0.1.10/24"]),
        ),
    ]);
    second.ip("route add default via 10.4.0.2");
    let mut first = topology.relay(lab);
    let second = Router::start(lab, &second, RELAY);
    let gateway = topology.gateway(lab, "[\"10.1.0.1\", \"10.4.0.1\"]");
    let _member = join_source(&topology.rcv, "eth1", "10.0.0.10", "232.1.1.1");
    eventually("the group at the first relay", 1, || {
        joined(&first, "in").len()
    });
    let wire = Capture::new(&topology.rcv, "eth1");
    topology.send(0, 50);
    wire.expect("232.1.1.1", 50);
    first.kill();
    eventually("the group at the second relay", 1, || {
        joined_groups(&second)
    });
    eventually("joined upstream of the second relay", 1, || {
        joined(&second, "in").len()
    });
    let inject = Injector::new(&topology.src, "eth1");
    for n in 50..100u32 {
        let payload = n.to_be_bytes();
        inject.send(&Udp::new("10.0.0.10:9", "232.1.1.1:5000", payload).frame());
    }
    wire.expect("232.1.1.1", 100);
    // The gateway may also have missed the packets before the answers to its Requests.
    let failed = |result| {
        let labels = [("result", result), ("way", "address")];
        gateway.metric("mcastor_amt_discoveries_total", &labels)
    };
    eventually("the relay that failed", 1.0, || {
        failed("unresponsive") + failed("silent")
    });
}

fn every_gateway_gets_a_copy_until_it_leaves(lab: &Lab) {
    let topology = AmtTopology::new(lab);
    let relay = topology.relay(lab);
    let toml = |n: u32| {
        let join = "[[join]]\ninterface = \"tun\"\nsource = \"10.0.0.10\"\ngroup = \"232.1.1.1\"\n";
        format!(
            "[http]\nlisten = \"127.0.0.1:{}\"\n[[amt.gateway]]\nname = \"tun\"\nrelay = \"10.1.0.1\"\n{join}",
            9500 + n
        )
    };
    let gateways: Vec<Router> = (0..3)
        .map(|n| Router::launch(lab, &topology.gw, &toml(n), &[]))
        .collect();
    eventually("three gateways", 3, || tunnels(&relay, "tunnels").len());
    eventually("joined upstream", 1, || joined(&relay, "in").len());
    topology.send(0, 40);
    let labels = [("iface", "tunnels")];
    relay.expect_metric("mcastor_amt_copies_total", &labels, 120);
    for gateway in gateways {
        gateway.stop();
    }
    eventually("no gateway", 0, || tunnels(&relay, "tunnels").len());
    topology.send(40, 50);
    relay.expect_metric("mcastor_amt_copies_total", &labels, 120);
}

/// The first record of the IPv4 source names a relay that is not there. The second one is behind a
/// CNAME and names a host.
fn relays_are_found_by_the_source_of_a_stream(lab: &Lab) {
    let topology = AmtTopology::new(lab);
    let relay = topology.relay(lab);
    let v4_name = "10.0.0.10.in-addr.arpa";
    let v6_name = format!("0.1.{}d.f.ip6.arpa", "0.".repeat(28));
    let mut host = vec![20, 3];
    host.extend(b"\x05relay\x07example\x00");
    let mut v6_relay = vec![10, 2];
    v6_relay.extend("fd01::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
    let amt = |data: Vec<u8>| DnsRecord::new(260, data);
    let dns = DnsServer::start(
        &topology.core,
        "10.2.0.2:53",
        vec![
            (v4_name, DnsRecord::cname("amt.example")),
            ("amt.example", amt(vec![10, 1, 10, 1, 0, 99])),
            ("amt.example", amt(host)),
            ("relay.example", DnsRecord::new(1, vec![10, 1, 0, 1])),
            (&v6_name, amt(v6_relay)),
        ],
    );
    let resolv_conf = lab.file("resolv.conf");
    std::fs::write(&resolv_conf, "nameserver 10.2.0.2\n").unwrap();
    let toml = gateway_settings("\"driad\"");
    let env = [("MCASTOR_TEST_RESOLV_CONF", resolv_conf.to_str().unwrap())];
    let gateway = Router::start_with(lab, &topology.gw, &toml, &env);
    let _four = join_source(&topology.rcv, "eth1", "10.0.0.10", "232.1.1.1");
    let _six = join_source_v6(&topology.rcv, "eth1", "fd00::10", "ff3e::8000:1");
    eventually("joined upstream", 2, || joined(&relay, "in").len());
    let wire = Capture::new(&topology.rcv, "eth1");
    topology.send(0, 50);
    wire.expect("232.1.1.1", 50);
    wire.expect("ff3e::8000:1", 50);
    let mut relays: Vec<String> = tunnels(&gateway, "internet")
        .iter()
        .filter(|t| t["memberships"] == 1)
        .filter_map(|t| t["remote"].as_str().map(String::from))
        .collect();
    relays.sort();
    assert_eq!(relays, ["10.1.0.1:2268", "[fd01::1]:2268"]);
    let labels = [("way", "driad"), ("result", "found")];
    gateway.expect_metric("mcastor_amt_discoveries_total", &labels, 2);
    // No relay for another source.
    let _other = join_source(&topology.rcv, "eth1", "10.0.0.11", "232.1.1.2");
    eventually("a lookup without a relay", true, || {
        let labels = [("way", "driad"), ("result", "no_relay")];
        gateway.metric("mcastor_amt_discoveries_total", &labels) >= 1.0
    });
    drop(dns);
}

fn streams_return_after_a_panic_and_an_upgrade(lab: &Lab) {
    let topology = AmtTopology::new(lab);
    let env = [("MCASTOR_TEST_PANIC", "1")];
    let relay = Router::start_with(lab, &topology.rel, RELAY, &env);
    let gateway = gateway_settings("\"10.1.0.1\"");
    let gateway = Router::start_with(lab, &topology.gw, &gateway, &env);
    let _member = join_source(&topology.rcv, "eth1", "10.0.0.10", "232.1.1.1");
    eventually("joined upstream", 1, || joined(&relay, "in").len());
    let wire = Capture::new(&topology.rcv, "eth1");
    let sender = NumberedStream::start(&topology.src, "eth0", "10.0.0.10:9", "232.1.1.1:5000", 200);
    let returns = |what: &str| {
        let before = wire.to("232.1.1.1").len();
        let arrived = || wire.to("232.1.1.1").len() > before + 100;
        eventually(what, true, arrived);
    };
    returns("the stream");
    for (router, name) in [(&gateway, "gateway"), (&relay, "relay")] {
        router.control().expect_ok(&json!({ "panic": "amt" }));
        router.expect_metric("mcastor_actor_restarts_total", &[("actor", "amt")], 1);
        eventually("a tunnel", true, || joined_groups(&relay) > 0);
        returns(&format!("the stream after a panic at the {name}"));
    }
    let mut replacement = Replacement::new(&gateway);
    replacement.upgrade();
    returns("the stream after an upgrade of the gateway");
    drop(sender);
}
