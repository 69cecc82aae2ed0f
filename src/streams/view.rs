//! The reports of the data threads about a stream, joined into one view.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::report::{EgressReport, IngressReport};
use super::stream_id::StreamId;
use super::verdict::{Judged, SOCKET, judge};
use crate::api::StreamView;
use crate::api::streams::{StreamEgressView, StreamHealth, StreamLoss};
use crate::model::InterfaceId;

/// What a view needs besides the reports.
pub struct ViewContext<'a> {
    /// The time, by the clock of the flows.
    pub now_ms: u64,
    /// How long a stream may be without packets before it is silent.
    pub silent_after_ms: u64,
    /// Returns the name of an egress.
    pub egress_name: &'a dyn Fn(InterfaceId) -> Option<String>,
}

/// Adds counts by reason.
fn add(counts: &mut BTreeMap<String, StreamLoss>, reason: &str, count: StreamLoss) {
    let sum = counts.entry(reason.into()).or_default();
    sum.total += count.total;
    sum.minute += count.minute;
}

/// Returns the view of each stream.
pub fn views(
    ingresses: &[Arc<IngressReport>],
    egresses: &[Arc<EgressReport>],
    context: &ViewContext<'_>,
) -> Vec<StreamView> {
    let mut by_stream: HashMap<StreamId, Vec<&EgressReport>> = HashMap::new();
    for report in egresses {
        by_stream.entry(report.id).or_default().push(report);
    }
    let view = |report: &Arc<IngressReport>| {
        let egresses = by_stream.remove(&report.id).unwrap_or_default();
        view(report, &egresses, context)
    };
    ingresses.iter().map(view).collect()
}

fn view(
    report: &IngressReport,
    egresses: &[&EgressReport],
    context: &ViewContext<'_>,
) -> StreamView {
    // By name, because an egress may have a forwarder on each worker.
    let mut by_name: BTreeMap<String, StreamEgressView> = BTreeMap::new();
    let empty = |name: &str| StreamEgressView {
        interface: name.into(),
        lost_here: BTreeMap::new(),
        health: StreamHealth::default(),
    };
    for sent in egresses {
        let view = by_name
            .entry(sent.name.clone())
            .or_insert_with(|| empty(&sent.name));
        // The forwarder that sends most of it knows it best.
        if sent.health.packets >= view.health.packets {
            let others = view.health.packets;
            view.health = sent.health.clone();
            view.health.packets += others;
        } else {
            view.health.packets += sent.health.packets;
        }
        for (_, reason, count) in &sent.lost {
            add(&mut view.lost_here, reason.label(), *count);
        }
    }
    let mut lost_here = BTreeMap::new();
    for (egress, reason, count) in &report.lost {
        match egress.and_then(|egress| (context.egress_name)(egress)) {
            Some(name) => {
                let view = by_name.entry(name.clone()).or_insert_with(|| empty(&name));
                add(&mut view.lost_here, reason.label(), *count);
            }
            None => add(&mut lost_here, reason.label(), *count),
        }
    }
    for (reason, count) in by_name.values().flat_map(|view| &view.lost_here) {
        add(&mut lost_here, reason, *count);
    }
    // Losses that the kernel may have caused on this host are not blamed on others.
    let mut lost_before = report.examined.lost;
    if let Some(before) = &mut lost_before {
        let socket = StreamLoss {
            total: before.total.min(report.socket_lost.total),
            minute: before.minute.min(report.socket_lost.minute),
        };
        before.total -= socket.total;
        before.minute -= socket.minute;
        if socket.total > 0 {
            add(&mut lost_here, SOCKET, socket);
        }
    }
    let egresses: Vec<StreamEgressView> = by_name.into_values().collect();
    let (verdict, explanation) = judge(&Judged {
        idle_ms: report.idle_ms,
        silent_after_ms: context.silent_after_ms,
        lost_before,
        lost_here: &lost_here,
        egresses: &egresses,
        faults_minute: report.examined.faults_minute,
        health: &report.examined.health,
    });
    StreamView {
        iif: report.names.iif.clone(),
        source: report.key.0.to_string(),
        group: report.key.1.to_string(),
        route: report.names.route.clone(),
        monitor: report.monitor.label().into(),
        kind: report.examined.kind.into(),
        verdict,
        explanation,
        age_ms: context.now_ms.saturating_sub(report.began_ms),
        idle_ms: report.idle_ms,
        ingress: report.examined.health.clone(),
        lost_before,
        lost_here,
        egresses,
    }
}
