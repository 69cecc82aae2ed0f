//! The packets that arrive through the tunnels of a gateway.
//!
//! At low rates the sockets are registered with the runtime, and each datagram is read as it
//! arrives. At high rates they are read at intervals instead: an event for each datagram costs more
//! than the datagram, and the egress sends many packets at once for less than single ones. The rates
//! are those at which the packet plane changes to a ring.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Sleep, sleep};

use super::gateway_port::{GatewayPort, GatewaySockets, RelayTraffic};
use crate::pipeline::{Batch, Packet, PacketSource};
use crate::planes::packet::rate::{Mode, ModeAdvice, RateMonitor, Thresholds};
use crate::sys::buffer::Buffer;
use crate::sys::datagram::{DatagramReceiver, TunnelDatagram};
use crate::sys::poll::watch;
use crate::wire::amt::{DATA_HEADER, MULTICAST_DATA};
use crate::wire::vlan::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};

/// Time between two reads at high rates. The timer of the runtime makes it up to a millisecond
/// longer.
const READ_INTERVAL: Duration = Duration::from_millis(1);

/// A socket that is read.
enum Receiver {
    /// When a datagram arrives.
    Watched(AsyncFd<DatagramReceiver>),
    /// At intervals.
    Polled(DatagramReceiver),
}

impl Receiver {
    fn get_mut(&mut self) -> &mut DatagramReceiver {
        match self {
            Self::Watched(receiver) => receiver.get_mut(),
            Self::Polled(receiver) => receiver,
        }
    }

    /// Returns the same socket for another mode.
    fn for_mode(self, mode: Mode) -> io::Result<Self> {
        Ok(match (mode, self) {
            (Mode::Latency, Self::Polled(receiver)) => {
                Self::Watched(watch(receiver, Interest::READABLE)?)
            }
            (Mode::Throughput, Self::Watched(receiver)) => Self::Polled(receiver.into_inner()),
            (_, receiver) => receiver,
        })
    }
}

/// The packets that arrive through the tunnels of a gateway.
pub(super) struct TunnelSource {
    port: Arc<GatewayPort>,
    /// The sockets that are read.
    sockets: Option<Arc<GatewaySockets>>,
    receivers: Vec<Receiver>,
    /// The receiver that is read next, so that none waits for the other.
    next: usize,
    datagrams: Vec<TunnelDatagram>,
    mode: Mode,
    rate: RateMonitor,
    /// When the rate is next compared with the clock, in the throughput mode.
    check_at: Instant,
    /// Whether the receive buffers hold what arrives between two reads.
    has_buffers: bool,
    /// Ends when the sockets are read next, in the throughput mode.
    pause: Option<Pin<Box<Sleep>>>,
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
            mode: Mode::Latency,
            rate: RateMonitor::new(Thresholds::default()),
            check_at: Instant::now(),
            has_buffers: false,
            pause: None,
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
        self.has_buffers = true;
        for socket in sockets.iter().flat_map(|s| s.sockets.iter().flatten()) {
            self.has_buffers &= socket.has_full_buffer();
            let receiver = DatagramReceiver::new(socket.clone());
            let receiver = watch(receiver, Interest::READABLE)?;
            self.receivers.push(Receiver::Watched(receiver));
        }
        self.sockets = sockets;
        self.set_mode(Mode::Latency)
    }

    /// Reads the sockets in this mode from now on.
    fn set_mode(&mut self, mode: Mode) -> io::Result<()> {
        let receivers = std::mem::take(&mut self.receivers).into_iter();
        self.receivers = receivers
            .map(|receiver| receiver.for_mode(mode))
            .collect::<io::Result<_>>()?;
        self.mode = mode;
        self.rate.changed();
        self.check_at = Instant::now();
        self.pause = None;
        Ok(())
    }

    /// Counts the packets of a batch, and changes to the throughput mode if there are many.
    fn measure(&mut self, batch: &Batch) -> io::Result<()> {
        let Some(last) = batch.packets.last() else {
            return Ok(());
        };
        let is_fast = self
            .rate
            .record(batch.packets.len() as u64, last.received_ns);
        match is_fast && self.has_buffers && self.mode == Mode::Latency {
            true => self.set_mode(Mode::Throughput),
            false => Ok(()),
        }
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
            while let Receiver::Watched(receiver) = &mut self.receivers[self.next] {
                let Poll::Ready(guard) = receiver.poll_read_ready_mut(cx) else {
                    break;
                };
                let mut guard = guard?;
                let buffer = read(guard.get_inner_mut(), &mut self.datagrams)?;
                // The next datagram is announced. Saves a call that finds nothing.
                if guard.get_inner().is_drained() {
                    guard.clear_ready();
                }
                if let Some(batch) = buffer.and_then(|buffer| self.batch(buffer)) {
                    self.measure(&batch)?;
                    return Poll::Ready(Ok(batch));
                }
            }
        }
        Poll::Pending
    }

    /// Returns the next batch of any socket. Pauses when all of them are empty.
    fn poll_at_intervals(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Batch>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            let now = Instant::now();
            if now >= self.check_at {
                self.check_at = now + self.rate.interval();
                if self.rate.check(self.mode, now) == ModeAdvice::Down {
                    self.set_mode(Mode::Latency)?;
                    return self.poll_watched(cx);
                }
            }
            let count = self.receivers.len();
            for _ in 0..count {
                self.next = (self.next + 1) % count;
                let n = self.next;
                while let Some(buffer) = read(self.receivers[n].get_mut(), &mut self.datagrams)? {
                    // `None`: there were control messages only.
                    if let Some(batch) = self.batch(buffer) {
                        self.measure(&batch)?;
                        return Poll::Ready(Ok(batch));
                    }
                }
            }
            self.pause = Some(Box::pin(sleep(READ_INTERVAL)));
        }
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
        match self.mode {
            Mode::Latency => self.poll_watched(cx),
            Mode::Throughput => self.poll_at_intervals(cx),
        }
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

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::sys::datagram::DatagramSocket;

    /// A source, and its relay, which numbers its packets.
    struct Lab {
        source: TunnelSource,
        relay: UdpSocket,
        to: SocketAddr,
        sent: u32,
        received: u32,
    }

    impl Lab {
        async fn new() -> Self {
            let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
            let socket = Arc::new(DatagramSocket::open(any, None).unwrap());
            let relay = UdpSocket::bind(any).unwrap();
            let to = socket.local_addr();
            let port = Arc::new(GatewayPort::default());
            port.set_relays([relay.local_addr().unwrap()].into_iter());
            let sockets = [Some(socket), None];
            port.set_sockets(Some(Arc::new(GatewaySockets { sockets })));
            let mut source = TunnelSource::new(port);
            source.rate = RateMonitor::new(Thresholds {
                up: 2_000,
                window: Duration::from_millis(5),
                down: 1_000,
                quiet: Duration::from_millis(50),
                keep: Duration::from_secs(60),
            });
            let mut lab = Self {
                source,
                relay,
                to,
                sent: 0,
                received: 0,
            };
            lab.exchange(1).await;
            // The kernel may limit the buffer. The bursts of the test are small.
            lab.source.has_buffers = true;
            lab
        }

        /// Sends packets, and receives all of them in order.
        async fn exchange(&mut self, packets: u32) {
            for _ in 0..packets {
                let [a, b, c, d] = self.sent.to_be_bytes();
                let datagram = [MULTICAST_DATA, 0, 0x45, a, b, c, d];
                self.relay.send_to(&datagram, self.to).unwrap();
                self.sent += 1;
            }
            while self.received < self.sent {
                let next = std::future::poll_fn(|cx| self.source.poll_batch(cx));
                let next = tokio::time::timeout(Duration::from_secs(10), next).await;
                let batch = next.expect("a batch").unwrap();
                for packet in &batch.packets {
                    let bytes = &batch.bytes()[packet.start as usize..][..packet.len as usize];
                    let [0x45, a, b, c, d] = *bytes else {
                        panic!("{bytes:?}");
                    };
                    assert_eq!(u32::from_be_bytes([a, b, c, d]), self.received);
                    self.received += 1;
                }
            }
        }
    }

    #[test]
    fn no_packet_is_lost_or_reordered_when_the_mode_changes() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut lab = Lab::new().await;
            for _ in 0..3 {
                let started = Instant::now();
                while lab.source.mode == Mode::Latency {
                    lab.exchange(100).await;
                    assert!(started.elapsed() < Duration::from_secs(20));
                }
                assert!(matches!(lab.source.receivers[0], Receiver::Polled(_)));
                lab.exchange(500).await;
                let started = Instant::now();
                while lab.source.mode == Mode::Throughput {
                    lab.exchange(1).await;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    assert!(started.elapsed() < Duration::from_secs(20));
                }
                assert!(matches!(lab.source.receivers[0], Receiver::Watched(_)));
                lab.exchange(1).await;
            }
        });
    }
}
