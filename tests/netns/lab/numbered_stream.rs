//! A stream of numbered packets at a constant rate, and checks of the numbers that arrived.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::frame::Udp;
use super::ns::Ns;
use super::packet::{Capture, Injector};

/// A sender in its own thread. Each payload is a sequence number in four bytes, starting at 0.
pub struct NumberedStream {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
}

impl NumberedStream {
    /// Sends from `src` to `dst` (address:port) out of `iface`, `per_second` packets per second.
    /// Packets that the interface refuses count as sent.
    pub fn start(ns: &Ns, iface: &str, src: &str, dst: &str, per_second: u32) -> Self {
        let inject = Injector::new(ns, iface);
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU32::new(0));
        let (src, dst) = (src.to_owned(), dst.to_owned());
        let (stopped, count) = (stop.clone(), sent.clone());
        let thread = std::thread::spawn(move || {
            stay_on_one_core();
            let started = Instant::now();
            while !stopped.load(Ordering::Acquire) {
                let due = (started.elapsed().as_secs_f64() * f64::from(per_second)) as u32;
                let mut n = count.load(Ordering::Acquire);
                while n < due && !stopped.load(Ordering::Acquire) {
                    let frame = Udp::new(&src, &dst, n.to_be_bytes()).id(n as u16).frame();
                    let _ = inject.try_send(&frame);
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

/// Keeps the calling thread on the core that it runs on. A veth device queues packets for each
/// core, so a sender that moves to another core may reorder them.
fn stay_on_one_core() {
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
