//! Routes that rewrite, as the mappings of multicast NAT come and go; and the other way, what
//! hosts downstream of an egress want.

use std::collections::BTreeSet;

use actix::prelude::*;

use super::mnat::{HostsWant, Refused, Resend};
use super::routing::Routing;
use crate::mnat::{Channel, Config, RouteStep};
use crate::model::{
    GroupPrefix, IfName, IfPattern, JoinPolicy, JoinRule, Origin, RouteName, RouteRule,
    SourceFilter, SourcePrefix, TranslationError, TranslationRule,
};
use crate::table::mnat_routes::MnatRouteChange;

/// One mapping as routing sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rewriting {
    /// What arrives.
    pub matched: Channel,
    /// What leaves. Without a source, the packet keeps its own.
    pub rewritten: Channel,
}

impl Rewriting {
    /// The name of its route.
    pub fn name(&self) -> RouteName {
        RouteName::new(format!("mnat {} as {}", self.matched, self.rewritten))
    }

    /// The step that puts it in force.
    pub fn install(self) -> RouteStep {
        let Self { matched, rewritten } = self;
        RouteStep::Install { matched, rewritten }
    }

    /// The sources its route takes. A local group for any source carries packets that kept the
    /// global one.
    fn source(&self) -> SourcePrefix {
        let (own, other) = (self.matched.source(), self.rewritten.source());
        let same_version = self.matched.is_ipv4() == self.rewritten.is_ipv4();
        let source = own.or(other.filter(|_| same_version));
        let group = GroupPrefix::from(self.matched.group());
        source.map_or(SourcePrefix::any_for(group), SourcePrefix::from)
    }

    fn route(
        &self,
        upstream: &IfPattern,
        downstream: &IfPattern,
    ) -> Result<(RouteRule, Option<JoinRule>), TranslationError> {
        let (source, group) = (self.source(), GroupPrefix::from(self.matched.group()));
        let to_source = self.rewritten.source().map(SourcePrefix::from);
        let to_source = to_source.filter(|to| *to != source);
        let to_group = GroupPrefix::from(self.rewritten.group());
        let rewrite = match to_source.is_none() && to_group == group {
            true => None,
            false => Some(TranslationRule::new(
                (source, group),
                (to_source, Some(to_group)),
                None,
                false,
            )?),
        };
        let any = self.matched.source().is_none();
        let rule = RouteRule {
            name: self.name(),
            origin: Origin::Mnat,
            source,
            rewrite,
            join: if any {
                JoinPolicy::Never
            } else {
                JoinPolicy::Auto
            },
            ..RouteRule::new(upstream.clone(), group, vec![downstream.clone()])
        };
        let join = any.then(|| JoinRule {
            interface: upstream.clone(),
            source: None,
            group,
            origin: Origin::Mnat,
        });
        Ok((rule, join))
    }
}

impl From<(Channel, Channel)> for Rewriting {
    fn from((matched, rewritten): (Channel, Channel)) -> Self {
        Self { matched, rewritten }
    }
}

/// Changes of the routes that rewrite; each touches one.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Rewritings {
    /// Where packets arrive.
    pub upstream: IfName,
    /// Where they leave.
    pub downstream: IfName,
    /// The steps name all there are: others are gone.
    pub whole: bool,
    /// What changes, in order.
    pub steps: Vec<RouteStep>,
}

impl Rewritings {
    /// All of them go.
    pub fn none(config: &Config) -> Self {
        Self {
            upstream: config.upstream.clone(),
            downstream: config.downstream.clone(),
            whole: true,
            steps: Vec::new(),
        }
    }
}

impl Handler<Rewritings> for Routing {
    type Result = ();

    fn handle(&mut self, message: Rewritings, _: &mut Self::Context) {
        let from = IfPattern::from(&message.upstream);
        let to = IfPattern::from(&message.downstream);
        let mut changes = Vec::with_capacity(message.steps.len());
        let mut refused = Vec::new();
        for step in message.steps {
            match step {
                RouteStep::Install { matched, rewritten } => {
                    let rewriting = Rewriting { matched, rewritten };
                    match rewriting.route(&from, &to) {
                        Ok((rule, join)) => {
                            changes.push(MnatRouteChange::Install(Box::new(rule), join))
                        }
                        Err(e) => refused.push((rewriting.name(), e.to_string())),
                    }
                }
                RouteStep::Withdraw { matched } => changes.push(MnatRouteChange::Withdraw {
                    source: matched.source().map(SourcePrefix::from),
                    group: GroupPrefix::from(matched.group()),
                }),
            }
        }
        let mut rib = self.rib().clone();
        refused.extend(rib.map(message.whole, changes));
        self.tell_refused(message.whole, refused);
        self.commit(rib);
    }
}

/// Has routing tell the MNAT actor what hosts want, all of it.
#[derive(Message)]
#[rtype(result = "()")]
pub struct TellHosts;

impl Handler<TellHosts> for Routing {
    type Result = ();

    fn handle(&mut self, _: TellHosts, _: &mut Self::Context) {
        self.told_mnat = None;
        self.tell_mnat();
    }
}

impl Routing {
    /// Tells the MNAT actor which of its routes are left out, and why.
    pub(super) fn tell_refused(&self, whole: bool, refused: Vec<(RouteName, String)>) {
        if let Some(mnat) = self.context().mnat.load_full()
            && (whole || !refused.is_empty())
        {
            // Control facts: at most as many as there are changes of mappings.
            mnat.address.do_send(Refused { whole, refused });
        }
    }

    /// Has the MNAT actor try again what was left out: routes of operators changed.
    pub(super) fn try_refused_again(&self) {
        if let Some(mnat) = self.context().mnat.load_full() {
            // As many as there are commands and reloads.
            mnat.address.do_send(Resend);
        }
    }

    /// Tells the MNAT actor what hosts downstream of it want, where that changed.
    pub(super) fn tell_mnat(&mut self) {
        let Some(mnat) = self.context().mnat.load_full() else {
            return;
        };
        let Some(index) = self.index_of(&mnat.downstream) else {
            return;
        };
        let mut wanted = BTreeSet::new();
        for (at, group, filter) in self.learned().memberships() {
            if at != index {
                continue;
            }
            match filter {
                SourceFilter::Include(sources) => {
                    let channels = sources.iter().map(|s| Channel::new(Some(*s), group));
                    wanted.extend(channels.flatten());
                }
                // Whom they do not want they filter themselves.
                SourceFilter::Exclude(_) => wanted.extend(Channel::new(None, group)),
            }
        }
        if self.told_mnat.as_ref() != Some(&wanted) {
            // Control facts: as many as there are snapshots of memberships.
            mnat.address.do_send(HostsWant(wanted.clone()));
            self.told_mnat = Some(wanted);
        }
    }
}
