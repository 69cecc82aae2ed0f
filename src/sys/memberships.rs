//! Memberships of this host, on pooled sockets.
//!
//! The kernel lets a socket join 20 groups (`net.ipv4.igmp_max_memberships`) and 10 sources
//! of a group (`net.ipv4.igmp_max_msf`), and an IPv6 socket as many as its option memory
//! holds; so a socket that refuses is full, and the next membership opens another. The
//! sockets are bound to no port and receive nothing; closing one leaves its groups.

use std::collections::HashMap;
use std::io;

use socket2::{Domain, Protocol, Socket, Type};

use super::multicast::{join, leave};
use crate::model::{Group, IfIndex, Source};

/// A membership: group, and source where it is source-specific.
pub type Membership = (Group, Option<Source>);

#[derive(Debug)]
struct Pooled {
    socket: Socket,
    v4: bool,
    held: usize,
    full: bool,
}

/// The memberships on one interface.
#[derive(Debug)]
pub struct Memberships {
    interface: IfIndex,
    sockets: Vec<Option<Pooled>>,
    /// Which socket holds a membership.
    held: HashMap<Membership, usize>,
}

impl Memberships {
    /// None yet.
    pub fn new(interface: IfIndex) -> Self {
        Self {
            interface,
            sockets: Vec::new(),
            held: HashMap::new(),
        }
    }

    /// How many memberships there are.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Joins; nothing happens where it is joined already.
    ///
    /// # Errors
    /// What the kernel says to a fresh socket: `ENODEV` where the interface is gone or does
    /// not speak the IP version, `EMFILE` where there are too many sockets.
    pub fn join(&mut self, (group, source): Membership) -> io::Result<()> {
        if self.held.contains_key(&(group, source)) {
            return Ok(());
        }
        let v4 = group.addr().is_ipv4();
        for (slot, pooled) in self.sockets.iter_mut().enumerate() {
            let Some(pooled) = pooled.as_mut().filter(|p| !p.full) else {
                continue;
            };
            if pooled.v4 != v4 {
                continue;
            }
            match join(&pooled.socket, self.interface, group, source) {
                Ok(()) => {
                    pooled.held += 1;
                    self.held.insert((group, source), slot);
                    return Ok(());
                }
                // Full, or this socket holds the group in the other filter mode.
                Err(e) if is_full(&e) => pooled.full = true,
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
                Err(e) if e.raw_os_error() == Some(libc::EADDRINUSE) => {}
                Err(e) => return Err(e),
            }
        }
        let domain = if v4 { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        join(&socket, self.interface, group, source)?;
        let pooled = Some(Pooled {
            socket,
            v4,
            held: 1,
            full: false,
        });
        let free = self.sockets.iter().position(Option::is_none);
        let slot = free.unwrap_or(self.sockets.len());
        match free {
            Some(slot) => self.sockets[slot] = pooled,
            None => self.sockets.push(pooled),
        }
        self.held.insert((group, source), slot);
        Ok(())
    }

    /// Leaves; nothing happens where it is not joined.
    pub fn leave(&mut self, (group, source): Membership) -> io::Result<()> {
        let Some(slot) = self.held.remove(&(group, source)) else {
            return Ok(());
        };
        let Some(pooled) = self.sockets[slot].as_mut() else {
            return Ok(());
        };
        pooled.held -= 1;
        pooled.full = false;
        if pooled.held == 0 {
            // Closing it leaves.
            self.sockets[slot] = None;
            return Ok(());
        }
        leave(&pooled.socket, self.interface, group, source)
    }
}

fn is_full(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM))
}
