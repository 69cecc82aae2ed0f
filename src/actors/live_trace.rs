//! The trace of live packets that a client requests: one at a time, for as long as its client asks
//! for packets.

use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;

use crate::pipeline::packet_trace::{ActiveTrace, TraceFilter, TracedPacket};

/// A trace ends when its client asks for no packets for this time, in milliseconds.
const LEASE_MS: u64 = 3_000;

/// The packets that a client receives at once.
pub struct TracedPackets {
    /// The packets, in the order in which each interface received them.
    pub packets: Vec<TracedPacket>,
    /// Packets that matched, but were not recorded because too many waited.
    pub missed: u64,
}

/// Another client traces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceBusy;

/// The current trace, if there is one.
#[derive(Default)]
pub struct LiveTrace {
    active: ArcSwapOption<ActiveTrace>,
    session: Mutex<Option<Session>>,
}

/// The client's end of the current trace.
struct Session {
    /// The number by which the client names it.
    id: u64,
    trace: Arc<ActiveTrace>,
    packets: Receiver<TracedPacket>,
}

impl LiveTrace {
    /// Returns the trace that is active at `now_ms`. Called for each batch of packets: takes no lock.
    pub fn active(&self, now_ms: u64) -> Option<Arc<ActiveTrace>> {
        let active = self.active.load();
        let trace = active.as_ref()?;
        (now_ms < trace.until_ms()).then(|| trace.clone())
    }

    /// Returns the packets of the trace `id` that have been recorded, and continues it. If it does
    /// not exist or has another filter, starts it.
    ///
    /// # Errors
    /// Another trace is active.
    pub fn poll(
        &self,
        id: u64,
        filter: TraceFilter,
        now_ms: u64,
    ) -> Result<TracedPackets, TraceBusy> {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let until_ms = now_ms + LEASE_MS;
        match &*session {
            Some(current) if current.id == id && *current.trace.filter() == filter => {
                current.trace.extend(until_ms);
                return Ok(TracedPackets {
                    packets: current.packets.try_iter().collect(),
                    missed: current.trace.take_missed(),
                });
            }
            Some(current) if current.id != id && now_ms < current.trace.until_ms() => {
                return Err(TraceBusy);
            }
            _ => {}
        }
        let (trace, packets) = ActiveTrace::new(filter, until_ms);
        self.active.store(Some(trace.clone()));
        *session = Some(Session { id, trace, packets });
        Ok(TracedPackets {
            packets: Vec::new(),
            missed: 0,
        })
    }

    /// Ends the trace `id`, if it exists.
    pub fn end(&self, id: u64) {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if session.as_ref().is_some_and(|session| session.id == id) {
            self.active.store(None);
            *session = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(group: &str) -> TraceFilter {
        TraceFilter {
            group: group.parse().unwrap(),
            port: None,
            source: None,
            ingress: None,
        }
    }

    #[test]
    fn trace_ends_without_its_client() {
        let live = LiveTrace::default();
        assert!(live.active(0).is_none());
        assert!(live.poll(1, filter("225.0.0.1"), 0).is_ok());
        assert!(live.active(LEASE_MS - 1).is_some());
        assert!(live.poll(1, filter("225.0.0.1"), 1_000).is_ok());
        assert!(live.active(LEASE_MS + 999).is_some());
        assert!(live.active(LEASE_MS + 1_000).is_none());
    }

    #[test]
    fn second_client_waits_for_the_first() {
        let live = LiveTrace::default();
        assert!(live.poll(1, filter("225.0.0.1"), 0).is_ok());
        assert_eq!(live.poll(2, filter("225.0.0.1"), 1).err(), Some(TraceBusy));
        live.end(2);
        assert!(live.active(1).is_some());
        live.end(1);
        assert!(live.active(1).is_none());
        assert!(live.poll(2, filter("225.0.0.1"), 1).is_ok());
        // The lease of the second client has ended.
        assert!(live.poll(3, filter("225.0.0.1"), 1 + LEASE_MS).is_ok());
    }

    #[test]
    fn other_filter_starts_again() {
        let live = LiveTrace::default();
        assert!(live.poll(1, filter("225.0.0.1"), 0).is_ok());
        assert!(live.poll(1, filter("225.0.0.2"), 0).is_ok());
        assert_eq!(*live.active(0).unwrap().filter(), filter("225.0.0.2"));
    }
}
