//! Holds back the data path of a process that replaces another one, until that one has sent its
//! last packet.
//!
//! The gate is open in every other process.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use ahash::{AHashMap, AHashSet};
use tokio::sync::watch;

use crate::model::InterfaceId;
use crate::pipeline::{CaptureHandle, CapturePosition};

/// The gate.
pub struct ForwardingGate {
    open: watch::Sender<bool>,
    state: Mutex<GateState>,
    /// Whether the former process still exists.
    has_predecessor: AtomicBool,
    /// When the gate was opened, by the clock of captured packets.
    opened_ns: AtomicU64,
    /// Packets that were captured before that, and forwarded after it.
    waiting_packets: AtomicU64,
}

#[derive(Default)]
struct GateState {
    captures: AHashMap<InterfaceId, CaptureHandle>,
    positions: AHashMap<InterfaceId, CapturePosition>,
    prepared: AHashSet<InterfaceId>,
    failure: Option<String>,
}

impl Default for ForwardingGate {
    /// Returns an open gate.
    fn default() -> Self {
        Self {
            open: watch::Sender::new(true),
            state: Mutex::default(),
            has_predecessor: AtomicBool::new(false),
            opened_ns: AtomicU64::new(0),
            waiting_packets: AtomicU64::new(0),
        }
    }
}

impl ForwardingGate {
    fn state(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the gate. `captures` are those of the former process.
    pub fn close(&self, captures: AHashMap<InterfaceId, CaptureHandle>) {
        self.state().captures = captures;
        self.has_predecessor.store(true, Ordering::Release);
        self.open.send_replace(false);
    }

    /// Opens the gate: the former process has read its captures up to these positions.
    pub fn open(&self, positions: AHashMap<InterfaceId, CapturePosition>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_nanos() as u64;
        self.opened_ns.store(now, Ordering::Release);
        let unused = {
            let mut state = self.state();
            state.positions = positions;
            std::mem::take(&mut state.captures)
        };
        self.open.send_replace(true);
        drop(unused);
    }

    /// Returns whether this process may forward.
    pub fn is_open(&self) -> bool {
        *self.open.borrow()
    }

    /// Waits until this process may forward.
    pub fn opened(&self) -> impl Future<Output = ()> + use<> {
        let mut open = self.open.subscribe();
        async move {
            // Fails if the process ends.
            let _ = open.wait_for(|open| *open).await;
        }
    }

    /// Returns the capture of an interface that the former process had, once.
    pub(super) fn take_capture(&self, index: InterfaceId) -> Option<CaptureHandle> {
        self.state().captures.remove(&index)
    }

    /// Returns whether the former process had a capture of an interface that is not taken yet.
    pub(super) fn has_capture(&self, index: InterfaceId) -> bool {
        self.state().captures.contains_key(&index)
    }

    /// Returns where the former process has stopped to read an interface; `None` if its capture had
    /// failed.
    pub(super) fn position(&self, index: InterfaceId) -> Option<CapturePosition> {
        self.state().positions.get(&index).copied()
    }

    /// Notes that the actor of an interface waits for the gate.
    pub(super) fn set_prepared(&self, index: InterfaceId) {
        self.state().prepared.insert(index);
    }

    /// Returns whether the actors of all these interfaces wait for the gate.
    ///
    /// # Errors
    /// One of them cannot continue a capture.
    pub fn are_prepared(
        &self,
        mut indexes: impl Iterator<Item = InterfaceId>,
    ) -> Result<bool, String> {
        let state = self.state();
        match &state.failure {
            Some(failure) => Err(failure.clone()),
            None => Ok(indexes.all(|index| state.prepared.contains(&index))),
        }
    }

    /// Notes why this process cannot take over. Does nothing if the gate is open.
    pub(super) fn fail(&self, failure: String) {
        if !self.is_open() {
            self.state().failure.get_or_insert(failure);
        }
    }

    /// Returns whether the former process still exists.
    pub fn has_predecessor(&self) -> bool {
        self.has_predecessor.load(Ordering::Acquire)
    }

    /// Notes that the former process has ended.
    pub fn end_predecessor(&self) {
        self.has_predecessor.store(false, Ordering::Release);
    }

    /// Counts packets that arrived at these times as packets that waited for the gate. Returns
    /// whether more of them may follow.
    pub(super) fn count_waiting(&self, received_ns: impl Iterator<Item = u64>) -> bool {
        let opened_ns = self.opened_ns.load(Ordering::Acquire);
        let (mut waited, mut total) = (0, 0);
        for received_ns in received_ns {
            waited += u64::from(received_ns < opened_ns);
            total += 1;
        }
        self.waiting_packets.fetch_add(waited, Ordering::AcqRel);
        waited == total
    }

    /// Returns the number of packets that waited for the gate and were forwarded.
    pub fn waiting_packets(&self) -> u64 {
        self.waiting_packets.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(n: u32) -> InterfaceId {
        InterfaceId::new(n).unwrap()
    }

    #[tokio::test]
    async fn gate_opens_with_the_positions_of_the_former_process() {
        let gate = ForwardingGate::default();
        assert!(gate.is_open() && !gate.has_predecessor());
        gate.close(AHashMap::new());
        let opened = gate.opened();
        assert!(!gate.is_open() && gate.has_predecessor());
        assert_eq!(gate.are_prepared([index(1)].into_iter()), Ok(false));
        gate.set_prepared(index(1));
        assert_eq!(gate.are_prepared([index(1)].into_iter()), Ok(true));
        gate.open([(index(1), CapturePosition(7))].into_iter().collect());
        opened.await;
        assert_eq!(gate.position(index(1)), Some(CapturePosition(7)));
        assert_eq!(gate.position(index(2)), None);
        assert!(gate.count_waiting([1, 2].into_iter()));
        assert!(!gate.count_waiting([3, u64::MAX].into_iter()));
        assert_eq!(gate.waiting_packets(), 3);
        gate.end_predecessor();
        assert!(!gate.has_predecessor());
    }

    #[test]
    fn first_failure_is_reported() {
        let gate = ForwardingGate::default();
        gate.close(AHashMap::new());
        gate.fail("one".into());
        gate.fail("two".into());
        assert_eq!(gate.are_prepared([].into_iter()), Err("one".into()));
    }
}
