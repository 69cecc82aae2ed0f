//! A path that delays, loses and reorders frames, as the `netem` queueing discipline does, which not
//! every kernel has.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::ns::Ns;
use super::packet::{Capture, Injector};
use super::random::Random;

/// What happens to the frames of both directions.
#[derive(Debug, Clone, Copy, Default)]
pub struct Impairment {
    /// The shortest delay of a frame.
    pub delay: Duration,
    /// The longest further delay, in microseconds. It is random, so frames are reordered.
    pub jitter_us: usize,
    /// How many of a hundred frames are lost.
    pub loss_percent: usize,
}

/// Copies the frames between two interfaces. Dropping it ends the path.
pub struct ImpairedPath {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ImpairedPath {
    /// Starts to copy frames between two interfaces of `ns`, which need no address. Their peers must
    /// fill in checksums: see [`fill_in_checksums`].
    pub fn start(ns: &Ns, interfaces: [&str; 2], impairment: Impairment) -> Self {
        let captures = interfaces.map(|interface| Capture::new(ns, interface));
        let injectors = interfaces.map(|interface| Injector::new(ns, interface));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut random = Random::default();
            let mut waiting = BinaryHeap::new();
            let mut count = 0u64;
            while !stopped.load(Ordering::Acquire) {
                let now = Instant::now();
                for (from, capture) in captures.iter().enumerate() {
                    let frames = capture.take_new().into_iter();
                    for frame in frames.filter(|frame| !frame.outgoing) {
                        if random.below(100) < impairment.loss_percent {
                            continue;
                        }
                        let jitter = random.below(impairment.jitter_us + 1) as u64;
                        let at = now + impairment.delay + Duration::from_micros(jitter);
                        waiting.push(Reverse((at, count, 1 - from, frame.bytes)));
                        count += 1;
                    }
                }
                while waiting.peek().is_some_and(|Reverse((at, ..))| *at <= now) {
                    if let Some(Reverse((_, _, to, bytes))) = waiting.pop() {
                        let _ = injectors[to].try_send(&bytes);
                    }
                }
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for ImpairedPath {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Makes an interface fill in the checksums of what it sends. A packet socket would copy them as
/// they are.
#[track_caller]
pub fn fill_in_checksums(ns: &Ns, interface: &str) {
    let done = ns.output("ethtool", &["-K", interface, "tx", "off"]);
    assert!(done.status.success(), "{done:?}");
}
