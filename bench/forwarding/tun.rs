//! The receiving end of a tunnel as programs without a router of their own build it: each datagram
//! is written to a TUN device.

#![allow(unsafe_code)] // TUNSETIFF

use std::fs::{File, OpenOptions, read_link};
use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use mcastor::sys::datagram::{DatagramReceiver, DatagramSocket};
use mcastor::wire::amt::DATA_HEADER;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::Outcome;
use crate::lab::Lab;
use crate::meter;
use crate::sender::{self, ROUTER_CORE};

/// How long the thread waits before it looks whether it should end.
const WAIT_MS: u16 = 50;

/// Writes what arrives through a tunnel to a TUN device. Dropping it ends it.
pub struct TunWriter {
    stop: Arc<AtomicBool>,
    schedstat: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl TunWriter {
    /// Creates the device `name` in the namespace of the router, and receives on `address`.
    pub fn start(lab: &Lab, name: &str, address: SocketAddr) -> Outcome<Self> {
        let mut device = lab.router.run(|| open(name))??;
        let socket = lab.router.run(|| DatagramSocket::open(address, None))??;
        let socket = Arc::new(socket);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let (started, place) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let _ = sender::pin(ROUTER_CORE);
            let _ = started.send(read_link("/proc/thread-self"));
            let mut receiver = DatagramReceiver::new(socket.clone());
            let mut datagrams = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                datagrams.clear();
                let Ok(buffer) = receiver.receive(&mut datagrams) else {
                    let mut waiting = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
                    let _ = poll(&mut waiting, PollTimeout::from(WAIT_MS));
                    continue;
                };
                for datagram in &datagrams {
                    let packet = datagram.start + DATA_HEADER.len()..datagram.start + datagram.len;
                    let _ = device.write(buffer.bytes().get(packet).unwrap_or_default());
                }
            }
        });
        Ok(Self {
            stop,
            schedstat: PathBuf::from("/proc")
                .join(place.recv()??)
                .join("schedstat"),
            thread: Some(thread),
        })
    }

    /// Returns the run time of the thread in nanoseconds.
    pub fn run_time_ns(&self) -> u64 {
        meter::schedstat(&self.schedstat)
    }
}

impl Drop for TunWriter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn open(name: &str) -> std::io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
    // SAFETY: TUNSETIFF takes a pointer to an ifreq.
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) } {
        0 => Ok(file),
        _ => Err(std::io::Error::last_os_error()),
    }
}
