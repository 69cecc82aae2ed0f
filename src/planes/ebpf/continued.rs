//! A capture that another process of this instance passes on. It becomes a capture that hands flows
//! over when that process has stopped to read it, and so has taken all its flows back.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use tracing::debug;

use super::capture::OffloadCapture;
use super::offload::OffloadedFlows;
use crate::model::{IfIndex, InterfaceId};
use crate::pipeline::hand_over::HandOver;
use crate::pipeline::{Batch, CaptureHandle, CapturePosition, PacketSource};
use crate::planes::packet::capture::SocketCapture;

/// The capture.
pub(super) struct ContinuedCapture {
    offload: Arc<OffloadedFlows>,
    interface: InterfaceId,
    index: IfIndex,
    stage: Stage,
}

enum Stage {
    /// The other process still reads it, or this one reads it without handing flows over.
    Socket(Box<SocketCapture>),
    Offload(Box<OffloadCapture>),
    /// An error ended it.
    Closed,
}

impl ContinuedCapture {
    /// Returns the capture with these sockets.
    pub(super) fn new(
        offload: Arc<OffloadedFlows>,
        (interface, index): (InterfaceId, IfIndex),
        socket: SocketCapture,
    ) -> Self {
        Self {
            offload,
            interface,
            index,
            stage: Stage::Socket(Box::new(socket)),
        }
    }

    fn source(&mut self) -> io::Result<&mut dyn PacketSource> {
        match &mut self.stage {
            Stage::Socket(socket) => Ok(socket.as_mut()),
            Stage::Offload(capture) => Ok(capture.as_mut()),
            Stage::Closed => Err(io::Error::other("the capture has failed")),
        }
    }
}

impl PacketSource for ContinuedCapture {
    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Batch>> {
        match self.source() {
            Ok(source) => source.poll_batch(cx),
            Err(e) => Poll::Ready(Err(e)),
        }
    }

    fn take_dropped(&mut self) -> u64 {
        self.source().map_or(0, PacketSource::take_dropped)
    }

    fn take_unknown_offload(&mut self) -> u64 {
        self.source().map_or(0, PacketSource::take_unknown_offload)
    }

    fn hand_over(&mut self) -> Option<&mut dyn HandOver> {
        self.source().ok()?.hand_over()
    }

    fn stop_capture(&mut self) {
        if let Ok(source) = self.source() {
            source.stop_capture();
        }
    }

    fn mode(&self) -> &'static str {
        match &self.stage {
            Stage::Socket(socket) => socket.mode(),
            Stage::Offload(capture) => capture.mode(),
            Stage::Closed => "closed",
        }
    }

    fn is_changing_mode(&self) -> bool {
        match &self.stage {
            Stage::Socket(socket) => socket.is_changing_mode(),
            Stage::Offload(capture) => capture.is_changing_mode(),
            Stage::Closed => false,
        }
    }

    fn share(&mut self) -> io::Result<Option<CaptureHandle>> {
        self.source()?.share()
    }

    fn end_sharing(&mut self) {
        if let Ok(source) = self.source() {
            source.end_sharing();
        }
    }

    fn position(&mut self) -> Option<CapturePosition> {
        self.source().ok()?.position()
    }

    fn continue_at(&mut self, position: CapturePosition) -> io::Result<()> {
        let Stage::Socket(mut socket) = std::mem::replace(&mut self.stage, Stage::Closed) else {
            return Ok(());
        };
        // The program comes before the filter that relies on it.
        let port = self.offload.open_port(self.interface, self.index);
        if let Err(e) = socket.continue_at(position) {
            if let Ok((port, _)) = port {
                self.offload.close_port(port);
            }
            return Err(e);
        }
        self.stage = match port {
            Ok(port) => {
                let capture = OffloadCapture::new(self.offload.clone(), port, Ok(*socket))?;
                Stage::Offload(Box::new(capture))
            }
            Err(e) => {
                debug!(
                    "index {}: the kernel does not forward from here: {e}",
                    self.index
                );
                Stage::Socket(socket)
            }
        };
        Ok(())
    }
}
