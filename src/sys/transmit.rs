//! Sending IP packets out of one interface, many with one system call.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use super::packet::{address, bind, set_option, socket};
use crate::model::IfIndex;
use crate::model::addr::ethernet_of;
use crate::wire::vlan::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};

/// Most packets one system call takes (`UIO_MAXIOV`, `sendmmsg(2)`).
const MOST_PACKETS: usize = 256;

/// What the kernel may hold of ours before it says it is full, in bytes.
const SEND_BUFFER: i32 = 4 << 20;

/// A socket that sends on one interface and receives nothing.
///
/// The kernel writes the link header (`SOCK_DGRAM`): so tunnels and other links without
/// Ethernet work the same, and one packet serves any number of egresses unchanged.
pub struct Transmitter {
    fd: Arc<OwnedFd>,
    messages: Vec<libc::mmsghdr>,
    parts: Vec<libc::iovec>,
    addresses: Vec<libc::sockaddr_ll>,
    index: IfIndex,
}

// SAFETY: the pointers inside `messages` and `parts` are only followed during `send`, which
// sets them anew each time.
unsafe impl Send for Transmitter {}

impl Transmitter {
    /// Opens the socket. Everything sent bears `mark`, by which captures of this instance
    /// know it. `qdisc_bypass` skips the device queue: faster, and invisible to tcpdump.
    pub fn open(index: IfIndex, mark: u32, qdisc_bypass: bool) -> io::Result<Self> {
        let fd = socket(libc::SOCK_DGRAM)?;
        set_option(&fd, libc::SOL_SOCKET, libc::SO_MARK, &mark)?;
        if qdisc_bypass {
            set_option(&fd, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &1i32)?;
        }
        // The forced form is for the administrator; the plain one is capped by the system.
        set_option(&fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &SEND_BUFFER)
            .or_else(|_| set_option(&fd, libc::SOL_SOCKET, libc::SO_SNDBUF, &SEND_BUFFER))?;
        bind(&fd, index, 0)?;
        Ok(Self {
            fd: Arc::new(fd),
            messages: Vec::new(),
            parts: Vec::new(),
            addresses: Vec::new(),
            index,
        })
    }

    /// Sends IP packets in order and returns how many the kernel took; fewer than given
    /// where it stopped at an error, which the next call then reports for the first.
    pub fn send<'a>(&mut self, packets: impl Iterator<Item = &'a [u8]>) -> io::Result<usize> {
        self.parts.clear();
        self.addresses.clear();
        self.messages.clear();
        for packet in packets.take(MOST_PACKETS) {
            self.parts.push(libc::iovec {
                iov_base: packet.as_ptr().cast_mut().cast(),
                iov_len: packet.len(),
            });
            self.addresses.push(destination(self.index, packet));
        }
        for (part, address) in self.parts.iter_mut().zip(&mut self.addresses) {
            self.messages.push(libc::mmsghdr {
                msg_hdr: libc::msghdr {
                    msg_name: std::ptr::from_mut(address).cast(),
                    msg_namelen: size_of::<libc::sockaddr_ll>() as libc::socklen_t,
                    msg_iov: part,
                    msg_iovlen: 1,
                    msg_control: std::ptr::null_mut(),
                    msg_controllen: 0,
                    msg_flags: 0,
                },
                msg_len: 0,
            });
        }
        // SAFETY: every message points to one iovec and one address that live in `self`
        // until the next call, and every iovec to packet bytes borrowed for 'a, which spans
        // this call; the kernel only reads them.
        let sent = unsafe {
            libc::sendmmsg(
                self.fd.as_raw_fd(),
                self.messages.as_mut_ptr(),
                self.messages.len() as u32,
                libc::MSG_DONTWAIT,
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(sent as usize)
    }
}

impl Transmitter {
    /// The socket, to wait until it takes more.
    pub fn writable(&self) -> Writable {
        Writable(self.fd.clone())
    }
}

/// The socket of a [`Transmitter`], to be watched. Only while there is something to wait for:
/// the kernel tells a watcher of every packet that has left, which costs a wake-up each.
pub struct Writable(Arc<OwnedFd>);

impl AsRawFd for Writable {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

/// The link-layer address of the group a packet goes to. A packet without a whole header
/// never comes here; it would go to the all-zero address, where nobody listens.
fn destination(index: IfIndex, packet: &[u8]) -> libc::sockaddr_ll {
    let v4 = || -> Option<[u8; 4]> { packet.get(16..20)?.try_into().ok() };
    let v6 = || -> Option<[u8; 16]> { packet.get(24..40)?.try_into().ok() };
    let (ethertype, mac) = match packet.first().map(|b| b >> 4) {
        Some(4) => (ETHERTYPE_IPV4, v4().map(|a| ethernet_of(a.into()))),
        _ => (ETHERTYPE_IPV6, v6().map(|a| ethernet_of(a.into()))),
    };
    let mut to = address(index, ethertype);
    to.sll_halen = 6;
    to.sll_addr[..6].copy_from_slice(&mac.unwrap_or_default());
    to
}
