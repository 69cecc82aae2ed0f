//! One downstream interface, one IP version: who of its hosts is a member of what, and what they
//! are asked.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::{Group, HeaderChecks, ProxyRule, SourceFilter};
use crate::wire::group_message::{Generation, Message, Query, RecordType};

use super::config::DownstreamConfig;
use super::effective_timers::EffectiveTimers;
use super::election::QuerierElection;
use super::group::GroupState;
use super::quota::{Room, SenderStatus};
use super::refusal::{MembershipRefusal, RefusalCounts};
use super::reports::Said;
use super::specific_queries::Asker;
use super::status::{GroupStatus, QuerierStatus};

/// How many events wait to be told; of more, the oldest are forgotten.
const EVENTS: usize = 64;

/// A query to be sent. Where its sources do not fit the MTU, it is to be split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutgoingQuery {
    /// What it says.
    pub query: Query,
    /// Where it goes: all hosts, or the group it asks for.
    pub destination: IpAddr,
}

/// What is worth a line in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MembershipEvent {
    /// Another asks now.
    QuerierChanged {
        /// Who; none where nobody does.
        address: Option<IpAddr>,
        /// Whether that is us.
        is_us: bool,
    },
    /// We only listen, and for as long as another querier is believed to live nobody asked.
    /// Hosts are forgotten then.
    NoQuerier,
    /// A router with a lower address asks, and our policy is to ask nevertheless. At most once
    /// a minute.
    CompetingQuerier {
        /// Its address.
        address: IpAddr,
    },
    /// A router speaks another version than we do: the link has to be configured alike
    /// (RFC 9776 section 7.3.1). At most once a minute.
    VersionMismatch {
        /// Its address.
        address: IpAddr,
        /// What it speaks.
        received: Generation,
        /// What we speak, and go on to.
        configured: Generation,
    },
}

/// The machine. After each call that takes `&mut self`, ask for queries, changes and events
/// until there are none.
#[derive(Debug)]
pub struct Downstream {
    pub(super) config: DownstreamConfig,
    pub(super) querier: QuerierElection,
    told_querier: (Option<IpAddr>, bool),
    pub(super) groups: BTreeMap<Group, GroupState>,
    pub(super) room: Room,
    /// Each group with a timer stands here once.
    deadlines: BTreeSet<(Instant, Group)>,
    pub(super) source_count: usize,
    /// Hosts and sources of theirs that are tracked, over all groups.
    pub(super) tracked: usize,
    queries: VecDeque<OutgoingQuery>,
    /// With what was forwarded when the caller was last told.
    changed: BTreeMap<Group, SourceFilter>,
    events: VecDeque<MembershipEvent>,
    pub(super) warned_rival: Option<Instant>,
    pub(super) warned_version: Option<Instant>,
    /// When messages were last lost before they came here.
    unheard: Option<Instant>,
    /// Until then hosts may be members without our knowledge.
    hosts_missed_until: Instant,
    refusals: RefusalCounts,
}

impl Downstream {
    /// Starts with no members. With an address and a policy to ask, the first general query is
    /// due at once: see [`poll_timeout`](Self::poll_timeout).
    pub fn new(now: Instant, config: DownstreamConfig, own_address: Option<IpAddr>) -> Self {
        let rule = &config.rule;
        let querier = QuerierElection::new(now, rule.querier, &rule.timers, usable(own_address));
        let mut machine = Self {
            config,
            querier,
            told_querier: (None, false),
            groups: BTreeMap::new(),
            room: Room::default(),
            deadlines: BTreeSet::new(),
            source_count: 0,
            tracked: 0,
            queries: VecDeque::new(),
            changed: BTreeMap::new(),
            events: VecDeque::new(),
            warned_rival: None,
            warned_version: None,
            unheard: None,
            hosts_missed_until: now,
            refusals: RefusalCounts::default(),
        };
        machine.hosts_missed_until = now + machine.learning_time();
        machine.tell_querier();
        machine
    }

    /// How long it takes after the start until all hosts were asked, and had the time to answer:
    /// by us at once, else whenever somebody else asks.
    pub fn learning_time(&self) -> Duration {
        let timing = self.querier.timers();
        match self.querier.is_us() {
            true => timing.query_response_interval(),
            false => timing.group_membership_interval(),
        }
    }

    /// What it was told.
    pub fn config(&self) -> &DownstreamConfig {
        &self.config
    }

    /// The timers and counts in force: those of the elected querier where it tells some.
    pub fn timers(&self) -> &EffectiveTimers {
        self.querier.timers()
    }

    /// Who asks.
    pub fn querier(&self, now: Instant) -> QuerierStatus {
        self.querier.view(now)
    }

    /// How many groups have members.
    pub fn group_count(&self) -> usize {
        self.groups.len()
    }

    /// How many sources are known, over all groups.
    pub fn source_count(&self) -> usize {
        self.source_count
    }

    /// Every group with members, lowest first.
    pub fn groups(&self, now: Instant) -> impl Iterator<Item = GroupStatus> {
        let spoken = self.config.generation();
        let view = move |(group, state): (&Group, &GroupState)| state.view(now, *group, spoken);
        self.groups.iter().map(view)
    }

    /// What is forwarded of a group.
    pub fn filter(&self, group: Group) -> SourceFilter {
        let state = self.groups.get(&group);
        state.map_or_else(SourceFilter::none, GroupState::filter)
    }

    /// Takes a message of a stranger, as [`handle_message_from`](Self::handle_message_from) does.
    ///
    /// # Errors
    /// Likewise.
    pub fn handle_message(
        &mut self,
        now: Instant,
        from: IpAddr,
        to: IpAddr,
        message: &Message,
    ) -> Result<(), MembershipRefusal> {
        self.handle_message_from(now, SenderStatus::Unknown, from, to, message)
    }

    /// Takes a message that came from `from` and was sent to `to`. Its checksum, TTL and options
    /// were checked before. The last quarter of the places for groups and sources is for members.
    ///
    /// What ran out stands until [`handle_timeout`](Self::handle_timeout): a caller that is
    /// late gives it the reports that wait first, and no member is lost.
    ///
    /// # Errors
    /// The first reason why a part of it was refused; the other parts are taken.
    /// [`take_refusals`](Self::take_refusals) knows every reason.
    pub fn handle_message_from(
        &mut self,
        now: Instant,
        standing: SenderStatus,
        from: IpAddr,
        to: IpAddr,
        message: &Message,
    ) -> Result<(), MembershipRefusal> {
        let mut refused = Vec::new();
        let refuse = &mut |reason| refused.push(reason);
        if let Err(reason) = self.check_sender(from, message) {
            refuse(reason);
        } else {
            self.take(now, (from, standing), to, message, refuse);
        }
        refused.iter().for_each(|r| self.refusals.count(*r));
        refused.first().map_or(Ok(()), |r| Err(*r))
    }

    fn take(
        &mut self,
        now: Instant,
        (from, standing): (IpAddr, SenderStatus),
        to: IpAddr,
        message: &Message,
        refuse: &mut impl FnMut(MembershipRefusal),
    ) {
        let older = |generation, group, kind| Said {
            from,
            standing,
            generation,
            group,
            kind,
            sources: &[],
        };
        match message {
            Message::Query(query) => {
                if let Err(reason) = self.heard_query(now, from, to, query) {
                    refuse(reason);
                }
            }
            Message::Report { generation, group } => {
                let said = older(*generation, *group, RecordType::ModeIsExclude);
                self.record(now, &said, refuse);
            }
            Message::Leave { group } => {
                let said = older(Generation::Two, *group, RecordType::ChangeToInclude);
                self.record(now, &said, refuse);
            }
            Message::Records(records) => {
                for record in records {
                    let said = Said {
                        from,
                        standing,
                        generation: Generation::Three,
                        group: record.group,
                        kind: record.kind,
                        sources: &record.sources,
                    };
                    self.record(now, &said, refuse);
                }
            }
        }
    }

    fn check_sender(&self, from: IpAddr, message: &Message) -> Result<(), MembershipRefusal> {
        // A lenient proxy hears hosts that have no link-local address; it elects no such querier.
        let lenient = self.config.rule.header_checks == HeaderChecks::Lenient;
        let lenient = lenient && !matches!(message, Message::Query(_));
        match from {
            _ if !self.config.protocol.is_family_of(from) => Err(MembershipRefusal::OtherFamily),
            IpAddr::V6(a) if !a.is_unicast_link_local() && !lenient => {
                Err(MembershipRefusal::NotLinkLocalSender)
            }
            _ => Ok(()),
        }
    }

    /// Changes one group, and then all that depends on it. A group that is not known is made
    /// where somebody asks for it.
    pub(super) fn with_group(
        &mut self,
        now: Instant,
        group: Group,
        from: Option<IpAddr>,
        change: impl FnOnce(&mut GroupState, &Asker<'_>),
    ) {
        let state = match (self.groups.contains_key(&group), from) {
            (false, None) => return,
            (false, Some(from)) => self.groups.entry(group).or_insert(GroupState::new(from)),
            (true, _) => match self.groups.get_mut(&group) {
                Some(state) => state,
                None => return,
            },
        };
        let (wake, sources, tracked) = (state.wake, state.sources.len(), state.tracked());
        let asker = Asker {
            now,
            spoken: self.config.generation(),
            timing: self.querier.timers(),
        };
        change(state, &asker);
        if let Some(before) = state.before.take() {
            self.changed.entry(group).or_insert(before);
        }
        self.source_count = self.source_count + state.sources.len() - sources;
        self.tracked = self.tracked + state.tracked() - tracked;
        let next = state.wake.filter(|_| !state.is_gone());
        if state.is_gone() {
            self.tracked -= state.tracked();
            self.room.free(state.place);
            self.groups.remove(&group);
        }
        if wake != next {
            if let Some(at) = wake {
                self.deadlines.remove(&(at, group));
            }
            if let Some(at) = next {
                self.deadlines.insert((at, group));
            }
        }
    }

    pub(super) fn push_queries(&mut self, queries: Vec<Query>) {
        let all = self.config.protocol.general_query_destination();
        // A caller that takes none must not make us hold more and more.
        let room = self.config.rule.limits.groups.saturating_mul(2).max(1024);
        for query in queries {
            if self.queries.len() < room {
                let to = query.group.map_or(all, Group::addr);
                self.queries.push_back(OutgoingQuery {
                    query,
                    destination: to,
                });
            }
        }
    }

    /// The next query to be sent.
    pub fn poll_query(&mut self) -> Option<OutgoingQuery> {
        self.queries.pop_front()
    }

    /// A group whose filter has changed since it was last told, and what it is now: `Include` of
    /// none where nobody is left. Changes of one group between two calls are one.
    pub fn poll_change(&mut self) -> Option<(Group, SourceFilter)> {
        while let Some((group, before)) = self.changed.pop_first() {
            let filter = self.filter(group);
            if filter != before {
                return Some((group, filter));
            }
        }
        None
    }

    /// The next thing for the log.
    pub fn poll_event(&mut self) -> Option<MembershipEvent> {
        self.events.pop_front()
    }

    /// How often each reason to refuse came up since this was last called.
    pub fn take_refusals(&mut self) -> impl Iterator<Item = (MembershipRefusal, u64)> + use<> {
        self.refusals.take()
    }

    /// The address queries are sent from came, changed or went: election and startup anew.
    /// Without one nothing is asked. For MLD it is link-local; another counts as none.
    pub fn set_own_address(&mut self, now: Instant, own: Option<IpAddr>) {
        self.querier.set_own(now, usable(own));
        self.tell_querier();
    }

    /// Goes on with other settings. Members stay where the lists still take their group;
    /// election and startup begin anew where policy, timers or the version spoken differ.
    pub fn reconfigure(&mut self, now: Instant, rule: Arc<ProxyRule>) {
        let spoken = self.config.generation();
        self.config.rule = rule.clone();
        self.querier.configure(now, rule.querier, &rule.timers);
        if self.config.generation() != spoken {
            self.querier.start(now);
        }
        self.tell_querier();
        let groups: Vec<Group> = self.groups.keys().copied().collect();
        for group in groups {
            self.with_group(now, group, None, |state, _| {
                if !rule.fast_leave {
                    state.tracker = None;
                }
                if !rule.takes_group(group) {
                    state.clear();
                }
            });
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let group = self.deadlines.first().map(|(at, _)| *at);
        [group, self.querier.poll_timeout()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.querier.poll_timeout().is_some_and(|at| at <= now) {
            let ask = self.querier.handle_timeout(now);
            self.tell_querier();
            if self.querier.fell_silent(now) {
                self.event(MembershipEvent::NoQuerier);
            }
            if ask {
                let asker = Asker {
                    now,
                    spoken: self.config.generation(),
                    timing: self.querier.timers(),
                };
                let query = asker.query(None, asker.timing.query_response_interval());
                self.push_queries(vec![query]);
            }
        }
        let asks = self.querier.is_us();
        let mut queries = Vec::new();
        let next_round = self.next_round();
        let spares = self.unheard.is_some_and(|at| now < at + next_round);
        while let Some((_, group)) = self.deadlines.first().filter(|(at, _)| *at <= now) {
            let group = *group;
            self.with_group(now, group, None, |state, by| {
                if spares {
                    state.spare(now, now + next_round);
                }
                state.expire(now);
                match asks {
                    true => state.ask_again(group, by, &mut queries),
                    false => state.stop_asking(),
                }
                state.find_wake();
            });
        }
        self.push_queries(queries);
    }

    /// Messages of hosts were lost before they came here, as where more came than could be taken
    /// in. An answer may have been among them: until the hosts were asked again, who is silent
    /// has not left.
    pub fn handle_message_loss(&mut self, now: Instant) {
        self.unheard = Some(now);
        self.handle_missed_report(now);
    }

    /// A report was not taken in, of a host that may be a member without our knowledge now. No
    /// group ends by a leave without asking until every host has reported again.
    pub fn handle_missed_report(&mut self, now: Instant) {
        self.hosts_missed_until = now + self.querier.timers().group_membership_interval();
    }

    /// Whether every member is known, where hosts are tracked at all.
    pub(super) fn heard_every_host(&self, now: Instant) -> bool {
        now >= self.hosts_missed_until
    }

    /// How long it takes at most until everybody was asked again and had the time to answer.
    fn next_round(&self) -> Duration {
        let timing = self.querier.timers();
        timing.query_interval() + timing.query_response_interval()
    }

    pub(super) fn tell_querier(&mut self) {
        let current = self.querier.current();
        if current != self.told_querier {
            self.told_querier = current;
            let (address, is_us) = current;
            self.event(MembershipEvent::QuerierChanged { address, is_us });
        }
    }

    pub(super) fn event(&mut self, event: MembershipEvent) {
        if self.events.len() >= EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }
}

/// An address queries can be sent from: for MLD a link-local one.
fn usable(own: Option<IpAddr>) -> Option<IpAddr> {
    own.filter(|a| match a {
        IpAddr::V4(a) => !a.is_unspecified(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::Protocol;
    use crate::model::ProxyRule;
    use std::time::Duration;

    #[test]
    fn a_join_is_told_and_ends_when_nobody_reports_again() {
        let t0 = Instant::now();
        let rule = Arc::new(ProxyRule::new(vec![], vec![]));
        let config = DownstreamConfig::new(Protocol::Igmp, rule);
        let mut machine = Downstream::new(t0, config, Some([10, 0, 0, 1].into()));
        assert_eq!(machine.poll_timeout(), Some(t0));
        machine.handle_timeout(t0);
        let general = machine.poll_query().unwrap();
        assert_eq!(
            (general.query.group, general.to),
            (None, [224, 0, 0, 1].into())
        );
        let group: Group = "239.1.2.3".parse().unwrap();
        let join = Message::Report {
            generation: Generation::Two,
            group,
        };
        machine
            .handle(t0, [10, 0, 0, 9].into(), group.addr(), &join)
            .unwrap();
        assert_eq!(machine.poll_change(), Some((group, SourceFilter::any())));
        assert_eq!(machine.poll_change(), None);
        let end = t0 + Duration::from_secs(270);
        while let Some(at) = machine.poll_timeout().filter(|at| *at < end) {
            machine.handle_timeout(at);
        }
        assert_eq!(machine.filter(group), SourceFilter::any());
        machine.handle_timeout(end);
        assert_eq!(machine.poll_change(), Some((group, SourceFilter::none())));
        assert_eq!(machine.group_count(), 0);
    }
}
