//! Senders and receivers that are plain kernel sockets: the kernel has accepted every datagram they
//! receive.

use std::cell::RefCell;
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};

use super::ns::Ns;
use super::packet::set;
use super::{TIMEOUT, wait_until};

fn socket(family: &IpAddr) -> Socket {
    let domain = if family.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    };
    Socket::new(domain, Type::DGRAM.cloexec(), Some(Protocol::UDP)).expect("a UDP socket")
}

/// A UDP sender on one interface.
pub struct UdpTx {
    socket: Socket,
    to: SocketAddr,
}

impl UdpTx {
    /// Sends to `to` out of `iface` with TTL 16. Checksums are left to the interface, as usual.
    pub fn new(ns: &Ns, iface: &str, to: &str) -> Self {
        let to: SocketAddr = to.parse().expect("address:port");
        let index = ns.index(iface);
        let socket = ns.enter(|| socket(&to.ip()));
        if to.is_ipv4() {
            let request = libc::ip_mreqn {
                imr_multiaddr: libc::in_addr { s_addr: 0 },
                imr_address: libc::in_addr { s_addr: 0 },
                imr_ifindex: index as i32,
            };
            // SAFETY: an ip_mreqn of the length given.
            let rc = unsafe {
                libc::setsockopt(
                    std::os::fd::AsRawFd::as_raw_fd(&socket),
                    libc::IPPROTO_IP,
                    libc::IP_MULTICAST_IF,
                    (&raw const request).cast(),
                    size_of::<libc::ip_mreqn>() as u32,
                )
            };
            assert_eq!(rc, 0, "IP_MULTICAST_IF: {}", io::Error::last_os_error());
        } else {
            socket
                .set_multicast_if_v6(index)
                .expect("IPV6_MULTICAST_IF");
        }
        let tx = Self { socket, to };
        tx.ttl(16);
        tx
    }

    /// Sets the TTL or hop limit of the following datagrams.
    pub fn ttl(&self, ttl: u32) {
        match self.to {
            SocketAddr::V4(_) => self.socket.set_multicast_ttl_v4(ttl),
            SocketAddr::V6(_) => self.socket.set_multicast_hops_v6(ttl),
        }
        .expect("TTL");
    }

    /// Sets a socket option.
    pub fn set(&self, level: i32, name: i32, value: i32) {
        set(&self.socket, level, name, value);
    }

    /// Sets the source port of the following IPv4 datagrams.
    pub fn bind(&self, port: u16) {
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        self.socket.bind(&address.into()).expect("bind");
    }

    /// Sends one datagram.
    #[track_caller]
    pub fn send(&self, payload: impl AsRef<[u8]>) {
        let payload = payload.as_ref();
        loop {
            match self.socket.send_to(payload, &self.to.into()) {
                Ok(n) => return assert_eq!(n, payload.len()),
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => std::thread::yield_now(),
                Err(e) => panic!("sending {} bytes: {e}", payload.len()),
            }
        }
    }
}

/// A UDP receiver that joined a group on one interface.
pub struct UdpRx {
    socket: Socket,
    got: RefCell<Vec<(IpAddr, Vec<u8>)>>,
}

impl UdpRx {
    /// Joins `group` (`address:port`) on `iface` and receives only on that interface.
    #[track_caller]
    pub fn join(ns: &Ns, iface: &str, group: &str) -> Self {
        let receiver = Self::bind(ns, iface, group);
        let group: SocketAddr = group.parse().expect("address:port");
        let index = ns.index(iface);
        match group.ip() {
            IpAddr::V4(g) => {
                let interface = InterfaceIndexOrAddress::Index(index);
                receiver.socket.join_multicast_v4_n(&g, &interface)
            }
            IpAddr::V6(g) => receiver.socket.join_multicast_v6(&g, index),
        }
        .expect("join");
        receiver
    }

    /// Receives what arrives for `group` (`address:port`) on `iface`, where another socket joins it.
    #[track_caller]
    pub fn bind(ns: &Ns, iface: &str, group: &str) -> Self {
        let group: SocketAddr = group.parse().expect("address:port");
        let socket = ns.enter(|| {
            let socket = socket(&group.ip());
            socket.set_reuse_address(true).expect("SO_REUSEADDR");
            set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 32 << 20);
            socket
                .bind_device(Some(iface.as_bytes()))
                .expect("SO_BINDTODEVICE");
            socket.bind(&group.into()).expect("bind");
            socket.set_nonblocking(true).expect("O_NONBLOCK");
            socket
        });
        Self {
            socket,
            got: RefCell::default(),
        }
    }

    /// Returns the sources and payloads received so far.
    pub fn received(&self) -> Vec<(IpAddr, Vec<u8>)> {
        let mut got = self.got.borrow_mut();
        let mut buffer = vec![MaybeUninit::<u8>::uninit(); 65_536];
        while let Ok((n, from)) = self.socket.recv_from(&mut buffer) {
            // SAFETY: recv_from initialised the first `n` bytes.
            let bytes = buffer[..n]
                .iter()
                .map(|b| unsafe { b.assume_init() })
                .collect();
            let from = from
                .as_socket()
                .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |a| a.ip());
            got.push((from, bytes));
        }
        got.clone()
    }

    /// Returns the number of datagrams received so far.
    pub fn count(&self) -> usize {
        self.received();
        self.got.borrow().len()
    }

    /// Returns the number of datagrams that the kernel dropped because the receive buffer was full.
    pub fn overflowed(&self) -> u32 {
        // The last value of SO_MEMINFO is the drop counter.
        let mut values = [0u32; 9];
        let mut len = size_of_val(&values) as libc::socklen_t;
        // SAFETY: pointer and length are those of `values`.
        let rc = unsafe {
            libc::getsockopt(
                std::os::fd::AsRawFd::as_raw_fd(&self.socket),
                libc::SOL_SOCKET,
                libc::SO_MEMINFO,
                values.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        assert_eq!(rc, 0, "SO_MEMINFO: {}", io::Error::last_os_error());
        values[8]
    }

    /// Returns the payloads received so far, as text.
    pub fn texts(&self) -> Vec<String> {
        self.received()
            .into_iter()
            .map(|(_, b)| String::from_utf8_lossy(&b).into_owned())
            .collect()
    }

    /// Waits until `n` datagrams were received; panics if the number differs.
    #[track_caller]
    pub fn expect(&self, n: usize) -> Vec<Vec<u8>> {
        wait_until(TIMEOUT, || self.count() >= n);
        let full = self.overflowed();
        assert_eq!(
            self.count(),
            n,
            "datagrams received; the receive buffer was full for {full}"
        );
        self.received().into_iter().map(|(_, b)| b).collect()
    }

    /// Waits for exactly these texts, in this order.
    #[track_caller]
    pub fn expect_texts(&self, expected: &[&str]) {
        wait_until(TIMEOUT, || self.count() >= expected.len());
        assert_eq!(self.texts(), expected);
    }
}
