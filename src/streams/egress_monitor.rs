//! The monitored streams on an egress. Each forwarder of the egress owns those that it sends.

use std::sync::Arc;

use ahash::AHashMap;

use super::analyzer::{Analyzer, Point};
use super::loss_counts::LossCounts;
use super::registry::{Published, Registry};
use super::report::EgressReport;
use super::report_turns::ReportTurns;
use super::stream_id::StreamId;
use crate::forward::DropReason;
use crate::model::InterfaceId;
use crate::wire::offload::GsoLayout;

/// The streams that one forwarder sends.
pub struct EgressMonitor {
    registry: Arc<Registry>,
    streams: AHashMap<StreamId, SentStream>,
    published: Option<Arc<Published<EgressReport>>>,
}

struct SentStream {
    analyzer: Analyzer,
    lost: LossCounts,
    report: Option<Arc<EgressReport>>,
    reported_ms: u64,
}

impl EgressMonitor {
    /// Returns a monitor without streams.
    pub fn new(registry: Arc<Registry>) -> Self {
        Self {
            registry,
            streams: AHashMap::new(),
            published: None,
        }
    }

    /// Returns whether no stream is monitored.
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Returns a stream; `None` if it ended, or if there are too many.
    fn stream(&mut self, id: StreamId) -> Option<&mut SentStream> {
        if !self.streams.contains_key(&id) {
            // Those that ended stay for a second.
            if self.streams.len() >= 2 * self.registry.limit() {
                return None;
            }
            let (kind, field) = self.registry.method(id)?;
            let stream = SentStream {
                analyzer: Analyzer::new(kind, field, Point::Egress),
                lost: LossCounts::default(),
                report: None,
                reported_ms: 0,
            };
            self.streams.insert(id, stream);
        }
        self.streams.get_mut(&id)
    }

    /// Examines a packet that was sent.
    pub fn observe(
        &mut self,
        id: StreamId,
        packet: &[u8],
        segments: Option<GsoLayout>,
        now_ns: u64,
    ) {
        if let Some(stream) = self.stream(id) {
            stream.analyzer.add(packet, segments, now_ns);
        }
    }

    /// Counts packets that were dropped.
    pub fn count_dropped(&mut self, id: StreamId, reason: DropReason, packets: u64, now_ms: u64) {
        if let Some(stream) = self.stream(id) {
            stream.lost.add(None, reason, packets, now_ms);
        }
    }

    /// Forgets the streams that ended, and publishes what is known of some of the others, if it is
    /// time. Called ten times a second.
    pub fn report(&mut self, egress: InterfaceId, name: &str, (now_ns, now_ms): (u64, u64)) {
        let before = self.streams.len();
        self.registry.retain_live(&mut self.streams);
        let has_ended = self.streams.len() < before;
        let mut turns = ReportTurns::new(self.streams.len());
        for (id, stream) in &mut self.streams {
            let reported_ms = stream.report.as_ref().map(|_| stream.reported_ms);
            if !turns.is_due(reported_ms, now_ms) {
                continue;
            }
            stream.reported_ms = now_ms;
            stream.report = Some(Arc::new(EgressReport {
                id: *id,
                egress,
                name: name.into(),
                health: stream.analyzer.examined(now_ns).health,
                lost: stream.lost.counts(now_ms),
            }));
        }
        if has_ended || turns.has_reported() {
            let registry = &self.registry;
            let published = self
                .published
                .get_or_insert_with(|| registry.publish_egress());
            let reports = self.streams.values().filter_map(|s| s.report.clone());
            published.replace(reports.collect());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::MonitorKind;
    use crate::streams::report_turns::REPORTS_AT_ONCE;

    /// A report of all streams at once would delay the packets of the thread.
    #[test]
    fn streams_are_reported_in_turns() {
        let registry = Arc::<Registry>::default();
        let mut monitor = EgressMonitor::new(registry.clone());
        let streams = 3 * REPORTS_AT_ONCE;
        let ids: Vec<StreamId> = (0..streams)
            .map(|_| registry.add((MonitorKind::Rate, None)).unwrap())
            .collect();
        ids.iter().for_each(|id| monitor.observe(*id, &[], None, 1));
        let egress = InterfaceId::new(1).unwrap();
        let mut reported = Vec::new();
        for turn in 1..=4 {
            monitor.report(egress, "eth1", (1, turn * 100));
            reported.push(registry.reports().1.len());
        }
        assert_eq!(reported, [64, 128, 192, 192]);
        registry.remove(ids[0]);
        monitor.report(egress, "eth1", (1, 500));
        assert_eq!(registry.reports().1.len(), streams - 1);
    }
}
