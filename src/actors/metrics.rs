//! Serves HTTP from the counters that live outside the actors.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use actix_web::dev::ServerHandle;
use tracing::{info, warn};

use super::world::{Stop, Vital, World, panics_on_demand};
use crate::http;

/// How often the kernel is asked what it dropped from full queues.
const BACKLOG_EVERY: Duration = Duration::from_secs(1);

/// The actor.
pub struct Metrics {
    world: Arc<World>,
    vital: Vital,
    listener: Option<TcpListener>,
    server: Option<ServerHandle>,
}

impl Metrics {
    /// Serves on a listener that is bound already.
    pub fn new(world: Arc<World>, vital: Vital, listener: TcpListener) -> Self {
        Self {
            world,
            vital,
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
        let ask = |world: &World| {
            if let Some(dropped) = world.plane.backlog_dropped() {
                world.catalog.set_backlog_dropped(dropped);
            }
        };
        ask(&self.world);
        ctx.run_interval(BACKLOG_EVERY, move |actor, _| ask(&actor.world));
        let address = listener.local_addr();
        match http::serve(self.world.clone(), listener) {
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
        self.vital.disarm();
        ctx.stop();
        Box::pin(async move {
            if let Some(server) = server {
                server.stop(false).await;
            }
        })
    }
}
