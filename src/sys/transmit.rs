//! Sending IP packets out of one interface, many with one system call.

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
use crate::model::addr::ethernet_of;
use crate::wire::offload::VNET_HEADER_LEN;
use crate::wire::vlan::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};

/// Most packets one system call takes (`UIO_MAXIOV`, `sendmmsg(2)`).
const MOST_PACKETS: usize = 256;

/// What the kernel may hold of ours before it says it is full, in bytes.
const SEND_BUFFER: i32 = 4 << 20;

/// Fewer packets are sent one by one: a burst has a price of its own, that of about four.
const LEAST_BURST: usize = 8;

/// How long after a link was found not to be running, or answered for its queue, it is asked
/// about again.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// `NET_XMIT_DROP` (`linux/netdevice.h`): the queue dropped this very packet.
const XMIT_DROP: u32 = 1;

thread_local! {
    /// Opened with the first burst of a thread. `Some(None)`: the kernel refused.
    static BURST: RefCell<Option<Option<BurstProgram>>> = const { RefCell::new(None) };
    /// Likewise.
    static BACKLOG: RefCell<Option<Option<SoftnetStat>>> = const { RefCell::new(None) };
}

/// What stands before a packet that goes whole: what is left to do, and its link header.
type Prefix = [u8; VNET_HEADER_LEN + bpf_burst::ETHERNET_HEADER_LEN];

/// Sends on one interface and receives nothing.
///
/// The kernel writes the link header (`SOCK_DGRAM`): so tunnels and other links without
/// Ethernet work the same, and one packet serves any number of egresses unchanged. What stands
/// for several datagrams goes over a socket of its own, since only with `SOCK_RAW` the kernel
/// takes the header that says how to cut it (`PACKET_VNET_HDR`, packet(7)).
pub struct Transmitter {
    fd: Arc<OwnedFd>,
    whole: Whole,
    /// The one of both that was used last.
    used: Arc<OwnedFd>,
    messages: Vec<libc::mmsghdr>,
    /// For each packet its prefix, which may be empty, and its bytes.
    parts: Vec<[libc::iovec; 2]>,
    prefixes: Vec<Prefix>,
    addresses: Vec<libc::sockaddr_ll>,
    index: IfIndex,
    mark: u32,
    qdisc_bypass: bool,
    /// Whether what is sent may go in bursts: see [`super::bpf_burst`].
    bursts: bool,
    size: BurstLimit,
    /// When to ask again, of a link that is not running yet.
    ask: Option<Instant>,
}

/// Whether packets that stand for several datagrams go as they are.
enum Whole {
    /// Nobody asked yet.
    Unasked,
    /// By this socket.
    By(Arc<OwnedFd>),
    /// Not on this link, or not with this kernel.
    Never,
}

// SAFETY: the pointers inside `messages` and `parts` are only followed during `send`, which
// sets them anew each time.
unsafe impl Send for Transmitter {}

impl Transmitter {
    /// Opens the socket. Everything sent bears `mark`, by which captures of this instance
    /// know it. `qdisc_bypass` skips the device queue: faster, and invisible to tcpdump.
    pub fn open(index: IfIndex, mark: u32, qdisc_bypass: bool) -> io::Result<Self> {
        let fd = sender(libc::SOCK_DGRAM, index, mark)?;
        if qdisc_bypass {
            set_option(&fd, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &1i32)?;
        }
        let fd = Arc::new(fd);
        let mut transmitter = Self {
            used: fd.clone(),
            fd,
            whole: Whole::Unasked,
            messages: Vec::new(),
            parts: Vec::new(),
            prefixes: Vec::new(),
            addresses: Vec::new(),
            index,
            mark,
            qdisc_bypass,
            bursts: false,
            size: BurstLimit::new(LEAST_BURST, bpf_burst::MAX_PACKETS),
            ask: None,
        };
        // The other end of a veth receives what is sent at once, so that bursts pay. A link
        // with a queue is left to the socket, which waits when the queue is full.
        let kind = link_properties(index).unwrap_or_default();
        if kind.veth && !qdisc_bypass {
            transmitter.judge(kind);
            // Loading the program takes some milliseconds: better now than with a packet.
            transmitter.sends_bursts();
        }
        Ok(transmitter)
    }

    /// Whether packets that stand for several datagrams are sent as they are. False where the
    /// header before the packet is not known for sure to be that of Ethernet; without the device
    /// queue, where the kernel drops what the device does not cut itself; and once the kernel
    /// refused one.
    pub fn accepts_gso(&mut self) -> bool {
        if let Whole::Unasked = self.whole {
            let suits = !self.qdisc_bypass
                && link_properties(self.index).is_ok_and(|kind| kind.plain_ethernet)
                && ethernet_address(&self.fd).is_some();
            let open = || {
                let fd = sender(libc::SOCK_RAW, self.index, self.mark)?;
                set_option_int(&fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
                io::Result::Ok(fd)
            };
            self.whole = match suits.then(open) {
                Some(Ok(fd)) => Whole::By(Arc::new(fd)),
                Some(Err(e)) => {
                    say_why_cut(self.index, &e);
                    Whole::Never
                }
                None => Whole::Never,
            };
        }
        matches!(self.whole, Whole::By(_))
    }

    /// Sends IP packets in order and returns how many the kernel took; fewer than given
    /// where it stopped at an error, which the next call then reports for the first, and where
    /// what goes whole meets what does not.
    pub fn send<'a>(&mut self, packets: impl Iterator<Item = OutPacket<'a>>) -> io::Result<usize> {
        let mut given: [&[u8]; MOST_PACKETS] = [&[]; MOST_PACKETS];
        let mut count = 0;
        let mut packets = packets.peekable();
        if packets.peek().is_some_and(|p| p.segments.is_some()) {
            return self.send_whole(packets);
        }
        let packets = packets.take_while(|p| p.segments.is_none());
        for (place, packet) in given.iter_mut().zip(packets) {
            *place = packet.bytes;
            count += 1;
        }
        let packets = &given[..count];
        if count >= LEAST_BURST && self.ask.is_some_and(|at| at <= Instant::now()) {
            match link_properties(self.index) {
                Ok(kind) => self.judge(kind),
                Err(_) => self.ask = Some(Instant::now() + ASK_AGAIN),
            }
        }
        let mut sent = 0;
        while self.bursts && sent < count {
            match self.burst(&packets[sent..]) {
                Ok(0) => break,
                Ok(more) => sent += more,
                Err(_) if sent > 0 => break,
                Err(e) => return Err(e),
            }
        }
        if sent > 0 {
            return Ok(sent);
        }
        self.describe(packets.iter().copied());
        self.call(self.fd.clone())
    }

    /// Sends those of the first packets that stand for several datagrams each, and leaves the
    /// cutting to the kernel: it does it where the device cannot, as late as it can.
    fn send_whole<'a>(
        &mut self,
        packets: impl Iterator<Item = OutPacket<'a>>,
    ) -> io::Result<usize> {
        let Whole::By(fd) = &self.whole else {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        };
        let fd = fd.clone();
        let Some(source) = ethernet_address(&fd) else {
            return Err(io::Error::from_raw_os_error(libc::ENXIO));
        };
        self.prefixes.clear();
        let (index, prefixes) = (self.index, &mut self.prefixes);
        let packets = packets.map_while(|packet| Some((packet.bytes, packet.segments?)));
        let mut given: [&[u8]; MOST_PACKETS] = [&[]; MOST_PACKETS];
        for (place, (bytes, segments)) in given.iter_mut().zip(packets) {
            let mut prefix = [0; size_of::<Prefix>()];
            let (vnet, ethernet) = prefix.split_at_mut(VNET_HEADER_LEN);
            vnet.copy_from_slice(&segments.vnet_header(bpf_burst::ETHERNET_HEADER_LEN as u8));
            ethernet.copy_from_slice(&ethernet_header(&destination(index, bytes), source));
            prefixes.push(prefix);
            *place = bytes;
        }
        let count = prefixes.len();
        self.describe(given[..count].iter().copied());
        for (parts, prefix) in self.parts.iter_mut().zip(&self.prefixes) {
            parts[0] = part(prefix);
        }
        let sent = self.call(fd);
        if let Err(e) = &sent
            && e.raw_os_error() == Some(libc::EINVAL)
        {
            say_why_cut(index, e);
            self.whole = Whole::Never;
        }
        sent
    }

    /// Decides whether bursts are for a link.
    fn judge(&mut self, kind: LinkProperties) {
        self.bursts = kind.veth && kind.queueless;
        self.ask = (kind.veth && kind.idle).then(|| Instant::now() + ASK_AGAIN);
    }

    /// Whether many packets go with one system call and as one piece of work of the kernel.
    /// False where the interface is no veth, or has a queue, or the kernel takes no program from
    /// this process.
    pub fn sends_bursts(&self) -> bool {
        self.bursts && BURST.with_borrow_mut(|b| b.get_or_insert_with(open_burst).is_some())
    }

    /// Most packets of the next burst; it grows to 32 while the kernel has room for them.
    pub fn most_of_a_burst(&mut self) -> usize {
        self.size.get(Instant::now())
    }

    /// Sends packets from the first on in one burst and returns how many were taken; 0 where
    /// they are not for a burst. An error speaks of the first.
    fn burst(&mut self, packets: &[&[u8]]) -> io::Result<usize> {
        let version = |p: &[u8]| p.first().map(|b| b >> 4);
        let first = packets.first().and_then(|p| version(p));
        let suits = |p: &&&[u8]| {
            version(p) == first
                && p.len() <= bpf_burst::MAX_FRAME_LEN - bpf_burst::ETHERNET_HEADER_LEN
        };
        let now = Instant::now();
        let most = self.size.get(now);
        let run = packets.iter().take(most).take_while(suits).count();
        if run < LEAST_BURST {
            return Ok(0);
        }
        let Some(source) = ethernet_address(&self.fd) else {
            return Ok(0);
        };
        let looks = self.size.is_due(run, now);
        if looks
            && self.size.is_stale(now)
            && let Some(dropped) = backlog_dropped()
        {
            self.size.begin(dropped, now);
        }
        let outcome = BURST.with_borrow_mut(|slot| {
            let burst = match slot.get_or_insert_with(open_burst) {
                Some(burst) => burst,
                None => return None,
            };
            let mut count = 0;
            for packet in &packets[..run] {
                let header = ethernet_header(&destination(self.index, packet), source);
                if !burst.put(count, &header, packet) {
                    break;
                }
                count += 1;
            }
            match burst.run(self.index, self.mark, count) {
                Ok(outcome) => Some((count, outcome)),
                // The interface is gone, or there is no memory: the socket says which.
                Err(e) if passes(&e) => None,
                Err(e) => {
                    say_why_not(&e);
                    *slot = Some(None);
                    None
                }
            }
        });
        if looks
            && let Some(dropped) = backlog_dropped()
            && let Some(dropped) = self.size.end(dropped, now)
        {
            let (index, most) = (self.index, self.size.get(now));
            info!(
                dropped,
                "a burst of {run} packets on interface {index} overflowed a queue of the kernel \
                 (net.core.netdev_max_backlog), perhaps where a bridge floods it: bursts of \
                 {most} at most for ten minutes"
            );
        }
        let (taken, error) = match outcome {
            None => return Ok(0),
            Some((count, BurstOutcome::All)) => return Ok(count),
            Some((_, BurstOutcome::Refused(taken, error))) => (taken, error),
            Some((_, BurstOutcome::Queue(taken, answer))) => {
                // It has a queue now, for which the socket waits when it is full; or it does
                // not run, or a filter drops packets. Each such answer ends a burst, so that
                // the socket is better off for a while.
                self.bursts = false;
                self.ask = Some(now + ASK_AGAIN);
                match link_properties(self.index).unwrap_or_default().up {
                    false => (taken, libc::ENETDOWN),
                    true if answer == XMIT_DROP => (taken, libc::ENOBUFS),
                    // As a packet socket has it: taken, whatever became of another.
                    true => return Ok(taken + 1),
                }
            }
        };
        match taken {
            0 => Err(io::Error::from_raw_os_error(error)),
            // The next was refused, so that it may be tried again, for an error of its own.
            taken => Ok(taken),
        }
    }

    /// Says in `parts` and `addresses` what is sent where.
    fn describe<'a>(&mut self, packets: impl Iterator<Item = &'a [u8]>) {
        self.parts.clear();
        self.addresses.clear();
        for packet in packets {
            self.parts.push([part(&[]), part(packet)]);
            self.addresses.push(destination(self.index, packet));
        }
    }

    /// Sends what was described, with `sendmmsg`.
    fn call(&mut self, fd: Arc<OwnedFd>) -> io::Result<usize> {
        self.messages.clear();
        for (parts, address) in self.parts.iter_mut().zip(&mut self.addresses) {
            let parts = match parts[0].iov_len {
                0 => &mut parts[1..],
                _ => &mut parts[..],
            };
            self.messages.push(libc::mmsghdr {
                msg_hdr: libc::msghdr {
                    msg_name: std::ptr::from_mut(address).cast(),
                    msg_namelen: size_of::<libc::sockaddr_ll>() as libc::socklen_t,
                    msg_iov: parts.as_mut_ptr(),
                    msg_iovlen: parts.len() as _,
                    msg_control: std::ptr::null_mut(),
                    msg_controllen: 0,
                    msg_flags: 0,
                },
                msg_len: 0,
            });
        }
        // SAFETY: every message points to one address and to parts that live in `self` until
        // the next call; every part points to a prefix in `self`, or to packet bytes that the
        // caller, who described them just before, borrows during this call; the kernel only
        // reads them.
        let sent = unsafe {
            libc::sendmmsg(
                fd.as_raw_fd(),
                self.messages.as_mut_ptr(),
                self.messages.len() as u32,
                libc::MSG_DONTWAIT,
            )
        };
        let error = io::Error::last_os_error();
        self.used = fd;
        match sent {
            ..0 => Err(error),
            sent => Ok(sent as usize),
        }
    }
}

/// A socket bound to an interface that receives nothing, and whose packets bear `mark`.
fn sender(kind: libc::c_int, index: IfIndex, mark: u32) -> io::Result<OwnedFd> {
    let fd = socket(kind)?;
    set_option(&fd, libc::SOL_SOCKET, libc::SO_MARK, &mark)?;
    // The forced form is for the administrator; the plain one is capped by the system.
    set_option(&fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &SEND_BUFFER)
        .or_else(|_| set_option(&fd, libc::SOL_SOCKET, libc::SO_SNDBUF, &SEND_BUFFER))?;
    bind(&fd, index, 0)?;
    Ok(fd)
}

fn part(bytes: &[u8]) -> libc::iovec {
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

fn open_burst() -> Option<BurstProgram> {
    BurstProgram::open().inspect_err(say_why_not).ok()
}

/// Errors of a burst that say nothing of the next one.
fn passes(e: &io::Error) -> bool {
    let error = e.raw_os_error();
    matches!(
        error,
        Some(libc::ENODEV | libc::ENOMEM | libc::EINTR | libc::EAGAIN)
    )
}

/// Once for the process: nothing is lost, and it concerns every thread and veth alike.
fn say_why_not(e: &io::Error) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        info!(
            "on veths each packet is sent by itself, which costs nearly twice as much as in \
             bursts: the kernel takes no program from this process ({e}); that needs CAP_BPF and \
             CAP_NET_ADMIN, and Linux 5.12"
        );
    });
}

/// Once for the process.
fn say_why_cut(index: IfIndex, e: &io::Error) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        info!(
            "packets that stand for several datagrams (UDP_SEGMENT) are cut before they are sent \
             on interface {index}, which costs much more than to leave that to the kernel: it \
             does not take them whole ({e})"
        );
    });
}

fn backlog_dropped() -> Option<u64> {
    BACKLOG.with_borrow_mut(|slot| {
        let burst_limit = slot.get_or_insert_with(|| SoftnetStat::open().ok());
        burst_limit.as_mut()?.dropped().ok()
    })
}

/// The Ethernet address of the interface a socket is bound to; it may change at any time.
/// `None` for other links, and for one that is gone.
fn ethernet_address(fd: &OwnedFd) -> Option<[u8; 6]> {
    // SAFETY: this C struct is numbers only, for which zeros are valid.
    let mut name: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut len = size_of_val(&name) as libc::socklen_t;
    // SAFETY: `name` is valid for writes of `len` bytes during the call.
    let done = unsafe { libc::getsockname(fd.as_raw_fd(), (&raw mut name).cast(), &mut len) };
    let ethernet = done == 0 && name.sll_hatype == libc::ARPHRD_ETHER && name.sll_halen == 6;
    let address = name.sll_addr.first_chunk().copied();
    address.filter(|_| ethernet)
}

impl Transmitter {
    /// The socket that the last call used, to wait until it takes more.
    pub fn writable(&self) -> WritableSocket {
        WritableSocket(self.used.clone())
    }
}

/// The socket of a [`Transmitter`], to be watched. Only while there is something to wait for:
/// the kernel tells a watcher of every packet that has left, which costs a wake-up each.
pub struct WritableSocket(Arc<OwnedFd>);

impl AsRawFd for WritableSocket {
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
