//! The sending end of tunnels to gateways.
//!
//! Consecutive packets with the same length and the same receivers are a *run*: the kernel gets them
//! as one GSO datagram for each gateway, and makes single datagrams of it as late as it can.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use ahash::AHashMap;
use arc_swap::ArcSwap;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::amt::receivers::GroupReceivers;
use crate::model::TunnelEndpoint;
use crate::pipeline::{OutPacket, PacketSink};
use crate::sys::datagram::{CopySender, DatagramSocket, is_segment_error, is_too_big};
use crate::sys::poll::watch;
use crate::wire::amt::DATA_HEADER;

/// What a relay sent to its gateways.
#[derive(Debug, Default)]
pub struct CopyCounts {
    /// Copies of packets.
    pub copies: AtomicU64,
    /// IP bytes of these copies.
    pub bytes: AtomicU64,
    /// Copies that exceed the MTU of the path and must not be fragmented.
    pub too_big: AtomicU64,
    /// Copies that the kernel refused for another reason.
    pub failed: AtomicU64,
}

/// The values of [`CopyCounts`] at one time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopyTotals {
    /// Copies of packets.
    pub copies: u64,
    /// IP bytes of these copies.
    pub bytes: u64,
    /// Copies that exceed the MTU of the path and must not be fragmented.
    pub too_big: u64,
    /// Copies that the kernel refused for another reason.
    pub failed: u64,
}

impl CopyCounts {
    /// Returns the present values.
    pub fn totals(&self) -> CopyTotals {
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        CopyTotals {
            copies: load(&self.copies),
            bytes: load(&self.bytes),
            too_big: load(&self.too_big),
            failed: load(&self.failed),
        }
    }
}

/// What the AMT actor and the data path share of a relay.
#[derive(Default)]
pub struct RelayPort {
    sockets: ArcSwap<Vec<Arc<DatagramSocket>>>,
    /// The gateways that receive a group.
    receivers: ArcSwap<AHashMap<IpAddr, Arc<GroupReceivers>>>,
    traffic: CopyCounts,
}

impl RelayPort {
    /// Sets the sockets.
    pub fn set_sockets(&self, sockets: Vec<Arc<DatagramSocket>>) {
        self.sockets.store(Arc::new(sockets));
    }

    /// Returns the sockets.
    pub fn sockets(&self) -> Arc<Vec<Arc<DatagramSocket>>> {
        self.sockets.load_full()
    }

    /// Returns the socket that is bound to an address.
    pub fn socket_at(&self, address: SocketAddr) -> Option<Arc<DatagramSocket>> {
        let sockets = self.sockets.load();
        sockets.iter().find(|s| s.local_addr() == address).cloned()
    }

    /// Returns the socket from which a gateway expects packets: the one that is bound to its
    /// local address, or to any.
    pub fn socket_for(&self, to: &TunnelEndpoint) -> Option<Arc<DatagramSocket>> {
        let sockets = self.sockets.load();
        position_for(&sockets, to).map(|n| sockets[n].clone())
    }

    /// Sets the gateways that receive each group.
    pub fn set_receivers(&self, receivers: AHashMap<IpAddr, Arc<GroupReceivers>>) {
        self.receivers.store(Arc::new(receivers));
    }

    /// Returns the gateways that receive each group.
    pub fn receivers(&self) -> Arc<AHashMap<IpAddr, Arc<GroupReceivers>>> {
        self.receivers.load_full()
    }

    /// Returns what was sent since the start.
    pub fn traffic(&self) -> &CopyCounts {
        &self.traffic
    }
}

/// Returns the position of the socket for a gateway.
fn position_for(sockets: &[Arc<DatagramSocket>], to: &TunnelEndpoint) -> Option<usize> {
    let is_bound_to = |socket: &Arc<DatagramSocket>, ip: IpAddr| socket.local_addr().ip() == ip;
    let any: IpAddr = match to.remote.is_ipv4() {
        true => Ipv4Addr::UNSPECIFIED.into(),
        false => Ipv6Addr::UNSPECIFIED.into(),
    };
    let exact = sockets.iter().position(|s| is_bound_to(s, to.local));
    exact.or_else(|| sockets.iter().position(|s| is_bound_to(s, any)))
}

/// Largest number of packets of a run: that of segments in the kernel (`UDP_MAX_SEGMENTS`).
const MAX_RUN: usize = 64;

/// Largest number of bytes of a run.
const MAX_RUN_BYTES: usize = 60_000;

/// Time without runs after the kernel has refused one.
const RUN_PAUSE: Duration = Duration::from_secs(10);

/// Address and length of a packet. Its memory stays until it is sent or dropped.
type PacketKey = (usize, usize);

fn key(packet: &[u8]) -> PacketKey {
    (packet.as_ptr() as usize, packet.len())
}

/// A packet that only some of its gateways have received, because the socket is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Unfinished {
    packet: PacketKey,
    /// Number of gateways that were served.
    served: usize,
}

/// The packets that were unfinished after the last call, in order.
struct FormerProgress {
    unfinished: Vec<Unfinished>,
    /// Number of these packets that the current call has found again or dropped.
    passed: usize,
}

impl FormerProgress {
    fn new(unfinished: Vec<Unfinished>) -> Self {
        let passed = 0;
        Self { unfinished, passed }
    }

    /// Returns how many gateways have received a packet. Packets follow in their former order.
    fn served(&mut self, packet: &[u8]) -> usize {
        // Empty in most cases.
        let mut rest = self.unfinished.iter().enumerate().skip(self.passed);
        match rest.find(|(_, unfinished)| unfinished.packet == key(packet)) {
            Some((n, unfinished)) => {
                self.passed = n + 1;
                unfinished.served
            }
            None => 0,
        }
    }

    /// Returns those that may follow later. If none was found, all of them were dropped.
    fn rest(self) -> impl Iterator<Item = Unfinished> {
        let passed = match self.passed {
            0 => self.unfinished.len(),
            passed => passed,
        };
        self.unfinished.into_iter().skip(passed)
    }
}

/// Consecutive packets with the same receivers. All but the last one have the same length.
struct Run<'a> {
    packets: [&'a [u8]; MAX_RUN],
    len: usize,
    bytes: usize,
    /// Number of gateways that have received all of them.
    served: usize,
}

impl<'a> Run<'a> {
    fn new(first: &'a [u8], served: usize) -> Self {
        let mut packets: [&[u8]; MAX_RUN] = [&[]; MAX_RUN];
        packets[0] = first;
        Self {
            packets,
            len: 1,
            bytes: first.len(),
            served,
        }
    }

    fn packets(&self) -> &[&'a [u8]] {
        &self.packets[..self.len]
    }

    /// Returns whether the kernel takes a packet as the next one of the run.
    fn fits(&self, packet: &[u8], served: usize) -> bool {
        let (first, last) = (self.packets[0], self.packets[self.len - 1]);
        self.len < MAX_RUN
            && self.bytes + packet.len() <= MAX_RUN_BYTES
            && served == self.served
            && last.len() == first.len()
            && packet.len() <= first.len()
    }

    fn add(&mut self, packet: &'a [u8]) {
        self.packets[self.len] = packet;
        self.len += 1;
        self.bytes += packet.len();
    }
}

/// Why a run was not sent completely.
enum RunError {
    /// The socket is full.
    WouldBlock(io::Error),
    /// The packets must be sent one by one. This number of gateways has received them.
    NoRun(usize),
}

/// Sends packets to the gateways that receive them.
pub(super) struct TunnelSink {
    port: Arc<RelayPort>,
    sender: CopySender,
    gateways: Vec<TunnelEndpoint>,
    unfinished: Vec<Unfinished>,
    /// Until when packets are sent one by one.
    single_until: Option<Instant>,
    /// The socket that is full.
    full: Option<Arc<DatagramSocket>>,
    waiting: Option<AsyncFd<Arc<DatagramSocket>>>,
}

impl TunnelSink {
    pub(super) fn new(port: Arc<RelayPort>) -> Self {
        Self {
            port,
            sender: CopySender::default(),
            gateways: Vec::new(),
            unfinished: Vec::new(),
            single_until: None,
            full: None,
            waiting: None,
        }
    }

    /// Sends the copies of a run to `self.gateways`.
    fn send_run(&mut self, run: &Run<'_>) -> Result<(), RunError> {
        let packets = run.packets();
        let mut parts: [&[u8]; 2 * MAX_RUN] = [&DATA_HEADER; 2 * MAX_RUN];
        for (n, packet) in packets.iter().enumerate() {
            parts[2 * n + 1] = packet;
        }
        let parts = &parts[..2 * packets.len()];
        let segment = DATA_HEADER.len() + packets[0].len();
        let segment = (packets.len() > 1).then_some(segment as u16);
        let mut served = run.served;
        let sockets = self.port.sockets.load();
        let traffic = &self.port.traffic;
        let add = |counter: &AtomicU64, n: usize| counter.fetch_add(n as u64, Ordering::Relaxed);
        while let Some(first) = self.gateways.get(served) {
            let position = position_for(&sockets, first);
            let Some(socket) = position.and_then(|n| sockets.get(n)) else {
                add(&traffic.failed, packets.len());
                served += 1;
                continue;
            };
            let rest = &self.gateways[served..];
            let same = rest
                .iter()
                .take_while(|g| position_for(&sockets, g) == position);
            let same = same.count();
            match self.sender.send(socket, parts, segment, &rest[..same]) {
                Ok(sent) => {
                    add(&traffic.copies, sent * packets.len());
                    add(&traffic.bytes, sent * run.bytes);
                    served += sent;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.full = Some(socket.clone());
                    let unfinished = |packet: &&[u8]| Unfinished {
                        packet: key(packet),
                        served,
                    };
                    self.unfinished.extend(packets.iter().map(unfinished));
                    return Err(RunError::WouldBlock(e));
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if segment.is_some() && is_segment_error(&e) => {
                    return Err(RunError::NoRun(served));
                }
                // One gateway that cannot be reached does not stop the others.
                Err(e) => {
                    let counter = match is_too_big(&e) {
                        true => &traffic.too_big,
                        false => &traffic.failed,
                    };
                    add(counter, packets.len());
                    served += 1;
                }
            }
        }
        Ok(())
    }

    /// Sends the copies of a run, one packet after the other if need be. Returns how many packets
    /// were sent; fewer than all of them if the socket is full.
    fn send_all(&mut self, run: &Run<'_>) -> (usize, Option<io::Error>) {
        let served = match self.send_run(run) {
            Ok(()) => return (run.len, None),
            Err(RunError::WouldBlock(e)) => return (0, Some(e)),
            Err(RunError::NoRun(served)) => served,
        };
        self.single_until = Some(Instant::now() + RUN_PAUSE);
        for (n, packet) in run.packets().iter().enumerate() {
            if let Err(RunError::WouldBlock(e)) = self.send_run(&Run::new(packet, served)) {
                // Some gateways have the others too.
                let unfinished = |packet: &&[u8]| Unfinished {
                    packet: key(packet),
                    served,
                };
                let rest = run.packets()[n + 1..].iter();
                self.unfinished.extend(rest.map(unfinished));
                return (n, Some(e));
            }
        }
        (run.len, None)
    }
}

impl PacketSink for TunnelSink {
    fn send(&mut self, packets: &mut dyn Iterator<Item = OutPacket<'_>>) -> io::Result<usize> {
        if self
            .single_until
            .is_some_and(|until| Instant::now() >= until)
        {
            self.single_until = None;
        }
        let mut former = FormerProgress::new(std::mem::take(&mut self.unfinished));
        let mut packets = packets.map(|packet| (packet.bytes, former.served(packet.bytes)));
        let receivers = self.port.receivers.load_full();
        let mut sent = 0;
        let mut blocked = None;
        let mut next = packets.next();
        while let Some((first, served)) = next.take() {
            let mut run = Run::new(first, served);
            let mut stream = addresses(first);
            self.gateways.clear();
            self.gateways.extend(gateways_of(&receivers, stream));
            next = packets.next();
            while let Some((packet, served)) = next
                && self.single_until.is_none()
                && run.fits(packet, served)
            {
                let other = addresses(packet);
                if other != stream {
                    let gateways = self.gateways.iter().copied();
                    if !gateways_of(&receivers, other).eq(gateways) {
                        break;
                    }
                    stream = other;
                }
                run.add(packet);
                next = packets.next();
            }
            let (complete, error) = self.send_all(&run);
            sent += complete;
            blocked = error;
            if blocked.is_some() {
                break;
            }
        }
        let next = next.filter(|(_, served)| *served > 0);
        let next = next.map(|(packet, served)| Unfinished {
            packet: key(packet),
            served,
        });
        drop(packets);
        self.unfinished
            .extend(next.into_iter().chain(former.rest()));
        match blocked {
            Some(e) if sent == 0 => Err(e),
            _ => Ok(sent),
        }
    }

    fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let waiting = match (self.waiting.take(), self.full.take()) {
            (Some(waiting), _) => waiting,
            // A new registration reports whether the socket is writable now.
            (None, Some(socket)) => watch(socket, Interest::WRITABLE)?,
            (None, None) => return Poll::Ready(Ok(())),
        };
        let waiting = self.waiting.insert(waiting);
        ready!(waiting.poll_write_ready(cx))?.retain_ready();
        self.waiting = None;
        Poll::Ready(Ok(()))
    }
}

/// Returns the gateways that receive a stream, by source and group.
fn gateways_of(
    receivers: &AHashMap<IpAddr, Arc<GroupReceivers>>,
    stream: Option<(IpAddr, IpAddr)>,
) -> impl Iterator<Item = TunnelEndpoint> + '_ {
    let found = stream.and_then(|(source, group)| Some((source, receivers.get(&group)?)));
    found
        .into_iter()
        .flat_map(|(source, receivers)| receivers.of(source))
}

/// Returns source and destination of an IP packet.
fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match packet.first()? >> 4 {
        4 => {
            let [source, destination] = [12, 16].map(|at| {
                let bytes = packet.get(at..)?.first_chunk::<4>()?;
                Some(Ipv4Addr::from(*bytes).into())
            });
            Some((source?, destination?))
        }
        6 => {
            let [source, destination] = [8, 24].map(|at| {
                let bytes = packet.get(at..)?.first_chunk::<16>()?;
                Some(Ipv6Addr::from(*bytes).into())
            });
            Some((source?, destination?))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_packets_continue_and_dropped_ones_are_forgotten() {
        let packets: Vec<Vec<u8>> = (0..5).map(|n| vec![n; 10]).collect();
        let unfinished = |n: usize, served| Unfinished {
            packet: key(&packets[n]),
            served,
        };
        let all = vec![unfinished(0, 3), unfinished(1, 2), unfinished(2, 2)];
        let mut former = FormerProgress::new(all.clone());
        assert_eq!(former.served(&packets[0]), 3);
        // Packet 1 was dropped.
        assert_eq!(former.served(&packets[2]), 2);
        assert_eq!(former.served(&packets[3]), 0);
        assert_eq!(former.rest().count(), 0);
        let mut former = FormerProgress::new(all.clone());
        assert_eq!(former.served(&packets[0]), 3);
        assert!(former.rest().eq(all[1..].iter().copied()));
        let mut former = FormerProgress::new(all);
        assert_eq!(former.served(&packets[4]), 0);
        assert_eq!(former.rest().count(), 0);
    }

    #[test]
    fn run_ends_with_a_shorter_or_before_a_longer_packet() {
        let (long, short) = (vec![0; 100], vec![0; 50]);
        let mut run = Run::new(&long, 0);
        assert!(run.fits(&long, 0) && !run.fits(&long, 1));
        assert!(!run.fits(&[0; 101], 0));
        run.add(&short);
        assert!(!run.fits(&short, 0) && !run.fits(&long, 0));
        let mut run = Run::new(&long, 0);
        while run.fits(&long, 0) {
            run.add(&long);
        }
        assert_eq!(run.packets().len(), MAX_RUN);
    }
}
