//! Checks of `[[proxy]]`: each proxy, then the proxies against each other.

use std::time::Duration;

use super::addresses::{parse_group, parse_source};
use super::checker::{Checker, default_boolean};
use super::key_path::KeyPath;
use super::monitor::check_monitor_kind;
use super::raw::{RawProxy, RawProxyLimits, RawProxyTimers, RawTable, RawVersions};
use super::routes::check_fragment_policy;
use crate::model::{
    GroupPrefix, HeaderChecks, IfPattern, MAX_PROXIES, MembershipLimits, ProxyRule, QuerierPolicy,
    QuerierTimers, SourcePrefix, Versions,
};

/// Checks all proxies. Returns those that could be built; problems go to `checker`.
pub(super) fn check_proxies(
    checker: &mut Checker<'_>,
    raw: impl Iterator<Item = Option<RawProxy>>,
) -> Vec<ProxyRule> {
    let mut proxies: Vec<(usize, ProxyRule)> = Vec::new();
    for (index, raw) in raw.enumerate() {
        let Some(raw) = raw else { continue };
        let path = KeyPath::root("proxy").index(index);
        if let Some(proxy) = check_proxy(checker, &path, raw) {
            refuse_shared_downstream(checker, &path, &proxy, &proxies);
            refuse_equal_name(checker, &path, &proxy, &proxies);
            refuse_excess_proxies(checker, &path, &proxy, &proxies);
            proxies.push((index, proxy));
        }
    }
    proxies.into_iter().map(|(_, proxy)| proxy).collect()
}

fn check_proxy(checker: &mut Checker<'_>, path: &KeyPath, raw: RawProxy) -> Option<ProxyRule> {
    let downstream = checker.required(raw.downstream, path, "downstream");
    let upstream = match raw.upstream {
        None => Some(vec![IfPattern::default_route()]),
        Some(list) => check_names(checker, &path.key("upstream"), list),
    };
    let downstream =
        downstream.and_then(|list| check_names(checker, &path.key("downstream"), list));
    if let Some(at) = downstream
        .iter()
        .flatten()
        .position(|name| name.as_str() == "lo")
    {
        checker.refuse(
            &path.key("downstream").index(at),
            "\"lo\", the loopback interface",
            "an interface with hosts",
            "Programs on this machine join on the upstream interface, where the kernel delivers \
             the stream without a proxy.",
        );
    }
    if let (Some(upstream), Some(downstream)) = (&upstream, &downstream) {
        refuse_upstream_as_downstream(checker, path, upstream, downstream);
    }
    let groups = check_groups(checker, &path.key("groups"), raw.groups);
    let deny_groups = check_groups(checker, &path.key("deny_groups"), raw.deny_groups);
    let sources = check_sources(checker, &path.key("sources"), raw.sources);
    let deny_sources = check_sources(checker, &path.key("deny_sources"), raw.deny_sources);
    let policies = [
        ("auto", QuerierPolicy::Auto),
        ("on", QuerierPolicy::On),
        ("off", QuerierPolicy::Off),
    ];
    let querier = checker.word(&path.key("querier"), raw.querier, &policies);
    let checks = [
        ("standard", HeaderChecks::Standard),
        ("strict", HeaderChecks::Strict),
        ("lenient", HeaderChecks::Lenient),
    ];
    let header_checks = checker.word(&path.key("header_checks"), raw.header_checks, &checks);
    let ttl = checker.ttl_policy(&path.key("ttl"), raw.ttl);
    let fragment = check_fragment_policy(checker, path, raw.fragment);
    let version = check_versions(checker, &path.key("version"), raw.version);
    let takeover = checker.duration_or_default(&path.key("takeover"), raw.takeover);
    let monitor = check_monitor_kind(checker, &path.key("monitor"), raw.monitor);
    let timers = check_timers(checker, &path.key("timers"), raw.timers);
    let limits = check_limits(checker, &path.key("limits"), raw.limits);
    let name = checker.metrics_name(&path.key("name"), raw.name.as_deref(), "proxy eth0");
    let proxy = ProxyRule::new(upstream?, downstream?);
    let flag = |value: Option<bool>, name| value.unwrap_or(default_boolean(&path.key(name)));
    Some(ProxyRule {
        name: name.unwrap_or_else(|| proxy.name.clone()),
        upward: flag(raw.upward, "upward"),
        fast_leave: flag(raw.fast_leave, "fast_leave"),
        link_local_sources: flag(raw.link_local_sources, "link_local_sources"),
        fragment,
        any_source_in_ssm: flag(raw.any_source_in_ssm, "any_source_in_ssm"),
        querier,
        version,
        groups,
        deny_groups,
        sources,
        deny_sources,
        ttl: ttl?,
        header_checks,
        timers,
        limits,
        takeover,
        redundant: raw
            .redundant
            .unwrap_or(default_boolean(&path.key("redundant"))),
        monitor,
        ..proxy
    })
}

/// Checks the upstream or downstream interfaces of a proxy.
fn check_names(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    raw: Vec<Option<String>>,
) -> Option<Vec<IfPattern>> {
    let help = "List interfaces or patterns such as \"br-*\". They need not exist yet.";
    checker.patterns(path, raw, help, |_, _, _| true)
}

/// Refuses a name that is upstream and downstream of the same proxy.
///
/// A downstream pattern may match an upstream name: that interface is upstream only.
fn refuse_upstream_as_downstream(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    upstream: &[IfPattern],
    downstream: &[IfPattern],
) {
    for (n, down) in downstream.iter().enumerate() {
        let overlaps = |up: &IfPattern| {
            up.intersects(down) && (!down.is_pattern() || (up.is_pattern() && up == down))
        };
        let Some(index) = upstream.iter().position(overlaps) else {
            continue;
        };
        let texts = (
            format!(
                "\"{down}\", which `upstream` = \"{}\" includes too",
                upstream[index]
            ),
            "an interface that is not upstream",
            "Streams arrive on upstream interfaces, and hosts are on downstream interfaces. Keep \
             the interface in one of the lists.",
        );
        let related = path.key("upstream").index(index);
        let path = path.key("downstream").index(n);
        checker.refuse_related(&path, texts, (&related, "upstream here"));
    }
}

/// Refuses an interface that is downstream of two proxies.
fn refuse_shared_downstream(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    proxy: &ProxyRule,
    others: &[(usize, ProxyRule)],
) {
    for (n, down) in proxy.downstream.iter().enumerate() {
        let found = others.iter().find_map(|(index, other)| {
            let entry = other.downstream.iter().position(|d| d.intersects(down))?;
            Some((*index, entry, other))
        });
        let Some((index, entry, other)) = found else {
            continue;
        };
        let proxies = KeyPath::root("proxy");
        let first = proxies.index(index).key("downstream").index(entry);
        let texts = (
            format!("\"{down}\", which is downstream of another proxy"),
            "an interface of one proxy only",
            format!(
                "\"{}\" in {} includes it already. Merge the two into one [[proxy]] with all \
                 upstream names.",
                other.name,
                checker.sources.value(&first).short()
            ),
        );
        let path = path.key("downstream").index(n);
        checker.refuse_related(&path, texts, (&first, "the first"));
    }
}

/// Refuses a proxy with the name of an earlier one.
fn refuse_equal_name(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    proxy: &ProxyRule,
    others: &[(usize, ProxyRule)],
) {
    let is_equal = |other: &&(usize, ProxyRule)| other.1.name == proxy.name;
    if let Some((index, _)) = others.iter().find(is_equal) {
        let first = KeyPath::root("proxy").index(*index);
        let location = checker.sources.value(&first).short();
        checker.refuse(
            path,
            format!("the name \"{}\" for the second time", proxy.name),
            "a different name for each proxy",
            format!(
                "The first is in {location}. The name is the label of the proxy in metrics. Set \
                 one: name = \"cameras\"."
            ),
        );
    }
}

/// Refuses an interface that is upstream of more than [`MAX_PROXIES`] proxies.
fn refuse_excess_proxies(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    proxy: &ProxyRule,
    others: &[(usize, ProxyRule)],
) {
    for (n, up) in proxy.upstream.iter().enumerate() {
        let same = others.iter().filter(|(_, o)| o.upstream.contains(up));
        if same.count() >= MAX_PROXIES {
            checker.refuse(
                &path.key("upstream").index(n),
                format!("\"{up}\", which is upstream of {MAX_PROXIES} proxies already"),
                "an interface of fewer proxies",
                "Merge the downstream interfaces into one [[proxy]]: each of them still receives \
                 only what its own hosts join.",
            );
        }
    }
}

fn check_groups(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    raw: Option<Vec<Option<String>>>,
) -> Vec<GroupPrefix> {
    let texts = raw.into_iter().flatten().enumerate();
    let mut groups = Vec::new();
    for (n, text) in texts {
        groups.extend(text.and_then(|text| parse_group(checker, &path.index(n), &text)));
    }
    groups
}

fn check_sources(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    raw: Option<Vec<Option<String>>>,
) -> Vec<SourcePrefix> {
    let texts = raw.into_iter().flatten().enumerate();
    let mut sources = Vec::new();
    for (n, text) in texts {
        sources.extend(text.and_then(|text| parse_source(checker, &path.index(n), &text, None)));
    }
    sources
}

fn check_versions(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    raw: Option<RawTable<RawVersions>>,
) -> Versions {
    let raw = raw.map(|table| table.0).unwrap_or_default();
    let help = "3 supports hosts of all versions.";
    let igmp = checker.integer_or_default(&path.key("igmp"), raw.igmp, help);
    let help = "2 supports hosts of both versions.";
    let mld = checker.integer_or_default(&path.key("mld"), raw.mld, help);
    Versions {
        igmp: igmp as u8,
        mld: mld as u8,
    }
}

fn check_limits(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    raw: Option<RawTable<RawProxyLimits>>,
) -> MembershipLimits {
    let raw = raw.map(|table| table.0).unwrap_or_default();
    let help = "The limit applies to each downstream interface.";
    let mut limit = |name: &str, number| checker.integer_or_default(&path.key(name), number, help);
    MembershipLimits {
        groups: limit("groups", raw.groups) as usize,
        sources_per_group: limit("sources_per_group", raw.sources_per_group) as usize,
        reports_per_second: limit("reports_per_second", raw.reports_per_second) as u32,
    }
}

fn check_timers(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    raw: Option<RawTable<RawProxyTimers>>,
) -> QuerierTimers {
    let raw = raw.map(|table| table.0).unwrap_or_default();
    let help = "One less than this many messages in a row may be lost.";
    let robustness = checker.integer_or_default(&path.key("robustness"), raw.robustness, help);
    let mut count = |name: &str, number: Option<i64>| {
        let help = "A number of messages. The default is the robustness variable.";
        let count = checker.integer(&path.key(name), number, help);
        count.map(|count| count as u8)
    };
    let last_member_query_count = count("last_member_query_count", raw.last_member_query_count);
    let startup_query_count = count("startup_query_count", raw.startup_query_count);
    let query_interval =
        checker.duration_or_default(&path.key("query_interval"), raw.query_interval);
    let response_path = path.key("query_response_interval");
    let query_response_interval = checker
        .duration(&response_path, raw.query_response_interval)
        .unwrap_or_else(|| {
            let default = QuerierTimers::default().query_response_interval;
            default.min(query_interval / 2)
        });
    if query_response_interval >= query_interval {
        checker.refuse(
            &response_path,
            format!("{query_response_interval:?}"),
            format!("less than the query interval of {query_interval:?}"),
            "Hosts must be able to answer before the next query (RFC 9776 section 8.3).",
        );
    }
    let last_member_query_interval = checker.duration_or_default(
        &path.key("last_member_query_interval"),
        raw.last_member_query_interval,
    );
    let startup_path = path.key("startup_query_interval");
    let startup_query_interval: Option<Duration> =
        checker.duration(&startup_path, raw.startup_query_interval);
    QuerierTimers {
        robustness: robustness as u8,
        query_interval,
        query_response_interval,
        last_member_query_interval,
        last_member_query_count,
        startup_query_count,
        startup_query_interval,
    }
}
