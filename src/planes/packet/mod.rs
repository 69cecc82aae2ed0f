//! The packet plane: `AF_PACKET` sockets in, `sendmmsg` out. Works on every link.

pub mod capture;
mod options;
pub mod rate;
mod ring_drops;
mod transmit;

use std::io;

use super::Plane;
use crate::model::{IfIndex, InterfaceId};
use crate::pipeline::{CaptureHandle, PacketSink, PacketSource};
use crate::sys::burst_limit::SoftnetStat;
use crate::sys::packet::CaptureScope;
use capture::SocketCapture;
use transmit::SocketTransmit;

pub use options::{Modes, PacketPlane};

impl Plane for PacketPlane {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn capture(&self, interface: InterfaceId) -> io::Result<Box<dyn PacketSource>> {
        let capture =
            SocketCapture::open(*self, ifindex(interface)?, CaptureScope::All, self.filter())?;
        Ok(Box::new(capture))
    }

    fn adopt(
        &self,
        interface: InterfaceId,
        handle: CaptureHandle,
    ) -> io::Result<Box<dyn PacketSource>> {
        let capture = SocketCapture::adopt(*self, ifindex(interface)?, handle, self.filter())?;
        Ok(Box::new(capture))
    }

    fn watch(&self, interface: InterfaceId) -> io::Result<Box<dyn PacketSource>> {
        let capture = SocketCapture::open(
            *self,
            ifindex(interface)?,
            CaptureScope::Incoming,
            self.filter(),
        )?;
        Ok(Box::new(capture))
    }

    fn transmit(&self, interface: InterfaceId) -> io::Result<Box<dyn PacketSink>> {
        let socket = SocketTransmit::open(ifindex(interface)?, self.mark, self.qdisc_bypass)?;
        Ok(Box::new(socket))
    }

    fn backlog_dropped(&self) -> Option<u64> {
        SoftnetStat::open()
            .and_then(|mut backlog| backlog.dropped())
            .ok()
    }
}

/// Returns the ifindex of an interface.
pub(super) fn ifindex(interface: InterfaceId) -> io::Result<IfIndex> {
    let not_a_link = || io::Error::other(format!("interface {interface} is not a kernel link"));
    interface.ifindex().ok_or_else(not_a_link)
}
