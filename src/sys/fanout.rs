//! Which of two capture sockets of an interface gets a packet: `PACKET_FANOUT` with a program
//! that names one (packet(7)). Replacing the program is atomic, so that every packet goes to
//! exactly one of them.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use super::filter;
use super::packet::{set_option, set_option_int};

/// A bound capture socket, kept open, that may be in a group.
#[derive(Clone)]
pub struct FanoutMember(Arc<OwnedFd>);

/// The number of a group of sockets, unique in its network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FanoutGroupId(u16);

impl FanoutMember {
    pub(super) fn new(fd: Arc<OwnedFd>) -> Self {
        Self(fd)
    }

    /// Makes a group of this socket alone, which goes on getting everything. Fails on kernels
    /// before 4.12.
    pub fn found(&self) -> io::Result<FanoutGroupId> {
        let kind = (libc::PACKET_FANOUT_CBPF | libc::PACKET_FANOUT_FLAG_UNIQUEID) as i32;
        set_option_int(&self.0, libc::SOL_PACKET, libc::PACKET_FANOUT, kind << 16)?;
        let mut group = 0i32;
        let mut len = size_of_val(&group) as libc::socklen_t;
        // SAFETY: `group` is valid for writes of `len` bytes during the call.
        let done = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_FANOUT,
                (&raw mut group).cast(),
                &mut len,
            )
        };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        // There must be a program before it is replaced: only a replacement waits.
        self.choose(0)?;
        Ok(FanoutGroupId(group as u16))
    }

    /// Joins the group, behind those that are in it. The socket gets nothing of its own from
    /// then on, only what the group chooses it for.
    pub fn join(&self, group: FanoutGroupId) -> io::Result<()> {
        let kind = libc::PACKET_FANOUT_CBPF as i32;
        let word = kind << 16 | i32::from(group.0);
        set_option_int(&self.0, libc::SOL_PACKET, libc::PACKET_FANOUT, word)
    }

    /// From now on packets of the group go to its `n`th socket, counted from zero in the
    /// order they joined. When this returns, none is on its way to another any more: the
    /// kernel waits for that, some milliseconds to tens of them.
    pub fn choose(&self, n: u32) -> io::Result<()> {
        let program = filter::constant(n);
        set_option(
            &self.0,
            libc::SOL_PACKET,
            libc::PACKET_FANOUT_DATA,
            &filter::program(&program),
        )
    }
}
