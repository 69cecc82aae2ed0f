//! Relays that are found by real name servers.

use std::time::Duration;

use super::amt::{AmtTopology, gateway_settings, tunnels};
use super::amt_paths::impair;
use super::cases;
use super::mnat::join_source_v6;
use crate::lab::name_server::NameServer;
use crate::lab::proxy::{join_source, joined};
use crate::lab::{Capture, Impairment, Lab, Router, eventually};

cases!("amt_dns":
    #[Program("named", "bind9")] relays_are_found_by_records_of_every_type_at_bind,
    #[Program("named", "bind9")] many_records_are_received_over_tcp,
    #[Program("named", "bind9")] relay_is_found_as_a_service,
    #[Program("named", "bind9")] #[Program("ethtool", "ethtool")] slow_name_server_is_awaited,
    #[Program("nsd", "nsd")] relays_are_found_at_nsd,
);

const SERVER: &str = "10.2.0.2";
/// The records of the name server and of the host that is the relay, in the zone `example`.
const RELAY_HOST: &str = "ns A 10.2.0.2\nrelay A 10.1.0.1\n";

/// Starts a gateway that asks the name server, with these words in `relay`.
fn gateway(lab: &Lab, topology: &AmtTopology, relay: &str) -> Router {
    let resolv_conf = lab.file("resolv.conf");
    let text = format!("nameserver {SERVER}\nsearch example\n");
    std::fs::write(&resolv_conf, text).expect("resolv.conf");
    let env = [("MCASTOR_TEST_RESOLV_CONF", resolv_conf.to_str().unwrap())];
    Router::start_with(lab, &topology.gw, &gateway_settings(relay), &env)
}

fn expect_discoveries(gateway: &Router, way: &str, result: &str, count: u32) {
    let labels = [("way", way), ("result", result)];
    eventually(&format!("{way} {result}"), true, || {
        gateway.metric("mcastor_amt_discoveries_total", &labels) >= f64::from(count)
    });
}

fn expect_streams(topology: &AmtTopology, relay: &Router, groups: &[&str]) {
    eventually("joined upstream", groups.len(), || {
        joined(relay, "in").len()
    });
    let wire = Capture::new(&topology.rcv, "eth1");
    topology.send(0, 50);
    for group in groups {
        wire.expect(group, 50);
    }
}

/// Returns the reverse name of fd00::10 below `d.f.ip6.arpa`.
fn reverse_v6() -> String {
    format!("0.1.{}0.0", "0.".repeat(26))
}

/// The records of the first source are behind a CNAME. Those of lower precedence are tried first:
/// one is of a relay that does not answer. Other sources have no record, or a zone that is broken.
fn relays_are_found_by_records_of_every_type_at_bind(lab: &Lab) {
    let topology = AmtTopology::new(lab);
    let relay = topology.relay(lab);
    let four = "10.0.0 CNAME amt.example.\n11.0.0 TXT \"no relay\"\n12.0.0 AMTRELAY 10 0 0 .\n";
    let six = format!("{} AMTRELAY 10 0 2 fd01::1\n", reverse_v6());
    let names = format!(
        "{RELAY_HOST}amt AMTRELAY 30 0 0 .\namt AMTRELAY 10 1 1 10.1.0.99\n\
         amt AMTRELAY 20 0 3 relay.example.\n"
    );
    let zones = [
        ("10.in-addr.arpa", Some(four)),
        ("d.f.ip6.arpa", Some(six.as_str())),
        ("example", Some(names.as_str())),
        ("30.in-addr.arpa", None),
    ];
    let _server = NameServer::bind(lab, &topology.core, SERVER, &zones);
    let gateway = gateway(lab, &topology, "\"driad\"");
    let join = |source: &str, group: &str| join_source(&topology.rcv, "eth1", source, group);
    let _four = join("10.0.0.10", "232.1.1.1");
    let _six = join_source_v6(&topology.rcv, "eth1", "fd00::10", "ff3e::8000:1");
    expect_streams(&topology, &relay, &["232.1.1.1", "ff3e::8000:1"]);
    let mut relays: Vec<String> = tunnels(&gateway, "internet")
        .iter()
        .filter(|t| t["memberships"] == 1)
        .filter_map(|t| t["remote"].as_str().map(String::from))
        .collect();
    relays.sort();
    assert_eq!(relays, ["10.1.0.1:2268", "[fd01::1]:2268"]);
    expect_discoveries(&gateway, "driad", "found", 2);
    // A name without such a record, a record without a relay, and a name that does not exist.
    let _none = ["10.0.0.11", "10.0.0.12", "10.0.0.13"].map(|source| join(source, "232.1.1.2"));
    expect_discoveries(&gateway, "driad", "no_relay", 3);
    let _failing = join("30.0.0.1", "232.1.1.3");
    expect_discoveries(&gateway, "driad", "dns_error", 1);
}

/// The answer exceeds what UDP carries. All but one record name hosts that do not exist.
fn many_records_are_received_over_tcp(lab: &Lab) {
    let topology = AmtTopology::new(lab);
    let relay = topology.relay(lab);
    let mut records = String::from("10.0.0 AMTRELAY 5 0 1 10.1.0.1\n");
    for n in 0..15 {
        let label = "long-".repeat(11);
        records += &format!("10.0.0 AMTRELAY {n} 0 3 {label}{n}.{label}.{label}.example.\n");
    }
    let zones = [
        ("10.in-addr.arpa", Some(records.as_str())),
        ("example", Some(RELAY_HOST)),
    ];
    let _server = NameServer::bind(lab, &topology.core, SERVER, &zones);
    let wire = Capture::new(&topology.gw, "wan0");
    let _gateway = gateway(lab, &topology, "\"driad\"");
    let _member = join_source(&topology.rcv, "eth1", "10.0.0.10", "232.1.1.1");
    expect_streams(&topology, &relay, &["232.1.1.1"]);
    assert!(
        wire.to("10.2.0.1")
            .iter()
            .any(|packet| packet.protocol == 6)
    );
}

/// A service serves streams of any source too. One instance is of a relay that does not answer, one
/// has a name in a zone that is broken.
fn relay_is_found_as_a_service(lab: &Lab) {
    let topology = AmtTopology::new(lab);
    let relay = topology.relay(lab);
    let records = format!(
        "{RELAY_HOST}_amt._udp PTR one._amt._udp\n_amt._udp PTR two._amt._udp\n\
         one._amt._udp SRV 10 0 2268 gone\none._amt._udp TXT \"\"\n\
         two._amt._udp SRV 20 0 2268 relay\ntwo._amt._udp TXT \"\"\ngone A 10.1.0.99\n\
         _amt._udp PTR three._amt._udp\nthree._amt._udp SRV 5 0 2268 host.broken.\n"
    );
    let zones = [("example", Some(records.as_str())), ("broken", None)];
    let _server = NameServer::bind(lab, &topology.core, SERVER, &zones);
    let gateway = gateway(lab, &topology, "\"dns-sd\"");
    let _member = join_source(&topology.rcv, "eth1", "10.0.0.10", "232.1.1.1");
    expect_streams(&topology, &relay, &["232.1.1.1"]);
    expect_discoveries(&gateway, "dns_sd", "found", 1);
    expect_discoveries(&gateway, "dns_sd", "connected", 1);
}

fn slow_name_server_is_awaited(lab: &Lab) {
    let topology = AmtTopology::new(lab);
    let relay = topology.relay(lab);
    let impairment = Impairment {
        delay: Duration::from_millis(400),
        ..Impairment::default()
    };
    let _path = impair(lab, &topology, impairment);
    let zones = [("10.in-addr.arpa", Some("10.0.0 AMTRELAY 10 0 1 10.1.0.1\n"))];
    let _server = NameServer::bind(lab, &topology.core, SERVER, &zones);
    let gateway = gateway(lab, &topology, "\"driad\"");
    let _member = join_source(&topology.rcv, "eth1", "10.0.0.10", "232.1.1.1");
    expect_streams(&topology, &relay, &["232.1.1.1"]);
    expect_discoveries(&gateway, "driad", "found", 1);
}

/// The data of records is given in hexadecimal digits. A record of an undefined type is ignored.
fn relays_are_found_at_nsd(lab: &Lab) {
    let topology = AmtTopology::new(lab);
    let relay = topology.relay(lab);
    let four = "10.0.0 CNAME amt.example.\n";
    let relay_v6 = "fd010000000000000000000000000001";
    let six = format!("{} TYPE260 \\# 18 0A 82 {relay_v6}\n", reverse_v6());
    // 5 is the precedence of a type 4 that is not defined; then `relay.example.`.
    let names = format!(
        "{RELAY_HOST}amt TYPE260 \\# 3 05 04 00\n\
         amt TYPE260 \\# 17 0A 03 05 72656C6179 07 6578616D706C65 00\n"
    );
    let zones = [
        ("10.in-addr.arpa", Some(four)),
        ("d.f.ip6.arpa", Some(six.as_str())),
        ("example", Some(names.as_str())),
    ];
    let _server = NameServer::nsd(lab, &topology.core, SERVER, &zones);
    let gateway = gateway(lab, &topology, "\"driad\"");
    let _four = join_source(&topology.rcv, "eth1", "10.0.0.10", "232.1.1.1");
    let _six = join_source_v6(&topology.rcv, "eth1", "fd00::10", "ff3e::8000:1");
    expect_streams(&topology, &relay, &["232.1.1.1", "ff3e::8000:1"]);
    expect_discoveries(&gateway, "driad", "found", 2);
}
