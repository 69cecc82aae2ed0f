//! The state of one interface and protocol as data that outlives the process. Timers are times of
//! the boot clock.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::config::Protocol;
use crate::model::{BootTime, ClockReading, Group, Source, SourceFilter};

/// The querier and the memberships of one interface and protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedDownstream {
    /// The version of the queries, counted in IGMP versions: 1, 2 or 3.
    pub generation: u8,
    /// The querier.
    pub querier: SavedQuerier,
    /// The groups with members.
    pub groups: Vec<SavedGroup>,
}

/// The querier of a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SavedQuerier {
    /// No router sends queries.
    NoQuerier,
    /// This router sends queries.
    ThisRouter {
        /// The address that queries are sent from.
        address: IpAddr,
        /// When the next general query is due.
        next_query: BootTime,
        /// The startup queries that are still to be sent, the next query included.
        startup_queries_left: u8,
    },
    /// Another router sends queries.
    OtherRouter {
        /// Its address.
        address: IpAddr,
        /// The other querier present timer.
        expires: BootTime,
        /// The router that takes over if the elected one expires, with its own timer.
        next_best: Option<(IpAddr, BootTime)>,
        /// The Robustness Variable in effect.
        robustness: u8,
        /// The Query Interval in effect, in milliseconds.
        query_interval_ms: u64,
    },
}

/// The memberships of one group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedGroup {
    /// The group.
    pub group: Group,
    /// The group timer. None in INCLUDE mode.
    pub group_timer: Option<BootTime>,
    /// Every stored source with its timer. None if the timer has expired.
    pub sources: Vec<(Source, Option<BootTime>)>,
    /// Hosts of the first and of the second generation are considered present until these times.
    pub older_hosts_until: [Option<BootTime>; 2],
    /// The sender of the latest report.
    pub last_reporter: IpAddr,
    /// The host whose share of the reserved slots the group occupies.
    pub slot_of: Option<IpAddr>,
    /// The specific queries that are still to be sent. None in most groups.
    pub queries: Option<SavedQueries>,
}

/// Specific queries that are still to be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedQueries {
    /// The number of group-specific queries, and the time of the next one.
    pub group: Option<(u8, BootTime)>,
    /// The number of group-and-source-specific queries by source.
    pub sources: Vec<(Source, u8)>,
    /// The time of the next group-and-source-specific query.
    pub sources_due: Option<BootTime>,
}

impl SavedDownstream {
    /// Forgets that this router was the querier, so that it sends startup queries again. For state
    /// of a process that ended longer ago.
    pub fn forget_own_queries(&mut self) {
        if matches!(self.querier, SavedQuerier::ThisRouter { .. }) {
            self.querier = SavedQuerier::NoQuerier;
        }
        for group in &mut self.groups {
            group.queries = None;
        }
    }
}

impl SavedGroup {
    /// Returns the sources to forward, without the timers that have expired since.
    pub fn source_filter(&self, clock: &ClockReading) -> SourceFilter {
        let is_running = |timer: &Option<BootTime>| {
            timer.is_some_and(|at| clock.running_timer(at, Duration::MAX).is_some())
        };
        let is_exclude = is_running(&self.group_timer);
        let sources = self.sources.iter();
        let listed = sources.filter(|(_, timer)| is_running(timer) != is_exclude);
        let listed = listed.map(|(source, _)| *source).collect();
        match is_exclude {
            true => SourceFilter::Exclude(listed),
            false => SourceFilter::Include(listed),
        }
    }
}

/// Both protocols of one interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedInterface {
    /// IGMP. None if no proxy serves the interface.
    pub igmp: Option<SavedDownstream>,
    /// MLD. None if no proxy serves the interface.
    pub mld: Option<SavedDownstream>,
}

impl SavedInterface {
    /// See [`SavedDownstream::forget_own_queries`].
    pub fn forget_own_queries(&mut self) {
        let protocols = self.igmp.iter_mut().chain(&mut self.mld);
        protocols.for_each(SavedDownstream::forget_own_queries);
    }

    /// Returns the state of one protocol.
    pub fn protocol(&self, protocol: Protocol) -> Option<&SavedDownstream> {
        match protocol {
            Protocol::Igmp => self.igmp.as_ref(),
            Protocol::Mld => self.mld.as_ref(),
        }
    }

    /// Returns the groups of both protocols.
    pub fn groups(&self) -> impl Iterator<Item = &SavedGroup> {
        let protocols = self.igmp.iter().chain(&self.mld);
        protocols.flat_map(|downstream| &downstream.groups)
    }
}
