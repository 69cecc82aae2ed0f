//! The eBPF plane: the kernel forwards, and the packet plane does what the kernel leaves.
//!
//! A program at tc ingress rewrites and copies the packets of known flows to their egresses. All
//! other packets arrive through the captures of the packet plane: first packets of flows, packets
//! that some egress does not get, and flows that the kernel declines ([`Declined`]).
//!
//! [`crate::sys::offload`] has the programs; [`plan`] decides which flows they get;
//! [`OffloadedFlows`] owns their tables; [`capture`] hands flows over without losing, duplicating or
//! reordering packets.

mod actions;
pub mod capture;
mod continued;
mod host;
pub mod offload;
pub mod plan;

use std::io;
use std::sync::Arc;

use tracing::debug;

use super::packet::capture::SocketCapture;
use super::packet::{PacketPlane, ifindex};
use super::{FlowForwarding, Plane, PlaneCounters};
use crate::model::InterfaceId;
use crate::pipeline::{CaptureHandle, PacketSink, PacketSource};
use crate::sys::filter::CaptureFilter;
use crate::sys::offload::{OffloadProgram, TableSizes};
use crate::sys::packet::CaptureScope;
use crate::table::FibDiff;
use crate::table::flows::FlowKey;
use capture::OffloadCapture;
use continued::ContinuedCapture;

pub use offload::OffloadedFlows;
pub use plan::Declined;

/// Largest number of different actions.
const MAX_ACTIONS: u32 = 4096;

/// The plane.
pub struct EbpfPlane {
    packet: PacketPlane,
    offload: Arc<OffloadedFlows>,
}

impl EbpfPlane {
    /// Its name.
    pub const NAME: &'static str = "ebpf";

    /// Returns the sizes of the tables for at most `flows` flows.
    pub fn table_sizes(flows: u32) -> TableSizes {
        TableSizes {
            flows: flows.max(1),
            actions: MAX_ACTIONS,
        }
    }

    /// Returns the plane for the loaded programs. Starts its thread, which inherits the capabilities
    /// of the calling one.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(mut packet: PacketPlane, program: OffloadProgram) -> io::Result<Self> {
        packet.mark = program.mark();
        let filter = CaptureFilter::Offload(program.capture().clone());
        let offload = OffloadedFlows::start(program, filter)?;
        Ok(Self { packet, offload })
    }

    /// Returns the flows in the kernel.
    pub fn offload(&self) -> &Arc<OffloadedFlows> {
        &self.offload
    }
}

impl Plane for EbpfPlane {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn transmit_label(&self) -> &'static str {
        self.packet.name()
    }

    fn sync(&self, diff: &FibDiff) -> io::Result<()> {
        self.offload.sync(diff);
        Ok(())
    }

    fn flow_forwarding(&self, ingress: InterfaceId, flow: FlowKey) -> FlowForwarding {
        match self.offload.flow_forwarding(ingress, flow) {
            Ok(true) => FlowForwarding {
                plane: self.name(),
                declined: None,
            },
            Ok(false) => FlowForwarding {
                plane: self.packet.name(),
                declined: Some("it is not handed over to the kernel yet".into()),
            },
            Err(declined) => FlowForwarding {
                plane: self.packet.name(),
                declined: Some(declined.to_string()),
            },
        }
    }

    fn take_counters(&self) -> PlaneCounters {
        self.offload.take_counters()
    }

    fn begin_to_keep_counters(&self) {
        self.offload.begin_to_keep_counters();
    }

    fn counters_are_kept(&self) {
        self.offload.counters_are_kept();
    }

    fn capture(&self, interface: InterfaceId) -> io::Result<Box<dyn PacketSource>> {
        let index = ifindex(interface)?;
        if !self.offload.serves(interface) {
            self.offload.remove_earlier_from(index);
            return self.packet.capture(interface);
        }
        // The filter needs the program: attach it first.
        match self.offload.open_port(interface, index) {
            Ok(port) => {
                let filter = self.offload.filter().clone();
                let socket = SocketCapture::open(self.packet, index, CaptureScope::All, filter);
                let offload = self.offload.clone();
                let capture = OffloadCapture::new(offload, port, socket);
                Ok(Box::new(capture?))
            }
            Err(e) => {
                debug!("index {index}: the kernel does not forward from here: {e}");
                self.packet.capture(interface)
            }
        }
    }

    fn adopt(
        &self,
        interface: InterfaceId,
        handle: CaptureHandle,
    ) -> io::Result<Box<dyn PacketSource>> {
        if !self.offload.serves(interface) {
            return self.packet.adopt(interface, handle);
        }
        let index = ifindex(interface)?;
        let filter = self.offload.filter().clone();
        let socket = SocketCapture::adopt(self.packet, index, handle, filter)?;
        let offload = self.offload.clone();
        Ok(Box::new(ContinuedCapture::new(
            offload,
            (interface, index),
            socket,
        )))
    }

    fn watch(&self, interface: InterfaceId) -> io::Result<Box<dyn PacketSource>> {
        self.packet.watch(interface)
    }

    fn transmit(&self, interface: InterfaceId) -> io::Result<Box<dyn PacketSink>> {
        self.packet.transmit(interface)
    }

    fn end_start(&self) {
        self.offload.remove_earlier();
    }

    fn stop(&self, keep_forwarding: bool) {
        self.offload.stop(keep_forwarding);
    }

    fn backlog_dropped(&self) -> Option<u64> {
        self.packet.backlog_dropped()
    }
}
