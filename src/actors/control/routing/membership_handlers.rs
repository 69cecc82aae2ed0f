//! Messages of the membership actor to routing, and the barrier that waits until the changes are in
//! force.

use actix::prelude::*;

use super::Routing;
use crate::actors::messages::{
    Barrier, LearningComplete, MembershipChanged, MembershipStarted, Publish, TunnelsStarted,
};
use crate::model::{Group, InterfaceId, SourceFilter};

impl Handler<MembershipChanged> for Routing {
    type Result = ();

    fn handle(&mut self, message: MembershipChanged, ctx: &mut Self::Context) {
        let index = message.index;
        for (group, _) in &message.changes {
            self.stale.remove(&(index, *group));
        }
        let served = self.served.as_ref().and_then(|served| served.get(&index));
        // The membership actor sent this before it received the current list of interfaces.
        if served.is_none_or(|served| served.proxy.is_none()) {
            return;
        }
        for (group, filter) in message.changes {
            self.set_demand(index, group, &filter);
            self.membership_database().set(index, group, filter);
        }
        self.schedule_publish(ctx);
    }
}

impl Handler<Barrier> for Routing {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: Barrier, _: &mut Self::Context) -> Self::Result {
        self.publish_changes();
        let publish_at = self.pacer.is_scheduled.then_some(self.pacer.next);
        let paced = async move {
            // A sleep until a time that has passed still lasts until the next tick of the timer.
            if let Some(publish_at) = publish_at {
                tokio::time::sleep_until(publish_at.into()).await;
            }
        };
        Box::pin(paced.into_actor(self).then(|(), actor, _| {
            if actor.pacer.is_scheduled {
                actor.publish_memberships();
            }
            // The supervisor handles messages in order, so it answers after all earlier ones.
            let republish = actor.links.is_some().then(|| Publish {
                fib: actor.fib.clone(),
                links: None,
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

impl Handler<MembershipStarted> for Routing {
    type Result = ();

    fn handle(&mut self, _: MembershipStarted, _: &mut Self::Context) {
        // The AMT actor knows the members behind tunnels.
        let stale = self
            .membership_database()
            .memberships()
            .filter(|(index, ..)| index.ifindex().is_some())
            .map(|(i, g, _)| (i, g))
            .collect();
        self.stale = stale;
        self.served = None;
        self.update_served_interfaces();
    }
}

impl Handler<TunnelsStarted> for Routing {
    type Result = ();

    fn handle(&mut self, _: TunnelsStarted, ctx: &mut Self::Context) {
        let of_tunnels = |(index, group, _): (InterfaceId, Group, _)| {
            index.ifindex().is_none().then_some((index, group))
        };
        let lost: Vec<_> = {
            let database = self.membership_database();
            database.memberships().filter_map(of_tunnels).collect()
        };
        for (index, group) in lost {
            self.set_demand(index, group, &SourceFilter::none());
            self.membership_database()
                .set(index, group, SourceFilter::none());
        }
        self.send_served_tunnels();
        self.schedule_publish(ctx);
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
            self.membership_database()
                .set(index, group, SourceFilter::none());
            self.set_demand(index, group, &SourceFilter::none());
        }
        self.schedule_publish(ctx);
    }
}
