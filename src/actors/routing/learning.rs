//! What hosts of proxies want: heard from membership, put into the snapshot, joined upstream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;

use super::super::joins::UpdateJoins;
use super::super::membership::{Began, Serve, Served, Settled, Wanted};
use super::super::supervisor::Publish;
use super::Routing;
use crate::model::{Group, IfIndex, SourceFilter};
use crate::table::joins;

/// How fast snapshots of memberships follow each other: at once where there is time, and under
/// a flood of reports so that most of the time is left for other things.
pub(super) struct Pace {
    /// When the next may be made.
    pub(super) next: Instant,
    pub(super) waits: bool,
}

/// Of the time, snapshots take at most one part in so many.
const PACE: u32 = 4;
/// Longest time between two.
const LONGEST_PACE: Duration = Duration::from_millis(250);

impl Routing {
    /// Tells membership which interfaces to serve, where that changed.
    pub(super) fn serve(&mut self) {
        let Some(links) = &self.links else { return };
        let serve: BTreeMap<IfIndex, Served> = self
            .rib
            .usable(links)
            .iter()
            .filter(|link| link.up)
            .filter_map(|link| {
                let downstream = self.fib.downstreams.iter().find(|d| d.index == link.index);
                let served = Served {
                    name: link.name.clone(),
                    mtu: link.mtu,
                    addresses: links.addresses(link.index).to_vec(),
                    proxy: downstream.map(|d| d.proxy.clone()),
                    mrdisc: self.rib.options(link).and_then(|o| o.mrdisc),
                };
                let any = served.proxy.is_some() || served.mrdisc.is_some();
                any.then_some((link.index, served))
            })
            .collect();
        let all = self.served.is_none();
        if self.served.as_ref() == Some(&serve) {
            return;
        }
        if let Some(old) = &self.served {
            let served = |index: &IfIndex| serve.get(index).is_some_and(|s| s.proxy.is_some());
            let mut learned = self.learned();
            let gone = old.keys().filter(|index| !served(index));
            gone.for_each(|index| learned.forget(*index));
        }
        self.served = Some(serve.clone());
        if let Some(membership) = self.context.membership.load_full() {
            membership.do_send(Serve {
                interfaces: serve,
                all,
            });
        }
    }

    /// Puts in force what was learned, now or as soon as there is time for it.
    fn learned_changed(&mut self, ctx: &mut Context<Self>) {
        if self.pace.waits {
            return;
        }
        let wait = self.pace.next.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            return self.publish_learned();
        }
        self.pace.waits = true;
        ctx.run_later(wait, |actor, _| {
            actor.pace.waits = false;
            actor.publish_learned();
        });
    }

    fn publish_learned(&mut self) {
        if self.links.is_none() {
            return;
        }
        let begun = Instant::now();
        let mut learned = self.learned();
        let next = learned.update(&self.fib, self.generation + 1);
        drop(learned);
        if let Some(fib) = next {
            self.generation += 1;
            self.fib = Arc::new(fib);
            self.supervisor.do_send(Publish {
                fib: self.fib.clone(),
                names: None,
            });
        }
        self.want_otherwise();
        self.tell_mnat();
        let pause = (begun.elapsed() * PACE).min(LONGEST_PACE);
        self.pace.next = Instant::now() + pause;
    }

    /// Tells joins what is wanted otherwise since it was last told.
    fn want_otherwise(&mut self) {
        let mut otherwise = joins::DesiredMemberships::new();
        for group in self.demand.changed() {
            let asked = self.demand.asked_of(&self.rib, group);
            let asked = asked.iter().map(|(asker, filter)| (*asker, filter));
            otherwise.extend(joins::wanted_of_group(group, &self.fixed, asked, &self.up));
        }
        if let Some(joins) = self.context.joins.load_full()
            && !otherwise.is_empty()
        {
            // Control facts: as many as there are snapshots of memberships.
            joins.do_send(UpdateJoins(otherwise));
        }
    }

    /// Notes what is wanted behind an interface, for what is joined upstream.
    fn note_demand(&mut self, index: IfIndex, group: Group, filter: &SourceFilter) {
        let known = (&*self.rib, &self.up);
        self.demand.note(known, index, group, filter);
    }
}

impl Handler<Wanted> for Routing {
    type Result = ();

    fn handle(&mut self, wanted: Wanted, ctx: &mut Self::Context) {
        let index = wanted.index;
        for (group, _) in &wanted.changes {
            self.stale.remove(&(index, *group));
        }
        let served = self.served.as_ref().and_then(|served| served.get(&index));
        // It was told before it knew that nobody listens there any more.
        if served.is_none_or(|served| served.proxy.is_none()) {
            return;
        }
        for (group, filter) in wanted.changes {
            self.note_demand(index, group, &filter);
            self.learned().learn(index, group, filter);
        }
        self.learned_changed(ctx);
    }
}

/// Answers once everything that routing was told before is in force: what is shown is then
/// forwarded, too.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Barrier;

impl Handler<Barrier> for Routing {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: Barrier, _: &mut Self::Context) -> Self::Result {
        let due = if self.pace.waits {
            self.pace.next
        } else {
            Instant::now()
        };
        let paced = tokio::time::sleep_until(due.into()).into_actor(self);
        Box::pin(paced.then(|(), actor, _| {
            if actor.pace.waits {
                actor.publish_learned();
            }
            // The supervisor takes its messages in turn: it answers after all that were sent before.
            let again = actor.links.is_some().then(|| Publish {
                fib: actor.fib.clone(),
                names: None,
            });
            let supervisor = actor.supervisor.clone();
            let done = async move {
                if let Some(again) = again {
                    // Without a supervisor the process ends.
                    let _ = supervisor.send(again).await;
                }
            };
            done.into_actor(actor)
        }))
    }
}

impl Handler<Began> for Routing {
    type Result = ();

    fn handle(&mut self, _: Began, _: &mut Self::Context) {
        let stale = self
            .learned()
            .memberships()
            .map(|(i, g, _)| (i, g))
            .collect();
        self.stale = stale;
        self.served = None;
        self.serve();
    }
}

impl Handler<Settled> for Routing {
    type Result = ();

    fn handle(&mut self, _: Settled, ctx: &mut Self::Context) {
        let stale = std::mem::take(&mut self.stale);
        if stale.is_empty() {
            return;
        }
        for (index, group) in stale {
            self.learned().learn(index, group, SourceFilter::none());
            self.note_demand(index, group, &SourceFilter::none());
        }
        self.learned_changed(ctx);
    }
}
