//! Records what the switch does with packets, for `mcastor trace`. Without a trace the switch runs
//! with [`NoPacketTrace`], which compiles to nothing.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::{Batch, Packet};
use crate::forward::{DropReason, NotData};
use crate::model::{GroupPrefix, InterfaceId};
use crate::table::{Fib, PathId};
use crate::wire::ip_summary::IpSummary;
use crate::wire::offload::Offload;
use crate::wire::vlan;

/// Most bytes of a packet that a trace keeps: a jumbo frame. Of a GSO packet, which is larger, it
/// keeps the beginning.
pub const MAX_TRACED_BYTES: usize = 9216;

/// Most packets that wait for the client of a trace. At [`MAX_TRACED_BYTES`] they take 9.4 MB.
pub const MAX_WAITING_PACKETS: usize = 1024;

/// Receives what the switch does with each captured packet: `begin`, any number of `path` and
/// `dropped`, then `end`.
pub trait PacketTrace {
    /// A packet is about to be switched.
    fn begin(&mut self, batch: &Batch, packet: &Packet);

    /// The packet is sent on a path with `ttl`, or refused there. `sent` returns the header of the
    /// translated packet.
    fn path(
        &mut self,
        path: PathId,
        ttl: u8,
        result: Result<(), DropReason>,
        sent: impl FnOnce() -> Option<IpSummary>,
    );

    /// The packet, or a datagram of a GSO packet, was dropped after a route or proxy took it.
    fn dropped(&mut self, reason: DropReason);

    /// The packet was switched.
    fn end(&mut self, outcome: Result<(), NotData>);
}

/// Records nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoPacketTrace;

impl PacketTrace for NoPacketTrace {
    #[inline(always)]
    fn begin(&mut self, _: &Batch, _: &Packet) {}

    #[inline(always)]
    fn path(
        &mut self,
        _: PathId,
        _: u8,
        _: Result<(), DropReason>,
        _: impl FnOnce() -> Option<IpSummary>,
    ) {
    }

    #[inline(always)]
    fn dropped(&mut self, _: DropReason) {}

    #[inline(always)]
    fn end(&mut self, _: Result<(), NotData>) {}
}

/// The packets to trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceFilter {
    /// Their groups.
    pub group: GroupPrefix,
    /// Their UDP destination port; `None` traces all ports and protocols.
    pub port: Option<u16>,
    /// Their source; `None` traces all sources.
    pub source: Option<IpAddr>,
    /// The interface on which they arrive; `None` traces all interfaces.
    pub ingress: Option<InterfaceId>,
}

impl TraceFilter {
    fn matches(&self, ingress: InterfaceId, packet: &IpSummary) -> bool {
        self.group.net().contains(&packet.destination)
            && self.port.is_none_or(|port| packet.port == Some(port))
            && self.source.is_none_or(|source| packet.source == source)
            && self.ingress.is_none_or(|wanted| wanted == ingress)
    }
}

/// A packet, and what the switch did with it.
#[derive(Debug, Clone)]
pub struct TracedPacket {
    /// The interface on which it arrived.
    pub ingress: InterfaceId,
    /// Time of reception by the kernel, in nanoseconds of `CLOCK_REALTIME`.
    pub received_ns: u64,
    /// Its header as it arrived.
    pub header: IpSummary,
    /// The packet as it arrived, from the IP header on: at most [`MAX_TRACED_BYTES`]. The checksum
    /// may be incomplete if the sender's kernel left it to hardware.
    pub bytes: Vec<u8>,
    /// Its length from the IP header on, in bytes.
    pub len: u32,
    /// Whether a route or proxy takes it.
    pub outcome: Result<(), NotData>,
    /// Why it was dropped after a route or proxy took it.
    pub dropped: Vec<DropReason>,
    /// The paths that it takes, or that refuse it.
    pub paths: Vec<TracedPath>,
    /// The table that the paths belong to.
    pub fib: Arc<Fib>,
}

/// A path that a traced packet takes, or that refuses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TracedPath {
    /// The path.
    pub path: PathId,
    /// TTL or hop limit that the packet leaves with.
    pub ttl: u8,
    /// Why the packet does not take it.
    pub result: Result<(), DropReason>,
    /// The header of the packet that leaves, if it is a translated one.
    pub translated: Option<IpSummary>,
}

/// A running trace: what interface actors record, and until when.
#[derive(Debug)]
pub struct ActiveTrace {
    filter: TraceFilter,
    packets: SyncSender<TracedPacket>,
    missed: AtomicU64,
    until_ms: AtomicU64,
}

impl ActiveTrace {
    /// Creates a trace that ends at `until_ms`, and the receiver of its packets.
    pub fn new(filter: TraceFilter, until_ms: u64) -> (Arc<Self>, Receiver<TracedPacket>) {
        let (packets, receiver) = sync_channel(MAX_WAITING_PACKETS);
        let trace = Self {
            filter,
            packets,
            missed: AtomicU64::new(0),
            until_ms: AtomicU64::new(until_ms),
        };
        (Arc::new(trace), receiver)
    }

    /// Returns the packets to trace.
    pub fn filter(&self) -> &TraceFilter {
        &self.filter
    }

    /// Returns when the trace ends, in milliseconds of the clock of the switch.
    pub fn until_ms(&self) -> u64 {
        self.until_ms.load(Ordering::Relaxed)
    }

    /// Sets when the trace ends.
    pub fn extend(&self, until_ms: u64) {
        self.until_ms.store(until_ms, Ordering::Relaxed);
    }

    /// Returns the number of packets that matched since the last call and were not recorded,
    /// because [`MAX_WAITING_PACKETS`] waited.
    pub fn take_missed(&self) -> u64 {
        self.missed.swap(0, Ordering::Relaxed)
    }
}

/// The recorder of an interface actor for one batch.
pub struct TraceRecorder<'a> {
    trace: &'a ActiveTrace,
    ingress: InterfaceId,
    fib: &'a Arc<Fib>,
    /// The current packet, if it matches the filter.
    current: Option<TracedPacket>,
}

impl<'a> TraceRecorder<'a> {
    /// Creates a recorder for packets that arrived on `ingress` and are switched by `fib`.
    pub fn new(trace: &'a ActiveTrace, ingress: InterfaceId, fib: &'a Arc<Fib>) -> Self {
        Self {
            trace,
            ingress,
            fib,
            current: None,
        }
    }
}

impl PacketTrace for TraceRecorder<'_> {
    fn begin(&mut self, batch: &Batch, packet: &Packet) {
        self.current = None;
        let start = packet.start as usize;
        let Some(bytes) = batch.bytes().get(start..start + packet.len as usize) else {
            return;
        };
        let Ok((_, tags)) = vlan::skip_tags(packet.ethertype, bytes) else {
            return;
        };
        let bytes = &bytes[tags..];
        let Some(header) = IpSummary::read(bytes) else {
            return;
        };
        if !self.trace.filter.matches(self.ingress, &header) {
            return;
        }
        let is_gso = matches!(packet.offload, Offload::UdpSegments { .. });
        // Padding of the Ethernet frame is not part of the packet. A GSO packet may be longer than
        // its header can say.
        let len = match header.len as usize {
            _ if is_gso => bytes.len(),
            len => len.min(bytes.len()),
        };
        self.current = Some(TracedPacket {
            ingress: self.ingress,
            received_ns: packet.received_ns,
            header,
            bytes: bytes[..len.min(MAX_TRACED_BYTES)].to_vec(),
            len: len as u32,
            outcome: Ok(()),
            dropped: Vec::new(),
            paths: Vec::new(),
            fib: self.fib.clone(),
        });
    }

    fn path(
        &mut self,
        path: PathId,
        ttl: u8,
        result: Result<(), DropReason>,
        sent: impl FnOnce() -> Option<IpSummary>,
    ) {
        let Some(packet) = &mut self.current else {
            return;
        };
        packet.paths.push(TracedPath {
            path,
            ttl,
            result,
            translated: sent(),
        });
    }

    fn dropped(&mut self, reason: DropReason) {
        let Some(packet) = &mut self.current else {
            return;
        };
        if !packet.dropped.contains(&reason) {
            packet.dropped.push(reason);
        }
    }

    fn end(&mut self, outcome: Result<(), NotData>) {
        let Some(mut packet) = self.current.take() else {
            return;
        };
        packet.outcome = outcome;
        if self.trace.packets.try_send(packet).is_err() {
            self.trace.missed.fetch_add(1, Ordering::Relaxed);
        }
    }
}
