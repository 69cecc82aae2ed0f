//! What hosts behind downstream interfaces want, sorted by who joins it: the proxy upstream, or a
//! route that rewrites where its packets come from.

use std::collections::BTreeSet;

use ahash::AHashMap;

use crate::membership::MembershipUnion;
use crate::model::{Group, IfIndex, Links, RouteRule, SourceFilter};
use crate::table::joins::{Asked, JoinOrigin, permitted};
use crate::table::translated_joins::{original, remainder, rewrites_to};
use crate::table::{Fib, Rib};

/// All that is wanted, for the rules it was made for.
#[derive(Debug, Default)]
pub(super) struct Demand {
    /// In the order of the proxies.
    proxies: Vec<MembershipUnion>,
    /// Which of the proxies an interface is downstream of.
    proxy_of: AHashMap<IfIndex, usize>,
    /// By position of the rule; those that rewrite.
    routes: Vec<(usize, MembershipUnion)>,
}

impl Demand {
    /// Nothing is wanted. `fib` is the snapshot of these rules.
    pub(super) fn new(rib: &Rib, fib: &Fib) -> Self {
        let numbers = (0..).zip(&rib.proxies);
        let numbers: AHashMap<_, usize> = numbers.map(|(n, p)| (&p.name, n)).collect();
        let downstreams = fib.downstreams.iter();
        let proxy_of = downstreams
            .filter_map(|d| Some((d.index, *numbers.get(&d.proxy.name)?)))
            .collect();
        let rewrites = |(_, rule): &(usize, &RouteRule)| rule.rewrite.is_some();
        let routes = rib.rules.iter().enumerate().filter(rewrites);
        Self {
            proxy_of,
            proxies: rib.proxies.iter().map(|_| MembershipUnion::new()).collect(),
            routes: routes.map(|(at, _)| (at, MembershipUnion::new())).collect(),
        }
    }

    /// What is wanted of a group behind an interface from now on. What a route makes there of
    /// another stream is wanted of that one, and of the proxy what is left.
    pub(super) fn note(
        &mut self,
        (rib, links): (&Rib, &Links),
        index: IfIndex,
        group: Group,
        filter: &SourceFilter,
    ) {
        let Some((at, proxy)) = self
            .proxy_of
            .get(&index)
            .and_then(|at| Some((*at, rib.proxies.get(*at)?)))
        else {
            return;
        };
        let mut left = permitted(proxy, group, filter);
        if let Some(link) = links.get(index) {
            for (at, upstream) in &mut self.routes {
                let Some(rule) = rib.rules.get(*at) else {
                    continue;
                };
                if !rewrites_to(rule, &link.name) || !comes_from_elsewhere(rule, index, links) {
                    continue;
                }
                // Of what hosts want now and before: of none, none.
                if let Some((original, wanted)) = original(rule, group, &left) {
                    upstream.set_filter(index, original, wanted);
                    left = remainder(rule, group, left);
                }
            }
        }
        if let Some(upstream) = self.proxies.get_mut(at) {
            upstream.set_filter(index, group, left);
        }
    }

    /// Who asks for what.
    pub(super) fn asked<'r>(&self, rib: &'r Rib) -> Vec<(JoinOrigin<'r>, Asked)> {
        let all = |upstream: &MembershipUnion| -> Asked {
            let groups = upstream.groups();
            groups.map(|group| (group, upstream.union(group))).collect()
        };
        let asked = self.upstreams(rib);
        asked.map(|(asker, of)| (asker, all(of))).collect()
    }

    /// Who asks for what of one group. Proxies are named that ask for nothing, and routes that
    /// may have: what they asked for before is to be left.
    pub(super) fn asked_of<'r>(
        &self,
        rib: &'r Rib,
        group: Group,
    ) -> Vec<(JoinOrigin<'r>, SourceFilter)> {
        let concerned = |asker: &JoinOrigin<'_>| match asker {
            JoinOrigin::Proxy(_) => true,
            JoinOrigin::Route(rule) => rule.group.net().contains(&group.addr()),
        };
        let asked = self.upstreams(rib).filter(|(asker, _)| concerned(asker));
        asked.map(|(asker, of)| (asker, of.union(group))).collect()
    }

    /// The groups to join of which something else is wanted than when this was last asked.
    pub(super) fn changed(&mut self) -> BTreeSet<Group> {
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
        let routes = self.routes.iter().filter_map(|(at, upstream)| {
            let rule = rib.rules.get(*at)?;
            Some((JoinOrigin::Route(rule), upstream))
        });
        proxies.chain(routes)
    }
}

/// Whether any link but this one brings packets of the rule.
fn comes_from_elsewhere(rule: &RouteRule, index: IfIndex, links: &Links) -> bool {
    links.matching(&rule.from).any(|from| from.index != index)
}
