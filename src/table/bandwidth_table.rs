//! The streams of all interfaces with a bandwidth limit, which the interface actors share.

use std::sync::{Arc, Mutex};

use ahash::AHashMap;
use arc_swap::ArcSwap;

use super::bandwidth_admission::{
    AdmittedStreams, BandwidthAdmission, BandwidthUse, StreamAdmission, StreamCount, trial_bytes,
};
use super::flow::FlowKey;
use crate::model::{Bandwidth, InterfaceId};

/// The limit of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BandwidthLimit {
    /// The interface.
    pub interface: InterfaceId,
    /// The limit.
    pub limit: Bandwidth,
}

/// An interface with a limit.
struct LimitedInterface {
    /// Locked a few times a second, and never waited for.
    admission: Mutex<BandwidthAdmission>,
    streams: ArcSwap<AdmittedStreams>,
}

/// The interfaces with a limit. An interface is added with its first report.
#[derive(Default)]
pub struct BandwidthTable {
    interfaces: ArcSwap<AHashMap<InterfaceId, Arc<LimitedInterface>>>,
}

impl BandwidthTable {
    /// Takes the counters of the streams that arrive on `ingress` for an interface with a limit.
    /// Returns the streams that are refused now and were not before.
    ///
    /// Does nothing if another ingress reports at the same time; the next report makes up for it.
    pub fn report(
        &self,
        BandwidthLimit { interface, limit }: BandwidthLimit,
        ingress: InterfaceId,
        counts: &[StreamCount],
        now_ms: u64,
    ) -> Vec<FlowKey> {
        let known = self.interfaces.load().get(&interface).cloned();
        let limited = known.unwrap_or_else(|| {
            let new = Arc::new(LimitedInterface {
                admission: Mutex::new(BandwidthAdmission::new(limit)),
                streams: ArcSwap::default(),
            });
            self.interfaces.rcu(|interfaces| {
                let mut interfaces = AHashMap::clone(interfaces);
                interfaces.entry(interface).or_insert_with(|| new.clone());
                interfaces
            });
            // Another actor may have added it first.
            let added = self.interfaces.load().get(&interface).cloned();
            added.unwrap_or(new)
        });
        let Ok(mut admission) = limited.admission.try_lock() else {
            return Vec::new();
        };
        admission.set_limit(limit);
        let refused = admission.report(now_ms, ingress, counts);
        let streams = admission.admitted_streams();
        limited.streams.store(Arc::new(streams));
        refused
    }

    /// Returns whether an interface with a limit forwards a stream, of which `bytes` have arrived.
    pub fn forwards(
        &self,
        BandwidthLimit { interface, limit }: BandwidthLimit,
        key: &FlowKey,
        bytes: impl FnOnce() -> u64,
    ) -> bool {
        match self.interfaces.load().get(&interface) {
            Some(limited) => limited.streams.load().forwards(key, bytes),
            None => bytes() <= trial_bytes(limit.bits()),
        }
    }

    /// Returns the streams that an interface refuses.
    pub fn refused(&self, interface: InterfaceId) -> Vec<FlowKey> {
        let limited = self.interfaces.load().get(&interface).cloned();
        limited.map_or_else(Vec::new, |limited| {
            limited.streams.load().refused().copied().collect()
        })
    }

    /// Returns what is known of a stream on an interface; `None` if it has not been measured.
    pub fn admission(&self, interface: InterfaceId, key: &FlowKey) -> Option<StreamAdmission> {
        let limited = self.interfaces.load().get(&interface).cloned();
        limited?.streams.load().of(key)
    }

    /// Returns the sums of an interface; `None` before its first report.
    pub fn usage(&self, interface: InterfaceId) -> Option<BandwidthUse> {
        let limited = self.interfaces.load().get(&interface).cloned()?;
        Some(limited.streams.load().usage())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_measured_and_refused_streams_are_listed() {
        let table = BandwidthTable::default();
        let id = |n| InterfaceId::new(n).unwrap();
        let limit = BandwidthLimit {
            interface: id(1),
            limit: "1Mbit".parse().unwrap(),
        };
        let key = |n: u8| ([10, 0, 0, n].into(), [232, 1, 1, 1].into());
        let count = |n, bytes| StreamCount {
            key: key(n),
            bytes,
            copies: 1,
        };
        assert!(table.forwards(limit, &key(1), || 12_500));
        assert!(!table.forwards(limit, &key(1), || 12_501));
        for (now_ms, bytes, refused) in [
            (0, 0, vec![]),
            (500, 40_000, vec![key(2)]),
            (1_000, 80_000, vec![]),
        ] {
            let counts = [count(1, bytes), count(2, bytes)];
            let found = table.report(limit, id(2), &counts, now_ms);
            assert_eq!(found, refused, "{now_ms}");
        }
        assert!(table.forwards(limit, &key(1), || 1 << 40));
        assert!(!table.forwards(limit, &key(2), || 0));
        assert_eq!(table.refused(id(1)), [key(2)]);
        assert_eq!(
            table.admission(id(1), &key(1)),
            Some(StreamAdmission::Admitted)
        );
        assert_eq!(table.usage(id(1)).unwrap().admitted.bits(), 640_000);
        assert!(table.refused(id(3)).is_empty() && table.usage(id(3)).is_none());
    }
}
