//! The route that a mapping of multicast NAT becomes.

use crate::mnat::{Channel, RouteStep};
use crate::model::{
    GroupPrefix, IfPattern, JoinPolicy, JoinRule, Origin, RouteName, RouteRule, SourcePrefix,
    TranslationError, TranslationRule,
};
use crate::table::mnat_routes::MnatRouteChange;

/// A mapping, as the routing table has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MnatRoute {
    /// The stream that arrives.
    pub matched: Channel,
    /// The stream that leaves. Without a source, packets keep their source.
    pub rewritten: Channel,
}

impl MnatRoute {
    /// Returns the name of the route.
    pub fn name(&self) -> RouteName {
        RouteName::new(format!("mnat {} as {}", self.matched, self.rewritten))
    }

    /// Returns the step that adds the route.
    pub fn install(self) -> RouteStep {
        let Self { matched, rewritten } = self;
        RouteStep::Install { matched, rewritten }
    }

    /// Returns the sources that the route matches. Packets of a local group for any source have
    /// kept their global source.
    fn source(&self) -> SourcePrefix {
        let (own, other) = (self.matched.source(), self.rewritten.source());
        let same_version = self.matched.is_ipv4() == self.rewritten.is_ipv4();
        let source = own.or(other.filter(|_| same_version));
        let group = GroupPrefix::from(self.matched.group());
        source.map_or(SourcePrefix::any_for(group), SourcePrefix::from)
    }

    /// Returns the change of the routing table that adds the route and its join.
    ///
    /// # Errors
    /// The mapping is not a valid translation.
    pub fn change(
        &self,
        upstream: &IfPattern,
        downstream: &IfPattern,
    ) -> Result<MnatRouteChange, TranslationError> {
        let (rule, join) = self.rules(upstream, downstream)?;
        Ok(MnatRouteChange::Install(Box::new(rule), join))
    }

    /// Returns the route, and the join that it needs.
    ///
    /// # Errors
    /// The mapping is not a valid translation.
    fn rules(
        &self,
        upstream: &IfPattern,
        downstream: &IfPattern,
    ) -> Result<(RouteRule, Option<JoinRule>), TranslationError> {
        let (source, group) = (self.source(), GroupPrefix::from(self.matched.group()));
        let to_source = self.rewritten.source().map(SourcePrefix::from);
        let to_source = to_source.filter(|to| *to != source);
        let to_group = GroupPrefix::from(self.rewritten.group());
        let translation = match to_source.is_none() && to_group == group {
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
            translation,
            // A join on demand would wait for members downstream. A stream of a joinfile has none,
            // and while a mapping changes, the demand is that of one of its two routes.
            join: match any {
                true => JoinPolicy::Never,
                false => JoinPolicy::Always,
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

impl From<(Channel, Channel)> for MnatRoute {
    fn from((matched, rewritten): (Channel, Channel)) -> Self {
        Self { matched, rewritten }
    }
}
