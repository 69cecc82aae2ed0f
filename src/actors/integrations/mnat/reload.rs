//! Changes of the MNAT settings during operation. Mappings that the change does not affect
//! continue.

use std::sync::Arc;

use actix::prelude::*;

use super::Mnat;
use crate::actors::messages::{
    ConfigureMnat, MembersChanged, MnatRoutesChanged, QueryMnat, RestartChild, RetryRefused,
    RoutesRefused,
};
use crate::actors::shared::RouterContext;
use crate::actors::supervisor::Supervisor;
use crate::mnat::Config;

/// The `actor` label of the MNAT actor.
pub const ACTOR_NAME: &str = "mnat";

/// Puts new settings in force: configures the MNAT actor, starts it, or stops it and removes its
/// routes.
pub fn reconfigure(
    context: &RouterContext,
    supervisor: &Addr<Supervisor>,
    config: Option<Arc<Config>>,
) {
    let former = context.mnat.swap(config.clone());
    let directory = &context.directory;
    let is_alive = |actor: &Recipient<ConfigureMnat>| actor.connected();
    let actor = directory.receiver::<ConfigureMnat>().filter(is_alive);
    let role = |config: &Option<Arc<Config>>| config.as_ref().map(|c| c.role);
    if role(&former) == role(&config) {
        // If the actor has died and is not restarted yet, it starts with the new settings.
        if let Some(actor) = actor {
            actor.do_send(ConfigureMnat(config));
        }
        return;
    }
    directory.remove::<MembersChanged>();
    directory.remove::<RoutesRefused>();
    directory.remove::<RetryRefused>();
    directory.remove::<ConfigureMnat>();
    directory.remove::<QueryMnat>();
    match (actor, former) {
        (Some(actor), _) => actor.do_send(ConfigureMnat(None)),
        (None, Some(former)) => {
            directory.do_send(MnatRoutesChanged::remove_all(&former));
        }
        (None, None) => {}
    }
    supervisor.do_send(RestartChild(ACTOR_NAME));
}

impl Handler<ConfigureMnat> for Mnat {
    type Result = ();

    fn handle(&mut self, message: ConfigureMnat, ctx: &mut Self::Context) {
        match message.0 {
            Some(config) => self.configure(config, ctx),
            None => self.end(ctx),
        }
    }
}
