//! A plane without a kernel: packets come from and go to channels. For tests and fuzzing.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::Plane;
use crate::model::IfIndex;
use crate::pipeline::{Batch, Capture, OutPacket, Packet, Transmit};
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
    /// Where what is sent arrives, instead of in `sent`.
    peer: Option<IfIndex>,
    /// What `send` answers next; the packets are taken when it is empty.
    refusals: VecDeque<io::ErrorKind>,
    blocked: bool,
    waiting_to_write: Option<Waker>,
    down: bool,
    missing: bool,
    /// The capture takes nothing more in.
    shut: bool,
    /// Packets that may wait in `arriving`.
    room: Option<usize>,
    lost: u64,
}

impl Wire {
    fn arrive(&mut self, packets: &mut dyn Iterator<Item = &[u8]>) -> usize {
        let mut bytes = Vec::new();
        let mut arrived = Vec::new();
        let mut count = 0;
        let waiting: usize = self.arriving.iter().map(|b| b.packets.len()).sum();
        for packet in packets {
            count += 1;
            if self.down || self.missing || self.shut {
                continue;
            }
            if self.room.is_some_and(|r| waiting + arrived.len() >= r) {
                self.lost += 1;
                continue;
            }
            let v6 = packet.first().is_some_and(|b| b >> 4 == 6);
            arrived.push(Packet {
                start: bytes.len() as u32,
                len: packet.len() as u32,
                ethertype: if v6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 },
                ..Packet::default()
            });
            bytes.extend_from_slice(packet);
        }
        if !arrived.is_empty() {
            self.arriving.push_back(Batch::from_bytes(bytes, arrived));
            wake(&mut self.waiting);
        }
        count
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

impl SimPlane {
    fn lock(&self) -> MutexGuard<'_, HashMap<IfIndex, Wire>> {
        // A test that panics while it holds the lock has failed already.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, interface: IfIndex, change: impl FnOnce(&mut Wire) -> T) -> T {
        change(self.lock().entry(interface).or_default())
    }

    /// Lets IP packets arrive on an interface as one batch.
    pub fn arrive(&self, interface: IfIndex, packets: &[&[u8]]) {
        self.with(interface, |w| w.arrive(&mut packets.iter().copied()));
    }

    /// Lets a batch arrive on an interface as it is.
    pub fn arrive_batch(&self, interface: IfIndex, batch: Batch) {
        self.with(interface, |w| {
            w.arriving.push_back(batch);
            wake(&mut w.waiting);
        });
    }

    /// Takes what was sent out of an interface so far.
    pub fn take_sent(&self, interface: IfIndex) -> Vec<Vec<u8>> {
        self.with(interface, |w| std::mem::take(&mut w.sent))
    }

    /// A cable: what is sent on one of two interfaces arrives on the other.
    pub fn connect(&self, one: IfIndex, other: IfIndex) {
        self.with(one, |w| w.peer = Some(other));
        self.with(other, |w| w.peer = Some(one));
    }

    /// Makes the next sends on an interface fail, one kind each.
    pub fn refuse(&self, interface: IfIndex, kinds: &[io::ErrorKind]) {
        self.with(interface, |w| w.refusals.extend(kinds));
    }

    /// While blocked, sends on an interface answer `WouldBlock`.
    pub fn set_blocked(&self, interface: IfIndex, blocked: bool) {
        self.with(interface, |w| {
            w.blocked = blocked;
            if !blocked {
                wake(&mut w.waiting_to_write);
            }
        });
    }

    /// Sets an interface up or down; while down nothing arrives and sends fail.
    pub fn set_up(&self, interface: IfIndex, up: bool) {
        self.with(interface, |w| w.down = !up);
    }

    /// Takes an interface away or brings it back; while away it cannot be opened.
    pub fn set_missing(&self, interface: IfIndex, missing: bool) {
        self.with(interface, |w| w.missing = missing);
    }

    /// How many packets may wait for a capture before further ones are lost.
    pub fn set_room(&self, interface: IfIndex, packets: usize) {
        self.with(interface, |w| w.room = Some(packets));
    }

    /// Whether packets wait for a capture that has not taken them out.
    pub fn has_arriving(&self, interface: IfIndex) -> bool {
        self.with(interface, |w| !w.arriving.is_empty())
    }

    fn open(&self, interface: IfIndex) -> io::Result<SimEnd> {
        if self.with(interface, |w| w.missing) {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        Ok(SimEnd {
            plane: self.clone(),
            interface,
        })
    }
}

impl Plane for SimPlane {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn capture(&self, interface: IfIndex) -> io::Result<Box<dyn Capture>> {
        let end = self.open(interface)?;
        self.with(interface, |w| w.shut = false);
        Ok(Box::new(end))
    }

    fn transmit(&self, interface: IfIndex) -> io::Result<Box<dyn Transmit>> {
        Ok(Box::new(self.open(interface)?))
    }
}

struct SimEnd {
    plane: SimPlane,
    interface: IfIndex,
}

impl Capture for SimEnd {
    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Batch>> {
        self.plane
            .with(self.interface, |w| match w.arriving.pop_front() {
                Some(batch) => Poll::Ready(Ok(batch)),
                None => {
                    w.waiting = Some(cx.waker().clone());
                    Poll::Pending
                }
            })
    }

    fn take_dropped(&mut self) -> u64 {
        self.plane
            .with(self.interface, |w| std::mem::take(&mut w.lost))
    }

    fn shut(&mut self) {
        self.plane.with(self.interface, |w| w.shut = true);
    }

    fn mode(&self) -> &'static str {
        "sim"
    }
}

impl Transmit for SimEnd {
    fn send(&mut self, packets: &mut dyn Iterator<Item = OutPacket<'_>>) -> io::Result<usize> {
        let mut packets = packets.map(|p| p.bytes).peekable();
        if packets.peek().is_none() {
            return Ok(0);
        }
        let mut state = self.plane.lock();
        let wire = state.entry(self.interface).or_default();
        if wire.down || wire.missing {
            return Err(io::Error::from_raw_os_error(libc::ENETDOWN));
        }
        if wire.blocked {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if let Some(kind) = wire.refusals.pop_front() {
            return Err(kind.into());
        }
        if let Some(peer) = wire.peer {
            return Ok(state.entry(peer).or_default().arrive(&mut packets));
        }
        let before = wire.sent.len();
        wire.sent.extend(packets.map(<[u8]>::to_vec));
        Ok(wire.sent.len() - before)
    }

    fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.plane.with(self.interface, |w| {
            if w.blocked {
                w.waiting_to_write = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(Ok(()))
        })
    }
}
