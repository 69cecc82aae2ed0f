//! The monitored streams of an ingress. Its interface actor owns them.

use std::sync::Arc;

use ahash::AHashMap;

use super::admission::MonitorAdmission;
use super::analyzer::{Analyzer, Point};
use super::loss_counts::LossCounts;
use super::registry::{Method, Published, Registry};
use super::report::{IngressNames, IngressReport};
use super::report_turns::ReportTurns;
use super::stream_id::StreamId;
use crate::api::streams::StreamLoss;
use crate::forward::DropReason;
use crate::forward::drop_history::LastMinute;
use crate::model::InterfaceId;
use crate::table::flows::FlowKey;
use crate::wire::offload::GsoLayout;

/// A packet, and when it arrived.
#[derive(Debug, Clone, Copy)]
pub struct ObservedPacket<'p> {
    /// The IP packet.
    pub bytes: &'p [u8],
    /// How it divides into datagrams, if it is a GSO packet.
    pub segments: Option<GsoLayout>,
    /// Time of arrival, in nanoseconds of `CLOCK_REALTIME`.
    pub received_ns: u64,
    /// Time in milliseconds of a monotonic clock.
    pub now_ms: u64,
}

/// The monitored streams of one ingress.
pub struct StreamMonitor {
    registry: Arc<Registry>,
    streams: AHashMap<FlowKey, MonitoredStream>,
    keys: AHashMap<StreamId, FlowKey>,
    admission: MonitorAdmission,
    published: Option<Arc<Published<IngressReport>>>,
    /// Packets of any stream that the kernel dropped.
    socket_lost: u64,
    socket_minute: LastMinute,
}

/// A stream, and what is known of it.
struct MonitoredStream {
    id: StreamId,
    method: Method,
    analyzer: Analyzer,
    lost: LossCounts,
    /// Time of the first and the last packet.
    began_ms: u64,
    seen_ms: u64,
    /// [`StreamMonitor::socket_lost`] when the stream began.
    socket_lost_before: u64,
    report: Option<Arc<IngressReport>>,
    reported_ms: u64,
}

impl StreamMonitor {
    /// Returns a monitor without streams.
    pub fn new(registry: Arc<Registry>) -> Self {
        Self {
            registry,
            streams: AHashMap::new(),
            keys: AHashMap::new(),
            admission: MonitorAdmission::default(),
            published: None,
            socket_lost: 0,
            socket_minute: LastMinute::default(),
        }
    }

    /// Returns whether no stream is monitored.
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Returns whether a stream is monitored.
    pub fn contains(&self, key: &FlowKey) -> bool {
        self.streams.contains_key(key)
    }

    /// Examines a packet of a stream. Returns the identity of the stream; `None` if the limit
    /// leaves it out.
    pub fn observe(
        &mut self,
        key: FlowKey,
        method: Method,
        packet: ObservedPacket<'_>,
    ) -> Option<StreamId> {
        let stream = match self.streams.get_mut(&key) {
            Some(stream) if stream.method == method => stream,
            Some(_) => {
                self.remove(&key);
                self.begin(key, method, packet.now_ms)?
            }
            None => self.begin(key, method, packet.now_ms)?,
        };
        stream.seen_ms = packet.now_ms;
        stream
            .analyzer
            .add(packet.bytes, packet.segments, packet.received_ns);
        Some(stream.id)
    }

    fn begin(&mut self, key: FlowKey, method: Method, now_ms: u64) -> Option<&mut MonitoredStream> {
        let is_permitted = self.admission.permits(&key);
        let added = is_permitted.then(|| self.registry.add(method)).flatten();
        let Some(id) = added else {
            if self.admission.leave_out(key) {
                self.registry.count_left_out();
            }
            return None;
        };
        self.admission.begin(&key);
        self.keys.insert(id, key);
        let stream = MonitoredStream {
            id,
            method,
            analyzer: Analyzer::new(method.0, method.1, Point::Ingress),
            lost: LossCounts::default(),
            began_ms: now_ms,
            seen_ms: now_ms,
            socket_lost_before: self.socket_lost,
            report: None,
            reported_ms: 0,
        };
        Some(self.streams.entry(key).or_insert(stream))
    }

    /// Counts packets of a stream that were dropped, on their way to `egress` if they had one.
    pub fn count_dropped(
        &mut self,
        id: StreamId,
        egress: Option<InterfaceId>,
        reason: DropReason,
        packets: u64,
        now_ms: u64,
    ) {
        let key = self.keys.get(&id);
        if let Some(stream) = key.and_then(|key| self.streams.get_mut(key)) {
            stream.lost.add(egress, reason, packets, now_ms);
        }
    }

    /// Counts packets that the kernel dropped before they could be read.
    pub fn count_socket_lost(&mut self, packets: u64, now_ms: u64) {
        self.socket_lost += packets;
        self.socket_minute.add(packets, now_ms);
    }

    fn remove(&mut self, key: &FlowKey) {
        if let Some(stream) = self.streams.remove(key) {
            self.keys.remove(&stream.id);
            self.registry.remove(stream.id);
        }
    }

    /// Ends streams that had no packet for `idle_ms`, and those that are not `wanted` any more. At
    /// the limit, streams that have not lasted end earlier. Called once a second.
    pub fn expire(&mut self, now_ms: u64, idle_ms: u64, wanted: impl Fn(&FlowKey) -> bool) {
        let is_full = self.registry.live() >= self.registry.limit();
        self.admission.next_period(is_full);
        let is_idle = |stream: &MonitoredStream| {
            let lasted_ms = stream.seen_ms.saturating_sub(stream.began_ms);
            let limit_ms = self.admission.idle_limit_ms(lasted_ms, idle_ms);
            now_ms.saturating_sub(stream.seen_ms) >= limit_ms
        };
        let ended: Vec<FlowKey> = self
            .streams
            .iter()
            .filter(|(key, stream)| is_idle(stream) || !wanted(key))
            .map(|(key, _)| *key)
            .collect();
        ended.iter().for_each(|key| self.remove(key));
        if !ended.is_empty() {
            self.publish();
        }
    }

    /// Publishes what is known of some streams, if it is time; called ten times a second. `names` returns what the actor knows
    /// of a stream.
    pub fn report(
        &mut self,
        interface: InterfaceId,
        (now_ns, now_ms): (u64, u64),
        names: impl Fn(&FlowKey) -> IngressNames,
    ) {
        let mut turns = ReportTurns::new(self.streams.len());
        for (key, stream) in &mut self.streams {
            let reported_ms = stream.report.as_ref().map(|_| stream.reported_ms);
            if !turns.is_due(reported_ms, now_ms) {
                continue;
            }
            let total = self.socket_lost - stream.socket_lost_before;
            let minute = self.socket_minute.packets(now_ms);
            stream.reported_ms = now_ms;
            stream.report = Some(Arc::new(IngressReport {
                id: stream.id,
                key: *key,
                interface,
                names: names(key),
                monitor: stream.method.0,
                began_ms: stream.began_ms,
                idle_ms: now_ms.saturating_sub(stream.seen_ms),
                examined: stream.analyzer.examined(now_ns),
                lost: stream.lost.counts(now_ms),
                socket_lost: StreamLoss {
                    total,
                    minute: minute.min(total),
                },
            }));
        }
        if turns.has_reported() {
            self.publish();
        }
    }

    fn publish(&mut self) {
        let registry = &self.registry;
        let published = self
            .published
            .get_or_insert_with(|| registry.publish_ingress());
        let reports = self.streams.values().filter_map(|s| s.report.clone());
        published.replace(reports.collect());
    }
}

impl Drop for StreamMonitor {
    fn drop(&mut self) {
        let registry = &self.registry;
        self.keys.keys().for_each(|id| registry.remove(*id));
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::model::MonitorKind;

    const LIMIT: usize = 100;

    fn monitor() -> StreamMonitor {
        let registry = Registry::default();
        registry.set_limit(LIMIT);
        StreamMonitor::new(Arc::new(registry))
    }

    fn key(source: u32) -> FlowKey {
        let source = Ipv4Addr::from(0x0a00_0000 + source);
        (source.into(), [225, 1, 2, 3].into())
    }

    fn send(monitor: &mut StreamMonitor, source: u32, now_ms: u64) {
        let packet = ObservedPacket {
            bytes: &[0x45, 0, 0, 20],
            segments: None,
            received_ns: now_ms * 1_000_000,
            now_ms,
        };
        monitor.observe(key(source), (MonitorKind::Rate, None), packet);
    }

    /// A host sends single packets from 1,000 forged sources a second. A stream that began before,
    /// one that pauses, and one that begins during the flood are monitored.
    #[test]
    fn flood_of_single_packets_displaces_no_stream_that_lasts() {
        const BEFORE: u32 = 1;
        const PAUSED: u32 = 2;
        const DURING: u32 = 3;
        let mut monitor = monitor();
        let mut forged = 1000;
        for now_ms in 0..60_000u64 {
            if now_ms % 10 == 0 {
                send(&mut monitor, BEFORE, now_ms);
            }
            if now_ms % 10 == 0 && !(15_000..50_000).contains(&now_ms) {
                send(&mut monitor, PAUSED, now_ms);
            }
            if now_ms > 30_000 && now_ms % 100 == 0 {
                send(&mut monitor, DURING, now_ms);
            }
            if now_ms > 20_000 {
                send(&mut monitor, forged, now_ms);
                forged += 1;
            }
            if now_ms % 1000 == 0 {
                monitor.expire(now_ms, 300_000, |_| true);
            }
            assert!(monitor.contains(&key(BEFORE)) && monitor.contains(&key(PAUSED)));
            // It waits until it was left out in an earlier period.
            assert!(now_ms < 34_000 || monitor.contains(&key(DURING)));
        }
        assert!(monitor.streams.len() <= LIMIT);
        let left_out = monitor.registry.take_left_out();
        assert!(left_out > 30_000, "{left_out}");
    }
}
