//! What the supervisor is told to do by those above it: to end, to have multicast NAT follow a reload,
//! and in tests to have an actor panic.

use std::sync::Arc;

use actix::prelude::*;
use futures_util::future::join_all;

use super::super::context::{PanicNow, Stop};
use super::super::mnat::Configure;
use super::super::rewritings::Rewritings;
use super::Supervisor;
use crate::mnat::Config;

/// Stops everything that moves packets, in the order they flow, and answers when all that
/// was taken in is sent.
pub struct Shutdown;

impl Message for Shutdown {
    type Result = ();
}

impl Handler<Shutdown> for Supervisor {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Shutdown, ctx: &mut Self::Context) -> Self::Result {
        let interfaces: Vec<_> = self.interfaces.drain().map(|(_, c)| c.address).collect();
        let forwarders: Vec<_> = self
            .forwarders
            .drain(..)
            .flatten()
            .map(|(_, a)| a)
            .collect();
        let (links, routing) = (self.links.take(), self.routing.take());
        let joins = self.config.context.joins.swap(None);
        let membership = self.config.context.membership.swap(None);
        let mnat = self.config.context.mnat.swap(None);
        // Nothing is rebuilt any more, and this end is no failure.
        if let Some(guard) = self.failed.take() {
            guard.disarm();
        }
        ctx.stop();
        Box::pin(async move {
            if let Some(mnat) = mnat {
                let _ = mnat.address.send(Stop).await;
            }
            // An answer says that all before it in the mailbox is done; an actor that is
            // gone already has nothing left.
            join_all(interfaces.iter().map(|i| i.send(Stop))).await;
            join_all(forwarders.iter().map(|f| f.send(Stop))).await;
            if let Some(links) = links {
                let _ = links.send(Stop).await;
            }
            if let Some(routing) = routing {
                let _ = routing.send(Stop).await;
            }
            if let Some(membership) = membership {
                let _ = membership.send(Stop).await;
            }
            if let Some(joins) = joins {
                let _ = joins.send(Stop).await;
            }
        })
    }
}

/// From now on this is the end of multicast NAT, or none is.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Remap(pub Option<Arc<Config>>);

impl Handler<Remap> for Supervisor {
    type Result = ();

    fn handle(&mut self, message: Remap, ctx: &mut Self::Context) {
        let context = self.config.context.clone();
        let was = std::mem::replace(&mut self.config.mnat, message.0);
        let is = self.config.mnat.clone();
        // Where it died and is not rebuilt yet, the next life has the new settings.
        let lives = context.mnat.load_full().filter(|m| m.address.connected());
        let (was_role, role) = (was.as_ref().map(|c| c.role), is.as_ref().map(|c| c.role));
        if was_role == role {
            if let Some(mnat) = lives {
                mnat.address.do_send(Configure(is));
            }
            return;
        }
        context.mnat.store(None);
        match (lives, was, context.routing.load_full()) {
            (Some(mnat), ..) => mnat.address.do_send(Configure(None)),
            (None, Some(was), Some(routing)) => routing.do_send(Rewritings::none(&was)),
            _ => {}
        }
        self.start_mnat(ctx);
    }
}

/// Has the actor of this `actor` label panic; of several, the one of the lowest interface.
#[derive(Message)]
#[rtype(result = "Result<String, String>")]
pub struct PanicIn(pub String);

impl Handler<PanicIn> for Supervisor {
    type Result = Result<String, String>;

    fn handle(&mut self, message: PanicIn, ctx: &mut Self::Context) -> Self::Result {
        let actor = message.0;
        let lowest = self.interfaces.iter().min_by_key(|(index, _)| **index);
        let forwarders = self.forwarders.iter().flatten();
        let victim: Option<Recipient<PanicNow>> = match actor.as_str() {
            "routing" => self.routing.clone().map(Addr::recipient),
            "links" => self.links.clone().map(Addr::recipient),
            "metrics" => self.metrics.clone().map(Addr::recipient),
            "docker" => self.docker.clone().map(Addr::recipient),
            "joins" => {
                let joins = self.config.context.joins.load_full();
                joins.map(|joins| joins.as_ref().clone().recipient())
            }
            "membership" => {
                let membership = self.config.context.membership.load_full();
                membership.map(|membership| membership.as_ref().clone().recipient())
            }
            "mnat" => {
                let mnat = self.config.context.mnat.load_full();
                mnat.map(|mnat| mnat.address.clone().recipient())
            }
            "interface" => lowest.map(|(_, c)| c.address.clone().recipient()),
            "forwarder" => forwarders
                .min_by_key(|(index, _)| **index)
                .map(|(_, forwarder)| forwarder.clone().recipient()),
            // The control protocol keeps the former name of the supervisor.
            "keeper" => Some(ctx.address().recipient()),
            _ => None,
        };
        let victim = victim.ok_or_else(|| format!("there is no actor {actor:?}"))?;
        victim.do_send(PanicNow);
        Ok(format!("{actor} panics"))
    }
}
