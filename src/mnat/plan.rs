//! Turns changes of mappings into changes of translating routes, make before break. Does no I/O;
//! the current time is an argument.
//!
//! | role | receives upstream | sends downstream |
//! |---|---|---|
//! | ingress | the global channel | the local channel |
//! | egress | the local channel | the global channel |
//!
//! When a mapping changes, ingress and egress learn of it at different times, up to one poll
//! interval apart. During this transition an egress receives the earlier local channels beside the
//! new one, until the new one delivers packets. An ingress sends on each local channel only when
//! every egress must have polled it. No packet is lost or delivered twice.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::channel::Channel;
use super::config::MnatRole;
use super::machine::{POLL_INTERVAL, RECOVERY_TIME};
use super::mappings::MappingChange;
use super::saved::SavedTransition;
use crate::model::ClockReading;

/// How long an ingress keeps sending on the old local channel after a swap: one poll interval, and
/// the time for the response.
pub const INGRESS_DELAY: Duration = Duration::from_millis(POLL_INTERVAL.as_millis() as u64 * 5 / 4);
/// As [`INGRESS_DELAY`], after an outage of the server.
pub const INGRESS_DELAY_AFTER_OUTAGE: Duration = RECOVERY_TIME;
/// How long an egress receives the old local channel after a swap if the new one delivers nothing.
/// After an outage of the server, the ingress may learn of the swap 20 seconds later, and then
/// waits. A server that reuses addresses after 60 seconds, and a poll of the egress before that,
/// leave no more time.
pub const EGRESS_OVERLAP: Duration = Duration::from_secs(50);
/// How long an egress receives the old local channel after the new one has delivered a packet: the
/// network may still carry packets of the old one.
pub const LINGER: Duration = Duration::from_secs(1);
/// Maximum number of local channels in a transition of one mapping.
const MAX_PENDING: usize = 8;

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

/// A mapping with a local channel that is not in use yet, or still in use.
#[derive(Debug, Default)]
struct Transition {
    /// Of an egress, the earlier local channels, and when it stops receiving each of them. Of an
    /// ingress, the later ones, and when it starts to send on each of them. Oldest first.
    pending: VecDeque<(Channel, Instant)>,
    /// Of an egress, the local channel whose first packet completes the transition.
    awaited: Option<Awaited>,
    /// Of an egress, the local channel of the mapping.
    newest: Option<Channel>,
}

/// A local channel from which no packet has arrived yet.
#[derive(Debug, Clone, Copy)]
struct Awaited {
    local: Channel,
    /// The packets that its route had forwarded at the first check. The route may have existed
    /// before.
    packets: Option<u64>,
}

/// The translating routes of all mappings, and the changes that are not applied yet.
#[derive(Debug)]
pub struct RoutePlan {
    role: MnatRole,
    /// The channel that leaves, by the channel that arrives.
    routes: BTreeMap<Channel, Channel>,
    /// Of an ingress, the global channel that uses a local channel or was assigned it last.
    owners: BTreeMap<Channel, Channel>,
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
            owners: BTreeMap::new(),
            transitions: BTreeMap::new(),
            steps: VecDeque::new(),
        }
    }

    /// Returns the transitions as data.
    pub fn saved(&self, clock: &ClockReading) -> Vec<SavedTransition> {
        let saved = |(global, transition): (&Channel, &Transition)| {
            let current = match self.role {
                MnatRole::Ingress => *self.routes.get(global)?,
                MnatRole::Egress => transition.newest?,
            };
            let pending = transition.pending.iter();
            let pending = pending.map(|(local, at)| (*local, clock.to_boot(*at)));
            Some(SavedTransition {
                global: *global,
                current,
                pending: pending.collect(),
            })
        };
        self.transitions.iter().filter_map(saved).collect()
    }

    /// Continues saved transitions, before the restored mappings are added. `mappings` has the local
    /// channels of the restored mappings. Transitions to other channels are ignored.
    pub fn restore(
        &mut self,
        clock: &ClockReading,
        saved: &[SavedTransition],
        mappings: &BTreeMap<Channel, Channel>,
    ) {
        let longest = match self.role {
            MnatRole::Ingress => INGRESS_DELAY_AFTER_OUTAGE,
            MnatRole::Egress => EGRESS_OVERLAP,
        };
        for transition in saved {
            let global = transition.global;
            let newest = match self.role {
                MnatRole::Ingress => transition.pending.last().map(|(newest, _)| *newest),
                MnatRole::Egress => Some(transition.current),
            };
            if newest.is_none() || newest != mappings.get(&global).copied() {
                continue;
            }
            let mut current = transition.current;
            let mut pending = VecDeque::new();
            for (local, at) in transition.pending.iter().take(MAX_PENDING) {
                match clock.running_timer(*at, longest) {
                    Some(at) => pending.push_back((*local, at)),
                    None => current = *local,
                }
            }
            let locals: Vec<Channel> = pending.iter().map(|(local, _)| *local).collect();
            let Some(newest) = newest.filter(|_| !locals.is_empty()) else {
                continue;
            };
            let awaited = (self.role == MnatRole::Egress).then_some(Awaited {
                local: newest,
                packets: None,
            });
            self.transitions.insert(
                global,
                Transition {
                    pending,
                    awaited,
                    newest: Some(newest),
                },
            );
            match self.role {
                MnatRole::Ingress => {
                    for local in locals.into_iter().chain([current]) {
                        self.owners.entry(local).or_insert(global);
                    }
                    self.install(global, current);
                }
                MnatRole::Egress => locals.iter().for_each(|old| self.install(global, *old)),
            }
        }
    }

    /// Applies a change of a mapping.
    pub fn apply(&mut self, now: Instant, change: &MappingChange) {
        match *change {
            MappingChange::Add { global, local, .. } => {
                self.claim(global, local);
                let transition = self.transitions.get(&global);
                let newest = transition.and_then(|t| t.pending.back());
                let is_restored = newest.is_some_and(|(newest, _)| *newest == local);
                // An ingress does not send on a local channel before its time.
                if !is_restored || self.role == MnatRole::Egress {
                    self.install(global, local);
                }
            }
            MappingChange::Remove { global, local, .. } => self.remove(global, local),
            MappingChange::Swap {
                global,
                old,
                new,
                after_outage,
            } => match self.role {
                MnatRole::Ingress => {
                    let delay = match after_outage {
                        true => INGRESS_DELAY_AFTER_OUTAGE,
                        false => INGRESS_DELAY,
                    };
                    self.swap_sent(global, new, now + delay);
                }
                MnatRole::Egress => self.swap_received(global, (old, new), now + EGRESS_OVERLAP),
            },
        }
    }

    /// Makes an ingress send on `new` at the time `at`; at once if its present local channel was
    /// assigned to another mapping.
    fn swap_sent(&mut self, global: Channel, new: Channel, at: Instant) {
        self.claim(global, new);
        let transition = self.transitions.entry(global).or_default();
        let previous = transition.pending.back().map(|(_, previous)| *previous);
        let at = previous.map_or(at, |previous| at.max(previous));
        transition.pending.push_back((new, at));
        let is_full = transition.pending.len() > MAX_PENDING;
        let current = self.routes.get(&global);
        let is_taken = current.is_none_or(|local| self.owners.get(local) != Some(&global));
        if is_full || is_taken {
            self.complete_transition(global);
        }
    }

    /// Makes an egress receive `new`, and `old` until `until` or until `new` delivers packets.
    fn swap_received(&mut self, global: Channel, (old, new): (Channel, Channel), until: Instant) {
        let is_received = self.routes.get(&new) == Some(&global);
        self.install(global, new);
        let transition = self.transitions.entry(global).or_default();
        transition.pending.retain(|(local, _)| *local != new);
        transition.pending.push_back((old, until));
        transition.newest = Some(new);
        // A packet of an earlier local channel does not show that the ingress knows of this change.
        transition.awaited = (!is_received).then_some(Awaited {
            local: new,
            packets: None,
        });
        let oldest = match transition.pending.len() > MAX_PENDING {
            true => transition.pending.pop_front(),
            false => None,
        };
        if let Some((local, _)) = oldest {
            self.withdraw(global, local);
        }
    }

    /// Makes `global` the owner of a local channel of an ingress. A former owner that is leaving
    /// the channel leaves it at once.
    fn claim(&mut self, global: Channel, local: Channel) {
        if self.role != MnatRole::Ingress {
            return;
        }
        let former = self.owners.insert(local, global);
        if let Some(former) = former.filter(|former| *former != global) {
            self.complete_transition(former);
        }
    }

    /// Removes `global` from the owners of a local channel.
    fn release(&mut self, global: Channel, local: Channel) {
        if self.owners.get(&local) == Some(&global) {
            self.owners.remove(&local);
        }
    }

    /// Completes the transition of an ingress, if there is one: sends on the latest local channel.
    fn complete_transition(&mut self, global: Channel) {
        let Some(mut transition) = self.transitions.remove(&global) else {
            return;
        };
        if let Some((newest, _)) = transition.pending.pop_back() {
            for (skipped, _) in transition.pending {
                self.release(global, skipped);
            }
            self.send_on(global, newest);
        }
    }

    /// Makes an ingress send on a local channel instead of the present one.
    fn send_on(&mut self, global: Channel, local: Channel) {
        if let Some(former) = self.routes.get(&global).copied() {
            let transition = self.transitions.get(&global);
            let is_pending = transition.is_some_and(|t| t.pending.iter().any(|p| p.0 == former));
            if !is_pending {
                self.release(global, former);
            }
        }
        self.owners.entry(local).or_insert(global);
        self.install(global, local);
    }

    /// Removes the routes of a mapping to `local`, and its transition.
    fn remove(&mut self, global: Channel, local: Channel) {
        let pending = self.transitions.remove(&global).map(|t| t.pending);
        let pending = pending.into_iter().flatten().map(|(pending, _)| pending);
        let current = self.routes.get(&global).copied();
        let ingress = self.role == MnatRole::Ingress;
        for local in pending.chain([local]).chain(current.filter(|_| ingress)) {
            self.release(global, local);
            self.withdraw(global, local);
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
            // During a transition the route still leads to an earlier local channel.
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
        let awaited = |(global, t): (&Channel, &Transition)| Some((t.awaited?.local, *global));
        self.transitions.iter().filter_map(awaited)
    }

    /// Reports how many packets the route from `matched` to `rewritten` has forwarded. When the
    /// number changes, an egress soon stops receiving the earlier local channels.
    pub fn handle_packet_count(
        &mut self,
        now: Instant,
        (matched, rewritten): (Channel, Channel),
        packets: u64,
    ) {
        let Some(transition) = self.transitions.get_mut(&rewritten) else {
            return;
        };
        match &mut transition.awaited {
            Some(awaited) if awaited.local == matched => {
                let before = *awaited.packets.get_or_insert(packets);
                if before == packets {
                    return;
                }
            }
            _ => return,
        }
        transition.awaited = None;
        for (_, until) in &mut transition.pending {
            *until = (*until).min(now + LINGER);
        }
    }

    /// Returns when [`RoutePlan::handle_timeout`] must be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let pending = self.transitions.values().flat_map(|t| &t.pending);
        pending.map(|(_, at)| *at).min()
    }

    /// Continues the transitions with pending local channels whose time has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        let mut due = Vec::new();
        self.transitions.retain(|global, transition| {
            transition.pending.retain(|(local, at)| {
                let is_due = now >= *at;
                if is_due {
                    due.push((*global, *local));
                }
                !is_due
            });
            !transition.pending.is_empty()
        });
        for (global, local) in due {
            match self.role {
                MnatRole::Ingress => self.send_on(global, local),
                MnatRole::Egress => self.withdraw(global, local),
            }
        }
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

    fn swap(old: Channel, new: Channel) -> MappingChange {
        swap_of(globals()[0], old, new)
    }

    fn swap_of(global: Channel, old: Channel, new: Channel) -> MappingChange {
        MappingChange::Swap {
            global,
            old,
            new,
            after_outage: false,
        }
    }

    fn remove(global: Channel, local: Channel) -> MappingChange {
        MappingChange::Remove {
            global,
            local,
            why: MappingEnd::Unassigned,
        }
    }

    fn withdraw(matched: Channel) -> RouteStep {
        RouteStep::Withdraw { matched }
    }

    #[test]
    fn egress_receives_both_until_new_channel_delivers() {
        let (now, [g, _], [a, b, c]) = (Instant::now(), globals(), locals());
        let mut plan = RoutePlan::new(MnatRole::Egress);
        plan.apply(now, &add(g, a));
        assert_eq!(steps(&mut plan), [install(a, g)]);
        plan.apply(now, &swap(a, b));
        assert_eq!(steps(&mut plan), [install(b, g)]);
        assert_eq!(plan.awaited_routes().collect::<Vec<_>>(), [(b, g)]);
        // The route had the same name before, and has forwarded 7 packets then.
        plan.handle_packet_count(now, (b, g), 7);
        plan.handle_packet_count(now, (a, g), 8);
        plan.handle_packet_count(now, (b, g), 7);
        assert_eq!(plan.poll_timeout(), Some(now + EGRESS_OVERLAP));
        plan.handle_packet_count(now, (b, g), 8);
        assert_eq!(plan.awaited_routes().count(), 0);
        plan.handle_timeout(now);
        assert_eq!(
            steps(&mut plan),
            [],
            "packets of the old channel may follow"
        );
        plan.handle_timeout(now + LINGER);
        assert_eq!(steps(&mut plan), [withdraw(a)]);
        // A silent stream: the old channel is left after the overlap.
        plan.apply(now, &swap(b, c));
        plan.handle_timeout(now + EGRESS_OVERLAP - Duration::from_millis(1));
        assert_eq!(steps(&mut plan), [install(c, g)]);
        plan.handle_timeout(now + EGRESS_OVERLAP);
        assert_eq!(steps(&mut plan), [withdraw(b)]);
        assert_eq!(plan.poll_timeout(), None);
    }

    #[test]
    fn egress_keeps_every_channel_that_the_ingress_may_use() {
        let (now, [g, _], [a, b, c]) = (Instant::now(), globals(), locals());
        let mut plan = RoutePlan::new(MnatRole::Egress);
        plan.apply(now, &add(g, a));
        plan.apply(now, &swap(a, b));
        plan.apply(now, &swap(b, c));
        assert_eq!(plan.routes().count(), 3);
        // Packets of `a` do not show that the ingress has learned of the change back.
        plan.apply(now, &swap(c, a));
        assert_eq!(plan.awaited_routes().count(), 0);
        assert_eq!(plan.routes().count(), 3);
        plan.handle_timeout(now + EGRESS_OVERLAP);
        assert_eq!(plan.routes().collect::<Vec<_>>(), [(a, g)]);
        let many = (0..2 * MAX_PENDING as u8).map(|n| channel("10.9.1.9", &format!("239.9.9.{n}")));
        let mut former = a;
        for next in many {
            plan.apply(now, &swap(former, next));
            former = next;
        }
        assert_eq!(plan.routes().count(), MAX_PENDING + 1);
    }

    #[test]
    fn ingress_keeps_old_channel_until_every_egress_polled() {
        let (now, [g, _], [a, b, c]) = (Instant::now(), globals(), locals());
        let mut plan = RoutePlan::new(MnatRole::Ingress);
        plan.apply(now, &add(g, a));
        assert_eq!(steps(&mut plan), [install(g, a)]);
        plan.apply(now, &swap(a, b));
        let later = now + INGRESS_DELAY / 2;
        plan.apply(later, &swap(b, c));
        plan.handle_timeout(later);
        assert_eq!(steps(&mut plan), []);
        plan.handle_timeout(now + INGRESS_DELAY);
        assert_eq!(steps(&mut plan), [install(g, b)]);
        plan.handle_timeout(later + INGRESS_DELAY);
        assert_eq!(steps(&mut plan), [install(g, c)]);
        plan.apply(now, &swap(c, a));
        plan.apply(now, &remove(g, a));
        assert_eq!(steps(&mut plan), [withdraw(g)]);
        plan.handle_timeout(now + INGRESS_DELAY * 4);
        assert_eq!(steps(&mut plan), []);
        assert!(plan.owners.is_empty());
    }

    /// Saves a plan and restores it `after` later.
    fn restarted(plan: &RoutePlan, now: Instant, after: Duration, mapping: Channel) -> RoutePlan {
        let reading = |now, ms| ClockReading {
            now,
            boot: crate::model::BootTime::from_ms(ms),
        };
        let saved = plan.saved(&reading(now, 500_000));
        let later = reading(now + after, 500_000 + after.as_millis() as u64);
        let [g, _] = globals();
        let mut restored = RoutePlan::new(plan.role);
        restored.restore(&later, &saved, &[(g, mapping)].into());
        restored.apply(now + after, &add(g, mapping));
        restored
    }

    #[test]
    fn transition_continues_after_a_restart() {
        let (now, [g, _], [a, b, c]) = (Instant::now(), globals(), locals());
        let after = Duration::from_secs(3);
        let mut ingress = RoutePlan::new(MnatRole::Ingress);
        ingress.apply(now, &add(g, a));
        ingress.apply(now, &swap(a, b));
        let mut restored = restarted(&ingress, now, after, b);
        assert_eq!(steps(&mut restored), [install(g, a)]);
        assert_eq!(restored.poll_timeout(), Some(now + INGRESS_DELAY));
        restored.handle_timeout(now + INGRESS_DELAY);
        assert_eq!(steps(&mut restored), [install(g, b)]);
        // Its time has come meanwhile, or the mapping is another one.
        let mut late = restarted(&ingress, now, INGRESS_DELAY, b);
        assert_eq!(steps(&mut late), [install(g, b)]);
        let mut other = restarted(&ingress, now, after, c);
        assert_eq!(steps(&mut other), [install(g, c)]);

        let mut egress = RoutePlan::new(MnatRole::Egress);
        egress.apply(now, &add(g, a));
        egress.apply(now, &swap(a, b));
        let mut restored = restarted(&egress, now, after, b);
        assert_eq!(steps(&mut restored), [install(a, g), install(b, g)]);
        assert_eq!(restored.awaited_routes().collect::<Vec<_>>(), [(b, g)]);
        restored.handle_packet_count(now + after, (b, g), 0);
        restored.handle_packet_count(now + after, (b, g), 1);
        restored.handle_timeout(now + after + LINGER);
        assert_eq!(steps(&mut restored), [withdraw(a)]);
    }

    #[test]
    fn ingress_waits_longer_after_an_outage() {
        let (now, [g, _], [a, b, c]) = (Instant::now(), globals(), locals());
        let mut plan = RoutePlan::new(MnatRole::Ingress);
        plan.apply(now, &add(g, a));
        let after_outage = MappingChange::Swap {
            global: g,
            old: a,
            new: b,
            after_outage: true,
        };
        plan.apply(now, &after_outage);
        assert_eq!(plan.poll_timeout(), Some(now + INGRESS_DELAY_AFTER_OUTAGE));
        // A later change does not overtake.
        plan.apply(now, &swap(b, c));
        plan.handle_timeout(now + INGRESS_DELAY);
        assert_eq!(steps(&mut plan), [install(g, a)]);
        plan.handle_timeout(now + INGRESS_DELAY_AFTER_OUTAGE);
        assert_eq!(plan.routes().collect::<Vec<_>>(), [(g, c)]);
    }

    #[test]
    fn reassigned_local_channel_is_left_at_once() {
        let (now, [g, h], [a, b, c]) = (Instant::now(), globals(), locals());
        let mut egress = RoutePlan::new(MnatRole::Egress);
        egress.apply(now, &add(g, a));
        egress.apply(now, &swap(a, b));
        egress.apply(now, &add(h, a));
        let expected = [install(a, g), install(b, g), install(a, h)];
        assert_eq!(steps(&mut egress), expected);
        egress.handle_timeout(now + EGRESS_OVERLAP);
        assert_eq!(steps(&mut egress), []);
        // The server may list the other mapping first or last.
        for changes in [[swap(a, b), add(h, a)], [add(h, a), swap(a, b)]] {
            let mut ingress = RoutePlan::new(MnatRole::Ingress);
            ingress.apply(now, &add(g, a));
            changes.iter().for_each(|change| ingress.apply(now, change));
            let routes: Vec<_> = ingress.routes().collect();
            assert_eq!(routes, [(g, b), (h, a)]);
        }
        // Two mappings exchange their local channels, and one of them then gets another one.
        let mut ingress = RoutePlan::new(MnatRole::Ingress);
        ingress.apply(now, &add(g, a));
        ingress.apply(now, &add(h, b));
        ingress.apply(now, &swap(a, b));
        ingress.apply(now, &swap_of(h, b, a));
        assert_eq!(ingress.routes().collect::<Vec<_>>(), [(g, b), (h, a)]);
        ingress.apply(now, &swap_of(h, a, c));
        assert_eq!(ingress.routes().collect::<Vec<_>>(), [(g, b), (h, a)]);
        ingress.handle_timeout(now + INGRESS_DELAY);
        assert_eq!(ingress.routes().collect::<Vec<_>>(), [(g, b), (h, c)]);
    }

    #[test]
    fn leave_during_remap_removes_both_mappings() {
        let (now, [g, _], [a, b, _]) = (Instant::now(), globals(), locals());
        let mut plan = RoutePlan::new(MnatRole::Egress);
        plan.apply(now, &add(g, a));
        plan.apply(now, &swap(a, b));
        plan.apply(now, &remove(g, b));
        assert_eq!(plan.routes().count(), 0);
        assert_eq!(steps(&mut plan).len(), 4);
    }

    /// One ingress and two egresses poll at different times. The server changes the mapping at
    /// random, to new local channels and back to former ones. Each mapping lasts for at least the
    /// longest time between two polls.
    #[test]
    fn random_changes_lose_no_packet() {
        let tick = Duration::from_millis(100);
        let slowest = POLL_INTERVAL.as_millis() as u64 / 100 + 20;
        let g = globals()[0];
        let local = |n: u64| channel("10.9.1.2", &format!("239.1.2.{n}"));
        for seed in 1..=60u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut random = move |below: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state % below
            };
            let start = Instant::now();
            let mut mapped = local(0);
            let mut ends = [MnatRole::Ingress, MnatRole::Egress, MnatRole::Egress].map(|role| {
                let mut plan = RoutePlan::new(role);
                plan.apply(start, &add(g, mapped));
                (plan, mapped, random(100), BTreeMap::new())
            });
            let mut next_change = slowest + random(100);
            for n in 0..6000 {
                let now = start + tick * n as u32;
                if n == next_change {
                    mapped = local(random(4));
                    next_change = n + slowest + random(400);
                }
                for (plan, known, next_poll, _) in &mut ends {
                    plan.handle_timeout(now);
                    if n >= *next_poll {
                        *next_poll = n + slowest - random(20);
                        if *known != mapped {
                            plan.apply(now, &swap_of(g, *known, mapped));
                        }
                        *known = mapped;
                    }
                }
                let (ingress, egresses) = ends.split_first_mut().unwrap();
                let sent = ingress.0.routes().next().unwrap().1;
                for (plan, .., counts) in egresses {
                    let received = plan.routes().find(|(matched, _)| *matched == sent);
                    assert_eq!(received, Some((sent, g)), "seed {seed}, tick {n}");
                    *counts.entry(sent).or_insert(0) += 1;
                    let awaited: Vec<_> = plan.awaited_routes().collect();
                    for route in awaited {
                        let packets = counts.get(&route.0).copied().unwrap_or(0);
                        plan.handle_packet_count(now, route, packets);
                    }
                }
            }
        }
    }
}
