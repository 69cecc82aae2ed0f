//! Helpers for tests of proxies: settings, state queries and hand-written IGMP messages.

use super::{Ns, Router};

/// Timers short enough for a test; all others have their defaults.
pub const TIMERS: &str = "[proxy.timers]\nquery_interval = \"2s\"\nquery_response_interval = \"300ms\"\n\
                      last_member_query_interval = \"100ms\"\n";

/// Returns a `[[proxy]]` table named `p` with [`TIMERS`]; `extra` holds further lines.
pub fn proxy(upstream: &[&str], downstream: &[&str], extra: &str) -> String {
    format!(
        "[[proxy]]\nname = \"p\"\nupstream = {upstream:?}\ndownstream = {downstream:?}\n{extra}{TIMERS}"
    )
}

/// Returns the rows of `show groups` that describe members.
pub fn members(router: &Router) -> Vec<serde_json::Value> {
    let groups = router.control().show("groups");
    groups
        .into_iter()
        .filter(|g| g["role"] == "router")
        .collect()
}

/// Returns the row of one member group on an interface.
pub fn member(router: &Router, interface: &str, group: &str) -> Option<serde_json::Value> {
    let is_wanted = |g: &serde_json::Value| g["interface"] == interface && g["group"] == group;
    members(router).into_iter().find(is_wanted)
}

/// Returns the memberships joined on `interface`, as `group mode [sources]`.
pub fn joined(router: &Router, interface: &str) -> Vec<String> {
    let groups = router.control().show("groups");
    let joined = groups
        .iter()
        .filter(|g| g["role"] == "host" && g["interface"] == interface);
    joined
        .map(|g| {
            let sources = g["sources"].as_array().cloned().unwrap_or_default();
            let sources: Vec<_> = sources
                .iter()
                .filter_map(|s| s["source"].as_str())
                .collect();
            format!(
                "{} {} {sources:?}",
                g["group"].as_str().unwrap_or(""),
                g["mode"].as_str().unwrap_or("")
            )
        })
        .collect()
}

/// Returns the querier on an interface as `show interfaces` reports it: its address, and whether it
/// is this router.
pub fn querier(router: &Router, interface: &str, protocol: &str) -> (Option<String>, bool) {
    let interfaces = router.control().show("interfaces");
    let row = interfaces
        .iter()
        .find(|i| i["name"] == interface)
        .expect("the interface");
    let queriers = row["queriers"].as_array().cloned().unwrap_or_default();
    let found = queriers.iter().find(|q| q["protocol"] == protocol);
    found.map_or((None, false), |q| {
        (q["address"].as_str().map(String::from), q["us"] == true)
    })
}

/// Returns the number of membership messages behind `out1` refused for `reason`.
pub fn refused(router: &Router, reason: &str) -> f64 {
    let labels = [("iface", "out1"), ("reason", reason)];
    router.metric("mcastor_membership_refused_total", &labels)
}

/// Returns the number of groups with members behind `out1`.
pub fn known_groups(router: &Router) -> usize {
    router.metric("mcastor_membership_groups", &[("iface", "out1")]) as usize
}

/// Joins (S,G) for as long as the returned socket lives.
pub fn join_source(ns: &Ns, iface: &str, source: &str, group: &str) -> socket2::Socket {
    let (source, group) = (source.parse().expect("v4"), group.parse().expect("v4"));
    let addr = ns
        .try_ip(&format!("-4 -o address show dev {iface}"))
        .expect("address");
    let address = addr
        .split_whitespace()
        .nth(3)
        .and_then(|a| a.split('/').next())
        .expect("address");
    let address = address.parse().expect("v4");
    ns.enter(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None);
        let socket = socket.expect("a socket");
        socket.join_ssm_v4(&source, &group, &address).expect("join");
        socket
    })
}

/// Returns an IGMP message with its checksum filled in.
pub fn checksummed(body: &[u8]) -> Vec<u8> {
    let mut body = body.to_vec();
    body[2..4].fill(0);
    let sum: u32 = body
        .chunks(2)
        .map(|c| u32::from(u16::from_be_bytes([c[0], *c.get(1).unwrap_or(&0)])))
        .sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    body
}

/// Returns a frame with an IGMP message; `alert` adds the Router Alert option.
pub fn igmp_frame(src: [u8; 4], dst: [u8; 4], body: &[u8], ttl: u8, alert: bool) -> Vec<u8> {
    let header = super::frame::Ipv4 {
        tos: 0xc0,
        ttl,
        protocol: 2,
        src,
        dst,
        options: if alert {
            vec![148, 4, 0, 0]
        } else {
            Vec::new()
        },
        ..Default::default()
    };
    let ip = super::frame::ipv4(&header, body);
    super::frame::ethernet(std::net::IpAddr::from(dst), &ip)
}

/// Returns an IGMPv3 report with a TO_EX {} record for a group.
pub fn report(group: [u8; 4]) -> Vec<u8> {
    let [a, b, c, d] = group;
    checksummed(&[0x22, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0, a, b, c, d])
}
