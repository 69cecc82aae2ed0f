//! The packets that arrive through the tunnels of a gateway.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::gateway_port::{GatewayPort, GatewaySockets, RelayTraffic};
use crate::pipeline::{Batch, Packet, PacketSource};
use crate::sys::buffer::Buffer;
use crate::sys::datagram::{DatagramReceiver, TunnelDatagram};
use crate::sys::poll::watch;
use crate::wire::amt::{DATA_HEADER, MULTICAST_DATA};
use crate::wire::vlan::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};

/// The packets that arrive through the tunnels of a gateway.
pub(super) struct TunnelSource {
    port: Arc<GatewayPort>,
    /// The sockets that are read.
    sockets: Option<Arc<GatewaySockets>>,
    receivers: Vec<AsyncFd<DatagramReceiver>>,
    /// The receiver that is read next, so that none waits for the other.
    next: usize,
    datagrams: Vec<TunnelDatagram>,
    is_stopped: bool,
    /// Datagrams that were lost on sockets that are not read any more.
    dropped: u64,
}

impl TunnelSource {
    pub(super) fn new(port: Arc<GatewayPort>) -> Self {
        Self {
            port,
            sockets: None,
            receivers: Vec::new(),
            next: 0,
            datagrams: Vec::new(),
            is_stopped: false,
            dropped: 0,
        }
    }

    /// Reads the present sockets from now on.
    fn update_sockets(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        self.port.set_waker(cx.waker());
        let sockets = self.port.sockets();
        let is_same = match (&sockets, &self.sockets) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        if is_same {
            return Ok(());
        }
        self.dropped = self.take_dropped();
        self.receivers.clear();
        for socket in sockets.iter().flat_map(|s| s.sockets.iter().flatten()) {
            let receiver = DatagramReceiver::new(socket.clone());
            self.receivers.push(watch(receiver, Interest::READABLE)?);
        }
        self.sockets = sockets;
        Ok(())
    }

    /// Makes a batch of the packets in a buffer. Hands control messages on.
    fn batch(&self, buffer: Buffer) -> Option<Batch> {
        let relays = self.port.traffic();
        let mut packets = Vec::with_capacity(self.datagrams.len());
        let mut last: Option<(SocketAddr, Option<&Arc<RelayTraffic>>)> = None;
        let (mut unknown, mut counted) = (0, (0, 0));
        let count = |traffic: Option<&Arc<RelayTraffic>>, (packets, bytes): (u64, u64)| {
            if let Some(traffic) = traffic {
                traffic.packets.fetch_add(packets, Ordering::Relaxed);
                traffic.bytes.fetch_add(bytes, Ordering::Relaxed);
            }
        };
        for datagram in &self.datagrams {
            let payload = datagram.start..datagram.start + datagram.len;
            let Some(payload) = buffer.bytes().get(payload) else {
                continue;
            };
            let remote = datagram.endpoint.remote;
            if payload.first() != Some(&MULTICAST_DATA) {
                let is_of_relay = relays.contains_key(&remote);
                self.port.hand_on(datagram, payload, is_of_relay);
                continue;
            }
            let traffic = match last {
                Some((relay, traffic)) if relay == remote => traffic,
                _ => {
                    if let Some((_, former)) = last {
                        count(former, std::mem::take(&mut counted));
                    }
                    let traffic = relays.get(&remote);
                    last = Some((remote, traffic));
                    traffic
                }
            };
            if traffic.is_none() {
                unknown += 1;
                continue;
            }
            let len = datagram.len.saturating_sub(DATA_HEADER.len());
            let is_v6 = payload.get(DATA_HEADER.len()).is_some_and(|b| b >> 4 == 6);
            counted.0 += 1;
            counted.1 += len as u64;
            packets.push(Packet {
                start: (datagram.start + DATA_HEADER.len()) as u32,
                len: len as u32,
                received_ns: datagram.received_ns,
                ethertype: if is_v6 {
                    ETHERTYPE_IPV6
                } else {
                    ETHERTYPE_IPV4
                },
                ..Packet::default()
            });
        }
        if let Some((_, traffic)) = last {
            count(traffic, counted);
        }
        self.port.count_unknown(unknown);
        (!packets.is_empty()).then(|| Batch::from_buffer(buffer, packets))
    }

    /// Returns the next batch of the sockets that have announced datagrams.
    fn poll_watched(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Batch>> {
        let count = self.receivers.len();
        for _ in 0..count {
            self.next = (self.next + 1) % count;
            while let Poll::Ready(guard) = self.receivers[self.next].poll_read_ready_mut(cx) {
                let mut guard = guard?;
                let buffer = read(guard.get_inner_mut(), &mut self.datagrams)?;
                // The next datagram is announced. Saves a call that finds nothing.
                if guard.get_inner().is_drained() {
                    guard.clear_ready();
                }
                if let Some(batch) = buffer.and_then(|buffer| self.batch(buffer)) {
                    return Poll::Ready(Ok(batch));
                }
            }
        }
        Poll::Pending
    }
}

/// Reads a socket. Returns `None` if nothing waits.
fn read(
    receiver: &mut DatagramReceiver,
    datagrams: &mut Vec<TunnelDatagram>,
) -> io::Result<Option<Buffer>> {
    loop {
        datagrams.clear();
        match receiver.receive(datagrams) {
            Ok(buffer) => return Ok(Some(buffer)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            // Errors such as an unreachable far end concern one datagram.
            Err(e) if e.kind() == io::ErrorKind::Interrupted || is_remote_error(&e) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Returns whether an error was caused by what the far end of a tunnel or a router answered.
fn is_remote_error(error: &io::Error) -> bool {
    let errors = [
        libc::ECONNREFUSED,
        libc::EHOSTUNREACH,
        libc::ENETUNREACH,
        libc::EMSGSIZE,
        libc::EPROTO,
    ];
    error.raw_os_error().is_some_and(|e| errors.contains(&e))
}

impl PacketSource for TunnelSource {
    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Batch>> {
        if self.is_stopped {
            return Poll::Pending;
        }
        self.update_sockets(cx)?;
        self.poll_watched(cx)
    }

    fn take_dropped(&mut self) -> u64 {
        let receivers = self.receivers.iter_mut();
        let lost = receivers.map(|receiver| receiver.get_mut().take_dropped());
        std::mem::take(&mut self.dropped) + lost.sum::<u64>()
    }

    fn stop_capture(&mut self) {
        self.is_stopped = true;
    }

    fn mode(&self) -> &'static str {
        "tunnel"
    }
}
