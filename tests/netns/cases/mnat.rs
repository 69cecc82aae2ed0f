//! Multicast NAT: sender, ingress, network, egress, receiver, and a server between them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use super::cases;
use crate::lab::mnat::{self, Ca, Owner, Server};
use crate::lab::ns::ip_batch;
use crate::lab::proxy::join_source;
use crate::lab::{
    Capture, Injector, Lab, Ns, Numbered, Router, Udp, eventually, in_order, missing, wait_until,
};

cases!("mnat":
    streams_go_on_through_changes_and_an_absent_server,
    hosts_that_join_are_mapped_and_served_in_both_versions,
    local_groups_without_a_source_carry_streams,
    joins_from_the_file_alone_ask_nobody,
    a_route_in_the_way_is_told_until_it_goes,
);

/// A poll of each end, and the time between two mappings.
pub(super) const LONG: Duration = Duration::from_secs(60);

/// The way of a stream, and the server in the middle of it.
///
///     src eth0 ---- in  ing  mid ---- net0 egr  out ---- eth1 rcv
pub(super) struct Way {
    pub(super) src: Ns,
    pub(super) ing: Ns,
    pub(super) egr: Ns,
    pub(super) rcv: Ns,
    pub(super) ca: Ca,
    pub(super) ca_file: PathBuf,
}

pub(super) const SERVER: &str = "10.9.0.2:8443";

impl Way {
    pub(super) fn new(lab: &Lab) -> Self {
        let way = Self {
            src: lab.ns("src"),
            ing: lab.ns("ing"),
            egr: lab.ns("egr"),
            rcv: lab.ns("rcv"),
            ca: Ca::new(),
            ca_file: lab.file("ca.pem"),
        };
        std::fs::write(&way.ca_file, way.ca.pem()).unwrap();
        let mut links = String::new();
        for (a, to, b, at) in [
            ("eth0", &way.src, "in", &way.ing),
            ("mid", &way.ing, "net0", &way.egr),
            ("out", &way.egr, "eth1", &way.rcv),
        ] {
            let (to, at) = (to.name(), at.name());
            links += &format!("link add {a} netns {to} type veth peer name {b} netns {at}\n");
        }
        ip_batch(&[], &links).unwrap();
        for (ns, iface, v4, v6) in [
            (&way.src, "eth0", "10.0.0.10/24", "fd00::10/64"),
            (&way.ing, "in", "10.0.0.1/24", "fd00::1/64"),
            (&way.ing, "mid", "10.9.0.1/24", "fd09::1/64"),
            (&way.egr, "net0", "10.9.0.2/24", "fd09::2/64"),
            (&way.egr, "out", "10.0.1.1/24", "fd00:1::1/64"),
            (&way.rcv, "eth1", "10.0.1.10/24", "fd00:1::10/64"),
        ] {
            ns.ip_batch(&format!(
                "link set {iface} up\naddress add {v4} dev {iface}\n\
                 address add {v6} dev {iface} nodad\n"
            ));
        }
        way
    }

    pub(super) fn serve(&self, owner: &Arc<Mutex<Owner>>) -> Server {
        self.serve_at(SERVER, None, owner)
    }

    /// Where `clients` is given, it must have signed their certificates.
    pub(super) fn serve_at(
        &self,
        at: &str,
        clients: Option<Ca>,
        owner: &Arc<Mutex<Owner>>,
    ) -> Server {
        mnat::serve(&self.egr, &self.ca, clients, at, owner)
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

/// What `show mnat` says: global group to local group, and how it stands.
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
    let there = wait_until(LONG, || mapped(router) == want);
    assert!(there, "{:?}, expected {want:?}", mapped(router));
}

/// What is rewritten to what, as the routes say.
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
    let there = wait_until(LONG, || rewritten(router) == want);
    assert!(there, "{:?}, expected {want:?}", rewritten(router));
    eventually("it captures", true, || router.is_ready());
}

pub(super) const G: &str = "232.1.1.1";

fn streams_go_on_through_changes_and_an_absent_server(lab: &Lab) {
    let way = Way::new(lab);
    let (reads, writes) = (lab.file("egress.sgs"), lab.file("ingress.sgs"));
    std::fs::write(&reads, "10.0.0.10,232.1.1.1\n").unwrap();
    let owner = Owner::starting_at(0);
    let server = way.serve(&owner);
    let egress = way.egress(lab, &reads);
    wait_mapped(&egress, &[(G, "239.1.1.1")]);
    let ingress = way.ingress(lab, &writes);
    wait_mapped(&ingress, &[(G, "239.1.1.1")]);
    wait_rewritten(&ingress, &["232.1.1.1 -> 239.1.1.1"]);
    wait_rewritten(&egress, &["239.1.1.1 -> 232.1.1.1"]);
    eventually(
        "the ingress says what it joined",
        "10.0.0.10,232.1.1.1\n".to_string(),
        || std::fs::read_to_string(&writes).unwrap_or_default(),
    );
    let wire = Capture::new(&way.rcv, "eth1");
    let network = Capture::new(&way.egr, "net0");
    let sender = Numbered::start(&way.src, "eth0", "10.0.0.10:9", "232.1.1.1:5000", 200);
    eventually("the first packet", true, || !wire.to(G).is_empty());
    // Nothing of the global stream is seen in the network.
    assert!(network.to(G).is_empty() && !network.to("239.1.1.1").is_empty());

    // The actor that asks the server dies; its routes stay.
    egress.control().must(&json!({ "panic": "mnat" }));
    egress.expect_metric("mcastor_actor_restarts_total", &[("actor", "mnat")], 1);
    wait_mapped(&egress, &[(G, "239.1.1.1")]);
    sender.more(100);

    // The mapping changes.
    owner.lock().unwrap().swap();
    wait_rewritten(&ingress, &["232.1.1.1 -> 239.1.1.2"]);
    wait_rewritten(&egress, &["239.1.1.2 -> 232.1.1.1"]);
    sender.more(100);

    // The server is killed, and comes back knowing nothing.
    drop(server);
    let failed = |r: &Router| r.metric("mcastor_mnat_requests_total", &[("code", "connect")]);
    let gone = wait_until(LONG, || failed(&egress) >= 2.0 && failed(&ingress) >= 2.0);
    assert!(
        gone,
        "{} and {} requests failed",
        failed(&egress),
        failed(&ingress)
    );
    let owner = Owner::starting_at(10);
    let server = way.serve(&owner);
    wait_rewritten(&ingress, &["232.1.1.1 -> 239.1.1.11"]);
    wait_rewritten(&egress, &["239.1.1.11 -> 232.1.1.1"]);
    sender.more(100);

    // The joinfile is rewritten: in place, cut first; then by rename.
    std::fs::write(&reads, "").unwrap();
    std::fs::write(&reads, "# two\n10.0.0.10,232.1.1.1\n10.0.0.10,232.1.1.2\n").unwrap();
    wait_mapped(&egress, &[(G, "239.1.1.11"), ("232.1.1.2", "239.1.1.12")]);
    let beside = reads.with_extension("new");
    std::fs::write(&beside, "10.0.0.10,232.1.1.1\n").unwrap();
    std::fs::rename(&beside, &reads).unwrap();
    wait_mapped(&egress, &[(G, "239.1.1.11")]);
    wait_rewritten(&egress, &["239.1.1.11 -> 232.1.1.1"]);
    sender.more(100);
    let before_restart = sender.sent();

    // The egress is restarted: what is lost is what comes before it is up again.
    egress.stop();
    let egress = way.egress(lab, &reads);
    wait_rewritten(&egress, &["239.1.1.11 -> 232.1.1.1"]);
    let seen = wire.to(G).len();
    eventually("packets again", true, || wire.to(G).len() > seen + 50);
    // The ingress too.
    ingress.stop();
    let ingress = way.ingress(lab, &writes);
    wait_rewritten(&ingress, &["232.1.1.1 -> 239.1.1.11"]);
    let seen = wire.to(G).len();
    eventually("packets once more", true, || wire.to(G).len() > seen + 50);

    let sent = sender.finish();
    let there = |n: u32| in_order(&wire, G).last() == Some(&n);
    eventually("the last packet", true, || there(sent - 1));
    let got = in_order(&wire, G);
    let lost = missing(sent, &got);
    let (before, after): (Vec<u32>, Vec<u32>) = lost.iter().partition(|n| **n < before_restart);
    println!(
        "sent {sent}, lost {} before and {} by restarts",
        before.len(),
        after.len()
    );
    assert!(before.is_empty(), "lost through changes: {before:?}");
    drop((server, ingress, egress));
}

/// A host that wants one source of a group, by MLDv2, for as long as the socket lives.
fn join_source_v6(ns: &Ns, iface: &str, source: &str, group: &str) -> socket2::Socket {
    const MCAST_JOIN_SOURCE_GROUP: i32 = 46;
    let index = ns.index(iface);
    // struct group_source_req: the interface, and two addresses in 128 bytes each.
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

fn hosts_that_join_are_mapped_and_served_in_both_versions(lab: &Lab) {
    let way = Way::new(lab);
    let owner = Owner::starting_at(0);
    let _server = way.serve(&owner);
    let (reads, writes) = (lab.file("egress.sgs"), lab.file("ingress.sgs"));
    let egress = way.egress(lab, &reads);
    let ingress = way.ingress(lab, &writes);
    let four = join_source(&way.rcv, "eth1", "10.0.0.10", "232.1.1.1");
    wait_mapped(&egress, &[("232.1.1.1", "239.1.1.1")]);
    let six = join_source_v6(&way.rcv, "eth1", "fd00::10", "ff3e::8000:1");
    let both = [("232.1.1.1", "239.1.1.1"), ("ff3e::8000:1", "239.1.1.2")];
    wait_mapped(&egress, &both);
    wait_mapped(&ingress, &both);
    wait_rewritten(
        &ingress,
        &["232.1.1.1 -> 239.1.1.1", "ff3e::8000:1 -> 239.1.1.2"],
    );
    let wire = Capture::new(&way.rcv, "eth1");
    let inject = Injector::new(&way.src, "eth0");
    for n in 0..50u32 {
        let payload = n.to_be_bytes();
        inject.send(&Udp::new("10.0.0.10:9", "232.1.1.1:5000", payload).frame());
        // Somebody else's packets are none of the mapping.
        inject.send(&Udp::new("10.0.0.11:9", "232.1.1.1:5000", payload).frame());
        inject.send(&Udp::new("[fd00::10]:9", "[ff3e::8000:1]:5000", payload).frame());
    }
    for (group, source) in [("232.1.1.1", "10.0.0.10"), ("ff3e::8000:1", "fd00::10")] {
        let seen = wire.expect(group, 50);
        let source: std::net::IpAddr = source.parse().unwrap();
        assert!(seen.iter().all(|s| s.src == source), "{seen:?}");
    }
    // Leaving takes the mapping away on both sides.
    drop(four);
    wait_mapped(&egress, &both[1..]);
    wait_mapped(&ingress, &both[1..]);
    drop(six);
    wait_mapped(&egress, &[]);
    wait_mapped(&ingress, &[]);
    wait_rewritten(&ingress, &[]);
}

/// A pool of groups for any source: the ingress sends as who it is sent by, the egress takes in
/// whoever sends to the local group.
fn local_groups_without_a_source_carry_streams(lab: &Lab) {
    let way = Way::new(lab);
    let owner = Owner::starting_at(0);
    owner.lock().unwrap().any_source = true;
    let _server = way.serve(&owner);
    let (reads, writes) = (lab.file("egress.sgs"), lab.file("ingress.sgs"));
    let egress = way.egress(lab, &reads);
    let ingress = way.ingress(lab, &writes);
    let host = join_source(&way.rcv, "eth1", "10.0.0.10", G);
    wait_mapped(&egress, &[(G, "239.1.1.1")]);
    wait_mapped(&ingress, &[(G, "239.1.1.1")]);
    wait_rewritten(&ingress, &["232.1.1.1 -> 239.1.1.1"]);
    let (between, wire) = (
        Capture::new(&way.egr, "net0"),
        Capture::new(&way.rcv, "eth1"),
    );
    let inject = Injector::new(&way.src, "eth0");
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

fn joins_from_the_file_alone_ask_nobody(lab: &Lab) {
    let way = Way::new(lab);
    let owner = Owner::starting_at(0);
    let _server = way.serve(&owner);
    let reads = lab.file("egress.sgs");
    std::fs::write(&reads, "10.0.0.10,232.1.1.1\n").unwrap();
    let settings = way.settings("egress", "net0", "out", &reads);
    // IGMP that leaves towards the hosts, as a querier's does; 2 is the protocol.
    let queried = |wire: &Capture| {
        let frames = wire.frames();
        let incoming = frames.iter().filter(|f| !f.outgoing);
        let seen = incoming.filter_map(|f| crate::lab::Seen::read(&f.bytes));
        seen.filter(|s| s.protocol == 2 && s.dst.to_string() == "224.0.0.1")
            .count()
    };
    for (joins, hears) in [
        ("[\"joinfile\"]", false),
        ("[\"members\", \"joinfile\"]", true),
    ] {
        let wire = Capture::new(&way.rcv, "eth1");
        let settings = format!("{settings}joins = {joins}\n");
        let egress = Router::start(lab, &way.egr, &settings);
        let file = (G, "239.1.1.1");
        wait_mapped(&egress, &[file]);
        let host = join_source(&way.rcv, "eth1", "10.0.0.10", "232.1.1.7");
        match hears {
            true => {
                wait_mapped(&egress, &[file, ("232.1.1.7", "239.1.1.2")]);
                assert!(queried(&wire) > 0, "no query");
            }
            false => {
                // A report of the host came and was not listened to: nothing was mapped by the
                // time the file's next stream is.
                std::fs::write(&reads, "10.0.0.10,232.1.1.1\n10.0.0.10,232.1.1.8\n").unwrap();
                let there = wait_until(LONG, || mapped(&egress).len() == 2);
                assert!(there, "{:?}", mapped(&egress));
                let groups: Vec<_> = mapped(&egress).into_iter().map(|m| m.0).collect();
                assert_eq!(groups, [G, "232.1.1.8"]);
                assert_eq!(queried(&wire), 0);
                std::fs::write(&reads, "10.0.0.10,232.1.1.1\n").unwrap();
                owner.lock().unwrap().next = 1;
            }
        }
        drop(host);
        egress.stop();
    }
}

fn a_route_in_the_way_is_told_until_it_goes(lab: &Lab) {
    let way = Way::new(lab);
    let owner = Owner::starting_at(0);
    let _server = way.serve(&owner);
    let reads = lab.file("egress.sgs");
    std::fs::write(&reads, "10.0.0.10,232.1.1.1\n").unwrap();
    let settings = way.settings("egress", "net0", "out", &reads);
    let route = "[[route]]\nname = \"mine\"\nfrom = \"net0\"\nsource = \"10.9.9.9\"\n\
                 group = \"239.1.1.1\"\nto = [\"out\"]\n";
    let egress = Router::start(lab, &way.egr, &format!("{settings}{route}"));
    let conflict = |want| {
        let labels = [("role", "egress"), ("state", "conflict")];
        egress.expect_metric("mcastor_mnat_mappings", &labels, want);
    };
    conflict(1);
    egress.expect_metric("mcastor_mnat_mappings", &[("state", "assigned")], 0);
    let shown = egress.control().show("mnat");
    let mapping = &shown[0]["mappings"][0];
    assert_eq!(mapping["state"], "conflict", "{mapping}");
    let why = mapping["error"].as_str().unwrap_or_default();
    assert!(
        why.contains("route \"mine\" takes the same packets"),
        "{why}"
    );
    assert_eq!(rewritten(&egress), [""; 0]);
    // It goes by a reload, and comes back.
    egress.rewrite(&settings);
    egress.tell("reload");
    wait_rewritten(&egress, &["239.1.1.1 -> 232.1.1.1"]);
    conflict(0);
    egress.expect_metric("mcastor_mnat_mappings", &[("state", "assigned")], 1);
    egress.rewrite(&format!("{settings}{route}"));
    egress.tell("reload");
    conflict(1);
    assert_eq!(rewritten(&egress), [""; 0]);
    egress.tell("remove net0 10.9.9.9 239.1.1.1");
    wait_rewritten(&egress, &["239.1.1.1 -> 232.1.1.1"]);
    conflict(0);
}
