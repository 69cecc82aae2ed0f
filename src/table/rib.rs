//! The routing information base: the configured rules, and the forwarding table built from them.
//!
//! Routing owns it. Settings fill it at the start and at each reload; commands change it. After
//! each change of links, or of many rules, [`Rib::fib_builder`] builds the next forwarding table.
//! After a change of one route, [`FibBuilder::apply`] changes the former one.

use std::collections::HashSet;
use std::sync::Arc;

use super::fib::Fib;
use super::fib_builder::FibBuilder;
use super::interface_options::InterfaceOptions;
use super::rib_error::RibError;
use super::route_conflicts::{refuse_conflicts, refuse_uncovered_merge};
use super::route_rules::{RouteChange, RouteRules};
use crate::model::rule::{MAX_EGRESSES, MAX_JOINED_GROUPS};
use crate::model::{
    GroupPrefix, IfPattern, JoinRule, Link, Links, MonitorRules, ProxyRule, RouteRule,
    SourcePrefix, TunnelInterface,
};

/// All rules and interface options.
#[derive(Debug, Clone, Default)]
pub struct Rib {
    /// The routes, in the configured order.
    pub rules: RouteRules,
    /// The interface options. See [`InterfaceOptions::of_link`] for those of one link.
    pub interfaces: Vec<InterfaceOptions>,
    /// Groups to join as a host, in addition to those that routes join.
    pub joins: Vec<JoinRule>,
    /// The proxies. An interface is downstream of the first proxy that names it.
    pub proxies: Vec<ProxyRule>,
    /// The interfaces that are no links of the kernel.
    pub tunnels: Vec<TunnelInterface>,
    /// The interfaces of discovery, whose messages are not forwarded by these rules.
    pub discovery: Vec<IfPattern>,
    /// What is monitored besides the routes and proxies that ask for it.
    pub monitoring: Arc<MonitorRules>,
}

impl Rib {
    /// Adds a route, or its egresses to the route with the same interface, source and group.
    ///
    /// # Errors
    /// The route is invalid or conflicts with another route. The rules are unchanged then.
    pub fn add(&mut self, rule: RouteRule) -> Result<RouteChange, RibError> {
        if rule.source.net().addr().is_ipv4() != rule.group.net().addr().is_ipv4() {
            return Err(RibError::MixedFamily(rule.source, rule.group));
        }
        let mut to = rule.to.clone();
        let existing = self.rules.find(&rule.from, rule.source, rule.group);
        if let Some(existing) = existing {
            to.splice(0..0, existing.to.iter().cloned());
        } else {
            let mut others = self.rules.with_streams(rule.source, rule.group);
            if let Some(other) = others.find(|r| r.is_ambiguous_with(&rule)) {
                return Err(RibError::Ambiguous(other.name.clone()));
            }
        }
        let mut seen = HashSet::new();
        to.retain(|t| seen.insert(t.clone()));
        if to.len() > MAX_EGRESSES {
            return Err(RibError::TooManyEgresses);
        }
        if let Some(existing) = existing
            && rule.translation.is_some()
            && existing.translation != rule.translation
        {
            return Err(RibError::OtherTranslation(existing.name.clone()));
        }
        let position = existing.and_then(|existing| self.rules.position(existing));
        let rule = match existing {
            Some(existing) => RouteRule {
                to,
                ..RouteRule::clone(existing)
            },
            None => RouteRule { to, ..rule },
        };
        // Routes conflict only because of a translation.
        if self.rules.has_translation() || rule.translation.is_some() {
            let mut all: Vec<&RouteRule> = self.rules.iter().collect();
            let at = position.unwrap_or(all.len());
            match all.get_mut(at) {
                Some(replaced) => *replaced = &rule,
                None => all.push(&rule),
            }
            refuse_conflicts(&all, &self.proxies, at)?;
        }
        let replaced = position.and_then(|position| self.rules.set(position, rule.clone()));
        Ok(replaced.unwrap_or_else(|| self.rules.push(rule)))
    }

    /// Checks that the route with the interface, source and group of `rule` has the translation of
    /// `rule`, if `rule` has one. Succeeds if there is no such route.
    pub fn check_translation_matches(&self, rule: &RouteRule) -> Result<(), RibError> {
        match self.rules.find(&rule.from, rule.source, rule.group) {
            Some(other) if rule.translation.is_some() && other.translation != rule.translation => {
                Err(RibError::TranslationMismatch(other.name.clone()))
            }
            _ => Ok(()),
        }
    }

    /// Removes egresses of a route, or the route if `to` is empty. A route that loses its last
    /// egress remains: it drops the packets that it matches.
    ///
    /// # Errors
    /// There is no such route or egress, or other routes would conflict without the route. The
    /// rules are unchanged then.
    pub fn remove(
        &mut self,
        from: &IfPattern,
        source: SourcePrefix,
        group: GroupPrefix,
        to: &[IfPattern],
    ) -> Result<RouteChange, RibError> {
        let no_such_route = || RibError::NoSuchRoute {
            from: from.clone(),
            source_prefix: source,
            group,
        };
        let found = self.rules.find(from, source, group);
        let found = found.ok_or_else(no_such_route)?;
        let position = self.rules.position(found).ok_or_else(no_such_route)?;
        if to.is_empty() {
            if self.rules.has_translation() {
                let others = self.rules.iter().enumerate();
                let others = others.filter(|(other, _)| *other != position);
                let others: Vec<&RouteRule> = others.map(|(_, rule)| rule).collect();
                refuse_uncovered_merge(&others, found)?;
            }
            return self.rules.remove(position).ok_or_else(no_such_route);
        }
        if let Some(unknown) = to.iter().find(|t| !found.to.contains(t)) {
            return Err(RibError::NoSuchEgress {
                route: found.name.clone(),
                egress: unknown.clone(),
                to: found.to.clone(),
            });
        }
        let mut rule = RouteRule::clone(found);
        rule.to.retain(|t| !to.contains(t));
        self.rules.set(position, rule).ok_or_else(no_such_route)
    }

    /// Adds a join.
    pub fn join(&mut self, join: JoinRule) -> Result<(), RibError> {
        if join.group.count() > MAX_JOINED_GROUPS {
            return Err(RibError::TooManyGroups(join.group));
        }
        if let Some(source) = join.source
            && source.addr().is_ipv4() != join.group.net().addr().is_ipv4()
        {
            let source = SourcePrefix::from(source);
            return Err(RibError::MixedFamily(source, join.group));
        }
        if self.joins.iter().any(|j| is_same_join(j, &join)) {
            return Err(RibError::AlreadyJoined);
        }
        self.joins.push(join);
        Ok(())
    }

    /// Removes a join.
    pub fn leave(&mut self, join: &JoinRule) -> Result<(), RibError> {
        let at = self.joins.iter().position(|j| is_same_join(j, join));
        let Some(at) = at else {
            return Err(self.not_joined(join));
        };
        self.joins.remove(at);
        Ok(())
    }

    /// Returns why a command cannot undo a join: a route joins the group, or nothing does.
    fn not_joined(&self, join: &JoinRule) -> RibError {
        let is_same_group = |implied: &JoinRule| {
            (implied.source, implied.group) == (join.source, join.group)
                && implied.interface.intersects(&join.interface)
        };
        let mut routes = self.rules.iter();
        let route = routes.find(|rule| rule.implied_join().as_ref().is_some_and(is_same_group));
        let join = Box::new(join.clone());
        match route {
            Some(route) => RibError::JoinedByRoute(join, route.name.clone()),
            None => RibError::NotJoined(join),
        }
    }

    /// Returns all names and patterns of interfaces in the rules and options.
    pub fn patterns(&self) -> impl Iterator<Item = &IfPattern> {
        let rules = self.rules.iter().flat_map(RouteRule::interface_patterns);
        let proxies = self.proxies.iter();
        let proxies = proxies.flat_map(|p| p.upstream.iter().chain(&p.downstream));
        let joins = self.joins.iter().map(|join| &join.interface);
        let options = self.interfaces.iter().map(|options| &options.name);
        let rules = rules.chain(proxies).chain(joins).chain(options);
        rules.chain(&self.discovery)
    }

    /// Returns the options of a link.
    pub fn options(&self, link: &Link) -> Option<&InterfaceOptions> {
        InterfaceOptions::of_link(&self.interfaces, link)
    }

    /// Returns the links that are not disabled.
    pub fn usable(&self, links: &Links) -> Links {
        links.filtered(|link| !self.options(link).is_some_and(|o| o.disabled))
    }

    /// Builds the forwarding table for `links`. The OIF table is empty;
    /// [`MembershipDatabase::rebuild`](super::MembershipDatabase::rebuild) fills it.
    pub fn build_fib(&self, links: &Links, generation: u64) -> Fib {
        self.fib_builder(links).build(generation)
    }

    /// Returns a builder with all rules, for `links`.
    pub fn fib_builder(&self, links: &Links) -> FibBuilder {
        let mut builder = FibBuilder::new(&self.interfaces, links, self.monitoring.clone());
        self.rules.iter().for_each(|rule| builder.add_route(rule));
        // Proxies without a downstream interface forward nothing. They come last, so that they do
        // not use up the number of proxies that an interface may have.
        let has_downstream = |proxy: &&ProxyRule| !links.matching_any(&proxy.downstream).is_empty();
        let (active, inactive): (Vec<_>, Vec<_>) = self.proxies.iter().partition(has_downstream);
        let proxies = active.into_iter().chain(inactive);
        proxies.for_each(|proxy| builder.add_proxy(proxy));
        self.joins.iter().for_each(|join| builder.add_join(join));
        builder.add_router_discovery();
        builder.add_captures();
        builder
    }
}

fn is_same_join(a: &JoinRule, b: &JoinRule) -> bool {
    (&a.interface, a.source, a.group) == (&b.interface, b.source, b.group)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{InterfaceId, JoinRule, LinkAddress, Origin, RouteName, TtlThreshold};
    use crate::table::ReportOptions;
    use crate::table::rib_change::RibChange;

    fn link(index: u32, name: &str) -> Link {
        Link::new(InterfaceId::new(index).unwrap(), name.parse().unwrap())
    }

    fn rule(from: &str, group: &str, to: &[&str]) -> RouteRule {
        let to = to.iter().map(|t| t.parse().unwrap()).collect();
        RouteRule {
            name: RouteName::new(from),
            ..RouteRule::new(from.parse().unwrap(), group.parse().unwrap(), to)
        }
    }

    #[test]
    fn patterns_match_existing_links_except_the_iif() {
        let links: Links = [link(1, "br-a"), link(2, "br-b"), link(3, "eth0")]
            .into_iter()
            .collect();
        let rib = Rib {
            rules: vec![rule("br-*", "225.1.2.3", &["br-*", "eth0", "eth*", "gone"])].into(),
            ..Rib::default()
        };
        let fib = rib.build_fib(&links, 1);
        let mut paths: Vec<_> = fib
            .paths
            .iter()
            .map(|p| {
                let oif = &fib.egresses[p.egress as usize];
                (p.iif.to_string(), oif.name.to_string())
            })
            .collect();
        paths.sort();
        let expected = [
            ("br-a", "br-b"),
            ("br-a", "eth0"),
            ("br-b", "br-a"),
            ("br-b", "eth0"),
        ];
        assert_eq!(paths, expected.map(|(i, o)| (i.into(), o.into())));
        assert_eq!(fib.egresses.len(), 3);
    }

    #[test]
    fn joins_have_a_largest_prefix() {
        let join = |group: &str| JoinRule {
            interface: "eth0".parse().unwrap(),
            source: None,
            group: group.parse().unwrap(),
            origin: Origin::Command,
        };
        let mut rib = Rib::default();
        assert_eq!(rib.join(join("239.1.0.0/20")), Ok(()));
        assert_eq!(rib.join(join("239.9.9.9")), Ok(()));
        let refused = rib.join(join("239.2.0.0/19"));
        assert_eq!(
            refused,
            Err(RibError::TooManyGroups("239.2.0.0/19".parse().unwrap()))
        );
    }

    /// Only a route that drops packets on purpose may match link-local groups without
    /// `link_local = true`.
    #[test]
    fn link_local_groups_need_permission() {
        let add = |group: &str, link_local: bool, allow_no_effect: bool| {
            let rule = RouteRule {
                link_local,
                ..rule("eth0", group, &["eth1"])
            };
            let change = RibChange::AddRoute {
                rule: Box::new(rule),
                allow_no_effect,
            };
            change.apply(&mut Rib::default()).is_ok()
        };
        assert!(!add("224.0.0.5", false, false));
        assert!(add("224.0.0.5", true, false));
        assert!(add("224.0.0.5", false, true));
        assert!(add("225.0.0.5", false, false));
    }

    #[test]
    fn packets_return_only_to_an_ingress_named_in_to() {
        let links: Links = [link(1, "wlan0"), link(2, "wlan1")].into_iter().collect();
        let egresses = |from: &str, to: &[&str]| {
            let rule = rule(from, "225.1.2.3", to);
            let names = rule.ingresses(&links).flat_map(|iif| {
                let egresses = rule.egresses(iif.index, &links).into_iter();
                egresses.map(move |oif| format!("{} {}", iif.name, oif.name))
            });
            names.collect::<Vec<_>>()
        };
        assert_eq!(egresses("wlan1", &["wlan1"]), ["wlan1 wlan1"]);
        let both = ["wlan1 wlan0", "wlan1 wlan1"];
        assert_eq!(egresses("wlan1", &["wlan0", "wlan1"]), both);
        assert_eq!(egresses("wlan1", &["wlan*"]), ["wlan1 wlan0"]);
        assert_eq!(egresses("wlan*", &["wlan1"]), ["wlan0 wlan1"]);
        let across = ["wlan0 wlan1", "wlan1 wlan0"];
        assert_eq!(egresses("wlan*", &["wlan*"]), across);
    }

    #[test]
    fn interface_options_by_name_override_patterns() {
        let option = |name: &str, ttl| InterfaceOptions {
            name: name.parse().unwrap(),
            ttl_threshold: TtlThreshold::new(ttl),
            mrdisc: None,
            reports: ReportOptions::default(),
            disabled: false,
            capture: false,
            kernel_forwarding: Default::default(),
            bandwidth: None,
        };
        let rib = Rib {
            rules: vec![].into(),
            interfaces: vec![option("eth*", 8), option("eth0", 3)],
            ..Rib::default()
        };
        let ttl_threshold = |name| rib.options(&link(1, name)).and_then(|o| o.ttl_threshold);
        assert_eq!(ttl_threshold("eth0"), TtlThreshold::new(3));
        assert_eq!(ttl_threshold("eth1"), TtlThreshold::new(8));
        assert_eq!(ttl_threshold("br0"), None);
    }

    #[test]
    fn route_without_egress_has_an_entry() {
        let links: Links = [link(1, "eth0")].into_iter().collect();
        let rib = Rib {
            rules: vec![rule("eth0", "225.1.2.3", &["eth1"])].into(),
            ..Rib::default()
        };
        let fib = rib.build_fib(&links, 1);
        assert_eq!(fib.ingresses.len(), 1);
        assert!(fib.paths.is_empty());
    }

    #[test]
    fn capture_option_makes_an_ingress_without_routes() {
        let links: Links = [link(1, "eth0"), link(2, "eth1")].into_iter().collect();
        let rib = Rib {
            interfaces: vec![InterfaceOptions {
                name: "eth1".parse().unwrap(),
                ttl_threshold: None,
                mrdisc: None,
                disabled: false,
                capture: true,
                kernel_forwarding: Default::default(),
                bandwidth: None,
                reports: ReportOptions::default(),
            }],
            ..Rib::default()
        };
        let fib = rib.build_fib(&links, 1);
        let captured: Vec<_> = fib.ingresses.keys().map(|index| index.get()).collect();
        assert_eq!(captured, [2]);
    }

    #[test]
    fn add_extends_same_route_and_refuses_ambiguous_ones() {
        let mut rib = Rib::default();
        rib.add(rule("eth0", "225.1.2.3", &["eth1"])).unwrap();
        rib.add(rule("eth0", "225.1.2.3", &["eth2", "eth1"]))
            .unwrap();
        assert_eq!(rib.rules.len(), 1);
        assert_eq!(rib.rules[0].to.len(), 2);
        let refused = |rib: &mut Rib, r| rib.add(r).unwrap_err();
        assert!(matches!(
            refused(&mut rib, rule("eth*", "225.1.2.3", &["br0"])),
            RibError::Ambiguous(_)
        ));
        assert_eq!(rib.rules.len(), 1);
    }

    fn translating(from: &str, group: &str, to: &[&str], new_group: &str) -> RouteRule {
        use crate::model::TranslationRule;
        let mut r = rule(from, group, to);
        let replacement = (None, Some(new_group.parse().unwrap()));
        r.translation = TranslationRule::new((r.source, r.group), replacement, None, false).ok();
        assert!(r.translation.is_some());
        r
    }

    #[test]
    fn translations_that_merge_streams_or_loop_are_refused() {
        let mut rib = Rib::default();
        let first = translating("eth0", "225.1.2.3", &["eth1"], "239.1.1.1");
        rib.add(first.clone()).unwrap();
        let mut refused = |r: RouteRule| {
            let before = rib.rules.clone();
            let error = rib.add(r).unwrap_err();
            assert_eq!(rib.rules, before);
            error
        };
        let second = translating("eth0", "225.1.2.4", &["eth1"], "239.1.1.1");
        assert!(matches!(refused(second), RibError::MergesStreams(..)));
        let plain = rule("eth2", "239.1.1.1", &["eth*"]);
        assert!(matches!(refused(plain), RibError::MergesStreams(..)));
        let back = translating("eth1", "239.1.1.1", &["eth0"], "225.1.2.3");
        assert!(matches!(refused(back), RibError::TranslationLoop(_)));
        let other = translating("eth0", "225.1.2.3", &["eth2"], "239.1.1.2");
        assert!(matches!(refused(other), RibError::OtherTranslation(_)));
        // Egresses are added to the same route, named with its translation or without.
        rib.add(rule("eth0", "225.1.2.3", &["eth2"])).unwrap();
        let again = translating("eth0", "225.1.2.3", &["eth3"], "239.1.1.1");
        rib.add(again).unwrap();
        assert_eq!((rib.rules.len(), rib.rules[0].to.len()), (1, 3));
        assert_eq!(rib.rules[0].translation, first.translation);
    }

    #[test]
    fn refused_commands_name_the_route_and_what_it_has() {
        let mut rib = Rib::default();
        rib.add(rule("eth0", "225.1.2.3", &["eth1", "eth2"]))
            .unwrap();
        let r = rib.rules[0].clone();
        let unknown = ["eth7".parse().unwrap()];
        let error = rib.remove(&r.from, r.source, r.group, &unknown);
        assert_eq!(
            error.unwrap_err().to_string(),
            "route \"eth0\" does not send to eth7; it sends to eth1 eth2"
        );
        let mut join = r.implied_join().unwrap();
        assert_eq!(
            rib.leave(&join).unwrap_err().to_string(),
            "eth0 (*, 225.1.2.3) is joined by route \"eth0\"; remove the route, or \
             set join = false in it"
        );
        join.interface = "eth1".parse().unwrap();
        assert_eq!(
            rib.leave(&join).unwrap_err().to_string(),
            "eth1 (*, 225.1.2.3) is not joined by [[join]] or `mcastor join`; `mcastor show groups` \
             lists the joined groups"
        );
    }

    #[test]
    fn remove_without_egresses_removes_the_route() {
        let mut rib = Rib::default();
        rib.add(rule("eth0", "225.1.2.3", &["eth1", "eth2"]))
            .unwrap();
        let (from, r) = ("eth0".parse().unwrap(), rib.rules[0].clone());
        let to = |n: &str| vec![n.parse::<IfPattern>().unwrap()];
        rib.remove(&from, r.source, r.group, &to("eth1")).unwrap();
        assert_eq!(
            rib.remove(&from, r.source, r.group, &to("eth1")),
            Err(RibError::NoSuchEgress {
                route: r.name.clone(),
                egress: "eth1".parse().unwrap(),
                to: to("eth2"),
            })
        );
        rib.remove(&from, r.source, r.group, &to("eth2")).unwrap();
        assert_eq!(rib.rules.len(), 1);
        rib.remove(&from, r.source, r.group, &[]).unwrap();
        assert!(rib.rules.is_empty());
        assert!(matches!(
            rib.remove(&from, r.source, r.group, &[]),
            Err(RibError::NoSuchRoute { .. })
        ));
    }

    #[test]
    fn route_that_prevents_a_merge_is_not_removed() {
        let mut rib = Rib::default();
        for rule in [
            rule("up0", "239.1.1.1", &["up1"]),
            rule("up0", "239.0.0.0/8", &["br0"]),
            translating("up0", "225.1.2.3", &["br0"], "239.1.1.1"),
        ] {
            rib.add(rule).unwrap();
        }
        let up0: IfPattern = "up0".parse().unwrap();
        let mut remove = |group: &str| {
            let group: GroupPrefix = group.parse().unwrap();
            rib.remove(&up0, SourcePrefix::any_for(group), group, &[])
        };
        assert!(matches!(
            remove("239.1.1.1"),
            Err(RibError::PreventsMerge(..))
        ));
        remove("225.1.2.3").unwrap();
        remove("239.1.1.1").unwrap();
    }

    #[test]
    fn proxies_beyond_the_limit_are_reported_as_skipped() {
        let proxy = |n: u32| {
            let names = |name: &str| vec![name.parse().unwrap()];
            let proxy = ProxyRule::new(names("up0"), names(&format!("d{n}")));
            ProxyRule {
                name: RouteName::new(format!("p{n}")),
                ..proxy
            }
        };
        let rib = Rib {
            proxies: (0..66).map(proxy).collect(),
            ..Rib::default()
        };
        let up0 = || link(1, "up0");
        let links: Links = [up0(), link(2, "d65")].into_iter().collect();
        let fib = rib.build_fib(&links, 1);
        let proxies = &fib.ingresses[&up0().index].proxies;
        assert_eq!(proxies[0].proxy.name.as_str(), "p65");
        let all = (0..66).map(|n| link(n + 2, &format!("d{n}")));
        let links: Links = all.chain([up0()]).collect();
        let skipped = rib.build_fib(&links, 2).skipped_proxies;
        let skipped: Vec<_> = skipped.iter().map(|(p, i)| format!("{p} {i}")).collect();
        assert_eq!(skipped, ["p64 up0", "p65 up0"]);
    }

    #[test]
    fn joins_answer_queries_and_egresses_have_subnets() {
        let mut links: Links = [link(1, "eth0"), link(2, "eth1")].into_iter().collect();
        let address = LinkAddress {
            address: [10, 0, 1, 1].into(),
            on_link: "10.0.1.1/24".parse().unwrap(),
        };
        links.insert_address(InterfaceId::new(2).unwrap(), address);
        let join = JoinRule {
            interface: "eth1".parse().unwrap(),
            source: None,
            group: "225.1.2.3".parse().unwrap(),
            origin: Origin::Settings,
        };
        let mut rib = Rib {
            rules: vec![rule("eth0", "225.1.2.3", &["eth1"])].into(),
            ..Rib::default()
        };
        let answers = |rib: &Rib| {
            let fib = rib.build_fib(&links, 1);
            let ingress = fib.ingresses.get(&InterfaceId::new(2).unwrap());
            let subnets = fib.egresses[0].subnets.clone();
            assert_eq!(subnets, ["10.0.1.0/24".parse().unwrap()]);
            ingress.is_some_and(|ingress| ingress.answers_queries)
        };
        assert!(!answers(&rib));
        rib.joins.push(join);
        assert!(answers(&rib));
    }
}
