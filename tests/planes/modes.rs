//! Captures that change between the two ways of capture under a stream.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use libtest_mimic::Failed;
use mcastor::pipeline::PacketSource;
use mcastor::planes::Plane;
use mcastor::planes::packet::{Modes, PacketPlane};

use super::bed::*;
use super::contract::a_link_that_goes_down_and_up_again_goes_on;
use super::{Alone, Named};

pub const TESTS: &[Named<Alone>] = tests![
    nothing_is_lost_doubled_or_reordered_as_modes_change,
    a_block_that_is_late_comes_before_what_came_later,
    a_ring_given_back_and_opened_anew_loses_nothing,
    the_mode_follows_the_rate,
    a_link_that_flaps_in_an_adaptive_capture_goes_on,
];

async fn nothing_is_lost_doubled_or_reordered_as_modes_change() -> Outcome {
    changes_lose_nothing(restless(Duration::from_secs(60)), 100, 10_000.0).await
}

/// What is left of the old mode must be read before the new one: the kernel keeps a block open
/// for longer here than it takes to change the mode, so that it is still to come by then.
async fn a_block_that_is_late_comes_before_what_came_later() -> Outcome {
    let mut plane = restless(Duration::from_secs(60));
    plane.ring.retire_ms = 200;
    changes_lose_nothing(plane, 5, 2_000.0).await
}

async fn a_ring_given_back_and_opened_anew_loses_nothing() -> Outcome {
    let mut plane = restless(Duration::ZERO);
    if let Modes::Adaptive(thresholds) = &mut plane.modes {
        // Long enough for the clock to be looked at in between.
        thresholds.window = Duration::from_millis(20);
    }
    changes_lose_nothing(plane, 20, 10_000.0).await
}

async fn the_mode_follows_the_rate() -> Outcome {
    let bed = Bed::veth(PacketPlane::usual())?;
    let mut capture = bed.plane.capture(bed.far)?;
    let mut changes = Vec::new();
    for (rate, mode) in [
        (2_000.0, "latency"),
        (60_000.0, "throughput"),
        (2_000.0, "latency"),
    ] {
        let stream = Stream::start(&bed, rate);
        let (begun, mut follow) = (std::time::Instant::now(), Follow::new());
        while capture.mode() != mode || begun.elapsed() < Duration::from_millis(300) {
            follow.batch(capture.as_mut()).await?;
            assert!(
                begun.elapsed() < PATIENCE,
                "{} mode at {rate}",
                capture.mode()
            );
        }
        changes.push(follow.changes);
        let sent = stream.stop()?;
        while follow.next < sent {
            follow.batch(capture.as_mut()).await?;
        }
    }
    // It stays where it is while the rate stays.
    assert_eq!(changes, [1, 2, 2]);
    assert_eq!(capture.take_dropped(), 0);
    Ok(())
}

/// Sends numbered packets at a steady rate from a thread of its own until told to stop.
struct Stream {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: std::thread::JoinHandle<io::Result<u32>>,
}

impl Stream {
    fn start(bed: &Bed, rate: f64) -> Self {
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (told, near) = (stop.clone(), bed.near);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let mut transmit = PacketPlane::usual().transmit(near)?;
                let (mut last, mut due, mut sent) = (std::time::Instant::now(), 0.0, 0u32);
                while !told.load(Ordering::Relaxed) {
                    let now = std::time::Instant::now();
                    // What a busy machine kept us from is not made up for: the one who takes
                    // it in is kept from that as well.
                    due = (due + (now - last).as_secs_f64() * rate).min(64.0);
                    last = now;
                    let count = due as u32;
                    due -= f64::from(count);
                    let packets: Vec<_> = (sent..sent + count).map(|n| packet(n, 60)).collect();
                    send_all(transmit.as_mut(), &packets).await?;
                    sent += count;
                    std::thread::sleep(Duration::from_micros(200));
                }
                Ok(sent)
            })
        });
        Self { stop, thread }
    }

    fn stop(self) -> Result<u32, Failed> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self.thread.join().map_err(|_| "the sender panicked")??)
    }
}

/// Follows the numbers of a stream.
struct Follow {
    next: u32,
    mode: &'static str,
    changes: u32,
}

impl Follow {
    fn new() -> Self {
        Self {
            next: 0,
            mode: "",
            changes: 0,
        }
    }

    async fn batch(&mut self, capture: &mut dyn PacketSource) -> Outcome {
        let batch = next_batch(capture).await?;
        for p in &batch.packets {
            let bytes = &batch.bytes()[p.start as usize..][..p.len as usize];
            let n = u32::from_be_bytes(bytes[4..8].try_into()?);
            if n != self.next {
                let (expected, changes) = (self.next, self.changes);
                return Err(format!("{n} came for {expected}, after {changes} changes").into());
            }
            self.next += 1;
        }
        if capture.mode() != self.mode {
            self.mode = capture.mode();
            self.changes += 1;
        }
        Ok(())
    }
}

async fn changes_lose_nothing(plane: PacketPlane, changes: u32, rate: f64) -> Outcome {
    let bed = Bed::veth(plane)?;
    let mut capture = bed.plane.capture(bed.far)?;
    let stream = Stream::start(&bed, rate);
    let mut follow = Follow::new();
    let begun = std::time::Instant::now();
    let mut outcome = Ok(());
    while outcome.is_ok() && follow.changes <= changes && begun.elapsed() < 3 * PATIENCE {
        outcome = follow.batch(capture.as_mut()).await;
    }
    let sent = stream.stop()?;
    outcome.map_err(|e| format!("{e:?}; dropped {}", capture.take_dropped()))?;
    while follow.next < sent {
        follow.batch(capture.as_mut()).await?;
    }
    assert_eq!(capture.take_dropped(), 0);
    let came = follow.changes;
    assert!(
        came > changes,
        "the mode changed {came} times only, with {sent} packets"
    );
    println!(
        "{came} changes of mode, {sent} packets, {:?}",
        begun.elapsed()
    );
    Ok(())
}

async fn a_link_that_flaps_in_an_adaptive_capture_goes_on() -> Outcome {
    for plane in [PacketPlane::usual(), restless(Duration::from_secs(60))] {
        a_link_that_goes_down_and_up_again_goes_on(Bed::veth(plane)?).await?;
    }
    Ok(())
}
