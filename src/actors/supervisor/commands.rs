//! Commands of the app to the supervisor.

use actix::prelude::*;
use futures_util::future::join_all;

use super::Supervisor;
use crate::actors::child::ShutdownPhase;
use crate::actors::messages::{
    PanicIn, PauseCapture, PauseForwarding, RestartChild, ResumeCapture, ResumeForwarding,
    ShareCapture, ShareCaptures, Shutdown,
};
use crate::actors::supervision::{ActorRole, PanicNow, Stop};
use crate::model::InterfaceId;
use crate::pipeline::{CaptureHandle, CapturePosition};

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
        let children = |phase| -> Vec<Recipient<Stop>> {
            let specs = self.config.children.iter().rev();
            let specs = specs.filter(|spec| spec.shutdown == phase);
            let handles = specs.filter_map(|spec| self.children.get(spec.role));
            handles.map(|handle| handle.stop.clone()).collect()
        };
        let before = children(ShutdownPhase::BeforeForwarding);
        let after = children(ShutdownPhase::AfterForwarding);
        // From now on nothing is restarted, and the end of the supervisor is not a failure.
        if let Some(guard) = self.failed.take() {
            guard.disarm();
        }
        let context = self.config.context.clone();
        ctx.stop();
        Box::pin(async move {
            // An answer means that the actor has handled every message before this one. An actor
            // that has died has nothing left to handle.
            for child in before {
                let _ = child.send(Stop).await;
            }
            join_all(interfaces.iter().map(|i| i.send(Stop))).await;
            join_all(forwarders.iter().map(|f| f.send(Stop))).await;
            context.count_planes();
            for child in after {
                let _ = child.send(Stop).await;
            }
        })
    }
}

impl Handler<RestartChild> for Supervisor {
    type Result = ();

    fn handle(&mut self, RestartChild(role): RestartChild, ctx: &mut Self::Context) {
        self.start_child(role, ctx);
    }
}

impl Handler<ShareCaptures> for Supervisor {
    type Result = ResponseFuture<Result<Vec<(InterfaceId, CaptureHandle)>, String>>;

    fn handle(&mut self, _: ShareCaptures, _: &mut Self::Context) -> Self::Result {
        let captured = self.interfaces.iter();
        let shared = captured.map(|(index, captured)| {
            let (index, name) = (*index, captured.name.clone());
            let shared = captured.address.send(ShareCapture);
            async move {
                let shared = shared.await.map_err(|e| format!("{name}: {e}"))?;
                match shared {
                    Ok(handle) => Ok(handle.map(|handle| (index, handle))),
                    Err(e) => Err(format!(
                        "{name}: {e}; `[plane] kind = \"packet\"` can, or restart instead"
                    )),
                }
            }
        });
        let shared = join_all(shared);
        Box::pin(async move {
            shared
                .await
                .into_iter()
                .filter_map(Result::transpose)
                .collect()
        })
    }
}

impl Handler<PauseForwarding> for Supervisor {
    type Result = ResponseFuture<Vec<(InterfaceId, CapturePosition)>>;

    fn handle(&mut self, _: PauseForwarding, _: &mut Self::Context) -> Self::Result {
        let captured = self.interfaces.iter();
        let paused = captured.map(|(index, captured)| {
            let index = *index;
            let position = captured.address.send(PauseCapture);
            async move { Some((index, position.await.ok()??)) }
        });
        let paused = join_all(paused);
        let context = self.config.context.clone();
        Box::pin(async move {
            let positions = paused.await.into_iter().flatten().collect();
            context.count_planes();
            positions
        })
    }
}

impl Handler<ResumeForwarding> for Supervisor {
    type Result = ();

    fn handle(&mut self, message: ResumeForwarding, _: &mut Self::Context) {
        let reopen = message.reopen;
        for captured in self.interfaces.values() {
            captured.address.do_send(ResumeCapture { reopen });
        }
    }
}

impl Handler<PanicIn> for Supervisor {
    type Result = Result<String, String>;

    fn handle(&mut self, message: PanicIn, ctx: &mut Self::Context) -> Self::Result {
        /// The control protocol keeps the former name of the supervisor.
        const SUPERVISOR: &str = "keeper";
        let actor = message.0;
        let lowest = self.interfaces.iter().min_by_key(|(index, _)| **index);
        let forwarders = self.forwarders.iter().flatten();
        let victim: Option<Recipient<PanicNow>> = match actor.as_str() {
            ActorRole::INTERFACE => lowest.map(|(_, c)| c.address.clone().recipient()),
            ActorRole::FORWARDER => forwarders
                .min_by_key(|(index, _)| **index)
                .map(|(_, forwarder)| forwarder.clone().recipient()),
            SUPERVISOR => Some(ctx.address().recipient()),
            child => self.children.get(child).map(|child| child.panic.clone()),
        };
        let victim = victim.ok_or_else(|| format!("there is no actor {actor:?}"))?;
        victim.do_send(PanicNow);
        Ok(format!("{actor} panics"))
    }
}
