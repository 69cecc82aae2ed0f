//! Sends single IP packets on a link, to a group or to a station whose address is known.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use super::packet::address;
use super::transmit::{destination, send_socket};
use crate::model::{IfIndex, MacAddress};
use crate::wire::ip::IpHeader;

/// Sends on one link. The kernel writes the link header, and neither routes nor filters the packet,
/// so its source may be any.
#[derive(Debug)]
pub struct LinkSender {
    fd: OwnedFd,
    index: IfIndex,
}

impl LinkSender {
    /// Opens the socket. All packets carry `mark`.
    ///
    /// # Errors
    /// The interface does not exist, or the process may not open packet sockets.
    pub fn open(index: IfIndex, mark: u32) -> io::Result<Self> {
        let fd = send_socket(libc::SOCK_DGRAM, index, mark)?;
        Ok(Self { fd, index })
    }

    /// Sends a packet. A packet to a host goes to `station`; `None` on links without addresses.
    ///
    /// # Errors
    /// The kernel refuses the packet, or it is no IP packet.
    pub fn send(&self, packet: &[u8], station: Option<MacAddress>) -> io::Result<()> {
        let header = IpHeader::parse(packet);
        let header = header.map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let group = destination(self.index, packet);
        let ethertype = u16::from_be(group.sll_protocol);
        let to_station = |mac: Option<[u8; 6]>| {
            let mut to = address(self.index, ethertype);
            if let Some(mac) = mac {
                to.sll_halen = 6;
                to.sll_addr[..6].copy_from_slice(&mac);
            }
            to
        };
        let to = match header.destination {
            to if to.is_multicast() => group,
            IpAddr::V4(Ipv4Addr::BROADCAST) => to_station(Some([0xff; 6])),
            _ => to_station(station.map(|mac| mac.0)),
        };
        // SAFETY: packet and address are valid for reads of their lengths during the call.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                libc::MSG_DONTWAIT,
                std::ptr::from_ref(&to).cast(),
                size_of_val(&to) as libc::socklen_t,
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}
