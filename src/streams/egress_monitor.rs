//! The monitored streams on an egress. Each forwarder of the egress owns those that it sends.

use std::sync::Arc;

use ahash::AHashMap;

use super::analyzer::{Analyzer, Point};
use super::loss_counts::LossCounts;
use super::registry::{Published, Registry};
use super::report::EgressReport;
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

    /// Forgets the streams that ended, and publishes what is known of the others.
    pub fn report(&mut self, egress: InterfaceId, name: &str, (now_ns, now_ms): (u64, u64)) {
        self.registry.retain_live(&mut self.streams);
        let registry = &self.registry;
        let published = self
            .published
            .get_or_insert_with(|| registry.publish_egress());
        let reports = self.streams.iter_mut().map(|(id, stream)| {
            Arc::new(EgressReport {
                id: *id,
                egress,
                name: name.into(),
                health: stream.analyzer.examined(now_ns).health,
                lost: stream.lost.counts(now_ms),
            })
        });
        published.replace(reports.collect());
    }
}
