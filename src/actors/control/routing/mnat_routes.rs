//! The routes of multicast NAT in the routing table, and what routing reports to the MNAT actor.

use std::collections::BTreeSet;

use actix::prelude::*;

use super::Routing;
use crate::actors::messages::{
    MembersChanged, MnatRoutesChanged, ReportMembers, RetryRefused, RoutesRefused,
};
use crate::actors::mnat_route::MnatRoute;
use crate::mnat::{Channel, RouteStep};
use crate::model::{GroupPrefix, IfPattern, RouteName, SourceFilter, SourcePrefix};
use crate::table::mnat_routes::MnatRouteChange;

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
                    match route.rules(&from, &to) {
                        Ok((rule, join)) => {
                            changes.push(MnatRouteChange::Install(Box::new(rule), join))
                        }
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
        refused.extend(rib.map(message.replace_all, changes));
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

impl Routing {
    /// Reports refused routes to the MNAT actor.
    pub(super) fn report_refused(&self, complete: bool, refused: Vec<(RouteName, String)>) {
        if complete || !refused.is_empty() {
            self.context
                .directory
                .do_send(RoutesRefused { complete, refused });
        }
    }

    /// Asks the MNAT actor to send refused routes again, because other routes changed.
    pub(super) fn retry_refused(&self) {
        self.context.directory.do_send(RetryRefused);
    }

    /// Reports the members of the downstream interface to the MNAT actor, if they changed.
    pub(super) fn report_members_to_mnat(&mut self) {
        let Some(config) = self.context.mnat.load_full() else {
            return;
        };
        let Some(index) = self.link(&config.downstream).map(|link| link.index) else {
            return;
        };
        let mut streams = BTreeSet::new();
        for (at, group, filter) in self.learned().memberships() {
            if at != index {
                continue;
            }
            match filter {
                SourceFilter::Include(sources) => {
                    let channels = sources.iter().map(|s| Channel::new(Some(*s), group));
                    streams.extend(channels.flatten());
                }
                // Members filter excluded sources themselves.
                SourceFilter::Exclude(_) => streams.extend(Channel::new(None, group)),
            }
        }
        if self.reported_to_mnat.as_ref() != Some(&streams) {
            self.context
                .directory
                .do_send(MembersChanged(streams.clone()));
            self.reported_to_mnat = Some(streams);
        }
    }
}
