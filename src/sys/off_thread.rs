//! System calls that block, away from the threads that forward packets.
//!
//! The kernel closes a packet socket after a grace period: 16 ms in which the calling thread waits.
//! A few threads do that, and open sockets, for all planes.

use std::future::Future;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Number of threads. Calls that wait for the same grace period end together.
const THREADS: usize = 4;

type Job = Box<dyn FnOnce() + Send>;

static JOBS: LazyLock<Sender<Job>> = LazyLock::new(start_threads);

fn start_threads() -> Sender<Job> {
    // As long as the sockets that exist: their number is limited by that of file descriptors.
    let (sender, receiver) = channel::<Job>();
    let receiver = Arc::new(Mutex::new(receiver));
    for _ in 0..THREADS {
        let receiver = receiver.clone();
        let thread = std::thread::Builder::new().name("mcastor-sockets".into());
        // Without any thread the receiver is dropped, and callers run their jobs.
        let _ = thread.spawn(move || run_jobs(&receiver));
    }
    sender
}

fn run_jobs(receiver: &Mutex<Receiver<Job>>) {
    loop {
        let job = {
            let receiver = receiver.lock().unwrap_or_else(PoisonError::into_inner);
            receiver.recv()
        };
        let Ok(job) = job else { return };
        let _ = catch_unwind(AssertUnwindSafe(job));
    }
}

fn submit(job: Job) {
    if let Err(unsent) = JOBS.send(job) {
        (unsent.0)();
    }
}

/// Runs `work` on another thread, with the runtime of this thread.
///
/// # Errors
/// `work` panicked.
pub fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = io::Result<T>> {
    let runtime = Handle::current();
    let (sender, result) = oneshot::channel();
    submit(Box::new(move || {
        let _entered = runtime.enter();
        // If the caller has ended, the result is dropped here.
        let _ = sender.send(work());
    }));
    async { result.await.map_err(io::Error::other) }
}

/// A value that is dropped on another thread.
pub struct DroppedOffThread<T: Send + 'static>(ManuallyDrop<T>);

impl<T: Send + 'static> DroppedOffThread<T> {
    /// Takes over a value.
    pub fn new(value: T) -> Self {
        Self(ManuallyDrop::new(value))
    }
}

impl<T: Send + 'static> Deref for DroppedOffThread<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Send + 'static> DerefMut for DroppedOffThread<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: Send + 'static> Drop for DroppedOffThread<T> {
    fn drop(&mut self) {
        // SAFETY: the value is taken once, because `drop` is called once and nothing uses it
        // afterwards.
        let value = unsafe { ManuallyDrop::take(&mut self.0) };
        submit(Box::new(move || drop(value)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::SyncSender;
    use std::thread::{ThreadId, current};

    use super::*;

    struct Reporter(SyncSender<ThreadId>);

    impl Drop for Reporter {
        fn drop(&mut self) {
            let _ = self.0.send(current().id());
        }
    }

    #[test]
    fn values_are_dropped_on_another_thread() {
        let (sender, thread) = std::sync::mpsc::sync_channel(1);
        drop(DroppedOffThread::new(Reporter(sender)));
        assert_ne!(thread.recv().unwrap(), current().id());
    }

    #[tokio::test]
    async fn work_runs_on_another_thread_and_may_panic() {
        let other = run(|| current().id()).await.unwrap();
        assert_ne!(other, current().id());
        for _ in 0..2 * THREADS {
            assert!(run(|| panic!("in a test")).await.is_err());
        }
        assert_eq!(run(|| 7).await.unwrap(), 7);
    }
}
