//! The tables and texts of `mcastor show`.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use comfy_table::Table;
use ipnet::IpNet;

use super::output::paragraph;
use super::show_discovery::discovery_text;
use super::show_streams::streams_text;
use super::table::{NO_BREAK, new_table, seconds, table_text};
use crate::api::view::BandwidthView;
use crate::api::{
    DropView, FlowView, GroupView, InterfaceView, MnatView, PendingView, QuerierView, RouteView,
    ShowReply, TunnelView,
};

/// Formats a reply for a terminal, without escapes.
pub(super) fn text(reply: &ShowReply) -> String {
    match reply {
        ShowReply::Routes(routes) => table_text(routes_table(routes)) + &merges_text(routes),
        ShowReply::Interfaces(interfaces) => {
            let mut text = table_text(interfaces_table(interfaces));
            for interface in interfaces {
                for conflict in &interface.subnet_conflicts {
                    text += &format!("\n{}: {conflict}", interface.name);
                }
            }
            text
        }
        ShowReply::Flows(flows) => table_text(flows_table(flows)),
        ShowReply::Groups(groups) => table_text(groups_table(groups)),
        ShowReply::Pending(pending) => table_text(pending_table(pending)),
        ShowReply::Mnat(ends) if ends.is_empty() => {
            "This router is not an end of multicast NAT.".into()
        }
        ShowReply::Mnat(ends) => table_text(mnat_table(ends)),
        ShowReply::Tunnels(tunnels) => table_text(tunnels_table(tunnels)),
        ShowReply::Discovery(discovery) if discovery.is_empty() => {
            "No [[discovery]] is in the settings.".into()
        }
        ShowReply::Discovery(discovery) => discovery_text(discovery),
        ShowReply::Drops(drops) => drops_text(drops),
        ShowReply::Streams(streams) => streams_text(streams),
        ShowReply::Upgraded(view) => view.to_string(),
        ShowReply::Done(done) => done.clone(),
        ShowReply::Explain(_) | ShowReply::Trace(_) => String::new(),
    }
}

/// Returns the table of flows.
pub(super) fn flows_table(flows: &[FlowView]) -> Table {
    let mut header = vec![
        "IIF", "(S, G)", "OIFS", "PACKETS", "BYTES", "AGE", "IDLE", "ROUTE",
    ];
    let has_planes = flows.iter().any(|flow| flow.plane == "ebpf");
    if has_planes {
        header.push("PLANE");
    }
    let mut table = new_table(&header, &[3, 4, 5, 6]);
    for flow in flows {
        let oif = |name: &String| match flow.yields.get(name) {
            Some(station) => format!("{name} (sent by {station})"),
            None => name.clone(),
        };
        let mut row = vec![
            match flow.active {
                true => flow.iif.clone(),
                false => format!("{} (standby)", flow.iif),
            },
            format!("({}, {})", flow.source, flow.group),
            match flow.dropped {
                true => "(dropped)".into(),
                false => flow.oifs.iter().map(oif).collect::<Vec<_>>().join(" "),
            },
            flow.packets.to_string(),
            flow.bytes.to_string(),
            format!("{}{NO_BREAK}s", flow.age_ms / 1000),
            seconds(flow.idle_ms),
            flow.route.clone().unwrap_or_else(|| "-".into()),
        ];
        if has_planes {
            row.push(flow.plane.clone());
        }
        table.add_row(row);
    }
    table
}

/// Returns the table of drops, and below it each reason with its remedy.
fn drops_text(drops: &[DropView]) -> String {
    if drops.is_empty() {
        return "No packet was dropped.".into();
    }
    let mut text = table_text(drops_table(drops)) + "\n";
    if drops.iter().any(|drop| drop.missed_at_most > 0) {
        let note = "+: more may have been dropped before, while others had the place.";
        text += "\n";
        text += &paragraph(note, 0);
    }
    let mut reasons: Vec<&DropView> = Vec::new();
    for drop in drops {
        if !reasons.iter().any(|known| known.reason == drop.reason) {
            reasons.push(drop);
        }
    }
    for drop in reasons {
        text += &format!("\n{}:\n", drop.reason);
        text += &paragraph(&drop.meaning, 2);
        text += &paragraph(&format!("To do: {}", drop.remedy), 2);
    }
    text.truncate(text.trim_end().len());
    text
}

/// Returns the table of drops.
pub(super) fn drops_table(drops: &[DropView]) -> Table {
    let header = [
        "LAST MINUTE",
        "TOTAL",
        "INTERFACE",
        "REASON",
        "(S, G)",
        "LAST PACKET",
    ];
    let mut table = new_table(&header, &[0, 1]);
    for drop in drops {
        let flow = match (&drop.source, &drop.group) {
            (Some(source), Some(group)) => format!("({source}, {group})"),
            _ => "-".into(),
        };
        let total = match drop.missed_at_most {
            0 => drop.packets.to_string(),
            _ => format!("{}+", drop.packets),
        };
        table.add_row([
            drop.last_minute.to_string(),
            total,
            drop.interface.clone(),
            drop.reason.clone(),
            flow,
            last_packet(drop),
        ]);
    }
    table
}

/// Returns the LAST PACKET column, such as `2.1 s ago, TTL 1, 128 bytes, port 5000`.
fn last_packet(drop: &DropView) -> String {
    let parts = [
        Some(format!("{}{NO_BREAK}ago", seconds(drop.idle_ms))),
        drop.ttl.map(|ttl| format!("TTL{NO_BREAK}{ttl}")),
        drop.size.map(|size| format!("{size}{NO_BREAK}bytes")),
        drop.port.map(|port| format!("port{NO_BREAK}{port}")),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Returns the table of groups.
pub(super) fn groups_table(groups: &[GroupView]) -> Table {
    let header = [
        "INTERFACE",
        "ROLE",
        "GROUP",
        "MODE",
        "SOURCES",
        "EXPIRES",
        "VERSION",
        "REPORTERS",
        "STATE",
    ];
    let mut table = new_table(&header, &[5]);
    let seconds = |ms: Option<u64>| ms.map(seconds);
    let or_none = |text: String| if text.is_empty() { "-".into() } else { text };
    // Groups that differ in nothing else share a row.
    let mut rows: Vec<([String; 8], Vec<&str>)> = Vec::new();
    let mut positions: HashMap<[String; 8], usize> = HashMap::new();
    for group in groups {
        let sources = group.sources.iter().map(|s| {
            // In exclude mode, the sources that are not forwarded are the exceptions.
            let not = if s.forwarded { "" } else { "not " };
            let left = seconds(s.expires_ms).map_or_else(String::new, |s| format!(" ({s})"));
            format!("{not}{}{left}", s.source)
        });
        let last = group.last_reporter.iter().cloned().collect();
        let reporters = if group.reporters.is_empty() {
            last
        } else {
            group.reporters.clone()
        };
        let other_columns = [
            group.interface.clone(),
            group.role.clone(),
            group.mode.clone(),
            or_none(sources.collect::<Vec<_>>().join(" ")),
            seconds(group.expires_ms).unwrap_or_else(|| "-".into()),
            group.version.clone().unwrap_or_else(|| "-".into()),
            or_none(reporters.join(" ")),
            group_state(group),
        ];
        let position = *positions.entry(other_columns.clone()).or_insert_with(|| {
            rows.push((other_columns, Vec::new()));
            rows.len() - 1
        });
        rows[position].1.push(group.group.as_str());
    }
    for ([interface, role, rest @ ..], groups) in rows {
        for group in prefixes(&groups) {
            let row = [interface.clone(), role.clone(), group];
            table.add_row(row.iter().chain(&rest));
        }
    }
    table
}

/// Returns the fewest prefixes that are exactly these addresses, such as those of a joined prefix. A
/// single address has no prefix length.
fn prefixes(addresses: &[&str]) -> Vec<String> {
    let nets = addresses
        .iter()
        .map(|text| text.parse::<IpAddr>().map(IpNet::from));
    let Ok(nets) = nets.collect::<Result<Vec<_>, _>>() else {
        return addresses.iter().map(ToString::to_string).collect();
    };
    let name = |net: IpNet| match net.prefix_len() == net.max_prefix_len() {
        true => net.addr().to_string(),
        false => net.to_string(),
    };
    IpNet::aggregate(&nets).into_iter().map(name).collect()
}

/// Returns the STATE column: `joined` or the error, then the streams of its translation.
fn group_state(group: &GroupView) -> String {
    let mut state = group.error.clone().unwrap_or_else(|| "joined".into());
    for (label, streams) in [
        ("translated from", &group.original),
        ("translated to", &group.joined_for),
    ] {
        if !streams.is_empty() {
            state += &format!(", {label} {}", streams.join(" and "));
        }
    }
    state
}

fn pending_table(pending: &[PendingView]) -> Table {
    let mut table = new_table(&["KIND", "NAME", "WAITS FOR", "ORIGIN", "HINT"], &[]);
    for p in pending {
        table.add_row([
            p.kind.clone(),
            p.name.clone(),
            p.waiting_for.join(" "),
            p.origin.clone(),
            p.hints.join("\n"),
        ]);
    }
    table
}

fn mnat_table(ends: &[MnatView]) -> Table {
    let mut table = new_table(&["GLOBAL", "LOCAL", "STATE", "SERVER"], &[]);
    for end in ends {
        let server = match (end.up, &end.error) {
            (true, None) => format!("{} up", end.server),
            (true, Some(why)) => format!("{} up; {why}", end.server),
            (false, None) => format!("{} down", end.server),
            (false, Some(why)) => format!("{} down: {why}", end.server),
        };
        if end.mappings.is_empty() {
            table.add_row(["-".into(), "-".into(), "-".into(), server.clone()]);
        }
        for m in &end.mappings {
            let any = |source: &Option<String>| source.clone().unwrap_or_else(|| "*".into());
            let local = m.local_group.as_ref();
            let local = local.map(|group| format!("({}, {group})", any(&m.local_source)));
            let state = match &m.error {
                Some(why) => format!("{}: {why}", m.state),
                None => m.state.clone(),
            };
            table.add_row([
                format!("({}, {})", any(&m.source), m.group),
                local.unwrap_or_else(|| "-".into()),
                state,
                server.clone(),
            ]);
        }
    }
    table
}

fn tunnels_table(tunnels: &[TunnelView]) -> Table {
    let has_limits = tunnels.iter().any(|tunnel| tunnel.bandwidth.is_some());
    let mut header = vec![
        "INTERFACE",
        "FAR END",
        "IGMP",
        "MLD",
        "GROUPS",
        "PACKETS",
        "IDLE",
    ];
    header.extend(has_limits.then_some("BANDWIDTH"));
    let mut table = new_table(&header, &[4, 5, 6]);
    for tunnel in tunnels {
        let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
        let packets = tunnel.packets.map(|packets| packets.to_string());
        let idle = tunnel.idle_ms.map(seconds);
        let mut row = vec![
            tunnel.interface.clone(),
            tunnel.remote.clone(),
            text(&tunnel.igmp),
            text(&tunnel.mld),
            tunnel.memberships.to_string(),
            text(&packets),
            text(&idle),
        ];
        row.extend(has_limits.then(|| bandwidth_column(tunnel.bandwidth.as_ref())));
        table.add_row(row);
    }
    table
}

fn routes_table(routes: &[RouteView]) -> Table {
    let header = [
        "ROUTE",
        "(S, G)",
        "TTL",
        "IIF",
        "OIF",
        "PACKETS",
        "BYTES",
        "WAITS FOR",
        "ORIGIN",
    ];
    let mut table = new_table(&header, &[5, 6]);
    for route in routes {
        let mut source = route.source.clone();
        for except in &route.except_sources {
            source += &format!(" except {except}");
        }
        let head = [
            route.name.clone(),
            format!("({source}, {}){}", route.group, translation_suffix(route)),
            route.ttl.clone(),
        ];
        let tail = [route.waiting_for.join(" "), route.origin.clone()];
        let row = |middle: [String; 4]| head.iter().cloned().chain(middle).chain(tail.clone());
        if route.paths.is_empty() {
            let to = route.to.join(" ");
            table.add_row(row([route.from.clone(), to, "-".into(), "-".into()]));
        }
        for path in &route.paths {
            table.add_row(row([
                path.iif.clone(),
                path.oif.clone(),
                path.packets.to_string(),
                path.bytes.to_string(),
            ]));
        }
    }
    table
}

/// Returns a line for each merge.
fn merges_text(routes: &[RouteView]) -> String {
    let both = |[first, second]: [u64; 2]| format!("{first} and {second}");
    let merges = routes.iter().filter_map(|route| {
        let merge = route.merge.as_ref().filter(|m| m.path == "first")?;
        let others = [
            ("late", merge.late.iter().sum()),
            ("restarts", merge.restarts),
            ("not held", merge.limited),
        ];
        let others = others.iter().filter(|(_, count)| *count > 0);
        let others: String = others.map(|(name, n)| format!(", {n} {name}")).collect();
        Some(format!(
            "\n{} merges {} and {} by {} within {} ms: skew {:.1} ms, at most {:.1} ms; lost {} of \
             {}, {} on both{others}\n",
            route.name,
            route.from,
            merge.with,
            merge.by,
            merge.window_ms,
            merge.skew_us as f64 / 1e3,
            merge.peak_skew_us as f64 / 1e3,
            both(merge.lost),
            both(merge.received),
            merge.lost_on_both,
        ))
    });
    merges.collect()
}

/// Returns the QUERIER column. `self` marks this router.
fn querier_column(interface: &InterfaceView) -> String {
    let describe = |q: &QuerierView| match &q.address {
        Some(address) if q.us => format!("{} self {address}", q.protocol),
        Some(address) => format!("{} {address}", q.protocol),
        None => format!("{} none", q.protocol),
    };
    if interface.queriers.is_empty() {
        return "-".into();
    }
    let queriers: Vec<String> = interface.queriers.iter().map(describe).collect();
    queriers.join(", ")
}

/// Returns the BANDWIDTH column, such as `6 of 10 Mbit/s, 1 refused`.
fn bandwidth_column(bandwidth: Option<&BandwidthView>) -> String {
    let Some(bandwidth) = bandwidth else {
        return "-".into();
    };
    let megabits = |bits: u64| {
        let rounded = format!("{:.3}", bits as f64 / 1e6);
        rounded
            .trim_end_matches('0')
            .trim_end_matches('.')
            .to_owned()
    };
    let refused = match bandwidth.refused {
        0 => String::new(),
        n => format!(", {n} refused"),
    };
    let (admitted, limit) = (megabits(bandwidth.admitted), megabits(bandwidth.limit));
    format!("{admitted} of {limit} Mbit/s{refused}")
}

/// Returns the translation of a route, such as ` -> (10.9.1.2, 239.1.1.1) port 5001`. `=` means
/// that an address is not translated.
fn translation_suffix(route: &RouteView) -> String {
    let Some(rewrite) = &route.rewrite else {
        return String::new();
    };
    let or_same = |text: &Option<String>| text.clone().unwrap_or_else(|| "=".into());
    let port = rewrite.port.map_or(String::new(), |p| format!(" port {p}"));
    format!(
        " -> ({}, {}){port}",
        or_same(&rewrite.source),
        or_same(&rewrite.group)
    )
}

fn interfaces_table(interfaces: &[InterfaceView]) -> Table {
    let has_limits = interfaces.iter().any(|i| i.bandwidth.is_some());
    let mut header = vec![
        "INDEX",
        "NAME",
        "STATE",
        "MTU",
        "ROLE",
        "THRESHOLD",
        "QUERIER",
        "RECEIVED",
        "SENT",
        "DROPPED",
        "REFUSED",
    ];
    header.extend(has_limits.then_some("BANDWIDTH"));
    let mut table = new_table(&header, &[0, 3, 7, 8]);
    for i in interfaces {
        let state = match (i.up, i.carrier) {
            (true, true) => "up",
            (true, false) => "no carrier",
            _ => "down",
        };
        let role = match (i.ingress, i.egress) {
            (true, true) => "in, out",
            (true, false) => "in",
            (false, true) => "out",
            (false, false) => "-",
        };
        let counts = |by_reason: &BTreeMap<String, u64>| -> Vec<String> {
            let counts = by_reason.iter();
            counts.map(|(reason, n)| format!("{reason} {n}")).collect()
        };
        let or_none = |texts: Vec<String>| match texts.is_empty() {
            true => "-".into(),
            false => texts.join(", "),
        };
        let mut dropped = counts(&i.dropped_packets);
        if i.socket_dropped_packets > 0 {
            dropped.push(format!("socket {}", i.socket_dropped_packets));
        }
        let mut row = vec![
            i.index.to_string(),
            i.name.clone(),
            state.into(),
            i.mtu.to_string(),
            role.into(),
            i.ttl_threshold.map_or("-".into(), |t| t.to_string()),
            querier_column(i),
            i.received_packets.to_string(),
            i.transmitted_packets.to_string(),
            or_none(dropped),
            or_none(counts(&i.refused_messages)),
        ];
        row.extend(has_limits.then(|| bandwidth_column(i.bandwidth.as_ref())));
        table.add_row(row);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_what_is_not_configured_say_so() {
        for reply in [
            ShowReply::Mnat(Vec::new()),
            ShowReply::Discovery(Vec::new()),
        ] {
            let text = text(&reply);
            assert!(text.ends_with('.') && !text.contains('\n'), "{text:?}");
        }
    }

    #[test]
    fn groups_of_a_joined_prefix_share_a_row() {
        let group = |group: String, role: &str| GroupView {
            interface: "eth0".into(),
            role: role.into(),
            group,
            mode: "exclude".into(),
            sources: Vec::new(),
            expires_ms: None,
            version: None,
            reporters: Vec::new(),
            last_reporter: None,
            original: Vec::new(),
            joined_for: Vec::new(),
            error: None,
        };
        let mut groups: Vec<_> = (0..256)
            .map(|n| group(format!("239.1.2.{n}"), "host"))
            .collect();
        groups.push(group("239.1.2.7".into(), "router"));
        groups.push(group("239.1.3.9".into(), "host"));
        let text = groups_table(&groups).to_string();
        assert_eq!(text.lines().count(), 4, "{text}");
        for row in [
            "host    239.1.2.0/24",
            "host    239.1.3.9 ",
            "router  239.1.2.7 ",
        ] {
            assert!(text.contains(row), "{text}");
        }
    }
}
