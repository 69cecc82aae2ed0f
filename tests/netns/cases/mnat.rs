//! Multicast NAT: sender, ingress, network, egress and receiver, with a server in the network.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use super::cases;
use crate::lab::mnat::{self, Ca, Server, ServerState};
use crate::lab::numbered_stream::NumberedReceiver;
use crate::lab::proxy::{join_source, joined};
use crate::lab::switch::wait_until_snooping;
use crate::lab::{
    Capture, Injector, Lab, LinkEnd, Ns, NumberedStream, Router, TIMEOUT, Udp, connect_all,
    eventually, missing, received_in_order, wait_until,
};

cases!("mnat":
    streams_survive_remapping_and_server_outage,
    streams_survive_remapping_over_a_flooding_core,
    twenty_mapping_changes_lose_no_packet,
    joined_hosts_receive_mapped_streams_v4_and_v6,
    joined_hosts_receive_streams_over_a_flooding_core,
    any_source_local_groups_carry_streams,
    joinfile_only_egress_sends_no_queries,
    conflicting_route_is_reported_until_removed,
    joinfile_is_written_while_the_server_is_away,
);

/// Enough time for a poll of each end and for the delay between two mappings.
pub(super) const LONG: Duration = Duration::from_secs(60);

/// The path of a stream, with the server at the egress. Both upstream links are switches.
///
/// ```text
///     src eth0 ---- [br0] ---- in  ing  mid ---- [br1] ---- net0 egr  out ---- eth1 rcv
/// ```
pub(super) struct MnatTopology {
    pub(super) src: Ns,
    pub(super) ing: Ns,
    pub(super) egr: Ns,
    pub(super) rcv: Ns,
    pub(super) ca: Ca,
    pub(super) ca_file: PathBuf,
}

/// How the switches deliver multicast.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Core {
    /// Only to ports with members, by IGMPv3 and MLDv2 snooping. The switches are the queriers.
    Snooping,
    /// To every port.
    Flooding,
}

/// Options of a switch that snoops. It considers its querier valid after the query response
/// interval, here one second.
const SNOOPING: &str = "mcast_snooping 1 mcast_querier 1 mcast_igmp_version 3 mcast_mld_version 2 \
                        mcast_query_interval 1000 mcast_query_response_interval 100";

pub(super) const SERVER: &str = "10.9.0.2:8443";

impl MnatTopology {
    /// Creates a topology with switches that snoop, and waits until they do.
    pub(super) fn new(lab: &Lab) -> Self {
        Self::with_core(lab, Core::Snooping)
    }

    pub(super) fn with_core(lab: &Lab, core: Core) -> Self {
        let topology = Self {
            src: lab.ns("src"),
            ing: lab.ns("ing"),
            egr: lab.ns("egr"),
            rcv: lab.ns("rcv"),
            ca: Ca::new(),
            ca_file: lab.file("ca.pem"),
        };
        std::fs::write(&topology.ca_file, topology.ca.pem()).unwrap();
        let switches = lab.ns("sw");
        let (src, ing, egr, rcv) = (&topology.src, &topology.ing, &topology.egr, &topology.rcv);
        let port = |name| LinkEnd::new(&switches, name, &[]);
        connect_all(&[
            (
                port("p0"),
                LinkEnd::new(src, "eth0", &["10.0.0.10/24", "fd00::10/64"]),
            ),
            (
                port("p1"),
                LinkEnd::new(ing, "in", &["10.0.0.1/24", "fd00::1/64"]),
            ),
            (
                port("p2"),
                LinkEnd::new(ing, "mid", &["10.9.0.1/24", "fd09::1/64"]),
            ),
            (
                port("p3"),
                LinkEnd::new(egr, "net0", &["10.9.0.2/24", "fd09::2/64"]),
            ),
            (
                LinkEnd::new(egr, "out", &["10.0.1.1/24", "fd00:1::1/64"]),
                LinkEnd::new(rcv, "eth1", &["10.0.1.10/24", "fd00:1::10/64"]),
            ),
        ]);
        let options = match core {
            Core::Snooping => SNOOPING,
            Core::Flooding => "mcast_snooping 0",
        };
        for (bridge, ports) in [("br0", ["p0", "p1"]), ("br1", ["p2", "p3"])] {
            switches.ip_batch(&format!(
                "link add {bridge} type bridge {options}\nlink set {} master {bridge}\n\
                 link set {} master {bridge}\nlink set {bridge} up\n",
                ports[0], ports[1]
            ));
        }
        if core == Core::Snooping {
            for ((from, iif), (to, oif)) in
                [((src, "eth0"), (ing, "in")), ((ing, "mid"), (egr, "net0"))]
            {
                let (inject, behind) = (Injector::new(from, iif), Capture::new(to, oif));
                wait_until_snooping(&inject, &behind, &["239.255.9.9", "ff0e::9:9"]);
            }
        }
        topology
    }

    pub(super) fn serve(&self, server_state: &Arc<Mutex<ServerState>>) -> Server {
        self.serve_at(SERVER, None, server_state)
    }

    /// As [`Self::serve`] at another address. With `clients`, client certificates of that CA are
    /// required.
    pub(super) fn serve_at(
        &self,
        at: &str,
        clients: Option<Ca>,
        server_state: &Arc<Mutex<ServerState>>,
    ) -> Server {
        mnat::serve(&self.egr, &self.ca, clients, at, server_state)
    }

    pub(super) fn settings(&self, role: &str, up: &str, down: &str, joinfile: &Path) -> String {
        format!(
            "[mnat]\nrole = \"{role}\"\nserver = \"https://{SERVER}\"\nca = \"{}\"\n\
             upstream = \"{up}\"\ndownstream = \"{down}\"\njoinfile = \"{}\"\n",
            self.ca_file.display(),
            joinfile.display()
        )
    }

    pub(super) fn ingress(&self, lab: &Lab, joinfile: &Path) -> Router {
        Router::start(
            lab,
            &self.ing,
            &self.settings("ingress", "in", "mid", joinfile),
        )
    }

    pub(super) fn egress(&self, lab: &Lab, joinfile: &Path) -> Router {
        let settings = self.settings("egress", "net0", "out", joinfile);
        Router::start_with(lab, &self.egr, &settings, &[("MCASTOR_TEST_PANIC", "1")])
    }
}

/// Returns global group, local group and state of each mapping of `show mnat`.
pub(super) fn mapped(router: &Router) -> Vec<(String, String, String)> {
    let ends = router.control().show("mnat");
    let mappings = ends[0]["mappings"].as_array().expect("a list");
    let text = |v: &Value| v.as_str().unwrap_or("-").to_string();
    let row = |m: &Value| {
        (
            text(&m["group"]),
            text(&m["local_group"]),
            text(&m["state"]),
        )
    };
    mappings.iter().map(row).collect()
}

#[track_caller]
pub(super) fn wait_mapped(router: &Router, want: &[(&str, &str)]) {
    let want: Vec<_> = want
        .iter()
        .map(|(g, l)| (g.to_string(), l.to_string(), "assigned".to_string()))
        .collect();
    let complete = wait_until(LONG, || mapped(router) == want);
    assert!(complete, "{:?}, expected {want:?}", mapped(router));
}

/// Returns the groups rewritten by MNAT routes, as `from -> to`.
pub(super) fn rewritten(router: &Router) -> Vec<String> {
    let routes = router.control().show("routes");
    let mut names: Vec<String> = routes
        .iter()
        .filter(|r| r["origin"] == "mnat")
        .map(|r| format!("{} -> {}", r["group"], r["rewrite"]["group"]).replace('"', ""))
        .collect();
    names.sort();
    names
}

#[track_caller]
pub(super) fn wait_rewritten(router: &Router, want: &[&str]) {
    let complete = wait_until(LONG, || rewritten(router) == want);
    assert!(complete, "{:?}, expected {want:?}", rewritten(router));
    eventually("the router is ready", true, || router.is_ready());
}

pub(super) const G: &str = "232.1.1.1";

fn streams_survive_remapping_and_server_outage(lab: &Lab) {
    test_remapping_and_server_outage(lab, Core::Snooping);
}

fn streams_survive_remapping_over_a_flooding_core(lab: &Lab) {
    test_remapping_and_server_outage(lab, Core::Flooding);
}

fn test_remapping_and_server_outage(lab: &Lab, core: Core) {
    let topology = MnatTopology::with_core(lab, core);
    let (reads, writes) = (lab.file("egress.sgs"), lab.file("ingress.sgs"));
    std::fs::write(&reads, "10.0.0.10,232.1.1.1\n").unwrap();
    let server_state = ServerState::starting_at(0);
    let server = topology.serve(&server_state);
    let egress = topology.egress(lab, &reads);
    wait_mapped(&egress, &[(G, "239.1.1.1")]);
    let ingress = topology.ingress(lab, &writes);
    wait_mapped(&ingress, &[(G, "239.1.1.1")]);
    wait_rewritten(&ingress, &["232.1.1.1 -> 239.1.1.1"]);
    wait_rewritten(&egress, &["239.1.1.1 -> 232.1.1.1"]);
    // The stream has no member downstream, and is joined at both ends.
    let include = |text: &str| vec![text.to_owned()];
    for (router, upstream, membership) in [
        (&egress, "net0", "239.1.1.1 include [\"10.9.9.9\"]"),
        (&ingress, "in", "232.1.1.1 include [\"10.0.0.10\"]"),
    ] {
        eventually("joined upstream", include(membership), || {
            joined(router, upstream)
        });
    }
    eventually(
        "the ingress writes its joins",
        "10.0.0.10,232.1.1.1\n".to_string(),
        || std::fs::read_to_string(&writes).unwrap_or_default(),
    );
    let wire = Capture::new(&topology.rcv, "eth1");
    let network = Capture::new(&topology.egr, "net0");
    let sender = NumberedStream::start(&topology.src, "eth0", "10.0.0.10:9", "232.1.1.1:5000", 200);
    eventually("the first packet", true, || !wire.to(G).is_empty());
    // The network carries no packets of the global stream.
    assert!(network.to(G).is_empty() && !network.to("239.1.1.1").is_empty());

    // The actor that talks to the server dies; its routes remain.
    egress.control().expect_ok(&json!({ "panic": "mnat" }));
    egress.expect_metric("mcastor_actor_restarts_total", &[("actor", "mnat")], 1);
    wait_mapped(&egress, &[(G, "239.1.1.1")]);
    sender.wait_for_more(100);

    // The mapping changes.
    server_state.lock().unwrap().reassign();
    wait_rewritten(&ingress, &["232.1.1.1 -> 239.1.1.2"]);
    wait_rewritten(&egress, &["239.1.1.2 -> 232.1.1.1"]);
    sender.wait_for_more(100);

    // The server is killed and restarts without state.
    drop(server);
    let failed = |r: &Router| r.metric("mcastor_mnat_requests_total", &[("code", "connect")]);
    let gone = wait_until(LONG, || failed(&egress) >= 2.0 && failed(&ingress) >= 2.0);
    assert!(
        gone,
        "{} and {} requests failed",
        failed(&egress),
        failed(&ingress)
    );
    let server_state = ServerState::starting_at(10);
    let server = topology.serve(&server_state);
    wait_rewritten(&ingress, &["232.1.1.1 -> 239.1.1.11"]);
    wait_rewritten(&egress, &["239.1.1.11 -> 232.1.1.1"]);
    sender.wait_for_more(100);

    // The joinfile is rewritten: first truncated in place, then replaced by rename.
    std::fs::write(&reads, "").unwrap();
    std::fs::write(&reads, "# two\n10.0.0.10,232.1.1.1\n10.0.0.10,232.1.1.2\n").unwrap();
    wait_mapped(&egress, &[(G, "239.1.1.11"), ("232.1.1.2", "239.1.1.12")]);
    let replacement = reads.with_extension("new");
    std::fs::write(&replacement, "10.0.0.10,232.1.1.1\n").unwrap();
    std::fs::rename(&replacement, &reads).unwrap();
    wait_mapped(&egress, &[(G, "239.1.1.11")]);
    wait_rewritten(&egress, &["239.1.1.11 -> 232.1.1.1"]);
    sender.wait_for_more(100);
    let before_restart = sender.sent();

    // The egress restarts: only packets before it is ready again are lost.
    egress.stop();
    let egress = topology.egress(lab, &reads);
    wait_rewritten(&egress, &["239.1.1.11 -> 232.1.1.1"]);
    let seen = wire.to(G).len();
    eventually("packets again", true, || wire.to(G).len() > seen + 50);
    // The ingress restarts, too.
    ingress.stop();
    let ingress = topology.ingress(lab, &writes);
    wait_rewritten(&ingress, &["232.1.1.1 -> 239.1.1.11"]);
    let seen = wire.to(G).len();
    eventually("packets again after the ingress", true, || {
        wire.to(G).len() > seen + 50
    });

    let sent = sender.finish();
    let last_arrived = |n: u32| received_in_order(&wire, G).last() == Some(&n);
    eventually("the last packet", true, || last_arrived(sent - 1));
    let got = received_in_order(&wire, G);
    let lost = missing(sent, &got);
    let (before, after): (Vec<u32>, Vec<u32>) = lost.iter().partition(|n| **n < before_restart);
    println!(
        "sent {sent}, lost {} before and {} after the first restart",
        before.len(),
        after.len()
    );
    assert!(
        before.is_empty(),
        "lost before the first restart: {before:?}"
    );
    drop((server, ingress, egress));
}

/// The mappings of five streams change four times: to other local groups, back to the former ones,
/// while the server is away, and with a server that has lost its state. A longer test has
/// MCASTOR_MNAT_ROUNDS rounds.
fn twenty_mapping_changes_lose_no_packet(lab: &Lab) {
    const STREAMS: usize = 5;
    let rounds = std::env::var("MCASTOR_MNAT_ROUNDS").ok();
    let rounds: usize = rounds.map_or(4, |n| n.parse().expect("a number"));
    let groups: Vec<String> = (1..=STREAMS).map(|n| format!("232.1.1.{n}")).collect();
    let topology = MnatTopology::new(lab);
    let (reads, writes) = (lab.file("egress.sgs"), lab.file("ingress.sgs"));
    let joins = groups.iter().map(|group| format!("10.0.0.10,{group}\n"));
    std::fs::write(&reads, joins.collect::<String>()).unwrap();
    let mut server_state = ServerState::starting_at(0);
    let mut server = Some(topology.serve(&server_state));
    let egress = topology.egress(lab, &reads);
    let ingress = topology.ingress(lab, &writes);
    // Waits until both ends use the local groups of the server, and no other ones.
    let wait_changed = |server_state: &Arc<Mutex<ServerState>>| {
        let server_state = server_state.lock().unwrap();
        let (mut sent, mut received) = (Vec::new(), Vec::new());
        for group in &groups {
            let local = format!("239.1.1.{}", server_state.local("10.0.0.10", group));
            sent.push(format!("{group} -> {local}"));
            received.push(format!("{local} -> {group}"));
        }
        drop(server_state);
        received.sort();
        for (router, want) in [(&ingress, sent), (&egress, received)] {
            wait_rewritten(router, &want.iter().map(String::as_str).collect::<Vec<_>>());
        }
    };
    eventually("every stream is requested", true, || {
        mapped(&ingress).len() == STREAMS
    });
    wait_changed(&server_state);
    let receivers: Vec<_> = groups
        .iter()
        .map(|group| NumberedReceiver::start(&topology.rcv, "eth1", group))
        .collect();
    let start = |group: &String| {
        let to = format!("{group}:5000");
        NumberedStream::start(&topology.src, "eth0", "10.0.0.10:9", &to, 200)
    };
    let senders: Vec<_> = groups.iter().map(start).collect();
    let failed = |r: &Router| r.metric("mcastor_mnat_requests_total", &[("code", "connect")]);
    for round in 0..rounds {
        match round % 4 {
            0 => server_state.lock().unwrap().reassign(),
            1 => server_state.lock().unwrap().reassign_former(),
            without => {
                drop(server.take());
                let before = [failed(&egress), failed(&ingress)];
                let is_noticed = |(r, before)| failed(r) >= before + 4.0;
                let gone = wait_until(LONG, || {
                    [&egress, &ingress].into_iter().zip(before).all(is_noticed)
                });
                assert!(gone, "the ends query a server that is away");
                if without == 2 {
                    server_state.lock().unwrap().reassign();
                } else {
                    let next = 20 * (1 + (round / 4 % 2) as u8);
                    server_state = ServerState::starting_at(100 + next);
                }
                server = Some(topology.serve(&server_state));
                eventually("every stream is requested", true, || {
                    server_state.lock().unwrap().assigned() == STREAMS
                });
            }
        }
        wait_changed(&server_state);
        senders[0].wait_for_more(100);
    }
    let sent: Vec<u64> = senders.into_iter().map(|s| s.finish().into()).collect();
    let complete = || receivers.iter().zip(&sent).all(|(r, n)| r.received() == *n);
    wait_until(TIMEOUT, complete);
    for (receiver, sent) in receivers.into_iter().zip(sent) {
        let got = receiver.finish();
        println!(
            "{sent} sent, {} lost, {} doubled",
            sent - got.numbers,
            got.doubled
        );
        assert_eq!((got.numbers, got.doubled, got.late), (sent, 0, 0));
    }
}

/// Joins one source of a group by MLDv2, for as long as the socket lives.
pub(super) fn join_source_v6(ns: &Ns, iface: &str, source: &str, group: &str) -> socket2::Socket {
    const MCAST_JOIN_SOURCE_GROUP: i32 = 46;
    let index = ns.index(iface);
    // struct group_source_req: the interface and two addresses of 128 bytes each.
    let mut request = [0u8; 264];
    request[..4].copy_from_slice(&index.to_ne_bytes());
    for (at, text) in [(8, group), (136, source)] {
        let address: std::net::Ipv6Addr = text.parse().expect("v6");
        request[at..at + 2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
        request[at + 8..at + 24].copy_from_slice(&address.octets());
    }
    ns.enter(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::DGRAM, None);
        let socket = socket.expect("a socket");
        // SAFETY: pointer and length are those of `request`.
        let rc = unsafe {
            libc::setsockopt(
                std::os::fd::AsRawFd::as_raw_fd(&socket),
                libc::IPPROTO_IPV6,
                MCAST_JOIN_SOURCE_GROUP,
                request.as_ptr().cast(),
                request.len() as u32,
            )
        };
        assert_eq!(rc, 0, "join: {}", std::io::Error::last_os_error());
        socket
    })
}

fn joined_hosts_receive_mapped_streams_v4_and_v6(lab: &Lab) {
    test_joined_hosts(lab, Core::Snooping);
}

fn joined_hosts_receive_streams_over_a_flooding_core(lab: &Lab) {
    test_joined_hosts(lab, Core::Flooding);
}

fn test_joined_hosts(lab: &Lab, core: Core) {
    let topology = MnatTopology::with_core(lab, core);
    let server_state = ServerState::starting_at(0);
    let _server = topology.serve(&server_state);
    let (reads, writes) = (lab.file("egress.sgs"), lab.file("ingress.sgs"));
    let egress = topology.egress(lab, &reads);
    let ingress = topology.ingress(lab, &writes);
    let four = join_source(&topology.rcv, "eth1", "10.0.0.10", "232.1.1.1");
    wait_mapped(&egress, &[("232.1.1.1", "239.1.1.1")]);
    let six = join_source_v6(&topology.rcv, "eth1", "fd00::10", "ff3e::8000:1");
    let both = [("232.1.1.1", "239.1.1.1"), ("ff3e::8000:1", "239.1.1.2")];
    wait_mapped(&egress, &both);
    wait_mapped(&ingress, &both);
    wait_rewritten(
        &ingress,
        &["232.1.1.1 -> 239.1.1.1", "ff3e::8000:1 -> 239.1.1.2"],
    );
    let wire = Capture::new(&topology.rcv, "eth1");
    let inject = Injector::new(&topology.src, "eth0");
    for n in 0..50u32 {
        let payload = n.to_be_bytes();
        inject.send(&Udp::new("10.0.0.10:9", "232.1.1.1:5000", payload).frame());
        // Packets of another source do not match the mapping.
        inject.send(&Udp::new("10.0.0.11:9", "232.1.1.1:5000", payload).frame());
        inject.send(&Udp::new("[fd00::10]:9", "[ff3e::8000:1]:5000", payload).frame());
    }
    for (group, source) in [("232.1.1.1", "10.0.0.10"), ("ff3e::8000:1", "fd00::10")] {
        let seen = wire.expect(group, 50);
        let source: std::net::IpAddr = source.parse().unwrap();
        assert!(seen.iter().all(|s| s.src == source), "{seen:?}");
    }
    // A leave removes the mapping on both sides.
    drop(four);
    wait_mapped(&egress, &both[1..]);
    wait_mapped(&ingress, &both[1..]);
    drop(six);
    wait_mapped(&egress, &[]);
    wait_mapped(&ingress, &[]);
    wait_rewritten(&ingress, &[]);
}

/// With local groups for any source, the ingress keeps the source address and the egress accepts
/// any sender to the local group.
fn any_source_local_groups_carry_streams(lab: &Lab) {
    let topology = MnatTopology::new(lab);
    let server_state = ServerState::starting_at(0);
    server_state.lock().unwrap().any_source = true;
    let _server = topology.serve(&server_state);
    let (reads, writes) = (lab.file("egress.sgs"), lab.file("ingress.sgs"));
    let egress = topology.egress(lab, &reads);
    let ingress = topology.ingress(lab, &writes);
    let host = join_source(&topology.rcv, "eth1", "10.0.0.10", G);
    wait_mapped(&egress, &[(G, "239.1.1.1")]);
    wait_mapped(&ingress, &[(G, "239.1.1.1")]);
    wait_rewritten(&ingress, &["232.1.1.1 -> 239.1.1.1"]);
    let (between, wire) = (
        Capture::new(&topology.egr, "net0"),
        Capture::new(&topology.rcv, "eth1"),
    );
    let inject = Injector::new(&topology.src, "eth0");
    for n in 0..50u32 {
        inject.send(&Udp::new("10.0.0.10:9", "232.1.1.1:5000", n.to_be_bytes()).frame());
        inject.send(&Udp::new("10.0.0.11:9", "232.1.1.1:5000", n.to_be_bytes()).frame());
    }
    let source: std::net::IpAddr = "10.0.0.10".parse().unwrap();
    let seen = wire.expect(G, 50);
    assert!(
        seen.iter().all(|s| s.src == source && s.udp_ok()),
        "{seen:?}"
    );
    between.expect("239.1.1.1", 50);
    drop(host);
    wait_mapped(&egress, &[]);
}

fn joinfile_only_egress_sends_no_queries(lab: &Lab) {
    let topology = MnatTopology::new(lab);
    let server_state = ServerState::starting_at(0);
    let _server = topology.serve(&server_state);
    let reads = lab.file("egress.sgs");
    std::fs::write(&reads, "10.0.0.10,232.1.1.1\n").unwrap();
    let settings = topology.settings("egress", "net0", "out", &reads);
    // Returns the number of IGMP (protocol 2) general queries sent to the hosts.
    let queried = |wire: &Capture| {
        let frames = wire.frames();
        let incoming = frames.iter().filter(|f| !f.outgoing);
        let seen = incoming.filter_map(|f| crate::lab::IpPacket::parse(&f.bytes));
        seen.filter(|s| s.protocol == 2 && s.dst.to_string() == "224.0.0.1")
            .count()
    };
    for (joins, queries_hosts) in [
        ("[\"joinfile\"]", false),
        ("[\"members\", \"joinfile\"]", true),
    ] {
        let wire = Capture::new(&topology.rcv, "eth1");
        let settings = format!("{settings}joins = {joins}\n");
        let egress = Router::start(lab, &topology.egr, &settings);
        let file = (G, "239.1.1.1");
        wait_mapped(&egress, &[file]);
        let host = join_source(&topology.rcv, "eth1", "10.0.0.10", "232.1.1.7");
        match queries_hosts {
            true => {
                wait_mapped(&egress, &[file, ("232.1.1.7", "239.1.1.2")]);
                assert!(queried(&wire) > 0, "no query was sent");
            }
            false => {
                // The host's report is ignored: it has no mapping by the time the file's next
                // stream has one.
                std::fs::write(&reads, "10.0.0.10,232.1.1.1\n10.0.0.10,232.1.1.8\n").unwrap();
                let complete = wait_until(LONG, || mapped(&egress).len() == 2);
                assert!(complete, "{:?}", mapped(&egress));
                let groups: Vec<_> = mapped(&egress).into_iter().map(|m| m.0).collect();
                assert_eq!(groups, [G, "232.1.1.8"]);
                assert_eq!(queried(&wire), 0);
                std::fs::write(&reads, "10.0.0.10,232.1.1.1\n").unwrap();
                server_state.lock().unwrap().next = 1;
            }
        }
        drop(host);
        egress.stop();
    }
}

/// A mapping whose packets another route matches is reported as a conflict until the route is
/// removed.
fn conflicting_route_is_reported_until_removed(lab: &Lab) {
    let topology = MnatTopology::new(lab);
    let server_state = ServerState::starting_at(0);
    let _server = topology.serve(&server_state);
    let reads = lab.file("egress.sgs");
    std::fs::write(&reads, "10.0.0.10,232.1.1.1\n").unwrap();
    let settings = topology.settings("egress", "net0", "out", &reads);
    let route = "[[route]]\nname = \"mine\"\nfrom = \"net0\"\nsource = \"10.9.9.9\"\n\
                 group = \"239.1.1.1\"\nto = [\"out\"]\n";
    let egress = Router::start(lab, &topology.egr, &format!("{settings}{route}"));
    let conflict = |want| {
        let labels = [("role", "egress"), ("state", "conflict")];
        egress.expect_metric("mcastor_mnat_mappings", &labels, want);
    };
    conflict(1);
    egress.expect_metric("mcastor_mnat_mappings", &[("state", "assigned")], 0);
    let shown = egress.control().show("mnat");
    let mapping = &shown[0]["mappings"][0];
    assert_eq!(mapping["state"], "conflict", "{mapping}");
    let error = mapping["error"].as_str().unwrap_or_default();
    assert!(
        error.contains("route \"mine\" matches the same packets"),
        "{error}"
    );
    assert_eq!(rewritten(&egress), [""; 0]);
    // A reload removes the route; another one adds it again.
    egress.write_settings(&settings);
    egress.run("reload");
    wait_rewritten(&egress, &["239.1.1.1 -> 232.1.1.1"]);
    conflict(0);
    egress.expect_metric("mcastor_mnat_mappings", &[("state", "assigned")], 1);
    egress.write_settings(&format!("{settings}{route}"));
    egress.run("reload");
    conflict(1);
    assert_eq!(rewritten(&egress), [""; 0]);
    egress.run("remove net0 10.9.9.9 239.1.1.1");
    wait_rewritten(&egress, &["239.1.1.1 -> 232.1.1.1"]);
    conflict(0);
}

/// Readers take a joinfile that is not written for some minutes for that of a dead ingress.
fn joinfile_is_written_while_the_server_is_away(lab: &Lab) {
    let topology = MnatTopology::new(lab);
    let server_state = ServerState::starting_at(0);
    server_state.lock().unwrap().add_remote_join("10.0.0.10", G);
    let server = topology.serve(&server_state);
    let writes = lab.file("ingress.sgs");
    let ingress = topology.ingress(lab, &writes);
    wait_mapped(&ingress, &[(G, "239.1.1.1")]);
    let content = || std::fs::read_to_string(&writes).unwrap_or_default();
    eventually("the joinfile", "10.0.0.10,232.1.1.1\n".to_owned(), content);
    drop(server);
    let failed = || ingress.metric("mcastor_mnat_requests_total", &[("code", "connect")]);
    assert!(wait_until(LONG, || failed() > 0.0), "no request failed");
    let written = || {
        std::fs::metadata(&writes)
            .and_then(|m| m.modified())
            .unwrap()
    };
    for _ in 0..2 {
        let before = written();
        assert!(wait_until(LONG, || written() > before), "not written again");
        assert_eq!(content(), "10.0.0.10,232.1.1.1\n");
    }
    assert_eq!(mapped(&ingress).len(), 1);
}
