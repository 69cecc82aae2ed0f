//! From mappings to rewriting routes, make before break: pure, time comes in.
//!
//! | role | takes | sends |
//! |---|---|---|
//! | ingress | the global channel, upstream | the local one, downstream |
//! | egress | the local channel, upstream | the global one, downstream |
//!
//! When a mapping changes, the two ends hear of it at different times, up to a poll apart. So an
//! egress takes both local channels until the new one brings packets, and an ingress goes on with
//! the old one until every egress must have heard: nothing is lost and nothing doubled.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::channel::Channel;
use super::machine::POLL_EVERY;
use super::mappings::MappingChange;
use super::protocol::MnatRole;

/// How long an ingress goes on with the old local channel: a poll of every egress, and the time
/// to answer it.
pub const LEAD: Duration = Duration::from_millis(POLL_EVERY.as_millis() as u64 * 5 / 4);
/// How long an egress takes the old local channel where the new one brings nothing.
pub const OVERLAP: Duration = Duration::from_secs(POLL_EVERY.as_secs() * 3);

/// A change of the rewriting routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteStep {
    /// Take `matched` upstream and send it downstream as `rewritten`; in place of what was done
    /// with it before.
    Install {
        /// What arrives.
        matched: Channel,
        /// What leaves. Without a source, the packet keeps its own.
        rewritten: Channel,
    },
    /// Take it no longer.
    Withdraw {
        /// What arrived.
        matched: Channel,
    },
}

#[derive(Debug, Clone, Copy)]
struct Lingering {
    old: Channel,
    new: Channel,
    until: Instant,
}

/// The routes of all mappings.
#[derive(Debug)]
pub struct RoutePlan {
    role: MnatRole,
    /// What is taken, to what leaves.
    routes: BTreeMap<Channel, Channel>,
    /// Global channels between two mappings.
    lingering: BTreeMap<Channel, Lingering>,
    steps: VecDeque<RouteStep>,
}

impl RoutePlan {
    /// No routes.
    pub fn new(role: MnatRole) -> Self {
        Self {
            role,
            routes: BTreeMap::new(),
            lingering: BTreeMap::new(),
            steps: VecDeque::new(),
        }
    }

    /// Takes a change in.
    pub fn apply(&mut self, now: Instant, change: &MappingChange) {
        match *change {
            MappingChange::Add { global, local, .. } => {
                self.make_way(global, local);
                self.settle(global);
                self.install(global, local);
            }
            MappingChange::Remove { global, local, .. } => {
                let lingering = self.lingering.remove(&global);
                let old = lingering.map(|l| l.old);
                for local in std::iter::once(local).chain(old) {
                    self.withdraw(global, local);
                }
            }
            MappingChange::Swap { global, old, new } => {
                self.make_way(global, new);
                // An ingress that has not come to the last one yet goes on with the one before.
                let waits = self.lingering.get(&global).copied();
                let (old, until) = match (self.role, waits) {
                    (MnatRole::Ingress, Some(waits)) => (waits.old, waits.until),
                    (MnatRole::Ingress, None) => (old, now + LEAD),
                    (MnatRole::Egress, _) => {
                        self.settle(global);
                        self.install(global, new);
                        (old, now + OVERLAP)
                    }
                };
                let lingering = Lingering { old, new, until };
                self.lingering.insert(global, lingering);
            }
        }
    }

    /// Ends the use of `local` by a mapping that is about to leave it.
    fn make_way(&mut self, global: Channel, local: Channel) {
        let other = |(other, l): (&Channel, &Lingering)| {
            (*other != global && l.old == local).then_some(*other)
        };
        let others: Vec<Channel> = self.lingering.iter().filter_map(other).collect();
        others.into_iter().for_each(|other| self.settle(other));
    }

    /// Ends the time between two mappings.
    fn settle(&mut self, global: Channel) {
        let Some(Lingering { old, new, .. }) = self.lingering.remove(&global) else {
            return;
        };
        match self.role {
            MnatRole::Ingress => self.install(global, new),
            MnatRole::Egress => self.withdraw(global, old),
        }
    }

    fn route(&self, global: Channel, local: Channel) -> (Channel, Channel) {
        match self.role {
            MnatRole::Ingress => (global, local),
            MnatRole::Egress => (local, global),
        }
    }

    fn install(&mut self, global: Channel, local: Channel) {
        let (matched, rewritten) = self.route(global, local);
        if self.routes.insert(matched, rewritten) != Some(rewritten) {
            self.steps
                .push_back(RouteStep::Install { matched, rewritten });
        }
    }

    fn withdraw(&mut self, global: Channel, local: Channel) {
        let (matched, rewritten) = self.route(global, local);
        let ours = match self.role {
            // Between two mappings the route may still hold the old one.
            MnatRole::Ingress => self.routes.contains_key(&matched),
            // Another mapping may have taken the local channel over.
            MnatRole::Egress => self.routes.get(&matched) == Some(&rewritten),
        };
        if ours {
            self.routes.remove(&matched);
            self.steps.push_back(RouteStep::Withdraw { matched });
        }
    }

    /// Routes whose first packet ends the time between two mappings: what they take, and what
    /// leaves.
    pub fn awaited(&self) -> impl Iterator<Item = (Channel, Channel)> {
        let egress = self.role == MnatRole::Egress;
        let lingering = self.lingering.iter().filter(move |_| egress);
        lingering.map(|(global, l)| (l.new, *global))
    }

    /// The route that takes `matched` brought a packet.
    pub fn delivered(&mut self, matched: Channel) {
        let awaited = |(global, l): (&Channel, &Lingering)| (l.new == matched).then_some(*global);
        let done: Vec<Channel> = self.lingering.iter().filter_map(awaited).collect();
        if self.role == MnatRole::Egress {
            done.into_iter().for_each(|global| self.settle(global));
        }
    }

    /// When [`RoutePlan::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.lingering.values().map(|l| l.until).min()
    }

    /// Ends what lingered long enough.
    pub fn handle_timeout(&mut self, now: Instant) {
        let over = |(global, l): (&Channel, &Lingering)| (now >= l.until).then_some(*global);
        let over: Vec<Channel> = self.lingering.iter().filter_map(over).collect();
        over.into_iter().for_each(|global| self.settle(global));
    }

    /// The next change of the routes.
    pub fn poll_step(&mut self) -> Option<RouteStep> {
        self.steps.pop_front()
    }

    /// All routes: what each takes, and what leaves.
    pub fn routes(&self) -> impl Iterator<Item = (Channel, Channel)> {
        self.routes.iter().map(|(m, r)| (*m, *r))
    }
}

#[cfg(test)]
mod tests {
    use super::super::mappings::MappingEnd;
    use super::*;

    fn channel(source: &str, group: &str) -> Channel {
        Channel::parse(Some(source), group).unwrap()
    }

    fn globals() -> [Channel; 2] {
        [
            channel("23.0.0.4", "232.1.1.1"),
            channel("23.0.0.9", "232.1.1.9"),
        ]
    }

    fn locals() -> [Channel; 3] {
        ["239.1.1.1", "239.1.1.2", "239.1.1.3"].map(|group| channel("10.9.1.2", group))
    }

    fn add(global: Channel, local: Channel) -> MappingChange {
        MappingChange::Add {
            global,
            local,
            waited: None,
        }
    }

    fn steps(plan: &mut RoutePlan) -> Vec<RouteStep> {
        std::iter::from_fn(|| plan.poll_step()).collect()
    }

    fn install(matched: Channel, rewritten: Channel) -> RouteStep {
        RouteStep::Install { matched, rewritten }
    }

    #[test]
    fn an_egress_takes_both_until_the_new_one_brings_packets() {
        let (now, [g, _], [a, b, c]) = (Instant::now(), globals(), locals());
        let mut plan = RoutePlan::new(MnatRole::Egress);
        plan.apply(now, &add(g, a));
        assert_eq!(steps(&mut plan), [install(a, g)]);
        let swap = |old, new| MappingChange::Swap {
            global: g,
            old,
            new,
        };
        plan.apply(now, &swap(a, b));
        assert_eq!(steps(&mut plan), [install(b, g)]);
        assert_eq!(plan.routes().count(), 2);
        plan.delivered(a);
        assert_eq!(steps(&mut plan), []);
        plan.delivered(b);
        assert_eq!(steps(&mut plan), [RouteStep::Withdraw { matched: a }]);
        // Silent streams: after a while.
        plan.apply(now, &swap(b, c));
        plan.handle_timeout(now + OVERLAP - Duration::from_millis(1));
        assert_eq!(steps(&mut plan), [install(c, g)]);
        assert_eq!(plan.poll_timeout(), Some(now + OVERLAP));
        plan.handle_timeout(now + OVERLAP);
        assert_eq!(steps(&mut plan), [RouteStep::Withdraw { matched: b }]);
        assert_eq!(plan.poll_timeout(), None);
    }

    #[test]
    fn an_ingress_goes_on_with_the_old_until_all_must_have_heard() {
        let (now, [g, _], [a, b, c]) = (Instant::now(), globals(), locals());
        let mut plan = RoutePlan::new(MnatRole::Ingress);
        plan.apply(now, &add(g, a));
        assert_eq!(steps(&mut plan), [install(g, a)]);
        let swap = |old, new| MappingChange::Swap {
            global: g,
            old,
            new,
        };
        plan.apply(now, &swap(a, b));
        plan.apply(now + LEAD / 2, &swap(b, c));
        plan.delivered(c);
        assert_eq!(steps(&mut plan), []);
        plan.handle_timeout(now + LEAD);
        assert_eq!(steps(&mut plan), [install(g, c)]);
        let gone = |local| MappingChange::Remove {
            global: g,
            local,
            why: MappingEnd::TakenBack,
        };
        plan.apply(now, &swap(c, a));
        plan.apply(now, &gone(a));
        assert_eq!(steps(&mut plan), [RouteStep::Withdraw { matched: g }]);
        plan.handle_timeout(now + LEAD * 4);
        assert_eq!(steps(&mut plan), []);
    }

    #[test]
    fn a_local_channel_given_to_another_is_left_at_once() {
        let (now, [g, h], [a, b, _]) = (Instant::now(), globals(), locals());
        let swap = MappingChange::Swap {
            global: g,
            old: a,
            new: b,
        };
        let mut egress = RoutePlan::new(MnatRole::Egress);
        egress.apply(now, &add(g, a));
        egress.apply(now, &swap);
        egress.apply(now, &add(h, a));
        let expected = [
            install(a, g),
            install(b, g),
            RouteStep::Withdraw { matched: a },
            install(a, h),
        ];
        assert_eq!(steps(&mut egress), expected);
        egress.handle_timeout(now + OVERLAP);
        assert_eq!(steps(&mut egress), []);
        let mut ingress = RoutePlan::new(MnatRole::Ingress);
        ingress.apply(now, &add(g, a));
        ingress.apply(now, &swap);
        ingress.apply(now, &add(h, a));
        assert_eq!(
            steps(&mut ingress),
            [install(g, a), install(g, b), install(h, a)]
        );
    }

    #[test]
    fn who_leaves_between_two_mappings_leaves_both() {
        let (now, [g, _], [a, b, _]) = (Instant::now(), globals(), locals());
        let mut plan = RoutePlan::new(MnatRole::Egress);
        plan.apply(now, &add(g, a));
        let swap = MappingChange::Swap {
            global: g,
            old: a,
            new: b,
        };
        plan.apply(now, &swap);
        let gone = MappingChange::Remove {
            global: g,
            local: b,
            why: MappingEnd::Unwanted,
        };
        plan.apply(now, &gone);
        assert_eq!(plan.routes().count(), 0);
        assert_eq!(steps(&mut plan).len(), 4);
    }
}
