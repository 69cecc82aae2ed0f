//! `mcastor show`: the state of the running router as tables or JSON.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::Table;
use ipnet::IpNet;

use super::exit::{fail, unusable};
use super::output::{paragraph, print_line};
use super::table::{new_table, table_text};
use crate::api::{
    DropQuery, DropView, FlowOrder, FlowQuery, FlowView, GroupView, InterfaceView, MnatView,
    PendingView, QuerierView, RouteView, ShowQuery, ShowReply,
};
use crate::frontend::control::{Command, client};
use crate::model::escape::{EscapeStyle, escape};
use crate::model::{Group, IfName, Source};

/// Default path of the control socket.
pub const DEFAULT_SOCKET: &str = "/run/mcastor.sock";
/// The environment variable of the settings key `control.socket`.
const SOCKET_VARIABLE: &str = "MCASTOR__CONTROL__SOCKET";

/// Returns the path of the control socket: from the environment, else [`DEFAULT_SOCKET`]. A path
/// that is only in the settings file of the router is not known here.
pub fn default_socket() -> PathBuf {
    let named = std::env::var_os(SOCKET_VARIABLE);
    named.map_or_else(|| DEFAULT_SOCKET.into(), PathBuf::from)
}

/// Arguments of `mcastor show`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  The routes and what they have forwarded:
    mcastor show routes

  The interfaces that packets arrive on, as JSON:
    mcastor show interfaces --json | jq '.[] | select(.ingress)'

  The ten flows with the most packets:
    mcastor show flows --order packets --limit 10

  What is being dropped, why, and what can be done:
    mcastor show drops

  The routes, again every second:
    mcastor show routes --watch 1")]
pub struct ShowArgs {
    /// The table to show
    pub table: ShowTable,
    #[command(flatten)]
    flows: FlowArgs,
    /// Print JSON, in the format of /api/v1 over HTTP
    #[arg(long)]
    pub json: bool,
    /// Print the table again every SECONDS (default: 2), until Ctrl-C
    #[arg(long, short, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
          value_parser = clap::value_parser!(u16).range(1..=3600))]
    watch: Option<u16>,
    /// Control socket of the running mcastor
    #[arg(long, value_name = "PATH", default_value_os_t = default_socket())]
    pub socket: PathBuf,
}

impl ShowArgs {
    /// Returns the query of the table, or an error if it does not accept one of the arguments.
    fn query(&self) -> Result<ShowQuery, String> {
        let query = ShowQuery::from(self.table);
        match (query, self.flows.first_given()) {
            (ShowQuery::Flows(_), _) => Ok(ShowQuery::Flows(self.flows.query())),
            (ShowQuery::Drops(_), _) => self.flows.drop_query(),
            (query, Some(flag)) => Err(format!(
                "`show {}` does not accept {flag}; it is an argument of `show flows`",
                query.name()
            )),
            (query, None) => Ok(query),
        }
    }
}

/// The arguments of `mcastor show flows` and `mcastor show drops`.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options of `show flows` and `show drops`")]
struct FlowArgs {
    /// Show at most N flows (default: all) or drops (default: 20)
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Only flows: sort them; --limit selects the first ones. Default: recent
    #[arg(long, value_name = "ORDER")]
    order: Option<FlowOrder>,
    /// Show only flows that arrive on this interface, or drops there
    #[arg(long, value_name = "NAME")]
    iif: Option<IfName>,
    /// Show only flows or drops from this source
    #[arg(long, value_name = "ADDRESS")]
    source: Option<Source>,
    /// Show only flows or drops to this group
    #[arg(long, value_name = "ADDRESS")]
    group: Option<Group>,
    /// Only flows: show also flows that are dropped: no route or member takes them, or their TTL is too low
    #[arg(long)]
    dropped: bool,
}

impl FlowArgs {
    /// Returns the query with these arguments.
    fn query(&self) -> FlowQuery {
        FlowQuery {
            limit: self.limit,
            order: self.order.unwrap_or_default(),
            iif: self.iif.as_ref().map(ToString::to_string),
            source: self.source.map(|source| source.addr()),
            group: self.group.map(|group| group.addr()),
            dropped: self.dropped,
        }
    }

    /// Returns the query for drops with these arguments.
    fn drop_query(&self) -> Result<ShowQuery, String> {
        let only_flows = [
            (self.order.is_some(), "--order"),
            (self.dropped, "--dropped"),
        ];
        if let Some((_, flag)) = only_flows.iter().find(|(given, _)| *given) {
            return Err(format!(
                "`show drops` does not accept {flag}; it is an argument of `show flows`"
            ));
        }
        Ok(ShowQuery::Drops(DropQuery {
            limit: Some(self.limit.unwrap_or(DROPS)),
            iif: self.iif.as_ref().map(ToString::to_string),
            source: self.source.map(|source| source.addr()),
            group: self.group.map(|group| group.addr()),
        }))
    }

    /// Returns the flag of the first argument that was given.
    fn first_given(&self) -> Option<&'static str> {
        [
            (self.limit.is_some(), "--limit"),
            (self.order.is_some(), "--order"),
            (self.iif.is_some(), "--iif"),
            (self.source.is_some(), "--source"),
            (self.group.is_some(), "--group"),
            (self.dropped, "--dropped"),
        ]
        .into_iter()
        .find_map(|(given, flag)| given.then_some(flag))
    }
}

/// Default number of rows of `show drops`.
const DROPS: usize = 20;

/// The tables of `mcastor show`.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum ShowTable {
    /// Routes, the interfaces that they use now, and the packets that they sent
    Routes,
    /// Interfaces, and the packets received, sent and dropped on them
    Interfaces,
    /// Flows that are being forwarded
    Flows,
    /// Groups joined as a host, and groups with members
    Groups,
    /// Routes and joins that wait for an interface
    Pending,
    /// MNAT mappings, and streams that wait for a mapping
    Mnat,
    /// The streams with the most dropped packets, why they are dropped, and what can be done
    Drops,
}

impl From<ShowTable> for ShowQuery {
    fn from(table: ShowTable) -> Self {
        match table {
            ShowTable::Routes => Self::Routes,
            ShowTable::Interfaces => Self::Interfaces,
            ShowTable::Flows => Self::Flows(FlowQuery::default()),
            ShowTable::Groups => Self::Groups,
            ShowTable::Pending => Self::Pending,
            ShowTable::Mnat => Self::Mnat,
            ShowTable::Drops => Self::Drops(DropQuery::default()),
        }
    }
}

/// Queries the running router and prints the reply.
pub fn run(args: &ShowArgs) -> ExitCode {
    let query = match args.query() {
        Ok(query) => query,
        Err(e) => return unusable(&e),
    };
    let answer = || -> Result<String, Box<dyn Error>> {
        let reply = client::send(&args.socket, Command::Show(query.clone()))?;
        Ok(printed(&reply, args.json)?)
    };
    let first = match answer() {
        Ok(text) => text,
        Err(e) => return fail(&e),
    };
    match args.watch {
        None => print_line(&first),
        Some(seconds) => watch(first, Duration::from_secs(seconds.into()), || {
            // mcastor may be restarted in the meantime.
            answer().unwrap_or_else(|e| escape(&e.to_string(), EscapeStyle::Lines).into_owned())
        }),
    }
    ExitCode::SUCCESS
}

/// Prints a text again and again, until standard output is closed. A terminal shows only the last
/// one.
fn watch(mut text: String, interval: Duration, next: impl Fn() -> String) {
    let mut out = io::stdout();
    // Clears the screen (ECMA-48, ED and CUP).
    let (begin, end) = match out.is_terminal() {
        true => ("\x1b[H\x1b[2J", "\n"),
        false => ("", "\n\n"),
    };
    while write!(out, "{begin}{text}{end}")
        .and_then(|()| out.flush())
        .is_ok()
    {
        std::thread::sleep(interval);
        text = next();
    }
}

/// Formats a reply as a table or as JSON. Escapes control characters.
fn printed(reply: &ShowReply, as_json: bool) -> serde_json::Result<String> {
    let (text, style) = match as_json {
        true => (json(reply)?, EscapeStyle::Json),
        false => (text(reply), EscapeStyle::Lines),
    };
    Ok(escape(&text, style).into_owned())
}

/// Formats a reply for a terminal, without escapes.
fn text(reply: &ShowReply) -> String {
    match reply {
        ShowReply::Routes(routes) => table_text(routes_table(routes)),
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
        ShowReply::Mnat(ends) => table_text(mnat_table(ends)),
        ShowReply::Drops(drops) => drops_text(drops),
        ShowReply::Done(done) => done.clone(),
        ShowReply::Explain(_) => String::new(),
    }
}

fn json(reply: &ShowReply) -> serde_json::Result<String> {
    match reply {
        ShowReply::Routes(routes) => serde_json::to_string_pretty(routes),
        ShowReply::Interfaces(interfaces) => serde_json::to_string_pretty(interfaces),
        ShowReply::Flows(flows) => serde_json::to_string_pretty(flows),
        ShowReply::Groups(groups) => serde_json::to_string_pretty(groups),
        ShowReply::Pending(pending) => serde_json::to_string_pretty(pending),
        ShowReply::Mnat(ends) => serde_json::to_string_pretty(ends),
        ShowReply::Drops(drops) => serde_json::to_string_pretty(drops),
        ShowReply::Done(done) => serde_json::to_string_pretty(done),
        ShowReply::Explain(view) => serde_json::to_string_pretty(view),
    }
}

/// Returns the table of flows.
pub(super) fn flows_table(flows: &[FlowView]) -> Table {
    let header = [
        "IIF", "(S, G)", "OIFS", "PACKETS", "BYTES", "AGE", "IDLE", "ROUTE",
    ];
    let mut table = new_table(&header, &[3, 4, 5, 6]);
    for flow in flows {
        let oif = |name: &String| match flow.yields.get(name) {
            Some(station) => format!("{name} (sent by {station})"),
            None => name.clone(),
        };
        table.add_row([
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
            format!("{} s", flow.age_ms / 1000),
            format!("{:.1} s", flow.idle_ms as f64 / 1000.0),
            flow.route.clone().unwrap_or_else(|| "-".into()),
        ]);
    }
    table
}

/// Returns the table of drops, and below it each reason with its remedy.
fn drops_text(drops: &[DropView]) -> String {
    if drops.is_empty() {
        return "No packet was dropped.".into();
    }
    let header = [
        "LAST MINUTE",
        "TOTAL",
        "INTERFACE",
        "REASON",
        "(S, G)",
        "LAST PACKET",
    ];
    let mut table = new_table(&header, &[0, 1]);
    let mut reasons: Vec<&DropView> = Vec::new();
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
        if !reasons.iter().any(|known| known.reason == drop.reason) {
            reasons.push(drop);
        }
    }
    let mut text = table_text(table) + "\n";
    if drops.iter().any(|drop| drop.missed_at_most > 0) {
        text += "\n";
        text += &paragraph(
            "+: more may have been dropped before, while others had the place.",
            0,
        );
    }
    for drop in reasons {
        text += &format!("\n{}:\n", drop.reason);
        text += &paragraph(&drop.meaning, 2);
        text += &paragraph(&format!("To do: {}", drop.remedy), 2);
    }
    text.truncate(text.trim_end().len());
    text
}

/// Returns the LAST PACKET column, such as `2.1 s ago, TTL 1, 128 bytes, port 5000`.
fn last_packet(drop: &DropView) -> String {
    let parts = [
        Some(format!("{:.1} s ago", drop.idle_ms as f64 / 1000.0)),
        drop.ttl.map(|ttl| format!("TTL {ttl}")),
        drop.size.map(|size| format!("{size} bytes")),
        drop.port.map(|port| format!("port {port}")),
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
    let seconds = |ms: Option<u64>| ms.map(|ms| format!("{:.1} s", ms as f64 / 1000.0));
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
    let header = [
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
        table.add_row([
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
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches};

    use super::*;

    fn query(words: &str) -> Result<ShowQuery, String> {
        let command = ShowArgs::augment_args(clap::Command::new("show"));
        let words = std::iter::once("show").chain(words.split(' '));
        let matches = command.try_get_matches_from(words);
        let args = matches.and_then(|matches| ShowArgs::from_arg_matches(&matches));
        args.map_err(|e| e.to_string())?.query()
    }

    /// An MNAT server chooses parts of its error text, a container engine those of a hint.
    #[test]
    fn text_and_json_of_other_programs_are_escaped() {
        let hostile = "a\u{1b}[2J\u{202e}b";
        let reply = ShowReply::Mnat(vec![MnatView {
            role: "egress".into(),
            server: "10.0.0.1:443".into(),
            up: true,
            error: Some(hostile.into()),
            upstream: "eth0".into(),
            downstream: "eth1".into(),
            mappings: Vec::new(),
        }]);
        let text = printed(&reply, false).unwrap();
        assert!(text.contains("a\\u{1b}[2J\\u{202e}b"), "{text}");
        let json = printed(&reply, true).unwrap();
        assert!(json.is_ascii() && json.contains("\\u202e"), "{json}");
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json[0]["error"], hostile);
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

    #[test]
    fn flow_arguments_become_a_flow_query() {
        assert_eq!(query("flows"), Ok(ShowQuery::Flows(FlowQuery::default())));
        assert_eq!(
            query(
                "flows --limit 10 --order bytes --iif eth0 --source 10.0.0.1 --group 225.1.2.3 --dropped --json"
            ),
            Ok(ShowQuery::Flows(FlowQuery {
                limit: Some(10),
                order: FlowOrder::Bytes,
                iif: Some("eth0".into()),
                source: Some([10, 0, 0, 1].into()),
                group: Some([225, 1, 2, 3].into()),
                dropped: true,
            }))
        );
        for (word, order) in [
            ("recent", FlowOrder::Recent),
            ("packets", FlowOrder::Packets),
            ("address", FlowOrder::Address),
        ] {
            let expected = FlowQuery {
                order,
                ..FlowQuery::default()
            };
            let flows = query(&format!("flows --order {word}"));
            assert_eq!(flows, Ok(ShowQuery::Flows(expected)));
        }
        for invalid in [
            "--order size",
            "--limit -1",
            "--source 225.1.2.3",
            "--group 10.0.0.1",
        ] {
            assert!(query(&format!("flows {invalid}")).is_err(), "{invalid}");
        }
    }

    #[test]
    fn other_tables_refuse_flow_arguments() {
        for (word, flag) in [
            ("--limit 10", "--limit"),
            ("--order recent", "--order"),
            ("--iif eth0", "--iif"),
            ("--source 10.0.0.1", "--source"),
            ("--group 225.1.2.3", "--group"),
            ("--dropped", "--dropped"),
        ] {
            let expected =
                format!("`show routes` does not accept {flag}; it is an argument of `show flows`");
            assert_eq!(query(&format!("routes {word}")), Err(expected));
        }
    }
}
