//! A plane without a kernel, for tests and fuzzing: packets come from memory and go to memory. It
//! can also forward by itself, as a plane in a kernel would: see [`SimPlane::set_forwarding`].

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::{PathCount, Plane, PlaneCounters, ReceivedCount};
use crate::forward::{Arrival, TraceStep, resolve};
use crate::model::InterfaceId;
use crate::pipeline::{Batch, OutPacket, Packet, PacketSink, PacketSource};
use crate::table::{Fib, FibDiff, StreamState};
use crate::wire::ip::set_ttl;
use crate::wire::vlan::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};

/// A simulated network. Tests insert received packets and read sent packets. Clones share it.
#[derive(Clone, Default)]
pub struct SimPlane {
    state: Arc<Mutex<SimState>>,
}

#[derive(Default)]
struct SimState {
    interfaces: HashMap<InterfaceId, SimInterface>,
    /// Whether the plane forwards by itself.
    forwarding: bool,
    fib: Arc<Fib>,
    counters: PlaneCounters,
    streams: StreamState,
}

impl SimState {
    /// Forwards a packet as the forwarding table says. Returns false, without any effect, if the
    /// packet must go through the pipeline: it is translated, guarded against loops, or dropped.
    fn forward(&mut self, interface: InterfaceId, packet: &[u8]) -> bool {
        let fib = self.fib.clone();
        let Some(ingress) = fib.ingresses.get(&interface) else {
            return false;
        };
        // The pipeline selects the active ingress.
        let selection = ingress.selection.as_ref();
        if selection.is_some_and(|selection| selection.domain.running.len() > 1) {
            return false;
        }
        let arrival = Arrival {
            fib: &fib,
            ingress,
            streams: &self.streams,
            sender: None,
            now_ms: 0,
        };
        let trace = resolve(arrival, packet);
        let is_simple = |step: &TraceStep| match step {
            TraceStep::RouteMatched { entry } => {
                let entry = &fib.entries[*entry as usize];
                entry.translation.is_none() && !entry.loop_guard
            }
            TraceStep::PathChecked { result, .. } => result.is_ok(),
            _ => false,
        };
        if trace.outcome.is_err() || !trace.steps.iter().all(is_simple) {
            return false;
        }
        for step in &trace.steps {
            let TraceStep::PathChecked { path, ttl, .. } = step else {
                continue;
            };
            let path = &fib.paths[*path as usize];
            let egress = &fib.egresses[path.egress as usize];
            let mut copy = packet.to_vec();
            set_ttl(&mut copy, *ttl);
            let link = self.interfaces.entry(egress.index).or_default();
            link.sent.push(copy);
            let bytes = packet.len() as u64;
            self.counters.paths.push(PathCount {
                route: path.route.clone(),
                iif: path.iif.clone(),
                oif: egress.name.clone(),
                packets: 1,
                bytes,
            });
            // All paths of a packet have the same ingress: it is counted with the first one.
            if std::ptr::eq(step, trace.steps.iter().find(is_path).unwrap_or(step)) {
                let iif = path.iif.clone();
                self.counters.received.push(ReceivedCount {
                    iif,
                    packets: 1,
                    bytes,
                });
            }
        }
        true
    }
}

fn is_path(step: &&TraceStep) -> bool {
    matches!(step, TraceStep::PathChecked { .. })
}

#[derive(Default)]
struct SimInterface {
    received: VecDeque<Batch>,
    waiting: Option<Waker>,
    sent: Vec<Vec<u8>>,
    /// The interface that receives what this one sends. `None`: packets go to `sent`.
    peer: Option<InterfaceId>,
    /// Errors that the next calls of `send` return.
    refusals: VecDeque<io::ErrorKind>,
    blocked: bool,
    waiting_to_write: Option<Waker>,
    down: bool,
    missing: bool,
    /// The capture is shut.
    shut: bool,
    /// Most packets that may wait in `received`.
    capacity: Option<usize>,
    dropped: u64,
}

impl SimInterface {
    fn arrive(&mut self, packets: &mut dyn Iterator<Item = &[u8]>) -> usize {
        let mut bytes = Vec::new();
        let mut arrived = Vec::new();
        let mut count = 0;
        let waiting: usize = self.received.iter().map(|b| b.packets.len()).sum();
        for packet in packets {
            count += 1;
            if self.down || self.missing || self.shut {
                continue;
            }
            if self.capacity.is_some_and(|r| waiting + arrived.len() >= r) {
                self.dropped += 1;
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
            self.received.push_back(Batch::from_bytes(bytes, arrived));
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
    fn lock(&self) -> MutexGuard<'_, SimState> {
        // A test that panics while it holds the lock has failed already.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, interface: InterfaceId, change: impl FnOnce(&mut SimInterface) -> T) -> T {
        change(self.lock().interfaces.entry(interface).or_default())
    }

    /// Makes an interface receive IP packets, as one batch.
    pub fn arrive(&self, interface: InterfaceId, packets: &[&[u8]]) {
        let mut state = self.lock();
        let mut captured = packets.to_vec();
        if state.forwarding {
            captured.retain(|packet| !state.forward(interface, packet));
        }
        let link = state.interfaces.entry(interface).or_default();
        link.arrive(&mut captured.into_iter());
    }

    /// Makes the plane forward by itself what it can: packets that are neither translated, nor
    /// guarded against loops, nor dropped.
    pub fn set_forwarding(&self, forwarding: bool) {
        self.lock().forwarding = forwarding;
    }

    /// Makes an interface receive this batch.
    pub fn arrive_batch(&self, interface: InterfaceId, batch: Batch) {
        self.with(interface, |w| {
            w.received.push_back(batch);
            wake(&mut w.waiting);
        });
    }

    /// Returns and removes the packets that were sent on an interface.
    pub fn take_sent(&self, interface: InterfaceId) -> Vec<Vec<u8>> {
        self.with(interface, |w| std::mem::take(&mut w.sent))
    }

    /// Connects two interfaces: each receives what the other sends.
    pub fn connect(&self, one: InterfaceId, other: InterfaceId) {
        self.with(one, |w| w.peer = Some(other));
        self.with(other, |w| w.peer = Some(one));
    }

    /// Makes the next sends on an interface fail, one error each.
    pub fn refuse(&self, interface: InterfaceId, kinds: &[io::ErrorKind]) {
        self.with(interface, |w| w.refusals.extend(kinds));
    }

    /// Blocks or unblocks an interface: while blocked, sends return `WouldBlock`.
    pub fn set_blocked(&self, interface: InterfaceId, blocked: bool) {
        self.with(interface, |w| {
            w.blocked = blocked;
            if !blocked {
                wake(&mut w.waiting_to_write);
            }
        });
    }

    /// Sets an interface up or down. While it is down, it receives nothing and sends fail.
    pub fn set_up(&self, interface: InterfaceId, up: bool) {
        self.with(interface, |w| w.down = !up);
    }

    /// Removes an interface or brings it back. A removed interface cannot be opened.
    pub fn set_missing(&self, interface: InterfaceId, missing: bool) {
        self.with(interface, |w| w.missing = missing);
    }

    /// Limits the packets that wait for a capture; further packets are dropped.
    pub fn set_capacity(&self, interface: InterfaceId, packets: usize) {
        self.with(interface, |w| w.capacity = Some(packets));
    }

    /// Reports whether packets wait for a capture.
    pub fn has_arriving(&self, interface: InterfaceId) -> bool {
        self.with(interface, |w| !w.received.is_empty())
    }

    fn open(&self, interface: InterfaceId) -> io::Result<SimPort> {
        if self.with(interface, |w| w.missing) {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        Ok(SimPort {
            plane: self.clone(),
            interface,
        })
    }
}

impl Plane for SimPlane {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn sync(&self, diff: &FibDiff) -> io::Result<()> {
        self.lock().fib = diff.new.clone();
        Ok(())
    }

    fn take_counters(&self) -> PlaneCounters {
        std::mem::take(&mut self.lock().counters)
    }

    fn capture(&self, interface: InterfaceId) -> io::Result<Box<dyn PacketSource>> {
        let end = self.open(interface)?;
        self.with(interface, |w| w.shut = false);
        Ok(Box::new(end))
    }

    fn transmit(&self, interface: InterfaceId) -> io::Result<Box<dyn PacketSink>> {
        Ok(Box::new(self.open(interface)?))
    }
}

struct SimPort {
    plane: SimPlane,
    interface: InterfaceId,
}

impl PacketSource for SimPort {
    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Batch>> {
        self.plane
            .with(self.interface, |w| match w.received.pop_front() {
                Some(batch) => Poll::Ready(Ok(batch)),
                None => {
                    w.waiting = Some(cx.waker().clone());
                    Poll::Pending
                }
            })
    }

    fn take_dropped(&mut self) -> u64 {
        self.plane
            .with(self.interface, |w| std::mem::take(&mut w.dropped))
    }

    fn stop_capture(&mut self) {
        self.plane.with(self.interface, |w| w.shut = true);
    }

    fn mode(&self) -> &'static str {
        "sim"
    }
}

impl PacketSink for SimPort {
    fn send(&mut self, packets: &mut dyn Iterator<Item = OutPacket<'_>>) -> io::Result<usize> {
        let mut packets = packets.map(|p| p.bytes).peekable();
        if packets.peek().is_none() {
            return Ok(0);
        }
        let mut state = self.plane.lock();
        let link = state.interfaces.entry(self.interface).or_default();
        if link.down || link.missing {
            return Err(io::Error::from_raw_os_error(libc::ENETDOWN));
        }
        if link.blocked {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if let Some(kind) = link.refusals.pop_front() {
            return Err(kind.into());
        }
        if let Some(peer) = link.peer {
            let peer = state.interfaces.entry(peer).or_default();
            return Ok(peer.arrive(&mut packets));
        }
        let before = link.sent.len();
        link.sent.extend(packets.map(<[u8]>::to_vec));
        Ok(link.sent.len() - before)
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
