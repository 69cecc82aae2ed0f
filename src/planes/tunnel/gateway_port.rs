//! The receiving end of tunnels to relays.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use ahash::AHashMap;
use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use crate::model::TunnelEndpoint;
use crate::pipeline::{Batch, Packet, PacketSource};
use crate::sys::buffer::Buffer;
use crate::sys::datagram::{DatagramReceiver, DatagramSocket, TunnelDatagram};
use crate::sys::poll::watch;
use crate::wire::amt::{DATA_HEADER, MULTICAST_DATA};
use crate::wire::vlan::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};

/// Limit of the control messages that wait for the AMT actor. Relays send a few a minute.
const MAX_WAITING: usize = 256;

/// Longest control message that is handed on: that of a query, with space to spare.
const MAX_CONTROL_LEN: usize = 2048;

/// A control message of a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlDatagram {
    /// The addresses of the datagram.
    pub endpoint: TunnelEndpoint,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// What a relay sent.
#[derive(Debug, Default)]
pub struct RelayTraffic {
    /// Packets.
    pub packets: AtomicU64,
    /// Bytes of these packets.
    pub bytes: AtomicU64,
}

/// The sockets of a gateway.
#[derive(Debug)]
pub struct GatewaySockets {
    /// The IPv4 and the IPv6 socket.
    pub sockets: [Option<Arc<DatagramSocket>>; 2],
}

/// What the AMT actor and the data path share of a gateway.
#[derive(Default)]
pub struct GatewayPort {
    sockets: ArcSwapOption<GatewaySockets>,
    /// Wakes the source that waits for sockets.
    waiting: Mutex<Option<Waker>>,
    /// The relays whose packets are received.
    relays: ArcSwap<AHashMap<SocketAddr, Arc<RelayTraffic>>>,
    control: ArcSwapOption<mpsc::Sender<ControlDatagram>>,
    /// Packets that came from no relay of this gateway.
    unknown: AtomicU64,
    /// Control messages that were dropped because too many wait.
    lost_messages: AtomicU64,
}

impl GatewayPort {
    /// Sets the sockets. The source reads them from then on.
    pub fn set_sockets(&self, sockets: Option<Arc<GatewaySockets>>) {
        self.sockets.store(sockets);
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waker) = waiting.as_ref() {
            waker.wake_by_ref();
        }
    }

    /// Returns the sockets.
    pub fn sockets(&self) -> Option<Arc<GatewaySockets>> {
        self.sockets.load_full()
    }

    /// Sets the relays whose packets are received. Counters of relays that stay go on.
    pub fn set_relays(&self, relays: impl Iterator<Item = SocketAddr>) {
        let former = self.relays.load();
        let relays = relays.map(|relay| {
            let traffic = former.get(&relay).cloned().unwrap_or_default();
            (relay, traffic)
        });
        self.relays.store(Arc::new(relays.collect()));
    }

    /// Returns what each relay sent.
    pub fn traffic(&self) -> Arc<AHashMap<SocketAddr, Arc<RelayTraffic>>> {
        self.relays.load_full()
    }

    /// Returns a receiver of the control messages. The former one receives nothing any more.
    pub fn connect(&self) -> mpsc::Receiver<ControlDatagram> {
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        self.control.store(Some(Arc::new(sender)));
        receiver
    }

    /// Returns the number of packets since the last call that came from no relay of this gateway,
    /// and of control messages that were lost.
    pub fn take_refused(&self) -> (u64, u64) {
        let take = |count: &AtomicU64| count.swap(0, Ordering::Relaxed);
        (take(&self.unknown), take(&self.lost_messages))
    }

    fn hand_on(&self, datagram: &TunnelDatagram, payload: &[u8]) {
        let control = self.control.load();
        let is_sent = control.as_ref().is_some_and(|control| {
            let payload = payload.iter().take(MAX_CONTROL_LEN).copied().collect();
            let endpoint = datagram.endpoint;
            let datagram = ControlDatagram { endpoint, payload };
            control.try_send(datagram).is_ok()
        });
        if !is_sent {
            self.lost_messages.fetch_add(1, Ordering::Relaxed);
        }
    }
}

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
        {
            let mut waiting = self
                .port
                .waiting
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            match waiting.as_mut() {
                Some(waker) => waker.clone_from(cx.waker()),
                None => *waiting = Some(cx.waker().clone()),
            }
        }
        let sockets = self.port.sockets.load_full();
        let same = |a: &Arc<GatewaySockets>, b: &Arc<GatewaySockets>| Arc::ptr_eq(a, b);
        let is_same = match (&sockets, &self.sockets) {
            (Some(a), Some(b)) => same(a, b),
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
    fn batch(&mut self, buffer: Buffer) -> Option<Batch> {
        let relays = self.port.relays.load();
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
            if payload.first() != Some(&MULTICAST_DATA) {
                self.port.hand_on(datagram, payload);
                continue;
            }
            let remote = datagram.endpoint.remote;
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
        self.port.unknown.fetch_add(unknown, Ordering::Relaxed);
        (!packets.is_empty()).then(|| Batch::from_buffer(buffer, packets))
    }

    /// Reads one socket. Returns a batch, or nothing if only control messages waited.
    fn poll_receiver(&mut self, n: usize, cx: &mut Context<'_>) -> Poll<io::Result<Option<Batch>>> {
        loop {
            let receiver = &mut self.receivers[n];
            let mut guard = ready!(receiver.poll_read_ready_mut(cx))?;
            self.datagrams.clear();
            match guard.get_inner_mut().receive(&mut self.datagrams) {
                Ok(buffer) => return Poll::Ready(Ok(self.batch(buffer))),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                // Errors such as an unreachable far end concern one datagram.
                Err(e) if e.kind() == io::ErrorKind::Interrupted || is_remote_error(&e) => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
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
        let count = self.receivers.len();
        for _ in 0..count {
            self.next = (self.next + 1) % count;
            loop {
                match self.poll_receiver(self.next, cx)? {
                    Poll::Ready(Some(batch)) => return Poll::Ready(Ok(batch)),
                    Poll::Ready(None) => {}
                    Poll::Pending => break,
                }
            }
        }
        Poll::Pending
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
