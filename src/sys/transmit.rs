//! Sends IP packets out of one interface, many with one system call.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use tracing::info;

use super::bpf_burst::{self, BurstOutcome, BurstProgram};
use super::burst_limit::{BurstLimit, SoftnetStat};
use super::link_properties::{LinkProperties, link_properties};
use super::packet::{OutPacket, address, bind, set_option, set_option_int, socket};
use crate::model::IfIndex;
use crate::model::addr::group_mac_address;
use crate::wire::offload::VNET_HEADER_LEN;
use crate::wire::vlan::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};

/// Largest number of packets per call. It bounds the arrays of one call; the kernel itself accepts
/// up to `UIO_MAXIOV` (1024) messages in one `sendmmsg(2)`.
const MAX_BATCH: usize = 256;

/// Size of the socket send buffer in bytes.
const SEND_BUFFER_BYTES: i32 = 4 << 20;

/// Smallest burst. A burst has a fixed cost of about four single packets.
const MIN_BURST: usize = 8;

/// Interval between queries of the link properties while the link cannot take bursts yet.
const LINK_RECHECK_INTERVAL: Duration = Duration::from_millis(500);

/// `NET_XMIT_DROP` (`linux/netdevice.h`): the queue dropped this packet.
const NET_XMIT_DROP: u32 = 1;

thread_local! {
    /// Loaded at the first use on a thread. `Some(None)`: the kernel refused it.
    static BURST_PROGRAM: RefCell<Option<Option<BurstProgram>>> = const { RefCell::new(None) };
    /// Opened at the first use on a thread. `Some(None)`: the file cannot be opened.
    static SOFTNET_STAT: RefCell<Option<Option<SoftnetStat>>> = const { RefCell::new(None) };
}

/// The headers in front of a GSO packet: `virtio_net_hdr`, then Ethernet.
type Prefix = [u8; VNET_HEADER_LEN + bpf_burst::ETHERNET_HEADER_LEN];

/// Sends on one interface and receives nothing.
///
/// Ordinary packets use a `SOCK_DGRAM` socket: the kernel writes the link header, so tunnels and
/// other links without Ethernet work the same, and several egresses can send one packet unchanged.
///
/// A GSO packet holds several UDP datagrams that the kernel or the device segments. GSO packets use
/// a second, `SOCK_RAW` socket, because only there does the kernel accept the header that describes
/// the segments (`PACKET_VNET_HDR`, packet(7)).
pub struct Transmitter {
    fd: Arc<OwnedFd>,
    gso_socket: GsoSocket,
    /// The socket of the last call.
    last_used: Arc<OwnedFd>,
    messages: Vec<libc::mmsghdr>,
    /// Per packet its prefix, which may be empty, and its bytes.
    iovecs: Vec<[libc::iovec; 2]>,
    prefixes: Vec<Prefix>,
    addresses: Vec<libc::sockaddr_ll>,
    index: IfIndex,
    mark: u32,
    qdisc_bypass: bool,
    /// Whether the link takes bursts: see [`super::bpf_burst`].
    bursts: bool,
    burst_limit: BurstLimit,
    /// When to query the link properties again; `None` if that is not necessary.
    recheck_at: Option<Instant>,
}

/// The socket for GSO packets.
enum GsoSocket {
    /// Not needed so far.
    Unopened,
    Open(Arc<OwnedFd>),
    /// The link or the kernel does not take GSO packets.
    Unsupported,
}

// SAFETY: the pointers inside `messages` and `iovecs` are only followed during `send`, which sets
// them before each system call.
unsafe impl Send for Transmitter {}

impl Transmitter {
    /// Opens the socket.
    ///
    /// All packets carry `mark`, by which captures of this instance recognise them. `qdisc_bypass`
    /// skips the queueing discipline of the device (`PACKET_QDISC_BYPASS`): faster, but invisible
    /// to tcpdump.
    pub fn open(index: IfIndex, mark: u32, qdisc_bypass: bool) -> io::Result<Self> {
        let fd = send_socket(libc::SOCK_DGRAM, index, mark)?;
        if qdisc_bypass {
            set_option(&fd, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &1i32)?;
        }
        let fd = Arc::new(fd);
        let mut transmitter = Self {
            last_used: fd.clone(),
            fd,
            gso_socket: GsoSocket::Unopened,
            messages: Vec::new(),
            iovecs: Vec::new(),
            prefixes: Vec::new(),
            addresses: Vec::new(),
            index,
            mark,
            qdisc_bypass,
            bursts: false,
            burst_limit: BurstLimit::new(MIN_BURST, bpf_burst::MAX_PACKETS),
            recheck_at: None,
        };
        // The other end of a veth pair receives packets immediately, so bursts save time there. A
        // link with a queue uses the socket, which can wait until the queue has space.
        let link = link_properties(index).unwrap_or_default();
        if link.veth && !qdisc_bypass {
            transmitter.set_link(link);
            // Loading the program takes some milliseconds: do it before the first packet.
            transmitter.sends_bursts();
        }
        Ok(transmitter)
    }

    /// Returns true if the interface takes GSO packets.
    ///
    /// False in three cases: the link header is not certain to be plain Ethernet; the device queue
    /// is bypassed, because the kernel then drops packets that the device cannot segment; the
    /// kernel refused a GSO packet before.
    pub fn accepts_gso(&mut self) -> bool {
        if let GsoSocket::Unopened = self.gso_socket {
            let is_suitable = !self.qdisc_bypass
                && link_properties(self.index).is_ok_and(|link| link.plain_ethernet)
                && ethernet_address(&self.fd).is_some();
            let open = || {
                let fd = send_socket(libc::SOCK_RAW, self.index, self.mark)?;
                set_option_int(&fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
                io::Result::Ok(fd)
            };
            self.gso_socket = match is_suitable.then(open) {
                Some(Ok(fd)) => GsoSocket::Open(Arc::new(fd)),
                Some(Err(e)) => {
                    log_gso_unavailable(self.index, &e);
                    GsoSocket::Unsupported
                }
                None => GsoSocket::Unsupported,
            };
        }
        matches!(self.gso_socket, GsoSocket::Open(_))
    }

    /// Sends IP packets in order and returns the number of packets that the kernel took.
    ///
    /// It may take fewer than given. It stops at an error, which the next call reports if the
    /// failed packet comes first. It also stops between an ordinary packet and a GSO packet.
    pub fn send<'a>(&mut self, packets: impl Iterator<Item = OutPacket<'a>>) -> io::Result<usize> {
        let mut batch: [&[u8]; MAX_BATCH] = [&[]; MAX_BATCH];
        let mut count = 0;
        let mut packets = packets.peekable();
        if packets.peek().is_some_and(|p| p.segments.is_some()) {
            return self.send_gso(packets);
        }
        let packets = packets.take_while(|p| p.segments.is_none());
        for (slot, packet) in batch.iter_mut().zip(packets) {
            *slot = packet.bytes;
            count += 1;
        }
        let packets = &batch[..count];
        if count >= MIN_BURST && self.recheck_at.is_some_and(|at| at <= Instant::now()) {
            match link_properties(self.index) {
                Ok(link) => self.set_link(link),
                Err(_) => self.recheck_at = Some(Instant::now() + LINK_RECHECK_INTERVAL),
            }
        }
        let mut sent = 0;
        while self.bursts && sent < count {
            match self.send_burst(&packets[sent..]) {
                Ok(0) => break,
                Ok(more) => sent += more,
                Err(_) if sent > 0 => break,
                Err(e) => return Err(e),
            }
        }
        if sent > 0 {
            return Ok(sent);
        }
        self.prepare(packets.iter().copied());
        self.send_prepared(self.fd.clone())
    }

    /// Sends the leading GSO packets of `packets`. The kernel segments them as late as possible if
    /// the device cannot.
    fn send_gso<'a>(&mut self, packets: impl Iterator<Item = OutPacket<'a>>) -> io::Result<usize> {
        let GsoSocket::Open(fd) = &self.gso_socket else {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        };
        let fd = fd.clone();
        let Some(source) = ethernet_address(&fd) else {
            return Err(io::Error::from_raw_os_error(libc::ENXIO));
        };
        self.prefixes.clear();
        let (index, prefixes) = (self.index, &mut self.prefixes);
        let packets = packets.map_while(|packet| Some((packet.bytes, packet.segments?)));
        let mut batch: [&[u8]; MAX_BATCH] = [&[]; MAX_BATCH];
        for (slot, (bytes, segments)) in batch.iter_mut().zip(packets) {
            let mut prefix = [0; size_of::<Prefix>()];
            let (vnet, ethernet) = prefix.split_at_mut(VNET_HEADER_LEN);
            vnet.copy_from_slice(&segments.vnet_header(bpf_burst::ETHERNET_HEADER_LEN as u8));
            ethernet.copy_from_slice(&ethernet_header(&destination(index, bytes), source));
            prefixes.push(prefix);
            *slot = bytes;
        }
        let count = prefixes.len();
        self.prepare(batch[..count].iter().copied());
        for (iovecs, prefix) in self.iovecs.iter_mut().zip(&self.prefixes) {
            iovecs[0] = iovec(prefix);
        }
        let sent = self.send_prepared(fd);
        if let Err(e) = &sent
            && e.raw_os_error() == Some(libc::EINVAL)
        {
            log_gso_unavailable(index, e);
            self.gso_socket = GsoSocket::Unsupported;
        }
        sent
    }

    /// Decides by the link properties whether to send bursts, and whether to query them again.
    fn set_link(&mut self, link: LinkProperties) {
        self.bursts = link.veth && link.queueless;
        self.recheck_at =
            (link.veth && link.qdisc_pending).then(|| Instant::now() + LINK_RECHECK_INTERVAL);
    }

    /// Returns true if the interface is sent to in bursts.
    ///
    /// False if the interface is not a veth, if it has a queue, or if the kernel refuses to load
    /// the program for this process.
    pub fn sends_bursts(&self) -> bool {
        self.bursts
            && BURST_PROGRAM.with_borrow_mut(|b| b.get_or_insert_with(load_program).is_some())
    }

    /// Returns the largest size of the next burst. It grows to 32 while the kernel queues have
    /// space.
    pub fn burst_limit(&mut self) -> usize {
        self.burst_limit.current(Instant::now())
    }

    /// Sends leading packets of `packets` in one burst and returns the number that the kernel took;
    /// 0 if they cannot be sent in a burst. An error refers to the first packet.
    fn send_burst(&mut self, packets: &[&[u8]]) -> io::Result<usize> {
        let version = |p: &[u8]| p.first().map(|b| b >> 4);
        let first = packets.first().and_then(|p| version(p));
        let fits = |p: &&&[u8]| {
            version(p) == first
                && p.len() <= bpf_burst::MAX_FRAME_LEN - bpf_burst::ETHERNET_HEADER_LEN
        };
        let now = Instant::now();
        let limit = self.burst_limit.current(now);
        let run = packets.iter().take(limit).take_while(fits).count();
        if run < MIN_BURST {
            return Ok(0);
        }
        let Some(source) = ethernet_address(&self.fd) else {
            return Ok(0);
        };
        let checks_drops = self.burst_limit.should_check(run, now);
        if checks_drops
            && self.burst_limit.is_stale(now)
            && let Some(dropped) = backlog_dropped()
        {
            self.burst_limit.record_before_burst(dropped, now);
        }
        let outcome = BURST_PROGRAM.with_borrow_mut(|slot| {
            let program = match slot.get_or_insert_with(load_program) {
                Some(program) => program,
                None => return None,
            };
            let mut count = 0;
            for packet in &packets[..run] {
                let header = ethernet_header(&destination(self.index, packet), source);
                if !program.put(count, &header, packet) {
                    break;
                }
                count += 1;
            }
            match program.run(self.index, self.mark, count) {
                Ok(outcome) => Some((count, outcome)),
                // The interface is gone, or memory is short. The caller then uses the socket,
                // which reports the reason.
                Err(e) if is_transient(&e) => None,
                Err(e) => {
                    log_bursts_unavailable(&e);
                    *slot = Some(None);
                    None
                }
            }
        });
        if checks_drops
            && let Some(dropped) = backlog_dropped()
            && let Some(dropped) = self.burst_limit.record_after_burst(dropped, now)
        {
            let (index, limit) = (self.index, self.burst_limit.current(now));
            info!(
                dropped,
                "a burst of {run} packets on interface {index} overflowed a kernel queue \
                 (net.core.netdev_max_backlog), possibly behind a bridge that floods it; limiting \
                 bursts to {limit} packets for ten minutes"
            );
        }
        let (sent, errno) = match outcome {
            None => return Ok(0),
            Some((count, BurstOutcome::AllSent)) => return Ok(count),
            Some((_, BurstOutcome::Refused { sent, errno })) => (sent, errno),
            Some((_, BurstOutcome::QueueVerdict { sent, code })) => {
                // The interface has a queue now, or is down, or a filter drops packets. Each
                // such verdict ends a burst, so the socket is more efficient for a while. The
                // socket also waits when a queue is full.
                self.bursts = false;
                self.recheck_at = Some(now + LINK_RECHECK_INTERVAL);
                match link_properties(self.index).unwrap_or_default().up {
                    false => (sent, libc::ENETDOWN),
                    true if code == NET_XMIT_DROP => (sent, libc::ENOBUFS),
                    // The kernel took this packet, as a packet socket would also report.
                    true => return Ok(sent + 1),
                }
            }
        };
        match sent {
            0 => Err(io::Error::from_raw_os_error(errno)),
            // The next call sends the refused packet first and then reports its error.
            sent => Ok(sent),
        }
    }

    /// Fills `iovecs` and `addresses` with the bytes and destinations of `packets`.
    fn prepare<'a>(&mut self, packets: impl Iterator<Item = &'a [u8]>) {
        self.iovecs.clear();
        self.addresses.clear();
        for packet in packets {
            self.iovecs.push([iovec(&[]), iovec(packet)]);
            self.addresses.push(destination(self.index, packet));
        }
    }

    /// Sends the prepared packets with `sendmmsg`.
    fn send_prepared(&mut self, fd: Arc<OwnedFd>) -> io::Result<usize> {
        self.messages.clear();
        for (iovecs, address) in self.iovecs.iter_mut().zip(&mut self.addresses) {
            let iovecs = match iovecs[0].iov_len {
                0 => &mut iovecs[1..],
                _ => &mut iovecs[..],
            };
            self.messages.push(libc::mmsghdr {
                msg_hdr: libc::msghdr {
                    msg_name: std::ptr::from_mut(address).cast(),
                    msg_namelen: size_of::<libc::sockaddr_ll>() as libc::socklen_t,
                    msg_iov: iovecs.as_mut_ptr(),
                    msg_iovlen: iovecs.len() as _,
                    msg_control: std::ptr::null_mut(),
                    msg_controllen: 0,
                    msg_flags: 0,
                },
                msg_len: 0,
            });
        }
        // SAFETY: every message points to one address and to iovecs that live in `self` until the
        // next call. Every iovec points to a prefix in `self`, or to packet bytes that the caller
        // passed to `prepare` and borrows during this call. The kernel only reads them.
        let sent = unsafe {
            libc::sendmmsg(
                fd.as_raw_fd(),
                self.messages.as_mut_ptr(),
                self.messages.len() as u32,
                libc::MSG_DONTWAIT,
            )
        };
        let error = io::Error::last_os_error();
        self.last_used = fd;
        match sent {
            ..0 => Err(error),
            sent => Ok(sent as usize),
        }
    }

    /// Returns the socket of the last call, to wait until it is writable.
    pub fn writable(&self) -> WritableSocket {
        WritableSocket(self.last_used.clone())
    }
}

/// Opens a socket that is bound to an interface, receives nothing, and marks its packets.
pub(super) fn send_socket(kind: libc::c_int, index: IfIndex, mark: u32) -> io::Result<OwnedFd> {
    let fd = socket(kind)?;
    set_option(&fd, libc::SOL_SOCKET, libc::SO_MARK, &mark)?;
    // SO_SNDBUFFORCE needs CAP_NET_ADMIN. SO_SNDBUF is limited by net.core.wmem_max.
    set_option(
        &fd,
        libc::SOL_SOCKET,
        libc::SO_SNDBUFFORCE,
        &SEND_BUFFER_BYTES,
    )
    .or_else(|_| set_option(&fd, libc::SOL_SOCKET, libc::SO_SNDBUF, &SEND_BUFFER_BYTES))?;
    bind(&fd, index, 0)?;
    Ok(fd)
}

fn iovec(bytes: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}

fn ethernet_header(
    to: &libc::sockaddr_ll,
    source: [u8; 6],
) -> [u8; bpf_burst::ETHERNET_HEADER_LEN] {
    let mut header = [0; bpf_burst::ETHERNET_HEADER_LEN];
    header[..6].copy_from_slice(&to.sll_addr[..6]);
    header[6..12].copy_from_slice(&source);
    header[12..].copy_from_slice(&to.sll_protocol.to_ne_bytes());
    header
}

fn load_program() -> Option<BurstProgram> {
    BurstProgram::open()
        .inspect_err(log_bursts_unavailable)
        .ok()
}

/// Returns true for an error of one burst after which the next burst may succeed.
fn is_transient(e: &io::Error) -> bool {
    let error = e.raw_os_error();
    matches!(
        error,
        Some(libc::ENODEV | libc::ENOMEM | libc::EINTR | libc::EAGAIN)
    )
}

/// Logs once per process, because the reason applies to every thread and veth, and no packet is
/// lost.
fn log_bursts_unavailable(e: &io::Error) {
    static LOGGED: Once = Once::new();
    LOGGED.call_once(|| {
        info!(
            "cannot send bursts on veth interfaces: the kernel refused to load a BPF program \
             ({e}); sending single packets instead, at nearly twice the cost; bursts need CAP_BPF, \
             CAP_NET_ADMIN and Linux 5.12"
        );
    });
}

/// Logs once per process.
fn log_gso_unavailable(index: IfIndex, e: &io::Error) {
    static LOGGED: Once = Once::new();
    LOGGED.call_once(|| {
        info!(
            "interface {index} does not take GSO packets (UDP_SEGMENT) from this process ({e}); \
             segmenting them before sending instead, at a much higher cost"
        );
    });
}

/// Opens what sockets share on this thread. Without it, the first socket that needs it does so.
pub fn prepare_thread() {
    backlog_dropped();
}

fn backlog_dropped() -> Option<u64> {
    SOFTNET_STAT.with_borrow_mut(|slot| {
        let stat = slot.get_or_insert_with(|| SoftnetStat::open().ok());
        stat.as_mut()?.dropped().ok()
    })
}

/// Returns the current Ethernet address of the interface that a socket is bound to. `None` if the
/// link is not Ethernet or the interface is gone.
fn ethernet_address(fd: &OwnedFd) -> Option<[u8; 6]> {
    // SAFETY: this C struct consists of integers only, for which zeros are valid.
    let mut name: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut len = size_of_val(&name) as libc::socklen_t;
    // SAFETY: `name` is valid for writes of `len` bytes during the call.
    let done = unsafe { libc::getsockname(fd.as_raw_fd(), (&raw mut name).cast(), &mut len) };
    let ethernet = done == 0 && name.sll_hatype == libc::ARPHRD_ETHER && name.sll_halen == 6;
    let address = name.sll_addr.first_chunk().copied();
    address.filter(|_| ethernet)
}

/// A socket of a [`Transmitter`], to wait until it is writable.
///
/// Register it for readiness events only while packets wait: the kernel signals a registered socket
/// after every packet that has left, and each signal causes a wake-up.
pub struct WritableSocket(Arc<OwnedFd>);

impl AsRawFd for WritableSocket {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

/// Returns the link-layer destination of a packet: the Ethernet address of its group.
///
/// Callers pass complete IP headers only. An incomplete header yields the all-zero address.
pub(super) fn destination(index: IfIndex, packet: &[u8]) -> libc::sockaddr_ll {
    let v4 = || -> Option<[u8; 4]> { packet.get(16..20)?.try_into().ok() };
    let v6 = || -> Option<[u8; 16]> { packet.get(24..40)?.try_into().ok() };
    let (ethertype, mac) = match packet.first().map(|b| b >> 4) {
        Some(4) => (ETHERTYPE_IPV4, v4().map(|a| group_mac_address(a.into()))),
        _ => (ETHERTYPE_IPV6, v6().map(|a| group_mac_address(a.into()))),
    };
    let mut to = address(index, ethertype);
    to.sll_halen = 6;
    to.sll_addr[..6].copy_from_slice(&mac.unwrap_or_default());
    to
}
