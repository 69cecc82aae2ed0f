//! A tun or tap interface whose far end is the test.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::ns::Ns;

/// A tun or tap interface that exists for as long as this value.
pub struct Tun {
    file: File,
    got: RefCell<Vec<Vec<u8>>>,
}

impl Tun {
    /// Creates the interface `name` in `ns`.
    #[track_caller]
    pub fn new(ns: &Ns, name: &str) -> Self {
        Self::open(ns, name, libc::IFF_TUN)
    }

    /// Creates the tap interface `name`, whose frames start with a `struct virtio_net_hdr`.
    #[track_caller]
    pub fn tap_with_offload(ns: &Ns, name: &str) -> Self {
        Self::open(ns, name, libc::IFF_TAP | libc::IFF_VNET_HDR)
    }

    fn open(ns: &Ns, name: &str, flags: i32) -> Self {
        let file = ns.enter(|| {
            let mut options = std::fs::OpenOptions::new();
            let file = options
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open("/dev/net/tun");
            let file = file.expect("/dev/net/tun");
            // SAFETY: all-zero is a valid ifreq.
            let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
            for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
                *to = from as libc::c_char;
            }
            request.ifr_ifru.ifru_flags = (flags | libc::IFF_NO_PI) as i16;
            // SAFETY: TUNSETIFF takes a pointer to an ifreq.
            let rc =
                unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
            assert_eq!(rc, 0, "TUNSETIFF: {}", std::io::Error::last_os_error());
            file
        });
        Self {
            file,
            got: RefCell::default(),
        }
    }

    /// Lets an IP packet, or the frame of a tap interface, arrive on the interface.
    #[track_caller]
    pub fn write(&self, packet: &[u8]) {
        (&self.file)
            .write_all(packet)
            .expect("writing to the tunnel");
    }

    /// As [`Self::write`]; returns false if the kernel refuses the frame.
    pub fn try_write(&self, frame: &[u8]) -> bool {
        (&self.file).write_all(frame).is_ok()
    }

    /// Returns the IP packets sent on the interface so far.
    pub fn read(&self) -> Vec<Vec<u8>> {
        let mut buffer = vec![0; 65_536];
        let mut got = self.got.borrow_mut();
        while let Ok(n) = (&self.file).read(&mut buffer) {
            got.push(buffer[..n].to_vec());
        }
        got.clone()
    }
}

/// Two tun interfaces whose far ends are connected, as those of a VPN.
pub struct TunPair {
    is_over: Arc<AtomicBool>,
    copying: Option<JoinHandle<()>>,
}

impl TunPair {
    /// Creates an interface with this name in both namespaces.
    pub fn new(near: &Ns, far: &Ns, name: &str) -> Self {
        let ends = [Tun::new(near, name).file, Tun::new(far, name).file];
        let is_over = Arc::new(AtomicBool::new(false));
        let ended = is_over.clone();
        let copying = std::thread::spawn(move || {
            let [near, far] = &ends;
            let wait = |file: &File| libc::pollfd {
                fd: file.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            while !ended.load(Ordering::Relaxed) {
                let mut fds = [wait(near), wait(far)];
                // SAFETY: `fds` is an array of two.
                unsafe { libc::poll(fds.as_mut_ptr(), 2, 50) };
                copy(near, far);
                copy(far, near);
            }
        });
        Self {
            is_over,
            copying: Some(copying),
        }
    }
}

impl Drop for TunPair {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = self.copying.take().map(JoinHandle::join);
    }
}

/// Lets the packets that were sent on one interface arrive on the other.
fn copy(mut from: &File, mut to: &File) {
    let mut buffer = vec![0; 65_536];
    while let Ok(len) = from.read(&mut buffer) {
        let _ = to.write_all(&buffer[..len]);
    }
}
