//! Serves HTTP from the counters that live outside the actors.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use actix_web::dev::ServerHandle;
use tracing::{info, warn};

use super::context::{DeathGuard, RouterContext, Stop, panics_on_demand};
use crate::http;

/// How often the kernel is asked what it dropped from full queues.
const BACKLOG_EVERY: Duration = Duration::from_secs(1);

/// The actor.
pub struct Metrics {
    context: Arc<RouterContext>,
    death_guard: DeathGuard,
    listener: Option<TcpListener>,
    server: Option<ServerHandle>,
}

impl Metrics {
    /// Serves on a listener that is bound already.
    pub fn new(
        context: Arc<RouterContext>,
        death_guard: DeathGuard,
        listener: TcpListener,
    ) -> Self {
        Self {
            context,
            death_guard,
            listener: Some(listener),
            server: None,
        }
    }
}

impl Actor for Metrics {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let Some(listener) = self.listener.take() else {
            return;
        };
        let ask = |context: &RouterContext| {
            if let Some(dropped) = context.plane.backlog_dropped() {
                context.catalog.set_backlog_dropped(dropped);
            }
        };
        ask(&self.context);
        ctx.run_interval(BACKLOG_EVERY, move |actor, _| ask(&actor.context));
        let address = listener.local_addr();
        match http::serve(self.context.clone(), listener) {
            Ok(server) => {
                if let Ok(address) = address {
                    info!("http: serving on http://{address}/metrics");
                }
                self.server = Some(server.handle());
                ctx.spawn(server.into_actor(self).map(|ended, _, ctx| {
                    if let Err(e) = ended {
                        warn!("http: the server ended: {e}");
                    }
                    ctx.terminate();
                }));
            }
            Err(e) => warn!("http: cannot serve: {e}; forwarding goes on"),
        }
    }
}

panics_on_demand!(Metrics);

impl Handler<Stop> for Metrics {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) -> Self::Result {
        let server = self.server.take();
        self.death_guard.disarm();
        ctx.stop();
        Box::pin(async move {
            if let Some(server) = server {
                server.stop(false).await;
            }
        })
    }
}
