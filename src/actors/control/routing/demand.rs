//! The memberships behind downstream interfaces, sorted by what joins them: a proxy on its upstream
//! interface, or a route with a translation on its ingress interface.

use std::collections::BTreeSet;

use ahash::AHashMap;

use crate::membership::MembershipUnion;
use crate::model::{Group, InterfaceId, Links, RouteRule, SourceFilter};
use crate::table::joins::{JoinOrigin, RequestedFilters, permitted_filter};
use crate::table::translated_joins::{original_membership, translates_to, untranslated_part};
use crate::table::{Fib, Rib};

/// The memberships, for the rules it was created for.
#[derive(Debug, Default)]
pub(super) struct Demand {
    /// One for each proxy, in the order of the rules.
    proxies: Vec<MembershipUnion>,
    /// By downstream interface: the position of its proxy.
    proxy_of: AHashMap<InterfaceId, usize>,
    /// Routes with a translation: the position of the rule and the memberships.
    routes: Vec<(usize, MembershipUnion)>,
}

impl Demand {
    /// Returns an empty demand for these rules. `fib` was built from them.
    pub(super) fn new(rib: &Rib, fib: &Fib) -> Self {
        let numbers = (0..).zip(&rib.proxies);
        let numbers: AHashMap<_, usize> = numbers.map(|(n, p)| (&p.name, n)).collect();
        let downstreams = fib.downstreams.iter();
        let proxy_of = downstreams
            .filter_map(|d| Some((d.index, *numbers.get(&d.proxy.name)?)))
            .collect();
        let translates = |(_, rule): &(usize, &RouteRule)| rule.translation.is_some();
        let routes = rib.rules.iter().enumerate().filter(translates);
        Self {
            proxy_of,
            proxies: rib.proxies.iter().map(|_| MembershipUnion::new()).collect(),
            routes: routes
                .map(|(position, _)| (position, MembershipUnion::new()))
                .collect(),
        }
    }

    /// Sets the filter of a group behind an interface. Sources that a route translates to the
    /// group are requested from that route in their original form, the other sources from the
    /// proxy.
    pub(super) fn set_filter(
        &mut self,
        (rib, links): (&Rib, &Links),
        index: InterfaceId,
        group: Group,
        filter: &SourceFilter,
    ) {
        let Some((proxy_position, proxy)) = self
            .proxy_of
            .get(&index)
            .and_then(|position| Some((*position, rib.proxies.get(*position)?)))
        else {
            return;
        };
        let mut remaining = permitted_filter(proxy, group, filter);
        if let Some(link) = links.get(index) {
            for (position, upstream) in &mut self.routes {
                let Some(rule) = rib.rules.get(*position) else {
                    continue;
                };
                if !translates_to(rule, &link.name) || !has_other_ingress(rule, index, links) {
                    continue;
                }
                // An empty filter stays empty and clears earlier demand.
                if let Some((original, wanted)) = original_membership(rule, group, &remaining) {
                    upstream.set_filter(index, original, wanted);
                    remaining = untranslated_part(rule, group, remaining);
                }
            }
        }
        if let Some(upstream) = self.proxies.get_mut(proxy_position) {
            upstream.set_filter(index, group, remaining);
        }
    }

    /// Returns the requested groups of each proxy and route.
    pub(super) fn requested<'r>(&self, rib: &'r Rib) -> Vec<(JoinOrigin<'r>, RequestedFilters)> {
        let all = |upstream: &MembershipUnion| -> RequestedFilters {
            let groups = upstream.groups();
            groups.map(|group| (group, upstream.union(group))).collect()
        };
        let upstreams = self.upstreams(rib);
        upstreams.map(|(origin, u)| (origin, all(u))).collect()
    }

    /// Returns the filter of one group for each proxy, and for each route that matches the group.
    /// Filters without sources are included, so that earlier memberships end.
    pub(super) fn requested_of_group<'r>(
        &self,
        rib: &'r Rib,
        group: Group,
    ) -> Vec<(JoinOrigin<'r>, SourceFilter)> {
        let may_request = |origin: &JoinOrigin<'_>| match origin {
            JoinOrigin::Proxy(_) => true,
            JoinOrigin::Route(rule) => rule.group.net().contains(&group.addr()),
        };
        let upstreams = self
            .upstreams(rib)
            .filter(|(origin, _)| may_request(origin));
        upstreams
            .map(|(origin, u)| (origin, u.union(group)))
            .collect()
    }

    /// Returns the groups whose requested filters changed since the last call.
    pub(super) fn take_changed(&mut self) -> BTreeSet<Group> {
        let routes = self.routes.iter_mut().map(|(_, upstream)| upstream);
        let all = self.proxies.iter_mut().chain(routes);
        let changed = all.flat_map(|upstream| std::iter::from_fn(|| upstream.poll_change()));
        changed.map(|(group, _)| group).collect()
    }

    fn upstreams<'s, 'r: 's>(
        &'s self,
        rib: &'r Rib,
    ) -> impl Iterator<Item = (JoinOrigin<'r>, &'s MembershipUnion)> {
        let proxies = rib.proxies.iter().map(JoinOrigin::Proxy).zip(&self.proxies);
        let routes = self.routes.iter().filter_map(|(position, upstream)| {
            let rule = rib.rules.get(*position)?;
            Some((JoinOrigin::Route(rule), upstream))
        });
        proxies.chain(routes)
    }
}

/// Returns whether the rule has an ingress other than this interface.
fn has_other_ingress(rule: &RouteRule, index: InterfaceId, links: &Links) -> bool {
    links.matching(&rule.from).any(|from| from.index != index)
}
