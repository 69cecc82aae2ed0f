//! Joins of original streams: members behind a proxy join a translated stream, so the route that
//! translates has to join the stream as it arrives.

use std::collections::BTreeSet;

use crate::model::rule::JoinPolicy;
use crate::model::{Group, IfName, Link, Links, ProxyRule, RouteRule, Source, SourceFilter};

/// Returns whether a route translates packets towards the interface `downstream`.
pub fn translates_to(rule: &RouteRule, downstream: &IfName) -> bool {
    rule.translation.is_some() && rule.to.iter().any(|to| to.matches(downstream))
}

/// Returns the group and sources to join on the ingress of a route, so that the route can deliver
/// what members request of `group` with `filter`. `None` if the route sends nothing to the group.
///
/// Sources of an `Include` filter are translated back one by one. An `Exclude` filter becomes the
/// single source of the route if it has one, and otherwise an `Exclude` filter of the original
/// sources.
pub fn original_membership(
    rule: &RouteRule,
    group: Group,
    filter: &SourceFilter,
) -> Option<(Group, SourceFilter)> {
    let original_source = original_source(rule)?;
    let original = rule.translation?.inverse().apply_group(group)?;
    let filter = match filter {
        SourceFilter::Include(sources) => {
            SourceFilter::Include(sources.iter().filter_map(|s| original_source(*s)).collect())
        }
        SourceFilter::Exclude(sources) => {
            let mut excluded: BTreeSet<Source> =
                sources.iter().filter_map(|s| original_source(*s)).collect();
            match rule.source.single() {
                Some(only) if excluded.contains(&only) => SourceFilter::none(),
                Some(only) => SourceFilter::Include(BTreeSet::from([only])),
                // Routers ignore reports without a source in this range (RFC 4604 section 1).
                None if original.is_source_specific() => SourceFilter::none(),
                None => {
                    excluded.extend(rule.except_sources.iter().filter_map(|e| e.single()));
                    SourceFilter::Exclude(excluded)
                }
            }
        }
    };
    Some((original, filter))
}

/// Returns the part of a requested filter that a route delivers by translation, in the sources of
/// the request. `Exclude` filters are not reduced.
pub fn translated_part(rule: &RouteRule, filter: &SourceFilter) -> SourceFilter {
    match (original_source(rule), filter) {
        (Some(original_source), SourceFilter::Include(sources)) => {
            let translated = sources.iter().filter(|s| original_source(**s).is_some());
            SourceFilter::Include(translated.copied().collect())
        }
        _ => filter.clone(),
    }
}

/// Returns the part of a requested filter that a route does not deliver. A source prefix of the
/// route cannot be removed from an `Exclude` filter, because a filter cannot contain a prefix.
pub fn untranslated_part(rule: &RouteRule, group: Group, filter: SourceFilter) -> SourceFilter {
    let Some(translation) = rule.translation.filter(|r| r.changes_stream()) else {
        return filter;
    };
    let Some(original_source) = original_source(rule) else {
        return filter;
    };
    if translation.inverse().apply_group(group).is_none() {
        return filter;
    }
    match filter {
        SourceFilter::Include(mut sources) => {
            sources.retain(|source| original_source(*source).is_none());
            SourceFilter::Include(sources)
        }
        SourceFilter::Exclude(mut sources) => match rule.source.single() {
            Some(only) => {
                let new_source = translation.apply_source(only.addr());
                sources.extend(new_source.and_then(|addr| Source::new(addr).ok()));
                SourceFilter::Exclude(sources)
            }
            // The route delivers all sources of the group.
            None if rule.source.is_any() && translation.kind().keeps_ip_version() => {
                SourceFilter::none()
            }
            None => SourceFilter::Exclude(sources),
        },
    }
}

/// Returns a function from the source of an outgoing packet to its original source. The function
/// returns `None` for sources of packets that the route does not forward.
fn original_source(rule: &RouteRule) -> Option<impl Fn(Source) -> Option<Source>> {
    let inverse = rule.translation?.inverse();
    let except = &rule.except_sources;
    Some(move |source: Source| {
        let addr = inverse.apply_source(source.addr())?;
        let is_excepted = except.iter().any(|e| e.net().contains(&addr));
        Source::new(addr).ok().filter(|_| !is_excepted)
    })
}

/// Returns whether a route with a translation joins only what members request: its join policy is
/// [`JoinPolicy::Auto`], and all its egresses are downstream interfaces of proxies that accept the
/// new group.
pub fn joins_on_demand(rule: &RouteRule, proxies: &[ProxyRule], links: &Links) -> bool {
    let Some(translation) = rule.translation.filter(|_| rule.join == JoinPolicy::Auto) else {
        return false;
    };
    let first = Group::new(rule.group.net().network()).ok();
    let Some(new_group) = first.and_then(|group| translation.apply_group(group)) else {
        return false;
    };
    let accepts = |proxy: &&ProxyRule| proxy.accepts_group(new_group);
    let has_members = |link: &Link| {
        let proxy = proxies.iter().find(|p| is_downstream(p, &link.name));
        proxy.filter(accepts).is_some()
    };
    let mut egresses = links
        .iter()
        .filter(|link| rule.to.iter().any(|to| link.matches(to)) && !link.matches(&rule.from));
    match egresses.next() {
        Some(first) => has_members(first) && egresses.all(has_members),
        // No egress exists yet.
        None => rule.to.iter().all(|to| {
            let intersects = |p: &&ProxyRule| p.downstream.iter().any(|d| d.intersects(to));
            proxies.iter().find(intersects).filter(accepts).is_some()
        }),
    }
}

fn is_downstream(proxy: &ProxyRule, name: &IfName) -> bool {
    proxy.downstream.iter().any(|d| d.matches(name))
        && !proxy.upstream.iter().any(|u| u.matches(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{InterfaceId, TranslationRule};

    fn rule(
        (source, group): (&str, &str),
        (to_source, to_group): (Option<&str>, Option<&str>),
    ) -> RouteRule {
        let to = vec!["br0".parse().unwrap()];
        let mut rule = RouteRule::new("eth0".parse().unwrap(), group.parse().unwrap(), to);
        rule.source = source.parse().unwrap();
        let replacement = (
            to_source.map(|s| s.parse().unwrap()),
            to_group.map(|g| g.parse().unwrap()),
        );
        let translation = TranslationRule::new((rule.source, rule.group), replacement, None, false);
        rule.translation = Some(translation.unwrap());
        rule
    }

    fn sources(all: &[&str]) -> BTreeSet<Source> {
        all.iter().map(|s| s.parse().unwrap()).collect()
    }

    fn include(all: &[&str]) -> SourceFilter {
        SourceFilter::Include(sources(all))
    }

    fn exclude(all: &[&str]) -> SourceFilter {
        SourceFilter::Exclude(sources(all))
    }

    fn group(text: &str) -> Group {
        text.parse().unwrap()
    }

    /// Returns what the route joins on its ingress, and what the proxy joins upstream.
    fn joined_by_route_and_proxy(
        rule: &RouteRule,
        requested: &str,
        filter: SourceFilter,
    ) -> (Option<(String, String)>, String) {
        let joined = original_membership(rule, group(requested), &filter);
        let joined = joined.map(|(g, f)| (g.to_string(), f.to_string()));
        (
            joined,
            untranslated_part(rule, group(requested), filter).to_string(),
        )
    }

    #[track_caller]
    fn assert_joined(
        rule: &RouteRule,
        (requested, filter): (&str, SourceFilter),
        (original, original_filter): (&str, SourceFilter),
        by_proxy: SourceFilter,
    ) {
        let joined = Some((original.to_string(), original_filter.to_string()));
        let actual = joined_by_route_and_proxy(rule, requested, filter);
        assert_eq!(actual, (joined, by_proxy.to_string()));
    }

    #[test]
    fn included_sources_are_translated_back_one_by_one() {
        let one = rule(
            ("10.0.0.7", "232.1.1.1"),
            (Some("10.9.0.7"), Some("232.9.9.9")),
        );
        let requested = ("232.9.9.9", include(&["10.9.0.7", "10.9.0.8"]));
        assert_joined(
            &one,
            requested,
            ("232.1.1.1", include(&["10.0.0.7"])),
            include(&["10.9.0.8"]),
        );
        let other = joined_by_route_and_proxy(&one, "232.9.9.8", include(&["10.9.0.7"]));
        assert_eq!(other, (None, "include {10.9.0.7}".into()));
        let prefix = rule(
            ("10.0.0.0/24", "225.1.1.0/24"),
            (Some("10.9.0.0/24"), Some("239.9.9.0/24")),
        );
        let requested = ("239.9.9.4", include(&["10.9.0.7", "10.9.0.8", "10.8.0.1"]));
        assert_joined(
            &prefix,
            requested,
            ("225.1.1.4", include(&["10.0.0.7", "10.0.0.8"])),
            include(&["10.8.0.1"]),
        );
    }

    #[test]
    fn sources_are_translated_back_between_ip_versions() {
        let up = rule(
            ("10.0.0.0/24", "232.1.1.1"),
            (Some("fd00::/120"), Some("ff3e::9:1")),
        );
        assert_joined(
            &up,
            ("ff3e::9:1", include(&["fd00::7"])),
            ("232.1.1.1", include(&["10.0.0.7"])),
            include(&[]),
        );
        let down = rule(
            ("fd00::7", "ff3e::9:1"),
            (Some("10.0.0.7"), Some("232.1.1.1")),
        );
        assert_joined(
            &down,
            ("232.1.1.1", include(&["10.0.0.7"])),
            ("ff3e::9:1", include(&["fd00::7"])),
            include(&[]),
        );
    }

    #[test]
    fn exclude_filters_are_translated_back() {
        let any = rule(("0.0.0.0/0", "225.1.1.1"), (None, Some("239.9.9.9")));
        assert_joined(
            &any,
            ("239.9.9.9", exclude(&["10.0.0.7"])),
            ("225.1.1.1", exclude(&["10.0.0.7"])),
            include(&[]),
        );
        let one = rule(
            ("10.0.0.7", "225.1.1.1"),
            (Some("10.9.0.7"), Some("239.9.9.9")),
        );
        assert_joined(
            &one,
            ("239.9.9.9", exclude(&[])),
            ("225.1.1.1", include(&["10.0.0.7"])),
            exclude(&["10.9.0.7"]),
        );
        assert_joined(
            &one,
            ("239.9.9.9", exclude(&["10.9.0.7"])),
            ("225.1.1.1", include(&[])),
            exclude(&["10.9.0.7"]),
        );
        let prefix = rule(
            ("10.0.0.0/24", "225.1.1.1"),
            (Some("10.9.0.0/24"), Some("239.9.9.9")),
        );
        assert_joined(
            &prefix,
            ("239.9.9.9", exclude(&["10.9.0.1", "10.8.0.1"])),
            ("225.1.1.1", exclude(&["10.0.0.1"])),
            exclude(&["10.8.0.1", "10.9.0.1"]),
        );
        let specific = rule(("10.0.0.0/24", "232.1.1.1"), (None, Some("239.9.9.9")));
        let (joined, _) = joined_by_route_and_proxy(&specific, "239.9.9.9", exclude(&[]));
        assert_eq!(joined, Some(("232.1.1.1".into(), "include {}".into())));
    }

    #[test]
    fn proxy_joins_excepted_sources_and_translated_ports() {
        let mut any = rule(("0.0.0.0/0", "225.1.1.1"), (None, Some("239.9.9.9")));
        any.except_sources = vec!["10.0.0.7/32".parse().unwrap()];
        assert_joined(
            &any,
            ("239.9.9.9", include(&["10.0.0.7", "10.0.0.8"])),
            ("225.1.1.1", include(&["10.0.0.8"])),
            include(&["10.0.0.7"]),
        );
        assert_eq!(
            translated_part(&any, &include(&["10.0.0.7", "10.0.0.8"])),
            include(&["10.0.0.8"]),
            "excepted sources are not translated"
        );
        let stream = (any.source, any.group);
        let port = std::num::NonZeroU16::new(5001);
        any.translation = TranslationRule::new(stream, (None, None), port, false).ok();
        assert_joined(
            &any,
            ("225.1.1.1", include(&["10.0.0.8"])),
            ("225.1.1.1", include(&["10.0.0.8"])),
            include(&["10.0.0.8"]),
        );
    }

    #[test]
    fn route_to_downstreams_only_joins_on_demand() {
        let link =
            |i: u32, name: &str| Link::new(InterfaceId::new(i).unwrap(), name.parse().unwrap());
        let links: Links = [link(1, "eth0"), link(2, "br0"), link(3, "eth1")]
            .into_iter()
            .collect();
        let mut one = rule(("0.0.0.0/0", "225.1.1.1"), (None, Some("239.9.9.9")));
        let mut proxy = ProxyRule::new(vec!["eth0".parse().unwrap()], one.to.clone());
        let on_demand = |rule: &RouteRule, proxy: &ProxyRule, links: &Links| {
            joins_on_demand(rule, std::slice::from_ref(proxy), links)
        };
        assert!(on_demand(&one, &proxy, &links));
        assert!(
            on_demand(&one, &proxy, &Links::default()),
            "before the links exist"
        );
        assert!(!joins_on_demand(&one, &[], &links));
        for join in [JoinPolicy::Always, JoinPolicy::Never] {
            let with_policy = RouteRule {
                join,
                ..one.clone()
            };
            assert!(!on_demand(&with_policy, &proxy, &links));
        }
        proxy.deny_groups = vec!["239.0.0.0/8".parse().unwrap()];
        assert!(
            !on_demand(&one, &proxy, &links),
            "the proxy accepts no members"
        );
        proxy.deny_groups.clear();
        one.to.push("eth1".parse().unwrap());
        assert!(
            !on_demand(&one, &proxy, &links),
            "an egress without members always needs the stream"
        );
        one.to.pop();
        one.translation = None;
        assert!(!on_demand(&one, &proxy, &links));
    }
}
