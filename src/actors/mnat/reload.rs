//! Other settings of multicast NAT while it runs: what did not change goes on.

use std::sync::Arc;
use std::time::Instant;

use actix::prelude::*;
use tracing::info;

use super::{Mnat, watch_of};
use crate::actors::rewritings::{Rewritings, TellHosts};
use crate::mnat::client::MnatClient;
use crate::mnat::{Config, MappingStatus};

/// These settings count from now on, of the same role as before. `None` ends the actor, and its
/// routes with it.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Configure(pub Option<Arc<Config>>);

impl Handler<Configure> for Mnat {
    type Result = ();

    fn handle(&mut self, message: Configure, ctx: &mut Self::Context) {
        match message.0 {
            Some(config) => self.configure(config, ctx),
            None => self.retire(ctx),
        }
    }
}

impl Mnat {
    fn configure(&mut self, config: Arc<Config>, ctx: &mut Context<Self>) {
        let now = Instant::now();
        let was = std::mem::replace(&mut self.config, config);
        let is = self.config.clone();
        self.machine.set_grace(is.grace);
        if was.target != is.target {
            let (host, port) = (&is.target.host, is.target.port);
            info!("mnat: other settings; asking {host}:{port} anew, mappings are held meanwhile");
            // What is on its way to the one before has no answer that counts.
            self.asking += 1;
            self.client = Some(MnatClient::new(is.target.clone()));
            self.machine.start_over(now);
            self.trouble = None;
        }
        if (&was.joinfile, was.joins) != (&is.joinfile, is.joins) {
            self.watch = watch_of(&is);
            // What the old file said counts until the new one is read, in this same turn.
            if self.watch.is_none() {
                self.from_file.clear();
            }
            if !is.joins.members {
                self.from_hosts.clear();
            }
            self.cannot_write = false;
        }
        if (&was.upstream, &was.downstream) != (&is.upstream, &is.downstream) {
            self.take_seat(ctx);
            self.send_all(self.swept);
        }
        // Who is heard downstream may be others now.
        if let Some(routing) = self.context.routing.load_full() {
            routing.do_send(TellHosts);
        }
        self.want(now);
        self.drive(ctx);
        self.show();
    }

    fn retire(&mut self, ctx: &mut Context<Self>) {
        info!("mnat: no longer in the settings; its routes go");
        if let Some(routing) = self.context.routing.load_full() {
            routing.do_send(Rewritings::none(&self.config));
        }
        let families = &self.context.catalog.mnat;
        families.set_server_up(false);
        for standing in MappingStatus::ALL {
            families.set_mappings(self.config.role.label(), standing.label(), 0);
        }
        self.death_guard.disarm();
        ctx.stop();
    }
}
