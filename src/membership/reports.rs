//! Reports and leaves of hosts: what of them is taken, and what becomes of it
//! (RFC 9776 sections 6.4 and 7.3.2).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use crate::model::{Group, Source};
use crate::wire::group_message::{Generation, RecordType};

use super::downstream::Downstream;
use super::effective_timers::EffectiveTimers;
use super::group::{GroupState, Send, Terms};
use super::quota::{self, Place, SenderStatus};
use super::refusal::MembershipRefusal;

/// One record of a host; a report or leave of an older generation is one, too.
pub(super) struct Said<'a> {
    pub(super) from: IpAddr,
    pub(super) standing: SenderStatus,
    pub(super) generation: Generation,
    pub(super) group: Group,
    pub(super) kind: RecordType,
    pub(super) sources: &'a [Source],
}

impl Downstream {
    /// Takes one record; tells each reason why a part of it was refused.
    pub(super) fn record(
        &mut self,
        now: Instant,
        said: &Said<'_>,
        refuse: &mut impl FnMut(MembershipRefusal),
    ) {
        use RecordType::{BlockOldSources, ChangeToExclude, ChangeToInclude, ModeIsExclude};
        let Said { group, kind, .. } = *said;
        let excludes = matches!(kind, ModeIsExclude | ChangeToExclude);
        if let Err(reason) = self.check_group(said, excludes) {
            return refuse(reason);
        }
        let mut named = self.named(said, refuse);
        let spoken = self.config.generation();
        let known = self.groups.get(&group);
        let mode = known.map_or(spoken, |g| g.generation(now, spoken));
        // Section 7.3.2: what hosts of older generations could not have meant.
        match kind {
            BlockOldSources if mode < Generation::Three => return,
            ChangeToInclude if mode == Generation::One => return,
            ChangeToExclude if mode < Generation::Three => named.clear(),
            _ => {}
        }
        let has = known.map_or(0, |g| g.sources.len());
        let mut place = Place::Common;
        if known.is_none() {
            let joins = excludes || (kind != BlockOldSources && !named.is_empty());
            if !joins {
                return;
            }
            let (taken, limit) = (self.groups.len(), self.config.rule.limits.groups);
            match self.room.find(taken, limit, said.from, said.standing) {
                Some(found) => place = found,
                None => return refuse(MembershipRefusal::GroupLimit),
            }
            self.room.take(place);
        }
        let timing = *self.querier.timers();
        let of_all = quota::open_to(said.standing, self.config.max_sources());
        let of_group = self.config.rule.limits.sources_per_group;
        let of_group = quota::open_to(said.standing, of_group);
        let terms = Terms {
            now,
            interval: timing.group_membership_interval(),
            sources: of_group.min(of_all.saturating_sub(self.source_count) + has),
        };
        let asks = self.querier.is_us();
        let tracks = self.config.rule.fast_leave;
        let heard_all = self.heard_every_host(now);
        let room = self.config.max_tracked_entries.saturating_sub(self.tracked);
        let mut queries = Vec::new();
        self.with_group(now, group, Some(said.from), |state, by| {
            let is_new = state.is_gone();
            state.last_reporter = said.from;
            if is_new {
                state.place = place;
            }
            if kind == ModeIsExclude {
                state.older_host(said.generation, now + timing.older_host_present_interval());
            }
            let mut send = state.apply(kind, &named, &terms);
            (0..state.take_overflow()).for_each(|_| refuse(MembershipRefusal::SourceLimit));
            if tracks {
                if !state.track(said, &named, is_new, room, now, &timing) {
                    refuse(MembershipRefusal::HostLimit);
                }
                if mode == Generation::Three && heard_all && state.knows_every_host(now) {
                    send = state.give_up_unwanted(send, terms.sources);
                }
            }
            if asks {
                state.ask(group, send, by, &mut queries);
            }
        });
        self.push_queries(queries);
    }

    fn check_group(&self, said: &Said<'_>, excludes: bool) -> Result<(), MembershipRefusal> {
        let group = said.group;
        if !self.config.protocol.is_family_of(group.addr()) {
            Err(MembershipRefusal::OtherFamily)
        } else if group.is_link_local() {
            Err(MembershipRefusal::LinkLocalGroup)
        } else if !self.config.rule.takes_group(group) {
            Err(MembershipRefusal::GroupDenied)
        } else if group.is_source_specific() && (excludes || said.generation < Generation::Three) {
            Err(MembershipRefusal::AnySourceInSsm)
        } else {
            Ok(())
        }
    }

    /// The sources named that may be.
    fn named(
        &self,
        said: &Said<'_>,
        refuse: &mut impl FnMut(MembershipRefusal),
    ) -> BTreeSet<Source> {
        use RecordType::{AllowNewSources, ChangeToInclude, ModeIsInclude};
        // Whether a source may be forwarded does not matter where it is not wanted.
        let wanted = matches!(said.kind, ModeIsInclude | ChangeToInclude | AllowNewSources);
        let mut named = BTreeSet::new();
        for source in said.sources {
            if !self.config.protocol.is_family_of(source.addr()) {
                refuse(MembershipRefusal::OtherFamily);
            } else if wanted && !self.config.rule.takes_source(*source) {
                refuse(MembershipRefusal::SourceDenied);
            } else {
                named.insert(*source);
            }
        }
        named
    }
}

impl GroupState {
    /// Notes what the host wants now. False where there is no room for it.
    fn track(
        &mut self,
        said: &Said<'_>,
        named: &BTreeSet<Source>,
        is_new: bool,
        room: usize,
        now: Instant,
        timing: &EffectiveTimers,
    ) -> bool {
        let until = now + timing.group_membership_interval();
        let fresh = self.tracker.is_none();
        let tracker = self.tracker.get_or_insert_default();
        if fresh && !is_new {
            tracker.miss(until);
        }
        let room = tracker.size().saturating_add(room);
        // Hosts of older generations keep silent when they hear another, and hosts without an
        // address cannot be told apart.
        let noted = if said.generation < Generation::Three || said.from.is_unspecified() {
            tracker.miss(until);
            true
        } else {
            let noted = tracker.note(said.from, said.kind, named, until, room);
            if !noted {
                tracker.miss(until);
            }
            noted
        };
        if let Some(at) = tracker.next_expiry() {
            self.wake_at(at);
        }
        noted
    }

    fn knows_every_host(&self, now: Instant) -> bool {
        self.tracker.as_ref().is_some_and(|t| t.is_complete(now))
    }

    /// Gives up at once what would have been asked for and no host wants. What is left to ask
    /// comes back: nothing, or all where there is no room to do without.
    fn give_up_unwanted(&mut self, mut send: Send, most: usize) -> Send {
        let Some(tracker) = self.tracker.take() else {
            return send;
        };
        let ends = send.group && !tracker.any_excludes();
        // While some host wanted every source, the tables forgot what others had named.
        let forgotten: Vec<Source> = match ends {
            true => tracker.included().collect(),
            false => Vec::new(),
        };
        if forgotten.len() <= most {
            send.sources.retain(|source| !tracker.wants(source));
            self.give_up(&send.sources, ends);
            if let Some(until) = tracker.last_expiry() {
                forgotten.into_iter().for_each(|s| self.restore(s, until));
            }
            send = Send::default();
        }
        self.tracker = Some(tracker);
        send
    }
}
