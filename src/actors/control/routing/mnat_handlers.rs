//! The routes of multicast NAT in the routing table, and what routing reports to the MNAT actor.

use actix::prelude::*;

use super::Routing;
use crate::actors::messages::{MnatRoutesChanged, ReportMembers};
use crate::actors::mnat_route::MnatRoute;
use crate::mnat::RouteStep;
use crate::model::{GroupPrefix, IfPattern, SourcePrefix};
use crate::table::mnat_routes::{MnatRouteChange, replace_mnat_routes, update_mnat_routes};

impl Handler<MnatRoutesChanged> for Routing {
    type Result = ();

    fn handle(&mut self, message: MnatRoutesChanged, _: &mut Self::Context) {
        let from = IfPattern::from(&message.upstream);
        let to = IfPattern::from(&message.downstream);
        let mut changes = Vec::with_capacity(message.steps.len());
        let mut refused = Vec::new();
        for step in message.steps {
            match step {
                RouteStep::Install { matched, rewritten } => {
                    let route = MnatRoute { matched, rewritten };
                    match route.change(&from, &to) {
                        Ok(change) => changes.push(change),
                        Err(e) => refused.push((route.name(), e.to_string())),
                    }
                }
                RouteStep::Withdraw { matched } => changes.push(MnatRouteChange::Withdraw {
                    source: matched.source().map(SourcePrefix::from),
                    group: GroupPrefix::from(matched.group()),
                }),
            }
        }
        let mut rib = self.rib.as_ref().clone();
        refused.extend(match message.replace_all {
            true => replace_mnat_routes(&mut rib, changes),
            false => update_mnat_routes(&mut rib, changes),
        });
        self.report_refused(message.replace_all, refused);
        self.commit(rib);
    }
}

impl Handler<ReportMembers> for Routing {
    type Result = ();

    fn handle(&mut self, _: ReportMembers, _: &mut Self::Context) {
        self.reported_to_mnat = None;
        self.report_members_to_mnat();
    }
}
