//! Reports the counters of the streams of one ingress to the interfaces with a bandwidth limit.

use std::time::Instant;

use ahash::AHashMap;
use tracing::warn;

use crate::actors::log_limit::LogLimit;
use crate::actors::shared::{RouterContext, Snapshot};
use crate::forward::{entry_paths, look_up};
use crate::model::{IfName, InterfaceId};
use crate::planes::tunnel::TunnelPlane;
use crate::table::bandwidth_admission::StreamCount;
use crate::table::flows::{FlowFilter, FlowKey, FlowRecord, Flows};
use crate::table::{BandwidthLimit, Fib, Ingress};

/// Flows examined in one call of [`StreamRates::count`], so that packets do not wait.
const FLOWS: usize = 2048;

/// Shortest time between two reports, in milliseconds.
const INTERVAL_MS: u64 = 500;

/// The counters that the next report contains.
#[derive(Debug, Default)]
pub(super) struct StreamRates {
    /// The position in the flows of the interface.
    next: usize,
    counts: AHashMap<InterfaceId, Vec<StreamCount>>,
    /// Time of the last report.
    reported_ms: u64,
    log_limit: LogLimit,
}

impl StreamRates {
    /// Examines the next flows of an interface. Reports them after the last one.
    pub(super) fn count(
        &mut self,
        context: &RouterContext,
        snapshot: &Snapshot,
        (index, name): (InterfaceId, &IfName),
        flows: &Flows,
    ) {
        let fib = &snapshot.fib;
        let Some(ingress) = fib.ingresses.get(&index) else {
            return;
        };
        let egresses = fib.egresses.iter().filter_map(|egress| egress.bandwidth);
        let limits = || egresses.clone().chain(ingress.bandwidth);
        let now_ms = context.now_ms();
        if limits().next().is_none() || now_ms < self.reported_ms + INTERVAL_MS {
            return;
        }
        let (page, next) = flows.page(self.next, FLOWS, &FlowFilter::default());
        for record in page {
            for limit in limits_of(fib, ingress, &record) {
                let count = StreamCount {
                    key: record.key,
                    bytes: record.flow.bytes,
                    copies: copies(context, fib, limit.interface, record.key),
                };
                self.counts.entry(limit.interface).or_default().push(count);
            }
        }
        self.next = next.unwrap_or_default();
        if next.is_some() {
            return;
        }
        self.reported_ms = now_ms;
        let mut counts = std::mem::take(&mut self.counts);
        for limit in limits() {
            // Without streams too: time passes for those that were forgotten here.
            let counts = counts.remove(&limit.interface).unwrap_or_default();
            let table = &context.streams.bandwidth;
            for (source, group) in table.report(limit, index, &counts, now_ms) {
                let Some(suppressed) = self.log_limit.permit(Instant::now()) else {
                    continue;
                };
                let BandwidthLimit { interface, limit } = limit;
                let egress = fib.egresses.iter().find(|e| e.index == interface);
                let name = egress.map_or(name, |egress| &egress.name);
                warn!(
                    interface = %name,
                    "{name}: ({source}, {group}) would exceed the bandwidth limit of {limit}; it is \
                     dropped here until there is room{suppressed}"
                );
            }
        }
    }
}

/// Returns the limits that a flow is subject to.
fn limits_of(
    fib: &Fib,
    ingress: &Ingress,
    FlowRecord { key, flow }: &FlowRecord,
) -> Vec<BandwidthLimit> {
    let verdicts = match flow.generation == fib.generation {
        true => Ok(flow.verdicts),
        false => look_up(fib, ingress, *key),
    };
    let mut limits: Vec<BandwidthLimit> = ingress.bandwidth.into_iter().collect();
    let Ok(verdicts) = verdicts else {
        return limits;
    };
    for path in entry_paths(fib, ingress, verdicts).flat_map(|(_, paths)| paths) {
        let limit = fib.egress_of(path).and_then(|egress| egress.bandwidth);
        limits.extend(limit.filter(|limit| !limits.contains(limit)));
    }
    limits
}

/// Returns how often a packet of a stream is sent on an interface: a relay sends one copy to each
/// gateway.
fn copies(context: &RouterContext, fib: &Fib, interface: InterfaceId, key: FlowKey) -> u64 {
    let mut egresses = fib.egresses.iter();
    let is_relay =
        egresses.any(|egress| egress.index == interface && egress.plane == Some(TunnelPlane::NAME));
    if !is_relay {
        return 1;
    }
    let receivers = context.tunnels.relay(interface).receivers();
    let gateways = receivers.get(&key.1).map_or(0, |r| r.of(key.0).count());
    gateways.max(1) as u64
}
