//! Traffic under way: numbered packets at a rate, and what became of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::frame::Udp;
use super::ns::Ns;
use super::packet::{Capture, Injector};

/// A sender in a thread of its own. Each payload is a number in four bytes, from 0 on.
pub struct Numbered {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
}

impl Numbered {
    /// From `src` to `dst` (address:port) out of `iface`, so many a second. Packets the
    /// interface refuses count as sent.
    pub fn start(ns: &Ns, iface: &str, src: &str, dst: &str, per_second: u32) -> Self {
        let inject = Injector::new(ns, iface);
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU32::new(0));
        let (src, dst) = (src.to_owned(), dst.to_owned());
        let (stopped, count) = (stop.clone(), sent.clone());
        let thread = std::thread::spawn(move || {
            let begun = Instant::now();
            while !stopped.load(Ordering::Acquire) {
                let due = (begun.elapsed().as_secs_f64() * f64::from(per_second)) as u32;
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

    /// How many so far: the number of the next.
    pub fn sent(&self) -> u32 {
        self.sent.load(Ordering::Acquire)
    }

    /// Waits until `more` were sent from now on.
    #[track_caller]
    pub fn more(&self, more: u32) {
        let goal = self.sent() + more;
        let there = super::wait_until(super::PATIENCE, || self.sent() >= goal);
        assert!(there, "sent {} of {goal}", self.sent());
    }

    /// Stops; returns how many were sent.
    pub fn finish(mut self) -> u32 {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the sender");
        }
        self.sent()
    }
}

impl Drop for Numbered {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The number in a payload.
pub fn number(payload: &[u8]) -> u32 {
    u32::from_be_bytes(payload[..4].try_into().expect("four bytes"))
}

/// Numbers seen by a capture on their way to `group`; panics where one came twice or after a
/// later one.
#[track_caller]
pub fn in_order(capture: &Capture, group: &str) -> Vec<u32> {
    let numbers: Vec<u32> = capture
        .to(group)
        .iter()
        .map(|s| number(s.payload()))
        .collect();
    check_order(&numbers);
    numbers
}

/// Panics where a number stands twice or after a later one.
#[track_caller]
pub fn check_order(numbers: &[u32]) {
    if let Some(w) = numbers.windows(2).find(|w| w[0] >= w[1]) {
        panic!("{} came after {}", w[1], w[0]);
    }
}

/// Numbers below `sent` that are not in `got`.
pub fn missing(sent: u32, got: &[u32]) -> Vec<u32> {
    let got: BTreeSet<u32> = got.iter().copied().collect();
    (0..sent).filter(|n| !got.contains(n)).collect()
}
