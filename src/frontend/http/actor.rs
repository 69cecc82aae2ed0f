//! The actor that owns the HTTP server. Its label is `metrics`.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use actix_web::dev::ServerHandle;
use tracing::{info, warn};

use super::HttpConfig;
use crate::actors::messages::SetAccepting;
use crate::actors::shared::RouterContext;
use crate::actors::supervision::{DeathGuard, Stop, panics_on_demand};

/// Interval at which the number of packets that the kernel dropped from full queues is read.
const BACKLOG_INTERVAL: Duration = Duration::from_secs(1);

/// The actor.
pub struct HttpServerActor {
    context: Arc<RouterContext>,
    death_guard: DeathGuard,
    config: Option<HttpConfig>,
    server: Option<ServerHandle>,
}

impl HttpServerActor {
    /// Returns an actor that serves on the listener of `config`.
    pub fn new(context: Arc<RouterContext>, death_guard: DeathGuard, config: HttpConfig) -> Self {
        Self {
            context,
            death_guard,
            config: Some(config),
            server: None,
        }
    }
}

impl Actor for HttpServerActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let Some(config) = self.config.take() else {
            return;
        };
        let directory = &self.context.directory;
        directory.register(ctx.address()).receives::<SetAccepting>();
        let update = |context: &RouterContext| {
            let mut planes = context.planes.all();
            if let Some(dropped) = planes.find_map(|plane| plane.backlog_dropped()) {
                context.catalog.set_backlog_dropped(dropped);
            }
        };
        update(&self.context);
        ctx.run_interval(BACKLOG_INTERVAL, move |actor, _| update(&actor.context));
        let address = config.listener.to_string();
        match super::serve(self.context.clone(), config) {
            Ok(server) => {
                info!("http: serving on {address}");
                self.server = Some(server.handle());
                ctx.spawn(server.into_actor(self).map(|ended, _, ctx| {
                    if let Err(e) = ended {
                        warn!("http: the server ended: {e}");
                    }
                    ctx.terminate();
                }));
            }
            Err(e) => warn!("http: cannot serve: {e}; forwarding continues"),
        }
    }
}

impl Handler<SetAccepting> for HttpServerActor {
    type Result = ResponseFuture<()>;

    fn handle(
        &mut self,
        SetAccepting(accepting): SetAccepting,
        _: &mut Self::Context,
    ) -> Self::Result {
        let server = self.server.clone();
        Box::pin(async move {
            match server {
                Some(server) if accepting => server.resume().await,
                Some(server) => server.pause().await,
                None => {}
            }
        })
    }
}

panics_on_demand!(HttpServerActor);

impl Handler<Stop> for HttpServerActor {
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
