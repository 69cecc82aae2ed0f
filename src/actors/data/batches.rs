//! The batches of a capture as a stream.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as Task, Poll, Waker, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::Stream;
use tokio::time::{Sleep, sleep};

use crate::actors::messages::MAX_WAITING_BATCHES;
use crate::merge::SharedMerge;
use crate::model::MergePath;
use crate::pipeline::{Batch, PacketSource};
use crate::sys::off_thread::DroppedOffThread;

/// Interval at which an empty capture is reported to a merge that holds packets.
const MERGE_TICK: Duration = Duration::from_millis(1);

/// Longest time from the receive time of a packet until the capture returns it: that of a block.
const MAX_CAPTURE_DELAY: Duration = Duration::from_millis(5);

/// A batch with fewer packets is transmitted before the next one is received.
const SMALL_BATCH: usize = 8;

/// A capture that an actor and its stream of batches share.
pub(super) type Capture = Rc<RefCell<DroppedOffThread<Box<dyn PacketSource>>>>;

/// Whether the capture is read.
#[derive(Default)]
pub(super) struct CaptureReading {
    pub paused: Cell<bool>,
    /// Wakes the stream of batches.
    waker: RefCell<Option<Waker>>,
    /// The merges of which a path arrives here.
    pub merges: RefCell<Vec<(MergePath, Arc<SharedMerge>)>>,
}

impl CaptureReading {
    /// Sets whether the capture is not read.
    pub fn set_paused(&self, paused: bool) {
        self.paused.set(paused);
        self.wake();
    }

    /// Lets the stream of batches look at what has changed.
    pub fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// What [`Batches`] returns.
pub(super) enum Captured {
    Batch(Batch),
    /// Nothing waits, and a merge holds packets: everything that was received until this time was
    /// returned.
    Empty {
        read_until_ns: u64,
    },
}

/// The batches of a capture. The first error ends the actor that reads it.
pub(super) struct Batches {
    capture: Capture,
    in_a_row: usize,
    reading: Rc<CaptureReading>,
    /// The next report that the capture is empty.
    tick: Option<Pin<Box<Sleep>>>,
}

impl Batches {
    /// Returns the batches of a capture, while `reading` permits it.
    pub fn new(capture: Capture, reading: Rc<CaptureReading>) -> Self {
        Self {
            capture,
            in_a_row: 0,
            reading,
            tick: None,
        }
    }

    /// Reports regularly that nothing waits in the capture, while a merge of it holds packets.
    fn poll_empty(&mut self, task: &mut Task<'_>) -> Poll<Captured> {
        let merges = self.reading.merges.borrow();
        for (path, merge) in merges.iter() {
            merge.register(*path, task.waker());
        }
        if !merges.iter().any(|(_, merge)| merge.is_waiting()) {
            // Wakes when the merges of this interface change.
            *self.reading.waker.borrow_mut() = Some(task.waker().clone());
            self.tick = None;
            return Poll::Pending;
        }
        let tick = self.tick.get_or_insert_with(|| Box::pin(sleep(MERGE_TICK)));
        ready!(tick.as_mut().poll(task));
        // The runtime looked for packets after the tick had elapsed, and found none. This thread may
        // have been suspended since.
        let since_tick = tick.deadline().elapsed() + MAX_CAPTURE_DELAY;
        self.tick = None;
        let read_until_ns = realtime_ns().saturating_sub(since_tick.as_nanos() as u64);
        Poll::Ready(Captured::Empty { read_until_ns })
    }
}

/// Returns the time of `CLOCK_REALTIME`, the clock of receive times.
pub(super) fn realtime_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_nanos() as u64
}

impl Stream for Batches {
    type Item = io::Result<Captured>;

    fn poll_next(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Option<Self::Item>> {
        if self.reading.paused.get() {
            *self.reading.waker.borrow_mut() = Some(task.waker().clone());
            return Poll::Pending;
        }
        // The forwarders share this thread and must run before too many batches wait.
        if self.in_a_row >= MAX_WAITING_BATCHES / 2 {
            self.in_a_row = 0;
            task.waker().wake_by_ref();
            return Poll::Pending;
        }
        let next = self.capture.borrow_mut().poll_batch(task);
        self.in_a_row = match &next {
            // Most likely the last batch for now: transmit it before polling again.
            Poll::Ready(Ok(batch)) if batch.packets.len() < SMALL_BATCH => MAX_WAITING_BATCHES,
            Poll::Ready(_) => self.in_a_row + 1,
            Poll::Pending => 0,
        };
        let may_wait = self.capture.borrow().is_changing_mode();
        match next {
            Poll::Ready(batch) => Poll::Ready(Some(batch.map(Captured::Batch))),
            // The end of the change wakes this task.
            Poll::Pending if may_wait => Poll::Pending,
            Poll::Pending => self.poll_empty(task).map(|empty| Some(Ok(empty))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures_util::StreamExt;
    use tokio::time::timeout;

    use super::*;
    use crate::model::{MergeBy, MergeRule};

    /// A capture without packets, whose mode may be changing.
    struct EmptyCapture(Arc<AtomicBool>);

    impl PacketSource for EmptyCapture {
        fn poll_batch(&mut self, _: &mut Task<'_>) -> Poll<io::Result<Batch>> {
            Poll::Pending
        }

        fn take_dropped(&mut self) -> u64 {
            0
        }

        fn stop_capture(&mut self) {}

        fn mode(&self) -> &'static str {
            "empty"
        }

        fn is_changing_mode(&self) -> bool {
            self.0.load(Ordering::Relaxed)
        }
    }

    /// Meanwhile packets wait in a socket that is not read. A merge must not take them for lost.
    #[test]
    fn capture_that_changes_its_mode_is_not_reported_as_empty() {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_time().build().unwrap();
        let merge = Arc::new(SharedMerge::new(&MergeRule {
            path: MergePath::First,
            with: "eth1".parse().unwrap(),
            window: Duration::from_millis(50),
            by: MergeBy::Rtp,
        }));
        merge.set_waiting(true);
        let reading = Rc::new(CaptureReading::default());
        *reading.merges.borrow_mut() = vec![(MergePath::First, merge)];
        let is_changing = Arc::new(AtomicBool::new(true));
        let source: Box<dyn PacketSource> = Box::new(EmptyCapture(is_changing.clone()));
        let capture = Rc::new(RefCell::new(DroppedOffThread::new(source)));
        let mut batches = Batches::new(capture, reading);
        runtime.block_on(async {
            let wait = Duration::from_millis(50);
            assert!(timeout(wait, batches.next()).await.is_err());
            is_changing.store(false, Ordering::Relaxed);
            let next = batches.next().await;
            assert!(matches!(next, Some(Ok(Captured::Empty { .. }))));
        });
    }
}
