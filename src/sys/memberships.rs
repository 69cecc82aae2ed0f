//! Memberships of this host, on pooled sockets.
//!
//! The kernel lets a socket join 20 groups (`net.ipv4.igmp_max_memberships`) and 10 sources
//! of a group (`net.ipv4.igmp_max_msf`), and an IPv6 socket as many as its option memory
//! holds; so a socket that refuses is full, and the next membership opens another. The
//! sockets are bound to no port and receive nothing; closing one leaves its groups.
//!
//! The kernel reports the union of what its sockets want (RFC 9776 section 3.2). So a list of
//! sources to include may be spread over sockets; a list to exclude may not, and stands in one
//! filter of at most as many sources as the kernel says. A longer one is widened to none
//! excluded.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;

use socket2::{Domain, Protocol, Socket, Type};

use super::group_filter::exclude;
use super::multicast::{join, leave};
use crate::model::{Group, IfIndex, Source, SourceFilter};

/// A membership: group, and source where it is source-specific.
pub type HostMembership = (Group, Option<Source>);

#[derive(Debug)]
struct Pooled {
    socket: Socket,
    v4: bool,
    held: usize,
    full: bool,
}

/// The memberships on one interface.
#[derive(Debug)]
pub struct HostMemberships {
    interface: IfIndex,
    sockets: Vec<Option<Pooled>>,
    /// Which socket holds a membership.
    held: HashMap<HostMembership, usize>,
    /// The single sources joined of a group.
    sources: HashMap<Group, BTreeSet<Source>>,
    /// What of the groups that are joined for any source is excluded even so.
    excluded: HashMap<Group, BTreeSet<Source>>,
    /// Groups whose filter the kernel could not carry.
    widened: HashSet<Group>,
}

impl HostMemberships {
    /// None yet.
    pub fn new(interface: IfIndex) -> Self {
        Self {
            interface,
            sockets: Vec::new(),
            held: HashMap::new(),
            sources: HashMap::new(),
            excluded: HashMap::new(),
            widened: HashSet::new(),
        }
    }

    /// Wants of a group what `filter` says, instead of what was wanted of it before, without a
    /// moment between in which less than both together want is wanted. Tries again what
    /// failed before.
    ///
    /// # Errors
    /// What the kernel says to a fresh socket: `ENODEV` where the interface is gone or does
    /// not speak the IP version, `EMFILE` where there are too many sockets. What could be
    /// joined is; what was wanted before and takes more is then kept.
    pub fn set(&mut self, group: Group, filter: &SourceFilter) -> io::Result<()> {
        match filter {
            SourceFilter::Include(sources) => {
                let mut joined = Ok(());
                for source in sources {
                    joined = joined.and(self.join((group, Some(*source))));
                }
                joined?;
                self.leave_sources(group, |source| !sources.contains(source))?;
                self.leave((group, None))
            }
            SourceFilter::Exclude(sources) => {
                self.join((group, None))?;
                self.exclude(group, sources)?;
                self.leave_sources(group, |_| true)
            }
        }
    }

    /// Whether a membership is held.
    pub fn holds(&self, membership: HostMembership) -> bool {
        self.held.contains_key(&membership)
    }

    /// Whether more is joined of a group than was wanted, because the kernel carries no longer
    /// filter.
    pub fn is_widened(&self, group: Group) -> bool {
        self.widened.contains(&group)
    }

    fn exclude(&mut self, group: Group, sources: &BTreeSet<Source>) -> io::Result<()> {
        let now = self.excluded.get(&group);
        if now.map_or(sources.is_empty(), |now| now == sources) && !self.is_widened(group) {
            return Ok(());
        }
        let socket = self.held.get(&(group, None)).copied();
        let Some(Some(pooled)) = socket.map(|slot| &self.sockets[slot]) else {
            return Ok(());
        };
        let excluded = match exclude(&pooled.socket, self.interface, group, sources.iter()) {
            Ok(()) => {
                self.widened.remove(&group);
                sources
            }
            Err(e) if is_full(&e) => {
                exclude(&pooled.socket, self.interface, group, [].iter())?;
                self.widened.insert(group);
                &BTreeSet::new()
            }
            Err(e) => return Err(e),
        };
        match excluded.is_empty() {
            true => self.excluded.remove(&group),
            false => self.excluded.insert(group, excluded.clone()),
        };
        Ok(())
    }

    /// Leaves single sources of a group.
    fn leave_sources(&mut self, group: Group, which: impl Fn(&Source) -> bool) -> io::Result<()> {
        let held = self.sources.get(&group);
        let gone = held.into_iter().flatten().filter(|source| which(source));
        let gone: Vec<Source> = gone.copied().collect();
        gone.into_iter()
            .try_for_each(|source| self.leave((group, Some(source))))
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
        self.hold((group, source), slot);
        Ok(())
    }

    /// The sockets that hold the group in the other filter mode. A socket has one filter for a
    /// group: told to include a source, it would include that one and no other any more, and
    /// leave both together.
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

    /// Leaves; nothing happens where it is not joined.
    fn leave(&mut self, (group, source): HostMembership) -> io::Result<()> {
        let Some(slot) = self.held.remove(&(group, source)) else {
            return Ok(());
        };
        match source {
            None => {
                self.excluded.remove(&group);
                self.widened.remove(&group);
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
