//! UDP ports of this host that are in use by packets that the kernel does not send.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;

use socket2::{Domain, Protocol, Socket, Type};

use super::limits::{DescriptorUse, outside_reserve};
use crate::model::IfIndex;

/// Receive buffer in bytes: a few answers that arrived in fragments.
const BUFFER_BYTES: usize = 128 << 10;
/// The longest UDP payload.
const MAX_PAYLOAD: usize = 65_535;

/// A reserved port. While it exists, no other program gets the port, and the kernel answers datagrams
/// to it with no ICMP error.
#[derive(Debug)]
pub struct PortReservation(Socket);

impl PortReservation {
    /// Reserves the port of an address on a link.
    ///
    /// # Errors
    /// The port is in use, or the address is not one of this host.
    pub fn bind(address: IpAddr, port: u16, link: IfIndex) -> io::Result<Self> {
        let address = match address {
            IpAddr::V4(_) => SocketAddr::new(address, port),
            IpAddr::V6(address) => SocketAddrV6::new(address, port, 0, link.get()).into(),
        };
        let kind = Type::DGRAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        let fd = outside_reserve(OwnedFd::from(socket), DescriptorUse::Packets)?;
        let socket = Socket::from(fd);
        socket.set_recv_buffer_size(BUFFER_BYTES)?;
        socket.bind(&address.into())?;
        Ok(Self(socket))
    }

    /// Returns the next datagram that waits, which the kernel reassembled if it was in fragments, and
    /// its sender; `None` if none waits. Does not block.
    pub fn receive(&self) -> Option<(Vec<u8>, SocketAddr)> {
        let mut buffer = [MaybeUninit::uninit(); MAX_PAYLOAD];
        let (len, sender) = self.0.recv_from(&mut buffer).ok()?;
        let payload = buffer.get(..len)?;
        // SAFETY: the kernel has written the first `len` bytes.
        let payload = payload.iter().map(|byte| unsafe { byte.assume_init() });
        Some((payload.collect(), sender.as_socket()?))
    }
}
