//! Selects which of two capture sockets of an interface receives packets: `PACKET_FANOUT` with a
//! classic BPF program that returns a socket index (packet(7)). The kernel replaces the program
//! atomically, so each packet goes to exactly one socket.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use super::filter;
use super::packet::{set_option, set_option_int};

/// A bound capture socket that may join a fanout group. Keeps the socket open.
#[derive(Clone)]
pub struct FanoutMember(Arc<OwnedFd>);

/// The ID of a fanout group, unique in its network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FanoutGroupId(u16);

impl FanoutGroupId {
    /// Returns the ID with this number, which another process has received from the kernel.
    pub fn from_number(number: u16) -> Self {
        Self(number)
    }

    /// Returns the number.
    pub fn number(self) -> u16 {
        self.0
    }
}

impl FanoutMember {
    /// Returns another descriptor of the socket, for another process.
    ///
    /// # Errors
    /// The process has too many open files.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    pub(super) fn new(fd: Arc<OwnedFd>) -> Self {
        Self(fd)
    }

    /// Creates a fanout group with this socket as its only member, which still receives all
    /// packets. Fails on kernels before 4.12.
    pub fn create_group(&self) -> io::Result<FanoutGroupId> {
        let kind = (libc::PACKET_FANOUT_CBPF | libc::PACKET_FANOUT_FLAG_UNIQUEID) as i32;
        set_option_int(&self.0, libc::SOL_PACKET, libc::PACKET_FANOUT, kind << 16)?;
        let mut group = 0i32;
        let mut len = size_of_val(&group) as libc::socklen_t;
        // SAFETY: `group` and `len` outlive the call, and `len` is the size of `group`.
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
        // Installs an initial program. Only the replacement of a program waits for packets in
        // flight, which `choose` relies on.
        self.choose(0)?;
        Ok(FanoutGroupId(group as u16))
    }

    /// Joins the group as its last member. From then on the socket receives only packets for which
    /// the group selects it.
    pub fn join(&self, group: FanoutGroupId) -> io::Result<()> {
        let kind = libc::PACKET_FANOUT_CBPF as i32;
        let word = kind << 16 | i32::from(group.0);
        set_option_int(&self.0, libc::SOL_PACKET, libc::PACKET_FANOUT, word)
    }

    /// Directs all packets of the group to member `n`, counted from zero in joining order.
    ///
    /// When this returns, no packet is in flight to another member. The kernel waits for that, for
    /// milliseconds to tens of milliseconds.
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
