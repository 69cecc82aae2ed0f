//! The connection between this process and one that it started: messages with descriptors
//! (`unix(7)`, `SCM_RIGHTS`).

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};
use socket2::SockRef;

/// Largest piece of a message, so that a piece always fits into the buffer of the socket.
const PIECE: usize = 32 << 10;

/// Largest message. A router with 100,000 counters needs about 20 MiB.
const MAX_MESSAGE: usize = 256 << 20;

/// Most descriptors of a message.
pub const MAX_DESCRIPTORS: usize = 8;

/// How long the other process may read nothing.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// First byte of a piece: whether further pieces follow.
const LAST: u8 = 0;
const MORE: u8 = 1;

/// A message: its bytes, and the descriptors that came with it.
pub type ReceivedMessage = (Vec<u8>, Vec<OwnedFd>);

/// One end of the connection.
#[derive(Debug)]
pub struct MessageSocket(OwnedFd);

impl AsFd for MessageSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl MessageSocket {
    /// Returns a connection: the own end, and the end for the other process.
    ///
    /// # Errors
    /// The process has too many open files.
    fn pair() -> io::Result<(Self, OwnedFd)> {
        let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
        let (own, other) = socketpair(family, kind, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self(own), other))
    }

    /// Starts a program with the other end of a new connection as standard input.
    ///
    /// # Errors
    /// The program cannot be started, or the process has too many open files.
    pub(super) fn start(command: &mut Command) -> io::Result<(Child, Self)> {
        let (own, other) = Self::pair()?;
        Ok((command.stdin(Stdio::from(other)).spawn()?, own))
    }

    /// Returns the end that this process has as standard input, which is replaced by /dev/null.
    ///
    /// # Errors
    /// Standard input is no such connection.
    pub fn from_stdin() -> io::Result<Self> {
        let socket = io::stdin().as_fd().try_clone_to_owned()?;
        let kind = SockRef::from(&socket).r#type()?;
        if kind != socket2::Type::SEQPACKET {
            return Err(io::Error::other("standard input is no connection"));
        }
        nix::unistd::dup2_stdin(std::fs::File::open("/dev/null")?)?;
        Ok(Self(socket))
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The other process has ended, or reads nothing for five seconds.
    pub fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        SockRef::from(&self.0).set_write_timeout(Some(SEND_TIMEOUT))?;
        let descriptors: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let mut rest = bytes;
        loop {
            let (piece, after) = rest.split_at(rest.len().min(PIECE));
            rest = after;
            let is_last = rest.is_empty();
            let header = [if is_last { LAST } else { MORE }];
            let parts = [IoSlice::new(&header), IoSlice::new(piece)];
            let rights = [ControlMessage::ScmRights(&descriptors)];
            let control = match is_last && !descriptors.is_empty() {
                true => &rights[..],
                false => &[],
            };
            // A closed connection is an error, and not a signal.
            let flags = MsgFlags::MSG_NOSIGNAL;
            sendmsg::<()>(self.0.as_raw_fd(), &parts, control, flags, None)?;
            if is_last {
                return Ok(());
            }
        }
    }

    /// Waits for a message, until this time. `None` means that the other process has ended.
    ///
    /// # Errors
    /// `TimedOut`; `InvalidData` if a message is larger than 256 MiB.
    pub fn receive(&self, until: Instant) -> io::Result<Option<ReceivedMessage>> {
        let mut message = Vec::new();
        let mut buffer = vec![0; PIECE + 1];
        loop {
            let wait = until.saturating_duration_since(Instant::now());
            // Zero would mean no limit.
            let wait = wait.max(Duration::from_millis(1));
            SockRef::from(&self.0).set_read_timeout(Some(wait))?;
            let (len, descriptors) = match receive_piece(&self.0, &mut buffer) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    return Err(ErrorKind::TimedOut.into());
                }
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return Ok(None),
                received => received?,
            };
            let Some((header, piece)) = buffer[..len].split_first() else {
                return Ok(None);
            };
            message.extend_from_slice(piece);
            if *header == LAST {
                return Ok(Some((message, descriptors)));
            }
            if message.len() > MAX_MESSAGE {
                return Err(ErrorKind::InvalidData.into());
            }
        }
    }
}

/// Receives one piece: its length, and the descriptors that came with it.
fn receive_piece(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut descriptors = Vec::new();
    for control in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(passed) = control {
            // SAFETY: the kernel created these descriptors for this process with this call, and
            // nothing else owns them.
            descriptors.extend(passed.iter().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }));
        }
    }
    Ok((received.bytes, descriptors))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn messages_of_any_length_arrive_with_their_descriptors() {
        let (own, other) = MessageSocket::pair().unwrap();
        let other = MessageSocket(other);
        let file = File::open("/proc/self/comm").unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for len in [0, 1, PIECE, PIECE + 1, 10 * PIECE] {
                    own.send(&vec![7; len], &[file.as_fd()]).unwrap();
                }
            });
            for len in [0, 1, PIECE, PIECE + 1, 10 * PIECE] {
                let (bytes, mut descriptors) = other.receive(soon()).unwrap().unwrap();
                assert_eq!(bytes, vec![7; len]);
                let mut text = String::new();
                let passed = descriptors.pop().unwrap();
                File::from(passed).read_to_string(&mut text).unwrap();
                assert!(descriptors.is_empty());
            }
        });
    }

    #[test]
    fn end_of_the_other_process_is_no_message() {
        let (own, other) = MessageSocket::pair().unwrap();
        let error = own.receive(Instant::now()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        drop(other);
        assert!(own.receive(soon()).unwrap().is_none());
        assert!(own.send(b"x", &[]).is_err());
    }
}
