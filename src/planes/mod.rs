//! Planes: ways to receive, forward and send packets. Each plane implements [`Plane`].
//!
//! A plane that only captures and transmits passes batches to the
//! [pipeline](crate::pipeline), which makes the forwarding decisions. A plane can also forward by
//! itself, such as a program in the kernel: it receives every change of the forwarding table by
//! [`Plane::sync`], and what it forwards is read by [`Plane::take_counters`]. Packets that it does
//! not forward arrive through its captures.

pub mod ebpf;
pub mod packet;
pub mod sim;
pub mod tunnel;

use std::io;
use std::sync::Arc;

use crate::forward::DropReason;
use crate::model::{IfName, InterfaceId, PlaneName, RouteName, TranslationKind};
use crate::pipeline::{CaptureHandle, PacketSink, PacketSource};
use crate::sys::ingress_claims::{IngressClaim, IngressClaims};
use crate::table::FibDiff;
use crate::table::flows::FlowKey;

/// A way to receive, forward and send packets.
pub trait Plane: Send + Sync + 'static {
    /// Returns the `plane` label of metrics. Interfaces name their plane by it.
    fn name(&self) -> &'static str;

    /// Returns the `plane` label of packets that leave through [`Plane::transmit`]. It differs from
    /// the name if the plane also forwards by itself.
    fn transmit_label(&self) -> &'static str {
        self.name()
    }

    /// Applies a change of the forwarding table. It is called before the interface actors use the
    /// new table. A plane that forwards nothing by itself has nothing to do.
    ///
    /// # Errors
    /// The plane cannot forward by the new table. It must then forward nothing by itself, so that
    /// every packet arrives through its captures.
    fn sync(&self, diff: &FibDiff) -> io::Result<()> {
        let _ = diff;
        Ok(())
    }

    /// Returns who forwards the packets of a flow that arrives on an interface.
    fn flow_forwarding(&self, ingress: InterfaceId, flow: FlowKey) -> FlowForwarding {
        let _ = (ingress, flow);
        FlowForwarding {
            plane: self.name(),
            declined: None,
        }
    }

    /// Returns what the plane has forwarded and dropped by itself since the last call.
    fn take_counters(&self) -> PlaneCounters {
        PlaneCounters::default()
    }

    /// Called when what [`Plane::take_counters`] returned until now is about to be stored for the next
    /// process.
    fn begin_to_keep_counters(&self) {}

    /// Called when that is stored. If this process dies, the plane of the next one counts what was
    /// forwarded since then.
    fn counters_are_kept(&self) {}

    /// Starts to capture on an interface. Called inside the runtime that will poll it.
    ///
    /// # Errors
    /// The interface does not exist, or the kernel refuses.
    fn capture(&self, interface: InterfaceId) -> io::Result<Box<dyn PacketSource>>;

    /// Prepares to continue a capture of another process. It is read after
    /// [`PacketSource::continue_at`]. Called inside the runtime that will poll it.
    ///
    /// # Errors
    /// As [`Plane::capture`], or the plane cannot continue captures.
    fn adopt(
        &self,
        interface: InterfaceId,
        handle: CaptureHandle,
    ) -> io::Result<Box<dyn PacketSource>> {
        let _ = (interface, handle);
        let reason = "its plane cannot continue a capture of another process";
        Err(io::Error::new(io::ErrorKind::Unsupported, reason))
    }

    /// Starts to capture the incoming packets of an interface. A plane may use this to make sending
    /// cheaper on an interface that is no ingress.
    ///
    /// # Errors
    /// As [`Plane::capture`].
    fn watch(&self, interface: InterfaceId) -> io::Result<Box<dyn PacketSource>> {
        self.capture(interface)
    }

    /// Opens an interface to send on. Called inside the runtime that will poll it.
    ///
    /// # Errors
    /// The interface does not exist, or the kernel refuses.
    fn transmit(&self, interface: InterfaceId) -> io::Result<Box<dyn PacketSink>>;

    /// Called when all interfaces are captured. What an earlier process left in the kernel, and this
    /// one has not taken over, has to end.
    fn end_start(&self) {}

    /// Called before the process ends. A plane that forwards by itself ends that, or continues
    /// without the process if `keep_forwarding` is set and it can.
    fn stop(&self, keep_forwarding: bool) {
        let _ = keep_forwarding;
    }

    /// Returns the number of packets that this machine dropped since it started because the
    /// receive queue of a core was full (`softnet_stat`). The number covers all programs; copies
    /// that a bridge makes of our packets are among them. `None` where no source has the number.
    fn backlog_dropped(&self) -> Option<u64> {
        None
    }
}

/// Who forwards the packets of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowForwarding {
    /// The `plane` label of their metrics.
    pub plane: &'static str,
    /// Why the plane of the interface does not forward them by itself.
    pub declined: Option<String>,
}

/// Packets that a plane forwarded and dropped by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlaneCounters {
    /// Packets sent, by path.
    pub paths: Vec<PathCount>,
    /// Packets received, by ingress interface.
    pub received: Vec<ReceivedCount>,
    /// Packets translated, by kind.
    pub translated: [u64; TranslationKind::ALL.len()],
    /// Packets dropped: the interface, the reason, and the number.
    pub dropped: Vec<(IfName, DropReason, u64)>,
}

/// Packets that a plane sent on one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathCount {
    /// The route.
    pub route: RouteName,
    /// The ingress interface.
    pub iif: IfName,
    /// The egress interface.
    pub oif: IfName,
    /// Packets.
    pub packets: u64,
    /// IP bytes.
    pub bytes: u64,
}

/// Packets that a plane received on one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedCount {
    /// The ingress interface.
    pub iif: IfName,
    /// Packets.
    pub packets: u64,
    /// IP bytes.
    pub bytes: u64,
}

/// The planes of a router. Each interface names the plane that serves it.
pub struct Planes {
    default: Box<dyn Plane>,
    others: Vec<Box<dyn Plane>>,
    /// `None`: another process may take packets from the same interfaces.
    claims: Option<IngressClaims>,
}

impl Planes {
    /// Returns a set of planes. `default` serves the interfaces that name no other plane.
    pub fn new(default: Box<dyn Plane>, others: Vec<Box<dyn Plane>>) -> Self {
        Self {
            default,
            others,
            claims: None,
        }
    }

    /// Refuses interfaces of which another mcastor takes the packets.
    pub fn with_claims(self) -> Self {
        Self {
            claims: Some(IngressClaims::default()),
            ..self
        }
    }

    /// Claims an ingress interface, before it is captured. `None` if no claim is needed, or the
    /// process that this one replaces still has it: see [`Self::claim_if_free`].
    ///
    /// # Errors
    /// `AddrInUse`: another mcastor takes the packets of this interface.
    pub fn claim(&self, interface: InterfaceId) -> io::Result<Option<Arc<IngressClaim>>> {
        match (&self.claims, interface.ifindex()) {
            (Some(claims), Some(index)) => claims.take(index),
            // A tunnel belongs to its process.
            _ => Ok(None),
        }
    }

    /// Claims an ingress interface if the process that had it has ended. Does not wait.
    pub fn claim_if_free(&self, interface: InterfaceId) -> Option<Arc<IngressClaim>> {
        self.claims.as_ref()?.take_if_free(interface.ifindex()?)
    }

    /// Adds a plane for the interfaces that name it.
    pub fn add(&mut self, plane: Box<dyn Plane>) {
        self.others.push(plane);
    }

    /// Returns all planes, the default one first.
    pub fn all(&self) -> impl Iterator<Item = &dyn Plane> {
        std::iter::once(&self.default)
            .chain(&self.others)
            .map(AsRef::as_ref)
    }

    /// Returns the plane with this name; without a name, the default plane.
    ///
    /// # Errors
    /// There is no plane with this name.
    pub fn serving(&self, name: Option<PlaneName>) -> io::Result<&dyn Plane> {
        let Some(name) = name else {
            return Ok(self.default.as_ref());
        };
        let plane = self.all().find(|plane| plane.name() == name.as_str());
        plane.ok_or_else(|| io::Error::other(format!("there is no plane {name}")))
    }
}
