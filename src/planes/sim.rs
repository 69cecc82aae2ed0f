//! A plane without a kernel: packets come from and go to channels. For tests and fuzzing.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::{Batch, Capture, Packet, Plane, Transmit};
use crate::model::IfIndex;
use crate::wire::vlan::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};

/// A network of packets that tests put in and take out. Clones share it.
#[derive(Clone, Default)]
pub struct SimPlane {
    state: Arc<Mutex<HashMap<IfIndex, Wire>>>,
}

#[derive(Default)]
struct Wire {
    arriving: VecDeque<Batch>,
    waiting: Option<Waker>,
    sent: Vec<Vec<u8>>,
    /// What `send` answers next; the packets are taken when it is empty.
    refusals: VecDeque<io::ErrorKind>,
    lost: u64,
}

impl SimPlane {
    fn lock(&self) -> MutexGuard<'_, HashMap<IfIndex, Wire>> {
        // A test that panics while it holds the lock has failed already.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets IP packets arrive on an interface as one batch.
    pub fn arrive(&self, interface: IfIndex, packets: &[&[u8]]) {
        let mut bytes = Vec::new();
        let packets = packets
            .iter()
            .map(|packet| {
                let start = bytes.len() as u32;
                bytes.extend_from_slice(packet);
                let v6 = packet.first().is_some_and(|b| b >> 4 == 6);
                Packet {
                    start,
                    len: packet.len() as u32,
                    ethertype: if v6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 },
                    ..Packet::default()
                }
            })
            .collect();
        let mut state = self.lock();
        let wire = state.entry(interface).or_default();
        wire.arriving.push_back(Batch::from_bytes(bytes, packets));
        if let Some(waker) = wire.waiting.take() {
            waker.wake();
        }
    }

    /// Takes what was sent out of an interface so far.
    pub fn take_sent(&self, interface: IfIndex) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.lock().entry(interface).or_default().sent)
    }

    /// Makes the next sends on an interface fail, one kind each.
    pub fn refuse(&self, interface: IfIndex, kinds: &[io::ErrorKind]) {
        let mut state = self.lock();
        state.entry(interface).or_default().refusals.extend(kinds);
    }

    /// Adds to what the next [`Capture::take_dropped`] of an interface reports.
    pub fn lose(&self, interface: IfIndex, packets: u64) {
        self.lock().entry(interface).or_default().lost += packets;
    }
}

impl Plane for SimPlane {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn capture(&self, interface: IfIndex) -> io::Result<Box<dyn Capture>> {
        Ok(Box::new(SimEnd {
            plane: self.clone(),
            interface,
        }))
    }

    fn transmit(&self, interface: IfIndex) -> io::Result<Box<dyn Transmit>> {
        Ok(Box::new(SimEnd {
            plane: self.clone(),
            interface,
        }))
    }
}

struct SimEnd {
    plane: SimPlane,
    interface: IfIndex,
}

impl Capture for SimEnd {
    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Batch>> {
        let mut state = self.plane.lock();
        let wire = state.entry(self.interface).or_default();
        match wire.arriving.pop_front() {
            Some(batch) => Poll::Ready(Ok(batch)),
            None => {
                wire.waiting = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn take_dropped(&mut self) -> u64 {
        let mut state = self.plane.lock();
        std::mem::take(&mut state.entry(self.interface).or_default().lost)
    }
}

impl Transmit for SimEnd {
    fn send(&mut self, packets: &mut dyn Iterator<Item = &[u8]>) -> io::Result<usize> {
        let mut state = self.plane.lock();
        let wire = state.entry(self.interface).or_default();
        if let Some(kind) = wire.refusals.pop_front() {
            return Err(kind.into());
        }
        let before = wire.sent.len();
        wire.sent.extend(packets.map(<[u8]>::to_vec));
        Ok(wire.sent.len() - before)
    }

    fn poll_writable(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
