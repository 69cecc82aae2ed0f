//! Sends and receives the messages between the two processes.

use std::io::{self, ErrorKind};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::spawn_blocking;

use crate::sys::message_socket::MessageSocket;

/// A message, and the descriptors that came with it. `None`: the other process has ended.
pub(super) type Received<T> = Option<(T, Vec<OwnedFd>)>;

/// One end. Clones share it.
#[derive(Clone)]
pub(super) struct Connection(Arc<MessageSocket>);

impl Connection {
    pub(super) fn new(socket: MessageSocket) -> Self {
        Self(Arc::new(socket))
    }

    /// Sends a message. Waits only if the other process reads too slowly.
    pub(super) fn send<T: Serialize>(
        &self,
        message: &T,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        self.0.send(&serde_json::to_vec(message)?, descriptors)
    }

    /// Waits for a message, on this thread.
    pub(super) fn receive<T: DeserializeOwned>(&self, until: Instant) -> io::Result<Received<T>> {
        let Some((bytes, descriptors)) = self.0.receive(until)? else {
            return Ok(None);
        };
        let message = serde_json::from_slice(&bytes);
        let message = message.map_err(|e| io::Error::new(ErrorKind::InvalidData, e))?;
        Ok(Some((message, descriptors)))
    }

    /// As [`Connection::receive`], while other tasks of this thread run.
    pub(super) async fn next<T>(&self, until: Instant) -> io::Result<Received<T>>
    where
        T: DeserializeOwned + Send + 'static,
    {
        let connection = self.clone();
        let received = spawn_blocking(move || connection.receive(until)).await;
        received.map_err(io::Error::other)?
    }

    /// Waits until the other process has ended.
    pub(super) fn wait_for_end(&self) {
        const FOREVER: std::time::Duration = std::time::Duration::from_secs(3600);
        loop {
            match self.0.receive(Instant::now() + FOREVER) {
                Err(e) if e.kind() == ErrorKind::TimedOut => {}
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }
}
