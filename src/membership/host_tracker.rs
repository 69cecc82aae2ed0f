//! Explicit tracking of the hosts of one group, so that a leave can take effect without a query
//! (RFC 9776 appendix A.2).
//!
//! The tracker counts the hosts per source, so that the work of a leave depends on the sources
//! of the leaving host, and not on the number of other hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use crate::model::Source;
use crate::wire::membership_message::RecordType;

/// The filter of one host.
#[derive(Debug)]
struct HostFilter {
    /// True in EXCLUDE mode.
    is_exclude: bool,
    sources: BTreeSet<Source>,
    /// The host is forgotten at this time unless it reports again.
    expires: Instant,
}

/// The number of hosts that list a source in their filter.
#[derive(Debug, Default)]
struct SourceUse {
    /// Hosts in INCLUDE mode.
    included_by: u32,
    /// Hosts in EXCLUDE mode.
    excluded_by: u32,
}

/// The tracked hosts of one group.
#[derive(Debug, Default)]
pub(super) struct HostTracker {
    hosts: BTreeMap<IpAddr, HostFilter>,
    expiry: BTreeSet<(Instant, IpAddr)>,
    /// Number of hosts in EXCLUDE mode.
    exclude_hosts: u32,
    source_use: BTreeMap<Source, SourceUse>,
    /// Until this time, hosts that are not tracked may be members.
    incomplete_until: Option<Instant>,
    /// Until this time, members may have suppressed their reports, as IGMPv2 and MLDv1 hosts do
    /// (RFC 2236 section 3).
    suppressible_until: Option<Instant>,
    /// Number of hosts plus number of their sources.
    entries: usize,
}

impl HostTracker {
    /// Returns the number of hosts plus the number of their sources, which counts against
    /// `DownstreamConfig::max_tracked_entries`.
    pub(super) fn entries(&self) -> usize {
        self.entries
    }

    /// Returns every tracked host, lowest address first.
    pub(super) fn hosts(&self) -> impl Iterator<Item = IpAddr> {
        self.hosts.keys().copied()
    }

    /// Notes that a host that is not tracked may be a member until `until`.
    pub(super) fn mark_incomplete(&mut self, until: Instant) {
        self.incomplete_until = self.incomplete_until.max(Some(until));
    }

    /// Notes that members may have suppressed their reports until `until`.
    pub(super) fn mark_suppressible(&mut self, until: Instant) {
        self.suppressible_until = self.suppressible_until.max(Some(until));
    }

    /// Returns true if every member is tracked.
    pub(super) fn is_complete(&self, now: Instant) -> bool {
        let is_over = |until: Option<Instant>| until.is_none_or(|at| at <= now);
        is_over(self.incomplete_until) && is_over(self.suppressible_until)
    }

    /// Returns true if `host` is tracked, no other host is, and no report came from a host that
    /// cannot be tracked.
    pub(super) fn is_only_reporter(&self, now: Instant, host: IpAddr) -> bool {
        let all_tracked = self.incomplete_until.is_none_or(|at| at <= now);
        all_tracked && self.hosts.len() == 1 && self.hosts.contains_key(&host)
    }

    /// Returns true if any host is in EXCLUDE mode.
    pub(super) fn has_exclude_host(&self) -> bool {
        self.exclude_hosts > 0
    }

    /// Returns true if any host requests the source.
    pub(super) fn is_requested(&self, source: &Source) -> bool {
        let unused = SourceUse::default();
        let source_use = self.source_use.get(source).unwrap_or(&unused);
        source_use.included_by > 0 || self.exclude_hosts > source_use.excluded_by
    }

    /// Returns the sources that hosts in INCLUDE mode request.
    pub(super) fn included_sources(&self) -> impl Iterator<Item = Source> {
        let included = self.source_use.iter().filter(|(_, n)| n.included_by > 0);
        included.map(|(source, _)| *source)
    }

    /// Applies a record to the filter of its sender. Returns false, and no longer tracks the
    /// host, if the tracker would have more than `max_entries` entries.
    pub(super) fn apply(
        &mut self,
        host: IpAddr,
        record_type: RecordType,
        named: &BTreeSet<Source>,
        expires: Instant,
        max_entries: usize,
    ) -> bool {
        let (mut is_exclude, mut sources) = match self.remove(host) {
            Some(previous) => (previous.is_exclude, previous.sources),
            None => (false, BTreeSet::new()),
        };
        match (record_type, is_exclude) {
            (RecordType::ModeIsInclude | RecordType::ChangeToInclude, _) => {
                (is_exclude, sources) = (false, named.clone());
            }
            (RecordType::ModeIsExclude | RecordType::ChangeToExclude, _) => {
                (is_exclude, sources) = (true, named.clone());
            }
            (RecordType::AllowNewSources, false) | (RecordType::BlockOldSources, true) => {
                sources.extend(named);
            }
            (RecordType::AllowNewSources, true) | (RecordType::BlockOldSources, false) => {
                sources.retain(|s| !named.contains(s));
            }
        }
        if !is_exclude && sources.is_empty() {
            return true;
        }
        if self.entries + 1 + sources.len() > max_entries {
            return false;
        }
        self.entries += 1 + sources.len();
        self.exclude_hosts += u32::from(is_exclude);
        for source in &sources {
            let source_use = self.source_use.entry(*source).or_default();
            match is_exclude {
                true => source_use.excluded_by += 1,
                false => source_use.included_by += 1,
            }
        }
        self.expiry.insert((expires, host));
        let filter = HostFilter {
            is_exclude,
            sources,
            expires,
        };
        self.hosts.insert(host, filter);
        true
    }

    /// Returns the time at which the first host is forgotten.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.expiry.first().map(|(at, _)| *at)
    }

    /// Returns the time at which the last host is forgotten if no host reports again.
    pub(super) fn last_expiry(&self) -> Option<Instant> {
        self.expiry.last().map(|(at, _)| *at)
    }

    /// Forgets the hosts that have not reported again in time.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((_, host)) = self.expiry.first().copied().filter(|(at, _)| *at <= now) {
            self.remove(host);
        }
    }

    fn remove(&mut self, host: IpAddr) -> Option<HostFilter> {
        let removed = self.hosts.remove(&host)?;
        self.expiry.remove(&(removed.expires, host));
        self.entries -= 1 + removed.sources.len();
        self.exclude_hosts -= u32::from(removed.is_exclude);
        for source in &removed.sources {
            if let Some(source_use) = self.source_use.get_mut(source) {
                match removed.is_exclude {
                    true => source_use.excluded_by -= 1,
                    false => source_use.included_by -= 1,
                }
                if source_use.included_by == 0 && source_use.excluded_by == 0 {
                    self.source_use.remove(source);
                }
            }
        }
        Some(removed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn sources(numbers: &[u8]) -> BTreeSet<Source> {
        let source = |n: &u8| Source::new(IpAddr::from([10, 0, 0, *n])).unwrap();
        numbers.iter().map(source).collect()
    }

    fn host(number: u8) -> IpAddr {
        [10, 9, 9, number].into()
    }

    #[test]
    fn source_is_requested_until_every_host_excludes_it() {
        let expires = Instant::now() + Duration::from_secs(60);
        let mut tracker = HostTracker::default();
        let mut apply = |number, kind, list: &[u8]| {
            assert!(tracker.apply(host(number), kind, &sources(list), expires, 100));
            let [first, second] = [1, 2].map(|n| sources(&[n]).pop_first().unwrap());
            (tracker.is_requested(&first), tracker.is_requested(&second))
        };
        for number in 1..=3 {
            let requested = apply(number, RecordType::ModeIsExclude, &[1]);
            assert_eq!(requested, (false, true));
        }
        // Two of three hosts change to EXCLUDE {2}: both sources have hosts that accept them.
        assert_eq!(apply(1, RecordType::ModeIsExclude, &[2]), (true, true));
        assert_eq!(apply(2, RecordType::ModeIsExclude, &[2]), (true, true));
        assert_eq!(apply(3, RecordType::ModeIsExclude, &[2]), (true, false));
        // All leave.
        for number in 1..=3 {
            apply(number, RecordType::ChangeToInclude, &[]);
        }
        assert_eq!(apply(4, RecordType::ModeIsInclude, &[2]), (false, true));
        assert_eq!(tracker.entries(), 2);
    }

    #[test]
    fn entries_are_limited_exactly() {
        let expires = Instant::now() + Duration::from_secs(60);
        let mut tracker = HostTracker::default();
        let kind = RecordType::ModeIsInclude;
        assert!(tracker.apply(host(1), kind, &sources(&[1, 2]), expires, 5));
        assert!(tracker.apply(host(2), kind, &sources(&[3]), expires, 5));
        assert_eq!(tracker.entries(), 5);
        assert!(!tracker.apply(host(3), kind, &sources(&[4]), expires, 5));
        assert_eq!((tracker.entries(), tracker.hosts().count()), (5, 2));
    }
}
