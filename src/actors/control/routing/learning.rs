//! Memberships that the querier reports: published in the snapshot and joined upstream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;

use super::Routing;
use crate::actors::messages::{
    Barrier, LearningComplete, MembershipChanged, Publish, QuerierStarted, ServeInterfaces,
    ServedInterface, UpdateJoins,
};
use crate::model::{Group, IfIndex, SourceFilter};
use crate::table::joins;

/// Limits the rate of snapshots that memberships cause, so that a flood of reports leaves time
/// for other work.
pub(super) struct Pace {
    /// Earliest time of the next snapshot.
    next: Instant,
    /// Whether the next snapshot is scheduled.
    is_scheduled: bool,
}

impl Pace {
    /// Returns a pace that permits a snapshot at once.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            next: now,
            is_scheduled: false,
        }
    }
}

/// The pause after a snapshot is this multiple of the time that it took.
const PAUSE_FACTOR: u32 = 4;
/// Longest pause after a snapshot.
const MAX_PAUSE: Duration = Duration::from_millis(250);

impl Routing {
    /// Sends the interfaces to serve to the querier, if they changed.
    pub(super) fn update_querier(&mut self) {
        let Some(links) = &self.links else { return };
        let interfaces: BTreeMap<IfIndex, ServedInterface> = self
            .rib
            .usable(links)
            .iter()
            .filter(|link| link.up)
            .filter_map(|link| {
                let downstream = self.fib.downstreams.iter().find(|d| d.index == link.index);
                let served = ServedInterface {
                    name: link.name.clone(),
                    mtu: link.mtu,
                    addresses: links.addresses(link.index).to_vec(),
                    proxy: downstream.map(|d| d.proxy.clone()),
                    mrdisc: self.rib.options(link).and_then(|o| o.mrdisc),
                };
                let is_served = served.proxy.is_some() || served.mrdisc.is_some();
                is_served.then_some((link.index, served))
            })
            .collect();
        let all = self.served.is_none();
        if self.served.as_ref() == Some(&interfaces) {
            return;
        }
        if let Some(old) = &self.served {
            let has_members =
                |index: &IfIndex| interfaces.get(index).is_some_and(|s| s.proxy.is_some());
            let mut learned = self.learned();
            let removed = old.keys().filter(|index| !has_members(index));
            removed.for_each(|index| learned.forget(*index));
        }
        self.served = Some(interfaces.clone());
        self.context
            .directory
            .do_send(ServeInterfaces { interfaces, all });
    }

    /// Publishes changed memberships, at once or as soon as the pace permits.
    fn schedule_publish(&mut self, ctx: &mut Context<Self>) {
        if self.pace.is_scheduled {
            return;
        }
        let wait = self.pace.next.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            return self.publish_memberships();
        }
        self.pace.is_scheduled = true;
        ctx.run_later(wait, |actor, _| {
            actor.pace.is_scheduled = false;
            actor.publish_memberships();
        });
    }

    fn publish_memberships(&mut self) {
        if self.links.is_none() {
            return;
        }
        let started = Instant::now();
        let mut learned = self.learned();
        let next = learned.update(&self.fib, self.generation + 1);
        drop(learned);
        if let Some(fib) = next {
            self.generation += 1;
            self.fib = Arc::new(fib);
            self.context.directory.do_send(Publish {
                fib: self.fib.clone(),
                names: None,
            });
        }
        self.update_joins();
        self.report_members_to_mnat();
        let pause = (started.elapsed() * PAUSE_FACTOR).min(MAX_PAUSE);
        self.pace.next = Instant::now() + pause;
    }

    /// Sends changed memberships to the joins actor.
    fn update_joins(&mut self) {
        let mut changes = joins::DesiredMemberships::new();
        for group in self.demand.take_changed() {
            let requested = self.demand.requested_of_group(&self.rib, group);
            let requested = requested.iter().map(|(origin, filter)| (*origin, filter));
            changes.extend(joins::wanted_of_group(
                group,
                &self.fixed,
                requested,
                &self.up,
            ));
        }
        if !changes.is_empty() {
            self.context.directory.do_send(UpdateJoins(changes));
        }
    }

    fn set_demand(&mut self, index: IfIndex, group: Group, filter: &SourceFilter) {
        self.demand
            .set_filter((&self.rib, &self.up), index, group, filter);
    }
}

impl Handler<MembershipChanged> for Routing {
    type Result = ();

    fn handle(&mut self, message: MembershipChanged, ctx: &mut Self::Context) {
        let index = message.index;
        for (group, _) in &message.changes {
            self.stale.remove(&(index, *group));
        }
        let served = self.served.as_ref().and_then(|served| served.get(&index));
        // The querier sent this before it received the current list of interfaces.
        if served.is_none_or(|served| served.proxy.is_none()) {
            return;
        }
        for (group, filter) in message.changes {
            self.set_demand(index, group, &filter);
            self.learned().learn(index, group, filter);
        }
        self.schedule_publish(ctx);
    }
}

impl Handler<Barrier> for Routing {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: Barrier, _: &mut Self::Context) -> Self::Result {
        let publish_at = if self.pace.is_scheduled {
            self.pace.next
        } else {
            Instant::now()
        };
        let paced = tokio::time::sleep_until(publish_at.into()).into_actor(self);
        Box::pin(paced.then(|(), actor, _| {
            if actor.pace.is_scheduled {
                actor.publish_memberships();
            }
            // The supervisor handles messages in order, so it answers after all earlier ones.
            let republish = actor.links.is_some().then(|| Publish {
                fib: actor.fib.clone(),
                names: None,
            });
            let supervisor = actor.context.directory.receiver::<Publish>();
            let published = async move {
                if let Some((supervisor, republish)) = supervisor.zip(republish) {
                    // Without a supervisor the process ends.
                    let _ = supervisor.send(republish).await;
                }
            };
            published.into_actor(actor)
        }))
    }
}

impl Handler<QuerierStarted> for Routing {
    type Result = ();

    fn handle(&mut self, _: QuerierStarted, _: &mut Self::Context) {
        let stale = self
            .learned()
            .memberships()
            .map(|(i, g, _)| (i, g))
            .collect();
        self.stale = stale;
        self.served = None;
        self.update_querier();
    }
}

impl Handler<LearningComplete> for Routing {
    type Result = ();

    fn handle(&mut self, _: LearningComplete, ctx: &mut Self::Context) {
        let stale = std::mem::take(&mut self.stale);
        if stale.is_empty() {
            return;
        }
        for (index, group) in stale {
            self.learned().learn(index, group, SourceFilter::none());
            self.set_demand(index, group, &SourceFilter::none());
        }
        self.schedule_publish(ctx);
    }
}
