//! A stream of numbered packets at a constant rate, and checks of the numbers that arrived.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::frame::{IpPacket, Udp, fix_ipv4_checksum, transport_sum};
use super::ns::Ns;
use super::packet::{Capture, Injector, message, packet_socket};

/// A sender in its own thread. Each payload is a sequence number in four bytes, starting at 0.
pub struct NumberedStream {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
}

impl NumberedStream {
    /// Sends from `src` to `dst` (address:port) out of `iface`, `per_second` packets per second.
    /// Packets that the interface refuses count as sent. The rate is lower on a slow machine.
    pub fn start(ns: &Ns, iface: &str, src: &str, dst: &str, per_second: u32) -> Self {
        let per_second = per_second / super::slowness();
        let inject = Injector::new(ns, iface);
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU32::new(0));
        let (src, dst) = (src.to_owned(), dst.to_owned());
        let (stopped, count) = (stop.clone(), sent.clone());
        let thread = std::thread::spawn(move || {
            stay_on_one_core();
            let mut frame = NumberedFrame::new(&src, &dst);
            let started = Instant::now();
            while !stopped.load(Ordering::Acquire) {
                let due = (started.elapsed().as_secs_f64() * f64::from(per_second)) as u32;
                let mut n = count.load(Ordering::Acquire);
                while n < due && !stopped.load(Ordering::Acquire) {
                    let _ = inject.try_send(frame.with(n));
                    n += 1;
                    count.store(n, Ordering::Release);
                }
                std::thread::sleep(Duration::from_micros(500));
            }
        });
        Self {
            stop,
            sent,
            thread: Some(thread),
        }
    }

    /// Returns the number of packets sent so far, which is the next sequence number.
    pub fn sent(&self) -> u32 {
        self.sent.load(Ordering::Acquire)
    }

    /// Waits until `more` further packets have been sent.
    #[track_caller]
    pub fn wait_for_more(&self, more: u32) {
        let goal = self.sent() + more;
        let reached = super::wait_until(super::TIMEOUT, || self.sent() >= goal);
        assert!(reached, "sent {} of {goal}", self.sent());
    }

    /// Stops the sender and returns the number of packets sent.
    pub fn finish(mut self) -> u32 {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the sender");
        }
        self.sent()
    }
}

/// The frame of a stream, whose number is replaced for each packet: building a frame takes longer
/// than sending it.
struct NumberedFrame {
    bytes: Vec<u8>,
    source: IpAddr,
    group: IpAddr,
    transport: usize,
}

impl NumberedFrame {
    fn new(src: &str, dst: &str) -> Self {
        let bytes = Udp::new(src, dst, [0; 4]).frame();
        let packet = IpPacket::parse(&bytes).expect("a packet");
        Self {
            source: packet.src,
            group: packet.dst,
            transport: 14 + packet.header,
            bytes,
        }
    }

    /// Returns the frame with this sequence number, which is its identification too.
    fn with(&mut self, number: u32) -> &[u8] {
        if self.group.is_ipv4() {
            self.bytes[18..20].copy_from_slice(&(number as u16).to_be_bytes());
            fix_ipv4_checksum(&mut self.bytes[14..]);
        }
        let udp = &mut self.bytes[self.transport..];
        udp[8..12].copy_from_slice(&number.to_be_bytes());
        udp[6..8].fill(0);
        let sum = match transport_sum(self.source, self.group, 17, udp) {
            0 => 0xffff,
            sum => sum,
        };
        udp[6..8].copy_from_slice(&sum.to_be_bytes());
        &self.bytes
    }
}

/// What a [`NumberedReceiver`] received.
#[derive(Debug, Default)]
pub struct NumberedCounts {
    /// Different sequence numbers.
    pub numbers: u64,
    /// Packets whose number had arrived before.
    pub doubled: u64,
    /// Packets that came after one with a higher number.
    pub late: u64,
}

impl NumberedCounts {
    /// Counts a packet. `seen` tells which numbers have arrived.
    fn add(&mut self, number: usize, seen: &mut Vec<bool>) {
        if seen.get(number) == Some(&true) {
            self.doubled += 1;
            return;
        }
        self.late += u64::from(number < seen.len());
        if number >= seen.len() {
            seen.resize(number + 1, false);
        }
        seen[number] = true;
        self.numbers += 1;
    }
}

/// A thread that checks the numbers of a stream while it runs, at rates at which a
/// [`Capture`] would need too much memory.
pub struct NumberedReceiver {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    socket: Arc<OwnedFd>,
    lost: AtomicU64,
    thread: JoinHandle<NumberedCounts>,
}

impl NumberedReceiver {
    /// Starts to receive packets to `group` on `iface`.
    pub fn start(ns: &Ns, iface: &str, group: &str) -> Self {
        // The protocol, the offset of the group in the frame, and that of the payload.
        let (protocol, group, at, payload) = match group.parse().expect("a group") {
            IpAddr::V4(group) => (libc::ETH_P_IP, group.octets().to_vec(), 30, 42),
            IpAddr::V6(group) => (libc::ETH_P_IPV6, group.octets().to_vec(), 38, 62),
        };
        let socket = Arc::new(packet_socket(ns, iface, protocol as u16));
        let stop = Arc::new(AtomicBool::new(false));
        let received = Arc::new(AtomicU64::new(0));
        let (stopped, count, fd) = (stop.clone(), received.clone(), socket.clone());
        let thread = std::thread::spawn(move || {
            let mut counts = NumberedCounts::default();
            let mut seen: Vec<bool> = Vec::new();
            // A system call for each packet would be too slow for the fastest streams.
            let mut buffers = [[0u8; 128]; 32];
            let mut vectors = buffers.each_mut().map(|buffer| libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: buffer.len(),
            });
            let mut messages = vectors.each_mut().map(message);
            loop {
                // SAFETY: the messages point to `vectors`, and these to `buffers`.
                let n = unsafe {
                    let (at, len) = (messages.as_mut_ptr(), messages.len() as u32);
                    let no_timeout = std::ptr::null_mut();
                    libc::recvmmsg(fd.as_raw_fd(), at, len, libc::MSG_DONTWAIT, no_timeout)
                };
                let Ok(n) = usize::try_from(n) else {
                    if stopped.load(Ordering::Acquire) {
                        return counts;
                    }
                    std::thread::sleep(Duration::from_micros(500));
                    continue;
                };
                for (message, buffer) in messages[..n].iter().zip(&buffers) {
                    let is_shorter = (message.msg_len as usize) < payload + 4;
                    if is_shorter || buffer[at..at + group.len()] != group[..] {
                        continue;
                    }
                    counts.add(sequence_number(&buffer[payload..]) as usize, &mut seen);
                }
                count.store(counts.numbers, Ordering::Release);
            }
        });
        Self {
            stop,
            received,
            socket,
            lost: AtomicU64::new(0),
            thread,
        }
    }

    /// Returns the number of different packets so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Acquire)
    }

    /// Returns the number of packets that this receiver itself has lost.
    pub fn lost(&self) -> u64 {
        let mut statistics = [0u32; 2];
        let mut len = size_of_val(&statistics) as u32;
        // SAFETY: `statistics` has the size of tpacket_stats, and `len` is its length.
        let rc = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                statistics.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        assert_eq!(rc, 0, "PACKET_STATISTICS");
        // Reading resets the counter.
        let lost = u64::from(statistics[1]);
        self.lost.fetch_add(lost, Ordering::Relaxed) + lost
    }

    /// Stops when nothing waits any more.
    pub fn finish(self) -> NumberedCounts {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("the receiver")
    }
}

/// Keeps the calling thread on the core that it runs on. A veth device queues packets for each
/// core, so a sender that moves to another core may reorder them.
pub fn stay_on_one_core() {
    let core = nix::sched::sched_getcpu().expect("the current core");
    let mut cores = nix::sched::CpuSet::new();
    cores.set(core).expect("a core of the set");
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cores).expect("stay on a core");
}

impl Drop for NumberedStream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Returns the sequence number in a payload.
pub fn sequence_number(payload: &[u8]) -> u32 {
    u32::from_be_bytes(payload[..4].try_into().expect("four bytes"))
}

/// Returns the sequence numbers that a capture received for `group`; panics if they are not
/// strictly increasing.
#[track_caller]
pub fn received_in_order(capture: &Capture, group: &str) -> Vec<u32> {
    let numbers: Vec<u32> = capture
        .to(group)
        .iter()
        .map(|s| sequence_number(s.payload()))
        .collect();
    assert_increasing(&numbers);
    numbers
}

/// Panics if the numbers are not strictly increasing.
#[track_caller]
pub fn assert_increasing(numbers: &[u32]) {
    if let Some(w) = numbers.windows(2).find(|w| w[0] >= w[1]) {
        panic!("{} came after {}", w[1], w[0]);
    }
}

/// Returns the numbers below `sent` that are not in `got`.
pub fn missing(sent: u32, got: &[u32]) -> Vec<u32> {
    let got: BTreeSet<u32> = got.iter().copied().collect();
    (0..sent).filter(|n| !got.contains(n)).collect()
}
