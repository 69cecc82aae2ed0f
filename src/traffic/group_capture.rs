//! Captures the packets of a group, which it joins.

use std::io;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::stream::find_interface;
use crate::model::{Group, IfIndex, IfName, Source};
use crate::probe::StreamError;
use crate::sys::filter::CaptureFilter;
use crate::sys::multicast::{self, Poller};
use crate::sys::packet::{CaptureScope, Frame};
use crate::sys::receive::PacketReceiver;

/// Size of the receive buffer in bytes, with the bookkeeping of the kernel.
const RECEIVE_BUFFER: u32 = 32 << 20;

/// A capture of one group on one interface. Dropping it leaves the group.
pub struct GroupCapture {
    receiver: PacketReceiver,
    poller: Poller,
    frames: Vec<Frame>,
    /// Holds the membership. Not bound, so it receives nothing.
    _membership: Socket,
}

impl GroupCapture {
    /// Captures the packets that arrive for `group`, from `source` if there is one, and joins.
    pub fn open(
        interface: &IfName,
        group: Group,
        source: Option<Source>,
    ) -> Result<Self, StreamError> {
        let index = find_interface(interface)?.index;
        let filter = CaptureFilter::Group(group);
        let receiver = PacketReceiver::open(index, &filter, RECEIVE_BUFFER, CaptureScope::Incoming)
            .map_err(|error| match error.kind() {
                io::ErrorKind::PermissionDenied => StreamError::Usage(format!(
                    "cannot capture on {interface}: {error}; run as root, or with CAP_NET_RAW"
                )),
                _ => StreamError::System {
                    what: "capture",
                    error,
                },
            })?;
        let membership = join(index, group, source).map_err(|error| StreamError::Socket {
            what: "join",
            interface: interface.clone(),
            group,
            error,
        })?;
        Ok(Self {
            poller: Poller::new(std::slice::from_ref(&receiver)),
            receiver,
            frames: Vec::new(),
            _membership: membership,
        })
    }

    /// Waits for packets for `timeout` at most, and passes each to `on_packet` with its time of
    /// reception in nanoseconds since 1970. The packets begin with the IP header.
    pub fn receive(
        &mut self,
        timeout: Duration,
        on_packet: &mut dyn FnMut(u64, &[u8]),
    ) -> Result<(), StreamError> {
        let system_error = |what| move |error| StreamError::System { what, error };
        self.poller
            .wait(timeout)
            .map_err(system_error("wait for packets"))?;
        self.frames.clear();
        let buffer = match self.receiver.receive(&mut self.frames) {
            Ok(buffer) => buffer,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(e) => return Err(system_error("capture")(e)),
        };
        for frame in &self.frames {
            let start = frame.start as usize;
            let packet = buffer.bytes().get(start..start + frame.len as usize);
            if let Some(packet) = packet {
                on_packet(frame.received_ns, packet);
            }
        }
        Ok(())
    }

    /// Returns how many packets the kernel dropped since the last call, because they were not read
    /// in time.
    pub fn take_dropped(&self) -> u64 {
        self.receiver.take_dropped().unwrap_or(0)
    }
}

fn join(index: IfIndex, group: Group, source: Option<Source>) -> io::Result<Socket> {
    let domain = match group.addr().is_ipv4() {
        true => Domain::IPV4,
        false => Domain::IPV6,
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    multicast::join(&socket, index, group, source)?;
    Ok(socket)
}
