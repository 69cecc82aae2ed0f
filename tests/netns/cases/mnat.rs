//! Multicast NAT: sender, ingress, network, egress and receiver, with a server in the network.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use super::cases;
use crate::lab::mnat::{self, Ca, Server, ServerState};
use crate::lab::proxy::join_source;
use crate::lab::{
    Capture, Injector, Lab, LinkEnd, Ns, NumberedStream, Router, Udp, connect_all, eventually,
    missing, received_in_order, wait_until,
};

cases!("mnat":
    streams_survive_remapping_and_server_outage,
    joined_hosts_receive_mapped_streams_v4_and_v6,
    any_source_local_groups_carry_streams,
    joinfile_only_egress_sends_no_queries,
    conflicting_route_is_reported_until_removed,
);

/// Enough time for a poll of each end and for the delay between two mappings.
pub(super) const LONG: Duration = Duration::from_secs(60);

/// The path of a stream, with the server at the egress.
///
///     src eth0 ---- in  ing  mid ---- net0 egr  out ---- eth1 rcv
pub(super) struct MnatTopology {
    pub(super) src: Ns,
    pub(super) ing: Ns,
    pub(super) egr: Ns,
    pub(super) rcv: Ns,
    pub(super) ca: Ca,
    pub(super) ca_file: PathBuf,
}

pub(super) const SERVER: &str = "10.9.0.2:8443";

impl MnatTopology {
    pub(super) fn new(lab: &Lab) -> Self {
        let topology = Self {
            src: lab.ns("src"),
            ing: lab.ns("ing"),
            egr: lab.ns("egr"),
            rcv: lab.ns("rcv"),
            ca: Ca::new(),
            ca_file: lab.file("ca.pem"),
        };
        std::fs::write(&topology.ca_file, topology.ca.pem()).unwrap();
        let (src, ing, egr, rcv) = (&topology.src, &topology.ing, &topology.egr, &topology.rcv);
        connect_all(&[
            (
                LinkEnd::new(ing, "in", &["10.0.0.1/24", "fd00::1/64"]),
                LinkEnd::new(src, "eth0", &["10.0.0.10/24", "fd00::10/64"]),
            ),
            (
                LinkEnd::new(egr, "net0", &["10.9.0.2/24", "fd09::2/64"]),
                LinkEnd::new(ing, "mid", &["10.9.0.1/24", "fd09::1/64"]),
            ),
            (
                LinkEnd::new(egr, "out", &["10.0.1.1/24", "fd00:1::1/64"]),
                LinkEnd::new(rcv, "eth1", &["10.0.1.10/24", "fd00:1::10/64"]),
            ),
        ]);
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
    let topology = MnatTopology::new(lab);
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
    let topology = MnatTopology::new(lab);
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
