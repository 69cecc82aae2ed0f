//! Proxies as tests use them: their settings, what they show, and IGMP written by hand.

use super::{Ns, Router};

/// Short enough for a test, with everything else as it is by default.
pub const TIMERS: &str = "[proxy.timers]\nquery_interval = \"2s\"\nquery_response_interval = \"300ms\"\n\
                      last_member_query_interval = \"100ms\"\n";

/// A `[[proxy]]` called `p`, with [`TIMERS`]; `extra` holds more lines.
pub fn proxy(upstream: &[&str], downstream: &[&str], extra: &str) -> String {
    format!(
        "[[proxy]]\nname = \"p\"\nupstream = {upstream:?}\ndownstream = {downstream:?}\n{extra}{TIMERS}"
    )
}

/// Rows of `show groups` with members.
pub fn members(router: &Router) -> Vec<serde_json::Value> {
    let groups = router.control().show("groups");
    groups
        .into_iter()
        .filter(|g| g["role"] == "router")
        .collect()
}

/// The row of one of them.
pub fn member(router: &Router, interface: &str, group: &str) -> Option<serde_json::Value> {
    let is = |g: &serde_json::Value| g["interface"] == interface && g["group"] == group;
    members(router).into_iter().find(is)
}

/// What is joined upstream, as `group mode [sources]`.
pub fn joined(router: &Router, interface: &str) -> Vec<String> {
    let groups = router.control().show("groups");
    let ours = groups
        .iter()
        .filter(|g| g["role"] == "host" && g["interface"] == interface);
    ours.map(|g| {
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

/// Who asks for members on an interface, as `show interfaces` has it.
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

/// Messages of hosts behind `out1` that were refused for a reason.
pub fn refused(router: &Router, reason: &str) -> f64 {
    let labels = [("iface", "out1"), ("reason", reason)];
    router.metric("mcastor_membership_refused_total", &labels)
}

/// Groups that are known behind `out1`.
pub fn known_groups(router: &Router) -> usize {
    router.metric("mcastor_membership_groups", &[("iface", "out1")]) as usize
}

/// A socket that is a member of (S,G), as long as it lives.
pub fn join_source(ns: &Ns, iface: &str, source: &str, group: &str) -> socket2::Socket {
    let (source, group) = (source.parse().expect("v4"), group.parse().expect("v4"));
    let addr = ns
        .try_ip(&format!("-4 -o address show dev {iface}"))
        .expect("address");
    let own = addr
        .split_whitespace()
        .nth(3)
        .and_then(|a| a.split('/').next())
        .expect("address");
    let own = own.parse().expect("v4");
    ns.enter(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None);
        let socket = socket.expect("a socket");
        socket.join_ssm_v4(&source, &group, &own).expect("join");
        socket
    })
}

/// A message with its checksum, which stands where IGMP has it.
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

/// A frame with a message of IGMP; `alert` is for the Router Alert option.
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

/// TO_EX {} for a group, in IGMPv3.
pub fn report(group: [u8; 4]) -> Vec<u8> {
    let [a, b, c, d] = group;
    checksummed(&[0x22, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0, a, b, c, d])
}
