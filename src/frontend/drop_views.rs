//! `show drops`: reads what the interface actors and forwarders dropped, and renders it in the
//! background.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use actix::{MailboxError, Recipient};
use futures_util::future::join_all;

use super::background;
use crate::actors::directory::NoReceiver;
use crate::actors::messages::{DropPage, QueryDrops};
use crate::actors::shared::{RouterContext, Snapshot};
use crate::api::{DropQuery, DropView};
use crate::forward::drop_history::Dropped;
use crate::forward::{DropKey, DropReason};
use crate::table::flows::FlowKey;

/// How long an actor may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Returns the drops that match a query, those with the most packets in the last minute first. The
/// drops of an interface or egress that is removed in the meantime are missing.
///
/// # Errors
/// An actor does not answer: the list would be incomplete.
pub async fn drops(context: &RouterContext, query: DropQuery) -> Result<Vec<DropView>, NoReceiver> {
    let snapshot = context.snapshot.load_full();
    let interfaces = snapshot.interfaces.iter().map(|handle| &handle.drops);
    let pages = join_all(interfaces.chain(snapshot.egress_drops.iter()).map(read)).await;
    let pages = pages.into_iter().collect::<Result<Vec<_>, _>>()?;
    let now_ms = context.now_ms();
    let rendered =
        background::run(move || render(&snapshot, pages.into_iter().flatten(), &query, now_ms));
    rendered.await.ok_or(NoReceiver)
}

/// Returns what an actor has dropped; `None` if it ends.
pub(super) async fn read(actor: &Recipient<QueryDrops>) -> Result<Option<DropPage>, NoReceiver> {
    match actor.send(QueryDrops).timeout(PATIENCE).await {
        Ok(page) => Ok(Some(page)),
        Err(MailboxError::Closed) => Ok(None),
        Err(MailboxError::Timeout) => Err(NoReceiver),
    }
}

fn render(
    snapshot: &Arc<Snapshot>,
    pages: impl Iterator<Item = DropPage>,
    query: &DropQuery,
    now_ms: u64,
) -> Vec<DropView> {
    let egress_name = |key: &DropKey| {
        let mut egresses = snapshot.fib.egresses.iter();
        let egress = egresses.find(|egress| Some(egress.index) == key.egress)?;
        Some(egress.name.to_string())
    };
    // An egress has a forwarder on each worker, and each ingress refuses packets for it.
    let mut merged: HashMap<(String, DropReason, Option<FlowKey>), DropView> = HashMap::new();
    for page in pages {
        for dropped in page.drops {
            let interface = match dropped.key.egress {
                None => page.interface.to_string(),
                Some(_) => egress_name(&dropped.key).unwrap_or_else(|| page.interface.to_string()),
            };
            if !matches(query, &interface, dropped.key.flow) {
                continue;
            }
            let view = view(interface.clone(), &dropped, now_ms);
            let key = (interface, dropped.key.reason, dropped.key.flow);
            match merged.get_mut(&key) {
                Some(sum) => merge(sum, view),
                None => {
                    merged.insert(key, view);
                }
            }
        }
    }
    let mut views: Vec<DropView> = merged.into_values().collect();
    views.sort_by(|a, b| {
        let order = |view: &DropView| (Reverse(view.last_minute), Reverse(view.packets));
        let tie = |view: &DropView| (view.group.clone(), view.source.clone());
        order(a).cmp(&order(b)).then_with(|| tie(a).cmp(&tie(b)))
    });
    views.truncate(query.limit.unwrap_or(usize::MAX));
    views
}

fn matches(query: &DropQuery, interface: &str, flow: Option<FlowKey>) -> bool {
    let is = |wanted: Option<std::net::IpAddr>, address: Option<std::net::IpAddr>| {
        wanted.is_none() || wanted == address
    };
    query.iif.as_ref().is_none_or(|iif| iif == interface)
        && is(query.source, flow.map(|flow| flow.0))
        && is(query.group, flow.map(|flow| flow.1))
}

fn view(interface: String, dropped: &Dropped, now_ms: u64) -> DropView {
    let DropKey { flow, reason, .. } = dropped.key;
    let record = &dropped.value;
    DropView {
        interface,
        reason: reason.label().into(),
        source: flow.map(|flow| flow.0.to_string()),
        group: flow.map(|flow| flow.1.to_string()),
        last_minute: record.last_minute.packets(now_ms),
        packets: dropped.count,
        missed_at_most: dropped.missed_at_most,
        bytes: record.bytes,
        age_ms: now_ms.saturating_sub(record.began_ms),
        idle_ms: now_ms.saturating_sub(record.seen_ms),
        ttl: record.last.map(|last| last.ttl),
        size: record.last.map(|last| last.len),
        port: record.last.and_then(|last| last.port),
        meaning: reason.meaning().into(),
        remedy: reason.remedy().into(),
    }
}

/// Adds the packets of another actor. The last packet is the later one.
fn merge(sum: &mut DropView, other: DropView) {
    sum.last_minute += other.last_minute;
    sum.packets += other.packets;
    sum.missed_at_most += other.missed_at_most;
    sum.bytes += other.bytes;
    sum.age_ms = sum.age_ms.max(other.age_ms);
    if other.idle_ms < sum.idle_ms {
        sum.idle_ms = other.idle_ms;
        (sum.ttl, sum.size, sum.port) = (other.ttl, other.size, other.port);
    }
}
