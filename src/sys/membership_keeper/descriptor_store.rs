//! The keeper as the descriptor store of systemd (`FileDescriptorStoreMax=`). Without one, systemd
//! closes what it gets.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use sd_notify::NotifyState;
use tracing::debug;

use super::backend::KeeperBackend;
use super::names::random;

/// The first part of the names of stored sockets.
pub const STORED_PREFIX: &str = "membership-";

/// Sockets in the descriptor store.
pub(super) struct DescriptorStore {
    /// The first part of the names of the sockets of this process.
    prefix: String,
    held: BTreeSet<u64>,
    former: Vec<(String, OwnedFd)>,
}

impl DescriptorStore {
    pub(super) fn new(former: Vec<(String, OwnedFd)>) -> Self {
        Self {
            prefix: format!("{STORED_PREFIX}{:08x}", random()),
            held: BTreeSet::new(),
            former,
        }
    }

    fn name(&self, number: u64) -> String {
        format!("{}-{number}", self.prefix)
    }
}

impl KeeperBackend for DescriptorStore {
    fn hold(&mut self, number: u64, socket: OwnedFd) -> io::Result<()> {
        let name = self.name(number);
        let states = [
            NotifyState::FdStore,
            NotifyState::FdName(&name),
            // An error of the socket, such as an interface that is down, is no reason to close it.
            NotifyState::Custom("FDPOLL=0"),
        ];
        if let Err(e) = sd_notify::notify_with_fds(&states, &[socket.as_fd()]) {
            debug!("systemd: {e}");
        }
        self.held.insert(number);
        Ok(())
    }

    fn release(&mut self, number: u64) -> io::Result<()> {
        if self.held.remove(&number) {
            remove(&self.name(number));
        }
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        let held = std::mem::take(&mut self.held);
        held.iter().for_each(|n| remove(&self.name(*n)));
        Ok(())
    }

    fn end_former(&mut self) -> io::Result<()> {
        for (name, socket) in self.former.drain(..) {
            drop(socket);
            remove(&name);
        }
        Ok(())
    }
}

fn remove(name: &str) {
    if let Err(e) = sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]) {
        debug!("systemd: {e}");
    }
}
