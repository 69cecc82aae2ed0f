//! The tunnel plane: interfaces that are no links of the kernel. Packets arrive and leave inside
//! UDP datagrams (AMT, RFC 7450).
//!
//! An interface of this plane has a *port*, which the AMT actor and the data path share. The actor
//! opens the sockets, sends and receives control messages, and says which relays send packets and
//! which gateways receive them. The data path sees batches and packets, as from any other plane:
//!
//! ```text
//! GatewayPort: socket -> TunnelSource -> batch, payload in place
//!                                    \-> control messages -> AMT actor
//! RelayPort:   packet -> TunnelSink -> one copy for each gateway that receives the stream
//! ```

mod gateway_port;
mod relay_port;
mod tunnel_source;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use super::Plane;
use crate::model::{IfName, InterfaceId, PlaneName};
use crate::pipeline::{Batch, OutPacket, PacketSink, PacketSource};

pub use gateway_port::{ControlDatagram, GatewayPort, GatewaySockets, RelayTraffic};
pub use relay_port::{CopyCounts, CopyTotals, RelayPort};

/// The plane. Clones share it.
#[derive(Clone, Default)]
pub struct TunnelPlane(Arc<Mutex<TunnelPorts>>);

#[derive(Default)]
struct TunnelPorts {
    ids: BTreeMap<IfName, InterfaceId>,
    ports: BTreeMap<InterfaceId, TunnelPort>,
}

/// What the AMT actor and the data path share of one interface.
#[derive(Clone)]
enum TunnelPort {
    Gateway(Arc<GatewayPort>),
    Relay(Arc<RelayPort>),
}

impl TunnelPlane {
    /// The name of the plane.
    pub const NAME: PlaneName = PlaneName::new("amt");

    fn lock(&self) -> MutexGuard<'_, TunnelPorts> {
        // The lock is held for lookups only, so a panic leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the ID of the tunnel interface with a name. A name has the same ID as long as the
    /// process runs.
    pub fn id(&self, name: &IfName) -> Option<InterfaceId> {
        let mut ports = self.lock();
        if let Some(id) = ports.ids.get(name) {
            return Some(*id);
        }
        let number = u32::try_from(ports.ids.len()).ok()?;
        let id = InterfaceId::other(number)?;
        ports.ids.insert(name.clone(), id);
        Some(id)
    }

    /// Returns the port of a gateway. Creates it, or replaces a port of another kind.
    pub fn gateway(&self, id: InterfaceId) -> Arc<GatewayPort> {
        let mut ports = self.lock();
        if let Some(TunnelPort::Gateway(port)) = ports.ports.get(&id) {
            return port.clone();
        }
        let port = Arc::new(GatewayPort::default());
        ports.ports.insert(id, TunnelPort::Gateway(port.clone()));
        port
    }

    /// Returns the port of a relay. Creates it, or replaces a port of another kind.
    pub fn relay(&self, id: InterfaceId) -> Arc<RelayPort> {
        let mut ports = self.lock();
        if let Some(TunnelPort::Relay(port)) = ports.ports.get(&id) {
            return port.clone();
        }
        let port = Arc::new(RelayPort::default());
        ports.ports.insert(id, TunnelPort::Relay(port.clone()));
        port
    }

    fn port(&self, id: InterfaceId) -> io::Result<TunnelPort> {
        let port = self.lock().ports.get(&id).cloned();
        // The AMT actor creates it.
        port.ok_or_else(|| io::Error::other("the tunnel is not ready yet"))
    }
}

impl Plane for TunnelPlane {
    fn name(&self) -> &'static str {
        Self::NAME.as_str()
    }

    fn capture(&self, interface: InterfaceId) -> io::Result<Box<dyn PacketSource>> {
        Ok(match self.port(interface)? {
            TunnelPort::Gateway(port) => Box::new(tunnel_source::TunnelSource::new(port)),
            TunnelPort::Relay(_) => Box::new(NothingArrives),
        })
    }

    fn transmit(&self, interface: InterfaceId) -> io::Result<Box<dyn PacketSink>> {
        Ok(match self.port(interface)? {
            TunnelPort::Gateway(_) => Box::new(NothingLeaves),
            TunnelPort::Relay(port) => Box::new(relay_port::TunnelSink::new(port)),
        })
    }
}

/// The receiving side of a relay. Gateways send reports, which the AMT actor receives, but no
/// packets.
struct NothingArrives;

impl PacketSource for NothingArrives {
    fn poll_batch(&mut self, _: &mut Context<'_>) -> Poll<io::Result<Batch>> {
        Poll::Pending
    }

    fn take_dropped(&mut self) -> u64 {
        0
    }

    fn stop_capture(&mut self) {}

    fn mode(&self) -> &'static str {
        "none"
    }
}

/// The sending side of a gateway. AMT carries packets to gateways only.
struct NothingLeaves;

impl PacketSink for NothingLeaves {
    fn send(&mut self, _: &mut dyn Iterator<Item = OutPacket<'_>>) -> io::Result<usize> {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }

    fn poll_writable(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
