//! The keeper as a child process.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::backend::KeeperBackend;
use super::keeper_process::{COMMAND, KeeperMessage};
use super::names::{end_orphaned, new_name};
use crate::sys::message_socket::MessageSocket;

/// A child process that holds sockets. It is started for the first one.
pub(super) struct ChildKeeper {
    /// The socket on which this instance serves commands.
    socket: PathBuf,
    /// The name on which the child listens.
    name: String,
    keep_for: Duration,
    process: Option<(Child, MessageSocket)>,
}

impl ChildKeeper {
    pub(super) fn new(socket: PathBuf, keep_for: Duration) -> Self {
        Self {
            name: new_name(&socket),
            socket,
            keep_for,
            process: None,
        }
    }

    fn start(&self) -> io::Result<(Child, MessageSocket)> {
        // The file may have been replaced by another version, which this link does not follow.
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("mcastor")
            .arg(COMMAND)
            .arg(&self.name)
            .arg(self.keep_for.as_millis().to_string())
            .current_dir("/")
            .env_clear()
            .process_group(0)
            // Whoever reads the log must see its end when this process ends.
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        MessageSocket::start(&mut command)
    }

    /// Sends a message. If the child has ended, the next socket starts another one.
    fn send(&mut self, message: &KeeperMessage, sockets: &[OwnedFd]) -> io::Result<()> {
        let Some((_, connection)) = &self.process else {
            return Ok(());
        };
        let sockets: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        let sent = connection.send(&serde_json::to_vec(message)?, &sockets);
        sent.map_err(|e| self.reap(e))
    }

    /// Removes a child that does not read. Returns why it does not.
    fn reap(&mut self, error: io::Error) -> io::Error {
        let Some((mut child, _)) = self.process.take() else {
            return error;
        };
        let _ = child.kill();
        match child.wait() {
            Ok(status) => io::Error::new(ErrorKind::BrokenPipe, format!("the keeper: {status}")),
            Err(_) => error,
        }
    }
}

impl KeeperBackend for ChildKeeper {
    fn hold(&mut self, number: u64, socket: OwnedFd) -> io::Result<()> {
        if self.process.is_none() {
            self.process = Some(self.start()?);
        }
        self.send(&KeeperMessage::Hold(number), &[socket])
    }

    fn release(&mut self, number: u64) -> io::Result<()> {
        self.send(&KeeperMessage::Release(number), &[])
    }

    fn end(&mut self) -> io::Result<()> {
        self.send(&KeeperMessage::End, &[])?;
        if let Some((mut child, _)) = self.process.take() {
            child.wait()?;
        }
        Ok(())
    }

    fn end_former(&mut self) -> io::Result<()> {
        end_orphaned(Some(&self.socket), Some(&self.name)).map(|_| ())
    }
}
