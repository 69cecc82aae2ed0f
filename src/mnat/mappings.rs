//! The mappings in use, and how they are compared with what the server says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::channel::Channel;
use super::protocol::{AssignmentState, Mapping, MnatRequest, MnatRole};

/// A mapping that came, went, or is another one now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MappingChange {
    /// A global channel goes through the network as a local one.
    Add {
        /// The global channel.
        global: Channel,
        /// The local one.
        local: Channel,
        /// How long it was wanted before; only an egress wants.
        waited: Option<Duration>,
    },
    /// It does no longer.
    Remove {
        /// The global channel.
        global: Channel,
        /// The local one it had.
        local: Channel,
        /// Why.
        why: MappingEnd,
    },
    /// It goes through as another local one; the old one is still good for a moment.
    Swap {
        /// The global channel.
        global: Channel,
        /// What it was.
        old: Channel,
        /// What it is.
        new: Channel,
    },
}

/// Why a mapping went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MappingEnd {
    /// Nobody wants it here any more.
    Unwanted,
    /// The server took it back.
    TakenBack,
    /// The server gave its local channel to another.
    GivenAway,
    /// The server did not confirm it for the grace time.
    GraceOver,
}

impl MappingEnd {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Unwanted => "nobody wants it any more",
            Self::TakenBack => "the server took it back",
            Self::GivenAway => "the server gave its local channel to another",
            Self::GraceOver => "the server did not confirm it for the grace time",
        }
    }
}

/// How a mapping stands, to those who look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MappingStatus {
    /// The server says so.
    Assigned,
    /// The server said so; it is away, or does not know all joins again yet.
    Held,
    /// Wanted, and the server has none.
    Unassigned,
    /// The server has one that cannot be in force: something else is in its way.
    Conflict,
}

impl MappingStatus {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Assigned, Self::Held, Self::Unassigned, Self::Conflict];

    /// The `state` label of metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Assigned => "assigned",
            Self::Held => "held",
            Self::Unassigned => "unassigned",
            Self::Conflict => "conflict",
        }
    }
}

#[derive(Debug)]
struct Entry {
    /// The local channel in use.
    local: Option<Channel>,
    /// When the server last said so.
    confirmed: Instant,
    /// It said so in its last answer.
    current: bool,
    /// The session in which it last said so.
    session: u64,
    /// Why what it says now cannot be used.
    why: Option<String>,
    /// That is because another one has the local channel.
    conflict: bool,
}

impl Entry {
    fn end(&mut self, global: Channel, why: MappingEnd) -> Option<MappingChange> {
        let local = self.local.take()?;
        Some(MappingChange::Remove { global, local, why })
    }
}

/// What an answer counts for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weight {
    /// Number of the session.
    pub session: u64,
    /// The server knows all joins, in this session.
    pub settled: bool,
    /// Nothing was left out of the answer.
    pub whole: bool,
}

/// All that is wanted or mapped.
#[derive(Debug)]
pub(super) struct Mappings {
    role: MnatRole,
    wanted: BTreeMap<Channel, Instant>,
    /// How many more are wanted than a request can tell.
    left_out: usize,
    entries: BTreeMap<Channel, Entry>,
    /// The oldest confirmation of those in use.
    oldest: Option<Instant>,
}

impl Mappings {
    pub fn new(role: MnatRole) -> Self {
        Self {
            role,
            wanted: BTreeMap::new(),
            left_out: 0,
            entries: BTreeMap::new(),
            oldest: None,
        }
    }

    pub fn wanted(&self) -> impl Iterator<Item = Channel> {
        self.wanted.keys().copied()
    }

    /// See [`super::Machine::want`]; `None` where nothing changed.
    pub fn want(&mut self, now: Instant, wanted: &BTreeSet<Channel>) -> Option<Vec<MappingChange>> {
        let same = self.left_out == 0 && wanted.iter().eq(self.wanted.keys());
        if self.role != MnatRole::Egress || same {
            return None;
        }
        let room = MnatRequest::room_for(wanted.iter().copied());
        self.left_out = wanted.len() - room;
        let new = wanted.iter().take(room);
        if new.clone().eq(self.wanted.keys()) {
            return None;
        }
        let old = std::mem::take(&mut self.wanted);
        self.wanted = new
            .map(|channel| (*channel, old.get(channel).copied().unwrap_or(now)))
            .collect();
        let mut changes = Vec::new();
        let (entries, wanted) = (&mut self.entries, &self.wanted);
        entries.retain(|global, entry| {
            let stays = wanted.contains_key(global);
            if !stays {
                changes.extend(entry.end(*global, MappingEnd::Unwanted));
            }
            stays
        });
        self.look_oldest();
        Some(changes)
    }

    /// How many more are wanted than a request can tell.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// The oldest confirmation of those in use.
    pub fn oldest(&self) -> Option<Instant> {
        self.oldest
    }

    fn look_oldest(&mut self) {
        let assigned = self.entries.values().filter(|e| e.local.is_some());
        self.oldest = assigned.map(|e| e.confirmed).min();
    }

    /// Gives up what was not confirmed for so long.
    pub fn expire(&mut self, now: Instant, keep: Duration) -> Vec<MappingChange> {
        let mut changes = Vec::new();
        self.entries.retain(|global, entry| {
            let over = entry.local.is_some() && now >= entry.confirmed + keep;
            if over {
                changes.extend(entry.end(*global, MappingEnd::GraceOver));
            }
            !over
        });
        self.look_oldest();
        changes
    }

    /// From now on nothing is confirmed.
    pub fn doubt(&mut self) {
        self.entries.values_mut().for_each(|e| e.current = false);
    }

    /// Compares what the server says with what is in use: what changed, and what is odd.
    pub fn compare(
        &mut self,
        now: Instant,
        said: Vec<Mapping>,
        weight: Weight,
    ) -> (Vec<MappingChange>, Vec<String>) {
        let (mut changes, mut oddities) = (Vec::new(), Vec::new());
        let mut unassigned = BTreeSet::new();
        self.doubt();
        let owners = self.owners(&said);
        for Mapping { global, state } in said {
            let since = self.wanted.get(&global);
            if self.role == MnatRole::Egress && since.is_none() {
                continue;
            }
            let entry = self.entries.entry(global).or_insert(Entry {
                local: None,
                confirmed: now,
                current: false,
                session: weight.session,
                why: None,
                conflict: false,
            });
            entry.conflict = false;
            let state = match state {
                AssignmentState::Assigned(local) => match owners.get(&local) {
                    Some(owner) if *owner != global => {
                        entry.conflict = true;
                        AssignmentState::Unusable(format!("{local} is that of {owner} too"))
                    }
                    _ => AssignmentState::Assigned(local),
                },
                other => other,
            };
            match state {
                AssignmentState::Assigned(local) => {
                    entry.current = true;
                    entry.confirmed = now;
                    entry.session = weight.session;
                    entry.why = None;
                    changes.extend(match entry.local.replace(local) {
                        Some(old) if old == local => None,
                        Some(old) => Some(MappingChange::Swap {
                            global,
                            old,
                            new: local,
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
                        oddities.push(format!("{global}: {why}"));
                    }
                    // Nonsense does not take a mapping back; but it does not confirm it either.
                    entry.why = Some(why);
                }
            }
        }
        self.let_go(weight, &unassigned, &mut changes);
        self.look_oldest();
        (changes, oddities)
    }

    /// Whose each local channel is, of those that are used here. Where an answer gives one to
    /// several, it stays whose it was, else it is the first one's.
    fn owners(&self, said: &[Mapping]) -> BTreeMap<Channel, Channel> {
        let mut owners = BTreeMap::new();
        for mapping in said {
            let AssignmentState::Assigned(local) = mapping.state else {
                continue;
            };
            let global = mapping.global;
            if self.role == MnatRole::Egress && !self.wanted.contains_key(&global) {
                continue;
            }
            let owner = owners.entry(local).or_insert(global);
            let had = self.entries.get(&global).and_then(|e| e.local);
            if had == Some(local) {
                *owner = global;
            }
        }
        owners
    }

    /// Gives up what the answer did not confirm, as far as it counts.
    fn let_go(
        &mut self,
        weight: Weight,
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
            let named = unassigned.contains(global);
            let unreadable = entry.why.is_some();
            let knows = weight.settled || entry.session == weight.session;
            let why = match entry.local {
                Some(local) if taken.contains(&local) => MappingEnd::GivenAway,
                Some(_) if named && knows => MappingEnd::TakenBack,
                Some(_) if !named && !unreadable && knows && weight.whole => MappingEnd::TakenBack,
                // Never assigned, and not even named any more.
                None if !named && !unreadable => return false,
                _ => return true,
            };
            changes.extend(entry.end(*global, why));
            named || unreadable
        });
    }

    /// See [`super::Machine::standings`].
    pub fn standings(&self, up: bool) -> Vec<MappingReport> {
        let globals = self.wanted.keys().chain(self.entries.keys());
        let globals: BTreeSet<Channel> = globals.copied().collect();
        let stand = |global| {
            let entry = self.entries.get(&global);
            let local = entry.and_then(|e| e.local);
            let standing = match entry {
                Some(e) if local.is_some() && e.current && up => MappingStatus::Assigned,
                Some(_) if local.is_some() => MappingStatus::Held,
                Some(e) if e.conflict => MappingStatus::Conflict,
                _ => MappingStatus::Unassigned,
            };
            MappingReport {
                global,
                local,
                standing,
                why: entry.and_then(|e| e.why.clone()),
            }
        };
        globals.into_iter().map(stand).collect()
    }

    /// How many stand in each way, in the order of [`MappingStatus::ALL`].
    pub fn counts(&self, up: bool) -> [usize; 4] {
        let assigned = self.entries.values().filter(|e| e.local.is_some());
        let (mut current, mut held) = (0, 0);
        for entry in assigned {
            let known = entry.current && up;
            *(if known { &mut current } else { &mut held }) += 1;
        }
        let unknown = self.wanted.keys().filter(|c| !self.entries.contains_key(c));
        let conflicts = self.entries.values();
        let conflicts = conflicts
            .filter(|e| e.local.is_none() && e.conflict)
            .count();
        let unassigned = self.entries.len() - current - held - conflicts + unknown.count();
        let unassigned = unassigned + self.left_out;
        [current, held, unassigned, conflicts]
    }

    /// The global channels that go through now.
    pub fn assigned(&self) -> impl Iterator<Item = Channel> {
        let assigned = self.entries.iter().filter(|(_, e)| e.local.is_some());
        assigned.map(|(global, _)| *global)
    }
}

/// A global channel and how it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappingReport {
    /// The global channel.
    pub global: Channel,
    /// The local one in use.
    pub local: Option<Channel>,
    /// How it stands.
    pub standing: MappingStatus,
    /// Why what the server says of it cannot be used.
    pub why: Option<String>,
}
