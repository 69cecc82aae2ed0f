//! What the AMT actor and the data path share of a gateway: sockets, relays, and what was counted.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

use ahash::AHashMap;
use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::mpsc;

use crate::model::TunnelEndpoint;
use crate::sys::datagram::{DatagramSocket, TunnelDatagram};

/// Limit of the control messages that wait for the AMT actor. Relays send a few a minute.
const MAX_WAITING: usize = 256;

/// What is left of it for the relays of this gateway. Others are relays that are discovered at an
/// anycast address, and anyone.
const RESERVED: usize = MAX_WAITING / 2;

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

    /// Sets what is woken when the sockets change.
    pub(super) fn set_waker(&self, waker: &Waker) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match waiting.as_mut() {
            Some(former) => former.clone_from(waker),
            None => *waiting = Some(waker.clone()),
        }
    }

    /// Counts packets that came from no relay of this gateway.
    pub(super) fn count_unknown(&self, packets: u64) {
        self.unknown.fetch_add(packets, Ordering::Relaxed);
    }

    /// Hands a control message on. Copies it only if there is space for it.
    pub(super) fn hand_on(&self, datagram: &TunnelDatagram, payload: &[u8], is_of_relay: bool) {
        let control = self.control.load();
        let permit = control.as_ref().and_then(|control| {
            let has_space = is_of_relay || control.capacity() > RESERVED;
            has_space.then(|| control.try_reserve().ok()).flatten()
        });
        match permit {
            Some(permit) => permit.send(ControlDatagram {
                endpoint: datagram.endpoint,
                payload: payload.iter().take(MAX_CONTROL_LEN).copied().collect(),
            }),
            None => {
                self.lost_messages.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_leave_space_for_messages_of_relays() {
        let port = GatewayPort::default();
        let mut receiver = port.connect();
        let datagram = TunnelDatagram {
            start: 0,
            len: 8,
            received_ns: 0,
            endpoint: TunnelEndpoint {
                remote: "192.0.2.1:2268".parse().unwrap(),
                local: [192, 0, 2, 2].into(),
            },
        };
        for _ in 0..1000 {
            port.hand_on(&datagram, &[2; 8], false);
        }
        for _ in 0..1000 {
            port.hand_on(&datagram, &[4; 8], true);
        }
        let received = std::iter::from_fn(|| receiver.try_recv().ok());
        let kinds: Vec<u8> = received.map(|datagram| datagram.payload[0]).collect();
        let count = |kind| kinds.iter().filter(|k| **k == kind).count();
        assert_eq!([count(2), count(4)], [MAX_WAITING - RESERVED, RESERVED]);
        assert_eq!(port.take_refused(), (0, 2000 - MAX_WAITING as u64));
    }
}
