//! Memberships of this host on a pool of sockets.
//!
//! The kernel lets an IPv4 socket join 20 groups (`net.ipv4.igmp_max_memberships`) and 10 sources
//! per group (`net.ipv4.igmp_max_msf`). An IPv6 socket is limited by its option memory. A socket
//! that refuses a join is full, and the next join opens another socket. The sockets are not bound
//! to a port and receive nothing. Closing a socket leaves its groups, unless a keeper
//! ([`MembershipKeeper`]) has a duplicate.
//!
//! The kernel reports the union of the filters of all sockets (RFC 9776 section 3.2). So an INCLUDE
//! list may be spread over several sockets. An EXCLUDE list may not: it must be the filter of one
//! socket, which the kernel limits in length. A group with a longer list is not joined in the
//! kernel.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;

use socket2::{Domain, Protocol, Socket, Type};

use super::group_filter::exclude;
use super::host_groups::set_own;
use super::limits::{DescriptorUse, outside_reserve};
use super::membership_keeper::{KeptSocket, MembershipKeeper};
use super::multicast::{join, leave};
use crate::model::{Group, IfIndex, Source, SourceFilter};

/// Default of `net.ipv4.igmp_max_msf`. A longer list is not tried: the kernel would report the
/// group for all sources before it refuses the list.
const MAX_EXCLUDED_IPV4: usize = 10;
/// Default of `net.ipv6.mld_max_msf`.
const MAX_EXCLUDED_IPV6: usize = 64;

/// A group, and the source of a source-specific membership.
pub type HostMembership = (Group, Option<Source>);

#[derive(Debug)]
struct PooledSocket {
    socket: Socket,
    v4: bool,
    /// Number of memberships on the socket.
    held: usize,
    full: bool,
    /// Dropped when the socket is closed.
    _kept: KeptSocket,
}

/// The memberships of this host on one interface.
#[derive(Debug)]
pub struct HostMemberships {
    interface: IfIndex,
    keeper: MembershipKeeper,
    sockets: Vec<Option<PooledSocket>>,
    /// Per membership, the index of its socket.
    held: HashMap<HostMembership, usize>,
    /// Per group, the sources of its source-specific memberships.
    sources: HashMap<Group, BTreeSet<Source>>,
    /// Per group that is joined for any source, the excluded sources; no entry if there are none.
    excluded: HashMap<Group, BTreeSet<Source>>,
}

impl HostMemberships {
    /// Creates an empty set of memberships. `keeper` holds their sockets too.
    pub fn new(interface: IfIndex, keeper: MembershipKeeper) -> Self {
        Self {
            interface,
            keeper,
            sockets: Vec::new(),
            held: HashMap::new(),
            sources: HashMap::new(),
            excluded: HashMap::new(),
        }
    }

    /// Replaces the filter of a group by `filter`. During the change, the kernel always has at
    /// least the sources that both the old and the new filter permit. Retries joins that failed
    /// before. Returns whether the kernel has exactly this filter: if the EXCLUDE list is longer
    /// than its limit, the group is left.
    ///
    /// # Errors
    /// The error of the kernel for a new socket: `ENODEV` if the interface is gone or does not
    /// support the IP version, `EMFILE` if the process has too many open files. After an error, the
    /// joins that succeeded remain, and memberships of the old filter that are wider remain too.
    pub fn set(&mut self, group: Group, filter: &SourceFilter) -> io::Result<bool> {
        let is_exact = self.set_filter(group, filter);
        self.publish(group);
        is_exact
    }

    /// Publishes how many sockets have joined a group.
    fn publish(&self, group: Group) {
        let sources = self.sources.get(&group).into_iter().flatten();
        let memberships = sources.map(|s| Some(*s)).chain([None]);
        let slots = memberships.filter_map(|source| self.held.get(&(group, source)));
        let sockets: BTreeSet<usize> = slots.copied().collect();
        set_own(self.interface, group.addr(), sockets.len() as u32);
    }

    fn set_filter(&mut self, group: Group, filter: &SourceFilter) -> io::Result<bool> {
        match filter {
            SourceFilter::Include(sources) => {
                let mut joined = Ok(());
                for source in sources {
                    joined = joined.and(self.join((group, Some(*source))));
                }
                joined?;
                self.leave_sources(group, |source| !sources.contains(source))?;
                self.leave((group, None))?;
                Ok(true)
            }
            SourceFilter::Exclude(sources) => {
                let limit = match group.addr() {
                    IpAddr::V4(_) => MAX_EXCLUDED_IPV4,
                    IpAddr::V6(_) => MAX_EXCLUDED_IPV6,
                };
                let mut is_exact = sources.len() <= limit;
                if is_exact {
                    self.join((group, None))?;
                    is_exact = self.exclude(group, sources)?;
                }
                if !is_exact {
                    self.leave((group, None))?;
                }
                self.leave_sources(group, |_| true)?;
                Ok(is_exact)
            }
        }
    }

    /// Returns true if the membership exists.
    pub fn holds(&self, membership: HostMembership) -> bool {
        self.held.contains_key(&membership)
    }

    /// Sets the EXCLUDE list of a joined group. Returns false if it is longer than the kernel
    /// allows.
    fn exclude(&mut self, group: Group, sources: &BTreeSet<Source>) -> io::Result<bool> {
        let current = self.excluded.get(&group);
        if current.map_or(sources.is_empty(), |current| current == sources) {
            return Ok(true);
        }
        let socket = self.held.get(&(group, None)).copied();
        let Some(Some(pooled)) = socket.map(|slot| &self.sockets[slot]) else {
            return Ok(true);
        };
        match exclude(&pooled.socket, self.interface, group, sources.iter()) {
            Ok(()) => {}
            Err(e) if is_full(&e) => return Ok(false),
            Err(e) => return Err(e),
        }
        match sources.is_empty() {
            true => self.excluded.remove(&group),
            false => self.excluded.insert(group, sources.clone()),
        };
        Ok(true)
    }

    /// Leaves those source-specific memberships of a group for which `predicate` is true.
    fn leave_sources(
        &mut self,
        group: Group,
        predicate: impl Fn(&Source) -> bool,
    ) -> io::Result<()> {
        let held = self.sources.get(&group);
        let left = held
            .into_iter()
            .flatten()
            .filter(|source| predicate(source));
        let left: Vec<Source> = left.copied().collect();
        left.into_iter()
            .try_for_each(|source| self.leave((group, Some(source))))
    }

    /// Returns the number of memberships.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Returns true if there are no memberships.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Joins the membership unless it exists already.
    ///
    /// # Errors
    /// The same as of [`HostMemberships::set`].
    fn join(&mut self, (group, source): HostMembership) -> io::Result<()> {
        if self.held.contains_key(&(group, source)) {
            return Ok(());
        }
        let v4 = group.addr().is_ipv4();
        let other_mode = self.other_mode((group, source));
        for (slot, pooled) in self.sockets.iter_mut().enumerate() {
            let Some(pooled) = pooled.as_mut().filter(|p| !p.full) else {
                continue;
            };
            if pooled.v4 != v4 || other_mode.contains(&slot) {
                continue;
            }
            match join(&pooled.socket, self.interface, group, source) {
                Ok(()) => {
                    pooled.held += 1;
                    self.hold((group, source), slot);
                    return Ok(());
                }
                Err(e) if is_full(&e) => pooled.full = true,
                Err(e) => return Err(e),
            }
        }
        let domain = if v4 { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        let socket = outside_reserve(socket, DescriptorUse::KernelMemberships)?;
        join(&socket, self.interface, group, source)?;
        let pooled = Some(PooledSocket {
            _kept: self.keeper.hold(&socket),
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
        self.hold((group, source), slot);
        Ok(())
    }

    /// Returns the sockets that hold the group in the other filter mode. A membership must not use
    /// them, because a socket has only one filter per group, and a join in the other mode would
    /// replace it.
    fn other_mode(&self, (group, source): HostMembership) -> BTreeSet<usize> {
        let slot = |membership| self.held.get(&membership).copied();
        match source {
            Some(_) => slot((group, None)).into_iter().collect(),
            None => {
                let sources = self.sources.get(&group).into_iter().flatten();
                sources.filter_map(|s| slot((group, Some(*s)))).collect()
            }
        }
    }

    fn hold(&mut self, (group, source): HostMembership, slot: usize) {
        self.held.insert((group, source), slot);
        if let Some(source) = source {
            self.sources.entry(group).or_default().insert(source);
        }
    }

    /// Leaves all groups, and closes the sockets. An interface that is gone has no memberships, so
    /// errors do not matter.
    pub fn leave_all(&mut self) {
        let held = std::mem::take(&mut self.held);
        let left: BTreeSet<(Group, usize)> =
            held.iter().map(|((g, _), slot)| (*g, *slot)).collect();
        for (group, slot) in left {
            if let Some(pooled) = &self.sockets[slot] {
                // Without a source, all sources of the socket are left.
                let _ = leave(&pooled.socket, self.interface, group, None);
            }
            set_own(self.interface, group.addr(), 0);
        }
        self.sockets.clear();
        self.sources.clear();
        self.excluded.clear();
    }

    /// Leaves the membership if it exists.
    fn leave(&mut self, (group, source): HostMembership) -> io::Result<()> {
        let Some(slot) = self.held.remove(&(group, source)) else {
            return Ok(());
        };
        match source {
            None => {
                self.excluded.remove(&group);
            }
            Some(source) => {
                if let Some(sources) = self.sources.get_mut(&group) {
                    sources.remove(&source);
                    if sources.is_empty() {
                        self.sources.remove(&group);
                    }
                }
            }
        }
        let Some(pooled) = self.sockets[slot].as_mut() else {
            return Ok(());
        };
        pooled.held -= 1;
        pooled.full = false;
        if pooled.held == 0 {
            // The keeper closes its duplicate later. Closing the last one leaves the group too, so
            // an error does not matter.
            let _ = leave(&pooled.socket, self.interface, group, source);
            self.sockets[slot] = None;
            return Ok(());
        }
        leave(&pooled.socket, self.interface, group, source)
    }
}

impl Drop for HostMemberships {
    fn drop(&mut self) {
        for (group, _) in self.held.keys() {
            set_own(self.interface, group.addr(), 0);
        }
    }
}

fn is_full(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM))
}
