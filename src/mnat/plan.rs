//! Turns changes of mappings into changes of translating routes, make before break. Does no I/O;
//! the current time is an argument.
//!
//! | role | receives upstream | sends downstream |
//! |---|---|---|
//! | ingress | the global channel | the local channel |
//! | egress | the local channel | the global channel |
//!
//! When a mapping changes, ingress and egress learn of it at different times, up to one poll
//! interval apart. During this transition an egress receives both local channels until the new one
//! delivers packets. An ingress keeps sending on the old local channel until every egress must have
//! polled the new mapping. No packet is lost or delivered twice.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::channel::Channel;
use super::config::MnatRole;
use super::machine::POLL_INTERVAL;
use super::mappings::MappingChange;

/// How long an ingress keeps sending on the old local channel after a swap: one poll interval, and
/// the time for the response.
pub const INGRESS_DELAY: Duration = Duration::from_millis(POLL_INTERVAL.as_millis() as u64 * 5 / 4);
/// How long an egress receives the old local channel after a swap if the new one delivers nothing.
pub const EGRESS_OVERLAP: Duration = Duration::from_secs(POLL_INTERVAL.as_secs() * 3);

/// A change of the translating routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteStep {
    /// Receive `matched` upstream and send it downstream as `rewritten`. Replaces an earlier route
    /// for `matched`.
    Install {
        /// The channel that arrives.
        matched: Channel,
        /// The channel that leaves. If it has no source, packets keep their source address.
        rewritten: Channel,
    },
    /// Remove the route for `matched`.
    Withdraw {
        /// The channel that arrived.
        matched: Channel,
    },
}

/// A mapping that changed from one local channel to another, while the old one is still in use.
#[derive(Debug, Clone, Copy)]
struct Transition {
    old: Channel,
    new: Channel,
    until: Instant,
}

/// The translating routes of all mappings, and the changes that are not applied yet.
#[derive(Debug)]
pub struct RoutePlan {
    role: MnatRole,
    /// The channel that leaves, by the channel that arrives.
    routes: BTreeMap<Channel, Channel>,
    /// Transitions that are not complete, by global channel.
    transitions: BTreeMap<Channel, Transition>,
    steps: VecDeque<RouteStep>,
}

impl RoutePlan {
    /// Returns a plan without routes.
    pub fn new(role: MnatRole) -> Self {
        Self {
            role,
            routes: BTreeMap::new(),
            transitions: BTreeMap::new(),
            steps: VecDeque::new(),
        }
    }

    /// Applies a change of a mapping.
    pub fn apply(&mut self, now: Instant, change: &MappingChange) {
        match *change {
            MappingChange::Add { global, local, .. } => {
                self.release_local(global, local);
                self.complete_transition(global);
                self.install(global, local);
            }
            MappingChange::Remove { global, local, .. } => {
                let transition = self.transitions.remove(&global);
                let old = transition.map(|t| t.old);
                for local in std::iter::once(local).chain(old) {
                    self.withdraw(global, local);
                }
            }
            MappingChange::Swap { global, old, new } => {
                self.release_local(global, new);
                // An ingress that still sends on an older local channel keeps doing so, and then
                // changes to the newest one.
                let pending = self.transitions.get(&global).copied();
                let (old, until) = match (self.role, pending) {
                    (MnatRole::Ingress, Some(pending)) => (pending.old, pending.until),
                    (MnatRole::Ingress, None) => (old, now + INGRESS_DELAY),
                    (MnatRole::Egress, _) => {
                        self.complete_transition(global);
                        self.install(global, new);
                        (old, now + EGRESS_OVERLAP)
                    }
                };
                let transition = Transition { old, new, until };
                self.transitions.insert(global, transition);
            }
        }
    }

    /// Completes the transitions of other mappings away from `local`, so that `global` can use it.
    fn release_local(&mut self, global: Channel, local: Channel) {
        let uses_local = |(other, t): (&Channel, &Transition)| {
            (*other != global && t.old == local).then_some(*other)
        };
        let others: Vec<Channel> = self.transitions.iter().filter_map(uses_local).collect();
        others
            .into_iter()
            .for_each(|other| self.complete_transition(other));
    }

    /// Completes the transition of `global`, if there is one.
    fn complete_transition(&mut self, global: Channel) {
        let Some(Transition { old, new, .. }) = self.transitions.remove(&global) else {
            return;
        };
        match self.role {
            MnatRole::Ingress => self.install(global, new),
            MnatRole::Egress => self.withdraw(global, old),
        }
    }

    /// Returns the channel that arrives and the channel that leaves for a mapping.
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
        let is_installed = match self.role {
            // During a transition the route still leads to the old local channel.
            MnatRole::Ingress => self.routes.contains_key(&matched),
            // Another mapping may use the local channel by now.
            MnatRole::Egress => self.routes.get(&matched) == Some(&rewritten),
        };
        if is_installed {
            self.routes.remove(&matched);
            self.steps.push_back(RouteStep::Withdraw { matched });
        }
    }

    /// Returns the routes of an egress whose first packet completes a transition: the channel that
    /// arrives and the channel that leaves.
    pub fn awaited_routes(&self) -> impl Iterator<Item = (Channel, Channel)> {
        let egress = self.role == MnatRole::Egress;
        let transitions = self.transitions.iter().filter(move |_| egress);
        transitions.map(|(global, t)| (t.new, *global))
    }

    /// Reports that the route for `matched` forwarded a packet. An egress then stops receiving the
    /// old local channel.
    pub fn packet_forwarded(&mut self, matched: Channel) {
        let awaits = |(global, t): (&Channel, &Transition)| (t.new == matched).then_some(*global);
        let done: Vec<Channel> = self.transitions.iter().filter_map(awaits).collect();
        if self.role == MnatRole::Egress {
            done.into_iter()
                .for_each(|global| self.complete_transition(global));
        }
    }

    /// Returns when [`RoutePlan::handle_timeout`] must be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.transitions.values().map(|t| t.until).min()
    }

    /// Completes the transitions whose time is over.
    pub fn handle_timeout(&mut self, now: Instant) {
        let over = |(global, t): (&Channel, &Transition)| (now >= t.until).then_some(*global);
        let over: Vec<Channel> = self.transitions.iter().filter_map(over).collect();
        over.into_iter()
            .for_each(|global| self.complete_transition(global));
    }

    /// Returns the next change of the routes.
    pub fn poll_step(&mut self) -> Option<RouteStep> {
        self.steps.pop_front()
    }

    /// Returns all routes: the channel that arrives and the channel that leaves.
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
    fn egress_receives_both_until_new_channel_delivers() {
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
        plan.packet_forwarded(a);
        assert_eq!(steps(&mut plan), []);
        plan.packet_forwarded(b);
        assert_eq!(steps(&mut plan), [RouteStep::Withdraw { matched: a }]);
        // A silent stream: the old channel is left after the overlap.
        plan.apply(now, &swap(b, c));
        plan.handle_timeout(now + EGRESS_OVERLAP - Duration::from_millis(1));
        assert_eq!(steps(&mut plan), [install(c, g)]);
        assert_eq!(plan.poll_timeout(), Some(now + EGRESS_OVERLAP));
        plan.handle_timeout(now + EGRESS_OVERLAP);
        assert_eq!(steps(&mut plan), [RouteStep::Withdraw { matched: b }]);
        assert_eq!(plan.poll_timeout(), None);
    }

    #[test]
    fn ingress_keeps_old_channel_until_every_egress_polled() {
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
        plan.apply(now + INGRESS_DELAY / 2, &swap(b, c));
        plan.packet_forwarded(c);
        assert_eq!(steps(&mut plan), []);
        plan.handle_timeout(now + INGRESS_DELAY);
        assert_eq!(steps(&mut plan), [install(g, c)]);
        let remove = |local| MappingChange::Remove {
            global: g,
            local,
            why: MappingEnd::Unassigned,
        };
        plan.apply(now, &swap(c, a));
        plan.apply(now, &remove(a));
        assert_eq!(steps(&mut plan), [RouteStep::Withdraw { matched: g }]);
        plan.handle_timeout(now + INGRESS_DELAY * 4);
        assert_eq!(steps(&mut plan), []);
    }

    #[test]
    fn reassigned_local_channel_is_left_at_once() {
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
        egress.handle_timeout(now + EGRESS_OVERLAP);
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
    fn leave_during_remap_removes_both_mappings() {
        let (now, [g, _], [a, b, _]) = (Instant::now(), globals(), locals());
        let mut plan = RoutePlan::new(MnatRole::Egress);
        plan.apply(now, &add(g, a));
        let swap = MappingChange::Swap {
            global: g,
            old: a,
            new: b,
        };
        plan.apply(now, &swap);
        let remove = MappingChange::Remove {
            global: g,
            local: b,
            why: MappingEnd::NotRequested,
        };
        plan.apply(now, &remove);
        assert_eq!(plan.routes().count(), 0);
        assert_eq!(steps(&mut plan).len(), 4);
    }
}
