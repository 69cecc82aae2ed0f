//! Which streams an interface with a bandwidth limit forwards, by measured rates.
//!
//! A new (S,G) is forwarded at once as long as its first bytes take little of what is free: about
//! what would pass in `TRIAL_MS`. Then it is measured, and it is admitted if its rate fits beside
//! those of the admitted streams. Otherwise it is refused, until there is room. An admitted stream
//! stays admitted, whatever comes later and whatever its rate becomes.
//!
//! The rates come from counters that exist: those of the flows. A packet costs a look into
//! [`AdmittedStreams`], and only on interfaces with a limit.

use std::collections::BTreeMap;

use ahash::AHashMap;

use super::flow::FlowKey;
use crate::model::{Bandwidth, InterfaceId};

/// Time for which a new stream may use what is free before it is measured, in milliseconds.
const TRIAL_MS: u64 = 100;

/// Shortest time over which a rate is measured, in milliseconds.
const MEASURE_MS: u64 = 400;

/// Time without packets after which the counter of another ingress of the stream is read, in
/// milliseconds.
const MAX_PAUSE_MS: u64 = 800;

/// Time without packets after which an admitted stream is forgotten, and its rate is free again, in
/// milliseconds.
const SILENCE_MS: u64 = 3_000;

/// The same for a refused stream, in milliseconds. A gateway does not receive it meanwhile.
const REFUSAL_MS: u64 = 60_000;

/// Most streams of one interface. Further ones are measured when others have ended.
pub const MAX_STREAMS: usize = 65_536;

/// What is known of a stream on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamAdmission {
    /// It is forwarded.
    Admitted,
    /// It would exceed the limit.
    Refused,
}

/// The streams of an interface with a limit, for the data path.
#[derive(Debug, Clone, Default)]
pub struct AdmittedStreams {
    streams: AHashMap<FlowKey, StreamAdmission>,
    /// Bytes that a stream which is not measured yet may have.
    trial_bytes: u64,
    /// The limit, and the bits per second of the admitted streams: reserved, and last measured.
    limit: u64,
    admitted: u64,
    measured: u64,
}

/// Returns the bytes that a new stream may have before it is measured, if `free` bits per second
/// are free.
pub(super) fn trial_bytes(free: u64) -> u64 {
    free / 8 * TRIAL_MS / 1000
}

impl AdmittedStreams {
    /// Returns whether a stream is forwarded, of which `bytes` have arrived.
    pub fn forwards(&self, key: &FlowKey, bytes: impl FnOnce() -> u64) -> bool {
        match self.streams.get(key) {
            Some(StreamAdmission::Admitted) => true,
            Some(StreamAdmission::Refused) => false,
            None => bytes() <= self.trial_bytes,
        }
    }

    /// Returns what is known of a stream; `None` if it has not been measured.
    pub fn of(&self, key: &FlowKey) -> Option<StreamAdmission> {
        self.streams.get(key).copied()
    }

    /// Returns the refused streams.
    pub fn refused(&self) -> impl Iterator<Item = &FlowKey> {
        let refused =
            |(_, admission): &(_, &StreamAdmission)| **admission == StreamAdmission::Refused;
        self.streams.iter().filter(refused).map(|(key, _)| key)
    }

    /// Returns the sums.
    pub fn usage(&self) -> BandwidthUse {
        BandwidthUse {
            limit: Bandwidth::from_bits(self.limit),
            admitted: Bandwidth::from_bits(self.admitted),
            measured: Bandwidth::from_bits(self.measured),
            refused: self.refused().count(),
        }
    }
}

/// The counter of a stream at an ingress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamCount {
    /// The stream.
    pub key: FlowKey,
    /// Its IP bytes since its flow began.
    pub bytes: u64,
    /// How often each packet is sent, such as once for each gateway of a relay.
    pub copies: u64,
}

/// Sums of an interface with a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BandwidthUse {
    /// The limit.
    pub limit: Bandwidth,
    /// What is reserved for the admitted streams. It follows a falling rate slowly, so that a pause
    /// makes no room.
    pub admitted: Bandwidth,
    /// The rates of the admitted streams together, as last measured.
    pub measured: Bandwidth,
    /// The number of refused streams.
    pub refused: usize,
}

#[derive(Debug)]
struct MeasuredStream {
    /// `None` until it was measured.
    admission: Option<StreamAdmission>,
    /// The counters of other ingresses, of which those on standby do not count.
    others: Vec<(InterfaceId, u64)>,
    /// The ingress whose counter is read, the value of the counter, and when it had it.
    ingress: InterfaceId,
    bytes: u64,
    counted_ms: u64,
    /// When the counter last grew.
    active_ms: u64,
    /// Bits per second that it needs; `None` until it was measured.
    rate: Option<u64>,
    /// Bits per second at the last measurement.
    measured: u64,
    /// Position among the streams of the interface, by age.
    age: u64,
}

/// The streams of one interface with a limit.
#[derive(Debug)]
pub struct BandwidthAdmission {
    limit: Bandwidth,
    streams: BTreeMap<FlowKey, MeasuredStream>,
    seen: u64,
}

impl BandwidthAdmission {
    /// Returns an interface without streams.
    pub fn new(limit: Bandwidth) -> Self {
        Self {
            limit,
            streams: BTreeMap::new(),
            seen: 0,
        }
    }

    /// Changes the limit. Admitted streams stay.
    pub fn set_limit(&mut self, limit: Bandwidth) {
        self.limit = limit;
    }

    /// Takes the counters of all streams that arrive on an ingress for this interface, and decides.
    /// Returns the streams that are refused now and were not before.
    pub fn report(
        &mut self,
        now_ms: u64,
        ingress: InterfaceId,
        counts: &[StreamCount],
    ) -> Vec<FlowKey> {
        for count in counts {
            self.count(now_ms, ingress, count);
        }
        self.forget(now_ms);
        self.decide(now_ms)
    }

    fn count(&mut self, now_ms: u64, ingress: InterfaceId, count: &StreamCount) {
        let StreamCount { key, bytes, copies } = *count;
        let Some(stream) = self.streams.get_mut(&key) else {
            if self.streams.len() < MAX_STREAMS {
                self.seen += 1;
                let new = MeasuredStream {
                    admission: None,
                    others: Vec::new(),
                    ingress,
                    bytes,
                    counted_ms: now_ms,
                    active_ms: now_ms,
                    rate: None,
                    measured: 0,
                    age: self.seen,
                };
                self.streams.insert(key, new);
            }
            return;
        };
        let elapsed = now_ms.saturating_sub(stream.counted_ms);
        if stream.ingress != ingress {
            let known = stream
                .others
                .iter_mut()
                .find(|(other, _)| *other == ingress);
            let grows = match known {
                Some((_, before)) => std::mem::replace(before, bytes) < bytes,
                None => {
                    stream.others.push((ingress, bytes));
                    false
                }
            };
            // The stream moved.
            if grows && now_ms.saturating_sub(stream.active_ms) >= MAX_PAUSE_MS {
                stream.others.retain(|(other, _)| *other != ingress);
                stream.others.push((stream.ingress, stream.bytes));
                (stream.ingress, stream.bytes) = (ingress, bytes);
                (stream.counted_ms, stream.active_ms) = (now_ms, now_ms);
            }
            return;
        }
        if elapsed < MEASURE_MS {
            return;
        }
        // A flow that began anew counts from zero.
        let grown = bytes.checked_sub(stream.bytes).unwrap_or(bytes);
        (stream.bytes, stream.counted_ms) = (bytes, now_ms);
        if grown == 0 {
            // Its rate stays reserved until it is forgotten.
            stream.measured = 0;
            return;
        }
        stream.active_ms = now_ms;
        let bits = u128::from(grown) * 8_000 * u128::from(copies);
        let measured = u64::try_from(bits / u128::from(elapsed)).unwrap_or(u64::MAX);
        stream.measured = measured;
        stream.rate = Some(match (stream.rate, stream.admission) {
            // A pause or a stall makes no room for another stream.
            (Some(before), Some(StreamAdmission::Admitted)) if measured < before => {
                before - (before - measured) / 4
            }
            _ => measured,
        });
    }

    /// Forgets silent streams.
    fn forget(&mut self, now_ms: u64) {
        self.streams.retain(|_, stream| {
            let max = match stream.admission {
                Some(StreamAdmission::Refused) => REFUSAL_MS,
                _ => SILENCE_MS,
            };
            now_ms.saturating_sub(stream.active_ms) < max
        });
    }

    /// Admits measured streams that fit, the oldest first, and refuses the others. Returns those that
    /// were not refused before.
    fn decide(&mut self, now_ms: u64) -> Vec<FlowKey> {
        let mut admitted = self.admitted();
        let limit = self.limit.bits();
        let open = self.streams.iter_mut();
        let mut open: Vec<(&FlowKey, &mut MeasuredStream)> = open
            .filter(|(_, s)| s.admission != Some(StreamAdmission::Admitted) && s.rate.is_some())
            .collect();
        open.sort_unstable_by_key(|(_, stream)| stream.age);
        let mut refused = Vec::new();
        for (key, stream) in open {
            let rate = stream.rate.unwrap_or_default();
            let sum = admitted.saturating_add(rate);
            if sum <= limit {
                admitted = sum;
                stream.admission = Some(StreamAdmission::Admitted);
                // A gateway has to request it again.
                stream.active_ms = now_ms;
            } else if stream.admission.replace(StreamAdmission::Refused).is_none() {
                refused.push(*key);
            }
        }
        refused
    }

    /// Returns the bits per second that are reserved for the admitted streams.
    fn admitted(&self) -> u64 {
        self.sum_admitted(|stream| stream.rate.unwrap_or_default())
    }

    /// Returns the sum of a number over the admitted streams.
    fn sum_admitted(&self, number: impl Fn(&MeasuredStream) -> u64) -> u64 {
        let admitted = self.streams.values();
        let admitted = admitted.filter(|s| s.admission == Some(StreamAdmission::Admitted));
        admitted.map(number).fold(0, u64::saturating_add)
    }

    /// Returns what the data path needs.
    pub fn admitted_streams(&self) -> AdmittedStreams {
        let (limit, admitted) = (self.limit.bits(), self.admitted());
        let streams = self.streams.iter();
        AdmittedStreams {
            streams: streams
                .filter_map(|(key, stream)| Some((*key, stream.admission?)))
                .collect(),
            trial_bytes: trial_bytes(limit.saturating_sub(admitted)),
            limit,
            admitted,
            measured: self.sum_admitted(|stream| stream.measured),
        }
    }
}

#[cfg(test)]
mod tests;
