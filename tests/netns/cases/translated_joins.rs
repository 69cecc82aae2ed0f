//! Joins through routes that rewrite: hosts behind a proxy join the rewritten stream, and the
//! router joins the original one. The hosts are sockets of the Linux kernel.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use mcastor::model::{IfIndex, SourceFilter};
use mcastor::sys::membership_keeper::MembershipKeeper;
use mcastor::sys::memberships::HostMemberships;
use serde_json::Value;

use super::gso::without_offload;
use super::{cases, route};
use crate::lab::{Capture, Lab, Ns, Router, Star, UdpTx, eventually};

cases!("translated_joins":
    #[Program("ethtool", "ethtool")] original_stream_is_joined_4to4,
    #[Program("ethtool", "ethtool")] original_stream_is_joined_6to6,
    #[Program("ethtool", "ethtool")] original_stream_is_joined_4to6,
    #[Program("ethtool", "ethtool")] original_stream_is_joined_6to4,
    #[Program("ethtool", "ethtool")] original_stream_is_joined_on_proxy_upstream,
    prefix_translation_joins_one_group_per_member,
    joins_follow_member_and_route_changes,
    unproxied_egress_is_joined_without_members,
);

const TIMERS: &str = "[proxy.timers]\nquery_interval = \"2s\"\nquery_response_interval = \"300ms\"\n\
                      last_member_query_interval = \"100ms\"\n";

fn proxy(upstream: &str) -> String {
    format!("[[proxy]]\nname = \"p\"\nupstream = [{upstream:?}]\ndownstream = [\"out1\"]\n{TIMERS}")
}

/// A host whose memberships last as long as this value.
struct Host<'a> {
    ns: &'a Ns,
    held: HostMemberships,
}

impl<'a> Host<'a> {
    fn new(ns: &'a Ns, iface: &str) -> Self {
        let index = IfIndex::new(ns.index(iface)).expect("an index");
        let held = HostMemberships::new(index, MembershipKeeper::default());
        Self { ns, held }
    }

    fn set_filter(&mut self, group: &str, filter: &SourceFilter) {
        let (group, held) = (group.parse().expect("a group"), &mut self.held);
        let set = self.ns.enter(|| held.set(group, filter));
        set.expect("the kernel sets the filter");
    }
}

fn include(sources: &[&str]) -> SourceFilter {
    let sources = sources.iter().map(|s| s.parse().expect("a source"));
    SourceFilter::Include(sources.collect())
}

/// Returns the rows of `show groups` for one role on one interface, ordered by group.
fn rows(router: &Router, role: &str, interface: &str) -> Vec<Value> {
    let mut rows = router.control().show("groups");
    rows.retain(|g| g["role"] == role && g["interface"] == interface);
    rows.sort_by_key(|g| g["group"].as_str().map(String::from));
    rows
}

/// Returns the memberships joined on `interface`, as `group mode sources`.
fn joined(router: &Router, interface: &str) -> Vec<String> {
    let rows = rows(router, "host", interface);
    let line = |g: &Value| {
        let sources = g["sources"].as_array().cloned().unwrap_or_default();
        let sources: Vec<_> = sources
            .iter()
            .filter_map(|s| s["source"].as_str())
            .collect();
        let text = |key: &str| g[key].as_str().unwrap_or_default().to_string();
        let all = [text("group"), text("mode"), sources.join(" ")];
        all.join(" ").trim_end().to_string()
    };
    rows.iter().map(line).collect()
}

const ALLOW: u8 = 5;
const BLOCK: u8 = 6;

/// Returns the types of the report records on a wire whose first source is `source`.
fn records(wire: &Capture, source: &str, group: &str) -> Vec<u8> {
    let octets = |text: &str| match text.parse().expect("an address") {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    };
    let named = [octets(group), octets(source)].concat();
    let frames = wire.frames();
    let reports = frames.iter().filter(|f| !f.outgoing);
    let types = reports.flat_map(|f| {
        let at = f.bytes.windows(named.len() + 4).filter(|w| w[4..] == named);
        at.map(|w| w[0]).collect::<Vec<_>>()
    });
    types.collect()
}

const STREAM_V4: [&str; 2] = ["10.0.0.10", "232.1.2.3"];
const STREAM_V6: [&str; 2] = ["fd00::10", "ff3e::8000:2"];
const TRANSLATED_V4: [&str; 2] = ["10.9.1.77", "232.9.1.1"];
const TRANSLATED_V6: [&str; 2] = ["fd00:9::77", "ff3e::8000:9"];
const PACKETS: usize = 100;

fn translated(from: [&str; 2], to: [&str; 2], egresses: &[&str]) -> String {
    let extra = format!(
        "rewrite = {{ source = {:?}, group = {:?} }}\n",
        to[0], to[1]
    );
    route("r", "in", from[0], from[1], egresses, &extra)
}

fn assert_original_joined(lab: &Lab, from: [&str; 2], to: [&str; 2], upstream: &str) {
    let star = Star::dual(lab, 2);
    let settings = proxy(upstream) + &translated(from, to, &["out1"]);
    let router = Router::start(lab, &star.rtr, &settings);
    let up = Capture::new(&star.src, "eth0");
    let elsewhere = Capture::new(&star.rcv, "eth2");
    assert_eq!(joined(&router, "in"), [""; 0], "joined without a member");
    let any = match to[1].contains(':') {
        true => "[::]:5000",
        false => "0.0.0.0:5000",
    };
    let at = match from[1].contains(':') {
        true => format!("[{}]:5000", from[1]),
        false => format!("{}:5000", from[1]),
    };
    let rx = star.rcv.enter(|| UdpSocket::bind(any)).expect("a socket");
    rx.set_read_timeout(Some(Duration::from_secs(15)))
        .expect("a timeout");
    let mut host = Host::new(&star.rcv, "eth1");
    host.set_filter(to[1], &include(&[to[0]]));
    let original = format!("{} include {}", from[1], from[0]);
    eventually("the original is joined", vec![original], || {
        joined(&router, "in")
    });
    eventually("joined on the wire", Some(ALLOW), || {
        records(&up, from[0], from[1]).first().copied()
    });
    assert_eq!(
        joined(&router, "out2"),
        [""; 0],
        "joined on the proxy's upstream"
    );
    assert_eq!(records(&elsewhere, to[0], to[1]), [0; 0]);
    assert_eq!(records(&up, to[0], to[1]), [0; 0]);
    // `show groups` names the counterpart on both sides.
    let [original, translated] = [from, to].map(|[s, g]| format!("({s}, {g})"));
    let member = &rows(&router, "router", "out1")[0];
    assert_eq!(member["group"], to[1]);
    assert_eq!(
        member["original"],
        serde_json::json!([format!("{original} from in")])
    );
    let host_row = &rows(&router, "host", "in")[0];
    assert_eq!(
        host_row["for"],
        serde_json::json!([format!("{translated} to out1")])
    );
    let table = router.run("show groups");
    for text in [
        format!("joined, translated from {original} from in"),
        format!("joined, translated to {translated} to out1"),
    ] {
        assert!(table.contains(&text), "{table}");
    }
    // The host receives every packet of the translated stream.
    let wire = Capture::new(&star.rcv, "eth1");
    // The kernel forwards a checksum that is left to the network card as it is.
    without_offload(&star.src, "eth0");
    let tx = UdpTx::new(&star.src, "eth0", &at);
    let mut bytes = [0; 64];
    for n in 0..PACKETS {
        tx.send(n.to_be_bytes());
        let (len, sender) = rx.recv_from(&mut bytes).expect("translated");
        assert_eq!(bytes[..len], n.to_be_bytes());
        assert_eq!(sender.ip(), to[0].parse::<IpAddr>().expect("an address"));
    }
    assert!(wire.expect(to[1], PACKETS).iter().all(|s| s.udp_ok()));
    router.expect_routed("r", "out1", PACKETS as u64);
    // After the host's leave, the router leaves the original.
    drop(host);
    eventually("left", Vec::<String>::new(), || joined(&router, "in"));
    eventually("left on the wire", Some(BLOCK), || {
        records(&up, from[0], from[1]).last().copied()
    });
    assert!(rows(&router, "router", "out1").is_empty());
}

fn original_stream_is_joined_4to4(lab: &Lab) {
    assert_original_joined(lab, STREAM_V4, TRANSLATED_V4, "out2");
}

fn original_stream_is_joined_6to6(lab: &Lab) {
    assert_original_joined(lab, STREAM_V6, TRANSLATED_V6, "out2");
}

fn original_stream_is_joined_4to6(lab: &Lab) {
    assert_original_joined(lab, STREAM_V4, TRANSLATED_V6, "out2");
}

fn original_stream_is_joined_6to4(lab: &Lab) {
    assert_original_joined(lab, STREAM_V6, TRANSLATED_V4, "out2");
}

fn original_stream_is_joined_on_proxy_upstream(lab: &Lab) {
    assert_original_joined(lab, STREAM_V4, TRANSLATED_V4, "in");
}

/// One group of the prefix is joined per member, with the sources that the member includes.
fn prefix_translation_joins_one_group_per_member(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let from = ["10.0.0.0/24", "225.1.2.0/24"];
    let to = ["10.9.1.0/24", "239.1.1.0/24"];
    let settings = proxy("out2") + &translated(from, to, &["out1"]);
    let router = Router::start(lab, &star.rtr, &settings);
    let mut host = Host::new(&star.rcv, "eth1");
    host.set_filter("239.1.1.7", &SourceFilter::any());
    let all_but_one = SourceFilter::Exclude(["10.9.1.5".parse().expect("a source")].into());
    host.set_filter("239.1.1.8", &all_but_one);
    host.set_filter("239.1.1.9", &include(&["10.9.1.6", "10.7.0.1"]));
    let (any, expected_exclude) = ("225.1.2.7 exclude", "225.1.2.8 exclude 10.0.0.5");
    let all = [any, expected_exclude, "225.1.2.9 include 10.0.0.6"].map(String::from);
    eventually("each original is joined", all.to_vec(), || {
        joined(&router, "in")
    });
    // Sources outside of the translation may come from the proxy's upstream.
    let rest = [
        "239.1.1.7 exclude",
        "239.1.1.8 exclude 10.9.1.5",
        "239.1.1.9 include 10.7.0.1",
    ];
    assert_eq!(joined(&router, "out2"), rest);
    let row = &rows(&router, "host", "in")[0];
    assert_eq!(row["for"], serde_json::json!(["(*, 239.1.1.7) to out1"]));
    drop(host);
    eventually("left", Vec::<String>::new(), || joined(&router, "in"));
    assert_eq!(joined(&router, "out2"), [""; 0]);
}

/// The member changes its source and its group, then the route changes. Each new stream is joined
/// before the previous one is left.
fn joins_follow_member_and_route_changes(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let from = ["10.0.0.0/24", "232.1.2.0/24"];
    let settings = |to: [&str; 2]| proxy("out2") + &translated(from, to, &["out1"]);
    let router = Router::start(lab, &star.rtr, &settings(["10.9.1.0/24", "232.9.1.0/24"]));
    let up = Capture::new(&star.src, "eth0");
    let mut host = Host::new(&star.rcv, "eth1");
    let expect_joined = |memberships: &[&str]| {
        let expected: Vec<String> = memberships.iter().map(ToString::to_string).collect();
        eventually("joined", expected, || joined(&router, "in"));
    };
    host.set_filter("232.9.1.1", &include(&["10.9.1.1"]));
    expect_joined(&["232.1.2.1 include 10.0.0.1"]);
    host.set_filter("232.9.1.1", &include(&["10.9.1.1", "10.9.1.2"]));
    expect_joined(&["232.1.2.1 include 10.0.0.1 10.0.0.2"]);
    host.set_filter("232.9.1.1", &include(&["10.9.1.2"]));
    expect_joined(&["232.1.2.1 include 10.0.0.2"]);
    host.set_filter("232.9.1.2", &include(&["10.9.1.2"]));
    host.set_filter("232.9.1.1", &SourceFilter::none());
    expect_joined(&["232.1.2.2 include 10.0.0.2"]);
    let blocked = |source: &str, group: &str| {
        let types = records(&up, source, group);
        types.iter().position(|t| *t == BLOCK)
    };
    eventually("left", true, || blocked("10.0.0.2", "232.1.2.1").is_some());
    assert_eq!(
        blocked("10.0.0.2", "232.1.2.2"),
        None,
        "the joined stream was left"
    );
    // The route now produces another group, so the host's group is joined on the proxy's upstream.
    reload(&router, &settings(["10.9.1.0/24", "232.9.9.0/24"]));
    expect_joined(&[]);
    let out = vec!["232.9.1.2 include 10.9.1.2".to_string()];
    eventually("joined on the proxy's upstream", out, || {
        joined(&router, "out2")
    });
    reload(&router, &settings(["10.9.1.0/24", "232.9.1.0/24"]));
    expect_joined(&["232.1.2.2 include 10.0.0.2"]);
    assert_eq!(joined(&router, "out2"), [""; 0]);
}

fn reload(router: &Router, settings: &str) {
    router.write_settings(settings);
    router.run("reload");
}

/// `out2` is not a downstream interface of the proxy, so the original is joined without members.
fn unproxied_egress_is_joined_without_members(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let settings = proxy("in") + &translated(STREAM_V4, TRANSLATED_V4, &["out1", "out2"]);
    let router = Router::start(lab, &star.rtr, &settings);
    let original = format!("{} include {}", STREAM_V4[1], STREAM_V4[0]);
    eventually("joined for out2", vec![original], || joined(&router, "in"));
}
