//! `explain`: what happens to a packet, and why.
//!
//! The decision comes from [`resolve`], which runs the code of the data path. So the explanation
//! cannot differ from what happens.

use std::net::IpAddr;

use etherparse::PacketBuilder;

use super::ingress_names::ingress_named;
use super::{drop_views, flow_views, query, views};
use crate::actors::RouterContext;
use crate::actors::messages::{QueryQueriers, QueryRefused, RefusedMessages};
use crate::actors::shared::Snapshot;
use crate::api::{
    DropQuery, ExplainQuery, ExplainView, ExplainedEgress, ExplainedIngress, ExplainedQuerier,
    ExplainedRule, FlowQuery, RefusedView,
};
use crate::discovery::config::DiscoveryRule;
use crate::forward::fragment::{clear_dont_fragment, fragment};
use crate::forward::{Arrival, DropReason, NotData, Trace, TraceStep, resolve};
use crate::membership::Protocol;
use crate::model::{Group, IfName, InterfaceId};
use crate::table::{Entry, EntryId, Fib, Ingress};
use query::QueryError;

/// Length of an IPv4 and of an IPv6 header, each with that of UDP.
const HEADERS: [u16; 2] = [28, 48];

/// Returns what happens to a packet.
///
/// # Errors
/// The query has no valid packet or interface, or an actor does not answer.
pub async fn explain(
    context: &RouterContext,
    packet: ExplainQuery,
) -> Result<ExplainView, QueryError> {
    let bytes = udp_packet(&packet).map_err(QueryError::Refused)?;
    let groups = query::groups(context).await?;
    let same_group = |group: &crate::api::GroupView| group.group == packet.group.to_string();
    let flows = FlowQuery {
        iif: packet.iif.clone(),
        source: Some(packet.source),
        group: Some(packet.group),
        ..FlowQuery::default()
    };
    let seen = flow_views::flows(context, flows).await;
    let drops = DropQuery {
        source: Some(packet.source),
        group: Some(packet.group),
        ..DropQuery::default()
    };
    let drops = drop_views::drops(context, drops).await;
    let snapshot = context.snapshot.load_full();
    let interfaces = explained_ingresses(context, &snapshot, &packet, &bytes);
    let mut interfaces = interfaces.map_err(QueryError::Refused)?;
    let links = query::routing_tables(context).await?.links;
    for ingress in &mut interfaces {
        let link = links.by_name(&ingress.iif);
        ingress.is_down = link.is_none_or(|link| !link.up || !link.carrier);
    }
    Ok(ExplainView {
        interfaces,
        groups: groups.into_iter().filter(same_group).collect(),
        queriers: queriers(context, packet.group).await?,
        refused: refused(context, packet.group).await?,
        seen: seen
            .map(|seen| seen.flows)
            .map_err(|_| QueryError::NoAnswer("an interface"))?,
        drops: drops.map_err(|_| QueryError::NoAnswer("an interface"))?,
        discovery: discovery_of(context, &packet),
        packet,
    })
}

/// Returns a sentence for each `[[discovery]]` that relays messages to the group and port.
fn discovery_of(context: &RouterContext, packet: &ExplainQuery) -> Vec<String> {
    let settings = context.discovery.load();
    let sentence = |rule: &DiscoveryRule| {
        let mut protocols = rule.protocols.iter();
        let protocol = protocols.find(|protocol| {
            protocol.port() == packet.port && protocol.groups().contains(&packet.group)
        })?;
        let (relays, reason) = rule.relays_answers(*protocol);
        let way = if relays {
            "through this router"
        } else {
            "directly"
        };
        Some(format!(
            "discovery \"{}\" relays {protocol} messages, whatever happens to the packet itself; \
             answers come back {way}: {reason}",
            rule.name
        ))
    };
    settings.rules.iter().filter_map(sentence).collect()
}

/// Returns the queriers of the protocol with which hosts join the group.
async fn queriers(
    context: &RouterContext,
    group: IpAddr,
) -> Result<Vec<ExplainedQuerier>, QueryError> {
    let all = query::ask(context, "membership", QueryQueriers).await?;
    let protocol = match group.is_ipv4() {
        true => Protocol::Igmp,
        false => Protocol::Mld,
    };
    let snapshot = context.snapshot.load_full();
    let names = |index: &InterfaceId| snapshot.names.get(index).map(ToString::to_string);
    let mut queriers = Vec::new();
    for (index, of_interface) in &all {
        let of_protocol = of_interface.iter().filter(|(of, _)| *of == protocol);
        let of_protocol: Vec<_> = of_protocol.copied().collect();
        queriers.extend(
            views::queriers(&of_protocol)
                .into_iter()
                .filter_map(|querier| {
                    let interface = names(index)?;
                    Some(ExplainedQuerier { interface, querier })
                }),
        );
    }
    Ok(queriers)
}

/// Returns the refused reports and leaves for the group.
async fn refused(context: &RouterContext, group: IpAddr) -> Result<Vec<RefusedView>, QueryError> {
    let Ok(group) = Group::new(group) else {
        return Ok(Vec::new());
    };
    let refused = query::ask(context, "membership", QueryRefused { group }).await?;
    let view = |refused: RefusedMessages| RefusedView {
        interface: refused.interface.to_string(),
        reason: refused.reason.into(),
        meaning: refused.meaning.into(),
        remedy: refused.remedy.map(Into::into),
        messages: refused.messages,
        last_sender: refused.last_sender.map(|sender| sender.to_string()),
        idle_ms: u64::try_from(refused.last.as_millis()).unwrap_or(u64::MAX),
    };
    Ok(refused.into_iter().map(view).collect())
}

/// Builds the packet, without DF.
fn udp_packet(packet: &ExplainQuery) -> Result<Vec<u8>, String> {
    let (builder, headers) = match (packet.source, packet.group) {
        (IpAddr::V4(source), IpAddr::V4(group)) => (
            PacketBuilder::ipv4(source.octets(), group.octets(), packet.ttl),
            HEADERS[0],
        ),
        (IpAddr::V6(source), IpAddr::V6(group)) => (
            PacketBuilder::ipv6(source.octets(), group.octets(), packet.ttl),
            HEADERS[1],
        ),
        (source, group) => {
            return Err(format!("{source} and {group} have different IP versions"));
        }
    };
    if !packet.group.is_multicast() {
        return Err(format!(
            "{} is not a multicast group; groups are 224.0.0.0/4 and ff00::/8",
            packet.group
        ));
    }
    let Some(payload) = packet.size.checked_sub(headers) else {
        return Err(format!("a UDP packet has at least {headers} bytes here"));
    };
    let mut bytes = Vec::with_capacity(packet.size.into());
    let payload = vec![0; payload.into()];
    builder
        .udp(packet.port, packet.port)
        .write(&mut bytes, &payload)
        .map_err(|e| format!("not a packet: {e}"))?;
    // Most senders of UDP permit routers to fragment.
    clear_dont_fragment(&mut bytes, 1);
    Ok(bytes)
}

fn explained_ingresses(
    context: &RouterContext,
    snapshot: &Snapshot,
    packet: &ExplainQuery,
    bytes: &[u8],
) -> Result<Vec<ExplainedIngress>, String> {
    let fib = &*snapshot.fib;
    let (streams, now_ms) = (&context.streams, context.now_ms());
    let mut ingresses: Vec<(&IfName, InterfaceId, &Ingress)> = fib
        .ingresses
        .iter()
        .filter(|(_, ingress)| !ingress.watch_only)
        .filter_map(|(index, ingress)| Some((snapshot.names.get(index)?, *index, &**ingress)))
        .collect();
    ingresses.sort_by_key(|(name, ..)| *name);
    if let Some(iif) = &packet.iif {
        let index = ingress_named(snapshot, iif)?;
        ingresses.retain(|(_, id, _)| *id == index);
    }
    let explained = ingresses.into_iter().map(|(name, id, ingress)| {
        let arrival = Arrival {
            fib,
            ingress,
            streams,
            sender: None,
            now_ms,
        };
        let selection = ingress.selection.as_ref();
        let active = selection.and_then(|selection| {
            let key = (packet.source, packet.group);
            let stream = streams.ingresses.key(&selection.domain, key);
            streams.ingresses.active(stream, now_ms)
        });
        let active = active.and_then(|active| snapshot.names.get(&active));
        let key = (packet.source, packet.group);
        let forwarding = context.flow_planes().forwarding(ingress.plane, id, key);
        ExplainedIngress {
            plane: forwarding.as_ref().map(|f| f.plane.into()),
            declined: forwarding.and_then(|f| f.declined),
            active_ingress: active.map(ToString::to_string),
            ..explained_ingress(fib, name, &resolve(arrival, bytes), bytes)
        }
    });
    Ok(explained.collect())
}

fn explained_ingress(fib: &Fib, name: &IfName, trace: &Trace, bytes: &[u8]) -> ExplainedIngress {
    let mut rules = Vec::new();
    let mut egresses = Vec::new();
    let mut matched: Vec<&Entry> = Vec::new();
    for step in &trace.steps {
        match *step {
            TraceStep::SourceExcepted { entry } => {
                rules.extend(rule(
                    fib,
                    entry,
                    "excepted",
                    Some(DropReason::SourceExcepted),
                ));
            }
            TraceStep::RouteMatched { entry } | TraceStep::ProxyMatched { entry } => {
                rules.extend(rule(fib, entry, "matched", None));
                matched.extend(fib.entries.get(entry as usize));
            }
            TraceStep::ProxyRefused { entry, reason }
            | TraceStep::EntryRejected { entry, reason } => {
                rules.extend(rule(fib, entry, "refused", Some(reason)));
            }
            TraceStep::PathChecked { path, ttl, result } => {
                let (Some(path), Some(egress)) =
                    (fib.paths.get(path as usize), fib.egress_of(path))
                else {
                    continue;
                };
                let entry = matched.iter().find(|entry| entry.route == path.route);
                let translation = entry.and_then(|entry| entry.translation.as_ref());
                let result = result.and_then(|()| match translation {
                    Some(_) => Ok(1),
                    None => packets_on_link(bytes, egress.mtu),
                });
                egresses.push(ExplainedEgress {
                    oif: egress.name.to_string(),
                    rule: path.route.to_string(),
                    reason: result.err().map(|reason| reason.label().into()),
                    meaning: result.err().map(|reason| reason.meaning().into()),
                    ttl,
                    rewrite: translation.map(views::rewrite),
                    mtu: egress.mtu,
                    packets: result.unwrap_or(0),
                });
            }
        }
    }
    let reason = match trace.outcome {
        Ok(()) => None,
        Err(NotData::Dropped(reason)) => Some(reason),
        Err(NotData::Membership) => Some(DropReason::LinkOnly),
    };
    ExplainedIngress {
        iif: name.to_string(),
        is_down: false,
        plane: None,
        declined: None,
        active_ingress: None,
        forwarded: egresses.iter().any(|egress| egress.reason.is_none()),
        reason: reason.map(|reason| reason.label().into()),
        meaning: reason.map(|reason| reason.meaning().into()),
        rules,
        egresses,
    }
}

fn rule(
    fib: &Fib,
    entry: EntryId,
    result: &str,
    reason: Option<DropReason>,
) -> Option<ExplainedRule> {
    let entry = fib.entries.get(entry as usize)?;
    Some(ExplainedRule {
        name: entry.route.to_string(),
        result: result.into(),
        reason: reason.map(|reason| reason.label().into()),
        meaning: reason.map(|reason| reason.meaning().into()),
        ttl: entry.ttl.to_string(),
        loop_guard: entry.loop_guard,
        merge: entry.merge.as_ref().map(|merge| {
            let window_ms = merge.window.as_millis();
            format!("with {} by {} within {window_ms} ms", merge.with, merge.by)
        }),
    })
}

/// Returns the number of packets that leave on a link for one that is not translated.
pub(super) fn packets_on_link(bytes: &[u8], mtu: u32) -> Result<usize, DropReason> {
    let mtu = mtu as usize;
    if bytes.len() <= mtu {
        return Ok(1);
    }
    let mut packets = 0;
    fragment(bytes, mtu, &mut Vec::new(), |_| packets += 1)?;
    Ok(packets)
}
