//! Joins through routes that translation: hosts behind a proxy ask for what a route makes of a
//! stream, and the stream as it comes is what has to be joined.

use std::collections::BTreeSet;

use crate::model::rule::JoinPolicy;
use crate::model::{Group, IfName, Link, Links, ProxyRule, RouteRule, Source, SourceFilter};

/// Whether a rule rewrites what it sends out of `downstream`.
pub fn rewrites_to(rule: &RouteRule, downstream: &IfName) -> bool {
    rule.translation.is_some() && rule.to.iter().any(|to| to.matches(downstream))
}

/// Of what hosts ask for, the part that a rule makes of other streams, told as those streams.
/// `None` where the rule sends nothing to the group.
///
/// Each source is told back by itself. All sources but some are, where the rule takes a single
/// source, that one; where it takes more, all but those some.
pub fn original(
    rule: &RouteRule,
    group: Group,
    filter: &SourceFilter,
) -> Option<(Group, SourceFilter)> {
    let came = source_that_came(rule)?;
    let original = rule.translation?.inverse().apply_group(group)?;
    let filter = match filter {
        SourceFilter::Include(sources) => {
            SourceFilter::Include(sources.iter().filter_map(|s| came(*s)).collect())
        }
        SourceFilter::Exclude(sources) => {
            let mut but: BTreeSet<Source> = sources.iter().filter_map(|s| came(*s)).collect();
            match rule.source.single() {
                Some(only) if but.contains(&only) => SourceFilter::none(),
                Some(only) => SourceFilter::Include(BTreeSet::from([only])),
                // Reports that name no source are ignored there (RFC 4604 section 1).
                None if original.is_source_specific() => SourceFilter::none(),
                None => {
                    but.extend(rule.except_sources.iter().filter_map(|e| e.single()));
                    SourceFilter::Exclude(but)
                }
            }
        }
    };
    Some((original, filter))
}

/// Of what hosts ask for, the part that a rule makes of other streams, as they ask for it. Of
/// sources to include, others may come as they are, or not at all.
pub fn made_by(rule: &RouteRule, filter: &SourceFilter) -> SourceFilter {
    match (source_that_came(rule), filter) {
        (Some(came), SourceFilter::Include(sources)) => {
            let made = sources.iter().filter(|s| came(**s).is_some());
            SourceFilter::Include(made.copied().collect())
        }
        _ => filter.clone(),
    }
}

/// Of what hosts ask for, what has still to come from elsewhere, the rule having its part. Of
/// all sources but some, those of a prefix cannot be left out: a filter cannot name it.
pub fn remainder(rule: &RouteRule, group: Group, filter: SourceFilter) -> SourceFilter {
    let Some(translation) = rule.translation.filter(|r| r.changes_stream()) else {
        return filter;
    };
    let Some(came) = source_that_came(rule) else {
        return filter;
    };
    if translation.inverse().apply_group(group).is_none() {
        return filter;
    }
    match filter {
        SourceFilter::Include(mut sources) => {
            sources.retain(|source| came(*source).is_none());
            SourceFilter::Include(sources)
        }
        SourceFilter::Exclude(mut sources) => match rule.source.single() {
            Some(only) => {
                let becomes = translation.apply_source(only.addr());
                sources.extend(becomes.and_then(|addr| Source::new(addr).ok()));
                SourceFilter::Exclude(sources)
            }
            // Whoever sends to the group, the rule makes it.
            None if rule.source.is_any() && translation.family().stays() => SourceFilter::none(),
            None => SourceFilter::Exclude(sources),
        },
    }
}

/// The source a packet had that leaves with this one.
fn source_that_came(rule: &RouteRule) -> Option<impl Fn(Source) -> Option<Source>> {
    let back = rule.translation?.inverse();
    let except = &rule.except_sources;
    Some(move |source: Source| {
        let addr = back.apply_source(source.addr())?;
        let excepted = except.iter().any(|e| e.net().contains(&addr));
        Source::new(addr).ok().filter(|_| !excepted)
    })
}

/// Whether a rule that rewrites joins only what is asked for: all it sends to is downstream of
/// a proxy that takes reports for it, and its join policy leaves it open.
pub fn waits_for_members(rule: &RouteRule, proxies: &[ProxyRule], links: &Links) -> bool {
    let Some(translation) = rule.translation.filter(|_| rule.join == JoinPolicy::Auto) else {
        return false;
    };
    let first = Group::new(rule.group.net().network()).ok();
    let Some(becomes) = first.and_then(|group| translation.apply_group(group)) else {
        return false;
    };
    let takes = |proxy: &&ProxyRule| proxy.accepts_group(becomes);
    let behind = |link: &Link| {
        let downstream = |p: &ProxyRule| is_downstream(p, &link.name);
        let proxy = proxies.iter().find(|p| downstream(p));
        proxy.filter(takes).is_some()
    };
    let mut egresses = links.iter().filter(|link| {
        rule.to.iter().any(|to| to.matches(&link.name)) && !rule.from.matches(&link.name)
    });
    match egresses.next() {
        Some(first) => behind(first) && egresses.all(behind),
        // None is there yet.
        None => rule.to.iter().all(|to| {
            let meets = |p: &&ProxyRule| p.downstream.iter().any(|d| d.intersects(to));
            proxies.iter().find(meets).filter(takes).is_some()
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
        let becomes = (
            to_source.map(|s| s.parse().unwrap()),
            to_group.map(|g| g.parse().unwrap()),
        );
        let translation = TranslationRule::new((rule.source, rule.group), becomes, None, false);
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

    /// What is joined where the route takes packets from, and what the proxy still joins.
    fn both(
        rule: &RouteRule,
        asked: &str,
        filter: SourceFilter,
    ) -> (Option<(String, String)>, String) {
        let joined = original(rule, group(asked), &filter);
        let joined = joined.map(|(g, f)| (g.to_string(), f.to_string()));
        (joined, remainder(rule, group(asked), filter).to_string())
    }

    fn is(
        rule: &RouteRule,
        (asked, filter): (&str, SourceFilter),
        (original, of): (&str, SourceFilter),
        rest: SourceFilter,
    ) {
        let joined = Some((original.to_string(), of.to_string()));
        assert_eq!(both(rule, asked, filter), (joined, rest.to_string()));
    }

    #[test]
    fn each_source_is_told_back_by_itself() {
        let one = rule(
            ("10.0.0.7", "232.1.1.1"),
            (Some("10.9.0.7"), Some("232.9.9.9")),
        );
        let asked = ("232.9.9.9", include(&["10.9.0.7", "10.9.0.8"]));
        is(
            &one,
            asked,
            ("232.1.1.1", include(&["10.0.0.7"])),
            include(&["10.9.0.8"]),
        );
        let other = both(&one, "232.9.9.8", include(&["10.9.0.7"]));
        assert_eq!(other, (None, "include {10.9.0.7}".into()));
        let prefix = rule(
            ("10.0.0.0/24", "225.1.1.0/24"),
            (Some("10.9.0.0/24"), Some("239.9.9.0/24")),
        );
        let asked = ("239.9.9.4", include(&["10.9.0.7", "10.9.0.8", "10.8.0.1"]));
        is(
            &prefix,
            asked,
            ("225.1.1.4", include(&["10.0.0.7", "10.0.0.8"])),
            include(&["10.8.0.1"]),
        );
    }

    #[test]
    fn across_ip_versions_too() {
        let up = rule(
            ("10.0.0.0/24", "232.1.1.1"),
            (Some("fd00::/120"), Some("ff3e::9:1")),
        );
        is(
            &up,
            ("ff3e::9:1", include(&["fd00::7"])),
            ("232.1.1.1", include(&["10.0.0.7"])),
            include(&[]),
        );
        let down = rule(
            ("fd00::7", "ff3e::9:1"),
            (Some("10.0.0.7"), Some("232.1.1.1")),
        );
        is(
            &down,
            ("232.1.1.1", include(&["10.0.0.7"])),
            ("ff3e::9:1", include(&["fd00::7"])),
            include(&[]),
        );
    }

    #[test]
    fn all_sources_but_some() {
        let any = rule(("0.0.0.0/0", "225.1.1.1"), (None, Some("239.9.9.9")));
        is(
            &any,
            ("239.9.9.9", exclude(&["10.0.0.7"])),
            ("225.1.1.1", exclude(&["10.0.0.7"])),
            include(&[]),
        );
        let one = rule(
            ("10.0.0.7", "225.1.1.1"),
            (Some("10.9.0.7"), Some("239.9.9.9")),
        );
        is(
            &one,
            ("239.9.9.9", exclude(&[])),
            ("225.1.1.1", include(&["10.0.0.7"])),
            exclude(&["10.9.0.7"]),
        );
        is(
            &one,
            ("239.9.9.9", exclude(&["10.9.0.7"])),
            ("225.1.1.1", include(&[])),
            exclude(&["10.9.0.7"]),
        );
        let prefix = rule(
            ("10.0.0.0/24", "225.1.1.1"),
            (Some("10.9.0.0/24"), Some("239.9.9.9")),
        );
        is(
            &prefix,
            ("239.9.9.9", exclude(&["10.9.0.1", "10.8.0.1"])),
            ("225.1.1.1", exclude(&["10.0.0.1"])),
            exclude(&["10.8.0.1", "10.9.0.1"]),
        );
        let specific = rule(("10.0.0.0/24", "232.1.1.1"), (None, Some("239.9.9.9")));
        let (joined, _) = both(&specific, "239.9.9.9", exclude(&[]));
        assert_eq!(joined, Some(("232.1.1.1".into(), "include {}".into())));
    }

    #[test]
    fn excepted_sources_and_other_ports_stay_with_the_proxy() {
        let mut any = rule(("0.0.0.0/0", "225.1.1.1"), (None, Some("239.9.9.9")));
        any.except_sources = vec!["10.0.0.7/32".parse().unwrap()];
        is(
            &any,
            ("239.9.9.9", include(&["10.0.0.7", "10.0.0.8"])),
            ("225.1.1.1", include(&["10.0.0.8"])),
            include(&["10.0.0.7"]),
        );
        assert_eq!(
            made_by(&any, &include(&["10.0.0.7", "10.0.0.8"])),
            include(&["10.0.0.8"]),
            "what it makes of others, and no more"
        );
        let stream = (any.source, any.group);
        let port = std::num::NonZeroU16::new(5001);
        any.translation = TranslationRule::new(stream, (None, None), port, false).ok();
        is(
            &any,
            ("225.1.1.1", include(&["10.0.0.8"])),
            ("225.1.1.1", include(&["10.0.0.8"])),
            include(&["10.0.0.8"]),
        );
    }

    #[test]
    fn a_route_to_downstreams_alone_waits_for_members() {
        let link =
            |i: u32, name: &str| Link::new(InterfaceId::new(i).unwrap(), name.parse().unwrap());
        let links: Links = [link(1, "eth0"), link(2, "br0"), link(3, "eth1")]
            .into_iter()
            .collect();
        let mut one = rule(("0.0.0.0/0", "225.1.1.1"), (None, Some("239.9.9.9")));
        let mut proxy = ProxyRule::new(vec!["eth0".parse().unwrap()], one.to.clone());
        let waits = |rule: &RouteRule, proxy: &ProxyRule, links: &Links| {
            waits_for_members(rule, std::slice::from_ref(proxy), links)
        };
        assert!(waits(&one, &proxy, &links));
        assert!(waits(&one, &proxy, &Links::default()), "before they come");
        assert!(!waits_for_members(&one, &[], &links));
        for join in [JoinPolicy::Always, JoinPolicy::Never] {
            let told = RouteRule {
                join,
                ..one.clone()
            };
            assert!(!waits(&told, &proxy, &links));
        }
        proxy.deny_groups = vec!["239.0.0.0/8".parse().unwrap()];
        assert!(!waits(&one, &proxy, &links), "nobody can ask");
        proxy.deny_groups.clear();
        one.to.push("eth1".parse().unwrap());
        assert!(!waits(&one, &proxy, &links), "another waits for it anyway");
        one.to.pop();
        one.translation = None;
        assert!(!waits(&one, &proxy, &links));
    }
}
