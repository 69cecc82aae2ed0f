//! UDP sockets of tunnels: many datagrams with one system call, with the local address of each.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use socket2::{Domain, Protocol, Socket, Type};

use super::buffer::Buffer;
use super::limits::{DescriptorUse, outside_reserve};
use super::message_batch::{ControlBuffer, KernelData, MessageBatch, now_ns};
use super::packet::set_option_int;
use crate::model::TunnelEndpoint;

/// Size of the receive and send buffers in bytes.
const BUFFER_BYTES: usize = 8 << 20;

/// Largest number of datagrams of one call of `sendmmsg`.
const MAX_COPIES: usize = 128;

/// An address of the kernel, for either IP version.
#[repr(C)]
#[derive(Clone, Copy)]
union RawAddress {
    any: libc::sockaddr,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

// SAFETY: the fields consist of integers.
unsafe impl KernelData for RawAddress {}

/// A received datagram: a range of the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelDatagram {
    /// Offset of the payload.
    pub start: usize,
    /// Length of the payload.
    pub len: usize,
    /// Time of reception by the kernel, in nanoseconds of `CLOCK_REALTIME`.
    pub received_ns: u64,
    /// The sender, and the address that it sent to.
    pub endpoint: TunnelEndpoint,
}

/// A UDP socket of a tunnel.
#[derive(Debug)]
pub struct DatagramSocket {
    fd: OwnedFd,
    local: SocketAddr,
}

impl AsRawFd for DatagramSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for DatagramSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl DatagramSocket {
    /// Opens a socket. With an interface, datagrams leave and arrive there only.
    ///
    /// # Errors
    /// The address is in use or not one of this host, the interface does not exist, or the kernel
    /// refuses.
    pub fn open(address: SocketAddr, interface: Option<&str>) -> io::Result<Self> {
        let domain = Domain::for_address(address);
        let kind = Type::DGRAM.nonblocking().cloexec();
        let socket = Socket::new(domain, kind, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind_device(interface.map(str::as_bytes))?;
        socket.bind(&address.into())?;
        let local = UdpSocket::from(socket.try_clone()?).local_addr()?;
        let fd = outside_reserve(OwnedFd::from(socket), DescriptorUse::Packets)?;
        let half = (BUFFER_BYTES / 2) as i32;
        for (forced, limited) in [
            (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF),
            (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF),
        ] {
            set_option_int(&fd, libc::SOL_SOCKET, forced, half)
                .or_else(|_| set_option_int(&fd, libc::SOL_SOCKET, limited, half))?;
        }
        set_option_int(&fd, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)?;
        set_option_int(&fd, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1)?;
        let (level, destination) = match address {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_PKTINFO),
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
        };
        set_option_int(&fd, level, destination, 1)?;
        // Ignores a failure: kernels before 5.0 deliver each datagram by itself.
        let _ = set_option_int(&fd, libc::SOL_UDP, libc::UDP_GRO, 1);
        let socket = Self { fd, local };
        socket.set_fragmenting(true)?;
        Ok(socket)
    }

    /// Sets whether datagrams that exceed the path MTU are sent in fragments, which the far end of a
    /// tunnel reassembles. Without, they cannot be sent: see [`is_too_big`]. A new socket fragments,
    /// because nothing would lower the MTU inside the tunnel.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_fragmenting(&self, fragment: bool) -> io::Result<()> {
        let (level, option) = match self.local {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
        };
        // Both IP versions have the same values.
        let discover = match fragment {
            true => libc::IP_PMTUDISC_DONT,
            false => libc::IP_PMTUDISC_DO,
        };
        set_option_int(&self.fd, level, option, discover)
    }

    /// Continues the socket of another process.
    ///
    /// # Errors
    /// It is no UDP socket, or the kernel refuses.
    pub fn from_descriptor(fd: OwnedFd) -> io::Result<Self> {
        let local = UdpSocket::from(fd.try_clone()?).local_addr()?;
        let fd = outside_reserve(fd, DescriptorUse::Packets)?;
        Ok(Self { fd, local })
    }

    /// Returns the address that the socket is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Sends one datagram.
    ///
    /// # Errors
    /// As [`CopySender::send`].
    pub fn send(&self, to: TunnelEndpoint, payload: &[u8]) -> io::Result<()> {
        CopySender::default()
            .send(self, &[payload], None, &[to])
            .map(drop)
    }
}

/// Receives datagrams of a socket into pooled buffers.
pub struct DatagramReceiver {
    socket: Arc<DatagramSocket>,
    /// The number of lost datagrams as the kernel reported it last.
    lost: u32,
    /// Lost datagrams that were not returned yet.
    lost_since: u64,
    batch: MessageBatch<RawAddress>,
}

impl AsRawFd for DatagramReceiver {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// What the control messages of a datagram say.
#[derive(Default)]
struct Controls {
    received_ns: Option<u64>,
    local: Option<IpAddr>,
    /// Length of the datagrams that the kernel coalesced.
    segment: Option<usize>,
    lost: Option<u32>,
}

impl DatagramReceiver {
    /// Creates a receiver. A socket has one at a time.
    pub fn new(socket: Arc<DatagramSocket>) -> Self {
        Self {
            socket,
            lost: 0,
            lost_since: 0,
            batch: MessageBatch::new(),
        }
    }

    /// Receives the waiting datagrams, at most one buffer of them, and appends them in order of
    /// arrival. Does not block.
    ///
    /// # Errors
    /// `WouldBlock` if none waits, or an error of the kernel. ICMP errors are not reported.
    pub fn receive(&mut self, datagrams: &mut Vec<TunnelDatagram>) -> io::Result<Buffer> {
        let (mut buffer, count) = self.batch.receive(self.socket.fd.as_fd())?;
        for n in 0..count {
            let len = self.batch.len(n);
            let is_truncated = self.batch.is_truncated(n);
            let controls = self.controls(n);
            if let Some(lost) = controls.lost {
                self.lost_since += u64::from(lost.wrapping_sub(self.lost));
                self.lost = lost;
            }
            let Some(remote) = self.remote(n).filter(|_| !is_truncated && len > 0) else {
                continue;
            };
            let start = buffer.make_contiguous(n, len);
            let local = controls.local.unwrap_or(self.socket.local.ip());
            let segment = controls.segment.filter(|s| *s > 0).unwrap_or(len);
            let received_ns = controls.received_ns.unwrap_or_else(now_ns);
            for offset in (0..len).step_by(segment) {
                datagrams.push(TunnelDatagram {
                    start: start + offset,
                    len: segment.min(len - offset),
                    received_ns,
                    endpoint: TunnelEndpoint { remote, local },
                });
            }
        }
        Ok(buffer)
    }

    /// Returns whether nothing waited any more after the last call of
    /// [`receive`](DatagramReceiver::receive).
    pub fn is_drained(&self) -> bool {
        self.batch.is_drained()
    }

    /// Returns the number of datagrams since the last call that the kernel dropped because the
    /// receive buffer was full.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.lost_since)
    }

    /// Returns the sender of datagram `n`.
    fn remote(&self, n: usize) -> Option<SocketAddr> {
        let name = self.batch.address(n);
        // SAFETY: the kernel filled the address of the family that it names, and all its fields
        // are integers, for which any bytes are valid.
        unsafe {
            match i32::from(name.any.sa_family) {
                libc::AF_INET => {
                    let addr = Ipv4Addr::from_bits(u32::from_be(name.v4.sin_addr.s_addr));
                    let port = u16::from_be(name.v4.sin_port);
                    Some(SocketAddrV4::new(addr, port).into())
                }
                libc::AF_INET6 => {
                    let addr = Ipv6Addr::from(name.v6.sin6_addr.s6_addr);
                    let port = u16::from_be(name.v6.sin6_port);
                    // Only link-local addresses need the scope.
                    let scope = match addr.is_unicast_link_local() {
                        true => name.v6.sin6_scope_id,
                        false => 0,
                    };
                    Some(SocketAddrV6::new(addr, port, 0, scope).into())
                }
                _ => None,
            }
        }
    }

    fn controls(&self, n: usize) -> Controls {
        let mut controls = Controls::default();
        self.batch
            .for_each_control(n, |control| match control.kind() {
                (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => {
                    controls.received_ns = control.time_ns()
                }
                (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => controls.lost = control.data(),
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let segment = control.data::<i32>();
                    controls.segment = segment.and_then(|segment| usize::try_from(segment).ok());
                }
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = control.data::<libc::in_pktinfo>();
                    let local = info.map(|info| u32::from_be(info.ipi_addr.s_addr));
                    controls.local = local.map(|local| Ipv4Addr::from_bits(local).into());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = control.data::<libc::in6_pktinfo>();
                    controls.local = info.map(|info| Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
                }
                _ => {}
            });
        controls
    }
}

/// Sends one payload to many receivers.
#[derive(Default)]
pub struct CopySender {
    messages: Vec<libc::mmsghdr>,
    parts: Vec<libc::iovec>,
    names: Vec<RawAddress>,
    controls: Vec<ControlBuffer>,
}

// SAFETY: the pointers inside `messages` and `parts` are only followed during `send`, which sets them
// before each system call.
unsafe impl Send for CopySender {}

impl CopySender {
    /// Sends the parts of a payload, one after the other, to the first receivers of a list. Returns
    /// to how many, at least one. All must have the IP version of the socket. With `segment`, the
    /// kernel makes datagrams of this length of the payload (`UDP_SEGMENT`), and a shorter last one.
    ///
    /// # Errors
    /// The kernel refuses the first receiver. `WouldBlock`: the send buffer is full.
    /// [`is_segment_error`]: it may accept the datagrams one by one.
    pub fn send(
        &mut self,
        socket: &DatagramSocket,
        payload: &[&[u8]],
        segment: Option<u16>,
        to: &[TunnelEndpoint],
    ) -> io::Result<usize> {
        let to = &to[..to.len().min(MAX_COPIES)];
        self.parts.clear();
        self.parts.extend(payload.iter().map(|part| libc::iovec {
            iov_base: part.as_ptr().cast_mut().cast(),
            iov_len: part.len(),
        }));
        self.names.clear();
        self.names
            .extend(to.iter().map(|to| raw_address(to.remote)));
        // A message has the part that is written for it, so what is left there needs no removal.
        if self.controls.len() < to.len() {
            self.controls.resize(to.len(), ControlBuffer([0; 128]));
        }
        self.messages.clear();
        for (n, to) in to.iter().enumerate() {
            // SAFETY: this C struct consists of integers and pointers, for which zeros are valid.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            let header = &mut message.msg_hdr;
            header.msg_name = std::ptr::from_mut(&mut self.names[n]).cast();
            header.msg_namelen = match to.remote {
                SocketAddr::V4(_) => size_of::<libc::sockaddr_in>(),
                SocketAddr::V6(_) => size_of::<libc::sockaddr_in6>(),
            } as libc::socklen_t;
            header.msg_iov = self.parts.as_mut_ptr();
            header.msg_iovlen = self.parts.len() as _;
            let mut controls = ControlWriter::new(&mut self.controls[n]);
            controls.add_local(to.local);
            if let Some(segment) = segment {
                controls.add(libc::SOL_UDP, libc::UDP_SEGMENT, segment);
            }
            controls.finish(header);
            self.messages.push(message);
        }
        // SAFETY: each message points to a name, a control buffer and the parts in `self`, which
        // point to `payload`. All of it outlives the call, and the kernel only reads it.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                self.messages.as_mut_ptr(),
                self.messages.len() as u32,
                (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _,
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(sent as usize)
    }
}

/// Returns whether an error of [`CopySender::send`] may be caused by `segment`: the kernel or the
/// interface does not support it, or a datagram exceeds the MTU of the path.
pub fn is_segment_error(error: &io::Error) -> bool {
    let errors = [libc::EINVAL, libc::EIO, libc::EMSGSIZE, libc::EOPNOTSUPP];
    error.raw_os_error().is_some_and(|e| errors.contains(&e))
}

/// Returns whether an error of [`CopySender::send`] says that a datagram exceeds the path MTU.
pub fn is_too_big(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EMSGSIZE)
}

/// Writes the control messages of a message that is sent.
struct ControlWriter<'a> {
    buffer: &'a mut ControlBuffer,
    len: usize,
}

impl<'a> ControlWriter<'a> {
    fn new(buffer: &'a mut ControlBuffer) -> Self {
        Self { buffer, len: 0 }
    }

    /// Adds the source address. Without one, the kernel chooses.
    fn add_local(&mut self, local: IpAddr) {
        match local {
            _ if local.is_unspecified() => {}
            IpAddr::V4(addr) => self.add(
                libc::IPPROTO_IP,
                libc::IP_PKTINFO,
                libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr {
                        s_addr: addr.to_bits().to_be(),
                    },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                },
            ),
            IpAddr::V6(addr) => self.add(
                libc::IPPROTO_IPV6,
                libc::IPV6_PKTINFO,
                libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr {
                        s6_addr: addr.octets(),
                    },
                    ipi6_ifindex: 0,
                },
            ),
        }
    }

    /// Adds a control message, if there is space.
    fn add<T: Copy>(&mut self, level: libc::c_int, kind: libc::c_int, data: T) {
        let size = size_of::<T>() as u32;
        // SAFETY: these functions only compute lengths.
        let (len, space) = unsafe { (libc::CMSG_LEN(size), libc::CMSG_SPACE(size) as usize) };
        if self.len + space > size_of::<ControlBuffer>() {
            return;
        }
        // SAFETY: `space` bytes fit behind `self.len`, which is a multiple of the alignment of a
        // header, as `CMSG_SPACE` is. The data follows the header.
        unsafe {
            let entry = self.buffer.0.as_mut_ptr().add(self.len);
            let entry = entry.cast::<libc::cmsghdr>();
            (*entry).cmsg_level = level;
            (*entry).cmsg_type = kind;
            (*entry).cmsg_len = len as _;
            libc::CMSG_DATA(entry).cast::<T>().write_unaligned(data);
        }
        self.len += space;
    }

    /// Lets a message have what was added.
    fn finish(self, header: &mut libc::msghdr) {
        if self.len > 0 {
            header.msg_control = self.buffer.0.as_mut_ptr().cast();
            header.msg_controllen = self.len as _;
        }
    }
}

fn raw_address(address: SocketAddr) -> RawAddress {
    match address {
        SocketAddr::V4(address) => RawAddress {
            v4: libc::sockaddr_in {
                sin_family: libc::AF_INET as u16,
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: address.ip().to_bits().to_be(),
                },
                sin_zero: [0; 8],
            },
        },
        SocketAddr::V6(address) => RawAddress {
            v6: libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as u16,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr {
                    s6_addr: address.ip().octets(),
                },
                sin6_scope_id: address.scope_id(),
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_arrive_as_datagrams_from_the_local_address() {
        let open = || DatagramSocket::open("127.0.0.1:0".parse().unwrap(), None).unwrap();
        let (socket, far) = (open(), Arc::new(open()));
        let to = TunnelEndpoint {
            remote: far.local_addr(),
            local: Ipv4Addr::LOCALHOST.into(),
        };
        let payload: [&[u8]; 3] = [b"abcd", b"efgh", b"ij"];
        let sent = CopySender::default().send(&socket, &payload, Some(4), &[to, to]);
        assert_eq!(sent.unwrap(), 2);
        let mut receiver = DatagramReceiver::new(far);
        let mut received: Vec<Vec<u8>> = Vec::new();
        for _ in 0..1000 {
            let mut datagrams = Vec::new();
            match receiver.receive(&mut datagrams) {
                Ok(buffer) => received.extend(datagrams.iter().map(|datagram| {
                    assert_eq!(datagram.endpoint.remote, socket.local_addr());
                    buffer.bytes()[datagram.start..][..datagram.len].to_vec()
                })),
                Err(_) if received.len() < 6 => {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                Err(_) => break,
            }
        }
        let expected: Vec<&[u8]> = [payload, payload].concat();
        assert_eq!(received, expected);
    }
}
