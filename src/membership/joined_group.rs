//! One group that this host joined: its source filter, and the reports that are still to be sent.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Group, Source, SourceFilter};
use crate::wire::membership_message::{GroupRecord, RecordType};

/// A group that this host is a member of, or left a moment ago.
#[derive(Debug, Default)]
pub(super) struct JoinedGroup {
    filter: SourceFilter,
    /// Number of reports to send that contain the whole filter, after a change of the filter mode.
    whole_reports_left: u8,
    /// Per source that was added or removed, the number of reports to send.
    source_reports_left: BTreeMap<Source, u8>,
}

impl JoinedGroup {
    /// Returns the sources to receive.
    pub(super) fn filter(&self) -> &SourceFilter {
        &self.filter
    }

    /// Returns whether reports are still to be sent.
    pub(super) fn has_pending_reports(&self) -> bool {
        self.whole_reports_left > 0 || !self.source_reports_left.is_empty()
    }

    /// Returns whether this host is not a member and nothing is left to report.
    pub(super) fn is_gone(&self) -> bool {
        self.filter.is_none() && !self.has_pending_reports()
    }

    /// Replaces the filter. `count` is the number of reports of the change (RFC 9776 section 5.1).
    /// Returns false if the filter is the same.
    pub(super) fn set_filter(&mut self, filter: SourceFilter, count: u8) -> bool {
        use SourceFilter::{Exclude, Include};
        if filter == self.filter {
            return false;
        }
        match (&self.filter, &filter) {
            (Include(old), Include(new)) | (Exclude(old), Exclude(new)) => {
                let changed = old.symmetric_difference(new);
                let counts = changed.map(|source| (*source, count));
                self.source_reports_left.extend(counts);
            }
            (Include(_), Exclude(_)) | (Exclude(_), Include(_)) => {
                self.whole_reports_left = count;
                self.source_reports_left.clear();
            }
        }
        self.filter = filter;
        true
    }

    /// Replaces the filter for a router that knows memberships only, without sources. `count` is
    /// the number of reports of a new membership. Returns whether the group was joined or left.
    pub(super) fn set_membership(&mut self, filter: SourceFilter, count: u8) -> bool {
        let was_member = !self.filter.is_none();
        let is_member = !filter.is_none();
        self.filter = filter;
        self.source_reports_left.clear();
        if was_member != is_member {
            self.whole_reports_left = if is_member { count } else { 0 };
        }
        was_member != is_member
    }

    /// Schedules `count` reports of the present filter, as if the group had just been joined.
    pub(super) fn report_anew(&mut self, count: u8) {
        match &self.filter {
            SourceFilter::Include(sources) => {
                let counts = sources.iter().map(|source| (*source, count));
                self.source_reports_left.extend(counts);
            }
            SourceFilter::Exclude(_) => self.whole_reports_left = count,
        }
    }

    /// Schedules `count` reports of the membership, for a router that knows no sources.
    pub(super) fn report_membership_anew(&mut self, count: u8) {
        self.source_reports_left.clear();
        self.whole_reports_left = if self.filter.is_none() { 0 } else { count };
    }

    /// Cancels all scheduled reports.
    pub(super) fn cancel_reports(&mut self) {
        self.whole_reports_left = 0;
        self.source_reports_left.clear();
    }

    /// Returns the records of the next state-change report, and counts it (RFC 9776 section 5.1).
    pub(super) fn take_change_records(&mut self, group: Group) -> Vec<GroupRecord> {
        let mut records = Vec::new();
        if self.whole_reports_left > 0 {
            self.whole_reports_left -= 1;
            let (kind, sources) = match &self.filter {
                SourceFilter::Include(sources) => (RecordType::ChangeToInclude, sources),
                SourceFilter::Exclude(sources) => (RecordType::ChangeToExclude, sources),
            };
            records.push(record(group, kind, sources));
        } else {
            let changed = self.source_reports_left.keys().copied();
            let (allowed, blocked): (BTreeSet<_>, BTreeSet<_>) =
                changed.partition(|source| self.filter.accepts(*source));
            for (kind, sources) in [
                (RecordType::AllowNewSources, allowed),
                (RecordType::BlockOldSources, blocked),
            ] {
                if !sources.is_empty() {
                    records.push(record(group, kind, &sources));
                }
            }
        }
        self.source_reports_left.retain(|_, left| {
            *left = left.saturating_sub(1);
            *left > 0
        });
        records
    }

    /// Counts a report of an older version. Returns whether one was to be sent.
    pub(super) fn take_membership_report(&mut self) -> bool {
        let is_due = self.whole_reports_left > 0;
        self.whole_reports_left = self.whole_reports_left.saturating_sub(1);
        is_due
    }

    /// Returns the record that answers a query: for the group, or for the `queried` sources (RFC
    /// 9776 section 5.2). None if this host wants none of them.
    pub(super) fn current_state_record(
        &self,
        group: Group,
        queried: Option<&BTreeSet<Source>>,
    ) -> Option<GroupRecord> {
        use SourceFilter::{Exclude, Include};
        let (kind, sources) = match (&self.filter, queried) {
            (Exclude(sources), None) => {
                return Some(record(group, RecordType::ModeIsExclude, sources));
            }
            (Include(sources), None) => (RecordType::ModeIsInclude, sources.clone()),
            (Include(sources), Some(queried)) => (RecordType::ModeIsInclude, sources & queried),
            (Exclude(sources), Some(queried)) => (RecordType::ModeIsInclude, queried - sources),
        };
        (!sources.is_empty()).then(|| record(group, kind, &sources))
    }

    /// Returns whether a router that receives `record` stops to forward a source that this host
    /// wants.
    pub(super) fn is_contradicted_by(&self, record: &GroupRecord) -> bool {
        let is_listed = |source: &Source| record.sources.contains(source);
        match (record.kind, &self.filter) {
            (RecordType::ChangeToInclude, SourceFilter::Exclude(_)) => true,
            (RecordType::ChangeToInclude, SourceFilter::Include(sources)) => {
                !sources.iter().all(is_listed)
            }
            (RecordType::BlockOldSources | RecordType::ChangeToExclude, filter) => {
                record.sources.iter().any(|source| filter.accepts(*source))
            }
            _ => false,
        }
    }
}

fn record(group: Group, kind: RecordType, sources: &BTreeSet<Source>) -> GroupRecord {
    GroupRecord {
        kind,
        group,
        sources: sources.iter().copied().collect(),
    }
}
