//! Tests of captures that change the capture mode while packets arrive.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use libtest_mimic::Failed;
use mcastor::pipeline::PacketSource;
use mcastor::planes::Plane;
use mcastor::planes::packet::{Modes, PacketPlane};

use super::bed::*;
use super::contract::link_flap_does_not_end_capture;
use super::{NamedTest, StandaloneTest};

pub const TESTS: &[NamedTest<StandaloneTest>] = tests![
    mode_changes_keep_packets_and_order,
    late_block_is_returned_before_newer_packets,
    reopened_ring_loses_no_packets,
    mode_follows_the_rate,
    link_flap_does_not_end_adaptive_capture,
];

async fn mode_changes_keep_packets_and_order() -> Outcome {
    check_mode_changes(
        frequent_mode_changes(Duration::from_secs(60)),
        100,
        10_000.0,
    )
    .await
}

/// Packets of the old mode must be returned before those of the new one. Here the block timeout is
/// longer than a mode change, so the last block arrives after the change.
async fn late_block_is_returned_before_newer_packets() -> Outcome {
    let mut plane = frequent_mode_changes(Duration::from_secs(60));
    plane.ring.retire_ms = 200;
    check_mode_changes(plane, 5, 2_000.0).await
}

async fn reopened_ring_loses_no_packets() -> Outcome {
    let mut plane = frequent_mode_changes(Duration::ZERO);
    if let Modes::Adaptive(thresholds) = &mut plane.modes {
        // Long enough for the capture to check the keep time of the ring between changes.
        thresholds.window = Duration::from_millis(20);
    }
    check_mode_changes(plane, 20, 10_000.0).await
}

async fn mode_follows_the_rate() -> Outcome {
    let bed = Bed::veth(default_plane())?;
    let mut capture = bed.plane.capture(bed.far)?;
    let mut changes = Vec::new();
    for (rate, mode) in [
        (2_000.0, "latency"),
        (60_000.0, "throughput"),
        (2_000.0, "latency"),
    ] {
        let stream = Stream::start(&bed, rate);
        let (started, mut follower) = (std::time::Instant::now(), StreamFollower::new());
        while capture.mode() != mode || started.elapsed() < Duration::from_millis(300) {
            follower.read_batch(capture.as_mut()).await?;
            assert!(
                started.elapsed() < PATIENCE,
                "{} mode at {rate}",
                capture.mode()
            );
        }
        changes.push(follower.changes);
        let sent = stream.stop()?;
        while follower.next < sent {
            follower.read_batch(capture.as_mut()).await?;
        }
    }
    // The mode does not change again while the rate stays the same.
    assert_eq!(changes, [1, 2, 2]);
    assert_eq!(capture.take_dropped(), 0);
    Ok(())
}

/// A thread that sends numbered packets at a constant rate until it is stopped.
struct Stream {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: std::thread::JoinHandle<io::Result<u32>>,
}

impl Stream {
    fn start(bed: &Bed, rate: f64) -> Self {
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (stopped, near) = (stop.clone(), bed.near);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let mut transmit = default_plane().transmit(near)?;
                let (mut last, mut due, mut sent) = (std::time::Instant::now(), 0.0, 0u32);
                while !stopped.load(Ordering::Relaxed) {
                    let now = std::time::Instant::now();
                    // Does not catch up after a pause on a busy machine: the receiver was also
                    // paused and would lose packets.
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

/// Checks the packet numbers of a stream, and counts the mode changes and the packets that are missing.
struct StreamFollower {
    next: u32,
    lost: u64,
    mode: &'static str,
    changes: u32,
}

impl StreamFollower {
    fn new() -> Self {
        Self {
            next: 0,
            lost: 0,
            mode: "",
            changes: 0,
        }
    }

    async fn read_batch(&mut self, capture: &mut dyn PacketSource) -> Outcome {
        let batch = next_batch(capture).await?;
        for p in &batch.packets {
            let bytes = &batch.bytes()[p.start as usize..][..p.len as usize];
            let n = u32::from_be_bytes(bytes[4..8].try_into()?);
            let (expected, changes) = (self.next, self.changes);
            let Some(lost) = n.checked_sub(expected) else {
                return Err(
                    format!("received {n} instead of {expected} after {changes} changes").into(),
                );
            };
            self.lost += u64::from(lost);
            self.next = n + 1;
        }
        if capture.mode() != self.mode {
            self.mode = capture.mode();
            self.changes += 1;
        }
        Ok(())
    }
}

async fn check_mode_changes(plane: PacketPlane, changes: u32, rate: f64) -> Outcome {
    let bed = Bed::veth(plane)?;
    let mut capture = bed.plane.capture(bed.far)?;
    let stream = Stream::start(&bed, rate);
    let mut follower = StreamFollower::new();
    let started = std::time::Instant::now();
    let mut outcome = Ok(());
    while outcome.is_ok() && follower.changes <= changes && started.elapsed() < 3 * PATIENCE {
        outcome = follower.read_batch(capture.as_mut()).await;
    }
    let sent = stream.stop()?;
    outcome?;
    while follower.next < sent {
        follower.read_batch(capture.as_mut()).await?;
    }
    // On a busy machine the ring may have been full. Drops of a ring are returned by the second call.
    let dropped = capture.take_dropped() + capture.take_dropped();
    assert_eq!(follower.lost, dropped, "of {sent}");
    let actual = follower.changes;
    assert!(
        actual > changes,
        "the mode changed only {actual} times during {sent} packets"
    );
    println!(
        "{actual} mode changes, {sent} packets, {:?}",
        started.elapsed()
    );
    Ok(())
}

async fn link_flap_does_not_end_adaptive_capture() -> Outcome {
    for plane in [
        default_plane(),
        frequent_mode_changes(Duration::from_secs(60)),
    ] {
        link_flap_does_not_end_capture(Bed::veth(plane)?).await?;
    }
    Ok(())
}
