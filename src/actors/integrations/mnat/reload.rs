//! Changes of the MNAT settings during operation. What the change does not affect continues.

use std::sync::Arc;
use std::time::Instant;

use actix::prelude::*;
use tracing::info;

use super::{Mnat, file_watch};
use crate::actors::messages::{
    ConfigureMnat, MembersChanged, MnatRoutesChanged, QueryMnat, ReportMembers, RestartChild,
    RetryRefused, RoutesRefused,
};
use crate::actors::shared::RouterContext;
use crate::actors::supervisor::Supervisor;
use crate::mnat::client::MnatClient;
use crate::mnat::{Config, MappingStatus};

/// The `actor` label of the MNAT actor.
pub const ROLE: &str = "mnat";

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
    supervisor.do_send(RestartChild(ROLE));
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

impl Mnat {
    fn configure(&mut self, config: Arc<Config>, ctx: &mut Context<Self>) {
        let now = Instant::now();
        let former = std::mem::replace(&mut self.config, config);
        let config = self.config.clone();
        self.machine.set_grace(config.grace);
        if former.target != config.target {
            let (host, port) = (&config.target.host, config.target.port);
            info!("mnat: new server {host}:{port}; mappings are held until it answers");
            // A response of the former server is ignored.
            self.target_number += 1;
            self.client = Some(MnatClient::new(config.target.clone()));
            self.machine.start_over(now);
            self.last_error = None;
        }
        if (&former.joinfile, former.joins) != (&config.joinfile, config.joins) {
            self.file_watch = file_watch(&config);
            // The joins of the former file stay until the new one is read below.
            if self.file_watch.is_none() {
                self.from_file.clear();
            }
            if !config.joins.members {
                self.from_members.clear();
            }
            self.write_failed = false;
        }
        if (&former.upstream, &former.downstream) != (&config.upstream, &config.downstream) {
            self.send_all(self.is_synchronised);
        }
        // The members may be those of another interface now.
        self.context.directory.do_send(ReportMembers);
        self.update_wanted(now);
        self.drive(ctx);
        self.update_metrics();
    }

    fn end(&mut self, ctx: &mut Context<Self>) {
        info!("mnat: removed from the settings; removing its routes");
        let remove_all = MnatRoutesChanged::remove_all(&self.config);
        self.context.directory.do_send(remove_all);
        let metrics = &self.context.catalog.mnat;
        metrics.set_server_up(false);
        for standing in MappingStatus::ALL {
            metrics.set_mappings(self.config.role.label(), standing.label(), 0);
        }
        self.death_guard.disarm();
        ctx.stop();
    }
}
