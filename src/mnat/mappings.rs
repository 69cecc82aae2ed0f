//! The mappings in use, and their comparison with the mappings that the server reports.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::channel::Channel;
use super::config::MnatRole;
use super::protocol::{AssignmentState, Mapping, MnatRequest};
use super::saved::SavedMapping;
use crate::model::ClockReading;

/// A change of a mapping in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MappingChange {
    /// A global channel has a mapping now.
    Add {
        /// The global channel.
        global: Channel,
        /// The local channel that carries it through the network.
        local: Channel,
        /// How long an egress requested the channel before. `None` for an ingress.
        waited: Option<Duration>,
    },
    /// A global channel has no mapping any more.
    Remove {
        /// The global channel.
        global: Channel,
        /// The local channel that carried it.
        local: Channel,
        /// The reason.
        why: MappingEnd,
    },
    /// A global channel has another local channel. The old one may stay in use during a transition;
    /// see [`super::RoutePlan`].
    Swap {
        /// The global channel.
        global: Channel,
        /// The local channel before the change.
        old: Channel,
        /// The local channel after the change.
        new: Channel,
        /// The server was away before, so other clients may learn of the change later than usual.
        after_outage: bool,
    },
}

/// The reason why a mapping is no longer in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MappingEnd {
    /// The egress no longer requests the channel.
    NotRequested,
    /// The server no longer assigns the mapping.
    Unassigned,
    /// The server assigned the local channel to another global channel.
    Reassigned,
    /// The server did not confirm the mapping for [`super::Config::grace`].
    Expired,
}

impl MappingEnd {
    /// Returns the reason as a sentence for the log.
    pub fn description(self) -> &'static str {
        match self {
            Self::NotRequested => "no receiver requests it any more",
            Self::Unassigned => "the server no longer assigns it",
            Self::Reassigned => "the server assigned its local channel to another stream",
            Self::Expired => "the server did not confirm it for the time `grace`",
        }
    }
}

/// The status of a mapping, as shown by `mcastor show mnat`, the API and the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MappingStatus {
    /// The last response of the server contains the mapping.
    Assigned,
    /// The server assigned the mapping earlier, but does not answer or has lost it. The mapping
    /// stays in use.
    Held,
    /// The channel is requested, and the server has no mapping for it.
    Unassigned,
    /// The server has a mapping that conflicts with another mapping or route. It is not in use.
    Conflict,
}

impl MappingStatus {
    /// All statuses.
    pub const ALL: [Self; 4] = [Self::Assigned, Self::Held, Self::Unassigned, Self::Conflict];

    /// Returns the `state` label of metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Assigned => "assigned",
            Self::Held => "held",
            Self::Unassigned => "unassigned",
            Self::Conflict => "conflict",
        }
    }
}

/// The state of one global channel.
#[derive(Debug)]
struct Entry {
    /// The local channel in use.
    local: Option<Channel>,
    /// When the server last confirmed the mapping.
    confirmed: Instant,
    /// True if the last response confirmed the mapping.
    current: bool,
    /// The session in which the server last confirmed the mapping.
    session: u64,
    /// The reason why the mapping in the last response cannot be used.
    why: Option<String>,
    /// True if the reason is that another global channel has the same local channel.
    conflict: bool,
}

impl Entry {
    /// Removes the local channel. Returns the change if there was one.
    fn end(&mut self, global: Channel, why: MappingEnd) -> Option<MappingChange> {
        let local = self.local.take()?;
        Some(MappingChange::Remove { global, local, why })
    }
}

/// The conditions under which a response was received. They decide whether a missing mapping means
/// that the server no longer assigns it.
#[derive(Debug, Clone, Copy)]
pub(super) struct PollContext {
    /// Number of the session.
    pub session: u64,
    /// The server knows all joins in this session.
    pub settled: bool,
    /// Every entry of the response could be read.
    pub complete: bool,
    /// The server was away a short time ago.
    pub after_outage: bool,
}

/// All channels that are requested or mapped.
#[derive(Debug)]
pub(super) struct Mappings {
    role: MnatRole,
    /// The channels that an egress requests, and since when. They fit into one request.
    joins: BTreeMap<Channel, Instant>,
    /// Number of further joins that do not fit into one request.
    left_out: usize,
    entries: BTreeMap<Channel, Entry>,
    /// The oldest confirmation of the mappings in use.
    oldest: Option<Instant>,
}

impl Mappings {
    pub fn new(role: MnatRole) -> Self {
        Self {
            role,
            joins: BTreeMap::new(),
            left_out: 0,
            entries: BTreeMap::new(),
            oldest: None,
        }
    }

    /// Returns the mappings in use as data.
    pub fn saved(&self, clock: &ClockReading) -> Vec<SavedMapping> {
        let saved = |(global, entry): (&Channel, &Entry)| {
            Some(SavedMapping {
                global: *global,
                local: entry.local?,
                confirmed: clock.to_boot(entry.confirmed),
            })
        };
        self.entries.iter().filter_map(saved).collect()
    }

    /// Takes saved mappings of a session into use, unless they have expired after `lifetime`. A
    /// local channel belongs to one global channel.
    pub fn restore(
        &mut self,
        clock: &ClockReading,
        saved: &[SavedMapping],
        lifetime: Duration,
        session: u64,
    ) -> Vec<MappingChange> {
        let mut changes = Vec::new();
        let mut taken = BTreeSet::new();
        for mapping in saved {
            let SavedMapping { global, local, .. } = *mapping;
            let confirmed = clock.to_instant(mapping.confirmed).min(clock.now);
            let is_expired = clock.now >= confirmed + lifetime;
            if is_expired || !taken.insert(local) {
                continue;
            }
            let entry = Entry {
                local: Some(local),
                confirmed,
                current: false,
                session,
                why: None,
                conflict: false,
            };
            self.entries.insert(global, entry);
            changes.push(MappingChange::Add {
                global,
                local,
                waited: None,
            });
        }
        self.update_oldest();
        changes
    }

    /// Returns the channels that an egress requests, at most as many as fit into one request.
    pub fn joins(&self) -> impl Iterator<Item = Channel> {
        self.joins.keys().copied()
    }

    /// Sets the requested channels; see [`super::Machine::set_joins`]. Returns the mappings that
    /// end. Returns `None` if the channels to send to the server did not change.
    pub fn set_joins(
        &mut self,
        now: Instant,
        joins: &BTreeSet<Channel>,
    ) -> Option<Vec<MappingChange>> {
        let same = self.left_out == 0 && joins.iter().eq(self.joins.keys());
        if self.role != MnatRole::Egress || same {
            return None;
        }
        let fitting = MnatRequest::fitting_joins(joins.iter().copied());
        self.left_out = joins.len() - fitting;
        let new = joins.iter().take(fitting);
        if new.clone().eq(self.joins.keys()) {
            return None;
        }
        let old = std::mem::take(&mut self.joins);
        self.joins = new
            .map(|channel| (*channel, old.get(channel).copied().unwrap_or(now)))
            .collect();
        let mut changes = Vec::new();
        let (entries, joins) = (&mut self.entries, &self.joins);
        entries.retain(|global, entry| {
            let stays = joins.contains_key(global);
            if !stays {
                changes.extend(entry.end(*global, MappingEnd::NotRequested));
            }
            stays
        });
        self.update_oldest();
        Some(changes)
    }

    /// Returns the number of joins that do not fit into one request.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// Returns the oldest confirmation of the mappings in use.
    pub fn oldest(&self) -> Option<Instant> {
        self.oldest
    }

    fn update_oldest(&mut self) {
        let assigned = self.entries.values().filter(|e| e.local.is_some());
        self.oldest = assigned.map(|e| e.confirmed).min();
    }

    /// Removes the mappings that were not confirmed for `keep`.
    pub fn expire(&mut self, now: Instant, keep: Duration) -> Vec<MappingChange> {
        let mut changes = Vec::new();
        self.entries.retain(|global, entry| {
            let over = entry.local.is_some() && now >= entry.confirmed + keep;
            if over {
                changes.extend(entry.end(*global, MappingEnd::Expired));
            }
            !over
        });
        self.update_oldest();
        changes
    }

    /// Marks all mappings as not confirmed by the last response.
    pub fn clear_current(&mut self) {
        self.entries.values_mut().for_each(|e| e.current = false);
    }

    /// Confirms the mappings of the last response again.
    pub fn confirm(&mut self, now: Instant) {
        let current = self.entries.values_mut().filter(|e| e.current);
        current.for_each(|entry| entry.confirmed = now);
        self.update_oldest();
    }

    /// Updates the mappings in use from the `reported` mappings of a response. Returns the changes,
    /// and descriptions of the mappings that cannot be used.
    pub fn compare(
        &mut self,
        now: Instant,
        reported: Vec<Mapping>,
        context: PollContext,
    ) -> (Vec<MappingChange>, Vec<String>) {
        let (mut changes, mut problems) = (Vec::new(), Vec::new());
        let mut unassigned = BTreeSet::new();
        self.clear_current();
        let owners = self.owners(&reported);
        for Mapping { global, state } in reported {
            let since = self.joins.get(&global);
            if self.role == MnatRole::Egress && since.is_none() {
                continue;
            }
            let entry = self.entries.entry(global).or_insert(Entry {
                local: None,
                confirmed: now,
                current: false,
                session: context.session,
                why: None,
                conflict: false,
            });
            entry.conflict = false;
            let state = match state {
                AssignmentState::Assigned(local) => match owners.get(&local) {
                    Some(owner) if *owner != global => {
                        entry.conflict = true;
                        AssignmentState::Unusable(format!("{local} is also assigned to {owner}"))
                    }
                    _ => AssignmentState::Assigned(local),
                },
                other => other,
            };
            match state {
                AssignmentState::Assigned(local) => {
                    let after_outage = context.after_outage || entry.session != context.session;
                    entry.current = true;
                    entry.confirmed = now;
                    entry.session = context.session;
                    entry.why = None;
                    changes.extend(match entry.local.replace(local) {
                        Some(old) if old == local => None,
                        Some(old) => Some(MappingChange::Swap {
                            global,
                            old,
                            new: local,
                            after_outage,
                        }),
                        None => Some(MappingChange::Add {
                            global,
                            local,
                            waited: since.map(|since| now.saturating_duration_since(*since)),
                        }),
                    });
                }
                AssignmentState::Unassigned => {
                    entry.why = None;
                    unassigned.insert(global);
                }
                AssignmentState::Unusable(why) => {
                    if entry.why.as_ref() != Some(&why) {
                        problems.push(format!("{global}: {why}"));
                    }
                    // A mapping that cannot be used neither ends nor confirms the one in use.
                    entry.why = Some(why);
                }
            }
        }
        self.remove_unconfirmed(context, &unassigned, &mut changes);
        self.update_oldest();
        (changes, problems)
    }

    /// Returns the global channel that each local channel belongs to. If a response assigns a local
    /// channel to several global channels, the one that already uses it keeps it. If none uses it,
    /// the first one gets it. An egress ignores channels that it does not request.
    fn owners(&self, reported: &[Mapping]) -> BTreeMap<Channel, Channel> {
        let mut owners = BTreeMap::new();
        for mapping in reported {
            let AssignmentState::Assigned(local) = mapping.state else {
                continue;
            };
            let global = mapping.global;
            if self.role == MnatRole::Egress && !self.joins.contains_key(&global) {
                continue;
            }
            let owner = owners.entry(local).or_insert(global);
            let in_use = self.entries.get(&global).and_then(|e| e.local);
            if in_use == Some(local) {
                *owner = global;
            }
        }
        owners
    }

    /// Removes the mappings that the response did not confirm, as far as `context` allows.
    /// `unassigned` are the channels that the response lists without a mapping.
    fn remove_unconfirmed(
        &mut self,
        context: PollContext,
        unassigned: &BTreeSet<Channel>,
        changes: &mut Vec<MappingChange>,
    ) {
        if self.entries.values().all(|e| e.current) {
            return;
        }
        let current = self.entries.values().filter(|e| e.current);
        let taken: BTreeSet<Channel> = current.filter_map(|e| e.local).collect();
        self.entries.retain(|global, entry| {
            if entry.current {
                return true;
            }
            let listed = unassigned.contains(global);
            let unusable = entry.why.is_some();
            let reliable = context.settled || entry.session == context.session;
            let why = match entry.local {
                Some(local) if taken.contains(&local) => MappingEnd::Reassigned,
                Some(_) if listed && reliable => MappingEnd::Unassigned,
                Some(_) if !listed && !unusable && reliable && context.complete => {
                    MappingEnd::Unassigned
                }
                // Never assigned, and not listed any more.
                None if !listed && !unusable => return false,
                _ => return true,
            };
            changes.extend(entry.end(*global, why));
            listed || unusable
        });
    }

    /// Returns the status of every channel; see [`super::Machine::mapping_reports`]. `up` tells
    /// whether the server answers.
    pub fn reports(&self, up: bool) -> Vec<MappingReport> {
        let globals = self.joins.keys().chain(self.entries.keys());
        let globals: BTreeSet<Channel> = globals.copied().collect();
        let report = |global| {
            let entry = self.entries.get(&global);
            let local = entry.and_then(|e| e.local);
            let status = match entry {
                Some(e) if local.is_some() && e.current && up => MappingStatus::Assigned,
                Some(_) if local.is_some() => MappingStatus::Held,
                Some(e) if e.conflict => MappingStatus::Conflict,
                _ => MappingStatus::Unassigned,
            };
            MappingReport {
                global,
                local,
                status,
                why: entry.and_then(|e| e.why.clone()),
            }
        };
        globals.into_iter().map(report).collect()
    }

    /// Returns the number of channels of each status, in the order of [`MappingStatus::ALL`]. Joins
    /// that do not fit into one request count as unassigned.
    pub fn counts(&self, up: bool) -> [usize; 4] {
        let assigned = self.entries.values().filter(|e| e.local.is_some());
        let (mut current, mut held) = (0, 0);
        for entry in assigned {
            let known = entry.current && up;
            *(if known { &mut current } else { &mut held }) += 1;
        }
        let unknown = self.joins.keys().filter(|c| !self.entries.contains_key(c));
        let conflicts = self.entries.values();
        let conflicts = conflicts
            .filter(|e| e.local.is_none() && e.conflict)
            .count();
        let unassigned = self.entries.len() - current - held - conflicts + unknown.count();
        let unassigned = unassigned + self.left_out;
        [current, held, unassigned, conflicts]
    }

    /// Returns the global channels with a mapping in use.
    pub fn assigned(&self) -> impl Iterator<Item = Channel> {
        let assigned = self.entries.iter().filter(|(_, e)| e.local.is_some());
        assigned.map(|(global, _)| *global)
    }
}

/// A global channel and the status of its mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappingReport {
    /// The global channel.
    pub global: Channel,
    /// The local channel in use.
    pub local: Option<Channel>,
    /// The status.
    pub status: MappingStatus,
    /// The reason why the mapping of the server cannot be used.
    pub why: Option<String>,
}
