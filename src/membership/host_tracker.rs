//! Which host wants what of one group, for leaves that count at once (explicit tracking, as in
//! RFC 9776 appendix A.2).
//!
//! Counts are kept for each source, so that a leave looks at the sources of one host and never
//! at the other hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use crate::model::Source;
use crate::wire::group_message::RecordType;

/// One host's filter.
#[derive(Debug)]
struct Host {
    exclude: bool,
    sources: BTreeSet<Source>,
    until: Instant,
}

/// How many hosts name a source in a filter.
#[derive(Debug, Default)]
struct Named {
    /// In INCLUDE mode.
    include: u32,
    /// In EXCLUDE mode.
    exclude: u32,
}

/// The hosts of one group.
#[derive(Debug, Default)]
pub(super) struct HostTracker {
    hosts: BTreeMap<IpAddr, Host>,
    expiry: BTreeSet<(Instant, IpAddr)>,
    excluders: u32,
    named: BTreeMap<Source, Named>,
    /// Until then hosts may be members that are not tracked.
    incomplete_until: Option<Instant>,
    size: usize,
}

impl HostTracker {
    /// Hosts and sources of theirs: what counts against the bound.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Every host tracked, lowest first.
    pub(super) fn hosts(&self) -> impl Iterator<Item = IpAddr> {
        self.hosts.keys().copied()
    }

    /// A host is a member until then that cannot be tracked.
    pub(super) fn miss(&mut self, until: Instant) {
        self.incomplete_until = self.incomplete_until.max(Some(until));
    }

    /// Whether every host is tracked.
    pub(super) fn is_complete(&self, now: Instant) -> bool {
        self.incomplete_until.is_none_or(|at| at <= now)
    }

    /// Whether any host has a filter in EXCLUDE mode.
    pub(super) fn any_excludes(&self) -> bool {
        self.excluders > 0
    }

    /// Whether any host wants the source.
    pub(super) fn wants(&self, source: &Source) -> bool {
        let none = Named::default();
        let named = self.named.get(source).unwrap_or(&none);
        named.include > 0 || self.excluders > named.exclude
    }

    /// The sources that hosts in INCLUDE mode want.
    pub(super) fn included(&self) -> impl Iterator<Item = Source> {
        let wanted = self.named.iter().filter(|(_, n)| n.include > 0);
        wanted.map(|(source, _)| *source)
    }

    /// Notes what a host said. False where there is no room for it: then it is not tracked.
    pub(super) fn note(
        &mut self,
        host: IpAddr,
        kind: RecordType,
        sources: &BTreeSet<Source>,
        until: Instant,
        room: usize,
    ) -> bool {
        let before = self.remove(host);
        let (mut exclude, mut filter) =
            before.map_or((false, BTreeSet::new()), |h| (h.exclude, h.sources));
        match (kind, exclude) {
            (RecordType::ModeIsInclude | RecordType::ChangeToInclude, _) => {
                (exclude, filter) = (false, sources.clone());
            }
            (RecordType::ModeIsExclude | RecordType::ChangeToExclude, _) => {
                (exclude, filter) = (true, sources.clone());
            }
            (RecordType::AllowNewSources, false) | (RecordType::BlockOldSources, true) => {
                filter.extend(sources);
            }
            (RecordType::AllowNewSources, true) | (RecordType::BlockOldSources, false) => {
                filter.retain(|s| !sources.contains(s));
            }
        }
        if !exclude && filter.is_empty() {
            return true;
        }
        if self.size + 1 + filter.len() > room {
            return false;
        }
        self.size += 1 + filter.len();
        self.excluders += u32::from(exclude);
        for source in &filter {
            let named = self.named.entry(*source).or_default();
            match exclude {
                true => named.exclude += 1,
                false => named.include += 1,
            }
        }
        self.expiry.insert((until, host));
        let sources = filter;
        self.hosts.insert(
            host,
            Host {
                exclude,
                sources,
                until,
            },
        );
        true
    }

    /// When the first host is forgotten.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.expiry.first().map(|(at, _)| *at)
    }

    /// When the last host is forgotten, if none reports again.
    pub(super) fn last_expiry(&self) -> Option<Instant> {
        self.expiry.last().map(|(at, _)| *at)
    }

    /// Forgets the hosts that did not report again.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((_, host)) = self.expiry.first().copied().filter(|(at, _)| *at <= now) {
            self.remove(host);
        }
    }

    fn remove(&mut self, host: IpAddr) -> Option<Host> {
        let gone = self.hosts.remove(&host)?;
        self.expiry.remove(&(gone.until, host));
        self.size -= 1 + gone.sources.len();
        self.excluders -= u32::from(gone.exclude);
        for source in &gone.sources {
            if let Some(named) = self.named.get_mut(source) {
                match gone.exclude {
                    true => named.exclude -= 1,
                    false => named.include -= 1,
                }
                if named.include == 0 && named.exclude == 0 {
                    self.named.remove(source);
                }
            }
        }
        Some(gone)
    }
}
