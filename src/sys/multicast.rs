//! Multicast UDP sockets: options, memberships by interface index, and batched sending and
//! receiving.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use libc::{c_int, c_void};
use socket2::SockAddr;

use crate::model::{Group, IfIndex, Source};

/// Largest number of datagrams per call of [`send_batch`] or [`RecvBatch::recv`].
pub const BATCH: usize = 64;

/// Index of the drop counter in the result of `SO_MEMINFO` (`SK_MEMINFO_DROPS`, linux/sock_diag.h).
const MEMINFO_DROPS: usize = 8;

/// Size of the control message buffer. Timestamp, packet info and TTL need about 100 bytes.
const CONTROL_WORDS: usize = 32;

fn setsockopt<T: Copy>(fd: BorrowedFd<'_>, level: c_int, name: c_int, value: T) -> io::Result<()> {
    // SAFETY: `value` outlives the call, and the length is the size of `value`.
    let rc = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw const value).cast::<c_void>(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sends multicast of the IP version of `group` on interface `index`.
pub fn set_egress(socket: &impl AsFd, group: Group, index: IfIndex) -> io::Result<()> {
    let fd = socket.as_fd();
    let index = index.get() as c_int;
    match group.addr() {
        IpAddr::V4(_) => {
            let any = libc::in_addr { s_addr: 0 };
            let request = libc::ip_mreqn {
                imr_multiaddr: any,
                imr_address: any,
                imr_ifindex: index,
            };
            setsockopt(fd, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, request)
        }
        IpAddr::V6(_) => setsockopt(fd, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF, index),
    }
}

/// Sets the TTL or hop limit of sent multicast.
pub fn set_multicast_ttl(socket: &impl AsFd, group: Group, ttl: u8) -> io::Result<()> {
    let (level, name) = match group.addr() {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS),
    };
    setsockopt(socket.as_fd(), level, name, c_int::from(ttl))
}

/// Sets the DSCP (0 to 63) of sent packets. The ECN bits are 0.
pub fn set_dscp(socket: &impl AsFd, group: Group, dscp: u8) -> io::Result<()> {
    let (level, name) = match group.addr() {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TOS),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
    };
    setsockopt(socket.as_fd(), level, name, c_int::from(dscp & 63) << 2)
}

/// Makes the kernel split sent data into datagrams with `bytes` of payload each (`UDP_SEGMENT`).
pub fn set_udp_segment(socket: &impl AsFd, bytes: u16) -> io::Result<()> {
    let name = libc::UDP_SEGMENT;
    setsockopt(socket.as_fd(), libc::SOL_UDP, name, c_int::from(bytes))
}

/// Sends IPv4 datagrams without a UDP checksum.
pub fn set_no_checksum(socket: &impl AsFd) -> io::Result<()> {
    setsockopt(socket.as_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, 1)
}

/// Enables the metadata that [`RecvBatch`] reports: arrival time, interface and TTL.
pub fn set_receive_info(socket: &impl AsFd, group: Group) -> io::Result<()> {
    let fd = socket.as_fd();
    setsockopt(fd, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)?;
    let (level, names) = match group.addr() {
        IpAddr::V4(_) => (libc::IPPROTO_IP, [libc::IP_RECVTTL, libc::IP_PKTINFO]),
        IpAddr::V6(_) => (
            libc::IPPROTO_IPV6,
            [libc::IPV6_RECVHOPLIMIT, libc::IPV6_RECVPKTINFO],
        ),
    };
    names
        .into_iter()
        .try_for_each(|name| setsockopt(fd, level, name, 1))
}

/// Sets whether `socket` receives groups that only other sockets of the host joined. The kernel
/// default is true.
pub fn set_multicast_all(socket: &impl AsFd, group: Group, all: bool) -> io::Result<()> {
    let (level, name) = match group.addr() {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MULTICAST_ALL),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_ALL),
    };
    setsockopt(socket.as_fd(), level, name, c_int::from(all))
}

/// Sets the size of the receive buffer. With CAP_NET_ADMIN, it may exceed `net.core.rmem_max`.
pub fn set_receive_buffer(socket: &impl AsFd, bytes: u32) -> io::Result<()> {
    let fd = socket.as_fd();
    setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes)
        .or_else(|_| setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, bytes))
}

/// Returns the number of datagrams that the kernel dropped at `socket` because of a full buffer or
/// an invalid checksum.
pub fn dropped_datagrams(socket: &impl AsFd) -> io::Result<u32> {
    let mut info = [0u32; 16];
    let mut len = size_of_val(&info) as libc::socklen_t;
    // SAFETY: `info` and `len` outlive the call, and `len` is the size of `info`.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            info.as_mut_ptr().cast(),
            &mut len,
        )
    };
    if rc == 0 {
        Ok(info[MEMINFO_DROPS])
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Joins `group` on interface `index`, either from one `source` or from all sources (RFC 3678
/// section 5.1).
pub fn join(
    socket: &impl AsFd,
    index: IfIndex,
    group: Group,
    source: Option<Source>,
) -> io::Result<()> {
    membership(
        socket.as_fd(),
        index,
        group,
        source,
        (libc::MCAST_JOIN_GROUP, libc::MCAST_JOIN_SOURCE_GROUP),
    )
}

/// Leaves a membership that [`join`] created with the same arguments.
pub fn leave(
    socket: &impl AsFd,
    index: IfIndex,
    group: Group,
    source: Option<Source>,
) -> io::Result<()> {
    membership(
        socket.as_fd(),
        index,
        group,
        source,
        (libc::MCAST_LEAVE_GROUP, libc::MCAST_LEAVE_SOURCE_GROUP),
    )
}

fn membership(
    fd: BorrowedFd<'_>,
    index: IfIndex,
    group: Group,
    source: Option<Source>,
    (any_source, one_source): (c_int, c_int),
) -> io::Result<()> {
    let level = match group.addr() {
        IpAddr::V4(_) => libc::IPPROTO_IP,
        IpAddr::V6(_) => libc::IPPROTO_IPV6,
    };
    match source {
        None => {
            let request = libc::group_req {
                gr_interface: index.get(),
                gr_group: storage(group.addr()),
            };
            setsockopt(fd, level, any_source, request)
        }
        Some(source) => {
            let request = libc::group_source_req {
                gsr_interface: index.get(),
                gsr_group: storage(group.addr()),
                gsr_source: storage(source.addr()),
            };
            setsockopt(fd, level, one_source, request)
        }
    }
}

fn storage(addr: IpAddr) -> libc::sockaddr_storage {
    let mut storage = SockAddr::from(SocketAddr::new(addr, 0)).as_storage();
    // SAFETY: a `SockAddrStorage` contains a `sockaddr_storage`.
    unsafe { *storage.view_as::<libc::sockaddr_storage>() }
}

/// Returns the destination address for `group` and `port` on interface `index`.
pub fn destination(group: Group, port: u16, index: IfIndex) -> SockAddr {
    match group.addr() {
        IpAddr::V4(a) => SocketAddr::new(a.into(), port).into(),
        IpAddr::V6(a) => SocketAddrV6::new(a, port, 0, index.get()).into(),
    }
}

/// A datagram to send.
#[derive(Debug, Clone, Copy)]
pub struct OutgoingDatagram<'a> {
    /// The payload.
    pub data: &'a [u8],
    /// The destination; `None` on a connected socket.
    pub to: Option<&'a SockAddr>,
}

/// Sends up to [`BATCH`] of `messages` with one call and returns the number of sent ones. An error
/// refers to the first message.
pub fn send_batch(socket: &impl AsFd, messages: &[OutgoingDatagram<'_>]) -> io::Result<usize> {
    let messages = &messages[..messages.len().min(BATCH)];
    let mut iovecs = [libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 0,
    }; BATCH];
    // SAFETY: all-zero bytes are a valid `mmsghdr`: null pointers and zero lengths.
    let mut headers: [libc::mmsghdr; BATCH] = unsafe { MaybeUninit::zeroed().assume_init() };
    for ((message, iovec), header) in messages.iter().zip(&mut iovecs).zip(&mut headers) {
        iovec.iov_base = message.data.as_ptr().cast_mut().cast();
        iovec.iov_len = message.data.len();
        if let Some(to) = message.to {
            header.msg_hdr.msg_name = to.as_ptr().cast_mut().cast();
            header.msg_hdr.msg_namelen = to.len();
        }
        header.msg_hdr.msg_iov = iovec;
        header.msg_hdr.msg_iovlen = 1;
    }
    // SAFETY: the first `messages.len()` headers point to iovecs, payloads and addresses that
    // outlive the call, and the kernel only reads them.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_fd().as_raw_fd(),
            headers.as_mut_ptr(),
            messages.len() as libc::c_uint,
            0,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// A datagram in a [`RecvBatch`].
#[derive(Debug, Clone, Copy)]
pub struct ReceivedDatagram<'a> {
    /// The payload.
    pub data: &'a [u8],
    /// The sender; `None` if the kernel did not report one.
    pub from: Option<SocketAddr>,
    /// The interface of arrival.
    pub ifindex: Option<IfIndex>,
    /// TTL or hop limit.
    pub ttl: Option<u8>,
    /// Time of reception by the kernel, in nanoseconds since 1970.
    pub received_ns: Option<u64>,
}

/// Reusable buffers for [`BATCH`] datagrams.
pub struct RecvBatch {
    data: Vec<u8>,
    size: usize,
    names: Vec<libc::sockaddr_storage>,
    /// Consists of words, so that the control messages are aligned.
    control: Vec<[u64; CONTROL_WORDS]>,
    headers: Vec<libc::mmsghdr>,
    iovecs: Vec<libc::iovec>,
}

impl RecvBatch {
    /// Creates buffers for datagrams of up to `size` bytes. Longer datagrams are truncated.
    pub fn new(size: usize) -> Self {
        // SAFETY: all-zero bytes are a valid `sockaddr_storage`.
        let name: libc::sockaddr_storage = unsafe { MaybeUninit::zeroed().assume_init() };
        // SAFETY: all-zero bytes are a valid `mmsghdr`.
        let header: libc::mmsghdr = unsafe { MaybeUninit::zeroed().assume_init() };
        let iovec = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        Self {
            data: vec![0; size * BATCH],
            size,
            names: vec![name; BATCH],
            control: vec![[0; CONTROL_WORDS]; BATCH],
            headers: vec![header; BATCH],
            iovecs: vec![iovec; BATCH],
        }
    }

    /// Receives the waiting datagrams of `socket` and returns their number. Does not block: returns
    /// `WouldBlock` if there are none.
    pub fn recv(&mut self, socket: &impl AsFd) -> io::Result<usize> {
        let size = self.size.max(1);
        for (i, data) in self.data.chunks_exact_mut(size).enumerate() {
            let iovec = &mut self.iovecs[i];
            iovec.iov_base = data.as_mut_ptr().cast();
            iovec.iov_len = data.len();
            let header = &mut self.headers[i].msg_hdr;
            header.msg_name = (&raw mut self.names[i]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = iovec;
            header.msg_iovlen = 1;
            header.msg_control = self.control[i].as_mut_ptr().cast();
            header.msg_controllen = size_of_val(&self.control[i]) as _;
            header.msg_flags = 0;
        }
        // SAFETY: every header points to buffers of `self` with their correct lengths, and `self`
        // is borrowed during the call.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                self.headers.as_mut_ptr(),
                (self.data.len() / size) as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }

    /// Returns datagram `i` of the last [`RecvBatch::recv`]. `i` must be below the number that it
    /// returned.
    pub fn get(&self, i: usize) -> ReceivedDatagram<'_> {
        let header = &self.headers[i];
        let len = (header.msg_len as usize).min(self.size);
        let mut datagram = ReceivedDatagram {
            data: &self.data[i * self.size..][..len],
            from: socket_addr(&self.names[i]),
            ifindex: None,
            ttl: None,
            received_ns: None,
        };
        #[allow(clippy::unnecessary_cast)] // 32 bits with musl
        let control = header.msg_hdr.msg_controllen as usize;
        for (level, kind, bytes) in ControlMessages::new(&self.control[i], control) {
            match (level, kind) {
                (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => {
                    datagram.received_ns = plain::<libc::timespec>(bytes).and_then(|t| {
                        let seconds = u64::try_from(t.tv_sec).ok()?;
                        let ns = u64::try_from(t.tv_nsec).ok()?;
                        Some(seconds.wrapping_mul(1_000_000_000).wrapping_add(ns))
                    });
                }
                (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                    datagram.ttl = plain::<c_int>(bytes).and_then(|t| u8::try_from(t).ok());
                }
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    datagram.ifindex = plain::<libc::in_pktinfo>(bytes)
                        .and_then(|p| IfIndex::new(p.ipi_ifindex as u32));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    datagram.ifindex = plain::<libc::in6_pktinfo>(bytes)
                        .and_then(|p| IfIndex::new(p.ipi6_ifindex));
                }
                _ => {}
            }
        }
        datagram
    }
}

/// Types for which any bytes are a valid value.
trait Plain: Copy {}
impl Plain for c_int {}
impl Plain for libc::cmsghdr {}
impl Plain for libc::timespec {}
impl Plain for libc::in_pktinfo {}
impl Plain for libc::in6_pktinfo {}

fn plain<T: Plain>(bytes: &[u8]) -> Option<T> {
    (bytes.len() >= size_of::<T>()).then(|| {
        // SAFETY: the length was checked, any bytes are a valid `T`, and the read requires no
        // alignment.
        unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
    })
}

/// An iterator over the control messages in a buffer. Yields level, type and data.
struct ControlMessages<'a>(&'a [u8]);

impl<'a> ControlMessages<'a> {
    fn new(words: &'a [u64; CONTROL_WORDS], len: usize) -> Self {
        let bytes = words.as_ptr().cast::<u8>();
        let len = len.min(size_of_val(words));
        // SAFETY: `words` is initialised, at least `len` bytes long, and borrowed for `'a`.
        Self(unsafe { std::slice::from_raw_parts(bytes, len) })
    }
}

impl<'a> Iterator for ControlMessages<'a> {
    type Item = (c_int, c_int, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = plain::<libc::cmsghdr>(self.0)?;
        #[allow(clippy::unnecessary_cast)] // 32 bits with musl
        let len = header.cmsg_len as usize;
        let data = self.0.get(size_of::<libc::cmsghdr>()..len)?;
        self.0 = self
            .0
            .get(len.next_multiple_of(size_of::<usize>())..)
            .unwrap_or_default();
        Some((header.cmsg_level, header.cmsg_type, data))
    }
}

fn socket_addr(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let name = &raw const *name;
    // SAFETY: a `sockaddr_storage` is larger than every other sockaddr and aligned for it. The
    // family determines which of them the kernel wrote.
    unsafe {
        match c_int::from((*name).ss_family) {
            libc::AF_INET => {
                let v4 = &*name.cast::<libc::sockaddr_in>();
                let addr = Ipv4Addr::from_bits(u32::from_be(v4.sin_addr.s_addr));
                Some((addr, u16::from_be(v4.sin_port)).into())
            }
            libc::AF_INET6 => {
                let v6 = &*name.cast::<libc::sockaddr_in6>();
                let addr = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                Some((addr, u16::from_be(v6.sin6_port)).into())
            }
            _ => None,
        }
    }
}

/// Waits for several sockets to become readable.
pub struct Poller(Vec<libc::pollfd>);

impl Poller {
    /// Creates a poller for `sockets`. They must stay open while the poller is used; a closed
    /// socket counts as ready.
    pub fn new(sockets: &[impl AsFd]) -> Self {
        let pollfd = |fd: RawFd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        let fds = sockets.iter().map(|s| pollfd(s.as_fd().as_raw_fd()));
        Self(fds.collect())
    }

    /// Waits up to `timeout`, rounded up to milliseconds. A signal ends the wait early.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        let ms = timeout.as_nanos().div_ceil(1_000_000);
        let ms = c_int::try_from(ms).unwrap_or(c_int::MAX);
        // SAFETY: pointer and length are those of the vector.
        let rc = unsafe { libc::poll(self.0.as_mut_ptr(), self.0.len() as libc::nfds_t, ms) };
        if rc >= 0 {
            return Ok(());
        }
        self.0.iter_mut().for_each(|p| p.revents = 0);
        match io::Error::last_os_error() {
            e if e.kind() == io::ErrorKind::Interrupted => Ok(()),
            e => Err(e),
        }
    }

    /// Returns the positions of the sockets that were ready after the last wait.
    pub fn ready(&self) -> impl Iterator<Item = usize> {
        let ready = self.0.iter().enumerate().filter(|(_, p)| p.revents != 0);
        ready.map(|(i, _)| i)
    }
}
