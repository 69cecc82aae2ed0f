//! `mcastor explain`: what happens to a packet, and why.

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;

use super::change::SocketArgs;
use super::exit::{fail, usage_error};
use super::group_and_port::GroupAndPort;
use super::output::{paragraph, print_line};
use super::show_tables::{drops_table, flows_table, groups_table};
use super::table::table_text;
use crate::api::explain::{default_port, default_size, default_ttl};
use crate::api::{
    DropQuery, DropView, ExplainQuery, ExplainView, ExplainedEgress, ExplainedIngress,
    ExplainedQuerier, ShowQuery, ShowReply,
};
use crate::forward::DropReason;
use crate::frontend::control::{Command, client};
use crate::model::IfName;
use crate::model::escape::{EscapeStyle, escape};

/// Exit code if no interface forwards the packet.
const NOT_FORWARDED: u8 = 3;

/// Smallest packet that can be explained: IPv6 and UDP headers.
const MIN_SIZE: u16 = 48;

/// Arguments of `mcastor explain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The running mcastor decides as for a packet that arrives, without any change of its state.

Examples:
  Does a stream reach the receivers, and on which interfaces?
    mcastor explain 10.0.0.10 239.1.2.3

  The same for a packet that arrives on eth0 with TTL 1:
    mcastor explain --iif eth0 --ttl 1 10.0.0.10 239.1.2.3:5000

  Why was the last packet dropped, and the last one without a route?
    mcastor explain --last
    mcastor explain --last no_route

Exit codes: 0 forwarded, 1 failure, 2 invalid arguments, 3 not forwarded.")]
pub struct ExplainArgs {
    /// Source of the packet
    #[arg(required_unless_present = "last", value_parser = packet_source)]
    source: Option<IpAddr>,
    /// Group, and the UDP port if it matters
    #[arg(value_name = "GROUP[:PORT]", required_unless_present = "last")]
    group: Option<GroupAndPort>,
    /// Explain the last packet that was dropped, for any reason or for this one
    #[arg(long, value_name = "REASON", num_args = 0..=1, conflicts_with_all = ["source", "iif", "size", "ttl"],
          value_parser = PossibleValuesParser::new(DropReason::ALL.iter().map(|r| r.label())))]
    last: Option<Option<String>>,
    /// Interface on which the packet arrives [default: each that receives packets]
    #[arg(long, value_name = "NAME")]
    iif: Option<IfName>,
    /// Size of the packet in bytes, with its IP header
    #[arg(long, value_name = "BYTES", default_value_t = default_size())]
    size: u16,
    /// TTL or hop limit with which it arrives
    #[arg(long, default_value_t = default_ttl())]
    ttl: u8,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Parses the source of a packet. Names the order if a group stands in its place.
fn packet_source(text: &str) -> Result<IpAddr, String> {
    let order = "the order is SOURCE GROUP[:PORT]";
    match text.parse::<GroupAndPort>() {
        Ok(GroupAndPort { group, .. }) if group.is_multicast() => Err(format!(
            "a multicast group, where the source belongs; {order}"
        )),
        _ => text.parse().map_err(|_| {
            format!("not an address; the source is the address of the sender, and {order}")
        }),
    }
}

/// Asks the running router, and prints the answer.
pub fn run(args: ExplainArgs) -> ExitCode {
    let query = match (args.source, args.group) {
        (Some(source), Some(GroupAndPort { group, port })) => ExplainQuery {
            iif: args.iif.map(|iif| iif.to_string()),
            source,
            group,
            port: port.unwrap_or_else(default_port),
            size: args.size,
            ttl: args.ttl,
        },
        _ => match last_dropped(&args.socket, args.last.flatten().as_deref()) {
            Ok(query) => query,
            Err(e) => return fail(&e),
        },
    };
    if query.source.is_ipv4() != query.group.is_ipv4() {
        return usage_error(&format!(
            "source {} and group {} have different IP versions",
            query.source, query.group
        ));
    }
    let view = match client::send(&args.socket.socket, Command::Explain(query)) {
        Ok(ShowReply::Explain(view)) => view,
        Ok(_) => return fail(&"the running mcastor answered something else"),
        Err(e) => return fail(&e),
    };
    let (text, style) = match args.json {
        true => match serde_json::to_string_pretty(&view) {
            Ok(text) => (text, EscapeStyle::Json),
            Err(e) => return fail(&e),
        },
        false => (text(&view), EscapeStyle::Lines),
    };
    print_line(&escape(&text, style));
    match view.interfaces.iter().any(|ingress| ingress.forwarded) {
        true => ExitCode::SUCCESS,
        false => NOT_FORWARDED.into(),
    }
}

/// Returns the last packet that was dropped, for `reason` if there is one.
fn last_dropped(socket: &SocketArgs, reason: Option<&str>) -> Result<ExplainQuery, Box<dyn Error>> {
    let query = Command::Show(ShowQuery::Drops(DropQuery::default()));
    let ShowReply::Drops(mut drops) = client::send(&socket.socket, query)? else {
        return Err("the running mcastor answered something else".into());
    };
    drops.retain(|drop| reason.is_none_or(|reason| drop.reason == reason));
    drops.sort_by_key(|drop| drop.idle_ms);
    let packet = drops.iter().find_map(packet_of);
    packet.ok_or_else(|| match reason {
        Some(reason) => format!("no packet with an address was dropped as {reason}").into(),
        None => "no packet with an address was dropped".into(),
    })
}

/// Returns the last packet of a drop, if it has the addresses of a multicast packet.
pub(super) fn packet_of(drop: &DropView) -> Option<ExplainQuery> {
    let group: IpAddr = drop.group.as_ref()?.parse().ok()?;
    Some(ExplainQuery {
        iif: None,
        source: drop.source.as_ref()?.parse().ok()?,
        group: Some(group).filter(IpAddr::is_multicast)?,
        port: drop.port.unwrap_or_else(default_port),
        size: u16::try_from(drop.size?).ok()?.max(MIN_SIZE),
        ttl: drop.ttl?,
    })
}

/// Returns the answer as text, without escapes.
pub(super) fn text(view: &ExplainView) -> String {
    let packet = &view.packet;
    let mut text = format!(
        "{} to {}, {} bytes, TTL {}\n",
        packet.source,
        SocketAddr::new(packet.group, packet.port),
        packet.size,
        packet.ttl
    );
    if view.interfaces.is_empty() {
        text += "\nNo interface receives packets: there is no route or proxy, or all of them wait\n\
                 for interfaces; see `mcastor show pending`.\n";
    }
    for sentence in &view.discovery {
        text += &format!("\n{sentence}.\n");
    }
    for ingress in &view.interfaces {
        text += "\n";
        text += &ingress_text(ingress);
    }
    text += "\n";
    text += &match view.groups.is_empty() {
        true => "No host has joined the group here, and mcastor has not joined it.\n".to_owned(),
        false => table_text(groups_table(&view.groups)) + "\n\n",
    };
    text += &joins_text(view);
    if view.seen.is_empty() && view.drops.is_empty() {
        text += &format!(
            "No packet from {} to {} was seen.",
            packet.source, packet.group
        );
    }
    if !view.seen.is_empty() {
        text += &table_text(flows_table(&view.seen));
    }
    if !view.drops.is_empty() {
        text += if view.seen.is_empty() { "" } else { "\n\n" };
        text += &table_text(drops_table(&view.drops));
    }
    text
}

/// Returns the queriers, and the refused reports.
fn joins_text(view: &ExplainView) -> String {
    let mut text = String::new();
    for ExplainedQuerier { interface, querier } in &view.queriers {
        text += &match &querier.address {
            Some(address) if querier.us => {
                format!("The querier on {interface} is this router, {address}.\n")
            }
            Some(address) => format!("The querier on {interface} is {address}.\n"),
            None => format!("There is no querier on {interface}.\n"),
        };
    }
    for refused in &view.refused {
        let sender = refused.last_sender.as_deref();
        text += &paragraph(
            &format!(
                "{}: reports that name the group were refused as {}: {}, the last {:.1} s ago \
                 from {}. {} {}",
                refused.interface,
                refused.reason,
                refused.messages,
                refused.idle_ms as f64 / 1000.0,
                sender.unwrap_or("an unreadable sender"),
                refused.meaning,
                refused.remedy.as_deref().unwrap_or_default(),
            ),
            0,
        );
    }
    if !text.is_empty() {
        text += "\n";
    }
    text
}

fn ingress_text(ingress: &ExplainedIngress) -> String {
    let result = match (&ingress.reason, ingress.forwarded) {
        (Some(reason), _) => format!("dropped as {reason}"),
        (None, true) => "forwarded".into(),
        (None, false) => "dropped at each egress".into(),
    };
    let mut text = format!("{}: {result}\n", ingress.iif);
    text += &meaning(&ingress.meaning, 2);
    if ingress.is_down {
        text += "  It is down or has no carrier: no packet arrives on it now.\n";
    }
    if let Some(active) = ingress
        .active_ingress
        .as_ref()
        .filter(|a| **a != ingress.iif)
    {
        text += &format!("  {active} is the active ingress of this source and group\n");
    }
    if ingress.plane.as_deref() == Some("ebpf") {
        text += "  the kernel forwards the flow now (plane ebpf)\n";
    }
    if let Some(why) = ingress.declined.as_ref().filter(|_| ingress.forwarded) {
        text += &paragraph(
            &format!("this process forwards it, not the kernel: {why}"),
            2,
        );
    }
    for rule in &ingress.rules {
        text += &match &rule.reason {
            Some(reason) => format!("  {} {} it as {reason}\n", rule.name, verb(&rule.result)),
            None => {
                let guard = match rule.loop_guard {
                    true => "; a packet that returns within half a second is dropped as loop",
                    false => "",
                };
                let policy = match rule.ttl.as_str() {
                    "" => String::new(),
                    ttl => format!(" (TTL: {ttl})"),
                };
                let merge = rule.merge.as_ref().map_or(String::new(), |merge| {
                    format!("; merges it {merge}, so that each packet leaves once")
                });
                format!("  {} matches it{policy}{guard}{merge}\n", rule.name)
            }
        };
        // The reason of the packet is that of its last rule.
        if rule.meaning != ingress.meaning {
            text += &meaning(&rule.meaning, 4);
        }
    }
    for egress in &ingress.egresses {
        text += &egress_text(egress);
    }
    text
}

fn verb(result: &str) -> &'static str {
    match result {
        "excepted" => "excepts",
        _ => "refuses",
    }
}

fn egress_text(egress: &ExplainedEgress) -> String {
    let mut text = format!("  -> {}: ", egress.oif);
    if let Some(reason) = &egress.reason {
        return text + &format!("dropped as {reason}\n") + &meaning(&egress.meaning, 6);
    }
    text += &format!("leaves with TTL {}", egress.ttl);
    if egress.packets > 1 {
        text += &format!(
            " in {} fragments, for an MTU of {}",
            egress.packets, egress.mtu
        );
    }
    if let Some(rewrite) = &egress.rewrite {
        let parts = [
            rewrite
                .source
                .as_ref()
                .map(|source| format!("source {source}")),
            rewrite.group.as_ref().map(|group| format!("group {group}")),
            rewrite.port.map(|port| format!("port {port}")),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        text += &format!(", translated to {}", parts.join(", "));
    }
    text + "\n"
}

/// Returns the meaning of a reason as a paragraph, indented below the line with the reason.
fn meaning(meaning: &Option<String>, indent: usize) -> String {
    meaning
        .as_deref()
        .map(|meaning| paragraph(meaning, indent))
        .unwrap_or_default()
}
