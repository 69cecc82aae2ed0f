//! Work that takes long, such as rendering 100,000 flows: it runs on a thread of its own that gives
//! way to the threads that forward packets.

use tokio::sync::oneshot;
use tracing::debug;

use crate::sys::thread_priority::run_in_background;

/// Runs `work` on a thread that gives way to other threads. Returns `None` if the thread cannot be
/// started or panics. The limit of clients also limits the number of these threads.
pub(super) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, result) = oneshot::channel();
    let thread = std::thread::Builder::new().name("mcastor-render".into());
    let started = thread.spawn(move || {
        if let Err(e) = run_in_background() {
            debug!("cannot lower the priority of a thread: {e}");
        }
        // The client may have left.
        let _ = sender.send(work());
    });
    match started {
        Ok(_) => result.await.ok(),
        Err(e) => {
            debug!("cannot start a thread: {e}");
            None
        }
    }
}
