//! The handle of the keeper, and its thread: callers never wait for the keeper.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;
use std::{io, thread};

use tracing::{debug, warn};

use super::backend::KeeperBackend;
use super::child::ChildKeeper;
use super::descriptor_store::DescriptorStore;
use crate::sys::limits::{DescriptorUse, outside_reserve};

/// How long the end of the keeper may take.
const END_TIMEOUT: Duration = Duration::from_millis(500);

enum KeeperJob {
    Hold(u64, OwnedFd),
    Release(u64),
    EndFormer,
    /// Leave the sockets to the keeper.
    Keep,
    End(SyncSender<()>),
}

/// Keeps membership sockets beyond the end of this process. Clones share the keeper. The default
/// keeps nothing.
#[derive(Debug, Clone, Default)]
pub struct MembershipKeeper(Option<Arc<KeeperThread>>);

#[derive(Debug)]
struct KeeperThread {
    jobs: Sender<KeeperJob>,
    next_number: AtomicU64,
}

impl MembershipKeeper {
    /// Returns a keeper that is a child process. It exists from the first socket on. After the end
    /// of this process it holds the sockets for `keep_for`. `socket` is the path of the socket on
    /// which this instance serves commands.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn in_child(socket: PathBuf, keep_for: Duration) -> io::Result<Self> {
        Self::start(Box::new(ChildKeeper::new(socket, keep_for)))
    }

    /// Returns a keeper that is the descriptor store of the service manager. `former` are the
    /// descriptors that an earlier process stored, with their names.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn in_service_manager(former: Vec<(String, OwnedFd)>) -> io::Result<Self> {
        Self::start(Box::new(DescriptorStore::new(former)))
    }

    fn start(backend: Box<dyn KeeperBackend>) -> io::Result<Self> {
        let (jobs, receiver) = channel();
        let thread = thread::Builder::new().name("mcastor-keeper".into());
        thread.spawn(move || run_jobs(&receiver, backend))?;
        Ok(Self(Some(Arc::new(KeeperThread {
            jobs,
            next_number: AtomicU64::new(0),
        }))))
    }

    /// Lets the keeper hold a socket as long as the result exists.
    pub fn hold(&self, socket: &impl AsFd) -> KeptSocket {
        let number = self.0.as_ref().and_then(|thread| {
            let duplicate = socket.as_fd().try_clone_to_owned();
            let duplicate = duplicate.and_then(|d| {
                // The limit of open files is for more important things.
                outside_reserve(d, DescriptorUse::KernelMemberships)
            });
            let duplicate = duplicate.inspect_err(|e| debug!("memberships are not kept: {e}"));
            let number = thread.next_number.fetch_add(1, Ordering::Relaxed);
            thread.send(KeeperJob::Hold(number, duplicate.ok()?));
            Some(number)
        });
        KeptSocket {
            keeper: self.clone(),
            number,
        }
    }

    /// Leaves the sockets to the keeper: it releases none from now on.
    pub fn keep(&self) {
        self.send(KeeperJob::Keep);
    }

    /// Ends what earlier processes left. Groups that this process has not joined are left.
    pub fn end_former(&self) {
        self.send(KeeperJob::EndFormer);
    }

    /// Ends the keeper, unless [`MembershipKeeper::keep`] was called. Waits for it, at most half a
    /// second.
    pub fn end(&self) {
        let (ended, wait) = sync_channel(1);
        self.send(KeeperJob::End(ended));
        // Fails at once if there is no keeper.
        let _ = wait.recv_timeout(END_TIMEOUT);
    }

    fn send(&self, job: KeeperJob) {
        if let Some(thread) = &self.0 {
            thread.send(job);
        }
    }
}

impl KeeperThread {
    fn send(&self, job: KeeperJob) {
        // Fails after `keep` or `end`.
        let _ = self.jobs.send(job);
    }
}

/// A socket that the keeper holds too. Dropping it releases it there.
#[derive(Debug)]
pub struct KeptSocket {
    keeper: MembershipKeeper,
    number: Option<u64>,
}

impl Drop for KeptSocket {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.keeper.send(KeeperJob::Release(number));
        }
    }
}

fn run_jobs(jobs: &Receiver<KeeperJob>, mut backend: Box<dyn KeeperBackend>) {
    let mut has_failed = false;
    while let Ok(job) = jobs.recv() {
        let done = match job {
            KeeperJob::Hold(number, socket) => backend.hold(number, socket),
            KeeperJob::Release(number) => backend.release(number),
            KeeperJob::EndFormer => backend.end_former(),
            KeeperJob::Keep => {
                // The end of this process is the end of the connection to the child.
                std::mem::forget(backend);
                return;
            }
            KeeperJob::End(ended) => {
                let _ = backend.end_former();
                if let Err(e) = backend.end() {
                    debug!("the keeper of memberships: {e}");
                }
                let _ = ended.send(());
                return;
            }
        };
        if let Err(e) = done
            && !std::mem::replace(&mut has_failed, true)
        {
            warn!(
                "if mcastor ends unexpectedly, groups are left upstream, because their sockets \
                 cannot be kept: {e}"
            );
        }
    }
}
