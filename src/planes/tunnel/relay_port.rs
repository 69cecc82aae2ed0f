//! The sending end of tunnels to gateways.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use ahash::AHashMap;
use arc_swap::ArcSwap;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::amt::receivers::GroupReceivers;
use crate::model::TunnelEndpoint;
use crate::pipeline::{OutPacket, PacketSink};
use crate::sys::datagram::{CopySender, DatagramSocket};
use crate::sys::poll::watch;
use crate::wire::amt::DATA_HEADER;

/// What a relay sent to its gateways.
#[derive(Debug, Default)]
pub struct CopyCounts {
    /// Copies of packets.
    pub copies: AtomicU64,
    /// IP bytes of these copies.
    pub bytes: AtomicU64,
    /// Copies that the kernel refused.
    pub failed: AtomicU64,
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

/// The progress of a packet that only some of its gateways have received, because the socket is
/// full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Unfinished {
    /// Address and length of the packet. Its memory stays until it is sent or dropped.
    packet: (usize, usize),
    /// Number of gateways that were served.
    served: usize,
}

/// Sends packets to the gateways that receive them.
pub(super) struct TunnelSink {
    port: Arc<RelayPort>,
    sender: CopySender,
    gateways: Vec<TunnelEndpoint>,
    unfinished: Option<Unfinished>,
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
            unfinished: None,
            full: None,
            waiting: None,
        }
    }

    /// Sends the copies of one packet. `WouldBlock`: not all of them yet.
    fn send_copies(&mut self, packet: &[u8]) -> io::Result<()> {
        let Some((source, group)) = addresses(packet) else {
            return Ok(());
        };
        let receivers = self.port.receivers.load();
        let Some(receivers) = receivers.get(&group) else {
            return Ok(());
        };
        self.gateways.clear();
        self.gateways.extend(receivers.of(source));
        let key = (packet.as_ptr() as usize, packet.len());
        let unfinished = self.unfinished.take().filter(|u| u.packet == key);
        let mut served = unfinished.map_or(0, |unfinished| unfinished.served);
        let sockets = self.port.sockets.load();
        let traffic = &self.port.traffic;
        while let Some(first) = self.gateways.get(served) {
            let position = position_for(&sockets, first);
            let Some(socket) = position.and_then(|n| sockets.get(n)) else {
                traffic.failed.fetch_add(1, Ordering::Relaxed);
                served += 1;
                continue;
            };
            let rest = &self.gateways[served..];
            let same = rest
                .iter()
                .take_while(|g| position_for(&sockets, g) == position);
            let same = same.count();
            match self
                .sender
                .send(socket, [&DATA_HEADER, packet], &rest[..same])
            {
                Ok(sent) => {
                    traffic.copies.fetch_add(sent as u64, Ordering::Relaxed);
                    let bytes = sent as u64 * packet.len() as u64;
                    traffic.bytes.fetch_add(bytes, Ordering::Relaxed);
                    served += sent;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.full = Some(socket.clone());
                    self.unfinished = Some(Unfinished {
                        packet: key,
                        served,
                    });
                    return Err(e);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // One gateway that cannot be reached does not stop the others.
                Err(_) => {
                    traffic.failed.fetch_add(1, Ordering::Relaxed);
                    served += 1;
                }
            }
        }
        Ok(())
    }
}

impl PacketSink for TunnelSink {
    fn send(&mut self, packets: &mut dyn Iterator<Item = OutPacket<'_>>) -> io::Result<usize> {
        let mut sent = 0;
        for packet in packets {
            match self.send_copies(packet.bytes) {
                Ok(()) => sent += 1,
                Err(_) if sent > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(sent)
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
