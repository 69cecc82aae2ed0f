//! Packet sockets that inject and capture frames.

use std::cell::RefCell;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::frame::IpPacket;
use super::ns::Ns;
use super::{TIMEOUT, wait_until};

/// Opens a packet socket on `iface`. With a protocol it receives, else it only sends.
pub fn packet_socket(ns: &Ns, iface: &str, protocol: u16) -> OwnedFd {
    let index = ns.index(iface);
    ns.enter(|| {
        // SAFETY: plain socket call; the result is checked before it is owned.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        assert!(fd >= 0, "packet socket: {}", io::Error::last_os_error());
        // SAFETY: `fd` is a new descriptor that nothing else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        if protocol != 0 {
            set(&fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 64 << 20);
            set(&fd, libc::SOL_PACKET, libc::PACKET_AUXDATA, 1);
        }
        // SAFETY: all-zero is a valid sockaddr_ll.
        let mut addr: libc::sockaddr_ll = unsafe { zeroed() };
        addr.sll_family = libc::AF_PACKET as u16;
        addr.sll_protocol = protocol.to_be();
        addr.sll_ifindex = index as i32;
        // SAFETY: `addr` is a sockaddr_ll of the length given.
        let rc = unsafe {
            libc::bind(
                fd.as_raw_fd(),
                (&raw const addr).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        assert_eq!(rc, 0, "bind to {iface}: {}", io::Error::last_os_error());
        fd
    })
}

/// Calls `setsockopt` with an int.
pub fn set(fd: &impl AsRawFd, level: i32, name: i32, value: i32) {
    // SAFETY: `value` is an int and outlives the call.
    let rc = unsafe {
        let len = size_of::<i32>() as u32;
        libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), len)
    };
    assert_eq!(
        rc,
        0,
        "setsockopt {level} {name}: {}",
        io::Error::last_os_error()
    );
}

/// Sends frames on an interface, byte for byte.
pub struct Injector {
    fd: OwnedFd,
}

impl Injector {
    /// Opens a packet socket on `iface` of `ns`.
    pub fn new(ns: &Ns, iface: &str) -> Self {
        Self {
            fd: packet_socket(ns, iface, 0),
        }
    }

    /// Sends a frame, starting with its Ethernet header.
    #[track_caller]
    pub fn send(&self, frame: &[u8]) {
        self.try_send(frame)
            .unwrap_or_else(|e| panic!("injecting {} bytes: {e}", frame.len()));
    }

    /// Sends frames with one system call, or a few where the interface takes no more at once.
    #[track_caller]
    pub fn send_all(&self, frames: &[Vec<u8>]) {
        let mut vectors: Vec<libc::iovec> = frames.iter().map(|f| vector(f)).collect();
        let mut messages: Vec<libc::mmsghdr> = vectors.iter_mut().map(message).collect();
        let mut sent = 0;
        while sent < messages.len() {
            let rest = &mut messages[sent..];
            // SAFETY: the messages point to `vectors`, and these to `frames`.
            let n = unsafe {
                let len = rest.len() as u32;
                libc::sendmmsg(self.fd.as_raw_fd(), rest.as_mut_ptr(), len, 0)
            };
            match n {
                1.. => sent += n as usize,
                _ => {
                    let e = io::Error::last_os_error();
                    let is_full = e.raw_os_error() == Some(libc::ENOBUFS);
                    assert!(is_full, "injecting {} frames: {e}", frames.len());
                    std::thread::yield_now();
                }
            }
        }
    }

    /// As [`Self::send`], but returns the error.
    pub fn try_send(&self, frame: &[u8]) -> io::Result<()> {
        loop {
            // SAFETY: pointer and length are those of `frame`.
            let n =
                unsafe { libc::send(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
            match n {
                n if n == frame.len() as isize => return Ok(()),
                n if n >= 0 => return Err(io::Error::other("short send")),
                _ => {
                    let e = io::Error::last_os_error();
                    if e.raw_os_error() != Some(libc::ENOBUFS) {
                        return Err(e);
                    }
                    std::thread::yield_now();
                }
            }
        }
    }
}

/// Returns a vector of these bytes, for sendmmsg, which does not write to them.
fn vector(bytes: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}

/// Returns a message of one vector, without address and control data.
pub fn message(vector: &mut libc::iovec) -> libc::mmsghdr {
    // SAFETY: both are C structs of integers and pointers, for which zeros are a valid value.
    let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
    message.msg_hdr.msg_iov = vector;
    message.msg_hdr.msg_iovlen = 1;
    message
}

/// A frame that a packet socket received.
#[derive(Debug, Clone)]
pub struct Frame {
    /// The bytes, starting with the Ethernet header.
    pub bytes: Vec<u8>,
    /// Whether this host sent the frame.
    pub outgoing: bool,
    /// Tag control information, if the kernel removed a VLAN tag.
    pub vlan: Option<u16>,
    /// Whether the transport checksum is left to hardware.
    pub csum_not_ready: bool,
}

/// A capture of every frame on an interface, from its creation on.
pub struct Capture {
    fd: OwnedFd,
    frames: RefCell<Vec<Frame>>,
}

impl Capture {
    /// Starts a capture on `iface` of `ns`.
    pub fn new(ns: &Ns, iface: &str) -> Self {
        Self {
            fd: packet_socket(ns, iface, libc::ETH_P_ALL as u16),
            frames: RefCell::default(),
        }
    }

    /// Reads what was captured so far. A long test calls this now and then, because the kernel drops
    /// frames when the buffer of the socket is full.
    pub fn collect(&self) {
        let mut frames = self.frames.borrow_mut();
        while let Some(frame) = self.next() {
            frames.push(frame);
        }
    }

    /// Returns every frame captured so far.
    pub fn frames(&self) -> Vec<Frame> {
        self.collect();
        self.frames.borrow().clone()
    }

    /// Returns the frames since the last call of this or [`Self::frames`] and discards them.
    pub fn take_new(&self) -> Vec<Frame> {
        let mut frames = std::mem::take(&mut *self.frames.borrow_mut());
        frames.extend(std::iter::from_fn(|| self.next()));
        frames
    }

    /// Returns the received IP packets to `group` so far, in order.
    pub fn to(&self, group: &str) -> Vec<IpPacket> {
        let group: std::net::IpAddr = group.parse().expect("an address");
        let seen = self
            .frames()
            .into_iter()
            .filter(|f| !f.outgoing)
            .filter_map(|f| IpPacket::parse(&f.bytes));
        seen.filter(|s| s.dst == group).collect()
    }

    /// Waits for exactly `n` packets to `group` and returns them.
    #[track_caller]
    pub fn expect(&self, group: &str, n: usize) -> Vec<IpPacket> {
        wait_until(TIMEOUT, || self.to(group).len() >= n);
        let seen = self.to(group);
        let show: Vec<_> = seen.iter().take(10).collect();
        assert_eq!(seen.len(), n, "packets to {group}: {show:x?}");
        seen
    }

    fn next(&self) -> Option<Frame> {
        let mut buffer = [0u8; 70_000];
        let mut control = [0u64; 16];
        // SAFETY: all-zero is valid for both.
        let (mut addr, mut msg): (libc::sockaddr_ll, libc::msghdr) =
            unsafe { (zeroed(), zeroed()) };
        let mut iov = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        msg.msg_name = (&raw mut addr).cast();
        msg.msg_namelen = size_of::<libc::sockaddr_ll>() as u32;
        msg.msg_iov = &raw mut iov;
        msg.msg_iovlen = 1;
        msg.msg_control = control.as_mut_ptr().cast();
        msg.msg_controllen = size_of_val(&control);
        // SAFETY: every pointer in `msg` is to a live buffer of the length given.
        let n = unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut msg, libc::MSG_DONTWAIT) };
        let received = &buffer[..usize::try_from(n).ok()?];
        let mut frame = Frame {
            bytes: received.to_vec(),
            outgoing: addr.sll_pkttype == libc::PACKET_OUTGOING,
            vlan: None,
            csum_not_ready: false,
        };
        // SAFETY: the kernel filled `control`; the CMSG macros stay within msg_controllen.
        unsafe {
            let mut cmsg = libc::CMSG_FIRSTHDR(&raw const msg);
            while !cmsg.is_null() {
                if (*cmsg).cmsg_level == libc::SOL_PACKET
                    && (*cmsg).cmsg_type == libc::PACKET_AUXDATA
                {
                    let aux: libc::tpacket_auxdata =
                        std::ptr::read_unaligned(libc::CMSG_DATA(cmsg).cast());
                    let valid = aux.tp_status & libc::TP_STATUS_VLAN_VALID != 0;
                    frame.vlan = valid.then_some(aux.tp_vlan_tci);
                    frame.csum_not_ready = aux.tp_status & libc::TP_STATUS_CSUMNOTREADY != 0;
                }
                cmsg = libc::CMSG_NXTHDR(&raw const msg, cmsg);
            }
        }
        Some(frame)
    }
}
